// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The daemon as a process: how it ends, what it holds on to, what it costs,
// and what the host does to the tree meanwhile.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Life : public DeviceFixture {
 protected:
  void SetUp() override {
    if (foreign()) GTEST_SKIP() << "ours";
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
  }
  void expect_end_by(int signal_number) {
    expect_exit(false);
    const auto began = std::chrono::steady_clock::now();
    daemon().signal(signal_number);
    const auto status = daemon().wait(within(seconds(5)));
    ASSERT_TRUE(status) << "signal " << signal_number << " is ignored";
    EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(2));
    EXPECT_FALSE(exists("/proc/" + std::to_string(daemon().pid()) + "/status"));
    EXPECT_FALSE(exists(daemon().socket_path())) << "the socket is left behind";
  }
  static bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }
};

// ---- ends ----

TEST_F(Life, EndsBySignalBeforeAnyoneConnects) {
  start_daemon({}, false);
  ASSERT_FALSE(HasFatalFailure());
  // Ready when the socket is there; it is not connected to.
  const Deadline deadline = within(seconds(5));
  while (!exists(daemon().socket_path()))
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << daemon().output();
  expect_end_by(SIGTERM);
}

TEST_F(Life, EndsBySignalWhileServing) {
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
    START();
    const std::vector<pid_t> tree = daemon().tree();
    EXPECT_GE(tree.size(), 1U);
    expect_end_by(number);
    const Deadline deadline = within(seconds(5));
    for (const pid_t pid : tree) {
      while (::kill(pid, 0) == 0)
        ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "left behind: " << pid;
    }
    client_.reset();
    requests_.reset();
    urgent_.reset();
    front_end_.reset();
  }
}

TEST_F(Life, EndsBySignalWithALockWaiting) {
  START();
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const fuse_file_lock all{.start = 0, .end = LLONG_MAX, .type = F_WRLCK, .pid = 1};
  EXPECT_DONE(fuse().setlk(file, handle, 1, all));
  ASSERT_TRUE(fuse().begin_setlkw(file, handle, 2, all));
  EXPECT_DONE(fuse().getattr(kRoot));
  expect_end_by(SIGTERM);
}

TEST_F(Life, LeavesNoSocketBehindWhenTheClientLeaves) {
  START();
  vmm().close();
  const auto status = daemon().wait(within(seconds(5)));
  ASSERT_TRUE(status);
  EXPECT_EQ(*status, 0);
  EXPECT_FALSE(exists(daemon().socket_path()));
}

TEST_F(Life, AMissingDirectoryIsSaidAtOnce) {
  DaemonOptions options;
  options.shared_directory = tree().path("missing");
  options.connect = false;
  auto started = DaemonProcess::start(options);
  ASSERT_TRUE(started);
  const auto status = (*started)->wait(within(seconds(5)));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) != 0);
  EXPECT_NE((*started)->output().find("missing"), std::string::npos) << (*started)->output();
  EXPECT_FALSE(exists((*started)->socket_path()));
}

// ---- holds on to nothing ----

TEST_F(Life, ARebootingGuestLeavesNoDescriptors) {
  START({"--inode-descriptors=1000"});
  for (int i = 0; i < 20; ++i) tree().write("file" + std::to_string(i), "x");
  std::uint64_t first = 0;
  for (int boot = 0; boot < 15; ++boot) {
    ASSERT_TRUE(fuse().init());
    for (int i = 0; i < 20; ++i) {
      const std::uint64_t file = node("file" + std::to_string(i));
      GET(fuse().open(file, O_RDWR));
    }
    GET(fuse().opendir(kRoot));
    const std::uint64_t now = daemon().usage().descriptors;
    if (boot == 0) first = now;
    EXPECT_LE(now, first + 5) << "boot " << boot;
  }
}

TEST_F(Life, ForgottenNodesGiveTheirDescriptorsBack) {
  START();
  const std::uint64_t before = daemon().usage().descriptors;
  for (int i = 0; i < 500; ++i) tree().write("file" + std::to_string(i), "x");
  std::vector<fuse_forget_one> nodes;
  for (int i = 0; i < 500; ++i)
    nodes.push_back({.nodeid = node("file" + std::to_string(i)), .nlookup = 1});
  for (std::size_t at = 0; at < nodes.size(); at += 100)
    fuse().batch_forget(std::span{nodes}.subspan(at, 100));
  EXPECT_DONE(fuse().getattr(kRoot));
  EXPECT_LE(daemon().usage().descriptors, before + 10);
}

