// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What POSIX and Linux promise of a file system, asked broadly:
// `posix FOLDER [thorough] [TEST...]` works in the empty FOLDER, as root, and
// prints a line for every step: what was asked, what came of it, and what is to
// be seen then. Run on two file systems it must print the same. What may differ
// between two good file systems is not printed, and a comment says why.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "expect.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define EACH(type, item, array) \
  for (const type* item = (array); item < (array) + COUNT(array); ++item)

// Of the many combinations that loops make, every `one_of`th, a prime that no loop's length
// is a multiple of: each value still meets each other's. `posix FOLDER thorough` tests them all.
static bool thorough;
static bool passed_over(unsigned one_of) {
  static unsigned count;
  return !thorough && count++ % one_of != 0;
}

// --- What is printed -------------------------------------------------------

static char situation[512];  // what the lines to come are about

static void about(const char* format, ...) {
  va_list words;
  va_start(words, format);
  vsnprintf(situation, sizeof situation, format, words);
  va_end(words);
}

static void say(const char* format, ...) {
  va_list words;
  va_start(words, format);
  printf("%s: ", situation);
  vprintf(format, words);
  putchar('\n');
  va_end(words);
}

static long step(const char* what, long result) {
  const int error = errno;
  if (result < 0) {
    say("%s: %s", what, strerrorname_np(error));
  } else {
    say("%s: %ld", what, result);
  }
  errno = error;
  return result;
}

// A call, its result or error.
#define STEP(call) (errno = 0, step(#call, (long)(call)))

// A call whose result is a descriptor: which one doesn't matter.
static int opened(const char* what, int fd) {
  if (fd >= 0) {
    say("%s: opened", what);
  } else {
    step(what, fd);
  }
  return fd;
}
#define OPEN(call) (errno = 0, opened(#call, (call)))

static char type_of(mode_t mode) {
  return "?pc?d?b?-?l?s???"[(mode & S_IFMT) >> 12];
}

static void show_stat(const char* name, const struct stat* info) {
  // Not printed: inode numbers, and a folder's size, links and blocks, which
  // every file system counts its own way.
  char more[64] = "";
  if (S_ISREG(info->st_mode) || S_ISLNK(info->st_mode))
    snprintf(more, sizeof more, " size %lld", (long long)info->st_size);
  if (S_ISCHR(info->st_mode) || S_ISBLK(info->st_mode))
    snprintf(more, sizeof more, " device %u:%u", major(info->st_rdev), minor(info->st_rdev));
  if (!S_ISDIR(info->st_mode))
    snprintf(more + strlen(more), sizeof more - strlen(more), " links %d", (int)info->st_nlink);
  say("  %s is %c%04o %d:%d%s", name, type_of(info->st_mode), info->st_mode & 07777,
      (int)info->st_uid, (int)info->st_gid, more);
}

static void show(const char* name) {
  struct stat info;
  if (lstat(name, &info) != 0) {
    say("  %s: %s", name, strerrorname_np(errno));
  } else {
    show_stat(name, &info);
  }
}

static void show_fd(int fd) {
  struct stat info;
  if (fstat(fd, &info) != 0) {
    say("  fd: %s", strerrorname_np(errno));
  } else {
    show_stat("fd", &info);
  }
}

static int by_name(const void* a, const void* b) {
  return strcmp(*(char* const*)a, *(char* const*)b);
}

// The names in a folder, in an order of our own: file systems have each another.
static void show_names(const char* folder) {
  char* names[256];
  size_t count = 0;
  char line[4096] = "";
  DIR* dir = opendir(folder);
  if (dir == NULL) {
    say("  %s: %s", folder, strerrorname_np(errno));
    return;
  }
  for (const struct dirent* entry; count < COUNT(names) && (entry = readdir(dir)) != NULL;)
    asprintf(&names[count++], "%.40s%c", entry->d_name, type_of(DTTOIF(entry->d_type)));
  closedir(dir);
  qsort(names, count, sizeof *names, by_name);
  for (size_t i = 0; i < count; ++i) {
    if (strlen(line) + strlen(names[i]) + 2 < sizeof line) strcat(strcat(line, " "), names[i]);
    free(names[i]);
  }
  say("  %s has%s", folder, line);
}

static void show_content(const char* name) {
  char text[64] = "";
  const int fd = open(name, O_RDONLY | O_NONBLOCK);
  const ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (size < 0) {
    say("  %s reads %s", name, strerrorname_np(errno));
  } else {
    for (ssize_t i = 0; i < size; ++i)
      if (text[i] < ' ') text[i] = text[i] == 0 ? '.' : '?';
    say("  %s reads %zd: %s", name, size, text);
  }
  if (fd >= 0) close(fd);
}

// --- Who asks --------------------------------------------------------------

struct caller {
  const char* name;
  uid_t uid;
  gid_t gid;
  int count;
  gid_t groups[2];
};

enum { kOwner = 65534, kOther = 65533, kGroup = 65532, kThird = 65531 };

static const struct caller kRoot = {"root", 0, 0, 0, {0}};
static const struct caller kTheOwner = {"owner", kOwner, kOwner, 0, {0}};
static const struct caller kStranger = {"stranger", kThird, kThird, 0, {0}};
static const struct caller kInGroup = {"in-group", kOther, kGroup, 0, {0}};
static const struct caller kCallers[] = {
    {"root", 0, 0, 0, {0}},
    {"owner", kOwner, kOwner, 0, {0}},
    {"owner-in-group", kOwner, kGroup, 0, {0}},
    {"owner-also-in-group", kOwner, kOwner, 2, {kThird, kGroup}},
    {"in-group", kOther, kGroup, 0, {0}},
    {"also-in-group", kOther, kOther, 2, {kThird, kGroup}},
    {"stranger", kThird, kThird, 0, {0}},
};

// Takes on the caller's ids as file systems see them. Coming back to root first
// gives the right to do so.
static void become(const struct caller* who) {
  EXPECT(seteuid(0) == 0);
  EXPECT(setgroups(who->count, who->groups) == 0);
  EXPECT(setegid(who->gid) == 0);
  EXPECT(seteuid(who->uid) == 0);
}

#define AS(who, ...) \
  do {               \
    become(who);     \
    __VA_ARGS__;     \
    become(&kRoot);  \
  } while (0)

// A process of its own, for what can't be undone. `if (child()) { ...; done(); }`
static bool child(void) {
  fflush(stdout);
  const pid_t pid = fork();
  EXPECT(pid >= 0);
  if (pid == 0) {
    alarm(30);
    return true;
  }
  int status;
  EXPECT(waitpid(pid, &status, 0) == pid);
  if (status != 0) say("the process ended with %#x", status);
  return false;
}

static void done(void) {
  fflush(stdout);
  _exit(0);
}

// --- What there is ---------------------------------------------------------

static const char* const kTypes[] = {"file", "folder", "fifo", "socket", "link", "char", "block"};

static void write_file(const char* name, const char* text) {
  int fd;
  EXPECT((fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644)) >= 0);
  EXPECT(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
  EXPECT(close(fd) == 0);
}

static int make(const char* type, const char* name, mode_t mode) {
  if (strcmp(type, "folder") == 0) return mkdir(name, mode);
  if (strcmp(type, "fifo") == 0) return mkfifo(name, mode);
  if (strcmp(type, "socket") == 0) return mknod(name, S_IFSOCK | mode, 0);
  if (strcmp(type, "link") == 0) return symlink("target", name);
  if (strcmp(type, "char") == 0) return mknod(name, S_IFCHR | mode, makedev(1, 3));
  if (strcmp(type, "block") == 0) return mknod(name, S_IFBLK | mode, makedev(7, 300));
  const int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, mode);
  if (fd < 0) return fd;
  return close(fd);
}

static int remove_one(const char* path, const struct stat* info, int kind, struct FTW* level) {
  (void)info;
  (void)kind;
  if (level->level > 0) EXPECT(remove(path) == 0);
  return 0;
}

// Empties the working directory.
static void wipe(void) {
  EXPECT(nftw(".", remove_one, 64, FTW_DEPTH | FTW_PHYS) == 0);
}

static void repeat(char* out, char byte, size_t count) {
  memset(out, byte, count);
  out[count] = 0;
}

// --- The tests -------------------------------------------------------------

static void test_chmod(void) {
  static const mode_t modes[] = {0, 0777, 01644, 02755, 02644, 04755, 06711, 07777};
  write_file("target", "x");
  EACH(char* const, type, kTypes) EACH(struct caller, who, kCallers) EACH(mode_t, mode, modes) {
    about("chmod %s %s %04o", *type, who->name, *mode);
    EXPECT(make(*type, "it", 0755) == 0);
    EXPECT(chmod("target", 0600) == 0 && chown("target", kOwner, kGroup) == 0);
    EXPECT(lchown("it", kOwner, kGroup) == 0);
    AS(who, STEP(chmod("it", *mode)));
    show("it");
    if (strcmp(*type, "link") == 0) show("target");
    if (*mode == 02755) {
      AS(who, STEP(fchmodat(AT_FDCWD, "it", 0700, AT_SYMLINK_NOFOLLOW)));
      show("it");
      const int fd = open("it", O_PATH | O_NOFOLLOW);
      AS(who, STEP(fchmod(fd, 0640)));
      close(fd);
      const int real = open("it", O_RDONLY | O_NONBLOCK);
      if (real >= 0) {
        AS(who, STEP(fchmod(real, 02750)));
        close(real);
        show("it");
      }
    }
    EXPECT(remove("it") == 0);
  }
  wipe();
}

static void test_chown(void) {
  // Not {-1, -1}: Linux takes set-id bits off then, too, and sets ctime, but a FUSE guest asks for
  // nothing at all (SETATTR with nothing valid).
  static const int ids[][2] = {{kOwner, -1}, {-1, kGroup},     {kOwner, kGroup},
                               {kOther, -1}, {-1, kThird},     {kOwner, kThird},
                               {-1, kOwner}, {kOther, kGroup}, {0, 0}};
  // Not here: set-group-id without the group's right to execute. Whether that goes depends on the
  // caller's groups, of which FUSE doesn't tell.
  static const mode_t modes[] = {06755, 02674, 04644, 04700};
  write_file("target", "x");
  EACH(char* const, type, kTypes)
  EACH(struct caller, who, kCallers) for (size_t i = 0; i < COUNT(ids); ++i) {
    const bool file = strcmp(*type, "file") == 0 || strcmp(*type, "folder") == 0;
    for (size_t m = 0; m < (file ? COUNT(modes) : 1); ++m) {
      if (passed_over(3)) continue;
      about("chown %s %s %04o %d %d", *type, who->name, modes[m], ids[i][0], ids[i][1]);
      EXPECT(make(*type, "it", 0755) == 0);
      EXPECT(lchown("it", kOwner, kGroup) == 0);
      if (strcmp(*type, "link") != 0) EXPECT(chmod("it", modes[m]) == 0);
      AS(who, STEP(lchown("it", ids[i][0], ids[i][1])));
      show("it");
      EXPECT(remove("it") == 0);
    }
  }
  EACH(struct caller, who, kCallers) {
    about("chown others %s", who->name);
    EXPECT(symlink("target", "link") == 0 && chown("target", kOwner, kGroup) == 0);
    EXPECT(chmod("target", 06755) == 0);
    AS(who, STEP(chown("link", -1, kGroup)));
    show("target");
    EXPECT(chmod("target", 06755) == 0);
    const int fd = open("target", O_RDONLY);
    AS(who, STEP(fchown(fd, kOwner, kOwner)));
    show("target");
    close(fd);
    const int path = open("target", O_PATH);
    EXPECT(chmod("target", 06755) == 0);
    AS(who, STEP(fchown(path, -1, kGroup)));
    AS(who, STEP(fchownat(path, "", -1, kGroup, AT_EMPTY_PATH)));
    show("target");
    close(path);
    EXPECT(unlink("link") == 0);
  }
  wipe();
}

