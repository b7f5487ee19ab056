// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/help_policy.h"

#include <algorithm>

namespace virtiofsd {

void HelpPolicy::enter(Phase phase, std::uint32_t popped, Clock::time_point now) {
  phase_ = phase;
  begun_ = now;
  idle_ = {};
  absent_ = {};
  popped_ = popped;
  deepest_ = 0;
}

// An eighth off is worth the other thread's time.
bool HelpPolicy::help_pays() const {
  return helped_ns_ * 8 <= alone_ns_ * 7;
}

void HelpPolicy::note_progress(std::uint32_t popped, Clock::time_point now) {
  const auto lasted = now - begun_ - absent_;
  const auto a_request = [&](std::chrono::nanoseconds time) {
    return static_cast<std::uint64_t>(time.count()) / std::max(popped - popped_, 1U);
  };
  if (turns_ >= kTurnsInRow) {
    // Nothing to learn about help here; and it may pay at once when this is over.
    enter(Phase::kSettleAlone, popped, now);
    return;
  }
  switch (phase_) {
    case Phase::kSettleAlone:
      if (lasted >= kSettle) enter(Phase::kAlone, popped, now);
      return;
    case Phase::kAlone:
      if (lasted < kMeasure) return;
      alone_ns_ = a_request(lasted);
      work_ns_ = a_request(now - begun_ - idle_);
      enter(deepest_ * work_ns_ >= kWorthWaking ? Phase::kSettleHelped : Phase::kAlone, popped,
            now);
      return;
    case Phase::kSettleHelped:
      if (lasted >= kSettle) enter(Phase::kTrial, popped, now);
      return;
    case Phase::kTrial:
      if (lasted < kMeasure) return;
      helped_ns_ = a_request(lasted);
      enter(help_pays() ? Phase::kSettleAgain : Phase::kPaused, popped, now);
      return;
    case Phase::kSettleAgain:
      if (lasted >= kSettle) enter(Phase::kAgain, popped, now);
      return;
    case Phase::kAgain:
      if (lasted < kMeasure) return;
      alone_ns_ = std::min(alone_ns_, a_request(lasted));
      work_ns_ = std::min(work_ns_, a_request(now - begun_ - idle_));
      if (help_pays()) {
        pause_ = kShortestPause;
        enter(Phase::kHelped, popped, now);
      } else {
        enter(Phase::kPaused, popped, now);
      }
      return;
    case Phase::kHelped:
      if (lasted >= kTenure) enter(Phase::kSettleAlone, popped, now);
      return;
    case Phase::kPaused:
      if (lasted < pause_) return;
      pause_ = std::min<Clock::duration>(pause_ * 4, kLongestPause);
      enter(Phase::kSettleAlone, popped, now);
      return;
  }
}

}  // namespace virtiofsd
