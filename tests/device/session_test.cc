// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// INIT, DESTROY, what is no request at all, and operations we don't have.
#include <fcntl.h>
#include <sys/stat.h>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

class Session : public DeviceTest {};
INSTANTIATE_DEVICE_TEST(Session);

class FreshSession : public DeviceFixture {
 protected:
  void SetUp() override { start({}, {}, false); }
};

// ---- INIT ----

TEST_P(Session, InitSettlesSizesAndFlags) {
  const fuse_init_out session = fuse().session();
  EXPECT_EQ(session.major, 7U);
  EXPECT_GE(session.minor, 31U);
  EXPECT_GE(session.max_write, 128U * 1024);
  EXPECT_EQ(session.time_gran, 1U);
  EXPECT_TRUE(fuse().has(FUSE_MAX_PAGES));
  EXPECT_TRUE(fuse().has(FUSE_ASYNC_READ));
  EXPECT_TRUE(fuse().has(FUSE_ATOMIC_O_TRUNC));
  EXPECT_TRUE(fuse().has(FUSE_DO_READDIRPLUS));
  if (foreign()) return;
  EXPECT_EQ(session.max_write, 1U << 20);
  EXPECT_GT(session.max_background, 12U);
  EXPECT_TRUE(fuse().has(FUSE_INIT_EXT)) << "flags2 counts only with INIT_EXT echoed";
  EXPECT_TRUE(fuse().has(kInitCreateSuppGroup));
}

TEST_P(Session, InitAgainDropsTheOldLife) {
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  ASSERT_TRUE(fuse().init());
  if (!foreign()) {
    EXPECT_FALSE(fuse().getattr(file));
    EXPECT_FALSE(fuse().read(file, handle, 0, 1));
  }
  EXPECT_DONE(fuse().getattr(kRoot));
  EXPECT_DONE(fuse().lookup(kRoot, "file"));
}

TEST_P(Session, InitOfANewerMajorIsAnsweredWithOurs) {
  if (foreign()) GTEST_SKIP();
  fuse_init_in in{};
  in.major = 8;
  const Reply reply = fuse().call(FUSE_INIT, 0, {bytes_of(in)}, sizeof(fuse_init_out));
  ASSERT_EQ(reply.error, 0);
  EXPECT_EQ(reply.as<fuse_init_out>()->major, 7U);
}

TEST_P(Session, InitOfAnAncientVersionIsRefused) {
  EXPECT_REFUSED(EPROTO, fuse().init(FuseClient::kLinuxFlags, 20));
  // Foreign daemons end the session with it.
  if (!foreign()) {
    ASSERT_TRUE(fuse().init());
    EXPECT_DONE(fuse().getattr(kRoot));
  }
}

TEST_F(FreshSession, InitOfAShortStructIsUnderstood) {
  fuse_init_in in{};
  in.major = 7;
  in.minor = 35;
  in.max_readahead = 65536;
  in.flags = FUSE_MAX_PAGES | FUSE_ASYNC_READ;
  const Reply reply = fuse().call(FUSE_INIT, 0, {bytes_of(in).first(16)}, sizeof(fuse_init_out));
  ASSERT_EQ(reply.error, 0);
  const fuse_init_out out = *reply.as<fuse_init_out>();
  EXPECT_EQ(out.flags & ~in.flags & ~std::uint32_t{FUSE_BIG_WRITES}, 0U)
      << "takes what was not offered";
  EXPECT_EQ(out.flags2, 0U);
}

TEST_F(FreshSession, InitCutShortIsRefused) {
  if (foreign()) GTEST_SKIP();
  const fuse_init_in in{};
  EXPECT_EQ(fuse().call(FUSE_INIT, 0, {bytes_of(in).first(8)}, sizeof(fuse_init_out)).error,
            EINVAL);
  ASSERT_TRUE(fuse().init());
}

TEST_F(FreshSession, NothingIsServedBeforeInit) {
  EXPECT_REFUSED(EIO, fuse().getattr(kRoot));
  EXPECT_REFUSED(EIO, fuse().lookup(kRoot, "x"));
  ASSERT_TRUE(fuse().init());
  EXPECT_DONE(fuse().getattr(kRoot));
}

// ---- DESTROY ----

TEST_P(Session, DestroyIsAnsweredAndEndsEverything) {
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  GET(fuse().open(file, O_RDWR));
  EXPECT_DONE(fuse().destroy());
  if (foreign()) return;
  EXPECT_FALSE(fuse().getattr(file));
  ASSERT_TRUE(fuse().init());
  EXPECT_DONE(fuse().getattr(kRoot));
}

