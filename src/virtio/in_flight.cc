// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/in_flight.h"

#include <algorithm>
#include <functional>

#include "base/check.h"
#include "virtio/ring_word.h"

namespace virtiofsd::virtio {
namespace {

// Who reads this does so when the writer is dead, and then sees all it stored: the compiler alone
// could change the order.
void in_this_order() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

}  // namespace

InFlight::InFlight(std::span<std::byte> memory)
    : record_(static_cast<RingRecord*>(static_cast<void*>(memory.data()))) {
  CHECK(memory.size() >= sizeof(RingRecord));
}

InFlight::Progress InFlight::progress() const {
  const std::uint64_t word = record_->progress.load(std::memory_order_relaxed);
  return {.number = static_cast<std::uint32_t>(word >> 32),
          .base = static_cast<std::uint32_t>(word)};
}

void InFlight::begin(std::uint32_t size, bool packed, std::uint32_t base) {
  CHECK(size <= RingRecord::kMostSlots);
  // What there was of an earlier ring, perhaps a larger one. Untouched memory stays so.
  for (std::uint32_t cell = 0; cell < std::max(size, size_); ++cell) {
    if (word(cell) != 0) set_word(cell, 0);
  }
  size_ = size;
  packed_ = packed;
  free_.clear();
  if (packed) {
    free_.reserve(size);
    for (std::uint32_t cell = size; cell-- > 0;) free_.push_back(static_cast<std::uint16_t>(cell));
  }
  store_progress(0, base);
}

void InFlight::note_taken(const Chain& chain, std::uint32_t base) {
  in_this_order();
  set_word(chain.cell, RingRecord::kTaken | chain.sequence);
  in_this_order();
  // Until here the ring still has it: what is numbered as the next one was not taken.
  store_progress(chain.sequence + 1, base);
}

void InFlight::taken_split(Chain& chain, std::uint32_t base) {
  chain.cell = chain.id;  // the driver keeps the descriptors as they are until it gets them back
  note_taken(chain, base);
}

void InFlight::taken_packed(Chain& chain, std::span<const PackedDescriptor> ring,
                            std::uint16_t first, std::uint32_t base) {
  // No more slots are in flight than there are, so there is a cell for each.
  std::size_t slot = first;
  std::uint16_t cell = free_.back();
  chain.cell = cell;
  for (std::uint16_t left = chain.descriptor_count; left != 0; --left) {
    free_.pop_back();
    const std::uint16_t next = left > 1 ? free_.back() : cell;
    // Read once more than the walk did; who serves it again checks again.
    copy(cell) = {.address = load_relaxed(ring[slot].address),
                  .size = load_relaxed(ring[slot].size),
                  .flags = load_relaxed(ring[slot].flags),
                  .id = chain.id,
                  .count = chain.descriptor_count,
                  .next = next,
                  .padding = 0};
    cell = next;
    slot = slot + 1 == ring.size() ? 0 : slot + 1;
  }
  note_taken(chain, base);
}

void InFlight::giving(std::uint16_t cell, std::uint16_t used) {
  set_word(cell, word(cell) | RingRecord::kGiving | std::uint64_t{used} << kUsedShift);
  in_this_order();
}

void InFlight::given_split(std::uint16_t cell) {
  in_this_order();
  set_word(cell, 0);
}

void InFlight::given_packed(std::uint16_t cell, std::uint32_t base) {
  in_this_order();
  store_progress(progress().number, base);
  in_this_order();
  set_word(cell, 0);
  free_cells(cell);
}

void InFlight::free_cells(std::uint16_t first) {
  std::uint16_t cell = first;
  for (std::uint32_t left = copy(first).count; left != 0; --left) {
    const std::uint16_t next = copy(cell).next;
    free_.push_back(cell);
    cell = next;
  }
}

std::vector<std::uint16_t> InFlight::take_over(std::uint32_t size, bool packed) {
  size_ = size;
  packed_ = packed;
  const std::uint32_t next = progress().number;
  std::vector<bool> in_use(size, false);
  std::vector<std::uint16_t> cells;
  // All its cells are in the ring and nobody else's.
  const auto claim = [&](std::uint16_t first) {
    std::vector<std::uint16_t> mine;
    std::uint16_t cell = first;
    for (std::uint32_t left = slots_of(first); left != 0; --left) {
      if (cell >= size || in_use[cell]) {
        for (const std::uint16_t one : mine) in_use[one] = false;
        return false;
      }
      in_use[cell] = true;
      mine.push_back(cell);
      if (packed) cell = copy(cell).next;
    }
    return !mine.empty();
  };
  for (std::uint32_t i = 0; i < size; ++i) {
    const auto cell = static_cast<std::uint16_t>(i);
    const std::uint64_t now = word(cell);
    if (now == 0) continue;
    const bool in_flight = (now & RingRecord::kTaken) != 0 && (now & RingRecord::kGiving) == 0;
    if (in_flight && number(now) != next && claim(cell)) {
      cells.push_back(cell);
    } else {
      set_word(cell, 0);
    }
  }
  std::ranges::sort(cells, std::greater{}, [&](std::uint16_t cell) {
    return next - number_of(cell);  // so many were taken since; numbers run round
  });
  free_.clear();
  if (packed) {
    free_.reserve(size);
    for (std::uint32_t cell = size; cell-- > 0;) {
      if (!in_use[cell]) free_.push_back(static_cast<std::uint16_t>(cell));
    }
  }
  return cells;
}

std::uint32_t InFlight::deaths_of(std::uint16_t cell, bool blame) {
  constexpr std::uint64_t kOne = 1ULL << kDeathsShift;
  constexpr std::uint32_t kMost = 0xff;
  const std::uint32_t before = static_cast<std::uint32_t>(word(cell) >> kDeathsShift) & kMost;
  if (!blame || before == kMost) return before;
  set_word(cell, word(cell) + kOne);
  return before + 1;
}

void InFlight::copy_descriptors(std::uint16_t cell, std::vector<PackedDescriptor>& out) const {
  out.clear();
  std::uint16_t from = cell;
  for (std::uint32_t left = copy(cell).count; left != 0; --left) {
    const DescriptorCopy& one = copy(from);
    out.push_back(
        {.address = one.address, .size = one.size, .id = copy(cell).id, .flags = one.flags});
    from = one.next;
  }
}

LeftOver InFlight::left_over(std::uint32_t size, bool packed) const {
  LeftOver all{.size = size,
               .packed = packed,
               .number = progress().number,
               .base = progress().base,
               .requests = {},
               .descriptors = {}};
  for (std::uint32_t i = 0; i < size; ++i) {
    const auto cell = static_cast<std::uint16_t>(i);
    const std::uint64_t now = word(cell);
    const bool in_flight = (now & RingRecord::kTaken) != 0 && (now & RingRecord::kGiving) == 0;
    if (!in_flight) continue;
    all.requests.push_back({cell, now});
    if (!packed) continue;
    std::uint16_t at = cell;
    for (std::uint32_t left = copy(cell).count; left != 0 && at < size; --left) {
      all.descriptors.push_back({at, copy(at)});
      at = copy(at).next;
    }
  }
  return all;
}

Result<> InFlight::load(const LeftOver& left_over) {
  const std::uint32_t size = left_over.size;
  if (size == 0 || size > RingRecord::kMostSlots) return Errno{EINVAL};
  const auto is_outside = [size](const auto& one) { return one.cell >= size; };
  if (std::ranges::any_of(left_over.requests, is_outside) ||
      std::ranges::any_of(left_over.descriptors, is_outside)) {
    return Errno{EINVAL};
  }
  begin(size, left_over.packed, left_over.base);
  for (const LeftOver::Descriptor& one : left_over.descriptors) copy(one.cell) = one.copy;
  // Nothing was half done in a ring that stopped.
  constexpr std::uint64_t kUsed = std::uint64_t{0xffff} << kUsedShift;
  for (const LeftOver::Request& one : left_over.requests)
    set_word(one.cell, (one.word | RingRecord::kTaken) & ~(RingRecord::kGiving | kUsed));
  store_progress(left_over.number, left_over.base);
  return {};
}

}  // namespace virtiofsd::virtio
