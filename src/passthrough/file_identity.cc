// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/file_identity.h"

#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>

namespace virtiofsd {
namespace {

constexpr std::int64_t kNsPerSecond = 1'000'000'000;

// File systems whose birth time is set once, by this host's clock, at the
// moment the inode number is taken (linux/magic.h names, f_type of statfs).
bool birth_identifies(const struct statfs& fs) {
  switch (static_cast<unsigned long>(fs.f_type) & 0xffffffffUL) {
    case 0xEF53:      // ext2, ext3, ext4
    case 0x58465342:  // xfs
    case 0x9123683E:  // btrfs
    case 0x01021994:  // tmpfs
    case 0xF2F52010:  // f2fs
      return true;
    default:
      return false;
  }
}

Result<Mount> look_at(FdRef on_it) {
  struct statfs fs {};
  if (::fstatfs(on_it.number(), &fs) != 0) return Errno::last();
  return Mount{.index = 0,
               .by_birth = birth_identifies(fs),
               .no_devices = (static_cast<unsigned long>(fs.f_flags) & ST_NODEV) != 0};
}

std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return now.tv_sec * kNsPerSecond + now.tv_nsec;
}

}  // namespace

FileIdentity FileIdentity::of(const struct statx& stx, const Mount& mount) {
  FileIdentity identity{.ino = stx.stx_ino,
                        .birth = 0,
                        .mount = mount.index,
                        .type = static_cast<std::uint8_t>((stx.stx_mode & S_IFMT) >> 12)};
  if (mount.by_birth && (stx.stx_mask & STATX_BTIME) != 0)
    identity.birth = stx.stx_btime.tv_sec * kNsPerSecond + stx.stx_btime.tv_nsec;
  return identity;
}

bool FileIdentity::lasts() const {
  return birth != 0 && now_ns() - birth >= kSettledNs;
}

bool on_same_mount(const struct statx& one, const struct statx& other) {
  return Mounts::key_of(one) == Mounts::key_of(other);
}

Mounts::Key Mounts::key_of(const struct statx& stx) {
  return {gnu_dev_makedev(stx.stx_dev_major, stx.stx_dev_minor),
          (stx.stx_mask & STATX_MNT_ID) != 0 ? stx.stx_mnt_id : 0};
}

Mounts::Mounts(std::span<MountRecord> records) : records_(records) {
  Lock lock(mutex_);
  for (const MountRecord& record : records_) {
    if (record.known.load(std::memory_order_acquire) == 0) break;
    const auto index = static_cast<std::uint16_t>(++count_);
    others_.emplace(Key{record.device, record.id}, Mount{.index = index,
                                                         .by_birth = record.by_birth != 0,
                                                         .no_devices = record.no_devices != 0});
  }
}

Result<Mount> Mounts::set_root(const struct statx& stx, FdRef root) {
  root_ = TRY(look_at(root));
  root_key_ = key_of(stx);
  return root_;
}

std::optional<Mount> Mounts::known(const struct statx& stx) const {
  const Key key = key_of(stx);
  if (key == root_key_) return root_;
  Lock lock(mutex_);
  const auto found = others_.find(key);
  if (found == others_.end()) return std::nullopt;
  return found->second;
}

std::size_t Mounts::count() const {
  Lock lock(mutex_);
  return count_;
}

Result<Mount> Mounts::learn(const struct statx& stx, FdRef on_it) {
  const Key key = key_of(stx);
  Mount mount = TRY(look_at(on_it));
  Lock lock(mutex_);
  const auto found = others_.find(key);
  if (found != others_.end()) return found->second;
  if (count_ >= kMost) return Errno{ENFILE};
  if (count_ < records_.size()) {
    MountRecord& record = records_[count_];
    record.device = key.device;
    record.id = key.id;
    record.by_birth = mount.by_birth ? 1 : 0;
    record.no_devices = mount.no_devices ? 1 : 0;
    record.known.store(1, std::memory_order_release);
  }
  mount.index = static_cast<std::uint16_t>(++count_);
  others_.emplace(key, mount);
  return mount;
}

}  // namespace virtiofsd
