// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Rings that break the rules stop their own queue; chains that keep the rules
// but name bad memory are answered with an error.
#include <fcntl.h>
#include <unistd.h>

#include <array>

#include "tests/faults/fixture.h"

namespace virtiofsd::guest {
namespace {

constexpr std::uint16_t kRingSize = 64;
constexpr std::uint64_t kMiB = 1ULL << 20;
// Two regions that touch for the guest and for nobody else, a gap, a third one.
constexpr std::uint64_t kTouch = 64 * kMiB;
constexpr std::uint64_t kGap = 128 * kMiB;
constexpr std::uint64_t kNowhere = 0x7f00'0000'0000ULL;

FrontEndOptions touching_regions(bool packed) {
  FrontEndOptions options;
  options.memory = {{.guest = 0, .vmm = 0x7100'0000'0000, .size = kTouch},
                    {.guest = kTouch, .vmm = 0x7300'0000'0000, .size = kGap - kTouch},
                    {.guest = 1024 * kMiB, .vmm = 0x7200'0000'0000, .size = 64 * kMiB}};
  options.ring = {.size = kRingSize, .packed = packed, .indirect = true};
  return options;
}

class RingFault : public FaultFixture, public ::testing::WithParamInterface<bool> {
 protected:
  void SetUp() override { attack({}, touching_regions(GetParam())); }
  std::vector<std::byte> getattr() { return request(FUSE_GETATTR, kRoot, fuse_getattr_in{}); }
  // Writes bytes across a region's end.
  void put(std::uint64_t guest, std::span<const std::byte> bytes) {
    for (std::size_t i = 0; i < bytes.size(); ++i) *vmm().ram().at(guest + i, 1) = bytes[i];
  }
  template <typename T>
  T get(std::uint64_t guest) {
    std::array<std::byte, sizeof(T)> bytes;
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = *vmm().ram().at(guest + i, 1);
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
};

INSTANTIATE_TEST_SUITE_P(Rings, RingFault, ::testing::Values(false, true),
                         [](const auto& packed) { return packed.param ? "Packed" : "Split"; });

// ---- what breaks a ring, whatever its format ----

TEST_P(RingFault, WritableBeforeReadable) {
  const auto bytes = getattr();
  offer({writable(), readable(bytes)});
  expect_this_queue_stopped();
}

TEST_P(RingFault, WritableBeforeReadableInAnIndirectTable) {
  const auto bytes = getattr();
  const RawDescriptor entries[] = {writable(), readable(bytes)};
  offer({{.address = indirect_table(entries), .size = 32, .flags = VRING_DESC_F_INDIRECT}});
  expect_this_queue_stopped();
}

TEST_P(RingFault, AnIndirectTableOfNoBytes) {
  offer({{.address = in_.guest, .size = 0, .flags = VRING_DESC_F_INDIRECT}});
  expect_this_queue_stopped();
}

TEST_P(RingFault, AnIndirectTableOfHalfAnEntry) {
  for (const std::uint32_t size : {1U, 15U, 17U, 0xffff'ffffU}) {
    offer({{.address = in_.guest, .size = size, .flags = VRING_DESC_F_INDIRECT}});
    expect_this_queue_stopped();
  }
}

TEST_P(RingFault, AnIndirectTableInAnIndirectTable) {
  const RawDescriptor inner[] = {
      {.address = in_.guest, .size = 16, .flags = VRING_DESC_F_INDIRECT}};
  offer({{.address = indirect_table(inner), .size = 16, .flags = VRING_DESC_F_INDIRECT}});
  expect_this_queue_stopped();
}

TEST_P(RingFault, AnIndirectTableThatIsNotTheEndOfItsChain) {
  const auto bytes = getattr();
  const RawDescriptor entries[] = {readable(bytes)};
  offer({{.address = indirect_table(entries), .size = 16, .flags = VRING_DESC_F_INDIRECT},
         writable()});
  expect_this_queue_stopped();
}

TEST_P(RingFault, AnIndirectTableLongerThanTheRing) {
  const std::vector<RawDescriptor> entries(kRingSize + 1,
                                           {.address = in_.guest, .size = 1, .flags = 0});
  offer({{.address = indirect_table(entries),
          .size = (kRingSize + 1) * 16,
          .flags = VRING_DESC_F_INDIRECT}});
  expect_this_queue_stopped();
}

TEST_P(RingFault, AnIndirectTableOfFourGigabytes) {
  std::memset(in_.host, 0, kInBytes);
  // It lies in no region as a whole: nothing in it can be known.
  offer({{.address = in_.guest, .size = 0xffff'fff0, .flags = VRING_DESC_F_INDIRECT}});
  EXPECT_EQ(wait_for_offered().length, 0U);
  restart_attacked_queue();
}

TEST_P(RingFault, MoreThanFourGigabytesOnOneSide) {
  std::vector<RawDescriptor> entries(
      50, {.address = 0, .size = 0x0800'0000, .flags = VRING_DESC_F_WRITE});
  for (const std::uint16_t flags : {std::uint16_t{0}, std::uint16_t{VRING_DESC_F_WRITE}}) {
    for (RawDescriptor& entry : entries) entry.flags = flags;
    offer({{.address = indirect_table(entries),
            .size = static_cast<std::uint32_t>(entries.size() * 16),
            .flags = VRING_DESC_F_INDIRECT}});
    expect_this_queue_stopped();
  }
}

// ---- what is an error of one request ----

TEST_P(RingFault, ABufferOfFourGigabytesThatIsNotThere) {
  const auto bytes = getattr();
  offer(
      {readable(bytes), {.address = out_.guest, .size = 0xffff'ffff, .flags = VRING_DESC_F_WRITE}});
  EXPECT_EQ(wait_for_offered().length, 0U);
  restart_attacked_queue();
}

TEST_P(RingFault, ARequestInNoRegionIsReturned) {
  const Buffer from[] = {{.guest = kNowhere, .size = 56}};
  const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
  EXPECT_EQ(send(from, to).length, 0U);
}

TEST_P(RingFault, ArgumentsInNoRegionAreEfault) {
  const auto bytes = getattr();
  std::memcpy(in_.host, bytes.data(), bytes.size());
  const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
  for (const std::uint64_t bad :
       {kNowhere, kGap, kGap - 8, ~std::uint64_t{0}, ~std::uint64_t{0} - 8}) {
    const Buffer from[] = {{.guest = in_.guest, .size = sizeof(fuse_in_header)},
                           {.guest = bad, .size = sizeof(fuse_getattr_in)}};
    EXPECT_EQ(send(from, to).error(), EFAULT) << std::hex << bad;
  }
}

TEST_P(RingFault, AReplyInNoRegionIsEfaultOrNothing) {
  const auto bytes = getattr();
  std::memcpy(in_.host, bytes.data(), bytes.size());
  const Buffer from[] = {{.guest = in_.guest, .size = static_cast<std::uint32_t>(bytes.size())}};
  const Buffer nothing[] = {{.guest = kNowhere, .size = 4096}};
  EXPECT_EQ(send(from, nothing).length, 0U);
  const Buffer header_only[] = {{.guest = out_.guest, .size = 16}, {.guest = kGap, .size = 4096}};
  EXPECT_EQ(send(from, header_only).error(), EFAULT);
}

TEST_P(RingFault, AnIndirectTableInNoRegionIsReturned) {
  offer({{.address = kNowhere, .size = 64, .flags = VRING_DESC_F_INDIRECT}});
  EXPECT_EQ(wait_for_offered().length, 0U);
  restart_attacked_queue();
}

TEST_P(RingFault, EmptyDescriptorsAreSkipped) {
  const auto bytes = getattr();
  std::memcpy(in_.host, bytes.data(), bytes.size());
  const auto size = static_cast<std::uint32_t>(bytes.size());
  const Buffer from[] = {{.guest = kNowhere, .size = 0},
                         {.guest = in_.guest, .size = size},
                         {.guest = in_.guest, .size = 0}};
  const Buffer to[] = {{.guest = out_.guest, .size = 0}, {.guest = out_.guest, .size = 4096}};
  const Answer answer = send(from, to);
  EXPECT_EQ(answer.error(), 0);
  EXPECT_EQ(answer.length, sizeof(fuse_out_header) + sizeof(fuse_attr_out));
}

TEST_P(RingFault, ChainsWithoutARequestAreReturned) {
  const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
  EXPECT_EQ(send(std::span<const Buffer>{}, to).length, 0U);
  const Buffer none[] = {{.guest = in_.guest, .size = 0}};
  EXPECT_EQ(send(none, std::span<const Buffer>{}).length, 0U);
}

TEST_P(RingFault, ARequestWithoutRoomForItsReplyIsReturned) {
  for (std::size_t room = 0; room < sizeof(fuse_out_header); ++room) {
    EXPECT_EQ(send(getattr(), room).length, 0U) << room;
  }
  for (std::size_t room = 16; room < 16 + sizeof(fuse_attr_out); ++room) {
    EXPECT_EQ(send(getattr(), room).error(), EINVAL) << room;
  }
}

// ---- what just works ----

TEST_P(RingFault, BuffersThatSpanTwoTouchingRegions) {
  for (std::uint32_t before = 1; before < 56; before += 5) {
    const auto bytes = getattr();
    put(kTouch - before, bytes);
    const Buffer from[] = {
        {.guest = kTouch - before, .size = static_cast<std::uint32_t>(bytes.size())}};
    const Buffer to[] = {{.guest = kTouch + 4096 - before, .size = 4096}};
    const Answer answer = send(from, to);
    EXPECT_EQ(answer.length, sizeof(fuse_out_header) + sizeof(fuse_attr_out));
    EXPECT_EQ(get<fuse_out_header>(kTouch + 4096 - before).error, 0);
    const Buffer across[] = {{.guest = kTouch - before, .size = 4096}};
    std::memcpy(in_.host, bytes.data(), bytes.size());
    const Buffer plain[] = {{.guest = in_.guest, .size = static_cast<std::uint32_t>(bytes.size())}};
    EXPECT_EQ(send(plain, across).length, sizeof(fuse_out_header) + sizeof(fuse_attr_out));
    EXPECT_EQ(get<fuse_out_header>(kTouch - before).error, 0);
  }
}

// Where one library wrote past its stack: entries are counted in bytes here.
TEST_P(RingFault, AnIndirectTableThatSpansTwoTouchingRegions) {
  for (const std::uint32_t before : {16U, 8U, 1U, 40U}) {
    const auto bytes = getattr();
    const RawDescriptor entries[] = {
        readable(bytes), {.address = in_.guest, .size = 0, .flags = 0}, writable()};
    const std::uint64_t elsewhere = indirect_table(entries);
    put(kTouch - before, {vmm().ram().at(elsewhere, 48), 48});
    offer({{.address = kTouch - before, .size = 48, .flags = VRING_DESC_F_INDIRECT}});
    const Answer answer = wait_for_offered();
    EXPECT_EQ(answer.length, sizeof(fuse_out_header) + sizeof(fuse_attr_out)) << before;
    EXPECT_EQ(answer.head.error, 0);
    restart_attacked_queue();
  }
}

TEST_P(RingFault, FileDataAcrossTwoTouchingRegions) {
  std::string content(100'000, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 + (i >> 8));
  tree().write("data", content);
  const std::uint64_t file = node("data");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  fuse_read_in in{};
  in.fh = handle;
  in.size = 65536;
  const auto bytes = request(FUSE_READ, file, in);
  std::memcpy(in_.host, bytes.data(), bytes.size());
  const Buffer from[] = {{.guest = in_.guest, .size = static_cast<std::uint32_t>(bytes.size())}};
  const Buffer to[] = {{.guest = out_.guest, .size = 16},
                       {.guest = kTouch - 30'000, .size = 65536}};
  EXPECT_EQ(send(from, to).length, 16U + 65536U);
  for (std::uint32_t i = 0; i < 65536; ++i) {
    ASSERT_EQ(std::to_integer<unsigned char>(*vmm().ram().at(kTouch - 30'000 + i, 1)),
              static_cast<unsigned char>(content[i]));
  }
}

// ---- the split ring's own ----

class SplitFault : public FaultFixture {
 protected:
  void SetUp() override { attack({}, touching_regions(false)); }
  DriverRing& ring() { return vmm().ring(kAttacked); }
  vring_desc* table() { return ring().split_descriptors(); }
  void kick_head(std::uint16_t head) {
    ring().make_available(head);
    ring().kick();
  }
};

TEST_F(SplitFault, AnAvailableIndexThatJumps) {
  for (const int jump : {kRingSize + 1, 1000, 32768, 65535}) {
    ring().available_index().fetch_add(static_cast<std::uint16_t>(jump));
    ring().kick();
    expect_this_queue_stopped();
  }
}

TEST_F(SplitFault, AnAvailableIndexThatJumpsAsFarAsTheRingIsLong) {
  const auto bytes = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
  const RawDescriptor from = readable(bytes);
  const RawDescriptor to = writable();
  table()[0] = {.addr = from.address, .len = from.size, .flags = VRING_DESC_F_NEXT, .next = 1};
  table()[1] = {.addr = to.address, .len = to.size, .flags = VRING_DESC_F_WRITE, .next = 0};
  for (unsigned i = 0; i < kRingSize; ++i) ring().available_entry(i).store(0);
  const std::uint16_t before = ring().used_index().load();
  ring().available_index().fetch_add(kRingSize);
  ring().kick();
  while (ring().used_index().load() != static_cast<std::uint16_t>(before + kRingSize))
    ::usleep(100);
  restart_attacked_queue();
}

TEST_F(SplitFault, AHeadPastTheTable) {
  for (const std::uint16_t head : {kRingSize, std::uint16_t{1000}, std::uint16_t{0xffff}}) {
    kick_head(head);
    expect_this_queue_stopped();
  }
}

TEST_F(SplitFault, ADescriptorThatFollowsItself) {
  table()[0] = {.addr = in_.guest, .len = 8, .flags = VRING_DESC_F_NEXT, .next = 0};
  kick_head(0);
  expect_this_queue_stopped();
}

TEST_F(SplitFault, AChainThatLoops) {
  for (unsigned i = 0; i < kRingSize; ++i) {
    table()[i] = {.addr = in_.guest,
                  .len = 0,
                  .flags = VRING_DESC_F_NEXT,
                  .next = static_cast<std::uint16_t>((i + 1) % kRingSize)};
  }
  kick_head(7);
  expect_this_queue_stopped();
}

TEST_F(SplitFault, ANextPastTheTable) {
  table()[0] = {.addr = in_.guest, .len = 8, .flags = VRING_DESC_F_NEXT, .next = kRingSize};
  kick_head(0);
  expect_this_queue_stopped();
}

TEST_F(SplitFault, AnIndirectTableThatLoops) {
  const vring_desc entries[] = {
      {.addr = in_.guest + 4096, .len = 0, .flags = VRING_DESC_F_NEXT, .next = 1},
      {.addr = in_.guest + 4096, .len = 0, .flags = VRING_DESC_F_NEXT, .next = 0}};
  std::memcpy(in_.host, entries, sizeof entries);
  table()[0] = {.addr = in_.guest, .len = 32, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  kick_head(0);
  expect_this_queue_stopped();
}

TEST_F(SplitFault, AnIndirectEntryThatPointsPastItsTable) {
  const vring_desc entry{
      .addr = in_.guest + 4096, .len = 1, .flags = VRING_DESC_F_NEXT, .next = 0xffff};
  std::memcpy(in_.host, &entry, sizeof entry);
  table()[0] = {.addr = in_.guest, .len = 16, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  kick_head(0);
  expect_this_queue_stopped();
}

TEST_F(SplitFault, EveryDescriptorFlagAtOnce) {
  for (unsigned flags = 0; flags < 16; ++flags) {
    table()[0] = {
        .addr = in_.guest, .len = 16, .flags = static_cast<std::uint16_t>(flags), .next = 0};
    kick_head(0);
    restart_attacked_queue();
    EXPECT_DONE(clients_[2]->getattr(kRoot));
  }
}

// ---- the packed ring's own ----

class PackedFault : public FaultFixture {
 protected:
  void SetUp() override { attack({}, touching_regions(true)); }
};

TEST_F(PackedFault, AChainLongerThanTheRing) {
  DriverRing& ring = vmm().ring(kAttacked);
  const unsigned start = ring.position();
  const std::uint16_t now = ring.packed_available_flags();
  const auto later = static_cast<std::uint16_t>(now ^ ((1U << 7) | (1U << 15)));
  for (unsigned i = kRingSize; i-- > 0;) {
    ring.packed_descriptors()[(start + i) % kRingSize] = {
        .addr = in_.guest,
        .len = 8,
        .id = 1,
        .flags =
            static_cast<std::uint16_t>((start + i < kRingSize ? now : later) | VRING_DESC_F_NEXT)};
  }
  ring.kick();
  expect_this_queue_stopped();
}

TEST_F(PackedFault, AnIdThatMeansNothingComesBackAsItIs) {
  const auto bytes = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
  DriverRing& ring = vmm().ring(kAttacked);
  offer({readable(bytes), writable()});
  (void)wait_for_offered();
  EXPECT_EQ(ring.packed_descriptors()[ring.position()].id, 1);
  restart_attacked_queue();
}

TEST_F(PackedFault, EventSuppressionThatMeansNothing) {
  DriverRing& ring = vmm().ring(kAttacked);
  for (unsigned noise = 0; noise < 64; ++noise) {
    const auto word = static_cast<std::uint16_t>(noise * 1021);
    std::memcpy(vmm().ram().at(ring.driver_area(), 4), &word, 2);
    std::memcpy(vmm().ram().at(ring.driver_area() + 2, 2), &word, 2);
    const auto bytes = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
    std::memcpy(in_.host, bytes.data(), bytes.size());
    const Buffer from[] = {{.guest = in_.guest, .size = static_cast<std::uint32_t>(bytes.size())}};
    const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
    ASSERT_TRUE(ring.submit(from, to, noise));
    // Calls may be off by now: the answer lies in memory.
    ASSERT_TRUE(ring.spin(vmm().deadline()));
  }
  restart_attacked_queue();
}

}  // namespace
}  // namespace virtiofsd::guest
