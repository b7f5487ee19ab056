// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "base/log.h"
#include "state/stream.h"
#include "sys/files.h"
#include "sys/process.h"
#include "vhost_user/message.h"

namespace virtiofsd {
namespace {

constexpr std::uint64_t kVersion1 = 1ULL << 32;
constexpr std::uint64_t kRingReset = 1ULL << 40;

// What a request for a lock takes of a ring without indirect tables (Linux:
// header, arguments, reply header), and one more: if as many wait as there is
// room for so many, a quarter of the ring is still there for other requests.
constexpr std::uint32_t kDescriptorsOfLock = 4;

// Longer gains little: about twenty requests that create files come meanwhile.
constexpr auto kHighPriorityNap = std::chrono::microseconds(500);

// struct virtio_fs_config (virtio 1.2, 5.11.4).
struct Config {
  std::array<char, 36> tag;
  std::uint32_t num_request_queues;
};
static_assert(sizeof(Config) == 40);

Result<MappedRegion> map(vhost_user::MemoryRegion region) {
  return map_region(region.file, region.mmap_offset, region.guest, region.vmm, region.size);
}

constexpr std::uint8_t kVmmAddresses = 1;
constexpr std::uint8_t kGuestAddresses = 2;

void note_base(std::uint32_t base, SessionRecord::Ring& ring) {
  ring.base = base;
  ring.has_base = 1;
}

template <typename Address>
void note_addresses(const virtio::RingAddresses<Address>& from, SessionRecord::Ring& ring) {
  ring.descriptors = from.descriptors.value;
  ring.driver = from.driver.value;
  ring.device = from.device.value;
  ring.log = from.log ? from.log->value : 0;
  ring.is_logged = from.log ? 1 : 0;
  ring.addresses = std::is_same_v<Address, VmmAddress> ? kVmmAddresses : kGuestAddresses;
}

template <typename Address>
virtio::RingAddresses<Address> noted_addresses(const SessionRecord::Ring& ring) {
  virtio::RingAddresses<Address> to{.descriptors = Address{ring.descriptors},
                                    .driver = Address{ring.driver},
                                    .device = Address{ring.device},
                                    .log = {}};
  if (ring.is_logged != 0) to.log = GuestAddress{ring.log};
  return to;
}

// None for none.
Result<UniqueFd> duplicate(std::int32_t fd) {
  if (fd < 0) return UniqueFd{};
  return sys::duplicate(FdRef{fd});
}

template <typename Address>
virtio::RingAddresses<Address> ring_addresses(const vhost_user::RingAddresses<Address>& from) {
  return {from.descriptors, from.available, from.used, from.log};
}

}  // namespace

Device::Device(fuse::FileSystem& file_system, fuse::Dispatcher& dispatcher, Settings settings)
    : file_system_(file_system),
      dispatcher_(dispatcher),
      settings_(std::move(settings)),
      journal_(settings_.arena.get()) {
  static_assert(kRequestQueues + 1 == SessionRecord::kRings);
  for (std::uint32_t index = 0; index <= kRequestQueues; ++index) {
    rings_.push_back(std::make_unique<Ring>(index, journal_.ring_bytes(index)));
  }
}

Device::~Device() {
  shut_down();
}

void Device::shut_down() {
  transfer_.reset();
  for (std::uint32_t index = 0; index < rings_.size(); ++index) stop(index);
  dispatcher_.reset();
}

std::uint64_t Device::features() const {
  // In order, a request that waits holds back every later one: only where it was asked for.
  const std::uint64_t in_order = settings_.in_order ? virtio::kInOrder : 0;
  return kVersion1 | kRingReset | virtio::kNotifyOnEmpty | virtio::kLogAll |
         virtio::kIndirectDescriptors | virtio::kEventIndex | virtio::kRingPacked | in_order;
}

Result<> Device::set_features(std::uint64_t features) {
  for (std::uint32_t index = 0; index < rings_.size(); ++index) {
    virtio::Queue& queue = rings_[index]->queue;
    queue.set_features(features);
    journal_.ring(index).features = queue.features();
  }
  return {};
}

std::uint64_t Device::protocol_features() const {
  using enum vhost_user::ProtocolFeature;
  std::uint64_t offered = bit(kMq) | bit(kLogShmfd) | bit(kBackendReq) | bit(kBackendSendFd) |
                          bit(kResetDevice) | bit(kConfigureMemSlots) | bit(kStatus) |
                          bit(kDeviceState);
  // QEMU 7.1 to 8.0 crash when a vhost-user-fs back-end offers CONFIG.
  if (settings_.tag) offered |= bit(kConfig);
  return offered;
}

Result<> Device::set_protocol_features(std::uint64_t) {
  return {};
}

std::uint32_t Device::queue_count() const {
  return static_cast<std::uint32_t>(rings_.size());
}

void Device::reset_owner() {
  for (std::uint32_t index = 0; index < rings_.size(); ++index) {
    stop(index);
    rings_[index]->queue.set_enabled(false);
    journal_.ring(index).enabled = 0;
  }
}

Result<> Device::reset_device() {
  transfer_.reset();
  reset_owner();
  for (std::uint32_t index = 0; index < rings_.size(); ++index) {
    rings_[index]->kicked = false;
    journal_.ring(index).kicked = 0;
  }
  drop_put_off();
  note_let_go(false);
  dispatcher_.reset();
  keep_status(0);
  return {};
}

void Device::use_memory(std::shared_ptr<const GuestMemory> memory) {
  memory_ = std::move(memory);
  for (const auto& ring : rings_) {
    ring->queue.set_memory(memory_);
    // A ring that was nowhere in memory missed the kicks meanwhile, and may
    // have asked for none before.
    if (ring->crew) ring->crew->nudge();
  }
  // The memory is fine even where a ring that lies outside it is not.
  for (std::uint32_t index = 0; index < rings_.size(); ++index) (void)start_if_ready(index);
}

Result<> Device::set_mem_table(std::vector<vhost_user::MemoryRegion> regions) {
  std::vector<MappedRegion> mapped;
  DeviceJournal::Regions kept;
  for (vhost_user::MemoryRegion& region : regions) {
    TRY(kept.add(region));
    mapped.push_back(TRY(map(std::move(region))));
  }
  use_memory(TRY(GuestMemory::make(std::move(mapped))));
  journal_.set_regions(std::move(kept));
  return {};
}

Result<> Device::add_mem_region(vhost_user::MemoryRegion region) {
  if (memory_ && memory_->region_count() >= max_mem_slots()) return Errno{ENOSPC};
  DeviceJournal::Regions kept;
  TRY(kept.add(region));
  MappedRegion mapped = TRY(map(std::move(region)));
  if (memory_) {
    use_memory(TRY(memory_->with_added(std::move(mapped))));
  } else {
    std::vector<MappedRegion> first;
    first.push_back(std::move(mapped));
    use_memory(TRY(GuestMemory::make(std::move(first))));
  }
  journal_.add_regions(std::move(kept));
  return {};
}

Result<> Device::remove_mem_region(const vhost_user::MemoryRegion& region) {
  if (!memory_) return Errno{ENOENT};
  use_memory(TRY(memory_->with_removed(region.guest, region.vmm, region.size)));
  journal_.remove_region(region);
  return {};
}

// A ring's settings change while it is stopped, and it goes on after if it was running.
template <typename Change>
Result<> Device::change_stopped(std::uint32_t index, Change change) {
  Ring& ring = *rings_[index];
  const bool was_running = ring.crew && ring.crew->running();
  if (was_running) stop(index);
  const Result<> changed = change(ring.queue);
  const Result<> restarted = was_running ? start_if_ready(index) : Result<>{};
  return changed ? restarted : changed;
}

Result<> Device::set_vring_size(std::uint32_t index, std::uint32_t size) {
  return change_stopped(index, [&](virtio::Queue& queue) -> Result<> {
    TRY(queue.set_size(size));
    journal_.ring(index).size = size;
    Ring& ring = *rings_[index];
    if (size != ring.size) ring.crew.reset();
    ring.size = size;
    return {};
  });
}

// Comes again while the ring runs to switch its log flag, which must not disturb it.
template <typename Address>
Result<> Device::set_addresses(std::uint32_t index,
                               const vhost_user::RingAddresses<Address>& addresses) {
  const auto change = [&](virtio::Queue& queue) -> Result<> {
    const auto to = ring_addresses(addresses);
    TRY(queue.set_addresses(to));
    note_addresses(to, journal_.ring(index));
    return {};
  };
  const Result<> set = change(rings_[index]->queue);
  if (set || set.error() != Errno{EBUSY}) return set;
  return change_stopped(index, change);
}

Result<> Device::set_vring_addresses(std::uint32_t index,
                                     const vhost_user::RingAddresses<VmmAddress>& addresses) {
  return set_addresses(index, addresses);
}

Result<> Device::set_vring_addresses(std::uint32_t index,
                                     const vhost_user::RingAddresses<GuestAddress>& addresses) {
  return set_addresses(index, addresses);
}

Result<> Device::set_vring_base(std::uint32_t index, std::uint32_t base) {
  return change_stopped(index, [&](virtio::Queue& queue) -> Result<> {
    TRY(queue.set_base(base));
    note_base(base, journal_.ring(index));
    return {};
  });
}

Result<std::uint32_t> Device::get_vring_base(std::uint32_t index) {
  Ring& ring = *rings_[index];
  stop(index);
  // The ring is stopped until the next kick descriptor comes.
  ring.kicked = false;
  journal_.ring(index).kicked = 0;
  return ring.queue.stop();
}

Result<> Device::set_vring_kick(std::uint32_t index, std::optional<UniqueFd> kick) {
  Ring& ring = *rings_[index];
  stop(index);
  SessionRecord::Ring& kept = journal_.ring(index);
  journal_.keep(kept.kick, kick ? kick->ref() : FdRef{});
  kept.has_kick = 1;
  kept.kicked = 1;
  ring.queue.set_kick(kick ? std::move(*kick) : UniqueFd{});
  ring.kicked = true;
  return start_if_ready(index);
}

Result<> Device::set_vring_call(std::uint32_t index, std::optional<UniqueFd> call) {
  journal_.keep(journal_.ring(index).call, call ? call->ref() : FdRef{});
  return rings_[index]->queue.set_call(call ? std::move(*call) : UniqueFd{});
}

Result<> Device::set_vring_error(std::uint32_t index, std::optional<UniqueFd> error) {
  journal_.keep(journal_.ring(index).error, error ? error->ref() : FdRef{});
  return rings_[index]->queue.set_error(error ? std::move(*error) : UniqueFd{});
}

Result<> Device::set_vring_enable(std::uint32_t index, bool enabled) {
  if (!enabled) stop(index);
  rings_[index]->queue.set_enabled(enabled);
  journal_.ring(index).enabled = enabled ? 1 : 0;
  return start_if_ready(index);
}

void Device::make_crew(std::uint32_t index) {
  Ring& ring = *rings_[index];
  if (ring.crew) return;
  Crew::Settings settings;
  settings.index = index;
  settings.pool_size = settings_.pool_size;
  settings.lock_waiters = std::min(settings_.lock_waiters, ring.size / kDescriptorsOfLock);
  // Nobody waits for what comes through the high-priority queue.
  if (index == 0) {
    settings.nap = kHighPriorityNap;
  } else {
    settings.poll = settings_.poll;
  }
  settings.prepare_thread = settings_.prepare_thread;
  ring.crew = std::make_unique<Crew>(ring.queue, dispatcher_, file_system_, watchdog_, processors_,
                                     settings);
}

Result<> Device::start_if_ready(std::uint32_t index) {
  Ring& ring = *rings_[index];
  if (!ring.kicked || !ring.queue.ready()) return {};
  make_crew(index);
  if (ring.crew->running()) return {};
  // While the file system is being sent or had, nobody may use it.
  if (transfer_) transfer_.reset();
  if (has_let_go_) {
    note_let_go(false);
    file_system_.take_locks_again();
  }
  Result<> started;
  if (ring.again) {
    const auto again = ring.crew->start_again(blame_);
    if (!again) started = again.error();
  } else {
    started = ring.crew->start();
  }
  if (started) {
    ring.again = false;
    journal_.ring(index).started = SessionRecord::Ring::kStarted;
  }
  if (!started) {
    constexpr std::uint32_t kLoudFailures = 20;
    if (++failed_starts_ <= kLoudFailures) {
      log::warn(
          "queue {} can't start: {}; the VMM's ring settings are wrong{}", index,
          started.error().text(),
          failed_starts_ == kLoudFailures ? " (the next times are logged at debug level)" : "");
    } else {
      log::debug("queue {} can't start: {}", index, started.error().text());
    }
  }
  return started;
}

void Device::note_stopped(std::uint32_t index) {
  virtio::Queue& queue = rings_[index]->queue;
  SessionRecord::Ring& kept = journal_.ring(index);
  note_base(queue.stop(), kept);
  kept.started = queue.has_put_off() ? SessionRecord::Ring::kInterrupted : 0;
  kept.packed = (queue.features() & virtio::kRingPacked) != 0 ? 1 : 0;
}

void Device::stop(std::uint32_t index) {
  Ring& ring = *rings_[index];
  if (ring.crew && ring.crew->running()) {
    ring.crew->stop();
    note_stopped(index);
  }
  // It ran when a process died, and what was in flight then is so still.
  if (std::exchange(ring.again, false)) {
    const bool packed = (ring.queue.features() & virtio::kRingPacked) != 0;
    ring.queue.resume_put_off(ring.size, packed, ring.queue.stop());
    note_stopped(index);
  }
}

Result<> Device::get_config(std::uint32_t offset, std::span<std::byte> out) {
  Config config{};
  if (settings_.tag) std::memcpy(config.tag.data(), settings_.tag->data(), settings_.tag->size());
  config.num_request_queues = settings_.num_request_queues;
  const auto bytes = std::as_bytes(std::span{&config, 1});
  if (offset >= bytes.size()) return {};
  const auto from = bytes.subspan(offset);
  std::copy_n(from.begin(), std::min(from.size(), out.size()), out.begin());
  return {};
}

Result<> Device::set_log_base(std::uint64_t size, std::uint64_t offset, UniqueFd file) {
  const std::shared_ptr<DirtyLog> log = TRY(DirtyLog::map(file, offset, size));
  for (const auto& ring : rings_) ring->queue.set_dirty_log(log);
  if (SessionRecord* record = journal_.record()) {
    record->log_size = size;
    record->log_offset = offset;
    journal_.keep(record->log_file, file);
  }
  return {};
}

Result<> Device::set_backend_request_fd(UniqueFd socket) {
  backend_requests_ = std::move(socket);
  if (SessionRecord* record = journal_.record())
    journal_.keep(record->backend_requests, backend_requests_);
  return {};
}

Result<> Device::set_status(std::uint64_t status) {
  if (status == 0) TRY(reset_device());
  keep_status(status);
  return {};
}

// ---- another host ---------------------------------------------------------------

bool Device::runs() const {
  return std::ranges::any_of(rings_,
                             [](const auto& ring) { return ring->crew && ring->crew->running(); });
}

std::vector<SavedQueue> Device::put_off_requests() const {
  std::vector<SavedQueue> queues;
  for (std::uint32_t index = 0; index < rings_.size(); ++index) {
    const virtio::Queue& queue = rings_[index]->queue;
    if (queue.has_put_off()) queues.push_back({index, queue.put_off_requests()});
  }
  return queues;
}

Result<> Device::go_on_with(const std::vector<SavedQueue>& queues) {
  drop_put_off();
  for (const SavedQueue& saved : queues) {
    if (saved.index >= rings_.size()) return Errno{EINVAL};
    TRY(rings_[saved.index]->queue.load_put_off(saved.requests));
    SessionRecord::Ring& kept = journal_.ring(saved.index);
    kept.started = SessionRecord::Ring::kInterrupted;
    kept.size = saved.requests.size;
    kept.packed = saved.requests.packed ? 1 : 0;
    note_base(saved.requests.base, kept);
  }
  return {};
}

void Device::note_let_go(bool has_let_go) {
  has_let_go_ = has_let_go;
  if (SessionRecord* record = journal_.record()) record->has_let_go = has_let_go ? 1 : 0;
}

void Device::drop_put_off() {
  for (std::uint32_t index = 0; index < rings_.size(); ++index) {
    rings_[index]->queue.drop_put_off();
    SessionRecord::Ring& kept = journal_.ring(index);
    if (kept.started == SessionRecord::Ring::kInterrupted) kept.started = 0;
  }
}

Result<std::optional<UniqueFd>> Device::set_device_state_fd(vhost_user::TransferDirection direction,
                                                            UniqueFd channel) {
  transfer_.reset();
  if (runs()) {
    log::warn("the VMM wants to move the file system's state while queues run: not done");
    return Errno{EBUSY};
  }
  const auto prepare = [this] {
    sys::name_this_thread("state");
    file_system_.thread_started();
    if (settings_.prepare_thread) settings_.prepare_thread();
  };
  saves_ = direction == vhost_user::TransferDirection::kSave;
  loaded_.clear();
  const auto save = [this](FdRef channel_to, FdRef cancelled) -> Result<void, Failure> {
    FrameWriter to{channel_to, cancelled};
    TRY(save_queues(to, put_off_requests()));
    return dispatcher_.save(to);
  };
  const auto load = [this](FdRef channel_from, FdRef cancelled) -> Result<void, Failure> {
    FrameReader from{channel_from, cancelled};
    dispatcher_.reset();
    loaded_ = TRY(load_queues(from));
    return dispatcher_.load(from);
  };
  transfer_ = TRY(saves_ ? StateTransfer::begin(std::move(channel), prepare, save)
                         : StateTransfer::begin(std::move(channel), prepare, load));
  return std::optional<UniqueFd>{};
}

Result<> Device::check_device_state() {
  if (!transfer_) return Errno{EINVAL};
  const std::unique_ptr<StateTransfer> ended = std::move(transfer_);
  const auto outcome = ended->wait();
  if (saves_) {
    if (!outcome) return Errno{EIO};
    note_let_go(true);
    file_system_.let_go_of_locks();
    return {};
  }
  if (!outcome) {
    drop_put_off();
    return Errno{EIO};
  }
  if (const Result<> goes_on = go_on_with(loaded_); !goes_on) {
    log::error("migration failed: what is in flight makes no sense");
    drop_put_off();
    dispatcher_.reset();
    return goes_on;
  }
  return {};
}

void Device::keep_status(std::uint64_t status) {
  status_ = status;
  if (SessionRecord* record = journal_.record()) record->status = status;
}

// ---- succession ---------------------------------------------------------------

Result<void, Failure> Device::prepare_to_take_over() {
  SessionRecord& record = *journal_.record();
  status_ = record.status;
  auto backend_requests = duplicate(record.backend_requests);
  if (!backend_requests)
    return Failure{"can't keep the channel for requests of ours", backend_requests.error()};
  backend_requests_ = std::move(*backend_requests);
  if (const Result<> mapped = resume_memory(); !mapped)
    return Failure{"can't map the guest's memory again", mapped.error()};
  if (record.log_file >= 0) {
    auto again = DirtyLog::map(FdRef{record.log_file}, record.log_offset, record.log_size);
    if (!again) return Failure{"can't map the VMM's dirty log again", again.error()};
    log_ = std::move(*again);
  }
  return {};
}

Result<Device::TakenOver, Failure> Device::take_over(bool blame) {
  SessionRecord& record = *journal_.record();
  blame_ = blame;
  // The tables have been taken over with their locks, as far as they could be had.
  has_let_go_ = record.has_let_go != 0;
  if (has_let_go_) file_system_.let_go_of_locks();
  const std::shared_ptr<DirtyLog> log = std::exchange(log_, nullptr);
  TakenOver all;
  for (std::uint32_t index = 0; index < rings_.size(); ++index) {
    virtio::Queue& queue = rings_[index]->queue;
    queue.set_features(record.ring[index].features);
    queue.set_memory(memory_);
    queue.set_dirty_log(log);
    const auto in_flight = resume(index, record.ring[index]);
    if (!in_flight)
      return Failure{fmt::format("can't go on with queue {}", index), in_flight.error()};
    if (rings_[index]->crew) ++all.queues;
    all.requests += *in_flight;
  }
  return all;
}

bool Device::pause() {
  if (transfer_ && !transfer_->has_ended()) return false;
  using std::chrono::milliseconds;
  constexpr milliseconds kTimeToAnswer{100};
  const auto deadline = std::chrono::steady_clock::now() + kTimeToAnswer;
  std::vector<Ring*> paused;
  for (const auto& ring : rings_) {
    if (!ring->crew || !ring->crew->running()) continue;
    ring->queue.set_enabled(false);
    paused.push_back(ring.get());
  }
  const auto is_at_rest = [&](Ring* ring) {
    // A wait for a lock may begin or end meanwhile.
    auto soon = std::chrono::steady_clock::now();
    while (!ring->queue.await_in_flight(ring->crew->waiting_for_locks(), soon)) {
      if (soon >= deadline) return false;
      soon = std::min(deadline, std::chrono::steady_clock::now() + milliseconds(5));
    }
    return true;
  };
  if (std::ranges::all_of(paused, is_at_rest)) return true;
  for (Ring* ring : paused) {
    ring->queue.set_enabled(true);
    ring->crew->nudge();
  }
  return false;
}

Result<> Device::resume_memory() {
  SessionRecord& record = *journal_.record();
  if (record.has_memory == 0) return {};
  std::vector<MappedRegion> mapped;
  for (std::uint32_t i = 0; i < record.regions && i < SessionRecord::kRegions; ++i) {
    const SessionRecord::Region& region = record.region[i];
    UniqueFd file = TRY(duplicate(region.fd));
    mapped.push_back(TRY(map({.guest = GuestAddress{region.guest},
                              .vmm = VmmAddress{region.vmm},
                              .size = region.size,
                              .mmap_offset = region.mmap_offset,
                              .file = std::move(file)})));
  }
  memory_ = TRY(GuestMemory::make(std::move(mapped)));
  return {};
}

Result<std::size_t> Device::resume(std::uint32_t index, const SessionRecord::Ring& settings) {
  Ring& ring = *rings_[index];
  if (settings.size != 0) TRY(ring.queue.set_size(settings.size));
  ring.size = settings.size;
  if (settings.addresses == kVmmAddresses)
    TRY(ring.queue.set_addresses(noted_addresses<VmmAddress>(settings)));
  if (settings.addresses == kGuestAddresses)
    TRY(ring.queue.set_addresses(noted_addresses<GuestAddress>(settings)));
  if (settings.has_base != 0) TRY(ring.queue.set_base(settings.base));
  if (settings.has_kick != 0) ring.queue.set_kick(TRY(duplicate(settings.kick)));
  UniqueFd call = TRY(duplicate(settings.call));
  TRY(ring.queue.set_call(std::move(call)));
  UniqueFd error = TRY(duplicate(settings.error));
  TRY(ring.queue.set_error(std::move(error)));
  ring.queue.set_enabled(settings.enabled != 0);
  ring.kicked = settings.kicked != 0;
  if (settings.started == SessionRecord::Ring::kInterrupted)
    ring.queue.resume_put_off(settings.size, settings.packed != 0, settings.base);
  if (settings.started != SessionRecord::Ring::kStarted) {
    // The VMM has been told why, if it can't.
    (void)start_if_ready(index);
    return 0;
  }
  make_crew(index);
  auto in_flight = ring.crew->start_again(blame_);
  // Where the ring is nowhere in memory it rests until it is.
  ring.again = !in_flight && in_flight.error() == Errno{EFAULT};
  if (!ring.again) return in_flight;
  TRY(ring.queue.set_base_again());
  return 0;
}

}  // namespace virtiofsd
