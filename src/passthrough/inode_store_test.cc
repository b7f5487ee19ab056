// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The store as its users see it: ids, lookups, the tree.
#include <thread>
#include <vector>

#include "passthrough/inode_store_fixture.h"

namespace virtiofsd {
namespace {

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

}  // namespace
}  // namespace virtiofsd
