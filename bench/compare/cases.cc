// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/cases.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <random>
#include <utility>

#include "bench/compare/native.h"

namespace virtiofsd::bench {
namespace {

constexpr std::uint32_t kEntry = sizeof(fuse_entry_out);
constexpr std::uint32_t kSmallIo = 4096;
constexpr std::uint32_t kDirectoryFlags = O_RDONLY | O_DIRECTORY;

// Numbers below `limit`, cheap and the same in every run.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : state_(seed * 0x9e37'79b9'7f4a'7c15ULL + 1) {}
  std::uint64_t below(std::uint64_t limit) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return ((state_ >> 32) * limit) >> 32;  // limits are small
  }

 private:
  std::uint64_t state_;
};

Request lookup(Engine& engine, unsigned worker, std::uint64_t directory, const FileName& name) {
  engine.put_bytes(worker, name.c_str(), FileName::kBytesWithNul);
  return {.opcode = FUSE_LOOKUP,
          .node = directory,
          .arguments = FileName::kBytesWithNul,
          .reply = kEntry};
}

Request getattr(Engine& engine, unsigned worker, std::uint64_t node) {
  engine.put(worker, fuse_getattr_in{});
  return {.opcode = FUSE_GETATTR,
          .node = node,
          .arguments = sizeof(fuse_getattr_in),
          .reply = sizeof(fuse_attr_out)};
}

Request open(Engine& engine, unsigned worker, std::uint64_t node, std::uint32_t flags) {
  engine.put(worker, fuse_open_in{.flags = flags, .open_flags = 0});
  return {
      .opcode = (flags & O_DIRECTORY) != 0 ? std::uint32_t{FUSE_OPENDIR} : std::uint32_t{FUSE_OPEN},
      .node = node,
      .arguments = sizeof(fuse_open_in),
      .reply = sizeof(fuse_open_out)};
}

Request release(Engine& engine, unsigned worker, std::uint64_t node, std::uint64_t handle,
                std::uint32_t flags) {
  engine.put(worker,
             fuse_release_in{.fh = handle, .flags = flags, .release_flags = 0, .lock_owner = 0});
  return {.opcode = (flags & O_DIRECTORY) != 0 ? std::uint32_t{FUSE_RELEASEDIR}
                                               : std::uint32_t{FUSE_RELEASE},
          .node = node,
          .arguments = sizeof(fuse_release_in)};
}

Request read(Engine& engine, unsigned worker, std::uint64_t node, std::uint64_t handle,
             std::uint64_t offset, std::uint32_t size, std::uint32_t opcode = FUSE_READ) {
  engine.put(worker, fuse_read_in{.fh = handle,
                                  .offset = offset,
                                  .size = size,
                                  .read_flags = 0,
                                  .lock_owner = 0,
                                  .flags = O_RDONLY,
                                  .padding = 0});
  return {.opcode = opcode, .node = node, .arguments = sizeof(fuse_read_in), .data_out = size};
}

Request write(Engine& engine, unsigned worker, std::uint64_t node, std::uint64_t handle,
              std::uint64_t offset, std::uint32_t size) {
  engine.put(worker, fuse_write_in{.fh = handle,
                                   .offset = offset,
                                   .size = size,
                                   .write_flags = 0,
                                   .lock_owner = 0,
                                   .flags = O_RDWR,
                                   .padding = 0});
  return {.opcode = FUSE_WRITE,
          .node = node,
          .arguments = sizeof(fuse_write_in),
          .data_in = size,
          .reply = sizeof(fuse_write_out)};
}

Request named(Engine& engine, unsigned worker, std::uint32_t opcode, std::uint64_t directory,
              const FileName& name) {
  engine.put_bytes(worker, name.c_str(), FileName::kBytesWithNul);
  return {.opcode = opcode, .node = directory, .arguments = FileName::kBytesWithNul};
}

