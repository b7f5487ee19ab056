// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/process_tree.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <optional>
#include <utility>

#include "base/log.h"
#include "daemon/children.h"
#include "daemon/handover.h"
#include "daemon/supervisor.h"
#include "sys/process.h"

namespace virtiofsd {
namespace {

using Clock = std::chrono::steady_clock;

// From the request to end: a worker gets this long to die of SIGTERM, and the
// kernel that long again to carry out SIGKILL. Together under a second.
constexpr auto kGrace = std::chrono::milliseconds(400);

}  // namespace

Result<void, Failure> WorkerStart::ready() {
  if (!send_byte(launcher_, kReady) || receive_byte(launcher_) != kListening) {
    return Failure{"the launching process is gone"};
  }
  if (null_.valid()) leave_terminal(null_);
  return {};
}

void WorkerStart::end_paused() {
  log::flush();
  ::_exit(kPaused);
}

class ProcessTree {
 public:
  ProcessTree(const ProcessTreeSettings& settings, std::optional<sandbox::Plan> plan,
              Listener& listener, const std::function<int(WorkerStart&)>& worker)
      : settings_(settings), plan_(std::move(plan)), listener_(listener), worker_(worker) {}

  int launch();
  // Tell `caller` when the socket is there, and let go of its terminal then.
  void release_later(UniqueFd caller, UniqueFd null) {
    caller_ = std::move(caller);
    null_ = std::move(null);
  }

 private:
  Result<int, Failure> launch_and_wait();
  Result<void, Failure> open_for_clients(FdRef channel);
  Result<void, Failure> take_over();
  void see_predecessor_off();
  int wait_for_supervisor(FdRef signals, UniqueFd channel, pid_t supervisor);
  [[noreturn]] void supervise(FdRef signals, FdRef channel);

