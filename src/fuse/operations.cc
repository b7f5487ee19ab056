// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/operations.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>

namespace virtiofsd::fuse {
namespace {

constexpr std::uint64_t kMaxOffset = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kMaxXattrName = 255;  // XATTR_NAME_MAX
constexpr std::uint32_t kMaxXattrValue = 65536;
constexpr std::size_t kMaxSymlink = 4095;  // PATH_MAX without its NUL
constexpr std::uint32_t kMaxIoctl = 65536;
constexpr std::uint32_t kMaxDirectory = 1U << 20;

Result<Name> take_name(Reader& reader) {
  return Name::parse(TRY(reader.take_string()));
}

// As the kernel's own xattr calls see a name.
Result<std::string_view> take_xattr_name(Reader& reader) {
  const std::string_view name = TRY(reader.take_string());
  if (name.empty() || name.size() > kMaxXattrName) return Errno{ERANGE};
  return name;
}

Result<> check_offset(std::uint64_t offset) {
  if (offset > kMaxOffset) return Errno{EINVAL};
  return {};
}

// A create's extensions lie behind its names, unless the header counted them
// and the dispatcher took them already.
Result<> take_rest(Request& request) {
  if (!request.call.session.has(FUSE_SECURITY_CTX)) return {};
  return take_extensions(Reader{request.arguments.rest()}, request.call);
}

Result<> put_entry(Request& request, Result<fuse_entry_out> entry) {
  return request.body.put(TRY(std::move(entry)));
}

// ---- Names

Result<> serve_lookup(Request& request) {
  const std::string_view name = TRY(request.arguments.take_string());
  if (name == ".") return put_entry(request, request.fs.lookup_self(request.call));
  if (name == "..") return put_entry(request, request.fs.lookup_parent(request.call));
  return put_entry(request, request.fs.lookup(request.call, TRY(Name::parse(name))));
}

Result<> serve_forget(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_forget_in>());
  request.fs.forget(request.call.node, in.nlookup);
  return {};
}

Result<> serve_batch_forget(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_batch_forget_in>());
  // Nobody hears about an error: do as many as there are.
  const std::size_t there = request.arguments.rest().size() / sizeof(fuse_forget_one);
  for (std::size_t left = std::min<std::size_t>(in.count, there); left != 0; --left) {
    const auto one = TRY(request.arguments.take<fuse_forget_one>());
    request.fs.forget(NodeId{one.nodeid}, one.nlookup);
  }
  return {};
}

Result<> serve_symlink(Request& request) {
  const Name name = TRY(take_name(request.arguments));
  const std::string_view target = TRY(request.arguments.take_string());
  if (target.empty()) return Errno{ENOENT};
  if (target.size() > kMaxSymlink) return Errno{ENAMETOOLONG};
  TRY(take_rest(request));
  return put_entry(request, request.fs.symlink(request.call, name, target.data()));
}

Result<> serve_mknod(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_mknod_in>());
  const Name name = TRY(take_name(request.arguments));
  TRY(take_rest(request));
  return put_entry(request, request.fs.mknod(request.call, name, in));
}

Result<> serve_mkdir(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_mkdir_in>());
  const Name name = TRY(take_name(request.arguments));
  TRY(take_rest(request));
  return put_entry(request, request.fs.mkdir(request.call, name, in));
}

Result<> serve_link(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_link_in>());
  const Name name = TRY(take_name(request.arguments));
  return put_entry(request, request.fs.link(request.call, NodeId{in.oldnodeid}, name));
}

Result<> put_created(Request& request, Result<Created> result) {
  const Created created = TRY(std::move(result));
  TRY(request.body.put(created.entry));
  return request.body.put(created.open);
}

CreateArgs create_args(const fuse_create_in& in) {
  return CreateArgs{
      .flags = in.flags, .mode = in.mode, .umask = in.umask, .open_flags = in.open_flags};
}

Result<> serve_create(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_create_in>());
  const Name name = TRY(take_name(request.arguments));
  TRY(take_rest(request));
  return put_created(request, request.fs.create(request.call, name, create_args(in)));
}

