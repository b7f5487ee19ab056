// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/id_map.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace virtiofsd {
namespace {

// The last id there is; all ones means "none". (chown(2))
constexpr std::uint64_t kLastId = 0xffff'fffe;

constexpr std::size_t kMostRules = 1024;

std::optional<std::uint32_t> number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || stop != text.data() + text.size()) return {};
  return value;
}

}  // namespace

const IdMap::Range* IdMap::find(const Table& table, std::uint32_t id) {
  const auto range = std::ranges::find_if(
      table, [id](const Range& rule) { return rule.first <= id && id <= rule.last; });
  return range == table.end() ? nullptr : &*range;
}

bool IdMap::overlaps(const Table& table, const Range& range) {
  return std::ranges::any_of(table, [&range](const Range& rule) {
    return rule.first <= range.last && range.first <= rule.last;
  });
}

Result<void, Failure> IdMap::add(std::string_view rule) {
  const Failure malformed{
      "must look like TYPE:FROM:TO:COUNT, with the type guest, host, map, squash-guest or "
      "squash-host, or forbid-guest:FROM:COUNT"};
  const std::size_t colon = rule.find(':');
  const std::string_view type = rule.substr(0, colon);
  if (colon == std::string_view::npos) return malformed;
  rule.remove_prefix(colon + 1);

  const bool squashes = type == "squash-guest" || type == "squash-host";
  const bool forbids = type == "forbid-guest";
  if (type != "guest" && type != "host" && type != "map" && !squashes && !forbids) return malformed;
  std::array<std::uint32_t, 3> fields{};  // from, to, count
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (forbids && i == 1) continue;
    const std::size_t end = i + 1 < fields.size() ? rule.find(':') : rule.size();
    if (end == std::string_view::npos) return malformed;
    const auto field = number(rule.substr(0, end));
    if (!field) return malformed;
    fields[i] = *field;
    rule.remove_prefix(std::min(rule.size(), end + 1));
  }
  const auto [from, to, count] = fields;
  if (count == 0) return Failure{"must not have a count of 0"};
  const std::uint64_t length = count - 1;
  if (from + length > kLastId || to + (squashes ? 0 : length) > kLastId)
    return Failure{"must not reach past the last id"};

  const auto kind = squashes ? Kind::kSquash : forbids ? Kind::kForbid : Kind::kShift;
  const Range there{.first = from, .last = from + count - 1, .target = to, .kind = kind};
  const Range back{.first = to, .last = to + count - 1, .target = from, .kind = kind};
  const bool both = type == "map";
  const bool by_host = type == "host" || type == "squash-host";
  Table& table = by_host ? from_host_ : from_guest_;
  if (overlaps(table, there) || (both && overlaps(from_host_, back)))
    return Failure{"has ids that an earlier rule has already"};
  if (table.size() >= kMostRules || from_host_.size() >= kMostRules)
    return Failure{"is one rule too many"};
  table.push_back(there);
  if (both) from_host_.push_back(back);
  return {};
}

Result<std::uint32_t> IdMap::to_host(std::uint32_t guest) const {
  const Range* range = find(from_guest_, guest);
  if (range == nullptr) return guest;
  switch (range->kind) {
    case Kind::kShift:
      return range->target + (guest - range->first);
    case Kind::kSquash:
      return range->target;
    case Kind::kForbid:
      break;
  }
  return Errno{EPERM};
}

std::uint32_t IdMap::to_guest(std::uint32_t host) const {
  const Range* range = find(from_host_, host);
  if (range == nullptr) return host;
  return range->kind == Kind::kSquash ? range->target : range->target + (host - range->first);
}

}  // namespace virtiofsd
