// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What was measured, and three ways to read it: a table for a terminal, JSON
// for a program, one HTML page with plots that needs nothing else.
//
// The first daemon is the one that is judged; those whose names don't begin
// with its name are its peers.
#pragma once

#include <iosfwd>
#include <map>
#include <string>
#include <vector>

#include "bench/compare/cases.h"
#include "bench/compare/experiments.h"

namespace virtiofsd::bench {

struct Setting {
  unsigned depth = 1;
  unsigned queues = 1;
  Waiting waiting = Waiting::kEvent;
  Place place = Place::kAny;

  std::string name() const;  // "d16", "d1/one", "d16/q4", "d1/poll/apart"
  // Nothing when `text` is no setting.
  static std::optional<Setting> parse(const std::string& text);
  friend bool operator==(const Setting&, const Setting&) = default;
};

struct Run {
  double ops = 0;                     // a second
  double p50 = 0, p99 = 0, p999 = 0;  // µs
  double cpu = 0;                     // µs of the daemon's CPU an operation
  double driver_cpu = 0;              // µs of ours
  double memory = 0;                  // MB of the daemon's at the end
  double descriptors = 0;
};

struct Cell {
  const CaseRow* row = nullptr;
  Setting setting;
  std::map<std::string, std::vector<Run>> runs;  // by daemon; "native" and "floor" too
  std::map<std::string, std::string> failures;   // by daemon: why there is no run

  // Of each number by itself; nothing when there was no run.
  std::optional<Run> median(const std::string& daemon) const;
};

struct Report {
  std::string machine, kernel, file_system, date;
  double seconds = 0;
  unsigned rounds = 0;
  std::vector<DaemonSpec> daemons;
  std::vector<Cell> cells;
  Facts facts;
};

// How the judged daemon does in a cell. Zero: nothing to compare with, which counts as held.
struct Verdict {
  double ratio = 0;      // operations a second over the best peer's
  double wanted = 0;     // what the ratio should be
  double limit = 0;      // the ratio of the native calls or the floor: 80 % of it will do where
                         // that is less than wanted
  double cpu_ratio = 0;  // the same for CPU per operation
  double cpu_wanted = 0;
  double cpu_limit = 0;
  double native_ratio = 0;  // operations a second over those of the native calls
  double native_wanted = 0;
  double beyond_floor = 0;  // the median latency over the floor's
  double floor_wanted = 0;

  bool speed_held() const;
  bool cpu_held() const;
  bool latency_held() const { return floor_wanted == 0 || beyond_floor <= floor_wanted; }
};
Verdict judge(const Report& report, const Cell& cell);

void write_text(const Report& report, std::ostream& out);
void write_json(const Report& report, std::ostream& out);
void write_html(const Report& report, std::ostream& out);

}  // namespace virtiofsd::bench
