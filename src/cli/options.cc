// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "cli/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "passthrough/xattr_map.h"
#include "version.h"

namespace virtiofsd::cli {
namespace {

using Problem = Result<void, Failure>;

// Options as they come in; what depends on others is settled at the end.
struct Draft {
  Options options;
  std::optional<bool> xattr;
  std::optional<bool> readdirplus;
  std::optional<bool> allow_mmap;
  std::optional<double> timeout;
  std::optional<double> negative_timeout;
};

enum class Shape : std::uint8_t {
  kFlag,    // name
  kSwitch,  // name, no_name
  kValue,   // name=value
  kWish,    // name, name=never|auto|always, no_name
};

// `text` is empty where no value was given; `on` is false for the no_ form.
struct Value {
  std::string text;
  bool on = true;
};

struct Row {
  const char* name;     // as a long option
  const char* aliases;  // more long names, separated by blanks
  char letter;          // 0: none
  Shape shape;
  const char* placeholder;
  const char* help;
  Problem (*apply)(Draft& draft, const Value& value);
};

Problem choice_problem(std::string_view expected) {
  return Failure{fmt::format("must be one of {}", expected)};
}

template <typename Number>
Result<Number, Failure> number(const std::string& text, Number lowest, Number highest) {
  Number value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error == std::errc::invalid_argument || stop != end) {
    return Failure{"must be a whole number"};
  }
  if (error != std::errc{} || value < lowest || value > highest) {
    return Failure{fmt::format("must be between {} and {}", lowest, highest)};
  }
  return value;
}

Result<double, Failure> seconds(const std::string& text) {
  // A million years is no use to a guest; the bound keeps the conversion to nanoseconds exact.
  constexpr double kLongest = 4e9;
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, std::chars_format::fixed);
  if (text.empty() || error != std::errc{} || stop != end || !std::isfinite(value)) {
    return Failure{"must be a number of seconds"};
  }
  if (value < 0) return Failure{"must not be negative"};
  if (value > kLongest) return Failure{fmt::format("must be at most {:.0f} seconds", kLongest)};
  return value;
}

Result<fuse::Wish, Failure> wish(const Value& value) {
  if (!value.on || value.text == "never") return fuse::Wish::kOff;
  if (value.text.empty() || value.text == "always") return fuse::Wish::kOn;
  if (value.text == "auto") return fuse::Wish::kAuto;
  return Failure{"must be one of never, auto, always"};
}

// ":inside:outside:count:", where the first character is the separator.
Result<sandbox::IdRange, Failure> id_range(const std::string& text) {
  const Failure malformed{"must look like :namespace_id:host_id:count:"};
  if (text.size() < 2 || (text.front() >= '0' && text.front() <= '9')) return malformed;
  const char separator = text.front();
  std::string_view rest{text};
  rest.remove_prefix(1);
  if (!rest.empty() && rest.back() == separator) rest.remove_suffix(1);
  std::uint32_t fields[3] = {};
  for (int i = 0; i < 3; ++i) {
    const std::size_t length = i < 2 ? rest.find(separator) : rest.size();
    if (length == std::string_view::npos) return malformed;
    auto field = number<std::uint32_t>(std::string{rest.substr(0, length)}, 0, 0xfffffffeU);
    if (!field) return malformed;
    fields[i] = *field;
    rest.remove_prefix(std::min(rest.size(), length + 1));
  }
  const sandbox::IdRange range{fields[0], fields[1], fields[2]};
  const std::uint64_t last = 0xffffffffU;
  if (range.count == 0) return Failure{"must not have a count of 0"};
  if (range.inside + std::uint64_t{range.count} > last ||
      range.outside + std::uint64_t{range.count} > last) {
    return Failure{"must not reach past the last id"};
  }
  return range;
}

Problem set_migration_mode(Draft& draft, const Value& value) {
  if (value.text != "find-paths" && value.text != "file-handles")
    return choice_problem("find-paths, file-handles");
  draft.options.migration.by_handle = value.text == "file-handles";
  return {};
}

Problem set_migration_on_error(Draft& draft, const Value& value) {
  if (value.text != "abort" && value.text != "guest-error")
    return choice_problem("abort, guest-error");
  draft.options.migration.goes_on = value.text == "guest-error";
  return {};
}

