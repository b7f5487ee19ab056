// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Names made and taken away: MKNOD, MKDIR, SYMLINK, LINK, CREATE, TMPFILE,
// UNLINK, RMDIR, RENAME.
#include <limits.h>
#include <linux/fs.h>
#include <sys/sysmacros.h>
#include <time.h>

#include <array>
#include <string_view>

#include "base/log.h"
#include "base/uninitialized.h"
#include "passthrough/credentials.h"
#include "passthrough/passthrough.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

// Somebody on the host may make and remove a name between our two looks at it.
constexpr int kCreateAttempts = 8;

// What a request made that is served again was made a moment ago.
constexpr std::int64_t kMomentAgo = 60;  // seconds

// The name was made in this request and its maker gets an error: take it away.
void undo(FdRef directory, Name name, int flags) {
  if (const auto removed = sys::unlinkat(directory, name, flags); !removed)
    log::debug("a half made entry stays behind: {}", removed.error().text());
}

bool is_recent(const struct statx_timestamp& time) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec - time.tv_sec < kMomentAgo;
}

// By its birth, where the file system tells: a directory changes with what is made in it.
bool is_new(const struct statx& stx) {
  return is_recent((stx.stx_mask & STATX_BTIME) != 0 ? stx.stx_btime : stx.stx_ctime);
}

// Whether what has the name is what a request made that is served again, as far as can be told.
template <typename Same>
bool was_made(const fuse::Call& call, Errno error, FdRef directory, Name name, Same&& same) {
  UNINITIALIZED struct statx stx;
  return call.again && error == Errno{EEXIST} &&
         sys::statx(directory, name, 0, sys::kStatxMask, &stx) && is_new(stx) && same(stx);
}

bool leads_to(FdRef directory, Name name, std::string_view target) {
  const auto link = sys::open_path(directory, name);
  std::array<char, PATH_MAX> text;
  if (!link) return false;
  const auto size = sys::readlink(*link, text);
  return size && std::string_view{text.data(), *size} == target;
}

}  // namespace

// Runs `make` as the caller. The host's permissions hold where the guest tells all that they depend
// on. It doesn't tell of the groups in an ACL; nor of capabilities in the guest's user namespaces
// (a container's root makes a directory nobody may write to, and then what is in it), but what the
// caller owns it could open for itself.
template <typename Make>
auto Passthrough::as_caller(const fuse::Call& call, FdRef directory, Make&& make) const
    -> decltype(make()) {
  using Override = ScopedCredentials::Override;
  const fuse::Caller caller = TRY(host_caller(call));
  if (!settings_.can_switch_user) return make();
  const auto attempt = [&](Override override) -> decltype(make()) {
    ScopedCredentials credentials;
    TRY(credentials.assume(caller, override));
    return make();
  };
  const bool all_told = call.session.has(FUSE_CREATE_SUPP_GROUP) &&
                        !call.session.has(FUSE_POSIX_ACL) && ScopedCredentials::groups_are_known();
  if (!all_told) return attempt(Override::kDac);
  auto made = attempt(Override::kNone);
  if (made || made.error() != Errno{EACCES}) return made;
  UNINITIALIZED struct statx stx;
  TRY(sys::statx(directory, STATX_UID, &stx));
  return stx.stx_uid == caller.uid ? attempt(Override::kDac) : std::move(made);
}

mode_t Passthrough::mode_for_create(std::uint32_t mode) const {
  mode_t wanted = mode & 07777;
  // In a group that the caller isn't in, the process could hand out its
  // privilege; the guest can set the bit again with chmod, as itself.
  if (settings_.can_switch_user && !ScopedCredentials::groups_are_known())
    wanted &= ~static_cast<mode_t>(S_ISGID);
  return wanted;
}

