// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include <linux/fs.h>
#include <sys/sysmacros.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "passthrough/passthrough_fixture.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

class Entries : public PassthroughTest {
 protected:
  Result<fuse::Created> create(const fuse::Call& made, const std::string& text, int flags,
                               std::uint32_t mode, std::uint32_t umask = 0) {
    fuse::Call c = made;
    return fs().create(c, name(text),
                       {.flags = static_cast<std::uint32_t>(flags | O_CREAT),
                        .mode = S_IFREG | mode,
                        .umask = umask,
                        .open_flags = 0});
  }
  Result<fuse_entry_out> mkdir(const fuse::Call& made, const std::string& text,
                               std::uint32_t mode) {
    fuse::Call c = made;
    return fs().mkdir(c, name(text), {.mode = mode, .umask = 0});
  }
  Result<fuse_entry_out> mknod(const fuse::Call& made, const std::string& text, std::uint32_t mode,
                               std::uint32_t device = 0) {
    fuse::Call c = made;
    return fs().mknod(c, name(text), {.mode = mode, .rdev = device, .umask = 0, .padding = 0});
  }
  Result<> unlink(const std::string& text) {
    auto c = call();
    return fs().unlink(c, name(text));
  }
};

TEST_F(Entries, LookupTellsWhatIsThere) {
  write_file("a", "hello");
  auto c = call();
  const auto found = fs().lookup(c, name("a"));
  ASSERT_TRUE(found);
  const auto there = host("a");
  EXPECT_EQ(found->attr.ino, there.st_ino);
  EXPECT_EQ(found->attr.size, 5U);
  EXPECT_EQ(found->attr.mode, there.st_mode);
  EXPECT_EQ(found->entry_valid, 1U);
  EXPECT_EQ(fs().lookup(c, name("b")).error(), Errno{ENOENT});
}

TEST_F(Entries, TimeoutsKeepTheirFractions) {
  settings_.entry_timeout = 2.25;
  settings_.attribute_timeout = 0.5;
  settings_.negative_timeout = 3.5;
  write_file("a", "");
  auto c = call();
  const auto found = fs().lookup(c, name("a"));
  ASSERT_TRUE(found);
  EXPECT_EQ(found->entry_valid, 2U);
  EXPECT_EQ(found->entry_valid_nsec, 250'000'000U);
  EXPECT_EQ(found->attr_valid, 0U);
  EXPECT_EQ(found->attr_valid_nsec, 500'000'000U);
  const auto missing = fs().lookup(c, name("none"));
  ASSERT_TRUE(missing);
  EXPECT_EQ(missing->nodeid, 0U);
  EXPECT_EQ(missing->entry_valid, 3U);
  EXPECT_EQ(missing->entry_valid_nsec, 500'000'000U);
}

TEST_F(Entries, SetIdFilesAreNotCachedWhenTheHostTakesTheBitsOff) {
  session_.flags |= FUSE_HANDLE_KILLPRIV_V2;
  write_file("suid", "", 04755);
  write_file("plain", "", 0755);
  auto c = call();
  EXPECT_EQ(fs().lookup(c, name("suid"))->attr_valid, 0U);
  EXPECT_EQ(fs().lookup(c, name("plain"))->attr_valid, 1U);
}

TEST_F(Entries, NodesAreForgottenWhenEveryLookupIsGivenBack) {
  write_file("a", "");
  const NodeId first = lookup("a");
  EXPECT_EQ(lookup("a"), first);
  auto c = call(first);
  fs().forget(first, 1);
  EXPECT_TRUE(fs().getattr(c, {}));
  fs().forget(first, 1000);
  EXPECT_EQ(fs().getattr(c, {}).error(), Errno{ESTALE});
}

TEST_F(Entries, SelfAndParentCountAsLookups) {
  ::mkdir(path("d").c_str(), 0755);
  const NodeId d = lookup("d");
  auto c = call(d);
  EXPECT_EQ(fs().lookup_self(c)->nodeid, d.value);
  EXPECT_EQ(fs().lookup_parent(c)->nodeid, 1U);
  fs().forget(d, 1);
  EXPECT_TRUE(fs().getattr(c, {}));
  auto root = call();
  EXPECT_EQ(fs().lookup_parent(root)->nodeid, 1U);
}

