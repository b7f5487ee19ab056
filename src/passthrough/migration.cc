// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The guest moves to another host: what it knows and has open is sent (save), and had again from
// the shared directory there (load). Deleted files have no name to be sent by, so they stay behind.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "base/log.h"
#include "passthrough/passthrough.h"
#include "state/plan.h"
#include "state/saved_frames.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

using std::chrono::steady_clock;

constexpr auto kLockPause = std::chrono::milliseconds(5);
// Whom the guest was sent to may be about to end. The VMM waits for this.
constexpr auto kPatienceOnReturn = std::chrono::seconds(2);

// What an open file may be opened with again.
constexpr std::uint32_t kReopenFlags = O_ACCMODE | O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME |
                                       O_SYNC | O_DSYNC | O_LARGEFILE | O_NOCTTY;

std::string as_text(std::span<const std::byte> bytes) {
  return {static_cast<const char*>(static_cast<const void*>(bytes.data())), bytes.size()};
}

Result<> lock_file(const HandleRef& handle, int operation) {
  if (::flock(handle.fd().number(), operation | LOCK_NB) == 0) return {};
  return Errno::last();
}

template <typename Try>
Result<> with_patience(steady_clock::time_point deadline, Try attempt) {
  for (;;) {
    auto done = attempt();
    if (done || done.error() != Errno{EAGAIN} || steady_clock::now() >= deadline) return done;
    std::this_thread::sleep_for(kLockPause);
  }
}

}  // namespace

// What can't be moved: an error, or, where the operator has said so, as many lines in the log as
// somebody reads.
class Passthrough::Missing {
 public:
  explicit Missing(bool goes_on) : goes_on_(goes_on) {}
  ~Missing() {
    if (count_ > kLoud) log::warn("migration goes on without {} more", count_ - kLoud);
  }
  Missing(const Missing&) = delete;
  Missing& operator=(const Missing&) = delete;

  Result<void, Failure> note(const std::string& what) {
    if (!goes_on_) {
      return Failure{
          what +
          " (with --migration-on-error=guest-error migration goes on, and the guest gets "
          "errors for what is missing)"};
    }
    if (++count_ <= kLoud) log::warn("migration goes on without this: {}", what);
    return {};
  }

 private:
  static constexpr std::uint64_t kLoud = 20;
  const bool goes_on_;
  std::uint64_t count_ = 0;
};

// ---- sending ----------------------------------------------------------------------

Result<void, Failure> Passthrough::save(FrameWriter& to) {
  SavedRoot root;
  inodes_->describe(root);
  root.handle_generation = handles_.newest_generation();
  TRY(put_saved(to, SavedKind::kRoot, {raw_bytes(root)}));

  Missing missing{settings_.migration.goes_on};
  std::unordered_set<NodeId> without;
  SavedEnd sent;
  sent.inodes = TRY(
      inodes_->save(to,
                    {.by_handle = settings_.migration.by_handle,
                     .with_handles = settings_.migration.verify_handles,
                     .confirm = settings_.migration.confirm_paths},
                    [&](NodeId node) {
                      without.insert(node);
                      return missing.note(fmt::format(
                          "a file that the guest has open can't be found in the shared directory "
                          "any more; it was called '{}'",
                          inodes_->last_path(node)));
                    }));
  TRY(handles_.for_each([&](const HandleRef& handle, HandleKind kind) -> Result<void, Failure> {
    if (without.contains(handle.node())) return {};
    ++sent.handles;
    const SavedHandle saved{.id = handle.id().value,
                            .node = handle.node().value,
                            .open_flags = handle.open_flags(),
                            .kind = static_cast<std::uint16_t>(kind),
                            .flock = static_cast<std::uint8_t>(handle.flock())};
    return put_saved(to, SavedKind::kHandle, {raw_bytes(saved)});
  }));
  TRY(save_locks(to, without, sent));
  TRY(put_saved(to, SavedKind::kEnd, {raw_bytes(sent)}));
  TRY(flush_saved(to));
  log::info("migration: sent {} inodes, {} open files and the locks of {}", sent.inodes,
            sent.handles, sent.lock_owners);
  return {};
}

