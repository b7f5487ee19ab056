// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A guest that goes from one daemon to another, as a VMM moves it: its queues stop, one daemon
// sends its state, the other one loads it, and the same memory and rings go on there.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <climits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {

class MigrationFixture : public DeviceFixture, public ::testing::WithParamInterface<RingShape> {
 protected:
  static constexpr std::uint32_t kSave = 0;
  static constexpr std::uint32_t kLoad = 1;
  static constexpr std::uint64_t kNoDescriptor = 0x100;
  struct Transfer {
    std::uint32_t direction;
    std::uint32_t phase;
  };

  void SetUp() override {
    if (foreign()) GTEST_SKIP() << "ours";
    vmm_.ring = GetParam().options;
  }
  void TearDown() override {
    DeviceFixture::TearDown();
    before_.clear();
  }
  void start_up(std::vector<std::string> arguments = {}, FuseQueueOptions queue = {}) {
    start(std::move(arguments), vmm_, true, queue);
  }

  void stop_queues() {
    bases_.clear();
    for (unsigned queue = 0; queue < vmm().queue_count(); ++queue) {
      const auto base = vmm().stop_queue(queue);
      ASSERT_TRUE(base) << base.error().text();
      bases_.push_back(*base);
    }
  }
  void start_queues() {
    for (unsigned queue = 0; queue < vmm().queue_count(); ++queue)
      ASSERT_OK(vmm().start_queue(queue, bases_[queue]));
  }

  // What the daemon sends, and in `outcome` what it says of it: 0 is good.
  std::string save(std::uint64_t& outcome) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd from{ends[0]};
    UniqueFd to{ends[1]};
    const int fds[] = {to.number()};
    const auto started = vmm().ask_u64(kSetDeviceStateFd, bytes_of(Transfer{kSave, 0}), fds);
    to.reset();
    outcome = started ? *started : ~std::uint64_t{0};
    if (outcome != kNoDescriptor) return {};
    std::string state;
    std::array<char, 65536> piece;
    for (ssize_t got = 0; (got = ::read(from.number(), piece.data(), piece.size())) > 0;)
      state.append(piece.data(), static_cast<std::size_t>(got));
    const auto checked = vmm().ask_u64(kCheckDeviceState);
    outcome = checked ? *checked : ~std::uint64_t{0};
    return state;
  }
  // The queues stop, and the daemon sends what it has.
  std::string stop_and_save() {
    stop_queues();
    std::uint64_t outcome = 0;
    std::string state = save(outcome);
    EXPECT_EQ(outcome, 0U) << daemon().output();
    return state;
  }
  // What the daemon says of it.
  std::uint64_t load(const std::string& state) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    UniqueFd from{ends[0]};
    UniqueFd to{ends[1]};
    const int fds[] = {from.number()};
    const auto started = vmm().ask_u64(kSetDeviceStateFd, bytes_of(Transfer{kLoad, 0}), fds);
    from.reset();
    if (!started || *started != kNoDescriptor) return started ? *started : ~std::uint64_t{0};
    ::signal(SIGPIPE, SIG_IGN);  // it may have read enough
    for (std::string_view rest = state; !rest.empty();) {
      const ssize_t written = ::write(to.number(), rest.data(), rest.size());
      if (written <= 0) break;
      rest.remove_prefix(static_cast<std::size_t>(written));
    }
    to.reset();
    const auto checked = vmm().ask_u64(kCheckDeviceState);
    return checked ? *checked : ~std::uint64_t{0};
  }

  // Another daemon, which the VMM talks to from now on; the one before still has its state.
  void connect_to_next(const std::string& directory, std::vector<std::string> arguments) {
    DaemonOptions options;
    options.shared_directory = directory;
    options.arguments = std::move(arguments);
    auto started = DaemonProcess::start(std::move(options));
    ASSERT_TRUE(started) << started.error().text();
    source_ = ::dup(vmm().socket().number());
    before_.push_back(std::move(daemon_));
    daemon_ = std::move(*started);
    vmm().reconnect(daemon_->take_connection());
    ASSERT_OK(vmm().negotiate());
  }
  void go_on() {
    ASSERT_OK(vmm().share_memory());
    start_queues();
  }
  // All of it, to a daemon on the same directory or on `directory`.
  void migrate(std::vector<std::string> arguments = {}, const std::string& directory = {}) {
    const std::string state = stop_and_save();
    if (HasFailure()) return;
    connect_to_next(directory.empty() ? tree_.root() : directory, std::move(arguments));
    if (HasFatalFailure()) return;
    ASSERT_EQ(load(state), 0U) << daemon().output();
    ::close(std::exchange(source_, -1));  // the VMM there ends
    go_on();
  }

  struct Opened {
    std::uint64_t node;
    std::uint64_t handle;
  };
  Opened open_new(const std::string& name, const std::string& content, int flags = O_RDWR) {
    tree().write(name, content);
    const std::uint64_t file = node(name);
    return {file, GET(fuse().open(file, static_cast<std::uint32_t>(flags))).fh};
  }

  bool says(const std::string& what) const {
    return daemon_->output().find(what) != std::string::npos;
  }

  static fuse_file_lock lock(std::uint32_t type, std::uint64_t from = 0,
                             std::uint64_t to = LLONG_MAX) {
    return {.start = from, .end = to, .type = type, .pid = 42};
  }

  FrontEndOptions vmm_;
  std::vector<std::uint32_t> bases_;  // where the queues stopped
  int source_ = -1;                   // the connection to the daemon before
  std::vector<std::unique_ptr<DaemonProcess>> before_;
};

// And out of the test when it didn't work.
#define MIGRATE(...)               \
  do {                             \
    migrate(__VA_ARGS__);          \
    if (HasFatalFailure()) return; \
  } while (false)

}  // namespace virtiofsd::guest
