// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A guest moves to another daemon and notices nothing; or it can't, and goes on where it was.
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "tests/device/migration_fixture.h"

namespace virtiofsd::guest {
namespace {

class Migration : public MigrationFixture {};
INSTANTIATE_DEVICE_TEST(Migration);

TEST_P(Migration, NodesAndOpenFilesStayWhatTheyWere) {
  start_up();
  if (HasFatalFailure()) return;
  tree().mkdir("in");
  tree().mkdir("in/deep");
  tree().write("in/deep/file", "inside");
  tree().write("other", "cold");
  const std::uint64_t directory = node("in/deep");
  const std::uint64_t file = node("in/deep/file");
  const std::uint64_t other = node("other");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const std::uint64_t listing = GET(fuse().opendir(directory)).fh;
  const fuse_attr before = GET(fuse().getattr(file));
  for (int times = 0; times < 3; ++times) {
    MIGRATE();
    EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
    EXPECT_EQ(GET(fuse().getattr(file)).ino, before.ino);
    EXPECT_EQ(GET(fuse().getattr(other)).size, 4U);
    EXPECT_EQ(node("in/deep"), directory) << "the same node";
    EXPECT_EQ(node("in/deep/file"), file);
    EXPECT_EQ(node("other"), other);
    EXPECT_EQ(GET(fuse().readdir(directory, listing, 0)).size(), 3U);
  }
  EXPECT_EQ(GET(fuse().write(file, handle, 6, " out")), 4U);
  EXPECT_EQ(tree().read("in/deep/file"), "inside out");
  EXPECT_DONE(fuse().release(file, handle));
  EXPECT_REFUSED(EBADF, fuse().read(file, handle, 0, 10));
  EXPECT_DONE(fuse().releasedir(directory, listing));
}

TEST_P(Migration, AForgottenNodeIsNotGivenAgain) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("a", "");
  tree().write("b", "");
  const std::uint64_t a = node("a");
  fuse().forget(a, 1);
  MIGRATE();
  const std::uint64_t b = node("b");
  EXPECT_NE(b, a);
  EXPECT_REFUSED(ESTALE, fuse().getattr(a));
  fuse().forget(b, 1);
}

TEST_P(Migration, ForgettingGoesOnWhereItWas) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "");
  std::uint64_t file = 0;
  for (int i = 0; i < 3; ++i) file = node("file");
  MIGRATE();
  fuse().forget(file, 2);
  EXPECT_DONE(fuse().getattr(file));
  fuse().forget(file, 1);
  // FORGET has a queue of its own.
  const Deadline deadline = within(std::chrono::seconds(10));
  while (fuse().getattr(file)) ASSERT_LT(std::chrono::steady_clock::now(), deadline);
}

TEST_P(Migration, NamesFollowTheGuestsRenames) {
  start_up();
  if (HasFatalFailure()) return;
  tree().mkdir("from");
  tree().mkdir("to");
  tree().write("from/name", "moved");
  const std::uint64_t file = node("from/name");
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  EXPECT_DONE(fuse().rename(node("from"), "name", node("to"), "other"));
  EXPECT_DONE(fuse().rename(kRoot, "to", node("from"), "in"));
  MIGRATE();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "moved");
  EXPECT_EQ(node("from/in/other"), file);
  EXPECT_EQ(GET(fuse().getattr(file)).size, 5U);
}

TEST_P(Migration, ANameThatTheHostChangedIsFound) {
  start_up();
  if (HasFatalFailure()) return;
  tree().mkdir("unknown");
  const auto [file, handle] = open_new("file", "moved", O_RDONLY);
  std::filesystem::rename(tree().root() + "/file", tree().root() + "/unknown/elsewhere");
  MIGRATE();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "moved");
  EXPECT_EQ(node("unknown/elsewhere"), file);
}

// What took the place of a file that the guest knows isn't that file.
TEST_P(Migration, AnotherFileOfThatNameIsNotTakenForIt) {
  start_up();
  if (HasFatalFailure()) return;
  if (on_overlay()) GTEST_SKIP() << "no birth times here";
  tree().write("file", "first");
  std::this_thread::sleep_for(std::chrono::milliseconds(150));  // known by its name from then on
  const std::uint64_t file = node("file");
  std::filesystem::remove(tree().root() + "/file");
  tree().write("file", "second");
  MIGRATE();
  EXPECT_REFUSED(ESTALE, fuse().getattr(file));
  EXPECT_NE(node("file"), file);
}

