// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/negotiation.h"

#include <gtest/gtest.h>

namespace virtiofsd::fuse {
namespace {

// A guest that offers `flags`.
fuse_init_in guest(std::uint64_t flags) {
  fuse_init_in in{};
  in.major = 7;
  in.minor = 40;
  in.max_readahead = 131072;
  in.flags = static_cast<std::uint32_t>(flags);
  in.flags2 = static_cast<std::uint32_t>(flags >> 32);
  return in;
}

Negotiated settle(std::uint64_t flags, const Offer& offer = {}) {
  auto session = negotiate(guest(flags), offer);
  EXPECT_TRUE(session);
  return *session;
}

constexpr std::uint64_t kEverything = ~0ULL;

TEST(Negotiation, AnswersTheLowerOfTheTwoMinorVersions) {
  EXPECT_EQ(settle(0).minor, 40U);
  fuse_init_in newer = guest(0);
  newer.minor = 99;
  EXPECT_EQ(negotiate(newer, {})->minor, kMinor);
}

TEST(Negotiation, RefusesAVersionBefore727) {
  fuse_init_in old = guest(0);
  old.minor = 26;
  EXPECT_EQ(negotiate(old, {}).error(), Errno{EPROTO});
  old.minor = 27;
  EXPECT_TRUE(negotiate(old, {}));
  old.major = 6;
  EXPECT_EQ(negotiate(old, {}).error(), Errno{EPROTO});
}

TEST(Negotiation, AnswersALaterMajorWithOursAndNothingElse) {
  fuse_init_in later = guest(kEverything);
  later.major = 8;
  const auto session = negotiate(later, {});
  ASSERT_TRUE(session);
  EXPECT_EQ(session->major, 7U);
  EXPECT_EQ(session->flags, 0U);
  EXPECT_EQ(session->max_write, 0U);
}

TEST(Negotiation, NeverSetsWhatTheGuestDidNotOffer) {
  Offer offer;
  offer.flock = offer.writeback = offer.submounts = offer.direct_io_mmap = true;
  offer.posix_acl = offer.security_label = offer.killpriv_v2 = Wish::kOn;
  EXPECT_EQ(settle(0, offer).flags, 0U);
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t offered = (1ULL << bit) | FUSE_INIT_EXT;
    EXPECT_EQ(settle(offered, offer).flags & ~offered, 0U) << bit;
  }
}

TEST(Negotiation, SetsByDefaultWhatWeCanDo) {
  const Negotiated session = settle(kEverything);
  EXPECT_EQ(session.flags, FUSE_ASYNC_READ | FUSE_POSIX_LOCKS | FUSE_ATOMIC_O_TRUNC |
                               FUSE_EXPORT_SUPPORT | FUSE_BIG_WRITES | FUSE_HAS_IOCTL_DIR |
                               FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
                               FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |
                               FUSE_CACHE_SYMLINKS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_INIT_EXT |
                               FUSE_CREATE_SUPP_GROUP | FUSE_ALLOW_IDMAP);
}

TEST(Negotiation, FollowsEachOption) {
  Offer offer;
  offer.posix_locks = offer.readdirplus = offer.symlink_cache = offer.idmapped_mounts = false;
  offer.killpriv_v2 = Wish::kOff;
  offer.flock = offer.writeback = offer.submounts = offer.direct_io_mmap = true;
  const Negotiated session = settle(kEverything, offer);
  for (const std::uint64_t off :
       {std::uint64_t{FUSE_POSIX_LOCKS}, std::uint64_t{FUSE_DO_READDIRPLUS},
        std::uint64_t{FUSE_READDIRPLUS_AUTO}, std::uint64_t{FUSE_CACHE_SYMLINKS},
        std::uint64_t{FUSE_HANDLE_KILLPRIV_V2}, std::uint64_t{FUSE_ALLOW_IDMAP},
        std::uint64_t{FUSE_POSIX_ACL}, std::uint64_t{FUSE_SECURITY_CTX}})
    EXPECT_FALSE(session.has(off)) << std::hex << off;
  for (const std::uint64_t on :
       {std::uint64_t{FUSE_FLOCK_LOCKS}, std::uint64_t{FUSE_WRITEBACK_CACHE},
        std::uint64_t{FUSE_SUBMOUNTS}, std::uint64_t{FUSE_DIRECT_IO_ALLOW_MMAP}})
    EXPECT_TRUE(session.has(on)) << std::hex << on;
}

TEST(Negotiation, UsesExplicitInvalidationInsteadOfAutomatic) {
  Offer offer;
  offer.automatic_invalidation = false;
  const Negotiated session = settle(kEverything, offer);
  EXPECT_FALSE(session.has(FUSE_AUTO_INVAL_DATA));
  EXPECT_TRUE(session.has(FUSE_EXPLICIT_INVAL_DATA));
}

TEST(Negotiation, UsesAclsOnlyWithAllThreeFlags) {
  constexpr std::uint64_t kAll = FUSE_POSIX_ACL | FUSE_DONT_MASK | FUSE_SETXATTR_EXT;
  Offer offer;
  offer.posix_acl = Wish::kAuto;
  EXPECT_EQ(settle(kAll, offer).flags, kAll);
  for (const std::uint64_t one : {std::uint64_t{FUSE_POSIX_ACL}, std::uint64_t{FUSE_DONT_MASK},
                                  std::uint64_t{FUSE_SETXATTR_EXT}})
    EXPECT_EQ(settle(kAll & ~one, offer).flags, 0U);
  EXPECT_EQ(settle(kAll).flags, 0U);
}

TEST(Negotiation, IgnoresTheSecondFlagWordWithoutInitExt) {
  Offer offer;
  offer.security_label = Wish::kOn;
  EXPECT_EQ(settle(FUSE_SECURITY_CTX | FUSE_ALLOW_IDMAP, offer).flags, 0U);
}

TEST(Negotiation, EchoesInitExtOnlyWhenTheSecondFlagWordIsUsed) {
  EXPECT_EQ(settle(FUSE_INIT_EXT).flags, 0U);
  EXPECT_EQ(settle(FUSE_INIT_EXT | FUSE_CREATE_SUPP_GROUP).flags,
            FUSE_INIT_EXT | FUSE_CREATE_SUPP_GROUP);
}

TEST(Negotiation, SizesRequestsByPages) {
  const Negotiated many = settle(FUSE_MAX_PAGES);
  EXPECT_EQ(many.max_pages, 256U);
  EXPECT_EQ(many.max_write, 1U << 20);
  const Negotiated few = settle(0);
  EXPECT_EQ(few.max_pages, 32U);
  EXPECT_EQ(few.max_write, 128U << 10);
  Offer offer;
  offer.max_write = 64U << 10;
  EXPECT_EQ(settle(FUSE_MAX_PAGES, offer).max_write, 64U << 10);
  offer.max_write = 0;
  EXPECT_EQ(settle(0, offer).max_write, 4096U);
  offer.max_write = ~0U;
  EXPECT_EQ(settle(FUSE_MAX_PAGES, offer).max_write, 1U << 20);
}

TEST(Negotiation, NamesTheWishesAGuestCannotFulfil) {
  Offer offer;
  offer.posix_acl = offer.security_label = offer.killpriv_v2 = Wish::kOn;
  EXPECT_EQ(unmet_wishes(settle(0, offer), offer), "posix_acl, security_label, killpriv_v2");
  EXPECT_EQ(unmet_wishes(settle(kEverything, offer), offer), "");
  offer.posix_acl = offer.security_label = offer.killpriv_v2 = Wish::kAuto;
  EXPECT_EQ(unmet_wishes(settle(0, offer), offer), "");
}

TEST(Negotiation, NamesWhatASessionOfAnotherDaemonHasTooMuch) {
  Offer offer;
  EXPECT_EQ(not_on_offer(settle(kEverything), offer), "");
  EXPECT_EQ(not_on_offer(settle(0), offer), "");
  Offer more = offer;
  more.flock = more.writeback = more.direct_io_mmap = true;
  more.posix_acl = Wish::kAuto;
  EXPECT_EQ(not_on_offer(settle(kEverything, more), more), "");
  EXPECT_EQ(not_on_offer(settle(kEverything, more), offer),
            "flock, writeback, allow-mmap, posix_acl");
  Offer uncached = offer;
  uncached.symlink_cache = false;
  EXPECT_EQ(not_on_offer(settle(kEverything), uncached), "a cache other than none");
  Negotiated session = settle(kEverything);
  session.flags |= FUSE_MAP_ALIGNMENT;
  EXPECT_EQ(not_on_offer(session, offer), "something this version doesn't know");
  session = settle(kEverything);
  session.minor = 1000;
  EXPECT_EQ(not_on_offer(session, offer), "another version of FUSE");
  session = settle(kEverything);
  session.max_write = 2U << 20;
  EXPECT_EQ(not_on_offer(session, offer), "larger requests");
}

TEST(Negotiation, RepliesWithEveryField) {
  const fuse_init_out out = init_reply(settle(kEverything));
  EXPECT_EQ(out.major, 7U);
  EXPECT_EQ(out.minor, 40U);
  EXPECT_EQ(out.max_readahead, 131072U);
  EXPECT_NE(out.flags & FUSE_INIT_EXT, 0U);
  EXPECT_EQ(out.flags2, (FUSE_CREATE_SUPP_GROUP | FUSE_ALLOW_IDMAP) >> 32);
  EXPECT_EQ(out.max_background, 1024U);
  EXPECT_EQ(out.congestion_threshold, 768U);
  EXPECT_EQ(out.max_write, 1U << 20);
  EXPECT_EQ(out.max_pages, 256U);
  EXPECT_EQ(out.time_gran, 1U);
  EXPECT_EQ(out.map_alignment, 0U);
  EXPECT_EQ(init_reply(settle(0)).max_pages, 0U);
}

}  // namespace
}  // namespace virtiofsd::fuse
