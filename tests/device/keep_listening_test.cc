// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One client after the other.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "tests/device/succession_fixture.h"

namespace virtiofsd::guest {
namespace {

using std::chrono::seconds;

class KeepListening : public SuccessionFixture {};
INSTANTIATE_DEVICE_TEST(KeepListening);

TEST_P(KeepListening, EachClientBeginsAnew) {
  start_up({"--keep-listening", "-o", "posix_lock"});
  if (HasFatalFailure()) return;
  expect_exit(false);
  tree().write("file", "inside");
  std::uint64_t descriptors = 0;
  for (int clients = 0; clients < 5; ++clients) {
    const std::uint64_t file = node("file");
    EXPECT_EQ(file & 0xffffffffU, 2U) << "nothing is left of the one before";
    const std::uint64_t handle = GET(fuse().open(file, O_RDWR)).fh;
    EXPECT_DONE(fuse().setlk(file, handle, 1, lock(F_WRLCK))) << "its locks are gone";
    EXPECT_EQ(GET(fuse().read(file, handle, 0, 10)), "inside");
    const std::uint64_t now = daemon().usage().descriptors;
    if (clients == 1) descriptors = now;
    if (clients > 1) {
      EXPECT_EQ(now, descriptors);
    }
    COME_ANEW();
    EXPECT_REFUSED(ESTALE, fuse().getattr(file));
    EXPECT_REFUSED(EBADF, fuse().read(kRoot, handle, 0, 10));
  }
  daemon().signal(SIGTERM);
  const auto status = daemon().wait(within(seconds(5)));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0);
  EXPECT_NE(::access(daemon().socket_path().c_str(), F_OK), 0);
}

TEST_P(KeepListening, AlsoAfterDeathsAndMessagesThatAreNone) {
  start_up({"--keep-listening"});
  if (HasFatalFailure()) return;
  expect_exit(false);
  tree().write("file", "inside");
  for (int clients = 0; clients < 3; ++clients) {
    const std::uint64_t file = node("file");
    KILL_WORKER();
    EXPECT_EQ(GET(fuse().getattr(file)).size, 6U);
    EXPECT_EQ(node("file"), file);
    COME_ANEW();
  }
  const std::array<std::byte, 64> rubbish{std::byte{0xff}};
  ASSERT_OK(vmm().send_raw(rubbish));
  COME_ANEW();
  EXPECT_EQ(GET(fuse().getattr(node("file"))).size, 6U);
}

}  // namespace
}  // namespace virtiofsd::guest
