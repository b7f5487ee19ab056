// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Every vhost-user request, right and refused, over the real socket.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

// A running device with a session. What it refuses must leave it running.
class VhostUser : public DeviceFixture {
 protected:
  void SetUp() override { start({"-o", "xattr"}); }
  void TearDown() override {
    if (client_ && vmm().socket().valid() && still_serving_) {
      EXPECT_DONE(fuse().getattr(kRoot));
    }
    DeviceFixture::TearDown();
  }
  // The acknowledgement of a message: 0 is yes; a lost connection is a failure.
  std::uint64_t ack(std::uint32_t request, std::span<const std::byte> payload = {},
                    std::span<const int> fds = {}) {
    auto answer = vmm().acknowledged(request, payload, fds);
    EXPECT_TRUE(answer) << answer.error().text();
    return answer ? *answer : 0xdead;
  }
  template <typename T>
  std::uint64_t ack_of(std::uint32_t request, const T& payload, std::span<const int> fds = {}) {
    return ack(request, bytes_of(payload), fds);
  }
  // After a round trip: what came with the last message has been dealt with by then.
  std::uint64_t descriptors() {
    EXPECT_TRUE(vmm().ask_u64(kGetFeatures));
    return daemon().usage().descriptors;
  }
  std::size_t lines_about_refused_rings() {
    const std::string said = daemon().output();
    std::size_t lines = 0;
    for (std::size_t at = 0; (at = said.find("queue 3 can't start", at)) != std::string::npos; ++at)
      ++lines;
    return lines;
  }
  // Sets ring 3 up from nothing and kicks it. True when some message was refused, or the ring's
  // error descriptor or the log says that it doesn't run.
  bool ring_is_refused(std::uint32_t size, VringAddress address) {
    constexpr std::uint32_t kRing = 3;
    address.index = kRing;
    const UniqueFd kick{eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)};
    const UniqueFd error{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    const int kick_fd[] = {kick.number()};
    const int error_fd[] = {error.number()};
    const std::size_t lines_before = lines_about_refused_rings();
    bool refused = ack_of(kSetVringEnable, VringState{.index = kRing, .value = 0}) != 0;
    EXPECT_FALSE(refused);
    refused |= ack_of(kSetVringNum, VringState{.index = kRing, .value = size}) != 0;
    refused |= ack_of(kSetVringBase, VringState{.index = kRing, .value = 0}) != 0;
    refused |= ack_of(kSetVringAddr, address) != 0;
    refused |= ack_of(kSetVringErr, std::uint64_t{kRing}, error_fd) != 0;
    refused |= ack_of(kSetVringKick, std::uint64_t{kRing}, kick_fd) != 0;
    refused |= ack_of(kSetVringEnable, VringState{.index = kRing, .value = 1}) != 0;
    if (!refused) {
      pollfd waited{.fd = error.number(), .events = POLLIN, .revents = 0};
      refused = poll(&waited, 1, 0) == 1 || lines_about_refused_rings() > lines_before;
    }
    EXPECT_EQ(ack_of(kSetVringEnable, VringState{.index = kRing, .value = 0}), 0U);
    return refused;
  }

  bool still_serving_ = true;
};

constexpr VringState state(std::uint32_t index, std::uint32_t value) {
  return {.index = index, .value = value};
}

// ---- features ----

TEST_F(VhostUser, GetFeaturesOffersWhatADriverNeeds) {
  const auto features = vmm().ask_u64(kGetFeatures);
  ASSERT_TRUE(features);
  const std::uint64_t needed =
      kFeatureVersion1 | kFeatureProtocol | kFeatureIndirect | kFeatureEventIdx | kFeatureLogAll;
  EXPECT_EQ(*features & needed, needed);
  if (!foreign()) {
    EXPECT_NE(*features & kFeaturePacked, 0U);
  }
}

TEST_F(VhostUser, SetFeaturesOfWhatWasNeverOfferedIsRefused) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon takes anything";
  EXPECT_NE(ack_of(kSetFeatures, vmm().features() | 1ULL << 60), 0U);
}

