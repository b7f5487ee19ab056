// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Everything at once, for as long as asked: verified file data on several
// queues, tree walks, locks, a host process that changes the share, a hostile
// ring, queues that stop and start, sessions on and off a second daemon. Prints
// what it did and what the daemon costs; ends non-zero on wrong bytes, on a
// daemon that stops serving, or when memory, descriptors or threads still grow
// after the first part of the run.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "testing/daemon_process.h"
#include "testing/front_end.h"
#include "testing/fuse_client.h"
#include "testing/temp_tree.h"

namespace virtiofsd::guest {
namespace {

constexpr unsigned kDataQueues = 3;
constexpr unsigned kTreeQueue = 4;     // walks a share that changes
constexpr unsigned kHostileQueue = 5;  // noise
constexpr std::uint32_t kFileBytes = 1U << 20;

struct Sample {
  double seconds = 0;
  std::uint64_t resident = 0;
  std::uint64_t descriptors = 0;
  unsigned threads = 0;
};

std::atomic<bool> stop{false};
std::atomic<std::uint64_t> wrong{0};
std::atomic<std::uint64_t> bytes_moved{0};
std::atomic<std::uint64_t> requests{0};
std::atomic<std::uint64_t> restarts{0};

void complain(const char* what, unsigned queue) {
  std::fprintf(stderr, "soak: wrong: %s on queue %u\n", what, queue);
  ++wrong;
}

// What a block of a file holds after write number `generation`.
void fill(std::string& block, std::uint64_t file, std::uint64_t at, std::uint64_t generation) {
  std::mt19937_64 random(file * 1'000'003 + at * 31 + generation);
  for (std::size_t i = 0; i + 8 <= block.size(); i += 8) {
    const std::uint64_t word = random();
    std::memcpy(block.data() + i, &word, 8);
  }
}

// Writes and reads its own file with a model beside it.
void move_data(FuseClient& fuse, unsigned queue) {
  const std::string name = "data-" + std::to_string(queue);
  const auto made = fuse.create(FuseClient::kRoot, name, O_RDWR, 0600);
  if (!made) return complain("CREATE", queue);
  const std::uint64_t node = made->entry.nodeid;
  constexpr std::uint32_t kBlock = 16384;
  std::vector<std::uint64_t> generations(kFileBytes / kBlock, 0);
  std::string block(kBlock, '\0');
  std::mt19937 random(queue);
  std::uint64_t handle = made->open.fh;
  for (std::uint64_t round = 1; !stop; ++round) {
    const std::uint64_t at = random() % generations.size();
    if (random() % 2 == 0 || generations[at] == 0) {
      fill(block, queue, at, round);
      const auto written = fuse.write(node, handle, at * kBlock, block);
      if (!written || *written != kBlock) complain("WRITE", queue);
      generations[at] = round;
    } else {
      fill(block, queue, at, generations[at]);
      const auto read = fuse.read(node, handle, at * kBlock, kBlock);
      if (!read || *read != block) complain("READ", queue);
    }
    bytes_moved += kBlock;
    ++requests;
    if (round % 97 == 0) {
      const fuse_file_lock lock{.start = at, .end = at + 10, .type = F_WRLCK, .pid = 1};
      fuse_file_lock unlock = lock;
      unlock.type = F_UNLCK;
      if (!fuse.setlk(node, handle, queue, lock) || !fuse.setlk(node, handle, queue, unlock))
        complain("SETLK", queue);
      if (!fuse.release(node, handle)) complain("RELEASE", queue);
      const auto again = fuse.open(node, O_RDWR);
      if (!again) return complain("OPEN", queue);
      handle = again->fh;
    }
  }
}

// Makes, lists, renames and removes among files that the host changes too: any errno will do.
void walk_tree(FuseClient& fuse) {
  std::mt19937 random(99);
  while (!stop) {
    const std::string name = "t" + std::to_string(random() % 50);
    auto known = fuse.mkdir(FuseClient::kRoot, name, 0755);
    if (!known) known = fuse.lookup(FuseClient::kRoot, name);
    if (known) {
      if (const auto made = fuse.create(known->nodeid, "child", O_RDWR, 0644)) {
        (void)fuse.write(made->entry.nodeid, made->open.fh, 0, "child");
        (void)fuse.release(made->entry.nodeid, made->open.fh);
        fuse.forget(made->entry.nodeid);
      }
      if (const auto entries = fuse.list(known->nodeid, true)) {
        for (const Entry& entry : *entries) {
          if (entry.entry.nodeid != 0 && entry.name != "." && entry.name != "..")
            fuse.forget(entry.entry.nodeid);
        }
      }
      (void)fuse.rename(known->nodeid, "child", FuseClient::kRoot, name + "-moved");
      (void)fuse.unlink(FuseClient::kRoot, name + "-moved");
      (void)fuse.rmdir(FuseClient::kRoot, name);
      fuse.forget(known->nodeid);
    }
    ++requests;
  }
}

void change_share(const TempTree& tree, const TempTree& outside) {
  std::mt19937 random(5);
  while (!stop) {
    const std::string name = tree.path("t" + std::to_string(random() % 50));
    ::rename(name.c_str(), (name + "-host").c_str());
    (void)!::symlink(outside.root().c_str(), name.c_str());
    ::unlink(name.c_str());
    ::rename((name + "-host").c_str(), name.c_str());
    ::usleep(200);
  }
}

// Random descriptors, or a request cut somewhere; then the ring begins anew.
bool make_noise(FrontEnd& vmm, std::mt19937_64& random) {
  DriverRing& ring = vmm.ring(kHostileQueue);
  auto* const table = reinterpret_cast<unsigned char*>(ring.split_descriptors());
  const GuestRam::Region& region = vmm.ram().regions().back();
  const unsigned size = ring.options().size;
  // A ring with sense in it: descriptors inside a window that nobody else uses.
  for (unsigned i = 0; i < size; ++i) {
    vring_desc descriptor{.addr = region.guest + region.size - 65536 + random() % 65536,
                          .len = static_cast<std::uint32_t>(random() % 300),
                          .flags = static_cast<std::uint16_t>(random() % 8),
                          .next = static_cast<std::uint16_t>(random() % (size + 1))};
    if (random() % 8 == 0) descriptor.addr = random();
    if (random() % 16 == 0) descriptor.len = static_cast<std::uint32_t>(random());
    std::memcpy(table + i * sizeof descriptor, &descriptor, sizeof descriptor);
    ring.available_entry(i).store(static_cast<std::uint16_t>(random() % (size + 1)));
  }
  std::byte* const window = vmm.ram().at(region.guest + region.size - 65536, 65536);
  for (unsigned i = 0; i < 65536; i += 64) {
    // Headers of operations that don't end the session the others use.
    const fuse_in_header head{.len = 40U + static_cast<std::uint32_t>(random() % 60),
                              .opcode = 3U + static_cast<std::uint32_t>(random() % 20),
                              .unique = random(),
                              .nodeid = random() % 3,
                              .uid = 0,
                              .gid = 0,
                              .pid = 0,
                              .total_extlen = static_cast<std::uint16_t>(random() % 4),
                              .padding = 0};
    if (head.opcode < 13) std::memcpy(window + i, &head, sizeof head);
  }
  ring.available_index().store(
      static_cast<std::uint16_t>(ring.used_index().load() + random() % (size + 8)));
  ring.kick();
  const auto base = vmm.stop_queue(kHostileQueue);
  if (!base) {
    std::fprintf(stderr, "soak: %s\n", base.error().text().c_str());
    return false;
  }
  ring.reset();
  const auto started = vmm.start_queue(kHostileQueue);
  if (!started) std::fprintf(stderr, "soak: %s\n", started.error().text().c_str());
  return started.has_value();
}

int run(double seconds) {
  if (::geteuid() != 0) {
    std::fprintf(stderr, "soak: needs root\n");
    return 77;
  }
  TempTree tree;
  TempTree outside;
  outside.write("marker", "untouched");
  DaemonOptions options;
  options.shared_directory = tree.root();
  options.arguments = {"-o", "posix_lock", "-o", "xattr", "--log-level=off"};
  auto started = DaemonProcess::start(options);
  if (!started) {
    std::fprintf(stderr, "soak: %s\n", started.error().text().c_str());
    return 1;
  }
  DaemonProcess& daemon = **started;
  FrontEndOptions vmm_options;
  vmm_options.request_queues = kHostileQueue;
  vmm_options.ring = {.size = 64, .event_idx = true, .indirect = true};
  auto front_end = FrontEnd::adopt(daemon.take_connection(), vmm_options);
  if (!front_end || !(*front_end)->set_up()) {
    std::fprintf(stderr, "soak: no set-up\n");
    return 1;
  }
  FrontEnd& vmm = **front_end;
  // One urgent queue can't be shared by threads: FORGETs go where the other requests go.
  std::vector<std::unique_ptr<FuseQueue>> queues;
  std::vector<std::unique_ptr<FuseClient>> clients;
  for (unsigned queue = 1; queue <= kTreeQueue; ++queue) {
    queues.push_back(std::make_unique<FuseQueue>(
        vmm, queue,
        FuseQueueOptions{.slots = 8, .data_bytes = 65536, .patience = std::chrono::seconds(60)}));
    clients.push_back(std::make_unique<FuseClient>(*queues.back(), *queues.back()));
  }
  if (!clients[0]->init()) {
    std::fprintf(stderr, "soak: no session\n");
    return 1;
  }

  std::vector<std::thread> threads;
  for (unsigned queue = 1; queue <= kDataQueues; ++queue)
    threads.emplace_back([&, queue] { move_data(*clients[queue - 1], queue); });
  threads.emplace_back([&] { walk_tree(*clients[kTreeQueue - 1]); });
  threads.emplace_back([&] { change_share(tree, outside); });

  const auto begin = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  std::vector<Sample> samples;
  std::mt19937_64 random(7);
  const double step = std::max(0.5, seconds / 60);
  bool healthy = true;
  while (healthy && wrong == 0 && elapsed() < seconds) {
    const double next = std::min(seconds, elapsed() + step);
    while (healthy && elapsed() < next) {
      healthy = make_noise(vmm, random) && daemon.running();
      ++restarts;
    }
    const ProcessUsage usage = daemon.usage();
    samples.push_back({elapsed(), usage.resident_bytes, usage.descriptors, usage.threads});
    const Sample& now = samples.back();
    std::printf(
        "%7.1f s  %8.2f MiB  %5lu descriptors  %3u threads  %10lu requests  %8.1f GiB  %lu ring "
        "restarts\n",
        now.seconds, static_cast<double>(now.resident) / (1 << 20), now.descriptors, now.threads,
        requests.load(), static_cast<double>(bytes_moved) / (1 << 30), restarts.load());
    std::fflush(stdout);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();

  int result = 0;
  const auto fail = [&result](const std::string& why) {
    std::printf("FAILED: %s\n", why.c_str());
    result = 1;
  };
  if (!healthy) fail("the daemon or a queue stopped serving\n" + daemon.output());
  if (wrong != 0) fail(std::to_string(wrong) + " wrong answers");
  for (const auto& client : clients) {
    for (const std::string& violation : client->violations()) fail(violation);
  }
  if (!clients[0]->getattr(FuseClient::kRoot)) fail("no answer at the end");
  if (outside.read("marker") != "untouched") fail("something outside the share was changed");
  if (outside.list().size() != 1) fail("something outside the share was made");
  // Growth: the last quarter against the second one. The first is for caches and threads to fill.
  if (seconds >= 60 && samples.size() >= 8) {
    const std::size_t quarter = samples.size() / 4;
    const auto most = [&](std::size_t from, std::size_t to, auto member) {
      std::uint64_t value = 0;
      for (std::size_t i = from; i < to; ++i)
        value = std::max<std::uint64_t>(value, samples[i].*member);
      return value;
    };
    const auto compare = [&](const char* what, auto member, std::uint64_t slack) {
      const std::uint64_t early = most(quarter, 2 * quarter, member);
      const std::uint64_t late = most(samples.size() - quarter, samples.size(), member);
      std::printf("%s: %lu in the second quarter, %lu in the last\n", what, early, late);
      if (late > early + std::max(early / 10, slack)) fail(std::string(what) + " grow");
    };
    compare("resident bytes", &Sample::resident, 4ULL << 20);
    compare("descriptors", &Sample::descriptors, 40);
    compare("threads", &Sample::threads, 4);
  }
  std::printf("%s: %lu requests verified, %.1f GiB, %lu hostile rings\n",
              result == 0 ? "PASSED" : "FAILED", requests.load(),
              static_cast<double>(bytes_moved) / (1 << 30), restarts.load());
  return result;
}

}  // namespace
}  // namespace virtiofsd::guest

int main(int argc, char** argv) {
  double seconds = 60;
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], "--seconds") == 0) seconds = std::atof(argv[i + 1]);
    if (std::strcmp(argv[i], "--minutes") == 0) seconds = std::atof(argv[i + 1]) * 60;
  }
  return virtiofsd::guest::run(seconds);
}
