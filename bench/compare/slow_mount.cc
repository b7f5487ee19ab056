// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/slow_mount.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

namespace virtiofsd::bench {
namespace {

constexpr std::uint64_t kFirstFile = 2;

fuse_attr attributes(std::uint64_t node) {
  fuse_attr attr{};
  attr.ino = node;
  attr.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0644;
  attr.nlink = 1;
  attr.blksize = 4096;
  return attr;
}

}  // namespace

Result<std::unique_ptr<SlowMount>, Failure> SlowMount::make(const std::string& path) {
  std::unique_ptr<SlowMount> made{new SlowMount};
  made->stop_ = UniqueFd{eventfd(0, EFD_CLOEXEC)};
  made->device_ = UniqueFd{open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK)};
  if (!made->device_) return Failure("/dev/fuse", Errno::last());
  const std::string options = "fd=" + std::to_string(made->device_.number()) +
                              ",rootmode=40000,user_id=0,group_id=0,allow_other";
  if (mount("slow", path.c_str(), "fuse", MS_NOSUID | MS_NODEV, options.c_str()) != 0)
    return Failure("mounting on " + path, Errno::last());
  made->path_ = path;
  made->thread_ = std::thread([slow = made.get()] { slow->serve(); });
  return made;
}

SlowMount::~SlowMount() {
  if (path_.empty()) return;
  let_go();
  umount2(path_.c_str(), MNT_DETACH);
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t told = write(stop_.number(), &one, sizeof(one));
  thread_.join();
  // The device closes next, which ends the connection for daemons that still see the mount.
}

void SlowMount::hold() {
  const std::lock_guard lock(mutex_);
  holding_ = true;
}

void SlowMount::let_go() {
  const std::lock_guard lock(mutex_);
  holding_ = false;
  for (const Held& held : held_) answer_attributes(held.unique, held.node);
  held_.clear();
}

std::size_t SlowMount::waiting() const {
  const std::lock_guard lock(mutex_);
  return held_.size();
}

void SlowMount::answer(std::uint64_t unique, int error, const void* body, std::size_t size) const {
  fuse_out_header header{
      .len = static_cast<std::uint32_t>(sizeof(header) + size), .error = -error, .unique = unique};
  const std::array<iovec, 2> parts{{{.iov_base = &header, .iov_len = sizeof(header)},
                                    {.iov_base = const_cast<void*>(body), .iov_len = size}}};
  // ENOENT: whoever asked has been interrupted.
  [[maybe_unused]] const ssize_t sent = writev(device_.number(), parts.data(), parts.size());
}

void SlowMount::answer_attributes(std::uint64_t unique, std::uint64_t node) const {
  fuse_attr_out out{};
  out.attr_valid = node == FUSE_ROOT_ID ? 3600 : 0;
  out.attr = attributes(node);
  answer(unique, 0, &out, sizeof(out));
}

void SlowMount::serve() {
  std::vector<char> buffer(1U << 17);
  for (;;) {
    std::array<pollfd, 2> waited{{{.fd = device_.number(), .events = POLLIN, .revents = 0},
                                  {.fd = stop_.number(), .events = POLLIN, .revents = 0}}};
    poll(waited.data(), waited.size(), -1);
    if (waited[1].revents != 0) return;
    const ssize_t got = read(device_.number(), buffer.data(), buffer.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) continue;
    if (got < static_cast<ssize_t>(sizeof(fuse_in_header))) return;
    fuse_in_header header;
    std::memcpy(&header, buffer.data(), sizeof(header));
    const char* const body = buffer.data() + sizeof(header);
    switch (header.opcode) {
      case FUSE_INIT: {
        fuse_init_out out{};
        out.major = FUSE_KERNEL_VERSION;
        out.minor = 31;
        out.max_readahead = 4096;
        out.max_background = 256;
        out.congestion_threshold = 256;
        out.max_write = 4096;
        answer(header.unique, 0, &out, sizeof(out));
        break;
      }
      case FUSE_LOOKUP: {
        if (body[0] != 'f') {
          answer(header.unique, ENOENT, nullptr, 0);
          break;
        }
        fuse_entry_out out{};
        out.nodeid = kFirstFile + std::strtoull(body + 1, nullptr, 10);
        out.generation = 1;
        out.entry_valid = 3600;
        out.attr = attributes(out.nodeid);
        answer(header.unique, 0, &out, sizeof(out));
        break;
      }
      case FUSE_GETATTR: {
        const std::lock_guard lock(mutex_);
        if (holding_ && header.nodeid != FUSE_ROOT_ID) {
          held_.push_back({.unique = header.unique, .node = header.nodeid});
        } else {
          answer_attributes(header.unique, header.nodeid);
        }
        break;
      }
      case FUSE_STATFS: {
        const fuse_statfs_out out{};
        answer(header.unique, 0, &out, sizeof(out));
        break;
      }
      case FUSE_FORGET:
      case FUSE_BATCH_FORGET:
      case FUSE_INTERRUPT:
        break;
      case FUSE_DESTROY:
        return;
      default:
        answer(header.unique, ENOSYS, nullptr, 0);
    }
  }
}

}  // namespace virtiofsd::bench