TEST_F(VhostUser, SetFeaturesAgainWhileRunningDisturbsNothing) {
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(ack_of(kSetFeatures, vmm().features() | kFeatureLogAll), 0U);
    EXPECT_DONE(fuse().getattr(kRoot));
    EXPECT_EQ(ack_of(kSetFeatures, vmm().features()), 0U);
    EXPECT_DONE(fuse().getattr(kRoot));
  }
}

TEST_F(VhostUser, ProtocolFeaturesHoldWhatFrontEndsNeed) {
  const auto features = vmm().ask_u64(kGetProtocolFeatures);
  ASSERT_TRUE(features);
  const std::uint64_t needed = kProtocolMq | kProtocolLogShmfd | kProtocolReplyAck |
                               kProtocolBackendReq | kProtocolConfigureMemSlots;
  EXPECT_EQ(*features & needed, needed);
  EXPECT_EQ(*features & kProtocolConfig, 0U) << "CONFIG without --tag crashes old QEMU";
  if (!foreign()) {
    EXPECT_NE(ack_of(kSetProtocolFeatures, *features | 1ULL << 50), 0U);
  }
}

// ---- owner ----

TEST_F(VhostUser, SetOwnerMayComeAgain) {
  EXPECT_EQ(ack(kSetOwner), 0U);
}

TEST_F(VhostUser, ResetOwnerStopsTheQueues) {
  if (foreign()) GTEST_SKIP();
  still_serving_ = false;
  EXPECT_EQ(ack(kResetOwner), 0U);
}

// ---- memory ----

TEST_F(VhostUser, SetMemTableAgainWhileRunningKeepsServing) {
  const std::vector<int> fds(vmm().ram().regions().size(), vmm().ram().fd().number());
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(ack(kSetMemTable, vmm().memory_table(), fds), 0U);
    EXPECT_DONE(fuse().getattr(kRoot));
  }
}

TEST_F(VhostUser, SetMemTableRefusesWhatItShould) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon dies";
  const std::vector<std::byte> good = vmm().memory_table();
  const std::vector<int> fds(2, vmm().ram().fd().number());
  const std::uint64_t before = descriptors();
  EXPECT_NE(ack(kSetMemTable, good, std::span{fds}.first(1)), 0U) << "too few descriptors";
  EXPECT_NE(ack(kSetMemTable, good, {}), 0U) << "no descriptors";
  std::vector<std::byte> cut(good.begin(), good.end() - 8);
  EXPECT_NE(ack(kSetMemTable, cut, fds), 0U) << "payload cut short";
  const auto twisted = [&](std::size_t field, std::uint64_t value) {
    std::vector<std::byte> table = good;
    std::memcpy(table.data() + 8 + field * 8, &value, 8);
    return table;
  };
  EXPECT_NE(ack(kSetMemTable, twisted(1, ~0ULL), fds), 0U) << "a size that wraps";
  EXPECT_NE(ack(kSetMemTable, twisted(1, 1ULL << 40), fds), 0U) << "a region past its file";
  EXPECT_NE(ack(kSetMemTable, twisted(0, ~0ULL - 4096), fds), 0U) << "a guest address that wraps";
  EXPECT_NE(ack(kSetMemTable, twisted(3, ~0ULL - 4095), fds), 0U) << "an offset that wraps";
  EXPECT_NE(ack(kSetMemTable, twisted(0, vmm().ram().regions()[1].guest), fds), 0U) << "overlap";
  std::vector<std::byte> many(8 + 9 * sizeof(MemoryRegion));
  const std::uint32_t nine = 9;
  std::memcpy(many.data(), &nine, 4);
  EXPECT_NE(ack(kSetMemTable, many, fds), 0U) << "more regions than there may be";
  EXPECT_EQ(descriptors(), before) << "descriptors that came with refused tables stay open";
}