// Nodes of all `count` files of a directory, each looked up once and kept.
Result<std::vector<std::uint64_t>, Failure> look_up_all(Session& session, std::uint64_t directory,
                                                        std::uint64_t count) {
  std::vector<std::uint64_t> nodes;
  for (std::uint64_t i = 0; i < count; ++i) {
    auto found = session.client().lookup(directory, FileName(i).view());
    if (!found) return Failure("looking up a file", found.error());
    nodes.push_back(found->nodeid);
  }
  return nodes;
}

// ---- names and attributes ----

class LookupHot : public Case {
 public:
  LookupHot(Share& share, const CaseSettings&)
      : directory_name_(share.hot()), count_(share.sizes().hot) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned) override {
    directory_ = TRY(session.node(directory_name_));
    TRY(look_up_all(session, directory_, count_));
    dice_ = Dice{first + 1};
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    engine.send(worker, lookup(engine, worker, directory_, FileName(dice_.below(count_))));
  }
  void step(Engine& engine, unsigned worker, const Done&) override { engine.finish(worker); }

 private:
  const std::string directory_name_;
  const std::uint64_t count_;
  std::uint64_t directory_ = 0;
  Dice dice_{1};
};

// Names that are not known: each worker has its own and comes back to one after all the others.
class ColdNames {
 public:
  explicit ColdNames(const Share& share) : step_(share.sizes().cold / Share::kMostWorkers) {}
  void prepare(unsigned first, unsigned count) {
    first_ = first;
    next_.assign(count, 0);
  }
  FileName next(unsigned worker) {
    return FileName((first_ + worker) * step_ + next_[worker]++ % step_);
  }

 private:
  std::uint64_t step_;
  unsigned first_ = 0;
  std::vector<std::uint64_t> next_;
};

class LookupCold : public Case {
 public:
  LookupCold(Share& share, const CaseSettings&) : directory_name_(share.cold()), names_(share) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    directory_ = TRY(session.node(directory_name_));
    names_.prepare(first, count);
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    engine.send(worker, lookup(engine, worker, directory_, names_.next(worker)));
  }
  void step(Engine& engine, unsigned worker, const Done&) override {
    engine.forget(engine.reply<fuse_entry_out>(worker).nodeid);
    engine.finish(worker);
  }

 private:
  const std::string directory_name_;
  std::uint64_t directory_ = 0;
  ColdNames names_;
};

class LookupMissing : public Case {
 public:
  LookupMissing(Share& share, const CaseSettings&) : directory_name_(share.hot()) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned) override {
    directory_ = TRY(session.node(directory_name_));
    dice_ = Dice{first + 1};
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    engine.send(worker, lookup(engine, worker, directory_, FileName(dice_.below(1000), 'x')));
  }
  void step(Engine& engine, unsigned worker, const Done&) override { engine.finish(worker); }
  // Or a success with node 0, which the guest may remember.
  bool expects(int error) const override { return error == ENOENT; }

 private:
  const std::string directory_name_;
  std::uint64_t directory_ = 0;
  Dice dice_{1};
};

class Getattr : public Case {
 public:
  Getattr(Share& share, const CaseSettings&)
      : directory_name_(share.hot()), count_(share.sizes().hot) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned) override {
    const std::uint64_t directory = TRY(session.node(directory_name_));
    nodes_ = TRY(look_up_all(session, directory, count_));
    dice_ = Dice{first + 1};
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    engine.send(worker, getattr(engine, worker, nodes_[dice_.below(nodes_.size())]));
  }
  void step(Engine& engine, unsigned worker, const Done&) override { engine.finish(worker); }

 private:
  const std::string directory_name_;
  const std::uint64_t count_;
  std::vector<std::uint64_t> nodes_;
  Dice dice_{1};
};

// ---- making and removing ----

struct Stage {
  unsigned at = 0;
  std::uint64_t node = 0, handle = 0;
};

