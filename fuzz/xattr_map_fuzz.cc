// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// -o xattrmap with any text for rules, and attribute names of any kind held
// against what came out. Lines of the input: the rules, then names.
#include "fuzz/input.h"
#include "passthrough/xattr_map.h"

namespace virtiofsd::fuzz {
namespace {

void ask(const XattrMap& map, const std::string& name) {
  const auto server = map.to_server(name);
  if (server) {
    CHECK(!name.empty() && !server->empty());
  } else {
    const Errno error = server.error();
    CHECK(error == Errno{EPERM} || error == Errno{ENOTSUP} || error == Errno{ERANGE});
  }
  const auto client = map.to_client(name);
  if (client) CHECK(!client->empty() && client->find('\0') == std::string::npos);
}

void run(std::string_view text) {
  const auto line = [&text] {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string out{text.substr(0, end)};
    text.remove_prefix(std::min(end + 1, text.size()));
    return out;
  };
  const std::string rules = line();
  const auto map = XattrMap::parse(rules);
  if (!map) {
    CHECK(!map.error().text().empty());
    return;
  }
  // The one name whose fate the host's kernel must be told of (CVE-2021-20263).
  const std::string capability = "security.capability";
  const auto on_host = map->to_server(capability);
  CHECK(map->capability_name() == (on_host ? *on_host : std::string{}));
  if (!map->renames_capability()) CHECK(!on_host || *on_host == capability);

  for (const char* name : {"", "user.", "user.a", "security.selinux", "trusted.", "trusted.a",
                           "system.posix_acl_access", "security.capability"}) {
    ask(*map, name);
  }
  while (!text.empty()) {
    const std::string name = line();
    ask(*map, name.substr(0, name.find('\0')));
  }
}

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  virtiofsd::fuzz::set_log(false);
  virtiofsd::fuzz::run(virtiofsd::fuzz::Input(data, size).text(size));
  return 0;
}
