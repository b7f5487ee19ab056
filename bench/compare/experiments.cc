// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/experiments.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>
#include <utility>

#include "bench/compare/native.h"
#include "bench/compare/slow_mount.h"

namespace virtiofsd::bench {

Fact& Facts::find(const std::string& experiment, const std::string& metric) {
  for (Fact& fact : facts_)
    if (fact.experiment == experiment && fact.metric == metric) return fact;
  return facts_.emplace_back(
      Fact{.experiment = experiment, .metric = metric, .unit = {}, .values = {}, .notes = {}});
}

void Facts::set(const std::string& experiment, const std::string& metric, const std::string& unit,
                const std::string& daemon, double value) {
  Fact& fact = find(experiment, metric);
  fact.unit = unit;
  fact.values[daemon] = value;
}

void Facts::note(const std::string& experiment, const std::string& metric,
                 const std::string& daemon, const std::string& why) {
  find(experiment, metric).notes[daemon] = why;
}

namespace {

constexpr unsigned kOthers = 16;  // requests in flight beside the stuck ones

std::uint64_t nanoseconds(double seconds) {
  return static_cast<std::uint64_t>(seconds * 1e9);
}

// One line of a failure, for a table.
std::string in_short(const Failure& failure) {
  return failure.text().substr(0, failure.text().find('\n'));
}

void pause(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

// ---- idle ----

void idle(const DaemonSpec& spec, Share& share, const ExperimentSettings& settings, Facts& facts) {
  const auto failed = [&](const Failure& why) {
    facts.note("idle", "context switches", spec.name, in_short(why));
  };
  auto session = Session::start(spec, share.root(), {});
  if (!session) return failed(session.error());
  const std::unique_ptr<Case> work = find_case("getattr")->make(share, {});
  if (auto ready = work->prepare(**session, 0, 16); !ready) return failed(ready.error());
  Engine engine({&(*session)->lane(0)}, (*session)->forgets(), 16, Waiting::kEvent);
  if (auto ran = engine.run(*work, 100'000'000); !ran) return failed(ran.error());

  pause(0.5);  // whatever winds down after work has done so
  const double span = std::max(1.0, settings.seconds * 2.5);
  const std::vector<pid_t> processes = (*session)->processes();
  const std::uint64_t switches = (*session)->context_switches();
  const std::uint64_t cpu = cpu_ns(processes);
  pause(span);
  facts.set("idle", "context switches", "per second", spec.name,
            static_cast<double>((*session)->context_switches() - switches) / span);
  facts.set("idle", "CPU", "µs per second", spec.name,
            static_cast<double>(cpu_ns(processes) - cpu) / 1e3 / span);
  facts.set("idle", "memory", "MB", spec.name,
            static_cast<double>((*session)->footprint().bytes) / 1e6);
}

// ---- stuck requests ----

// The first workers send one request each that does not come back for a long
// time; the others do `work`, and only those are counted.
class WithStuck : public Case {
 public:
  using Send = std::function<void(Engine&, unsigned)>;
  WithStuck(Case& work, unsigned stuck, Send send)
      : work_(work), stuck_(stuck), send_(std::move(send)) {}
  Result<void, Failure> prepare(Session& session, unsigned first, unsigned count) override {
    return work_.prepare(session, first, count);
  }
  void begin(Engine& engine, unsigned worker) override {
    if (worker < stuck_) {
      send_(engine, worker);
    } else {
      work_.begin(engine, worker);
    }
  }
  void step(Engine& engine, unsigned worker, const Done& done) override {
    if (worker >= stuck_) return work_.step(engine, worker, done);
    returned += 1;
    if (done.error != 0) refused = done.error;
  }
  bool expects(int) const override { return true; }

  unsigned returned = 0;
  int refused = 0;

 private:
  Case& work_;
  const unsigned stuck_;
  const Send send_;
};

struct Stuck {
  std::string name;
  WithStuck::Send send;
  std::function<void()> stick, let_go;
};

void measure_stuck(const std::string& daemon, Session& session, Share& share, double seconds,
                   const Stuck& how, Facts& facts) {
  const std::string experiment = "stuck " + how.name;
  const std::unique_ptr<Case> work = find_case("getattr")->make(share, {});
  for (const unsigned stuck : {0U, 1U, 64U}) {
    const std::string label = std::to_string(stuck) + " stuck: ";
    WithStuck both(*work, stuck, how.send);
    Engine engine({&session.lane(0)}, session.forgets(), stuck + kOthers, Waiting::kEvent);
    auto ready = both.prepare(session, 0, stuck + kOthers);
    if (!ready) return facts.note(experiment, label + "others", daemon, in_short(ready.error()));
    how.stick();
    // Stuck for half of the time that the others run.
    std::thread timer([&] {
      pause(seconds / 2);
      how.let_go();
    });
    auto ran = engine.run(both, nanoseconds(seconds));
    timer.join();
    if (!ran) return facts.note(experiment, label + "others", daemon, in_short(ran.error()));
    if (both.refused != 0)
      return facts.note(experiment, label + "others", daemon, Errno{both.refused}.text());
    const Histogram& latencies = ran->latencies;
    facts.set(experiment, label + "others", "k ops/s", daemon,
              static_cast<double>(latencies.total()) / ran->seconds / 1e3);
    facts.set(experiment, label + "p50", "µs", daemon, latencies.quantile(0.5) / 1e3);
    facts.set(experiment, label + "p99", "µs", daemon, latencies.quantile(0.99) / 1e3);
    facts.set(experiment, label + "p99.9", "µs", daemon, latencies.quantile(0.999) / 1e3);
    facts.set(experiment, label + "longest", "µs", daemon, latencies.quantile(1) / 1e3);
  }
}

Result<void, Failure> stuck_file_system(const DaemonSpec& spec, Share& share, double seconds,
                                        Facts& facts) {
  const std::string path = share.path("slow");
  mkdir(path.c_str(), 0755);
  const std::unique_ptr<SlowMount> slow = TRY(SlowMount::make(path));
  const std::unique_ptr<Session> session =
      TRY(Session::start(spec, share.root(), {.slots = 64 + kOthers}));
  std::vector<std::uint64_t> nodes;
  for (unsigned i = 0; i < 64; ++i)
    nodes.push_back(TRY(session->node(std::string("slow/") + FileName(i).c_str())));
  const auto send = [&](Engine& engine, unsigned worker) {
    engine.put(worker, fuse_getattr_in{});
    engine.send(worker, {.opcode = FUSE_GETATTR,
                         .node = nodes[worker],
                         .arguments = sizeof(fuse_getattr_in),
                         .reply = sizeof(fuse_attr_out)});
  };
  measure_stuck(spec.name, *session, share, seconds,
                {.name = "in GETATTR",
                 .send = send,
                 .stick = [&] { slow->hold(); },
                 .let_go = [&] { slow->let_go(); }},
                facts);
  return {};
}

Result<void, Failure> stuck_lock(const DaemonSpec& spec, Share& share, double seconds,
                                 Facts& facts) {
  const std::string path = share.path("locked");
  const UniqueFd file{open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)};
  if (!file) return Failure("open " + path, Errno::last());
  const auto lock = [&file](short type) {
    struct flock range {};
    range.l_type = type;
    range.l_whence = SEEK_SET;
    fcntl(file.number(), F_OFD_SETLK, &range);
  };
  const std::unique_ptr<Session> session =
      TRY(Session::start(spec, share.root(), {.slots = 64 + kOthers}));
  const std::uint64_t node = TRY(session->node("locked"));
  const std::uint64_t handle = TRY(session->open(node, O_RDWR));
  const auto send = [&](Engine& engine, unsigned worker) {
    // A read lock: all of them have it at once when we let go of the write lock.
    engine.put(worker, fuse_lk_in{.fh = handle,
                                  .owner = worker + 1,
                                  .lk = {.start = 0, .end = 99, .type = F_RDLCK, .pid = 1},
                                  .lk_flags = 0,
                                  .padding = 0});
    engine.send(worker, {.opcode = FUSE_SETLKW, .node = node, .arguments = sizeof(fuse_lk_in)});
  };
  measure_stuck(spec.name, *session, share, seconds,
                {.name = "in SETLKW",
                 .send = send,
                 .stick =
                     [&] {
                       // Owners still have what they got in the measurement before.
                       for (std::uint64_t owner = 1; owner <= 64; ++owner) {
                         const fuse_file_lock none{
                             .start = 0, .end = 99, .type = F_UNLCK, .pid = 1};
                         (void)session->client().setlk(node, handle, owner, none);
                       }
                       lock(F_WRLCK);
                     },
                 .let_go = [&] { lock(F_UNLCK); }},
                facts);
  return {};
}

void blocked(const DaemonSpec& spec, Share& share, const ExperimentSettings& settings,
             Facts& facts) {
  if (auto done = stuck_file_system(spec, share, settings.seconds, facts); !done)
    facts.note("stuck in GETATTR", "0 stuck: others", spec.name, in_short(done.error()));
  if (auto done = stuck_lock(spec, share, settings.seconds, facts); !done)
    facts.note("stuck in SETLKW", "0 stuck: others", spec.name, in_short(done.error()));
}

// ---- scale ----

// The scale directories' files, by number.
struct Crowd {
  std::vector<std::uint64_t> directories;
  std::vector<std::uint64_t> nodes;
  std::vector<std::uint32_t> lookups;  // what each owes: some daemons end when told to forget more

