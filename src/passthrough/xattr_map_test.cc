// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/xattr_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace virtiofsd {
namespace {

using ::testing::HasSubstr;

XattrMap parsed(std::string_view rules) {
  auto map = XattrMap::parse(rules);
  if (!map) {
    ADD_FAILURE() << map.error().text();
    std::abort();
  }
  return std::move(*map);
}

std::string refusal(std::string_view rules) {
  const auto map = XattrMap::parse(rules);
  EXPECT_FALSE(map) << rules << " was accepted";
  return map ? std::string{} : map.error().text();
}

// What the guest's name becomes on the host, or the error as "!name".
std::string host(const XattrMap& map, std::string_view name) {
  const auto mapped = map.to_server(name);
  if (mapped) return *mapped;
  if (mapped.error() == Errno{EPERM}) return "!EPERM";
  if (mapped.error() == Errno{ENOTSUP}) return "!ENOTSUP";
  return "!" + mapped.error().text();
}

std::string guest(const XattrMap& map, std::string_view name) {
  return map.to_client(name).value_or("!hidden");
}

TEST(XattrMap, PassesEveryNameThroughACatchAllOk) {
  const XattrMap map = parsed(":ok:all:::");

  EXPECT_EQ(host(map, "user.x"), "user.x");
  EXPECT_EQ(guest(map, "trusted.x"), "trusted.x");
}

TEST(XattrMap, BlocksAndHidesEveryNameWithACatchAllBad) {
  const XattrMap map = parsed(":bad:all:::");

  EXPECT_EQ(host(map, "user.x"), "!EPERM");
  EXPECT_EQ(guest(map, "user.x"), "!hidden");
}

TEST(XattrMap, PrefixesAllAndHidesTheHostsOwn) {
  const XattrMap map = parsed(":prefix:all::user.virtiofs.::bad:all:::");

  EXPECT_EQ(host(map, "trusted.a"), "user.virtiofs.trusted.a");
  EXPECT_EQ(host(map, "user.virtiofs.b"), "user.virtiofs.user.virtiofs.b");
  EXPECT_EQ(guest(map, "user.virtiofs.trusted.a"), "trusted.a");
  EXPECT_EQ(guest(map, "user.own"), "!hidden");
}

TEST(XattrMap, PrefixesOneNamespaceOverRulesOnSeveralLines) {
  const XattrMap map = parsed(
      "/prefix/all/trusted./user.virtiofs./\n"
      "  /bad/server//trusted./\n"
      "\t/bad/client/user.virtiofs.//\n"
      "  /ok/all///  \n");

  EXPECT_EQ(host(map, "trusted.a"), "user.virtiofs.trusted.a");
  EXPECT_EQ(host(map, "user.virtiofs.trusted.a"), "!EPERM");
  EXPECT_EQ(host(map, "user.a"), "user.a");
  EXPECT_EQ(guest(map, "user.virtiofs.trusted.a"), "trusted.a");
  EXPECT_EQ(guest(map, "trusted.host"), "!hidden");
  EXPECT_EQ(guest(map, "user.a"), "user.a");
}

TEST(XattrMap, HidesSecurityAndAllowsTheRest) {
  const XattrMap map = parsed("/bad/all/security./security./\n/ok/all///");

  EXPECT_EQ(host(map, "security.selinux"), "!EPERM");
  EXPECT_EQ(guest(map, "security.selinux"), "!hidden");
  EXPECT_EQ(host(map, "user.a"), "user.a");
  EXPECT_EQ(guest(map, "user.a"), "user.a");
}

TEST(XattrMap, TakesTheFirstRuleThatMatches) {
  const XattrMap ok_first = parsed(
      ":ok:client:user.::"
      ":prefix:client:user.:x.:"
      ":ok:all:::");
  const XattrMap prefix_first = parsed(
      ":prefix:client:user.:x.:"
      ":ok:client:user.::"
      ":ok:all:::");

  EXPECT_EQ(host(ok_first, "user.a"), "user.a");
  EXPECT_EQ(host(prefix_first, "user.a"), "x.user.a");
}

TEST(XattrMap, AClientRuleSaysNothingAboutTheServer) {
  const XattrMap map = parsed(
      ":bad:client:user.:user.:"
      ":ok:all:::");

  EXPECT_EQ(host(map, "user.a"), "!EPERM");
  EXPECT_EQ(guest(map, "user.a"), "user.a");
}

TEST(XattrMap, AServerRuleSaysNothingAboutTheClient) {
  const XattrMap map = parsed(
      ":bad:server:user.:user.:"
      ":ok:all:::");

  EXPECT_EQ(host(map, "user.a"), "user.a");
  EXPECT_EQ(guest(map, "user.a"), "!hidden");
}

TEST(XattrMap, AServerRuleMatchesPrependAndNotKey) {
  const XattrMap map = parsed(
      ":bad:all:trusted.:user.:"
      ":ok:all:::");

  EXPECT_EQ(guest(map, "trusted.a"), "trusted.a");
  EXPECT_EQ(guest(map, "user.a"), "!hidden");
  EXPECT_EQ(host(map, "trusted.a"), "!EPERM");
  EXPECT_EQ(host(map, "user.a"), "user.a");
}

TEST(XattrMap, AServerPrefixRuleStripsWithoutAClientRule) {
  const XattrMap map = parsed(
      ":prefix:server::user.virtiofs.:"
      ":ok:all:::");

  EXPECT_EQ(guest(map, "user.virtiofs.user.a"), "user.a");
  EXPECT_EQ(host(map, "user.a"), "user.a");
}

TEST(XattrMap, UnsupportedIsEnotsupToTheGuestAndHiddenFromIt) {
  const XattrMap map = parsed(
      ":unsupported:all:system.posix_acl:system.posix_acl:"
      ":ok:all:::");

  EXPECT_EQ(host(map, "system.posix_acl_access"), "!ENOTSUP");
  EXPECT_EQ(guest(map, "system.posix_acl_access"), "!hidden");
  EXPECT_EQ(host(map, "system.other"), "system.other");
}

TEST(XattrMap, MapWithoutAKeyKeepsEverythingUnderThePrefix) {
  const XattrMap map = parsed(":map::user.virtiofs.:");

  EXPECT_EQ(host(map, "security.selinux"), "user.virtiofs.security.selinux");
  EXPECT_EQ(guest(map, "user.virtiofs.security.selinux"), "security.selinux");
  EXPECT_EQ(guest(map, "security.selinux"), "!hidden");
}

TEST(XattrMap, MapWithAKeySeparatesBothSidesAndPassesTheRest) {
  const XattrMap map = parsed("/map/trusted./user.virtiofs./ \n");

  EXPECT_EQ(host(map, "trusted.a"), "user.virtiofs.trusted.a");
  EXPECT_EQ(host(map, "user.virtiofs.trusted.a"), "!EPERM");
  EXPECT_EQ(host(map, "user.a"), "user.a");
  EXPECT_EQ(guest(map, "user.virtiofs.trusted.a"), "trusted.a");
  EXPECT_EQ(guest(map, "trusted.host"), "!hidden");
  EXPECT_EQ(guest(map, "user.a"), "user.a");
}

TEST(XattrMap, MapMayFollowOtherRules) {
  const XattrMap map = parsed(
      ":ok:all:user.:user.:"
      ":map::user.virtiofs.:");

  EXPECT_EQ(host(map, "user.a"), "user.a");
  EXPECT_EQ(host(map, "trusted.a"), "user.virtiofs.trusted.a");
}

TEST(XattrMap, EachRuleMayHaveItsOwnSeparator) {
  const XattrMap map = parsed(
      "|prefix|client|a:b|c/d|"
      "/ok/all///");

  EXPECT_EQ(host(map, "a:b.x"), "c/da:b.x");
}

TEST(XattrMap, ABarePrefixOnTheHostIsHidden) {
  const XattrMap map = parsed(":map::user.virtiofs.:");

  EXPECT_EQ(guest(map, "user.virtiofs."), "!hidden");
}

TEST(XattrMap, AnEmptyNameFromTheGuestIsRefused) {
  const XattrMap map = parsed(":map::user.virtiofs.:");

  EXPECT_EQ(map.to_server("").error(), Errno{ERANGE});
}

TEST(XattrMap, AKeyMatchesOnlyAtTheBeginning) {
  const XattrMap map = parsed(
      ":bad:client:user.::"
      ":ok:all:::");

  EXPECT_EQ(host(map, "trusted.user.a"), "trusted.user.a");
  EXPECT_EQ(host(map, "user"), "user");
}

TEST(XattrMap, SaysWhenTheCapabilityIsRenamed) {
  const XattrMap map = parsed(":map::user.virtiofs.:");

  EXPECT_TRUE(map.renames_capability());
  EXPECT_EQ(map.capability_name(), "user.virtiofs.security.capability");
}

TEST(XattrMap, SaysWhenTheCapabilityKeepsItsName) {
  const XattrMap map = parsed(":map:trusted.:user.virtiofs.:");

  EXPECT_FALSE(map.renames_capability());
  EXPECT_EQ(map.capability_name(), "security.capability");
}

TEST(XattrMap, ABlockedCapabilityHasNoNameToRemove) {
  const XattrMap map = parsed(
      ":bad:all:security.:security.:"
      ":ok:all:::");

  EXPECT_FALSE(map.renames_capability());
  EXPECT_EQ(map.capability_name(), "");
}

TEST(XattrMap, APrefixRuleWithAnEmptyPrependRenamesNothing) {
  const XattrMap map = parsed(":prefix:all:::");

  EXPECT_EQ(host(map, "user.a"), "user.a");
  EXPECT_EQ(guest(map, "user.a"), "user.a");
  EXPECT_FALSE(map.renames_capability());
}

TEST(XattrMap, EachDirectionMayHaveItsOwnCatchAll) {
  const XattrMap map = parsed(
      ":ok:client:::"
      ":bad:server:::");

  EXPECT_EQ(host(map, "user.a"), "user.a");
  EXPECT_EQ(guest(map, "user.a"), "!hidden");
}

TEST(XattrMapParse, RefusesAMapWithoutRules) {
  EXPECT_THAT(refusal(""), HasSubstr("no rules"));
  EXPECT_THAT(refusal(" \n\t"), HasSubstr("no rules"));
}

TEST(XattrMapParse, RefusesAMapWithoutACatchAll) {
  EXPECT_THAT(refusal(":ok:all:user.:user.:"), HasSubstr("either side"));
  EXPECT_THAT(refusal(":ok:client:::"), HasSubstr("every name from the host"));
  EXPECT_THAT(refusal(":ok:server:::"), HasSubstr("every name from the guest"));
  EXPECT_THAT(refusal(":prefix:all::user.virtiofs.:"), HasSubstr("every name from the host"));
}

TEST(XattrMapParse, NamesAnUnknownTypeAndItsPlace) {
  EXPECT_THAT(refusal(":ok:client:user.::\n:okay:all:::"),
              HasSubstr("rule 2, character 21: the type is 'okay'"));
}

TEST(XattrMapParse, NamesAnUnknownScopeAndItsPlace) {
  EXPECT_THAT(refusal(":ok:both:::"), HasSubstr("rule 1, character 5: the scope is 'both'"));
  EXPECT_THAT(refusal(":ok::::"), HasSubstr("the scope is ''"));
}

TEST(XattrMapParse, NamesTheFieldThatIsNotEnded) {
  EXPECT_THAT(refusal(":ok"), HasSubstr("the type has no ':' at its end"));
  EXPECT_THAT(refusal(":ok:all"), HasSubstr("the scope has no ':' at its end"));
  EXPECT_THAT(refusal(":ok:all:user."), HasSubstr("the key has no ':' at its end"));
  EXPECT_THAT(refusal(":ok:all:user.:user."), HasSubstr("the prepend has no ':' at its end"));
  EXPECT_THAT(refusal(":map:user."), HasSubstr("the key has no ':' at its end"));
  EXPECT_THAT(refusal(":map:user.:x."), HasSubstr("the prepend has no ':' at its end"));
  EXPECT_THAT(refusal(":"), HasSubstr("the type has no ':' at its end"));
}

TEST(XattrMapParse, NamesTheSeparatorOfARuleThatForgotIt) {
  EXPECT_THAT(refusal("ok:all:::"), HasSubstr("here 'o' at character 1"));
}

TEST(XattrMapParse, RefusesARuleBehindMap) {
  EXPECT_THAT(refusal(":map::user.virtiofs.::ok:all:::"),
              HasSubstr("rule 1, character 22: a 'map' rule must be the last one"));
  EXPECT_THAT(refusal(":map::a.:"
                      ":map::b.:"),
              HasSubstr("must be the last one"));
}

TEST(XattrMapParse, SpaceInsideARuleBelongsToItsFields) {
  EXPECT_THAT(refusal(": ok:all:::"), HasSubstr("the type is ' ok'"));
}

TEST(XattrMapParse, ShowsControlCharactersReadably) {
  EXPECT_THAT(refusal(":o\nk:all:::"), HasSubstr("'o\\x0ak'"));
}

TEST(XattrMapParse, TakesALongListOfRules) {
  std::string rules;
  for (int i = 0; i < 1000; ++i) rules += ":bad:client:user." + std::to_string(i) + ".::\n";
  const XattrMap map = parsed(rules + ":ok:all:::");

  EXPECT_EQ(host(map, "user.999.x"), "!EPERM");
  EXPECT_EQ(host(map, "user.1000.x"), "user.1000.x");
}

}  // namespace
}  // namespace virtiofsd
