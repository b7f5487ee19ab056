// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Rings as drivers use them and as attackers do: every shape and size carries
// load, a malformed ring stops its own queue and nothing else.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <initializer_list>
#include <random>
#include <set>
#include <thread>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

// ---- load on every shape ----

struct Load {
  const char* name;
  RingOptions ring;
  ChainShape shape;
  std::size_t piece_bytes;
};

void PrintTo(const Load& load, std::ostream* out) {
  *out << load.name;
}

class RingLoad : public DeviceFixture, public ::testing::WithParamInterface<Load> {
 protected:
  static std::vector<std::string> daemon_options() {
    if (!GetParam().ring.in_order) return {};
    return {"--in-order"};
  }
};

INSTANTIATE_TEST_SUITE_P(
    Shapes, RingLoad,
    ::testing::Values(Load{"Split8", {.size = 8}, ChainShape::kCompact, 0},
                      Load{"SplitEventIdx", {.size = 64, .event_idx = true}, ChainShape::kLinux, 0},
                      Load{"SplitPages", {.size = 1024}, ChainShape::kLinux, 4096},
                      Load{"SplitIndirectPages",
                           {.size = 128, .event_idx = true, .indirect = true},
                           ChainShape::kLinux,
                           4096},
                      Load{"SplitIndirect", {.size = 16, .indirect = true}, ChainShape::kLinux, 0},
                      Load{"SplitLarge", {.size = 32768, .event_idx = true}, ChainShape::kLinux, 0},
                      Load{"Packed7", {.size = 7, .packed = true}, ChainShape::kCompact, 0},
                      Load{"Packed", {.size = 64, .packed = true}, ChainShape::kLinux, 0},
                      Load{"PackedEventIdx",
                           {.size = 100, .packed = true, .event_idx = true},
                           ChainShape::kLinux,
                           0},
                      Load{"PackedPages",
                           {.size = 1024, .packed = true, .event_idx = true},
                           ChainShape::kLinux,
                           4096},
                      Load{"PackedIndirect",
                           {.size = 16, .packed = true, .event_idx = true, .indirect = true},
                           ChainShape::kLinux,
                           4096},
                      Load{"SplitInOrder",
                           {.size = 64, .event_idx = true, .indirect = true, .in_order = true},
                           ChainShape::kLinux,
                           4096},
                      Load{"SplitInOrderDirect", {.size = 64, .in_order = true},
                           ChainShape::kLinux,
                           4096},
                      Load{"PackedInOrder",
                           {.size = 64, .packed = true, .event_idx = true, .in_order = true},
                           ChainShape::kLinux,
                           0}),
    [](const auto& load) { return std::string(load.param.name); });

// Thousands of requests in flight together, each answer right: the ring wraps
// many times, completions come in any order.
TEST_P(RingLoad, CarriesManyRequestsAtOnce) {
  FrontEndOptions vmm_options;
  vmm_options.ring = GetParam().ring;
  START(daemon_options(), vmm_options, true,
        {.slots = 32,
         .data_bytes = 65536,
         .piece_bytes = GetParam().piece_bytes,
         .shape = GetParam().shape});
  std::string content(65536, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i ^ (i >> 8));
  tree().write("file", content);
  const std::uint64_t file = node("file");
  const std::uint64_t handle = GET(fuse().open(file, O_RDONLY)).fh;
  // The client keeps the last reply's slot: a call without data gives it back to the next user.
  EXPECT_DONE(fuse().getattr(kRoot));

  std::mt19937 random(7);
  constexpr unsigned kRequests = 5000;
  unsigned started = 0;
  unsigned finished = 0;
  struct Asked {
    std::uint32_t offset = 0;
    std::uint32_t size = 0;
  };
  std::vector<Asked> asked(32);
  std::vector<std::uint32_t> spare;
  while (finished < kRequests) {
    while (started < kRequests) {
      std::uint32_t slot = 0;
      if (!spare.empty()) {
        slot = spare.back();
        spare.pop_back();
      } else if (const auto fresh = requests_->acquire()) {
        slot = *fresh;
      } else {
        break;
      }
      const auto size = static_cast<std::uint32_t>(random() % 20000);
      const auto offset = static_cast<std::uint32_t>(random() % content.size());
      const fuse_read_in in{.fh = handle,
                            .offset = offset,
                            .size = size,
                            .read_flags = 0,
                            .lock_owner = 0,
                            .flags = 0,
                            .padding = 0};
      requests_->put(slot, in);
      if (!requests_->start(
              slot,
              {.opcode = FUSE_READ, .node = file, .arguments = sizeof(in), .data_out = size})) {
        spare.push_back(slot);
        break;
      }
      asked[slot] = {.offset = offset, .size = size};
      ++started;
      if (random() % 3 == 0) requests_->publish();
    }
    requests_->publish();
    const auto completion = requests_->wait(vmm().deadline());
    ASSERT_TRUE(completion) << "stuck after " << finished << " " << vmm().ring(1).breakage();
    ASSERT_EQ(completion->error, 0);
    const Asked& what = asked[completion->slot];
    const std::size_t right = std::min<std::size_t>(what.size, content.size() - what.offset);
    ASSERT_EQ(completion->bytes, right);
    ASSERT_EQ(
        std::memcmp(requests_->data(completion->slot).data(), content.data() + what.offset, right),
        0);
    requests_->release(completion->slot);
    ++finished;
  }
  for (const std::uint32_t slot : spare) requests_->release(slot);
  EXPECT_FALSE(vmm().ring(1).broken()) << vmm().ring(1).breakage();
}

