// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What is left of a lock table when its process dies, and what the next one makes of it:
// lock_records.h and LockCore::take_over.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "passthrough/lock_records.h"
#include "passthrough/locks_fixture.h"
#include "state/arena.h"
#include "state/records.h"

namespace virtiofsd {
namespace {

// A table that was given up as a crash would, and one that comes after it.
class LockTakeOverTest : public LockCoreTest {
 protected:
  // A page and two.
  static constexpr std::array<SectionPlan, 2> kPlan = {{
      {SectionKind::kLockOwners, sizeof(LockOwnerRecord), 1},
      {SectionKind::kLockRanges, sizeof(LockRangeRecord), 100},
  }};
  static constexpr std::uint64_t kMaxOwners = 4096 / sizeof(LockOwnerRecord) - 1;
  static constexpr std::uint64_t kMaxRanges = 8192 / sizeof(LockRangeRecord) - 1;

  LockTakeOverTest() { core_ = std::make_unique<LockCore>(LockCore::Limits{.waiters = 8}, arena_); }

  // Nothing of it is taken apart, and nothing of it is used again.
  void crash() {
    static auto& gone = *new std::vector<std::unique_ptr<LockCore>>;
    gone.push_back(std::move(core_));
  }
  void take_over(LockCore::Limits limits = {.waiters = 8}) {
    // Not of a number that was just closed.
    UniqueFd same{::fcntl(arena_->fd().number(), F_DUPFD_CLOEXEC, 500)};
    core_ = std::make_unique<LockCore>(limits, *Arena::attach(std::move(same), kPlan));
    core_->take_over();
  }
  void crash_and_take_over(LockCore::Limits limits = {.waiters = 8}) {
    crash();
    take_over(limits);
  }

  LockOwnerSlab owner_slab() { return LockOwnerSlab{arena_->section(SectionKind::kLockOwners)}; }
  LockRangeSlab range_slab() { return LockRangeSlab{arena_->section(SectionKind::kLockRanges)}; }
  template <typename Records>
  static std::vector<std::uint32_t> live(Records slab) {
    std::vector<std::uint32_t> slots;
    for (std::uint32_t slot = 1; slot < slab.used(); ++slot) {
      if (slab.state(slot) == SlotState::kLive) slots.push_back(slot);
    }
    return slots;
  }
  LockOwnerRecord& owner_record(LockOwner owner) {
    for (const std::uint32_t slot : live(owner_slab())) {
      if (owner_slab().at(slot).owner == owner.value) return owner_slab().at(slot);
    }
    ADD_FAILURE() << "no record of it";
    return owner_slab().at(1);
  }
  FdRef recorded_fd(LockOwner owner) { return FdRef{owner_record(owner).fd}; }
  static bool is_open(int number) { return ::fcntl(number, F_GETFD) >= 0; }

  // A step that the one that crashed made, and not the next.
  void in_kernel_only(FdRef fd, short type, std::uint64_t start, std::uint64_t end) {
    struct flock lock {};
    lock.l_type = type;
    lock.l_start = static_cast<off_t>(start);
    lock.l_len = static_cast<off_t>(end - start + 1);
    ASSERT_EQ(::fcntl(fd.number(), F_OFD_SETLK, &lock), 0);
  }
  LockRangeRecord& in_records_only(LockOwner owner, std::uint32_t type, std::uint64_t start,
                                   std::uint64_t end) {
    LockRangeSlab slab = range_slab();
    const std::uint32_t slot = *slab.allocate();
    LockRangeRecord& record = slab.at(slot);
    const auto of = static_cast<std::uint32_t>(&owner_record(owner) - &owner_slab().at(0));
    record.owner = (std::uint64_t{owner_slab().generation(of)} << 32) | of;
    record.start = start;
    record.end = end;
    record.handle = 1;
    record.type = type;
    record.pid = 1000 + static_cast<std::uint32_t>(owner.value);
    slab.publish(slot, 0);
    return record;
  }

  // Descriptors that were just opened or just about to be closed, as whoever starts a successor
  // does.
  void close_what_nobody_names() {
    std::vector<int> named{fd_.number(), outside_.number()};
    for (const std::uint32_t slot : live(owner_slab())) named.push_back(owner_slab().at(slot).fd);
    std::vector<int> strays;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      if (std::filesystem::read_symlink(entry.path(), error) != file_.path()) continue;
      const int number = std::stoi(entry.path().filename());
      if (std::ranges::find(named, number) == named.end()) strays.push_back(number);
    }
    for (const int number : strays) ASSERT_EQ(::close(number), 0);
  }

