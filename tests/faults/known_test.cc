// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Faults that daemons of this kind had, each in the shape in which it was
// known, where no other file here comes close enough. SECURITY.md names them.
#include <fcntl.h>
#include <grp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <set>
#include <thread>

#include "tests/faults/fixture.h"

namespace virtiofsd::guest {
namespace {

// ---- names, when nothing but the daemon's own care stands before the host ----

class NoSandbox : public FaultFixture {
 protected:
  void SetUp() override { attack({"--sandbox=none", "--seccomp=none"}); }
};

TEST_F(NoSandbox, NamesThatLeadOutAreRefused) {
  TempTree outside;
  outside.write("marker", "untouched");
  outside.mkdir("empty");
  tree().symlink("way", outside.root());
  const std::string up = "../" + outside.root().substr(outside.root().rfind('/') + 1);
  const std::string bad[] = {up, up + "/", up + "/marker", up + "/empty", up + "/made",
                             outside.root(), outside.path("marker"),
                             // A slash at the end would make even O_NOFOLLOW follow.
                             "way/", "way/marker", "way/empty", "way/made"};
  const std::uint64_t probe = node("probe");
  for (const std::string& name : bad) {
    EXPECT_REFUSED(EINVAL, fuse().lookup(kRoot, name)) << name;
    EXPECT_REFUSED(EINVAL, fuse().create(kRoot, name, O_RDWR, 0600)) << name;
    EXPECT_REFUSED(EINVAL, fuse().create(kRoot, name, O_RDWR | O_TRUNC, 0600)) << name;
    EXPECT_REFUSED(EINVAL, fuse().mkdir(kRoot, name, 0700)) << name;
    EXPECT_REFUSED(EINVAL, fuse().mknod(kRoot, name, S_IFREG | 0600)) << name;
    EXPECT_REFUSED(EINVAL, fuse().symlink(kRoot, name, "target")) << name;
    EXPECT_REFUSED(EINVAL, fuse().link(probe, kRoot, name)) << name;
    EXPECT_REFUSED(EINVAL, fuse().unlink(kRoot, name)) << name;
    EXPECT_REFUSED(EINVAL, fuse().rmdir(kRoot, name)) << name;
    EXPECT_REFUSED(EINVAL, fuse().rename(kRoot, name, kRoot, "taken")) << name;
    EXPECT_REFUSED(EINVAL, fuse().rename(kRoot, "probe", kRoot, name)) << name;
  }
  EXPECT_EQ(outside.list(), (std::vector<std::string>{"empty", "marker"}));
  EXPECT_EQ(outside.read("marker"), "untouched");
  EXPECT_EQ(tree().list(), (std::vector<std::string>{"probe", "way"}));
}

// ---- groups ----

// One thread serves all requests. With fewer capabilities the group of a
// request by root is really set; with all of them it decides nothing.
class GroupFault : public FaultFixture, public ::testing::WithParamInterface<bool> {
 protected:
  static constexpr std::uint32_t kTeam = 2000;

  void SetUp() override {
    std::vector<std::string> arguments{"--thread-pool-size=0"};
    if (GetParam()) {
      arguments.emplace_back("-o");
      arguments.emplace_back("modcaps=-dac_override:-fsetid");
    }
    attack(arguments);
    if (IsSkipped() || HasFatalFailure()) return;
    tree().mkdir("team");
    tree().chown("team", 0, kTeam);
    tree().chmod("team", 0770);
    team_ = node("team");
  }
  // MKDIR in the directory of that group by a caller who sends this group along.
  Result<fuse_entry_out> make(const std::string& name, std::uint32_t uid, std::uint32_t gid,
                              std::optional<std::uint32_t> group) {
    fuse().as(uid, gid);
    fuse().set_supplementary_group(group);
    auto made = fuse().mkdir(team_, name, 0755);
    fuse().set_supplementary_group({});
    fuse().as(0, 0);
    return made;
  }
  void expect_outsider_refused(const char* after) {
    EXPECT_REFUSED(EACCES, make("outsider", 1000, 1000, {})) << "after " << after;
  }