TEST_P(RingLoad, SurvivesStoppingAndStartingUnderLoad) {
  if (foreign()) GTEST_SKIP() << "QEMU's daemon reports a stale base";
  FrontEndOptions vmm_options;
  vmm_options.ring = GetParam().ring;
  START(daemon_options(), vmm_options, true,
        {.slots = 8, .data_bytes = 4096, .shape = GetParam().shape});
  EXPECT_DONE(fuse().getattr(kRoot));
  for (int round = 0; round < 20; ++round) {
    unsigned started = 0;
    while (const auto slot = requests_->acquire()) {
      if (!requests_->start(
              *slot, {.opcode = FUSE_STATFS, .node = kRoot, .reply = sizeof(fuse_statfs_out)})) {
        requests_->release(*slot);
        break;
      }
      ++started;
    }
    requests_->publish();
    const auto base = vmm().stop_queue(1);
    ASSERT_TRUE(base) << base.error().text();
    // What was taken before the stop is answered by now; the rest is when it starts again.
    std::vector<std::uint32_t> done;
    while (const auto completion = requests_->poll()) done.push_back(completion->slot);
    if (!GetParam().ring.packed) {
      EXPECT_EQ(*base & 0xffffU, vmm().ring(1).base() & 0xffffU);
    }
    ASSERT_OK(vmm().tell_vring(kSetVringNum, 1, GetParam().ring.size));
    ASSERT_OK(vmm().tell_vring(kSetVringBase, 1, *base));
    const VringAddress address = vmm().vring_address(1);
    ASSERT_OK(vmm().tell(kSetVringAddr, bytes_of(address)));
    const int kick[] = {vmm().kick_fd(1).number()};
    ASSERT_OK(vmm().tell_u64(kSetVringKick, 1, kick));
    ASSERT_OK(vmm().tell_vring(kSetVringEnable, 1, 1));
    vmm().ring(1).kick();
    while (done.size() < started) {
      const auto completion = requests_->wait(vmm().deadline());
      ASSERT_TRUE(completion) << "lost " << started - done.size() << " in round " << round;
      EXPECT_EQ(completion->error, 0);
      done.push_back(completion->slot);
    }
    for (const std::uint32_t slot : done) requests_->release(slot);
  }
}

// ---- many queues ----

