// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Operations on names: what they do, and what they refuse.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <linux/fs.h>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

using namespace std::string_view_literals;

class Names : public DeviceTest {};
INSTANTIATE_DEVICE_TEST(Names);

const std::string kLongestName(255, 'n');
const std::string kTooLongName(256, 'n');

// ---- LOOKUP ----

TEST_P(Names, LookupTellsNodeAndAttributes) {
  tree().write("file", "hello", 0640);
  const fuse_entry_out entry = GET(fuse().lookup(kRoot, "file"));
  EXPECT_GT(entry.nodeid, std::uint64_t{kRoot});
  EXPECT_EQ(entry.attr.size, 5U);
  EXPECT_EQ(entry.attr.mode, S_IFREG | 0640U);
  EXPECT_EQ(entry.attr.ino, tree().stat("file").st_ino);
  EXPECT_EQ(entry.attr.nlink, 1U);
}

TEST_P(Names, LookupGivesOneFileOneNode) {
  tree().write("file", "");
  const std::uint64_t first = node("file");
  EXPECT_EQ(node("file"), first);
  fuse().forget(first, 2);
}

TEST_P(Names, LookupGivesHardLinksOneNode) {
  tree().write("one", "");
  ASSERT_EQ(link(tree().path("one").c_str(), tree().path("two").c_str()), 0);
  EXPECT_EQ(node("one"), node("two"));
}

TEST_P(Names, LookupOfAMissingNameIsRefused) {
  const auto entry = fuse().lookup(kRoot, "missing");
  // A negative entry (node 0 with a lifetime) is the other right way to say so.
  if (entry) {
    EXPECT_EQ(entry->nodeid, 0U);
  } else {
    EXPECT_REFUSED(ENOENT, entry);
  }
}

TEST_P(Names, LookupOfTheLongestNameIsAnsweredAndOneByteMoreIsNot) {
  tree().write(kLongestName, "");
  EXPECT_DONE(fuse().lookup(kRoot, kLongestName));
  EXPECT_REFUSED(ENAMETOOLONG, fuse().lookup(kRoot, kTooLongName));
}

TEST_P(Names, LookupNeverClimbs) {
  tree().mkdir("dir");
  tree().write("dir/file", "");
  const auto slashed = fuse().lookup(kRoot, "dir/file");
  EXPECT_REFUSED(EINVAL, slashed);
  EXPECT_REFUSED(EINVAL, fuse().lookup(kRoot, "../etc"));
  EXPECT_REFUSED(EINVAL, fuse().lookup(kRoot, "/etc"));
  // ".." of the root is the root, whatever is above it.
  const auto parent = fuse().lookup(kRoot, "..");
  if (parent) {
    EXPECT_EQ(parent->attr.ino, tree().stat("").st_ino);
  }
}

TEST_P(Names, LookupOfDotAndDotDotGoesByNode) {
  if (foreign()) GTEST_SKIP() << "peers differ";
  tree().mkdir("dir");
  const std::uint64_t dir = node("dir");
  EXPECT_EQ(GET(fuse().lookup(dir, ".")).nodeid, dir);
  EXPECT_EQ(GET(fuse().lookup(dir, "..")).nodeid, std::uint64_t{kRoot});
  EXPECT_EQ(GET(fuse().lookup(kRoot, "..")).nodeid, std::uint64_t{kRoot});
}

TEST_P(Names, LookupInANodeThatIsNoneIsRefused) {
  const auto stale = fuse().lookup(kNoNode, "x");
  EXPECT_TRUE(outcome(stale).error == ESTALE || outcome(stale).error == EBADF ||
              outcome(stale).error == ENOENT || outcome(stale).error == EINVAL)
      << outcome(stale).error;
}

TEST_P(Names, LookupInAFileIsRefused) {
  tree().write("file", "");
  EXPECT_REFUSED(ENOTDIR, fuse().lookup(node("file"), "x"));
}