// ---- more inodes than descriptors ----

TEST_F(Life, MoreInodesThanDescriptorsAreServed) {
  if (on_overlay()) GTEST_SKIP() << "needs birth times";
  START({"--inode-descriptors=50"});
  constexpr int kFiles = 2000;
  tree().mkdir("dir");
  for (int i = 0; i < kFiles; ++i) tree().write("dir/file" + std::to_string(i), std::to_string(i));
  std::vector<std::uint64_t> nodes;
  const std::uint64_t dir = node("dir");
  for (int i = 0; i < kFiles; ++i)
    nodes.push_back(GET(fuse().lookup(dir, "file" + std::to_string(i))).nodeid);
  // What was too young to be let go is let go when others come.
  ::usleep(150'000);
  for (int i = 0; i < 100; ++i) {
    tree().write("dir/more" + std::to_string(i), "");
    EXPECT_DONE(fuse().lookup(dir, "more" + std::to_string(i)));
  }
  EXPECT_LT(daemon().usage().descriptors, 200U);
  for (int i = 0; i < kFiles; i += 7) {
    const auto number = static_cast<std::size_t>(i);
    const std::string name = std::to_string(i);
    ASSERT_EQ(GET(fuse().getattr(nodes[number])).size, name.size()) << i;
    const std::uint64_t handle = GET(fuse().open(nodes[number], O_RDONLY)).fh;
    ASSERT_EQ(GET(fuse().read(nodes[number], handle, 0, 100)), name);
    EXPECT_DONE(fuse().release(nodes[number], handle));
  }
  EXPECT_LT(daemon().usage().descriptors, 300U);
}

TEST_F(Life, ANodeWithoutDescriptorFollowsTheGuestsRename) {
  START({"--inode-descriptors=16"});
  tree().mkdir("dir");
  for (int i = 0; i < 200; ++i) tree().write("file" + std::to_string(i), std::to_string(i));
  std::vector<std::uint64_t> nodes;
  for (int i = 0; i < 200; ++i) nodes.push_back(node("file" + std::to_string(i)));
  const std::uint64_t dir = node("dir");
  for (int i = 0; i < 50; ++i) {
    const std::string name = "file" + std::to_string(i);
    EXPECT_DONE(fuse().rename(kRoot, name, dir, "moved" + std::to_string(i)));
  }
  for (int i = 0; i < 200; ++i) {
    const auto number = static_cast<std::size_t>(i);
    EXPECT_EQ(GET(fuse().getattr(nodes[number])).size, std::to_string(i).size()) << i;
  }
}

TEST_F(Life, ANodeWithoutDescriptorIsNeverAnotherFile) {
  START({"--inode-descriptors=16"});
  for (int i = 0; i < 200; ++i) tree().write("file" + std::to_string(i), "original");
  std::vector<std::uint64_t> nodes;
  std::vector<std::uint64_t> inodes;
  for (int i = 0; i < 200; ++i) {
    const fuse_entry_out entry = GET(fuse().lookup(kRoot, "file" + std::to_string(i)));
    nodes.push_back(entry.nodeid);
    inodes.push_back(entry.attr.ino);
  }
  // The host puts other files, and ways out, in their place.
  for (int i = 0; i < 100; ++i) {
    const std::string name = "file" + std::to_string(i);
    tree().write("other", "something else entirely");
    ASSERT_EQ(::rename(tree().path("other").c_str(), tree().path(name).c_str()), 0);
    if (i % 2 == 0) {
      tree().remove(name);
      tree().symlink(name, "/etc/passwd");
    }
  }
  for (std::size_t i = 0; i < 200; ++i) {
    const auto attr = fuse().getattr(nodes[i]);
    if (!attr) {
      EXPECT_LT(i, 100U) << outcome(attr).error;
      continue;
    }
    EXPECT_EQ(attr->ino, inodes[i]) << i;
    EXPECT_EQ(attr->size, 8U) << i;
  }
}

TEST_F(Life, AnUnlinkedNodeWithoutDescriptorStaysWhileItIsOpen) {
  START({"--inode-descriptors=16"});
  tree().write("open", "kept");
  const std::uint64_t open = node("open");
  const std::uint64_t handle = GET(fuse().open(open, O_RDWR)).fh;
  for (int i = 0; i < 200; ++i) {
    tree().write("file" + std::to_string(i), "x");
    node("file" + std::to_string(i));
  }
  EXPECT_DONE(fuse().unlink(kRoot, "open"));
  EXPECT_EQ(GET(fuse().read(open, handle, 0, 10)), "kept");
  EXPECT_EQ(GET(fuse().getattr(open, handle)).nlink, 0U);
  EXPECT_DONE(fuse().truncate(open, 1, handle));
  EXPECT_EQ(GET(fuse().getattr(open, handle)).size, 1U);
  EXPECT_DONE(fuse().release(open, handle));
}

// ---- the host at work in the same tree ----

TEST_F(Life, WhatTheHostDoesIsSeen) {
  START({"-o", "cache=none"});
  tree().write("file", "one");
  const std::uint64_t file = node("file");
  tree().write("file", "three");
  EXPECT_EQ(GET(fuse().getattr(file)).size, 5U);
  tree().remove("file");
  EXPECT_REFUSED(ENOENT, fuse().lookup(kRoot, "file"));
  tree().write("file", "again");
  const fuse_entry_out again = GET(fuse().lookup(kRoot, "file"));
  EXPECT_EQ(again.attr.ino, tree().stat("file").st_ino);
}

TEST_F(Life, ADirectorySwappedForASymlinkIsNoWayOut) {
  START();
  tree().mkdir("dir");
  tree().write("dir/passwd", "harmless");
  const std::uint64_t dir = node("dir");
  ASSERT_EQ(::rename(tree().path("dir").c_str(), tree().path("was").c_str()), 0);
  tree().symlink("dir", "/etc");
  const fuse_entry_out entry = GET(fuse().lookup(dir, "passwd"));
  EXPECT_EQ(entry.attr.size, 8U) << "the directory that was looked up, not what is there now";
  const fuse_entry_out link = GET(fuse().lookup(kRoot, "dir"));
  EXPECT_TRUE(S_ISLNK(link.attr.mode));
  EXPECT_REFUSED(ENOTDIR, fuse().lookup(link.nodeid, "passwd"));
  EXPECT_FALSE(fuse().opendir(link.nodeid));
}

TEST_F(Life, ADirectoryMovedOutOfTheShareIsNoWayUp) {
  TempTree outside;
  outside.write("secret", "secret");
  START();
  tree().mkdir("dir");
  const std::uint64_t dir = node("dir");
  ASSERT_EQ(::rename(tree().path("dir").c_str(), outside.path("dir").c_str()), 0);
  const auto up = fuse().lookup(dir, "..");
  if (up) {
    EXPECT_FALSE(fuse().lookup(up->nodeid, "secret")) << "climbed out through a moved directory";
    EXPECT_NE(up->attr.ino, outside.stat("").st_ino);
  }
}

// ---- options a guest can see ----

class Options : public Life {};

TEST_F(Options, ReadonlyRefusesEveryChange) {
  START({"--readonly", "--xattr"});
  tree().write("file", "x");
  tree().mkdir("dir");
  const std::uint64_t file = node("file");
  EXPECT_REFUSED(EROFS, fuse().mkdir(kRoot, "new", 0755));
  EXPECT_REFUSED(EROFS, fuse().mknod(kRoot, "new", S_IFREG | 0644));
  EXPECT_REFUSED(EROFS, fuse().symlink(kRoot, "new", "x"));
  EXPECT_REFUSED(EROFS, fuse().link(file, kRoot, "new"));
  EXPECT_REFUSED(EROFS, fuse().create(kRoot, "new", O_RDWR, 0644));
  EXPECT_REFUSED(EROFS, fuse().tmpfile(kRoot, O_RDWR, 0644));
  EXPECT_REFUSED(EROFS, fuse().unlink(kRoot, "file"));
  EXPECT_REFUSED(EROFS, fuse().rmdir(kRoot, "dir"));
  EXPECT_REFUSED(EROFS, fuse().rename(kRoot, "file", kRoot, "new"));
  EXPECT_REFUSED(EROFS, fuse().chmod(file, 0600));
  EXPECT_REFUSED(EROFS, fuse().truncate(file, 0));
  EXPECT_REFUSED(EROFS, fuse().open(file, O_RDWR));
  EXPECT_REFUSED(EROFS, fuse().open(file, O_WRONLY));
  EXPECT_REFUSED(EROFS, fuse().open(file, O_RDONLY | O_TRUNC));
  EXPECT_REFUSED(EROFS, fuse().setxattr(file, "user.x", "v"));
  EXPECT_REFUSED(EROFS, fuse().removexattr(file, "user.x"));
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "x");
  EXPECT_REFUSED(EROFS, fuse().write(file, handle, 0, "y"));
  EXPECT_REFUSED(EROFS, fuse().fallocate(file, handle, 0, 10));
  EXPECT_EQ(tree().list(), (std::vector<std::string>{"dir", "file"}));
  EXPECT_EQ(tree().read("file"), "x");
}