TEST_P(Migration, ToACopyOfTheDirectory) {
  start_up();
  if (HasFatalFailure()) return;
  tree().mkdir("in");
  tree().write("in/file", "inside");
  const std::uint64_t file = node("in/file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  TempTree copy;
  copy.mkdir("in");
  copy.write("in/file", "there");
  MIGRATE({}, copy.root());
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "there");
  EXPECT_EQ(node("in/file"), file);
  struct stat st {};
  ASSERT_EQ(::stat((copy.root() + "/in/file").c_str(), &st), 0);
  EXPECT_EQ(GET(fuse().getattr(file)).ino, st.st_ino);
}

TEST_P(Migration, LocksGoAlong) {
  start_up({"-o", "flock"});
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  const std::uint64_t flocked = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  EXPECT_DONE(fuse().setlk(file, handle, 8, lock(F_RDLCK, 8, 9)));
  EXPECT_DONE(fuse().setlk(file, flocked, 7, lock(F_WRLCK), true));
  MIGRATE({"-o", "flock"});
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file, handle, 9, lock(F_WRLCK, 5, 5)));
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file, handle, 9, lock(F_WRLCK, 9, 9)));
  EXPECT_DONE(fuse().setlk(file, handle, 9, lock(F_WRLCK, 6, 7)));
  EXPECT_EQ(GET(fuse().getlk(file, handle, 9, lock(F_WRLCK, 2, 5))).pid, 42U);
  const UniqueFd host{::open((tree().root() + "/file").c_str(), O_RDWR | O_CLOEXEC)};
  EXPECT_EQ(::flock(host.number(), LOCK_SH | LOCK_NB), -1);
  EXPECT_DONE(fuse().release(file, flocked, FUSE_RELEASE_FLOCK_UNLOCK, 7));
  EXPECT_EQ(::flock(host.number(), LOCK_EX | LOCK_NB), 0);
  EXPECT_DONE(fuse().flush(file, handle, 7));
  EXPECT_DONE(fuse().setlk(file, handle, 9, lock(F_WRLCK, 2, 5)));
}

TEST_P(Migration, AGuestThatStaysKeepsItsLocks) {
  start_up({"-o", "flock"});
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  EXPECT_DONE(fuse().setlk(file, handle, 8, lock(F_WRLCK, 8, 9)));
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK), true));
  stop_queues();
  std::uint64_t outcome = 0;
  EXPECT_FALSE(save(outcome).empty());
  EXPECT_EQ(outcome, 0U);
  // They are free meanwhile, for whom the guest was sent to.
  std::atomic<bool> is_locked = false;
  const UniqueFd host{::open((tree().root() + "/file").c_str(), O_RDWR | O_CLOEXEC)};
  struct flock all {};
  all.l_type = F_WRLCK;
  all.l_start = 8;
  EXPECT_EQ(::fcntl(host.number(), F_OFD_SETLK, &all), 0);
  // As by one that is about to end.
  std::thread leaving([&] {
    const UniqueFd other{::open((tree().root() + "/file").c_str(), O_RDWR | O_CLOEXEC)};
    struct flock some {};
    some.l_type = F_WRLCK;
    some.l_start = 2;
    some.l_len = 2;
    EXPECT_EQ(::fcntl(other.number(), F_OFD_SETLK, &some), 0);
    EXPECT_EQ(::flock(other.number(), LOCK_EX | LOCK_NB), 0);
    is_locked = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  });
  while (!is_locked) std::this_thread::yield();
  start_queues();
  leaving.join();
  struct flock seen {};
  seen.l_type = F_WRLCK;
  seen.l_start = 2;
  seen.l_len = 4;
  EXPECT_EQ(::fcntl(host.number(), F_OFD_SETLK, &seen), -1);
  EXPECT_EQ(::flock(host.number(), LOCK_SH | LOCK_NB), -1);
  EXPECT_TRUE(says("others hold 1 of its locks"));
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file, handle, 8, lock(F_WRLCK, 8, 9)));
}

