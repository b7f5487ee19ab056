// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "base/log.h"

#include <fmt/format.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

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

constexpr const char* kSyslog = "/dev/log";

int priority_of(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::trace:
    case spdlog::level::debug:
      return LOG_DEBUG;
    case spdlog::level::info:
      return LOG_INFO;
    case spdlog::level::warn:
      return LOG_WARNING;
    default:
      return LOG_ERR;
  }
}

// Not syslog(3): that closes its socket when nobody reads it any more, and supervisor and workers
// have one descriptor table, where the number means something else soon. This one is never closed;
// a new one could not be made inside the sandbox anyway.
class SyslogSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  SyslogSink() {
    struct sockaddr_un address {};
    address.sun_family = AF_UNIX;
    std::string_view{kSyslog}.copy(address.sun_path, sizeof address.sun_path - 1);
    const auto* to = static_cast<const struct sockaddr*>(static_cast<const void*>(&address));
    // Datagrams nearly everywhere.
    for (const int type : {SOCK_DGRAM, SOCK_STREAM}) {
      socket_ = ::socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
      if (socket_ < 0) return;
      if (::connect(socket_, to, sizeof address) == 0) {
        is_stream_ = type == SOCK_STREAM;
        return;
      }
      ::close(std::exchange(socket_, -1));
    }
  }
  bool connected() const { return socket_ >= 0; }

 protected:
  // As LOG_DAEMON and by the program's name, like QEMU's daemon, so that existing filters match.
  // (RFC 3164)
  void sink_it_(const spdlog::details::log_msg& message) override {
    const time_t now = spdlog::log_clock::to_time_t(message.time);
    struct tm local {};
    ::localtime_r(&now, &local);
    std::array<char, 32> stamp{};
    (void)::strftime(stamp.data(), stamp.size(), "%b %e %H:%M:%S", &local);
    const std::string line = fmt::format(
        "<{}>{} virtiofsd[{}]: {}", LOG_DAEMON | priority_of(message.level), stamp.data(),
        ::getpid(), std::string_view{message.payload.data(), message.payload.size()});
    // Lost if nobody reads it, or not fast enough.
    const std::size_t size = line.size() + (is_stream_ ? 1 : 0);  // there a NUL ends each
    (void)!::send(socket_, line.c_str(), size, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  void flush_() override {}

 private:
  int socket_ = -1;
  bool is_stream_ = false;
};

// Null where there is no syslog.
std::shared_ptr<spdlog::logger> make_logger(Sink sink) {
  std::shared_ptr<spdlog::logger> logger;
  if (sink == Sink::kSyslog) {
    auto to_syslog = std::make_shared<SyslogSink>();
    if (!to_syslog->connected()) return nullptr;
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
  std::shared_ptr<spdlog::logger> logger = make_logger(sink);
  const bool nobody_listens = logger == nullptr;
  current() = nobody_listens ? make_logger(Sink::kStderr) : std::move(logger);
  threshold.store(level, std::memory_order_relaxed);
  if (nobody_listens) warn("there is no syslog here ({}); logging to stderr", kSyslog);
}

// Relaxed: a level change may be seen a message late.
bool enabled(Level level) {
  return level >= threshold.load(std::memory_order_relaxed);
}

void write(Level level, std::string_view text) {
  std::string line{text};
  std::ranges::replace_if(
      line, [](char c) { return (c >= '\0' && c < ' ') || c == '\x7f'; }, '?');
  current()->log(level_of(level), spdlog::string_view_t{line.data(), line.size()});
}

void flush() {
  current()->flush();
}

}  // namespace virtiofsd::log
