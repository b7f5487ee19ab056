// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/crew.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/watchdog.h"
#include "virtio/driver_for_test.h"

#if defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

namespace virtiofsd {
namespace {

constexpr bool kInstrumented = SANITIZED != 0;

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// GETATTR of kBlocks waits until it is let go, without a word to the crew;
// of kAnnounces the same, announced; of kWaitsForLock as a lock would.
constexpr std::uint64_t kQuick = 1;
constexpr std::uint64_t kBlocks = 2;
constexpr std::uint64_t kAnnounces = 3;
constexpr std::uint64_t kWaitsForLock = 4;
// Sleeps for so long, which it announces: no reason to pass the lead unless others wait.
constexpr std::uint64_t kWaitsShortly = 6;
constexpr auto kShortWait = 20us;
// Keeps a processor busy for so long.
constexpr std::uint64_t kBusy = 5;
constexpr auto kBusyTime = 100us;

class GatedFileSystem final : public fuse::FileSystem {
 public:
  Result<fuse_attr_out> getattr(fuse::Call& call, std::optional<HandleId>) override {
    if (call.node.value == kBusy) {
      be_busy();
      return fuse_attr_out{};
    }
    if (call.node.value == kWaitsShortly) {
      call.scheduler.about_to_block();
      wait_shortly();
      return fuse_attr_out{};
    }
    if (call.node.value == kAnnounces) call.scheduler.about_to_block();
    if (call.node.value == kWaitsForLock) {
      TRY(call.scheduler.about_to_wait_for_lock());
      wait(call.scheduler);
      call.scheduler.lock_wait_ended();
      if (call.scheduler.stopping()) return Errno{EINTR};
    } else if (call.node.value != kQuick) {
      wait(call.scheduler);
    }
    return fuse_attr_out{};
  }
  void cancel_waits() override {
    Lock lock(mutex_);
    changed_.notify_all();
  }
  void let_go() {
    Lock lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  std::uint32_t waiting() {
    Lock lock(mutex_);
    return waiting_;
  }
  // The most threads that were busy at once.
  std::uint32_t most_busy() const { return most_busy_; }
  // Likewise, that waited shortly.
  std::uint32_t most_waiting_shortly() const { return most_waiting_shortly_; }

 private:
  static void raise_to(std::atomic<std::uint32_t>& most, std::uint32_t value) {
    std::uint32_t before = most;
    while (value > before && !most.compare_exchange_weak(before, value)) {
    }
  }

  void wait_shortly() {
    ::prctl(PR_SET_TIMERSLACK, 1);  // nanoseconds; 50 us otherwise
    raise_to(most_waiting_shortly_, ++waiting_shortly_);
    std::this_thread::sleep_for(kShortWait);
    --waiting_shortly_;
  }

  void wait(const fuse::Scheduler& scheduler) {
    Lock lock(mutex_);
    ++waiting_;
    while (!open_ && !scheduler.stopping()) changed_.wait(mutex_);
    --waiting_;
  }

  void be_busy() {
    raise_to(most_busy_, ++busy_);
    const auto end = Clock::now() + kBusyTime;
    while (Clock::now() < end) {
    }
    --busy_;
  }

  std::atomic<std::uint32_t> waiting_shortly_{0};
  std::atomic<std::uint32_t> most_waiting_shortly_{0};
  std::atomic<std::uint32_t> busy_{0};
  std::atomic<std::uint32_t> most_busy_{0};
  Mutex mutex_;
  Condition changed_;
  bool open_ GUARDED_BY(mutex_) = false;
  std::uint32_t waiting_ GUARDED_BY(mutex_) = 0;
};

// A driver, a queue and a crew on it; each request has three slots and a page of its own.
class CrewTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kRing = 1024;

  CrewTest() {
    fuse::Negotiated session;
    session.major = 7;
    session.minor = 38;
    dispatcher_.restore(session);
    kick_ = UniqueFd{::eventfd(0, EFD_CLOEXEC)};
    driver_.queue.set_kick(UniqueFd{::dup(kick_.number())});
  }
  ~CrewTest() override {
    files_.let_go();
    if (crew_) crew_->stop();
  }

  void start(std::uint32_t pool_size, std::uint32_t lock_waiters = 0) {
    Crew::Settings settings;
    settings.pool_size = pool_size;
    settings.lock_waiters = lock_waiters;
    settings.prepare_thread = prepare_thread_;
    settings.poll = poll_;
    settings.nap = nap_;
    crew_ = std::make_unique<Crew>(driver_.queue, dispatcher_, files_, watchdog_, processors_,
                                   settings);
    ASSERT_TRUE(crew_->start());
  }

