// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sys/process.h"

#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

#include "sys/files.h"

namespace virtiofsd::sys {
namespace {

thread_local bool in_proc_self_fd = false;

// No id is all ones: the call changes nothing and says what is.
constexpr unsigned kReadBack = ~0U;

}  // namespace

Result<> separate_thread() {
  if (in_proc_self_fd) return {};
  if (::unshare(CLONE_FS) < 0) return Errno::last();
  ::umask(0);
  if (::fchdir(proc_self_fd().number()) < 0) return Errno::last();
  in_proc_self_fd = true;
  return {};
}

bool works_in_proc_self_fd() {
  return in_proc_self_fd;
}

uid_t fs_uid() {
  return static_cast<uid_t>(::syscall(SYS_setfsuid, kReadBack));
}

gid_t fs_gid() {
  return static_cast<gid_t>(::syscall(SYS_setfsgid, kReadBack));
}

void name_this_thread(const std::string& name) {
  ::prctl(PR_SET_NAME, name.c_str(), 0, 0, 0);
}

Result<> set_fs_uid(uid_t uid) {
  ::syscall(SYS_setfsuid, uid);
  if (uid == kReadBack || fs_uid() != uid) return Errno{EINVAL};
  return {};
}

Result<> set_fs_gid(gid_t gid) {
  ::syscall(SYS_setfsgid, gid);
  if (gid == kReadBack || fs_gid() != gid) return Errno{EINVAL};
  return {};
}

Result<> set_groups(std::span<const gid_t> groups) {
  if (::syscall(SYS_setgroups, groups.size(), groups.data()) < 0) return Errno::last();
  return {};
}

Result<Capabilities> capabilities() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
  if (::syscall(SYS_capget, &header, data.data()) < 0) return Errno::last();
  const auto join = [](std::uint32_t low, std::uint32_t high) {
    return low | static_cast<std::uint64_t>(high) << 32;
  };
  return Capabilities{.effective = join(data[0].effective, data[1].effective),
                      .permitted = join(data[0].permitted, data[1].permitted),
                      .inheritable = join(data[0].inheritable, data[1].inheritable)};
}

Result<> set_capabilities(const Capabilities& capabilities) {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
  for (int half = 0; half < 2; half++) {
    data[half].effective = static_cast<std::uint32_t>(capabilities.effective >> (32 * half));
    data[half].permitted = static_cast<std::uint32_t>(capabilities.permitted >> (32 * half));
    data[half].inheritable = static_cast<std::uint32_t>(capabilities.inheritable >> (32 * half));
  }
  if (::syscall(SYS_capset, &header, data.data()) < 0) return Errno::last();
  return {};
}

}  // namespace virtiofsd::sys