  std::uint64_t team_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Capabilities, GroupFault, ::testing::Bool(),
                         [](const auto& fewer) { return fewer.param ? "Fewer" : "Default"; });

TEST_P(GroupFault, AGroupEndsWithItsRequest) {
  expect_outsider_refused("nothing");
  EXPECT_DONE(make("root", 0, 0, kTeam));
  expect_outsider_refused("root's request");
  EXPECT_DONE(make("member", 1000, 1000, kTeam));
  expect_outsider_refused("a member's request");
  EXPECT_REFUSED(EEXIST, make("root", 0, 0, kTeam));
  EXPECT_REFUSED(EEXIST, make("root", 1000, 1000, kTeam));
  expect_outsider_refused("names that exist");
  EXPECT_FALSE(make("nobody", ~0U, 1000, kTeam));
  EXPECT_FALSE(make("nobody", 1000, ~0U, kTeam));
  expect_outsider_refused("ids that are none");
  EXPECT_FALSE(make("nobody", 1000, 1000, ~0U));
  expect_outsider_refused("a group that is none");
  EXPECT_EQ(tree().list("team"), (std::vector<std::string>{"member", "root"}));
}

// CVE-2022-0358 as it was: who starts the daemon is in a privileged group.
class InheritedGroups : public FaultFixture {
 protected:
  static constexpr gid_t kPrivileged = 4;

  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    const int count = ::getgroups(0, nullptr);
    std::vector<gid_t> before(static_cast<std::size_t>(std::max(count, 0)));
    ASSERT_EQ(::getgroups(count, before.data()), count);
    ASSERT_EQ(::setgroups(1, &kPrivileged), 0);
    attack();
    ASSERT_EQ(::setgroups(before.size(), before.data()), 0);
  }
};

TEST_F(InheritedGroups, GiveTheGuestNothing) {
  tree().mkdir("shared");
  tree().chown("shared", 0, kPrivileged);
  tree().chmod("shared", 02777);
  tree().mkdir("private");
  tree().chown("private", 0, kPrivileged);
  tree().chmod("private", 0770);
  const std::uint64_t shared = node("shared");
  const std::uint64_t closed = node("private");
  fuse().as(1000, 1000);
  const auto tool = fuse().create(shared, "tool", O_RDWR, 02755);
  const auto other = fuse().mknod(shared, "other", S_IFREG | 02755);
  const auto inside = fuse().mkdir(closed, "inside", 0755);
  fuse().as(0, 0);
  ASSERT_TRUE(tool) << tool.error().text();
  ASSERT_TRUE(other) << other.error().text();
  for (const char* name : {"shared/tool", "shared/other"}) {
    EXPECT_EQ(tree().stat(name).st_gid, kPrivileged) << name;
    EXPECT_EQ(tree().stat(name).st_mode & S_ISGID, 0U) << name;
  }
  EXPECT_REFUSED(EACCES, inside);
}

// ---- file capabilities under another name (CVE-2021-20263) ----

class RenamedCapability : public FaultFixture {
 protected:
  void SetUp() override { attack({"-o", "xattrmap=:map:security.:user.vm.:"}); }
};

TEST_F(RenamedCapability, GoesWithEveryWayToChangeAFile) {
  tree().write("source", std::string(8192, 's'));
  tree().write("file", std::string(8192, 'x'));
  const std::string path = tree().path("file");
  if (::setxattr(path.c_str(), "user.probe", "1", 1, 0) != 0)
    GTEST_SKIP() << "this file system has no user attributes";
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const std::uint64_t source = node("source");
  const std::uint64_t from = GET(fuse().open(source, O_RDONLY)).fh;
  const auto there = [&] {
    return ::getxattr(path.c_str(), "user.vm.security.capability", nullptr, 0) >= 0;
  };
  struct Change {
    const char* what;
    bool everywhere;  // false: not every file system can
    std::function<bool()> make;
  };
  const Change changes[] = {
      {"WRITE", true, [&] { return fuse().write(file, handle, 0, "z").has_value(); }},
      {"WRITE from the page cache", true,
       [&] { return fuse().write(file, handle, 0, "z", FUSE_WRITE_CACHE).has_value(); }},
      {"FALLOCATE", false, [&] { return fuse().fallocate(file, handle, 0, 16384).has_value(); }},
      {"FALLOCATE of a hole", false,
       [&] {
         return fuse()
             .fallocate(file, handle, 0, 4096, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
             .has_value();
       }},
      {"COPY_FILE_RANGE", false,
       [&] {
         const auto copied = fuse().copy_file_range(source, from, 0, file, handle, 0, 4096);
         return copied && *copied > 0;
       }},
      {"SETATTR of the size", true, [&] { return fuse().truncate(file, 100).has_value(); }},
      {"SETATTR of the size by handle", true,
       [&] { return fuse().truncate(file, 50, handle).has_value(); }},
      {"SETATTR of the owner", true,
       [&] { return fuse().chown(file, 1234, std::nullopt).has_value(); }},
      {"SETATTR of the group", true,
       [&] { return fuse().chown(file, std::nullopt, 1234).has_value(); }},
      {"OPEN with O_TRUNC", true, [&] { return fuse().open(file, O_RDWR | O_TRUNC).has_value(); }},
      {"CREATE of what is there with O_TRUNC", true,
       [&] { return fuse().create(kRoot, "file", O_RDWR | O_TRUNC, 0600).has_value(); }},
  };
  for (const Change& change : changes) {
    EXPECT_DONE(fuse().setxattr(file, "security.capability", "powers")) << change.what;
    EXPECT_TRUE(there()) << change.what;
    if (change.make()) {
      EXPECT_FALSE(there()) << "it survives " << change.what;
    } else {
      EXPECT_FALSE(change.everywhere) << change.what << " failed";
    }
  }
}

TEST_F(RenamedCapability, StaysWhenNothingChanges) {
  tree().write("file", std::string(8192, 'x'));
  const std::string path = tree().path("file");
  if (::setxattr(path.c_str(), "user.probe", "1", 1, 0) != 0)
    GTEST_SKIP() << "this file system has no user attributes";
  const std::uint64_t file = node("file");
  EXPECT_DONE(fuse().setxattr(file, "security.capability", "powers"));
  const std::uint64_t reading = GET(fuse().open(file, O_RDONLY)).fh;
  const std::uint64_t writing = GET(fuse().open(file, O_RDWR)).fh;
  EXPECT_REFUSED(EBADF, fuse().write(file, reading, 0, "z"));
  EXPECT_REFUSED(EBADF, fuse().fallocate(file, reading, 0, 16384));
  EXPECT_REFUSED(EBADF, fuse().copy_file_range(file, writing, 0, file, reading, 4096, 1));
  EXPECT_EQ(GET(fuse().write(file, writing, 0, "")), 0U);
  EXPECT_EQ(GET(fuse().copy_file_range(file, reading, 0, file, writing, 4096, 0)), 0U);
  EXPECT_GE(::getxattr(path.c_str(), "user.vm.security.capability", nullptr, 0), 0)
      << std::strerror(errno);
}

// ---- requests longer than was agreed ----

class LongRequest : public FaultFixture {
 protected:
  static constexpr std::uint32_t kPiece = 128U << 10;

  void SetUp() override {
    FrontEndOptions options;
    options.ring = {.size = 128, .indirect = true};
    attack({}, options);
  }
  // `bytes` and behind them `more` bytes, all of them the same piece of memory.
  Answer send_with(std::vector<std::byte> bytes, std::uint32_t more, std::uint32_t room) {
    set_length(bytes, static_cast<std::uint32_t>(bytes.size()) + more);
    std::memcpy(in_.host, bytes.data(), bytes.size());
    std::memset(in_.host + 4096, 'x', kPiece);
    std::vector<Buffer> from{
        {.guest = in_.guest, .size = static_cast<std::uint32_t>(bytes.size())}};
    for (std::uint32_t left = more; left > 0;) {
      const std::uint32_t part = std::min(left, kPiece);
      from.push_back({.guest = in_.guest + 4096, .size = part});
      left -= part;
    }
    const Buffer to[] = {{.guest = out_.guest, .size = room}};
    return send(from, to);
  }
};

TEST_F(LongRequest, AWriteOfFourTimesWhatWasAgreedIsWritten) {
  tree().write("long", "");
  const std::uint64_t file = node("long");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const std::uint32_t size = 4 * fuse().session().max_write;
  ASSERT_GE(size, 4U << 20);
  fuse_write_in in{};
  in.fh = handle;
  in.size = size;
  EXPECT_EQ(send_with(request(FUSE_WRITE, file, in), size, 24).error(), 0);
  EXPECT_TRUE(tree().read("long") == std::string(size, 'x')) << "other bytes, or fewer";
}

TEST_F(LongRequest, ArgumentsOfFourMegabytesAreEinval) {
  for (const std::uint32_t opcode : {unsigned{FUSE_GETATTR}, unsigned{FUSE_LOOKUP},
                                     unsigned{FUSE_FSYNC}, unsigned{FUSE_SETXATTR}}) {
    const std::vector<std::byte> zeros(64);
    EXPECT_EQ(send_with(request(opcode, kRoot, zeros), 4U << 20, 4096).error(), EINVAL) << opcode;
  }
}

// ---- handles ----

// Queue 1 opens and releases, and opens something else in the number that was
// freed; queue 2 reads by the handle all the time.
class ReleaseFault : public FaultFixture {
 protected:
  void SetUp() override { attack(); }
};

TEST_F(ReleaseFault, AHandleReleasedOnAnotherQueueShowsNoOtherFile) {
  const std::string mine(4096, 'm');
  tree().write("mine", mine);
  tree().write("another", std::string(4096, 'a'));
  const std::uint64_t file = node("mine");
  const std::uint64_t another = node("another");
  std::atomic<std::uint64_t> handle{kNoHandle};
  std::atomic<bool> stop{false};
  std::atomic<int> odd{0};
  std::atomic<int> good{0};
  std::thread reader([&] {
    while (!stop) {
      const auto read = clients_[2]->read(file, handle, 0, 4096);
      if (read) {
        ++(*read == mine ? good : odd);
      } else if (read.error() != Errno{EBADF}) {
        ++odd;
      }
    }
  });
  const Deadline end = within(std::chrono::seconds(3));
  while (std::chrono::steady_clock::now() < end && !HasFailure()) {
    const std::uint64_t opened = GET(fuse().open(file, O_RDONLY)).fh;
    handle = opened;
    EXPECT_DONE(fuse().getattr(kRoot));
    EXPECT_DONE(fuse().release(file, opened));
    const std::uint64_t other = GET(fuse().open(another, O_RDONLY)).fh;
    EXPECT_DONE(fuse().release(another, other));
  }
  stop = true;
  reader.join();
  EXPECT_EQ(odd, 0);
  EXPECT_GT(good, 0);
}

// ---- entries that come and go ----

class ComingAndGoing : public FaultFixture {
 protected:
  void SetUp() override { attack(); }
};

TEST_F(ComingAndGoing, AListingShowsWhatStays) {
  constexpr std::size_t kStaying = 100;
  constexpr int kPassing = 50;
  tree().mkdir("busy");
  for (std::size_t i = 0; i < kStaying; ++i) tree().write("busy/stays" + std::to_string(i), "");
  const std::uint64_t busy = node("busy");
  const std::string prefix = tree().path("busy/passes");
  std::atomic<bool> stop{false};
  std::thread host([&] {
    while (!stop) {
      for (int i = 0; i < kPassing; ++i) {
        const UniqueFd made{
            ::open((prefix + std::to_string(i)).c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)};
      }
      for (int i = 0; i < kPassing; ++i) ::unlink((prefix + std::to_string(i)).c_str());
    }
  });
  const Deadline end = within(std::chrono::seconds(2));
  while (std::chrono::steady_clock::now() < end && !HasFailure()) {
    const auto entries = fuse().list(busy, true);
    EXPECT_DONE(entries);
    if (!entries) break;
    std::set<std::string> staying;
    std::vector<fuse_forget_one> known;
    for (const Entry& entry : *entries) {
      if (entry.name.starts_with("stays")) staying.insert(entry.name);
      if (entry.entry.nodeid != 0) known.push_back({.nodeid = entry.entry.nodeid, .nlookup = 1});
    }
    EXPECT_EQ(staying.size(), kStaying);
    for (std::size_t at = 0; at < known.size(); at += 100)
      fuse().batch_forget(
          std::span{known}.subspan(at, std::min<std::size_t>(100, known.size() - at)));
  }
  stop = true;
  host.join();
}

// ---- the operator's limits ----

class FileSizeLimit : public FaultFixture {
 protected:
  void SetUp() override { attack(); }
};

TEST_F(FileSizeLimit, WhatIsLongerIsRefusedAndEndsNobody) {
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const pid_t worker = daemon().tree().back();
  rlimit limit{};
  ASSERT_EQ(::prlimit(worker, RLIMIT_FSIZE, nullptr, &limit), 0);
  limit.rlim_cur = 1U << 20;
  ASSERT_EQ(::prlimit(worker, RLIMIT_FSIZE, &limit, nullptr), 0);
  EXPECT_REFUSED(EFBIG, fuse().write(file, handle, 2U << 20, "x"));
  EXPECT_REFUSED(EFBIG, fuse().truncate(file, 2U << 20));
  EXPECT_REFUSED(EFBIG, fuse().truncate(file, 2U << 20, handle));
  EXPECT_FALSE(fuse().fallocate(file, handle, 0, 2U << 20));
  EXPECT_EQ(GET(fuse().write(file, handle, 0, "y")), 1U);
}

}  // namespace
}  // namespace virtiofsd::guest
