// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Keeps a number of operations in flight and counts what happens. An operation
// is what a Case says it is, one or many requests, done by a *worker*: a slot
// of a lane with at most one request in flight. One loop, one thread: take all
// completions there are, start what follows, tell the device once, and wait
// when there was nothing. The clock is read once each time around.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/compare/histogram.h"
#include "bench/compare/session.h"

namespace virtiofsd::bench {

enum class Waiting : std::uint8_t {
  kEvent,  // sleep until the device calls
  kPoll,   // spin on the ring, calls off
};

class Engine;

class Case {
 public:
  virtual ~Case() = default;
  // Looks up and opens what it needs for workers `first` to `first + count`,
  // numbers that no other instance at the same daemon has.
  virtual Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) = 0;
  // Starts an operation.
  virtual void begin(Engine& engine, unsigned worker) = 0;
  // A worker's request came back, without error or with one the case expects:
  // sends the next, or ends the operation.
  virtual void step(Engine& engine, unsigned worker, const Done& done) = 0;
  // True for an error that is an answer, such as ENOENT where nothing is.
  virtual bool expects(int error) const {
    (void)error;
    return false;
  }
};

class Engine {
 public:
  // Workers are spread over the lanes, which no other engine may use.
  Engine(std::vector<Lane*> lanes, Forgets& forgets, unsigned workers, Waiting waiting);

  // ---- for cases ----
  unsigned workers() const { return static_cast<unsigned>(begun_.size()); }
  template <typename T>
  void put(unsigned worker, const T& value, std::uint32_t at = 0) {
    std::memcpy(lane(worker).arguments(slot(worker)) + at, &value, sizeof(value));
  }
  void put_bytes(unsigned worker, const void* bytes, std::size_t size, std::uint32_t at = 0) {
    std::memcpy(lane(worker).arguments(slot(worker)) + at, bytes, size);
  }
  template <typename T>
  T reply(unsigned worker) {
    T value{};
    std::memcpy(static_cast<void*>(&value), lane(worker).reply(slot(worker)), sizeof(value));
    return value;
  }
  const std::byte* data(unsigned worker) { return lane(worker).data(slot(worker)); }
  // The worker must have nothing in flight.
  void send(unsigned worker, const Request& request) {
    lane(worker).add(slot(worker), request);
    ++in_flight_;
  }
  void forget(std::uint64_t node, std::uint64_t count = 1);
  // The worker's operation is done; it begins another unless time is up.
  void finish(unsigned worker);
  // For operations of several workers: counts one that began at `since`.
  void count(std::uint64_t since) { latencies_.record(now_ - since); }
  std::uint64_t now() const { return now_; }
  bool time_is_up() const { return now_ >= deadline_; }

  // ---- running ----
  struct Counted {
    Histogram latencies;  // of operations, nanoseconds
    double seconds = 0;
    double cpu_seconds = 0;  // of this thread
    std::uint64_t requests = 0;
  };
  // Runs for `nanoseconds`, then until what is in flight is done.
  Result<Counted, Failure> run(Case& what, std::uint64_t nanoseconds);

 private:
  Lane& lane(unsigned worker) { return *lanes_[worker % lanes_.size()]; }
  std::uint32_t slot(unsigned worker) const {
    return worker / static_cast<unsigned>(lanes_.size());
  }
  bool take_completions();
  void wait();

  std::vector<Lane*> lanes_;
  Forgets& forgets_;
  const Waiting waiting_;
  Case* case_ = nullptr;
  std::vector<std::uint64_t> begun_;  // by worker
  std::uint64_t now_ = 0, deadline_ = 0;
  unsigned in_flight_ = 0;
  bool forgot_ = false;
  Histogram latencies_;
  std::uint64_t requests_ = 0;
  std::string trouble_;
};

}  // namespace virtiofsd::bench
