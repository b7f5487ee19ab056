// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Where the VMM connects: a socket path of ours, a descriptor given to us
// (listening or already connected), or systemd's socket activation. One client is served at a
// time, and only one at all if the socket isn't to be kept.
//
// The launcher prepares and opens and in the end removes; the worker accepts,
// in its sandbox. The socket's path appears only in open(), when all that could
// fail has been done. A path in use is never stolen: the lock on
// PATH.pid says who lives, and a socket somebody listens on is left alone even without it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd {

class Listener {
 public:
  struct Settings {
    std::string path = {};       // --socket-path; or
    std::optional<int> fd = {};  // --fd; neither: LISTEN_FDS from systemd
    std::string group = {};      // may connect too; empty: only the owner
    bool keep = false;           // accept() may be called again, when the client has left
  };

  // Checks the path, its directory and the group (or what the descriptor is)
  // and takes the lock file. Launcher, before any process or socket is made.
  static Result<Listener, Failure> prepare(Settings settings);

  Listener(Listener&& other) noexcept;
  Listener& operator=(Listener&&) = delete;
  ~Listener() = default;  // removes nothing: forked copies are destroyed too

  // For a launcher whose tree takes over from that of `predecessor`, which has the path: checks
  // that it has. Takes and makes nothing.
  static Result<Listener, Failure> prepare_to_take_over(Settings settings, pid_t predecessor);
  // That one is gone: its lock file and the removal of its socket are ours now.
  Result<void, Failure> take_over();

  // Makes the path and listens. Launcher, with everything else ready.
  Result<void, Failure> open();
  // Removes the socket's path and the lock file, if they are still ours. Launcher.
  void remove();

  // Waits for the client; afterwards nobody else can connect, or, with Settings::keep, only waits
  // in line. Worker, after the launcher's open(). A connected descriptor is simply handed over.
  Result<UniqueFd, Failure> accept();
  // With Settings::keep, where another tree listened before: its socket, if there is none here.
  void keep_listening_on(FdRef socket);

  // Closes what only the launcher needs (the lock file). Supervisor.
  void leave_to_launcher();

  int descriptor() const { return socket_.number(); }

 private:
  Listener() = default;
  Result<void, Failure> take_descriptor();
  void note_socket();

  Settings settings_;
  UniqueFd socket_;
  UniqueFd lock_;
  unsigned group_id_ = 0;
  std::uint64_t socket_device_ = 0;  // which file remove() may remove
  std::uint64_t socket_inode_ = 0;
  bool connected_ = false;  // socket_ is the client already
  bool bound_ = false;      // the path is ours to remove
};

// Closes every descriptor above stderr that nobody told us about. First thing
// in main, before the log is opened. `keep` is --fd; LISTEN_FDS are kept anyway.
void close_inherited_descriptors(std::optional<int> keep);

}  // namespace virtiofsd
