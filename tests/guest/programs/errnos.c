// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What must be refused and how: `errnos FOLDER` makes calls at the edges and
// prints a line for each, what it gave. The share in the guest and the same
// folder's file system on the host must print the same.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "expect.h"

#define SHOW(call)                                                                           \
  do {                                                                                       \
    errno = 0;                                                                               \
    const long gave = (long)(call);                                                          \
    printf("%3d %s: %ld %s\n", __LINE__, #call, gave, gave < 0 ? strerrorname_np(errno) : ""); \
  } while (0)

// An open's descriptor is of no matter, but it must be closed.
static int opens(const char* name, int flags, mode_t mode) {
  const int fd = open(name, flags, mode);
  if (fd >= 0) close(fd);
  return fd >= 0 ? 0 : -1;
}

static char long_name[400], long_path[5000], big[70000];
static char* volatile nowhere = (char*)8;

static void show_stat(const char* name) {
  struct stat info;
  if (lstat(name, &info) != 0) {
    printf("    %s: %s\n", name, strerrorname_np(errno));
    return;
  }
  printf("    %s: mode %o links %lu size %ld owner %u:%u device %x\n", name, info.st_mode, S_ISDIR(info.st_mode) ? 0 : info.st_nlink,
         S_ISDIR(info.st_mode) ? 0 : (long)info.st_size, info.st_uid, info.st_gid, (unsigned)info.st_rdev);
}

static void names(void) {
  struct stat info;
  SHOW(opens("file", O_RDWR | O_CREAT | O_EXCL, 0640));
  SHOW(opens("file", O_RDWR | O_CREAT | O_EXCL, 0640));
  SHOW(opens("file/", O_RDONLY, 0));
  SHOW(opens("file/x", O_RDONLY, 0));
  SHOW(opens("file/x", O_RDWR | O_CREAT, 0600));
  SHOW(opens("file", O_RDONLY | O_DIRECTORY, 0));
  SHOW(opens("file", O_RDONLY | O_DIRECTORY | O_CREAT, 0644));
  SHOW(opens("none", O_RDONLY, 0));
  SHOW(opens("none/", O_RDWR | O_CREAT, 0644));
  SHOW(opens("none/x", O_RDWR | O_CREAT, 0644));
  SHOW(opens("", O_RDONLY, 0));
  SHOW(mkdir("dir", 02755));
  SHOW(mkdir("dir", 0755));
  SHOW(mkdir("dir/", 0755));
  SHOW(mkdir("made/", 01777));
  SHOW(mkdir("file/x", 0755));
  SHOW(mkdir(".", 0755));
  SHOW(mkdir("..", 0755));
  SHOW(opens("dir", O_RDWR, 0));
  SHOW(opens("dir", O_WRONLY, 0));
  SHOW(opens("dir", O_RDONLY | O_TRUNC, 0));
  SHOW(opens("dir", O_RDONLY | O_CREAT, 0644));
  SHOW(opens("dir", O_RDWR | O_TMPFILE, 0644));
  SHOW(opens("dir", O_RDONLY | O_TMPFILE, 0644));
  SHOW(opens("file", O_RDWR | O_TMPFILE, 0644));
  SHOW(opens("none", O_RDWR | O_TMPFILE, 0644));
  SHOW(opens(long_name, O_RDWR | O_CREAT, 0644));
  SHOW(opens(long_path, O_RDONLY, 0));
  SHOW(mkdir(long_name, 0755));
  SHOW(symlink("x", long_name));
  SHOW(symlink(long_path, "long-link"));
  SHOW(symlink("", "empty-link"));
  SHOW(symlink("loop", "loop"));
  SHOW(symlink("none-at-all", "dangling"));
  SHOW(symlink("dir", "to-dir"));
  SHOW(symlink("x", "file"));
  SHOW(opens("loop", O_RDONLY, 0));
  SHOW(opens("loop/x", O_RDONLY, 0));
  SHOW(opens("dangling", O_RDONLY, 0));
  SHOW(opens("dangling", O_RDWR | O_CREAT | O_EXCL, 0644));
  SHOW(opens("dangling", O_RDONLY | O_NOFOLLOW, 0));
  SHOW(opens("dangling", O_RDWR | O_CREAT, 0644));
  SHOW(opens("to-dir", O_RDONLY | O_NOFOLLOW, 0));
  SHOW(opens("to-dir/", O_RDONLY | O_DIRECTORY, 0));
  SHOW(readlink("dir", big, 100));
  SHOW(readlink("file", big, 100));
  SHOW(readlink("dangling", big, 4));
  SHOW(readlink("none", big, 4));
  SHOW(link("file", "linked"));
  SHOW(link("file", "linked"));
  SHOW(link("dir", "linked-dir"));
  SHOW(link("none", "linked-none"));
  SHOW(link("dangling", "linked-symlink"));
  SHOW(link("file", "dir/none/x"));
  SHOW(link("file", long_name));
  SHOW(linkat(AT_FDCWD, "to-dir", AT_FDCWD, "linked-dir", AT_SYMLINK_FOLLOW));
  SHOW(unlink("dir"));
  SHOW(unlink("none"));
  SHOW(unlink("file/"));
  SHOW(unlink("file/x"));
  SHOW(unlink("to-dir/"));
  SHOW(unlink(long_name));
  SHOW(unlink("."));
  SHOW(rmdir("file"));
  SHOW(rmdir("none"));
  SHOW(rmdir("."));
  SHOW(rmdir("dir/."));
  SHOW(rmdir("dir/.."));
  SHOW(rmdir("to-dir"));
  SHOW(mkdir("dir/sub", 0755));
  SHOW(rmdir("dir"));
  SHOW(rename("dir", "dir/sub/inside"));
  SHOW(rename("dir", "dir"));
  SHOW(rename("dir/sub", "dir"));
  SHOW(rename("file", "dir"));
  SHOW(rename("dir", "file"));
  SHOW(rename("made", "dir"));
  SHOW(rename("dir/sub", "made"));
  SHOW(rename("none", "file"));
  SHOW(rename("file", "none/x"));
  SHOW(rename("file", "file/x"));
  SHOW(rename("file", "new/"));
  SHOW(rename("file", "linked"));
  SHOW(rename("file", long_name));
  SHOW(rename("file", "."));
  SHOW(rename("..", "x"));
  SHOW(renameat2(AT_FDCWD, "file", AT_FDCWD, "none", RENAME_EXCHANGE));
  SHOW(renameat2(AT_FDCWD, "none", AT_FDCWD, "file", RENAME_EXCHANGE));
  SHOW(renameat2(AT_FDCWD, "file", AT_FDCWD, "dir", RENAME_EXCHANGE));
  SHOW(renameat2(AT_FDCWD, "file", AT_FDCWD, "dir", RENAME_EXCHANGE));
  SHOW(renameat2(AT_FDCWD, "made", AT_FDCWD, "made/x", RENAME_EXCHANGE));
  SHOW(renameat2(AT_FDCWD, "file", AT_FDCWD, "dir", RENAME_NOREPLACE));
  SHOW(renameat2(AT_FDCWD, "file", AT_FDCWD, "file", RENAME_NOREPLACE));
  SHOW(renameat2(AT_FDCWD, "none", AT_FDCWD, "dir", RENAME_NOREPLACE));
  SHOW(renameat2(AT_FDCWD, "file", AT_FDCWD, "dir", RENAME_NOREPLACE | RENAME_EXCHANGE));
  SHOW(renameat2(AT_FDCWD, "file", AT_FDCWD, "x", 64));
  SHOW(mknod("fifo", S_IFIFO | 0620, 0));
  SHOW(mknod("socket", S_IFSOCK | 0600, 0));
  SHOW(mknod("char", S_IFCHR | 0600, makedev(1, 3)));
  SHOW(mknod("block", S_IFBLK | 0600, makedev(259, 70000)));
  SHOW(mknod("plain", S_IFREG | 04711, 0));
  SHOW(mknod("plain2", 0600, 0));
  SHOW(mknod("wrong", S_IFDIR | 0600, 0));
  SHOW(mknod("wrong", S_IFLNK | 0600, 0));
  SHOW(mknod("wrong", 0150000 | 0600, 0));
  SHOW(mknod("file", S_IFIFO | 0600, 0));
  SHOW(opens("fifo", O_WRONLY | O_NONBLOCK, 0));
  SHOW(opens("fifo", O_RDONLY | O_NONBLOCK, 0));
  SHOW(opens("socket", O_RDWR, 0));
  SHOW(truncate("fifo", 0));
  SHOW(truncate("dir", 0));
  SHOW(truncate("none", 0));
  SHOW(truncate("file", -1));
  SHOW(truncate("char", 0));
  SHOW(chmod("none", 0600));
  SHOW(chmod("dangling", 0600));
  SHOW(fchmodat(AT_FDCWD, "to-dir", 02711, 0));
  SHOW(chmod("plain", 07777));
  SHOW(lchown("dangling", 12, 34));
  SHOW(chown("plain", 12, 34));
  SHOW(chown("plain", -1, -1));
  SHOW(access("file", X_OK));
  SHOW(access("plain", X_OK));
  SHOW(access("none", F_OK));
  SHOW(access("file", 8));
  SHOW(chdir("file"));
  SHOW(stat("file/.", &info));
  SHOW(stat("dir/sub/../../file", &info));
  SHOW(opens("file", O_RDONLY | O_NOATIME, 0));
  SHOW(opens("file", O_RDONLY | O_PATH, 0));
  const int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "bound"};
  SHOW(bind(listener, (struct sockaddr*)&address, sizeof address));
  SHOW(bind(listener, (struct sockaddr*)&address, sizeof address));
  close(listener);
  const char* all[] = {"file", "dir", "made", "linked", "dangling", "linked-symlink", "fifo", "socket", "char", "block",
                       "plain", "plain2", "bound", "none-at-all"};
  for (size_t i = 0; i < sizeof all / sizeof *all; ++i) show_stat(all[i]);
}

