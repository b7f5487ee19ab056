// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include <cstring>
#include <map>
#include <random>

#include "passthrough/passthrough_fixture.h"

namespace virtiofsd {
namespace {

struct Listed {
  std::string name;
  std::uint64_t ino = 0;
  std::uint64_t next = 0;
  std::uint64_t node = 0;
};

class Directories : public PassthroughTest {
 protected:
  HandleId opendir(NodeId node) {
    auto c = call(node);
    const auto opened = fs().opendir(c, 0);
    EXPECT_TRUE(opened);
    return HandleId{opened ? opened->fh : 0};
  }
  // One request's worth.
  Result<std::vector<Listed>> list(NodeId node, HandleId handle, std::uint64_t offset,
                                   std::size_t size, bool plus) {
    std::vector<std::byte> buffer(size);
    fuse::DirectoryWriter out{buffer, plus};
    auto c = call(node);
    if (plus) {
      TRY(fs().readdirplus(c, handle, offset, out));
    } else {
      TRY(fs().readdir(c, handle, offset, out));
    }
    std::vector<Listed> entries;
    std::span<const std::byte> rest = out.bytes();
    while (!rest.empty()) {
      fuse_entry_out entry{};
      fuse_dirent head{};
      const std::size_t skip = plus ? sizeof entry : 0;
      if (plus) std::memcpy(&entry, rest.data(), sizeof entry);
      std::memcpy(&head, rest.data() + skip, sizeof head);
      std::string text(head.namelen, '\0');
      std::memcpy(text.data(), rest.data() + skip + sizeof head, head.namelen);
      entries.push_back({.name = text, .ino = head.ino, .next = head.off, .node = entry.nodeid});
      rest = rest.subspan((skip + sizeof head + head.namelen + 7) & ~std::size_t{7});
    }
    return entries;
  }
  std::map<std::string, int> list_all(NodeId node, std::size_t size, bool plus) {
    const HandleId handle = opendir(node);
    std::map<std::string, int> seen;
    std::uint64_t offset = 0;
    for (;;) {
      const auto entries = list(node, handle, offset, size, plus);
      EXPECT_TRUE(entries) << entries.error().text();
      if (!entries || entries->empty()) break;
      for (const Listed& entry : *entries) {
        seen[entry.name]++;
        if (entry.node > 1) fs().forget(NodeId{entry.node}, 1);
      }
      offset = entries->back().next;
    }
    auto c = call(node);
    EXPECT_TRUE(
        fs().releasedir(c, {.handle = handle, .flags = 0, .release_flags = 0, .owner = {}}));
    return seen;
  }
  void expect_each_once(const std::map<std::string, int>& seen, std::size_t count) {
    EXPECT_EQ(seen.size(), count);
    for (const auto& [text, times] : seen) EXPECT_EQ(times, 1) << text;
  }
};

TEST_F(Directories, EveryEntryIsListedOnceWhateverTheBuffer) {
  ::mkdir(path("d").c_str(), 0755);
  constexpr int kFiles = 10'000;
  for (int i = 0; i < kFiles; i++) {
    const std::string padding(static_cast<std::size_t>(i % 97), 'x');
    const int fd =
        ::open(path("d/" + std::to_string(i) + padding).c_str(), O_CREAT | O_WRONLY, 0644);
    ASSERT_GE(fd, 0);
    ::close(fd);
  }
  const NodeId d = lookup("d");
  for (const std::size_t size : {512U, 1000U, 4096U, 65536U}) {
    expect_each_once(list_all(d, size, false), kFiles + 2);
    expect_each_once(list_all(d, size, true), kFiles + 2);
  }
  EXPECT_EQ(fs().inodes().count(), 2U) << "every listed node was given back";
}

TEST_F(Directories, AnyCookieIsAGoodPlaceToGoOn) {
  ::mkdir(path("d").c_str(), 0755);
  for (int i = 0; i < 200; i++) write_file("d/" + std::to_string(i), "");
  const NodeId d = lookup("d");
  const HandleId handle = opendir(d);
  const auto all = list(d, handle, 0, 65536, false);
  ASSERT_TRUE(all);
  ASSERT_EQ(all->size(), 202U);
  std::mt19937 random{1};
  for (int i = 0; i < 100; i++) {
    const std::size_t at = random() % (all->size() - 1);
    const auto some = list(d, handle, (*all)[at].next, 512, i % 2 == 0);
    ASSERT_TRUE(some);
    ASSERT_FALSE(some->empty());
    EXPECT_EQ(some->front().name, (*all)[at + 1].name);
  }
}

TEST_F(Directories, AnEntryThatVanishedIsLeftOut) {
  ::mkdir(path("d").c_str(), 0755);
  for (int i = 0; i < 20; i++) write_file("d/" + std::to_string(i), "");
  const NodeId d = lookup("d");
  const HandleId handle = opendir(d);
  // The host removes everything but one; a listing that began before still
  // meets names that are gone on file systems that read ahead.
  const auto first = list(d, handle, 0, 700, true);
  ASSERT_TRUE(first);
  for (int i = 1; i < 20; i++) ::unlink(path("d/" + std::to_string(i)).c_str());
  std::uint64_t offset = first->back().next;
  for (;;) {
    const auto more = list(d, handle, offset, 700, true);
    ASSERT_TRUE(more) << more.error().text();
    if (more->empty()) break;
    for (const Listed& entry : *more) EXPECT_TRUE(entry.name == "0" || entry.name[0] == '.');
    offset = more->back().next;
  }
}

TEST_F(Directories, PlusCountsALookupForAllButTheDots) {
  ::mkdir(path("d").c_str(), 0755);
  write_file("d/a", "");
  const NodeId d = lookup("d");
  const auto entries = list(d, opendir(d), 0, 4096, true);
  ASSERT_TRUE(entries);
  ASSERT_EQ(entries->size(), 3U);
  for (const Listed& entry : *entries) EXPECT_EQ(entry.node == 0, entry.name[0] == '.');
  EXPECT_EQ(fs().inodes().count(), 3U);
}

TEST_F(Directories, AboveTheRootIsTheRoot) {
  const auto entries = list(NodeId{1}, opendir(NodeId{1}), 0, 4096, false);
  ASSERT_TRUE(entries);
  for (const Listed& entry : *entries) EXPECT_EQ(entry.ino, host(".").st_ino) << entry.name;
}

TEST_F(Directories, ABufferTooSmallForOneEntryIsRefused) {
  EXPECT_EQ(list(NodeId{1}, opendir(NodeId{1}), 0, 16, false).error(), Errno{EINVAL});
}

TEST_F(Directories, OnlyDirectoriesAreListed) {
  write_file("a", "");
  ASSERT_EQ(::symlink("/", path("link").c_str()), 0);
  auto file = call(lookup("a"));
  EXPECT_EQ(fs().opendir(file, 0).error(), Errno{ENOTDIR});
  auto link = call(lookup("link"));
  EXPECT_EQ(fs().opendir(link, 0).error(), Errno{ENOTDIR});
  const HandleId handle = open(lookup("a"), O_RDONLY);
  EXPECT_EQ(list(lookup("a"), handle, 0, 4096, false).error(), Errno{EBADF});
}

TEST_F(Directories, AListingGoesOnInASuccessor) {
  keep_state();
  ::mkdir(path("d").c_str(), 0755);
  constexpr int kFiles = 500;
  for (int i = 0; i < kFiles; i++) write_file("d/file" + std::to_string(i), "");
  const NodeId d = lookup("d");
  for (const bool plus : {false, true}) {
    const HandleId handle = opendir(d);
    std::map<std::string, int> seen;
    std::uint64_t offset = 0;
    for (int requests = 0;; ++requests) {
      const auto entries = list(d, handle, offset, 4096, plus);
      ASSERT_TRUE(entries) << entries.error().text();
      if (entries->empty()) break;
      // The last answer didn't arrive: it is asked for once more.
      if (requests % 3 == 1) {
        succeed();
        continue;
      }
      for (const Listed& entry : *entries) {
        seen[entry.name]++;
        EXPECT_EQ(entry.node != 0, plus && entry.name[0] != '.') << entry.name;
      }
      offset = entries->back().next;
    }
    expect_each_once(seen, kFiles + 2);
    auto c = call(d);
    EXPECT_TRUE(
        fs().releasedir(c, {.handle = handle, .flags = 0, .release_flags = 0, .owner = {}}));
    EXPECT_EQ(list(d, handle, 0, 4096, plus).error(), Errno{EBADF});
  }
}

}  // namespace
}  // namespace virtiofsd
