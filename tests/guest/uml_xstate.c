/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 *
 * Preloaded into User Mode Linux. The kernel of Debian 12 keeps 2696 bytes of
 * its processes' floating-point state, which is all up to AVX-512 and PKRU. On
 * processors with more of it (AMX), the host takes nothing but the whole for
 * PTRACE_SETREGSET (xstateregs_set: EFAULT), and the guest panics at its first
 * process. So what the guest doesn't know of is added here, as the host has it.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* One thread of UML has its processes' registers; its stacks are too small for this. */
static unsigned char state[1 << 16];

static long set_state(pid_t pid, const struct iovec *known) {
  struct iovec whole = {.iov_base = state, .iov_len = sizeof state};
  if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &whole) != 0 ||
      whole.iov_len <= known->iov_len)
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, known);
  memcpy(state, known->iov_base, known->iov_len);
  return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &whole);
}

/* Otherwise the C library's: what is peeked is the result. */
long ptrace(enum __ptrace_request request, ...) {
  va_list words;
  va_start(words, request);
  const pid_t pid = va_arg(words, pid_t);
  void *const address = va_arg(words, void *);
  void *data = va_arg(words, void *);
  va_end(words);

  if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) return set_state(pid, data);
  long peeked = 0;
  const int peeks =
      request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
  const long result = syscall(SYS_ptrace, request, pid, address, peeks ? &peeked : data);
  if (result < 0 || !peeks) return result;
  errno = 0;
  return peeked;
}
