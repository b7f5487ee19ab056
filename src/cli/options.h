// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Words on the command line to checked values. One table of options drives
// parsing, the help text and the test that holds the man page against it.
//
// Every option can be written `--name value`, `--name=value` or, with or
// without dashes turned to underscores, as an item of an `-o` list; switches
// also as `--no-name` and `no_name`. The last one wins, in the order given.
// Names are the union of QEMU's and the Rust daemon's. What can't be honoured is refused.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "daemon/listener.h"
#include "fuse/negotiation.h"
#include "passthrough/cache_mode.h"
#include "passthrough/id_map.h"
#include "passthrough/migration_settings.h"
#include "sandbox/sandbox.h"

namespace virtiofsd::cli {

// The values in force: defaults that depend on other options are settled.
struct Options {
  Listener::Settings socket;
  std::optional<pid_t> take_over;  // the virtiofsd that this one goes on for
  sandbox::Settings sandbox;       // shared_dir in here
  bool daemonize = false;
  std::string tag;  // empty: no configuration space is offered to the VMM

  log::Level log_level = log::Level::kInfo;
  log::Sink log_sink = log::Sink::kStderr;

  std::uint16_t num_request_queues = 1;            // what the configuration space says, 1 to 64
  std::uint32_t thread_pool_size = 64;             // requests a queue has held up; 0 and 1: none
  std::uint32_t poll_us = 100;                     // longest adaptive polling; 0: off
  bool in_order = false;                           // offer VIRTIO_F_IN_ORDER
  std::int64_t rlimit_nofile = -1;                 // -1: raise as far as sensible; 0: leave alone
  std::optional<std::uint32_t> inode_descriptors;  // none: from the limit in force

  CacheMode cache = CacheMode::kAuto;
  double attribute_timeout = 1.0;  // seconds
  double entry_timeout = 1.0;      // seconds
  double negative_timeout = 1.0;   // seconds

  bool readdirplus = true;
  bool writeback = false;
  bool allow_mmap = false;  // shared mmap of files opened for direct I/O
  bool allow_direct_io = false;
  bool preserve_noatime = false;
  bool announce_submounts = true;
  bool posix_lock = true;
  bool flock = false;
  MigrationSettings migration;
  bool no_race = false;     // changes nothing: there is no racy fallback
  bool allow_root = false;  // refuse callers other than the guest's root and our own user
  bool xattr = false;
  std::string xattr_map;  // checked; empty: none
  IdMap uid_translation;
  IdMap gid_translation;
  std::string translations;  // the rules of both as they were given, a line each
  fuse::Wish posix_acl = fuse::Wish::kOff;
  fuse::Wish security_label = fuse::Wish::kOff;
  fuse::Wish killpriv_v2 = fuse::Wish::kAuto;
};

// Why the program ends now: status 0 (help, version: `text` is for stdout) or
// 2 (a mistake on the command line: one sentence for stderr).
struct UsageError {
  std::string text;
  int exit_status = 2;
};

Result<Options, UsageError> parse(int argc, const char* const* argv);

// What VMM and guest are told by these options and rely on from then on, a line each of
// "name=value": one program can go on for another only where they agree.
std::string what_is_told(const Options& options);

// An `-o` list taken apart: items end at a comma; `\,` and `,,` are a comma,
// `\NNN` (octal) a byte, `\x` an x.
std::vector<std::string> split_list(std::string_view list);

// How the limit on open descriptors is divided. Together they never reach it,
// so that rings, regions and messages always find room: an inode that is open
// keeps its descriptor beside the open file's, whatever the budget for inodes.
struct DescriptorShares {
  std::uint32_t inodes = 0;       // kept for inodes that aren't open
  std::uint32_t handles = 0;      // open files and directories
  std::uint32_t lock_owners = 0;  // descriptors that hold record locks
};
DescriptorShares divide_descriptors(const Options& options, std::uint64_t descriptor_limit);

}  // namespace virtiofsd::cli