Result<> serve_tmpfile(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_create_in>());
  // Linux sends the name of its nameless entry, "/": it means nothing.
  if (!request.arguments.rest().empty()) TRY(request.arguments.take_string());
  TRY(take_rest(request));
  return put_created(request, request.fs.tmpfile(request.call, create_args(in)));
}

Result<> serve_unlink(Request& request) {
  return request.fs.unlink(request.call, TRY(take_name(request.arguments)));
}

Result<> serve_rmdir(Request& request) {
  return request.fs.rmdir(request.call, TRY(take_name(request.arguments)));
}

Result<> serve_rename(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_rename_in>());
  const Name from = TRY(take_name(request.arguments));
  const Name to = TRY(take_name(request.arguments));
  return request.fs.rename(request.call, from, NodeId{in.newdir}, to, 0);
}

Result<> serve_rename2(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_rename2_in>());
  const Name from = TRY(take_name(request.arguments));
  const Name to = TRY(take_name(request.arguments));
  constexpr std::uint32_t kKnown = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT;
  if ((in.flags & ~kKnown) != 0) return Errno{EINVAL};
  return request.fs.rename(request.call, from, NodeId{in.newdir}, to, in.flags);
}

// ---- Attributes

Result<> serve_getattr(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_getattr_in>());
  std::optional<HandleId> handle;
  if ((in.getattr_flags & FUSE_GETATTR_FH) != 0) handle = HandleId{in.fh};
  return request.body.put(TRY(request.fs.getattr(request.call, handle)));
}

Result<> serve_statx(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_statx_in>());
  return request.body.put(TRY(request.fs.statx(request.call, in)));
}

Result<> serve_setattr(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_setattr_in>());
  if ((in.valid & FATTR_SIZE) != 0) TRY(check_offset(in.size));
  return request.body.put(TRY(request.fs.setattr(request.call, in)));
}

Result<> serve_readlink(Request& request) {
  return request.fs.readlink(request.call, request.body);
}

Result<> serve_access(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_access_in>());
  if ((in.mask & ~std::uint32_t{R_OK | W_OK | X_OK}) != 0) return Errno{EINVAL};
  if (request.read_only && (in.mask & W_OK) != 0) return Errno{EROFS};
  return request.fs.access(request.call, in.mask);
}

Result<> serve_statfs(Request& request) {
  return request.body.put(TRY(request.fs.statfs(request.call)));
}

// ---- Open files

Result<> serve_open(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_open_in>());
  const bool writes = (in.flags & O_ACCMODE) != O_RDONLY || (in.flags & O_TRUNC) != 0;
  if (request.read_only && writes) return Errno{EROFS};
  return request.body.put(TRY(request.fs.open(request.call, in.flags, in.open_flags)));
}

Result<> serve_read(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_read_in>());
  TRY(check_offset(in.offset));
  const auto room = std::min<std::size_t>(in.size, request.body.room());
  return request.fs.read(request.call,
                         ReadArgs{.handle = HandleId{in.fh},
                                  .offset = in.offset,
                                  .size = static_cast<std::uint32_t>(room),
                                  .flags = in.flags},
                         request.body);
}

Result<> serve_write(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_write_in>());
  TRY(check_offset(in.offset));
  if (in.size > request.data_size) return Errno{EINVAL};
  const IoSpace data = request.data.space(in.size);
  fuse_write_out out{};
  out.size = TRY(request.fs.write(request.call,
                                  WriteArgs{.handle = HandleId{in.fh},
                                            .offset = in.offset,
                                            .size = in.size,
                                            .write_flags = in.write_flags,
                                            .flags = in.flags},
                                  data));
  return request.body.put(out);
}

Result<> serve_flush(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_flush_in>());
  return request.fs.flush(request.call, HandleId{in.fh}, LockOwner{in.lock_owner});
}

Result<ReleaseArgs> take_release(Reader& reader) {
  const auto in = TRY(reader.take<fuse_release_in>());
  return ReleaseArgs{.handle = HandleId{in.fh},
                     .flags = in.flags,
                     .release_flags = in.release_flags,
                     .owner = LockOwner{in.lock_owner}};
}

Result<> serve_release(Request& request) {
  return request.fs.release(request.call, TRY(take_release(request.arguments)));
}

