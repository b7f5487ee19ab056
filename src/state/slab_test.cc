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

}  // namespace
}  // namespace virtiofsd
