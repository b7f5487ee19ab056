// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "state/saved_frames.h"

#include <utility>

namespace virtiofsd {
namespace {

Result<void, Failure> or_failure(Result<> sent) {
  if (sent) return {};
  if (sent.error() == Errno{ECANCELED}) return Failure{"the VMM went on without it"};
  if (sent.error() == Errno{EPIPE})
    return Failure{"nobody takes the state any more: see what the VMM says"};
  return Failure{"can't send the state", sent.error()};
}

}  // namespace

Result<void, Failure> put_saved(FrameWriter& to, SavedKind kind,
                                std::initializer_list<std::span<const std::byte>> parts) {
  return or_failure(to.put(static_cast<std::uint32_t>(kind), parts));
}

Result<void, Failure> flush_saved(FrameWriter& to) {
  return or_failure(to.flush());
}

Result<SavedFrame, Failure> next_saved(FrameReader& from) {
  auto frame = from.next();
  if (frame) return SavedFrame{.kind = static_cast<SavedKind>(frame->kind), .body = frame->body};
  if (frame.error() == Errno{ECANCELED}) return Failure{"the VMM went on without it"};
  if (frame.error() == Errno{ENODATA}) {
    return Failure{
        "the state ends too early: see what the virtiofsd says that sent it, and the VMMs"};
  }
  if (frame.error() == Errno{EMSGSIZE}) return damaged_state();
  return Failure{"can't read the state", frame.error()};
}

Result<Reader, Failure> next_saved(FrameReader& from, SavedKind kind) {
  const SavedFrame frame = TRY(next_saved(from));
  if (frame.kind != kind) return damaged_state();
  return frame.body;
}

Failure damaged_state() {
  return Failure{"the state makes no sense: it is damaged"};
}

}  // namespace virtiofsd
