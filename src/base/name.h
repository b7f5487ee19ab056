// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One path component from the guest. It can't climb: 1 to 255 bytes, ended by
// NUL, no '/', not "." or "..". Every system call wrapper that takes a name in
// a directory takes only this. Lives as long as the bytes it was parsed from.
#pragma once

#include <string_view>

#include "base/result.h"

namespace virtiofsd {

class Name {
 public:
  static constexpr std::size_t kMaxBytes = 255;  // NAME_MAX

  // `text.data()[text.size()]` must be NUL (Reader::take_string gives such).
  // EINVAL for a name that is none, ENAMETOOLONG past 255 bytes.
  static Result<Name> parse(std::string_view text);

  const char* c_str() const { return text_.data(); }
  std::string_view view() const { return text_; }

 private:
  explicit Name(std::string_view text) : text_(text) {}

  std::string_view text_;
};

}  // namespace virtiofsd
