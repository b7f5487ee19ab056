// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sys/events.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <limits>

namespace virtiofsd::sys {
namespace {

struct Pair {
  UniqueFd near;
  UniqueFd far;
};
Pair pipe_pair() {
  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  return {UniqueFd{ends[1]}, UniqueFd{ends[0]}};
}
Pair socket_pair() {
  std::array<int, 2> ends{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  return {UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}
std::uint64_t read_number(FdRef fd) {
  std::uint64_t number = 0;
  EXPECT_EQ(::read(fd.number(), &number, sizeof(number)), 8);
  return number;
}

TEST(EventFd, IsSignalledUntilItIsDrained) {
  const EventFd event = EventFd::create().value();
  EXPECT_FALSE(event.drain());
  event.signal();
  event.signal();
  EXPECT_TRUE(event.drain());
  EXPECT_FALSE(event.drain());
}

TEST(DrainEvent, NeverWaitsOnABlockingDescriptor) {
  const UniqueFd event{::eventfd(3, EFD_CLOEXEC)};
  EXPECT_TRUE(drain_event(event));
  EXPECT_FALSE(drain_event(event));
  const std::array pairs{pipe_pair(), socket_pair()};
  for (const Pair& pair : pairs) {
    EXPECT_FALSE(drain_event(pair.far));
    ASSERT_EQ(::write(pair.near.number(), "12345678", 8), 8);
    EXPECT_TRUE(drain_event(pair.far));
    EXPECT_FALSE(drain_event(pair.far));
  }
}

TEST(Notifier, AddsOneToAnEventfd) {
  const UniqueFd event{::eventfd(0, EFD_CLOEXEC)};
  const Notifier notifier = Notifier::make(UniqueFd{::dup(event.number())}).value();
  notifier.notify();
  notifier.notify();
  EXPECT_EQ(read_number(event), 2U);
}

TEST(Notifier, DoesNotBlockOnAFullEventfdAndLeavesItBlocking) {
  const UniqueFd event{::eventfd(0, EFD_CLOEXEC)};
  const std::uint64_t full = std::numeric_limits<std::uint64_t>::max() - 1;
  ASSERT_EQ(::write(event.number(), &full, sizeof(full)), 8);
  const Notifier notifier = Notifier::make(UniqueFd{::dup(event.number())}).value();
  notifier.notify();
  EXPECT_EQ(read_number(event), full);
  EXPECT_EQ(::fcntl(event.number(), F_GETFL) & O_NONBLOCK, 0);
}

TEST(Notifier, WritesEightBytesToAPipeOrSocketAndDropsWhatDoesNotFit) {
  std::array pairs{pipe_pair(), socket_pair()};
  for (Pair& pair : pairs) {
    const UniqueFd far = std::move(pair.far);
    const Notifier notifier = Notifier::make(std::move(pair.near)).value();
    notifier.notify();
    EXPECT_EQ(read_number(far), 1U);
    // More than either can queue: would block forever if it could block.
    for (int i = 0; i < 100'000; ++i) notifier.notify();
    EXPECT_EQ(read_number(far), 1U);
  }
}

TEST(Notifier, SurvivesAPeerThatHungUp) {
  ASSERT_NE(::signal(SIGPIPE, SIG_DFL), SIG_ERR);
  std::array pairs{pipe_pair(), socket_pair()};
  for (Pair& pair : pairs) {
    pair.far.reset();
    Notifier::make(std::move(pair.near)).value().notify();
  }
  sigset_t pending;
  sigpending(&pending);
  EXPECT_FALSE(sigismember(&pending, SIGPIPE));
}

TEST(Notifier, RefusesANumberThatIsNoDescriptor) {
  const UniqueFd event{::eventfd(0, EFD_CLOEXEC)};
  UniqueFd stale{::dup(event.number())};
  ASSERT_EQ(::close(stale.number()), 0);
  const int number = stale.release();
  EXPECT_FALSE(Notifier::make(UniqueFd{}));
  EXPECT_FALSE(drain_event(FdRef{number}));
}

}  // namespace
}  // namespace virtiofsd::sys
