// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The VMM's side of a vhost-user connection: owns guest memory, the rings in it
// and the notifiers, does the whole set-up as QEMU or user-mode Linux does, and
// lets a test say any single message, right or wrong, and see what comes back.
//
// Every wait has a deadline (`patience`). Failures are sentences. One thread at
// a time for the conversation; each ring may be driven by a thread of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "sys/fd.h"
#include "testing/driver_ring.h"
#include "testing/guest_ram.h"
#include "testing/wire.h"

namespace virtiofsd::guest {

// One message as it came, with the descriptors that came along.
struct Message {
  std::uint32_t request = 0;
  std::uint32_t flags = 0;
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;

  // The payload's first bytes as a T, zeros behind its end.
  template <typename T>
  T as() const {
    T value{};
    std::memcpy(&value, payload.data(), std::min(sizeof(T), payload.size()));
    return value;
  }
};

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span{&value, 1});
}

// Header, payload and descriptors in one sendmsg. `flags` without the version.
Result<void, Failure> send_message(FdRef socket, std::uint32_t request, std::uint32_t flags,
                                   std::span<const std::byte> payload,
                                   std::span<const int> fds = {});
// The next message on a socket, or why there is none: closed, or silent until `deadline`.
Result<Message, Failure> receive_message(FdRef socket, Deadline deadline);
// True when the other end closes before `deadline`; what it still says is thrown away.
bool closed_by_peer(FdRef socket, Deadline deadline);
// A connected stream socket at `path`. No waiting.
Result<UniqueFd, Failure> connect_to(const std::string& path);

struct FrontEndOptions {
  enum class Style : std::uint8_t { kQemu, kUml };
  Style style = Style::kQemu;
  unsigned request_queues = 1;
  RingOptions ring;                // for every queue
  std::vector<RegionSpec> memory;  // empty: what the style has
  std::uint64_t buffer_memory = 256ULL
                                << 20;  // of the default layout; untouched pages cost nothing
  // Which of the offered protocol features to take.
  std::uint64_t protocol_features =
      kProtocolMq | kProtocolLogShmfd | kProtocolReplyAck | kProtocolBackendReq |
      kProtocolBackendSendFd | kProtocolResetDevice | kProtocolConfigureMemSlots | kProtocolStatus |
      kProtocolDeviceState | kProtocolConfig | kProtocolInflightShmfd;
  bool add_mem_reg = false;  // ADD_MEM_REG instead of SET_MEM_TABLE, where offered
  bool inflight = false;     // hand an in-flight area over, where offered
  std::chrono::milliseconds patience{10'000};
};

class FrontEnd {
 public:
  // Takes a connected socket. Says nothing yet.
  static Result<std::unique_ptr<FrontEnd>, Failure> adopt(UniqueFd socket, FrontEndOptions options);
  static Result<std::unique_ptr<FrontEnd>, Failure> connect(const std::string& path,
                                                            FrontEndOptions options);
  FrontEnd(const FrontEnd&) = delete;
  FrontEnd& operator=(const FrontEnd&) = delete;

  // The whole sequence up to running queues. The device must offer what the
  // ring options ask for; what it lacks is in missing_features().
  Result<void, Failure> set_up();
  // The parts of it, in order.
  Result<void, Failure> negotiate();
  Result<void, Failure> share_memory();
  Result<void, Failure> start_queue(unsigned queue);
  // Where the back-end said that it stopped, with requests in flight.
  Result<void, Failure> start_queue(unsigned queue, std::uint32_t base);

  // ENABLE 0, then GET_VRING_BASE: the base the back-end reports.
  Result<std::uint32_t, Failure> stop_queue(unsigned queue);
  // A back-end that comes back: the same memory and rings over a new socket. Follow with set_up().
  void reconnect(UniqueFd socket);
  // Hangs up.
  void close() { socket_.reset(); }

