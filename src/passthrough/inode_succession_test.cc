// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A store that goes on where a process died: with its arena and its descriptors, and nothing else.
#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>
#include <vector>

#include "passthrough/handle_table.h"
#include "passthrough/inode_index.h"
#include "passthrough/inode_store_fixture.h"
#include "passthrough/passthrough.h"
#include "state/arena.h"
#include "state/plan.h"
#include "state/records.h"
#include "state/slab.h"

namespace virtiofsd {
namespace {

bool is_open(int number) {
  return ::fcntl(number, F_GETFD) >= 0;
}

std::string content_of(FdRef fd) {
  std::array<char, 64> bytes{};
  const ssize_t size = ::pread(fd.number(), bytes.data(), bytes.size(), 0);
  return {bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0))};
}

class Succession : public InodeStoreTest {
 protected:
  static constexpr std::uint32_t kInodes = 1U << 12;

  Succession() { begin(); }
  ~Succession() override { table_.reset(); }

  InodeStore::Settings settings() {
    InodeStore::Settings wanted = wanted_;
    wanted.arena = arena_;
    return wanted;
  }
  // A first life, in an arena of its own.
  void begin() {
    table_.reset();
    store_.reset();
    arena_ = std::move(Arena::create(arena_plan(kInodes))).value();
    open_store(settings());
  }
  void begin(InodeStore::Settings wanted) {
    wanted_ = std::move(wanted);
    begin();
  }
  void open_handles() { table_ = std::make_unique<HandleTable>(*store_, 100); }

  // Nothing is destroyed when a process dies, and what is open stays open, as the table of
  // descriptors is shared; but for its own root.
  void die() {
    static auto& dead = *new std::vector<const void*>;
    ::close(record(NodeId{1}).fd.load());
    dead.push_back(table_.release());
    dead.push_back(store_.release());
  }
  // The store alone, which may still hold what it will let go at the end.
  void start_taking_over() {
    InodeStore::Settings wanted = settings();
    wanted.take_over = true;
    open_store(std::move(wanted));
  }
  void succeed() {
    const bool has_handles = table_ != nullptr;
    die();
    start_taking_over();
    if (has_handles) {
      open_handles();
      table_->take_over();
    }
    store_->end_take_over();
  }
  // Like a call that never ended.
  static void never_ends(InodeRef inode) {
    static auto& calls = *new std::vector<InodeRef*>;
    calls.push_back(new InodeRef{std::move(inode)});
  }

  InodeSlab inodes() { return InodeSlab{arena_->section(SectionKind::kInodes)}; }
  InodeRecord& record(NodeId id) {
    return records_of<InodeRecord>(arena_->section(SectionKind::kInodes),
                                   kInodes)[static_cast<std::uint32_t>(id.value)];
  }
  HandleRecord& record(HandleId id) {
    return records_of<HandleRecord>(arena_->section(SectionKind::kHandles),
                                    kInodes)[static_cast<std::uint32_t>(id.value)];
  }
  void set_state(NodeId id, SlotState state) {
    record(id).head = SlotHead::with_state(record(id).head, state);
  }
  bool is_live(NodeId id) {
    const std::uint64_t head = record(id).head;
    return SlotHead::state(head) == SlotState::kLive &&
           SlotHead::generation(head) == id.value >> 32;
  }

  NodeId cold(std::string_view name, NodeId directory = NodeId{1}) {
    const auto found = lookup(*store_->pin(directory), name);
    EXPECT_TRUE(found) << name;
    EXPECT_LT(record(found->id()).fd, 0) << name;
    return found->id();
  }
  NodeId hot(std::string_view name, NodeId directory = NodeId{1}) {
    const auto found = lookup(*store_->pin(directory), name);
    EXPECT_TRUE(found && store_->fd(*found)) << name;
    return found->id();
  }
  NodeId id_of(std::string_view name, NodeId directory = NodeId{1}) {
    const auto found = lookup(*store_->pin(directory), name);
    if (!found) return NodeId{0};
    store_->forget(found->id(), 1);
    return found->id();
  }
  // 0: it is what the path leads to.
  Errno check(NodeId id, const std::string& path) {
    const auto inode = store_->pin(id);
    if (!inode) return inode.error();
    if (const auto got = store_->stat(*inode, sys::kStatxMask, &stx_); !got) return got.error();
    struct stat there {};
    EXPECT_EQ(::lstat((root_ / path).c_str(), &there), 0) << path;
    EXPECT_EQ(stx_.stx_ino, there.st_ino) << path;
    return Errno{0};
  }
  std::string content(NodeId id) {
    const auto inode = store_->pin(id);
    if (!inode) return inode.error().text();
    const auto fd = store_->open(*inode, O_RDONLY);
    return fd ? content_of(*fd) : fd.error().text();
  }
  Errno recall(NodeId id) {
    const auto inode = store_->recall(id, &stx_);
    if (!inode) return inode.error();
    EXPECT_EQ(inode->id(), id);
    store_->forget(id, 1);
    return Errno{0};
  }
  HandleId open_handle(HandleKind kind, NodeId node) {
    const int flags = kind == HandleKind::kFile ? O_RDWR : O_RDONLY | O_DIRECTORY;
    InodeRef inode = std::move(store_->pin(node)).value();
    UniqueFd fd = std::move(store_->open(inode, flags)).value();
    return *table_->insert(kind, std::move(inode), std::move(fd),
                           static_cast<std::uint32_t>(flags));
  }

