// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Landlock: the kernel refuses this process, and all it starts, every file
// outside one directory, whatever root or working directory it has. The one
// guard besides our own checks that holds with --sandbox=none.
#pragma once

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd::sandbox {

// Restricts the calling thread for good; needs no_new_privs. False where the
// kernel has no landlock or has it turned off.
Result<bool, Failure> restrict_to(FdRef directory);

}  // namespace virtiofsd::sandbox
