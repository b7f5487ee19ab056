// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "vhost_user/session.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "sys/sockets.h"

namespace virtiofsd::vhost_user {
namespace {

using namespace std::chrono_literals;
using testing::Test;

constexpr std::uint64_t kAllProtocolFeatures =
    bit(ProtocolFeature::kMq) | bit(ProtocolFeature::kLogShmfd) |
    bit(ProtocolFeature::kBackendReq) | bit(ProtocolFeature::kConfig) |
    bit(ProtocolFeature::kInflightShmfd) | bit(ProtocolFeature::kResetDevice) |
    bit(ProtocolFeature::kInbandNotifications) | bit(ProtocolFeature::kConfigureMemSlots) |
    bit(ProtocolFeature::kStatus) | bit(ProtocolFeature::kDeviceState) |
    bit(ProtocolFeature::kGpaAddresses) | bit(ProtocolFeature::kShmem);

std::size_t open_descriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator{"/proc/self/fd"}, {}));
}

UniqueFd event() {
  return UniqueFd{::eventfd(0, EFD_CLOEXEC)};
}

// Writes down what it is asked, and closes what it is given.
class FakeBackend : public Backend {
 public:
  std::vector<std::string> calls;
  std::optional<Errno> refuse;  // answer to whatever comes
  std::uint64_t offered_features = bit(Feature::kVersion1) | bit(Feature::kLogAll);
  std::uint64_t offered_protocol_features = kAllProtocolFeatures;
  bool brings_channel = false;

  std::uint64_t features() const override { return offered_features; }
  Result<> set_features(std::uint64_t features) override {
    return note("set_features {:#x}", features);
  }
  std::uint64_t protocol_features() const override { return offered_protocol_features; }
  Result<> set_protocol_features(std::uint64_t features) override {
    return note("set_protocol_features {:#x}", features);
  }
  void set_owner() override { (void)note("set_owner"); }
  void reset_owner() override { (void)note("reset_owner"); }
  Result<> reset_device() override { return note("reset_device"); }
  std::uint32_t queue_count() const override { return 3; }
  Result<> set_mem_table(std::vector<MemoryRegion> regions) override {
    std::string text = "set_mem_table";
    for (const MemoryRegion& region : regions) text += " " + words(region);
    return note("{}", text);
  }
  Result<> add_mem_region(MemoryRegion region) override {
    return note("add_mem_region {}", words(region));
  }
  Result<> remove_mem_region(const MemoryRegion& region) override {
    return note("remove_mem_region {}", words(region));
  }
  std::uint64_t max_mem_slots() const override { return 77; }
  Result<> set_vring_size(std::uint32_t index, std::uint32_t size) override {
    return note("set_vring_size {} {}", index, size);
  }
  Result<> set_vring_addresses(std::uint32_t index,
                               const RingAddresses<VmmAddress>& addresses) override {
    return note("set_vring_addresses {} vmm {}", index, words(addresses));
  }
  Result<> set_vring_addresses(std::uint32_t index,
                               const RingAddresses<GuestAddress>& addresses) override {
    return note("set_vring_addresses {} guest {}", index, words(addresses));
  }
  Result<> set_vring_base(std::uint32_t index, std::uint32_t base) override {
    return note("set_vring_base {} {}", index, base);
  }
  Result<std::uint32_t> get_vring_base(std::uint32_t index) override {
    TRY(note("get_vring_base {}", index));
    return 0x80018001U;
  }
  Result<> set_vring_kick(std::uint32_t index, std::optional<UniqueFd> fd) override {
    return note("set_vring_kick {} {}", index, words(fd));
  }
  Result<> set_vring_call(std::uint32_t index, std::optional<UniqueFd> fd) override {
    return note("set_vring_call {} {}", index, words(fd));
  }
  Result<> set_vring_error(std::uint32_t index, std::optional<UniqueFd> fd) override {
    return note("set_vring_error {} {}", index, words(fd));
  }
  Result<> set_vring_enable(std::uint32_t index, bool enabled) override {
    return note("set_vring_enable {} {}", index, enabled);
  }
  Result<> vring_kick(std::uint32_t index) override { return note("vring_kick {}", index); }
  Result<> get_config(std::uint32_t offset, std::span<std::byte> out) override {
    TRY(note("get_config {} {}", offset, out.size()));
    constexpr std::string_view kSpace = "tag";
    for (std::size_t i = 0; i < out.size() && offset + i < kSpace.size(); ++i) {
      out[i] = static_cast<std::byte>(kSpace[offset + i]);
    }
    return {};
  }
  Result<> set_config(std::uint32_t offset, std::span<const std::byte> bytes,
                      ConfigWriter writer) override {
    return note("set_config {} {} {}", offset, bytes.size(),
                writer == ConfigWriter::kMigration ? "migration" : "guest");
  }
  Result<> set_log_base(std::uint64_t size, std::uint64_t offset, UniqueFd file) override {
    return note("set_log_base {} {} {}", size, offset, file.valid());
  }
  Result<> set_log_fd(UniqueFd fd) override { return note("set_log_fd {}", fd.valid()); }
  Result<> set_backend_request_fd(UniqueFd socket) override {
    return note("set_backend_request_fd {}", socket.valid());
  }
  Result<> set_status(std::uint64_t status) override { return note("set_status {}", status); }
  std::uint64_t status() const override { return 0xf; }
  Result<InflightArea> get_inflight_fd(std::uint16_t queues, std::uint16_t size) override {
    TRY(note("get_inflight_fd {} {}", queues, size));
    return InflightArea{
        .mmap_size = 4096, .mmap_offset = 0, .queues = queues, .queue_size = size, .file = event()};
  }
  Result<> set_inflight_fd(InflightArea area) override {
    return note("set_inflight_fd {} {} {} {} {}", area.mmap_size, area.mmap_offset, area.queues,
                area.queue_size, area.file.valid());
  }
  Result<std::optional<UniqueFd>> set_device_state_fd(TransferDirection direction,
                                                      UniqueFd channel) override {
    TRY(note("set_device_state_fd {} {}", direction == TransferDirection::kSave ? "save" : "load",
             channel.valid()));
    std::optional<UniqueFd> mine;
    if (brings_channel) mine = event();
    return mine;
  }
  Result<> check_device_state() override { return note("check_device_state"); }
  std::vector<std::uint64_t> shared_memory_sizes() const override { return {1 << 20, 0, 4096}; }

