// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Reads while the host changes what is read: `coherence FOLDER SECONDS` reads,
// maps, appends to and looks up files that the host truncates, replaces, renames
// and removes at the same time. Each file holds lines of 16 bytes that
// name it, so that no byte of one file is ever taken for another's.
// A descriptor must stay with the file it was opened on.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "expect.h"

static uint64_t state;
static sigjmp_buf out;
static unsigned long *counts;
enum { kReads, kStale, kGone, kBus, kMaps, kWrites, kLists, kTorn };

static uint32_t roll(uint32_t below) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)(state >> 20) % below;
}
static void on_bus(int number) {
  (void)number;
  siglongjmp(out, 1);
}
static void count_one(int what) { __atomic_fetch_add(&counts[what], 1, __ATOMIC_RELAXED); }

// All lines are `expected`'s or zero; learns `expected` from the first.
static int check(const char* bytes, size_t length, char* expected) {
  static const char zero[16];
  for (size_t at = 0; at + 16 <= length; at += 16) {
    if (memcmp(bytes + at, zero, 16) == 0) continue;
    if (expected[0] == 0) memcpy(expected, bytes + at, 16);
    if (memcmp(bytes + at, expected, 16) != 0) {
      fprintf(stderr, "at %zu: '%.16s' in the file of '%.16s'\n", at, bytes + at, expected);
      return 0;
    }
  }
  return 1;
}

// The file may be gone: another one may have its name, or none.
static void tolerate(int line) {
  if (errno == ESTALE) {
    count_one(kStale);
  } else if (errno == ENOENT) {
    count_one(kGone);
  } else {
    fprintf(stderr, "line %d: %s\n", line, strerror(errno));
    exit(1);
  }
}
#define MUST_BE_TOLERABLE() tolerate(__LINE__)

static void step(void) {
  static char bytes[65536];
  char name[32], expected[17] = "";
  snprintf(name, sizeof name, "file-%u", roll(12));
  struct stat info;
  switch (roll(8)) {
    case 0: {
      DIR* folder = opendir(".");
      EXPECT(folder != NULL);
      for (const struct dirent* entry; (errno = 0, entry = readdir(folder)) != NULL;) {
        if (roll(2) && fstatat(dirfd(folder), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) MUST_BE_TOLERABLE();
      }
      EXPECT(errno == 0 && closedir(folder) == 0);
      count_one(kLists);
      return;
    }
    case 1:
      if (lstat(name, &info) != 0) MUST_BE_TOLERABLE();
      return;
  }
  const int writes = roll(4) == 0;
  const int fd = open(name, writes ? O_RDWR : O_RDONLY);
  if (fd < 0) {
    MUST_BE_TOLERABLE();
    return;
  }
  for (int round = 0; round < 4; ++round) {
    if (roll(3) == 0) {
      char* map = mmap(NULL, 65536, PROT_READ, roll(2) ? MAP_SHARED : MAP_PRIVATE, fd, 0);
      if (map == MAP_FAILED) continue;
      if (sigsetjmp(out, 1) == 0) {
        memset(bytes, 0, sizeof bytes);
        for (int page = 0; page < 16; ++page) memcpy(bytes + page * 4096, map + page * 4096, 4096);
        count_one(kMaps);
      } else {
        count_one(kBus);
      }
      EXPECT(munmap(map, 65536) == 0);
      EXPECT(check(bytes, sizeof bytes, expected));
      memset(bytes, 0, sizeof bytes);
    } else {
      const ssize_t got = pread(fd, bytes, sizeof bytes, 0);
      if (got < 0) {
        MUST_BE_TOLERABLE();
        continue;
      }
      count_one(kReads);
      EXPECT(check(bytes, (size_t)got, expected));
    }
    if (writes && expected[0] != 0) {
      if (pwrite(fd, expected, 16, 16 * roll(2000)) != 16) MUST_BE_TOLERABLE();
      count_one(kWrites);
    }
    if (fstat(fd, &info) != 0) MUST_BE_TOLERABLE();
    if (roll(2)) usleep(roll(3000));
  }
  EXPECT(close(fd) == 0 || errno == ESTALE);
}

int main(int count, char** words) {
  EXPECT(count == 3 && chdir(words[1]) == 0);
  const time_t end = time(NULL) + atoi(words[2]);
  struct sigaction action = {.sa_handler = on_bus};
  EXPECT(sigaction(SIGBUS, &action, NULL) == 0);
  counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 3; ++i) {
    const pid_t child = fork();
    EXPECT(child >= 0);
    if (child > 0) continue;
    state = (uint64_t)(i + 1) * 0x9e3779b97f4a7c15u;
    while (time(NULL) < end) step();
    exit(0);
  }
  int status, failed = 0;
  while (wait(&status) > 0) failed |= status;
  EXPECT(failed == 0);
  printf("%lu reads, %lu maps, %lu SIGBUS, %lu writes, %lu lists, %lu stale, %lu gone\n", counts[kReads], counts[kMaps],
         counts[kBus], counts[kWrites], counts[kLists], counts[kStale], counts[kGone]);
  return 0;
}