  // A process with the same descriptors and its own memory, as a worker is.
  static pid_t clone_with_descriptors() {
    const auto child = static_cast<pid_t>(
        ::syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
    if (child == 0) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
  }
  void kill_and_take_over(pid_t child) {
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    crash();
    close_what_nobody_names();
    take_over();
  }

  // What a byte is locked for by an owner, as the records have it.
  std::uint32_t recorded(LockOwner owner, std::uint64_t at) {
    for (const std::uint32_t slot : live(range_slab())) {
      const LockRangeRecord& range = range_slab().at(slot);
      if (owner_slab().at(static_cast<std::uint32_t>(range.owner)).owner == owner.value &&
          range.start <= at && at <= range.end) {
        return range.type;
      }
    }
    return F_UNLCK;
  }

  // What the records say is what the table counts and what the kernel says of every byte.
  void expect_agreement(std::uint64_t bytes) {
    EXPECT_EQ(live(owner_slab()).size(), core_->owners());
    EXPECT_EQ(live(range_slab()).size(), core_->ranges());
    EXPECT_EQ(owner_slab().live(), core_->owners());
    EXPECT_EQ(range_slab().live(), core_->ranges());
    for (std::uint64_t at = 0; at < bytes; ++at) {
      bool any = false;
      bool write = false;
      for (const std::uint32_t slot : live(range_slab())) {
        const LockRangeRecord& range = range_slab().at(slot);
        const bool there = range.start <= at && at <= range.end;
        any = any || there;
        write = write || (there && range.type == F_WRLCK);
      }
      ASSERT_EQ(outsider(F_WRLCK, at, at), any ? EAGAIN : 0) << "byte " << at;
      ASSERT_EQ(outsider(F_RDLCK, at, at), write ? EAGAIN : 0) << "byte " << at;
    }
  }

  std::shared_ptr<Arena> arena_ = *Arena::create(kPlan);
};

TEST_F(LockTakeOverTest, WhatWasHeldIsHeldOn) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kBob, F_RDLCK, 20, 29)), 0);

  crash_and_take_over();

  EXPECT_EQ(core_->owners(), 2U);
  EXPECT_EQ(core_->ranges(), 2U);
  expect_agreement(40);
  EXPECT_EQ(set(args(kBob, F_RDLCK, 9, 9)), EAGAIN);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 29, 29)), EAGAIN);
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 5, 29)), 0);
  EXPECT_EQ(set(args(kBob, F_RDLCK, 9, 9)), 0);
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, AnArenaThatNobodyUsedHoldsNothing) {
  crash_and_take_over();
  EXPECT_EQ(core_->owners(), 0U);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
}

TEST_F(LockTakeOverTest, AnOwnerGoesOnWithItsDescriptor) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  const int number = recorded_fd(kAlice).number();
  crash_and_take_over();
  opener_.asked.clear();

  EXPECT_EQ(set(args(kAlice, F_RDLCK, 5, 20)), 0);

  EXPECT_TRUE(opener_.asked.empty());
  EXPECT_EQ(recorded_fd(kAlice).number(), number);
}

TEST_F(LockTakeOverTest, FlushDropsAllOfItsOwner) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 50, 59)), 0);
  ASSERT_EQ(set(args(kBob, F_WRLCK, 100, 109)), 0);
  const int number = recorded_fd(kAlice).number();
  crash_and_take_over();

  core_->flush(kNode, kAlice);

  EXPECT_EQ(outsider(F_WRLCK, 0, 99), 0);
  EXPECT_EQ(outsider(F_WRLCK, 100, 100), EAGAIN);
  EXPECT_FALSE(is_open(number));
  expect_agreement(120);
}

TEST_F(LockTakeOverTest, ReleaseDropsWhatWasSetThroughTheHandle) {
  const LockTarget other = target(fd_, 2);
  ASSERT_EQ(set(target_, args(kAlice, F_WRLCK, 0, 9)), 0);
  ASSERT_EQ(set(other, args(kAlice, F_WRLCK, 10, 19)), 0);
  crash_and_take_over();

  core_->release(target_, false);

  EXPECT_EQ(outsider(F_WRLCK, 0, 9), 0);
  EXPECT_EQ(outsider(F_WRLCK, 10, 10), EAGAIN);
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, GetNamesTheHolder) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 10, 19)), 0);
  crash_and_take_over();

  const auto found = core_->get(target_, args(kBob, F_RDLCK, 0, kEnd));

  ASSERT_TRUE(found);
  EXPECT_EQ(found->start, 10U);
  EXPECT_EQ(found->end, 19U);
  EXPECT_EQ(found->pid, 1001U);
}