TEST_F(Entries, WhatIsCreatedBelongsToTheCaller) {
  const auto who = call(NodeId{1}, 1000, 1001);
  ASSERT_TRUE(create(who, "file", O_RDWR, 0640));
  ASSERT_TRUE(mkdir(who, "dir", 0750));
  ASSERT_TRUE(mknod(who, "fifo", S_IFIFO | 0600));
  fuse::Call c = who;
  ASSERT_TRUE(fs().symlink(c, name("link"), "/etc/passwd"));
  for (const char* made : {"file", "dir", "fifo", "link"}) {
    EXPECT_EQ(host(made).st_uid, 1000U) << made;
    EXPECT_EQ(host(made).st_gid, 1001U) << made;
  }
  EXPECT_EQ(host("file").st_mode, S_IFREG | 0640U);
  EXPECT_EQ(host("dir").st_mode, S_IFDIR | 0750U);
  EXPECT_EQ(host("fifo").st_mode, S_IFIFO | 0600U);
  EXPECT_EQ(sys::fs_uid(), 0U);
}

TEST_F(Entries, ACallerCreatesOnlyWhereTheHostLetsIt) {
  ::mkdir(path("closed").c_str(), 0755);
  ::mkdir(path("team").c_str(), 0775);
  ::chmod(path("team").c_str(), 0775);  // whatever our umask is
  ASSERT_EQ(::chown(path("team").c_str(), 0, 2000), 0);
  const NodeId closed = lookup("closed");
  const NodeId team = lookup("team");
  EXPECT_EQ(create(call(closed, 1000, 1000), "x", O_RDWR, 0644).error(), Errno{EACCES});
  EXPECT_EQ(sys::fs_uid(), 0U);
  EXPECT_EQ(create(call(team, 1000, 1000), "x", O_RDWR, 0644).error(), Errno{EACCES});
  auto member = call(team, 1000, 1000);
  member.caller.supplementary_group = 2000;
  EXPECT_TRUE(create(member, "x", O_RDWR, 0644));
}

TEST_F(Entries, WhereTheGuestDoesNotTellAllItsOwnCheckIsTrusted) {
  ::mkdir(path("team").c_str(), 0775);
  const NodeId team = lookup("team");
  session_.flags &= ~FUSE_CREATE_SUPP_GROUP;
  EXPECT_TRUE(create(call(team, 1000, 1000), "x", O_RDWR, 0644));
  EXPECT_EQ(host("team/x").st_uid, 1000U);
  session_.flags |= FUSE_CREATE_SUPP_GROUP | FUSE_POSIX_ACL;  // an ACL may name another group
  EXPECT_TRUE(create(call(team, 1000, 1000), "y", O_RDWR, 0644));
}

// The root of a container is an ordinary user here, who may do all in what it owns.
TEST_F(Entries, ACallerCreatesInItsOwnDirectoryWhateverItsMode) {
  ASSERT_TRUE(mkdir(call(NodeId{1}, 1000, 1000), "diff", 0555));
  const NodeId diff = lookup("diff");
  EXPECT_TRUE(mkdir(call(diff, 1000, 1000), "inside", 0700));
  EXPECT_TRUE(create(call(diff, 1000, 1000), "file", O_RDWR, 0600));
  EXPECT_EQ(host("diff/file").st_uid, 1000U);
  EXPECT_EQ(mkdir(call(diff, 1001, 1000), "stranger", 0700).error(), Errno{EACCES});
  EXPECT_EQ(sys::fs_uid(), 0U);
}

