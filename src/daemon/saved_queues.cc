// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/saved_queues.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "state/records.h"
#include "state/saved_frames.h"

namespace virtiofsd {
namespace {

template <typename Saved>
Result<void, Failure> put_all(FrameWriter& to, SavedKind kind, const std::vector<Saved>& all) {
  for (std::span<const Saved> rest{all}; !rest.empty();) {
    const auto piece = rest.first(std::min<std::size_t>(rest.size(), SavedRing::kPiece));
    rest = rest.subspan(piece.size());
    TRY(put_saved(to, kind, {std::as_bytes(piece)}));
  }
  return {};
}

template <typename Saved>
Result<std::vector<Saved>, Failure> take_all(FrameReader& from, SavedKind kind,
                                             std::uint32_t count) {
  std::vector<Saved> all;
  while (all.size() < count) {
    Reader body = TRY(next_saved(from, kind));
    const std::size_t piece = std::min<std::size_t>(count - all.size(), SavedRing::kPiece);
    for (std::size_t i = 0; i < piece; ++i) all.push_back(TRY(take_saved<Saved>(body)));
  }
  return all;
}

// A cell of a larger ring than there can be stays outside of every ring.
std::uint16_t cell_of(std::uint32_t cell) {
  return static_cast<std::uint16_t>(std::min(cell, 0xffffU));
}

}  // namespace

Result<void, Failure> save_queues(FrameWriter& to, const std::vector<SavedQueue>& queues) {
  const SavedHead head{.rings = static_cast<std::uint32_t>(queues.size())};
  TRY(put_saved(to, SavedKind::kHead, {raw_bytes(head)}));
  for (const SavedQueue& queue : queues) {
    std::vector<SavedRequest> requests;
    for (const auto& one : queue.requests.requests)
      requests.push_back({.word = one.word, .cell = one.cell});
    std::vector<SavedDescriptor> descriptors;
    for (const auto& one : queue.requests.descriptors)
      descriptors.push_back({.copy = one.copy, .cell = one.cell});
    const SavedRing ring{.index = queue.index,
                         .size = queue.requests.size,
                         .packed = queue.requests.packed ? 1U : 0U,
                         .number = queue.requests.number,
                         .base = queue.requests.base,
                         .requests = static_cast<std::uint32_t>(requests.size()),
                         .descriptors = static_cast<std::uint32_t>(descriptors.size())};
    TRY(put_saved(to, SavedKind::kRing, {raw_bytes(ring)}));
    TRY(put_all(to, SavedKind::kRequests, requests));
    TRY(put_all(to, SavedKind::kDescriptors, descriptors));
  }
  return {};
}

Result<std::vector<SavedQueue>, Failure> load_queues(FrameReader& from) {
  SavedFrame first = TRY(next_saved(from));
  const auto head = first.body.take<SavedHead>();
  if (first.kind != SavedKind::kHead || !head || head->magic != SavedHead::kMagic)
    return Failure{"what comes is not the state of this kind of virtiofsd"};
  if (head->version != SavedHead::kVersion) {
    return Failure{fmt::format("the state comes from another version of virtiofsd: form {}, not {}",
                               head->version, SavedHead::kVersion)};
  }
  if (head->rings > SessionRecord::kRings) return damaged_state();
  std::vector<SavedQueue> queues;
  for (std::uint32_t i = 0; i < head->rings; ++i) {
    Reader body = TRY(next_saved(from, SavedKind::kRing));
    const auto ring = TRY(take_saved<SavedRing>(body));
    if (ring.size > RingRecord::kMostSlots || ring.requests > ring.size ||
        ring.descriptors > ring.size) {
      return damaged_state();
    }
    SavedQueue queue{.index = ring.index,
                     .requests = {.size = ring.size,
                                  .packed = ring.packed != 0,
                                  .number = ring.number,
                                  .base = ring.base,
                                  .requests = {},
                                  .descriptors = {}}};
    const auto requests = TRY(take_all<SavedRequest>(from, SavedKind::kRequests, ring.requests));
    for (const SavedRequest& one : requests)
      queue.requests.requests.push_back({.cell = cell_of(one.cell), .word = one.word});
    const auto descriptors =
        TRY(take_all<SavedDescriptor>(from, SavedKind::kDescriptors, ring.descriptors));
    for (const SavedDescriptor& one : descriptors)
      queue.requests.descriptors.push_back({.cell = cell_of(one.cell), .copy = one.copy});
    queues.push_back(std::move(queue));
  }
  return queues;
}

}  // namespace virtiofsd
