// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/inode_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "passthrough/handle_table.h"
#include "passthrough/other_names.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

namespace fs = std::filesystem;

Name name_of(std::string_view text) {
  return std::move(Name::parse(text)).value();
}

// Birth times tell nothing on overlayfs, which a container has for /tmp.
std::string where_births_identify() {
  struct statfs fs {};
  const bool overlay = ::statfs("/tmp", &fs) == 0 && fs.f_type == OVERLAYFS_SUPER_MAGIC;
  return overlay ? "/dev/shm" : "/tmp";
}

class InodeStoreTest : public ::testing::Test {
 protected:
  InodeStoreTest() {
    std::string pattern = where_births_identify() + "/inode-store-XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    sys::set_proc_self_fd(UniqueFd{::open("/proc/self/fd", O_PATH | O_CLOEXEC)});
    open_store({});
  }
  ~InodeStoreTest() override {
    store_.reset();
    fs::remove_all(root_);
  }

  void open_store(InodeStore::Settings settings, UniqueFd root) {
    settings.max_inodes = 1U << 16;
    store_.reset();
    store_ = std::move(InodeStore::create(std::move(root), std::move(settings))).value();
  }
  void open_store(InodeStore::Settings settings) {
    open_store(std::move(settings),
               UniqueFd{::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)});
  }

  void make(const std::string& path, const std::string& text = "x") {
    std::ofstream(root_ / path) << text;
  }
  // Old enough that its identity lasts without a descriptor.
  static void let_settle() { ::usleep(150'000); }

  InodeRef root() { return std::move(store_->pin(NodeId{1})).value(); }
  Result<InodeRef> lookup(const InodeRef& directory, std::string_view name) {
    return store_->lookup(directory, name_of(name), 0, &stx_);
  }
  Result<InodeRef> lookup(std::string_view name) { return lookup(root(), name); }
  // A rename that was made.
  void follow(const InodeRef& from, Name name, const InodeRef& to, Name new_name, bool exchange) {
    store_->before_rename(from, name, to, new_name, exchange);
    store_->after_rename(from, name, to, new_name, exchange);
  }
  void limit_descriptors(std::uint32_t budget) {
    InodeStore::Settings settings;
    settings.descriptor_budget = budget;
    open_store(settings);
  }

  fs::path root_;
  std::unique_ptr<InodeStore> store_;
  struct statx stx_ {};
};

TEST_F(InodeStoreTest, OneFileIsOneNode) {
  make("a");
  fs::create_hard_link(root_ / "a", root_ / "b");
  const InodeRef a = *lookup("a");
  const InodeRef b = *lookup("b");
  EXPECT_EQ(a.id(), b.id());
  EXPECT_TRUE(a.is_regular());
  EXPECT_EQ(store_->count(), 2U);
}

TEST_F(InodeStoreTest, AForgottenNodeIsStale) {
  make("a");
  const NodeId id = lookup("a")->id();
  ASSERT_TRUE(lookup("a"));
  store_->forget(id, 1);
  EXPECT_TRUE(store_->pin(id));
  store_->forget(id, 1);
  EXPECT_EQ(store_->pin(id).error(), Errno{ESTALE});
  EXPECT_EQ(store_->count(), 1U);
}

TEST_F(InodeStoreTest, ForgettingTooMuchIsForgettingAll) {
  make("a");
  const NodeId id = lookup("a")->id();
  store_->forget(id, ~0ULL);
  store_->forget(id, ~0ULL);
  store_->forget(NodeId{1}, ~0ULL);
  store_->forget(NodeId{0xdeadbeef}, 1);
  EXPECT_TRUE(store_->pin(NodeId{1}));
  EXPECT_EQ(store_->count(), 1U);
}

TEST_F(InodeStoreTest, TheRootHasOneIdAndIsNeverForgotten) {
  const NodeId alias{0x1'0000'0001};
  EXPECT_FALSE(store_->pin(alias));
  store_->forget(alias, 1);
  store_->forget(NodeId{1}, ~std::uint64_t{0});
  make("a");
  EXPECT_TRUE(lookup("a"));
  EXPECT_EQ(store_->count(), 2U);
}

TEST_F(InodeStoreTest, AnIdIsNeverGivenToAnotherFile) {
  make("a");
  const NodeId id = lookup("a")->id();
  store_->forget(id, 1);
  make("b");
  const NodeId next = lookup("b")->id();
  EXPECT_NE(id, next);
  EXPECT_FALSE(store_->pin(id));
}

TEST_F(InodeStoreTest, AnOldFileNeedsNoDescriptorUntilItIsUsed) {
  make("a");
  let_settle();
  const InodeRef a = *lookup("a");
  EXPECT_EQ(store_->descriptors(), 0U);
  struct statx stx {};
  ASSERT_TRUE(store_->stat(a, sys::kStatxMask, &stx));
  EXPECT_EQ(store_->descriptors(), 0U);
  ASSERT_TRUE(store_->fd(a));
  EXPECT_EQ(store_->descriptors(), 1U);
}

TEST_F(InodeStoreTest, AYoungFileIsPinnedSoThatItsNumberStaysItsOwn) {
  for (int i = 0; i < 200; ++i) {
    make("a");
    const InodeRef first = *lookup("a");
    fs::remove(root_ / "a");
    make("a");
    const InodeRef second = *lookup("a");
    ASSERT_NE(first.id(), second.id());
    store_->forget(first.id(), 1);
    store_->forget(second.id(), 1);
    fs::remove(root_ / "a");
  }
}

TEST_F(InodeStoreTest, AColdNodeWhoseNameMeansAnotherFileIsStale) {
  make("a", "old");
  let_settle();
  const InodeRef a = *lookup("a");
  make("new", "new");
  fs::rename(root_ / "new", root_ / "a");
  EXPECT_EQ(store_->fd(a).error(), Errno{ESTALE});
  EXPECT_EQ(store_->stat(a, sys::kStatxMask, &stx_).error(), Errno{ESTALE});
}

TEST_F(InodeStoreTest, AColdNodeReplacedByASymlinkIsStaleAndNotFollowed) {
  make("a");
  let_settle();
  const InodeRef a = *lookup("a");
  fs::remove(root_ / "a");
  fs::create_symlink("/etc/passwd", root_ / "a");
  EXPECT_EQ(store_->fd(a).error(), Errno{ESTALE});
}

TEST_F(InodeStoreTest, ARemovedFileStaysUsableWhenTheGuestRemovedIt) {
  make("a");
  let_settle();
  const InodeRef a = *lookup("a");
  const InodeRef top = root();
  store_->before_removal(top, name_of("a"));
  fs::remove(root_ / "a");
  ASSERT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
  EXPECT_EQ(stx_.stx_nlink, 0U);
}

TEST_F(InodeStoreTest, ANodeFollowsItsRename) {
  make("a");
  fs::create_directory(root_ / "d");
  let_settle();
  const InodeRef a = *lookup("a");
  const InodeRef d = *lookup("d");
  const InodeRef top = root();
  fs::rename(root_ / "a", root_ / "d" / "b");
  follow(top, name_of("a"), d, name_of("b"), false);
  EXPECT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
  EXPECT_TRUE(store_->fd(a));
}

// More renames of names that nobody has than are remembered.
void forget_renames(InodeStore& store, const InodeRef& directory) {
  for (std::size_t i = 0; i <= OtherNames::kCapacity; ++i) {
    const std::string name = "n" + std::to_string(i);
    store.before_rename(directory, name_of(name), directory, name_of(name + "x"), false);
  }
}

TEST_F(InodeStoreTest, ARenameIsFollowedWithoutALookAtTheFile) {
  make("a");
  let_settle();
  const InodeRef a = *lookup("a");
  const InodeRef top = root();
  follow(top, name_of("a"), top, name_of("b"), false);
  forget_renames(*store_, top);
  fs::rename(root_ / "a", root_ / "b");
  EXPECT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
}

TEST_F(InodeStoreTest, ARenameOfALinkThatWasNotTheLastNameSeenIsFollowed) {
  make("a");
  fs::create_hard_link(root_ / "a", root_ / "b");
  let_settle();
  const InodeRef a = *lookup("a");
  ASSERT_EQ(lookup("b")->id(), a.id());
  const InodeRef top = root();
  fs::rename(root_ / "a", root_ / "c");
  follow(top, name_of("a"), top, name_of("c"), false);
  forget_renames(*store_, top);
  fs::remove(root_ / "b");
  EXPECT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
}

TEST_F(InodeStoreTest, ARenameOfAFileThatCameBackToItsNameIsFollowed) {
  make("a");
  make("b");
  let_settle();
  const InodeRef a = *lookup("a");
  const InodeRef b = *lookup("b");
  const auto swap = [&] {
    ASSERT_EQ(::renameat2(AT_FDCWD, (root_ / "a").c_str(), AT_FDCWD, (root_ / "b").c_str(),
                          RENAME_EXCHANGE),
              0);
  };
  swap();
  ASSERT_EQ(lookup("a")->id(), b.id());
  swap();
  ASSERT_EQ(lookup("a")->id(), a.id());
  const InodeRef top = root();
  fs::rename(root_ / "a", root_ / "c");
  follow(top, name_of("a"), top, name_of("c"), false);
  ASSERT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
  ASSERT_TRUE(store_->stat(b, sys::kStatxMask, &stx_));
}

TEST_F(InodeStoreTest, ARenameBeingMadeIsFoundByBothNames) {
  make("a");
  let_settle();
  const InodeRef a = *lookup("a");
  const InodeRef top = root();
  store_->before_rename(top, name_of("a"), top, name_of("b"), false);
  EXPECT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
  fs::rename(root_ / "a", root_ / "b");
  EXPECT_TRUE(store_->fd(a));
}

TEST_F(InodeStoreTest, ARenamedFileThatHadItsDescriptorIsLetGo) {
  limit_descriptors(16);
  const InodeRef top = root();
  for (int i = 0; i < 200; ++i) {
    const Name name = name_of("new");
    make("new");
    ASSERT_TRUE(lookup("new"));  // young: with its descriptor
    const std::string old = std::to_string(i);
    fs::rename(root_ / "new", root_ / old);
    follow(top, name, top, name_of(old), false);
  }
  forget_renames(*store_, top);
  let_settle();
  for (int i = 0; i < 200; ++i) {
    make("more" + std::to_string(i));
    ASSERT_TRUE(lookup("more" + std::to_string(i)));
    if (i % 50 == 0) let_settle();
  }
  EXPECT_LE(store_->descriptors(), 100U);
}

TEST_F(InodeStoreTest, FilesThatWereExchangedAreLetGo) {
  limit_descriptors(16);
  const InodeRef top = root();
  for (int i = 0; i < 100; ++i) {
    const std::string a = "a" + std::to_string(i), b = "b" + std::to_string(i);
    for (const std::string& name : {a, b}) {
      make(name);
      ASSERT_TRUE(lookup(name));
    }
    ASSERT_EQ(
        ::renameat2(AT_FDCWD, (root_ / a).c_str(), AT_FDCWD, (root_ / b).c_str(), RENAME_EXCHANGE),
        0);
    follow(top, name_of(a), top, name_of(b), true);
  }
  let_settle();
  for (int i = 0; i < 64; ++i) {
    make(std::to_string(i));
    ASSERT_TRUE(lookup(std::to_string(i)));
  }
  EXPECT_LE(store_->descriptors(), 120U);
}

TEST_F(InodeStoreTest, AFileThatLostOneOfItsNamesIsLetGo) {
  limit_descriptors(16);
  const InodeRef top = root();
  fs::create_directory(root_ / "d");
  for (int i = 0; i < 200; ++i) {
    make("new");
    ASSERT_TRUE(lookup("new"));
    const std::string last = std::to_string(i);
    fs::create_hard_link(root_ / "new", root_ / last);
    ASSERT_TRUE(lookup(last));  // as LINK does
    ASSERT_TRUE(lookup("new"));
    ASSERT_TRUE(lookup(last));
    store_->before_removal(top, name_of("new"));
    fs::remove(root_ / "new");
    store_->after_removal(top, name_of("new"));
  }
  let_settle();
  for (int i = 0; i < 64; ++i) {
    make("more" + std::to_string(i));
    ASSERT_TRUE(lookup("more" + std::to_string(i)));
  }
  EXPECT_LE(store_->descriptors(), 120U);
}

// What the host took away while its descriptor was held keeps that; the others pay little for it.
TEST_F(InodeStoreTest, WhatCanNotBeLetGoIsNotTriedForEverybody) {
  using std::chrono::steady_clock;
  limit_descriptors(16);
  for (int i = 0; i < 3000; ++i) {
    make("new");
    ASSERT_TRUE(lookup("new"));
    fs::remove(root_ / "new");
  }
  let_settle();
  auto shortest = steady_clock::duration::max();
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < 50; ++i) make(std::to_string(round * 50 + i));
    const auto begun = steady_clock::now();
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(lookup(std::to_string(round * 50 + i)));
    shortest = std::min(shortest, steady_clock::now() - begun);
  }
  EXPECT_LT(shortest, std::chrono::milliseconds{25});
}

