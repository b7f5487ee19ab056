// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Fixed-size records found by slot index and generation, lock-free.
//
// A record's head is one word: generation (32 bits), pins (24), state (8).
//   free     -> busy      allocate: generation + 1, nobody else sees it
//   busy     -> live      publish
//   live     -> aside     set_aside, for a few instructions, and back: pinners wait
//   live     -> dying     retire: no new pins
//   dying, no pins -> free   whoever drops the last pin (or retires an unpinned one) frees it
// A stale id (slot reused, generation moved on) finds nothing, never another
// record. Slot 0 is never used, so 0 can mean "none".
//
// The memory may hold what a process left behind that failed: whatever its
// list and counters say, no slot outside the memory is touched, and none that
// is in use is given out.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>

#include "base/check.h"
#include "base/result.h"

namespace virtiofsd {

enum class SlotState : std::uint8_t { kFree = 0, kBusy = 1, kLive = 2, kDying = 3, kAside = 4 };

struct SlotHead {
  static constexpr std::uint64_t kPin = 1U << 8;
  static constexpr std::uint64_t kPinMask = 0xffffffULL << 8;

  static std::uint32_t generation(std::uint64_t head) {
    return static_cast<std::uint32_t>(head >> 32);
  }
  static std::uint64_t pins(std::uint64_t head) { return (head & kPinMask) >> 8; }
  static SlotState state(std::uint64_t head) { return static_cast<SlotState>(head & 0xff); }
  static std::uint64_t make(std::uint32_t generation, SlotState state) {
    return (std::uint64_t{generation} << 32) | static_cast<std::uint64_t>(state);
  }
  static std::uint64_t with_state(std::uint64_t head, SlotState state) {
    return (head & ~0xffULL) | static_cast<std::uint64_t>(state);
  }
};

// `Next` names the member that links free slots.
template <typename Record, std::atomic<std::uint32_t> Record::*Next>
class Slab {
 public:
  struct Header {
    std::atomic<std::uint64_t> free_list;  // {tag: 32, slot: 32}; the tag defeats ABA
    std::atomic<std::uint32_t> used;       // slots ever touched, slot 0 included
    std::atomic<std::uint32_t> live;
    std::atomic<std::uint32_t> floor;  // generations up to this one may have been given elsewhere
  };

  static constexpr std::uint64_t bytes_for(std::uint64_t records) {
    return records * sizeof(Record);
  }

  // `memory` is zero-filled or holds an earlier life of the same slab. The
  // first record's place holds the header.
  explicit Slab(std::span<std::byte> memory)
      : header_(static_cast<Header*>(static_cast<void*>(memory.data()))),
        records_(static_cast<Record*>(static_cast<void*>(memory.data()))),
        capacity_(static_cast<std::uint32_t>(memory.size() / sizeof(Record))) {
    static_assert(sizeof(Header) <= sizeof(Record));
    CHECK(capacity_ > 1);
    std::uint32_t none = 0;
    header_->used.compare_exchange_strong(none, 1);
  }

  std::uint32_t capacity() const { return capacity_; }
  // Slots below this may be in use; for walks over everything.
  std::uint32_t used() const {
    return std::min(header_->used.load(std::memory_order_acquire), capacity_);
  }
  std::uint32_t live() const { return header_->live.load(std::memory_order_relaxed); }

  Record& at(std::uint32_t slot) { return records_[slot]; }
  const Record& at(std::uint32_t slot) const { return records_[slot]; }

  // A busy slot, or ENFILE when the slab is full.
  Result<std::uint32_t> allocate() {
    std::uint32_t slot = TRY(take_slot());
    while (SlotHead::state(records_[slot].head.load(std::memory_order_relaxed)) !=
           SlotState::kFree) {
      // Never of our own making: the list is damaged, and none of it can be trusted.
      header_->free_list.store(0, std::memory_order_relaxed);
      slot = TRY(take_slot());
    }
    std::atomic<std::uint64_t>& head = records_[slot].head;
    std::uint32_t generation = std::max(SlotHead::generation(head.load(std::memory_order_relaxed)),
                                        header_->floor.load(std::memory_order_relaxed)) +
                               1;
    if (generation == 0) generation = 1;
    head.store(SlotHead::make(generation, SlotState::kBusy), std::memory_order_relaxed);
    header_->live.fetch_add(1, std::memory_order_relaxed);
    return slot;
  }

  // Makes a busy slot findable, with `pins` pins on it already.
  void publish(std::uint32_t slot, std::uint64_t pins) {
    std::atomic<std::uint64_t>& head = records_[slot].head;
    const std::uint64_t now = head.load(std::memory_order_relaxed);
    // Pairs with the acquire in try_pin: who sees it live sees its fields.
    head.store(SlotHead::with_state(now, SlotState::kLive) + pins * SlotHead::kPin,
               std::memory_order_release);
  }

