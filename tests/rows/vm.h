// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A virtual machine in two words, for tests that need several at once: a
// daemon on a directory, a front-end and a FUSE session on it. The end of a Vm
// is the VMM hanging up; the daemon must then leave with success, and neither
// ring nor protocol may have been broken. What can't be set up ends the test's
// process with a sentence.
//
// Tests are named after the rows of the feature list: suite S12_timeout is row S12.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "testing/daemon_process.h"
#include "testing/front_end.h"
#include "testing/fuse_client.h"
#include "testing/temp_tree.h"
#include "tests/device/fixture.h"

namespace virtiofsd::guest {

struct VmOptions {
  std::uint64_t init_flags = FuseClient::kLinuxFlags;  // what the guest's kernel offers
  std::uint16_t ring_size = 256;
  bool indirect = false;
  unsigned slots = 16;          // requests at once
  bool gives_directory = true;  // --shared-dir=SHARE before the other arguments
};

class Vm {
 public:
  explicit Vm(const std::string& share, std::vector<std::string> arguments = {},
              VmOptions options = {});
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;
  ~Vm();

  FuseClient& operator*() const { return *client_; }
  FuseClient* operator->() const { return client_.get(); }
  DaemonProcess& daemon() const { return *daemon_; }
  // The process that serves.
  pid_t worker() const { return daemon_->tree().back(); }
  // The node of a path in the share, looked up.
  std::uint64_t node(std::string_view path) const;
  // The worker's threads at the first request queue.
  unsigned threads() const;
  // open(2) flags of the worker's descriptors of the file that `path` names on the host.
  std::vector<int> flags_of_open_files(const std::string& path) const;

 private:
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<FrontEnd> front_end_;
  std::unique_ptr<FuseQueue> requests_, urgent_;
  std::unique_ptr<FuseClient> client_;
};

class Row : public ::testing::Test {
 protected:
  void SetUp() override;

  static constexpr std::uint64_t kRoot = FuseClient::kRoot;
  const TempTree& tree() const { return tree_; }
  const std::string& share() const { return tree_.root(); }

 private:
  TempTree tree_;
};

#define ROW(name) \
  class name : public ::virtiofsd::guest::Row {}

}  // namespace virtiofsd::guest
