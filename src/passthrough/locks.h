// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The guest's file locks as locks of the host, so that guests sharing a
// directory, and processes of the host, exclude each other.
//
// A record lock (fcntl) belongs to a lock owner in the guest, usually a
// process. Each (inode, owner) pair gets an open file description of its own
// and its locks are OFD locks on that: owners conflict with each other and
// never with themselves. A flock(2) lock lives on the guest's open file, that
// is on the handle's own descriptor. Always true: what the table says an owner
// holds is what the kernel holds for it (but between let_go and take_again, when
// nothing is served); owners, ranges and waiters are
// bounded; a lock ends with FLUSH by its owner, with RELEASE of the handle it
// was set through, with clear(), or with the process.
//
// What owners hold is recorded in the arena too (lock_records.h). A worker that
// comes after one that crashed has the same descriptors, so the kernel never let
// the locks go; take_over makes the table again, and the two agree.
//
// OFD locks have no deadlock detection, so the table looks for rounds of its own
// owners: whoever would close one gets EDEADLK (posix_locks_deadlock).
//
// Threads: everything may be called by any thread. A wait holds no mutex. The
// mutex of one (inode, owner) is held across its non-blocking fcntl, so that
// the table and the kernel agree; nobody else's is.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "fuse/call.h"
#include "fuse/file_system.h"
#include "passthrough/handle_table.h"
#include "passthrough/inode_store.h"
#include "passthrough/lock_records.h"
#include "state/arena.h"
#include "sys/fd.h"

namespace virtiofsd {

// The signal that ends a blocking lock call early; nothing else of the process
// may use it. Its handler does nothing and is installed, without SA_RESTART, by
// every LockCore. A thread that blocks it is open to it while it waits.
int lock_wake_signal();

// The descriptor that locks are set through, as LockCore needs to know it.
struct LockTarget {
  NodeId node;
  HandleId handle;
  FdRef fd;                      // open file of the guest; pinned by the caller for the call
  std::uint32_t open_flags = 0;  // open(2) flags `fd` was opened with
};

// Where an owner's own descriptor comes from: the same file, opened anew.
class LockOpener {
 public:
  virtual ~LockOpener() = default;
  virtual Result<UniqueFd> open(int access_mode) = 0;
};

// LockTable without the tables of inodes and handles: the locks themselves.
class LockCore {
 public:
  struct Limits {
    std::uint32_t waiters = 0;     // threads waiting at once; beyond: ENOLCK
    std::uint32_t owners = 4096;   // (inode, owner) descriptors; beyond: ENOLCK
    std::uint32_t ranges = 16384;  // locked ranges in all; beyond: ENOLCK
  };

  // `arena` has the sections of lock owners and ranges; none: it makes its own.
  explicit LockCore(Limits limits, std::shared_ptr<Arena> arena = nullptr);
  ~LockCore();
  LockCore(const LockCore&) = delete;
  LockCore& operator=(const LockCore&) = delete;

  Result<fuse_file_lock> get(const LockTarget& target, const fuse::LockArgs& args);
  Result<> set(fuse::Call& call, const LockTarget& target, LockOpener& opener,
               const fuse::LockArgs& args);
  void flush(NodeId node, LockOwner owner);
  void release(const LockTarget& target, bool flock_unlock);
  void interrupt(std::uint64_t unique);
  void cancel_waits();
  void clear();
  void take_over();
  struct Held {
    NodeId node;
    LockOwner owner;
    std::vector<LockRange> ranges;
  };
  std::vector<Held> held() const;
  Result<> load(NodeId node, LockOwner owner, LockOpener& opener, const LockRange& range);
  void let_go();
  Result<> take_again(NodeId node, LockOwner owner, const LockRange& range);
  void give_up(NodeId node, LockOwner owner, const LockRange& range);

  std::uint32_t owners() const;   // descriptors held now
  std::uint32_t ranges() const;   // ranges held now
  std::uint32_t waiters() const;  // threads waiting now

  struct State;

 private:
  std::shared_ptr<State> state_;
};

class LockTable {
 public:
  // `limits.waiters` 0: a lock that would wait says ENOLCK.
  LockTable(InodeStore& inodes, LockCore::Limits limits);

  // What stands in the way of this lock, or type F_UNLCK. The pid is the
  // guest's for a lock of this guest and 0 for any other, whose pid would mean
  // another process here. EINVAL for a bad type or range.
  Result<fuse_file_lock> get(const HandleRef& handle, const fuse::LockArgs& args);

  // Sets or drops a lock. EINVAL for a bad type or range, EBADF when the handle
  // is not open for what the lock needs, EAGAIN when another holds it and
  // args.wait is off, ENOLCK beyond a limit or when the arena is full, EDEADLK
  // when it would wait for somebody who waits for it, EINTR when the wait was
  // cancelled. `call.scheduler` is told before the thread waits.
  Result<> set(fuse::Call& call, const HandleRef& handle, const fuse::LockArgs& args);

  // A close(2) by `owner`: all its record locks on the inode go (POSIX).
  void flush(NodeId node, LockOwner owner);

  // The handle is about to be released. Drops the record locks set through it
  // (a guest's OFD locks get no FLUSH of their owner) and, with
  // FUSE_RELEASE_FLOCK_UNLOCK, its flock; cancels waits on it.
  void release(const HandleRef& handle, LockOwner owner, std::uint32_t release_flags);

  // The guest gave up on request `unique`: its wait ends with EINTR.
  void interrupt(std::uint64_t unique);

  // Waits of calls whose scheduler is stopping() end with EINTR, and as put off; locks stay.
  // May be called again and again: a wait that just began is seen next time.
  void cancel_waits();

  // Every wait ends with EINTR and every record lock goes (INIT, DESTROY,
  // disconnect). flock locks go with their handles.
  void clear();

  // In a worker that comes after another, before any other use and in one
  // thread: the record locks of that one are this one's. Its waits are not.
  void take_over();

  // ---- another host, while nothing is served ---
  // The record locks, by owner.
  std::vector<LockCore::Held> held() const { return core_.held(); }
  // One that was held elsewhere. EAGAIN when another holds it; as set otherwise.
  Result<> load(const InodeRef& inode, LockOwner owner, const LockRange& range);
  // The host may give all record locks to others, though the table still has them. After that each
  // is to be held again (EAGAIN when another holds it) or to go from the table as well.
  void let_go() { core_.let_go(); }
  Result<> take_again(NodeId node, LockOwner owner, const LockRange& range) {
    return core_.take_again(node, owner, range);
  }
  void give_up(NodeId node, LockOwner owner, const LockRange& range) {
    core_.give_up(node, owner, range);
  }

 private:
  InodeStore& inodes_;
  LockCore core_;
};

}  // namespace virtiofsd