  void look_up(Engine& engine, unsigned worker, std::uint64_t file) const {
    const FileName name(file % Share::kScaleDirectory);
    engine.put_bytes(worker, name.c_str(), FileName::kBytesWithNul);
    engine.send(worker, {.opcode = FUSE_LOOKUP,
                         .node = directories[file / Share::kScaleDirectory],
                         .arguments = FileName::kBytesWithNul,
                         .reply = sizeof(fuse_entry_out)});
  }
};

// Every file once; its node is kept.
class LookUpAll : public Case {
 public:
  explicit LookUpAll(Crowd& crowd) : crowd_(crowd) {}
  Result<void, Failure> prepare(Session&, unsigned, unsigned) override { return {}; }
  void begin(Engine& engine, unsigned worker) override {
    file_.resize(engine.workers());
    if (next_ >= crowd_.nodes.size()) return;
    file_[worker] = next_++;
    crowd_.look_up(engine, worker, file_[worker]);
  }
  void step(Engine& engine, unsigned worker, const Done&) override {
    crowd_.nodes[file_[worker]] = engine.reply<fuse_entry_out>(worker).nodeid;
    ++crowd_.lookups[file_[worker]];
    engine.finish(worker);
  }

 private:
  Crowd& crowd_;
  std::uint64_t next_ = 0;
  std::vector<std::uint64_t> file_;
};

// LOOKUP or GETATTR of files among the first `among`, at random.
class Visit : public Case {
 public:
  Visit(Crowd& crowd, std::uint64_t among, bool lookups)
      : crowd_(crowd), among_(among), lookups_(lookups) {}
  Result<void, Failure> prepare(Session&, unsigned, unsigned) override { return {}; }
  void begin(Engine& engine, unsigned worker) override {
    dice_ = dice_ * 6'364'136'223'846'793'005ULL + 1'442'695'040'888'963'407ULL;
    const std::uint64_t file = (dice_ >> 24) % among_;
    if (lookups_) {
      ++crowd_.lookups[file];
      return crowd_.look_up(engine, worker, file);
    }
    engine.put(worker, fuse_getattr_in{});
    engine.send(worker, {.opcode = FUSE_GETATTR,
                         .node = crowd_.nodes[file],
                         .arguments = sizeof(fuse_getattr_in),
                         .reply = sizeof(fuse_attr_out)});
  }
  void step(Engine& engine, unsigned worker, const Done&) override { engine.finish(worker); }

