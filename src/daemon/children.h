// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What a process needs that looks after another one: clones, signals as events, bytes over a
// channel, and what an end means. Launcher and supervisor, both single-threaded.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd {

// One byte each, over the socket pair between launcher and supervisor or worker.
inline constexpr char kIdsMapped = 'm';  // to the supervisor: go on
inline constexpr char kReady = 'r';      // from the worker: open the socket
inline constexpr char kListening = 'l';  // to the worker: it is open

// Exit statuses with a meaning of their own, which no user sees.
inline constexpr int kPaused = 80;      // of a worker: another one is to go on
inline constexpr int kHandedOver = 81;  // of a supervisor: another tree goes on

// fork(2) with flags.
Result<pid_t> clone_process(unsigned long flags);

// "SIGSEGV", and what there is to say about it.
std::string describe_signal(int signal);
// SIGTERM, SIGINT, SIGHUP.
bool is_stop_request(int signal);

// Blocks those signals and SIGCHLD, so that they arrive at the descriptor instead; inherited by
// children.
Result<UniqueFd> watch_signals();
// In a child that does no watching.
void stop_watching_signals();

bool send_byte(FdRef channel, char byte);
// None: the other end is gone.
std::optional<char> receive_byte(FdRef channel);

struct Events {
  bool stop = false;
  bool child = false;
  bool channel = false;  // there is a byte, or the other end is gone
  bool door = false;     // somebody wants to connect
};

// Waits for signals, the channel (`channel_events` may be 0 for its end only), somebody at the door
// or `deadline`. The latter three may be none.
Events wait_for_events(FdRef signals, FdRef channel, short channel_events, FdRef door,
                       std::optional<std::chrono::steady_clock::time_point> deadline);

// The status of `pid` if it has ended.
std::optional<int> reap(pid_t pid);

// The exit status for the tree when `who` ended with `status`. `stopping`: it was told to.
int judge(const char* who, int status, bool stopping,
          const char* why = "the guest has lost its file system");

// The terminal is the caller's again. A log that goes to a file goes on.
void leave_terminal(FdRef null);

}  // namespace virtiofsd
