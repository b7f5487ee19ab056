// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/supervisor.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "daemon/children.h"
#include "sys/process.h"

namespace virtiofsd {
namespace {

// A worker that is asked to comes to rest at once, but for a message of the VMM's or a request that
// takes long.
constexpr auto kTimeToRest = std::chrono::seconds(2);
// To build a sandbox, and to find that all is as it should be.
constexpr auto kTimeToLook = std::chrono::seconds(30);

[[noreturn]] void fail(const Failure& failure) {
  log::error("{}", failure.text());
  log::flush();
  ::_exit(1);
}

// Makes the descriptor table as wide as most guests will ever need it. It grows by doubling, and
// while others share it that takes an RCU grace period (expand_fdtable): 7 to 16 ms each time, for
// every thread that opens something. Alone, it takes none. 256 KiB of the kernel's memory.
void widen_descriptor_table(FdRef any) {
  constexpr rlim_t kSlots = 32768;
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == 0) return;
  const auto last = static_cast<int>(std::min(limit.rlim_cur, kSlots) - 1);
  // The table stays as it is when the descriptor is closed. Without memory for it, it grows as
  // needed.
  const UniqueFd widest{::fcntl(any.number(), F_DUPFD_CLOEXEC, last)};
}

// Those that are open below a number that a process which has just started doesn't reach.
std::vector<int> open_descriptors() {
  constexpr int kMost = 1024;
  std::vector<int> open;
  for (int fd = 0; fd < kMost; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) open.push_back(fd);
  }
  return open;
}

// Two that think one descriptor theirs would close it under each other.
bool is_named_twice(std::vector<int>& descriptors) {
  std::erase_if(descriptors, [](int fd) { return fd < 0; });
  std::ranges::sort(descriptors);
  return std::ranges::adjacent_find(descriptors) != descriptors.end();
}

void close_all_but(std::vector<int> keep) {
  std::ranges::sort(keep);
  unsigned next = 0;
  for (const int fd : keep) {
    const auto number = static_cast<unsigned>(fd);
    if (number > next) ::close_range(next, number - 1, 0);
    next = std::max(next, number + 1);
  }
  ::close_range(next, ~0U, 0);
}

// What the worker runs in; never returns.
[[noreturn]] void run_worker(sandbox::Plan& plan, pid_t supervisor, WorkerStart& start,
                             const std::function<int(WorkerStart&)>& worker) {
  sys::name_this_thread("virtiofsd");
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);  // a file size limit is the guest's EFBIG, not our end
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::signal(signal, SIG_DFL);
  stop_watching_signals();
  ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  // It may have died before that was set.
  if (::getppid() != supervisor) ::_exit(1);
  auto entered = plan.enter_worker();
  int status = 1;
  if (entered) {
    start.sandbox = std::move(entered).value();
    status = worker(start);
  } else {
    log::error("{}", entered.error().text());
  }
  log::flush();
  // No destructors: a million inodes needn't be taken apart one by one.
  ::_exit(status);
}

}  // namespace

// One more at `now`: not too many yet?
bool Deaths::is_within(const Limit& limit, std::deque<Clock::time_point>& deaths,
                       Clock::time_point now) {
  while (!deaths.empty() && now - deaths.front() > limit.within) deaths.pop_front();
  deaths.push_back(now);
  return deaths.size() <= limit.most;
}

bool Deaths::may_be_succeeded(int signal, Clock::time_point now) {
  if (signal == SIGKILL) {
    const bool not_at_once = is_within(kKilled, killed_, now);
    return is_within(kKilledLately, killed_lately_, now) && not_at_once;
  }
  return is_within(kFailed, failed_, now) && ++failed_in_all_ <= kFailedInAll;
}

