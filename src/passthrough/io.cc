// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Open files and their data: OPEN, READ, WRITE, FLUSH, RELEASE, FSYNC,
// FALLOCATE, LSEEK, COPY_FILE_RANGE, SYNCFS.
#include <linux/magic.h>
#include <sys/uio.h>

#include <algorithm>

#include "base/uninitialized.h"
#include "passthrough/credentials.h"
#include "passthrough/passthrough.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

#ifndef RWF_NOAPPEND
constexpr int RWF_NOAPPEND = 0x20;  // Linux 6.9
#endif

// Magic numbers that <linux/magic.h> leaves out.
constexpr std::uint32_t kLustreMagic = 0x0bd00bd0;
constexpr std::uint32_t kGfs2Magic = 0x01161970;

bool is_network(FdRef fd) {
  const auto host = sys::fstatfs(fd);
  if (!host) return true;  // unknown: be careful
  switch (static_cast<std::uint32_t>(host->f_type)) {
    case NFS_SUPER_MAGIC:
    case SMB_SUPER_MAGIC:
    case SMB2_SUPER_MAGIC:
    case CIFS_SUPER_MAGIC:
    case CEPH_SUPER_MAGIC:
    case AFS_SUPER_MAGIC:
    case AFS_FS_MAGIC:
    case CODA_SUPER_MAGIC:
    case FUSE_SUPER_MAGIC:
    case V9FS_MAGIC:
    case OCFS2_SUPER_MAGIC:
    case kLustreMagic:
    case kGfs2Magic:
      return true;
    default:
      return false;
  }
}

bool has_hint(const HandleRef& handle, OpenState::Hint hint) {
  return (handle.state().hints.load(std::memory_order_relaxed) & hint) != 0;
}

void add_hint(const HandleRef& handle, int hints) {
  handle.state().hints.fetch_or(static_cast<std::uint8_t>(hints), std::memory_order_relaxed);
}

bool on_network(const HandleRef& handle) {
  if (handle.inode().is_local()) return false;
  if (!has_hint(handle, OpenState::kKnowsNetwork)) {
    add_hint(handle,
             OpenState::kKnowsNetwork | (is_network(handle.fd()) ? OpenState::kNetwork : 0));
  }
  return has_hint(handle, OpenState::kNetwork);
}

// For requests that direct I/O can't do (alignment): the same file through the
// page cache. Where it can't be opened again the handle itself stops being
// direct, for losing data is worse than caching it.
class BufferedTwin {
 public:
  explicit BufferedTwin(const HandleRef& handle) : fd_(handle.fd()) {
    auto twin =
        sys::reopen(handle.fd(), static_cast<int>(handle.open_flags() & (O_ACCMODE | O_SYNC)));
    if (twin) {
      twin_ = std::move(*twin);
      fd_ = twin_;
      return;
    }
    const auto flags = sys::status_flags(fd_);
    usable_ = flags && sys::set_status_flags(fd_, *flags & ~O_DIRECT);
  }
  bool usable() const { return usable_; }
  FdRef fd() const { return fd_; }

 private:
  UniqueFd twin_;
  FdRef fd_;
  bool usable_ = true;
};

// A WRITE holds the file's lock while it copies (generic_file_write_iter and its like), which from
// this many bytes on is nearly all it does.
constexpr std::size_t kTakesTurns = 32U << 10;

bool is_direct(const HandleRef& handle) {
  return (handle.open_flags() & O_DIRECT) != 0;
}

// FALLOCATE and COPY_FILE_RANGE have no flag that says whether set-id bits go. Newer guests say so
// before, by a SETATTR, and with ALLOW_IDMAP not who asks; from older ones an ordinary user's takes
// them off.
bool may_have_to_kill(const fuse::Call& call) {
  return call.caller.uid != 0 && call.caller.uid != ~0U;
}

