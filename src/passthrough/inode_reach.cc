// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Hot and cold: what holds a descriptor, and how a file is found again that holds none.
#include <algorithm>
#include <bit>
#include <vector>

#include "base/uninitialized.h"
#include "passthrough/inode_state.h"

namespace virtiofsd {
namespace {

// A record's parent may change while its ancestors are opened, or turn out to have another name;
// that often is enough.
constexpr int kWarmUpAttempts = 8;
// Places to look at for a file that is not where it was, and how far below a hot directory.
constexpr std::size_t kMostPlaces = 16;
constexpr int kMostSteps = 64;

}  // namespace

std::uint32_t InodeStore::State::demote_some(std::uint32_t most_cost) {
  const std::uint32_t used = inodes.used();
  std::uint32_t demoted = 0;
  std::uint32_t cost = 0;
  // Two rounds at most: the first may only clear the touched marks.
  const std::uint32_t steps = std::min<std::uint32_t>(used * 2, 4096);
  for (std::uint32_t step = 0; step < steps && demoted < kDemotionBatch && cost < most_cost;
       ++step) {
    const std::uint32_t slot = hand.fetch_add(1, std::memory_order_relaxed) % used;
    if (slot <= kRootSlot) continue;
    InodeRecord& record = at(slot);
    if (inodes.state(slot) != SlotState::kLive) continue;
    if (record.fd.load(std::memory_order_relaxed) < 0) continue;
    if (record.opens.load(std::memory_order_relaxed) != 0) continue;
    if (record.touched.exchange(0, std::memory_order_relaxed) != 0) continue;
    switch (demote(slot)) {
      case Demoted::kYes:
        ++demoted;
        break;
      case Demoted::kTooYoung:
        ++cost;
        break;
      case Demoted::kNo:
        cost += kDemotionCall;
        break;
    }
  }
  if (demoted == 0 && cost >= most_cost)
    demotion_pause.store(kDemotionPause, std::memory_order_relaxed);
  return demoted;
}

InodeStore::State::Demoted InodeStore::State::demote(std::uint32_t slot) {
  InodeRecord& record = at(slot);
  const NodeId id = id_of(slot);
  if (!try_pin(id)) return Demoted::kNo;
  if (!settings.use_file_handles && !identity_of(record).lasts()) {
    unpin(slot);
    return Demoted::kTooYoung;
  }
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
    return Demoted::kNo;
  }
  hot.fetch_sub(1, std::memory_order_relaxed);
  return Demoted::kYes;
}

bool InodeStore::State::prove_return(std::uint32_t slot) {
  InodeRecord& record = at(slot);
  const FdRef fd{record.fd.load(std::memory_order_acquire)};
  if (!fd.valid()) return false;
  UNINITIALIZED struct statx stx;
  if (has_handle(slot) || remember_handle(slot, fd)) {
    // The descriptor of a file without a name is all that keeps it.
    return sys::statx(fd, STATX_NLINK, &stx) && stx.stx_nlink != 0;
  }
  if (!identity_of(record).lasts()) return false;
  record.unproven.store(0, std::memory_order_release);  // nothing is as sure as a descriptor
  return stat_by_name(slot, kMinimalMask, &stx, Room::kAsThereIs) || find_other_name(slot);
}

Result<std::uint32_t> InodeStore::State::insert(std::uint32_t directory, NodeId parent, Name name,
                                                UniqueFd fd, const Mount& mount,
                                                const struct statx& stx) {
  const bool submount = mount.index != at(directory).mount;
  const std::uint32_t slot =
      TRY(find_or_insert(FileIdentity::of(stx, mount), parent, name, std::move(fd), submount));
  note_name(slot, parent, name);
  note_links(slot, stx.stx_nlink);
  keep_budget();
  return slot;
}

