// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Which user and group ids an ordinary user's namespace has. Id 0 inside is
// what the daemon runs as, so it must be mapped.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "sandbox/sandbox.h"

namespace virtiofsd::sandbox {

struct IdMaps {
  std::vector<IdRange> uid;
  std::vector<IdRange> gid;
  bool by_default = false;  // not asked for: may be given up for our own id alone
};

// The maps asked for, checked; or for none, our own id as 0 and after it the
// subordinate ids of /etc/subuid and /etc/subgid where the helpers exist.
Result<IdMaps, Failure> choose_maps(std::vector<IdRange> uid, std::vector<IdRange> gid);

// Gives `child`, in a fresh user namespace, its ids; from outside of it.
Result<void, Failure> write_maps(pid_t child, const IdMaps& maps);

// Are there ids other than our own in this user namespace?
bool maps_other_ids();

// The first range for `name` (or its number `id`) in the text of an
// /etc/subuid; a count of 0 when there is none.
IdRange subordinate_range(std::string_view text, std::string_view name, std::uint32_t id);

}  // namespace virtiofsd::sandbox
