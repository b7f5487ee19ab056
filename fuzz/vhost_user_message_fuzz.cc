// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The control conversation with a VMM that says anything: whole messages with
// the right size and descriptors, or with neither, messages cut into pieces,
// and plain noise. The Backend does nothing but hold the Session to what it
// promises (backend.h). Some inputs are replies to requests of ours instead.
#include <poll.h>
#include <sys/eventfd.h>

#include <optional>
#include <utility>

#include "fuzz/input.h"
#include "sys/sockets.h"
#include "vhost_user/backend_channel.h"
#include "vhost_user/session.h"

namespace virtiofsd::fuzz {
namespace {

using namespace vhost_user;
using std::chrono::milliseconds;

// Everything the protocol has, more than our device offers.
constexpr std::uint64_t kFeatures = bit(Feature::kVersion1) | bit(Feature::kLogAll) |
                                    bit(Feature::kRingPacked) | bit(Feature::kEventIdx);
constexpr std::uint64_t kProtocolFeatures =
    bit(ProtocolFeature::kMq) | bit(ProtocolFeature::kLogShmfd) |
    bit(ProtocolFeature::kBackendReq) | bit(ProtocolFeature::kConfig) |
    bit(ProtocolFeature::kInflightShmfd) | bit(ProtocolFeature::kResetDevice) |
    bit(ProtocolFeature::kInbandNotifications) | bit(ProtocolFeature::kConfigureMemSlots) |
    bit(ProtocolFeature::kStatus) | bit(ProtocolFeature::kDeviceState) |
    bit(ProtocolFeature::kGpaAddresses) | bit(ProtocolFeature::kShmem);
constexpr std::uint32_t kRings = 3;

UniqueFd new_event() {
  return UniqueFd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
}

class NothingBackend final : public Backend {
 public:
  bool refuses = false;

  std::uint64_t features() const override { return kFeatures; }
  Result<> set_features(std::uint64_t features) override {
    CHECK((features & ~(kFeatures | bit(Feature::kProtocolFeatures))) == 0);
    return done();
  }
  std::uint64_t protocol_features() const override { return kProtocolFeatures; }
  Result<> set_protocol_features(std::uint64_t features) override {
    CHECK((features & ~(kProtocolFeatures | bit(ProtocolFeature::kReplyAck))) == 0);
    return done();
  }
  void set_owner() override {}
  void reset_owner() override {}
  Result<> reset_device() override { return done(); }
  std::uint32_t queue_count() const override { return kRings; }
  Result<> set_mem_table(std::vector<MemoryRegion> regions) override {
    CHECK(regions.size() <= kMaxTableRegions);
    for (const MemoryRegion& region : regions) CHECK(region.file.valid());
    return done();
  }
  Result<> add_mem_region(MemoryRegion region) override {
    CHECK(region.file.valid());
    return done();
  }
  Result<> remove_mem_region(const MemoryRegion& region) override {
    CHECK(!region.file.valid());
    return done();
  }
  Result<> set_vring_size(std::uint32_t index, std::uint32_t) override { return ring(index); }
  Result<> set_vring_addresses(std::uint32_t index, const RingAddresses<VmmAddress>&) override {
    return ring(index);
  }
  Result<> set_vring_addresses(std::uint32_t index, const RingAddresses<GuestAddress>&) override {
    return ring(index);
  }
  Result<> set_vring_base(std::uint32_t index, std::uint32_t) override { return ring(index); }
  Result<std::uint32_t> get_vring_base(std::uint32_t index) override {
    TRY(ring(index));
    return std::uint32_t{7};
  }
  Result<> set_vring_kick(std::uint32_t index, std::optional<UniqueFd> fd) override {
    return ring(index, fd);
  }
  Result<> set_vring_call(std::uint32_t index, std::optional<UniqueFd> fd) override {
    return ring(index, fd);
  }
  Result<> set_vring_error(std::uint32_t index, std::optional<UniqueFd> fd) override {
    return ring(index, fd);
  }
  Result<> set_vring_enable(std::uint32_t index, bool) override { return ring(index); }
  Result<> vring_kick(std::uint32_t index) override { return ring(index); }
  Result<> get_config(std::uint32_t, std::span<std::byte> out) override {
    std::ranges::fill(out, std::byte{'c'});
    return done();
  }
  Result<> set_config(std::uint32_t, std::span<const std::byte> bytes, ConfigWriter) override {
    // Reads all of it, so that the sanitizer looks.
    sum_ += static_cast<std::size_t>(std::ranges::count(bytes, std::byte{0}));
    return done();
  }
  Result<> set_log_base(std::uint64_t, std::uint64_t, UniqueFd file) override {
    CHECK(file.valid());
    return done();
  }
  Result<> set_log_fd(UniqueFd fd) override {
    CHECK(fd.valid());
    return done();
  }
  Result<> set_backend_request_fd(UniqueFd socket) override {
    CHECK(socket.valid());
    return done();
  }
  Result<> set_status(std::uint64_t) override { return done(); }
  Result<InflightArea> get_inflight_fd(std::uint16_t queues, std::uint16_t size) override {
    TRY(done());
    return InflightArea{.mmap_size = 4096,
                        .mmap_offset = 0,
                        .queues = queues,
                        .queue_size = size,
                        .file = new_event()};
  }
  Result<> set_inflight_fd(InflightArea area) override {
    CHECK(area.file.valid());
    return done();
  }
  Result<std::optional<UniqueFd>> set_device_state_fd(TransferDirection direction,
                                                      UniqueFd channel) override {
    CHECK(channel.valid());
    TRY(done());
    std::optional<UniqueFd> mine;
    if (direction == TransferDirection::kSave) mine = new_event();
    return mine;
  }
  Result<> check_device_state() override { return done(); }
  std::vector<std::uint64_t> shared_memory_sizes() const override { return {1U << 20, 0}; }

