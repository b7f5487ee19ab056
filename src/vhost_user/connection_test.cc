// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "vhost_user/connection.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <cstring>
#include <filesystem>
#include <iterator>
#include <vector>

#include "sys/sockets.h"

namespace virtiofsd::vhost_user {
namespace {

using namespace std::chrono_literals;

std::size_t open_descriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator{"/proc/self/fd"}, {}));
}

std::vector<std::byte> wire(std::uint32_t request, std::uint32_t flags, std::uint32_t size,
                            std::size_t sent) {
  const Header header{.request = request, .flags = flags, .size = size};
  std::vector<std::byte> bytes(sizeof(Header) + sent, std::byte{0x5a});
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes;
}

class ConnectionTest : public testing::Test {
 protected:
  ConnectionTest() {
    auto pair = sys::unix_socket_pair();
    EXPECT_TRUE(pair);
    peer_ = std::move(pair->first);
    connection_.emplace(std::move(pair->second));
  }

  void put(std::span<const std::byte> bytes, std::span<const FdRef> fds = {}) {
    ASSERT_TRUE(sys::send_all(peer_, bytes, fds, std::chrono::steady_clock::now() + 5s));
  }

  UniqueFd peer_;
  std::optional<Connection> connection_;
};

TEST_F(ConnectionTest, TakesOneMessageAndLeavesTheNext) {
  auto bytes = wire(1, 1, 0, 0);
  const auto second = wire(8, 1, 8, 8);
  bytes.insert(bytes.end(), second.begin(), second.end());
  put(bytes);

  ASSERT_EQ(*connection_->receive(), Received::kMessage);
  EXPECT_EQ(connection_->message().header.request, 1U);
  EXPECT_TRUE(connection_->message().payload().empty());
  ASSERT_EQ(*connection_->receive(), Received::kMessage);
  EXPECT_EQ(connection_->message().header.request, 8U);
  EXPECT_EQ(connection_->message().payload().size(), 8U);
  EXPECT_EQ(connection_->message().payload()[7], std::byte{0x5a});
}

TEST_F(ConnectionTest, PutsTogetherAMessageThatComesInSingleBytes) {
  const auto bytes = wire(9, 1, 40, 40);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    put(std::span(bytes).subspan(i, 1));
    const auto received = connection_->receive();
    ASSERT_TRUE(received);
    EXPECT_EQ(*received, i + 1 < bytes.size() ? Received::kPart : Received::kMessage);
  }
  EXPECT_EQ(connection_->message().header.request, 9U);
}

TEST_F(ConnectionTest, DescriptorsStayWithTheirMessageAndCloseWithIt) {
  const UniqueFd event{::eventfd(0, EFD_CLOEXEC)};
  const std::array<FdRef, 2> two{event, event};
  const auto bytes = wire(5, 1, 8, 8);
  put(std::span(bytes).first(3), two);
  put(std::span(bytes).subspan(3));
  put(wire(1, 1, 0, 0));

  const std::size_t before = open_descriptors();
  ASSERT_EQ(*connection_->receive(), Received::kMessage);
  EXPECT_EQ(connection_->message().fds.size(), 2U);
  EXPECT_EQ(open_descriptors(), before + 2);
  ASSERT_EQ(*connection_->receive(), Received::kMessage);
  EXPECT_TRUE(connection_->message().fds.empty());
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(ConnectionTest, TakesAsManyDescriptorsAsAMemoryTableNeedsAndNotOneMore) {
  const UniqueFd event{::eventfd(0, EFD_CLOEXEC)};
  const std::vector<FdRef> most(kMaxFds, FdRef{event});
  put(wire(5, 1, 0, 0), most);
  ASSERT_EQ(*connection_->receive(), Received::kMessage);
  EXPECT_EQ(connection_->message().fds.size(), kMaxFds);

  const std::vector<FdRef> more(kMaxFds + 1, FdRef{event});
  put(wire(5, 1, 0, 0), more);
  EXPECT_EQ(connection_->receive().error(), Errno{EMSGSIZE});
}

TEST_F(ConnectionTest, CountsDescriptorsOverAllPiecesOfAMessage) {
  const UniqueFd event{::eventfd(0, EFD_CLOEXEC)};
  const std::vector<FdRef> five(5, FdRef{event});
  const auto bytes = wire(5, 1, 0, 0);
  const std::size_t before = open_descriptors();
  put(std::span(bytes).first(1), five);
  put(std::span(bytes).subspan(1, 1), five);
  Result<Received> received = connection_->receive();
  if (received) received = connection_->receive();
  EXPECT_EQ(received.error(), Errno{EMSGSIZE});
  connection_.reset();
  EXPECT_EQ(open_descriptors(), before - 1);
}

TEST_F(ConnectionTest, AWrongVersionEndsTheConversation) {
  put(wire(1, 0, 0, 0));
  EXPECT_EQ(connection_->receive().error(), Errno{EPROTO});
}

TEST_F(ConnectionTest, AReplyNobodyAskedForEndsTheConversation) {
  put(wire(1, kReplyFlags, 0, 0));
  EXPECT_EQ(connection_->receive().error(), Errno{EPROTO});
}

TEST_F(ConnectionTest, ThePayloadHasALimit) {
  put(wire(25, 1, kMaxPayload, kMaxPayload));
  ASSERT_EQ(*connection_->receive(), Received::kMessage);
  EXPECT_EQ(connection_->message().payload().size(), kMaxPayload);
  put(wire(25, 1, kMaxPayload + 1, 0));
  EXPECT_EQ(connection_->receive().error(), Errno{EMSGSIZE});
}

TEST_F(ConnectionTest, ASizeOfAllOnesEndsTheConversation) {
  put(wire(25, 1, 0xffffffff, 0));
  EXPECT_EQ(connection_->receive().error(), Errno{EMSGSIZE});
}

TEST_F(ConnectionTest, ClosingBetweenMessagesIsTheEndAndInOneIsAnError) {
  put(wire(1, 1, 0, 0));
  ASSERT_EQ(*connection_->receive(), Received::kMessage);
  const auto bytes = wire(1, 1, 8, 4);
  put(bytes);
  ASSERT_EQ(*connection_->receive(), Received::kPart);
  peer_.reset();
  EXPECT_EQ(connection_->receive().error(), Errno{ECONNRESET});
}

TEST_F(ConnectionTest, SaysWhenThePeerClosed) {
  peer_.reset();
  EXPECT_EQ(*connection_->receive(), Received::kClosed);
}

TEST_F(ConnectionTest, SendGivesUpOnAPeerThatDoesNotRead) {
  const std::array<std::byte, 2000> payload{};
  Result<> sent;
  for (int i = 0; i < 100'000 && sent; ++i) {
    sent = connection_->send(Header{.request = 1, .flags = kReplyFlags, .size = payload.size()},
                             payload, {}, std::chrono::steady_clock::now() + 10ms);
  }
  EXPECT_EQ(sent.error(), Errno{ETIMEDOUT});
}

}  // namespace
}  // namespace virtiofsd::vhost_user