 private:
  template <typename... Args>
  Result<> note(fmt::format_string<Args...> format, Args&&... args) {
    calls.push_back(fmt::format(format, std::forward<Args>(args)...));
    if (refuse) return *refuse;
    return {};
  }
  static std::string words(const std::optional<UniqueFd>& fd) {
    if (!fd) return "none";
    return fd->valid() ? "fd" : "invalid";
  }
  static std::string words(const MemoryRegion& region) {
    return fmt::format("[{:#x} {:#x} {:#x} {:#x} {}]", region.guest.value, region.vmm.value,
                       region.size, region.mmap_offset, region.file.valid());
  }
  template <typename Address>
  static std::string words(const RingAddresses<Address>& at) {
    return fmt::format("{:#x} {:#x} {:#x} {}", at.descriptors.value, at.available.value,
                       at.used.value, at.log ? fmt::format("log {:#x}", at.log->value) : "no log");
  }
};

struct Reply {
  Header header{};
  std::vector<std::byte> payload;
  std::size_t fds = 0;

  std::uint64_t u64() const {
    std::uint64_t value = ~std::uint64_t{0};
    if (payload.size() == sizeof(value)) std::memcpy(&value, payload.data(), sizeof(value));
    return value;
  }
};

// A payload put together from wire structs.
struct Bytes {
  std::vector<std::byte> bytes;

  template <Plain T>
  Bytes& add(const T& value) {
    const auto more = bytes_of(value);
    bytes.insert(bytes.end(), more.begin(), more.end());
    return *this;
  }
  Bytes& zeros(std::size_t count) {
    bytes.resize(bytes.size() + count);
    return *this;
  }
};

class SessionTest : public Test {
 protected:
  SessionTest() { connect(); }

  void connect(Agreement agreement = {}) {
    auto pair = sys::unix_socket_pair();
    EXPECT_TRUE(pair);
    vmm_ = std::move(pair->first);
    session_ = std::make_unique<Session>(std::move(pair->second), backend_, agreement);
  }

  // A session in which everything is negotiated.
  void negotiate(std::uint64_t leave_out = 0) {
    connect(Agreement{.features = backend_.offered_features | bit(Feature::kProtocolFeatures),
                      .protocol_features =
                          (kAllProtocolFeatures | bit(ProtocolFeature::kReplyAck)) & ~leave_out});
  }

  void put(std::uint32_t request, std::span<const std::byte> payload, std::size_t fds = 0,
           std::uint32_t flags = kVersion) {
    const Header header{
        .request = request, .flags = flags, .size = static_cast<std::uint32_t>(payload.size())};
    Bytes message;
    message.add(header);
    message.bytes.insert(message.bytes.end(), payload.begin(), payload.end());
    const UniqueFd carried = event();
    const std::vector<FdRef> refs(fds, FdRef{carried});
    ASSERT_TRUE(sys::send_all(vmm_, message.bytes, refs, std::chrono::steady_clock::now() + 5s));
  }

  // Sends a request and has it served.
  void tell(Request request, const Bytes& payload = {}, std::size_t fds = 0) {
    put(static_cast<std::uint32_t>(request), payload.bytes, fds);
    const Result<bool> served = session_->serve_one();
    ASSERT_TRUE(served);
    ASSERT_TRUE(*served);
  }
  // The same, asking for an acknowledgement or expecting a reply of the request's own.
  Reply ask(Request request, const Bytes& payload = {}, std::size_t fds = 0,
            std::uint32_t flags = kVersion | kFlagNeedReply) {
    put(static_cast<std::uint32_t>(request), payload.bytes, fds, flags);
    const Result<bool> served = session_->serve_one();
    EXPECT_TRUE(served && *served);
    return take_reply(static_cast<std::uint32_t>(request));
  }

  Reply take_reply(std::uint32_t request) {
    Reply reply;
    std::vector<std::byte> buffer(sizeof(Header) + kMaxPayload);
    std::vector<UniqueFd> fds;
    const auto size = sys::receive(vmm_, buffer, fds);
    EXPECT_TRUE(size) << "no reply to " << name(static_cast<Request>(request));
    if (!size || *size < sizeof(Header)) return reply;
    std::memcpy(&reply.header, buffer.data(), sizeof(Header));
    EXPECT_EQ(reply.header.request, request);
    EXPECT_EQ(reply.header.flags, 5U);
    EXPECT_EQ(reply.header.size, *size - sizeof(Header)) << "more than one reply";
    reply.payload.assign(buffer.begin() + sizeof(Header),
                         buffer.begin() + static_cast<std::ptrdiff_t>(*size));
    reply.fds = fds.size();
    return reply;
  }

  // Served in this thread, so what isn't there now never comes.
  bool silent() {
    std::array<std::byte, 1> buffer{};
    std::vector<UniqueFd> fds;
    const auto size = sys::receive(vmm_, buffer, fds);
    return !size && size.error() == Errno{EAGAIN};
  }

  std::string last_call() const { return backend_.calls.empty() ? "" : backend_.calls.back(); }

  FakeBackend backend_;
  UniqueFd vmm_;
  std::unique_ptr<Session> session_;
};

Bytes u64(std::uint64_t value) {
  return Bytes{}.add(value);
}
Bytes state(std::uint32_t index, std::uint32_t num) {
  return Bytes{}.add(VringState{.index = index, .num = num});
}

