// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The first frames of a device's state for another host (state/saved.h): what it is, and the queues
// that stopped with requests in flight.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "state/stream.h"
#include "virtio/in_flight.h"

namespace virtiofsd {

struct SavedQueue {
  std::uint32_t index = 0;
  virtio::LeftOver requests;
};

Result<void, Failure> save_queues(FrameWriter& to, const std::vector<SavedQueue>& queues);
// Sizes are right, and numbers have been read whole; nothing else is known of them.
Result<std::vector<SavedQueue>, Failure> load_queues(FrameReader& from);

}  // namespace virtiofsd
