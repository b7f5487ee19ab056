// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sys/files.h"

#include <limits.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <new>

#include "base/check.h"
#include "sys/process.h"

namespace virtiofsd::sys {
namespace {

std::atomic<int> proc_self_fd_number{-1};

Result<> done(long result) {
  if (result < 0) return Errno::last();
  return {};
}

template <typename T>
Result<T> counted(T result) {
  if (result < 0) return Errno::last();
  return result;
}

Result<UniqueFd> opened(int result) {
  if (result < 0) return Errno::last();
  return UniqueFd{result};
}

// The name of a descriptor in /proc/self/fd.
class FdName {
 public:
  explicit FdName(FdRef fd) {
    *std::to_chars(text_.data(), text_.data() + text_.size() - 1, fd.number()).ptr = '\0';
  }
  const char* c_str() const { return text_.data(); }

 private:
  std::array<char, 12> text_{};
};

// For the system calls that take a path and no directory. A thread that works
// in /proc/self/fd (process.h) needs no more than the number.
class FdPath {
 public:
  explicit FdPath(FdRef fd) {
    const char* prefix = works_in_proc_self_fd() ? "" : "/proc/self/fd/";
    std::snprintf(text_.data(), text_.size(), "%s%d", prefix, fd.number());
  }
  const char* c_str() const { return text_.data(); }

 private:
  std::array<char, 32> text_{};
};

// The pieces of a space between `skip` and its size, at most IOV_MAX of them.
// The first and the last are cut in place and put back at the end: one thread
// uses them at a time, and a copy of the array would cost every READ and WRITE.
class CutPieces {
 public:
  CutPieces(const IoSpace& space, std::size_t skip) {
    const std::span<iovec> pieces = IoSpaceAccess::pieces(space);
    std::size_t left = space.size() > skip ? space.size() - skip : 0;
    std::size_t first = 0;
    while (first < pieces.size() && skip >= pieces[first].iov_len) {
      skip -= pieces[first].iov_len;
      first++;
    }
    if (left == 0 || first == pieces.size()) return;
    pieces_ = pieces.subspan(first);
    front_ = pieces_[0];
    pieces_[0].iov_base = static_cast<std::byte*>(front_.iov_base) + skip;
    pieces_[0].iov_len -= skip;

    std::size_t count = 0;
    while (count < pieces_.size() && count < IOV_MAX && left > 0) {
      if (pieces_[count].iov_len > left) break;
      left -= pieces_[count].iov_len;
      count++;
    }
    if (left > 0 && count < pieces_.size() && count < IOV_MAX) {
      cut_ = count;
      back_length_ = pieces_[count].iov_len;
      pieces_[count].iov_len = left;
      count++;
    }
    count_ = count;
  }
  ~CutPieces() {
    if (pieces_.empty()) return;
    if (cut_) pieces_[*cut_].iov_len = back_length_;
    pieces_[0] = front_;
  }
  CutPieces(const CutPieces&) = delete;
  CutPieces& operator=(const CutPieces&) = delete;

  const iovec* data() const { return pieces_.data(); }
  int count() const { return static_cast<int>(count_); }

