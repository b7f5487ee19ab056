// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// For the room's tests: a file system that writes down how it was called and
// answers with numbers easy to recognise, and a guest that sends requests to a
// dispatcher from plain memory.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuse/dispatcher.h"

namespace virtiofsd::fuse {

using Bytes = std::vector<std::byte>;

template <typename... Parts>
Bytes bytes_of(const Parts&... parts) {
  Bytes out;
  const auto add = [&out](const auto& part) {
    if constexpr (std::is_convertible_v<decltype(part), std::string_view>) {
      // Text travels with its NUL.
      for (const char c : std::string_view{part}) out.push_back(static_cast<std::byte>(c));
      out.push_back(std::byte{0});
    } else if constexpr (std::is_same_v<std::remove_cvref_t<decltype(part)>, Bytes>) {
      out.insert(out.end(), part.begin(), part.end());
    } else {
      const auto raw = std::as_bytes(std::span{&part, 1});
      out.insert(out.end(), raw.begin(), raw.end());
    }
  };
  (add(parts), ...);
  return out;
}

inline std::string text_of(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte b : bytes) text.push_back(static_cast<char>(b));
  return text;
}

class FakeFileSystem final : public FileSystem {
 public:
  std::vector<std::string> calls;
  std::optional<Errno> error;  // what every operation answers, if set
  std::optional<SecurityContext> security;
  std::optional<std::uint32_t> group;
  std::uint64_t narrowed = 0;      // flags init takes away
  std::vector<std::string> names;  // of the directory
  bool fail_after_names = false;
  std::string content = "content";

  std::string last() const { return calls.empty() ? "" : calls.back(); }

  Result<> init(Negotiated& session) override {
    note("init");
    session.flags &= ~narrowed;
    return done();
  }
  void destroy() override { note("destroy"); }

  Result<fuse_entry_out> lookup(Call& call, Name name) override {
    return entry(call, "lookup {} {}", call.node.value, name.view());
  }
  Result<fuse_entry_out> lookup_self(Call& call) override {
    return entry(call, "lookup_self {}", call.node.value);
  }
  Result<fuse_entry_out> lookup_parent(Call& call) override {
    return entry(call, "lookup_parent {}", call.node.value);
  }
  void forget(NodeId node, std::uint64_t count) override {
    note("forget {} {}", node.value, count);
  }
  Result<fuse_entry_out> symlink(Call& call, Name name, const char* target) override {
    return entry(call, "symlink {} {} {}", call.node.value, name.view(), target);
  }
  Result<fuse_entry_out> mknod(Call& call, Name name, const fuse_mknod_in& in) override {
    return entry(call, "mknod {} {} {:o} {} {:o}", call.node.value, name.view(), in.mode, in.rdev,
                 in.umask);
  }
  Result<fuse_entry_out> mkdir(Call& call, Name name, const fuse_mkdir_in& in) override {
    return entry(call, "mkdir {} {} {:o} {:o}", call.node.value, name.view(), in.mode, in.umask);
  }
  Result<fuse_entry_out> link(Call& call, NodeId existing, Name name) override {
    return entry(call, "link {} {} {}", call.node.value, existing.value, name.view());
  }
  Result<Created> create(Call& call, Name name, const CreateArgs& args) override {
    return created(call, "create {} {} {} {:o} {:o} {}", call.node.value, name.view(), args.flags,
                   args.mode, args.umask, args.open_flags);
  }
  Result<Created> tmpfile(Call& call, const CreateArgs& args) override {
    return created(call, "tmpfile {} {} {:o} {:o} {}", call.node.value, args.flags, args.mode,
                   args.umask, args.open_flags);
  }
  Result<> unlink(Call& call, Name name) override {
    return did("unlink {} {}", call.node.value, name.view());
  }
  Result<> rmdir(Call& call, Name name) override {
    return did("rmdir {} {}", call.node.value, name.view());
  }
  Result<> rename(Call& call, Name from, NodeId to_directory, Name to,
                  std::uint32_t flags) override {
    return did("rename {} {} {} {} {}", call.node.value, from.view(), to_directory.value, to.view(),
               flags);
  }