TEST_P(Names, LookupOfAnEmptyNameIsRefused) {
  if (foreign()) GTEST_SKIP();
  EXPECT_REFUSED(EINVAL, fuse().lookup(kRoot, ""));
}

TEST_P(Names, LookupDoesNotFollowSymlinks) {
  tree().symlink("link", "/etc");
  const fuse_entry_out entry = GET(fuse().lookup(kRoot, "link"));
  EXPECT_EQ(entry.attr.mode & S_IFMT, unsigned{S_IFLNK});
  EXPECT_REFUSED(ENOTDIR, fuse().lookup(entry.nodeid, "passwd"));
}

// ---- FORGET, BATCH_FORGET ----

TEST_P(Names, ForgetEndsANode) {
  tree().write("file", "");
  const std::uint64_t forgotten = node("file");
  fuse().forget(forgotten, 1);
  const auto stale = fuse().getattr(forgotten);
  EXPECT_FALSE(stale) << "the node still answers after its last FORGET";
}

TEST_P(Names, ForgetCountsLookups) {
  tree().write("file", "");
  const std::uint64_t kept = node("file");
  node("file");
  fuse().forget(kept, 1);
  EXPECT_DONE(fuse().getattr(kept));
}

TEST_P(Names, ForgettingMoreThanWasGivenHurtsNobody) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon aborts";
  tree().write("file", "");
  tree().write("other", "");
  const std::uint64_t other = node("other");
  fuse().forget(node("file"), 1'000'000);
  fuse().forget(kNoNode, 1);
  fuse().forget(kRoot, ~0ULL);
  fuse().forget(0, 1);
  EXPECT_DONE(fuse().getattr(kRoot));
  EXPECT_DONE(fuse().getattr(other));
  EXPECT_DONE(fuse().lookup(kRoot, "file"));
}

TEST_P(Names, BatchForgetEndsEachNode) {
  tree().write("a", "");
  tree().write("b", "");
  const std::uint64_t a = node("a");
  const std::uint64_t b = node("b");
  const fuse_forget_one gone[] = {{.nodeid = a, .nlookup = 1}, {.nodeid = b, .nlookup = 1}};
  fuse().batch_forget(gone);
  EXPECT_FALSE(fuse().getattr(a));
  EXPECT_FALSE(fuse().getattr(b));
}

TEST_P(Names, BatchForgetThatClaimsMoreThanItBringsIsSurvived) {
  if (foreign()) GTEST_SKIP();
  const fuse_batch_forget_in in{.count = 1'000'000, .dummy = 0};
  fuse().tell(FUSE_BATCH_FORGET, 0, {bytes_of(in)});
  EXPECT_DONE(fuse().getattr(kRoot));
}

// ---- SYMLINK, READLINK ----

TEST_P(Names, SymlinkMakesALinkAndReadlinkReadsIt) {
  const fuse_entry_out entry = GET(fuse().symlink(kRoot, "link", "/not/there"));
  EXPECT_EQ(entry.attr.mode & S_IFMT, unsigned{S_IFLNK});
  EXPECT_EQ(GET(fuse().readlink(entry.nodeid)), "/not/there");
}

TEST_P(Names, ReadlinkReturnsTheLongestTarget) {
  const std::string target(4095, 't');
  EXPECT_EQ(GET(fuse().readlink(GET(fuse().symlink(kRoot, "link", target)).nodeid)), target);
}

TEST_P(Names, SymlinkOverAnExistingNameIsRefused) {
  tree().write("file", "");
  EXPECT_REFUSED(EEXIST, fuse().symlink(kRoot, "file", "x"));
}

TEST_P(Names, SymlinkRefusesBadNames) {
  EXPECT_REFUSED(EINVAL, fuse().symlink(kRoot, "a/b", "x"));
  EXPECT_FALSE(fuse().symlink(kRoot, "..", "x"));
  EXPECT_FALSE(fuse().symlink(kRoot, "", "x"));
  EXPECT_REFUSED(ENAMETOOLONG, fuse().symlink(kRoot, kTooLongName, "x"));
}

