// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/dirty_log.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <string>

namespace virtiofsd {
namespace {

// A bitmap of four bytes, 32 pages, at an odd place of its file.
struct Log {
  static constexpr std::size_t kOffset = 10;
  UniqueFd fd{::memfd_create("log", MFD_CLOEXEC)};
  std::shared_ptr<DirtyLog> log;

  Log() {
    EXPECT_EQ(::ftruncate(fd.number(), 4096), 0);
    log = DirtyLog::map(fd, kOffset, 4).value();
  }
  // The six bytes from one before the bitmap to one behind it.
  std::array<unsigned char, 6> bytes() const {
    std::array<unsigned char, 6> read{};
    EXPECT_EQ(::pread(fd.number(), read.data(), read.size(), kOffset - 1), 6);
    return read;
  }
};

using Bytes = std::array<unsigned char, 6>;

TEST(DirtyLog, MarksEveryPageARangeTouches) {
  Log log;
  log.log->mark({0x1fff}, 2);
  EXPECT_EQ(log.bytes(), (Bytes{0, 0b110, 0, 0, 0, 0}));
  log.log->mark({0x0}, 1);
  EXPECT_EQ(log.bytes(), (Bytes{0, 0b111, 0, 0, 0, 0}));
  log.log->mark({7 * 4096}, 10 * 4096);
  EXPECT_EQ(log.bytes(), (Bytes{0, 0b1000'0111, 0xff, 0b1, 0, 0}));
}

TEST(DirtyLog, MarksNothingForNoBytes) {
  Log log;
  log.log->mark({0x1000}, 0);
  EXPECT_EQ(log.bytes(), (Bytes{}));
}

TEST(DirtyLog, IgnoresPagesBeyondItsEnd) {
  Log log;
  log.log->mark({31 * 4096}, 2 * 4096);
  EXPECT_EQ(log.bytes(), (Bytes{0, 0, 0, 0, 0x80, 0}));
  log.log->mark({32 * 4096}, 1);
  log.log->mark({~0ULL}, ~0ULL);
  EXPECT_EQ(log.bytes(), (Bytes{0, 0, 0, 0, 0x80, 0}));
  log.log->mark({4096}, ~0ULL);
  EXPECT_EQ(log.bytes(), (Bytes{0, 0xfe, 0xff, 0xff, 0xff, 0}));
}

TEST(DirtyLog, IsRefusedWhenItsFileIsTooShort) {
  const UniqueFd fd{::memfd_create("log", MFD_CLOEXEC)};
  EXPECT_EQ(DirtyLog::map(fd, 0, 1).error(), Errno{EINVAL});
}

}  // namespace
}  // namespace virtiofsd