Result<> serve_fsync(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_fsync_in>());
  return request.fs.fsync(request.call, HandleId{in.fh},
                          (in.fsync_flags & FUSE_FSYNC_FDATASYNC) != 0);
}

Result<> serve_fallocate(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_fallocate_in>());
  TRY(check_offset(in.offset));
  TRY(check_offset(in.length));
  return request.fs.fallocate(request.call, in);
}

Result<> serve_lseek(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_lseek_in>());
  if (in.offset > kMaxOffset) return Errno{ENXIO};  // beyond any end, as lseek(2) says
  fuse_lseek_out out{};
  out.offset = TRY(request.fs.lseek(request.call, HandleId{in.fh}, in.offset, in.whence));
  return request.body.put(out);
}

Result<CopyArgs> take_copy(Reader& reader) {
  const auto in = TRY(reader.take<fuse_copy_file_range_in>());
  TRY(check_offset(in.off_in));
  TRY(check_offset(in.off_out));
  return CopyArgs{.from = HandleId{in.fh_in},
                  .from_offset = in.off_in,
                  .to_node = NodeId{in.nodeid_out},
                  .to = HandleId{in.fh_out},
                  .to_offset = in.off_out,
                  .length = in.len,
                  .flags = in.flags};
}

Result<> serve_copy_file_range(Request& request) {
  CopyArgs args = TRY(take_copy(request.arguments));
  // The reply counts in 32 bits; stay on a page so that the guest's next copy is aligned.
  constexpr std::uint64_t kMost = 0x7ffff000;
  args.length = std::min(args.length, kMost);
  fuse_write_out out{};
  out.size = static_cast<std::uint32_t>(
      std::min(TRY(request.fs.copy_file_range(request.call, args)), kMost));
  return request.body.put(out);
}

Result<> serve_copy_file_range_64(Request& request) {
  const CopyArgs args = TRY(take_copy(request.arguments));
  fuse_copy_file_range_out out{};
  out.bytes_copied = TRY(request.fs.copy_file_range(request.call, args));
  return request.body.put(out);
}

Result<> serve_ioctl(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_ioctl_in>());
  if (in.in_size > kMaxIoctl || in.out_size > kMaxIoctl) return Errno{EINVAL};
  if (request.body.room() < sizeof(fuse_ioctl_out) + in.out_size) return Errno{EINVAL};
  const auto input = TRY(request.arguments.take_bytes(in.in_size));
  return request.fs.ioctl(request.call,
                          IoctlArgs{.handle = HandleId{in.fh},
                                    .flags = in.flags,
                                    .command = in.cmd,
                                    .argument = in.arg,
                                    .out_size = in.out_size},
                          input, request.body);
}

Result<> serve_syncfs(Request& request) {
  return request.fs.syncfs(request.call);
}

// ---- Open directories

Result<> serve_opendir(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_open_in>());
  return request.body.put(TRY(request.fs.opendir(request.call, in.flags)));
}

Result<> read_directory(Request& request, bool plus) {
  const auto in = TRY(request.arguments.take<fuse_read_in>());
  DirectoryWriter writer{request.body.draft(in.size), plus};
  const HandleId handle{in.fh};
  auto result = plus ? request.fs.readdirplus(request.call, handle, in.offset, writer)
                     : request.fs.readdir(request.call, handle, in.offset, writer);
  // Entries that were looked up are owed to the guest; an error that lasts
  // comes back when it asks for the next ones.
  if (!result && writer.empty()) return result;
  request.body.keep(writer.size());
  return {};
}

Result<> serve_readdir(Request& request) {
  return read_directory(request, false);
}
Result<> serve_readdirplus(Request& request) {
  return read_directory(request, true);
}

Result<> serve_releasedir(Request& request) {
  return request.fs.releasedir(request.call, TRY(take_release(request.arguments)));
}

Result<> serve_fsyncdir(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_fsync_in>());
  return request.fs.fsyncdir(request.call, HandleId{in.fh},
                             (in.fsync_flags & FUSE_FSYNC_FDATASYNC) != 0);
}

// ---- Extended attributes

