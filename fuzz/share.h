// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A directory to share, with links and a pipe in it, and beside it a marker that nobody may reach
// from there.
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "sys/fd.h"

namespace virtiofsd::fuzz {

inline constexpr std::string_view kSecret = "the guest must never read this";

class Share {
 public:
  Share() {
    // In memory where that is possible, unless $TMPDIR says otherwise.
    const bool in_memory = ::getenv("TMPDIR") == nullptr && ::access("/dev/shm", W_OK) == 0;
    std::string pattern =
        (in_memory ? "/dev/shm" : std::filesystem::temp_directory_path().string()) +
        "/fuzz-share-XXXXXX";
    CHECK(::mkdtemp(pattern.data()) != nullptr);
    top_ = pattern;
    CHECK(::mkdir(path("share").c_str(), 0777) == 0 && ::mkdir(path("outside").c_str(), 0777) == 0);
    CHECK(::chmod(path("share").c_str(), 0777) == 0);
    write(path("outside/marker"), kSecret);
    write(path("share/file"), "contents of the file");
    CHECK(::mkdir(path("share/dir").c_str(), 0777) == 0);
    write(path("share/dir/a"), "a in dir");
    static_cast<void>(::mkfifo(path("share/fifo").c_str(), 0666));
    link("share/way-out", "../outside/marker");
    link("share/way-out-abs", path("outside/marker"));
    link("share/dir/way-out", "../../outside");
    // Older than every other time of it, so that a first read would show.
    const std::array<timespec, 2> times = {timespec{.tv_sec = 1, .tv_nsec = 0},
                                           timespec{.tv_sec = 2, .tv_nsec = 0}};
    CHECK(::utimensat(AT_FDCWD, path("outside/marker").c_str(), times.data(), 0) == 0);
    before_ = look(path("outside/marker"));
    outside_ = look(path("outside"));
  }
  ~Share() {
    std::error_code error;
    std::filesystem::remove_all(top_, error);
    if (!error) return;
    // Not root, and the guest made a directory that its owner can't enter.
    using Walk = std::filesystem::recursive_directory_iterator;
    for (auto at = Walk(top_, error); !error && at != Walk(); at.increment(error)) {
      if (at->is_directory(error) && !at->is_symlink(error)) ::chmod(at->path().c_str(), 0700);
    }
    std::filesystem::remove_all(top_, error);
    CHECK(!error);
  }
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;

  std::string path(const std::string& relative) const { return top_ + "/" + relative; }

  void check_marker() const {
    const struct stat now = look(path("outside/marker"));
    CHECK(now.st_size == before_.st_size && now.st_mode == before_.st_mode);
    CHECK(now.st_uid == before_.st_uid && now.st_gid == before_.st_gid);
    CHECK(now.st_nlink == 1 && now.st_ino == before_.st_ino);
    for (const auto& [was, is] :
         {std::pair{before_.st_atim, now.st_atim}, std::pair{before_.st_mtim, now.st_mtim},
          std::pair{before_.st_ctim, now.st_ctim}}) {
      CHECK(was.tv_sec == is.tv_sec && was.tv_nsec == is.tv_nsec);
    }
    for (const auto& entry : std::filesystem::directory_iterator(path("outside"))) {
      const std::string name = entry.path().filename();
      CHECK(name == "marker" || name.starts_with("moved"));
    }
  }
  bool is_outside(std::uint64_t ino) const {
    return ino == before_.st_ino || ino == outside_.st_ino;
  }

 protected:
  void link(const std::string& relative, const std::string& target) const {
    (void)!::symlink(target.c_str(), path(relative).c_str());
  }

 private:
  static void write(const std::string& file, std::string_view text) {
    const UniqueFd fd{::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)};
    CHECK(fd &&
          ::write(fd.number(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }
  static struct stat look(const std::string& file) {
    struct stat out {};
    CHECK(::lstat(file.c_str(), &out) == 0);
    return out;
  }

  std::string top_;
  struct stat before_ {};
  struct stat outside_ {};
};

}  // namespace virtiofsd::fuzz