 private:
  Result<> done() const {
    if (refuses) return Errno{ENOSPC};
    return {};
  }
  Result<> ring(std::uint32_t index) const {
    CHECK(index < kRings);
    return done();
  }
  Result<> ring(std::uint32_t index, const std::optional<UniqueFd>& fd) const {
    CHECK(!fd || fd->valid());
    return ring(index);
  }
  std::size_t sum_ = 0;
};

// What a device must have, and no more: the rest is the interface's own.
class BareBackend final : public Backend {
 public:
  std::uint64_t features() const override { return kFeatures; }
  Result<> set_features(std::uint64_t) override { return {}; }
  std::uint64_t protocol_features() const override { return kProtocolFeatures; }
  Result<> set_protocol_features(std::uint64_t) override { return {}; }
  void set_owner() override {}
  void reset_owner() override {}
  std::uint32_t queue_count() const override { return kRings; }
  Result<> set_mem_table(std::vector<MemoryRegion>) override { return {}; }
  Result<> add_mem_region(MemoryRegion) override { return {}; }
  Result<> remove_mem_region(const MemoryRegion&) override { return {}; }
  Result<> set_vring_size(std::uint32_t, std::uint32_t) override { return {}; }
  using Backend::set_vring_addresses;
  Result<> set_vring_addresses(std::uint32_t, const RingAddresses<VmmAddress>&) override {
    return {};
  }
  Result<> set_vring_base(std::uint32_t, std::uint32_t) override { return {}; }
  Result<std::uint32_t> get_vring_base(std::uint32_t) override { return std::uint32_t{0}; }
  Result<> set_vring_kick(std::uint32_t, std::optional<UniqueFd>) override { return {}; }
  Result<> set_vring_call(std::uint32_t, std::optional<UniqueFd>) override { return {}; }
  Result<> set_vring_error(std::uint32_t, std::optional<UniqueFd>) override { return {}; }
  Result<> set_vring_enable(std::uint32_t, bool) override { return {}; }
};

// The payload size a request of this number has, if it knows its protocol.
std::size_t usual_size(std::uint32_t request, Input& in) {
  switch (static_cast<Request>(request)) {
    case Request::kSetFeatures:
    case Request::kSetProtocolFeatures:
    case Request::kSetVringKick:
    case Request::kSetVringCall:
    case Request::kSetVringErr:
    case Request::kSetStatus:
    case Request::kSetLogFd:
      return 8;
    case Request::kSetVringNum:
    case Request::kSetVringBase:
    case Request::kGetVringBase:
    case Request::kSetVringEnable:
    case Request::kVringKick:
      return sizeof(VringState);
    case Request::kSetVringAddr:
      return sizeof(VringAddress);
    case Request::kSetMemTable:
      return sizeof(MemoryTable) + in.below(10) * sizeof(RegionDescription);
    case Request::kAddMemReg:
    case Request::kRemMemReg:
      return sizeof(SingleRegion);
    case Request::kSetLogBase:
      return sizeof(LogDescription);
    case Request::kGetConfig:
    case Request::kSetConfig:
      return sizeof(ConfigHeader) + in.byte();
    case Request::kGetInflightFd:
    case Request::kSetInflightFd:
      return in.below(2) == 0 ? InflightDescription::kUnpadded : sizeof(InflightDescription);
    case Request::kSetDeviceStateFd:
      return sizeof(DeviceStateTransfer);
    default:
      return 0;
  }
}

class Vmm {
 public:
  Vmm(Input& in, UniqueFd socket) : in_(in), socket_(std::move(socket)) {}

