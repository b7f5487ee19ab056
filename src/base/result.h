// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Errors as values. `Result<T>` holds a T or an Errno and can't be dropped
// unread; `TRY` takes the value out or returns the error from the enclosing
// function. `Failure` is the operator's kind of error: a sentence.
#pragma once

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "base/uninitialized.h"

namespace virtiofsd {

// A positive Linux error number. The guest reads it, so it is exact.
class Errno {
 public:
  constexpr explicit Errno(int value) : value_(value) {}
  static Errno last() { return Errno{errno}; }

  constexpr int value() const { return value_; }
  // "ENOENT (No such file or directory)": for logs, any thread.
  std::string text() const;

  friend constexpr bool operator==(Errno, Errno) = default;

 private:
  int value_;
};

// A sentence for the operator: what failed, on what, and what to do.
class [[nodiscard]] Failure {
 public:
  explicit Failure(std::string text) : text_(std::move(text)) {}
  Failure(std::string text, Errno error) : text_(std::move(text) + ": " + error.text()) {}

  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// A T or an E. Reading the wrong one is our own mistake; callers test first or use TRY.
template <typename T = void, typename E = Errno>
class [[nodiscard]] Result {
 public:
  // NOLINTBEGIN(google-explicit-constructor): a function returns a value or an error, not a Result.
  Result(T value) : has_value_(true) { std::construct_at(&value_, std::move(value)); }
  Result(E error) : has_value_(false) { std::construct_at(&error_, std::move(error)); }
  // NOLINTEND(google-explicit-constructor)

  Result(Result&& other) noexcept : has_value_(other.has_value_) { take(std::move(other)); }
  Result& operator=(Result&& other) noexcept {
    if (this != &other) {
      destroy();
      has_value_ = other.has_value_;
      take(std::move(other));
    }
    return *this;
  }
  Result(const Result&) = delete;
  Result& operator=(const Result&) = delete;
  ~Result() { destroy(); }

  explicit operator bool() const { return has_value_; }
  bool has_value() const { return has_value_; }

  T& value() & { return value_; }
  const T& value() const& { return value_; }
  T&& value() && { return std::move(value_); }
  T& operator*() & { return value_; }
  const T& operator*() const& { return value_; }
  T&& operator*() && { return std::move(value_); }
  T* operator->() { return &value_; }
  const T* operator->() const { return &value_; }

  const E& error() const& { return error_; }
  E&& error() && { return std::move(error_); }

 private:
  void take(Result&& other) {
    if (has_value_) {
      std::construct_at(&value_, std::move(other.value_));
    } else {
      std::construct_at(&error_, std::move(other.error_));
    }
  }
  void destroy() {
    if (has_value_) {
      std::destroy_at(&value_);
    } else {
      std::destroy_at(&error_);
    }
  }

  union {
    T value_;
    E error_;
  };
  bool has_value_;
};

// Done, or why not.
template <typename E>
class [[nodiscard]] Result<void, E> {
 public:
  Result() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): see above.
  Result(E error) : error_(std::move(error)), has_value_(false) {}

  explicit operator bool() const { return has_value_; }
  bool has_value() const { return has_value_; }
  void value() const {}
  const E& error() const& { return error_; }
  E&& error() && { return std::move(error_); }

 private:
  struct None {};
  static E none() {
    if constexpr (std::is_same_v<E, Errno>) {
      return Errno{0};
    } else {
      return E{std::string{}};
    }
  }
  E error_ = none();
  bool has_value_ = true;
};

// The value of a Result, or return its error from the enclosing function.
// The only macro that changes control flow.
#define TRY(...)                                           \
  __extension__({                                          \
    UNINITIALIZED auto try_result = (__VA_ARGS__);         \
    if (!try_result) return std::move(try_result).error(); \
    std::move(try_result).value();                         \
  })

}  // namespace virtiofsd
