// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "vhost_user/session.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace virtiofsd::vhost_user {
namespace {

// A VMM that is refused all the time must not fill the operator's disk.
constexpr int kLoudRefusals = 20;

// Configuration space is small; 256 bytes is what QEMU and libvhost-user reserve for it. We go as
// far as a message does.
constexpr std::size_t kMaxConfig = kMaxPayload - sizeof(ConfigHeader);

// What the payload of a request is made of.
enum class Payload : std::uint8_t {
  kAny,  // of requests we never follow
  kNone,
  kNoneOrU64,  // the document says none, some front-ends send a word
  kU64,
  kVringWord,  // kVringIndexMask and kVringNoFd
  kState,
  kAddress,
  kTable,
  kRegion,
  kLog,
  kConfig,
  kConfigBytes,
  kInflight,
  kTransfer,
};

struct SizeRule {
  std::size_t least;
  std::size_t most;
};

constexpr SizeRule size_rule(Payload payload) {
  switch (payload) {
    case Payload::kAny:
      return {0, kMaxPayload};
    case Payload::kNone:
      return {0, 0};
    case Payload::kNoneOrU64:
      return {0, sizeof(std::uint64_t)};
    case Payload::kU64:
    case Payload::kVringWord:
      return {sizeof(std::uint64_t), sizeof(std::uint64_t)};
    case Payload::kState:
      return {sizeof(VringState), sizeof(VringState)};
    case Payload::kAddress:
      return {sizeof(VringAddress), sizeof(VringAddress)};
    case Payload::kTable:
      // Linux's virtio_uml up to 6.12 sends room for two regions whatever their number.
      return {sizeof(MemoryTable), kMaxPayload};
    case Payload::kRegion:
      return {sizeof(SingleRegion), sizeof(SingleRegion)};
    case Payload::kLog:
      return {sizeof(LogDescription), sizeof(LogDescription)};
    case Payload::kConfig:
    case Payload::kConfigBytes:
      return {sizeof(ConfigHeader), kMaxPayload};
    case Payload::kInflight:
      return {InflightDescription::kUnpadded, sizeof(InflightDescription)};
    case Payload::kTransfer:
      return {sizeof(DeviceStateTransfer), sizeof(DeviceStateTransfer)};
  }
  return {0, 0};
}

// How many descriptors a request brings.
enum class Fds : std::uint8_t {
  kIgnored,  // any, closed unused
  kNone,
  kOne,
  kAtMostOne,
  kByVringWord,  // one, or none when kVringNoFd is set
  kByTable,      // one per region
};

enum class Needs : std::uint8_t {
  kNothing,
  kOffered,     // the front-end may use it as soon as it has seen the bit
  kNegotiated,  // the bit must be acknowledged
};

enum class Answer : std::uint8_t {
  kAck,              // zero or an errno, if asked for
  kValue,            // its own; an empty payload when it fails
  kStatus,           // always zero or an errno
  kStatusIfFeature,  // kStatus, or kAck while the feature isn't negotiated
};

// The numbers of a message, for the log. Sizes have been checked.
std::string describe(Payload kind, std::span<const std::byte> payload) {
  Reader reader{payload};
  switch (kind) {
    case Payload::kAny:
    case Payload::kNone:
    case Payload::kNoneOrU64:
      return {};
    case Payload::kU64: {
      const auto value = reader.take<std::uint64_t>();
      return value ? fmt::format(" {:#x}", *value) : "";
    }
    case Payload::kVringWord: {
      const auto value = reader.take<std::uint64_t>();
      if (!value) return {};
      return fmt::format(" ring {}{}", *value & kVringIndexMask,
                         (*value & kVringNoFd) != 0 ? ", no descriptor" : "");
    }
    case Payload::kState: {
      const auto state = reader.take<VringState>();
      return state ? fmt::format(" ring {}, {:#x}", state->index, state->num) : "";
    }
    case Payload::kAddress: {
      const auto address = reader.take<VringAddress>();
      if (!address) return {};
      return fmt::format(" ring {}, descriptors {:#x}, available {:#x}, used {:#x}, flags {:#x}",
                         address->index, address->descriptors, address->available, address->used,
                         address->flags);
    }
    case Payload::kTable: {
      const auto table = reader.take<MemoryTable>();
      if (!table) return {};
      std::string text = fmt::format(" {} regions", table->count);
      for (std::uint32_t i = 0; i < std::min(table->count, kMaxTableRegions); ++i) {
        const auto region = reader.take<RegionDescription>();
        if (!region) break;
        text += fmt::format("; guest {:#x}, size {:#x}, vmm {:#x}, offset {:#x}", region->guest,
                            region->size, region->vmm, region->mmap_offset);
      }
      return text;
    }
    case Payload::kRegion: {
      const auto single = reader.take<SingleRegion>();
      if (!single) return {};
      const RegionDescription& region = single->region;
      return fmt::format(" guest {:#x}, size {:#x}, vmm {:#x}, offset {:#x}", region.guest,
                         region.size, region.vmm, region.mmap_offset);
    }
    case Payload::kLog: {
      const auto log = reader.take<LogDescription>();
      return log ? fmt::format(" size {:#x}, offset {:#x}", log->size, log->offset) : "";
    }
    case Payload::kConfig:
    case Payload::kConfigBytes: {
      const auto config = reader.take<ConfigHeader>();
      if (!config) return {};
      return fmt::format(" offset {}, size {}, flags {:#x}", config->offset, config->size,
                         config->flags);
    }
    case Payload::kInflight: {
      const auto area = reader.take_prefix<InflightDescription>(InflightDescription::kUnpadded);
      if (!area) return {};
      return fmt::format(" size {:#x}, offset {:#x}, {} rings of {}", area->mmap_size,
                         area->mmap_offset, area->queues, area->queue_size);
    }
    case Payload::kTransfer: {
      const auto transfer = reader.take<DeviceStateTransfer>();
      if (!transfer) return {};
      return fmt::format(" direction {}, phase {}", transfer->direction, transfer->phase);
    }
  }
  return {};
}

MemoryRegion region_of(const RegionDescription& wire, UniqueFd file) {
  return MemoryRegion{.guest = GuestAddress{wire.guest},
                      .vmm = VmmAddress{wire.vmm},
                      .size = wire.size,
                      .mmap_offset = wire.mmap_offset,
                      .file = std::move(file)};
}

template <typename Address>
RingAddresses<Address> addresses_of(const VringAddress& wire) {
  RingAddresses<Address> addresses{.descriptors = Address{wire.descriptors},
                                   .available = Address{wire.available},
                                   .used = Address{wire.used},
                                   .log = std::nullopt};
  if ((wire.flags & kVringAddressLog) != 0) addresses.log = GuestAddress{wire.log};
  return addresses;
}

}  // namespace

