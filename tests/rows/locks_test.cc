// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Rows S7 and S8: locks between two guests on one share, and between a guest
// and the host.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>

#include "tests/rows/vm.h"

namespace virtiofsd::guest {
namespace {

constexpr std::uint64_t kAnn = 0x1111;
constexpr std::uint64_t kBob = 0x2222;

fuse_file_lock whole(std::uint32_t type) {
  return {.start = 0, .end = LLONG_MAX, .type = type, .pid = 42};
}

// One guest's view of the file that all of them fight for.
struct Side {
  Side(const TempTree& tree, std::vector<std::string> arguments, int flags = O_RDWR,
       VmOptions options = {})
      : vm(tree.root(), std::move(arguments), options) {
    node = vm.node("file");
    handle = GET(vm->open(node, static_cast<std::uint32_t>(flags))).fh;
  }
  Result<> set(std::uint32_t type, bool flock, std::uint64_t owner = kAnn) {
    return vm->setlk(node, handle, owner, whole(type), flock);
  }
  std::uint32_t wait(std::uint32_t type, bool flock, std::uint64_t owner = kAnn) {
    const auto slot = vm->begin_setlkw(node, handle, owner, whole(type), flock);
    EXPECT_TRUE(slot);
    return slot.value_or(0);
  }

  Vm vm;
  std::uint64_t node = 0, handle = 0;
};

// The host's own open file, with locks of its own.
class HostFile {
 public:
  explicit HostFile(const std::string& path) : fd_(::open(path.c_str(), O_RDWR | O_CLOEXEC)) {}
  int record(short type) const {
    struct flock lock {};
    lock.l_type = type;
    return ::fcntl(fd_.number(), F_SETLK, &lock) == 0 ? 0 : errno;
  }
  int flock(int operation) const {
    return ::flock(fd_.number(), operation | LOCK_NB) == 0 ? 0 : errno;
  }

 private:
  UniqueFd fd_;
};

// What both kinds of locks promise once they are the host's.
void guests_exclude_each_other(const TempTree& tree, const std::vector<std::string>& arguments,
                               bool flock) {
  Side one(tree, arguments);
  Side two(tree, arguments);
  EXPECT_DONE(one.set(F_WRLCK, flock));
  EXPECT_REFUSED(EAGAIN, two.set(F_WRLCK, flock));
  EXPECT_REFUSED(EAGAIN, two.set(F_RDLCK, flock));
  EXPECT_DONE(one.set(F_RDLCK, flock));
  EXPECT_DONE(two.set(F_RDLCK, flock));
  EXPECT_REFUSED(EAGAIN, one.set(F_WRLCK, flock));
  EXPECT_DONE(two.set(F_UNLCK, flock));
  EXPECT_DONE(one.set(F_WRLCK, flock));
}

// With one thread, so that a wait which kept it would stop everything.
void a_wait_delays_nobody(const TempTree& tree, std::vector<std::string> arguments, bool flock) {
  arguments.emplace_back("--thread-pool-size=1");
  Side one(tree, arguments);
  Side two(tree, arguments);
  EXPECT_DONE(one.set(F_WRLCK, flock));
  const std::uint32_t waiting = two.wait(F_WRLCK, flock);
  EXPECT_DONE(two.vm->getattr(two.node));
  EXPECT_EQ(GET(two.vm->write(two.node, two.handle, 0, "served")), 6U);
  EXPECT_FALSE(two.vm->done(waiting));
  EXPECT_DONE(one.set(F_UNLCK, flock));
  EXPECT_EQ(two.vm->finish(waiting).error, 0);
  EXPECT_REFUSED(EAGAIN, one.set(F_WRLCK, flock));
}

void hanging_up_lets_go(const TempTree& tree, const std::vector<std::string>& arguments,
                        bool flock) {
  Side stays(tree, arguments);
  std::uint32_t waiting = 0;
  {
    Side leaves(tree, arguments);
    EXPECT_DONE(leaves.set(F_WRLCK, flock));
    waiting = stays.wait(F_WRLCK, flock);
    EXPECT_DONE(stays.vm->getattr(stays.node));
    EXPECT_FALSE(stays.vm->done(waiting));
  }
  EXPECT_EQ(stays.vm->finish(waiting).error, 0);
}

// One that waits is cancelled by its own VMM's going: the daemon leaves (~Vm
// looks) and what it waited for is nobody's.
void hanging_up_ends_a_wait(const TempTree& tree, const std::vector<std::string>& arguments,
                            bool flock) {
  Side holds(tree, arguments);
  EXPECT_DONE(holds.set(F_WRLCK, flock));
  {
    Side waits(tree, arguments);
    waits.wait(F_WRLCK, flock);
    EXPECT_DONE(waits.vm->getattr(waits.node));
  }
  EXPECT_DONE(holds.set(F_UNLCK, flock));
  Side other(tree, arguments);
  EXPECT_DONE(other.set(F_WRLCK, flock));
}

class LockRow : public Row {
 protected:
  void SetUp() override {
    Row::SetUp();
    if (!IsSkipped()) tree().write("file", std::string(100, 'x'));
  }
  std::string path() const { return tree().path("file"); }
};

class S7_flock : public LockRow {
 protected:
  const std::vector<std::string> on_{"-o", "flock"};
};
class S8_posix_lock : public LockRow {};

// ---- S7: -o flock|no_flock, default no_flock ----

TEST_F(S7_flock, IsOffUnlessAskedFor) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{}, {"-o", "no_flock"}, {"-o", "flock,no_flock"}, {"--no-flock"}}) {
    Side side(tree(), arguments);
    EXPECT_FALSE(side.vm->has(FUSE_FLOCK_LOCKS));
    // Says "keep them to yourself".
    EXPECT_REFUSED(ENOSYS, side.set(F_WRLCK, true));
  }
  Side side(tree(), on_);
  EXPECT_TRUE(side.vm->has(FUSE_FLOCK_LOCKS));
}