TEST_F(InodeStoreTest, AnOpenFileInADirectoryThatWasClosedToUsIsReachedThroughItsHandle) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to stop being it";
  fs::create_directory(root_ / "d");
  make("d/a");
  let_settle();
  const InodeRef a = *lookup(*lookup("d"), "a");
  const UniqueFd file{::open((root_ / "d" / "a").c_str(), O_RDONLY | O_CLOEXEC)};
  store_->set_open_files([&](NodeId) { return sys::reopen(file, O_PATH); });
  store_->opened(a);
  fs::permissions(root_ / "d", fs::perms::none);
  std::thread([&] {
    ::syscall(SYS_setfsuid, 65534);  // and with it goes the right to pass everywhere
    EXPECT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
  }).join();
  store_->closed(a);
  store_->set_open_files({});
}

TEST_F(InodeStoreTest, AFileInAForgottenDirectoryIsFoundInAnother) {
  InodeStore::Settings settings;
  settings.remembered = 0;
  open_store(settings);
  fs::create_directories(root_ / "a");
  fs::create_directories(root_ / "b");
  make("a/x");
  fs::create_hard_link(root_ / "a" / "x", root_ / "b" / "x");
  let_settle();
  const InodeRef a = *lookup("a");
  InodeRef b = *lookup("b");
  const InodeRef x = *lookup(a, "x");
  ASSERT_EQ(lookup(b, "x")->id(), x.id());
  store_->forget(b.id(), 1);
  b = InodeRef{};
  EXPECT_TRUE(store_->fd(x));
}

