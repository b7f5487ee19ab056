// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What is behind InodeStore: the records and the ways between a guest's node
// and the host's file. In five parts:
//   inode_state.cc       pins, identity, names, file handles
//   inode_reach.cc       hot and cold: descriptors, and how a file is found again
//   inode_forgetting.cc  what the guest has forgotten
//   inode_succession.cc  what a process takes over from one that died
//   inode_migration.cc   what goes to another host
//
// Every method that takes a slot wants it pinned by the caller, unless it says
// otherwise. No lock is held across a system call.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/id.h"
#include "base/name.h"
#include "base/result.h"
#include "base/sync.h"
#include "passthrough/file_identity.h"
#include "passthrough/forgotten_queue.h"
#include "passthrough/inode_index.h"
#include "passthrough/inode_store.h"
#include "passthrough/names_seen.h"
#include "passthrough/other_names.h"
#include "state/arena.h"
#include "state/blobs.h"
#include "state/plan.h"
#include "state/records.h"
#include "state/saved.h"
#include "sys/fd.h"
#include "sys/files.h"

namespace virtiofsd {

inline constexpr std::uint32_t kRootSlot = 1;
inline constexpr std::size_t kMaxDepth = 1U << 16;  // of a walk from a cold inode up to a hot one
inline constexpr std::uint32_t kDemotionBatch = 32;
// What may be spent in vain before the next one has to wait: of this a record costs 1 that is too
// young, which needs no system call, and others that stay cost kDemotionCall.
inline constexpr std::uint32_t kDemotionCost = 256;
inline constexpr std::uint32_t kDemotionCall = 8;
// New descriptors over the budget before it is tried again to let others go, when that didn't help.
inline constexpr std::uint32_t kDemotionPause = 16;
inline constexpr Errno kMovedMeanwhile{EAGAIN};

constexpr NodeId node_id(std::uint32_t slot, std::uint32_t generation) {
  return NodeId{(std::uint64_t{generation} << 32) | slot};
}
constexpr std::uint32_t slot_of(NodeId id) {
  return static_cast<std::uint32_t>(id.value);
}
constexpr std::uint32_t generation_of(NodeId id) {
  return static_cast<std::uint32_t>(id.value >> 32);
}

// Of InodeRecord::name_hash; never 0, which means no name.
std::uint32_t hash_name(std::string_view name);

// A kernel file handle as it is kept in a blob and sent: type (4 bytes), then the kernel's bytes.
struct PackedHandle {
  std::array<std::byte, sizeof(int) + sys::FileHandle::kMaxBytes> bytes;
  std::size_t size = 0;

  std::span<const std::byte> view() const { return std::span{bytes}.first(size); }
};
PackedHandle pack(const sys::FileHandle& handle);
// None when that is none.
std::optional<sys::FileHandle> unpack(std::span<const std::byte> packed);

struct KnownName {
  std::array<char, Blobs::kMaxBytes + 1> text;
  std::size_t size = 0;
  NodeId parent;

  Result<Name> name() const { return Name::parse({text.data(), size}); }
};

struct InodeStore::State {
  static constexpr std::size_t kStripes = 256;

  // Whether opening something may demote something else. Demotion opens
  // parents itself: it must not come back to itself, for there is no end to
  // how often a guest could make it.
  enum class Room : std::uint8_t { kMake, kAsThereIs };

  State(UniqueFd root_fd, Settings wanted)
      : settings(std::move(wanted)),
        arena(settings.arena),
        inodes(arena->section(SectionKind::kInodes)),
        index(inodes),
        blobs(arena->section(SectionKind::kBlobs)),
        forgotten(settings.remembered),
        root(std::move(root_fd)),
        mounts(records_of<MountRecord>(arena->section(SectionKind::kMounts), kMaxMountRecords)) {}

  Settings settings;
  std::shared_ptr<Arena> arena;
  InodeSlab inodes;
  InodeIndex index;
  Blobs blobs;
  ForgottenQueue forgotten;
  OtherNames other_names;
  NamesSeen names_seen;
  UniqueFd root;
  UniqueFd mount_for_handles;  // O_RDONLY on the root's mount, when file handles are used
  Mounts mounts;
  // On the root's mount, files may be opened by name and looked at afterwards: it opens no
  // device, and none of its file systems has a server that would hear of it.
  bool opens_by_name = false;
  // Whether inodes of the root's mount can be found again without their descriptors.
  bool lets_go = false;
  OpenFiles open_files;

  // Guard a record's last known name and its turning hot or cold; by slot.
  std::array<Mutex, kStripes> stripes;