TEST_F(S7_flock, GuestsExcludeEachOther) {
  guests_exclude_each_other(tree(), on_, true);
}

TEST_F(S7_flock, TheHostAndAGuestExcludeEachOther) {
  Side guest(tree(), on_);
  const HostFile host(path());
  EXPECT_DONE(guest.set(F_WRLCK, true));
  EXPECT_EQ(host.flock(LOCK_SH), EWOULDBLOCK);
  EXPECT_DONE(guest.set(F_UNLCK, true));
  EXPECT_EQ(host.flock(LOCK_EX), 0);
  EXPECT_REFUSED(EAGAIN, guest.set(F_RDLCK, true));
  const std::uint32_t waiting = guest.wait(F_WRLCK, true);
  EXPECT_DONE(guest.vm->getattr(guest.node));
  EXPECT_FALSE(guest.vm->done(waiting));
  EXPECT_EQ(host.flock(LOCK_UN), 0);
  EXPECT_EQ(guest.vm->finish(waiting).error, 0);
  EXPECT_EQ(host.flock(LOCK_SH), EWOULDBLOCK);
}

TEST_F(S7_flock, WorksOnFilesOpenForReadingOnly) {
  tree().chmod("file", 0444);
  Side one(tree(), on_, O_RDONLY);
  Side two(tree(), on_, O_RDONLY);
  EXPECT_DONE(one.set(F_WRLCK, true));
  EXPECT_REFUSED(EAGAIN, two.set(F_WRLCK, true));
}

TEST_F(S7_flock, EndsWithTheOpenFile) {
  Side one(tree(), on_);
  Side two(tree(), on_);
  EXPECT_DONE(one.set(F_WRLCK, true));
  EXPECT_DONE(one.vm->flush(one.node, one.handle, kAnn));
  EXPECT_REFUSED(EAGAIN, two.set(F_WRLCK, true));
  EXPECT_DONE(one.vm->release(one.node, one.handle, FUSE_RELEASE_FLOCK_UNLOCK, kAnn));
  EXPECT_DONE(two.set(F_WRLCK, true));
}

TEST_F(S7_flock, AWaitDelaysNobody) {
  a_wait_delays_nobody(tree(), on_, true);
}

TEST_F(S7_flock, HangingUpLetsGo) {
  hanging_up_lets_go(tree(), on_, true);
}

TEST_F(S7_flock, HangingUpEndsAWait) {
  hanging_up_ends_a_wait(tree(), on_, true);
}

// ---- S8: -o posix_lock|no_posix_lock, default posix_lock ----

TEST_F(S8_posix_lock, IsOnUnlessTurnedOff) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{}, {"-o", "posix_lock"}, {"-o", "no_posix_lock,posix_lock"}}) {
    Side side(tree(), arguments);
    EXPECT_TRUE(side.vm->has(FUSE_POSIX_LOCKS));
    EXPECT_DONE(side.set(F_WRLCK, false));
  }
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"-o", "no_posix_lock"}, {"--no-posix-lock"}}) {
    Side side(tree(), arguments);
    EXPECT_FALSE(side.vm->has(FUSE_POSIX_LOCKS));
    EXPECT_REFUSED(ENOSYS, side.set(F_WRLCK, false));
  }
}

