// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/body.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace virtiofsd::fuse {

Result<> Body::put_bytes(std::span<const std::byte> bytes) {
  if (bytes.empty()) return {};
  if (bytes.size() > room() || bytes.size() > buffer_.size() - gathered_) return Errno{EINVAL};
  std::memcpy(buffer_.data() + gathered_, bytes.data(), bytes.size());
  keep(bytes.size());
  return {};
}

std::span<std::byte> Body::draft(std::size_t size) {
  return buffer_.subspan(gathered_, std::min({size, room(), buffer_.size() - gathered_}));
}

void Body::keep(std::size_t size) {
  CHECK(gathered_ == used_);  // no file data committed
  CHECK(size <= room() && size <= buffer_.size() - gathered_);
  gathered_ += size;
  used_ += size;
}

void Body::commit(std::size_t size) {
  CHECK(gathered_ == 0 && size <= reply_.size());
  used_ = size;
}

}  // namespace virtiofsd::fuse
