// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>

namespace virtiofsd::bench {
namespace {

constexpr const char* kNative = "native";
constexpr const char* kFloor = "floor";

double median_of(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::vector<std::string> names_of(const Report& report) {
  std::vector<std::string> names;
  for (const DaemonSpec& spec : report.daemons) names.push_back(spec.name);
  return names;
}

bool is_peer(const Report& report, const std::string& name) {
  return !name.starts_with(report.daemons.front().name);
}

std::string quantity(double value) {
  if (value >= 100'000'000) return fmt::format("{:.0f} M", value / 1e6);
  if (value >= 1'000'000) return fmt::format("{:.2f} M", value / 1e6);
  if (value >= 10'000) return fmt::format("{:.1f} k", value / 1e3);
  if (value >= 1000) return fmt::format("{:.0f}", value);
  if (value >= 10) return fmt::format("{:.1f}", value);
  return fmt::format("{:.2f}", value);
}

}  // namespace

std::string Setting::name() const {
  std::string text = fmt::format("d{}", depth);
  if (queues != 1) text += fmt::format("/q{}", queues);
  if (waiting == Waiting::kPoll) text += "/poll";
  if (place == Place::kOne) text += "/one";
  if (place == Place::kApart) text += "/apart";
  return text;
}

std::optional<Setting> Setting::parse(const std::string& text) {
  Setting setting;
  std::istringstream words(text);
  std::string word;
  const auto number = [](const std::string& digits, unsigned most) -> unsigned {
    const unsigned long value = std::strtoul(digits.c_str() + 1, nullptr, 10);
    return value <= most ? static_cast<unsigned>(value) : 0;
  };
  while (std::getline(words, word, '/')) {
    if (word == "poll") {
      setting.waiting = Waiting::kPoll;
    } else if (word == "one") {
      setting.place = Place::kOne;
    } else if (word == "apart") {
      setting.place = Place::kApart;
    } else if (word.starts_with('d')) {
      setting.depth = number(word, 128);
    } else if (word.starts_with('q')) {
      setting.queues = number(word, 16);
    } else {
      return std::nullopt;
    }
  }
  if (setting.depth == 0 || setting.queues == 0 || setting.depth < setting.queues)
    return std::nullopt;
  return setting;
}

std::optional<Run> Cell::median(const std::string& daemon) const {
  const auto found = runs.find(daemon);
  if (found == runs.end() || found->second.empty()) return std::nullopt;
  Run middle;
  for (double Run::*const field : {&Run::ops, &Run::p50, &Run::p99, &Run::p999, &Run::cpu,
                                   &Run::driver_cpu, &Run::memory, &Run::descriptors}) {
    std::vector<double> values;
    for (const Run& run : found->second) values.push_back(run.*field);
    middle.*field = median_of(std::move(values));
  }
  return middle;
}

bool Verdict::speed_held() const {
  if (native_wanted > 0 && native_ratio > 0 && native_ratio < native_wanted) return false;
  if (ratio == 0 || ratio >= wanted) return true;
  // Nothing excuses being slower than a peer.
  return limit > 0 && limit < wanted && ratio >= std::max(1.0, 0.8 * limit);
}

bool Verdict::cpu_held() const {
  return cpu_ratio <= std::max(cpu_wanted, cpu_limit * 1.25);
}

Verdict judge(const Report& report, const Cell& cell) {
  Verdict verdict;
  const auto own = cell.median(report.daemons.front().name);
  if (!own) return verdict;
  double best = 0;
  double least_cpu = 0;
  for (const DaemonSpec& spec : report.daemons) {
    if (!is_peer(report, spec.name)) continue;
    const auto run = cell.median(spec.name);
    if (!run) continue;
    best = std::max(best, run->ops);
    if (least_cpu == 0 || run->cpu < least_cpu) least_cpu = run->cpu;
  }
  const auto native = cell.median(kNative);
  const auto floor = cell.median(kFloor);
  const Target& target = cell.row->target;
  if (best > 0) {
    verdict.ratio = own->ops / best;
    verdict.wanted = cell.setting.depth >= 4 ? target.depth : target.small_depth;
    // The calls alone, or made for another thread that asks and is told.
    if (native) verdict.limit = (floor ? std::min(native->ops, floor->ops) : native->ops) / best;
  }
  if (least_cpu > 0) {
    verdict.cpu_ratio = own->cpu / least_cpu;
    verdict.cpu_wanted = target.cpu;
    if (native) verdict.cpu_limit = native->cpu / least_cpu;
  }
  if (native && target.native > 0) {
    verdict.native_ratio = own->ops / native->ops;
    verdict.native_wanted = target.native;
  }
  // Sleeping: 1.3 times the floor. Spinning: 2 µs more for each request.
  if (floor && floor->p50 > 0 && cell.setting.depth == 1) {
    if (cell.setting.waiting == Waiting::kEvent && cell.setting.place == Place::kOne) {
      verdict.floor_wanted = 1.3;
    } else if (cell.setting.waiting == Waiting::kPoll && cell.setting.place == Place::kApart) {
      verdict.floor_wanted = (floor->p50 + 2.0 * cell.row->turns.of_one()) / floor->p50;
    }
    verdict.beyond_floor = own->p50 / floor->p50;
  }
  return verdict;
}

// ---- text ----

void write_text(const Report& report, std::ostream& out) {
  out << fmt::format("{}; {}; {}; {}\n{} rounds of {} s each, medians\n", report.machine,
                     report.kernel, report.file_system, report.date, report.rounds, report.seconds);
  std::vector<std::string> columns = names_of(report);
  if (!report.cells.empty()) {
    out << "\nOperations a second\n" << fmt::format("{:<18}{:<15}", "case", "setting");
    for (const std::string& name : columns) out << fmt::format("{:>13}", name);
    out << fmt::format("{:>13}{:>13}{:>9}{:>8}{:>8}  {}\n", kNative, kFloor, "ratio", "wanted",
                       "limit", "");
    for (const Cell& cell : report.cells) {
      out << fmt::format("{:<18}{:<15}", cell.row->name, cell.setting.name());
      for (const std::string& name : columns) {
        const auto run = cell.median(name);
        out << fmt::format("{:>13}", run ? quantity(run->ops) : "-");
      }
      const auto native = cell.median(kNative);
      const auto floor = cell.median(kFloor);
      out << fmt::format("{:>13}{:>13}", native ? quantity(native->ops) : "-",
                         floor ? quantity(floor->ops) : "-");
      const Verdict verdict = judge(report, cell);
      if (verdict.ratio > 0)
        out << fmt::format("{:>9.2f}{:>8.2f}{:>8.2f}", verdict.ratio, verdict.wanted,
                           verdict.limit);
      out << (verdict.speed_held() ? "\n" : "  BELOW\n");
    }

    out << "\nCPU of the daemon, µs an operation (driver: of ours, with the first daemon)\n"
        << fmt::format("{:<18}{:<15}", "case", "setting");
    for (const std::string& name : columns) out << fmt::format("{:>13}", name);
    out << fmt::format("{:>13}{:>9}{:>8}{:>8}{:>9}\n", kNative, "ratio", "wanted", "limit",
                       "driver");
    for (const Cell& cell : report.cells) {
      out << fmt::format("{:<18}{:<15}", cell.row->name, cell.setting.name());
      for (const std::string& name : columns) {
        const auto run = cell.median(name);
        out << fmt::format("{:>13}", run ? quantity(run->cpu) : "-");
      }
      const auto native = cell.median(kNative);
      out << fmt::format("{:>13}", native ? quantity(native->cpu) : "-");
      const Verdict verdict = judge(report, cell);
      out << (verdict.cpu_ratio > 0 ? fmt::format("{:>9.2f}{:>8.2f}{:>8.2f}", verdict.cpu_ratio,
                                                  verdict.cpu_wanted, verdict.cpu_limit)
                                    : fmt::format("{:>25}", ""));
      const auto own = cell.median(columns.front());
      out << fmt::format("{:>9}{}\n", own ? quantity(own->driver_cpu) : "-",
                         verdict.cpu_held() ? "" : "  ABOVE");
    }

    out << "\nLatency, µs: p50 / p99 / p99.9\n" << fmt::format("{:<18}{:<15}", "case", "setting");
    for (const std::string& name : columns) out << fmt::format("{:>26}", name);
    out << fmt::format("{:>26}{:>12}{:>8}\n", kFloor, "p50/floor", "wanted");
    columns.emplace_back(kFloor);
    for (const Cell& cell : report.cells) {
      out << fmt::format("{:<18}{:<15}", cell.row->name, cell.setting.name());
      for (const std::string& name : columns) {
        const auto run = cell.median(name);
        out << fmt::format("{:>26}", run ? fmt::format("{} / {} / {}", quantity(run->p50),
                                                       quantity(run->p99), quantity(run->p999))
                                         : "-");
      }
      if (const Verdict verdict = judge(report, cell); verdict.beyond_floor > 0) {
        out << fmt::format("{:>12.2f}", verdict.beyond_floor);
        if (verdict.floor_wanted > 0)
          out << fmt::format("{:>8.2f}{}", verdict.floor_wanted,
                             verdict.latency_held() ? "" : "  ABOVE");
      }
      out << '\n';
    }
    columns.pop_back();

    out << "\nMemory (MB, proportional, without the guest's) / descriptors\n"
        << fmt::format("{:<18}{:<15}", "case", "setting");
    for (const std::string& name : columns) out << fmt::format("{:>16}", name);
    out << '\n';
    for (const Cell& cell : report.cells) {
      out << fmt::format("{:<18}{:<15}", cell.row->name, cell.setting.name());
      for (const std::string& name : columns) {
        const auto run = cell.median(name);
        out << fmt::format(
            "{:>16}", run ? fmt::format("{:.1f} / {:.0f}", run->memory, run->descriptors) : "-");
      }
      out << '\n';
    }
    for (const Cell& cell : report.cells)
      for (const auto& [name, why] : cell.failures)
        out << fmt::format("{} {} {}: {}\n", cell.row->name, cell.setting.name(), name, why);
  }

  std::string before;
  for (const Fact& fact : report.facts.all()) {
    if (fact.experiment != before) {
      before = fact.experiment;
      out << fmt::format("\n{:<34}{:<14}", fact.experiment, "");
      for (const std::string& name : columns) out << fmt::format("{:>13}", name);
      out << fmt::format("{:>13}\n", kNative);
    }
    out << fmt::format("{:<34}{:<14}", fact.metric, fact.unit);
    std::vector<std::string> all = columns;
    all.emplace_back(kNative);
    for (const std::string& name : all) {
      const auto value = fact.values.find(name);
      out << fmt::format("{:>13}", value == fact.values.end() ? "-" : quantity(value->second));
    }
    for (const auto& [name, why] : fact.notes) out << "  " << name << ": " << why;
    out << '\n';
  }
}

// ---- JSON ----

void write_json(const Report& report, std::ostream& out) {
  using nlohmann::json;
  json root;
  root["machine"] = report.machine;
  root["kernel"] = report.kernel;
  root["file_system"] = report.file_system;
  root["date"] = report.date;
  root["seconds"] = report.seconds;
  root["rounds"] = report.rounds;
  for (const DaemonSpec& spec : report.daemons)
    root["daemons"].push_back({{"name", spec.name}, {"command", spec.command}});
  const auto one = [](const Run& run) {
    return json{{"ops_per_second", run.ops}, {"p50_us", run.p50},
                {"p99_us", run.p99},         {"p999_us", run.p999},
                {"cpu_us_per_op", run.cpu},  {"driver_cpu_us_per_op", run.driver_cpu},
                {"memory_mb", run.memory},   {"descriptors", run.descriptors}};
  };
  root["cells"] = json::array();
  for (const Cell& cell : report.cells) {
    json entry{
        {"case", cell.row->name}, {"what", cell.row->what}, {"setting", cell.setting.name()}};
    for (const auto& [name, runs] : cell.runs) {
      if (const auto middle = cell.median(name)) entry["median"][name] = one(*middle);
      for (const Run& run : runs) entry["runs"][name].push_back(one(run));
    }
    for (const auto& [name, why] : cell.failures) entry["failures"][name] = why;
    const Verdict verdict = judge(report, cell);
    entry["verdict"] = {{"ratio", verdict.ratio},
                        {"wanted", verdict.wanted},
                        {"limit", verdict.limit},
                        {"speed_held", verdict.speed_held()},
                        {"cpu_ratio", verdict.cpu_ratio},
                        {"cpu_wanted", verdict.cpu_wanted},
                        {"cpu_limit", verdict.cpu_limit},
                        {"cpu_held", verdict.cpu_held()},
                        {"native_ratio", verdict.native_ratio},
                        {"native_wanted", verdict.native_wanted},
                        {"beyond_floor", verdict.beyond_floor},
                        {"floor_wanted", verdict.floor_wanted},
                        {"latency_held", verdict.latency_held()}};
    root["cells"].push_back(std::move(entry));
  }
  root["facts"] = json::array();
  for (const Fact& fact : report.facts.all()) {
    root["facts"].push_back({{"experiment", fact.experiment},
                             {"metric", fact.metric},
                             {"unit", fact.unit},
                             {"values", fact.values},
                             {"notes", fact.notes}});
  }
  out << root.dump(1) << '\n';
}

// ---- HTML ----

namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --faint: #777; --line: #ddd;
  --c0: #1667c7; --c1: #d9822b; --c2: #8a8d91; --c3: #b0509c; --c4: #3a9a5b; --c5: #a08c2f; }
@media (prefers-color-scheme: dark) { :root { --back: #16181b; --text: #e6e6e6; --faint: #999;
  --line: #333; --c0: #5ba2f0; --c1: #eba35c; --c2: #9a9da1; --c3: #d385c3; --c4: #6cc48a; --c5: #c9b458; } }
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.faint, .faint { color: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; font-size: 13px; }
td, th { padding: 2px 10px; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
.bad { color: #c0392b; font-weight: 600; }
svg { width: 100%; height: auto; } svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .faint { fill: var(--faint); } svg .line { stroke: var(--line); }
.key span { display: inline-block; margin-right: 1.2em; } .key i { display: inline-block; width: .8em;
  height: .8em; border-radius: 2px; margin-right: .4em; }
)";

struct Bar {
  std::string label;
  std::vector<std::optional<double>> values;  // in the order of the key
  std::optional<double> mark;                 // a target, as a tick across the bars
};

std::string color(std::size_t index) {
  return fmt::format("var(--c{})", index % 6);
}

// Horizontal bars, a group for each label, on one linear axis from 0.
void write_bars(std::ostream& out, const std::vector<Bar>& bars, const char* axis) {
  if (bars.empty()) return;
  double most = 1;
  for (const Bar& bar : bars) {
    for (const auto& value : bar.values) most = std::max(most, value.value_or(0));
    most = std::max(most, bar.mark.value_or(0));
  }
  most = std::min(most, 6.0);
  const double left = 190;
  const double width = 680;
  const double thick = 9;
  const auto x = [&](double value) { return left + std::min(value, most) / most * width; };
  double height = 24;
  for (const Bar& bar : bars) height += static_cast<double>(bar.values.size()) * (thick + 1) + 10;
  out << fmt::format("<svg viewBox=\"0 0 940 {:.0f}\" role=\"img\" aria-label=\"{}\">\n",
                     height + 20, axis);
  for (double tick = 0; tick <= most; tick += most > 3 ? 1 : 0.5) {
    out << fmt::format(
        "<line class=\"line\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"16\" y2=\"{1:.0f}\"/>"
        "<text class=\"faint\" x=\"{0:.1f}\" y=\"11\" text-anchor=\"middle\">{2:g}</text>\n",
        x(tick), height, tick);
  }
  double y = 24;
  for (const Bar& bar : bars) {
    const double top = y;
    for (std::size_t i = 0; i < bar.values.size(); ++i, y += thick + 1) {
      if (!bar.values[i]) continue;
      out << fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\" fill=\"{}\"/>"
          "<text class=\"faint\" x=\"{:.1f}\" y=\"{:.1f}\" style=\"font-size:9px\">{:.2f}</text>\n",
          left, y, std::max(1.0, x(*bar.values[i]) - left), thick, color(i), x(*bar.values[i]) + 3,
          y + thick - 1, *bar.values[i]);
    }
    out << fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", left - 8,
                       (top + y) / 2 + 3, escaped(bar.label));
    if (bar.mark)
      out << fmt::format(
          "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" "
          "stroke=\"#c0392b\" stroke-width=\"2\"/>\n",
          x(*bar.mark), top - 2, y + 1);
    y += 10;
  }
  out << fmt::format("<text class=\"faint\" x=\"{}\" y=\"{:.0f}\">{}</text>\n</svg>\n", left,
                     height + 14, axis);
}

void write_key(std::ostream& out, const std::vector<std::string>& names) {
  out << "<p class=\"key\">";
  for (std::size_t i = 0; i < names.size(); ++i)
    out << fmt::format("<span><i style=\"background:{}\"></i>{}</span>", color(i),
                       escaped(names[i]));
  out << "<span class=\"faint\">red: what is wanted</span></p>\n";
}

}  // namespace

void write_html(const Report& report, std::ostream& out) {
  const std::vector<std::string> names = names_of(report);
  out << "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
         "content=\"width=device-width\"><title>virtiofsd compared</title><style>"
      << kStyle << "</style></head><body>\n<h1>virtiofsd compared</h1>\n";
  out << fmt::format("<p class=\"faint\">{}; {}; {}; {}. Medians of {} rounds of {} s each.</p>\n",
                     escaped(report.machine), escaped(report.kernel), escaped(report.file_system),
                     escaped(report.date), report.rounds, report.seconds);

  std::vector<Setting> settings;
  for (const Cell& cell : report.cells) {
    if (std::ranges::find(settings, cell.setting) == settings.end())
      settings.push_back(cell.setting);
  }
  for (const Setting& setting : settings) {
    std::vector<Bar> speed;
    std::vector<Bar> cpu;
    std::vector<Bar> latency;
    std::vector<std::string> with_native = names;
    with_native.emplace_back(kNative);
    std::vector<std::string> with_floor = names;
    with_floor.emplace_back(kFloor);
    for (const Cell& cell : report.cells) {
      if (!(cell.setting == setting)) continue;
      double best = 0;
      double least = 0;
      double soonest = 0;
      for (const std::string& name : names) {
        const auto run = cell.median(name);
        if (!run || (report.daemons.size() > 1 && !is_peer(report, name))) continue;
        best = std::max(best, run->ops);
        least = least == 0 ? run->cpu : std::min(least, run->cpu);
        soonest = soonest == 0 ? run->p99 : std::min(soonest, run->p99);
      }
      if (best == 0) {
        // No peer can do it: the daemon itself is the measure.
        const auto own = cell.median(names.front());
        if (!own) continue;
        best = own->ops;
        least = own->cpu;
        soonest = own->p99;
      }
      const auto over = [&](const std::vector<std::string>& columns, double Run::*field,
                            double unit) {
        std::vector<std::optional<double>> values;
        for (const std::string& name : columns) {
          const auto run = cell.median(name);
          values.push_back(run && unit > 0 ? std::optional{(*run).*field / unit} : std::nullopt);
        }
        return values;
      };
      const auto verdict = judge(report, cell);
      const std::string label{cell.row->name};
      const auto mark = [](double value) {
        return value > 0 ? std::optional{value} : std::nullopt;
      };
      speed.push_back({.label = label,
                       .values = over(with_native, &Run::ops, best),
                       .mark = mark(verdict.wanted)});
      cpu.push_back({.label = label,
                     .values = over(with_native, &Run::cpu, least),
                     .mark = mark(verdict.cpu_wanted)});
      latency.push_back(
          {.label = label, .values = over(with_floor, &Run::p99, soonest), .mark = std::nullopt});
    }
    out << fmt::format("<h2>{}: operations a second</h2>\n", setting.name());
    write_key(out, with_native);
    write_bars(out, speed, "over the best peer; longer is better");
    out << fmt::format("<h2>{}: CPU of the daemon for one operation</h2>\n", setting.name());
    write_key(out, with_native);
    write_bars(out, cpu, "over the best peer; shorter is better");
    out << fmt::format("<h2>{}: latency, p99</h2>\n", setting.name());
    write_key(out, with_floor);
    write_bars(out, latency, "over the best peer; shorter is better");
  }

  if (!report.cells.empty()) {
    out << "<h2>All numbers</h2>\n<div class=\"scroll\"><table><tr><th>case</th><th>setting</th>"
           "<th>daemon</th><th>ops/s</th><th>over best peer</th><th>wanted</th><th>p50 µs</th>"
           "<th>p99 µs</th><th>p99.9 µs</th><th>CPU µs/op</th><th>over best "
           "peer</th><th>wanted</th><th>memory MB</th><th>descriptors</th></tr>\n";
    for (const Cell& cell : report.cells) {
      const Verdict verdict = judge(report, cell);
      std::vector<std::string> all = names;
      all.emplace_back(kNative);
      all.emplace_back(kFloor);
      for (const std::string& name : all) {
        const auto run = cell.median(name);
        if (!run) continue;
        const bool judged = name == names.front();
        const auto told = [&](double value, bool good) {
          return judged && value > 0
                     ? fmt::format("<td{}>{:.2f}</td>", good ? "" : " class=\"bad\"", value)
                     : std::string("<td></td>");
        };
        out << fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
                           escaped(cell.row->name), cell.setting.name(), escaped(name),
                           quantity(run->ops));
        out << told(verdict.ratio, verdict.speed_held()) << told(verdict.wanted, true);
        out << fmt::format("<td>{}</td><td>{}</td><td>{}</td><td>{}</td>", quantity(run->p50),
                           quantity(run->p99), quantity(run->p999), quantity(run->cpu));
        out << told(verdict.cpu_ratio, verdict.cpu_held()) << told(verdict.cpu_wanted, true);
        const bool daemon = name != kNative && name != kFloor;
        out << (daemon
                    ? fmt::format("<td>{:.1f}</td><td>{:.0f}</td>", run->memory, run->descriptors)
                    : std::string("<td></td><td></td>"))
            << "</tr>\n";
      }
    }
    out << "</table></div>\n";
  }

  std::string before;
  for (const Fact& fact : report.facts.all()) {
    if (fact.experiment != before) {
      if (!before.empty()) out << "</table></div>\n";
      before = fact.experiment;
      out << fmt::format("<h2>{}</h2>\n<div class=\"scroll\"><table><tr><th>what</th><th>unit</th>",
                         escaped(fact.experiment));
      for (const std::string& name : names) out << fmt::format("<th>{}</th>", escaped(name));
      out << "<th>native</th></tr>\n";
    }
    out << fmt::format("<tr><td>{}</td><td>{}</td>", escaped(fact.metric), escaped(fact.unit));
    std::vector<std::string> all = names;
    all.emplace_back(kNative);
    for (const std::string& name : all) {
      const auto value = fact.values.find(name);
      const auto why = fact.notes.find(name);
      out << fmt::format("<td>{}</td>", value != fact.values.end() ? quantity(value->second)
                                        : why != fact.notes.end()  ? escaped(why->second)
                                                                   : std::string("-"));
    }
    out << "</tr>\n";
  }
  if (!before.empty()) out << "</table></div>\n";

  out << "<h2>The cases</h2>\n<ul>\n";
  for (const CaseRow& row : cases())
    out << fmt::format("<li><b>{}</b>: {}</li>\n", row.name, escaped(row.what));
  out << "</ul>\n<p class=\"faint\">dN: N operations in flight. qN: on N request queues. poll: the "
         "driver spins instead of sleeping. one: driver and daemon on one processor; apart: on one "
         "each; otherwise wherever the scheduler puts them. native: the same work by plain system "
         "calls in one thread. floor: the least that handing each request to another thread costs: "
         "by eventfd at depth 1, by a spinning ring where the driver polls; with more in flight "
         "the "
         "thread that answers spins, and the driver sleeps until it is told by "
         "eventfd.</p>\n</body></html>\n";
}

}  // namespace virtiofsd::bench
