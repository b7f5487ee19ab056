// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Most of what the sandbox does can't be undone, so each test does it in a
// child process and looks at how that ends.
#include "sandbox/sandbox.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <thread>

#include "sandbox/ids.h"
#include "sandbox/landlock.h"
#include "sandbox/seccomp.h"

namespace virtiofsd::sandbox {
namespace {

using testing::HasSubstr;

constexpr int kFine = 0;

// The wait status of a child that runs `body` and exits with what it returns.
int in_child(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

int exit_status(const std::function<int()>& body) {
  const int status = in_child(body);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

class TempDir {
 public:
  TempDir() {
    std::string name = "/tmp/virtiofsd-sandbox-XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~TempDir() { ::rmdir(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string failure_of(Settings settings) {
  auto plan = Plan::make(std::move(settings));
  return plan ? "(accepted)" : plan.error().text();
}

TEST(SandboxPlan, SaysWhatIsWrongWithTheDirectory) {
  EXPECT_THAT(failure_of({.shared_dir = "/nowhere/at/all"}),
              HasSubstr("\"/nowhere/at/all\" does not exist"));
  EXPECT_THAT(failure_of({.shared_dir = "/dev/null"}), HasSubstr("is not a directory"));
}

TEST(SandboxPlan, SaysWhatIsWrongWithCapabilities) {
  const TempDir share;
  const auto with = [&](const char* changes) {
    return failure_of(
        {.shared_dir = share.path(), .mode = Mode::kNone, .capability_changes = changes});
  };
  EXPECT_THAT(with("+nonsense"), HasSubstr("\"+nonsense\""));
  EXPECT_THAT(with("mknod"), HasSubstr("\"mknod\""));
  EXPECT_THAT(with("+"), HasSubstr("modcaps"));
  EXPECT_EQ(with("-mknod:-CAP_SETFCAP"), "(accepted)");
}

TEST(SandboxPlan, RefusesIdMapsWithoutAUserNamespace) {
  const TempDir share;
  EXPECT_THAT(failure_of({.shared_dir = share.path(), .mode = Mode::kNone, .uid_map = {{0, 0, 1}}}),
              HasSubstr("--uid-map"));
}

TEST(SandboxIds, FindTheSubordinateRangeByNameOrNumber) {
  constexpr const char* kText = "root:1:2\nann:100000:65536\n1001:200000:10\nbroken\nbob:x:y\n";
  EXPECT_EQ(subordinate_range(kText, "ann", 1000), (IdRange{0, 100000, 65536}));
  EXPECT_EQ(subordinate_range(kText, "someone", 1001), (IdRange{0, 200000, 10}));
  EXPECT_EQ(subordinate_range(kText, "bob", 1002).count, 0U);
  EXPECT_EQ(subordinate_range(kText, "", 1002).count, 0U);
}

TEST(SandboxIds, RefuseMapsThatOverlapOrLackZero) {
  auto overlapping = choose_maps({{0, 1000, 10}, {5, 2000, 10}}, {});
  ASSERT_FALSE(overlapping);
  EXPECT_THAT(overlapping.error().text(), HasSubstr("--uid-map: two of the ranges overlap"));
  auto rootless = choose_maps({{1, ::geteuid(), 1}}, {});
  ASSERT_FALSE(rootless);
  EXPECT_THAT(rootless.error().text(), HasSubstr("--uid-map: no range begins with id 0"));
}

TEST(SandboxLimits, SetExactlyWhatIsAskedForAndLeaveAloneForZero) {
  EXPECT_EQ(exit_status([] {
              const auto lowered = limit_descriptors(200);
              struct rlimit now {};
              ::getrlimit(RLIMIT_NOFILE, &now);
              if (!lowered || *lowered != 200 || now.rlim_cur != 200) return 1;
              const auto left = limit_descriptors(0);
              return left && *left == 200 ? kFine : 2;
            }),
            kFine);
  EXPECT_FALSE(limit_descriptors(std::int64_t{1} << 31));
}

TEST(SandboxSeccomp, KillsOnADangerousCallAndLetsFilesThrough) {
  EXPECT_EQ(exit_status([] {
              if (!load_seccomp(Role::kWorker, SeccompMode::kKill)) return 1;
              std::thread([] {}).join();
              const int fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
              if (fd < 0 || ::write(fd, "x", 1) != 1) return 2;
              long flags = 0;
              (void)::ioctl(fd, FS_IOC_GETFLAGS, &flags);
              return ::close(fd);
            }),
            kFine);
  for (const auto& dangerous : std::vector<std::function<void()>>{
           [] { (void)::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr); },
           [] { ::execl("/bin/true", "true", nullptr); },
           [] { (void)::syscall(SYS_mount, nullptr, nullptr, nullptr, 0, nullptr); },
           [] { (void)::syscall(SYS_bpf, 0, nullptr, 0); },
           [] { (void)::syscall(SYS_kexec_load, 0, 0, nullptr, 0); },
           [] { (void)::syscall(SYS_process_vm_readv, 0, nullptr, 0, nullptr, 0, 0); },
           [] { (void)::syscall(SYS_setresuid, 0, 0, 0); },
           [] { (void)::syscall(SYS_connect, 0, nullptr, 0); },
           [] { (void)::kill(::getppid(), 0); },
       }) {
    EXPECT_EQ(exit_status([&] {
                if (!load_seccomp(Role::kWorker, SeccompMode::kKill)) return 1;
                dangerous();
                return 2;
              }),
              -SIGSYS);
  }
}

TEST(SandboxSeccomp, RefusesByArgument) {
  EXPECT_EQ(exit_status([] {
              if (!load_seccomp(Role::kWorker, SeccompMode::kKill)) return 1;
              char byte = 'x';
              if (::ioctl(0, TIOCSTI, &byte) == 0 || errno != ENOSYS) return 2;
              if (::unshare(CLONE_FS) != 0) return 3;
              if (::unshare(CLONE_NEWUSER) == 0 || errno != ENOSYS) return 4;
              struct rlimit limit {};
              if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 5;
              if (::setrlimit(RLIMIT_NOFILE, &limit) == 0) return 6;
              if (::syscall(SYS_socket, 1, 1, 0) >= 0 || errno != ENOSYS) return 8;
              if (::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) >= 0 || errno != ENOSYS) return 7;
              return kFine;
            }),
            kFine);
}

TEST(SandboxSeccomp, AnswersUnknownCallsWithENOSYS) {
  EXPECT_EQ(exit_status([] {
              if (!load_seccomp(Role::kWorker, SeccompMode::kKill)) return 1;
              return ::syscall(1000) < 0 && errno == ENOSYS ? kFine : 2;
            }),
            kFine);
}

TEST(SandboxSeccomp, RequestThreadsMayNotTouchSocketsOrMakeThreads) {
  const auto request = [](const std::function<void()>& act) {
    return exit_status([&] {
      if (!load_seccomp(Role::kWorker, SeccompMode::kKill)) return 1;
      const auto filter = RequestFilter::make(SeccompMode::kKill);
      if (!filter || !filter->apply()) return 2;
      act();
      return kFine;
    });
  };
  EXPECT_EQ(request([] { ::close(::open("/", O_PATH | O_CLOEXEC)); }), kFine);
  EXPECT_EQ(request([] { (void)::syscall(SYS_accept4, 0, nullptr, nullptr, 0); }), -SIGSYS);
  EXPECT_EQ(request([] { (void)::syscall(SYS_clone, 0, 0, 0, 0, 0); }), -SIGSYS);
  EXPECT_EQ(request([] { (void)::syscall(SYS_recvmsg, 0, nullptr, 0); }), -SIGSYS);
}

TEST(SandboxSeccomp, LogModeRefusesNothingThatIsKnown) {
  EXPECT_EQ(exit_status([] {
              if (!load_seccomp(Role::kWorker, SeccompMode::kLog)) return 1;
              return ::kill(::getpid(), 0);
            }),
            kFine);
}

TEST(SandboxLandlock, KeepsFilesOutsideTheDirectoryShut) {
  const TempDir share;
  const int status = exit_status([&] {
    const UniqueFd directory(::open(share.path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    auto restricted = restrict_to(directory);
    if (!restricted) return 1;
    if (!*restricted) return 77;
    if (::open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0 || errno != EACCES) return 2;
    const int inside = ::openat(directory.number(), "file", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (inside < 0 || ::renameat(directory.number(), "file", directory.number(), "gile") != 0) {
      return 3;
    }
    return ::unlinkat(directory.number(), "gile", 0);
  });
  if (status == 77) GTEST_SKIP() << "this kernel has no landlock";
  EXPECT_EQ(status, kFine);
}

// Whatever keeps it shut: the mounts, the root or landlock.
TEST(SandboxPlan, NothingOutsideTheShareCanBeNamed) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can have every mode";
  for (const Mode mode : {Mode::kNamespace, Mode::kChroot, Mode::kNone}) {
    const TempDir share;
    const int status = exit_status([&] {
      Settings settings;
      settings.shared_dir = share.path();
      settings.mode = mode;
      settings.seccomp = SeccompMode::kNone;
      auto plan = Plan::make(settings);
      if (!plan || ::unshare(plan->clone_flags()) != 0) return 1;
      // The first process of the new pid namespace.
      return exit_status([&] {
        if (!plan->enter()) return 2;
        const auto entered = plan->enter_worker();
        if (!entered) return 3;
        if (mode != Mode::kNamespace && !entered->landlocked) return 77;
        // The working directory was /proc, then the worker's own /proc/self/fd.
        for (const char* path :
             {"/etc/passwd", "/proc/version", "../../version", "../../sysrq-trigger",
              "../../sys/kernel/core_pattern", "../../1/root/etc/passwd", "../../../etc/passwd",
              "../../../../etc/passwd"}) {
          if (::open(path, O_RDONLY | O_CLOEXEC) >= 0) {
            ::fprintf(stderr, "%s is in reach\n", path);
            return 4;
          }
        }
        const int inside =
            ::openat(entered->root.number(), "file", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        return inside < 0 ? 5 : ::unlinkat(entered->root.number(), "file", 0);
      });
    });
    if (status == 77) GTEST_SKIP() << "this kernel has no landlock";
    EXPECT_EQ(status, kFine) << static_cast<int>(mode);
  }
}

}  // namespace
}  // namespace virtiofsd::sandbox