  // A message of one kind or another; how much of it goes out now.
  void say() {
    const std::uint8_t shape = in_.byte();
    std::vector<std::byte> bytes;
    std::size_t fds = 0;
    if ((shape & 0xe0) == 0xe0) {
      bytes = in_.bytes(in_.byte());
      fds = shape & 0xf;
    } else {
      Header header{};
      header.request = in_.byte() % 47;
      header.flags = kVersion | ((shape & 1) != 0 ? kFlagNeedReply : 0);
      header.size = static_cast<std::uint32_t>(usual_size(header.request, in_));
      if ((shape & 2) != 0) header.size = static_cast<std::uint32_t>(in_.one_of(kEdges));
      if ((shape & 4) != 0) header.flags = in_.take<std::uint32_t>();
      fds = in_.below(11);
      const auto head = bytes_of(header);
      bytes.assign(head.begin(), head.end());
      const std::vector<std::byte> payload =
          in_.bytes(std::min<std::size_t>(header.size, kMaxPayload + 1));
      bytes.insert(bytes.end(), payload.begin(), payload.end());
    }
    if ((shape & 8) != 0) bytes.resize(std::min<std::size_t>(bytes.size(), in_.byte()));
    if (bytes.empty()) return;
    const UniqueFd event = new_event();
    const std::vector<FdRef> carried(fds, FdRef{event});
    // What doesn't fit is never said: the Session reads after every message.
    static_cast<void>(sys::send(socket_, bytes, carried).has_value());
  }

  // Takes what the Session said: whole replies, each well-formed.
  void listen() {
    std::vector<std::byte> heard(4 * (sizeof(Header) + kMaxPayload));
    std::vector<UniqueFd> fds;
    const auto size = sys::receive(socket_, heard, fds);
    if (!size) return;
    Reader reader{std::span(heard).first(*size)};
    while (!reader.rest().empty()) {
      const auto header = reader.take<Header>();
      CHECK(header && header->flags == kReplyFlags && header->size <= kMaxPayload);
      CHECK(reader.take_bytes(header->size));
    }
    CHECK(fds.size() <= 1);
  }

  void leave() { socket_.reset(); }

