// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/inode_store.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/sync.h"
#include "passthrough/file_identity.h"
#include "passthrough/forgotten_queue.h"
#include "passthrough/inode_index.h"
#include "passthrough/other_names.h"
#include "state/blobs.h"
#include "state/records.h"
#include "state/slab.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

constexpr std::uint32_t kRootSlot = 1;
constexpr std::size_t kStripes = 256;
constexpr std::uint32_t kMaxHandleRecords = 1U << 20;
constexpr std::size_t kMaxDepth = 1U << 16;  // of a walk from a cold inode up to a hot one
constexpr std::uint32_t kDemotionBatch = 32;
// A record's parent may change while its ancestors are opened, or turn out to have another name;
// that often is enough.
constexpr int kWarmUpAttempts = 8;
constexpr Errno kMovedMeanwhile{EAGAIN};
// Places to look at for a file that is not where it was, and how far below a hot directory.
constexpr std::size_t kMostPlaces = 16;
constexpr int kMostSteps = 64;

std::uint32_t hash_name(std::string_view name) {
  std::uint64_t hash = name.size();
  while (!name.empty()) {
    std::uint64_t word = 0;
    const std::size_t n = name.size() < sizeof word ? name.size() : sizeof word;
    std::memcpy(&word, name.data(), n);
    hash = mix_bits(hash ^ word);
    name.remove_prefix(n);
  }
  return static_cast<std::uint32_t>(hash) | 1U;  // 0 means no name
}

