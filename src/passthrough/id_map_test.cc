// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/id_map.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <initializer_list>

#include "passthrough/passthrough_fixture.h"

namespace virtiofsd {
namespace {

IdMap map_of(std::initializer_list<std::string_view> rules) {
  IdMap map;
  for (const std::string_view rule : rules) {
    const auto added = map.add(rule);
    EXPECT_TRUE(added) << rule << ": " << added.error().text();
  }
  return map;
}

TEST(IdMap, LeavesAloneWhatNoRuleNames) {
  const IdMap map = map_of({"map:10:110:5"});
  for (const std::uint32_t id : {0U, 9U, 15U, 0xffff'fffeU, 0xffff'ffffU}) {
    EXPECT_EQ(*map.to_host(id), id);
  }
  EXPECT_EQ(map.to_guest(109), 109U);
  EXPECT_EQ(map.to_guest(115), 115U);
  EXPECT_TRUE(IdMap{}.empty());
  EXPECT_FALSE(map.empty());
}

TEST(IdMap, MapsBothWays) {
  const IdMap map = map_of({"map:10:110:5"});
  EXPECT_EQ(*map.to_host(10), 110U);
  EXPECT_EQ(*map.to_host(14), 114U);
  EXPECT_EQ(map.to_guest(110), 10U);
  EXPECT_EQ(map.to_guest(114), 14U);
}

TEST(IdMap, MapsOneWayOnly) {
  const IdMap map = map_of({"guest:0:1000:1", "host:1000:7:2"});
  EXPECT_EQ(*map.to_host(0), 1000U);
  EXPECT_EQ(map.to_guest(1000), 7U);
  EXPECT_EQ(map.to_guest(1001), 8U);
  EXPECT_EQ(*map.to_host(7), 7U);
}

TEST(IdMap, SquashesManyToOne) {
  const IdMap map = map_of({"squash-guest:0:1000:4294967295", "squash-host:5:65534:10"});
  EXPECT_EQ(*map.to_host(0), 1000U);
  EXPECT_EQ(*map.to_host(0xffff'fffe), 1000U);
  EXPECT_EQ(*map.to_host(0xffff'ffff), 0xffff'ffffU);
  EXPECT_EQ(map.to_guest(5), 65534U);
  EXPECT_EQ(map.to_guest(14), 65534U);
  EXPECT_EQ(map.to_guest(15), 15U);
}

TEST(IdMap, ForbidsWhatTheGuestMayNotUse) {
  const IdMap map =
      map_of({"forbid-guest:0:1000", "map:1000:1000:1", "forbid-guest:1001:4294966294"});
  EXPECT_EQ(map.to_host(0).error(), Errno{EPERM});
  EXPECT_EQ(map.to_host(999).error(), Errno{EPERM});
  EXPECT_EQ(*map.to_host(1000), 1000U);
  EXPECT_EQ(map.to_host(0xffff'fffe).error(), Errno{EPERM});
  // What is on the host is shown all the same.
  EXPECT_EQ(map.to_guest(0), 0U);
}

TEST(IdMap, RefusesRulesThatAreNone) {
  for (const char* rule : {"",
                           "map",
                           "map:",
                           "map:1",
                           "map:1:2",
                           "map:1:2:",
                           "map:1:2:3:4",
                           "map:a:2:3",
                           "map:-1:2:3",
                           "map:1:2:0",
                           "other:1:2:3",
                           "MAP:1:2:3",
                           "forbid-guest:1",
                           "forbid-guest:1:2:3",
                           "forbid-guest:1:0",
                           "map:4294967295:0:1",
                           "map:0:4294967295:1",
                           "map:4294967290:0:6",
                           "guest:0:4294967290:6",
                           "squash-guest:0:4294967295:1",
                           "map:1:2:4294967296",
                           "map: 1:2:3"}) {
    IdMap map;
    EXPECT_FALSE(map.add(rule)) << rule;
    EXPECT_TRUE(map.empty()) << rule;
  }
}

TEST(IdMap, RefusesIdsThatAreInTwoRules) {
  IdMap map = map_of({"map:10:110:5"});
  EXPECT_FALSE(map.add("guest:14:0:1"));
  EXPECT_FALSE(map.add("forbid-guest:0:11"));
  EXPECT_FALSE(map.add("host:110:0:1"));
  EXPECT_FALSE(map.add("map:20:114:1"));
  EXPECT_TRUE(map.add("map:15:115:1"));
  EXPECT_EQ(*map.to_host(20), 20U) << "a refused rule left something behind";
}

class TranslatedIds : public PassthroughTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    settings_.uid_map = map_of({"map:0:100000:1000", "forbid-guest:2000:1"});
    settings_.gid_map = map_of({"map:0:200000:1000", "forbid-guest:2000:1"});
  }
};

TEST_F(TranslatedIds, WhatTheGuestMakesIsTheHostsIdsAndIsShownAsTheGuests) {
  auto c = call(NodeId{1}, 7, 8);
  const auto made = fs().mkdir(c, name("dir"), {.mode = 0755, .umask = 0});
  ASSERT_TRUE(made) << made.error().text();
  EXPECT_EQ(host("dir").st_uid, 100007U);
  EXPECT_EQ(host("dir").st_gid, 200008U);
  EXPECT_EQ(made->attr.uid, 7U);
  EXPECT_EQ(made->attr.gid, 8U);
}

TEST_F(TranslatedIds, ChownGoesThroughTheMap) {
  write_file("file", "x");
  auto c = call(lookup("file"));
  fuse_setattr_in in{};
  in.valid = FATTR_UID | FATTR_GID;
  in.uid = 1;
  in.gid = 2;
  const auto changed = fs().setattr(c, in);
  ASSERT_TRUE(changed) << changed.error().text();
  EXPECT_EQ(host("file").st_uid, 100001U);
  EXPECT_EQ(host("file").st_gid, 200002U);
  EXPECT_EQ(changed->attr.uid, 1U);
  EXPECT_EQ(changed->attr.gid, 2U);
  const auto seen = fs().statx(c, {});
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->stat.uid, 1U);
  EXPECT_EQ(seen->stat.gid, 2U);
}

TEST_F(TranslatedIds, ForbiddenIdsMakeAndOwnNothing) {
  write_file("file", "x");
  auto by_user = call(NodeId{1}, 2000, 1);
  auto by_group = call(NodeId{1}, 1, 2000);
  EXPECT_EQ(fs().mkdir(by_user, name("a"), {.mode = 0755, .umask = 0}).error(), Errno{EPERM});
  EXPECT_EQ(fs().mkdir(by_group, name("a"), {.mode = 0755, .umask = 0}).error(), Errno{EPERM});
  auto c = call(lookup("file"));
  fuse_setattr_in in{};
  in.valid = FATTR_UID;
  in.uid = 2000;
  EXPECT_EQ(fs().setattr(c, in).error(), Errno{EPERM});
  in.valid = FATTR_GID;
  in.gid = 2000;
  EXPECT_EQ(fs().setattr(c, in).error(), Errno{EPERM});
  EXPECT_EQ(host("file").st_uid, 0U);
}

}  // namespace
}  // namespace virtiofsd
