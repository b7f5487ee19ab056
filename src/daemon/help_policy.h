// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Whether a second thread should serve a queue beside its leader: when so much
// work waits that waking one is worth it, and as long as the queue really gets
// faster by it. It doesn't where both wait for the same lock in the kernel (two
// changes of one directory), or where the driver needs that processor itself.
//
// That is found out by trying: some requests alone, some with help, and, where
// help looks better, some alone once more, for the first ones may have been slow
// for reasons of their own. Then the better of the two for a while. What counts
// is how many requests are answered in that time: a leader that has to wait for
// a driver without a processor is no faster. It isn't tried where the requests
// say themselves that they take turns. The leader's own; no locks, and a look at
// the clock once in sixteen requests.
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
  // The leader had nothing to do for so long: it slept, or looked at an empty ring.
  void idled(Clock::duration time) {
    idle_ += time;
    if (time > kLongestWait) absent_ += time - kLongestWait;
  }

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
    return may_be_helped() && behind * work_ns_ >= kWorthWaking;
  }

  static constexpr std::uint32_t kLookOneIn = 16;
  // What is compared is the time a request takes over so long, alone and with help.
  static constexpr std::chrono::milliseconds kMeasure{8};
  // Before that, for the change to take effect.
  static constexpr std::chrono::milliseconds kSettle{1};
  // So much of a pause may be the driver's, which is slow or wants for a processor; what is
  // longer is nobody's.
  static constexpr std::chrono::milliseconds kLongestWait{1};
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
    kSettleAgain,
    kAgain,  // measures being alone after the trial
  };

  bool help_pays() const;
  void enter(Phase phase, std::uint32_t popped, Clock::time_point now);

  Phase phase_ = Phase::kSettleAlone;
  // Of a request, when that was last measured:
  std::uint64_t work_ns_ = 0;    // what a thread has to do
  std::uint64_t alone_ns_ = 0;   // with waits for the driver, alone
  std::uint64_t helped_ns_ = 0;  // and with help
  Clock::duration pause_ = kShortestPause;

  std::uint32_t requests_ = 0;
  std::uint64_t object_ = 0;
  std::uint32_t turns_ = 0;
  bool took_turn_ = false;  // the request that was begun last
  // Since the phase began:
  Clock::time_point begun_;
  Clock::duration idle_{};
  Clock::duration absent_{};  // of that, what doesn't count
  std::uint32_t popped_ = 0;
  std::uint32_t deepest_ = 0;
};

}  // namespace virtiofsd
