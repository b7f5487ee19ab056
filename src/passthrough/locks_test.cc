// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/locks.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "passthrough/locks_fixture.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

TEST_F(LockCoreTest, OwnersExcludeEachOtherAndNeverThemselves) {
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);

  EXPECT_EQ(set(args(kBob, F_WRLCK, 5, 14)), EAGAIN);
  EXPECT_EQ(set(args(kBob, F_RDLCK, 9, 9)), EAGAIN);
  EXPECT_EQ(set(args(kBob, F_WRLCK, 10, 14)), 0);
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 3, 5)), 0);
}

TEST_F(LockCoreTest, ProcessesOfTheHostSeeTheLocks) {
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 10, kEnd)), 0);

  EXPECT_EQ(outsider(F_WRLCK, 0, 9), 0);
  EXPECT_EQ(outsider(F_WRLCK, 0, 10), EAGAIN);
  EXPECT_EQ(outsider(F_WRLCK, 1'000'000, 1'000'000), EAGAIN);
  EXPECT_EQ(outsider(F_RDLCK, 0, kEnd), 0);
}

TEST_F(LockCoreTest, UnlockingAMiddleLeavesBothEnds) {
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 99)), 0);
  EXPECT_EQ(set(args(kAlice, F_UNLCK, 40, 59)), 0);

  EXPECT_EQ(outsider(F_WRLCK, 40, 59), 0);
  EXPECT_EQ(outsider(F_WRLCK, 39, 39), EAGAIN);
  EXPECT_EQ(outsider(F_WRLCK, 60, 60), EAGAIN);
  EXPECT_EQ(core_->ranges(), 2U);
}

TEST_F(LockCoreTest, UnlockingWhatNobodyHoldsIsFineAndOpensNothing) {
  EXPECT_EQ(set(args(kAlice, F_UNLCK, 0, kEnd)), 0);
  EXPECT_EQ(core_->owners(), 0U);
  EXPECT_TRUE(opener_.asked.empty());
}

TEST_F(LockCoreTest, FlushDropsAllOfItsOwnerAndNothingOfAnother) {
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 50, 59)), 0);
  EXPECT_EQ(set(args(kBob, F_WRLCK, 100, 109)), 0);

  core_->flush(kNode, kAlice);

  EXPECT_EQ(outsider(F_WRLCK, 0, 99), 0);
  EXPECT_EQ(outsider(F_WRLCK, 100, 100), EAGAIN);
  EXPECT_EQ(core_->owners(), 1U);
  EXPECT_EQ(core_->ranges(), 1U);
}

TEST_F(LockCoreTest, ReleaseDropsWhatWasSetThroughTheHandle) {
  const LockTarget other = target(fd_, 2);
  EXPECT_EQ(set(target_, args(kAlice, F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(set(other, args(kAlice, F_WRLCK, 10, 19)), 0);
  EXPECT_EQ(set(target_, args(kBob, F_WRLCK, 20, 29)), 0);

  core_->release(target_, false);

  EXPECT_EQ(outsider(F_WRLCK, 0, 9), 0);
  EXPECT_EQ(outsider(F_WRLCK, 10, 10), EAGAIN);
  EXPECT_EQ(outsider(F_WRLCK, 20, 29), 0);
  EXPECT_EQ(core_->owners(), 1U);
}

TEST_F(LockCoreTest, ClearDropsEverything) {
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(set(args(kBob, F_WRLCK, 10, 19)), 0);

  core_->clear();

  EXPECT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
  EXPECT_EQ(core_->owners(), 0U);
  EXPECT_EQ(core_->ranges(), 0U);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
}

TEST_F(LockCoreTest, TheEndOfTheTableDropsEverything) {
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  core_.reset();
  EXPECT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
}

TEST_F(LockCoreTest, RefusesTypesAndRangesThatMeanNothing) {
  EXPECT_EQ(set(args(kAlice, 3, 0, 9)), EINVAL);
  EXPECT_EQ(set(args(kAlice, 0xffffffff, 0, 9)), EINVAL);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 10, 9)), EINVAL);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, kEnd + 1)), EINVAL);
  EXPECT_EQ(set(args(kAlice, F_WRLCK, kEnd + 1, kEnd + 1)), EINVAL);
  EXPECT_EQ(core_->get(target_, flock_args(F_WRLCK)).error(), Errno{EINVAL});
  EXPECT_EQ(set(args(kAlice, F_WRLCK, kEnd, kEnd)), 0);
}