// A guest that waits for a lock must not be told EINTR for it: no signal came.
TEST_P(Migration, AWaitForALockGoesOnAfterAPause) {
  start_up();
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  const auto waiter = fuse().begin_setlkw(file, handle, 8, lock(F_WRLCK, 2, 5));
  ASSERT_TRUE(waiter);
  EXPECT_DONE(fuse().getattr(file));  // it is being served
  for (int times = 0; times < 3; ++times) {
    stop_queues();
    if (HasFatalFailure()) return;
    start_queues();
    if (HasFatalFailure()) return;
    EXPECT_DONE(fuse().getattr(file));
    EXPECT_FALSE(fuse().done(*waiter));
  }
  EXPECT_DONE(fuse().flush(file, handle, 7));
  EXPECT_EQ(fuse().finish(*waiter).error, 0);
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
}

TEST_P(Migration, AWaitForALockGoesOnElsewhere) {
  start_up({"-o", "flock"});
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  const std::uint64_t other = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK), true));
  const auto waiter = fuse().begin_setlkw(file, handle, 8, lock(F_RDLCK, 2, 5));
  ASSERT_TRUE(waiter);
  const auto flocker = fuse().begin_setlkw(file, other, 8, lock(F_WRLCK), true);
  ASSERT_TRUE(flocker);
  EXPECT_DONE(fuse().getattr(file));
  for (int times = 0; times < 2; ++times) {
    MIGRATE({"-o", "flock"});
    EXPECT_DONE(fuse().getattr(file));
    EXPECT_FALSE(fuse().done(*waiter));
    EXPECT_FALSE(fuse().done(*flocker));
  }
  EXPECT_DONE(fuse().flush(file, handle, 7));
  EXPECT_EQ(fuse().finish(*waiter).error, 0);
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_UNLCK), true));
  EXPECT_EQ(fuse().finish(*flocker).error, 0);
}

// In order, answers of what came after it wait for it. They have been served, and must not be
// twice: there the wait ends.
TEST_P(Migration, InOrderAWaitForALockEndsWithTheQueue) {
  vmm_.ring.in_order = true;
  start_up({"--in-order"});
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  const auto waiter = fuse().begin_setlkw(file, handle, 8, lock(F_WRLCK, 2, 5));
  ASSERT_TRUE(waiter);
  const fuse_rename2_in exchange{.newdir = kRoot, .flags = RENAME_EXCHANGE, .padding = 0};
  tree().write("other", "x");
  constexpr std::string_view kNames{"file\0other", 11};
  const auto behind =
      fuse().begin(FUSE_RENAME2, kRoot, {bytes_of(exchange), std::as_bytes(std::span{kNames})}, 0);
  ASSERT_TRUE(behind);
  const Deadline deadline = within(std::chrono::seconds(10));
  while (tree().read("other") != "0123456789")
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
  stop_queues();
  if (HasFatalFailure()) return;
  start_queues();
  EXPECT_EQ(fuse().finish(*waiter).error, EINTR);
  EXPECT_EQ(fuse().finish(*behind).error, 0);
  EXPECT_EQ(tree().read("other"), "0123456789") << "exchanged once";
}

TEST_P(Migration, AWaitForALockCanBeGivenUpElsewhere) {
  start_up();
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  const auto waiter = fuse().begin_setlkw(file, handle, 8, lock(F_RDLCK, 2, 5));
  ASSERT_TRUE(waiter);
  EXPECT_DONE(fuse().getattr(file));
  MIGRATE();
  EXPECT_DONE(fuse().getattr(file));
  fuse().interrupt(fuse().unique_of(*waiter));
  EXPECT_EQ(fuse().finish(*waiter).error, EINTR);
}

// A driver that begins anew gets no answers to what it asked before.
TEST_P(Migration, AResetEndsWhatWasPutOff) {
  start_up();
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  const auto waiter = fuse().begin_setlkw(file, handle, 8, lock(F_RDLCK, 2, 5));
  ASSERT_TRUE(waiter);
  EXPECT_DONE(fuse().getattr(file));
  stop_queues();
  ASSERT_OK(vmm().tell(kResetDevice));
  start_queues();
  EXPECT_TRUE(fuse().init());
  EXPECT_DONE(fuse().getattr(kRoot));
  EXPECT_FALSE(fuse().done(*waiter));
}

