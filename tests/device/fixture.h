// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A daemon on a temporary tree with a front-end and a FUSE session on it, for
// tests of the real binary. Every test ends by checking that no rule of ring or
// protocol was broken and that the daemon leaves in an orderly way.
//
// $VIRTIOFSD names another daemon to test; what a foreign one is known to lack
// is skipped by ours_only().
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "testing/daemon_process.h"
#include "testing/front_end.h"
#include "testing/fuse_client.h"
#include "testing/temp_tree.h"

namespace virtiofsd::guest {

// Prints as the errno's name and value in failure messages.
struct Outcome {
  int error = 0;
  friend bool operator==(Outcome, Outcome) = default;
};
void PrintTo(const Outcome& outcome, std::ostream* out);

template <typename T>
Outcome outcome(const Result<T>& result) {
  return {result ? 0 : result.error().value()};
}

#define EXPECT_DONE(...) \
  EXPECT_EQ(::virtiofsd::guest::outcome(__VA_ARGS__), (::virtiofsd::guest::Outcome{0}))
#define EXPECT_REFUSED(errno_value, ...) \
  EXPECT_EQ(::virtiofsd::guest::outcome(__VA_ARGS__), (::virtiofsd::guest::Outcome{errno_value}))
// The value of a Result; on an error the test fails and goes on with a zero value.
template <typename T>
T value_of(Result<T> result, const char* expression) {
  EXPECT_EQ(outcome(result), Outcome{0}) << expression;
  return result ? std::move(result).value() : T{};
}
#define GET(...) ::virtiofsd::guest::value_of(__VA_ARGS__, #__VA_ARGS__)
// For Result<T, Failure>: leaves the function with the sentence.
#define ASSERT_OK(...)                                  \
  do {                                                  \
    auto ok_result = (__VA_ARGS__);                     \
    ASSERT_TRUE(ok_result) << ok_result.error().text(); \
  } while (false)

// A DeviceFixture's start(), and out of the test when it didn't work.
#define START(...)                                \
  do {                                            \
    start(__VA_ARGS__);                           \
    if (HasFatalFailure() || IsSkipped()) return; \
  } while (false)

struct RingShape {
  const char* name;
  RingOptions options;
};
void PrintTo(const RingShape& shape, std::ostream* out);
// The shapes every operation is tested on.
std::vector<RingShape> ring_shapes();
std::string shape_name(const ::testing::TestParamInfo<RingShape>& info);

class DeviceFixture : public ::testing::Test {
 protected:
  // Arguments after socket and directory; the ring options of `vmm` are used as they are.
  void start(std::vector<std::string> arguments = {}, FrontEndOptions vmm = {},
             bool with_session = true, FuseQueueOptions queue = {});
  // A daemon only, for tests that do the conversation themselves.
  void start_daemon(std::vector<std::string> arguments = {}, bool connect = true);
  void TearDown() override;

  // Skips the test for a daemon that isn't ours. Call as `if (foreign("why")) GTEST_SKIP() ...`.
  bool foreign() const;
  // Whether the tree is on overlayfs, as in a container, which has no birth times to tell files by.
  bool on_overlay() const;
  // Arguments as this kind of daemon spells them: an `-o` item.
  static std::vector<std::string> option(const std::string& item) { return {"-o", item}; }

  TempTree& tree() { return tree_; }
  DaemonProcess& daemon() { return *daemon_; }
  FrontEnd& vmm() { return *front_end_; }
  FuseClient& fuse() { return *client_; }
  // A file made by a system call, looked up through the daemon.
  std::uint64_t node(std::string_view path);
  // Expect the daemon's exit by itself to be something else than success.
  void expect_exit(bool expected) { expect_orderly_exit_ = expected; }

  static constexpr std::uint64_t kRoot = FuseClient::kRoot;
  static constexpr std::uint64_t kNoNode = 0x7777'0000'0123ULL;
  static constexpr std::uint64_t kNoHandle = 0x6666'0000'0456ULL;

  TempTree tree_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<FrontEnd> front_end_;
  std::unique_ptr<FuseQueue> requests_, urgent_;
  std::unique_ptr<FuseClient> client_;
  bool expect_orderly_exit_ = true;
};

// The same on every ring shape.
class DeviceTest : public DeviceFixture, public ::testing::WithParamInterface<RingShape> {
 protected:
  void SetUp() override;
};

#define INSTANTIATE_DEVICE_TEST(suite)                                                           \
  INSTANTIATE_TEST_SUITE_P(Rings, suite, ::testing::ValuesIn(::virtiofsd::guest::ring_shapes()), \
                           ::virtiofsd::guest::shape_name)

}  // namespace virtiofsd::guest
