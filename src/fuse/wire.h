// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The FUSE protocol as bytes: the system's <linux/fuse.h> and what later
// kernels added to it, up to protocol 7.45. Every struct is plain, padded to
// eight bytes and little-endian. Built with a newer header, this adds nothing.
#pragma once

#include <linux/fuse.h>

#include <cstddef>
#include <cstdint>

#if FUSE_KERNEL_MINOR_VERSION < 37
#error "linux/fuse.h is older than protocol 7.37"
#endif

// INIT flags; bits 32 and up travel in flags2.
#ifndef FUSE_CREATE_SUPP_GROUP
#define FUSE_CREATE_SUPP_GROUP (1ULL << 34)
// Some 7.38 headers have this extension and some don't; the flag tells.
inline constexpr std::uint32_t FUSE_EXT_GROUPS = 32;
#endif
#ifndef FUSE_HAS_EXPIRE_ONLY
#define FUSE_HAS_EXPIRE_ONLY (1ULL << 35)
#endif
#ifndef FUSE_DIRECT_IO_ALLOW_MMAP
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ULL << 36)
#endif
#ifndef FUSE_PASSTHROUGH
#define FUSE_PASSTHROUGH (1ULL << 37)
#endif
#ifndef FUSE_NO_EXPORT_SUPPORT
#define FUSE_NO_EXPORT_SUPPORT (1ULL << 38)
#endif
#ifndef FUSE_HAS_RESEND
#define FUSE_HAS_RESEND (1ULL << 39)
#endif
#ifndef FUSE_ALLOW_IDMAP
#define FUSE_ALLOW_IDMAP (1ULL << 40)
#endif
#ifndef FUSE_OVER_IO_URING
#define FUSE_OVER_IO_URING (1ULL << 41)
#endif
#ifndef FUSE_REQUEST_TIMEOUT
#define FUSE_REQUEST_TIMEOUT (1ULL << 42)
#endif

// Reply flags of OPEN.
#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif
#ifndef FOPEN_PASSTHROUGH
#define FOPEN_PASSTHROUGH (1 << 7)
#endif

#if FUSE_KERNEL_MINOR_VERSION < 39
inline constexpr std::uint32_t FUSE_STATX = 52;

// The same bytes as the kernel's struct statx.
struct fuse_sx_time {
  std::int64_t tv_sec;
  std::uint32_t tv_nsec;
  std::int32_t __reserved;
};

struct fuse_statx {
  std::uint32_t mask;
  std::uint32_t blksize;
  std::uint64_t attributes;
  std::uint32_t nlink;
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint16_t mode;
  std::uint16_t __spare0[1];
  std::uint64_t ino;
  std::uint64_t size;
  std::uint64_t blocks;
  std::uint64_t attributes_mask;
  fuse_sx_time atime;
  fuse_sx_time btime;
  fuse_sx_time ctime;
  fuse_sx_time mtime;
  std::uint32_t rdev_major;
  std::uint32_t rdev_minor;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint64_t __spare2[14];
};

struct fuse_statx_in {
  std::uint32_t getattr_flags;
  std::uint32_t reserved;
  std::uint64_t fh;
  std::uint32_t sx_flags;
  std::uint32_t sx_mask;
};

struct fuse_statx_out {
  std::uint64_t attr_valid;  // cache timeout of the attributes, seconds
  std::uint32_t attr_valid_nsec;
  std::uint32_t flags;
  std::uint64_t spare[2];
  struct fuse_statx stat;
};
#endif

#if FUSE_KERNEL_MINOR_VERSION < 45
inline constexpr std::uint32_t FUSE_COPY_FILE_RANGE_64 = 53;

struct fuse_copy_file_range_out {
  std::uint64_t bytes_copied;
};
#endif

namespace virtiofsd::fuse {

// The protocol we speak, whatever header we were built with.
inline constexpr std::uint32_t kMajor = 7;
inline constexpr std::uint32_t kMinor = 45;
// The oldest guest we answer: Linux 4.18, before virtio-fs existed.
inline constexpr std::uint32_t kOldestMinor = 27;

// The guest's name for the root of the share.
inline constexpr std::uint64_t kRootNode = FUSE_ROOT_ID;

static_assert(sizeof(fuse_in_header) == 40);
static_assert(sizeof(fuse_out_header) == 16);
static_assert(sizeof(fuse_init_in) == 64);
static_assert(sizeof(fuse_init_out) == 64);
static_assert(sizeof(fuse_attr) == 88);
static_assert(sizeof(fuse_entry_out) == 128);
static_assert(sizeof(fuse_attr_out) == 104);
static_assert(sizeof(fuse_open_out) == 16);
static_assert(sizeof(fuse_kstatfs) == 80);
static_assert(sizeof(fuse_setattr_in) == 88);
static_assert(sizeof(fuse_setxattr_in) == 16);
static_assert(sizeof(fuse_read_in) == 40);
static_assert(sizeof(fuse_write_in) == 40);
static_assert(sizeof(fuse_create_in) == 16);
static_assert(sizeof(fuse_lk_in) == 48);
static_assert(sizeof(fuse_file_lock) == 24);
static_assert(sizeof(fuse_ioctl_in) == 32);
static_assert(sizeof(fuse_ioctl_out) == 16);
static_assert(sizeof(fuse_copy_file_range_in) == 56);
static_assert(sizeof(fuse_copy_file_range_out) == 8);
static_assert(sizeof(fuse_sx_time) == 16);
static_assert(sizeof(struct fuse_statx) == 256);
static_assert(sizeof(fuse_statx_in) == 24);
static_assert(sizeof(fuse_statx_out) == 288);
static_assert(offsetof(fuse_dirent, name) == 24);
static_assert(sizeof(fuse_direntplus) == 152);

}  // namespace virtiofsd::fuse
