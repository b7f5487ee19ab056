// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A VMM that vanishes, dribbles, says things in the wrong order or hands over
// descriptors that block.
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/faults/fixture.h"

namespace virtiofsd::guest {
namespace {

// ---- vanishing ----

class VanishingVmm : public FaultFixture {
 protected:
  // The daemon ends with success and leaves neither process nor socket.
  void expect_gone_without_trace() {
    still_serving_ = false;
    const std::vector<pid_t> tree = daemon().tree();
    const auto status = daemon().wait(within(std::chrono::seconds(10)));
    ASSERT_TRUE(status) << "it stays\n" << daemon().output();
    EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0) << *status << daemon().output();
    for (const pid_t pid : tree) {
      const Deadline deadline = within(std::chrono::seconds(5));
      while (::kill(pid, 0) == 0 && std::chrono::steady_clock::now() < deadline) ::usleep(1000);
      EXPECT_NE(::kill(pid, 0), 0) << "process " << pid << " is left behind";
    }
    EXPECT_NE(::access(daemon().socket_path().c_str(), F_OK), 0) << "the socket is left behind";
    client_.reset();
    clients_.clear();
  }
};

TEST_F(VanishingVmm, AfterEveryMessageOfTheSetUp) {
  if (foreign()) GTEST_SKIP() << "peers leave things behind";
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  still_serving_ = false;
  for (unsigned moment = 0; moment < 14; ++moment) {
    start_daemon();
    ASSERT_FALSE(HasFatalFailure());
    UniqueFd socket = daemon_->take_connection();
    auto front_end = FrontEnd::adopt(std::move(socket), {});
    ASSERT_TRUE(front_end);
    FrontEnd& vmm = **front_end;
    const int kick[] = {vmm.kick_fd(1).valid() ? vmm.kick_fd(1).number() : -1};
    const auto do_all = [&]() -> Result<void, Failure> {
      if (moment > 0) TRY(vmm.negotiate());
      if (moment > 1) TRY(vmm.share_memory());
      if (moment > 2) TRY(vmm.tell_vring(kSetVringNum, 1, 128));
      if (moment > 3) TRY(vmm.tell_vring(kSetVringBase, 1, 0));
      if (moment > 4) TRY(vmm.tell(kSetVringAddr, bytes_of(vmm.vring_address(1))));
      if (moment > 5) TRY(vmm.tell_u64(kSetVringKick, 1, kick));
      if (moment > 6) TRY(vmm.tell_vring(kSetVringEnable, 1, 1));
      if (moment > 7) TRY(vmm.start_queue(0));
      if (moment > 8) TRY(vmm.start_queue(1));
      if (moment > 9) TRY(vmm.stop_queue(1));
      // Half a header, a header whose payload never comes, a header with a descriptor.
      const MessageHeader header{.request = kSetVringKick, .flags = 1, .size = 8};
      if (moment == 11) TRY(vmm.send_raw(bytes_of(header).first(5)));
      if (moment == 12) TRY(vmm.send_raw(bytes_of(header)));
      if (moment == 13) TRY(vmm.send_raw(bytes_of(header), kick));
      return {};
    };
    ASSERT_OK(do_all());
    vmm.close();
    expect_gone_without_trace();
  }
}

TEST_F(VanishingVmm, WithEveryKindOfRequestInFlight) {
  for (int round = 0; round < 5; ++round) {
    attack({"-o", "posix_lock"}, {}, true, {.slots = 32, .data_bytes = 1U << 20});
    if (IsSkipped() || HasFatalFailure()) return;
    tree().write("big", std::string(4U << 20, 'b'));
    const std::uint64_t file = node("big");
    const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
    const std::uint64_t other = GET(fuse().open(file, O_RDWR)).fh;
    const fuse_file_lock lock{.start = 0, .end = 100, .type = F_WRLCK, .pid = 1};
    EXPECT_DONE(fuse().setlk(file, handle, 1, lock));
    for (std::uint64_t owner = 2; owner < 6; ++owner) {
      ASSERT_TRUE(fuse().begin_setlkw(file, other, owner, lock));
    }
    fuse_read_in read{};
    read.fh = handle;
    read.size = 1U << 20;
    fuse_fsync_in sync{};
    sync.fh = handle;
    for (int i = 0; i < 8; ++i) {
      (void)fuse().begin(FUSE_READ, file, {bytes_of(read)}, 1U << 20);
      (void)fuse().begin(FUSE_FSYNC, file, {bytes_of(sync)}, 0);
    }
    vmm().close();
    expect_gone_without_trace();
    more_queues_.clear();
    requests_.reset();
    urgent_.reset();
    front_end_.reset();
  }
}

TEST_F(VanishingVmm, WhileItsDaemonIsToldToEnd) {
  attack();
  if (IsSkipped() || HasFatalFailure()) return;
  daemon().signal(SIGTERM);
  vmm().close();
  expect_gone_without_trace();
}

// ---- talking ----

class TalkingVmm : public FaultFixture {
 protected:
  void SetUp() override {
    FrontEndOptions options;
    options.ring = {.size = 64};
    attack({}, options);
  }
};

TEST_F(TalkingVmm, MessagesInSingleBytes) {
  for (int round = 0; round < 10; ++round) {
    const VringState state{.index = 1, .value = 1};
    const MessageHeader header{.request = kSetVringEnable,
                               .flags = kMessageVersion | kMessageNeedReply,
                               .size = sizeof state};
    std::vector<std::byte> bytes;
    for (const auto part : {bytes_of(header), bytes_of(state)})
      bytes.insert(bytes.end(), part.begin(), part.end());
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      ASSERT_OK(vmm().send_raw({&bytes[i], 1}));
      if (i % 4 == 3) {
        EXPECT_DONE(fuse().getattr(kRoot));
      }
    }
    const auto reply = vmm().receive();
    ASSERT_TRUE(reply) << reply.error().text();
    EXPECT_EQ(reply->as<std::uint64_t>(), 0U);
  }
}

