// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The share without a guest: the host's own kernel mounts it. The kernel speaks
// FUSE through /dev/fuse, this program carries its requests to a daemon's rings
// and the replies back, as virtio_fs.c does in a guest. So the kernel that runs
// here, on all its processors and at full speed, is the daemon's client, and
// any test suite can run on the mount.
//
//   bridge [-q QUEUES] MOUNTPOINT DAEMON [OPTION...] -- COMMAND...
//
// Runs COMMAND while MOUNTPOINT is the share that the daemon's options name.
// Exit status: the command's; 125 if something here or in the daemon failed, 77
// if the kernel lets nobody mount.
//
// Each request queue is one thread with a clone of the device. Differences to a
// guest: the kernel may send INTERRUPT and BATCH_FORGET, and one buffer is one
// descriptor.
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "testing/daemon_process.h"
#include "testing/front_end.h"

namespace virtiofsd::guest {
namespace {

constexpr int kSkipped = 77, kFailed = 125;
constexpr std::uint32_t kIn = sizeof(fuse_in_header), kOut = sizeof(fuse_out_header);
constexpr std::uint32_t kData = 1U << 20;  // the most that a WRITE or READ carries
constexpr std::uint32_t kPage = 4096;
constexpr unsigned kSlots = 128;

[[noreturn]] void fail(const std::string& what, int status = kFailed) {
  std::fprintf(stderr, "bridge: %s\n", what.c_str());
  std::exit(status);
}

bool wants_no_reply(std::uint32_t opcode) {
  return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
}

// What one request is in: the first 80 bytes of a WRITE are its arguments, so its data is on a page
// boundary, as in a guest.
struct Slot {
  Block head, data_in, out_head, data_out;
  std::uint32_t opcode = 0;
};

// One ring, and who waits for it.
class Lane {
 public:
  Lane(FrontEnd& front_end, unsigned queue, UniqueFd device, Lane* urgent)
      : ring_(front_end.ring(queue)),
        call_(front_end.call_fd(queue)),
        device_(std::move(device)),
        urgent_(urgent),
        slots_(kSlots) {
    GuestRam& ram = front_end.ram();
    for (std::uint32_t i = 0; i < kSlots; ++i) {
      slots_[i].head = ram.allocate(kIn + sizeof(fuse_write_in));
      slots_[i].data_in = ram.allocate(kData + kPage, kPage);
      slots_[i].out_head = ram.allocate(kOut);
      slots_[i].data_out = ram.allocate(kData + kPage, kPage);
      free_.push_back(i);
    }
  }

  // The urgent lane's part: what has no reply. Called by the threads of all lanes.
  void tell(const Slot& from, std::uint32_t size) {
    const std::lock_guard lock(mutex_);
    while (const auto used = ring_.poll()) free_.push_back(used->cookie);
    for (int tries = 0; free_.empty(); ++tries) {
      if (tries == 10'000) fail("the high-priority queue is stuck");
      ::usleep(1000);
      while (const auto used = ring_.poll()) free_.push_back(used->cookie);
    }
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    const auto head = static_cast<std::uint32_t>(from.head.size);
    std::memcpy(slots_[slot].head.host, from.head.host, head);
    std::memcpy(slots_[slot].data_in.host, from.data_in.host, size > head ? size - head : 0);
    submit(slot, size, false);
  }

  void run() {
    for (;;) {
      bool any = false;
      while (!free_.empty()) {
        const int taken = take();
        if (taken < 0) return;
        if (taken == 0) break;
        any = true;
      }
      while (const auto used = ring_.poll()) {
        answer(*used);
        any = true;
      }
      if (ring_.broken()) fail(ring_.breakage());
      if (any || !ring_.arm()) continue;
      pollfd waited[2] = {
          {.fd = call_.number(), .events = POLLIN, .revents = 0},
          {.fd = device_.number(), .events = free_.empty() ? short{} : short{POLLIN}, .revents = 0},
      };
      ::poll(waited, 2, -1);
      ring_.disarm();
      std::uint64_t count = 0;
      if ((waited[0].revents & POLLIN) != 0) [[maybe_unused]]
        const ssize_t got = ::read(call_.number(), &count, sizeof count);
    }
  }

 private:
  void submit(std::uint32_t index, std::uint32_t size, bool replies) {
    const Slot& slot = slots_[index];
    const auto head = static_cast<std::uint32_t>(slot.head.size);
    const Buffer in[2] = {{slot.head.guest, size < head ? size : head},
                          {slot.data_in.guest, size > head ? size - head : 0}};
    // A READ gets the room it asks for; what is left of a page must not fit more.
    std::uint32_t room = 2 * kPage;
    if (slot.opcode == FUSE_READ || slot.opcode == FUSE_READDIR ||
        slot.opcode == FUSE_READDIRPLUS) {
      fuse_read_in arguments;
      std::memcpy(&arguments, slot.head.host + kIn, sizeof arguments);
      room = arguments.size;
    } else if (slot.opcode == FUSE_GETXATTR || slot.opcode == FUSE_LISTXATTR) {
      room = 65536 + kPage;
    } else if (slot.opcode == FUSE_IOCTL) {
      room = kData;
    }
    const Buffer out[2] = {{slot.out_head.guest, kOut}, {slot.data_out.guest, room}};
    const std::size_t readable = size > head ? 2 : 1;
    const std::size_t writable = room == 0 ? 1 : 2;
    if (!ring_.submit({in, readable}, {out, replies ? writable : 0}, index))
      fail("the ring has no room");
  }

  // The kernel's next request, into the ring. 0: there is none now; -1: no more, ever.
  int take() {
    const std::uint32_t index = free_.back();
    Slot& slot = slots_[index];
    const iovec parts[2] = {{slot.head.host, slot.head.size}, {slot.data_in.host, kData + kPage}};
    const ssize_t size = ::readv(device_.number(), parts, 2);
    if (size < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOENT)) return 0;
    if (size < 0 && errno == ENODEV) return -1;
    if (size < static_cast<ssize_t>(kIn)) fail(std::string{"/dev/fuse: "} + std::strerror(errno));
    fuse_in_header header;
    std::memcpy(&header, slot.head.host, sizeof header);
    slot.opcode = header.opcode;
    if (wants_no_reply(header.opcode)) {
      urgent_->tell(slot, static_cast<std::uint32_t>(size));
      return 1;
    }
    free_.pop_back();
    submit(index, static_cast<std::uint32_t>(size), true);
    return 1;
  }