// One driver thread for each of so many request queues.
class ManyQueues : public ::testing::TestWithParam<unsigned> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    if (DaemonProcess::kind_of(DaemonProcess::default_binary()) != DaemonKind::kOurs)
      GTEST_SKIP() << "peers have one request queue";
    tree_.write("file", "shared");
    DaemonOptions options;
    options.shared_directory = tree_.root();
    auto daemon = DaemonProcess::start(options);
    ASSERT_TRUE(daemon) << daemon.error().text();
    daemon_ = std::move(*daemon);
    FrontEndOptions vmm;
    vmm.request_queues = GetParam();
    vmm.ring.event_idx = true;
    auto front_end = FrontEnd::adopt(daemon_->take_connection(), vmm);
    ASSERT_TRUE(front_end) << front_end.error().text();
    front_end_ = std::move(*front_end);
    ASSERT_OK(front_end_->set_up());
    // One urgent queue can't be shared by threads: FORGETs go where the other requests go.
    for (unsigned i = 1; i <= GetParam(); ++i) {
      queues_.push_back(std::make_unique<FuseQueue>(
          *front_end_, i, FuseQueueOptions{.slots = 6, .data_bytes = 65536}));
      clients_.push_back(std::make_unique<FuseClient>(*queues_.back(), *queues_.back()));
    }
    ASSERT_TRUE(clients_[0]->init());
  }
  void TearDown() override {
    for (unsigned i = 0; i < clients_.size(); ++i) {
      for (const std::string& violation : clients_[i]->violations())
        ADD_FAILURE() << "queue " << i + 1 << ": " << violation;
    }
  }
  // `work(client, index)` counts what went wrong; on every queue at once.
  template <typename Work>
  void on_every_queue(const Work& work) {
    std::vector<std::thread> threads;
    std::vector<int> failures(clients_.size(), 0);
    for (unsigned i = 0; i < clients_.size(); ++i)
      threads.emplace_back([&, i] { failures[i] = work(*clients_[i], i); });
    for (std::thread& thread : threads) thread.join();
    for (unsigned i = 0; i < clients_.size(); ++i) EXPECT_EQ(failures[i], 0) << "queue " << i + 1;
  }

  TempTree tree_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<FrontEnd> front_end_;
  std::vector<std::unique_ptr<FuseQueue>> queues_;
  std::vector<std::unique_ptr<FuseClient>> clients_;
};

TEST_P(ManyQueues, EachIsServedByItself) {
  on_every_queue([](FuseClient& fuse, unsigned index) {
    int failures = 0;
    const std::string mine = "file-" + std::to_string(index);
    for (int round = 0; round < 50; ++round) {
      const auto made = fuse.create(FuseClient::kRoot, mine, O_RDWR, 0600);
      if (!made || !fuse.write(made->entry.nodeid, made->open.fh, 0, mine) ||
          !fuse.release(made->entry.nodeid, made->open.fh) ||
          !fuse.unlink(FuseClient::kRoot, mine) || !fuse.lookup(FuseClient::kRoot, "file"))
        ++failures;
    }
    return failures;
  });
}

// Names, nodes and handles come and go under all the others' hands; whatever
// happens, an answer is one that the race allows and nothing is left over.
TEST_P(ManyQueues, AllMayWorkOnTheSameFiles) {
  on_every_queue([](FuseClient& fuse, unsigned index) {
    std::mt19937_64 random(index + 1);
    int failures = 0;
    const auto allowed = [&](const auto& answer, std::initializer_list<int> errors) {
      if (answer) return true;
      failures += std::ranges::find(errors, answer.error().value()) == errors.end() ? 1 : 0;
      return false;
    };
    for (int round = 0; round < 150; ++round) {
      const std::string name = "n" + std::to_string(random() % 4);
      const std::string other = "n" + std::to_string(random() % 4);
      switch (random() % 5) {
        case 0: {
          const auto made = fuse.create(FuseClient::kRoot, name, O_RDWR, 0600);
          if (!allowed(made, {EEXIST, ENOENT, EISDIR, ESTALE})) break;
          allowed(fuse.write(made->entry.nodeid, made->open.fh, 0, name), {});
          allowed(fuse.release(made->entry.nodeid, made->open.fh), {});
          fuse.forget(made->entry.nodeid, 1);
          break;
        }
        case 1:
          allowed(fuse.unlink(FuseClient::kRoot, name), {ENOENT, EISDIR});
          break;
        case 2:
          allowed(fuse.rename(FuseClient::kRoot, name, FuseClient::kRoot, other),
                  {ENOENT, EISDIR, ENOTDIR, ENOTEMPTY});
          break;
        case 3: {
          const auto found = fuse.lookup(FuseClient::kRoot, name);
          if (!allowed(found, {ENOENT})) break;
          allowed(fuse.getattr(found->nodeid), {ESTALE, ENOENT});
          fuse.forget(found->nodeid, 1);
          break;
        }
        default: {
          const auto found = fuse.lookup(FuseClient::kRoot, "file");
          if (!allowed(found, {})) break;
          const auto open = fuse.open(found->nodeid, O_RDONLY);
          if (allowed(open, {})) {
            const auto read = fuse.read(found->nodeid, open->fh, 0, 100);
            if (allowed(read, {}) && read->size() != 6) ++failures;
            allowed(fuse.release(found->nodeid, open->fh), {});
          }
          fuse.forget(found->nodeid, 1);
        }
      }
    }
    return failures;
  });
}

INSTANTIATE_TEST_SUITE_P(Queues, ManyQueues, ::testing::Values(4U, 8U),
                         ::testing::PrintToStringParamName());