TEST_F(InodeStoreTest, AColdChainOfDirectoriesIsWalkedFromTheTop) {
  fs::create_directories(root_ / "1/2/3/4");
  make("1/2/3/4/f");
  let_settle();
  InodeStore::Settings settings;
  settings.descriptor_budget = 0;
  open_store(settings);
  InodeRef here = root();
  for (const char* step : {"1", "2", "3", "4", "f"}) here = *lookup(here, step);
  // Push everything out, then come back to the leaf.
  for (int i = 0; i < 50; ++i) {
    make("more" + std::to_string(i));
  }
  let_settle();
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(store_->fd(*lookup("more" + std::to_string(i))));
  }
  EXPECT_LT(store_->descriptors(), 40U);
  EXPECT_TRUE(store_->fd(here));
}

TEST_F(InodeStoreTest, ManyHotInodesStayWithinTheBudget) {
  for (int i = 0; i < 500; ++i) make("f" + std::to_string(i));
  let_settle();
  InodeStore::Settings settings;
  settings.descriptor_budget = 64;
  open_store(settings);
  std::vector<NodeId> ids;
  for (int i = 0; i < 500; ++i) {
    const InodeRef inode = *lookup("f" + std::to_string(i));
    ASSERT_TRUE(store_->fd(inode));
    ids.push_back(inode.id());
  }
  EXPECT_LE(store_->descriptors(), 64U + 40U);
  for (const NodeId id : ids) EXPECT_TRUE(store_->fd(*store_->pin(id)));
}

TEST_F(InodeStoreTest, AnOpenInodeIsNotDemoted) {
  make("a");
  for (int i = 0; i < 100; ++i) make("f" + std::to_string(i));
  let_settle();
  InodeStore::Settings settings;
  settings.descriptor_budget = 4;
  open_store(settings);
  const NodeId id = lookup("a")->id();
  ASSERT_TRUE(store_->fd(*store_->pin(id)));
  store_->opened(*store_->pin(id));
  fs::remove(root_ / "a");
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(store_->fd(*lookup("f" + std::to_string(i))));
  }
  EXPECT_TRUE(store_->stat(*store_->pin(id), sys::kStatxMask, &stx_));
  store_->closed(*store_->pin(id));
}

TEST_F(InodeStoreTest, TheParentOfTheRootIsTheRoot) {
  const InodeRef up = *store_->parent(root(), &stx_);
  EXPECT_EQ(up.id(), NodeId{1});
}

TEST_F(InodeStoreTest, ADirectoryMovedOutOfTheShareDoesNotLeadOut) {
  fs::create_directories(root_ / "share/inner");
  InodeStore::Settings settings;
  settings.max_inodes = 1000;
  auto inner_store =
      std::move(InodeStore::create(
                    UniqueFd{::open((root_ / "share").c_str(), O_RDONLY | O_DIRECTORY)}, settings))
          .value();
  const InodeRef top = *inner_store->pin(NodeId{1});
  const InodeRef inner = *inner_store->lookup(top, name_of("inner"), 0, &stx_);
  ASSERT_TRUE(inner_store->fd(inner));
  EXPECT_EQ(inner_store->parent(inner, &stx_)->id(), NodeId{1});
  fs::rename(root_ / "share/inner", root_ / "outside");
  EXPECT_EQ(inner_store->parent(inner, &stx_).error(), Errno{ESTALE});
}

TEST_F(InodeStoreTest, ClearForgetsAllButTheRootAndKeepsPinsSafe) {
  make("a");
  make("b");
  const InodeRef a = *lookup("a");
  const NodeId b = lookup("b")->id();
  store_->clear();
  EXPECT_FALSE(store_->pin(a.id()));
  EXPECT_FALSE(store_->pin(b));
  EXPECT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
  EXPECT_TRUE(store_->pin(NodeId{1}));
}

// ---- Nodes that a guest forgot and comes back to ----------------------------------

class InodeRecall : public InodeStoreTest {
 protected:
  void remember(std::uint32_t nodes) {
    InodeStore::Settings settings;
    settings.remembered = nodes;
    open_store(settings);
  }
  NodeId look_up_and_forget(std::string_view name) {
    const NodeId id = lookup(name)->id();
    store_->forget(id, 1);
    return id;
  }
  UniqueFd open_file(const std::string& name) {
    return UniqueFd{::open((root_ / name).c_str(), O_RDONLY | O_CLOEXEC)};
  }
  Errno recall(NodeId id) {
    const auto inode = store_->recall(id, &stx_);
    if (!inode) return inode.error();
    EXPECT_EQ(inode->id(), id);
    store_->forget(id, 1);
    return Errno{0};
  }
};

