// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/locks.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/sync.h"
#include "passthrough/lock_records.h"
#include "sys/files.h"

namespace virtiofsd {

namespace {

using Range = LockRange;
constexpr std::uint64_t kEnd = Range::kEnd;

// How long a canceller keeps waking a waiter that does not leave (its file
// system may not let it be interrupted); it stays cancelled after that.
constexpr int kWakes = 64;
constexpr auto kWakePause = std::chrono::milliseconds(1);

// `held` (sorted, disjoint) with `with` laid over it; F_UNLCK leaves a hole.
// What is as it was keeps its record.
std::vector<Range> laid_over(const std::vector<Range>& held, const Range& with) {
  // Only what it overlaps changes, and the neighbours may join it.
  auto first = std::ranges::lower_bound(held, with.start, {}, &Range::end);
  auto last = std::ranges::upper_bound(first, held.end(), with.end, {}, &Range::start);
  if (first != held.begin()) --first;
  if (last != held.end()) ++last;
  std::vector<Range> result;
  result.reserve(held.size() + 2);
  result.assign(held.begin(), first);
  const auto add = [&result](const Range& range) {
    if (!result.empty() && result.back().continued_by(range)) {
      result.back().end = range.end;
      result.back().record = 0;
    } else {
      result.push_back(range);
    }
  };
  bool placed = with.type == F_UNLCK;
  const auto place = [&] {
    if (!placed) add(with);
    placed = true;
  };
  for (const Range& range : std::ranges::subrange(first, last)) {
    if (range.start > with.end) place();
    if (!range.overlaps(with)) {
      add(range);
      continue;
    }
    if (range.start < with.start) {
      Range left = range;
      left.end = with.start - 1;
      left.record = 0;
      add(left);
    }
    if (range.end > with.end) {
      place();
      Range right = range;
      right.start = with.end + 1;
      right.record = 0;
      add(right);
    }
  }
  place();
  result.insert(result.end(), last, held.end());
  return result;
}

struct flock kernel_lock(const Range& range) {
  struct flock lock;
  std::memset(&lock, 0, sizeof lock);  // l_pid must be 0 for OFD locks
  lock.l_type = static_cast<short>(range.type);
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(range.start);
  lock.l_len = range.end == kEnd ? 0 : static_cast<off_t>(range.end - range.start + 1);
  return lock;
}

// EINTR is not retried here: a waiter must look whether it was cancelled.
Result<> ofd_lock(FdRef fd, int command, const Range& range) {
  struct flock lock = kernel_lock(range);
  if (::fcntl(fd.number(), command, &lock) == 0) return {};
  // POSIX lets the kernel say either for "another holds it".
  if (errno == EACCES && command == F_OFD_SETLK) return Errno{EAGAIN};
  return Errno::last();
}

Result<> ofd_set(FdRef fd, const Range& range) {
  for (;;) {
    auto result = ofd_lock(fd, F_OFD_SETLK, range);
    if (result || result.error() != Errno{EINTR}) return result;
  }
}

Result<> file_lock(FdRef fd, int operation) {
  if (::flock(fd.number(), operation) == 0) return {};
  return Errno::last();
}

bool can_read(int flags) {
  return (flags & O_ACCMODE) == O_RDONLY || (flags & O_ACCMODE) == O_RDWR;
}
bool can_write(int flags) {
  return (flags & O_ACCMODE) == O_WRONLY || (flags & O_ACCMODE) == O_RDWR;
}
bool serves(int access, std::uint32_t type) {
  return type == F_UNLCK || (type == F_RDLCK ? can_read(access) : can_write(access));
}

Result<> check(const fuse::LockArgs& args) {
  if (args.type != F_RDLCK && args.type != F_WRLCK && args.type != F_UNLCK) return Errno{EINVAL};
  if (args.start > args.end || args.end > kEnd) return Errno{EINVAL};
  return {};
}

void on_wake(int) {}

void install_wake_handler() {
  struct sigaction action;
  std::memset(&action, 0, sizeof action);  // no SA_RESTART
  action.sa_handler = on_wake;
  sigemptyset(&action.sa_mask);
  CHECK(::sigaction(lock_wake_signal(), &action, nullptr) == 0);
}

// This thread can be woken out of a system call while it lives. A wake sent
// before its end is delivered in its end, not in a later system call.
class WakeSignalOpen {
 public:
  WakeSignalOpen() {
    sigset_t wake;
    sigemptyset(&wake);
    sigaddset(&wake, lock_wake_signal());
    CHECK(::pthread_sigmask(SIG_UNBLOCK, &wake, &before_) == 0);
  }
  ~WakeSignalOpen() { CHECK(::pthread_sigmask(SIG_SETMASK, &before_, nullptr) == 0); }
  WakeSignalOpen(const WakeSignalOpen&) = delete;
  WakeSignalOpen& operator=(const WakeSignalOpen&) = delete;