class OpenRelease : public Case {
 public:
  OpenRelease(Share& share, const CaseSettings&)
      : directory_name_(share.hot()), count_(share.sizes().hot) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    const std::uint64_t directory = TRY(session.node(directory_name_));
    nodes_ = TRY(look_up_all(session, directory, count_));
    dice_ = Dice{first + 1};
    stages_.resize(count);
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    stages_[worker] = {.at = 0, .node = nodes_[dice_.below(nodes_.size())]};
    engine.send(worker, open(engine, worker, stages_[worker].node, O_RDONLY));
  }
  void step(Engine& engine, unsigned worker, const Done&) override {
    Stage& stage = stages_[worker];
    if (stage.at++ == 1) return engine.finish(worker);
    stage.handle = engine.reply<fuse_open_out>(worker).fh;
    engine.send(worker, release(engine, worker, stage.node, stage.handle, O_RDONLY));
  }

 private:
  const std::string directory_name_;
  const std::uint64_t count_;
  std::vector<std::uint64_t> nodes_;
  std::vector<Stage> stages_;
  Dice dice_{1};
};

// A file that is read once, as by grep over a tree.
class OpenCold : public Case {
 public:
  OpenCold(Share& share, const CaseSettings&) : directory_name_(share.cold()), names_(share) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    directory_ = TRY(session.node(directory_name_));
    names_.prepare(first, count);
    stages_.resize(count);
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    stages_[worker] = {};
    engine.send(worker, lookup(engine, worker, directory_, names_.next(worker)));
  }
  void step(Engine& engine, unsigned worker, const Done&) override {
    Stage& stage = stages_[worker];
    switch (stage.at++) {
      case 0:
        stage.node = engine.reply<fuse_entry_out>(worker).nodeid;
        engine.send(worker, open(engine, worker, stage.node, O_RDONLY));
        return;
      case 1:
        stage.handle = engine.reply<fuse_open_out>(worker).fh;
        engine.send(worker, release(engine, worker, stage.node, stage.handle, O_RDONLY));
        return;
      default:
        engine.forget(stage.node);
        engine.finish(worker);
    }
  }

 private:
  const std::string directory_name_;
  std::uint64_t directory_ = 0;
  ColdNames names_;
  std::vector<Stage> stages_;
};

class CreateUnlink : public Case {
 public:
  CreateUnlink(Share& share, const CaseSettings&) : directory_name_(share.fresh()) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    directory_ = TRY(session.node(directory_name_));
    first_ = first;
    stages_.resize(count);
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    stages_[worker] = {};
    const FileName name(first_ + worker, 'c');
    engine.put(worker, fuse_create_in{.flags = O_RDWR | O_CREAT | O_EXCL,
                                      .mode = S_IFREG | 0644,
                                      .umask = 022,
                                      .open_flags = 0});
    engine.put_bytes(worker, name.c_str(), FileName::kBytesWithNul, sizeof(fuse_create_in));
    engine.send(worker, {.opcode = FUSE_CREATE,
                         .node = directory_,
                         .arguments = sizeof(fuse_create_in) + FileName::kBytesWithNul,
                         .reply = kEntry + sizeof(fuse_open_out)});
  }
  void step(Engine& engine, unsigned worker, const Done&) override {
    Stage& stage = stages_[worker];
    switch (stage.at++) {
      case 0: {
        struct Created {
          fuse_entry_out entry;
          fuse_open_out open;
        };
        const auto created = engine.reply<Created>(worker);
        stage.node = created.entry.nodeid;
        engine.send(worker, release(engine, worker, stage.node, created.open.fh, O_RDWR));
        return;
      }
      case 1:
        engine.send(worker,
                    named(engine, worker, FUSE_UNLINK, directory_, FileName(first_ + worker, 'c')));
        return;
      default:
        engine.forget(stage.node);
        engine.finish(worker);
    }
  }

 private:
  const std::string directory_name_;
  std::uint64_t directory_ = 0;
  unsigned first_ = 0;
  std::vector<Stage> stages_;
};

