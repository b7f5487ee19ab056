// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The conversation with one VMM: takes a message, checks it against the row of
// its request (feature negotiated, payload size, descriptors, ring index), has
// the Backend act on it and answers.
//
// What goes wrong falls in two classes. A message we understand but won't
// follow is *refused*: the stream is still in step, the VMM hears of it by a
// non-zero acknowledgement (if it may and did ask for one) or by the failure
// value of the request's own reply, and the conversation goes on. A *malformed*
// message (wrong version, too long, too many descriptors, cut short) ends it.
// One thread.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/reader.h"
#include "base/result.h"
#include "sys/fd.h"
#include "vhost_user/backend.h"
#include "vhost_user/connection.h"
#include "vhost_user/message.h"

namespace virtiofsd::vhost_user {

// What the VMM and we have agreed on so far. All a successor needs to carry on in mid-conversation.
struct Agreement {
  std::uint64_t features = 0;           // as acknowledged by SET_FEATURES
  std::uint64_t protocol_features = 0;  // as acknowledged by SET_PROTOCOL_FEATURES
  // May the VMM ask for acknowledgements? Differs from the features only after a
  // SET_PROTOCOL_FEATURES that asked for REPLY_ACK was itself refused.
  bool acknowledges = false;
};

class Session {
 public:
  // `socket` is a connected stream socket. `agreement` continues a conversation that another
  // Session began on it; the Backend is not told of it again.
  Session(UniqueFd socket, Backend& backend, Agreement agreement = {});

  // Readable when there is something for serve_one.
  FdRef fd() const { return connection_.fd(); }
  const Agreement& agreement() const { return agreement_; }

  // Waits for the next bytes of the VMM (poll fd() first to wait for other things as well), and
  // serves the message they complete, if they do; it does not wait for the rest of one. True:
  // go on. False: the VMM closed between two messages. An error: the message was malformed, or
  // the VMM doesn't take our replies; the Session is of no more use. The log has said why.
  Result<bool> serve_one();

  // Part of a message has arrived: nobody else could go on with the conversation now.
  bool in_mid_message() const { return connection_.in_mid_message(); }

  // How long a reply may wait for a VMM that doesn't read its socket.
  static constexpr std::chrono::milliseconds kReplyTime{1000};

 private:
  struct Row;
  // What a handler works with: the request's payload and descriptors, and room for its reply.
  struct Exchange {
    Exchange(Reader request, std::vector<UniqueFd>& descriptors)
        : payload(request), fds(descriptors) {}

    Reader payload;
    std::vector<UniqueFd>& fds;
    std::array<std::byte, kMaxPayload> reply{};
    std::size_t reply_size = 0;
    std::optional<UniqueFd> reply_fd;

    template <Plain T>
    void answer(const T& value) {
      answer_bytes(bytes_of(value));
    }
    void answer_bytes(std::span<const std::byte> bytes);
  };
  using Handler = Result<> (Session::*)(Exchange&);

  static const std::array<Row, 44> kRows;

  Result<> serve(Message& message);
  Result<> check(const Row& row, const Message& message) const;
  Result<> reply(std::uint32_t request, std::span<const std::byte> payload, FdRef fd = {});
  void report_refusal(std::uint32_t request, Errno error);
  bool has(ProtocolFeature feature) const {
    return (agreement_.protocol_features & bit(feature)) != 0;
  }
  std::uint64_t offered_features() const;
  std::uint64_t offered_protocol_features() const;
  // EINVAL when there is no such ring.
  Result<std::uint32_t> vring(std::uint64_t index) const;
  struct VringFd {
    std::uint32_t index;
    std::optional<UniqueFd> fd;
  };
  // The ring and descriptor of SET_VRING_KICK, CALL and ERR.
  Result<VringFd> take_vring_fd(Exchange& exchange) const;

  Result<> unsupported(Exchange&);
  Result<> get_features(Exchange&);
  Result<> set_features(Exchange&);
  Result<> set_owner(Exchange&);
  Result<> reset_owner(Exchange&);
  Result<> set_mem_table(Exchange&);
  Result<> set_log_base(Exchange&);
  Result<> set_log_fd(Exchange&);
  Result<> set_vring_num(Exchange&);
  Result<> set_vring_addr(Exchange&);
  Result<> set_vring_base(Exchange&);
  Result<> get_vring_base(Exchange&);
  Result<> set_vring_kick(Exchange&);
  Result<> set_vring_call(Exchange&);
  Result<> set_vring_err(Exchange&);
  Result<> get_protocol_features(Exchange&);
  Result<> set_protocol_features(Exchange&);
  Result<> get_queue_num(Exchange&);
  Result<> set_vring_enable(Exchange&);
  Result<> set_backend_req_fd(Exchange&);
  Result<> get_config(Exchange&);
  Result<> set_config(Exchange&);
  Result<> get_inflight_fd(Exchange&);
  Result<> set_inflight_fd(Exchange&);
  Result<> reset_device(Exchange&);
  Result<> vring_kick(Exchange&);
  Result<> get_max_mem_slots(Exchange&);
  Result<> add_mem_reg(Exchange&);
  Result<> rem_mem_reg(Exchange&);
  Result<> set_status(Exchange&);
  Result<> get_status(Exchange&);
  Result<> set_device_state_fd(Exchange&);
  Result<> check_device_state(Exchange&);
  Result<> get_shmem_config(Exchange&);

  Connection connection_;
  Backend& backend_;
  Agreement agreement_;
  int refusals_ = 0;
};

}  // namespace virtiofsd::vhost_user
