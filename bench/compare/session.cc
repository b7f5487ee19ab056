// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/session.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

namespace virtiofsd::bench {
namespace {

// Numbers that name something in /proc/PID/`what`.
std::vector<pid_t> numbers_in(const std::string& directory) {
  std::vector<pid_t> found;
  DIR* const opened = opendir(directory.c_str());
  if (opened == nullptr) return found;
  while (const dirent* entry = readdir(opened)) {
    if (entry->d_name[0] != '.') found.push_back(std::atoi(entry->d_name));
  }
  closedir(opened);
  return found;
}

std::string proc(pid_t pid, const char* what) {
  return "/proc/" + std::to_string(pid) + "/" + what;
}

// Pss of all mappings but the guest's memory, which is no cost of the daemon's.
std::uint64_t memory_of(pid_t pid) {
  std::ifstream maps(proc(pid, "smaps"));
  std::string line;
  std::uint64_t kilobytes = 0;
  bool counted = false;
  while (std::getline(maps, line)) {
    if (line.find('-') < line.find(':')) counted = line.find("memfd:guest-ram") == line.npos;
    if (counted && line.starts_with("Pss:"))
      kilobytes += std::strtoull(line.c_str() + 4, nullptr, 10);
  }
  return kilobytes * 1024;
}

}  // namespace

Result<std::unique_ptr<Session>, Failure> Session::start(const DaemonSpec& spec,
                                                         const std::string& share,
                                                         const SessionOptions& options) {
  guest::DaemonOptions how;
  how.binary = spec.command.front();
  bool named = false;
  for (std::size_t i = 1; i < spec.command.size(); ++i) {
    std::string word = spec.command[i];
    if (const std::size_t at = word.find("{share}"); at != word.npos) {
      word.replace(at, 7, share);
      named = true;
    }
    how.arguments.push_back(word);
  }
  if (!named) how.arguments.insert(how.arguments.end(), {"-o", "source=" + share});

  std::unique_ptr<Session> session{new Session};
  session->daemon_ = TRY(guest::DaemonProcess::start(std::move(how)));

  guest::FrontEndOptions vmm;
  vmm.request_queues = options.queues;
  // As libvirt asks for; a chain may not be longer, and one page a descriptor makes 1 MiB 256.
  vmm.ring.size = 1024;
  vmm.ring.event_idx = true;
  vmm.ring.indirect = true;
  // What a VMM takes today; the rest would only make set-up longer.
  vmm.protocol_features =
      guest::kProtocolMq | guest::kProtocolReplyAck | guest::kProtocolConfigureMemSlots;
  vmm.buffer_memory = (64ULL << 20) + std::uint64_t{options.queues} * options.slots *
                                          (std::uint64_t{options.data_bytes} + 4096);
  session->front_end_ =
      TRY(guest::FrontEnd::adopt(session->daemon_->take_connection(), std::move(vmm)));
  guest::FrontEnd& front_end = *session->front_end_;
  auto ready = front_end.set_up();
  if (!ready) return Failure(ready.error().text() + "\n" + session->daemon_->output());

  guest::FuseQueueOptions queue;
  queue.slots = 4;
  queue.data_bytes = 256U << 10;
  session->requests_ = std::make_unique<guest::FuseQueue>(front_end, 1, queue);
  queue.slots = 1;
  queue.data_bytes = 0;
  session->urgent_ = std::make_unique<guest::FuseQueue>(front_end, 0, queue);
  session->requests_->uid = session->requests_->gid = options.uid;
  session->client_ = std::make_unique<guest::FuseClient>(*session->requests_, *session->urgent_);
  if (auto begun = session->client_->init(); !begun) return Failure("INIT", begun.error());

  for (unsigned i = 0; i < options.queues; ++i) {
    session->lanes_.push_back(
        std::make_unique<Lane>(front_end, i + 1, options.slots, options.data_bytes, options.uid));
  }
  // A driver may sleep in read(): FrontEnd's descriptors are non-blocking.
  for (const auto& lane : session->lanes_) fcntl(lane->call_fd().number(), F_SETFL, 0);
  session->forgets_ = std::make_unique<Forgets>(front_end);
  return session;
}

Result<std::uint64_t, Failure> Session::node(const std::string& path) {
  auto found = client_->walk(path);
  if (!found) return Failure("looking up " + path, found.error());
  return std::uint64_t{found->nodeid};
}

Result<std::uint64_t, Failure> Session::open(std::uint64_t node, std::uint32_t flags) {
  auto opened = client_->open(node, flags);
  if (!opened) return Failure("opening node " + std::to_string(node), opened.error());
  return std::uint64_t{opened->fh};
}

void Session::move(Place place) const {
  for (const pid_t pid : processes())
    for (const pid_t thread : numbers_in(proc(pid, "task"))) move_thread(thread, place, true);
}

Footprint Session::footprint() const {
  Footprint sum;
  for (const pid_t pid : processes()) sum.bytes += memory_of(pid);
  sum.descriptors = daemon_->usage().descriptors;
  return sum;
}

std::uint64_t Session::context_switches() const {
  std::uint64_t sum = 0;
  for (const pid_t pid : processes()) {
    for (const pid_t thread : numbers_in(proc(pid, "task"))) {
      std::ifstream status("/proc/" + std::to_string(pid) + "/task/" + std::to_string(thread) +
                           "/status");
      std::string line;
      while (std::getline(status, line)) {
        if (const std::size_t at = line.find("ctxt_switches:"); at != line.npos)
          sum += std::strtoull(line.c_str() + at + 14, nullptr, 10);
      }
    }
  }
  return sum;
}

std::optional<std::uint64_t> Session::hang_up(std::chrono::seconds patience) {
  const std::uint64_t begun = now_ns();
  front_end_->close();
  if (!daemon_->wait(guest::within(patience))) return std::nullopt;
  return now_ns() - begun;
}

}  // namespace virtiofsd::bench
