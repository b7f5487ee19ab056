// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "base/check.h"

#include <cstdlib>

#include "base/log.h"

namespace virtiofsd {

void check_failed(const char* condition, const char* file, int line) {
  log::error("internal error: {} does not hold ({}:{}); please report this", condition, file, line);
  log::flush();
  std::abort();
}

}  // namespace virtiofsd