template <bool MigrationSettings::*Member>
Problem set_migration(Draft& draft, const Value& /*value*/) {
  draft.options.migration.*Member = true;
  return {};
}

Problem set_log_level(Draft& draft, const Value& value) {
  auto& level = draft.options.log_level;
  if (value.text == "err" || value.text == "error") {
    level = log::Level::kError;
  } else if (value.text == "warn") {
    level = log::Level::kWarn;
  } else if (value.text == "info") {
    level = log::Level::kInfo;
  } else if (value.text == "debug" || value.text == "trace") {
    level = log::Level::kDebug;
  } else if (value.text == "off") {
    level = log::Level::kOff;
  } else {
    return choice_problem("err, warn, info, debug, off");
  }
  return {};
}

Problem set_debug(Draft& draft, const Value&) {
  draft.options.log_level = log::Level::kDebug;
  return {};
}

Problem set_cache(Draft& draft, const Value& value) {
  auto& cache = draft.options.cache;
  if (value.text == "none" || value.text == "never") {
    cache = CacheMode::kNone;
  } else if (value.text == "auto") {
    cache = CacheMode::kAuto;
  } else if (value.text == "always") {
    cache = CacheMode::kAlways;
  } else if (value.text == "metadata") {
    cache = CacheMode::kMetadata;
  } else {
    return choice_problem("none, auto, always, never, metadata");
  }
  return {};
}

Problem set_sandbox(Draft& draft, const Value& value) {
  auto& mode = draft.options.sandbox.mode;
  if (value.text == "namespace") {
    mode = sandbox::Mode::kNamespace;
  } else if (value.text == "chroot") {
    mode = sandbox::Mode::kChroot;
  } else if (value.text == "none") {
    mode = sandbox::Mode::kNone;
  } else {
    return choice_problem("namespace, chroot, none");
  }
  return {};
}

Problem set_seccomp(Draft& draft, const Value& value) {
  auto& mode = draft.options.sandbox.seccomp;
  if (value.text == "none") {
    mode = sandbox::SeccompMode::kNone;
  } else if (value.text == "log") {
    mode = sandbox::SeccompMode::kLog;
  } else if (value.text == "trap") {
    mode = sandbox::SeccompMode::kTrap;
  } else if (value.text == "kill") {
    mode = sandbox::SeccompMode::kKill;
  } else {
    return choice_problem("none, log, trap, kill");
  }
  return {};
}

Problem set_file_handles(Draft& draft, const Value& value) {
  auto& keep = draft.options.sandbox.file_handles;
  auto& mandatory = draft.options.sandbox.file_handles_mandatory;
  if (value.text == "never") {
    keep = mandatory = false;
  } else if (value.text == "prefer" || value.text == "fallback") {
    keep = true;
    mandatory = false;
  } else if (value.text == "mandatory") {
    keep = mandatory = true;
  } else {
    return choice_problem("never, prefer, mandatory");
  }
  return {};
}

Problem set_tag(Draft& draft, const Value& value) {
  // The configuration space has 36 bytes for it. (virtio 1.2, 5.11.4)
  if (value.text.size() > 36) return Failure{"must be at most 36 bytes long"};
  draft.options.tag = value.text;
  return {};
}

Problem set_xattr_map(Draft& draft, const Value& value) {
  const auto map = XattrMap::parse(value.text);
  if (!map) return Failure{"is not a valid map: " + map.error().text()};
  draft.options.xattr_map = value.text;
  return {};
}

Problem refused(Draft&, const Value&) {
  return Failure{"is not supported by this program"};
}

Problem no_effect(Draft&, const Value&) {
  return {};
}

// Sets a switch of Options.
template <bool Options::*member>
Problem set_switch(Draft& draft, const Value& value) {
  draft.options.*member = value.on;
  return {};
}