  // False unless the slot is live with this generation.
  bool try_pin(std::uint32_t slot, std::uint32_t generation) {
    if (slot == 0 || slot >= capacity_) return false;
    std::atomic<std::uint64_t>& head = records_[slot].head;
    std::uint64_t now = head.load(std::memory_order_acquire);
    for (;;) {
      if (SlotHead::generation(now) != generation) return false;
      if (SlotHead::state(now) == SlotState::kAside) {
        std::this_thread::yield();
        now = head.load(std::memory_order_acquire);
        continue;
      }
      if (SlotHead::state(now) != SlotState::kLive) return false;
      if (head.compare_exchange_weak(now, now + SlotHead::kPin, std::memory_order_acquire))
        return true;
    }
  }

  // One more pin on a slot that can't go away now (pinned by the caller, or
  // live under the index lock that retire also takes). Waits, like try_pin,
  // while the record is set aside.
  void add_pin(std::uint32_t slot) {
    std::atomic<std::uint64_t>& head = records_[slot].head;
    std::uint64_t now = head.load(std::memory_order_acquire);
    for (;;) {
      if (SlotHead::state(now) == SlotState::kAside) {
        std::this_thread::yield();
        now = head.load(std::memory_order_acquire);
      } else if (head.compare_exchange_weak(now, now + SlotHead::kPin, std::memory_order_acquire)) {
        return;
      }
    }
  }

  // Drops a pin. True when it was the last one of a dying record: the caller
  // now owns what is in it, and frees the slot.
  [[nodiscard]] bool unpin(std::uint32_t slot) {
    const std::uint64_t before = drop_pin(slot);
    return SlotHead::pins(before) == 1 && SlotHead::state(before) == SlotState::kDying;
  }
  // As unpin; the head as it was before.
  [[nodiscard]] std::uint64_t drop_pin(std::uint32_t slot) {
    return records_[slot].head.fetch_sub(SlotHead::kPin, std::memory_order_acq_rel);
  }

  // live -> dying. True when nobody has a pin: the caller owns it, as above.
  // False as well when it was not live any more.
  [[nodiscard]] bool retire(std::uint32_t slot, std::uint32_t generation) {
    std::atomic<std::uint64_t>& head = records_[slot].head;
    std::uint64_t now = head.load(std::memory_order_acquire);
    for (;;) {
      if (SlotHead::generation(now) != generation) return false;
      if (SlotHead::state(now) == SlotState::kAside) {
        std::this_thread::yield();
        now = head.load(std::memory_order_acquire);
        continue;
      }
      if (SlotHead::state(now) != SlotState::kLive) return false;
      if (head.compare_exchange_weak(now, SlotHead::with_state(now, SlotState::kDying),
                                     std::memory_order_acq_rel)) {
        return SlotHead::pins(now) == 0;
      }
    }
  }

  // Takes a live, unpinned record aside for a few instructions: pinners wait.
  // False when it is not live or is pinned. Followed by put_back at once.
  [[nodiscard]] bool set_aside(std::uint32_t slot) {
    std::atomic<std::uint64_t>& head = records_[slot].head;
    std::uint64_t now = head.load(std::memory_order_relaxed);
    if (SlotHead::state(now) != SlotState::kLive || SlotHead::pins(now) != 0) return false;
    return head.compare_exchange_strong(now, SlotHead::with_state(now, SlotState::kAside),
                                        std::memory_order_acq_rel);
  }
  void put_back(std::uint32_t slot) {
    std::atomic<std::uint64_t>& head = records_[slot].head;
    head.store(SlotHead::with_state(head.load(std::memory_order_relaxed), SlotState::kLive),
               std::memory_order_release);
  }

  // First thing in a successor, before anyone else uses the slab: the pins of those who are gone
  // go, and so does what they were just making or taking apart; `lost` is told of its slot before.
  // What is live stays, but for what `keeps` doesn't want.
  template <typename Keeps, typename Lost>
  void take_over(Keeps keeps, Lost lost) {
    std::uint32_t live = 0;
    std::uint32_t list = 0;
    for (std::uint32_t slot = used(); slot-- > 1;) {
      std::atomic<std::uint64_t>& head = records_[slot].head;
      const std::uint64_t now = head.load(std::memory_order_relaxed);
      const SlotState state = SlotHead::state(now);
      const std::uint32_t generation = SlotHead::generation(now);
      if ((state == SlotState::kLive || state == SlotState::kAside) && keeps(slot)) {
        head.store(SlotHead::make(generation, SlotState::kLive), std::memory_order_relaxed);
        ++live;
        continue;
      }
      if (state != SlotState::kFree) {
        lost(slot);
        head.store(SlotHead::make(generation, SlotState::kFree), std::memory_order_relaxed);
      }
      (records_[slot].*Next).store(list, std::memory_order_relaxed);
      list = slot;
    }
    header_->live.store(live, std::memory_order_relaxed);
    header_->free_list.store(list, std::memory_order_release);
  }

