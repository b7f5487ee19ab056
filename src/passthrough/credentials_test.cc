// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/credentials.h"

#include <linux/capability.h>

#include <thread>

#include "passthrough/passthrough_fixture.h"
#include "sys/files.h"

namespace virtiofsd {
namespace {

constexpr std::uint64_t bit(int capability) {
  return std::uint64_t{1} << capability;
}

std::uint64_t effective() {
  return sys::capabilities()->effective;
}

fuse::Caller caller(std::uint32_t uid, std::uint32_t gid) {
  return {.uid = uid, .gid = gid, .pid = 1, .supplementary_group = {}};
}

class Credentials : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    prepare_thread_credentials();
    before_ = effective();
  }
  void expect_self() const {
    EXPECT_EQ(sys::fs_uid(), 0U);
    EXPECT_EQ(sys::fs_gid(), 0U);
    EXPECT_EQ(::getgroups(0, nullptr), 0);
    EXPECT_EQ(effective(), before_);
  }
  std::uint64_t before_ = 0;
};

TEST_F(Credentials, AreTheCallersAndThenOursAgain) {
  {
    ScopedCredentials credentials;
    auto who = caller(1000, 1001);
    who.supplementary_group = 1002;
    ASSERT_TRUE(credentials.assume(who, ScopedCredentials::Override::kNone));
    EXPECT_EQ(sys::fs_uid(), 1000U);
    EXPECT_EQ(sys::fs_gid(), 1001U);
    gid_t group = 0;
    ASSERT_EQ(::getgroups(1, &group), 1);
    EXPECT_EQ(group, 1002U);
    EXPECT_EQ(effective() & (bit(CAP_DAC_OVERRIDE) | bit(CAP_FSETID) | bit(CAP_CHOWN)), 0U);
  }
  expect_self();
}

TEST_F(Credentials, KeepOnlyTheOverrideOfPermissionsWhereGroupsAreUnknown) {
  {
    ScopedCredentials credentials;
    ASSERT_TRUE(credentials.assume(caller(1000, 1000), ScopedCredentials::Override::kDac));
    EXPECT_NE(effective() & bit(CAP_DAC_OVERRIDE), 0U);
    EXPECT_EQ(effective() & (bit(CAP_FSETID) | bit(CAP_FOWNER)), 0U);
  }
  expect_self();
}

TEST_F(Credentials, AreRefusedForIdsTheGuestDidNotSend) {
  ScopedCredentials no_uid;
  EXPECT_EQ(no_uid.assume(caller(~0U, 5), ScopedCredentials::Override::kNone).error(),
            Errno{EINVAL});
  ScopedCredentials no_gid;
  EXPECT_EQ(no_gid.assume(caller(5, ~0U), ScopedCredentials::Override::kNone).error(),
            Errno{EINVAL});
  expect_self();
}

TEST_F(Credentials, ComeBackAfterAGroupTheKernelRefuses) {
  {
    ScopedCredentials credentials;
    auto who = caller(1000, 1000);
    who.supplementary_group = ~0U;
    EXPECT_FALSE(credentials.assume(who, ScopedCredentials::Override::kNone));
  }
  expect_self();
}

TEST_F(Credentials, WithoutFsetidInsideAndOut) {
  if ((before_ & bit(CAP_FSETID)) == 0) GTEST_SKIP() << "needs CAP_FSETID";
  {
    ScopedWithoutFsetid killing;
    ASSERT_TRUE(killing.drop(1234));
    EXPECT_EQ(effective(), before_ & ~bit(CAP_FSETID));
    {
      ScopedCredentials credentials;
      ASSERT_TRUE(credentials.assume(caller(1000, 1000), ScopedCredentials::Override::kNone));
    }
    EXPECT_EQ(effective(), before_ & ~bit(CAP_FSETID));
  }
  expect_self();
}

// A daemon without the capability is still in a group, which must not be taken for the caller's.
TEST_F(Credentials, WithoutFsetidFromTheStart) {
  std::thread([] {
    auto capabilities = *sys::capabilities();
    capabilities.effective &= ~bit(CAP_FSETID);
    ASSERT_TRUE(sys::set_capabilities(capabilities));
    const std::uint64_t before = effective();
    prepare_thread_credentials();
    {
      ScopedWithoutFsetid killing;
      ASSERT_TRUE(killing.drop(1234));
      EXPECT_EQ(sys::fs_gid(), 1234U);
      EXPECT_EQ(effective(), before);
    }
    EXPECT_EQ(sys::fs_gid(), 0U);
    EXPECT_EQ(effective(), before);
  }).join();
}

}  // namespace
}  // namespace virtiofsd
