// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What operations a second don't tell: what a daemon does while idle, while
// requests are stuck, and with very many inodes. Each gives facts, by daemon.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "bench/compare/cases.h"
#include "bench/compare/session.h"

namespace virtiofsd::bench {

struct Fact {
  std::string experiment, metric, unit;
  std::map<std::string, double> values;      // by daemon
  std::map<std::string, std::string> notes;  // instead of a value: why there is none
};

struct ExperimentSettings {
  double seconds = 2;  // of each measurement
  std::uint64_t files = 100'000;
  std::uint64_t huge = 100'000;
};

class Facts {
 public:
  void set(const std::string& experiment, const std::string& metric, const std::string& unit,
           const std::string& daemon, double value);
  void note(const std::string& experiment, const std::string& metric, const std::string& daemon,
            const std::string& why);
  const std::vector<Fact>& all() const { return facts_; }

 private:
  Fact& find(const std::string& experiment, const std::string& metric);
  std::vector<Fact> facts_;
};

struct Experiment {
  std::string_view name;
  std::string_view what;
  void (*run)(const DaemonSpec& spec, Share& share, const ExperimentSettings& settings,
              Facts& facts);
};

std::span<const Experiment> experiments();

}  // namespace virtiofsd::bench
