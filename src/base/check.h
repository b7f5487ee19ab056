// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// CHECK is for our own mistakes, never for what a guest or VMM sent: it names
// the place and ends the process.
#pragma once

namespace virtiofsd {

[[noreturn]] void check_failed(const char* condition, const char* file, int line);

#define CHECK(condition)                                         \
  do {                                                           \
    if (!(condition)) [[unlikely]]                               \
      ::virtiofsd::check_failed(#condition, __FILE__, __LINE__); \
  } while (false)

}  // namespace virtiofsd
