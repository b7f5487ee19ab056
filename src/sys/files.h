// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One small function per file system call: same name, errno turned into a
// value. Calls that take a name in a directory take a Name, so they can't
// climb. Every descriptor made here is O_CLOEXEC. Any thread.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/name.h"
#include "base/result.h"
#include "sys/fd.h"
#include "sys/io_space.h"

namespace virtiofsd::sys {

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

// A new open file of what `fd` (usually O_PATH) names, through the private
// /proc/self/fd. `flags` must not hold O_CREAT or O_NOFOLLOW.
Result<UniqueFd> reopen(FdRef fd, int flags);

// The descriptor of /proc/self/fd that reopen and friends go through. Set once
// at start, before threads (the sandbox opens it before /proc goes away).
void set_proc_self_fd(UniqueFd proc_self_fd);
FdRef proc_self_fd();

}  // namespace virtiofsd::sys
