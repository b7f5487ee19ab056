// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "state/slab.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "state/arena.h"
#include "state/blobs.h"
#include "state/records.h"

namespace virtiofsd {
namespace {

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
  static constexpr std::size_t kLive = 12;
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

// What a process finds that goes on where another one died.
class SlabSuccession : public DamagedSlabTest {
 protected:
  struct Id {
    std::uint32_t slot;
    std::uint32_t generation;
  };

  Id live() {
    const std::uint32_t slot = live_slot();
    return {slot, slab_.generation(slot)};
  }
  Id dying() {
    const Id id = live();
    EXPECT_TRUE(slab_.try_pin(id.slot, id.generation));
    EXPECT_FALSE(slab_.retire(id.slot, id.generation));
    return id;
  }
  bool is_found(HandleSlab& slab, const Id& id) {
    if (!slab.try_pin(id.slot, id.generation)) return false;
    EXPECT_FALSE(slab.unpin(id.slot));
    return true;
  }
  // The successor; `refused` is what it doesn't want. Notes what was lost.
  HandleSlab take_over(std::vector<std::uint32_t> refused = {}) {
    HandleSlab slab{arena_->section(SectionKind::kHandles)};
    slab.take_over(
        [&](std::uint32_t slot) { return std::ranges::find(refused, slot) == refused.end(); },
        [&](std::uint32_t slot) {
          EXPECT_NE(slab.state(slot), SlotState::kFree) << "told too late";
          lost_.push_back(slot);
        });
    std::ranges::sort(lost_);
    return slab;
  }
  // Every slot that is not in use, each once.
  static void expect_all_others_to_be_free(HandleSlab& slab, std::set<std::uint32_t> in_use) {
    const std::size_t others = slab.capacity() - 1 - in_use.size();
    for (std::size_t i = 0; i < others; ++i) {
      const auto slot = slab.allocate();
      ASSERT_TRUE(slot) << i << " of " << others;
      EXPECT_TRUE(in_use.insert(*slot).second) << *slot << " was given out already";
    }
    EXPECT_EQ(slab.allocate().error(), Errno{ENFILE});
    EXPECT_EQ(slab.live(), slab.capacity() - 1);
  }