TEST_F(LockTakeOverTest, ADescriptorThatWasReplacedIsForgotten) {
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 20, 29)), 0);
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 40, 49)), 0);
  EXPECT_EQ(live(owner_slab()).size(), 1U);
  crash_and_take_over();
  opener_.asked.clear();

  EXPECT_EQ(core_->ranges(), 3U);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 49)), 0);
  EXPECT_TRUE(opener_.asked.empty());
  expect_agreement(60);
}

TEST_F(LockTakeOverTest, ASharedDescriptorMayBeReplacedAfter) {
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  const int number = recorded_fd(kAlice).number();
  crash_and_take_over();

  EXPECT_EQ(set(args(kAlice, F_WRLCK, 5, 19)), 0);

  EXPECT_FALSE(is_open(number));
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, BothEndsOfWhatWasUnlockedInTheMiddleAreHeld) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 99)), 0);
  ASSERT_EQ(set(args(kAlice, F_UNLCK, 40, 59)), 0);
  crash_and_take_over();

  EXPECT_EQ(core_->ranges(), 2U);
  EXPECT_EQ(outsider(F_WRLCK, 40, 59), 0);
  expect_agreement(110);
}

TEST_F(LockTakeOverTest, LocksToTheEndOfAnyFileAreHeld) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 10, kEnd)), 0);
  crash_and_take_over();
  EXPECT_EQ(outsider(F_WRLCK, kEnd, kEnd), EAGAIN);
  EXPECT_EQ(outsider(F_WRLCK, 0, 9), 0);
}

TEST_F(LockTakeOverTest, FilesAreKeptApart) {
  const LockedFile second;
  const UniqueFd second_fd = second.open(O_RDWR);
  LockTarget there = target(second_fd, 9);
  there.node = NodeId{8};
  LockedFileOpener opener{second};
  fuse::Call call = call_of(5, there.node);
  ASSERT_TRUE(core_->set(call, there, opener, args(kAlice, F_WRLCK, 0, 0)));
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  crash_and_take_over();

  core_->flush(there.node, kAlice);

  EXPECT_EQ(core_->owners(), 1U);
  expect_agreement(20);
}

TEST_F(LockTakeOverTest, AnOwnerThatHoldsNothingIsForgotten) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kAlice, F_UNLCK, 0, 9)), 0);
  const int number = recorded_fd(kAlice).number();
  crash_and_take_over();

  EXPECT_EQ(core_->owners(), 0U);
  EXPECT_FALSE(is_open(number));
  expect_agreement(20);
}

TEST_F(LockTakeOverTest, ClearDropsEverything) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kBob, F_RDLCK, 10, 19)), 0);
  crash_and_take_over();

  core_->clear();

  EXPECT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
  EXPECT_EQ(core_->owners(), 0U);
  EXPECT_EQ(core_->ranges(), 0U);
  expect_agreement(20);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
}

TEST_F(LockTakeOverTest, TheEndOfTheTableLeavesNothingToTakeOver) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  crash_and_take_over();
  core_.reset();
  EXPECT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
  EXPECT_TRUE(live(owner_slab()).empty());
  EXPECT_TRUE(live(range_slab()).empty());
}

TEST_F(LockTakeOverTest, OneAfterAnotherMayCrash) {
  for (std::uint64_t i = 0; i < 10; ++i) {
    ASSERT_EQ(set(args(LockOwner{1 + i % 2}, F_WRLCK, i * 3, i * 3 + 1)), 0);
    crash_and_take_over();
    ASSERT_EQ(core_->ranges(), i + 1);
    expect_agreement(40);
  }
  // One that crashes in the middle of it, or before it does anything.
  crash_and_take_over();
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, AWaitThatComesAgainEndsWhenTheHolderUnlocks) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  crash_and_take_over();
  int waited = -1;
  std::thread bob([&] { waited = set(target_, waiting(args(kBob, F_WRLCK, 5, 14)), 2); });
  until([&] { return core_->waiters() == 1; });

  ASSERT_EQ(set(args(kAlice, F_UNLCK, 0, 9)), 0);
  bob.join();

  EXPECT_EQ(waited, 0);
  EXPECT_EQ(outsider(F_WRLCK, 5, 14), EAGAIN);
}