// clang-format off
// The order is that of the help text. Rows with an empty help text are
// understood in order to be refused in words of their own.
const Row kTable[] = {
    {"socket-path", "socket", 0, Shape::kValue, "PATH",
     "Listen on the unix socket PATH, which must not be in use; removed at exit.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.socket.path = value.text;
       return {};
     }},
    {"socket-group", "", 0, Shape::kValue, "NAME",
     "Let members of group NAME connect too (mode 0660 instead of 0600).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.socket.group = value.text;
       return {};
     }},
    {"fd", "", 0, Shape::kValue, "FDNUM",
     "Use the inherited unix socket FDNUM, listening or connected.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.socket.fd = TRY(number<int>(value.text, 0, 0x7fffffff));
       return {};
     }},
    {"keep-listening", "", 0, Shape::kFlag, "",
     "Wait for the next client when one has left, instead of ending.",
     [](Draft& draft, const Value&) -> Problem {
       draft.options.socket.keep = true;
       return {};
     }},
    {"take-over", "", 0, Shape::kValue, "PID",
     "Go on for the running virtiofsd with this pid, which ends; the guest doesn't notice.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.take_over = TRY(number<pid_t>(value.text, 1, 0x7fffffff));
       return {};
     }},
    {"source", "shared-dir", 0, Shape::kValue, "PATH",
     "Share the directory PATH. Required.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.sandbox.shared_dir = value.text;
       return {};
     }},
    {"tag", "", 0, Shape::kValue, "TAG",
     "Report TAG and the number of queues in the configuration space (for VMMs that ask for it).",
     set_tag},
    {"num-request-queues", "", 0, Shape::kValue, "NUM",
     "Request queues to report with --tag, 1 to 64 (default 1). 64 can be used in any case.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.num_request_queues = TRY(number<std::uint16_t>(value.text, 1, 64));
       return {};
     }},
    {"thread-pool-size", "", 0, Shape::kValue, "NUM",
     "Requests of a queue that may be held up, a thread each (default 64); 0, 1: one thread.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.thread_pool_size = TRY(number<std::uint32_t>(value.text, 0, 1024));
       return {};
     }},
    {"poll-us", "", 0, Shape::kValue, "USEC",
     "Poll a queue for up to USEC microseconds before sleeping (default 100); 0: never.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.poll_us = TRY(number<std::uint32_t>(value.text, 0, 10000));
       return {};
     }},
    {"in-order", "", 0, Shape::kFlag, "",
     "Offer VIRTIO_F_IN_ORDER: answers in the order of the requests, each after the slowest before it.",
     [](Draft& draft, const Value&) -> Problem {
       draft.options.in_order = true;
       return {};
     }},
    {"cache", "", 0, Shape::kValue, "MODE",
     "What the guest may cache: none (or never), metadata, auto (default), always.",
     set_cache},
    {"timeout", "", 0, Shape::kValue, "SECS",
     "How long names and attributes may be cached, fractions allowed (default: by --cache).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.timeout = TRY(seconds(value.text));
       return {};
     }},
    {"negative-timeout", "", 0, Shape::kValue, "SECS",
     "The same for names that don't exist (default: as for names that do).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.negative_timeout = TRY(seconds(value.text));
       return {};
     }},
    {"readonly", "", 0, Shape::kFlag, "",
     "Refuse every change, whatever the guest mounts it as.",
     [](Draft& draft, const Value&) -> Problem {
       draft.options.sandbox.read_only = true;
       return {};
     }},
    {"readdirplus", "", 0, Shape::kSwitch, "",
     "Send attributes along with directory entries (default, except with --cache=none).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.readdirplus = value.on;
       return {};
     }},
    {"writeback", "", 0, Shape::kSwitch, "",
     "Let the guest buffer and merge writes (default no).", set_switch<&Options::writeback>},
    {"allow-direct-io", "", 0, Shape::kSwitch, "",
     "Pass O_DIRECT of the guest on to the host (default no).",
     set_switch<&Options::allow_direct_io>},
    {"allow-mmap", "", 0, Shape::kSwitch, "",
     "Allow shared mmap of files that are not cached (default with --cache=none only).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.allow_mmap = value.on;
       return {};
     }},
    {"preserve-noatime", "", 0, Shape::kSwitch, "",
     "Pass O_NOATIME of the guest on to the host (default no).",
     set_switch<&Options::preserve_noatime>},
    {"announce-submounts", "", 0, Shape::kSwitch, "",
     "Show file systems mounted inside the share as mounts in the guest (default yes).",
     set_switch<&Options::announce_submounts>},
    {"posix-lock", "", 0, Shape::kSwitch, "",
     "Record locks (fcntl) are seen by the host and by other guests (default yes).",
     set_switch<&Options::posix_lock>},
    {"flock", "", 0, Shape::kSwitch, "",
     "BSD locks (flock) are seen by the host and by other guests (default no).",
     set_switch<&Options::flock>},
    {"norace", "", 0, Shape::kFlag, "",
     "No racy fallback for operations on symlinks: never used anyway, so no effect.",
     set_switch<&Options::no_race>},
    {"xattr", "", 0, Shape::kSwitch, "",
     "Extended attributes (default no).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.xattr = value.on;
       return {};
     }},
    {"xattrmap", "", 0, Shape::kValue, "RULES",
     "Store extended attributes under other names on the host; turns xattr on.",
     set_xattr_map},
    {"posix-acl", "", 0, Shape::kWish, "",
     "POSIX access control lists; turns xattr on (default never; auto: if the guest can).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.posix_acl = TRY(wish(value));
       return {};
     }},
    {"security-label", "", 0, Shape::kWish, "",
     "Create files with the guest's security label; turns xattr on (default never).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.security_label = TRY(wish(value));
       return {};
     }},
    {"killpriv-v2", "", 0, Shape::kWish, "",
     "Leave it to the host to drop set-id bits on writes (default auto).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.killpriv_v2 = TRY(wish(value));
       return {};
     }},
    {"allow-root", "", 0, Shape::kFlag, "",
     "Serve only root in the guest, and the user id this program runs as.",
     set_switch<&Options::allow_root>},
    {"inode-file-handles", "", 0, Shape::kValue, "MODE",
     "Reach inodes by file handle: never (default), prefer, mandatory.", set_file_handles},
    {"inode-descriptors", "", 0, Shape::kValue, "NUM",
     "Descriptors to keep open for inodes at most (default: from the limit on descriptors).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.inode_descriptors =
           TRY(number<std::uint32_t>(value.text, 16, 1U << 30));
       return {};
     }},
    {"rlimit-nofile", "", 0, Shape::kValue, "NUM",
     "Limit on open descriptors; 0 leaves it alone (default: up to 1000000, as the host allows).",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.rlimit_nofile =
           TRY(number<std::int64_t>(value.text, 0, std::int64_t{1} << 31));
       return {};
     }},
    {"sandbox", "", 0, Shape::kValue, "MODE",
     "namespace (default), chroot (for root where namespaces are refused) or none.", set_sandbox},
    {"seccomp", "", 0, Shape::kValue, "ACTION",
     "On a system call that is not needed: kill (default), trap, log; none: no filter.",
     set_seccomp},
    {"modcaps", "", 0, Shape::kValue, "CHANGES",
     "Capabilities to keep or drop in addition, as +NAME:-NAME.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.sandbox.capability_changes = value.text;
       return {};
     }},
    {"uid-map", "", 0, Shape::kValue, ":INSIDE:OUTSIDE:COUNT:",
     "User ids of the user namespace, for ordinary users; may be repeated.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.sandbox.uid_map.push_back(TRY(id_range(value.text)));
       return {};
     }},
    {"gid-map", "", 0, Shape::kValue, ":INSIDE:OUTSIDE:COUNT:",
     "Group ids of the user namespace, for ordinary users; may be repeated.",
     [](Draft& draft, const Value& value) -> Problem {
       draft.options.sandbox.gid_map.push_back(TRY(id_range(value.text)));
       return {};
     }},
    {"translate-uid", "", 0, Shape::kValue, "RULE",
     "Other user ids in the guest than on the host: TYPE:FROM:TO:COUNT; may be repeated.",
     [](Draft& draft, const Value& value) {
       draft.options.translations += "uid " + value.text + '\n';
       return draft.options.uid_translation.add(value.text);
     }},
    {"translate-gid", "", 0, Shape::kValue, "RULE",
     "The same for group ids.",
     [](Draft& draft, const Value& value) {
       draft.options.translations += "gid " + value.text + '\n';
       return draft.options.gid_translation.add(value.text);
     }},
    {"migration-mode", "", 0, Shape::kValue, "MODE",
     "Tell the next host of files by name: find-paths (default), or by file-handles.",
     set_migration_mode},
    {"migration-on-error", "", 0, Shape::kValue, "ACTION",
     "When a file can't be had on the next host: abort (default), or guest-error.",
     set_migration_on_error},
    {"migration-verify-handles", "", 0, Shape::kFlag, "",
     "Send file handles along with names; on the next host they must agree.",
     set_migration<&MigrationSettings::verify_handles>},
    {"migration-confirm-paths", "", 0, Shape::kFlag, "",
     "Look at every name before it is sent to the next host.",
     set_migration<&MigrationSettings::confirm_paths>},
    {"debug", "", 'd', Shape::kFlag, "",
     "Log at level debug: a line for every request and reply.", set_debug},
    {"log-level", "loglevel", 0, Shape::kValue, "LEVEL",
     "Log messages of LEVEL and above: err, warn, info (default), debug, off.", set_log_level},
    {"syslog", "", 0, Shape::kFlag, "",
     "Log to syslog instead of stderr.",
     [](Draft& draft, const Value&) -> Problem {
       draft.options.log_sink = log::Sink::kSyslog;
       return {};
     }},
    {"daemonize", "", 0, Shape::kFlag, "",
     "Go to the background once the socket can be connected to.",
     set_switch<&Options::daemonize>},
    {"foreground", "", 'f', Shape::kFlag, "",
     "Stay in the foreground (default).",
     [](Draft& draft, const Value&) -> Problem {
       draft.options.daemonize = false;
       return {};
     }},
    {"max-idle-threads", "", 0, Shape::kValue, "NUM",
     "No effect; accepted for compatibility.", no_effect},
    {"fsname", "", 0, Shape::kValue, "NAME", "No effect; accepted for compatibility.", no_effect},
    {"subtype", "", 0, Shape::kValue, "NAME", "No effect; accepted for compatibility.", no_effect},
    {"posix-acl-create-fallback", "", 0, Shape::kFlag, "", "", refused},
};
// clang-format on

