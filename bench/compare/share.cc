// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "bench/compare/share.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "sys/fd.h"

namespace virtiofsd::bench {
namespace {

void must(bool done, const std::string& what) {
  if (done) return;
  std::fprintf(stderr, "compare: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

UniqueFd make_directory(const std::string& path) {
  must(mkdir(path.c_str(), 0777) == 0, "mkdir " + path);
  UniqueFd fd{open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  must(static_cast<bool>(fd), "open " + path);
  fchmod(fd.number(), 0777);
  return fd;
}

void write_bytes(FdRef fd, std::uint64_t bytes) {
  std::vector<char> block(1U << 20);
  std::uint32_t state = 12345;
  for (char& c : block) c = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  for (std::uint64_t done = 0; done < bytes;) {
    const std::size_t step = std::min<std::uint64_t>(block.size(), bytes - done);
    const ssize_t written = write(fd.number(), block.data(), step);
    must(written > 0, "write");
    done += static_cast<std::uint64_t>(written);
  }
}

void make_files(FdRef directory, std::uint64_t count, std::uint64_t bytes) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const FileName name{i};
    const UniqueFd fd{
        openat(directory.number(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)};
    must(static_cast<bool>(fd), std::string("create ") + name.c_str());
    fchmod(fd.number(), 0666);
    if (bytes > 0) write_bytes(fd, bytes);
  }
}

}  // namespace

FileName::FileName(std::uint64_t number, char first) : text_{} {
  text_[0] = first;
  for (std::size_t i = 7; i > 0; --i, number /= 10) text_[i] = static_cast<char>('0' + number % 10);
}

std::string Share::files(const std::string& directory, std::uint64_t count, std::uint64_t bytes) {
  if (!tree_.exists(directory)) make_files(make_directory(path(directory)), count, bytes);
  return directory;
}

std::string Share::fresh() {
  return files("fresh", 0);
}
std::string Share::renamed() {
  return files("renamed", kMostWorkers);
}
std::string Share::synced() {
  return files("synced", kMostWorkers, 64U << 10);
}

std::string Share::data(const std::string& name, std::uint64_t bytes) {
  if (tree_.exists(name)) return name;
  const UniqueFd fd{open(path(name).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)};
  must(static_cast<bool>(fd), "create " + name);
  fchmod(fd.number(), 0666);
  write_bytes(fd, bytes);
  return name;
}
std::string Share::random_file() {
  return data("random", sizes_.random_bytes);
}
std::string Share::stream_file() {
  return data("stream", sizes_.stream_bytes);
}

std::string Share::tree() {
  if (tree_.exists("tree")) return "tree";
  make_files(make_directory(path("tree")), sizes_.files, 0);
  for (std::uint64_t outer = 0; outer < sizes_.folders; ++outer) {
    const std::string folder = path("tree/") + FileName(outer, 'd').c_str();
    make_files(make_directory(folder), sizes_.files, 0);
    for (std::uint64_t inner = 0; inner < sizes_.folders; ++inner)
      make_files(make_directory(folder + "/" + FileName(inner, 'd').c_str()), sizes_.files, 0);
  }
  return "tree";
}

std::string Share::scale(std::uint64_t count) {
  if (!tree_.exists("scale")) make_directory(path("scale"));
  for (std::uint64_t i = 0; i < (count + kScaleDirectory - 1) / kScaleDirectory; ++i)
    files(std::string("scale/") + FileName(i).c_str(), kScaleDirectory);
  return "scale";
}

}  // namespace virtiofsd::bench