// Nearly no file has one, and then there is none to lose. One that comes while
// the request is served counts as coming after it.
Result<bool> has_set_id(const HandleRef& handle) {
  UNINITIALIZED struct statx stx;
  TRY(sys::statx(handle.fd(), STATX_MODE, &stx));
  return (stx.stx_mode & (S_ISUID | S_ISGID)) != 0;
}

}  // namespace

Passthrough::OpenPlan Passthrough::plan_open(const fuse::Call& call,
                                             std::uint32_t guest_flags) const {
  const int asked = static_cast<int>(guest_flags);
  OpenPlan plan;
  // What a guest may choose about an open file; everything else (O_CREAT,
  // O_DIRECTORY, O_PATH, O_NONBLOCK ...) was dealt with on its side or is ours.
  plan.flags = asked & (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC);
  if (settings_.allow_direct_io) plan.flags |= asked & O_DIRECT;
  if (settings_.preserve_noatime) plan.flags |= asked & O_NOATIME;
  // Appending is said write by write (RWF_APPEND), so that pages written back
  // from a mapping, FALLOCATE and COPY_FILE_RANGE go where they belong.
  plan.may_append = (asked & O_APPEND) != 0;
  // A cache that writes back reads what surrounds a partial write, and it knows where the end is.
  if (call.session.has(FUSE_WRITEBACK_CACHE) && (asked & O_ACCMODE) == O_WRONLY) {
    plan.flags = (plan.flags & ~O_ACCMODE) | O_RDWR;
    plan.widened = true;
  }
  return plan;
}

Result<UniqueFd> Passthrough::open_regular(const InodeRef& inode, OpenPlan& plan) const {
  return open_by_plan(plan, [&](int flags) { return inodes_->open(inode, flags); });
}

std::uint32_t Passthrough::file_open_flags(const fuse::Call& call, const OpenPlan& plan) const {
  // Direct writes that don't grow the file needn't wait for each other: the
  // host's file system orders them.
  std::uint32_t flags = FOPEN_PARALLEL_DIRECT_WRITES;
  // What an append-only file has in the cache could not be written back.
  const bool appends_only = call.session.has(FUSE_WRITEBACK_CACHE) && (plan.flags & O_APPEND) != 0;
  if (bypasses_cache() || appends_only) flags |= FOPEN_DIRECT_IO;
  if (settings_.cache == CacheMode::kAlways) flags |= FOPEN_KEEP_CACHE;
  // A close has nothing to tell about a file that was only read, unless it drops locks.
  if ((plan.flags & O_ACCMODE) == O_RDONLY && !call.session.has(FUSE_POSIX_LOCKS))
    flags |= FOPEN_NOFLUSH;
  return flags;
}

// Where the map gives the guest's security.capability another name, the host's
// kernel doesn't know that it must go before the file changes (CVE-2021-20263).
// Where it can't be removed, the file must not change.
Result<> Passthrough::drop_capability_xattr(FdRef fd) const {
  if (!settings_.xattr_map || !settings_.xattr_map->renames_capability()) return {};
  const std::string& name = settings_.xattr_map->capability_name();
  if (name.empty()) return {};
  const Result<> removed = sys::removexattr(fd, name.c_str());
  // Nearly always there is none; a file system without xattrs has none either.
  if (removed || removed.error() == Errno{ENODATA} || removed.error() == Errno{EOPNOTSUPP})
    return {};
  return removed.error();
}

// Before data goes through a handle. One that isn't open for writing changes
// nothing: the call itself says EBADF.
Result<> Passthrough::drop_capability_xattr(const HandleRef& handle) const {
  if ((handle.open_flags() & O_ACCMODE) == O_RDONLY) return {};
  return drop_capability_xattr(handle.fd());
}

// Guests without HANDLE_KILLPRIV_V2 lose the change of mode that goes with O_TRUNC.
bool Passthrough::kills_set_ids(const fuse::Call& call, std::uint32_t open_flags) {
  return (open_flags & FUSE_OPEN_KILL_SUIDGID) != 0 ||
         (!call.session.has(FUSE_HANDLE_KILLPRIV_V2) && call.caller.uid != 0);
}