struct Session::Row {
  Request request;
  Payload payload;
  Fds fds;
  Needs needs;
  ProtocolFeature feature;  // counts unless needs is kNothing
  Answer answer;
  Handler handler;
};

// One row per request, in the order of their numbers.
//
// GET_QUEUE_NUM, SET_BACKEND_REQ_FD and RESET_DEVICE are bound to what GET_PROTOCOL_FEATURES
// said, the others to what SET_PROTOCOL_FEATURES acknowledged. SET_VRING_ENABLE asks for bit 30
// in the document, but front-ends exist that enable rings without acknowledging it; no harm is
// done. A front-end that waits for a reply of a request's own must get one even when we refuse:
// an empty payload, as the document has it for GET_CONFIG, fails its size check.
constinit const std::array<Session::Row, 44> Session::kRows = {{
    {Request::kGetFeatures,
     Payload::kNone,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kValue,
     &Session::get_features},
    {Request::kSetFeatures,
     Payload::kU64,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_features},
    {Request::kSetOwner,
     Payload::kNone,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_owner},
    {Request::kResetOwner,
     Payload::kNone,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::reset_owner},
    {Request::kSetMemTable,
     Payload::kTable,
     Fds::kByTable,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_mem_table},
    {Request::kSetLogBase, Payload::kLog, Fds::kOne, Needs::kNegotiated, ProtocolFeature::kLogShmfd,
     Answer::kStatusIfFeature, &Session::set_log_base},
    {Request::kSetLogFd,
     Payload::kNoneOrU64,
     Fds::kOne,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_log_fd},
    {Request::kSetVringNum,
     Payload::kState,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_vring_num},
    {Request::kSetVringAddr,
     Payload::kAddress,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_vring_addr},
    {Request::kSetVringBase,
     Payload::kState,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_vring_base},
    {Request::kGetVringBase,
     Payload::kState,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kValue,
     &Session::get_vring_base},
    {Request::kSetVringKick,
     Payload::kVringWord,
     Fds::kByVringWord,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_vring_kick},
    {Request::kSetVringCall,
     Payload::kVringWord,
     Fds::kByVringWord,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_vring_call},
    {Request::kSetVringErr,
     Payload::kVringWord,
     Fds::kByVringWord,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_vring_err},
    {Request::kGetProtocolFeatures,
     Payload::kNone,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kValue,
     &Session::get_protocol_features},
    {Request::kSetProtocolFeatures,
     Payload::kU64,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_protocol_features},
    {Request::kGetQueueNum, Payload::kNone, Fds::kNone, Needs::kOffered, ProtocolFeature::kMq,
     Answer::kValue, &Session::get_queue_num},
    {Request::kSetVringEnable,
     Payload::kState,
     Fds::kNone,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::set_vring_enable},
    {Request::kSendRarp,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::unsupported},
    {Request::kNetSetMtu,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::unsupported},
    {Request::kSetBackendReqFd, Payload::kNone, Fds::kOne, Needs::kOffered,
     ProtocolFeature::kBackendReq, Answer::kAck, &Session::set_backend_req_fd},
    {Request::kIotlbMsg,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::unsupported},
    {Request::kSetVringEndian,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::unsupported},
    {Request::kGetConfig, Payload::kConfig, Fds::kNone, Needs::kNegotiated,
     ProtocolFeature::kConfig, Answer::kValue, &Session::get_config},
    {Request::kSetConfig, Payload::kConfigBytes, Fds::kNone, Needs::kNegotiated,
     ProtocolFeature::kConfig, Answer::kAck, &Session::set_config},
    {Request::kCreateCryptoSession,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kValue,
     &Session::unsupported},
    {Request::kCloseCryptoSession,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::unsupported},
    {Request::kPostcopyAdvise,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kValue,
     &Session::unsupported},
    {Request::kPostcopyListen,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::unsupported},
    {Request::kPostcopyEnd,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kStatus,
     &Session::unsupported},
    {Request::kGetInflightFd, Payload::kInflight, Fds::kNone, Needs::kNegotiated,
     ProtocolFeature::kInflightShmfd, Answer::kValue, &Session::get_inflight_fd},
    {Request::kSetInflightFd, Payload::kInflight, Fds::kOne, Needs::kNegotiated,
     ProtocolFeature::kInflightShmfd, Answer::kAck, &Session::set_inflight_fd},
    {Request::kGpuSetSocket,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kAck,
     &Session::unsupported},
    {Request::kResetDevice, Payload::kNone, Fds::kNone, Needs::kOffered,
     ProtocolFeature::kResetDevice, Answer::kAck, &Session::reset_device},
    {Request::kVringKick, Payload::kState, Fds::kNone, Needs::kNegotiated,
     ProtocolFeature::kInbandNotifications, Answer::kAck, &Session::vring_kick},
    {Request::kGetMaxMemSlots, Payload::kNone, Fds::kNone, Needs::kNegotiated,
     ProtocolFeature::kConfigureMemSlots, Answer::kValue, &Session::get_max_mem_slots},
    {Request::kAddMemReg, Payload::kRegion, Fds::kOne, Needs::kNegotiated,
     ProtocolFeature::kConfigureMemSlots, Answer::kAck, &Session::add_mem_reg},
    {Request::kRemMemReg, Payload::kRegion, Fds::kAtMostOne, Needs::kNegotiated,
     ProtocolFeature::kConfigureMemSlots, Answer::kAck, &Session::rem_mem_reg},
    {Request::kSetStatus, Payload::kU64, Fds::kNone, Needs::kNegotiated, ProtocolFeature::kStatus,
     Answer::kAck, &Session::set_status},
    {Request::kGetStatus, Payload::kNone, Fds::kNone, Needs::kNegotiated, ProtocolFeature::kStatus,
     Answer::kValue, &Session::get_status},
    {Request::kGetSharedObject,
     Payload::kAny,
     Fds::kIgnored,
     Needs::kNothing,
     {},
     Answer::kValue,
     &Session::unsupported},
    {Request::kSetDeviceStateFd, Payload::kTransfer, Fds::kOne, Needs::kNegotiated,
     ProtocolFeature::kDeviceState, Answer::kStatus, &Session::set_device_state_fd},
    {Request::kCheckDeviceState, Payload::kNone, Fds::kNone, Needs::kNegotiated,
     ProtocolFeature::kDeviceState, Answer::kStatus, &Session::check_device_state},
    {Request::kGetShmemConfig, Payload::kNone, Fds::kNone, Needs::kNegotiated,
     ProtocolFeature::kShmem, Answer::kValue, &Session::get_shmem_config},
}};

