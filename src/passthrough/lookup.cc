// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Names to nodes: LOOKUP, FORGET, and what every reply about a node says.
#include "base/uninitialized.h"
#include "passthrough/passthrough.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

// A device number as the protocol carries it (the kernel's new_encode_dev).
std::uint32_t encode_device(std::uint32_t major, std::uint32_t minor) {
  return (minor & 0xff) | (major << 8) | ((minor & ~0xffU) << 12);
}

// Bits that make the next write by somebody else change the file's mode.
bool has_set_id_bits(std::uint16_t mode) {
  return (mode & S_ISUID) != 0 || (mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP);
}

}  // namespace

Result<fuse::Caller> Passthrough::host_caller(const fuse::Call& call) const {
  fuse::Caller caller = call.caller;
  caller.uid = TRY(settings_.uid_map.to_host(caller.uid));
  caller.gid = TRY(settings_.gid_map.to_host(caller.gid));
  if (caller.supplementary_group)
    caller.supplementary_group = TRY(settings_.gid_map.to_host(*caller.supplementary_group));
  return caller;
}

fuse_attr Passthrough::attr_of(const fuse::Call& call, const InodeRef& inode,
                               const struct statx& stx) const {
  const bool submount = settings_.announce_submounts && call.session.has(FUSE_SUBMOUNTS) &&
                        inode.is_directory() && inode.is_submount();
  return {.ino = stx.stx_ino,
          .size = stx.stx_size,
          .blocks = stx.stx_blocks,
          .atime = static_cast<std::uint64_t>(stx.stx_atime.tv_sec),
          .mtime = static_cast<std::uint64_t>(stx.stx_mtime.tv_sec),
          .ctime = static_cast<std::uint64_t>(stx.stx_ctime.tv_sec),
          .atimensec = stx.stx_atime.tv_nsec,
          .mtimensec = stx.stx_mtime.tv_nsec,
          .ctimensec = stx.stx_ctime.tv_nsec,
          .mode = stx.stx_mode,
          .nlink = stx.stx_nlink,
          .uid = settings_.uid_map.to_guest(stx.stx_uid),
          .gid = settings_.gid_map.to_guest(stx.stx_gid),
          .rdev = encode_device(stx.stx_rdev_major, stx.stx_rdev_minor),
          .blksize = stx.stx_blksize,
          .flags = submount ? std::uint32_t{FUSE_ATTR_SUBMOUNT} : 0};
}

Passthrough::Timeout Passthrough::attribute_timeout(const fuse::Call& call,
                                                    const struct statx& stx) const {
  // With HANDLE_KILLPRIV_V2 it is the host that takes these bits off on a
  // write, and the guest would go on showing them.
  if (call.session.has(FUSE_HANDLE_KILLPRIV_V2) && S_ISREG(stx.stx_mode) &&
      has_set_id_bits(stx.stx_mode)) {
    return {};
  }
  return attribute_timeout_;
}

fuse_entry_out Passthrough::entry_of(const fuse::Call& call, const InodeRef& inode,
                                     const struct statx& stx) const {
  const Timeout attribute = attribute_timeout(call, stx);
  // A nodeid is never given twice, so one generation does for all.
  return {.nodeid = inode.id().value,
          .generation = 0,
          .entry_valid = entry_timeout_.seconds,
          .attr_valid = attribute.seconds,
          .entry_valid_nsec = entry_timeout_.nanoseconds,
          .attr_valid_nsec = attribute.nanoseconds,
          .attr = attr_of(call, inode, stx)};
}

Result<fuse_entry_out> Passthrough::lookup(fuse::Call& call, Name name) {
  const InodeRef directory = TRY(inodes_->pin(call.node));
  UNINITIALIZED struct statx stx;
  const auto found = inodes_->lookup(directory, name, 0, &stx);
  if (found) [[likely]]
    return entry_of(call, *found, stx);
  if (found.error() != Errno{ENOENT} || !(settings_.negative_timeout > 0)) return found.error();
  // Node 0 says that there is no such name, and for how long.
  fuse_entry_out none{};
  none.entry_valid = negative_timeout_.seconds;
  none.entry_valid_nsec = negative_timeout_.nanoseconds;
  return none;
}

Result<fuse_entry_out> Passthrough::lookup_self(fuse::Call& call) {
  UNINITIALIZED struct statx stx;
  const InodeRef inode = TRY(inodes_->recall(call.node, &stx));
  return entry_of(call, inode, stx);
}

Result<fuse_entry_out> Passthrough::lookup_parent(fuse::Call& call) {
  const InodeRef inode = TRY(inodes_->pin(call.node));
  UNINITIALIZED struct statx stx;
  const InodeRef parent = TRY(inodes_->parent(inode, &stx));
  return entry_of(call, parent, stx);
}

void Passthrough::forget(NodeId node, std::uint64_t count) {
  inodes_->forget(node, count);
}

}  // namespace virtiofsd
