// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Files by handle (open_by_handle_at), across what the guest forgets meanwhile:
// `handles make FOLDER COUNT LIST` makes FOLDER and COUNT files in it, each with
// its name for text, and keeps the handles of all in LIST.
// `handles open MOUNT LIST` opens them all and reads; `handles stale MOUNT LIST`
// expects ESTALE of them all. Both drop the guest's caches first.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "expect.h"

struct handle {
  struct file_handle head;
  unsigned char bytes[MAX_HANDLE_SZ];
  int is_folder;
  char text[32];
};

static void keep(int list, const char* path, int is_folder, const char* text) {
  struct handle handle = {.head = {.handle_bytes = MAX_HANDLE_SZ}, .is_folder = is_folder};
  int id;
  EXPECT(name_to_handle_at(AT_FDCWD, path, &handle.head, &id, 0) == 0);
  snprintf(handle.text, sizeof handle.text, "%s", text);
  EXPECT(write(list, &handle, sizeof handle) == sizeof handle);
}

static void make(const char* folder, int count, int list) {
  int fd;
  char path[256];
  char text[32];
  EXPECT(mkdir(folder, 0755) == 0);
  for (int i = 0; i < count; ++i) {
    snprintf(text, sizeof text, "file%d", i);
    snprintf(path, sizeof path, "%s/%s", folder, text);
    EXPECT((fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644)) >= 0);
    EXPECT(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    EXPECT(close(fd) == 0);
    keep(list, path, 0, text);
  }
  keep(list, folder, 1, "");
}

static void drop_caches(void) {
  int fd;
  sync();
  EXPECT((fd = open("/proc/sys/vm/drop_caches", O_WRONLY)) >= 0);
  EXPECT(write(fd, "3", 1) == 1);
  EXPECT(close(fd) == 0);
}

int main(int count, char** words) {
  int list;
  EXPECT(count >= 4);
  if (strcmp(words[1], "make") == 0) {
    EXPECT(count == 5 && (list = open(words[4], O_WRONLY | O_CREAT | O_TRUNC, 0644)) >= 0);
    make(words[2], atoi(words[3]), list);
    return 0;
  }
  const int is_stale = strcmp(words[1], "stale") == 0;
  EXPECT(is_stale || strcmp(words[1], "open") == 0);
  EXPECT((list = open(words[3], O_RDONLY)) >= 0);
  const int mount = open(words[2], O_RDONLY | O_DIRECTORY);
  EXPECT(mount >= 0);
  drop_caches();
  struct handle handle;
  while (read(list, &handle, sizeof handle) == sizeof handle) {
    int fd;
    char text[32] = "";
    const int flags = O_RDONLY | (handle.is_folder ? O_DIRECTORY : 0);
    if (is_stale) {
      EXPECT_ERRNO(open_by_handle_at(mount, &handle.head, flags), ESTALE);
      continue;
    }
    EXPECT((fd = open_by_handle_at(mount, &handle.head, flags)) >= 0);
    if (!handle.is_folder)
      EXPECT(read(fd, text, sizeof text) > 0 && strcmp(text, handle.text) == 0);
    EXPECT(close(fd) == 0);
  }
  return 0;
}
