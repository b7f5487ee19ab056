// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "base/log.h"
#include "sys/process.h"

namespace virtiofsd {
namespace {

using Clock = std::chrono::steady_clock;

// From the request to end: a worker gets this long to die of SIGTERM, and the
// kernel that long again to carry out SIGKILL. Together under a second.
constexpr auto kGrace = std::chrono::milliseconds(400);

// One byte each, over the socket pair between launcher and supervisor or worker.
constexpr char kIdsMapped = 'm';  // to the supervisor: go on
constexpr char kReady = 'r';      // from the worker: open the socket
constexpr char kListening = 'l';  // to the worker: it is open

// fork(2) with flags. CLONE_CHILD_SETTID as the C library's fork has it, so
// that its record of the thread's id is right in the child.
Result<pid_t> clone_process(unsigned long flags) {
  unsigned long tid_address = 0;
  if (::prctl(PR_GET_TID_ADDRESS, &tid_address, 0, 0, 0) == 0 && tid_address != 0) {
    flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
  } else {
    tid_address = 0;
  }
#if defined(__x86_64__)
  const long pid = ::syscall(SYS_clone, flags | SIGCHLD, 0UL, 0UL, tid_address, 0UL);
#else
  const long pid = ::syscall(SYS_clone, flags | SIGCHLD, 0UL, 0UL, 0UL, tid_address);
#endif
  if (pid < 0) return Errno::last();
  return static_cast<pid_t>(pid);
}

std::string signal_name(int number) {
  const char* name = ::sigabbrev_np(number);
  return name != nullptr ? fmt::format("SIG{}", name) : fmt::format("signal {}", number);
}

std::string describe(int signal) {
  std::string text = signal_name(signal);
  if (signal == SIGSYS) text += " (a system call that its seccomp filter doesn't allow)";
  return text;
}

bool is_stop_request(int signal) {
  return signal == SIGTERM || signal == SIGINT || signal == SIGHUP;
}

sigset_t watched_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::sigaddset(&set, signal);
  return set;
}

// Blocks the watched signals, so that they arrive here instead; inherited by children.
Result<UniqueFd> watch_signals() {
  const sigset_t set = watched_signals();
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) return Errno::last();
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return Errno::last();
  return fd;
}

bool send_byte(FdRef channel, char byte) {
  return ::send(channel.number(), &byte, 1, MSG_NOSIGNAL) == 1;
}

// None: the other end is gone.
std::optional<char> receive_byte(FdRef channel) {
  char byte = 0;
  ssize_t size = 0;
  do {
    size = ::recv(channel.number(), &byte, 1, 0);
  } while (size < 0 && errno == EINTR);
  if (size != 1) return std::nullopt;
  return byte;
}

struct Events {
  bool stop = false;
  bool child = false;
  bool channel = false;  // there is a byte, or the other end is gone
};

// Waits for signals, the channel (`channel_events` may be 0 for its end only)
// or `deadline`.
Events wait_for_events(FdRef signals, FdRef channel, short channel_events,
                       std::optional<Clock::time_point> deadline) {
  std::array<struct pollfd, 2> polled = {
      {{signals.number(), POLLIN, 0}, {channel.number(), channel_events, 0}}};
  int timeout = -1;
  if (deadline) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(*deadline - Clock::now()).count();
    timeout = left > 0 ? static_cast<int>(left) + 1 : 0;
  }
  Events events;
  if (::poll(polled.data(), polled.size(), timeout) <= 0) return events;
  events.channel = polled[1].revents != 0;
  struct signalfd_siginfo info {};
  while (::read(signals.number(), &info, sizeof(info)) == sizeof(info)) {
    const auto signal = static_cast<int>(info.ssi_signo);
    events.child = events.child || signal == SIGCHLD;
    events.stop = events.stop || is_stop_request(signal);
  }
  return events;
}

// The status of `pid` if it has ended.
std::optional<int> reap(pid_t pid) {
  int status = 0;
  if (::waitpid(pid, &status, WNOHANG) == pid) return status;
  return std::nullopt;
}