TEST_F(SessionTest, OffersTheBackendsFeaturesAndItsOwn) {
  EXPECT_EQ(ask(Request::kGetFeatures).u64(),
            backend_.offered_features | bit(Feature::kProtocolFeatures));
  EXPECT_EQ(ask(Request::kGetProtocolFeatures).u64(),
            kAllProtocolFeatures | bit(ProtocolFeature::kReplyAck));
}

TEST_F(SessionTest, TheFirstWordsOfVirtioUml) {
  constexpr std::uint64_t kChosen = bit(ProtocolFeature::kReplyAck) |
                                    bit(ProtocolFeature::kConfig) |
                                    bit(ProtocolFeature::kBackendReq) | bit(ProtocolFeature::kMq);
  tell(Request::kSetOwner);
  EXPECT_TRUE(silent());
  ask(Request::kGetFeatures, {}, 0, kVersion);
  ask(Request::kGetProtocolFeatures, {}, 0, kVersion);
  EXPECT_EQ(ask(Request::kSetProtocolFeatures, u64(kChosen)).u64(), 0U);
  EXPECT_EQ(ask(Request::kSetBackendReqFd, {}, 1).u64(), 0U);
  EXPECT_EQ(last_call(), "set_backend_request_fd true");
  EXPECT_EQ(ask(Request::kGetQueueNum, {}, 0, kVersion).u64(), 3U);
  EXPECT_EQ(
      ask(Request::kSetFeatures, u64(bit(Feature::kVersion1) | bit(Feature::kProtocolFeatures)))
          .u64(),
      0U);
  for (std::uint32_t size = 1; size <= 36; ++size) {
    const Reply reply = ask(
        Request::kGetConfig,
        Bytes{}.add(ConfigHeader{.offset = 0, .size = size, .flags = 0}).zeros(size), 0, kVersion);
    ASSERT_EQ(reply.payload.size(), 12 + size);
    EXPECT_EQ(reply.payload[12], std::byte{'t'});
    EXPECT_EQ(reply.payload.back(), size > 3 ? std::byte{0} : std::byte("tag"[size - 1]));
  }
  const Bytes table =
      Bytes{}
          .add(MemoryTable{.count = 1, .padding = 0})
          .add(RegionDescription{
              .guest = 0x1000, .size = 0x2000, .vmm = 0x1000, .mmap_offset = 0x1000})
          .zeros(32);
  ASSERT_EQ(table.bytes.size(), 72U);
  EXPECT_EQ(ask(Request::kSetMemTable, table, 1).u64(), 0U);
  EXPECT_EQ(last_call(), "set_mem_table [0x1000 0x1000 0x2000 0x1000 true]");
  EXPECT_EQ(ask(Request::kSetVringCall, u64(1), 1).u64(), 0U);
  EXPECT_EQ(ask(Request::kSetVringNum, state(1, 256)).u64(), 0U);
  EXPECT_EQ(ask(Request::kSetVringBase, state(1, 0)).u64(), 0U);
  EXPECT_EQ(ask(Request::kSetVringAddr, Bytes{}.add(VringAddress{.index = 1,
                                                                 .flags = 0,
                                                                 .descriptors = 1,
                                                                 .used = 2,
                                                                 .available = 3,
                                                                 .log = ~std::uint64_t{0}}))
                .u64(),
            0U);
  EXPECT_EQ(last_call(), "set_vring_addresses 1 vmm 0x1 0x3 0x2 no log");
  EXPECT_EQ(ask(Request::kSetVringKick, u64(1), 1).u64(), 0U);
  EXPECT_EQ(last_call(), "set_vring_kick 1 fd");
  EXPECT_EQ(ask(Request::kSetVringEnable, state(1, 1)).u64(), 0U);
  EXPECT_EQ(last_call(), "set_vring_enable 1 true");
}

// One request of each kind, right in every way.
struct Good {
  Request request;
  Bytes payload;
  std::size_t fds;
  std::string call;  // what the backend hears; empty for questions it isn't told of
  bool has_own_reply;
};