  InodeStore::Settings wanted_;
  std::shared_ptr<Arena> arena_;
  std::unique_ptr<HandleTable> table_;
};

// ---- what is found again ------------------------------------------------------------

TEST_F(Succession, NodesStillLeadToTheirFiles) {
  fs::create_directories(root_ / "d/e");
  make("a", "cold");
  make("b", "hot");
  make("d/e/f", "deep");
  fs::create_symlink("nowhere", root_ / "link");
  let_settle();
  make("young", "young");
  const NodeId a = cold("a");
  const NodeId b = hot("b");
  const NodeId link = cold("link");
  const NodeId young = lookup("young")->id();
  const NodeId d = cold("d");
  const NodeId e = hot("e", d);  // opens its parent
  const NodeId f = cold("f", e);
  ASSERT_EQ(store_->descriptors(), 4U);

  succeed();
  EXPECT_EQ(store_->count(), 8U);
  EXPECT_EQ(store_->descriptors(), 4U);
  EXPECT_EQ(check(NodeId{1}, "."), Errno{0});
  const std::vector<std::pair<NodeId, const char*>> all = {
      {a, "a"}, {b, "b"}, {link, "link"}, {young, "young"}, {d, "d"}, {e, "d/e"}, {f, "d/e/f"}};
  for (const auto& [id, path] : all) EXPECT_EQ(check(id, path), Errno{0}) << path;
  EXPECT_TRUE(store_->pin(d)->is_directory());
  EXPECT_TRUE(store_->pin(link)->is_symlink());
  EXPECT_EQ(content(a), "cold");
  EXPECT_EQ(content(b), "hot");
  EXPECT_EQ(content(young), "young");
  EXPECT_EQ(content(f), "deep");
  for (const char* name : {"a", "b", "link", "young", "d"})
    EXPECT_NE(id_of(name), NodeId{0}) << name;
  EXPECT_EQ(id_of("a"), a);
  EXPECT_EQ(id_of("young"), young);
  EXPECT_EQ(id_of("e", d), e);
  EXPECT_EQ(id_of("f", e), f);
  EXPECT_EQ(store_->count(), 8U);
}

TEST_F(Succession, TheRootIsTheNewOneAndStays) {
  make("a");
  succeed();
  EXPECT_TRUE(is_open(store_->fd(root())->number()));
  store_->forget(NodeId{1}, 1000);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(check(NodeId{1}, "."), Errno{0});
  EXPECT_TRUE(lookup("a"));
  EXPECT_EQ(SlotHead::pins(record(NodeId{1}).head), 1U);
}

TEST_F(Succession, ALookupOfEveryFileFindsTheNodeThatIsThere) {
  constexpr int kFiles = 300;
  const auto name = [](int i) { return "f" + std::to_string(i); };
  for (int i = 0; i < kFiles; ++i) make(name(i));
  let_settle();
  std::vector<NodeId> ids;
  for (int i = 0; i < kFiles; ++i) ids.push_back(i % 3 == 0 ? hot(name(i)) : cold(name(i)));

  succeed();
  EXPECT_EQ(store_->count(), kFiles + 1U);
  EXPECT_EQ(store_->descriptors(), kFiles / 3U);
  for (int i = 0; i < kFiles; ++i) EXPECT_EQ(id_of(name(i)), ids[static_cast<std::size_t>(i)]);
  EXPECT_EQ(store_->count(), kFiles + 1U);
  make("new");
  const NodeId made = lookup("new")->id();
  EXPECT_EQ(std::ranges::find(ids, made), ids.end());
  EXPECT_EQ(store_->count(), kFiles + 2U);
}

TEST_F(Succession, LookupsOwedAreKept) {
  make("a");
  make("b");
  let_settle();
  const NodeId a = cold("a");
  for (int i = 0; i < 2; ++i) ASSERT_EQ(lookup("a")->id(), a);
  const NodeId b = hot("b");
  succeed();
  store_->forget(a, 2);
  EXPECT_TRUE(store_->pin(a));
  store_->forget(a, 1);
  EXPECT_EQ(store_->pin(a).error(), Errno{ESTALE});
  store_->forget(b, 1);
  EXPECT_EQ(store_->pin(b).error(), Errno{ESTALE});
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(store_->count(), 1U);
}

TEST_F(Succession, APinOfTheDeadKeepsNothing) {
  make("a");
  const NodeId a = lookup("a")->id();
  never_ends(*store_->pin(a));
  fs::remove(root_ / "a");
  succeed();
  const int number = store_->fd(*store_->pin(a))->number();
  store_->forget(a, 1);
  EXPECT_FALSE(is_open(number));
  EXPECT_FALSE(is_live(a));
}

TEST_F(Succession, NewNodesGetIdsThatNoneHadBefore) {
  make("a");
  let_settle();
  const NodeId before = lookup("a")->id();
  wanted_.remembered = 0;
  begin();
  ASSERT_EQ(cold("a"), before);
  store_->forget(before, 1);
  succeed();
  EXPECT_EQ(store_->pin(before).error(), Errno{ESTALE});
  EXPECT_NE(cold("a"), before);
  EXPECT_EQ(store_->pin(before).error(), Errno{ESTALE});
}

