// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Time and CPU time in nanoseconds, and the processors a thread may use.
#pragma once

#include <sched.h>
#include <sys/types.h>
#include <time.h>

#include <cstdint>
#include <span>
#include <vector>

namespace virtiofsd::bench {

inline std::uint64_t read_clock(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(time.tv_nsec);
}

inline std::uint64_t now_ns() {
  return read_clock(CLOCK_MONOTONIC);
}
inline std::uint64_t thread_cpu_ns() {
  return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

// User and system time of all threads of these processes, those that ended
// included, to the nanosecond: the ticks of /proc/PID/stat are too coarse.
inline std::uint64_t cpu_ns(std::span<const pid_t> processes) {
  std::uint64_t sum = 0;
  for (const pid_t pid : processes) {
    clockid_t clock{};
    if (clock_getcpuclockid(pid, &clock) == 0) sum += read_clock(clock);
  }
  return sum;
}

// Where driver and daemon run.
enum class Place : std::uint8_t {
  kAny,    // wherever the scheduler puts them
  kOne,    // both on one processor: a wake-up is a context switch
  kApart,  // one processor each
};

// The processors this process may use, in order. Asked once, before anybody is moved.
inline const std::vector<int>& processors() {
  static const std::vector<int> all = [] {
    cpu_set_t set;
    std::vector<int> found;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
      for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &set)) found.push_back(cpu);
    }
    return found;
  }();
  return all;
}

// Moves a thread (0: the calling one). With one processor only, everything is kOne.
inline void move_thread(pid_t thread, Place place, bool daemon) {
  const std::vector<int>& cpus = processors();
  cpu_set_t set;
  CPU_ZERO(&set);
  if (place == Place::kAny) {
    for (const int cpu : cpus) CPU_SET(cpu, &set);
  } else {
    CPU_SET(place == Place::kApart && daemon ? cpus.back() : cpus.front(), &set);
  }
  sched_setaffinity(thread, sizeof(set), &set);
}

}  // namespace virtiofsd::bench
