// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/queue.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "virtio/driver_for_test.h"

namespace virtiofsd::virtio {
namespace {

constexpr std::uint64_t kA = TestDriver::kBuffers;
constexpr std::uint64_t kC = TestDriver::kBuffers + 0x2000;

TEST(Queue, IsReadyWhenEverythingIsThere) {
  TestMemory memory;
  Queue queue{0};
  const auto missing = [&] { return !queue.ready(); };
  EXPECT_TRUE(missing());
  EXPECT_TRUE(queue.set_size(4));
  EXPECT_TRUE(missing());
  EXPECT_TRUE(queue.set_addresses(TestDriver::addresses()));
  EXPECT_TRUE(missing());
  queue.set_memory(memory.table());
  EXPECT_TRUE(missing());
  queue.set_kick(UniqueFd{});
  EXPECT_TRUE(missing());
  queue.set_enabled(true);
  EXPECT_TRUE(queue.ready());
  EXPECT_FALSE(queue.running());
  EXPECT_TRUE(queue.start());
  EXPECT_TRUE(queue.running());
  queue.reset();
  EXPECT_FALSE(queue.ready());
  EXPECT_FALSE(queue.running());
}

// QEMU changes it while requests are served, when the guest masks and unmasks its interrupt.
TEST(Queue, WhoBringsACallDescriptorLaterMissesNothing) {
  TestMemory memory;
  Queue queue{0};
  const auto call_made = [&] {
    UniqueFd call{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    UniqueFd ours{::fcntl(call.number(), F_DUPFD_CLOEXEC, 0)};
    EXPECT_TRUE(queue.set_call(std::move(call)));
    std::uint64_t count = 0;
    return ::read(ours.number(), &count, sizeof count) == sizeof count;
  };
  EXPECT_FALSE(call_made()) << "nothing runs yet";
  ASSERT_TRUE(queue.set_size(4));
  ASSERT_TRUE(queue.set_addresses(TestDriver::addresses()));
  queue.set_memory(memory.table());
  queue.set_kick(UniqueFd{});
  queue.set_enabled(true);
  ASSERT_TRUE(queue.start());
  EXPECT_TRUE(call_made());
  EXPECT_TRUE(queue.set_call(UniqueFd{}));
}

TEST(Queue, RefusesSizesAndAddressesThatCanNotBe) {
  Queue queue{0};
  EXPECT_EQ(queue.set_size(0).error(), Errno{EINVAL});
  EXPECT_EQ(queue.set_size(32769).error(), Errno{EINVAL});
  auto addresses = TestDriver::addresses();
  addresses.descriptors.value += 8;
  EXPECT_EQ(queue.set_addresses(addresses).error(), Errno{EINVAL});

  TestMemory memory;
  queue.set_memory(memory.table());
  EXPECT_TRUE(queue.set_addresses(TestDriver::addresses()));
  EXPECT_EQ(queue.start().error(), Errno{EINVAL}) << "no size yet";
  EXPECT_TRUE(queue.set_size(3));
  EXPECT_EQ(queue.start().error(), Errno{EINVAL}) << "a split ring is a power of two";
  EXPECT_TRUE(queue.set_size(4));
  addresses = TestDriver::addresses();
  addresses.device = VmmAddress{TestMemory::kVmm + TestMemory::kSize - 4};
  EXPECT_TRUE(queue.set_addresses(addresses));
  EXPECT_EQ(queue.start().error(), Errno{EFAULT});
  addresses.device = VmmAddress{~3ULL};
  EXPECT_TRUE(queue.set_addresses(addresses));
  EXPECT_EQ(queue.start().error(), Errno{EFAULT});
}

TEST(Queue, TakesGuestPhysicalRingAddresses) {
  SplitDriver driver{4};
  driver.queue.stop();
  ASSERT_TRUE(driver.queue.set_addresses(
      RingAddresses<GuestAddress>{.descriptors = {TestDriver::kDescriptors},
                                  .driver = {TestDriver::kDriverArea},
                                  .device = {TestDriver::kDeviceArea},
                                  .log = std::nullopt}));
  ASSERT_TRUE(driver.queue.start());
  driver.submit(0, {{kA, 1}});
  EXPECT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
}

TEST(Queue, IsNotReshapedWhileItRuns) {
  SplitDriver driver{4};
  EXPECT_EQ(driver.queue.set_size(8).error(), Errno{EBUSY});
  EXPECT_EQ(driver.queue.set_base(1).error(), Errno{EBUSY});
  auto addresses = TestDriver::addresses();
  addresses.log = GuestAddress{TestDriver::kLogOffset};
  EXPECT_TRUE(driver.queue.set_addresses(addresses)) << "only the log differs";
  addresses.device.value += 4096;
  EXPECT_EQ(driver.queue.set_addresses(addresses).error(), Errno{EBUSY});
  // A change of features means only the log bit: the ring stays split.
  driver.queue.set_features(kLogAll | kRingPacked | kInOrder);
  driver.submit(0, {{kA, 1}});
  EXPECT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  EXPECT_EQ(driver.used_index(), 1);
}

TEST(Queue, StartsANewPackedRingWhoseDriverSaysZero) {
  PackedDriver driver{2};
  driver.queue.stop();
  ASSERT_TRUE(driver.queue.set_base(0));
  ASSERT_TRUE(driver.queue.start());
  driver.submit(0, {{kA, 1}});
  EXPECT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  EXPECT_TRUE(driver.is_used(0, true));
}

TEST(Queue, ResumesAPackedRingThatStoppedAtZero) {
  PackedDriver driver{2};
  for (std::uint16_t id = 0; id < 2; ++id) {
    driver.submit(id, {{kA, 1}});
    ASSERT_EQ(driver.pop(), "chain");
    driver.queue.push(driver.chain, 0);
  }
  EXPECT_EQ(driver.queue.stop(), 0U);
  ASSERT_TRUE(driver.queue.set_base(0));
  ASSERT_TRUE(driver.queue.start());
  EXPECT_EQ(driver.pop(), "none");
  driver.submit(0, {{kA, 1}});
  EXPECT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  EXPECT_TRUE(driver.is_used(0, false));
}

TEST(Queue, YieldsNothingWhileDisabledOrStopped) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}});
  EXPECT_TRUE(driver.queue.has_available());
  driver.queue.set_enabled(false);
  EXPECT_FALSE(driver.queue.has_available());
  EXPECT_EQ(driver.pop(), "none");
  driver.queue.set_enabled(true);
  EXPECT_TRUE(driver.queue.has_available());
  EXPECT_EQ(driver.queue.stop(), 0U);
  EXPECT_FALSE(driver.queue.has_available());
  EXPECT_EQ(driver.pop(), "none");
  EXPECT_FALSE(driver.queue.enable_kicks());
  driver.queue.suppress_kicks();
  driver.queue.signal();
  ASSERT_TRUE(driver.queue.start());
  EXPECT_EQ(driver.pop(), "chain");
  EXPECT_FALSE(driver.queue.has_available());
  driver.queue.push(driver.chain, 0);
  EXPECT_EQ(driver.queue.stop(), 1U);
}