TEST_F(S8_posix_lock, GuestsExcludeEachOther) {
  guests_exclude_each_other(tree(), {}, false);
}

TEST_F(S8_posix_lock, TheHostAndAGuestExcludeEachOther) {
  Side guest(tree(), {});
  const HostFile host(path());
  EXPECT_DONE(guest.set(F_WRLCK, false));
  EXPECT_EQ(host.record(F_RDLCK), EAGAIN);
  EXPECT_DONE(guest.set(F_UNLCK, false));
  EXPECT_EQ(host.record(F_WRLCK), 0);
  EXPECT_REFUSED(EAGAIN, guest.set(F_RDLCK, false));
  // Of a holder elsewhere the guest is told the range but no process of its own.
  const fuse_file_lock found = GET(guest.vm->getlk(guest.node, guest.handle, kAnn, whole(F_WRLCK)));
  EXPECT_EQ(found.type, unsigned{F_WRLCK});
  EXPECT_EQ(found.pid, 0U);
  const std::uint32_t waiting = guest.wait(F_WRLCK, false);
  EXPECT_DONE(guest.vm->getattr(guest.node));
  EXPECT_FALSE(guest.vm->done(waiting));
  EXPECT_EQ(host.record(F_UNLCK), 0);
  EXPECT_EQ(guest.vm->finish(waiting).error, 0);
  EXPECT_EQ(host.record(F_RDLCK), EAGAIN);
}

TEST_F(S8_posix_lock, WorksOnReadOnlyFiles) {
  tree().chmod("file", 0444);
  Side one(tree(), {}, O_RDONLY);
  Side two(tree(), {"--readonly"}, O_RDONLY);
  EXPECT_DONE(one.set(F_RDLCK, false));
  EXPECT_DONE(two.set(F_RDLCK, false));
  EXPECT_REFUSED(EBADF, one.set(F_WRLCK, false));
  const HostFile host(path());
  EXPECT_EQ(host.record(F_WRLCK), EAGAIN);
}

TEST_F(S8_posix_lock, EndsWithTheFlushOfItsOwner) {
  Side one(tree(), {});
  Side two(tree(), {});
  EXPECT_DONE(one.set(F_WRLCK, false, kAnn));
  EXPECT_DONE(one.vm->flush(one.node, one.handle, kBob));
  EXPECT_REFUSED(EAGAIN, two.set(F_WRLCK, false));
  EXPECT_DONE(one.vm->flush(one.node, one.handle, kAnn));
  EXPECT_DONE(two.set(F_WRLCK, false));
}

TEST_F(S8_posix_lock, AWaitDelaysNobody) {
  a_wait_delays_nobody(tree(), {}, false);
}

TEST_F(S8_posix_lock, HangingUpLetsGo) {
  hanging_up_lets_go(tree(), {}, false);
}

TEST_F(S8_posix_lock, HangingUpEndsAWait) {
  hanging_up_ends_a_wait(tree(), {}, false);
}

// Else a guest's waiting processes would stop everybody else's requests.
TEST_F(S8_posix_lock, WaitersNeverFillTheRing) {
  Side holds(tree(), {});
  EXPECT_DONE(holds.set(F_WRLCK, false));
  constexpr unsigned kMany = 32;
  Side waits(tree(), {}, O_RDWR, {.ring_size = 32, .indirect = true, .slots = kMany});
  std::vector<std::uint32_t> slots;
  unsigned refused = 0;
  for (unsigned i = 0; i < kMany - 1; ++i) {
    slots.push_back(waits.wait(F_WRLCK, false, 100 + i));
    // Served one after another, so the answer tells that the last one waits or was refused.
    EXPECT_DONE(waits.vm->getattr(waits.node));
    if (waits.vm->done(slots.back())) {
      EXPECT_EQ(waits.vm->finish(slots.back()).error, ENOLCK);
      slots.pop_back();
      ++refused;
    }
  }
  EXPECT_GT(refused, 0U);
  EXPECT_LE(slots.size(), 16U) << "half of the ring is for others";
  EXPECT_GE(slots.size(), 4U);
}

}  // namespace
}  // namespace virtiofsd::guest