Result<> Passthrough::drop_fsetid(const fuse::Call& call, FdRef file,
                                  ScopedWithoutFsetid& scope) const {
  if (call.caller.gid != ~0U) {
    const auto group = settings_.gid_map.to_host(call.caller.gid);
    return group ? scope.drop(*group) : drop_fsetid_outside(file, scope);
  }
  // ALLOW_IDMAP: the guest doesn't say who it is. As if in the group, which is what
  // HANDLE_KILLPRIV_V2 promises: without group execute a set-group-id bit stays.
  UNINITIALIZED struct statx stx;
  TRY(sys::statx(file, STATX_GID, &stx));
  return scope.drop(stx.stx_gid);
}

Result<> Passthrough::drop_fsetid_outside(FdRef file, ScopedWithoutFsetid& scope) const {
  UNINITIALIZED struct statx stx;
  TRY(sys::statx(file, STATX_GID, &stx));
  constexpr gid_t kNoGroup = 65534;
  return scope.drop(stx.stx_gid == kNoGroup ? kNoGroup - 1 : kNoGroup);
}

Result<fuse_open_out> Passthrough::open(fuse::Call& call, std::uint32_t flags,
                                        std::uint32_t open_flags) {
  InodeRef inode = TRY(inodes_->pin(call.node));
  if (inode.is_directory()) return Errno{EISDIR};
  if (inode.is_symlink()) return Errno{ELOOP};
  if (!inode.is_regular()) return Errno{ENXIO};
  OpenPlan plan = plan_open(call, flags);
  UniqueFd fd;
  {
    ScopedWithoutFsetid killing;
    if ((plan.flags & O_TRUNC) != 0) {
      const FdRef path = TRY(inodes_->fd(inode));
      TRY(drop_capability_xattr(path));
      if (kills_set_ids(call, open_flags)) TRY(drop_fsetid(call, path, killing));
    }
    fd = TRY(open_regular(inode, plan));
  }
  const auto opened = static_cast<std::uint32_t>(plan.flags & ~O_TRUNC);
  const HandleId handle =
      TRY(handles_.insert(HandleKind::kFile, std::move(inode), std::move(fd), opened));
  return fuse_open_out{.fh = handle.value, .open_flags = file_open_flags(call, plan), .padding = 0};
}

Result<> Passthrough::read(fuse::Call& call, const fuse::ReadArgs& args, fuse::Body& body) {
  const HandleRef handle = TRY(handles_.find(args.handle, HandleKind::kFile, call.node));
  const IoSpace space = body.space(args.size);
  // RWF_NOWAIT keeps direct I/O from waiting for anything but the device, which is what it waits
  // for.
  const bool waits = is_direct(handle);
  int flags = waits || has_hint(handle, OpenState::kRefusesNowait) ? 0 : RWF_NOWAIT;
  if (waits || (flags == 0 && on_network(handle))) call.scheduler.about_to_block();

  std::size_t done = 0;
  while (done < space.size()) {
    auto got = sys::preadv2(handle.fd(), space, done, args.offset + done, flags);
    if (!got && flags != 0 && got.error() == Errno{EAGAIN}) {
      // Not in the page cache. A short answer is completed, too: to the guest
      // one before the end of the file would mean the end.
      call.scheduler.about_to_block();
      flags = 0;
      continue;
    }
    if (!got && flags != 0 && got.error() == Errno{EOPNOTSUPP}) {
      add_hint(handle, OpenState::kRefusesNowait);
      if (on_network(handle)) call.scheduler.about_to_block();
      flags = 0;
      continue;
    }
    if (!got && got.error() == Errno{EINVAL} && is_direct(handle)) {
      const BufferedTwin twin{handle};
      if (twin.usable()) got = sys::preadv2(twin.fd(), space, done, args.offset + done, 0);
    }
    if (!got) {
      // To a guest that caches, a short answer is the end of the file.
      if (done > 0 && (bypasses_cache() || (args.flags & O_DIRECT) != 0)) break;
      return got.error();
    }
    if (*got == 0) break;
    done += *got;
  }
  body.commit(done);
  return {};
}