  std::vector<std::uint32_t> held_by_load;  // pinned while inodes come from another host

  std::atomic<std::uint32_t> hot = 0;
  std::atomic<std::uint32_t> remembered = 0;  // live records that the guest has forgotten
  std::atomic<std::uint32_t> hand = 0;
  std::atomic<std::uint32_t> demotion_pause = 0;

  Mutex& stripe(std::uint32_t slot) { return stripes[slot % kStripes]; }
  InodeRecord& at(std::uint32_t slot) { return inodes.at(slot); }
  NodeId id_of(std::uint32_t slot) {
    return slot == kRootSlot ? NodeId{1} : node_id(slot, inodes.generation(slot));
  }

  // ESTALE when `stx` describes another file than the record.
  Result<> verify(const InodeRecord& record, const struct statx& stx) {
    const auto mount = mounts.known(stx);
    if (!mount || FileIdentity::of(stx, *mount) != identity_of(record)) return Errno{ESTALE};
    return {};
  }

  // The mount of what `fd` is open on, and `stx` tells of.
  Result<Mount> mount_of(const struct statx& stx, FdRef fd) {
    if (const auto known = mounts.known(stx)) return *known;
    return mounts.learn(stx, fd);
  }

  // ---- pins ---------------------------------------------------------------

  bool try_pin(NodeId id) {
    // The root's id is fixed by the protocol (FUSE_ROOT_ID), whatever its generation.
    // By no other id, or it could be forgotten.
    if (slot_of(id) == kRootSlot) {
      if (id.value != kRootSlot) return false;
      inodes.add_pin(kRootSlot);
      return true;
    }
    return inodes.try_pin(slot_of(id), generation_of(id));
  }

  void unpin(std::uint32_t slot) {
    const std::uint64_t before = inodes.drop_pin(slot);
    if (SlotHead::pins(before) != 1) return;
    if (SlotHead::state(before) == SlotState::kDying) return finish(slot);
    // Nobody's any more, as far as can be seen without the pin: looked at again with one.
    if (at(slot).lookups.load(std::memory_order_relaxed) == 0) [[unlikely]]
      cool_down(node_id(slot, SlotHead::generation(before)));
  }

  // The last one out: nobody can reach the record any more.
  void finish(std::uint32_t slot);

  // `cold_children` only ever over-counts: raised before a record turns cold,
  // lowered after it turned hot.
  void count_cold(NodeId parent, int change);

  // ---- by identity ------------------------------------------------------------

  // Finds and pins; adds `lookups` to what the guest owes.
  std::optional<std::uint32_t> find(const FileIdentity& identity, std::uint64_t lookups);

  // Forgotten when its identity said little: another file may have the same by now. Under the lock
  // of the record's shard.
  bool is_doubtful(std::uint32_t slot) {
    return at(slot).unproven.load(std::memory_order_relaxed) != 0 &&
           at(slot).lookups.load(std::memory_order_relaxed) == 0;
  }

  // True when the record is of the file that has its name now; else it goes. It is pinned then,
  // with so many more lookups: forgotten and let go it would be as doubtful as before.
  bool end_doubt(NodeId id, std::uint64_t lookups);

  // Under the lock of the record's shard, while it is in the index.
  void owe(InodeRecord& record, std::uint64_t lookups) {
    const std::uint64_t before = record.lookups.fetch_add(lookups, std::memory_order_relaxed);
    if (before == 0 && lookups != 0) remembered.fetch_sub(1, std::memory_order_relaxed);
  }

  // More lookups of a pinned record. False when it has left the index meanwhile.
  bool add_lookups(std::uint32_t slot, std::uint64_t lookups);

  // A busy record of that identity that takes `fd` (none: cold), with no name yet and no lookups.
  void fill(std::uint32_t slot, const FileIdentity& identity, bool submount, UniqueFd fd);

  // A record for this identity, pinned, with one more lookup: the one that is
  // there already, or a new one that takes `fd` (none: cold).
  Result<std::uint32_t> find_or_insert(const FileIdentity& identity, NodeId parent,
                                       std::optional<Name> name, UniqueFd fd, bool submount);

  // ---- names ----------------------------------------------------------------

  // False when it has none, as what was made without a name.
  bool known_name(std::uint32_t slot, KnownName& out);

  // The node was just seen under this name. Cheap when that is what we knew.
  void note_name(std::uint32_t slot, NodeId parent, Name name);

  // `count`: the host's, just now. A directory's says nothing, and it has one name.
  void note_links(std::uint32_t slot, std::uint32_t count) {
    const bool one = count == 1 || at(slot).type == S_IFDIR >> 12;
    at(slot).links.store(one ? InodeRecord::kOneLink : InodeRecord::kManyLinks,
                         std::memory_order_relaxed);
  }