struct CacheMode {
  const char* mode;
  std::uint64_t lifetime;  // seconds
};

TEST_F(Options, CacheModesSetTheTimeouts) {
  for (const auto& [mode, lifetime] : {CacheMode{"none", 0}, CacheMode{"auto", 1},
                                       CacheMode{"metadata", 86400}, CacheMode{"always", 86400}}) {
    START({std::string("--cache=") + mode});
    if (!tree().exists("file")) tree().write("file", "x");
    const fuse_entry_out entry = GET(fuse().lookup(kRoot, "file"));
    EXPECT_EQ(entry.entry_valid, lifetime) << mode;
    EXPECT_EQ(entry.attr_valid, lifetime) << mode;
    const std::uint32_t flags = GET(fuse().open(entry.nodeid, O_RDONLY)).open_flags;
    if (lifetime == 0) {
      EXPECT_NE(flags & FOPEN_DIRECT_IO, 0U) << mode;
      EXPECT_EQ(flags & FOPEN_KEEP_CACHE, 0U) << mode;
    }
    if (std::string(mode) == "always") {
      EXPECT_NE(flags & FOPEN_KEEP_CACHE, 0U) << mode;
    }
    front_end_->close();
    ASSERT_TRUE(daemon().wait(within(std::chrono::seconds(5))));
    client_.reset();
    requests_.reset();
    urgent_.reset();
    front_end_.reset();
  }
}

