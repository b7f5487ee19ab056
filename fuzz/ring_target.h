// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A Queue at the hands of a hostile driver and a busy VMM, for both kinds of
// ring. The input is a program: it writes any bytes anywhere in guest memory,
// describes chains that are nearly right, takes, gives back, signals, swaps
// memory tables under a running ring, stops and starts it.
//
// What must hold throughout: every byte of a chain lies in guest memory and
// nothing behind it is touched (each region is a heap piece of its own); what
// was popped can be pushed; a ring that was refused stays refused until it is
// stopped; stop returns.
#pragma once

#include <sys/mman.h>

#include <memory>
#include <optional>
#include <vector>

#include "fuzz/input.h"
#include "sys/events.h"
#include "virtio/queue.h"

namespace virtiofsd::fuzz {

class RingTarget {
 public:
  RingTarget(Input& in, bool packed) : in_(in), packed_(packed) {
    size_ = in.one_of(kRingSizes);
    const std::uint8_t options = in.byte();
    if ((options & 1) != 0) features_ |= virtio::kIndirectDescriptors;
    if ((options & 2) != 0) features_ |= virtio::kEventIndex;
    if ((options & 4) != 0) features_ |= virtio::kNotifyOnEmpty;
    if ((options & 8) != 0) features_ |= virtio::kInOrder;
    if ((options & 16) != 0) features_ |= virtio::kLogAll;
    if (packed) features_ |= virtio::kRingPacked;
    guest_addresses_ = (options & 32) != 0;
    odd_addresses_ = (options & 64) != 0;
    base_ = (options & 128) != 0 ? in.take<std::uint32_t>() : 0;

    ring_bytes_ = size_ > 256 ? 0x10'0000 : 0x8000;
    ring_area_ = allocate(ring_bytes_);
    buffer_area_ = allocate(kBufferBytes);
    const auto ring = MappedRegion{.guest = {kGuest},
                                   .vmm = {kVmm},
                                   .size = ring_bytes_,
                                   .host = ring_area_.get(),
                                   .owner = ring_area_};
    // They touch for the guest and lie apart for us.
    const auto buffers = MappedRegion{.guest = {kGuest + ring_bytes_},
                                      .vmm = {kVmm + ring_bytes_},
                                      .size = kBufferBytes,
                                      .host = buffer_area_.get(),
                                      .owner = buffer_area_};
    tables_.push_back(GuestMemory::make({ring, buffers}).value());
    tables_.push_back(GuestMemory::make({ring}).value());
    tables_.push_back(GuestMemory::make({buffers}).value());
    tables_.push_back(GuestMemory::make({}).value());
    set_up();
  }
  ~RingTarget() { give_all_back(); }
  RingTarget(const RingTarget&) = delete;
  RingTarget& operator=(const RingTarget&) = delete;

  void run() {
    for (int steps = 0; steps < 512 && !in_.empty(); ++steps) step();
  }

 private:
  static constexpr std::array<std::uint32_t, 12> kRingSizes = {1,  2,  3,   4,   7,    8,
                                                               16, 64, 256, 100, 1024, 32768};
  static constexpr std::uint64_t kGuest = 0x10'0000;
  static constexpr std::uint64_t kVmm = 0x7000'0000'0000;
  static constexpr std::uint64_t kBufferBytes = 0x8000;
  static constexpr std::size_t kMostHeld = 8;
  static constexpr std::uint16_t kNext = 1;
  static constexpr std::uint16_t kWrite = 2;
  static constexpr std::uint16_t kIndirect = 4;

  struct Held {
    virtio::ChainScratch scratch;
    virtio::Chain chain;
    std::size_t room = 0;  // of its writable side, when it was popped
    bool popped = false;
  };

  static std::shared_ptr<std::byte> allocate(std::uint64_t size) {
    auto* bytes = static_cast<std::byte*>(std::aligned_alloc(4096, size));
    CHECK(bytes != nullptr);
    std::memset(bytes, 0, size);
    return {bytes, std::free};
  }

  std::uint64_t driver_offset() const { return page_up(size_ * 16ULL); }
  std::uint64_t device_offset() const { return page_up(driver_offset() + 6 + 2ULL * size_); }
  static std::uint64_t page_up(std::uint64_t offset) { return (offset + 0xfff) & ~0xfffULL; }