TEST_F(LockTakeOverTest, LimitsCountWhatWasTakenOver) {
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kBob, F_RDLCK, 0, 9)), 0);
  crash_and_take_over({.waiters = 8, .owners = 2, .ranges = 3});

  EXPECT_EQ(set(args(LockOwner{3}, F_RDLCK, 0, 9)), ENOLCK);
  EXPECT_EQ(set(args(kBob, F_RDLCK, 20, 29)), 0);
  EXPECT_EQ(set(args(kBob, F_RDLCK, 40, 49)), ENOLCK);
  EXPECT_EQ(outsider(F_WRLCK, 40, 49), 0);
  core_->flush(kNode, kAlice);
  EXPECT_EQ(set(args(LockOwner{3}, F_RDLCK, 0, 9)), 0);
  expect_agreement(60);
}

// ---- where the one before stopped between two steps

TEST_F(LockTakeOverTest, WhatTheKernelGaveAndNobodyWasToldIsGone) {
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 10, 19)), 0);
  in_kernel_only(recorded_fd(kAlice), F_RDLCK, 0, 30);
  crash_and_take_over();

  EXPECT_EQ(outsider(F_WRLCK, 0, 9), 0);
  EXPECT_EQ(outsider(F_WRLCK, 20, 30), 0);
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, AWaitersDescriptorIsClosedWithWhatItWasGiven) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 10, 19)), 0);
  UniqueFd older = file_.open(O_RDONLY);
  LockRecords records{arena_};
  ASSERT_TRUE(records.add_descriptor(kNode, kAlice, older, O_RDONLY));
  in_kernel_only(older, F_RDLCK, 30, 39);
  const int number = older.release();
  crash_and_take_over();

  EXPECT_FALSE(is_open(number));
  EXPECT_EQ(core_->owners(), 1U);
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, RecordsFromBeforeAndAfterAreLaidOverEachOther) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 59)), 0);
  in_kernel_only(recorded_fd(kAlice), F_UNLCK, 20, 39);
  in_records_only(kAlice, F_WRLCK, 0, 19);
  in_records_only(kAlice, F_WRLCK, 40, 59);
  crash_and_take_over();

  EXPECT_EQ(core_->ranges(), 1U);
  expect_agreement(70);
  // It comes again.
  EXPECT_EQ(set(args(kAlice, F_UNLCK, 20, 39)), 0);
  EXPECT_EQ(core_->ranges(), 2U);
  expect_agreement(70);
}

TEST_F(LockTakeOverTest, WhatAnotherTookMeanwhileIsNotHeldAndTheRestIs) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 59)), 0);
  in_kernel_only(recorded_fd(kAlice), F_UNLCK, 20, 39);
  in_kernel_only(outside_, F_WRLCK, 25, 25);
  in_records_only(kAlice, F_WRLCK, 0, 19);
  in_records_only(kAlice, F_WRLCK, 40, 59);
  crash_and_take_over();
  in_kernel_only(outside_, F_UNLCK, 25, 25);

  EXPECT_EQ(core_->ranges(), 2U);
  EXPECT_EQ(outsider(F_WRLCK, 20, 39), 0);
  expect_agreement(70);
}

TEST_F(LockTakeOverTest, AnExclusiveLockThatWasJustMadeASharedOneIsShared) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  in_kernel_only(recorded_fd(kAlice), F_RDLCK, 0, 9);
  const UniqueFd reader = file_.open(O_RDONLY);
  in_kernel_only(reader, F_RDLCK, 0, 9);
  crash_and_take_over();
  in_kernel_only(reader, F_UNLCK, 0, 9);

  EXPECT_EQ(outsider(F_RDLCK, 0, 9), 0);
  EXPECT_EQ(outsider(F_WRLCK, 0, 9), EAGAIN);
  expect_agreement(20);
}

