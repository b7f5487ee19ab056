// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What every fuzz target needs: its input as a row of small decisions, and two
// things to hold the code under test against.
//
// An input never runs out: past its end everything is zero, so each prefix of
// an input means the same as the input up to there. A broken expectation ends
// the process by CHECK, which libFuzzer and replay both take for a finding.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/reader.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
// Optional, once per process. A target that has none gets an empty one from replay.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);

namespace virtiofsd::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(std::as_bytes(std::span(data, size))) {}

  bool empty() const { return rest_.empty(); }
  std::size_t left() const { return rest_.size(); }

  template <Plain T>
  T take() {
    T value{};
    const std::size_t there = std::min(sizeof(T), rest_.size());
    std::memcpy(static_cast<void*>(&value), rest_.data(), there);
    rest_ = rest_.subspan(there);
    return value;
  }
  std::uint8_t byte() { return take<std::uint8_t>(); }
  std::uint16_t word() { return take<std::uint16_t>(); }
  // Below `bound`, which fits a byte.
  std::size_t below(std::size_t bound) { return byte() % bound; }
  template <typename T, std::size_t count>
  T one_of(const std::array<T, count>& choices) {
    return choices[below(count)];
  }

  // Exactly `size` bytes on a heap piece of their own, so that the sanitizer
  // sees who reads past their end.
  std::vector<std::byte> bytes(std::size_t size) {
    std::vector<std::byte> out(size);
    const std::size_t there = std::min(size, rest_.size());
    std::copy_n(rest_.begin(), there, out.begin());
    rest_ = rest_.subspan(there);
    return out;
  }
  std::vector<std::byte> all() { return bytes(rest_.size()); }
  std::string text(std::size_t size) {
    std::string out(std::min(size, rest_.size()), '\0');
    for (char& c : out) c = static_cast<char>(byte());
    return out;
  }

 private:
  std::span<const std::byte> rest_;
};

// Numbers at which lengths, offsets and counts go wrong.
inline constexpr std::array<std::uint64_t, 24> kEdges = {0,
                                                         1,
                                                         2,
                                                         7,
                                                         8,
                                                         39,
                                                         40,
                                                         255,
                                                         256,
                                                         4095,
                                                         4096,
                                                         4097,
                                                         65535,
                                                         65536,
                                                         65537,
                                                         (1U << 20),
                                                         (1U << 20) + 1,
                                                         0x7fffffff,
                                                         0x80000000,
                                                         0xffffffff,
                                                         0x100000000,
                                                         0x7fffffffffffffff,
                                                         0x8000000000000000,
                                                         0xffffffffffffffff};

// Lines are formatted only where they are written: some inputs ask for it.
inline void set_log(bool loud) {
  static bool configured = false;
  static bool is_loud = false;
  if (configured && is_loud == loud) return;
  configured = true;
  is_loud = loud;
  log::configure(log::Sink::kStderr, loud ? log::Level::kDebug : log::Level::kOff);
}

// Every descriptor opened since it was made is closed again when it ends: the
// lowest free number is the same.
class NoDescriptorLeaks {
 public:
  NoDescriptorLeaks() : lowest_(lowest()) {}
  ~NoDescriptorLeaks() { CHECK(lowest() == lowest_); }
  NoDescriptorLeaks(const NoDescriptorLeaks&) = delete;
  NoDescriptorLeaks& operator=(const NoDescriptorLeaks&) = delete;

 private:
  static int lowest() {
    const int number = ::open("/", O_PATH | O_CLOEXEC);
    CHECK(number >= 0);
    ::close(number);
    return number;
  }
  const int lowest_;
};

}  // namespace virtiofsd::fuzz