  Result<fuse_attr_out> getattr(Call& call, std::optional<HandleId> handle) override {
    return answer<fuse_attr_out>([](auto& out) { out.attr.ino = 77; }, "getattr {} {}",
                                 call.node.value, handle ? fmt::format("{}", handle->value) : "-");
  }
  Result<fuse_statx_out> statx(Call& call, const fuse_statx_in& in) override {
    return answer<fuse_statx_out>([](auto& out) { out.stat.ino = 77; }, "statx {} {} {} {} {}",
                                  call.node.value, in.getattr_flags, in.fh, in.sx_flags,
                                  in.sx_mask);
  }
  Result<fuse_attr_out> setattr(Call& call, const fuse_setattr_in& in) override {
    return answer<fuse_attr_out>([](auto& out) { out.attr.ino = 77; }, "setattr {} {} {} {} {:o}",
                                 call.node.value, in.valid, in.fh, in.size, in.mode);
  }
  Result<> readlink(Call& call, Body& body) override {
    TRY(did("readlink {}", call.node.value));
    return body.put_bytes(std::as_bytes(std::span{content}));
  }
  Result<> access(Call& call, std::uint32_t mask) override {
    return did("access {} {}", call.node.value, mask);
  }
  Result<fuse_kstatfs> statfs(Call& call) override {
    return answer<fuse_kstatfs>([](auto& out) { out.bsize = 4096; }, "statfs {}", call.node.value);
  }

  Result<fuse_open_out> open(Call& call, std::uint32_t flags, std::uint32_t open_flags) override {
    return answer<fuse_open_out>([](auto& out) { out.fh = 55; }, "open {} {} {}", call.node.value,
                                 flags, open_flags);
  }
  Result<> read(Call& call, const ReadArgs& args, Body& body) override {
    TRY(did("read {} {} {} {} {}", call.node.value, args.handle.value, args.offset, args.size,
            args.flags));
    const IoSpace space = body.space(args.size);
    std::size_t copied = 0;
    for (const iovec& piece : IoSpaceAccess::pieces(space)) {
      const std::size_t part =
          std::min({piece.iov_len, content.size() - copied, space.size() - copied});
      std::memcpy(piece.iov_base, content.data() + copied, part);
      copied += part;
    }
    body.commit(copied);
    return {};
  }
  Result<std::uint32_t> write(Call& call, const WriteArgs& args, const IoSpace& data) override {
    std::string text;
    for (const iovec& piece : IoSpaceAccess::pieces(data))
      text.append(static_cast<const char*>(piece.iov_base), piece.iov_len);
    text.resize(data.size());
    TRY(did("write {} {} {} {} {} {} {}", call.node.value, args.handle.value, args.offset,
            args.size, args.write_flags, args.flags, text));
    return args.size;
  }
  Result<> flush(Call& call, HandleId handle, LockOwner owner) override {
    return did("flush {} {} {}", call.node.value, handle.value, owner.value);
  }
  Result<> release(Call& call, const ReleaseArgs& args) override {
    return did("release {} {} {} {} {}", call.node.value, args.handle.value, args.flags,
               args.release_flags, args.owner.value);
  }
  Result<> fsync(Call& call, HandleId handle, bool data_only) override {
    return did("fsync {} {} {}", call.node.value, handle.value, data_only);
  }
  Result<> fallocate(Call& call, const fuse_fallocate_in& in) override {
    return did("fallocate {} {} {} {} {}", call.node.value, in.fh, in.offset, in.length, in.mode);
  }
  Result<std::uint64_t> lseek(Call& call, HandleId handle, std::uint64_t offset,
                              std::uint32_t whence) override {
    TRY(did("lseek {} {} {} {}", call.node.value, handle.value, offset, whence));
    return std::uint64_t{4242};
  }
  Result<std::uint64_t> copy_file_range(Call& call, const CopyArgs& args) override {
    TRY(did("copy {} {} {} {} {} {} {} {}", call.node.value, args.from.value, args.from_offset,
            args.to_node.value, args.to.value, args.to_offset, args.length, args.flags));
    return args.length;
  }
  Result<> ioctl(Call& call, const IoctlArgs& args, std::span<const std::byte> in,
                 Body& body) override {
    TRY(did("ioctl {} {} {} {} {} {} {}", call.node.value, args.handle.value, args.flags,
            args.command, args.argument, args.out_size, text_of(in)));
    fuse_ioctl_out out{};
    out.result = 3;
    TRY(body.put(out));
    return body.put_bytes(std::as_bytes(std::span{content}.first(args.out_size)));
  }
  Result<> syncfs(Call& call) override { return did("syncfs {}", call.node.value); }