  template <typename Address>
  virtio::RingAddresses<Address> addresses(std::uint64_t start) {
    virtio::RingAddresses<Address> at{.descriptors = {start},
                                      .driver = {start + driver_offset()},
                                      .device = {start + device_offset()},
                                      .log = std::nullopt};
    if ((features_ & virtio::kLogAll) != 0) at.log = GuestAddress{kGuest + device_offset()};
    if (odd_addresses_) {
      // Near the ends of regions, misaligned, or nowhere.
      at.descriptors.value += in_.word();
      at.driver.value += in_.word();
      at.device.value += in_.word();
      if (in_.byte() == 0xff) at.device.value = in_.take<std::uint64_t>();
      if (at.log) at.log->value += in_.take<std::uint64_t>();
    }
    return at;
  }

  void set_up() {
    running_ = false;
    CHECK(queue_.set_size(size_));
    const auto placed = guest_addresses_ ? queue_.set_addresses(addresses<GuestAddress>(kGuest))
                                         : queue_.set_addresses(addresses<VmmAddress>(kVmm));
    CHECK(placed || odd_addresses_);
    queue_.set_features(features_);
    queue_.set_memory(tables_[0]);
    queue_.set_kick(UniqueFd{});
    CHECK(queue_.set_call(copy_of(call_.ref())));
    CHECK(queue_.set_error(copy_of(error_.ref())));
    queue_.set_enabled(true);
    CHECK(queue_.set_base(base_));
    start();
  }

  void start() {
    running_ = queue_.start().has_value();
    CHECK(queue_.running() == running_);
    // The driver goes on where the queue does; a hostile one needn't.
    if (packed_) {
      next_ = virtio::PackedPosition::decode(base_ == 0 ? std::uint16_t{0x8000}
                                                        : static_cast<std::uint16_t>(base_));
      if (next_.slot >= size_) next_ = {};
    } else {
      index_ = static_cast<std::uint16_t>(base_);
    }
  }

  static UniqueFd copy_of(FdRef fd) { return UniqueFd{::fcntl(fd.number(), F_DUPFD_CLOEXEC, 0)}; }

  template <typename T>
  void store(std::uint64_t offset, T value) {
    if (offset + sizeof value <= ring_bytes_) {
      std::memcpy(ring_area_.get() + offset, &value, sizeof value);
    } else if (offset >= ring_bytes_ && offset - ring_bytes_ + sizeof value <= kBufferBytes) {
      std::memcpy(buffer_area_.get() + (offset - ring_bytes_), &value, sizeof value);
    }
  }

  // One descriptor as a driver would write it, more or less.
  struct Described {
    std::uint64_t address;
    std::uint32_t size;
    std::uint16_t flags;
    std::uint16_t next;
  };
  Described describe(std::uint32_t slots) {
    const std::uint8_t shape = in_.byte();
    Described out{};
    switch (shape & 7) {
      case 0:  // across the border of the two regions
        out.address = kGuest + ring_bytes_ - in_.byte();
        break;
      case 1:  // near the end of memory
        out.address = kGuest + ring_bytes_ + kBufferBytes - in_.byte();
        break;
      case 2:
        out.address = in_.take<std::uint64_t>();
        break;
      case 3:  // the ring itself
        out.address = kGuest + in_.word();
        break;
      default:
        out.address = kGuest + ring_bytes_ + in_.word() % kBufferBytes;
    }
    const bool edge = (shape & 0x80) != 0;
    out.size = edge ? static_cast<std::uint32_t>(in_.one_of(kEdges)) : in_.byte();
    if ((shape & 8) != 0) out.flags |= kNext;
    if ((shape & 16) != 0) out.flags |= kWrite;
    if ((shape & 32) != 0) {
      out.flags |= kIndirect;
      out.size = edge ? out.size : 16U * (out.size % 32);
    }
    if ((shape & 64) != 0) out.flags |= in_.word();
    out.next = static_cast<std::uint16_t>(in_.byte() % (slots + 1));
    return out;
  }

  void write_split(std::uint64_t offset, const Described& entry) {
    store(offset, entry.address);
    store(offset + 8, entry.size);
    store(offset + 12, entry.flags);
    store(offset + 14, entry.next);
  }
  void write_packed(std::uint64_t offset, const Described& entry, std::uint16_t flags) {
    store(offset, entry.address);
    store(offset + 8, entry.size);
    store(offset + 12, entry.next);  // the id
    store(offset + 14, flags);
  }

