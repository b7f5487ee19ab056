// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What a guest can hold is bounded: beyond the bound it sees an errno and the
// host notices nothing.
#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

#include "tests/faults/fixture.h"

namespace virtiofsd::guest {
namespace {

class Budget : public FaultFixture {};

TEST_F(Budget, HundredsOfLockWaitersAreBoundedAndAllEnd) {
  constexpr unsigned kWaiters = 300;
  constexpr unsigned kAllowed = 64;  // per queue
  FrontEndOptions options;
  options.ring = {.size = 2048};
  attack({"-o", "posix_lock", "--thread-pool-size=4"}, options, true,
         {.slots = kWaiters + 8, .data_bytes = 64});
  if (IsSkipped() || HasFatalFailure()) return;
  tree().write("locked", "x");
  const std::uint64_t file = node("locked");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const fuse_file_lock lock{.start = 0, .end = 0, .type = F_WRLCK, .pid = 1};
  EXPECT_DONE(fuse().setlk(file, handle, 1, lock));
  std::vector<std::uint32_t> slots;
  for (unsigned i = 0; i < kWaiters; ++i) {
    const auto slot = fuse().begin_setlkw(file, handle, 2 + i, lock);
    ASSERT_TRUE(slot) << i;
    slots.push_back(*slot);
  }
  // Whoever is over the bound hears of it, the rest waits, the queue goes on.
  EXPECT_DONE(fuse().getattr(kRoot));
  const Deadline deadline = vmm().deadline();
  const auto refused = [&] {
    unsigned count = 0;
    for (const std::uint32_t slot : slots) count += fuse().done(slot) ? 1 : 0;
    return count;
  };
  while (refused() < kWaiters - kAllowed && std::chrono::steady_clock::now() < deadline)
    ::usleep(1000);
  EXPECT_EQ(refused(), kWaiters - kAllowed);
  EXPECT_LE(daemon().usage().threads, kAllowed + 40U);
  EXPECT_DONE(fuse().getattr(kRoot));
  fuse_file_lock unlock = lock;
  unlock.type = F_UNLCK;
  EXPECT_DONE(fuse().setlk(file, handle, 1, unlock));
  // One after another gets it; each must be let go for the next.
  unsigned granted = 0;
  std::vector<bool> seen(kWaiters, false);
  const Deadline end = within(std::chrono::seconds(30));
  while (granted < kAllowed && std::chrono::steady_clock::now() < end) {
    bool moved = false;
    for (unsigned i = 0; i < kWaiters; ++i) {
      if (seen[i] || !fuse().done(slots[i])) continue;
      seen[i] = true;
      moved = true;
      const int error = fuse().finish(slots[i]).error;
      if (error == 0) {
        ++granted;
        EXPECT_DONE(fuse().setlk(file, handle, 2 + i, unlock));
      } else {
        EXPECT_EQ(error, ENOLCK);
      }
    }
    if (!moved && !daemon().running()) break;
  }
  EXPECT_EQ(granted, kAllowed);
}

TEST_F(Budget, LockOwnersAndRangesAreBounded) {
  attack({"-o", "posix_lock"});
  if (IsSkipped() || HasFatalFailure()) return;
  tree().write("locked", "x");
  const std::uint64_t file = node("locked");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  int refused = 0;
  // From the back: the kernel looks for a new range's place from the front.
  for (std::uint64_t i = 20'000; i > 0; --i) {
    const auto set =
        fuse().setlk(file, handle, 1, {.start = i * 2, .end = i * 2, .type = F_WRLCK, .pid = 1});
    if (!set) {
      EXPECT_EQ(set.error(), Errno{ENOLCK});
      ++refused;
      if (refused == 10) break;
    }
  }
  EXPECT_EQ(refused, 10);
  EXPECT_DONE(
      fuse().setlk(file, handle, 1, {.start = 0, .end = INT64_MAX, .type = F_UNLCK, .pid = 1}));
  refused = 0;
  for (std::uint64_t i = 0; i < 6'000; ++i) {
    const auto set = fuse().setlk(
        file, handle, 100 + i, {.start = 1ULL << 40, .end = 1ULL << 40, .type = F_RDLCK, .pid = 1});
    if (!set) {
      EXPECT_EQ(set.error(), Errno{ENOLCK});
      ++refused;
      if (refused == 10) break;
    }
  }
  EXPECT_EQ(refused, 10);
  EXPECT_DONE(fuse().release(file, handle));
}

// An open file and its inode take a descriptor each. However many the guest
// opens, the VMM's messages still have theirs.
TEST_F(Budget, OpenFilesLeaveDescriptorsForTheVmm) {
  attack({"--rlimit-nofile=8192", "--inode-descriptors=1000"});
  if (IsSkipped() || HasFatalFailure()) return;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> opened;
  for (int i = 0; i < 8192; ++i) {
    tree().write("f" + std::to_string(i), "x");
    const auto entry = fuse().lookup(kRoot, "f" + std::to_string(i));
    if (!entry) break;
    const auto open = fuse().open(entry->nodeid, O_RDONLY);
    if (!open) break;
    opened.emplace_back(entry->nodeid, open->fh);
  }
  EXPECT_GE(opened.size(), 2048U);
  EXPECT_LT(opened.size(), 4096U);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(vmm().stop_queue(2));
    vmm().ring(2).reset();
    ASSERT_OK(vmm().start_queue(2));
  }
  for (const auto& [node, handle] : opened) EXPECT_DONE(fuse().release(node, handle));
}

TEST_F(Budget, OpensFailWithAnErrnoAndLookupsGoOnWhenDescriptorsRunOut) {
  if (on_overlay()) GTEST_SKIP() << "needs birth times";
  attack({"--rlimit-nofile=256"});
  if (IsSkipped() || HasFatalFailure()) return;
  for (int i = 0; i < 600; ++i) tree().write("f" + std::to_string(i), "x");
  const std::uint64_t file = node("f0");
  std::vector<std::uint64_t> handles;
  for (int i = 0; i < 1000; ++i) {
    const auto open = fuse().open(file, O_RDONLY);
    if (!open) {
      EXPECT_TRUE(open.error() == Errno{ENFILE} || open.error() == Errno{EMFILE})
          << open.error().text();
      break;
    }
    handles.push_back(open->fh);
  }
  EXPECT_GE(handles.size(), 8U);
  EXPECT_LT(handles.size(), 256U);
  EXPECT_FALSE(fuse().create(kRoot, "new", O_RDWR, 0600));
  EXPECT_FALSE(fuse().opendir(kRoot));
  std::vector<std::uint64_t> nodes;
  for (int i = 0; i < 600; ++i) nodes.push_back(node("f" + std::to_string(i)));
  for (const std::uint64_t each : nodes) EXPECT_DONE(fuse().getattr(each));
  for (const std::uint64_t handle : handles) EXPECT_DONE(fuse().release(file, handle));
  EXPECT_LE(daemon().usage().descriptors, 300U);
}

TEST_F(Budget, CachedInodesCostABoundedNumberOfDescriptors) {
  if (on_overlay()) GTEST_SKIP() << "needs birth times";
  attack({"--rlimit-nofile=512"});
  if (IsSkipped() || HasFatalFailure()) return;
  tree().mkdir("many");
  for (int i = 0; i < 3000; ++i) tree().write("many/f" + std::to_string(i), "x");
  const std::uint64_t directory = node("many");
  std::vector<std::uint64_t> nodes;
  for (int i = 0; i < 3000; ++i) {
    nodes.push_back(GET(fuse().lookup(directory, "f" + std::to_string(i))).nodeid);
  }
  for (const std::uint64_t each : nodes) {
    EXPECT_DONE(fuse().chmod(each, 0600));
  }
  EXPECT_LE(daemon().usage().descriptors, 560U);
}

TEST_F(Budget, ThreadsThatCannotBeMadeCostNothingButTime) {
  attack({"-o", "posix_lock", "--thread-pool-size=4"}, {}, true, {.slots = 64, .data_bytes = 64});
  if (IsSkipped() || HasFatalFailure()) return;
  tree().write("locked", "x");
  const std::uint64_t file = node("locked");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  const fuse_file_lock lock{.start = 0, .end = 0, .type = F_WRLCK, .pid = 1};
  EXPECT_DONE(fuse().setlk(file, handle, 1, lock));
  EXPECT_DONE(clients_[2]->getattr(kRoot));
  // Room for small things, not for another stack.
  const pid_t worker = daemon().tree().back();
  std::uint64_t pages = 0;
  std::ifstream("/proc/" + std::to_string(worker) + "/statm") >> pages;
  ASSERT_GT(pages, 0U);
  rlimit before{};
  ASSERT_EQ(::prlimit(worker, RLIMIT_AS, nullptr, &before), 0);
  const rlimit tight{.rlim_cur = pages * 4096 + (4U << 20), .rlim_max = before.rlim_max};
  ASSERT_EQ(::prlimit(worker, RLIMIT_AS, &tight, nullptr), 0);
  std::vector<std::uint32_t> slots;
  for (std::uint64_t owner = 2; owner < 20; ++owner) {
    const auto slot = fuse().begin_setlkw(file, handle, owner, lock);
    ASSERT_TRUE(slot);
    slots.push_back(*slot);
  }
  EXPECT_DONE(clients_[2]->getattr(kRoot));
  ::usleep(50'000);
  EXPECT_TRUE(daemon().running());
  ASSERT_EQ(::prlimit(worker, RLIMIT_AS, &before, nullptr), 0);
  // Now that there is room again, the queue goes on by itself.
  EXPECT_DONE(fuse().getattr(kRoot));
  for (const std::uint32_t slot : slots) {
    // An INTERRUPT that overtakes its request finds nobody: the guest's kernel asks again, too.
    const Deadline end = vmm().deadline();
    while (!fuse().done(slot) && std::chrono::steady_clock::now() < end) {
      fuse().interrupt(fuse().unique_of(slot));
      ::usleep(500);
    }
    EXPECT_EQ(fuse().finish(slot).error, EINTR);
  }
}

}  // namespace
}  // namespace virtiofsd::guest