std::vector<Good> good_requests() {
  const RegionDescription region{.guest = 1, .size = 2, .vmm = 3, .mmap_offset = 4};
  const SingleRegion single{.padding = 0, .region = region};
  const InflightDescription inflight{
      .mmap_size = 10, .mmap_offset = 20, .queues = 2, .queue_size = 64, .padding = 0};
  std::vector<Good> all;
  all.push_back({Request::kGetFeatures, {}, 0, "", true});
  all.push_back(
      {Request::kSetFeatures, u64(bit(Feature::kVersion1)), 0, "set_features 0x100000000", false});
  all.push_back({Request::kSetOwner, {}, 0, "set_owner", false});
  all.push_back({Request::kResetOwner, {}, 0, "reset_owner", false});
  all.push_back({Request::kSetMemTable,
                 Bytes{}.add(MemoryTable{.count = 2, .padding = 0}).add(region).add(region), 2,
                 "set_mem_table [0x1 0x3 0x2 0x4 true] [0x1 0x3 0x2 0x4 true]", false});
  all.push_back({Request::kSetLogBase, Bytes{}.add(LogDescription{.size = 5, .offset = 6}), 1,
                 "set_log_base 5 6 true", true});
  all.push_back({Request::kSetLogFd, {}, 1, "set_log_fd true", false});
  all.push_back({Request::kSetVringNum, state(2, 128), 0, "set_vring_size 2 128", false});
  all.push_back({Request::kSetVringAddr,
                 Bytes{}.add(VringAddress{.index = 2,
                                          .flags = kVringAddressLog,
                                          .descriptors = 1,
                                          .used = 2,
                                          .available = 3,
                                          .log = 4}),
                 0, "set_vring_addresses 2 guest 0x1 0x3 0x2 log 0x4", false});
  all.push_back({Request::kSetVringBase, state(2, 9), 0, "set_vring_base 2 9", false});
  all.push_back({Request::kGetVringBase, state(2, 0), 0, "get_vring_base 2", true});
  all.push_back({Request::kSetVringKick, u64(2), 1, "set_vring_kick 2 fd", false});
  all.push_back({Request::kSetVringCall, u64(2), 1, "set_vring_call 2 fd", false});
  all.push_back({Request::kSetVringErr, u64(2), 1, "set_vring_error 2 fd", false});
  all.push_back({Request::kGetProtocolFeatures, {}, 0, "", true});
  all.push_back({Request::kSetProtocolFeatures,
                 u64(kAllProtocolFeatures | bit(ProtocolFeature::kReplyAck)), 0,
                 fmt::format("set_protocol_features {:#x}",
                             kAllProtocolFeatures | bit(ProtocolFeature::kReplyAck)),
                 false});
  all.push_back({Request::kGetQueueNum, {}, 0, "", true});
  all.push_back({Request::kSetVringEnable, state(2, 1), 0, "set_vring_enable 2 true", false});
  all.push_back({Request::kSetBackendReqFd, {}, 1, "set_backend_request_fd true", false});
  all.push_back({Request::kGetConfig,
                 Bytes{}.add(ConfigHeader{.offset = 1, .size = 4, .flags = 0}).zeros(4), 0,
                 "get_config 1 4", true});
  all.push_back({Request::kSetConfig,
                 Bytes{}.add(ConfigHeader{.offset = 1, .size = 4, .flags = 1}).zeros(4), 0,
                 "set_config 1 4 migration", false});
  all.push_back({Request::kGetInflightFd, Bytes{}.add(inflight), 0, "get_inflight_fd 2 64", true});
  all.push_back({Request::kSetInflightFd, Bytes{}.add(inflight), 1,
                 "set_inflight_fd 10 20 2 64 true", false});
  all.push_back({Request::kResetDevice, {}, 0, "reset_device", false});
  all.push_back({Request::kVringKick, state(2, 0), 0, "vring_kick 2", false});
  all.push_back({Request::kGetMaxMemSlots, {}, 0, "", true});
  all.push_back({Request::kAddMemReg, Bytes{}.add(single), 1,
                 "add_mem_region [0x1 0x3 0x2 0x4 true]", false});
  all.push_back({Request::kRemMemReg, Bytes{}.add(single), 0,
                 "remove_mem_region [0x1 0x3 0x2 0x4 false]", false});
  all.push_back({Request::kSetStatus, u64(7), 0, "set_status 7", false});
  all.push_back({Request::kGetStatus, {}, 0, "", true});
  all.push_back({Request::kSetDeviceStateFd,
                 Bytes{}.add(DeviceStateTransfer{.direction = 1, .phase = 0}), 1,
                 "set_device_state_fd load true", true});
  all.push_back({Request::kCheckDeviceState, {}, 0, "check_device_state", true});
  all.push_back({Request::kGetShmemConfig, {}, 0, "", true});
  return all;
}

TEST_F(SessionTest, EveryRequestReachesTheBackendAndIsAnsweredOnce) {
  for (const Good& good : good_requests()) {
    SCOPED_TRACE(name(good.request));
    negotiate();
    backend_.calls.clear();
    const Reply reply = ask(good.request, good.payload, good.fds);
    EXPECT_TRUE(good.has_own_reply || reply.u64() == 0);
    EXPECT_TRUE(silent());
    EXPECT_EQ(last_call(), good.call);
  }
}

TEST_F(SessionTest, OnlyRequestsWithAReplyOfTheirOwnAreAnsweredUnasked) {
  for (const Good& good : good_requests()) {
    SCOPED_TRACE(name(good.request));
    negotiate();
    tell(good.request, good.payload, good.fds);
    EXPECT_EQ(silent(), !good.has_own_reply);
  }
}

TEST_F(SessionTest, NoRequestLeaksItsDescriptors) {
  for (const bool refuse : {false, true}) {
    backend_.refuse = refuse ? std::optional{Errno{EIO}} : std::nullopt;
    for (const Good& good : good_requests()) {
      for (std::size_t fds = 0; fds <= kMaxFds; ++fds) {
        SCOPED_TRACE(fmt::format("{} with {} descriptors", name(good.request), fds));
        negotiate();
        const std::size_t before = open_descriptors();
        tell(good.request, good.payload, fds);
        if (fds == good.fds && good.has_own_reply)
          take_reply(static_cast<std::uint32_t>(good.request));
        EXPECT_EQ(open_descriptors(), before);
      }
    }
  }
}

TEST_F(SessionTest, TheWrongNumberOfDescriptorsIsRefused) {
  for (const Good& good : good_requests()) {
    for (const std::size_t fds : {good.fds + 1, good.fds + 2, good.fds - 1}) {
      if (fds > kMaxFds) continue;
      // The one lenient row: old front-ends send a descriptor along.
      if (good.request == Request::kRemMemReg && fds == 1) continue;
      SCOPED_TRACE(fmt::format("{} with {} descriptors", name(good.request), fds));
      negotiate();
      backend_.calls.clear();
      const Reply reply = ask(good.request, good.payload, fds);
      EXPECT_NE(reply.u64(), 0U);
      EXPECT_EQ(last_call(), "");
    }
  }
}

