// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// For this room's tests: a Passthrough on a temporary directory and the words
// to ask it, without a device. The directory is reached from the host side by
// path, so a test can compare what the guest is told with what is there.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fuse/body.h"
#include "memory/shared_bytes.h"
#include "passthrough/passthrough.h"
#include "state/arena.h"
#include "state/plan.h"
#include "sys/process.h"

namespace virtiofsd {

class CountingScheduler final : public fuse::Scheduler {
 public:
  void about_to_block() override { blocks++; }
  void takes_turn(NodeId) override { turns++; }
  Result<> about_to_wait_for_lock() override { return {}; }
  void lock_wait_ended() override {}
  bool stopping() const override { return false; }

  int blocks = 0;
  int turns = 0;
};

// What `Body` gathered or the kernel put into "guest memory".
class Answer {
 public:
  explicit Answer(std::size_t room)
      : memory_(room),
        buffer_(room),
        piece_{.iov_base = memory_.data(), .iov_len = room},
        shared_(std::span{&piece_, 1}, room),
        body(shared_, buffer_) {}

  std::string data() const { return text(memory_, body.size()); }
  std::string gathered() const { return text(buffer_, body.size()); }

 private:
  static std::string text(const std::vector<std::byte>& bytes, std::size_t size) {
    std::string out(size, '\0');
    for (std::size_t i = 0; i < size; i++) out[i] = std::to_integer<char>(bytes[i]);
    return out;
  }
  std::vector<std::byte> memory_;
  std::vector<std::byte> buffer_;
  iovec piece_;
  SharedBytes shared_;

 public:
  fuse::Body body;
};

class PassthroughTest : public ::testing::Test {
 protected:
  PassthroughTest() {
    // TMPDIR chooses the file system that is tested on.
    std::string pattern = std::filesystem::temp_directory_path() / "passthrough-XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    ::chmod(root_.c_str(), 0777);
    session_.major = 7;
    session_.minor = 38;
    session_.flags = FUSE_CREATE_SUPP_GROUP;
    settings_.inodes.max_inodes = 1U << 16;
    settings_.max_handles = 1U << 10;
    settings_.xattr = true;
  }
  ~PassthroughTest() override {
    fs_.reset();
    std::filesystem::remove_all(root_);
  }

  // With the settings as they are now; the first use does it.
  Passthrough& fs() {
    if (!fs_) {
      auto made = Passthrough::create(
          UniqueFd{::open(root_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)}, settings_);
      EXPECT_TRUE(made) << made.error().text();
      fs_ = std::move(*made);
      fs_->thread_started();
      EXPECT_TRUE(fs_->init(session_));
    }
    return *fs_;
  }

  // Before the first use: what the file system keeps is for a successor, too.
  void keep_state() {
    settings_.inodes.arena =
        std::move(Arena::create(arena_plan(settings_.inodes.max_inodes))).value();
  }
  // The process dies, which destroys nothing, and another goes on with its descriptors.
  void succeed() {
    static auto& dead = *new std::vector<const Passthrough*>;
    dead.push_back(fs_.release());
    Passthrough::Settings settings = settings_;
    settings.inodes.take_over = true;
    auto made = Passthrough::create(
        UniqueFd{::open(root_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)}, std::move(settings));
    ASSERT_TRUE(made) << made.error().text();
    fs_ = std::move(*made);
    fs_->thread_started();
  }

  fuse::Call call(NodeId node = NodeId{1}, std::uint32_t uid = 0, std::uint32_t gid = 0) {
    return fuse::Call{.unique = 1,
                      .node = node,
                      .caller = {.uid = uid, .gid = gid, .pid = 1, .supplementary_group = {}},
                      .security = {},
                      .session = session_,
                      .scheduler = scheduler_};
  }
  // Served again after a process died that served it, which may have done it.
  fuse::Call again(NodeId node = NodeId{1}, std::uint32_t uid = 0, std::uint32_t gid = 0) {
    fuse::Call made = call(node, uid, gid);
    made.again = true;
    return made;
  }
  static Name name(std::string_view text) { return std::move(Name::parse(text)).value(); }

  std::string path(const std::string& relative) const { return root_ + "/" + relative; }
  void write_file(const std::string& relative, const std::string& text, mode_t mode = 0644) {
    std::ofstream(path(relative)) << text;
    ::chmod(path(relative).c_str(), mode);
  }
  std::string read_file(const std::string& relative) const {
    std::ostringstream out;
    out << std::ifstream(path(relative)).rdbuf();
    return out.str();
  }
  struct stat host(const std::string& relative) const {
    struct stat out {};
    EXPECT_EQ(::lstat(path(relative).c_str(), &out), 0) << relative;
    return out;
  }

  NodeId lookup(const std::string& text, NodeId directory = NodeId{1}) {
    auto c = call(directory);
    const auto found = fs().lookup(c, name(text));
    EXPECT_TRUE(found) << text << ": " << found.error().text();
    return NodeId{found ? found->nodeid : 0};
  }
  HandleId open(NodeId node, int flags) {
    auto c = call(node);
    const auto opened = fs().open(c, static_cast<std::uint32_t>(flags), 0);
    EXPECT_TRUE(opened) << opened.error().text();
    return HandleId{opened ? opened->fh : 0};
  }
  Result<std::uint32_t> write(NodeId node, HandleId handle, std::string text, std::uint64_t offset,
                              int flags = O_RDWR, std::uint32_t write_flags = 0,
                              std::uint32_t uid = 0, std::uint32_t gid = 0) {
    iovec piece{.iov_base = text.data(), .iov_len = text.size()};
    auto c = call(node, uid, gid);
    return fs().write(c,
                      {.handle = handle,
                       .offset = offset,
                       .size = static_cast<std::uint32_t>(text.size()),
                       .write_flags = write_flags,
                       .flags = static_cast<std::uint32_t>(flags)},
                      IoSpaceAccess::make(std::span{&piece, 1}, text.size()));
  }

  std::string root_;
  Passthrough::Settings settings_;
  fuse::Negotiated session_;
  CountingScheduler scheduler_;
  std::unique_ptr<Passthrough> fs_;
};

}  // namespace virtiofsd
