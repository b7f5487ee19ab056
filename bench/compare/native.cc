// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/native.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/pause_cpu.h"
#include "sys/fd.h"

namespace virtiofsd::bench {
namespace {

constexpr unsigned kMask = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID;

void must(bool done, const char* what) {
  if (done) [[likely]]
    return;
  std::fprintf(stderr, "compare: %s in this process: %s\n", what, std::strerror(errno));
  std::exit(1);
}

// Shared by the closure's copies.
struct Directory {
  explicit Directory(const std::string& path)
      : fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    must(static_cast<bool>(fd), path.c_str());
  }
  UniqueFd fd;
  std::uint64_t next = 0;
};

std::shared_ptr<Directory> directory(const std::string& path) {
  return std::make_shared<Directory>(path);
}

void stat_at(FdRef directory, const char* name) {
  struct statx out;
  must(statx(directory.number(), name, AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC_AS_STAT, kMask, &out) ==
           0,
       "statx");
}

// Visits every entry but the dots.
template <typename Visit>
void list(FdRef directory, Visit&& visit) {
  alignas(8) std::array<char, 32768> buffer;
  for (;;) {
    const long got = syscall(SYS_getdents64, directory.number(), buffer.data(), buffer.size());
    must(got >= 0, "getdents64");
    if (got == 0) return;
    for (long at = 0; at < got;) {
      std::uint16_t length = 0;
      std::memcpy(&length, buffer.data() + at + 16, sizeof(length));
      const auto type = static_cast<unsigned char>(buffer[static_cast<std::size_t>(at) + 18]);
      const char* name = buffer.data() + at + 19;
      if (name[0] != '.') visit(name, type);
      at += length;
    }
  }
}

void walk(int parent, const char* name) {
  const UniqueFd fd{openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  must(static_cast<bool>(fd), name);
  list(fd, [&](const char* entry, unsigned char type) {
    stat_at(fd, entry);
    if (type == DT_DIR) walk(fd.number(), entry);
  });
}

Native listing(const std::string& path, bool plus) {
  return [path, plus] {
    const UniqueFd fd{open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    list(fd, [&](const char* name, unsigned char) {
      if (plus) stat_at(fd, name);
    });
  };
}

// Pages of shared memory, as a guest's are, in pieces of one page.
class Buffers {
 public:
  static constexpr std::size_t kCount = 16;
  explicit Buffers(std::size_t size) : total_(kCount * size) {
    const UniqueFd fd{memfd_create("native", MFD_CLOEXEC)};
    must(ftruncate(fd.number(), static_cast<off_t>(total_)) == 0, "ftruncate");
    base_ = mmap(nullptr, total_, PROT_READ | PROT_WRITE, MAP_SHARED, fd.number(), 0);
    must(base_ != MAP_FAILED, "mmap");
    std::memset(base_, 1, total_);
    for (std::size_t at = 0; at < total_; at += 4096)
      pieces_.push_back({.iov_base = static_cast<char*>(base_) + at, .iov_len = 4096});
    each_ = static_cast<int>(size / 4096);
  }
  ~Buffers() { munmap(base_, total_); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  const iovec* next() {
    turn_ = (turn_ + 1) % kCount;
    return &pieces_[turn_ * static_cast<std::size_t>(each_)];
  }
  int pieces() const { return each_; }

 private:
  const std::size_t total_;
  void* base_ = nullptr;
  std::vector<iovec> pieces_;
  int each_ = 0;
  std::size_t turn_ = 0;
};

struct File {
  File(const std::string& path, std::size_t block, int more_flags = 0)
      : fd(open(path.c_str(), O_RDWR | O_CLOEXEC | more_flags)), buffers(block) {
    must(static_cast<bool>(fd), path.c_str());
  }
  UniqueFd fd;
  Buffers buffers;
  std::uint64_t next = 0;
};

Native data(const std::string& path, std::uint64_t file_bytes, std::size_t block, bool writes,
            bool random, int more_flags = 0) {
  auto file = std::make_shared<File>(path, block, more_flags);
  const std::uint64_t blocks = file_bytes / block;
  return [file, blocks, block, writes, random] {
    // A full-period step stands in for chance.
    file->next = random ? (file->next * 1'103'515'245 + 12345) : file->next + 1;
    const auto at = static_cast<off_t>((random ? file->next >> 16 : file->next) % blocks * block);
    const iovec* const pieces = file->buffers.next();
    const ssize_t got = writes ? pwritev(file->fd.number(), pieces, file->buffers.pieces(), at)
                               : preadv(file->fd.number(), pieces, file->buffers.pieces(), at);
    must(got > 0, writes ? "pwritev" : "preadv");
  };
}

}  // namespace

Native native_lookup(Share& share) {
  auto at = directory(share.path(share.hot()));
  return [at, count = share.sizes().hot] {
    stat_at(at->fd, FileName(at->next++ * 617 % count).c_str());
  };
}

Native native_lookup_cold(Share& share) {
  auto at = directory(share.path(share.cold()));
  return
      [at, count = share.sizes().cold] { stat_at(at->fd, FileName(at->next++ % count).c_str()); };
}

Native native_lookup_missing(Share& share) {
  auto at = directory(share.path(share.hot()));
  return [at] {
    struct statx out;
    must(statx(at->fd.number(), FileName(at->next++ % 1000, 'x').c_str(), AT_SYMLINK_NOFOLLOW,
               kMask, &out) != 0,
         "statx of nothing");
  };
}

Native native_getattr(Share& share) {
  auto at = directory(share.path(share.hot()));
  // Few enough for any limit on descriptors.
  auto files = std::make_shared<std::vector<UniqueFd>>();
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(share.sizes().hot, 500); ++i)
    files->emplace_back(openat(at->fd.number(), FileName(i).c_str(), O_PATH | O_CLOEXEC));
  return [at, files] {
    struct statx out;
    const UniqueFd& fd = (*files)[at->next++ * 617 % files->size()];
    must(statx(fd.number(), "", AT_EMPTY_PATH, kMask, &out) == 0, "statx");
  };
}

Native native_open(Share& share) {
  auto at = directory(share.path(share.hot()));
  return [at, count = share.sizes().hot] {
    const UniqueFd fd{openat(at->fd.number(), FileName(at->next++ * 617 % count).c_str(),
                             O_RDONLY | O_NOFOLLOW | O_CLOEXEC)};
    must(static_cast<bool>(fd), "open");
  };
}

Native native_open_cold(Share& share) {
  auto at = directory(share.path(share.cold()));
  return [at, count = share.sizes().cold] {
    const FileName name(at->next++ % count);
    stat_at(at->fd, name.c_str());
    const UniqueFd fd{openat(at->fd.number(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC)};
    must(static_cast<bool>(fd), "open");
  };
}

Native native_create(Share& share) {
  auto at = directory(share.path(share.fresh()));
  return [at] {
    const FileName name(0, 'n');
    {
      const UniqueFd fd{
          openat(at->fd.number(), name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644)};
      must(static_cast<bool>(fd), "create");
      struct statx out;
      must(statx(fd.number(), "", AT_EMPTY_PATH, kMask, &out) == 0, "statx");
    }
    must(unlinkat(at->fd.number(), name.c_str(), 0) == 0, "unlink");
  };
}

Native native_mkdir(Share& share) {
  auto at = directory(share.path(share.fresh()));
  return [at] {
    const FileName name(1, 'n');
    must(mkdirat(at->fd.number(), name.c_str(), 0755) == 0, "mkdir");
    stat_at(at->fd, name.c_str());
    must(unlinkat(at->fd.number(), name.c_str(), AT_REMOVEDIR) == 0, "rmdir");
  };
}

Native native_rename(Share& share) {
  auto at = directory(share.path(share.renamed()));
  const UniqueFd made{openat(at->fd.number(), "native-0", O_WRONLY | O_CREAT | O_CLOEXEC, 0644)};
  return [at] {
    const bool back = at->next++ % 2 == 1;
    must(renameat(at->fd.number(), back ? "native-1" : "native-0", at->fd.number(),
                  back ? "native-0" : "native-1") == 0,
         "rename");
  };
}

Native native_readdir(Share& share) {
  return listing(share.path(share.hot()), false);
}
Native native_readdirplus(Share& share) {
  return listing(share.path(share.hot()), true);
}
Native native_readdirplus_many(Share& share) {
  return listing(share.path(share.many()), true);
}
Native native_walk(Share& share) {
  return [path = share.path(share.tree())] { walk(AT_FDCWD, path.c_str()); };
}

Native native_read_4k(Share& share) {
  return data(share.path(share.random_file()), share.sizes().random_bytes, 4096, false, true);
}
Native native_read_direct(Share& share) {
  return data(share.path(share.random_file()), share.sizes().random_bytes, 4096, false, true,
              O_DIRECT);
}
Native native_write_4k(Share& share) {
  return data(share.path(share.random_file()), share.sizes().random_bytes, 4096, true, true);
}
Native native_read_128k(Share& share) {
  return data(share.path(share.stream_file()), share.sizes().stream_bytes, 128U << 10, false,
              false);
}
Native native_write_128k(Share& share) {
  return data(share.path(share.stream_file()), share.sizes().stream_bytes, 128U << 10, true, false);
}
Native native_read_1m(Share& share) {
  return data(share.path(share.stream_file()), share.sizes().stream_bytes, 1U << 20, false, false);
}
Native native_write_1m(Share& share) {
  return data(share.path(share.stream_file()), share.sizes().stream_bytes, 1U << 20, true, false);
}

Native native_fsync(Share& share) {
  auto file = std::make_shared<File>(share.path(share.synced()) + "/" + FileName(0).c_str(), 4096);
  return [file] {
    must(pwritev(file->fd.number(), file->buffers.next(), 1, 0) > 0, "pwritev");
    must(fsync(file->fd.number()) == 0, "fsync");
  };
}

Native native_mix(Share& share) {
  auto parts = std::make_shared<std::vector<Native>>();
  parts->push_back(native_getattr(share));
  parts->push_back(native_lookup(share));
  parts->push_back(native_open(share));
  parts->push_back(native_read_4k(share));
  parts->push_back(native_write_4k(share));
  parts->push_back([at = directory(share.root())] {
    struct statvfs out;
    must(fstatvfs(at->fd.number(), &out) == 0, "fstatvfs");
  });
  auto turn = std::make_shared<std::uint64_t>(0);
  return [parts, turn] { (*parts)[(*turn)++ % parts->size()](); };
}

// ---- timing ----

Timed time_native(const Native& native, std::uint64_t nanoseconds) {
  Timed timed;
  for (int i = 0; i < 3; ++i) native();
  const std::uint64_t cpu = thread_cpu_ns();
  const std::uint64_t begun = now_ns();
  std::uint64_t before = begun;
  while (before < begun + nanoseconds) {
    native();
    const std::uint64_t after = now_ns();
    timed.latencies.record(after - before);
    before = after;
  }
  timed.seconds = static_cast<double>(before - begun) / 1e9;
  timed.cpu_seconds = static_cast<double>(thread_cpu_ns() - cpu) / 1e9;
  return timed;
}

namespace {

void tell(const UniqueFd& fd, std::uint64_t what) {
  must(write(fd.number(), &what, sizeof(what)) == sizeof(what), "write to an eventfd");
}

std::uint64_t hear(const UniqueFd& fd) {
  std::uint64_t what = 0;
  must(read(fd.number(), &what, sizeof(what)) == sizeof(what), "read from an eventfd");
  return what;
}

// `ask` does one round trip. The histogram gets each operation's time.
template <typename Ask>
Timed time_asking(Turns turns, std::uint64_t nanoseconds, Ask&& ask) {
  Timed timed;
  const std::uint64_t begun = now_ns();
  std::uint64_t before = begun;
  for (unsigned turn = 0; before < begun + nanoseconds; turn = (turn + 1) % turns.count) {
    ask(turns.does_work(turn));
    if (!turns.ends_one(turn)) continue;
    const std::uint64_t after = now_ns();
    timed.latencies.record(after - before);
    before = after;
  }
  timed.seconds = static_cast<double>(before - begun) / 1e9;
  return timed;
}

constexpr std::uint64_t kWork = 1, kNothing = 2, kEnd = 3;

}  // namespace

Timed time_eventfd(const Native& native, Turns turns, Place place, std::uint64_t nanoseconds) {
  const UniqueFd kick{eventfd(0, EFD_CLOEXEC)};
  const UniqueFd call{eventfd(0, EFD_CLOEXEC)};
  clockid_t clock{};
  std::thread other([&] {
    move_thread(0, place, true);
    for (;;) {
      const std::uint64_t what = hear(kick);
      if (what == kEnd) return;
      if (what == kWork) native();
      tell(call, 1);
    }
  });
  must(pthread_getcpuclockid(other.native_handle(), &clock) == 0, "pthread_getcpuclockid");
  move_thread(0, place, false);
  const auto ask = [&](bool works) {
    tell(kick, works ? kWork : kNothing);
    hear(call);
  };
  for (int i = 0; i < 16; ++i) ask(true);
  const std::uint64_t cpu = read_clock(clock);
  Timed timed = time_asking(turns, nanoseconds, ask);
  timed.cpu_seconds = static_cast<double>(read_clock(clock) - cpu) / 1e9;
  tell(kick, kEnd);
  other.join();
  move_thread(0, Place::kAny, false);
  return timed;
}

Timed time_spinning(const Native& native, Turns turns, std::uint64_t nanoseconds) {
  struct alignas(64) Word {
    std::atomic<std::uint64_t> value{0};
  };
  Word kick, call;
  std::thread other([&] {
    move_thread(0, Place::kApart, true);
    for (std::uint64_t turn = 1;; ++turn) {
      std::uint64_t what = 0;
      while ((what = kick.value.load(std::memory_order_acquire)) >> 2 != turn) pause_cpu();
      if ((what & 3) == kEnd) return;
      if ((what & 3) == kWork) native();
      call.value.store(turn, std::memory_order_release);
    }
  });
  move_thread(0, Place::kApart, false);
  std::uint64_t turn = 0;
  const auto ask = [&](bool works) {
    ++turn;
    kick.value.store(turn << 2 | (works ? kWork : kNothing), std::memory_order_release);
    while (call.value.load(std::memory_order_acquire) != turn) pause_cpu();
  };
  for (int i = 0; i < 16; ++i) ask(true);
  const Timed timed = time_asking(turns, nanoseconds, ask);
  kick.value.store(++turn << 2 | kEnd, std::memory_order_release);
  other.join();
  move_thread(0, Place::kAny, false);
  return timed;
}

namespace {

enum class Telling : std::uint8_t { kEach, kAll };

// Requests are answered in the order they are handed out, so number i is of slot i % depth.
Timed time_hand_outs(const Native& native, Turns turns, unsigned depth, Telling telling,
                     std::uint64_t nanoseconds) {
  const auto turn_of = [&](std::uint64_t i) {
    return static_cast<unsigned>(i / depth % turns.count);
  };
  struct alignas(64) Word {
    std::atomic<std::uint64_t> value{0};
  };
  Word handed_out, done, sleeping;
  std::atomic<bool> over = false;
  const UniqueFd call{eventfd(0, EFD_CLOEXEC)};
  std::thread other([&] {
    for (std::uint64_t i = 0;;) {
      const std::uint64_t until = handed_out.value.load(std::memory_order_acquire);
      if (i == until) {
        if (over.load(std::memory_order_relaxed)) return;
        pause_cpu();
        continue;
      }
      if (turns.does_work(turn_of(i))) native();
      done.value.store(++i, std::memory_order_seq_cst);
      if ((telling == Telling::kEach || i == until) &&
          sleeping.value.load(std::memory_order_seq_cst) != 0 &&
          sleeping.value.exchange(0, std::memory_order_seq_cst) != 0) {
        tell(call, 1);
      }
    }
  });

  Timed timed;
  std::vector<std::uint64_t> begun(depth, now_ns());
  const std::uint64_t start = begun[0];
  std::uint64_t now = start;
  std::uint64_t seen = 0;
  handed_out.value.store(depth, std::memory_order_release);
  while (now < start + nanoseconds) {
    const std::uint64_t until = done.value.load(std::memory_order_acquire);
    if (seen == until) {
      sleeping.value.store(1, std::memory_order_seq_cst);
      const bool nothing = done.value.load(std::memory_order_seq_cst) == seen;
      if (nothing || sleeping.value.exchange(0, std::memory_order_seq_cst) == 0) hear(call);
      continue;
    }
    now = now_ns();
    for (; seen != until; ++seen) {
      if (!turns.ends_one(turn_of(seen))) continue;
      timed.latencies.record(now - begun[seen % depth]);
      begun[seen % depth] = now;
    }
    handed_out.value.store(seen + depth, std::memory_order_release);
  }
  over.store(true, std::memory_order_relaxed);
  other.join();
  timed.seconds = static_cast<double>(now - start) / 1e9;
  return timed;
}

}  // namespace

Timed time_in_flight(const Native& native, Turns turns, unsigned depth, std::uint64_t nanoseconds) {
  const auto rate = [](const Timed& timed) {
    return static_cast<double>(timed.latencies.total()) / timed.seconds;
  };
  Timed each = time_hand_outs(native, turns, depth, Telling::kEach, nanoseconds);
  Timed all = time_hand_outs(native, turns, depth, Telling::kAll, nanoseconds);
  return rate(each) > rate(all) ? each : all;
}

}  // namespace virtiofsd::bench
