// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The rows that QEMU's daemon added to the first man page and whose effect a
// guest sees: C6 to C13.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>

#include "tests/rows/vm.h"

namespace virtiofsd::guest {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;
using Words = std::vector<std::string>;

class XattrRow : public Row {
 protected:
  void SetUp() override {
    Row::SetUp();
    if (IsSkipped()) return;
    tree().write("file", "x");
    if (::setxattr(file().c_str(), "user.probe", "1", 1, 0) != 0)
      GTEST_SKIP() << "this file system has no user attributes";
    ::removexattr(file().c_str(), "user.probe");
  }
  std::string file() const { return tree().path("file"); }
  // The attribute on the host, or "none".
  std::string on_host(const std::string& name, const std::string& path = "file") const {
    char value[256];
    const ssize_t size = ::lgetxattr(tree().path(path).c_str(), name.c_str(), value, sizeof value);
    return size < 0 ? "none" : std::string(value, static_cast<std::size_t>(size));
  }
};

class C6_xattrmap : public XattrRow {};
class C10_posix_acl : public XattrRow {};
class C11_security_label : public XattrRow {};
ROW(C7_modcaps);
ROW(C8_allow_direct_io);
ROW(C9_announce_submounts);
ROW(C12_killpriv_v2);
ROW(C13_allow_root);

// ---- C6: -o xattrmap=RULES ----

TEST_F(C6_xattrmap, ARuleOfEachTypeDoesWhatItSays) {
  ASSERT_EQ(::setxattr(file().c_str(), "user.hidden", "h", 1, 0), 0);
  const Vm vm(share(), {"-o",
                        "xattrmap=:prefix:all:security.:user.vm.:"
                        ":ok:client:user.plain::"
                        ":ok:server::user.plain:"
                        ":bad:client:user.bad::"
                        ":unsupported:client:user.un::"
                        ":bad:all:::"});
  const std::uint64_t node = vm.node("file");
  EXPECT_DONE(vm->setxattr(node, "security.label", "mapped"));
  EXPECT_EQ(on_host("user.vm.security.label"), "mapped");
  EXPECT_EQ(GET(vm->getxattr(node, "security.label", 100)), "mapped");
  EXPECT_DONE(vm->setxattr(node, "user.plain", "as it is"));
  EXPECT_EQ(on_host("user.plain"), "as it is");
  EXPECT_REFUSED(EPERM, vm->setxattr(node, "user.bad", "x"));
  EXPECT_REFUSED(ENOTSUP, vm->setxattr(node, "user.un", "x"));
  EXPECT_REFUSED(EPERM, vm->setxattr(node, "user.other", "x"));
  EXPECT_REFUSED(ENODATA, vm->getxattr(node, "user.hidden", 100));
  const std::string names = GET(vm->listxattr(node, 1000));
  EXPECT_THAT(names, HasSubstr("security.label"));
  EXPECT_THAT(names, HasSubstr("user.plain"));
  EXPECT_THAT(names, Not(HasSubstr("user.hidden")));
  EXPECT_THAT(names, Not(HasSubstr("user.vm.")));
  EXPECT_EQ(GET(vm->listxattr_size(node)), names.size());
}

TEST_F(C6_xattrmap, MapIsShortForPrefixingAndHiding) {
  const Vm vm(share(), {"--xattrmap", ":map::user.vm.:"});
  const std::uint64_t node = vm.node("file");
  EXPECT_DONE(vm->setxattr(node, "trusted.any", "1"));
  EXPECT_EQ(on_host("user.vm.trusted.any"), "1");
  EXPECT_EQ(GET(vm->listxattr(node, 100)), std::string("trusted.any\0", 12));
}

// The host's kernel knows only its own name for it.
TEST_F(C6_xattrmap, RenamedFileCapabilitiesGoWhenTheFileChanges) {
  const Vm vm(share(), {"-o", "xattrmap=:map:security.:user.vm.:"});
  const std::uint64_t node = vm.node("file");
  const std::uint64_t handle = GET(vm->open(node, O_RDWR)).fh;
  const std::string name = "user.vm.security.capability";
  const auto give = [&] {
    EXPECT_DONE(vm->setxattr(node, "security.capability", "powers"));
    EXPECT_EQ(on_host(name), "powers");
  };
  give();
  EXPECT_EQ(GET(vm->write(node, handle, 0, "changed")), 7U);
  EXPECT_EQ(on_host(name), "none");
  give();
  EXPECT_DONE(vm->truncate(node, 0));
  EXPECT_EQ(on_host(name), "none");
  give();
  EXPECT_DONE(vm->chown(node, 1234, std::nullopt));
  EXPECT_EQ(on_host(name), "none");
}

// ---- C7: -o modcaps=CHANGES ----

TEST_F(C7_modcaps, ACapabilityTakenAwayIsMissed) {
  {
    const Vm vm(share());
    EXPECT_DONE(vm->mknod(kRoot, "device", S_IFCHR | 0600, makedev(1, 3)));
  }
  const Vm vm(share(), {"-o", "modcaps=-mknod:-chown"});
  EXPECT_REFUSED(EPERM, vm->mknod(kRoot, "other", S_IFCHR | 0600, makedev(1, 3)));
  EXPECT_REFUSED(EPERM, vm->chown(vm.node("device"), 1234, std::nullopt));
}

TEST_F(C7_modcaps, ACapabilityGivenIsUsed) {
  tree().write("file", "x");
  if (::setxattr(tree().path("file").c_str(), "trusted.probe", "1", 1, 0) != 0)
    GTEST_SKIP() << "this file system has no trusted attributes";
  {
    const Vm vm(share(), {"-o", "xattr"});
    EXPECT_REFUSED(EPERM, vm->setxattr(vm.node("file"), "trusted.guest", "1"));
  }
  const Vm vm(share(), {"-o", "xattr,modcaps=+sys_admin"});
  EXPECT_DONE(vm->setxattr(vm.node("file"), "trusted.guest", "1"));
}

// ---- C8: -o allow_direct_io|no_allow_direct_io ----

TEST_F(C8_allow_direct_io, PassesODirectOnOnlyWhenAskedFor) {
  tree().write("file", std::string(8192, 'x'));
  const UniqueFd probe{::open(tree().path("file").c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)};
  if (!probe) GTEST_SKIP() << "this file system has no direct I/O";
  for (const bool on : {false, true}) {
    tree().write("file", std::string(8192, 'x'));
    const Vm vm(share(), {"-o", on ? "allow_direct_io" : "allow_direct_io,no_allow_direct_io"});
    const std::uint64_t file = vm.node("file");
    const std::uint64_t handle = GET(vm->open(file, O_RDWR | O_DIRECT)).fh;
    bool direct = false;
    for (const int flags : vm.flags_of_open_files(tree().path("file")))
      direct = direct || (flags & O_DIRECT) != 0;
    EXPECT_EQ(direct, on);
    // Whatever the guest asks for is served, also what direct I/O can't do by itself.
    EXPECT_EQ(GET(vm->read(file, handle, 0, 4096, O_DIRECT)).size(), 4096U);
    EXPECT_EQ(GET(vm->read(file, handle, 3, 7, O_DIRECT)), "xxxxxxx");
    EXPECT_EQ(GET(vm->write(file, handle, 5, "odd", 0, O_DIRECT)), 3U);
    EXPECT_EQ(tree().read("file").substr(4, 5), "xoddx");
  }
}

// ---- C9: -o announce_submounts ----

class Mounted {
 public:
  explicit Mounted(std::string path) : path_(std::move(path)) {
    // In a mount namespace of this test's own, which the daemon starts in.
    works_ = ::unshare(CLONE_NEWNS) == 0 &&
             ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
             ::mount("tmpfs", path_.c_str(), "tmpfs", 0, "size=1m") == 0;
  }
  ~Mounted() {
    if (works_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  Mounted(const Mounted&) = delete;
  Mounted& operator=(const Mounted&) = delete;
  bool works() const { return works_; }

 private:
  const std::string path_;
  bool works_ = false;
};

TEST_F(C9_announce_submounts, MarksWhatIsMountedInsideTheShare) {
  tree().mkdir("mounted");
  tree().mkdir("plain");
  const Mounted mounted(tree().path("mounted"));
  if (!mounted.works()) GTEST_SKIP() << "nothing can be mounted here";
  tree().write("mounted/file", "x");
  struct {
    Words arguments;
    std::uint64_t init_flags;
    bool marked;
  } const cases[] = {{{"-o", "announce_submounts"}, FuseClient::kLinuxFlags, true},
                     {{"--announce-submounts"}, FuseClient::kLinuxFlags, true},
                     {{}, FuseClient::kLinuxFlags, true},
                     {{"--no-announce-submounts"}, FuseClient::kLinuxFlags, false},
                     {{"-o", "announce_submounts"},
                      FuseClient::kLinuxFlags & ~std::uint64_t{FUSE_SUBMOUNTS},
                      false}};
  for (const auto& [arguments, init_flags, marked] : cases) {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const Vm vm(share(), arguments, {.init_flags = init_flags});
    EXPECT_EQ(vm->has(FUSE_SUBMOUNTS), marked);
    EXPECT_EQ((GET(vm->lookup(kRoot, "mounted")).attr.flags & FUSE_ATTR_SUBMOUNT) != 0, marked);
    EXPECT_EQ(GET(vm->lookup(kRoot, "plain")).attr.flags & FUSE_ATTR_SUBMOUNT, 0U);
    EXPECT_EQ(GET(vm->walk("mounted/file")).attr.flags & FUSE_ATTR_SUBMOUNT, 0U);
  }
}

// ---- C10: -o posix_acl|no_posix_acl ----

constexpr std::uint64_t kAclFlags = FUSE_POSIX_ACL | FUSE_DONT_MASK;

struct AclEntry {
  std::uint16_t tag, permissions;
  std::uint32_t id;
};

// As it lies in system.posix_acl_*. (include/uapi/linux/posix_acl_xattr.h)
std::string acl(std::initializer_list<AclEntry> entries) {
  const std::uint32_t version = 2;
  std::string bytes(reinterpret_cast<const char*>(&version), sizeof version);
  for (const AclEntry& entry : entries)
    bytes.append(reinterpret_cast<const char*>(&entry), sizeof entry);
  return bytes;
}
constexpr std::uint16_t kUserObject = 1, kUser = 2, kGroupObject = 4, kMask = 16, kOther = 32;
constexpr std::uint32_t kNoId = 0xffff'ffff;

TEST_F(C10_posix_acl, AreUsedOnlyWhenAskedFor) {
  const std::string list = acl({{kUserObject, 6, kNoId},
                                {kUser, 7, 1234},
                                {kGroupObject, 4, kNoId},
                                {kMask, 7, kNoId},
                                {kOther, 4, kNoId}});
  if (::setxattr(file().c_str(), "system.posix_acl_access", list.data(), list.size(), 0) != 0)
    GTEST_SKIP() << "this file system has no access control lists";
  for (const Words& arguments :
       {Words{"-o", "posix_acl"}, Words{"--posix-acl"}, Words{"--posix-acl=auto"},
        Words{"-o", "posix_acl=always,xattr"}}) {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const Vm vm(share(), arguments);
    EXPECT_TRUE(vm->has(kAclFlags) && vm->has(FUSE_DONT_MASK) && vm->has(FUSE_SETXATTR_EXT));
    const std::uint64_t node = vm.node("file");
    EXPECT_EQ(GET(vm->getxattr(node, "system.posix_acl_access", 200)), list);
    EXPECT_DONE(vm->removexattr(node, "system.posix_acl_access"));
    EXPECT_EQ(on_host("system.posix_acl_access"), "none");
    EXPECT_DONE(vm->setxattr(node, "system.posix_acl_access", list));
    EXPECT_EQ(on_host("system.posix_acl_access"), list);
  }
  for (const Words& arguments :
       {Words{"-o", "xattr"}, Words{"-o", "xattr,posix_acl,no_posix_acl"}}) {
    const Vm vm(share(), arguments);
    EXPECT_FALSE(vm->has(FUSE_POSIX_ACL));
    EXPECT_FALSE(vm->has(FUSE_DONT_MASK));
    // The guest's kernel wouldn't hold anybody to them.
    EXPECT_REFUSED(EOPNOTSUPP, vm->setxattr(vm.node("file"), "system.posix_acl_access", list));
  }
}

TEST_F(C10_posix_acl, ADefaultListTakesThePlaceOfTheUmask) {
  tree().mkdir("with");
  tree().mkdir("without");
  const std::string list =
      acl({{kUserObject, 7, kNoId}, {kGroupObject, 7, kNoId}, {kOther, 7, kNoId}});
  if (::setxattr(tree().path("with").c_str(), "system.posix_acl_default", list.data(), list.size(),
                 0) != 0)
    GTEST_SKIP() << "this file system has no access control lists";
  const Vm vm(share(), {"-o", "posix_acl"});
  GET(vm->create(vm.node("with"), "file", O_RDWR, 0666, 027));
  GET(vm->create(vm.node("without"), "file", O_RDWR, 0666, 027));
  GET(vm->mkdir(vm.node("with"), "dir", 0777, 027));
  GET(vm->mkdir(vm.node("without"), "dir", 0777, 027));
  EXPECT_EQ(tree().stat("with/file").st_mode & 07777, 0666U);
  EXPECT_EQ(tree().stat("without/file").st_mode & 07777, 0640U);
  EXPECT_EQ(tree().stat("with/dir").st_mode & 07777, 0777U);
  EXPECT_EQ(tree().stat("without/dir").st_mode & 07777, 0750U);
}

// A guest that can't: the mount works all the same.
TEST_F(C10_posix_acl, AGuestWithoutThemIsServedWithOneWarningAtMost) {
  const std::uint64_t flags = FuseClient::kLinuxFlags & ~std::uint64_t{FUSE_POSIX_ACL};
  for (const auto& [value, warns] : {std::pair{"always", true}, {"auto", false}}) {
    const Vm vm(share(), {std::string("--posix-acl=") + value}, {.init_flags = flags});
    ASSERT_TRUE(vm->init(flags));
    EXPECT_FALSE(vm->has(FUSE_DONT_MASK));
    vm.node("file");
    const std::string said = vm.daemon().output();
    const std::size_t first = said.find("posix_acl");
    EXPECT_EQ(first != std::string::npos, warns) << said;
    if (warns) {
      EXPECT_EQ(said.find("posix_acl", first + 1), std::string::npos) << said;
    }
  }
}

// ---- C11: -o security_label|no_security_label ----

// The label a guest's kernel sends along with a new file: one context, in
// whole 8-byte units. (struct fuse_secctx_header and fuse_secctx)
std::vector<std::byte> label_extension(const std::string& name, const std::string& value) {
  fuse_secctx head{};
  head.size = static_cast<std::uint32_t>(value.size());
  const std::string text = name + '\0' + value;
  fuse_secctx_header header{};
  header.nr_secctx = 1;
  header.size = static_cast<std::uint32_t>((sizeof header + sizeof head + text.size() + 7) / 8 * 8);
  std::vector<std::byte> bytes(header.size);
  std::memcpy(bytes.data(), &header, sizeof header);
  std::memcpy(bytes.data() + sizeof header, &head, sizeof head);
  std::memcpy(bytes.data() + sizeof header + sizeof head, text.data(), text.size());
  return bytes;
}

TEST_F(C11_security_label, NewFilesGetTheGuestsLabel) {
  // Under a name that needs no security module on the host.
  const std::string map = "-oxattrmap=:prefix:all:security.selinux:user.vm.::ok:all:::";
  const std::string name = "user.vm.security.selinux";
  const Vm vm(share(), {"-o", "security_label", map});
  EXPECT_TRUE(vm->has(FUSE_SECURITY_CTX));
  vm->set_extension(label_extension("security.selinux", "system_u:object_r:t"));
  GET(vm->create(kRoot, "created", O_RDWR, 0644));
  GET(vm->mkdir(kRoot, "dir", 0755));
  GET(vm->mknod(kRoot, "node", S_IFREG | 0644));
  vm->set_extension({});
  for (const char* path : {"created", "dir", "node"}) {
    EXPECT_EQ(on_host(name, path), "system_u:object_r:t") << path;
  }
}

TEST_F(C11_security_label, IsOffUnlessAskedFor) {
  EXPECT_FALSE(Vm(share(), {"-o", "xattr"})->has(FUSE_SECURITY_CTX));
  EXPECT_FALSE(Vm(share(), {"-o", "security_label,no_security_label"})->has(FUSE_SECURITY_CTX));
  EXPECT_TRUE(Vm(share(), {"--security-label=auto"})->has(FUSE_SECURITY_CTX));
}

TEST_F(C11_security_label, AGuestWithoutThemIsServed) {
  const std::uint64_t flags = FuseClient::kLinuxFlags & ~std::uint64_t{FUSE_SECURITY_CTX};
  const Vm vm(share(), {"-o", "security_label"}, {.init_flags = flags});
  GET(vm->mkdir(kRoot, "dir", 0755));
  EXPECT_THAT(vm.daemon().output(), HasSubstr("security_label"));
}

// ---- C12: -o killpriv_v2|no_killpriv_v2 ----

TEST_F(C12_killpriv_v2, IsUsedWhereTheGuestCanUnlessTurnedOff) {
  const std::uint64_t without = FuseClient::kLinuxFlags & ~std::uint64_t{FUSE_HANDLE_KILLPRIV_V2};
  EXPECT_TRUE(Vm(share())->has(FUSE_HANDLE_KILLPRIV_V2));
  EXPECT_TRUE(Vm(share(), {"-o", "killpriv_v2"})->has(FUSE_HANDLE_KILLPRIV_V2));
  EXPECT_FALSE(Vm(share(), {"-o", "no_killpriv_v2"})->has(FUSE_HANDLE_KILLPRIV_V2));
  EXPECT_FALSE(Vm(share(), {"--no-killpriv-v2"})->has(FUSE_HANDLE_KILLPRIV_V2));
  {
    const Vm vm(share(), {"-o", "killpriv_v2"}, {.init_flags = without});
    EXPECT_THAT(vm.daemon().output(), HasSubstr("killpriv_v2"));
  }
  const Vm vm(share(), {"--killpriv-v2=auto"}, {.init_flags = without});
  EXPECT_THAT(vm.daemon().output(), Not(HasSubstr("killpriv_v2")));
}

TEST_F(C12_killpriv_v2, SetIdBitsGoWhenTheGuestSaysSo) {
  const Vm vm(share(), {"-o", "killpriv_v2"});
  const auto mode = [&] { return tree().stat("file").st_mode & 07777; };
  const auto reset = [&] {
    tree().write("file", "content");
    tree().chmod("file", 06755);
  };
  reset();
  const std::uint64_t file = vm.node("file");
  const std::uint64_t handle = GET(vm->open(file, O_RDWR)).fh;
  // Root's own write keeps them, as on the host.
  EXPECT_EQ(GET(vm->write(file, handle, 0, "x")), 1U);
  EXPECT_EQ(mode(), 06755U);
  EXPECT_EQ(GET(vm->write(file, handle, 0, "x", FUSE_WRITE_KILL_SUIDGID)), 1U);
  EXPECT_EQ(mode(), 0755U);

  tree().chmod("file", 06755);
  fuse_setattr_in in{};
  in.valid = FATTR_SIZE | FATTR_KILL_SUIDGID;
  in.size = 1;
  EXPECT_DONE(vm->setattr(file, in));
  EXPECT_EQ(mode(), 0755U);

  tree().chmod("file", 06755);
  EXPECT_DONE(vm->open(file, O_RDWR | O_TRUNC, FUSE_OPEN_KILL_SUIDGID));
  EXPECT_EQ(mode(), 0755U);
}

// Else the guest would go on showing bits that the host took off.
TEST_F(C12_killpriv_v2, AttributesWithSetIdBitsAreNotKept) {
  tree().write("program", "x");
  tree().chmod("program", 04755);
  EXPECT_EQ(GET(Vm(share(), {"--cache=always"})->lookup(kRoot, "program")).attr_valid, 0U);
  EXPECT_GT(
      GET(Vm(share(), {"--cache=always", "--no-killpriv-v2"})->lookup(kRoot, "program")).attr_valid,
      0U);
}

// ---- C13: -o allow_root ----

TEST_F(C13_allow_root, ServesRootOnly) {
  tree().write("file", "x", 0666);
  tree().chmod("", 0777);
  const Vm vm(share(), {"-o", "allow_root"});
  const std::uint64_t file = vm.node("file");
  vm->as(1000, 1000);
  EXPECT_REFUSED(EACCES, vm->getattr(file));
  EXPECT_REFUSED(EACCES, vm->lookup(kRoot, "file"));
  EXPECT_REFUSED(EACCES, vm->open(file, O_RDONLY));
  EXPECT_REFUSED(EACCES, vm->mkdir(kRoot, "dir", 0755));
  EXPECT_FALSE(tree().exists("dir"));
  vm->as(0, 0);
  // What is open may be passed on, and is read and closed by whoever has it.
  const std::uint64_t handle = GET(vm->open(file, O_RDONLY)).fh;
  vm->as(1000, 1000);
  EXPECT_EQ(GET(vm->read(file, handle, 0, 10)), "x");
  EXPECT_DONE(vm->release(file, handle));
}

TEST_F(C13_allow_root, OthersAreServedWithoutIt) {
  tree().chmod("", 0777);
  const Vm vm(share());
  vm->as(1000, 1000);
  EXPECT_EQ(GET(vm->mkdir(kRoot, "dir", 0755)).attr.uid, 1000U);
}

}  // namespace
}  // namespace virtiofsd::guest
