// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The frames of saved.h on their way, with the sentences for the operator where one goes wrong.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>

#include "base/reader.h"
#include "base/result.h"
#include "state/saved.h"
#include "state/stream.h"

namespace virtiofsd {

Result<void, Failure> put_saved(FrameWriter& to, SavedKind kind,
                                std::initializer_list<std::span<const std::byte>> parts);
// All that was put is on its way.
Result<void, Failure> flush_saved(FrameWriter& to);

struct SavedFrame {
  SavedKind kind;  // any number
  Reader body;     // valid until the next one
};
Result<SavedFrame, Failure> next_saved(FrameReader& from);
// The next one's body: it has to be of this kind.
Result<Reader, Failure> next_saved(FrameReader& from, SavedKind kind);

// What comes is not what this program would have sent.
Failure damaged_state();

template <Plain T>
Result<T, Failure> take_saved(Reader& body) {
  auto taken = body.take<T>();
  if (!taken) return damaged_state();
  return std::move(*taken);
}

}  // namespace virtiofsd