TEST_F(LockCoreTest, ALockNeedsTheAccessOfItsHandle) {
  const LockTarget reader = target(fd_, 2, O_RDONLY);
  const LockTarget writer = target(fd_, 3, O_WRONLY | O_APPEND);

  EXPECT_EQ(set(reader, args(kAlice, F_WRLCK, 0, 9)), EBADF);
  EXPECT_EQ(set(writer, args(kAlice, F_RDLCK, 0, 9)), EBADF);
  EXPECT_EQ(set(reader, args(kAlice, F_RDLCK, 0, 9)), 0);
  EXPECT_EQ(set(writer, args(kAlice, F_WRLCK, 10, 19)), 0);
  EXPECT_EQ(set(reader, args(kAlice, F_UNLCK, 0, 19)), 0);
}

TEST_F(LockCoreTest, ASharedLockOpensTheFileForReadingOnly) {
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  EXPECT_EQ(opener_.asked, std::vector<int>{O_RDONLY});
}

TEST_F(LockCoreTest, OneDescriptorServesAllLocksOfAnOwner) {
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_EQ(set(args(kAlice, F_WRLCK, i * 10, i * 10)), 0);
  EXPECT_EQ(set(args(kAlice, F_UNLCK, 0, kEnd)), 0);
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 0, 0)), 0);
  EXPECT_EQ(opener_.asked, std::vector<int>{O_RDWR});
}

TEST_F(LockCoreTest, AnUpgradeToWritingKeepsTheSharedLocks) {
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 20, 29)), 0);

  EXPECT_EQ(set(args(kAlice, F_WRLCK, 20, 24)), 0);

  EXPECT_EQ(opener_.asked, (std::vector<int>{O_RDONLY, O_RDWR}));
  EXPECT_EQ(outsider(F_WRLCK, 0, 0), EAGAIN);
  EXPECT_EQ(outsider(F_RDLCK, 0, 0), 0);
  EXPECT_EQ(outsider(F_RDLCK, 20, 20), EAGAIN);
  EXPECT_EQ(outsider(F_WRLCK, 29, 29), EAGAIN);
  EXPECT_EQ(outsider(F_RDLCK, 25, 29), 0);
}

TEST_F(LockCoreTest, AFileThatMayOnlyBeWrittenTakesWriteLocks) {
  opener_.refused = O_RDWR;
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(opener_.asked, (std::vector<int>{O_RDWR, O_WRONLY}));

  // A shared lock needs another description, which the exclusive one would exclude.
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 20, 29)), EBADF);
  EXPECT_EQ(outsider(F_RDLCK, 0, 0), EAGAIN);
}

TEST_F(LockCoreTest, LackOfDescriptorsIsLackOfLocks) {
  opener_.refused = O_RDONLY;
  opener_.error = EMFILE;
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), ENOLCK);
  opener_.error = EACCES;
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), EACCES);
}

TEST_F(LockCoreTest, GetNamesTheGuestsOwnHolder) {
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 10, 19)), 0);

  const auto found = core_->get(target_, args(kBob, F_RDLCK, 0, kEnd));

  ASSERT_TRUE(found);
  EXPECT_EQ(found->type, static_cast<std::uint32_t>(F_WRLCK));
  EXPECT_EQ(found->start, 10U);
  EXPECT_EQ(found->end, 19U);
  EXPECT_EQ(found->pid, 1001U);
}

TEST_F(LockCoreTest, GetSeesNothingInItsOwnersWay) {
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 10, 19)), 0);

  EXPECT_EQ(core_->get(target_, args(kAlice, F_WRLCK, 0, kEnd))->type,
            static_cast<std::uint32_t>(F_UNLCK));
  EXPECT_EQ(core_->get(target_, args(kBob, F_WRLCK, 20, kEnd))->type,
            static_cast<std::uint32_t>(F_UNLCK));
}

// F_OFD_GETLK with F_UNLCK, since Linux 6.6.
TEST_F(LockCoreTest, GetTellsAnOwnerWhatItHoldsItself) {
  EXPECT_EQ(set(args(kAlice, F_WRLCK, 10, 19)), 0);
  EXPECT_EQ(set(args(kBob, F_RDLCK, 30, 39)), 0);

  const auto found = core_->get(target_, args(kAlice, F_UNLCK, 0, kEnd));

  if (!found && found.error() == Errno{EINVAL}) GTEST_SKIP() << "this kernel doesn't tell";
  ASSERT_TRUE(found);
  EXPECT_EQ(found->type, static_cast<std::uint32_t>(F_WRLCK));
  EXPECT_EQ(found->start, 10U);
  EXPECT_EQ(found->end, 19U);
  EXPECT_EQ(core_->get(target_, args(kAlice, F_UNLCK, 20, kEnd))->type,
            static_cast<std::uint32_t>(F_UNLCK));
}