// Every call that takes a name, with every kind of name.
static long name_call(int call, const char* name) {
  char byte[16];
  struct stat info;
  struct statfs fs;
  struct statx stx;
  int fd = -2;
  switch (call) {
    case 0:
      return stat(name, &info);
    case 1:
      return lstat(name, &info);
    case 2:
      return access(name, F_OK);
    case 3:
      fd = open(name, O_RDONLY | O_NONBLOCK);
      break;
    case 4:
      fd = open(name, O_RDWR | O_CREAT | O_NONBLOCK, 0644);
      break;
    case 5:
      fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0644);
      break;
    case 6:
      fd = open(name, O_PATH | O_NOFOLLOW);
      break;
    case 7:
      return mkdir(name, 0755);
    case 8:
      return rmdir(name);
    case 9:
      return unlink(name);
    case 10:
      return symlink("x", name);
    case 11:
      return link("file", name);
    case 12:
      return link(name, "new");
    case 13:
      return linkat(AT_FDCWD, name, AT_FDCWD, "new", AT_SYMLINK_FOLLOW);
    case 14:
      return rename("file", name);
    case 15:
      return rename(name, "new");
    case 16:
      return rename("folder", name);
    case 17:
      return mkfifo(name, 0644);
    case 18:
      return mknod(name, S_IFREG | 0644, 0);
    case 19:
      return readlink(name, byte, sizeof byte);
    case 20:
      return truncate(name, 1);
    case 21:
      return chmod(name, 0700);
    case 22:
      return chown(name, 1, 1);
    case 23:
      return lchown(name, 1, 1);
    case 24:
      return utimensat(AT_FDCWD, name, NULL, 0);
    case 25:
      return utimensat(AT_FDCWD, name, NULL, AT_SYMLINK_NOFOLLOW);
    case 26:
      return statfs(name, &fs);
    case 27:
      return statx(AT_FDCWD, name, AT_EMPTY_PATH, STATX_BASIC_STATS, &stx);
    case 28:
      return renameat2(AT_FDCWD, name, AT_FDCWD, "file", RENAME_EXCHANGE);
    case 29:
      return renameat2(AT_FDCWD, "file", AT_FDCWD, name, RENAME_NOREPLACE);
    case 30:
      return remove(name);
    case 31:
      fd = open(name, O_TMPFILE | O_RDWR, 0600);
      break;
    case 32:
      fd = open(name, O_RDONLY | O_DIRECTORY);
      break;
    case 33:
      fd = inotify_add_watch(0, name, IN_OPEN);
      break;
    case 34:
      execl(name, name, NULL);
      return -1;
    default:
      return -3;
  }
  if (fd >= 0) close(fd);
  return fd < 0 ? fd : 0;
}

static void test_names(void) {
  static const char* const calls[] = {"stat",
                                      "lstat",
                                      "access",
                                      "open",
                                      "open-creat",
                                      "open-excl",
                                      "open-path",
                                      "mkdir",
                                      "rmdir",
                                      "unlink",
                                      "symlink",
                                      "link-to",
                                      "link-from",
                                      "link-follow",
                                      "rename-to",
                                      "rename-from",
                                      "rename-folder-to",
                                      "mkfifo",
                                      "mknod",
                                      "readlink",
                                      "truncate",
                                      "chmod",
                                      "chown",
                                      "lchown",
                                      "utimensat",
                                      "lutimens",
                                      "statfs",
                                      "statx",
                                      "exchange",
                                      "noreplace",
                                      "remove",
                                      "tmpfile",
                                      "open-directory",
                                      "inotify",
                                      "exec"};
  static char longest[300], too_long[300], far_too_long[1100], long_below[300], path[4096],
      long_path[4200];
  repeat(longest, 'n', 255);
  repeat(too_long, 'n', 256);
  repeat(far_too_long, 'n', 1030);
  strcat(strcpy(long_below, "none/"), too_long);
  for (int i = 0; i < 4094; i += 2) strcpy(path + i, "./");
  strcpy(path + 4092, "new");
  memset(long_path, '/', 4090);
  strcpy(long_path + 4090, "folder");
  const char* const names[] = {
      "",          ".",           "..",          "./",          "../",
      "new",       "new/",        "new/.",       "file",        "file/",
      "file/.",    "file/x",      "file/..",     "folder",      "folder/",
      "folder/.",  "folder/..",   "folder/x",    "full",        "full/",
      "none/x",    "none/../x",   "to-file",     "to-file/",    "to-file/x",
      "to-folder", "to-folder/",  "to-folder/.", "to-folder/x", "dangling",
      "dangling/", "dangling/x",  "loop",        "loop/",       "loop/x",
      "deep-link", "deeper-link", "fifo",        "fifo/",       "fifo/x",
      "socket",    longest,       too_long,      far_too_long,  long_below,
      path,        long_path,     "to-long",     "\xff\xfe",    "a b\n"};
  char target[16], name[16];
  for (size_t n = 0; n < COUNT(names); ++n) {
    bool whole = false;
    for (size_t c = 0; c < COUNT(calls); ++c) {
      if (passed_over(11)) continue;
      if (!whole) {
        wipe();
        write_file("file", "data");
        EXPECT(mkdir("folder", 0755) == 0 && mkdir("full", 0755) == 0 &&
               mkdir("full/x", 0755) == 0);
        EXPECT(symlink("file", "to-file") == 0 && symlink("folder", "to-folder") == 0);
        EXPECT(symlink("nowhere", "dangling") == 0 && symlink("loop", "loop") == 0);
        EXPECT(symlink(too_long, "to-long") == 0);
        EXPECT(mkfifo("fifo", 0644) == 0 && mknod("socket", S_IFSOCK | 0644, 0) == 0);
        // Forty links are followed, forty-one aren't.
        if (strstr(names[n], "deep") != NULL) {
          EXPECT(symlink("file", "l0") == 0);
          for (int i = 1; i < 40; ++i) {
            snprintf(target, sizeof target, "l%d", i - 1);
            snprintf(name, sizeof name, "l%d", i);
            EXPECT(symlink(target, name) == 0);
          }
          EXPECT(symlink("l38", "deep-link") == 0 && symlink("l39", "deeper-link") == 0);
        }
      }
      about("names %s %.20s(%zu)", calls[c], names[n], strlen(names[n]));
      const long result = STEP(name_call((int)c, names[n]));
      whole = result < 0 || c < 4 || c == 6 || c == 26 || c == 27 || c >= 31;
      if (!whole) show_names(".");
    }
  }
  about("names NULL");
  STEP(mkdir((char*)1, 0755));
  STEP(rename("file", (char*)1));
  wipe();
}

static void test_links(void) {
  char path[64];
  write_file("target", "x");
  EXPECT(chmod("target", 0600) == 0);
  EACH(char* const, type, kTypes) EACH(struct caller, who, kCallers) {
    if (passed_over(2)) continue;
    about("links %s %s", *type, who->name);
    EXPECT(mkdir("dir", 0777) == 0);
    EXPECT(make(*type, "it", 0600) == 0 && lchown("it", kOwner, kGroup) == 0);
    AS(who, STEP(link("it", "dir/one")));
    AS(who, STEP(link("it", "dir/one")));
    AS(who, STEP(linkat(AT_FDCWD, "it", AT_FDCWD, "dir/two", AT_SYMLINK_FOLLOW)));
    AS(who, STEP(linkat(AT_FDCWD, "it", AT_FDCWD, "dir/three", 0x4000)));
    const int fd = open("it", O_PATH | O_NOFOLLOW);
    AS(who, STEP(linkat(fd, "", AT_FDCWD, "dir/four", AT_EMPTY_PATH)));
    AS(who, STEP(linkat(fd, "", AT_FDCWD, "dir/five", 0)));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    AS(who, STEP(linkat(AT_FDCWD, path, AT_FDCWD, "dir/six", AT_SYMLINK_FOLLOW)));
    show("it");
    show_names("dir");
    EXPECT(remove("it") == 0);
    show_fd(fd);
    // A file without names, without O_TMPFILE, gets none again.
    STEP(unlink("dir/one"));
    STEP(unlink("dir/four"));
    STEP(unlink("dir/six"));
    STEP(unlink("dir/two"));
    show_fd(fd);
    STEP(linkat(fd, "", AT_FDCWD, "dir/seven", AT_EMPTY_PATH));
    close(fd);
    show_names("dir");
    AS(&kStranger, STEP(unlink("dir")));
    remove("dir/seven");
    STEP(rmdir("dir"));
    wipe();
    write_file("target", "x");
    EXPECT(chmod("target", 0600) == 0);
  }
  wipe();
  about("links count");
  write_file("many", "x");
  char name[16];
  for (int i = 0; i < 300; ++i) {
    snprintf(name, sizeof name, "l%d", i);
    EXPECT(link("many", name) == 0);
  }
  show("l299");
  show("many");
  wipe();
}

// Who may remove and replace what, in folders with and without the sticky bit.
static void test_sticky(void) {
  static const uid_t owners[] = {0, kOwner, kOther};
  static const mode_t modes[] = {0777, 01777, 0755, 01775};
  static const struct caller* const callers[] = {&kRoot, &kTheOwner, &kInGroup, &kStranger};
  EACH(uid_t, folder, owners)
  EACH(uid_t, owner, owners)
  EACH(mode_t, mode, modes)
  EACH(struct caller* const, who, callers) for (int directory = 0; directory < 2; ++directory) {
    if (passed_over(5)) continue;
    about("sticky folder %d %04o entry %s %d caller %s", *folder, *mode,
          directory ? "folder" : "file", *owner, (*who)->name);
    EXPECT(mkdir("dir", 0755) == 0 && chown("dir", *folder, kGroup) == 0 &&
           chmod("dir", *mode) == 0);
    EXPECT(mkdir("open", 0777) == 0 && chmod("open", 0777) == 0);
    for (int i = 0; i < 4; ++i) {
      const char* name = i == 0 ? "dir/a" : i == 1 ? "dir/b" : i == 2 ? "dir/c" : "open/mine";
      EXPECT(make(directory ? "folder" : "file", name, 0755) == 0);
      EXPECT(chown(name, i == 3 ? (*who)->uid : *owner, kGroup) == 0);
    }
    become(*who);
    STEP(directory ? rmdir("dir/a") : unlink("dir/a"));
    STEP(rename("dir/b", "open/b"));
    STEP(rename("open/mine", "dir/c"));
    STEP(renameat2(AT_FDCWD, "dir/c", AT_FDCWD, "open/b", RENAME_EXCHANGE));
    become(&kRoot);
    wipe();
  }
}

// Whose is what is new, and what is it allowed.
static void test_creation(void) {
  static const mode_t folders[] = {0777, 02777, 02775};
  static const mode_t masks[] = {0, 022, 0177};
  static const mode_t modes[] = {0777, 02775, 06755, 01666, 02670};
  EACH(mode_t, folder, folders)
  EACH(char* const, type, kTypes) EACH(struct caller, who, kCallers) EACH(mode_t, mask, masks) {
    if (passed_over(11)) continue;
    EXPECT(mkdir("dir", 0755) == 0 && chown("dir", 0, kGroup) == 0 && chmod("dir", *folder) == 0);
    char name[32];
    for (size_t m = 0; m < COUNT(modes); ++m) {
      // FUSE tells of one more group than the first only from Linux 6.3 on; without, the host
      // can't know that the caller may hand out this bit.
      if (who->count > 0 && (modes[m] & S_ISGID) != 0) continue;
      about("creation in %04o %s %s umask %03o mode %04o", *folder, *type, who->name, *mask,
            modes[m]);
      snprintf(name, sizeof name, "dir/%zu", m);
      umask(*mask);
      AS(who, STEP(make(*type, name, modes[m])));
      if (m == 1 && strcmp(*type, "file") == 0) {
        become(who);
        const int fd = OPEN(open("dir", O_TMPFILE | O_RDWR, modes[m]));
        become(&kRoot);
        if (fd >= 0) {
          show_fd(fd);
          close(fd);
        }
      }
      umask(0);
      show(name);
    }
    wipe();
  }
}

static const struct {
  const char* name;
  int flags;
} kFlags[] = {
    {"-", 0},
    {"creat", O_CREAT},
    {"creat-excl", O_CREAT | O_EXCL},
    {"excl", O_EXCL},
    {"trunc", O_TRUNC},
    {"creat-trunc", O_CREAT | O_TRUNC},
    {"creat-excl-trunc", O_CREAT | O_EXCL | O_TRUNC},
    {"directory", O_DIRECTORY},
    {"directory-creat", O_DIRECTORY | O_CREAT},
    {"nofollow", O_NOFOLLOW},
    {"nofollow-creat", O_NOFOLLOW | O_CREAT},
    {"path", O_PATH},
    {"path-nofollow", O_PATH | O_NOFOLLOW},
    {"path-directory", O_PATH | O_DIRECTORY},
    {"path-creat", O_PATH | O_CREAT},
    {"append", O_APPEND},
    {"append-trunc", O_APPEND | O_TRUNC},
    {"noatime", O_NOATIME},
    {"sync", O_SYNC},
    {"dsync-creat", O_DSYNC | O_CREAT},
    {"async", O_ASYNC},
    {"cloexec", O_CLOEXEC},
    {"tmpfile", O_TMPFILE},
    {"tmpfile-excl", O_TMPFILE | O_EXCL},
    {"tmpfile-creat", O_TMPFILE | O_CREAT},
};

