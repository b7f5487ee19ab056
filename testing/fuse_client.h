// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The guest kernel's FUSE side: builds requests in guest memory, puts them on a
// queue, checks what comes back.
//
// FuseQueue is the engine: request slots made once, start and poll without any
// allocation, for benchmarks at any depth. FuseClient is words over it: one
// function per operation, synchronous, one caller at a time.
//
// Checked on every completion: the ring's used length equals the reply
// header's length (0 for requests without reply), `unique` is the request's,
// the error is a sane negative errno and alone in its reply. What breaks a
// rule is counted and described in violations(); a test should end by looking.
//
// Neither class is thread-safe; queues are independent of each other.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "testing/front_end.h"
#include "testing/wire.h"

namespace virtiofsd::guest {

// How a request lies in descriptors.
enum class ChainShape : std::uint8_t {
  kLinux,    // header | arguments | data pages...  and  reply header | reply | data pages...
  kCompact,  // header and arguments | data  and  reply header and reply | data
};

struct FuseQueueOptions {
  unsigned slots = 16;
  std::size_t data_bytes = 1U << 20;  // per slot: WRITE payload or READ space
  std::size_t piece_bytes = 0;        // data descriptors' size; 0: one for all of it
  ChainShape shape = ChainShape::kLinux;
  std::chrono::milliseconds patience{10'000};
};

// What a request carries, apart from what the slot's own buffers hold.
struct RequestShape {
  std::uint32_t opcode = 0;
  std::uint64_t node = 0;
  std::uint32_t arguments = 0;      // bytes of Slot::arguments used
  std::uint32_t data_in = 0;        // bytes of Slot::data sent after them
  std::uint32_t reply = 0;          // room in Slot::reply, header not counted
  std::uint32_t data_out = 0;       // room in Slot::data for what follows
  std::uint32_t data_out_from = 0;  // where in Slot::data that room starts
  bool no_reply = false;            // FORGET and friends: nothing writable at all
};

struct Completion {
  std::uint32_t slot = 0;
  int error = 0;            // positive errno, 0: success
  std::uint32_t bytes = 0;  // of the reply, header not counted
};

class FuseQueue {
 public:
  static constexpr std::size_t kArgumentBytes = 4096 - sizeof(fuse_in_header);
  static constexpr std::size_t kReplyBytes = 4096 - sizeof(fuse_out_header);

  // Caller of the requests started from now on.
  std::uint32_t uid = 0, gid = 0, pid = 1;
  std::uint16_t extension_words = 0;  // total_extlen: 8-byte units of the last argument bytes

  FuseQueue(FrontEnd& front_end, unsigned queue, FuseQueueOptions options = {});
  FuseQueue(const FuseQueue&) = delete;
  FuseQueue& operator=(const FuseQueue&) = delete;

  DriverRing& ring() { return ring_; }
  const FuseQueueOptions& options() const { return options_; }

  // A free slot, or nothing when all are in flight. It is the caller's until its completion is
  // given back with release().
  std::optional<std::uint32_t> acquire();
  void release(std::uint32_t slot) { free_.push_back(slot); }

  std::span<std::byte> arguments(std::uint32_t slot) const {
    return {slots_[slot].in.host + sizeof(fuse_in_header), kArgumentBytes};
  }
  std::span<const std::byte> reply(std::uint32_t slot) const {
    return {slots_[slot].out.host + sizeof(fuse_out_header), kReplyBytes};
  }
  std::span<std::byte> data(std::uint32_t slot) const {
    return {slots_[slot].data.host, slots_[slot].data.size};
  }
  const Block& in_block(std::uint32_t slot) const { return slots_[slot].in; }
  const Block& out_block(std::uint32_t slot) const { return slots_[slot].out; }
  const Block& data_block(std::uint32_t slot) const { return slots_[slot].data; }

  template <typename T>
  void put(std::uint32_t slot, const T& value, std::size_t at = 0) const {
    std::memcpy(slots_[slot].in.host + sizeof(fuse_in_header) + at, &value, sizeof(value));
  }