TEST_F(LockTakeOverTest, OfTwoDescriptorsAmidAnUpgradeOneGoesOn) {
  for (std::size_t moved = 0; moved <= 2; ++moved) {
    ASSERT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
    ASSERT_EQ(set(args(kAlice, F_RDLCK, 20, 29)), 0);
    std::vector<LockRange> ranges;
    for (const std::uint32_t slot : live(range_slab())) ranges.push_back({.record = slot});
    ASSERT_EQ(ranges.size(), 2U);
    ranges.resize(moved);
    const int before = recorded_fd(kAlice).number();
    UniqueFd next = file_.open(O_RDWR);
    in_kernel_only(next, F_RDLCK, 0, 9);
    LockRecords records{arena_};
    records.move(ranges, *records.add_descriptor(kNode, kAlice, next, O_RDWR));
    const int after = next.release();
    crash_and_take_over();

    EXPECT_EQ(core_->owners(), 1U);
    EXPECT_EQ(core_->ranges(), 2U);
    EXPECT_EQ(is_open(before), moved == 0);
    EXPECT_EQ(is_open(after), moved != 0);
    expect_agreement(40);
    crash_and_take_over();
    EXPECT_EQ(core_->ranges(), 2U);
    expect_agreement(40);
    core_->flush(kNode, kAlice);
    EXPECT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
  }
}

// ---- full sections

TEST_F(LockTakeOverTest, NoRoomForARangeIsLackOfLocks) {
  for (std::uint64_t i = 0; i < kMaxRanges; ++i)
    ASSERT_EQ(set(args(kAlice, F_WRLCK, i * 10, i * 10 + 5)), 0);
  ASSERT_EQ(core_->ranges(), kMaxRanges);

  EXPECT_EQ(set(args(kAlice, F_WRLCK, 9000, 9009)), ENOLCK);
  EXPECT_EQ(outsider(F_WRLCK, 9000, 9009), 0);
  EXPECT_EQ(set(args(kAlice, F_UNLCK, 12, 13)), ENOLCK);
  EXPECT_EQ(outsider(F_RDLCK, 12, 13), EAGAIN);
  EXPECT_EQ(core_->ranges(), kMaxRanges);
  EXPECT_EQ(set(args(kAlice, F_UNLCK, 20, 25)), 0);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 9000, 9009)), 0);
  crash_and_take_over();
  EXPECT_EQ(core_->ranges(), kMaxRanges);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 8000, 8009)), ENOLCK);
  expect_agreement(100);
  core_->flush(kNode, kAlice);
  expect_agreement(100);
}

TEST_F(LockTakeOverTest, NoRoomForADescriptorIsLackOfLocks) {
  for (std::uint64_t i = 1; i <= kMaxOwners; ++i)
    ASSERT_EQ(set(args(LockOwner{i}, F_RDLCK, 0, 9)), 0);
  const LockOwner late{kMaxOwners + 1};
  const auto count = [&] {
    const std::filesystem::directory_iterator all{"/proc/self/fd"};
    return std::distance(begin(all), end(all));
  };
  const auto before = count();

  EXPECT_EQ(set(args(late, F_RDLCK, 0, 9)), ENOLCK);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 20, 29)), ENOLCK);  // another descriptor, too
  EXPECT_EQ(count(), before);
  crash_and_take_over();
  EXPECT_EQ(core_->owners(), kMaxOwners);
  EXPECT_EQ(set(args(late, F_RDLCK, 0, 9)), ENOLCK);
  core_->flush(kNode, kBob);
  EXPECT_EQ(set(args(late, F_RDLCK, 0, 9)), 0);
}

// ---- what a process that failed may have written

TEST_F(LockTakeOverTest, ADescriptorThatIsNotOpenIsDropped) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kBob, F_WRLCK, 20, 29)), 0);
  const int number = recorded_fd(kAlice).number();
  crash();
  ASSERT_EQ(::close(number), 0);
  take_over();

  EXPECT_EQ(core_->owners(), 1U);
  EXPECT_EQ(core_->ranges(), 1U);
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, ANumberThatLeadsToSomethingElseIsLeftAlone) {
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  const UniqueFd reader{pipe[0]};
  const UniqueFd writer{pipe[1]};
  const UniqueFd path = file_.open(O_PATH);
  const UniqueFd other_access = file_.open(O_RDWR);
  for (const int number : {reader.number(), path.number(), other_access.number(), -1, 1 << 30}) {
    ASSERT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
    const int unnamed = std::exchange(owner_record(kAlice).fd, number);
    crash_and_take_over();
    ASSERT_EQ(::close(unnamed), 0);
    EXPECT_EQ(core_->owners(), 0U) << number;
    expect_agreement(20);
    core_->clear();
  }
  EXPECT_TRUE(is_open(reader.number()));
  EXPECT_TRUE(is_open(path.number()));
  EXPECT_TRUE(is_open(other_access.number()));
}