static void test_open(void) {
  static const char* const names[] = {
      "file",    "folder",    "fifo",       "socket",    "char",       "block",
      "to-file", "to-folder", "dangling",   "loop",      "new",        "file/",
      "folder/", "new/",      "to-folder/", "read-only", "write-only", "no-one"};
  static const struct caller* const callers[] = {&kRoot, &kTheOwner, &kStranger};
  EACH(struct caller* const, who, callers) EACH(char* const, name, names) {
    bool whole = false;
    for (size_t f = 0; f < COUNT(kFlags); ++f)
      for (int mode = 0; mode < 4; ++mode) {
        if (passed_over(13)) continue;
        if (!whole) {
          wipe();
          EXPECT(chmod(".", 0777) == 0);
          static const char* const made[] = {"file", "folder", "fifo", "socket", "char", "block"};
          EACH(char* const, type, made) {
            if (strcmp(*type, "file") == 0) {
              write_file("file", "data");
              EXPECT(chown("file", kOwner, kGroup) == 0);
              continue;
            }
            EXPECT(make(*type, *type, 0644) == 0 && chown(*type, kOwner, kGroup) == 0);
          }
          EXPECT(chmod("folder", 0755) == 0);
          EXPECT(symlink("file", "to-file") == 0 && symlink("folder", "to-folder") == 0);
          EXPECT(symlink("nowhere", "dangling") == 0 && symlink("loop", "loop") == 0);
          static const char* const others[] = {"read-only", "write-only", "no-one"};
          static const mode_t modes[] = {0444, 0222, 0};
          for (size_t i = 0; i < COUNT(others); ++i) {
            write_file(others[i], "data");
            EXPECT(chmod(others[i], modes[i]) == 0 && chown(others[i], kOwner, kGroup) == 0);
          }
        }
        about("open %s %s %s %d", (*who)->name, *name, kFlags[f].name, mode);
        become(*who);
        const int fd = OPEN(open(*name, kFlags[f].flags | mode | O_NONBLOCK, 0640));
        become(&kRoot);
        if (fd >= 0) {
          show_fd(fd);
          say("  flags %#x cloexec %d", fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
          char byte;
          if ((kFlags[f].flags & O_PATH) == 0 && *name[0] == 'f' &&
              strncmp(*name, "fifo", 4) != 0) {
            STEP(read(fd, &byte, 1));
            STEP(write(fd, "w", 1));
            STEP(lseek(fd, 0, SEEK_CUR));
            STEP(pread(fd, &byte, 1, 2));
            STEP(pwrite(fd, "p", 1, 1));
            STEP(ftruncate(fd, 9));
            show_fd(fd);
          }
          close(fd);
        }
        whole = fd < 0 || (*name[0] != 'f' && (kFlags[f].flags & (O_CREAT | O_TRUNC)) == 0);
      }
  }
  wipe();
}

// Permission bits, one caller at a time: the guest's kernel must see all of them.
static void test_permissions(void) {
  static const mode_t modes[] = {0,    0400, 0200, 0100, 0040, 0020, 0010, 0004, 0002, 0001, 0700,
                                 0070, 0007, 0077, 0707, 0770, 0600, 0500, 0300, 0555, 0333, 0111};
  EACH(mode_t, mode, modes) EACH(struct caller, who, kCallers) {
    if (passed_over(5)) continue;
    about("permissions %04o %s", *mode, who->name);
    write_file("file", "data");
    EXPECT(mkdir("dir", 0755) == 0);
    write_file("dir/x", "x");
    EXPECT(chown("dir/x", kOwner, kGroup) == 0);
    static const char* const both[] = {"file", "dir"};
    EACH(char* const, name, both)
    EXPECT(chown(*name, kOwner, kGroup) == 0 && chmod(*name, *mode) == 0);
    become(who);
    int fd;
    EACH(char* const, name, both) {
      if ((fd = OPEN(open(*name, O_RDONLY))) >= 0) close(fd);
      if ((fd = OPEN(open(*name, O_WRONLY))) >= 0) close(fd);
      char allowed[9] = "";
      for (int mask = 0; mask < 8; ++mask)
        allowed[mask] = faccessat(AT_FDCWD, *name, mask, AT_EACCESS) == 0 ? '1' : '0';
      say("access %s", allowed);
      STEP(utimensat(AT_FDCWD, *name, NULL, 0));
      STEP(truncate(*name, 4));
    }
    if ((fd = OPEN(open("file", O_RDONLY | O_TRUNC))) >= 0) close(fd);
    STEP(access("dir/x", F_OK));
    STEP(access("dir/none", F_OK));
    STEP(mkdir("dir/y", 0755));
    STEP(rename("dir/x", "dir/z"));
    STEP(symlink("x", "dir/s"));
    STEP(chdir("dir") == 0 ? chdir("..") : -1);
    STEP(unlink("dir/z"));
    STEP(execl("./file", "file", NULL));
    become(&kRoot);
    // access(2) is about the real user.
    if (who->uid == kOther && child()) {
      EXPECT(setgroups(who->count, who->groups) == 0 &&
             setresgid(who->gid, who->gid, who->gid) == 0);
      EXPECT(setresuid(who->uid, who->uid, who->uid) == 0);
      char allowed[9] = "";
      for (int mask = 0; mask < 8; ++mask) allowed[mask] = access("file", mask) == 0 ? '1' : '0';
      say("access %s", allowed);
      done();
    }
    wipe();
  }
}

static void test_rename(void) {
  static const char* const sources[] = {"file", "folder",  "full", "fifo", "link",
                                        "none", "to-full", "same", "."};
  static const char* const targets[] = {"file", "folder",    "full",    "fifo",    "link",  "new",
                                        "same", "folder/in", "full/in", "to-full", "full/", "new/",
                                        "..",   "file/",     "full/.",  "none/x"};
  static const unsigned flags[] = {0,
                                   RENAME_NOREPLACE,
                                   RENAME_EXCHANGE,
                                   RENAME_WHITEOUT,
                                   RENAME_NOREPLACE | RENAME_EXCHANGE,
                                   RENAME_WHITEOUT | RENAME_NOREPLACE,
                                   8};
  char from[32], to[32];
  EACH(char* const, source, sources) EACH(char* const, target, targets) {
    bool whole = false;
    EACH(unsigned, flag, flags) {
      if (passed_over(13)) continue;
      if (!whole) {
        wipe();
        EXPECT(mkdir("a", 0755) == 0 && mkdir("b", 0755) == 0);
        static const char* const folders[] = {"a", "b"};
        EACH(char* const, folder, folders) {
          EXPECT(chdir(*folder) == 0);
          write_file("file", **folder == 'a' ? "aaa" : "b");
          EXPECT(mkdir("folder", 0755) == 0 && mkdir("full", 0755) == 0 &&
                 mkdir("full/x", 0755) == 0);
          EXPECT(mkfifo("fifo", 0600) == 0 && symlink("file", "link") == 0 &&
                 symlink("full", "to-full") == 0);
          EXPECT(chdir("..") == 0);
        }
        write_file("a/same", "same");
        EXPECT(link("a/same", "b/same") == 0);
      }
      // Within one folder and from one to another.
      about("rename %s %s %u", *source, *target, *flag);
      snprintf(from, sizeof from, "a/%s", *source);
      snprintf(to, sizeof to, "b/%s", *target);
      const long there = STEP(renameat2(AT_FDCWD, from, AT_FDCWD, to, *flag));
      if (there == 0) {
        show_names("a");
        show_names("b");
        show(from);
        show(to);
      }
      snprintf(to, sizeof to, "a/%s", *target);
      const long here = STEP(renameat2(AT_FDCWD, from, AT_FDCWD, to, *flag));
      if (here == 0) show_names("a");
      whole = there < 0 && here < 0;
    }
  }
  wipe();
  about("rename open");
  write_file("one", "one");
  write_file("two", "two");
  const int one = open("one", O_RDWR), two = open("two", O_RDWR);
  STEP(rename("one", "two"));
  show_fd(one);
  show_fd(two);
  STEP(pwrite(one, "O", 1, 0));
  STEP(pwrite(two, "T", 1, 0));
  show_content("two");
  show("one");
  close(one);
  close(two);
  STEP(mkdir("d", 0755));
  STEP(mkdir("d/e", 0755));
  const int dir = open("d/e", O_RDONLY);
  STEP(rename("d/e", "f"));
  STEP(faccessat(dir, "../two", F_OK, 0));
  STEP(mkdirat(dir, "inside", 0755));
  show_names("f");
  close(dir);
  // ".." of a folder that somebody may not write can't be changed.
  STEP(mkdir("w", 0777));
  EXPECT(chmod("w", 0777) == 0);
  STEP(mkdir("w/mine", 0755));
  STEP(mkdir("v", 0777));
  EXPECT(chmod("v", 0777) == 0);
  AS(&kTheOwner, STEP(rename("w/mine", "v/mine")));
  AS(&kTheOwner, STEP(rename("w/mine", "w/other")));
  STEP(chmod(".", 0777));
  AS(&kTheOwner, STEP(renameat2(AT_FDCWD, "two", AT_FDCWD, "w/two", RENAME_WHITEOUT)));
  wipe();
}

static void test_symlinks(void) {
  static const size_t lengths[] = {0, 1, 59, 60, 255, 256, 1000, 4094, 4095, 4096};
  static char text[5000], back[5000];
  EACH(size_t, length, lengths) {
    about("symlinks %zu", *length);
    repeat(text, 't', *length);
    if (STEP(symlink(text, "link")) == 0) {
      show("link");
      STEP(readlink("link", back, sizeof back));
      say("same %d", memcmp(text, back, *length));
      STEP(readlink("link", back, 1));
      STEP(readlink("link", back, *length));
      STEP(readlink("link", back, 0));
      const int fd = open("link", O_PATH | O_NOFOLLOW);
      STEP(readlinkat(fd, "", back, sizeof back));
      STEP(access("link", F_OK));
      close(fd);
      STEP(unlink("link"));
    }
  }
  about("symlinks");
  STEP(symlink("x", "link"));
  STEP(symlink("y", "link"));
  STEP(readlink("link", back, sizeof back));
  STEP(readlink(".", back, sizeof back));
  STEP(truncate("link", 0));
  AS(&kStranger, STEP(readlink("link", back, sizeof back)));
  wipe();
}

static void test_truncate(void) {
  static const off_t sizes[] = {0, 1, 3, 4, 5, 4095, 4096, 4097, 100000, -1, INT64_MIN};
  EACH(off_t, size, sizes) EACH(struct caller, who, kCallers) {
    about("truncate %lld %s", (long long)*size, who->name);
    write_file("file", "data");
    EXPECT(chown("file", kOwner, kGroup) == 0 && chmod("file", 06775) == 0);
    AS(who, STEP(truncate("file", *size)));
    show("file");
    EXPECT(chmod("file", 06777) == 0);
    const int fd = open("file", O_RDWR);
    AS(who, STEP(ftruncate(fd, *size)));
    show_fd(fd);
    show_content("file");
    close(fd);
    wipe();
  }
  about("truncate");
  write_file("file", "data");
  int fd = open("file", O_RDONLY);
  STEP(ftruncate(fd, 0));
  close(fd);
  fd = open(".", O_RDONLY);
  STEP(ftruncate(fd, 0));
  close(fd);
  STEP(truncate(".", 0));
  STEP(mkfifo("fifo", 0644));
  STEP(truncate("fifo", 0));
  fd = open("fifo", O_RDWR);
  STEP(ftruncate(fd, 0));
  close(fd);
  // What was cut off doesn't come back.
  fd = open("file", O_RDWR);
  STEP(ftruncate(fd, 2));
  STEP(ftruncate(fd, 4));
  show_content("file");
  STEP(pwrite(fd, "end", 3, 10000));
  STEP(ftruncate(fd, 5000));
  STEP(ftruncate(fd, 20000));
  char byte = 'x';
  STEP(pread(fd, &byte, 1, 10000));
  say("byte %d", byte);
  close(fd);
  wipe();
}

// --- Times -----------------------------------------------------------------

enum { kOld = 1000000000 };

static void age(const char* name) {
  // A file read after it changed gets a new access time, one read again doesn't.
  const struct timespec times[2] = {{kOld, 1}, {kOld + 1, 2}};
  EXPECT(utimensat(AT_FDCWD, name, times, AT_SYMLINK_NOFOLLOW) == 0 || errno == ENOENT);
}

static const char* watched[4];
static struct stat watched_before[4];

static void watch(const char* a, const char* b, const char* c) {
  watched[0] = a;
  watched[1] = b;
  watched[2] = c;
  for (const char** name = watched; *name; ++name) age(*name);
  for (int i = 0; watched[i]; ++i)
    if (lstat(watched[i], &watched_before[i]) != 0)
      memset(&watched_before[i], 0, sizeof(struct stat));
  usleep(25000);  // more than a tick of any clock that stamps files
}

static const char* changed(struct timespec before, struct timespec after) {
  if (before.tv_sec == after.tv_sec && before.tv_nsec == after.tv_nsec) return "same";
  return after.tv_sec > before.tv_sec ||
                 (after.tv_sec == before.tv_sec && after.tv_nsec > before.tv_nsec)
             ? "later"
             : "EARLIER";
}

static void seen(void) {
  for (int i = 0; watched[i]; ++i) {
    struct stat now;
    if (lstat(watched[i], &now) != 0) {
      say("  %s: %s", watched[i], strerrorname_np(errno));
      continue;
    }
    if (watched_before[i].st_nlink == 0) {
      say("  %s: new", watched[i]);
      continue;
    }
    say("  %s: atime %s mtime %s ctime %s", watched[i],
        changed(watched_before[i].st_atim, now.st_atim),
        changed(watched_before[i].st_mtim, now.st_mtim),
        changed(watched_before[i].st_ctim, now.st_ctim));
  }
}

#define TIMES(a, b, c, call) \
  do {                       \
    watch(a, b, c);          \
    STEP(call);              \
    seen();                  \
  } while (0)

static void test_times(void) {
  about("times");
  char text[64];
  EXPECT(mkdir("d", 0755) == 0 && mkdir("e", 0755) == 0);
  write_file("d/f", "data");
  write_file("d/g", "data");
  EXPECT(symlink("f", "d/s") == 0 && mkfifo("d/p", 0644) == 0);
  TIMES("d/f", "d", NULL, chmod("d/f", 0600));
  TIMES("d/f", "d", NULL, chmod("d/f", 0600));
  TIMES("d/f", "d", NULL, chown("d/f", 1, 1));
  TIMES("d/f", "d", NULL, chown("d/f", 0, -1));
  AS(&kStranger, TIMES(NULL, NULL, NULL, chmod("d/f", 0700)));
  TIMES("d/f", "d/l", "d", link("d/f", "d/l"));
  TIMES("d/f", "d", NULL, link("d/f", "d/l"));
  TIMES("d/f", "d", "e", rename("d/l", "e/l"));
  TIMES("d/f", "d", "e", rename("d/f", "e/l"));  // the same file
  TIMES("d/f", "d", "e", rename("d/f", "e/none/l"));
  TIMES("d/g", "d/f", "d", rename("d/g", "d/h"));
  TIMES("d/f", "d/h", "d", renameat2(AT_FDCWD, "d/f", AT_FDCWD, "d/h", RENAME_EXCHANGE));
  TIMES("d/f", "d/h", "d", renameat2(AT_FDCWD, "d/f", AT_FDCWD, "d/h", RENAME_NOREPLACE));
  TIMES("d/f", "d", "e", unlink("e/l"));
  TIMES("d/f", "d", NULL, unlink("d/none"));
  TIMES("d/f", "d/h", "d", rename("d/h", "d/f"));
  TIMES("d/new", "d", NULL, mkdir("d/new", 0755));
  TIMES("d/new", "d", NULL, mkdir("d/new", 0755));
  TIMES("d/new", "d", "e", rename("d/new", "e/new"));
  TIMES("e/new", "d", "e", rmdir("e"));
  TIMES("e/new", "d", "e", rmdir("e/new"));
  TIMES("e/sym", "e", NULL, symlink("x", "e/sym"));
  TIMES("e/sym", "e", NULL, lchown("e/sym", 1, 1));
  TIMES("e/fifo", "e", NULL, mkfifo("e/fifo", 0644));
  TIMES("e/reg", "e", NULL, mknod("e/reg", S_IFREG | 0644, 0));
  TIMES("e/fifo", "e", NULL, chmod("e/fifo", 0600));
  int fd;
  watch("d/created", "d", NULL);
  fd = OPEN(open("d/created", O_CREAT | O_RDWR, 0644));
  seen();
  TIMES("d/created", "d", NULL, write(fd, "text", 4));
  TIMES("d/created", "d", NULL, write(fd, "", 0));
  TIMES("d/created", "d", NULL, ftruncate(fd, 2));
  TIMES("d/created", "d", NULL, ftruncate(fd, 2));
  TIMES("d/created", "d", NULL, fallocate(fd, 0, 0, 2));
  TIMES("d/created", "d", NULL, fallocate(fd, 0, 0, 10));
  TIMES("d/created", "d", NULL, fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100));
  TIMES("d/created", "d", NULL, fsync(fd));
  TIMES("d/created", "d", NULL, lseek(fd, 0, SEEK_SET));
  TIMES("d/created", "d", NULL, fchmod(fd, 0600));
  TIMES("d/created", "d", NULL, close(fd));
  TIMES("d/created", "d", NULL, truncate("d/created", 2));
  TIMES("d/created", "d", NULL, truncate("d/created", 10));
  TIMES("d/created", "d", NULL, truncate("d/created", 10));
  TIMES("d/created", "d", NULL, close(open("d/created", O_RDWR)));
  TIMES("d/created", "d", NULL, close(open("d/created", O_RDWR | O_CREAT, 0644)));
  TIMES("d/created", "d", NULL, close(open("d/created", O_WRONLY | O_TRUNC)));
  TIMES("d/created", "d", NULL, close(open("d/created", O_WRONLY | O_TRUNC)));
  TIMES("d/created", "d", NULL, open("d/created", O_WRONLY | O_CREAT | O_EXCL, 0644));
  TIMES("d/created", "d", NULL, access("d/created", W_OK));
  TIMES("d/created", "d", NULL, utimensat(AT_FDCWD, "d/created", NULL, 0));
  const struct timespec omit[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
  TIMES("d/created", "d", NULL, utimensat(AT_FDCWD, "d/created", omit, 0));
  const struct timespec atime[2] = {{5, 6}, {0, UTIME_OMIT}};
  TIMES("d/created", "d", NULL, utimensat(AT_FDCWD, "d/created", atime, 0));
  const struct timespec mtime[2] = {{0, UTIME_OMIT}, {0, UTIME_NOW}};
  TIMES("d/created", "d", NULL, utimensat(AT_FDCWD, "d/created", mtime, 0));
  TIMES("d/s", "d", NULL, access("d/s", F_OK));
  write_file("d/read", "to be read");
  fd = open("d/read", O_RDWR);
  TIMES("d/read", "d", NULL, read(fd, text, sizeof text));
  TIMES("d/read", "d", NULL, pwrite(fd, "x", 1, 3));
  TIMES("d/read", "d", NULL, pwrite(fd, "x", 1, 300));
  TIMES("d/read", "d", NULL, pwrite(fd, "x", 1, -1));
  char* map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  watch("d/read", "d", NULL);
  if (map != MAP_FAILED) map[0] = 'm';
  STEP(msync(map, 4096, MS_SYNC));
  // The access time may change or not: the page had to be read, perhaps, to be written.
  struct stat mapped;
  EXPECT(stat("d/read", &mapped) == 0);
  watched_before[0].st_atim = mapped.st_atim;
  seen();
  munmap(map, 4096);
  close(fd);
  // The access time of a folder that is listed. A link's is for who reads it: the guest may
  // know it by heart.
  watch("d", NULL, NULL);
  show_names("d");
  seen();
  int from = open("d/f", O_RDONLY), to = open("d/read", O_RDWR);
  TIMES("d/read", NULL, NULL, copy_file_range(from, NULL, to, NULL, 3, 0));
  TIMES("d/read", NULL, NULL, sendfile(to, from, NULL, 3));
  close(from);
  close(to);
  // Files without a name.
  fd = open("d/read", O_RDWR);
  struct stat before, after;
  EXPECT(fstat(fd, &before) == 0);
  usleep(25000);
  STEP(unlink("d/read"));
  EXPECT(fstat(fd, &after) == 0);
  say("ctime of an unlinked file: %s", changed(before.st_ctim, after.st_ctim));
  close(fd);
  write_file("d/over", "x");
  write_file("d/with", "x");
  fd = open("d/over", O_RDWR);
  EXPECT(fstat(fd, &before) == 0);
  usleep(25000);
  STEP(rename("d/with", "d/over"));
  EXPECT(fstat(fd, &after) == 0);
  say("ctime of a replaced file: %s", changed(before.st_ctim, after.st_ctim));
  show_fd(fd);
  close(fd);
  wipe();
}

static void test_utimens(void) {
  // Nothing outside of what every file system can hold: ext4 ends in 2446.
  static const struct timespec times[][2] = {
      {{1, 2}, {3, 4}},
      {{0, 0}, {0, 0}},
      {{-1, 0}, {-2, 999999999}},
      {{-1000000000, 5}, {4000000000, 999999999}},
      {{0, UTIME_NOW}, {0, UTIME_NOW}},
      {{0, UTIME_OMIT}, {0, UTIME_NOW}},
      {{0, UTIME_NOW}, {0, UTIME_OMIT}},
      {{0, UTIME_OMIT}, {0, UTIME_OMIT}},
      {{5, UTIME_OMIT}, {7, 8}},
      {{7, 8}, {5, UTIME_OMIT}},
      {{7, 1000000000}, {0, 0}},
      {{7, -1}, {0, 0}},
      {{10000000000, 1}, {14000000000, 2}},
  };
  struct timespec start, now;
  EACH(char* const, type, kTypes)
  EACH(struct caller, who, kCallers) for (size_t t = 0; t <= COUNT(times); ++t) {
    if (passed_over(3)) continue;
    about("utimens %s %s %zu", *type, who->name, t);
    EXPECT(make(*type, "it", 0664) == 0 && lchown("it", kOwner, kGroup) == 0);
    age("it");
    clock_gettime(CLOCK_REALTIME_COARSE, &start);
    AS(who,
       STEP(utimensat(AT_FDCWD, "it", t < COUNT(times) ? times[t] : NULL, AT_SYMLINK_NOFOLLOW)));
    clock_gettime(CLOCK_REALTIME, &now);
    struct stat info;
    EXPECT(lstat("it", &info) == 0);
    const struct timespec both[] = {info.st_atim, info.st_mtim};
    for (int i = 0; i < 2; ++i) {
      // Guest and host may have clocks that are not quite the same.
      if (both[i].tv_sec >= start.tv_sec - 2 && both[i].tv_sec <= now.tv_sec + 2) {
        say("  time %d now", i);
      } else {
        say("  time %d %lld.%09ld", i, (long long)both[i].tv_sec, both[i].tv_nsec);
      }
    }
    EXPECT(remove("it") == 0);
  }
  about("utimens fd");
  write_file("f", "x");
  const int fd = open("f", O_RDONLY);
  STEP(futimens(fd, times[0]));
  AS(&kStranger, STEP(futimens(fd, times[0])));
  AS(&kStranger, STEP(futimens(fd, NULL)));
  const int path = open("f", O_PATH);
  STEP(futimens(path, NULL));
  STEP(utimensat(path, "", times[0], AT_EMPTY_PATH));
  struct stat info;
  EXPECT(fstat(fd, &info) == 0);
  say("  %lld %ld", (long long)info.st_atim.tv_sec, info.st_mtim.tv_nsec);
  close(fd);
  close(path);
  wipe();
}

static void test_statx(void) {
  static const int flags[] = {0,
                              AT_STATX_FORCE_SYNC,
                              AT_STATX_DONT_SYNC,
                              AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC,
                              AT_EMPTY_PATH,
                              AT_NO_AUTOMOUNT,
                              0x80000};
  write_file("target", "data");
  EACH(char* const, type, kTypes) EACH(int, flag, flags) for (int bit = -2; bit < 12; ++bit) {
    about("statx %s %#x %d", *type, *flag, bit);
    if (access("it", F_OK) != 0 && errno == ENOENT) EXPECT(make(*type, "it", 0640) == 0);
    const unsigned mask = bit == -2 ? 0 : bit == -1 ? STATX_BASIC_STATS : 1U << bit;
    struct statx info;
    if (STEP(statx(AT_FDCWD, "it", *flag | AT_SYMLINK_NOFOLLOW, mask, &info)) == 0) {
      // Any more than what was asked for is allowed; what it says must be true.
      say("  got %d", (info.stx_mask & mask & STATX_BASIC_STATS) == (mask & STATX_BASIC_STATS));
      if (bit == -1)
        say("  mode %o links %d owner %d:%d size %lld root %d", info.stx_mode,
            S_ISDIR(info.stx_mode) ? 0 : (int)info.stx_nlink, info.stx_uid, info.stx_gid,
            S_ISDIR(info.stx_mode) ? 0LL : (long long)info.stx_size,
            (info.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0);
    }
    if (bit == 11 && flag == &flags[COUNT(flags) - 1]) EXPECT(remove("it") == 0);
  }
  about("statx");
  struct statx info;
  STEP(statx(AT_FDCWD, "target", 0, 1U << 31, &info));
  STEP(statx(AT_FDCWD, "none", 0, 0, &info));
  STEP(statx(AT_FDCWD, "", 0, 0, &info));
  wipe();
}

// Set-id bits and who changes the file in which way.
static long change(int how, int fd, const char* name) {
  static const char text[] = "changed";
  struct iovec vector = {(char*)text, 7};
  int other, ends[2];
  long result;
  char* map;
  switch (how) {
    case 0:
      return write(fd, text, 7);
    case 1:
      return pwrite(fd, text, 7, 100);
    case 2:
      return writev(fd, &vector, 1);
    case 3:
      return ftruncate(fd, 2);
    case 4:
      return ftruncate(fd, 2000);
    case 5:
      return truncate(name, 2);
    case 6:
      return fallocate(fd, 0, 0, 9000);
    case 7:
      return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2);
    case 8:
      return write(fd, text, 0);
    case 9:
      if ((other = open(name, O_WRONLY | O_TRUNC)) < 0) return -1;
      return close(other);
    case 10:
      if ((other = open("source", O_RDONLY)) < 0) return -1;
      result = copy_file_range(other, NULL, fd, NULL, 6, 0);
      close(other);
      return result;
    case 11:
      if ((other = open("source", O_RDONLY)) < 0) return -1;
      result = sendfile(fd, other, NULL, 6);
      close(other);
      return result;
    case 12:
      if (pipe(ends) != 0 || write(ends[1], "piped", 5) != 5) return -1;
      result = splice(ends[0], NULL, fd, NULL, 5, 0);
      close(ends[0]);
      close(ends[1]);
      return result;
    case 13:
      map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      if (map == MAP_FAILED) return -1;  // ENODEV on a share that isn't cached
      map[0] = 'm';
      result = msync(map, 4096, MS_SYNC);
      munmap(map, 4096);
      return result;
    case 14:
      return chmod(name, 06777);
    case 15:
      return chown(name, -1, kGroup);
    case 16:
      return utimensat(AT_FDCWD, name, NULL, 0);
    case 17:
      if ((other = open(name, O_WRONLY | O_APPEND)) < 0) return -1;
      result = write(other, text, 7);
      close(other);
      return result;
    case 18:
      if ((other = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600)) < 0) return -1;
      return close(other);
    case 19:
      return fsync(fd);
    case 20:
      return truncate(name, 4);
    default:
      return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 90000);
  }
}