 private:
  Crowd& crowd_;
  const std::uint64_t among_;
  const bool lookups_;
  std::uint64_t dice_ = 1;
};

class Scale {
 public:
  Scale(const DaemonSpec& spec, Share& share, const ExperimentSettings& settings, Facts& facts)
      : spec_(spec), share_(share), settings_(settings), facts_(facts) {}

  Result<void, Failure> run() {
    root_ = share_.scale(settings_.files);
    session_ = TRY(Session::start(spec_, share_.root(), {.slots = 64}));
    crowd_.nodes.resize(settings_.files);
    crowd_.lookups.resize(settings_.files);
    for (std::uint64_t i = 0; i * Share::kScaleDirectory < settings_.files; ++i)
      crowd_.directories.push_back(TRY(session_->node(root_ + "/" + FileName(i).c_str())));
    TRY(grow());
    TRY(visit());
    TRY(storm());
    TRY(leave());
    return list_huge();
  }

 private:
  void fact(const std::string& metric, const std::string& unit, double value) {
    facts_.set("scale", metric, unit, spec_.name, value);
  }
  Result<Engine::Counted, Failure> drive(Case& what, double seconds, unsigned depth) {
    Engine engine({&session_->lane(0)}, session_->forgets(), depth, Waiting::kEvent);
    return engine.run(what, nanoseconds(seconds));
  }

