// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Runs a fuzz target once on every file of the corpora named on the command
// line (files or directories), in the order of their names. Needs no fuzzer
// and any compiler, so what was found once is tested with every build.
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <vector>

#include "fuzz/input.h"

// Stands back for the target's own.
extern "C" __attribute__((weak)) int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  return 0;
}

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    std::error_code error;
    if (std::filesystem::is_directory(argv[i], error)) {
      for (const auto& entry : std::filesystem::directory_iterator(argv[i], error))
        files.push_back(entry.path());
    } else {
      files.emplace_back(argv[i]);
    }
    if (error) {
      ::fprintf(stderr, "replay: %s: %s\n", argv[i], error.message().c_str());
      return EXIT_FAILURE;
    }
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    ::fprintf(stderr, "replay: no inputs\n");
    return EXIT_FAILURE;
  }

  LLVMFuzzerInitialize(&argc, &argv);
  for (const auto& file : files) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) {
      ::fprintf(stderr, "replay: can't read %s\n", file.c_str());
      return EXIT_FAILURE;
    }
    const std::vector<char> text{std::istreambuf_iterator<char>(stream), {}};
    const std::vector<std::uint8_t> bytes(text.begin(), text.end());
    // Before it runs: the last name said is the one that went wrong.
    ::printf("%s\n", file.filename().c_str());
    ::fflush(stdout);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  ::printf("%zu inputs\n", files.size());
  return EXIT_SUCCESS;
}
