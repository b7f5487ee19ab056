// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The other end of a queue for the unit tests: plain bytes as guest memory and
// a driver that writes rings by offset, as the specification lays them out.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "sys/events.h"
#include "virtio/queue.h"

namespace virtiofsd::virtio {

inline constexpr std::uint16_t kNextFlag = 1;
inline constexpr std::uint16_t kWriteFlag = 2;
inline constexpr std::uint16_t kIndirectFlag = 4;

struct TestBuffer {
  std::uint64_t address;
  std::uint32_t size;
  bool writable = false;
};

// Guest memory (shared with forked children) from kGuest on, in one region or in two that touch at
// `border` for the guest but lie apart for us.
class TestMemory {
 public:
  static constexpr std::uint64_t kGuest = 0x10'0000;
  static constexpr std::uint64_t kVmm = 0x7000'0000'0000;
  static constexpr std::uint64_t kSize = 4U << 20;

  explicit TestMemory(std::uint64_t border = kSize) : border_(border) {
    bytes_ = static_cast<std::byte*>(
        ::mmap(nullptr, kSize + kGap, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    std::vector<MappedRegion> regions;
    regions.push_back(
        {.guest = {kGuest}, .vmm = {kVmm}, .size = border, .host = bytes_, .owner = {}});
    if (border < kSize) {
      regions.push_back({.guest = {kGuest + border},
                         .vmm = {kVmm + border},
                         .size = kSize - border,
                         .host = bytes_ + border + kGap,
                         .owner = {}});
    }
    table_ = GuestMemory::make(std::move(regions)).value();
  }
  ~TestMemory() { ::munmap(bytes_, kSize + kGap); }
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;

  std::byte* at(std::uint64_t guest) {
    const std::uint64_t offset = guest - kGuest;
    return bytes_ + offset + (offset >= border_ ? kGap : 0);
  }
  // Aligned words whole and in order, as a driver's: somebody may be looking.
  template <typename T>
  void store(std::uint64_t guest, T value) {
    if constexpr (std::is_integral_v<T>) {
      if (is_word<T>(guest)) {
        return __atomic_store_n(static_cast<T*>(static_cast<void*>(at(guest))), value,
                                __ATOMIC_RELEASE);
      }
    }
    const auto bytes = std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
    for (std::size_t i = 0; i < sizeof(T); ++i) *at(guest + i) = bytes[i];
  }
  template <typename T>
  T load(std::uint64_t guest) {
    if constexpr (std::is_integral_v<T>) {
      if (is_word<T>(guest))
        return __atomic_load_n(static_cast<T*>(static_cast<void*>(at(guest))), __ATOMIC_ACQUIRE);
    }
    std::array<std::byte, sizeof(T)> bytes;
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes[i] = *at(guest + i);
    return std::bit_cast<T>(bytes);
  }
  void write(std::uint64_t guest, std::string_view text) {
    for (std::size_t i = 0; i < text.size(); ++i) *at(guest + i) = static_cast<std::byte>(text[i]);
  }
  std::string read(std::uint64_t guest, std::size_t size) {
    std::string text;
    for (std::size_t i = 0; i < size; ++i) text += static_cast<char>(*at(guest + i));
    return text;
  }
  const std::shared_ptr<const GuestMemory>& table() const { return table_; }

 private:
  template <typename T>
  bool is_word(std::uint64_t guest) {
    return guest % sizeof(T) == 0 && at(guest + sizeof(T) - 1) == at(guest) + sizeof(T) - 1;
  }

  static constexpr std::uint64_t kGap = 8192;
  std::uint64_t border_;
  std::byte* bytes_;
  std::shared_ptr<const GuestMemory> table_;
};

// What both kinds of driver share: memory, a queue and its descriptors.
class TestDriver {
 public:
  static constexpr std::uint64_t kDescriptors = TestMemory::kGuest;
  static constexpr std::uint64_t kDriverArea = TestMemory::kGuest + 0x9'0000;
  static constexpr std::uint64_t kDeviceArea = TestMemory::kGuest + 0xb'0000;
  static constexpr std::uint64_t kBuffers = TestMemory::kGuest + 0x20'0000;
  static constexpr std::uint64_t kNowhere = 0x40;
  static constexpr std::uint64_t kLogOffset = 0x1000'0000;  // where used is, for the log

  TestDriver(std::uint32_t size, std::uint64_t features, std::uint64_t border)
      : memory(border),
        size_(size),
        call_(sys::EventFd::create().value()),
        error_(sys::EventFd::create().value()) {
    EXPECT_TRUE(queue.set_size(size));
    EXPECT_TRUE(queue.set_addresses(addresses()));
    queue.set_features(features);
    queue.set_memory(memory.table());
    queue.set_kick(UniqueFd{});
    EXPECT_TRUE(queue.set_call(UniqueFd{::dup(call_.ref().number())}));
    EXPECT_TRUE(queue.set_error(UniqueFd{::dup(error_.ref().number())}));
    queue.set_enabled(true);
  }

  static RingAddresses<VmmAddress> addresses() {
    const auto vmm = [](std::uint64_t guest) {
      return VmmAddress{guest - TestMemory::kGuest + TestMemory::kVmm};
    };
    return {.descriptors = vmm(kDescriptors),
            .driver = vmm(kDriverArea),
            .device = vmm(kDeviceArea),
            .log = std::nullopt};
  }

  bool called() const { return call_.drain(); }
  bool error_signalled() const { return error_.drain(); }

  // What pop says: one of "chain", "none", "broken".
  std::string pop() {
    const auto got = queue.pop(scratch, chain);
    if (!got) return got.error() == Errno{EBADMSG} ? "broken" : "other error";
    return *got ? "chain" : "none";
  }
  std::string readable() {
    std::string text(chain.readable.size(), '\0');
    EXPECT_TRUE(chain.readable.copy_out(std::as_writable_bytes(std::span(text))));
    return text;
  }
  void reply(std::string_view text) {
    EXPECT_TRUE(chain.writable.copy_in(std::as_bytes(std::span(text))));
  }

  TestMemory memory;
  Queue queue{0};
  ChainScratch scratch;
  Chain chain;

 protected:
  std::uint32_t size_;

 private:
  sys::EventFd call_;
  sys::EventFd error_;
};

class SplitDriver : public TestDriver {
 public:
  explicit SplitDriver(std::uint32_t size, std::uint64_t features = 0, std::uint32_t base = 0,
                       std::uint64_t border = TestMemory::kSize)
      : TestDriver(size, features, border), index_(static_cast<std::uint16_t>(base)) {
    memory.store<std::uint16_t>(kDriverArea + 2, index_);
    memory.store<std::uint16_t>(kDeviceArea + 2, index_);
    EXPECT_TRUE(queue.set_base(base));
    EXPECT_TRUE(queue.start());
  }

  void descriptor(std::uint16_t slot, TestBuffer buffer, std::uint16_t flags = 0,
                  std::uint16_t next = 0) {
    entry(kDescriptors, slot, buffer, flags, next);
  }
  void entry(std::uint64_t table, std::uint16_t slot, TestBuffer buffer, std::uint16_t flags = 0,
             std::uint16_t next = 0) {
    const std::uint64_t at = table + slot * 16ULL;
    memory.store<std::uint64_t>(at, buffer.address);
    memory.store<std::uint32_t>(at + 8, buffer.size);
    memory.store<std::uint16_t>(
        at + 12, static_cast<std::uint16_t>(flags | (buffer.writable ? kWriteFlag : 0)));
    memory.store<std::uint16_t>(at + 14, next);
  }
  // Slots head, head + 1, ... as one chain, made available.
  void submit(std::uint16_t head, const std::vector<TestBuffer>& buffers) {
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const bool more = i + 1 < buffers.size();
      const auto slot = static_cast<std::uint16_t>(head + i);
      descriptor(slot, buffers[i], more ? kNextFlag : 0, static_cast<std::uint16_t>(slot + 1));
    }
    make_available(head);
  }
  void make_available(std::uint16_t head) {
    memory.store<std::uint16_t>(kDriverArea + 4 + (index_ % size_) * 2ULL, head);
    set_available_index(static_cast<std::uint16_t>(index_ + 1));
  }
  void set_available_index(std::uint16_t index) {
    index_ = index;
    memory.store<std::uint16_t>(kDriverArea + 2, index);
  }
  void set_driver_flags(std::uint16_t flags) { memory.store(kDriverArea, flags); }
  void set_used_event(std::uint16_t event) { memory.store(kDriverArea + 4 + size_ * 2ULL, event); }
  std::uint16_t available_event() {
    return memory.load<std::uint16_t>(kDeviceArea + 4 + size_ * 8ULL);
  }
  std::uint16_t device_flags() { return memory.load<std::uint16_t>(kDeviceArea); }
  std::uint16_t used_index() { return memory.load<std::uint16_t>(kDeviceArea + 2); }
  UsedElement used(std::uint16_t index) {
    return memory.load<UsedElement>(kDeviceArea + 4 + (index % size_) * 8ULL);
  }

 private:
  std::uint16_t index_;  // the available index as published
};

class PackedDriver : public TestDriver {
 public:
  explicit PackedDriver(std::uint32_t size, std::uint64_t features = 0,
                        std::uint32_t base = 0x8000'8000)
      : TestDriver(size, features | kRingPacked, TestMemory::kSize),
        next_(PackedPosition::decode(static_cast<std::uint16_t>(base))) {
    EXPECT_TRUE(queue.set_base(base));
    EXPECT_TRUE(queue.start());
  }

  void submit(std::uint16_t id, const std::vector<TestBuffer>& buffers) {
    const PackedPosition head = next_;
    std::uint16_t head_flags = 0;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      std::uint16_t flags = buffers[i].writable ? kWriteFlag : 0;
      if (i + 1 < buffers.size()) flags |= kNextFlag;
      if (i == 0) head_flags = flags;
      put(id, buffers[i], flags, i != 0);
    }
    publish(head, head_flags);
  }
  // One slot at the driver's position; `now` says whether its flags make it available.
  void put(std::uint16_t id, TestBuffer buffer, std::uint16_t flags, bool now = true) {
    const std::uint64_t at = kDescriptors + next_.slot * 16ULL;
    memory.store<std::uint64_t>(at, buffer.address);
    memory.store<std::uint32_t>(at + 8, buffer.size);
    memory.store<std::uint16_t>(at + 12, id);
    if (now) publish(next_, flags);
    next_.advance(1, size_);
  }
  void publish(PackedPosition at, std::uint16_t flags) {
    flags |= static_cast<std::uint16_t>(at.wrap ? 1U << 7 : 1U << 15);
    memory.store<std::uint16_t>(kDescriptors + at.slot * 16ULL + 14, flags);
  }
  void set_driver_event(std::uint16_t position, std::uint16_t flags) {
    memory.store<std::uint16_t>(kDriverArea, position);
    memory.store<std::uint16_t>(kDriverArea + 2, flags);
  }
  EventSuppression device_event() { return memory.load<EventSuppression>(kDeviceArea); }
  PackedDescriptor slot(std::uint16_t index) {
    return memory.load<PackedDescriptor>(kDescriptors + index * 16ULL);
  }
  bool is_used(std::uint16_t index, bool wrap) {
    const auto flags = memory.load<std::uint16_t>(kDescriptors + index * 16ULL + 14);
    return ((flags >> 7) & 1) == wrap && ((flags >> 15) & 1) == wrap;
  }

 private:
  PackedPosition next_;
};

}  // namespace virtiofsd::virtio