// The only place that says "..": where it leads is checked by the caller.
Result<UniqueFd> open_parent(FdRef directory) {
  UniqueFd fd{::openat(directory.number(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!fd) return Errno::last();
  return fd;
}

constexpr NodeId node_id(std::uint32_t slot, std::uint32_t generation) {
  return NodeId{(std::uint64_t{generation} << 32) | slot};
}
constexpr std::uint32_t slot_of(NodeId id) {
  return static_cast<std::uint32_t>(id.value);
}
constexpr std::uint32_t generation_of(NodeId id) {
  return static_cast<std::uint32_t>(id.value >> 32);
}

struct KnownName {
  std::array<char, Blobs::kMaxBytes + 1> text;
  std::size_t size = 0;
  NodeId parent;

  Result<Name> name() const { return Name::parse({text.data(), size}); }
};

}  // namespace

struct InodeStore::State {
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
        root(std::move(root_fd)) {}

  Settings settings;
  std::shared_ptr<Arena> arena;
  InodeSlab inodes;
  InodeIndex index;
  Blobs blobs;
  ForgottenQueue forgotten;
  OtherNames other_names;
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

  std::atomic<std::uint32_t> hot = 0;
  std::atomic<std::uint32_t> remembered = 0;  // live records that the guest has forgotten
  std::atomic<std::uint32_t> hand = 0;

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
  void finish(std::uint32_t slot) {
    InodeRecord& record = at(slot);
    const std::int32_t number = record.fd.exchange(-1, std::memory_order_relaxed);
    if (number >= 0) {
      hot.fetch_sub(1, std::memory_order_relaxed);
      UniqueFd closes{number};
    } else {
      count_cold(NodeId{record.parent.load(std::memory_order_relaxed)}, -1);
    }
    blobs.remove(record.name.exchange(0, std::memory_order_relaxed));
    blobs.remove(record.handle.exchange(0, std::memory_order_relaxed));
    inodes.free(slot);
  }

  // `cold_children` only ever over-counts: raised before a record turns cold,
  // lowered after it turned hot.
  void count_cold(NodeId parent, int change) {
    if (parent.value == 0 || !try_pin(parent)) return;
    const std::uint32_t slot = slot_of(parent);
    at(slot).cold_children.fetch_add(static_cast<std::uint32_t>(change), std::memory_order_relaxed);
    unpin(slot);
  }

  // ---- by identity ------------------------------------------------------------

  // Finds and pins; adds `lookups` to what the guest owes.
  std::optional<std::uint32_t> find(const FileIdentity& identity, std::uint64_t lookups) {
    const std::uint64_t hash = identity.hash();
    for (;;) {
      NodeId doubtful;
      {
        InodeIndex::Shard& of = index.shard(hash);
        Lock lock(of.mutex);
        const std::uint32_t slot = index.find(of, identity, hash);
        if (slot == 0) return std::nullopt;
        if (!is_doubtful(slot)) {
          // Live while in the index: retiring takes this lock too.
          inodes.add_pin(slot);
          owe(at(slot), lookups);
          return slot;
        }
        doubtful = id_of(slot);
      }
      end_doubt(doubtful);
    }
  }

  // Forgotten when its identity said little: another file may have the same by now. Under the lock
  // of the record's shard.
  bool is_doubtful(std::uint32_t slot) {
    return at(slot).unproven.load(std::memory_order_relaxed) != 0 &&
           at(slot).lookups.load(std::memory_order_relaxed) == 0;
  }

  // Either the record is of the file that has its name now, or it goes.
  void end_doubt(NodeId id) {
    if (!try_pin(id)) return;
    const Pinned pinned{*this, slot_of(id)};
    if (!path_fd(pinned.slot) || is_doubtful(pinned.slot)) drop(id, 0);
  }

  // Under the lock of the record's shard, while it is in the index.
  void owe(InodeRecord& record, std::uint64_t lookups) {
    const std::uint64_t before = record.lookups.fetch_add(lookups, std::memory_order_relaxed);
    if (before == 0 && lookups != 0) remembered.fetch_sub(1, std::memory_order_relaxed);
  }

  // One more lookup of a pinned record. False when it has left the index meanwhile.
  bool add_lookup(std::uint32_t slot) {
    InodeRecord& record = at(slot);
    // A forget reads the count and writes it under this lock.
    Lock lock(index.shard(identity_of(record).hash()).mutex);
    if (inodes.state(slot) != SlotState::kLive) return false;
    owe(record, 1);
    return true;
  }

  // A record for this identity, pinned, with one more lookup: the one that is
  // there already, or a new one that takes `fd` (none: cold).
  Result<std::uint32_t> find_or_insert(const FileIdentity& identity, NodeId parent,
                                       std::optional<Name> name, UniqueFd fd, bool submount) {
    std::uint32_t reference = 0;
    if (name) {
      auto added = blobs.add(std::as_bytes(std::span{name->view()}));
      if (!added && drop_some_forgotten())
        added = blobs.add(std::as_bytes(std::span{name->view()}));
      if (!added) return Errno{ENFILE};  // as many nodes as we remember
      reference = *added;
    }
    if (inodes.live() >= settings.max_inodes) drop_some_forgotten();
    const bool cold = !fd;
    if (cold) count_cold(parent, 1);

    const std::uint64_t hash = identity.hash();
    NodeId doubtful;
    const auto attempt = [&]() -> Result<std::uint32_t> {
      InodeIndex::Shard& of = index.shard(hash);
      Lock lock(of.mutex);
      const std::uint32_t known = index.find(of, identity, hash);
      if (known != 0 && is_doubtful(known)) {
        doubtful = id_of(known);
        return kMovedMeanwhile;
      }
      if (known != 0) {
        inodes.add_pin(known);
        owe(at(known), 1);
        return known;
      }
      if (inodes.live() >= settings.max_inodes) return Errno{ENFILE};
      const std::uint32_t slot = TRY(inodes.allocate());
      InodeRecord& record = at(slot);
      record.ino = identity.ino;
      record.birth = identity.birth;
      record.mount = identity.mount;
      record.type = identity.type;
      record.submount = submount ? 1 : 0;
      record.lookups.store(1, std::memory_order_relaxed);
      record.parent.store(name ? parent.value : 0, std::memory_order_relaxed);
      record.name.store(std::exchange(reference, 0), std::memory_order_relaxed);
      record.name_hash.store(name ? hash_name(name->view()) : 0, std::memory_order_relaxed);
      record.handle.store(0, std::memory_order_relaxed);
      record.opens.store(0, std::memory_order_relaxed);
      record.cold_children.store(0, std::memory_order_relaxed);
      record.touched.store(cold ? 0 : 1, std::memory_order_relaxed);
      record.queued.store(InodeRecord::kNotQueued, std::memory_order_relaxed);
      record.unproven.store(0, std::memory_order_relaxed);
      if (fd) hot.fetch_add(1, std::memory_order_relaxed);
      record.fd.store(fd.release(), std::memory_order_relaxed);
      index.link(of, slot, hash);
      inodes.publish(slot, 1);
      return slot;
    };
    Result<std::uint32_t> outcome = attempt();
    while (!outcome && outcome.error() == kMovedMeanwhile) {
      end_doubt(doubtful);
      outcome = attempt();
    }
    // A reference still ours was not used: somebody else's record was there first.
    const bool used = outcome && reference == 0 && name;
    if (reference != 0) blobs.remove(reference);
    if (cold && !used) count_cold(parent, -1);
    return outcome;
  }

  // ---- names ----------------------------------------------------------------

  std::optional<KnownName> known_name(std::uint32_t slot) {
    KnownName known;
    Lock lock(stripe(slot));
    const std::uint32_t reference = at(slot).name.load(std::memory_order_relaxed);
    if (reference == 0) return std::nullopt;
    known.size = blobs.copy(reference, std::as_writable_bytes(std::span{known.text}));
    known.parent = NodeId{at(slot).parent.load(std::memory_order_relaxed)};
    return known;
  }

  // The node was just seen under this name. Cheap when that is what we knew.
  void note_name(std::uint32_t slot, NodeId parent, Name name) {
    InodeRecord& record = at(slot);
    const std::uint32_t hash = hash_name(name.view());
    if (record.parent.load(std::memory_order_relaxed) == parent.value &&
        record.name_hash.load(std::memory_order_relaxed) == hash) {
      return;
    }
    if (slot == kRootSlot) return;
    auto added = blobs.add(std::as_bytes(std::span{name.view()}));
    if (!added) return;  // the old name stays: the worst that follows is ESTALE
    if (const auto earlier = known_name(slot)) {
      other_names.add(parent, name.view(), earlier->parent, {earlier->text.data(), earlier->size});
    }
    count_cold(parent, 1);
    NodeId before;
    bool cold = false;
    std::uint32_t old = 0;
    {
      Lock lock(stripe(slot));
      old = record.name.exchange(*added, std::memory_order_relaxed);
      before = NodeId{record.parent.exchange(parent.value, std::memory_order_relaxed)};
      record.name_hash.store(hash, std::memory_order_relaxed);
      cold = record.fd.load(std::memory_order_relaxed) < 0;
    }
    blobs.remove(old);
    count_cold(cold ? before : parent, -1);
  }

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
      if (demote_some() == 0) {
        if (!lets_go) return fd;
        // Everything is in use or too young to let go: youth passes.
        const timespec tick{0, FileIdentity::kSettledNs / 10};
        ::nanosleep(&tick, nullptr);
      }
    }
  }

  void keep_budget() {
    if (hot.load(std::memory_order_relaxed) > settings.descriptor_budget) demote_some();
  }

  std::uint32_t demote_some() {
    const std::uint32_t used = inodes.used();
    std::uint32_t demoted = 0;
    // Two rounds at most: the first may only clear the touched marks.
    const std::uint32_t steps = std::min<std::uint32_t>(used * 2, 4096);
    for (std::uint32_t step = 0; step < steps && demoted < kDemotionBatch; ++step) {
      const std::uint32_t slot = hand.fetch_add(1, std::memory_order_relaxed) % used;
      if (slot <= kRootSlot) continue;
      InodeRecord& record = at(slot);
      if (inodes.state(slot) != SlotState::kLive) continue;
      if (record.fd.load(std::memory_order_relaxed) < 0) continue;
      if (record.opens.load(std::memory_order_relaxed) != 0) continue;
      if (record.touched.exchange(0, std::memory_order_relaxed) != 0) continue;
      if (demote(slot)) ++demoted;
    }
    return demoted;
  }

  bool demote(std::uint32_t slot) {
    InodeRecord& record = at(slot);
    const NodeId id = id_of(slot);
    if (!try_pin(id)) return false;
    const std::uint64_t hash = identity_of(record).hash();
    const bool can_return = prove_return(slot);
    const NodeId parent{record.parent.load(std::memory_order_relaxed)};
    count_cold(parent, 1);
    // Between here and set_aside somebody may pin it: then it stays hot.
    unpin(slot);
    UniqueFd closes;
    if (can_return) {
      // Who pins by id waits while the record is aside; who finds it in the
      // index pins under this lock.
      Lock lock(index.shard(hash).mutex);
      if (inodes.generation(slot) == generation_of(id) && inodes.set_aside(slot)) {
        if (record.opens.load(std::memory_order_relaxed) == 0 &&
            inodes.generation(slot) == generation_of(id) &&
            record.parent.load(std::memory_order_relaxed) == parent.value) {
          closes = UniqueFd{record.fd.exchange(-1, std::memory_order_acq_rel)};
        }
        inodes.put_back(slot);
      }
    }
    if (!closes) {
      count_cold(parent, -1);
      return false;
    }
    hot.fetch_sub(1, std::memory_order_relaxed);
    return true;
  }

  // Whether a kernel file handle leads to it.
  bool has_handle(std::uint32_t slot) {
    return settings.use_file_handles && at(slot).handle.load(std::memory_order_relaxed) != 0;
  }

  // Whether a pinned, hot record can be found again without its descriptor:
  // by a file handle, or by its name now and an identity that lasts.
  bool prove_return(std::uint32_t slot) {
    InodeRecord& record = at(slot);
    const FdRef fd{record.fd.load(std::memory_order_acquire)};
    if (!fd.valid()) return false;
    struct statx stx {};
    if (has_handle(slot) || remember_handle(slot, fd)) {
      // The descriptor of a file without a name is all that keeps it.
      return sys::statx(fd, STATX_NLINK, &stx) && stx.stx_nlink != 0;
    }
    if (!identity_of(record).lasts()) return false;
    record.unproven.store(0, std::memory_order_release);  // nothing is as sure as a descriptor
    return static_cast<bool>(stat_by_name(slot, kMinimalMask, &stx, Room::kAsThereIs));
  }

  // The record of what `name` in the directory is, with one lookup more.
  Result<std::uint32_t> insert(std::uint32_t directory, NodeId parent, Name name, UniqueFd fd,
                               const Mount& mount, const struct statx& stx) {
    const bool submount = mount.index != at(directory).mount;
    const std::uint32_t slot =
        TRY(find_or_insert(FileIdentity::of(stx, mount), parent, name, std::move(fd), submount));
    note_name(slot, parent, name);
    keep_budget();
    return slot;
  }

  // An O_PATH descriptor of what `fd` is open on. By name is half the price; it counts if it leads
  // there.
  Result<UniqueFd> witness(std::uint32_t directory, std::optional<Name> name, FdRef fd,
                           const FileIdentity& identity) {
    return with_room([&]() -> Result<UniqueFd> {
      const auto in = name ? path_fd(directory) : Result<FdRef>{Errno{ENOENT}};
      if (in) {
        auto path = sys::open_path(*in, *name);
        struct statx stx {};
        if (path && sys::statx(*path, kMinimalMask, &stx)) {
          const auto mount = mounts.known(stx);
          if (mount && FileIdentity::of(stx, *mount) == identity) return path;
        }
      }
      return sys::reopen(fd, O_PATH);
    });
  }

  static constexpr unsigned kMinimalMask = STATX_TYPE | STATX_INO | STATX_BTIME | STATX_MNT_ID;

  // A record's attributes by its name, verified to be the same file.
  Result<> stat_by_name(std::uint32_t slot, unsigned mask, struct statx* out, Room room) {
    if (at(slot).unproven.load(std::memory_order_relaxed) != 0) return Errno{ESTALE};
    const auto known = known_name(slot);
    if (!known || !try_pin(known->parent)) return Errno{ESTALE};
    const Pinned parent{*this, slot_of(known->parent)};
    return stat_at(slot, slot_of(known->parent), TRY(known->name()), mask, out, room);
  }

  Result<> stat_at(std::uint32_t slot, std::uint32_t parent, Name name, unsigned mask,
                   struct statx* out, Room room) {
    const FdRef directory = TRY(path_fd(parent, room));
    auto got = sys::statx(directory, name, AT_NO_AUTOMOUNT, mask | kMinimalMask, out);
    if (!got) return gone_to_stale(got.error());
    return verify(at(slot), *out);
  }

  // Whether few steps up from there is a hot directory.
  bool is_near(NodeId directory) {
    for (int step = 0; step < kMostSteps && try_pin(directory); ++step) {
      const Pinned pinned{*this, slot_of(directory)};
      if (at(pinned.slot).fd.load(std::memory_order_acquire) >= 0) return true;
      directory = NodeId{at(pinned.slot).parent.load(std::memory_order_relaxed)};
    }
    return false;
  }

  // A record that is not under its name: whether it is where a rename or another link may have it.
  // Then that is its name. (Opens directories, but few, and follows no hint for them: there is no
  // end to how often a guest could make that necessary.)
  bool find_other_name(std::uint32_t slot) {
    const auto known = known_name(slot);
    if (!known) return false;
    std::vector<PlaceOfName> places{{known->parent, {known->text.data(), known->size}}};
    for (std::size_t i = 0; i < places.size(); ++i) {
      const PlaceOfName place = places[i];
      const auto name = Name::parse(place.name);
      struct statx stx {};
      if (i != 0 && name && is_near(place.directory) && try_pin(place.directory)) {
        const Pinned parent{*this, slot_of(place.directory)};
        if (stat_at(slot, parent.slot, *name, kMinimalMask, &stx, Room::kAsThereIs)) {
          note_name(slot, place.directory, *name);
          return true;
        }
      }
      for (PlaceOfName& more :
           other_names.of(place.directory, place.name, kMostPlaces - places.size())) {
        if (std::ranges::find(places, more) == places.end()) places.push_back(std::move(more));
      }
    }
    return false;
  }

  // A name that is no longer there means that our way to the file is stale.
  static Errno gone_to_stale(Errno error) {
    if (error == Errno{ENOENT} || error == Errno{ENOTDIR} || error == Errno{ELOOP}) {
      return Errno{ESTALE};
    }
    return error;
  }

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

  Result<FdRef> warm_up(std::uint32_t slot, Room room) {
    Result<FdRef> fd = Errno{ESTALE};
    for (int attempt = 0; attempt < kWarmUpAttempts; ++attempt) {
      fd = climb_and_open(slot, room);
      if (fd || fd.error() != kMovedMeanwhile) break;
    }
    if (!fd && fd.error() == kMovedMeanwhile) fd = Errno{ESTALE};
    if (!fd && fd.error() == Errno{ESTALE} && open_files &&
        at(slot).opens.load(std::memory_order_relaxed) != 0) {
      auto lent = with_room([&] { return open_files(id_of(slot)); }, room);
      fd = lent ? Result<FdRef>{now_hot(slot, std::move(*lent))} : lent.error();
    }
    if (room == Room::kMake) keep_budget();
    return fd;
  }

  // Up to the first ancestor that is hot or that a handle leads to, then down
  // by name. A loop, for the guest decides how deep its trees are.
  Result<FdRef> climb_and_open(std::uint32_t slot, Room room) {
    std::vector<std::uint32_t> chain;  // pinned, but for the first, by us
    const auto release = [&] {
      for (std::size_t i = 1; i < chain.size(); ++i) unpin(chain[i]);
    };
    chain.push_back(slot);
    while (at(chain.back()).fd.load(std::memory_order_acquire) < 0) {
      if (auto by_handle = reach_by_handle(chain.back(), room)) {
        now_hot(chain.back(), std::move(*by_handle));
        break;
      }
      const NodeId parent{at(chain.back()).parent.load(std::memory_order_relaxed)};
      if (parent.value == 0 || chain.size() > kMaxDepth || !try_pin(parent)) {
        release();
        return Errno{ESTALE};
      }
      chain.push_back(slot_of(parent));
    }
    // Pinned, so what is hot stays hot.
    Result<FdRef> fd = FdRef{at(chain.back()).fd.load(std::memory_order_acquire)};
    for (std::size_t i = chain.size() - 1; fd && i-- > 0;) fd = open_cold(chain[i], room);
    release();
    return fd;
  }

  Result<FdRef> open_cold(std::uint32_t slot, Room room) {
    const std::int32_t number = at(slot).fd.load(std::memory_order_acquire);
    if (number >= 0) return FdRef{number};
    auto fd = reach_by_name(slot, room);
    if (!fd && fd.error() == Errno{ESTALE} && room == Room::kMake && find_other_name(slot))
      return kMovedMeanwhile;
    return now_hot(slot, TRY(std::move(fd)));
  }

  // Two threads may come at once: the descriptor that stays is returned.
  FdRef now_hot(std::uint32_t slot, UniqueFd fd) {
    InodeRecord& record = at(slot);
    NodeId parent;
    {
      Lock lock(stripe(slot));
      std::int32_t expected = -1;
      if (!record.fd.compare_exchange_strong(expected, fd.number(), std::memory_order_acq_rel)) {
        return FdRef{expected};  // another thread was first; ours closes
      }
      parent = NodeId{record.parent.load(std::memory_order_relaxed)};
    }
    hot.fetch_add(1, std::memory_order_relaxed);
    record.touched.store(1, std::memory_order_relaxed);
    count_cold(parent, -1);
    return FdRef{fd.release()};
  }

  Result<UniqueFd> reach_by_handle(std::uint32_t slot, Room room) {
    const auto handle = settings.use_file_handles ? stored_handle(slot) : std::nullopt;
    if (!handle) return Errno{ESTALE};
    return with_room(
        [&] { return sys::open_by_handle_at(mount_for_handles, *handle, O_PATH | O_NOFOLLOW); },
        room);
  }

  // A descriptor of a cold record by its name, verified. The parent is hot,
  // or the record got another one since we looked: kMovedMeanwhile.
  Result<UniqueFd> reach_by_name(std::uint32_t slot, Room room) {
    const auto known = known_name(slot);
    if (!known || !try_pin(known->parent)) return Errno{ESTALE};
    const Pinned parent{*this, slot_of(known->parent)};
    const FdRef directory{at(parent.slot).fd.load(std::memory_order_acquire)};
    if (!directory.valid()) return kMovedMeanwhile;
    const Name name = TRY(known->name());
    auto fd = with_room([&] { return sys::open_path(directory, name); }, room);
    if (!fd) return gone_to_stale(fd.error());
    struct statx stx {};
    TRY(sys::statx(*fd, kMinimalMask, &stx));
    TRY(verify(at(slot), stx));
    TRY(prove(slot, *fd));
    return fd;
  }

  // An open file by the record's name, verified; none where another way must be taken. The name may
  // long mean another file or a pipe, by the guest's doing too: that is open until it is seen,
  // which must do no harm. (A look before as well costs what this way gains for a hot inode.)
  std::optional<UniqueFd> open_by_name(std::uint32_t slot, int flags) {
    if (!opens_by_name || (flags & O_TRUNC) != 0 || at(slot).mount != 0) return std::nullopt;
    const auto known = known_name(slot);
    if (!known || !try_pin(known->parent)) return std::nullopt;
    const Pinned parent{*this, slot_of(known->parent)};
    const auto directory = path_fd(parent.slot);
    const auto name = known->name();
    if (!directory || !name) return std::nullopt;
    auto fd = sys::open_on_mount(*directory, *name, flags);
    struct statx stx {};
    if (!fd || !sys::statx(*fd, kMinimalMask, &stx) || !verify(at(slot), stx)) return std::nullopt;
    return std::move(*fd);
  }

  // ---- file handles -------------------------------------------------------------

  bool remember_handle(std::uint32_t slot, FdRef fd) {
    return settings.use_file_handles && at(slot).mount == 0 && store_handle(slot, fd);
  }

  // Blob: type (4 bytes), then the handle's bytes.
  bool store_handle(std::uint32_t slot, FdRef fd) {
    auto handle = sys::name_to_handle_at(fd);
    if (!handle || handle->size + sizeof handle->type > Blobs::kMaxBytes) return false;
    std::array<std::byte, Blobs::kMaxBytes> packed;
    std::memcpy(packed.data(), &handle->type, sizeof handle->type);
    std::memcpy(packed.data() + sizeof handle->type, handle->bytes.data(), handle->size);
    auto reference = blobs.add(std::span{packed}.first(sizeof handle->type + handle->size));
    if (!reference) return false;
    std::uint32_t none = 0;
    if (!at(slot).handle.compare_exchange_strong(none, *reference, std::memory_order_acq_rel)) {
      blobs.remove(*reference);
    }
    return true;
  }

  // Whether `fd` is of the very file that a doubtful record was made for: its handle tells
  // (it has what the file system calls a generation). From then on the identity does.
  Result<> prove(std::uint32_t slot, FdRef fd) {
    InodeRecord& record = at(slot);
    if (record.unproven.load(std::memory_order_acquire) == 0) return {};
    const auto known = stored_handle(slot);
    const auto handle = sys::name_to_handle_at(fd);
    if (!known || !handle || known->type != handle->type || known->size != handle->size ||
        !std::equal(known->bytes.begin(), known->bytes.begin() + known->size,
                    handle->bytes.begin())) {
      return Errno{ESTALE};
    }
    record.unproven.store(0, std::memory_order_release);
    return {};
  }

  std::optional<sys::FileHandle> stored_handle(std::uint32_t slot) {
    // Once set, a handle stays as long as the record.
    const std::uint32_t reference = at(slot).handle.load(std::memory_order_acquire);
    if (reference == 0) return std::nullopt;
    std::array<std::byte, Blobs::kMaxBytes + 1> packed;
    const std::size_t size = blobs.copy(reference, packed);
    sys::FileHandle handle;
    std::memcpy(&handle.type, packed.data(), sizeof handle.type);
    handle.size = static_cast<std::uint32_t>(size - sizeof handle.type);
    std::memcpy(handle.bytes.data(), packed.data() + sizeof handle.type, handle.size);
    return handle;
  }

  // ---- forgetting -----------------------------------------------------------------

  // Whether a cold record that the guest forgets can be found again.
  bool is_worth_keeping(std::uint32_t slot) {
    const InodeRecord& record = at(slot);
    const bool by_name = record.name.load(std::memory_order_relaxed) != 0 && record.birth != 0;
    return forgotten.capacity() != 0 && (by_name || has_handle(slot));
  }

  // Likewise a pinned, hot one, when it has turned cold. It may be of a file that is gone, or too
  // young to be known by its identity: then its kernel file handle will tell whether it is what was
  // found.
  bool can_keep(std::uint32_t slot) {
    InodeRecord& record = at(slot);
    const FdRef fd{record.fd.load(std::memory_order_acquire)};
    struct statx stx {};
    if (!sys::statx(fd, STATX_NLINK, &stx) || stx.stx_nlink == 0) return false;
    if (!has_handle(slot)) (void)remember_handle(slot, fd);
    if (!is_worth_keeping(slot)) return false;
    const bool young = !has_handle(slot) && !identity_of(record).lasts();
    if (young && !store_handle(slot, fd)) return false;
    record.unproven.store(young ? 1 : 0, std::memory_order_release);
    return true;
  }

  // Takes lookups back. At zero the record goes, or it is kept without a descriptor and gets in
  // line.
  void forget(NodeId id, std::uint64_t count) {
    const std::uint32_t slot = slot_of(id);
    // Pinned so that its identity can be read; the root is never forgotten.
    if (slot == kRootSlot || !try_pin(id)) return;
    const Pinned pinned{*this, slot};  // a hot one cools down when the last pin is dropped
    InodeRecord& record = at(slot);
    const std::uint64_t hash = identity_of(record).hash();
    bool joins = false;
    {
      InodeIndex::Shard& of = index.shard(hash);
      Lock lock(of.mutex);
      const std::uint64_t owed = record.lookups.load(std::memory_order_relaxed);
      record.lookups.store(owed > count ? owed - count : 0, std::memory_order_relaxed);
      if (owed > count || inodes.state(slot) != SlotState::kLive) return;
      if (owed != 0) remembered.fetch_add(1, std::memory_order_relaxed);
      if (record.fd.load(std::memory_order_relaxed) >= 0) return;
      if (is_worth_keeping(slot)) {
        joins = join_queue(record);
      } else {
        leave(of, slot, hash, generation_of(id));
      }
    }
    if (joins) make_room(forgotten.push(id));
  }

  // A forgotten record whose last pin was dropped, or so it seemed, holds no file of the host's: it
  // turns cold, or goes.
  void cool_down(NodeId id) {
    const std::uint32_t slot = slot_of(id);
    const auto is_hot = [&] { return at(slot).fd.load(std::memory_order_relaxed) >= 0; };
    if (slot == kRootSlot || !is_hot() || !try_pin(id)) return;
    // Pinned, what is hot stays hot.
    const std::uint64_t hash = identity_of(at(slot)).hash();
    const bool is_kept = is_hot() && can_keep(slot);
    if (is_hot() && !is_kept) drop(id, 0);
    // Not by unpin, which would come here again.
    if (inodes.unpin(slot)) return finish(slot);
    if (is_kept && close_forgotten(id, hash)) make_room(forgotten.push(id));
  }

  // Under the shard's lock, pinned: the record is the guest's no more, and nobody finds it.
  void leave(InodeIndex::Shard& of, std::uint32_t slot, std::uint64_t hash,
             std::uint32_t generation) REQUIRES(of.mutex) {
    remembered.fetch_sub(1, std::memory_order_relaxed);
    index.unlink(of, slot, hash);
    (void)inodes.retire(slot, generation);  // whoever unpins it last finishes it
  }

  // Under the shard's lock. False when it is in the queue already.
  static bool join_queue(InodeRecord& record) {
    const bool in_queue = record.queued.load(std::memory_order_relaxed) != InodeRecord::kNotQueued;
    record.queued.store(in_queue ? InodeRecord::kQueuedAgain : InodeRecord::kQueued,
                        std::memory_order_relaxed);
    return !in_queue;
  }

  // True when the record joins the queue. Whoever has it pinned by now comes here after.
  bool close_forgotten(NodeId id, std::uint64_t hash) {
    const std::uint32_t slot = slot_of(id);
    InodeRecord& record = at(slot);
    const NodeId parent{record.parent.load(std::memory_order_relaxed)};
    count_cold(parent, 1);
    UniqueFd closes;
    bool joins = false;
    {
      Lock lock(index.shard(hash).mutex);
      if (inodes.generation(slot) == generation_of(id) && inodes.set_aside(slot)) {
        if (record.lookups.load(std::memory_order_relaxed) == 0 &&
            record.parent.load(std::memory_order_relaxed) == parent.value) {
          closes = UniqueFd{record.fd.exchange(-1, std::memory_order_acq_rel)};
        }
        if (closes) {
          record.touched.store(0, std::memory_order_relaxed);
          joins = join_queue(record);
        }
        inodes.put_back(slot);
      }
    }
    if (closes) {
      hot.fetch_sub(1, std::memory_order_relaxed);
    } else {
      count_cold(parent, -1);
    }
    return joins;
  }

  // Ends the time of a node in the queue, unless the guest came back to it.
  void make_room(std::optional<NodeId> oldest) {
    while (oldest) {
      const NodeId id = *oldest;
      oldest.reset();
      if (drop_forgotten(id)) oldest = forgotten.push(id);
    }
  }

  // True when it belongs to the end of the queue: it was forgotten again while it waited.
  bool drop_forgotten(NodeId id) {
    const std::uint32_t slot = slot_of(id);
    if (!try_pin(id)) return false;
    const Pinned pinned{*this, slot};
    InodeRecord& record = at(slot);
    const std::uint64_t hash = identity_of(record).hash();
    InodeIndex::Shard& of = index.shard(hash);
    Lock lock(of.mutex);
    const std::uint8_t queued =
        record.queued.exchange(InodeRecord::kNotQueued, std::memory_order_relaxed);
    if (record.lookups.load(std::memory_order_relaxed) != 0 ||
        inodes.state(slot) != SlotState::kLive)
      return false;
    if (queued == InodeRecord::kQueuedAgain) return join_queue(record);
    leave(of, slot, hash, generation_of(id));
    return false;
  }

  // Nodes that the guest holds come first. False when there is none to drop.
  bool drop_some_forgotten() {
    bool any = false;
    for (std::uint32_t i = 0; i < kDemotionBatch; ++i) {
      const auto oldest = forgotten.pop();
      if (!oldest) break;
      any = true;
      make_room(oldest);
    }
    return any;
  }

  // The record goes, unless the guest has more lookups of it than that.
  void drop(NodeId id, std::uint64_t most_lookups) {
    const std::uint32_t slot = slot_of(id);
    if (slot == kRootSlot || !try_pin(id)) return;
    const Pinned pinned{*this, slot};
    InodeRecord& record = at(slot);
    const std::uint64_t hash = identity_of(record).hash();
    InodeIndex::Shard& of = index.shard(hash);
    Lock lock(of.mutex);
    const std::uint64_t owed = record.lookups.load(std::memory_order_relaxed);
    if (owed > most_lookups || inodes.state(slot) != SlotState::kLive) return;
    record.lookups.store(0, std::memory_order_relaxed);
    if (owed != 0) remembered.fetch_add(1, std::memory_order_relaxed);
    leave(of, slot, hash, generation_of(id));
  }
};

