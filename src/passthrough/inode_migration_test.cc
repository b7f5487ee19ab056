// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Inodes that go from one store to another, on the same directory or on another one.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "passthrough/inode_store_fixture.h"
#include "state/saved_frames.h"
#include "sys/events.h"

namespace virtiofsd {
namespace {

struct Sent {
  SavedInode inode;
  std::string name;
  std::vector<std::byte> handle;
};

class InodeMigrationTest : public InodeStoreTest {
 protected:
  InodeMigrationTest() {
    std::string pattern = where_births_identify() + "/inode-copy-XXXXXX";
    copy_ = ::mkdtemp(pattern.data());
  }
  ~InodeMigrationTest() override {
    next_.reset();
    fs::remove_all(copy_);
  }

  // What the store sends, in its order. `lost` are those that are open and can't be found.
  std::vector<Sent> save(const InodeStore::SaveSettings& settings = {}) {
    const UniqueFd file{::memfd_create("inodes", MFD_CLOEXEC)};
    const sys::EventFd cancelled = std::move(sys::EventFd::create()).value();
    FrameWriter to{file, cancelled.ref()};
    const auto count = store_->save(to, settings, [&](NodeId node) -> Result<void, Failure> {
      lost_.insert(node.value);
      return {};
    });
    EXPECT_TRUE(count);
    EXPECT_TRUE(to.flush());
    EXPECT_EQ(::lseek(file.number(), 0, SEEK_SET), 0);
    FrameReader from{file, cancelled.ref()};
    std::vector<Sent> all;
    while (all.size() < *count) {
      Reader body = std::move(next_saved(from, SavedKind::kInode)).value();
      Sent one{.inode = std::move(take_saved<SavedInode>(body)).value(), .name = {}, .handle = {}};
      const auto name = body.take_bytes(one.inode.name_size).value();
      for (const std::byte byte : name) one.name += std::to_integer<char>(byte);
      const auto handle = body.take_bytes(one.inode.handle_size).value();
      one.handle.assign(handle.begin(), handle.end());
      all.push_back(std::move(one));
    }
    return all;
  }
  static const Sent& of(const std::vector<Sent>& all, const InodeRef& inode) {
    static const Sent none;
    for (const Sent& one : all) {
      if (one.inode.id == inode.id().value) return one;
    }
    ADD_FAILURE() << "not sent";
    return none;
  }

  void open_next(const fs::path& directory, InodeStore::Settings settings = {}) {
    settings.max_inodes = 1U << 16;
    next_ = std::move(InodeStore::create(
                          UniqueFd{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)},
                          std::move(settings)))
                .value();
    next_->begin_load();
  }
  Errno load(const Sent& one, bool same_files) {
    const Result<> loaded = next_->load(one.inode, one.name, one.handle, same_files);
    return loaded ? Errno{0} : loaded.error();
  }
  void load_all(const std::vector<Sent>& all, bool same_files = true) {
    for (const Sent& one : all) EXPECT_EQ(load(one, same_files), Errno{0}) << one.name;
    next_->end_load(0);
    next_->end_take_over();
  }
  std::uint64_t ino_there(NodeId id) {
    const auto inode = next_->pin(id);
    if (!inode) return 0;
    struct statx stx {};
    return next_->stat(*inode, STATX_INO, &stx) ? stx.stx_ino : 0;
  }
  static std::uint64_t ino_of(const fs::path& path) {
    struct stat st {};
    return ::lstat(path.c_str(), &st) == 0 ? st.st_ino : 0;
  }