  // Writes the header and the chain; publish() tells the device. False when the ring is full.
  bool start(std::uint32_t slot, const RequestShape& shape);
  bool publish() { return ring_.publish(); }
  std::uint64_t unique_of(std::uint32_t slot) const { return slots_[slot].unique; }

  std::optional<Completion> poll() { return complete(ring_.poll()); }
  std::optional<Completion> wait(Deadline deadline) { return complete(ring_.wait(deadline)); }
  std::optional<Completion> spin(Deadline deadline) { return complete(ring_.spin(deadline)); }

  std::uint64_t violation_count() const { return violation_count_; }
  const std::vector<std::string>& violations() const { return violations_; }
  void complain(std::string what);

 private:
  struct Slot {
    Block in, out, data;
    std::uint64_t unique = 0;
    std::uint32_t opcode = 0;
    std::uint32_t room = 0;  // writable bytes in all
    bool no_reply = false;
  };

  std::optional<Completion> complete(std::optional<Used> used);
  std::size_t add_data(const Slot& slot, std::uint32_t from, std::uint32_t size, Buffer* into);

  const FuseQueueOptions options_;
  DriverRing& ring_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
  std::vector<Buffer> readable_, writable_;  // scratch
  std::uint64_t next_unique_;
  std::uint64_t violation_count_ = 0;
  std::vector<std::string> violations_;
};

// A reply whose bytes live until the client's next call.
struct Reply {
  int error = 0;  // positive errno
  std::span<const std::byte> bytes;

  template <typename T>
  Result<T> as() const {
    if (error != 0) return Errno{error};
    T value{};
    std::memcpy(static_cast<void*>(&value), bytes.data(), std::min(sizeof(T), bytes.size()));
    return value;
  }
};

struct Entry {  // of a directory listing
  std::string name;
  std::uint64_t ino = 0;
  std::uint64_t offset = 0;
  std::uint32_t type = 0;
  fuse_entry_out entry{};  // READDIRPLUS only
};

struct CreatedFile {
  fuse_entry_out entry;
  fuse_open_out open;
};

class FuseClient {
 public:
  // What Linux 6.x with everything compiled in offers.
  static constexpr std::uint64_t kLinuxFlags = 0x5fd'7bff'fffbULL;
  static constexpr std::uint64_t kRoot = FUSE_ROOT_ID;

  // Requests go to `requests`, FORGET, BATCH_FORGET and INTERRUPT to `urgent` (the
  // high-priority queue). Both outlive the client.
  FuseClient(FuseQueue& requests, FuseQueue& urgent);

  // Whose requests follow.
  void as(std::uint32_t uid, std::uint32_t gid) {
    requests_.uid = uid;
    requests_.gid = gid;
  }
  void set_pid(std::uint32_t pid) { requests_.pid = pid; }
  // Extension bytes (a multiple of 8) at the end of every request from now on; none when empty.
  void set_extension(std::span<const std::byte> bytes) {
    extension_.assign(bytes.begin(), bytes.end());
    requests_.extension_words = static_cast<std::uint16_t>(bytes.size() / 8);
  }
  // The one supplementary group that Linux sends along with a create (CREATE_SUPP_GROUP).
  void set_supplementary_group(std::optional<std::uint32_t> group);

  // ---- anything ----
  // `arguments` are laid end to end. A reply may have up to `room` bytes. EPROTO with a
  // violation when a rule was broken, ETIMEDOUT with one when nothing came.
  using Parts = std::initializer_list<std::span<const std::byte>>;
  Reply call(std::uint32_t opcode, std::uint64_t node, Parts arguments, std::size_t room);
  // The same in two steps, for requests that wait. A slot, or nothing when there is none.
  std::optional<std::uint32_t> begin(std::uint32_t opcode, std::uint64_t node, Parts arguments,
                                     std::size_t room);
  Reply finish(std::uint32_t slot);  // waits for this one; others' replies are kept
  bool done(std::uint32_t slot);     // true when finish() would not wait
  std::uint64_t unique_of(std::uint32_t slot) const { return requests_.unique_of(slot); }
  // Without reply, on the urgent queue.
  void tell(std::uint32_t opcode, std::uint64_t node, Parts arguments);