// From Linux 6.12 on FUSE may leave out who asks, but for what makes something. Then a file
// system can't tell root where no flag does, and takes everybody for one of the group.
static bool callers_untold(void) {
  struct utsname system;
  int major = 0, minor = 0;
  EXPECT(uname(&system) == 0 && sscanf(system.release, "%d.%d", &major, &minor) == 2);
  return major > 6 || (major == 6 && minor >= 12);
}

static void test_set_id(void) {
  const bool untold = callers_untold();
  static const char* const ways[] = {
      "write",     "pwrite", "writev",        "ftruncate",  "ftruncate-up", "truncate",
      "fallocate", "punch",  "write-none",    "open-trunc", "copy",         "sendfile",
      "splice",    "map",    "chmod",         "chown",      "utimens",      "append",
      "creat",     "fsync",  "truncate-same", "keep-size"};
  static const mode_t modes[] = {06777, 02666, 02676, 04666, 04777, 06767};
  write_file("source", "source");
  for (size_t how = 0; how < COUNT(ways); ++how)
    EACH(struct caller, who, kCallers) EACH(mode_t, mode, modes) {
      if (passed_over(3)) continue;
      // A set-group-id bit without the right to execute stays if the caller is in the group. FUSE
      // doesn't say in which groups besides the first one he is, and leaves it alone on chown.
      const bool odd = (*mode & (S_ISGID | S_IXGRP)) == S_ISGID;
      if (odd && (who->count > 0 || strcmp(ways[how], "chown") == 0)) continue;
      if (odd && untold && who->gid != kGroup) continue;
      const bool unflagged = strcmp(ways[how], "fallocate") == 0 ||
                             strcmp(ways[how], "punch") == 0 || strcmp(ways[how], "copy") == 0 ||
                             strcmp(ways[how], "keep-size") == 0;
      if (unflagged && untold && who->uid == 0) continue;
      about("set-id %s %s %04o", ways[how], who->name, *mode);
      write_file("file", "data");
      EXPECT(chown("file", kOwner, kGroup) == 0 && chmod("file", *mode) == 0);
      become(who);
      const int fd = open("file", O_RDWR);
      STEP(change((int)how, fd, "file"));
      show_fd(fd);
      close(fd);
      become(&kRoot);
      show("file");
      EXPECT(unlink("file") == 0);
    }
  wipe();
}

