// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The threads that serve one queue, all running the same loop: pop, serve,
// push. One of them leads: it takes requests from the ring, runs each itself,
// and sleeps until a kick when there are none. The others are parked and cost nothing.
//
// When more requests wait than the leader will get to soon, and a processor is
// free, it calls one of the others to help: that one takes requests too, until
// the ring is empty. HelpPolicy tells whether that pays.
//
// The lead passes on only when a request blocks: before, when the operation
// says that it is about to and such operations have been slow lately; or after the fact, when the
// watchdog finds the leader in the same request for too long. A thread that lost the lead that way
// finishes its request, publishes it, and parks.
//
// With one thread (pool size 0 or 1) nothing passes, except that waits for
// locks always get a thread of their own: a waiting lock delays nobody.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/sync.h"
#include "daemon/help_policy.h"
#include "daemon/processors.h"
#include "fuse/dispatcher.h"
#include "sys/fd.h"
#include "virtio/queue.h"

namespace virtiofsd {

class Watchdog;

class Crew {
 public:
  struct Settings {
    std::uint32_t index = 0;         // of the queue, for names and logs
    std::uint32_t pool_size = 64;    // threads beside the leader that may be blocked; 0 and 1: none
    std::uint32_t lock_waiters = 0;  // threads that may wait for locks, on top
    std::chrono::microseconds poll{0};  // longest time to spin for the next request; 0: never
    // Nobody waits for the answers: with one processor, kicks stay off so long, so that requests
    // come together. 0: never.
    std::chrono::microseconds nap{0};
    std::function<void()> prepare_thread;  // runs first in each thread; none: nothing
  };

  Crew(virtio::Queue& queue, fuse::Dispatcher& dispatcher, fuse::FileSystem& file_system,
       Watchdog& watchdog, Processors& processors, const Settings& settings);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // The ring is ready: somebody leads from now on. Idempotent. Errors as Queue::start.
  Result<> start() {
    return start([](virtio::Queue& queue) { return queue.start(); });
  }
  // For a successor, as Queue::start_again.
  Result<std::size_t> start_again(bool blame);
  // Nobody takes requests any more when this returns; requests taken before
  // are answered first (waits for locks are put off). Idempotent.
  void stop();
  bool running() const { return running_; }
  // As a kick: the ring may have got work that nobody tells of. Session thread.
  void nudge();

  std::uint32_t threads() const;
  // Requests that wait for locks, for as long as others hold them.
  std::uint32_t waiting_for_locks() const;

  // For the watchdog, any thread: what the leader is doing. The same value
  // twice in a row, and `is_serving` of it, means stuck in one request.
  std::uint64_t lead_state() const { return lead_.load(std::memory_order_seq_cst); }
  static bool is_serving(std::uint64_t state) { return (state & kPhaseMask) == kServing; }
  // Nothing to watch until a kick comes.
  static bool is_waiting(std::uint64_t state) { return (state & kPhaseMask) == kWaiting; }
  // Takes the lead from a leader that is still in `state` and gives it to another thread.
  // False when it now lacks a thread to take it: add_thread again soon.
  bool depose(std::uint64_t state);
  // Wakes whoever should have taken a vacant lead by now.
  void remind();
  // Makes the thread that pass_lead found missing. Watchdog or session thread:
  // threads that serve requests may not make threads.
  // False when the system has none to give.
  bool add_thread();

 private:
  class Hand;  // a thread's own: scratch memory and its side of fuse::Scheduler
  friend class Hand;

  // Something that may be in vain: then the next ones are left out, twice as many each time.
  class Attempts {
   public:
    bool is_left_out() { return left_ > 0 && left_-- > 0; }
    void made(bool in_vain, std::uint32_t most_left_out = 255) {
      left_out_ = in_vain ? std::min(left_out_ * 2 + 1, most_left_out) : 0;
      left_ = left_out_;
    }

