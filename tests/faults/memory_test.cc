// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Guest memory that changes while it is read, moves while it is used and ends
// before its region does.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/faults/fixture.h"

namespace virtiofsd::guest {
namespace {

constexpr std::uint64_t kGiB = 1ULL << 30;

class MemoryFault : public FaultFixture {
 protected:
  void SetUp() override {
    FrontEndOptions options;
    options.ring = {.size = 64, .indirect = true};
    attack({"-o", "xattr"}, options);
  }
  void TearDown() override {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    FaultFixture::TearDown();
  }
  template <typename Work>
  void meanwhile(Work work) {
    threads_.emplace_back([this, work] {
      while (!stop_) work();
    });
  }
  // Verified file data on the queue that is not attacked, for as long as the test goes on.
  void load_the_other_queue() {
    content_.assign(60'000, '\0');
    for (std::size_t i = 0; i < content_.size(); ++i)
      content_[i] = static_cast<char>(i * 13 + (i >> 8));
    tree().write("load", content_);
    FuseClient& fuse = *clients_[2];
    const std::uint64_t file = GET(fuse.lookup(kRoot, "load")).nodeid;
    const std::uint64_t handle = GET(fuse.open(file, O_RDONLY)).fh;
    meanwhile([this, &fuse, file, handle] {
      const auto read = fuse.read(file, handle, 0, 60'000);
      if (!read || *read != content_) ++wrong_;
      ++rounds_;
    });
  }
  // The load went on: some rounds were finished since `before`, none was wrong.
  void expect_load_undisturbed() {
    const std::uint64_t before = rounds_;
    const Deadline deadline = vmm().deadline();
    while (rounds_ < before + 3 && std::chrono::steady_clock::now() < deadline) ::usleep(1000);
    EXPECT_GE(rounds_, before + 3) << "the other queue stands still";
    EXPECT_EQ(wrong_, 0U);
  }
  // The regions as a SET_MEM_TABLE with all VMM addresses moved up by `shift`.
  void share_memory_at(std::uint64_t shift) {
    std::vector<std::byte> table = vmm().memory_table();
    std::vector<int> fds;
    for (std::size_t i = 0; i < vmm().ram().regions().size(); ++i) {
      std::byte* const at = table.data() + 8 + i * sizeof(MemoryRegion);
      MemoryRegion region;
      std::memcpy(&region, at, sizeof region);
      region.vmm += shift;
      std::memcpy(at, &region, sizeof region);
      fds.push_back(vmm().ram().fd().number());
    }
    ASSERT_OK(vmm().tell(kSetMemTable, table, fds));
  }

  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> rounds_{0}, wrong_{0};
  std::string content_;
  std::vector<std::thread> threads_;
};

// ---- changing while read ----

TEST_F(MemoryFault, ARequestThatChangesWhileItIsRead) {
  new_session_ = true;
  TempTree outside;
  outside.write("marker", "untouched");
  tree().mkdir("dir");
  const std::uint64_t directory = node("dir");
  const auto bytes = request(FUSE_SYMLINK, directory, std::string(30, 'a'), std::string(30, 'b'));
  std::atomic<bool> go{true};
  std::thread flipping([&] {
    std::mt19937 random(1);
    auto* const start = reinterpret_cast<unsigned char*>(in_.host);
    const unsigned char evil[] = {0, '/', '.', 1, 0x7f, 0xff};
    while (go) {
      // The name and the lengths; what kind of request it is stays.
      const std::size_t at = random() % 3 == 0 ? random() % 4 : 40 + random() % 62;
      std::atomic_ref<unsigned char>(start[at]).store(evil[random() % 6],
                                                      std::memory_order_relaxed);
    }
  });
  for (int i = 0; i < 5000; ++i) {
    const Answer answer = send(bytes, 4096);
    ASSERT_TRUE(answer.came);
    ASSERT_TRUE(answer.length == 0 || answer.head.len == answer.length);
  }
  go = false;
  flipping.join();
  for (const std::string& name : tree().list("dir")) {
    EXPECT_LE(name.size(), 255U);
    tree().remove("dir/" + name);
  }
  EXPECT_EQ(outside.read("marker"), "untouched");
  EXPECT_EQ(tree().list(), (std::vector<std::string>{"dir", "probe"}));
}

TEST_F(MemoryFault, ARingThatChangesWhileItIsRead) {
  new_session_ = true;
  load_the_other_queue();
  DriverRing& ring = vmm().ring(kAttacked);
  const auto bytes = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
  for (std::size_t at = 0; at + 64 <= 65536; at += 64)
    std::memcpy(in_.host + at, bytes.data(), bytes.size());
  std::atomic<bool> go{true};
  std::thread flipping([&] {
    std::mt19937_64 random(2);
    auto* const table = reinterpret_cast<unsigned char*>(ring.split_descriptors());
    while (go) {
      // Addresses stay among the test's own buffers: replies must not land on other rings.
      vring_desc& descriptor = ring.split_descriptors()[random() % 64];
      std::atomic_ref<__virtio64>(descriptor.addr)
          .store(in_.guest + random() % 65536, std::memory_order_relaxed);
      std::atomic_ref<unsigned char>(table[random() % 64 * 16 + 8 + random() % 8])
          .store(static_cast<unsigned char>(random() % 66), std::memory_order_relaxed);
      ring.available_entry(static_cast<unsigned>(random() % 64))
          .store(static_cast<std::uint16_t>(random() % 66), std::memory_order_relaxed);
    }
  });
  for (int i = 0; i < 300; ++i) {
    for (int more = 0; more < 20; ++more) {
      ring.available_index().fetch_add(1);
      ring.kick();
    }
    const auto base = vmm().stop_queue(kAttacked);
    ASSERT_TRUE(base) << base.error().text();
    ring.reset();
    ASSERT_OK(vmm().start_queue(kAttacked));
  }
  go = false;
  flipping.join();
  restart_attacked_queue();
  EXPECT_TRUE(daemon().running());
  // A request of noise may have ended the session, so the load's verdict doesn't count.
}

TEST_F(MemoryFault, ARequestAndItsReplyInTheSameBytes) {
  auto bytes = request(FUSE_LOOKUP, kRoot, "probe");
  for (int i = 0; i < 100; ++i) {
    std::memcpy(out_.host, bytes.data(), bytes.size());
    const Buffer from[] = {{.guest = out_.guest, .size = static_cast<std::uint32_t>(bytes.size())}};
    const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
    DriverRing& ring = vmm().ring(kAttacked);
    ASSERT_TRUE(ring.submit(from, to, 1));
    const auto used = ring.wait(vmm().deadline());
    ASSERT_TRUE(used);
    EXPECT_EQ(used->length, sizeof(fuse_out_header) + sizeof(fuse_entry_out));
  }
}

// ---- moving while used ----

TEST_F(MemoryFault, RegionsAddedAndRemovedUnderLoad) {
  load_the_other_queue();
  const UniqueFd file{::memfd_create("extra", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(file.number(), 1 << 20), 0);
  struct {
    std::uint64_t padding = 0;
    MemoryRegion region;
  } message;
  for (int round = 0; round < 100; ++round) {
    message.region = {.guest = 100 * kGiB, .size = 1 << 20, .vmm = 0x7a00'0000'0000, .offset = 0};
    const int fds[] = {file.number()};
    ASSERT_OK(vmm().tell(kAddMemReg, bytes_of(message), fds));
    // A request in the new region works, and is EFAULT when the region is gone.
    const auto bytes = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
    ASSERT_EQ(::pwrite(file.number(), bytes.data(), bytes.size(), 100),
              static_cast<ssize_t>(bytes.size()));
    const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
    const Buffer there[] = {
        {.guest = 100 * kGiB + 100, .size = static_cast<std::uint32_t>(bytes.size())}};
    EXPECT_EQ(send(there, to).length, sizeof(fuse_out_header) + sizeof(fuse_attr_out));
    ASSERT_OK(vmm().tell(kRemMemReg, bytes_of(message)));
    EXPECT_EQ(send(there, to).length, 0U);
  }
  expect_load_undisturbed();
}

TEST_F(MemoryFault, TheWholeTableReplacedAndMovedUnderLoad) {
  load_the_other_queue();
  for (std::uint64_t round = 1; round <= 50; ++round) {
    // The rings are found by VMM address, so one that moved pauses until its new address comes.
    share_memory_at(0);
    EXPECT_DONE(clients_[0]->getattr(kRoot));
  }
  expect_load_undisturbed();
}

TEST_F(MemoryFault, RingsStoppedMovedAndRestartedUnderLoad) {
  load_the_other_queue();
  for (std::uint64_t round = 1; round <= 30; ++round) {
    const std::uint64_t shift = (round % 5) * 16 * kGiB;
    std::vector<std::uint32_t> bases;
    for (unsigned queue = 0; queue <= 2; ++queue) {
      const auto base = vmm().stop_queue(queue);
      ASSERT_TRUE(base) << base.error().text();
      bases.push_back(*base);
    }
    share_memory_at(shift);
    for (unsigned queue = 0; queue <= 2; ++queue) {
      VringAddress address = vmm().vring_address(queue);
      address.descriptors += shift;
      address.available += shift;
      address.used += shift;
      ASSERT_OK(vmm().tell(kSetVringAddr, bytes_of(address)));
      ASSERT_OK(vmm().tell_vring(kSetVringBase, queue, bases[queue]));
      const int kick[] = {vmm().kick_fd(queue).number()};
      ASSERT_OK(vmm().tell_u64(kSetVringKick, queue, kick));
      ASSERT_OK(vmm().tell_vring(kSetVringEnable, queue, 1));
      vmm().ring(queue).kick();
    }
    EXPECT_DONE(clients_[1]->getattr(kRoot));
  }
  expect_load_undisturbed();
}

TEST_F(MemoryFault, AllMemoryTakenAwayPausesTheRingsUntilItIsBack) {
  for (int round = 0; round < 20; ++round) {
    const std::uint64_t none = 0;
    ASSERT_OK(vmm().tell(kSetMemTable, bytes_of(none)));
    for (unsigned queue = 0; queue <= 2; ++queue) vmm().ring(queue).kick();
    share_memory_at(0);
    EXPECT_DONE(clients_[1]->getattr(kRoot));
  }
}

// ---- ending early ----

class TruncatedMemory : public MemoryFault {
 protected:
  static constexpr std::uint64_t kStart = 100 * kGiB;
  static constexpr std::uint64_t kSize = 1 << 20;

  // A region of a file that is then cut to `left` bytes.
  void add_and_truncate(off_t left) {
    file_ = UniqueFd{::memfd_create("cut", MFD_CLOEXEC)};
    ASSERT_EQ(::ftruncate(file_.number(), kSize), 0);
    struct {
      std::uint64_t padding = 0;
      MemoryRegion region{.guest = kStart, .size = kSize, .vmm = 0x7a00'0000'0000, .offset = 0};
    } message;
    const int fds[] = {file_.number()};
    ASSERT_OK(vmm().tell(kAddMemReg, bytes_of(message), fds));
    ASSERT_EQ(::ftruncate(file_.number(), left), 0);
  }
  UniqueFd file_;
};

TEST_F(TruncatedMemory, ARequestInItIsAnErrorOfThatRequest) {
  add_and_truncate(0);
  const Buffer from[] = {{.guest = kStart, .size = 56}};
  const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
  for (int i = 0; i < 5; ++i) {
    unique_ = 0;
    (void)send(from, to);
  }
}

TEST_F(TruncatedMemory, AReplyIntoItIsLost) {
  add_and_truncate(4096);
  const auto bytes = request(FUSE_GETATTR, kRoot, fuse_getattr_in{});
  std::memcpy(in_.host, bytes.data(), bytes.size());
  const Buffer from[] = {{.guest = in_.guest, .size = static_cast<std::uint32_t>(bytes.size())}};
  for (const std::uint64_t at : {kStart + 8192, kStart + 4096 - 8}) {
    const Buffer to[] = {{.guest = at, .size = 4096}};
    (void)send(from, to);
  }
}

TEST_F(TruncatedMemory, FileDataFromAndToItIsAnErrorOrShort) {
  add_and_truncate(4096);
  tree().write("data", std::string(100'000, 'd'));
  const std::uint64_t file = node("data");
  const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
  fuse_read_in read{};
  read.fh = handle;
  read.size = 65536;
  const auto reading = request(FUSE_READ, file, read);
  std::memcpy(in_.host, reading.data(), reading.size());
  const Buffer from[] = {{.guest = in_.guest, .size = static_cast<std::uint32_t>(reading.size())}};
  const Buffer to[] = {{.guest = out_.guest, .size = 16}, {.guest = kStart + 8192, .size = 65536}};
  EXPECT_EQ(send(from, to).error(), EFAULT);

  fuse_write_in write{};
  write.fh = handle;
  write.size = 65536;
  const auto writing = request(FUSE_WRITE, file, write);
  std::memcpy(in_.host, writing.data(), writing.size());
  const std::uint32_t whole = static_cast<std::uint32_t>(writing.size()) + 65536;
  std::memcpy(in_.host, &whole, sizeof whole);
  const Buffer data[] = {{.guest = in_.guest, .size = static_cast<std::uint32_t>(writing.size())},
                         {.guest = kStart + 8192, .size = 65536}};
  const Buffer room[] = {{.guest = out_.guest, .size = 24}};
  EXPECT_EQ(send(data, room).error(), EFAULT);
  EXPECT_EQ(tree().read("data"), std::string(100'000, 'd'));
}

TEST_F(TruncatedMemory, AnIndirectTableInItIsNoRequest) {
  add_and_truncate(0);
  offer({{.address = kStart, .size = 64, .flags = VRING_DESC_F_INDIRECT}});
  (void)wait_for_offered();
  restart_attacked_queue();
}

TEST_F(TruncatedMemory, ARingInItStopsNothingElse) {
  load_the_other_queue();
  ASSERT_TRUE(vmm().stop_queue(kAttacked));
  add_and_truncate(static_cast<off_t>(kSize));
  VringAddress address = vmm().vring_address(kAttacked);
  address.descriptors = 0x7a00'0000'0000;
  address.available = 0x7a00'0000'0000 + 65536;
  address.used = 0x7a00'0000'0000 + 2 * 65536;
  ASSERT_OK(vmm().tell_vring(kSetVringBase, kAttacked, 0));
  ASSERT_OK(vmm().tell(kSetVringAddr, bytes_of(address)));
  const int kick[] = {vmm().kick_fd(kAttacked).number()};
  ASSERT_OK(vmm().tell_u64(kSetVringKick, kAttacked, kick));
  ASSERT_OK(vmm().tell_vring(kSetVringEnable, kAttacked, 1));
  ASSERT_EQ(::ftruncate(file_.number(), 0), 0);
  for (int i = 0; i < 100; ++i) vmm().ring(kAttacked).kick();
  expect_load_undisturbed();
  restart_attacked_queue();
}

TEST_F(TruncatedMemory, ARegionLongerThanItsFileIsRefusedOrHarmless) {
  const UniqueFd file{::memfd_create("short", MFD_CLOEXEC)};
  ASSERT_EQ(::ftruncate(file.number(), 4096), 0);
  struct {
    std::uint64_t padding = 0;
    MemoryRegion region{.guest = kStart, .size = 1ULL << 40, .vmm = 0x7a00'0000'0000, .offset = 0};
  } message;
  const int fds[] = {file.number()};
  (void)vmm().acknowledged(kAddMemReg, bytes_of(message), fds);
  const Buffer from[] = {{.guest = kStart + (1ULL << 39), .size = 56}};
  const Buffer to[] = {{.guest = out_.guest, .size = 4096}};
  (void)send(from, to);
}

}  // namespace
}  // namespace virtiofsd::guest
