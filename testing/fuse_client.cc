// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "testing/fuse_client.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace virtiofsd::guest {
namespace {

constexpr std::size_t kInBytes = 4096;
constexpr std::size_t kOutBytes = 4096;
constexpr std::size_t kKeptViolations = 32;

std::span<const std::byte> text(std::string_view value) {
  return std::as_bytes(std::span{value.data(), value.size()});
}

constexpr std::array<std::byte, 1> kNul{};

std::string to_string(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

// ---- FuseQueue ------------------------------------------------------------------------------

FuseQueue::FuseQueue(FrontEnd& front_end, unsigned queue, FuseQueueOptions options)
    : options_(options),
      ring_(front_end.ring(queue)),
      next_unique_((std::uint64_t{queue} << 48) + 2) {
  for (unsigned i = 0; i < options.slots; ++i) {
    Slot slot;
    slot.in = front_end.ram().allocate(kInBytes, 4096);
    slot.out = front_end.ram().allocate(kOutBytes, 4096);
    if (options.data_bytes > 0) slot.data = front_end.ram().allocate(options.data_bytes, 4096);
    slots_.push_back(slot);
    free_.push_back(options.slots - 1 - i);
  }
  const std::size_t pieces =
      options.piece_bytes == 0 ? 1 : options.data_bytes / options.piece_bytes + 1;
  readable_.resize(pieces + 2);
  writable_.resize(pieces + 2);
}

std::optional<std::uint32_t> FuseQueue::acquire() {
  if (free_.empty()) return std::nullopt;
  const std::uint32_t slot = free_.back();
  free_.pop_back();
  return slot;
}

std::size_t FuseQueue::add_data(const Slot& slot, std::uint32_t from, std::uint32_t size,
                                Buffer* into) {
  CHECK(std::size_t{from} + size <= slot.data.size);
  std::size_t count = 0;
  const std::size_t step = options_.piece_bytes == 0 ? size : options_.piece_bytes;
  for (std::size_t at = 0; at < size; at += step) {
    into[count++] = {.guest = slot.data.guest + from + at,
                     .size = static_cast<std::uint32_t>(std::min<std::size_t>(step, size - at))};
  }
  return count;
}

bool FuseQueue::start(std::uint32_t index, const RequestShape& shape) {
  Slot& slot = slots_[index];
  const std::uint32_t head = sizeof(fuse_in_header);
  const fuse_in_header header{
      .len = head + shape.arguments + shape.data_in,
      .opcode = shape.opcode,
      .unique = next_unique_,
      .nodeid = shape.node,
      .uid = uid,
      .gid = gid,
      .pid = pid,
      .total_extlen = extension_words,
      .padding = 0,
  };
  std::memcpy(slot.in.host, &header, sizeof(header));

  std::size_t readable = 0;
  if (options_.shape == ChainShape::kLinux) {
    readable_[readable++] = {.guest = slot.in.guest, .size = head};
    if (shape.arguments > 0)
      readable_[readable++] = {.guest = slot.in.guest + head, .size = shape.arguments};
  } else {
    readable_[readable++] = {.guest = slot.in.guest, .size = head + shape.arguments};
  }
  if (shape.data_in > 0) readable += add_data(slot, 0, shape.data_in, readable_.data() + readable);

  std::size_t writable = 0;
  const std::uint32_t out_head = sizeof(fuse_out_header);
  if (!shape.no_reply) {
    if (options_.shape == ChainShape::kLinux) {
      writable_[writable++] = {.guest = slot.out.guest, .size = out_head};
      if (shape.reply > 0)
        writable_[writable++] = {.guest = slot.out.guest + out_head, .size = shape.reply};
    } else {
      writable_[writable++] = {.guest = slot.out.guest, .size = out_head + shape.reply};
    }
    if (shape.data_out > 0)
      writable += add_data(slot, shape.data_out_from, shape.data_out, writable_.data() + writable);
  }
  if (!ring_.add({readable_.data(), readable}, {writable_.data(), writable}, index)) return false;
  slot.unique = next_unique_;
  slot.opcode = shape.opcode;
  slot.room = shape.no_reply ? 0 : out_head + shape.reply + shape.data_out;
  slot.no_reply = shape.no_reply;
  next_unique_ += 2;  // the lowest bit is INTERRUPT's in Linux
  return true;
}

void FuseQueue::complain(std::string what) {
  ++violation_count_;
  if (violations_.size() < kKeptViolations) violations_.push_back(std::move(what));
}

std::optional<Completion> FuseQueue::complete(std::optional<Used> used) {
  if (!used) {
    if (ring_.broken() && violation_count_ == 0) complain(ring_.breakage());
    return std::nullopt;
  }
  Slot& slot = slots_[used->cookie];
  Completion completion{.slot = used->cookie, .error = 0, .bytes = 0};
  if (slot.no_reply) {
    if (used->length != 0 && used->length != Used::kUnknownLength)
      complain("opcode " + std::to_string(slot.opcode) + " has no reply, but used length " +
               std::to_string(used->length));
    return completion;
  }
  fuse_out_header header;
  std::memcpy(&header, slot.out.host, sizeof(header));
  const auto describe = [&](const char* what) {
    complain("opcode " + std::to_string(slot.opcode) + ", unique " + std::to_string(slot.unique) +
             ": " + what + " (used " + std::to_string(used->length) + ", len " +
             std::to_string(header.len) + ", error " + std::to_string(header.error) + ", unique " +
             std::to_string(header.unique) + ", room " + std::to_string(slot.room) + ")");
    completion.error = EPROTO;
    return completion;
  };
  const std::uint32_t length = used->length == Used::kUnknownLength ? header.len : used->length;
  if (length < sizeof(header)) [[unlikely]]
    return describe("the reply is shorter than its header");
  if (header.len != length) [[unlikely]]
    return describe("the used length is not the reply's");
  if (header.unique != slot.unique) [[unlikely]]
    return describe("the reply answers another request");
  if (length > slot.room) [[unlikely]]
    return describe("the reply is longer than its room");
  if (header.error > 0 || header.error <= -4096) [[unlikely]]
    return describe("the error is no negative errno");
  if (header.error != 0 && length != sizeof(header)) [[unlikely]]
    return describe("an error brings bytes along");
  completion.error = -header.error;
  completion.bytes = length - static_cast<std::uint32_t>(sizeof(header));
  // Poisoned, so that a stale header can't pass for an answer to the slot's next request.
  std::memset(slot.out.host, 0xa5, sizeof(header));
  return completion;
}

// ---- FuseClient: the engine -----------------------------------------------------------------

FuseClient::FuseClient(FuseQueue& requests, FuseQueue& urgent)
    : requests_(requests), urgent_(urgent), pending_(requests.options().slots) {}

std::optional<std::uint32_t> FuseClient::begin(std::uint32_t opcode, std::uint64_t node,
                                               Parts arguments, std::size_t room) {
  if (last_slot_) {
    requests_.release(*last_slot_);
    last_slot_.reset();
  }
  const auto slot = requests_.acquire();
  if (!slot) return std::nullopt;
  const std::span<std::byte> near = requests_.arguments(*slot);
  const std::span<std::byte> far = requests_.data(*slot);

  // Struct and names near, whole parts only; from the first that doesn't fit on in the data area.
  RequestShape shape{.opcode = opcode, .node = node};
  const auto append = [&](std::span<const std::byte> part) {
    if (part.empty()) return;
    if (shape.data_in == 0 && shape.arguments + part.size() <= near.size()) {
      std::memcpy(near.data() + shape.arguments, part.data(), part.size());
      shape.arguments += static_cast<std::uint32_t>(part.size());
    } else {
      CHECK(shape.data_in + part.size() <= far.size());
      std::memcpy(far.data() + shape.data_in, part.data(), part.size());
      shape.data_in += static_cast<std::uint32_t>(part.size());
    }
  };
  for (const std::span<const std::byte> part : arguments) append(part);
  // Right behind the last argument, as Linux does: only their own size is a multiple of 8.
  append(extension_);
  if (room <= FuseQueue::kReplyBytes) {
    shape.reply = static_cast<std::uint32_t>(room);
  } else {
    shape.data_out_from = (shape.data_in + 4095) / 4096 * 4096;
    shape.data_out = static_cast<std::uint32_t>(room);
    CHECK(shape.data_out_from + room <= far.size());
  }
  if (!requests_.start(*slot, shape)) {
    requests_.release(*slot);
    return std::nullopt;
  }
  pending_[*slot] = {.in_flight = true,
                     .done = false,
                     .room = room,
                     .data_from = shape.data_out_from,
                     .completion = {}};
  requests_.publish();
  return slot;
}

void FuseClient::set_supplementary_group(std::optional<std::uint32_t> group) {
  if (!group) return set_extension({});
  struct {
    fuse_ext_header header;
    std::uint32_t count;
    std::uint32_t group;
  } const extension{.header = {.size = 16, .type = kExtensionGroups}, .count = 1, .group = *group};
  set_extension(bytes_of(extension));
}

void FuseClient::settle(const Completion& completion) {
  Pending& pending = pending_[completion.slot];
  pending.done = true;
  pending.completion = completion;
}

bool FuseClient::done(std::uint32_t slot) {
  while (const auto completion = requests_.poll()) settle(*completion);
  return pending_[slot].done;
}

Reply FuseClient::finish(std::uint32_t slot) {
  const Deadline deadline = within(requests_.options().patience);
  Pending& pending = pending_[slot];
  CHECK(pending.in_flight);
  while (!pending.done) {
    const auto completion = requests_.wait(deadline);
    if (!completion) {
      requests_.complain("no answer to unique " + std::to_string(requests_.unique_of(slot)));
      return {.error = ETIMEDOUT, .bytes = {}};  // the slot stays the device's
    }
    settle(*completion);
  }
  pending.in_flight = false;
  if (last_slot_) requests_.release(*last_slot_);
  last_slot_ = slot;
  Reply reply{.error = pending.completion.error, .bytes = {}};
  if (reply.error == 0) {
    const std::size_t size = pending.completion.bytes;
    reply.bytes = pending.room <= FuseQueue::kReplyBytes
                      ? requests_.reply(slot).first(size)
                      : requests_.data(slot).subspan(pending.data_from, size);
  }
  return reply;
}

Reply FuseClient::call(std::uint32_t opcode, std::uint64_t node, Parts arguments,
                       std::size_t room) {
  const auto slot = begin(opcode, node, arguments, room);
  if (!slot) {
    requests_.complain("no slot or no room in the ring for opcode " + std::to_string(opcode));
    return {.error = ETIMEDOUT, .bytes = {}};
  }
  return finish(*slot);
}

void FuseClient::tell(std::uint32_t opcode, std::uint64_t node, Parts arguments) {
  const auto slot = urgent_.acquire();
  CHECK(slot.has_value());
  RequestShape shape{.opcode = opcode, .node = node, .no_reply = true};
  for (const std::span<const std::byte> part : arguments) {
    CHECK(shape.arguments + part.size() <= FuseQueue::kArgumentBytes);
    std::memcpy(urgent_.arguments(*slot).data() + shape.arguments, part.data(), part.size());
    shape.arguments += static_cast<std::uint32_t>(part.size());
  }
  if (!urgent_.start(*slot, shape)) {
    urgent_.complain("the high-priority ring is full");
    return;
  }
  urgent_.publish();
  if (urgent_.wait(within(urgent_.options().patience))) {
    urgent_.release(*slot);
  } else {
    urgent_.complain("opcode " + std::to_string(opcode) + " was never taken");
  }
}

std::vector<std::string> FuseClient::violations() const {
  std::vector<std::string> all = requests_.violations();
  if (&urgent_ != &requests_)
    all.insert(all.end(), urgent_.violations().begin(), urgent_.violations().end());
  return all;
}

Result<> FuseClient::call_for_nothing(std::uint32_t opcode, std::uint64_t node, Parts arguments) {
  const Reply reply = call(opcode, node, arguments, 0);
  if (reply.error != 0) return Errno{reply.error};
  return {};
}

// ---- FuseClient: the session ----------------------------------------------------------------

Result<fuse_init_out> FuseClient::init(std::uint64_t flags, std::uint32_t minor) {
  fuse_init_in in{};
  in.major = FUSE_KERNEL_VERSION;
  in.minor = minor;
  in.max_readahead = 128 * 1024;
  in.flags = static_cast<std::uint32_t>(flags);
  in.flags2 = static_cast<std::uint32_t>(flags >> 32);
  const Reply reply = call(FUSE_INIT, 0, {bytes_of(in)}, sizeof(fuse_init_out));
  session_ = TRY(reply.as<fuse_init_out>());
  flags_ = session_.flags;
  if ((session_.flags & FUSE_INIT_EXT) != 0)
    flags_ |= static_cast<std::uint64_t>(session_.flags2) << 32;
  if ((flags_ & ~flags) != 0) requests_.complain("INIT takes flags that were not offered");
  return session_;
}

Result<> FuseClient::destroy() {
  return call_for_nothing(FUSE_DESTROY, 0, {});
}

// ---- FuseClient: names ----------------------------------------------------------------------

Result<fuse_entry_out> FuseClient::lookup(std::uint64_t parent, std::string_view name) {
  return call(FUSE_LOOKUP, parent, {text(name), kNul}, sizeof(fuse_entry_out)).as<fuse_entry_out>();
}

Result<fuse_entry_out> FuseClient::walk(std::string_view path) {
  fuse_entry_out entry{};
  entry.nodeid = kRoot;
  while (!path.empty()) {
    const std::size_t slash = path.find('/');
    entry = TRY(lookup(entry.nodeid, path.substr(0, slash)));
    path = slash == std::string_view::npos ? std::string_view{} : path.substr(slash + 1);
  }
  return entry;
}

void FuseClient::forget(std::uint64_t node, std::uint64_t count) {
  const fuse_forget_in in{.nlookup = count};
  tell(FUSE_FORGET, node, {bytes_of(in)});
}

void FuseClient::batch_forget(std::span<const fuse_forget_one> nodes) {
  const fuse_batch_forget_in in{.count = static_cast<std::uint32_t>(nodes.size()), .dummy = 0};
  tell(FUSE_BATCH_FORGET, 0, {bytes_of(in), std::as_bytes(nodes)});
}

Result<fuse_entry_out> FuseClient::symlink(std::uint64_t parent, std::string_view name,
                                           std::string_view target) {
  return call(FUSE_SYMLINK, parent, {text(name), kNul, text(target), kNul}, sizeof(fuse_entry_out))
      .as<fuse_entry_out>();
}

Result<fuse_entry_out> FuseClient::mknod(std::uint64_t parent, std::string_view name,
                                         std::uint32_t mode, std::uint32_t rdev,
                                         std::uint32_t umask) {
  const fuse_mknod_in in{.mode = mode, .rdev = rdev, .umask = umask, .padding = 0};
  return call(FUSE_MKNOD, parent, {bytes_of(in), text(name), kNul}, sizeof(fuse_entry_out))
      .as<fuse_entry_out>();
}

Result<fuse_entry_out> FuseClient::mkdir(std::uint64_t parent, std::string_view name,
                                         std::uint32_t mode, std::uint32_t umask) {
  const fuse_mkdir_in in{.mode = mode, .umask = umask};
  return call(FUSE_MKDIR, parent, {bytes_of(in), text(name), kNul}, sizeof(fuse_entry_out))
      .as<fuse_entry_out>();
}

Result<> FuseClient::unlink(std::uint64_t parent, std::string_view name) {
  return call_for_nothing(FUSE_UNLINK, parent, {text(name), kNul});
}

Result<> FuseClient::rmdir(std::uint64_t parent, std::string_view name) {
  return call_for_nothing(FUSE_RMDIR, parent, {text(name), kNul});
}

Result<> FuseClient::rename(std::uint64_t parent, std::string_view from, std::uint64_t to_parent,
                            std::string_view to) {
  const fuse_rename_in in{.newdir = to_parent};
  return call_for_nothing(FUSE_RENAME, parent, {bytes_of(in), text(from), kNul, text(to), kNul});
}

Result<> FuseClient::rename2(std::uint64_t parent, std::string_view from, std::uint64_t to_parent,
                             std::string_view to, std::uint32_t flags) {
  const fuse_rename2_in in{.newdir = to_parent, .flags = flags, .padding = 0};
  return call_for_nothing(FUSE_RENAME2, parent, {bytes_of(in), text(from), kNul, text(to), kNul});
}

Result<fuse_entry_out> FuseClient::link(std::uint64_t node, std::uint64_t parent,
                                        std::string_view name) {
  const fuse_link_in in{.oldnodeid = node};
  return call(FUSE_LINK, parent, {bytes_of(in), text(name), kNul}, sizeof(fuse_entry_out))
      .as<fuse_entry_out>();
}

Result<std::string> FuseClient::readlink(std::uint64_t node) {
  const Reply reply = call(FUSE_READLINK, node, {}, 4096);
  if (reply.error != 0) return Errno{reply.error};
  return to_string(reply.bytes);
}

// ---- FuseClient: attributes -----------------------------------------------------------------

Result<fuse_attr> FuseClient::getattr(std::uint64_t node, std::optional<std::uint64_t> handle) {
  const fuse_getattr_in in{.getattr_flags = handle ? std::uint32_t{FUSE_GETATTR_FH} : 0U,
                           .dummy = 0,
                           .fh = handle.value_or(0)};
  return TRY(call(FUSE_GETATTR, node, {bytes_of(in)}, sizeof(fuse_attr_out)).as<fuse_attr_out>())
      .attr;
}

Result<StatxAttributes> FuseClient::statx(std::uint64_t node, std::uint32_t mask,
                                          std::uint32_t flags) {
  const StatxIn in{
      .getattr_flags = 0, .reserved = 0, .fh = 0, .statx_flags = flags, .statx_mask = mask};
  return TRY(call(kOpStatx, node, {bytes_of(in)}, sizeof(StatxOut)).as<StatxOut>()).stat;
}

Result<fuse_attr> FuseClient::setattr(std::uint64_t node, const fuse_setattr_in& in) {
  return TRY(call(FUSE_SETATTR, node, {bytes_of(in)}, sizeof(fuse_attr_out)).as<fuse_attr_out>())
      .attr;
}

Result<fuse_attr> FuseClient::chmod(std::uint64_t node, std::uint32_t mode) {
  fuse_setattr_in in{};
  in.valid = FATTR_MODE;
  in.mode = mode;
  return setattr(node, in);
}

Result<fuse_attr> FuseClient::chown(std::uint64_t node, std::optional<std::uint32_t> uid,
                                    std::optional<std::uint32_t> gid) {
  fuse_setattr_in in{};
  if (uid) in.valid |= FATTR_UID;
  if (gid) in.valid |= FATTR_GID;
  in.uid = uid.value_or(0);
  in.gid = gid.value_or(0);
  return setattr(node, in);
}

Result<fuse_attr> FuseClient::truncate(std::uint64_t node, std::uint64_t size,
                                       std::optional<std::uint64_t> handle) {
  fuse_setattr_in in{};
  in.valid = FATTR_SIZE;
  if (handle) in.valid |= FATTR_FH;
  in.fh = handle.value_or(0);
  in.size = size;
  return setattr(node, in);
}

Result<> FuseClient::access(std::uint64_t node, std::uint32_t mask) {
  const fuse_access_in in{.mask = mask, .padding = 0};
  return call_for_nothing(FUSE_ACCESS, node, {bytes_of(in)});
}

Result<fuse_kstatfs> FuseClient::statfs(std::uint64_t node) {
  return TRY(call(FUSE_STATFS, node, {}, sizeof(fuse_statfs_out)).as<fuse_statfs_out>()).st;
}

// ---- FuseClient: files ----------------------------------------------------------------------

Result<fuse_open_out> FuseClient::open(std::uint64_t node, std::uint32_t flags,
                                       std::uint32_t open_flags) {
  const fuse_open_in in{.flags = flags, .open_flags = open_flags};
  return call(FUSE_OPEN, node, {bytes_of(in)}, sizeof(fuse_open_out)).as<fuse_open_out>();
}

Result<CreatedFile> FuseClient::create(std::uint64_t parent, std::string_view name,
                                       std::uint32_t flags, std::uint32_t mode, std::uint32_t umask,
                                       std::uint32_t open_flags) {
  const fuse_create_in in{.flags = flags, .mode = mode, .umask = umask, .open_flags = open_flags};
  return call(FUSE_CREATE, parent, {bytes_of(in), text(name), kNul}, sizeof(CreatedFile))
      .as<CreatedFile>();
}

Result<CreatedFile> FuseClient::tmpfile(std::uint64_t parent, std::uint32_t flags,
                                        std::uint32_t mode, std::uint32_t umask) {
  const fuse_create_in in{.flags = flags, .mode = mode, .umask = umask, .open_flags = 0};
  // Linux sends a name along ("/" in older, "#<ino>" in none): it means nothing.
  return call(FUSE_TMPFILE, parent, {bytes_of(in), text("/"), kNul}, sizeof(CreatedFile))
      .as<CreatedFile>();
}

Result<std::string> FuseClient::read(std::uint64_t node, std::uint64_t handle, std::uint64_t offset,
                                     std::uint32_t size, std::uint32_t flags) {
  const fuse_read_in in{.fh = handle,
                        .offset = offset,
                        .size = size,
                        .read_flags = 0,
                        .lock_owner = 0,
                        .flags = flags,
                        .padding = 0};
  const Reply reply = call(FUSE_READ, node, {bytes_of(in)}, size);
  if (reply.error != 0) return Errno{reply.error};
  return to_string(reply.bytes);
}

Result<std::uint32_t> FuseClient::write(std::uint64_t node, std::uint64_t handle,
                                        std::uint64_t offset, std::string_view data,
                                        std::uint32_t write_flags, std::uint32_t flags) {
  const fuse_write_in in{.fh = handle,
                         .offset = offset,
                         .size = static_cast<std::uint32_t>(data.size()),
                         .write_flags = write_flags,
                         .lock_owner = 0,
                         .flags = flags,
                         .padding = 0};
  const Reply reply = call(FUSE_WRITE, node, {bytes_of(in), text(data)}, sizeof(fuse_write_out));
  return TRY(reply.as<fuse_write_out>()).size;
}

Result<> FuseClient::flush(std::uint64_t node, std::uint64_t handle, std::uint64_t owner) {
  const fuse_flush_in in{.fh = handle, .unused = 0, .padding = 0, .lock_owner = owner};
  return call_for_nothing(FUSE_FLUSH, node, {bytes_of(in)});
}

Result<> FuseClient::release(std::uint64_t node, std::uint64_t handle, std::uint32_t release_flags,
                             std::uint64_t owner) {
  const fuse_release_in in{
      .fh = handle, .flags = 0, .release_flags = release_flags, .lock_owner = owner};
  return call_for_nothing(FUSE_RELEASE, node, {bytes_of(in)});
}

Result<> FuseClient::fsync(std::uint64_t node, std::uint64_t handle, bool data_only) {
  const fuse_fsync_in in{.fh = handle,
                         .fsync_flags = data_only ? std::uint32_t{FUSE_FSYNC_FDATASYNC} : 0U,
                         .padding = 0};
  return call_for_nothing(FUSE_FSYNC, node, {bytes_of(in)});
}

Result<> FuseClient::fallocate(std::uint64_t node, std::uint64_t handle, std::uint64_t offset,
                               std::uint64_t length, std::uint32_t mode) {
  const fuse_fallocate_in in{
      .fh = handle, .offset = offset, .length = length, .mode = mode, .padding = 0};
  return call_for_nothing(FUSE_FALLOCATE, node, {bytes_of(in)});
}

Result<std::uint64_t> FuseClient::lseek(std::uint64_t node, std::uint64_t handle,
                                        std::uint64_t offset, std::uint32_t whence) {
  const fuse_lseek_in in{.fh = handle, .offset = offset, .whence = whence, .padding = 0};
  return TRY(call(FUSE_LSEEK, node, {bytes_of(in)}, sizeof(fuse_lseek_out)).as<fuse_lseek_out>())
      .offset;
}

Result<std::uint64_t> FuseClient::copy_file_range(std::uint64_t node_in, std::uint64_t handle_in,
                                                  std::uint64_t offset_in, std::uint64_t node_out,
                                                  std::uint64_t handle_out,
                                                  std::uint64_t offset_out, std::uint64_t length,
                                                  std::uint64_t flags) {
  const fuse_copy_file_range_in in{.fh_in = handle_in,
                                   .off_in = offset_in,
                                   .nodeid_out = node_out,
                                   .fh_out = handle_out,
                                   .off_out = offset_out,
                                   .len = length,
                                   .flags = flags};
  const Reply reply = call(FUSE_COPY_FILE_RANGE, node_in, {bytes_of(in)}, sizeof(fuse_write_out));
  return std::uint64_t{TRY(reply.as<fuse_write_out>()).size};
}

Result<std::uint64_t> FuseClient::copy_file_range_64(
    std::uint64_t node_in, std::uint64_t handle_in, std::uint64_t offset_in, std::uint64_t node_out,
    std::uint64_t handle_out, std::uint64_t offset_out, std::uint64_t length, std::uint64_t flags) {
  const fuse_copy_file_range_in in{.fh_in = handle_in,
                                   .off_in = offset_in,
                                   .nodeid_out = node_out,
                                   .fh_out = handle_out,
                                   .off_out = offset_out,
                                   .len = length,
                                   .flags = flags};
  const Reply reply = call(kOpCopyFileRange64, node_in, {bytes_of(in)}, sizeof(CopyFileRangeOut));
  return TRY(reply.as<CopyFileRangeOut>()).bytes_copied;
}

Result<std::string> FuseClient::ioctl(std::uint64_t node, std::uint64_t handle,
                                      std::uint32_t command, std::string_view in,
                                      std::uint32_t out_size, std::uint32_t flags) {
  const fuse_ioctl_in head{.fh = handle,
                           .flags = flags,
                           .cmd = command,
                           .arg = 0xdead'beef'0000,
                           .in_size = static_cast<std::uint32_t>(in.size()),
                           .out_size = out_size};
  const Reply reply =
      call(FUSE_IOCTL, node, {bytes_of(head), text(in)}, sizeof(fuse_ioctl_out) + out_size);
  const fuse_ioctl_out out = TRY(reply.as<fuse_ioctl_out>());
  if (out.result != 0) return Errno{out.result < 0 ? -out.result : out.result};
  return to_string(reply.bytes.subspan(sizeof(out)));
}

Result<> FuseClient::syncfs(std::uint64_t node) {
  const fuse_syncfs_in in{};
  return call_for_nothing(FUSE_SYNCFS, node, {bytes_of(in)});
}

// ---- FuseClient: directories ----------------------------------------------------------------

Result<fuse_open_out> FuseClient::opendir(std::uint64_t node, std::uint32_t flags) {
  const fuse_open_in in{.flags = flags, .open_flags = 0};
  return call(FUSE_OPENDIR, node, {bytes_of(in)}, sizeof(fuse_open_out)).as<fuse_open_out>();
}

Result<> FuseClient::releasedir(std::uint64_t node, std::uint64_t handle) {
  const fuse_release_in in{.fh = handle, .flags = 0, .release_flags = 0, .lock_owner = 0};
  return call_for_nothing(FUSE_RELEASEDIR, node, {bytes_of(in)});
}

Result<> FuseClient::fsyncdir(std::uint64_t node, std::uint64_t handle, bool data_only) {
  const fuse_fsync_in in{.fh = handle,
                         .fsync_flags = data_only ? std::uint32_t{FUSE_FSYNC_FDATASYNC} : 0U,
                         .padding = 0};
  return call_for_nothing(FUSE_FSYNCDIR, node, {bytes_of(in)});
}

Result<std::vector<Entry>> FuseClient::read_entries(std::uint32_t opcode, std::uint64_t node,
                                                    std::uint64_t handle, std::uint64_t offset,
                                                    std::uint32_t size) {
  const fuse_read_in in{.fh = handle,
                        .offset = offset,
                        .size = size,
                        .read_flags = 0,
                        .lock_owner = 0,
                        .flags = 0,
                        .padding = 0};
  const Reply reply = call(opcode, node, {bytes_of(in)}, size);
  if (reply.error != 0) return Errno{reply.error};
  std::vector<Entry> entries;
  std::span<const std::byte> rest = reply.bytes;
  const std::size_t head = opcode == FUSE_READDIRPLUS ? sizeof(fuse_entry_out) : 0;
  while (!rest.empty()) {
    if (rest.size() < head + sizeof(fuse_dirent)) break;
    Entry entry;
    if (head != 0) std::memcpy(&entry.entry, rest.data(), head);
    std::array<std::byte, sizeof(fuse_dirent)> fixed;
    std::memcpy(fixed.data(), rest.data() + head, fixed.size());
    std::uint32_t length = 0;
    std::memcpy(&entry.ino, fixed.data(), 8);
    std::memcpy(&entry.offset, fixed.data() + 8, 8);
    std::memcpy(&length, fixed.data() + 16, 4);
    std::memcpy(&entry.type, fixed.data() + 20, 4);
    const std::size_t whole = FUSE_REC_ALIGN(head + sizeof(fuse_dirent) + length);
    if (length == 0 || length > 255 || whole > rest.size()) break;
    entry.name = to_string(rest.subspan(head + sizeof(fuse_dirent), length));
    entries.push_back(std::move(entry));
    rest = rest.subspan(whole);
  }
  if (!rest.empty()) {
    requests_.complain("a directory listing does not parse");
    return Errno{EPROTO};
  }
  return entries;
}

Result<std::vector<Entry>> FuseClient::readdir(std::uint64_t node, std::uint64_t handle,
                                               std::uint64_t offset, std::uint32_t size) {
  return read_entries(FUSE_READDIR, node, handle, offset, size);
}

Result<std::vector<Entry>> FuseClient::readdirplus(std::uint64_t node, std::uint64_t handle,
                                                   std::uint64_t offset, std::uint32_t size) {
  return read_entries(FUSE_READDIRPLUS, node, handle, offset, size);
}

Result<std::vector<Entry>> FuseClient::list(std::uint64_t node, bool plus, std::uint32_t size) {
  const fuse_open_out opened = TRY(opendir(node));
  std::vector<Entry> all;
  std::uint64_t offset = 0;
  for (;;) {
    auto some = read_entries(plus ? FUSE_READDIRPLUS : FUSE_READDIR, node, opened.fh, offset, size);
    if (!some || some->empty()) {
      TRY(releasedir(node, opened.fh));
      if (!some) return some.error();
      return all;
    }
    offset = some->back().offset;
    std::move(some->begin(), some->end(), std::back_inserter(all));
  }
}

// ---- FuseClient: extended attributes --------------------------------------------------------

Result<> FuseClient::setxattr(std::uint64_t node, std::string_view name, std::string_view value,
                              std::uint32_t flags, std::uint32_t setxattr_flags) {
  const fuse_setxattr_in in{.size = static_cast<std::uint32_t>(value.size()),
                            .flags = flags,
                            .setxattr_flags = setxattr_flags,
                            .padding = 0};
  const std::size_t head =
      has(FUSE_SETXATTR_EXT) ? sizeof(in) : std::size_t{FUSE_COMPAT_SETXATTR_IN_SIZE};
  return call_for_nothing(FUSE_SETXATTR, node,
                          {bytes_of(in).first(head), text(name), kNul, text(value)});
}

Result<std::string> FuseClient::getxattr(std::uint64_t node, std::string_view name,
                                         std::uint32_t size) {
  const fuse_getxattr_in in{.size = size, .padding = 0};
  const Reply reply = call(FUSE_GETXATTR, node, {bytes_of(in), text(name), kNul},
                           std::max<std::size_t>(size, sizeof(fuse_getxattr_out)));
  if (reply.error != 0) return Errno{reply.error};
  return to_string(reply.bytes);
}

Result<std::uint32_t> FuseClient::getxattr_size(std::uint64_t node, std::string_view name) {
  const fuse_getxattr_in in{.size = 0, .padding = 0};
  const Reply reply =
      call(FUSE_GETXATTR, node, {bytes_of(in), text(name), kNul}, sizeof(fuse_getxattr_out));
  return TRY(reply.as<fuse_getxattr_out>()).size;
}

Result<std::string> FuseClient::listxattr(std::uint64_t node, std::uint32_t size) {
  const fuse_getxattr_in in{.size = size, .padding = 0};
  const Reply reply = call(FUSE_LISTXATTR, node, {bytes_of(in)},
                           std::max<std::size_t>(size, sizeof(fuse_getxattr_out)));
  if (reply.error != 0) return Errno{reply.error};
  return to_string(reply.bytes);
}

Result<std::uint32_t> FuseClient::listxattr_size(std::uint64_t node) {
  const fuse_getxattr_in in{.size = 0, .padding = 0};
  const Reply reply = call(FUSE_LISTXATTR, node, {bytes_of(in)}, sizeof(fuse_getxattr_out));
  return TRY(reply.as<fuse_getxattr_out>()).size;
}

Result<> FuseClient::removexattr(std::uint64_t node, std::string_view name) {
  return call_for_nothing(FUSE_REMOVEXATTR, node, {text(name), kNul});
}

// ---- FuseClient: locks ----------------------------------------------------------------------

namespace {
fuse_lk_in lock_request(std::uint64_t handle, std::uint64_t owner, const fuse_file_lock& lock,
                        bool flock) {
  return {.fh = handle,
          .owner = owner,
          .lk = lock,
          .lk_flags = flock ? std::uint32_t{FUSE_LK_FLOCK} : 0U,
          .padding = 0};
}
}  // namespace

Result<fuse_file_lock> FuseClient::getlk(std::uint64_t node, std::uint64_t handle,
                                         std::uint64_t owner, const fuse_file_lock& lock) {
  const fuse_lk_in in = lock_request(handle, owner, lock, false);
  return TRY(call(FUSE_GETLK, node, {bytes_of(in)}, sizeof(fuse_lk_out)).as<fuse_lk_out>()).lk;
}

Result<> FuseClient::setlk(std::uint64_t node, std::uint64_t handle, std::uint64_t owner,
                           const fuse_file_lock& lock, bool flock) {
  const fuse_lk_in in = lock_request(handle, owner, lock, flock);
  return call_for_nothing(FUSE_SETLK, node, {bytes_of(in)});
}

Result<> FuseClient::setlkw(std::uint64_t node, std::uint64_t handle, std::uint64_t owner,
                            const fuse_file_lock& lock, bool flock) {
  const fuse_lk_in in = lock_request(handle, owner, lock, flock);
  return call_for_nothing(FUSE_SETLKW, node, {bytes_of(in)});
}

std::optional<std::uint32_t> FuseClient::begin_setlkw(std::uint64_t node, std::uint64_t handle,
                                                      std::uint64_t owner,
                                                      const fuse_file_lock& lock, bool flock) {
  const fuse_lk_in in = lock_request(handle, owner, lock, flock);
  return begin(FUSE_SETLKW, node, {bytes_of(in)}, 0);
}

void FuseClient::interrupt(std::uint64_t unique) {
  const fuse_interrupt_in in{.unique = unique};
  tell(FUSE_INTERRUPT, 0, {bytes_of(in)});
}

}  // namespace virtiofsd::guest
