// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The reply after its 16-byte header. Small parts are gathered in private
// memory and written to the guest by the dispatcher, once, when the operation
// succeeded; on error nothing in the body counts. File data goes straight into
// guest memory by `space` and `commit`. An answer is one or the other.
#pragma once

#include <cstddef>
#include <span>

#include "base/reader.h"
#include "base/result.h"
#include "memory/shared_bytes.h"
#include "sys/io_space.h"

namespace virtiofsd::fuse {

class Body {
 public:
  // `reply` is the chain's writable bytes behind the header, `buffer` private
  // memory as long as the longest answer that is not file data. Both outlive it.
  Body(const SharedBytes& reply, std::span<std::byte> buffer) : reply_(reply), buffer_(buffer) {}

  // Bytes the guest left room for and nobody put yet.
  std::size_t room() const { return reply_.size() - used_; }

  // EINVAL when there is no room for it (the guest's buffer is too small for the answer).
  template <Plain T>
  Result<> put(const T& value) {
    return put_bytes(std::as_bytes(std::span{&value, 1}));
  }
  // Private bytes, copied now. EINVAL when there is no room.
  Result<> put_bytes(std::span<const std::byte> bytes);

  // Up to `size` bytes of private memory behind what was put, to lay an answer
  // out in; `keep` says how much of it counts.
  std::span<std::byte> draft(std::size_t size);
  void keep(std::size_t size);

  // Up to `size` bytes of guest memory for the kernel to fill. Only when
  // nothing was put; `commit` says how much of it counts.
  IoSpace space(std::size_t size) const { return reply_.space(size); }
  void commit(std::size_t size);

  // For the dispatcher: private bytes to write behind the header, and the size of the whole body.
  std::span<const std::byte> gathered() const { return buffer_.first(gathered_); }
  std::size_t size() const { return used_; }

 private:
  const SharedBytes& reply_;
  std::span<std::byte> buffer_;
  std::size_t gathered_ = 0;
  std::size_t used_ = 0;
};

}  // namespace virtiofsd::fuse
