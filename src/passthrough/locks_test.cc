// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/locks.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
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
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "passthrough/lock_records.h"
#include "state/arena.h"
#include "state/records.h"
#include "state/slab.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

constexpr std::uint64_t kEnd = std::numeric_limits<std::int64_t>::max();
constexpr NodeId kNode{7};
constexpr LockOwner kAlice{1};
constexpr LockOwner kBob{2};

// A file with descriptors of any access mode on it.
class File {
 public:
  File() {
    std::string pattern = "/tmp/locks-XXXXXX";
    UniqueFd made{::mkostemp(pattern.data(), O_CLOEXEC)};
    path_ = pattern;
  }
  ~File() { ::unlink(path_.c_str()); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  UniqueFd open(int access) const { return UniqueFd{::open(path_.c_str(), access | O_CLOEXEC)}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Opens the file anew and remembers how it was asked to.
class FileOpener final : public LockOpener {
 public:
  explicit FileOpener(const File& file) : file_(file) {}
  Result<UniqueFd> open(int access) override {
    asked.push_back(access);
    if (access == refused) return Errno{error};
    return file_.open(access);
  }
  std::vector<int> asked;
  int refused = -1;
  int error = EACCES;

 private:
  const File& file_;
};

class CountingScheduler final : public fuse::Scheduler {
 public:
  void about_to_block() override {}
  void takes_turn(NodeId) override {}
  Result<> about_to_wait_for_lock() override {
    if (refuses) return Errno{ENOLCK};
    ++begun;
    if (meanwhile) meanwhile();
    return {};
  }
  void lock_wait_ended() override { ++ended; }
  bool stopping() const override { return stops; }
  std::function<void()> meanwhile;  // what other threads do once this one lets them
  std::atomic<bool> refuses{false};
  std::atomic<bool> stops{false};
  std::atomic<int> begun{0};
  std::atomic<int> ended{0};
};

fuse::LockArgs args(LockOwner owner, std::uint32_t type, std::uint64_t start, std::uint64_t end) {
  fuse::LockArgs args;
  args.owner = owner;
  args.type = type;
  args.start = start;
  args.end = end;
  args.pid = 1000 + static_cast<std::uint32_t>(owner.value);
  return args;
}

fuse::LockArgs waiting(fuse::LockArgs args) {
  args.wait = true;
  return args;
}

fuse::LockArgs flock_args(std::uint32_t type) {
  fuse::LockArgs out = args(kAlice, type, 0, kEnd);
  out.flock = true;
  return out;
}

class LockCoreTest : public ::testing::Test {
 protected:
  LockCoreTest() { reset({.waiters = 8}); }

  void reset(LockCore::Limits limits) { core_ = std::make_unique<LockCore>(limits); }

  static LockTarget target(const UniqueFd& fd, std::uint64_t handle, int access = O_RDWR) {
    return {.node = kNode,
            .handle = HandleId{handle},
            .fd = fd.ref(),
            .open_flags = static_cast<std::uint32_t>(access)};
  }

  fuse::Call call_of(std::uint64_t unique, NodeId node = kNode) {
    return {.unique = unique,
            .node = node,
            .caller = {},
            .security = {},
            .session = session_,
            .scheduler = scheduler_};
  }
  // The errno of setting a lock, 0 for success.
  int set(const fuse::LockArgs& wanted) { return set(target_, wanted); }
  int set(const LockTarget& through, const fuse::LockArgs& wanted, std::uint64_t unique = 1) {
    fuse::Call call = call_of(unique, through.node);
    const auto result = core_->set(call, through, opener_, wanted);
    return result ? 0 : result.error().value();
  }

  // What somebody outside of the table (a process of the host) may lock: 0 or EAGAIN.
  int outsider(short type, std::uint64_t start, std::uint64_t end) {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = static_cast<off_t>(start);
    lock.l_len = end == kEnd ? 0 : static_cast<off_t>(end - start + 1);
    if (::fcntl(outside_.number(), F_OFD_SETLK, &lock) != 0) return errno;
    lock.l_type = F_UNLCK;
    EXPECT_EQ(::fcntl(outside_.number(), F_OFD_SETLK, &lock), 0);
    return 0;
  }

  // Waits until `condition` holds; fails the test when it never does.
  template <typename Condition>
  static void until(const Condition& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "never came true";
      std::this_thread::yield();
    }
  }

  File file_;
  UniqueFd fd_ = file_.open(O_RDWR);
  UniqueFd outside_ = file_.open(O_RDWR);
  LockTarget target_ = target(fd_, 1);
  FileOpener opener_{file_};
  CountingScheduler scheduler_;
  fuse::Negotiated session_;
  std::unique_ptr<LockCore> core_;
};

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
      FileOpener opener{file_};
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
      FileOpener opener{file_};
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
    FileOpener opener{file_};
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
      FileOpener opener{file_};
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
      FileOpener opener{file_};
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
  const File second;
  const UniqueFd second_fd = second.open(O_RDWR);
  LockTarget there = target(second_fd, 9);
  there.node = NodeId{8};
  FileOpener opener{second};
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
      FileOpener opener{file_};
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

// A table that was given up as a crash would, and one that comes after it.
class LockTakeOverTest : public LockCoreTest {
 protected:
  using OwnerSlab = Slab<LockOwnerRecord, &LockOwnerRecord::next_free>;
  using RangeSlab = Slab<LockRangeRecord, &LockRangeRecord::next_free>;

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

  OwnerSlab owner_slab() { return OwnerSlab{arena_->section(SectionKind::kLockOwners)}; }
  RangeSlab range_slab() { return RangeSlab{arena_->section(SectionKind::kLockRanges)}; }
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
    RangeSlab slab = range_slab();
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
  const File second;
  const UniqueFd second_fd = second.open(O_RDWR);
  LockTarget there = target(second_fd, 9);
  there.node = NodeId{8};
  FileOpener opener{second};
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
    FileOpener opener{file_};
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
