// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include <fmt/format.h>
#include <grp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/log.h"
#include "sandbox/sandbox.h"

namespace virtiofsd::sandbox {
namespace {

// What the system's other programs keep, as QEMU's daemon has it. (CVE-2020-10717)
constexpr std::uint64_t kLeftToOthers = 16384;
constexpr std::uint64_t kSensible = 1'000'000;

std::uint64_t read_number(const char* path, std::uint64_t otherwise) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? value : otherwise;
}

}  // namespace

Result<void, Failure> drop_groups() {
  if (::setgroups(0, nullptr) != 0 && errno != EPERM) {
    return Failure{"can't drop supplementary groups", Errno::last()};
  }
  return {};
}

Result<std::uint64_t, Failure> limit_descriptors(std::int64_t wanted) {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return Failure{"can't read the limit on open descriptors", Errno::last()};
  }
  if (wanted == 0) return limit.rlim_cur;
  const std::uint64_t most = read_number("/proc/sys/fs/nr_open", kSensible);
  if (wanted > 0) {
    const auto exact = static_cast<std::uint64_t>(wanted);
    if (exact > most) {
      return Failure{fmt::format(
          "--rlimit-nofile={} is more than this system allows (fs.nr_open is {})", exact, most)};
    }
    const struct rlimit change = {exact, std::max<rlim_t>(exact, limit.rlim_max)};
    if (::setrlimit(RLIMIT_NOFILE, &change) != 0) {
      return Failure{fmt::format("--rlimit-nofile={} can't be set (the hard limit is {})", exact,
                                 limit.rlim_max),
                     Errno::last()};
    }
    return exact;
  }
  const std::uint64_t files = read_number("/proc/sys/fs/file-max", kSensible + kLeftToOthers);
  const std::uint64_t room = files > 2 * kLeftToOthers ? files - kLeftToOthers : files / 2;
  const std::uint64_t sensible = std::min({kSensible, most, room});
  if (limit.rlim_cur >= sensible) return limit.rlim_cur;
  const struct rlimit raised = {sensible, std::max<rlim_t>(sensible, limit.rlim_max)};
  if (::setrlimit(RLIMIT_NOFILE, &raised) == 0) return sensible;
  const std::uint64_t allowed = std::min<std::uint64_t>(sensible, limit.rlim_max);
  const struct rlimit within = {allowed, limit.rlim_max};
  if (::setrlimit(RLIMIT_NOFILE, &within) != 0) return limit.rlim_cur;
  return allowed;
}

}  // namespace virtiofsd::sandbox
