// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/negotiation.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace virtiofsd::fuse {
namespace {

constexpr std::uint32_t kGuestPage = 4096;  // the smallest a guest can have
constexpr std::uint32_t kMaxWrite = 1U << 20;
// Pages, of whatever size the guest has; what Linux allows unless its
// administrator raised fs.fuse.max_pages_limit.
constexpr std::uint16_t kMaxPages = 256;
constexpr std::uint16_t kMaxPagesWithoutFlag = 32;
// Background requests (readahead, writeback, asynchronous direct I/O) a guest
// may have under way. A ring holds up to 1024 requests, so fewer would leave
// it idle and more would only wait in the guest. Zero would mean 12.
constexpr std::uint16_t kMaxBackground = 1024;
constexpr std::uint16_t kCongestionThreshold = kMaxBackground / 4 * 3;

// What we can always do.
constexpr std::uint64_t kAlways = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT |
                                  FUSE_BIG_WRITES | FUSE_HAS_IOCTL_DIR | FUSE_ASYNC_DIO |
                                  FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_CREATE_SUPP_GROUP;
// ACLs need all three: the umask must reach us unapplied, and setting an ACL
// must be able to say that the set-group-id bit goes.
constexpr std::uint64_t kPosixAcl = FUSE_POSIX_ACL | FUSE_DONT_MASK | FUSE_SETXATTR_EXT;

std::uint64_t wanted_flags(std::uint64_t offered, const Offer& offer) {
  std::uint64_t wanted = kAlways;
  const auto want = [&wanted](bool condition, std::uint64_t flags) {
    if (condition) wanted |= flags;
  };
  want(offer.posix_locks, FUSE_POSIX_LOCKS);
  want(offer.flock, FUSE_FLOCK_LOCKS);
  want(offer.readdirplus, FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO);
  want(offer.writeback, FUSE_WRITEBACK_CACHE);
  want(offer.symlink_cache, FUSE_CACHE_SYMLINKS);
  want(offer.automatic_invalidation, FUSE_AUTO_INVAL_DATA);
  want(!offer.automatic_invalidation, FUSE_EXPLICIT_INVAL_DATA);
  want(offer.direct_io_mmap, FUSE_DIRECT_IO_ALLOW_MMAP);
  want(offer.submounts, FUSE_SUBMOUNTS);
  want(offer.idmapped_mounts, FUSE_ALLOW_IDMAP);
  want(offer.killpriv_v2 != Wish::kOff, FUSE_HANDLE_KILLPRIV_V2);
  want(offer.posix_acl != Wish::kOff && (offered & kPosixAcl) == kPosixAcl, kPosixAcl);
  want(offer.security_label != Wish::kOff, FUSE_SECURITY_CTX);
  return wanted;
}

}  // namespace

Result<Negotiated> negotiate(const fuse_init_in& guest, const Offer& offer) {
  Negotiated session;
  session.major = kMajor;
  session.minor = kMinor;
  if (guest.major > kMajor) return session;
  if (guest.major < kMajor || guest.minor < kOldestMinor) return Errno{EPROTO};
  session.minor = std::min(guest.minor, kMinor);

  std::uint64_t offered = guest.flags;
  // Without INIT_EXT, flags2 is padding.
  if ((offered & FUSE_INIT_EXT) != 0) offered |= std::uint64_t{guest.flags2} << 32;

  session.flags = offered & wanted_flags(offered, offer);
  if (!session.has(FUSE_DO_READDIRPLUS)) session.flags &= ~std::uint64_t{FUSE_READDIRPLUS_AUTO};
  // A guest since Linux 6.6 ignores our flags2 unless this bit comes back.
  if ((session.flags >> 32) != 0) session.flags |= FUSE_INIT_EXT;

  const bool many_pages = session.has(FUSE_MAX_PAGES);
  session.max_pages = many_pages ? kMaxPages : kMaxPagesWithoutFlag;
  session.max_write = std::clamp(offer.max_write, kGuestPage,
                                 many_pages ? kMaxWrite : kMaxPagesWithoutFlag * kGuestPage);
  session.max_readahead = guest.max_readahead;
  session.max_background = kMaxBackground;
  session.congestion_threshold = kCongestionThreshold;
  return session;
}

std::string unmet_wishes(const Negotiated& session, const Offer& offer) {
  std::string missing;
  const auto look = [&](Wish wish, std::uint64_t flag, std::string_view name) {
    if (wish != Wish::kOn || session.has(flag)) return;
    if (!missing.empty()) missing += ", ";
    missing += name;
  };
  look(offer.posix_acl, FUSE_POSIX_ACL, "posix_acl");
  look(offer.security_label, FUSE_SECURITY_CTX, "security_label");
  look(offer.killpriv_v2, FUSE_HANDLE_KILLPRIV_V2, "killpriv_v2");
  return missing;
}

std::string not_on_offer(const Negotiated& session, const Offer& offer) {
  std::uint64_t beyond = session.flags & ~(wanted_flags(~std::uint64_t{0}, offer) | FUSE_INIT_EXT);
  std::string names;
  const auto add = [&](std::string_view name) {
    if (!names.empty()) names += ", ";
    names += name;
  };
  // By the option that offers it.
  constexpr std::pair<std::uint64_t, std::string_view> kOptions[] = {
      {FUSE_POSIX_LOCKS, "posix_lock"},
      {FUSE_FLOCK_LOCKS, "flock"},
      {FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO, "readdirplus"},
      {FUSE_WRITEBACK_CACHE, "writeback"},
      {FUSE_CACHE_SYMLINKS, "a cache other than none"},
      {FUSE_AUTO_INVAL_DATA, "a cache other than always"},
      {FUSE_EXPLICIT_INVAL_DATA, "cache=always"},
      {FUSE_DIRECT_IO_ALLOW_MMAP, "allow-mmap"},
      {FUSE_SUBMOUNTS, "announce-submounts"},
      {FUSE_ALLOW_IDMAP, "no allow_root"},
      {FUSE_HANDLE_KILLPRIV_V2, "killpriv_v2"},
      {kPosixAcl, "posix_acl"},
      {FUSE_SECURITY_CTX, "security_label"},
  };
  for (const auto& [flags, name] : kOptions) {
    if ((beyond & flags) != 0) add(name);
    beyond &= ~flags;
  }
  if (beyond != 0) add("something this version doesn't know");
  if (session.major != kMajor || session.minor < kOldestMinor || session.minor > kMinor)
    add("another version of FUSE");
  if (session.max_write < kGuestPage || session.max_write > kMaxWrite ||
      session.max_pages > kMaxPages) {
    add("larger requests");
  }
  return names;
}

fuse_init_out init_reply(const Negotiated& session) {
  fuse_init_out out{};
  out.major = session.major;
  out.minor = session.minor;
  out.max_readahead = session.max_readahead;
  out.flags = static_cast<std::uint32_t>(session.flags);
  out.flags2 = static_cast<std::uint32_t>(session.flags >> 32);
  out.max_background = session.max_background;
  out.congestion_threshold = session.congestion_threshold;
  out.max_write = session.max_write;
  out.max_pages = session.has(FUSE_MAX_PAGES) ? session.max_pages : std::uint16_t{0};
  out.time_gran = 1;  // nanoseconds
  return out;
}

}  // namespace virtiofsd::fuse