// ---- operations without an implementation ----

TEST_P(Session, UnknownOperationsAreNotThere) {
  for (const std::uint32_t opcode : {7U, 19U, 63U, 100U, 4095U, 0x7fff'ffffU, 0xffff'ffffU}) {
    EXPECT_EQ(fuse().call(opcode, kRoot, {}, 0).error, ENOSYS) << opcode;
  }
}

TEST_P(Session, WhatTheProtocolLetsUsLeaveOutIsNotThere) {
  const std::array<std::byte, 64> zeros{};
  for (const std::uint32_t opcode : {unsigned{FUSE_BMAP}, unsigned{FUSE_POLL},
                                     unsigned{FUSE_SETUPMAPPING}, unsigned{FUSE_REMOVEMAPPING}}) {
    EXPECT_EQ(fuse().call(opcode, kRoot, {zeros}, 64).error, ENOSYS) << opcode;
  }
}

// ---- requests that are none ----

class Malformed : public DeviceTest {
 protected:
  void SetUp() override {
    if (foreign()) GTEST_SKIP() << "peers end or stop answering";
    DeviceTest::SetUp();
  }
  // The queue answers and the daemon lives.
  void expect_alive() { EXPECT_DONE(fuse().getattr(kRoot)); }
  // A request as raw bytes; the used length that came back.
  std::optional<std::uint32_t> raw(std::span<const std::byte> in, std::uint32_t room) {
    const auto slot = requests_->acquire();
    EXPECT_TRUE(slot);
    const Block block = requests_->in_block(*slot);
    if (!in.empty()) std::memcpy(block.host, in.data(), in.size());
    const Buffer readable{.guest = block.guest, .size = static_cast<std::uint32_t>(in.size())};
    const Buffer writable{.guest = requests_->out_block(*slot).guest, .size = room};
    EXPECT_TRUE(vmm().ring(1).submit({&readable, in.empty() ? 0U : 1U},
                                     {&writable, room == 0 ? 0U : 1U}, 0));
    const auto used = vmm().ring(1).wait(vmm().deadline());
    std::memcpy(&answer_, requests_->out_block(*slot).host, sizeof(answer_));
    requests_->release(*slot);
    return used ? std::optional{used->length} : std::nullopt;
  }
  static fuse_in_header header(std::uint32_t opcode, std::uint32_t len = sizeof(fuse_in_header)) {
    fuse_in_header made{};
    made.len = len;
    made.opcode = opcode;
    made.unique = 0x1234;
    made.nodeid = FUSE_ROOT_ID;
    return made;
  }
  fuse_out_header answer_{};
};
INSTANTIATE_DEVICE_TEST(Malformed);

TEST_P(Malformed, AHeaderCutShortIsTakenAndNotAnswered) {
  const fuse_in_header in = header(FUSE_GETATTR);
  for (const std::size_t size : {1UL, 8UL, 39UL}) {
    EXPECT_EQ(raw(bytes_of(in).first(size), 4096), 0U) << size;
  }
  EXPECT_EQ(raw({}, 4096), 0U);
  expect_alive();
}

TEST_P(Malformed, NoRoomForAReplyMeansNothingIsDone) {
  struct {
    fuse_in_header head = header(FUSE_MKDIR);
    fuse_mkdir_in args{.mode = 0755, .umask = 0};
    char name[8] = "dir";
  } in;
  in.head.len = sizeof(in);
  EXPECT_EQ(raw(bytes_of(in), 0), 0U);
  EXPECT_EQ(raw(bytes_of(in), 15), 0U);
  expect_alive();
  EXPECT_FALSE(tree().exists("dir"));
}

TEST_P(Malformed, TooLittleRoomForTheAnswerMeansNothingIsDone) {
  struct {
    fuse_in_header head = header(FUSE_MKDIR);
    fuse_mkdir_in args{.mode = 0755, .umask = 0};
    char name[8] = "dir";
  } in;
  in.head.len = sizeof(in);
  EXPECT_EQ(raw(bytes_of(in), 32), 16U);
  EXPECT_EQ(answer_.error, -EINVAL);
  EXPECT_FALSE(tree().exists("dir"));
  expect_alive();
}