TEST_F(VhostUser, MemoryComesAndGoesInSlots) {
  const auto slots = vmm().ask_u64(kGetMaxMemSlots);
  ASSERT_TRUE(slots);
  EXPECT_GE(*slots, 8U);
  const UniqueFd extra{memfd_create("extra", MFD_CLOEXEC)};
  ASSERT_EQ(ftruncate(extra.number(), 1 << 20), 0);
  struct {
    std::uint64_t padding = 0;
    MemoryRegion region{
        .guest = 0x100'0000'0000, .size = 1 << 20, .vmm = 0x7f80'0000'0000, .offset = 0};
  } slot;
  const int fds[] = {extra.number()};
  EXPECT_EQ(ack_of(kAddMemReg, slot, fds), 0U);
  EXPECT_DONE(fuse().getattr(kRoot));
  if (!foreign()) {
    EXPECT_NE(ack_of(kAddMemReg, slot, fds), 0U) << "the same region twice";
  }
  EXPECT_EQ(ack_of(kRemMemReg, slot), 0U);
  EXPECT_DONE(fuse().getattr(kRoot));
  if (!foreign()) {
    EXPECT_NE(ack_of(kRemMemReg, slot), 0U) << "a region that isn't there";
    EXPECT_NE(ack_of(kAddMemReg, slot), 0U) << "no descriptor";
    EXPECT_EQ(ack_of(kAddMemReg, slot, fds), 0U);
    EXPECT_EQ(ack_of(kRemMemReg, slot, fds), 0U) << "a descriptor may come along";
  }
}

TEST_F(VhostUser, AddMemRegRefusesWhatItShould) {
  if (foreign()) GTEST_SKIP();
  const std::uint64_t before = descriptors();
  const int fds[] = {vmm().ram().fd().number()};
  struct {
    std::uint64_t padding = 0;
    MemoryRegion region{
        .guest = 0x100'0000'0000, .size = 1 << 20, .vmm = 0x7f80'0000'0000, .offset = 1ULL << 40};
  } past_file;
  EXPECT_NE(ack_of(kAddMemReg, past_file, fds), 0U);
  auto zero = past_file;
  zero.region.size = 0;
  zero.region.offset = 0;
  EXPECT_NE(ack_of(kAddMemReg, zero, fds), 0U);
  auto overlap = past_file;
  overlap.region.offset = 0;
  overlap.region.guest = vmm().ram().regions()[0].guest + 4096;
  EXPECT_NE(ack_of(kAddMemReg, overlap, fds), 0U);
  EXPECT_EQ(descriptors(), before);
}

TEST_F(VhostUser, MemoryCanBeSharedSlotBySlot) {
  FrontEndOptions options;
  options.add_mem_reg = true;
  DeviceFixture::TearDown();
  client_.reset();
  front_end_.reset();
  START({}, options);
  EXPECT_DONE(fuse().getattr(kRoot));
}

// ---- rings ----

TEST_F(VhostUser, GetVringBaseTellsHowFarTheQueueCame) {
  for (int i = 0; i < 5; ++i) EXPECT_DONE(fuse().getattr(kRoot));
  const auto base = vmm().stop_queue(1);
  ASSERT_TRUE(base) << base.error().text();
  EXPECT_EQ(*base, 6U);  // INIT and five more
  ASSERT_OK(vmm().start_queue(1));
  EXPECT_DONE(fuse().getattr(kRoot));
}

TEST_F(VhostUser, AStoppedQueueDoesNothingUntilItStartsAgain) {
  const auto base = vmm().stop_queue(1);
  ASSERT_TRUE(base);
  const auto slot = fuse().begin(FUSE_STATFS, kRoot, {}, sizeof(fuse_statfs_out));
  ASSERT_TRUE(slot);
  vmm().ring(1).kick();
  ASSERT_TRUE(vmm().ask_u64(kGetFeatures));  // a round trip, so the kick has had its chance
  EXPECT_FALSE(fuse().done(*slot));
  ASSERT_OK(vmm().start_queue(1));
  EXPECT_EQ(fuse().finish(*slot).error, 0);
}

TEST_F(VhostUser, ADisabledQueueServesWhenItIsEnabledAgain) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon goes on serving";
  EXPECT_EQ(ack_of(kSetVringEnable, state(1, 0)), 0U);
  const auto slot = fuse().begin(FUSE_STATFS, kRoot, {}, sizeof(fuse_statfs_out));
  ASSERT_TRUE(slot);
  ASSERT_TRUE(vmm().ask_u64(kGetFeatures));
  EXPECT_EQ(ack_of(kSetVringEnable, state(1, 1)), 0U);
  EXPECT_EQ(fuse().finish(*slot).error, 0);
}