   private:
    std::uint32_t left_out_ = 0;  // after the last one
    std::uint32_t left_ = 0;      // of those
  };

  // lead_: a count of requests begun, and what the leader is doing.
  static constexpr std::uint64_t kPhaseMask = 3;
  static constexpr std::uint64_t kVacant = 0;   // nobody leads
  static constexpr std::uint64_t kRing = 1;     // somebody leads and works on the ring
  static constexpr std::uint64_t kServing = 2;  // the leader runs a request; the lead can be taken
  static constexpr std::uint64_t kWaiting = 3;  // the leader sleeps until there is a kick
  static constexpr std::uint64_t kStep = 4;

  Result<> start(const std::function<Result<>(virtio::Queue&)>& start_queue);
  void thread_main();
  // Both: true when a request blocked, so that another thread has the place by now.
  bool lead(Hand& hand);
  bool help(Hand& hand);
  void give_back(const Hand& hand, const virtio::Chain& chain, std::uint32_t written);
  std::uint32_t serve(Hand& hand, const virtio::Chain& chain);
  void consider_help(const virtio::Chain& chain);
  void call_helper();
  bool begin_to_help();
  bool take_helpers_place();
  void stop_helping() { helpers_.fetch_sub(1, std::memory_order_release); }
  void forget_kick();
  bool wait_for_work();
  bool poll_for_work();
  // kFoundLate: it would have come as soon without spinning.
  enum class Spun : std::uint8_t { kNothing, kFoundLate, kFound };
  Spun spin(std::chrono::steady_clock::time_point now);
  Spun spin_on_one_processor(std::chrono::steady_clock::time_point now);
  bool nap();
  enum class Passed : std::uint8_t { kNo, kYes, kThreadMissing };
  Passed pass_lead(std::uint64_t state);
  bool give_lead_away(std::uint64_t state);
  void note_block(std::chrono::nanoseconds took);
  bool blocks_for_too_long() const;
  bool is_one_thread() const { return settings_.pool_size <= 1; }  // but for waits for locks
  bool can_add_thread_locked() const REQUIRES(mutex_);
  void tell_driver();

  virtio::Queue& queue_;
  fuse::Dispatcher& dispatcher_;
  fuse::FileSystem& file_system_;
  Watchdog& watchdog_;
  Processors& processors_;
  const Settings settings_;
  std::shared_ptr<const UniqueFd> kick_;  // what the epoll set waits on; none: the driver is polled
  bool kick_queues_bytes_ = false;        // a pipe or socket, which fills up unless it is read
  UniqueFd epoll_;
  UniqueFd stop_event_;

  std::atomic<std::uint64_t> lead_{kVacant};
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint32_t> helpers_{0};  // threads called to help and not done with it: 0 or 1
  std::atomic<bool> dismissed_{false};     // the helper is to go before the ring is empty
  bool running_ = false;                   // session thread only

  // The leader's own:
  Attempts polls_;
  Attempts naps_;
  HelpPolicy help_policy_;
  // How long requests that announce a block have been taking. Begins long, so
  // that the first ones are not waited for.
  std::atomic<std::uint32_t> block_ns_{1'000'000};

  mutable Mutex mutex_;
  Condition changed_;
  std::vector<pthread_t> threads_ GUARDED_BY(mutex_);
  bool short_of_threads_ GUARDED_BY(mutex_) = false;  // said so, once
  std::uint32_t idle_ GUARDED_BY(mutex_) = 0;
  std::uint32_t adding_ GUARDED_BY(mutex_) = 0;  // threads asked for and not made yet
  std::uint32_t waiting_for_locks_ GUARDED_BY(mutex_) = 0;
  bool lead_wanted_ GUARDED_BY(mutex_) = false;  // an idle thread should lead
  bool help_wanted_ GUARDED_BY(mutex_) = false;  // an idle thread should help
  bool leaving_ GUARDED_BY(mutex_) = false;      // the crew is being destroyed
};

}  // namespace virtiofsd
