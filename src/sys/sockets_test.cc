// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sys/sockets.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <iterator>
#include <string>

namespace virtiofsd::sys {
namespace {

std::size_t open_descriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator{"/proc/self/fd"}, {}));
}

UniqueFd event() {
  return UniqueFd{::eventfd(0, EFD_CLOEXEC)};
}

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

class Directory {
 public:
  Directory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "sockets.XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  std::string file(std::string_view name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

TEST(Sockets, ConnectAndAcceptMeetAtAPath) {
  const Directory directory;
  const std::string path = directory.file("socket");
  auto listener = bind_unix(path);
  ASSERT_TRUE(listener);
  ASSERT_TRUE(listen(*listener, 1));

  auto client = connect_unix(path);
  ASSERT_TRUE(client);
  auto server = accept(*listener);
  ASSERT_TRUE(server);

  ASSERT_TRUE(send(*client, bytes("hello"), {}));
  std::array<std::byte, 16> buffer{};
  std::vector<UniqueFd> fds;
  EXPECT_EQ(*receive(*server, buffer, fds), 5U);
  EXPECT_TRUE(fds.empty());
}

TEST(Sockets, APathThatDoesNotFitAnAddressIsRefused) {
  const Directory directory;
  const std::string base = directory.file("");
  const std::string longest = base + std::string(107 - base.size(), 'x');
  EXPECT_TRUE(bind_unix(longest));
  EXPECT_EQ(bind_unix(longest + "x").error(), Errno{ENAMETOOLONG});
  EXPECT_EQ(connect_unix(longest + "x").error(), Errno{ENAMETOOLONG});
  EXPECT_EQ(bind_unix("").error(), Errno{EINVAL});
  EXPECT_EQ(bind_unix(std::string_view("a\0b", 3)).error(), Errno{EINVAL});
}

TEST(Sockets, AnOccupiedPathIsLeftAlone) {
  const Directory directory;
  const std::string path = directory.file("socket");
  auto first = bind_unix(path);
  ASSERT_TRUE(first);
  EXPECT_EQ(bind_unix(path).error(), Errno{EADDRINUSE});
  EXPECT_EQ(connect_unix(path).error(), Errno{ECONNREFUSED});
}

TEST(Sockets, TellsAListenerFromAConnection) {
  const Directory directory;
  auto listener = bind_unix(directory.file("socket"));
  ASSERT_TRUE(listener);
  EXPECT_FALSE(*is_listening(*listener));
  ASSERT_TRUE(listen(*listener, 1));
  EXPECT_TRUE(*is_listening(*listener));

  auto pair = unix_socket_pair();
  ASSERT_TRUE(pair);
  EXPECT_FALSE(*is_listening(pair->first));
  EXPECT_TRUE(*is_unix_stream(pair->first));

  const UniqueFd no_socket = event();
  EXPECT_EQ(is_listening(no_socket).error(), Errno{ENOTSOCK});
  EXPECT_FALSE(*is_unix_stream(no_socket));
  EXPECT_EQ(is_unix_stream(FdRef{1000000}).error(), Errno{EBADF});
  const UniqueFd datagram{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  EXPECT_FALSE(*is_unix_stream(datagram));
}

TEST(Sockets, DescriptorsArriveWithTheFirstByteAndCloseOnExec) {
  auto pair = unix_socket_pair();
  ASSERT_TRUE(pair);
  const UniqueFd one = event();
  const UniqueFd two = event();
  const std::array<FdRef, 2> sent{one, two};
  ASSERT_TRUE(send(pair->first, bytes("ab"), sent));

  std::vector<UniqueFd> fds;
  std::array<std::byte, 1> buffer{};
  ASSERT_EQ(*receive(pair->second, buffer, fds), 1U);
  ASSERT_EQ(fds.size(), 2U);
  EXPECT_NE(::fcntl(fds[0].number(), F_GETFD) & FD_CLOEXEC, 0);

  ASSERT_EQ(*receive(pair->second, buffer, fds), 1U);
  EXPECT_EQ(fds.size(), 2U);
}

TEST(Sockets, TooManyDescriptorsAreAllClosed) {
  auto pair = unix_socket_pair();
  ASSERT_TRUE(pair);
  const UniqueFd fd = event();
  constexpr std::size_t kCount = kMaxReceivedFds + 1;
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kCount * sizeof(int))> control{};
  std::byte payload{1};
  iovec piece{.iov_base = &payload, .iov_len = 1};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(kCount * sizeof(int));
  for (std::size_t i = 0; i < kCount; ++i) {
    const int number = fd.number();
    std::memcpy(CMSG_DATA(part) + i * sizeof(int), &number, sizeof(int));
  }
  ASSERT_EQ(::sendmsg(pair->first.number(), &message, 0), 1);

  const std::size_t before = open_descriptors();
  std::vector<UniqueFd> fds;
  std::array<std::byte, 1> buffer{};
  EXPECT_EQ(receive(pair->second, buffer, fds).error(), Errno{EMSGSIZE});
  EXPECT_TRUE(fds.empty());
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Sockets, DescriptorsThatFindNoRoomInTheTableAreAnErrorAndDoNotLeak) {
  auto pair = unix_socket_pair();
  ASSERT_TRUE(pair);
  const UniqueFd one = event();
  const UniqueFd two = event();
  const std::array<FdRef, 2> sent{one, two};
  ASSERT_TRUE(send(pair->first, bytes("a"), sent));

  const std::size_t before = open_descriptors();
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &old), 0);
  // Room for one more number and no second.
  const UniqueFd probe = event();
  const rlimit tight{.rlim_cur = static_cast<rlim_t>(probe.number()) + 2, .rlim_max = old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  std::vector<UniqueFd> fds;
  std::array<std::byte, 1> buffer{};
  const auto received = receive(pair->second, buffer, fds);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &old), 0);

  ASSERT_FALSE(received);
  EXPECT_EQ(received.error(), Errno{EMSGSIZE});
  EXPECT_EQ(open_descriptors(), before + 1);  // the probe
}

