// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/state_transfer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <utility>

namespace virtiofsd {
namespace {

struct Pipe {
  UniqueFd from;
  UniqueFd to;
};

Pipe make_pipe() {
  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  return {UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

Result<void, Failure> until_cancelled(FdRef cancelled) {
  pollfd one{cancelled.number(), POLLIN, 0};
  EXPECT_EQ(::poll(&one, 1, 10'000), 1);
  return Failure{"cancelled"};
}

TEST(StateTransfer, TheChannelIsClosedWhenTheWorkIsDone) {
  Pipe pipe = make_pipe();
  std::atomic<bool> is_prepared = false;
  auto transfer = StateTransfer::begin(
      std::move(pipe.to), [&] { is_prepared = true; },
      [&](FdRef channel, FdRef) -> Result<void, Failure> {
        EXPECT_TRUE(is_prepared);
        EXPECT_EQ(::write(channel.number(), "state", 5), 5);
        return {};
      });
  ASSERT_TRUE(transfer);
  std::array<char, 16> got{};
  EXPECT_EQ(::read(pipe.from.number(), got.data(), got.size()), 5);
  EXPECT_EQ(::read(pipe.from.number(), got.data(), got.size()), 0)
      << "the end, before anybody waits";
  EXPECT_TRUE((*transfer)->wait());
  EXPECT_TRUE((*transfer)->has_ended());
}

TEST(StateTransfer, AFailureIsToldToWhoWaits) {
  Pipe pipe = make_pipe();
  auto transfer = StateTransfer::begin(
      std::move(pipe.to), {},
      [](FdRef, FdRef) -> Result<void, Failure> { return Failure{"no room"}; });
  ASSERT_TRUE(transfer);
  const auto outcome = (*transfer)->wait();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().text(), "no room");
}

TEST(StateTransfer, WhoeverDropsItCancelsIt) {
  Pipe pipe = make_pipe();
  std::atomic<bool> is_cancelled = false;
  auto transfer = StateTransfer::begin(std::move(pipe.to), {}, [&](FdRef, FdRef cancelled) {
    auto outcome = until_cancelled(cancelled);
    is_cancelled = true;
    return outcome;
  });
  ASSERT_TRUE(transfer);
  EXPECT_FALSE((*transfer)->has_ended());
  transfer->reset();
  EXPECT_TRUE(is_cancelled);
}

}  // namespace
}  // namespace virtiofsd
