// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What no shell tool asks of a file system, asked in a guest:
// `special FOLDER SINCE` tests O_TMPFILE, birth times (none before SINCE, in
// seconds), file handles, renameat2, holes, deleted files still open and
// reading a folder while it changes.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "expect.h"

static void write_file(const char* name, const char* text) {
  int fd;
  EXPECT((fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644)) >= 0);
  EXPECT(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
  EXPECT(close(fd) == 0);
}

static void test_tmpfile(void) {
  int fd;
  struct stat info;
  EXPECT((fd = open(".", O_TMPFILE | O_RDWR, 0640)) >= 0);
  EXPECT(fstat(fd, &info) == 0 && info.st_nlink == 0 && (info.st_mode & 07777) == 0640);
  EXPECT(write(fd, "unnamed", 7) == 7);
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  EXPECT(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0);
  EXPECT(close(fd) == 0);
  EXPECT(stat("named", &info) == 0 && info.st_nlink == 1 && info.st_size == 7);
  printf("O_TMPFILE: as expected\n");
}

static void test_birth_time(long since) {
  write_file("born", "x");
  struct statx info;
  EXPECT(statx(AT_FDCWD, "born", 0, STATX_BASIC_STATS | STATX_BTIME, &info) == 0);
  // FUSE carries birth times from Linux 6.6 on; before that the guest has none to show.
  if (info.stx_mask & STATX_BTIME) {
    EXPECT(info.stx_btime.tv_sec >= since);
    printf("birth time: as expected\n");
  } else {
    EXPECT(info.stx_mtime.tv_sec >= since);
    printf("birth time: not known to this kernel\n");
  }
}

static void test_handles(void) {
  write_file("by-handle", "found");
  struct {
    struct file_handle head;
    unsigned char bytes[MAX_HANDLE_SZ];
  } handle = {.head = {.handle_bytes = MAX_HANDLE_SZ}}, folder = handle;
  int mount_id;
  int fd;
  char text[8] = "";
  EXPECT(name_to_handle_at(AT_FDCWD, "by-handle", &handle.head, &mount_id, 0) == 0);
  const int mount = open(".", O_RDONLY | O_DIRECTORY);
  EXPECT((fd = open_by_handle_at(mount, &handle.head, O_RDONLY)) >= 0);
  EXPECT(read(fd, text, sizeof text) == 5 && memcmp(text, "found", 5) == 0);
  EXPECT(close(fd) == 0);

  // A folder's handle leads on to its parents.
  EXPECT(mkdir("by-handle-folder", 0755) == 0);
  EXPECT(name_to_handle_at(AT_FDCWD, "by-handle-folder", &folder.head, &mount_id, 0) == 0);
  EXPECT((fd = open_by_handle_at(mount, &folder.head, O_RDONLY | O_DIRECTORY)) >= 0);
  EXPECT(faccessat(fd, "../by-handle", R_OK, 0) == 0);
  EXPECT(close(fd) == 0);

  // The handle of a file that is gone opens nothing, least of all another file.
  EXPECT(unlink("by-handle") == 0);
  write_file("by-handle", "other");
  EXPECT_ERRNO(open_by_handle_at(mount, &handle.head, O_RDONLY), ESTALE);
  close(mount);
  printf("file handles: as expected\n");
}

static void test_rename_flags(void) {
  write_file("one", "1");
  write_file("two", "22");
  struct stat info;
  EXPECT_ERRNO(renameat2(AT_FDCWD, "one", AT_FDCWD, "two", RENAME_NOREPLACE), EEXIST);
  EXPECT(renameat2(AT_FDCWD, "one", AT_FDCWD, "two", RENAME_EXCHANGE) == 0);
  EXPECT(stat("one", &info) == 0 && info.st_size == 2);
  EXPECT(stat("two", &info) == 0 && info.st_size == 1);
  EXPECT(renameat2(AT_FDCWD, "one", AT_FDCWD, "three", RENAME_NOREPLACE) == 0);
  EXPECT_ERRNO(stat("one", &info), ENOENT);
  printf("renameat2: as expected\n");
}

