// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// GETLK, SETLK, SETLKW and INTERRUPT: record locks and flock.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <climits>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

class Locks : public DeviceTest {
 protected:
  static constexpr std::uint64_t kAnn = 0x1111;
  static constexpr std::uint64_t kBob = 0x2222;

  void SetUp() override {
    FrontEndOptions vmm;
    vmm.ring = GetParam().options;
    START({"-o", "posix_lock,flock"}, vmm);
    tree().write("file", std::string(100, 'x'));
    file_ = node("file");
    handle_ = GET(fuse().open(file_, O_RDWR)).fh;
  }
  static fuse_file_lock lock(std::uint32_t type, std::uint64_t start = 0,
                             std::uint64_t end = LLONG_MAX, std::uint32_t pid = 42) {
    return {.start = start, .end = end, .type = type, .pid = pid};
  }

  std::uint64_t file_ = 0, handle_ = 0;
};
INSTANTIATE_DEVICE_TEST(Locks);

TEST_P(Locks, ALockKeepsOthersOut) {
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK, 10, 19)));
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file_, handle_, kBob, lock(F_WRLCK, 15, 25)));
  EXPECT_DONE(fuse().setlk(file_, handle_, kBob, lock(F_WRLCK, 20, 25)));
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_UNLCK, 10, 19)));
  EXPECT_DONE(fuse().setlk(file_, handle_, kBob, lock(F_WRLCK, 15, 25)));
}

TEST_P(Locks, ReadersShareAndWritersDoNot) {
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_RDLCK)));
  EXPECT_DONE(fuse().setlk(file_, handle_, kBob, lock(F_RDLCK)));
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK)));
}

TEST_P(Locks, GetlkTellsWhoIsInTheWay) {
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK, 10, 19, 4711)));
  const fuse_file_lock found = GET(fuse().getlk(file_, handle_, kBob, lock(F_WRLCK, 0, 100, 0)));
  EXPECT_EQ(found.type, unsigned{F_WRLCK});
  EXPECT_EQ(found.start, 10U);
  EXPECT_EQ(found.end, 19U);
  if (!foreign()) {
    EXPECT_EQ(found.pid, 4711U);
  }
  EXPECT_EQ(GET(fuse().getlk(file_, handle_, kBob, lock(F_WRLCK, 20, 30, 0))).type,
            unsigned{F_UNLCK});
  EXPECT_EQ(GET(fuse().getlk(file_, handle_, kAnn, lock(F_WRLCK, 0, 100, 0))).type,
            unsigned{F_UNLCK});
}

TEST_P(Locks, FlushDropsTheLocksOfItsOwnerOnly) {
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK, 0, 9)));
  EXPECT_DONE(fuse().setlk(file_, handle_, kBob, lock(F_WRLCK, 10, 19)));
  EXPECT_DONE(fuse().flush(file_, handle_, kAnn));
  EXPECT_EQ(GET(fuse().getlk(file_, handle_, 3, lock(F_WRLCK, 0, 9, 0))).type, unsigned{F_UNLCK});
  EXPECT_EQ(GET(fuse().getlk(file_, handle_, 3, lock(F_WRLCK, 10, 19, 0))).type, unsigned{F_WRLCK});
}

TEST_P(Locks, TheHostSeesTheGuestsLocks) {
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK, 0, 9)));
  const UniqueFd host{::open(tree().path("file").c_str(), O_RDWR | O_CLOEXEC)};
  struct flock asked {};
  asked.l_type = F_WRLCK;
  asked.l_len = 1;
  EXPECT_EQ(fcntl(host.number(), F_OFD_SETLK, &asked), -1);
  EXPECT_EQ(errno, EAGAIN);
}

TEST_P(Locks, ABlockingLockWaitsAndIsGranted) {
  if (foreign()) GTEST_SKIP() << "no peer has blocking locks";
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK)));
  const auto waiting = fuse().begin_setlkw(file_, handle_, kBob, lock(F_WRLCK));
  ASSERT_TRUE(waiting);
  EXPECT_DONE(fuse().getattr(file_));  // the queue goes on meanwhile
  EXPECT_FALSE(fuse().done(*waiting));
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_UNLCK)));
  EXPECT_EQ(fuse().finish(*waiting).error, 0);
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK)));
}

TEST_P(Locks, InterruptEndsAWaitingLock) {
  if (foreign()) GTEST_SKIP() << "no peer has blocking locks";
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK)));
  const auto waiting = fuse().begin_setlkw(file_, handle_, kBob, lock(F_WRLCK));
  ASSERT_TRUE(waiting);
  EXPECT_DONE(fuse().getattr(file_));
  fuse().interrupt(fuse().unique_of(*waiting));
  EXPECT_EQ(fuse().finish(*waiting).error, EINTR);
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_UNLCK)));
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK)));
}

