// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <spdlog/spdlog.h>
#include <syslog.h>
#include <unistd.h>

#include <atomic>
#include <memory>

namespace virtiofsd::log {
namespace {

std::atomic<Level> threshold{Level::kInfo};

spdlog::level::level_enum level_of(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarn:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
    case Level::kOff:
      break;
  }
  return spdlog::level::off;
}

std::shared_ptr<spdlog::logger> make_logger(Sink sink) {
  std::shared_ptr<spdlog::logger> logger;
  if (sink == Sink::kSyslog) {
    // LOG_DAEMON and the program's name, as QEMU's daemon does, so that existing filters match.
    auto to_syslog = std::make_shared<spdlog::sinks::syslog_sink_mt>(
        "virtiofsd", LOG_PID | LOG_NDELAY, LOG_DAEMON, false);
    logger = std::make_shared<spdlog::logger>("virtiofsd", std::move(to_syslog));
  } else {
    auto to_stderr = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    logger = std::make_shared<spdlog::logger>("virtiofsd", std::move(to_stderr));
    logger->set_pattern("[%Y-%m-%d %H:%M:%S.%e] %l: %v");
  }
  logger->set_level(spdlog::level::trace);
  logger->flush_on(spdlog::level::trace);
  return logger;
}

std::shared_ptr<spdlog::logger>& current() {
  static std::shared_ptr<spdlog::logger> logger = make_logger(Sink::kStderr);
  return logger;
}

}  // namespace

void configure(Sink sink, Level level) {
  // syslog(3) itself says nothing when nobody listens.
  const bool nobody_listens = sink == Sink::kSyslog && ::access("/dev/log", W_OK) != 0;
  current() = make_logger(nobody_listens ? Sink::kStderr : sink);
  threshold.store(level, std::memory_order_relaxed);
  if (nobody_listens) warn("there is no syslog here (/dev/log); logging to stderr");
}

// Relaxed: a level change may be seen a message late.
bool enabled(Level level) {
  return level >= threshold.load(std::memory_order_relaxed);
}

void write(Level level, std::string_view text) {
  current()->log(level_of(level), spdlog::string_view_t{text.data(), text.size()});
}

void flush() {
  current()->flush();
}

}  // namespace virtiofsd::log
