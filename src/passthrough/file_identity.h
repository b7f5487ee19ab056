// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What tells a file of the share from every other one, under whatever name: its
// mount, inode number and type, and where the file system can be trusted with
// it the time of its birth, for a removed file's number is given to a new one.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>

#include "base/result.h"
#include "base/sync.h"
#include "state/records.h"
#include "sys/fd.h"

namespace virtiofsd {

// Every bit of the result depends on every bit of `x`.
constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93U;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93U;
  x ^= x >> 32;
  return x;
}

// A mount of the share; the root's has index 0.
struct Mount {
  std::uint16_t index = 0;
  bool by_birth = false;    // its birth times identify
  bool no_devices = false;  // nodev: to open a device node there does nothing
};

struct FileIdentity {
  // After this long a file can't share its inode number *and* birth time with a later one:
  // file systems stamp births from a clock that ticks at least every 10 ms.
  static constexpr std::int64_t kSettledNs = 100'000'000;

  std::uint64_t ino = 0;
  std::int64_t birth = 0;  // nanoseconds since 1970; 0 where it says nothing
  std::uint16_t mount = 0;
  // Never changes either: where birth times say nothing, a device that took
  // over a removed file's number must not pass for that file.
  std::uint8_t type = 0;

  // `stx` has at least STATX_TYPE, STATX_INO and STATX_BTIME, if there are any.
  static FileIdentity of(const struct statx& stx, const Mount& mount);
  // Whether no other file will ever have it, even when this one is gone.
  bool lasts() const;
  std::uint64_t hash() const {
    return mix_bits(ino ^ mix_bits(static_cast<std::uint64_t>(birth) + mount));
  }
  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

// Whether both are on one mount, as far as the kernel tells.
bool on_same_mount(const struct statx& one, const struct statx& other);

// The mounts of the share that were seen so far. Any thread, but for set_root.
class Mounts {
 public:
  static constexpr std::uint16_t kMost = 0xfffe;  // beside the root's
  // Where they are kept for a successor, who finds there what is known already; may be empty.
  explicit Mounts(std::span<MountRecord> records = {});
  // Before anything else, and once. Errors of fstatfs.
  Result<Mount> set_root(const struct statx& stx, FdRef root);
  // The mount of what `stx` tells of (STATX_MNT_ID), if it was learnt.
  std::optional<Mount> known(const struct statx& stx) const;
  // Those beside the root's.
  std::size_t count() const;
  // As known, learning it from a descriptor on it. ENFILE past kMost mounts; errors of fstatfs.
  Result<Mount> learn(const struct statx& stx, FdRef on_it);

 private:
  struct Key {
    std::uint64_t device = 0;
    std::uint64_t id = 0;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const { return mix_bits(key.device ^ mix_bits(key.id)); }
  };
  static Key key_of(const struct statx& stx);
  friend bool on_same_mount(const struct statx& one, const struct statx& other);

  const std::span<MountRecord> records_;
  Key root_key_;
  Mount root_;
  mutable Mutex mutex_;
  std::unordered_map<Key, Mount, KeyHash> others_ GUARDED_BY(mutex_);
  std::size_t count_ GUARDED_BY(mutex_) = 0;  // their highest index
};

}  // namespace virtiofsd