TEST_P(Malformed, ALengthLongerThanTheRequestIsRefused) {
  const fuse_in_header in = header(FUSE_GETATTR, 4096);
  EXPECT_EQ(raw(bytes_of(in), 4096), 16U);
  EXPECT_EQ(answer_.error, -EINVAL);
  EXPECT_EQ(answer_.unique, 0x1234U);
  const fuse_in_header tiny = header(FUSE_GETATTR, 3);
  EXPECT_EQ(raw(bytes_of(tiny), 4096), 16U);
  EXPECT_EQ(answer_.error, -EINVAL);
  expect_alive();
}

TEST_P(Malformed, UniqueZeroIsNoRequest) {
  struct {
    fuse_in_header head = header(FUSE_GETATTR);
    fuse_getattr_in args{};
  } in;
  in.head.len = sizeof(in);
  in.head.unique = 0;
  const auto used = raw(bytes_of(in), 4096);
  ASSERT_TRUE(used);
  EXPECT_TRUE(*used == 0 || *used >= 16);
  expect_alive();
}

TEST_P(Malformed, EveryOperationSurvivesEveryTruncation) {
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  std::array<std::byte, 160> bytes{};
  for (std::uint32_t opcode = 1; opcode <= 56; ++opcode) {
    if (opcode == FUSE_INIT || opcode == FUSE_DESTROY) continue;
    for (const std::size_t size : {40UL, 41UL, 47UL, 48UL, 56UL, 63UL, 80UL, 104UL, 160UL}) {
      fuse_in_header head = header(opcode, static_cast<std::uint32_t>(size));
      head.nodeid = file;
      std::memcpy(bytes.data(), &head, sizeof(head));
      const auto used = raw(std::span{bytes}.first(size), 4096);
      ASSERT_TRUE(used) << "no answer to opcode " << opcode << " of " << size << " bytes";
      EXPECT_TRUE(*used == 0 || *used == answer_.len) << opcode << " " << size;
    }
  }
  ASSERT_TRUE(fuse().init());
  expect_alive();
}

TEST_P(Malformed, EveryOperationSurvivesArgumentsOfOnes) {
  std::array<std::byte, 256> bytes;
  for (std::uint32_t opcode = 1; opcode <= 56; ++opcode) {
    if (opcode == FUSE_INIT || opcode == FUSE_DESTROY) continue;
    for (const std::uint8_t fill : {0xffU, 0x7fU, 0x80U, 0x01U}) {
      bytes.fill(std::byte{fill});
      fuse_in_header head = header(opcode, sizeof(bytes));
      std::memcpy(bytes.data(), &head, sizeof(head));
      const auto used = raw(bytes, 4096);
      ASSERT_TRUE(used) << "no answer to opcode " << opcode;
      EXPECT_TRUE(*used == 0 || *used == answer_.len) << opcode;
    }
  }
  ASSERT_TRUE(fuse().init());
  expect_alive();
}

TEST_P(Malformed, ExtensionsPastTheEndAreRefused) {
  struct {
    fuse_in_header head = header(FUSE_MKDIR);
    fuse_mkdir_in args{.mode = 0755, .umask = 0};
    char name[8] = "dir";
  } in;
  in.head.len = sizeof(in);
  in.head.total_extlen = 0xffff;
  EXPECT_EQ(raw(bytes_of(in), 4096), 16U);
  EXPECT_EQ(answer_.error, -EINVAL);
  EXPECT_FALSE(tree().exists("dir"));
  expect_alive();
}

// A chain in which one buffer is nowhere fails alone.
TEST_P(Malformed, ABufferInNoMemoryFailsThatRequestOnly) {
  const fuse_in_header in = header(FUSE_GETATTR, 56);
  const auto slot = requests_->acquire();
  std::memcpy(requests_->in_block(*slot).host, &in, sizeof(in));
  const Buffer readable[] = {{.guest = requests_->in_block(*slot).guest, .size = sizeof(in)},
                             {.guest = 0x7fff'0000'0000, .size = 16}};
  const Buffer writable{.guest = requests_->out_block(*slot).guest, .size = 4096};
  ASSERT_TRUE(vmm().ring(1).submit(readable, {&writable, 1}, 0));
  const auto used = vmm().ring(1).wait(vmm().deadline());
  ASSERT_TRUE(used);
  std::memcpy(&answer_, requests_->out_block(*slot).host, sizeof(answer_));
  EXPECT_EQ(used->length, 16U);
  EXPECT_EQ(answer_.error, -EFAULT);
  requests_->release(*slot);
  expect_alive();
}

}  // namespace
}  // namespace virtiofsd::guest