TEST(Queue, MayTakeAgainWhatAPredecessorTookButDidNotGiveBack) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}});
  driver.submit(1, {{kA, 2}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  ASSERT_EQ(driver.pop(), "chain");
  Queue successor{1};
  ASSERT_TRUE(successor.set_size(4));
  ASSERT_TRUE(successor.set_addresses(TestDriver::addresses()));
  ASSERT_TRUE(successor.set_base(driver.used_index()));
  successor.set_memory(driver.memory.table());
  successor.set_enabled(true);
  ASSERT_TRUE(successor.start());
  ChainScratch scratch;
  Chain chain;
  ASSERT_TRUE(*successor.pop(scratch, chain));
  EXPECT_EQ(chain.id, 1);
  successor.push(chain, 0);
  EXPECT_EQ(driver.used_index(), 2);
  driver.queue.push(driver.chain, 0);
}

TEST(Queue, StopWaitsForWhatIsInFlight) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}, {kC, 8, true}});
  driver.submit(2, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  std::atomic<bool> pushed{false};
  auto base = std::async(std::launch::async, [&] {
    const std::uint32_t stopped_at = driver.queue.stop();
    EXPECT_TRUE(pushed) << "stop came back before the chain did";
    return stopped_at;
  });
  while (driver.queue.running()) std::this_thread::yield();
  EXPECT_EQ(driver.pop(), "none") << "no more from the moment stop was asked for";
  pushed = true;
  driver.queue.push(driver.chain, 5);
  EXPECT_EQ(base.get(), 1U);
  EXPECT_EQ(driver.used_index(), 1);
  EXPECT_EQ(driver.used(0).written, 5U);
}