TEST_F(LockCoreTest, GetGivesNoPidForAHolderOutsideTheGuest) {
  struct flock lock {};
  lock.l_type = F_RDLCK;
  lock.l_start = 5;
  ASSERT_EQ(::fcntl(outside_.number(), F_OFD_SETLK, &lock), 0);

  const auto found = core_->get(target_, args(kAlice, F_WRLCK, 0, 9));

  ASSERT_TRUE(found);
  EXPECT_EQ(found->type, static_cast<std::uint32_t>(F_RDLCK));
  EXPECT_EQ(found->start, 5U);
  EXPECT_EQ(found->end, kEnd);
  EXPECT_EQ(found->pid, 0U);
}

TEST_F(LockCoreTest, GetOpensNoDescriptor) {
  ASSERT_TRUE(core_->get(target_, args(kAlice, F_WRLCK, 0, 9)));
  EXPECT_TRUE(opener_.asked.empty());
  EXPECT_EQ(core_->owners(), 0U);
}

TEST_F(LockCoreTest, OwnersAreBoundedAndIdleOnesMakeRoom) {
  reset({.waiters = 8, .owners = 3});
  for (std::uint64_t i = 1; i <= 3; ++i) EXPECT_EQ(set(args(LockOwner{i}, F_RDLCK, 0, 9)), 0);
  EXPECT_EQ(set(args(LockOwner{4}, F_RDLCK, 0, 9)), ENOLCK);

  EXPECT_EQ(set(args(LockOwner{2}, F_UNLCK, 0, 9)), 0);

  EXPECT_EQ(set(args(LockOwner{4}, F_RDLCK, 0, 9)), 0);
  EXPECT_EQ(core_->owners(), 3U);
}

TEST_F(LockCoreTest, RangesAreBoundedAndUnlockingAlwaysGoes) {
  reset({.waiters = 8, .owners = 8, .ranges = 4});
  for (std::uint64_t i = 0; i < 4; ++i)
    EXPECT_EQ(set(args(kAlice, F_RDLCK, i * 10, i * 10 + 5)), 0);

  EXPECT_EQ(set(args(kAlice, F_RDLCK, 100, 105)), ENOLCK);
  EXPECT_EQ(outsider(F_WRLCK, 100, 105), 0);
  EXPECT_EQ(set(args(kAlice, F_UNLCK, 2, 3)), 0);
  EXPECT_EQ(core_->ranges(), 5U);
  EXPECT_EQ(set(args(kAlice, F_UNLCK, 0, kEnd)), 0);
  EXPECT_EQ(core_->ranges(), 0U);
  EXPECT_EQ(set(args(kAlice, F_RDLCK, 100, 105)), 0);
}

// The table against what the kernel says of every byte, after every step.
TEST_F(LockCoreTest, TheTableAgreesWithTheKernel) {
  constexpr std::uint64_t kBytes = 40;
  std::mt19937 random{12345};
  std::array<std::array<std::uint32_t, kBytes>, 2> model;
  for (auto& bytes : model) bytes.fill(F_UNLCK);
  const auto conflicts = [](std::uint32_t a, std::uint32_t b) {
    return a != F_UNLCK && b != F_UNLCK && (a == F_WRLCK || b == F_WRLCK);
  };

  for (int step = 0; step < 3000; ++step) {
    const std::size_t who = random() % 2;
    const std::uint64_t start = random() % kBytes;
    const std::uint64_t end = start + random() % (kBytes - start);
    const std::uint32_t type = random() % 3;
    const LockTarget through = target(fd_, random() % 3);
    bool expected = true;
    for (std::uint64_t at = start; at <= end; ++at) {
      expected = expected && !conflicts(type, model[1 - who][at]);
    }
    ASSERT_EQ(set(through, args(LockOwner{who + 1}, type, start, end)), expected ? 0 : EAGAIN);
    if (expected) {
      for (std::uint64_t at = start; at <= end; ++at) model[who][at] = type;
    }
    for (std::uint64_t at = 0; at < kBytes; at += 3) {
      const bool any = model[0][at] != F_UNLCK || model[1][at] != F_UNLCK;
      const bool write = model[0][at] == F_WRLCK || model[1][at] == F_WRLCK;
      ASSERT_EQ(outsider(F_WRLCK, at, at), any ? EAGAIN : 0) << "byte " << at;
      ASSERT_EQ(outsider(F_RDLCK, at, at), write ? EAGAIN : 0) << "byte " << at;
    }
  }
  for (std::uint64_t handle = 0; handle < 3; ++handle) core_->release(target(fd_, handle), false);
  EXPECT_EQ(core_->ranges(), 0U);
  EXPECT_EQ(core_->owners(), 0U);
  EXPECT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
}