  // Returns the request's number; its answer is found under it.
  std::uint16_t ask(std::uint64_t node) {
    const std::uint16_t number = ask_without_kick(node);
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(kick_.number(), &one, sizeof one), 8);
    return number;
  }
  std::uint16_t ask_without_kick(std::uint64_t node) {
    const std::uint16_t number = next_++;
    const std::uint64_t page = virtio::TestDriver::kBuffers + number * 1024ULL;
    fuse_in_header header{};
    header.len = sizeof header + sizeof(fuse_getattr_in);
    header.opcode = FUSE_GETATTR;
    header.unique = 100U + number;
    header.nodeid = node;
    driver_.memory.store(page, header);
    driver_.memory.store(page + sizeof header, fuse_getattr_in{});
    driver_.submit(static_cast<std::uint16_t>(number * 2),
                   {{page, header.len}, {page + 512, 512, true}});
    return number;
  }
  bool kicks_are_off() { return driver_.device_flags() != 0; }
  bool answered(std::uint16_t number) {
    const std::uint64_t page = virtio::TestDriver::kBuffers + number * 1024ULL;
    return driver_.memory.load<fuse_out_header>(page + 512).unique == 100U + number;
  }
  std::int32_t error_of(std::uint16_t number) {
    const std::uint64_t page = virtio::TestDriver::kBuffers + number * 1024ULL;
    return driver_.memory.load<fuse_out_header>(page + 512).error;
  }
  template <typename Condition>
  static bool soon(Condition condition) {
    const auto deadline = Clock::now() + 5s;
    while (!condition()) {
      if (Clock::now() > deadline) return false;
      std::this_thread::sleep_for(100us);
    }
    return true;
  }

