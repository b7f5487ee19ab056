// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "base/reader.h"

namespace virtiofsd {

Result<std::span<const std::byte>> Reader::take_bytes(std::size_t size) {
  if (rest_.size() < size) return Errno{EINVAL};
  const auto taken = rest_.first(size);
  rest_ = rest_.subspan(size);
  return taken;
}

Result<std::string_view> Reader::take_string() {
  if (rest_.empty()) return Errno{EINVAL};
  const void* end = std::memchr(rest_.data(), 0, rest_.size());
  if (end == nullptr) return Errno{EINVAL};
  // char may alias any object: this is the one place where bytes become text.
  const auto* text = reinterpret_cast<const char*>(rest_.data());
  const auto length = static_cast<std::size_t>(static_cast<const char*>(end) - text);
  rest_ = rest_.subspan(length + 1);
  return std::string_view{text, length};
}

}  // namespace virtiofsd