TEST_F(Entries, NoFileGetsASetGroupIdBitForAGroupItsCreatorIsNotIn) {
  ::mkdir(path("shared").c_str(), 0777);
  ASSERT_EQ(::chown(path("shared").c_str(), 0, 2000), 0);
  ASSERT_EQ(::chmod(path("shared").c_str(), 02777), 0);
  const NodeId shared = lookup("shared");
  for (const std::uint64_t flags : {std::uint64_t{0}, std::uint64_t{FUSE_CREATE_SUPP_GROUP}}) {
    session_.flags = flags;
    const std::string file = flags == 0 ? "a" : "b";
    ASSERT_TRUE(create(call(shared, 1000, 1000), file, O_RDWR, 02755));
    EXPECT_EQ(host("shared/" + file).st_gid, 2000U);
    EXPECT_EQ(host("shared/" + file).st_mode & 07777, 0755U);
    ASSERT_TRUE(mknod(call(shared, 1000, 1000), file + "node", S_IFREG | 02755));
    EXPECT_EQ(host("shared/" + file + "node").st_mode & 07777, 0755U);
  }
  auto member = call(shared, 1000, 1000);
  member.caller.supplementary_group = 2000;
  ASSERT_TRUE(create(member, "c", O_RDWR, 02755));
  EXPECT_EQ(host("shared/c").st_mode & 07777, 02755U);
  ASSERT_TRUE(mkdir(call(shared, 1000, 1000), "sub", 0755));
  EXPECT_EQ(host("shared/sub").st_mode & 07777, 02755U);
}

TEST_F(Entries, TheUmaskCountsOnlyWhenTheGuestLeavesItToUs) {
  ASSERT_TRUE(create(call(), "guest-masked", O_RDWR, 0666, 0077));
  EXPECT_EQ(host("guest-masked").st_mode & 07777, 0666U);
  session_.flags |= FUSE_DONT_MASK;
  ASSERT_TRUE(create(call(), "host-masked", O_RDWR, 0666, 0027));
  EXPECT_EQ(host("host-masked").st_mode & 07777, 0640U);
  session_.flags &= ~std::uint64_t{FUSE_DONT_MASK};
  ASSERT_TRUE(create(call(), "back", O_RDWR, 0666, 0027));
  EXPECT_EQ(host("back").st_mode & 07777, 0666U);
}

TEST_F(Entries, CreateOpensWhatTheHostMadeMeanwhile) {
  write_file("a", "old text");
  ASSERT_TRUE(create(call(), "a", O_RDWR, 0600));
  EXPECT_EQ(read_file("a"), "old text");
  EXPECT_EQ(host("a").st_mode & 07777, 0644U);
  const auto cut = create(call(), "a", O_RDWR | O_TRUNC, 0600);
  ASSERT_TRUE(cut);
  EXPECT_EQ(cut->entry.attr.size, 0U);
  EXPECT_EQ(read_file("a"), "");
  EXPECT_EQ(create(call(), "a", O_RDWR | O_EXCL, 0600).error(), Errno{EEXIST});
}

// The guest looks again then, and refuses if it isn't allowed.
TEST_F(Entries, CreateOfAnExistingFileAsksTheHostForTheCaller) {
  write_file("secret", "root's", 0600);
  EXPECT_EQ(create(call(NodeId{1}, 1000, 1000), "secret", O_RDWR, 0644).error(), Errno{ESTALE});
  EXPECT_EQ(read_file("secret"), "root's");
}

TEST_F(Entries, CreateOpensNothingButRegularFiles) {
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0666), 0);
  ASSERT_EQ(::symlink("target", path("link").c_str()), 0);
  ::mkdir(path("dir").c_str(), 0755);
  EXPECT_EQ(create(call(), "fifo", O_RDWR, 0644).error(), Errno{ESTALE});
  EXPECT_EQ(create(call(), "link", O_RDWR, 0644).error(), Errno{ESTALE});
  EXPECT_EQ(create(call(), "dir", O_RDWR, 0644).error(), Errno{EISDIR});
  EXPECT_FALSE(std::filesystem::exists(path("target")));
  EXPECT_EQ(fs().inodes().count(), 1U) << "a refused open left a lookup behind";
}

