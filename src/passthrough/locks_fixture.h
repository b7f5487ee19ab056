// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A lock table on one file, for its tests: owners, descriptors, and somebody outside of it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "passthrough/locks.h"

namespace virtiofsd {

inline constexpr std::uint64_t kEnd = std::numeric_limits<std::int64_t>::max();
inline constexpr NodeId kNode{7};
inline constexpr LockOwner kAlice{1};
inline constexpr LockOwner kBob{2};

// A file with descriptors of any access mode on it.
class LockedFile {
 public:
  LockedFile() {
    std::string pattern = "/tmp/locks-XXXXXX";
    UniqueFd made{::mkostemp(pattern.data(), O_CLOEXEC)};
    path_ = pattern;
  }
  ~LockedFile() { ::unlink(path_.c_str()); }
  LockedFile(const LockedFile&) = delete;
  LockedFile& operator=(const LockedFile&) = delete;

  UniqueFd open(int access) const { return UniqueFd{::open(path_.c_str(), access | O_CLOEXEC)}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Opens the file anew and remembers how it was asked to.
class LockedFileOpener final : public LockOpener {
 public:
  explicit LockedFileOpener(const LockedFile& file) : file_(file) {}
  Result<UniqueFd> open(int access) override {
    asked.push_back(access);
    if (access == refused) return Errno{error};
    return file_.open(access);
  }
  std::vector<int> asked;
  int refused = -1;
  int error = EACCES;

 private:
  const LockedFile& file_;
};

class LockScheduler final : public fuse::Scheduler {
 public:
  void about_to_block() override {}
  void takes_turn(NodeId) override {}
  Result<> about_to_wait_for_lock() override {
    if (refuses) return Errno{ENOLCK};
    ++begun;
    if (meanwhile) meanwhile();
    return {};
  }
  void lock_wait_ended() override { ++ended; }
  bool stopping() const override { return stops; }
  std::function<void()> meanwhile;  // what other threads do once this one lets them
  std::atomic<bool> refuses{false};
  std::atomic<bool> stops{false};
  std::atomic<int> begun{0};
  std::atomic<int> ended{0};
};

inline fuse::LockArgs args(LockOwner owner, std::uint32_t type, std::uint64_t start,
                           std::uint64_t end) {
  fuse::LockArgs args;
  args.owner = owner;
  args.type = type;
  args.start = start;
  args.end = end;
  args.pid = 1000 + static_cast<std::uint32_t>(owner.value);
  return args;
}

inline fuse::LockArgs waiting(fuse::LockArgs args) {
  args.wait = true;
  return args;
}

inline fuse::LockArgs flock_args(std::uint32_t type) {
  fuse::LockArgs out = args(kAlice, type, 0, kEnd);
  out.flock = true;
  return out;
}

class LockCoreTest : public ::testing::Test {
 protected:
  LockCoreTest() { reset({.waiters = 8}); }

  void reset(LockCore::Limits limits) { core_ = std::make_unique<LockCore>(limits); }

  static LockTarget target(const UniqueFd& fd, std::uint64_t handle, int access = O_RDWR) {
    return {.node = kNode,
            .handle = HandleId{handle},
            .fd = fd.ref(),
            .open_flags = static_cast<std::uint32_t>(access)};
  }

  fuse::Call call_of(std::uint64_t unique, NodeId node = kNode) {
    return {.unique = unique,
            .node = node,
            .caller = {},
            .security = {},
            .session = session_,
            .scheduler = scheduler_};
  }
  // The errno of setting a lock, 0 for success.
  int set(const fuse::LockArgs& wanted) { return set(target_, wanted); }
  int set(const LockTarget& through, const fuse::LockArgs& wanted, std::uint64_t unique = 1) {
    fuse::Call call = call_of(unique, through.node);
    const auto result = core_->set(call, through, opener_, wanted);
    return result ? 0 : result.error().value();
  }

  // What somebody outside of the table (a process of the host) may lock: 0 or EAGAIN.
  int outsider(short type, std::uint64_t start, std::uint64_t end) {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = static_cast<off_t>(start);
    lock.l_len = end == kEnd ? 0 : static_cast<off_t>(end - start + 1);
    if (::fcntl(outside_.number(), F_OFD_SETLK, &lock) != 0) return errno;
    lock.l_type = F_UNLCK;
    EXPECT_EQ(::fcntl(outside_.number(), F_OFD_SETLK, &lock), 0);
    return 0;
  }

  // Waits until `condition` holds; fails the test when it never does.
  template <typename Condition>
  static void until(const Condition& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "never came true";
      std::this_thread::yield();
    }
  }

  LockedFile file_;
  UniqueFd fd_ = file_.open(O_RDWR);
  UniqueFd outside_ = file_.open(O_RDWR);
  LockTarget target_ = target(fd_, 1);
  LockedFileOpener opener_{file_};
  LockScheduler scheduler_;
  fuse::Negotiated session_;
  std::unique_ptr<LockCore> core_;
};

}  // namespace virtiofsd