// Taken from main's words only, and ending the program.
constexpr const char* kEndingOptions =
    "  -h, --help\n"
    "      Print this help.\n"
    "  -V, --version\n"
    "      Print the version.\n"
    "  --print-capabilities\n"
    "      Print what this program can do as JSON, for management software.\n";

bool can_be_negated(const Row& row) {
  return row.shape == Shape::kSwitch || row.shape == Shape::kWish;
}

std::string help_text() {
  std::string text =
      "Usage: virtiofsd --socket-path=PATH --shared-dir=PATH [OPTION]...\n"
      "Share a directory with a virtual machine: a vhost-user back-end for virtio-fs.\n\n"
      "Every option can also be an item of a list: -o name=value,name,no_name\n\n";
  text += kEndingOptions;
  for (const Row& row : kTable) {
    if (*row.help == '\0') continue;
    text += "  ";
    if (row.letter != 0) text += fmt::format("-{}, ", row.letter);
    text += fmt::format("--{}", row.name);
    if (row.shape == Shape::kValue) text += fmt::format("={}", row.placeholder);
    if (row.shape == Shape::kWish) text += "[=never|auto|always]";
    if (can_be_negated(row)) text += fmt::format(", --no-{}", row.name);
    if (*row.aliases != '\0') text += fmt::format(", --{}", row.aliases);
    text += fmt::format("\n      {}\n", row.help);
  }
  text.pop_back();  // whoever prints it ends the line
  return text;
}