static void test_unlinked(void) {
  char path[64], text[64];
  for (int way = 0; way < 4; ++way) {
    about("unlinked %d", way);
    EXPECT(mkdir("dir", 0755) == 0);
    const int fd = way == 3 ? open("dir", O_TMPFILE | O_RDWR, 0644)
                            : open("dir/file", O_RDWR | O_CREAT | O_EXCL, 0644);
    EXPECT(fd >= 0);
    STEP(write(fd, "data", 4));
    if (way == 0) STEP(unlink("dir/file"));
    if (way == 1) {
      write_file("dir/other", "other");
      STEP(rename("dir/other", "dir/file"));
    }
    if (way == 2) {
      STEP(link("dir/file", "dir/second"));
      STEP(unlink("dir/file"));
    }
    show_fd(fd);
    STEP(pwrite(fd, "more", 4, 4));
    STEP(ftruncate(fd, 6));
    STEP(fchmod(fd, 04755));
    STEP(fchown(fd, kOwner, kGroup));
    show_fd(fd);
    STEP(pread(fd, text, sizeof text, 0));
    const struct timespec times[2] = {{1, 2}, {3, 4}};
    STEP(futimens(fd, times));
    struct stat info;
    EXPECT(fstat(fd, &info) == 0);
    say("  times %ld %ld %ld", (long)info.st_atim.tv_sec, (long)info.st_mtim.tv_sec,
        info.st_mtim.tv_nsec);
    STEP(fallocate(fd, 0, 0, 20));
    STEP(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4));
    STEP(lseek(fd, 0, SEEK_DATA));
    STEP(fsync(fd));
    STEP(fdatasync(fd));
    STEP(syncfs(fd));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = OPEN(open(path, O_RDWR));
    if (again >= 0) {
      STEP(pread(again, text, sizeof text, 0));
      close(again);
    }
    again = OPEN(open(path, O_RDWR | O_TRUNC));
    if (again >= 0) close(again);
    STEP(truncate(path, 3));
    show_fd(fd);
    STEP(linkat(AT_FDCWD, path, AT_FDCWD, "dir/back", AT_SYMLINK_FOLLOW));
    STEP(linkat(fd, "", AT_FDCWD, "dir/again", AT_EMPTY_PATH));
    show_fd(fd);
    show("dir/back");
    show_names("dir");
    close(fd);
    wipe();
  }
  about("unlinked folder");
  EXPECT(mkdir("dir", 0755) == 0 && mkdir("dir/sub", 0755) == 0);
  const int dir = open("dir/sub", O_RDONLY | O_DIRECTORY);
  EXPECT(chdir("dir/sub") == 0);
  STEP(rmdir("../sub"));
  struct stat info;
  EXPECT(fstat(dir, &info) == 0);
  say("links %d", (int)info.st_nlink);
  STEP(mkdir("x", 0755));
  STEP(open("x", O_CREAT | O_RDWR, 0644));
  STEP(symlink("x", "y"));  // not O_TMPFILE: tmpfs allows it, ext4 says EPERM
  STEP(mkfifo("x", 0644));
  STEP(access("x", F_OK));
  STEP(access(".", F_OK));
  STEP(access("..", F_OK));
  STEP(fchmod(dir, 0700));
  STEP(fsync(dir));
  STEP(link("../none", "z"));
  STEP(getcwd(text, sizeof text) == NULL ? -1 : 0);
  DIR* list = fdopendir(dir);
  int entries = 0;
  while (readdir(list) != NULL) ++entries;
  say("entries %d", entries);
  closedir(list);
  EXPECT(chdir("../..") == 0);
  show_names(".");
  wipe();
}

