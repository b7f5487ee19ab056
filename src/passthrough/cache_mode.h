// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// How much the guest may cache; docs/caching.md says what each mode means.
#pragma once

#include <cstdint>

namespace virtiofsd {

enum class CacheMode : std::uint8_t { kNone, kMetadata, kAuto, kAlways };

}  // namespace virtiofsd