// ---- hostile split rings ----

class HostileRing : public DeviceFixture {
 protected:
  void SetUp() override {
    if (foreign()) GTEST_SKIP() << "peers end, hang or crash";
    FrontEndOptions options;
    options.request_queues = 2;
    options.ring = {.size = 16, .indirect = true};
    START({}, options);
    other_queue_ = std::make_unique<FuseQueue>(vmm(), 2, FuseQueueOptions{.slots = 2});
    other_ = std::make_unique<FuseClient>(*other_queue_, *urgent_);
    buffer_ = vmm().ram().allocate(8192, 4096);
  }
  vring_desc* table() { return vmm().ring(1).split_descriptors(); }
  void offer(std::uint16_t head) {
    vmm().ring(1).make_available(head);
    vmm().ring(1).kick();
  }
  // Queue 1 is stopped and says so; queue 2 and the connection live; queue 1 works after a reset.
  void expect_only_this_queue_stops() {
    EXPECT_TRUE(vmm().error_signalled(1, vmm().deadline())) << "no error was signalled";
    EXPECT_DONE(other_->getattr(kRoot));
    const auto base = vmm().stop_queue(1);
    ASSERT_TRUE(base) << base.error().text();
    vmm().ring(1).reset();
    ASSERT_OK(vmm().start_queue(1));
    EXPECT_DONE(fuse().getattr(kRoot));
  }

  std::unique_ptr<FuseQueue> other_queue_;
  std::unique_ptr<FuseClient> other_;
  Block buffer_;
};

