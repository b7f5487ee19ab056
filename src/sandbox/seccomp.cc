// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sandbox/seccomp.h"

#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "sys/fd.h"

#if defined(__has_feature)
#define SANITIZED __has_feature(address_sanitizer)
#elif defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

namespace virtiofsd::sandbox {
namespace {

// clang-format off
// By name: what this libseccomp or this architecture doesn't know is left out,
// and a kernel that has it all the same answers ENOSYS.
constexpr const char* kRequestCalls[] = {
    // files by descriptor
    "read", "readv", "pread64", "preadv", "preadv2", "write", "writev", "pwrite64", "pwritev",
    "pwritev2", "lseek", "fsync", "fdatasync", "sync_file_range", "syncfs", "fallocate",
    "ftruncate", "copy_file_range", "sendfile", "splice", "fadvise64", "readahead", "flock",
    "fcntl", "dup", "dup3", "dup2", "close", "close_range", "getdents64", "fstat", "fstatfs",
    "statfs",
    // files by name
    "openat", "openat2", "open_by_handle_at", "name_to_handle_at", "statx", "newfstatat",
    "faccessat", "faccessat2", "readlinkat", "mkdirat", "mknodat", "symlinkat", "linkat",
    "unlinkat", "renameat2", "renameat", "fchmod", "fchmodat", "fchmodat2", "fchown",
    "fchownat", "utimensat", "chdir", "fchdir", "umask", "truncate",
    // The C library's older spellings, on architectures that have them.
    "open", "stat", "lstat", "access", "readlink", "poll", "epoll_wait",
    // extended attributes
    "getxattr", "lgetxattr", "fgetxattr", "setxattr", "lsetxattr", "fsetxattr", "listxattr",
    "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr", "getxattrat",
    "setxattrat", "listxattrat", "removexattrat", "file_getattr", "file_setattr",
    // acting as the caller
    "setfsuid", "setfsgid", "setgroups", "capget", "capset", "getuid", "geteuid", "getgid",
    "getegid", "getgroups", "getresuid", "getresgid",
    // waiting and waking
    "futex", "futex_waitv", "ppoll", "epoll_pwait", "epoll_pwait2", "epoll_ctl", "nanosleep",
    "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "time", "sched_yield",
    "timerfd_settime", "timerfd_gettime", "restart_syscall", "membarrier", "getcpu",
    // telling the VMM, and the log
    "sendto", "sendmsg", "sendmmsg",
    // memory
    "brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "mincore",
    // signals and ending
    "rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigreturn", "rt_sigtimedwait",
    "sigaltstack",
    "tgkill", "tkill", "exit", "exit_group", "getpid", "gettid", "getppid", "getrandom", "rseq",
    "set_robust_list", "set_tid_address", "sched_getaffinity", "sysinfo", "uname",
};

constexpr const char* kWorkerCalls[] = {
    "accept4", "accept", "recvmsg", "recvfrom", "recvmmsg", "getsockopt", "setsockopt",
    "getsockname", "getpeername", "shutdown", "socketpair", "epoll_create1", "eventfd2",
    "pipe2", "memfd_create", "timerfd_create", "signalfd4", "inotify_init1",
    "inotify_add_watch", "inotify_rm_watch", "mlock", "munlock", "mlock2", "msync",
    "rt_sigsuspend", "sched_setaffinity", "sched_getscheduler",
    "sched_setscheduler", "sched_getparam", "sched_get_priority_max", "sched_get_priority_min",
    "getpriority", "setpriority", "getrusage", "times", "seccomp", "get_robust_list",
    "arch_prctl", "getrlimit", "fchmod",
};

constexpr const char* kSupervisorCalls[] = {
    "wait4", "waitid", "kill", "pidfd_open", "pidfd_send_signal",
};

// Refused politely in every role: the C library has another way.
constexpr const char* kNotHere[] = {
    "socket",  // syslog(3) wants to connect again after its daemon restarted; it can do without
    "clone3",  // its flags lie in memory, where a filter can't look
    "userfaultfd", "set_mempolicy_home_node", "map_shadow_stack", "cachestat", "mseal",
    "process_madvise", "io_uring_setup", "sysfs", "statmount", "listmount", "rt_tgsigqueueinfo",
    "get_mempolicy", "mbind", "lsm_get_self_attr",
};
// clang-format on

// The ioctls that a guest may ask for (and the one that asks whether stderr is a terminal).
constexpr unsigned long kIoctls[] = {
    FS_IOC_GETFLAGS,   FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR,
    FS_IOC_GETVERSION, FICLONE,         FICLONERANGE,      TCGETS,
    FIONBIO,           FIONREAD,
};

constexpr unsigned kPrSetVma = 0x53564d41;  // PR_SET_VMA: the C library names its mappings
constexpr unsigned kPrctls[] = {
    PR_SET_NAME,         PR_GET_NAME,         PR_SET_PDEATHSIG, PR_GET_PDEATHSIG,
    PR_SET_DUMPABLE,     PR_GET_DUMPABLE,     PR_CAPBSET_READ,  PR_GET_SECUREBITS,
    PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_SET_SECCOMP,   PR_SET_TIMERSLACK,
    PR_GET_TID_ADDRESS,  kPrSetVma,
};

struct ContextDeleter {
  void operator()(void* context) const { seccomp_release(context); }
};

// Builds a filter; keeps the first error, so that rules read as a list.
class Filter {
 public:
  explicit Filter(std::uint32_t action)
      : action_(action), context_(seccomp_init(SCMP_ACT_ERRNO(ENOSYS))) {
    if (!context_) {
      error_ = ENOMEM;
      return;
    }
    // A binary tree: the cost of a call no longer grows with its place in the list.
    note(seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2));
  }