TEST_F(SessionTest, AWrongPayloadSizeIsRefused) {
  for (const Good& good : good_requests()) {
    SCOPED_TRACE(name(good.request));
    const std::size_t size = good.payload.bytes.size();
    Bytes shorter = good.payload;
    if (size > 0) {
      shorter.bytes.pop_back();
      // Both padded and unpadded in-flight descriptions are in use; anything below is not. A
      // question about configuration need not bring room for the answer.
      if (good.request == Request::kGetInflightFd || good.request == Request::kSetInflightFd) {
        shorter.bytes.resize(InflightDescription::kUnpadded - 1);
      }
      if (good.request == Request::kGetConfig) shorter.bytes.resize(sizeof(ConfigHeader) - 1);
      negotiate();
      backend_.calls.clear();
      EXPECT_NE(ask(good.request, shorter, good.fds).u64(), 0U);
      EXPECT_EQ(last_call(), "");
    }
    if (good.request == Request::kSetMemTable || good.request == Request::kGetConfig ||
        good.request == Request::kSetConfig) {
      continue;  // these may be longer than what they say
    }
    Bytes longer = good.payload;
    longer.zeros(1);
    negotiate();
    backend_.calls.clear();
    EXPECT_NE(ask(good.request, longer, good.fds).u64(), 0U);
    EXPECT_EQ(last_call(), "");
  }
}

TEST_F(SessionTest, ARequestOfAFeatureThatIsNotNegotiatedIsRefused) {
  struct Gate {
    Request request;
    ProtocolFeature feature;
  };
  constexpr Gate kGates[] = {
      {Request::kSetLogBase, ProtocolFeature::kLogShmfd},
      {Request::kGetConfig, ProtocolFeature::kConfig},
      {Request::kSetConfig, ProtocolFeature::kConfig},
      {Request::kGetInflightFd, ProtocolFeature::kInflightShmfd},
      {Request::kSetInflightFd, ProtocolFeature::kInflightShmfd},
      {Request::kVringKick, ProtocolFeature::kInbandNotifications},
      {Request::kGetMaxMemSlots, ProtocolFeature::kConfigureMemSlots},
      {Request::kAddMemReg, ProtocolFeature::kConfigureMemSlots},
      {Request::kRemMemReg, ProtocolFeature::kConfigureMemSlots},
      {Request::kSetStatus, ProtocolFeature::kStatus},
      {Request::kGetStatus, ProtocolFeature::kStatus},
      {Request::kSetDeviceStateFd, ProtocolFeature::kDeviceState},
      {Request::kCheckDeviceState, ProtocolFeature::kDeviceState},
      {Request::kGetShmemConfig, ProtocolFeature::kShmem},
      {Request::kGetQueueNum, ProtocolFeature::kMq},
      {Request::kSetBackendReqFd, ProtocolFeature::kBackendReq},
      {Request::kResetDevice, ProtocolFeature::kResetDevice},
  };
  const auto all = good_requests();
  for (const Gate& gate : kGates) {
    SCOPED_TRACE(name(gate.request));
    const auto good = std::ranges::find(all, gate.request, &Good::request);
    ASSERT_NE(good, all.end());
    backend_.offered_protocol_features = kAllProtocolFeatures & ~bit(gate.feature);
    negotiate(bit(gate.feature));
    backend_.calls.clear();
    EXPECT_NE(ask(good->request, good->payload, good->fds).u64(), 0U);
    EXPECT_TRUE(silent());
    EXPECT_EQ(last_call(), "");
  }
}

TEST_F(SessionTest, SomeRequestsNeedTheirFeatureOnlyOffered) {
  connect();
  EXPECT_EQ(ask(Request::kGetQueueNum).u64(), 3U);
  tell(Request::kSetBackendReqFd, {}, 1);
  EXPECT_EQ(last_call(), "set_backend_request_fd true");
  tell(Request::kResetDevice);
  EXPECT_EQ(last_call(), "reset_device");
}

TEST_F(SessionTest, RequestsOfOtherDevicesAndUnknownOnesAreRefusedAndTheStreamGoesOn) {
  negotiate();
  for (std::uint32_t number :
       {19U, 20U, 22U, 23U, 26U, 27U, 28U, 29U, 30U, 33U, 41U, 0U, 45U, 1000U, 0xffffffffU}) {
    SCOPED_TRACE(number);
    for (const std::size_t size : {std::size_t{0}, std::size_t{8}, kMaxPayload}) {
      const Reply reply = ask(static_cast<Request>(number), Bytes{}.zeros(size), 1);
      EXPECT_NE(reply.u64(), 0U);
    }
    EXPECT_EQ(ask(Request::kGetQueueNum).u64(), 3U);
  }
  EXPECT_TRUE(backend_.calls.empty());
}

TEST_F(SessionTest, AnUnknownRequestThatAsksForNothingGetsNothing) {
  negotiate();
  tell(static_cast<Request>(45), {}, 2);
  EXPECT_TRUE(silent());
}

TEST_F(SessionTest, WithoutReplyAckNobodyIsAcknowledged) {
  negotiate(bit(ProtocolFeature::kReplyAck));
  put(3, {}, 0, kVersion | kFlagNeedReply);
  ASSERT_TRUE(*session_->serve_one());
  EXPECT_TRUE(silent());
  put(45, {}, 0, kVersion | kFlagNeedReply);
  ASSERT_TRUE(*session_->serve_one());
  EXPECT_TRUE(silent());
}

TEST_F(SessionTest, TheMessageThatNegotiatesReplyAckIsAcknowledgedAlsoWhenRefused) {
  constexpr std::uint64_t kAck = bit(ProtocolFeature::kReplyAck);
  EXPECT_NE(ask(Request::kSetProtocolFeatures, u64(kAck | (std::uint64_t{1} << 63))).u64(), 0U);
  EXPECT_TRUE(backend_.calls.empty());
  EXPECT_EQ(ask(Request::kSetProtocolFeatures, u64(kAck)).u64(), 0U);
  EXPECT_EQ(session_->agreement().protocol_features, kAck);
}

TEST_F(SessionTest, FeaturesThatAreNotOnOfferAreRefused) {
  negotiate();
  EXPECT_NE(ask(Request::kSetFeatures, u64(bit(Feature::kAccessPlatform))).u64(), 0U);
  EXPECT_TRUE(backend_.calls.empty());
  EXPECT_EQ(ask(Request::kSetFeatures, u64(bit(Feature::kLogAll))).u64(), 0U);
  EXPECT_EQ(session_->agreement().features, bit(Feature::kLogAll));
}

