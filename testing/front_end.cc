// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "testing/front_end.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace virtiofsd::guest {
namespace {

constexpr std::size_t kMaxFds = 16;
constexpr std::size_t kMaxPayload = 1U << 16;
constexpr std::uint64_t kLogPage = 4096;

// False when `deadline` passes first.
bool readable_by(FdRef fd, Deadline deadline) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd waited{.fd = fd.number(), .events = POLLIN, .revents = 0};
    const int ready = poll(&waited, 1, static_cast<int>(std::max<long>(0, left.count())));
    if (ready > 0) return true;
    if (ready == 0 && left.count() <= 0) return false;
    if (ready < 0 && errno != EINTR) return false;
  }
}

void keep_fds(const msghdr& message, std::vector<UniqueFd>& fds) {
  for (const cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(const_cast<msghdr*>(&message), const_cast<cmsghdr*>(part))) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      fds.emplace_back(fd);
    }
  }
}

Result<void, Failure> receive_exactly(FdRef socket, std::span<std::byte> into,
                                      std::vector<UniqueFd>& fds, Deadline deadline) {
  while (!into.empty()) {
    if (!readable_by(socket, deadline)) return Failure("the back-end is silent");
    iovec piece{.iov_base = into.data(), .iov_len = into.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t got = recvmsg(socket.number(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got < 0) return Failure("receiving from the back-end failed", Errno::last());
    if (got == 0) return Failure("the back-end closed the connection");
    keep_fds(message, fds);
    into = into.subspan(static_cast<std::size_t>(got));
  }
  return {};
}

Result<void, Failure> send_all(FdRef socket, std::span<const std::byte> bytes,
                               std::span<const int> fds) {
  CHECK(fds.size() <= kMaxFds);
  while (!bytes.empty()) {
    iovec piece{.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(fds.size_bytes());
      cmsghdr* part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(fds.size_bytes());
      std::memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
    }
    const ssize_t sent = sendmsg(socket.number(), &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return Failure("sending to the back-end failed", Errno::last());
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
    fds = {};
  }
  return {};
}

std::string name_of(std::uint32_t request) {
  return "request " + std::to_string(request);
}

}  // namespace

Result<void, Failure> send_message(FdRef socket, std::uint32_t request, std::uint32_t flags,
                                   std::span<const std::byte> payload, std::span<const int> fds) {
  const MessageHeader header{.request = request,
                             .flags = kMessageVersion | flags,
                             .size = static_cast<std::uint32_t>(payload.size())};
  std::vector<std::byte> all(sizeof(header) + payload.size());
  std::memcpy(all.data(), &header, sizeof(header));
  if (!payload.empty()) std::memcpy(all.data() + sizeof(header), payload.data(), payload.size());
  return send_all(socket, all, fds);
}

Result<Message, Failure> receive_message(FdRef socket, Deadline deadline) {
  MessageHeader header{};
  Message message;
  TRY(receive_exactly(socket, std::as_writable_bytes(std::span{&header, 1}), message.fds,
                      deadline));
  if (header.size > kMaxPayload) return Failure("the back-end sent an impossible size");
  message.request = header.request;
  message.flags = header.flags;
  message.payload.resize(header.size);
  TRY(receive_exactly(socket, message.payload, message.fds, deadline));
  return message;
}

bool closed_by_peer(FdRef socket, Deadline deadline) {
  while (readable_by(socket, deadline)) {
    char scrap[4096];
    const ssize_t got = recv(socket.number(), scrap, sizeof(scrap), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return true;
  }
  return false;
}

Result<UniqueFd, Failure> connect_to(const std::string& path) {
  UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!socket) return Failure("socket", Errno::last());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return Failure("the socket path is too long");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  if (::connect(socket.number(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return Failure("connecting to " + path, Errno::last());
  return socket;
}

FrontEnd::FrontEnd(UniqueFd socket, FrontEndOptions options, GuestRam ram)
    : socket_(std::move(socket)), options_(std::move(options)), ram_(std::move(ram)) {}

Result<std::unique_ptr<FrontEnd>, Failure> FrontEnd::adopt(UniqueFd socket,
                                                           FrontEndOptions options) {
  std::vector<RegionSpec> memory = options.memory;
  if (memory.empty()) {
    memory = options.style == FrontEndOptions::Style::kUml
                 ? GuestRam::one_region(options.buffer_memory)
                 : GuestRam::two_regions(8U << 20, options.buffer_memory);
  }
  auto ram = GuestRam::make(memory);
  if (!ram) return Failure("guest memory", ram.error());
  std::unique_ptr<FrontEnd> front_end{
      new FrontEnd(std::move(socket), std::move(options), std::move(ram).value())};
  TRY(front_end->make_queues());
  return front_end;
}

Result<std::unique_ptr<FrontEnd>, Failure> FrontEnd::connect(const std::string& path,
                                                             FrontEndOptions options) {
  return adopt(TRY(connect_to(path)), std::move(options));
}

Result<void, Failure> FrontEnd::make_queues() {
  for (unsigned i = 0; i < queue_count(); ++i) {
    Queue queue;
    queue.ring = std::make_unique<DriverRing>(ram_, options_.ring);
    queue.kick = UniqueFd{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    queue.error = UniqueFd{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (options_.style == FrontEndOptions::Style::kUml) {
      int ends[2];
      if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return Failure("pipe", Errno::last());
      queue.call = UniqueFd{ends[0]};
      queue.call_sent = UniqueFd{ends[1]};
    } else {
      queue.call = UniqueFd{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
      queue.call_sent = UniqueFd{fcntl(queue.call.number(), F_DUPFD_CLOEXEC, 0)};
    }
    if (!queue.kick || !queue.call || !queue.call_sent || !queue.error)
      return Failure("eventfd", Errno::last());
    queue.ring->set_notifiers(queue.kick, queue.call);
    queues_.push_back(std::move(queue));
  }
  return {};
}

void FrontEnd::reconnect(UniqueFd socket) {
  socket_ = std::move(socket);
  backend_channel_.reset();
}

std::uint64_t FrontEnd::wanted_ring_features() const {
  std::uint64_t wanted = kFeatureVersion1 | kFeatureProtocol;
  if (options_.ring.event_idx) wanted |= kFeatureEventIdx;
  if (options_.ring.indirect) wanted |= kFeatureIndirect;
  if (options_.ring.packed) wanted |= kFeaturePacked;
  if (options_.ring.in_order) wanted |= kFeatureInOrder;
  return wanted;
}

Result<void, Failure> FrontEnd::negotiate_protocol() {
  offered_protocol_ = TRY(ask_u64(kGetProtocolFeatures));
  protocol_ = 0;  // until they are set, no message may need them
  const std::uint64_t taken = offered_protocol_ & options_.protocol_features;
  TRY(tell_u64(kSetProtocolFeatures, taken));
  protocol_ = taken;
  return {};
}

Result<void, Failure> FrontEnd::negotiate() {
  const bool uml = options_.style == FrontEndOptions::Style::kUml;
  protocol_ = 0;
  if (uml) TRY(tell(kSetOwner));
  offered_ = TRY(ask_u64(kGetFeatures));
  missing_ = wanted_ring_features() & ~offered_;
  if (missing_ != 0)
    return Failure("the device lacks features of mask " + std::to_string(missing_));
  TRY(negotiate_protocol());
  if (!uml && has_protocol(kProtocolMq)) {
    queue_limit_ = TRY(ask_u64(kGetQueueNum));
    if (queue_limit_ < queue_count())
      return Failure("the device has " + std::to_string(queue_limit_) + " queues only");
  }
  if (has_protocol(kProtocolBackendReq)) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
      return Failure("socketpair", Errno::last());
    backend_channel_ = UniqueFd{ends[0]};
    const UniqueFd theirs{ends[1]};
    const int sent[] = {theirs.number()};
    TRY(tell(kSetBackendReqFd, {}, sent));
  }
  if (!uml) {
    TRY(tell(kSetOwner));
    offered_ = TRY(ask_u64(kGetFeatures));
    for (unsigned i = 0; i < queue_count(); ++i) TRY(send_call(i));
  }
  features_ = wanted_ring_features();
  TRY(tell_u64(kSetFeatures, features_));
  if (uml) {
    if (!has_protocol(kProtocolConfig)) return Failure("user-mode Linux needs CONFIG");
    TRY(config(0, 40));
  }
  return {};
}

std::vector<std::byte> FrontEnd::memory_table() const {
  const auto count = static_cast<std::uint32_t>(ram_.regions().size());
  std::vector<std::byte> table(8 + count * sizeof(MemoryRegion));
  std::memcpy(table.data(), &count, sizeof(count));
  std::byte* at = table.data() + 8;
  for (const GuestRam::Region& region : ram_.regions()) {
    const MemoryRegion entry{
        .guest = region.guest, .size = region.size, .vmm = region.vmm, .offset = region.offset};
    std::memcpy(at, &entry, sizeof(entry));
    at += sizeof(entry);
  }
  return table;
}

Result<void, Failure> FrontEnd::share_memory() {
  if (options_.add_mem_reg && has_protocol(kProtocolConfigureMemSlots)) {
    for (const GuestRam::Region& region : ram_.regions()) {
      struct {
        std::uint64_t padding;
        MemoryRegion region;
      } const payload{.padding = 0,
                      .region = {.guest = region.guest,
                                 .size = region.size,
                                 .vmm = region.vmm,
                                 .offset = region.offset}};
      const int fds[] = {ram_.fd().number()};
      TRY(tell(kAddMemReg, bytes_of(payload), fds));
    }
    return {};
  }
  const std::vector<int> fds(ram_.regions().size(), ram_.fd().number());
  return tell(kSetMemTable, memory_table(), fds);
}

Result<void, Failure> FrontEnd::share_inflight() {
  if (!inflight_) {
    InflightArea wanted{};
    wanted.queues = static_cast<std::uint16_t>(queue_count());
    wanted.queue_size = options_.ring.size;
    Message reply = TRY(ask(kGetInflightFd, bytes_of(wanted)));
    if (reply.fds.size() != 1) return Failure("GET_INFLIGHT_FD brought no descriptor");
    inflight_area_ = reply.as<InflightArea>();
    inflight_ = std::move(reply.fds.front());
  }
  const int fds[] = {inflight_.number()};
  // The field sizes are packed on the wire: 20 bytes, no tail padding.
  return tell(kSetInflightFd, bytes_of(inflight_area_).first(20), fds);
}

Result<void, Failure> FrontEnd::set_up() {
  TRY(negotiate());
  if (options_.inflight && has_protocol(kProtocolInflightShmfd)) TRY(share_inflight());
  TRY(share_memory());
  for (unsigned i = 0; i < queue_count(); ++i) TRY(start_queue(i));
  return {};
}

VringAddress FrontEnd::vring_address(unsigned queue) const {
  const DriverRing& ring = *queues_[queue].ring;
  return {.index = queue,
          .flags = 0,
          .descriptors = ram_.vmm_of(ring.descriptor_area()),
          .used = ram_.vmm_of(ring.device_area()),
          .available = ram_.vmm_of(ring.driver_area()),
          .log = ring.device_area()};
}

Result<void, Failure> FrontEnd::send_call(unsigned queue) {
  const int fds[] = {queues_[queue].call_sent.number()};
  return tell_u64(kSetVringCall, queue, fds);
}

Result<void, Failure> FrontEnd::start_queue(unsigned queue) {
  return start_queue(queue, queues_[queue].ring->base());
}

Result<void, Failure> FrontEnd::start_queue(unsigned queue, std::uint32_t base) {
  const bool uml = options_.style == FrontEndOptions::Style::kUml;
  Queue& started = queues_[queue];
  if (uml) TRY(send_call(queue));
  TRY(tell_vring(kSetVringNum, queue, started.ring->options().size));
  TRY(tell_vring(kSetVringBase, queue, base));
  const VringAddress address = vring_address(queue);
  TRY(tell(kSetVringAddr, bytes_of(address)));
  const int error[] = {started.error.number()};
  if (!uml) TRY(tell_u64(kSetVringErr, queue, error));
  const int kick[] = {started.kick.number()};
  TRY(tell_u64(kSetVringKick, queue, kick));
  if (!uml) TRY(send_call(queue));
  return tell_vring(kSetVringEnable, queue, 1);
}

Result<std::uint32_t, Failure> FrontEnd::stop_queue(unsigned queue) {
  TRY(tell_vring(kSetVringEnable, queue, 0));
  const VringState state{.index = queue, .value = 0};
  const Message reply = TRY(ask(kGetVringBase, bytes_of(state)));
  if (reply.payload.size() != sizeof(VringState)) return Failure("GET_VRING_BASE: wrong size");
  return reply.as<VringState>().value;
}

Result<Message, Failure> FrontEnd::ask(std::uint32_t request, std::span<const std::byte> payload,
                                       std::span<const int> fds) {
  TRY(send_message(socket_, request, 0, payload, fds));
  auto reply = receive();
  if (!reply) return Failure(name_of(request) + ": " + reply.error().text());
  if (reply->request != request || reply->flags != (kMessageVersion | kMessageReply))
    return Failure(name_of(request) + ": answered by " + name_of(reply->request) + ", flags " +
                   std::to_string(reply->flags));
  return std::move(reply).value();
}

Result<std::uint64_t, Failure> FrontEnd::ask_u64(std::uint32_t request,
                                                 std::span<const std::byte> payload,
                                                 std::span<const int> fds) {
  const Message reply = TRY(ask(request, payload, fds));
  if (reply.payload.size() != sizeof(std::uint64_t))
    return Failure(name_of(request) + ": the reply is no 64-bit number");
  return reply.as<std::uint64_t>();
}

Result<std::uint64_t, Failure> FrontEnd::acknowledged(std::uint32_t request,
                                                      std::span<const std::byte> payload,
                                                      std::span<const int> fds) {
  CHECK(has_protocol(kProtocolReplyAck));
  TRY(send_message(socket_, request, kMessageNeedReply, payload, fds));
  auto reply = receive();
  if (!reply) return Failure(name_of(request) + ": " + reply.error().text());
  if (reply->request != request || reply->flags != (kMessageVersion | kMessageReply) ||
      reply->payload.size() != sizeof(std::uint64_t))
    return Failure(name_of(request) + ": not acknowledged but answered with " +
                   name_of(reply->request));
  return reply->as<std::uint64_t>();
}

Result<void, Failure> FrontEnd::tell(std::uint32_t request, std::span<const std::byte> payload,
                                     std::span<const int> fds) {
  if (!has_protocol(kProtocolReplyAck)) return send_message(socket_, request, 0, payload, fds);
  const std::uint64_t refused = TRY(acknowledged(request, payload, fds));
  if (refused != 0) return Failure(name_of(request) + " was refused");
  return {};
}

Result<void, Failure> FrontEnd::send_raw(std::span<const std::byte> bytes,
                                         std::span<const int> fds) {
  return send_all(socket_, bytes, fds);
}

Result<std::vector<std::byte>, Failure> FrontEnd::config(std::uint32_t offset, std::uint32_t size) {
  std::vector<std::byte> payload(kConfigHeaderSize + size);
  const std::uint32_t head[3] = {offset, size, 0};
  std::memcpy(payload.data(), head, sizeof(head));
  Message reply = TRY(ask(kGetConfig, payload));
  if (reply.payload.size() != payload.size())
    return Failure("GET_CONFIG: the reply has another size than the question");
  reply.payload.erase(reply.payload.begin(), reply.payload.begin() + kConfigHeaderSize);
  return std::move(reply.payload);
}

Result<void, Failure> FrontEnd::start_dirty_log() {
  std::uint64_t top = 0;
  for (const GuestRam::Region& region : ram_.regions())
    top = std::max(top, region.guest + region.size);
  const std::uint64_t bytes = (top / kLogPage / 8 + kLogPage) / kLogPage * kLogPage;
  const RegionSpec only{.guest = 0, .vmm = 0, .size = bytes};
  auto log = GuestRam::make({&only, 1});
  if (!log) return Failure("dirty log", log.error());
  log_ = std::make_unique<GuestRam>(std::move(log).value());
  const LogArea area{.size = bytes, .offset = 0};
  const int fds[] = {log_->fd().number()};
  TRY(ask(kSetLogBase, bytes_of(area), fds));
  for (unsigned i = 0; i < queue_count(); ++i) {
    VringAddress address = vring_address(i);
    address.flags = 1;  // VHOST_VRING_F_LOG
    TRY(tell(kSetVringAddr, bytes_of(address)));
  }
  features_ |= kFeatureLogAll;
  return tell_u64(kSetFeatures, features_);
}

Result<void, Failure> FrontEnd::stop_dirty_log() {
  features_ &= ~kFeatureLogAll;
  return tell_u64(kSetFeatures, features_);
}

bool FrontEnd::dirty(std::uint64_t guest) const {
  CHECK(log_ != nullptr);
  const std::uint64_t page = guest / kLogPage;
  auto* byte = reinterpret_cast<std::uint8_t*>(log_->regions()[0].host + page / 8);
  return (std::atomic_ref<std::uint8_t>{*byte}.load() >> (page % 8) & 1) != 0;
}

void FrontEnd::clear_dirty_log() {
  CHECK(log_ != nullptr);
  std::memset(log_->regions()[0].host, 0, log_->regions()[0].size);
}

bool FrontEnd::error_signalled(unsigned queue, Deadline deadline) {
  if (!readable_by(queues_[queue].error, deadline)) return false;
  std::uint64_t count = 0;
  return read(queues_[queue].error.number(), &count, sizeof(count)) == sizeof(count);
}

}  // namespace virtiofsd::guest