template <typename Make, typename Same>
Result<fuse_entry_out> Passthrough::make(fuse::Call& call, Name name, std::uint32_t umask,
                                         mode_t mode, int undo_flags, Make&& make_it, Same&& same) {
  const InodeRef directory = TRY(inodes_->pin(call.node));
  const FdRef in = TRY(inodes_->fd(directory));
  const Result<> done = as_caller(call, in, [&] {
    const ScopedUmask masking{call.session, umask, mode};
    return make_it(in, mode);
  });
  if (!done && !was_made(call, done.error(), in, name, same)) return done.error();
  UNINITIALIZED struct statx stx;
  const InodeRef inode = TRY(inodes_->made(directory, name, &stx));
  Owed owed{*inodes_, inode.id()};
  if (call.security) {
    const auto fd = inodes_->fd(inode);
    const auto labelled = fd ? set_security_context(call, *fd) : Result<>{fd.error()};
    if (!labelled) {
      undo(in, name, undo_flags);
      return labelled.error();
    }
  }
  owed.give();
  return entry_of(call, inode, stx);
}

Result<fuse_entry_out> Passthrough::symlink(fuse::Call& call, Name name, const char* target) {
  FdRef directory;
  return make(
      call, name, 0, 0, 0,
      [&](FdRef in, mode_t) {
        directory = in;
        return sys::symlinkat(target, in, name);
      },
      [&](const struct statx& stx) {
        return S_ISLNK(stx.stx_mode) && leads_to(directory, name, target);
      });
}

Result<fuse_entry_out> Passthrough::mknod(fuse::Call& call, Name name, const fuse_mknod_in& in) {
  const mode_t type = in.mode & S_IFMT;
  if (!(S_ISREG(type) || S_ISFIFO(type) || S_ISSOCK(type) || S_ISCHR(type) || S_ISBLK(type)))
    return Errno{EINVAL};
  // The protocol's device number has the bits where mknod(2) wants them.
  return make(
      call, name, in.umask, mode_for_create(in.mode), 0,
      [&](FdRef directory, mode_t mode) {
        return sys::mknodat(directory, name, type | mode, in.rdev);
      },
      [&](const struct statx& stx) {
        const bool is_device = S_ISCHR(type) || S_ISBLK(type);
        return (stx.stx_mode & S_IFMT) == type &&
               (!is_device || ::makedev(stx.stx_rdev_major, stx.stx_rdev_minor) == in.rdev);
      });
}

Result<fuse_entry_out> Passthrough::mkdir(fuse::Call& call, Name name, const fuse_mkdir_in& in) {
  return make(
      call, name, in.umask, in.mode & 07777, AT_REMOVEDIR,
      [&](FdRef directory, mode_t mode) { return sys::mkdirat(directory, name, mode); },
      [](const struct statx& stx) { return S_ISDIR(stx.stx_mode); });
}

// As the daemon: who may link what was for the guest to say, and the new name
// has no owner of its own.
Result<fuse_entry_out> Passthrough::link(fuse::Call& call, NodeId existing, Name name) {
  const InodeRef directory = TRY(inodes_->pin(call.node));
  const InodeRef inode = TRY(inodes_->pin(existing));
  if (inode.is_directory()) return Errno{EPERM};
  const FdRef fd = TRY(inodes_->fd(inode));
  const FdRef in = TRY(inodes_->fd(directory));
  const Result<> linked = sys::linkat(fd, in, name);
  const bool may_be_done = !linked && call.again && linked.error() == Errno{EEXIST};
  if (!linked && !may_be_done) return linked.error();

  UNINITIALIZED struct statx stx;
  const InodeRef found = TRY(inodes_->lookup(directory, name, 0, &stx));
  Owed owed{*inodes_, found.id()};
  if (found.id() == inode.id()) {
    owed.give();
    return entry_of(call, found, stx);
  }
  if (may_be_done) return Errno{EEXIST};
  // The name means another file by now; the guest asked for this one.
  TRY(inodes_->stat(inode, sys::kStatxMask, &stx));
  inodes_->add_lookup(inode);
  return entry_of(call, inode, stx);
}

Result<UniqueFd> Passthrough::create_file(fuse::Call& call, FdRef directory,
                                          std::optional<Name> name, const fuse::CreateArgs& args,
                                          const OpenPlan& plan) {
  mode_t mode = mode_for_create(args.mode);
  // A file system without direct I/O says so only after it made the file: that
  // flag is set when the file is there.
  const int flags = plan.flags & ~(O_DIRECT | O_TRUNC);
  return as_caller(call, directory, [&] {
    const ScopedUmask masking{call.session, args.umask, mode};
    if (!name) return sys::open_tmpfile(directory, flags | (args.flags & O_EXCL), mode);
    return sys::openat(directory, *name, flags | O_CREAT | O_EXCL, mode);
  });
}