TEST_F(LockTakeOverTest, ANumberThatIsNamedTwiceIsTakenOnce) {
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kBob, F_RDLCK, 20, 29)), 0);
  const UniqueFd gone{std::exchange(owner_record(kBob).fd, owner_record(kAlice).fd)};
  crash_and_take_over();

  EXPECT_EQ(core_->owners(), 1U);
  core_->clear();
  EXPECT_EQ(core_->owners(), 0U);
}

TEST_F(LockTakeOverTest, RangesThatMakeNoSenseAreDropped) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  in_records_only(kAlice, F_UNLCK, 20, 29);
  in_records_only(kAlice, 77, 20, 29);
  in_records_only(kAlice, F_WRLCK, 29, 20);
  in_records_only(kAlice, F_WRLCK, 20, kEnd + 1);
  in_records_only(kAlice, F_WRLCK, 20, ~std::uint64_t{0});
  in_records_only(kAlice, F_WRLCK, 20, 29).owner = 0;
  in_records_only(kAlice, F_WRLCK, 20, 29).owner = ~std::uint64_t{0};
  in_records_only(kAlice, F_WRLCK, 20, 29).owner += std::uint64_t{1} << 32;
  in_records_only(kAlice, F_WRLCK, 20, 29).owner += 1;
  crash_and_take_over();

  EXPECT_EQ(core_->ranges(), 1U);
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, RangesThatTheDescriptorCannotCarryAreDropped) {
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  in_records_only(kAlice, F_WRLCK, 20, 29);
  ASSERT_EQ(set(args(kBob, F_RDLCK, 30, 39)), 0);
  in_records_only(kBob, F_RDLCK, 35, kEnd);
  crash_and_take_over();
  expect_agreement(50);
}

TEST_F(LockTakeOverTest, WhatOnlyOneMayHoldIsHeldByOne) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kBob, F_WRLCK, 20, 29)), 0);
  in_records_only(kBob, F_WRLCK, 5, 14);
  crash_and_take_over();

  EXPECT_EQ(core_->ranges(), 2U);
  expect_agreement(40);
}

TEST_F(LockTakeOverTest, AnyBytesAreSurvived) {
  std::mt19937 random{4711};
  const auto owners = arena_->section(SectionKind::kLockOwners);
  const auto ranges = arena_->section(SectionKind::kLockRanges);
  const auto fill = [&](std::span<std::byte> bytes) {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  };
  for (int round = 0; round < 300; ++round) {
    std::ranges::fill(owners, std::byte{0});
    std::ranges::fill(ranges, std::byte{0});
    core_ = std::make_unique<LockCore>(LockCore::Limits{.waiters = 8}, arena_);
    for (std::uint64_t i = 0; i < 6; ++i) {
      const auto wanted = args(LockOwner{1 + i % 3}, i % 2 == 0 ? F_RDLCK : F_WRLCK, i * 5, i * 6);
      ASSERT_EQ(set(target(fd_, i % 2), wanted), 0);
    }
    crash();
    if (round % 3 == 0) fill(owners);
    if (round % 3 == 1) fill(ranges);
    // All but a number that would lead to another's descriptor.
    for (int i = 0; i < 20; ++i) {
      const std::size_t at = random() % owners.size();
      const std::size_t within = at % sizeof(LockOwnerRecord);
      if (within < offsetof(LockOwnerRecord, fd) || within >= offsetof(LockOwnerRecord, access))
        owners[at < 800 ? at : at % 800] ^= static_cast<std::byte>(1U << (random() % 8));
      ranges[random() % 800] ^= static_cast<std::byte>(1U << (random() % 8));
    }
    take_over();
    close_what_nobody_names();

    expect_agreement(40);
    if (HasFailure()) FAIL() << "round " << round;
    for (std::uint64_t i = 0; i < 50; ++i)
      (void)set(args(LockOwner{1 + random() % 5}, random() % 3, random() % 20, 20 + random() % 20));
    core_->flush(kNode, kAlice);
    core_->clear();
    ASSERT_EQ(core_->owners(), 0U);
    ASSERT_EQ(core_->ranges(), 0U);
    core_.reset();
    ASSERT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
    ASSERT_TRUE(is_open(fd_.number()));
    ASSERT_TRUE(is_open(outside_.number()));
  }
}

