// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Locks between two processes of a guest, as they behave on a local file
// system: `locks FOLDER` tests record locks, open-file-description locks and
// flock, asking and waiting; `locks FOLDER no-signals` leaves out what needs the
// FUSE request INTERRUPT, which Linux's virtio-fs driver never sends, so that a
// wait for a lock on the host ends with the lock only; `locks hold FILE` takes a write lock on the
// whole file, says "held" on stdout and keeps it until it is killed.
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"

enum { kShown = 10000, kNotShown = 250 };

// One way to lock: record locks belong to a process, the others to an open file.
struct Kind {
  const char* name;
  int (*lock)(int fd, short type, off_t start, off_t length, int wait);
};

static int record_lock(int fd, short type, off_t start, off_t length, int wait) {
  struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
  return fcntl(fd, wait ? F_SETLKW : F_SETLK, &range);
}

static int description_lock(int fd, short type, off_t start, off_t length, int wait) {
  struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
  return fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &range);
}

static int whole_file_lock(int fd, short type, off_t start, off_t length, int wait) {
  (void)start;
  (void)length;
  const int operation = type == F_UNLCK ? LOCK_UN : type == F_RDLCK ? LOCK_SH : LOCK_EX;
  return flock(fd, operation | (wait ? 0 : LOCK_NB));
}

static const struct Kind kKinds[] = {
    {"fcntl", record_lock}, {"ofd", description_lock}, {"flock", whole_file_lock}};

static int open_file(const char* path, int flags) {
  int fd;
  EXPECT((fd = open(path, flags | O_CREAT | O_CLOEXEC, 0644)) >= 0);
  return fd;
}

// A second process: `asks` runs in it with its own open file, and what it
// returns becomes visible on `result`.
struct Other {
  pid_t pid;
  int result;
};

static struct Other other_process(const char* path, int inherited,
                                  int (*asks)(const struct Kind*, int), const struct Kind* kind) {
  int ends[2];
  EXPECT(pipe(ends) == 0);
  struct Other other = {fork(), ends[0]};
  EXPECT(other.pid >= 0);
  if (other.pid == 0) {
    // Else the open file, and with it its locks, would live on in here.
    close(inherited);
    const int fd = open_file(path, O_RDWR);
    const char answer = (char)asks(kind, fd);
    _exit(write(ends[1], &answer, 1) == 1 ? 0 : 1);
  }
  close(ends[1]);
  return other;
}

static int has_answered(const struct Other* other, int milliseconds) {
  struct pollfd wait = {.fd = other->result, .events = POLLIN};
  return poll(&wait, 1, milliseconds) == 1;
}

static int answer_of(struct Other other) {
  char answer;
  int status;
  EXPECT(has_answered(&other, kShown));
  EXPECT(read(other.result, &answer, 1) == 1);
  close(other.result);
  EXPECT(waitpid(other.pid, &status, 0) == other.pid);
  return answer;
}

static int take_write(const struct Kind* kind, int fd) {
  return kind->lock(fd, F_WRLCK, 0, 10, 0) == 0 ? 0 : errno;
}
static int take_read(const struct Kind* kind, int fd) {
  return kind->lock(fd, F_RDLCK, 0, 10, 0) == 0 ? 0 : errno;
}
static int take_write_beside(const struct Kind* kind, int fd) {
  return kind->lock(fd, F_WRLCK, 10, 10, 0) == 0 ? 0 : errno;
}
static int wait_to_write(const struct Kind* kind, int fd) {
  return kind->lock(fd, F_WRLCK, 0, 10, 1) == 0 ? 0 : errno;
}

static void on_alarm(int signal_number) {
  (void)signal_number;
}

static int wait_until_interrupted(const struct Kind* kind, int fd) {
  struct sigaction action = {.sa_handler = on_alarm};  // no SA_RESTART
  sigaction(SIGALRM, &action, NULL);
  alarm(1);
  return kind->lock(fd, F_WRLCK, 0, 10, 1) == 0 ? 0 : errno;
}

