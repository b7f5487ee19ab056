// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Between two looks at memory that another processor will change: tells this one that it spins.
#pragma once

namespace virtiofsd {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("yield");
#endif
}

}  // namespace virtiofsd