std::string capabilities_text() {
  const nlohmann::ordered_json capabilities = {
      {"type", "fs"},
      {"features",
       {"migrate-precopy", "separate-options", "posix-acl-negotiation-mode",
        "security-label-negotiation-mode"}},
  };
  return capabilities.dump(2);
}

// What was wrong so far. Everything unknown is told in one message; of the rest the first.
struct Complaints {
  std::vector<std::string> unknown;
  std::optional<std::string> first;

  void add(std::string text) {
    if (!first) first = std::move(text);
  }
};

void apply(const Row& row, const std::string& spelling, const Value& value, Draft& draft,
           Complaints& complaints) {
  auto applied = row.apply(draft, value);
  if (applied) return;
  if (value.text.empty()) {
    complaints.add(fmt::format("{} {}", spelling, applied.error().text()));
  } else {
    complaints.add(fmt::format("{}={} {}", spelling, value.text, applied.error().text()));
  }
}

bool is_named(const Row& row, std::string_view name) {
  return name == row.name || (*row.aliases != '\0' && name == row.aliases);
}

void apply_item(const std::string& item, Draft& draft, Complaints& complaints) {
  const std::size_t equals = item.find('=');
  std::string name = item.substr(0, equals);
  std::ranges::replace(name, '_', '-');
  const bool has_value = equals != std::string::npos;
  const bool negated = name.starts_with("no-");
  const std::string_view bare = negated ? std::string_view{name}.substr(3) : name;
  const std::string spelling = "-o " + item.substr(0, equals);
  for (const Row& row : kTable) {
    Value value{has_value ? item.substr(equals + 1) : std::string{}, true};
    if (negated && can_be_negated(row) && is_named(row, bare) && !has_value) {
      value.on = false;
    } else if (!is_named(row, name)) {
      continue;
    }
    const bool takes_value = row.shape == Shape::kValue || row.shape == Shape::kWish;
    if (row.shape == Shape::kValue && value.text.empty()) {
      complaints.add(spelling + " needs a value");
    } else if (has_value && (!takes_value || value.text.empty())) {
      complaints.add(spelling + (takes_value ? " needs a value after its =" : " takes no value"));
    } else {
      apply(row, spelling, value, draft, complaints);
    }
    return;
  }
  complaints.unknown.push_back("-o " + (item.empty() ? std::string{"''"} : item));
}

