// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "base/name.h"

namespace virtiofsd {

Result<Name> Name::parse(std::string_view text) {
  if (text.empty() || text == "." || text == "..") return Errno{EINVAL};
  if (text.size() > kMaxBytes) return Errno{ENAMETOOLONG};
  if (text.find_first_of(std::string_view{"/\0", 2}) != std::string_view::npos)
    return Errno{EINVAL};
  return Name{text};
}

}  // namespace virtiofsd