TEST_F(Entries, MknodMakesEveryTypeButDirectoriesAndLinks) {
  const auto device = mknod(call(), "null", S_IFCHR | 0666, 0x103);
  ASSERT_TRUE(device);
  EXPECT_EQ(host("null").st_rdev, ::makedev(1, 3));
  EXPECT_EQ(device->attr.rdev, 0x103U);
  EXPECT_EQ(mknod(call(), "d", S_IFDIR | 0755).error(), Errno{EINVAL});
  EXPECT_EQ(mknod(call(), "l", S_IFLNK | 0755).error(), Errno{EINVAL});
  EXPECT_EQ(mknod(call(), "null", S_IFREG | 0755).error(), Errno{EEXIST});
}

TEST_F(Entries, LinkGivesTheSameNodeASecondName) {
  write_file("a", "text");
  ASSERT_EQ(::symlink("nowhere", path("sym").c_str()), 0);
  const NodeId a = lookup("a");
  auto c = call();
  const auto linked = fs().link(c, a, name("b"));
  ASSERT_TRUE(linked);
  EXPECT_EQ(linked->nodeid, a.value);
  EXPECT_EQ(linked->attr.nlink, 2U);
  fs().forget(a, 1);
  auto node = call(a);
  EXPECT_TRUE(fs().getattr(node, {})) << "LINK counts as a lookup";
  ASSERT_TRUE(fs().link(c, lookup("sym"), name("sym2")));
  EXPECT_TRUE(S_ISLNK(host("sym2").st_mode));
}

