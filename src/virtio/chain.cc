// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/chain.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace virtiofsd::virtio {

ChainBuilder::ChainBuilder(const GuestMemory& memory, ChainScratch& scratch, std::uint32_t most)
    : memory_(memory), scratch_(scratch), most_(most) {
  scratch_.readable.clear();
  scratch_.writable.clear();
  scratch_.writable_ranges.clear();
}

Result<> ChainBuilder::add(GuestAddress address, std::uint32_t size, bool writable) {
  // Bounds the walk, so a chain that loops ends here too.
  if (++count_ > most_) return Errno{EBADMSG};
  // virtio 1.2, 2.7.4.2 and 2.8.5: the driver puts what it wants read first.
  if (seen_writable_ && !writable) return Errno{EBADMSG};
  seen_writable_ = writable;

  std::uint32_t& asked = writable ? writable_asked_ : readable_asked_;
  if (__builtin_add_overflow(asked, size, &asked)) return Errno{EBADMSG};
  bool& cut = writable ? writable_cut_ : readable_cut_;
  if (size == 0 || cut) return {};

  if (!memory_.append_pieces(address, size, writable ? scratch_.writable : scratch_.readable)) {
    cut = true;
    return {};
  }
  if (writable) {
    scratch_.writable_ranges.push_back({.start = address, .size = size});
    writable_size_ += size;
  } else {
    readable_size_ += size;
  }
  return {};
}

Result<std::uint32_t> ChainBuilder::open_table(GuestAddress address, std::uint32_t size) {
  if (size == 0 || size % kEntryBytes != 0) return Errno{EBADMSG};
  scratch_.table.clear();
  if (!memory_.append_pieces(address, size, scratch_.table)) {
    // Nothing behind it can be known: an empty request, and no room to answer.
    readable_cut_ = true;
    writable_cut_ = true;
    return std::uint32_t{0};
  }
  return size / kEntryBytes;
}

void ChainBuilder::copy_table(std::size_t offset, void* to) const {
  auto* out = static_cast<std::byte*>(to);
  std::size_t left = kEntryBytes;
  for (const iovec& piece : scratch_.table) {
    if (offset >= piece.iov_len) {
      offset -= piece.iov_len;
      continue;
    }
    const std::size_t part = std::min(left, piece.iov_len - offset);
    std::memcpy(out, static_cast<const std::byte*>(piece.iov_base) + offset, part);
    out += part;
    left -= part;
    offset = 0;
    if (left == 0) break;
  }
  // The driver may write there meanwhile: the compiler must not fetch again
  // what it has fetched.
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

void ChainBuilder::finish(Chain& chain) const {
  chain.faulted = readable_cut_ || writable_cut_;
  chain.readable = SharedBytes(scratch_.readable, readable_size_);
  chain.writable = SharedBytes(scratch_.writable, writable_size_);
  chain.writable_ranges = scratch_.writable_ranges;
}

}  // namespace virtiofsd::virtio
