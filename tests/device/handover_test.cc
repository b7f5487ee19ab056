// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One daemon goes on for another one, and the guest doesn't notice; or it can't, and the other one
// goes on itself.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "tests/device/succession_fixture.h"

namespace virtiofsd::guest {
namespace {

using std::chrono::seconds;

class Handover : public SuccessionFixture {
 protected:
  void TearDown() override {
    SuccessionFixture::TearDown();
    before_.clear();  // they have the socket's directory
  }

  // The next daemon, told to take over from the one that serves.
  std::unique_ptr<DaemonProcess> next(std::vector<std::string> arguments = {},
                                      const std::string& directory = {}) {
    arguments.push_back("--take-over=" + std::to_string(daemon().pid()));
    DaemonOptions options;
    options.shared_directory = directory.empty() ? tree_.root() : directory;
    options.arguments = std::move(arguments);
    options.socket_path = daemon().socket_path();
    options.connect = false;
    auto started = DaemonProcess::start(std::move(options));
    EXPECT_TRUE(started) << started.error().text();
    return started ? std::move(started).value() : nullptr;
  }
  void hand_over(std::vector<std::string> arguments = {}) {
    auto heir = next(std::move(arguments));
    ASSERT_TRUE(heir);
    const auto status = daemon().wait(within(seconds(10)));
    ASSERT_TRUE(status) << daemon().output() << heir->output();
    ASSERT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0)
        << *status << daemon().output() << heir->output();
    before_.push_back(std::move(daemon_));
    daemon_ = std::move(heir);
    await_pid_file();
  }
  // The next thing it does.
  void await_pid_file() const {
    const Deadline deadline = within(seconds(10));
    while (slurp(pid_file()) != std::to_string(daemon_->pid()))
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << daemon_->output();
  }
  // It says why, and the one that serves goes on.
  void expect_refusal(std::unique_ptr<DaemonProcess> heir, const std::string& why) {
    ASSERT_TRUE(heir);
    const auto status = heir->wait(within(seconds(10)));
    ASSERT_TRUE(status) << heir->output();
    EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 1) << *status;
    EXPECT_NE(heir->output().find(why), std::string::npos) << heir->output();
    EXPECT_TRUE(daemon().running());
  }
  std::string pid_file() const { return daemon_->socket_path() + ".pid"; }
  static std::string slurp(const std::string& path) {
    std::ifstream file(path);
    std::string text;
    std::getline(file, text);
    return text;
  }

  std::vector<std::unique_ptr<DaemonProcess>> before_;
};
INSTANTIATE_DEVICE_TEST(Handover);

#define HAND_OVER(...)             \
  do {                             \
    hand_over(__VA_ARGS__);        \
    if (HasFatalFailure()) return; \
  } while (false)

TEST_P(Handover, NodesAndOpenFilesStayWhatTheyWere) {
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
  for (int times = 0; times < 3; ++times) {
    HAND_OVER();
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

TEST_P(Handover, SocketAndPidFileAreTheNextOnes) {
  start_up();
  if (HasFatalFailure()) return;
  const std::string socket = daemon().socket_path();
  HAND_OVER();
  EXPECT_DONE(fuse().getattr(kRoot));
  EXPECT_EQ(slurp(pid_file()), std::to_string(daemon().pid()));
  EXPECT_EQ(::access(socket.c_str(), F_OK), 0);
  vmm().close();
  const auto status = daemon().wait(within(seconds(10)));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0);
  EXPECT_NE(::access(socket.c_str(), F_OK), 0) << "removed at the end";
  EXPECT_NE(::access((socket + ".pid").c_str(), F_OK), 0);
}

TEST_P(Handover, TheVmmGoesOnToo) {
  start_up();
  if (HasFatalFailure()) return;
  HAND_OVER();
  EXPECT_TRUE(vmm().ask_u64(kGetQueueNum));
  EXPECT_DONE(fuse().getattr(kRoot));
}

TEST_P(Handover, LocksStayAndWhoWaitsWaitsOn) {
  start_up({"-o", "posix_lock,flock"});
  if (HasFatalFailure()) return;
  tree().write("file", std::string(100, 'x'));
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_DONE(fuse().setlk(file, handle, 1, lock(F_WRLCK, 0, 9)));
  const auto waiting = fuse().begin_setlkw(file, handle, 3, lock(F_WRLCK, 0, 5));
  ASSERT_TRUE(waiting);
  EXPECT_DONE(fuse().getattr(file));
  HAND_OVER({"-o", "posix_lock,flock"});
  const UniqueFd host{::open(tree().path("file").c_str(), O_RDWR | O_CLOEXEC)};
  struct flock asked {};
  asked.l_type = F_WRLCK;
  asked.l_start = 7;
  asked.l_len = 1;
  EXPECT_EQ(::fcntl(host.number(), F_OFD_SETLK, &asked), -1) << "the first's";
  EXPECT_REFUSED(EAGAIN, fuse().setlk(file, handle, 2, lock(F_WRLCK, 5, 5)));
  EXPECT_FALSE(fuse().done(*waiting));
  EXPECT_DONE(fuse().setlk(file, handle, 1, lock(F_UNLCK, 0, 9)));
  EXPECT_EQ(fuse().finish(*waiting).error, 0) << "who waited has it now";
}

TEST_P(Handover, AWorkerOfTheNextOneMayDie) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  HAND_OVER();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  KILL_WORKER();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  HAND_OVER();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  EXPECT_EQ(node("file"), file);
}