void add_option(CLI::App& app, const Row& row, const std::string& name, bool on, Draft& draft,
                Complaints& complaints) {
  const std::string spelling = "--" + name;
  std::string names = spelling;
  if (row.letter != 0 && name == row.name) names += fmt::format(",-{}", row.letter);
  const bool is_flag = row.shape != Shape::kValue;
  auto* option = app.add_option(
      names, [&row, &draft, &complaints, spelling, on, is_flag](const CLI::results_t& results) {
        Value value{results.empty() ? std::string{} : results.back(), on};
        // CLI11 says "true" for a flag without a value.
        if (is_flag && value.text == "true") value.text.clear();
        if (!value.text.empty() && is_flag && (row.shape != Shape::kWish || !on)) {
          complaints.add(spelling + " takes no value");
        } else {
          apply(row, spelling, value, draft, complaints);
        }
        return true;
      });
  if (is_flag) option->expected(0);
  option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)->trigger_on_parse();
}

void add_options(CLI::App& app, Draft& draft, Complaints& complaints) {
  for (const Row& row : kTable) {
    add_option(app, row, row.name, true, draft, complaints);
    if (*row.aliases != '\0') {
      add_option(app, row, row.aliases, true, draft, complaints);
    }
    if (can_be_negated(row)) {
      add_option(app, row, fmt::format("no-{}", row.name), false, draft, complaints);
    }
  }
  app.add_option("-o",
                 [&draft, &complaints](const CLI::results_t& results) {
                   for (const std::string& item : split_list(results.back())) {
                     apply_item(item, draft, complaints);
                   }
                   return true;
                 })
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
      ->trigger_on_parse();
}

double default_timeout(CacheMode cache) {
  constexpr double kDay = 86400;
  switch (cache) {
    case CacheMode::kNone:
      return 0;
    case CacheMode::kAuto:
      return 1;
    case CacheMode::kMetadata:
    case CacheMode::kAlways:
      break;
  }
  return kDay;
}