Result<void, Failure> Passthrough::save_locks(FrameWriter& to,
                                              const std::unordered_set<NodeId>& without,
                                              SavedEnd& sent) {
  for (const LockCore::Held& held : locks_.held()) {
    if (without.contains(held.node)) continue;
    std::vector<SavedLockRange> ranges;
    for (const LockRange& range : held.ranges) {
      ranges.push_back({.start = range.start,
                        .end = range.end,
                        .handle = range.handle.value,
                        .type = range.type,
                        .pid = range.pid});
    }
    for (std::span<const SavedLockRange> rest{ranges}; !rest.empty();) {
      const auto now = rest.first(std::min<std::size_t>(rest.size(), SavedLockOwner::kMostRanges));
      rest = rest.subspan(now.size());
      ++sent.lock_owners;
      const SavedLockOwner saved{.node = held.node.value,
                                 .owner = held.owner.value,
                                 .ranges = static_cast<std::uint32_t>(now.size())};
      TRY(put_saved(to, SavedKind::kLockOwner, {raw_bytes(saved), std::as_bytes(now)}));
    }
  }
  return {};
}

// Until the guest is there for certain, the locks are still here: the table has them.
void Passthrough::let_go_of_locks() {
  locks_.let_go();
  (void)handles_.for_each([](const HandleRef& handle, HandleKind) -> Result<void, Failure> {
    if (handle.flock() != 0) (void)::flock(handle.fd().number(), LOCK_UN);
    return {};
  });
}

void Passthrough::take_locks_again() {
  const auto deadline = steady_clock::now() + kPatienceOnReturn;
  std::uint32_t lost = 0;
  for (const LockCore::Held& held : locks_.held()) {
    for (const LockRange& range : held.ranges) {
      const Result<> taken =
          with_patience(deadline, [&] { return locks_.take_again(held.node, held.owner, range); });
      if (taken) continue;
      locks_.give_up(held.node, held.owner, range);
      ++lost;
    }
  }
  (void)handles_.for_each([&](const HandleRef& handle, HandleKind) -> Result<void, Failure> {
    const int operation = handle.flock();
    if (operation == 0) return {};
    const Result<> taken = with_patience(deadline, [&] { return lock_file(handle, operation); });
    if (taken) return {};
    handle.note_flock(0);
    ++lost;
    return {};
  });
  if (lost != 0) {
    log::warn(
        "the guest goes on here after all, but others hold {} of its locks by now: it has "
        "lost them",
        lost);
  }
}

// ---- receiving --------------------------------------------------------------------

// What comes, frame by frame. Nothing of it is believed: ids have to be free, names are looked up,
// files are what they are here.
class Passthrough::Loading {
 public:
  explicit Loading(Passthrough& to) : to_(to), missing_(to.settings_.migration.goes_on) {}

  Result<void, Failure> take_all(FrameReader& from) {
    Reader first = TRY(next_saved(from, SavedKind::kRoot));
    const auto root = TRY(take_saved<SavedRoot>(first));
    SavedRoot own;
    to_.inodes_->describe(own);
    // Without times of birth a root's number says little: it is the same on many file systems.
    same_files_ = own.birth != 0 && own.ino == root.ino && own.birth == root.birth;
    while (!ended_) {
      const SavedFrame frame = TRY(next_saved(from));
      TRY(take(frame.kind, frame.body));
    }
    if (const auto end = from.expect_end(); !end) return damaged_state();
    if (!same_files_ && stale_ != 0 && stale_ == seen_.inodes) {
      TRY(missing_.note(fmt::format(
          "of the {} files that the guest knows none is in the shared directory", stale_)));
    }
    to_.inodes_->end_load(root.inode_generation);
    to_.handles_.end_load(root.handle_generation);
    TRY(take_locks());
    to_.inodes_->end_take_over();
    log::info("migration: received {} inodes, {} open files and the locks of {}{}", seen_.inodes,
              seen_.handles, seen_.lock_owners,
              stale_ == 0 ? "" : fmt::format("; {} names were out of date", stale_));
    return {};
  }

