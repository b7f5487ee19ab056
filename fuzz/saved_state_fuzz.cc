// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The state of a guest as another daemon sends it, which may say anything: frames that are nearly
// right, and some that are not. What was loaded leads nowhere but into the share, and a DESTROY
// leaves no node, no handle and no descriptor.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/saved_queues.h"
#include "fuse/dispatcher.h"
#include "fuzz/input.h"
#include "fuzz/share.h"
#include "passthrough/passthrough.h"
#include "state/saved.h"
#include "state/stream.h"
#include "sys/events.h"
#include "sys/files.h"
#include "virtio/in_flight.h"

namespace virtiofsd::fuzz {
namespace {

constexpr int kMostSteps = 48;
constexpr std::uint32_t kMostHandles = 16;

const std::array<std::string, 16> kNames = {"file",
                                            "dir",
                                            "a",
                                            "way-out",
                                            "way-out-abs",
                                            "fifo",
                                            "dir/a",
                                            "dir/way-out",
                                            "dir/../file",
                                            "..",
                                            ".",
                                            "",
                                            "../outside/marker",
                                            "way-out/x",
                                            "/file",
                                            std::string(300, 'n')};
constexpr std::array<std::uint8_t, 5> kTypes = {S_IFREG >> 12, S_IFDIR >> 12, S_IFLNK >> 12,
                                                S_IFIFO >> 12, 15};

class Stream {
 public:
  Stream(const Share& share, Input& in) : share_(share), in_(in) {
    struct stat st {};
    CHECK(::stat(share.path("share").c_str(), &st) == 0);
    root_ = st.st_ino;
  }

  std::vector<std::byte> make() {
    const std::uint8_t how = in_.byte();
    head(how);
    session(how);
    root(how);
    for (int step = 0; step < kMostSteps && !in_.empty(); ++step) {
      switch (in_.below(8)) {
        case 0:
        case 1:
        case 2:
          inode();
          break;
        case 3:
        case 4:
          handle();
          break;
        case 5:
          locks();
          break;
        case 6:
          anything();
          break;
        default:
          bytes_.resize(bytes_.size() - std::min<std::size_t>(bytes_.size(), in_.below(64)));
      }
    }
    if ((how & 1) == 0) put(SavedKind::kEnd, sent_, {});
    return bytes_;
  }
  const std::vector<std::uint64_t>& nodes() const { return nodes_; }
  const std::vector<SavedHandle>& handles() const { return handles_; }

 private:
  template <typename T>
  void put(SavedKind kind, const T& value, std::span<const std::byte> rest) {
    put_raw(static_cast<std::uint32_t>(kind), raw_bytes(value), rest);
  }
  void put_raw(std::uint32_t kind, std::span<const std::byte> one,
               std::span<const std::byte> rest) {
    const FrameHeader header{.kind = kind,
                             .size = static_cast<std::uint32_t>(one.size() + rest.size())};
    const auto add = [this](std::span<const std::byte> bytes) {
      bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    };
    add(raw_bytes(header));
    add(one);
    add(rest);
  }

  // Low bits that are small mostly, now and then an edge.
  std::uint32_t small() {
    const std::uint8_t number = in_.byte();
    return number < 0xe0 ? number % 12U
                         : static_cast<std::uint32_t>(kEdges[number % kEdges.size()]);
  }
  std::uint64_t id() {
    const std::uint64_t slot = small();
    return std::uint64_t{1 + in_.below(3) / 2} << 32 | slot;
  }
  std::uint64_t known_node() {
    const std::size_t which = in_.below(16);
    if (which < 6) return 1;
    if (which == 15 || nodes_.empty()) return id();
    return nodes_[(which - 6) % nodes_.size()];
  }

  void head(std::uint8_t how) {
    SavedHead saved;
    saved.rings = (how & 2) != 0 ? 1 : 0;
    put(SavedKind::kHead, saved, {});
    if (saved.rings == 0) return;
    const SavedRing ring{.index = small(),
                         .size = 8,
                         .packed = in_.below(2) == 0 ? 0U : 1U,
                         .number = small(),
                         .base = small(),
                         .requests = static_cast<std::uint32_t>(in_.below(4)),
                         .descriptors = static_cast<std::uint32_t>(in_.below(9))};
    put(SavedKind::kRing, ring, {});
    std::vector<SavedRequest> requests(ring.requests);
    for (SavedRequest& one : requests) {
      one.cell = small();
      one.word = std::uint64_t{in_.byte()} << 56 | std::uint64_t{in_.byte()} << 48 | small();
    }
    if (!requests.empty())
      put_raw(static_cast<std::uint32_t>(SavedKind::kRequests), std::as_bytes(std::span{requests}),
              {});
    std::vector<SavedDescriptor> descriptors(ring.descriptors);
    for (SavedDescriptor& one : descriptors) {
      one.cell = small();
      one.copy.count = static_cast<std::uint16_t>(in_.below(10));
      one.copy.next = static_cast<std::uint16_t>(small());
    }
    if (!descriptors.empty())
      put_raw(static_cast<std::uint32_t>(SavedKind::kDescriptors),
              std::as_bytes(std::span{descriptors}), {});
  }
  void session(std::uint8_t how) {
    SavedSession saved;
    saved.major = 7;
    saved.minor = 38;
    saved.max_write = 1U << 20;
    saved.max_pages = 256;
    if ((how & 4) != 0) saved.flags = in_.take<std::uint64_t>();
    if ((how & 8) != 0) saved.major = small();
    put(SavedKind::kSession, saved, {});
  }
  void root(std::uint8_t how) {
    SavedRoot saved;
    saved.ino = (how & 16) != 0 ? root_ : 0;
    saved.inode_generation = small();
    saved.handle_generation = small();
    put(SavedKind::kRoot, saved, {});
  }

