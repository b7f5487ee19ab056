// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/passthrough.h"

#include <cmath>
#include <functional>
#include <utility>

#include "base/log.h"
#include "passthrough/credentials.h"
#include "state/records.h"
#include "state/slab.h"
#include "sys/files.h"
#include "sys/process.h"

namespace virtiofsd {

Passthrough::Timeout Passthrough::timeout_of(double seconds) {
  // A year is for ever, and far from where a guest's arithmetic could overflow.
  constexpr double kLongest = 365.0 * 86400.0;
  if (!(seconds > 0)) return {};
  if (seconds > kLongest) seconds = kLongest;
  const double whole = std::floor(seconds);
  return {.seconds = static_cast<std::uint64_t>(whole),
          .nanoseconds = static_cast<std::uint32_t>((seconds - whole) * 1e9)};
}

Passthrough::Passthrough(Settings settings, std::unique_ptr<InodeStore> inodes)
    : settings_(std::move(settings)),
      entry_timeout_(timeout_of(settings_.entry_timeout)),
      attribute_timeout_(timeout_of(settings_.attribute_timeout)),
      negative_timeout_(timeout_of(settings_.negative_timeout)),
      inodes_(std::move(inodes)),
      handles_(*inodes_, settings_.max_handles),
      locks_(*inodes_,
             {.waiters = settings_.max_lock_waiters, .owners = settings_.max_lock_owners}) {}

Passthrough::~Passthrough() = default;

Result<std::unique_ptr<Passthrough>, Failure> Passthrough::create(UniqueFd root,
                                                                  Settings settings) {
  struct statx stx {};
  if (const auto known = sys::statx(root, sys::kStatxMask, &stx); !known)
    return Failure("can't look at the shared directory", known.error());
  if (!S_ISDIR(stx.stx_mode)) return Failure("what is to be shared is not a directory");
  auto inodes = InodeStore::create(std::move(root), settings.inodes);
  if (!inodes) return Failure("can't set up the shared directory", inodes.error());
  const bool takes_over = settings.inodes.take_over;
  std::unique_ptr<Passthrough> made(new Passthrough(std::move(settings), std::move(*inodes)));
  if (takes_over) {
    made->handles_.take_over();
    made->locks_.take_over();
    made->inodes_->end_take_over();
  }
  return made;
}

namespace {

template <typename Slab>
void add_descriptors(Slab slab, std::uint32_t first, std::vector<int>& to) {
  for (std::uint32_t slot = first; slot < slab.used(); ++slot) {
    const SlotState state = slab.state(slot);
    if (state != SlotState::kLive && state != SlotState::kAside) continue;
    const int fd = slab.at(slot).fd;
    if (fd >= 0) to.push_back(fd);
  }
}

template <typename Slab>
void renumber_in(Slab slab, std::uint32_t first, const std::function<int(int)>& number_of) {
  for (std::uint32_t slot = first; slot < slab.used(); ++slot) {
    const SlotState state = slab.state(slot);
    const bool is_kept = state == SlotState::kLive || state == SlotState::kAside;
    const int fd = slab.at(slot).fd;
    slab.at(slot).fd = is_kept && fd >= 0 ? number_of(fd) : -1;
  }
}

// The root's is not among them: each process has its own.
constexpr std::uint32_t kFirstInode = 2;

}  // namespace

std::vector<int> Passthrough::descriptors_kept_in(const Arena& arena) {
  std::vector<int> kept;
  add_descriptors(InodeSlab{arena.section(SectionKind::kInodes)}, kFirstInode, kept);
  add_descriptors(HandleSlab{arena.section(SectionKind::kHandles)}, 1, kept);
  add_descriptors(LockOwnerSlab{arena.section(SectionKind::kLockOwners)}, 1, kept);
  return kept;
}

void Passthrough::renumber_descriptors(const Arena& arena,
                                       const std::function<int(int)>& number_of) {
  renumber_in(InodeSlab{arena.section(SectionKind::kInodes)}, kFirstInode, number_of);
  renumber_in(HandleSlab{arena.section(SectionKind::kHandles)}, 1, number_of);
  renumber_in(LockOwnerSlab{arena.section(SectionKind::kLockOwners)}, 1, number_of);
}

Result<> Passthrough::init(fuse::Negotiated& session) {
  destroy();
  // Both live in extended attributes.
  if (!settings_.xattr) session.flags &= ~(std::uint64_t{FUSE_POSIX_ACL} | FUSE_SECURITY_CTX);
  return {};
}

void Passthrough::destroy() {
  // Waits end first, for a waiter pins its handle; handles pin their inodes.
  locks_.clear();
  handles_.clear();
  inodes_->clear();
}

void Passthrough::thread_started() {
  if (const auto separate = sys::separate_thread(); !separate) {
    log::warn("a thread can't have its own umask and working directory: {}",
              separate.error().text());
  }
  if (settings_.can_switch_user) prepare_thread_credentials();
}

Result<fuse_file_lock> Passthrough::getlk(fuse::Call& call, const fuse::LockArgs& args) {
  const HandleRef handle = TRY(handles_.find(args.handle, HandleKind::kFile, call.node));
  return locks_.get(handle, args);
}

Result<> Passthrough::setlk(fuse::Call& call, const fuse::LockArgs& args) {
  // The guest sends none that wasn't negotiated, and keeps locks to itself when told ENOSYS.
  if (!(args.flock ? settings_.remote_flock : settings_.remote_posix_locks)) return Errno{ENOSYS};
  const HandleRef handle = TRY(handles_.find(args.handle, HandleKind::kFile, call.node));
  return locks_.set(call, handle, args);
}

void Passthrough::interrupt(std::uint64_t unique) {
  locks_.interrupt(unique);
}

void Passthrough::cancel_waits() {
  locks_.cancel_waits();
}

}  // namespace virtiofsd