// ---- InodeRef -----------------------------------------------------------------

InodeRef::InodeRef(InodeRef&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)), slot_(other.slot_) {}

InodeRef& InodeRef::operator=(InodeRef&& other) noexcept {
  if (this != &other) {
    drop();
    store_ = std::exchange(other.store_, nullptr);
    slot_ = other.slot_;
  }
  return *this;
}

InodeRef::~InodeRef() {
  drop();
}

void InodeRef::drop() {
  if (store_ != nullptr) std::exchange(store_, nullptr)->state_->unpin(slot_);
}

NodeId InodeRef::id() const {
  return store_->state_->id_of(slot_);
}

std::uint32_t InodeRef::type() const {
  return static_cast<std::uint32_t>(store_->state_->at(slot_).type) << 12;
}

bool InodeRef::is_local() const {
  // Trusted with birth times: file_identity.cc has the list.
  return store_->state_->at(slot_).birth != 0;
}

bool InodeRef::is_submount() const {
  return store_->state_->at(slot_).submount != 0;
}

// ---- InodeStore -----------------------------------------------------------------

Result<std::shared_ptr<Arena>> InodeStore::make_arena(std::uint32_t max_inodes) {
  const std::uint64_t inodes = std::uint64_t{max_inodes} + 2;
  const std::array<SectionPlan, 3> plan = {
      SectionPlan{SectionKind::kInodes, sizeof(InodeRecord), inodes},
      SectionPlan{SectionKind::kHandles, sizeof(HandleRecord), kMaxHandleRecords},
      // A name and, for some, a handle: two to three units each on average.
      SectionPlan{SectionKind::kBlobs, Blobs::kUnit, inodes * 4},
  };
  return Arena::create(plan);
}