TEST_F(InodeRecall, FindsAForgottenNodeUnderItsId) {
  make("a", "abc");
  let_settle();
  const NodeId id = look_up_and_forget("a");
  EXPECT_EQ(store_->count(), 1U);
  EXPECT_EQ(store_->pin(id).error(), Errno{ESTALE});
  const auto inode = store_->recall(id, &stx_);
  ASSERT_TRUE(inode);
  EXPECT_EQ(inode->id(), id);
  EXPECT_EQ(stx_.stx_size, 3U);
  EXPECT_EQ(store_->count(), 2U);
  EXPECT_TRUE(store_->pin(id));
  EXPECT_EQ(lookup("a")->id(), id);
}

TEST_F(InodeRecall, IsOneMoreLookupOfAKnownNode) {
  make("a");
  const NodeId id = lookup("a")->id();
  ASSERT_TRUE(store_->recall(id, &stx_));
  store_->forget(id, 1);
  EXPECT_TRUE(store_->pin(id));
  EXPECT_EQ(recall(NodeId{1}), Errno{0});
  EXPECT_EQ(recall(NodeId{0xdeadbeef}), Errno{ESTALE});
}

TEST_F(InodeRecall, FindsADirectoryAndWhatIsInIt) {
  fs::create_directories(root_ / "d/e");
  make("d/e/f");
  let_settle();
  InodeRef d = *lookup("d");
  InodeRef e = *lookup(d, "e");
  const NodeId f = lookup(e, "f")->id();
  store_->forget(f, 1);
  // With their descriptors, as directories that were used have.
  const NodeId e_id = std::exchange(e, InodeRef{}).id();
  const NodeId d_id = std::exchange(d, InodeRef{}).id();
  store_->forget(e_id, 1);
  store_->forget(d_id, 1);
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(store_->count(), 1U);
  EXPECT_EQ(recall(f), Errno{0});
  EXPECT_EQ(recall(e_id), Errno{0});
  EXPECT_EQ(recall(d_id), Errno{0});
}

TEST_F(InodeRecall, HoldsNoFileThatIsForgotten) {
  make("a");
  let_settle();
  const NodeId id = lookup("a")->id();
  ASSERT_TRUE(store_->fd(*store_->pin(id)));
  EXPECT_EQ(store_->descriptors(), 1U);
  store_->forget(id, 1);
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(recall(id), Errno{0});
}

TEST_F(InodeRecall, IsStaleForWhatItsNameNoLongerMeans) {
  for (const char* name : {"gone", "replaced", "moved"}) make(name);
  let_settle();
  const NodeId gone = look_up_and_forget("gone");
  const NodeId replaced = look_up_and_forget("replaced");
  const NodeId moved = look_up_and_forget("moved");
  fs::remove(root_ / "gone");
  make("other");
  fs::rename(root_ / "other", root_ / "replaced");
  fs::rename(root_ / "moved", root_ / "elsewhere");
  EXPECT_EQ(recall(gone), Errno{ESTALE});
  EXPECT_EQ(recall(replaced), Errno{ESTALE});
  EXPECT_EQ(recall(moved), Errno{ESTALE});
  // Seen again, it is known by its new name.
  EXPECT_EQ(look_up_and_forget("elsewhere"), moved);
  EXPECT_EQ(recall(moved), Errno{0});
}

TEST_F(InodeRecall, FindsAFileForgottenTooYoungToBeKnownByItsIdentity) {
  make("a", "abc");
  const NodeId id = look_up_and_forget("a");
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(recall(id), Errno{0});
  EXPECT_EQ(stx_.stx_size, 3U);
  // By its name, too.
  EXPECT_EQ(lookup("a")->id(), id);
}

// Forgotten again as soon as it is let go, and again unsure what it is: who looks it up must hold
// it.
TEST_F(InodeRecall, IsLookedUpAtOnceWhileItIsYoung) {
  using std::chrono::steady_clock;
  auto shortest = steady_clock::duration::max();
  // The machine may be slow a few times; a store that waits for the file to age always is.
  for (int i = 0; i < 20; ++i) {
    const std::string name = std::to_string(i);
    make(name);
    const NodeId id = look_up_and_forget(name);
    const auto begun = steady_clock::now();
    EXPECT_EQ(lookup(name)->id(), id);
    EXPECT_EQ(store_->adopt(root(), name_of(name), open_file(name), &stx_)->id(), id);
    store_->forget(id, 2);
    EXPECT_EQ(store_->adopt(root(), name_of(name), open_file(name), &stx_)->id(), id);
    shortest = std::min(shortest, steady_clock::now() - begun);
  }
  EXPECT_LT(shortest, std::chrono::milliseconds{20});
}

// A new file can have the inode number of a removed one, and in one tick of the clock the time of
// birth. Whether the file system of the test gives numbers again or not, the node is another.
TEST_F(InodeRecall, IsNeverAnotherFileBornInTheSameTick) {
  for (int i = 0; i < 200; ++i) {
    make("a");
    const NodeId id = look_up_and_forget("a");
    fs::remove(root_ / "a");
    make("a");
    if (i % 2 == 0) {
      EXPECT_EQ(recall(id), Errno{ESTALE}) << i;
    } else {
      EXPECT_NE(look_up_and_forget("a"), id) << i;
      EXPECT_EQ(recall(id), Errno{ESTALE}) << i;
    }
    fs::remove(root_ / "a");
  }
}

TEST_F(InodeRecall, FollowsARename) {
  fs::create_directory(root_ / "d");
  make("hot");
  make("cold");
  let_settle();
  const NodeId hot = lookup("hot")->id();
  ASSERT_TRUE(store_->fd(*store_->pin(hot)));
  const NodeId cold = lookup("cold")->id();
  const InodeRef d = *lookup("d");
  for (const char* name : {"hot", "cold"}) {
    fs::rename(root_ / name, root_ / "d" / name);
    follow(root(), name_of(name), d, name_of(name), false);
    fs::rename(root_ / "d" / name, root_ / "d" / (name + std::string("2")));
    follow(d, name_of(name), d, name_of(name + std::string("2")), false);
  }
  store_->forget(hot, 1);
  store_->forget(cold, 1);
  EXPECT_EQ(recall(hot), Errno{0});
  EXPECT_EQ(recall(cold), Errno{0});
}

TEST_F(InodeRecall, IsNotMisledByAFileThatHadTheName) {
  const InodeRef top = root();
  const auto rotate = [&](const char* from, const char* to) {
    fs::rename(root_ / from, root_ / to);
    follow(top, name_of(from), top, name_of(to), false);
  };
  make("log");
  const NodeId first = lookup("log")->id();
  rotate("log", "log.1");
  make("tmp");
  ASSERT_TRUE(lookup("tmp"));
  rotate("tmp", "log");
  store_->before_removal(top, name_of("log"));
  fs::remove(root_ / "log");
  store_->after_removal(top, name_of("log"));
  store_->forget(first, 1);
  EXPECT_EQ(recall(first), Errno{0});
}

