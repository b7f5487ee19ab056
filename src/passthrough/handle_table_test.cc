// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "passthrough/handle_table.h"
#include "passthrough/inode_store_fixture.h"

namespace virtiofsd {
namespace {

class HandleTableTest : public InodeStoreTest {
 protected:
  UniqueFd open_null() { return UniqueFd{::open("/dev/null", O_RDONLY | O_CLOEXEC)}; }
};

TEST_F(HandleTableTest, AHandleBelongsToItsNodeAndKind) {
  make("a");
  make("b");
  HandleTable table{*store_, 10};
  const NodeId a = lookup("a")->id();
  const NodeId b = lookup("b")->id();
  const HandleId id = *table.insert(HandleKind::kFile, *store_->pin(a), open_null(), O_RDONLY);
  EXPECT_TRUE(table.find(id, HandleKind::kFile, a));
  EXPECT_EQ(table.find(id, HandleKind::kFile, b).error(), Errno{EBADF});
  EXPECT_EQ(table.find(id, HandleKind::kDirectory, a).error(), Errno{EBADF});
  EXPECT_EQ(table.find(HandleId{id.value + 1}, HandleKind::kFile, a).error(), Errno{EBADF});
}

TEST_F(HandleTableTest, AReleasedHandleKeepsItsDescriptorWhileACallUsesIt) {
  HandleTable table{*store_, 10};
  const HandleId id = *table.insert(HandleKind::kFile, root(), open_null(), O_RDONLY);
  HandleRef used = *table.find(id, HandleKind::kFile);
  const int number = used.fd().number();
  ASSERT_TRUE(table.release(id, HandleKind::kFile, NodeId{1}));
  EXPECT_EQ(table.find(id, HandleKind::kFile).error(), Errno{EBADF});
  EXPECT_EQ(table.release(id, HandleKind::kFile, NodeId{1}).error(), Errno{EBADF});
  EXPECT_GE(::fcntl(number, F_GETFD), 0);
  used = HandleRef{};
  EXPECT_EQ(::fcntl(number, F_GETFD), -1);
}

TEST_F(HandleTableTest, TooManyHandlesIsEnfile) {
  HandleTable table{*store_, 2};
  ASSERT_TRUE(table.insert(HandleKind::kFile, root(), open_null(), O_RDONLY));
  ASSERT_TRUE(table.insert(HandleKind::kFile, root(), open_null(), O_RDONLY));
  EXPECT_EQ(table.insert(HandleKind::kFile, root(), open_null(), O_RDONLY).error(), Errno{ENFILE});
  table.clear();
  EXPECT_EQ(table.count(), 0U);
}

}  // namespace
}  // namespace virtiofsd