  // ---- single messages ----
  // Sends, then waits for the reply of the same number.
  Result<Message, Failure> ask(std::uint32_t request, std::span<const std::byte> payload = {},
                               std::span<const int> fds = {});
  Result<std::uint64_t, Failure> ask_u64(std::uint32_t request,
                                         std::span<const std::byte> payload = {},
                                         std::span<const int> fds = {});
  // Sends with NEED_REPLY and gives back the acknowledgement: 0 is yes. REPLY_ACK must be on.
  Result<std::uint64_t, Failure> acknowledged(std::uint32_t request,
                                              std::span<const std::byte> payload = {},
                                              std::span<const int> fds = {});
  // Sends; a refusal is a failure where REPLY_ACK lets us see it.
  Result<void, Failure> tell(std::uint32_t request, std::span<const std::byte> payload = {},
                             std::span<const int> fds = {});
  Result<void, Failure> tell_u64(std::uint32_t request, std::uint64_t value,
                                 std::span<const int> fds = {}) {
    return tell(request, bytes_of(value), fds);
  }
  Result<void, Failure> tell_vring(std::uint32_t request, std::uint32_t queue,
                                   std::uint32_t value) {
    const VringState state{.index = queue, .value = value};
    return tell(request, bytes_of(state));
  }
  // Bytes on the socket as they are.
  Result<void, Failure> send_raw(std::span<const std::byte> bytes, std::span<const int> fds = {});
  Result<Message, Failure> receive() { return receive_message(socket_, deadline()); }
  bool closed_by_peer() { return guest::closed_by_peer(socket_, deadline()); }

  // GET_CONFIG of `size` bytes at `offset`; the payload after its 12-byte head.
  Result<std::vector<std::byte>, Failure> config(std::uint32_t offset, std::uint32_t size);

  // ---- dirty page log ----
  // SET_LOG_BASE, LOG_ALL and logged rings, on a running device.
  Result<void, Failure> start_dirty_log();
  Result<void, Failure> stop_dirty_log();
  bool dirty(std::uint64_t guest) const;
  void clear_dirty_log();

  // ---- what was agreed, what there is ----
  FdRef socket() const { return socket_; }
  // Our end of the channel for the back-end's own requests; invalid without BACKEND_REQ.
  FdRef backend_channel() const { return backend_channel_; }
  std::uint64_t features() const { return features_; }
  std::uint64_t offered_features() const { return offered_; }
  std::uint64_t missing_features() const { return missing_; }
  std::uint64_t protocol_features() const { return protocol_; }
  std::uint64_t offered_protocol_features() const { return offered_protocol_; }
  bool has_protocol(std::uint64_t feature) const { return (protocol_ & feature) != 0; }
  std::uint64_t queue_limit() const { return queue_limit_; }
  GuestRam& ram() { return ram_; }
  const FrontEndOptions& options() const { return options_; }
  // Queue 0 is the high-priority one.
  unsigned queue_count() const { return options_.request_queues + 1; }
  DriverRing& ring(unsigned queue) { return *queues_[queue].ring; }
  FdRef kick_fd(unsigned queue) const { return queues_[queue].kick; }
  FdRef call_fd(unsigned queue) const { return queues_[queue].call; }
  // True when the back-end reported an error on this queue before `deadline`. Taken once.
  bool error_signalled(unsigned queue, Deadline deadline);
  // A SET_MEM_TABLE payload for the memory there is, for tests that twist it.
  std::vector<std::byte> memory_table() const;
  VringAddress vring_address(unsigned queue) const;
  Deadline deadline() const { return within(options_.patience); }

 private:
  struct Queue {
    std::unique_ptr<DriverRing> ring;
    UniqueFd kick, call, call_sent, error;  // call_sent: what the back-end writes to
  };

  FrontEnd(UniqueFd socket, FrontEndOptions options, GuestRam ram);
  Result<void, Failure> make_queues();
  Result<void, Failure> negotiate_protocol();
  Result<void, Failure> share_inflight();
  Result<void, Failure> send_call(unsigned queue);
  std::uint64_t wanted_ring_features() const;

  UniqueFd socket_;
  UniqueFd backend_channel_;
  const FrontEndOptions options_;
  GuestRam ram_;
  std::vector<Queue> queues_;
  UniqueFd inflight_;
  InflightArea inflight_area_{};
  std::unique_ptr<GuestRam> log_;
  std::uint64_t offered_ = 0, features_ = 0, missing_ = 0;
  std::uint64_t offered_protocol_ = 0, protocol_ = 0, queue_limit_ = 0;
};

}  // namespace virtiofsd::guest
