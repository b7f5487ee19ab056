// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What a file system must be able to do to be served over virtio-fs. The
// dispatcher decodes a request, calls one of these, and encodes the answer;
// another file system would plug in here.
//
// Threads: every function may be called from any crew thread at any time,
// except init and destroy, which run while no other request is in flight.
// Errors: the Errno goes to the guest as it is. ENOSYS switches an operation
// off guest-wide for the life of the mount; never return it for one file.
// Defaults answer ENOSYS, so a file system overrides what it has.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/id.h"
#include "base/name.h"
#include "base/result.h"
#include "fuse/body.h"
#include "fuse/call.h"
#include "fuse/directory_writer.h"
#include "fuse/negotiation.h"
#include "fuse/wire.h"
#include "sys/io_space.h"

namespace virtiofsd {
class FrameReader;
class FrameWriter;
}  // namespace virtiofsd

namespace virtiofsd::fuse {

struct CreateArgs {
  std::uint32_t flags = 0;       // open(2) flags from the guest, O_CREAT included
  std::uint32_t mode = 0;        // with S_IFMT or without
  std::uint32_t umask = 0;       // used only when DONT_MASK was negotiated
  std::uint32_t open_flags = 0;  // FUSE_OPEN_*
};

struct Created {
  fuse_entry_out entry;
  fuse_open_out open;
};

struct ReadArgs {
  HandleId handle;
  std::uint64_t offset = 0;  // <= INT64_MAX
  std::uint32_t size = 0;
  std::uint32_t flags = 0;  // open(2) flags of the file as the guest has them now
};

struct WriteArgs {
  HandleId handle;
  std::uint64_t offset = 0;       // <= INT64_MAX
  std::uint32_t size = 0;         // equals the data's size
  std::uint32_t write_flags = 0;  // FUSE_WRITE_*
  std::uint32_t flags = 0;
};

struct ReleaseArgs {
  HandleId handle;
  std::uint32_t flags = 0;
  std::uint32_t release_flags = 0;  // FUSE_RELEASE_*
  LockOwner owner;
};

struct LockArgs {
  HandleId handle;
  LockOwner owner;
  std::uint64_t start = 0;
  std::uint64_t end = 0;   // inclusive; INT64_MAX: to the end of the file
  std::uint32_t type = 0;  // F_RDLCK, F_WRLCK, F_UNLCK
  std::uint32_t pid = 0;   // of the owner in the guest
  bool flock = false;      // flock(2), not fcntl(2)
  bool wait = false;       // SETLKW
};

struct CopyArgs {
  HandleId from;
  std::uint64_t from_offset = 0;
  NodeId to_node;
  HandleId to;
  std::uint64_t to_offset = 0;
  std::uint64_t length = 0;
  std::uint64_t flags = 0;
};

struct IoctlArgs {
  HandleId handle;
  std::uint32_t flags = 0;  // FUSE_IOCTL_*
  std::uint32_t command = 0;
  std::uint64_t argument = 0;  // a guest address: never used
  std::uint32_t out_size = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // A new session starts: everything from an earlier one is dropped first
  // (a guest that rebooted sends INIT without DESTROY). `session` may still be
  // narrowed; what it says afterwards is what the guest is told.
  virtual Result<> init(Negotiated& session) {
    (void)session;
    return {};
  }
  // The session ends: forget every node, handle and lock of the guest.
  virtual void destroy() {}
  // Called once by each thread before it serves its first request.
  virtual void thread_started() {}

  // Names. Each returned entry owes the guest one lookup count.
  virtual Result<fuse_entry_out> lookup(Call&, Name) { return Errno{ENOSYS}; }
  virtual Result<fuse_entry_out> lookup_self(Call&) { return Errno{ENOSYS}; }    // "."
  virtual Result<fuse_entry_out> lookup_parent(Call&) { return Errno{ENOSYS}; }  // ".."
  // More than was ever given is treated as all of it.
  virtual void forget(NodeId, std::uint64_t count) { (void)count; }
  virtual Result<fuse_entry_out> symlink(Call&, Name, const char* target) {
    (void)target;
    return Errno{ENOSYS};
  }
  virtual Result<fuse_entry_out> mknod(Call&, Name, const fuse_mknod_in&) { return Errno{ENOSYS}; }
  virtual Result<fuse_entry_out> mkdir(Call&, Name, const fuse_mkdir_in&) { return Errno{ENOSYS}; }
  virtual Result<fuse_entry_out> link(Call&, NodeId existing, Name) {
    (void)existing;
    return Errno{ENOSYS};
  }
  virtual Result<Created> create(Call&, Name, const CreateArgs&) { return Errno{ENOSYS}; }
  virtual Result<Created> tmpfile(Call&, const CreateArgs&) { return Errno{ENOSYS}; }
  virtual Result<> unlink(Call&, Name) { return Errno{ENOSYS}; }
  virtual Result<> rmdir(Call&, Name) { return Errno{ENOSYS}; }
  virtual Result<> rename(Call&, Name from, NodeId to_directory, Name to, std::uint32_t flags) {
    (void)from;
    (void)to_directory;
    (void)to;
    (void)flags;
    return Errno{ENOSYS};
  }