  void add_to_ring() {
    const Described entry = describe(size_);
    if (packed_) {
      const auto available = static_cast<std::uint16_t>(next_.wrap ? 1U << 7 : 1U << 15);
      write_packed(next_.slot * 16ULL, entry, static_cast<std::uint16_t>(entry.flags | available));
      next_.advance(1, size_);
    } else {
      write_split(in_.byte() % size_ * 16ULL, entry);
    }
  }

  // Where indirect tables are looked for: anywhere in the buffers.
  void add_to_table() {
    const std::uint64_t offset = ring_bytes_ + in_.word() % kBufferBytes;
    const Described entry = describe(32);
    if (packed_) {
      write_packed(offset, entry, entry.flags);
    } else {
      write_split(offset, entry);
    }
  }

  void make_available() {
    if (packed_) return add_to_ring();
    const std::uint16_t head = in_.byte();
    store(driver_offset() + 4 + index_ % size_ * 2ULL,
          static_cast<std::uint16_t>(head == 0xff ? in_.word() : head % size_));
    ++index_;
    store(driver_offset() + 2, index_);
  }

  void tell_wishes() {
    const std::uint16_t word = in_.word();
    if (packed_) {
      store(driver_offset(), word);
      store(driver_offset() + 2, static_cast<std::uint16_t>(in_.below(4)));
    } else {
      store(driver_offset(), static_cast<std::uint16_t>(word & 1));
      store(driver_offset() + 4 + 2ULL * size_, word);
    }
  }

  void scribble() {
    const std::uint64_t offset = in_.take<std::uint32_t>() % (ring_bytes_ + kBufferBytes);
    for (std::size_t left = in_.byte() % 64; left != 0; --left) store(offset + left, in_.byte());
  }

  bool in_guest_memory(const iovec& piece) const {
    const auto* first = static_cast<const std::byte*>(piece.iov_base);
    const auto inside = [&](const std::byte* area, std::uint64_t bytes) {
      return first >= area && first < area + bytes &&
             piece.iov_len <= static_cast<std::uint64_t>(area + bytes - first);
    };
    return inside(ring_area_.get(), ring_bytes_) || inside(buffer_area_.get(), kBufferBytes);
  }

  void look_at(Held& held) {
    for (SharedBytes* side : {&held.chain.readable, &held.chain.writable}) {
      std::size_t total = 0;
      for (const iovec& piece : IoSpaceAccess::pieces(side->space(side->size()))) {
        CHECK(in_guest_memory(piece));
        total += piece.iov_len;
      }
      CHECK(total == side->size() && total <= 0xffffffff);
    }
    std::uint64_t ranges = 0;
    for (const virtio::GuestRange& range : held.chain.writable_ranges) ranges += range.size;
    CHECK(ranges == held.chain.writable.size());

    constexpr std::size_t kMost = 0x10000;
    std::vector<std::byte> copy(std::min(held.chain.readable.size(), kMost));
    CHECK(held.chain.readable.copy_out(copy));
    // Every readable byte has an answer as far as there is room: into the
    // ring itself, too, if the driver says so.
    held.room = held.chain.writable.size();
    copy.resize(std::min(copy.size(), held.room));
    CHECK(held.chain.writable.copy_in(copy));
    const std::size_t left = held.room - copy.size();
    if (left < kMost) CHECK(!held.chain.writable.copy_in(std::vector<std::byte>(left + 1)));
  }

  void pop() {
    const auto free = std::ranges::find_if(held_, [](const Held& held) { return !held.popped; });
    if (free == held_.end()) return;
    const bool was_broken = queue_.broken();
    taken(*free, queue_.pop(free->scratch, free->chain), was_broken);
  }

  void taken(Held& into, const Result<bool>& got, bool was_broken) {
    if (!got) {
      CHECK(got.error() == Errno{EBADMSG} && queue_.broken());
      CHECK(error_.drain());
      return;
    }
    if (!*got) return;
    CHECK(!was_broken && running_);
    into.popped = true;
    ++in_flight_;
    CHECK(queue_.in_flight() == in_flight_ && in_flight_ <= size_);
    look_at(into);
  }