 private:
  struct FileLock {
    HandleId id;
    NodeId node;
    HandleKind kind;
    int operation;
  };
  struct RecordLock {
    NodeId node;
    LockOwner owner;
    LockRange range;
  };

  Result<void, Failure> take(SavedKind kind, Reader body) {
    switch (kind) {
      case SavedKind::kInode:
        ++seen_.inodes;
        if (seen_.handles != 0) return damaged_state();
        return take_inode(body);
      case SavedKind::kHandle:
        ++seen_.handles;
        return take_handle(body);
      case SavedKind::kLockOwner:
        ++seen_.lock_owners;
        return take_lock_owner(body);
      case SavedKind::kEnd: {
        const auto end = TRY(take_saved<SavedEnd>(body));
        ended_ = end.inodes == seen_.inodes && end.handles == seen_.handles &&
                 end.lock_owners == seen_.lock_owners;
        if (!ended_) return damaged_state();
        return {};
      }
      default:
        return damaged_state();
    }
  }

  Result<void, Failure> take_inode(Reader body) {
    auto saved = TRY(take_saved<SavedInode>(body));
    const auto text = body.take_bytes(saved.name_size);
    const auto handle = body.take_bytes(saved.handle_size);
    if (!text || !handle || !body.rest().empty()) return damaged_state();
    const std::string name = as_text(*text);
    const Result<> loaded = to_.inodes_->load(saved, name, *handle, same_files_);
    if (loaded) return {};
    const Errno why = loaded.error();
    if (why == Errno{EBADMSG}) return damaged_state();
    if (why == Errno{EPERM} && saved.place == SavedPlace::kHandle) {
      return Failure{
          "the other virtiofsd names files by kernel file handles, which this one may not open: "
          "start it with --migration-mode=file-handles, too, or the other one without"};
    }
    // A name that is out of date was so there, too: the guest has used it once.
    const bool is_gone = why == Errno{ENOENT} || why == Errno{ENOTDIR} || why == Errno{ESTALE} ||
                         why == Errno{ELOOP};
    if (is_gone && saved.open == 0) {
      ++stale_;
    } else {
      TRY(missing_.note(fmt::format("{} isn't in the shared directory as it was: {}",
                                    description_of(saved, name), why.text())));
    }
    saved.place = SavedPlace::kNone;
    const Result<> as_none = to_.inodes_->load(saved, {}, {}, same_files_);
    if (as_none) return {};
    if (as_none.error() == Errno{EBADMSG}) return damaged_state();
    return Failure{"can't keep an inode", as_none.error()};
  }

  std::string description_of(const SavedInode& saved, const std::string& name) const {
    if (saved.place == SavedPlace::kHandle) return fmt::format("inode {}", saved.ino);
    if (saved.place == SavedPlace::kPath) return fmt::format("'{}'", name);
    const std::string above = to_.inodes_->last_path(NodeId{saved.parent});
    return fmt::format("'{}{}{}'", above, above.empty() ? "" : "/", name);
  }

  Result<void, Failure> take_handle(Reader body) {
    const auto saved = TRY(take_saved<SavedHandle>(body));
    const Result<> loaded = to_.load_handle(saved);
    if (!loaded && loaded.error() == Errno{EBADMSG}) return damaged_state();
    if (!loaded) {
      return missing_.note(fmt::format("'{}', which the guest has open, can't be opened: {}",
                                       to_.inodes_->last_path(NodeId{saved.node}),
                                       loaded.error().text()));
    }
    if (saved.flock == LOCK_SH || saved.flock == LOCK_EX) {
      file_locks_.push_back({HandleId{saved.id}, NodeId{saved.node},
                             static_cast<HandleKind>(saved.kind), int{saved.flock}});
    }
    return {};
  }