  Result<void, Failure> grow() {
    const Footprint before = session_->footprint();
    LookUpAll all(crowd_);
    const Engine::Counted ran = TRY(drive(all, 3600, 64));
    const Footprint after = session_->footprint();
    const auto files = static_cast<double>(settings_.files);
    fact("first lookups", "k ops/s", files / ran.seconds / 1e3);
    fact("memory for all", "MB",
         (static_cast<double>(after.bytes) - static_cast<double>(before.bytes)) / 1e6);
    fact("memory an inode", "bytes",
         (static_cast<double>(after.bytes) - static_cast<double>(before.bytes)) / files);
    fact("descriptors", "", static_cast<double>(after.descriptors));
    return {};
  }

  Result<void, Failure> visit() {
    for (const bool lookups : {true, false}) {
      const std::string name = lookups ? "LOOKUP" : "GETATTR";
      double few = 0;
      for (const std::uint64_t among : {Share::kScaleDirectory, settings_.files}) {
        Visit some(crowd_, among, lookups);
        TRY(drive(some, settings_.seconds / 4, 16));
        const std::vector<pid_t> processes = session_->processes();
        const std::uint64_t cpu = cpu_ns(processes);
        const Engine::Counted ran = TRY(drive(some, settings_.seconds, 16));
        const double rate = static_cast<double>(ran.latencies.total()) / ran.seconds;
        const std::string label = name + (among == settings_.files ? " among all" : " among 1000");
        fact(label, "k ops/s", rate / 1e3);
        fact(label + ", CPU", "µs/op",
             static_cast<double>(cpu_ns(processes) - cpu) / 1e3 /
                 static_cast<double>(ran.latencies.total()));
        if (among == settings_.files) fact(name + ", all to 1000", "ratio", rate / few);
        few = rate;
      }
    }
    return {};
  }

  // Getattr of one file at depth 16 while a second thread forgets all the others.
  Result<void, Failure> storm() {
    Visit one(crowd_, 1, false);
    const Engine::Counted calm = TRY(drive(one, settings_.seconds, kOthers));
    fact("GETATTR p99 in calm", "µs", calm.latencies.quantile(0.99) / 1e3);
    std::atomic<double> took = 0;
    std::atomic<bool> stuck = false;
    std::thread storm([&] {
      const std::uint64_t begun = now_ns();
      for (std::size_t i = 1; i < crowd_.nodes.size() && !stuck; ++i) {
        if (!session_->forgets().forget(crowd_.nodes[i], crowd_.lookups[i])) stuck = true;
        if (i % 32 == 0) session_->forgets().flush();
      }
      session_->forgets().drain();
      took = static_cast<double>(now_ns() - begun) / 1e9;
    });
    Engine engine({&session_->lane(0)}, session_->forgets(), kOthers, Waiting::kEvent);
    Histogram in_storm;
    Result<void, Failure> outcome{};
    while (took == 0) {
      auto ran = engine.run(one, 50'000'000);
      if (!ran) {
        stuck = true;
        outcome = Failure(ran.error().text());
        break;
      }
      in_storm.add(ran->latencies);
    }
    storm.join();
    if (!outcome) return outcome;
    fact("GETATTR p99 in a FORGET storm", "µs", in_storm.quantile(0.99) / 1e3);
    fact("FORGETs", "k ops/s", static_cast<double>(settings_.files) / took / 1e3);
    return {};
  }