  GatedFileSystem files_;
  fuse::Dispatcher dispatcher_{files_, {}};
  virtio::SplitDriver driver_{kRing};
  Watchdog watchdog_;
  Processors processors_;
  UniqueFd kick_;
  std::function<void()> prepare_thread_;
  std::chrono::microseconds poll_{0};
  std::chrono::microseconds nap_{0};
  std::unique_ptr<Crew> crew_;
  std::uint16_t next_ = 0;
};

TEST_F(CrewTest, ServesWhatWasKickedFor) {
  start(0);
  const auto first = ask(kQuick);
  EXPECT_TRUE(soon([&] { return answered(first); }));
  EXPECT_TRUE(soon([&] { return driver_.called(); }));
  EXPECT_EQ(crew_->threads(), 1U);
}

TEST_F(CrewTest, ServesWhatWasAvailableBeforeItStarted) {
  const auto early = ask(kQuick);
  start(0);
  EXPECT_TRUE(soon([&] { return answered(early); }));
}

TEST_F(CrewTest, ARequestThatBlocksUnannouncedDelaysTheOthersByMilliseconds) {
  start(64);
  const auto stuck = ask(kBlocks);
  ASSERT_TRUE(soon([&] { return files_.waiting() == 1; }));
  const auto begun = Clock::now();
  const auto other = ask(kQuick);
  ASSERT_TRUE(soon([&] { return answered(other); }));
  EXPECT_LT(Clock::now() - begun, 500ms);
  EXPECT_FALSE(answered(stuck));
  files_.let_go();
  EXPECT_TRUE(soon([&] { return answered(stuck); }));
}

TEST_F(CrewTest, AsManyMayBlockAsThePoolHasThreadsAndTheQueueStillServes) {
  start(8);
  for (int i = 0; i < 8; ++i) ask(kAnnounces);
  ASSERT_TRUE(soon([&] { return files_.waiting() == 8; }));
  const auto other = ask(kQuick);
  EXPECT_TRUE(soon([&] { return answered(other); }));
  EXPECT_LE(crew_->threads(), 9U);
}

// Not two, which a leader and its helper would be.
TEST_F(CrewTest, ShortWaitsAreSideBySideWhereOthersWaitForThem) {
  start(64);
  // Until they are known to be short.
  for (int i = 0; i < 60; ++i) {
    const auto one = ask(kWaitsShortly);
    ASSERT_TRUE(soon([&] { return answered(one); }));
  }
  std::uint16_t last = 0;
  for (int i = 0; i < 200; ++i) last = ask_without_kick(kWaitsShortly);
  ask(kWaitsShortly);
  ASSERT_TRUE(soon([&] { return answered(last); }));
  EXPECT_GT(files_.most_waiting_shortly(), 2U);
}

// One thread was deposed in its request; when it comes back much waits.
TEST_F(CrewTest, AThreadThatGoesOnAfterABlockIsCountedOnce) {
  start(64);
  const auto stuck = ask(kBlocks);
  ASSERT_TRUE(soon([&] { return files_.waiting() == 1; }));
  const auto other = ask(kQuick);
  ASSERT_TRUE(soon([&] { return answered(other); }));
  std::uint16_t last = 0;
  for (int i = 0; i < 200; ++i) last = ask_without_kick(kBusy);
  ask(kBusy);
  files_.let_go();
  ASSERT_TRUE(soon([&] { return answered(last) && answered(stuck); }));
  EXPECT_TRUE(soon([&] { return processors_.working() == 0; })) << processors_.working();
}

// The watchdog goes to sleep when nothing happens for some 50 ms.
TEST_F(CrewTest, AThreadThatTakesItsTimeToBeginIsWatchedAllTheSame) {
  prepare_thread_ = [] { std::this_thread::sleep_for(150ms); };
  start(8);
  ask(kBlocks);
  ask(kBlocks);
  const auto other = ask(kQuick);
  EXPECT_TRUE(soon([&] { return answered(other); }));
}

TEST_F(CrewTest, ASmallPoolIsOneThread) {
  start(1);
  ask(kAnnounces);
  ASSERT_TRUE(soon([&] { return files_.waiting() == 1; }));
  const auto other = ask(kQuick);
  std::this_thread::sleep_for(20ms);
  EXPECT_FALSE(answered(other));
  files_.let_go();
  EXPECT_TRUE(soon([&] { return answered(other); }));
  EXPECT_EQ(crew_->threads(), 1U);
}

// One completion is no batch yet, so nobody else tells the driver of it.
class CrewWithoutRelief
    : public CrewTest,
      public ::testing::WithParamInterface<std::pair<std::uint32_t, std::uint64_t>> {};

TEST_P(CrewWithoutRelief, TellsWhatIsDoneThoughTheNextRequestBlocks) {
  const auto [pool_size, blocking] = GetParam();
  start(pool_size);
  const std::uint32_t others = pool_size > 1 ? pool_size : 0;  // threads beside the last
  for (std::uint32_t i = 0; i < others; ++i) ask(blocking);
  ASSERT_TRUE(soon([&] { return files_.waiting() == others; }));
  const auto done = ask_without_kick(kQuick);
  ask(blocking);
  ASSERT_TRUE(soon([&] { return files_.waiting() == others + 1; }));
  ASSERT_TRUE(soon([&] { return answered(done); }));
  EXPECT_TRUE(soon([&] { return driver_.called(); }));
}

INSTANTIATE_TEST_SUITE_P(PoolAndRequest, CrewWithoutRelief,
                         ::testing::Values(std::pair{0U, kAnnounces}, std::pair{1U, kAnnounces},
                                           std::pair{1U, kBlocks}, std::pair{2U, kAnnounces},
                                           std::pair{2U, kBlocks}));

TEST_F(CrewTest, AWaitForALockHasAThreadOfItsOwnEvenThen) {
  start(0, 2);
  const auto lock = ask(kWaitsForLock);
  ASSERT_TRUE(soon([&] { return files_.waiting() == 1; }));
  const auto other = ask(kQuick);
  EXPECT_TRUE(soon([&] { return answered(other); }));
  EXPECT_FALSE(answered(lock));
}

TEST_F(CrewTest, WaitsForLocksAreBounded) {
  start(0, 2);
  ask(kWaitsForLock);
  ask(kWaitsForLock);
  ASSERT_TRUE(soon([&] { return files_.waiting() == 2; }));
  const auto third = ask(kWaitsForLock);
  ASSERT_TRUE(soon([&] { return answered(third); }));
  EXPECT_EQ(error_of(third), -ENOLCK);
}

TEST_F(CrewTest, StoppingAnswersWhatWasTakenAndEndsWaitsForLocks) {
  start(4, 4);
  const auto lock = ask(kWaitsForLock);
  ASSERT_TRUE(soon([&] { return files_.waiting() == 1; }));
  crew_->stop();
  EXPECT_TRUE(answered(lock));
  EXPECT_EQ(error_of(lock), -EINTR);
  EXPECT_EQ(driver_.queue.stop(), 1U);
}

// Each of these threads asks the watchdog for another one; the crew may be gone by then.
TEST_F(CrewTest, MayEndWhileThreadsAreAskedFor) {
  files_.let_go();
  for (int round = 0; round < 200; ++round) {
    start(64);
    ask(kAnnounces);
    // Somewhere on the way to that.
    std::this_thread::sleep_for(round * 2us);
    crew_.reset();
    // What was taken is answered, the rest is not.
    const std::uint32_t taken = driver_.queue.stop();
    for (std::uint16_t number = 0; number <= round; ++number)
      ASSERT_EQ(answered(number), number < taken) << number << " in round " << round;
  }
}

TEST_F(CrewTest, GoesOnAfterAStop) {
  start(4);
  const auto before = ask(kQuick);
  ASSERT_TRUE(soon([&] { return answered(before); }));
  crew_->stop();
  driver_.queue.stop();
  const auto between = ask(kQuick);
  EXPECT_FALSE(answered(between));
  ASSERT_TRUE(crew_->start());
  EXPECT_TRUE(soon([&] { return answered(between); }));
}

TEST_F(CrewTest, CostsNoWakeUpsWhileNothingIsAsked) {
  start(64);
  const auto first = ask(kQuick);
  ASSERT_TRUE(soon([&] { return answered(first); }));
  // The watchdog lingers for a moment after the last request.
  std::this_thread::sleep_for(200ms);
  rusage before{};
  rusage after{};
  ::getrusage(RUSAGE_SELF, &before);
  std::this_thread::sleep_for(500ms);
  ::getrusage(RUSAGE_SELF, &after);
  // Our own sleep is one of them.
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 3);
}