TEST(Queue, SaysWhenFewEnoughAreInFlight) {
  using std::chrono::steady_clock;
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}, {kC, 8, true}});
  driver.submit(2, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.set_enabled(false);
  EXPECT_TRUE(driver.queue.await_in_flight(1, steady_clock::now()));
  const auto soon = steady_clock::now() + std::chrono::milliseconds(5);
  EXPECT_FALSE(driver.queue.await_in_flight(0, soon));
  EXPECT_GE(steady_clock::now(), soon) << "nobody answers";
  std::atomic<bool> pushed{false};
  auto paused = std::async(std::launch::async, [&] {
    EXPECT_TRUE(driver.queue.await_in_flight(0, steady_clock::now() + std::chrono::seconds(20)));
    EXPECT_TRUE(pushed) << "it came back before the chain did";
  });
  pushed = true;
  driver.queue.push(driver.chain, 5);
  paused.get();
  EXPECT_EQ(driver.used_index(), 1);
  driver.queue.set_enabled(true);
  EXPECT_EQ(driver.pop(), "chain") << "and on it goes";
  driver.queue.push(driver.chain, 0);
}

TEST(Queue, GivesOneBackAndYieldsTheNext) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}, {kC, 8, true}});
  driver.submit(2, {{kA, 3}});
  ASSERT_EQ(driver.pop(), "chain");
  ASSERT_TRUE(*driver.queue.push_and_pop(5, driver.scratch, driver.chain));
  EXPECT_EQ(driver.used_index(), 1);
  EXPECT_EQ(driver.used(0).id, 0U);
  EXPECT_EQ(driver.used(0).written, 5U);
  EXPECT_EQ(driver.chain.readable.size(), 3U);
  EXPECT_EQ(driver.queue.in_flight(), 1U);
  EXPECT_FALSE(*driver.queue.push_and_pop(0, driver.scratch, driver.chain)) << "there is no more";
  EXPECT_EQ(driver.used_index(), 2);
  EXPECT_EQ(driver.used(1).id, 2U);
  EXPECT_EQ(driver.queue.in_flight(), 0U);
}

TEST(Queue, GivesOneBackWhereTheNextIsMalformed) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.make_available(9);
  EXPECT_EQ(driver.queue.push_and_pop(0, driver.scratch, driver.chain).error(), Errno{EBADMSG});
  EXPECT_EQ(driver.used_index(), 1);
  EXPECT_TRUE(driver.error_signalled());
  EXPECT_EQ(driver.queue.in_flight(), 0U);
}

TEST(Queue, DrainsUnderLoadFromManyThreads) {
  for (const std::uint64_t features : {std::uint64_t{0}, kInOrder, kEventIndex}) {
    SplitDriver driver{256, features};
    for (std::uint16_t i = 0; i < 256; ++i) driver.submit(i, {{kA, 1}});
    std::atomic<std::uint32_t> served{0};
    std::vector<std::thread> crew;
    for (int i = 0; i < 4; ++i) {
      crew.emplace_back([&] {
        ChainScratch scratch;
        Chain chain;
        while (driver.queue.running()) {
          if (!driver.queue.has_available()) continue;
          for (bool more = *driver.queue.pop(scratch, chain); more;) {
            ++served;
            if (chain.id % 3 == 0) {
              driver.queue.push(chain, 1);
              more = false;
            } else {
              more = *driver.queue.push_and_pop(1, scratch, chain);
            }
            driver.queue.signal();
          }
        }
      });
    }
    while (served < 100) std::this_thread::yield();
    const std::uint32_t base = driver.queue.stop();
    EXPECT_EQ(driver.used_index(), base);
    for (std::thread& thread : crew) thread.join();
    EXPECT_EQ(served, base);
    EXPECT_TRUE(driver.called());
    if (features == kInOrder) {
      for (std::uint16_t i = 0; i < base; ++i) EXPECT_EQ(driver.used(i).id, i);
    }
  }
}

