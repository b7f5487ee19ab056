// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// From a request's bytes to a reply's bytes: copies the header and arguments
// once, finds the operation's row, calls it, writes the reply header (nobody
// else does). Stateless but for the session that INIT fixed.
//
// Threads: serve may run on any number of threads at once, each with its own
// Scratch. An INIT or DESTROY waits until every other request is done.
#pragma once

#include <atomic>
#include <cstdint>
#include <shared_mutex>
#include <vector>

#include "fuse/call.h"
#include "fuse/file_system.h"
#include "fuse/negotiation.h"
#include "memory/shared_bytes.h"

namespace virtiofsd::fuse {

// A thread's private memory for requests and replies; grows to what was
// needed once and stays.
struct Scratch {
  std::vector<std::byte> request;
  std::vector<std::byte> reply;
};

class Dispatcher {
 public:
  struct Settings {
    Offer offer;
    bool read_only = false;       // operations that write answer EROFS
    bool root_only = false;       // -o allow_root: only uid 0 and the daemon's own may ask
    std::uint32_t own_uid = 0;
  };

  Dispatcher(FileSystem& file_system, Settings settings);

  // Serves one request. Returns the bytes written to `reply` (the ring's
  // used.len): exactly the reply header's len, or 0 for a request that has no
  // answer or no room for one.
  std::uint32_t serve(SharedBytes request, SharedBytes reply, Scheduler& scheduler, Scratch& scratch);

  // The device was reset: as DESTROY. Call while no request is in flight.
  void reset();

  const Negotiated& session() const { return session_; }
  // For a successor process: go on with a session that was negotiated before.
  void restore(const Negotiated& session) { session_ = session; }

 private:
  FileSystem& file_system_;
  const Settings settings_;
  Negotiated session_;
};

}  // namespace virtiofsd::fuse