TEST_F(VhostUser, RingRequestsRefuseAnIndexThatIsNone) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon ends or writes past its table";
  for (const std::uint32_t index : {65U, 255U, 256U, 0xffff'ffffU}) {
    EXPECT_NE(ack_of(kSetVringNum, state(index, 128)), 0U) << index;
    EXPECT_NE(ack_of(kSetVringBase, state(index, 0)), 0U) << index;
    EXPECT_NE(ack_of(kSetVringEnable, state(index, 1)), 0U) << index;
    VringAddress address = vmm().vring_address(1);
    address.index = index;
    EXPECT_NE(ack_of(kSetVringAddr, address), 0U) << index;
    const VringState asked = state(index, 0);
    const auto reply = vmm().ask(kGetVringBase, bytes_of(asked));
    ASSERT_TRUE(reply) << reply.error().text();
    EXPECT_NE(reply->payload.size(), sizeof(VringState)) << index;
  }
  const std::uint64_t before = descriptors();
  const int fds[] = {vmm().kick_fd(1).number()};
  for (const std::uint32_t request : {kSetVringKick, kSetVringCall, kSetVringErr}) {
    EXPECT_NE(ack_of(request, std::uint64_t{200}, fds), 0U) << request;
  }
  EXPECT_EQ(descriptors(), before);
}

TEST_F(VhostUser, RingSizesAreChecked) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon checks none";
  for (const std::uint32_t size : {0U, 65536U, 0xffff'ffffU}) {
    EXPECT_NE(ack_of(kSetVringNum, state(2, size)), 0U) << size;
  }
  for (const std::uint32_t size : {1U, 2U, 1024U, 32768U}) {
    EXPECT_EQ(ack_of(kSetVringNum, state(2, size)), 0U) << size;
  }
  for (const std::uint32_t size : {3U, 100U}) {
    EXPECT_TRUE(ring_is_refused(size, vmm().vring_address(1)))
        << "split, no power of two: " << size;
  }
}

TEST_F(VhostUser, ARingOutsideMemoryNeverStarts) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon ends";
  const VringAddress good = vmm().vring_address(1);
  const GuestRam::Region& low = vmm().ram().regions()[0];
  for (const std::uint64_t bad : {std::uint64_t{0x1000}, ~std::uint64_t{15}, good.descriptors + 1,
                                  low.vmm + low.size - 16, std::uint64_t{0}}) {
    VringAddress descriptors = good;
    descriptors.descriptors = bad;
    EXPECT_TRUE(ring_is_refused(128, descriptors)) << std::hex << bad;
    VringAddress used = good;
    used.used = bad;
    EXPECT_TRUE(ring_is_refused(128, used)) << std::hex << bad;
    VringAddress available = good;
    available.available = bad;
    EXPECT_TRUE(ring_is_refused(128, available)) << std::hex << bad;
  }
}

TEST_F(VhostUser, KickCallAndErrTakeExactlyTheirDescriptor) {
  if (foreign()) GTEST_SKIP();
  const std::uint64_t before = descriptors();
  const int two[] = {vmm().kick_fd(1).number(), vmm().kick_fd(1).number()};
  for (const std::uint32_t request : {kSetVringKick, kSetVringCall, kSetVringErr}) {
    EXPECT_NE(ack_of(request, std::uint64_t{5}), 0U) << "none where one is due: " << request;
    EXPECT_NE(ack_of(request, std::uint64_t{5}, two), 0U) << "two: " << request;
    EXPECT_EQ(descriptors(), before) << request;
  }
  EXPECT_EQ(ack_of(kSetVringCall, 5 | kVringNoFd), 0U);
  EXPECT_EQ(ack_of(kSetVringErr, 5 | kVringNoFd), 0U);
}