TEST_F(LockCoreTest, ManyThreadsOfTheSameOwnersLeaveNothingBehind) {
  reset({.waiters = 64});
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937 random{t};
      LockedFileOpener opener{file_};
      for (int i = 0; i < 500; ++i) {
        const LockOwner owner{1 + random() % 2};
        const std::uint64_t start = random() % 20;
        auto wanted = args(owner, random() % 3, start, start + random() % 10);
        const LockTarget through = target(fd_, t);
        fuse::Call call = call_of(t);
        (void)core_->set(call, through, opener, wanted);
        if (i % 50 == 0) core_->flush(kNode, owner);
        if (i % 70 == 0) core_->release(through, true);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  core_->flush(kNode, LockOwner{1});
  core_->flush(kNode, LockOwner{2});

  EXPECT_EQ(core_->ranges(), 0U);
  EXPECT_EQ(core_->owners(), 0U);
  EXPECT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
}

TEST_F(LockCoreTest, AWaitEndsWhenTheHolderUnlocks) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  int waited = -1;
  std::thread bob([&] { waited = set(target_, waiting(args(kBob, F_WRLCK, 5, 14)), 2); });
  until([&] { return core_->waiters() == 1; });

  ASSERT_EQ(set(args(kAlice, F_UNLCK, 0, 9)), 0);
  bob.join();

  EXPECT_EQ(waited, 0);
  EXPECT_EQ(outsider(F_WRLCK, 5, 14), EAGAIN);
  EXPECT_EQ(scheduler_.begun, 1);
  EXPECT_EQ(scheduler_.ended, 1);
  EXPECT_EQ(core_->waiters(), 0U);
}

TEST_F(LockCoreTest, AWaitEndsWhenAProcessOfTheHostUnlocks) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  ASSERT_EQ(::fcntl(outside_.number(), F_OFD_SETLK, &lock), 0);
  int waited = -1;
  std::thread alice([&] { waited = set(waiting(args(kAlice, F_RDLCK, 0, 9))); });
  until([&] { return core_->waiters() == 1; });

  lock.l_type = F_UNLCK;
  ASSERT_EQ(::fcntl(outside_.number(), F_OFD_SETLK, &lock), 0);
  alice.join();

  EXPECT_EQ(waited, 0);
}

TEST_F(LockCoreTest, AFreeLockIsGivenWithoutTellingTheScheduler) {
  EXPECT_EQ(set(waiting(args(kAlice, F_WRLCK, 0, 9))), 0);
  EXPECT_EQ(scheduler_.begun, 0);
}

TEST_F(LockCoreTest, AWaitEndsByInterruptOfItsRequestOnly) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  int waited = -1;
  std::thread bob([&] { waited = set(target_, waiting(args(kBob, F_WRLCK, 0, 9)), 42); });
  until([&] { return core_->waiters() == 1; });

  core_->interrupt(41);
  EXPECT_EQ(core_->waiters(), 1U);
  core_->interrupt(42);
  bob.join();

  EXPECT_EQ(waited, EINTR);
  EXPECT_EQ(scheduler_.ended, 1);
}

TEST_F(LockCoreTest, AnInterruptIsNeverLostHoweverItIsTimed) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  for (std::uint64_t round = 0; round < 300; ++round) {
    int waited = -1;
    std::thread bob([&] { waited = set(target_, waiting(args(kBob, F_WRLCK, 0, 9)), round); });
    until([&] { return core_->waiters() == 1; });
    core_->interrupt(round);
    bob.join();
    ASSERT_EQ(waited, EINTR);
  }
}

TEST_F(LockCoreTest, ASignalThatCancelsNothingEndsNoWait) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  int waited = -1;
  std::thread bob([&] { waited = set(target_, waiting(args(kBob, F_WRLCK, 0, 9)), 2); });
  until([&] { return core_->waiters() == 1; });

  for (int i = 0; i < 100; ++i)
    ASSERT_EQ(::pthread_kill(bob.native_handle(), lock_wake_signal()), 0);
  EXPECT_EQ(core_->waiters(), 1U);
  ASSERT_EQ(set(args(kAlice, F_UNLCK, 0, 9)), 0);
  bob.join();

  EXPECT_EQ(waited, 0);
}

TEST_F(LockCoreTest, AWaitEndsInAThreadThatBlocksTheSignal) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  int waited = -1;
  bool still_blocked = false;
  std::thread bob([&] {
    sigset_t all;
    sigset_t now;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
    waited = set(target_, waiting(args(kBob, F_WRLCK, 0, 9)), 2);
    ::pthread_sigmask(SIG_BLOCK, nullptr, &now);
    still_blocked = sigismember(&now, lock_wake_signal()) == 1;
  });
  until([&] { return core_->waiters() == 1; });

  core_->interrupt(2);
  bob.join();

  EXPECT_EQ(waited, EINTR);
  EXPECT_TRUE(still_blocked);
}

