// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/help_policy.h"

#include <gtest/gtest.h>

#include <functional>
#include <optional>

namespace virtiofsd {
namespace {

using namespace std::chrono_literals;

// A leader on a clock of its own.
class HelpPolicyTest : public ::testing::Test {
 protected:
  // For so long, requests that take `alone` each, or `helped` while there may be help.
  void work(std::chrono::nanoseconds time, std::chrono::nanoseconds alone,
            std::chrono::nanoseconds helped, std::uint32_t behind) {
    for (const auto end = now_ + time; now_ < end;) {
      const bool help = policy_.wants_help(behind);
      now_ += help ? helped : alone;
      (help ? with_help_ : without_)++;
      ++popped_;
      if (policy_.begin_request(behind)) policy_.note_progress(popped_, now_);
      if (object_) {
        if (const auto object = object_()) policy_.takes_turn(*object);
      }
    }
  }
  double share_with_help() {
    const double share = static_cast<double>(with_help_) / (with_help_ + without_);
    with_help_ = 0;
    without_ = 0;
    return share;
  }

  std::function<std::optional<std::uint64_t>()> object_;  // that the next request takes turns on
  HelpPolicy policy_;
  HelpPolicy::Clock::time_point now_ = HelpPolicy::Clock::time_point(1h);
  std::uint32_t popped_ = 0xffff'ff00;  // wraps soon
  std::uint32_t with_help_ = 0;
  std::uint32_t without_ = 0;
};

TEST_F(HelpPolicyTest, HelpThatPaysIsHadNearlyAllTheTime) {
  work(1s, 4us, 2500ns, 30);
  EXPECT_GT(share_with_help(), 0.95);
}

TEST_F(HelpPolicyTest, HelpInVainIsTriedEverMoreSeldom) {
  work(200ms, 4us, 3900ns, 30);
  EXPECT_LT(share_with_help(), 0.15);
  work(20s, 4us, 3900ns, 30);
  share_with_help();
  work(20s, 4us, 3900ns, 30);
  EXPECT_LT(share_with_help(), 0.005);
}

TEST_F(HelpPolicyTest, ItIsNoticedWhenHelpNoLongerPays) {
  work(1s, 4us, 2us, 30);
  share_with_help();
  work(600ms, 4us, 5us, 30);
  share_with_help();
  work(10s, 4us, 5us, 30);
  EXPECT_LT(share_with_help(), 0.02);
}

TEST_F(HelpPolicyTest, ItIsNoticedWhenHelpPaysAgain) {
  work(20s, 4us, 5us, 30);
  share_with_help();
  work(7s, 4us, 2us, 30);
  share_with_help();
  work(1s, 4us, 2us, 30);
  EXPECT_GT(share_with_help(), 0.95);
}

TEST_F(HelpPolicyTest, LittleWorkAheadIsNoReason) {
  work(1s, 4us, 2us, 9);
  EXPECT_EQ(share_with_help(), 0);
  // The same requests, were they slower.
  work(1s, 5us, 2500ns, 9);
  EXPECT_GT(share_with_help(), 0.9);
}

TEST_F(HelpPolicyTest, WhereRequestsTakeTurnsItIsNotTried) {
  object_ = [] { return 7; };
  work(1s, 40us, 20us, 30);
  EXPECT_LT(share_with_help(), 0.001);
  // And that is no reason against it afterwards.
  object_ = nullptr;
  work(30ms, 4us, 2us, 30);
  share_with_help();
  work(100ms, 4us, 2us, 30);
  EXPECT_EQ(share_with_help(), 1);
}

TEST_F(HelpPolicyTest, TurnsOnManyObjectsAreNotInEachOthersWay) {
  std::uint64_t next = 0;
  object_ = [&next] { return ++next % 4; };
  work(1s, 40us, 20us, 30);
  EXPECT_GT(share_with_help(), 0.95);
}

TEST_F(HelpPolicyTest, AFewTurnsInARowAreNoReason) {
  int number = 0;
  object_ = [&number] { return ++number % 8 == 0 ? std::nullopt : std::optional{7}; };
  work(1s, 40us, 20us, 30);
  EXPECT_GT(share_with_help(), 0.95);
}

TEST_F(HelpPolicyTest, WhatTheLeaderSleptIsNotCounted) {
  // 16 requests, then a long sleep: per request that would be 60 us.
  for (int i = 0; i < 1000; ++i) {
    work(16 * 4us, 4us, 2us, 5);
    now_ += 1ms;
    policy_.idled(1ms);
  }
  EXPECT_EQ(share_with_help(), 0);
}

TEST_F(HelpPolicyTest, ASlowBeginningIsNotTakenForHelpThatPays) {
  work(10ms, 8us, 8us, 30);
  work(1s, 2us, 4us, 30);
  EXPECT_LT(share_with_help(), 0.02);
}

TEST_F(HelpPolicyTest, HelpThatStarvesTheDriverIsNoHelp) {
  // With help a request takes half as long, but then there is nothing to do for longer than that.
  for (int i = 0; i < 5000; ++i) {
    const bool help = policy_.wants_help(30);
    work(32 * 4us, 4us, 2us, 30);
    const auto pause = help ? 200us : 10us;
    now_ += pause;
    policy_.idled(pause);
  }
  EXPECT_LT(share_with_help(), 0.1);
}

TEST_F(HelpPolicyTest, ADeepMomentLongAgoIsForgotten) {
  work(9ms, 4us, 2us, 30);
  work(1s, 4us, 2us, 0);
  share_with_help();
  work(1s, 4us, 2us, 1);
  EXPECT_EQ(share_with_help(), 0);
}

}  // namespace
}  // namespace virtiofsd
