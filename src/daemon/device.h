// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The virtio-fs device: joins the VMM's settings (vhost_user::Backend), one
// Queue and one Crew for each ring, and the file system behind the dispatcher.
// Queue 0 is the high-priority queue, the others are request queues.
// (virtio 1.2, 5.11)
//
// Threads: all methods run on the session thread; the crews run by themselves.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/crew.h"
#include "daemon/device_journal.h"
#include "daemon/saved_queues.h"
#include "daemon/state_transfer.h"
#include "daemon/watchdog.h"
#include "fuse/dispatcher.h"
#include "memory/dirty_log.h"
#include "memory/guest_memory.h"
#include "state/arena.h"
#include "state/records.h"
#include "vhost_user/backend.h"
#include "virtio/queue.h"

namespace virtiofsd {

class Device final : public vhost_user::Backend {
 public:
  // Request queues beside the high-priority one that a VMM may start.
  static constexpr std::uint32_t kRequestQueues = 64;

  struct Settings {
    std::optional<std::string> tag;        // 1 to 36 bytes; offers CONFIG when set
    std::uint32_t num_request_queues = 1;  // what the config space says
    std::uint32_t pool_size = 64;          // as in Crew::Settings
    std::uint32_t lock_waiters = 64;       // most per queue; a small ring has fewer
    bool in_order = false;                 // offers IN_ORDER
    std::chrono::microseconds poll{0};
    std::function<void()> prepare_thread;  // as in Crew::Settings
    std::shared_ptr<Arena> arena;          // where a successor finds what it needs; none: nowhere
  };

  Device(fuse::FileSystem& file_system, fuse::Dispatcher& dispatcher, Settings settings);
  ~Device() override;

  // Goes on where a process that died left off, by what the arena says: the VMM's settings, and
  // what is in flight is served again. Instead of anything the VMM would ask for. `blame`: as in
  // Queue::start_again. A failure says why it can't.
  struct TakenOver {
    std::uint32_t queues = 0;  // that run
    std::size_t requests = 0;  // in flight
  };
  // All that can fail without a trace comes first, in prepare_to_take_over.
  Result<void, Failure> prepare_to_take_over();
  Result<TakenOver, Failure> take_over(bool blame);
  // For another process to go on: no queue takes another request, and those that are being served
  // are answered, but for those that wait for locks. False when that takes too long, or while the
  // state goes to another host or comes from one: then all goes on here.
  bool pause();

  // Stops every queue and forgets the guest: the VMM is gone or asks for a reset.
  void shut_down();

  std::uint64_t features() const override;
  Result<> set_features(std::uint64_t features) override;
  std::uint64_t protocol_features() const override;
  Result<> set_protocol_features(std::uint64_t features) override;
  void set_owner() override {}
  void reset_owner() override;
  Result<> reset_device() override;
  std::uint32_t queue_count() const override;
  Result<> set_mem_table(std::vector<vhost_user::MemoryRegion> regions) override;
  Result<> add_mem_region(vhost_user::MemoryRegion region) override;
  Result<> remove_mem_region(const vhost_user::MemoryRegion& region) override;
  Result<> set_vring_size(std::uint32_t index, std::uint32_t size) override;
  Result<> set_vring_addresses(std::uint32_t index,
                               const vhost_user::RingAddresses<VmmAddress>& addresses) override;
  Result<> set_vring_addresses(std::uint32_t index,
                               const vhost_user::RingAddresses<GuestAddress>& addresses) override;
  Result<> set_vring_base(std::uint32_t index, std::uint32_t base) override;
  Result<std::uint32_t> get_vring_base(std::uint32_t index) override;
  Result<> set_vring_kick(std::uint32_t index, std::optional<UniqueFd> kick) override;
  Result<> set_vring_call(std::uint32_t index, std::optional<UniqueFd> call) override;
  Result<> set_vring_error(std::uint32_t index, std::optional<UniqueFd> error) override;
  Result<> set_vring_enable(std::uint32_t index, bool enabled) override;
  Result<> get_config(std::uint32_t offset, std::span<std::byte> out) override;
  Result<> set_log_base(std::uint64_t size, std::uint64_t offset, UniqueFd file) override;
  Result<> set_backend_request_fd(UniqueFd socket) override;
  Result<> set_status(std::uint64_t status) override;
  std::uint64_t status() const override { return status_; }
  Result<std::optional<UniqueFd>> set_device_state_fd(vhost_user::TransferDirection direction,
                                                      UniqueFd channel) override;
  Result<> check_device_state() override;

 private:
  struct Ring {
    Ring(std::uint32_t index, std::span<std::byte> record) : queue(index, record) {}
    virtio::Queue queue;
    std::unique_ptr<Crew> crew;  // made when the ring starts for the first time with its size
    std::uint32_t size = 0;      // descriptors
    bool kicked = false;         // SET_VRING_KICK came since the ring was last stopped
    bool again = false;          // ran when a process died, and hasn't since
  };

  void keep_status(std::uint64_t status);
  template <typename Address>
  Result<> set_addresses(std::uint32_t index, const vhost_user::RingAddresses<Address>& addresses);
  template <typename Change>
  Result<> change_stopped(std::uint32_t index, Change change);
  // The error says why a ring whose settings are complete can't be served.
  Result<> start_if_ready(std::uint32_t index);
  void make_crew(std::uint32_t index);
  // How many requests were in flight.
  Result<std::size_t> resume(std::uint32_t index, const SessionRecord::Ring& settings);
  Result<> resume_memory();
  void stop(std::uint32_t index);
  void note_stopped(std::uint32_t index);
  void use_memory(std::shared_ptr<const GuestMemory> memory);
  bool runs() const;
  std::vector<SavedQueue> put_off_requests() const;
  Result<> go_on_with(const std::vector<SavedQueue>& queues);
  void drop_put_off();
  void note_let_go(bool has_let_go);

  fuse::FileSystem& file_system_;
  fuse::Dispatcher& dispatcher_;
  const Settings settings_;
  DeviceJournal journal_;
  Watchdog watchdog_;
  Processors processors_;
  std::vector<std::unique_ptr<Ring>> rings_;
  std::shared_ptr<const GuestMemory> memory_;
  std::uint64_t status_ = 0;
  std::uint32_t failed_starts_ = 0;
  std::shared_ptr<DirtyLog> log_;  // from prepare_to_take_over
  bool blame_ = false;             // as in take_over
  UniqueFd backend_requests_;
  // The guest has gone to another host, as far as the VMM has said: its locks are there.
  bool has_let_go_ = false;
  bool saves_ = false;              // what the transfer does
  std::vector<SavedQueue> loaded_;  // by the transfer's thread, used when that has ended
  std::unique_ptr<StateTransfer> transfer_;
};

}  // namespace virtiofsd
