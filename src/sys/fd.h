// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// File descriptors with one owner. UniqueFd closes what it owns; FdRef borrows
// for the length of a call and closes nothing.
#pragma once

#include <utility>

#include "base/result.h"

namespace virtiofsd {

class FdRef {
 public:
  constexpr FdRef() = default;
  constexpr explicit FdRef(int number) : number_(number) {}
  constexpr int number() const { return number_; }
  constexpr bool valid() const { return number_ >= 0; }

 private:
  int number_ = -1;
};

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int number) : number_(number) {}
  UniqueFd(UniqueFd&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      number_ = std::exchange(other.number_, -1);
    }
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  explicit operator bool() const { return number_ >= 0; }
  bool valid() const { return number_ >= 0; }
  int number() const { return number_; }
  FdRef ref() const { return FdRef{number_}; }
  // NOLINTNEXTLINE(google-explicit-constructor): owning fits wherever borrowing does.
  operator FdRef() const { return FdRef{number_}; }

  // Gives the number up; the caller owns it now.
  int release() { return std::exchange(number_, -1); }
  // Closes it now. EBADF on a number of ours is our own mistake and ends the process.
  void reset();

 private:
  int number_ = -1;
};

}  // namespace virtiofsd