  // Attributes.
  virtual Result<fuse_attr_out> getattr(Call&, std::optional<HandleId>) { return Errno{ENOSYS}; }
  virtual Result<fuse_statx_out> statx(Call&, const fuse_statx_in&) { return Errno{ENOSYS}; }
  virtual Result<fuse_attr_out> setattr(Call&, const fuse_setattr_in&) { return Errno{ENOSYS}; }
  virtual Result<> readlink(Call&, Body&) { return Errno{ENOSYS}; }
  virtual Result<> access(Call&, std::uint32_t mask) {
    (void)mask;
    return Errno{ENOSYS};
  }
  virtual Result<fuse_kstatfs> statfs(Call&) { return Errno{ENOSYS}; }

  // Open files.
  virtual Result<fuse_open_out> open(Call&, std::uint32_t flags, std::uint32_t open_flags) {
    (void)flags;
    (void)open_flags;
    return Errno{ENOSYS};
  }
  virtual Result<> read(Call&, const ReadArgs&, Body&) { return Errno{ENOSYS}; }
  // Bytes written.
  virtual Result<std::uint32_t> write(Call&, const WriteArgs&, const IoSpace& data) {
    (void)data;
    return Errno{ENOSYS};
  }
  virtual Result<> flush(Call&, HandleId, LockOwner) { return Errno{ENOSYS}; }
  virtual Result<> release(Call&, const ReleaseArgs&) { return Errno{ENOSYS}; }
  virtual Result<> fsync(Call&, HandleId, bool data_only) {
    (void)data_only;
    return Errno{ENOSYS};
  }
  virtual Result<> fallocate(Call&, const fuse_fallocate_in&) { return Errno{ENOSYS}; }
  virtual Result<std::uint64_t> lseek(Call&, HandleId, std::uint64_t offset, std::uint32_t whence) {
    (void)offset;
    (void)whence;
    return Errno{ENOSYS};
  }
  virtual Result<std::uint64_t> copy_file_range(Call&, const CopyArgs&) { return Errno{ENOSYS}; }
  // Writes fuse_ioctl_out and the output to `body`.
  virtual Result<> ioctl(Call&, const IoctlArgs&, std::span<const std::byte> in, Body&) {
    (void)in;
    return Errno{ENOSYS};
  }
  virtual Result<> syncfs(Call&) { return Errno{ENOSYS}; }

  // Open directories.
  virtual Result<fuse_open_out> opendir(Call&, std::uint32_t flags) {
    (void)flags;
    return Errno{ENOSYS};
  }
  // Fills `out` from `offset` (an earlier entry's `next`, or 0) until it is full or the end.
  virtual Result<> readdir(Call&, HandleId, std::uint64_t offset, DirectoryWriter& out) {
    (void)offset;
    (void)out;
    return Errno{ENOSYS};
  }
  virtual Result<> readdirplus(Call&, HandleId, std::uint64_t offset, DirectoryWriter& out) {
    (void)offset;
    (void)out;
    return Errno{ENOSYS};
  }
  virtual Result<> releasedir(Call&, const ReleaseArgs&) { return Errno{ENOSYS}; }
  virtual Result<> fsyncdir(Call&, HandleId, bool data_only) {
    (void)data_only;
    return Errno{ENOSYS};
  }

  // Extended attributes. `name` is a C string of any length.
  virtual Result<> setxattr(Call&, std::string_view name, std::span<const std::byte> value,
                            std::uint32_t flags, std::uint32_t setxattr_flags) {
    (void)name;
    (void)value;
    (void)flags;
    (void)setxattr_flags;
    return Errno{ENOSYS};
  }
  // `size` 0 asks for the length (fuse_getxattr_out); else the value, ERANGE when it is longer.
  virtual Result<> getxattr(Call&, std::string_view name, std::uint32_t size, Body&) {
    (void)name;
    (void)size;
    return Errno{ENOSYS};
  }
  virtual Result<> listxattr(Call&, std::uint32_t size, Body&) {
    (void)size;
    return Errno{ENOSYS};
  }
  virtual Result<> removexattr(Call&, std::string_view name) {
    (void)name;
    return Errno{ENOSYS};
  }

  // Locks.
  virtual Result<fuse_file_lock> getlk(Call&, const LockArgs&) { return Errno{ENOSYS}; }
  virtual Result<> setlk(Call&, const LockArgs&) { return Errno{ENOSYS}; }
  // The guest gave up on request `unique`: a waiting lock ends with EINTR, anything else goes on.
  virtual void interrupt(std::uint64_t unique) { (void)unique; }
  // Waits for locks whose scheduler is stopping() end, as put off. May be called again and again.
  virtual void cancel_waits() {}

  // The guest moves to another host, or is kept in a file: all that it knows and has open
  // (state/saved.h), for a file system there to load. While nothing is served. A load comes instead
  // of whatever was there; nothing is there when it fails.
  virtual Result<void, Failure> save(FrameWriter& to) {
    (void)to;
    return Failure{"this file system can't be moved"};
  }
  virtual Result<void, Failure> load(FrameReader& from) {
    (void)from;
    return Failure{"this file system can't be moved"};
  }
  // Nobody needs the locks here any more, as far as is known; and after all somebody does.
  virtual void let_go_of_locks() {}
  virtual void take_locks_again() {}
};

}  // namespace virtiofsd::fuse