  Result<fuse_open_out> opendir(Call& call, std::uint32_t flags) override {
    return answer<fuse_open_out>([](auto& out) { out.fh = 56; }, "opendir {} {}", call.node.value,
                                 flags);
  }
  Result<> readdir(Call& call, HandleId handle, std::uint64_t offset,
                   DirectoryWriter& out) override {
    TRY(did("readdir {} {} {} {}", call.node.value, handle.value, offset, out.capacity()));
    return list(out);
  }
  Result<> readdirplus(Call& call, HandleId handle, std::uint64_t offset,
                       DirectoryWriter& out) override {
    TRY(did("readdirplus {} {} {} {}", call.node.value, handle.value, offset, out.capacity()));
    return list(out);
  }
  Result<> releasedir(Call& call, const ReleaseArgs& args) override {
    return did("releasedir {} {}", call.node.value, args.handle.value);
  }
  Result<> fsyncdir(Call& call, HandleId handle, bool data_only) override {
    return did("fsyncdir {} {} {}", call.node.value, handle.value, data_only);
  }

  Result<> setxattr(Call& call, std::string_view name, std::span<const std::byte> value,
                    std::uint32_t flags, std::uint32_t setxattr_flags) override {
    return did("setxattr {} {} {} {} {}", call.node.value, name,
               value.size() <= 64 ? text_of(value) : fmt::format("[{}]", value.size()), flags,
               setxattr_flags);
  }
  Result<> getxattr(Call& call, std::string_view name, std::uint32_t size, Body& body) override {
    TRY(did("getxattr {} {} {}", call.node.value, name, size));
    return size == 0 ? body.put(fuse_getxattr_out{.size = 7, .padding = 0})
                     : body.put_bytes(std::as_bytes(std::span{content}));
  }
  Result<> listxattr(Call& call, std::uint32_t size, Body& body) override {
    TRY(did("listxattr {} {}", call.node.value, size));
    return size == 0 ? body.put(fuse_getxattr_out{.size = 7, .padding = 0})
                     : body.put_bytes(std::as_bytes(std::span{content}));
  }
  Result<> removexattr(Call& call, std::string_view name) override {
    return did("removexattr {} {}", call.node.value, name);
  }

  Result<fuse_file_lock> getlk(Call&, const LockArgs& args) override {
    return answer<fuse_file_lock>([](auto& out) { out.pid = 9; }, "getlk {}", lock_text(args));
  }
  Result<> setlk(Call&, const LockArgs& args) override { return did("setlk {}", lock_text(args)); }
  void interrupt(std::uint64_t unique) override { note("interrupt {}", unique); }

 private:
  template <typename... Args>
  void note(fmt::format_string<Args...> format, Args&&... args) {
    calls.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  Result<> done() const {
    if (error) return *error;
    return {};
  }
  template <typename... Args>
  Result<> did(fmt::format_string<Args...> format, Args&&... args) {
    note(format, std::forward<Args>(args)...);
    return done();
  }
  template <typename T, typename Fill, typename... Args>
  Result<T> answer(Fill fill, fmt::format_string<Args...> format, Args&&... args) {
    note(format, std::forward<Args>(args)...);
    if (error) return *error;
    T out{};
    fill(out);
    return out;
  }
  template <typename... Args>
  Result<fuse_entry_out> entry(Call& call, fmt::format_string<Args...> format, Args&&... args) {
    // What the context points to lives only as long as the request.
    security_name_.clear();
    security_value_.clear();
    security.reset();
    if (call.security) {
      security_name_ = call.security->name;
      security_value_.assign(call.security->value.begin(), call.security->value.end());
      security = SecurityContext{.name = security_name_, .value = security_value_};
    }
    group = call.caller.supplementary_group;
    return answer<fuse_entry_out>([](auto& out) { out.nodeid = 42; }, format,
                                  std::forward<Args>(args)...);
  }
  template <typename... Args>
  Result<Created> created(Call& call, fmt::format_string<Args...> format, Args&&... args) {
    Created out{};
    out.entry = TRY(entry(call, format, std::forward<Args>(args)...));
    out.open.fh = 55;
    return out;
  }
  Result<> list(DirectoryWriter& out) const {
    std::uint64_t next = 0;
    for (const std::string& name : names) {
      if (!out.add({.name = name, .ino = 5, .next = ++next, .type = 8})) return {};
    }
    if (fail_after_names) return Errno{EIO};
    return {};
  }
  static std::string lock_text(const LockArgs& args) {
    return fmt::format("{} {} {}-{} type={} pid={} flock={} wait={}", args.handle.value,
                       args.owner.value, args.start, args.end, args.type, args.pid, args.flock,
                       args.wait);
  }

  std::string security_name_;
  Bytes security_value_;
};

inline fuse_read_in read_of(std::uint64_t handle, std::uint64_t offset, std::uint32_t size) {
  fuse_read_in in{};
  in.fh = handle;
  in.offset = offset;
  in.size = size;
  return in;
}

struct Reply {
  std::uint32_t used = 0;  // what serve returned
  fuse_out_header header{};
  Bytes body;

