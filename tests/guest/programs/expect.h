// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What the programs that run in a guest share: they end at the first thing
// that isn't so, and say which.
#pragma once

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(condition)                                                                \
  do {                                                                                   \
    errno = 0;                                                                           \
    if (!(condition)) {                                                                  \
      fprintf(stderr, "%s:%d: not so: %s (errno: %s)\n", __FILE__, __LINE__, #condition, \
              strerror(errno));                                                          \
      exit(1);                                                                           \
    }                                                                                    \
  } while (0)

// For calls that must be refused with exactly this errno.
#define EXPECT_ERRNO(call, expected) EXPECT((call) == -1 && errno == (expected))