TEST_P(Names, ReadlinkOfAFileIsRefused) {
  tree().write("file", "");
  EXPECT_FALSE(fuse().readlink(node("file")));
  EXPECT_FALSE(fuse().readlink(kNoNode));
}

// ---- MKNOD ----

TEST_P(Names, MknodMakesAFileOfEachKind) {
  EXPECT_EQ(GET(fuse().mknod(kRoot, "file", S_IFREG | 0600)).attr.mode, S_IFREG | 0600U);
  EXPECT_EQ(GET(fuse().mknod(kRoot, "fifo", S_IFIFO | 0640)).attr.mode, S_IFIFO | 0640U);
  EXPECT_EQ(GET(fuse().mknod(kRoot, "socket", S_IFSOCK | 0600)).attr.mode, S_IFSOCK | 0600U);
  const auto device = fuse().mknod(kRoot, "null", S_IFCHR | 0666, makedev(1, 3));
  if (device) {
    EXPECT_EQ(tree().stat("null").st_rdev, makedev(1, 3));
  } else {
    EXPECT_REFUSED(EPERM, device);  // without CAP_MKNOD, as it should be
  }
}

TEST_P(Names, MknodRefusesWhatItShould) {
  tree().write("file", "");
  EXPECT_REFUSED(EEXIST, fuse().mknod(kRoot, "file", S_IFREG | 0600));
  EXPECT_REFUSED(EINVAL, fuse().mknod(kRoot, "a/b", S_IFREG | 0600));
  EXPECT_FALSE(fuse().mknod(kNoNode, "x", S_IFREG | 0600));
  EXPECT_REFUSED(ENOTDIR, fuse().mknod(node("file"), "x", S_IFREG | 0600));
  EXPECT_REFUSED(ENAMETOOLONG, fuse().mknod(kRoot, kTooLongName, S_IFREG | 0600));
}

// ---- MKDIR ----

TEST_P(Names, MkdirMakesADirectoryOfTheCaller) {
  tree().chmod("", 0777);
  fuse().as(1000, 1001);
  const fuse_entry_out entry = GET(fuse().mkdir(kRoot, "dir", 0750));
  EXPECT_EQ(entry.attr.mode, S_IFDIR | 0750U);
  EXPECT_EQ(entry.attr.uid, 1000U);
  EXPECT_EQ(entry.attr.gid, 1001U);
}

TEST_P(Names, MkdirRefusesWhatItShould) {
  tree().write("file", "");
  EXPECT_REFUSED(EEXIST, fuse().mkdir(kRoot, "file", 0755));
  EXPECT_FALSE(fuse().mkdir(kRoot, ".", 0755));
  EXPECT_FALSE(fuse().mkdir(kRoot, "..", 0755));
  EXPECT_REFUSED(EINVAL, fuse().mkdir(kRoot, "a/b", 0755));
  EXPECT_FALSE(fuse().mkdir(kNoNode, "x", 0755));
}

TEST_P(Names, MkdirWhereTheCallerMayNotIsRefused) {
  if (foreign()) GTEST_SKIP() << "peers override permission without group information";
  tree().mkdir("private", 0700);
  fuse().as(1000, 1000);
  EXPECT_REFUSED(EACCES, fuse().mkdir(node("private"), "x", 0755));
}

// ---- UNLINK, RMDIR ----

TEST_P(Names, UnlinkTakesANameAway) {
  tree().write("file", "");
  EXPECT_DONE(fuse().lookup(kRoot, "file"));
  EXPECT_DONE(fuse().unlink(kRoot, "file"));
  EXPECT_FALSE(tree().exists("file"));
}