  // This very slot, busy, with this generation, for a record that had them elsewhere. ENFILE when
  // there is no such slot, EEXIST when it is in use. While nobody else uses the slab, and followed
  // by end_claims before anything is allocated or freed.
  Result<> claim(std::uint32_t slot, std::uint32_t generation) {
    if (slot == 0 || slot >= capacity_) return Errno{ENFILE};
    const std::uint32_t now_used = used();
    std::atomic<std::uint64_t>& head = records_[slot].head;
    if (slot < now_used &&
        SlotHead::state(head.load(std::memory_order_relaxed)) != SlotState::kFree) {
      return Errno{EEXIST};
    }
    head.store(SlotHead::make(generation, SlotState::kBusy), std::memory_order_relaxed);
    header_->used.store(std::max(now_used, slot + 1), std::memory_order_release);
    header_->live.fetch_add(1, std::memory_order_relaxed);
    return {};
  }
  // The slots between those that were claimed are free. What was found in any of them elsewhere had
  // no generation above `generation`: it won't be found here.
  void end_claims(std::uint32_t generation) {
    std::uint32_t list = 0;
    for (std::uint32_t slot = used(); slot-- > 1;) {
      if (state(slot) != SlotState::kFree) continue;
      (records_[slot].*Next).store(list, std::memory_order_relaxed);
      list = slot;
    }
    header_->floor.store(generation, std::memory_order_relaxed);
    header_->free_list.store(list, std::memory_order_release);
  }
  // When none from `first` on is in use: as if none ever had been. While nobody else uses the slab.
  void rewind(std::uint32_t first) {
    for (std::uint32_t slot = first; slot < used(); ++slot) {
      if (state(slot) != SlotState::kFree) return;
    }
    header_->used.store(first, std::memory_order_release);
    header_->free_list.store(0, std::memory_order_release);
  }
  // For end_claims elsewhere.
  std::uint32_t newest_generation() const {
    std::uint32_t newest = header_->floor.load(std::memory_order_relaxed);
    for (std::uint32_t slot = 1; slot < used(); ++slot) newest = std::max(newest, generation(slot));
    return newest;
  }

  // Gives the slot back; what it held was taken care of.
  void free(std::uint32_t slot) {
    std::atomic<std::uint64_t>& head = records_[slot].head;
    head.store(SlotHead::make(SlotHead::generation(head.load(std::memory_order_relaxed)),
                              SlotState::kFree),
               std::memory_order_release);
    header_->live.fetch_sub(1, std::memory_order_relaxed);
    std::uint64_t list = header_->free_list.load(std::memory_order_relaxed);
    std::uint64_t next = 0;
    do {
      (records_[slot].*Next).store(static_cast<std::uint32_t>(list), std::memory_order_relaxed);
      next = ((list >> 32) + 1) << 32 | slot;
    } while (!header_->free_list.compare_exchange_weak(list, next, std::memory_order_release,
                                                       std::memory_order_relaxed));
  }

  std::uint32_t generation(std::uint32_t slot) const {
    return SlotHead::generation(records_[slot].head.load(std::memory_order_relaxed));
  }
  SlotState state(std::uint32_t slot) const {
    return SlotHead::state(records_[slot].head.load(std::memory_order_acquire));
  }

 private:
  Result<std::uint32_t> take_slot() {
    std::uint64_t list = header_->free_list.load(std::memory_order_acquire);
    // A number past the end ends the list, as 0 does.
    while (static_cast<std::uint32_t>(list) != 0 && static_cast<std::uint32_t>(list) < capacity_) {
      const auto slot = static_cast<std::uint32_t>(list);
      const std::uint32_t following = (records_[slot].*Next).load(std::memory_order_relaxed);
      const std::uint64_t next = ((list >> 32) + 1) << 32 | following;
      if (header_->free_list.compare_exchange_weak(list, next, std::memory_order_acquire))
        return slot;
    }
    std::uint32_t fresh = header_->used.load(std::memory_order_relaxed);
    do {
      if (fresh >= capacity_) return Errno{ENFILE};
    } while (!header_->used.compare_exchange_weak(fresh, fresh + 1, std::memory_order_acq_rel));
    return fresh;
  }

  Header* header_;
  Record* records_;
  std::uint32_t capacity_;
};

}  // namespace virtiofsd