TEST_F(VhostUser, TheCallDescriptorCanBeChangedWhileRunning) {
  const UniqueFd call{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  const int fds[] = {call.number()};
  EXPECT_EQ(ack_of(kSetVringCall, std::uint64_t{1}, fds), 0U);
  vmm().ring(1).set_notifiers(vmm().kick_fd(1), call);
  EXPECT_DONE(fuse().getattr(kRoot));
  EXPECT_GT(vmm().ring(1).calls(), 0U);
  EXPECT_DONE(fuse().getattr(kRoot));
}

TEST_F(VhostUser, AFullCallDescriptorBlocksNobody) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon hangs in write";
  const UniqueFd call{eventfd(0, EFD_CLOEXEC)};
  const std::uint64_t full = ~0ULL - 1;
  ASSERT_EQ(write(call.number(), &full, 8), 8);
  const int fds[] = {call.number()};
  EXPECT_EQ(ack_of(kSetVringCall, std::uint64_t{1}, fds), 0U);
  DriverRing& ring = vmm().ring(1);
  for (int i = 0; i < 3; ++i) {
    const auto slot = fuse().begin(FUSE_STATFS, kRoot, {}, sizeof(fuse_statfs_out));
    ASSERT_TRUE(slot);
    ring.available_flags().store(0);  // calls wanted
    const Deadline deadline = vmm().deadline();
    while (!fuse().done(*slot)) ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    EXPECT_EQ(fuse().finish(*slot).error, 0);
  }
  ASSERT_TRUE(vmm().ask_u64(kGetFeatures));
  const int old[] = {vmm().call_fd(1).number()};
  EXPECT_EQ(ack_of(kSetVringCall, std::uint64_t{1}, old), 0U);
}

TEST_F(VhostUser, ThereAreQueuesEnoughForEveryCpu) {
  const auto queues = vmm().ask_u64(kGetQueueNum);
  ASSERT_TRUE(queues);
  EXPECT_GE(*queues, foreign() ? 2U : 65U);
}

// ---- dirty log ----

TEST_F(VhostUser, EveryPageWrittenIsLogged) {
  tree().write("file", std::string(20000, 'x'));
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  ASSERT_OK(vmm().start_dirty_log());
  vmm().clear_dirty_log();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 20000)).size(), 20000U);
  // The client's next slot is the one it used: the reply header's page, the data's, the ring's.
  const std::uint32_t slot = *requests_->acquire();
  bool data_logged = false;
  bool header_logged = false;
  for (std::uint32_t other = 0; other < requests_->options().slots; ++other) {
    const Block data = requests_->data_block(other);
    if (vmm().dirty(data.guest)) {
      data_logged = true;
      for (int page = 0; page < 5; ++page)
        EXPECT_TRUE(vmm().dirty(data.guest + page * 4096U)) << page;
      EXPECT_FALSE(vmm().dirty(data.guest + 5 * 4096U)) << "more than was written";
      header_logged = vmm().dirty(requests_->out_block(other).guest);
    }
    EXPECT_FALSE(vmm().dirty(requests_->in_block(other).guest)) << "a page that was only read";
  }
  requests_->release(slot);
  EXPECT_TRUE(data_logged);
  EXPECT_TRUE(header_logged);
  EXPECT_TRUE(vmm().dirty(vmm().ring(1).device_area())) << "the used ring";
  ASSERT_OK(vmm().stop_dirty_log());
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 20000)).size(), 20000U);
  vmm().clear_dirty_log();
  EXPECT_EQ(GET(fuse().read(file, handle, 0, 20000)).size(), 20000U);
  EXPECT_FALSE(vmm().dirty(vmm().ring(1).device_area()));
  EXPECT_DONE(fuse().release(file, handle));
}

TEST_F(VhostUser, SetLogBaseRefusesWhatItShould) {
  if (foreign()) GTEST_SKIP();
  const std::uint64_t before = descriptors();
  const UniqueFd log{memfd_create("log", MFD_CLOEXEC)};
  ASSERT_EQ(ftruncate(log.number(), 4096), 0);
  const int fds[] = {log.number()};
  const LogArea past_file{.size = 1ULL << 40, .offset = 0};
  const auto refused = vmm().ask_u64(kSetLogBase, bytes_of(past_file), fds);
  ASSERT_TRUE(refused) << refused.error().text();
  EXPECT_NE(*refused, 0U);
  const LogArea fine{.size = 4096, .offset = 0};
  const auto without = vmm().ask_u64(kSetLogBase, bytes_of(fine));
  ASSERT_TRUE(without) << without.error().text();
  EXPECT_NE(*without, 0U);
  EXPECT_EQ(descriptors(), before);
}