void Session::Exchange::answer_bytes(std::span<const std::byte> bytes) {
  CHECK(reply_size + bytes.size() <= reply.size());
  std::ranges::copy(bytes, reply.begin() + static_cast<std::ptrdiff_t>(reply_size));
  reply_size += bytes.size();
}

Session::Session(UniqueFd socket, Backend& backend, Agreement agreement)
    : connection_(std::move(socket)), backend_(backend), agreement_(agreement) {
  agreement_.acknowledges |= has(ProtocolFeature::kReplyAck);
  for (std::size_t i = 0; i < kRows.size(); ++i) {
    CHECK(static_cast<std::size_t>(kRows[i].request) == i + 1);
  }
  CHECK(backend.queue_count() >= 1 && backend.queue_count() <= kVringIndexMask + 1);
}

Result<bool> Session::serve_one() {
  const Result<Received> received = connection_.receive();
  if (!received) {
    log::error("vhost-user: the VMM's message can't be read, ending the conversation: {}",
               received.error().text());
    return received.error();
  }
  switch (*received) {
    case Received::kClosed:
      log::debug("vhost-user: the VMM closed the connection");
      return false;
    case Received::kPart:
      return true;
    case Received::kMessage:
      break;
  }
  const Result<> served = serve(connection_.message());
  // Nobody took these; they must not stay open until the next message comes.
  connection_.message().fds.clear();
  if (!served) {
    log::error("vhost-user: the VMM doesn't take our reply, ending the conversation: {}",
               served.error().text());
    return served.error();
  }
  return true;
}

