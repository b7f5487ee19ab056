// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Many at once in one tree: `storm FOLDER SEED PROCESSES SECONDS` makes,
// links, renames, exchanges, reads, writes and removes at random, and then
// walks the tree. Always true: a file holds one tag, its own, again and again,
// or zeros; no operation fails in a way that races don't explain; in the end
// each file has as many links as names, and a listing's inode numbers and
// types are those of stat. `storm FOLDER check` is the walk alone.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "expect.h"

enum { kCell = 64, kCells = 512, kNames = 7 };

static uint64_t state;
static int self;
static unsigned long made;
static unsigned long* counts;  // shared: operations, stale answers

static uint32_t roll(uint32_t below) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)(state >> 20) % below;
}

// A path of up to four components out of few names: processes meet often.
static void some_path(char* path) {
  static const char* const names[kNames] = {"a", "b", "c", "dd", "ee", "f-rather-long-name-to-fill-listings", "g"};
  *path = 0;
  for (uint32_t depth = 1 + roll(4); depth > 0; --depth) {
    strcat(path, names[roll(kNames)]);
    if (depth > 1) strcat(path, "/");
  }
}

// `good`: the call succeeded. Else the errno must be one that a race or the wrong type of file explains.
static void allow(int good, const char* what, const char* path) {
  if (good) return;
  switch (errno) {
    case ENOENT:
    case EEXIST:
    case ENOTDIR:
    case EISDIR:
    case ENOTEMPTY:
    case ELOOP:
      return;
    case ESTALE:
      __atomic_fetch_add(&counts[1], 1, __ATOMIC_RELAXED);
      return;
    case EINVAL:  // a folder into itself; another type of file
      if (strncmp(what, "rename", 6) == 0 || strcmp(what, "readlink") == 0 || strcmp(what, "truncate") == 0) return;
      break;
    case EPERM:  // a folder can't be linked; fifos and symlinks have no user attributes
      if (strcmp(what, "link") == 0 || strstr(what, "xattr") != NULL) return;
      break;
    case ENODATA:
    case EOPNOTSUPP:
      if (strstr(what, "xattr") != NULL || strcmp(what, "tmpfile") == 0) return;
      break;
    case ENXIO:  // a fifo that nobody reads
      if (strcmp(what, "open") == 0) return;
      break;
  }
  fprintf(stderr, "storm: %s of %s: %s\n", what, path, strerror(errno));
  exit(1);
}

// What a file has in it must be cells with one tag, or zero.
static void check_cells(const unsigned char* bytes, size_t length, const char* path, unsigned char* tag) {
  static const unsigned char zero[kCell];
  memset(tag, 0, kCell);
  for (size_t at = 0; at + kCell <= length; at += kCell) {
    if (memcmp(bytes + at, zero, kCell) == 0) continue;
    if (tag[0] == 0) memcpy(tag, bytes + at, kCell);
    if (memcmp(bytes + at, tag, kCell) != 0) {
      fprintf(stderr, "storm: %s at %zu: '%.64s' in the file of '%.64s'\n", path, at, bytes + at, tag);
      exit(1);
    }
  }
}

static void begin_file(int fd) {
  char tag[kCell + 1];
  memset(tag, '.', sizeof tag);
  const int length = snprintf(tag, sizeof tag, "process %d file %lu ", self, ++made);
  tag[length] = '.';
  EXPECT(pwrite(fd, tag, kCell, kCell * roll(8)) == kCell);
}

static void use_file(const char* path, int fd, int writes) {
  static unsigned char bytes[kCell * kCells];
  unsigned char tag[kCell];
  struct stat info;
  EXPECT(fstat(fd, &info) == 0);
  if (!S_ISREG(info.st_mode)) return;
  const ssize_t got = pread(fd, bytes, sizeof bytes, 0);
  allow(got >= 0, "read", path);
  if (got < 0) return;
  check_cells(bytes, (size_t)got, path, tag);
  if (!writes || tag[0] == 0) return;
  switch (roll(4)) {
    case 0:
      allow(ftruncate(fd, kCell * roll(kCells)) == 0, "ftruncate", path);
      break;
    case 1:
      allow(fallocate(fd, roll(2), kCell * roll(kCells / 2), 4096) == 0, "fallocate", path);
      break;
    default: {
      const size_t many = 1 + roll(kCells / 2);
      for (size_t i = 0; i < many; ++i) memcpy(bytes + i * kCell, tag, kCell);
      allow(pwrite(fd, bytes, many * kCell, kCell * roll(kCells / 2)) == (ssize_t)(many * kCell), "write", path);
    }
  }
}

