// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "virtio/in_flight.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "virtio/driver_for_test.h"

namespace virtiofsd::virtio {
namespace {

constexpr std::uint64_t kA = TestDriver::kBuffers;
constexpr std::uint64_t kB = TestDriver::kBuffers + 0x1000;
constexpr std::uint64_t kC = TestDriver::kBuffers + 0x2000;

// A ring's record, shared with forked children.
class Record {
 public:
  Record()
      : bytes_(static_cast<std::byte*>(::mmap(nullptr, sizeof(RingRecord), PROT_READ | PROT_WRITE,
                                              MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~Record() { ::munmap(bytes_, sizeof(RingRecord)); }
  Record(const Record&) = delete;
  Record& operator=(const Record&) = delete;
  std::span<std::byte> bytes() const { return {bytes_, sizeof(RingRecord)}; }

 private:
  std::byte* bytes_;
};

// A queue on a driver's memory. One that is to die is never destroyed, for a queue that ends waits
// for what is in flight.
Queue& make_queue(TestDriver& driver, const Record& record, std::uint32_t size,
                  std::uint64_t features) {
  static auto& all = *new std::vector<Queue*>;  // reachable to the end, so no leak
  auto* queue = all.emplace_back(new Queue{0, record.bytes()});
  EXPECT_TRUE(queue->set_size(size));
  EXPECT_TRUE(queue->set_addresses(TestDriver::addresses()));
  queue->set_features(features);
  queue->set_memory(driver.memory.table());
  queue->set_kick(UniqueFd{});
  queue->set_enabled(true);
  return *queue;
}

struct Taken {
  ChainScratch scratch;
  Chain chain;
  std::string text() {
    std::string bytes(chain.readable.size(), '\0');
    EXPECT_TRUE(chain.readable.copy_out(std::as_writable_bytes(std::span(bytes))));
    return bytes;
  }
};

std::unique_ptr<Taken> take(Queue& queue) {
  auto taken = std::make_unique<Taken>();
  const auto got = queue.pop(taken->scratch, taken->chain);
  if (!got || !*got) return nullptr;
  return taken;
}

TEST(InFlight, ASuccessorServesAgainWhatWasTakenInItsOrderAndThenGoesOn) {
  SplitDriver driver{8};
  driver.queue.stop();
  Record record;
  driver.memory.write(kA, "one");
  driver.memory.write(kB, "two");
  driver.memory.write(kC, "six");
  driver.submit(0, {{kA, 3}});
  driver.submit(5, {{kC, 3}});
  driver.submit(2, {{kB, 3}});
  driver.submit(3, {{kA, 2}});
  Queue& dead = make_queue(driver, record, 8, 0);
  ASSERT_TRUE(dead.start());
  const auto one = take(dead);
  const auto six = take(dead);
  const auto two = take(dead);
  EXPECT_FALSE(one->chain.again);
  dead.push(six->chain, 7);

  Queue& next = make_queue(driver, record, 8, 0);
  ASSERT_TRUE(next.start_again(/*blame=*/true));
  const auto first = take(next);
  const auto second = take(next);
  const auto third = take(next);
  ASSERT_TRUE(first && second && third);
  EXPECT_EQ(first->text(), "one");
  EXPECT_TRUE(first->chain.again);
  EXPECT_EQ(first->chain.deaths, 1U);
  EXPECT_EQ(second->text(), "two");
  EXPECT_TRUE(second->chain.again);
  EXPECT_EQ(third->text(), "on") << "never taken before";
  EXPECT_FALSE(third->chain.again);
  EXPECT_EQ(third->chain.deaths, 0U);
  EXPECT_EQ(take(next), nullptr);
  next.push(second->chain, 0);
  next.push(first->chain, 9);
  next.push(third->chain, 0);
  EXPECT_EQ(driver.used_index(), 4);
  EXPECT_EQ(driver.used(0).id, 5U);
  EXPECT_EQ(driver.used(1).id, 2U);
  EXPECT_EQ(driver.used(2).id, 0U);
  EXPECT_EQ(driver.used(2).written, 9U);
  EXPECT_EQ(next.stop(), 4U);
}

TEST(InFlight, DeathsAreCountedWithBlameOnly) {
  SplitDriver driver{4};
  driver.queue.stop();
  Record record;
  driver.submit(0, {{kA, 3}});
  Queue& dead = make_queue(driver, record, 4, 0);
  ASSERT_TRUE(dead.start());
  ASSERT_TRUE(take(dead));
  std::uint32_t deaths = 0;
  for (const bool blame : {false, true, false, true}) {
    Queue& next = make_queue(driver, record, 4, 0);
    ASSERT_TRUE(next.start_again(blame));
    const auto again = take(next);
    ASSERT_TRUE(again);
    EXPECT_TRUE(again->chain.again);
    if (blame) ++deaths;
    EXPECT_EQ(again->chain.deaths, deaths);
  }
}

TEST(InFlight, TheDriverIsToldOnceByASuccessor) {
  SplitDriver driver{4, kEventIndex};
  driver.queue.stop();
  Record record;
  driver.submit(0, {{kA, 3}});
  Queue& dead = make_queue(driver, record, 4, kEventIndex);
  ASSERT_TRUE(dead.start());
  const auto taken = take(dead);
  dead.push(taken->chain, 0);  // and not signalled
  Queue& next = make_queue(driver, record, 4, kEventIndex);
  const auto event = sys::EventFd::create().value();
  ASSERT_TRUE(next.set_call(UniqueFd{::dup(event.ref().number())}));
  ASSERT_TRUE(next.start_again(false));
  EXPECT_TRUE(event.drain());
  EXPECT_EQ(take(next), nullptr);
}

// Out of order, the element that is given back lands on slots of what is still in flight.
TEST(InFlight, APackedRingKeepsWhatTheDriverMayWriteOver) {
  PackedDriver driver{4};
  driver.queue.stop();
  Record record;
  driver.memory.write(kA, "one");
  driver.memory.write(kB, "twin");
  driver.memory.write(kC, "six");
  driver.submit(7, {{kA, 2}, {kA + 2, 1}});
  driver.submit(3, {{kB, 4}});
  Queue& dead = make_queue(driver, record, 4, kRingPacked);
  ASSERT_TRUE(dead.start());
  const auto one = take(dead);
  const auto two = take(dead);
  ASSERT_TRUE(one && two);
  dead.push(two->chain, 0);
  EXPECT_TRUE(driver.is_used(0, true)) << "where the first one's descriptor was";
  driver.submit(9, {{kC, 3}});

  Queue& next = make_queue(driver, record, 4, kRingPacked);
  ASSERT_TRUE(next.start_again(false));
  const auto again = take(next);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->text(), "one");
  EXPECT_EQ(again->chain.id, 7);
  EXPECT_TRUE(again->chain.again);
  const auto six = take(next);
  ASSERT_TRUE(six);
  EXPECT_EQ(six->text(), "six");
  EXPECT_FALSE(six->chain.again);
  next.push(again->chain, 0);
  EXPECT_TRUE(driver.is_used(1, true));
  EXPECT_EQ(driver.slot(1).id, 7);
  next.push(six->chain, 0);
  EXPECT_TRUE(driver.is_used(3, true));
  EXPECT_EQ(driver.slot(3).id, 9);
}

TEST(InFlight, WhatWasHalfGivenBackIsGivenBackIfTheDriverSeesIt) {
  for (const bool visible : {false, true}) {
    SplitDriver driver{4};
    driver.queue.stop();
    Record record;
    driver.submit(0, {{kA, 3}});
    Queue& dead = make_queue(driver, record, 4, 0);
    ASSERT_TRUE(dead.start());
    const auto taken = take(dead);
    InFlight log{record.bytes()};
    log.giving(taken->chain.cell, 0);
    if (visible) driver.memory.store<std::uint16_t>(TestDriver::kDeviceArea + 2, 1);
    Queue& next = make_queue(driver, record, 4, 0);
    ASSERT_TRUE(next.start_again(false));
    const auto again = take(next);
    EXPECT_EQ(again != nullptr, !visible);
  }
  for (const bool visible : {false, true}) {
    PackedDriver driver{4};
    driver.queue.stop();
    Record record;
    driver.submit(6, {{kA, 3}});
    driver.submit(7, {{kB, 3}});
    Queue& dead = make_queue(driver, record, 4, kRingPacked);
    ASSERT_TRUE(dead.start());
    const auto taken = take(dead);
    InFlight log{record.bytes()};
    log.giving(taken->chain.cell, PackedPosition{.slot = 0, .wrap = true}.encode());
    if (visible)
      driver.memory.store<std::uint16_t>(TestDriver::kDescriptors + 14, 1U << 7 | 1U << 15);
    Queue& next = make_queue(driver, record, 4, kRingPacked);
    ASSERT_TRUE(next.start_again(false));
    auto again = take(next);
    ASSERT_TRUE(again);
    EXPECT_EQ(again->chain.id, visible ? 7 : 6);
    next.push(again->chain, 0);
    EXPECT_TRUE(driver.is_used(visible ? 1 : 0, true)) << "the used position went on";
  }
}

// The process that died may have written anywhere before.
TEST(InFlight, DamagedRecordsLeadNowhere) {
  std::mt19937 random{1};
  for (int round = 0; round < 200; ++round) {
    const bool packed = round % 2 == 1;
    SplitDriver split{16};
    PackedDriver packed_driver{16};
    TestDriver& driver = packed ? static_cast<TestDriver&>(packed_driver) : split;
    driver.queue.stop();
    Record record;
    if (packed) {
      for (std::uint16_t i = 0; i < 8; ++i) packed_driver.submit(i, {{kA, 3}});
    } else {
      for (std::uint16_t i = 0; i < 8; ++i) split.submit(i, {{kA, 3}});
    }
    const std::uint64_t features = packed ? kRingPacked : 0;
    Queue& dead = make_queue(driver, record, 16, features);
    ASSERT_TRUE(dead.start());
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(take(dead));
    for (int i = 0; i < 40; ++i) {
      const std::size_t copies = offsetof(RingRecord, copies) - offsetof(RingRecord, cells);
      std::size_t at = random() % (64 + 16 * (sizeof(std::uint64_t) + sizeof(DescriptorCopy)));
      if (at >= 64 + 16 * sizeof(std::uint64_t)) at += copies - 16 * sizeof(std::uint64_t);
      record.bytes()[at] = static_cast<std::byte>(random());
    }
    Queue& next = make_queue(driver, record, 16, features);
    if (!next.start_again(true)) continue;
    std::vector<std::unique_ptr<Taken>> all;
    for (int i = 0; i < 40; ++i) {
      auto taken = take(next);
      if (!taken) break;
      all.push_back(std::move(taken));
    }
    EXPECT_LE(all.size(), 16U);
    for (const auto& taken : all) next.push(taken->chain, 0);
  }
}

// ---- death at any instruction ---------------------------------------------------

// Serves as a crew might, until it is killed: several at once, given back in any order.
[[noreturn]] void serve_until_killed(Queue& queue, unsigned seed) {
  std::mt19937 random{seed};
  std::array<Taken, 6> hands;
  std::array<bool, 6> busy{};
  for (;;) {
    const std::size_t hand = random() % hands.size();
    if (busy[hand]) {
      queue.push(hands[hand].chain, 1);
      busy[hand] = false;
    } else {
      const auto got = queue.pop(hands[hand].scratch, hands[hand].chain);
      if (!got) ::_exit(1);
      busy[hand] = *got;
    }
  }
}

// Each request comes back exactly once, whatever dies when. `submit(id)` makes one available,
// `collect()` says which one came back next, or none.
template <typename Driver, typename Submit, typename Collect>
void kill_and_succeed(Driver& driver, std::uint64_t features, std::uint32_t most, Submit submit,
                      Collect collect) {
  constexpr std::uint32_t kSize = 16;
  driver.queue.stop();
  Record record;
  std::set<int> available;
  std::vector<int> free;
  for (std::uint32_t id = 0; id < most; ++id) free.push_back(static_cast<int>(id));
  std::uint32_t done = 0;
  for (int life = 0; life < 150; ++life) {
    while (!free.empty()) {
      available.insert(free.back());
      submit(free.back());
      free.pop_back();
    }
    const pid_t child = ::fork();
    if (child == 0) {
      Queue& queue = make_queue(driver, record, kSize, features);
      const bool started =
          life == 0 ? queue.start().has_value() : queue.start_again(false).has_value();
      if (!started) ::_exit(2);
      serve_until_killed(queue, static_cast<unsigned>(life));
    }
    // Until it has begun, and a moment more.
    const std::uint32_t before = done;
    const auto come_back = [&] {
      for (std::optional<int> id = collect(); id; id = collect()) {
        ASSERT_EQ(available.erase(*id), 1U) << "life " << life << ": " << *id << " came back twice";
        ++done;
        available.insert(*id);
        submit(*id);
      }
    };
    // Every third dies at a moment of its own, while it takes over perhaps.
    const bool at_once = life % 3 == 2;
    const unsigned patience = at_once ? 0 : 20 + static_cast<unsigned>(life) % 30;
    if (at_once) ::usleep(static_cast<unsigned>(life * 37 % 2000));
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (done < before + patience) {
      ASSERT_NO_FATAL_FAILURE(come_back());
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, WNOHANG), 0)
          << "life " << life << " ended by itself: " << WEXITSTATUS(status);
      if (std::chrono::steady_clock::now() > deadline) {
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        FAIL() << "life " << life << ": nothing comes back";
      }
    }
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  }
  // The last one takes its time, and all there is comes back.
  Queue& queue = make_queue(driver, record, kSize, features);
  ASSERT_TRUE(queue.start_again(false));
  std::vector<std::unique_ptr<Taken>> all;
  for (auto taken = take(queue); taken; taken = take(queue)) all.push_back(std::move(taken));
  for (const auto& taken : all) queue.push(taken->chain, 0);
  for (std::optional<int> id = collect(); id; id = collect())
    EXPECT_EQ(available.erase(*id), 1U) << *id;
  EXPECT_TRUE(available.empty()) << available.size() << " never came back";
  EXPECT_GT(done, 1000U);
  queue.stop();
}

class InFlightDeaths : public testing::TestWithParam<std::uint64_t> {};

TEST_P(InFlightDeaths, OfASplitRingLoseNothing) {
  SplitDriver driver{16};
  std::uint16_t used = 0;
  kill_and_succeed(
      driver, GetParam(), 16,
      [&](int id) {
        driver.submit(static_cast<std::uint16_t>(id), {{kA, 3}});
      },
      [&]() -> std::optional<int> {
        const std::uint16_t index = driver.used_index();
        std::atomic_thread_fence(std::memory_order_acquire);
        if (index == used) return std::nullopt;
        return static_cast<int>(driver.used(used++).id);
      });
}

TEST_P(InFlightDeaths, OfAPackedRingLoseNothing) {
  PackedDriver driver{16};
  PackedPosition used;
  const auto slots = [](int id) { return id % 3 + 1; };
  kill_and_succeed(
      driver, GetParam() | kRingPacked, 8,
      [&](int id) {
        std::vector<TestBuffer> buffers;
        for (int i = 0; i < slots(id); ++i) buffers.push_back({kA, 3});
        driver.submit(static_cast<std::uint16_t>(id), buffers);
      },
      [&]() -> std::optional<int> {
        if (!driver.is_used(used.slot, used.wrap)) return std::nullopt;
        std::atomic_thread_fence(std::memory_order_acquire);
        const int id = driver.slot(used.slot).id;
        used.advance(static_cast<std::uint32_t>(slots(id)), 16);
        return id;
      });
}

INSTANTIATE_TEST_SUITE_P(Orders, InFlightDeaths, testing::Values(0, kInOrder),
                         [](const auto& of) { return of.param == 0 ? "Any" : "InOrder"; });

}  // namespace
}  // namespace virtiofsd::virtio
