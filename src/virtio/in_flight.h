// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What is in flight on one ring, kept where it outlives the process: which
// requests were taken and not given back, and how far the ring has been served.
// A successor goes on at that point, and serves again what was in flight.
//
// At whatever instruction the process dies, a request is either still
// available in the ring, or in flight here, or given back. Its Queue sees to
// one caller at a time; a few stores a request.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "state/records.h"
#include "virtio/chain.h"
#include "virtio/packed_ring.h"

namespace virtiofsd::virtio {

// What is in flight in a ring that has stopped, for another host.
struct LeftOver {
  struct Request {
    std::uint16_t cell = 0;
    std::uint64_t word = 0;  // as in RingRecord::cells
  };
  struct Descriptor {
    std::uint16_t cell = 0;
    DescriptorCopy copy{};
  };
  std::uint32_t size = 0;  // of the ring
  bool packed = false;
  std::uint32_t number = 0;  // of the next request
  std::uint32_t base = 0;    // as in SET_VRING_BASE
  std::vector<Request> requests;
  std::vector<Descriptor> descriptors;  // packed rings
};

class InFlight {
 public:
  // A RingRecord's place. All zero, or an earlier life's.
  explicit InFlight(std::span<std::byte> memory);

  struct Progress {
    std::uint32_t number = 0;  // of the next request
    std::uint32_t base = 0;    // as in SET_VRING_BASE
  };

  // A ring of `size` slots starts at `base` with nothing in flight.
  void begin(std::uint32_t size, bool packed, std::uint32_t base);

  // `chain` was taken, as request `chain.sequence`; the ring goes on at `base`. Sets chain.cell.
  void taken_split(Chain& chain, std::uint32_t base);
  // Its chain.descriptor_count descriptors begin in slot `first` of `ring`.
  void taken_packed(Chain& chain, std::span<const PackedDescriptor> ring, std::uint16_t first,
                    std::uint32_t base);

  // Before it is made visible to the driver at `used`, the used position of 16 bits; and after,
  // when the ring is at `base`.
  void giving(std::uint16_t cell, std::uint16_t used);
  void given_split(std::uint16_t cell);
  void given_packed(std::uint16_t cell, std::uint32_t base);

  // ---- for a successor, instead of begin() ----

  Progress progress() const;
  // Ends what was half done in a ring of `size` slots. `is_given(used)`: whether the driver can see
  // the element at that used position. True: a packed ring's used position moves on by so many
  // slots; 0: it has moved already. To be followed by go_on(), and then take_over(): the next
  // successor may have to ask again.
  template <typename IsGiven>
  std::uint32_t settle(std::uint32_t size, IsGiven is_given);
  // The ring goes on at `base`, as settle() found it.
  void go_on(std::uint32_t base) { store_progress(progress().number, base); }
  // Cells in flight, in the order they were taken. They are checked: a damaged one is left out and
  // freed. Also rebuilds what taken_packed needs.
  std::vector<std::uint16_t> take_over(std::uint32_t size, bool packed);
  std::uint32_t number_of(std::uint16_t cell) const { return number(word(cell)); }
  // Of processes, with `blame` one more from now on: it may be because of this request.
  std::uint32_t deaths_of(std::uint16_t cell, bool blame);
  // The descriptors of a packed cell.
  void copy_descriptors(std::uint16_t cell, std::vector<PackedDescriptor>& out) const;
  // Of a ring like this; and there, instead of begin() and before all else that a successor does.
  // EINVAL when a cell is outside of the ring.
  LeftOver left_over(std::uint32_t size, bool packed) const;
  Result<> load(const LeftOver& left_over);
  // How many slots it takes.
  std::uint32_t slots_of(std::uint16_t cell) const { return packed_ ? copy(cell).count : 1; }

 private:
  static constexpr unsigned kUsedShift = 32;
  static constexpr unsigned kDeathsShift = 48;
  static std::uint32_t number(std::uint64_t word) { return static_cast<std::uint32_t>(word); }

  std::uint64_t word(std::uint32_t cell) const {
    return record_->cells[cell].load(std::memory_order_relaxed);
  }
  void set_word(std::uint32_t cell, std::uint64_t word) {
    record_->cells[cell].store(word, std::memory_order_relaxed);
  }
  DescriptorCopy& copy(std::uint16_t cell) const { return record_->copies[cell]; }
  void store_progress(std::uint32_t number, std::uint32_t base) {
    record_->progress.store(std::uint64_t{number} << 32 | base, std::memory_order_relaxed);
  }
  void note_taken(const Chain& chain, std::uint32_t base);
  void free_cells(std::uint16_t first);

  RingRecord* record_;
  std::uint32_t size_ = 0;
  bool packed_ = false;
  std::vector<std::uint16_t> free_;  // packed: cells that hold no descriptor
};

template <typename IsGiven>
std::uint32_t InFlight::settle(std::uint32_t size, IsGiven is_given) {
  const auto at = static_cast<std::uint16_t>(progress().base >> 16);
  std::uint32_t slots = 0;
  for (std::uint32_t cell = 0; cell < size; ++cell) {
    const std::uint64_t now = word(cell);
    if ((now & RingRecord::kGiving) == 0) continue;
    const auto used = static_cast<std::uint16_t>(now >> kUsedShift);
    if (!is_given(used)) {
      set_word(cell, now & ~(RingRecord::kGiving | std::uint64_t{0xffff} << kUsedShift));
    } else if (used == at) {
      slots = copy(static_cast<std::uint16_t>(cell)).count;
    }
  }
  return slots;
}

}  // namespace virtiofsd::virtio