Result<UniqueFd> InodeStore::State::witness(std::uint32_t directory, std::optional<Name> name,
                                            FdRef fd, const FileIdentity& identity) {
  return with_room([&]() -> Result<UniqueFd> {
    const auto in = name ? path_fd(directory) : Result<FdRef>{Errno{ENOENT}};
    if (in) {
      auto path = sys::open_path(*in, *name);
      UNINITIALIZED struct statx stx;
      if (path && sys::statx(*path, kMinimalMask, &stx)) {
        const auto mount = mounts.known(stx);
        if (mount && FileIdentity::of(stx, *mount) == identity) return path;
      }
    }
    return sys::reopen(fd, O_PATH);
  });
}

Result<> InodeStore::State::stat_by_name(std::uint32_t slot, unsigned mask, struct statx* out,
                                         Room room) {
  if (at(slot).unproven.load(std::memory_order_relaxed) != 0) return Errno{ESTALE};
  UNINITIALIZED KnownName known;
  if (!known_name(slot, known) || !try_pin(known.parent)) return Errno{ESTALE};
  const Pinned parent{*this, slot_of(known.parent)};
  return stat_at(slot, slot_of(known.parent), TRY(known.name()), mask, out, room);
}

Result<> InodeStore::State::stat_at(std::uint32_t slot, std::uint32_t parent, Name name,
                                    unsigned mask, struct statx* out, Room room) {
  const FdRef directory = TRY(path_fd(parent, room));
  auto got = sys::statx(directory, name, AT_NO_AUTOMOUNT, mask | kMinimalMask, out);
  if (!got) return gone_to_stale(got.error());
  return verify(at(slot), *out);
}

bool InodeStore::State::is_near(NodeId directory) {
  for (int step = 0; step < kMostSteps && try_pin(directory); ++step) {
    const Pinned pinned{*this, slot_of(directory)};
    if (at(pinned.slot).fd.load(std::memory_order_acquire) >= 0) return true;
    directory = NodeId{at(pinned.slot).parent.load(std::memory_order_relaxed)};
  }
  return false;
}