// As where a VMM pins its back-ends.
TEST_F(CrewTest, PollsOnItsOnlyProcessorWhenTheDriverHasAnother) {
  if (kInstrumented) GTEST_SKIP() << "a look takes as long as an interruption";
  cpu_set_t before;
  ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "one processor";
  std::vector<int> processors;
  for (int i = 0; processors.size() < 2; ++i) {
    if (CPU_ISSET(i, &before)) processors.push_back(i);
  }
  const auto stay_on = [](int processor) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    EXPECT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  };
  prepare_thread_ = [&] { stay_on(processors[0]); };
  poll_ = 100us;
  stay_on(processors[1]);
  // How many kicks so many requests took.
  constexpr int kRequests = 80;
  const auto kicks = [&] {
    crew_.reset();
    start(64);
    const auto first = ask(kQuick);
    EXPECT_TRUE(soon([&] { return answered(first); }));
    int count = 0;
    for (int i = 0; i < kRequests; ++i) {
      // Long enough to fall asleep.
      for (const auto begun = Clock::now(); Clock::now() - begun < 8us;) {
      }
      const bool kick = !kicks_are_off();
      const auto number = kick ? ask(kQuick) : ask_without_kick(kQuick);
      count += kick ? 1 : 0;
      for (const auto begun = Clock::now(); !answered(number);) {
        if (Clock::now() - begun < 5ms) continue;
        // It fell asleep just then.
        EXPECT_EQ(::write(kick_.number(), "\1\0\0\0\0\0\0", 8), 8);
      }
    }
    return count;
  };
  // More than once, for on a busy machine others have its processor.
  int fewest = kRequests;
  for (int attempt = 0; attempt < 5 && fewest >= kRequests / 2; ++attempt)
    fewest = std::min(fewest, kicks());
  EXPECT_EQ(::sched_setaffinity(0, sizeof before, &before), 0);
  EXPECT_LT(fewest, kRequests / 2);
}

// Each request comes long after the spin for it ended: of 24 spins of 20 ms each
// only four are made, with ever longer gaps. Half of all leaves room for the rest.
TEST_F(CrewTest, GivesUpPollingThatIsInVain) {
  poll_ = 20ms;
  start(64);
  const auto cpu_time = [] {
    timespec now{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  };
  const auto before = cpu_time();
  for (int i = 0; i < 24; ++i) {
    const auto number = ask(kQuick);
    ASSERT_TRUE(soon([&] { return answered(number); }));
    std::this_thread::sleep_for(25ms);
    ASSERT_TRUE(soon([&] { return processors_.spinning() == 0; }));  // others had its processor
  }
  EXPECT_LT(cpu_time() - before, 240ms);
}

// ---- Naps ---------------------------------------------------------------------

// With one processor, which the crew's threads inherit.
class CrewNap : public CrewTest {
 protected:
  void SetUp() override {
    ASSERT_EQ(::sched_getaffinity(0, sizeof before_, &before_), 0);
    int last = 0;
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &before_)) last = i;
    }
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  }
  void TearDown() override { ::sched_setaffinity(0, sizeof before_, &before_); }

 private:
  cpu_set_t before_{};
};

