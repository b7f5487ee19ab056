// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The inodes that the guest knows: nodeid to file, in bounded descriptors and
// little memory.
//
// An inode is *hot* while it holds an O_PATH descriptor and *cold* while it is
// known by identity and by one name in its parent; a cold one is walked to
// again, and verified, when it is used. Identity is (device, mount, inode
// number, birth time). An inode number can be given to a new file, but the new
// file's birth time is later than the lookup that made our record, unless the
// record was made within the tick of the clock in which the old file was born:
// so a file younger than kSettled, or one on a file system without birth
// times, stays pinned by a descriptor until it is safe to let go (or demoted
// to a kernel file handle where the process may use those).
//
// Threads: everything here may be called by any thread. Finding a node by id
// is lock-free (one index, one compare-and-swap for the pin); the identity
// index is sharded, one leaf mutex each, never held across a system call.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/id.h"
#include "base/name.h"
#include "base/result.h"
#include "state/arena.h"
#include "sys/fd.h"

namespace virtiofsd {

class FrameWriter;
struct InodeRecord;
struct SavedInode;
struct SavedRoot;
class InodeStore;

// A pin: while it lives, the record is not given to another inode and the
// descriptor inside, once asked for, is neither closed nor reused. Cheap to
// move, one atomic to make and to drop.
class InodeRef {
 public:
  InodeRef() = default;
  InodeRef(InodeRef&& other) noexcept;
  InodeRef& operator=(InodeRef&& other) noexcept;
  InodeRef(const InodeRef&) = delete;
  InodeRef& operator=(const InodeRef&) = delete;
  ~InodeRef();

  explicit operator bool() const { return store_ != nullptr; }
  NodeId id() const;
  // S_IFMT bits: what the object was when it was looked up; an inode never changes its type.
  std::uint32_t type() const;
  bool is_directory() const { return S_ISDIR(type()); }
  bool is_regular() const { return S_ISREG(type()); }
  bool is_symlink() const { return S_ISLNK(type()); }
  // Differs from the directory it was found in by mount or device.
  bool is_submount() const;
  // On a local disk or in memory, for certain.
  bool is_local() const;

 private:
  friend class InodeStore;
  InodeRef(InodeStore* store, std::uint32_t slot) : store_(store), slot_(slot) {}
  void drop();

  InodeStore* store_ = nullptr;
  std::uint32_t slot_ = 0;
};

class InodeStore {
 public:
  struct Settings {
    std::uint32_t descriptor_budget = 4096;  // O_PATH descriptors kept for hot inodes
    std::uint32_t max_inodes = 1U << 26;     // beyond: ENFILE to the guest
    std::uint32_t remembered = 1U << 15;     // nodes kept for recall after they were forgotten
    bool use_file_handles = false;           // open_by_handle_at is allowed to this process
    std::shared_ptr<Arena> arena;            // by arena_plan; none: the store makes its own
    // The arena has what a process left behind that died; its descriptors are open here.
    bool take_over = false;
  };

  // `root` is an O_PATH or O_RDONLY descriptor of the shared directory.
  static Result<std::unique_ptr<InodeStore>> create(UniqueFd root, Settings settings);
  ~InodeStore();

  // After take_over, before the first request: a pin for who has the node open, whether the guest
  // has forgotten it or not; and what is to come when all of those have theirs.
  // ESTALE if there is no such node, or `fd` isn't of it.
  Result<InodeRef> pin_open(NodeId id, FdRef fd);
  void end_take_over();  // after end_load, too

  // A pin on a node the guest named. ESTALE for an id that was never given or
  // was forgotten. Lock-free.
  Result<InodeRef> pin(NodeId id);

  // An O_PATH descriptor of the node, valid while `inode` lives; opened now if
  // the inode is cold. ESTALE when the name it was known by now means another
  // file, ENFILE never (others are demoted first).
  Result<FdRef> fd(const InodeRef& inode);

  // A new open file of the inode. A directory is opened through its own
  // descriptor; a file by its name where that can do no harm, by
  // kernel file handle where that is allowed, else through /proc/self/fd (2.9,
  // 2.8 and 4.0 us; the last needs an O_PATH descriptor, too). `flags` without
  // O_CREAT; O_NONBLOCK may be set. The caller has made sure by type() that it
  // may be opened at all.
  Result<UniqueFd> open(const InodeRef& inode, int flags);

  // Attributes in one system call, hot or cold (a cold inode is not opened).
  Result<> stat(const InodeRef& inode, unsigned mask, struct statx* out);

  // The node called `name` in `directory`, with `*out` its attributes: one
  // statx for an inode already known, hot or cold. Adds one lookup.
  // `flags` goes to statx (AT_NO_AUTOMOUNT for readdirplus).
  Result<InodeRef> lookup(const InodeRef& directory, Name name, int flags, struct statx* out);

