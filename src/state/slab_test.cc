// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "state/slab.h"

#include <gtest/gtest.h>

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <thread>
#include <vector>

#include "state/arena.h"
#include "state/blobs.h"
#include "state/records.h"

namespace virtiofsd {
namespace {

using HandleSlab = Slab<HandleRecord, &HandleRecord::next_free>;

constexpr std::array<SectionPlan, 2> kPlan = {
    SectionPlan{SectionKind::kHandles, sizeof(HandleRecord), 64},
    SectionPlan{SectionKind::kBlobs, Blobs::kUnit, 64},
};

class SlabTest : public ::testing::Test {
 protected:
  std::shared_ptr<Arena> arena_ = *Arena::create(kPlan);
  HandleSlab slab_{arena_->section(SectionKind::kHandles)};

  std::uint32_t live_slot() {
    const std::uint32_t slot = *slab_.allocate();
    slab_.publish(slot, 0);
    return slot;
  }
};

TEST_F(SlabTest, NeverGivesSlotZero) {
  for (int i = 0; i < 60; ++i) EXPECT_NE(*slab_.allocate(), 0U);
}

TEST_F(SlabTest, AStaleGenerationFindsNothing) {
  const std::uint32_t slot = live_slot();
  const std::uint32_t old = slab_.generation(slot);
  ASSERT_TRUE(slab_.retire(slot, old));
  slab_.free(slot);

  ASSERT_EQ(live_slot(), slot);
  EXPECT_FALSE(slab_.try_pin(slot, old));
  EXPECT_TRUE(slab_.try_pin(slot, slab_.generation(slot)));
}

TEST_F(SlabTest, SlotsOutOfRangeFindNothing) {
  EXPECT_FALSE(slab_.try_pin(0, 0));
  EXPECT_FALSE(slab_.try_pin(slab_.capacity(), 1));
  EXPECT_FALSE(slab_.try_pin(0xffffffff, 0xffffffff));
}

TEST_F(SlabTest, APinnedRecordOutlivesItsRetirement) {
  const std::uint32_t slot = live_slot();
  const std::uint32_t generation = slab_.generation(slot);
  ASSERT_TRUE(slab_.try_pin(slot, generation));

  EXPECT_FALSE(slab_.retire(slot, generation));
  EXPECT_FALSE(slab_.try_pin(slot, generation));
  EXPECT_TRUE(slab_.unpin(slot));
}

TEST_F(SlabTest, OnlyOneOfTwoRetirementsOwnsTheRecord) {
  const std::uint32_t slot = live_slot();
  const std::uint32_t generation = slab_.generation(slot);
  EXPECT_TRUE(slab_.retire(slot, generation));
  EXPECT_FALSE(slab_.retire(slot, generation));
}

TEST_F(SlabTest, APinnedRecordCannotBeSetAside) {
  const std::uint32_t slot = live_slot();
  ASSERT_TRUE(slab_.try_pin(slot, slab_.generation(slot)));
  EXPECT_FALSE(slab_.set_aside(slot));
  ASSERT_FALSE(slab_.unpin(slot));
  ASSERT_TRUE(slab_.set_aside(slot));
  slab_.put_back(slot);
  EXPECT_TRUE(slab_.try_pin(slot, slab_.generation(slot)));
}

TEST_F(SlabTest, AFullSlabSaysEnfileAndRecovers) {
  std::vector<std::uint32_t> slots;
  for (;;) {
    auto slot = slab_.allocate();
    if (!slot) {
      EXPECT_EQ(slot.error(), Errno{ENFILE});
      break;
    }
    slab_.publish(*slot, 0);
    slots.push_back(*slot);
  }
  EXPECT_EQ(slots.size(), slab_.capacity() - 1);
  ASSERT_TRUE(slab_.retire(slots[5], slab_.generation(slots[5])));
  slab_.free(slots[5]);
  EXPECT_EQ(*slab_.allocate(), slots[5]);
}

// What a process that failed may leave behind.
class DamagedSlabTest : public SlabTest {
 protected:
  template <typename T>
  void damage(std::size_t offset, T value) {
    std::memcpy(arena_->section(SectionKind::kHandles).data() + offset, &value, sizeof value);
  }
  static constexpr std::size_t kFreeList = 0;
  static constexpr std::size_t kUsed = 8;
};

TEST_F(DamagedSlabTest, AFreeListThatLeadsOutIsNotFollowed) {
  damage(kFreeList, std::uint64_t{0xfffffff0});
  EXPECT_EQ(*slab_.allocate(), 1U);
  EXPECT_EQ(*slab_.allocate(), 2U);
}

TEST_F(DamagedSlabTest, AFreeListThatLoopsGivesNoSlotTwice) {
  damage(kFreeList, std::uint64_t{5});
  slab_.at(5).next_free = 5;
  damage(kUsed, std::uint32_t{6});
  EXPECT_EQ(*slab_.allocate(), 5U);
  EXPECT_EQ(*slab_.allocate(), 6U);
}

TEST_F(DamagedSlabTest, SlotsInUseThatTheCounterForgotAreNotGivenOut) {
  const std::uint32_t first = live_slot();
  damage(kUsed, first);
  EXPECT_EQ(*slab_.allocate(), first + 1);
}

TEST_F(DamagedSlabTest, ACounterPastTheEndMeansFull) {
  damage(kUsed, std::uint32_t{0xffffffff});
  EXPECT_EQ(slab_.used(), slab_.capacity());
  EXPECT_EQ(slab_.allocate().error(), Errno{ENFILE});
}

TEST_F(SlabTest, ThreadsThatTakeAndGiveLoseNoSlot) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this] {
      for (int i = 0; i < 20'000; ++i) {
        auto slot = slab_.allocate();
        if (!slot) continue;
        slab_.publish(*slot, 0);
        const std::uint32_t generation = slab_.generation(*slot);
        const bool pinned = slab_.try_pin(*slot, generation);
        bool ours = slab_.retire(*slot, generation);
        if (pinned) ours = slab_.unpin(*slot) || ours;
        if (ours) slab_.free(*slot);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(slab_.live(), 0U);
}

TEST(Arena, ASuccessorFindsWhatWasWritten) {
  auto arena = *Arena::create(kPlan);
  arena->section(SectionKind::kHandles)[100] = std::byte{42};
  auto again = Arena::attach(UniqueFd{::dup(arena->fd().number())}, kPlan);
  ASSERT_TRUE(again);
  EXPECT_EQ((*again)->section(SectionKind::kHandles)[100], std::byte{42});
}

TEST(Arena, RefusesAnotherPlan) {
  auto arena = *Arena::create(kPlan);
  constexpr std::array<SectionPlan, 1> other = {SectionPlan{SectionKind::kHandles, 16, 64}};
  EXPECT_EQ(Arena::attach(UniqueFd{::dup(arena->fd().number())}, other).error(), Errno{EINVAL});
}

TEST(Arena, RefusesAFileThatIsNotSealed) {
  UniqueFd file{::memfd_create("plain", 0)};
  EXPECT_EQ(Arena::attach(std::move(file), kPlan).error(), Errno{EINVAL});
}

TEST(Blobs, GiveBackWhatWasPutIn) {
  auto arena = *Arena::create(kPlan);
  Blobs blobs{arena->section(SectionKind::kBlobs)};
  const std::string name(255, 'x');
  const std::uint32_t reference = *blobs.add(std::as_bytes(std::span{name}));
  std::array<char, 256> out;
  EXPECT_EQ(blobs.copy(reference, std::as_writable_bytes(std::span{out})), 255U);
  EXPECT_EQ(std::string_view(out.data()), name);
}

TEST(Blobs, ReuseWhatWasRemovedAndSayWhenFull) {
  auto arena = *Arena::create(kPlan);
  Blobs blobs{arena->section(SectionKind::kBlobs)};
  const std::string_view name = "fifteen bytes..";
  std::uint32_t last = 0;
  for (;;) {
    auto added = blobs.add(std::as_bytes(std::span{name}));
    if (!added) {
      EXPECT_EQ(added.error(), Errno{ENOSPC});
      break;
    }
    last = *added;
  }
  blobs.remove(last);
  EXPECT_EQ(*blobs.add(std::as_bytes(std::span{name})), last);
}

TEST(Blobs, AReferenceThatLeadsOutNamesAnEmptyString) {
  auto arena = *Arena::create(kPlan);
  const auto memory = arena->section(SectionKind::kBlobs).first(64 * Blobs::kUnit);
  Blobs blobs{memory};
  std::array<std::byte, 256> out;
  for (const std::uint32_t reference : {0U, 64U, 0xffffffffU}) {
    EXPECT_EQ(blobs.copy(reference, out), 0U) << reference;
    blobs.remove(reference);
  }
  memory[63 * Blobs::kUnit] = std::byte{255};
  EXPECT_EQ(blobs.copy(63, out), 0U) << "its size leads out";
  blobs.remove(63);
}

TEST(Blobs, AListThatLeadsOutIsNotFollowed) {
  auto arena = *Arena::create(kPlan);
  const auto memory = arena->section(SectionKind::kBlobs).first(64 * Blobs::kUnit);
  Blobs blobs{memory};
  const auto bytes = std::as_bytes(std::span{std::string_view{"name"}});
  const std::uint32_t removed = *blobs.add(bytes);
  blobs.remove(removed);
  const std::uint32_t next = 0x00ffffff;
  std::memcpy(memory.data() + removed * Blobs::kUnit, &next, sizeof next);
  EXPECT_EQ(*blobs.add(bytes), removed);
  EXPECT_EQ(*blobs.add(bytes), removed + 1);
}

}  // namespace
}  // namespace virtiofsd