// In its sandbox the next one has a mount namespace of its own.
TEST_P(Handover, WhatIsMountedInTheShareIsStillThere) {
  tree().mkdir("deep");
  tree().mkdir("deep/mounted");
  const std::string place = tree().path("deep/mounted");
  ASSERT_EQ(::mount("none", place.c_str(), "tmpfs", 0, nullptr), 0);
  struct Unmount {
    std::string path;
    ~Unmount() { ::umount2(path.c_str(), MNT_DETACH); }
  } unmount{place};
  start_up();
  if (HasFatalFailure()) return;
  tree().write("deep/mounted/file", "below");
  tree().write("deep/beside", "beside");
  const std::uint64_t deep = node("deep");
  const std::uint64_t mounted = node("deep/mounted");
  const std::uint64_t file = node("deep/mounted/file");
  const std::uint64_t listing = GET(fuse().opendir(deep)).fh;
  for (int times = 0; times < 2; ++times) {
    HAND_OVER();
    EXPECT_EQ(node("deep/mounted"), mounted);
    EXPECT_EQ(node("deep/mounted/file"), file);
    EXPECT_EQ(node("deep"), deep);
    EXPECT_EQ(GET(fuse().getattr(file)).size, 5U);
    const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
    EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "below");
    EXPECT_DONE(fuse().release(file, handle));
    EXPECT_EQ(GET(fuse().readdir(deep, listing, 0, 4096)).size(), 4U);
  }
}

TEST_P(Handover, ManyNodesAreMovedOver) {
  start_up();
  if (HasFatalFailure()) return;
  for (const char* name : {"a", "a/b", "a/b/c"}) tree().mkdir(name);
  std::vector<std::uint64_t> nodes;
  std::vector<std::uint64_t> handles;
  for (int i = 0; i < 300; ++i) {
    const std::string name = "a/b/c/f" + std::to_string(i);
    tree().write(name, name);
    nodes.push_back(node(name));
    handles.push_back(GET(fuse().open(nodes.back(), O_RDWR)).fh);
  }
  const std::uint64_t descriptors = daemon().usage().descriptors;
  HAND_OVER();
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const std::string name = "a/b/c/f" + std::to_string(i);
    EXPECT_EQ(GET(fuse().read(nodes[i], handles[i], 0, 100)), name);
    EXPECT_DONE(fuse().release(nodes[i], handles[i]));
    EXPECT_EQ(node(name), nodes[i]);
  }
  HAND_OVER();
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    EXPECT_EQ(GET(fuse().getattr(nodes[i])).size, ("a/b/c/f" + std::to_string(i)).size());
    EXPECT_REFUSED(EBADF, fuse().read(nodes[i], handles[i], 0, 100));
  }
  EXPECT_LE(daemon().usage().descriptors, descriptors);
}

TEST_P(Handover, UnderWork) {
  start_up({"-o", "xattr"});
  if (HasFatalFailure()) return;
  std::atomic<bool> enough{false};
  std::atomic<int> rounds{0};
  std::thread guest([&] {
    for (; !enough && !HasFailure(); ++rounds) {
      const std::string name = "n" + std::to_string(rounds % 7);
      const auto made = GET(fuse().create(kRoot, name, O_RDWR | O_EXCL, 0644));
      EXPECT_EQ(GET(fuse().write(made.entry.nodeid, made.open.fh, 0, name)), name.size());
      EXPECT_DONE(fuse().rename(kRoot, name, kRoot, name + "x"));
      EXPECT_EQ(GET(fuse().read(made.entry.nodeid, made.open.fh, 0, 10)), name);
      EXPECT_DONE(fuse().unlink(kRoot, name + "x"));
      EXPECT_DONE(fuse().release(made.entry.nodeid, made.open.fh));
      fuse().forget(made.entry.nodeid, 1);
    }
  });
  int rounds_before = 0;
  for (int times = 0; times < 10 && !HasFailure(); ++times) {
    hand_over({"-o", "xattr"});
    // It serves by now, or will.
    rounds_before = rounds;
    while (rounds < rounds_before + 10 && !HasFailure()) std::this_thread::yield();
  }
  enough = true;
  guest.join();
}