class MkdirRmdir : public Case {
 public:
  MkdirRmdir(Share& share, const CaseSettings&) : directory_name_(share.fresh()) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    directory_ = TRY(session.node(directory_name_));
    first_ = first;
    stages_.resize(count);
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    stages_[worker] = {};
    const FileName name(first_ + worker, 'm');
    engine.put(worker, fuse_mkdir_in{.mode = 0755, .umask = 022});
    engine.put_bytes(worker, name.c_str(), FileName::kBytesWithNul, sizeof(fuse_mkdir_in));
    engine.send(worker, {.opcode = FUSE_MKDIR,
                         .node = directory_,
                         .arguments = sizeof(fuse_mkdir_in) + FileName::kBytesWithNul,
                         .reply = kEntry});
  }
  void step(Engine& engine, unsigned worker, const Done&) override {
    Stage& stage = stages_[worker];
    if (stage.at++ == 0) {
      stage.node = engine.reply<fuse_entry_out>(worker).nodeid;
      engine.send(worker,
                  named(engine, worker, FUSE_RMDIR, directory_, FileName(first_ + worker, 'm')));
      return;
    }
    engine.forget(stage.node);
    engine.finish(worker);
  }

 private:
  const std::string directory_name_;
  std::uint64_t directory_ = 0;
  unsigned first_ = 0;
  std::vector<Stage> stages_;
};

class Rename : public Case {
 public:
  Rename(Share& share, const CaseSettings&) : directory_name_(share.renamed()) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    directory_ = TRY(session.node(directory_name_));
    first_ = first;
    away_.resize(count);
    for (unsigned worker = 0; worker < count; ++worker) {
      // A run before this one may have left it under either name.
      auto found = session.client().lookup(directory_, FileName(first + worker).view());
      // A missing name may be told as node 0.
      const bool home = found && found->nodeid != 0;
      away_[worker] = !home;
      if (!home) TRY(session.node(directory_name_ + "/" + FileName(first + worker, 'r').c_str()));
    }
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    const FileName here(first_ + worker, away_[worker] ? 'r' : 'f');
    const FileName there(first_ + worker, away_[worker] ? 'f' : 'r');
    away_[worker] = !away_[worker];
    engine.put(worker, fuse_rename_in{.newdir = directory_});
    engine.put_bytes(worker, here.c_str(), FileName::kBytesWithNul, sizeof(fuse_rename_in));
    engine.put_bytes(worker, there.c_str(), FileName::kBytesWithNul,
                     sizeof(fuse_rename_in) + FileName::kBytesWithNul);
    engine.send(worker, {.opcode = FUSE_RENAME,
                         .node = directory_,
                         .arguments = sizeof(fuse_rename_in) + 2 * FileName::kBytesWithNul});
  }
  void step(Engine& engine, unsigned worker, const Done&) override { engine.finish(worker); }

 private:
  const std::string directory_name_;
  std::uint64_t directory_ = 0;
  unsigned first_ = 0;
  std::vector<bool> away_;
};

// ---- directories ----

// One listing, request by request: OPENDIR, READDIR or READDIRPLUS to the end, RELEASEDIR.
class Listing {
 public:
  // What `next` did.
  enum class State : std::uint8_t { kGoesOn, kEnded };

  void begin(Engine& engine, unsigned worker, std::uint64_t node) {
    *this = {};
    node_ = node;
    engine.send(worker, open(engine, worker, node, kDirectoryFlags));
  }
  // `entry` is called with each entry of a READDIRPLUS: its type, its node, its name's length.
  template <typename Entry>
  State next(Engine& engine, unsigned worker, const Done& done, std::uint32_t room, bool plus,
             Entry&& entry) {
    if (at_ == At::kRelease) return State::kEnded;
    if (at_ == At::kOpen) {
      handle_ = engine.reply<fuse_open_out>(worker).fh;
      at_ = At::kRead;
    } else if (done.bytes == 0) {
      at_ = At::kRelease;
      engine.send(worker, release(engine, worker, node_, handle_, kDirectoryFlags));
      return State::kGoesOn;
    } else {
      take(engine.data(worker), done.bytes, plus, entry);
    }
    engine.send(worker, read(engine, worker, node_, handle_, offset_, room,
                             plus ? std::uint32_t{FUSE_READDIRPLUS} : std::uint32_t{FUSE_READDIR}));
    return State::kGoesOn;
  }