 private:
  sigset_t before_;
};

// An open file description of an owner's, and its record. Waiters share it, so
// that an upgrade or a flush doesn't close it under them.
class OwnedFd {
 public:
  OwnedFd(LockRecords& records, std::uint32_t record, UniqueFd fd, int access)
      : records_(records), record_(record), fd_(std::move(fd)), access_(access) {}
  ~OwnedFd() { records_.remove_descriptor(record_); }  // while it is open still
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;

  std::uint32_t record() const { return record_; }
  FdRef fd() const { return fd_; }
  int access() const { return access_; }

 private:
  LockRecords& records_;
  const std::uint32_t record_;
  const UniqueFd fd_;
  const int access_;
};

// The record locks of one owner on one inode.
struct Owner {
  Owner(NodeId of_node, LockOwner wanted) : node(of_node), id(wanted) {}

  const NodeId node;
  const LockOwner id;
  Mutex mutex;
  std::shared_ptr<OwnedFd> descriptor GUARDED_BY(mutex);
  std::vector<Range> ranges GUARDED_BY(mutex);  // each with its record
  bool dead GUARDED_BY(mutex) = false;          // cleared; nothing may be set any more

  std::atomic<std::size_t> held{0};    // ranges.size(), for who doesn't have the mutex
  std::atomic<std::uint32_t> uses{0};  // calls at work; changes up only under State::mutex
};

// What a record lock waits for; no node in that of a flock(2).
struct Wanted {
  NodeId node;
  LockOwner owner;
  Range range;
};

struct Waiter {
  Wanted wanted;
  std::uint64_t unique = 0;
  HandleId handle;
  const fuse::Scheduler* scheduler = nullptr;
  pthread_t thread{};
  std::atomic<bool> cancelled{false};
  std::atomic<bool> given_up{false};  // by the guest, not only here
  std::atomic<bool> released{false};  // the handle was released meanwhile
};

}  // namespace

int lock_wake_signal() {
  return SIGRTMIN + 7;
}

struct LockCore::State {
  using Owners = std::unordered_map<LockOwner, std::shared_ptr<Owner>>;

  State(Limits wanted, std::shared_ptr<Arena> arena) : limits(wanted), records(std::move(arena)) {}

  const Limits limits;
  LockRecords records;

  // Never held across a system call nor together with an Owner's.
  mutable Mutex mutex;
  std::unordered_map<NodeId, Owners> nodes GUARDED_BY(mutex);
  std::atomic<std::uint32_t> owner_count{0};  // written under mutex
  std::atomic<std::uint32_t> range_count{0};

  mutable Mutex waiters_mutex;
  std::vector<Waiter*> waiters GUARDED_BY(waiters_mutex);
  std::atomic<std::uint32_t> waiter_count{0};  // waiters.size(), written under the mutex
  Condition waiter_left;

  // A call's hold on an owner's entry: it stays in the table meanwhile.
  class Use {
   public:
    Use() = default;
    explicit Use(std::shared_ptr<Owner> owner) : owner_(std::move(owner)) {}
    Use(Use&&) = default;
    Use& operator=(Use&&) = delete;
    ~Use() {
      if (owner_) owner_->uses.fetch_sub(1, std::memory_order_acq_rel);
    }
    explicit operator bool() const { return owner_ != nullptr; }
    Owner& operator*() const { return *owner_; }
    Owner* operator->() const { return owner_.get(); }

   private:
    std::shared_ptr<Owner> owner_;
  };

  Use use(std::shared_ptr<Owner> owner) REQUIRES(mutex) {
    owner->uses.fetch_add(1, std::memory_order_acq_rel);
    return Use{std::move(owner)};
  }

  Use find(NodeId node, LockOwner owner) EXCLUDES(mutex);
  Result<Use> find_or_add(NodeId node, LockOwner owner) EXCLUDES(mutex);
  std::vector<std::pair<LockOwner, Use>> all_of(NodeId node) EXCLUDES(mutex);
  std::vector<LockOwner> in_the_way_of(const Wanted& wanted) EXCLUDES(mutex);
  void sweep(Owners& owners, std::vector<std::shared_ptr<Owner>>& swept) REQUIRES(mutex);
  void sweep(NodeId node) EXCLUDES(mutex);