TEST(Queue, BreaksOnceAndStaysBrokenUntilItIsStopped) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.make_available(9);
  ChainScratch scratch;
  Chain bad;
  EXPECT_EQ(driver.queue.pop(scratch, bad).error(), Errno{EBADMSG});
  EXPECT_TRUE(driver.error_signalled());
  EXPECT_EQ(driver.pop(), "none");
  EXPECT_FALSE(driver.error_signalled()) << "told once";
  EXPECT_FALSE(driver.queue.has_available());
  EXPECT_FALSE(driver.queue.ready());
  driver.queue.push(driver.chain, 0);
  EXPECT_EQ(driver.used_index(), 1) << "what was in flight still comes back";
  driver.queue.stop();
  EXPECT_TRUE(driver.queue.ready());
}

TEST(Queue, ServesFromTheNewMemoryAndKeepsTheOldForWhatIsInFlight) {
  SplitDriver driver{4};
  driver.memory.write(kA, "old");
  driver.submit(0, {{kA, 3}, {kC, 8, true}});
  ASSERT_EQ(driver.pop(), "chain");
  std::weak_ptr<const GuestMemory> old;
  {
    // The same bytes in another table.
    std::vector<iovec> all;
    ASSERT_TRUE(driver.memory.table()->append_pieces({TestMemory::kGuest}, TestMemory::kSize, all));
    const auto table = [&] {
      return GuestMemory::make({{.guest = {TestMemory::kGuest},
                                 .vmm = {TestMemory::kVmm},
                                 .size = TestMemory::kSize,
                                 .host = static_cast<std::byte*>(all[0].iov_base),
                                 .owner = {}}})
          .value();
    };
    auto second = table();
    old = second;
    driver.queue.set_memory(std::move(second));
    driver.queue.push(driver.chain, 0);
    driver.submit(2, {{kA, 3}});
    ASSERT_EQ(driver.pop(), "chain");
    driver.queue.set_memory(table());
  }
  EXPECT_FALSE(old.expired()) << "the chain in flight holds it";
  EXPECT_EQ(driver.readable(), "old");
  driver.queue.push(driver.chain, 0);
  driver.scratch.release();
  EXPECT_TRUE(old.expired());
  EXPECT_EQ(driver.used_index(), 2);
}

TEST(Queue, PausesWhileItsRingIsInNoRegion) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}});
  driver.submit(1, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.set_memory(GuestMemory::make({}).value());
  EXPECT_EQ(driver.pop(), "none");
  EXPECT_FALSE(driver.queue.has_available());
  driver.queue.push(driver.chain, 0);
  EXPECT_EQ(driver.used_index(), 1) << "a chain in flight comes back where its ring was";
  driver.queue.set_memory(driver.memory.table());
  EXPECT_TRUE(driver.queue.has_available());
  EXPECT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
}

TEST(Queue, KeepsTheKickOpenForWhoeverWaitsOnIt) {
  Queue queue{0};
  EXPECT_EQ(queue.kick(), nullptr);
  const auto event = sys::EventFd::create().value();
  queue.set_kick(UniqueFd{::dup(event.ref().number())});
  const auto waiting = queue.kick();
  ASSERT_NE(waiting, nullptr);
  queue.set_kick(UniqueFd{});
  EXPECT_EQ(queue.kick(), nullptr);
  event.signal();
  EXPECT_TRUE(sys::drain_event(*waiting)) << "still the same event";
}

