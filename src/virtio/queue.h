// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One virtqueue as a monitor: a ring, the memory it works on, the descriptors
// around it and the count of what is in flight, under one mutex.
//
// The session thread configures, starts and stops it; any number of crew
// threads pop, push and signal. No system call is made under the mutex. What
// is always true:
//  - pop yields nothing unless the queue is started, enabled, not broken and
//    its ring lies in the current memory;
//  - stop returns when every chain that was popped has been pushed or put off;
//  - a ring that breaks the rules breaks its queue (error descriptor, one log
//    line) until reset or stop, and nothing else.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "base/sync.h"
#include "memory/dirty_log.h"
#include "memory/guest_memory.h"
#include "sys/events.h"
#include "sys/fd.h"
#include "virtio/chain.h"
#include "virtio/in_flight.h"
#include "virtio/packed_ring.h"
#include "virtio/split_ring.h"

namespace virtiofsd::virtio {

// Virtio feature bits a queue acts on.
inline constexpr std::uint64_t kNotifyOnEmpty = 1ULL << 24;
inline constexpr std::uint64_t kLogAll = 1ULL << 26;  // vhost: mark what we write
inline constexpr std::uint64_t kIndirectDescriptors = 1ULL << 28;
inline constexpr std::uint64_t kEventIndex = 1ULL << 29;
inline constexpr std::uint64_t kRingPacked = 1ULL << 34;
inline constexpr std::uint64_t kInOrder = 1ULL << 35;

// Where a ring is: VmmAddress as a rule, GuestAddress with GPA_ADDRESSES.
template <typename Address>
struct RingAddresses {
  Address descriptors;
  Address driver;                   // split: available area; packed: driver event suppression
  Address device;                   // split: used area; packed: device event suppression
  std::optional<GuestAddress> log;  // where the device area is for the dirty log, if to be logged

  friend bool operator==(const RingAddresses&, const RingAddresses&) = default;
};

class Queue {
 public:
  static constexpr std::uint32_t kMostSlots = 32768;

