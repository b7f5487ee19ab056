// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/help_policy.h"

#include <algorithm>

namespace virtiofsd {

void HelpPolicy::enter(Phase phase, std::uint32_t popped, Clock::time_point now) {
  phase_ = phase;
  begun_ = now;
  slept_ = {};
  popped_ = popped;
  deepest_ = 0;
}

void HelpPolicy::note_progress(std::uint32_t popped, Clock::time_point now) {
  const auto lasted = now - begun_ - slept_;
  const auto a_request = [&] {
    const std::chrono::nanoseconds time = lasted;
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
      alone_ns_ = a_request();
      enter(deepest_ * alone_ns_ >= kWorthWaking ? Phase::kSettleHelped : Phase::kAlone, popped,
            now);
      return;
    case Phase::kSettleHelped:
      if (lasted >= kSettle) enter(Phase::kTrial, popped, now);
      return;
    case Phase::kTrial:
      if (lasted < kMeasure) return;
      // An eighth off is worth the other thread's time.
      if (a_request() * 8 <= alone_ns_ * 7) {
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
