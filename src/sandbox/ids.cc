// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sandbox/ids.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <iterator>

#include "base/log.h"
#include "sys/fd.h"

namespace virtiofsd::sandbox {
namespace {

constexpr const char* kUidHelper = "/usr/bin/newuidmap";
constexpr const char* kGidHelper = "/usr/bin/newgidmap";

bool helper_exists(const char* helper) {
  return ::access(helper, X_OK) == 0;
}

bool is_own_alone(const std::vector<IdRange>& map, std::uint32_t own) {
  return map.size() == 1 && map[0] == IdRange{map[0].inside, own, 1};
}

Result<void, Failure> check_map(const char* option, const std::vector<IdRange>& map,
                                std::uint32_t own, const char* helper) {
  bool has_zero = false;
  for (std::size_t i = 0; i < map.size(); ++i) {
    has_zero = has_zero || map[i].inside == 0;
    for (std::size_t j = 0; j < i; ++j) {
      const auto overlap = [](std::uint32_t a, std::uint32_t a_count, std::uint32_t b,
                              std::uint32_t b_count) {
        return a < std::uint64_t{b} + b_count && b < std::uint64_t{a} + a_count;
      };
      if (overlap(map[i].inside, map[i].count, map[j].inside, map[j].count) ||
          overlap(map[i].outside, map[i].count, map[j].outside, map[j].count)) {
        return Failure{fmt::format("{}: two of the ranges overlap", option)};
      }
    }
  }
  if (!has_zero) {
    return Failure{
        fmt::format("{}: no range begins with id 0 of the namespace, which this "
                    "program runs as",
                    option)};
  }
  if (!is_own_alone(map, own) && !helper_exists(helper)) {
    return Failure{fmt::format("{}: mapping other ids than one's own takes {}, which isn't there",
                               option, helper)};
  }
  return {};
}

std::string read_text(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Own id first, then the subordinate ones.
std::vector<IdRange> default_map(const char* path, const char* helper, std::uint32_t own,
                                 std::uint32_t own_uid) {
  std::vector<IdRange> map = {IdRange{0, own, 1}};
  if (!helper_exists(helper)) return map;
  const struct passwd* entry = ::getpwuid(own_uid);
  const IdRange rest =
      subordinate_range(read_text(path), entry != nullptr ? entry->pw_name : "", own_uid);
  if (rest.count > 0) map.push_back({1, rest.outside, rest.count});
  return map;
}

Result<> write_file(const std::string& path, std::string_view text) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return Errno::last();
  if (::write(file.number(), text.data(), text.size()) < 0) return Errno::last();
  return {};
}

Result<void, Failure> write_one(pid_t child, const char* name, IdRange range) {
  const std::string path = fmt::format("/proc/{}/{}", child, name);
  const auto written =
      write_file(path, fmt::format("{} {} {}\n", range.inside, range.outside, range.count));
  if (!written)
    return Failure{fmt::format("can't write the user namespace's {}", name), written.error()};
  return {};
}

Result<void, Failure> run_helper(const char* helper, pid_t child, const std::vector<IdRange>& map) {
  std::vector<std::string> words = {helper, fmt::format("{}", child)};
  for (const IdRange& range : map) {
    for (const std::uint32_t number : {range.inside, range.outside, range.count}) {
      words.push_back(fmt::format("{}", number));
    }
  }
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  // Signals are blocked in the launcher; the helper should be like any other program.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  std::array<char*, 1> environment = {nullptr};
  pid_t pid = 0;
  const int error =
      ::posix_spawn(&pid, helper, nullptr, &attributes, arguments.data(), environment.data());
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return Failure{fmt::format("can't run {}", helper), Errno{error}};
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return Failure{fmt::format("can't wait for {}", helper), Errno::last()};
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return Failure{
        fmt::format("{} refused the ids asked for (see /etc/subuid, /etc/subgid)", helper)};
  }
  return {};
}

Result<void, Failure> write_map(pid_t child, const char* name, const char* helper,
                                const std::vector<IdRange>& map, std::uint32_t own) {
  if (!is_own_alone(map, own)) return run_helper(helper, child, map);
  return write_one(child, name, map[0]);
}

}  // namespace

IdRange subordinate_range(std::string_view text, std::string_view name, std::uint32_t id) {
  const std::string number = fmt::format("{}", id);
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const std::size_t first = line.find(':');
    if (first == std::string_view::npos) continue;
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view owner = line.substr(0, first);
    if ((owner != name || name.empty()) && owner != number) continue;
    IdRange range;
    const auto parse = [](std::string_view field, std::uint32_t& value) {
      return std::from_chars(field.data(), field.data() + field.size(), value).ec == std::errc{};
    };
    if (parse(line.substr(first + 1, second - first - 1), range.outside) &&
        parse(line.substr(second + 1), range.count)) {
      return range;
    }
  }
  return {};
}

Result<IdMaps, Failure> choose_maps(std::vector<IdRange> uid, std::vector<IdRange> gid) {
  const std::uint32_t own_uid = ::geteuid();
  const std::uint32_t own_gid = ::getegid();
  IdMaps maps{std::move(uid), std::move(gid), false};
  maps.by_default = maps.uid.empty() && maps.gid.empty();
  if (maps.uid.empty()) maps.uid = default_map("/etc/subuid", kUidHelper, own_uid, own_uid);
  if (maps.gid.empty()) maps.gid = default_map("/etc/subgid", kGidHelper, own_gid, own_uid);
  if (maps.by_default && (maps.uid.size() == 1 || maps.gid.size() == 1)) {
    maps.uid.resize(1);
    maps.gid.resize(1);
  }
  TRY(check_map("--uid-map", maps.uid, own_uid, kUidHelper));
  TRY(check_map("--gid-map", maps.gid, own_gid, kGidHelper));
  return maps;
}

Result<void, Failure> write_maps(pid_t child, const IdMaps& maps) {
  const std::uint32_t own_uid = ::geteuid();
  const std::uint32_t own_gid = ::getegid();
  const auto write_both = [&](const std::vector<IdRange>& uid,
                              const std::vector<IdRange>& gid) -> Result<void, Failure> {
    // Without a helper the kernel takes a group map only from who gave up setgroups.
    if (is_own_alone(gid, own_gid)) {
      const auto denied = write_file(fmt::format("/proc/{}/setgroups", child), "deny");
      if (!denied) return Failure{"can't give up setgroups", denied.error()};
    }
    TRY(write_map(child, "gid_map", kGidHelper, gid, own_gid));
    return write_map(child, "uid_map", kUidHelper, uid, own_uid);
  };
  auto written = write_both(maps.uid, maps.gid);
  if (written || !maps.by_default || maps.uid.size() == 1) return written;
  log::warn("{}; going on with one user id", written.error().text());
  return write_both({IdRange{0, own_uid, 1}}, {IdRange{0, own_gid, 1}});
}

bool maps_other_ids() {
  std::ifstream file("/proc/self/uid_map");
  std::uint64_t inside = 0;
  std::uint64_t outside = 0;
  std::uint64_t count = 0;
  std::uint64_t total = 0;
  while (file >> inside >> outside >> count) total += count;
  return total > 1;
}

}  // namespace virtiofsd::sandbox