TEST_F(SessionTest, WhatTheBackendRefusesIsNotAgreedOn) {
  negotiate();
  const Agreement before = session_->agreement();
  backend_.refuse = Errno{EBUSY};
  EXPECT_EQ(ask(Request::kSetFeatures, u64(bit(Feature::kLogAll))).u64(),
            static_cast<std::uint64_t>(EBUSY));
  EXPECT_NE(ask(Request::kSetProtocolFeatures, u64(bit(ProtocolFeature::kReplyAck))).u64(), 0U);
  EXPECT_EQ(session_->agreement().features, before.features);
  EXPECT_EQ(session_->agreement().protocol_features, before.protocol_features);
}

TEST_F(SessionTest, ARingThatDoesNotExistIsRefused) {
  negotiate();
  for (const Request request : {Request::kSetVringNum, Request::kSetVringBase,
                                Request::kSetVringEnable, Request::kVringKick}) {
    for (const std::uint32_t index : {3U, 255U, 256U, 0xffffffffU}) {
      EXPECT_NE(ask(request, state(index, 1)).u64(), 0U) << name(request) << index;
    }
  }
  EXPECT_EQ(ask(Request::kGetVringBase, state(3, 0)).payload.size(), 0U);
  EXPECT_NE(ask(Request::kSetVringAddr,
                Bytes{}.add(VringAddress{
                    .index = 3, .flags = 0, .descriptors = 0, .used = 0, .available = 0, .log = 0}))
                .u64(),
            0U);
  const std::size_t before = open_descriptors();
  for (const Request request :
       {Request::kSetVringKick, Request::kSetVringCall, Request::kSetVringErr}) {
    EXPECT_NE(ask(request, u64(3), 1).u64(), 0U);
    EXPECT_NE(ask(request, u64(255), 1).u64(), 0U);
  }
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_TRUE(backend_.calls.empty());
}

TEST_F(SessionTest, ARingMayHaveNoDescriptorIfTheMessageSaysSo) {
  negotiate();
  EXPECT_EQ(ask(Request::kSetVringKick, u64(0x100)).u64(), 0U);
  EXPECT_EQ(last_call(), "set_vring_kick 0 none");
  EXPECT_EQ(ask(Request::kSetVringCall, u64(0x101)).u64(), 0U);
  EXPECT_EQ(last_call(), "set_vring_call 1 none");
  EXPECT_EQ(ask(Request::kSetVringErr, u64(0x102)).u64(), 0U);
  EXPECT_EQ(last_call(), "set_vring_error 2 none");
  EXPECT_NE(ask(Request::kSetVringCall, u64(0x101), 1).u64(), 0U);
}

TEST_F(SessionTest, WithoutProtocolFeaturesARingIsEnabledAtItsKick) {
  tell(Request::kSetFeatures, u64(bit(Feature::kVersion1)));
  tell(Request::kSetVringKick, u64(1), 1);
  EXPECT_EQ(backend_.calls,
            (std::vector<std::string>{"set_features 0x100000000", "set_vring_enable 1 true",
                                      "set_vring_kick 1 fd"}));
}

TEST_F(SessionTest, EnableTakesZeroOrOne) {
  negotiate();
  EXPECT_EQ(ask(Request::kSetVringEnable, state(0, 0)).u64(), 0U);
  EXPECT_EQ(last_call(), "set_vring_enable 0 false");
  EXPECT_NE(ask(Request::kSetVringEnable, state(0, 2)).u64(), 0U);
}

TEST_F(SessionTest, RingAddressesAreTheVmmsUnlessGuestAddressesAreNegotiated) {
  const Bytes address = Bytes{}.add(
      VringAddress{.index = 0, .flags = 0, .descriptors = 1, .used = 2, .available = 3, .log = 0});
  negotiate(bit(ProtocolFeature::kGpaAddresses));
  tell(Request::kSetVringAddr, address);
  EXPECT_EQ(last_call(), "set_vring_addresses 0 vmm 0x1 0x3 0x2 no log");
  negotiate();
  tell(Request::kSetVringAddr, address);
  EXPECT_EQ(last_call(), "set_vring_addresses 0 guest 0x1 0x3 0x2 no log");
}

TEST_F(SessionTest, TheBaseOfARingComesBackWhole) {
  negotiate();
  const Reply reply = ask(Request::kGetVringBase, state(1, 0));
  ASSERT_EQ(reply.payload.size(), sizeof(VringState));
  VringState base{};
  std::memcpy(&base, reply.payload.data(), sizeof(base));
  EXPECT_EQ(base.index, 1U);
  EXPECT_EQ(base.num, 0x80018001U);
}

TEST_F(SessionTest, AMemoryTableMayBeEmptyOrFullAndNoFuller) {
  negotiate();
  const auto table = [](std::uint32_t count) {
    Bytes bytes = Bytes{}.add(MemoryTable{.count = count, .padding = 0});
    return bytes.zeros(std::size_t{32} * std::min(count, 9U));
  };
  EXPECT_EQ(ask(Request::kSetMemTable, table(0)).u64(), 0U);
  EXPECT_EQ(last_call(), "set_mem_table");
  EXPECT_EQ(ask(Request::kSetMemTable, table(8), 8).u64(), 0U);
  EXPECT_NE(ask(Request::kSetMemTable, table(9), 8).u64(), 0U);
  EXPECT_NE(ask(Request::kSetMemTable, table(0xffffffff), 8).u64(), 0U);
}

