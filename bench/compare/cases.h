// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What is measured: one row for each case, with the operation as the daemon
// sees it, the same work as plain system calls, and what we want to reach.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "bench/compare/engine.h"
#include "bench/compare/native.h"
#include "bench/compare/share.h"

namespace virtiofsd::bench {

inline constexpr std::uint32_t kMostReaddirBytes = 128U << 10;

struct CaseSettings {
  // Room of a READDIR: what glibc's readdir asks for. A multiple of 4096, at most
  // kMostReaddirBytes.
  std::uint32_t readdir_bytes = 32768;
  std::uint32_t uid = 0;
};

struct Target {
  double small_depth = 1.0;  // operations a second over the best peer's, below depth 4
  double depth = 1.0;        // the same at depth 4 and more
  double cpu = 1.0;          // CPU per operation over the best peer's
  double native = 0;         // operations a second over those of the plain system calls
};

struct CaseRow {
  std::string_view name;
  std::string_view what;
  std::uint32_t data_bytes;  // pages a worker needs
  Turns turns;               // of one operation; 0: many
  bool forgets;              // uses the high-priority queue
  unsigned most_depth;       // beyond, an operation takes too long
  bool quick;                // part of the smoke run
  Target target;
  std::unique_ptr<Case> (*make)(Share&, const CaseSettings&);
  Native (*native)(Share&);
  bool on_request =
      false;  // not one of "all": it needs a share on a disk and daemons set up for it
};

// Listings of a directory, to the end each.
std::unique_ptr<Case> make_listing(const std::string& directory, bool plus,
                                   const CaseSettings& settings);

std::span<const CaseRow> cases();
const CaseRow* find_case(std::string_view name);

}  // namespace virtiofsd::bench