TEST_P(Handover, InEverySandbox) {
  for (const char* mode : {"--sandbox=none", "--sandbox=chroot", "--sandbox=namespace"}) {
    start_up({mode});
    if (HasFatalFailure()) return;
    tree().write("file", "inside");
    const std::uint64_t file = node("file");
    const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
    for (int times = 0; times < 3; ++times) {
      HAND_OVER({mode});
      EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside") << mode;
      EXPECT_EQ(node("file"), file);
      KILL_WORKER();
      EXPECT_EQ(GET(fuse().create(kRoot, "new", O_RDWR, 0644)).entry.attr.size, 0U);
      EXPECT_DONE(fuse().unlink(kRoot, "new"));
    }
    // A root in another mount namespace would be enclosed by neither sandbox.
    const bool is_namespace = std::string_view{mode} == "--sandbox=namespace";
    expect_refusal(next({is_namespace ? "--sandbox=none" : "--sandbox=namespace"}), mode + 2);
    vmm().close();
    ASSERT_TRUE(daemon().wait(within(seconds(10))));
  }
}

TEST_P(Handover, ARequestThatTakesLongIsNotCutShort) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  tree().write("other", "other");
  const std::uint64_t file = node("file");
  const std::uint64_t other = node("other");
  // Whoever opens it waits until the lease is given up (fcntl(2), F_SETLEASE).
  ::signal(SIGIO, SIG_IGN);
  UniqueFd lease{::open(tree().path("file").c_str(), O_RDWR | O_CLOEXEC)};
  ASSERT_EQ(::fcntl(lease.number(), F_SETLEASE, F_WRLCK), 0);
  fuse_setattr_in shorter{};
  shorter.valid = FATTR_SIZE;
  shorter.size = 3;
  const auto waiting = fuse().begin(FUSE_SETATTR, file, {std::as_bytes(std::span{&shorter, 1})},
                                    sizeof(fuse_attr_out));
  ASSERT_TRUE(waiting);
  ::usleep(50'000);
  if (fuse().done(*waiting)) GTEST_SKIP() << "this kernel doesn't wait";
  auto heir = next();
  EXPECT_FALSE(heir->wait(within(std::chrono::milliseconds(500)))) << heir->output();
  EXPECT_EQ(GET(fuse().getattr(other)).size, 5U) << "others are served meanwhile";
  expect_refusal(std::move(heir), "something takes long");
  EXPECT_FALSE(fuse().done(*waiting));
  EXPECT_EQ(GET(fuse().getattr(other)).size, 5U);
  lease.reset();
  EXPECT_EQ(fuse().finish(*waiting).error, 0);
  HAND_OVER();
  EXPECT_EQ(GET(fuse().getattr(file)).size, 3U);
}

TEST_P(Handover, TwoAtOnceGetItOneAfterTheOther) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  for (int times = 0; times < 5; ++times) {
    auto one = next();
    auto other = next();
    ASSERT_TRUE(one && other);
    ASSERT_TRUE(daemon().wait(within(seconds(10))));
    // The other one has been told that nobody is there, in one way or another.
    const auto is_over = [](DaemonProcess& heir) {
      return heir.wait(within(seconds(0))).has_value();
    };
    const Deadline deadline = within(seconds(10));
    while (!is_over(*one) && !is_over(*other)) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      ::usleep(1000);
    }
    ASSERT_NE(is_over(*one), is_over(*other)) << one->output() << other->output();
    before_.push_back(std::move(daemon_));
    daemon_ = std::move(is_over(*one) ? other : one);
    await_pid_file();
    EXPECT_EQ(GET(fuse().getattr(file)).size, 6U);
  }
}

TEST_P(Handover, TheNextClientComesToTheNextOne) {
  start_up({"--keep-listening"});
  if (HasFatalFailure()) return;
  expect_exit(false);
  tree().write("file", "inside");
  for (int times = 0; times < 2; ++times) {
    HAND_OVER({"--keep-listening"});
    EXPECT_EQ(GET(fuse().getattr(node("file"))).size, 6U);
    COME_ANEW();
    KILL_WORKER();
    EXPECT_EQ(GET(fuse().getattr(node("file"))).size, 6U);
    COME_ANEW();
  }
  expect_refusal(next(), "keep-listening=on");
  EXPECT_EQ(GET(fuse().getattr(node("file"))).size, 6U);
}

