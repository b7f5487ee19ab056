// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/inode_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/uninitialized.h"
#include "passthrough/inode_state.h"
#include "state/plan.h"

namespace virtiofsd {
namespace {

// The only place that says "..": where it leads is checked by the caller.
Result<UniqueFd> open_parent(FdRef directory) {
  UniqueFd fd{::openat(directory.number(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!fd) return Errno::last();
  return fd;
}

}  // namespace

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
  if (!settings.arena) settings.arena = TRY(Arena::create(arena_plan(settings.max_inodes)));
  UNINITIALIZED struct statx stx;
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

  const bool takes_over = state->settings.take_over && state->inodes.used() > kRootSlot;
  if (takes_over) {
    state->take_over();
  } else {
    CHECK(TRY(state->inodes.allocate()) == kRootSlot);
  }
  constexpr std::uint32_t slot = kRootSlot;
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

Result<InodeRef> InodeStore::pin_open(NodeId id, FdRef fd) {
  if (!state_->try_pin(id)) return Errno{ESTALE};
  InodeRef inode{this, slot_of(id)};
  if (!state_->is_own_descriptor(state_->at(inode.slot_), fd)) return Errno{ESTALE};
  return inode;
}

void InodeStore::end_take_over() {
  state_->put_forgotten_in_line();
  for (const std::uint32_t slot : std::exchange(state_->held_by_load, {})) state_->unpin(slot);
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
  if (is_gone || !state_->add_lookups(inode.slot_, 1)) return Errno{ESTALE};
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
    if (by_name || (by_name.error() != Errno{ESTALE} && by_name.error() != Errno{EACCES}))
      return by_name;
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
  const Mount mount = TRY(state.mount_of(*out, fd));
  return InodeRef{
      this, TRY(state.insert(directory.slot_, directory.id(), name, std::move(fd), mount, *out))};
}

Result<InodeRef> InodeStore::adopt(const InodeRef& directory, std::optional<Name> name, FdRef fd,
                                   struct statx* out) {
  State& state = *state_;
  TRY(sys::statx(fd, sys::kStatxMask, out));
  const Mount mount = TRY(state.mount_of(*out, fd));
  const FileIdentity identity = FileIdentity::of(*out, mount);
  const NodeId parent = directory.id();
  if (const auto known = state.find(identity, 1)) {
    InodeRef found{this, *known};
    if (name) state.note_name(*known, parent, *name);
    return found;
  }
  UniqueFd path;
  if (!name || !identity.lasts()) path = TRY(state.witness(directory.slot_, name, fd, identity));
  const bool submount = mount.index != state.at(directory.slot_).mount;
  const std::uint32_t slot =
      TRY(state.find_or_insert(identity, parent, name, std::move(path), submount));
  InodeRef found{this, slot};
  state.note_links(slot, out->stx_nlink);
  state.keep_budget();
  return found;
}

void InodeStore::add_lookup(const InodeRef& inode) {
  (void)state_->add_lookups(inode.slot_, 1);
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
    UNINITIALIZED struct statx stx;
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
  if (!has_cold_children(directory)) return;
  const auto in = state.path_fd(directory.slot_);
  if (!in) return;
  UNINITIALIZED struct statx stx;
  if (!sys::statx(*in, name, AT_NO_AUTOMOUNT, State::kMinimalMask, &stx)) return;
  const auto mount = state.mounts.known(stx);
  if (!mount) return;
  const auto known = state.find(FileIdentity::of(stx, *mount), 0);
  if (!known) return;
  const InodeRef pinned{this, *known};
  // What the guest has forgotten it has no file open of.
  if (state.at(*known).lookups.load(std::memory_order_relaxed) == 0) return;
  if (state.path_fd(*known)) return;
  // The name we knew is no longer its own, but this one is.
  state.note_name(*known, directory.id(), name);
  // Best effort: a share that changes underneath may have taken it away already.
  if (!state.path_fd(*known)) log::debug("a name went away before its inode was opened");
}

void InodeStore::after_removal(const InodeRef& directory, Name name) {
  const auto expected = state_->find_by_name(directory.id(), name);
  if (!expected) return;
  const InodeRef pinned{this, *expected};
  std::uint8_t one = InodeRecord::kOneLink;
  state_->at(*expected).links.compare_exchange_strong(one, InodeRecord::kNoLink,
                                                      std::memory_order_relaxed);
}

bool InodeStore::has_cold_children(const InodeRef& directory) {
  return state_->at(directory.slot_).cold_children.load(std::memory_order_relaxed) != 0;
}

void InodeStore::before_rename(const InodeRef& from_directory, Name from,
                               const InodeRef& to_directory, Name to, bool exchange) {
  OtherNames& hints = state_->other_names;
  hints.add(from_directory.id(), from.view(), to_directory.id(), to.view());
  if (exchange) hints.add(to_directory.id(), to.view(), from_directory.id(), from.view());
}

void InodeStore::after_rename(const InodeRef& from_directory, Name from,
                              const InodeRef& to_directory, Name to, bool exchange) {
  State& state = *state_;
  // Mostly the record is known that had the name, and need not be looked for by its identity. If
  // that was another file, the one that was moved is found by the hint.
  if (const auto expected =
          exchange ? std::nullopt : state.find_by_name(from_directory.id(), from)) {
    const InodeRef pinned{this, *expected};
    state.note_name(*expected, to_directory.id(), to);
    return;
  }
  if (!has_cold_children(from_directory) && !(exchange && has_cold_children(to_directory))) return;
  const auto follow = [&](const InodeRef& directory, Name name) {
    const auto in = state.path_fd(directory.slot_);
    if (!in) return;
    UNINITIALIZED struct statx stx;
    if (!sys::statx(*in, name, AT_NO_AUTOMOUNT, State::kMinimalMask, &stx)) return;
    const auto mount = state.mounts.known(stx);
    if (!mount) return;
    const auto known = state.find(FileIdentity::of(stx, *mount), 0);
    if (!known) return;
    const InodeRef pinned{this, *known};
    state.note_name(*known, directory.id(), name);
  };
  follow(to_directory, to);
  if (exchange) follow(from_directory, from);
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

std::string InodeStore::last_path(NodeId id) const {
  constexpr int kMostNames = 64;  // names that are out of date may lead in a circle
  std::string path;
  for (int names = 0; names < kMostNames && state_->try_pin(id); ++names) {
    const State::Pinned pinned{*state_, slot_of(id)};
    UNINITIALIZED KnownName known;
    if (!state_->known_name(pinned.slot, known)) break;
    path.insert(0, {known.text.data(), known.size});
    if (known.parent.value == kRootSlot) break;
    path.insert(0, "/");
    id = known.parent;
  }
  return path;
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
