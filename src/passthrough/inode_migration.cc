// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What goes to another host: inodes as places in the shared directory, and the records that are
// made of them there.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/uninitialized.h"
#include "passthrough/inode_state.h"
#include "state/saved_frames.h"

namespace virtiofsd {
namespace {

// No mount has this index, so no file has this identity.
constexpr std::uint16_t kNoMount = 0xffff;
static_assert(kNoMount > Mounts::kMost);

bool is_of(FdRef fd, std::span<const std::byte> handle) {
  const auto now = sys::name_to_handle_at(fd);
  return now && std::ranges::equal(pack(*now).view(), handle);
}

// ESTALE unless what was found may be what was sent. With a handle `fd` is open on it.
Result<> expect(const SavedInode& saved, const FileIdentity& found, FdRef fd,
                std::span<const std::byte> handle, bool same_files) {
  if (found.type != saved.type) return Errno{ESTALE};
  if (same_files && (found.ino != saved.ino || found.birth != saved.birth)) return Errno{ESTALE};
  if (!handle.empty() && !is_of(fd, handle)) return Errno{ESTALE};
  return {};
}

}  // namespace

// ---- sending ----------------------------------------------------------------------

void InodeStore::describe(SavedRoot& root) const {
  const InodeRecord& record = state_->at(kRootSlot);
  root.ino = record.ino;
  root.birth = record.birth;
  root.inode_generation = state_->inodes.newest_generation();
}

Result<std::string> InodeStore::State::path_in_share(std::uint32_t slot, FdRef fd) {
  std::string top = TRY(sys::path_of(root));
  if (!top.ends_with('/')) top += '/';
  std::string path = TRY(sys::path_of(fd));
  if (!path.starts_with(top)) return Errno{ENOENT};
  path.erase(0, top.size());
  const UniqueFd there = TRY(walk(path));
  UNINITIALIZED struct statx stx;
  TRY(sys::statx(there, kMinimalMask, &stx));
  TRY(verify(at(slot), stx));
  return path;
}

Result<UniqueFd> InodeStore::State::walk(std::string_view path, UniqueFd* above) {
  UniqueFd last;
  FdRef directory = root;
  for (;;) {
    const std::size_t slash = path.find('/');
    const std::string step{path.substr(0, slash)};
    const auto name = Name::parse(step);
    if (!name) return Errno{EBADMSG};
    UniqueFd next = TRY(with_room([&] { return sys::open_path(directory, *name); }));
    if (above != nullptr) *above = std::move(last);
    last = std::move(next);
    if (slash == std::string_view::npos) return last;
    directory = last;
    path.remove_prefix(slash + 1);
  }
}

InodeStore::State::Place InodeStore::State::place_of(
    std::uint32_t slot, const SaveSettings& wanted,
    const std::function<bool(NodeId directory)>& is_sent) {
  InodeRecord& record = at(slot);
  Place place;
  const bool is_open = record.opens.load(std::memory_order_relaxed) != 0;
  const bool is_cold = record.fd.load(std::memory_order_relaxed) < 0;
  const auto handle_of = [&]() -> std::optional<sys::FileHandle> {
    if (auto known = stored_handle(slot)) return known;
    const auto fd = path_fd(slot);
    if (!fd) return std::nullopt;
    auto handle = sys::name_to_handle_at(*fd);
    return handle ? std::optional{*handle} : std::nullopt;
  };
  // The receiver opens them on the root's mount.
  if (wanted.by_handle && record.mount == 0) {
    place.handle = handle_of();
    if (place.handle) {
      place.how = SavedPlace::kHandle;
      return place;
    }
  }

  UNINITIALIZED struct statx stx;
  const auto is_there = [&] {
    return stat_by_name(slot, kMinimalMask, &stx, Room::kMake).has_value() || find_other_name(slot);
  };
  UNINITIALIZED KnownName known;
  // What is cold and not open was only ever known by its name: if that is wrong it is ESTALE here,
  // and the receiver sees it, too.
  const bool trusts = is_cold && !is_open && !wanted.confirm && !wanted.with_handles;
  if ((trusts || is_there()) && known_name(slot, known) && known.name() && is_sent(known.parent)) {
    place.how = SavedPlace::kName;
    place.parent = known.parent;
    place.name.assign(known.text.data(), known.size);
  } else {
    const auto fd = path_fd(slot);
    auto path = fd ? path_in_share(slot, *fd) : Result<std::string>{fd.error()};
    if (!path) return place;
    place.how = SavedPlace::kPath;
    place.name = std::move(*path);
  }
  if (wanted.with_handles) place.handle = handle_of();
  return place;
}

Result<std::uint64_t, Failure> InodeStore::save(FrameWriter& to, const SaveSettings& settings,
                                                const Lost& lost) {
  State& state = *state_;
  enum : std::uint8_t { kNotYet, kOnTheWay, kSent, kSentAsNone };
  const std::uint32_t used = state.inodes.used();
  std::vector<std::uint8_t> progress(used, kNotYet);
  progress[kRootSlot] = kSent;
  const auto is_live = [&](NodeId id) {
    const std::uint32_t slot = slot_of(id);
    return id.value != 0 && slot < used && state.inodes.state(slot) == SlotState::kLive &&
           state.id_of(slot) == id;
  };
  const auto is_sent = [&](NodeId id) { return is_live(id) && progress[slot_of(id)] == kSent; };

  const auto send = [&](std::uint32_t slot) -> Result<void, Failure> {
    const InodeRecord& record = state.at(slot);
    const State::Place place = state.place_of(slot, settings, is_sent);
    SavedInode saved{.id = state.id_of(slot).value,
                     .lookups = record.lookups.load(std::memory_order_relaxed),
                     .parent = place.parent.value,
                     .ino = record.ino,
                     .birth = record.birth,
                     .place = place.how,
                     .type = record.type};
    saved.open = record.opens.load(std::memory_order_relaxed) != 0 ? 1 : 0;
    if (place.how == SavedPlace::kNone && saved.open != 0) TRY(lost(NodeId{saved.id}));
    const PackedHandle handle = place.handle ? pack(*place.handle) : PackedHandle{};
    saved.name_size = static_cast<std::uint16_t>(place.name.size());
    saved.handle_size = static_cast<std::uint16_t>(handle.size);
    progress[slot] = place.how == SavedPlace::kNone ? kSentAsNone : kSent;
    return put_saved(to, SavedKind::kInode,
                     {raw_bytes(saved), std::as_bytes(std::span{place.name}), handle.view()});
  };

  std::uint64_t count = 0;
  std::vector<std::uint32_t> chain;
  for (std::uint32_t slot = kRootSlot + 1; slot < used; ++slot) {
    if (state.inodes.state(slot) != SlotState::kLive) continue;
    // Up to what was sent, or to where names that are out of date close a circle; then down.
    chain.clear();
    for (std::uint32_t at = slot; progress[at] == kNotYet;) {
      progress[at] = kOnTheWay;
      chain.push_back(at);
      const NodeId parent{state.at(at).parent.load(std::memory_order_relaxed)};
      if (!is_live(parent)) break;
      at = slot_of(parent);
    }
    for (auto next = chain.rbegin(); next != chain.rend(); ++next) {
      if (!state.try_pin(state.id_of(*next))) continue;
      const State::Pinned pinned{state, *next};
      TRY(send(*next));
      ++count;
    }
  }
  return count;
}

// ---- receiving --------------------------------------------------------------------

Result<> InodeStore::State::claim(const SavedInode& saved, const FileIdentity& identity,
                                  NodeId parent, std::optional<Name> name, UniqueFd fd,
                                  bool submount) {
  const NodeId id{saved.id};
  const std::uint32_t slot = slot_of(id);
  if (slot <= kRootSlot || generation_of(id) == 0) return Errno{EBADMSG};
  if (inodes.live() >= settings.max_inodes) return Errno{ENFILE};
  const std::uint64_t hash = identity.hash();
  {
    InodeIndex::Shard& of = index.shard(hash);
    Lock lock(of.mutex);
    // One file, two nodes: by a name that was out of date.
    if (index.find(of, identity, hash) != 0) return Errno{ESTALE};
  }
  std::uint32_t reference = 0;
  if (name) {
    auto added = blobs.add(std::as_bytes(std::span{name->view()}));
    if (!added) return Errno{ENFILE};
    reference = *added;
  }
  if (const auto claimed = inodes.claim(slot, generation_of(id)); !claimed) {
    if (reference != 0) blobs.remove(reference);
    return claimed.error() == Errno{EEXIST} ? Errno{EBADMSG} : claimed.error();
  }
  const bool is_cold = !fd;
  fill(slot, identity, submount, std::move(fd));
  InodeRecord& record = at(slot);
  record.lookups.store(saved.lookups, std::memory_order_relaxed);
  if (saved.lookups == 0) remembered.fetch_add(1, std::memory_order_relaxed);
  if (name) {
    record.parent.store(parent.value, std::memory_order_relaxed);
    record.name.store(reference, std::memory_order_relaxed);
    record.name_hash.store(hash_name(name->view()), std::memory_order_relaxed);
  }
  {
    InodeIndex::Shard& of = index.shard(hash);
    Lock lock(of.mutex);
    index.link(of, slot, hash);
    // What the guest has forgotten goes when it is let go of: not before all have come.
    const bool is_held = saved.lookups == 0;
    inodes.publish(slot, is_held ? 1 : 0);
    if (is_held) held_by_load.push_back(slot);
  }
  if (name && is_cold) count_cold(parent, 1);
  if (name) names_seen.note(parent, hash_name(name->view()), slot);
  keep_budget();
  return {};
}

Result<> InodeStore::State::load_by_name(const SavedInode& saved, Name name,
                                         std::span<const std::byte> handle, bool same_files) {
  const NodeId parent{saved.parent};
  if (!try_pin(parent)) return Errno{EBADMSG};  // a directory comes first
  const Pinned pinned{*this, slot_of(parent)};
  const FdRef directory = TRY(path_fd(pinned.slot));
  UNINITIALIZED struct statx stx;
  TRY(sys::statx(directory, name, AT_NO_AUTOMOUNT, kMinimalMask, &stx));
  std::optional<Mount> mount = mounts.known(stx);
  UniqueFd fd;
  // What a descriptor says counts: the name may mean another file by now.
  if (!mount || !FileIdentity::of(stx, *mount).lasts() || !handle.empty()) {
    fd = TRY(with_room([&] { return sys::open_path(directory, name); }));
    TRY(sys::statx(fd, kMinimalMask, &stx));
    mount = TRY(mount_of(stx, fd));
  }
  const FileIdentity identity = FileIdentity::of(stx, *mount);
  TRY(expect(saved, identity, fd, handle, same_files));
  if (identity.lasts()) fd.reset();
  const bool submount = mount->index != at(pinned.slot).mount;
  return claim(saved, identity, parent, name, std::move(fd), submount);
}

Result<> InodeStore::State::load_by_path(const SavedInode& saved, std::string_view path,
                                         std::span<const std::byte> handle, bool same_files) {
  UniqueFd above;  // none: the root
  UniqueFd fd = TRY(walk(path, &above));
  std::uint16_t mount = 0;
  if (above) {
    UNINITIALIZED struct statx stx;
    TRY(sys::statx(above, kMinimalMask, &stx));
    mount = TRY(mount_of(stx, above)).index;
  }
  return load_open(saved, std::move(fd), handle, same_files, mount);
}

Result<> InodeStore::State::load_open(const SavedInode& saved, UniqueFd fd,
                                      std::span<const std::byte> handle, bool same_files,
                                      std::uint16_t mount_above) {
  UNINITIALIZED struct statx stx;
  TRY(sys::statx(fd, kMinimalMask, &stx));
  const Mount mount = TRY(mount_of(stx, fd));
  const FileIdentity identity = FileIdentity::of(stx, mount);
  TRY(expect(saved, identity, fd, handle, same_files));
  return claim(saved, identity, {}, std::nullopt, std::move(fd), mount.index != mount_above);
}

Result<> InodeStore::load(const SavedInode& saved, const std::string& name,
                          std::span<const std::byte> handle, bool same_files) {
  State& state = *state_;
  switch (saved.place) {
    case SavedPlace::kName: {
      const auto parsed = Name::parse(name);
      if (!parsed) return Errno{EBADMSG};
      return state.load_by_name(saved, *parsed, handle, same_files);
    }
    case SavedPlace::kPath:
      return state.load_by_path(saved, name, handle, same_files);
    case SavedPlace::kHandle: {
      const auto wanted = unpack(handle);
      if (!wanted) return Errno{EBADMSG};
      if (!state.settings.use_file_handles) return Errno{EPERM};
      auto fd = TRY(state.with_room([&] {
        return sys::open_by_handle_at(state.mount_for_handles, *wanted, O_PATH | O_NOFOLLOW);
      }));
      return state.load_open(saved, std::move(fd), handle, same_files, /*mount_above=*/0);
    }
    case SavedPlace::kNone:
      // ESTALE whatever is asked of it, as it has no descriptor, no name and nobody's identity.
      return state.claim(saved,
                         {.ino = saved.id, .birth = 0, .mount = kNoMount, .type = saved.type}, {},
                         std::nullopt, {}, false);
  }
  return Errno{EBADMSG};
}

void InodeStore::begin_load() {
  State& state = *state_;
  for (const std::uint32_t slot : std::exchange(state.held_by_load, {})) state.unpin(slot);
  while (state.forgotten.pop()) {
  }
  for (std::uint32_t slot = kRootSlot + 1; slot < state.inodes.used(); ++slot) {
    if (state.inodes.state(slot) == SlotState::kLive)
      state.drop(state.id_of(slot), ~std::uint64_t{0});
  }
  state.inodes.rewind(kRootSlot + 1);
}

void InodeStore::end_load(std::uint32_t generation) {
  state_->inodes.end_claims(generation);
}

Result<InodeRef> InodeStore::pin_loaded(NodeId id) {
  if (!state_->try_pin(id)) return Errno{ESTALE};
  return InodeRef{this, slot_of(id)};
}

}  // namespace virtiofsd