static void data(void) {
  struct stat info;
  const int fd = open("data", O_RDWR | O_CREAT | O_EXCL, 0644);
  const int reader = open("data", O_RDONLY), writer = open("data", O_WRONLY), path = open("data", O_PATH);
  const int folder = open(".", O_RDONLY | O_DIRECTORY);
  EXPECT(fd >= 0 && reader >= 0 && writer >= 0 && path >= 0 && folder >= 0);
  SHOW(write(reader, "x", 1));
  SHOW(write(reader, "x", 0));
  SHOW(read(writer, big, 1));
  SHOW(read(path, big, 1));
  SHOW(read(folder, big, 1));
  SHOW(write(folder, big, 1));
  SHOW(pwrite(fd, "abc", 3, -1));
  SHOW(pwrite(fd, "", 0, 100));
  SHOW(pwrite(fd, "abc", 3, 100));
  SHOW(pread(fd, big, 200, 0));
  SHOW(pread(fd, big, 200, 103));
  SHOW(pread(fd, big, 200, 1 << 30));
  SHOW(pread(fd, nowhere, 100, 0));
  SHOW(pwrite(fd, nowhere, 100, 0));
  SHOW(ftruncate(reader, 0));
  SHOW(ftruncate(path, 0));
  SHOW(ftruncate(folder, 0));
  SHOW(ftruncate(fd, -5));
  SHOW(ftruncate(fd, 5000));
  SHOW(lseek(fd, -1, SEEK_SET));
  SHOW(lseek(fd, 10, SEEK_END));
  SHOW(lseek(fd, 5000, SEEK_DATA));
  SHOW(lseek(fd, 5000, SEEK_HOLE));
  SHOW(lseek(fd, -1, SEEK_DATA));
  SHOW(lseek(fd, 0, 77));
  SHOW(lseek(folder, 0, SEEK_SET));
  SHOW(fallocate(reader, 0, 0, 10));
  SHOW(fallocate(fd, 0, 0, 0));
  SHOW(fallocate(fd, 0, -1, 1));
  SHOW(fallocate(fd, 0, 0, -1));
  SHOW(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 10));
  SHOW(fallocate(folder, 0, 0, 10));
  SHOW(fallocate(fd, 0, 10000, 10000));
  SHOW(fallocate(fd, FALLOC_FL_KEEP_SIZE, 10000, 100000));
  SHOW((fstat(fd, &info), info.st_size));
  SHOW(fsync(reader));
  SHOW(fdatasync(fd));
  SHOW(fsync(folder));
  SHOW(fdatasync(folder));
  SHOW(fsync(path));
  SHOW(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));
  SHOW(syncfs(folder));
  SHOW(posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED));
  SHOW(readahead(fd, 0, 1000));
  SHOW(copy_file_range(fd, NULL, reader, NULL, 10, 0));
  SHOW(copy_file_range(writer, NULL, fd, NULL, 10, 0));
  SHOW(copy_file_range(fd, NULL, fd, NULL, 10, 1));
  SHOW(copy_file_range(folder, NULL, fd, NULL, 10, 0));
  off_t from = 0, to = 5;
  SHOW(copy_file_range(fd, &from, fd, &to, 10, 0));
  from = 1 << 30, to = 0;
  SHOW(copy_file_range(fd, &from, fd, &to, 10, 0));
  SHOW(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reader, 0) == MAP_FAILED ? -1 : 0);
  SHOW(mmap(NULL, 4096, PROT_READ, MAP_SHARED, writer, 0) == MAP_FAILED ? -1 : 0);
  SHOW(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, folder, 0) == MAP_FAILED ? -1 : 0);
  SHOW(fchmod(reader, 0604));
  SHOW(fchmod(path, 0604));
  SHOW(fchown(fd, 5, 6));
  SHOW(fchdir(fd));
  SHOW(flock(folder, LOCK_EX | LOCK_NB));
  SHOW(flock(folder, LOCK_UN));
  SHOW(getdents64(fd, big, 1000));
  SHOW(getdents64(folder, big, 5));
  const struct timespec wrong[2] = {{0, 1000000000}, {0, 0}}, omit[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}},
                        far[2] = {{-5, 999999999}, {4000000000, 7}};
  SHOW(futimens(fd, wrong));
  SHOW(futimens(fd, omit));
  SHOW(futimens(reader, far));
  EXPECT(fstat(fd, &info) == 0);
  printf("    times %ld.%09ld %ld.%09ld\n", info.st_atim.tv_sec, info.st_atim.tv_nsec, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
  struct rlimit limit = {20000, 100000};
  signal(SIGXFSZ, SIG_IGN);
  EXPECT(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  SHOW(pwrite(fd, big, 100, 19990));
  SHOW(pwrite(fd, big, 100, 20000));
  SHOW(ftruncate(fd, 30000));
  SHOW(fallocate(fd, 0, 20000, 1000));
  limit.rlim_cur = 100000;
  EXPECT(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  const int append = open("data", O_WRONLY | O_APPEND);
  SHOW(pwrite(append, "abc", 3, 0));
  SHOW((fstat(fd, &info), info.st_size));
  SHOW(fcntl(append, F_SETFL, 0));
  SHOW(pwrite(append, "abc", 3, 0));
  SHOW((fstat(fd, &info), info.st_size));
  SHOW(fcntl(fd, F_SETFL, O_APPEND));
  SHOW(pwrite(fd, "abc", 3, 0));
  SHOW((fstat(fd, &info), info.st_size));
  SHOW(fcntl(fd, F_GETFL) & O_APPEND);
  // Set-id bits go with a write of others, and stay with root's.
  EXPECT(fchown(fd, 1000, 1000) == 0 && fchmod(fd, 06777) == 0);
  SHOW(pwrite(append, "x", 1, 0));
  SHOW((fstat(fd, &info), info.st_mode));
  const int locked = open("data", O_RDWR);
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = -1};
  SHOW(fcntl(locked, F_SETLK, &lock));
  lock.l_start = 0;
  SHOW(fcntl(reader, F_SETLK, &lock));
  SHOW(fcntl(locked, F_SETLK, &lock));
}

static void attributes(void) {
  const int fd = open("attributes", O_RDWR | O_CREAT | O_EXCL, 0644);
  const int path = open("attributes", O_PATH);
  SHOW(fsetxattr(fd, "user.a", "value", 5, XATTR_REPLACE));
  SHOW(fsetxattr(fd, "user.a", "value", 5, XATTR_CREATE));
  SHOW(fsetxattr(fd, "user.a", "value", 5, XATTR_CREATE));
  SHOW(fsetxattr(fd, "user.a", "", 0, XATTR_REPLACE));
  SHOW(fgetxattr(fd, "user.a", big, 10));
  SHOW(fsetxattr(fd, "user.a", "value", 5, 0));
  SHOW(fsetxattr(fd, "user.a", "value", 5, 7));
  SHOW(fsetxattr(path, "user.a", "value", 5, 0));
  SHOW(fgetxattr(fd, "user.a", big, 2));
  SHOW(fgetxattr(fd, "user.a", big, 0));
  SHOW(fgetxattr(fd, "user.b", big, 10));
  SHOW(fgetxattr(fd, "user.", big, 10));
  SHOW(fgetxattr(fd, "", big, 10));
  SHOW(fgetxattr(fd, long_name, big, 10));
  SHOW(fgetxattr(fd, "nothing.b", big, 10));
  SHOW(fsetxattr(fd, "nothing.b", big, 10, 0));
  SHOW(fsetxattr(fd, "user.", big, 10, 0));
  SHOW(fsetxattr(fd, "user.big", big, 65536, 0));
  SHOW(fsetxattr(fd, "user.big", big, 65537, 0));
  SHOW(fsetxattr(fd, "user.three", big, 3000, 0));
  SHOW(flistxattr(fd, big, 3));
  SHOW(flistxattr(fd, big, 0));
  SHOW(flistxattr(fd, big, 1000));
  SHOW(fremovexattr(fd, "user.b"));
  SHOW(fremovexattr(fd, "user.a"));
  SHOW(setxattr("dir", "user.on-folder", "v", 1, 0));
  SHOW(getxattr("dir", "user.on-folder", big, 100));
  SHOW(lsetxattr("dangling", "user.a", "v", 1, 0));
  SHOW(lgetxattr("dangling", "user.a", big, 1));
  SHOW(setxattr("fifo", "user.a", "v", 1, 0));
  SHOW(getxattr("fifo", "user.a", big, 1));
  SHOW(llistxattr("dangling", big, 100));
  SHOW(llistxattr("fifo", big, 100));
  SHOW(getxattr("none", "user.a", big, 1));
  int flags = 0;
  SHOW(ioctl(fd, 0x12345, &flags));
}

int main(int count, char** words) {
  EXPECT(count == 2 && chdir(words[1]) == 0);
  umask(022);
  memset(long_name, 'n', 300);
  for (int i = 0; i < 2400; ++i) memcpy(long_path + 2 * i, "./", 2);
  EXPECT(mkdir("errnos", 0755) == 0 && chdir("errnos") == 0);
  names();
  data();
  attributes();
  return 0;
}
