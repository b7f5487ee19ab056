// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "state/stream.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <string>
#include <thread>
#include <vector>

#include "sys/events.h"

namespace virtiofsd {
namespace {

class StreamTest : public ::testing::Test {
 protected:
  StreamTest() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    from_ = UniqueFd{ends[0]};
    to_ = UniqueFd{ends[1]};
  }

  void write(const void* bytes, std::size_t size) {
    ASSERT_EQ(::write(to_.number(), bytes, size), static_cast<ssize_t>(size));
  }
  void write_header(FrameHeader header) { write(&header, sizeof header); }

  UniqueFd from_;
  UniqueFd to_;
  sys::EventFd cancelled_ = std::move(sys::EventFd::create()).value();
};

TEST_F(StreamTest, FramesComeAsTheyWereSent) {
  constexpr std::uint32_t kFrames = 3000;  // more than a pipe holds, and than is gathered
  std::thread sender([this] {
    FrameWriter writer{to_, cancelled_.ref()};
    for (std::uint32_t i = 0; i < kFrames; ++i) {
      const std::vector<std::byte> filling(i, std::byte(i));
      ASSERT_TRUE(writer.put(i, {raw_bytes(i), filling}));
    }
    ASSERT_TRUE(writer.flush());
    to_.reset();
  });
  FrameReader reader{from_, cancelled_.ref()};
  for (std::uint32_t i = 0; i < kFrames; ++i) {
    auto frame = reader.next();
    ASSERT_TRUE(frame) << i;
    EXPECT_EQ(frame->kind, i);
    EXPECT_EQ(std::move(frame->body.take<std::uint32_t>()).value(), i);
    const std::vector<std::byte> filling(i, std::byte(i));
    const auto rest = frame->body.rest();
    EXPECT_TRUE(std::equal(rest.begin(), rest.end(), filling.begin(), filling.end())) << i;
  }
  EXPECT_TRUE(reader.expect_end());
  sender.join();
}

TEST_F(StreamTest, TheLargestFrameFits) {
  const std::vector<std::byte> most(FrameHeader::kMostBytes, std::byte{7});
  const std::vector<std::byte> more(FrameHeader::kMostBytes + 1);
  std::thread sender([&] {
    FrameWriter writer{to_, cancelled_.ref()};
    EXPECT_TRUE(writer.put(1, {most}));
    EXPECT_TRUE(writer.flush());
    const auto too_much = writer.put(1, {more});
    ASSERT_FALSE(too_much);
    EXPECT_EQ(too_much.error(), Errno{E2BIG});
  });
  FrameReader reader{from_, cancelled_.ref()};
  auto frame = reader.next();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->body.rest().size(), most.size());
  sender.join();
}

TEST_F(StreamTest, WhatIsCutShortIsAnError) {
  const auto error_after = [this](std::string_view bytes) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd from{ends[0]};
    UniqueFd to{ends[1]};
    EXPECT_EQ(::write(to.number(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    to.reset();
    FrameReader reader{from, cancelled_.ref()};
    const auto frame = reader.next();
    return frame ? Errno{0} : frame.error();
  };
  const std::string whole = {5, 0, 0, 0, 3, 0, 0, 0, 'a', 'b', 'c'};
  EXPECT_EQ(error_after(whole), Errno{0});
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_EQ(error_after(whole.substr(0, size)), Errno{ENODATA}) << size;
}

TEST_F(StreamTest, AFrameThatSaysItIsHugeIsRefused) {
  write_header({.kind = 1, .size = FrameHeader::kMostBytes + 1});
  FrameReader reader{from_, cancelled_.ref()};
  const auto frame = reader.next();
  ASSERT_FALSE(frame);
  EXPECT_EQ(frame.error(), Errno{EMSGSIZE});
}

TEST_F(StreamTest, WhatFollowsTheEndIsAnError) {
  write_header({.kind = 1, .size = 0});
  write("x", 1);
  FrameReader reader{from_, cancelled_.ref()};
  ASSERT_TRUE(reader.next());
  const auto end = reader.expect_end();
  ASSERT_FALSE(end);
  EXPECT_EQ(end.error(), Errno{EBADMSG});
}

TEST_F(StreamTest, NobodyReadsAnyMore) {
  ::signal(SIGPIPE, SIG_IGN);
  from_.reset();
  FrameWriter writer{to_, cancelled_.ref()};
  ASSERT_TRUE(writer.put(1, {}));
  const auto sent = writer.flush();
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error(), Errno{EPIPE});
}

TEST_F(StreamTest, AWaitCanBeCancelled) {
  cancelled_.signal();
  FrameReader reader{from_, cancelled_.ref()};
  const auto frame = reader.next();
  ASSERT_FALSE(frame);
  EXPECT_EQ(frame.error(), Errno{ECANCELED});

  FrameWriter writer{to_, cancelled_.ref()};
  ASSERT_TRUE(writer.put(1, {}));
  const auto sent = writer.flush();
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error(), Errno{ECANCELED});
}

}  // namespace
}  // namespace virtiofsd
