// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sandbox/landlock.h"

#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace virtiofsd::sandbox {
namespace {

// Every access right the kernel's version of landlock knows, as bits 0 to n:
// what isn't handled isn't restricted.
std::uint64_t rights_of_version(long version) {
  int count = 13;
  if (version >= 2) count = 14;  // REFER: links and renames between directories
  if (version >= 3) count = 15;  // TRUNCATE
  if (version >= 5) count = 16;  // IOCTL_DEV
  return (std::uint64_t{1} << count) - 1;
}

}  // namespace

Result<bool, Failure> restrict_to(FdRef directory) {
  const long version = ::syscall(SYS_landlock_create_ruleset, nullptr, std::size_t{0},
                                 LANDLOCK_CREATE_RULESET_VERSION);
  // Version 1 forbids every rename between directories, which a guest needs.
  if (version < 2) return false;
  struct landlock_ruleset_attr attributes {};
  attributes.handled_access_fs = rights_of_version(version);
  const UniqueFd ruleset(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &attributes,
                                                    sizeof(attributes.handled_access_fs), 0)));
  if (!ruleset) return Failure{"can't make a landlock ruleset", Errno::last()};
  struct landlock_path_beneath_attr beneath {};
  beneath.allowed_access = attributes.handled_access_fs;
  beneath.parent_fd = directory.number();
  if (::syscall(SYS_landlock_add_rule, ruleset.number(), LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) !=
      0) {
    return Failure{"can't add the share to the landlock ruleset", Errno::last()};
  }
  if (::syscall(SYS_landlock_restrict_self, ruleset.number(), 0) != 0) {
    return Failure{"can't apply the landlock ruleset", Errno::last()};
  }
  return true;
}

}  // namespace virtiofsd::sandbox
