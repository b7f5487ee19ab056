// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Open directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR.
//
// A cookie is the host's own d_off, passed on unread: the guest may come back
// with any of them. The descriptor's position is remembered, so that a listing
// from front to back seeks only when an entry that was read did not fit.
#include <dirent.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/uninitialized.h"
#include "passthrough/passthrough.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

// struct linux_dirent64, field by field: it is packed and of varying length.
constexpr std::size_t kOffsetAt = 8;
constexpr std::size_t kLengthAt = 16;
constexpr std::size_t kTypeAt = 18;
constexpr std::size_t kNameAt = 19;

// One entry with the longest name takes 280 bytes, so this much always gets on.
constexpr std::size_t kSmallestChunk = 1024;
constexpr std::size_t kLargestChunk = 32768;

// How many bytes of reply one byte of raw entry makes, roughly: an entry of
// READDIR is at most 8 bytes longer than a raw one, one of READDIRPLUS has 128
// bytes of attributes. Reading too much costs a seek and a second reading,
// reading too little a system call.
constexpr std::size_t kPlainRatio = 1;
constexpr std::size_t kPlusRatio = 5;

enum class Added : std::uint8_t { kYes, kNo, kFull };

// Takes the entries out of what getdents64 said, front to back.
class RawEntries {
 public:
  explicit RawEntries(std::span<const std::byte> bytes) : rest_(bytes) {}

  bool empty() const { return rest_.empty(); }
  fuse::DirectoryWriter::Entry take() {
    CHECK(rest_.size() > kNameAt);
    std::uint16_t length = 0;
    fuse::DirectoryWriter::Entry entry;
    std::uint64_t ino = 0;
    std::uint64_t next = 0;
    std::memcpy(&ino, rest_.data(), sizeof ino);
    std::memcpy(&next, rest_.data() + kOffsetAt, sizeof next);
    std::memcpy(&length, rest_.data() + kLengthAt, sizeof length);
    CHECK(length > kNameAt && length <= rest_.size());
    const auto* name = static_cast<const char*>(static_cast<const void*>(rest_.data() + kNameAt));
    entry.name = std::string_view{name, ::strnlen(name, length - kNameAt)};
    entry.ino = ino;
    entry.next = next;
    entry.type = std::to_integer<std::uint32_t>(rest_[kTypeAt]);
    rest_ = rest_.subspan(length);
    return entry;
  }

 private:
  std::span<const std::byte> rest_;
};

// Where the descriptor stands after it gave these entries.
std::uint64_t position_after(std::span<const std::byte> bytes) {
  std::uint64_t position = 0;
  for (RawEntries entries{bytes}; !entries.empty();) position = entries.take().next;
  return position;
}

bool is_dots(std::string_view name) {
  return name == "." || name == "..";
}

}  // namespace

Result<fuse_open_out> Passthrough::opendir(fuse::Call& call, std::uint32_t flags) {
  InodeRef inode = TRY(inodes_->pin(call.node));
  if (!inode.is_directory()) return Errno{ENOTDIR};
  OpenPlan plan;
  plan.flags = O_RDONLY | O_DIRECTORY;
  if (settings_.preserve_noatime) plan.flags |= static_cast<int>(flags) & O_NOATIME;
  UniqueFd fd = TRY(open_regular(inode, plan));
  const HandleId handle =
      TRY(handles_.insert(HandleKind::kDirectory, std::move(inode), std::move(fd),
                          static_cast<std::uint32_t>(plan.flags)));
  std::uint32_t reply = 0;
  if (settings_.cache == CacheMode::kAlways || settings_.cache == CacheMode::kMetadata)
    reply = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
  return fuse_open_out{.fh = handle.value, .open_flags = reply, .padding = 0};
}