static void list_folder(const char* path) {
  DIR* folder = opendir(path);
  allow(folder != NULL, "opendir", path);
  if (folder == NULL) return;
  char seen[64][48];
  int count = 0;
  errno = 0;
  for (const struct dirent* entry; (entry = readdir(folder)) != NULL;) {
    for (int i = 0; i < count; ++i) {
      // A name can move on and be seen again, but not "." and "..".
      EXPECT(entry->d_name[0] != '.' || strcmp(seen[i], entry->d_name) != 0);
    }
    if (count < 64) snprintf(seen[count++], sizeof seen[0], "%.47s", entry->d_name);
    struct stat info;
    if (roll(2)) allow(fstatat(dirfd(folder), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0, "fstatat", path);
    errno = 0;
  }
  allow(errno == 0, "readdir", path);
  EXPECT(closedir(folder) == 0);
}

static void step(void) {
  char path[160], other[160], text[64];
  struct stat info;
  int fd, writes = 1;
  some_path(path);
  some_path(other);
  __atomic_fetch_add(&counts[0], 1, __ATOMIC_RELAXED);
  switch (roll(26)) {
    case 0:
    case 1:
      allow((fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0644)) >= 0, "create", path);
      if (fd >= 0) begin_file(fd);
      break;
    case 2:
    case 3:
      fd = -1;
      allow(mkdir(path, 0755) == 0, "mkdir", path);
      break;
    case 4:
    case 5:
    case 6:
    case 7:
      allow((fd = open(path, O_RDWR | O_NONBLOCK)) >= 0, "open", path);
      if (fd >= 0) use_file(path, fd, 1);
      break;
    case 8:
    case 9:
      writes = 0;
      allow((fd = open(path, O_RDONLY | O_NONBLOCK)) >= 0, "open", path);
      if (fd >= 0) use_file(path, fd, 0);
      break;
    case 10:
      fd = open(".", O_TMPFILE | O_RDWR, 0600);
      allow(fd >= 0, "tmpfile", path);
      if (fd < 0) break;
      begin_file(fd);
      snprintf(text, sizeof text, "/proc/self/fd/%d", fd);
      allow(linkat(AT_FDCWD, text, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0, "linkat", path);
      use_file(path, fd, 1);
      break;
    default:
      fd = -1;
      switch (roll(17)) {
        case 0:
        case 1:
          allow(unlink(path) == 0, "unlink", path);
          break;
        case 2:
          allow(rmdir(path) == 0, "rmdir", path);
          break;
        case 3:
          allow(link(path, other) == 0, "link", path);
          break;
        case 4:
          allow(symlink("a/b", path) == 0, "symlink", path);
          break;
        case 5:
        case 6:
          allow(rename(path, other) == 0, "rename", path);
          break;
        case 7:
          allow(renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_EXCHANGE) == 0, "rename exchange", path);
          break;
        case 8:
          allow(renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_NOREPLACE) == 0, "rename noreplace", path);
          break;
        case 9:
        case 10:
          some_path(path);
          if (roll(4) == 0) strcpy(path, ".");
          list_folder(path);
          break;
        case 11:
          allow(truncate(path, kCell * roll(kCells)) == 0, "truncate", path);
          break;
        case 12:
          allow(chmod(path, 0700 | roll(0100)) == 0, "chmod", path);
          break;
        case 13:
          allow(lchown(path, roll(5000), roll(5000)) == 0, "lchown", path);
          break;
        case 14:
          allow(lsetxattr(path, "user.storm", path, strlen(path), 0) == 0, "setxattr", path);
          allow(lgetxattr(path, "user.storm", text, sizeof text) >= 0 || errno == ERANGE, "getxattr", path);
          break;
        case 15:
          allow(readlink(path, text, sizeof text) >= 0, "readlink", path);
          allow(mknod(other, S_IFIFO | 0644, 0) == 0, "mknod", other);
          break;
        case 16:
          allow(lstat(path, &info) == 0, "lstat", path);
          allow(utimensat(AT_FDCWD, path, NULL, AT_SYMLINK_NOFOLLOW) == 0, "utimensat", path);
          break;
      }
  }
  if (fd < 0) return;
  if (roll(3) == 0) {  // longer in use than its name
    allow(unlink(path) == 0, "unlink", path);
    use_file(path, fd, writes);
    if (roll(4) == 0) EXPECT(fchmod(fd, 0600) == 0 && fstat(fd, &info) == 0);
  }
  EXPECT(close(fd) == 0);
}