TEST(Sockets, ReceiveDoesNotWaitAndSaysWhenThePeerIsGone) {
  auto pair = unix_socket_pair();
  ASSERT_TRUE(pair);
  std::vector<UniqueFd> fds;
  std::array<std::byte, 1> buffer{};
  EXPECT_EQ(receive(pair->second, buffer, fds).error(), Errno{EAGAIN});
  pair->first.reset();
  EXPECT_EQ(*receive(pair->second, buffer, fds), 0U);
}

TEST(Sockets, SendingToAPeerThatIsGoneIsAnErrorAndNoSignal) {
  auto pair = unix_socket_pair();
  ASSERT_TRUE(pair);
  pair->first.reset();
  EXPECT_EQ(send(pair->second, bytes("a"), {}).error(), Errno{EPIPE});
}

TEST(Sockets, SendAllGivesUpOnAPeerThatDoesNotRead) {
  auto pair = unix_socket_pair();
  ASSERT_TRUE(pair);
  const std::vector<std::byte> much(std::size_t{4} << 20);
  const auto soon = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  EXPECT_EQ(send_all(pair->first, much, {}, soon).error(), Errno{ETIMEDOUT});
}

TEST(Sockets, WaitUntilReportsReadinessAndTheDeadline) {
  auto pair = unix_socket_pair();
  ASSERT_TRUE(pair);
  const auto now = std::chrono::steady_clock::now();
  EXPECT_EQ(wait_until(pair->second, POLLIN, now).error(), Errno{ETIMEDOUT});
  ASSERT_TRUE(send(pair->first, bytes("a"), {}));
  EXPECT_TRUE(wait_until(pair->second, POLLIN, now));
  EXPECT_TRUE(wait_for(pair->second, POLLIN));
}

}  // namespace
}  // namespace virtiofsd::sys
