// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Workers that die while the VMM is doing something: the next one goes on with what the VMM had
// set up, no more and no less than the dead one would have.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <climits>
#include <set>
#include <thread>

#include "tests/device/succession_fixture.h"

namespace virtiofsd::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class SuccessionVmm : public SuccessionFixture {
 protected:
  void SetUp() override {
    SuccessionFixture::SetUp();
    // Most of what follows asks for what must not be answered for a while.
    vmm_.patience = milliseconds(3000);
  }
  void start_up(std::vector<std::string> arguments = {}) {
    SuccessionFixture::start_up(std::move(arguments), {.patience = milliseconds(3000)});
  }
  // A successor answers a message when this returns.
  void succeed(int number = SIGKILL) {
    kill_worker(number);
    if (HasFatalFailure()) return;
    ASSERT_OK(vmm().ask_u64(kGetFeatures));
  }
  // Ten requests that wait for a lock which owner 1 has; and then the worker is struck.
  void strike_with_ten_waiting() {
    tree().write("file", std::string(1000, 'x'));
    file_ = node("file");
    handle_ = GET(fuse().open(file_, O_RDWR)).fh;
    EXPECT_DONE(fuse().setlk(file_, handle_, 1, lock(F_WRLCK)));
    for (std::uint64_t i = 0; i < 10; ++i) {
      const auto one = fuse().begin_setlkw(file_, handle_, 100 + i, lock(F_WRLCK, i, i));
      ASSERT_TRUE(one);
      waiting_.push_back(*one);
    }
    EXPECT_DONE(fuse().getattr(file_));  // taken after all of those
    pid_t struck = -1;
    strike(SIGKILL, struck);
  }

  std::uint64_t file_ = 0, handle_ = 0;
  std::vector<std::uint32_t> waiting_;
};
INSTANTIATE_DEVICE_TEST(SuccessionVmm);

#define SUCCEED_WORKER(...)        \
  do {                             \
    succeed(__VA_ARGS__);          \
    if (HasFatalFailure()) return; \
  } while (false)

// As when a VMM pauses its guest: what was in flight is so still when it goes on.
TEST_P(SuccessionVmm, AQueueThatIsStoppedAtOnceGoesOnWithWhatWasInFlightBefore) {
  start_up({"-o", "posix_lock"});
  if (HasFatalFailure()) return;
  strike_with_ten_waiting();
  if (HasFatalFailure()) return;
  ASSERT_OK(vmm().tell_vring(kSetVringEnable, 1, 0));
  const VringState state{.index = 1, .value = 0};
  const auto base = vmm().ask(kGetVringBase, bytes_of(state));
  ASSERT_TRUE(base);
  for (const std::uint32_t one : waiting_) EXPECT_FALSE(fuse().done(one));
  ASSERT_OK(vmm().start_queue(1, base->as<VringState>().value));
  EXPECT_DONE(fuse().setlk(file_, handle_, 1, lock(F_UNLCK, 0, LLONG_MAX)));
  for (const std::uint32_t one : waiting_) EXPECT_EQ(fuse().finish(one).error, 0);
}

// The worker dies while the queue rests, too.
TEST_P(SuccessionVmm, WhatWasPutOffGoesOnInTheNextWorker) {
  start_up({"-o", "posix_lock"});
  if (HasFatalFailure()) return;
  tree().write("file", "x");
  file_ = node("file");
  handle_ = GET(fuse().open(file_, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file_, handle_, 1, lock(F_WRLCK)));
  const auto waiting = fuse().begin_setlkw(file_, handle_, 2, lock(F_WRLCK));
  ASSERT_TRUE(waiting);
  EXPECT_DONE(fuse().getattr(file_));
  const auto base = vmm().stop_queue(1);
  ASSERT_TRUE(base) << base.error().text();
  KILL_WORKER();
  ASSERT_OK(vmm().start_queue(1, *base));
  EXPECT_DONE(fuse().getattr(file_));
  EXPECT_FALSE(fuse().done(*waiting));
  EXPECT_DONE(fuse().flush(file_, handle_, 1));
  EXPECT_EQ(fuse().finish(*waiting).error, 0);
}

// A new kick descriptor stops and starts a ring, which the guest never notices.
TEST_P(SuccessionVmm, ANewKickDescriptorLosesNothing) {
  start_up({"-o", "posix_lock"});
  if (HasFatalFailure()) return;
  strike_with_ten_waiting();
  if (HasFatalFailure()) return;
  const int kick[] = {vmm().kick_fd(1).number()};
  ASSERT_OK(vmm().tell_u64(kSetVringKick, 1, kick));
  EXPECT_DONE(fuse().setlk(file_, handle_, 1, lock(F_UNLCK, 0, LLONG_MAX)));
  int answered = 0;
  for (const std::uint32_t one : waiting_) {
    const Deadline deadline = within(seconds(1));
    while (!fuse().done(one) && std::chrono::steady_clock::now() < deadline) {
    }
    answered += fuse().done(one) ? 1 : 0;
  }
  EXPECT_EQ(answered, 10) << daemon().output();
}