 private:
  std::span<iovec> pieces_;
  std::size_t count_ = 0;
  iovec front_{};
  std::optional<std::size_t> cut_;
  std::size_t back_length_ = 0;
};

}  // namespace

Result<UniqueFd> duplicate(FdRef fd) {
  return opened(::fcntl(fd.number(), F_DUPFD_CLOEXEC, 0));
}

void set_proc_self_fd(UniqueFd proc_self_fd) {
  UniqueFd previous{proc_self_fd_number.exchange(proc_self_fd.release())};
}

FdRef proc_self_fd() {
  int number = proc_self_fd_number.load(std::memory_order_acquire);
  if (number >= 0) [[likely]]
    return FdRef{number};
  const int mine = ::open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (mine >= 0 && proc_self_fd_number.compare_exchange_strong(number, mine)) return FdRef{mine};
  if (mine >= 0) ::close(mine);
  return FdRef{proc_self_fd_number.load(std::memory_order_acquire)};
}

Result<> statx(FdRef directory, Name name, int flags, unsigned mask, struct statx* out) {
  return done(::statx(directory.number(), name.c_str(), AT_SYMLINK_NOFOLLOW | flags, mask, out));
}

Result<> statx(FdRef fd, unsigned mask, struct statx* out) {
  return done(::statx(fd.number(), "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, mask, out));
}

Result<UniqueFd> open_path(FdRef directory, Name name) {
  return opened(::openat(directory.number(), name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
}

Result<FileHandle> name_to_handle_at(FdRef fd) {
  // struct file_handle ends in a flexible array: room for it lies behind, in one block.
  alignas(struct file_handle)
      std::array<std::byte, sizeof(struct file_handle) + FileHandle::kMaxBytes>
          room{};
  auto* raw = new (room.data()) struct file_handle;
  raw->handle_bytes = FileHandle::kMaxBytes;
  FileHandle handle;
  if (::name_to_handle_at(fd.number(), "", raw, &handle.mount_id, AT_EMPTY_PATH) < 0)
    return Errno::last();
  CHECK(raw->handle_bytes <= FileHandle::kMaxBytes);
  handle.type = raw->handle_type;
  handle.size = raw->handle_bytes;
  std::memcpy(handle.bytes.data(), room.data() + sizeof(struct file_handle), handle.size);
  return handle;
}

Result<UniqueFd> open_by_handle_at(FdRef mount, const FileHandle& handle, int flags) {
  CHECK(handle.size <= FileHandle::kMaxBytes);
  alignas(struct file_handle)
      std::array<std::byte, sizeof(struct file_handle) + FileHandle::kMaxBytes>
          room{};
  auto* raw = new (room.data()) struct file_handle;
  raw->handle_bytes = handle.size;
  raw->handle_type = handle.type;
  std::memcpy(room.data() + sizeof(struct file_handle), handle.bytes.data(), handle.size);
  return opened(::open_by_handle_at(mount.number(), raw, flags | O_CLOEXEC));
}

Result<std::string> path_of(FdRef fd) {
  std::string path(PATH_MAX, '\0');
  const ssize_t size =
      ::readlinkat(proc_self_fd().number(), FdName{fd}.c_str(), path.data(), path.size());
  if (size < 0) return Errno::last();
  path.resize(static_cast<std::size_t>(size));
  return path;
}

Result<UniqueFd> reopen(FdRef fd, int flags) {
  CHECK((flags & (O_CREAT | O_NOFOLLOW)) == 0);
  return opened(::openat(proc_self_fd().number(), FdName{fd}.c_str(), flags | O_CLOEXEC));
}

Result<UniqueFd> reopen_directory(FdRef fd, int flags) {
  return opened(::openat(fd.number(), ".", flags | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

Result<UniqueFd> open_on_mount(FdRef directory, Name name, int flags) {
  const int all = flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
  struct open_how how {};
  how.flags = static_cast<unsigned>(all);
  how.resolve = RESOLVE_NO_XDEV;
  return opened(
      static_cast<int>(::syscall(SYS_openat2, directory.number(), name.c_str(), &how, sizeof how)));
}

Result<UniqueFd> openat(FdRef directory, Name name, int flags, mode_t mode) {
  return opened(::openat(directory.number(), name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, mode));
}

Result<UniqueFd> open_tmpfile(FdRef directory, int flags, mode_t mode) {
  return opened(::openat(directory.number(), ".", flags | O_TMPFILE | O_CLOEXEC, mode));
}

Result<> mkdirat(FdRef directory, Name name, mode_t mode) {
  return done(::mkdirat(directory.number(), name.c_str(), mode));
}

Result<> mknodat(FdRef directory, Name name, mode_t mode, dev_t device) {
  return done(::mknodat(directory.number(), name.c_str(), mode, device));
}

Result<> symlinkat(const char* target, FdRef directory, Name name) {
  return done(::symlinkat(target, directory.number(), name.c_str()));
}

Result<> linkat(FdRef fd, FdRef directory, Name name) {
  return done(::linkat(proc_self_fd().number(), FdName{fd}.c_str(), directory.number(),
                       name.c_str(), AT_SYMLINK_FOLLOW));
}

Result<> unlinkat(FdRef directory, Name name, int flags) {
  return done(::unlinkat(directory.number(), name.c_str(), flags));
}

Result<> renameat2(FdRef from_directory, Name from, FdRef to_directory, Name to, unsigned flags) {
  return done(
      ::renameat2(from_directory.number(), from.c_str(), to_directory.number(), to.c_str(), flags));
}

Result<std::size_t> readlink(FdRef fd, std::span<char> out) {
  const auto size = TRY(counted(::readlinkat(fd.number(), "", out.data(), out.size())));
  return static_cast<std::size_t>(size);
}

Result<> chmod(FdRef fd, mode_t mode) {
  return done(::fchmodat(proc_self_fd().number(), FdName{fd}.c_str(), mode, 0));
}

Result<> chown(FdRef fd, uid_t uid, gid_t gid) {
  return done(::fchownat(fd.number(), "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
}

Result<> utimens(FdRef fd, const std::array<timespec, 2>& times) {
  return done(::utimensat(proc_self_fd().number(), FdName{fd}.c_str(), times.data(), 0));
}

Result<> truncate(FdRef fd, std::uint64_t size) {
  return done(::truncate(FdPath{fd}.c_str(), static_cast<off_t>(size)));
}

Result<> access(FdRef fd, int mask) {
  // glibc's faccessat answers AT_EACCESS from the real ids on old kernels; the raw call says
  // ENOSYS.
  return done(::syscall(SYS_faccessat2, fd.number(), "", mask, AT_EMPTY_PATH | AT_EACCESS));
}

Result<struct statfs> fstatfs(FdRef fd) {
  struct statfs out;
  if (::fstatfs(fd.number(), &out) < 0) return Errno::last();
  return out;
}

Result<> setxattr(FdRef fd, const char* name, std::span<const std::byte> value, int flags) {
  return done(::setxattr(FdPath{fd}.c_str(), name, value.data(), value.size(), flags));
}

Result<std::size_t> getxattr(FdRef fd, const char* name, std::span<std::byte> out) {
  const auto size = TRY(counted(::getxattr(FdPath{fd}.c_str(), name, out.data(), out.size())));
  return static_cast<std::size_t>(size);
}

Result<std::size_t> listxattr(FdRef fd, std::span<char> out) {
  const auto size = TRY(counted(::listxattr(FdPath{fd}.c_str(), out.data(), out.size())));
  return static_cast<std::size_t>(size);
}

Result<> removexattr(FdRef fd, const char* name) {
  return done(::removexattr(FdPath{fd}.c_str(), name));
}

Result<std::size_t> preadv2(FdRef fd, const IoSpace& space, std::size_t skip, std::uint64_t offset,
                            int flags) {
  const CutPieces pieces{space, skip};
  const auto size = TRY(counted(
      ::preadv2(fd.number(), pieces.data(), pieces.count(), static_cast<off_t>(offset), flags)));
  return static_cast<std::size_t>(size);
}

Result<std::size_t> pwritev2(FdRef fd, const IoSpace& space, std::size_t skip, std::uint64_t offset,
                             int flags) {
  const CutPieces pieces{space, skip};
  const auto at = static_cast<off_t>(offset);
  // The kernel takes a twentieth less time over a page that doesn't come in a list.
  const bool plain = pieces.count() == 1 && flags == 0;
  const auto size =
      TRY(counted(plain ? ::pwrite(fd.number(), pieces.data()->iov_base, pieces.data()->iov_len, at)
                        : ::pwritev2(fd.number(), pieces.data(), pieces.count(), at, flags)));
  return static_cast<std::size_t>(size);
}

bool has_bytes(FdRef fd, const IoSpace& space, std::uint64_t offset) {
  std::array<std::byte, 4096> chunk;
  std::uint64_t at = offset;
  std::size_t left = space.size();
  for (const iovec& piece : IoSpaceAccess::pieces(space)) {
    const auto* bytes = static_cast<const std::byte*>(piece.iov_base);
    std::size_t in_piece = std::min(piece.iov_len, left);
    left -= in_piece;
    while (in_piece != 0) {
      const ssize_t size = ::pread(fd.number(), chunk.data(), std::min(chunk.size(), in_piece),
                                   static_cast<off_t>(at));
      if (size <= 0) return false;
      const auto n = static_cast<std::size_t>(size);
      if (std::memcmp(chunk.data(), bytes, n) != 0) return false;
      bytes += n;
      at += n;
      in_piece -= n;
    }
  }
  return true;
}

Result<> ftruncate(FdRef fd, std::uint64_t size) {
  return done(::ftruncate(fd.number(), static_cast<off_t>(size)));
}

Result<> fallocate(FdRef fd, int mode, std::uint64_t offset, std::uint64_t length) {
  return done(
      ::fallocate(fd.number(), mode, static_cast<off_t>(offset), static_cast<off_t>(length)));
}

Result<std::uint64_t> lseek(FdRef fd, std::uint64_t offset, int whence) {
  const auto at = TRY(counted(::lseek(fd.number(), static_cast<off_t>(offset), whence)));
  return static_cast<std::uint64_t>(at);
}

Result<std::size_t> copy_file_range(FdRef from, std::uint64_t from_offset, FdRef to,
                                    std::uint64_t to_offset, std::size_t length) {
  off_t in = static_cast<off_t>(from_offset);
  off_t out = static_cast<off_t>(to_offset);
  const auto size =
      TRY(counted(::copy_file_range(from.number(), &in, to.number(), &out, length, 0)));
  return static_cast<std::size_t>(size);
}

Result<> fsync(FdRef fd) {
  return done(::fsync(fd.number()));
}

Result<> fdatasync(FdRef fd) {
  return done(::fdatasync(fd.number()));
}

Result<> syncfs(FdRef fd) {
  return done(::syncfs(fd.number()));
}

Result<> flush_by_close(FdRef fd) {
  const int twin = ::fcntl(fd.number(), F_DUPFD_CLOEXEC, 0);
  if (twin < 0) return Errno::last();
  return done(::close(twin));
}

Result<int> status_flags(FdRef fd) {
  return counted(::fcntl(fd.number(), F_GETFL));
}

Result<> set_status_flags(FdRef fd, int flags) {
  return done(::fcntl(fd.number(), F_SETFL, flags));
}

Result<int> ioctl(FdRef fd, unsigned long command, void* argument) {
  return counted(::ioctl(fd.number(), command, argument));
}

Result<std::size_t> getdents64(FdRef fd, std::span<std::byte> out) {
  const long size = TRY(counted(::syscall(SYS_getdents64, fd.number(), out.data(), out.size())));
  return static_cast<std::size_t>(size);
}

}  // namespace virtiofsd::sys
