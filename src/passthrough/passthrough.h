// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The file system that is served: a shared directory, operation by operation,
// with the caller's credentials where they matter. One file per theme:
// lookup.cc, attributes.cc, entries.cc, io.cc, directories.cc, xattrs.cc,
// ioctls.cc, locks.cc, migration.cc. Knows no ring and no socket.
//
// Always true: only regular files and directories are ever opened, everything
// else is only named (O_PATH); no symbolic link is followed on the host; what
// the guest creates is created as the caller (credentials.h), everything else
// is done as the daemon after the guest's kernel allowed it; a lookup count is
// given back on every path that doesn't answer with the node.
//
// Threads: every operation on any thread at once, init and destroy too.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "fuse/file_system.h"
#include "passthrough/cache_mode.h"
#include "passthrough/handle_table.h"
#include "passthrough/id_map.h"
#include "passthrough/inode_store.h"
#include "passthrough/locks.h"
#include "passthrough/migration_settings.h"
#include "passthrough/xattr_map.h"

namespace virtiofsd {

class ScopedCredentials;
class ScopedWithoutFsetid;
struct SavedEnd;
struct SavedHandle;

class Passthrough final : public fuse::FileSystem {
 public:
  struct Settings {
    CacheMode cache = CacheMode::kAuto;
    double attribute_timeout = 1.0;  // seconds
    double entry_timeout = 1.0;      // seconds
    double negative_timeout = 0.0;   // seconds; 0: a missing name is not cached by the guest
    bool xattr = false;
    std::optional<XattrMap> xattr_map;
    bool allow_direct_io = false;
    bool announce_submounts = false;
    bool preserve_noatime = false;
    bool read_only = false;
    bool remote_posix_locks = true;
    bool remote_flock = false;
    // -o norace: no racy fallback for what a symbolic link or special file
    // lacks a descriptor for. There is none to forbid: /proc/self/fd names
    // the object itself on every kernel we run on.
    bool no_race = false;
    // CAP_SETUID and CAP_SETGID are there. Without them everything is created
    // as the daemon's own user, whoever asks.
    bool can_switch_user = true;
    // Ids in requests are put through these, and ids in replies back. POSIX
    // ACLs have ids in their values, which are not: the two exclude each other.
    IdMap uid_map;
    IdMap gid_map;
    std::uint32_t max_lock_waiters = 0;
    std::uint32_t max_lock_owners = 4096;  // descriptors that hold record locks
    InodeStore::Settings inodes;
    std::uint32_t max_handles = 1U << 20;
    MigrationSettings migration;
  };

  // `root`: the shared directory, O_PATH or O_RDONLY.
  static Result<std::unique_ptr<Passthrough>, Failure> create(UniqueFd root, Settings settings);
  ~Passthrough() override;

  // The descriptors that a process left behind, which a successor (inodes.take_over) goes on with.
  static std::vector<int> descriptors_kept_in(const Arena& arena);
  // In another process the same descriptors have other numbers: `number_of` tells by the old one
  // (-1: it isn't there). For an arena that nobody else uses.
  static void renumber_descriptors(const Arena& arena, const std::function<int(int)>& number_of);

  Result<> init(fuse::Negotiated& session) override;
  void destroy() override;
  void thread_started() override;

  // lookup.cc
  Result<fuse_entry_out> lookup(fuse::Call& call, Name name) override;
  Result<fuse_entry_out> lookup_self(fuse::Call& call) override;
  Result<fuse_entry_out> lookup_parent(fuse::Call& call) override;
  void forget(NodeId node, std::uint64_t count) override;

  // entries.cc
  Result<fuse_entry_out> symlink(fuse::Call& call, Name name, const char* target) override;
  Result<fuse_entry_out> mknod(fuse::Call& call, Name name, const fuse_mknod_in& in) override;
  Result<fuse_entry_out> mkdir(fuse::Call& call, Name name, const fuse_mkdir_in& in) override;
  Result<fuse_entry_out> link(fuse::Call& call, NodeId existing, Name name) override;
  Result<fuse::Created> create(fuse::Call& call, Name name, const fuse::CreateArgs& args) override;
  Result<fuse::Created> tmpfile(fuse::Call& call, const fuse::CreateArgs& args) override;
  Result<> unlink(fuse::Call& call, Name name) override;
  Result<> rmdir(fuse::Call& call, Name name) override;
  Result<> rename(fuse::Call& call, Name from, NodeId to_directory, Name to,
                  std::uint32_t flags) override;

  // attributes.cc
  Result<fuse_attr_out> getattr(fuse::Call& call, std::optional<HandleId> handle) override;
  Result<fuse_statx_out> statx(fuse::Call& call, const fuse_statx_in& in) override;
  Result<fuse_attr_out> setattr(fuse::Call& call, const fuse_setattr_in& in) override;
  Result<> readlink(fuse::Call& call, fuse::Body& body) override;
  Result<> access(fuse::Call& call, std::uint32_t mask) override;
  Result<fuse_kstatfs> statfs(fuse::Call& call) override;

