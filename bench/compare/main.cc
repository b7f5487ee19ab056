// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// compare: drives vhost-user-fs daemons through their sockets, without a guest,
// and says which is faster, at what cost. docs/performance.md tells how to use it.
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>
#include <tuple>

#include "bench/compare/native.h"
#include "bench/compare/report.h"

namespace virtiofsd::bench {
namespace {

struct Plan {
  std::vector<DaemonSpec> daemons;
  std::vector<const CaseRow*> rows;
  std::vector<Setting> settings;
  std::vector<const Experiment*> experiments;
  CaseSettings cases;
  ExperimentSettings experiment;
  ShareSizes sizes;
  double seconds = 1;
  unsigned rounds = 5;
  bool floors = true;
  std::string share = "/dev/shm";
};

std::uint64_t nanoseconds(double seconds) {
  return static_cast<std::uint64_t>(seconds * 1e9);
}

// One cell of one daemon. The session has the setting's queues.
Result<Run, Failure> measure(Session& session, const CaseRow& row, const Setting& setting,
                             Share& share, const Plan& plan) {
  session.move(setting.place);
  const unsigned threads = std::min<unsigned>(setting.queues, 2);
  std::vector<std::unique_ptr<Case>> work;
  std::vector<std::unique_ptr<Engine>> engines;
  for (unsigned thread = 0; thread < threads; ++thread) {
    std::vector<Lane*> lanes;
    for (unsigned queue = thread; queue < setting.queues; queue += threads)
      lanes.push_back(&session.lane(queue));
    const unsigned workers = setting.depth / threads;
    work.push_back(row.make(share, plan.cases));
    TRY(work.back()->prepare(session, thread * workers, workers));
    engines.push_back(
        std::make_unique<Engine>(std::move(lanes), session.forgets(), workers, setting.waiting));
  }

  std::vector<Engine::Counted> counted(threads);
  std::vector<std::string> failures(threads);
  const auto drive = [&](double seconds) -> Result<void, Failure> {
    std::vector<std::thread> running;
    for (unsigned i = 0; i < threads; ++i) {
      running.emplace_back([&, i] {
        move_thread(0, setting.place, false);
        auto ran = engines[i]->run(*work[i], nanoseconds(seconds));
        if (ran) {
          counted[i] = *ran;
        } else {
          failures[i] = ran.error().text();
        }
      });
    }
    for (std::thread& thread : running) thread.join();
    for (const std::string& failure : failures)
      if (!failure.empty()) return Failure(failure);
    return {};
  };

  TRY(drive(plan.seconds / 10));  // first touches, caches, threads
  const std::vector<pid_t> processes = session.processes();
  const std::uint64_t before = cpu_ns(processes);
  TRY(drive(plan.seconds));
  const auto cpu = static_cast<double>(cpu_ns(processes) - before);

  Histogram latencies;
  Run run;
  double driver = 0;
  for (const Engine::Counted& part : counted) {
    latencies.add(part.latencies);
    run.ops += static_cast<double>(part.latencies.total()) / part.seconds;
    driver += part.cpu_seconds;
  }
  const auto total = static_cast<double>(latencies.total());
  run.p50 = latencies.quantile(0.5) / 1e3;
  run.p99 = latencies.quantile(0.99) / 1e3;
  run.p999 = latencies.quantile(0.999) / 1e3;
  run.cpu = cpu / 1e3 / total;
  run.driver_cpu = driver * 1e6 / total;
  const Footprint footprint = session.footprint();
  run.memory = static_cast<double>(footprint.bytes) / 1e6;
  run.descriptors = static_cast<double>(footprint.descriptors);
  return run;
}

Run from_timed(const Timed& timed) {
  const auto total = static_cast<double>(timed.latencies.total());
  return {.ops = total / timed.seconds,
          .p50 = timed.latencies.quantile(0.5) / 1e3,
          .p99 = timed.latencies.quantile(0.99) / 1e3,
          .p999 = timed.latencies.quantile(0.999) / 1e3,
          .cpu = timed.cpu_seconds * 1e6 / total,
          .driver_cpu = 0,
          .memory = 0,
          .descriptors = 0};
}

void measure_floors(std::span<Cell> cells, const CaseRow& row, Share& share, double seconds) {
  const Native native = row.native(share);
  const Run alone = from_timed(time_native(native, nanoseconds(seconds)));
  for (Cell& cell : cells) {
    cell.runs["native"].push_back(alone);
    const Setting& setting = cell.setting;
    if (row.turns.count == 0) continue;
    if (setting.depth > 1) {
      // One queue, a driver that sleeps, placed by the scheduler.
      if (setting.queues > 1 || setting.waiting == Waiting::kPoll || setting.place != Place::kAny ||
          processors().size() < 2)
        continue;
      // As long as a daemon's: it takes a while until the first slow wake-ups are over.
      cell.runs["floor"].push_back(
          from_timed(time_in_flight(native, row.turns, setting.depth, nanoseconds(2 * seconds))));
      continue;
    }
    const Timed floor =
        setting.waiting == Waiting::kPoll
            ? time_spinning(native, row.turns, nanoseconds(seconds / 2))
            : time_eventfd(native, row.turns, setting.place, nanoseconds(seconds / 2));
    cell.runs["floor"].push_back(from_timed(floor));
  }
}

// All settings of one case with one daemon: a session for each number of queues.
void measure_daemon(std::span<Cell> cells, const DaemonSpec& spec, const CaseRow& row, Share& share,
                    const Plan& plan) {
  std::unique_ptr<Session> session;
  for (Cell& cell : cells) {
    const Setting& setting = cell.setting;
    const auto failed = [&](const Failure& why) {
      cell.failures[spec.name] = why.text();
      session.reset();
    };
    if (!session || session->queues() != setting.queues) {
      session.reset();
      unsigned slots = 1;
      for (const Cell& other : cells) {
        if (other.setting.queues == setting.queues)
          slots = std::max(slots, (other.setting.depth + setting.queues - 1) / setting.queues);
      }
      auto started = Session::start(spec, share.root(),
                                    {.queues = setting.queues,
                                     .slots = slots,
                                     .data_bytes = row.data_bytes,
                                     .uid = plan.cases.uid});
      if (!started) {
        failed(started.error());
        continue;
      }
      session = std::move(started).value();
    }
    auto run = measure(*session, row, setting, share, plan);
    if (run) {
      cell.runs[spec.name].push_back(*run);
    } else {
      failed(Failure(run.error().text() + "\n" + session->daemon().output()));
    }
  }
}

void progress(const std::string& words) {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  if (terminal) std::fprintf(stderr, "\r\033[K%s", words.c_str());
}

std::string first_line(const char* file, const char* key) {
  std::ifstream in(file);
  std::string line;
  while (std::getline(in, line)) {
    if (line.starts_with(key)) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string file_system_of(const std::string& path) {
  struct statfs out {};
  statfs(path.c_str(), &out);
  switch (out.f_type) {
    case 0x01021994:
      return "tmpfs";
    case 0xef53:
      return "ext4";
    case 0x58465342:
      return "xfs";
    case 0x9123683e:
      return "btrfs";
    default:
      return "file system " + std::to_string(out.f_type);
  }
}

Report run(const Plan& plan) {
  Report report;
  utsname system{};
  uname(&system);
  report.machine =
      first_line("/proc/cpuinfo", "model name") + " × " + std::to_string(processors().size());
  report.kernel = std::string(system.sysname) + " " + system.release;
  report.file_system = file_system_of(plan.share);
  const std::time_t now = std::time(nullptr);
  char date[32];
  std::strftime(date, sizeof(date), "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  report.date = date;
  report.seconds = plan.seconds;
  report.rounds = plan.rounds;
  report.daemons = plan.daemons;

  Share share(plan.share, plan.sizes);
  for (const CaseRow* row : plan.rows) {
    std::vector<Cell> cells;
    for (const Setting& setting : plan.settings) {
      if (row->forgets && setting.queues > 1) continue;  // one sender has the other queue
      if (setting.depth > row->most_depth) continue;
      cells.push_back({.row = row, .setting = setting, .runs = {}, .failures = {}});
    }
    progress(std::string(row->name) + ": files");
    (void)row->make(share, plan.cases);
    (void)row->native(share);
    // Files that are older than any daemon's doubts about their age.
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    for (unsigned round = 0; round < plan.rounds; ++round) {
      for (std::size_t i = 0; i < plan.daemons.size(); ++i) {
        const std::size_t at = round % 2 == 0 ? i : plan.daemons.size() - 1 - i;
        const DaemonSpec& spec = plan.daemons[at];
        progress(std::string(row->name) + ": round " + std::to_string(round + 1) + ", " +
                 spec.name);
        measure_daemon(cells, spec, *row, share, plan);
      }
      if (plan.floors) measure_floors(cells, *row, share, plan.seconds / 2);
    }
    for (Cell& cell : cells) report.cells.push_back(std::move(cell));
  }
  for (const Experiment* experiment : plan.experiments) {
    for (const DaemonSpec& spec : plan.daemons) {
      progress(std::string(experiment->name) + ": " + spec.name);
      experiment->run(spec, share, plan.experiment, report.facts);
    }
  }
  progress("");
  return report;
}

std::vector<std::string> words_of(const std::string& text, char separator) {
  std::vector<std::string> words;
  std::istringstream in(text);
  std::string word;
  while (std::getline(in, word, separator))
    if (!word.empty()) words.push_back(word);
  return words;
}

int fail(const std::string& words) {
  std::fprintf(stderr, "compare: %s\n", words.c_str());
  return 1;
}

bool write_file(const std::string& path, void (*write)(const Report&, std::ostream&),
                const Report& report) {
  if (path.empty()) return true;
  std::ofstream out(path);
  write(report, out);
  out.close();
  return static_cast<bool>(out);
}

int main_function(int argc, char** argv) {
  CLI::App app{"Drives vhost-user-fs daemons through their sockets and compares them."};
  std::vector<std::string> daemons;
  std::string cases_wanted = "all";
  std::string settings_wanted;
  std::string experiments_wanted;
  std::string text;
  std::string json;
  std::string html;
  std::optional<double> seconds;
  std::optional<unsigned> rounds;
  bool quick = false;
  bool no_floors = false;
  bool list = false;
  bool strict = false;
  std::optional<std::uint64_t> files;
  Plan plan;
  app.add_option("--daemon,-d", daemons,
                 "NAME=COMMAND, once for each. The first is judged against those whose names don't "
                 "begin with its name. Socket and directory are added; {share} in the command "
                 "stands for the directory.");
  app.add_option("--cases", cases_wanted, "comma list, \"all\" or \"none\"")->capture_default_str();
  app.add_option("--settings", settings_wanted,
                 "comma list of dDEPTH[/qQUEUES][/poll][/one|/apart] (d1/one,d4,d16,d64)");
  app.add_option("--experiments", experiments_wanted, "comma list of idle, blocked, scale, or all");
  app.add_option("--seconds", seconds, "of each measurement (1)")->check(CLI::Range(0.01, 600.0));
  app.add_option("--rounds", rounds, "measurements of each cell (5)")->check(CLI::Range(1, 1000));
  app.add_option("--share", plan.share, "where the shared directory is made")
      ->capture_default_str();
  app.add_option("--files", files, "of the scale experiment (100000)");
  app.add_option("--uid", plan.cases.uid, "who asks")->capture_default_str();
  app.add_option("--readdir-bytes", plan.cases.readdir_bytes, "room of a READDIR")
      ->check(CLI::Range(4096U, kMostReaddirBytes))
      ->capture_default_str();
  app.add_flag("--quick", quick, "a short run of a few cases: does everything work?");
  app.add_flag("--strict", strict, "exit status 3 when a target is missed");
  app.add_flag("--no-floors", no_floors, "no system calls in process, no ping-pong");
  app.add_option("--text", text, "file for the table (standard output)");
  app.add_option("--json", json, "file for all numbers");
  app.add_option("--html", html, "file for a page with plots");
  app.add_flag("--list", list, "the cases and experiments there are");
  CLI11_PARSE(app, argc, argv);

  if (list) {
    for (const CaseRow& row : cases())
      std::printf("%-18s %s\n", std::string(row.name).c_str(), std::string(row.what).c_str());
    for (const Experiment& experiment : experiments())
      std::printf("%-18s %s\n", std::string(experiment.name).c_str(),
                  std::string(experiment.what).c_str());
    return 0;
  }
  if (geteuid() != 0) return fail("needs root: the daemons switch users and enter namespaces");
  if (daemons.empty()) daemons.push_back("ours=" + guest::DaemonProcess::default_binary());
  for (const std::string& daemon : daemons) {
    const std::size_t at = daemon.find('=');
    if (at == daemon.npos || at == 0) return fail("a daemon is NAME=COMMAND, not " + daemon);
    plan.daemons.push_back(
        {.name = daemon.substr(0, at), .command = words_of(daemon.substr(at + 1), ' ')});
    const std::vector<std::string>& command = plan.daemons.back().command;
    if (command.empty() || access(command.front().c_str(), X_OK) != 0)
      return fail("there is no such program: " + daemon);
  }

  plan.seconds = seconds.value_or(quick ? 0.05 : 1);
  plan.rounds = rounds.value_or(quick ? 1 : 5);
  plan.floors = !no_floors;
  plan.cases.readdir_bytes = plan.cases.readdir_bytes / 4096 * 4096;
  if (quick) {
    plan.sizes = {.hot = 1000,
                  .cold = 16384,
                  .many = 2000,
                  .random_bytes = 8U << 20,
                  .stream_bytes = 16U << 20,
                  .folders = 4,
                  .files = 10,
                  .scale = 5000,
                  .huge = 5000};
    plan.experiment = {.seconds = 0.3, .files = 5000, .huge = 5000};
    if (settings_wanted.empty()) settings_wanted = "d1/one,d16,d4/q4,d1/poll/apart";
    if (experiments_wanted.empty()) experiments_wanted = "all";
  }
  if (settings_wanted.empty()) settings_wanted = "d1/one,d4,d16,d64";
  if (files) {
    plan.experiment.files = *files / Share::kScaleDirectory * Share::kScaleDirectory;
    plan.sizes.huge = plan.experiment.files;
    if (plan.experiment.files == 0) return fail("--files: at least 1000");
  } else if (!quick) {
    plan.sizes.huge = plan.experiment.files;
  }
  for (const CaseRow& row : cases()) {
    if (cases_wanted == "all" && !row.on_request && (!quick || row.quick))
      plan.rows.push_back(&row);
  }
  if (cases_wanted != "all" && cases_wanted != "none") {
    for (const std::string& name : words_of(cases_wanted, ',')) {
      const CaseRow* const row = find_case(name);
      if (row == nullptr) return fail("there is no case " + name + "; --list shows them");
      plan.rows.push_back(row);
    }
  }
  for (const std::string& name : words_of(settings_wanted, ',')) {
    const auto setting = Setting::parse(name);
    if (!setting) return fail("that is no setting: " + name);
    plan.settings.push_back(*setting);
  }
  // One daemon session for each number of queues.
  std::ranges::sort(plan.settings, {}, [](const Setting& setting) {
    return std::tuple{setting.queues, setting.waiting, setting.place, setting.depth};
  });
  for (const Experiment& experiment : experiments()) {
    const std::vector<std::string> wanted = words_of(experiments_wanted, ',');
    if (experiments_wanted == "all" || std::ranges::find(wanted, experiment.name) != wanted.end())
      plan.experiments.push_back(&experiment);
  }

  // What a service manager gives a daemon, whatever this shell's limits are.
  const rlimit many{.rlim_cur = 1'000'000, .rlim_max = 1'000'000};
  setrlimit(RLIMIT_NOFILE, &many);
  // What experiments mount goes with this process, however it ends.
  if (unshare(CLONE_NEWNS) == 0) mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
  (void)processors();
  const Report report = run(plan);
  if (text.empty()) write_text(report, std::cout);
  if (!write_file(text, write_text, report) || !write_file(json, write_json, report) ||
      !write_file(html, write_html, report))
    return fail("a report could not be written");

  // A daemon that breaks down is a result; the judged one breaking down is a failure.
  for (const Cell& cell : report.cells)
    if (cell.failures.contains(report.daemons.front().name)) return 1;
  for (const Fact& fact : report.facts.all())
    if (fact.notes.contains(report.daemons.front().name)) return 1;
  if (strict) {
    for (const Cell& cell : report.cells) {
      const Verdict verdict = judge(report, cell);
      if (!verdict.speed_held() || !verdict.cpu_held() || !verdict.latency_held()) return 3;
    }
  }
  return 0;
}

}  // namespace
}  // namespace virtiofsd::bench

int main(int argc, char** argv) {
  return virtiofsd::bench::main_function(argc, argv);
}