InodeStore::InodeStore(std::unique_ptr<State> state) : state_(std::move(state)) {}
InodeStore::~InodeStore() {
  const std::uint32_t used = state_->inodes.used();
  for (std::uint32_t slot = kRootSlot + 1; slot < used; ++slot) {
    if (state_->inodes.state(slot) == SlotState::kLive)
      state_->drop(state_->id_of(slot), ~std::uint64_t{0});
  }
  // The root's descriptor is owned by State::root.
  state_->at(kRootSlot).fd.store(-1, std::memory_order_relaxed);
}

Result<std::unique_ptr<InodeStore>> InodeStore::create(UniqueFd root, Settings settings) {
  if (!settings.arena) settings.arena = TRY(make_arena(settings.max_inodes));
  struct statx stx {};
  TRY(sys::statx(root, sys::kStatxMask, &stx));
  if (!S_ISDIR(stx.stx_mode)) return Errno{ENOTDIR};

  auto state = std::make_unique<State>(std::move(root), std::move(settings));
  const Mount mount = TRY(state->mounts.set_root(stx, state->root));
  if (state->settings.use_file_handles) {
    // Both ends of the way are tried once, so that a file system without
    // handles or a process without the privilege is known from the start.
    auto on_mount = sys::reopen(state->root, O_RDONLY | O_DIRECTORY);
    auto handle = sys::name_to_handle_at(state->root);
    if (on_mount && handle && sys::open_by_handle_at(*on_mount, *handle, O_PATH)) {
      state->mount_for_handles = std::move(*on_mount);
    } else {
      state->settings.use_file_handles = false;
    }
  }

  state->lets_go = mount.by_birth || state->settings.use_file_handles;
  if (mount.by_birth && mount.no_devices) {
    // A container's filter may not know the call; whether there is such a directory doesn't matter.
    const auto tried =
        sys::open_on_mount(state->root, TRY(Name::parse("virtiofsd")), O_RDONLY | O_DIRECTORY);
    state->opens_by_name =
        tried || (tried.error() != Errno{ENOSYS} && tried.error() != Errno{EPERM});
  }

  const std::uint32_t slot = TRY(state->inodes.allocate());
  CHECK(slot == kRootSlot);
  InodeRecord& record = state->at(slot);
  const FileIdentity identity = FileIdentity::of(stx, mount);
  record.ino = identity.ino;
  record.birth = identity.birth;
  record.mount = 0;
  record.type = S_IFDIR >> 12;
  record.lookups.store(1, std::memory_order_relaxed);
  record.fd.store(state->root.number(), std::memory_order_relaxed);
  record.touched.store(1, std::memory_order_relaxed);
  {
    InodeIndex::Shard& of = state->index.shard(identity.hash());
    Lock lock(of.mutex);
    state->index.link(of, slot, identity.hash());
  }
  // One pin forever: the root is never demoted and never goes.
  state->inodes.publish(slot, 1);
  return std::unique_ptr<InodeStore>(new InodeStore(std::move(state)));
}

