// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/crew.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/pause_cpu.h"
#include "daemon/signal_policy.h"
#include "daemon/watchdog.h"
#include "sys/events.h"
#include "sys/process.h"

namespace virtiofsd {
namespace {

using Clock = std::chrono::steady_clock;

// A parked thread keeps buffers up to this size: a guest can make every thread
// serve the largest request there is.
constexpr std::size_t kKeptBytes = 16U << 10;

// Passing the lead costs two wake-ups, so it is only worth it where requests
// that say they may block do so for longer than this on average; where others
// wait already, for longer than a wake-up takes.
constexpr std::uint32_t kLongBlockNs = 50'000;
constexpr std::uint32_t kLongBlockOfOthersNs = 10'000;

// A driver that doesn't kick has its ring looked at this often while it is quiet.
constexpr int kPolledRingMs = 1;

// Between two looks at the clock while spinning, about a microsecond.
constexpr int kLooksPerRound = 32;
constexpr auto kInterrupted = std::chrono::microseconds(10);
// Where this process has one processor, the driver may have the same one, or another, as where a
// VMM pins its back-ends. What comes while this thread didn't run came from the same one, and would
// have come without spinning: looked for closely, and not for long.
constexpr auto kSpinOnOneProcessor = std::chrono::microseconds(20);
constexpr int kLooksOnOneProcessor = 4;
constexpr std::uint32_t kMostLeftOutOnOneProcessor = 1023;
constexpr auto kInterruptedOnOneProcessor = std::chrono::microseconds(1);

// Requests at once; more of them could fill the ring during a nap (QEMU's has 128 slots).
constexpr std::uint32_t kLargestBurstBeforeNap = 64;

// Longer than what doesn't block takes.
constexpr auto kTimeForLeftOver = std::chrono::seconds(1);

constexpr std::uint64_t kKick = 0;
constexpr std::uint64_t kStop = 1;

UniqueFd must(int fd) {
  CHECK(fd >= 0);
  return UniqueFd{fd};
}

// Tells the driver of a burst's completions, at the latest when it goes.
class Signals {
 public:
  explicit Signals(virtio::Queue& queue) : queue_(queue) {}
  ~Signals() { flush(); }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  // A request that moved so many bytes is published; `behind` more wait.
  void pushed(std::size_t bytes, std::uint32_t behind) {
    if (policy_.pushed(bytes, behind, queue_.unsignalled())) queue_.signal();
  }
  // The burst is over.
  void flush() {
    policy_.begin_burst();
    queue_.signal();
  }

 private:
  virtio::Queue& queue_;
  SignalPolicy policy_;
};

}  // namespace

// ---- Hand ---------------------------------------------------------------------

class Crew::Hand final : public fuse::Scheduler {
 public:
  explicit Hand(Crew& crew) : crew_(crew) {}

  // Both idempotent: a thread that gave its place away has left it already, one that lost it has
  // not.
  void take_place() {
    if (!std::exchange(has_place_, true)) crew_.processors_.begin_work();
  }
  void leave_place() {
    if (std::exchange(has_place_, false)) crew_.processors_.end_work();
  }

  void begin(std::uint64_t state) {
    state_ = state;
    leads_ = true;
    helps_ = false;
    announced_ = false;
    is_put_off_ = false;
    turn_.reset();
  }
  void begin_to_help() {
    leads_ = false;
    helps_ = true;
    announced_ = false;
    is_put_off_ = false;
  }
  // The request is served. True when this thread still leads, or helps.
  bool end() {
    if (announced_) crew_.note_block(Clock::now() - announced_at_);
    if (!leads_) return helps_;
    std::uint64_t expected = state_;
    leads_ = crew_.lead_.compare_exchange_strong(expected, (state_ & ~kPhaseMask) | kRing,
                                                 std::memory_order_acq_rel);
    if (leads_ && turn_) crew_.help_policy_.takes_turn(turn_->value);
    return leads_;
  }

