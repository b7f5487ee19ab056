// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Hot and cold: descriptors given back, files found again without.
#include <pthread.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "passthrough/handle_table.h"
#include "passthrough/inode_store_fixture.h"
#include "passthrough/other_names.h"

namespace virtiofsd {
namespace {

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

}  // namespace
}  // namespace virtiofsd