  void answer(const Used& used) {
    const Slot& slot = slots_[used.cookie];
    fuse_out_header header;
    std::memcpy(&header, slot.out_head.host, sizeof header);
    if (header.len != used.length) fail("a reply's length is not what the ring says");
    const iovec parts[2] = {{slot.out_head.host, kOut}, {slot.data_out.host, header.len - kOut}};
    // ENOENT: the request was interrupted and its caller is gone.
    if (::writev(device_.number(), parts, header.len > kOut ? 2 : 1) < 0 && errno != ENOENT &&
        errno != ENODEV) {
      fail("the kernel refuses a reply to opcode " + std::to_string(slot.opcode) + ": " +
           std::strerror(errno));
    }
    free_.push_back(used.cookie);
  }

  DriverRing& ring_;
  FdRef call_;
  UniqueFd device_;
  Lane* const urgent_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
  std::mutex mutex_;  // the urgent lane's
};

UniqueFd open_device() {
  UniqueFd device{::open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK)};
  if (!device) fail(std::string{"/dev/fuse: "} + std::strerror(errno), kSkipped);
  return device;
}

int main_of(int argc, char** argv) {
  int at = 1;
  unsigned queues = 2;
  if (at + 1 < argc && std::string{argv[at]} == "-q") {
    queues = static_cast<unsigned>(std::atoi(argv[at + 1]));
    at += 2;
  }
  if (queues < 1 || queues > 64) fail("-q takes 1 to 64");
  if (argc < at + 4) fail("bridge [-q QUEUES] MOUNTPOINT DAEMON [OPTION...] -- COMMAND...");
  const char* const mountpoint = argv[at++];
  DaemonOptions how;
  how.binary = argv[at++];
  while (at < argc && std::string{argv[at]} != "--") how.arguments.emplace_back(argv[at++]);
  if (at + 1 >= argc) fail("no command");
  char** const command = argv + at + 1;

  auto daemon = DaemonProcess::start(std::move(how));
  if (!daemon) fail(daemon.error().text());
  FrontEndOptions vmm;
  vmm.request_queues = queues;
  vmm.ring.size = 1024;
  vmm.ring.event_idx = true;
  vmm.ring.indirect = true;
  vmm.protocol_features = kProtocolMq | kProtocolReplyAck | kProtocolConfigureMemSlots;
  vmm.buffer_memory = (queues + 1) * kSlots * (2ULL * (kData + kPage) + 8192) + (64ULL << 20);
  auto front_end = FrontEnd::adopt((*daemon)->take_connection(), std::move(vmm));
  if (!front_end) fail(front_end.error().text());
  if (auto ready = (*front_end)->set_up(); !ready)
    fail(ready.error().text() + "\n" + (*daemon)->output());

  UniqueFd device = open_device();
  const std::string words = "fd=" + std::to_string(device.number()) +
                            ",rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other";
  if (::mount("bridge", mountpoint, "fuse.bridge", 0, words.c_str()) != 0)
    fail(std::string{"mount: "} + std::strerror(errno), kSkipped);

  std::vector<UniqueFd> devices;
  for (unsigned i = 1; i < queues; ++i) {
    UniqueFd clone = open_device();
    auto number = static_cast<std::uint32_t>(device.number());
    if (::ioctl(clone.number(), FUSE_DEV_IOC_CLONE, &number) != 0) fail("FUSE_DEV_IOC_CLONE");
    devices.push_back(std::move(clone));
  }
  devices.push_back(std::move(device));

  Lane urgent{**front_end, 0, UniqueFd{}, nullptr};
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < queues; ++i)
    lanes.push_back(std::make_unique<Lane>(**front_end, i + 1, std::move(devices[i]), &urgent));
  for (auto& lane : lanes) threads.emplace_back([&lane] { lane->run(); });

  const pid_t child = ::fork();
  if (child == 0) {
    ::execvp(command[0], command);
    std::perror(command[0]);
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  int result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  for (int tries = 0; ::umount2(mountpoint, tries < 100 ? 0 : MNT_DETACH) != 0; ++tries) {
    if (tries == 100) {
      std::fprintf(stderr, "bridge: umount: %s\n", std::strerror(errno));
      result = kFailed;
    }
    ::usleep(50'000);
  }
  for (auto& thread : threads) thread.join();
  (*front_end)->close();
  const auto ended = (*daemon)->wait(within(std::chrono::seconds{5}));
  if (!ended || *ended != 0) {
    std::fprintf(stderr, "bridge: the daemon did not end well:\n%s\n", (*daemon)->output().c_str());
    result = kFailed;
  }
  return result;
}

}  // namespace
}  // namespace virtiofsd::guest

int main(int argc, char** argv) {
  return virtiofsd::guest::main_of(argc, argv);
}
