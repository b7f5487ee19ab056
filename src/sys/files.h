// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One small function per file system call: same name, errno turned into a
// value. Calls that take a name in a directory take a Name, so they can't
// climb, and none of them follows a symbolic link. Every descriptor made here
// is O_CLOEXEC. Any thread.
//
// "The object" of a descriptor is what it was opened on, symbolic links and
// special files included; where a call wants a path for it, the path is its
// entry in /proc/self/fd, which leads to the object itself and no further.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/name.h"
#include "base/result.h"
#include "sys/fd.h"
#include "sys/io_space.h"

namespace virtiofsd::sys {

// A further number for the same open file.
Result<UniqueFd> duplicate(FdRef fd);

// What every operation asks statx for: basic attributes, birth time, mount id.
inline constexpr unsigned kStatxMask = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID;

// `flags` adds to AT_SYMLINK_NOFOLLOW, which is always set.
Result<> statx(FdRef directory, Name name, int flags, unsigned mask, struct statx* out);
// Of the descriptor itself (AT_EMPTY_PATH).
Result<> statx(FdRef fd, unsigned mask, struct statx* out);

// O_PATH | O_NOFOLLOW: names the object itself, opens nothing.
Result<UniqueFd> open_path(FdRef directory, Name name);

// A kernel file handle (name_to_handle_at). Never comes from a guest.
struct FileHandle {
  static constexpr std::size_t kMaxBytes = 128;  // MAX_HANDLE_SZ
  int mount_id = 0;
  int type = 0;
  std::uint32_t size = 0;  // bytes used
  std::array<std::byte, kMaxBytes> bytes{};
};
Result<FileHandle> name_to_handle_at(FdRef fd);  // of the descriptor itself
// Needs CAP_DAC_READ_SEARCH in the initial user namespace. `mount` is any
// descriptor on the same mount (not O_PATH).
Result<UniqueFd> open_by_handle_at(FdRef mount, const FileHandle& handle, int flags);

// The path of the object, as far as this process's root reaches; " (deleted)" is behind that of a
// name that is gone, and a file may be called so.
Result<std::string> path_of(FdRef fd);

// A new open file of what `fd` (usually O_PATH) names, through the private
// /proc/self/fd. `flags` must not hold O_CREAT or O_NOFOLLOW.
Result<UniqueFd> reopen(FdRef fd, int flags);
// The same for a directory, without /proc. O_DIRECTORY is added. ENOTDIR.
Result<UniqueFd> reopen_directory(FdRef fd, int flags);

// Opens what is called `name` if it is on the directory's mount, without waiting for anything
// (O_NOFOLLOW | O_NONBLOCK | O_NOCTTY). EXDEV for a mount point; ENOSYS before Linux 5.6.
Result<UniqueFd> open_on_mount(FdRef directory, Name name, int flags);

// Opens `name`, O_NOFOLLOW; creates it with `mode` when `flags` has O_CREAT.
Result<UniqueFd> openat(FdRef directory, Name name, int flags, mode_t mode);
// A file without a name in `directory`'s file system. O_TMPFILE is added.
Result<UniqueFd> open_tmpfile(FdRef directory, int flags, mode_t mode);

// The descriptor of /proc/self/fd that reopen and friends go through. Set once
// at start, before threads (the sandbox opens it before /proc goes away).
// Where nobody set it, the first use opens /proc/self/fd.
void set_proc_self_fd(UniqueFd proc_self_fd);
FdRef proc_self_fd();

// Names.
Result<> mkdirat(FdRef directory, Name name, mode_t mode);
Result<> mknodat(FdRef directory, Name name, mode_t mode, dev_t device);
Result<> symlinkat(const char* target, FdRef directory, Name name);
// A new name for the object of `fd`; needs no capability.
Result<> linkat(FdRef fd, FdRef directory, Name name);
Result<> unlinkat(FdRef directory, Name name, int flags);  // 0 or AT_REMOVEDIR
Result<> renameat2(FdRef from_directory, Name from, FdRef to_directory, Name to, unsigned flags);

// Attributes, of the object of any kind of descriptor.
Result<std::size_t> readlink(FdRef fd, std::span<char> out);
Result<> chmod(FdRef fd, mode_t mode);
Result<> chown(FdRef fd, uid_t uid, gid_t gid);  // -1 leaves one as it is
Result<> utimens(FdRef fd, const std::array<timespec, 2>& times);
Result<> truncate(FdRef fd, std::uint64_t size);
Result<> access(FdRef fd, int mask);  // with the file system credentials of the thread
Result<struct statfs> fstatfs(FdRef fd);

// Extended attributes of the object of any kind of descriptor. `name` is a C string.
Result<> setxattr(FdRef fd, const char* name, std::span<const std::byte> value, int flags);
// An empty `out` asks for the size.
Result<std::size_t> getxattr(FdRef fd, const char* name, std::span<std::byte> out);
Result<std::size_t> listxattr(FdRef fd, std::span<char> out);
Result<> removexattr(FdRef fd, const char* name);

// Data. Both start `skip` bytes into `space`, stop at its size, and may do
// less than that (more than IOV_MAX pieces, too): the caller goes on. `flags` are RWF_*.
Result<std::size_t> preadv2(FdRef fd, const IoSpace& space, std::size_t skip, std::uint64_t offset,
                            int flags);
Result<std::size_t> pwritev2(FdRef fd, const IoSpace& space, std::size_t skip, std::uint64_t offset,
                             int flags);
// Whether the file has just these bytes there. Reads both: not for a hot path.
bool has_bytes(FdRef fd, const IoSpace& space, std::uint64_t offset);
Result<> ftruncate(FdRef fd, std::uint64_t size);
Result<> fallocate(FdRef fd, int mode, std::uint64_t offset, std::uint64_t length);
Result<std::uint64_t> lseek(FdRef fd, std::uint64_t offset, int whence);
Result<std::size_t> copy_file_range(FdRef from, std::uint64_t from_offset, FdRef to,
                                    std::uint64_t to_offset, std::size_t length);
Result<> fsync(FdRef fd);
Result<> fdatasync(FdRef fd);
Result<> syncfs(FdRef fd);
// What close(2) of one more descriptor of the open file says: late write
// errors, on file systems that report them then (NFS).
Result<> flush_by_close(FdRef fd);
Result<int> status_flags(FdRef fd);  // fcntl F_GETFL
Result<> set_status_flags(FdRef fd, int flags);
Result<int> ioctl(FdRef fd, unsigned long command, void* argument);

// Raw directory entries (struct linux_dirent64, packed). 0 at the end.
Result<std::size_t> getdents64(FdRef fd, std::span<std::byte> out);

}  // namespace virtiofsd::sys
