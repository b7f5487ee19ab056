// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What the guest has forgotten, and comes back to.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "passthrough/inode_store_fixture.h"

namespace virtiofsd {
namespace {

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

}  // namespace
}  // namespace virtiofsd
