// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Files and directories that the guest has open: fh to descriptor. As with
// inodes, an id is slot and generation, finding one is lock-free, and a pin
// keeps the descriptor from being closed or reused while a call uses it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "base/sync.h"
#include "passthrough/inode_store.h"
#include "sys/fd.h"

namespace virtiofsd {

class HandleTable;

enum class HandleKind : std::uint8_t { kFile, kDirectory };

// Private memory of an open handle beside its record: what a successor can rebuild.
struct OpenState {
  InodeRef inode;
  // Concurrent READDIRs on one handle share the file position: lseek + getdents64
  // happen under this lock, the only one held across a system call.
  Mutex directory_lock;
  std::uint64_t directory_offset GUARDED_BY(directory_lock) = 0;  // where the descriptor stands

  // What was learned about the file's file system, so that it is asked once.
  enum Hint : std::uint8_t {
    kRefusesNowait = 1,  // RWF_NOWAIT is not supported
    kKnowsNetwork = 2,   // the next bit was found out
    kNetwork = 4,        // data is far away: reads block, close(2) reports errors
  };
  std::atomic<std::uint8_t> hints = 0;
};

class HandleRef {
 public:
  HandleRef() = default;
  HandleRef(HandleRef&& other) noexcept;
  HandleRef& operator=(HandleRef&& other) noexcept;
  HandleRef(const HandleRef&) = delete;
  HandleRef& operator=(const HandleRef&) = delete;
  ~HandleRef();

  HandleId id() const;
  FdRef fd() const;
  std::uint32_t open_flags() const;  // open(2) flags the descriptor was opened with
  NodeId node() const;
  const InodeRef& inode() const;
  OpenState& state() const;
  // What flock(2) holds for the guest: LOCK_SH, LOCK_EX or 0. For whoever the guest moves to.
  int flock() const;
  void note_flock(int operation) const;

 private:
  friend class HandleTable;
  HandleRef(HandleTable* table, std::uint32_t slot) : table_(table), slot_(slot) {}
  void drop();
  HandleTable* table_ = nullptr;
  std::uint32_t slot_ = 0;
};

class HandleTable {
 public:
  // `limit`: open handles; beyond it insert says ENFILE.
  explicit HandleTable(InodeStore& inodes, std::uint32_t limit);
  ~HandleTable();

  // What a process left behind in the arena that died: its descriptors are open here. Before
  // anything else.
  void take_over();

  // Takes the descriptor and the pin over.
  Result<HandleId> insert(HandleKind kind, InodeRef inode, UniqueFd fd, std::uint32_t open_flags);
  // EBADF unless it is an open handle of this kind on this node.
  Result<HandleRef> find(HandleId id, HandleKind kind, NodeId node);
  // Of any node (COPY_FILE_RANGE's and SETATTR's fh). EBADF.
  Result<HandleRef> find(HandleId id, HandleKind kind);
  // The handle is gone for the guest; its descriptor closes with the last pin. EBADF.
  Result<> release(HandleId id, HandleKind kind, NodeId node);
  void clear();
  std::uint32_t count() const;

  // ---- another host (state/saved.h): while nothing is served ---
  std::uint32_t newest_generation() const;
  // Each open handle, pinned, until one says an error.
  Result<void, Failure> for_each(
      const std::function<Result<void, Failure>(const HandleRef&, HandleKind)>& what);
  // Nothing is open.
  void begin_load();
  // As insert, under an id that was given elsewhere. EBADMSG when it can't have been.
  Result<> load(HandleId id, HandleKind kind, InodeRef inode, UniqueFd fd,
                std::uint32_t open_flags);
  // Nothing more comes.
  void end_load(std::uint32_t generation);

  struct State;

 private:
  friend class HandleRef;
  std::unique_ptr<State> state_;
};

}  // namespace virtiofsd