// The walk: inode number, links and names found of each file that has several.
static struct {
  ino_t number;
  nlink_t links, names;
} linked[20000];
static int linked_count;
static int wrong;

static void walk(int parent, const char* name, int depth) {
  const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  EXPECT(fd >= 0);
  DIR* folder = fdopendir(fd);
  EXPECT(folder != NULL && depth < 200);
  for (const struct dirent* entry; (errno = 0, entry = readdir(folder)) != NULL;) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    struct stat info;
    EXPECT(fstatat(fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0);
    if (info.st_ino != entry->d_ino || (entry->d_type != DT_UNKNOWN && entry->d_type != IFTODT(info.st_mode))) {
      printf("%s: the listing has inode %lu type %d, stat %lu and mode 0%o\n", entry->d_name, entry->d_ino, entry->d_type,
             info.st_ino, info.st_mode);
      ++wrong;
    }
    if (S_ISDIR(info.st_mode)) {
      walk(fd, entry->d_name, depth + 1);
      continue;
    }
    if (S_ISREG(info.st_mode)) {
      static unsigned char bytes[kCell * kCells];
      unsigned char tag[kCell];
      const int file = openat(fd, entry->d_name, O_RDONLY);
      EXPECT(file >= 0);
      const ssize_t got = pread(file, bytes, sizeof bytes, 0);
      EXPECT(got == (info.st_size < (off_t)sizeof bytes ? info.st_size : (off_t)sizeof bytes));
      check_cells(bytes, (size_t)got, entry->d_name, tag);
      EXPECT(close(file) == 0);
    }
    int i = 0;
    while (i < linked_count && linked[i].number != info.st_ino) ++i;
    EXPECT(i < 20000);
    if (i == linked_count) ++linked_count;
    linked[i].number = info.st_ino;
    linked[i].links = info.st_nlink;
    ++linked[i].names;
  }
  EXPECT(errno == 0 && closedir(folder) == 0);
}

static int check(void) {
  walk(AT_FDCWD, ".", 0);
  for (int i = 0; i < linked_count; ++i) {
    if (linked[i].links == linked[i].names) continue;
    printf("inode %lu has %lu links and %lu names\n", linked[i].number, linked[i].links, linked[i].names);
    ++wrong;
  }
  printf("%d files\n", linked_count);
  return wrong != 0;
}

int main(int count, char** words) {
  EXPECT(count >= 3 && chdir(words[1]) == 0);
  umask(0);
  if (strcmp(words[2], "check") == 0) return check();
  EXPECT(count == 5);
  const uint64_t seed = strtoull(words[2], NULL, 0);
  const int processes = atoi(words[3]);
  const time_t end = time(NULL) + atoi(words[4]);
  counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  EXPECT(counts != MAP_FAILED);
  for (self = 0; self < processes; ++self) {
    const pid_t child = fork();
    EXPECT(child >= 0);
    if (child > 0) continue;
    state = (seed * 1000 + (uint64_t)self + 1) * 0x9e3779b97f4a7c15u;
    while (time(NULL) < end) step();
    exit(0);
  }
  int status, failed = 0;
  while (wait(&status) > 0) failed |= status;
  EXPECT(failed == 0);
  printf("%lu operations, %lu stale\n", counts[0], counts[1]);
  return check();
}