  Result<void, Failure> take_lock_owner(Reader body) {
    const auto saved = TRY(take_saved<SavedLockOwner>(body));
    if (saved.ranges > SavedLockOwner::kMostRanges) return damaged_state();
    for (std::uint32_t i = 0; i < saved.ranges; ++i) {
      const auto range = TRY(take_saved<SavedLockRange>(body));
      if (record_locks_.size() >= kMaxLockRangeRecords) return damaged_state();
      record_locks_.push_back({NodeId{saved.node},
                               LockOwner{saved.owner},
                               {.start = range.start,
                                .end = range.end,
                                .type = range.type,
                                .pid = range.pid,
                                .handle = HandleId{range.handle}}});
    }
    return {};
  }

  // When all else is here: the sender lets go of them only when it has sent everything.
  Result<void, Failure> take_locks() {
    const auto deadline = steady_clock::now() + to_.settings_.migration.patience_for_locks;
    const auto note_missing = [&](NodeId node, const Result<>& why) {
      const std::string reason =
          why.error() == Errno{EAGAIN} ? "another process holds it" : why.error().text();
      return missing_.note(fmt::format("the guest's lock on '{}' can't be had: {}",
                                       to_.inodes_->last_path(node), reason));
    };
    for (const FileLock& lock : file_locks_) {
      const auto handle = to_.handles_.find(lock.id, lock.kind);
      if (!handle) return damaged_state();
      const Result<> locked =
          with_patience(deadline, [&] { return lock_file(*handle, lock.operation); });
      if (!locked) {
        TRY(note_missing(lock.node, locked));
        continue;
      }
      handle->note_flock(lock.operation);
    }
    for (const RecordLock& lock : record_locks_) {
      // Without the handle nothing would ever end it.
      const auto inode = to_.inodes_->pin_loaded(lock.node);
      if (!inode || !to_.handles_.find(lock.range.handle, HandleKind::kFile, lock.node)) {
        TRY(note_missing(lock.node, Errno{EBADF}));
        continue;
      }
      const Result<> locked =
          with_patience(deadline, [&] { return to_.locks_.load(*inode, lock.owner, lock.range); });
      if (!locked) TRY(note_missing(lock.node, locked));
    }
    return {};
  }

  Passthrough& to_;
  Missing missing_;
  bool same_files_ = false;
  bool ended_ = false;
  SavedEnd seen_;
  std::uint64_t stale_ = 0;
  std::vector<FileLock> file_locks_;
  std::vector<RecordLock> record_locks_;
};

Result<> Passthrough::load_handle(const SavedHandle& saved) {
  if (saved.kind > static_cast<std::uint16_t>(HandleKind::kDirectory)) return Errno{EBADMSG};
  const auto kind = static_cast<HandleKind>(saved.kind);
  InodeRef inode = TRY(inodes_->pin_loaded(NodeId{saved.node}));  // inodes come first
  const bool is_directory = kind == HandleKind::kDirectory;
  if (is_directory ? !inode.is_directory() : !inode.is_regular()) return Errno{EBADMSG};
  // As for a guest that opens it here and now.
  auto flags = static_cast<int>(saved.open_flags & kReopenFlags);
  if (!settings_.allow_direct_io) flags &= ~O_DIRECT;
  if (!settings_.preserve_noatime) flags &= ~O_NOATIME;
  OpenPlan plan{.flags = is_directory ? O_RDONLY | O_DIRECTORY | (flags & O_NOATIME) : flags};
  UniqueFd fd = TRY(open_regular(inode, plan));
  return handles_.load(HandleId{saved.id}, kind, std::move(inode), std::move(fd),
                       static_cast<std::uint32_t>(plan.flags));
}

Result<void, Failure> Passthrough::load(FrameReader& from) {
  const auto begin = [&] {
    locks_.clear();
    handles_.begin_load();
    inodes_->begin_load();
  };
  begin();
  auto loaded = Loading{*this}.take_all(from);
  if (!loaded) begin();
  return loaded;
}

}  // namespace virtiofsd