Result<fuse::Created> Passthrough::created(fuse::Call& call, const InodeRef& directory,
                                           std::optional<Name> name, UniqueFd fd,
                                           const OpenPlan& plan) {
  UNINITIALIZED struct statx stx;
  OpenPlan done = plan;
  if ((done.flags & O_DIRECT) != 0) {
    const auto status = sys::status_flags(fd);
    if (!status || !sys::set_status_flags(fd, *status | O_DIRECT)) done.flags &= ~O_DIRECT;
  }
  if (call.security) TRY(set_security_context(call, fd));
  InodeRef inode = TRY(inodes_->adopt(directory, name, fd, &stx));
  Owed owed{*inodes_, inode.id()};
  const fuse_entry_out entry = entry_of(call, inode, stx);
  const auto flags = static_cast<std::uint32_t>(done.flags & ~O_TRUNC);
  const HandleId handle =
      TRY(handles_.insert(HandleKind::kFile, std::move(inode), std::move(fd), flags));
  owed.give();
  return fuse::Created{
      .entry = entry,
      .open = {.fh = handle.value, .open_flags = file_open_flags(call, done), .padding = 0}};
}

// CREATE of a name that turned out to be there. The guest's kernel believes the
// file is new and checks no permission, so the open is the caller's own. Where
// that isn't enough, or the name means no file, ESTALE makes Linux look the name
// up again (do_filp_open) and decide: follow the link, open the pipe, refuse.
Result<fuse::Created> Passthrough::open_existing(fuse::Call& call, const InodeRef& directory,
                                                 Name name, const fuse::CreateArgs& args,
                                                 OpenPlan plan) {
  UNINITIALIZED struct statx stx;
  InodeRef inode = TRY(inodes_->lookup(directory, name, 0, &stx));
  Owed owed{*inodes_, inode.id()};
  if (inode.is_directory()) return Errno{EISDIR};
  if (!inode.is_regular()) return Errno{ESTALE};
  const FdRef path = TRY(inodes_->fd(inode));
  const fuse::Caller caller = TRY(host_caller(call));
  const bool is_maker = call.again && is_new(stx) && stx.stx_uid == caller.uid;
  UniqueFd fd;
  {
    ScopedWithoutFsetid killing;
    if ((plan.flags & O_TRUNC) != 0 && kills_set_ids(call, args.open_flags))
      TRY(drop_fsetid(call, path, killing));
    ScopedCredentials credentials;
    // Who has just made it may open it once, whatever its mode.
    if (settings_.can_switch_user) {
      TRY(credentials.assume(caller, is_maker ? ScopedCredentials::Override::kDac
                                              : ScopedCredentials::Override::kNone));
    }
    auto opened = open_by_plan(plan, [&](int flags) { return sys::reopen(path, flags); });
    if (!opened && opened.error() == Errno{EACCES}) return Errno{ESTALE};
    fd = TRY(std::move(opened));
  }
  if (is_maker && call.security) TRY(set_security_context(call, fd));
  if ((plan.flags & O_TRUNC) != 0) {
    TRY(drop_capability_xattr(fd));
    TRY(sys::statx(fd, sys::kStatxMask, &stx));
  }
  const fuse_entry_out entry = entry_of(call, inode, stx);
  const auto flags = static_cast<std::uint32_t>(plan.flags & ~O_TRUNC);
  const HandleId handle =
      TRY(handles_.insert(HandleKind::kFile, std::move(inode), std::move(fd), flags));
  owed.give();
  return fuse::Created{
      .entry = entry,
      .open = {.fh = handle.value, .open_flags = file_open_flags(call, plan), .padding = 0}};
}

