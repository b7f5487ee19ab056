// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "testing/driver_ring.h"

#include <poll.h>
#include <unistd.h>

#include <utility>

#include "base/check.h"
#include "base/pause_cpu.h"

namespace virtiofsd::guest {
namespace {

constexpr std::uint16_t kPackedAvailable = 1U << VRING_PACKED_DESC_F_AVAIL;
constexpr std::uint16_t kPackedUsed = 1U << VRING_PACKED_DESC_F_USED;

// virtio 1.2, 2.7.7.2: did the index move past `event` on its way from `before` to `now`?
bool crossed(std::uint16_t event, std::uint16_t now, std::uint16_t before) {
  return static_cast<std::uint16_t>(now - event - 1) < static_cast<std::uint16_t>(now - before);
}

}  // namespace

DriverRing::DriverRing(GuestRam& ram, const RingOptions& options, std::size_t table_region)
    : options_(options) {
  const unsigned size = options.size;
  CHECK(size > 0 && (options.packed || (size & (size - 1)) == 0));
  descriptors_ = ram.allocate(std::size_t{16} * size, 16, table_region);
  driver_ = ram.allocate(options.packed ? 4 : 6 + 2 * std::size_t{size}, 4, table_region);
  device_ = ram.allocate(options.packed ? 4 : 6 + 8 * std::size_t{size}, 4, table_region);
  if (options.indirect)
    indirect_ = ram.allocate(std::size_t{16} * size * options.indirect_length, 16);
  if (options.packed) {
    packed_ = reinterpret_cast<vring_packed_desc*>(descriptors_.host);
  } else {
    split_ = reinterpret_cast<vring_desc*>(descriptors_.host);
    used_ = reinterpret_cast<vring_used_elem*>(device_.host + 4);
  }
  entries_.resize(size);
  next_.resize(size);
  fifo_.resize(size);
  free_.reserve(size);
  reset();
}

void DriverRing::reset() {
  std::memset(descriptors_.host, 0, descriptors_.size);
  std::memset(driver_.host, 0, driver_.size);
  std::memset(device_.host, 0, device_.size);
  free_.clear();
  for (unsigned id = options_.size; id > 0; --id)
    free_.push_back(static_cast<std::uint16_t>(id - 1));
  std::fill(entries_.begin(), entries_.end(), Entry{});
  fifo_head_ = fifo_tail_ = 0;
  free_descriptors_ = options_.size;
  in_order_next_ = 0;
  in_flight_ = 0;
  available_ = added_ = used_seen_ = batch_left_ = 0;
  available_wrap_ = used_wrap_ = true;
  breakage_.clear();
  want_calls(false);
}

std::uint32_t DriverRing::base() const {
  if (!options_.packed) return used_index().load(std::memory_order_acquire);
  const std::uint32_t half_word = used_seen_ | (used_wrap_ ? 0x8000U : 0U);
  return half_word | (half_word << 16);
}

void DriverRing::set_notifiers(FdRef kick, FdRef call) {
  kick_ = kick;
  call_ = call;
}

std::atomic_ref<std::uint16_t> DriverRing::half(const Block& block, unsigned index) {
  CHECK((index + 1) * 2 <= block.size);
  return std::atomic_ref<std::uint16_t>{reinterpret_cast<std::uint16_t*>(block.host)[index]};
}

void DriverRing::break_with(std::string why) {
  if (breakage_.empty()) breakage_ = std::move(why);
}

bool DriverRing::add(std::span<const Buffer> readable, std::span<const Buffer> writable,
                     std::uint32_t cookie) {
  if (broken()) return false;
  return options_.packed ? add_packed(readable, writable, cookie)
                         : add_split(readable, writable, cookie);
}

bool DriverRing::add_split(std::span<const Buffer> readable, std::span<const Buffer> writable,
                           std::uint32_t cookie) {
  const std::size_t total = readable.size() + writable.size();
  const bool indirect = options_.indirect && total > 1;
  const std::size_t needed = indirect ? 1 : total;
  if (needed == 0 || needed > free_descriptors_) return false;

  const auto take = [&] {
    if (options_.in_order) {
      const std::uint16_t slot = in_order_next_;
      in_order_next_ = static_cast<std::uint16_t>((slot + 1) % options_.size);
      return slot;
    }
    const std::uint16_t slot = free_.back();
    free_.pop_back();
    return slot;
  };
  const auto buffer_at = [&](std::size_t index) {
    return index < readable.size() ? readable[index] : writable[index - readable.size()];
  };

  const std::uint16_t head = take();
  if (indirect) {
    CHECK(total <= options_.indirect_length);
    const std::size_t table_bytes = std::size_t{16} * options_.indirect_length;
    auto* table = reinterpret_cast<vring_desc*>(indirect_.host + head * table_bytes);
    for (std::size_t i = 0; i < total; ++i) {
      const Buffer buffer = buffer_at(i);
      std::uint16_t flags = i < readable.size() ? 0 : VRING_DESC_F_WRITE;
      if (i + 1 < total) flags |= VRING_DESC_F_NEXT;
      table[i] = {.addr = buffer.guest,
                  .len = buffer.size,
                  .flags = flags,
                  .next = static_cast<std::uint16_t>(i + 1 < total ? i + 1 : 0)};
    }
    split_[head] = {.addr = indirect_.guest + head * table_bytes,
                    .len = static_cast<std::uint32_t>(16 * total),
                    .flags = VRING_DESC_F_INDIRECT,
                    .next = 0};
  } else {
    std::uint16_t slot = head;
    for (std::size_t i = 0; i < total; ++i) {
      const Buffer buffer = buffer_at(i);
      const bool last = i + 1 == total;
      const std::uint16_t following = last ? 0 : take();
      std::uint16_t flags = i < readable.size() ? 0 : VRING_DESC_F_WRITE;
      if (!last) flags |= VRING_DESC_F_NEXT;
      split_[slot] = {.addr = buffer.guest, .len = buffer.size, .flags = flags, .next = following};
      next_[slot] = following;
      slot = following;
    }
  }
  free_descriptors_ -= static_cast<std::uint16_t>(needed);
  entries_[head] = {.cookie = cookie,
                    .descriptors = static_cast<std::uint16_t>(needed),
                    .writable = !writable.empty()};
  if (options_.in_order) fifo_[fifo_tail_++ % options_.size] = head;
  available_entry(available_).store(head, std::memory_order_relaxed);
  ++available_;
  ++added_;
  ++in_flight_;
  return true;
}

std::uint16_t DriverRing::packed_available_flags() const {
  return available_wrap_ ? kPackedAvailable : kPackedUsed;
}

bool DriverRing::add_packed(std::span<const Buffer> readable, std::span<const Buffer> writable,
                            std::uint32_t cookie) {
  const std::size_t total = readable.size() + writable.size();
  const bool indirect = options_.indirect && total > 1;
  const std::size_t needed = indirect ? 1 : total;
  if (needed == 0 || needed > free_descriptors_) return false;

  std::uint16_t id = 0;
  if (options_.in_order) {
    id = in_order_next_;
    in_order_next_ = static_cast<std::uint16_t>((id + 1) % options_.size);
  } else {
    id = free_.back();
    free_.pop_back();
  }
  const auto buffer_at = [&](std::size_t index) {
    return index < readable.size() ? readable[index] : writable[index - readable.size()];
  };
  const auto advance = [&] {
    if (++available_ == options_.size) {
      available_ = 0;
      available_wrap_ = !available_wrap_;
    }
  };

  const std::uint16_t head = available_;
  std::uint16_t head_flags = packed_available_flags();
  if (indirect) {
    CHECK(total <= options_.indirect_length);
    const std::size_t table_bytes = std::size_t{16} * options_.indirect_length;
    auto* table = reinterpret_cast<vring_packed_desc*>(indirect_.host + id * table_bytes);
    for (std::size_t i = 0; i < total; ++i) {
      const Buffer buffer = buffer_at(i);
      const std::uint16_t flags = i < readable.size() ? 0 : VRING_DESC_F_WRITE;
      table[i] = {.addr = buffer.guest, .len = buffer.size, .id = 0, .flags = flags};
    }
    packed_[head].addr = indirect_.guest + id * table_bytes;
    packed_[head].len = static_cast<std::uint32_t>(16 * total);
    packed_[head].id = id;
    head_flags |= VRING_DESC_F_INDIRECT;
    advance();
  } else {
    for (std::size_t i = 0; i < total; ++i) {
      const Buffer buffer = buffer_at(i);
      std::uint16_t flags = packed_available_flags();
      if (i >= readable.size()) flags |= VRING_DESC_F_WRITE;
      if (i + 1 < total) flags |= VRING_DESC_F_NEXT;
      packed_[available_].addr = buffer.guest;
      packed_[available_].len = buffer.size;
      packed_[available_].id = id;
      if (i == 0) {
        head_flags = flags;
      } else {
        packed_[available_].flags = flags;
      }
      advance();
    }
  }
  // The device may look as soon as the head's flags say so: written last, released.
  std::atomic_ref<std::uint16_t>{packed_[head].flags}.store(head_flags, std::memory_order_release);
  free_descriptors_ -= static_cast<std::uint16_t>(needed);
  entries_[id] = {.cookie = cookie,
                  .descriptors = static_cast<std::uint16_t>(needed),
                  .writable = !writable.empty()};
  if (options_.in_order) fifo_[fifo_tail_++ % options_.size] = id;
  added_ += static_cast<std::uint16_t>(needed);
  ++in_flight_;
  return true;
}

bool DriverRing::publish() {
  if (added_ == 0) return false;
  const auto before = static_cast<std::uint16_t>(available_ - added_);
  added_ = 0;
  bool wanted = true;
  if (options_.packed) {
    // Our flags must be visible before we look whether the device went to
    // sleep: store, then load, which only a full barrier orders (2.8.21.3.1).
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const std::uint16_t flags = half(device_, 1).load(std::memory_order_acquire) & 3U;
    if (flags == VRING_PACKED_EVENT_FLAG_DISABLE) wanted = false;
    if (flags == VRING_PACKED_EVENT_FLAG_DESC) {
      const std::uint16_t where = half(device_, 0).load(std::memory_order_relaxed);
      auto event = static_cast<std::uint16_t>(where & 0x7fffU);
      if ((where >> VRING_PACKED_EVENT_F_WRAP_CTR) != (available_wrap_ ? 1 : 0))
        event = static_cast<std::uint16_t>(event - options_.size);
      wanted = crossed(event, available_, before);
    }
  } else {
    available_index().store(available_, std::memory_order_release);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // as above (2.7.13.4.1)
    if (options_.event_idx) {
      wanted = crossed(available_event().load(std::memory_order_acquire), available_, before);
    } else {
      wanted = (used_flags().load(std::memory_order_acquire) & VRING_USED_F_NO_NOTIFY) == 0;
    }
  }
  if (wanted) kick();
  return wanted;
}

void DriverRing::kick() {
  const std::uint64_t one = 1;
  // A full eventfd means that a kick is waiting already.
  [[maybe_unused]] const ssize_t written = write(kick_.number(), &one, sizeof(one));
}

void DriverRing::make_available(std::uint16_t head) {
  available_entry(available_).store(head, std::memory_order_relaxed);
  available_index().store(++available_, std::memory_order_release);
}

std::optional<Used> DriverRing::finish(std::uint16_t id, std::uint32_t length) {
  if (id >= options_.size || entries_[id].descriptors == 0) {
    break_with("the device returned id " + std::to_string(id) + ", which is not in flight");
    return std::nullopt;
  }
  Entry& entry = entries_[id];
  const Used used{.cookie = entry.cookie, .length = length};
  free_descriptors_ = static_cast<std::uint16_t>(free_descriptors_ + entry.descriptors);
  if (!options_.in_order) {
    std::uint16_t slot = id;
    const unsigned slots = options_.packed ? 1 : entry.descriptors;
    for (unsigned i = 0; i < slots; ++i) {
      free_.push_back(slot);
      slot = next_[slot];
    }
  }
  if (options_.packed) {
    used_seen_ = static_cast<std::uint16_t>(used_seen_ + entry.descriptors);
    if (used_seen_ >= options_.size) {
      used_seen_ = static_cast<std::uint16_t>(used_seen_ - options_.size);
      used_wrap_ = !used_wrap_;
    }
  } else {
    ++used_seen_;
  }
  entry = {};
  --in_flight_;
  return used;
}

std::optional<Used> DriverRing::poll() {
  if (broken()) return std::nullopt;
  if (batch_left_ > 0) {
    const std::uint16_t id = fifo_[fifo_head_++ % options_.size];
    --batch_left_;
    return finish(id, batch_left_ == 0 ? batch_length_ : Used::kUnknownLength);
  }
  return options_.packed ? poll_packed() : poll_split();
}

std::optional<Used> DriverRing::poll_split() {
  const std::uint16_t index = used_index().load(std::memory_order_acquire);
  if (index == used_seen_) return std::nullopt;
  const auto fresh = static_cast<std::uint16_t>(index - used_seen_);
  if (fresh > in_flight_) {
    break_with("the used index runs ahead: " + std::to_string(fresh) + " returned, " +
               std::to_string(in_flight_) + " in flight");
    return std::nullopt;
  }
  const vring_used_elem element = used_[used_seen_ % options_.size];
  if (element.id >= options_.size) {
    break_with("the device returned id " + std::to_string(element.id));
    return std::nullopt;
  }
  const auto id = static_cast<std::uint16_t>(element.id);
  if (!options_.in_order) return finish(id, element.len);

  std::uint32_t at = fifo_head_;
  while (at != fifo_tail_ && fifo_[at % options_.size] != id) ++at;
  const std::uint32_t batch = at - fifo_head_ + 1;
  if (at == fifo_tail_ || batch > fresh) {
    break_with("the device returned id " + std::to_string(id) + " out of order");
    return std::nullopt;
  }
  batch_left_ = static_cast<std::uint16_t>(batch);
  batch_length_ = element.len;
  return poll();
}

std::optional<Used> DriverRing::poll_packed() {
  vring_packed_desc& descriptor = packed_[used_seen_];
  const std::uint16_t flags =
      std::atomic_ref<std::uint16_t>{descriptor.flags}.load(std::memory_order_acquire);
  const bool available = (flags & kPackedAvailable) != 0;
  const bool used = (flags & kPackedUsed) != 0;
  if (available != used || used != used_wrap_ || in_flight_ == 0) return std::nullopt;
  const std::uint16_t id = descriptor.id;
  // Only a buffer with writable parts has a length, which the WRITE flag says (2.8.9).
  const std::uint32_t length = (flags & VRING_DESC_F_WRITE) != 0 ? descriptor.len : 0;
  if (!options_.in_order) return finish(id, length);

  std::uint32_t at = fifo_head_;
  while (at != fifo_tail_ && fifo_[at % options_.size] != id) ++at;
  if (at == fifo_tail_) {
    break_with("the device returned id " + std::to_string(id) + " out of order");
    return std::nullopt;
  }
  batch_left_ = static_cast<std::uint16_t>(at - fifo_head_ + 1);
  batch_length_ = length;
  return poll();
}

void DriverRing::want_calls(bool wanted) {
  if (options_.packed) {
    std::uint16_t flags = VRING_PACKED_EVENT_FLAG_DISABLE;
    if (wanted) {
      flags = VRING_PACKED_EVENT_FLAG_ENABLE;
      if (options_.event_idx) {
        flags = VRING_PACKED_EVENT_FLAG_DESC;
        half(driver_, 0)
            .store(static_cast<std::uint16_t>(used_seen_ | (used_wrap_ ? 0x8000U : 0)),
                   std::memory_order_relaxed);
      }
    }
    half(driver_, 1).store(flags, std::memory_order_release);
  } else if (options_.event_idx) {
    // Behind us: as far in the future as 16 bits go.
    used_event().store(static_cast<std::uint16_t>(wanted ? used_seen_ : used_seen_ - 1),
                       std::memory_order_release);
  } else {
    available_flags().store(wanted ? 0 : VRING_AVAIL_F_NO_INTERRUPT, std::memory_order_release);
  }
}

bool DriverRing::completion_waits() const {
  if (batch_left_ > 0) return true;
  if (!options_.packed) return used_index().load(std::memory_order_acquire) != used_seen_;
  const std::uint16_t flags =
      std::atomic_ref<std::uint16_t>{packed_[used_seen_].flags}.load(std::memory_order_acquire);
  const bool available = (flags & kPackedAvailable) != 0;
  const bool used = (flags & kPackedUsed) != 0;
  return available == used && used == used_wrap_ && in_flight_ > 0;
}

bool DriverRing::arm() {
  want_calls(true);
  // The request for a call before the last look at memory, or one could slip between.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return !completion_waits();
}

std::optional<Used> DriverRing::wait(Deadline deadline) {
  for (;;) {
    if (auto used = poll(); used || broken()) return used;
    want_calls(true);
    // The request for a call before the last look at memory, or one could slip between.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (auto used = poll(); used || broken()) {
      want_calls(false);
      return used;
    }
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      want_calls(false);
      return std::nullopt;
    }
    pollfd waited{.fd = call_.number(), .events = POLLIN, .revents = 0};
    const timespec timeout{.tv_sec = left.count() / 1'000'000'000,
                           .tv_nsec = left.count() % 1'000'000'000};
    if (ppoll(&waited, 1, &timeout, nullptr) > 0) {
      std::uint64_t count = 0;
      if (read(call_.number(), &count, sizeof(count)) > 0) ++calls_;
    }
    want_calls(false);
  }
}

std::optional<Used> DriverRing::spin(Deadline deadline) {
  for (unsigned turn = 1;; ++turn) {
    if (auto used = poll(); used || broken()) return used;
    if (turn % 1024 == 0 && std::chrono::steady_clock::now() >= deadline) return std::nullopt;
    pause_cpu();
  }
}

}  // namespace virtiofsd::guest