  // ---- the session ----
  Result<fuse_init_out> init(std::uint64_t flags = kLinuxFlags, std::uint32_t minor = 41);
  Result<> destroy();
  const fuse_init_out& session() const { return session_; }
  bool has(std::uint64_t flag) const { return (flags_ & flag) != 0; }

  // ---- names ----
  Result<fuse_entry_out> lookup(std::uint64_t parent, std::string_view name);
  // Of a path below the root, one LOOKUP per part.
  Result<fuse_entry_out> walk(std::string_view path);
  void forget(std::uint64_t node, std::uint64_t count = 1);
  void batch_forget(std::span<const fuse_forget_one> nodes);
  Result<fuse_entry_out> symlink(std::uint64_t parent, std::string_view name,
                                 std::string_view target);
  Result<fuse_entry_out> mknod(std::uint64_t parent, std::string_view name, std::uint32_t mode,
                               std::uint32_t rdev = 0, std::uint32_t umask = 0);
  Result<fuse_entry_out> mkdir(std::uint64_t parent, std::string_view name, std::uint32_t mode,
                               std::uint32_t umask = 0);
  Result<> unlink(std::uint64_t parent, std::string_view name);
  Result<> rmdir(std::uint64_t parent, std::string_view name);
  Result<> rename(std::uint64_t parent, std::string_view from, std::uint64_t to_parent,
                  std::string_view to);
  Result<> rename2(std::uint64_t parent, std::string_view from, std::uint64_t to_parent,
                   std::string_view to, std::uint32_t flags);
  Result<fuse_entry_out> link(std::uint64_t node, std::uint64_t parent, std::string_view name);
  Result<std::string> readlink(std::uint64_t node);

  // ---- attributes ----
  Result<fuse_attr> getattr(std::uint64_t node, std::optional<std::uint64_t> handle = {});
  Result<StatxAttributes> statx(std::uint64_t node, std::uint32_t mask = 0xfff,
                                std::uint32_t flags = 0);
  Result<fuse_attr> setattr(std::uint64_t node, const fuse_setattr_in& in);
  Result<fuse_attr> chmod(std::uint64_t node, std::uint32_t mode);
  Result<fuse_attr> chown(std::uint64_t node, std::optional<std::uint32_t> uid,
                          std::optional<std::uint32_t> gid);
  Result<fuse_attr> truncate(std::uint64_t node, std::uint64_t size,
                             std::optional<std::uint64_t> handle = {});
  Result<> access(std::uint64_t node, std::uint32_t mask);
  Result<fuse_kstatfs> statfs(std::uint64_t node);

  // ---- files ----
  Result<fuse_open_out> open(std::uint64_t node, std::uint32_t flags, std::uint32_t open_flags = 0);
  Result<CreatedFile> create(std::uint64_t parent, std::string_view name, std::uint32_t flags,
                             std::uint32_t mode, std::uint32_t umask = 0,
                             std::uint32_t open_flags = 0);
  Result<CreatedFile> tmpfile(std::uint64_t parent, std::uint32_t flags, std::uint32_t mode,
                              std::uint32_t umask = 0);
  Result<std::string> read(std::uint64_t node, std::uint64_t handle, std::uint64_t offset,
                           std::uint32_t size, std::uint32_t flags = 0);
  Result<std::uint32_t> write(std::uint64_t node, std::uint64_t handle, std::uint64_t offset,
                              std::string_view data, std::uint32_t write_flags = 0,
                              std::uint32_t flags = 0);
  Result<> flush(std::uint64_t node, std::uint64_t handle, std::uint64_t owner = 0);
  Result<> release(std::uint64_t node, std::uint64_t handle, std::uint32_t release_flags = 0,
                   std::uint64_t owner = 0);
  Result<> fsync(std::uint64_t node, std::uint64_t handle, bool data_only = false);
  Result<> fallocate(std::uint64_t node, std::uint64_t handle, std::uint64_t offset,
                     std::uint64_t length, std::uint32_t mode = 0);
  Result<std::uint64_t> lseek(std::uint64_t node, std::uint64_t handle, std::uint64_t offset,
                              std::uint32_t whence);
  Result<std::uint64_t> copy_file_range(std::uint64_t node_in, std::uint64_t handle_in,
                                        std::uint64_t offset_in, std::uint64_t node_out,
                                        std::uint64_t handle_out, std::uint64_t offset_out,
                                        std::uint64_t length, std::uint64_t flags = 0);
  Result<std::uint64_t> copy_file_range_64(std::uint64_t node_in, std::uint64_t handle_in,
                                           std::uint64_t offset_in, std::uint64_t node_out,
                                           std::uint64_t handle_out, std::uint64_t offset_out,
                                           std::uint64_t length, std::uint64_t flags = 0);
  // The output bytes; fuse_ioctl_out's result must be 0 or it is the error.
  Result<std::string> ioctl(std::uint64_t node, std::uint64_t handle, std::uint32_t command,
                            std::string_view in, std::uint32_t out_size, std::uint32_t flags = 0);
  Result<> syncfs(std::uint64_t node);