Result<InodeRef> InodeStore::pin(NodeId id) {
  if (!state_->try_pin(id)) return Errno{ESTALE};
  InodeRef inode{this, slot_of(id)};
  if (state_->at(inode.slot_).lookups.load(std::memory_order_relaxed) == 0) return Errno{ESTALE};
  return inode;
}

Result<InodeRef> InodeStore::recall(NodeId id, struct statx* out) {
  if (!state_->try_pin(id)) return Errno{ESTALE};
  InodeRef inode{this, slot_of(id)};
  auto got = stat(inode, sys::kStatxMask, out);
  // Renamed or unlinked under the name it had, it may have another.
  if (!got && got.error() == Errno{ESTALE} && state_->find_other_name(inode.slot_))
    got = stat(inode, sys::kStatxMask, out);
  TRY(got);
  // Linux asks for what it does not have itself, so it is not open either. (Not every file system
  // counts links.)
  const bool is_gone = inode.is_local() && out->stx_nlink == 0;
  if (is_gone || !state_->add_lookup(inode.slot_)) return Errno{ESTALE};
  return inode;
}

Result<FdRef> InodeStore::fd(const InodeRef& inode) {
  return state_->path_fd(inode.slot_);
}

Result<UniqueFd> InodeStore::open(const InodeRef& inode, int flags) {
  State& state = *state_;
  if (inode.is_directory()) {
    const FdRef path = TRY(state.path_fd(inode.slot_));
    auto fd = state.with_room([&] { return sys::reopen_directory(path, flags); });
    // "." asks for leave to search, which may be missing where there is leave to read.
    if (fd || fd.error() != Errno{EACCES}) return fd;
    return state.with_room([&] { return sys::reopen(path, flags); });
  }
  if (auto fd = state.open_by_name(inode.slot_, flags)) return std::move(*fd);
  if (state.settings.use_file_handles && state.at(inode.slot_).mount == 0) {
    if (!state.has_handle(inode.slot_)) {
      const FdRef path = TRY(state.path_fd(inode.slot_));
      state.remember_handle(inode.slot_, path);
    }
    const auto handle = state.stored_handle(inode.slot_);
    if (handle) {
      auto fd = state.with_room(
          [&] { return sys::open_by_handle_at(state.mount_for_handles, *handle, flags); });
      // A handle can go stale where the descriptor we hold does not; then it decides.
      if (fd || fd.error() != Errno{ESTALE}) return fd;
    }
  }
  const FdRef path = TRY(state.path_fd(inode.slot_));
  return state.with_room([&] { return sys::reopen(path, flags); });
}