  void inode() {
    SavedInode saved;
    saved.id = id();
    saved.lookups = small();
    saved.parent = known_node();
    saved.place = static_cast<SavedPlace>(in_.below(8) == 7 ? in_.byte() : in_.below(4));
    saved.type = in_.one_of(kTypes);
    saved.open = in_.byte();
    const std::string name = in_.one_of(kNames);
    if (in_.below(8) == 0) {
      // The identity of what the name leads to.
      struct stat st {};
      if (::lstat(share_.path("share/" + name).c_str(), &st) == 0) saved.ino = st.st_ino;
    }
    std::vector<std::byte> rest;
    const auto text = std::as_bytes(std::span{name});
    rest.assign(text.begin(), text.end());
    saved.name_size = static_cast<std::uint16_t>(name.size());
    if (saved.place == SavedPlace::kHandle || in_.below(8) == 0) {
      const std::vector<std::byte> handle = some_handle();
      rest.insert(rest.end(), handle.begin(), handle.end());
      saved.handle_size = static_cast<std::uint16_t>(handle.size());
    }
    if (in_.below(32) == 0) saved.name_size = static_cast<std::uint16_t>(small());
    put(SavedKind::kInode, saved, rest);
    ++sent_.inodes;
    nodes_.push_back(saved.id);
  }
  // Of a file in the share (what is outside could be named by a sender who is trusted, no other),
  // or bytes.
  std::vector<std::byte> some_handle() {
    if (in_.below(4) == 3) return in_.bytes(in_.below(200));
    const std::array<const char*, 3> kFiles = {"share/file", "share/dir", "share/dir/a"};
    const UniqueFd fd{::open(share_.path(in_.one_of(kFiles)).c_str(), O_PATH | O_CLOEXEC)};
    const auto handle = sys::name_to_handle_at(fd);
    if (!handle) return {};
    std::vector<std::byte> bytes(raw_bytes(handle->type).begin(), raw_bytes(handle->type).end());
    bytes.insert(bytes.end(), handle->bytes.begin(), handle->bytes.begin() + handle->size);
    return bytes;
  }
  void handle() {
    const SavedHandle saved{.id = id(),
                            .node = known_node(),
                            .open_flags = in_.below(4) == 3
                                              ? in_.take<std::uint32_t>()
                                              : static_cast<std::uint32_t>(in_.below(3)),
                            .kind = static_cast<std::uint16_t>(in_.below(3)),
                            .flock = static_cast<std::uint8_t>(in_.below(4))};
    put(SavedKind::kHandle, saved, {});
    ++sent_.handles;
    handles_.push_back(saved);
  }
  void locks() {
    std::vector<SavedLockRange> ranges(in_.below(4));
    for (SavedLockRange& one : ranges) {
      one.start = small();
      one.end = small();
      one.type = static_cast<std::uint32_t>(in_.below(4));
      one.handle = handles_.empty() ? 0 : handles_.back().id;
    }
    const SavedLockOwner saved{
        .node = known_node(),
        .owner = in_.below(3),
        .ranges = static_cast<std::uint32_t>(in_.below(16) == 0 ? small() : ranges.size())};
    put(SavedKind::kLockOwner, saved, std::as_bytes(std::span{ranges}));
    ++sent_.lock_owners;
  }
  void anything() {
    const std::uint32_t kind = in_.byte();
    put_raw(kind, in_.bytes(in_.below(80)), {});
  }

  const Share& share_;
  Input& in_;
  std::uint64_t root_ = 0;
  std::vector<std::byte> bytes_;
  SavedEnd sent_;
  std::vector<std::uint64_t> nodes_;
  std::vector<SavedHandle> handles_;
};

class Receiver {
 public:
  Receiver(const Share& share, std::uint8_t options) : share_(share) {
    fuse::Dispatcher::Settings dispatching;
    dispatching.offer.flock = true;
    Passthrough::Settings settings;
    settings.remote_flock = true;
    settings.can_switch_user = false;
    settings.inodes.descriptor_budget = 4;
    settings.inodes.max_inodes = 64;
    settings.inodes.use_file_handles = (options & 1) != 0;
    settings.max_handles = kMostHandles;
    settings.migration.goes_on = (options & 2) != 0;
    settings.migration.patience_for_locks = {};
    file_system_ =
        Passthrough::create(
            UniqueFd{::open(share.path("share").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)},
            std::move(settings))
            .value();
    dispatcher_ = std::make_unique<fuse::Dispatcher>(*file_system_, dispatching);
  }

