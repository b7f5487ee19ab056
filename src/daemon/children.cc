// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/children.h"

#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "base/log.h"

namespace virtiofsd {
namespace {

using Clock = std::chrono::steady_clock;

std::string signal_name(int number) {
  const char* name = ::sigabbrev_np(number);
  return name != nullptr ? fmt::format("SIG{}", name) : fmt::format("signal {}", number);
}

sigset_t watched_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::sigaddset(&set, signal);
  return set;
}

}  // namespace

// CLONE_CHILD_SETTID as the C library's fork has it, so
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

std::string describe_signal(int signal) {
  std::string text = signal_name(signal);
  if (signal == SIGSYS) text += " (a system call that its seccomp filter doesn't allow)";
  return text;
}

bool is_stop_request(int signal) {
  return signal == SIGTERM || signal == SIGINT || signal == SIGHUP;
}

Result<UniqueFd> watch_signals() {
  const sigset_t set = watched_signals();
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) return Errno::last();
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return Errno::last();
  return fd;
}

void stop_watching_signals() {
  const sigset_t set = watched_signals();
  ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

bool send_byte(FdRef channel, char byte) {
  return ::send(channel.number(), &byte, 1, MSG_NOSIGNAL) == 1;
}

std::optional<char> receive_byte(FdRef channel) {
  char byte = 0;
  ssize_t size = 0;
  do {
    size = ::recv(channel.number(), &byte, 1, 0);
  } while (size < 0 && errno == EINTR);
  if (size != 1) return std::nullopt;
  return byte;
}

Events wait_for_events(FdRef signals, FdRef channel, short channel_events, FdRef door,
                       std::optional<Clock::time_point> deadline) {
  std::array<struct pollfd, 3> polled = {{{signals.number(), POLLIN, 0},
                                          {channel.number(), channel_events, 0},
                                          {door.number(), POLLIN, 0}}};
  int timeout = -1;
  if (deadline) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(*deadline - Clock::now()).count();
    timeout = left > 0 ? static_cast<int>(left) + 1 : 0;
  }
  Events events;
  if (::poll(polled.data(), polled.size(), timeout) <= 0) return events;
  events.channel = polled[1].revents != 0;
  events.door = polled[2].revents != 0;
  struct signalfd_siginfo info {};
  while (::read(signals.number(), &info, sizeof(info)) == sizeof(info)) {
    const auto signal = static_cast<int>(info.ssi_signo);
    events.child = events.child || signal == SIGCHLD;
    events.stop = events.stop || is_stop_request(signal);
  }
  return events;
}

std::optional<int> reap(pid_t pid) {
  int status = 0;
  if (::waitpid(pid, &status, WNOHANG) == pid) return status;
  return std::nullopt;
}

int judge(const char* who, int status, bool stopping, const char* why) {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  const int signal = WTERMSIG(status);
  // A signal to the whole process group or a killall reaches the worker directly.
  if (stopping || is_stop_request(signal)) return 0;
  log::error("the {} was ended by {}; {}", who, describe_signal(signal), why);
  return 1;
}

void leave_terminal(FdRef null) {
  struct stat error_output {};
  const bool to_file = ::fstat(STDERR_FILENO, &error_output) == 0 && S_ISREG(error_output.st_mode);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fd != STDERR_FILENO || !to_file) ::dup2(null.number(), fd);
  }
}

}  // namespace virtiofsd
