// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The directory that every daemon shares in turn, with all that the cases need
// in it. Parts are made when first asked for and are the same for everyone;
// what a case changes it puts back. Everything is open to every user. Gone
// when the object ends.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "testing/temp_tree.h"

namespace virtiofsd::bench {

// "f0000042": names of equal length, so that all cost the same.
class FileName {
 public:
  explicit FileName(std::uint64_t number, char first = 'f');
  const char* c_str() const { return text_.data(); }
  std::string_view view() const { return {text_.data(), 8}; }
  static constexpr std::uint32_t kBytesWithNul = 9;

 private:
  std::array<char, 9> text_;
};

struct ShareSizes {
  std::uint64_t hot = 1000;                  // names looked up again and again
  std::uint64_t cold = 16384;                // names looked up and forgotten; 64 a worker
  std::uint64_t many = 100'000;              // the large directory
  std::uint64_t random_bytes = 64ULL << 20;  // the file read and written at random
  std::uint64_t stream_bytes = 256ULL << 20;
  // Tree: `folders` in the root, `folders` in each of them, `files` in every one.
  std::uint64_t folders = 10;
  std::uint64_t files = 20;
  std::uint64_t scale = 1'000'000;  // files of the scale experiment, 1000 a directory
  std::uint64_t huge = 1'000'000;   // entries of its one large directory
};

class Share {
 public:
  static constexpr unsigned kMostWorkers = 256;
  static constexpr std::uint64_t kScaleDirectory = 1000;

  Share(const std::string& parent, const ShareSizes& sizes) : sizes_(sizes), tree_(parent) {}

  const ShareSizes& sizes() const { return sizes_; }
  const std::string& root() const { return tree_.root(); }
  std::string path(std::string_view relative) const { return tree_.path(relative); }

  // Each makes its part once and says its name, relative to root().
  std::string hot() { return files("hot", sizes_.hot); }
  std::string cold() { return files("cold", sizes_.cold); }
  std::string many() { return files("many", sizes_.many); }
  std::string huge() { return files("huge", sizes_.huge); }
  std::string fresh();    // an empty directory to create in
  std::string renamed();  // one file for each worker
  std::string synced();   // one file of 64 KiB for each worker
  std::string tree();
  std::string random_file();  // random_bytes of data
  std::string stream_file();  // stream_bytes
  // `count` files in directories of kScaleDirectory: "scale/f0000000/f0000000".
  std::string scale(std::uint64_t count);

 private:
  std::string files(const std::string& directory, std::uint64_t count, std::uint64_t bytes = 0);
  std::string data(const std::string& name, std::uint64_t bytes);

  const ShareSizes sizes_;
  guest::TempTree tree_;
};

}  // namespace virtiofsd::bench