TEST_P(Names, UnlinkOfANameNeverLookedUpWorks) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon answers EIO";
  tree().write("file", "");
  EXPECT_DONE(fuse().unlink(kRoot, "file"));
  EXPECT_REFUSED(ENOENT, fuse().unlink(kRoot, "file"));
}

TEST_P(Names, AnUnlinkedFileStillAnswersByItsNode) {
  tree().write("file", "content");
  const std::uint64_t kept = node("file");
  EXPECT_DONE(fuse().unlink(kRoot, "file"));
  EXPECT_EQ(GET(fuse().getattr(kept)).nlink, 0U);
}

TEST_P(Names, UnlinkOfADirectoryIsRefused) {
  tree().mkdir("dir");
  EXPECT_DONE(fuse().lookup(kRoot, "dir"));
  EXPECT_REFUSED(EISDIR, fuse().unlink(kRoot, "dir"));
}

TEST_P(Names, UnlinkRefusesBadNamesAndNodes) {
  EXPECT_REFUSED(EINVAL, fuse().unlink(kRoot, "a/b"));
  EXPECT_FALSE(fuse().unlink(kRoot, "."));
  EXPECT_FALSE(fuse().unlink(kNoNode, "x"));
}

TEST_P(Names, RmdirTakesAnEmptyDirectoryAway) {
  tree().mkdir("dir");
  EXPECT_DONE(fuse().lookup(kRoot, "dir"));
  EXPECT_DONE(fuse().rmdir(kRoot, "dir"));
  EXPECT_FALSE(tree().exists("dir"));
}

TEST_P(Names, RmdirRefusesWhatItShould) {
  tree().mkdir("dir");
  tree().write("dir/file", "");
  tree().write("file", "");
  EXPECT_DONE(fuse().lookup(kRoot, "dir"));
  EXPECT_DONE(fuse().lookup(kRoot, "file"));
  EXPECT_REFUSED(ENOTEMPTY, fuse().rmdir(kRoot, "dir"));
  EXPECT_REFUSED(ENOTDIR, fuse().rmdir(kRoot, "file"));
  EXPECT_FALSE(fuse().rmdir(kRoot, "."));
  EXPECT_FALSE(fuse().rmdir(kRoot, ".."));
  EXPECT_FALSE(fuse().rmdir(kNoNode, "x"));
}

// ---- RENAME, RENAME2 ----

TEST_P(Names, RenameMovesANameAndKeepsTheNode) {
  tree().mkdir("dir");
  tree().write("from", "content");
  const std::uint64_t moved = node("from");
  const std::uint64_t dir = node("dir");
  EXPECT_DONE(fuse().rename(kRoot, "from", dir, "to"));
  EXPECT_FALSE(tree().exists("from"));
  EXPECT_EQ(tree().read("dir/to"), "content");
  EXPECT_EQ(GET(fuse().lookup(dir, "to")).nodeid, moved);
}

TEST_P(Names, RenameReplacesTheTarget) {
  tree().write("from", "new");
  tree().write("to", "old");
  node("from");
  node("to");
  EXPECT_DONE(fuse().rename(kRoot, "from", kRoot, "to"));
  EXPECT_EQ(tree().read("to"), "new");
}

TEST_P(Names, RenameRefusesWhatItShould) {
  tree().mkdir("dir");
  tree().mkdir("full");
  tree().write("full/x", "");
  tree().write("file", "");
  for (const char* name : {"dir", "full", "file"}) node(name);
  EXPECT_REFUSED(ENOTEMPTY, fuse().rename(kRoot, "dir", kRoot, "full"));
  EXPECT_REFUSED(EISDIR, fuse().rename(kRoot, "file", kRoot, "dir"));
  EXPECT_REFUSED(ENOTDIR, fuse().rename(kRoot, "dir", kRoot, "file"));
  EXPECT_REFUSED(EINVAL, fuse().rename(kRoot, "dir", node("dir"), "inside"));
  EXPECT_REFUSED(EINVAL, fuse().rename(kRoot, "file", kRoot, "a/b"));
  EXPECT_FALSE(fuse().rename(kRoot, "file", kNoNode, "x"));
  EXPECT_FALSE(fuse().rename(kRoot, "..", kRoot, "x"));
  if (!foreign()) {
    EXPECT_REFUSED(ENOENT, fuse().rename(kRoot, "missing", kRoot, "x"));
  }
}

