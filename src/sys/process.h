// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What one thread is to the kernel: ids, groups, capabilities, umask, working
// directory and name. The C library changes most of them for the whole process;
// here every call is the raw one and touches the calling thread only.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"

namespace virtiofsd::sys {

// Gives the calling thread its own umask and working directory, sets the umask
// to 0 and works in /proc/self/fd from then on. EPERM where a filter forbids unshare.
Result<> separate_thread();
// True once separate_thread succeeded on this thread.
bool works_in_proc_self_fd();

// For ps and debuggers: the first 15 bytes. (The C library names other threads
// through /proc, which the sandbox has not.)
void name_this_thread(const std::string& name);

// The file system ids decide who owns what the thread creates and what it may
// touch. EINVAL when the kernel didn't take the id (unmapped, or no
// privilege): verified by reading it back, as setfsuid itself says nothing.
// Leaving id 0 takes the file system capabilities (CAP_CHOWN, CAP_DAC_OVERRIDE,
// CAP_FOWNER, CAP_FSETID, CAP_MKNOD ...) out of the effective set; coming back
// to 0 puts the permitted ones in again.
Result<> set_fs_uid(uid_t uid);
Result<> set_fs_gid(gid_t gid);
uid_t fs_uid();
gid_t fs_gid();
// Exactly these supplementary groups. EPERM without CAP_SETGID.
Result<> set_groups(std::span<const gid_t> groups);

// Capability sets of the calling thread, bit n for capability n.
struct Capabilities {
  std::uint64_t effective = 0;
  std::uint64_t permitted = 0;
  std::uint64_t inheritable = 0;
};
Result<Capabilities> capabilities();
Result<> set_capabilities(const Capabilities& capabilities);

}  // namespace virtiofsd::sys
