// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "tests/faults/fixture.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

namespace virtiofsd::guest {

namespace {
constexpr std::uint16_t kPackedAvailable = 1U << 7;
constexpr std::uint16_t kPackedUsed = 1U << 15;
}  // namespace

std::chrono::milliseconds race_time() {
  const char* seconds = std::getenv("VIRTIOFSD_RACE_SECONDS");
  return std::chrono::seconds(seconds != nullptr ? std::atoi(seconds) : 10);
}

void FaultFixture::attack(std::vector<std::string> arguments, FrontEndOptions vmm,
                          bool with_session, FuseQueueOptions queue) {
  if (foreign()) GTEST_SKIP() << "peers end, hang or crash";
  vmm.request_queues = 2;
  tree().write("probe", "still here");
  start(std::move(arguments), std::move(vmm), with_session, queue);
  if (IsSkipped() || HasFatalFailure()) return;
  clients_.push_back(std::make_unique<FuseClient>(*urgent_, *urgent_));
  clients_.push_back(std::make_unique<FuseClient>(*requests_, *urgent_));
  more_queues_.push_back(std::make_unique<FuseQueue>(
      this->vmm(), 2, FuseQueueOptions{.slots = 4, .data_bytes = 65536}));
  clients_.push_back(std::make_unique<FuseClient>(*more_queues_.back(), *urgent_));
  in_ = this->vmm().ram().allocate(kInBytes, 4096);
  out_ = this->vmm().ram().allocate(kOutBytes, 4096);
}

void FaultFixture::TearDown() {
  if (client_ && still_serving_ && !IsSkipped() && !HasFatalFailure()) {
    if (new_session_) {
      EXPECT_TRUE(client_->init());
    }
    expect_still_serving();
  }
  for (const auto& client : clients_) {
    for (const std::string& violation : client->violations()) ADD_FAILURE() << violation;
  }
  DeviceFixture::TearDown();
}

void FaultFixture::expect_still_serving() {
  EXPECT_TRUE(daemon().running());
  EXPECT_DONE(clients_[0]->getattr(kRoot));
  for (std::size_t queue = 1; queue < clients_.size(); ++queue) {
    FuseClient& fuse = *clients_[queue];
    const auto probe = fuse.lookup(kRoot, "probe");
    ASSERT_TRUE(probe) << "queue " << queue << ": " << probe.error().text();
    const auto open = fuse.open(probe->nodeid, O_RDONLY);
    ASSERT_TRUE(open) << "queue " << queue << ": " << open.error().text();
    EXPECT_EQ(GET(fuse.read(probe->nodeid, open->fh, 0, 100)), "still here");
    EXPECT_DONE(fuse.release(probe->nodeid, open->fh));
    fuse.forget(probe->nodeid);
  }
}

void FaultFixture::restart_attacked_queue() {
  const auto base = vmm().stop_queue(kAttacked);
  ASSERT_TRUE(base) << base.error().text();
  vmm().ring(kAttacked).reset();
  ASSERT_OK(vmm().start_queue(kAttacked));
}

void FaultFixture::expect_this_queue_stopped() {
  EXPECT_TRUE(vmm().error_signalled(kAttacked, vmm().deadline())) << "no error was signalled";
  EXPECT_DONE(clients_[0]->getattr(kRoot));
  EXPECT_DONE(clients_[2]->getattr(kRoot));
  restart_attacked_queue();
}

Answer FaultFixture::send(std::span<const Buffer> readable, std::span<const Buffer> writable) {
  DriverRing& ring = vmm().ring(kAttacked);
  Answer answer;
  std::memset(out_.host, 0, sizeof answer.head);
  if (!ring.submit(readable, writable, 4242)) {
    ADD_FAILURE() << "the ring is full";
    return answer;
  }
  const auto used = ring.wait(vmm().deadline());
  if (!used) {
    ADD_FAILURE() << "no answer; ring: " << ring.breakage();
    return answer;
  }
  answer.came = true;
  answer.length = used->length;
  std::memcpy(&answer.head, out_.host, sizeof answer.head);
  return answer;
}

Answer FaultFixture::send(std::span<const std::byte> bytes, std::size_t room, std::size_t cut,
                          std::size_t reply_cut) {
  std::memcpy(in_.host, bytes.data(), bytes.size());
  std::vector<Buffer> readable;
  std::vector<Buffer> writable;
  const auto add = [](std::vector<Buffer>& to, const Block& block, std::size_t from,
                      std::size_t size) {
    if (size != 0) {
      to.push_back({.guest = block.guest + from, .size = static_cast<std::uint32_t>(size)});
    }
  };
  add(readable, in_, 0, cut != 0 ? cut : bytes.size());
  if (cut != 0) add(readable, in_, cut, bytes.size() - cut);
  add(writable, out_, 0, reply_cut != 0 ? reply_cut : room);
  if (reply_cut != 0) add(writable, out_, reply_cut, room - reply_cut);
  if (readable.empty() && writable.empty()) readable.push_back({.guest = in_.guest, .size = 0});
  return send(readable, writable);
}

void FaultFixture::expect_sane(const Answer& answer, std::size_t room, const std::string& what) {
  if (!answer.came) return;  // said already
  if (answer.length == 0) return;
  EXPECT_GE(answer.length, sizeof(fuse_out_header)) << what;
  EXPECT_LE(answer.length, room) << what;
  EXPECT_EQ(answer.head.len, answer.length) << what;
  EXPECT_EQ(answer.head.unique, unique_) << what;
  EXPECT_LE(answer.head.error, 0) << what;
  EXPECT_GT(answer.head.error, -512) << what;
  if (answer.head.error != 0) {
    EXPECT_EQ(answer.length, sizeof(fuse_out_header)) << what;
  }
}

void FaultFixture::offer(std::span<const RawDescriptor> chain) {
  DriverRing& ring = vmm().ring(kAttacked);
  if (packed()) {
    offered_at_ = ring.position();
    ASSERT_LE(offered_at_ + chain.size(), ring.options().size) << "would wrap";
    const std::uint16_t available = ring.packed_available_flags();
    for (std::size_t i = chain.size(); i-- > 0;) {
      const bool last = i + 1 == chain.size();
      vring_packed_desc& to = ring.packed_descriptors()[offered_at_ + i];
      to.addr = chain[i].address;
      to.len = chain[i].size;
      to.id = 1;
      std::atomic_ref<std::uint16_t>(to.flags).store(
          static_cast<std::uint16_t>(chain[i].flags | available | (last ? 0 : VRING_DESC_F_NEXT)),
          std::memory_order_release);
    }
  } else {
    used_before_ = ring.used_index().load();
    for (std::size_t i = 0; i < chain.size(); ++i) {
      const bool last = i + 1 == chain.size();
      ring.split_descriptors()[i] = {
          .addr = chain[i].address,
          .len = chain[i].size,
          .flags = static_cast<std::uint16_t>(chain[i].flags | (last ? 0 : VRING_DESC_F_NEXT)),
          .next = static_cast<std::uint16_t>(last ? 0 : i + 1)};
    }
    ring.make_available(0);
  }
  ring.kick();
}

Answer FaultFixture::wait_for_offered() {
  DriverRing& ring = vmm().ring(kAttacked);
  const Deadline deadline = vmm().deadline();
  Answer answer;
  while (std::chrono::steady_clock::now() < deadline && !answer.came) {
    if (packed()) {
      vring_packed_desc& at = ring.packed_descriptors()[offered_at_];
      const std::uint16_t flags =
          std::atomic_ref<std::uint16_t>(at.flags).load(std::memory_order_acquire);
      answer.came = ((flags & kPackedAvailable) != 0) == ((flags & kPackedUsed) != 0);
      answer.length = at.len;
    } else {
      answer.came = ring.used_index().load(std::memory_order_acquire) != used_before_;
      if (answer.came) {
        vring_used_elem element{};
        // Behind the used area's flags and index.
        std::memcpy(&element,
                    vmm().ram().at(ring.device_area() + 4 +
                                       sizeof(element) * (used_before_ % ring.options().size),
                                   sizeof(element)),
                    sizeof(element));
        answer.length = element.len;
      }
    }
    if (!answer.came) ::usleep(200);
  }
  EXPECT_TRUE(answer.came) << "the chain did not come back";
  std::memcpy(&answer.head, out_.host, sizeof answer.head);
  return answer;
}

std::uint64_t FaultFixture::indirect_table(std::span<const RawDescriptor> entries) {
  const Block table = vmm().ram().allocate(entries.size() * 16, 16);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    std::byte* const at = table.host + i * 16;
    if (packed()) {
      const vring_packed_desc entry{
          .addr = entries[i].address, .len = entries[i].size, .id = 0, .flags = entries[i].flags};
      std::memcpy(at, &entry, sizeof entry);
    } else {
      const bool last = i + 1 == entries.size();
      const vring_desc entry{
          .addr = entries[i].address,
          .len = entries[i].size,
          .flags = static_cast<std::uint16_t>(entries[i].flags | (last ? 0 : VRING_DESC_F_NEXT)),
          .next = static_cast<std::uint16_t>(i + 1)};
      std::memcpy(at, &entry, sizeof entry);
    }
  }
  return table.guest;
}

RawDescriptor FaultFixture::readable(std::span<const std::byte> bytes) {
  std::memcpy(in_.host, bytes.data(), bytes.size());
  return {.address = in_.guest, .size = static_cast<std::uint32_t>(bytes.size()), .flags = 0};
}

RawDescriptor FaultFixture::writable(std::uint32_t size) {
  std::memset(out_.host, 0, sizeof(fuse_out_header));
  return {.address = out_.guest, .size = size, .flags = VRING_DESC_F_WRITE};
}

}  // namespace virtiofsd::guest
