// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "memory/guest_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <limits>

#include "memory/mapping.h"

namespace virtiofsd {
namespace {

UniqueFd file_of(std::size_t size) {
  UniqueFd fd{::memfd_create("guest", MFD_CLOEXEC)};
  EXPECT_EQ(::ftruncate(fd.number(), static_cast<off_t>(size)), 0);
  return fd;
}

std::array<std::byte, 0x4000> host;

MappedRegion region(std::uint64_t guest, std::uint64_t vmm, std::uint64_t size,
                    std::size_t offset = 0) {
  return {.guest = {guest}, .vmm = {vmm}, .size = size, .host = host.data() + offset, .owner = {}};
}

std::shared_ptr<const GuestMemory> memory_of(std::vector<MappedRegion> regions) {
  auto made = GuestMemory::make(std::move(regions));
  EXPECT_TRUE(made);
  return std::move(made).value();
}

TEST(GuestMemory, RefusesRegionsThatAreEmptyWrapOrOverlap) {
  const std::uint64_t top = std::numeric_limits<std::uint64_t>::max();
  EXPECT_EQ(GuestMemory::make({region(0, 0, 0)}).error(), Errno{EINVAL});
  EXPECT_EQ(GuestMemory::make({region(top, 0, 2)}).error(), Errno{EINVAL});
  EXPECT_EQ(GuestMemory::make({region(0, top, 2)}).error(), Errno{EINVAL});
  EXPECT_EQ(GuestMemory::make({region(0x1000, 0, 0x1000), region(0x800, 0x9000, 0x801)}).error(),
            Errno{EINVAL});
  EXPECT_TRUE(GuestMemory::make({region(top, 0, 1), region(0x1000, 0x10, 0x1000)}));
}

TEST(GuestMemory, TranslatesARangeAcrossRegionsThatTouch) {
  const auto memory =
      memory_of({region(0x2000, 0x9000, 0x1000, 0x3000), region(0x1000, 0x5000, 0x1000, 0)});
  std::vector<iovec> pieces;
  ASSERT_TRUE(memory->append_pieces({0x1ff0}, 0x20, pieces));
  ASSERT_EQ(pieces.size(), 2U);
  EXPECT_EQ(pieces[0].iov_base, host.data() + 0xff0);
  EXPECT_EQ(pieces[0].iov_len, 0x10U);
  EXPECT_EQ(pieces[1].iov_base, host.data() + 0x3000);
  EXPECT_EQ(pieces[1].iov_len, 0x10U);
}

TEST(GuestMemory, AnswersEfaultForARangeThatLeavesItAndAppendsNothing) {
  const auto memory = memory_of({region(0x1000, 0x5000, 0x1000), region(0x3000, 0x7000, 0x1000)});
  std::vector<iovec> pieces;
  EXPECT_EQ(memory->append_pieces({0xfff}, 1, pieces).error(), Errno{EFAULT});
  EXPECT_EQ(memory->append_pieces({0x1fff}, 2, pieces).error(), Errno{EFAULT});
  EXPECT_EQ(memory->append_pieces({0x2000}, 1, pieces).error(), Errno{EFAULT});
  EXPECT_EQ(memory->append_pieces({0x4000}, 1, pieces).error(), Errno{EFAULT});
  EXPECT_EQ(
      memory->append_pieces({0x3000}, std::numeric_limits<std::uint64_t>::max(), pieces).error(),
      Errno{EFAULT});
  EXPECT_TRUE(pieces.empty());
  EXPECT_TRUE(memory->append_pieces({0x1fff}, 1, pieces));
  EXPECT_TRUE(memory->append_pieces({0x40}, 0, pieces)) << "no bytes need no place";
  EXPECT_EQ(pieces.size(), 1U);
}

TEST(GuestMemory, EndsAtTheTopOfTheAddressSpaceWithoutWrapping) {
  const std::uint64_t top = std::numeric_limits<std::uint64_t>::max();
  const auto memory =
      memory_of({region(0, 0, 0x1000), region(top - 0xfff, 0x5000, 0x1000, 0x1000)});
  std::vector<iovec> pieces;
  EXPECT_TRUE(memory->append_pieces({top - 0xfff}, 0x1000, pieces));
  EXPECT_EQ(memory->append_pieces({top}, 2, pieces).error(), Errno{EFAULT});
}

TEST(GuestMemory, FindsRingMemoryByEitherAddress) {
  const auto memory = memory_of({region(0x1000, 0x5000, 0x1000)});
  EXPECT_EQ(memory->contiguous(VmmAddress{0x5010}, 0x20, 16).value(), host.data() + 0x10);
  EXPECT_EQ(memory->contiguous(GuestAddress{0x1010}, 0x20, 16).value(), host.data() + 0x10);
  EXPECT_EQ(memory->contiguous(VmmAddress{0x5008}, 0x20, 16).error(), Errno{EINVAL});
  EXPECT_EQ(memory->contiguous(VmmAddress{0x1010}, 0x20, 16).error(), Errno{EFAULT});
  EXPECT_EQ(memory->contiguous(VmmAddress{0x5ff0}, 0x11, 16).error(), Errno{EFAULT});
  EXPECT_EQ(memory->contiguous(VmmAddress{~15ULL}, 0x20, 16).error(), Errno{EFAULT});
  EXPECT_EQ(memory->guest_address(VmmAddress{0x5123}).value(), GuestAddress{0x1123});
}

TEST(GuestMemory, SpansRegionsForARingOnlyWhenTheyFollowEachOtherForUsToo) {
  const auto together =
      memory_of({region(0x1000, 0x5000, 0x1000, 0), region(0x2000, 0x6000, 0x1000, 0x1000)});
  EXPECT_EQ(together->contiguous(VmmAddress{0x5ff0}, 0x20, 16).value(), host.data() + 0xff0);
  EXPECT_EQ(together->contiguous(GuestAddress{0x1ff0}, 0x20, 16).value(), host.data() + 0xff0);

  const auto apart =
      memory_of({region(0x1000, 0x5000, 0x1000, 0), region(0x2000, 0x6000, 0x1000, 0x2000)});
  EXPECT_EQ(apart->contiguous(VmmAddress{0x5ff0}, 0x20, 16).error(), Errno{EFAULT});
}

TEST(GuestMemory, ChangesByMakingANewTable) {
  const auto one = memory_of({region(0x1000, 0x5000, 0x1000)});
  const auto two = one->with_added(region(0x2000, 0x6000, 0x1000)).value();
  EXPECT_EQ(one->region_count(), 1U);
  EXPECT_EQ(two->region_count(), 2U);
  EXPECT_EQ(one->with_added(region(0x1800, 0x9000, 0x10)).error(), Errno{EINVAL});
  EXPECT_EQ(two->with_removed({0x1000}, {0x5000}, 0x800).error(), Errno{ENOENT});
  const auto rest = two->with_removed({0x1000}, {0x5000}, 0x1000).value();
  EXPECT_EQ(rest->region_count(), 1U);
  EXPECT_TRUE(rest->contiguous(VmmAddress{0x6000}, 1, 1));
}

TEST(MapRegion, MapsFromAnOffsetThatIsNoPageBoundary) {
  const UniqueFd fd = file_of(0x4000);
  ASSERT_EQ(::pwrite(fd.number(), "here", 4, 0x1234), 4);
  auto mapped = map_region(fd, 0x1234, {0x1000}, {0x5000}, 0x1000);
  ASSERT_TRUE(mapped);
  EXPECT_EQ(std::memcmp(mapped->host, "here", 4), 0);

  std::memcpy(mapped->host, "back", 4);
  std::array<char, 4> seen{};
  ASSERT_EQ(::pread(fd.number(), seen.data(), 4, 0x1234), 4);
  EXPECT_EQ(std::string_view(seen.data(), 4), "back");
}

TEST(MapRegion, RefusesARegionThatEndsBeyondItsFile) {
  const UniqueFd fd = file_of(0x4000);
  const auto map = [&](std::uint64_t offset, std::uint64_t size) {
    return map_region(fd, offset, {0}, {0}, size);
  };
  EXPECT_TRUE(map(0x3000, 0x1000));
  EXPECT_EQ(map(0x3000, 0x1001).error(), Errno{EINVAL});
  EXPECT_EQ(map(0x4000, 1).error(), Errno{EINVAL});
  EXPECT_EQ(map(0, 0).error(), Errno{EINVAL});
  EXPECT_EQ(map(~0ULL, 0x1000).error(), Errno{EINVAL});
  EXPECT_EQ(map(0x1000, ~0ULL).error(), Errno{EINVAL});
}

TEST(MapRegion, RefusesWhatIsNoFile) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const UniqueFd reader{ends[0]};
  const UniqueFd writer{ends[1]};
  EXPECT_EQ(map_region(writer, 0, {0}, {0}, 1).error(), Errno{EINVAL});
  EXPECT_EQ(map_region(FdRef{}, 0, {0}, {0}, 1).error(), Errno{EBADF});
}

TEST(GuestMemory, KeepsAMappingThatAnotherTableHasLetGo) {
  const UniqueFd fd = file_of(0x1000);
  auto memory = memory_of({map_region(fd, 0, {0}, {0}, 0x1000).value()});
  std::vector<iovec> pieces;
  ASSERT_TRUE(memory->append_pieces({0}, 4, pieces));
  const auto in_flight = memory;
  memory = memory->with_removed({0}, {0}, 0x1000).value();
  EXPECT_EQ(memory->region_count(), 0U);
  std::memcpy(pieces[0].iov_base, "live", 4);
  std::array<char, 4> seen{};
  ASSERT_EQ(::pread(fd.number(), seen.data(), 4, 0), 4);
  EXPECT_EQ(std::string_view(seen.data(), 4), "live");
}

}  // namespace
}  // namespace virtiofsd
