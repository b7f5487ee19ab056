// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One request on its way through: who asks, about which node, and how the
// thread that serves it tells its crew that it is about to block.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/id.h"
#include "base/result.h"
#include "fuse/negotiation.h"

namespace virtiofsd::fuse {

// Who made the request in the guest. Ids are the guest's; 0xffffffff where the
// guest sent none (ALLOW_IDMAP).
struct Caller {
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint32_t pid = 0;
  // The one group of the caller that matters for this create (CREATE_SUPP_GROUP).
  std::optional<std::uint32_t> supplementary_group;
};

// A security context to set on what is being created (SECURITY_CTX): an xattr
// name and value. Points into the request's private copy.
struct SecurityContext {
  std::string_view name;
  std::span<const std::byte> value;
};

// What a serving thread can ask of its crew. Implemented in daemon/; tests use NullScheduler.
class Scheduler {
 public:
  virtual ~Scheduler() = default;
  // This request may take long: let another thread lead the queue meanwhile.
  // Idempotent and cheap when the lead is gone already.
  virtual void about_to_block() = 0;
  // This request will wait, for nearly all of its time, until others of the same kind on this node
  // are done: a second thread for them gains nothing.
  virtual void takes_turn(NodeId node) = 0;
  // As above, for a wait without bound on a lock. ENOLCK when too many wait already.
  // Pairs with lock_wait_ended.
  virtual Result<> about_to_wait_for_lock() = 0;
  virtual void lock_wait_ended() = 0;
  // The wait ends for no other reason than stopping(): where that can be, the request isn't
  // answered now and comes again when the queue goes on. Before lock_wait_ended.
  virtual void put_off() {}
  // The queue is being stopped: waits should end (a blocked wait gets EINTR by signal).
  virtual bool stopping() const = 0;
};

class NullScheduler final : public Scheduler {
 public:
  void about_to_block() override {}
  void takes_turn(NodeId) override {}
  Result<> about_to_wait_for_lock() override { return {}; }
  void lock_wait_ended() override {}
  bool stopping() const override { return false; }
};

struct Call {
  std::uint64_t unique = 0;
  NodeId node;  // of the request's header: the directory for operations that take a name
  Caller caller;
  std::optional<SecurityContext> security;
  Negotiated session;  // a copy: a new INIT may change the dispatcher's at any time
  Scheduler& scheduler;
  // A process that served this request died before the guest had its answer, or a wait was put off:
  // what it asks for may be done already.
  bool again = false;
};

}  // namespace virtiofsd::fuse
