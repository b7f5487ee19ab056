// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, plain, mapped and switched off.
#include <fcntl.h>
#include <sys/xattr.h>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {
namespace {

class Xattrs : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    tree().write("file", "");
    if (setxattr(tree().path("file").c_str(), "user.probe", "1", 1, 0) != 0)
      GTEST_SKIP() << "this file system has no user attributes";
    removexattr(tree().path("file").c_str(), "user.probe");
  }
  std::string host(const char* name, const char* path = "file") {
    char value[256];
    const ssize_t size = lgetxattr(tree().path(path).c_str(), name, value, sizeof(value));
    return size < 0 ? "(none)" : std::string(value, static_cast<std::size_t>(size));
  }
};
INSTANTIATE_DEVICE_TEST(Xattrs);

TEST_P(Xattrs, SetGetListAndRemove) {
  const std::uint64_t file = node("file");
  EXPECT_DONE(fuse().setxattr(file, "user.name", "value"));
  EXPECT_EQ(host("user.name"), "value");
  EXPECT_EQ(GET(fuse().getxattr_size(file, "user.name")), 5U);
  EXPECT_EQ(GET(fuse().getxattr(file, "user.name", 64)), "value");
  const std::string list = GET(fuse().listxattr(file, 1024));
  EXPECT_NE(list.find(std::string("user.name\0", 10)), std::string::npos);
  EXPECT_EQ(GET(fuse().listxattr_size(file)), list.size());
  EXPECT_DONE(fuse().removexattr(file, "user.name"));
  EXPECT_EQ(host("user.name"), "(none)");
}

TEST_P(Xattrs, SetxattrKnowsCreateAndReplace) {
  const std::uint64_t file = node("file");
  EXPECT_REFUSED(ENODATA, fuse().setxattr(file, "user.x", "1", XATTR_REPLACE));
  EXPECT_DONE(fuse().setxattr(file, "user.x", "1", XATTR_CREATE));
  EXPECT_REFUSED(EEXIST, fuse().setxattr(file, "user.x", "2", XATTR_CREATE));
  EXPECT_DONE(fuse().setxattr(file, "user.x", "", XATTR_REPLACE));
  EXPECT_EQ(host("user.x"), "");
}

TEST_P(Xattrs, GetxattrRefusesWhatItShould) {
  const std::uint64_t file = node("file");
  EXPECT_DONE(fuse().setxattr(file, "user.long", std::string(100, 'v')));
  EXPECT_REFUSED(ERANGE, fuse().getxattr(file, "user.long", 10));
  EXPECT_REFUSED(ENODATA, fuse().getxattr(file, "user.none", 10));
  EXPECT_FALSE(fuse().getxattr(kNoNode, "user.long", 100));
  EXPECT_FALSE(fuse().getxattr_size(file, "nonsense"));
  EXPECT_FALSE(fuse().getxattr_size(file, ""));
}

TEST_P(Xattrs, ListxattrRefusesTooLittleRoom) {
  const std::uint64_t file = node("file");
  EXPECT_DONE(fuse().setxattr(file, "user.a-rather-long-name", "v"));
  EXPECT_REFUSED(ERANGE, fuse().listxattr(file, 4));
  EXPECT_FALSE(fuse().listxattr(kNoNode, 100));
}

TEST_P(Xattrs, RemovexattrOfNothingIsRefused) {
  EXPECT_REFUSED(ENODATA, fuse().removexattr(node("file"), "user.none"));
  EXPECT_FALSE(fuse().removexattr(kNoNode, "user.none"));
}

TEST_P(Xattrs, SetxattrRefusesWhatItShould) {
  const std::uint64_t file = node("file");
  EXPECT_FALSE(fuse().setxattr(kNoNode, "user.x", "1"));
  EXPECT_FALSE(fuse().setxattr(file, std::string("user.") + std::string(300, 'n'), "1"));
  EXPECT_FALSE(fuse().setxattr(file, "user.x", "1", 0xff00));
  if (foreign()) return;
  fuse_setxattr_in in{};
  in.size = 60000;
  const std::size_t head = fuse().has(FUSE_SETXATTR_EXT) ? 16 : 8;
  const std::string rest("user.x\0v", 8);
  EXPECT_EQ(
      fuse()
          .call(FUSE_SETXATTR, file, {bytes_of(in).first(head), std::as_bytes(std::span{rest})}, 0)
          .error,
      EINVAL);
}

TEST_P(Xattrs, AttributesOfSymlinksAreTheSymlinksOwn) {
  tree().symlink("link", "file");
  const auto set = fuse().setxattr(node("link"), "user.on-link", "v");
  EXPECT_FALSE(set);  // Linux has no user attributes on symlinks
  EXPECT_EQ(host("user.on-link", "file"), "(none)");
  const auto trusted = fuse().setxattr(node("link"), "trusted.on-link", "v");
  if (trusted) {
    EXPECT_EQ(host("trusted.on-link", "link"), "v");
  }
  EXPECT_EQ(host("trusted.on-link", "file"), "(none)");
}

TEST_P(Xattrs, AFifoIsNeverOpenedForItsAttributes) {
  tree().fifo("fifo");
  const std::uint64_t fifo = node("fifo");
  EXPECT_REFUSED(ENODATA, fuse().getxattr(fifo, "trusted.x", 16));
  EXPECT_DONE(fuse().listxattr_size(fifo));
}

TEST_P(Xattrs, AccessListsNeedTheirNegotiation) {
  if (foreign()) GTEST_SKIP();
  EXPECT_REFUSED(EOPNOTSUPP, fuse().getxattr_size(node("file"), "system.posix_acl_access"));
  EXPECT_REFUSED(EOPNOTSUPP, fuse().setxattr(node("file"), "system.posix_acl_access", "x"));
}

class XattrOptions : public DeviceFixture {};

TEST_F(XattrOptions, OffMeansUnknownToTheGuest) {
  START({"-o", "no_xattr"});
  tree().write("file", "");
  const std::uint64_t file = node("file");
  EXPECT_REFUSED(ENOSYS, fuse().getxattr_size(file, "user.x"));
  EXPECT_REFUSED(ENOSYS, fuse().setxattr(file, "user.x", "v"));
  EXPECT_REFUSED(ENOSYS, fuse().listxattr_size(file));
  EXPECT_REFUSED(ENOSYS, fuse().removexattr(file, "user.x"));
}

TEST_F(XattrOptions, AMapPrefixesAndHides) {
  START({"-o", "xattrmap=:map::user.virtiofs.:"});
  tree().write("file", "");
  if (setxattr(tree().path("file").c_str(), "user.unmapped", "1", 1, 0) != 0)
    GTEST_SKIP() << "this file system has no user attributes";
  const std::uint64_t file = node("file");
  EXPECT_DONE(fuse().setxattr(file, "trusted.secret", "v"));
  char value[8];
  EXPECT_EQ(getxattr(tree().path("file").c_str(), "user.virtiofs.trusted.secret", value, 8), 1);
  EXPECT_EQ(GET(fuse().getxattr(file, "trusted.secret", 8)), "v");
  const std::string list = GET(fuse().listxattr(file, 1024));
  EXPECT_NE(list.find("trusted.secret"), std::string::npos);
  EXPECT_EQ(list.find("user.unmapped"), std::string::npos);
  EXPECT_EQ(list.find("user.virtiofs"), std::string::npos);
  if (!foreign()) {
    EXPECT_EQ(GET(fuse().listxattr_size(file)), list.size());
  }
}

}  // namespace
}  // namespace virtiofsd::guest