// A log with one bit per page, for guest memory and for the log address of the used ring.
class LoggedPages {
 public:
  LoggedPages() {
    EXPECT_EQ(::ftruncate(fd_.number(), kBytes), 0);
    log = DirtyLog::map(fd_, 0, kBytes).value();
  }
  // Marked pages since the last call.
  std::vector<std::uint64_t> take() {
    std::vector<std::uint64_t> pages;
    std::vector<unsigned char> bytes(kBytes);
    EXPECT_EQ(::pread(fd_.number(), bytes.data(), kBytes, 0), kBytes);
    for (std::uint64_t page = 0; page < kBytes * 8; ++page)
      if ((bytes[page / 8] >> (page % 8) & 1) != 0) pages.push_back(page * 4096);
    const std::vector<unsigned char> zeros(kBytes);
    EXPECT_EQ(::pwrite(fd_.number(), zeros.data(), kBytes, 0), kBytes);
    return pages;
  }
  std::shared_ptr<DirtyLog> log;

 private:
  static constexpr std::int64_t kBytes = 16384;
  UniqueFd fd_{::memfd_create("log", MFD_CLOEXEC)};
};

using Pages = std::vector<std::uint64_t>;

TEST(Queue, LogsWhatWasWrittenAndTheUsedRingWhileLoggingIsOn) {
  LoggedPages pages;
  SplitDriver driver{4};
  driver.queue.set_dirty_log(pages.log);
  auto addresses = TestDriver::addresses();
  addresses.log = GuestAddress{TestDriver::kLogOffset};
  ASSERT_TRUE(driver.queue.set_addresses(addresses));
  const auto serve = [&](std::uint32_t written) {
    driver.submit(0, {{kA, 1}, {kC, 16, true}, {kC + 0x5ffc, 0x3000, true}});
    ASSERT_EQ(driver.pop(), "chain");
    driver.queue.push(driver.chain, written);
  };
  serve(20);
  EXPECT_EQ(pages.take(), Pages{}) << "logging is off";

  driver.queue.set_features(kLogAll);
  serve(0);
  EXPECT_EQ(pages.take(), Pages{TestDriver::kLogOffset});
  serve(16);
  EXPECT_EQ(pages.take(), (Pages{kC, TestDriver::kLogOffset}));
  serve(16 + 4);
  EXPECT_EQ(pages.take(), (Pages{kC, kC + 0x5000, TestDriver::kLogOffset}));
  serve(16 + 5);
  EXPECT_EQ(pages.take(), (Pages{kC, kC + 0x5000, kC + 0x6000, TestDriver::kLogOffset}));
  driver.queue.suppress_kicks();
  EXPECT_EQ(pages.take(), Pages{TestDriver::kLogOffset});

  ASSERT_TRUE(driver.queue.set_addresses(TestDriver::addresses()));
  serve(16);
  EXPECT_EQ(pages.take(), Pages{kC}) << "a ring that isn't to be logged";
  driver.queue.set_features(0);
  serve(16);
  EXPECT_EQ(pages.take(), Pages{});
}

TEST(Queue, LogsTheDescriptorsOfAPackedRing) {
  LoggedPages pages;
  PackedDriver driver{4};
  driver.queue.set_dirty_log(pages.log);
  driver.queue.set_features(kLogAll);
  auto addresses = TestDriver::addresses();
  addresses.log = GuestAddress{TestDriver::kLogOffset};
  ASSERT_TRUE(driver.queue.set_addresses(addresses));
  driver.submit(0, {{kA, 1}, {kC, 16, true}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 16);
  EXPECT_EQ(pages.take(), (Pages{TestDriver::kDescriptors, kC}));
  driver.queue.suppress_kicks();
  EXPECT_EQ(pages.take(), Pages{TestDriver::kLogOffset});
}

TEST(Queue, AllocatesNothingForAChainItHasRoomFor) {
  SplitDriver driver{8};
  driver.submit(0, {{kA, 1}, {kA, 1}, {kC, 16, true}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  const auto* readable = driver.scratch.readable.data();
  const auto* writable = driver.scratch.writable.data();
  driver.submit(0, {{kA, 1}, {kA, 1}, {kC, 16, true}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  EXPECT_EQ(driver.scratch.readable.data(), readable);
  EXPECT_EQ(driver.scratch.writable.data(), writable);
}

}  // namespace
}  // namespace virtiofsd::virtio
