// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/xattr_map.h"

#include <fmt/format.h>

#include <algorithm>

namespace virtiofsd {

namespace {

constexpr std::string_view kCapability = "security.capability";
constexpr std::string_view kSpace = " \t\n\r\f\v";

// Operators put odd characters into this option; the message must still be one readable line.
std::string quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + "'";
}

}  // namespace

// Takes the text apart rule by rule, front to back.
class XattrMap::Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<std::vector<Rule>, Failure> run() {
    for (;;) {
      skip_space();
      if (position_ == text_.size()) return std::move(rules_);
      ++number_;
      start_ = position_;
      separator_ = text_[position_++];
      const std::string_view type = TRY(field("type"));
      if (type == "map") {
        TRY(map_rule());
      } else {
        TRY(plain_rule(type));
      }
    }
  }

 private:
  void skip_space() {
    position_ = std::min(text_.find_first_not_of(kSpace, position_), text_.size());
  }

  // Characters are counted from 1, as an editor does.
  Failure failure(std::size_t at, std::string_view what) const {
    return Failure{fmt::format("xattrmap: rule {}, character {}: {}", number_, at + 1, what)};
  }

  // The text up to the next separator, which is consumed.
  Result<std::string_view, Failure> field(std::string_view what) {
    const std::size_t end = text_.find(separator_, position_);
    if (end == std::string_view::npos) {
      return failure(
          position_,
          fmt::format("the {} has no {} at its end (a rule's first character, here {} "
                      "at character {}, separates its fields and ends it)",
                      what, quoted({&separator_, 1}), quoted({&separator_, 1}), start_ + 1));
    }
    const std::string_view value = text_.substr(position_, end - position_);
    field_start_ = position_;
    position_ = end + 1;
    return value;
  }

  Result<void, Failure> plain_rule(std::string_view type) {
    Rule rule;
    if (type == "prefix") {
      rule.type = Type::kPrefix;
    } else if (type == "ok") {
      rule.type = Type::kOk;
    } else if (type == "bad") {
      rule.type = Type::kBad;
    } else if (type == "unsupported") {
      rule.type = Type::kUnsupported;
    } else {
      return failure(field_start_,
                     fmt::format("the type is {}; it must be 'prefix', 'ok', 'bad', 'unsupported' "
                                 "or 'map'",
                                 quoted(type)));
    }
    const std::string_view scope = TRY(field("scope"));
    if (scope != "client" && scope != "server" && scope != "all") {
      return failure(field_start_, fmt::format("the scope is {}; it must be 'client', 'server' or "
                                               "'all'",
                                               quoted(scope)));
    }
    rule.client = scope != "server";
    rule.server = scope != "client";
    rule.key = TRY(field("key"));
    rule.prepend = TRY(field("prepend"));
    rules_.push_back(std::move(rule));
    return {};
  }

  // Shorthand: what begins with `key` is kept under `prepend` on the host, and
  // neither side reaches the other's names around that.
  Result<void, Failure> map_rule() {
    const std::string key{TRY(field("key"))};
    const std::string prepend{TRY(field("prepend"))};
    skip_space();
    if (position_ != text_.size()) {
      return failure(position_, "a 'map' rule must be the last one, but more text follows it");
    }
    const auto add = [this](Type type, bool client, bool server, std::string_view key_text,
                            std::string_view prepend_text) {
      rules_.push_back({type, client, server, std::string{key_text}, std::string{prepend_text}});
    };
    add(Type::kPrefix, true, true, key, prepend);
    if (key.empty()) {
      add(Type::kBad, true, true, "", "");
    } else {
      add(Type::kBad, false, true, "", key);
      add(Type::kBad, true, false, prepend, "");
      add(Type::kOk, true, true, "", "");
    }
    return {};
  }

  const std::string_view text_;
  std::size_t position_ = 0;
  std::size_t field_start_ = 0;
  std::size_t start_ = 0;   // of the current rule
  std::size_t number_ = 0;  // of the current rule, from 1
  char separator_ = ':';
  std::vector<Rule> rules_;
};

Result<XattrMap, Failure> XattrMap::parse(std::string_view rules) {
  XattrMap map;
  map.rules_ = TRY(Parser{rules}.run());
  if (map.rules_.empty()) {
    return Failure{"xattrmap: the map has no rules; ':ok:all:::' passes every name through"};
  }
  // A name that no rule matches would have no answer.
  const bool ends_client = std::ranges::any_of(
      map.rules_, [](const Rule& rule) { return rule.client && rule.key.empty(); });
  const bool ends_server = std::ranges::any_of(
      map.rules_, [](const Rule& rule) { return rule.server && rule.prepend.empty(); });
  if (!ends_client || !ends_server) {
    const std::string_view side = ends_client ? "the host (scope 'server' or 'all', empty prepend)"
                                  : ends_server
                                      ? "the guest (scope 'client' or 'all', empty key)"
                                      : "either side (scope 'all', empty key and prepend)";
    return Failure{fmt::format(
        "xattrmap: no rule matches every name from {}; end the map with ':ok:all:::' or "
        "':bad:all:::'",
        side)};
  }
  if (auto name = map.to_server(kCapability)) {
    map.renames_capability_ = *name != kCapability;
    map.capability_name_ = std::move(*name);
  }
  return map;
}

Result<std::string> XattrMap::to_server(std::string_view client_name) const {
  // With a prefix it would become an attribute that nobody can list.
  if (client_name.empty()) return Errno{ERANGE};
  for (const Rule& rule : rules_) {
    if (!rule.client || !client_name.starts_with(rule.key)) continue;
    switch (rule.type) {
      case Type::kPrefix:
        return rule.prepend + std::string{client_name};
      case Type::kOk:
        return std::string{client_name};
      case Type::kBad:
        return Errno{EPERM};
      case Type::kUnsupported:
        return Errno{ENOTSUP};
    }
  }
  return Errno{EPERM};
}

std::optional<std::string> XattrMap::to_client(std::string_view server_name) const {
  for (const Rule& rule : rules_) {
    if (!rule.server || !server_name.starts_with(rule.prepend)) continue;
    switch (rule.type) {
      case Type::kPrefix:
        server_name.remove_prefix(rule.prepend.size());
        break;
      case Type::kOk:
        break;
      case Type::kBad:
      case Type::kUnsupported:
        return std::nullopt;
    }
    if (server_name.empty()) return std::nullopt;
    return std::string{server_name};
  }
  return std::nullopt;
}

}  // namespace virtiofsd
