// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Moves the file system's state through a channel of the VMM's while the VMM reads or writes the
// other end: on a thread of its own, for the VMM does so only once its request was answered.
#pragma once

#include <pthread.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>

#include "base/result.h"
#include "sys/events.h"
#include "sys/fd.h"

namespace virtiofsd {

// Session thread.
class StateTransfer {
 public:
  // Ends early, with a failure, when `cancelled` becomes readable.
  using Work = std::function<Result<void, Failure>(FdRef channel, FdRef cancelled)>;

  // `prepare` runs first on the new thread. EAGAIN when there is no thread to be had.
  static Result<std::unique_ptr<StateTransfer>> begin(UniqueFd channel,
                                                      std::function<void()> prepare, Work work);
  // Cancels what hasn't ended, and waits for that.
  ~StateTransfer();
  StateTransfer(const StateTransfer&) = delete;
  StateTransfer& operator=(const StateTransfer&) = delete;

  // Once. The channel is closed by then: the VMM sees the end of what was sent before. The log has
  // the failure already.
  Result<void, Failure> wait();
  bool has_ended() const { return has_ended_.load(std::memory_order_acquire); }

 private:
  StateTransfer(UniqueFd channel, sys::EventFd cancelled, std::function<void()> prepare, Work work);
  void run();

  UniqueFd channel_;
  const sys::EventFd cancelled_;
  const std::function<void()> prepare_;
  const Work work_;
  Result<void, Failure> outcome_;
  std::atomic<bool> has_ended_ = false;
  std::optional<pthread_t> thread_;
};

}  // namespace virtiofsd