// Refused, and the conversation goes on: with the successor as well.
TEST_P(SuccessionVmm, ARingThatCouldNotStartDoesNotKeepTheSuccessorFromStarting) {
  vmm_.request_queues = 2;
  start_up();
  if (HasFatalFailure()) return;
  ASSERT_OK(vmm().stop_queue(2));
  VringAddress address = vmm().vring_address(2);
  address.descriptors = 0x1000;
  ASSERT_OK(vmm().tell(kSetVringAddr, bytes_of(address)));
  const int kick[] = {vmm().kick_fd(2).number()};
  (void)vmm().tell_u64(kSetVringKick, 2, kick);
  EXPECT_FALSE(vmm().tell_vring(kSetVringEnable, 2, 1)) << "is refused";
  EXPECT_DONE(fuse().getattr(kRoot));
  SUCCEED_WORKER();
  EXPECT_DONE(fuse().getattr(kRoot));
}

// The first worker lets a running ring rest that is nowhere in memory, until it is again.
TEST_P(SuccessionVmm, ARunningRingThatIsNowhereInMemoryRests) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  // All regions but none where the rings are.
  const std::uint32_t none[2] = {0, 0};
  ASSERT_OK(vmm().tell(kSetMemTable, bytes_of(none)));
  SUCCEED_WORKER();
  ASSERT_OK(vmm().share_memory());
  EXPECT_DONE(fuse().getattr(file));
}

TEST_P(SuccessionVmm, ARingThatRestsIsStoppedWhereItWas) {
  start_up();
  if (HasFatalFailure()) return;
  for (int i = 0; i < 20; ++i) EXPECT_DONE(fuse().getattr(kRoot));
  const std::uint32_t here = vmm().ring(1).base();
  const std::uint32_t none[2] = {0, 0};
  ASSERT_OK(vmm().tell(kSetMemTable, bytes_of(none)));
  SUCCEED_WORKER();
  const auto base = vmm().stop_queue(1);
  ASSERT_TRUE(base);
  EXPECT_EQ(*base, here);
  SUCCEED_WORKER();
  const VringState state{.index = 1, .value = 0};
  EXPECT_EQ(vmm().ask(kGetVringBase, bytes_of(state))->as<VringState>().value, here);
  ASSERT_OK(vmm().share_memory());
  ASSERT_OK(vmm().start_queue(1));
  EXPECT_DONE(fuse().getattr(kRoot));
}

// A refusal must not leave the record with other addresses than the device.
TEST_P(SuccessionVmm, AddressesThatWereRefusedAreNotGoneBackFrom) {
  vmm_.request_queues = 2;
  start_up();
  if (HasFatalFailure()) return;
  const auto used = [&] {
    const DriverRing& ring = vmm().ring(2);
    return ring.options().packed ? 0 : ring.used_index().load();
  };
  VringAddress address = vmm().vring_address(2);
  address.descriptors = 0x1000;
  EXPECT_FALSE(vmm().tell(kSetVringAddr, bytes_of(address))) << "running, so it is tried at once";
  // Stopped now. Nothing is served from where the ring was.
  const std::uint16_t before = used();
  const Block request = vmm().ram().allocate(64), reply = vmm().ram().allocate(256);
  const Buffer out{request.guest, 64}, in{reply.guest, 256};
  ASSERT_TRUE(vmm().ring(2).submit(std::span{&out, 1}, std::span{&in, 1}, 7));
  vmm().ring(2).kick();
  EXPECT_FALSE(vmm().ring(2).wait(within(std::chrono::milliseconds(50)))) << "the first worker";
  EXPECT_EQ(used(), before);
  SUCCEED_WORKER();
  EXPECT_FALSE(vmm().ring(2).wait(within(std::chrono::milliseconds(50))))
      << "the successor serves a ring that was refused";
}

// What a running ring doesn't take, its successor must not either.
TEST_P(SuccessionVmm, FeaturesThatARunningRingLeavesAsideAreNotTakenByItsSuccessor) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  ASSERT_OK(vmm().tell_u64(kSetFeatures, vmm().features() ^ (1ULL << 34)));
  EXPECT_DONE(fuse().getattr(file));
  SUCCEED_WORKER();
  EXPECT_DONE(fuse().getattr(file));
}

TEST_P(SuccessionVmm, ABrokenRingStaysBrokenAndTheOtherGoesOn) {
  vmm_.request_queues = 2;
  start_up();
  if (HasFatalFailure()) return;
  DriverRing& ring = vmm().ring(2);
  if (ring.options().packed) GTEST_SKIP();
  ring.available_index().fetch_add(static_cast<std::uint16_t>(ring.options().size + 5));
  ring.kick();
  ASSERT_TRUE(vmm().error_signalled(2, within(seconds(2))));
  SUCCEED_WORKER();
  EXPECT_DONE(fuse().getattr(kRoot));
  SUCCEED_WORKER(SIGABRT);
  EXPECT_DONE(fuse().getattr(kRoot));
}