 private:
  Input& in_;
  UniqueFd socket_;
};

bool readable(FdRef fd) {
  pollfd wanted{.fd = fd.number(), .events = POLLIN, .revents = 0};
  return ::poll(&wanted, 1, 0) == 1;
}

// False when the conversation is over.
bool serve_what_came(Session& session, Vmm& vmm) {
  while (readable(session.fd())) {
    const auto served = session.serve_one();
    vmm.listen();
    if (!served || !*served) return false;
  }
  return true;
}

void converse(Input& in, std::uint8_t options) {
  auto pair = sys::unix_socket_pair().value();
  NothingBackend backend;
  BareBackend bare;
  Agreement agreement;
  if ((options & 4) != 0) {
    agreement.features = kFeatures | bit(Feature::kProtocolFeatures);
    agreement.protocol_features = kProtocolFeatures | bit(ProtocolFeature::kReplyAck);
    if ((options & 8) != 0) agreement.protocol_features &= ~bit(ProtocolFeature::kGpaAddresses);
  }
  Backend& chosen = (options & 16) != 0 ? static_cast<Backend&>(bare) : backend;
  Session session(std::move(pair.second), chosen, agreement);
  Vmm vmm(in, std::move(pair.first));
  for (int messages = 0; messages < 64 && !in.empty(); ++messages) {
    backend.refuses = in.byte() % 8 == 7;
    vmm.say();
    if (!serve_what_came(session, vmm)) return;
    CHECK((session.agreement().features & ~(kFeatures | bit(Feature::kProtocolFeatures))) == 0);
    CHECK((session.agreement().protocol_features &
           ~(kProtocolFeatures | bit(ProtocolFeature::kReplyAck))) == 0);
  }
  vmm.leave();
  while (true) {
    const auto served = session.serve_one();
    if (!served || !*served) return;
  }
}

// Requests of ours, and a VMM whose replies are there before it was asked.
void request(Input& in, std::uint8_t options) {
  auto pair = sys::unix_socket_pair().value();
  const std::uint64_t features = (options & 4) != 0 ? ~std::uint64_t{0} : in.take<std::uint64_t>();
  BackendChannel channel(std::move(pair.second), features, milliseconds{1});
  const UniqueFd file = new_event();
  for (int requests = 0; requests < 8 && !in.empty(); ++requests) {
    const std::uint8_t what = in.byte();
    std::vector<std::byte> reply;
    if ((what & 0x80) != 0) {
      reply = in.bytes(in.byte());
    } else if ((what & 0x40) == 0) {
      // What a VMM would say, if the input likes.
      const Header header{.request = (what & 7U) == 0   ? 4U
                                     : (what & 7U) == 2 ? 9U
                                                        : 10U,
                          .flags = kReplyFlags,
                          .size = sizeof(std::uint64_t)};
      const auto head = bytes_of(header);
      reply.assign(head.begin(), head.end());
      const std::vector<std::byte> value = in.bytes(sizeof(std::uint64_t));
      reply.insert(reply.end(), value.begin(), value.end());
      reply.resize(reply.size() - ((what & 0x20) != 0 ? in.byte() % reply.size() : 0));
    }
    const std::vector<FdRef> carried((what & 0x10) != 0 ? 2 : 0, FdRef{file});
    if (!reply.empty()) static_cast<void>(sys::send(pair.first, reply, carried).has_value());
    Result<> done;
    switch (what & 7) {
      case 0:
        done = channel.vring_call(in.byte(), Wait::kReply);
        break;
      case 1:
        done = channel.config_changed();
        break;
      case 2:
        done = channel.shmem_map(in.byte(), in.word(), in.word(), file, 0, true);
        break;
      case 3:
        done = channel.shmem_unmap(in.byte(), in.word(), in.word());
        break;
      case 4:
        done = channel.vring_error(in.byte());
        break;
      case 5:
        pair.first.reset();
        break;
      default:
        done = channel.vring_call(in.byte(), Wait::kNoReply);
    }
    if (!done) CHECK(done.error().value() > 0);
    if (!pair.first.valid()) return;
    std::vector<std::byte> heard(0x1000);
    std::vector<UniqueFd> fds;
    static_cast<void>(sys::receive(pair.first, heard, fds).has_value());
  }
}

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace virtiofsd::fuzz;
  Input in(data, size);
  const std::uint8_t options = in.byte();
  set_log((options & 1) != 0);
  const NoDescriptorLeaks no_leaks;
  if ((options & 2) != 0) {
    request(in, options);
  } else {
    converse(in, options);
  }
  return 0;
}
