// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sys/fd.h"

#include <unistd.h>

#include "base/check.h"

namespace virtiofsd {

void UniqueFd::reset() {
  const int number = std::exchange(number_, -1);
  if (number < 0) return;
  const int saved = errno;
  // Linux frees the number even when close reports EINTR or EIO.
  const int closed = ::close(number);
  CHECK(closed == 0 || errno != EBADF);
  errno = saved;
}

}  // namespace virtiofsd