// Who asked for acknowledgements in a message that was refused waits for them from then on.
TEST_P(SuccessionVmm, AcknowledgementsAreStillGiven) {
  vmm_.protocol_features = 0;
  start_up();
  if (HasFatalFailure()) return;
  const std::uint64_t wanted = kProtocolReplyAck | (1ULL << 60);
  ASSERT_OK(send_message(vmm().socket(), kSetProtocolFeatures, 0, bytes_of(wanted)));
  const auto once = [&] {
    const VringState state{.index = 3, .value = 0};
    EXPECT_TRUE(send_message(vmm().socket(), kSetVringEnable, kMessageNeedReply, bytes_of(state)));
    return static_cast<bool>(receive_message(vmm().socket(), within(seconds(1))));
  };
  EXPECT_TRUE(once());
  SUCCEED_WORKER();
  EXPECT_TRUE(once());
}

TEST_P(SuccessionVmm, MemoryThatComesAndGoesIsWhatItWas) {
  vmm_.add_mem_reg = true;
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  const GuestRam::Region extra{.guest = 1ULL << 40,
                               .vmm = 1ULL << 44,
                               .size = 1 << 20,
                               .offset = 0,
                               .host = nullptr,
                               .used = 0};
  const auto payload = [&](const GuestRam::Region& region) {
    std::vector<std::byte> bytes(8 + sizeof(MemoryRegion));
    const MemoryRegion entry{
        .guest = region.guest, .size = region.size, .vmm = region.vmm, .offset = region.offset};
    std::memcpy(bytes.data() + 8, &entry, sizeof entry);
    return bytes;
  };
  const int fds[] = {vmm().ram().fd().number()};
  for (int i = 0; i < 4; ++i) {
    ASSERT_OK(vmm().tell(kAddMemReg, payload(extra), fds));
    SUCCEED_WORKER();
    EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
    ASSERT_OK(vmm().tell(kRemMemReg, payload(extra)));
    SUCCEED_WORKER();
    EXPECT_FALSE(vmm().tell(kRemMemReg, payload(extra))) << "gone already";
    EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  }
}

TEST_P(SuccessionVmm, TheDirtyLogGoesOn) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  ASSERT_OK(vmm().start_dirty_log());
  SUCCEED_WORKER();
  vmm().clear_dirty_log();
  EXPECT_DONE(fuse().getattr(file));
  EXPECT_TRUE(vmm().dirty(GetParam().options.packed ? vmm().ring(1).descriptor_area()
                                                    : vmm().ring(1).device_area()));
  ASSERT_OK(vmm().stop_dirty_log());
  SUCCEED_WORKER();
  vmm().clear_dirty_log();
  EXPECT_DONE(fuse().getattr(file));
  EXPECT_FALSE(vmm().dirty(vmm().ring(1).device_area()));
}

TEST_P(SuccessionVmm, ResetsAreKept) {
  start_up();
  if (HasFatalFailure()) return;
  for (int i = 0; i < 3; ++i) {
    for (unsigned queue = 0; queue < 2; ++queue) ASSERT_OK(vmm().stop_queue(queue));
    if (i == 1) ASSERT_OK(vmm().tell(kResetDevice));
    if (i == 2) ASSERT_OK(vmm().tell_u64(kSetStatus, 0));
    SUCCEED_WORKER();
    for (unsigned queue = 0; queue < 2; ++queue) {
      ASSERT_OK(vmm().start_queue(queue));
      SUCCEED_WORKER();
    }
    ASSERT_TRUE(fuse().init());
    EXPECT_DONE(fuse().getattr(kRoot));
  }
}

TEST_P(SuccessionVmm, ThirtyDeathsCostNothing) {
  start_up();
  if (HasFatalFailure()) return;
  for (int i = 0; i < 100; ++i) tree().write("f" + std::to_string(i), "x");
  const auto work = [&] {
    for (int i = 0; i < 100; ++i) {
      const std::uint64_t one = node("f" + std::to_string(i));
      fuse().forget(one, 1);
    }
  };
  work();
  SUCCEED_WORKER();
  work();
  const ProcessUsage before = daemon().usage();
  for (int i = 0; i < 30; ++i) {
    SUCCEED_WORKER();
    work();
  }
  // What is forgotten goes a little later.
  const Deadline deadline = within(seconds(10));
  while (daemon().usage().descriptors > before.descriptors + 2)
    ASSERT_LT(std::chrono::steady_clock::now(), deadline)
        << before.descriptors << " -> " << daemon().usage().descriptors;
  EXPECT_LE(daemon().usage().threads, before.threads + 2);
}

TEST_P(SuccessionVmm, EachSandbox) {
  for (const char* sandbox : {"none", "chroot", "namespace"}) {
    start({std::string("--sandbox=") + sandbox}, vmm_);
    if (HasFatalFailure()) return;
    tree().write("file", "inside");
    const std::uint64_t file = node("file");
    for (int i = 0; i < 2; ++i) {
      SUCCEED_WORKER();
      EXPECT_DONE(fuse().getattr(file));
    }
    TearDown();
    client_.reset();
    requests_.reset();
    urgent_.reset();
    front_end_.reset();
    daemon_.reset();
  }
}

}  // namespace
}  // namespace virtiofsd::guest
