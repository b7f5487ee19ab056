// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Open files: OPEN, CREATE, TMPFILE, READ, WRITE, FLUSH, RELEASE, FSYNC,
// FALLOCATE, LSEEK, COPY_FILE_RANGE and its 64-bit form, IOCTL, SYNCFS.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

class Files : public DeviceTest {
 protected:
  // Open by daemon, with node and handle at hand.
  struct Open {
    std::uint64_t node = 0;
    std::uint64_t handle = 0;
  };
  Open open(std::string_view path, std::uint32_t flags) {
    const std::uint64_t file = node(path);
    return {.node = file, .handle = GET(fuse().open(file, flags)).fh};
  }
};
INSTANTIATE_DEVICE_TEST(Files);

// ---- OPEN, RELEASE ----

TEST_P(Files, OpenGivesAHandleToReadBy) {
  tree().write("file", "content");
  const Open file = open("file", O_RDONLY);
  EXPECT_EQ(GET(fuse().read(file.node, file.handle, 0, 4096)), "content");
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, AnOpenFileStaysWhatItIsWhateverTheHostDoesToItsName) {
  tree().write("file", "content");
  ::usleep(150'000);  // old enough that the daemon needs no descriptor to know it by
  const Open file = open("file", O_RDONLY);
  ASSERT_EQ(::rename(tree().path("file").c_str(), tree().path("elsewhere").c_str()), 0);
  tree().write("file", "another");
  EXPECT_DONE(fuse().chmod(file.node, 0600));
  EXPECT_EQ(tree().stat("elsewhere").st_mode & 07777, 0600U);
  const Open again{.node = file.node, .handle = GET(fuse().open(file.node, O_RDONLY)).fh};
  EXPECT_EQ(GET(fuse().read(again.node, again.handle, 0, 4096)), "content");
  EXPECT_DONE(fuse().release(again.node, again.handle));
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, OpenWithTruncEmptiesTheFile) {
  tree().write("file", "content");
  const Open file = open("file", O_RDWR | O_TRUNC);
  EXPECT_EQ(tree().stat("file").st_size, 0);
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, OpenOfSpecialFilesIsRefused) {
  tree().fifo("fifo");
  tree().symlink("link", "/etc/passwd");
  ASSERT_EQ(mknod(tree().path("null").c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
  const UniqueFd listener{::socket(AF_UNIX, SOCK_STREAM, 0)};
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  const std::string path = tree().path("socket");
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(bind(listener.number(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  for (const char* name : {"fifo", "link", "null", "socket"}) {
    EXPECT_FALSE(fuse().open(node(name), O_RDONLY)) << name;
    EXPECT_FALSE(fuse().open(node(name), O_RDWR | O_NONBLOCK)) << name;
  }
}

TEST_P(Files, OpenRefusesWhatItShould) {
  tree().mkdir("dir");
  EXPECT_FALSE(fuse().open(kNoNode, O_RDONLY));
  EXPECT_FALSE(fuse().open(node("dir"), O_RDWR));
}

TEST_P(Files, OpenNeverCreates) {
  tree().write("file", "x");
  const auto opened = fuse().open(node("file"), O_RDWR | O_CREAT | O_EXCL);
  if (opened) {
    EXPECT_DONE(fuse().release(node("file"), opened->fh));
  }
  EXPECT_EQ(tree().list(), (std::vector<std::string>{"file"}));
}

TEST_P(Files, ReleaseEndsAHandle) {
  tree().write("file", "x");
  const Open file = open("file", O_RDONLY);
  EXPECT_DONE(fuse().release(file.node, file.handle));
  EXPECT_REFUSED(EBADF, fuse().read(file.node, file.handle, 0, 1));
}

TEST_P(Files, AHandleThatIsNoneIsRefusedEverywhere) {
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  for (const std::uint64_t bad : {kNoHandle, std::uint64_t{0}, ~std::uint64_t{0}}) {
    if (foreign() && bad == 0) continue;  // small numbers are good guesses there
    EXPECT_REFUSED(EBADF, fuse().read(file, bad, 0, 1)) << bad;
    EXPECT_REFUSED(EBADF, fuse().write(file, bad, 0, "x")) << bad;
    EXPECT_REFUSED(EBADF, fuse().flush(file, bad)) << bad;
    EXPECT_REFUSED(EBADF, fuse().fallocate(file, bad, 0, 1)) << bad;
    EXPECT_REFUSED(EBADF, fuse().lseek(file, bad, 0, SEEK_DATA)) << bad;
    EXPECT_REFUSED(EBADF, fuse().copy_file_range(file, bad, 0, file, bad, 0, 1)) << bad;
    if (!foreign()) {
      EXPECT_REFUSED(EBADF, fuse().fsync(file, bad)) << bad;
      EXPECT_FALSE(fuse().release(file, bad)) << bad;
      EXPECT_FALSE(fuse().ioctl(file, bad, FS_IOC_GETFLAGS, "", 8)) << bad;
      EXPECT_FALSE(fuse().readdir(file, bad, 0)) << bad;
    }
  }
}

TEST_P(Files, ADirectoryHandleIsNoFileHandle) {
  if (foreign()) GTEST_SKIP();
  tree().write("file", "x");
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  EXPECT_FALSE(fuse().read(kRoot, handle, 0, 100));
  EXPECT_FALSE(fuse().write(kRoot, handle, 0, "x"));
  const Open file = open("file", O_RDWR);
  EXPECT_FALSE(fuse().readdir(file.node, file.handle, 0));
  EXPECT_DONE(fuse().releasedir(kRoot, handle));
}

// ---- CREATE ----

TEST_P(Files, CreateMakesAndOpensAFileOfTheCaller) {
  tree().chmod("", 0777);
  fuse().as(1000, 1001);
  const CreatedFile created = GET(fuse().create(kRoot, "file", O_RDWR, 0640));
  EXPECT_EQ(created.entry.attr.mode, S_IFREG | 0640U);
  EXPECT_EQ(created.entry.attr.uid, 1000U);
  EXPECT_EQ(created.entry.attr.gid, 1001U);
  EXPECT_EQ(GET(fuse().write(created.entry.nodeid, created.open.fh, 0, "data")), 4U);
  EXPECT_DONE(fuse().release(created.entry.nodeid, created.open.fh));
  EXPECT_EQ(tree().read("file"), "data");
}

TEST_P(Files, CreateOpensWhatIsThereUnlessItMustNot) {
  tree().write("file", "content");
  EXPECT_REFUSED(EEXIST, fuse().create(kRoot, "file", O_RDWR | O_EXCL, 0600));
  const CreatedFile opened = GET(fuse().create(kRoot, "file", O_RDWR, 0600));
  EXPECT_EQ(GET(fuse().read(opened.entry.nodeid, opened.open.fh, 0, 100)), "content");
  EXPECT_DONE(fuse().release(opened.entry.nodeid, opened.open.fh));
}

TEST_P(Files, CreateNeverOpensWhatIsNoFile) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon aborts on a name the host made";
  tree().fifo("fifo");
  tree().symlink("link", tree().path("victim"));
  tree().symlink("outside", "/tmp/virtiofsd-test-must-not-appear");
  tree().mkdir("dir");
  for (const char* name : {"fifo", "link", "outside", "dir"}) {
    EXPECT_FALSE(fuse().create(kRoot, name, O_RDWR, 0600)) << name;
    EXPECT_FALSE(fuse().create(kRoot, name, O_RDONLY | O_NONBLOCK, 0600)) << name;
  }
  EXPECT_FALSE(tree().exists("victim"));
  EXPECT_NE(::access("/tmp/virtiofsd-test-must-not-appear", F_OK), 0);
}

TEST_P(Files, CreateWithTruncEmptiesWhatIsThere) {
  if (foreign()) GTEST_SKIP();
  tree().write("file", "content");
  const CreatedFile opened = GET(fuse().create(kRoot, "file", O_RDWR | O_TRUNC, 0600));
  EXPECT_EQ(tree().stat("file").st_size, 0);
  EXPECT_DONE(fuse().release(opened.entry.nodeid, opened.open.fh));
}

TEST_P(Files, CreateRefusesBadNamesAndNodes) {
  EXPECT_REFUSED(EINVAL, fuse().create(kRoot, "a/b", O_RDWR, 0600));
  EXPECT_FALSE(fuse().create(kRoot, "..", O_RDWR, 0600));
  EXPECT_FALSE(fuse().create(kRoot, ".", O_RDWR, 0600));
  EXPECT_FALSE(fuse().create(kNoNode, "x", O_RDWR, 0600));
  EXPECT_REFUSED(ENAMETOOLONG, fuse().create(kRoot, std::string(256, 'x'), O_RDWR, 0600));
}

TEST_P(Files, CreateReadOnlyModeStillWritesThroughItsHandle) {
  const CreatedFile created = GET(fuse().create(kRoot, "file", O_RDWR, 0400));
  EXPECT_EQ(GET(fuse().write(created.entry.nodeid, created.open.fh, 0, "x")), 1U);
  EXPECT_DONE(fuse().release(created.entry.nodeid, created.open.fh));
}

// ---- TMPFILE ----

TEST_P(Files, TmpfileHasNoNameUntilItIsLinked) {
  if (foreign()) GTEST_SKIP() << "no peer has TMPFILE";
  const CreatedFile made = GET(fuse().tmpfile(kRoot, O_RDWR, 0600));
  EXPECT_EQ(made.entry.attr.nlink, 0U);
  EXPECT_EQ(tree().list().size(), 0U);
  EXPECT_EQ(GET(fuse().write(made.entry.nodeid, made.open.fh, 0, "kept")), 4U);
  EXPECT_DONE(fuse().link(made.entry.nodeid, kRoot, "named"));
  EXPECT_DONE(fuse().release(made.entry.nodeid, made.open.fh));
  EXPECT_EQ(tree().read("named"), "kept");
}

TEST_P(Files, TmpfileInAFileIsRefused) {
  if (foreign()) GTEST_SKIP() << "no peer has TMPFILE";
  tree().write("file", "");
  EXPECT_FALSE(fuse().tmpfile(node("file"), O_RDWR, 0600));
  EXPECT_FALSE(fuse().tmpfile(kNoNode, O_RDWR, 0600));
}

// ---- READ ----

TEST_P(Files, ReadStopsAtTheEnd) {
  tree().write("file", "0123456789");
  const Open file = open("file", O_RDONLY);
  EXPECT_EQ(GET(fuse().read(file.node, file.handle, 7, 100)), "789");
  EXPECT_EQ(GET(fuse().read(file.node, file.handle, 10, 100)), "");
  EXPECT_EQ(GET(fuse().read(file.node, file.handle, 1ULL << 40, 100)), "");
  EXPECT_EQ(GET(fuse().read(file.node, file.handle, 0, 0)), "");
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, ReadBringsAMegabyteAtOnce) {
  std::string content(1 << 20, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 >> 5);
  tree().write("file", content);
  const Open file = open("file", O_RDONLY);
  EXPECT_EQ(GET(fuse().read(file.node, file.handle, 0, 1 << 20)), content);
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, ReadRefusesWhatItShould) {
  tree().write("file", "x");
  const Open file = open("file", O_WRONLY);
  EXPECT_REFUSED(EBADF, fuse().read(file.node, file.handle, 0, 1));
  EXPECT_DONE(fuse().release(file.node, file.handle));
  const Open readable = open("file", O_RDONLY);
  EXPECT_REFUSED(EINVAL, fuse().read(readable.node, readable.handle, 1ULL << 63, 1));
  EXPECT_DONE(fuse().release(readable.node, readable.handle));
}

// ---- WRITE ----

TEST_P(Files, WriteWritesWhereItIsTold) {
  tree().write("file", "0123456789");
  const Open file = open("file", O_RDWR);
  EXPECT_EQ(GET(fuse().write(file.node, file.handle, 3, "abc")), 3U);
  EXPECT_EQ(tree().read("file"), "012abc6789");
  EXPECT_EQ(GET(fuse().write(file.node, file.handle, 12, "z")), 1U);
  EXPECT_EQ(tree().read("file"), std::string("012abc6789\0\0z", 13));
  EXPECT_EQ(GET(fuse().write(file.node, file.handle, 0, "")), 0U);
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, WriteTakesAMegabyteAtOnce) {
  if (foreign() && GetParam().options.size < 256) GTEST_SKIP();
  std::string content(1 << 20, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 13 >> 4);
  tree().write("file", "");
  const Open file = open("file", O_RDWR);
  EXPECT_EQ(GET(fuse().write(file.node, file.handle, 0, content)), content.size());
  EXPECT_DONE(fuse().release(file.node, file.handle));
  EXPECT_EQ(tree().read("file"), content);
}

TEST_P(Files, WriteToAnAppendFileAppends) {
  if (foreign()) GTEST_SKIP() << "peers differ";
  tree().write("file", "one");
  const Open file = open("file", O_WRONLY | O_APPEND);
  EXPECT_EQ(GET(fuse().write(file.node, file.handle, 0, "two", 0, O_WRONLY | O_APPEND)), 3U);
  EXPECT_EQ(tree().read("file"), "onetwo");
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, WriteFromThePageCacheKeepsItsPlaceInAnAppendFile) {
  if (foreign()) GTEST_SKIP() << "peers differ";
  tree().write("file", "0123456789");
  const Open file = open("file", O_RDWR | O_APPEND);
  EXPECT_EQ(GET(fuse().write(file.node, file.handle, 2, "ab", FUSE_WRITE_CACHE, O_RDWR | O_APPEND)),
            2U);
  EXPECT_EQ(tree().read("file"), "01ab456789");
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, WriteTakesSetIdBitsAwayWhenAsked) {
  tree().write("file", "", 0644);
  tree().chmod("file", 06755);
  const Open file = open("file", O_RDWR);
  fuse().as(1000, 1000);
  EXPECT_EQ(GET(fuse().write(file.node, file.handle, 0, "x", FUSE_WRITE_KILL_SUIDGID, O_RDWR)), 1U);
  EXPECT_EQ(tree().stat("file").st_mode & 07777U, 0755U);
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, WriteRefusesWhatItShould) {
  tree().write("file", "x");
  const Open file = open("file", O_RDONLY);
  EXPECT_REFUSED(EBADF, fuse().write(file.node, file.handle, 0, "y"));
  EXPECT_DONE(fuse().release(file.node, file.handle));
  const Open writable = open("file", O_WRONLY);
  EXPECT_REFUSED(EINVAL, fuse().write(writable.node, writable.handle, 1ULL << 63, "y"));
  EXPECT_DONE(fuse().release(writable.node, writable.handle));
  EXPECT_EQ(tree().read("file"), "x");
}

TEST_P(Files, WriteThatClaimsMoreThanItBringsIsRefused) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon ends";
  tree().write("file", "x");
  const Open file = open("file", O_RDWR);
  fuse_write_in in{};
  in.fh = file.handle;
  in.size = 1'000'000;
  const std::string four = "data";
  const Reply reply =
      fuse().call(FUSE_WRITE, file.node, {bytes_of(in), std::as_bytes(std::span{four})},
                  sizeof(fuse_write_out));
  EXPECT_EQ(reply.error, EINVAL);
  EXPECT_EQ(tree().read("file"), "x");
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

// ---- FLUSH, FSYNC, FSYNCDIR is with directories, SYNCFS ----

TEST_P(Files, FlushAndFsyncAreDone) {
  tree().write("file", "x");
  const Open file = open("file", O_RDWR);
  EXPECT_DONE(fuse().flush(file.node, file.handle));
  EXPECT_DONE(fuse().fsync(file.node, file.handle, false));
  EXPECT_DONE(fuse().fsync(file.node, file.handle, true));
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, SyncfsIsDone) {
  const auto done = fuse().syncfs(kRoot);
  EXPECT_DONE(done);
  if (!foreign()) {
    EXPECT_FALSE(fuse().syncfs(kNoNode));
  }
}

// ---- FALLOCATE ----

TEST_P(Files, FallocateMakesRoomAndHoles) {
  tree().write("file", std::string(16384, 'x'));
  const Open file = open("file", O_RDWR);
  EXPECT_DONE(fuse().fallocate(file.node, file.handle, 0, 32768));
  EXPECT_EQ(tree().stat("file").st_size, 32768);
  EXPECT_DONE(fuse().fallocate(file.node, file.handle, 4096, 4096,
                               FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE));
  EXPECT_EQ(tree().read("file").substr(4096, 4096), std::string(4096, '\0'));
  EXPECT_EQ(tree().read("file").substr(0, 4096), std::string(4096, 'x'));
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, FallocateRefusesWhatItShould) {
  tree().write("file", "x");
  const Open file = open("file", O_RDWR);
  EXPECT_REFUSED(EINVAL, fuse().fallocate(file.node, file.handle, 0, 0));
  EXPECT_REFUSED(EOPNOTSUPP, fuse().fallocate(file.node, file.handle, 0, 1, 0x4000));
  EXPECT_REFUSED(EINVAL, fuse().fallocate(file.node, file.handle, 1ULL << 63, 1));
  EXPECT_DONE(fuse().release(file.node, file.handle));
  const Open readonly = open("file", O_RDONLY);
  EXPECT_REFUSED(EBADF, fuse().fallocate(readonly.node, readonly.handle, 0, 1));
  EXPECT_DONE(fuse().release(readonly.node, readonly.handle));
}

// ---- LSEEK ----

TEST_P(Files, LseekFindsDataAndHoles) {
  tree().write("file", "");
  ASSERT_EQ(truncate(tree().path("file").c_str(), 1 << 20), 0);
  const Open file = open("file", O_RDWR);
  EXPECT_EQ(GET(fuse().write(file.node, file.handle, 65536, "data")), 4U);
  EXPECT_EQ(GET(fuse().lseek(file.node, file.handle, 0, SEEK_DATA)), 65536U);
  EXPECT_EQ(GET(fuse().lseek(file.node, file.handle, 0, SEEK_HOLE)), 0U);
  EXPECT_REFUSED(ENXIO, fuse().lseek(file.node, file.handle, 1 << 21, SEEK_DATA));
  EXPECT_REFUSED(EINVAL, fuse().lseek(file.node, file.handle, 0, 99));
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

// ---- COPY_FILE_RANGE, COPY_FILE_RANGE_64 ----

TEST_P(Files, CopyFileRangeCopiesOnTheHost) {
  tree().write("from", "0123456789");
  tree().write("to", "");
  const Open from = open("from", O_RDONLY);
  const Open to = open("to", O_RDWR);
  EXPECT_EQ(GET(fuse().copy_file_range(from.node, from.handle, 2, to.node, to.handle, 1, 5)), 5U);
  EXPECT_EQ(tree().read("to"), std::string("\0", 1) + "23456");
  EXPECT_EQ(GET(fuse().copy_file_range(from.node, from.handle, 100, to.node, to.handle, 0, 5)), 0U);
  EXPECT_REFUSED(EINVAL,
                 fuse().copy_file_range(from.node, from.handle, 0, to.node, to.handle, 0, 5, 1));
  EXPECT_REFUSED(EBADF,
                 fuse().copy_file_range(to.node, to.handle, 0, from.node, from.handle, 0, 5));
  EXPECT_DONE(fuse().release(from.node, from.handle));
  EXPECT_DONE(fuse().release(to.node, to.handle));
}

TEST_P(Files, CopyFileRange64AnswersInSixtyFourBits) {
  if (foreign()) GTEST_SKIP() << "no peer has COPY_FILE_RANGE_64";
  tree().write("from", "0123456789");
  tree().write("to", "");
  const Open from = open("from", O_RDONLY);
  const Open to = open("to", O_RDWR);
  EXPECT_EQ(GET(fuse().copy_file_range_64(from.node, from.handle, 0, to.node, to.handle, 0, 10)),
            10U);
  EXPECT_EQ(tree().read("to"), "0123456789");
  EXPECT_REFUSED(EBADF,
                 fuse().copy_file_range_64(from.node, kNoHandle, 0, to.node, to.handle, 0, 10));
  EXPECT_DONE(fuse().release(from.node, from.handle));
  EXPECT_DONE(fuse().release(to.node, to.handle));
}

// ---- IOCTL ----

TEST_P(Files, IoctlReadsAndSetsInodeFlags) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon has no ioctls";
  tree().write("file", "x");
  const Open file = open("file", O_RDONLY);
  unsigned flags = 0;
  {
    const UniqueFd host{::open(tree().path("file").c_str(), O_RDONLY | O_CLOEXEC)};
    if (::ioctl(host.number(), FS_IOC_GETFLAGS, &flags) != 0)
      GTEST_SKIP() << "this file system has no inode flags";
  }
  const auto got = fuse().ioctl(file.node, file.handle, FS_IOC_GETFLAGS, "", 4);
  ASSERT_TRUE(got) << got.error().text();
  ASSERT_EQ(got->size(), 4U);
  unsigned through = 0;
  std::memcpy(&through, got->data(), 4);
  EXPECT_EQ(through, flags);
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, IoctlOfAnythingElseIsNotForThisFile) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon has no ioctls";
  tree().write("file", "x");
  const Open file = open("file", O_RDONLY);
  EXPECT_REFUSED(ENOTTY, fuse().ioctl(file.node, file.handle, FIONREAD, "", 4));
  EXPECT_REFUSED(ENOTTY, fuse().ioctl(file.node, file.handle, 0xdeadbeef, "abcd", 4));
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

TEST_P(Files, IoctlThatClaimsMoreThanItBringsIsRefused) {
  if (foreign()) GTEST_SKIP();
  tree().write("file", "x");
  const Open file = open("file", O_RDONLY);
  fuse_ioctl_in in{};
  in.fh = file.handle;
  in.cmd = FS_IOC_SETFLAGS;
  in.in_size = 4096;
  EXPECT_EQ(fuse().call(FUSE_IOCTL, file.node, {bytes_of(in)}, 64).error, EINVAL);
  EXPECT_DONE(fuse().release(file.node, file.handle));
}

}  // namespace
}  // namespace virtiofsd::guest