Result<> InodeStore::stat(const InodeRef& inode, unsigned mask, struct statx* out) {
  const std::int32_t number = state_->at(inode.slot_).fd.load(std::memory_order_acquire);
  if (number >= 0) return sys::statx(FdRef{number}, mask, out);
  // Asked about for the second time: a descriptor pays for itself, by halving the price.
  std::atomic<std::uint8_t>& touched = state_->at(inode.slot_).touched;
  const bool again = touched.load(std::memory_order_relaxed) != 0;
  if (!again) touched.store(1, std::memory_order_relaxed);
  const bool room =
      state_->hot.load(std::memory_order_relaxed) < state_->settings.descriptor_budget;
  if (!(again && room) && !state_->has_handle(inode.slot_)) {
    auto by_name = state_->stat_by_name(inode.slot_, mask, out, State::Room::kMake);
    if (by_name || by_name.error() != Errno{ESTALE}) return by_name;
  }
  return sys::statx(TRY(state_->path_fd(inode.slot_)), mask, out);
}

Result<InodeRef> InodeStore::lookup(const InodeRef& directory, Name name, int flags,
                                    struct statx* out) {
  State& state = *state_;
  const FdRef in = TRY(state.path_fd(directory.slot_));
  TRY(sys::statx(in, name, flags, sys::kStatxMask, out));
  const NodeId parent = directory.id();

  // What a descriptor says counts: the name may mean another file by now.
  const std::optional<Mount> mount = state.mounts.known(*out);
  if (!mount) return made(directory, name, out);
  const FileIdentity identity = FileIdentity::of(*out, *mount);
  if (const auto known = state.find(identity, 1)) {
    InodeRef found{this, *known};
    state.note_name(*known, parent, name);
    return found;
  }
  if (!identity.lasts()) return made(directory, name, out);
  return InodeRef{this, TRY(state.insert(directory.slot_, parent, name, UniqueFd{}, *mount, *out))};
}

