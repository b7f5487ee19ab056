// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The process tree with workers that do next to nothing. The tree changes the
// process it is started in, so each test runs it in a child.
#include "daemon/process_tree.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "sys/sockets.h"

namespace virtiofsd {
namespace {

using Clock = std::chrono::steady_clock;
using Worker = std::function<int(WorkerStart&)>;

// Seen by all processes of a test.
struct Shared {
  std::atomic<int> pid{0};
  std::atomic<int> number{0};
  std::atomic<int> lives{0};
  std::atomic<int> kept{-1};
  std::atomic<int> left{-1};
  std::atomic<bool> has_client{true};
  std::atomic<int> begun_again{0};
  std::atomic<bool> serves{false};
};

class SupervisorTest : public testing::TestWithParam<sandbox::Mode> {
 protected:
  SupervisorTest() {
    std::string name = "/tmp/virtiofsd-tree-XXXXXX";
    directory_ = ::mkdtemp(name.data());
    share_ = directory_ + "/share";
    socket_ = directory_ + "/socket";
    std::filesystem::create_directory(share_);
    void* memory =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared_ = new (memory) Shared;
  }
  ~SupervisorTest() override {
    if (tree_ > 0) {
      ::kill(tree_, SIGKILL);
      ::waitpid(tree_, nullptr, 0);
    }
    ::munmap(shared_, sizeof(Shared));
    std::filesystem::remove_all(directory_);
  }

  void start(const Worker& worker, Estate* estate = nullptr) {
    tree_ = start_tree(worker, {.daemonize = false, .estate = estate});
  }
  pid_t start_tree(const Worker& worker, const ProcessTreeSettings& settings) const {
    const pid_t tree = ::fork();
    if (tree != 0) return tree;
    log::configure(log::Sink::kStderr, log::Level::kOff);
    auto plan = sandbox::Plan::make(
        {.shared_dir = share_, .mode = GetParam(), .seccomp = sandbox::SeccompMode::kNone});
    auto listener = settings.take_over
                        ? Listener::prepare_to_take_over({.path = socket_}, *settings.take_over)
                        : Listener::prepare({.path = socket_});
    if (!plan || !listener) ::_exit(99);
    ::_exit(run_process_tree(settings, std::move(*plan), *listener, worker));
  }

  // The exit status of the tree; -1 if it lives on after `patience`.
  int wait(std::chrono::milliseconds patience = std::chrono::seconds(10)) {
    const int status = wait_for(tree_, patience);
    if (status != -1) tree_ = -1;
    return status;
  }
  static int wait_for(pid_t tree, std::chrono::milliseconds patience = std::chrono::seconds(10)) {
    const auto deadline = Clock::now() + patience;
    int status = 0;
    while (::waitpid(tree, &status, WNOHANG) == 0) {
      if (Clock::now() > deadline) return -1;
      ::poll(nullptr, 0, 1);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

  void wait_for_socket() const {
    const auto deadline = Clock::now() + std::chrono::seconds(10);
    while (!sys::connect_unix(socket_) && Clock::now() < deadline) ::poll(nullptr, 0, 1);
  }

  bool nothing_left_behind() const {
    return !std::filesystem::exists(socket_) && !std::filesystem::exists(socket_ + ".pid");
  }

  std::string directory_;
  std::string share_;
  std::string socket_;
  Shared* shared_ = nullptr;
  pid_t tree_ = -1;
};

int serve_for_ever(WorkerStart& start) {
  if (!start.ready()) return 1;
  for (;;) ::pause();
}

TEST_P(SupervisorTest, PassesTheWorkersExitStatusOn) {
  for (const int status : {0, 1, 7}) {
    start([status](WorkerStart& begin) { return begin.ready() ? status : 100; });
    EXPECT_EQ(wait(), status);
    EXPECT_TRUE(nothing_left_behind());
  }
}

TEST_P(SupervisorTest, MakesNoSocketForAWorkerThatFailsBeforeItIsReady) {
  start([this](WorkerStart&) {
    shared_->number = ::access(socket_.c_str(), F_OK) == 0 ? 1 : 2;
    return 3;
  });
  EXPECT_EQ(wait(), 3);
  EXPECT_EQ(shared_->number, 2);
  EXPECT_TRUE(nothing_left_behind());
}

TEST_P(SupervisorTest, EndsWithStatusZeroWithinASecondOfEachStopSignal) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    start(serve_for_ever);
    wait_for_socket();
    const auto before = Clock::now();
    ::kill(tree_, signal);
    EXPECT_EQ(wait(), 0);
    EXPECT_LT(Clock::now() - before, std::chrono::seconds(1));
    EXPECT_TRUE(nothing_left_behind());
  }
}

TEST_P(SupervisorTest, EndsAWorkerThatDoesNotListenToSignals) {
  start([](WorkerStart& begin) {
    sigset_t all;
    ::sigfillset(&all);
    ::sigprocmask(SIG_BLOCK, &all, nullptr);
    return serve_for_ever(begin);
  });
  wait_for_socket();
  const auto before = Clock::now();
  ::kill(tree_, SIGTERM);
  EXPECT_EQ(wait(), 0);
  EXPECT_LT(Clock::now() - before, std::chrono::seconds(1));
  EXPECT_TRUE(nothing_left_behind());
}

TEST_P(SupervisorTest, FailsWhenTheWorkerIsKilled) {
  for (const int signal : {SIGSEGV, SIGKILL, SIGABRT}) {
    start([signal](WorkerStart& begin) {
      if (!begin.ready()) return 1;
      ::signal(signal, SIG_DFL);
      ::kill(::getpid(), signal);
      return 0;
    });
    EXPECT_EQ(wait(), 1) << signal;
    EXPECT_TRUE(nothing_left_behind());
  }
}

// What these workers leave: a descriptor or a few.
class TestEstate : public Estate {
 public:
  explicit TestEstate(Shared* shared) : shared_(shared), memory_(::memfd_create("state", 0)) {}

