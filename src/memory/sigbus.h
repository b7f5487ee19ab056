// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Surviving guest memory that goes away. Whoever owns a memory file can
// truncate it while we have it mapped, and a touch of a page past the new end
// is SIGBUS. For watched ranges the handler puts a private zero page there and
// goes on: the request sees zeros, the process lives. Any other SIGBUS keeps
// its default meaning.
//
// Writers (watch, forget) take a lock; the handler only loads atomics and
// makes one mmap system call, so it may run on any thread at any time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"

namespace virtiofsd::sigbus {

// Ranges that can be watched at once.
inline constexpr std::size_t kMostRanges = 4096;

// Once per process, before threads start. A forked child inherits it.
Result<> install();

// Watches `size` bytes from `start`; both are multiples of `page_size`, which
// is the size of the pages the range is mapped with (a huge page can only be
// replaced as a whole). ENOSPC when kMostRanges are watched already. Any thread.
Result<> watch(const void* start, std::size_t size, std::size_t page_size);

// Ends the watch that began at `start`. Call before unmapping. Any thread.
void forget(const void* start);

// Pages replaced so far by this process: when it moved while a request ran,
// the bytes of that request may be zeros nobody wrote. Any thread.
std::uint64_t faults();

}  // namespace virtiofsd::sigbus
