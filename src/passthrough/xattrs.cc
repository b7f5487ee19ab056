// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Extended attributes, under the host's names for them (xattr_map.h).
//
// Whatever kind of file it is, it is reached by its descriptor's entry in
// /proc/self/fd: that needs no open file, and leads to the object itself even
// if that is a symbolic link or a device.
#include <limits.h>
#include <linux/limits.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "passthrough/credentials.h"
#include "passthrough/passthrough.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

// Says "there are none here" for the life of the mount, so the guest stops asking.
constexpr Errno kNoXattrs{ENOSYS};

constexpr std::string_view kSecurity = "security.";

bool is_acl(std::string_view name) {
  return name == "system.posix_acl_access" || name == "system.posix_acl_default";
}

bool has_xattr(FdRef fd, const char* name, std::span<const std::byte> value) {
  std::vector<std::byte> room(value.size() + 1);  // a longer one doesn't fit or fills it
  const auto size = sys::getxattr(fd, name, room);
  return size && std::ranges::equal(std::span{room}.first(*size), value);
}

}  // namespace

Result<std::string> Passthrough::xattr_name(const fuse::Call& call, std::string_view name) const {
  // Without them negotiated the guest wouldn't check them, and the host would.
  if (is_acl(name) && !call.session.has(FUSE_POSIX_ACL)) return Errno{ENOTSUP};
  if (name.empty() || name.size() > XATTR_NAME_MAX) return Errno{ERANGE};
  if (!settings_.xattr_map) return std::string{name};
  std::string mapped = TRY(settings_.xattr_map->to_server(name));
  if (mapped.size() > XATTR_NAME_MAX) return Errno{ERANGE};
  return mapped;
}

Result<> Passthrough::setxattr(fuse::Call& call, std::string_view name,
                               std::span<const std::byte> value, std::uint32_t flags,
                               std::uint32_t setxattr_flags) {
  if (!settings_.xattr) return kNoXattrs;
  const std::string mapped = TRY(xattr_name(call, name));
  const InodeRef inode = TRY(inodes_->pin(call.node));
  const FdRef fd = TRY(inodes_->fd(inode));
  // The guest found that the caller isn't in the group: the kernel then takes the bit off.
  ScopedWithoutFsetid killing;
  if ((setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID) != 0) TRY(drop_fsetid_outside(fd, killing));
  const Result<> done = sys::setxattr(fd, mapped.c_str(), value, static_cast<int>(flags));
  // Served again, it may be what this request made.
  if (!done && call.again && done.error() == Errno{EEXIST} && has_xattr(fd, mapped.c_str(), value))
    return {};
  return done;
}

Result<> Passthrough::getxattr(fuse::Call& call, std::string_view name, std::uint32_t size,
                               fuse::Body& body) {
  if (!settings_.xattr) return kNoXattrs;
  // A guest that was promised ACLs asks for one before it lets anybody in, root too, and takes no
  // other error for there being none (fuse_get_acl).
  const bool must_tell = is_acl(name) && call.session.has(FUSE_POSIX_ACL);
  const auto told = [must_tell](Errno error) {
    return must_tell && error == Errno{EOPNOTSUPP} ? Errno{ENODATA} : error;
  };
  const auto mapped = xattr_name(call, name);
  // A name that may not be set is a name that nothing has.
  if (!mapped) return mapped.error() == Errno{EPERM} ? Errno{ENODATA} : told(mapped.error());
  const InodeRef inode = TRY(inodes_->pin(call.node));
  const FdRef fd = TRY(inodes_->fd(inode));
  if (size == 0) {
    const auto length = sys::getxattr(fd, mapped->c_str(), {});
    if (!length) return told(length.error());
    return body.put(fuse_getxattr_out{.size = static_cast<std::uint32_t>(*length), .padding = 0});
  }
  thread_local std::array<std::byte, XATTR_SIZE_MAX> value;
  const std::size_t room = std::min<std::size_t>(size, value.size());
  const auto length = sys::getxattr(fd, mapped->c_str(), std::span{value}.first(room));
  if (!length) return told(length.error());
  return body.put_bytes(std::span{value}.first(*length));
}

Result<> Passthrough::listxattr(fuse::Call& call, std::uint32_t size, fuse::Body& body) {
  if (!settings_.xattr) return kNoXattrs;
  const InodeRef inode = TRY(inodes_->pin(call.node));
  const FdRef fd = TRY(inodes_->fd(inode));
  thread_local std::array<char, XATTR_LIST_MAX> host;
  std::string_view rest{host.data(), TRY(sys::listxattr(fd, host))};

  // What the guest may see, under its names; the length alone is told of the same list. (With
  // ALLOW_IDMAP the guest doesn't say who asks.)
  const bool is_ordinary_user = call.caller.uid != 0 && call.caller.uid != ~0U;
  std::string names;
  while (!rest.empty()) {
    const std::string_view name = rest.substr(0, rest.find('\0'));
    rest.remove_prefix(std::min(rest.size(), name.size() + 1));
    std::optional<std::string> shown{std::string{name}};
    if (settings_.xattr_map) shown = settings_.xattr_map->to_client(name);
    if (!shown || (is_acl(*shown) && !call.session.has(FUSE_POSIX_ACL))) continue;
    // As the kernel does where it knows the caller (simple_xattr_list and its like).
    if (is_ordinary_user && shown->starts_with("trusted.")) continue;
    names += *shown;
    names += '\0';
  }
  if (names.size() > XATTR_LIST_MAX) return Errno{E2BIG};
  if (size == 0) {
    return body.put(
        fuse_getxattr_out{.size = static_cast<std::uint32_t>(names.size()), .padding = 0});
  }
  if (names.size() > size) return Errno{ERANGE};
  return body.put_bytes(std::as_bytes(std::span{names}));
}

Result<> Passthrough::removexattr(fuse::Call& call, std::string_view name) {
  if (!settings_.xattr) return kNoXattrs;
  const std::string mapped = TRY(xattr_name(call, name));
  const InodeRef inode = TRY(inodes_->pin(call.node));
  const FdRef fd = TRY(inodes_->fd(inode));
  const Result<> removed = sys::removexattr(fd, mapped.c_str());
  if (!removed && call.again && removed.error() == Errno{ENODATA}) return {};
  return removed;
}

// The label of what was just made (SECURITY_CTX). Set by the daemon, so only
// labels: any other attribute is the guest's to set, and to be refused.
Result<> Passthrough::set_security_context(const fuse::Call& call, FdRef fd) const {
  if (!call.security->name.starts_with(kSecurity)) return Errno{EINVAL};
  const std::string name = TRY(xattr_name(call, call.security->name));
  return sys::setxattr(fd, name.c_str(), call.security->value, 0);
}

}  // namespace virtiofsd
