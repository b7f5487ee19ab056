// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/packed_ring.h"

#include <gtest/gtest.h>

#include "virtio/driver_for_test.h"

namespace virtiofsd::virtio {
namespace {

constexpr std::uint64_t kA = TestDriver::kBuffers;
constexpr std::uint64_t kB = TestDriver::kBuffers + 0x1000;
constexpr std::uint64_t kC = TestDriver::kBuffers + 0x2000;
constexpr std::uint64_t kTable = TestDriver::kBuffers + 0x8000;

TEST(PackedRing, CarriesARequestThereAndItsReplyBack) {
  PackedDriver driver{8};
  driver.memory.write(kA, "header");
  driver.memory.write(kB, "name");
  EXPECT_EQ(driver.pop(), "none");
  driver.submit(7, {{kA, 6}, {kB, 4}, {kC, 16, true}});

  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_EQ(driver.readable(), "headername");
  EXPECT_EQ(driver.chain.descriptor_count, 3);
  driver.reply("answer");
  EXPECT_FALSE(driver.is_used(0, true));
  driver.queue.push(driver.chain, 6);

  EXPECT_TRUE(driver.is_used(0, true));
  EXPECT_EQ(driver.slot(0).id, 7);
  EXPECT_EQ(driver.slot(0).size, 6U);
  EXPECT_NE(driver.slot(0).flags & kWriteFlag, 0) << "the length counts";
  EXPECT_EQ(driver.memory.read(kC, 6), "answer");
  EXPECT_EQ(driver.pop(), "none");
}

TEST(PackedRing, SeesNothingUntilTheHeadIsAvailable) {
  PackedDriver driver{4};
  driver.put(1, {kA, 1}, kNextFlag, false);
  driver.put(1, {kB, 1}, 0, true);
  EXPECT_EQ(driver.pop(), "none");
  EXPECT_FALSE(driver.queue.has_available());
  driver.publish({.slot = 0, .wrap = true}, kNextFlag);
  EXPECT_TRUE(driver.queue.has_available());
  EXPECT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
}

TEST(PackedRing, TellsRoughlyHowManyAreBehind) {
  PackedDriver driver{40};
  // The second round starts in the middle, so that looking ahead wraps.
  for (int round = 0; round < 2; ++round) {
    for (std::uint16_t id = 0; id < 33; ++id) driver.submit(id, {{kA, 1}});
    for (int popped = 1; popped <= 33; ++popped) {
      ASSERT_EQ(driver.pop(), "chain");
      const std::uint32_t left = 33 - popped;
      EXPECT_EQ(driver.chain.behind, left >= 32 ? 32U : left >= 8 ? 8U : 0U) << left;
      driver.queue.push(driver.chain, 0);
    }
  }
  PackedDriver small{3};
  small.submit(0, {{kA, 1}});
  ASSERT_EQ(small.pop(), "chain");
  EXPECT_EQ(small.chain.behind, 0U);
  small.queue.push(small.chain, 0);
}

TEST(PackedRing, GivesBackInAnyOrderAndWrapsAtAnySize) {
  // Two chains of two slots in rings of 4 to 7: heads and chains that wrap everywhere.
  for (std::uint32_t size = 4; size <= 7; ++size) {
    PackedDriver driver{size};
    PackedPosition used;
    ChainScratch other_scratch;
    Chain other;
    for (std::uint32_t turn = 0; turn < 50; ++turn) {
      driver.submit(1, {{kA, 1}, {kC, 64, true}});
      driver.submit(2, {{kB, 1}, {kC, 64, true}});
      ASSERT_EQ(driver.pop(), "chain") << size << ' ' << turn;
      ASSERT_TRUE(*driver.queue.pop(other_scratch, other));
      driver.queue.push(other, turn);
      driver.queue.push(driver.chain, turn + 1);
      ASSERT_TRUE(driver.is_used(used.slot, used.wrap)) << size << ' ' << turn;
      EXPECT_EQ(driver.slot(used.slot).id, 2);
      EXPECT_EQ(driver.slot(used.slot).size, turn);
      used.advance(2, size);
      ASSERT_TRUE(driver.is_used(used.slot, used.wrap)) << size << ' ' << turn;
      EXPECT_EQ(driver.slot(used.slot).id, 1);
      EXPECT_EQ(driver.slot(used.slot).size, turn + 1);
      used.advance(2, size);
    }
  }
}

TEST(PackedRing, WorksWithOneSlotAndWith32768) {
  for (const std::uint32_t size : {1U, 3U, 32768U}) {
    PackedDriver driver{size};
    for (int turn = 0; turn < 3; ++turn) {
      driver.submit(0, std::vector<TestBuffer>(size, TestBuffer{kA, 1}));
      ASSERT_EQ(driver.pop(), "chain") << size;
      EXPECT_EQ(driver.chain.readable.size(), size);
      driver.queue.push(driver.chain, 0);
      EXPECT_TRUE(driver.is_used(0, turn % 2 == 0));
    }
  }
}

TEST(PackedRing, RefusesAChainLongerThanTheRing) {
  PackedDriver driver{2};
  driver.put(0, {kA, 1}, kNextFlag);
  driver.put(0, {kA, 1}, kNextFlag);
  EXPECT_EQ(driver.pop(), "broken");
  EXPECT_TRUE(driver.error_signalled());
}

TEST(PackedRing, RefusesSlotsWhoseChainIsStillInFlight) {
  PackedDriver driver{4};
  driver.submit(0, {{kA, 1}, {kB, 1}, {kC, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.submit(1, {{kA, 1}, {kB, 1}});
  ChainScratch scratch;
  Chain chain;
  EXPECT_EQ(driver.queue.pop(scratch, chain).error(), Errno{EBADMSG});
  driver.queue.push(driver.chain, 0);
}

TEST(PackedRing, RefusesReadableBehindWritable) {
  PackedDriver driver{4};
  driver.submit(0, {{kA, 1, true}, {kB, 1}});
  EXPECT_EQ(driver.pop(), "broken");
}

TEST(PackedRing, KeepsTheReplyReachableWhenARequestBufferLiesNowhere) {
  PackedDriver driver{8};
  driver.memory.write(kA, "head");
  driver.submit(0, {{kA, 4}, {TestDriver::kNowhere, 9}, {kC, 16, true}});
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_TRUE(driver.chain.faulted);
  EXPECT_EQ(driver.readable(), "head");
  EXPECT_EQ(driver.chain.writable.size(), 16U);
  driver.queue.push(driver.chain, 0);
}

void table_entry(PackedDriver& driver, int index, TestBuffer buffer, std::uint16_t flags = 0) {
  const std::uint64_t at = kTable + static_cast<std::uint64_t>(index) * 16;
  driver.memory.store<std::uint64_t>(at, buffer.address);
  driver.memory.store<std::uint32_t>(at + 8, buffer.size);
  driver.memory.store<std::uint16_t>(at + 12, 99);
  driver.memory.store<std::uint16_t>(
      at + 14, static_cast<std::uint16_t>(flags | (buffer.writable ? kWriteFlag : 0)));
}

TEST(PackedRing, ReadsAllEntriesOfAnIndirectTableInTheirOrder) {
  PackedDriver driver{4, kIndirectDescriptors};
  driver.memory.write(kA, "in");
  driver.memory.write(kB, "direct");
  table_entry(driver, 0, {kA, 2});
  table_entry(driver, 1, {kB, 6});
  table_entry(driver, 2, {kC, 8, true});
  driver.submit(5, {{kTable, 48}});
  driver.publish({.slot = 0, .wrap = true}, kIndirectFlag);
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_EQ(driver.chain.id, 5);
  EXPECT_EQ(driver.chain.descriptor_count, 1);
  EXPECT_EQ(driver.readable(), "indirect");
  EXPECT_EQ(driver.chain.writable.size(), 8U);
  driver.queue.push(driver.chain, 0);
}

TEST(PackedRing, RefusesIndirectTablesThatBreakTheRules) {
  struct Case {
    const char* what;
    std::uint64_t features;
    std::uint32_t table_bytes;
    std::uint16_t head_flags;
    std::uint16_t entry_flags;
  };
  const Case cases[] = {
      {"not negotiated", 0, 16, kIndirectFlag, 0},
      {"no entries", kIndirectDescriptors, 0, kIndirectFlag, 0},
      {"half an entry", kIndirectDescriptors, 24, kIndirectFlag, 0},
      {"more behind it", kIndirectDescriptors, 16, kIndirectFlag | kNextFlag, 0},
      {"nested", kIndirectDescriptors, 16, kIndirectFlag, kIndirectFlag},
      {"more entries than the ring has slots", kIndirectDescriptors, 80, kIndirectFlag, 0},
  };
  for (const Case& c : cases) {
    PackedDriver driver{4, c.features};
    table_entry(driver, 0, {kA, 1}, c.entry_flags);
    driver.put(0, {kTable, c.table_bytes}, c.head_flags);
    EXPECT_EQ(driver.pop(), "broken") << c.what;
  }
}

void serve_one(PackedDriver& driver) {
  driver.submit(0, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
}

TEST(PackedRing, HonoursWhatTheDriverWantsToHear) {
  PackedDriver driver{4};
  serve_one(driver);
  driver.queue.signal();
  EXPECT_TRUE(driver.called());
  driver.set_driver_event(0, 1);
  serve_one(driver);
  driver.queue.signal();
  EXPECT_FALSE(driver.called());
}

TEST(PackedRing, SignalsExactlyWhenTheEventSlotIsPassedAlsoAcrossTheWrap) {
  constexpr std::uint32_t kRing = 5;
  PackedPosition event;
  event.advance(3, kRing);
  for (int round = 0; round < 20; ++round) {
    PackedDriver driver{kRing, kEventIndex};
    PackedPosition at;
    serve_one(driver);  // the first signal is always sent
    driver.set_driver_event(event.encode(), 2);
    driver.queue.signal();
    driver.called();
    at.advance(1, kRing);
    // A full circle of two turns passes the event once.
    int signals = 0;
    for (std::uint32_t i = 0; i < 2 * kRing; ++i) {
      const bool here = at == event;
      serve_one(driver);
      driver.queue.signal();
      const bool called = driver.called();
      EXPECT_EQ(called, here) << round << ' ' << i;
      signals += called ? 1 : 0;
      at.advance(1, kRing);
    }
    EXPECT_EQ(signals, 1);
    event.advance(1, kRing);
  }
}

TEST(PackedRing, TurnsKicksOffAndOn) {
  PackedDriver plain{4};
  plain.queue.suppress_kicks();
  EXPECT_EQ(plain.device_event().flags, 1);
  EXPECT_FALSE(plain.queue.enable_kicks());
  EXPECT_EQ(plain.device_event().flags, 0);

  PackedDriver driver{4, kEventIndex};
  serve_one(driver);
  EXPECT_FALSE(driver.queue.enable_kicks());
  EXPECT_EQ(driver.device_event().flags, 2);
  EXPECT_EQ(driver.device_event().position, 0x8001);
  driver.submit(0, {{kA, 1}});
  EXPECT_TRUE(driver.queue.enable_kicks());
}

TEST(PackedRing, GivesBackInOrderAndHoldsBackWhatIsEarly) {
  PackedDriver driver{5, kInOrder};
  PackedPosition used;
  std::array<ChainScratch, 2> scratch;
  std::array<Chain, 2> chain;
  for (std::uint32_t turn = 0; turn < 10; ++turn) {
    driver.submit(1, {{kA, 1}, {kC, 64, true}});
    driver.submit(2, {{kB, 1}});
    ASSERT_TRUE(*driver.queue.pop(scratch[0], chain[0]));
    ASSERT_TRUE(*driver.queue.pop(scratch[1], chain[1]));
    driver.queue.push(chain[1], 0);
    EXPECT_FALSE(driver.is_used(used.slot, used.wrap));
    driver.queue.push(chain[0], turn + 1);
    EXPECT_TRUE(driver.is_used(used.slot, used.wrap));
    EXPECT_EQ(driver.slot(used.slot).id, 1);
    EXPECT_EQ(driver.slot(used.slot).size, turn + 1);
    used.advance(2, 5);
    EXPECT_TRUE(driver.is_used(used.slot, used.wrap));
    EXPECT_EQ(driver.slot(used.slot).id, 2);
    used.advance(1, 5);
  }
}

TEST(PackedRing, StopsAndStartsWithItsPositionsInTheBase) {
  // Available slot 2 with its wrap bit clear, used the same.
  PackedDriver driver{4, 0, 0x0002'0002};
  driver.submit(0, {{kA, 1}, {kB, 1}, {kC, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  EXPECT_TRUE(driver.is_used(2, false));
  EXPECT_EQ(driver.queue.stop(), 0x8001'8001U);
  ASSERT_TRUE(driver.queue.start());
  EXPECT_EQ(driver.queue.stop(), 0x8001'8001U);
  ASSERT_TRUE(driver.queue.set_base(4));
  EXPECT_EQ(driver.queue.start().error(), Errno{EINVAL}) << "slot 4 of 4";
}

}  // namespace
}  // namespace virtiofsd::virtio