TEST_F(Succession, AnArenaThatNobodyUsedIsBegunAnew) {
  table_.reset();
  store_.reset();
  arena_ = std::move(Arena::create(arena_plan(kInodes))).value();
  start_taking_over();
  store_->end_take_over();
  make("a");
  EXPECT_EQ(check(lookup("a")->id(), "a"), Errno{0});
  EXPECT_EQ(store_->count(), 2U);
}

TEST_F(Succession, GoesOnForAThirdLife) {
  make("a", "a");
  make("b", "b");
  make("c", "c");
  let_settle();
  open_handles();
  const NodeId a = cold("a");
  const NodeId b = hot("b");
  const HandleId handle = open_handle(HandleKind::kFile, b);
  succeed();
  const NodeId c = hot("c");
  ASSERT_EQ(lookup("a")->id(), a);
  never_ends(*store_->pin(c));
  succeed();
  succeed();
  EXPECT_EQ(store_->count(), 4U);
  EXPECT_EQ(store_->descriptors(), 2U);
  EXPECT_EQ(content(a), "a");
  EXPECT_EQ(content(b), "b");
  EXPECT_EQ(content(c), "c");
  EXPECT_EQ(record(b).opens, 1U);
  EXPECT_EQ(content_of(table_->find(handle, HandleKind::kFile, b)->fd()), "b");
  store_->forget(a, 1);
  EXPECT_TRUE(store_->pin(a));
  store_->forget(a, 1);
  EXPECT_FALSE(store_->pin(a));
}

// ---- what the guest had forgotten -----------------------------------------------------

TEST_F(Succession, ForgottenNodesAreStillRemembered) {
  make("a");
  let_settle();
  make("young");
  const NodeId a = cold("a");
  const NodeId young = lookup("young")->id();
  store_->forget(a, 1);
  store_->forget(young, 1);
  ASSERT_EQ(store_->count(), 1U);
  succeed();
  EXPECT_EQ(store_->count(), 1U);
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(store_->pin(a).error(), Errno{ESTALE});
  EXPECT_EQ(recall(a), Errno{0});
  EXPECT_EQ(recall(young), Errno{0});
  EXPECT_EQ(id_of("a"), a);
  EXPECT_EQ(id_of("young"), young);
  EXPECT_EQ(store_->count(), 1U);
}

TEST_F(Succession, NoMoreForgottenNodesAreKeptThanItMayRemember) {
  std::vector<NodeId> ids;
  for (int i = 0; i < 6; ++i) make(std::to_string(i));
  let_settle();
  for (int i = 0; i < 5; ++i) ids.push_back(cold(std::to_string(i)));
  for (const NodeId id : ids) store_->forget(id, 1);
  const auto remembered = [&] {
    return std::ranges::count_if(ids, [&](NodeId id) { return is_live(id); });
  };
  ASSERT_EQ(remembered(), 5);
  wanted_.remembered = 3;
  succeed();
  EXPECT_EQ(remembered(), 3);
  ids.push_back(cold("5"));
  store_->forget(ids.back(), 1);
  EXPECT_EQ(remembered(), 3) << "they are in line";
  EXPECT_EQ(recall(ids.back()), Errno{0});
  wanted_.remembered = 0;
  succeed();
  EXPECT_EQ(remembered(), 0);
  EXPECT_EQ(store_->count(), 1U);
}

TEST_F(Succession, AForgottenNodeIsDroppedWithoutADescriptorWhenNobodyHasItOpen) {
  make("a");
  make("gone");
  let_settle();
  const NodeId a = hot("a");
  const NodeId gone = hot("gone");
  const int number = record(a).fd;
  const int number_of_gone = record(gone).fd;
  for (const NodeId id : {a, gone}) {
    never_ends(*store_->pin(id));
    store_->forget(id, 1);
  }
  fs::remove(root_ / "gone");
  die();
  start_taking_over();
  EXPECT_EQ(store_->descriptors(), 2U) << "somebody may have it open";
  store_->end_take_over();
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_FALSE(is_open(number));
  EXPECT_FALSE(is_open(number_of_gone));
  EXPECT_EQ(store_->count(), 1U);
  EXPECT_EQ(recall(a), Errno{0});
  EXPECT_FALSE(is_live(gone));
}

// By a rename on the host, each directory's last known name is in the other one.
TEST_F(Succession, ForgottenDirectoriesThatAreInEachOtherAreLetGo) {
  fs::create_directories(root_ / "a/b");
  let_settle();
  const NodeId a = hot("a");
  const NodeId b = hot("b", a);
  fs::rename(root_ / "a/b", root_ / "b");
  fs::rename(root_ / "a", root_ / "b/a");
  ASSERT_EQ(lookup(*store_->pin(b), "a")->id(), a);
  ASSERT_EQ(record(a).parent, b.value);
  ASSERT_EQ(record(b).parent, a.value);
  for (const NodeId id : {a, b}) {
    never_ends(*store_->pin(id));
    store_->forget(id, 2);
  }
  succeed();
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(record(a).cold_children, 1U);
  EXPECT_EQ(record(b).cold_children, 1U);
}

// ---- what is derived from the records --------------------------------------------------