TEST_F(VhostUser, SetLogFdTakesADescriptor) {
  const UniqueFd event{eventfd(0, EFD_CLOEXEC)};
  const int fds[] = {event.number()};
  EXPECT_EQ(ack(kSetLogFd, {}, fds), 0U);
}

// ---- config, status, reset, channels ----

class VhostUserTag : public DeviceFixture {
 protected:
  void SetUp() override {
    if (foreign()) GTEST_SKIP() << "needs --tag";
    START({"--tag=shared-files", "--num-request-queues=3"});
  }
};

TEST_F(VhostUserTag, GetConfigTellsTagAndQueues) {
  const auto config = vmm().config(0, 40);
  ASSERT_TRUE(config) << config.error().text();
  EXPECT_STREQ(reinterpret_cast<const char*>(config->data()), "shared-files");
  std::uint32_t queues = 0;
  std::memcpy(&queues, config->data() + 36, 4);
  EXPECT_EQ(queues, 3U);
}

TEST_F(VhostUserTag, GetConfigAnswersAnyPartWithItsOwnSize) {
  const auto part = vmm().config(7, 5);
  ASSERT_TRUE(part);
  EXPECT_EQ(std::memcmp(part->data(), "files", 5), 0);
  const auto longer = vmm().config(36, 60);
  ASSERT_TRUE(longer);
  EXPECT_EQ(longer->size(), 60U);
  for (std::size_t i = 4; i < 60; ++i) EXPECT_EQ((*longer)[i], std::byte{0}) << i;
}

TEST_F(VhostUserTag, GetConfigThatLiesAboutItsSizeHurtsNobody) {
  std::vector<std::byte> payload(kConfigHeaderSize + 8);
  const std::uint32_t head[3] = {0, 4000, 0};
  std::memcpy(payload.data(), head, sizeof(head));
  const auto reply = vmm().ask(kGetConfig, payload);
  ASSERT_TRUE(reply) << reply.error().text();
  const std::uint32_t huge[3] = {0, 0xffff'fff0, 0};
  std::memcpy(payload.data(), huge, sizeof(huge));
  const auto refused = vmm().ask(kGetConfig, payload);
  ASSERT_TRUE(refused) << refused.error().text();
  EXPECT_EQ(refused->payload.size(), 0U);
  EXPECT_DONE(fuse().getattr(kRoot));
}

TEST_F(VhostUserTag, SetConfigIsRefused) {
  std::vector<std::byte> payload(kConfigHeaderSize + 4);
  const std::uint32_t head[3] = {36, 4, 0};
  std::memcpy(payload.data(), head, sizeof(head));
  const auto answer = vmm().acknowledged(kSetConfig, payload);
  ASSERT_TRUE(answer) << answer.error().text();
  EXPECT_NE(*answer, 0U);
}

TEST_F(VhostUser, StatusIsKept) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon has no STATUS";
  EXPECT_EQ(ack_of(kSetStatus, std::uint64_t{15}), 0U);
  const auto status = vmm().ask_u64(kGetStatus);
  ASSERT_TRUE(status);
  EXPECT_EQ(*status, 15U);
}

TEST_F(VhostUser, ResetDeviceStopsQueuesAndForgetsTheGuest) {
  if (foreign()) GTEST_SKIP();
  tree().write("file", "x");
  const std::uint64_t file = node("file");
  EXPECT_EQ(ack(kResetDevice), 0U);
  // As a guest that reboots: rings from scratch, then INIT.
  for (unsigned i = 0; i < vmm().queue_count(); ++i) {
    vmm().ring(i).reset();
    ASSERT_OK(vmm().start_queue(i));
  }
  EXPECT_REFUSED(EIO, fuse().getattr(kRoot));
  ASSERT_TRUE(fuse().init());
  EXPECT_FALSE(fuse().getattr(file));
}

