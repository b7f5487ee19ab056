// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/handover.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <future>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sys/sockets.h"

namespace virtiofsd::handover {
namespace {

using testing::HasSubstr;

ino_t inode_of(FdRef fd) {
  struct stat st {};
  EXPECT_EQ(::fstat(fd.number(), &st), 0);
  return st.st_ino;
}
UniqueFd file() {
  return UniqueFd{::memfd_create("file", MFD_CLOEXEC)};
}
std::string directory() {
  if (::geteuid() == 0) return "/run/virtiofsd-take-over";
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  return runtime != nullptr ? std::string(runtime) + "/virtiofsd-take-over" : "";
}
std::string address() {
  return directory() + "/" + std::to_string(::getpid());
}

class HandoverTest : public testing::Test {
 protected:
  void SetUp() override {
    auto door = Door::open();
    if (!door && ::geteuid() != 0) GTEST_SKIP() << door.error().text();
    ASSERT_TRUE(door) << door.error().text();
    kept_ = std::move(*door);
    door_ = kept_->socket;
  }
  void TearDown() override {
    if (kept_) kept_->remove();
  }
  // Whatever it does in the meantime, as another process would.
  template <typename F>
  static auto meanwhile(F does) {
    return std::async(std::launch::async, std::move(does));
  }