TEST_P(Migration, ADeletedOpenFileKeepsTheGuestWhereItIs) {
  start_up();
  if (HasFatalFailure()) return;
  const auto [gone, handle] = open_new("gone", "deleted");
  EXPECT_DONE(fuse().unlink(kRoot, "gone"));
  stop_queues();
  std::uint64_t outcome = 0;
  (void)save(outcome);
  EXPECT_EQ(outcome, std::uint64_t{EIO});
  EXPECT_TRUE(says("it was called 'gone'"));
  EXPECT_TRUE(says("--migration-on-error=guest-error"));
  start_queues();
  EXPECT_EQ(GET(fuse().read(gone, handle, 0, 10)), "deleted");
}

TEST_P(Migration, OrIsLeftBehind) {
  start_up({"--migration-on-error=guest-error"});
  if (HasFatalFailure()) return;
  tree().write("gone", "deleted");
  tree().write("file", "inside");
  const std::uint64_t gone = node("gone");
  const std::uint64_t lost = GET(fuse().open(gone, O_RDWR)).fh;
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_DONE(fuse().unlink(kRoot, "gone"));
  MIGRATE();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  EXPECT_REFUSED(EBADF, fuse().read(gone, lost, 0, 10));
  EXPECT_REFUSED(ESTALE, fuse().getattr(gone));
  fuse().forget(gone, 1);
}

TEST_P(Migration, AFileThatIsMissingThere) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  const std::string state = stop_and_save();
  const TempTree empty;
  connect_to_next(empty.root(), {});
  if (HasFatalFailure()) return;
  EXPECT_EQ(load(state), std::uint64_t{EIO});
  EXPECT_TRUE(says("of the 1 files that the guest knows none is in the shared directory"));
  // The guest may begin anew here.
  go_on();
  EXPECT_REFUSED(EIO, fuse().getattr(file));
  EXPECT_TRUE(fuse().init());
  EXPECT_DONE(fuse().getattr(kRoot));
}

TEST_P(Migration, AFileThatIsMissingThereCanBeDoneWithout) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  tree().write("there", "1");
  const std::uint64_t file = node("file");
  const std::uint64_t there = node("there");
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  TempTree other;
  other.write("there", "22");
  MIGRATE({"--migration-on-error=guest-error"}, other.root());
  EXPECT_REFUSED(ESTALE, fuse().getattr(file));
  EXPECT_REFUSED(EBADF, fuse().read(file, handle, 0, 1));
  EXPECT_EQ(GET(fuse().getattr(there)).size, 2U);
}

TEST_P(Migration, AnOpenFileThatIsMissingThereIsNamed) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  tree().write("there", "1");
  GET(fuse().open(node("file"), O_RDONLY));
  (void)node("there");
  const std::string state = stop_and_save();
  TempTree other;
  other.write("there", "22");
  connect_to_next(other.root(), {});
  if (HasFatalFailure()) return;
  EXPECT_EQ(load(state), std::uint64_t{EIO});
  EXPECT_TRUE(says("'file' isn't in the shared directory as it was"));
}

// The host has taken it away meanwhile, as it rotates logs: the guest looks again.
TEST_P(Migration, AKnownFileThatIsMissingInACopyIsStale) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  tree().write("there", "1");
  const std::uint64_t file = node("file");
  const std::uint64_t there = node("there");
  TempTree copy;
  copy.write("there", "22");
  MIGRATE({}, copy.root());
  EXPECT_REFUSED(ESTALE, fuse().getattr(file));
  EXPECT_EQ(GET(fuse().getattr(there)).size, 2U);
}

// Asked for by LOOKUP of ".", as for a client of an NFS server in the guest.
TEST_P(Migration, WhatTheGuestHasForgottenIsRememberedThere) {
  start_up();
  if (HasFatalFailure()) return;
  if (on_overlay()) GTEST_SKIP() << "no birth times here";
  tree().write("file", "inside");
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  const std::uint64_t file = node("file");
  fuse().forget(file, 1);
  const Deadline deadline = within(std::chrono::seconds(10));
  while (fuse().getattr(file)) ASSERT_LT(std::chrono::steady_clock::now(), deadline);
  MIGRATE();
  EXPECT_REFUSED(ESTALE, fuse().getattr(file));
  EXPECT_EQ(GET(fuse().lookup(file, ".")).nodeid, file);
  EXPECT_EQ(GET(fuse().getattr(file)).size, 6U);
}