TEST_F(VhostUser, TheBackendChannelTakesExactlyOneDescriptor) {
  if (foreign()) GTEST_SKIP();
  const std::uint64_t before = descriptors();
  EXPECT_NE(ack(kSetBackendReqFd), 0U);
  const int two[] = {vmm().kick_fd(0).number(), vmm().kick_fd(1).number()};
  EXPECT_NE(ack(kSetBackendReqFd, {}, two), 0U);
  EXPECT_EQ(descriptors(), before);
}

// ---- what nobody negotiated, what nobody knows, what is no message ----

TEST_F(VhostUser, UnknownRequestsAreRefusedAndTheirDescriptorsClosed) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon ends";
  const std::uint64_t before = descriptors();
  const int fds[] = {vmm().kick_fd(0).number(), vmm().kick_fd(1).number()};
  const std::array<std::byte, 100> payload{};
  for (const std::uint32_t request : {0U, 19U, 22U, 27U, 33U, 45U, 100U, 0xffff'ffffU}) {
    EXPECT_NE(ack(request, payload, fds), 0U) << request;
    EXPECT_EQ(descriptors(), before) << request;
  }
}

TEST_F(VhostUser, MessagesOfTheWrongSizeAreRefused) {
  if (foreign()) GTEST_SKIP();
  const std::array<std::byte, 64> payload{};
  for (const std::uint32_t request :
       {kSetOwner, kSetFeatures, kSetVringNum, kSetVringAddr, kSetVringBase, kSetVringKick,
        kSetVringCall, kSetVringErr, kSetVringEnable, kSetProtocolFeatures, kAddMemReg,
        kRemMemReg}) {
    EXPECT_NE(ack(request, std::span{payload}.first(5)), 0U) << request;
    EXPECT_NE(ack(request, payload), 0U) << request;
  }
}

TEST_F(VhostUser, AMessageInSingleBytesIsUnderstood) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon takes a short read for the end";
  struct {
    MessageHeader header{
        .request = kSetVringEnable, .flags = kMessageVersion | kMessageNeedReply, .size = 8};
    VringState state{.index = 1, .value = 1};
  } message;
  for (const std::byte& byte : bytes_of(message)) ASSERT_OK(vmm().send_raw({&byte, 1}));
  const auto reply = vmm().receive();
  ASSERT_TRUE(reply) << reply.error().text();
  EXPECT_EQ(reply->request, kSetVringEnable);
  EXPECT_EQ(reply->as<std::uint64_t>(), 0U);
}

TEST_F(VhostUser, AReplyHasExactlyVersionAndReplyFlags) {
  ASSERT_OK(send_message(vmm().socket(), kGetFeatures, 0, {}));
  const auto reply = vmm().receive();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->flags, 5U);
}

class VhostUserEnd : public DeviceFixture {
 protected:
  void SetUp() override {
    if (foreign()) GTEST_SKIP() << "QEMU's daemon ends with failure";
    START();
    expect_exit(false);
  }
  // The connection ends; the daemon follows without a crash.
  void expect_hang_up() {
    EXPECT_TRUE(vmm().closed_by_peer());
    const auto status = daemon().wait(within(std::chrono::seconds(5)));
    ASSERT_TRUE(status);
    EXPECT_TRUE(WIFEXITED(*status)) << "killed: " << *status;
  }
};

TEST_F(VhostUserEnd, AVersionThatIsNotOursEndsTheConnection) {
  const MessageHeader header{.request = kGetFeatures, .flags = 2, .size = 0};
  ASSERT_OK(vmm().send_raw(bytes_of(header)));
  expect_hang_up();
}

TEST_F(VhostUserEnd, AnImpossibleSizeEndsTheConnection) {
  const MessageHeader header{
      .request = kSetMemTable, .flags = kMessageVersion, .size = 0xffff'fff0};
  ASSERT_OK(vmm().send_raw(bytes_of(header)));
  expect_hang_up();
}

TEST_F(VhostUserEnd, HangingUpInTheMiddleOfAMessageIsAnOrderlyEnd) {
  const MessageHeader header{.request = kSetFeatures, .flags = kMessageVersion, .size = 8};
  ASSERT_OK(vmm().send_raw(bytes_of(header).first(7)));
  vmm().close();
  const auto status = daemon().wait(within(std::chrono::seconds(5)));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status));
}

