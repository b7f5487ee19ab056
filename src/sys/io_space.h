// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Bytes of guest memory that only the kernel will look at: the payload of a
// WRITE, the room of a READ. Opaque: sys/files.h opens it for the kernel (and, where a
// request is served again, to compare), so nobody reads guest bytes twice by accident.
// A view; lives as long as the chain it was cut from.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>

namespace virtiofsd {

class IoSpace {
 public:
  IoSpace() = default;

  // Total bytes in all pieces.
  std::size_t size() const { return size_; }

 private:
  friend class SharedBytes;     // makes them
  friend struct IoSpaceAccess;  // opens them (sys/files.cc, tests)
  IoSpace(std::span<iovec> pieces, std::size_t size) : pieces_(pieces), size_(size) {}

  std::span<iovec> pieces_;  // together at least size_ bytes; whoever opens it stops at size_
  std::size_t size_ = 0;
};

// For the few functions that hand the pieces to the kernel.
struct IoSpaceAccess {
  static std::span<iovec> pieces(const IoSpace& space) { return space.pieces_; }
  static IoSpace make(std::span<iovec> pieces, std::size_t size) { return IoSpace{pieces, size}; }
};

}  // namespace virtiofsd