  // `index` is for log lines only. `record`: where what is in flight is kept for a successor, as
  // InFlight wants it; empty: nowhere.
  explicit Queue(std::uint32_t index, std::span<std::byte> record = {}) : index_(index) {
    if (!record.empty()) in_flight_log_.emplace(record);
  }
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Control: one thread (the session's). EBUSY: not while the queue runs.

  // 1 to 32768, else EINVAL; for a split ring also a power of two, which start checks.
  Result<> set_size(std::uint32_t size);
  // While it runs only `log` may differ, else EBUSY. EINVAL: misaligned.
  Result<> set_addresses(const RingAddresses<VmmAddress>& addresses);
  Result<> set_addresses(const RingAddresses<GuestAddress>& addresses);
  // As in SET_VRING_BASE. Split: the next available index (it may lag behind
  // used, for a replay). Packed: available slot and wrap bit, and the used ones
  // in the upper half. Without it a ring begins at the beginning.
  Result<> set_base(std::uint32_t base);
  // An invalid descriptor means that the driver wants to be polled.
  void set_kick(UniqueFd fd);
  // EBADF for a number that is open nowhere. An invalid UniqueFd means none.
  Result<> set_call(UniqueFd fd);
  Result<> set_error(UniqueFd fd);
  // The virtio features the driver accepted. While it runs only the log bit acts.
  void set_features(std::uint64_t features);
  std::uint64_t features() const;
  void set_enabled(bool enabled);
  // New chains use the new table; those in flight keep theirs. A running ring
  // that is nowhere in it pauses until a table has it again.
  void set_memory(std::shared_ptr<const GuestMemory> memory);
  void set_dirty_log(std::shared_ptr<DirtyLog> log);

  // All is there to start: size, addresses, memory, kick; enabled; not broken.
  bool ready() const;
  bool running() const;
  bool broken() const;
  // From now on pop yields chains. EINVAL: the settings contradict each other
  // or are missing; EFAULT: the ring is not in memory. Starting twice is one start.
  Result<> start();
  // start for a successor: goes on where the record says that the ring was, and pop yields first
  // what was in flight. The driver is told once, for the predecessor may not have. `blame`: that
  // one died of what it did, so one of those requests may be why. How many they are.
  Result<std::size_t> start_again(bool blame);
  // Where start_again would go on: the base until it can.
  Result<> set_base_again();
  // Waits until all that was in flight before has been taken again, or `deadline` passes.
  void await_left_over(std::chrono::steady_clock::time_point deadline);
  // While it is disabled: waits until no more than `most` are in flight. False when `deadline`
  // passes before.
  bool await_in_flight(std::uint32_t most, std::chrono::steady_clock::time_point deadline);
  // From now on pop yields nothing. Waits until nothing is in flight but what was put off. Returns
  // the base, as in GET_VRING_BASE; a start without set_base goes on there, and one there or with
  // the same base yields first what was put off.
  std::uint32_t stop();
  // Nobody waits for what was put off: the driver begins anew.
  void drop_put_off();
  // What was put off in a queue that is stopped, for another host; and there, before it starts.
  LeftOver put_off_requests() const;
  // EINVAL when that makes no sense.
  Result<> load_put_off(const LeftOver& left_over);
  bool has_put_off() const;
  // Stopped by a process that died, with requests put off.
  void resume_put_off(std::uint32_t size, bool packed, std::uint32_t base);
  // stop, and forget everything that was set.
  void reset();

  // Serving: crew threads.

  // True: got one, to be pushed once. False: nothing is available. EBADMSG: the
  // ring was malformed; the queue is broken now and everyone has been told.
  Result<bool> pop(ChainScratch& scratch, Chain& chain) EXCLUDES(mutex_);
  // Gives a chain back with the number of bytes written to its writable side.
  // The driver can see it when this returns, with IN_ORDER when its turn has
  // come. Chains may come back in any order.
  void push(const Chain& chain, std::uint32_t written) EXCLUDES(mutex_);
  // Instead of a push, while the queue stops: the chain stays in flight for the next start. False
  // where nothing keeps what is in flight, and with IN_ORDER.
  [[nodiscard]] bool put_off() EXCLUDES(mutex_);
  // push, then pop into the same chain, with the lock taken once.
  Result<bool> push_and_pop(std::uint32_t written, ChainScratch& scratch, Chain& chain)
      EXCLUDES(mutex_);
  // One notification at most for everything pushed since the last call, and
  // none if the driver wants none. One system call or none.
  void signal() EXCLUDES(mutex_);
  // Chains given back since the last signal, by anyone. Takes no lock: a moment later it's another.
  std::uint32_t unsignalled() const { return unsignalled_.load(std::memory_order_relaxed); }
  // Asks the driver not to kick while we look at the ring anyway.
  void suppress_kicks() EXCLUDES(mutex_);
  // Asks for kicks again. True when something became available meanwhile: look
  // before you sleep.
  bool enable_kicks() EXCLUDES(mutex_);
  // Whether pop would probably yield something. Takes no lock, never waits.
  bool has_available() const;
  // What to wait on; null when the driver is to be polled. Hold it while you
  // wait: set_kick may replace it meanwhile.
  std::shared_ptr<const UniqueFd> kick() const EXCLUDES(mutex_);
  // Breaks the queue: no more chains, the error descriptor signalled, one log line.
  void fail(Errno error) EXCLUDES(mutex_);
  std::uint32_t in_flight() const EXCLUDES(mutex_);

 private:
  using Addresses =
      std::variant<std::monostate, RingAddresses<VmmAddress>, RingAddresses<GuestAddress>>;

  // IN_ORDER: a chain that came back and waits for those before it.
  struct Held {
    bool done = false;
    std::uint16_t id = 0;
    std::uint16_t descriptor_count = 0;
    std::uint16_t cell = 0;
    std::uint32_t written = 0;
  };

  // Where the two rings' areas are in the current memory.
  struct Located {
    SplitRing::Memory split;
    PackedRing::Memory packed;
    GuestAddress descriptors;  // for the dirty log of a packed ring
  };

  template <typename Address>
  Result<> accept_addresses(const RingAddresses<Address>& addresses) REQUIRES(mutex_);
  template <typename Address>
  Result<Located> locate(const RingAddresses<Address>& addresses) const REQUIRES(mutex_);
  Result<Located> locate() const REQUIRES(mutex_);
  std::optional<GuestAddress> log_address() const REQUIRES(mutex_);

  bool serving() const REQUIRES(mutex_) {
    return running_ && enabled_ && !broken_ && ring_in_memory_;
  }
  // has_available may look at the ring only while the gate is open.
  void close_gate() REQUIRES(mutex_);
  void open_gate_if_serving() REQUIRES(mutex_);

  Result<> make_split(const Located& located, RingFeatures features, bool again) REQUIRES(mutex_);
  Result<> make_packed(const Located& located, RingFeatures features, bool again) REQUIRES(mutex_);
  Result<> start(bool again);
  std::uint32_t go_on_with_left_over(bool packed) REQUIRES(mutex_);
  std::uint32_t base_now() const REQUIRES(mutex_);
  Result<> take_again(ChainScratch& scratch, Chain& chain) REQUIRES(mutex_);
  Result<bool> take(ChainScratch& scratch, Chain& chain,
                    std::shared_ptr<const GuestMemory>& old_memory) REQUIRES(mutex_);
  void give_back(const Chain& chain, std::uint32_t written) REQUIRES(mutex_);
  void put(const Held& chain) REQUIRES(mutex_);
  void log_writes(const Chain& chain, std::uint32_t written) REQUIRES(mutex_);
  void log_device_area(std::uint64_t offset, std::uint64_t size) REQUIRES(mutex_);
  void log_device_areas(bool packed) REQUIRES(mutex_);

  const std::uint32_t index_;

  mutable Mutex mutex_;
  Condition drained_;          // running_ or enabled_ is false, and in_flight_ less
  Condition left_over_taken_;  // left_over_ is empty

  std::uint32_t size_ GUARDED_BY(mutex_) = 0;
  Addresses addresses_ GUARDED_BY(mutex_);
  std::optional<std::uint32_t> base_ GUARDED_BY(mutex_);
  std::uint64_t features_ GUARDED_BY(mutex_) = 0;
  bool enabled_ GUARDED_BY(mutex_) = false;
  bool kick_set_ GUARDED_BY(mutex_) = false;
  std::shared_ptr<const UniqueFd> kick_ GUARDED_BY(mutex_);
  std::shared_ptr<const sys::Notifier> call_ GUARDED_BY(mutex_);
  std::shared_ptr<const sys::Notifier> error_ GUARDED_BY(mutex_);
  std::shared_ptr<const GuestMemory> memory_ GUARDED_BY(mutex_);
  std::shared_ptr<DirtyLog> dirty_log_ GUARDED_BY(mutex_);

  bool running_ GUARDED_BY(mutex_) = false;
  bool broken_ GUARDED_BY(mutex_) = false;
  std::atomic<std::uint32_t> failures_{0};  // so often it broke
  // While running exactly one of the two is there; it works on ring_memory_,
  // an older table than memory_ while the ring is not in that one.
  std::optional<SplitRing> split_ GUARDED_BY(mutex_);
  std::optional<PackedRing> packed_ GUARDED_BY(mutex_);
  std::shared_ptr<const GuestMemory> ring_memory_ GUARDED_BY(mutex_);
  bool ring_in_memory_ GUARDED_BY(mutex_) = false;
  GuestAddress descriptors_for_log_ GUARDED_BY(mutex_);

  std::uint32_t in_flight_ GUARDED_BY(mutex_) = 0;
  std::uint32_t next_sequence_ GUARDED_BY(mutex_) = 0;
  std::uint32_t next_in_order_ GUARDED_BY(mutex_) = 0;
  std::vector<Held> held_ GUARDED_BY(mutex_);  // IN_ORDER: a slot per chain in flight
  std::optional<InFlight> in_flight_log_ GUARDED_BY(mutex_);
  // Cells in flight from before, the first to be served last.
  std::vector<std::uint16_t> left_over_ GUARDED_BY(mutex_);
  std::uint32_t put_off_ GUARDED_BY(mutex_) = 0;  // since the last start
  // Stopped with requests in flight, in a ring like this: what is there goes on in such a one.
  struct Interrupted {
    std::uint32_t size = 0;
    bool packed = false;
    std::uint32_t base = 0;
    friend bool operator==(const Interrupted&, const Interrupted&) = default;
  };
  std::optional<Interrupted> interrupted_ GUARDED_BY(mutex_);
  bool blame_ GUARDED_BY(mutex_) = false;
  std::vector<PackedDescriptor> copied_ GUARDED_BY(mutex_);  // of the one being taken again

  std::atomic<std::uint32_t> unsignalled_{0};  // changes under the lock only

  // The gate. A peeker counts itself in, then looks whether it is open; whoever
  // closes it waits until nobody is inside. What is behind it changes only while
  // it is closed, but for peek_position_, which moves with every pop.
  mutable std::atomic<std::uint32_t> peekers_{0};
  std::atomic<bool> peekable_{false};
  std::atomic<std::uint32_t> peek_position_{0};
  const std::uint16_t* peek_index_ = nullptr;
  const PackedDescriptor* peek_descriptors_ = nullptr;
};

}  // namespace virtiofsd::virtio
