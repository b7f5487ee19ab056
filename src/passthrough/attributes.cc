// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Attributes of a node: GETATTR, STATX, SETATTR, READLINK, ACCESS, STATFS.
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/uninitialized.h"
#include "passthrough/credentials.h"
#include "passthrough/passthrough.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

constexpr std::uint64_t kLongestFile = INT64_MAX;

timespec time_to_set(std::uint32_t valid, std::uint32_t set, std::uint32_t now,
                     std::uint64_t seconds, std::uint32_t nanoseconds) {
  if ((valid & now) != 0) return {.tv_sec = 0, .tv_nsec = UTIME_NOW};
  if ((valid & set) == 0) return {.tv_sec = 0, .tv_nsec = UTIME_OMIT};
  return {.tv_sec = static_cast<time_t>(seconds), .tv_nsec = static_cast<long>(nanoseconds)};
}

fuse_sx_time time_of(const statx_timestamp& time) {
  fuse_sx_time out{};
  out.tv_sec = time.tv_sec;
  out.tv_nsec = time.tv_nsec;
  return out;
}

}  // namespace

Result<> Passthrough::stat(fuse::Call& call, std::optional<HandleId> handle, const InodeRef& inode,
                           struct statx* out) {
  if (!handle) return inodes_->stat(inode, sys::kStatxMask, out);
  const HandleRef file = TRY(handles_.find(*handle, HandleKind::kFile, call.node));
  return sys::statx(file.fd(), sys::kStatxMask, out);
}

Result<fuse_attr_out> Passthrough::getattr(fuse::Call& call, std::optional<HandleId> handle) {
  const InodeRef inode = TRY(inodes_->pin(call.node));
  UNINITIALIZED struct statx stx;
  TRY(stat(call, handle, inode, &stx));
  const Timeout timeout = attribute_timeout(call, stx);
  return fuse_attr_out{.attr_valid = timeout.seconds,
                       .attr_valid_nsec = timeout.nanoseconds,
                       .dummy = 0,
                       .attr = attr_of(call, inode, stx)};
}

Result<fuse_statx_out> Passthrough::statx(fuse::Call& call, const fuse_statx_in& in) {
  const InodeRef inode = TRY(inodes_->pin(call.node));
  std::optional<HandleId> handle;
  if ((in.getattr_flags & FUSE_GETATTR_FH) != 0) handle = HandleId{in.fh};
  UNINITIALIZED struct statx stx;
  TRY(stat(call, handle, inode, &stx));

  // What the guest's statx(2) knows of and what says nothing about the host.
  constexpr std::uint64_t kAttributes = STATX_ATTR_COMPRESSED | STATX_ATTR_IMMUTABLE |
                                        STATX_ATTR_APPEND | STATX_ATTR_NODUMP |
                                        STATX_ATTR_ENCRYPTED | STATX_ATTR_VERITY;
  const Timeout timeout = attribute_timeout(call, stx);
  const fuse_attr attr = attr_of(call, inode, stx);
  fuse_statx_out out{};
  out.attr_valid = timeout.seconds;
  out.attr_valid_nsec = timeout.nanoseconds;
  out.flags = attr.flags;
  out.stat.mask = stx.stx_mask & (STATX_BASIC_STATS | STATX_BTIME);
  out.stat.blksize = stx.stx_blksize;
  out.stat.attributes = stx.stx_attributes & kAttributes;
  out.stat.attributes_mask = stx.stx_attributes_mask & kAttributes;
  out.stat.nlink = stx.stx_nlink;
  out.stat.uid = attr.uid;
  out.stat.gid = attr.gid;
  out.stat.mode = stx.stx_mode;
  out.stat.ino = stx.stx_ino;
  out.stat.size = stx.stx_size;
  out.stat.blocks = stx.stx_blocks;
  out.stat.atime = time_of(stx.stx_atime);
  out.stat.btime = time_of(stx.stx_btime);
  out.stat.ctime = time_of(stx.stx_ctime);
  out.stat.mtime = time_of(stx.stx_mtime);
  out.stat.rdev_major = stx.stx_rdev_major;
  out.stat.rdev_minor = stx.stx_rdev_minor;
  return out;
}

Result<> Passthrough::set_size(fuse::Call& call, const InodeRef& inode, const fuse_setattr_in& in) {
  if (in.size > kLongestFile) return Errno{EFBIG};
  if (inode.is_directory()) return Errno{EISDIR};
  if (!inode.is_regular()) return Errno{EINVAL};
  ScopedWithoutFsetid killing;
  if ((in.valid & FATTR_KILL_SUIDGID) != 0) {
    const FdRef fd = TRY(inodes_->fd(inode));
    TRY(drop_fsetid(call, fd, killing));
  }
  if ((in.valid & FATTR_FH) != 0) {
    const HandleRef file = TRY(handles_.find(HandleId{in.fh}, HandleKind::kFile, call.node));
    if ((file.open_flags() & O_ACCMODE) != O_RDONLY) return sys::ftruncate(file.fd(), in.size);
  }
  return sys::truncate(TRY(inodes_->fd(inode)), in.size);
}