  void about_to_block() override {
    if (!leads_ && !helps_) return;
    if (!announced_) {
      announced_ = true;
      announced_at_ = Clock::now();
    }
    if (!crew_.blocks_for_too_long()) return;
    if (crew_.is_one_thread()) {
      crew_.tell_driver();
    } else {
      give_place_away();
    }
  }

  void takes_turn(NodeId node) override {
    turn_ = node;  // told to the policy when the request is over: it is the leader's only
  }

  Result<> about_to_wait_for_lock() override {
    {
      Lock lock(crew_.mutex_);
      if (crew_.waiting_for_locks_ >= crew_.settings_.lock_waiters) return Errno{ENOLCK};
      ++crew_.waiting_for_locks_;
    }
    give_place_away();
    return {};
  }

  void put_off() override { is_put_off_ = true; }
  // This request isn't to be answered, if it needn't be.
  bool is_put_off() const { return is_put_off_; }

  void lock_wait_ended() override {
    Lock lock(crew_.mutex_);
    --crew_.waiting_for_locks_;
  }

  bool stopping() const override { return crew_.stopping_.load(std::memory_order_acquire); }

  // Before a long sleep: guest memory stays mapped no longer than it is used.
  void rest() {
    chain_scratch.memory.reset();
    if (buffer_bytes() <= kKeptBytes) return;
    chain_scratch.release();
    scratch = {};
  }

  virtio::ChainScratch chain_scratch;
  fuse::Scratch scratch;

 private:
  void give_place_away() {
    if (leads_) leads_ = !crew_.give_lead_away(state_);
    if (std::exchange(helps_, false)) {
      crew_.stop_helping();
      crew_.tell_driver();
    }
    // What sleeps in the kernel needs no processor.
    if (!leads_) leave_place();
  }
  std::size_t buffer_bytes() const {
    return (chain_scratch.readable.capacity() + chain_scratch.writable.capacity() +
            chain_scratch.table.capacity()) *
               sizeof(iovec) +
           chain_scratch.writable_ranges.capacity() * sizeof(virtio::GuestRange) +
           scratch.request.capacity() + scratch.reply.capacity();
  }

