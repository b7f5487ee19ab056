// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A directory of a test's own, with short words to fill and look at it by
// system calls. It is gone with everything in it when the object ends. A call
// that fails where a test can't go on ends the process with a sentence.
#pragma once

#include <sys/stat.h>

#include <string>
#include <string_view>
#include <vector>

namespace virtiofsd::guest {

class TempTree {
 public:
  // Under $TMPDIR or /tmp.
  TempTree();
  // Under `parent` instead, for a file system of the caller's choosing.
  explicit TempTree(const std::string& parent);
  TempTree(TempTree&& other) noexcept;
  TempTree& operator=(TempTree&&) = delete;
  TempTree(const TempTree&) = delete;
  TempTree& operator=(const TempTree&) = delete;
  ~TempTree();

  const std::string& root() const { return root_; }
  std::string path(std::string_view relative) const;

  void write(std::string_view relative, std::string_view content, mode_t mode = 0644) const;
  std::string read(std::string_view relative) const;
  void mkdir(std::string_view relative, mode_t mode = 0755) const;
  void symlink(std::string_view relative, const std::string& target) const;
  void fifo(std::string_view relative, mode_t mode = 0644) const;
  void chmod(std::string_view relative, mode_t mode) const;
  void chown(std::string_view relative, uid_t uid, gid_t gid) const;
  void remove(std::string_view relative) const;
  bool exists(std::string_view relative) const;  // a dangling symlink does
  struct stat stat(std::string_view relative) const;
  std::vector<std::string> list(std::string_view relative = "") const;  // sorted, no dots

 private:
  void make(const std::string& parent);
  std::string root_;
};

}  // namespace virtiofsd::guest