  // As lookup, for a name that was made just now: a file so young needs a
  // descriptor, so that is what is asked.
  Result<InodeRef> made(const InodeRef& directory, Name name, struct statx* out);

  // As lookup for something this process just made or opened: `fd` is open on
  // it (any kind of descriptor, not kept). `name` is none for O_TMPFILE. Adds one lookup.
  Result<InodeRef> adopt(const InodeRef& directory, std::optional<Name> name, FdRef fd,
                         struct statx* out);

  // LOOKUP of ".": the node, and its attributes; one lookup more. That is how Linux comes back with
  // a file handle to a node that it has forgotten (fuse_get_dentry), after a mount or a boot as
  // well. ESTALE if it was forgotten too long ago, or if it has no name any more that we know of.
  Result<InodeRef> recall(NodeId id, struct statx* out);

  // One more lookup on a node already pinned (LINK).
  void add_lookup(const InodeRef& inode);
  // The directory above; the root's is the root. Adds one lookup. ESTALE when it can't be told.
  Result<InodeRef> parent(const InodeRef& inode, struct statx* out);

  // Takes `count` lookups back; saturates. At zero the node is gone for the guest, but for
  // recall().
  void forget(NodeId id, std::uint64_t count);

  // Namespace changes by the guest. Before a name goes away (unlink, rmdir, or
  // being replaced by a rename): whatever node is known by that name gets its
  // descriptor now, so that a file still open in the guest stays usable. After
  // it went: the node needn't be looked at again when the guest forgets it, if
  // that was its only name. Before a rename: who looks for the node from now on
  // finds it by either name. After: the node's name follows. Never fail; best
  // effort for a share that changes underneath.
  void before_removal(const InodeRef& directory, Name name);
  // False when before_removal() has nothing to do there.
  bool has_cold_children(const InodeRef& directory);
  void after_removal(const InodeRef& directory, Name name);
  void before_rename(const InodeRef& from_directory, Name from, const InodeRef& to_directory,
                     Name to, bool exchange);
  void after_rename(const InodeRef& from_directory, Name from, const InodeRef& to_directory,
                    Name to, bool exchange);

  // The guest has a file of this inode open: until closed() it stays hot if it
  // is, and if it isn't and its name is gone, it is reached through the open file.
  void opened(const InodeRef& inode);
  void closed(const InodeRef& inode);
  // Who gives an O_PATH descriptor of a node that is open, from any of its open
  // files; ESTALE if there is none. Called without locks. Set before the first
  // request and unset after the last.
  using OpenFiles = std::function<Result<UniqueFd>(NodeId)>;
  void set_open_files(OpenFiles open_files);

  // Everything but the root is forgotten (INIT, DESTROY, reset), as by forget().
  void clear();

  // Where the node was seen last, below the root, as far as that is known: for people. Any thread.
  std::string last_path(NodeId id) const;

  // ---- another host (state/saved.h): while nothing is served -----------------

  // Whether to send the one and to ask for the other.
  struct SaveSettings {
    bool by_handle = false;     // kernel file handles instead of names
    bool with_handles = false;  // beside names, so that the receiver can verify
    bool confirm = false;       // look at every name first, also of what holds no descriptor
  };
  // Whether to go on without an inode that is open and can't be found.
  using Lost = std::function<Result<void, Failure>(NodeId)>;
  void describe(SavedRoot& root) const;
  // All that the guest knows, each behind the directory it is in; how many. What can't be found
  // is sent as that; `lost` is asked if the guest has it open.
  Result<std::uint64_t, Failure> save(FrameWriter& to, const SaveSettings& settings,
                                      const Lost& lost);

  // Nothing is here but the root, and nothing is remembered of what was.
  void begin_load();
  // One that was saved, under its id. What is there is looked at, and is the receiver's own from
  // then on. ENOENT, ESTALE and errors of the system calls when it isn't there as it was;
  // EBADMSG when what was sent makes no sense; ENFILE when there is no room.
  // `same_files`: the root has the identity that it had for the sender.
  Result<> load(const SavedInode& saved, const std::string& name, std::span<const std::byte> handle,
                bool same_files);
  // Nothing more comes. No id that is given from now on has been given by the sender, whose newest
  // generation that was. A pin for who has the node open, whether the guest has forgotten it or
  // not. Then end_take_over().
  void end_load(std::uint32_t generation);
  Result<InodeRef> pin_loaded(NodeId id);

  const std::shared_ptr<Arena>& arena() const;
  NodeId root() const { return NodeId{1}; }
  std::uint64_t count() const;        // nodes the guest holds, root included
  std::uint32_t descriptors() const;  // of them, hot

  struct State;

 private:
  friend class InodeRef;
  explicit InodeStore(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace virtiofsd
