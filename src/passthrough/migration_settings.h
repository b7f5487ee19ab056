// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#pragma once

#include <chrono>

namespace virtiofsd {

// How a guest goes to another host and comes from one.
struct MigrationSettings {
  bool by_handle = false;       // sends kernel file handles instead of names
  bool verify_handles = false;  // sends both; the receiver compares them
  bool confirm_paths = false;   // looks at every name before it is sent
  bool goes_on = false;         // without what can't be had: the guest gets errors for that
  // The sender lets go of its locks once its VMM has heard that all was sent.
  std::chrono::milliseconds patience_for_locks{5000};
};

}  // namespace virtiofsd