  void allow(std::span<const char* const> names) {
    for (const char* name : names) add(SCMP_ACT_ALLOW, name, {});
  }

  // Without a comparison the rule holds for every argument.
  void add(std::uint32_t action, const char* name, std::initializer_list<scmp_arg_cmp> compare) {
    const int number = seccomp_syscall_resolve_name(name);
    if (number < 0 || (compare.size() == 0 && handled_.contains(number))) return;
    handled_.insert(number);
    note(seccomp_rule_add_array(context_.get(), action, number,
                                static_cast<unsigned>(compare.size()), std::data(compare)));
  }

  // No rule at all: the default answer.
  void refuse_politely(const char* name) {
    const int number = seccomp_syscall_resolve_name(name);
    if (number >= 0) handled_.insert(number);
  }

  // Everything this libseccomp has a name for and no rule is about.
  void deny_the_rest() {
    constexpr int kMostCalls = 1024;
    for (int number = 0; number < kMostCalls; ++number) {
      char* name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, number);
      if (name == nullptr) continue;
      ::free(name);
      if (handled_.insert(number).second) {
        note(seccomp_rule_add_array(context_.get(), action_, number, 0, nullptr));
      }
    }
  }

  Result<void, Failure> load() {
    if (error_ == 0) note(seccomp_load(context_.get()));
    if (error_ != 0) return Failure{"can't load the seccomp filter", Errno{error_}};
    return {};
  }

  // The instructions that load() would give to the kernel.
  Result<std::vector<sock_filter>, Failure> compile() {
    const UniqueFd file{::memfd_create("seccomp", MFD_CLOEXEC)};
    if (!file) note(-errno);
    if (error_ == 0) note(seccomp_export_bpf(context_.get(), file.number()));
    struct stat st {};
    if (error_ == 0 && ::fstat(file.number(), &st) != 0) note(-errno);
    std::vector<sock_filter> program(static_cast<std::size_t>(st.st_size) / sizeof(sock_filter));
    const auto bytes = static_cast<ssize_t>(program.size() * sizeof(sock_filter));
    if (error_ == 0 &&
        ::pread(file.number(), program.data(), static_cast<std::size_t>(bytes), 0) != bytes) {
      note(-EIO);
    }
    if (error_ != 0) return Failure{"can't compile the seccomp filter", Errno{error_}};
    return program;
  }

