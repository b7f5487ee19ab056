// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Workers that die: the next one goes on, and the guest doesn't notice.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <set>
#include <thread>

#include "tests/device/succession_fixture.h"

namespace virtiofsd::guest {
namespace {

using std::chrono::seconds;

class Succession : public SuccessionFixture {};
INSTANTIATE_DEVICE_TEST(Succession);

TEST_P(Succession, NodesAndOpenFilesStayWhatTheyWere) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  tree().write("gone", "deleted");
  const std::uint64_t file = node("file");
  const std::uint64_t gone = node("gone");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const std::uint64_t orphan = GET(fuse().open(gone, O_RDWR)).fh;
  EXPECT_DONE(fuse().unlink(kRoot, "gone"));
  const fuse_attr before = GET(fuse().getattr(file));
  for (const int number : {SIGKILL, SIGABRT, SIGSYS}) {  // none that sanitizers catch
    KILL_WORKER(number);
    EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
    EXPECT_EQ(GET(fuse().read(gone, orphan, 0, 10)), "deleted");
    EXPECT_EQ(GET(fuse().getattr(file)).ino, before.ino);
    EXPECT_EQ(GET(fuse().getattr(gone, orphan)).nlink, 0U);
    EXPECT_EQ(node("file"), file) << "the same node";
    EXPECT_EQ(GET(fuse().lookup(kRoot, "gone")).nodeid, 0U);
  }
  EXPECT_EQ(GET(fuse().write(file, handle, 6, " out")), 4U);
  EXPECT_EQ(tree().read("file"), "inside out");
  EXPECT_DONE(fuse().release(file, handle));
  EXPECT_REFUSED(EBADF, fuse().read(file, handle, 0, 10));
}

TEST_P(Succession, AListingGoesOn) {
  start_up();
  if (HasFatalFailure()) return;
  for (int i = 0; i < 500; ++i) tree().write("f" + std::to_string(i), "");
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  std::set<std::string> seen;
  std::uint64_t cookie = 0;
  for (int round = 0; round < 100; ++round) {
    const auto entries = GET(fuse().readdir(kRoot, handle, cookie, 4096));
    if (entries.empty()) break;
    for (const auto& entry : entries) {
      EXPECT_TRUE(seen.insert(entry.name).second) << entry.name << " twice";
      cookie = entry.offset;
    }
    if (round < 3) KILL_WORKER();
  }
  EXPECT_EQ(seen.size(), 502U);
}

TEST_P(Succession, LocksStayAndAreStillTheirOwners) {
  start_up({"-o", "posix_lock,flock"});
  if (HasFatalFailure()) return;
  tree().write("file", std::string(100, 'x'));
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file, handle, 1, lock(F_WRLCK, 0, 9)));
  EXPECT_DONE(fuse().setlk(file, handle, 2, lock(F_WRLCK, 20, 29)));
  const auto waiting = fuse().begin_setlkw(file, handle, 3, lock(F_WRLCK, 0, 5));
  ASSERT_TRUE(waiting);
  EXPECT_DONE(fuse().getattr(file));
  KILL_WORKER();
  const UniqueFd host{::open(tree().path("file").c_str(), O_RDWR | O_CLOEXEC)};
  const auto host_lock = [&](off_t at) {
    struct flock asked {};
    asked.l_type = F_WRLCK;
    asked.l_start = at;
    asked.l_len = 1;
    return ::fcntl(host.number(), F_OFD_SETLK, &asked);
  };
  EXPECT_EQ(host_lock(7), -1) << "the first's";
  EXPECT_EQ(host_lock(25), -1) << "the second's";
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file, handle, 2, lock(F_WRLCK, 5, 5)));
  EXPECT_FALSE(fuse().done(*waiting));
  EXPECT_DONE(fuse().setlk(file, handle, 1, lock(F_UNLCK, 0, 9)));
  EXPECT_EQ(fuse().finish(*waiting).error, 0) << "who waited has it now";
  EXPECT_EQ(host_lock(3), -1) << "the third's";
  EXPECT_EQ(host_lock(7), 0);
  EXPECT_DONE(fuse().flush(file, handle, 3));
  EXPECT_DONE(fuse().flush(file, handle, 2));
  EXPECT_EQ(host_lock(3), 0);
  EXPECT_EQ(host_lock(25), 0);
}

TEST_P(Succession, ForgettingCountsOn) {
  start_up({"--inode-descriptors=20"});
  if (HasFatalFailure()) return;
  std::vector<std::uint64_t> nodes;
  for (int i = 0; i < 300; ++i) {
    const std::string name = "f" + std::to_string(i);
    tree().write(name, name);
    nodes.push_back(node(name));
    EXPECT_EQ(node(name), nodes.back());
  }
  KILL_WORKER();
  for (const std::uint64_t one : nodes) fuse().forget(one, 1);
  KILL_WORKER();
  for (int i = 0; i < 300; ++i) {
    EXPECT_DONE(fuse().getattr(nodes[static_cast<std::size_t>(i)]));
    fuse().forget(nodes[static_cast<std::size_t>(i)], 1);
  }
  // The queue for what is forgotten is another one: it may take a moment.
  const Deadline deadline = within(seconds(10));
  for (const std::uint64_t one : nodes) {
    while (fuse().getattr(one)) ASSERT_LT(std::chrono::steady_clock::now(), deadline);
  }
}