Result<fuse::Created> Passthrough::create(fuse::Call& call, Name name,
                                          const fuse::CreateArgs& args) {
  const InodeRef directory = TRY(inodes_->pin(call.node));
  const FdRef in = TRY(inodes_->fd(directory));
  const OpenPlan plan = plan_open(call, args.flags);
  for (int attempt = 1;; attempt++) {
    auto fd = create_file(call, in, name, args, plan);
    if (fd) {
      auto made = created(call, directory, name, std::move(*fd), plan);
      if (!made) undo(in, name, 0);
      return made;
    }
    if (fd.error() != Errno{EEXIST}) return fd.error();
    const auto is_file = [](const struct statx& stx) { return S_ISREG(stx.stx_mode); };
    if ((args.flags & O_EXCL) != 0 && !was_made(call, fd.error(), in, name, is_file))
      return fd.error();
    auto existing = open_existing(call, directory, name, args, plan);
    if (existing || existing.error() != Errno{ENOENT} || attempt == kCreateAttempts)
      return existing;
  }
}

Result<fuse::Created> Passthrough::tmpfile(fuse::Call& call, const fuse::CreateArgs& args) {
  const InodeRef directory = TRY(inodes_->pin(call.node));
  if (!directory.is_directory()) return Errno{ENOTDIR};
  const FdRef in = TRY(inodes_->fd(directory));
  OpenPlan plan = plan_open(call, args.flags);
  if ((plan.flags & O_ACCMODE) == O_RDONLY) return Errno{EINVAL};
  auto fd = TRY(create_file(call, in, std::nullopt, args, plan));
  return created(call, directory, std::nullopt, std::move(fd), plan);
}

Result<> Passthrough::unlink(fuse::Call& call, Name name) {
  const InodeRef directory = TRY(inodes_->pin(call.node));
  const FdRef in = TRY(inodes_->fd(directory));
  inodes_->before_removal(directory, name);
  if (const Result<> gone = sys::unlinkat(in, name, 0);
      !gone && !(call.again && gone.error() == Errno{ENOENT})) {
    return gone.error();
  }
  inodes_->after_removal(directory, name);
  return {};
}

Result<> Passthrough::rmdir(fuse::Call& call, Name name) {
  const InodeRef directory = TRY(inodes_->pin(call.node));
  const FdRef in = TRY(inodes_->fd(directory));
  inodes_->before_removal(directory, name);
  if (const Result<> gone = sys::unlinkat(in, name, AT_REMOVEDIR);
      !gone && !(call.again && gone.error() == Errno{ENOENT})) {
    return gone.error();
  }
  inodes_->after_removal(directory, name);
  return {};
}

Result<> Passthrough::rename(fuse::Call& call, Name from, NodeId to_directory, Name to,
                             std::uint32_t flags) {
  if ((flags & ~std::uint32_t{RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT}) != 0)
    return Errno{EINVAL};
  const InodeRef source = TRY(inodes_->pin(call.node));
  const InodeRef target = TRY(inodes_->pin(to_directory));
  const FdRef source_fd = TRY(inodes_->fd(source));
  const FdRef target_fd = TRY(inodes_->fd(target));
  const bool exchange = (flags & RENAME_EXCHANGE) != 0;
  const auto rename = [&](std::uint32_t more) {
    return sys::renameat2(source_fd, from, target_fd, to, flags | more);
  };
  // Done twice it would be undone, and nothing tells whether it was done. Or a whiteout would take
  // the place of the file.
  if (call.again && (flags & (RENAME_EXCHANGE | RENAME_WHITEOUT)) != 0) return Errno{EIO};
  inodes_->before_rename(source, from, target, to, exchange);
  Result<> renamed;
  if (exchange || (flags & RENAME_NOREPLACE) != 0 || !inodes_->has_cold_children(target)) {
    renamed = rename(0);
  } else if (!rename(RENAME_NOREPLACE)) {
    // Mostly nothing is replaced, and looking would cost as much as half a rename. Now something
    // may be (EEXIST), or the file system doesn't know the flag (EINVAL).
    inodes_->before_removal(target, to);
    renamed = rename(0);
  }
  if (!renamed) {
    UNINITIALIZED struct statx stx;
    const bool was_renamed = call.again && renamed.error() == Errno{ENOENT} &&
                             sys::statx(target_fd, to, 0, STATX_CTIME, &stx) &&
                             is_recent(stx.stx_ctime);
    if (!was_renamed) return renamed.error();
  }
  if (!exchange) inodes_->after_removal(target, to);
  inodes_->after_rename(source, from, target, to, exchange);
  return {};
}

}  // namespace virtiofsd
