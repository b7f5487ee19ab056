// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/sigbus.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>

#include "memory/mapping.h"

namespace virtiofsd {
namespace {

unsigned char touch(const std::byte* at) {
  return static_cast<unsigned char>(*static_cast<const volatile std::byte*>(at));
}

TEST(Sigbus, ReadsZerosFromGuestMemoryThatWasTruncated) {
  ASSERT_TRUE(sigbus::install());
  const UniqueFd fd{::memfd_create("guest", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(fd.number(), 0x4000), 0);
  const auto mapping = Mapping::map(fd, 0, 0x4000).value();
  mapping->data()[0x10] = std::byte{7};
  mapping->data()[0x2010] = std::byte{9};
  ASSERT_EQ(::ftruncate(fd.number(), 0x1000), 0);

  const std::uint64_t before = sigbus::faults();
  EXPECT_EQ(touch(mapping->data() + 0x2010), 0);
  EXPECT_EQ(sigbus::faults(), before + 1);
  EXPECT_EQ(touch(mapping->data() + 0x2fff), 0) << "the same page faults once";
  mapping->data()[0x1000] = std::byte{1};
  EXPECT_EQ(sigbus::faults(), before + 2);
  EXPECT_EQ(touch(mapping->data() + 0x10), 7) << "what is still in the file stays shared";
}

TEST(SigbusDeathTest, StillKillsForMemoryThatIsNotTheGuests) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        EXPECT_TRUE(sigbus::install());
        const UniqueFd fd{::memfd_create("ours", MFD_CLOEXEC)};
        void* const at = ::mmap(nullptr, 0x1000, PROT_READ, MAP_SHARED, fd.number(), 0);
        touch(static_cast<const std::byte*>(at));
      },
      ::testing::KilledBySignal(SIGBUS), "");
}

TEST(SigbusDeathTest, StillKillsWhenSomebodySendsIt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        EXPECT_TRUE(sigbus::install());
        ::raise(SIGBUS);
      },
      ::testing::KilledBySignal(SIGBUS), "");
}

TEST(Sigbus, RefusesMoreRangesThanItCanWatch) {
  std::size_t watched = 0;
  const auto at = [](std::size_t i) {
    return std::bit_cast<const void*>((i + 1) * std::uintptr_t{4096});
  };
  while (sigbus::watch(at(watched), 4096, 4096)) ++watched;
  EXPECT_GT(watched, 1000U);
  EXPECT_LE(watched, sigbus::kMostRanges);
  const UniqueFd fd{::memfd_create("guest", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(fd.number(), 0x1000), 0);
  EXPECT_EQ(Mapping::map(fd, 0, 0x1000).error(), Errno{ENOSPC});
  for (std::size_t i = 0; i < watched; ++i) sigbus::forget(at(i));
  EXPECT_TRUE(Mapping::map(fd, 0, 0x1000));
}

}  // namespace
}  // namespace virtiofsd
