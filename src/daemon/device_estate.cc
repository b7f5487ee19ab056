// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/device_estate.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <sstream>
#include <utility>

#include "daemon/device_journal.h"

namespace virtiofsd {
namespace {

std::string_view text_of(const SessionRecord& record) {
  const auto end = std::ranges::find(record.told, '\0');
  return {record.told.data(), static_cast<std::size_t>(end - record.told.begin())};
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  std::istringstream stream{std::string{text}};
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// The lines of `theirs` that `ours` hasn't.
std::vector<std::string> missing_in(std::string_view ours, std::string_view theirs) {
  const std::vector<std::string> known = lines_of(ours);
  std::vector<std::string> missing = lines_of(theirs);
  std::erase_if(missing, [&](const std::string& line) {
    return std::ranges::find(known, line) != known.end();
  });
  return missing;
}

}  // namespace

DeviceEstate::DeviceEstate(std::shared_ptr<Arena> arena, std::span<const SectionPlan> plan,
                           FileSystem file_system, const std::string& told)
    : arena_(std::move(arena)),
      plan_(plan.begin(), plan.end()),
      file_system_(std::move(file_system)),
      told_(told) {
  begin();
}

void DeviceEstate::begin() {
  DeviceJournal::begin(*arena_);
  note_told();
}

void DeviceEstate::note_told() {
  auto& told = record().told;
  told.fill('\0');
  std::copy_n(told_.begin(), std::min(told_.size(), told.size() - 1), told.begin());
}

void DeviceEstate::begin_again() {
  const int listening = record().listening;
  for (const SectionPlan& section : plan_) arena_->drop_contents(section.kind);
  begin();
  record().listening = listening;
}

SessionRecord& DeviceEstate::record() const {
  return session_record(*arena_);
}

bool DeviceEstate::has_client() const {
  return record().conversation != SessionRecord::kNone;
}

const char* DeviceEstate::against_succession() const {
  switch (record().conversation) {
    case SessionRecord::kBetweenMessages:
      return nullptr;
    case SessionRecord::kInMessage:
      return "a message of the VMM was half done, so the guest has lost its file system";
    default:
      return "no VMM was connected";
  }
}

std::vector<int> DeviceEstate::inherits() const {
  std::vector<int> kept = file_system_.descriptors_kept_in(*arena_);
  std::ranges::copy(DeviceJournal::descriptors_kept_in(*arena_), std::back_inserter(kept));
  return kept;
}

Result<void, Failure> DeviceEstate::consider(UniqueFd memory) {
  auto other = Arena::attach(std::move(memory), plan_);
  if (!other) {
    return Failure{"the running virtiofsd keeps its state in a form that this version can't read",
                   other.error()};
  }
  const std::vector<std::string> differ =
      missing_in(text_of(record()), text_of(session_record(**other)));
  if (!differ.empty()) {
    return Failure{fmt::format("to take over, this must be as the running virtiofsd has it: {}",
                               fmt::join(differ, ", "))};
  }
  other_ = std::move(*other);
  return {};
}

Result<void, Failure> DeviceEstate::adopt(std::unordered_map<int, UniqueFd> descriptors) {
  const auto copied = arena_->copy_from(*other_);
  other_.reset();
  if (!copied) return Failure{"can't copy the state", copied.error()};
  const auto number_of = [&](int before) {
    const auto found = descriptors.find(before);
    return found == descriptors.end() ? -1 : found->second.release();
  };
  file_system_.renumber_descriptors(*arena_, number_of);
  DeviceJournal::renumber_descriptors(*arena_, number_of);
  note_told();  // ours may say more
  // Until its worker is ready there is none that another one could succeed.
  record().conversation = SessionRecord::kNone;
  return {};
}

}  // namespace virtiofsd
