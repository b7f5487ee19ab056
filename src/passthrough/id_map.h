// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// User or group ids as the guest sees them against ids on the host, by the
// operator's rules (--translate-uid, --translate-gid). The two directions are
// separate tables; within one, no id is in two rules. An id that no rule names
// is the same on both sides. Immutable once the rules are in: any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace virtiofsd {

class IdMap {
 public:
  // One rule more:
  //   guest:GUEST:HOST:COUNT         ids from the guest, one to one
  //   host:HOST:GUEST:COUNT          ids shown to the guest, one to one
  //   map:GUEST:HOST:COUNT           both
  //   squash-guest:GUEST:HOST:COUNT  ids from the guest, all to the one HOST
  //   squash-host:HOST:GUEST:COUNT   ids shown to the guest, all as the one GUEST
  //   forbid-guest:GUEST:COUNT       ids that the guest may not use
  // The Failure says what is wrong with it, to follow the rule's text; the map
  // is then as it was.
  Result<void, Failure> add(std::string_view rule);

  bool empty() const { return from_guest_.empty() && from_host_.empty(); }

  // EPERM for an id that the guest may not use. All ones, which is no id, stays.
  Result<std::uint32_t> to_host(std::uint32_t guest) const;
  std::uint32_t to_guest(std::uint32_t host) const;

 private:
  enum class Kind : std::uint8_t { kShift, kSquash, kForbid };
  struct Range {
    std::uint32_t first = 0;
    std::uint32_t last = 0;    // inclusive
    std::uint32_t target = 0;  // of `first`; kSquash: of all
    Kind kind = Kind::kShift;
  };
  using Table = std::vector<Range>;  // few rules: searched front to back

  static const Range* find(const Table& table, std::uint32_t id);
  static bool overlaps(const Table& table, const Range& range);

  Table from_guest_;
  Table from_host_;
};

}  // namespace virtiofsd
