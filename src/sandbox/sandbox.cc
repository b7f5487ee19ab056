// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sandbox/sandbox.h"

#include <cap-ng.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/log.h"
#include "sandbox/ids.h"
#include "sandbox/landlock.h"
#include "sandbox/seccomp.h"
#include "sys/files.h"
#include "sys/process.h"

namespace virtiofsd::sandbox {
namespace {

constexpr std::uint64_t bit(int capability) {
  return std::uint64_t{1} << capability;
}

// What serving a guest takes: owners and modes as the guest sets them, files
// made as the caller, device nodes (which the share's mount doesn't open) and
// the guest's file capabilities.
constexpr std::uint64_t kServing = bit(CAP_CHOWN) | bit(CAP_DAC_OVERRIDE) | bit(CAP_FOWNER) |
                                   bit(CAP_FSETID) | bit(CAP_SETGID) | bit(CAP_SETUID) |
                                   bit(CAP_MKNOD) | bit(CAP_SETFCAP);

constexpr const char* kOtherModes =
    "--sandbox=chroot (root) and --sandbox=none ask for less, see the manual page";

// Applies "+name:-name" to `set`; a name may begin with cap_.
Result<std::uint64_t, Failure> change_capabilities(std::uint64_t set, std::string_view changes) {
  while (!changes.empty()) {
    const std::string change{changes.substr(0, changes.find(':'))};
    changes.remove_prefix(std::min(changes.size(), change.size() + 1));
    const Failure malformed{
        fmt::format("modcaps: \"{}\" is not +NAME or -NAME with the name of a capability", change)};
    if (change.size() < 2 || (change[0] != '+' && change[0] != '-')) return malformed;
    std::string name = change.substr(1);
    std::ranges::transform(name, name.begin(), [](char c) {
      return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    if (name.starts_with("cap_")) name.erase(0, 4);
    const int capability = capng_name_to_capability(name.c_str());
    if (capability < 0 || capability > 63) return malformed;
    set = change[0] == '+' ? set | bit(capability) : set & ~bit(capability);
  }
  return set;
}

std::string capability_names(std::uint64_t set) {
  std::string names;
  for (int capability = 0; capability < 64; ++capability) {
    if ((set & bit(capability)) == 0) continue;
    const char* name = capng_capability_to_name(static_cast<unsigned>(capability));
    if (!names.empty()) names += ' ';
    names += name != nullptr ? name : fmt::format("{}", capability);
  }
  return names;
}

Result<UniqueFd, Failure> open_shared(const std::string& path) {
  UniqueFd shared(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (shared) {
    // O_PATH asks for no permission; serving does.
    const UniqueFd readable(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (readable) return shared;
    return Failure{fmt::format("the shared directory \"{}\" can't be read", path), Errno::last()};
  }
  const Errno error = Errno::last();
  if (error == Errno{ENOENT}) {
    return Failure{fmt::format("the shared directory \"{}\" does not exist", path)};
  }
  if (error == Errno{ENOTDIR}) {
    return Failure{fmt::format("\"{}\", which is to be shared, is not a directory", path)};
  }
  return Failure{fmt::format("can't open the shared directory \"{}\"", path), error};
}

// Does opening by handle work on this file system, and may we?
bool handles_work(FdRef shared, const std::string& path) {
  const auto handle = sys::name_to_handle_at(shared);
  if (!handle) return false;
  const UniqueFd mount(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!mount) return false;
  return sys::open_by_handle_at(mount, *handle, O_PATH).has_value();
}

bool same_directory(FdRef a, FdRef b) {
  struct stat one {};
  struct stat other {};
  return ::fstat(a.number(), &one) == 0 && ::fstat(b.number(), &other) == 0 &&
         one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

Failure refused(const char* what, Errno error) {
  return Failure{
      fmt::format("--sandbox=namespace can't {} ({}); {}", what, error.text(), kOtherModes)};
}

// A /proc that shows this pid namespace's processes and nothing else, mounted
// nowhere. None where a container's rules forbid to mount one.
UniqueFd mount_own_proc() {
  const UniqueFd context(::fsopen("proc", FSOPEN_CLOEXEC));
  if (context) {
    const bool processes_only =
        ::fsconfig(context.number(), FSCONFIG_SET_STRING, "subset", "pid", 0) == 0;
    if (::fsconfig(context.number(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0) {
      // All of /proc can be turned into power over the host by writing to it. (sysctl, sysrq)
      const unsigned read_only = processes_only ? 0 : MOUNT_ATTR_RDONLY;
      UniqueFd proc(
          ::fsmount(context.number(), FSMOUNT_CLOEXEC,
                    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | read_only));
      if (proc) return proc;
    }
  }
  log::debug("no own /proc can be mounted here ({}); using the one that is there",
             Errno::last().text());
  return {};
}

Result<UniqueFd, Failure> open_proc() {
  UniqueFd proc(::open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct statfs kind {};
  if (!proc || ::fstatfs(proc.number(), &kind) != 0 || kind.f_type != PROC_SUPER_MAGIC) {
    return Failure{"/proc is not mounted; files can't be opened without it"};
  }
  return proc;
}

Result<void, Failure> set_capabilities(std::uint64_t keep) {
  for (int capability = 0; capability < 64; ++capability) {
    const int there = ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
    if (there < 0) break;  // past the last one the kernel knows
    if (there == 0 || (keep & bit(capability)) != 0) continue;
    // An ordinary user may not; no_new_privs makes the bounding set moot for them.
    if (::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EPERM) {
      return Failure{"can't drop a capability from the bounding set", Errno::last()};
    }
  }
  // Fails before Linux 4.3 only, which has no ambient capabilities.
  (void)::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  const auto set = sys::set_capabilities({.effective = keep, .permitted = keep, .inheritable = 0});
  if (!set) return Failure{"can't set the process's capabilities", set.error()};
  return {};
}

}  // namespace

Result<Plan, Failure> Plan::make(Settings settings) {
  Plan plan(std::move(settings));
  const Settings& wanted = plan.settings_;
  const bool root = ::geteuid() == 0;
  plan.shared_ = TRY(open_shared(wanted.shared_dir));

  const auto held = sys::capabilities();
  if (!held) return Failure{"can't read the process's capabilities", held.error()};
  plan.in_user_namespace_ = wanted.mode == Mode::kNamespace && !root;
  // All capabilities are there in a user namespace of one's own.
  const std::uint64_t available = plan.in_user_namespace_ ? ~std::uint64_t{0} : held->permitted;

  std::uint64_t keep = kServing;
  plan.handles_work_ = wanted.file_handles && !plan.in_user_namespace_ &&
                       handles_work(plan.shared_, wanted.shared_dir);
  if (wanted.file_handles_mandatory && !plan.handles_work_) {
    return Failure{fmt::format(
        "--inode-file-handles=mandatory: \"{}\" can't be opened by file handle (that takes root "
        "with CAP_DAC_READ_SEARCH outside of any user namespace, and a file system that has them)",
        wanted.shared_dir)};
  }
  if (plan.handles_work_) keep |= bit(CAP_DAC_READ_SEARCH);
  const std::uint64_t base = keep;
  keep = TRY(change_capabilities(keep, wanted.capability_changes));
  if (plan.handles_work_ && (keep & bit(CAP_DAC_READ_SEARCH)) == 0) {
    return Failure{"modcaps: -dac_read_search contradicts --inode-file-handles"};
  }
  if (const std::uint64_t lacking = keep & ~base & ~available; lacking != 0) {
    return Failure{fmt::format("modcaps: can't keep what this process doesn't have: {}",
                               capability_names(lacking))};
  }
  if (root && (keep & ~available) != 0) {
    log::warn("these capabilities are missing, so the guest will see errors: {}",
              capability_names(keep & ~available));
  }
  plan.capabilities_ = keep & available;

  if (!plan.in_user_namespace_ && (!wanted.uid_map.empty() || !wanted.gid_map.empty())) {
    return Failure{
        "--uid-map and --gid-map need --sandbox=namespace and a user other than root: they "
        "describe that user's own user namespace"};
  }
  switch (wanted.mode) {
    case Mode::kNamespace: {
      plan.clone_flags_ = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET;
      if (plan.in_user_namespace_) {
        plan.clone_flags_ |= CLONE_NEWUSER;
        auto maps = TRY(choose_maps(wanted.uid_map, wanted.gid_map));
        plan.default_maps_ = maps.by_default;
        plan.settings_.uid_map = std::move(maps.uid);
        plan.settings_.gid_map = std::move(maps.gid);
      } else if ((held->effective & bit(CAP_SYS_ADMIN)) == 0) {
        return Failure{fmt::format(
            "--sandbox=namespace needs CAP_SYS_ADMIN, which this process lacks (in a container?); "
            "{}",
            kOtherModes)};
      }
      break;
    }
    case Mode::kChroot:
      if ((held->effective & bit(CAP_SYS_CHROOT)) == 0) {
        return Failure{
            "--sandbox=chroot needs root with CAP_SYS_CHROOT; an ordinary user can have "
            "--sandbox=namespace or --sandbox=none"};
      }
      break;
    case Mode::kNone:
      break;
  }
  return plan;
}

bool Plan::needs_id_maps() const {
  return in_user_namespace_;
}

Result<void, Failure> Plan::map_ids(pid_t child) const {
  return write_maps(child, {settings_.uid_map, settings_.gid_map, default_maps_});
}

Result<void, Failure> Plan::enter() {
  ::tzset();  // the time zone's file won't be there later
  if (in_user_namespace_) {
    // Mapped by now; be the root of it. Groups can't be dropped where the
    // kernel ties them to a map an ordinary user wrote.
    (void)::setgroups(0, nullptr);
    if (::setresgid(0, 0, 0) != 0 || ::setresuid(0, 0, 0) != 0) {
      return refused("become root in its user namespace", Errno::last());
    }
    has_other_ids_ = maps_other_ids();
  }
  UniqueFd proc;
  if (settings_.mode == Mode::kNamespace) {
    // What the host mounts below the share later still shows; what we mount stays ours.
    if (::mount(nullptr, "/", nullptr, MS_SLAVE | MS_REC, nullptr) != 0) {
      return refused("change its own mounts", Errno::last());
    }
    proc = mount_own_proc();
    enclosed_ = static_cast<bool>(proc);
    if (!proc) proc = TRY(open_proc());
    // The descriptor from before belongs to the caller's mount namespace.
    const char* path = settings_.shared_dir.c_str();
    const UniqueFd again(::open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!again || !same_directory(again, shared_)) {
      return Failure{fmt::format("the shared directory \"{}\" changed while starting", path)};
    }
    UniqueFd tree(::open_tree(again.number(), "",
                              OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE));
    if (!tree) return refused("bind the shared directory", Errno::last());
    struct mount_attr attributes {};
    attributes.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    if (settings_.read_only) attributes.attr_set |= MOUNT_ATTR_RDONLY;
    if (::mount_setattr(tree.number(), "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes,
                        sizeof(attributes)) != 0) {
      return refused("make the share's mount nosuid and nodev (needs Linux 5.12)", Errno::last());
    }
    if (::move_mount(tree.number(), "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) != 0) {
      return refused("mount the shared directory", Errno::last());
    }
    if (::fchdir(tree.number()) != 0) return refused("enter the share", Errno::last());
    if (::syscall(SYS_pivot_root, ".", ".") == 0) {
      if (::umount2(".", MNT_DETACH) != 0) {
        return refused("let go of the old root", Errno::last());
      }
    } else if (errno == EINVAL) {
      // An initial ramdisk can't be pivoted away from; it is covered and left instead.
      if (::mount(".", "/", nullptr, MS_MOVE, nullptr) != 0 || ::chroot(".") != 0) {
        return refused("make the share its root", Errno::last());
      }
    } else {
      return refused("make the share its root", Errno::last());
    }
    if (::chdir("/") != 0) return refused("enter its new root", Errno::last());
    shared_ = std::move(tree);
  } else {
    proc = TRY(open_proc());
    if (settings_.mode == Mode::kChroot) {
      if (::fchdir(shared_.number()) != 0 || ::chroot(".") != 0) {
        return Failure{"can't chroot to the shared directory", Errno::last()};
      }
    }
  }
  // The worker finds its own /proc/self/fd from here. As a working directory
  // it is in no descriptor table, so the worker can't keep it.
  if (::fchdir(proc.number()) != 0) return Failure{"can't enter /proc", Errno::last()};
  proc.reset();
  mount_namespace_ = UniqueFd(::openat(AT_FDCWD, "self/ns/mnt", O_RDONLY | O_CLOEXEC));
  if (!mount_namespace_) return Failure{"can't open /proc/self/ns/mnt", Errno::last()};

  TRY(set_capabilities(capabilities_));
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return Failure{"can't set no_new_privs", Errno::last()};
  }
  // Where no path leads out there is nothing for it to keep shut, and it costs an
  // open, create or rename a fifth of its time. What is opened by handle has no
  // path the kernel could hold against the rule.
  if (!enclosed_ && !handles_work_) landlocked_ = TRY(restrict_to(shared_));
  TRY(load_seccomp(Role::kSupervisor, settings_.seccomp));
  // A worker, though it has the same user, gets no look at this process.
  CHECK(::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
  return {};
}

Result<void, Failure> Plan::adopt(UniqueFd root, UniqueFd mount_namespace) {
  if (!same_directory(root, shared_)) {
    return Failure{fmt::format("\"{}\" is not what is being shared", settings_.shared_dir)};
  }
  shared_ = std::move(root);
  mount_namespace_ = std::move(mount_namespace);
  return {};
}

Result<Entered, Failure> Plan::enter_worker() {
  UniqueFd fds(::openat(AT_FDCWD, "self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fds) return Failure{"can't open /proc/self/fd", Errno::last()};
  Entered entered;
  entered.root = UniqueFd(::fcntl(shared_.number(), F_DUPFD_CLOEXEC, 0));
  if (!entered.root) return Failure{"can't duplicate a descriptor", Errno::last()};
  if (::fchdir(fds.number()) != 0) return Failure{"can't leave /proc", Errno::last()};
  sys::set_proc_self_fd(std::move(fds));
  TRY(load_seccomp(Role::kWorker, settings_.seccomp));
  CHECK(::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);

  const std::uint64_t switching = bit(CAP_SETUID) | bit(CAP_SETGID);
  entered.can_switch_user =
      (capabilities_ & switching) == switching && (!in_user_namespace_ || has_other_ids_);
  entered.can_use_handles = handles_work_;
  entered.landlocked = landlocked_;
  constexpr std::array<const char*, 3> kModes = {"namespace", "chroot", "none"};
  constexpr std::array<const char*, 4> kSeccomp = {"none", "log", "trap", "kill"};
  entered.summary = fmt::format(
      "sandbox {}{}, seccomp {}, landlock {}, capabilities {}",
      kModes[static_cast<std::size_t>(settings_.mode)],
      in_user_namespace_ ? " as an ordinary user" : "",
      kSeccomp[static_cast<std::size_t>(settings_.seccomp)],
      landlocked_ ? "on"
      : enclosed_ ? "not needed"
                  : "off",
      capabilities_ == 0 ? "none"
                         : (in_user_namespace_ ? "of its user namespace: " : "") +
                               capability_names(capabilities_ & ((bit(CAP_LAST_CAP) << 1) - 1)));
  return entered;
}

}  // namespace virtiofsd::sandbox