namespace {

// Whether a write that is served again has put its data where the guest saw the end of the file.
bool was_appended(const HandleRef& handle, std::uint64_t offset, const IoSpace& data) {
  const auto readable = sys::reopen(handle.fd(), O_RDONLY | O_NONBLOCK);
  return readable && sys::has_bytes(*readable, data, offset);
}

}  // namespace

Result<std::uint32_t> Passthrough::write(fuse::Call& call, const fuse::WriteArgs& args,
                                         const IoSpace& data) {
  const HandleRef handle = TRY(handles_.find(args.handle, HandleKind::kFile, call.node));
  const bool from_cache = (args.write_flags & FUSE_WRITE_CACHE) != 0;
  int flags = 0;
  if (from_cache) {
    // The guest's page cache knows where its pages belong. Only an append-only
    // file is open for appending; it refuses, rather than put them elsewhere.
    if ((handle.open_flags() & O_APPEND) != 0) flags = RWF_NOAPPEND;
  } else if ((args.flags & O_APPEND) != 0 && !call.session.has(FUSE_WRITEBACK_CACHE)) {
    flags = RWF_APPEND;
  }
  // RWF_DSYNC of the guest's caller: what goes through its cache is followed by an FSYNC, what
  // doesn't has nothing but this (fuse_write_flags).
  const bool direct = bypasses_cache() || (args.flags & O_DIRECT) != 0;
  if (!from_cache && direct && (args.flags & ~handle.open_flags() & O_SYNC) != 0)
    flags |= (args.flags & O_SYNC) == O_SYNC ? RWF_SYNC : RWF_DSYNC;
  const bool is_synced = (flags & (RWF_SYNC | RWF_DSYNC)) != 0;
  if (is_synced || (handle.open_flags() & (O_DSYNC | O_DIRECT)) != 0)
    call.scheduler.about_to_block();
  if (call.again && (flags & RWF_APPEND) != 0 && was_appended(handle, args.offset, data)) {
    if (is_synced || (handle.open_flags() & O_DSYNC) != 0) TRY(sys::fsync(handle.fd()));
    return static_cast<std::uint32_t>(data.size());
  }

  // Honoured whether or not HANDLE_KILLPRIV_V2 was negotiated: direct I/O asks without it.
  ScopedWithoutFsetid killing;
  if ((args.write_flags & FUSE_WRITE_KILL_SUIDGID) != 0 && TRY(has_set_id(handle)))
    TRY(drop_fsetid(call, handle.fd(), killing));

  // Who writes pages back looks for an error only (fuse_writepage_end): a short count would lose
  // the rest without a word. Of direct I/O through the cache a short one is an EIO, whatever the
  // cause (fuse_get_res_by_io).
  const bool whole = from_cache || ((args.flags & O_DIRECT) != 0 && !bypasses_cache());
  if (data.size() > 0) TRY(drop_capability_xattr(handle));
  if (data.size() >= kTakesTurns && !is_direct(handle)) call.scheduler.takes_turn(call.node);
  std::size_t done = 0;
  while (done < data.size()) {
    auto put = sys::pwritev2(handle.fd(), data, done, args.offset + done, flags);
    if (!put && put.error() == Errno{EINVAL} && is_direct(handle)) {
      const BufferedTwin twin{handle};
      if (twin.usable()) put = sys::pwritev2(twin.fd(), data, done, args.offset + done, flags);
    }
    if (!put) {
      if (done > 0 && !whole) break;
      return put.error();
    }
    if (*put == 0) {
      if (whole) return Errno{EIO};
      break;
    }
    done += *put;
  }
  return static_cast<std::uint32_t>(done);
}