Result<> serve_setxattr(Request& request) {
  const bool extended = request.call.session.has(FUSE_SETXATTR_EXT);
  const auto in = TRY(request.arguments.take_prefix<fuse_setxattr_in>(
      extended ? sizeof(fuse_setxattr_in) : FUSE_COMPAT_SETXATTR_IN_SIZE));
  const std::string_view name = TRY(take_xattr_name(request.arguments));
  if (in.size > kMaxXattrValue) return Errno{E2BIG};
  const auto value = TRY(request.arguments.take_bytes(in.size));
  return request.fs.setxattr(request.call, name, value, in.flags, in.setxattr_flags);
}

Result<> serve_getxattr(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_getxattr_in>());
  const std::string_view name = TRY(take_xattr_name(request.arguments));
  if (in.size == 0) return request.fs.getxattr(request.call, name, 0, request.body);
  const auto size = std::min<std::size_t>({in.size, request.body.room(), kMaxXattrValue});
  if (size == 0) return Errno{EINVAL};
  return request.fs.getxattr(request.call, name, static_cast<std::uint32_t>(size), request.body);
}

Result<> serve_listxattr(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_getxattr_in>());
  if (in.size == 0) return request.fs.listxattr(request.call, 0, request.body);
  const auto size = std::min<std::size_t>({in.size, request.body.room(), kMaxXattrValue});
  if (size == 0) return Errno{EINVAL};
  return request.fs.listxattr(request.call, static_cast<std::uint32_t>(size), request.body);
}

Result<> serve_removexattr(Request& request) {
  return request.fs.removexattr(request.call, TRY(take_xattr_name(request.arguments)));
}

// ---- Locks

Result<LockArgs> take_lock(Reader& reader, bool wait) {
  const auto in = TRY(reader.take<fuse_lk_in>());
  const bool flock = (in.lk_flags & FUSE_LK_FLOCK) != 0;
  if (in.lk.type != F_RDLCK && in.lk.type != F_WRLCK && in.lk.type != F_UNLCK) return Errno{EINVAL};
  TRY(check_offset(in.lk.start));
  TRY(check_offset(in.lk.end));
  if (in.lk.end < in.lk.start) return Errno{EINVAL};
  return LockArgs{.handle = HandleId{in.fh},
                  .owner = LockOwner{in.owner},
                  .start = in.lk.start,
                  .end = in.lk.end,
                  .type = in.lk.type,
                  .pid = in.lk.pid,
                  .flock = flock,
                  .wait = wait};
}

Result<> serve_getlk(Request& request) {
  const LockArgs args = TRY(take_lock(request.arguments, false));
  fuse_lk_out out{};
  out.lk = TRY(request.fs.getlk(request.call, args));
  return request.body.put(out);
}

Result<> serve_setlk(Request& request) {
  return request.fs.setlk(request.call, TRY(take_lock(request.arguments, false)));
}

Result<> serve_setlkw(Request& request) {
  return request.fs.setlk(request.call, TRY(take_lock(request.arguments, true)));
}

Result<> serve_interrupt(Request& request) {
  const auto in = TRY(request.arguments.take<fuse_interrupt_in>());
  request.fs.interrupt(in.unique);
  return {};
}

// ---- The table

constexpr std::uint32_t kEntry = sizeof(fuse_entry_out);
constexpr std::uint32_t kAttr = sizeof(fuse_attr_out);
constexpr std::uint32_t kOpen = sizeof(fuse_open_out);
constexpr std::uint32_t kCreated = kEntry + kOpen;

