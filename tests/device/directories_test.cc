// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

class Directories : public DeviceTest {
 protected:
  static std::vector<std::string> names(const std::vector<Entry>& entries) {
    std::vector<std::string> found;
    for (const Entry& entry : entries) found.push_back(entry.name);
    std::sort(found.begin(), found.end());
    return found;
  }
};
INSTANTIATE_DEVICE_TEST(Directories);

TEST_P(Directories, ReaddirListsEverythingOnce) {
  tree().write("file", "");
  tree().mkdir("dir");
  tree().symlink("link", "file");
  const auto entries = GET(fuse().list(kRoot));
  EXPECT_EQ(names(entries), (std::vector<std::string>{".", "..", "dir", "file", "link"}));
  for (const Entry& entry : entries) {
    if (entry.name == "file") {
      EXPECT_EQ(entry.type, unsigned{DT_REG});
      EXPECT_EQ(entry.ino, tree().stat("file").st_ino);
    }
    if (entry.name == "dir") {
      EXPECT_EQ(entry.type, unsigned{DT_DIR});
    }
    if (entry.name == "link") {
      EXPECT_EQ(entry.type, unsigned{DT_LNK});
    }
  }
}

TEST_P(Directories, ALargeDirectoryInSmallStepsShowsEachNameOnce) {
  std::set<std::string> expected{".", ".."};
  for (int i = 0; i < 2000; ++i) {
    const std::string name = "entry-" + std::to_string(i) + std::string(i % 40, 'x');
    tree().write(name, "");
    expected.insert(name);
  }
  for (const bool plus : {false, true}) {
    const auto entries = GET(fuse().list(kRoot, plus, 1024));
    EXPECT_EQ(entries.size(), expected.size());
    std::set<std::string> found;
    for (const Entry& entry : entries) found.insert(entry.name);
    EXPECT_EQ(found, expected);
  }
}

TEST_P(Directories, ReaddirGoesOnFromAnyEntry) {
  for (int i = 0; i < 50; ++i) tree().write("f" + std::to_string(i), "");
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  const auto all = GET(fuse().readdir(kRoot, handle, 0));
  ASSERT_EQ(all.size(), 52U);
  for (const std::size_t at : {std::size_t{40}, std::size_t{3}, std::size_t{20}}) {
    const auto rest = GET(fuse().readdir(kRoot, handle, all[at].offset));
    ASSERT_EQ(rest.size(), all.size() - at - 1);
    EXPECT_EQ(rest.front().name, all[at + 1].name);
  }
  EXPECT_TRUE(GET(fuse().readdir(kRoot, handle, all.back().offset)).empty());
  EXPECT_DONE(fuse().releasedir(kRoot, handle));
}

TEST_P(Directories, ReaddirplusBringsNodesThatCount) {
  tree().write("file", "12345");
  tree().mkdir("dir");
  const auto entries = GET(fuse().list(kRoot, true));
  EXPECT_EQ(names(entries), (std::vector<std::string>{".", "..", "dir", "file"}));
  for (const Entry& entry : entries) {
    if (entry.name == "file") {
      EXPECT_EQ(entry.entry.attr.size, 5U);
      EXPECT_EQ(node("file"), entry.entry.nodeid);
      fuse().forget(entry.entry.nodeid, 1);
      EXPECT_DONE(fuse().getattr(entry.entry.nodeid));  // the LOOKUP's count is left
      fuse().forget(entry.entry.nodeid, 1);
      EXPECT_FALSE(fuse().getattr(entry.entry.nodeid));
    }
  }
}

TEST_P(Directories, ReaddirplusGivesDotsNoCount) {
  tree().mkdir("dir");
  const std::uint64_t dir = node("dir");
  EXPECT_DONE(fuse().list(dir, true));
  fuse().forget(dir, 1);
  EXPECT_FALSE(fuse().getattr(dir));
}

TEST_P(Directories, RootsParentIsNotShown) {
  const auto entries = GET(fuse().list(kRoot));
  for (const Entry& entry : entries) {
    if (entry.name == "..") {
      EXPECT_EQ(entry.ino, tree().stat("").st_ino);
    }
  }
}

