// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The VMM's list of guest pages we wrote to, for live migration: one bit per
// 4 KiB of guest address space, in memory the VMM shares with us (vhost-user,
// LOG_SHMFD). Bits are only ever set, atomically; the VMM clears them.
// Pages beyond the end of the bitmap are ignored. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/id.h"
#include "base/result.h"
#include "memory/mapping.h"

namespace virtiofsd {

class DirtyLog {
 public:
  static constexpr std::uint64_t kPageBytes =
      4096;  // fixed by the protocol, whatever our pages are

  // Maps `size` bytes of bitmap from `offset` of `fd`. Errors as Mapping::map.
  static Result<std::shared_ptr<DirtyLog>> map(FdRef fd, std::uint64_t offset, std::uint64_t size);

  // Marks every page [start, start + size) touches. Call after the bytes were written.
  void mark(GuestAddress start, std::uint64_t size);

 private:
  explicit DirtyLog(std::shared_ptr<const Mapping> mapping) : mapping_(std::move(mapping)) {}

  const std::shared_ptr<const Mapping> mapping_;
};

}  // namespace virtiofsd