TEST_F(HostileRing, AChainThatLoopsStopsItsQueue) {
  table()[0] = {.addr = buffer_.guest, .len = 64, .flags = VRING_DESC_F_NEXT, .next = 1};
  table()[1] = {.addr = buffer_.guest, .len = 64, .flags = VRING_DESC_F_NEXT, .next = 0};
  offer(0);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, ADescriptorPastTheTableStopsItsQueue) {
  table()[0] = {.addr = buffer_.guest, .len = 64, .flags = VRING_DESC_F_NEXT, .next = 16};
  offer(0);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, AHeadPastTheTableStopsItsQueue) {
  offer(16);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, AnIndexThatJumpsStopsItsQueue) {
  vmm().ring(1).available_index().store(1000);
  vmm().ring(1).kick();
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, ReadableAfterWritableStopsItsQueue) {
  table()[0] = {
      .addr = buffer_.guest, .len = 64, .flags = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, .next = 1};
  table()[1] = {.addr = buffer_.guest, .len = 64, .flags = 0, .next = 0};
  offer(0);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, AnIndirectTableOfAnOddSizeStopsItsQueue) {
  table()[0] = {.addr = buffer_.guest, .len = 17, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  offer(0);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, AnEmptyIndirectTableStopsItsQueue) {
  table()[0] = {.addr = buffer_.guest, .len = 0, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  offer(0);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, AnIndirectTableInATableStopsItsQueue) {
  const vring_desc inner{
      .addr = buffer_.guest, .len = 16, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  std::memcpy(buffer_.host, &inner, sizeof(inner));
  table()[0] = {.addr = buffer_.guest, .len = 16, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  offer(0);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, AnIndirectTableThatLoopsStopsItsQueue) {
  const vring_desc inner[2] = {
      {.addr = buffer_.guest + 4096, .len = 1, .flags = VRING_DESC_F_NEXT, .next = 1},
      {.addr = buffer_.guest + 4096, .len = 1, .flags = VRING_DESC_F_NEXT, .next = 0}};
  std::memcpy(buffer_.host, inner, sizeof(inner));
  table()[0] = {.addr = buffer_.guest, .len = 32, .flags = VRING_DESC_F_INDIRECT, .next = 0};
  offer(0);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, MoreBytesThanANumberHoldsStopItsQueue) {
  const Block table_block = vmm().ram().allocate(16 * 16, 16);
  std::array<vring_desc, 16> inner{};
  for (std::uint16_t i = 0; i < inner.size(); ++i) {
    inner[i] = {.addr = vmm().ram().regions()[1].guest,
                .len = 0x1000'0000,
                .flags = static_cast<std::uint16_t>(
                    VRING_DESC_F_WRITE | (i + 1U < inner.size() ? VRING_DESC_F_NEXT : 0)),
                .next = static_cast<std::uint16_t>(i + 1)};
  }
  std::memcpy(table_block.host, inner.data(), sizeof(inner));
  table()[0] = {
      .addr = table_block.guest, .len = sizeof(inner), .flags = VRING_DESC_F_INDIRECT, .next = 0};
  offer(0);
  expect_only_this_queue_stops();
}

TEST_F(HostileRing, EmptyAndWriteOnlyChainsAreReturnedUnanswered) {
  DriverRing& ring = vmm().ring(1);
  const Buffer space{.guest = buffer_.guest, .size = 4096};
  ASSERT_TRUE(ring.submit({}, {&space, 1}, 1));
  auto used = ring.wait(vmm().deadline());
  ASSERT_TRUE(used);
  EXPECT_EQ(used->length, 0U);
  const Buffer empty{.guest = buffer_.guest, .size = 0};
  ASSERT_TRUE(ring.submit({&empty, 1}, {&space, 1}, 2));
  used = ring.wait(vmm().deadline());
  ASSERT_TRUE(used);
  EXPECT_EQ(used->length, 0U);
  EXPECT_DONE(fuse().getattr(kRoot));
}

TEST_F(HostileRing, KicksForNothingAreHarmless) {
  for (int i = 0; i < 1000; ++i) vmm().ring(1).kick();
  EXPECT_DONE(fuse().getattr(kRoot));
}

// A request in many pieces of odd sizes, each field torn apart.
TEST_F(HostileRing, ARequestInSingleBytesIsUnderstood) {
  DriverRing& ring = vmm().ring(2);
  struct {
    fuse_in_header head{};
    fuse_getattr_in args{};
  } in;
  in.head = {.len = sizeof(in),
             .opcode = FUSE_GETATTR,
             .unique = 77,
             .nodeid = FUSE_ROOT_ID,
             .uid = 0,
             .gid = 0,
             .pid = 0,
             .total_extlen = 0,
             .padding = 0};
  std::memcpy(buffer_.host, &in, sizeof(in));
  std::vector<Buffer> readable;
  for (std::uint32_t i = 0; i < sizeof(in); i += 7)
    readable.push_back(
        {.guest = buffer_.guest + i, .size = std::min<std::uint32_t>(7, sizeof(in) - i)});
  // Together no more than the ring is long, which an indirect table must not exceed either.
  readable.resize(std::min<std::size_t>(readable.size(), 8));
  readable.back().size =
      static_cast<std::uint32_t>(buffer_.guest + sizeof(in) - readable.back().guest);
  std::vector<Buffer> writable;
  for (std::uint32_t i = 0; i < 7; ++i)
    writable.push_back({.guest = buffer_.guest + 4096 + i * 3U, .size = i == 6 ? 200U : 3U});
  ASSERT_TRUE(ring.submit(readable, writable, 9));
  const auto used = ring.wait(vmm().deadline());
  ASSERT_TRUE(used);
  fuse_out_header out;
  std::memcpy(&out, buffer_.host + 4096, sizeof(out));
  EXPECT_EQ(used->length, sizeof(fuse_out_header) + sizeof(fuse_attr_out));
  EXPECT_EQ(out.len, used->length);
  EXPECT_EQ(out.error, 0);
  EXPECT_EQ(out.unique, 77U);
}

// ---- hostile packed rings ----

class HostilePackedRing : public DeviceFixture {
 protected:
  void SetUp() override {
    if (foreign()) GTEST_SKIP() << "no peer has packed rings";
    FrontEndOptions options;
    options.request_queues = 2;
    options.ring = {.size = 16, .packed = true};
    START({}, options);
    other_queue_ = std::make_unique<FuseQueue>(vmm(), 2, FuseQueueOptions{.slots = 2});
    other_ = std::make_unique<FuseClient>(*other_queue_, *urgent_);
    buffer_ = vmm().ram().allocate(8192, 4096);
  }
  void expect_only_this_queue_stops() {
    vmm().ring(1).kick();
    EXPECT_TRUE(vmm().error_signalled(1, vmm().deadline())) << "no error was signalled";
    EXPECT_DONE(other_->getattr(kRoot));
    ASSERT_TRUE(vmm().stop_queue(1));
    vmm().ring(1).reset();
    ASSERT_OK(vmm().start_queue(1));
    EXPECT_DONE(fuse().getattr(kRoot));
  }
  std::unique_ptr<FuseQueue> other_queue_;
  std::unique_ptr<FuseClient> other_;
  Block buffer_;
};

TEST_F(HostilePackedRing, AChainLongerThanTheRingStopsItsQueue) {
  vring_packed_desc* ring = vmm().ring(1).packed_descriptors();
  // All sixteen say NEXT, in this lap and, past the end, in the next one.
  const unsigned start = vmm().ring(1).position();
  const std::uint16_t now = vmm().ring(1).packed_available_flags();
  const std::uint16_t later = now ^ ((1U << 7) | (1U << 15));
  for (unsigned i = 16; i-- > 0;) {
    const unsigned at = (start + i) % 16;
    ring[at] = {
        .addr = buffer_.guest,
        .len = 8,
        .id = 1,
        .flags = static_cast<std::uint16_t>((start + i < 16 ? now : later) | VRING_DESC_F_NEXT)};
  }
  expect_only_this_queue_stops();
}

TEST_F(HostilePackedRing, ReadableAfterWritableStopsItsQueue) {
  vring_packed_desc* ring = vmm().ring(1).packed_descriptors();
  const unsigned start = vmm().ring(1).position();
  const std::uint16_t flags = vmm().ring(1).packed_available_flags();
  ASSERT_LT(start + 1, 16U);
  ring[start + 1] = {.addr = buffer_.guest, .len = 8, .id = 1, .flags = flags};
  ring[start] = {
      .addr = buffer_.guest,
      .len = 8,
      .id = 1,
      .flags = static_cast<std::uint16_t>(flags | VRING_DESC_F_NEXT | VRING_DESC_F_WRITE)};
  expect_only_this_queue_stops();
}

// ---- noise ----

// Random descriptors in random rings: the daemon may stop queues but stays, and
// the queue works again after its reset.
TEST(RingNoise, NeverEndsTheDaemon) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  if (DaemonProcess::kind_of(DaemonProcess::default_binary()) != DaemonKind::kOurs)
    GTEST_SKIP() << "peers end";
  TempTree tree;
  DaemonOptions options;
  options.shared_directory = tree.root();
  options.arguments = {"--log-level=off"};
  auto daemon = DaemonProcess::start(options);
  ASSERT_TRUE(daemon) << daemon.error().text();
  for (const bool packed : {false, true}) {
    FrontEndOptions vmm_options;
    vmm_options.ring = {.size = 16, .packed = packed, .indirect = true};
    vmm_options.buffer_memory = 16 << 20;
    if (packed) {
      daemon = DaemonProcess::start(options);
      ASSERT_TRUE(daemon);
    }
    auto made = FrontEnd::adopt((*daemon)->take_connection(), vmm_options);
    ASSERT_TRUE(made);
    FrontEnd& vmm = **made;
    ASSERT_OK(vmm.set_up());
    FuseQueue requests{vmm, 1, {.slots = 2, .data_bytes = 65536}};
    FuseQueue urgent{vmm, 0, {.slots = 2, .data_bytes = 0}};
    FuseClient fuse{requests, urgent};
    ASSERT_TRUE(fuse.init());
    std::mt19937_64 random(packed ? 99 : 42);
    DriverRing& ring = vmm.ring(1);
    const GuestRam::Region& region = vmm.ram().regions()[1];
    for (int round = 0; round < 60; ++round) {
      for (unsigned i = 0; i < 16 * 16; ++i) {
        std::byte* at = packed ? reinterpret_cast<std::byte*>(ring.packed_descriptors())
                               : reinterpret_cast<std::byte*>(ring.split_descriptors());
        at[i] = static_cast<std::byte>(random());
        if (i % 16 < 8 && random() % 4 != 0) {
          // Mostly addresses that exist.
          const std::uint64_t address = region.guest + random() % region.size;
          std::memcpy(at + i / 16 * 16, &address, 8);
        }
      }
      if (!packed) {
        for (unsigned i = 0; i < 16; ++i)
          ring.available_entry(i).store(static_cast<std::uint16_t>(random() % 20));
        ring.available_index().store(static_cast<std::uint16_t>(
            ring.used_index().load() + random() % (round % 5 == 0 ? 60000 : 16)));
      }
      ring.kick();
      const auto base = vmm.stop_queue(1);
      ASSERT_TRUE(base) << "round " << round << ": " << base.error().text() << "\n"
                        << (*daemon)->output();
      ring.reset();
      ASSERT_OK(vmm.start_queue(1));
    }
    // The noise may have been a request, even INIT or DESTROY: begin anew.
    ASSERT_TRUE(fuse.init());
    EXPECT_DONE(fuse.getattr(FuseClient::kRoot));
    EXPECT_TRUE((*daemon)->running());
  }
}

}  // namespace
}  // namespace virtiofsd::guest
