// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One request as the driver queued it: the bytes it wants read and the room it
// gave for the answer. A Chain was made by a ring and holds what the ring
// checked: each descriptor was read once, there are no more of them than the
// ring has slots, all readable ones come before all writable ones, and each
// side's pieces lie in mapped regions and together fit 32 bits.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/reader.h"
#include "base/result.h"
#include "memory/guest_memory.h"
#include "memory/shared_bytes.h"

namespace virtiofsd::virtio {

struct GuestRange {
  GuestAddress start;
  std::uint32_t size = 0;
};

// A crew thread's memory for the chain it is serving. Grows to what was needed
// once and stays, so a request allocates nothing. Serves one chain at a time;
// popping another one ends the views into the one before.
struct ChainScratch {
  std::vector<iovec> readable;
  std::vector<iovec> writable;
  std::vector<GuestRange> writable_ranges;    // the same bytes as `writable`, for the dirty log
  std::vector<iovec> table;                   // where the indirect table lies
  std::shared_ptr<const GuestMemory> memory;  // keeps all of the above mapped

  // Lets go of the mappings and of grown memory. Call before a long sleep.
  void release() { *this = ChainScratch{}; }
};

// Views into the scratch it was popped with. Push it back exactly once, from
// any thread, while the scratch still holds it.
struct Chain {
  std::uint16_t id = 0;                // what the driver knows it by
  std::uint16_t descriptor_count = 0;  // ring slots it takes: packed rings only
  std::uint32_t sequence = 0;          // its place in the order of pops
  std::uint16_t cell = 0;              // where it is in InFlight
  bool again = false;                  // a process that served it died; it may have done so
  std::uint32_t deaths = 0;            // of such processes, that may be because of it
  // So many more are available behind it at least, as far as was looked: a hint.
  std::uint32_t behind = 0;
  // A buffer lay in no region. The pieces before it are here: an error for
  // this request, not for the ring.
  bool faulted = false;
  SharedBytes readable;
  SharedBytes writable;
  std::span<const GuestRange> writable_ranges;
};

// What the driver accepted that changes how a ring works.
struct RingFeatures {
  bool indirect = false;         // VIRTIO_F_INDIRECT_DESC
  bool event_index = false;      // VIRTIO_F_EVENT_IDX
  bool notify_on_empty = false;  // VIRTIO_F_NOTIFY_ON_EMPTY (legacy)
};

// Collects one chain's descriptors into a scratch, under the rules above.
// Used by a ring for the length of one pop.
class ChainBuilder {
 public:
  // At most `most` descriptors in all, those of the indirect table included.
  ChainBuilder(const GuestMemory& memory, ChainScratch& scratch, std::uint32_t most);

  // The next buffer. EBADMSG: too many, readable behind writable, or more than
  // 2^32 - 1 bytes on one side. An address in no region only sets `faulted`.
  Result<> add(GuestAddress address, std::uint32_t size, bool writable);

  // The number of entries (16 bytes each) of an indirect table. EBADMSG: not a
  // whole number of them, or none. 0: it lies in no region and the chain is faulted.
  Result<std::uint32_t> open_table(GuestAddress address, std::uint32_t size);

  // A private copy of one entry of the opened table. The table needs no
  // alignment and may span regions.
  template <Plain T>
  T table_entry(std::uint32_t index) const {
    static_assert(sizeof(T) == kEntryBytes);
    T entry;
    copy_table(std::size_t{index} * kEntryBytes, &entry);
    return entry;
  }

  void finish(Chain& chain) const;

  static constexpr std::uint32_t kEntryBytes = 16;

 private:
  void copy_table(std::size_t offset, void* to) const;

  const GuestMemory& memory_;
  ChainScratch& scratch_;
  const std::uint32_t most_;
  std::uint32_t count_ = 0;
  std::uint32_t readable_size_ = 0;
  std::uint32_t writable_size_ = 0;
  std::uint32_t readable_asked_ = 0;  // with what lay in no region
  std::uint32_t writable_asked_ = 0;
  bool seen_writable_ = false;
  bool readable_cut_ = false;  // a bad address ended this side
  bool writable_cut_ = false;
};

}  // namespace virtiofsd::virtio
