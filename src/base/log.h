// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One log, to stderr or syslog, with levels. Any thread. Messages are for the
// operator: a sentence that says what and why. Request and reply lines go out
// at debug only; `enabled(Level::kDebug)` is a plain load, cheap on the hot path. Words of others
// may be in them (paths, what another process says): what would steer a terminal is written as '?'.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string_view>

namespace virtiofsd::log {

enum class Level : std::uint8_t { kDebug, kInfo, kWarn, kError, kOff };
enum class Sink : std::uint8_t { kStderr, kSyslog };

// Call before threads start; may be called again to change either.
void configure(Sink sink, Level level);
bool enabled(Level level);
void write(Level level, std::string_view text);
void flush();

template <typename... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kDebug))
    write(Level::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kInfo)) write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kWarn)) write(Level::kWarn, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kError))
    write(Level::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace virtiofsd::log