  Result<> prepare(Owner& owner, LockOpener& opener, std::uint32_t type) REQUIRES(owner.mutex);
  Result<> apply(Owner& owner, LockOpener& opener, const Range& range) EXCLUDES(owner.mutex);
  void hold(Owner& owner, std::vector<Range> ranges) REQUIRES(owner.mutex);
  void lose(Owner& owner) REQUIRES(owner.mutex);
  void drop(Owner& owner, Range range) REQUIRES(owner.mutex);
  void restore(Owner& owner, const Range& range) REQUIRES(owner.mutex);
  void drop_handle(Owner& owner, HandleId handle) EXCLUDES(owner.mutex);
  void take_over() EXCLUDES(mutex);
  void take_over(Owner& owner, std::vector<Range> found) REQUIRES(owner.mutex);

  template <typename Block>
  Result<> wait(fuse::Call& call, const LockTarget& target, Waiter& waiter, const Block& block);
  // All who wait already, or none when there are too many.
  std::optional<std::vector<Wanted>> enter(Waiter& waiter) EXCLUDES(waiters_mutex);
  bool closes_a_round(const Wanted& wanted, std::vector<Wanted> waiting) EXCLUDES(mutex);
  void leave(Waiter& waiter) EXCLUDES(waiters_mutex);
  enum class Cause : std::uint8_t { kStop, kGuest, kRelease };
  template <typename Matches>
  void cancel(Cause cause, const Matches& matches) EXCLUDES(waiters_mutex);
};

LockCore::State::Use LockCore::State::find(NodeId node, LockOwner owner) {
  if (owner_count.load(std::memory_order_acquire) == 0) return {};
  Lock lock(mutex);
  const auto owners = nodes.find(node);
  if (owners == nodes.end()) return {};
  const auto entry = owners->second.find(owner);
  if (entry == owners->second.end()) return {};
  return use(entry->second);
}

Result<LockCore::State::Use> LockCore::State::find_or_add(NodeId node, LockOwner owner) {
  std::vector<std::shared_ptr<Owner>> swept;  // closes its descriptors without the mutex
  Lock lock(mutex);
  const auto owners = nodes.find(node);
  if (owners != nodes.end()) {
    if (const auto entry = owners->second.find(owner); entry != owners->second.end()) {
      return use(entry->second);
    }
  }
  if (owner_count.load(std::memory_order_relaxed) >= limits.owners) {
    for (auto it = nodes.begin(); it != nodes.end();) {
      sweep(it->second, swept);
      it = it->second.empty() ? nodes.erase(it) : std::next(it);
    }
    if (owner_count.load(std::memory_order_relaxed) >= limits.owners) return Errno{ENOLCK};
  }
  auto added = std::make_shared<Owner>(node, owner);
  nodes[node].emplace(owner, added);
  owner_count.fetch_add(1, std::memory_order_release);
  return use(std::move(added));
}

std::vector<std::pair<LockOwner, LockCore::State::Use>> LockCore::State::all_of(NodeId node) {
  std::vector<std::pair<LockOwner, Use>> all;
  if (owner_count.load(std::memory_order_acquire) == 0) return all;
  Lock lock(mutex);
  const auto owners = nodes.find(node);
  if (owners == nodes.end()) return all;
  all.reserve(owners->second.size());
  for (const auto& [id, owner] : owners->second) all.emplace_back(id, use(owner));
  return all;
}

// Whose locks keep this one from being set.
std::vector<LockOwner> LockCore::State::in_the_way_of(const Wanted& wanted) {
  std::vector<LockOwner> holders;
  for (const auto& [id, owner] : all_of(wanted.node)) {
    if (id == wanted.owner) continue;
    Lock lock(owner->mutex);
    if (std::ranges::any_of(owner->ranges,
                            [&](const Range& held) { return held.excludes(wanted.range); })) {
      holders.push_back(id);
    }
  }
  return holders;
}

// Takes out the owners that hold nothing and that no call works on.
void LockCore::State::sweep(Owners& owners, std::vector<std::shared_ptr<Owner>>& swept) {
  for (auto it = owners.begin(); it != owners.end();) {
    Owner& owner = *it->second;
    // uses first: a call that ends stores `held` before it lets go.
    if (owner.uses.load(std::memory_order_acquire) != 0 ||
        owner.held.load(std::memory_order_acquire) != 0) {
      ++it;
      continue;
    }
    swept.push_back(std::move(it->second));
    it = owners.erase(it);
    owner_count.fetch_sub(1, std::memory_order_release);
  }
}

void LockCore::State::sweep(NodeId node) {
  std::vector<std::shared_ptr<Owner>> swept;
  Lock lock(mutex);
  const auto owners = nodes.find(node);
  if (owners == nodes.end()) return;
  sweep(owners->second, swept);
  if (owners->second.empty()) nodes.erase(owners);
}

// Sees to it that the owner has a descriptor that can carry a lock of `type`.
//
// It is opened for no more than locks need: a descriptor open for writing
// would keep the host from executing the file, and copies it up on an overlay.
Result<> LockCore::State::prepare(Owner& owner, LockOpener& opener, std::uint32_t type) {
  if (owner.descriptor && serves(owner.descriptor->access(), type)) return {};
  int access = type == F_RDLCK ? O_RDONLY : O_RDWR;
  auto opened = opener.open(access);
  if (!opened && type == F_WRLCK) {
    // A file that may be written but not read.
    access = O_WRONLY;
    opened = opener.open(access);
  }
  if (!opened) {
    // What fcntl(2) says when it lacks means; EAGAIN would read as a conflict.
    const Errno error = opened.error();
    if (error == Errno{EMFILE} || error == Errno{ENFILE} || error == Errno{ENOMEM} ||
        error == Errno{EAGAIN}) {
      return Errno{ENOLCK};
    }
    return error;
  }
  const std::uint32_t record = TRY(records.add_descriptor(owner.node, owner.id, *opened, access));
  auto next = std::make_shared<OwnedFd>(records, record, std::move(*opened), access);
  if (!owner.ranges.empty()) {
    // Locks can't move between descriptions, but shared ones can be held by
    // both for a moment. What is held on a write-only descriptor is exclusive.
    if (!serves(access, F_RDLCK) || owner.descriptor->access() == O_WRONLY) return Errno{EBADF};
    for (const Range& range : owner.ranges) TRY(ofd_set(next->fd(), range));
    records.move(owner.ranges, record);
  }
  owner.descriptor = std::move(next);
  return {};
}

// What the owner holds from now on, where it holds less or the room was counted before.
void LockCore::State::hold(Owner& owner, std::vector<Range> ranges) {
  owner.ranges = std::move(ranges);
  owner.held.store(owner.ranges.size(), std::memory_order_release);
}

// Sets `range` in the kernel, the records and the table, or in none of them.
// EAGAIN when another holds it, ECANCELED when the owner was cleared away.
Result<> LockCore::State::apply(Owner& owner, LockOpener& opener, const Range& range) {
  Lock lock(owner.mutex);
  if (range.type == F_UNLCK && owner.ranges.empty()) return {};
  if (owner.dead) return Errno{ECANCELED};
  TRY(prepare(owner, opener, range.type));
  std::vector<Range> next = laid_over(owner.ranges, range);
  const auto before = static_cast<std::uint32_t>(owner.ranges.size());
  const auto after = static_cast<std::uint32_t>(next.size());
  const std::uint32_t more = after > before ? after - before : 0;
  // Counted before it is true, so that many threads together stay below the
  // limit. Dropping a lock always goes, even where it makes two of one.
  if (range_count.fetch_add(more) + more > limits.ranges && more > 0 && range.type != F_UNLCK) {
    range_count.fetch_sub(more);
    return Errno{ENOLCK};
  }
  auto change = records.change(owner.ranges, next, owner.descriptor->record());
  const Result<> set = change ? ofd_set(owner.descriptor->fd(), range) : change.error();
  if (!set) {
    range_count.fetch_sub(more);
    return set.error();
  }
  change->commit();
  if (after < before) range_count.fetch_sub(before - after);
  hold(owner, std::move(next));
  return {};
}

// The way out when the kernel can't do what must be done: closing the
// descriptor always drops its locks.
void LockCore::State::lose(Owner& owner) {
  records.remove(owner.ranges);
  owner.descriptor.reset();
  range_count.fetch_sub(static_cast<std::uint32_t>(owner.ranges.size()));
  hold(owner, {});
}

// Drops `range` whatever happens.
void LockCore::State::drop(Owner& owner, Range range) {
  if (owner.ranges.empty()) return;
  range.type = F_UNLCK;
  std::vector<Range> next = laid_over(owner.ranges, range);
  auto change = records.change(owner.ranges, next, owner.descriptor->record());
  if (!change || !ofd_set(owner.descriptor->fd(), range)) return lose(owner);
  change->commit();
  // May wrap, and comes out right.
  range_count.fetch_add(static_cast<std::uint32_t>(next.size()) -
                        static_cast<std::uint32_t>(owner.ranges.size()));
  hold(owner, std::move(next));
}

// The kernel has something in `range` that the table doesn't: it goes back to
// what the table says.
void LockCore::State::restore(Owner& owner, const Range& range) {
  const FdRef fd = owner.descriptor->fd();
  bool good = true;
  const auto unlock = [&](std::uint64_t start, std::uint64_t end) {
    good = ofd_set(fd, {.start = start, .end = end, .pid = 0}).has_value() && good;
  };
  std::uint64_t at = range.start;
  bool more = true;
  for (const Range& held : owner.ranges) {
    if (!held.overlaps(range)) continue;
    if (held.start > at) unlock(at, held.start - 1);
    good = ofd_set(fd, held).has_value() && good;
    more = held.end < range.end;
    if (!more) break;
    at = held.end + 1;
  }
  if (more) unlock(at, range.end);
  if (!good) lose(owner);
}

void LockCore::State::drop_handle(Owner& owner, HandleId handle) {
  Lock lock(owner.mutex);
  const std::vector<Range> held = owner.ranges;
  for (const Range& range : held) {
    if (range.handle == handle) drop(owner, range);
  }
}

// The descriptors are the open files of the worker before, with the locks that
// those carry. Where it ended amid a request, the kernel may have more or less
// than the records say: it is told again what they say, as far as that goes, and
// what it takes is what the table has. The request comes again.
void LockCore::State::take_over() {
  std::vector<LockRecords::Found> found = records.take_over();
  // An owner has two amid an upgrade, and when waiters keep one from before it:
  // the one for reading and writing carries on.
  std::ranges::partition(found, [](const auto& one) { return one.access == O_RDWR; });
  std::vector<std::shared_ptr<OwnedFd>> others;  // closed when the owner's own has their locks
  std::unordered_map<NodeId, Owners> all;
  std::unordered_map<Owner*, std::vector<Range>> ranges;
  for (LockRecords::Found& one : found) {
    auto descriptor = std::make_shared<OwnedFd>(records, one.record, std::move(one.fd), one.access);
    if (one.ranges.empty()) continue;
    std::shared_ptr<Owner>& owner = all[one.node][one.owner];
    if (!owner) owner = std::make_shared<Owner>(one.node, one.owner);
    std::vector<Range>& its = ranges[owner.get()];
    its.insert(its.end(), one.ranges.begin(), one.ranges.end());
    Lock lock(owner->mutex);
    (owner->descriptor ? others.emplace_back() : owner->descriptor) = std::move(descriptor);
  }

  std::uint32_t count = 0;
  for (auto& [node, owners] : all) {
    for (auto& [id, owner] : owners) {
      Lock lock(owner->mutex);
      take_over(*owner, std::move(ranges[owner.get()]));
    }
    std::erase_if(owners, [](const auto& entry) { return entry.second->held.load() == 0; });
    count += static_cast<std::uint32_t>(owners.size());
  }
  std::erase_if(all, [](const auto& entry) { return entry.second.empty(); });
  Lock lock(mutex);
  CHECK(nodes.empty());
  nodes = std::move(all);
  owner_count.store(count, std::memory_order_release);
}

// `found` may overlap and may be more than the kernel gives.
void LockCore::State::take_over(Owner& owner, std::vector<Range> found) {
  const FdRef fd = owner.descriptor->fd();
  std::ranges::sort(found, {}, &Range::start);
  std::vector<Range> ranges;
  for (Range range : found) {
    auto set = ofd_set(fd, range);
    if (!set && range.type == F_WRLCK) {
      // It may have been made a shared one just now.
      range.type = F_RDLCK;
      range.record = 0;
      set = ofd_set(fd, range);
    }
    if (!set) continue;
    if (ranges.empty() || ranges.back().end + 1 < range.start) {
      ranges.push_back(range);
    } else {
      ranges = laid_over(ranges, range);
    }
  }
  records.move(found, owner.descriptor->record());
  auto change = records.change(found, ranges, owner.descriptor->record());
  if (!change) {
    // More than was ever held: the records were damaged.
    records.remove(found);
    owner.descriptor.reset();
    return;
  }
  change->commit();
  range_count.fetch_add(static_cast<std::uint32_t>(ranges.size()));
  hold(owner, std::move(ranges));
  restore(owner, {.start = 0, .end = kEnd});
}

// Runs `block` until it is done with something else than EINTR, or the wait is
// cancelled. Holds no mutex while it blocks.
template <typename Block>
Result<> LockCore::State::wait(fuse::Call& call, const LockTarget& target, Waiter& waiter,
                               const Block& block) {
  waiter.unique = call.unique;
  waiter.handle = target.handle;
  waiter.scheduler = &call.scheduler;
  waiter.thread = ::pthread_self();
  // First of all: once the scheduler was told, other threads serve what comes
  // next in the queue, and that may be what ends this wait.
  auto others = enter(waiter);
  if (!others) return Errno{ENOLCK};
  Result<> result = call.scheduler.about_to_wait_for_lock();
  if (!result) {
    leave(waiter);
    return result;
  }
  if (closes_a_round(waiter.wanted, std::move(*others))) {
    leave(waiter);
    result = Errno{EDEADLK};
  } else {
    const WakeSignalOpen open;
    do {
      // A wake between this look and the system call below is lost, so who
      // cancels goes on waking until we have left.
      if (waiter.cancelled.load(std::memory_order_acquire) || call.scheduler.stopping()) {
        result = Errno{EINTR};
        const bool may_come_again =
            call.scheduler.stopping() && !waiter.given_up.load(std::memory_order_acquire);
        if (may_come_again) call.scheduler.put_off();
        break;
      }
      result = block();
    } while (!result && result.error() == Errno{EINTR});
    leave(waiter);
  }
  call.scheduler.lock_wait_ended();
  return result;
}

std::optional<std::vector<Wanted>> LockCore::State::enter(Waiter& waiter) {
  Lock lock(waiters_mutex);
  if (waiters.size() >= limits.waiters) return std::nullopt;
  std::vector<Wanted> others;
  others.reserve(waiters.size());
  for (const Waiter* other : waiters) others.push_back(other->wanted);
  waiters.push_back(&waiter);
  waiter_count.store(static_cast<std::uint32_t>(waiters.size()), std::memory_order_release);
  return others;
}

// Does somebody whom this wait is for wait, over however many others, for the
// same owner? `waiting` are those who began before: of a round, only the last
// to come sees it and gives way. As the kernel's posix_locks_deadlock, it takes
// an owner that waits in one thread for one that waits.
bool LockCore::State::closes_a_round(const Wanted& wanted, std::vector<Wanted> waiting) {
  if (waiting.empty()) return false;
  std::vector<Wanted> next{wanted};
  while (!next.empty()) {
    const std::vector<LockOwner> holders = in_the_way_of(next.back());
    next.pop_back();
    for (const LockOwner holder : holders) {
      if (holder == wanted.owner) return true;
      // Each wait is followed once.
      const auto its = std::ranges::partition(
          waiting, [&](const Wanted& other) { return other.owner != holder; });
      next.insert(next.end(), its.begin(), its.end());
      waiting.erase(its.begin(), its.end());
    }
  }
  return false;
}

void LockCore::State::leave(Waiter& waiter) {
  Lock lock(waiters_mutex);
  std::erase(waiters, &waiter);
  waiter_count.store(static_cast<std::uint32_t>(waiters.size()), std::memory_order_release);
  waiter_left.notify_all();
}

template <typename Matches>
void LockCore::State::cancel(Cause cause, const Matches& matches) {
  if (waiter_count.load(std::memory_order_acquire) == 0) return;
  Lock lock(waiters_mutex);
  for (Waiter* waiter : waiters) {
    if (!matches(*waiter)) continue;
    // In this order: who sees `cancelled` sees why.
    if (cause == Cause::kRelease) waiter->released.store(true, std::memory_order_release);
    if (cause != Cause::kStop) waiter->given_up.store(true, std::memory_order_release);
    waiter->cancelled.store(true, std::memory_order_release);
  }
  for (int i = 0; i < kWakes; ++i) {
    bool left = true;
    for (Waiter* waiter : waiters) {
      if (!waiter->cancelled.load(std::memory_order_relaxed) || !matches(*waiter)) continue;
      ::pthread_kill(waiter->thread, lock_wake_signal());
      left = false;
    }
    if (left) return;
    (void)waiter_left.wait_until(waiters_mutex, std::chrono::steady_clock::now() + kWakePause);
  }
}

LockCore::LockCore(Limits limits, std::shared_ptr<Arena> arena)
    : state_(std::make_shared<State>(limits, std::move(arena))) {
  install_wake_handler();
}

LockCore::~LockCore() {
  clear();
}

Result<fuse_file_lock> LockCore::get(const LockTarget& target, const fuse::LockArgs& args) {
  TRY(check(args));
  if (args.flock) return Errno{EINVAL};
  const Range wanted{.start = args.start, .end = args.end, .type = args.type};
  struct flock lock = kernel_lock(wanted);
  {
    // Through the owner's own descriptor, so that its own locks don't count.
    // Without one it holds nothing, and any descriptor of the file will do.
    const State::Use owner = state_->find(target.node, args.owner);
    std::shared_ptr<OwnedFd> own;
    if (owner) {
      Lock hold(owner->mutex);
      own = owner->descriptor;
    }
    const FdRef fd = own ? own->fd() : target.fd;
    if (::fcntl(fd.number(), F_OFD_GETLK, &lock) != 0) return Errno::last();
  }

  fuse_file_lock found{};
  found.type = F_UNLCK;
  if (lock.l_type == F_UNLCK) return found;
  const Range conflict{
      .start = static_cast<std::uint64_t>(lock.l_start),
      .end = lock.l_len == 0 ? kEnd : static_cast<std::uint64_t>(lock.l_start + lock.l_len - 1),
      .type = static_cast<std::uint32_t>(lock.l_type)};
  found.start = conflict.start;
  found.end = conflict.end;
  found.type = conflict.type;
  for (const auto& [id, owner] : state_->all_of(target.node)) {
    if (id == args.owner) continue;
    Lock hold(owner->mutex);
    const auto range = std::ranges::find_if(owner->ranges, [&](const Range& held) {
      return held.type == conflict.type && held.overlaps(conflict);
    });
    if (range != owner->ranges.end()) {
      found.pid = range->pid;
      break;
    }
  }
  return found;
}

Result<> LockCore::set(fuse::Call& call, const LockTarget& target, LockOpener& opener,
                       const fuse::LockArgs& args) {
  TRY(check(args));
  Waiter waiter;

  if (args.flock) {
    const int operation = args.type == F_RDLCK ? LOCK_SH : args.type == F_WRLCK ? LOCK_EX : LOCK_UN;
    Result<> now;
    do {
      now = file_lock(target.fd, operation | LOCK_NB);
    } while (!now && now.error() == Errno{EINTR});
    if (now || now.error() != Errno{EAGAIN} || !args.wait) return now;
    return state_->wait(call, target, waiter, [&] { return file_lock(target.fd, operation); });
  }

  // As fcntl(2): a lock needs the matching access of the descriptor it is set through.
  if (!serves(static_cast<int>(target.open_flags), args.type)) return Errno{EBADF};
  const Range range{.start = args.start,
                    .end = args.end,
                    .type = args.type,
                    .pid = args.pid,
                    .handle = target.handle};
  if (args.type == F_UNLCK) {
    if (const State::Use owner = state_->find(target.node, args.owner)) {
      return state_->apply(*owner, opener, range);
    }
    return {};
  }
  const State::Use owner = TRY(state_->find_or_add(target.node, args.owner));
  auto result = state_->apply(*owner, opener, range);
  if (!result && result.error() == Errno{EAGAIN} && args.wait) {
    waiter.wanted = {.node = target.node, .owner = args.owner, .range = range};
    result = state_->wait(call, target, waiter, [&]() -> Result<> {
      std::shared_ptr<OwnedFd> descriptor;
      {
        Lock lock(owner->mutex);
        if (owner->dead) return Errno{ECANCELED};
        descriptor = owner->descriptor;
      }
      if (descriptor && serves(descriptor->access(), range.type)) {
        TRY(ofd_lock(descriptor->fd(), F_OFD_SETLKW, range));
      }
      // The kernel has it, the table not yet. Setting it again under the
      // owner's mutex orders it among what the owner's other threads do; if
      // one of them dropped it and another owner came first, the wait goes on.
      auto set = state_->apply(*owner, opener, range);
      if (!set) {
        Lock lock(owner->mutex);
        if (owner->descriptor && owner->descriptor == descriptor) state_->restore(*owner, range);
      }
      if (!set && set.error() == Errno{EAGAIN}) return Errno{EINTR};
      return set;
    });
  }
  // The release of the handle dropped what it saw; this came after it.
  if (waiter.released.load(std::memory_order_acquire)) {
    state_->drop_handle(*owner, target.handle);
    return Errno{EINTR};
  }
  if (!result && result.error() == Errno{ECANCELED}) return Errno{EINTR};
  return result;
}

void LockCore::flush(NodeId node, LockOwner owner) {
  {
    const State::Use entry = state_->find(node, owner);
    if (!entry) return;
    Lock lock(entry->mutex);
    state_->drop(*entry, Range{.start = 0, .end = kEnd});
  }
  state_->sweep(node);
}

void LockCore::release(const LockTarget& target, bool flock_unlock) {
  state_->cancel(State::Cause::kRelease,
                 [&](const Waiter& waiter) { return waiter.handle == target.handle; });
  // Other pins of the handle may keep its descriptor, and so its flock, for a while.
  if (flock_unlock) (void)file_lock(target.fd, LOCK_UN);
  {
    const auto owners = state_->all_of(target.node);
    if (owners.empty()) return;
    for (const auto& [id, owner] : owners) state_->drop_handle(*owner, target.handle);
  }
  state_->sweep(target.node);
}

void LockCore::interrupt(std::uint64_t unique) {
  state_->cancel(State::Cause::kGuest,
                 [&](const Waiter& waiter) { return waiter.unique == unique; });
}

void LockCore::cancel_waits() {
  state_->cancel(State::Cause::kStop,
                 [](const Waiter& waiter) { return waiter.scheduler->stopping(); });
}

void LockCore::clear() {
  std::unordered_map<NodeId, State::Owners> nodes;
  {
    Lock lock(state_->mutex);
    nodes = std::exchange(state_->nodes, {});
    state_->owner_count.store(0, std::memory_order_release);
  }
  for (auto& [node, owners] : nodes) {
    for (auto& [id, owner] : owners) {
      Lock lock(owner->mutex);
      owner->dead = true;
      state_->lose(*owner);
    }
  }
  state_->cancel(State::Cause::kGuest, [](const Waiter&) { return true; });
}

void LockCore::take_over() {
  state_->take_over();
}

std::vector<LockCore::Held> LockCore::held() const {
  std::vector<State::Use> owners;
  {
    Lock lock(state_->mutex);
    for (const auto& [node, its] : state_->nodes) {
      for (const auto& [id, owner] : its) owners.push_back(state_->use(owner));
    }
  }
  std::vector<Held> all;
  for (const State::Use& owner : owners) {
    Lock lock(owner->mutex);
    if (!owner->ranges.empty()) all.push_back({owner->node, owner->id, owner->ranges});
  }
  return all;
}

Result<> LockCore::load(NodeId node, LockOwner owner, LockOpener& opener, const LockRange& range) {
  const bool is_lock = range.type == F_RDLCK || range.type == F_WRLCK;
  if (!is_lock || range.start > range.end || range.end > kEnd) return Errno{EINVAL};
  const State::Use its = TRY(state_->find_or_add(node, owner));
  return state_->apply(*its, opener, range);
}

// The kernel's half of every lock.
void LockCore::let_go() {
  for (const Held& one : held()) {
    const State::Use owner = state_->find(one.node, one.owner);
    if (!owner) continue;
    Lock lock(owner->mutex);
    if (owner->descriptor)
      (void)ofd_set(owner->descriptor->fd(), {.start = 0, .end = kEnd, .type = F_UNLCK});
  }
}

Result<> LockCore::take_again(NodeId node, LockOwner owner, const LockRange& range) {
  const State::Use its = state_->find(node, owner);
  if (!its) return Errno{ENOLCK};
  Lock lock(its->mutex);
  if (!its->descriptor) return Errno{ENOLCK};
  return ofd_set(its->descriptor->fd(), range);
}

void LockCore::give_up(NodeId node, LockOwner owner, const LockRange& range) {
  const State::Use its = state_->find(node, owner);
  if (!its) return;
  Lock lock(its->mutex);
  state_->drop(*its, range);
}

std::uint32_t LockCore::owners() const {
  return state_->owner_count.load(std::memory_order_acquire);
}

std::uint32_t LockCore::ranges() const {
  return state_->range_count.load(std::memory_order_acquire);
}

std::uint32_t LockCore::waiters() const {
  return state_->waiter_count.load(std::memory_order_acquire);
}

namespace {

// Opens the file of a handle anew, through the descriptor of its inode.
class InodeOpener final : public LockOpener {
 public:
  InodeOpener(InodeStore& inodes, const InodeRef& inode) : inodes_(inodes), inode_(inode) {}
  Result<UniqueFd> open(int access_mode) override {
    // O_NONBLOCK: a lease held on the host must not stop us.
    return sys::reopen(TRY(inodes_.fd(inode_)), access_mode | O_NONBLOCK | O_NOCTTY);
  }

