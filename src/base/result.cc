// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "base/result.h"

namespace virtiofsd {

std::string Errno::text() const {
  const char* name = strerrorname_np(value_);
  const char* words = strerrordesc_np(value_);
  if (name == nullptr || words == nullptr) return "errno " + std::to_string(value_);
  return std::string{words} + " (" + name + ")";
}

}  // namespace virtiofsd
