// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The memory that outlives a worker process: one sealed memfd, mapped shared.
// Everything a successor would need lives here as plain records (ids and
// numbers, no pointers), in sections whose places are fixed when the arena is
// made. The file is sparse: a section costs memory only where it was touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd {

enum class SectionKind : std::uint32_t {
  kSession = 1,
  kInodes = 2,
  kHandles = 3,
  kBlobs = 4,
  kLockOwners = 5,
  kLockRanges = 6,
  kMounts = 7,
  kRings = 8,
};

struct SectionPlan {
  SectionKind kind;
  std::uint32_t record_size;  // bytes
  std::uint64_t capacity;     // records
};

class Arena {
 public:
  // A new arena with these sections, zero-filled.
  static Result<std::shared_ptr<Arena>> create(std::span<const SectionPlan> plan);
  // An arena that another process made. EINVAL unless its header and section
  // table are exactly `plan`'s and the file is, and stays, as long as they say.
  static Result<std::shared_ptr<Arena>> attach(UniqueFd fd, std::span<const SectionPlan> plan);

  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // The bytes of a section; page-aligned. An unplanned kind is our own mistake.
  std::span<std::byte> section(SectionKind kind) const;
  FdRef fd() const { return fd_; }

  // Takes over the contents of another arena by the same plan, which nobody writes to any more;
  // this one is new. Errors of lseek.
  Result<> copy_from(const Arena& other);

  // Gives the memory of a section back to the system; it reads as zeros after.
  // Only while nobody uses the section.
  void drop_contents(SectionKind kind);

 private:
  // Not read from the header again: whoever has the arena mapped can write there.
  struct Place {
    SectionKind kind;
    std::size_t offset;
    std::size_t size;
  };

  Arena(UniqueFd fd, std::byte* base, std::size_t size, std::vector<Place> places)
      : fd_(std::move(fd)), base_(base), size_(size), places_(std::move(places)) {}
  template <typename Header>
  static std::vector<Place> places_of(const Header& header);

  UniqueFd fd_;
  std::byte* base_;
  std::size_t size_;
  std::vector<Place> places_;
};

}  // namespace virtiofsd