// Offsets and sizes at their edges.
static void test_io(void) {
  about("io");
  static char big[300000], back[300000];
  for (size_t i = 0; i < sizeof big; ++i) big[i] = (char)(i * 7 + i / 251);
  int fd = OPEN(open("file", O_RDWR | O_CREAT, 0644));
  struct iovec many[1025];  // one more than a call may have
  for (int i = 0; i < 1025; ++i) many[i] = (struct iovec){big + i * 3, i % 5};
  STEP(writev(fd, many, 0));
  STEP(writev(fd, many, 1024));
  STEP(writev(fd, many, 1025));
  STEP(lseek(fd, 0, SEEK_CUR));
  STEP(pwritev(fd, many, 3, 0));
  STEP(pwritev(fd, many, 3, -1));
  STEP(pwritev2(fd, many, 5, 100, RWF_APPEND));
  STEP(pwritev2(fd, many, 5, 100, RWF_DSYNC));
  STEP(pwritev2(fd, many, 5, -1, RWF_SYNC));
  STEP(pwritev2(fd, many, 5, 0, 0x4000));
  show_fd(fd);
  many[1].iov_len = (size_t)-1;
  STEP(pwritev(fd, many, 3, 0));
  STEP(preadv(fd, many, 3, 0));
  many[1] = (struct iovec){(void*)1, 4};
  STEP(pwritev(fd, many + 1, 1, 0));
  STEP(preadv(fd, many + 1, 1, 0));
  STEP(pwrite(fd, big, sizeof big, 12345));
  STEP(pread(fd, back, sizeof back, 12345));
  say("same %d", memcmp(big, back, sizeof big));
  STEP(pread(fd, back, sizeof back, 12345 + sizeof big - 10));
  STEP(pread(fd, back, sizeof back, 12345 + sizeof big));
  STEP(pread(fd, back, sizeof back, 1LL << 40));
  STEP(pread(fd, back, sizeof back, -5));
  STEP(pread(fd, back, sizeof back, INT64_MAX));
  STEP(pread(fd, back, 0, 0));
  STEP(lseek(fd, -1, SEEK_SET));
  STEP(lseek(fd, 0, SEEK_END));
  STEP(lseek(fd, -1000000, SEEK_END));
  STEP(lseek(fd, 5, 99));
  STEP(lseek(fd, 10, SEEK_SET));
  STEP(write(fd, "x", 1));
  STEP(read(fd, back, 3));
  STEP(close(fd));

  about("io append");
  fd = open("file", O_RDWR | O_APPEND);
  const int other = open("file", O_RDWR | O_APPEND);
  STEP(ftruncate(fd, 5));
  STEP(write(fd, "abc", 3));
  STEP(write(other, "def", 3));
  STEP(write(fd, "ghi", 3));
  STEP(lseek(fd, 0, SEEK_CUR));
  STEP(pwrite(fd, "at the end", 10, 0));  // Linux appends here, whatever POSIX says
  STEP(lseek(fd, 1, SEEK_SET));
  STEP(write(fd, "z", 1));
  show_content("file");
  STEP(fcntl(fd, F_SETFL, 0));
  STEP(pwrite(fd, "S", 1, 0));
  STEP(write(fd, "p", 1));
  show_content("file");
  STEP(fcntl(other, F_SETFL, O_APPEND | O_NONBLOCK));
  show_fd(fd);
  close(fd);
  close(other);

  about("io holes");
  fd = open("holes", O_RDWR | O_CREAT, 0644);
  STEP(pwrite(fd, "a", 1, 65536));
  STEP(pwrite(fd, "b", 1, 262144));
  STEP(fsync(fd));  // with --writeback the guest asks the host before it has told what was written
  STEP(lseek(fd, 0, SEEK_DATA));
  STEP(lseek(fd, 0, SEEK_HOLE));
  STEP(lseek(fd, 65536, SEEK_DATA));
  STEP(lseek(fd, 65536, SEEK_HOLE));
  STEP(lseek(fd, 70000, SEEK_DATA));
  STEP(lseek(fd, 262144, SEEK_HOLE));
  STEP(lseek(fd, 262145, SEEK_HOLE));
  STEP(lseek(fd, 262145, SEEK_DATA));
  STEP(lseek(fd, 1 << 30, SEEK_DATA));
  STEP(lseek(fd, -1, SEEK_DATA));
  STEP(lseek(fd, -1, SEEK_HOLE));
  STEP(lseek(fd, 0, SEEK_CUR));
  STEP(ftruncate(fd, 0));
  STEP(lseek(fd, 0, SEEK_DATA));
  STEP(lseek(fd, 0, SEEK_HOLE));
  close(fd);

  about("io kinds");
  EXPECT(mkdir("dir", 0755) == 0);
  fd = open("dir", O_RDONLY);
  STEP(read(fd, back, 1));
  STEP(pread(fd, back, 1, 0));
  STEP(write(fd, back, 1));
  STEP(lseek(fd, 0, SEEK_SET));
  STEP(fallocate(fd, 0, 0, 10));
  STEP(ftruncate(fd, 0));
  STEP(posix_fadvise(fd, 0, 0, POSIX_FADV_NORMAL));
  STEP(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
  STEP(fsync(fd));
  STEP(fdatasync(fd));
  close(fd);
  fd = open("file", O_RDONLY);
  STEP(write(fd, "x", 1));
  STEP(fallocate(fd, 0, 0, 10));
  STEP(fsync(fd));
  STEP(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
  STEP(readahead(fd, 0, 4096));
  STEP(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));
  close(fd);
  fd = open("file", O_WRONLY);
  STEP(read(fd, back, 1));
  STEP(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
  STEP(lseek(fd, 0, SEEK_DATA));
  close(fd);
  wipe();
}

static void test_allocate(void) {
  // Modes that some good file systems don't know are not here.
  static const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              FALLOC_FL_PUNCH_HOLE,
                              FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
  static const off_t ranges[][2] = {{0, 1},         {0, 0},        {-1, 5},    {5, -1},
                                    {0, 4096},      {1, 10000},    {8192, 10}, {100000, 5},
                                    {INT64_MAX, 1}, {1, INT64_MAX}};
  char text[8];
  EACH(int, mode, modes) for (size_t r = 0; r < COUNT(ranges); ++r) {
    about("fallocate %#x %lld %lld", *mode, (long long)ranges[r][0], (long long)ranges[r][1]);
    const int fd = open("file", O_RDWR | O_CREAT, 0644);
    EXPECT(pwrite(fd, "start", 5, 0) == 5 && pwrite(fd, "end", 3, 9000) == 3);
    STEP(fallocate(fd, *mode, ranges[r][0], ranges[r][1]));
    show_fd(fd);
    STEP(pread(fd, text, 5, 0));
    say("  %d %d", text[0], text[4]);
    STEP(pread(fd, text, 3, 9000));
    say("  %d %d", text[0], text[2]);
    STEP(posix_fallocate(fd, 0, 20000));
    show_fd(fd);
    close(fd);
    EXPECT(unlink("file") == 0);
  }
  wipe();
}

static void test_copies(void) {
  about("copies");
  char text[128];
  write_file("source", "0123456789abcdef");
  EXPECT(mkdir("dir", 0755) == 0 && mkfifo("fifo", 0644) == 0);
  int in = open("source", O_RDWR), out = open("target", O_RDWR | O_CREAT, 0644);
  const int add = open("target", O_WRONLY | O_APPEND), dir = open("dir", O_RDONLY),
            fifo = open("fifo", O_RDWR);
  const int reader = open("target", O_RDONLY), writer = open("source", O_WRONLY);
  off_t from = 2, to = 100, negative = -1;
  STEP(copy_file_range(in, NULL, out, NULL, 4, 0));
  STEP(lseek(in, 0, SEEK_CUR));
  STEP(lseek(out, 0, SEEK_CUR));
  STEP(copy_file_range(in, &from, out, &to, 5, 0));
  say("  %ld %ld", (long)from, (long)to);
  STEP(copy_file_range(in, NULL, out, NULL, 1000, 0));
  STEP(copy_file_range(in, NULL, out, NULL, 1000, 0));
  STEP(copy_file_range(in, NULL, out, NULL, 0, 0));
  STEP(copy_file_range(in, NULL, out, NULL, 1, 1));
  STEP(copy_file_range(in, &negative, out, NULL, 1, 0));
  from = 0;
  STEP(copy_file_range(in, &from, add, NULL, 1, 0));
  STEP(copy_file_range(in, &from, dir, NULL, 1, 0));
  STEP(copy_file_range(dir, NULL, out, NULL, 1, 0));
  STEP(copy_file_range(fifo, NULL, out, NULL, 1, 0));
  STEP(copy_file_range(in, &from, reader, NULL, 1, 0));
  STEP(copy_file_range(writer, NULL, out, NULL, 1, 0));
  from = 0, to = 4;
  STEP(copy_file_range(in, &from, in, &to, 8, 0));
  from = 0, to = 8;
  STEP(copy_file_range(in, &from, in, &to, 8, 0));
  show_content("source");
  show_content("target");
  show_fd(out);
  from = 0;
  STEP(sendfile(out, in, &from, 5));
  STEP(sendfile(out, dir, NULL, 5));
  STEP(sendfile(add, in, &from, 5));
  STEP(sendfile(reader, in, &from, 5));
  int ends[2];
  EXPECT(pipe(ends) == 0);
  from = 3;
  STEP(splice(in, &from, ends[1], NULL, 6, 0));
  STEP(splice(ends[0], NULL, out, NULL, 6, 0));
  STEP(splice(in, NULL, out, NULL, 6, 0));
  STEP(write(ends[1], "piped", 5));
  STEP(splice(ends[0], NULL, add, NULL, 5, 0));
  STEP(splice(ends[0], NULL, out, &to, 5, SPLICE_F_NONBLOCK));
  struct iovec vector = {text, 5};
  memcpy(text, "vmspl", 5);
  STEP(vmsplice(ends[1], &vector, 1, 0));
  to = 50;
  STEP(splice(ends[0], NULL, out, &to, 5, 0));
  show_fd(out);
  memset(text, 0, sizeof text);
  STEP(pread(out, text, 64, 0));
  for (int i = 0; i < 64; ++i)
    if (text[i] == 0) text[i] = '.';
  say("  %.64s", text);
  const int all[] = {in, out, add, dir, fifo, reader, writer, ends[0], ends[1]};
  EACH(int, fd, all) close(*fd);
  wipe();
}

// Listing folders while they change.
static void test_folders(void) {
  static const int counts[] = {0, 1, 5, 100, 400};
  char name[300];
  EACH(int, count, counts) {
    about("folders %d", *count);
    EXPECT(mkdir("dir", 0755) == 0);
    for (int i = 0; i < *count; ++i) {
      snprintf(name, sizeof name, "dir/%0*d", 5 + i % 7 * 20, i);
      EXPECT(mknod(name, S_IFREG | 0644, 0) == 0);
    }
    DIR* list = opendir("dir");
    // Every position leads back to the entry that came after it.
    static long places[1100];
    static char names[1100][256];
    int found = 0, dots = 0, wrong = 0;
    for (;;) {
      places[found] = telldir(list);
      const struct dirent* entry = readdir(list);
      if (entry == NULL) break;
      dots += strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
      struct stat info;
      wrong += fstatat(dirfd(list), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0 ||
               (strcmp(entry->d_name, "..") != 0 && info.st_ino != entry->d_ino) ||
               (entry->d_type != DT_UNKNOWN && entry->d_type != IFTODT(info.st_mode));
      if (found < (int)COUNT(names)) strcpy(names[found++], entry->d_name);
    }
    say("found %d dots %d wrong %d", found, dots, wrong);
    wrong = 0;
    for (int i = found - 1; i >= 0; i -= 1 + found / 50) {
      seekdir(list, places[i]);
      const struct dirent* entry = readdir(list);
      wrong += entry == NULL || strcmp(entry->d_name, names[i]) != 0;
    }
    say("sought and not found %d", wrong);
    // A new one and one less are seen after rewinddir.
    write_file("dir/new", "");
    rewinddir(list);
    int now = 0;
    while (readdir(list) != NULL) ++now;
    say("with a new one %d", now);
    rewinddir(list);
    // All are removed as they are found.
    int removed = 0;
    for (const struct dirent* entry; (entry = readdir(list)) != NULL;)
      if (entry->d_name[0] != '.') removed += unlinkat(dirfd(list), entry->d_name, 0) == 0;
    say("removed %d", removed);
    rewinddir(list);
    now = 0;
    while (readdir(list) != NULL) ++now;
    say("left %d", now);
    EXPECT(rmdir("dir") == 0);
    rewinddir(list);
    now = 0;
    while (readdir(list) != NULL) ++now;
    say("in what is gone %d", now);
    closedir(list);
  }
  about("folders getdents");
  char small[24];
  EXPECT(mkdir("dir", 0755) == 0);
  int fd = open("dir", O_RDONLY);
  STEP(getdents64(fd, small, 1));
  STEP(getdents64(fd, small, sizeof small));
  STEP(lseek(fd, 0, SEEK_SET));
  STEP(lseek(fd, -1, SEEK_SET));
  close(fd);
  write_file("file", "x");
  fd = open("file", O_RDONLY);
  STEP(getdents64(fd, small, sizeof small));
  close(fd);
  wipe();
}

static void test_maps(void) {
  about("maps");
  int fd = open("file", O_RDWR | O_CREAT, 0644);
  EXPECT(ftruncate(fd, 10000) == 0);
  char text[16] = "";
  char* shared = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  char* private = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  STEP(shared == MAP_FAILED ? -1 : 0);
  STEP(private == MAP_FAILED ? -1 : 0);
  if (shared == MAP_FAILED) {  // on a share that isn't cached
    close(fd);
    wipe();
    return;
  }
  memcpy(shared + 100, "shared", 6);
  STEP(pread(fd, text, 6, 100));
  say("read %s, private %.6s", text, private + 100);
  memcpy(private + 100, "secret", 6);
  STEP(pread(fd, text, 6, 100));
  say("read %s, shared %.6s", text, shared + 100);
  STEP(pwrite(fd, "written", 7, 200));
  say("shared %.7s private %.7s", shared + 200, private + 200);
  shared[9999] = 'e';
  shared[10001] = 'b';  // beyond the end, on the last page: never in the file
  STEP(msync(shared, 12288, MS_SYNC));
  STEP(ftruncate(fd, 11000));
  STEP(pread(fd, text, 2, 9999));  // tmpfs shows what was written behind the end, in byte 10001
  say("bytes %d %d", text[0], text[1]);
  STEP(ftruncate(fd, 4096));
  fflush(stdout);
  if (child()) {
    signal(SIGBUS, SIG_DFL);
    alarm(5);
    shared[5000] = 'x';
    say("a page behind the end can be written");
    done();
  }
  STEP(ftruncate(fd, 16384));
  say("byte %d", shared[9999]);
  shared[16000] = 'z';
  close(fd);
  STEP(unlink("file"));
  shared[15000] = 'y';
  STEP(msync(shared, 16384, MS_ASYNC));
  munmap(shared, 16384);
  munmap(private, 16384);
  write_file("file", "written\n");
  fd = open("file", O_RDONLY);
  STEP(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
  shared = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
  say("reads %.7s", shared);
  const int writer = open("file", O_WRONLY | O_APPEND);
  STEP(write(writer, "later", 5));
  say("reads %.13s", shared);
  close(writer);
  close(fd);
  munmap(shared, 4096);
  wipe();
}

static void test_limits(void) {
  about("limits");
  struct statfs fs;
  STEP(statfs(".", &fs));
  say("names up to %ld", (long)fs.f_namelen);
  STEP(pathconf(".", _PC_NAME_MAX));
  STEP(pathconf(".", _PC_PATH_MAX));
  for (int way = 0; way < 6; ++way) {
    about("limits file size %d", way);
    if (!child()) continue;
    const int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0644);
    EXPECT(write(fd, "0123456789", 10) == 10);
    signal(SIGXFSZ, way == 5 ? SIG_DFL : SIG_IGN);
    // The output has its limit, too: what is said goes out afterwards.
    static char buffer[8192];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    EXPECT(setrlimit(RLIMIT_FSIZE, &(struct rlimit){100, RLIM_INFINITY}) == 0);
    static char zeros[200];
    if (way == 0) STEP(pwrite(fd, zeros, 200, 0));
    if (way == 1) STEP(pwrite(fd, zeros, 1, 100));
    if (way == 2) STEP(ftruncate(fd, 101));
    if (way == 3) STEP(truncate("file", 200));
    if (way == 4) STEP(fallocate(fd, 0, 0, 200));
    if (way == 5) STEP(pwrite(fd, zeros, 1, 200));
    show_fd(fd);
    EXPECT(setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}) == 0);
    done();
  }
  wipe();
}

static void test_handles(void) {
  struct {
    struct file_handle head;
    unsigned char bytes[MAX_HANDLE_SZ];
  } handle;
  const int mount = open(".", O_RDONLY | O_DIRECTORY);
  static const int flags[] = {O_PATH, O_RDONLY | O_NONBLOCK, O_RDWR | O_NONBLOCK,
                              O_RDONLY | O_DIRECTORY};
  int id;
  write_file("target", "x");
  EACH(char* const, type, kTypes) EACH(int, flag, flags) {
    about("handles %s %#x", *type, *flag);
    EXPECT(make(*type, "it", 0644) == 0);
    handle.head.handle_bytes = 0;
    STEP(name_to_handle_at(AT_FDCWD, "it", &handle.head, &id, 0));
    handle.head.handle_bytes = MAX_HANDLE_SZ;
    STEP(name_to_handle_at(AT_FDCWD, "it", &handle.head, &id, 0));
    AS(&kStranger, STEP(open_by_handle_at(mount, &handle.head, *flag)));
    // Once only: a FUSE guest forgets the file when it has opened it by handle.
    const int fd = OPEN(open_by_handle_at(mount, &handle.head, *flag));
    if (fd >= 0) {
      show_fd(fd);
      close(fd);
    }
    EXPECT(remove("it") == 0);
  }
  close(mount);
  wipe();
}

static void with_attributes(const int* flags, int count) {
  const int mask = FS_NODUMP_FL | FS_NOATIME_FL | FS_APPEND_FL | FS_IMMUTABLE_FL;
  for (int folder = 0; folder < 2; ++folder)
    for (const int* flag = flags; flag < flags + count; ++flag) {
      about("attributes %s %#x", folder ? "folder" : "file", *flag);
      EXPECT(make(folder ? "folder" : "file", "it", 0666) == 0);
      if (folder) write_file("it/in", "x");
      const int before = folder ? -1 : open("it", O_RDWR);
      int fd = open("it", O_RDONLY);
      int now = 0;
      STEP(ioctl(fd, FS_IOC_GETFLAGS, &now));
      AS(&kStranger, STEP(ioctl(fd, FS_IOC_SETFLAGS, &now)));
      int all = now | *flag;
      STEP(ioctl(fd, FS_IOC_SETFLAGS, &all));
      STEP(ioctl(fd, FS_IOC_GETFLAGS, &now));
      say("  flags %#x", now & mask);
      int writer;
      if (folder) {
        STEP(mkdir("it/new", 0755));
        STEP(unlink("it/in"));
        STEP(rename("it/in", "it/other"));
      } else {
        if ((writer = OPEN(open("it", O_WRONLY))) >= 0) close(writer);
        if ((writer = OPEN(open("it", O_WRONLY | O_APPEND))) >= 0) {
          STEP(write(writer, "end", 3));
          close(writer);
        }
        if ((writer = OPEN(open("it", O_WRONLY | O_TRUNC))) >= 0) close(writer);
        STEP(truncate("it", 1));
        STEP(link("it", "second"));
        unlink("second");
        (void)before;
      }
      STEP(chmod("it", 0600));
      STEP(chown("it", 1, 1));
      STEP(utimensat(AT_FDCWD, "it", NULL, 0));
      STEP(utimensat(AT_FDCWD, "it", (struct timespec[]){{1, 1}, {1, 1}}, 0));
      STEP(rename("it", "moved"));
      STEP(remove(access("moved", F_OK) == 0 ? "moved" : "it"));
      now &= ~*flag;
      STEP(ioctl(fd, FS_IOC_SETFLAGS, &now));
      close(fd);
      if (before >= 0) close(before);
      wipe();
    }
}

static void test_attributes(void) {
  // Only what both file systems know.
  static const int flags[] = {FS_NODUMP_FL, FS_NOATIME_FL};
  with_attributes(flags, COUNT(flags));
  about("attributes others");
  write_file("it", "x");
  const int fd = open("it", O_RDONLY);
  int value = 0;
  STEP(ioctl(fd, 0x1234, &value));
  STEP(ioctl(fd, TIOCGWINSZ, &value));
  STEP(ioctl(fd, FIONREAD, &value));
  say("  to be read %d", value);
  close(fd);
  wipe();
}

// Asks for a daemon with CAP_LINUX_IMMUTABLE.
static void test_immutable(void) {
  static const int flags[] = {FS_APPEND_FL, FS_IMMUTABLE_FL};
  with_attributes(flags, COUNT(flags));
}

static void notified(int fd) {
  char buffer[4096] __attribute__((aligned(8)));
  char line[1024] = "";
  for (;;) {
    struct pollfd poll_fd = {fd, POLLIN, 0};
    if (poll(&poll_fd, 1, 0) != 1) break;
    const ssize_t size = read(fd, buffer, sizeof buffer);
    for (ssize_t at = 0; at < size;) {
      const struct inotify_event* event = (const void*)(buffer + at);
      snprintf(line + strlen(line), sizeof line - strlen(line), " %d:%#x%s%s", event->wd,
               event->mask, event->len ? " " : "", event->len ? event->name : "");
      at += (ssize_t)(sizeof *event + event->len);
    }
  }
  say("  events%s", line);
}

static void test_notifications(void) {
  about("notifications");
  EXPECT(mkdir("d", 0755) == 0);
  write_file("d/f", "x");
  const int notify = inotify_init1(IN_NONBLOCK);
  EXPECT(inotify_add_watch(notify, "d", IN_ALL_EVENTS) == 1 &&
         inotify_add_watch(notify, "d/f", IN_ALL_EVENTS) == 2);
#define NOTIFIED(call) \
  do {                 \
    STEP(call);        \
    notified(notify);  \
  } while (0)
  NOTIFIED(close(open("d/f", O_RDONLY)));
  NOTIFIED(close(open("d/f", O_WRONLY | O_TRUNC)));
  NOTIFIED(chmod("d/f", 0600));
  NOTIFIED(chown("d/f", 1, 1));
  NOTIFIED(truncate("d/f", 10));
  NOTIFIED(utimensat(AT_FDCWD, "d/f", NULL, 0));
  NOTIFIED(link("d/f", "d/l"));
  NOTIFIED(rename("d/l", "d/m"));
  NOTIFIED(rename("d/m", "m"));
  NOTIFIED(unlink("m"));
  NOTIFIED(mkdir("d/sub", 0755));
  NOTIFIED(rmdir("d/sub"));
  NOTIFIED(symlink("x", "d/s"));
  NOTIFIED(close(open("d/new", O_RDWR | O_CREAT, 0644)));
  NOTIFIED(rename("d/new", "d/f"));
  NOTIFIED(unlink("d/f"));
  NOTIFIED(unlink("d/s"));
  NOTIFIED(rename("d", "e"));
  NOTIFIED(rmdir("e"));
  close(notify);
  wipe();
}

static void test_places(void) {
  about("places");
  char here[8192], name[128];
  EXPECT(getcwd(here, sizeof here) != NULL);
  const size_t prefix = strlen(here);
  EXPECT(mkdir("a", 0755) == 0 && mkdir("a/b", 0755) == 0 && chdir("a/b") == 0);
  EXPECT(getcwd(here, sizeof here) != NULL);
  say("in %s", here + prefix);
  STEP(rename("../../a", "../../z"));
  EXPECT(getcwd(here, sizeof here) != NULL);
  say("in %s", here + prefix);
  STEP(rename("../../z/b", "../../y"));
  EXPECT(getcwd(here, sizeof here) != NULL);
  say("in %s", here + prefix);
  STEP(rename("../y", "../y/below"));
  STEP(rmdir("."));
  STEP(rmdir("../y"));
  STEP(chdir("."));
  STEP(chdir(".."));
  STEP(chdir("y"));
  STEP(chdir("z"));
  EXPECT(chmod(".", 0) == 0);
  STEP(chdir(".."));
  AS(&kStranger, STEP(chdir("z")));
  // Deeper than any path may be long.
  about("places deep");
  const int start = open(".", O_RDONLY | O_DIRECTORY);
  repeat(name, 'd', 100);
  for (int i = 0; i < 60; ++i) EXPECT(mkdir(name, 0755) == 0 && chdir(name) == 0);
  STEP(syscall(SYS_getcwd, here, 4096L));
  write_file("bottom", "x");
  show("bottom");
  STEP(link("bottom", "bottom2"));
  STEP(rename("bottom2", "bottom3"));
  STEP(unlink("bottom3"));
  STEP(unlink("bottom"));
  for (int i = 0; i < 60; ++i) EXPECT(chdir("..") == 0 && rmdir(name) == 0);
  show_names(".");
  EXPECT(fchdir(start) == 0);
  close(start);
  // A mount on a folder of the share.
  about("places mount");
  EXPECT(mkdir("m", 0755) == 0 && mkdir("n", 0755) == 0);
  STEP(mount("none", "m", "tmpfs", 0, ""));
  write_file("m/x", "x");
  STEP(rmdir("m"));
  STEP(rename("m", "o"));
  STEP(rename("n", "m"));
  STEP(rename("m/x", "x"));
  STEP(link("m/x", "x"));
  STEP(chmod("m", 0700));
  STEP(umount("m"));
  show_names("m");
  STEP(mount("n", "m", "", MS_BIND, ""));
  write_file("n/y", "y");
  show_names("m");
  STEP(rename("m/y", "n/z"));
  STEP(link("m/y", "n/z"));
  STEP(rmdir("m"));
  STEP(umount("m"));
  wipe();
}

static void run(const char* path) {
  fflush(stdout);
  const pid_t pid = fork();
  EXPECT(pid >= 0);
  if (pid == 0) {
    execl(path, "posix", "--who", NULL);
    _exit(errno);
  }
  int status;
  EXPECT(waitpid(pid, &status, 0) == pid);
  say("  ran: %d %d", WEXITSTATUS(status), WTERMSIG(status));
}

static void test_programs(void) {
  about("programs");
  static char data[65536];
  int from = open("/proc/self/exe", O_RDONLY), to = open("program", O_WRONLY | O_CREAT, 0755);
  for (ssize_t size; (size = read(from, data, sizeof data)) > 0;)
    EXPECT(write(to, data, size) == size);
  close(from);
  run("./program");  // ETXTBSY
  close(to);
  run("./program");
  STEP(chown("program", 42, 43));
  STEP(chmod("program", 06755));
  run("./program");
  AS(&kStranger, run("./program"));
  STEP(chmod("program", 0644));
  run("./program");
  STEP(chmod("program", 0611));
  AS(&kStranger, run("./program"));
  write_file("script", "#!./program --script\n");
  STEP(chmod("script", 0755));
  run("./script");
  write_file("script", "#!./none\n");
  run("./script");
  write_file("script", "");
  run("./script");
  // A program that runs can't be written, and can be replaced.
  int ends[2];
  EXPECT(pipe(ends) == 0);
  fflush(stdout);
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(ends[0], 0);
    close(ends[1]);
    execl("./program", "posix", "--wait", NULL);
    _exit(1);
  }
  usleep(100000);
  STEP(open("program", O_WRONLY));
  STEP(truncate("program", 0));
  write_file("other", "x");
  STEP(rename("other", "program"));
  close(ends[0]);
  EXPECT(write(ends[1], "x", 1) == 1);
  close(ends[1]);
  int status;
  EXPECT(waitpid(pid, &status, 0) == pid);
  say("ran: %d", status);
  wipe();
}

