// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What the daemon's own code costs around the system calls: rings, dispatch,
// the tables. Google Benchmark's options apply; `perf stat -e instructions:u`
// on one of these is the steadiest number there is.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "fuse/dispatcher.h"
#include "passthrough/handle_table.h"
#include "passthrough/inode_store.h"
#include "testing/temp_tree.h"
#include "virtio/driver_for_test.h"

namespace virtiofsd {
namespace {

// ---- rings ----

// Header, arguments, reply header, reply, as Linux lays a small request out.
std::vector<virtio::TestBuffer> small_request() {
  constexpr std::uint64_t at = virtio::TestDriver::kBuffers;
  return {{.address = at, .size = 40},
          {.address = at + 64, .size = 16},
          {.address = at + 128, .size = 16, .writable = true},
          {.address = at + 192, .size = 104, .writable = true}};
}

void split_ring_pop_push(benchmark::State& state) {
  virtio::SplitDriver driver{128};
  driver.set_driver_flags(1);  // no calls
  driver.submit(0, small_request());
  CHECK(driver.pop() == "chain");
  driver.queue.push(driver.chain, 120);
  for (auto _ : state) {
    driver.make_available(0);
    const auto got = driver.queue.pop(driver.scratch, driver.chain);
    benchmark::DoNotOptimize(got);
    driver.queue.push(driver.chain, 120);
  }
}
BENCHMARK(split_ring_pop_push);

void split_ring_indirect_pop_push(benchmark::State& state) {
  virtio::SplitDriver driver{128, virtio::kIndirectDescriptors};
  driver.set_driver_flags(1);
  constexpr std::uint64_t table = virtio::TestDriver::kBuffers + 0x1000;
  const auto buffers = small_request();
  for (std::uint16_t i = 0; i < buffers.size(); ++i)
    driver.entry(table, i, buffers[i], i + 1U < buffers.size() ? virtio::kNextFlag : 0,
                 static_cast<std::uint16_t>(i + 1));
  driver.descriptor(0, {.address = table, .size = static_cast<std::uint32_t>(16 * buffers.size())},
                    virtio::kIndirectFlag);
  for (auto _ : state) {
    driver.make_available(0);
    const auto got = driver.queue.pop(driver.scratch, driver.chain);
    benchmark::DoNotOptimize(got);
    driver.queue.push(driver.chain, 120);
  }
}
BENCHMARK(split_ring_indirect_pop_push);

void packed_ring_pop_push(benchmark::State& state) {
  virtio::PackedDriver driver{128};
  driver.set_driver_event(0, 1);  // no calls
  const auto buffers = small_request();
  for (auto _ : state) {
    driver.submit(0, buffers);  // a packed ring's slots must be written each time
    const auto got = driver.queue.pop(driver.scratch, driver.chain);
    benchmark::DoNotOptimize(got);
    driver.queue.push(driver.chain, 120);
  }
}
BENCHMARK(packed_ring_pop_push);

// ---- dispatch ----

class DoNothing final : public fuse::FileSystem {
 public:
  Result<fuse_entry_out> lookup(fuse::Call&, Name) override { return fuse_entry_out{}; }
  Result<fuse_attr_out> getattr(fuse::Call&, std::optional<HandleId>) override {
    return fuse_attr_out{};
  }
  Result<> read(fuse::Call&, const fuse::ReadArgs& args, fuse::Body& body) override {
    body.commit(args.size);
    return {};
  }
};

class Requests {
 public:
  Requests() : dispatcher_(file_system_, {}) {
    fuse_init_in init{};
    init.major = 7;
    init.minor = 38;
    init.max_readahead = 1U << 17;
    init.flags = FUSE_INIT_EXT;
    ask(FUSE_INIT, 0, &init, sizeof(init));
    CHECK(serve() == sizeof(fuse_out_header) + sizeof(fuse_init_out));
  }
  void ask(std::uint32_t opcode, std::uint64_t node, const void* body, std::size_t size) {
    const fuse_in_header header{.len = static_cast<std::uint32_t>(sizeof(header) + size),
                                .opcode = opcode,
                                .unique = 2,
                                .nodeid = node,
                                .uid = 0,
                                .gid = 0,
                                .pid = 1,
                                .total_extlen = 0,
                                .padding = 0};
    std::memcpy(in_.data(), &header, sizeof(header));
    std::memcpy(in_.data() + sizeof(header), body, size);
    size_ = size;
  }
  std::uint32_t serve() {
    // Taking edits the pieces.
    std::array<iovec, 2> in{{{.iov_base = in_.data(), .iov_len = sizeof(fuse_in_header)},
                             {.iov_base = in_.data() + sizeof(fuse_in_header), .iov_len = size_}}};
    std::array<iovec, 2> out{
        {{.iov_base = out_.data(), .iov_len = sizeof(fuse_out_header)},
         {.iov_base = out_.data() + sizeof(fuse_out_header), .iov_len = 4096}}};
    return dispatcher_.serve(SharedBytes{in, sizeof(fuse_in_header) + size_},
                             SharedBytes{out, sizeof(fuse_out_header) + 4096}, {}, scheduler_,
                             scratch_);
  }

