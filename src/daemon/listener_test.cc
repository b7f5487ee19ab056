// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/listener.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "sys/sockets.h"

namespace virtiofsd {
namespace {

using testing::HasSubstr;

class ListenerTest : public testing::Test {
 protected:
  ListenerTest() {
    std::string name = "/tmp/virtiofsd-listener-XXXXXX";
    directory_ = ::mkdtemp(name.data());
    path_ = directory_ + "/socket";
  }
  ~ListenerTest() override { std::filesystem::remove_all(directory_); }

  bool directory_is_empty() const { return std::filesystem::is_empty(directory_); }

  std::string directory_;
  std::string path_;
};

std::string failure_of(Listener::Settings settings) {
  auto listener = Listener::prepare(std::move(settings));
  return listener ? "(accepted)" : listener.error().text();
}

TEST_F(ListenerTest, MakesThePathOnlyWhenOpened) {
  auto listener = Listener::prepare({.path = path_});
  ASSERT_TRUE(listener);
  EXPECT_FALSE(std::filesystem::exists(path_));
  ASSERT_TRUE(listener->open());
  struct stat made {};
  ASSERT_EQ(::lstat(path_.c_str(), &made), 0);
  EXPECT_EQ(made.st_mode, mode_t{S_IFSOCK | 0600});
  std::ifstream pid_file(path_ + ".pid");
  int pid = 0;
  EXPECT_TRUE(pid_file >> pid);
  EXPECT_EQ(pid, ::getpid());

  listener->remove();
  EXPECT_TRUE(directory_is_empty());
}

TEST_F(ListenerTest, RefusesASecondOneWhileTheFirstLives) {
  auto first = Listener::prepare({.path = path_});
  ASSERT_TRUE(first);
  EXPECT_THAT(failure_of({.path = path_}), HasSubstr("is in use by another virtiofsd (pid "));
  ASSERT_TRUE(first->open());
  EXPECT_THAT(failure_of({.path = path_}), HasSubstr("is in use by another virtiofsd (pid "));
  EXPECT_TRUE(std::filesystem::exists(path_));
  first->remove();
  EXPECT_EQ(failure_of({.path = path_}), "(accepted)");
}

TEST_F(ListenerTest, LeavesASocketAloneThatSomebodyElseListensOn) {
  const auto other = sys::bind_unix(path_);
  ASSERT_TRUE(other);
  ASSERT_TRUE(sys::listen(*other, 1));
  EXPECT_THAT(failure_of({.path = path_}), HasSubstr("is in use by another process"));
  EXPECT_FALSE(std::filesystem::exists(path_ + ".pid"));
  // And it wasn't taken for a client.
  EXPECT_TRUE(sys::connect_unix(path_));
}

TEST_F(ListenerTest, ReplacesAStaleSocket) {
  { const auto dead = sys::bind_unix(path_); }
  std::ofstream(path_ + ".pid") << "1\n";
  auto listener = Listener::prepare({.path = path_});
  ASSERT_TRUE(listener) << listener.error().text();
  EXPECT_TRUE(listener->open());
  listener->remove();
  EXPECT_TRUE(directory_is_empty());
}

TEST_F(ListenerTest, LeavesAFileAloneThatIsNoSocket) {
  std::ofstream{path_} << "precious";
  EXPECT_THAT(failure_of({.path = path_}), HasSubstr("is not a socket"));
  EXPECT_TRUE(std::filesystem::is_regular_file(path_));
}

TEST_F(ListenerTest, DoesNotRemoveWhatTookItsPlace) {
  auto listener = Listener::prepare({.path = path_});
  ASSERT_TRUE(listener);
  ASSERT_TRUE(listener->open());
  std::filesystem::remove(path_);
  std::ofstream{path_} << "another";
  listener->remove();
  EXPECT_TRUE(std::filesystem::is_regular_file(path_));
}

TEST_F(ListenerTest, TakesThePathOverFromOneThatIsGone) {
  {
    auto first = Listener::prepare({.path = path_});
    ASSERT_TRUE(first);
    ASSERT_TRUE(first->open());
    auto next = Listener::prepare_to_take_over({.path = path_}, ::getpid());
    ASSERT_TRUE(next) << next.error().text();
    EXPECT_FALSE(next->take_over()) << "it is still there";
  }
  auto next = Listener::prepare_to_take_over({.path = path_}, ::getpid());
  ASSERT_TRUE(next) << next.error().text();
  ASSERT_TRUE(next->take_over());
  EXPECT_THAT(failure_of({.path = path_}), HasSubstr("in use by another virtiofsd"));
  next->remove();
  EXPECT_TRUE(directory_is_empty());
}

TEST_F(ListenerTest, TakesNoPathOverThatIsAnothers) {
  const auto failure = [&](pid_t pid) {
    auto next = Listener::prepare_to_take_over({.path = path_}, pid);
    return next ? "(accepted)" : next.error().text();
  };
  EXPECT_THAT(failure(::getpid()), HasSubstr("no virtiofsd has the socket path"));
  EXPECT_TRUE(directory_is_empty());
  auto first = Listener::prepare({.path = path_});
  ASSERT_TRUE(first);
  ASSERT_TRUE(first->open());
  EXPECT_THAT(failure(1), HasSubstr(std::to_string(::getpid())));
  // Without a path there is nothing to take.
  auto next = Listener::prepare_to_take_over({}, ::getpid());
  ASSERT_TRUE(next);
  EXPECT_TRUE(next->take_over());
  first->remove();
}

TEST_F(ListenerTest, SaysWhatIsWrongWithThePath) {
  EXPECT_THAT(failure_of({.path = "/tmp/" + std::string(120, 'x')}),
              HasSubstr("is 125 bytes long; the system allows 107"));
  EXPECT_THAT(failure_of({.path = directory_ + "/none/socket"}), HasSubstr("ENOENT"));
  EXPECT_THAT(failure_of({.path = path_, .group = "no-such-group-here"}),
              HasSubstr("there is no group \"no-such-group-here\""));
  EXPECT_TRUE(directory_is_empty());
}

TEST_F(ListenerTest, TakesADescriptorThatListensOrIsConnected) {
  auto listening = sys::bind_unix(path_);
  ASSERT_TRUE(listening);
  ASSERT_TRUE(sys::listen(*listening, 1));
  auto first = Listener::prepare({.fd = listening->release()});
  ASSERT_TRUE(first) << first.error().text();
  const auto client = sys::connect_unix(path_);
  EXPECT_TRUE(first->accept());

  auto pair = sys::unix_socket_pair();
  ASSERT_TRUE(pair);
  const int number = pair->first.release();
  auto second = Listener::prepare({.fd = number});
  ASSERT_TRUE(second) << second.error().text();
  const auto connection = second->accept();
  ASSERT_TRUE(connection);
  EXPECT_EQ(connection->number(), number);
}

TEST_F(ListenerTest, SaysWhatIsWrongWithADescriptor) {
  EXPECT_THAT(failure_of({.fd = 9999}), HasSubstr("--fd=9999 is not an open descriptor"));
  const UniqueFd file(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_THAT(failure_of({.fd = file.number()}), HasSubstr("is not a unix stream socket"));
  const UniqueFd datagram(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  EXPECT_THAT(failure_of({.fd = datagram.number()}), HasSubstr("is not a unix stream socket"));
  const UniqueFd idle(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_THAT(failure_of({.fd = idle.number()}), HasSubstr("neither listens nor is connected"));
}

TEST_F(ListenerTest, OneClientIsLetInAndTheDoorShut) {
  auto listener = Listener::prepare({.path = path_});
  ASSERT_TRUE(listener);
  // As in the daemon: the worker has its own copy of the socket.
  const int workers_copy = ::fcntl(listener->descriptor(), F_DUPFD_CLOEXEC, 0);
  ASSERT_TRUE(listener->open());
  auto worker = Listener::prepare({.fd = workers_copy});
  ASSERT_TRUE(worker) << worker.error().text();
  const auto client = sys::connect_unix(path_);
  ASSERT_TRUE(client);
  ASSERT_TRUE(worker->accept());
  EXPECT_EQ(sys::connect_unix(path_).error(), Errno{ECONNREFUSED});
  listener->remove();
}

TEST_F(ListenerTest, TheDoorStaysOpenIfItIsToBeKept) {
  auto listener = Listener::prepare({.path = path_, .keep = true});
  ASSERT_TRUE(listener);
  const int workers_copy = ::fcntl(listener->descriptor(), F_DUPFD_CLOEXEC, 0);
  ASSERT_TRUE(listener->open());
  auto worker = Listener::prepare({.fd = workers_copy, .keep = true});
  ASSERT_TRUE(worker) << worker.error().text();
  for (int clients = 0; clients < 3; ++clients) {
    const auto client = sys::connect_unix(path_);
    ASSERT_TRUE(client);
    ASSERT_TRUE(worker->accept());
  }
  listener->remove();
  const auto pair = sys::unix_socket_pair();
  ASSERT_TRUE(pair);
  EXPECT_THAT(failure_of({.fd = ::dup(pair->first.number()), .keep = true}),
              HasSubstr("needs a socket that listens"));
}

}  // namespace
}  // namespace virtiofsd
