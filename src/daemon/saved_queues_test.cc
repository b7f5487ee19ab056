// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/saved_queues.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "state/records.h"
#include "state/saved_frames.h"
#include "sys/events.h"

namespace virtiofsd {
namespace {

class SavedQueuesTest : public ::testing::Test {
 protected:
  // What is read of what was written.
  Result<std::vector<SavedQueue>, Failure> read_back() {
    EXPECT_EQ(::lseek(file_.number(), 0, SEEK_SET), 0);
    FrameReader from{file_, cancelled_.ref()};
    return load_queues(from);
  }
  Result<std::vector<SavedQueue>, Failure> sent(const std::vector<SavedQueue>& queues) {
    FrameWriter to{file_, cancelled_.ref()};
    EXPECT_TRUE(save_queues(to, queues));
    EXPECT_TRUE(to.flush());
    return read_back();
  }
  std::string complaint(const std::function<void(FrameWriter&)>& write) {
    FrameWriter to{file_, cancelled_.ref()};
    write(to);
    EXPECT_TRUE(to.flush());
    const auto queues = read_back();
    EXPECT_FALSE(queues);
    return queues ? "" : queues.error().text();
  }
  static void put_head(FrameWriter& to, const SavedHead& head) {
    EXPECT_TRUE(put_saved(to, SavedKind::kHead, {raw_bytes(head)}));
  }

  UniqueFd file_{::memfd_create("queues", MFD_CLOEXEC)};
  sys::EventFd cancelled_ = std::move(sys::EventFd::create()).value();
};

TEST_F(SavedQueuesTest, MostlyThereIsNothingInFlight) {
  const auto queues = sent({});
  ASSERT_TRUE(queues) << queues.error().text();
  EXPECT_TRUE(queues->empty());
}

TEST_F(SavedQueuesTest, WhatIsInFlightComesAsItWas) {
  SavedQueue split{.index = 3,
                   .requests = {.size = 4096,
                                .packed = false,
                                .number = 7,
                                .base = 9,
                                .requests = {},
                                .descriptors = {}}};
  for (std::uint16_t cell = 0; cell < 3000; ++cell)  // more than a frame has
    split.requests.requests.push_back({cell, RingRecord::kTaken | cell});
  SavedQueue packed{.index = 64,
                    .requests = {.size = 100,
                                 .packed = true,
                                 .number = 1,
                                 .base = 0x80058003,
                                 .requests = {{5, RingRecord::kTaken}},
                                 .descriptors = {}}};
  packed.requests.descriptors.push_back(
      {5,
       {.address = 0x1000, .size = 80, .flags = 1, .id = 2, .count = 2, .next = 6, .padding = 0}});
  packed.requests.descriptors.push_back(
      {6,
       {.address = 0x2000, .size = 16, .flags = 2, .id = 2, .count = 0, .next = 0, .padding = 0}});
  const auto queues = sent({split, packed});
  ASSERT_TRUE(queues) << queues.error().text();
  ASSERT_EQ(queues->size(), 2U);
  const virtio::LeftOver& first = (*queues)[0].requests;
  EXPECT_EQ((*queues)[0].index, 3U);
  EXPECT_EQ(first.size, 4096U);
  EXPECT_FALSE(first.packed);
  EXPECT_EQ(first.number, 7U);
  EXPECT_EQ(first.base, 9U);
  ASSERT_EQ(first.requests.size(), 3000U);
  EXPECT_EQ(first.requests[2999].cell, 2999U);
  EXPECT_EQ(first.requests[2999].word, RingRecord::kTaken | 2999);
  EXPECT_TRUE(first.descriptors.empty());
  const virtio::LeftOver& second = (*queues)[1].requests;
  EXPECT_TRUE(second.packed);
  EXPECT_EQ(second.base, 0x80058003U);
  ASSERT_EQ(second.descriptors.size(), 2U);
  EXPECT_EQ(second.descriptors[1].cell, 6U);
  EXPECT_EQ(second.descriptors[1].copy.address, 0x2000U);
  EXPECT_EQ(second.descriptors[0].copy.next, 6U);
}

TEST_F(SavedQueuesTest, AnotherProgramsStateIsRefused) {
  EXPECT_NE(complaint([](FrameWriter& to) {
              EXPECT_TRUE(to.put(1, {raw_bytes(std::uint64_t{1})}));
            }).find("not the state of this kind"),
            std::string::npos);
}

TEST_F(SavedQueuesTest, AnotherFormIsRefused) {
  EXPECT_NE(complaint([](FrameWriter& to) {
              put_head(to, {.version = SavedHead::kVersion + 1});
            }).find("form 2, not 1"),
            std::string::npos);
}

TEST_F(SavedQueuesTest, MoreThanThereCanBeIsDamage) {
  EXPECT_NE(complaint([](FrameWriter& to) {
              put_head(to, {.rings = SessionRecord::kRings + 1});
            }).find("damaged"),
            std::string::npos);
}

TEST_F(SavedQueuesTest, MoreInFlightThanFitsTheRingIsDamage) {
  EXPECT_NE(complaint([](FrameWriter& to) {
              put_head(to, {.rings = 1});
              const SavedRing ring{.size = 8, .requests = 9};
              EXPECT_TRUE(put_saved(to, SavedKind::kRing, {raw_bytes(ring)}));
            }).find("damaged"),
            std::string::npos);
}

TEST_F(SavedQueuesTest, FewerThanWereSaidIsDamage) {
  EXPECT_NE(complaint([](FrameWriter& to) {
              put_head(to, {.rings = 1});
              const SavedRing ring{.size = 8, .requests = 2};
              EXPECT_TRUE(put_saved(to, SavedKind::kRing, {raw_bytes(ring)}));
              EXPECT_TRUE(put_saved(to, SavedKind::kRequests, {raw_bytes(SavedRequest{})}));
            }).find("damaged"),
            std::string::npos);
}

TEST_F(SavedQueuesTest, NothingAtAllEndsTooEarly) {
  EXPECT_NE(complaint([](FrameWriter&) {}).find("ends too early"), std::string::npos);
}

}  // namespace
}  // namespace virtiofsd