  std::optional<Door> kept_;
  FdRef door_;
};

TEST_F(HandoverTest, EveryDescriptorComesWithItsNumber) {
  std::vector<UniqueFd> files;
  std::vector<int> numbers;
  for (int i = 0; i < 1000; ++i) {
    files.push_back(file());
    numbers.push_back(files.back().number());
  }
  auto old = meanwhile([&]() -> std::string {
    auto heir = Heir::meet(door_);
    if (!heir) return heir.error().text();
    if (auto offered = heir->offer(files[3], files[4], files[5]); !offered)
      return offered.error().text();
    if (auto wish = heir->hear_wish(); !wish) return wish.error().text();
    if (auto given = heir->give(numbers); !given) return given.error().text();
    return heir->let_go() ? "done" : "gone";
  });
  auto predecessor = Predecessor::find(::getpid());
  ASSERT_TRUE(predecessor) << predecessor.error().text();
  const auto offered = predecessor->ask();
  ASSERT_TRUE(offered) << offered.error().text();
  EXPECT_EQ(inode_of(offered->arena), inode_of(files[3]));
  EXPECT_EQ(inode_of(offered->root), inode_of(files[4]));
  EXPECT_EQ(inode_of(offered->mount_namespace), inode_of(files[5]));
  const auto taken = predecessor->take();
  ASSERT_TRUE(taken) << taken.error().text();
  ASSERT_EQ(taken->size(), files.size());
  for (const UniqueFd& one : files) {
    ASSERT_TRUE(taken->contains(one.number()));
    EXPECT_EQ(inode_of(taken->at(one.number())), inode_of(one));
  }
  const auto finished = predecessor->finish();
  EXPECT_TRUE(finished) << finished.error().text();
  EXPECT_EQ(old.get(), "done");
}

TEST_F(HandoverTest, ARefusalSaysWhy) {
  auto old = meanwhile([&] {
    auto heir = Heir::meet(door_);
    if (heir) heir->refuse("it is Sunday" + std::string(1000, '.'));
  });
  auto predecessor = Predecessor::find(::getpid());
  ASSERT_TRUE(predecessor);
  const auto offered = predecessor->ask();
  ASSERT_FALSE(offered);
  EXPECT_THAT(offered.error().text(), HasSubstr("it is Sunday"));
  old.get();
}

TEST_F(HandoverTest, OneThatGoesAwayIsNoticedAtEveryStep) {
  const UniqueFd some = file();
  const std::vector<int> numbers{some.number()};
  for (int steps = 0; steps < 3; ++steps) {
    auto old = meanwhile([&]() -> std::string {
      auto heir = Heir::meet(door_);
      if (!heir) return "met nobody";
      if (!heir->offer(some, some, some) || !heir->hear_wish()) return "offered to nobody";
      if (!heir->give(numbers)) return "given to nobody";
      return heir->let_go() ? "done" : "gone";
    });
    auto predecessor = Predecessor::find(::getpid());
    ASSERT_TRUE(predecessor);
    if (steps >= 1) {
      EXPECT_TRUE(predecessor->ask());
    }
    if (steps >= 2) {
      EXPECT_TRUE(predecessor->take());
    }
    predecessor->close();
    EXPECT_EQ(old.get(), steps <= 1 ? "offered to nobody" : "given to nobody");
  }
}

TEST_F(HandoverTest, AnOldOneThatGoesAwayIsNoticed) {
  auto old = meanwhile([&] {
    auto heir = Heir::meet(door_);
    if (heir && heir->offer(door_, door_, door_)) (void)heir->hear_wish();
  });
  auto predecessor = Predecessor::find(::getpid());
  ASSERT_TRUE(predecessor);
  ASSERT_TRUE(predecessor->ask());
  const auto taken = predecessor->take();
  EXPECT_FALSE(taken);
  old.get();
}

TEST_F(HandoverTest, NoDescriptorsForEverAreNotWaitedFor) {
  auto old = meanwhile([&] {
    auto socket = sys::accept(door_);
    if (!socket) return;
    std::vector<UniqueFd> fds;
    std::array<std::uint32_t, 99> message{};  // version, word, count
    const auto say = [&](std::uint32_t word, std::span<const FdRef> with = {}) {
      message = {1, word, 0};
      (void)sys::wait_for(*socket, POLLIN);
      std::array<std::byte, 1000> heard;
      (void)sys::receive(*socket, heard, fds);
      (void)sys::send(*socket, std::as_bytes(std::span{message}), with);
    };
    const std::array offered{door_, door_, door_};
    say(2, offered);
    say(5);  // some, and none
    (void)sys::wait_for(*socket, POLLIN);
  });
  auto predecessor = Predecessor::find(::getpid());
  ASSERT_TRUE(predecessor && predecessor->ask());
  const auto before = std::chrono::steady_clock::now();
  const auto taken = predecessor->take();
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(20));
  ASSERT_FALSE(taken);
  EXPECT_THAT(taken.error().text(), HasSubstr("something else than it should"));
  predecessor->close();
  old.get();
}

TEST_F(HandoverTest, WhatIsNoMessageIsNotFollowed) {
  for (const std::string& rubbish : {std::string("hello"), std::string(428, '\0'),
                                     std::string(428, '\xff'), std::string(5000, '\1')}) {
    auto socket = sys::connect_for_packets(address());
    ASSERT_TRUE(socket);
    ASSERT_TRUE(sys::send(*socket, std::as_bytes(std::span{rubbish}), {}));
    EXPECT_FALSE(Heir::meet(door_));
  }
  // And the other way round.
  auto old = meanwhile([&] {
    auto socket = sys::accept(door_);
    if (!socket) return;
    std::vector<UniqueFd> fds;
    std::vector<std::byte> hello(1000);
    (void)sys::wait_for(*socket, POLLIN);
    (void)sys::receive(*socket, hello, fds);
    const std::string rubbish(428, '\7');
    (void)sys::send(*socket, std::as_bytes(std::span{rubbish}), {});
  });
  auto predecessor = Predecessor::find(::getpid());
  ASSERT_TRUE(predecessor);
  const auto offered = predecessor->ask();
  ASSERT_FALSE(offered);
  EXPECT_THAT(offered.error().text(), HasSubstr("in another way"));
  old.get();
}

TEST_F(HandoverTest, NobodyIsFoundWhereNobodyIs) {
  const auto predecessor = Predecessor::find(1);
  ASSERT_FALSE(predecessor);
  EXPECT_THAT(predecessor.error().text(), HasSubstr("--take-over=1"));
}

TEST_F(HandoverTest, AnImpostorIsNotBelieved) {
  // A process that listens in another one's name.
  const pid_t other = ::getppid();
  const std::string path = directory() + "/" + std::to_string(other);
  ::unlink(path.c_str());
  const auto false_door = sys::listen_for_packets(path);
  ASSERT_TRUE(false_door);
  const auto predecessor = Predecessor::find(other);
  ASSERT_FALSE(predecessor);
  EXPECT_THAT(predecessor.error().text(), HasSubstr("another process answers"));
  ::unlink(path.c_str());
}

TEST_F(HandoverTest, DoorsOfTheDeadAreRemoved) {
  const pid_t dead = ::fork();
  if (dead == 0) ::_exit(Door::open() ? 0 : 1);  // and has no time to remove it
  ASSERT_EQ(::waitpid(dead, nullptr, 0), dead);
  const std::string path = directory() + "/" + std::to_string(dead);
  ASSERT_EQ(::access(path.c_str(), F_OK), 0);
  const pid_t next = ::fork();
  if (next == 0) {
    auto door = Door::open();
    if (door) door->remove();
    ::_exit(door ? 0 : 1);
  }
  ASSERT_EQ(::waitpid(next, nullptr, 0), next);
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
  EXPECT_EQ(::access(address().c_str(), F_OK), 0) << "ours stays";
}

TEST_F(HandoverTest, TheDoorIsForThisUserOnly) {
  struct stat st {};
  ASSERT_EQ(::stat(directory().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700U);
  EXPECT_EQ(st.st_uid, ::geteuid());
  ASSERT_EQ(::stat(address().c_str(), &st), 0);
  kept_->remove();
  EXPECT_NE(::stat(address().c_str(), &st), 0);
}

}  // namespace
}  // namespace virtiofsd::handover
