// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/queue.h"

#include <sched.h>

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/log.h"
#include "virtio/ring_word.h"

namespace virtiofsd::virtio {
namespace {

constexpr std::uint32_t kFirstSplitBase = 0;
constexpr std::uint32_t kFirstPackedBase = 0x8000'8000;  // both wrap counters begin at 1

// Alignments: virtio 1.2, 2.7 and 2.8.10.1.
constexpr std::size_t kDescriptorAlignment = 16;
constexpr std::size_t kSplitDriverAlignment = 2;
constexpr std::size_t kSplitDeviceAlignment = 4;
constexpr std::size_t kEventAlignment = 4;

// The used area: flags and index, the elements, the available event.
constexpr std::uint64_t kUsedHeadBytes = 4;

template <typename Address>
Result<Address> offset_by(Address address, std::uint64_t offset) {
  Address moved;
  if (__builtin_add_overflow(address.value, offset, &moved.value)) return Errno{EFAULT};
  return moved;
}

}  // namespace

Queue::~Queue() {
  stop();
}

Result<> Queue::set_size(std::uint32_t size) {
  if (size == 0 || size > kMostSlots) return Errno{EINVAL};
  Lock lock(mutex_);
  if (running_) return Errno{EBUSY};
  size_ = size;
  return {};
}

template <typename Address>
Result<> Queue::accept_addresses(const RingAddresses<Address>& addresses) {
  if (addresses.descriptors.value % kDescriptorAlignment != 0 ||
      addresses.driver.value % kSplitDriverAlignment != 0 ||
      addresses.device.value % kSplitDeviceAlignment != 0) {
    return Errno{EINVAL};
  }
  if (running_) {
    const auto* current = std::get_if<RingAddresses<Address>>(&addresses_);
    if (current == nullptr) return Errno{EBUSY};
    RingAddresses<Address> but_for_log = addresses;
    but_for_log.log = current->log;
    if (but_for_log != *current) return Errno{EBUSY};
  }
  addresses_ = addresses;
  return {};
}

Result<> Queue::set_addresses(const RingAddresses<VmmAddress>& addresses) {
  Lock lock(mutex_);
  return accept_addresses(addresses);
}

Result<> Queue::set_addresses(const RingAddresses<GuestAddress>& addresses) {
  Lock lock(mutex_);
  return accept_addresses(addresses);
}

Result<> Queue::set_base(std::uint32_t base) {
  Lock lock(mutex_);
  if (running_) return Errno{EBUSY};
  base_ = base;
  return {};
}

void Queue::set_kick(UniqueFd fd) {
  // Closing is a system call: whatever was there before goes after the lock.
  auto next = fd ? std::make_shared<const UniqueFd>(std::move(fd)) : nullptr;
  Lock lock(mutex_);
  kick_set_ = true;
  kick_.swap(next);
}

Result<> Queue::set_call(UniqueFd fd) {
  std::shared_ptr<const sys::Notifier> next;
  if (fd) next = std::make_shared<const sys::Notifier>(TRY(sys::Notifier::make(std::move(fd))));
  std::shared_ptr<const sys::Notifier> call = next;
  {
    Lock lock(mutex_);
    call_.swap(next);
    if (!serving()) return {};
  }
  // A signal may be on its way to the one before, which its reader has left already. (Who uses
  // sockets sets them once, before the ring runs; and one may be the VMM's end of our
  // conversation.)
  if (call != nullptr && !call->is_socket()) call->notify();
  return {};
}

Result<> Queue::set_error(UniqueFd fd) {
  std::shared_ptr<const sys::Notifier> next;
  if (fd) next = std::make_shared<const sys::Notifier>(TRY(sys::Notifier::make(std::move(fd))));
  Lock lock(mutex_);
  error_.swap(next);
  return {};
}

void Queue::set_features(std::uint64_t features) {
  Lock lock(mutex_);
  features_ = running_ ? (features_ & ~kLogAll) | (features & kLogAll) : features;
}

std::uint64_t Queue::features() const {
  Lock lock(mutex_);
  return features_;
}

void Queue::set_enabled(bool enabled) {
  Lock lock(mutex_);
  close_gate();
  enabled_ = enabled;
  open_gate_if_serving();
}

void Queue::set_memory(std::shared_ptr<const GuestMemory> memory) {
  std::shared_ptr<const GuestMemory> old_ring_memory;  // unmapped after the lock
  Lock lock(mutex_);
  memory_.swap(memory);
  if (!running_) return;
  close_gate();
  const auto located = locate();
  ring_in_memory_ = located.has_value();
  if (located) {
    if (split_) split_->remap(located->split);
    if (packed_) packed_->remap(located->packed);
    descriptors_for_log_ = located->descriptors;
    old_ring_memory = std::exchange(ring_memory_, memory_);
  }
  open_gate_if_serving();
}

void Queue::set_dirty_log(std::shared_ptr<DirtyLog> log) {
  Lock lock(mutex_);
  dirty_log_.swap(log);
}

bool Queue::ready() const {
  Lock lock(mutex_);
  return size_ != 0 && addresses_.index() != 0 && memory_ != nullptr && kick_set_ && enabled_ &&
         !broken_;
}

bool Queue::running() const {
  Lock lock(mutex_);
  return running_;
}

bool Queue::broken() const {
  Lock lock(mutex_);
  return broken_;
}

template <typename Address>
Result<Queue::Located> Queue::locate(const RingAddresses<Address>& at) const {
  Located located;
  located.descriptors = TRY(memory_->guest_address(at.descriptors));
  if ((features_ & kRingPacked) != 0) {
    PackedRing::Memory& ring = located.packed;
    ring.descriptors =
        TRY(memory_->template array<PackedDescriptor>(at.descriptors, size_, kDescriptorAlignment));
    ring.driver_event =
        TRY(memory_->template array<EventSuppression>(at.driver, 1, kEventAlignment));
    ring.device_event =
        TRY(memory_->template array<EventSuppression>(at.device, 1, kEventAlignment));
    return located;
  }
  SplitRing::Memory& ring = located.split;
  ring.descriptors =
      TRY(memory_->template array<SplitDescriptor>(at.descriptors, size_, kDescriptorAlignment));
  // Flags, index, slots and used_event.
  ring.available =
      TRY(memory_->template array<std::uint16_t>(at.driver, size_ + 3ULL, kSplitDriverAlignment));
  ring.used_head = TRY(memory_->template array<std::uint16_t>(at.device, 2, kSplitDeviceAlignment));
  const Address elements = TRY(offset_by(at.device, kUsedHeadBytes));
  ring.used = TRY(memory_->template array<UsedElement>(elements, size_));
  const Address event =
      TRY(offset_by(at.device, kUsedHeadBytes + sizeof(UsedElement) * std::uint64_t{size_}));
  ring.available_event = TRY(memory_->template array<std::uint16_t>(event, 1));
  return located;
}

Result<Queue::Located> Queue::locate() const {
  if (memory_ == nullptr || size_ == 0) return Errno{EINVAL};
  if (const auto* vmm = std::get_if<RingAddresses<VmmAddress>>(&addresses_)) return locate(*vmm);
  if (const auto* guest = std::get_if<RingAddresses<GuestAddress>>(&addresses_))
    return locate(*guest);
  return Errno{EINVAL};
}

Result<> Queue::start() {
  return start(/*again=*/false);
}

Result<std::size_t> Queue::start_again(bool blame) {
  TRY(start(/*again=*/true));
  std::shared_ptr<const sys::Notifier> call;
  std::size_t in_flight = 0;
  {
    Lock lock(mutex_);
    blame_ = blame;
    call = call_;
    in_flight = left_over_.size();
  }
  if (call != nullptr) call->notify();
  return in_flight;
}

Result<> Queue::start(bool again) {
  Lock lock(mutex_);
  if (running_) return {};
  const bool packed = (features_ & kRingPacked) != 0;
  if (!again && interrupted_) {
    again = base_ && *interrupted_ == Interrupted{.size = size_, .packed = packed, .base = *base_};
    blame_ = false;
  }
  if (!packed && !std::has_single_bit(size_)) return Errno{EINVAL};
  const Located located = TRY(locate());
  const RingFeatures ring_features{.indirect = (features_ & kIndirectDescriptors) != 0,
                                   .event_index = (features_ & kEventIndex) != 0,
                                   .notify_on_empty = (features_ & kNotifyOnEmpty) != 0};
  if ((features_ & kInOrder) != 0) held_.assign(size_, Held{});
  next_sequence_ = 0;
  next_in_order_ = 0;
  TRY(packed ? make_packed(located, ring_features, again)
             : make_split(located, ring_features, again));
  descriptors_for_log_ = located.descriptors;
  ring_memory_ = memory_;
  ring_in_memory_ = true;
  broken_ = false;
  running_ = true;
  if (!again && interrupted_)
    log::warn("queue {} begins anew: what was in flight when it stopped is dropped", index_);
  interrupted_.reset();
  put_off_ = 0;
  // Of what was given back last the log may not have heard.
  if (again) log_device_areas(packed);
  open_gate_if_serving();
  return {};
}

void Queue::log_device_areas(bool packed) {
  if ((features_ & kLogAll) == 0 || dirty_log_ == nullptr || !log_address()) return;
  if (packed) {
    log_device_area(0, sizeof(EventSuppression));
    dirty_log_->mark(descriptors_for_log_, sizeof(PackedDescriptor) * size_);
  } else {
    log_device_area(0, kUsedHeadBytes + sizeof(UsedElement) * size_ + sizeof(std::uint16_t));
  }
}

Result<> Queue::make_split(const Located& located, RingFeatures features, bool again) {
  if (!again) {
    const std::uint32_t base = base_.value_or(kFirstSplitBase);
    split_.emplace(located.split, size_, features, static_cast<std::uint16_t>(base));
    if (in_flight_log_) in_flight_log_->begin(size_, /*packed=*/false, base_now());
    return {};
  }
  const InFlight::Progress before = in_flight_log_->progress();
  split_.emplace(located.split, size_, features, static_cast<std::uint16_t>(before.base));
  const std::uint16_t given = split_->next_used();
  (void)in_flight_log_->settle(
      size_, [given](std::uint16_t used) { return given == static_cast<std::uint16_t>(used + 1); });
  (void)go_on_with_left_over(/*packed=*/false);
  return {};
}

Result<> Queue::make_packed(const Located& located, RingFeatures features, bool again) {
  std::uint32_t base = again ? in_flight_log_->progress().base : base_.value_or(kFirstPackedBase);
  // User Mode Linux says 0 for every new ring, though the counters of a packed one begin at 1.
  // A ring that really stopped at slot 0 before a round of 0 has the last round's mark there.
  if (!again && base == 0 &&
      !PackedRing::is_marked_used(load_relaxed(located.packed.descriptors->flags))) {
    base = kFirstPackedBase;
  }
  const auto available = PackedPosition::decode(static_cast<std::uint16_t>(base));
  auto used = PackedPosition::decode(static_cast<std::uint16_t>(base >> 16));
  if (available.slot >= size_ || used.slot >= size_) return Errno{EINVAL};
  if (!again) {
    packed_.emplace(located.packed, size_, features, available, used);
    if (in_flight_log_) in_flight_log_->begin(size_, /*packed=*/true, base_now());
    return {};
  }
  const auto is_given = [&located, size = size_](std::uint16_t position) {
    const auto at = PackedPosition::decode(position);
    return at.slot < size && PackedRing::is_given(located.packed, at);
  };
  const std::uint32_t given = in_flight_log_->settle(size_, is_given);
  if (given > size_) return Errno{EINVAL};
  used.advance(given, size_);
  in_flight_log_->go_on(available.encode() | static_cast<std::uint32_t>(used.encode()) << 16);
  const std::uint32_t slots = go_on_with_left_over(/*packed=*/true);
  packed_.emplace(located.packed, size_, features, available, used, slots);
  return {};
}

// How many ring slots are in flight from before.
std::uint32_t Queue::go_on_with_left_over(bool packed) {
  left_over_ = in_flight_log_->take_over(size_, packed);
  std::ranges::reverse(left_over_);  // taken from the end
  next_sequence_ = in_flight_log_->progress().number;
  next_in_order_ =
      left_over_.empty() ? next_sequence_ : in_flight_log_->number_of(left_over_.back());
  std::uint32_t slots = 0;
  for (const std::uint16_t cell : left_over_) slots += in_flight_log_->slots_of(cell);
  return slots;
}

std::uint32_t Queue::base_now() const {
  if (split_) return split_->next_available();
  return packed_->next_available().encode() |
         static_cast<std::uint32_t>(packed_->next_used().encode()) << 16;
}

Result<> Queue::set_base_again() {
  Lock lock(mutex_);
  if (running_) return Errno{EBUSY};
  base_ = in_flight_log_->progress().base;
  return {};
}

void Queue::await_left_over(std::chrono::steady_clock::time_point deadline) {
  Lock lock(mutex_);
  while (serving() && !left_over_.empty()) {
    if (!left_over_taken_.wait_until(mutex_, deadline)) return;
  }
}

bool Queue::await_in_flight(std::uint32_t most, std::chrono::steady_clock::time_point deadline) {
  Lock lock(mutex_);
  while (in_flight_ > most) {
    if (!drained_.wait_until(mutex_, deadline)) return in_flight_ <= most;
  }
  return true;
}

std::uint32_t Queue::stop() {
  std::shared_ptr<const GuestMemory> unused;  // unmapped after the lock
  Lock lock(mutex_);
  close_gate();
  running_ = false;
  while (in_flight_ != 0) drained_.wait(mutex_);
  if (split_ || packed_) {
    base_ = base_now();
    if (put_off_ != 0 || !left_over_.empty())
      interrupted_ = {.size = size_, .packed = packed_.has_value(), .base = *base_};
  }
  left_over_.clear();
  split_.reset();
  packed_.reset();
  held_.clear();
  unused.swap(ring_memory_);
  ring_in_memory_ = false;
  broken_ = false;
  return base_.value_or((features_ & kRingPacked) != 0 ? kFirstPackedBase : kFirstSplitBase);
}

void Queue::drop_put_off() {
  Lock lock(mutex_);
  interrupted_.reset();
}

bool Queue::has_put_off() const {
  Lock lock(mutex_);
  return interrupted_.has_value();
}

LeftOver Queue::put_off_requests() const {
  Lock lock(mutex_);
  if (!interrupted_) return {};
  return in_flight_log_->left_over(interrupted_->size, interrupted_->packed);
}

Result<> Queue::load_put_off(const LeftOver& left_over) {
  Lock lock(mutex_);
  if (running_) return Errno{EBUSY};
  if (!in_flight_log_) return Errno{EOPNOTSUPP};
  TRY(in_flight_log_->load(left_over));
  interrupted_ = {.size = left_over.size, .packed = left_over.packed, .base = left_over.base};
  return {};
}

void Queue::resume_put_off(std::uint32_t size, bool packed, std::uint32_t base) {
  Lock lock(mutex_);
  if (in_flight_log_) interrupted_ = {.size = size, .packed = packed, .base = base};
}

void Queue::reset() {
  stop();
  drop_put_off();
  std::shared_ptr<const UniqueFd> kick;  // closed and unmapped after the lock
  std::shared_ptr<const sys::Notifier> call;
  std::shared_ptr<const sys::Notifier> error;
  std::shared_ptr<const GuestMemory> memory;
  std::shared_ptr<DirtyLog> log;
  Lock lock(mutex_);
  kick.swap(kick_);
  call.swap(call_);
  error.swap(error_);
  memory.swap(memory_);
  log.swap(dirty_log_);
  size_ = 0;
  addresses_ = std::monostate{};
  base_.reset();
  features_ = 0;
  enabled_ = false;
  kick_set_ = false;
}

Result<bool> Queue::pop(ChainScratch& scratch, Chain& chain) {
  // A table this thread was the last to hold is unmapped after the lock.
  std::shared_ptr<const GuestMemory> old_memory;
  Result<bool> got = [&] {
    Lock lock(mutex_);
    return take(scratch, chain, old_memory);
  }();
  if (!got) fail(got.error());
  return got;
}

void Queue::push(const Chain& chain, std::uint32_t written) {
  Lock lock(mutex_);
  give_back(chain, written);
}

bool Queue::put_off() {
  Lock lock(mutex_);
  // In order, what came after it has been served and waits for it: that must not be served again.
  if (!in_flight_log_ || !held_.empty()) return false;
  CHECK(in_flight_ > 0);
  --in_flight_;
  ++put_off_;
  drained_.notify_all();
  return true;
}

Result<bool> Queue::push_and_pop(std::uint32_t written, ChainScratch& scratch, Chain& chain) {
  std::shared_ptr<const GuestMemory> old_memory;
  Result<bool> got = [&] {
    Lock lock(mutex_);
    give_back(chain, written);
    return take(scratch, chain, old_memory);
  }();
  if (!got) fail(got.error());
  return got;
}

Result<bool> Queue::take(ChainScratch& scratch, Chain& chain,
                         std::shared_ptr<const GuestMemory>& old_memory) {
  if (!serving()) return false;
  // Counting a reference costs more than the rest of this; tables rarely change.
  if (scratch.memory != memory_) old_memory = std::exchange(scratch.memory, memory_);
  // A driver that makes more available than it has slots lies about its ring.
  const bool full = in_flight_ + left_over_.size() >= size_;
  if (!left_over_.empty()) [[unlikely]] {
    TRY(take_again(scratch, chain));
    ++in_flight_;
    return true;
  }
  const std::uint16_t first = packed_ ? packed_->next_available().slot : std::uint16_t{0};
  Result<bool> got =
      split_ ? split_->pop(*memory_, scratch, chain) : packed_->pop(*memory_, scratch, chain);
  if (!got || !*got) return got;
  if (full) return Errno{EBADMSG};
  chain.sequence = next_sequence_++;
  chain.again = false;
  chain.deaths = 0;
  ++in_flight_;
  if (in_flight_log_) {
    if (split_) {
      in_flight_log_->taken_split(chain, split_->next_available());
    } else {
      in_flight_log_->taken_packed(chain, std::span{packed_->descriptors(), size_}, first,
                                   base_now());
    }
  }
  peek_position_.store(split_ ? split_->next_available() : packed_->next_available().encode(),
                       std::memory_order_relaxed);
  return true;
}

// Of what was in flight when the process before died, the next one.
Result<> Queue::take_again(ChainScratch& scratch, Chain& chain) {
  const std::uint16_t cell = left_over_.back();
  left_over_.pop_back();
  if (left_over_.empty()) left_over_taken_.notify_all();
  if (split_) {
    TRY(split_->take_again(cell, *memory_, scratch, chain));
  } else {
    in_flight_log_->copy_descriptors(cell, copied_);
    TRY(packed_->take_again(copied_, *memory_, scratch, chain));
  }
  chain.cell = cell;
  chain.again = true;
  chain.deaths = in_flight_log_->deaths_of(cell, blame_);
  chain.sequence = in_flight_log_->number_of(cell);
  chain.behind = static_cast<std::uint32_t>(left_over_.size());
  return {};
}

void Queue::give_back(const Chain& chain, std::uint32_t written) {
  CHECK(in_flight_ > 0);
  if ((features_ & kLogAll) != 0 && dirty_log_ != nullptr) log_writes(chain, written);
  const Held given{.done = true,
                   .id = chain.id,
                   .descriptor_count = chain.descriptor_count,
                   .cell = chain.cell,
                   .written = written};
  if (held_.empty()) {
    put(given);
  } else {
    held_[chain.sequence % held_.size()] = given;
    // Each gets an element of its own, though one may stand for a batch: the
    // length of every reply must reach the driver. (virtio 1.2, 2.7.9)
    for (;;) {
      Held& next = held_[next_in_order_ % held_.size()];
      if (!next.done) break;
      next.done = false;
      ++next_in_order_;
      put(next);
    }
  }
  unsignalled_.store(unsignalled() + 1, std::memory_order_relaxed);
  --in_flight_;
  if (!(running_ && enabled_)) drained_.notify_all();
}

void Queue::put(const Held& chain) {
  const std::uint16_t used = split_ ? split_->next_used() : packed_->next_used().encode();
  if (in_flight_log_) in_flight_log_->giving(chain.cell, used);
  if (split_) {
    split_->put(chain.id, chain.written);
    split_->publish();
    log_device_area(kUsedHeadBytes + used % size_ * sizeof(UsedElement), sizeof(UsedElement));
    log_device_area(0, kUsedHeadBytes);
  } else {
    packed_->put(chain.id, chain.descriptor_count, chain.written);
    // A packed ring gives back in the descriptor area, which has no log address of its own.
    if ((features_ & kLogAll) != 0 && dirty_log_ != nullptr && log_address()) {
      const std::uint64_t offset = PackedPosition::decode(used).slot * sizeof(PackedDescriptor);
      dirty_log_->mark(GuestAddress{descriptors_for_log_.value + offset}, sizeof(PackedDescriptor));
    }
  }
  if (!in_flight_log_) return;
  if (split_) {
    in_flight_log_->given_split(chain.cell);
  } else {
    in_flight_log_->given_packed(chain.cell, base_now());
  }
}

std::optional<GuestAddress> Queue::log_address() const {
  if (const auto* vmm = std::get_if<RingAddresses<VmmAddress>>(&addresses_)) return vmm->log;
  if (const auto* guest = std::get_if<RingAddresses<GuestAddress>>(&addresses_)) return guest->log;
  return std::nullopt;
}

void Queue::log_writes(const Chain& chain, std::uint32_t written) {
  std::uint32_t left = written;
  for (const GuestRange& range : chain.writable_ranges) {
    const std::uint32_t part = std::min(left, range.size);
    dirty_log_->mark(range.start, part);
    left -= part;
    if (left == 0) break;
  }
}

void Queue::log_device_area(std::uint64_t offset, std::uint64_t size) {
  if ((features_ & kLogAll) == 0 || dirty_log_ == nullptr) return;
  if (const auto log = log_address()) dirty_log_->mark(GuestAddress{log->value + offset}, size);
}

void Queue::signal() {
  std::shared_ptr<const sys::Notifier> call;
  {
    Lock lock(mutex_);
    unsignalled_.store(0, std::memory_order_relaxed);
    const bool idle = in_flight_ == 0 && left_over_.empty();
    const bool wanted = split_ ? split_->take_signal(idle) : packed_ && packed_->take_signal(idle);
    if (!wanted) return;
    call = call_;
  }
  if (call != nullptr) call->notify();
}

void Queue::suppress_kicks() {
  Lock lock(mutex_);
  if (!serving()) return;
  if (split_) {
    split_->suppress_kicks();
    log_device_area(0, kUsedHeadBytes);
    log_device_area(kUsedHeadBytes + sizeof(UsedElement) * size_, sizeof(std::uint16_t));
  } else {
    packed_->suppress_kicks();
    log_device_area(0, sizeof(EventSuppression));
  }
}

bool Queue::enable_kicks() {
  Lock lock(mutex_);
  if (!serving()) return false;
  if (split_) {
    const bool more = split_->enable_kicks();
    log_device_area(0, kUsedHeadBytes);
    log_device_area(kUsedHeadBytes + sizeof(UsedElement) * size_, sizeof(std::uint16_t));
    return more;
  }
  const bool more = packed_->enable_kicks();
  log_device_area(0, sizeof(EventSuppression));
  return more;
}

bool Queue::has_available() const {
  // Sequentially consistent with close_gate: either it sees us inside, or we
  // see the gate closed.
  peekers_.fetch_add(1, std::memory_order_seq_cst);
  bool available = false;
  if (peekable_.load(std::memory_order_seq_cst)) {
    const auto position =
        static_cast<std::uint16_t>(peek_position_.load(std::memory_order_relaxed));
    if (peek_index_ != nullptr) {
      available = load_relaxed(*peek_index_) != position;
    } else {
      const auto at = PackedPosition::decode(position);
      available = PackedRing::is_available(load_relaxed(peek_descriptors_[at.slot].flags), at.wrap);
    }
  }
  peekers_.fetch_sub(1, std::memory_order_release);
  return available;
}

void Queue::close_gate() {
  peekable_.store(false, std::memory_order_seq_cst);
  // A peeker stays for a handful of instructions.
  while (peekers_.load(std::memory_order_seq_cst) != 0) ::sched_yield();
}

void Queue::open_gate_if_serving() {
  if (!serving()) return;
  peek_index_ = split_ ? split_->available_index() : nullptr;
  peek_descriptors_ = packed_ ? packed_->descriptors() : nullptr;
  peek_position_.store(split_ ? split_->next_available() : packed_->next_available().encode(),
                       std::memory_order_relaxed);
  peekable_.store(true, std::memory_order_release);
}

std::shared_ptr<const UniqueFd> Queue::kick() const {
  Lock lock(mutex_);
  return kick_;
}

void Queue::fail(Errno error) {
  std::shared_ptr<const sys::Notifier> notifier;
  {
    Lock lock(mutex_);
    if (broken_ || !running_) return;
    close_gate();
    broken_ = true;
    left_over_taken_.notify_all();  // nobody will
    notifier = error_;
  }
  // A driver may do this again and again; the log is not its to fill.
  constexpr std::uint32_t kLoudFailures = 5;
  const std::uint32_t before = failures_.fetch_add(1, std::memory_order_relaxed);
  if (before < kLoudFailures) {
    log::error("queue {}: its ring can't be served: {}; stopped until the driver resets it{}",
               index_, error.text(),
               before + 1 == kLoudFailures ? " (the next times are logged at debug level)" : "");
  } else {
    log::debug("queue {}: its ring can't be served: {}", index_, error.text());
  }
  if (notifier != nullptr) notifier->notify();
}

std::uint32_t Queue::in_flight() const {
  Lock lock(mutex_);
  return in_flight_;
}

}  // namespace virtiofsd::virtio