// Errors are those of the socket: a refusal is an answer like any other.
Result<> Session::serve(Message& message) {
  const std::uint32_t number = message.header.request;
  if (number < 1 || number > kRows.size()) {
    report_refusal(number, Errno{EOPNOTSUPP});
    if (!agreement_.acknowledges || !message.needs_reply()) return {};
    return reply(number, bytes_of(std::uint64_t{EOPNOTSUPP}));
  }

  const Row& row = kRows[number - 1];
  if (log::enabled(log::Level::kDebug)) {
    log::debug("vhost-user: {}{}{}{}", name(row.request), describe(row.payload, message.payload()),
               message.fds.empty() ? "" : fmt::format(", {} descriptors", message.fds.size()),
               message.needs_reply() ? ", wants a reply" : "");
  }

  Exchange exchange{Reader{message.payload()}, message.fds};
  Result<> done = check(row, message);
  if (done) done = (this->*row.handler)(exchange);
  if (!done) report_refusal(number, done.error());

  Answer answer = row.answer;
  if (answer == Answer::kStatusIfFeature) {
    answer = has(row.feature) ? Answer::kStatus : Answer::kAck;
  }
  if (answer == Answer::kValue) {
    if (!done) return reply(number, {});
    return reply(number, std::span(exchange.reply).first(exchange.reply_size),
                 exchange.reply_fd ? exchange.reply_fd->ref() : FdRef{});
  }
  if (answer == Answer::kAck && !(agreement_.acknowledges && message.needs_reply())) return {};
  // A handler may have a better word for success than zero.
  if (done && exchange.reply_size != 0) {
    return reply(number, std::span(exchange.reply).first(exchange.reply_size),
                 exchange.reply_fd ? exchange.reply_fd->ref() : FdRef{});
  }
  // An errno fits the eight bits that SET_DEVICE_STATE_FD leaves for one.
  std::uint64_t status = done ? 0 : static_cast<std::uint64_t>(done.error().value());
  if (row.request == Request::kSetDeviceStateFd && !done) status |= kDeviceStateNoFd;
  return reply(number, bytes_of(status));
}