Result<InodeRef> InodeStore::made(const InodeRef& directory, Name name, struct statx* out) {
  State& state = *state_;
  const FdRef in = TRY(state.path_fd(directory.slot_));
  UniqueFd fd = TRY(state.with_room([&] { return sys::open_path(in, name); }));
  TRY(sys::statx(fd, sys::kStatxMask, out));
  std::optional<Mount> mount = state.mounts.known(*out);
  if (!mount) mount = TRY(state.mounts.learn(*out, fd));
  return InodeRef{
      this, TRY(state.insert(directory.slot_, directory.id(), name, std::move(fd), *mount, *out))};
}

Result<InodeRef> InodeStore::adopt(const InodeRef& directory, std::optional<Name> name, FdRef fd,
                                   struct statx* out) {
  State& state = *state_;
  TRY(sys::statx(fd, sys::kStatxMask, out));
  std::optional<Mount> mount = state.mounts.known(*out);
  if (!mount) mount = TRY(state.mounts.learn(*out, fd));
  const FileIdentity identity = FileIdentity::of(*out, *mount);
  const NodeId parent = directory.id();
  if (const auto known = state.find(identity, 1)) {
    InodeRef found{this, *known};
    if (name) state.note_name(*known, parent, *name);
    return found;
  }
  UniqueFd path;
  if (!name || !identity.lasts()) path = TRY(state.witness(directory.slot_, name, fd, identity));
  const bool submount = mount->index != state.at(directory.slot_).mount;
  const std::uint32_t slot =
      TRY(state.find_or_insert(identity, parent, name, std::move(path), submount));
  InodeRef found{this, slot};
  state.keep_budget();
  return found;
}

