// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "vhost_user/backend_channel.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <future>
#include <memory>

#include "sys/sockets.h"

namespace virtiofsd::vhost_user {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kAll = bit(ProtocolFeature::kBackendReq) | bit(ProtocolFeature::kReplyAck) |
                               bit(ProtocolFeature::kConfig) | bit(ProtocolFeature::kShmem) |
                               bit(ProtocolFeature::kBackendSendFd) |
                               bit(ProtocolFeature::kInbandNotifications);

struct Ends {
  explicit Ends(std::uint64_t features = kAll, std::chrono::milliseconds patience = 5s) {
    auto pair = sys::unix_socket_pair();
    EXPECT_TRUE(pair);
    vmm = std::make_unique<Connection>(std::move(pair->first));
    channel = std::make_unique<BackendChannel>(std::move(pair->second), features, patience);
  }

  // As the VMM: takes the next request.
  Message& take() {
    while (true) {
      const auto received = vmm->receive();
      EXPECT_TRUE(received);
      if (!received || *received == Received::kMessage) return vmm->message();
    }
  }
  // As the VMM: answers it.
  void answer(BackendRequest request, std::uint64_t status, std::uint32_t flags = kReplyFlags) {
    const Header header{.request = static_cast<std::uint32_t>(request), .flags = flags, .size = 8};
    EXPECT_TRUE(vmm->send(header, bytes_of(status), {}, std::chrono::steady_clock::now() + 1s));
  }

  std::unique_ptr<Connection> vmm;
  std::unique_ptr<BackendChannel> channel;
};

TEST(BackendChannel, AConfigChangeIsOneMessageWithoutReply) {
  Ends ends;
  ASSERT_TRUE(ends.channel->config_changed());
  const Message& message = ends.take();
  EXPECT_EQ(message.header.request, 2U);
  EXPECT_EQ(message.header.flags, 1U);
  EXPECT_EQ(message.header.size, 0U);
}

TEST(BackendChannel, AMappingCarriesItsFileAndWaitsForTheVmm) {
  Ends ends;
  const UniqueFd file{::eventfd(0, EFD_CLOEXEC)};
  auto mapped = std::async(std::launch::async, [&] {
    return ends.channel->shmem_map(0, 0x200000, 0x1000, file, 0x4000, true).has_value();
  });
  const Message& message = ends.take();
  EXPECT_EQ(message.header.request, 9U);
  EXPECT_EQ(message.header.flags, 9U);
  ASSERT_EQ(message.header.size, 40U);
  EXPECT_EQ(message.fds.size(), 1U);
  Reader reader{message.payload()};
  const auto mapping = reader.take<ShmemMapping>();
  EXPECT_EQ(mapping->region_offset, 0x200000U);
  EXPECT_EQ(mapping->file_offset, 0x4000U);
  EXPECT_EQ(mapping->size, 0x1000U);
  EXPECT_EQ(mapping->flags, 1U);

  ends.answer(BackendRequest::kShmemMap, 0);
  EXPECT_TRUE(mapped.get());
}

TEST(BackendChannel, ARefusalIsAnErrorAndTheChannelStaysGood) {
  Ends ends;
  ends.answer(BackendRequest::kShmemUnmap, 22);
  EXPECT_EQ(ends.channel->shmem_unmap(0, 0, 0x1000).error(), Errno{EIO});
  ends.answer(BackendRequest::kShmemUnmap, 0);
  EXPECT_TRUE(ends.channel->shmem_unmap(0, 0, 0x1000));
}

TEST(BackendChannel, AVmmThatNeverAnswersBreaksTheChannelInsteadOfHangingIt) {
  Ends ends{kAll, 10ms};
  EXPECT_EQ(ends.channel->shmem_unmap(0, 0, 0x1000).error(), Errno{ETIMEDOUT});
  EXPECT_EQ(ends.channel->config_changed().error(), Errno{EPIPE});
}

TEST(BackendChannel, AVmmThatNeverReadsBreaksTheChannelInsteadOfHangingIt) {
  Ends ends{kAll, 10ms};
  Result<> sent;
  for (int i = 0; i < 1'000'000 && sent; ++i) sent = ends.channel->config_changed();
  EXPECT_EQ(sent.error(), Errno{ETIMEDOUT});
}

TEST(BackendChannel, AReplyToSomethingElseBreaksTheChannel) {
  Ends ends;
  ends.answer(BackendRequest::kShmemMap, 0);
  EXPECT_EQ(ends.channel->shmem_unmap(0, 0, 0x1000).error(), Errno{EPROTO});
  EXPECT_EQ(ends.channel->config_changed().error(), Errno{EPIPE});
}

TEST(BackendChannel, ARequestWhereAReplyBelongsBreaksTheChannel) {
  Ends ends;
  ends.answer(BackendRequest::kShmemUnmap, 0, kVersion);
  EXPECT_EQ(ends.channel->shmem_unmap(0, 0, 0x1000).error(), Errno{EPROTO});
}

TEST(BackendChannel, AVmmThatIsGoneIsAnErrorAndNoSignal) {
  Ends ends;
  ends.vmm.reset();
  EXPECT_EQ(ends.channel->config_changed().error(), Errno{EPIPE});
}

TEST(BackendChannel, WhatIsNotNegotiatedIsNotSent) {
  Ends ends{bit(ProtocolFeature::kBackendReq)};
  EXPECT_EQ(ends.channel->config_changed().error(), Errno{EOPNOTSUPP});
  EXPECT_EQ(ends.channel->vring_call(0, Wait::kNoReply).error(), Errno{EOPNOTSUPP});
  EXPECT_EQ(ends.channel->vring_error(0).error(), Errno{EOPNOTSUPP});
  EXPECT_EQ(ends.channel->shmem_unmap(0, 0, 1).error(), Errno{EOPNOTSUPP});
  EXPECT_EQ(ends.channel->shmem_map(0, 0, 1, FdRef{}, 0, false).error(), Errno{EOPNOTSUPP});

  Ends no_acks{bit(ProtocolFeature::kInbandNotifications)};
  EXPECT_EQ(no_acks.channel->vring_call(0, Wait::kReply).error(), Errno{EOPNOTSUPP});
  EXPECT_TRUE(no_acks.channel->vring_call(3, Wait::kNoReply));
  const Message& message = no_acks.take();
  Reader reader{message.payload()};
  EXPECT_EQ(reader.take<VringState>()->index, 3U);
}

}  // namespace
}  // namespace virtiofsd::vhost_user
