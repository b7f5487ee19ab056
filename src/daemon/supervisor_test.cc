// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/supervisor.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>

namespace virtiofsd {
namespace {

using Clock = Deaths::Clock;

TEST(Deaths, MayBeManyIfSomebodyKillsAndFewOtherwise) {
  using std::chrono::seconds;
  const Clock::time_point start{};
  Deaths deaths;
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(deaths.may_be_succeeded(SIGKILL, start));
  EXPECT_FALSE(deaths.may_be_succeeded(SIGKILL, start + seconds(9)));
  EXPECT_TRUE(deaths.may_be_succeeded(SIGKILL, start + seconds(20)));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(deaths.may_be_succeeded(SIGSEGV, start + seconds(20)));
  EXPECT_FALSE(deaths.may_be_succeeded(SIGABRT, start + seconds(79)));
  EXPECT_TRUE(deaths.may_be_succeeded(SIGKILL, start + seconds(79)));
}

TEST(Deaths, ByKillingHaveAnEndToo) {
  using std::chrono::hours;
  using std::chrono::seconds;
  const Clock::time_point start{};
  Deaths deaths;
  for (int i = 0; i < 200; ++i)
    EXPECT_TRUE(deaths.may_be_succeeded(SIGKILL, start + seconds(10) * i));
  EXPECT_FALSE(deaths.may_be_succeeded(SIGKILL, start + seconds(2010)));
  EXPECT_TRUE(deaths.may_be_succeeded(SIGKILL, start + hours(2)));
}

TEST(Deaths, ThatAGuestMayCauseAreFewInAll) {
  using std::chrono::hours;
  const Clock::time_point start{};
  Deaths deaths;
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(deaths.may_be_succeeded(SIGBUS, start + hours(i)));
  EXPECT_FALSE(deaths.may_be_succeeded(SIGBUS, start + hours(20)));
}

}  // namespace
}  // namespace virtiofsd