TEST_P(Migration, ALockWhoseFileCantBeOpenedThereIsLeftBehind) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "0123456789");
  tree().write("there", "1");
  (void)node("there");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_RDLCK, 2, 5)));
  MIGRATE({"--readonly", "--migration-on-error=guest-error"});
  EXPECT_REFUSED(EBADF, fuse().read(file, handle, 0, 1));
  const UniqueFd host{::open((tree().root() + "/file").c_str(), O_RDWR | O_CLOEXEC)};
  struct flock all {};
  all.l_type = F_WRLCK;
  EXPECT_EQ(::fcntl(host.number(), F_OFD_SETLK, &all), 0);
}

// A worker that dies in between takes up what it had been given.
TEST_P(Migration, TheReceiversWorkerDiesBeforeTheQueuesStart) {
  start_up({"-o", "flock"});
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  const auto waiter = fuse().begin_setlkw(file, handle, 8, lock(F_WRLCK, 2, 5));
  ASSERT_TRUE(waiter);
  EXPECT_DONE(fuse().getattr(file));
  const std::string state = stop_and_save();
  connect_to_next(tree().root(), {"-o", "flock"});
  if (HasFatalFailure()) return;
  ASSERT_EQ(load(state), 0U) << daemon().output();
  ::close(std::exchange(source_, -1));
  ASSERT_OK(vmm().ask_u64(kGetQueueNum));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // between two messages
  const pid_t dies = daemon().tree().back();
  ASSERT_EQ(::kill(dies, SIGKILL), 0);
  go_on();
  if (HasFatalFailure()) return;
  EXPECT_DONE(fuse().getattr(file));
  EXPECT_FALSE(fuse().done(*waiter));
  EXPECT_DONE(fuse().flush(file, handle, 7));
  EXPECT_EQ(fuse().finish(*waiter).error, 0);
}

// And the sender's, while the guest is away: its locks come back when the guest does.
TEST_P(Migration, TheSendersWorkerDiesAndTheGuestStays) {
  start_up({"-o", "flock"});
  if (HasFatalFailure()) return;
  const auto [file, handle] = open_new("file", "0123456789");
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK), true));
  (void)stop_and_save();
  ASSERT_OK(vmm().ask_u64(kGetQueueNum));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  ASSERT_EQ(::kill(daemon().tree().back(), SIGKILL), 0);
  ASSERT_OK(vmm().ask_u64(kGetQueueNum));  // by the next one
  const UniqueFd host{::open((tree().root() + "/file").c_str(), O_RDWR | O_CLOEXEC)};
  EXPECT_EQ(::flock(host.number(), LOCK_SH | LOCK_NB), 0);
  EXPECT_EQ(::flock(host.number(), LOCK_UN), 0);
  start_queues();
  EXPECT_DONE(fuse().getattr(file));
  EXPECT_EQ(::flock(host.number(), LOCK_SH | LOCK_NB), -1);
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file, handle, 8, lock(F_WRLCK, 5, 5)));
}

// A name that is out of date, and means another file in the copy.
TEST_P(Migration, ConfirmedPathsAreNotOutOfDate) {
  for (const bool confirms : {false, true}) {
    start_up(confirms ? std::vector<std::string>{"--migration-confirm-paths"}
                      : std::vector<std::string>{});
    if (HasFatalFailure()) return;
    if (on_overlay()) GTEST_SKIP() << "no birth times here";
    tree().write("file", "first");
    tree().write("there", "1");
    std::this_thread::sleep_for(std::chrono::milliseconds(150));  // known by its name from then on
    const std::uint64_t file = node("file");
    (void)node("there");
    std::filesystem::remove(tree().root() + "/file");
    TempTree copy;
    copy.write("file", "another");
    copy.write("there", "1");
    MIGRATE({}, copy.root());
    if (confirms) {
      EXPECT_REFUSED(ESTALE, fuse().getattr(file));
    } else {
      EXPECT_EQ(GET(fuse().getattr(file)).size, 7U) << "taken for it";
    }
    front_end_->close();
  }
}