// Each directory's last known name is in the other one.
TEST_F(InodeRecall, EndsWhereNamesLeadInACircle) {
  fs::create_directories(root_ / "a" / "b");
  let_settle();
  const InodeRef top = root();
  InodeRef a = *lookup("a");
  InodeRef b = *lookup(a, "b");
  ASSERT_TRUE(store_->fd(b));
  fs::rename(root_ / "a" / "b", root_ / "b");
  fs::rename(root_ / "a", root_ / "b" / "a");
  ASSERT_EQ(lookup(b, "a")->id(), a.id());
  const NodeId a_id = std::exchange(a, InodeRef{}).id();
  const NodeId b_id = std::exchange(b, InodeRef{}).id();
  store_->forget(a_id, 2);
  store_->forget(b_id, 1);
  const auto begun = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(recall(a_id), Errno{ESTALE});
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::milliseconds{40});
}

TEST_F(InodeRecall, FollowsAnExchangeOfTwoFiles) {
  for (const char* name : {"a", "b"}) make(name, name);
  let_settle();
  const NodeId a = lookup("a")->id();
  const NodeId b = lookup("b")->id();
  ASSERT_TRUE(store_->fd(*store_->pin(a)));
  ASSERT_TRUE(store_->fd(*store_->pin(b)));
  ASSERT_EQ(::renameat2(AT_FDCWD, (root_ / "a").c_str(), AT_FDCWD, (root_ / "b").c_str(),
                        RENAME_EXCHANGE),
            0);
  follow(root(), name_of("a"), root(), name_of("b"), true);
  store_->forget(a, 1);
  store_->forget(b, 1);
  EXPECT_EQ(recall(a), Errno{0});
  EXPECT_EQ(recall(b), Errno{0});
  EXPECT_EQ(lookup("b")->id(), a);
}

TEST_F(InodeRecall, FindsAnotherLinkWhenTheLastNameIsGone) {
  make("a");
  fs::create_hard_link(root_ / "a", root_ / "b");
  let_settle();
  look_up_and_forget("b");
  const NodeId id = lookup("a")->id();
  store_->before_removal(root(), name_of("a"));
  fs::remove(root_ / "a");
  store_->after_removal(root(), name_of("a"));
  store_->forget(id, 1);
  EXPECT_EQ(recall(id), Errno{0});
}

TEST_F(InodeRecall, FindsALinkThatTheGuestMade) {
  make("a");
  let_settle();
  const NodeId id = lookup("a")->id();
  fs::create_hard_link(root_ / "a", root_ / "b");
  ASSERT_EQ(lookup("b")->id(), id);  // as LINK does
  ASSERT_EQ(lookup("a")->id(), id);
  store_->before_removal(root(), name_of("a"));
  fs::remove(root_ / "a");
  store_->after_removal(root(), name_of("a"));
  store_->forget(id, 3);
  EXPECT_EQ(recall(id), Errno{0});
}

// What the guest removed is not looked at again when it is forgotten: here the host still has it.
TEST_F(InodeRecall, EndsWithTheOnlyName) {
  make("cold");
  fs::create_directory(root_ / "directory");
  let_settle();
  make("young");
  for (const char* name : {"cold", "directory", "young"}) {
    const NodeId id = lookup(name)->id();
    store_->after_removal(root(), name_of(name));
    EXPECT_TRUE(store_->stat(*store_->pin(id), sys::kStatxMask, &stx_)) << name;
    store_->forget(id, 1);
    EXPECT_EQ(recall(id), Errno{ESTALE}) << name;
    // It was not, after all.
    EXPECT_NE(look_up_and_forget(name), id) << name;
  }
}

TEST_F(InodeRecall, FindsWhatIsInAFolderThatWasRenamed) {
  fs::create_directories(root_ / "d/e");
  make("d/e/f");
  let_settle();
  const NodeId d = lookup("d")->id();
  const NodeId e = lookup(*store_->pin(d), "e")->id();
  const NodeId f = lookup(*store_->pin(e), "f")->id();
  fs::rename(root_ / "d/e", root_ / "d/e2");
  follow(*store_->pin(d), name_of("e"), *store_->pin(d), name_of("e2"), false);
  fs::rename(root_ / "d", root_ / "d2");
  follow(root(), name_of("d"), root(), name_of("d2"), false);
  for (const NodeId id : {f, e, d}) store_->forget(id, 1);
  EXPECT_EQ(recall(f), Errno{0});
}

TEST_F(InodeRecall, KeepsNoNodeOfARemovedFile) {
  make("a");
  let_settle();
  const NodeId id = lookup("a")->id();
  store_->before_removal(root(), name_of("a"));
  fs::remove(root_ / "a");
  // Before the guest's FORGET as well: what it asks for by handle it has not open.
  EXPECT_EQ(recall(id), Errno{ESTALE});
  EXPECT_TRUE(store_->pin(id));
  store_->forget(id, 1);
  EXPECT_EQ(recall(id), Errno{ESTALE});
  EXPECT_EQ(store_->descriptors(), 0U);
}

TEST_F(InodeRecall, LetsGoOfAFileWhenItsLastUserHas) {
  make("a");
  let_settle();
  InodeRef a = *lookup("a");
  const NodeId id = a.id();
  ASSERT_TRUE(store_->fd(a));
  store_->forget(id, 1);
  EXPECT_TRUE(store_->fd(a));
  EXPECT_EQ(store_->descriptors(), 1U);
  a = InodeRef{};
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(recall(id), Errno{0});
}

TEST_F(InodeRecall, LetsGoOfARemovedFileWhenItsLastUserHas) {
  make("a");
  InodeRef a = *lookup("a");
  const NodeId id = a.id();
  fs::remove(root_ / "a");
  store_->forget(id, 1);
  EXPECT_TRUE(store_->stat(a, sys::kStatxMask, &stx_));
  a = InodeRef{};
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(recall(id), Errno{ESTALE});
}