Result<> Session::check(const Row& row, const Message& message) const {
  if (row.needs != Needs::kNothing) {
    const std::uint64_t there =
        row.needs == Needs::kOffered ? offered_protocol_features() : agreement_.protocol_features;
    if ((there & bit(row.feature)) == 0) return Errno{EOPNOTSUPP};
  }

  const SizeRule rule = size_rule(row.payload);
  const std::size_t size = message.header.size;
  if (size < rule.least || size > rule.most) return Errno{EINVAL};
  if (row.payload == Payload::kNoneOrU64 && size != rule.least && size != rule.most) {
    return Errno{EINVAL};
  }

  Reader reader{message.payload()};
  const std::size_t fds = message.fds.size();
  bool fds_right = false;
  switch (row.fds) {
    case Fds::kIgnored:
      fds_right = true;
      break;
    case Fds::kNone:
      fds_right = fds == 0;
      break;
    case Fds::kOne:
      fds_right = fds == 1;
      break;
    case Fds::kAtMostOne:
      fds_right = fds <= 1;
      break;
    case Fds::kByVringWord:
      fds_right = fds == ((TRY(reader.take<std::uint64_t>()) & kVringNoFd) != 0 ? 0 : 1);
      break;
    case Fds::kByTable:
      fds_right = fds == TRY(reader.take<MemoryTable>()).count;
      break;
  }
  if (!fds_right) return Errno{EINVAL};
  return {};
}

Result<> Session::reply(std::uint32_t request, std::span<const std::byte> payload, FdRef fd) {
  const Header header{
      .request = request, .flags = kReplyFlags, .size = static_cast<std::uint32_t>(payload.size())};
  const std::span<const FdRef> fds(&fd, fd.valid() ? 1 : 0);
  return connection_.send(header, payload, fds, std::chrono::steady_clock::now() + kReplyTime);
}

void Session::report_refusal(std::uint32_t request, Errno error) {
  const std::string_view what = name(static_cast<Request>(request));
  if (refusals_ < kLoudRefusals) {
    ++refusals_;
    log::warn("vhost-user: refused {} ({}) of the VMM: {}{}", what, request, error.text(),
              refusals_ == kLoudRefusals ? "; further refusals are logged at debug level" : "");
  } else {
    log::debug("vhost-user: refused {} ({}) of the VMM: {}", what, request, error.text());
  }
}

std::uint64_t Session::offered_features() const {
  return backend_.features() | bit(Feature::kProtocolFeatures);
}

std::uint64_t Session::offered_protocol_features() const {
  return backend_.protocol_features() | bit(ProtocolFeature::kReplyAck);
}

Result<std::uint32_t> Session::vring(std::uint64_t index) const {
  if (index >= backend_.queue_count()) return Errno{EINVAL};
  return static_cast<std::uint32_t>(index);
}

Result<Session::VringFd> Session::take_vring_fd(Exchange& exchange) const {
  const std::uint64_t word = TRY(exchange.payload.take<std::uint64_t>());
  VringFd result{.index = TRY(vring(word & kVringIndexMask)), .fd = std::nullopt};
  if ((word & kVringNoFd) == 0) result.fd = std::move(exchange.fds.front());
  return result;
}

Result<> Session::unsupported(Exchange& /*exchange*/) {
  return Errno{EOPNOTSUPP};
}

Result<> Session::get_features(Exchange& exchange) {
  exchange.answer(offered_features());
  return {};
}

Result<> Session::set_features(Exchange& exchange) {
  const std::uint64_t features = TRY(exchange.payload.take<std::uint64_t>());
  if ((features & ~offered_features()) != 0) return Errno{EINVAL};
  TRY(backend_.set_features(features));
  agreement_.features = features;
  return {};
}

Result<> Session::set_owner(Exchange& /*exchange*/) {
  backend_.set_owner();
  return {};
}

Result<> Session::reset_owner(Exchange& /*exchange*/) {
  backend_.reset_owner();
  return {};
}

Result<> Session::set_mem_table(Exchange& exchange) {
  const auto table = TRY(exchange.payload.take<MemoryTable>());
  if (table.count > kMaxTableRegions) return Errno{EINVAL};
  std::vector<MemoryRegion> regions;
  regions.reserve(table.count);
  for (std::uint32_t i = 0; i < table.count; ++i) {
    const auto region = TRY(exchange.payload.take<RegionDescription>());
    regions.push_back(region_of(region, std::move(exchange.fds[i])));
  }
  return backend_.set_mem_table(std::move(regions));
}