  fs::path copy_;
  std::unique_ptr<InodeStore> next_;
  std::set<std::uint64_t> lost_;
};

TEST_F(InodeMigrationTest, EveryKindOfFileIsFoundUnderItsId) {
  fs::create_directories(root_ / "a/b");
  make("a/b/file");
  fs::create_symlink("nowhere", root_ / "link");
  ASSERT_EQ(::mkfifo((root_ / "pipe").c_str(), 0600), 0);
  let_settle();
  const InodeRef a = *lookup("a");
  const InodeRef b = *lookup(a, "b");
  const InodeRef file = *lookup(b, "file");
  const InodeRef link = *lookup("link");
  const InodeRef pipe = *lookup("pipe");
  const std::vector<Sent> all = save();
  EXPECT_EQ(all.size(), 5U);
  open_next(root_);
  load_all(all);
  EXPECT_EQ(ino_there(a.id()), ino_of(root_ / "a"));
  EXPECT_EQ(ino_there(b.id()), ino_of(root_ / "a/b"));
  EXPECT_EQ(ino_there(file.id()), ino_of(root_ / "a/b/file"));
  EXPECT_EQ(ino_there(link.id()), ino_of(root_ / "link"));
  EXPECT_EQ(ino_there(pipe.id()), ino_of(root_ / "pipe"));
  EXPECT_EQ(next_->count(), 6U);
  EXPECT_EQ(next_->last_path(file.id()), "a/b/file");
}

// Looked up in an order in which the store knows the file before its directory's new place.
TEST_F(InodeMigrationTest, ADirectoryComesBeforeWhatIsInIt) {
  fs::create_directories(root_ / "first");
  make("first/file");
  const InodeRef first = *lookup("first");
  const InodeRef file = *lookup(first, "file");
  fs::create_directories(root_ / "second");
  const InodeRef second = *lookup("second");
  fs::rename(root_ / "first", root_ / "second/in");
  follow(root(), name_of("first"), second, name_of("in"), false);
  const std::vector<Sent> all = save();
  std::set<std::uint64_t> seen{1};
  for (const Sent& one : all) {
    EXPECT_EQ(one.inode.place, SavedPlace::kName);
    EXPECT_TRUE(seen.contains(one.inode.parent)) << one.name;
    seen.insert(one.inode.id);
  }
  open_next(root_);
  load_all(all);
  EXPECT_EQ(next_->last_path(file.id()), "second/in/file");
}

TEST_F(InodeMigrationTest, ManyNamesAreOneFile) {
  make("one");
  fs::create_hard_link(root_ / "one", root_ / "two");
  const InodeRef one = *lookup("one");
  const InodeRef two = *lookup("two");
  EXPECT_EQ(one.id(), two.id());
  fs::remove(root_ / "two");  // the name seen last
  const std::vector<Sent> all = save();
  ASSERT_EQ(all.size(), 1U);
  open_next(root_);
  load_all(all);
  EXPECT_EQ(ino_there(one.id()), ino_of(root_ / "one"));
}

TEST_F(InodeMigrationTest, WhatIsOpenAndHasNoNameIsAskedFor) {
  make("gone");
  make("stays");
  const InodeRef gone = *lookup("gone");
  const InodeRef stays = *lookup("stays");
  store_->opened(gone);
  ASSERT_TRUE(store_->fd(gone));
  fs::remove(root_ / "gone");
  const std::vector<Sent> all = save();
  EXPECT_EQ(lost_, (std::set<std::uint64_t>{gone.id().value}));
  EXPECT_EQ(of(all, gone).inode.place, SavedPlace::kNone);
  EXPECT_EQ(of(all, stays).inode.place, SavedPlace::kName);
  open_next(root_);
  load_all(all);
  EXPECT_EQ(ino_there(gone.id()), 0U);
  EXPECT_TRUE(next_->pin(gone.id())) << "the guest forgets it some time";
  store_->closed(gone);
}

// Of a name that is out of date and of no open file, the sender needn't know.
TEST_F(InodeMigrationTest, ANameIsLookedAtFirstWhenAskedTo) {
  make("name");
  let_settle();
  const InodeRef was = *lookup("name");
  ASSERT_EQ(store_->descriptors(), 0U);
  fs::remove(root_ / "name");
  make("name", "another");
  EXPECT_EQ(of(save(), was).inode.place, SavedPlace::kName);
  EXPECT_EQ(of(save({.confirm = true}), was).inode.place, SavedPlace::kNone);
}

TEST_F(InodeMigrationTest, WhatHasMovedIsSentByItsPath) {
  make("file");
  fs::create_directories(root_ / "unknown/deep");
  const InodeRef file = *lookup("file");
  ASSERT_TRUE(store_->fd(file));
  fs::rename(root_ / "file", root_ / "unknown/deep/moved");
  const std::vector<Sent> all = save();
  EXPECT_EQ(of(all, file).inode.place, SavedPlace::kPath);
  EXPECT_EQ(of(all, file).name, "unknown/deep/moved");
  open_next(root_);
  load_all(all);
  EXPECT_EQ(ino_there(file.id()), ino_of(root_ / "unknown/deep/moved"));
}

TEST_F(InodeMigrationTest, InACopyTheFilesAreTheCopys) {
  make("file");
  std::ofstream(copy_ / "file") << "copied";
  const InodeRef file = *lookup("file");
  open_next(copy_);
  load_all(save(), /*same_files=*/false);
  EXPECT_EQ(ino_there(file.id()), ino_of(copy_ / "file"));
}

TEST_F(InodeMigrationTest, AnotherFileOfThatNameIsStale) {
  make("file");
  fs::create_directories(copy_ / "file");
  std::ofstream(copy_ / "other") << "x";
  (void)*lookup("file");
  std::vector<Sent> all = save();
  open_next(copy_);
  EXPECT_EQ(load(all[0], false), Errno{ESTALE}) << "of another type";
  all[0].name = "other";
  EXPECT_EQ(load(all[0], true), Errno{ESTALE}) << "of another identity";
  EXPECT_EQ(load(all[0], false), Errno{0});
  all[0].inode.id += 1;
  EXPECT_EQ(load(all[0], false), Errno{ESTALE}) << "under two ids";
}

TEST_F(InodeMigrationTest, HandlesTellACopyFromTheFile) {
  make("file");
  std::ofstream(copy_ / "file") << "x";
  const InodeRef file = *lookup("file");
  const std::vector<Sent> all = save({.with_handles = true});
  if (of(all, file).handle.empty()) GTEST_SKIP() << "no file handles here";
  open_next(copy_);
  EXPECT_EQ(load(all[0], false), Errno{ESTALE});
  open_next(root_);
  EXPECT_EQ(load(all[0], false), Errno{0});
}

TEST_F(InodeMigrationTest, HandlesAreOpenedOnlyWhereThatIsAllowed) {
  make("file");
  const InodeRef file = *lookup("file");
  const std::vector<Sent> all = save({.by_handle = true});
  if (of(all, file).inode.place != SavedPlace::kHandle) GTEST_SKIP() << "no file handles here";
  open_next(root_);
  EXPECT_EQ(load(all[0], true), Errno{EPERM});
}

TEST_F(InodeMigrationTest, WhatMakesNoSenseIsRefused) {
  make("file");
  fs::create_directory(root_ / "dir");
  (void)*lookup("file");
  const Sent good = save()[0];
  open_next(root_);
  const auto changed = [&](auto change) {
    Sent one = good;
    change(one);
    return load(one, false);
  };
  EXPECT_EQ(changed([](Sent& one) { one.inode.id = 1; }), Errno{EBADMSG}) << "the root's";
  EXPECT_EQ(changed([](Sent& one) { one.inode.id = 0; }), Errno{EBADMSG});
  EXPECT_EQ(changed([](Sent& one) { one.inode.id = 5; }), Errno{EBADMSG}) << "no generation";
  EXPECT_EQ(changed([](Sent& one) { one.inode.id |= 0xffffffff; }), Errno{ENFILE});
  EXPECT_EQ(changed([](Sent& one) { one.inode.parent = 77; }), Errno{EBADMSG}) << "comes later";
  EXPECT_EQ(changed([](Sent& one) { one.inode.place = SavedPlace{9}; }), Errno{EBADMSG});
  for (const char* name : {"", ".", "..", "dir/../file", "a/b"})
    EXPECT_EQ(changed([&](Sent& one) { one.name = name; }), Errno{EBADMSG}) << name;
  for (const char* path : {"", "/file", "..", "dir/../file", "dir/.", "dir//x"}) {
    EXPECT_EQ(changed([&](Sent& one) {
                one.inode.place = SavedPlace::kPath;
                one.name = path;
              }),
              Errno{EBADMSG})
        << path;
  }
  EXPECT_EQ(next_->count(), 1U);
  EXPECT_EQ(load(good, false), Errno{0});
  EXPECT_EQ(load(good, false), Errno{ESTALE}) << "twice";
}

// No link is followed, neither to the file nor on the way.
TEST_F(InodeMigrationTest, LinksLeadNowhere) {
  fs::create_directory_symlink("/", root_ / "out");
  make("file");
  (void)*lookup("file");
  Sent one = save()[0];
  open_next(root_);
  one.inode.place = SavedPlace::kPath;
  one.name = "out";
  EXPECT_EQ(load(one, false), Errno{ESTALE}) << "a link isn't a file";
  one.name = "out/etc/passwd";
  EXPECT_EQ(load(one, false), Errno{ENOTDIR});
}

TEST_F(InodeMigrationTest, DescriptorsStayWithinTheBudget) {
  for (int i = 0; i < 300; ++i) {
    const std::string directory = "d" + std::to_string(i);
    fs::create_directory(root_ / directory);
    make(directory + "/file");
  }
  let_settle();
  std::vector<NodeId> files;
  for (int i = 0; i < 300; ++i) {
    const InodeRef directory = *lookup("d" + std::to_string(i));
    files.push_back((*lookup(directory, "file")).id());
  }
  InodeStore::Settings settings;
  settings.descriptor_budget = 16;
  open_next(root_, std::move(settings));
  load_all(save());
  EXPECT_LE(next_->descriptors(), 64U);
  for (int i = 0; i < 300; ++i)
    EXPECT_EQ(ino_there(files[i]), ino_of(root_ / ("d" + std::to_string(i)) / "file")) << i;
}

// Directories that are in each other, by names that are out of date.
TEST_F(InodeMigrationTest, NamesInACircleEnd) {
  fs::create_directories(root_ / "a/b");
  const InodeRef a = *lookup("a");
  const InodeRef b = *lookup(a, "b");
  ASSERT_TRUE(store_->fd(a));
  ASSERT_TRUE(store_->fd(b));
  // The host turns them round, and the guest sees the one in the other.
  fs::rename(root_ / "a/b", root_ / "b");
  fs::rename(root_ / "a", root_ / "b/a");
  EXPECT_EQ(lookup(b, "a")->id(), a.id());
  const std::vector<Sent> all = save();
  open_next(root_);
  load_all(all);
  EXPECT_EQ(ino_there(a.id()), ino_of(root_ / "b/a"));
  EXPECT_EQ(ino_there(b.id()), ino_of(root_ / "b"));
}

}  // namespace
}  // namespace virtiofsd