  // A record whose last known name is this one, pinned; none if there is none or too many others
  // were seen since. Another file may have the name by now, known or not.
  std::optional<std::uint32_t> find_by_name(NodeId parent, Name name);

  // ---- hot and cold -----------------------------------------------------------

  // ENFILE and EMFILE mean that we hold too much: let cold ones go and try again.
  template <typename Open>
  Result<UniqueFd> with_room(Open open, Room room = Room::kMake) {
    for (int tries = 0;; ++tries) {
      Result<UniqueFd> fd = open();
      if (fd || (fd.error() != Errno{EMFILE} && fd.error() != Errno{ENFILE}) || tries == 30 ||
          room == Room::kAsThereIs) {
        return fd;
      }
      if (demote_some(~std::uint32_t{0}) == 0) {
        if (!lets_go) return fd;
        // Everything is in use or too young to let go: youth passes.
        const timespec tick{0, FileIdentity::kSettledNs / 10};
        ::nanosleep(&tick, nullptr);
      }
    }
  }

  void keep_budget() {
    if (hot.load(std::memory_order_relaxed) <= settings.descriptor_budget) return;
    const std::uint32_t pause = demotion_pause.load(std::memory_order_relaxed);
    if (pause != 0) return demotion_pause.store(pause - 1, std::memory_order_relaxed);
    demote_some(kDemotionCost);
  }

  // Lets a batch go; ends early when looking for what can be found again has cost so much. How many
  // it was.
  std::uint32_t demote_some(std::uint32_t most_cost);

  enum class Demoted : std::uint8_t { kYes, kTooYoung, kNo };
  Demoted demote(std::uint32_t slot);

  // Whether a kernel file handle leads to it.
  bool has_handle(std::uint32_t slot) {
    return settings.use_file_handles && at(slot).mount == 0 &&
           at(slot).handle.load(std::memory_order_relaxed) != 0;
  }

  // Whether a pinned, hot record can be found again without its descriptor:
  // by a file handle, or by its name now and an identity that lasts.
  bool prove_return(std::uint32_t slot);

  // The record of what `name` in the directory is, with one lookup more.
  Result<std::uint32_t> insert(std::uint32_t directory, NodeId parent, Name name, UniqueFd fd,
                               const Mount& mount, const struct statx& stx);

  // An O_PATH descriptor of what `fd` is open on. By name is half the price; it counts if it leads
  // there.
  Result<UniqueFd> witness(std::uint32_t directory, std::optional<Name> name, FdRef fd,
                           const FileIdentity& identity);

  static constexpr unsigned kMinimalMask = STATX_TYPE | STATX_INO | STATX_BTIME | STATX_MNT_ID;

  // A record's attributes by its name, verified to be the same file.
  Result<> stat_by_name(std::uint32_t slot, unsigned mask, struct statx* out, Room room);

  Result<> stat_at(std::uint32_t slot, std::uint32_t parent, Name name, unsigned mask,
                   struct statx* out, Room room);

  // Whether few steps up from there is a hot directory.
  bool is_near(NodeId directory);

  // A record that is not under its name: whether it is where a rename or another link may have it.
  // Then that is its name. (Opens directories, but few, and follows no hint for them: there is no
  // end to how often a guest could make that necessary.)
  bool find_other_name(std::uint32_t slot);

  // A name that is no longer there means that our way to the file is stale.
  static Errno gone_to_stale(Errno error);

  struct Pinned {
    State& state;
    std::uint32_t slot;
    ~Pinned() { state.unpin(slot); }
  };

  // The O_PATH descriptor of a pinned record, opened now if need be.
  Result<FdRef> path_fd(std::uint32_t slot, Room room = Room::kMake) {
    const std::int32_t number = at(slot).fd.load(std::memory_order_acquire);
    if (number >= 0) [[likely]] {
      std::atomic<std::uint8_t>& touched = at(slot).touched;
      if (touched.load(std::memory_order_relaxed) == 0) touched.store(1, std::memory_order_relaxed);
      return FdRef{number};
    }
    return warm_up(slot, room);
  }

  Result<FdRef> warm_up(std::uint32_t slot, Room room);

  // Up to the first ancestor that is hot or that a handle leads to, then down
  // by name. A loop, for the guest decides how deep its trees are.
  Result<FdRef> climb_and_open(std::uint32_t slot, Room room);

  Result<FdRef> open_cold(std::uint32_t slot, Room room);

