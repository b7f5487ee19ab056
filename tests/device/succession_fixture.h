// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A daemon whose worker is killed, on each shape of ring.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>

#include <climits>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {

class SuccessionFixture : public DeviceFixture, public ::testing::WithParamInterface<RingShape> {
 protected:
  void SetUp() override {
    if (foreign()) GTEST_SKIP() << "ours";
    vmm_.ring = GetParam().options;
  }
  void start_up(std::vector<std::string> arguments = {}, FuseQueueOptions queue = {}) {
    start(std::move(arguments), vmm_, true, queue);
  }

  pid_t worker() const {
    const std::vector<pid_t> tree = daemon_->tree();
    return tree.size() < 3 ? -1 : tree.back();
  }
  // The session thread sleeps: no message is half done.
  static bool is_between_messages(pid_t worker) {
    std::ifstream file("/proc/" + std::to_string(worker) + "/syscall");
    long number = -1;
    return file >> number && number == SYS_ppoll;  // else it says "running"
  }
  void await_end_of_message(pid_t worker) {
    // What was said before has been taken when this is answered.
    ASSERT_OK(vmm().ask_u64(kGetQueueNum));
    const Deadline quiet = within(std::chrono::seconds(10));
    while (!is_between_messages(worker)) ASSERT_LT(std::chrono::steady_clock::now(), quiet);
  }
  // Returns at once, with the process that is dying.
  void strike(int number, pid_t& struck) {
    struck = worker();
    ASSERT_GT(struck, 0) << daemon().output();
    await_end_of_message(struck);
    if (HasFatalFailure()) return;
    ASSERT_EQ(::kill(struck, number), 0);
  }
  // Returns when it is dead; what is asked of the daemon then waits for the next one.
  void kill_worker(int number = SIGKILL) {
    pid_t before = -1;
    strike(number, before);
    if (HasFatalFailure()) return;
    const Deadline deadline = within(std::chrono::seconds(10));
    while (worker() == before || worker() < 0) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << daemon().output();
      ASSERT_TRUE(daemon().running()) << daemon().output();
    }
  }

  // The client leaves, and another one comes.
  void come_anew() {
    front_end_->close();
    auto connection = daemon().connect();
    ASSERT_TRUE(connection) << connection.error().text();
    client_.reset();
    requests_.reset();
    urgent_.reset();
    auto front_end = FrontEnd::adopt(std::move(*connection), vmm_);
    ASSERT_TRUE(front_end) << front_end.error().text();
    front_end_ = std::move(*front_end);
    ASSERT_OK(front_end_->set_up());
    requests_ = std::make_unique<FuseQueue>(*front_end_, 1);
    urgent_ =
        std::make_unique<FuseQueue>(*front_end_, 0, FuseQueueOptions{.slots = 4, .data_bytes = 0});
    client_ = std::make_unique<FuseClient>(*requests_, *urgent_);
    ASSERT_OK(client_->init());
  }

  static fuse_file_lock lock(std::uint32_t type, std::uint64_t from = 0,
                             std::uint64_t to = LLONG_MAX) {
    return {.start = from, .end = to, .type = type, .pid = 42};
  }

  FrontEndOptions vmm_;
};

// And out of the test when it didn't work.
#define KILL_WORKER(...)           \
  do {                             \
    kill_worker(__VA_ARGS__);      \
    if (HasFatalFailure()) return; \
  } while (false)

#define COME_ANEW()                \
  do {                             \
    come_anew();                   \
    if (HasFatalFailure()) return; \
  } while (false)

}  // namespace virtiofsd::guest