TEST_F(Entries, ATmpfileHasNoNameUntilItIsLinked) {
  auto c = call(NodeId{1}, 1000, 1000);
  const auto made = fs().tmpfile(c, {.flags = O_RDWR, .mode = 0600, .umask = 0, .open_flags = 0});
  if (!made && made.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no O_TMPFILE here";
  ASSERT_TRUE(made) << made.error().text();
  EXPECT_TRUE(std::filesystem::is_empty(root_));
  const NodeId node{made->entry.nodeid};
  ASSERT_TRUE(write(node, HandleId{made->open.fh}, "text", 0));
  ASSERT_TRUE(fs().link(c, node, name("named")));
  EXPECT_EQ(read_file("named"), "text");
  EXPECT_EQ(host("named").st_uid, 1000U);
}

TEST_F(Entries, RemovingWhatTheHostRemovedIsPlainENOENT) {
  write_file("a", "");
  lookup("a");
  ASSERT_EQ(::unlink(path("a").c_str()), 0);
  EXPECT_EQ(unlink("a").error(), Errno{ENOENT});
  auto c = call();
  EXPECT_EQ(fs().rmdir(c, name("a")).error(), Errno{ENOENT});
  EXPECT_EQ(fs().rename(c, name("a"), NodeId{1}, name("b"), 0).error(), Errno{ENOENT});
}

TEST_F(Entries, AnUnlinkedFileStaysUsableWhileTheGuestKnowsIt) {
  write_file("a", "text");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  ASSERT_TRUE(unlink("a"));
  auto c = call(a);
  const auto attr = fs().getattr(c, {});
  ASSERT_TRUE(attr);
  EXPECT_EQ(attr->attr.nlink, 0U);
  EXPECT_TRUE(write(a, handle, "more", 4));
}

TEST_F(Entries, RenameReplacesExchangesAndRefuses) {
  write_file("a", "A");
  write_file("b", "B");
  auto c = call();
  EXPECT_EQ(fs().rename(c, name("a"), NodeId{1}, name("b"), RENAME_NOREPLACE).error(),
            Errno{EEXIST});
  EXPECT_TRUE(fs().rename(c, name("a"), NodeId{1}, name("b"), RENAME_EXCHANGE));
  EXPECT_EQ(read_file("a"), "B");
  EXPECT_TRUE(fs().rename(c, name("a"), NodeId{1}, name("b"), 0));
  EXPECT_EQ(read_file("b"), "B");
  EXPECT_FALSE(std::filesystem::exists(path("a")));
  EXPECT_EQ(fs().rename(c, name("b"), NodeId{1}, name("a"), 0x80).error(), Errno{EINVAL});
}

TEST_F(Entries, ALabelThatCannotBeSetUndoesTheCreate) {
  session_.flags |= FUSE_SECURITY_CTX;
  const std::array<std::byte, 4> value{};
  fuse::Call c = call();
  c.security = fuse::SecurityContext{.name = "user.nolabel", .value = value};
  EXPECT_EQ(create(c, "file", O_RDWR, 0644).error(), Errno{EINVAL});
  EXPECT_EQ(mkdir(c, "dir", 0755).error(), Errno{EINVAL});
  EXPECT_TRUE(std::filesystem::is_empty(root_));
  EXPECT_EQ(fs().inodes().count(), 1U);
}

TEST_F(Entries, WithoutThePrivilegeEverythingIsTheDaemons) {
  settings_.can_switch_user = false;
  ASSERT_TRUE(create(call(NodeId{1}, 1000, 1000), "x", O_RDWR, 0644));
  ASSERT_TRUE(mkdir(call(NodeId{1}, ~0U, ~0U), "d", 0755));
  EXPECT_EQ(host("x").st_uid, ::geteuid());
  EXPECT_EQ(host("d").st_uid, ::geteuid());
}

TEST_F(Entries, InitForgetsTheOldGuest) {
  write_file("a", "");
  const NodeId a = lookup("a");
  const HandleId handle = open(a, O_RDWR);
  ASSERT_TRUE(fs().init(session_));
  auto c = call(a);
  EXPECT_EQ(fs().getattr(c, {}).error(), Errno{ESTALE});
  EXPECT_EQ(fs().fsync(c, handle, false).error(), Errno{EBADF});
  EXPECT_EQ(fs().handles().count(), 0U);
}

TEST_F(Entries, AThreadThatWasNotAnnouncedStillSwitchesOnlyItself) {
  fs();
  std::thread other(
      [this] { EXPECT_TRUE(create(call(NodeId{1}, 1000, 1000), "x", O_RDWR, 0644)); });
  other.join();
  EXPECT_EQ(host("x").st_uid, 1000U);
  EXPECT_EQ(sys::fs_uid(), 0U);
}

// ---- served again by a successor ----------------------------------------------------

class EntriesAgain : public Entries {
 protected:
  using Entries::unlink;

  Result<fuse_entry_out> symlink(const fuse::Call& made, const std::string& text,
                                 const char* target) {
    fuse::Call c = made;
    return fs().symlink(c, name(text), target);
  }
  Result<fuse_entry_out> link(const fuse::Call& made, NodeId existing, const std::string& text) {
    fuse::Call c = made;
    return fs().link(c, existing, name(text));
  }
  Result<> unlink(const fuse::Call& made, const std::string& text) {
    fuse::Call c = made;
    return fs().unlink(c, name(text));
  }
  Result<> rmdir(const fuse::Call& made, const std::string& text) {
    fuse::Call c = made;
    return fs().rmdir(c, name(text));
  }
  Result<> rename(const fuse::Call& made, const std::string& from, const std::string& to,
                  std::uint32_t flags = 0) {
    fuse::Call c = made;
    return fs().rename(c, name(from), NodeId{1}, name(to), flags);
  }
  // Makes one thing of each kind, or finds that it is made.
  std::vector<std::pair<std::string, Result<fuse_entry_out>>> make_all(const fuse::Call& made) {
    std::vector<std::pair<std::string, Result<fuse_entry_out>>> all;
    all.emplace_back("dir", mkdir(made, "dir", 0755));
    all.emplace_back("fifo", mknod(made, "fifo", S_IFIFO | 0644));
    all.emplace_back("node", mknod(made, "node", S_IFREG | 0644));
    all.emplace_back("null", mknod(made, "null", S_IFCHR | 0644, 0x103));
    all.emplace_back("sym", symlink(made, "sym", "some/where"));
    all.emplace_back("linked", link(made, lookup("existing"), "linked"));
    return all;
  }
  bool is_known(std::uint64_t node) {
    auto c = call(NodeId{node});
    return fs().getattr(c, {}).has_value();
  }
};

TEST_F(EntriesAgain, WhatIsNotMadeYetIsMade) {
  write_file("existing", "");
  for (const auto& [text, made] : make_all(again())) {
    ASSERT_TRUE(made) << text << ": " << made.error().text();
    EXPECT_EQ(made->attr.ino, host(text).st_ino) << text;
  }
  const auto created = create(again(), "file", O_RDWR | O_EXCL, 0640);
  ASSERT_TRUE(created);
  EXPECT_EQ(host("file").st_mode & 07777, 0640U);
}

TEST_F(EntriesAgain, WhatIsMadeAlreadyIsTheAnswer) {
  write_file("existing", "");
  const auto first = make_all(call());
  for (const auto& [text, made] : first) ASSERT_TRUE(made) << text << ": " << made.error().text();
  const auto second = make_all(again());
  for (std::size_t i = 0; i < first.size(); ++i) {
    const auto& [text, made] = second[i];
    ASSERT_TRUE(made) << text << ": " << made.error().text();
    EXPECT_EQ(made->nodeid, first[i].second->nodeid) << text;
    EXPECT_EQ(made->attr.ino, host(text).st_ino) << text;
    EXPECT_EQ(made->attr.mode, host(text).st_mode) << text;
    // The answer counts as a lookup, as any.
    const NodeId node{made->nodeid};
    fs().forget(node, 1);
    EXPECT_TRUE(is_known(node.value)) << text;
    fs().forget(node, text == "linked" ? 3 : 1);  // looked up twice by its other name
    EXPECT_FALSE(is_known(node.value)) << text;
  }
  EXPECT_EQ(host("existing").st_nlink, 2U);
}

TEST_F(EntriesAgain, ServedForTheFirstTimeWhatIsThereIsInTheWay) {
  write_file("existing", "");
  for (const auto& [text, made] : make_all(call())) ASSERT_TRUE(made) << text;
  const std::uint64_t count = fs().inodes().count();
  for (const auto& [text, made] : make_all(call())) EXPECT_EQ(made.error(), Errno{EEXIST}) << text;
  ASSERT_TRUE(create(call(), "file", O_RDWR | O_EXCL, 0640));
  EXPECT_EQ(create(call(), "file", O_RDWR | O_EXCL, 0640).error(), Errno{EEXIST});
  EXPECT_EQ(fs().inodes().count(), count + 1);
}

TEST_F(EntriesAgain, WhatIsOfAnotherKindIsInTheWay) {
  write_file("existing", "");
  for (const auto& [text, made] : make_all(call())) ASSERT_TRUE(made) << text;
  const std::uint64_t count = fs().inodes().count();
  for (const char* text : {"fifo", "node", "null", "sym"})
    EXPECT_EQ(mkdir(again(), text, 0755).error(), Errno{EEXIST}) << text;
  for (const char* text : {"dir", "node", "null", "sym"})
    EXPECT_EQ(mknod(again(), text, S_IFIFO | 0644).error(), Errno{EEXIST}) << text;
  for (const char* text : {"dir", "fifo", "null", "sym"}) {
    EXPECT_EQ(mknod(again(), text, S_IFREG | 0644).error(), Errno{EEXIST}) << text;
    EXPECT_EQ(create(again(), text, O_RDWR | O_EXCL, 0644).error(), Errno{EEXIST}) << text;
  }
  EXPECT_EQ(mknod(again(), "null", S_IFBLK | 0644, 0x103).error(), Errno{EEXIST});
  EXPECT_EQ(mknod(again(), "null", S_IFCHR | 0644, 0x105).error(), Errno{EEXIST});
  EXPECT_TRUE(mknod(again(), "null", S_IFCHR | 0644, 0x103));
  for (const char* text : {"dir", "fifo", "node", "null"})
    EXPECT_EQ(symlink(again(), text, "some/where").error(), Errno{EEXIST}) << text;
  for (const char* target : {"some/wher", "some/where/", "some/whera"})
    EXPECT_EQ(symlink(again(), "sym", target).error(), Errno{EEXIST}) << target;
  const NodeId other = lookup("node");
  EXPECT_EQ(link(again(), other, "linked").error(), Errno{EEXIST});
  EXPECT_EQ(link(again(), other, "dir").error(), Errno{EEXIST});
  fs().forget(other, 1);
  EXPECT_EQ(fs().inodes().count(), count) << "a refusal left a lookup behind";
}

// It was changed a moment ago, for it has got a name. It was made when this text was.
TEST_F(EntriesAgain, WhatIsOldIsInTheWay) {
  struct statx stx {};
  if (::statx(AT_FDCWD, __FILE__, 0, STATX_BTIME, &stx) != 0 || (stx.stx_mask & STATX_BTIME) == 0 ||
      ::time(nullptr) - stx.stx_btime.tv_sec < 120) {
    GTEST_SKIP() << "nothing old is at hand";
  }
  if (::link(__FILE__, path("old").c_str()) != 0) GTEST_SKIP() << "it is on another file system";
  EXPECT_EQ(mknod(again(), "old", S_IFREG | 0644).error(), Errno{EEXIST});
  EXPECT_EQ(create(again(), "old", O_RDONLY | O_EXCL, 0644).error(), Errno{EEXIST});
}

TEST_F(EntriesAgain, AnExclusiveCreateThatIsDoneIsOpened) {
  const auto who = call(NodeId{1}, 1000, 1000);
  const auto first = create(who, "file", O_RDWR | O_EXCL, 0644);
  ASSERT_TRUE(first);
  const auto second = create(again(NodeId{1}, 1000, 1000), "file", O_RDWR | O_EXCL, 0644);
  ASSERT_TRUE(second) << second.error().text();
  EXPECT_EQ(second->entry.nodeid, first->entry.nodeid);
  EXPECT_NE(second->open.fh, first->open.fh);
  const NodeId node{second->entry.nodeid};
  EXPECT_TRUE(write(node, HandleId{second->open.fh}, "text", 0));
  EXPECT_EQ(read_file("file"), "text");
  EXPECT_EQ(host("file").st_uid, 1000U);
}

TEST_F(EntriesAgain, AFileNobodyMayWriteIsOpenedForWritingByWhoMadeIt) {
  for (const int flags : {O_RDWR | O_EXCL, O_RDWR, O_WRONLY | O_TRUNC}) {
    ASSERT_TRUE(create(call(NodeId{1}, 1000, 1000), "file", flags, 0400));
    const auto second = create(again(NodeId{1}, 1000, 1000), "file", flags, 0400);
    ASSERT_TRUE(second) << second.error().text();
    EXPECT_TRUE(write(NodeId{second->entry.nodeid}, HandleId{second->open.fh}, "text", 0, flags));
    EXPECT_EQ(read_file("file"), "text");
    // By nobody else, and by nobody who asks for the first time.
    EXPECT_FALSE(create(again(NodeId{1}, 1001, 1000), "file", flags, 0400));
    EXPECT_FALSE(create(call(NodeId{1}, 1000, 1000), "file", flags, 0400));
    EXPECT_EQ(sys::fs_uid(), 0U);
    ASSERT_TRUE(unlink("file"));
  }
}

TEST_F(EntriesAgain, WhatIsRemovedAlreadyIsRemoved) {
  write_file("a", "");
  ::mkdir(path("d").c_str(), 0755);
  EXPECT_TRUE(unlink(again(), "a"));
  EXPECT_FALSE(std::filesystem::exists(path("a")));
  EXPECT_TRUE(unlink(again(), "a"));
  EXPECT_TRUE(rmdir(again(), "d"));
  EXPECT_FALSE(std::filesystem::exists(path("d")));
  EXPECT_TRUE(rmdir(again(), "d"));
  EXPECT_EQ(unlink(call(), "a").error(), Errno{ENOENT});
  EXPECT_EQ(rmdir(call(), "d").error(), Errno{ENOENT});
}

TEST_F(EntriesAgain, WhatCannotBeRemovedIsStillAnError) {
  write_file("a", "");
  ::mkdir(path("d").c_str(), 0755);
  write_file("d/inside", "");
  EXPECT_EQ(unlink(again(), "d").error(), Errno{EISDIR});
  EXPECT_EQ(rmdir(again(), "a").error(), Errno{ENOTDIR});
  EXPECT_EQ(rmdir(again(), "d").error(), Errno{ENOTEMPTY});
  fuse::Call c = again(NodeId{0xdeadbeef});
  EXPECT_EQ(fs().unlink(c, name("a")).error(), Errno{ESTALE});
}

TEST_F(EntriesAgain, ARenameThatIsDoneIsDone) {
  write_file("a", "A");
  const NodeId a = lookup("a");
  EXPECT_TRUE(rename(again(), "a", "b"));
  EXPECT_EQ(read_file("b"), "A");
  EXPECT_FALSE(std::filesystem::exists(path("a")));
  for (const std::uint32_t flags : {0U, static_cast<unsigned>(RENAME_NOREPLACE)}) {
    EXPECT_TRUE(rename(again(), "a", "b", flags)) << flags;
    EXPECT_EQ(rename(call(), "a", "b", flags).error(), Errno{ENOENT}) << flags;
  }
  EXPECT_EQ(read_file("b"), "A");
  EXPECT_EQ(lookup("b"), a);
  // Forgotten, it is found again under the name it has now.
  fs().forget(a, 2);
  auto c = call(a);
  EXPECT_TRUE(fs().lookup_self(c));
}

TEST_F(EntriesAgain, ARenameThatReplacedSomethingIsDone) {
  write_file("a", "A");
  write_file("b", "B");
  const NodeId b = lookup("b");
  const HandleId handle = open(b, O_RDWR);
  ASSERT_TRUE(rename(call(), "a", "b"));
  EXPECT_TRUE(rename(again(), "a", "b"));
  EXPECT_EQ(read_file("b"), "A");
  EXPECT_TRUE(write(b, handle, "still", 0)) << "what was replaced is open";
  EXPECT_EQ(read_file("b"), "A");
}

TEST_F(EntriesAgain, ARenameOfNothingIsNotDone) {
  EXPECT_EQ(rename(again(), "a", "b").error(), Errno{ENOENT});
  write_file("a", "A");
  write_file("b", "B");
  EXPECT_EQ(rename(again(), "a", "b", RENAME_NOREPLACE).error(), Errno{EEXIST});
  EXPECT_EQ(read_file("a"), "A");
  EXPECT_EQ(read_file("b"), "B");
}

TEST_F(EntriesAgain, AnExchangeIsNotTriedAgain) {
  write_file("a", "A");
  write_file("b", "B");
  EXPECT_EQ(rename(again(), "a", "b", RENAME_EXCHANGE).error(), Errno{EIO});
  EXPECT_EQ(read_file("a"), "A");
  EXPECT_EQ(read_file("b"), "B");
}

// The whiteout that it left would be moved over the file.
TEST_F(EntriesAgain, ARenameThatLeftAWhiteoutIsNotTriedAgain) {
  write_file("a", "A");
  const auto renamed = rename(call(), "a", "b", RENAME_WHITEOUT);
  if (!renamed && renamed.error() == Errno{EINVAL}) GTEST_SKIP() << "no whiteouts here";
  ASSERT_TRUE(renamed) << renamed.error().text();
  ASSERT_TRUE(S_ISCHR(host("a").st_mode));
  EXPECT_EQ(rename(again(), "a", "b", RENAME_WHITEOUT).error(), Errno{EIO});
  EXPECT_EQ(read_file("b"), "A");
  EXPECT_TRUE(S_ISCHR(host("a").st_mode));
}

}  // namespace
}  // namespace virtiofsd