TEST_P(Locks, InterruptOfNothingHurtsNobody) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon ends";
  fuse().interrupt(123456);
  fuse().interrupt(0);
  EXPECT_DONE(fuse().getattr(kRoot));
}

TEST_P(Locks, ABlockingLockThatIsFreeIsGrantedAtOnce) {
  if (foreign()) GTEST_SKIP() << "no peer has blocking locks";
  EXPECT_DONE(fuse().setlkw(file_, handle_, kAnn, lock(F_WRLCK)));
  EXPECT_DONE(fuse().setlkw(file_, handle_, kAnn, lock(F_UNLCK)));
}

TEST_P(Locks, FlockBelongsToTheHandle) {
  const std::uint64_t second = GET(fuse().open(file_, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK), true));
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file_, second, kBob, lock(F_WRLCK), true));
  EXPECT_DONE(fuse().release(file_, handle_, FUSE_RELEASE_FLOCK_UNLOCK, kAnn));
  EXPECT_DONE(fuse().setlk(file_, second, kBob, lock(F_WRLCK), true));
  EXPECT_DONE(fuse().release(file_, second, FUSE_RELEASE_FLOCK_UNLOCK, kBob));
}

TEST_P(Locks, ABlockingFlockWaits) {
  if (foreign()) GTEST_SKIP() << "no peer has blocking locks";
  const std::uint64_t second = GET(fuse().open(file_, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK), true));
  const auto waiting = fuse().begin_setlkw(file_, second, kBob, lock(F_WRLCK), true);
  ASSERT_TRUE(waiting);
  EXPECT_DONE(fuse().getattr(file_));
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_UNLCK), true));
  EXPECT_EQ(fuse().finish(*waiting).error, 0);
}

TEST_P(Locks, AReadOnlyFileTakesReadLocks) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon opens for writing";
  tree().write("readonly", "x", 0444);
  const std::uint64_t file = node("readonly");
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  EXPECT_DONE(fuse().setlk(file, handle, kAnn, lock(F_RDLCK)));
  EXPECT_DONE(fuse().release(file, handle));
}

TEST_P(Locks, LocksRefuseWhatTheyShould) {
  EXPECT_FALSE(fuse().setlk(file_, kNoHandle, kAnn, lock(F_WRLCK), true));
  if (foreign()) return;
  EXPECT_REFUSED(EBADF, fuse().setlk(file_, kNoHandle, kAnn, lock(F_WRLCK)));
  EXPECT_REFUSED(EBADF, fuse().getlk(file_, kNoHandle, kAnn, lock(F_WRLCK)));
  EXPECT_REFUSED(EINVAL, fuse().setlk(file_, handle_, kAnn, lock(77)));
  EXPECT_REFUSED(EINVAL, fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK, 10, 5)));
  EXPECT_REFUSED(EINVAL, fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK, ~0ULL, ~0ULL)));
}

TEST_P(Locks, LeavingWithALockWaitingIsOrderly) {
  if (foreign()) GTEST_SKIP() << "no peer has blocking locks";
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK)));
  ASSERT_TRUE(fuse().begin_setlkw(file_, handle_, kBob, lock(F_WRLCK)));
  EXPECT_DONE(fuse().getattr(file_));
  // TearDown hangs up and expects the daemon to leave.
}

// Nobody gave it up: the guest would take an answer for a signal that never came.
TEST_P(Locks, StoppingTheQueuePutsAWaitingLockOff) {
  if (foreign()) GTEST_SKIP() << "no peer has blocking locks";
  EXPECT_DONE(fuse().setlk(file_, handle_, kAnn, lock(F_WRLCK)));
  const auto waiting = fuse().begin_setlkw(file_, handle_, kBob, lock(F_WRLCK));
  ASSERT_TRUE(waiting);
  EXPECT_DONE(fuse().getattr(file_));
  const auto base = vmm().stop_queue(1);
  ASSERT_TRUE(base) << base.error().text();
  EXPECT_FALSE(fuse().done(*waiting));
  ASSERT_OK(vmm().start_queue(1, *base));
  EXPECT_DONE(fuse().flush(file_, handle_, kAnn));
  EXPECT_EQ(fuse().finish(*waiting).error, 0);
}

}  // namespace
}  // namespace virtiofsd::guest