  // ---- directories ----
  Result<fuse_open_out> opendir(std::uint64_t node, std::uint32_t flags = 0);
  Result<> releasedir(std::uint64_t node, std::uint64_t handle);
  Result<> fsyncdir(std::uint64_t node, std::uint64_t handle, bool data_only = false);
  // One READDIR or READDIRPLUS; a reply that doesn't parse is a violation and EPROTO.
  Result<std::vector<Entry>> readdir(std::uint64_t node, std::uint64_t handle, std::uint64_t offset,
                                     std::uint32_t size = 65536);
  Result<std::vector<Entry>> readdirplus(std::uint64_t node, std::uint64_t handle,
                                         std::uint64_t offset, std::uint32_t size = 65536);
  // Open, read to the end in steps of `size`, close.
  Result<std::vector<Entry>> list(std::uint64_t node, bool plus = false,
                                  std::uint32_t size = 65536);

  // ---- extended attributes ----
  Result<> setxattr(std::uint64_t node, std::string_view name, std::string_view value,
                    std::uint32_t flags = 0, std::uint32_t setxattr_flags = 0);
  Result<std::string> getxattr(std::uint64_t node, std::string_view name, std::uint32_t size);
  Result<std::uint32_t> getxattr_size(std::uint64_t node, std::string_view name);
  Result<std::string> listxattr(std::uint64_t node, std::uint32_t size);
  Result<std::uint32_t> listxattr_size(std::uint64_t node);
  Result<> removexattr(std::uint64_t node, std::string_view name);

  // ---- locks ----
  Result<fuse_file_lock> getlk(std::uint64_t node, std::uint64_t handle, std::uint64_t owner,
                               const fuse_file_lock& lock);
  Result<> setlk(std::uint64_t node, std::uint64_t handle, std::uint64_t owner,
                 const fuse_file_lock& lock, bool flock = false);
  Result<> setlkw(std::uint64_t node, std::uint64_t handle, std::uint64_t owner,
                  const fuse_file_lock& lock, bool flock = false);
  // SETLKW left waiting; finish() or interrupt() ends it.
  std::optional<std::uint32_t> begin_setlkw(std::uint64_t node, std::uint64_t handle,
                                            std::uint64_t owner, const fuse_file_lock& lock,
                                            bool flock = false);
  void interrupt(std::uint64_t unique);

  FuseQueue& queue() { return requests_; }
  // Of both queues.
  std::vector<std::string> violations() const;

 private:
  Result<> call_for_nothing(std::uint32_t opcode, std::uint64_t node, Parts arguments);
  Result<std::vector<Entry>> read_entries(std::uint32_t opcode, std::uint64_t node,
                                          std::uint64_t handle, std::uint64_t offset,
                                          std::uint32_t size);
  void settle(const Completion& completion);

  FuseQueue& requests_;
  FuseQueue& urgent_;
  fuse_init_out session_{};
  std::uint64_t flags_ = 0;
  std::vector<std::byte> extension_;
  std::optional<std::uint32_t> last_slot_;  // its reply is still being read
  struct Pending {
    bool in_flight = false;
    bool done = false;
    std::size_t room = 0;
    std::uint32_t data_from = 0;
    Completion completion;
  };
  std::vector<Pending> pending_;
};

}  // namespace virtiofsd::guest