TEST_F(Succession, AFileThatIsRemovedWhileItIsOpenStaysUsable) {
  fs::create_directory(root_ / "d");
  make("d/a", "text");
  let_settle();
  const NodeId d = hot("d");
  const NodeId a = cold("a", d);
  succeed();
  const InodeRef directory = std::move(store_->pin(d)).value();
  EXPECT_TRUE(store_->has_cold_children(directory));
  EXPECT_FALSE(store_->has_cold_children(root())) << "d holds its descriptor";
  store_->before_removal(directory, name_of("a"));
  fs::remove(root_ / "d/a");
  store_->after_removal(directory, name_of("a"));
  EXPECT_TRUE(store_->stat(*store_->pin(a), sys::kStatxMask, &stx_));
  EXPECT_EQ(stx_.stx_nlink, 0U);
  EXPECT_FALSE(store_->has_cold_children(directory)) << "counted once too often";
}

TEST_F(Succession, ADirectoryKnowsHowManyColdChildrenItHas) {
  fs::create_directory(root_ / "d");
  for (const char* name : {"d/a", "d/b", "d/c"}) make(name);
  let_settle();
  const NodeId d = cold("d");
  const NodeId a = cold("a", d);
  const NodeId b = cold("b", d);
  hot("c", d);
  store_->forget(b, 1);
  // What the dead counted too much is not counted any more.
  record(d).cold_children = 1000;
  record(NodeId{1}).cold_children = 1000;
  succeed();
  EXPECT_EQ(record(NodeId{1}).cold_children, 0U);
  EXPECT_EQ(record(d).cold_children, 2U) << "one forgotten, one not";
  ASSERT_TRUE(store_->fd(*store_->pin(a)));
  EXPECT_EQ(record(d).cold_children, 1U);
  store_->clear();
  EXPECT_EQ(record(d).cold_children, 3U);
}

// A directory that the guest has open, and has removed with what was in it and forgotten.
TEST_F(Succession, ARemovedDirectoryThatIsOpenOutlivesWhatWasInIt) {
  fs::create_directory(root_ / "d");
  make("d/a");
  let_settle();
  open_handles();
  const NodeId d = hot("d");
  const HandleId handle = open_handle(HandleKind::kDirectory, d);
  cold("a", d);
  fs::remove_all(root_ / "d");
  store_->forget(d, 1);
  ASSERT_TRUE(table_->find(handle, HandleKind::kDirectory, d));
  succeed();
  EXPECT_TRUE(table_->find(handle, HandleKind::kDirectory, d));
  EXPECT_TRUE(table_->release(handle, HandleKind::kDirectory, d));
  EXPECT_FALSE(is_live(d));
}

TEST_F(Succession, ARenameIsFollowedThoughNobodyRemembersWhoHadTheName) {
  make("a", "text");
  let_settle();
  const NodeId a = cold("a");
  succeed();
  const InodeRef top = root();
  fs::rename(root_ / "a", root_ / "b");
  follow(top, name_of("a"), top, name_of("b"), false);
  EXPECT_EQ(content(a), "text");
}

// ---- mounts ------------------------------------------------------------------------------

class MountSuccession : public Succession {
 protected:
  void SetUp() override {
    // What is mounted here ends with this process.
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      GTEST_SKIP() << "mounting takes CAP_SYS_ADMIN";
    }
    for (const char* name : {"m1", "m2", "m3"}) fs::create_directory(root_ / name);
    begin();
  }
  ~MountSuccession() override {
    for (const char* name : {"m1", "m2", "m3"}) ::umount2((root_ / name).c_str(), MNT_DETACH);
  }
  void mount(const std::string& name) {
    ASSERT_EQ(::mount("tmpfs", (root_ / name).c_str(), "tmpfs", 0, "size=1m"), 0);
    make(name + "/file", name);
    make(name + "/other", name);
  }
};

TEST_F(MountSuccession, FilesOnOtherMountsAreKnownAgain) {
  mount("m1");
  mount("m2");
  let_settle();
  const NodeId second = lookup("m2")->id();  // in another order than they were mounted
  const NodeId first = lookup("m1")->id();
  const NodeId cold_file = cold("file", second);
  const NodeId hot_file = hot("file", first);
  const std::uint16_t index = record(second).mount;
  ASSERT_NE(index, 0U);

  succeed();
  EXPECT_TRUE(store_->pin(first)->is_submount());
  EXPECT_EQ(check(cold_file, "m2/file"), Errno{0});
  EXPECT_EQ(check(hot_file, "m1/file"), Errno{0});
  EXPECT_EQ(content(cold_file), "m2");
  EXPECT_EQ(content(hot_file), "m1");
  EXPECT_EQ(id_of("m1"), first);
  EXPECT_EQ(id_of("m2"), second);
  EXPECT_EQ(id_of("file", second), cold_file);
  EXPECT_EQ(id_of("file", first), hot_file);
  EXPECT_EQ(record(cold("other", second)).mount, index);
  EXPECT_TRUE(store_->pin(cold_file)->is_local()) << "births still identify there";
  EXPECT_EQ(store_->count(), 6U);
}

