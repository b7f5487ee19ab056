// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The few ioctls that a file system answers the same way everywhere: inode
// flags and project ids (chattr, lsattr, xfs_quota). Everything else is
// ENOTTY; ENOSYS would switch all of them off.
#include <linux/fs.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>

#include "base/reader.h"
#include "passthrough/passthrough.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

// The 32-bit numbers of GETFLAGS and SETFLAGS. The value is an int in both,
// whatever the number's size says.
constexpr std::uint32_t kGetFlags32 = _IOR('f', 1, int);
constexpr std::uint32_t kSetFlags32 = _IOW('f', 2, int);

template <typename T>
Result<> answer(fuse::Body& body, const T& value, std::uint32_t out_size) {
  if (out_size < sizeof value) return Errno{EINVAL};
  TRY(body.put(fuse_ioctl_out{}));
  return body.put(value);
}

}  // namespace

Result<> Passthrough::ioctl(fuse::Call& call, const fuse::IoctlArgs& args,
                            std::span<const std::byte> in, fuse::Body& body) {
  const HandleKind kind =
      (args.flags & FUSE_IOCTL_DIR) != 0 ? HandleKind::kDirectory : HandleKind::kFile;
  const HandleRef handle = TRY(handles_.find(args.handle, kind, call.node));
  switch (args.command) {
    case FS_IOC_GETFLAGS:
    case kGetFlags32: {
      std::uint32_t flags = 0;
      TRY(sys::ioctl(handle.fd(), FS_IOC_GETFLAGS, &flags));
      return answer(body, flags, args.out_size);
    }
    case FS_IOC_SETFLAGS:
    case kSetFlags32: {
      if (settings_.read_only) return Errno{EROFS};
      auto flags = TRY(Reader{in}.take<std::uint32_t>());
      TRY(sys::ioctl(handle.fd(), FS_IOC_SETFLAGS, &flags));
      return body.put(fuse_ioctl_out{});
    }
    case FS_IOC_FSGETXATTR: {
      struct fsxattr attributes {};
      TRY(sys::ioctl(handle.fd(), FS_IOC_FSGETXATTR, &attributes));
      return answer(body, attributes, args.out_size);
    }
    case FS_IOC_FSSETXATTR: {
      if (settings_.read_only) return Errno{EROFS};
      auto attributes = TRY(Reader{in}.take<struct fsxattr>());
      TRY(sys::ioctl(handle.fd(), FS_IOC_FSSETXATTR, &attributes));
      return body.put(fuse_ioctl_out{});
    }
    default:
      return Errno{ENOTTY};
  }
}

}  // namespace virtiofsd
