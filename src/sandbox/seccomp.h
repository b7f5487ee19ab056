// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Which system calls each kind of process or thread may make. A filter stays
// for good, is inherited by what the thread makes, and stacks: a call needs the
// yes of each. Known calls that aren't listed meet the mode's action; calls
// that are newer than the list, and a few that the C library tries first, fail with ENOSYS.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "sandbox/sandbox.h"

namespace virtiofsd::sandbox {

enum class Role : std::uint8_t {
  kSupervisor,  // starts workers and waits for them; also what a worker needs
  kWorker,      // the conversation with the VMM, threads, and all that a request needs
  kRequest,     // file system calls only
};

// Filters the calling thread; to be called before it makes others. Nothing for SeccompMode::kNone.
Result<void, Failure> load_seccomp(Role role, SeccompMode mode);

}  // namespace virtiofsd::sandbox