TEST_F(MountSuccession, AMountThatIsSeenLaterGetsAnIndexOfItsOwn) {
  mount("m1");
  const NodeId first = lookup("m1")->id();
  succeed();
  mount("m2");
  const NodeId second = lookup("m2")->id();
  EXPECT_NE(record(second).mount, record(first).mount);
  EXPECT_NE(record(second).mount, 0U);
  succeed();
  mount("m3");
  const NodeId third = lookup("m3")->id();
  EXPECT_NE(record(third).mount, record(second).mount);
  EXPECT_NE(record(third).mount, record(first).mount);
  for (const NodeId id : {first, second, third}) EXPECT_TRUE(store_->pin(id));
  EXPECT_EQ(id_of("m1"), first);
  EXPECT_EQ(id_of("m2"), second);
  EXPECT_EQ(id_of("m3"), third);
}

// ---- records half made, half gone, or damaged -----------------------------------------------

TEST_F(Succession, WhatWasSetAsideStays) {
  make("a", "a");
  make("b", "b");
  let_settle();
  const NodeId a = cold("a");
  const NodeId b = hot("b");
  set_state(a, SlotState::kAside);
  set_state(b, SlotState::kAside);
  succeed();
  EXPECT_EQ(content(a), "a");
  EXPECT_EQ(content(b), "b");
  EXPECT_EQ(id_of("b"), b);
  EXPECT_EQ(store_->count(), 3U);
}

TEST_F(Succession, WhatWasHalfMadeOrHalfGoneIsNotThere) {
  make("kept");
  make("busy");
  make("dying");
  let_settle();
  const NodeId kept = cold("kept");
  const NodeId busy = cold("busy");
  const NodeId dying = cold("dying");
  set_state(busy, SlotState::kBusy);
  set_state(dying, SlotState::kDying);
  succeed();
  EXPECT_EQ(store_->count(), 2U);
  EXPECT_EQ(record(NodeId{1}).cold_children, 1U);
  EXPECT_EQ(check(kept, "kept"), Errno{0});
  for (const NodeId id : {busy, dying}) EXPECT_EQ(store_->pin(id).error(), Errno{ESTALE});
  EXPECT_NE(id_of("busy"), busy);
  EXPECT_NE(id_of("dying"), dying);
  EXPECT_EQ(id_of("kept"), kept);
}

// Of a hot one half made or half gone, nobody closes the number any more: it may be another's.
TEST_F(Succession, DescriptorsOfWhatIsLostAreLeftAlone) {
  make("a");
  let_settle();
  const NodeId a = hot("a");
  const int number = record(a).fd;
  set_state(a, SlotState::kDying);
  succeed();
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_TRUE(is_open(number));
  ASSERT_TRUE(lookup("a"));
  store_->clear();
  EXPECT_TRUE(is_open(number));
  ::close(number);
}

TEST_F(Succession, ANodeWhoseDescriptorIsClosedIsFoundByItsName) {
  make("a", "text");
  let_settle();
  const NodeId a = hot("a");
  ::close(record(a).fd);
  succeed();
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_TRUE(store_->has_cold_children(root()));
  EXPECT_EQ(check(a, "a"), Errno{0});
  EXPECT_EQ(content(a), "text");
  ASSERT_TRUE(store_->fd(*store_->pin(a)));
  EXPECT_EQ(store_->descriptors(), 1U);
  EXPECT_FALSE(store_->has_cold_children(root()));
}

TEST_F(Succession, ADescriptorOfAnotherFileIsNotTakenForTheNodes) {
  make("a", "ours");
  make("b", "another");
  make("outside", "secret");
  let_settle();
  const NodeId a = hot("a");
  const NodeId b = hot("b");
  ::close(record(a).fd);
  const UniqueFd outside{::open((root_ / "outside").c_str(), O_RDONLY | O_CLOEXEC)};
  record(a).fd = outside.number();
  ::close(record(b).fd);
  record(b).fd = arena_->fd().number();
  succeed();
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(check(a, "a"), Errno{0});
  EXPECT_EQ(content(a), "ours");
  EXPECT_EQ(check(b, "b"), Errno{0});
  store_->clear();
  EXPECT_TRUE(is_open(outside.number())) << "it is somebody else's to close";
  EXPECT_TRUE(is_open(arena_->fd().number()));
}

TEST_F(Succession, NoDescriptorIsTwoNodes) {
  make("a", "a");
  make("b", "b");
  let_settle();
  const NodeId a = hot("a");
  const NodeId b = hot("b");
  ::close(record(b).fd);
  record(b).fd = record(a).fd.load();
  succeed();
  EXPECT_EQ(store_->descriptors(), 1U);
  EXPECT_EQ(content(b), "b");
  store_->forget(b, 1);
  EXPECT_EQ(content(a), "a");
  EXPECT_EQ(check(a, "a"), Errno{0});
}

class DamagedSuccession : public Succession {
 protected:
  // A cold and a hot node, each with what `damage` does to it, while the process dies.
  void damage_nodes(const std::function<void(InodeRecord&)>& damage) {
    for (const char* name : {"cold", "hot", "good"}) make(name, name);
    let_settle();
    cold_ = cold("cold");
    hot_ = hot("hot");
    good_ = cold("good");
    damage(record(cold_));
    damage(record(hot_));
    succeed();
    // Whatever is asked of them, nothing happens but errors.
    for (const NodeId id : {cold_, hot_}) {
      (void)check_quietly(id);
      store_->forget(id, 1);
      (void)recall(id);
    }
    EXPECT_EQ(check(good_, "good"), Errno{0});
    EXPECT_EQ(content(good_), "good");
    // And the files are still there to be looked up.
    for (const char* name : {"cold", "hot"}) {
      const auto found = lookup(name);
      ASSERT_TRUE(found) << name;
      EXPECT_EQ(content(found->id()), name);
    }
    store_->clear();
    EXPECT_EQ(store_->count(), 1U);
    EXPECT_EQ(store_->descriptors(), 0U);
  }
  Errno check_quietly(NodeId id) {
    const auto inode = store_->pin(id);
    if (!inode) return inode.error();
    if (const auto got = store_->stat(*inode, sys::kStatxMask, &stx_); !got) return got.error();
    if (const auto fd = store_->fd(*inode); !fd) return fd.error();
    if (const auto fd = store_->open(*inode, O_RDONLY); !fd) return fd.error();
    return Errno{0};
  }