TEST_P(Names, Rename2KnowsItsFlags) {
  tree().write("a", "A");
  tree().write("b", "B");
  node("a");
  node("b");
  EXPECT_REFUSED(EEXIST, fuse().rename2(kRoot, "a", kRoot, "b", RENAME_NOREPLACE));
  EXPECT_DONE(fuse().rename2(kRoot, "a", kRoot, "b", RENAME_EXCHANGE));
  EXPECT_EQ(tree().read("a"), "B");
  EXPECT_EQ(tree().read("b"), "A");
  EXPECT_REFUSED(ENOENT, fuse().rename2(kRoot, "a", kRoot, "missing", RENAME_EXCHANGE));
  EXPECT_REFUSED(EINVAL, fuse().rename2(kRoot, "a", kRoot, "b", 1U << 20));
  EXPECT_REFUSED(EINVAL,
                 fuse().rename2(kRoot, "a", kRoot, "b", RENAME_EXCHANGE | RENAME_NOREPLACE));
}

// ---- LINK ----

TEST_P(Names, LinkAddsAName) {
  tree().write("file", "content");
  const std::uint64_t file = node("file");
  const fuse_entry_out entry = GET(fuse().link(file, kRoot, "second"));
  EXPECT_EQ(entry.nodeid, file);
  EXPECT_EQ(entry.attr.nlink, 2U);
  EXPECT_EQ(tree().read("second"), "content");
  fuse().forget(file, 1);
  EXPECT_DONE(fuse().getattr(file));  // LINK counted as a lookup
}

TEST_P(Names, LinkOfASymlinkLinksTheSymlink) {
  tree().symlink("link", "target");
  EXPECT_DONE(fuse().link(node("link"), kRoot, "second"));
  EXPECT_TRUE(S_ISLNK(tree().stat("second").st_mode));
}

TEST_P(Names, LinkRefusesWhatItShould) {
  tree().mkdir("dir");
  tree().write("file", "");
  const std::uint64_t file = node("file");
  EXPECT_REFUSED(EEXIST, fuse().link(file, kRoot, "file"));
  EXPECT_REFUSED(EPERM, fuse().link(node("dir"), kRoot, "second"));
  EXPECT_REFUSED(EINVAL, fuse().link(file, kRoot, "a/b"));
  EXPECT_FALSE(fuse().link(kNoNode, kRoot, "x"));
  EXPECT_FALSE(fuse().link(file, kNoNode, "x"));
  EXPECT_REFUSED(ENOTDIR, fuse().link(file, file, "x"));
}

// ---- names as bytes ----

TEST_P(Names, AnyBytesButSlashAndNulMakeAName) {
  const std::string odd = "\x01\xff \n\t\\\"é";
  EXPECT_DONE(fuse().mknod(kRoot, odd, S_IFREG | 0600));
  EXPECT_TRUE(tree().exists(odd));
  EXPECT_DONE(fuse().unlink(kRoot, odd));
}

TEST_P(Names, ANameWithoutItsNulIsRefused) {
  if (foreign()) GTEST_SKIP();
  tree().write("file", "");
  const Reply reply = fuse().call(FUSE_LOOKUP, kRoot, {std::as_bytes(std::span{"file", 4})},
                                  sizeof(fuse_entry_out));
  EXPECT_EQ(reply.error, EINVAL);
}

}  // namespace
}  // namespace virtiofsd::guest