void Supervisor::run(handover::Predecessor* predecessor) {
  if (receive_byte(inherited_.channel) != kIdsMapped) ::_exit(1);
  if (auto entered = plan_.enter(); !entered) fail(entered.error());
  // After the last change of credentials, which would clear it.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);

  widen_descriptor_table(inherited_.channel);
  auto pause = sys::EventFd::create();
  if (!pause) fail(Failure{"can't make an eventfd", pause.error()});
  pause_.emplace(std::move(*pause));
  from_before_ = open_descriptors();
  if (predecessor != nullptr) {
    if (auto taken = take_over_from(*predecessor); !taken) fail(taken.error());
  }
  start_worker(predecessor != nullptr ? WorkerStart::After::kTree : WorkerStart::After::kNobody);
  for (;;) {
    if (const auto status = reap(worker_)) worker_ended(*status);
    FdRef visitor = inherited_.door;
    if (heir_) visitor = heir_waits_ ? FdRef{} : heir_->fd();
    if (stopping_) visitor = FdRef{};
    const Events events = wait_for_events(inherited_.signals, inherited_.channel, 0, visitor,
                                          heir_ ? std::optional(heir_deadline_) : std::nullopt);
    if (events.channel) {
      inherited_.channel = FdRef{};  // the launcher is gone
      ::kill(worker_, SIGKILL);
    }
    if (events.stop || events.channel) stop();
    if (events.door && !stopping_) heir_ ? hear_heir() : meet_heir();
    if (heir_ && Clock::now() >= heir_deadline_) {
      (void)pause_->drain();
      refuse_heir(heir_waits_
                      ? "something takes long, a request or a message of the VMM; try again later"
                      : "it didn't say in time that it wants to take over");
    }
  }
}

void Supervisor::stop() {
  stopping_ = true;
  heir_.reset();
  ::kill(worker_, SIGTERM);
  // One that is stopped (a debugger, a frozen job) hears only when it goes on.
  ::kill(worker_, SIGCONT);
}

void Supervisor::start_worker(WorkerStart::After after, bool blames) {
  (void)pause_->drain();
  may_rest_ = false;
  after_ = after;
  if (after != WorkerStart::After::kNobody) {
    // Here, where nobody else opens or closes anything.
    std::vector<int> keep = settings_.estate->inherits();
    if (is_named_twice(keep))
      fail(Failure{"what the worker left behind is damaged; the guest has lost its file system"});
    keep.insert(keep.end(), from_before_.begin(), from_before_.end());
    close_all_but(std::move(keep));
  }
  const pid_t self = ::getpid();
  const auto worker = clone_process(CLONE_FILES);
  if (!worker) fail(Failure{"can't start the worker process", worker.error()});
  worker_ = *worker;
  if (worker_ != 0) return;
  WorkerStart start(inherited_.channel, inherited_.null);
  start.after = after;
  start.blames = blames;
  start.pause = pause_->ref();
  run_worker(plan_, self, start, worker_function_);
}

