// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/handle_table.h"

#include <array>
#include <atomic>
#include <utility>

#include "base/check.h"
#include "state/records.h"
#include "state/slab.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

constexpr std::uint32_t kChunk = 1024;

constexpr std::uint32_t slot_of(HandleId id) {
  return static_cast<std::uint32_t>(id.value);
}
constexpr std::uint32_t generation_of(HandleId id) {
  return static_cast<std::uint32_t>(id.value >> 32);
}

}  // namespace

struct HandleTable::State {
  using Chunk = std::array<OpenState, kChunk>;

  State(InodeStore& store, std::uint32_t wanted)
      : inodes(store),
        arena(store.arena()),
        handles(arena->section(SectionKind::kHandles)),
        limit(wanted),
        chunks(handles.capacity() / kChunk + 1) {}

  InodeStore& inodes;
  std::shared_ptr<Arena> arena;
  HandleSlab handles;
  std::uint32_t limit;
  // Private memory beside the records, in chunks that are made once and stay.
  std::vector<std::atomic<Chunk*>> chunks;
  Mutex growing;
  std::vector<std::unique_ptr<Chunk>> owned GUARDED_BY(growing);

  OpenState& open_state(std::uint32_t slot) {
    std::atomic<Chunk*>& place = chunks[slot / kChunk];
    Chunk* chunk = place.load(std::memory_order_acquire);
    if (chunk == nullptr) {
      Lock lock(growing);
      chunk = place.load(std::memory_order_relaxed);
      if (chunk == nullptr) {
        owned.push_back(std::make_unique<Chunk>());
        chunk = owned.back().get();
        place.store(chunk, std::memory_order_release);
      }
    }
    return (*chunk)[slot % kChunk];
  }

  void unpin(std::uint32_t slot) {
    if (handles.unpin(slot)) finish(slot);
  }

  void finish(std::uint32_t slot) {
    HandleRecord& record = handles.at(slot);
    UniqueFd closes{std::exchange(record.fd, -1)};
    InodeRef inode = std::move(open_state(slot).inode);
    inodes.closed(inode);
    handles.free(slot);
  }

  // Rare, so a walk over all: nothing leads from a node to its handles.
  Result<UniqueFd> path_of(NodeId node) {
    const std::uint32_t used = handles.used();
    for (std::uint32_t slot = 1; slot < used; ++slot) {
      if (handles.state(slot) != SlotState::kLive) continue;
      if (!handles.try_pin(slot, handles.generation(slot))) continue;
      const bool found = handles.at(slot).node == node.value;
      Result<UniqueFd> path = Errno{ESTALE};
      if (found) path = sys::reopen(FdRef{handles.at(slot).fd}, O_PATH);
      unpin(slot);
      if (found) return path;
    }
    return Errno{ESTALE};
  }

  // What is in a busy slot from now on, whatever was there before.
  void fill(std::uint32_t slot, HandleKind kind, InodeRef inode, UniqueFd fd,
            std::uint32_t open_flags) {
    HandleRecord& record = handles.at(slot);
    record.node = inode.id().value;
    record.fd = fd.release();
    record.open_flags = open_flags;
    record.kind = static_cast<std::uint16_t>(kind);
    record.flock.store(0, std::memory_order_relaxed);
    OpenState& open = open_state(slot);
    inodes.opened(inode);
    open.inode = std::move(inode);
    {
      Lock lock(open.directory_lock);
      open.directory_offset = 0;
    }
    open.hints.store(0, std::memory_order_relaxed);
    handles.publish(slot, 0);
  }

  bool is(std::uint32_t slot, HandleKind kind) {
    return handles.at(slot).kind == static_cast<std::uint16_t>(kind);
  }
};

HandleRef::HandleRef(HandleRef&& other) noexcept
    : table_(std::exchange(other.table_, nullptr)), slot_(other.slot_) {}

HandleRef& HandleRef::operator=(HandleRef&& other) noexcept {
  if (this != &other) {
    drop();
    table_ = std::exchange(other.table_, nullptr);
    slot_ = other.slot_;
  }
  return *this;
}

HandleRef::~HandleRef() {
  drop();
}

void HandleRef::drop() {
  if (table_ != nullptr) std::exchange(table_, nullptr)->state_->unpin(slot_);
}

HandleId HandleRef::id() const {
  return HandleId{(std::uint64_t{table_->state_->handles.generation(slot_)} << 32) | slot_};
}
FdRef HandleRef::fd() const {
  return FdRef{table_->state_->handles.at(slot_).fd};
}
std::uint32_t HandleRef::open_flags() const {
  return table_->state_->handles.at(slot_).open_flags;
}
NodeId HandleRef::node() const {
  return NodeId{table_->state_->handles.at(slot_).node};
}
const InodeRef& HandleRef::inode() const {
  return state().inode;
}
int HandleRef::flock() const {
  return table_->state_->handles.at(slot_).flock.load(std::memory_order_relaxed);
}
void HandleRef::note_flock(int operation) const {
  table_->state_->handles.at(slot_).flock.store(static_cast<std::uint8_t>(operation),
                                                std::memory_order_relaxed);
}
OpenState& HandleRef::state() const {
  return table_->state_->open_state(slot_);
}

