// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A virtiofsd binary, ours or a foreign one, started on a socket of its own
// and certainly gone when the object ends, with all its children. What it says
// on stderr is kept for the failure message.
//
// Some daemons take one connection and end with it, so waiting for readiness
// makes that connection; take_connection() hands it over. Linux only, one
// thread at a time.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "sys/fd.h"
#include "testing/driver_ring.h"
#include "testing/temp_tree.h"

namespace virtiofsd::guest {

enum class DaemonKind : std::uint8_t { kOurs, kQemu, kRust };

struct DaemonOptions {
  std::string binary;  // empty: the environment's VIRTIOFSD, else the one built here
  std::string shared_directory;
  std::vector<std::string> arguments;  // after the socket and the directory
  bool listening_fd = false;           // --fd=N instead of --socket-path=S
  std::string socket_path;             // empty: one of its own
  bool connect = true;                 // wait until it accepts; false: just started
  std::chrono::milliseconds patience{10'000};
};

// Sums over the daemon and all its descendants. Processes that share a
// descriptor table count its descriptors once.
struct ProcessUsage {
  unsigned processes = 0;
  unsigned threads = 0;
  std::uint64_t resident_bytes = 0;  // proportional (Pss) where the kernel tells, else Rss
  std::chrono::microseconds cpu{};
  std::uint64_t descriptors = 0;
};

class DaemonProcess {
 public:
  // The binary tests run by default: $VIRTIOFSD, else what CMake built; may not exist.
  static std::string default_binary();
  static DaemonKind kind_of(const std::string& binary);

  static Result<std::unique_ptr<DaemonProcess>, Failure> start(DaemonOptions options);
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;
  ~DaemonProcess();

  DaemonKind kind() const { return kind_; }
  pid_t pid() const { return pid_; }
  const std::string& socket_path() const { return socket_path_; }
  // The connection made while waiting for readiness; once.
  UniqueFd take_connection() { return std::move(connection_); }
  // A further connection, for daemons that go on after the first.
  Result<UniqueFd, Failure> connect();

  // The daemon's process and every descendant, root first.
  std::vector<pid_t> tree() const;
  ProcessUsage usage() const;
  void signal(int number) const;

  // The wait status once it ended by itself or by signal(); nothing when `deadline` passes.
  std::optional<int> wait(Deadline deadline);
  bool running() const;
  // Ends everything now. The destructor does it too.
  void kill();

  // All it wrote to stderr and stdout so far.
  std::string output() const;

 private:
  DaemonProcess() = default;
  Result<void, Failure> launch(const DaemonOptions& options);
  Result<void, Failure> wait_until_it_accepts(Deadline deadline);

  DaemonKind kind_ = DaemonKind::kOurs;
  TempTree place_;  // the socket's directory and the daemon's output
  std::string socket_path_;
  UniqueFd listening_;
  UniqueFd connection_;
  UniqueFd pidfd_;
  pid_t pid_ = -1;
  std::optional<int> status_;
};

}  // namespace virtiofsd::guest
