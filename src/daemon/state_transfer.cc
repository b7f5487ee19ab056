// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/state_transfer.h"

#include <utility>

#include "base/log.h"

namespace virtiofsd {

StateTransfer::StateTransfer(UniqueFd channel, sys::EventFd cancelled,
                             std::function<void()> prepare, Work work)
    : channel_(std::move(channel)),
      cancelled_(std::move(cancelled)),
      prepare_(std::move(prepare)),
      work_(std::move(work)) {}

Result<std::unique_ptr<StateTransfer>> StateTransfer::begin(UniqueFd channel,
                                                            std::function<void()> prepare,
                                                            Work work) {
  sys::EventFd cancelled = TRY(sys::EventFd::create());
  std::unique_ptr<StateTransfer> made(new StateTransfer(std::move(channel), std::move(cancelled),
                                                        std::move(prepare), std::move(work)));
  const auto entry = [](void* transfer) -> void* {
    static_cast<StateTransfer*>(transfer)->run();
    return nullptr;
  };
  pthread_t thread{};
  if (const int error = ::pthread_create(&thread, nullptr, entry, made.get()); error != 0)
    return Errno{error};
  made->thread_ = thread;
  return made;
}

StateTransfer::~StateTransfer() {
  if (!thread_) return;
  cancelled_.signal();
  (void)wait();
}

Result<void, Failure> StateTransfer::wait() {
  ::pthread_join(*std::exchange(thread_, std::nullopt), nullptr);
  return std::move(outcome_);
}

void StateTransfer::run() {
  if (prepare_) prepare_();
  outcome_ = work_(channel_, cancelled_.ref());
  // At once: a VMM whose channel closes may not ask any more.
  if (!outcome_) log::error("migration failed: {}", outcome_.error().text());
  channel_.reset();
  has_ended_.store(true, std::memory_order_release);
}

}  // namespace virtiofsd