HandleTable::HandleTable(InodeStore& inodes, std::uint32_t limit)
    : state_(std::make_unique<State>(inodes, limit)) {
  inodes.set_open_files([this](NodeId node) { return state_->path_of(node); });
}

HandleTable::~HandleTable() {
  state_->inodes.set_open_files(nullptr);
  clear();
}

void HandleTable::take_over() {
  State& state = *state_;
  const auto is_whole = [&](std::uint32_t slot) {
    const HandleRecord& record = state.handles.at(slot);
    if (record.kind > static_cast<std::uint16_t>(HandleKind::kDirectory)) return false;
    if (record.fd < 0) return false;
    auto inode = state.inodes.pin_open(NodeId{record.node}, FdRef{record.fd});
    if (!inode) return false;
    OpenState& open = state.open_state(slot);
    state.inodes.opened(*inode);
    open.inode = std::move(*inode);
    return true;  // where a directory stands is found out by the first READDIR
  };
  // A descriptor of what was half done is nobody's any more, and was closed as such.
  state.handles.take_over(is_whole, [&](std::uint32_t slot) { state.handles.at(slot).fd = -1; });
}

Result<HandleId> HandleTable::insert(HandleKind kind, InodeRef inode, UniqueFd fd,
                                     std::uint32_t open_flags) {
  State& state = *state_;
  if (state.handles.live() >= state.limit) return Errno{ENFILE};
  const std::uint32_t slot = TRY(state.handles.allocate());
  const HandleId id{(std::uint64_t{state.handles.generation(slot)} << 32) | slot};
  state.fill(slot, kind, std::move(inode), std::move(fd), open_flags);
  return id;
}

Result<HandleRef> HandleTable::find(HandleId id, HandleKind kind) {
  if (!state_->handles.try_pin(slot_of(id), generation_of(id))) return Errno{EBADF};
  HandleRef found{this, slot_of(id)};
  if (!state_->is(slot_of(id), kind)) return Errno{EBADF};
  return found;
}

Result<HandleRef> HandleTable::find(HandleId id, HandleKind kind, NodeId node) {
  HandleRef found = TRY(find(id, kind));
  if (found.node() != node) return Errno{EBADF};
  return found;
}

Result<> HandleTable::release(HandleId id, HandleKind kind, NodeId node) {
  const HandleRef found = TRY(find(id, kind, node));
  // Two releases at once: the second finds it dying. Our pin goes last.
  if (state_->handles.retire(slot_of(id), generation_of(id))) state_->finish(slot_of(id));
  return {};
}

void HandleTable::clear() {
  const std::uint32_t used = state_->handles.used();
  for (std::uint32_t slot = 1; slot < used; ++slot) {
    if (state_->handles.retire(slot, state_->handles.generation(slot))) state_->finish(slot);
  }
}

std::uint32_t HandleTable::count() const {
  return state_->handles.live();
}

std::uint32_t HandleTable::newest_generation() const {
  return state_->handles.newest_generation();
}

Result<void, Failure> HandleTable::for_each(
    const std::function<Result<void, Failure>(const HandleRef&, HandleKind)>& what) {
  HandleSlab& handles = state_->handles;
  for (std::uint32_t slot = 1; slot < handles.used(); ++slot) {
    if (!handles.try_pin(slot, handles.generation(slot))) continue;
    const HandleRef handle{this, slot};
    TRY(what(handle, static_cast<HandleKind>(handles.at(slot).kind)));
  }
  return {};
}

void HandleTable::begin_load() {
  clear();
  state_->handles.rewind(1);
}

Result<> HandleTable::load(HandleId id, HandleKind kind, InodeRef inode, UniqueFd fd,
                           std::uint32_t open_flags) {
  State& state = *state_;
  if (state.handles.live() >= state.limit) return Errno{ENFILE};
  if (generation_of(id) == 0) return Errno{EBADMSG};
  const auto claimed = state.handles.claim(slot_of(id), generation_of(id));
  if (!claimed) return claimed.error() == Errno{EEXIST} ? Errno{EBADMSG} : claimed.error();
  state.fill(slot_of(id), kind, std::move(inode), std::move(fd), open_flags);
  return {};
}

void HandleTable::end_load(std::uint32_t generation) {
  state_->handles.end_claims(generation);
}

}  // namespace virtiofsd
