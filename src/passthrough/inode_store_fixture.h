// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// An InodeStore over a temporary directory, for the tests of its parts.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "passthrough/inode_store.h"
#include "sys/files.h"

namespace virtiofsd {

namespace fs = std::filesystem;

inline Name name_of(std::string_view text) {
  return std::move(Name::parse(text)).value();
}

// Birth times tell nothing on overlayfs, which a container has for /tmp.
inline std::string where_births_identify() {
  struct statfs fs {};
  const bool overlay = ::statfs("/tmp", &fs) == 0 && fs.f_type == OVERLAYFS_SUPER_MAGIC;
  return overlay ? "/dev/shm" : "/tmp";
}

class InodeStoreTest : public ::testing::Test {
 protected:
  InodeStoreTest() {
    std::string pattern = where_births_identify() + "/inode-store-XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    sys::set_proc_self_fd(UniqueFd{::open("/proc/self/fd", O_PATH | O_CLOEXEC)});
    open_store({});
  }
  ~InodeStoreTest() override {
    store_.reset();
    fs::remove_all(root_);
  }

  void open_store(InodeStore::Settings settings, UniqueFd root) {
    settings.max_inodes = 1U << 16;
    store_.reset();
    store_ = std::move(InodeStore::create(std::move(root), std::move(settings))).value();
  }
  void open_store(InodeStore::Settings settings) {
    open_store(std::move(settings),
               UniqueFd{::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)});
  }

  void make(const std::string& path, const std::string& text = "x") {
    std::ofstream(root_ / path) << text;
  }
  // Old enough that its identity lasts without a descriptor.
  static void let_settle() { ::usleep(150'000); }

  InodeRef root() { return std::move(store_->pin(NodeId{1})).value(); }
  Result<InodeRef> lookup(const InodeRef& directory, std::string_view name) {
    return store_->lookup(directory, name_of(name), 0, &stx_);
  }
  Result<InodeRef> lookup(std::string_view name) { return lookup(root(), name); }
  // A rename that was made.
  void follow(const InodeRef& from, Name name, const InodeRef& to, Name new_name, bool exchange) {
    store_->before_rename(from, name, to, new_name, exchange);
    store_->after_rename(from, name, to, new_name, exchange);
  }
  void limit_descriptors(std::uint32_t budget) {
    InodeStore::Settings settings;
    settings.descriptor_budget = budget;
    open_store(settings);
  }

  fs::path root_;
  std::unique_ptr<InodeStore> store_;
  struct statx stx_ {};
};

}  // namespace virtiofsd