  Crew& crew_;
  bool has_place_ = false;  // counted among those that work
  std::uint64_t state_ = 0;
  bool leads_ = false;
  bool helps_ = false;
  bool is_put_off_ = false;
  bool announced_ = false;  // this request said that it may block, then:
  Clock::time_point announced_at_;
  std::optional<NodeId> turn_;  // what this request takes turns on
};

// ---- Crew ---------------------------------------------------------------------

Crew::Crew(virtio::Queue& queue, fuse::Dispatcher& dispatcher, fuse::FileSystem& file_system,
           Watchdog& watchdog, Processors& processors, const Settings& settings)
    : queue_(queue),
      dispatcher_(dispatcher),
      file_system_(file_system),
      watchdog_(watchdog),
      processors_(processors),
      settings_(settings),
      epoll_(must(::epoll_create1(EPOLL_CLOEXEC))),
      stop_event_(must(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kStop;
  CHECK(::epoll_ctl(epoll_.number(), EPOLL_CTL_ADD, stop_event_.number(), &event) == 0);
}

Crew::~Crew() {
  stop();
  std::vector<pthread_t> threads;
  {
    Lock lock(mutex_);
    leaving_ = true;
    changed_.notify_all();
    threads = std::move(threads_);
  }
  for (const pthread_t thread : threads) ::pthread_join(thread, nullptr);
}

std::uint32_t Crew::waiting_for_locks() const {
  Lock lock(mutex_);
  return waiting_for_locks_;
}

std::uint32_t Crew::threads() const {
  Lock lock(mutex_);
  return static_cast<std::uint32_t>(threads_.size());
}

Result<> Crew::start(const std::function<Result<>(virtio::Queue&)>& start_queue) {
  if (running_) return {};
  std::uint64_t drained = 0;
  (void)!::read(stop_event_.number(), &drained, sizeof drained);
  kick_ = queue_.kick();
  kick_queues_bytes_ = false;
  if (kick_) {
    struct stat st {};
    if (::fstat(kick_->number(), &st) != 0) return Errno::last();
    kick_queues_bytes_ = S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode);
    // Edge-triggered: a kick wakes the leader without having to be read, so an
    // idle queue costs one system call per wake-up. (Each eventfd write is an edge.)
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = kKick;
    if (::epoll_ctl(epoll_.number(), EPOLL_CTL_ADD, kick_->number(), &event) != 0) {
      // A kick that can't be waited for: a regular file, say.
      return Errno::last();
    }
  }
  if (const Result<> started = start_queue(queue_); !started) {
    forget_kick();
    return started.error();
  }
  running_ = true;
  stopping_.store(false, std::memory_order_release);
  watchdog_.watch(this);
  {
    Lock lock(mutex_);
    lead_wanted_ = true;
    if (!threads_.empty()) {
      changed_.notify_one();
      return {};
    }
    adding_ = 1;
  }
  if (!add_thread()) watchdog_.grow(this);
  return {};
}

Result<std::size_t> Crew::start_again(bool blame) {
  std::size_t in_flight = 0;
  const auto start_queue = [&](virtio::Queue& queue) -> Result<> {
    in_flight = TRY(queue.start_again(blame));
    return {};
  };
  TRY(start(start_queue));
  return in_flight;
}

void Crew::nudge() {
  if (!running_) return;
  const std::uint64_t one = 1;
  CHECK(::write(stop_event_.number(), &one, sizeof one) == sizeof one);
}

void Crew::forget_kick() {
  if (kick_) ::epoll_ctl(epoll_.number(), EPOLL_CTL_DEL, kick_->number(), nullptr);
  kick_.reset();
}

void Crew::stop() {
  if (!running_) return;
  // What a process that died had taken is taken as far as the VMM knows: it is answered first.
  queue_.await_left_over(Clock::now() + kTimeForLeftOver);
  running_ = false;
  stopping_.store(true, std::memory_order_release);
  const std::uint64_t one = 1;
  CHECK(::write(stop_event_.number(), &one, sizeof one) == sizeof one);
  {
    Lock lock(mutex_);
    lead_wanted_ = false;
    adding_ = 0;
    if (std::exchange(help_wanted_, false)) stop_helping();
  }
  // Requests that wait without bound end now; the queue waits for the rest.
  for (;;) {
    file_system_.cancel_waits();
    Lock lock(mutex_);
    if (idle_ == threads_.size()) break;
    // Bounded: a wait that began between the look at stopping() and the sleep is cancelled next
    // round.
    (void)changed_.wait_until(mutex_, Clock::now() + std::chrono::milliseconds(10));
  }
  // Not before: until it is done with its request, a thread may ask for another one to be made.
  watchdog_.unwatch(this);
  lead_.store(kVacant, std::memory_order_release);
  forget_kick();
}

bool Crew::can_add_thread_locked() const {
  const std::uint32_t base = is_one_thread() ? 1 : settings_.pool_size + 1;
  return threads_.size() + adding_ < base + waiting_for_locks_;
}

// Not std::thread, which can't say that there is no thread to be had: a guest
// that makes many requests block must not end the process with that.
bool Crew::add_thread() {
  Lock lock(mutex_);
  if (adding_ == 0) return true;
  pthread_t thread{};
  const auto entry = [](void* crew) -> void* {
    static_cast<Crew*>(crew)->thread_main();
    return nullptr;
  };
  if (const int error = ::pthread_create(&thread, nullptr, entry, this); error != 0) {
    if (!short_of_threads_) {
      short_of_threads_ = true;
      log::warn("queue {} can't have another thread: {}; requests wait until it can",
                settings_.index, Errno{error}.text());
    }
    return false;
  }
  --adding_;
  threads_.push_back(thread);
  return true;
}

// Makes the lead vacant, if the leader is still in `state` and there is or can
// be a thread to take it.
Crew::Passed Crew::pass_lead(std::uint64_t state) {
  Passed passed = Passed::kYes;
  {
    Lock lock(mutex_);
    if (stopping_.load(std::memory_order_relaxed)) return Passed::kNo;
    if (idle_ == 0 && !can_add_thread_locked()) {
      passed = Passed::kNo;
    } else if (!lead_.compare_exchange_strong(state, (state & ~kPhaseMask) | kVacant,
                                              std::memory_order_acq_rel)) {
      return Passed::kYes;  // somebody took it already
    } else {
      lead_wanted_ = true;
      if (idle_ == 0) {
        ++adding_;
        passed = Passed::kThreadMissing;
      } else {
        changed_.notify_one();
      }
    }
  }
  tell_driver();
  return passed;
}

// A moving average; a lost update among several threads is no harm.
void Crew::note_block(std::chrono::nanoseconds took) {
  const auto ns = static_cast<std::uint32_t>(std::min<std::int64_t>(took.count(), 100'000'000));
  const std::uint32_t before = block_ns_.load(std::memory_order_relaxed);
  block_ns_.store(before - before / 8 + ns / 8, std::memory_order_relaxed);
}

bool Crew::blocks_for_too_long() const {
  const std::uint32_t ns = block_ns_.load(std::memory_order_relaxed);
  return ns > kLongBlockNs || (ns > kLongBlockOfOthersNs && queue_.has_available());
}

bool Crew::give_lead_away(std::uint64_t state) {
  const Passed passed = pass_lead(state);
  if (passed == Passed::kThreadMissing) watchdog_.grow(this);
  return passed != Passed::kNo;
}

bool Crew::depose(std::uint64_t state) {
  if (is_one_thread()) {
    tell_driver();
    return true;
  }
  if (pass_lead(state) != Passed::kThreadMissing) return true;
  return add_thread();
}

void Crew::remind() {
  Lock lock(mutex_);
  if (lead_wanted_ && idle_ != 0) changed_.notify_all();
}

// What was published so far must wait neither for a new leader nor for a request that is stuck.
void Crew::tell_driver() {
  if (queue_.unsignalled() != 0) queue_.signal();
}

void Crew::thread_main() {
  sys::name_this_thread(fmt::format("queue-{}", settings_.index));
  file_system_.thread_started();
  if (settings_.prepare_thread) settings_.prepare_thread();
  Hand hand(*this);
  for (;;) {
    bool leads = false;
    {
      Lock lock(mutex_);
      ++idle_;
      if (stopping_.load(std::memory_order_relaxed)) changed_.notify_all();
      while (!leaving_ && !lead_wanted_ && !help_wanted_) changed_.wait(mutex_);
      --idle_;
      if (leaving_) return;
      leads = std::exchange(lead_wanted_, false);
      if (!leads) help_wanted_ = false;
    }
    hand.take_place();
    bool blocked = leads ? lead(hand) : help(hand);
    // Awake as it is, it takes what waits: that is a wake-up less.
    while (blocked && begin_to_help()) {
      hand.take_place();
      blocked = help(hand);
    }
    hand.leave_place();
    hand.rest();
  }
}

// The leader's, before each request: calls a helper or sends it away.
void Crew::consider_help(const virtio::Chain& chain) {
  if (help_policy_.begin_request(chain.behind))
    help_policy_.note_progress(chain.sequence, Clock::now());
  const bool helped = helpers_.load(std::memory_order_relaxed) != 0;
  if (helped) {
    if (!help_policy_.may_be_helped()) dismissed_.store(true, std::memory_order_relaxed);
  } else if (help_policy_.wants_help(chain.behind)) {
    call_helper();
  }
}

// May be in vain: nobody is free, or there is no processor for it.
void Crew::call_helper() {
  if (is_one_thread() || !processors_.one_is_free()) return;
  bool comes = false;
  {
    Lock lock(mutex_);
    if (stopping_.load(std::memory_order_relaxed) || lead_wanted_) return;
    comes = idle_ != 0;
    if (comes) {
      if (!take_helpers_place()) return;
      help_wanted_ = true;
    } else {
      // The thread asked for here parks; the next call wakes it.
      if (adding_ != 0 || !can_add_thread_locked()) return;
      ++adding_;
    }
  }
  if (comes) {
    changed_.notify_one();
  } else {
    watchdog_.grow(this);
  }
}

// For a thread that would park otherwise.
bool Crew::begin_to_help() {
  return !stopping_.load(std::memory_order_relaxed) && queue_.has_available() &&
         take_helpers_place();
}

bool Crew::take_helpers_place() {
  std::uint32_t none = 0;
  if (!helpers_.compare_exchange_strong(none, 1, std::memory_order_acq_rel)) return false;
  dismissed_.store(false, std::memory_order_relaxed);
  return true;
}

std::uint32_t Crew::serve(Hand& hand, const virtio::Chain& chain) {
  constexpr std::uint32_t kDeadly = 2;
  const fuse::Delivery delivery{
      .faulted = chain.faulted, .again = chain.again, .deadly = chain.deaths >= kDeadly};
  return dispatcher_.serve(chain.readable, chain.writable, delivery, hand, hand.scratch);
}

// For good, or, what waits for a lock while the queue stops, until it starts again.
void Crew::give_back(const Hand& hand, const virtio::Chain& chain, std::uint32_t written) {
  if (!hand.is_put_off() || !queue_.put_off()) queue_.push(chain, written);
}

bool Crew::help(Hand& hand) {
  Signals signals(queue_);
  virtio::Chain chain;
  Result<bool> popped = queue_.pop(hand.chain_scratch, chain);
  while (popped && *popped) {
    hand.begin_to_help();
    const std::size_t request_size = chain.readable.size();
    const std::uint32_t behind = chain.behind;
    const std::uint32_t written = serve(hand, chain);
    if (!hand.end()) {
      give_back(hand, chain, written);
      return true;
    }
    if (stopping_.load(std::memory_order_relaxed) || dismissed_.load(std::memory_order_relaxed)) {
      give_back(hand, chain, written);
      popped = false;
    } else {
      popped = queue_.push_and_pop(written, hand.chain_scratch, chain);
    }
    signals.pushed(std::max<std::size_t>(request_size, written), behind);
  }
  stop_helping();
  return false;
}

bool Crew::lead(Hand& hand) {
  std::uint64_t state = (lead_.load(std::memory_order_relaxed) & ~kPhaseMask) | kRing;
  lead_.store(state, std::memory_order_release);
  processors_.look_again();
  Signals signals(queue_);
  virtio::Chain chain;

  while (!stopping_.load(std::memory_order_relaxed)) {
    std::uint32_t burst = 0;
    Result<bool> popped = queue_.pop(hand.chain_scratch, chain);
    while (popped && *popped) {
      ++burst;
      consider_help(chain);
      state += kStep;
      const std::uint64_t serving = (state & ~kPhaseMask) | kServing;
      hand.begin(serving);
      lead_.store(serving, std::memory_order_release);
      const std::size_t request_size = chain.readable.size();
      const std::uint32_t behind = chain.behind;
      const std::uint32_t written = serve(hand, chain);
      if (!hand.end()) {
        give_back(hand, chain, written);
        return true;
      }
      if (stopping_.load(std::memory_order_relaxed)) {
        give_back(hand, chain, written);
        break;
      }
      popped = queue_.push_and_pop(written, hand.chain_scratch, chain);
      signals.pushed(std::max<std::size_t>(request_size, written), behind);
    }
    signals.flush();
    if (stopping_.load(std::memory_order_relaxed)) break;
    // Empty; or broken, and then only a reset makes it go on.
    if (popped && poll_for_work()) continue;
    // A sleeping thread must not keep a mapping of guest memory alive.
    hand.chain_scratch.memory.reset();
    if (burst != 0 && burst <= kLargestBurstBeforeNap && nap()) continue;
    if (!wait_for_work()) break;
  }
  lead_.store((state & ~kPhaseMask) | kVacant, std::memory_order_release);
  return false;
}

// Spins for the next request before sleeping, as long as that is worth it: after
// a spin in vain the next ones are left out, twice as many each time. What a
// hit saves is two wake-ups, this thread's and half of the driver's.
bool Crew::poll_for_work() {
  if (settings_.poll.count() == 0) return false;
  if (polls_.is_left_out() || !processors_.may_spin()) return false;
  // The signal before let the driver run, here perhaps: that says nothing about spinning.
  if (queue_.has_available()) {
    processors_.spun();
    return true;
  }
  const Clock::time_point begun = Clock::now();
  const bool has_one = processors_.count() == 1;
  const Spun spun = has_one ? spin_on_one_processor(begun) : spin(begun);
  help_policy_.idled(Clock::now() - begun);
  processors_.spun();
  if (has_one) {
    polls_.made(/*in_vain=*/spun != Spun::kFound, kMostLeftOutOnOneProcessor);
  } else {
    polls_.made(/*in_vain=*/spun != Spun::kFound);
  }
  if (spun == Spun::kNothing) processors_.look_again();
  return spun != Spun::kNothing;
}

// Time this thread had no processor doesn't count: what ran there may be what it waits for.
Crew::Spun Crew::spin(Clock::time_point now) {
  auto deadline = now + settings_.poll;
  do {
    for (int i = 0; i < kLooksPerRound; ++i) {
      if (queue_.has_available()) return Spun::kFound;
      pause_cpu();
    }
    const Clock::time_point before = std::exchange(now, Clock::now());
    if (now - before > kInterrupted) deadline += now - before;
  } while (!stopping_.load(std::memory_order_relaxed) && now < deadline);
  return Spun::kNothing;
}

Crew::Spun Crew::spin_on_one_processor(Clock::time_point now) {
  const auto deadline = now + std::min(settings_.poll, kSpinOnOneProcessor);
  while (!stopping_.load(std::memory_order_relaxed) && now < deadline) {
    bool found = false;
    for (int i = 0; i < kLooksOnOneProcessor && !found; ++i) {
      pause_cpu();
      found = queue_.has_available();
    }
    const Clock::time_point before = std::exchange(now, Clock::now());
    if (now - before > kInterruptedOnOneProcessor) return found ? Spun::kFoundLate : Spun::kNothing;
    if (found) return Spun::kFound;
  }
  return Spun::kNothing;
}

// Where driver and crew share a processor, each kick takes it from the driver.
bool Crew::nap() {
  if (settings_.nap.count() == 0 || processors_.count() > 1 || naps_.is_left_out()) return false;
  queue_.suppress_kicks();
  std::this_thread::sleep_for(settings_.nap);
  processors_.look_again();
  const bool found = queue_.has_available();
  naps_.made(/*in_vain=*/!found);
  return found;
}

// Sleeps until a kick. False when the crew is to stop.
bool Crew::wait_for_work() {
  if (queue_.enable_kicks()) {
    queue_.suppress_kicks();
    return true;
  }
  // A helper may have given one back and taken the next since we told the driver last, and be
  // stuck in that one. From here on, whatever it may take wakes this thread, too.
  tell_driver();
  const std::uint64_t steps = lead_.load(std::memory_order_relaxed) & ~kPhaseMask;
  lead_.store(steps | kWaiting, std::memory_order_release);
  processors_.end_work();
  const Clock::time_point begun = Clock::now();
  for (;;) {
    epoll_event events[2];
    const int count = ::epoll_wait(epoll_.number(), events, 2, kick_ ? -1 : kPolledRingMs);
    if (count < 0) {
      CHECK(errno == EINTR);
      continue;
    }
    processors_.begin_work();
    help_policy_.idled(Clock::now() - begun);
    if (stopping_.load(std::memory_order_acquire)) return false;
    std::uint64_t nudges = 0;
    if ((count > 0 && events[0].data.u64 == kStop) || (count == 2 && events[1].data.u64 == kStop))
      (void)!::read(stop_event_.number(), &nudges, sizeof nudges);
    if (kick_queues_bytes_) sys::drain_event(kick_->ref());
    queue_.suppress_kicks();
    lead_.store(steps | kRing, std::memory_order_seq_cst);
    watchdog_.note_activity();
    return true;
  }
}

}  // namespace virtiofsd
