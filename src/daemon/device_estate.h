// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What outlives a worker of the daemon: an arena, with the records of the file system and of the
// device. Supervisor, single-threaded; the workers have the arena mapped as well.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "daemon/process_tree.h"
#include "state/arena.h"
#include "state/records.h"
#include "sys/fd.h"

namespace virtiofsd {

class DeviceEstate final : public Estate {
 public:
  // What the file system does with its records; both as Passthrough has them.
  struct FileSystem {
    std::function<std::vector<int>(const Arena&)> descriptors_kept_in;
    std::function<void(const Arena&, const std::function<int(int)>&)> renumber_descriptors;
  };
  // `arena` is new, and by `plan`. `told` is what a successor must agree with: lines of
  // "name=value".
  DeviceEstate(std::shared_ptr<Arena> arena, std::span<const SectionPlan> plan,
               FileSystem file_system, const std::string& told);

  bool has_client() const override;
  const char* against_succession() const override;
  std::vector<int> inherits() const override;
  FdRef memory() const override { return arena_->fd(); }
  Result<void, Failure> consider(UniqueFd memory) override;
  void begin_again() override;
  Result<void, Failure> adopt(std::unordered_map<int, UniqueFd> descriptors) override;

 private:
  SessionRecord& record() const;
  void begin();
  void note_told();

  std::shared_ptr<Arena> arena_;
  std::vector<SectionPlan> plan_;
  FileSystem file_system_;
  const std::string told_;
  std::shared_ptr<Arena> other_;  // of the tree that is taken over from
};

}  // namespace virtiofsd