TEST_P(Migration, ByFileHandles) {
  start_up({"--migration-mode=file-handles"});
  if (HasFatalFailure()) return;
  if (!says("dac_read_search")) GTEST_SKIP() << "may not open them here: " << daemon().output();
  tree().mkdir("in");
  tree().write("in/file", "inside");
  const std::uint64_t file = node("in/file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  std::filesystem::rename(tree().root() + "/in", tree().root() + "/out");
  const auto [gone, orphan] = open_new("gone", "deleted");
  EXPECT_DONE(fuse().unlink(kRoot, "gone"));
  MIGRATE({"--migration-mode=file-handles"});
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  EXPECT_EQ(node("out/file"), file);
  EXPECT_EQ(GET(fuse().read(gone, orphan, 0, 10)), "deleted") << "no name leads to it";
}

TEST_P(Migration, VerifiedHandlesFindOutCopies) {
  start_up({"--migration-verify-handles", "--migration-confirm-paths"});
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  MIGRATE({"--migration-verify-handles"});
  EXPECT_EQ(GET(fuse().getattr(file)).size, 6U);

  const std::string state = stop_and_save();
  TempTree copy;
  copy.write("file", "inside");
  connect_to_next(copy.root(), {});
  if (HasFatalFailure()) return;
  EXPECT_EQ(load(state), std::uint64_t{EIO});
  EXPECT_TRUE(says("none is in the shared directory"));
}

TEST_P(Migration, TheOtherOneMustOfferWhatTheGuestUses) {
  start_up({"-o", "flock"});
  if (HasFatalFailure()) return;
  const std::string state = stop_and_save();
  connect_to_next(tree().root(), {});
  if (HasFatalFailure()) return;
  EXPECT_EQ(load(state), std::uint64_t{EIO});
  EXPECT_TRUE(says("was started without"));
  EXPECT_TRUE(says("flock"));
}

TEST_P(Migration, BeforeTheGuestHasMounted) {
  start({}, vmm_, false);
  if (HasFatalFailure()) return;
  MIGRATE();
  EXPECT_TRUE(fuse().init());
  EXPECT_DONE(fuse().getattr(kRoot));
}

TEST_P(Migration, NotWhileQueuesRun) {
  start_up();
  if (HasFatalFailure()) return;
  std::uint64_t outcome = 0;
  EXPECT_TRUE(save(outcome).empty());
  EXPECT_EQ(outcome, kNoDescriptor | EBUSY);
  EXPECT_EQ(GET(fuse().getattr(kRoot)).nlink, 2U);
  EXPECT_NE(*vmm().ask_u64(kCheckDeviceState), 0U) << "nothing was begun";
}

TEST_P(Migration, NobodyReadsTheState) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  stop_queues();
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const UniqueFd from{ends[0]};
  UniqueFd to{ends[1]};
  ASSERT_EQ(::fcntl(to.number(), F_SETPIPE_SZ, 4096), 4096);
  ASSERT_EQ(::fcntl(to.number(), F_SETFL, O_NONBLOCK), 0);
  while (::write(to.number(), "x", 1) == 1) {
  }
  const int fds[] = {to.number()};
  ASSERT_EQ(*vmm().ask_u64(kSetDeviceStateFd, bytes_of(Transfer{kSave, 0}), fds), kNoDescriptor);
  // Not sent, and the guest goes on here.
  start_queues();
  EXPECT_EQ(GET(fuse().getattr(file)).size, 6U);
  EXPECT_NE(*vmm().ask_u64(kCheckDeviceState), 0U);
}

TEST_P(Migration, AStateThatIsCutShortOrChangedIsRefused) {
  start_up();
  if (HasFatalFailure()) return;
  tree().mkdir("in");
  tree().write("in/file", "inside");
  const std::uint64_t file = node("in/file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file, handle, 7, lock(F_WRLCK, 2, 5)));
  const std::string state = stop_and_save();
  connect_to_next(tree().root(), {});
  if (HasFatalFailure()) return;
  for (std::size_t size = 0; size < state.size(); size += 5)
    ASSERT_EQ(load(state.substr(0, size)), std::uint64_t{EIO}) << size;
  EXPECT_EQ(load(state + "x"), std::uint64_t{EIO});
  // Each byte changed, on one of the rings: refused, or harmless.
  for (std::size_t at = std::strlen(GetParam().name) % 3; at < state.size(); at += 3) {
    std::string changed = state;
    changed[at] = static_cast<char>(changed[at] ^ 7);
    (void)load(changed);
    ASSERT_TRUE(daemon().running()) << at;
  }
  // The right one still loads.
  ASSERT_EQ(load(state), 0U) << daemon().output();
  go_on();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file, handle, 9, lock(F_WRLCK, 5, 5)));
}

}  // namespace
}  // namespace virtiofsd::guest