TEST_F(LockTakeOverTest, KilledAnywhereItLeavesWhatIsTrue) {
  constexpr std::uint64_t kBytes = 40;
  std::mt19937 random{99};
  const auto work = [&](unsigned seed, bool waits) {
    std::mt19937 own{seed};
    LockedFileOpener opener{file_};
    for (std::uint64_t unique = 1;; ++unique) {
      const LockOwner owner{1 + own() % 3};
      const std::uint64_t start = own() % kBytes;
      auto wanted = args(owner, own() % 3, start, start + own() % (kBytes - start));
      wanted.wait = waits && own() % 4 == 0;
      fuse::Call call = call_of(unique);
      (void)core_->set(call, target(fd_, own() % 3), opener, wanted);
      if (own() % 8 == 0) core_->flush(kNode, owner);
      if (own() % 16 == 0) core_->release(target(fd_, own() % 3), false);
      if (own() % 128 == 0) core_->clear();
      opener.asked.clear();
    }
  };
  for (int round = 0; round < 50; ++round) {
    const unsigned seed = random();
    const pid_t child = clone_with_descriptors();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::thread one([&] { work(seed, true); });
      std::thread two([&] { work(seed + 1, true); });
      work(seed + 2, false);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + random() % 4000));
    kill_and_take_over(child);

    expect_agreement(kBytes);
    if (HasFailure()) FAIL() << "round " << round;
  }
}

TEST_F(LockTakeOverTest, KilledAnywhereItLosesNothingThatWasAnswered) {
  constexpr std::uint64_t kBytes = 40;
  constexpr std::uint64_t kOwners = 3;
  struct Answered {
    std::atomic<std::uint32_t> types[kOwners][kBytes];
    std::atomic<std::uint64_t> at_work, start, end;  // owner and range of the request that is not
  };
  void* memory =
      ::mmap(nullptr, sizeof(Answered), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto& answered = *static_cast<Answered*>(memory);
  for (auto& types : answered.types) std::ranges::fill(types, std::uint32_t{F_UNLCK});
  const auto work = [&](unsigned seed) {
    std::mt19937 own{seed};
    for (;;) {
      const std::uint64_t owner = own() % kOwners;
      const bool flushes = own() % 16 == 0;
      const std::uint64_t start = flushes ? 0 : own() % kBytes;
      const std::uint64_t end = flushes ? kBytes - 1 : start + own() % (kBytes - start);
      const std::uint32_t type = flushes ? F_UNLCK : own() % 3;
      answered.start = start;
      answered.end = end;
      answered.at_work = owner;
      bool done = true;
      if (flushes) {
        core_->flush(kNode, LockOwner{owner});
      } else {
        done = set(args(LockOwner{owner}, type, start, end)) == 0;
      }
      for (std::uint64_t at = start; done && at <= end; ++at) answered.types[owner][at] = type;
      answered.at_work = kOwners;
      opener_.asked.clear();
    }
  };
  const auto expect_the_answered = [&] {
    for (std::uint64_t owner = 0; owner < kOwners; ++owner) {
      for (std::uint64_t at = 0; at < kBytes; ++at) {
        if (answered.at_work == owner && answered.start <= at && at <= answered.end) continue;
        ASSERT_EQ(recorded(LockOwner{owner}, at), answered.types[owner][at])
            << "owner " << owner << " byte " << at;
      }
    }
  };
  std::mt19937 random{101};
  for (int round = 0; round < 25 && !HasFailure(); ++round) {
    answered.at_work = kOwners;
    const unsigned seed = random();
    const pid_t child = clone_with_descriptors();
    ASSERT_GE(child, 0);
    if (child == 0) work(seed);
    for (int stop = 0; stop < 100 && !HasFailure(); ++stop) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 30));
      ASSERT_EQ(::kill(child, SIGSTOP), 0);
      ASSERT_EQ(::waitpid(child, nullptr, WUNTRACED), child);
      expect_the_answered();
      ASSERT_EQ(::kill(child, SIGCONT), 0);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30));
    kill_and_take_over(child);
    expect_the_answered();
    expect_agreement(kBytes);
    for (std::uint64_t owner = 0; owner < kOwners; ++owner) {
      for (std::uint64_t at = 0; at < kBytes; ++at)
        answered.types[owner][at] = recorded(LockOwner{owner}, at);
    }
  }
  ::munmap(memory, sizeof(Answered));
}

}  // namespace
}  // namespace virtiofsd