constexpr auto kRows = [] {
  std::array<Row, FUSE_COPY_FILE_RANGE_64 + 1> rows{};
  // clang-format off
  rows[FUSE_LOOKUP] = {.name = "LOOKUP", .serve = serve_lookup, .answer = kEntry};
  rows[FUSE_FORGET] = {.name = "FORGET", .serve = serve_forget, .answers = false, .open_handle = true};
  rows[FUSE_GETATTR] = {.name = "GETATTR", .serve = serve_getattr, .answer = kAttr};
  rows[FUSE_SETATTR] = {.name = "SETATTR", .serve = serve_setattr, .writes = true, .answer = kAttr};
  rows[FUSE_READLINK] = {.name = "READLINK", .serve = serve_readlink, .buffer = kMaxSymlink + 1};
  rows[FUSE_SYMLINK] = {.name = "SYMLINK", .serve = serve_symlink, .writes = true, .creates = true, .answer = kEntry};
  rows[FUSE_MKNOD] = {.name = "MKNOD", .serve = serve_mknod, .writes = true, .creates = true, .answer = kEntry};
  rows[FUSE_MKDIR] = {.name = "MKDIR", .serve = serve_mkdir, .writes = true, .creates = true, .answer = kEntry};
  rows[FUSE_UNLINK] = {.name = "UNLINK", .serve = serve_unlink, .writes = true};
  rows[FUSE_RMDIR] = {.name = "RMDIR", .serve = serve_rmdir, .writes = true};
  rows[FUSE_RENAME] = {.name = "RENAME", .serve = serve_rename, .writes = true};
  rows[FUSE_LINK] = {.name = "LINK", .serve = serve_link, .writes = true, .answer = kEntry};
  rows[FUSE_OPEN] = {.name = "OPEN", .serve = serve_open, .answer = kOpen};
  rows[FUSE_READ] = {.name = "READ", .serve = serve_read, .open_handle = true, .buffer = 0};
  rows[FUSE_WRITE] = {.name = "WRITE", .serve = serve_write, .writes = true, .open_handle = true, .streams = true,
                      .arguments = sizeof(fuse_write_in), .answer = sizeof(fuse_write_out)};
  rows[FUSE_STATFS] = {.name = "STATFS", .serve = serve_statfs, .answer = sizeof(fuse_kstatfs)};
  rows[FUSE_RELEASE] = {.name = "RELEASE", .serve = serve_release, .open_handle = true};
  rows[FUSE_FSYNC] = {.name = "FSYNC", .serve = serve_fsync, .open_handle = true};
  rows[FUSE_SETXATTR] = {.name = "SETXATTR", .serve = serve_setxattr, .writes = true};
  rows[FUSE_GETXATTR] = {.name = "GETXATTR", .serve = serve_getxattr, .buffer = kMaxXattrValue};
  rows[FUSE_LISTXATTR] = {.name = "LISTXATTR", .serve = serve_listxattr, .buffer = kMaxXattrValue};
  rows[FUSE_REMOVEXATTR] = {.name = "REMOVEXATTR", .serve = serve_removexattr, .writes = true};
  rows[FUSE_FLUSH] = {.name = "FLUSH", .serve = serve_flush, .open_handle = true};
  rows[FUSE_INIT] = {.name = "INIT", .open_handle = true, .answer = sizeof(fuse_init_out)};
  rows[FUSE_OPENDIR] = {.name = "OPENDIR", .serve = serve_opendir, .answer = kOpen};
  rows[FUSE_READDIR] = {.name = "READDIR", .serve = serve_readdir, .open_handle = true, .buffer = kMaxDirectory};
  rows[FUSE_RELEASEDIR] = {.name = "RELEASEDIR", .serve = serve_releasedir, .open_handle = true};
  rows[FUSE_FSYNCDIR] = {.name = "FSYNCDIR", .serve = serve_fsyncdir, .open_handle = true};
  rows[FUSE_GETLK] = {.name = "GETLK", .serve = serve_getlk, .answer = sizeof(fuse_lk_out)};
  rows[FUSE_SETLK] = {.name = "SETLK", .serve = serve_setlk};
  rows[FUSE_SETLKW] = {.name = "SETLKW", .serve = serve_setlkw};
  rows[FUSE_ACCESS] = {.name = "ACCESS", .serve = serve_access};
  rows[FUSE_CREATE] = {.name = "CREATE", .serve = serve_create, .writes = true, .creates = true, .answer = kCreated};
  rows[FUSE_INTERRUPT] = {.name = "INTERRUPT", .serve = serve_interrupt, .answers = false, .open_handle = true};
  // Only for file systems on a block device the guest could boot from.
  rows[FUSE_BMAP] = {.name = "BMAP"};
  rows[FUSE_DESTROY] = {.name = "DESTROY", .open_handle = true};
  rows[FUSE_IOCTL] = {.name = "IOCTL", .serve = serve_ioctl, .answer = sizeof(fuse_ioctl_out),
                      .buffer = sizeof(fuse_ioctl_out) + kMaxIoctl};
  // ENOSYS makes the guest treat every file as always ready, which files and directories are.
  rows[FUSE_POLL] = {.name = "POLL"};
  // We never ask for what it would answer.
  rows[FUSE_NOTIFY_REPLY] = {.name = "NOTIFY_REPLY", .open_handle = true};
  rows[FUSE_BATCH_FORGET] = {.name = "BATCH_FORGET", .serve = serve_batch_forget, .answers = false,
                             .open_handle = true};
  rows[FUSE_FALLOCATE] = {.name = "FALLOCATE", .serve = serve_fallocate, .writes = true};
  rows[FUSE_READDIRPLUS] = {.name = "READDIRPLUS", .serve = serve_readdirplus, .open_handle = true,
                            .buffer = kMaxDirectory};
  rows[FUSE_RENAME2] = {.name = "RENAME2", .serve = serve_rename2, .writes = true};
  rows[FUSE_LSEEK] = {.name = "LSEEK", .serve = serve_lseek, .answer = sizeof(fuse_lseek_out)};
  rows[FUSE_COPY_FILE_RANGE] = {.name = "COPY_FILE_RANGE", .serve = serve_copy_file_range, .writes = true,
                                .answer = sizeof(fuse_write_out)};
  // There is no shared window to map files into.
  rows[FUSE_SETUPMAPPING] = {.name = "SETUPMAPPING"};
  rows[FUSE_REMOVEMAPPING] = {.name = "REMOVEMAPPING"};
  rows[FUSE_SYNCFS] = {.name = "SYNCFS", .serve = serve_syncfs};
  rows[FUSE_TMPFILE] = {.name = "TMPFILE", .serve = serve_tmpfile, .writes = true, .creates = true, .answer = kCreated};
  rows[FUSE_STATX] = {.name = "STATX", .serve = serve_statx, .answer = sizeof(fuse_statx_out)};
  rows[FUSE_COPY_FILE_RANGE_64] = {.name = "COPY_FILE_RANGE_64", .serve = serve_copy_file_range_64, .writes = true,
                                   .answer = sizeof(fuse_copy_file_range_out)};
  // clang-format on
  return rows;
}();

