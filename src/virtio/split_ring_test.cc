// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/split_ring.h"

#include <gtest/gtest.h>

#include "virtio/driver_for_test.h"

namespace virtiofsd::virtio {
namespace {

constexpr std::uint64_t kA = TestDriver::kBuffers;
constexpr std::uint64_t kB = TestDriver::kBuffers + 0x1000;
constexpr std::uint64_t kC = TestDriver::kBuffers + 0x2000;
constexpr std::uint64_t kTable = TestDriver::kBuffers + 0x8000;

TEST(SplitRing, CarriesARequestThereAndItsReplyBack) {
  SplitDriver driver{8};
  driver.memory.write(kA, "header");
  driver.memory.write(kB, "name");
  driver.submit(3, {{kA, 6}, {kB, 4}, {kC, 16, true}});

  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_EQ(driver.readable(), "headername");
  EXPECT_EQ(driver.chain.writable.size(), 16U);
  EXPECT_FALSE(driver.chain.faulted);
  driver.reply("answer");
  EXPECT_EQ(driver.used_index(), 0);
  driver.queue.push(driver.chain, 6);

  EXPECT_EQ(driver.used_index(), 1);
  EXPECT_EQ(driver.used(0).id, 3U);
  EXPECT_EQ(driver.used(0).written, 6U);
  EXPECT_EQ(driver.memory.read(kC, 6), "answer");
  EXPECT_EQ(driver.pop(), "none");
}

TEST(SplitRing, GivesBackExactlyTheLengthsInAnyOrder) {
  SplitDriver driver{8};
  driver.submit(0, {{kA, 4}, {kC, 100, true}});
  driver.submit(2, {{kB, 4}});
  ChainScratch first_scratch;
  Chain first;
  ASSERT_TRUE(*driver.queue.pop(first_scratch, first));
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  driver.queue.push(first, 77);
  EXPECT_EQ(driver.used(0).id, 2U);
  EXPECT_EQ(driver.used(0).written, 0U);
  EXPECT_EQ(driver.used(1).id, 0U);
  EXPECT_EQ(driver.used(1).written, 77U);
}

TEST(SplitRing, KeepsGoingWhenItsIndicesWrap) {
  SplitDriver driver{4, 0, 65534};
  for (std::uint32_t i = 0; i < 6; ++i) {
    driver.submit(static_cast<std::uint16_t>(i % 4), {{kA, 1}});
    ASSERT_EQ(driver.pop(), "chain") << i;
    driver.queue.push(driver.chain, i);
    const auto at = static_cast<std::uint16_t>(65534 + i);
    EXPECT_EQ(driver.used(at).written, i);
    EXPECT_EQ(driver.used_index(), static_cast<std::uint16_t>(at + 1));
  }
}

TEST(SplitRing, TellsHowManyAreBehindAsFarAsItLooked) {
  SplitDriver driver{8, 0, 65534};
  for (std::uint16_t id = 0; id < 4; ++id) driver.submit(id, {{kA, 1}});
  for (std::uint32_t left = 3; left > 0; --left) {
    ASSERT_EQ(driver.pop(), "chain");
    EXPECT_EQ(driver.chain.behind, left);
    driver.queue.push(driver.chain, 0);
    // Not looked for before those are taken.
    if (left == 2) driver.submit(4, {{kA, 1}});
  }
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_EQ(driver.chain.behind, 0U);
  driver.queue.push(driver.chain, 0);
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
}

// It asks for the memory of those behind, wherever they say that is.
TEST(SplitRing, TakesAChainWhateverIsBehindIt) {
  for (const std::uint64_t table : {std::uint64_t{0}, ~std::uint64_t{0}, ~std::uint64_t{0} - 31,
                                    TestMemory::kGuest + TestMemory::kSize - 16,
                                    TestMemory::kGuest + TestMemory::kSize, kTable + 3}) {
    SplitDriver driver{8, kIndirectDescriptors};
    // Entries of a table that is there lead nowhere.
    driver.entry(kTable + 3, 0, {~std::uint64_t{0}, 1});
    driver.entry(kTable + 3, 1, {TestMemory::kGuest + TestMemory::kSize, 1});
    driver.descriptor(0, {kA, 1});
    driver.descriptor(1, {table, 32}, kIndirectFlag);
    for (const std::uint16_t head : {0, 1, 1, 0xffff}) driver.make_available(head);
    ASSERT_EQ(driver.pop(), "chain");
    EXPECT_EQ(driver.readable().size(), 1U);
    EXPECT_EQ(driver.chain.behind, 3U);
    driver.queue.push(driver.chain, 0);
  }
}

TEST(SplitRing, WorksAtEverySizeUpTo32768) {
  for (std::uint32_t size = 1; size <= 32768; size *= 2) {
    SplitDriver driver{size};
    std::vector<TestBuffer> all(size, TestBuffer{kA, 1});
    driver.submit(0, all);
    ASSERT_EQ(driver.pop(), "chain") << size;
    EXPECT_EQ(driver.chain.readable.size(), size);
    driver.queue.push(driver.chain, 0);
    EXPECT_EQ(driver.used_index(), 1);
  }
}

TEST(SplitRing, RefusesAChainThatLoops) {
  SplitDriver driver{4};
  driver.descriptor(0, {kA, 1}, kNextFlag, 1);
  driver.descriptor(1, {kA, 1}, kNextFlag, 0);
  driver.make_available(0);
  EXPECT_EQ(driver.pop(), "broken");
  EXPECT_TRUE(driver.error_signalled());
  EXPECT_TRUE(driver.queue.broken());
  EXPECT_EQ(driver.queue.in_flight(), 0U);
}

TEST(SplitRing, RefusesALoopOfEmptyDescriptors) {
  SplitDriver driver{4};
  driver.descriptor(0, {kA, 0}, kNextFlag, 0);
  driver.make_available(0);
  EXPECT_EQ(driver.pop(), "broken");
}

TEST(SplitRing, RefusesAHeadOrNextBeyondTheRing) {
  SplitDriver head{4};
  head.make_available(4);
  EXPECT_EQ(head.pop(), "broken");

  SplitDriver next{4};
  next.descriptor(0, {kA, 1}, kNextFlag, 4);
  next.make_available(0);
  EXPECT_EQ(next.pop(), "broken");
}

TEST(SplitRing, RefusesAnIndexThatJumpsFurtherThanTheRing) {
  SplitDriver far{4};
  far.set_available_index(5);
  EXPECT_EQ(far.pop(), "broken");

  SplitDriver back{4};
  back.set_available_index(0xffff);
  EXPECT_EQ(back.pop(), "broken");
}

TEST(SplitRing, RefusesMoreInFlightThanItHasSlots) {
  SplitDriver driver{2};
  driver.submit(0, {{kA, 1}});
  driver.submit(1, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_EQ(driver.pop(), "none");
  driver.submit(0, {{kA, 1}});
  EXPECT_EQ(driver.pop(), "broken");
  driver.queue.push(driver.chain, 0);
  driver.queue.push(driver.chain, 0);
}

TEST(SplitRing, RefusesReadableBehindWritable) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 1}, {kB, 1, true}, {kC, 1}});
  EXPECT_EQ(driver.pop(), "broken");
}