  Result<void, Failure> leave() {
    LookUpAll again(crowd_);
    TRY(drive(again, 3600, 64));
    const auto took = session_->hang_up(std::chrono::seconds(60));
    if (!took) return Failure("the daemon does not end");
    fact("exit with all inodes", "ms", static_cast<double>(*took) / 1e6);
    session_.reset();
    return {};
  }

  Result<void, Failure> list_huge() {
    for (const bool huge : {false, true}) {
      const std::string directory = huge ? share_.huge() : share_.hot();
      const double entries = static_cast<double>(huge ? share_.sizes().huge : share_.sizes().hot);
      session_ =
          TRY(Session::start(spec_, share_.root(), {.slots = 1, .data_bytes = kMostReaddirBytes}));
      const Footprint before = session_->footprint();
      for (const bool plus : {false, true}) {
        const std::unique_ptr<Case> once = make_listing(directory, plus, {});
        TRY(once->prepare(*session_, 0, 1));
        // No time at all: one operation.
        const Engine::Counted ran = TRY(drive(*once, 0, 1));
        const std::string label = std::string(plus ? "READDIRPLUS" : "READDIR") +
                                  (huge ? " of the huge directory" : " of 1000");
        fact(label, "µs an entry", ran.seconds * 1e6 / entries);
        if (!plus && huge)
          fact("memory for READDIR of it", "MB",
               (static_cast<double>(session_->footprint().bytes) -
                static_cast<double>(before.bytes)) /
                   1e6);
      }
    }
    return {};
  }

  const DaemonSpec& spec_;
  Share& share_;
  const ExperimentSettings& settings_;
  Facts& facts_;
  std::string root_;
  std::unique_ptr<Session> session_;
  Crowd crowd_;
};

// The host's own speed with so many files, which no daemon can beat.
void scale_native(Share& share, const ExperimentSettings& settings, Facts& facts) {
  const std::string root = share.path(share.scale(settings.files));
  std::vector<UniqueFd> directories;
  const std::uint64_t count = std::min<std::uint64_t>(settings.files / Share::kScaleDirectory, 500);
  for (std::uint64_t i = 0; i < count; ++i)
    directories.emplace_back(
        ::open((root + "/" + FileName(i).c_str()).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  double few = 0;
  for (const std::uint64_t among : {std::uint64_t{1}, count}) {
    std::uint64_t dice = 1;
    const Native call = [&] {
      dice = dice * 6'364'136'223'846'793'005ULL + 1'442'695'040'888'963'407ULL;
      const std::uint64_t file = (dice >> 24) % (among * Share::kScaleDirectory);
      struct statx out;
      statx(directories[file / Share::kScaleDirectory].number(),
            FileName(file % Share::kScaleDirectory).c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS,
            &out);
    };
    time_native(call, nanoseconds(settings.seconds / 4));
    const Timed timed = time_native(call, nanoseconds(settings.seconds));
    const double rate = static_cast<double>(timed.latencies.total()) / timed.seconds;
    facts.set("scale", among == 1 ? "LOOKUP among 1000" : "LOOKUP among all", "k ops/s", "native",
              rate / 1e3);
    if (among != 1) facts.set("scale", "LOOKUP, all to 1000", "ratio", "native", rate / few);
    few = rate;
  }
}

void scale(const DaemonSpec& spec, Share& share, const ExperimentSettings& settings, Facts& facts) {
  if (facts.all().empty() || facts.all().back().experiment != "scale")
    scale_native(share, settings, facts);
  if (auto done = Scale(spec, share, settings, facts).run(); !done)
    facts.note("scale", "stopped by", spec.name, in_short(done.error()));
}

constexpr std::array kExperiments = std::to_array<Experiment>({
    {"idle", "no request in flight", idle},
    {"blocked", "requests that are stuck for long beside requests that are not", blocked},
    {"scale", "very many inodes", scale},
});

}  // namespace

std::span<const Experiment> experiments() {
  return kExperiments;
}

}  // namespace virtiofsd::bench