// Whatever was being done at each of the deaths.
TEST_P(Succession, ManyDeathsUnderWork) {
  start_up({"-o", "xattr"});
  if (HasFatalFailure()) return;
  await_end_of_message(worker());
  if (HasFatalFailure()) return;
  std::atomic<bool> enough{false};
  std::atomic<int> deaths{0};
  std::thread killer([&] {
    while (!enough) {
      const pid_t now = worker();
      if (now > 0 && ::kill(now, SIGKILL) == 0) ++deaths;
      ::usleep(30'000 + 7'000U * (static_cast<unsigned>(deaths) % 5));
      if (deaths >= 40) break;  // fewer than are taken for too many
    }
  });
  int rounds = 0;
  for (const Deadline end = within(seconds(2)); std::chrono::steady_clock::now() < end; ++rounds) {
    const std::string name = "n" + std::to_string(rounds);
    const auto made = fuse().create(kRoot, name, O_RDWR | O_EXCL, 0600);
    EXPECT_EQ(outcome(made), Outcome{0}) << "CREATE " << rounds;
    if (!made) break;
    const std::uint64_t file = made->entry.nodeid;
    EXPECT_EQ(GET(fuse().write(file, made->open.fh, 0, name)), name.size());
    EXPECT_EQ(GET(fuse().read(file, made->open.fh, 0, 20)), name);
    EXPECT_DONE(fuse().release(file, made->open.fh));
    EXPECT_DONE(fuse().rename(kRoot, name, kRoot, name + "r"));
    EXPECT_EQ(GET(fuse().lookup(kRoot, name + "r")).nodeid, file) << rounds;
    EXPECT_DONE(fuse().link(file, kRoot, name + "l"));
    EXPECT_DONE(fuse().symlink(kRoot, name + "s", name));
    EXPECT_DONE(fuse().mkdir(kRoot, name + "d", 0700));
    EXPECT_DONE(fuse().setxattr(file, "user.x", name));
    EXPECT_DONE(fuse().unlink(kRoot, name + "r"));
    EXPECT_DONE(fuse().unlink(kRoot, name + "l"));
    EXPECT_DONE(fuse().unlink(kRoot, name + "s"));
    EXPECT_DONE(fuse().rmdir(kRoot, name + "d"));
    fuse().forget(file, 3);
    if (HasFailure()) break;
  }
  enough = true;
  killer.join();
  EXPECT_GE(deaths, 10) << rounds;
  EXPECT_TRUE(GET(fuse().list(kRoot)).size() <= 2) << "all names that were made are gone";
}

TEST_P(Succession, NothingIsLeftBehindByTheDead) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const auto descriptors = [&] {
    EXPECT_DONE(fuse().getattr(file));
    return daemon().usage().descriptors;
  };
  KILL_WORKER();
  const std::uint64_t before = descriptors();
  for (int i = 0; i < 10; ++i) KILL_WORKER();
  EXPECT_LE(descriptors(), before + 4);
  EXPECT_DONE(fuse().release(file, handle));
}

TEST_P(Succession, TheConversationGoesOn) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  KILL_WORKER();
  for (const unsigned queue : {1U, 0U}) {
    ASSERT_OK(vmm().stop_queue(queue));
    ASSERT_OK(vmm().start_queue(queue));
  }
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  KILL_WORKER();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  ASSERT_OK(vmm().share_memory());
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  KILL_WORKER();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
}

TEST_P(Succession, AGuestThatStartsAgainFindsAFreshFileSystem) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  KILL_WORKER();
  EXPECT_DONE(fuse().destroy());
  ASSERT_TRUE(fuse().init());
  EXPECT_REFUSED(EBADF, fuse().read(file, handle, 0, 10));
  const std::uint64_t again = node("file");
  KILL_WORKER();
  EXPECT_DONE(fuse().getattr(again));
}

TEST_P(Succession, WorkersThatKeepFailingEndTheDaemonWithAClearLastLine) {
  start_up();
  if (HasFatalFailure()) return;
  expect_exit(false);
  const Deadline deadline = within(seconds(20));
  while (daemon().running()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    const pid_t now = worker();
    if (now > 0 && is_between_messages(now)) ::kill(now, SIGABRT);
    ::usleep(5000);
  }
  const std::string said = daemon().output();
  EXPECT_NE(said.find("workers die too often to go on"), std::string::npos) << said;
  EXPECT_NE(said.find("the guest has lost its file system"), std::string::npos) << said;
}

}  // namespace
}  // namespace virtiofsd::guest
