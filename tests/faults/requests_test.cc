// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Requests that lie, are cut short, come at the wrong time or name what was
// never given: each has an answer and leaves the next request unharmed.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/faults/fixture.h"

namespace virtiofsd::guest {
namespace {

constexpr std::uint64_t kMost = ~std::uint64_t{0};
constexpr std::uint64_t kMostOffset = INT64_MAX;
constexpr std::uint32_t kLastOpcode = kOpCopyFileRange64;

bool has_no_reply(std::uint32_t opcode) {
  return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
}

class RequestFault : public FaultFixture {
 protected:
  void SetUp() override {
    FrontEndOptions options;
    options.ring = {.size = 128, .indirect = true};
    attack({"-o", "xattr", "-o", "flock"}, options);
  }
  // A regular file with an open handle.
  struct File {
    std::uint64_t node = 0;
    std::uint64_t handle = 0;
  };
  File open_file(const std::string& name, std::uint32_t flags = O_RDWR) {
    if (!tree().exists(name)) tree().write(name, "content");
    File file;
    file.node = node(name);
    file.handle = GET(fuse().open(file.node, flags)).fh;
    return file;
  }
};

// ---- bytes ----

TEST_F(RequestFault, AHeaderCutAtEveryByteIsReturnedUnanswered) {
  const auto whole = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
  for (std::size_t size = 1; size < sizeof(fuse_in_header); ++size) {
    EXPECT_EQ(send(std::span{whole}.first(size), 4096).length, 0U) << size;
  }
}

TEST_F(RequestFault, EveryOperationCutAtEveryByte) {
  new_session_ = true;
  const std::vector<std::byte> zeros(96);
  for (std::uint32_t opcode = 0; opcode <= kLastOpcode + 2; ++opcode) {
    for (std::size_t arguments = 0; arguments <= zeros.size(); ++arguments) {
      const std::vector<std::byte> some(zeros.begin(),
                                        zeros.begin() + static_cast<std::ptrdiff_t>(arguments));
      const auto bytes = request(opcode, kRoot, some);
      const std::string what =
          "opcode " + std::to_string(opcode) + " with " + std::to_string(arguments) + " bytes";
      const Answer answer = send(bytes, 4096);
      expect_sane(answer, 4096, what);
      EXPECT_EQ(answer.length == 0, has_no_reply(opcode)) << what;
      if (opcode == FUSE_DESTROY) {
        ASSERT_TRUE(fuse().init());
      }
    }
  }
}

TEST_F(RequestFault, ARequestSplitAtEveryByteIsUnderstood) {
  const std::string name(40, 'n');
  tree().write(name, "x");
  const auto bytes = request(FUSE_LOOKUP, kRoot, name);
  constexpr std::size_t kReply = sizeof(fuse_out_header) + sizeof(fuse_entry_out);
  for (std::size_t cut = 1; cut < bytes.size(); ++cut) {
    const Answer answer = send(bytes, 4096, cut);
    EXPECT_EQ(answer.error(), 0) << cut;
    EXPECT_EQ(answer.length, kReply) << cut;
  }
  for (std::size_t cut = 1; cut < kReply; ++cut) {
    const Answer answer = send(bytes, kReply, 0, cut);
    EXPECT_EQ(answer.error(), 0) << cut;
    EXPECT_EQ(answer.length, kReply) << cut;
  }
}

TEST_F(RequestFault, AWriteSplitAtEveryByteIsWritten) {
  const File file = open_file("written");
  const std::string data = "some data that is told apart";
  fuse_write_in in{};
  in.fh = file.handle;
  in.size = static_cast<std::uint32_t>(data.size());
  std::vector<std::byte> payload(data.size());
  std::memcpy(payload.data(), data.data(), data.size());
  const auto bytes = request(FUSE_WRITE, file.node, in, payload);
  for (std::size_t cut = 1; cut < bytes.size(); ++cut) {
    tree().write("written", "");
    EXPECT_EQ(send(bytes, 24, cut).error(), 0) << cut;
    EXPECT_EQ(tree().read("written"), data) << cut;
  }
}

TEST_F(RequestFault, LengthsThatLieAreEinval) {
  auto bytes = request(FUSE_LOOKUP, kRoot, "probe");
  for (const std::uint32_t length : {0U, 1U, 39U, 40U + 7U, 4096U, 0x8000'0000U, 0xffff'ffffU}) {
    set_length(bytes, length);
    EXPECT_EQ(send(bytes, 4096).error(), EINVAL) << length;
  }
  // Shorter than what lies there, it is what counts: the name has no end.
  for (std::uint32_t length = 40; length < bytes.size(); ++length) {
    set_length(bytes, length);
    EXPECT_EQ(send(bytes, 4096).error(), EINVAL) << length;
  }
}

TEST_F(RequestFault, AWriteThatPromisesMoreThanItBringsIsEinval) {
  const File file = open_file("short");
  for (const std::uint32_t size : {1U, 4096U, 0x7fff'ffffU, 0xffff'ffffU}) {
    fuse_write_in in{};
    in.fh = file.handle;
    in.size = size;
    EXPECT_EQ(send(request(FUSE_WRITE, file.node, in), 4096).error(), EINVAL) << size;
  }
  EXPECT_EQ(tree().read("short"), "content");
}

TEST_F(RequestFault, AWriteLongerThanAgreedIsWritten) {
  const File file = open_file("long");
  std::vector<std::byte> payload(200'000, std::byte{7});
  fuse_write_in in{};
  in.fh = file.handle;
  in.size = static_cast<std::uint32_t>(payload.size());
  EXPECT_EQ(send(request(FUSE_WRITE, file.node, in, payload), 24).error(), 0);
  EXPECT_EQ(tree().stat("long").st_size, 200'000);
}

TEST_F(RequestFault, UnknownOpcodesAreEnosys) {
  for (const std::uint32_t opcode : {0U, 7U, 19U, 54U, 63U, 64U, 100U, 4096U, 0x7fff'ffffU, ~0U}) {
    const std::vector<std::byte> zeros(64);
    EXPECT_EQ(send(request(opcode, kRoot, zeros), 4096).error(), ENOSYS) << opcode;
  }
}

TEST_F(RequestFault, UniqueZeroIsReturnedUnanswered) {
  unique_ = ~std::uint64_t{0};
  const auto bytes = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
  EXPECT_EQ(send(bytes, 4096).length, 0U);
}

TEST_F(RequestFault, TheSameUniqueTwiceIsAnsweredTwice) {
  for (int i = 0; i < 2; ++i) {
    unique_ = 4711;
    EXPECT_EQ(send(request(FUSE_GETATTR, kRoot, fuse_getattr_in{}), 4096).head.unique, 4712U);
  }
}

// ---- sessions ----

class BeforeInit : public FaultFixture {
 protected:
  void SetUp() override { attack({"-o", "xattr"}, {}, false); }
};

TEST_F(BeforeInit, EveryOperationIsEioOrUnanswered) {
  new_session_ = true;
  const std::vector<std::byte> zeros(200);
  for (std::uint32_t opcode = 1; opcode <= kLastOpcode; ++opcode) {
    if (opcode == FUSE_INIT) continue;
    const Answer answer = send(request(opcode, kRoot, zeros), 4096);
    EXPECT_EQ(answer.length, has_no_reply(opcode) ? 0U : sizeof(fuse_out_header)) << opcode;
    if (!has_no_reply(opcode)) {
      EXPECT_EQ(answer.error(), EIO) << opcode;
    }
  }
}

TEST_F(BeforeInit, InitOfEveryVersionAndLengthHasAnAnswer) {
  new_session_ = true;
  for (const std::uint32_t major : {0U, 6U, 7U, 8U, ~0U}) {
    for (const std::uint32_t minor : {0U, 12U, 26U, 27U, 31U, 45U, 1000U, ~0U}) {
      fuse_init_in in{};
      in.major = major;
      in.minor = minor;
      in.flags = ~0U;
      in.flags2 = ~0U;
      in.max_readahead = ~0U;
      for (std::size_t size = 0; size <= sizeof in; size += 4) {
        const auto raw = bytes_of(in).first(size);
        const std::vector<std::byte> some(raw.begin(), raw.end());
        expect_sane(send(request(FUSE_INIT, 0, some), 4096), 4096,
                    std::to_string(major) + "." + std::to_string(minor));
      }
    }
  }
}

TEST_F(RequestFault, ASecondInitForgetsTheFirstLife) {
  const File file = open_file("old");
  const std::uint64_t directory = GET(fuse().opendir(kRoot)).fh;
  ASSERT_TRUE(fuse().init());
  EXPECT_REFUSED(ESTALE, fuse().getattr(file.node));
  EXPECT_REFUSED(EBADF, fuse().read(file.node, file.handle, 0, 10));
  EXPECT_REFUSED(EBADF, fuse().readdir(kRoot, directory, 0));
  EXPECT_REFUSED(EBADF, fuse().release(file.node, file.handle));
  fuse().forget(file.node, 3);
}

TEST_F(RequestFault, NothingIsServedAfterDestroyUntilInit) {
  new_session_ = true;
  const File file = open_file("old");
  EXPECT_DONE(fuse().destroy());
  EXPECT_REFUSED(EIO, fuse().getattr(kRoot));
  EXPECT_REFUSED(EIO, fuse().read(file.node, file.handle, 0, 10));
  fuse().forget(file.node);
  EXPECT_REFUSED(EIO, fuse().destroy());
}

TEST_F(RequestFault, SessionsThatComeAndGoUnderLoad) {
  new_session_ = true;
  std::atomic<bool> stop{false};
  std::atomic<int> odd{0};
  std::thread load([&] {
    while (!stop) {
      const auto probe = clients_[2]->lookup(kRoot, "probe");
      if (!probe) {
        if (probe.error() != Errno{EIO} && probe.error() != Errno{ESTALE}) ++odd;
        continue;
      }
      const auto open = clients_[2]->open(probe->nodeid, O_RDONLY);
      if (!open) continue;
      const auto read = clients_[2]->read(probe->nodeid, open->fh, 0, 100);
      if (read && *read != "still here") ++odd;
      (void)clients_[2]->release(probe->nodeid, open->fh);
    }
  });
  for (int i = 0; i < 300; ++i) {
    EXPECT_TRUE(fuse().init());
    if (i % 3 == 0) {
      EXPECT_DONE(fuse().destroy());
    }
  }
  stop = true;
  load.join();
  EXPECT_EQ(odd, 0);
}

// ---- nodes and handles ----

TEST_F(RequestFault, NodesNeverGivenAreRefusedByEveryOperation) {
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  const std::uint64_t next_generation = file + (1ULL << 32);
  const std::vector<std::byte> zeros(200);
  const std::uint64_t all[] = {
      0, 2, 3, kNoNode, next_generation, file & 0xffff'ffffULL, kMost, 0xffff'ffff, 0x1'0000'0001};
  for (const std::uint64_t bad : all) {
    for (std::uint32_t opcode = 1; opcode <= kLastOpcode; ++opcode) {
      if (opcode == FUSE_INIT || opcode == FUSE_DESTROY) continue;
      const Answer answer = send(request(opcode, bad, zeros), 4096);
      if (has_no_reply(opcode)) continue;
      EXPECT_NE(answer.error(), 0) << "opcode " << opcode << ", node " << std::hex << bad;
    }
    EXPECT_REFUSED(ESTALE, fuse().getattr(bad));
    EXPECT_REFUSED(ESTALE, fuse().lookup(bad, "x"));
    EXPECT_REFUSED(ESTALE, fuse().link(bad, kRoot, "linked"));
    EXPECT_REFUSED(ESTALE, fuse().rename(kRoot, "file", bad, "there"));
  }
  EXPECT_TRUE(tree().exists("file"));
}

TEST_F(RequestFault, AForgottenNodeIsStaleEvenWhenItsSlotIsUsedAgain) {
  for (int i = 0; i < 100; ++i) {
    const std::string name = "f" + std::to_string(i);
    tree().write(name, name);
    const std::uint64_t gone = node(name);
    fuse().forget(gone);
    // The urgent queue is another thread: when it has answered, the FORGET before it is done.
    EXPECT_DONE(clients_[0]->getattr(kRoot));
    EXPECT_REFUSED(ESTALE, fuse().getattr(gone));
    const std::uint64_t other = node("probe");
    EXPECT_NE(other, gone);
    EXPECT_REFUSED(ESTALE, fuse().open(gone, O_RDONLY));
    fuse().forget(other);
  }
}

TEST_F(RequestFault, ForgettingTooOftenIsForgetting) {
  const std::uint64_t file = node("probe");
  fuse().forget(file, kMost);
  fuse().forget(file, kMost);
  fuse().forget(kRoot, kMost);
  fuse().forget(0, kMost);
  fuse().forget(kNoNode, kMost);
  EXPECT_DONE(clients_[0]->getattr(kRoot));
  EXPECT_REFUSED(ESTALE, fuse().getattr(file));
  for (const std::uint32_t count : {0U, 1U, 3U, 1000U, ~0U}) {
    fuse_batch_forget_in in{};
    in.count = count;
    const fuse_forget_one one{.nodeid = node("probe"), .nlookup = kMost};
    EXPECT_EQ(send(request(FUSE_BATCH_FORGET, 0, in, one, one), 0).length, 0U);
  }
}

TEST_F(RequestFault, HandlesOfAnotherKindNodeOrLifeAreEbadf) {
  const File file = open_file("file");
  const File other = open_file("other");
  const std::uint64_t directory = GET(fuse().opendir(kRoot)).fh;
  const File closed = open_file("closed");
  EXPECT_DONE(fuse().release(closed.node, closed.handle));
  const auto refuse = [&](std::uint64_t node, std::uint64_t handle) {
    EXPECT_REFUSED(EBADF, fuse().read(node, handle, 0, 10));
    EXPECT_REFUSED(EBADF, fuse().write(node, handle, 0, "x"));
    EXPECT_REFUSED(EBADF, fuse().fsync(node, handle));
    EXPECT_REFUSED(EBADF, fuse().flush(node, handle));
    EXPECT_REFUSED(EBADF, fuse().fallocate(node, handle, 0, 10));
    EXPECT_REFUSED(EBADF, fuse().lseek(node, handle, 0, SEEK_DATA));
    EXPECT_REFUSED(EBADF, fuse().copy_file_range(node, handle, 0, node, handle, 0, 1));
    EXPECT_REFUSED(EBADF, fuse().ioctl(node, handle, FS_IOC_GETFLAGS, "", 8));
    EXPECT_REFUSED(EBADF, fuse().release(node, handle));
    EXPECT_REFUSED(
        EBADF, fuse().setlk(node, handle, 1, {.start = 0, .end = 1, .type = F_RDLCK, .pid = 1}));
    EXPECT_REFUSED(node == kRoot ? EISDIR : EBADF, fuse().truncate(node, 3, handle));
  };
  refuse(file.node, other.handle);
  refuse(kRoot, file.handle);
  refuse(closed.node, closed.handle);
  refuse(file.node, kNoHandle);
  refuse(file.node, 0);
  refuse(file.node, kMost);
  EXPECT_REFUSED(EBADF, fuse().read(kRoot, directory, 0, 10));
  EXPECT_REFUSED(EBADF, fuse().readdir(file.node, file.handle, 0));
  EXPECT_REFUSED(EBADF, fuse().readdirplus(kRoot, file.handle, 0));
  EXPECT_REFUSED(EBADF, fuse().releasedir(file.node, directory));
  EXPECT_REFUSED(EBADF, fuse().releasedir(file.node, file.handle));
  EXPECT_EQ(GET(fuse().read(file.node, file.handle, 0, 10)), "content");
}

TEST_F(RequestFault, ACopyIntoAReadOnlyHandleIsEbadf) {
  const File from = open_file("from");
  const File to = open_file("to", O_RDONLY);
  EXPECT_REFUSED(EBADF,
                 fuse().copy_file_range(from.node, from.handle, 0, to.node, to.handle, 0, 7));
  EXPECT_REFUSED(
      EBADF, fuse().copy_file_range_64(from.node, from.handle, 0, to.node, to.handle, 0, kMost));
  EXPECT_REFUSED(EBADF, fuse().write(to.node, to.handle, 0, "x"));
  EXPECT_REFUSED(EBADF, fuse().fallocate(to.node, to.handle, 0, 10));
}

// A number that is closed on one queue must not be another file on the next.
TEST_F(RequestFault, ReleasesThatRaceWithReadsNeverShowAnotherFile) {
  const std::string mine(4096, 'm');
  tree().write("mine", mine);
  tree().write("foreign", std::string(4096, 'f'));
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) {
      const auto entry = clients_[2]->lookup(kRoot, "foreign");
      if (!entry) continue;
      const auto open = clients_[2]->open(entry->nodeid, O_RDONLY);
      if (open) (void)clients_[2]->release(entry->nodeid, open->fh);
    }
  });
  const std::uint64_t file = node("mine");
  EXPECT_DONE(fuse().getattr(kRoot));
  for (int round = 0; round < 500; ++round) {
    const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
    fuse_read_in in{};
    in.fh = handle;
    in.size = 4096;
    fuse_release_in gone{};
    gone.fh = handle;
    std::vector<std::uint32_t> slots;
    for (int i = 0; i < 6; ++i) {
      const auto slot = i == 3 ? fuse().begin(FUSE_RELEASE, file, {bytes_of(gone)}, 0)
                               : fuse().begin(FUSE_READ, file, {bytes_of(in)}, 4096);
      ASSERT_TRUE(slot);
      slots.push_back(*slot);
    }
    for (const std::uint32_t slot : slots) {
      const Reply reply = fuse().finish(slot);
      if (reply.error != 0) {
        EXPECT_EQ(reply.error, EBADF);
      } else if (!reply.bytes.empty()) {
        EXPECT_EQ(std::memcmp(reply.bytes.data(), mine.data(), reply.bytes.size()), 0);
      }
    }
  }
  stop = true;
  other.join();
}

// ---- sizes and offsets ----

TEST_F(RequestFault, SizesAndOffsetsAtEveryLimit) {
  const File file = open_file("limits");
  const std::uint64_t offsets[] = {0,           1,
                                   6,           7,
                                   8,           0x7fff'ffff,
                                   0xffff'ffff, kMostOffset - 1,
                                   kMostOffset, kMostOffset + 1,
                                   kMost - 1,   kMost};
  const std::uint32_t sizes[] = {0, 1, 4096, 0x10'0000, 0x10'0001, 0x7fff'f000, 0x7fff'ffff, ~0U};
  for (const std::uint64_t offset : offsets) {
    for (const std::uint32_t size : sizes) {
      fuse_read_in in{};
      in.fh = file.handle;
      in.offset = offset;
      in.size = size;
      expect_sane(send(request(FUSE_READ, file.node, in), 65536), 65536, "READ");
      fuse_fallocate_in room{};
      room.fh = file.handle;
      room.offset = offset;
      room.length = size > 0x10'0001 ? kMost : size;
      for (const std::uint32_t mode : {3U, 0x40U, ~0U}) {
        room.mode = mode;
        expect_sane(send(request(FUSE_FALLOCATE, file.node, room), 16), 16, "FALLOCATE");
      }
      fuse_lk_in lock{};
      lock.fh = file.handle;
      lock.owner = 1;
      lock.lk = {.start = offset, .end = size, .type = F_UNLCK, .pid = 1};
      expect_sane(send(request(FUSE_SETLK, file.node, lock), 16), 16, "SETLK");
      lock.lk.type = size;
      expect_sane(send(request(FUSE_GETLK, file.node, lock), 64), 64, "GETLK");
    }
    fuse_write_in in{};
    in.fh = file.handle;
    in.offset = offset;
    in.size = 0;
    expect_sane(send(request(FUSE_WRITE, file.node, in), 24), 24, "WRITE");
    for (const std::uint32_t whence : {0U, 1U, 2U, 3U, 4U, 5U, ~0U}) {
      fuse_lseek_in seek{};
      seek.fh = file.handle;
      seek.offset = offset;
      seek.whence = whence;
      expect_sane(send(request(FUSE_LSEEK, file.node, seek), 64), 64, "LSEEK");
    }
    fuse_copy_file_range_in copy{};
    copy.fh_in = file.handle;
    copy.fh_out = file.handle;
    copy.nodeid_out = file.node;
    copy.off_in = offset;
    copy.off_out = kMost - offset;
    copy.len = kMost;
    expect_sane(send(request(FUSE_COPY_FILE_RANGE, file.node, copy), 64), 64, "COPY");
    expect_sane(send(request(kOpCopyFileRange64, file.node, copy), 64), 64, "COPY64");
    if (offset > kMostOffset) {
      EXPECT_REFUSED(EINVAL, fuse().truncate(file.node, offset));
      EXPECT_REFUSED(EINVAL, fuse().read(file.node, file.handle, offset, 10));
      EXPECT_REFUSED(EINVAL, fuse().write(file.node, file.handle, offset, "x"));
    }
  }
}

TEST_F(RequestFault, AReadOfFourGigabytesGetsWhatThereIs) {
  const File file = open_file("small");
  fuse_read_in in{};
  in.fh = file.handle;
  in.size = ~0U;
  EXPECT_EQ(send(request(FUSE_READ, file.node, in), 65536).length, 16U + 7U);
}

TEST_F(RequestFault, DirectoriesReadInEverySize) {
  for (int i = 0; i < 20; ++i) tree().write("entry" + std::to_string(i), "");
  const std::uint64_t handle = GET(fuse().opendir(kRoot)).fh;
  for (const std::uint32_t opcode : {FUSE_READDIR, FUSE_READDIRPLUS}) {
    for (const std::uint32_t size : {0U, 1U, 24U, 31U, 32U, 151U, 152U, 4096U, 0x10'0000U, ~0U}) {
      for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{1}, kMostOffset,
                                         std::uint64_t{0x8000'0000'0000'0000}, kMost}) {
        fuse_read_in in{};
        in.fh = handle;
        in.offset = offset;
        in.size = size;
        for (const std::size_t room : {std::size_t{16}, std::size_t{17}, kOutBytes}) {
          expect_sane(send(request(opcode, kRoot, in), room), room, "a listing");
        }
      }
    }
  }
}

TEST_F(RequestFault, AttributeSizesFromZeroToFourGigabytes) {
  const std::uint64_t file = node("probe");
  EXPECT_DONE(fuse().setxattr(file, "user.a", "value"));
  for (const std::uint32_t size : {0U, 1U, 4U, 5U, 65536U, 65537U, 0x7fff'ffffU, ~0U}) {
    fuse_getxattr_in in{};
    in.size = size;
    for (const std::size_t room : {std::size_t{16}, std::size_t{17}, std::size_t{24}, kOutBytes}) {
      expect_sane(send(request(FUSE_GETXATTR, file, in, "user.a"), room), room, "GETXATTR");
      expect_sane(send(request(FUSE_LISTXATTR, file, in), room), room, "LISTXATTR");
    }
    fuse_setxattr_in set{};
    set.size = size;
    for (const std::uint32_t flags : {0U, 1U, 2U, 3U, ~0U}) {
      set.flags = flags;
      const Answer answer = send(request(FUSE_SETXATTR, file, set, "user.b"), 16);
      expect_sane(answer, 16, "SETXATTR");
      if (size != 0) {
        EXPECT_NE(answer.error(), 0);
      }
    }
  }
}

TEST_F(RequestFault, IoctlSizesAndCommandsThatMakeNoSense) {
  const File file = open_file("file");
  for (const std::uint32_t command :
       {0U, static_cast<std::uint32_t>(FS_IOC_SETFLAGS),
        static_cast<std::uint32_t>(FS_IOC_FSSETXATTR), static_cast<std::uint32_t>(FIFREEZE),
        static_cast<std::uint32_t>(FICLONE), ~0U}) {
    for (const std::uint32_t size : {0U, 1U, 3U, 65536U, 65537U, ~0U}) {
      fuse_ioctl_in in{};
      in.fh = file.handle;
      in.cmd = command;
      in.in_size = size;
      in.out_size = size;
      const Answer answer = send(request(FUSE_IOCTL, file.node, in), 4096);
      expect_sane(answer, 4096, "IOCTL");
      EXPECT_NE(answer.error(), 0) << command << " of " << size;
      EXPECT_NE(answer.error(), ENOSYS) << "switches ioctls off for the whole mount";
    }
  }
}

// ---- names ----

TEST_F(RequestFault, NamesOfEveryBadKindAreRefusedEverywhere) {
  TempTree outside;
  outside.write("marker", "untouched");
  const std::string way_out = "../" + outside.root().substr(outside.root().rfind('/') + 1);
  tree().mkdir("dir");
  const std::uint64_t directory = node("dir");
  const std::string bad[] = {"",
                             ".",
                             "..",
                             "/",
                             "//",
                             "a/b",
                             "dir/",
                             "/etc/passwd",
                             "../probe",
                             way_out + "/marker",
                             outside.path("marker"),
                             "dir/../probe",
                             std::string(256, 'n'),
                             std::string(4000, '/')};
  for (const std::string& name : bad) {
    if (name != "." && name != "..") {
      EXPECT_FALSE(fuse().lookup(directory, name)) << name;
    }
    EXPECT_FALSE(fuse().create(directory, name, O_RDWR, 0600)) << name;
    EXPECT_FALSE(fuse().mkdir(directory, name, 0700)) << name;
    EXPECT_FALSE(fuse().mknod(directory, name, S_IFREG | 0600)) << name;
    EXPECT_FALSE(fuse().symlink(directory, name, "target")) << name;
    EXPECT_FALSE(fuse().link(node("probe"), directory, name)) << name;
    EXPECT_FALSE(fuse().unlink(directory, name)) << name;
    EXPECT_FALSE(fuse().rmdir(directory, name)) << name;
    EXPECT_FALSE(fuse().rename(directory, name, kRoot, "x")) << name;
    EXPECT_FALSE(fuse().rename(kRoot, "probe", directory, name)) << name;
    EXPECT_FALSE(fuse().rename2(kRoot, "probe", directory, name, RENAME_EXCHANGE)) << name;
  }
  EXPECT_TRUE(tree().list("dir").empty());
  EXPECT_EQ(tree().read("probe"), "still here");
  EXPECT_EQ(outside.read("marker"), "untouched");
}

TEST_F(RequestFault, DotsAreNodesInsideTheShareOnly) {
  EXPECT_EQ(GET(fuse().lookup(kRoot, "..")).nodeid, kRoot);
  EXPECT_EQ(GET(fuse().lookup(kRoot, ".")).nodeid, kRoot);
  tree().mkdir("a");
  tree().mkdir("a/b");
  const std::uint64_t inner = node("a/b");
  EXPECT_EQ(GET(fuse().lookup(inner, "..")).nodeid, node("a"));
  EXPECT_REFUSED(ENOTDIR, fuse().lookup(node("probe"), ".."));
}

TEST_F(RequestFault, NamesWithoutAnEndAreEinval) {
  const std::vector<std::byte> text(40, std::byte{'n'});
  EXPECT_EQ(send(request(FUSE_LOOKUP, kRoot, text), 4096).error(), EINVAL);
  EXPECT_EQ(send(request(FUSE_UNLINK, kRoot, text), 4096).error(), EINVAL);
  EXPECT_EQ(send(request(FUSE_SYMLINK, kRoot, "name", text), 4096).error(), EINVAL);
  EXPECT_EQ(send(request(FUSE_MKDIR, kRoot, fuse_mkdir_in{}, text), 4096).error(), EINVAL);
  EXPECT_EQ(
      send(request(FUSE_RENAME, kRoot, fuse_rename_in{.newdir = kRoot}, "a", text), 4096).error(),
      EINVAL);
  EXPECT_EQ(send(request(FUSE_GETXATTR, kRoot, fuse_getxattr_in{}, text), 4096).error(), EINVAL);
  EXPECT_EQ(send(request(FUSE_REMOVEXATTR, kRoot, text), 4096).error(), EINVAL);
}

TEST_F(RequestFault, AttributeNamesThatAreNotTheGuests) {
  const std::uint64_t file = node("probe");
  EXPECT_REFUSED(EOPNOTSUPP, fuse().setxattr(file, "system.posix_acl_access", "x"));
  EXPECT_FALSE(fuse().setxattr(file, "trusted.overlay.opaque", "y"));
  EXPECT_FALSE(fuse().setxattr(file, "nonsense", "y"));
  EXPECT_FALSE(fuse().setxattr(file, "", "y"));
  EXPECT_FALSE(fuse().setxattr(file, "user." + std::string(251, 'n'), "y"));
}

// ---- extensions ----

class ExtensionFault : public FaultFixture {
 protected:
  void SetUp() override { attack({"-o", "xattr", "-o", "security_label"}); }
};

TEST_F(ExtensionFault, BlocksCutAtEveryByteAndWithLyingSizes) {
  struct Label {
    fuse_ext_header head{};
    fuse_secctx context{};
    char name[16] = "security.test";
    char value[8] = "label";
  } label;
  struct Groups {
    fuse_ext_header head{};
    std::uint32_t count = 1;
    std::uint32_t group = 5;
  } groups;
  label.head = {.size = sizeof label, .type = 1};
  label.context.size = 8;
  groups.head = {.size = sizeof groups, .type = kExtensionGroups};
  std::vector<std::byte> whole;
  const auto add = [&whole](std::span<const std::byte> bytes) {
    whole.insert(whole.end(), bytes.begin(), bytes.end());
  };
  add(bytes_of(label));
  add(bytes_of(groups));
  ASSERT_EQ(whole.size() % 8, 0U);

  fuse_mkdir_in in{};
  in.mode = 0755;
  int number = 0;
  const auto try_with = [&](const std::vector<std::byte>& extension, std::size_t words) {
    const std::string name = "d" + std::to_string(number++);
    auto bytes = request(FUSE_MKDIR, kRoot, in, name, extension);
    const auto told = static_cast<std::uint16_t>(words);
    std::memcpy(bytes.data() + offsetof(fuse_in_header, total_extlen), &told, sizeof told);
    const Answer answer = send(bytes, 4096);
    expect_sane(answer, 4096, "MKDIR with " + std::to_string(extension.size()));
    if (answer.error() != 0) {
      EXPECT_FALSE(tree().exists(name)) << "refused and made all the same";
    }
  };
  for (std::size_t cut = 0; cut <= whole.size(); ++cut) {
    const std::vector<std::byte> some(whole.begin(),
                                      whole.begin() + static_cast<std::ptrdiff_t>(cut));
    for (const std::size_t words : {cut / 8, cut / 8 + 1, std::size_t{0}, std::size_t{0xffff}})
      try_with(some, words);
  }
  // Every word of it once with every value that could be a limit.
  for (std::size_t at = 0; at + 4 <= whole.size(); at += 4) {
    for (const std::uint32_t value : {0U, 1U, 7U, 8U, 31U, 32U, 33U, 0x7fff'ffffU, ~0U}) {
      std::vector<std::byte> twisted = whole;
      std::memcpy(twisted.data() + at, &value, sizeof value);
      try_with(twisted, twisted.size() / 8);
    }
  }
}

// ---- callers ----

TEST_F(RequestFault, NoCallersIdsStayForTheNextRequest) {
  tree().mkdir("open");
  tree().chmod("open", 0777);
  const std::uint64_t there = node("open");
  struct Id {
    std::uint32_t uid, gid;
  };
  const Id callers[] = {{0, 0}, {1000, 1000}, {0, 5}, {~0U, 7}, {1001, ~0U}, {~0U, ~0U}, {1000, 0}};
  std::vector<std::thread> threads;
  for (std::size_t queue = 1; queue <= 2; ++queue) {
    threads.emplace_back([&, queue] {
      FuseClient& fuse = *clients_[queue];
      for (int round = 0; round < 300; ++round) {
        const Id id = callers[(static_cast<std::size_t>(round) * queue) % std::size(callers)];
        const std::string name = "q" + std::to_string(queue) + "-" + std::to_string(round);
        fuse.as(id.uid, id.gid);
        const auto made = fuse.mkdir(there, name, 0755);
        fuse.as(0, 0);
        if (id.uid == ~0U || id.gid == ~0U) {
          EXPECT_FALSE(made);
          continue;
        }
        ASSERT_TRUE(made) << made.error().text();
        EXPECT_EQ(made->attr.uid, id.uid);
        EXPECT_EQ(made->attr.gid, id.gid);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(RequestFault, OwnersOfAllOnesChangeNothing) {
  tree().write("owned", "x");
  tree().chown("owned", 12, 34);
  const std::uint64_t file = node("owned");
  EXPECT_DONE(fuse().chown(file, ~0U, ~0U));
  EXPECT_EQ(tree().stat("owned").st_uid, 12U);
  EXPECT_EQ(tree().stat("owned").st_gid, 34U);
}

// CVE-2022-0358: the daemon's groups must not leak into what a guest's user makes.
TEST_F(RequestFault, NoSetGroupIdBitForAGroupTheCallerIsNotIn) {
  tree().mkdir("shared");
  tree().chown("shared", 0, 4);
  tree().chmod("shared", 02777);
  const std::uint64_t there = node("shared");
  fuse().as(1000, 1000);
  const auto made = fuse().create(there, "tool", O_RDWR, 02755);
  fuse().as(0, 0);
  ASSERT_TRUE(made);
  EXPECT_EQ(tree().stat("shared/tool").st_gid, 4U);
  EXPECT_EQ(tree().stat("shared/tool").st_mode & S_ISGID, 0U);
}

// ---- what is never opened ----

TEST_F(RequestFault, PipesDevicesAndSocketsAreNeverOpened) {
  tree().fifo("pipe");
  ASSERT_EQ(::mknod(tree().path("null").c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
  ASSERT_EQ(::mknod(tree().path("socket").c_str(), S_IFSOCK | 0666, 0), 0);
  std::atomic<bool> opened{false};
  std::thread writer([&] {
    const UniqueFd end{::open(tree().path("pipe").c_str(), O_WRONLY | O_CLOEXEC)};
    opened = true;
  });
  for (const char* name : {"pipe", "null", "socket"}) {
    const std::uint64_t special = node(name);
    for (const int flags : {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_TRUNC, O_RDONLY | O_NONBLOCK,
                            O_RDWR | O_CREAT, O_PATH, ~0}) {
      EXPECT_FALSE(fuse().open(special, static_cast<std::uint32_t>(flags))) << name;
      EXPECT_FALSE(fuse().create(kRoot, name, static_cast<std::uint32_t>(flags), 0666)) << name;
    }
    EXPECT_REFUSED(ENOTDIR, fuse().opendir(special));
    EXPECT_FALSE(fuse().truncate(special, 0)) << name;
    EXPECT_FALSE(fuse().syncfs(special)) << name;
    EXPECT_FALSE(fuse().setxattr(special, "user.a", "b")) << name;
    EXPECT_DONE(fuse().chmod(special, 0600));
    EXPECT_DONE(fuse().access(special, R_OK));
  }
  EXPECT_FALSE(opened) << "somebody opened the pipe";
  const UniqueFd reader{::open(tree().path("pipe").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
  writer.join();
}

TEST_F(RequestFault, AttributesOfASymlinkAreItsOwn) {
  TempTree outside;
  outside.write("marker", "untouched");
  outside.chmod("marker", 0644);
  const auto before = outside.stat("marker");
  tree().symlink("way-out", outside.path("marker"));
  const std::uint64_t link = node("way-out");
  EXPECT_FALSE(fuse().open(link, O_RDWR));
  EXPECT_FALSE(fuse().create(kRoot, "way-out", O_RDWR | O_TRUNC, 0600));
  EXPECT_FALSE(fuse().truncate(link, 0));
  EXPECT_FALSE(fuse().chmod(link, 0777));
  EXPECT_DONE(fuse().chown(link, 77, 77));
  fuse_setattr_in times{};
  times.valid = FATTR_ATIME | FATTR_MTIME;
  times.atime = 1;
  times.mtime = 1;
  EXPECT_DONE(fuse().setattr(link, times));
  EXPECT_FALSE(fuse().lookup(link, "x"));
  EXPECT_FALSE(fuse().setxattr(link, "user.a", "b"));
  EXPECT_DONE(fuse().link(link, kRoot, "another"));
  EXPECT_EQ(outside.read("marker"), "untouched");
  const auto after = outside.stat("marker");
  EXPECT_EQ(after.st_uid, before.st_uid);
  EXPECT_EQ(after.st_mode, before.st_mode);
  EXPECT_EQ(after.st_mtim.tv_sec, before.st_mtim.tv_sec);
  EXPECT_EQ(after.st_nlink, before.st_nlink);
}

TEST_F(RequestFault, DirectoriesAreNotLinkedTwice) {
  tree().mkdir("dir");
  EXPECT_REFUSED(EPERM, fuse().link(node("dir"), kRoot, "again"));
  EXPECT_REFUSED(EPERM, fuse().link(kRoot, node("dir"), "root"));
}

}  // namespace
}  // namespace virtiofsd::guest