  // io.cc
  Result<fuse_open_out> open(fuse::Call& call, std::uint32_t flags,
                             std::uint32_t open_flags) override;
  Result<> read(fuse::Call& call, const fuse::ReadArgs& args, fuse::Body& body) override;
  Result<std::uint32_t> write(fuse::Call& call, const fuse::WriteArgs& args,
                              const IoSpace& data) override;
  Result<> flush(fuse::Call& call, HandleId handle, LockOwner owner) override;
  Result<> release(fuse::Call& call, const fuse::ReleaseArgs& args) override;
  Result<> fsync(fuse::Call& call, HandleId handle, bool data_only) override;
  Result<> fallocate(fuse::Call& call, const fuse_fallocate_in& in) override;
  Result<std::uint64_t> lseek(fuse::Call& call, HandleId handle, std::uint64_t offset,
                              std::uint32_t whence) override;
  Result<std::uint64_t> copy_file_range(fuse::Call& call, const fuse::CopyArgs& args) override;
  Result<> syncfs(fuse::Call& call) override;

  // ioctls.cc
  Result<> ioctl(fuse::Call& call, const fuse::IoctlArgs& args, std::span<const std::byte> in,
                 fuse::Body& body) override;

  // directories.cc
  Result<fuse_open_out> opendir(fuse::Call& call, std::uint32_t flags) override;
  Result<> readdir(fuse::Call& call, HandleId handle, std::uint64_t offset,
                   fuse::DirectoryWriter& out) override;
  Result<> readdirplus(fuse::Call& call, HandleId handle, std::uint64_t offset,
                       fuse::DirectoryWriter& out) override;
  Result<> releasedir(fuse::Call& call, const fuse::ReleaseArgs& args) override;
  Result<> fsyncdir(fuse::Call& call, HandleId handle, bool data_only) override;

  // xattrs.cc
  Result<> setxattr(fuse::Call& call, std::string_view name, std::span<const std::byte> value,
                    std::uint32_t flags, std::uint32_t setxattr_flags) override;
  Result<> getxattr(fuse::Call& call, std::string_view name, std::uint32_t size,
                    fuse::Body& body) override;
  Result<> listxattr(fuse::Call& call, std::uint32_t size, fuse::Body& body) override;
  Result<> removexattr(fuse::Call& call, std::string_view name) override;

  // Locks, in passthrough.cc: the work is the lock table's.
  Result<fuse_file_lock> getlk(fuse::Call& call, const fuse::LockArgs& args) override;
  Result<> setlk(fuse::Call& call, const fuse::LockArgs& args) override;
  void interrupt(std::uint64_t unique) override;
  void cancel_waits() override;

  // migration.cc
  Result<void, Failure> save(FrameWriter& to) override;
  Result<void, Failure> load(FrameReader& from) override;
  void let_go_of_locks() override;
  void take_locks_again() override;

  // For the daemon: waits for locks end with EINTR, so that a queue can stop.
  LockTable& locks() { return locks_; }
  const InodeStore& inodes() const { return *inodes_; }
  const HandleTable& handles() const { return handles_; }

 private:
  // As the protocol has it.
  struct Timeout {
    std::uint64_t seconds = 0;
    std::uint32_t nanoseconds = 0;
  };
  // How long the guest may keep what an entry or an attribute reply says.
  static Timeout timeout_of(double seconds);

  // A lookup count that the guest doesn't know of yet: taken back unless given.
  class Owed;

  // How a regular file is opened for the guest.
  struct OpenPlan {
    int flags = 0;            // open(2) flags for the host
    bool widened = false;     // O_RDWR where the guest asked for O_WRONLY
    bool may_append = false;  // the guest asked for O_APPEND
  };

  Passthrough(Settings settings, std::unique_ptr<InodeStore> inodes);

  // lookup.cc
  fuse_entry_out entry_of(const fuse::Call& call, const InodeRef& inode,
                          const struct statx& stx) const;
  // The caller by the host's ids. EPERM: the guest may not use one of them.
  Result<fuse::Caller> host_caller(const fuse::Call& call) const;
  fuse_attr attr_of(const fuse::Call& call, const InodeRef& inode, const struct statx& stx) const;
  Timeout attribute_timeout(const fuse::Call& call, const struct statx& stx) const;

  // attributes.cc
  Result<> stat(fuse::Call& call, std::optional<HandleId> handle, const InodeRef& inode,
                struct statx* out);
  Result<> set_size(fuse::Call& call, const InodeRef& inode, const fuse_setattr_in& in);
  static bool only_kills_set_ids(const fuse::Call& call, const InodeRef& inode,
                                 std::uint32_t valid);

