// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "fuse/dispatcher.h"

#include <algorithm>
#include <array>
#include <span>

#include "base/log.h"
#include "base/uninitialized.h"
#include "fuse/operations.h"
#include "state/saved_frames.h"

namespace virtiofsd::fuse {
namespace {

// Most argument bytes of a request that is not a WRITE: an xattr or ioctl
// value with its name is far below.
constexpr std::size_t kMaxArguments = (std::size_t{1} << 20) + 4096;
// Most answers are no longer, their header included.
constexpr std::size_t kUsualReply = sizeof(fuse_out_header) + sizeof(fuse_entry_out);
// Requests and answers up to this size stay on the stack.
constexpr std::size_t kSmall = 512;

// `size` bytes of `small` or, when that is too little, of `large`.
std::span<std::byte> private_memory(std::size_t size, std::span<std::byte> small,
                                    std::vector<std::byte>& large) {
  if (size <= small.size()) return small.first(size);
  if (large.size() < size) large.resize(size);
  return std::span{large}.first(size);
}

}  // namespace

SharedSession::SharedSession(Words* kept) : kept_(kept) {
  if (kept_ == nullptr) return;
  for (std::size_t i = 0; i < words_.size(); ++i)
    words_[i].store((*kept_)[i].load(std::memory_order_relaxed), std::memory_order_relaxed);
}

void SharedSession::set(Word word, std::uint64_t value, std::memory_order order) {
  words_[word].store(value, order);
  if (kept_ != nullptr) (*kept_)[word].store(value, order);
}

Negotiated SharedSession::load() const {
  const std::uint64_t version = words_[kVersion].load(std::memory_order_acquire);
  const std::uint64_t sizes = words_[kSizes].load(std::memory_order_relaxed);
  const std::uint64_t counts = words_[kCounts].load(std::memory_order_relaxed);
  Negotiated session;
  session.major = static_cast<std::uint32_t>(version >> 32);
  session.minor = static_cast<std::uint32_t>(version);
  session.flags = words_[kFlags].load(std::memory_order_relaxed);
  session.max_readahead = static_cast<std::uint32_t>(sizes >> 32);
  session.max_write = static_cast<std::uint32_t>(sizes);
  session.max_pages = static_cast<std::uint16_t>(counts >> 32);
  session.max_background = static_cast<std::uint16_t>(counts >> 16);
  session.congestion_threshold = static_cast<std::uint16_t>(counts);
  return session;
}

void SharedSession::store(const Negotiated& session) {
  set(kFlags, session.flags, std::memory_order_relaxed);
  set(kSizes, std::uint64_t{session.max_readahead} << 32 | session.max_write,
      std::memory_order_relaxed);
  set(kCounts,
      std::uint64_t{session.max_pages} << 32 | std::uint64_t{session.max_background} << 16 |
          session.congestion_threshold,
      std::memory_order_relaxed);
  // Last: whoever sees that there is a session sees the rest of it.
  set(kVersion, std::uint64_t{session.major} << 32 | session.minor, std::memory_order_release);
}

// A request whose header was read.
struct Dispatcher::Incoming {
  fuse_in_header header{};
  const Row* row = nullptr;
  SharedBytes rest;  // behind the header
  Delivery delivery;
};

Dispatcher::Dispatcher(FileSystem& file_system, Settings settings)
    : file_system_(file_system),
      settings_([&settings] {
        // With idmapped mounts most requests come without a uid: nobody could be told apart.
        if (settings.root_only) settings.offer.idmapped_mounts = false;
        return settings;
      }()),
      session_(settings_.session) {}

std::uint32_t Dispatcher::give_up(const char* why) {
  unanswerable_.fetch_add(1, std::memory_order_relaxed);
  log::debug("request dropped: {}", why);
  return 0;
}

std::uint32_t Dispatcher::serve(SharedBytes request, SharedBytes reply, Delivery delivery,
                                Scheduler& scheduler, Scratch& scratch) {
  reply.prefetch_for_write(kUsualReply);
  Incoming incoming;
  if (!request.copy_out(std::as_writable_bytes(std::span{&incoming.header, 1})))
    return give_up("too short for a request header");
  const fuse_in_header& header = incoming.header;
  incoming.row = &row_of(header.opcode);
  incoming.rest = request;
  incoming.delivery = delivery;

  const bool logs = log::enabled(log::Level::kDebug);
  const std::string_view name = incoming.row->name.empty() ? "?" : incoming.row->name;
  if (logs)
    log::debug("#{} {} ({}) node={:#x} uid={} gid={} pid={} len={}", header.unique, name,
               header.opcode, header.nodeid, header.uid, header.gid, header.pid, header.len);

  if (!incoming.row->answers) {
    // Rather once too few than twice: what is forgotten too often is gone.
    if (delivery.again) return 0;
    SharedBytes nothing;
    Body body{nothing, {}};
    const auto result = execute(incoming, body, scheduler, scratch);
    if (logs && !result) log::debug("#{} {} -> {}", header.unique, name, result.error().text());
    return 0;
  }

  if (header.unique == 0) return give_up("unique is 0");
  UNINITIALIZED std::array<iovec, sizeof(fuse_out_header)> header_pieces;
  auto header_space = reply.split_front(sizeof(fuse_out_header), header_pieces);
  if (!header_space) return give_up("no room for a reply header");

  UNINITIALIZED std::array<std::byte, kSmall> small;
  Body body{reply, private_memory(std::min<std::size_t>(incoming.row->buffer, reply.size()), small,
                                  scratch.reply)};
  const auto result = execute(incoming, body, scheduler, scratch);

  fuse_out_header out{};
  out.unique = header.unique;
  out.len = sizeof out;
  if (result && reply.copy_in(body.gathered())) {
    out.len += static_cast<std::uint32_t>(body.size());
  } else {
    // The guest takes 1 to 511 for an error and anything else for a broken reply.
    const int error = result ? EINVAL : result.error().value();
    out.error = -(error > 0 && error < 512 ? error : EIO);
  }
  if (!header_space->copy_in(std::as_bytes(std::span{&out, 1})))
    return give_up("no room for a reply header");

  if (logs) {
    if (out.error == 0) {
      log::debug("#{} {} -> 0 ({} bytes)", header.unique, name, out.len);
    } else {
      log::debug("#{} {} -> {}", header.unique, name, Errno{-out.error}.text());
    }
  }
  return out.len;
}

Result<> Dispatcher::admit(const Incoming& incoming, const Negotiated& session) const {
  const Row& row = *incoming.row;
  const fuse_in_header& header = incoming.header;
  if (incoming.delivery.faulted) return Errno{EFAULT};
  if (incoming.delivery.deadly) return Errno{EIO};
  if (header.len < sizeof header || header.len - sizeof header > incoming.rest.size())
    return Errno{EINVAL};
  if (header.opcode == FUSE_INIT) return {};
  if (!session.initialised()) return Errno{EIO};
  if (settings_.root_only && !row.open_handle && header.uid != 0 && header.uid != settings_.own_uid)
    return Errno{EACCES};
  if (settings_.read_only && row.writes) return Errno{EROFS};
  return {};
}

Result<> Dispatcher::execute(Incoming& incoming, Body& body, Scheduler& scheduler,
                             Scratch& scratch) {
  const Row& row = *incoming.row;
  const fuse_in_header& header = incoming.header;
  Call call{.unique = header.unique,
            .node = NodeId{header.nodeid},
            .caller = {.uid = header.uid,
                       .gid = header.gid,
                       .pid = header.pid,
                       .supplementary_group = {}},
            .security = {},
            .session = session_.load(),
            .scheduler = scheduler,
            .again = incoming.delivery.again};
  TRY(admit(incoming, call.session));
  if (header.opcode == FUSE_DESTROY) {
    reset();
    return {};
  }
  if (row.serve == nullptr && header.opcode != FUSE_INIT) return Errno{ENOSYS};
  // An answer that can't be delivered must not leave its effect behind.
  if (row.answer > body.room()) return Errno{EINVAL};

  // Before anything was negotiated, and since for guests that negotiated
  // neither, the field is padding.
  std::size_t extensions = 0;
  if (call.session.has(FUSE_SECURITY_CTX) || call.session.has(FUSE_CREATE_SUPP_GROUP))
    extensions = std::size_t{header.total_extlen} * 8;
  std::size_t size = header.len - sizeof header;
  if (extensions > size) return Errno{EINVAL};

  std::size_t data_size = 0;
  if (row.streams) {
    if (size - extensions < row.arguments) return Errno{EINVAL};
    data_size = size - extensions - row.arguments;
    size = row.arguments;
    extensions = 0;
  }
  if (size > kMaxArguments) return Errno{EINVAL};

  UNINITIALIZED std::array<std::byte, kSmall> small;
  const auto bytes = private_memory(size, small, scratch.request);
  TRY(incoming.rest.copy_out(bytes));
  if (header.opcode == FUSE_INIT) return init(Reader{bytes}, body);
  if (row.creates) TRY(take_extensions(Reader{bytes.last(extensions)}, call));

  Request request{.fs = file_system_,
                  .call = call,
                  .arguments = Reader{bytes.first(size - extensions)},
                  .body = body,
                  .data = incoming.rest,
                  .data_size = data_size,
                  .read_only = settings_.read_only};
  return row.serve(request);
}

Result<> Dispatcher::init(Reader arguments, Body& body) {
  // 16 bytes up to protocol 7.35, 64 since; what a guest doesn't send is zero.
  constexpr std::size_t kShortest = offsetof(fuse_init_in, flags2);
  const std::size_t size = arguments.rest().size();
  if (size < kShortest) return Errno{EINVAL};
  const auto guest = TRY(arguments.take_prefix<fuse_init_in>(std::min(size, sizeof(fuse_init_in))));
  Negotiated session = TRY(negotiate(guest, settings_.offer));
  // Only the version is settled; another INIT will come.
  if (guest.major > kMajor) return body.put(init_reply(session));

  const Lock lock{session_change_};
  session_.store(Negotiated{});
  TRY(file_system_.init(session));
  session_.store(session);

  const std::string missing = unmet_wishes(session, settings_.offer);
  // Once: a guest can send INIT as often as it likes.
  if (!missing.empty() && !warned_) {
    warned_ = true;
    log::warn("the guest does not support what was asked for, going on without: {}", missing);
  }
  log::debug("guest speaks FUSE {}.{}, flags {:#x}", guest.major, guest.minor, session.flags);
  return body.put(init_reply(session));
}

void Dispatcher::reset() {
  const Lock lock{session_change_};
  session_.store(Negotiated{});
  file_system_.destroy();
}

// ---- another host -------------------------------------------------------------

Result<void, Failure> Dispatcher::save(FrameWriter& to) {
  const Negotiated session = session_.load();
  const SavedSession saved{.major = session.major,
                           .minor = session.minor,
                           .max_readahead = session.max_readahead,
                           .flags = session.flags,
                           .max_write = session.max_write,
                           .max_pages = session.max_pages,
                           .max_background = session.max_background,
                           .congestion_threshold = session.congestion_threshold};
  TRY(put_saved(to, SavedKind::kSession, {raw_bytes(saved)}));
  return file_system_.save(to);
}

Result<Negotiated, Failure> Dispatcher::take_session(FrameReader& from) const {
  Reader body = TRY(next_saved(from, SavedKind::kSession));
  const auto saved = TRY(take_saved<SavedSession>(body));
  Negotiated session;
  session.major = saved.major;
  session.minor = saved.minor;
  session.flags = saved.flags;
  session.max_readahead = saved.max_readahead;
  session.max_write = saved.max_write;
  session.max_pages = saved.max_pages;
  session.max_background = saved.max_background;
  session.congestion_threshold = saved.congestion_threshold;
  if (!session.initialised()) return Negotiated{};
  const std::string missing = not_on_offer(session, settings_.offer);
  if (!missing.empty()) {
    return Failure{
        "the guest uses what this virtiofsd was started without (give it the options of "
        "the other one): " +
        missing};
  }
  return session;
}

Result<void, Failure> Dispatcher::load(FrameReader& from) {
  const Negotiated session = TRY(take_session(from));
  const Lock lock{session_change_};
  session_.store(Negotiated{});
  TRY(file_system_.load(from));
  session_.store(session);
  return {};
}

}  // namespace virtiofsd::fuse