 private:
  enum class At : std::uint8_t { kOpen, kRead, kRelease };

  template <typename Entry>
  void take(const std::byte* at, std::uint32_t bytes, bool plus, Entry&& entry) {
    const std::uint32_t before = plus ? kEntry : 0;
    for (const std::byte* const end = at + bytes; at + before + sizeof(fuse_dirent) <= end;) {
      fuse_entry_out known{};
      if (plus) std::memcpy(&known, at, sizeof(known));
      fuse_dirent named;  // without the name, which is a flexible member
      std::memcpy(&named, at + before, sizeof(named));
      offset_ = named.off;
      // "." and ".." are no lookups; neither is an entry without a node.
      const auto* name = at + before + sizeof(named);
      const bool dots = name[0] == std::byte{'.'} &&
                        (named.namelen == 1 || (named.namelen == 2 && name[1] == std::byte{'.'}));
      if (plus && known.nodeid != 0 && !dots) entry(named.type, known.nodeid);
      at += before + FUSE_DIRENT_ALIGN(sizeof(named) + named.namelen);
    }
  }

  At at_ = At::kOpen;
  std::uint64_t node_ = 0, handle_ = 0, offset_ = 0;
};

class ReadDirectory : public Case {
 public:
  ReadDirectory(std::string name, bool plus, const CaseSettings& settings)
      : directory_name_(std::move(name)), plus_(plus), room_(settings.readdir_bytes) {}
  Result<void, Failure> prepare(Session& session, unsigned, unsigned count) override {
    directory_ = TRY(session.node(directory_name_));
    listings_.resize(count);
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    listings_[worker].begin(engine, worker, directory_);
  }
  void step(Engine& engine, unsigned worker, const Done& done) override {
    const auto ignore = [](std::uint32_t, std::uint64_t) {};
    if (listings_[worker].next(engine, worker, done, room_, plus_, ignore) ==
        Listing::State::kEnded)
      engine.finish(worker);
  }

 private:
  const std::string directory_name_;
  const bool plus_;
  const std::uint32_t room_;
  std::uint64_t directory_ = 0;
  std::vector<Listing> listings_;
};

// All workers share one walk: each takes a directory that was found and not
// yet listed. At the end everything is forgotten, so that every walk is a
// guest's first.
class Walk : public Case {
 public:
  Walk(Share& share, const CaseSettings& settings)
      : tree_name_(share.tree()), room_(settings.readdir_bytes) {}
  Result<void, Failure> prepare(Session& session, unsigned, unsigned count) override {
    root_ = TRY(session.node(tree_name_));
    listings_.resize(count);
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    if (worker == 0) {
      idle_.clear();
      found_.clear();
      start(engine, worker);
    } else if (!take_one(engine, worker)) {
      idle_.push_back(worker);
    }
  }
  void step(Engine& engine, unsigned worker, const Done& done) override {
    const auto remember = [this](std::uint32_t type, std::uint64_t node) {
      found_.push_back(node);
      if (type == S_IFDIR >> 12) waiting_.push_back(node);
    };
    if (listings_[worker].next(engine, worker, done, room_, true, remember) ==
        Listing::State::kEnded) {
      --open_;
      if (open_ == 0 && waiting_.empty()) return end(engine, worker);
      if (!take_one(engine, worker)) idle_.push_back(worker);
    }
    while (!waiting_.empty() && !idle_.empty()) {
      const unsigned next = idle_.back();
      idle_.pop_back();
      take_one(engine, next);
    }
  }

 private:
  void start(Engine& engine, unsigned worker) {
    begun_ = engine.now();
    waiting_.push_back(root_);
    take_one(engine, worker);
  }
  bool take_one(Engine& engine, unsigned worker) {
    if (waiting_.empty()) return false;
    listings_[worker].begin(engine, worker, waiting_.back());
    waiting_.pop_back();
    ++open_;
    return true;
  }
  void end(Engine& engine, unsigned worker) {
    for (const std::uint64_t node : found_) engine.forget(node);
    found_.clear();
    engine.count(begun_);
    if (!engine.time_is_up()) start(engine, worker);
  }