// ---- front-ends' own ways ----

TEST(VhostUserStyles, UserModeLinuxSetsItUpItsWay) {
  if (DaemonProcess::kind_of(DaemonProcess::default_binary()) != DaemonKind::kOurs)
    GTEST_SKIP() << "needs --tag";
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  TempTree tree;
  tree.write("file", "seen");
  DaemonOptions options;
  options.shared_directory = tree.root();
  options.arguments = {"--tag=uml"};
  auto daemon = DaemonProcess::start(options);
  ASSERT_TRUE(daemon) << daemon.error().text();
  FrontEndOptions style;
  style.style = FrontEndOptions::Style::kUml;
  style.ring.event_idx = true;
  auto front_end = FrontEnd::adopt((*daemon)->take_connection(), style);
  ASSERT_TRUE(front_end) << front_end.error().text();
  ASSERT_OK((*front_end)->set_up());
  FuseQueue requests{**front_end, 1};
  FuseQueue urgent{**front_end, 0, {.slots = 2, .data_bytes = 0}};
  FuseClient fuse{requests, urgent};
  ASSERT_TRUE(fuse.init());
  const fuse_entry_out entry = GET(fuse.lookup(FuseClient::kRoot, "file"));
  const std::uint64_t handle = GET(fuse.open(entry.nodeid, O_RDONLY)).fh;
  EXPECT_EQ(GET(fuse.read(entry.nodeid, handle, 0, 100)), "seen");
  EXPECT_TRUE(fuse.violations().empty()) << fuse.violations().front();
}

TEST(VhostUserStyles, AListeningDescriptorWillDo) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  TempTree tree;
  DaemonOptions options;
  options.shared_directory = tree.root();
  options.listening_fd = true;
  auto daemon = DaemonProcess::start(options);
  ASSERT_TRUE(daemon) << daemon.error().text();
  auto front_end = FrontEnd::adopt((*daemon)->take_connection(), {});
  ASSERT_TRUE(front_end);
  ASSERT_OK((*front_end)->set_up());
}

TEST(VhostUserStyles, WithoutProtocolFeaturesRingsStartByTheirKick) {
  if (DaemonProcess::kind_of(DaemonProcess::default_binary()) != DaemonKind::kOurs) GTEST_SKIP();
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  TempTree tree;
  DaemonOptions options;
  options.shared_directory = tree.root();
  auto daemon = DaemonProcess::start(options);
  ASSERT_TRUE(daemon) << daemon.error().text();
  auto made = FrontEnd::adopt((*daemon)->take_connection(), {});
  ASSERT_TRUE(made);
  FrontEnd& vmm = **made;
  ASSERT_OK(vmm.tell(kSetOwner));
  ASSERT_TRUE(vmm.ask_u64(kGetFeatures));
  ASSERT_OK(vmm.tell_u64(kSetFeatures, kFeatureVersion1));
  ASSERT_OK(vmm.share_memory());
  for (std::uint32_t i = 0; i < 2; ++i) {
    ASSERT_OK(vmm.tell_vring(kSetVringNum, i, 128));
    ASSERT_OK(vmm.tell_vring(kSetVringBase, i, 0));
    const VringAddress address = vmm.vring_address(i);
    ASSERT_OK(vmm.tell(kSetVringAddr, bytes_of(address)));
    const int call[] = {vmm.call_fd(i).number()};
    ASSERT_OK(vmm.tell_u64(kSetVringCall, i, call));
    const int kick[] = {vmm.kick_fd(i).number()};
    ASSERT_OK(vmm.tell_u64(kSetVringKick, i, kick));
  }
  FuseQueue requests{vmm, 1};
  FuseQueue urgent{vmm, 0, {.slots = 2, .data_bytes = 0}};
  FuseClient fuse{requests, urgent};
  EXPECT_TRUE(fuse.init());
}

}  // namespace
}  // namespace virtiofsd::guest