// The kernel knows a file without a name by its mount.
TEST_P(Handover, AFileWithoutANameCanStillGetOne) {
  start_up();
  if (HasFatalFailure()) return;
  const auto made = GET(fuse().tmpfile(kRoot, O_RDWR, 0644));
  EXPECT_EQ(GET(fuse().write(made.entry.nodeid, made.open.fh, 0, "text")), 4U);
  HAND_OVER();
  EXPECT_DONE(fuse().link(made.entry.nodeid, kRoot, "named"));
  EXPECT_EQ(tree().read("named"), "text");
}

TEST_P(Handover, AServiceManagerIsToldWhichProcessItIs) {
  start_up();
  if (HasFatalFailure()) return;
  const TempTree place;
  const std::string path = place.path("notify");
  const UniqueFd manager{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  ASSERT_EQ(
      ::bind(manager.number(), static_cast<const sockaddr*>(static_cast<const void*>(&address)),
             sizeof(address)),
      0);
  ::setenv("NOTIFY_SOCKET", path.c_str(), 1);
  hand_over();
  ::unsetenv("NOTIFY_SOCKET");
  if (HasFatalFailure()) return;
  std::string told;
  std::array<char, 1000> buffer{};
  const Deadline deadline = within(seconds(10));
  while (told.find("READY=1") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << told;
    const ssize_t size = ::recv(manager.number(), buffer.data(), buffer.size(), 0);
    if (size > 0) told.append(buffer.data(), static_cast<std::size_t>(size)).append("|");
  }
  const std::string mine = "MAINPID=" + std::to_string(daemon().pid());
  EXPECT_EQ(told.find(mine + "|"), 0U) << "before the other one ends: " << told;
  EXPECT_NE(told.find("STATUS=Serving"), std::string::npos) << told;
}

TEST_P(Handover, ADeathAndATakeOverAtOnce) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  for (unsigned times = 0; times < 12; ++times) {
    auto heir = next();
    ASSERT_TRUE(heir);
    ::usleep(times * 1500);
    const pid_t dying = worker();
    if (dying > 0) ::kill(dying, SIGKILL);
    // Either it goes on or the other one does.
    while (heir->running() && daemon().running()) ::usleep(1000);
    if (!daemon().running()) {
      before_.push_back(std::move(daemon_));
      daemon_ = std::move(heir);
      await_pid_file();
    }
    EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
    EXPECT_EQ(node("file"), file);
    ASSERT_TRUE(daemon().running()) << daemon().output();
  }
}

// ---- refusals ----------------------------------------------------------------

TEST_P(Handover, AnotherDirectoryOrOtherPromisesAreRefused) {
  start_up({"-o", "posix_lock"});
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  TempTree other;
  expect_refusal(next({}, other.root()), "shared directory");
  expect_refusal(next({"-o", "no_posix_lock,cache=always"}), "cache=auto, posix-lock=on");
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
  EXPECT_EQ(slurp(pid_file()), std::to_string(daemon().pid()));
}

TEST_P(Handover, OneThatDiesMidwayChangesNothing) {
  start_up();
  if (HasFatalFailure()) return;
  tree().write("file", "inside");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  // At whatever it is doing, until one is so late that it has taken over.
  for (unsigned delay = 1; delay < 10000; delay += 1 + delay / 3) {
    auto heir = next();
    ASSERT_TRUE(heir);
    ::usleep(delay * 1000);
    heir->kill();
    // Answered by whoever has it, or by nobody: then the other one had it already.
    if (!vmm().ask_u64(kGetQueueNum)) {
      EXPECT_NE(daemon().output().find("handed over to"), std::string::npos) << daemon().output();
      expect_exit(false);
      front_end_->close();
      return;
    }
    EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
    EXPECT_EQ(node("file"), file);
    EXPECT_EQ(slurp(pid_file()), std::to_string(daemon().pid()));
  }
}

TEST_P(Handover, NeedsSomebodyToTakeOverFrom) {
  start_up();
  if (HasFatalFailure()) return;
  DaemonOptions options;
  options.shared_directory = tree_.root();
  options.arguments = {"--take-over=" + std::to_string(::getpid())};
  options.socket_path = daemon().socket_path();
  options.connect = false;
  auto wrong = DaemonProcess::start(std::move(options));
  ASSERT_TRUE(wrong) << wrong.error().text();
  expect_refusal(std::move(*wrong), "is pid ");
  EXPECT_DONE(fuse().getattr(kRoot));
}

}  // namespace
}  // namespace virtiofsd::guest