  const std::string tree_name_;
  const std::uint32_t room_;
  std::uint64_t root_ = 0, begun_ = 0;
  unsigned open_ = 0;  // directories being listed
  std::vector<std::uint64_t> waiting_, found_;
  std::vector<unsigned> idle_;
  std::vector<Listing> listings_;
};

// ---- data ----

class Data : public Case {
 public:
  enum class Order : std::uint8_t { kRandom, kSequential };
  Data(std::string file, std::uint64_t file_bytes, std::uint32_t size, bool writes, Order order,
       std::uint32_t open_flags = O_RDWR)
      : file_name_(std::move(file)),
        blocks_(file_bytes / size),
        size_(size),
        writes_(writes),
        order_(order),
        open_flags_(open_flags) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned) override {
    node_ = TRY(session.node(file_name_));
    handle_ = TRY(session.open(node_, open_flags_));
    dice_ = Dice{first + 1};
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    const std::uint64_t block = order_ == Order::kRandom ? dice_.below(blocks_) : next_++ % blocks_;
    const std::uint64_t offset = block * size_;
    engine.send(worker, writes_ ? write(engine, worker, node_, handle_, offset, size_)
                                : read(engine, worker, node_, handle_, offset, size_));
  }
  void step(Engine& engine, unsigned worker, const Done&) override { engine.finish(worker); }

 private:
  const std::string file_name_;
  const std::uint64_t blocks_;
  const std::uint32_t size_;
  const bool writes_;
  const Order order_;
  const std::uint32_t open_flags_;
  std::uint64_t node_ = 0, handle_ = 0, next_ = 0;
  Dice dice_{1};
};

class WriteFsync : public Case {
 public:
  WriteFsync(Share& share, const CaseSettings&) : directory_name_(share.synced()) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    stages_.resize(count);
    for (unsigned worker = 0; worker < count; ++worker) {
      const FileName name(first + worker);
      stages_[worker].node = TRY(session.node(directory_name_ + "/" + name.c_str()));
      stages_[worker].handle = TRY(session.open(stages_[worker].node, O_RDWR));
    }
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    Stage& stage = stages_[worker];
    stage.at = 0;
    engine.send(worker, write(engine, worker, stage.node, stage.handle, 0, kSmallIo));
  }
  void step(Engine& engine, unsigned worker, const Done&) override {
    Stage& stage = stages_[worker];
    if (stage.at++ == 1) return engine.finish(worker);
    engine.put(worker, fuse_fsync_in{.fh = stage.handle, .fsync_flags = 0, .padding = 0});
    engine.send(worker,
                {.opcode = FUSE_FSYNC, .node = stage.node, .arguments = sizeof(fuse_fsync_in)});
  }

 private:
  const std::string directory_name_;
  std::vector<Stage> stages_;
};