  bool has_client() const override { return shared_->has_client && (!serves || shared_->serves); }
  const char* against_succession() const override { return against; }
  std::vector<int> inherits() const override {
    if (shared_->begun_again > 0) return {};
    return descriptors.empty() ? std::vector<int>{shared_->kept} : descriptors;
  }
  FdRef memory() const override { return memory_; }
  void begin_again() override { ++shared_->begun_again; }
  Result<void, Failure> consider(UniqueFd memory) override {
    struct stat st {};
    if (refuses || ::fstat(memory.number(), &st) != 0) return Failure{"won't do"};
    return {};
  }
  Result<void, Failure> adopt(std::unordered_map<int, UniqueFd> others) override {
    const int before = shared_->kept;
    if (others.size() != 1 || !others.contains(before)) return Failure{"wrong descriptors"};
    shared_->kept = others[before].release();
    return {};
  }

  const char* against = nullptr;
  std::vector<int> descriptors;
  bool refuses = false;
  bool serves = false;  // only once Shared::serves

 private:
  Shared* shared_;
  UniqueFd memory_;
};

TEST_P(SupervisorTest, ASuccessorHasTheDescriptorsThatItGoesOnWithAndNoOther) {
  for (const int signal : {SIGSEGV, SIGKILL, SIGABRT, SIGSYS}) {
    shared_->lives = 0;
    TestEstate estate(shared_);
    start(
        [this, signal](WorkerStart& begin) {
          if (++shared_->lives == 1) {
            if (begin.after != WorkerStart::After::kNobody || !begin.ready()) return 1;
            shared_->kept = ::memfd_create("kept", MFD_CLOEXEC);
            shared_->left = ::memfd_create("left", MFD_CLOEXEC);
            if (::write(shared_->kept, "here", 4) != 4) return 2;
            ::signal(signal, SIG_DFL);
            ::kill(::getpid(), signal);
            return 3;
          }
          char text[4] = {};
          if (begin.after != WorkerStart::After::kWorker) return 4;
          if (begin.blames != (signal != SIGKILL)) return 8;
          if (::pread(shared_->kept, text, 4, 0) != 4 || std::string_view{text, 4} != "here")
            return 5;
          // The number may be one of the successor's own by now.
          struct stat left {};
          if (::fstat(shared_->left, &left) == 0 && S_ISREG(left.st_mode)) return 6;
          struct stat root {};
          if (::fstat(begin.sandbox.root.number(), &root) != 0 || !S_ISDIR(root.st_mode)) return 7;
          return 42;
        },
        &estate);
    EXPECT_EQ(wait(), 42) << signal;
    EXPECT_TRUE(nothing_left_behind());
  }
}

TEST_P(SupervisorTest, WorkersThatDieTooOftenAreSucceededNoMore) {
  TestEstate estate(shared_);
  start(
      [this](WorkerStart& begin) {
        if (++shared_->lives == 1 && !begin.ready()) return 3;
        ::signal(SIGSEGV, SIG_DFL);
        ::kill(::getpid(), SIGSEGV);
        return 4;
      },
      &estate);
  EXPECT_EQ(wait(), 1);
  EXPECT_EQ(shared_->lives, 6);
  EXPECT_TRUE(nothing_left_behind());
}

TEST_P(SupervisorTest, AWorkerThatLeavesNothingToGoOnWithIsNotSucceeded) {
  TestEstate estate(shared_);
  estate.against = "nothing is left";
  start(
      [this](WorkerStart& begin) {
        ++shared_->lives;
        if (!begin.ready()) return 3;
        ::kill(::getpid(), SIGKILL);
        return 4;
      },
      &estate);
  EXPECT_EQ(wait(), 1);
  EXPECT_EQ(shared_->lives, 1);
}

TEST_P(SupervisorTest, ADescriptorThatTwoThinkTheirsEndsTheTree) {
  TestEstate estate(shared_);
  estate.descriptors = {7, -1, 8, -1, 7};
  start(
      [this](WorkerStart& begin) {
        if (++shared_->lives == 1 && !begin.ready()) return 3;
        ::kill(::getpid(), SIGKILL);
        return 4;
      },
      &estate);
  EXPECT_EQ(wait(), 1);
  EXPECT_EQ(shared_->lives, 1);
}

TEST_P(SupervisorTest, ASuccessorEndsWithTheTreeAsTheFirstDoes) {
  TestEstate estate(shared_);
  start(
      [this](WorkerStart& begin) {
        if (++shared_->lives == 1) {
          if (!begin.ready()) return 3;
          ::kill(::getpid(), SIGKILL);
        }
        shared_->pid = 1;
        for (;;) ::pause();
      },
      &estate);
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  while (shared_->pid == 0 && Clock::now() < deadline) ::poll(nullptr, 0, 1);
  ::kill(tree_, SIGTERM);
  EXPECT_EQ(wait(), 0);
  EXPECT_EQ(shared_->lives, 2);
  EXPECT_TRUE(nothing_left_behind());
}

TEST_P(SupervisorTest, AnotherClientIsServedWhenOneHasLeft) {
  TestEstate estate(shared_);
  tree_ = start_tree(
      [this](WorkerStart& begin) {
        const bool is_first = ++shared_->lives == 1;
        if (is_first != (begin.after == WorkerStart::After::kNobody)) return 2;
        if (!is_first && begin.after != WorkerStart::After::kClient) return 3;
        if (is_first && !begin.ready()) return 4;
        if (shared_->begun_again + 1 != shared_->lives) return 5;
        const int kept = shared_->kept.exchange(-1);
        if (!is_first && ::fcntl(kept, F_GETFD) >= 0) return 6;  // its predecessor's
        shared_->kept = ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 700);
        return shared_->lives < 5 ? 0 : 42;
      },
      {.daemonize = false, .estate = &estate, .keep_listening = true});
  EXPECT_EQ(wait(), 42);
  EXPECT_EQ(shared_->lives, 5);
}

TEST_P(SupervisorTest, ADeathWithNobodyToServeLeavesTheDoorOpen) {
  TestEstate estate(shared_);
  estate.against = "no VMM was connected";
  tree_ = start_tree(
      [this](WorkerStart& begin) {
        const int life = ++shared_->lives;
        if (life > 1 && begin.after != WorkerStart::After::kClient) return 2;
        if (life == 1) return begin.ready() ? 0 : 3;  // its client has left
        if (life == 2) ::kill(::getpid(), SIGKILL);
        return 42;
      },
      {.daemonize = false, .estate = &estate, .keep_listening = true});
  EXPECT_EQ(wait(), 42);
  EXPECT_EQ(shared_->lives, 3);
}

// Serves until it is to come to rest.
int serve_until_paused(Shared* shared, WorkerStart& begin) {
  if (begin.after == WorkerStart::After::kNobody) {
    if (!begin.ready()) return 1;
    shared->kept = ::memfd_create("kept", MFD_CLOEXEC);
    if (::write(shared->kept, "here", 4) != 4) return 2;
  }
  if (begin.after == WorkerStart::After::kTree && !begin.ready()) return 3;
  ++shared->lives;
  struct pollfd polled = {begin.pause.number(), POLLIN, 0};
  if (::poll(&polled, 1, 20'000) != 1) return 4;
  WorkerStart::end_paused();
}

void wait_for_life(const Shared* shared, int life) {
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  while (shared->lives < life && Clock::now() < deadline) ::poll(nullptr, 0, 1);
}

TEST_P(SupervisorTest, AnotherTreeTakesOver) {
  TestEstate estate(shared_);
  start([this](WorkerStart& begin) { return serve_until_paused(shared_, begin); }, &estate);
  wait_for_life(shared_, 1);
  const pid_t next = start_tree(
      [this](WorkerStart& begin) {
        char text[4] = {};
        if (begin.after != WorkerStart::After::kTree) return 4;
        if (::pread(shared_->kept, text, 4, 0) != 4 || std::string_view{text, 4} != "here")
          return 5;
        return begin.ready() ? 42 : 6;
      },
      {.daemonize = false, .estate = &estate, .take_over = tree_});
  EXPECT_EQ(wait_for(next), 42);
  EXPECT_EQ(wait(), 0);
  EXPECT_TRUE(nothing_left_behind());
}

TEST_P(SupervisorTest, ATreeThatTakesOverMayNeedMoreThanOneWorkerForIt) {
  TestEstate estate(shared_);
  start([this](WorkerStart& begin) { return serve_until_paused(shared_, begin); }, &estate);
  wait_for_life(shared_, 1);
  TestEstate next_estate(shared_);
  next_estate.serves = true;
  const pid_t next = start_tree(
      [this](WorkerStart& begin) {
        const int life = ++shared_->lives;
        if (begin.after != (life < 5 ? WorkerStart::After::kTree : WorkerStart::After::kWorker))
          return 3;
        if (life == 2) ::kill(::getpid(), SIGKILL);  // the other tree could still go on
        if (life < 5 && !begin.ready()) return 4;
        if (life == 3) ::kill(::getpid(), SIGKILL);  // it couldn't, but nobody serves yet
        shared_->serves = true;
        if (life == 4) ::kill(::getpid(), SIGKILL);
        char text[4] = {};
        if (::pread(shared_->kept, text, 4, 0) != 4 || std::string_view{text, 4} != "here")
          return 5;
        return 42;
      },
      {.daemonize = false, .estate = &next_estate, .take_over = tree_});
  EXPECT_EQ(wait_for(next), 42);
  EXPECT_EQ(shared_->lives, 5);
  EXPECT_EQ(wait(), 0);
  EXPECT_TRUE(nothing_left_behind());
}

TEST_P(SupervisorTest, AWorkersExitStatusMeansNothingElse) {
  for (const int status : {80, 81}) {
    TestEstate estate(shared_);
    start([status](WorkerStart& begin) { return begin.ready() ? status : 100; }, &estate);
    EXPECT_EQ(wait(), 1);
    EXPECT_TRUE(nothing_left_behind());
  }
}

TEST_P(SupervisorTest, ATreeThatCantTakeOverLeavesTheOtherAsItIs) {
  TestEstate estate(shared_);
  start([this](WorkerStart& begin) { return serve_until_paused(shared_, begin); }, &estate);
  wait_for_life(shared_, 1);
  const Worker fails = [](WorkerStart&) { return 7; };
  TestEstate refusing(shared_);
  refusing.refuses = true;
  EXPECT_EQ(
      wait_for(start_tree(fails, {.daemonize = false, .estate = &refusing, .take_over = tree_})),
      1);
  EXPECT_EQ(shared_->lives, 1) << "nothing was stopped for it";
  shared_->has_client = false;
  EXPECT_EQ(
      wait_for(start_tree(fails, {.daemonize = false, .estate = &estate, .take_over = tree_})), 1);
  EXPECT_EQ(shared_->lives, 1);
  shared_->has_client = true;
  // Fails when it has everything: then there is another worker on the other side.
  EXPECT_EQ(
      wait_for(start_tree(fails, {.daemonize = false, .estate = &estate, .take_over = tree_})), 7);
  wait_for_life(shared_, 2);
  EXPECT_EQ(shared_->lives, 2);
  ::kill(tree_, SIGTERM);
  EXPECT_EQ(wait(), 0);
  EXPECT_TRUE(nothing_left_behind());
}

TEST_P(SupervisorTest, AWorkerThatDoesNotComeToRestGoesOn) {
  TestEstate estate(shared_);
  start(
      [this](WorkerStart& begin) {
        ++shared_->lives;
        return serve_for_ever(begin);
      },
      &estate);
  wait_for_socket();
  const Worker fails = [](WorkerStart&) { return 7; };
  EXPECT_EQ(
      wait_for(start_tree(fails, {.daemonize = false, .estate = &estate, .take_over = tree_})), 1);
  EXPECT_EQ(shared_->lives, 1);
  EXPECT_EQ(wait(std::chrono::milliseconds(0)), -1);
}

TEST_P(SupervisorTest, TheWorkerSharesDescriptorsButNotMemoryWithTheSupervisor) {
  start([this](WorkerStart& begin) {
    struct stat root {};
    struct stat outside {};
    if (::fstat(begin.sandbox.root.number(), &root) != 0) return 1;
    if (::fstatat(begin.sandbox.root.number(), ".", &outside, 0) != 0) return 2;
    shared_->pid = ::getppid();
    if (!begin.ready()) return 3;
    return S_ISDIR(root.st_mode) && root.st_ino == outside.st_ino ? 42 : 4;
  });
  EXPECT_EQ(wait(), 42);
  if (GetParam() == sandbox::Mode::kNamespace) {
    EXPECT_EQ(shared_->pid, 1);
  }
}

std::string contents(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_P(SupervisorTest, TheDescriptorTableNeedsNotGrowUnderTheGuest) {
  start(serve_for_ever);
  wait_for_socket();
  const std::string launcher = std::to_string(tree_);
  const std::string supervisor = contents("/proc/" + launcher + "/task/" + launcher + "/children");
  ASSERT_FALSE(supervisor.empty());
  const std::string status = contents("/proc/" + std::to_string(std::stoi(supervisor)) + "/status");
  const std::size_t slots = status.find("FDSize:");
  ASSERT_NE(slots, std::string::npos);
  struct rlimit limit {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_GE(std::stoull(status.substr(slots + 7)), std::min<rlim_t>(limit.rlim_cur, 32768));
}

TEST_P(SupervisorTest, TheWorkerDiesWithTheLauncher) {
  // The pipe's write end is held by the tree only; its end is everybody's end.
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  start(serve_for_ever);
  ::close(ends[1]);
  wait_for_socket();
  ::kill(tree_, SIGKILL);
  struct pollfd polled = {ends[0], 0, 0};
  EXPECT_EQ(::poll(&polled, 1, 10'000), 1) << "a process is left";
  ::close(ends[0]);
}

std::vector<sandbox::Mode> modes() {
  // An ordinary user's chroot is refused, which is tested elsewhere.
  if (::geteuid() != 0) return {sandbox::Mode::kNone, sandbox::Mode::kNamespace};
  return {sandbox::Mode::kNone, sandbox::Mode::kChroot, sandbox::Mode::kNamespace};
}

INSTANTIATE_TEST_SUITE_P(Sandboxes, SupervisorTest, testing::ValuesIn(modes()),
                         [](const testing::TestParamInfo<sandbox::Mode>& mode) {
                           switch (mode.param) {
                             case sandbox::Mode::kNone:
                               return "None";
                             case sandbox::Mode::kChroot:
                               return "Chroot";
                             case sandbox::Mode::kNamespace:
                               break;
                           }
                           return "Namespace";
                         });

}  // namespace
}  // namespace virtiofsd