TEST(SplitRing, RefusesMoreBytesThan32BitsCount) {
  SplitDriver driver{4};
  driver.submit(0, {{kA, 0xffff'ffff}, {kA, 1}});
  EXPECT_EQ(driver.pop(), "broken");
}

TEST(SplitRing, SkipsDescriptorsOfNoBytes) {
  SplitDriver driver{8};
  driver.memory.write(kA, "ab");
  driver.submit(0, {{TestDriver::kNowhere, 0}, {kA, 2}, {kB, 0}, {kC, 0, true}, {kC, 3, true}});
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_FALSE(driver.chain.faulted);
  EXPECT_EQ(driver.readable(), "ab");
  EXPECT_EQ(driver.chain.writable.size(), 3U);
  driver.queue.push(driver.chain, 0);
}

TEST(SplitRing, KeepsTheReplyReachableWhenARequestBufferLiesNowhere) {
  SplitDriver driver{8};
  driver.memory.write(kA, "head");
  driver.submit(0, {{kA, 4}, {TestDriver::kNowhere, 4096}, {kB, 4}, {kC, 16, true}});
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_TRUE(driver.chain.faulted);
  EXPECT_EQ(driver.readable(), "head") << "what is before the bad one, and nothing behind it";
  driver.reply("error");
  driver.queue.push(driver.chain, 5);
  EXPECT_EQ(driver.memory.read(kC, 5), "error");
  EXPECT_EQ(driver.used(0).written, 5U);
  EXPECT_FALSE(driver.queue.broken());
}

TEST(SplitRing, CutsTheReplyWhereItLiesNowhere) {
  SplitDriver driver{8};
  driver.submit(0, {{kA, 4}, {kC, 16, true}, {TestDriver::kNowhere, 16, true}, {kB, 16, true}});
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_TRUE(driver.chain.faulted);
  EXPECT_EQ(driver.chain.readable.size(), 4U);
  EXPECT_EQ(driver.chain.writable.size(), 16U);
  driver.queue.push(driver.chain, 0);
}

TEST(SplitRing, FollowsABufferIntoTheRegionThatTouches) {
  const std::uint64_t border = kA + 3 - TestMemory::kGuest;
  SplitDriver driver{8, 0, 0, border};
  driver.memory.write(kA, "across");
  driver.submit(0, {{kA, 6}});
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_EQ(driver.scratch.readable.size(), 2U);
  EXPECT_EQ(driver.readable(), "across");
  driver.queue.push(driver.chain, 0);
}

// An indirect table of {kA: "in", kB: "direct"} and a reply at kC, in slots
// that are not in order.
void write_table(SplitDriver& driver, std::uint64_t table) {
  driver.memory.write(kA, "in");
  driver.memory.write(kB, "direct");
  driver.entry(table, 0, {kA, 2}, kNextFlag, 2);
  driver.entry(table, 2, {kB, 6}, kNextFlag, 1);
  driver.entry(table, 1, {kC, 8, true});
}

TEST(SplitRing, ReadsAnIndirectTableBehindADirectDescriptor) {
  SplitDriver driver{4, kIndirectDescriptors};
  write_table(driver, kTable);
  driver.memory.write(kB + 0x100, "first ");
  driver.descriptor(0, {kB + 0x100, 6}, kNextFlag, 1);
  driver.descriptor(1, {kTable, 48, true}, kIndirectFlag);
  driver.make_available(0);
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_EQ(driver.readable(), "first indirect");
  EXPECT_EQ(driver.chain.writable.size(), 8U);
  driver.queue.push(driver.chain, 0);
}

TEST(SplitRing, ReadsAnIndirectTableThatIsCutByARegionBorderAtAnyByte) {
  for (std::uint64_t cut = 0; cut <= 48; ++cut) {
    SplitDriver driver{4, kIndirectDescriptors, 0, kTable + cut - TestMemory::kGuest};
    write_table(driver, kTable);
    driver.descriptor(0, {kTable, 48}, kIndirectFlag);
    driver.make_available(0);
    ASSERT_EQ(driver.pop(), "chain") << cut;
    EXPECT_EQ(driver.readable(), "indirect") << cut;
    driver.queue.push(driver.chain, 0);
  }
}

TEST(SplitRing, ReadsAnIndirectTableThatIsNotAligned) {
  SplitDriver driver{4, kIndirectDescriptors};
  write_table(driver, kTable + 3);
  driver.descriptor(0, {kTable + 3, 48}, kIndirectFlag);
  driver.make_available(0);
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_EQ(driver.readable(), "indirect");
  driver.queue.push(driver.chain, 0);
}

TEST(SplitRing, RefusesIndirectTablesThatBreakTheRules) {
  struct Case {
    const char* what;
    std::uint64_t features;
    std::uint32_t table_bytes;
    std::uint16_t head_flags;
    std::uint16_t entry_flags;
    std::uint16_t entry_next;
  };
  const Case cases[] = {
      {"not negotiated", 0, 48, kIndirectFlag, 0, 0},
      {"no entries", kIndirectDescriptors, 0, kIndirectFlag, 0, 0},
      {"half an entry", kIndirectDescriptors, 40, kIndirectFlag, 0, 0},
      {"more behind it", kIndirectDescriptors, 48, kIndirectFlag | kNextFlag, 0, 0},
      {"nested", kIndirectDescriptors, 48, kIndirectFlag, kIndirectFlag, 0},
      {"next beyond the table", kIndirectDescriptors, 48, kIndirectFlag, kNextFlag, 3},
      {"loop", kIndirectDescriptors, 48, kIndirectFlag, kNextFlag, 0},
  };
  for (const Case& c : cases) {
    SplitDriver driver{4, c.features};
    driver.entry(kTable, 0, {kA, 16}, c.entry_flags, c.entry_next);
    driver.descriptor(0, {kTable, c.table_bytes}, c.head_flags, 1);
    driver.make_available(0);
    EXPECT_EQ(driver.pop(), "broken") << c.what;
  }
}

TEST(SplitRing, CountsIndirectDescriptorsAgainstTheRingSize) {
  for (const std::uint16_t entries : {std::uint16_t{4}, std::uint16_t{5}}) {
    SplitDriver driver{4, kIndirectDescriptors};
    for (std::uint16_t i = 0; i < entries; ++i) {
      driver.entry(kTable, i, {kA, 1}, i + 1 < entries ? kNextFlag : 0,
                   static_cast<std::uint16_t>(i + 1));
    }
    driver.descriptor(0, {kTable, entries * 16U}, kIndirectFlag);
    driver.make_available(0);
    EXPECT_EQ(driver.pop(), entries == 4 ? "chain" : "broken");
    if (entries == 4) driver.queue.push(driver.chain, 0);
  }
}

TEST(SplitRing, AnswersATableThatLiesNowhereWithAnEmptyFaultedChain) {
  SplitDriver driver{4, kIndirectDescriptors};
  driver.descriptor(0, {TestDriver::kNowhere, 48}, kIndirectFlag);
  driver.make_available(0);
  ASSERT_EQ(driver.pop(), "chain");
  EXPECT_TRUE(driver.chain.faulted);
  EXPECT_EQ(driver.chain.readable.size() + driver.chain.writable.size(), 0U);
  driver.queue.push(driver.chain, 0);
  EXPECT_EQ(driver.used_index(), 1);
}

void serve_one(SplitDriver& driver) {
  driver.submit(0, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
}

TEST(SplitRing, SignalsOncePerBatchAndOnlyWhenSomethingWasPushed) {
  SplitDriver driver{4};
  driver.queue.signal();
  EXPECT_FALSE(driver.called());
  serve_one(driver);
  serve_one(driver);
  driver.queue.signal();
  EXPECT_TRUE(driver.called());
  driver.queue.signal();
  EXPECT_FALSE(driver.called());
}

TEST(SplitRing, HonoursADriverThatWantsNoInterrupts) {
  SplitDriver driver{4};
  driver.set_driver_flags(1);
  serve_one(driver);
  driver.queue.signal();
  EXPECT_FALSE(driver.called());
  driver.set_driver_flags(0);
  serve_one(driver);
  driver.queue.signal();
  EXPECT_TRUE(driver.called());
}

TEST(SplitRing, NotifiesOnEmptyEvenADriverThatWantsNoInterrupts) {
  SplitDriver driver{4, kNotifyOnEmpty};
  driver.set_driver_flags(1);
  driver.submit(0, {{kA, 1}});
  driver.submit(1, {{kA, 1}});
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  driver.queue.signal();
  EXPECT_FALSE(driver.called()) << "one is still available";
  ASSERT_EQ(driver.pop(), "chain");
  driver.queue.push(driver.chain, 0);
  driver.queue.signal();
  EXPECT_TRUE(driver.called());
}

TEST(SplitRing, SignalsExactlyWhenTheUsedEventIsPassedAlsoAcrossTheWrap) {
  for (const std::uint32_t start : {0U, 65530U}) {
    SplitDriver driver{4, kEventIndex, start};
    serve_one(driver);  // the first signal is always sent
    driver.queue.signal();
    EXPECT_TRUE(driver.called());
    // Used is start + 1 now; the driver waits for the element start + 7.
    driver.set_used_event(static_cast<std::uint16_t>(start + 7));
    for (std::uint32_t used = start + 2; used < start + 12; ++used) {
      serve_one(driver);
      driver.queue.signal();
      EXPECT_EQ(driver.called(), used == start + 8) << start << ' ' << used;
    }
  }
}

TEST(SplitRing, SignalsForABatchThatPassesTheUsedEventInItsMiddle) {
  SplitDriver driver{8, kEventIndex};
  serve_one(driver);
  driver.queue.signal();
  EXPECT_TRUE(driver.called());
  driver.set_used_event(2);
  for (int i = 0; i < 4; ++i) serve_one(driver);
  driver.queue.signal();
  EXPECT_TRUE(driver.called());
}

// Whether a driver that moves its index from `before` to `after` kicks.
bool driver_kicks(std::uint16_t event, std::uint16_t before, std::uint16_t after) {
  return static_cast<std::uint16_t>(after - event - 1) < static_cast<std::uint16_t>(after - before);
}

TEST(SplitRing, TurnsKicksOffAndOnByTheAvailableEvent) {
  for (const std::uint32_t start : {0U, 65535U}) {
    SplitDriver driver{4, kEventIndex, start};
    const auto at = static_cast<std::uint16_t>(start);
    driver.queue.suppress_kicks();
    EXPECT_FALSE(driver_kicks(driver.available_event(), at, static_cast<std::uint16_t>(at + 1)));
    EXPECT_FALSE(driver_kicks(driver.available_event(), at, static_cast<std::uint16_t>(at + 4)));
    EXPECT_FALSE(driver.queue.enable_kicks());
    EXPECT_TRUE(driver_kicks(driver.available_event(), at, static_cast<std::uint16_t>(at + 1)));
  }
}

TEST(SplitRing, TurnsKicksOffAndOnByTheFlag) {
  SplitDriver driver{4};
  driver.queue.suppress_kicks();
  EXPECT_EQ(driver.device_flags(), 1);
  EXPECT_FALSE(driver.queue.enable_kicks());
  EXPECT_EQ(driver.device_flags(), 0);
}

TEST(SplitRing, SaysSoWhenSomethingBecameAvailableBeforeKicksWereOn) {
  for (const std::uint64_t features : {std::uint64_t{0}, kEventIndex}) {
    SplitDriver driver{4, features};
    driver.queue.suppress_kicks();
    driver.submit(0, {{kA, 1}});
    EXPECT_TRUE(driver.queue.enable_kicks());
  }
}

TEST(SplitRing, GivesBackInOrderAndHoldsBackWhatIsEarly) {
  SplitDriver driver{4, kInOrder};
  std::array<ChainScratch, 3> scratch;
  std::array<Chain, 3> chain;
  for (int turn = 0; turn < 3; ++turn) {  // more turns than the ring has slots
    const std::uint16_t used = driver.used_index();
    for (std::uint16_t i = 0; i < 3; ++i) {
      driver.submit(i, {{kA, 1}, {kC, 64, true}});
      ASSERT_TRUE(*driver.queue.pop(scratch[i], chain[i]));
    }
    driver.queue.push(chain[2], 30);
    driver.queue.push(chain[1], 20);
    driver.queue.signal();
    EXPECT_EQ(driver.used_index(), used);
    EXPECT_FALSE(driver.called()) << "nothing to see yet";
    driver.queue.push(chain[0], 10);
    EXPECT_EQ(driver.used_index(), static_cast<std::uint16_t>(used + 3));
    for (std::uint16_t i = 0; i < 3; ++i) {
      const auto element = driver.used(static_cast<std::uint16_t>(used + i));
      EXPECT_EQ(element.id, i);
      EXPECT_EQ(element.written, (i + 1) * 10U);
    }
    driver.queue.signal();
    EXPECT_TRUE(driver.called());
  }
}

}  // namespace
}  // namespace virtiofsd::virtio
