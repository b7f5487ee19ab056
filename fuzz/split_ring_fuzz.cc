// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A queue with a split ring and whatever its driver makes of it (ring_target.h).
#include "fuzz/ring_target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return virtiofsd::fuzz::run_ring(data, size, false);
}