  // entries.cc
  // `same`: whether attributes are of what `make_it` makes.
  template <typename Make, typename Same>
  Result<fuse_entry_out> make(fuse::Call& call, Name name, std::uint32_t umask, mode_t mode,
                              int undo_flags, Make&& make_it, Same&& same);
  Result<UniqueFd> create_file(fuse::Call& call, FdRef directory, std::optional<Name> name,
                               const fuse::CreateArgs& args, const OpenPlan& plan);
  Result<fuse::Created> open_existing(fuse::Call& call, const InodeRef& directory, Name name,
                                      const fuse::CreateArgs& args, OpenPlan plan);
  Result<fuse::Created> created(fuse::Call& call, const InodeRef& directory,
                                std::optional<Name> name, UniqueFd fd, const OpenPlan& plan);
  template <typename Make>
  auto as_caller(const fuse::Call& call, FdRef directory, Make&& make) const -> decltype(make());
  mode_t mode_for_create(std::uint32_t mode) const;

  // io.cc
  OpenPlan plan_open(const fuse::Call& call, std::uint32_t guest_flags) const;
  // Tries the plan and what comes closest to it; leaves in `plan` what was done.
  template <typename Open>
  Result<UniqueFd> open_by_plan(OpenPlan& plan, Open&& open_it) const;
  Result<UniqueFd> open_regular(const InodeRef& inode, OpenPlan& plan) const;
  std::uint32_t file_open_flags(const fuse::Call& call, const OpenPlan& plan) const;
  // The guest keeps no data of files: every read and write of its programs comes here.
  bool bypasses_cache() const {
    return settings_.cache == CacheMode::kNone || settings_.cache == CacheMode::kMetadata;
  }
  // Whether an open that truncates takes set-id bits off.
  static bool kills_set_ids(const fuse::Call& call, std::uint32_t open_flags);
  // From here to the end of `scope`, changing `file` takes its set-id bits off as for the caller.
  Result<> drop_fsetid(const fuse::Call& call, FdRef file, ScopedWithoutFsetid& scope) const;
  // The same for a caller who isn't in the file's group, whichever that is.
  Result<> drop_fsetid_outside(FdRef file, ScopedWithoutFsetid& scope) const;
  Result<> drop_capability_xattr(FdRef fd) const;
  Result<> drop_capability_xattr(const HandleRef& handle) const;

  // directories.cc
  template <typename Add>
  Result<> list(fuse::Call& call, HandleId handle, std::uint64_t offset, fuse::DirectoryWriter& out,
                std::size_t ratio, Add&& add);

  // migration.cc
  // Without something, where that is allowed; says so once.
  class Missing;
  class Loading;
  Result<> load_handle(const SavedHandle& saved);
  Result<void, Failure> save_locks(FrameWriter& to, const std::unordered_set<NodeId>& without,
                                   SavedEnd& sent);

  // xattrs.cc
  // The host's name; ENOTSUP for an ACL in a session without them.
  Result<std::string> xattr_name(const fuse::Call& call, std::string_view name) const;
  Result<> set_security_context(const fuse::Call& call, FdRef fd) const;

  const Settings settings_;
  const Timeout entry_timeout_;
  const Timeout attribute_timeout_;
  const Timeout negative_timeout_;
  std::unique_ptr<InodeStore> inodes_;
  HandleTable handles_;
  LockTable locks_;
};

class Passthrough::Owed {
 public:
  Owed(InodeStore& inodes, NodeId node) : inodes_(inodes), node_(node) {}
  ~Owed() {
    if (!given_) inodes_.forget(node_, 1);
  }
  Owed(const Owed&) = delete;
  Owed& operator=(const Owed&) = delete;

  // The reply names the node: from now on the guest forgets it.
  void give() { given_ = true; }

 private:
  InodeStore& inodes_;
  NodeId node_;
  bool given_ = false;
};

template <typename Open>
Result<UniqueFd> Passthrough::open_by_plan(OpenPlan& plan, Open&& open_it) const {
  for (;;) {
    Result<UniqueFd> fd = open_it(plan.flags);
    if (fd) return fd;
    const Errno error = fd.error();
    if (error == Errno{EACCES} && plan.widened) {
      // Write-only is what the file allows; reads of partial pages will fail.
      plan.flags = (plan.flags & ~O_ACCMODE) | O_WRONLY;
      plan.widened = false;
    } else if (error == Errno{EPERM} && (plan.flags & O_NOATIME) != 0) {
      plan.flags &= ~O_NOATIME;  // for the owner only
    } else if (error == Errno{EPERM} && plan.may_append && (plan.flags & O_APPEND) == 0) {
      plan.flags |= O_APPEND;  // an append-only file (chattr +a)
    } else if (error == Errno{EINVAL} && (plan.flags & O_DIRECT) != 0) {
      plan.flags &= ~O_DIRECT;  // the file system has no direct I/O
    } else {
      return error;
    }
  }
}

}  // namespace virtiofsd
