// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One daemon, started for one run: its process, the device set up as a Linux
// guest in QEMU would, FUSE initialised, and the lanes to drive it by. Ends
// the daemon with everything when the object ends.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/compare/clock.h"
#include "bench/compare/lane.h"
#include "testing/daemon_process.h"
#include "testing/fuse_client.h"

namespace virtiofsd::bench {

struct DaemonSpec {
  std::string name;
  // Words of the command without socket and directory; {share} stands for the
  // directory, and without it `-o source=DIRECTORY` is added, which all daemons know.
  std::vector<std::string> command;
};

struct SessionOptions {
  unsigned queues = 1;           // request queues
  unsigned slots = 16;           // of each
  std::uint32_t data_bytes = 0;  // pages of each slot
  std::uint32_t uid = 0;         // who asks
};

struct Footprint {
  std::uint64_t bytes = 0;  // proportional share of all its memory but the guest's
  std::uint64_t descriptors = 0;
};

class Session {
 public:
  static Result<std::unique_ptr<Session>, Failure> start(const DaemonSpec& spec,
                                                         const std::string& share,
                                                         const SessionOptions& options);

  guest::DaemonProcess& daemon() { return *daemon_; }
  guest::FrontEnd& front_end() { return *front_end_; }
  // For what isn't measured. Only while nothing is in flight on the first request queue.
  guest::FuseClient& client() { return *client_; }
  Lane& lane(unsigned queue) { return *lanes_[queue]; }
  unsigned queues() const { return static_cast<unsigned>(lanes_.size()); }
  Forgets& forgets() { return *forgets_; }

  // The node of a path below the shared directory; each step is looked up once.
  Result<std::uint64_t, Failure> node(const std::string& path);
  Result<std::uint64_t, Failure> open(std::uint64_t node, std::uint32_t flags);

  // All the daemon's processes; asked again each time.
  std::vector<pid_t> processes() const { return daemon_->tree(); }
  void move(Place place) const;
  Footprint footprint() const;
  // Of all its threads, since they started.
  std::uint64_t context_switches() const;
  // Hangs up and waits for the end. Nanoseconds it took; nothing when it did not end in time.
  std::optional<std::uint64_t> hang_up(std::chrono::seconds patience);

 private:
  Session() = default;

  std::unique_ptr<guest::DaemonProcess> daemon_;
  std::unique_ptr<guest::FrontEnd> front_end_;
  std::unique_ptr<guest::FuseQueue> requests_, urgent_;
  std::unique_ptr<guest::FuseClient> client_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::unique_ptr<Forgets> forgets_;
};

}  // namespace virtiofsd::bench