// Checks what only shows when all options are known, and settles the defaults that depend on
// others.
Problem settle(Draft& draft) {
  Options& options = draft.options;
  const bool activated = std::getenv("LISTEN_FDS") != nullptr;
  if (options.sandbox.shared_dir.empty()) {
    return Failure{"no directory to share: give --shared-dir=PATH or -o source=PATH"};
  }
  if (!options.socket.path.empty() && options.socket.fd) {
    return Failure{"--socket-path and --fd can't be given together"};
  }
  if (options.take_over && options.socket.fd) {
    return Failure{"--take-over takes the connection over as well: --fd can't be given with it"};
  }
  if (options.socket.path.empty() && !options.socket.fd && !activated && !options.take_over) {
    return Failure{"no socket: give --socket-path=PATH or --fd=FDNUM"};
  }
  if (!options.socket.group.empty() && options.socket.path.empty()) {
    return Failure{"--socket-group needs --socket-path"};
  }
  const MigrationSettings& migration = options.migration;
  if (migration.by_handle && (migration.verify_handles || migration.confirm_paths)) {
    return Failure{
        "--migration-verify-handles and --migration-confirm-paths are for names: they can't be "
        "given "
        "together with --migration-mode=file-handles"};
  }
  // What is sent as handles has to be opened by them.
  if (migration.by_handle) options.sandbox.file_handles = true;
  const auto needs_xattr = [&](const char* name) -> Problem {
    return Failure{fmt::format("{} needs extended attributes, but no_xattr was given", name)};
  };
  const bool no_xattr = draft.xattr == false;
  if (no_xattr && !options.xattr_map.empty()) return needs_xattr("xattrmap");
  if (no_xattr && options.posix_acl == fuse::Wish::kOn) return needs_xattr("posix_acl");
  if (no_xattr && options.security_label == fuse::Wish::kOn) return needs_xattr("security_label");
  if (no_xattr) options.posix_acl = options.security_label = fuse::Wish::kOff;
  if (!options.uid_translation.empty() || !options.gid_translation.empty()) {
    // The ids in an access control list would stay what they are.
    if (options.posix_acl == fuse::Wish::kOn) {
      return Failure{"--translate-uid and --translate-gid can't be given together with posix_acl"};
    }
    options.posix_acl = fuse::Wish::kOff;
  }
  options.xattr =
      draft.xattr.value_or(!options.xattr_map.empty() || options.posix_acl != fuse::Wish::kOff ||
                           options.security_label != fuse::Wish::kOff);

  const bool uncached = options.cache == CacheMode::kNone;
  options.readdirplus = draft.readdirplus.value_or(!uncached);
  options.allow_mmap = draft.allow_mmap.value_or(uncached);
  options.entry_timeout = draft.timeout.value_or(default_timeout(options.cache));
  options.attribute_timeout = options.entry_timeout;
  options.negative_timeout = draft.negative_timeout.value_or(options.entry_timeout);
  return {};
}

UsageError usage_error(const std::string& text) {
  return UsageError{fmt::format("virtiofsd: {}. Try 'virtiofsd --help'.", text), 2};
}

// FNV-1a: the same in every build, and long texts differ in it as a rule.
std::uint64_t fingerprint(std::string_view text) {
  std::uint64_t value = 0xcbf29ce484222325U;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return value;
}

bool is_octal(char c) {
  return c >= '0' && c <= '7';
}

}  // namespace

std::vector<std::string> split_list(std::string_view list) {
  std::vector<std::string> items(1);
  for (std::size_t i = 0; i < list.size(); ++i) {
    const char c = list[i];
    const std::string_view rest = list.substr(i + 1);
    if (c == ',' && rest.starts_with(',')) {
      items.back() += ',';
      ++i;
    } else if (c == ',') {
      items.emplace_back();
    } else if (c == '\\' && rest.size() >= 3 && rest[0] <= '3' && is_octal(rest[0]) &&
               is_octal(rest[1]) && is_octal(rest[2])) {
      items.back() += static_cast<char>((rest[0] - '0') * 64 + (rest[1] - '0') * 8 + rest[2] - '0');
      i += 3;
    } else if (c == '\\' && !rest.empty()) {
      items.back() += rest[0];
      ++i;
    } else {
      items.back() += c;
    }
  }
  return items;
}