  NodeId cold_;
  NodeId hot_;
  NodeId good_;
};

TEST_F(DamagedSuccession, AMountThatNobodyLearned) {
  damage_nodes([](InodeRecord& record) { record.mount = 7; });
}

TEST_F(DamagedSuccession, AParentThatLeadsNowhere) {
  damage_nodes([](InodeRecord& record) { record.parent = ~std::uint64_t{0}; });
}

TEST_F(DamagedSuccession, AParentThatIsNone) {
  damage_nodes([](InodeRecord& record) { record.parent = 0; });
}

TEST_F(DamagedSuccession, AParentThatIsItself) {
  damage_nodes([&](InodeRecord& record) {
    const auto slot = static_cast<std::uint32_t>(&record - &this->record(NodeId{0}));
    record.parent = (record.head >> 32 << 32) | slot;
  });
}

TEST_F(DamagedSuccession, ADescriptorOutOfRange) {
  damage_nodes([](InodeRecord& record) { record.fd = 0x7fffffff; });
}

TEST_F(DamagedSuccession, ADescriptorThatIsNegative) {
  damage_nodes([](InodeRecord& record) { record.fd = -12345; });
}

TEST_F(DamagedSuccession, AnotherInodeNumber) {
  damage_nodes([](InodeRecord& record) { record.ino += 1'000'000; });
}

TEST_F(DamagedSuccession, AnotherType) {
  damage_nodes([](InodeRecord& record) { record.type = 0xff; });
}

TEST_F(DamagedSuccession, ANameThatLeadsOut) {
  damage_nodes([](InodeRecord& record) { record.name = 0xfffffff0; });
}

TEST_F(DamagedSuccession, AKernelHandleThatLeadsOut) {
  damage_nodes([](InodeRecord& record) {
    record.handle = 0xfffffff0;
    record.unproven = 1;
  });
}

TEST_F(DamagedSuccession, AKernelHandleThatIsAName) {
  const std::string long_name(250, 'x');
  make(long_name);
  let_settle();
  const NodeId other = cold(long_name);
  for (const NodeId id : {other, NodeId{0}}) {
    const std::uint32_t blob = id.value != 0 ? record(id).name.load() : 0;
    damage_nodes([&](InodeRecord& record) {
      record.handle = blob;
      record.unproven = 1;
    });
    begin();
  }
}

TEST_F(DamagedSuccession, CountersThatAreNonsense) {
  damage_nodes([](InodeRecord& record) {
    record.opens = 77;
    record.cold_children = 77;
    record.queued = 77;
    record.touched = 77;
    record.links = 77;
    record.next_by_identity = 77;
  });
}

TEST_F(Succession, ATableOfMountsThatIsNonsenseDoesNoHarm) {
  make("a", "text");
  let_settle();
  const NodeId a = cold("a");
  for (MountRecord& mount :
       records_of<MountRecord>(arena_->section(SectionKind::kMounts), kMaxMountRecords)) {
    mount.device = 42;
    mount.id = 42;
    mount.known = 1;
  }
  succeed();
  EXPECT_EQ(content(a), "text");
}

// ---- open handles ---------------------------------------------------------------------------

class HandleSuccession : public Succession {
 protected:
  HandleSuccession() { open_handles(); }

  Errno find(HandleId id, HandleKind kind, NodeId node) {
    const auto found = table_->find(id, kind, node);
    return found ? Errno{0} : found.error();
  }
};

TEST_F(HandleSuccession, HandlesGoOnWithTheirNodes) {
  fs::create_directory(root_ / "d");
  make("a", "text");
  make("b", "text");
  let_settle();
  const NodeId a = cold("a");
  const NodeId b = cold("b");
  const NodeId d = cold("d");
  const HandleId file = open_handle(HandleKind::kFile, a);
  const HandleId twice = open_handle(HandleKind::kFile, a);
  const HandleId directory = open_handle(HandleKind::kDirectory, d);
  const HandleId top = open_handle(HandleKind::kDirectory, NodeId{1});
  const int number = table_->find(file, HandleKind::kFile)->fd().number();

  succeed();
  EXPECT_EQ(table_->count(), 4U);
  {
    const auto found = table_->find(file, HandleKind::kFile, a);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->id(), file);
    EXPECT_EQ(found->fd().number(), number);
    EXPECT_EQ(found->inode().id(), a);
    EXPECT_EQ(found->open_flags(), static_cast<std::uint32_t>(O_RDWR));
    EXPECT_EQ(content_of(found->fd()), "text");
  }
  EXPECT_EQ(find(file, HandleKind::kFile, b), Errno{EBADF});
  EXPECT_EQ(find(file, HandleKind::kDirectory, a), Errno{EBADF});
  EXPECT_EQ(find(twice, HandleKind::kFile, a), Errno{0});
  EXPECT_EQ(find(directory, HandleKind::kDirectory, d), Errno{0});
  EXPECT_EQ(find(top, HandleKind::kDirectory, NodeId{1}), Errno{0});
  EXPECT_EQ(record(a).opens, 2U);
  EXPECT_EQ(record(b).opens, 0U);
  EXPECT_EQ(record(d).opens, 1U);
  EXPECT_EQ(record(NodeId{1}).opens, 1U);
}

