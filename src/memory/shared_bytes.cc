// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/shared_bytes.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/prefetch.h"

namespace virtiofsd {
namespace {

// Walks the first `size` bytes of `pieces`, edits them away and hands each
// stretch to `use(address, length)`. The caller made sure that many are there.
template <typename Use>
void take(std::span<iovec>& pieces, std::size_t size, Use use) {
  std::size_t left = size;
  while (left != 0) {
    iovec& piece = pieces.front();
    const std::size_t part = std::min(left, piece.iov_len);
    use(static_cast<std::byte*>(piece.iov_base), part);
    left -= part;
    piece.iov_base = static_cast<std::byte*>(piece.iov_base) + part;
    piece.iov_len -= part;
    if (piece.iov_len == 0) pieces = pieces.subspan(1);
  }
}

}  // namespace

Result<> SharedBytes::copy_out(std::span<std::byte> out) {
  if (out.size() > size_) return Errno{EINVAL};
  std::byte* to = out.data();
  take(pieces_, out.size(), [&to](const std::byte* from, std::size_t part) {
    std::memcpy(to, from, part);
    to += part;
  });
  size_ -= out.size();
  return {};
}

Result<> SharedBytes::copy_in(std::span<const std::byte> in) {
  if (in.size() > size_) return Errno{EINVAL};
  const std::byte* from = in.data();
  take(pieces_, in.size(), [&from](std::byte* to, std::size_t part) {
    std::memcpy(to, from, part);
    from += part;
  });
  size_ -= in.size();
  return {};
}

Result<> SharedBytes::skip(std::size_t size) {
  if (size > size_) return Errno{EINVAL};
  take(pieces_, size, [](std::byte*, std::size_t) {});
  size_ -= size;
  return {};
}

void SharedBytes::prefetch_for_write(std::size_t size) const {
  for (const iovec& piece : pieces_) {
    const std::size_t part = std::min(size, piece.iov_len);
    virtiofsd::prefetch_for_write(static_cast<const std::byte*>(piece.iov_base), part);
    size -= part;
    if (size == 0) break;
  }
}

Result<SharedBytes> SharedBytes::split_front(std::size_t size, std::span<iovec> storage) {
  if (size > size_) return Errno{EINVAL};
  std::size_t count = 0;
  take(pieces_, size, [&](std::byte* at, std::size_t part) {
    if (part == 0) return;
    CHECK(count < storage.size());
    storage[count++] = iovec{.iov_base = at, .iov_len = part};
  });
  size_ -= size;
  return SharedBytes{storage.first(count), size};
}

}  // namespace virtiofsd