TEST_P(Directories, ReaddirWithRoomForNoEntryIsRefusedOrEmpty) {
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  const auto entries = fuse().readdir(kRoot, handle, 0, 8);
  EXPECT_TRUE(!entries || entries->empty());
  EXPECT_DONE(fuse().releasedir(kRoot, handle));
}

TEST_P(Directories, ReaddirOfMoreThanAMegabyteIsClamped) {
  if (foreign()) GTEST_SKIP();
  tree().write("file", "");
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  fuse_read_in in{};
  in.fh = handle;
  in.size = 0xffff'ffff;
  const Reply reply = fuse().call(FUSE_READDIR, kRoot, {bytes_of(in)}, 65536);
  EXPECT_EQ(reply.error, 0);
  EXPECT_GT(reply.bytes.size(), 0U);
  EXPECT_DONE(fuse().releasedir(kRoot, handle));
}

TEST_P(Directories, AnOffsetThatIsNoneHurtsNobody) {
  if (foreign()) GTEST_SKIP();
  tree().write("file", "");
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  for (const std::uint64_t offset :
       {~std::uint64_t{0}, std::uint64_t{1} << 63, std::uint64_t{12345}}) {
    [[maybe_unused]] const auto answered = fuse().readdir(kRoot, handle, offset);
  }
  EXPECT_EQ(GET(fuse().readdir(kRoot, handle, 0)).size(), 3U);
  EXPECT_DONE(fuse().releasedir(kRoot, handle));
}

TEST_P(Directories, AnEntryThatVanishesDoesNotEndTheListing) {
  for (int i = 0; i < 200; ++i) tree().write("f" + std::to_string(i), "");
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  std::vector<Entry> some = GET(fuse().readdirplus(kRoot, handle, 0, 4096));
  ASSERT_FALSE(some.empty());
  for (int i = 100; i < 200; ++i) tree().remove("f" + std::to_string(i));
  std::set<std::string> seen;
  while (!some.empty()) {
    for (const Entry& entry : some) seen.insert(entry.name);
    const auto next = fuse().readdirplus(kRoot, handle, some.back().offset, 4096);
    if (foreign() && !next) break;
    ASSERT_TRUE(next) << next.error().text();
    some.assign(next->begin(), next->end());
  }
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(seen.contains("f" + std::to_string(i)) || foreign());
  EXPECT_DONE(fuse().releasedir(kRoot, handle));
}

TEST_P(Directories, OpendirRefusesWhatItShould) {
  tree().write("file", "");
  tree().symlink("link", "/etc");
  EXPECT_REFUSED(ENOTDIR, fuse().opendir(node("file")));
  EXPECT_FALSE(fuse().opendir(node("link")));
  EXPECT_FALSE(fuse().opendir(kNoNode));
}

TEST_P(Directories, ReleasedirEndsAHandle) {
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  EXPECT_DONE(fuse().releasedir(kRoot, handle));
  EXPECT_REFUSED(EBADF, fuse().readdir(kRoot, handle, 0));
  EXPECT_REFUSED(EBADF, fuse().readdirplus(kRoot, handle, 0));
}

TEST_P(Directories, FsyncdirIsDone) {
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  EXPECT_DONE(fuse().fsyncdir(kRoot, handle, false));
  EXPECT_DONE(fuse().fsyncdir(kRoot, handle, true));
  EXPECT_REFUSED(EBADF, fuse().fsyncdir(kRoot, kNoHandle));
  EXPECT_DONE(fuse().releasedir(kRoot, handle));
}

TEST_P(Directories, ADirectoryRemovedWhileOpenListsEmptyOrGone) {
  tree().mkdir("dir");
  const std::uint64_t dir = node("dir");
  const std::uint64_t handle = GET(fuse().opendir(dir)).fh;
  EXPECT_DONE(fuse().rmdir(kRoot, "dir"));
  const auto entries = fuse().readdir(dir, handle, 0);
  if (entries) {
    EXPECT_LE(entries->size(), 2U);
  } else {
    EXPECT_REFUSED(ENOENT, entries);
  }
  EXPECT_DONE(fuse().releasedir(dir, handle));
}

}  // namespace
}  // namespace virtiofsd::guest