// Starts the next one, or ends with the worker.
void Supervisor::worker_ended(int status) {
  using After = WorkerStart::After;
  const bool paused = may_rest_ && WIFEXITED(status) && WEXITSTATUS(status) == kPaused;
  const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  const bool died = signal != 0 && !is_stop_request(signal);
  if (!stopping_ && (paused || died) && settings_.estate != nullptr) {
    // Until a worker has begun to serve, the other tree may go on: the next one has to take over.
    const bool has_taken_over = after_ != After::kTree || settings_.estate->has_client();
    const char* const against = has_taken_over ? settings_.estate->against_succession() : nullptr;
    if (against != nullptr) {
      if (heir_) refuse_heir(against);
      (void)judge("worker", status, false, against);
      log::flush();
      // The next client needs nothing of what is left.
      const bool has_listened = after_ == After::kClient || settings_.estate->has_client();
      if (!settings_.keep_listening || !has_listened || !died ||
          !deaths_.may_be_succeeded(signal, Clock::now())) {
        ::_exit(1);
      }
      settings_.estate->begin_again();
      return start_worker(After::kClient);
    }
    if (paused) {
      // It may have taken so long that the one who waited has been sent away.
      if (heir_ && heir_waits_) hand_over();
      if (heir_) refuse_heir("the worker is another one now; try again");
      log::flush();
      return start_worker(After::kWorker);
    }
    if (heir_) refuse_heir("its worker died just now; try again");
    if (deaths_.may_be_succeeded(signal, Clock::now())) {
      log::error("the worker was ended by {}; another one takes over", describe_signal(signal));
      log::flush();
      return start_worker(has_taken_over ? After::kWorker : After::kTree, signal != SIGKILL);
    }
    log::error("workers die too often to go on");
  }
  const bool is_next_client = WIFEXITED(status) && WEXITSTATUS(status) == 0 && !stopping_;
  if (is_next_client && settings_.keep_listening) {
    if (heir_) refuse_heir("its VMM has left");
    settings_.estate->begin_again();
    return start_worker(After::kClient);
  }
  int result = judge("worker", status, stopping_);
  // Those mean something else to whoever looks at this process.
  if (result == kPaused || result == kHandedOver) result = stopping_ ? 0 : 1;
  log::flush();
  ::_exit(result);
}

// ---- one tree after another ------------------------------------------------------------

void Supervisor::meet_heir() {
  auto heir = handover::Heir::meet(inherited_.door);
  if (!heir) return log::warn("not handed over: {}", heir.error().text());
  if (settings_.estate == nullptr || !settings_.estate->has_client())
    return heir->refuse("it serves no VMM now; if it waits for one, end it and start the new one");
  // In good time before the worker stops, so that a program which can't go on doesn't delay it.
  if (auto offered = heir->offer(settings_.estate->memory(), plan_.root(), plan_.mount_namespace());
      !offered)
    return log::warn("not handed over: {}", offered.error().text());
  heir_ = std::move(*heir);
  heir_waits_ = false;
  heir_deadline_ = Clock::now() + kTimeToLook;
}

// It has looked at what there is.
void Supervisor::hear_heir() {
  if (auto wish = heir_->hear_wish(); !wish) {
    log::warn("not handed over: {}", wish.error().text());
    return heir_.reset();
  }
  heir_deadline_ = Clock::now() + kTimeToRest;
  heir_waits_ = true;
  may_rest_ = true;
  pause_->signal();
}

void Supervisor::refuse_heir(const char* why) {
  log::warn("not handed over: {}", why);
  heir_->refuse(why);
  heir_.reset();
}

// Ends the process; returns when the heir has failed, and the device is still ours.
void Supervisor::hand_over() {
  std::vector<int> descriptors = settings_.estate->inherits();
  if (is_named_twice(descriptors)) return refuse_heir("what the worker left behind is damaged");
  auto gone = heir_->give(descriptors);
  if (gone) gone = heir_->let_go();
  if (gone) {
    log::info("handed over to a new process");
    log::flush();
    ::_exit(kHandedOver);
  }
  log::error("not handed over: {}; another worker goes on", gone.error().text());
  heir_.reset();
}

Result<void, Failure> Supervisor::take_over_from(handover::Predecessor& predecessor) {
  handover::Offered offered = TRY(predecessor.ask());
  TRY(settings_.estate->consider(std::move(offered.arena)));
  TRY(plan_.adopt(std::move(offered.root), std::move(offered.mount_namespace)));
  // What was closed with that isn't from before any more; those of the records never were.
  const auto goes = predecessor.descriptors();
  std::erase_if(from_before_, [&](int fd) {
    return ::fcntl(fd, F_GETFD) < 0 || std::ranges::find(goes, fd) != goes.end();
  });
  from_before_.push_back(plan_.root().number());
  from_before_.push_back(plan_.mount_namespace().number());
  auto descriptors = TRY(predecessor.take());
  TRY(settings_.estate->adopt(std::move(descriptors)));
  predecessor.close();
  return {};
}

}  // namespace virtiofsd
