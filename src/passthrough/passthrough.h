// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The file system that is served: a shared directory, operation by operation,
// with the caller's credentials where they matter. One file per theme:
// lookup.cc, attributes.cc, entries.cc, io.cc, directories.cc, xattrs.cc,
// locking.cc, ioctls.cc. Knows no ring and no socket.
#pragma once

#include <memory>

#include "fuse/file_system.h"
#include "passthrough/handle_table.h"
#include "passthrough/inode_store.h"
#include "passthrough/locks.h"
#include "passthrough/xattr_map.h"

namespace virtiofsd {

enum class CacheMode : std::uint8_t { kNone, kMetadata, kAuto, kAlways };

class Passthrough final : public fuse::FileSystem {
 public:
  struct Settings {
    CacheMode cache = CacheMode::kAuto;
    double attribute_timeout = 1.0;  // seconds
    double entry_timeout = 1.0;      // seconds
    double negative_timeout = 0.0;   // seconds; 0: a missing name is not cached by the guest
    bool xattr = false;
    std::optional<XattrMap> xattr_map;
    bool allow_direct_io = false;
    bool announce_submounts = false;
    bool preserve_noatime = false;
    bool read_only = false;
    bool remote_posix_locks = true;
    bool remote_flock = false;
    bool no_race = false;            // -o norace: no verified parent-and-name fallback for symlinks
    bool can_switch_user = true;     // CAP_SETUID and CAP_SETGID are there
    std::uint32_t max_lock_waiters = 0;
    InodeStore::Settings inodes;
    std::uint32_t max_handles = 0;
  };

  // `root`: the shared directory, O_PATH or O_RDONLY.
  static Result<std::unique_ptr<Passthrough>, Failure> create(UniqueFd root, Settings settings);
  ~Passthrough() override;
  // The overrides of every fuse::FileSystem operation follow (declared by the room's owner).
};

}  // namespace virtiofsd
