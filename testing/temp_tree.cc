// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "testing/temp_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "sys/fd.h"

namespace virtiofsd::guest {
namespace {

void must(bool done, const char* what, const std::string& path) {
  if (done) return;
  std::fprintf(stderr, "TempTree: %s %s: %s\n", what, path.c_str(), std::strerror(errno));
  std::abort();
}

int remove_one(const char* path, const struct stat*, int, FTW*) {
  ::remove(path);
  return 0;  // what can't go must not keep the rest
}

}  // namespace

TempTree::TempTree() {
  const char* parent = std::getenv("TMPDIR");
  make(parent != nullptr && *parent != '\0' ? parent : "/tmp");
}
TempTree::TempTree(const std::string& parent) {
  make(parent);
}
TempTree::TempTree(TempTree&& other) noexcept : root_(std::exchange(other.root_, {})) {}

void TempTree::make(const std::string& parent) {
  root_ = parent + "/virtiofsd-test-XXXXXX";
  must(mkdtemp(root_.data()) != nullptr, "mkdtemp", root_);
  must(::chmod(root_.c_str(), 0755) == 0, "chmod", root_);
}

TempTree::~TempTree() {
  if (!root_.empty()) nftw(root_.c_str(), remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

std::string TempTree::path(std::string_view relative) const {
  return relative.empty() ? root_ : root_ + "/" + std::string(relative);
}

void TempTree::write(std::string_view relative, std::string_view content, mode_t mode) const {
  const std::string where = path(relative);
  const UniqueFd fd{
      ::open(where.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600)};
  must(fd.valid(), "open", where);
  must(::write(fd.number(), content.data(), content.size()) == static_cast<ssize_t>(content.size()),
       "write", where);
  must(::fchmod(fd.number(), mode) == 0, "fchmod", where);
}

std::string TempTree::read(std::string_view relative) const {
  const std::string where = path(relative);
  const UniqueFd fd{::open(where.c_str(), O_RDONLY | O_CLOEXEC)};
  must(fd.valid(), "open", where);
  std::string content;
  char piece[65536];
  for (;;) {
    const ssize_t got = ::read(fd.number(), piece, sizeof(piece));
    must(got >= 0, "read", where);
    if (got == 0) return content;
    content.append(piece, static_cast<std::size_t>(got));
  }
}

void TempTree::mkdir(std::string_view relative, mode_t mode) const {
  const std::string where = path(relative);
  must(::mkdir(where.c_str(), 0700) == 0, "mkdir", where);
  must(::chmod(where.c_str(), mode) == 0, "chmod", where);
}

void TempTree::symlink(std::string_view relative, const std::string& target) const {
  must(::symlink(target.c_str(), path(relative).c_str()) == 0, "symlink", path(relative));
}

void TempTree::fifo(std::string_view relative, mode_t mode) const {
  must(::mkfifo(path(relative).c_str(), mode) == 0, "mkfifo", path(relative));
}

void TempTree::chmod(std::string_view relative, mode_t mode) const {
  must(::chmod(path(relative).c_str(), mode) == 0, "chmod", path(relative));
}

void TempTree::chown(std::string_view relative, uid_t uid, gid_t gid) const {
  must(::lchown(path(relative).c_str(), uid, gid) == 0, "lchown", path(relative));
}

void TempTree::remove(std::string_view relative) const {
  must(::remove(path(relative).c_str()) == 0, "remove", path(relative));
}

bool TempTree::exists(std::string_view relative) const {
  struct stat found {};
  return ::lstat(path(relative).c_str(), &found) == 0;
}

struct stat TempTree::stat(std::string_view relative) const {
  struct stat found {};
  must(::lstat(path(relative).c_str(), &found) == 0, "lstat", path(relative));
  return found;
}

std::vector<std::string> TempTree::list(std::string_view relative) const {
  std::vector<std::string> names;
  DIR* directory = ::opendir(path(relative).c_str());
  must(directory != nullptr, "opendir", path(relative));
  while (const dirent* entry = ::readdir(directory)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  ::closedir(directory);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace virtiofsd::guest