TEST_F(Options, TimeoutTakesFractions) {
  START({"--timeout=2.25"});
  tree().write("file", "x");
  const fuse_entry_out entry = GET(fuse().lookup(kRoot, "file"));
  EXPECT_EQ(entry.entry_valid, 2U);
  EXPECT_EQ(entry.entry_valid_nsec, 250'000'000U);
  EXPECT_EQ(entry.attr_valid_nsec, 250'000'000U);
}

TEST_F(Options, AllowRootServesRootOnly) {
  START({"-o", "allow_root"});
  EXPECT_DONE(fuse().lookup(kRoot, ".."));
  fuse().as(1000, 1000);
  EXPECT_REFUSED(EACCES, fuse().mkdir(kRoot, "new", 0755));
}

TEST_F(Options, WritebackOpensForReadingToo) {
  START({"--writeback"});
  ASSERT_TRUE(fuse().has(FUSE_WRITEBACK_CACHE));
  tree().write("file", "0123456789");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_WRONLY | O_APPEND)).fh;
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 4)), "0123") << "a partial page is read first";
  EXPECT_EQ(GET(fuse().write(file, handle, 2, "ab", FUSE_WRITE_CACHE)), 2U);
  EXPECT_EQ(tree().read("file"), "01ab456789");
}

TEST_F(Options, SandboxesAllServe) {
  for (const char* mode : {"namespace", "chroot", "none"}) {
    START({std::string("--sandbox=") + mode});
    const CreatedFile made = GET(fuse().create(kRoot, mode, O_RDWR, 0600));
    EXPECT_EQ(GET(fuse().write(made.entry.nodeid, made.open.fh, 0, mode)), strlen(mode));
    EXPECT_DONE(fuse().release(made.entry.nodeid, made.open.fh));
    EXPECT_EQ(tree().read(mode), mode);
    front_end_->close();
    ASSERT_TRUE(daemon().wait(within(std::chrono::seconds(5)))) << mode;
    client_.reset();
    requests_.reset();
    urgent_.reset();
    front_end_.reset();
  }
}

TEST_F(Options, PoolSizesAllServe) {
  for (const char* size : {"0", "1", "2", "64"}) {
    START({std::string("--thread-pool-size=") + size});
    for (int i = 0; i < 200; ++i) EXPECT_DONE(fuse().getattr(kRoot));
    front_end_->close();
    ASSERT_TRUE(daemon().wait(within(std::chrono::seconds(5)))) << size;
    client_.reset();
    requests_.reset();
    urgent_.reset();
    front_end_.reset();
  }
}

TEST_F(Options, PollingServes) {
  START({"--poll-us=50"});
  for (int i = 0; i < 500; ++i) EXPECT_DONE(fuse().getattr(kRoot));
}

}  // namespace
}  // namespace virtiofsd::guest