// Linux changes a file's set-id bits by a request that asks for nothing else, for it leaves to us
// which ones go (fuse_setattr): before an ordinary user's FALLOCATE, or for chown(file, -1, -1),
// which is what the host's kernel is asked then.
bool Passthrough::only_kills_set_ids(const fuse::Call& call, const InodeRef& inode,
                                     std::uint32_t valid) {
  constexpr std::uint32_t kSayHow = FATTR_FH | FATTR_LOCKOWNER | FATTR_CTIME;
  return (valid & ~kSayHow) == 0 && inode.is_regular() && call.session.has(FUSE_HANDLE_KILLPRIV_V2);
}

// The order is the one in which nothing undoes what came before it: an owner
// change and a truncation take set-id bits off, and all of them set the times.
Result<fuse_attr_out> Passthrough::setattr(fuse::Call& call, const fuse_setattr_in& in) {
  const InodeRef inode = TRY(inodes_->pin(call.node));
  if ((in.valid & FATTR_MODE) != 0) {
    if (inode.is_symlink()) return Errno{EOPNOTSUPP};  // a link's mode means nothing
    const FdRef fd = TRY(inodes_->fd(inode));
    TRY(sys::chmod(fd, in.mode & 07777));
  }
  if ((in.valid & (FATTR_UID | FATTR_GID)) != 0 || only_kills_set_ids(call, inode, in.valid)) {
    const auto unchanged = static_cast<uid_t>(-1);
    uid_t uid = unchanged;
    gid_t gid = unchanged;
    if ((in.valid & FATTR_UID) != 0) uid = TRY(settings_.uid_map.to_host(in.uid));
    if ((in.valid & FATTR_GID) != 0) gid = TRY(settings_.gid_map.to_host(in.gid));
    const FdRef fd = TRY(inodes_->fd(inode));
    if (inode.is_regular()) TRY(drop_capability_xattr(fd));
    // The flag is always there with a new owner, though root keeps a bit that the host lets it
    // keep.
    ScopedWithoutFsetid killing;
    if ((in.valid & FATTR_KILL_SUIDGID) != 0 && call.caller.uid != 0)
      TRY(drop_fsetid(call, fd, killing));
    TRY(sys::chown(fd, uid, gid));
  }
  if ((in.valid & FATTR_SIZE) != 0) {
    const FdRef fd = TRY(inodes_->fd(inode));
    if (inode.is_regular()) TRY(drop_capability_xattr(fd));
    TRY(set_size(call, inode, in));
  }
  if ((in.valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW)) != 0) {
    const std::array<timespec, 2> times{
        time_to_set(in.valid, FATTR_ATIME, FATTR_ATIME_NOW, in.atime, in.atimensec),
        time_to_set(in.valid, FATTR_MTIME, FATTR_MTIME_NOW, in.mtime, in.mtimensec)};
    const FdRef fd = TRY(inodes_->fd(inode));
    TRY(sys::utimens(fd, times));
  }
  return getattr(call, std::nullopt);
}

Result<> Passthrough::readlink(fuse::Call& call, fuse::Body& body) {
  const InodeRef inode = TRY(inodes_->pin(call.node));
  if (!inode.is_symlink()) return Errno{EINVAL};
  // As readlink(2): what doesn't fit the caller's buffer is cut off.
  UNINITIALIZED std::array<char, PATH_MAX> target;
  const std::span<char> room = std::span{target}.first(std::min(body.room(), target.size()));
  if (room.empty()) return Errno{EINVAL};
  const FdRef fd = TRY(inodes_->fd(inode));
  const std::size_t size = TRY(sys::readlink(fd, room));
  return body.put_bytes(std::as_bytes(room.first(size)));
}

Result<> Passthrough::access(fuse::Call& call, std::uint32_t mask) {
  const InodeRef inode = TRY(inodes_->pin(call.node));
  const FdRef fd = TRY(inodes_->fd(inode));
  if ((mask & ~std::uint32_t{R_OK | W_OK | X_OK}) != 0) return Errno{EINVAL};
  const fuse::Caller caller = TRY(host_caller(call));
  ScopedCredentials credentials;
  if (settings_.can_switch_user) {
    TRY(credentials.assume(caller, ScopedCredentials::Override::kNone));
  }
  return sys::access(fd, static_cast<int>(mask));
}

Result<fuse_kstatfs> Passthrough::statfs(fuse::Call& call) {
  const InodeRef inode = TRY(inodes_->pin(call.node));
  const FdRef fd = TRY(inodes_->fd(inode));
  const struct statfs host = TRY(sys::fstatfs(fd));
  fuse_kstatfs out{};
  out.blocks = host.f_blocks;
  out.bfree = host.f_bfree;
  out.bavail = host.f_bavail;
  out.files = host.f_files;
  out.ffree = host.f_ffree;
  out.bsize = static_cast<std::uint32_t>(host.f_bsize);
  out.namelen = static_cast<std::uint32_t>(host.f_namelen);
  out.frsize = static_cast<std::uint32_t>(host.f_frsize);
  return out;
}

}  // namespace virtiofsd
