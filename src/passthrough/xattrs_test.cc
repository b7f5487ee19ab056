// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include <sys/xattr.h>

#include <array>
#include <cstring>

#include "passthrough/passthrough_fixture.h"

namespace virtiofsd {
namespace {

class Xattrs : public PassthroughTest {
 protected:
  void map(std::string_view rules) {
    auto parsed = XattrMap::parse(rules);
    ASSERT_TRUE(parsed) << parsed.error().text();
    settings_.xattr_map = std::move(*parsed);
  }
  Result<> set(NodeId node, std::string_view attribute, std::string_view value) {
    auto c = call(node);
    return fs().setxattr(c, attribute, std::as_bytes(std::span{value}), 0, 0);
  }
  Result<std::string> get(NodeId node, std::string_view attribute, std::uint32_t size = 100) {
    auto c = call(node);
    Answer answer{4096};
    TRY(fs().getxattr(c, attribute, size, answer.body));
    return answer.gathered();
  }
  Result<std::string> names(NodeId node, std::uint32_t size = 4096) {
    auto c = call(node);
    Answer answer{4096};
    TRY(fs().listxattr(c, size, answer.body));
    return answer.gathered();
  }
  static std::uint32_t size_in(const std::string& answer) {
    fuse_getxattr_out out{};
    std::memcpy(&out, answer.data(), sizeof out);
    return out.size;
  }
};

TEST_F(Xattrs, AreSetReadListedAndRemoved) {
  write_file("a", "");
  const NodeId a = lookup("a");
  const auto made = set(a, "user.colour", "blue");
  if (!made && made.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no xattrs here";
  ASSERT_TRUE(made);
  EXPECT_EQ(*get(a, "user.colour"), "blue");
  EXPECT_EQ(size_in(*get(a, "user.colour", 0)), 4U);
  EXPECT_EQ(get(a, "user.colour", 2).error(), Errno{ERANGE});
  EXPECT_EQ(*names(a), std::string("user.colour\0", 12));
  EXPECT_EQ(size_in(*names(a, 0)), 12U);
  EXPECT_EQ(names(a, 5).error(), Errno{ERANGE});
  auto c = call(a);
  ASSERT_TRUE(fs().removexattr(c, "user.colour"));
  EXPECT_EQ(get(a, "user.colour").error(), Errno{ENODATA});
}

TEST_F(Xattrs, AreSwitchedOffForTheWholeMount) {
  settings_.xattr = false;
  write_file("a", "");
  EXPECT_EQ(get(lookup("a"), "user.x").error(), Errno{ENOSYS});
  EXPECT_EQ(names(lookup("a")).error(), Errno{ENOSYS});
}

TEST_F(Xattrs, AclsNeedToBeNegotiated) {
  write_file("a", "");
  EXPECT_EQ(get(lookup("a"), "system.posix_acl_access").error(), Errno{ENOTSUP});
  EXPECT_EQ(set(lookup("a"), "system.posix_acl_default", "x").error(), Errno{ENOTSUP});
}

// As with a file system without ACLs: a guest that was promised them would let nobody in.
TEST_F(Xattrs, NoAclIsNotAnErrorWhereThereCanBeNone) {
  ASSERT_EQ(::symlink("x", path("link").c_str()), 0);  // no file system has them on links
  const NodeId link = lookup("link");
  session_.flags |= FUSE_POSIX_ACL;
  for (const char* acl : {"system.posix_acl_access", "system.posix_acl_default"}) {
    EXPECT_EQ(get(link, acl).error(), Errno{ENODATA}) << acl;
    EXPECT_EQ(get(link, acl, 0).error(), Errno{ENODATA}) << acl;
  }
}

TEST_F(Xattrs, OverlongNamesAreRefused) {
  write_file("a", "");
  EXPECT_EQ(set(lookup("a"), "user." + std::string(300, 'x'), "").error(), Errno{ERANGE});
  EXPECT_EQ(set(lookup("a"), "", "").error(), Errno{ERANGE});
}

TEST_F(Xattrs, TheMapNamesThemOnTheHost) {
  map(":map::user.guest.:");
  write_file("a", "");
  ASSERT_EQ(::setxattr(path("a").c_str(), "user.hosts", "h", 1, 0), 0);
  const NodeId a = lookup("a");
  ASSERT_TRUE(set(a, "trusted.x", "value"));
  std::array<char, 16> value{};
  EXPECT_EQ(::getxattr(path("a").c_str(), "user.guest.trusted.x", value.data(), value.size()), 5);
  EXPECT_EQ(*names(a), std::string("trusted.x\0", 10)) << "the host's own are hidden";
  EXPECT_EQ(size_in(*names(a, 0)), 10U);
}

TEST_F(Xattrs, ABlockedNameReadsAsAbsent) {
  map(":bad:all:user.secret:user.secret: :ok:all:::");
  write_file("a", "");
  const NodeId a = lookup("a");
  EXPECT_EQ(set(a, "user.secret", "x").error(), Errno{EPERM});
  EXPECT_EQ(get(a, "user.secret").error(), Errno{ENODATA});
}

TEST_F(Xattrs, ARenamedCapabilityGoesWhenTheFileChanges) {
  map(":map::user.guest.:");
  const char* const stored = "user.guest.security.capability";
  const auto has = [&](const std::string& file) {
    return ::getxattr(path(file).c_str(), stored, nullptr, 0) >= 0;
  };
  for (const std::string file : {"write", "truncate", "chown", "open"}) {
    write_file(file, "text");
    ASSERT_TRUE(set(lookup(file), "security.capability", "cap")) << file;
    ASSERT_TRUE(has(file));
  }
  const NodeId written = lookup("write");
  ASSERT_TRUE(write(written, open(written, O_RDWR), "x", 0));
  EXPECT_FALSE(has("write"));
  fuse_setattr_in in{};
  in.valid = FATTR_SIZE;
  auto truncated = call(lookup("truncate"));
  ASSERT_TRUE(fs().setattr(truncated, in));
  EXPECT_FALSE(has("truncate"));
  in.valid = FATTR_UID;
  in.uid = 5;
  auto owned = call(lookup("chown"));
  ASSERT_TRUE(fs().setattr(owned, in));
  EXPECT_FALSE(has("chown"));
  open(lookup("open"), O_RDWR | O_TRUNC);
  EXPECT_FALSE(has("open"));
}

TEST_F(Xattrs, TrustedOnesAreNotShownToOrdinaryUsers) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  write_file("a", "");
  const NodeId a = lookup("a");
  const auto made = set(a, "trusted.secret", "x");
  if (!made && made.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no trusted xattrs here";
  ASSERT_TRUE(made);
  const auto names_for = [&](std::uint32_t uid) {
    auto c = call(a, uid, uid);
    Answer answer{4096};
    EXPECT_TRUE(fs().listxattr(c, 4096, answer.body));
    return answer.gathered();
  };
  EXPECT_EQ(names_for(0), std::string("trusted.secret\0", 15));
  EXPECT_EQ(names_for(1000), "");
}

TEST_F(Xattrs, OfLinksAndPipesAreTheirOwn) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  write_file("target", "");
  ASSERT_EQ(::symlink("target", path("link").c_str()), 0);
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  for (const std::string file : {"link", "fifo"}) {
    const NodeId node = lookup(file);
    const auto made = set(node, "trusted.mark", "m");
    if (!made && made.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no trusted xattrs here";
    ASSERT_TRUE(made) << file << ": " << made.error().text();
    EXPECT_EQ(*get(node, "trusted.mark"), "m");
    EXPECT_GE(::lgetxattr(path(file).c_str(), "trusted.mark", nullptr, 0), 0) << file;
  }
  EXPECT_LT(::getxattr(path("target").c_str(), "trusted.mark", nullptr, 0), 0);
}

TEST_F(Xattrs, SecurityLabelsAreSetWhereTheyAreMade) {
  map(":map::user.guest.:");
  session_.flags |= FUSE_SECURITY_CTX;
  const std::string label = "label";
  fuse::Call c = call(NodeId{1}, 1000, 1000);
  c.security =
      fuse::SecurityContext{.name = "security.selinux", .value = std::as_bytes(std::span{label})};
  ASSERT_TRUE(fs().create(c, name("file"),
                          {.flags = O_RDWR | O_CREAT, .mode = 0644, .umask = 0, .open_flags = 0}));
  ASSERT_TRUE(fs().mkdir(c, name("dir"), {.mode = 0755, .umask = 0}));
  for (const char* file : {"file", "dir"})
    EXPECT_EQ(*get(lookup(file), "security.selinux"), "label") << file;
}

// The guest saw that the caller isn't in the file's group; whichever that is, this thread's own
// too.
TEST_F(Xattrs, AnAclTakesTheSetGroupIdBitOffWhenAsked) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  session_.flags |= FUSE_POSIX_ACL;
  // rwxr-xr-x, as it lies in system.posix_acl_*. (include/uapi/linux/posix_acl_xattr.h)
  const std::array<std::uint16_t, 14> acl = {2, 0,      1,      7,  0xffff, 0xffff, 4,
                                             5, 0xffff, 0xffff, 32, 5,      0xffff, 0xffff};
  for (const gid_t group : {0U, 1234U, 65534U}) {
    SCOPED_TRACE(group);
    write_file("a", "");
    ASSERT_EQ(::chown(path("a").c_str(), 1000, group), 0);
    ASSERT_EQ(::chmod(path("a").c_str(), 02755), 0);
    const auto set = [&](std::uint32_t flags) {
      auto c = call(lookup("a"), 1000, 1000);
      return fs().setxattr(c, "system.posix_acl_access", std::as_bytes(std::span{acl}), 0, flags);
    };
    const auto kept = set(0);
    if (!kept && kept.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no access control lists here";
    ASSERT_TRUE(kept) << kept.error().text();
    EXPECT_EQ(host("a").st_mode & 07777, 02755U);
    ASSERT_TRUE(set(FUSE_SETXATTR_ACL_KILL_SGID));
    EXPECT_EQ(host("a").st_mode & 07777, 0755U);
    ASSERT_EQ(::unlink(path("a").c_str()), 0);
  }
}

class XattrsAgain : public Xattrs {
 protected:
  Result<> set(const fuse::Call& made, std::string_view value, std::uint32_t flags) {
    fuse::Call c = made;
    return fs().setxattr(c, "user.a", std::as_bytes(std::span{value}), flags, 0);
  }
  Result<> remove(const fuse::Call& made) {
    fuse::Call c = made;
    return fs().removexattr(c, "user.a");
  }
};

TEST_F(XattrsAgain, OneThatIsMadeAlreadyIsMade) {
  write_file("a", "");
  const NodeId a = lookup("a");
  const auto made = set(again(a), "one", XATTR_CREATE);
  if (!made && made.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no xattrs here";
  ASSERT_TRUE(made);
  EXPECT_TRUE(set(again(a), "one", XATTR_CREATE));
  EXPECT_EQ(*get(a, "user.a"), "one");
  EXPECT_EQ(set(call(a), "one", XATTR_CREATE).error(), Errno{EEXIST});
  EXPECT_TRUE(set(call(a), "", 0));
  EXPECT_TRUE(set(again(a), "", XATTR_CREATE)) << "an empty one is one";
}

TEST_F(XattrsAgain, OneWithAnotherValueIsInTheWay) {
  write_file("a", "");
  const NodeId a = lookup("a");
  const auto made = set(call(a), "another's", 0);
  if (!made && made.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no xattrs here";
  ASSERT_TRUE(made);
  for (const std::string_view value : {"ours", "another", "another's too", ""})
    EXPECT_EQ(set(again(a), value, XATTR_CREATE).error(), Errno{EEXIST}) << value;
  EXPECT_EQ(*get(a, "user.a"), "another's");
}

TEST_F(XattrsAgain, ReplacingWhatIsNotThereIsStillAnError) {
  write_file("a", "");
  const NodeId a = lookup("a");
  const auto made = set(again(a), "one", 0);
  if (!made && made.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no xattrs here";
  ASSERT_TRUE(made);
  EXPECT_TRUE(set(again(a), "two", XATTR_REPLACE));
  EXPECT_EQ(*get(a, "user.a"), "two");
  ASSERT_TRUE(remove(again(a)));
  EXPECT_EQ(set(again(a), "three", XATTR_REPLACE).error(), Errno{ENODATA});
}

TEST_F(XattrsAgain, OneThatIsRemovedAlreadyIsRemoved) {
  write_file("a", "");
  const NodeId a = lookup("a");
  const auto made = set(call(a), "one", 0);
  if (!made && made.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no xattrs here";
  ASSERT_TRUE(remove(again(a)));
  EXPECT_EQ(get(a, "user.a").error(), Errno{ENODATA});
  EXPECT_TRUE(remove(again(a)));
  EXPECT_EQ(remove(call(a)).error(), Errno{ENODATA});
}

// The process that made it may have died before it said what it is.
TEST_F(XattrsAgain, ALabelIsSetOnWhatIsMadeAlready) {
  map(":map::user.guest.:");
  session_.flags |= FUSE_SECURITY_CTX;
  const std::string label = "label";
  const auto without = call(NodeId{1}, 1000, 1000);
  auto labelled = again(NodeId{1}, 1000, 1000);
  labelled.security =
      fuse::SecurityContext{.name = "security.selinux", .value = std::as_bytes(std::span{label})};
  for (const auto& made : {without, labelled}) {
    auto c = made;
    ASSERT_TRUE(fs().mkdir(c, name("dir"), {.mode = 0755, .umask = 0}));
    ASSERT_TRUE(fs().create(
        c, name("file"),
        {.flags = O_RDWR | O_CREAT | O_EXCL, .mode = 0644, .umask = 0, .open_flags = 0}));
  }
  for (const char* file : {"file", "dir"}) {
    const auto got = get(lookup(file), "security.selinux");
    ASSERT_TRUE(got) << file << ": " << got.error().text();
    EXPECT_EQ(*got, "label") << file;
  }
}

}  // namespace
}  // namespace virtiofsd