TEST_F(TalkingVmm, ADescriptorWithTheLastByteOfItsMessage) {
  const UniqueFd call{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  const std::uint64_t word = 2;
  const MessageHeader header{
      .request = kSetVringCall, .flags = kMessageVersion | kMessageNeedReply, .size = sizeof word};
  std::vector<std::byte> bytes;
  for (const auto part : {bytes_of(header), bytes_of(word)})
    bytes.insert(bytes.end(), part.begin(), part.end());
  ASSERT_OK(vmm().send_raw(std::span{bytes}.first(bytes.size() - 1)));
  const int fds[] = {call.number()};
  ASSERT_OK(vmm().send_raw(std::span{bytes}.last(1), fds));
  const auto reply = vmm().receive();
  ASSERT_TRUE(reply) << reply.error().text();
  const int real[] = {vmm().call_fd(2).number()};
  ASSERT_OK(vmm().tell_u64(kSetVringCall, 2, real));
}

TEST_F(TalkingVmm, QueueIndexesThatDoNotExistAreRefused) {
  for (const std::uint32_t index : {65U, 66U, 255U, 256U, 0x7fff'ffffU, ~0U}) {
    const VringState state{.index = index, .value = 1};
    for (const std::uint32_t what : {kSetVringNum, kSetVringBase, kSetVringEnable}) {
      EXPECT_NE(vmm().acknowledged(what, bytes_of(state)).value(), 0U) << what << " " << index;
    }
    VringAddress address = vmm().vring_address(1);
    address.index = index;
    EXPECT_NE(vmm().acknowledged(kSetVringAddr, bytes_of(address)).value(), 0U);
  }
}

TEST_F(TalkingVmm, KicksBeforeBetweenAndAfterTheSetUpCalls) {
  for (int round = 0; round < 30; ++round) {
    const auto kick = [&] { vmm().ring(kAttacked).kick(); };
    kick();
    ASSERT_TRUE(vmm().stop_queue(kAttacked));
    kick();
    ASSERT_OK(vmm().tell_vring(kSetVringNum, kAttacked, 64));
    kick();
    ASSERT_OK(vmm().tell_vring(kSetVringBase, kAttacked, vmm().ring(kAttacked).base()));
    kick();
    ASSERT_OK(vmm().tell(kSetVringAddr, bytes_of(vmm().vring_address(kAttacked))));
    // A request that is there before anybody listens.
    const auto slot = fuse().begin(FUSE_GETATTR, kRoot, {bytes_of(fuse_getattr_in{})}, 200);
    ASSERT_TRUE(slot);
    kick();
    const int fds[] = {vmm().kick_fd(kAttacked).number()};
    if (round % 2 == 0) {
      ASSERT_OK(vmm().tell_vring(kSetVringEnable, kAttacked, 1));
      kick();
      ASSERT_OK(vmm().tell_u64(kSetVringKick, kAttacked, fds));
    } else {
      ASSERT_OK(vmm().tell_u64(kSetVringKick, kAttacked, fds));
      ASSERT_OK(vmm().tell_vring(kSetVringEnable, kAttacked, 1));
    }
    EXPECT_EQ(fuse().finish(*slot).error, 0) << "lost in round " << round;
  }
}

TEST_F(TalkingVmm, KickDescriptorsOfEveryStrangeKind) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  int sockets[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
  const UniqueFd plain{::open(tree().path("probe").c_str(), O_RDONLY | O_CLOEXEC)};
  const UniqueFd directory{::open(tree().root().c_str(), O_RDONLY | O_CLOEXEC)};
  const UniqueFd path{::open(tree().root().c_str(), O_PATH | O_CLOEXEC)};
  for (const int fd : {plain.number(), directory.number(), path.number(), pipe_ends[0],
                       pipe_ends[1], sockets[0], vmm().socket().number()}) {
    const int fds[] = {fd};
    for (const std::uint32_t what : {kSetVringKick, kSetVringCall, kSetVringErr}) {
      const std::uint64_t word = kAttacked;
      if (fd == vmm().socket().number()) {
        // What the daemon writes there comes back to it, and it may read its own replies.
        ASSERT_OK(send_message(vmm().socket(), what, 0, bytes_of(word), fds));
      } else {
        (void)vmm().acknowledged(what, bytes_of(word), fds);
      }
      EXPECT_DONE(clients_[2]->getattr(kRoot));
    }
  }
  restart_attacked_queue();
  for (const int fd : {pipe_ends[0], pipe_ends[1], sockets[0], sockets[1]}) ::close(fd);
}

// ---- descriptors that block ----

class BlockingCall : public TalkingVmm {
 protected:
  // Ten requests whose calls go to `fd`; the answers are found in memory.
  void expect_answers_with_call(int fd) {
    const int fds[] = {fd};
    ASSERT_OK(vmm().tell_u64(kSetVringCall, kAttacked, fds));
    for (int i = 0; i < 10; ++i) {
      const auto bytes = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
      std::memcpy(in_.host, bytes.data(), bytes.size());
      const Buffer from[] = {
          {.guest = in_.guest, .size = static_cast<std::uint32_t>(bytes.size())}};
      const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
      DriverRing& ring = vmm().ring(kAttacked);
      ring.available_flags().store(0);  // calls are wanted
      ASSERT_TRUE(ring.submit(from, to, 1));
      const Deadline deadline = vmm().deadline();
      std::optional<Used> used;
      while (!used && std::chrono::steady_clock::now() < deadline) used = ring.poll();
      ASSERT_TRUE(used) << "request " << i;
    }
    restart_attacked_queue();
  }
};

TEST_F(BlockingCall, APipeThatIsFull) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const std::vector<char> filler(65536, 'x');
  while (::write(ends[1], filler.data(), filler.size()) > 0) {
  }
  while (::write(ends[1], "x", 1) > 0) {
  }
  ASSERT_EQ(::fcntl(ends[1], F_SETFL, 0), 0);
  expect_answers_with_call(ends[1]);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_F(BlockingCall, APipeThatNobodyReads) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  ::close(ends[0]);
  expect_answers_with_call(ends[1]);
  ::close(ends[1]);
}

TEST_F(BlockingCall, AnEventfdThatIsFull) {
  const UniqueFd full{eventfd(0, EFD_CLOEXEC)};
  const std::uint64_t most = ~std::uint64_t{0} - 1;
  ASSERT_EQ(::write(full.number(), &most, sizeof most), 8);
  expect_answers_with_call(full.number());
}

TEST_F(BlockingCall, ASocketThatIsFullOrClosed) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const std::vector<char> filler(65536, 'x');
  while (::send(ends[1], filler.data(), filler.size(), MSG_DONTWAIT) > 0) {
  }
  expect_answers_with_call(ends[1]);
  ::close(ends[0]);
  expect_answers_with_call(ends[1]);
  ::close(ends[1]);
}