TEST_F(LockCoreTest, AStoppingQueueEndsItsWaitsAndKeepsTheLocks) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  std::array<int, 4> waited{};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < waited.size(); ++i) {
    threads.emplace_back([&, i] {
      LockedFileOpener opener{file_};
      fuse::Call call = call_of(i);
      const auto result =
          core_->set(call, target_, opener, waiting(args(LockOwner{10 + i}, F_WRLCK, 0, 9)));
      waited[i] = result ? 0 : result.error().value();
    });
  }
  until([&] { return core_->waiters() == 4; });

  core_->cancel_waits();
  EXPECT_EQ(core_->waiters(), 4U);
  scheduler_.stops = true;
  core_->cancel_waits();
  for (auto& thread : threads) thread.join();

  EXPECT_EQ(waited, (std::array<int, 4>{EINTR, EINTR, EINTR, EINTR}));
  EXPECT_EQ(outsider(F_WRLCK, 0, 9), EAGAIN);
}

TEST_F(LockCoreTest, ClearEndsAWaitAndItsLockNeverAppears) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  ASSERT_EQ(::fcntl(outside_.number(), F_OFD_SETLK, &lock), 0);
  int waited = -1;
  std::thread alice([&] { waited = set(waiting(args(kAlice, F_WRLCK, 0, 9))); });
  until([&] { return core_->waiters() == 1; });

  core_->clear();
  alice.join();
  lock.l_type = F_UNLCK;
  ASSERT_EQ(::fcntl(outside_.number(), F_OFD_SETLK, &lock), 0);

  EXPECT_EQ(waited, EINTR);
  const UniqueFd third = file_.open(O_RDWR);
  lock.l_type = F_WRLCK;
  EXPECT_EQ(::fcntl(third.number(), F_OFD_SETLK, &lock), 0);
}

TEST_F(LockCoreTest, ReleaseOfTheHandleEndsItsWait) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  const LockTarget other = target(fd_, 2);
  int waited = -1;
  std::thread bob([&] { waited = set(other, waiting(args(kBob, F_WRLCK, 0, 9)), 2); });
  until([&] { return core_->waiters() == 1; });

  core_->release(other, false);
  bob.join();

  EXPECT_EQ(waited, EINTR);
  EXPECT_EQ(outsider(F_WRLCK, 0, 9), EAGAIN);
  core_->flush(kNode, kAlice);
  EXPECT_EQ(outsider(F_WRLCK, 0, 9), 0);
}

TEST_F(LockCoreTest, AFlushLeavesItsOwnersWaitAlone) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kBob, F_WRLCK, 20, 29)), 0);
  int waited = -1;
  std::thread bob([&] { waited = set(target_, waiting(args(kBob, F_WRLCK, 0, 9)), 2); });
  until([&] { return core_->waiters() == 1; });

  core_->flush(kNode, kBob);
  EXPECT_EQ(outsider(F_WRLCK, 20, 29), 0);
  core_->flush(kNode, kAlice);
  bob.join();

  EXPECT_EQ(waited, 0);
  EXPECT_EQ(outsider(F_WRLCK, 0, 9), EAGAIN);
}

TEST_F(LockCoreTest, AWaitDoesNotBeginInAQueueThatStops) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  scheduler_.stops = true;
  EXPECT_EQ(set(waiting(args(kBob, F_WRLCK, 0, 9))), EINTR);
  EXPECT_EQ(scheduler_.begun, scheduler_.ended);
}