static void test_channels(void) {
  about("channels");
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "sock"};
  const socklen_t size = sizeof address;
  int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
  umask(022);
  STEP(connect(client, (void*)&address, size));
  STEP(bind(server, (void*)&address, size));
  umask(0);
  show("sock");
  STEP(connect(client, (void*)&address, size));
  STEP(listen(server, 1));
  AS(&kStranger, STEP(connect(client, (void*)&address, size)));
  STEP(connect(client, (void*)&address, size));
  const int peer = accept(server, NULL, NULL);
  char text[16] = "";
  STEP(write(client, "hello", 5));
  STEP(read(peer, text, sizeof text));
  close(server);
  server = socket(AF_UNIX, SOCK_STREAM, 0);
  STEP(bind(server, (void*)&address, size));
  STEP(rename("sock", "moved"));
  STEP(open("moved", O_RDWR));
  STEP(unlink("moved"));
  close(server);
  close(client);
  close(peer);

  about("channels fifo");
  STEP(mkfifo("fifo", 0600));
  STEP(open("fifo", O_WRONLY | O_NONBLOCK));
  fflush(stdout);
  const pid_t pid = fork();
  if (pid == 0) {
    const int fd = open("fifo", O_WRONLY);
    _exit(write(fd, "through", 7) != 7);
  }
  const int fd = OPEN(open("fifo", O_RDONLY));
  memset(text, 0, sizeof text);
  STEP(read(fd, text, sizeof text));
  say("  %s", text);
  STEP(read(fd, text, sizeof text));
  STEP(lseek(fd, 0, SEEK_SET));
  show_fd(fd);
  AS(&kStranger, STEP(open("fifo", O_RDONLY | O_NONBLOCK)));
  EXPECT(waitpid(pid, NULL, 0) == pid);
  close(fd);
  STEP(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
  const int null = OPEN(open("null", O_RDWR));
  STEP(write(null, "x", 1));
  STEP(read(null, text, 1));
  close(null);
  STEP(mknod("block", S_IFBLK | 0600, makedev(240, 5000)));
  show("block");
  STEP(open("block", O_RDONLY));
  AS(&kStranger, STEP(mknod("n", S_IFCHR | 0600, makedev(1, 3))));
  STEP(chmod(".", 0777));
  AS(&kStranger, STEP(mknod("n", S_IFCHR | 0600, makedev(1, 3))));
  AS(&kStranger, STEP(mknod("n", S_IFCHR | 0600, 0)));
  AS(&kStranger, STEP(mknod("p", S_IFIFO | 0600, 0)));
  STEP(mknod("x", S_IFDIR | 0755, 0));
  STEP(mknod("x", S_IFLNK | 0755, 0));
  STEP(mknod("x", 0644, 0));
  show_names(".");
  wipe();
}