TEST_F(InodeRecall, RemembersTheLastOnesOnly) {
  for (const char* name : {"a", "b", "c"}) make(name);
  let_settle();
  remember(2);
  const NodeId a = look_up_and_forget("a");
  const NodeId b = look_up_and_forget("b");
  const NodeId c = look_up_and_forget("c");
  EXPECT_EQ(recall(a), Errno{ESTALE});
  EXPECT_EQ(recall(b), Errno{0});
  EXPECT_EQ(recall(c), Errno{0});
  remember(0);
  EXPECT_EQ(recall(look_up_and_forget("a")), Errno{ESTALE});
  EXPECT_EQ(store_->count(), 1U);
}

TEST_F(InodeRecall, KeepsWhatTheGuestCameBackTo) {
  for (const char* name : {"a", "b", "c", "d", "e"}) make(name);
  let_settle();
  remember(2);
  const NodeId held = look_up_and_forget("a");
  ASSERT_EQ(lookup("a")->id(), held);
  const NodeId again = look_up_and_forget("b");
  ASSERT_EQ(look_up_and_forget("b"), again);
  // The first two in line: one is the guest's, the other was forgotten once more since.
  look_up_and_forget("c");
  look_up_and_forget("d");
  EXPECT_TRUE(store_->pin(held));
  EXPECT_EQ(recall(again), Errno{0});
  store_->forget(held, 1);
  EXPECT_EQ(recall(held), Errno{0});
}

TEST_F(InodeRecall, MakesRoomForNodesThatTheGuestHolds) {
  for (int i = 0; i < 8; ++i) make("f" + std::to_string(i));
  let_settle();
  InodeStore::Settings settings;
  settings.max_inodes = 5;
  store_ = std::move(InodeStore::create(UniqueFd{::open(root_.c_str(), O_PATH | O_CLOEXEC)},
                                        std::move(settings)))
               .value();
  for (int i = 0; i < 4; ++i) look_up_and_forget("f" + std::to_string(i));
  for (int i = 4; i < 8; ++i) EXPECT_TRUE(lookup("f" + std::to_string(i))) << i;
  EXPECT_EQ(lookup("f0").error(), Errno{ENFILE});
  EXPECT_EQ(store_->count(), 5U);
}

TEST_F(InodeRecall, OutlivesTheSession) {
  make("a");
  make("b");
  let_settle();
  const NodeId a = look_up_and_forget("a");
  const NodeId b = lookup("b")->id();
  store_->clear();
  EXPECT_EQ(store_->count(), 1U);
  EXPECT_EQ(store_->pin(b).error(), Errno{ESTALE});
  EXPECT_EQ(recall(a), Errno{0});
  EXPECT_EQ(recall(b), Errno{0});
}

