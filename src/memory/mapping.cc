// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/mapping.h"

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <bit>
#include <limits>

#include "base/check.h"
#include "memory/sigbus.h"

namespace virtiofsd {
namespace {

// What offsets and lengths of mappings of this file must be multiples of.
Result<std::uint64_t> page_size_of(FdRef fd) {
  struct statfs file_system {};
  if (::fstatfs(fd.number(), &file_system) != 0) return Errno::last();
  if (file_system.f_type == HUGETLBFS_MAGIC) return static_cast<std::uint64_t>(file_system.f_bsize);
  return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

Result<std::shared_ptr<const Mapping>> Mapping::map(FdRef fd, std::uint64_t offset,
                                                    std::uint64_t size) {
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
  std::uint64_t end = 0;
  if (size == 0 || __builtin_add_overflow(offset, size, &end) || end > kMost) return Errno{EINVAL};

  struct stat status {};
  if (::fstat(fd.number(), &status) != 0) return Errno::last();
  if (S_ISREG(status.st_mode)) {
    // A region beyond the end would be a SIGBUS at the first touch.
    if (end > static_cast<std::uint64_t>(status.st_size)) return Errno{EINVAL};
  } else if (!S_ISCHR(status.st_mode)) {
    // Persistent memory can be a character device; those have no size to check.
    return Errno{EINVAL};
  }

  const std::uint64_t page_size = TRY(page_size_of(fd));
  if (!std::has_single_bit(page_size)) return Errno{EINVAL};
  const std::uint64_t from = offset & ~(page_size - 1);
  const std::uint64_t length = (end - from + page_size - 1) & ~(page_size - 1);

  void* const start = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                             fd.number(), static_cast<off_t>(from));
  if (start == MAP_FAILED) return Errno::last();
  // A core of ours is no place for a guest's memory. Not all mappings can be
  // told so (devices can't); that is no reason to refuse them.
  (void)::madvise(start, length, MADV_DONTDUMP);
  if (auto watched = sigbus::watch(start, length, page_size); !watched) {
    ::munmap(start, length);
    return watched.error();
  }
  std::byte* const data = static_cast<std::byte*>(start) + (offset - from);
  return std::shared_ptr<const Mapping>(new Mapping(start, length, data, size));
}

Mapping::~Mapping() {
  sigbus::forget(start_);
  CHECK(::munmap(start_, length_) == 0);
}

}  // namespace virtiofsd
