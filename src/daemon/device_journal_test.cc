// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/device_journal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "state/plan.h"

namespace virtiofsd {
namespace {

UniqueFd event() {
  return UniqueFd{::eventfd(0, EFD_CLOEXEC)};
}
bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}
UniqueFd file() {
  return UniqueFd{::memfd_create("region", MFD_CLOEXEC)};
}
ino_t inode_of(int fd) {
  struct stat st {};
  EXPECT_EQ(::fstat(fd, &st), 0);
  return st.st_ino;
}

class DeviceJournalTest : public testing::Test {
 protected:
  DeviceJournalTest() { DeviceJournal::begin(*arena_); }
  SessionRecord& record() { return *journal_.record(); }
  std::vector<int> kept() const {
    std::vector<int> kept = DeviceJournal::descriptors_kept_in(*arena_);
    std::erase(kept, -1);
    return kept;
  }
  // As the VMM gives it: the file is the message's and closes with it.
  DeviceJournal::Regions region(std::uint64_t guest, ino_t* inode = nullptr) {
    DeviceJournal::Regions regions;
    const vhost_user::MemoryRegion wanted{.guest = GuestAddress{guest},
                                          .vmm = VmmAddress{guest + 0x7000},
                                          .size = 0x1000,
                                          .mmap_offset = 5,
                                          .file = file()};
    if (inode != nullptr) *inode = inode_of(wanted.file.number());
    EXPECT_TRUE(regions.add(wanted));
    return regions;
  }
  static vhost_user::MemoryRegion name_of(std::uint64_t guest) {
    return {.guest = GuestAddress{guest},
            .vmm = VmmAddress{guest + 0x7000},
            .size = 0x1000,
            .file = {}};
  }

  std::shared_ptr<Arena> arena_ = *Arena::create(arena_plan(10));
  DeviceJournal journal_{arena_.get()};
};

TEST_F(DeviceJournalTest, ANewRecordNamesNoDescriptor) {
  EXPECT_TRUE(kept().empty());
  EXPECT_EQ(record().regions, 0U);
}

TEST_F(DeviceJournalTest, WhatIsKeptIsAnotherNumberOfTheSameFileUntilItIsReplaced) {
  std::int32_t& place = journal_.ring(3).kick;
  const UniqueFd first = event();
  journal_.keep(place, first);
  const int kept_first = place;
  EXPECT_NE(kept_first, first.number());
  EXPECT_EQ(inode_of(kept_first), inode_of(first.number()));
  EXPECT_EQ(kept(), std::vector{kept_first});

  const UniqueFd second = file();
  journal_.keep(place, second);
  EXPECT_EQ(inode_of(place), inode_of(second.number()));
  journal_.keep(place, FdRef{});
  EXPECT_EQ(place, -1);
  EXPECT_FALSE(is_open(kept_first));
  EXPECT_TRUE(kept().empty());
}

TEST_F(DeviceJournalTest, RegionsAreKeptOpenAsLongAsTheyAreThere) {
  ino_t inode = 0;
  journal_.set_regions(region(0x1000, &inode));
  journal_.add_regions(region(0x3000));
  ASSERT_EQ(record().regions, 2U);
  EXPECT_EQ(record().has_memory, 1U);
  EXPECT_EQ(record().region[0].guest, 0x1000U);
  EXPECT_EQ(record().region[0].vmm, 0x8000U);
  EXPECT_EQ(record().region[0].mmap_offset, 5U);
  EXPECT_EQ(inode_of(record().region[0].fd), inode);
  const std::vector<int> before = kept();
  EXPECT_EQ(before.size(), 2U);

  journal_.remove_region(name_of(0x2000));
  EXPECT_EQ(record().regions, 2U) << "there is none there";
  journal_.remove_region(name_of(0x1000));
  ASSERT_EQ(record().regions, 1U);
  EXPECT_EQ(record().region[0].guest, 0x3000U);
  EXPECT_FALSE(is_open(before[0]));
  EXPECT_TRUE(is_open(before[1]));

  journal_.set_regions({});
  EXPECT_EQ(record().regions, 0U);
  EXPECT_EQ(record().has_memory, 1U) << "an empty table is one";
  EXPECT_FALSE(is_open(before[1]));
}

TEST_F(DeviceJournalTest, WhatIsNotTakenIsClosed) {
  std::vector<int> opened;
  {
    const int next = UniqueFd{file()}.number();
    const DeviceJournal::Regions refused = region(0x1000);
    // The file of the message took the lowest number, its copy the one behind.
    for (int fd = next; fd < next + 3; ++fd) {
      if (is_open(fd)) opened.push_back(fd);
    }
    EXPECT_FALSE(opened.empty());
  }
  for (const int fd : opened) EXPECT_FALSE(is_open(fd));
  EXPECT_EQ(record().regions, 0U);
}

TEST_F(DeviceJournalTest, NoMoreRegionsThanThereIsRoomFor) {
  for (std::uint32_t i = 0; i < SessionRecord::kRegions + 3; ++i)
    journal_.add_regions(region(0x1000 * std::uint64_t{i}));
  EXPECT_EQ(record().regions, SessionRecord::kRegions);
  EXPECT_EQ(kept().size(), SessionRecord::kRegions);
  journal_.set_regions({});
}

TEST_F(DeviceJournalTest, InAnotherProcessDescriptorsHaveOtherNumbers) {
  record().socket = event().release();
  journal_.keep(journal_.ring(64).error, event());
  journal_.set_regions(region(0x1000));
  std::vector<int> before = kept();
  ASSERT_EQ(before.size(), 3U);
  DeviceJournal::renumber_descriptors(*arena_, [](int fd) { return fd + 1000; });
  std::vector<int> after = kept();
  for (int& fd : after) fd -= 1000;
  EXPECT_EQ(after, before);
  DeviceJournal::renumber_descriptors(*arena_, [](int) { return -1; });
  EXPECT_TRUE(kept().empty());
  for (const int fd : before) ::close(fd);
}

TEST(DeviceJournalWithoutAnArena, KeepsNothing) {
  DeviceJournal journal{nullptr};
  EXPECT_EQ(journal.record(), nullptr);
  EXPECT_TRUE(journal.ring_bytes(1).empty());
  const UniqueFd kick = event();
  journal.keep(journal.ring(1).kick, kick);
  EXPECT_LE(journal.ring(1).kick, 0);
  DeviceJournal::Regions regions;
  EXPECT_TRUE(regions.add({.guest = {}, .vmm = {}, .size = 1, .file = file()}));
  journal.set_regions(std::move(regions));
}

}  // namespace
}  // namespace virtiofsd