TEST_F(CrewNap, LetsRequestsComeTogetherWithoutAKickEach) {
  nap_ = 1s;
  start(4);
  const auto first = ask(kQuick);
  ASSERT_TRUE(soon([&] { return answered(first); }));
  // Long enough to be asleep; a crew that waits for a kick by now would wait for good.
  std::this_thread::sleep_for(5ms);
  EXPECT_TRUE(kicks_are_off());
  const auto second = ask_without_kick(kQuick);
  EXPECT_TRUE(soon([&] { return answered(second); }));
}

TEST_F(CrewNap, InVainEndsWithASleepUntilTheNextKick) {
  nap_ = 1ms;
  start(4);
  const auto first = ask(kQuick);
  ASSERT_TRUE(soon([&] { return answered(first) && !kicks_are_off(); }));
  const auto second = ask(kQuick);
  EXPECT_TRUE(soon([&] { return answered(second); }));
}

TEST_F(CrewNap, IsNotTakenAfterABurstThatCouldFillTheRing) {
  nap_ = 10s;
  for (int i = 0; i < 100; ++i) ask(kQuick);
  start(4);
  EXPECT_TRUE(soon([&] { return answered(99) && !kicks_are_off(); }));
}

TEST_F(CrewTest, TakesNoNapWithTwoProcessors) {
  if (processors_.count() < 2) GTEST_SKIP() << "one processor";
  nap_ = 10s;
  start(4);
  const auto first = ask(kQuick);
  EXPECT_TRUE(soon([&] { return answered(first) && !kicks_are_off(); }));
}

// ---- Help ---------------------------------------------------------------------

class CrewHelp : public CrewTest {
 protected:
  void SetUp() override {
    if (processors_.count() < 2) GTEST_SKIP() << "one processor: nobody is called";
  }
  // A deep queue: as many as the ring takes.
  static constexpr std::uint16_t kMany = 500;

  // Makes the queue deep, again where it was before.
  void ask_many() {
    for (std::uint16_t number = 0; number < next_; ++number) {
      driver_.memory.store(virtio::TestDriver::kBuffers + number * 1024ULL + 512,
                           fuse_out_header{});
    }
    next_ = 0;
    for (int i = 0; i < kMany; ++i) ask(kBusy);
  }
  bool all_answered() {
    for (std::uint16_t number = 0; number < kMany; ++number) {
      if (!answered(number)) return false;
    }
    return true;
  }
};

TEST_F(CrewHelp, ComesWhenMuchWaits) {
  start(64);
  // Each round is 50 ms of work; where nothing else runs the first will do.
  const auto deadline = Clock::now() + 5s;
  while (files_.most_busy() < 2 && Clock::now() < deadline) {
    ask_many();
    ASSERT_TRUE(soon([&] { return all_answered(); }));
  }
  // A leader that got no processor for long is replaced: then it may be more.
  EXPECT_GE(files_.most_busy(), 2U);
}

TEST_F(CrewHelp, DoesNotComeWhereThePoolIsOneThread) {
  start(1);
  ask_many();
  EXPECT_TRUE(soon([&] { return all_answered(); }));
  EXPECT_EQ(files_.most_busy(), 1U);
}

TEST_F(CrewHelp, ThatGetsStuckDelaysNobody) {
  for (int i = 0; i < kMany; ++i) ask(i % 50 == 49 ? kBlocks : kBusy);
  start(64);
  const auto all_but_the_stuck = [&] {
    for (std::uint16_t number = 0; number < kMany; ++number) {
      if (number % 50 != 49 && !answered(number)) return false;
    }
    return true;
  };
  EXPECT_TRUE(soon(all_but_the_stuck));
  // The last is taken after the last that was answered.
  EXPECT_TRUE(soon([&] { return files_.waiting() == kMany / 50U; }));
}

TEST_F(CrewHelp, EndsWithTheCrew) {
  start(64);
  ask_many();
  // Help comes after some ten milliseconds of fifty.
  (void)soon([&] { return files_.most_busy() >= 2 || all_answered(); });
  crew_->stop();
  EXPECT_EQ(driver_.queue.in_flight(), 0U);
  const std::uint32_t taken = driver_.queue.stop();
  // What was taken is answered, the rest is not.
  for (std::uint16_t number = 0; number < kMany; ++number) {
    EXPECT_EQ(answered(number), number < taken) << number;
  }
}

TEST_F(CrewTest, ABrokenRingEndsTheQueueAndNothingElse) {
  start(4);
  driver_.set_available_index(5000);
  const std::uint64_t one = 1;
  ASSERT_EQ(::write(kick_.number(), &one, sizeof one), 8);
  EXPECT_TRUE(soon([&] { return driver_.queue.broken(); }));
  EXPECT_TRUE(soon([&] { return driver_.error_signalled(); }));
  crew_->stop();
}

}  // namespace
}  // namespace virtiofsd