template <typename Add>
Result<> Passthrough::list(fuse::Call& call, HandleId id, std::uint64_t offset,
                           fuse::DirectoryWriter& out, std::size_t ratio, Add&& add) {
  const HandleRef handle = TRY(handles_.find(id, HandleKind::kDirectory, call.node));
  OpenState& state = handle.state();

  // What lies above the root is the host's business.
  std::uint64_t root_ino = 0;
  if (call.node == inodes_->root()) {
    UNINITIALIZED struct statx stx;
    TRY(sys::statx(handle.fd(), STATX_INO, &stx));
    root_ino = stx.stx_ino;
  }

  alignas(8) thread_local std::array<std::byte, kLargestChunk> chunk;
  std::uint64_t cookie = offset;
  for (;;) {
    const std::size_t room = out.capacity() - out.size();
    const std::size_t wanted =
        std::clamp(room / ratio - room / ratio / 8, kSmallestChunk, kLargestChunk);
    const auto raw = [&]() -> Result<std::span<const std::byte>> {
      const Lock lock(state.directory_lock);
      // From the start even if nothing was read yet: btrfs lists what was there when the position
      // was last set, and a guest's rewinddir is only seen here.
      if (cookie == 0 || state.directory_offset != cookie) {
        TRY(sys::lseek(handle.fd(), cookie, SEEK_SET));
        state.directory_offset = cookie;
      }
      const std::size_t size = TRY(sys::getdents64(handle.fd(), std::span{chunk}.first(wanted)));
      if (size > 0) state.directory_offset = position_after(std::span{chunk}.first(size));
      return std::span<const std::byte>{chunk}.first(size);
    }();
    if (!raw) {
      // What the reply has already was looked up for the guest; the error comes again next time.
      if (!out.empty()) return {};
      return raw.error();
    }
    if (raw->empty()) return {};
    for (RawEntries entries{*raw}; !entries.empty();) {
      fuse::DirectoryWriter::Entry entry = entries.take();
      if (root_ino != 0 && entry.name == "..") entry.ino = root_ino;
      switch (add(handle, entry)) {
        case Added::kYes:
        case Added::kNo:
          cookie = entry.next;
          break;
        case Added::kFull:
          // Nothing at all would look like the end of the directory.
          if (out.empty()) return Errno{EINVAL};
          return {};
      }
    }
    // The rest would hold little more, at the price of a seek for the next request.
    if (!out.empty() && out.capacity() - out.size() < std::max(out.capacity() / 8, kSmallestChunk))
      return {};
  }
}

Result<> Passthrough::readdir(fuse::Call& call, HandleId id, std::uint64_t offset,
                              fuse::DirectoryWriter& out) {
  return list(call, id, offset, out, kPlainRatio,
              [&](const HandleRef&, const fuse::DirectoryWriter::Entry& entry) {
                return out.add(entry) ? Added::kYes : Added::kFull;
              });
}

Result<> Passthrough::readdirplus(fuse::Call& call, HandleId id, std::uint64_t offset,
                                  fuse::DirectoryWriter& out) {
  return list(call, id, offset, out, kPlusRatio,
              [&](const HandleRef& handle, const fuse::DirectoryWriter::Entry& entry) {
                // Asked first: a lookup count that doesn't get into the reply would be lost.
                if (!out.fits(entry.name.size())) return Added::kFull;
                fuse_entry_out attributes{};  // node 0: none for this one
                if (!is_dots(entry.name)) {
                  const auto name = Name::parse(entry.name);
                  UNINITIALIZED struct statx stx;
                  auto found = name ? inodes_->lookup(handle.inode(), *name, AT_NO_AUTOMOUNT, &stx)
                                    : Result<InodeRef>{name.error()};
                  // Removed since it was read. Any other trouble the guest meets again
                  // when it asks for that name; the rest of the listing is good.
                  if (!found && found.error() == Errno{ENOENT}) return Added::kNo;
                  if (found) attributes = entry_of(call, *found, stx);
                }
                const bool added = out.add(entry, attributes);
                CHECK(added);
                return Added::kYes;
              });
}

Result<> Passthrough::releasedir(fuse::Call& call, const fuse::ReleaseArgs& args) {
  const Result<> released = handles_.release(args.handle, HandleKind::kDirectory, call.node);
  if (!released && call.again) return {};
  return released;
}

Result<> Passthrough::fsyncdir(fuse::Call& call, HandleId id, bool data_only) {
  const HandleRef handle = TRY(handles_.find(id, HandleKind::kDirectory, call.node));
  call.scheduler.about_to_block();
  return data_only ? sys::fdatasync(handle.fd()) : sys::fsync(handle.fd());
}

}  // namespace virtiofsd