void InodeStore::add_lookup(const InodeRef& inode) {
  (void)state_->add_lookup(inode.slot_);
}

Result<InodeRef> InodeStore::parent(const InodeRef& inode, struct statx* out) {
  State& state = *state_;
  if (inode.slot_ == kRootSlot) {
    TRY(stat(inode, sys::kStatxMask, out));
    add_lookup(inode);
    return pin(root());
  }
  if (!inode.is_directory()) return Errno{ENOTDIR};
  const FdRef start = TRY(state.path_fd(inode.slot_));
  const UniqueFd above = TRY(open_parent(start));
  // A directory that was moved out of the share must not lead out of it: the
  // way up has to meet the root. It begins at the very directory that was
  // found, for a second look at ".." may find another one.
  UniqueFd step;
  struct statx before {};
  TRY(sys::statx(start, sys::kStatxMask, &before));
  for (std::size_t depth = 0;; ++depth) {
    const FdRef at = depth == 0 ? above.ref() : step.ref();
    struct statx stx {};
    TRY(sys::statx(at, sys::kStatxMask, &stx));
    if (state.verify(state.at(kRootSlot), stx)) break;
    const bool top = stx.stx_ino == before.stx_ino && on_same_mount(stx, before);
    if (top || depth == kMaxDepth) return Errno{ESTALE};
    before = stx;
    step = TRY(open_parent(at));
  }
  return adopt(inode, std::nullopt, above, out);
}

void InodeStore::forget(NodeId id, std::uint64_t count) {
  state_->forget(id, count);
}

void InodeStore::before_removal(const InodeRef& directory, Name name) {
  State& state = *state_;
  if (state.at(directory.slot_).cold_children.load(std::memory_order_relaxed) == 0) return;
  const auto in = state.path_fd(directory.slot_);
  if (!in) return;
  struct statx stx {};
  if (!sys::statx(*in, name, AT_NO_AUTOMOUNT, State::kMinimalMask, &stx)) return;
  const auto mount = state.mounts.known(stx);
  if (!mount) return;
  const auto known = state.find(FileIdentity::of(stx, *mount), 0);
  if (!known) return;
  const InodeRef pinned{this, *known};
  // What the guest has forgotten it has no file open of.
  if (state.at(*known).lookups.load(std::memory_order_relaxed) == 0) return;
  state.note_name(*known, directory.id(), name);
  // Best effort: a share that changes underneath may have taken it away already.
  if (!state.path_fd(*known)) log::debug("a name went away before its inode was opened");
}

void InodeStore::after_rename(const InodeRef& from_directory, Name from,
                              const InodeRef& to_directory, Name to, bool exchange) {
  State& state = *state_;
  // What has its descriptor is not looked for now: if it is to be found later, that is where.
  state.other_names.add(from_directory.id(), from.view(), to_directory.id(), to.view());
  if (exchange)
    state.other_names.add(to_directory.id(), to.view(), from_directory.id(), from.view());
  const auto follow = [&](const InodeRef& directory, Name name) {
    const auto in = state.path_fd(directory.slot_);
    if (!in) return;
    struct statx stx {};
    if (!sys::statx(*in, name, AT_NO_AUTOMOUNT, State::kMinimalMask, &stx)) return;
    const auto mount = state.mounts.known(stx);
    if (!mount) return;
    const auto known = state.find(FileIdentity::of(stx, *mount), 0);
    if (!known) return;
    const InodeRef pinned{this, *known};
    state.note_name(*known, directory.id(), name);
  };
  const auto cold_in = [&](const InodeRef& directory) {
    return state.at(directory.slot_).cold_children.load(std::memory_order_relaxed) != 0;
  };
  if (cold_in(from_directory) || (exchange && cold_in(to_directory))) {
    follow(to_directory, to);
    if (exchange) follow(from_directory, from);
  }
}

void InodeStore::opened(const InodeRef& inode) {
  state_->at(inode.slot_).opens.fetch_add(1, std::memory_order_relaxed);
}

void InodeStore::closed(const InodeRef& inode) {
  state_->at(inode.slot_).opens.fetch_sub(1, std::memory_order_relaxed);
}

void InodeStore::set_open_files(OpenFiles open_files) {
  state_->open_files = std::move(open_files);
}

void InodeStore::clear() {
  const std::uint32_t used = state_->inodes.used();
  for (std::uint32_t slot = kRootSlot + 1; slot < used; ++slot) {
    if (state_->inodes.state(slot) == SlotState::kLive)
      state_->forget(state_->id_of(slot), ~std::uint64_t{0});
  }
}

const std::shared_ptr<Arena>& InodeStore::arena() const {
  return state_->arena;
}
std::uint64_t InodeStore::count() const {
  return state_->inodes.live() - state_->remembered.load(std::memory_order_relaxed);
}
std::uint32_t InodeStore::descriptors() const {
  return state_->hot.load(std::memory_order_relaxed);
}

}  // namespace virtiofsd