bool InodeStore::State::find_other_name(std::uint32_t slot) {
  UNINITIALIZED KnownName known;
  if (!known_name(slot, known)) return false;
  std::vector<PlaceOfName> places{{known.parent, {known.text.data(), known.size}}};
  for (std::size_t i = 0; i < places.size(); ++i) {
    const PlaceOfName place = places[i];
    const auto name = Name::parse(place.name);
    UNINITIALIZED struct statx stx;
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

Errno InodeStore::State::gone_to_stale(Errno error) {
  if (error == Errno{ENOENT} || error == Errno{ENOTDIR} || error == Errno{ELOOP}) {
    return Errno{ESTALE};
  }
  return error;
}

Result<FdRef> InodeStore::State::warm_up(std::uint32_t slot, Room room) {
  Result<FdRef> fd = Errno{ESTALE};
  for (int attempt = 0; attempt < kWarmUpAttempts; ++attempt) {
    fd = climb_and_open(slot, room);
    if (fd || fd.error() != kMovedMeanwhile) break;
  }
  if (!fd && fd.error() == kMovedMeanwhile) fd = Errno{ESTALE};
  // EACCES: a directory on the way was closed to us since.
  if (!fd && (fd.error() == Errno{ESTALE} || fd.error() == Errno{EACCES}) && open_files &&
      at(slot).opens.load(std::memory_order_relaxed) != 0) {
    auto lent = with_room([&] { return open_files(id_of(slot)); }, room);
    fd = lent ? Result<FdRef>{now_hot(slot, std::move(*lent))} : lent.error();
  }
  if (room == Room::kMake) keep_budget();
  return fd;
}

Result<FdRef> InodeStore::State::climb_and_open(std::uint32_t slot, Room room) {
  std::vector<std::uint32_t> chain;  // pinned, but for the first, by us
  const auto release = [&] {
    for (std::size_t i = 1; i < chain.size(); ++i) unpin(chain[i]);
  };
  chain.push_back(slot);
  std::uint32_t passed = 0;
  while (at(chain.back()).fd.load(std::memory_order_acquire) < 0) {
    // Names that are out of date may lead in a circle.
    const bool again = chain.back() == passed;
    if (std::has_single_bit(chain.size())) passed = chain.back();
    if (auto by_handle = reach_by_handle(chain.back(), room)) {
      now_hot(chain.back(), std::move(*by_handle));
      break;
    }
    const NodeId parent{at(chain.back()).parent.load(std::memory_order_relaxed)};
    if (parent.value == 0 || again || chain.size() > kMaxDepth || !try_pin(parent)) {
      // The guest knows that directory no more, but perhaps another one that it is in.
      const bool moved = room == Room::kMake && find_other_name(chain.back());
      release();
      return moved ? kMovedMeanwhile : Errno{ESTALE};
    }
    chain.push_back(slot_of(parent));
  }
  // Pinned, so what is hot stays hot.
  Result<FdRef> fd = FdRef{at(chain.back()).fd.load(std::memory_order_acquire)};
  for (std::size_t i = chain.size() - 1; fd && i-- > 0;) fd = open_cold(chain[i], room);
  release();
  return fd;
}

Result<FdRef> InodeStore::State::open_cold(std::uint32_t slot, Room room) {
  const std::int32_t number = at(slot).fd.load(std::memory_order_acquire);
  if (number >= 0) return FdRef{number};
  auto fd = reach_by_name(slot, room);
  if (!fd && fd.error() == Errno{ESTALE} && room == Room::kMake && find_other_name(slot))
    return kMovedMeanwhile;
  return now_hot(slot, TRY(std::move(fd)));
}

FdRef InodeStore::State::now_hot(std::uint32_t slot, UniqueFd fd) {
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

Result<UniqueFd> InodeStore::State::reach_by_handle(std::uint32_t slot, Room room) {
  const auto handle = has_handle(slot) ? stored_handle(slot) : std::nullopt;
  if (!handle) return Errno{ESTALE};
  return with_room(
      [&] { return sys::open_by_handle_at(mount_for_handles, *handle, O_PATH | O_NOFOLLOW); },
      room);
}

Result<UniqueFd> InodeStore::State::reach_by_name(std::uint32_t slot, Room room) {
  UNINITIALIZED KnownName known;
  if (!known_name(slot, known) || !try_pin(known.parent)) return Errno{ESTALE};
  const Pinned parent{*this, slot_of(known.parent)};
  const FdRef directory{at(parent.slot).fd.load(std::memory_order_acquire)};
  if (!directory.valid()) return kMovedMeanwhile;
  const Name name = TRY(known.name());
  auto fd = with_room([&] { return sys::open_path(directory, name); }, room);
  if (!fd) return gone_to_stale(fd.error());
  UNINITIALIZED struct statx stx;
  TRY(sys::statx(*fd, kMinimalMask, &stx));
  TRY(verify(at(slot), stx));
  TRY(prove(slot, *fd));
  return fd;
}

std::optional<UniqueFd> InodeStore::State::open_by_name(std::uint32_t slot, int flags) {
  if (!opens_by_name || (flags & O_TRUNC) != 0 || at(slot).mount != 0) return std::nullopt;
  UNINITIALIZED KnownName known;
  if (!known_name(slot, known) || !try_pin(known.parent)) return std::nullopt;
  const Pinned parent{*this, slot_of(known.parent)};
  const auto directory = path_fd(parent.slot);
  const auto name = known.name();
  if (!directory || !name) return std::nullopt;
  auto fd = sys::open_on_mount(*directory, *name, flags);
  UNINITIALIZED struct statx stx;
  if (!fd || !sys::statx(*fd, kMinimalMask, &stx) || !verify(at(slot), stx)) return std::nullopt;
  return std::move(*fd);
}

}  // namespace virtiofsd