  // Two threads may come at once: the descriptor that stays is returned.
  FdRef now_hot(std::uint32_t slot, UniqueFd fd);

  Result<UniqueFd> reach_by_handle(std::uint32_t slot, Room room);

  // A descriptor of a cold record by its name, verified. The parent is hot,
  // or the record got another one since we looked: kMovedMeanwhile.
  Result<UniqueFd> reach_by_name(std::uint32_t slot, Room room);

  // An open file by the record's name, verified; none where another way must be taken. The name may
  // long mean another file or a pipe, by the guest's doing too: that is open until it is seen,
  // which must do no harm. (A look before as well costs what this way gains for a hot inode.)
  std::optional<UniqueFd> open_by_name(std::uint32_t slot, int flags);

  // ---- file handles -------------------------------------------------------------

  bool remember_handle(std::uint32_t slot, FdRef fd);

  bool store_handle(std::uint32_t slot, FdRef fd);

  // Whether `fd` is of the very file that a doubtful record was made for: its handle tells
  // (it has what the file system calls a generation). From then on the identity does.
  Result<> prove(std::uint32_t slot, FdRef fd);

  std::optional<sys::FileHandle> stored_handle(std::uint32_t slot);

  // ---- forgetting -----------------------------------------------------------------

  // Whether a cold record that the guest forgets can be found again.
  bool is_worth_keeping(std::uint32_t slot);

  // Likewise a pinned, hot one, when it has turned cold. It may be of a file that is gone, or too
  // young to be known by its identity: then its kernel file handle will tell whether it is what was
  // found.
  bool can_keep(std::uint32_t slot);

  // Takes lookups back. At zero the record goes, or it is kept without a descriptor and gets in
  // line.
  void forget(NodeId id, std::uint64_t count);

  // A forgotten record whose last pin was dropped, or so it seemed, holds no file of the host's: it
  // turns cold, or goes.
  void cool_down(NodeId id);

  // Under the shard's lock, pinned: the record is the guest's no more, and nobody finds it.
  void leave(InodeIndex::Shard& of, std::uint32_t slot, std::uint64_t hash,
             std::uint32_t generation) REQUIRES(of.mutex);

  // Under the shard's lock. False when it is in the queue already.
  static bool join_queue(InodeRecord& record);

  // True when the record joins the queue. Whoever has it pinned by now comes here after.
  bool close_forgotten(NodeId id, std::uint64_t hash);

  // Ends the time of a node in the queue, unless the guest came back to it.
  void make_room(std::optional<NodeId> oldest);

  // True when it belongs to the end of the queue: it was forgotten again while it waited.
  bool drop_forgotten(NodeId id);

  // Nodes that the guest holds come first. False when there is none to drop.
  bool drop_some_forgotten();

  // The record goes, unless the guest has more lookups of it than that.
  void drop(NodeId id, std::uint64_t most_lookups);

  // ---- succession -------------------------------------------------------------------

  // The records that a process left behind that died. Before anything else but set_root.
  void take_over();
  // Whether what it left is what the record says. Nothing else may be served or closed for it.
  bool is_own_descriptor(const InodeRecord& record, FdRef fd);
  // What was forgotten, once those who hold nodes have pinned them.
  void put_forgotten_in_line();

  // ---- another host -----------------------------------------------------------------

  // Where a file is to be found on the other side.
  struct Place {
    SavedPlace how = SavedPlace::kNone;
    NodeId parent;
    std::string name;  // or path
    std::optional<sys::FileHandle> handle;
  };
  Place place_of(std::uint32_t slot, const SaveSettings& wanted,
                 const std::function<bool(NodeId directory)>& is_sent);
  // The path below the root of what a descriptor is of. ENOENT when it has none there.
  Result<std::string> path_in_share(std::uint32_t slot, FdRef fd);
  // O_PATH, without following any link; `above` gets the directory it is in, unless that is the
  // root.
  Result<UniqueFd> walk(std::string_view path, UniqueFd* above = nullptr);
  Result<> load_by_path(const SavedInode& saved, std::string_view path,
                        std::span<const std::byte> handle, bool same_files);
  Result<> load_by_name(const SavedInode& saved, Name name, std::span<const std::byte> handle,
                        bool same_files);
  // `mount_above`: of the directory it is in.
  Result<> load_open(const SavedInode& saved, UniqueFd fd, std::span<const std::byte> handle,
                     bool same_files, std::uint16_t mount_above);
  // A record of that id.
  Result<> claim(const SavedInode& saved, const FileIdentity& identity, NodeId parent,
                 std::optional<Name> name, UniqueFd fd, bool submount);
};

}  // namespace virtiofsd