static void test_holes(void) {
  int fd;
  struct stat info;
  EXPECT((fd = open("holes", O_RDWR | O_CREAT | O_TRUNC, 0644)) >= 0);
  EXPECT(ftruncate(fd, 4 << 20) == 0);
  EXPECT(pwrite(fd, "data", 4, 1 << 20) == 4);
  EXPECT(fsync(fd) == 0);
  EXPECT(lseek(fd, 0, SEEK_DATA) == 1 << 20);
  EXPECT(lseek(fd, 1 << 20, SEEK_HOLE) > 1 << 20);
  EXPECT_ERRNO(lseek(fd, 5 << 20, SEEK_DATA), ENXIO);
  EXPECT(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 4096) == 0);
  char byte = 'x';
  EXPECT(pread(fd, &byte, 1, 1 << 20) == 1 && byte == 0);
  EXPECT(fallocate(fd, FALLOC_FL_KEEP_SIZE, 4 << 20, 65536) == 0);
  EXPECT(fstat(fd, &info) == 0 && info.st_size == 4 << 20);
  EXPECT(fallocate(fd, 0, 4 << 20, 65536) == 0);
  EXPECT(fstat(fd, &info) == 0 && info.st_size == (4 << 20) + 65536);
  EXPECT(close(fd) == 0);
  printf("holes: as expected\n");
}

static void test_deleted_but_open(void) {
  int fd;
  struct stat info;
  char text[8] = "";
  EXPECT((fd = open("deleted", O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
  EXPECT(unlink("deleted") == 0);
  EXPECT(write(fd, "alive", 5) == 5);
  EXPECT(ftruncate(fd, 3) == 0 && fchmod(fd, 0400) == 0);
  EXPECT(fstat(fd, &info) == 0 && info.st_nlink == 0 && info.st_size == 3);
  EXPECT((info.st_mode & 07777) == 0400);
  EXPECT(pread(fd, text, sizeof text, 0) == 3 && memcmp(text, "ali", 3) == 0);
  EXPECT(close(fd) == 0);
  EXPECT_ERRNO(stat("deleted", &info), ENOENT);
  printf("deleted but open: as expected\n");
}

static void test_shared_mapping(void) {
  int fd;
  EXPECT((fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0644)) >= 0);
  EXPECT(ftruncate(fd, 65536) == 0);
  char* map = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  EXPECT(map != MAP_FAILED);
  memcpy(map + 40000, "through memory", 14);
  EXPECT(msync(map, 65536, MS_SYNC) == 0);
  char text[14];
  EXPECT(pread(fd, text, sizeof text, 40000) == 14 && memcmp(text, "through memory", 14) == 0);
  EXPECT(munmap(map, 65536) == 0 && close(fd) == 0);
  printf("shared mapping: as expected\n");
}

static void test_folder_that_changes(void) {
  enum { kFiles = 700 };
  char name[64];
  EXPECT(mkdir("many", 0755) == 0);
  for (int i = 0; i < kFiles; ++i) {
    snprintf(name, sizeof name, "many/a-rather-long-name-%04d", i);
    write_file(name, "");
  }
  // Every file that was there all the time is seen exactly once, whatever is deleted meanwhile.
  static unsigned char seen[kFiles];
  DIR* folder = opendir("many");
  EXPECT(folder != NULL);
  int removed = -1;
  for (const struct dirent* entry; (entry = readdir(folder)) != NULL;) {
    int index;
    if (sscanf(entry->d_name, "a-rather-long-name-%d", &index) != 1) continue;
    EXPECT(index >= 0 && index < kFiles && !seen[index]);
    seen[index] = 1;
    if (removed < 0) {
      removed = index;
      EXPECT(unlinkat(dirfd(folder), entry->d_name, 0) == 0);
    }
  }
  for (int i = 0; i < kFiles; ++i) EXPECT(seen[i]);
  rewinddir(folder);
  int count = 0;
  while (readdir(folder) != NULL) ++count;
  EXPECT(count == kFiles - 1 + 2);
  EXPECT(closedir(folder) == 0);
  printf("a folder that changes: as expected\n");
}

int main(int count, char** words) {
  EXPECT(count == 3 && chdir(words[1]) == 0);
  test_tmpfile();
  test_birth_time(atol(words[2]));
  test_handles();
  test_rename_flags();
  test_holes();
  test_deleted_but_open();
  test_shared_mapping();
  test_folder_that_changes();
  return 0;
}
