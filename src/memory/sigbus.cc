// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/sigbus.h"

#include <signal.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <bit>

#include "base/check.h"
#include "base/sync.h"

namespace virtiofsd::sigbus {
namespace {

struct Range {
  std::atomic<std::uintptr_t> begin{0};  // 0: a free slot
  std::atomic<std::uintptr_t> end{0};
  std::atomic<std::size_t> page_size{0};
};

constinit std::array<Range, kMostRanges> ranges{};
constinit std::atomic<std::size_t> slots_ever_used{0};
constinit std::atomic<std::uint64_t> fault_count{0};
Mutex writer_mutex;

static_assert(std::atomic<std::uintptr_t>::is_always_lock_free);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

// Async-signal-safe: atomics and one raw system call.
bool replace_page(std::uintptr_t address) {
  const std::size_t slots = slots_ever_used.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < slots; ++i) {
    const Range& range = ranges[i];
    const std::uintptr_t begin = range.begin.load(std::memory_order_acquire);
    const std::uintptr_t end = range.end.load(std::memory_order_acquire);
    const std::size_t page_size = range.page_size.load(std::memory_order_acquire);
    if (begin == 0 || address < begin || address >= end) continue;
    // A slot that changed hands between the loads describes nothing.
    if (range.begin.load(std::memory_order_acquire) != begin) continue;
    const std::uintptr_t page = address & ~(page_size - 1);
    void* const at = std::bit_cast<void*>(page);
    if (::mmap(at, page_size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
               0) == MAP_FAILED) {
      return false;
    }
    fault_count.fetch_add(1, std::memory_order_release);
    return true;
  }
  return false;
}

void on_sigbus(int signal_number, siginfo_t* info, void*) {
  const int saved = errno;
  // BUS_ADRERR is a page past the end of its file. Failing hardware
  // (BUS_MCEERR_*) must not be papered over with zeros.
  const bool recovered =
      info->si_code == BUS_ADRERR && replace_page(std::bit_cast<std::uintptr_t>(info->si_addr));
  if (!recovered) {
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    ::sigaction(signal_number, &action, nullptr);
    // Blocked while we are in here; delivered with its default meaning on return.
    ::raise(signal_number);
  }
  errno = saved;
}

}  // namespace

Result<> install() {
  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  if (::sigaction(SIGBUS, &action, nullptr) != 0) return Errno::last();
  return {};
}

Result<> watch(const void* start, std::size_t size, std::size_t page_size) {
  const auto begin = std::bit_cast<std::uintptr_t>(start);
  CHECK(std::has_single_bit(page_size) && begin % page_size == 0 && size % page_size == 0);
  Lock lock(writer_mutex);
  for (std::size_t i = 0; i < kMostRanges; ++i) {
    Range& range = ranges[i];
    if (range.begin.load(std::memory_order_relaxed) != 0) continue;
    range.end.store(begin + size, std::memory_order_relaxed);
    range.page_size.store(page_size, std::memory_order_relaxed);
    range.begin.store(begin, std::memory_order_release);
    if (slots_ever_used.load(std::memory_order_relaxed) <= i)
      slots_ever_used.store(i + 1, std::memory_order_release);
    return {};
  }
  return Errno{ENOSPC};
}

void forget(const void* start) {
  const auto begin = std::bit_cast<std::uintptr_t>(start);
  Lock lock(writer_mutex);
  for (Range& range : ranges) {
    if (range.begin.load(std::memory_order_relaxed) != begin) continue;
    range.begin.store(0, std::memory_order_release);
    return;
  }
}

std::uint64_t faults() {
  return fault_count.load(std::memory_order_acquire);
}

}  // namespace virtiofsd::sigbus