  const ProcessTreeSettings& settings_;
  std::optional<sandbox::Plan> plan_;  // the launcher lets go of it once the child has it
  Listener& listener_;
  const std::function<int(WorkerStart&)>& worker_;
  UniqueFd caller_;
  UniqueFd null_;                       // valid: the terminal is to be left
  std::optional<handover::Door> door_;  // where another tree comes to take over
  std::optional<handover::Predecessor> predecessor_;
  bool is_open_ = false;
};

// In the sandbox's supervisor; never returns.
void ProcessTree::supervise(FdRef signals, FdRef channel) {
  listener_.leave_to_launcher();
  caller_.reset();
  Supervisor supervisor(settings_, *plan_,
                        {.signals = signals,
                         .channel = channel,
                         .null = null_,
                         .door = door_ ? door_->socket.ref() : FdRef{}},
                        worker_);
  supervisor.run(predecessor_ ? &*predecessor_ : nullptr);
}

// The worker could go on: it may, and the other tree no more.
Result<void, Failure> ProcessTree::take_over() {
  // Before that one ends, or a service manager would think that the service has.
  (void)::sd_notifyf(0, "MAINPID=%d", ::getpid());
  auto finished = predecessor_->finish();
  if (!finished) {
    (void)::sd_notifyf(0, "MAINPID=%d", *settings_.take_over);
    constexpr std::uint64_t kMicroseconds = 1'000'000;
    (void)::sd_notify_barrier(0, kMicroseconds);
  }
  return finished;
}

void ProcessTree::see_predecessor_off() {
  if (const auto gone = predecessor_->see_off(); !gone) {
    log::warn("the virtiofsd before (pid {}) hasn't ended yet: {}", *settings_.take_over,
              gone.error().text());
  }
  predecessor_.reset();
  if (const auto taken = listener_.take_over(); !taken) log::warn("{}", taken.error().text());
}

Result<void, Failure> ProcessTree::open_for_clients(FdRef channel) {
  if (is_open_) {
    // The worker that said so before has died since.
    (void)send_byte(channel, kListening);
    return {};
  }
  if (predecessor_) {
    TRY(take_over());
  } else {
    TRY(listener_.open());
  }
  is_open_ = true;
  // The launcher needs no more than to remove two files, wherever they are.
  constexpr std::uint64_t kRemoving =
      (std::uint64_t{1} << CAP_DAC_OVERRIDE) | (std::uint64_t{1} << CAP_FOWNER);
  if (const auto held = sys::capabilities()) {
    const std::uint64_t keep = held->permitted & kRemoving;
    if (auto set = sys::set_capabilities({.effective = keep, .permitted = keep}); !set) {
      return Failure{"can't drop the launcher's capabilities", set.error()};
    }
  }
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  // Somebody who is gone already has said why, or the supervisor will.
  if (!send_byte(channel, kListening)) return {};
  if (predecessor_) see_predecessor_off();
  // Not running under systemd is no error.
  (void)::sd_notifyf(1, "READY=1\nSTATUS=%s\nMAINPID=%d",
                     settings_.take_over ? "Serving" : "Waiting for the VMM", ::getpid());
  if (caller_) {
    const char status = 0;
    if (::write(caller_.number(), &status, 1) < 0) log::debug("the caller didn't wait");
    caller_.reset();
    leave_terminal(null_);
  }
  return {};
}

int ProcessTree::wait_for_supervisor(FdRef signals, UniqueFd channel, pid_t supervisor) {
  bool stopping = false;
  bool killed = false;
  bool failed = false;
  std::optional<Clock::time_point> deadline;
  const auto stop = [&] {
    if (stopping) return;
    stopping = true;
    deadline = Clock::now() + kGrace;
    ::kill(supervisor, SIGTERM);
  };
  for (;;) {
    if (const auto status = reap(supervisor)) {
      const int result = judge("supervisor", *status, stopping);
      return failed && result == 0 ? 1 : result;
    }
    const Events events = wait_for_events(signals, channel, POLLIN, FdRef{}, deadline);
    if (events.stop) stop();
    if (events.channel) {
      if (receive_byte(channel) != kReady) {
        channel.reset();  // its end is closed; the exit status follows
      } else if (!stopping) {
        if (auto opened = open_for_clients(channel); !opened) {
          log::error("{}", opened.error().text());
          failed = true;
          stop();
        }
      }
    }
    if (!deadline || Clock::now() < *deadline) continue;
    if (killed) {
      log::error("a process hangs in the kernel and is left behind (pid {})", supervisor);
      return 1;
    }
    killed = true;
    deadline = Clock::now() + kGrace;
    ::kill(supervisor, SIGKILL);
  }
}

Result<int, Failure> ProcessTree::launch_and_wait() {
  if (settings_.take_over) {
    predecessor_ = TRY(handover::Predecessor::find(*settings_.take_over));
  }
  if (settings_.estate != nullptr) {
    auto door = handover::Door::open();
    if (door) {
      door_ = std::move(*door);
    } else {
      log::info("another virtiofsd won't be able to take over from this one: {}",
                door.error().text());
    }
  }
  auto signals = watch_signals();
  if (!signals) return Failure{"can't watch for signals", signals.error()};
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0) {
    return Failure{"can't make a socket pair", Errno::last()};
  }
  UniqueFd channel(pair[0]);
  UniqueFd inner(pair[1]);
  const auto child = clone_process(static_cast<unsigned long>(plan_->clone_flags()));
  if (!child) {
    if (plan_->needs_id_maps()) {
      return Failure{
          fmt::format("--sandbox=namespace can't make a user namespace ({}): this system keeps "
                      "ordinary users from it; run as root, or choose --sandbox=none",
                      child.error().text())};
    }
    return Failure{
        fmt::format("--sandbox=namespace can't make its namespaces ({}); "
                    "--sandbox=chroot and --sandbox=none ask for less",
                    child.error().text())};
  }
  if (*child == 0) {
    channel.reset();
    supervise(*signals, inner);
  }
  inner.reset();
  if (door_) door_->socket.reset();
  if (plan_->needs_id_maps()) {
    if (auto mapped = plan_->map_ids(*child); !mapped) {
      channel.reset();  // it waits for a byte, and ends without
      int status = 0;
      ::waitpid(*child, &status, 0);
      return std::move(mapped).error();
    }
  }
  plan_.reset();  // the share needn't stay busy in the caller's mounts because of us
  // If it is gone already its status says so.
  (void)send_byte(channel, kIdsMapped);
  return wait_for_supervisor(*signals, std::move(channel), *child);
}

int ProcessTree::launch() {
  auto status = launch_and_wait();
  if (!status) log::error("{}", status.error().text());
  if (door_) door_->remove();
  // What another tree took over is its own to remove.
  const bool handed_over = status && *status == kHandedOver;
  if (!handed_over) listener_.remove();
  log::flush();
  if (handed_over) return 0;
  return status ? *status : 1;
}

namespace {

// Leaves a child to go on in the background; the caller's process waits for
// the first byte (the socket is there) or the end, and returns through `status`.
Result<UniqueFd> go_to_background(std::optional<int>& status) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return Errno::last();
  UniqueFd from_daemon(ends[0]);
  UniqueFd to_caller(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return Errno::last();
  if (child > 0) {
    to_caller.reset();
    char byte = 1;
    ssize_t size = 0;
    do {
      size = ::read(from_daemon.number(), &byte, 1);
    } while (size < 0 && errno == EINTR);
    status = size == 1 ? byte : 1;
    return to_caller;
  }
  ::setsid();
  return to_caller;
}

}  // namespace

int run_process_tree(const ProcessTreeSettings& settings, sandbox::Plan plan, Listener& listener,
                     const std::function<int(WorkerStart&)>& worker) {
  ProcessTree tree(settings, std::optional(std::move(plan)), listener, worker);
  if (settings.daemonize) {
    UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    std::optional<int> status;
    auto background = null ? go_to_background(status) : Result<UniqueFd>(Errno::last());
    if (!background) {
      log::error("can't go to the background: {}", background.error().text());
      listener.remove();
      return 1;
    }
    if (status) return *status;
    tree.release_later(std::move(background).value(), std::move(null));
  }
  return tree.launch();
}

}  // namespace virtiofsd
