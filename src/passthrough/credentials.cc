// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/credentials.h"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <span>

#include "base/check.h"
#include "base/log.h"
#include "sys/process.h"

namespace virtiofsd {
namespace {

constexpr std::uint64_t bit(int capability) {
  return std::uint64_t{1} << capability;
}

// What the kernel takes away and gives back when the file system uid leaves and
// regains 0: CAP_FS_SET of include/linux/capability.h.
constexpr std::uint64_t kFileSystemSet =
    bit(CAP_CHOWN) | bit(CAP_MKNOD) | bit(CAP_DAC_OVERRIDE) | bit(CAP_DAC_READ_SEARCH) |
    bit(CAP_FOWNER) | bit(CAP_FSETID) | bit(CAP_MAC_OVERRIDE) | bit(CAP_LINUX_IMMUTABLE);

// What the thread is between requests.
struct Self {
  bool known = false;
  bool switched = false;  // acts as somebody else now
  uid_t uid = 0;
  gid_t gid = 0;
  bool groups_known = false;
  bool kernel_adjusts = false;  // capabilities follow the file system uid
  sys::Capabilities capabilities;
};
thread_local Self self;

void learn_self() {
  CHECK(!self.switched);
  if (self.known) [[likely]]
    return;
  self.uid = sys::fs_uid();
  self.gid = sys::fs_gid();
  const auto capabilities = sys::capabilities();
  if (capabilities) self.capabilities = *capabilities;
  const int secure_bits = ::prctl(PR_GET_SECUREBITS);
  self.kernel_adjusts =
      self.uid == 0 && (secure_bits < 0 || (secure_bits & SECBIT_NO_SETUID_FIXUP) == 0);
  self.groups_known = sys::set_groups({}).has_value();
  self.known = true;
}

Result<> set_effective(std::uint64_t effective) {
  sys::Capabilities wanted = self.capabilities;
  wanted.effective = effective;
  return sys::set_capabilities(wanted);
}

}  // namespace

void prepare_thread_credentials() {
  learn_self();
  if (!self.groups_known) {
    log::debug(
        "this process may not drop its supplementary groups; set-group-id bits of new "
        "files are dropped instead");
  }
}

bool ScopedCredentials::groups_are_known() {
  learn_self();
  return self.groups_known;
}

Result<> ScopedCredentials::assume(const fuse::Caller& caller, Override override) {
  learn_self();
  CHECK(!switched_);
  if (caller.uid == ~0U || caller.gid == ~0U) return Errno{EINVAL};

  const std::uint64_t base = self.capabilities.effective;
  const bool other_user = caller.uid != self.uid;
  // A group decides nothing for who overrides permissions and may set any set-id bit.
  const bool groups_matter = other_user || (~base & (bit(CAP_DAC_OVERRIDE) | bit(CAP_FSETID))) != 0;
  const bool add_group = caller.supplementary_group && self.groups_known && groups_matter &&
                         *caller.supplementary_group != caller.gid;
  if (!other_user && caller.gid == self.gid && !add_group) return {};

  switched_ = true;
  self.switched = true;
  effective_ = base;
  if (add_group) {
    const gid_t group = *caller.supplementary_group;
    TRY(sys::set_groups(std::span{&group, 1}));
    groups_ = true;
  }
  if (caller.gid != self.gid) {
    gid_ = true;
    TRY(sys::set_fs_gid(caller.gid));
  }
  if (other_user) {
    uid_ = true;
    TRY(sys::set_fs_uid(caller.uid));
    std::uint64_t wanted = base & ~kFileSystemSet;
    if (self.kernel_adjusts) effective_ = wanted;
    if (override == Override::kDac) {
      wanted |= self.capabilities.permitted & base & bit(CAP_DAC_OVERRIDE);
    }
    if (wanted != effective_) {
      TRY(set_effective(wanted));
      effective_ = wanted;
    }
  }
  return {};
}

ScopedCredentials::~ScopedCredentials() {
  if (!switched_) return;
  // The order matters: the ids are changed by CAP_SETUID and CAP_SETGID, which
  // are no file system capabilities and were there all the time.
  std::uint64_t effective = effective_;
  if (uid_) {
    CHECK(sys::set_fs_uid(self.uid));
    // Conservative after a uid that wasn't taken: nothing says what the kernel adjusted.
    if (self.kernel_adjusts) effective |= self.capabilities.permitted & kFileSystemSet;
  }
  if (gid_) CHECK(sys::set_fs_gid(self.gid));
  if (groups_) CHECK(sys::set_groups({}));
  if (effective != self.capabilities.effective) {
    CHECK(set_effective(self.capabilities.effective));
  }
  self.switched = false;
}

Result<> ScopedWithoutFsetid::drop(gid_t group) {
  learn_self();
  CHECK(!dropped_ && !gid_);
  const std::uint64_t base = self.capabilities.effective;
  if ((base & bit(CAP_FSETID)) != 0) {
    TRY(set_effective(base & ~bit(CAP_FSETID)));
    dropped_ = true;
    // A ScopedCredentials inside comes back to this.
    self.capabilities.effective = base & ~bit(CAP_FSETID);
  }
  gid_ = group != self.gid && sys::set_fs_gid(group);
  return {};
}

ScopedWithoutFsetid::~ScopedWithoutFsetid() {
  if (!dropped_ && !gid_) return;
  CHECK(!self.switched);
  if (gid_) CHECK(sys::set_fs_gid(self.gid));
  if (!dropped_) return;
  self.capabilities.effective |= bit(CAP_FSETID);
  CHECK(set_effective(self.capabilities.effective));
}

ScopedUmask::ScopedUmask(const fuse::Negotiated& session, std::uint32_t umask, mode_t& mode) {
  if (!session.has(FUSE_DONT_MASK)) return;
  if (sys::works_in_proc_self_fd()) {
    ::umask(static_cast<mode_t>(umask & 0777));
    set_ = true;
  } else {
    mode &= ~static_cast<mode_t>(umask & 0777);
  }
}

ScopedUmask::~ScopedUmask() {
  if (set_) ::umask(0);
}

}  // namespace virtiofsd
