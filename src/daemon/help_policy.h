// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Whether a second thread should serve a queue beside its leader: when so much
// work waits that waking one is worth it, and as long as the queue really gets
// faster by it. It doesn't where both wait for the same lock in the kernel (two
// changes of one directory), or where the driver needs that processor itself.
//
// That is found out by trying: some requests alone, some with help, and the
// better of the two for a while. It isn't tried where the requests say themselves
// that they take turns. The leader's own; no locks, and a look at the clock once
// in sixteen requests.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>

namespace virtiofsd {

class HelpPolicy {
 public:
  using Clock = std::chrono::steady_clock;

  // Before each request of the leader's; `behind`: so many more wait at least.
  // True when note_progress is to be called.
  bool begin_request(std::uint32_t behind) {
    if (behind > deepest_) deepest_ = behind;
    if (!std::exchange(took_turn_, false)) turns_ = 0;
    return ++requests_ % kLookOneIn == 0;
  }
  // `popped`: how many requests the queue has handed out, to anyone; may wrap.
  void note_progress(std::uint32_t popped, Clock::time_point now);
  // The leader slept, which is not what requests take.
  void slept(Clock::duration time) { slept_ += time; }

  // The request that was begun waited, for nearly all of its time, until others of this object were
  // done with it.
  void takes_turn(std::uint64_t object) {
    turns_ = object == object_ ? turns_ + 1 : 0;
    object_ = object;
    took_turn_ = true;
  }

  // Whether there may be a helper, and whether one should come with so much work ahead.
  bool may_be_helped() const {
    return phase_ >= Phase::kSettleHelped && phase_ <= Phase::kHelped && turns_ < kTurnsInRow;
  }
  bool wants_help(std::uint32_t behind) const {
    return may_be_helped() && behind * alone_ns_ >= kWorthWaking;
  }

  static constexpr std::uint32_t kLookOneIn = 16;
  // What is compared is the time a request takes over so long, alone and with help.
  static constexpr std::chrono::milliseconds kMeasure{8};
  // Before that, for the change to take effect.
  static constexpr std::chrono::milliseconds kSettle{1};
  // With help that pays, before it is compared again.
  static constexpr std::chrono::milliseconds kTenure{400};
  // Alone after help in vain: so long, then four times as long each time.
  static constexpr std::chrono::milliseconds kShortestPause{100};
  static constexpr std::chrono::milliseconds kLongestPause{6400};
  // Nanoseconds of work: a wake-up takes a tenth of it, or a half on a bad day.
  static constexpr std::uint64_t kWorthWaking = 40'000;
  // So many requests of one object, each taking turns, with no other between them.
  static constexpr std::uint32_t kTurnsInRow = 8;

 private:
  enum class Phase : std::uint8_t {
    kSettleAlone,
    kAlone,  // measures that
    kSettleHelped,
    kTrial,   // measures help
    kHelped,  // it pays
    kPaused,  // it doesn't
  };

  void enter(Phase phase, std::uint32_t popped, Clock::time_point now);

  Phase phase_ = Phase::kSettleAlone;
  std::uint64_t alone_ns_ = 0;  // a request, when that was last measured
  Clock::duration pause_ = kShortestPause;

  std::uint32_t requests_ = 0;
  std::uint64_t object_ = 0;
  std::uint32_t turns_ = 0;
  bool took_turn_ = false;  // the request that was begun last
  // Since the phase began:
  Clock::time_point begun_;
  Clock::duration slept_{};
  std::uint32_t popped_ = 0;
  std::uint32_t deepest_ = 0;
};

}  // namespace virtiofsd
