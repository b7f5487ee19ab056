// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A mutex that clang's thread-safety analysis understands, its scoped lock and
// a condition variable. `GUARDED_BY` on a member is checked at compile time.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define VIRTIOFSD_TSA(x) __attribute__((x))
#else
#define VIRTIOFSD_TSA(x)
#endif

#define CAPABILITY(x) VIRTIOFSD_TSA(capability(x))
#define SCOPED_CAPABILITY VIRTIOFSD_TSA(scoped_lockable)
#define GUARDED_BY(x) VIRTIOFSD_TSA(guarded_by(x))
#define REQUIRES(...) VIRTIOFSD_TSA(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) VIRTIOFSD_TSA(locks_excluded(__VA_ARGS__))
#define ACQUIRE(...) VIRTIOFSD_TSA(acquire_capability(__VA_ARGS__))
#define RELEASE(...) VIRTIOFSD_TSA(release_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) VIRTIOFSD_TSA(try_acquire_capability(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS VIRTIOFSD_TSA(no_thread_safety_analysis)

namespace virtiofsd {

class CAPABILITY("mutex") Mutex {
 public:
  void lock() ACQUIRE() { mutex_.lock(); }
  void unlock() RELEASE() { mutex_.unlock(); }
  bool try_lock() TRY_ACQUIRE(true) { return mutex_.try_lock(); }

 private:
  friend class Condition;
  std::mutex mutex_;
};

class SCOPED_CAPABILITY Lock {
 public:
  explicit Lock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~Lock() RELEASE() { mutex_.unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  Mutex& mutex_;
};

class Condition {
 public:
  void wait(Mutex& mutex) REQUIRES(mutex) NO_THREAD_SAFETY_ANALYSIS {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  // False when `deadline` passed.
  bool wait_until(Mutex& mutex, std::chrono::steady_clock::time_point deadline)
      REQUIRES(mutex) NO_THREAD_SAFETY_ANALYSIS {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const auto status = condition_.wait_until(lock, deadline);
    lock.release();
    return status == std::cv_status::no_timeout;
  }
  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace virtiofsd