// The queue goes on as soon as the scheduler was told, with the INTERRUPT perhaps.
TEST_F(LockCoreTest, AnInterruptThatComesBeforeTheSleepEndsTheWait) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  bool came_first = false;
  int waited = -1;
  std::atomic<bool> done{false};
  scheduler_.meanwhile = [&] {
    std::thread next_leader([&] { core_->interrupt(2); });
    next_leader.join();
    came_first = true;
  };
  std::thread bob([&] {
    waited = set(target_, waiting(args(kBob, F_WRLCK, 0, 9)), 2);
    done = true;
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (!done && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  const bool in_time = done;
  core_->clear();
  bob.join();

  EXPECT_TRUE(in_time);
  EXPECT_TRUE(came_first);
  EXPECT_EQ(waited, EINTR);
}

TEST_F(LockCoreTest, TheSchedulerMayRefuseAWait) {
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  scheduler_.refuses = true;
  EXPECT_EQ(set(waiting(args(kBob, F_WRLCK, 0, 9))), ENOLCK);
  EXPECT_EQ(scheduler_.ended, 0);
}

TEST_F(LockCoreTest, WaitersAreBounded) {
  reset({.waiters = 1});
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  int waited = -1;
  std::thread bob([&] { waited = set(target_, waiting(args(kBob, F_WRLCK, 0, 9)), 2); });
  until([&] { return core_->waiters() == 1; });

  EXPECT_EQ(set(waiting(args(LockOwner{3}, F_WRLCK, 0, 9))), ENOLCK);
  EXPECT_EQ(set(args(LockOwner{3}, F_WRLCK, 0, 9)), EAGAIN);
  core_->interrupt(2);
  bob.join();

  EXPECT_EQ(waited, EINTR);
  EXPECT_EQ(scheduler_.begun, scheduler_.ended);
}

// Threads of one process wait, unlock and close at once; whatever order that
// takes, the table and the kernel end up the same.
TEST_F(LockCoreTest, WaitsAmidUnlocksAndFlushesOfTheirOwnerStayTrue) {
  std::atomic<bool> done{false};
  std::thread meddler([&] {
    LockedFileOpener opener{file_};
    fuse::Call call = call_of(9);
    while (!done) {
      core_->flush(kNode, kBob);
      (void)core_->set(call, target_, opener, args(kBob, F_UNLCK, 3, 6));
    }
  });
  for (int i = 0; i < 200; ++i) {
    ASSERT_EQ(set(waiting(args(kAlice, F_WRLCK, 0, 9))), 0);
    int waited = -1;
    std::thread bob([&] {
      LockedFileOpener opener{file_};
      fuse::Call call = call_of(2);
      const auto result = core_->set(call, target_, opener, waiting(args(kBob, F_WRLCK, 0, 9)));
      waited = result ? 0 : result.error().value();
    });
    ASSERT_EQ(set(args(kAlice, F_UNLCK, 0, 9)), 0);
    bob.join();
    ASSERT_EQ(waited, 0);
  }
  done = true;
  meddler.join();
  core_->flush(kNode, kBob);

  EXPECT_EQ(core_->ranges(), 0U);
  EXPECT_EQ(outsider(F_WRLCK, 0, kEnd), 0);
}

// Alice has the first lock and Bob, who has the second, waits for it.
class LockDeadlockTest : public LockCoreTest {
 protected:
  void let_bob_wait() {
    ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
    ASSERT_EQ(set(args(kBob, F_WRLCK, 10, 19)), 0);
    wait_in_thread(kBob, args(kBob, F_WRLCK, 5, 9));
  }
  void wait_in_thread(LockOwner owner, const fuse::LockArgs& wanted) {
    const std::uint32_t before = core_->waiters();
    waiters_.emplace_back([this, owner, wanted] {
      const LockTarget through = target(fd_, 100 + owner.value);
      LockedFileOpener opener{file_};
      fuse::Call call = call_of(owner.value);
      (void)core_->set(call, through, opener, waiting(wanted));
    });
    until([&] { return core_->waiters() == before + 1; });
  }
  // EDEADLK, or EINTR for a wait that began: whoever comes is judged before it is interrupted.
  int try_to_wait(const LockTarget& through, const fuse::LockArgs& wanted) {
    std::atomic<bool> over{false};
    std::thread interrupter([&] {
      while (!over) core_->interrupt(77);
    });
    const int result = set(through, waiting(wanted), 77);
    over = true;
    interrupter.join();
    return result;
  }
  int try_to_wait(const fuse::LockArgs& wanted) { return try_to_wait(target_, wanted); }

  void TearDown() override {
    core_->clear();
    for (auto& thread : waiters_) thread.join();
  }

 private:
  std::vector<std::thread> waiters_;
};

TEST_F(LockDeadlockTest, WhoWouldWaitForItsOwnWaiterIsRefused) {
  let_bob_wait();
  EXPECT_EQ(try_to_wait(args(kAlice, F_WRLCK, 10, 10)), EDEADLK);
  EXPECT_EQ(core_->waiters(), 1U);
  EXPECT_EQ(scheduler_.begun, scheduler_.ended + 1);
  EXPECT_EQ(outsider(F_WRLCK, 0, 9), EAGAIN);
  EXPECT_EQ(outsider(F_WRLCK, 20, kEnd), 0);
}

TEST_F(LockDeadlockTest, ARoundOfThreeIsSeenToo) {
  let_bob_wait();
  constexpr LockOwner kCarol{3};
  ASSERT_EQ(set(args(kCarol, F_WRLCK, 20, 29)), 0);
  wait_in_thread(kCarol, args(kCarol, F_RDLCK, 10, 10));
  EXPECT_EQ(try_to_wait(args(kAlice, F_RDLCK, 29, 40)), EDEADLK);
}

TEST_F(LockDeadlockTest, ARoundAcrossTwoFilesIsSeenToo) {
  const LockedFile second;
  const UniqueFd second_fd = second.open(O_RDWR);
  LockTarget there = target(second_fd, 9);
  there.node = NodeId{8};
  LockedFileOpener opener{second};
  fuse::Call call = call_of(5, there.node);
  ASSERT_TRUE(core_->set(call, there, opener, args(kBob, F_WRLCK, 0, 0)));
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  wait_in_thread(kBob, args(kBob, F_WRLCK, 5, 9));
  EXPECT_EQ(try_to_wait(there, args(kAlice, F_WRLCK, 0, 0)), EDEADLK);
}

TEST_F(LockDeadlockTest, AWaitForSomebodyWhoWaitsForAnotherIsNoDeadlock) {
  let_bob_wait();
  constexpr LockOwner kCarol{3};
  EXPECT_EQ(try_to_wait(args(kCarol, F_WRLCK, 19, 19)), EINTR);
}

TEST_F(LockDeadlockTest, SharedLocksThatGoTogetherAreNoDeadlock) {
  constexpr LockOwner kCarol{3};
  ASSERT_EQ(set(args(kAlice, F_RDLCK, 0, 9)), 0);
  ASSERT_EQ(set(args(kCarol, F_WRLCK, 10, 19)), 0);
  ASSERT_EQ(set(args(kBob, F_WRLCK, 20, 29)), 0);
  wait_in_thread(kBob, args(kBob, F_RDLCK, 0, 19));  // for Carol, not for Alice
  EXPECT_EQ(try_to_wait(args(kAlice, F_WRLCK, 20, 29)), EINTR);
}

TEST_F(LockDeadlockTest, AWaitThatEndedIsForgotten) {
  let_bob_wait();
  core_->interrupt(kBob.value);
  until([&] { return core_->waiters() == 0; });
  EXPECT_EQ(try_to_wait(args(kAlice, F_WRLCK, 10, 10)), EINTR);
}

TEST_F(LockDeadlockTest, AWaitForAWholeFilesLockIsNotOneForARecord) {
  ASSERT_EQ(set(args(kBob, F_WRLCK, 10, 19)), 0);
  ASSERT_EQ(::flock(outside_.number(), LOCK_EX), 0);
  fuse::LockArgs whole = flock_args(F_WRLCK);
  whole.owner = kBob;
  ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
  wait_in_thread(kBob, whole);
  EXPECT_EQ(try_to_wait(args(kAlice, F_WRLCK, 10, 10)), EINTR);
}

// Two that meet at the same moment: one is refused, the other gets its lock.
TEST_F(LockDeadlockTest, OfTwoThatWaitForEachOtherOneGoesOn) {
  for (int round = 0; round < 300; ++round) {
    ASSERT_EQ(set(args(kAlice, F_WRLCK, 0, 9)), 0);
    ASSERT_EQ(set(args(kBob, F_WRLCK, 10, 19)), 0);
    std::array<int, 2> waited{-1, -1};
    const auto meet = [&](std::size_t i, LockOwner owner, std::uint64_t at) {
      LockedFileOpener opener{file_};
      fuse::Call call = call_of(owner.value);
      const auto result = core_->set(call, target_, opener, waiting(args(owner, F_WRLCK, at, at)));
      waited[i] = result ? 0 : result.error().value();
      core_->flush(kNode, owner);
    };
    std::thread bob([&] { meet(0, kBob, 0); });
    meet(1, kAlice, 10);
    bob.join();
    ASSERT_EQ(std::max(waited[0], waited[1]), EDEADLK);
    ASSERT_EQ(std::min(waited[0], waited[1]), 0);
  }
}

TEST_F(LockCoreTest, FlockBelongsToTheOpenFile) {
  const UniqueFd second = file_.open(O_RDWR);
  const LockTarget other = target(second, 2);
  EXPECT_EQ(set(flock_args(F_WRLCK)), 0);

  EXPECT_EQ(set(other, flock_args(F_RDLCK)), EAGAIN);
  EXPECT_EQ(set(flock_args(F_RDLCK)), 0);
  EXPECT_EQ(set(other, flock_args(F_RDLCK)), 0);
  EXPECT_EQ(::flock(outside_.number(), LOCK_EX | LOCK_NB), -1);
  EXPECT_EQ(set(flock_args(F_UNLCK)), 0);
  EXPECT_EQ(set(other, flock_args(F_UNLCK)), 0);
  EXPECT_EQ(::flock(outside_.number(), LOCK_EX | LOCK_NB), 0);
}

TEST_F(LockCoreTest, FlockAndRecordLocksDoNotMeet) {
  const UniqueFd second = file_.open(O_RDWR);
  EXPECT_EQ(set(flock_args(F_WRLCK)), 0);
  EXPECT_EQ(set(target(second, 2), args(kBob, F_WRLCK, 0, kEnd)), 0);
}

TEST_F(LockCoreTest, ReleaseUnlocksAFlockThoughTheDescriptorLivesOn) {
  EXPECT_EQ(set(flock_args(F_WRLCK)), 0);
  core_->release(target_, false);
  EXPECT_EQ(::flock(outside_.number(), LOCK_EX | LOCK_NB), -1);

  core_->release(target_, true);
  EXPECT_EQ(::flock(outside_.number(), LOCK_EX | LOCK_NB), 0);
}

TEST_F(LockCoreTest, AFlockWaitEndsWhenTheHolderUnlocks) {
  ASSERT_EQ(::flock(outside_.number(), LOCK_EX), 0);
  int waited = -1;
  std::thread alice([&] { waited = set(waiting(flock_args(F_RDLCK))); });
  until([&] { return core_->waiters() == 1; });

  ASSERT_EQ(::flock(outside_.number(), LOCK_UN), 0);
  alice.join();

  EXPECT_EQ(waited, 0);
  EXPECT_EQ(::flock(outside_.number(), LOCK_EX | LOCK_NB), -1);
}

TEST_F(LockCoreTest, AFlockWaitEndsByInterrupt) {
  ASSERT_EQ(::flock(outside_.number(), LOCK_EX), 0);
  int waited = -1;
  std::thread alice([&] { waited = set(target_, waiting(flock_args(F_RDLCK)), 5); });
  until([&] { return core_->waiters() == 1; });

  core_->interrupt(5);
  alice.join();

  EXPECT_EQ(waited, EINTR);
}

TEST(LockTable, LocksThroughHandlesOfTheStores) {
  std::string root = "/tmp/lock-table-XXXXXX";
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  sys::set_proc_self_fd(UniqueFd{::open("/proc/self/fd", O_PATH | O_CLOEXEC)});
  const std::string path = root + "/file";
  const auto open = [&] {
    return UniqueFd{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  };
  const UniqueFd outside = open();
  InodeStore::Settings settings;
  settings.max_inodes = 1U << 12;
  auto store = std::move(InodeStore::create(
                             UniqueFd{::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)},
                             std::move(settings)))
                   .value();
  HandleTable handles{*store, 16};
  auto locks = std::make_unique<LockTable>(*store, LockCore::Limits{.waiters = 4});
  fuse::NullScheduler scheduler;
  const fuse::Negotiated session;
  struct statx attributes {};
  auto root_node = std::move(store->pin(NodeId{1})).value();
  auto inode =
      std::move(store->lookup(root_node, std::move(Name::parse("file")).value(), 0, &attributes))
          .value();
  const NodeId node = inode.id();
  const HandleId id = handles.insert(HandleKind::kFile, std::move(inode), open(), O_RDWR).value();
  fuse::Call call{.unique = 1,
                  .node = node,
                  .caller = {},
                  .security = {},
                  .session = session,
                  .scheduler = scheduler};
  const auto free = [&] {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    if (::fcntl(outside.number(), F_OFD_SETLK, &lock) != 0) return false;
    lock.l_type = F_UNLCK;
    return ::fcntl(outside.number(), F_OFD_SETLK, &lock) == 0;
  };
  {
    const HandleRef handle = std::move(handles.find(id, HandleKind::kFile, node)).value();
    ASSERT_TRUE(locks->set(call, handle, args(kAlice, F_RDLCK, 0, 9)));
    ASSERT_TRUE(locks->set(call, handle, args(kAlice, F_WRLCK, 5, 9)));
    EXPECT_EQ(locks->get(handle, args(kBob, F_RDLCK, 0, 9))->pid, 1001U);
    EXPECT_FALSE(free());
    static LockTable* const crashed = locks.release();
    ASSERT_NE(crashed, nullptr);
    locks = std::make_unique<LockTable>(*store, LockCore::Limits{.waiters = 4});
    locks->take_over();
    EXPECT_EQ(locks->get(handle, args(kBob, F_RDLCK, 0, 9))->pid, 1001U);
    EXPECT_FALSE(free());
    locks->flush(node, kAlice);
    EXPECT_TRUE(free());
    ASSERT_TRUE(locks->set(call, handle, args(kBob, F_WRLCK, 0, kEnd)));
    ASSERT_TRUE(locks->set(call, handle, flock_args(F_WRLCK)));
    locks->release(handle, kBob, FUSE_RELEASE_FLOCK_UNLOCK);
    EXPECT_TRUE(free());
    EXPECT_EQ(::flock(outside.number(), LOCK_EX | LOCK_NB), 0);
  }
  ASSERT_TRUE(handles.release(id, HandleKind::kFile, node));
  ::unlink(path.c_str());
  ::rmdir(root.c_str());
}

}  // namespace
}  // namespace virtiofsd