static void test_locks(void) {
  about("locks");
  int one = open(".", O_RDONLY);
  STEP(flock(one, LOCK_EX | LOCK_NB));
  close(one);
  write_file("file", "data");
  one = open("file", O_RDWR);
  const int two = open("file", O_RDWR), reader = open("file", O_RDONLY),
            writer = open("file", O_WRONLY);
  STEP(flock(one, LOCK_SH | LOCK_NB));
  STEP(flock(two, LOCK_SH | LOCK_NB));
  STEP(flock(two, LOCK_EX | LOCK_NB));
  STEP(flock(one, LOCK_UN));
  STEP(flock(two, LOCK_EX | LOCK_NB));
  STEP(flock(reader, LOCK_EX | LOCK_NB));
  STEP(flock(two, LOCK_UN));
  STEP(flock(reader, LOCK_EX | LOCK_NB));
  STEP(flock(reader, LOCK_UN));
  STEP(flock(one, 99));
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
  STEP(fcntl(one, F_SETLK, &lock));
  STEP(fcntl(reader, F_SETLK, &lock));
  lock.l_type = F_RDLCK;
  STEP(fcntl(writer, F_SETLK, &lock));
  for (int command = 0; command < 2; ++command) {
    const int get = command ? F_OFD_GETLK : F_GETLK, set = command ? F_OFD_SETLK : F_SETLK;
    static const off_t ranges[][2] = {{0, 0},         {0, 5},        {9, 1},  {10, 10},
                                      {-1, 1},        {5, -3},       {2, -5}, {INT64_MAX, 1},
                                      {INT64_MAX, 2}, {1, INT64_MAX}};
    static const short types[] = {F_RDLCK, F_WRLCK};
    for (size_t r = 0; r < COUNT(ranges); ++r) EACH(short, type, types) {
        about("locks %d %lld %lld type %d", command, (long long)ranges[r][0],
              (long long)ranges[r][1], *type);
        lock = (struct flock){.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 4, .l_len = 8};
        EXPECT(fcntl(one, set, &lock) == 0);
        fflush(stdout);
        if (child()) {
          lock = (struct flock){.l_type = *type,
                                .l_whence = SEEK_SET,
                                .l_start = ranges[r][0],
                                .l_len = ranges[r][1]};
          if (STEP(fcntl(two, get, &lock)) == 0) {
            say("  %d %lld %lld %d", lock.l_type, (long long)lock.l_start, (long long)lock.l_len,
                lock.l_pid == getppid());
          }
          lock = (struct flock){.l_type = *type,
                                .l_whence = SEEK_SET,
                                .l_start = ranges[r][0],
                                .l_len = ranges[r][1]};
          STEP(fcntl(two, set, &lock));
          done();
        }
        lock = (struct flock){.l_type = F_UNLCK, .l_whence = SEEK_SET};
        EXPECT(fcntl(one, set, &lock) == 0 && fcntl(two, set, &lock) == 0);
      }
  }
  // Closing any descriptor of the file ends the process's record locks on it.
  about("locks close");
  lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
  EXPECT(fcntl(one, F_SETLK, &lock) == 0);
  close(open("file", O_RDONLY));
  if (child()) {
    STEP(fcntl(two, F_SETLK, &lock));
    done();
  }
  STEP(fcntl(one, F_SETLEASE, F_WRLCK));
  close(two);
  close(reader);
  close(writer);
  STEP(fcntl(one, F_GETLEASE));
  close(one);
  wipe();
}

static void test_xattrs(void) {
  static const char* const prefixes[] = {"trusted.", "security."};
  static char value[70000], back[70000], name[600], list[70000];
  write_file("target", "x");
  EACH(char* const, type, kTypes)
  EACH(char* const, prefix, prefixes) EACH(struct caller, who, kCallers) {
    about("xattrs %s %s %s", *type, *prefix, who->name);
    EXPECT(make(*type, "it", 0666) == 0 && lchown("it", kOwner, kGroup) == 0);
    snprintf(name, sizeof name, "%sone", *prefix);
    become(who);
    STEP(lgetxattr("it", name, back, sizeof back));
    STEP(lsetxattr("it", name, "12345", 5, XATTR_REPLACE));
    STEP(lsetxattr("it", name, "12345", 5, XATTR_CREATE));
    STEP(lsetxattr("it", name, "12345", 5, XATTR_CREATE));
    STEP(lsetxattr("it", name, "6789", 4, XATTR_REPLACE));
    STEP(lsetxattr("it", name, "6789", 4, 8));
    STEP(lgetxattr("it", name, back, sizeof back));
    STEP(lgetxattr("it", name, back, 0));
    STEP(lgetxattr("it", name, back, 3));
    STEP(llistxattr("it", list, sizeof list));
    STEP(llistxattr("it", list, 0));
    STEP(llistxattr("it", list, 2));
    STEP(lsetxattr("it", name, "", 0, 0));
    STEP(lgetxattr("it", name, back, sizeof back));
    STEP(lsetxattr("it", *prefix, "x", 1, 0));
    STEP(lgetxattr("it", *prefix, back, 1));
    STEP(lsetxattr("it", "", "x", 1, 0));
    STEP(lsetxattr("it", "nothing.like", "x", 1, 0));
    STEP(lgetxattr("it", "nothing.like", back, 1));
    STEP(lsetxattr("it", "noprefix", "x", 1, 0));
    STEP(lremovexattr("it", name));
    STEP(lremovexattr("it", name));
    snprintf(name, sizeof name, "%s", *prefix);
    repeat(name + strlen(name), 'n', 255 - strlen(name));
    STEP(lsetxattr("it", name, "x", 1, 0));
    STEP(lremovexattr("it", name));
    strcat(name, "n");
    STEP(lsetxattr("it", name, "x", 1, 0));
    STEP(lgetxattr("it", name, back, 1));
    STEP(lremovexattr("it", name));
    snprintf(name, sizeof name, "%sone", *prefix);
    STEP(lsetxattr("it", name, value, 65537, 0));
    STEP(lsetxattr("it", name, value, 2000, 0));
    STEP(lgetxattr("it", name, back, 70000));
    become(&kRoot);
    EXPECT(remove("it") == 0);
  }
  about("xattrs user");
  write_file("it", "x");
  // tmpfs knows user attributes from Linux 6.6 on only: these don't go to the output.
  if (setxattr("it", "user.a", "1", 1, 0) == 0) {
    EXPECT_ERRNO(setxattr("it", "user.a", "1", 1, XATTR_CREATE), EEXIST);
    EXPECT_ERRNO(setxattr("it", "user.b", "1", 1, XATTR_REPLACE), ENODATA);
    EXPECT(getxattr("it", "user.a", back, 1) == 1 && listxattr("it", list, sizeof list) == 7);
    EXPECT(strcmp(list, "user.a") == 0);
    EXPECT_ERRNO(getxattr("it", "user.none", back, 1), ENODATA);
    EXPECT_ERRNO(listxattr("it", list, 6), ERANGE);
    EXPECT(symlink("it", "link") == 0 && mkfifo("fifo", 0666) == 0);
    EXPECT_ERRNO(lsetxattr("link", "user.a", "1", 1, 0), EPERM);
    EXPECT_ERRNO(setxattr("fifo", "user.a", "1", 1, 0), EPERM);
    EXPECT_ERRNO(lgetxattr("fifo", "user.a", back, 1), ENODATA);
    EXPECT(chmod("it", 0644) == 0);
    become(&kStranger);
    EXPECT_ERRNO(setxattr("it", "user.a", "1", 1, 0), EACCES);
    EXPECT(getxattr("it", "user.a", back, 1) == 1);
    become(&kRoot);
    EXPECT(mkdir("sticky", 01777) == 0 && chmod("sticky", 01777) == 0);
    become(&kStranger);
    EXPECT_ERRNO(setxattr("sticky", "user.a", "1", 1, 0), EPERM);
    become(&kRoot);
    const int fd = open("it", O_RDONLY);
    EXPECT(fsetxattr(fd, "user.c", "22", 2, 0) == 0 && fgetxattr(fd, "user.c", back, 2) == 2);
    EXPECT(unlink("it") == 0 && fsetxattr(fd, "user.d", "22", 2, 0) == 0 &&
           fgetxattr(fd, "user.d", back, 2) == 2);
    EXPECT(flistxattr(fd, list, sizeof list) == 21 && fremovexattr(fd, "user.a") == 0);
    close(fd);
  }
  wipe();
}

static void test_sync(void) {
  about("sync");
  EACH(char* const, type, kTypes) {
    about("sync %s", *type);
    write_file("target", "x");
    EXPECT(make(*type, "it", 0644) == 0);
    const int fd = OPEN(open("it", O_RDONLY | O_NONBLOCK));
    if (fd >= 0 && strcmp(*type, "block") != 0) {
      STEP(fsync(fd));
      STEP(fdatasync(fd));
      STEP(syncfs(fd));
    }
    if (fd >= 0) close(fd);
    wipe();
  }
}

int main(int count, char** words) {
  static const struct {
    const char* name;
    void (*run)(void);
    bool by_default;
  } tests[] = {
      {"chmod", test_chmod, true},
      {"chown", test_chown, true},
      {"names", test_names, true},
      {"links", test_links, true},
      {"sticky", test_sticky, true},
      {"creation", test_creation, true},
      {"open", test_open, true},
      {"permissions", test_permissions, true},
      {"rename", test_rename, true},
      {"symlinks", test_symlinks, true},
      {"truncate", test_truncate, true},
      {"times", test_times, true},
      {"utimens", test_utimens, true},
      {"statx", test_statx, true},
      {"set-id", test_set_id, true},
      {"unlinked", test_unlinked, true},
      {"io", test_io, true},
      {"allocate", test_allocate, true},
      {"copies", test_copies, true},
      {"folders", test_folders, true},
      {"maps", test_maps, true},
      {"limits", test_limits, true},
      {"handles", test_handles, true},
      {"attributes", test_attributes, true},
      {"notifications", test_notifications, true},
      {"places", test_places, true},
      {"programs", test_programs, true},
      {"channels", test_channels, true},
      {"locks", test_locks, true},
      {"sync", test_sync, true},
      {"xattrs", test_xattrs, false},
      {"immutable", test_immutable, false},
  };
  if (count >= 2 && strcmp(words[1], "--who") == 0) return (int)(geteuid() % 100);
  if (count >= 2 && strcmp(words[1], "--script") == 0) return 77;
  if (count >= 2 && strcmp(words[1], "--wait") == 0) {
    char byte;
    return read(0, &byte, 1) == 1 ? 0 : 1;
  }
  EXPECT(count >= 2 && chdir(words[1]) == 0);
  thorough = count >= 3 && strcmp(words[2], "thorough") == 0;
  const int first = thorough ? 3 : 2;
  umask(0);
  prctl(PR_SET_DUMPABLE, 1);
  for (size_t i = 0; i < COUNT(tests); ++i) {
    bool wanted = count == first && tests[i].by_default;
    for (int w = first; w < count; ++w) wanted |= strcmp(words[w], tests[i].name) == 0;
    if (!wanted) continue;
    // A name that the tests within don't use.
    EXPECT(mkdir("work", 0777) == 0 && chdir("work") == 0);
    tests[i].run();
    EXPECT(chdir("..") == 0 && rmdir("work") == 0);
  }
  return 0;
}