class Mix : public Case {
 public:
  Mix(Share& share, const CaseSettings&)
      : directory_name_(share.hot()),
        count_(share.sizes().hot),
        file_name_(share.random_file()),
        blocks_(share.sizes().random_bytes / kSmallIo) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    directory_ = TRY(session.node(directory_name_));
    nodes_ = TRY(look_up_all(session, directory_, count_));
    file_ = TRY(session.node(file_name_));
    handle_ = TRY(session.open(file_, O_RDWR));
    dice_ = Dice{first + 1};
    stages_.resize(count);
    return {};
  }
  void begin(Engine& engine, unsigned worker) override {
    Stage& stage = stages_[worker];
    stage = {};
    const std::uint64_t some = dice_.below(count_);
    const std::uint64_t offset = dice_.below(blocks_) * kSmallIo;
    switch (dice_.below(6)) {
      case 0:
        return engine.send(worker, getattr(engine, worker, nodes_[some]));
      case 1:
        return engine.send(worker, lookup(engine, worker, directory_, FileName(some)));
      case 2:
        stage = {.at = 1, .node = nodes_[some]};
        return engine.send(worker, open(engine, worker, stage.node, O_RDONLY));
      case 3:
        return engine.send(worker, read(engine, worker, file_, handle_, offset, kSmallIo));
      case 4:
        return engine.send(worker, write(engine, worker, file_, handle_, offset, kSmallIo));
      default:
        return engine.send(
            worker,
            {.opcode = FUSE_STATFS, .node = FUSE_ROOT_ID, .reply = sizeof(fuse_statfs_out)});
    }
  }
  void step(Engine& engine, unsigned worker, const Done&) override {
    Stage& stage = stages_[worker];
    if (stage.at == 0) return engine.finish(worker);
    stage.at = 0;
    const std::uint64_t handle = engine.reply<fuse_open_out>(worker).fh;
    engine.send(worker, release(engine, worker, stage.node, handle, O_RDONLY));
  }

 private:
  const std::string directory_name_;
  const std::uint64_t count_;
  const std::string file_name_;
  const std::uint64_t blocks_;
  std::uint64_t directory_ = 0, file_ = 0, handle_ = 0;
  std::vector<std::uint64_t> nodes_;
  std::vector<Stage> stages_;
  Dice dice_{1};
};

// ---- the table ----

template <typename What>
std::unique_ptr<Case> make(Share& share, const CaseSettings& settings) {
  return std::make_unique<What>(share, settings);
}

template <std::string (Share::*Directory)(), bool Plus>
std::unique_ptr<Case> listing(Share& share, const CaseSettings& settings) {
  return std::make_unique<ReadDirectory>((share.*Directory)(), Plus, settings);
}

template <std::uint32_t Size, bool Writes, std::uint32_t MoreFlags = 0>
std::unique_ptr<Case> random_data(Share& share, const CaseSettings&) {
  return std::make_unique<Data>(share.random_file(), share.sizes().random_bytes, Size, Writes,
                                Data::Order::kRandom, O_RDWR | MoreFlags);
}
template <std::uint32_t Size, bool Writes>
std::unique_ptr<Case> sequential_data(Share& share, const CaseSettings&) {
  return std::make_unique<Data>(share.stream_file(), share.sizes().stream_bytes, Size, Writes,
                                Data::Order::kSequential);
}

constexpr std::uint32_t kReaddir = kMostReaddirBytes;
constexpr Target kEven{.small_depth = 1.0, .depth = 1.0, .cpu = 1.0, .native = 0};
constexpr Target kMetadata{.small_depth = 1.0, .depth = 1.0, .cpu = 0.6, .native = 0};
constexpr Target kHalfMore{.small_depth = 1.0, .depth = 1.5, .cpu = 0.6, .native = 0};
constexpr Target kTwice{.small_depth = 1.0, .depth = 2.0, .cpu = 0.6, .native = 0};
constexpr Target kLargeData{.small_depth = 1.0, .depth = 1.0, .cpu = 1.0, .native = 0.9};
constexpr Target kSmallData{.small_depth = 1.0, .depth = 1.3, .cpu = 0.8, .native = 0};

