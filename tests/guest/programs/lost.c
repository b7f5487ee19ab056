// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Pages the host doesn't take: `lost FILE` makes all pages of FILE dirty
// through a mapping, of which the host refuses the last, and must be told.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "expect.h"

int main(int count, char** words) {
  EXPECT(count == 2);
  struct stat info;
  const int fd = open(words[1], O_RDWR);
  EXPECT(fd >= 0 && fstat(fd, &info) == 0);
  const size_t size = (size_t)info.st_size;
  char* map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  EXPECT(map != MAP_FAILED);
  memset(map, 'x', size);
  EXPECT(msync(map, size, MS_SYNC) == -1);
  EXPECT(munmap(map, size) == 0);
  close(fd);
  printf("lost pages: as expected\n");
  return 0;
}