 private:
  InodeStore& inodes_;
  const InodeRef& inode_;
};

LockTarget target_of(const HandleRef& handle) {
  return {.node = handle.node(),
          .handle = handle.id(),
          .fd = handle.fd(),
          .open_flags = handle.open_flags()};
}

}  // namespace

LockTable::LockTable(InodeStore& inodes, LockCore::Limits limits)
    : inodes_(inodes), core_(limits, inodes.arena()) {}

Result<fuse_file_lock> LockTable::get(const HandleRef& handle, const fuse::LockArgs& args) {
  return core_.get(target_of(handle), args);
}

Result<> LockTable::set(fuse::Call& call, const HandleRef& handle, const fuse::LockArgs& args) {
  InodeOpener opener{inodes_, handle.inode()};
  auto result = core_.set(call, target_of(handle), opener, args);
  if (args.flock) {
    // One that can't be had in place of another has taken that, too: the kernel lets go first.
    const bool is_held = result && args.type != F_UNLCK;
    handle.note_flock(!is_held ? 0 : args.type == F_RDLCK ? LOCK_SH : LOCK_EX);
  }
  return result;
}

Result<> LockTable::load(const InodeRef& inode, LockOwner owner, const LockRange& range) {
  InodeOpener opener{inodes_, inode};
  return core_.load(inode.id(), owner, opener, range);
}

void LockTable::flush(NodeId node, LockOwner owner) {
  core_.flush(node, owner);
}

void LockTable::release(const HandleRef& handle, LockOwner, std::uint32_t release_flags) {
  core_.release(target_of(handle), (release_flags & FUSE_RELEASE_FLOCK_UNLOCK) != 0);
}

void LockTable::interrupt(std::uint64_t unique) {
  core_.interrupt(unique);
}

void LockTable::cancel_waits() {
  core_.cancel_waits();
}

void LockTable::clear() {
  core_.clear();
}

void LockTable::take_over() {
  core_.take_over();
}

}  // namespace virtiofsd
