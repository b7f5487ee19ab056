// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "tests/device/fixture.h"

#include <linux/magic.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <ostream>

namespace virtiofsd::guest {

void PrintTo(const Outcome& outcome, std::ostream* out) {
  if (outcome.error == 0) {
    *out << "success";
  } else {
    *out << strerrorname_np(outcome.error) << " (" << outcome.error << ")";
  }
}

void PrintTo(const RingShape& shape, std::ostream* out) {
  *out << shape.name;
}

std::vector<RingShape> ring_shapes() {
  return {{.name = "Split", .options = {.size = 128}},
          {.name = "Packed", .options = {.size = 128, .packed = true, .event_idx = true}},
          {.name = "SplitIndirectEventIdx",
           .options = {.size = 256, .event_idx = true, .indirect = true}}};
}

std::string shape_name(const ::testing::TestParamInfo<RingShape>& info) {
  return info.param.name;
}

bool DeviceFixture::foreign() const {
  return DaemonProcess::kind_of(DaemonProcess::default_binary()) != DaemonKind::kOurs;
}

bool DeviceFixture::on_overlay() const {
  struct statfs fs {};
  return ::statfs(tree_.root().c_str(), &fs) == 0 && fs.f_type == OVERLAYFS_SUPER_MAGIC;
}

void DeviceFixture::start_daemon(std::vector<std::string> arguments, bool connect) {
  DaemonOptions options;
  options.shared_directory = tree_.root();
  options.arguments = std::move(arguments);
  options.connect = connect;
  auto daemon = DaemonProcess::start(std::move(options));
  ASSERT_TRUE(daemon) << daemon.error().text();
  daemon_ = std::move(daemon).value();
}

void DeviceFixture::start(std::vector<std::string> arguments, FrontEndOptions vmm,
                          bool with_session, FuseQueueOptions queue) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root: the daemon acts as other users";
  start_daemon(std::move(arguments));
  if (HasFatalFailure()) return;
  auto front_end = FrontEnd::adopt(daemon_->take_connection(), std::move(vmm));
  ASSERT_TRUE(front_end) << front_end.error().text();
  front_end_ = std::move(front_end).value();
  const auto ready = front_end_->set_up();
  if (!ready && foreign() && front_end_->missing_features() != 0) {
    GTEST_SKIP() << "this daemon has no such rings: " << ready.error().text();
  }
  ASSERT_TRUE(ready) << ready.error().text();
  requests_ = std::make_unique<FuseQueue>(*front_end_, 1, queue);
  urgent_ = std::make_unique<FuseQueue>(
      *front_end_, 0, FuseQueueOptions{.slots = 4, .data_bytes = 0, .patience = queue.patience});
  client_ = std::make_unique<FuseClient>(*requests_, *urgent_);
  if (with_session) {
    const auto session = client_->init();
    ASSERT_TRUE(session) << "INIT: " << session.error().text();
  }
}

void DeviceFixture::TearDown() {
  if (client_) {
    for (const std::string& violation : client_->violations()) ADD_FAILURE() << violation;
  }
  if (front_end_) front_end_->close();
  if (daemon_) {
    if (front_end_ && expect_orderly_exit_ && daemon_->running()) {
      const auto status = daemon_->wait(within(std::chrono::seconds(5)));
      if (!status) {
        ADD_FAILURE() << "the daemon stays when its client has left";
      } else {
        EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0)
            << "the daemon ended with wait status " << *status;
      }
    }
    daemon_->kill();
    if (HasFailure()) std::fprintf(stderr, "daemon said:\n%s\n", daemon_->output().c_str());
  }
}

std::uint64_t DeviceFixture::node(std::string_view path) {
  const auto entry = client_->walk(path);
  EXPECT_TRUE(entry) << "LOOKUP of " << path << ": " << entry.error().text();
  return entry ? entry->nodeid : 0;
}

void DeviceTest::SetUp() {
  FrontEndOptions vmm;
  vmm.ring = GetParam().options;
  start({"-o", "xattr"}, vmm);
}

}  // namespace virtiofsd::guest
