// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/engine.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/pause_cpu.h"

namespace virtiofsd::bench {
namespace {

constexpr std::uint64_t kPatience = 10'000'000'000;
constexpr std::size_t kMostLanes = 16;

// Wakes a driver that sleeps in read() now and then, so that a daemon that
// lost a request is found out instead of waited for.
class Nudge {
 public:
  explicit Nudge(const std::vector<Lane*>& lanes)
      : thread_([this, &lanes] {
          move_thread(0, Place::kAny, false);
          std::unique_lock lock(mutex_);
          while (!over_.wait_for(lock, std::chrono::seconds(2), [this] { return done_; })) {
            for (Lane* lane : lanes) {
              const std::uint64_t one = 1;
              [[maybe_unused]] const ssize_t put =
                  write(lane->call_fd().number(), &one, sizeof(one));
            }
          }
        }) {}
  ~Nudge() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    over_.notify_one();
    thread_.join();
  }
  Nudge(const Nudge&) = delete;
  Nudge& operator=(const Nudge&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool done_ = false;
  std::thread thread_;
};

}  // namespace

Engine::Engine(std::vector<Lane*> lanes, Forgets& forgets, unsigned workers, Waiting waiting)
    : lanes_(std::move(lanes)), forgets_(forgets), waiting_(waiting), begun_(workers) {
  CHECK(!lanes_.empty() && lanes_.size() <= kMostLanes);
  CHECK(workers <= lanes_.size() * lanes_.front()->slots());
}

void Engine::forget(std::uint64_t node, std::uint64_t count) {
  forgot_ = true;
  if (!forgets_.forget(node, count)) trouble_ = "the daemon takes no FORGETs";
}

void Engine::finish(unsigned worker) {
  latencies_.record(now_ - begun_[worker]);
  if (now_ >= deadline_) return;
  begun_[worker] = now_;
  case_->begin(*this, worker);
}

bool Engine::take_completions() {
  bool any = false;
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    Lane& from = *lanes_[i];
    Done done;
    while (from.poll(done)) {
      if (!any) now_ = now_ns();
      any = true;
      --in_flight_;
      ++requests_;
      if (done.error != 0 && !case_->expects(done.error)) [[unlikely]] {
        trouble_ = "a request failed with " + Errno{done.error}.text();
        continue;
      }
      if (!trouble_.empty()) [[unlikely]]
        continue;
      case_->step(
          *this, done.slot * static_cast<unsigned>(lanes_.size()) + static_cast<unsigned>(i), done);
    }
    if (!from.violation().empty()) [[unlikely]]
      trouble_ = from.violation();
  }
  for (Lane* to : lanes_) to->ring().publish();
  if (forgot_) {
    forgot_ = false;
    forgets_.flush();
  }
  return any;
}

void Engine::wait() {
  if (waiting_ == Waiting::kPoll) {
    pause_cpu();
    return;
  }
  bool idle = true;
  for (Lane* from : lanes_) idle = from->ring().arm() && idle;
  if (idle) {
    // One lane: the read itself waits, as the cheapest way to sleep on an eventfd. A daemon may
    // have made the descriptor non-blocking, which it shares; then poll waits.
    std::uint64_t count = 0;
    if (lanes_.size() > 1 ||
        read(lanes_[0]->call_fd().number(), &count, sizeof(count)) != sizeof(count)) {
      std::array<pollfd, kMostLanes> waited{};
      for (std::size_t i = 0; i < lanes_.size(); ++i)
        waited[i] = {.fd = lanes_[i]->call_fd().number(), .events = POLLIN, .revents = 0};
      ::poll(waited.data(), lanes_.size(), 1000);
      for (std::size_t i = 0; i < lanes_.size(); ++i) {
        if (waited[i].revents != 0) {
          [[maybe_unused]] const ssize_t got = read(waited[i].fd, &count, sizeof(count));
        }
      }
    }
  }
  for (Lane* from : lanes_) from->ring().disarm();
}

Result<Engine::Counted, Failure> Engine::run(Case& what, std::uint64_t nanoseconds) {
  case_ = &what;
  latencies_ = {};
  requests_ = 0;
  trouble_.clear();
  in_flight_ = 0;
  now_ = now_ns();
  const std::uint64_t begun = now_;
  const std::uint64_t cpu = thread_cpu_ns();
  deadline_ = now_ + nanoseconds;
  for (unsigned worker = 0; worker < workers(); ++worker) {
    begun_[worker] = now_;
    what.begin(*this, worker);
  }
  for (Lane* to : lanes_) to->ring().publish();
  const Nudge nudge{lanes_};
  while (in_flight_ > 0) {
    if (take_completions()) continue;
    if (!trouble_.empty()) break;
    wait();
    if (now_ns() > now_ + kPatience) {
      trouble_ = "no answer for ten seconds";
      break;
    }
  }
  if (!trouble_.empty()) return Failure(trouble_);
  if (!forgets_.drain()) return Failure("the daemon takes no FORGETs");
  Counted counted;
  counted.seconds = static_cast<double>(now_ - begun) / 1e9;
  counted.cpu_seconds = static_cast<double>(thread_cpu_ns() - cpu) / 1e9;
  counted.requests = requests_;
  counted.latencies = latencies_;
  return counted;
}

}  // namespace virtiofsd::bench