  int error() const { return -header.error; }
  template <typename T>
  T as() const {
    T value{};
    std::memcpy(&value, body.data(), std::min(sizeof value, body.size()));
    return value;
  }
};

// A guest with a session, unless it says otherwise.
class Guest {
 public:
  explicit Guest(Dispatcher::Settings settings = {}) : dispatcher{fs, std::move(settings)} {}

  FakeFileSystem fs;
  Dispatcher dispatcher;
  NullScheduler scheduler;
  Scratch scratch;

  // What the next requests look like.
  std::uint64_t node = 1;
  std::uint64_t unique = 100;
  std::uint32_t uid = 0;
  std::uint16_t extension_words = 0;
  std::size_t room = 128U << 10;
  std::optional<std::uint32_t> len;  // instead of the true length
  bool faulted = false;
  std::size_t piece = 1U << 30;  // the longest buffer of the chain

  Reply init(std::uint64_t flags = ~0ULL, std::uint32_t minor = kMinor) {
    fuse_init_in in{};
    in.major = kMajor;
    in.minor = minor;
    in.max_readahead = 131072;
    in.flags = static_cast<std::uint32_t>(flags);
    in.flags2 = static_cast<std::uint32_t>(flags >> 32);
    return send(FUSE_INIT, bytes_of(in));
  }

  Reply send(std::uint32_t opcode, Bytes arguments = {}) {
    fuse_in_header header{};
    header.len = len.value_or(static_cast<std::uint32_t>(sizeof header + arguments.size()));
    header.opcode = opcode;
    header.unique = unique;
    header.nodeid = node;
    header.uid = uid;
    header.total_extlen = extension_words;
    return send_raw(bytes_of(header, arguments));
  }

  Reply send_raw(Bytes request) {
    Bytes space(room, std::byte{0xee});
    auto request_pieces = pieces_of(request);
    auto reply_pieces = pieces_of(space);
    Reply reply;
    reply.used = dispatcher.serve(SharedBytes{request_pieces, request.size()},
                                  SharedBytes{reply_pieces, space.size()}, {.faulted = faulted},
                                  scheduler, scratch);
    if (reply.used >= sizeof reply.header) {
      std::memcpy(&reply.header, space.data(), sizeof reply.header);
      reply.body.assign(space.begin() + sizeof reply.header,
                        space.begin() + static_cast<std::ptrdiff_t>(reply.used));
    }
    untouched = std::all_of(space.begin() + reply.used, space.end(),
                            [](std::byte b) { return b == std::byte{0xee}; });
    return reply;
  }
  bool untouched = true;  // nothing was written behind the last reply

 private:
  std::vector<iovec> pieces_of(Bytes& bytes) const {
    std::vector<iovec> pieces;
    for (std::size_t at = 0; at < bytes.size(); at += piece)
      pieces.push_back(
          {.iov_base = bytes.data() + at, .iov_len = std::min(piece, bytes.size() - at)});
    return pieces;
  }
};

}  // namespace virtiofsd::fuse