TEST_F(HandleSuccession, AReleaseClosesTheDescriptor) {
  make("a");
  let_settle();
  const NodeId a = cold("a");
  const HandleId handle = open_handle(HandleKind::kFile, a);
  const int number = table_->find(handle, HandleKind::kFile)->fd().number();
  succeed();
  ASSERT_TRUE(is_open(number));
  ASSERT_TRUE(table_->release(handle, HandleKind::kFile, a));
  EXPECT_FALSE(is_open(number));
  EXPECT_EQ(record(a).opens, 0U);
  EXPECT_EQ(find(handle, HandleKind::kFile, a), Errno{EBADF});
  EXPECT_EQ(table_->count(), 0U);
  EXPECT_NE(open_handle(HandleKind::kFile, a), handle);
}

TEST_F(HandleSuccession, WhatIsOpenKeepsItsDescriptor) {
  wanted_.descriptor_budget = 1;
  begin();
  open_handles();
  constexpr int kFiles = 200;
  make("a");
  for (int i = 0; i < kFiles; ++i) make(std::to_string(i));
  let_settle();
  const NodeId a = hot("a");
  const HandleId handle = open_handle(HandleKind::kFile, a);
  succeed();
  for (int i = 0; i < kFiles; ++i) hot(std::to_string(i));
  EXPECT_LT(store_->descriptors(), 100U) << "the others are let go";
  EXPECT_GE(record(a).fd, 0);
  ASSERT_TRUE(table_->release(handle, HandleKind::kFile, a));
  for (int i = 0; i < kFiles; ++i) ASSERT_TRUE(store_->fd(*store_->pin(id_of(std::to_string(i)))));
  EXPECT_LT(record(a).fd, 0);
}

TEST_F(HandleSuccession, AnOpenFileThatLostItsNameIsReachedThroughItsHandle) {
  make("a", "text");
  let_settle();
  const NodeId a = cold("a");
  const HandleId handle = open_handle(HandleKind::kFile, a);
  if (record(a).fd >= 0) {
    ::close(record(a).fd);
    record(a).fd = -1;
  }
  succeed();
  fs::remove(root_ / "a");
  EXPECT_TRUE(store_->stat(*store_->pin(a), sys::kStatxMask, &stx_));
  EXPECT_EQ(content(a), "text");
  EXPECT_TRUE(table_->release(handle, HandleKind::kFile, a));
}

TEST_F(HandleSuccession, AForgottenNodeStaysAsLongAsItIsOpen) {
  make("a", "text");
  let_settle();
  const NodeId a = hot("a");
  const HandleId handle = open_handle(HandleKind::kFile, a);
  const int number = record(a).fd;
  store_->forget(a, 1);
  fs::remove(root_ / "a");
  ASSERT_TRUE(is_live(a));
  succeed();
  EXPECT_EQ(store_->pin(a).error(), Errno{ESTALE});
  {
    const auto found = table_->find(handle, HandleKind::kFile, a);
    ASSERT_TRUE(found);
    EXPECT_EQ(content_of(found->fd()), "text");
    EXPECT_TRUE(store_->stat(found->inode(), sys::kStatxMask, &stx_));
  }
  EXPECT_TRUE(is_open(number));
  ASSERT_TRUE(table_->release(handle, HandleKind::kFile, a));
  EXPECT_FALSE(is_live(a));
  EXPECT_FALSE(is_open(number));
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(store_->count(), 1U);
}

TEST_F(HandleSuccession, AForgottenNodeThatWasOpenIsRememberedAfter) {
  make("a");
  let_settle();
  const NodeId a = hot("a");
  const HandleId handle = open_handle(HandleKind::kFile, a);
  store_->forget(a, 1);
  succeed();
  ASSERT_TRUE(table_->release(handle, HandleKind::kFile, a));
  EXPECT_EQ(store_->descriptors(), 0U);
  EXPECT_EQ(recall(a), Errno{0});
}

