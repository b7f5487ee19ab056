// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A piece of somebody else's file mapped shared, read and write. Unmapped when
// the last owner lets go; watched by sigbus while it lives. Immutable, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd {

class Mapping {
 public:
  // Maps `size` bytes from `offset`, which needs no alignment (hugetlbfs files
  // included). The descriptor isn't kept. EINVAL: size 0, an end past the end
  // of the file or past 2^63, or a descriptor that is no file or device.
  static Result<std::shared_ptr<const Mapping>> map(FdRef fd, std::uint64_t offset,
                                                    std::uint64_t size);

  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }  // the byte at `offset`
  std::size_t size() const { return size_; }

 private:
  Mapping(void* start, std::size_t length, std::byte* data, std::size_t size)
      : start_(start), length_(length), data_(data), size_(size) {}

  void* const start_;         // page aligned
  const std::size_t length_;  // whole pages
  std::byte* const data_;
  const std::size_t size_;
};

}  // namespace virtiofsd