TEST_F(InodeRecall, RacesWithLookupsAndForgets) {
  for (int i = 0; i < 40; ++i) make("f" + std::to_string(i));
  let_settle();
  remember(16);
  std::array<std::atomic<std::uint64_t>, 40> ids{};
  std::atomic<int> recalled{0};
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::seconds(20);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      // Who recalls may be alone at first: then nothing is forgotten yet.
      for (std::size_t i = 0; i < 5000 || (recalled == 0 && Clock::now() < deadline); ++i) {
        struct statx stx {};
        const std::size_t which = (i * 7 + t) % 40;
        if (t % 2 == 0) {
          const auto inode = store_->lookup(root(), name_of("f" + std::to_string(which)), 0, &stx);
          ASSERT_TRUE(inode);
          ASSERT_TRUE(i % 3 != 0 || store_->fd(*inode));
          ids[which] = inode->id().value;
          store_->forget(inode->id(), 1);
        } else if (const std::uint64_t id = ids[which]; id != 0) {
          const auto inode = store_->recall(NodeId{id}, &stx);
          if (!inode) continue;  // its time was up
          ++recalled;
          const auto fd = store_->fd(*inode);
          struct statx again {};
          ASSERT_TRUE(fd && sys::statx(*fd, sys::kStatxMask, &again));
          ASSERT_EQ(again.stx_ino, stx.stx_ino);
          store_->forget(inode->id(), 1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->count(), 1U);
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_GT(recalled, 0);
}

TEST_F(InodeStoreTest, ThreadsThatLookUpForgetAndUseLoseNothing) {
  for (int i = 0; i < 40; ++i) make("f" + std::to_string(i));
  let_settle();
  InodeStore::Settings settings;
  settings.descriptor_budget = 8;
  open_store(settings);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 3000; ++i) {
        struct statx stx {};
        const InodeRef top = root();
        const std::string text = "f" + std::to_string((i * 7 + t) % 40);
        auto inode = store_->lookup(top, name_of(text), 0, &stx);
        ASSERT_TRUE(inode) << inode.error().text();
        const auto fd = store_->fd(*inode);
        ASSERT_TRUE(fd) << fd.error().text();
        struct statx again {};
        ASSERT_TRUE(sys::statx(*fd, sys::kStatxMask, &again));
        ASSERT_EQ(again.stx_ino, stx.stx_ino);
        store_->forget(inode->id(), 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(store_->count(), 1U);
  EXPECT_EQ(store_->descriptors(), 0U);
}

// A lookup finds a record in the very moment in which it turns cold: it must
// not come away with the descriptor that is being closed.
TEST_F(InodeStoreTest, ARecordThatTurnsColdIsNotUsedHalfWay) {
  for (int i = 0; i < 24; ++i) make("f" + std::to_string(i));
  let_settle();
  InodeStore::Settings settings;
  settings.descriptor_budget = 2;
  open_store(settings);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([this, t, &wrong] {
      for (int i = 0; i < 5000; ++i) {
        struct statx stx {};
        const std::string text = "f" + std::to_string((i * 5 + t) % 24);
        const auto inode = store_->lookup(root(), name_of(text), 0, &stx);
        const auto fd = inode ? store_->fd(*inode) : Result<FdRef>{inode.error()};
        struct statx again {};
        if (!fd || !sys::statx(*fd, sys::kStatxMask, &again) || again.stx_ino != stx.stx_ino)
          ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  store_->clear();
  EXPECT_EQ(store_->count(), 1U);
  EXPECT_EQ(store_->descriptors(), 0U);
}

// Runs `work` on a stack as small as no thread of the daemon has.
template <typename Work>
void on_small_stack(Work work) {
  pthread_attr_t attributes;
  ASSERT_EQ(::pthread_attr_init(&attributes), 0);
  ASSERT_EQ(::pthread_attr_setstacksize(&attributes, std::size_t{256} << 10), 0);
  pthread_t thread{};
  const auto run = [](void* argument) -> void* {
    (*static_cast<Work*>(argument))();
    return nullptr;
  };
  ASSERT_EQ(::pthread_create(&thread, &attributes, run, &work), 0);
  ::pthread_join(thread, nullptr);
  ::pthread_attr_destroy(&attributes);
}

// To let a child go its parent is opened, which may be one descriptor too many.
TEST_F(InodeStoreTest, LettingGoDoesNotNestHoweverManyParentsAreCold) {
  constexpr int kDirectories = 600;
  for (int i = 0; i < kDirectories; ++i) {
    fs::create_directory(root_ / ("d" + std::to_string(i)));
    make("d" + std::to_string(i) + "/child");
  }
  for (int i = 0; i < 300; ++i) make("f" + std::to_string(i));
  let_settle();
  InodeStore::Settings settings;
  settings.descriptor_budget = kDirectories + 64;
  open_store(settings);
  std::vector<NodeId> children;
  for (int i = 0; i < kDirectories; ++i) {
    const InodeRef directory = *lookup("d" + std::to_string(i));
    children.push_back(lookup(directory, "child")->id());
  }
  std::vector<NodeId> others;
  for (int i = 0; i < 300; ++i) others.push_back(lookup("f" + std::to_string(i))->id());
  on_small_stack([&] {
    // Children stay in use, their directories don't.
    for (int round = 0; round < 4; ++round) {
      for (const NodeId child : children) EXPECT_TRUE(store_->fd(*store_->pin(child)));
    }
    for (const NodeId other : others) EXPECT_TRUE(store_->fd(*store_->pin(other)));
  });
  EXPECT_LE(store_->descriptors(), kDirectories + 200U);
}

// Handles of directories that are gone lead nowhere, and then their parents are asked.
TEST_F(InodeStoreTest, ADeepTreeThatIsGoneIsStaleAndNothingWorse) {
  constexpr int kDepth = 300;
  InodeStore::Settings settings;
  settings.descriptor_budget = 8;
  settings.use_file_handles = true;
  open_store(settings);
  std::vector<NodeId> chain{NodeId{1}};
  std::vector<UniqueFd> fds;
  fds.emplace_back(::open(root_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  for (int i = 0; i < kDepth; ++i) {
    ASSERT_TRUE(sys::mkdirat(fds.back(), name_of("d"), 0755));
    auto next = sys::open_path(fds.back(), name_of("d"));
    ASSERT_TRUE(next);
    const InodeRef above = *store_->pin(chain.back());
    chain.push_back(lookup(above, "d")->id());
    // One at a time: an inode that somebody holds is still reached by its handle.
    fds.clear();
    fds.push_back(std::move(*next));
  }
  fds.clear();
  for (int round = 0; round < 3; ++round) {
    make("f");
    ASSERT_TRUE(lookup("f"));
  }
  fs::remove_all(root_ / "d");
  on_small_stack([&] {
    // Hot ones are still there; nothing else to expect but an answer.
    for (auto id = chain.rbegin(); id != chain.rend(); ++id) {
      const auto fd = store_->fd(*store_->pin(*id));
      if (!fd) {
        EXPECT_EQ(fd.error(), Errno{ESTALE});
      }
    }
  });
}

TEST_F(InodeStoreTest, WithoutBirthsADescriptorTooManyIsRefusedAtOnce) {
  open_store({}, UniqueFd{::open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC)});
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(::dup(0));  // the lowest that is free
  ::close(static_cast<int>(none.rlim_cur));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(lookup("status").error(), Errno{EMFILE});
  const auto took = std::chrono::steady_clock::now() - began;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_LT(took, std::chrono::seconds(1));  // ten waits for youth to pass take three
}

// The store on a mount that opens no devices, as the sandbox makes it.
class OpenByNameTest : public InodeStoreTest {
 protected:
  void SetUp() override {
    UniqueFd tree{static_cast<int>(
        ::syscall(SYS_open_tree, AT_FDCWD, root_.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC))};
    if (!tree) GTEST_SKIP() << "mounting takes CAP_SYS_ADMIN";
    struct mount_attr attributes {};
    attributes.attr_set = MOUNT_ATTR_NODEV;
    ASSERT_EQ(::syscall(SYS_mount_setattr, tree.number(), "", AT_EMPTY_PATH, &attributes,
                        sizeof attributes),
              0);
    open_store({}, std::move(tree));
  }

  Result<UniqueFd> open(const InodeRef& inode, int flags = O_RDONLY) {
    return store_->open(inode, flags);
  }
  static std::string content(const Result<UniqueFd>& fd) {
    if (!fd) return fd.error().text();
    std::array<char, 64> bytes{};
    const ssize_t got = ::pread(fd->number(), bytes.data(), bytes.size(), 0);
    return {bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0))};
  }
  void replace(const std::string& with, const std::string& name) {
    fs::rename(root_ / with, root_ / name);
  }
};

TEST_F(OpenByNameTest, AColdFileIsOpenedWithoutAnotherDescriptor) {
  make("a", "content");
  let_settle();
  const InodeRef a = *lookup("a");
  EXPECT_EQ(content(open(a)), "content");
  EXPECT_EQ(store_->descriptors(), 0U);
}

TEST_F(OpenByNameTest, WhatTookTheNameIsNotHandedOut) {
  make("a", "ours");
  make("another", "another");
  let_settle();
  const InodeRef a = *lookup("a");
  ASSERT_TRUE(store_->fd(a));
  replace("another", "a");
  EXPECT_EQ(content(open(a)), "ours");

  make("b", "ours");
  make("another", "another");
  let_settle();
  const InodeRef cold = *lookup("b");
  replace("another", "b");
  EXPECT_EQ(open(cold).error(), Errno{ESTALE});
}

TEST_F(OpenByNameTest, WhatTookTheNameIsNotTruncated) {
  make("a", "ours");
  make("another", "another");
  const InodeRef a = *lookup("a");
  ASSERT_TRUE(store_->fd(a));
  replace("another", "a");
  EXPECT_TRUE(open(a, O_RDWR | O_TRUNC));
  EXPECT_EQ(fs::file_size(root_ / "a"), 7U);
}

TEST_F(OpenByNameTest, AFifoThatTookTheNameStopsNobody) {
  make("a", "ours");
  let_settle();
  const InodeRef a = *lookup("a");
  ASSERT_EQ(::mkfifo((root_ / "fifo").c_str(), 0666), 0);
  replace("fifo", "a");
  EXPECT_EQ(open(a, O_RDONLY).error(), Errno{ESTALE});
  EXPECT_EQ(open(a, O_WRONLY).error(), Errno{ESTALE});
}

TEST_F(OpenByNameTest, ASymlinkThatTookTheNameIsNotFollowed) {
  make("a", "ours");
  make("another", "another");
  let_settle();
  const InodeRef a = *lookup("a");
  fs::remove(root_ / "a");
  fs::create_symlink("another", root_ / "a");
  EXPECT_EQ(open(a).error(), Errno{ESTALE});
}

TEST_F(OpenByNameTest, WhereDevicesOpenFilesGoByTheirDescriptor) {
  struct statvfs mount {};
  ASSERT_EQ(::statvfs(root_.c_str(), &mount), 0);
  if ((mount.f_flag & ST_NODEV) != 0) GTEST_SKIP() << "this directory's mount opens no devices";
  open_store({});
  make("a", "content");
  let_settle();
  const InodeRef a = *lookup("a");
  EXPECT_EQ(content(open(a)), "content");
  EXPECT_EQ(store_->descriptors(), 1U);
}

TEST_F(OpenByNameTest, AMovedDirectoryIsOpenedWhereItIs) {
  fs::create_directory(root_ / "d");
  const InodeRef d = *lookup("d");
  ASSERT_TRUE(store_->fd(d));
  replace("d", "e");
  make("e/inside");
  const auto fd = open(d, O_RDONLY | O_DIRECTORY);
  ASSERT_TRUE(fd);
  EXPECT_EQ(::faccessat(fd->number(), "inside", F_OK, 0), 0);
}

TEST_F(OpenByNameTest, AnOpenFileThatLostItsNameIsReachedThroughItsHandle) {
  make("a", "ours");
  make("b", "another");
  let_settle();
  HandleTable table{*store_, 10};
  const NodeId b = lookup("b")->id();
  ASSERT_TRUE(table.insert(HandleKind::kFile, *store_->pin(b), *open(*store_->pin(b)), O_RDONLY));
  const NodeId id = lookup("a")->id();
  const HandleId handle =
      *table.insert(HandleKind::kFile, *store_->pin(id), *open(*store_->pin(id)), O_RDONLY);
  fs::remove(root_ / "a");
  EXPECT_EQ(content(open(*store_->pin(id))), "ours");
  ASSERT_TRUE(store_->stat(*store_->pin(id), sys::kStatxMask, &stx_));
  EXPECT_EQ(stx_.stx_nlink, 0U);
  EXPECT_TRUE(table.release(handle, HandleKind::kFile, id));
}

TEST_F(InodeStoreTest, WhyAnOpenFileCouldNotStandInIsTold) {
  make("a", "ours");
  let_settle();
  const InodeRef a = *lookup("a");
  store_->set_open_files([](NodeId) -> Result<UniqueFd> { return Errno{ENOMEM}; });
  store_->opened(a);
  fs::remove(root_ / "a");
  EXPECT_EQ(store_->fd(a).error(), Errno{ENOMEM});
  store_->closed(a);
  EXPECT_EQ(store_->fd(a).error(), Errno{ESTALE});
}

TEST_F(OpenByNameTest, AFileThatLostItsNameAndItsHandleIsStale) {
  make("a", "ours");
  let_settle();
  HandleTable table{*store_, 10};
  const NodeId a = lookup("a")->id();
  const HandleId handle =
      *table.insert(HandleKind::kFile, *store_->pin(a), *open(*store_->pin(a)), O_RDONLY);
  fs::remove(root_ / "a");
  EXPECT_TRUE(table.release(handle, HandleKind::kFile, a));
  EXPECT_EQ(open(*store_->pin(a)).error(), Errno{ESTALE});
}

TEST_F(OpenByNameTest, AYoungFileIsPinnedThoughItsNameMeansAnother) {
  make("a", "ours");
  const UniqueFd fd{::open((root_ / "a").c_str(), O_RDONLY | O_CLOEXEC)};
  make("another", "another");
  replace("another", "a");
  const InodeRef a = *store_->adopt(root(), name_of("a"), fd, &stx_);
  struct statx seen {};
  ASSERT_TRUE(sys::statx(*store_->fd(a), sys::kStatxMask, &seen));
  EXPECT_EQ(seen.stx_ino, stx_.stx_ino);
}

class HandleTableTest : public InodeStoreTest {
 protected:
  UniqueFd open_null() { return UniqueFd{::open("/dev/null", O_RDONLY | O_CLOEXEC)}; }
};

TEST_F(HandleTableTest, AHandleBelongsToItsNodeAndKind) {
  make("a");
  make("b");
  HandleTable table{*store_, 10};
  const NodeId a = lookup("a")->id();
  const NodeId b = lookup("b")->id();
  const HandleId id = *table.insert(HandleKind::kFile, *store_->pin(a), open_null(), O_RDONLY);
  EXPECT_TRUE(table.find(id, HandleKind::kFile, a));
  EXPECT_EQ(table.find(id, HandleKind::kFile, b).error(), Errno{EBADF});
  EXPECT_EQ(table.find(id, HandleKind::kDirectory, a).error(), Errno{EBADF});
  EXPECT_EQ(table.find(HandleId{id.value + 1}, HandleKind::kFile, a).error(), Errno{EBADF});
}

TEST_F(HandleTableTest, AReleasedHandleKeepsItsDescriptorWhileACallUsesIt) {
  HandleTable table{*store_, 10};
  const HandleId id = *table.insert(HandleKind::kFile, root(), open_null(), O_RDONLY);
  HandleRef used = *table.find(id, HandleKind::kFile);
  const int number = used.fd().number();
  ASSERT_TRUE(table.release(id, HandleKind::kFile, NodeId{1}));
  EXPECT_EQ(table.find(id, HandleKind::kFile).error(), Errno{EBADF});
  EXPECT_EQ(table.release(id, HandleKind::kFile, NodeId{1}).error(), Errno{EBADF});
  EXPECT_GE(::fcntl(number, F_GETFD), 0);
  used = HandleRef{};
  EXPECT_EQ(::fcntl(number, F_GETFD), -1);
}

TEST_F(HandleTableTest, TooManyHandlesIsEnfile) {
  HandleTable table{*store_, 2};
  ASSERT_TRUE(table.insert(HandleKind::kFile, root(), open_null(), O_RDONLY));
  ASSERT_TRUE(table.insert(HandleKind::kFile, root(), open_null(), O_RDONLY));
  EXPECT_EQ(table.insert(HandleKind::kFile, root(), open_null(), O_RDONLY).error(), Errno{ENFILE});
  table.clear();
  EXPECT_EQ(table.count(), 0U);
}

}  // namespace
}  // namespace virtiofsd
