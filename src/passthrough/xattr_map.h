// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Names of extended attributes as the guest sees them against names on the
// host, by the operator's rules (-o xattrmap). A parsed map always ends in a
// catch-all for both directions, so every name has an answer; the first rule
// that matches decides. Immutable after parse: any thread.
//
// The grammar is that of QEMU's virtiofsd(1): rules ":type:scope:key:prepend:"
// with any separator, types prefix, ok, bad and unsupported, and the shorthand
// ":map:key:prepend:" which must come last.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace virtiofsd {

class XattrMap {
 public:
  // The Failure says which rule is wrong, where in the text, and what was expected.
  static Result<XattrMap, Failure> parse(std::string_view rules);

  // The host's name of what the guest calls `client_name`. EPERM for a name
  // that a "bad" rule blocks (a getxattr answers ENODATA in its place),
  // ENOTSUP for an "unsupported" one, ERANGE for an empty one (as setxattr(2)).
  Result<std::string> to_server(std::string_view client_name) const;

  // The guest's name of a host attribute; none: the guest must not see it.
  // A bare prefix with nothing behind it is no attribute and is hidden.
  std::optional<std::string> to_client(std::string_view server_name) const;

  // True when the guest's security.capability has another name on the host:
  // the host kernel then does not drop it when the file changes, and whoever
  // writes, truncates or chowns must remove capability_name() by hand.
  // (CVE-2021-20263)
  bool renames_capability() const { return renames_capability_; }
  // The host's name of the guest's security.capability; empty when it is blocked.
  const std::string& capability_name() const { return capability_name_; }

 private:
  enum class Type : std::uint8_t { kPrefix, kOk, kBad, kUnsupported };
  struct Rule {
    Type type = Type::kOk;
    bool client = false;
    bool server = false;
    std::string key;      // beginning of a name from the guest
    std::string prepend;  // beginning of a name from the host
  };
  class Parser;

  XattrMap() = default;

  std::vector<Rule> rules_;
  bool renames_capability_ = false;
  std::string capability_name_;
};

}  // namespace virtiofsd
