// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Giving up everything the daemon doesn't need before the first byte comes
// from the socket: namespaces, a root that is the shared directory, few
// capabilities, no new privileges, landlock, seccomp.
//
// The steps run in three processes, in this order, each of them
// single-threaded at that moment:
//   launcher    Plan::make              checks everything, changes nothing
//               clone(clone_flags())
//               Plan::map_ids           (user namespace only) while the child waits
//   supervisor  Plan::enter             mounts, root, capabilities, landlock, seccomp
//   worker      Plan::enter_worker      its own /proc/self/fd, the stricter seccomp filter
//   a thread    RequestFilter::apply    one more filter for threads that only serve requests
// A failed step is a sentence and ends the start; no step is undone.
#pragma once

#include <linux/filter.h>
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd::sandbox {

enum class Mode : std::uint8_t {
  kNamespace,  // own mount, pid and network namespaces, the share as the root
  kChroot,     // chroot(2) to the share; for containers that allow no unshare. Root only
  kNone,       // the whole tree stays visible to the process (but not to landlock)
};

// What happens on a system call that the daemon has no use for.
enum class SeccompMode : std::uint8_t { kNone, kLog, kTrap, kKill };

// `count` ids from `inside` on (as this daemon sees them) are those from `outside` on.
struct IdRange {
  std::uint32_t inside = 0;
  std::uint32_t outside = 0;
  std::uint32_t count = 0;
  friend bool operator==(const IdRange&, const IdRange&) = default;
};

struct Settings {
  std::string shared_dir = {};
  Mode mode = Mode::kNamespace;
  SeccompMode seccomp = SeccompMode::kKill;
  std::string capability_changes = {};  // "+name:-name", as --modcaps has it
  bool read_only = false;               // enforced by the mount where there is one
  bool file_handles = false;            // keep CAP_DAC_READ_SEARCH for open_by_handle_at
  bool file_handles_mandatory = false;  // and fail where they can't be used
  std::vector<IdRange> uid_map = {};    // user namespace only; empty: see Plan::make
  std::vector<IdRange> gid_map = {};
};

// What the worker has once it is inside.
struct Entered {
  UniqueFd root;                 // the shared directory, O_PATH
  bool can_switch_user = false;  // CAP_SETUID, CAP_SETGID, and ids to switch to
  bool can_use_handles = false;  // open_by_handle_at is allowed to this process
  bool landlocked = false;
  std::string summary;  // one line for the log: what holds
};

class Plan {
 public:
  // Checks all that can be checked beforehand: the shared directory, the mode
  // for this user, capability names, id maps. An ordinary user gets a user
  // namespace: with the maps asked for, else own id as 0 followed by the
  // subordinate ids of /etc/subuid where newuidmap and newgidmap exist, else own id alone.
  static Result<Plan, Failure> make(Settings settings);

  Plan(Plan&&) = default;
  Plan& operator=(Plan&&) = default;

  // CLONE_NEW* flags for the supervisor.
  int clone_flags() const { return clone_flags_; }
  // True when the launcher has to call map_ids before the supervisor may go on.
  bool needs_id_maps() const;
  // Writes the child's uid and gid maps. Launcher.
  Result<void, Failure> map_ids(pid_t child) const;

  // Everything up to and with the supervisor's seccomp filter. Supervisor.
  Result<void, Failure> enter();
  // The rest, in a freshly cloned worker; may run again in a later one. Also
  // sets sys::set_proc_self_fd.
  Result<Entered, Failure> enter_worker();

  // Once entered: the shared directory, and the mount namespace in which things are mounted below
  // it. Another process tree that serves instead of this one has to go on with them: to the kernel
  // the same directory on another mount is another place. Supervisor.
  FdRef root() const { return shared_; }
  FdRef mount_namespace() const { return mount_namespace_; }
  // Those of the tree before. They must be of the same directory.
  Result<void, Failure> adopt(UniqueFd root, UniqueFd mount_namespace);

  const Settings& settings() const { return settings_; }

 private:
  explicit Plan(Settings settings) : settings_(std::move(settings)) {}

  Settings settings_;
  int clone_flags_ = 0;
  UniqueFd shared_;                 // O_PATH; the bind mount once entered
  UniqueFd mount_namespace_;        // once entered
  std::uint64_t capabilities_ = 0;  // to keep, bit n for capability n
  bool in_user_namespace_ = false;
  bool has_other_ids_ = false;  // more than our own id is mapped
  bool default_maps_ = false;   // the maps are our idea, not the operator's
  bool handles_work_ = false;
  bool enclosed_ = false;  // no path leads out of the share and our own /proc
  bool landlocked_ = false;
};

// For threads that serve requests and nothing else: no sockets, no new
// threads, no namespaces. Stacks on the worker's filter. Made once, for that
// takes longer than making a thread does.
class RequestFilter {
 public:
  // Nothing for SeccompMode::kNone.
  static Result<RequestFilter, Failure> make(SeccompMode mode);
  // First thing in the thread, after its unshare(CLONE_FS). Any thread.
  Result<void, Failure> apply() const;

 private:
  std::vector<sock_filter> program_;  // empty: no filter
};

// Drops the supplementary groups the caller started us with, so that no file
// is made with a group of theirs. (CVE-2022-0358) A user without the privilege keeps them.
Result<void, Failure> drop_groups();

// Sets RLIMIT_NOFILE: to `wanted`, leaves it alone for 0, or for -1 raises it
// to what the system allows, at most a million. Returns the limit that now holds.
Result<std::uint64_t, Failure> limit_descriptors(std::int64_t wanted);

}  // namespace virtiofsd::sandbox