static void test_kind(const char* path, const struct Kind* kind, int signals) {
  const int records = kind->lock != whole_file_lock;
  int fd = open_file(path, O_RDWR);

  EXPECT(kind->lock(fd, F_WRLCK, 0, 10, 0) == 0);
  EXPECT(answer_of(other_process(path, fd, take_write, kind)) == EAGAIN);
  EXPECT(answer_of(other_process(path, fd, take_read, kind)) == EAGAIN);
  if (records) EXPECT(answer_of(other_process(path, fd, take_write_beside, kind)) == 0);

  EXPECT(kind->lock(fd, F_RDLCK, 0, 10, 0) == 0);
  EXPECT(answer_of(other_process(path, fd, take_read, kind)) == 0);
  EXPECT(answer_of(other_process(path, fd, take_write, kind)) == EAGAIN);

  // A waiter waits, others are served meanwhile, and unlocking lets it go on.
  EXPECT(kind->lock(fd, F_WRLCK, 0, 10, 0) == 0);
  struct Other waiter = other_process(path, fd, wait_to_write, kind);
  EXPECT(!has_answered(&waiter, kNotShown));
  EXPECT(access(path, R_OK) == 0 && write(fd, "x", 1) == 1);
  EXPECT(kind->lock(fd, F_UNLCK, 0, 10, 0) == 0);
  EXPECT(answer_of(waiter) == 0);

  // So does closing the file.
  EXPECT(kind->lock(fd, F_WRLCK, 0, 10, 0) == 0);
  waiter = other_process(path, fd, wait_to_write, kind);
  EXPECT(!has_answered(&waiter, kNotShown));
  EXPECT(close(fd) == 0);
  EXPECT(answer_of(waiter) == 0);

  // The end of a process is the end of its locks.
  fd = open_file(path, O_RDWR);
  struct Other holder = other_process(path, fd, take_write, kind);
  EXPECT(answer_of(holder) == 0);
  EXPECT(kind->lock(fd, F_WRLCK, 0, 10, 0) == 0);

  if (signals) {
    // A signal ends the wait; the lock is then still where it was.
    EXPECT(answer_of(other_process(path, fd, wait_until_interrupted, kind)) == EINTR);
    EXPECT(answer_of(other_process(path, fd, take_write, kind)) == EAGAIN);

    // Who is killed while it waits gets nothing.
    waiter = other_process(path, fd, wait_to_write, kind);
    EXPECT(!has_answered(&waiter, kNotShown));
    EXPECT(kill(waiter.pid, SIGKILL) == 0);
    EXPECT(waitpid(waiter.pid, NULL, 0) == waiter.pid);
    close(waiter.result);
    EXPECT(kind->lock(fd, F_UNLCK, 0, 10, 0) == 0);
    EXPECT(answer_of(other_process(path, fd, take_write, kind)) == 0);
  }
  EXPECT(close(fd) == 0);

  printf("%s: as expected\n", kind->name);
}

// Who holds it is told for record locks.
static void test_getlk(const char* path) {
  const int fd = open_file(path, O_RDWR);
  EXPECT(record_lock(fd, F_WRLCK, 5, 10, 0) == 0);
  const pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    struct flock range = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0};
    const int mine = open_file(path, O_RDWR);
    EXPECT(fcntl(mine, F_GETLK, &range) == 0);
    EXPECT(range.l_type == F_WRLCK && range.l_start == 5 && range.l_len == 10);
    range = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 15, .l_len = 0};
    EXPECT(fcntl(mine, F_GETLK, &range) == 0);
    EXPECT(range.l_type == F_UNLCK);
    _exit(0);
  }
  int status;
  EXPECT(waitpid(child, &status, 0) == child && status == 0);
  close(fd);
  printf("getlk: as expected\n");
}

// Two processes that wait for each other: one of them is told, the other gets its lock.
static void test_deadlock(const char* path) {
  const int fd = open_file(path, O_RDWR);
  int ready[2];
  int status;
  char byte;
  EXPECT(pipe(ready) == 0);
  EXPECT(record_lock(fd, F_WRLCK, 0, 10, 0) == 0);
  const pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    EXPECT(record_lock(fd, F_WRLCK, 10, 10, 0) == 0);
    EXPECT(write(ready[1], "x", 1) == 1);
    _exit(record_lock(fd, F_WRLCK, 0, 10, 1) == 0 ? 0 : errno);
  }
  EXPECT(read(ready[0], &byte, 1) == 1);
  const int mine = record_lock(fd, F_WRLCK, 10, 10, 1) == 0 ? 0 : errno;
  EXPECT(record_lock(fd, F_UNLCK, 0, 0, 0) == 0);
  EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status));
  const int its = WEXITSTATUS(status);
  EXPECT((mine == EDEADLK && its == 0) || (mine == 0 && its == EDEADLK));
  close(fd);
  printf("deadlock: as expected\n");
}

// flock doesn't care how the file was opened; record locks do.
static void test_read_only(const char* path) {
  close(open_file(path, O_RDWR));
  int fd;
  EXPECT((fd = open(path, O_RDONLY)) >= 0);
  EXPECT(flock(fd, LOCK_EX | LOCK_NB) == 0);
  EXPECT(answer_of(other_process(path, fd, take_write, &kKinds[2])) == EAGAIN);
  EXPECT(flock(fd, LOCK_UN) == 0);
  EXPECT(record_lock(fd, F_RDLCK, 0, 0, 0) == 0);
  EXPECT_ERRNO(record_lock(fd, F_WRLCK, 0, 0, 0), EBADF);
  close(fd);
  printf("read-only: as expected\n");
}

int main(int count, char** words) {
  EXPECT(count >= 2);
  if (count == 3 && strcmp(words[1], "hold") == 0) {
    EXPECT(record_lock(open_file(words[2], O_RDWR), F_WRLCK, 0, 0, 0) == 0);
    printf("held\n");
    fflush(stdout);
    for (;;) pause();
  }
  const int signals = count < 3 || strcmp(words[2], "no-signals") != 0;
  char path[4096];
  for (size_t i = 0; i < sizeof kKinds / sizeof kKinds[0]; ++i) {
    snprintf(path, sizeof path, "%s/%s", words[1], kKinds[i].name);
    test_kind(path, &kKinds[i], signals);
  }
  snprintf(path, sizeof path, "%s/getlk", words[1]);
  test_getlk(path);
  snprintf(path, sizeof path, "%s/deadlock", words[1]);
  test_deadlock(path);
  snprintf(path, sizeof path, "%s/read-only", words[1]);
  test_read_only(path);
  return 0;
}