// The exit status for the tree when `who` ended with `status`. `stopping`: it was told to.
int judge(const char* who, int status, bool stopping,
          const char* why = "the guest has lost its file system") {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  const int signal = WTERMSIG(status);
  // A signal to the whole process group or a killall reaches the worker directly.
  if (stopping || is_stop_request(signal)) return 0;
  log::error("the {} was ended by {}; {}", who, describe(signal), why);
  return 1;
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
  const sigset_t set = watched_signals();
  ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
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

// The terminal is the caller's again. A log that goes to a file goes on.
void leave_terminal(FdRef null) {
  struct stat error_output {};
  const bool to_file = ::fstat(STDERR_FILENO, &error_output) == 0 && S_ISREG(error_output.st_mode);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fd != STDERR_FILENO || !to_file) ::dup2(null.number(), fd);
  }
}

}  // namespace

Result<void, Failure> WorkerStart::ready() {
  if (!send_byte(launcher_, kReady) || receive_byte(launcher_) != kListening) {
    return Failure{"the launching process is gone"};
  }
  if (null_.valid()) leave_terminal(null_);
  return {};
}

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
  int wait_for_supervisor(FdRef signals, UniqueFd channel, pid_t supervisor);
  [[noreturn]] void supervise(FdRef signals, FdRef channel);

  const ProcessTreeSettings& settings_;
  std::optional<sandbox::Plan> plan_;  // the launcher lets go of it once the child has it
  Listener& listener_;
  const std::function<int(WorkerStart&)>& worker_;
  UniqueFd caller_;
  UniqueFd null_;  // valid: the terminal is to be left
};

// In the sandbox's supervisor; never returns.
void ProcessTree::supervise(FdRef signals, FdRef channel) {
  const auto fail = [](const Failure& failure) {
    log::error("{}", failure.text());
    log::flush();
    ::_exit(1);
  };
  listener_.leave_to_launcher();
  caller_.reset();
  if (receive_byte(channel) != kIdsMapped) ::_exit(1);
  if (auto entered = plan_->enter(); !entered) fail(entered.error());
  // After the last change of credentials, which would clear it.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);

  widen_descriptor_table(channel);
  const std::vector<int> from_before = open_descriptors();
  const pid_t self = ::getpid();
  const auto start_worker = [&](int died_of) {
    const auto worker = clone_process(CLONE_FILES);
    if (!worker) fail(Failure{"can't start the worker process", worker.error()});
    if (*worker != 0) return *worker;
    if (died_of != 0) {
      std::vector<int> keep = settings_.inherits();
      if (is_named_twice(keep))
        fail(Failure{"what the worker left behind is damaged; the guest has lost its file system"});
      keep.insert(keep.end(), from_before.begin(), from_before.end());
      close_all_but(std::move(keep));
    }
    WorkerStart start(channel, null_);
    start.died_of = died_of;
    run_worker(*plan_, self, start, worker_);
  };

  pid_t worker = start_worker(0);
  Deaths deaths;
  bool stopping = false;
  for (;;) {
    if (const auto status = reap(worker)) {
      const int signal = WIFSIGNALED(*status) ? WTERMSIG(*status) : 0;
      const bool died = signal != 0 && !stopping && !is_stop_request(signal);
      if (died && settings_.against_succession) {
        const char* const against = settings_.against_succession();
        if (against != nullptr) {
          (void)judge("worker", *status, stopping, against);
          log::flush();
          ::_exit(1);
        }
        if (deaths.may_be_succeeded(signal, Clock::now())) {
          log::error("the worker was ended by {}; another one takes over", describe(signal));
          log::flush();
          worker = start_worker(signal);
          continue;
        }
        log::error("workers die too often to go on");
      }
      const int result = judge("worker", *status, stopping);
      log::flush();
      ::_exit(result);
    }
    const Events events = wait_for_events(signals, channel, 0, std::nullopt);
    if (events.channel) {
      channel = FdRef{};  // the launcher is gone
      ::kill(worker, SIGKILL);
    }
    if (events.stop || events.channel) {
      stopping = true;
      ::kill(worker, SIGTERM);
      // One that is stopped (a debugger, a frozen job) hears only when it goes on.
      ::kill(worker, SIGCONT);
    }
  }
}

Result<void, Failure> ProcessTree::open_for_clients(FdRef channel) {
  TRY(listener_.open());
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
  // Not running under systemd is no error.
  (void)::sd_notifyf(1, "READY=1\nSTATUS=Waiting for the VMM\nMAINPID=%d", ::getpid());
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
    const Events events = wait_for_events(signals, channel, POLLIN, deadline);
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
  listener_.remove();
  log::flush();
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
