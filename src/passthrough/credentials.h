// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Acting as the caller. What a guest's process creates must belong to that
// process and be allowed to it, so creating operations run with its ids on the
// file system; everything else runs as the daemon, for the guest's kernel has
// checked already who may.
//
// Always true: between requests a thread has its own ids, no supplementary
// groups and its own capabilities; a scope that can't come back ends the
// process, because serving on as somebody else is worse. While a thread acts
// as a caller other than its own user it lacks the file system capabilities
// (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD ...), so
// that the host's rules on set-id bits hold for what it creates: no file gets
// a set-group-id bit for a group that its creator isn't in (CVE-2022-0358).
//
// A caller with the ids that the thread has anyway costs no system call.
// Scopes live on the stack of one thread and don't nest but where said.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/result.h"
#include "fuse/call.h"

namespace virtiofsd {

// Makes the calling thread what the invariant above says, once; later calls
// cost nothing. ScopedCredentials does it when nobody did.
void prepare_thread_credentials();

// This thread acts as the caller until the scope ends.
class ScopedCredentials {
 public:
  enum class Override : std::uint8_t {
    kNone,
    // Keeps CAP_DAC_OVERRIDE: the guest didn't tell all that its kernel let the caller pass for
    // (groups, capabilities), so the host can't know.
    kDac,
  };

  ScopedCredentials() = default;
  ~ScopedCredentials();
  ScopedCredentials(const ScopedCredentials&) = delete;
  ScopedCredentials& operator=(const ScopedCredentials&) = delete;

  // At most once per scope. EINVAL for an id the kernel doesn't take (not
  // mapped, or all ones: the guest sent none). After an error the thread is
  // itself again when the scope ends.
  Result<> assume(const fuse::Caller& caller, Override override);

  // False where this process may not choose its groups (an unprivileged user
  // namespace): it may be in groups that the caller is not.
  static bool groups_are_known();

 private:
  bool switched_ = false;
  bool uid_ = false;
  bool gid_ = false;
  bool groups_ = false;
  std::uint64_t effective_ = 0;  // capabilities while switched
};

// Without CAP_FSETID a write, truncation or ACL change takes set-id bits off
// the file as it would for an ordinary user (FUSE_*_KILL_SUIDGID). Who is in
// the file's group keeps a set-group-id bit that the group may not execute
// with, so the thread is in the caller's group meanwhile. May enclose a
// ScopedCredentials, not the other way round.
class ScopedWithoutFsetid {
 public:
  ScopedWithoutFsetid() = default;
  ~ScopedWithoutFsetid();
  ScopedWithoutFsetid(const ScopedWithoutFsetid&) = delete;
  ScopedWithoutFsetid& operator=(const ScopedWithoutFsetid&) = delete;

  // At most once per scope. `group`: the caller's, as the host knows it; the thread stays in
  // its own where the kernel doesn't take that. EPERM where a filter forbids it.
  Result<> drop(gid_t group);

 private:
  bool dropped_ = false;
  bool gid_ = false;
};

// The caller's umask for a create. Without DONT_MASK the guest applied it and
// nothing happens. With it the kernel must do it, here, because a default ACL
// of the directory takes the umask's place.
class ScopedUmask {
 public:
  // `mode`, of what is to be made, loses the umask's bits where the thread has
  // no umask of its own to set.
  ScopedUmask(const fuse::Negotiated& session, std::uint32_t umask, mode_t& mode);
  ~ScopedUmask();
  ScopedUmask(const ScopedUmask&) = delete;
  ScopedUmask& operator=(const ScopedUmask&) = delete;

 private:
  bool set_ = false;
};

}  // namespace virtiofsd
