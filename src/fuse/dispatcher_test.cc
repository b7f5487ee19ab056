// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/dispatcher.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "fuse/fake_file_system.h"

namespace virtiofsd::fuse {
namespace {

// A guest after INIT.
struct Ready : Guest {
  explicit Ready(Dispatcher::Settings settings = {}) : Guest(std::move(settings)) {
    EXPECT_EQ(init().error(), 0);
    fs.calls.clear();
  }
};

Dispatcher::Settings read_only() {
  Dispatcher::Settings settings;
  settings.read_only = true;
  return settings;
}

Dispatcher::Settings root_only() {
  Dispatcher::Settings settings;
  settings.root_only = true;
  settings.own_uid = 1000;
  return settings;
}

Bytes open_args(std::uint32_t flags) {
  return bytes_of(fuse_open_in{.flags = flags, .open_flags = 0});
}

TEST(Dispatcher, AnswersInitWithTheSession) {
  Guest guest;
  const Reply reply = guest.init();
  EXPECT_EQ(reply.error(), 0);
  EXPECT_EQ(reply.used, 16U + 64U);
  EXPECT_EQ(reply.header.len, reply.used);
  EXPECT_EQ(reply.header.unique, 100U);
  EXPECT_EQ(reply.as<fuse_init_out>().minor, kMinor);
  EXPECT_EQ(guest.fs.last(), "init");
  EXPECT_TRUE(guest.dispatcher.session().initialised());
}

TEST(Dispatcher, TellsTheGuestWhatTheFileSystemNarrowed) {
  Guest guest;
  guest.fs.narrowed = FUSE_POSIX_LOCKS;
  const auto out = guest.init().as<fuse_init_out>();
  EXPECT_EQ(out.flags & FUSE_POSIX_LOCKS, 0U);
  EXPECT_FALSE(guest.dispatcher.session().has(FUSE_POSIX_LOCKS));
}

TEST(Dispatcher, UnderstandsTheShortInitOfOlderGuests) {
  Guest guest;
  const Bytes arguments = bytes_of(std::uint32_t{7}, std::uint32_t{31}, std::uint32_t{4096},
                                   std::uint32_t{FUSE_ASYNC_READ | FUSE_INIT_EXT});
  const Reply reply = guest.send(FUSE_INIT, arguments);
  EXPECT_EQ(reply.as<fuse_init_out>().minor, 31U);
  EXPECT_EQ(guest.dispatcher.session().flags, std::uint64_t{FUSE_ASYNC_READ});
}

TEST(Dispatcher, RefusesAnInitThatIsCut) {
  Guest guest;
  EXPECT_EQ(guest.send(FUSE_INIT, Bytes(15)).error(), EINVAL);
  guest.room = 16 + 63;
  EXPECT_EQ(guest.init().error(), EINVAL);
  EXPECT_TRUE(guest.fs.calls.empty());
}

TEST(Dispatcher, WaitsForAnotherInitAfterALaterMajor) {
  Guest guest;
  fuse_init_in in{};
  in.major = 8;
  const Reply reply = guest.send(FUSE_INIT, bytes_of(in));
  EXPECT_EQ(reply.error(), 0);
  EXPECT_EQ(reply.as<fuse_init_out>().major, 7U);
  EXPECT_FALSE(guest.dispatcher.session().initialised());
  EXPECT_TRUE(guest.fs.calls.empty());
}

TEST(Dispatcher, StartsOverWhenARebootedGuestSendsInitAgain) {
  Ready guest;
  EXPECT_EQ(guest.init(FUSE_ASYNC_READ).error(), 0);
  EXPECT_EQ(guest.fs.last(), "init");
  EXPECT_EQ(guest.dispatcher.session().flags, std::uint64_t{FUSE_ASYNC_READ});
}

TEST(Dispatcher, HasNoSessionWhenTheFileSystemRefusesIt) {
  Ready guest;
  guest.fs.error = Errno{ENOMEM};
  EXPECT_EQ(guest.init().error(), ENOMEM);
  guest.fs.error.reset();
  EXPECT_EQ(guest.send(FUSE_STATFS).error(), EIO);
}

TEST(Dispatcher, AnswersEioBeforeInitAndAfterDestroy) {
  Guest guest;
  EXPECT_EQ(guest.send(FUSE_STATFS).error(), EIO);
  EXPECT_EQ(guest.send(9999).error(), EIO);
  EXPECT_TRUE(guest.fs.calls.empty());

  guest.init();
  const Reply reply = guest.send(FUSE_DESTROY);
  EXPECT_EQ(reply.used, 16U);
  EXPECT_EQ(reply.error(), 0);
  EXPECT_EQ(guest.fs.last(), "destroy");
  EXPECT_EQ(guest.send(FUSE_STATFS).error(), EIO);
}

TEST(Dispatcher, ForgetsTheSessionOnReset) {
  Ready guest;
  guest.dispatcher.reset();
  EXPECT_EQ(guest.fs.last(), "destroy");
  EXPECT_FALSE(guest.dispatcher.session().initialised());
}

TEST(Dispatcher, GoesOnWithARestoredSession) {
  Ready first;
  Guest second;
  second.dispatcher.restore(first.dispatcher.session());
  EXPECT_EQ(second.send(FUSE_STATFS).error(), 0);
  const Negotiated session = second.dispatcher.session();
  EXPECT_EQ(session.major, 7U);
  EXPECT_EQ(session.minor, kMinor);
  EXPECT_EQ(session.max_readahead, 131072U);
  EXPECT_EQ(session.max_write, 1U << 20);
  EXPECT_EQ(session.max_pages, 256U);
  EXPECT_EQ(session.max_background, 1024U);
  EXPECT_EQ(session.congestion_threshold, 768U);
}

TEST(Dispatcher, ReadsAndWritesAcrossBuffersOfOneByte) {
  Guest guest;
  guest.piece = 1;
  guest.room = 4096;
  EXPECT_EQ(guest.init().error(), 0);
  const Reply reply = guest.send(FUSE_READ, bytes_of(read_of(3, 4, 100)));
  EXPECT_EQ(text_of(reply.body), "content");
  EXPECT_EQ(reply.used, 16U + 7U);
  EXPECT_TRUE(guest.untouched);
}

TEST(Dispatcher, DropsARequestTooShortForAHeader) {
  Ready guest;
  for (std::size_t size = 0; size < 40; ++size)
    EXPECT_EQ(guest.send_raw(Bytes(size)).used, 0U) << size;
  EXPECT_TRUE(guest.untouched);
  EXPECT_EQ(guest.dispatcher.unanswerable(), 40U);
}

TEST(Dispatcher, DropsARequestWithUniqueZeroBecauseItsReplyWouldBeANotification) {
  Ready guest;
  guest.unique = 0;
  EXPECT_EQ(guest.send(FUSE_RMDIR, bytes_of("a")).used, 0U);
  EXPECT_TRUE(guest.fs.calls.empty());
  EXPECT_EQ(guest.dispatcher.unanswerable(), 1U);
}

TEST(Dispatcher, DoesNothingWhenThereIsNoRoomForAReplyHeader) {
  Ready guest;
  for (guest.room = 0; guest.room < 16; ++guest.room)
    EXPECT_EQ(guest.send(FUSE_RMDIR, bytes_of("a")).used, 0U);
  EXPECT_TRUE(guest.untouched);
  EXPECT_TRUE(guest.fs.calls.empty());
}

TEST(Dispatcher, RefusesBeforeActingWhenTheAnswerDoesNotFit) {
  Ready guest;
  guest.room = 16 + sizeof(fuse_entry_out) - 1;
  const Reply reply = guest.send(FUSE_MKDIR, bytes_of(fuse_mkdir_in{}, "a"));
  EXPECT_EQ(reply.error(), EINVAL);
  EXPECT_EQ(reply.used, 16U);
  EXPECT_TRUE(guest.fs.calls.empty());

  guest.room = 16 + sizeof(fuse_entry_out);
  EXPECT_EQ(guest.send(FUSE_MKDIR, bytes_of(fuse_mkdir_in{}, "a")).error(), 0);
}

TEST(Dispatcher, TakesTheHeadersLengthWhenItIsShorterThanTheBuffers) {
  Ready guest;
  guest.len = 40 + 3;
  EXPECT_EQ(guest.send(FUSE_RMDIR, bytes_of("ab", "rubbish")).error(), 0);
  EXPECT_EQ(guest.fs.last(), "rmdir 1 ab");
  guest.len = 40 + 2;  // without the NUL
  EXPECT_EQ(guest.send(FUSE_RMDIR, bytes_of("ab", "rubbish")).error(), EINVAL);
}

TEST(Dispatcher, RefusesALengthThatIsNone) {
  Ready guest;
  for (const std::uint32_t len : {0U, 39U, 40U + 4U, 0xffffffffU}) {
    guest.len = len;
    EXPECT_EQ(guest.send(FUSE_RMDIR, bytes_of("ab")).error(), EINVAL) << len;
  }
  EXPECT_TRUE(guest.fs.calls.empty());
}

TEST(Dispatcher, RefusesArgumentsBeyondAMegabyte) {
  Ready guest;
  EXPECT_EQ(guest.send(FUSE_STATFS, Bytes((1U << 20) + 4096)).error(), 0);
  EXPECT_EQ(guest.send(FUSE_STATFS, Bytes((1U << 20) + 4097)).error(), EINVAL);
}

TEST(Dispatcher, AnswersEfaultForABufferInNoMemoryRegion) {
  Ready guest;
  guest.faulted = true;
  const Reply reply = guest.send(FUSE_RMDIR, bytes_of("a"));
  EXPECT_EQ(reply.error(), EFAULT);
  EXPECT_EQ(reply.header.unique, 100U);
  EXPECT_EQ(guest.send(FUSE_FORGET, bytes_of(fuse_forget_in{1})).used, 0U);
  EXPECT_EQ(guest.send_raw(Bytes(20)).used, 0U);
  EXPECT_EQ(guest.send(FUSE_DESTROY).error(), EFAULT);
  EXPECT_TRUE(guest.fs.calls.empty());
}

TEST(Dispatcher, AnswersEnosysForAnUnknownOperation) {
  Ready guest;
  for (const std::uint32_t opcode : {0U, 7U, 19U, 54U, 4096U, 0xffffffffU})
    EXPECT_EQ(guest.send(opcode).error(), ENOSYS) << opcode;
}

TEST(Dispatcher, NeverAnswersAForget) {
  Ready guest;
  EXPECT_EQ(guest.send(FUSE_FORGET, bytes_of(fuse_forget_in{7})).used, 0U);
  EXPECT_EQ(guest.fs.last(), "forget 1 7");
  guest.room = 0;
  guest.unique = 0;
  EXPECT_EQ(guest.send(FUSE_FORGET, bytes_of(fuse_forget_in{8})).used, 0U);
  EXPECT_EQ(guest.fs.last(), "forget 1 8");
  EXPECT_TRUE(guest.untouched);
}

TEST(Dispatcher, PassesErrorsOnAndNothingOfTheBody) {
  Ready guest;
  guest.fs.error = Errno{ENOENT};
  const Reply reply = guest.send(FUSE_LOOKUP, bytes_of("a"));
  EXPECT_EQ(reply.header.error, -ENOENT);
  EXPECT_EQ(reply.used, 16U);
  EXPECT_TRUE(guest.untouched);
}

TEST(Dispatcher, NeverSendsAnErrorTheGuestWouldNotTakeForOne) {
  Ready guest;
  for (const int odd : {0, -5, 512, 5000}) {
    guest.fs.error = Errno{odd};
    EXPECT_EQ(guest.send(FUSE_LOOKUP, bytes_of("a")).error(), EIO) << odd;
  }
}

TEST(Dispatcher, AnswersErofsToWhatWritesOnAReadOnlyShare) {
  Ready guest{read_only()};
  for (const std::uint32_t opcode :
       {std::uint32_t{FUSE_SETATTR}, std::uint32_t{FUSE_SYMLINK}, std::uint32_t{FUSE_MKNOD},
        std::uint32_t{FUSE_MKDIR}, std::uint32_t{FUSE_UNLINK}, std::uint32_t{FUSE_RMDIR},
        std::uint32_t{FUSE_RENAME}, std::uint32_t{FUSE_RENAME2}, std::uint32_t{FUSE_LINK},
        std::uint32_t{FUSE_WRITE}, std::uint32_t{FUSE_SETXATTR}, std::uint32_t{FUSE_REMOVEXATTR},
        std::uint32_t{FUSE_CREATE}, std::uint32_t{FUSE_TMPFILE}, std::uint32_t{FUSE_FALLOCATE},
        std::uint32_t{FUSE_COPY_FILE_RANGE}, FUSE_COPY_FILE_RANGE_64})
    EXPECT_EQ(guest.send(opcode, Bytes(128)).error(), EROFS) << opcode;
  for (const int flags : {O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC})
    EXPECT_EQ(guest.send(FUSE_OPEN, open_args(static_cast<std::uint32_t>(flags))).error(), EROFS);
  EXPECT_EQ(guest.send(FUSE_ACCESS, bytes_of(fuse_access_in{.mask = 2, .padding = 0})).error(),
            EROFS);
  EXPECT_TRUE(guest.fs.calls.empty());

  EXPECT_EQ(guest.send(FUSE_OPEN, open_args(O_RDONLY)).error(), 0);
  EXPECT_EQ(guest.send(FUSE_ACCESS, bytes_of(fuse_access_in{.mask = 4, .padding = 0})).error(), 0);
}

TEST(Dispatcher, LetsOnlyRootAndItsOwnUserInUnderAllowRoot) {
  Ready guest{root_only()};
  guest.uid = 1001;
  EXPECT_EQ(guest.send(FUSE_LOOKUP, bytes_of("a")).error(), EACCES);
  EXPECT_EQ(guest.send(FUSE_OPEN, open_args(O_RDONLY)).error(), EACCES);
  EXPECT_TRUE(guest.fs.calls.empty());
  EXPECT_EQ(guest.send(FUSE_READ, bytes_of(fuse_read_in{})).error(), 0);
  EXPECT_EQ(guest.send(FUSE_RELEASE, bytes_of(fuse_release_in{})).error(), 0);
  guest.uid = 1000;
  EXPECT_EQ(guest.send(FUSE_LOOKUP, bytes_of("a")).error(), 0);
  guest.uid = 0;
  EXPECT_EQ(guest.send(FUSE_LOOKUP, bytes_of("a")).error(), 0);
}

TEST(Dispatcher, WantsEveryUidUnderAllowRoot) {
  EXPECT_TRUE(Ready().dispatcher.session().has(FUSE_ALLOW_IDMAP));
  EXPECT_FALSE(Ready(root_only()).dispatcher.session().has(FUSE_ALLOW_IDMAP));
}

TEST(Dispatcher, StaysWholeWhenAGuestSendsInitWhileOthersAreServed) {
  // Concurrent INIT and DESTROY against requests: every answer is whole, and
  // the sanitizers see no race.
  class Quiet final : public FileSystem {
   public:
    Result<fuse_kstatfs> statfs(Call& call) override {
      fuse_kstatfs out{};
      out.bsize = call.session.max_write;
      return out;
    }
  };
  Quiet fs;
  Dispatcher dispatcher{fs, {}};
  const auto run = [&dispatcher](std::uint32_t opcode, const Bytes& arguments) {
    fuse_in_header header{};
    header.len = static_cast<std::uint32_t>(sizeof header + arguments.size());
    header.opcode = opcode;
    header.unique = 1;
    Bytes request = bytes_of(header, arguments);
    Bytes space(256);
    iovec in{.iov_base = request.data(), .iov_len = request.size()};
    iovec out{.iov_base = space.data(), .iov_len = space.size()};
    NullScheduler scheduler;
    Scratch scratch;
    const std::uint32_t used =
        dispatcher.serve(SharedBytes{{&in, 1}, request.size()},
                         SharedBytes{{&out, 1}, space.size()}, {}, scheduler, scratch);
    fuse_out_header reply{};
    std::memcpy(&reply, space.data(), sizeof reply);
    EXPECT_EQ(used, reply.len);
    return reply.error;
  };
  fuse_init_in init{};
  init.major = 7;
  init.minor = 40;
  const Bytes init_arguments = bytes_of(init);
  std::atomic<bool> over{false};
  std::thread other{[&] {
    while (!over.load()) {
      const int error = run(FUSE_STATFS, {});
      EXPECT_TRUE(error == 0 || error == -EIO) << error;
    }
  }};
  for (int round = 0; round < 2000; ++round) {
    EXPECT_EQ(run(FUSE_INIT, init_arguments), 0);
    EXPECT_EQ(run(FUSE_DESTROY, {}), 0);
  }
  over.store(true);
  other.join();
}

}  // namespace
}  // namespace virtiofsd::fuse