 private:
  void note(int result) {
    if (result < 0 && error_ == 0) error_ = -result;
  }

  std::uint32_t action_;
  std::unique_ptr<void, ContextDeleter> context_;
  std::set<int> handled_;
  int error_ = 0;
};

std::uint32_t action_of(SeccompMode mode) {
  switch (mode) {
    case SeccompMode::kLog:
      return SCMP_ACT_LOG;
    case SeccompMode::kTrap:
      return SCMP_ACT_TRAP;
    case SeccompMode::kNone:
    case SeccompMode::kKill:
      break;
  }
  return SCMP_ACT_KILL_PROCESS;
}

// The kernel looks at the lower half only, so the filter must too.
scmp_arg_cmp equals(unsigned argument, std::uint64_t value) {
  return scmp_arg_cmp{argument, SCMP_CMP_MASKED_EQ, 0xffffffffU, value};
}
scmp_arg_cmp bits(unsigned argument, std::uint64_t mask, std::uint64_t value) {
  return scmp_arg_cmp{argument, SCMP_CMP_MASKED_EQ, mask, value};
}

void add_clone(Filter& filter, Role role) {
  constexpr std::uint64_t kNamespaces = CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET |
                                        CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
  constexpr std::uint64_t kProcess = kNamespaces | CLONE_THREAD | CLONE_VM | CLONE_FILES;
  filter.add(SCMP_ACT_ALLOW, "clone",
             {bits(0, kNamespaces | CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM)});
  if (role == Role::kSupervisor) {
    filter.add(SCMP_ACT_ALLOW, "clone", {bits(0, kProcess, CLONE_FILES)});
  }
}

Filter filter_of(Role role, SeccompMode mode) {
  Filter filter(action_of(mode));
  for (const unsigned long request : kIoctls) {
    filter.add(SCMP_ACT_ALLOW, "ioctl", {equals(1, request)});
  }
  for (const unsigned option : kPrctls) filter.add(SCMP_ACT_ALLOW, "prctl", {equals(0, option)});
  // Asking for a limit is fine (the C library does, for stacks), setting one isn't.
  filter.add(SCMP_ACT_ALLOW, "prlimit64", {scmp_arg_cmp{2, SCMP_CMP_EQ, 0, 0}});
  if (role != Role::kRequest) {
    add_clone(filter, role);
    filter.add(SCMP_ACT_ALLOW, "unshare", {equals(0, CLONE_FS)});
    filter.allow(kWorkerCalls);
  }
  if (role == Role::kSupervisor) filter.allow(kSupervisorCalls);
  filter.allow(kRequestCalls);
  // The sanitizers find out whether an address can be read by writing from there to a pipe.
  if constexpr (SANITIZED != 0) filter.add(SCMP_ACT_ALLOW, "pipe2", {});
  for (const char* name : kNotHere) filter.refuse_politely(name);
  filter.deny_the_rest();
  return filter;
}

}  // namespace

Result<void, Failure> load_seccomp(Role role, SeccompMode mode) {
  if (mode == SeccompMode::kNone) return {};
  return filter_of(role, mode).load();
}

Result<RequestFilter, Failure> RequestFilter::make(SeccompMode mode) {
  RequestFilter made;
  if (mode != SeccompMode::kNone) made.program_ = TRY(filter_of(Role::kRequest, mode).compile());
  return made;
}

Result<void, Failure> RequestFilter::apply() const {
  if (program_.empty()) return {};
  // The kernel copies what it is shown.
  sock_fprog program{.len = static_cast<unsigned short>(program_.size()),
                     .filter = const_cast<sock_filter*>(program_.data())};
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0)
    return Failure{"can't load a thread's seccomp filter", Errno::last()};
  return {};
}

}  // namespace virtiofsd::sandbox
