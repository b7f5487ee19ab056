// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/device_estate.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <string>
#include <utility>

#include "daemon/device_journal.h"
#include "state/plan.h"

namespace virtiofsd {
namespace {

using testing::HasSubstr;

constexpr auto kPlan = arena_plan(10);

// A tree's: the file system has one descriptor.
struct Tree {
  explicit Tree(const std::string& told = "cache=auto\ntag=x\n")
      : estate(arena, kPlan, file_system(), told) {}
  DeviceEstate::FileSystem file_system() {
    return {.descriptors_kept_in =
                [this](const Arena&) {
                  return std::vector<int>{node, -1};
                },
            .renumber_descriptors =
                [this](const Arena&, const std::function<int(int)>& number_of) {
                  renumbered = number_of(node);
                }};
  }
  SessionRecord& record() { return session_record(*arena); }

  int node = 70;
  int renumbered = -2;
  std::shared_ptr<Arena> arena = *Arena::create(kPlan);
  DeviceEstate estate;
};

UniqueFd again(FdRef fd) {
  return UniqueFd{::fcntl(fd.number(), F_DUPFD_CLOEXEC, 0)};
}

TEST(DeviceEstate, IsWorthSomethingBetweenMessagesOnly) {
  Tree tree;
  EXPECT_FALSE(tree.estate.has_client());
  EXPECT_THAT(tree.estate.against_succession(), HasSubstr("no VMM"));
  tree.record().conversation = SessionRecord::kInMessage;
  EXPECT_TRUE(tree.estate.has_client());
  EXPECT_THAT(tree.estate.against_succession(), HasSubstr("half done"));
  tree.record().conversation = SessionRecord::kBetweenMessages;
  EXPECT_EQ(tree.estate.against_succession(), nullptr);
}

TEST(DeviceEstate, GoesOnWithADescriptorOfEachRecord) {
  Tree tree;
  tree.record().socket = 71;
  std::vector<int> kept = tree.estate.inherits();
  std::erase(kept, -1);
  EXPECT_THAT(kept, testing::UnorderedElementsAre(70, 71));
}

TEST(DeviceEstate, IsAdoptedWithOtherNumbers) {
  Tree before;
  before.record().socket = 71;
  before.record().conversation = SessionRecord::kBetweenMessages;
  before.record().agreed_features = 42;
  Tree after;
  const auto considered = after.estate.consider(again(before.estate.memory()));
  ASSERT_TRUE(considered) << considered.error().text();
  std::unordered_map<int, UniqueFd> descriptors;
  descriptors.emplace(70, UniqueFd{::eventfd(0, EFD_CLOEXEC)});
  descriptors.emplace(71, UniqueFd{::eventfd(0, EFD_CLOEXEC)});
  const int node = descriptors[70].number();
  const int socket = descriptors[71].number();
  ASSERT_TRUE(after.estate.adopt(std::move(descriptors)));
  EXPECT_EQ(after.renumbered, node);
  EXPECT_EQ(after.record().socket, socket);
  EXPECT_EQ(after.record().agreed_features, 42U);
  EXPECT_FALSE(after.estate.has_client()) << "until a worker is ready";
  // The one before can go on itself.
  EXPECT_EQ(before.record().socket, 71);
  EXPECT_EQ(before.estate.against_succession(), nullptr);
  ::close(node);
  ::close(socket);
}

TEST(DeviceEstate, OfAProgramWithOtherPromisesOrRecordsIsRefused) {
  const auto failure = [](UniqueFd memory) {
    Tree after;
    const auto considered = after.estate.consider(std::move(memory));
    return considered ? "(accepted)" : considered.error().text();
  };
  Tree before("cache=none\nmore=1\ntag=x\n");
  EXPECT_THAT(failure(again(before.estate.memory())), HasSubstr(": cache=none, more=1"));
  constexpr std::array<SectionPlan, 1> other = {SectionPlan{SectionKind::kSession, 100, 1}};
  const auto arena = *Arena::create(other);
  EXPECT_THAT(failure(again(arena->fd())), HasSubstr("this version can't read"));
  EXPECT_THAT(failure(UniqueFd{::eventfd(0, EFD_CLOEXEC)}), HasSubstr("this version can't read"));
  // Without an end to what was told.
  Tree endless;
  endless.record().told.fill('x');
  EXPECT_THAT(failure(again(endless.estate.memory())), HasSubstr("xxx"));
}

}  // namespace
}  // namespace virtiofsd