 private:
  DoNothing file_system_;
  fuse::Dispatcher dispatcher_;
  fuse::NullScheduler scheduler_;
  fuse::Scratch scratch_;
  std::array<std::byte, 256> in_{};
  std::size_t size_ = 0;
  std::array<std::byte, 8192> out_{};
};

void dispatch_getattr(benchmark::State& state) {
  Requests requests;
  const fuse_getattr_in in{};
  requests.ask(FUSE_GETATTR, 1, &in, sizeof(in));
  for (auto _ : state) benchmark::DoNotOptimize(requests.serve());
}
BENCHMARK(dispatch_getattr);

void dispatch_lookup(benchmark::State& state) {
  Requests requests;
  requests.ask(FUSE_LOOKUP, 1, "a-file-name", 12);
  for (auto _ : state) benchmark::DoNotOptimize(requests.serve());
}
BENCHMARK(dispatch_lookup);

void dispatch_read(benchmark::State& state) {
  Requests requests;
  fuse_read_in in{};
  in.size = 4096;
  requests.ask(FUSE_READ, 1, &in, sizeof(in));
  for (auto _ : state) benchmark::DoNotOptimize(requests.serve());
}
BENCHMARK(dispatch_read);

// ---- tables ----

class Store {
 public:
  static constexpr std::uint64_t kFiles = 1000;

  Store() : tree_("/dev/shm") {
    for (std::uint64_t i = 0; i < kFiles; ++i) tree_.write(name_of(i), "");
    // Older than the store's doubts about young files.
    for (int i = 0; i < 3; ++i) usleep(100'000);
    store_ =
        std::move(InodeStore::create(UniqueFd{::open(tree_.root().c_str(), O_PATH | O_CLOEXEC)},
                                     {.max_inodes = 1U << 16, .arena = nullptr}))
            .value();
  }
  InodeStore& operator*() { return *store_; }
  InodeStore* operator->() { return store_.get(); }
  NodeId look_up(std::uint64_t number) {
    const auto root = store_->pin(store_->root());
    struct statx out;
    const auto found =
        store_->lookup(*root, std::move(Name::parse(name_of(number))).value(), 0, &out);
    CHECK(found.has_value());
    return found->id();
  }
  static std::string name_of(std::uint64_t number) { return "file-" + std::to_string(number); }

 private:
  guest::TempTree tree_;
  std::unique_ptr<InodeStore> store_;
};

void inode_pin(benchmark::State& state) {
  Store store;
  std::vector<NodeId> nodes;
  for (std::uint64_t i = 0; i < Store::kFiles; ++i) nodes.push_back(store.look_up(i));
  std::size_t turn = 0;
  for (auto _ : state) {
    auto inode = store->pin(nodes[turn++ * 617 % nodes.size()]);
    benchmark::DoNotOptimize(inode);
  }
}
BENCHMARK(inode_pin);

// With the one statx that it makes; inode_statx_alone is that part of it.
void inode_lookup_known(benchmark::State& state) {
  Store store;
  std::vector<std::string> names;
  for (std::uint64_t i = 0; i < Store::kFiles; ++i) {
    store.look_up(i);
    names.push_back(Store::name_of(i));
  }
  const auto root = store->pin(store->root());
  std::size_t turn = 0;
  for (auto _ : state) {
    struct statx out;
    const Name name = std::move(Name::parse(names[turn++ * 617 % names.size()])).value();
    auto found = store->lookup(*root, name, 0, &out);
    benchmark::DoNotOptimize(found);
  }
}
BENCHMARK(inode_lookup_known);

void inode_lookup_new_forget(benchmark::State& state) {
  Store store;
  std::vector<std::string> names;
  for (std::uint64_t i = 0; i < Store::kFiles; ++i) names.push_back(Store::name_of(i));
  const auto root = store->pin(store->root());
  std::size_t turn = 0;
  for (auto _ : state) {
    struct statx out;
    const Name name = std::move(Name::parse(names[turn++ * 617 % names.size()])).value();
    NodeId id;
    {
      auto found = store->lookup(*root, name, 0, &out);
      id = found->id();
    }
    store->forget(id, 1);
  }
}
BENCHMARK(inode_lookup_new_forget);

void inode_statx_alone(benchmark::State& state) {
  const guest::TempTree tree("/dev/shm");
  tree.write("file", "");
  const UniqueFd root{::open(tree.root().c_str(), O_PATH | O_CLOEXEC)};
  for (auto _ : state) {
    struct statx out;
    benchmark::DoNotOptimize(::statx(root.number(), "file", AT_SYMLINK_NOFOLLOW,
                                     STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, &out));
  }
}
BENCHMARK(inode_statx_alone);

void handle_find(benchmark::State& state) {
  Store store;
  HandleTable handles(*store, 1U << 16);
  std::vector<std::pair<HandleId, NodeId>> open;
  for (std::uint64_t i = 0; i < 500; ++i) {
    const NodeId node = store.look_up(i);
    auto id = handles.insert(HandleKind::kFile, std::move(store->pin(node)).value(),
                             UniqueFd{::open("/dev/null", O_RDONLY | O_CLOEXEC)}, O_RDONLY);
    CHECK(id.has_value());
    open.emplace_back(*id, node);
  }
  std::size_t turn = 0;
  for (auto _ : state) {
    const auto& [id, node] = open[turn++ * 617 % open.size()];
    auto handle = handles.find(id, HandleKind::kFile, node);
    benchmark::DoNotOptimize(handle);
  }
  handles.clear();
}
BENCHMARK(handle_find);

}  // namespace
}  // namespace virtiofsd