constexpr unsigned kAnyDepth = 128;
constexpr std::array kCases = std::to_array<CaseRow>({
    {"lookup-hot", "LOOKUP of one of 1000 names that are known", 0, 1, false, kAnyDepth, true,
     kTwice, make<LookupHot>, native_lookup},
    {"lookup-cold", "LOOKUP of a name that is not known, FORGET", 0, 1, true, kAnyDepth, true,
     kHalfMore, make<LookupCold>, native_lookup_cold},
    {"lookup-missing", "LOOKUP of a name that is not there", 0, 1, false, kAnyDepth, false,
     kMetadata, make<LookupMissing>, native_lookup_missing},
    {"getattr", "GETATTR of one of 1000 files", 0, 1, false, kAnyDepth, true, kHalfMore,
     make<Getattr>, native_getattr},
    {"open", "OPEN, RELEASE", 0, 2, false, kAnyDepth, true, kHalfMore, make<OpenRelease>,
     native_open},
    {"open-cold", "LOOKUP of a name that is not known, OPEN, RELEASE, FORGET", 0, 3, true,
     kAnyDepth, false, kHalfMore, make<OpenCold>, native_open_cold},
    {"create", "CREATE, RELEASE, UNLINK, FORGET", 0, 3, true, kAnyDepth, true, kHalfMore,
     make<CreateUnlink>, native_create},
    {"mkdir", "MKDIR, RMDIR, FORGET", 0, 2, true, kAnyDepth, false, kHalfMore, make<MkdirRmdir>,
     native_mkdir},
    {"rename", "RENAME in one directory", 0, 1, false, kAnyDepth, false, kHalfMore, make<Rename>,
     native_rename},
    {"readdir-1000", "a listing of 1000 names", kReaddir, 0, false, kAnyDepth, false, kMetadata,
     listing<&Share::hot, false>, native_readdir},
    {"readdirplus-1000", "a listing of 1000 names with attributes", kReaddir, 0, false, kAnyDepth,
     true, kTwice, listing<&Share::hot, true>, native_readdirplus},
    {"readdirplus-100k", "a listing of 100 000 names with attributes", kReaddir, 0, false, 4, false,
     kTwice, listing<&Share::many, true>, native_readdirplus_many},
    {"walk", "a first walk over 111 directories with 2220 files", kReaddir, 0, true, kAnyDepth,
     true, kTwice, make<Walk>, native_walk},
    {"read-4k", "READ of 4 KiB at random", kSmallIo, 1, false, kAnyDepth, true, kSmallData,
     random_data<kSmallIo, false>, native_read_4k},
    {"write-4k", "WRITE of 4 KiB at random", kSmallIo, 1, false, kAnyDepth, true, kSmallData,
     random_data<kSmallIo, true>, native_write_4k},
    {"read-128k", "READ of 128 KiB in sequence", 128U << 10, 1, false, kAnyDepth, false, kLargeData,
     sequential_data<128U << 10, false>, native_read_128k},
    {"write-128k", "WRITE of 128 KiB in sequence", 128U << 10, 1, false, kAnyDepth, false,
     kLargeData, sequential_data<128U << 10, true>, native_write_128k},
    {"read-1m", "READ of 1 MiB in sequence", 1U << 20, 1, false, kAnyDepth, true, kLargeData,
     sequential_data<1U << 20, false>, native_read_1m},
    {"write-1m", "WRITE of 1 MiB in sequence", 1U << 20, 1, false, kAnyDepth, false, kLargeData,
     sequential_data<1U << 20, true>, native_write_1m},
    {"fsync", "WRITE of 4 KiB, FSYNC", kSmallIo, 2, false, kAnyDepth, true, kEven, make<WriteFsync>,
     native_fsync},
    {"mix", "GETATTR, LOOKUP, OPEN and RELEASE, 4 KiB READ and WRITE, STATFS by lot", kSmallIo,
     Turns{7, 6}, false, kAnyDepth, true, kTwice, make<Mix>, native_mix},
    {"read-direct", "READ of 4 KiB at random with O_DIRECT (not one of all)", kSmallIo, 1, false,
     kAnyDepth, false, kSmallData, random_data<kSmallIo, false, O_DIRECT>, native_read_direct,
     true},
});

}  // namespace

std::unique_ptr<Case> make_listing(const std::string& directory, bool plus,
                                   const CaseSettings& settings) {
  return std::make_unique<ReadDirectory>(directory, plus, settings);
}

std::span<const CaseRow> cases() {
  return kCases;
}

const CaseRow* find_case(std::string_view name) {
  const auto* const found = std::ranges::find(kCases, name, &CaseRow::name);
  return found == kCases.end() ? nullptr : found;
}

}  // namespace virtiofsd::bench