TEST_F(HandleSuccession, HandlesThatMakeNoSenseAreNone) {
  make("a");
  let_settle();
  const NodeId a = cold("a");
  const std::vector<std::function<void(HandleRecord&)>> damages = {
      [](HandleRecord& record) {
        ::close(record.fd);  // the number is used again by nobody below
        record.fd = 0x7ffffff0;
      },
      [](HandleRecord& record) { record.fd = -1; },
      [](HandleRecord& record) { record.kind = 9; },
      [](HandleRecord& record) { record.node = 0; },
      [](HandleRecord& record) { record.node += std::uint64_t{1} << 32; },
      [](HandleRecord& record) { record.node = ~std::uint64_t{0}; },
      [](HandleRecord& record) {
        record.head = SlotHead::with_state(record.head, SlotState::kBusy);
      },
      [](HandleRecord& record) {
        record.head = SlotHead::with_state(record.head, SlotState::kDying);
      }};
  const HandleId good = open_handle(HandleKind::kFile, a);
  std::vector<HandleId> bad;
  std::vector<int> numbers;
  for (std::size_t i = 0; i < damages.size(); ++i) {
    bad.push_back(open_handle(HandleKind::kFile, a));
    numbers.push_back(record(bad.back()).fd);
  }
  for (std::size_t i = 0; i < damages.size(); ++i) damages[i](record(bad[i]));

  succeed();
  EXPECT_EQ(table_->count(), 1U);
  EXPECT_EQ(record(a).opens, 1U);
  EXPECT_EQ(find(good, HandleKind::kFile, a), Errno{0});
  for (std::size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(find(bad[i], HandleKind::kFile, a), Errno{EBADF}) << i;
    EXPECT_EQ(table_->release(bad[i], HandleKind::kFile, a).error(), Errno{EBADF}) << i;
  }
  // Their places are free again, and nobody closes the numbers for them.
  std::vector<HandleId> again;
  for (std::size_t i = 0; i < bad.size(); ++i) again.push_back(open_handle(HandleKind::kFile, a));
  for (const HandleId id : again) EXPECT_EQ(find(id, HandleKind::kFile, a), Errno{0});
  EXPECT_EQ(HandleSlab{arena_->section(SectionKind::kHandles)}.used(), bad.size() + 2);
  for (std::size_t i = 1; i < numbers.size(); ++i) {
    EXPECT_TRUE(is_open(numbers[i])) << i;
    ::close(numbers[i]);
  }
}

TEST_F(HandleSuccession, AHandleOfANodeThatIsGoneIsNone) {
  make("a");
  let_settle();
  const NodeId a = cold("a");
  const HandleId handle = open_handle(HandleKind::kFile, a);
  record(a).mount = 9;
  succeed();
  EXPECT_EQ(find(handle, HandleKind::kFile, a), Errno{EBADF});
  EXPECT_EQ(table_->count(), 0U);
}

// ---- what the next process is to find open ------------------------------------------------------

TEST_F(HandleSuccession, TheDescriptorsOfWhatIsLiveAreKept) {
  fs::create_directory(root_ / "d");
  for (const char* name : {"hot", "aside", "cold", "busy", "dying", "open"}) make(name);
  let_settle();
  const NodeId hot_file = hot("hot");
  const NodeId aside = hot("aside");
  const NodeId busy = hot("busy");
  const NodeId dying = hot("dying");
  cold("cold");
  const NodeId open_file = cold("open");
  const HandleId file = open_handle(HandleKind::kFile, open_file);
  const HandleId directory = open_handle(HandleKind::kDirectory, NodeId{1});
  const HandleId released = open_handle(HandleKind::kFile, open_file);
  std::vector<int> expected = {record(hot_file).fd, record(aside).fd, record(file).fd,
                               record(directory).fd};
  if (record(open_file).fd >= 0) expected.push_back(record(open_file).fd);
  ASSERT_TRUE(table_->release(released, HandleKind::kFile, open_file));
  set_state(aside, SlotState::kAside);
  set_state(busy, SlotState::kBusy);
  set_state(dying, SlotState::kDying);

  std::vector<int> kept = Passthrough::descriptors_kept_in(*arena_);
  std::ranges::sort(kept);
  std::ranges::sort(expected);
  EXPECT_EQ(kept, expected);
  for (const int number : kept) EXPECT_TRUE(is_open(number)) << number;

  // So that the store can go as it came.
  for (const NodeId id : {aside, busy, dying}) set_state(id, SlotState::kLive);
}

TEST_F(HandleSuccession, InAnotherProcessDescriptorsHaveOtherNumbers) {
  for (const char* name : {"hot", "closed", "cold", "open"}) make(name, name);
  let_settle();
  const NodeId hot_file = hot("hot");
  const NodeId closed = hot("closed");
  const NodeId cold_file = cold("cold");
  const NodeId open_file = hot("open");
  const HandleId file = open_handle(HandleKind::kFile, open_file);
  const int left_out = record(closed).fd;
  Passthrough::renumber_descriptors(*arena_, [&](int before) {
    return before == left_out ? -1 : ::fcntl(before, F_DUPFD_CLOEXEC, 500);
  });
  ::close(left_out);
  EXPECT_GE(record(hot_file).fd, 500);
  EXPECT_GE(record(file).fd, 500);
  EXPECT_EQ(record(closed).fd, -1);
  EXPECT_EQ(record(cold_file).fd, -1);
  succeed();
  for (const auto& [id, name] :
       {std::pair{hot_file, "hot"}, {closed, "closed"}, {cold_file, "cold"}, {open_file, "open"}}) {
    EXPECT_EQ(content(id), name);
  }
  EXPECT_EQ(find(file, HandleKind::kFile, open_file), Errno{0});
}

TEST_F(Succession, NothingIsKeptOfAnArenaThatNobodyUsed) {
  const auto empty = std::move(Arena::create(arena_plan(kInodes))).value();
  EXPECT_TRUE(Passthrough::descriptors_kept_in(*empty).empty());
  EXPECT_TRUE(Passthrough::descriptors_kept_in(*arena_).empty()) << "the root's is no heir's";
}

}  // namespace
}  // namespace virtiofsd