Result<Options, UsageError> parse(int argc, const char* const* argv) {
  Draft draft;
  Complaints complaints;
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  bool help = false;
  bool version = false;
  bool capabilities = false;
  try {
    app.add_flag("-h,--help", help);
    app.add_flag("-V,--version", version);
    app.add_flag("--print-capabilities", capabilities);
    add_options(app, draft, complaints);
    for (int i = 1; i < argc; ++i) {
      // CLI11 would take the next word for the value.
      const std::string_view word{argv[i]};
      if (word.starts_with("--") && word.ends_with('=')) {
        return usage_error(fmt::format("{} needs a value after its =", word));
      }
    }
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    complaints.add(error.what());
  }
  if (help) return UsageError{help_text(), 0};
  if (version) return UsageError{"virtiofsd " VIRTIOFSD_VERSION, 0};
  if (capabilities) return UsageError{capabilities_text(), 0};

  for (const std::string& extra : app.remaining()) complaints.unknown.push_back(extra);
  if (!complaints.unknown.empty()) {
    return usage_error(fmt::format("unknown option{}: {}", complaints.unknown.size() > 1 ? "s" : "",
                                   fmt::join(complaints.unknown, ", ")));
  }
  if (complaints.first) return usage_error(*complaints.first);
  if (auto settled = settle(draft); !settled) return usage_error(settled.error().text());
  return std::move(draft.options);
}

std::string what_is_told(const Options& options) {
  const auto cache = [&] {
    switch (options.cache) {
      case CacheMode::kNone:
        return "none";
      case CacheMode::kAuto:
        return "auto";
      case CacheMode::kMetadata:
        return "metadata";
      case CacheMode::kAlways:
        break;
    }
    return "always";
  };
  const auto wish = [](fuse::Wish value) {
    return value == fuse::Wish::kOff ? "never" : value == fuse::Wish::kAuto ? "auto" : "always";
  };
  const auto on = [](bool value) { return value ? "on" : "off"; };
  return fmt::format(
      "cache={}\nposix-lock={}\nflock={}\nreaddirplus={}\nwriteback={}\nallow-mmap={}\n"
      "announce-submounts={}\nreadonly={}\nxattr={}\nposix-acl={}\nsecurity-label={}\n"
      "killpriv-v2={}\nin-order={}\nkeep-listening={}\ninode-file-handles={}\nallow-root={}\n"
      "xattrmap and translations={:016x}\nnum-request-queues={}\ntag={}\n",
      cache(), on(options.posix_lock), on(options.flock), on(options.readdirplus),
      on(options.writeback), on(options.allow_mmap), on(options.announce_submounts),
      on(options.sandbox.read_only), on(options.xattr), wish(options.posix_acl),
      wish(options.security_label), wish(options.killpriv_v2), on(options.in_order),
      on(options.socket.keep), on(options.sandbox.file_handles), on(options.allow_root),
      fingerprint(options.xattr_map + '\n' + options.translations), options.num_request_queues,
      options.tag);
}

DescriptorShares divide_descriptors(const Options& options, std::uint64_t descriptor_limit) {
  constexpr std::uint64_t kOwn = 1024;  // rings, regions, epoll sets, the log
  constexpr std::uint64_t kMostLockOwners = 4096;
  constexpr std::uint64_t kMostInodes = 100'000;
  constexpr std::uint64_t kMostHandles = (1U << 20) - 2;
  const std::uint64_t lock_owners = std::min(kMostLockOwners, descriptor_limit / 8);
  const std::uint64_t taken = std::min(kOwn, descriptor_limit / 4) + lock_owners;
  const std::uint64_t left = descriptor_limit - taken;
  const std::uint64_t wanted =
      options.inode_descriptors ? *options.inode_descriptors : std::min(left / 2, kMostInodes);
  const std::uint64_t inodes = std::min(wanted, left / 2);
  // As many inodes may be open as there are handles, and then they exceed their own share.
  const std::uint64_t handles = std::min(left / 2, kMostHandles);
  return {.inodes = static_cast<std::uint32_t>(inodes),
          .handles = static_cast<std::uint32_t>(handles),
          .lock_owners = static_cast<std::uint32_t>(lock_owners)};
}

}  // namespace virtiofsd::cli
