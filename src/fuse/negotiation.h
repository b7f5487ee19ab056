// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What INIT settles between guest and daemon, flag by flag. Fixed for the
// life of a session; a later INIT makes a new one.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "fuse/wire.h"

namespace virtiofsd::fuse {

// How much the operator wants a feature that a guest may lack.
enum class Wish : std::uint8_t {
  kOff,   // never offered
  kAuto,  // used where the guest offers it, silently
  kOn,    // used where the guest offers it; one warning where it doesn't
};

// What the operator's options allow; filled in by main from the command line.
struct Offer {
  bool posix_locks = true;
  bool flock = false;
  bool readdirplus = true;
  bool writeback = false;
  bool symlink_cache = true;           // off for cache=none
  bool automatic_invalidation = true;  // AUTO_INVAL_DATA; off for cache=always
  bool direct_io_mmap = false;         // DIRECT_IO_ALLOW_MMAP; on by default for cache=none
  Wish killpriv_v2 = Wish::kAuto;
  Wish posix_acl = Wish::kOff;
  Wish security_label = Wish::kOff;
  bool submounts = false;
  bool idmapped_mounts = true;         // ALLOW_IDMAP; off where every request's uid matters
  std::uint32_t max_write = 1U << 20;  // bytes, a multiple of the guest's page size
};

// Fixed at INIT. `flags` is the 64-bit set both sides agreed on (flags2 in the upper half).
struct Negotiated {
  std::uint32_t major = 0;  // 0: no INIT yet
  std::uint32_t minor = 0;
  std::uint64_t flags = 0;
  std::uint32_t max_readahead = 0;
  std::uint32_t max_write = 0;
  std::uint16_t max_pages = 0;
  std::uint16_t max_background = 0;
  std::uint16_t congestion_threshold = 0;

  bool initialised() const { return major != 0; }
  bool has(std::uint64_t flag) const { return (flags & flag) != 0; }
};

// The answer to a guest's INIT. EPROTO for a version older than 7.27. A major
// version above ours is answered with ours and nothing else (the guest sends
// INIT again).
Result<Negotiated> negotiate(const fuse_init_in& guest, const Offer& offer);

// The features the operator asked for (Wish::kOn) and this guest lacks, for a
// warning: "posix_acl, killpriv_v2". Empty when it has all of them.
std::string unmet_wishes(const Negotiated& session, const Offer& offer);

// What a session that another daemon negotiated has and this one wouldn't have agreed to:
// "writeback, flock". Empty when a guest can go on here.
std::string not_on_offer(const Negotiated& session, const Offer& offer);

// The reply: 64 bytes for every guest we answer (since 7.23).
fuse_init_out init_reply(const Negotiated& session);

}  // namespace virtiofsd::fuse
