// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Takes a private copy of somebody else's bytes apart, front to back. What is
// taken is gone, and nothing past the end is ever read.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "base/result.h"

namespace virtiofsd {

// Plain old bytes: any bit pattern is a value.
template <typename T>
concept Plain = std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T>;

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  // EINVAL when fewer bytes are left than T has.
  template <Plain T>
  Result<T> take() {
    if (rest_.size() < sizeof(T)) return Errno{EINVAL};
    T value;
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_ = rest_.subspan(sizeof(T));
    return value;
  }

  // The first `known` bytes of a T; the rest of it is zero. For structs that grew.
  template <Plain T>
  Result<T> take_prefix(std::size_t known) {
    if (known > sizeof(T) || rest_.size() < known) return Errno{EINVAL};
    T value{};
    std::memcpy(static_cast<void*>(&value), rest_.data(), known);
    rest_ = rest_.subspan(known);
    return value;
  }

  // EINVAL when fewer than `size` are left.
  Result<std::span<const std::byte>> take_bytes(std::size_t size);

  // Up to the next NUL, which is taken too and still there behind the view's
  // end, so `.data()` is a C string. EINVAL when there is no NUL.
  Result<std::string_view> take_string();

  std::span<const std::byte> rest() const { return rest_; }

 private:
  std::span<const std::byte> rest_;
};

}  // namespace virtiofsd