constexpr Row kUnknown{};

Result<> take_security_context(Reader reader, std::uint32_t count, Call& call) {
  if (count == 0) return {};
  if (count > 1) return Errno{EINVAL};
  const auto head = TRY(reader.take<fuse_secctx>());
  const std::string_view name = TRY(take_xattr_name(reader));
  if (head.size > kMaxXattrValue) return Errno{E2BIG};
  const auto value = TRY(reader.take_bytes(head.size));
  if (call.session.has(FUSE_SECURITY_CTX))
    call.security = SecurityContext{.name = name, .value = value};
  return {};
}

Result<> take_groups(Reader reader, Call& call) {
  const auto count = TRY(reader.take<std::uint32_t>());
  if (count == 0) return {};
  if (count > 1) return Errno{EINVAL};
  const auto group = TRY(reader.take<std::uint32_t>());
  if (call.session.has(FUSE_CREATE_SUPP_GROUP)) call.caller.supplementary_group = group;
  return {};
}

}  // namespace

const Row& row_of(std::uint32_t opcode) {
  return opcode < kRows.size() ? kRows[opcode] : kUnknown;
}

Result<> take_extensions(Reader extensions, Call& call) {
  while (!extensions.rest().empty()) {
    const auto head = TRY(extensions.take<fuse_ext_header>());
    if (head.size < sizeof head) return Errno{EINVAL};
    const auto content = TRY(extensions.take_bytes(head.size - sizeof head));
    // Types up to 31 are no types but the number of security contexts.
    if (head.type <= FUSE_MAX_NR_SECCTX) {
      TRY(take_security_context(Reader{content}, head.type, call));
    } else if (head.type == FUSE_EXT_GROUPS) {
      TRY(take_groups(Reader{content}, call));
    }
    const std::size_t padding = (8 - head.size % 8) % 8;
    TRY(extensions.take_bytes(std::min(padding, extensions.rest().size())));
  }
  return {};
}

}  // namespace virtiofsd::fuse