// One close(2) of perhaps several of the guest's open file.
Result<> Passthrough::flush(fuse::Call& call, HandleId id, LockOwner owner) {
  const HandleRef handle = TRY(handles_.find(id, HandleKind::kFile, call.node));
  locks_.flush(call.node, owner);
  // A local file system keeps late errors for fsync; a network one may write
  // now and tell.
  if (!on_network(handle)) return {};
  call.scheduler.about_to_block();
  return sys::flush_by_close(handle.fd());
}

Result<> Passthrough::release(fuse::Call& call, const fuse::ReleaseArgs& args) {
  {
    const auto handle = handles_.find(args.handle, HandleKind::kFile, call.node);
    if (!handle) return call.again ? Result<>{} : handle.error();
    locks_.release(*handle, args.owner, args.release_flags);
  }
  return handles_.release(args.handle, HandleKind::kFile, call.node);
}

Result<> Passthrough::fsync(fuse::Call& call, HandleId id, bool data_only) {
  const HandleRef handle = TRY(handles_.find(id, HandleKind::kFile, call.node));
  call.scheduler.about_to_block();
  return data_only ? sys::fdatasync(handle.fd()) : sys::fsync(handle.fd());
}

Result<> Passthrough::fallocate(fuse::Call& call, const fuse_fallocate_in& in) {
  const HandleRef handle = TRY(handles_.find(HandleId{in.fh}, HandleKind::kFile, call.node));
  if (in.offset > INT64_MAX || in.length > INT64_MAX) return Errno{EFBIG};
  TRY(drop_capability_xattr(handle));
  ScopedWithoutFsetid killing;
  if (may_have_to_kill(call) && TRY(has_set_id(handle)))
    TRY(drop_fsetid(call, handle.fd(), killing));
  // These move what is there: done twice, it would be moved twice.
  if (call.again && (in.mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) != 0)
    return Errno{EIO};
  call.scheduler.about_to_block();
  return sys::fallocate(handle.fd(), static_cast<int>(in.mode), in.offset, in.length);
}

Result<std::uint64_t> Passthrough::lseek(fuse::Call& call, HandleId id, std::uint64_t offset,
                                         std::uint32_t whence) {
  const HandleRef handle = TRY(handles_.find(id, HandleKind::kFile, call.node));
  // Everything else the guest works out itself; the host's position means nothing.
  if (whence != SEEK_DATA && whence != SEEK_HOLE) return Errno{EINVAL};
  // The guest doesn't write out what it buffers before it asks (fuse_lseek), so what is a hole here
  // may be data there. Told that we don't know, it takes everything for data.
  if (call.session.has(FUSE_WRITEBACK_CACHE)) return Errno{ENOSYS};
  return sys::lseek(handle.fd(), offset, static_cast<int>(whence));
}

Result<std::uint64_t> Passthrough::copy_file_range(fuse::Call& call, const fuse::CopyArgs& args) {
  if (args.flags != 0) return Errno{EINVAL};
  const HandleRef from = TRY(handles_.find(args.from, HandleKind::kFile, call.node));
  const HandleRef to = TRY(handles_.find(args.to, HandleKind::kFile, args.to_node));
  call.scheduler.about_to_block();
  const std::size_t length =
      static_cast<std::size_t>(std::min(args.length, std::uint64_t{INT64_MAX}));
  if (length > 0) TRY(drop_capability_xattr(to));
  ScopedWithoutFsetid killing;
  if (may_have_to_kill(call) && TRY(has_set_id(to))) TRY(drop_fsetid(call, to.fd(), killing));
  return sys::copy_file_range(from.fd(), args.from_offset, to.fd(), args.to_offset, length);
}

Result<> Passthrough::syncfs(fuse::Call& call) {
  const InodeRef inode = TRY(inodes_->pin(call.node));
  if (!inode.is_directory() && !inode.is_regular()) return Errno{EINVAL};
  call.scheduler.about_to_block();
  const UniqueFd fd = TRY(inodes_->open(inode, O_RDONLY));
  return sys::syncfs(fd);
}

}  // namespace virtiofsd
