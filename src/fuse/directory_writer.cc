// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/directory_writer.h"

#include <cstring>

namespace virtiofsd::fuse {
namespace {

constexpr std::size_t kDirentHead = offsetof(fuse_dirent, name);
static_assert(kDirentHead == sizeof(fuse_dirent));

// Bytes of one record: every one starts on a multiple of eight.
constexpr std::size_t record_size(std::size_t name_size, bool plus) {
  const std::size_t bytes = (plus ? sizeof(fuse_entry_out) : 0) + kDirentHead + name_size;
  return (bytes + 7) & ~std::size_t{7};
}

}  // namespace

bool DirectoryWriter::fits(std::size_t name_size) const {
  return record_size(name_size, plus_) <= buffer_.size() - size_;
}

bool DirectoryWriter::add(const Entry& entry) {
  return add(entry, fuse_entry_out{});
}

bool DirectoryWriter::add(const Entry& entry, const fuse_entry_out& attributes) {
  if (!fits(entry.name.size())) return false;
  fuse_dirent head{};
  head.ino = entry.ino;
  head.off = entry.next;
  head.namelen = static_cast<std::uint32_t>(entry.name.size());
  head.type = entry.type;

  std::byte* const start = buffer_.data() + size_;
  std::byte* at = start;
  if (plus_) {
    std::memcpy(at, &attributes, sizeof attributes);
    at += sizeof attributes;
  }
  std::memcpy(at, &head, kDirentHead);
  at += kDirentHead;
  std::memcpy(at, entry.name.data(), entry.name.size());
  at += entry.name.size();
  // The buffer is reused: padding must not show the guest what another request left there.
  const std::size_t record = record_size(entry.name.size(), plus_);
  std::memset(at, 0, record - static_cast<std::size_t>(at - start));
  size_ += record;
  return true;
}

}  // namespace virtiofsd::fuse