Result<> Session::set_log_base(Exchange& exchange) {
  const auto log = TRY(exchange.payload.take<LogDescription>());
  return backend_.set_log_base(log.size, log.offset, std::move(exchange.fds.front()));
}

Result<> Session::set_log_fd(Exchange& exchange) {
  return backend_.set_log_fd(std::move(exchange.fds.front()));
}

Result<> Session::set_vring_num(Exchange& exchange) {
  const auto state = TRY(exchange.payload.take<VringState>());
  return backend_.set_vring_size(TRY(vring(state.index)), state.num);
}

Result<> Session::set_vring_addr(Exchange& exchange) {
  const auto address = TRY(exchange.payload.take<VringAddress>());
  const std::uint32_t index = TRY(vring(address.index));
  if (has(ProtocolFeature::kGpaAddresses)) {
    return backend_.set_vring_addresses(index, addresses_of<GuestAddress>(address));
  }
  return backend_.set_vring_addresses(index, addresses_of<VmmAddress>(address));
}

Result<> Session::set_vring_base(Exchange& exchange) {
  const auto state = TRY(exchange.payload.take<VringState>());
  return backend_.set_vring_base(TRY(vring(state.index)), state.num);
}

Result<> Session::get_vring_base(Exchange& exchange) {
  const auto state = TRY(exchange.payload.take<VringState>());
  const std::uint32_t index = TRY(vring(state.index));
  const std::uint32_t base = TRY(backend_.get_vring_base(index));
  exchange.answer(VringState{.index = index, .num = base});
  return {};
}

Result<> Session::set_vring_kick(Exchange& exchange) {
  VringFd kick = TRY(take_vring_fd(exchange));
  // Such a front-end knows nothing of SET_VRING_ENABLE: its rings start enabled.
  if ((agreement_.features & bit(Feature::kProtocolFeatures)) == 0) {
    TRY(backend_.set_vring_enable(kick.index, true));
  }
  return backend_.set_vring_kick(kick.index, std::move(kick.fd));
}

Result<> Session::set_vring_call(Exchange& exchange) {
  VringFd call = TRY(take_vring_fd(exchange));
  return backend_.set_vring_call(call.index, std::move(call.fd));
}

Result<> Session::set_vring_err(Exchange& exchange) {
  VringFd error = TRY(take_vring_fd(exchange));
  return backend_.set_vring_error(error.index, std::move(error.fd));
}

Result<> Session::get_protocol_features(Exchange& exchange) {
  exchange.answer(offered_protocol_features());
  return {};
}

Result<> Session::set_protocol_features(Exchange& exchange) {
  const std::uint64_t features = TRY(exchange.payload.take<std::uint64_t>());
  // Who asks for acknowledgements in this very message waits for one, also if we refuse.
  if ((features & bit(ProtocolFeature::kReplyAck)) != 0) agreement_.acknowledges = true;
  if ((features & ~offered_protocol_features()) != 0) return Errno{EINVAL};
  TRY(backend_.set_protocol_features(features));
  agreement_.protocol_features = features;
  agreement_.acknowledges = has(ProtocolFeature::kReplyAck);
  return {};
}

Result<> Session::get_queue_num(Exchange& exchange) {
  exchange.answer(std::uint64_t{backend_.queue_count()});
  return {};
}

Result<> Session::set_vring_enable(Exchange& exchange) {
  const auto state = TRY(exchange.payload.take<VringState>());
  const std::uint32_t index = TRY(vring(state.index));
  if (state.num > 1) return Errno{EINVAL};
  return backend_.set_vring_enable(index, state.num == 1);
}

Result<> Session::set_backend_req_fd(Exchange& exchange) {
  return backend_.set_backend_request_fd(std::move(exchange.fds.front()));
}

Result<> Session::get_config(Exchange& exchange) {
  const auto config = TRY(exchange.payload.take<ConfigHeader>());
  if (config.size > kMaxConfig) return Errno{EINVAL};
  // The reply is as long as the question; virtio_uml compares the two.
  std::array<std::byte, kMaxConfig> bytes{};
  const auto space = std::span(bytes).first(config.size);
  TRY(backend_.get_config(config.offset, space));
  exchange.answer(config);
  exchange.answer_bytes(space);
  return {};
}