  std::vector<std::uint32_t> lost_;
};

TEST_F(SlabSuccession, WhatIsLiveStaysUnderItsIdWithoutThePinsOfTheDead) {
  const Id pinned = live();
  const Id other = live();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(slab_.try_pin(pinned.slot, pinned.generation));
  slab_.at(other.slot).node = 42;

  HandleSlab slab = take_over();
  EXPECT_TRUE(lost_.empty());
  EXPECT_EQ(slab.live(), 2U);
  EXPECT_TRUE(is_found(slab, pinned));
  EXPECT_TRUE(is_found(slab, other));
  EXPECT_EQ(slab.at(other.slot).node, 42U);
  EXPECT_TRUE(slab.set_aside(pinned.slot)) << "pins are left";
  slab.put_back(pinned.slot);
  EXPECT_TRUE(slab.retire(pinned.slot, pinned.generation));
  expect_all_others_to_be_free(slab, {pinned.slot, other.slot});
}

TEST_F(SlabSuccession, WhatWasSetAsideIsLiveAgain) {
  const Id aside = live();
  ASSERT_TRUE(slab_.set_aside(aside.slot));

  HandleSlab slab = take_over();
  EXPECT_TRUE(lost_.empty());
  EXPECT_EQ(slab.state(aside.slot), SlotState::kLive);
  EXPECT_TRUE(is_found(slab, aside));
  EXPECT_EQ(slab.live(), 1U);
}

TEST_F(SlabSuccession, WhatWasHalfMadeOrHalfGoneIsLost) {
  const Id kept = live();
  const Id gone = dying();
  const std::uint32_t busy = *slab_.allocate();
  const std::uint32_t nonsense = live_slot();
  slab_.at(nonsense).head = SlotHead::make(7, static_cast<SlotState>(99));

  HandleSlab slab = take_over();
  EXPECT_EQ(lost_, (std::vector{gone.slot, busy, nonsense}));
  EXPECT_EQ(slab.live(), 1U);
  EXPECT_FALSE(is_found(slab, gone));
  for (const std::uint32_t slot : {gone.slot, busy, nonsense})
    EXPECT_EQ(slab.state(slot), SlotState::kFree) << slot;
  expect_all_others_to_be_free(slab, {kept.slot});
}

TEST_F(SlabSuccession, WhatTheSuccessorRefusesIsLostWhetherSetAsideOrNot) {
  const Id kept = live();
  const Id refused = live();
  const Id aside = live();
  ASSERT_TRUE(slab_.set_aside(aside.slot));

  HandleSlab slab = take_over({refused.slot, aside.slot});
  EXPECT_EQ(lost_, (std::vector{refused.slot, aside.slot}));
  EXPECT_EQ(slab.live(), 1U);
  EXPECT_TRUE(is_found(slab, kept));
  EXPECT_FALSE(is_found(slab, refused));
  EXPECT_FALSE(is_found(slab, aside));
  expect_all_others_to_be_free(slab, {kept.slot});
}

TEST_F(SlabSuccession, AnIdFromBeforeNeverFindsWhatIsInItsSlotNow) {
  const Id freed = live();
  ASSERT_TRUE(slab_.retire(freed.slot, freed.generation));
  slab_.free(freed.slot);
  const Id again = live();
  ASSERT_EQ(again.slot, freed.slot);
  const Id gone = dying();

  HandleSlab slab = take_over();
  EXPECT_FALSE(is_found(slab, freed));
  EXPECT_TRUE(is_found(slab, again));
  ASSERT_EQ(*slab.allocate(), gone.slot);
  slab.publish(gone.slot, 0);
  EXPECT_FALSE(is_found(slab, gone));
  EXPECT_TRUE(is_found(slab, {gone.slot, gone.generation + 1}));
}

TEST_F(SlabSuccession, NoListAndNoCounterOfTheDeadIsTrusted) {
  const Id kept = live();
  const Id freed = live();
  const Id also_kept = live();
  ASSERT_TRUE(slab_.retire(freed.slot, freed.generation));
  slab_.free(freed.slot);
  // It died between taking a slot from the list and saying so, and worse.
  slab_.at(freed.slot).next_free = freed.slot;
  damage(kLive, std::uint32_t{12345});
  damage(kFreeList, std::uint64_t{kept.slot});

  HandleSlab slab = take_over();
  EXPECT_EQ(slab.live(), 2U);
  expect_all_others_to_be_free(slab, {kept.slot, also_kept.slot});
}

TEST_F(SlabSuccession, AFullSlabIsTakenOver) {
  std::vector<Id> ids;
  for (std::uint32_t i = 1; i < slab_.capacity(); ++i) ids.push_back(live());
  damage(kUsed, std::uint32_t{0xffffffff});

  HandleSlab slab = take_over();
  EXPECT_EQ(slab.live(), ids.size());
  for (const Id& id : ids) EXPECT_TRUE(is_found(slab, id)) << id.slot;
  EXPECT_EQ(slab.allocate().error(), Errno{ENFILE});
}

TEST_F(SlabSuccession, AnEmptySlabIsTakenOver) {
  HandleSlab slab = take_over();
  EXPECT_EQ(slab.live(), 0U);
  expect_all_others_to_be_free(slab, {});
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

TEST(Arena, FindsItsSectionsWhateverIsWrittenToTheFile) {
  auto arena = *Arena::create(kPlan);
  const auto before = arena->section(SectionKind::kHandles);
  const std::array<std::byte, 512> rubbish{std::byte{0x5a}};
  ASSERT_EQ(::pwrite(arena->fd().number(), rubbish.data(), rubbish.size(), 0), 512);
  EXPECT_EQ(arena->section(SectionKind::kHandles).data(), before.data());
  EXPECT_EQ(arena->section(SectionKind::kHandles).size(), before.size());
}

// Reading a hole of such a file makes memory of it.
TEST(Arena, IsLeftOutOfCoreDumps) {
  const auto arena = *Arena::create(kPlan);
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  bool ours = false;
  std::string flags;
  while (std::getline(maps, line)) {
    if (line.find("virtiofsd-state") != std::string::npos) ours = true;
    if (ours && line.starts_with("VmFlags:")) {
      flags = line;
      break;
    }
  }
  EXPECT_NE(flags.find(" dd"), std::string::npos) << flags;
}

TEST(Arena, CopiesWhatIsInAnother) {
  constexpr std::array<SectionPlan, 2> plan = {SectionPlan{SectionKind::kHandles, 16, 1U << 20},
                                               SectionPlan{SectionKind::kInodes, 64, 1U << 20}};
  const auto from = *Arena::create(plan);
  from->section(SectionKind::kHandles)[100] = std::byte{42};
  from->section(SectionKind::kInodes).back() = std::byte{43};
  const auto to = *Arena::create(plan);
  ASSERT_TRUE(to->copy_from(*from));
  from->section(SectionKind::kHandles)[100] = std::byte{1};
  EXPECT_EQ(to->section(SectionKind::kHandles)[100], std::byte{42});
  EXPECT_EQ(to->section(SectionKind::kHandles)[101], std::byte{0});
  EXPECT_EQ(to->section(SectionKind::kInodes).back(), std::byte{43});
  struct stat copy {};
  ASSERT_EQ(::fstat(to->fd().number(), &copy), 0);
  EXPECT_LT(copy.st_blocks * 512, 1 << 20) << "what is empty stays empty";
  EXPECT_TRUE(Arena::attach(UniqueFd{::dup(to->fd().number())}, plan)) << "and it is a whole one";
}

TEST(Arena, RefusesAnotherPlan) {
  auto arena = *Arena::create(kPlan);
  constexpr std::array<SectionPlan, 1> other = {SectionPlan{SectionKind::kHandles, 16, 64}};
  EXPECT_EQ(Arena::attach(UniqueFd{::dup(arena->fd().number())}, other).error(), Errno{EINVAL});
}

TEST(Arena, RefusesAFileThatIsNotSealed) {
  UniqueFd file{::memfd_create("plain", 0)};
  EXPECT_EQ(Arena::attach(std::move(file), kPlan).error(), Errno{EINVAL});
  // Right in all else, but it can grow.
  const auto arena = *Arena::create(kPlan);
  struct stat st {};
  ASSERT_EQ(::fstat(arena->fd().number(), &st), 0);
  UniqueFd grows{::memfd_create("grows", MFD_ALLOW_SEALING)};
  ASSERT_EQ(::ftruncate(grows.number(), st.st_size), 0);
  std::vector<std::byte> header(4096);
  ASSERT_EQ(::pread(arena->fd().number(), header.data(), header.size(), 0), 4096);
  ASSERT_EQ(::pwrite(grows.number(), header.data(), header.size(), 0), 4096);
  ASSERT_EQ(::fcntl(grows.number(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL), 0);
  EXPECT_EQ(Arena::attach(std::move(grows), kPlan).error(), Errno{EINVAL});
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

TEST_F(SlabTest, AClaimedSlotIsFoundByTheIdItHadElsewhere) {
  ASSERT_TRUE(slab_.claim(7, 3));
  ASSERT_TRUE(slab_.claim(4, 9));
  slab_.publish(7, 0);
  slab_.publish(4, 0);
  slab_.end_claims(20);
  EXPECT_TRUE(slab_.try_pin(7, 3));
  EXPECT_TRUE(slab_.try_pin(4, 9));
  EXPECT_EQ(slab_.live(), 2U);
  // The others are free, once each, and none gets an id that may have been given.
  std::set<std::uint32_t> given{4, 7};
  for (auto slot = slab_.allocate(); slot; slot = slab_.allocate()) {
    EXPECT_TRUE(given.insert(*slot).second) << *slot;
    EXPECT_EQ(slab_.generation(*slot), 21U);
  }
  EXPECT_EQ(given.size(), slab_.capacity() - 1);
  EXPECT_EQ(slab_.newest_generation(), 21U);
}

TEST_F(SlabTest, ASlotIsClaimedOnce) {
  ASSERT_TRUE(slab_.claim(5, 1));
  EXPECT_EQ(slab_.claim(5, 2).error(), Errno{EEXIST});
  slab_.publish(5, 0);
  EXPECT_EQ(slab_.claim(5, 2).error(), Errno{EEXIST});
  EXPECT_EQ(slab_.claim(0, 1).error(), Errno{ENFILE});
  EXPECT_EQ(slab_.claim(slab_.capacity(), 1).error(), Errno{ENFILE});
}

TEST_F(SlabTest, WhatMayHaveBeenGivenElsewhereIsSaidOnTheNextWay) {
  slab_.end_claims(20);
  EXPECT_EQ(slab_.newest_generation(), 20U);
}

TEST_F(SlabTest, RewindsOnlyWhatIsFree) {
  const std::uint32_t slot = live_slot();
  (void)live_slot();
  slab_.rewind(2);
  EXPECT_EQ(slab_.used(), 3U) << "one is in use";
  ASSERT_TRUE(slab_.retire(2, slab_.generation(2)));
  slab_.free(2);
  slab_.rewind(2);
  EXPECT_EQ(slab_.used(), 2U);
  EXPECT_TRUE(slab_.try_pin(slot, slab_.generation(slot)));
  EXPECT_EQ(*slab_.allocate(), 2U);
  EXPECT_EQ(*slab_.allocate(), 3U);
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