  void run(Stream& stream) {
    file_system_->thread_started();
    const std::vector<std::byte> bytes = stream.make();
    const UniqueFd file{::memfd_create("stream", MFD_CLOEXEC)};
    CHECK(::pwrite(file.number(), bytes.data(), bytes.size(), 0) ==
          static_cast<ssize_t>(bytes.size()));
    const sys::EventFd cancelled = std::move(sys::EventFd::create()).value();
    FrameReader from{file, cancelled.ref()};
    const auto queues = load_queues(from);
    if (queues) try_queues(*queues);
    const auto outcome = queues ? dispatcher_->load(from) : Result<void, Failure>{queues.error()};
    if (!outcome) {
      log::error("{}", outcome.error().text());
      CHECK(file_system_->handles().count() == 0);
      CHECK(file_system_->inodes().count() == 1);
    }
    CHECK(file_system_->handles().count() <= kMostHandles);
    for (const std::uint64_t node : stream.nodes()) look_at(node);
    for (const SavedHandle& handle : stream.handles()) read(handle);
    dispatcher_->reset();
    CHECK(file_system_->handles().count() == 0);
    CHECK(file_system_->inodes().count() == 1);
    CHECK(file_system_->inodes().descriptors() <= 1);
    share_.check_marker();
  }

 private:
  // As a successor takes them over, whatever they say.
  static void try_queues(const std::vector<SavedQueue>& queues) {
    std::vector<std::byte> memory(sizeof(RingRecord));
    for (const SavedQueue& queue : queues) {
      virtio::InFlight log{memory};
      if (!log.load(queue.requests)) continue;
      std::uint32_t slots = 0;
      for (const std::uint16_t cell : log.take_over(queue.requests.size, queue.requests.packed)) {
        std::vector<virtio::PackedDescriptor> descriptors;
        slots += log.slots_of(cell);
        if (queue.requests.packed) log.copy_descriptors(cell, descriptors);
      }
      CHECK(slots <= queue.requests.size);
    }
  }

  std::vector<std::byte> ask(std::uint32_t opcode, std::uint64_t node,
                             std::span<const std::byte> arguments) {
    const fuse_in_header header{
        .len = static_cast<std::uint32_t>(sizeof(fuse_in_header) + arguments.size()),
        .opcode = opcode,
        .unique = ++unique_,
        .nodeid = node,
        .uid = 0,
        .gid = 0,
        .pid = 1,
        .total_extlen = 0,
        .padding = 0};
    std::vector<std::byte> request(raw_bytes(header).begin(), raw_bytes(header).end());
    request.insert(request.end(), arguments.begin(), arguments.end());
    std::vector<std::byte> reply(4096);
    iovec in{.iov_base = request.data(), .iov_len = request.size()};
    iovec out{.iov_base = reply.data(), .iov_len = reply.size()};
    reply.resize(dispatcher_->serve(SharedBytes{std::span{&in, 1}, request.size()},
                                    SharedBytes{std::span{&out, 1}, reply.size()}, {}, scheduler_,
                                    scratch_));
    const auto secret = std::as_bytes(std::span{kSecret});
    CHECK(std::ranges::search(reply, secret).empty());
    return reply;
  }
  void look_at(std::uint64_t node) {
    const std::vector<std::byte> reply = ask(FUSE_GETATTR, node, raw_bytes(fuse_getattr_in{}));
    Reader reader{reply};
    const auto head = reader.take<fuse_out_header>();
    if (!head || head->error != 0) return;
    const auto attr = reader.take<fuse_attr_out>();
    CHECK(attr && !share_.is_outside(attr->attr.ino));
  }
  void read(const SavedHandle& handle) {
    fuse_read_in in{};
    in.fh = handle.id;
    in.size = 1024;
    const bool is_directory = handle.kind == static_cast<std::uint16_t>(HandleKind::kDirectory);
    (void)ask(is_directory ? FUSE_READDIRPLUS : FUSE_READ, handle.node, raw_bytes(in));
  }

  const Share& share_;
  std::unique_ptr<Passthrough> file_system_;
  std::unique_ptr<fuse::Dispatcher> dispatcher_;
  fuse::NullScheduler scheduler_;
  fuse::Scratch scratch_;
  std::uint64_t unique_ = 0;
};

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  static_cast<void>(
      virtiofsd::sys::proc_self_fd().valid());  // opened now, so that it is no leak later
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace virtiofsd::fuzz;
  if (size > 4096) return -1;
  set_log(size != 0 && (data[0] & 0x80) != 0);
  Input in(data, size);
  const NoDescriptorLeaks no_leaks;
  Share share;
  Receiver receiver(share, in.byte());
  Stream stream(share, in);
  // A thread of its own: serving changes its umask and working directory for good.
  std::thread([&] { receiver.run(stream); }).join();
  return 0;
}