TEST_F(BlockingCall, AnErrorDescriptorThatIsFull) {
  const UniqueFd full{eventfd(0, EFD_CLOEXEC)};
  const std::uint64_t most = ~std::uint64_t{0} - 1;
  ASSERT_EQ(::write(full.number(), &most, sizeof most), 8);
  const int fds[] = {full.number()};
  ASSERT_OK(vmm().tell_u64(kSetVringErr, kAttacked, fds));
  vmm().ring(kAttacked).available_index().fetch_add(1000);
  vmm().ring(kAttacked).kick();
  EXPECT_DONE(clients_[2]->getattr(kRoot));
  restart_attacked_queue();
}

// A front-end that never reads its replies must not hold the queues up.
TEST_F(TalkingVmm, RepliesThatNobodyReads) {
  still_serving_ = false;
  expect_exit(false);
  const MessageHeader header{.request = kGetFeatures, .flags = kMessageVersion, .size = 0};
  for (int i = 0; i < 20'000; ++i) {
    if (::send(vmm().socket().number(), &header, sizeof header, MSG_DONTWAIT | MSG_NOSIGNAL) !=
        sizeof header) {
      break;
    }
  }
  for (int i = 0; i < 50; ++i) EXPECT_DONE(fuse().getattr(kRoot));
  vmm().close();
  const auto status = daemon().wait(within(std::chrono::seconds(30)));
  ASSERT_TRUE(status) << "it stays";
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0);
}

}  // namespace
}  // namespace virtiofsd::guest
