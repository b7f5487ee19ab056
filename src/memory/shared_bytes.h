// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Bytes in guest memory, seen through a consuming cursor. Every piece lies in
// a mapped region (GuestMemory made sure). Taking consumes: nothing is read
// twice, so a guest that changes its memory meanwhile changes nothing for us.
// There is nothing to dereference; file data goes straight to the kernel by `space`.
//
// A view over an array of pieces that its Chain's scratch owns: valid while
// the chain is being served, used by one thread at a time.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>

#include "base/result.h"
#include "sys/io_space.h"

namespace virtiofsd {

class SharedBytes {
 public:
  SharedBytes() = default;
  // `pieces` is edited in place as bytes are taken. `size` is their sum.
  SharedBytes(std::span<iovec> pieces, std::size_t size) : pieces_(pieces), size_(size) {}

  // Bytes not taken yet.
  std::size_t size() const { return size_; }

  // Copies the next `out.size()` bytes to private memory and takes them.
  // EINVAL when fewer are left (nothing is taken then).
  Result<> copy_out(std::span<std::byte> out);

  // Copies `in` to the next bytes of guest memory and takes them.
  // EINVAL when fewer are left (nothing is written then).
  Result<> copy_in(std::span<const std::byte> in);

  // Takes the next `size` bytes without looking. EINVAL when fewer are left.
  Result<> skip(std::size_t size);

  // Takes the next `size` bytes as a view of their own, to be written after
  // what follows them. `storage` holds the view's pieces and outlives it; as
  // many as there are bytes are always enough. EINVAL when fewer bytes are left.
  Result<SharedBytes> split_front(std::size_t size, std::span<iovec> storage);

  // The next `size` bytes, or what is left, will be written soon. A hint.
  void prefetch_for_write(std::size_t size) const;

  // The next `size` bytes for the kernel to read or write, not taken: the
  // caller skips what was used. `size` is clamped to what is left.
  IoSpace space(std::size_t size) const { return IoSpace{pieces_, size < size_ ? size : size_}; }

 private:
  std::span<iovec> pieces_;
  std::size_t size_ = 0;
};

}  // namespace virtiofsd
