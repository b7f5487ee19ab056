// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Lays directory entries out as READDIR (fuse_dirent) or READDIRPLUS
// (fuse_direntplus) wants them, in private memory, until the guest's buffer is
// full. Written to the guest once, at the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "fuse/wire.h"

namespace virtiofsd::fuse {

class DirectoryWriter {
 public:
  // `buffer` is as long as the reply may get.
  DirectoryWriter(std::span<std::byte> buffer, bool plus) : buffer_(buffer), plus_(plus) {}

  struct Entry {
    std::string_view name;
    std::uint64_t ino = 0;
    std::uint64_t next = 0;  // the cookie that continues after this entry
    std::uint32_t type = 0;  // DT_*
  };

  // True when an entry with a name this long still fits: ask before an
  // operation with an effect (a lookup count) is done for the entry.
  bool fits(std::size_t name_size) const;
  // False when it doesn't fit; nothing is written then.
  bool add(const Entry& entry);
  // For READDIRPLUS. An attr with nodeid 0 means "no attributes for this one".
  bool add(const Entry& entry, const fuse_entry_out& attributes);

  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return buffer_.size(); }
  std::span<const std::byte> bytes() const { return buffer_.first(size_); }

 private:
  std::span<std::byte> buffer_;
  std::size_t size_ = 0;
  bool plus_;
};

}  // namespace virtiofsd::fuse