Result<> Session::set_config(Exchange& exchange) {
  const auto config = TRY(exchange.payload.take<ConfigHeader>());
  const auto bytes = TRY(exchange.payload.take_bytes(config.size));
  if ((config.flags & ~kConfigFromMigration) != 0) return Errno{EINVAL};
  return backend_.set_config(
      config.offset, bytes,
      (config.flags & kConfigFromMigration) != 0 ? ConfigWriter::kMigration : ConfigWriter::kGuest);
}

Result<> Session::get_inflight_fd(Exchange& exchange) {
  const std::size_t size = exchange.payload.rest().size();
  const auto wanted =
      TRY(exchange.payload.take_prefix<InflightDescription>(InflightDescription::kUnpadded));
  InflightDescription made{};
  Result<InflightArea> area = backend_.get_inflight_fd(wanted.queues, wanted.queue_size);
  if (area) {
    made.mmap_size = area->mmap_size;
    made.mmap_offset = area->mmap_offset;
    made.queues = area->queues;
    made.queue_size = area->queue_size;
    exchange.reply_fd = std::move(area->file);
  } else {
    // An area of size 0 and no descriptor is how this reply says "none".
    report_refusal(static_cast<std::uint32_t>(Request::kGetInflightFd), area.error());
  }
  exchange.answer_bytes(bytes_of(made).first(size));
  return {};
}

Result<> Session::set_inflight_fd(Exchange& exchange) {
  const auto wire =
      TRY(exchange.payload.take_prefix<InflightDescription>(InflightDescription::kUnpadded));
  return backend_.set_inflight_fd(InflightArea{.mmap_size = wire.mmap_size,
                                               .mmap_offset = wire.mmap_offset,
                                               .queues = wire.queues,
                                               .queue_size = wire.queue_size,
                                               .file = std::move(exchange.fds.front())});
}

Result<> Session::reset_device(Exchange& /*exchange*/) {
  return backend_.reset_device();
}

Result<> Session::vring_kick(Exchange& exchange) {
  const auto state = TRY(exchange.payload.take<VringState>());
  return backend_.vring_kick(TRY(vring(state.index)));
}

Result<> Session::get_max_mem_slots(Exchange& exchange) {
  exchange.answer(backend_.max_mem_slots());
  return {};
}

Result<> Session::add_mem_reg(Exchange& exchange) {
  const auto single = TRY(exchange.payload.take<SingleRegion>());
  return backend_.add_mem_region(region_of(single.region, std::move(exchange.fds.front())));
}

Result<> Session::rem_mem_reg(Exchange& exchange) {
  const auto single = TRY(exchange.payload.take<SingleRegion>());
  return backend_.remove_mem_region(region_of(single.region, UniqueFd{}));
}

Result<> Session::set_status(Exchange& exchange) {
  return backend_.set_status(TRY(exchange.payload.take<std::uint64_t>()));
}

Result<> Session::get_status(Exchange& exchange) {
  exchange.answer(backend_.status());
  return {};
}

Result<> Session::set_device_state_fd(Exchange& exchange) {
  const auto transfer = TRY(exchange.payload.take<DeviceStateTransfer>());
  if (transfer.direction > 1 || transfer.phase != 0) return Errno{EINVAL};
  exchange.reply_fd = TRY(backend_.set_device_state_fd(
      transfer.direction == 0 ? TransferDirection::kSave : TransferDirection::kLoad,
      std::move(exchange.fds.front())));
  exchange.answer(exchange.reply_fd ? std::uint64_t{0} : kDeviceStateNoFd);
  return {};
}

Result<> Session::check_device_state(Exchange& /*exchange*/) {
  return backend_.check_device_state();
}

Result<> Session::get_shmem_config(Exchange& exchange) {
  ShmemConfig config{};
  const std::vector<std::uint64_t> sizes = backend_.shared_memory_sizes();
  CHECK(sizes.size() <= config.sizes.size());
  std::ranges::copy(sizes, config.sizes.begin());
  config.regions = static_cast<std::uint32_t>(
      std::ranges::count_if(sizes, [](std::uint64_t size) { return size != 0; }));
  exchange.answer(config);
  return {};
}

}  // namespace virtiofsd::vhost_user