TEST_F(SessionTest, AMemoryTableShorterThanItsCountIsRefused) {
  negotiate();
  const std::size_t before = open_descriptors();
  EXPECT_NE(
      ask(Request::kSetMemTable, Bytes{}.add(MemoryTable{.count = 2, .padding = 0}).zeros(63), 2)
          .u64(),
      0U);
  EXPECT_TRUE(backend_.calls.empty());
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(SessionTest, RemovingARegionClosesADescriptorThatCameAlong) {
  negotiate();
  const std::size_t before = open_descriptors();
  EXPECT_EQ(ask(Request::kRemMemReg, Bytes{}.add(SingleRegion{}), 1).u64(), 0U);
  EXPECT_EQ(last_call(), "remove_mem_region [0x0 0x0 0x0 0x0 false]");
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(SessionTest, ConfigurationSpaceReadsAsZeroPastItsEnd) {
  negotiate();
  const auto config = [](std::uint32_t offset, std::uint32_t size) {
    return Bytes{}.add(ConfigHeader{.offset = offset, .size = size, .flags = 0});
  };
  Reply reply = ask(Request::kGetConfig, config(2, 3).zeros(3));
  ASSERT_EQ(reply.payload.size(), 15U);
  EXPECT_EQ(reply.payload[12], std::byte{'g'});
  EXPECT_EQ(reply.payload[13], std::byte{0});
  reply = ask(Request::kGetConfig, config(0xffffffff, 64).zeros(64));
  ASSERT_EQ(reply.payload.size(), 76U);
  EXPECT_EQ(reply.payload[12], std::byte{0});
  EXPECT_EQ(ask(Request::kGetConfig, config(0, kMaxPayload - 12)).payload.size(), kMaxPayload);
  EXPECT_EQ(ask(Request::kGetConfig, config(0, kMaxPayload - 11)).payload.size(), 0U);
  EXPECT_EQ(ask(Request::kGetConfig, config(0, 0xffffffff)).payload.size(), 0U);
}

TEST_F(SessionTest, FailingToReadConfigurationSpaceIsAnEmptyReply) {
  negotiate();
  backend_.refuse = Errno{EIO};
  const Reply reply = ask(Request::kGetConfig,
                          Bytes{}.add(ConfigHeader{.offset = 0, .size = 4, .flags = 0}).zeros(4));
  EXPECT_EQ(reply.header.size, 0U);
}

TEST_F(SessionTest, WritingConfigurationSpaceNeedsAllItsBytesAndKnownFlags) {
  negotiate();
  const auto config = [](std::uint32_t size, std::uint32_t flags) {
    return Bytes{}.add(ConfigHeader{.offset = 0, .size = size, .flags = flags}).zeros(4);
  };
  EXPECT_EQ(ask(Request::kSetConfig, config(4, 0)).u64(), 0U);
  EXPECT_EQ(last_call(), "set_config 0 4 guest");
  EXPECT_NE(ask(Request::kSetConfig, config(5, 0)).u64(), 0U);
  EXPECT_NE(ask(Request::kSetConfig, config(4, 2)).u64(), 0U);
}

TEST_F(SessionTest, TheDirtyLogIsAnsweredEvenWhenRefused) {
  negotiate();
  const Bytes log = Bytes{}.add(LogDescription{.size = 1, .offset = 0});
  EXPECT_EQ(ask(Request::kSetLogBase, log, 1, kVersion).u64(), 0U);
  backend_.refuse = Errno{EINVAL};
  EXPECT_EQ(ask(Request::kSetLogBase, log, 1, kVersion).u64(), static_cast<std::uint64_t>(EINVAL));
}

TEST_F(SessionTest, TheOldDirtyLogWithoutSharedMemoryIsNotAnswered) {
  negotiate(bit(ProtocolFeature::kLogShmfd));
  tell(Request::kSetLogBase, u64(0x1000));
  EXPECT_TRUE(silent());
}

TEST_F(SessionTest, TheInflightAreaComesInBothSizesOfItsDescription) {
  negotiate();
  for (const std::size_t size : {std::size_t{20}, std::size_t{24}}) {
    Bytes wanted = Bytes{}.add(InflightDescription{
        .mmap_size = 0, .mmap_offset = 0, .queues = 3, .queue_size = 256, .padding = 0});
    wanted.bytes.resize(size);
    const Reply reply = ask(Request::kGetInflightFd, wanted);
    ASSERT_EQ(reply.payload.size(), size);
    EXPECT_EQ(reply.fds, 1U);
    InflightDescription made{};
    std::memcpy(&made, reply.payload.data(), size);
    EXPECT_EQ(made.mmap_size, 4096U);
    EXPECT_EQ(made.queues, 3U);
    EXPECT_EQ(made.queue_size, 256U);
  }
  backend_.refuse = Errno{ENOMEM};
  const Reply reply = ask(Request::kGetInflightFd, Bytes{}.add(InflightDescription{}));
  ASSERT_EQ(reply.payload.size(), 24U);
  EXPECT_EQ(reply.fds, 0U);
  EXPECT_EQ(reply.payload[1], std::byte{0});
}

TEST_F(SessionTest, DeviceStateGoesThroughTheVmmsChannelOrOurs) {
  negotiate();
  const Bytes save = Bytes{}.add(DeviceStateTransfer{.direction = 0, .phase = 0});
  Reply reply = ask(Request::kSetDeviceStateFd, save, 1);
  EXPECT_EQ(reply.u64(), kDeviceStateNoFd);
  EXPECT_EQ(reply.fds, 0U);
  EXPECT_EQ(last_call(), "set_device_state_fd save true");

  backend_.brings_channel = true;
  reply = ask(Request::kSetDeviceStateFd, save, 1);
  EXPECT_EQ(reply.u64(), 0U);
  EXPECT_EQ(reply.fds, 1U);

  backend_.refuse = Errno{EBUSY};
  reply = ask(Request::kSetDeviceStateFd, save, 1);
  EXPECT_EQ(reply.u64(), kDeviceStateNoFd | EBUSY);
  EXPECT_EQ(reply.fds, 0U);
}

TEST_F(SessionTest, DeviceStateHasTwoDirectionsAndOnePhase) {
  negotiate();
  EXPECT_NE(ask(Request::kSetDeviceStateFd,
                Bytes{}.add(DeviceStateTransfer{.direction = 2, .phase = 0}), 1)
                    .u64() &
                0xff,
            0U);
  EXPECT_NE(ask(Request::kSetDeviceStateFd,
                Bytes{}.add(DeviceStateTransfer{.direction = 0, .phase = 1}), 1)
                    .u64() &
                0xff,
            0U);
  EXPECT_TRUE(backend_.calls.empty());
  backend_.refuse = Errno{EIO};
  EXPECT_EQ(ask(Request::kCheckDeviceState).u64(), static_cast<std::uint64_t>(EIO));
}

TEST_F(SessionTest, SharedMemoryRegionsAreCountedAndListedById) {
  negotiate();
  const Reply reply = ask(Request::kGetShmemConfig);
  ASSERT_EQ(reply.payload.size(), sizeof(ShmemConfig));
  ShmemConfig config{};
  std::memcpy(&config, reply.payload.data(), sizeof(config));
  EXPECT_EQ(config.regions, 2U);
  EXPECT_EQ(config.sizes[0], 1U << 20);
  EXPECT_EQ(config.sizes[1], 0U);
  EXPECT_EQ(config.sizes[2], 4096U);
  EXPECT_EQ(config.sizes[255], 0U);
}

TEST_F(SessionTest, NumbersTheBackendKeepsAreReadBack) {
  negotiate();
  EXPECT_EQ(ask(Request::kGetMaxMemSlots).u64(), 77U);
  EXPECT_EQ(ask(Request::kGetStatus).u64(), 0xfU);
}

TEST_F(SessionTest, AMessageInSingleBytesIsServedWhenItIsWhole) {
  negotiate();
  Bytes message;
  message.add(Header{.request = 8, .flags = kVersion, .size = 8}).add(VringState{1, 64});
  for (std::size_t i = 0; i < message.bytes.size(); ++i) {
    EXPECT_TRUE(backend_.calls.empty());
    const auto one = std::span(message.bytes).subspan(i, 1);
    ASSERT_TRUE(sys::send_all(vmm_, one, {}, std::chrono::steady_clock::now() + 1s));
    ASSERT_TRUE(*session_->serve_one());
  }
  EXPECT_EQ(last_call(), "set_vring_size 1 64");
}

TEST_F(SessionTest, AMalformedMessageEndsTheConversation) {
  const auto ends_with = [&](const Header& header, std::size_t fds) {
    connect();
    const std::size_t before = open_descriptors();
    const UniqueFd carried = event();
    const std::vector<FdRef> refs(fds, FdRef{carried});
    EXPECT_TRUE(sys::send_all(vmm_, bytes_of(header), refs, std::chrono::steady_clock::now() + 1s));
    const Result<bool> served = session_->serve_one();
    EXPECT_TRUE(silent());
    session_.reset();
    EXPECT_EQ(open_descriptors(), before);  // the carried one for the socket
    return served ? Errno{0} : served.error();
  };
  EXPECT_EQ(ends_with({.request = 1, .flags = 0, .size = 0}, 0), Errno{EPROTO});
  EXPECT_EQ(ends_with({.request = 1, .flags = 2, .size = 0}, 0), Errno{EPROTO});
  EXPECT_EQ(ends_with({.request = 1, .flags = 3, .size = 0}, 1), Errno{EPROTO});
  EXPECT_EQ(ends_with({.request = 1, .flags = 5, .size = 0}, 0), Errno{EPROTO});
  EXPECT_EQ(ends_with({.request = 1, .flags = 1, .size = kMaxPayload + 1}, 0), Errno{EMSGSIZE});
  EXPECT_EQ(ends_with({.request = 1, .flags = 1, .size = 0xffffffff}, 2), Errno{EMSGSIZE});
  EXPECT_EQ(ends_with({.request = 5, .flags = 1, .size = 0}, kMaxFds + 1), Errno{EMSGSIZE});
}

TEST_F(SessionTest, AMessageCutShortEndsTheConversation) {
  const Header header{.request = 8, .flags = kVersion, .size = 8};
  ASSERT_TRUE(sys::send_all(vmm_, bytes_of(header), {}, std::chrono::steady_clock::now() + 1s));
  ASSERT_TRUE(*session_->serve_one());
  vmm_.reset();
  EXPECT_EQ(session_->serve_one().error(), Errno{ECONNRESET});
}

TEST_F(SessionTest, SaysWhenTheVmmClosed) {
  vmm_.reset();
  EXPECT_FALSE(*session_->serve_one());
}

TEST_F(SessionTest, AVmmThatIsGoneBeforeItsReplyIsAnErrorAndNoSignal) {
  put(1, {});
  vmm_.reset();
  EXPECT_FALSE(session_->serve_one());
}

TEST_F(SessionTest, AVmmThatDoesNotReadItsRepliesEndsTheConversation) {
  negotiate();
  const int small = 1;
  ASSERT_EQ(::setsockopt(session_->fd().number(), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
  Result<bool> served = true;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000 && served; ++i) {
    put(static_cast<std::uint32_t>(Request::kGetShmemConfig), {});
    served = session_->serve_one();
  }
  ASSERT_FALSE(served);
  EXPECT_EQ(served.error(), Errno{ETIMEDOUT});
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 10 * Session::kReplyTime);
}

TEST_F(SessionTest, ASuccessorCarriesOnWithWhatWasAgreed) {
  EXPECT_EQ(ask(Request::kSetProtocolFeatures,
                u64(bit(ProtocolFeature::kReplyAck) | bit(ProtocolFeature::kStatus)))
                .u64(),
            0U);
  connect(session_->agreement());
  EXPECT_EQ(ask(Request::kSetStatus, u64(1)).u64(), 0U);
  EXPECT_EQ(last_call(), "set_status 1");
}

}  // namespace
}  // namespace virtiofsd::vhost_user