  // More than was asked for is what a device of ours would never say.
  static std::uint32_t written_into(const Held& held, std::uint8_t blocks) {
    return static_cast<std::uint32_t>(std::min<std::size_t>(held.room, blocks * 64U));
  }

  void push(Held& held) {
    queue_.push(held.chain, written_into(held, in_.byte()));
    held.popped = false;
    --in_flight_;
  }

  // Alone, or with a pop into the same chain.
  void push_one(Held& held) {
    const std::uint8_t blocks = in_.byte();
    const std::uint32_t written = written_into(held, blocks);
    held.popped = false;
    --in_flight_;
    if (blocks % 2 == 0) return queue_.push(held.chain, written);
    const bool was_broken = queue_.broken();
    taken(held, queue_.push_and_pop(written, held.scratch, held.chain), was_broken);
  }

  void give_all_back() {
    for (Held& held : held_) {
      if (held.popped) push(held);
    }
    CHECK(queue_.in_flight() == 0);
  }

  void stop() {
    give_all_back();
    base_ = queue_.stop();
    running_ = false;
    CHECK(!queue_.running() && !queue_.broken() && !queue_.has_available());
  }

  void log_writes() {
    // As long as the pages that exist take, or far too short.
    const std::uint64_t size = in_.byte() % 2 == 0 ? 0x1000 : 1;
    const UniqueFd file{::memfd_create("log", MFD_CLOEXEC)};
    CHECK(::ftruncate(file.number(), 0x1000) == 0);
    queue_.set_dirty_log(DirtyLog::map(file, 0, size).value());
  }

  void step() {
    switch (in_.below(20)) {
      case 0:
        return scribble();
      case 1:
      case 2:
        return add_to_ring();
      case 3:
        return add_to_table();
      case 4:
      case 5:
        return make_available();
      case 6:
        return store(driver_offset() + 2, in_.word());
      case 7:
        return tell_wishes();
      case 8:
      case 9:
      case 10:
        return pop();
      case 11: {
        Held& held = held_[in_.below(held_.size())];
        if (held.popped) push_one(held);
        return;
      }
      case 12:
        queue_.signal();
        return static_cast<void>(call_.drain());
      case 13:
        if (in_.byte() % 2 == 0) return queue_.suppress_kicks();
        return static_cast<void>(queue_.enable_kicks());
      case 14:
        return static_cast<void>(queue_.has_available());
      case 15:
        stop();
        if (in_.byte() % 2 == 0) {
          base_ = in_.take<std::uint32_t>();
          CHECK(queue_.set_base(base_));
        }
        return start();
      case 16:
        return queue_.set_memory(tables_[in_.below(tables_.size())]);
      case 17:
        if (in_.byte() % 2 == 0) return queue_.set_enabled(in_.byte() % 2 == 0);
        return queue_.set_features(features_ ^ (in_.byte() % 2 == 0 ? virtio::kLogAll : 0));
      case 18:
        if (in_.byte() % 4 != 0) return log_writes();
        queue_.set_dirty_log(nullptr);
        return;
      default:
        give_all_back();
        queue_.reset();
        CHECK(!queue_.ready() && !queue_.start());
        return set_up();
    }
  }

  Input& in_;
  const bool packed_;
  std::uint32_t size_ = 0;
  std::uint64_t features_ = 0;
  bool guest_addresses_ = false;
  bool odd_addresses_ = false;
  std::uint32_t base_ = 0;

  std::uint64_t ring_bytes_ = 0;
  std::shared_ptr<std::byte> ring_area_;
  std::shared_ptr<std::byte> buffer_area_;
  std::vector<std::shared_ptr<const GuestMemory>> tables_;
  const sys::EventFd call_ = sys::EventFd::create().value();
  const sys::EventFd error_ = sys::EventFd::create().value();

  virtio::Queue queue_{0};
  bool running_ = false;
  std::array<Held, kMostHeld> held_;
  std::uint32_t in_flight_ = 0;

  // The driver's side.
  std::uint16_t index_ = 0;
  virtio::PackedPosition next_;
};

inline int run_ring(const std::uint8_t* data, std::size_t size, bool packed) {
  set_log(false);
  const NoDescriptorLeaks no_leaks;
  Input in(data, size);
  RingTarget(in, packed).run();
  return 0;
}

}  // namespace virtiofsd::fuzz
