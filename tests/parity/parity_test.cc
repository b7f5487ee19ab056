// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What a directory does when asked by system call, a shared directory does when
// asked through the daemon. Each case prepares two equal trees, acts on both,
// and compares what was answered and what the trees have become.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <functional>

#include "tests/device/fixture.h"
#include "tests/parity/actor.h"

namespace virtiofsd::guest {
namespace {

struct Case {
  std::string name;
  std::function<void(const TempTree&)> prepare;
  std::function<void(Actor&)> act;
  std::vector<std::string> arguments = {"-o", "xattr,flock,posix_lock"};
  bool ours_only = false;  // a peer is known to differ
};

void PrintTo(const Case& parity, std::ostream* out) {
  *out << parity.name;
}

void nothing(const TempTree&) {}

// A user who may do anything below the root of the tree.
void open_root(const TempTree& tree) {
  tree.chmod("", 0777);
}

void one_file(const TempTree& tree) {
  tree.write("file", "0123456789abcdef");
}

void users_file(const TempTree& tree) {
  open_root(tree);
  tree.write("file", "0123456789abcdef");
  tree.chown("file", 1000, 1000);
}

void set_id_file(const TempTree& tree, mode_t mode) {
  users_file(tree);
  tree.chmod("file", mode);
}

// A directory of group 2000 that hands its group down.
void set_gid_directory(const TempTree& tree) {
  open_root(tree);
  tree.mkdir("shared", 0755);
  tree.chown("shared", 0, 2000);
  tree.chmod("shared", 02777);
}

void capability(const TempTree& tree) {
  users_file(tree);
  // CAP_NET_RAW permitted and effective, version 2.
  const unsigned char value[20] = {1, 0, 0, 2, 0, 0x20};
  setxattr(tree.path("file").c_str(), "security.capability", value, sizeof(value), 0);
}

// Access list entries as they are on the wire (linux/posix_acl_xattr.h).
std::string access_list(std::initializer_list<std::array<std::uint32_t, 3>> entries) {
  std::string value("\x02\0\0\0", 4);
  for (const auto& [tag, permissions, id] : entries) {
    const std::uint16_t head[2] = {static_cast<std::uint16_t>(tag),
                                   static_cast<std::uint16_t>(permissions)};
    value.append(reinterpret_cast<const char*>(head), 4);
    value.append(reinterpret_cast<const char*>(&id), 4);
  }
  return value;
}

void default_access_list(const TempTree& tree) {
  open_root(tree);
  tree.mkdir("dir", 0777);
  tree.chmod("dir", 0777);
  const std::string value = access_list({{1, 7, ~0U},       // the owner
                                         {2, 6, 1234},      // user 1234
                                         {4, 5, ~0U},       // the group
                                         {0x10, 7, ~0U},    // the mask
                                         {0x20, 0, ~0U}});  // others
  setxattr(tree.path("dir").c_str(), "system.posix_acl_default", value.data(), value.size(), 0);
}

std::string octal(std::uint32_t mode) {
  char text[16];
  std::snprintf(text, sizeof(text), "%04o", mode);
  return text;
}

std::vector<Case> creation_cases() {
  std::vector<Case> cases;
  const auto add = [&](Case one) { cases.push_back(std::move(one)); };
  for (const std::uint32_t mode : {0U, 0400U, 0644U, 0666U, 0777U, 01777U, 02755U, 04755U}) {
    for (const std::uint32_t mask : {0U, 022U, 077U}) {
      const std::string suffix = octal(mode) + "Umask" + octal(mask);
      add({"CreateMode" + suffix, open_root, [=](Actor& a) {
             a.umask(mask);
             a.as(1000, 1000, {});
             a.close(a.open("new", O_RDWR | O_CREAT | O_EXCL, mode));
             a.stat("new");
           }});
      add({"MkdirMode" + suffix, open_root, [=](Actor& a) {
             a.umask(mask);
             a.as(1000, 1000, {});
             a.mkdir("new", mode);
             a.stat("new");
           }});
    }
  }
  for (const std::uint32_t mode : {0644U, 0755U, 02755U, 06755U, 02644U}) {
    const std::string suffix = octal(mode);
    add({"CreateInSetGidDirectoryAsStranger" + suffix, set_gid_directory, [=](Actor& a) {
           a.as(1000, 1000, {});
           a.close(a.open("shared/new", O_RDWR | O_CREAT, mode));
           a.stat("shared/new");
         }});
    add({"CreateInSetGidDirectoryAsMember" + suffix, set_gid_directory, [=](Actor& a) {
           a.as(1000, 2000, {});
           a.close(a.open("shared/new", O_RDWR | O_CREAT, mode));
           a.stat("shared/new");
         }});
    add({"CreateInSetGidDirectoryAsSupplementaryMember" + suffix,
         set_gid_directory,
         [=](Actor& a) {
           a.as(1000, 1000, {2000});
           a.close(a.open("shared/new", O_RDWR | O_CREAT, mode));
           a.stat("shared/new");
         },
         {"-o", "xattr"},
         true});
    add({"MkdirInSetGidDirectoryAsStranger" + suffix, set_gid_directory, [=](Actor& a) {
           a.as(1000, 1000, {});
           a.mkdir("shared/new", mode);
           a.mknod("shared/fifo", S_IFIFO | mode);
           a.stat("shared/new");
           a.stat("shared/fifo");
         }});
    add({"CreateAsRootInSetGidDirectory" + suffix, set_gid_directory, [=](Actor& a) {
           a.close(a.open("shared/new", O_RDWR | O_CREAT, mode));
           a.stat("shared/new");
         }});
  }
  add({"CreateWhereOnlyTheSupplementaryGroupMay",
       [](const TempTree& tree) {
         tree.mkdir("team", 0770);
         tree.chown("team", 0, 2000);
       },
       [](Actor& a) {
         a.as(1000, 1000, {2000});
         a.close(a.open("team/new", O_RDWR | O_CREAT, 0644));
         a.mkdir("team/dir", 0755);
         a.symlink("team/link", "target");
         a.mknod("team/fifo", S_IFIFO | 0600);
         a.as_root();
         a.list("team");
       },
       {"-o", "xattr"},
       true});
  add({"CreateWhereTheCallerMayNot",
       [](const TempTree& tree) { tree.mkdir("private", 0755); },
       [](Actor& a) {
         a.as(1000, 1000, {});
         a.close(a.open("private/new", O_RDWR | O_CREAT, 0644));
         a.mkdir("private/dir", 0755);
         a.symlink("private/link", "target");
         a.mknod("private/fifo", S_IFIFO | 0600);
       },
       {"-o", "xattr"},
       true});
  add({"CreateBelowAFile", one_file, [](Actor& a) {
         a.mkdir("file/dir", 0755);
         a.mknod("file/new", S_IFREG | 0644);
         a.symlink("file/link", "x");
         a.unlink("file/x");
         a.rmdir("file/x");
       }});
  add({"CreateOverExisting", one_file, [](Actor& a) {
         a.mkdir("file", 0755);
         a.mknod("file", S_IFREG | 0644);
         a.symlink("file", "x");
         a.link("file", "file");
         a.open("file", O_RDWR | O_CREAT | O_EXCL, 0644);
         a.close(a.open("file", O_RDWR | O_CREAT, 0600));
         a.stat("file");
       }});
  add({"CreateLongNames", nothing, [](Actor& a) {
         for (const std::size_t length : {255, 256}) {
           const std::string name(length, 'n');
           a.mkdir(name, 0755);
           a.rmdir(name);
           a.close(a.open(name, O_RDWR | O_CREAT, 0644));
           a.rename(name, std::string(length, 'm'));
           a.unlink(std::string(length, 'm'));
           a.symlink(name, "target");
           a.stat(name);
         }
       }});
  add({"MknodEveryKind", nothing, [](Actor& a) {
         a.mknod("regular", S_IFREG | 0640);
         a.mknod("typeless", 0640);
         a.mknod("fifo", S_IFIFO | 0620);
         a.mknod("socket", S_IFSOCK | 0755);
         a.mknod("null", S_IFCHR | 0666, makedev(1, 3));
         a.mknod("block", S_IFBLK | 0600, makedev(259, 70000));
         for (const char* name : {"regular", "typeless", "fifo", "socket", "null", "block"})
           a.stat(name);
         a.list("");
       }});
  add({"MknodOfADeviceAsUser",
       open_root,
       [](Actor& a) {
         a.as(1000, 1000, {});
         a.mknod("null", S_IFCHR | 0666, makedev(1, 3));
         a.mknod("fifo", S_IFIFO | 0666);
       },
       {"-o", "xattr"},
       true});
  add({"MknodRefusesKindsThatAreNone", nothing, [](Actor& a) { a.mknod("odd", 0030000 | 0644); }});
  add({"TmpfileIsLinkedLater",
       open_root,
       [](Actor& a) {
         a.as(1000, 1000, {});
         const auto file = a.tmpfile("", O_RDWR, 0640);
         a.fstat(file);
         a.write(file, 0, "content");
         a.as_root();
         a.link_file(file, "named");
         a.stat("named");
         a.close(file);
       },
       {"-o", "xattr"},
       true});
  add({"TmpfileInASetGidDirectory",
       set_gid_directory,
       [](Actor& a) {
         a.as(1000, 1000, {});
         const auto file = a.tmpfile("shared", O_RDWR, 02755);
         a.fstat(file);
         a.close(file);
       },
       {"-o", "xattr"},
       true});
  for (const std::uint32_t mask : {022U, 077U}) {
    add({"DefaultAccessListBeatsUmask" + octal(mask),
         default_access_list,
         [=](Actor& a) {
           a.umask(mask);
           a.as(1000, 1000, {});
           a.close(a.open("dir/file", O_RDWR | O_CREAT, 0666));
           a.mkdir("dir/sub", 0777);
           a.mknod("dir/fifo", S_IFIFO | 0666);
           a.close(a.open("plain", O_RDWR | O_CREAT, 0666));
           a.stat("dir/file");
           a.stat("dir/sub");
           a.stat("plain");
         },
         {"-o", "posix_acl,xattr"}});
  }
  add({"AccessListSetAndRead",
       one_file,
       [](Actor& a) {
         const std::string list =
             access_list({{1, 6, ~0U}, {2, 7, 1234}, {4, 4, ~0U}, {0x10, 6, ~0U}, {0x20, 4, ~0U}});
         a.setxattr("file", "system.posix_acl_access", list);
         a.getxattr("file", "system.posix_acl_access");
         a.stat("file");
         a.chmod("file", 0600);
         a.getxattr("file", "system.posix_acl_access");
         a.setxattr("file", "system.posix_acl_access", "nonsense");
         a.setxattr("file", "system.posix_acl_default", list);
         a.removexattr("file", "system.posix_acl_access");
         a.stat("file");
       },
       {"-o", "posix_acl,xattr"}});
  return cases;
}

std::vector<Case> name_cases() {
  std::vector<Case> cases;
  const auto add = [&](Case one) { cases.push_back(std::move(one)); };
  const auto two_files = [](const TempTree& tree) {
    tree.write("a", "A");
    tree.write("b", "BB");
  };
  const auto directories = [](const TempTree& tree) {
    tree.mkdir("empty");
    tree.mkdir("full");
    tree.write("full/file", "x");
    tree.mkdir("full/sub");
    tree.write("file", "x");
    tree.symlink("link", "full");
  };
  add({"RenameSimple", two_files, [](Actor& a) {
         a.rename("a", "c");
         a.stat("a");
         a.stat("c");
       }});
  add({"RenameOver", two_files, [](Actor& a) {
         a.rename("a", "b");
         a.stat("b");
         a.list("");
       }});
  add({"RenameToItself", two_files, [](Actor& a) {
         a.rename("a", "a");
         a.list("");
       }});
  add({"RenameHardLinksOntoEachOther", two_files, [](Actor& a) {
         a.link("a", "second");
         a.rename("a", "second");
         a.list("");
         a.stat("second");
       }});
  add({"RenameNoReplace", two_files, [](Actor& a) {
         a.rename("a", "b", RENAME_NOREPLACE);
         a.rename("a", "c", RENAME_NOREPLACE);
         a.list("");
       }});
  add({"RenameExchange", two_files, [](Actor& a) {
         a.rename("a", "b", RENAME_EXCHANGE);
         a.rename("a", "missing", RENAME_EXCHANGE);
         a.list("");
       }});
  add({"RenameExchangeKinds", directories, [](Actor& a) {
         a.rename("file", "full", RENAME_EXCHANGE);
         a.rename("link", "empty", RENAME_EXCHANGE);
         a.list("");
       }});
  add({"RenameExchangeWithAncestor", directories, [](Actor& a) {
         a.rename("full", "full/sub", RENAME_EXCHANGE);
         a.rename("full/sub", "full", RENAME_EXCHANGE);
       }});
  add({"RenameWhiteout", two_files, [](Actor& a) {
         a.rename("a", "c", RENAME_WHITEOUT);
         a.stat("a");
         a.stat("c");
       }});
  add({"RenameFlagsThatExclude", two_files, [](Actor& a) {
         a.rename("a", "b", RENAME_EXCHANGE | RENAME_NOREPLACE);
         a.rename("a", "b", RENAME_EXCHANGE | RENAME_WHITEOUT);
         a.rename("a", "b", 1U << 10);
       }});
  add({"RenameDirectories", directories, [](Actor& a) {
         a.rename("empty", "full");
         a.rename("full", "empty");
         a.list("empty");
         a.rename("empty", "empty/sub/inside");
         a.rename("empty", "file");
         a.rename("file", "empty");
         a.rename("missing", "x");
         a.rename("file", "missing/x");
       }});
  add({"RenameIntoAnotherDirectory", directories, [](Actor& a) {
         a.rename("file", "empty/file");
         a.rename("full/sub", "empty/sub");
         a.stat("full");
         a.stat("empty");
         a.rename("link", "empty/link");
         a.readlink("empty/link");
       }});
  add({"Unlink", directories, [](Actor& a) {
         a.unlink("file");
         a.unlink("file");
         a.unlink("full");
         a.unlink("link");
         a.unlink("full/file");
         a.unlink("missing/file");
         a.list("");
       }});
  add({"Rmdir", directories, [](Actor& a) {
         a.rmdir("empty");
         a.rmdir("empty");
         a.rmdir("full");
         a.rmdir("file");
         a.rmdir("link");
         a.rmdir("full/sub");
         a.stat("full");
       }});
  add({"LinkKinds", directories, [](Actor& a) {
         a.link("file", "second");
         a.stat("file");
         a.link("full", "directory");
         a.link("link", "link2");
         a.stat("link");
         a.readlink("link2");
         a.link("missing", "x");
         a.link("file", "missing/x");
         a.link("file", "full/file");
       }});
  add({"LinkOfSpecialFiles", nothing, [](Actor& a) {
         a.mknod("fifo", S_IFIFO | 0600);
         a.link("fifo", "fifo2");
         a.stat("fifo2");
       }});
  add({"SymlinkTargets", nothing, [](Actor& a) {
         a.symlink("short", "x");
         a.symlink("absolute", "/etc/passwd");
         a.symlink("long", std::string(4000, 'l'));
         a.symlink("dots", "../../..");
         for (const char* name : {"short", "absolute", "long", "dots"}) {
           a.readlink(name);
           a.stat(name);
         }
         a.readlink("missing");
       }});
  add({"SymlinkOfAUser", open_root, [](Actor& a) {
         a.as(1000, 1001, {});
         a.symlink("link", "target");
         a.stat("link");
       }});
  add({"ReadlinkOfOtherKinds",
       directories,
       [](Actor& a) {
         a.readlink("file");
         a.readlink("full");
       },
       {"-o", "xattr"},
       true});
  add({"ListKinds", directories, [](Actor& a) {
         a.mknod("fifo", S_IFIFO | 0600);
         a.list("");
         a.list("empty");
         a.list("full");
         a.list("file");
         a.list("missing");
       }});
  add({"ListManyEntries",
       [](const TempTree& tree) {
         for (int i = 0; i < 700; ++i) tree.write("entry" + std::to_string(i), "");
       },
       [](Actor& a) { a.list(""); }});
  add({"OddNames", nothing, [](Actor& a) {
         for (const char* name : {" ", "\n", "\\", "*", "\xff\xfe", "-rf", "..."}) {
           a.mkdir(name, 0755);
           a.stat(name);
         }
         a.list("");
       }});
  add({"DirectoryLinksFollowItsChildren", nothing, [](Actor& a) {
         a.mkdir("dir", 0755);
         a.stat("dir");
         a.mkdir("dir/a", 0755);
         a.mkdir("dir/b", 0755);
         a.stat("dir");
         a.rmdir("dir/a");
         a.stat("dir");
       }});
  add({"StatfsAnywhere", directories, [](Actor& a) {
         a.statfs("");
         a.statfs("full/sub");
         a.statfs("file");
         a.statfs("missing");
       }});
  return cases;
}

std::vector<Case> attribute_cases() {
  std::vector<Case> cases;
  const auto add = [&](Case one) { cases.push_back(std::move(one)); };
  for (const std::uint32_t mode : {0U, 0111U, 0644U, 01777U, 02755U, 04755U, 06777U}) {
    add({"Chmod" + octal(mode), one_file, [=](Actor& a) {
           a.chmod("file", mode);
           a.stat("file");
         }});
    add({"ChownDropsSetIds" + octal(mode), [=](const TempTree& t) { set_id_file(t, mode); },
         [](Actor& a) {
           a.chown("file", 1, 2);
           a.stat("file");
         }});
    add({"WriteAsUserDropsSetIds" + octal(mode | 0600),
         [=](const TempTree& t) { set_id_file(t, mode | 0600); },
         [](Actor& a) {
           a.as(1000, 3000, {});
           const auto file = a.open("file", O_RDWR);
           a.write(file, 3, "xyz");
           a.fstat(file);
           a.close(file);
         },
         {"-o", "killpriv_v2"}});
    add({"TruncateAsUserDropsSetIds" + octal(mode | 0600),
         [=](const TempTree& t) { set_id_file(t, mode | 0600); },
         [](Actor& a) {
           a.as(1000, 3000, {});
           a.truncate("file", 3);
           a.stat("file");
         },
         {"-o", "killpriv_v2"}});
    add({"OpenTruncAsUserDropsSetIds" + octal(mode | 0600),
         [=](const TempTree& t) { set_id_file(t, mode | 0600); },
         [](Actor& a) {
           a.as(1000, 3000, {});
           a.close(a.open("file", O_WRONLY | O_TRUNC));
           a.stat("file");
         },
         {"-o", "killpriv_v2"}});
  }
  add({"WriteAsRootKeepsSetIds",
       [](const TempTree& t) { set_id_file(t, 06755); },
       [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.write(file, 0, "x");
         a.ftruncate(file, 4);
         a.fstat(file);
         a.close(file);
       },
       {"-o", "killpriv_v2"}});
  add({"WriteDropsCapabilities",
       capability,
       [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.write(file, 0, "x");
         a.close(file);
       },
       {"-o", "xattr,killpriv_v2"}});
  add({"TruncateDropsCapabilities",
       capability,
       [](Actor& a) { a.truncate("file", 2); },
       {"-o", "xattr,killpriv_v2"}});
  add({"ChownDropsCapabilities",
       capability,
       [](Actor& a) { a.chown("file", 1, {}); },
       {"-o", "xattr,killpriv_v2"}});
  add({"ChownPieces", one_file, [](Actor& a) {
         a.chown("file", 5, {});
         a.stat("file");
         a.chown("file", {}, 6);
         a.stat("file");
         a.chown("file", {}, {});
         a.stat("file");
         a.chown("missing", 1, 1);
       }});
  add({"ChownOfASymlinkIsItsOwn",
       [](const TempTree& tree) {
         one_file(tree);
         tree.symlink("link", "file");
       },
       [](Actor& a) {
         a.chown("link", 7, 8);
         a.stat("link");
         a.stat("file");
       }});
  add({"ChownOfADirectoryKeepsItsSetGid", set_gid_directory, [](Actor& a) {
         a.chown("shared", 1, 1);
         a.stat("shared");
       }});
  add({"AttributesOfSpecialFiles", nothing, [](Actor& a) {
         a.mknod("fifo", S_IFIFO | 0600);
         a.mknod("null", S_IFCHR | 0600, makedev(1, 3));
         for (const char* name : {"fifo", "null"}) {
           a.chmod(name, 0666);
           a.chown(name, 3, 4);
           a.utimens(name, Actor::Time{1, 2}, Actor::Time{3, 4});
           a.stat(name);
           a.stat_times(name);
         }
       }});
  add({"TruncateSizes", one_file, [](Actor& a) {
         for (const std::uint64_t size : {std::uint64_t{4}, std::uint64_t{0}, std::uint64_t{70000},
                                          std::uint64_t{1} << 40, std::uint64_t{1} << 62}) {
           a.truncate("file", size);
           a.stat("file");
         }
         a.truncate("file", 10);
       }});
  add({"TruncateOtherKinds", [](const TempTree& tree) { tree.mkdir("dir"); },
       [](Actor& a) {
         a.truncate("dir", 0);
         a.truncate("missing", 0);
       }});
  using Time = Actor::Time;
  const auto times = [&](std::string name, std::optional<Time> access, std::optional<Time> modify) {
    add({"Times" + name, one_file, [=](Actor& a) {
           a.utimens("file", Time{11, 0}, Time{22, 0});
           a.utimens("file", access, modify);
           a.stat_times("file");
         }});
  };
  times("Both", Time{1'000'000'000, 1}, Time{1'100'000'000, 999'999'999});
  times("AccessOnly", Time{5, 5}, {});
  times("ModifyOnly", {}, Time{6, 6});
  times("Neither", {}, {});
  times("AccessNow", Time{Time::kNow, 0}, {});
  times("ModifyNow", Time{7, 7}, Time{Time::kNow, 0});
  times("BothNow", Time{Time::kNow, 0}, Time{Time::kNow, 0});
  times("BeforeTheEpoch", Time{-100, 5}, Time{-2, 0});
  times("FarAhead", Time{4'000'000'000, 0}, Time{9'000'000'000, 0});
  add({"TimesOfASymlinkAreItsOwn",
       [](const TempTree& tree) {
         one_file(tree);
         tree.symlink("link", "file");
       },
       [](Actor& a) {
         a.utimens("file", Time{1, 1}, Time{2, 2});
         a.utimens("link", Time{3, 3}, Time{4, 4});
         a.stat_times("link");
         a.stat_times("file");
       }});
  add({"WritingChangesTheTime", one_file, [](Actor& a) {
         a.utimens("file", Time{1, 1}, Time{2, 2});
         const auto file = a.open("file", O_RDWR);
         a.write(file, 0, "x");
         a.close(file);
         a.stat_times("file");
         a.utimens("file", Time{1, 1}, Time{2, 2});
         a.truncate("file", 1);
         a.stat_times("file");
         a.utimens("file", Time{1, 1}, Time{2, 2});
         a.chmod("file", 0600);
         a.stat_times("file");
       }});
  return cases;
}

std::vector<Case> file_cases() {
  std::vector<Case> cases;
  const auto add = [&](Case one) { cases.push_back(std::move(one)); };
  const auto blocks = [](const TempTree& tree) {
    std::string content;
    for (char letter = 'a'; letter < 'q'; ++letter) content += std::string(4096, letter);
    tree.write("file", content);
    tree.write("empty", "");
    // On the disk, so that holes and data lie the same way in both trees.
    sync();
  };
  add({"ReadEverywhere", one_file, [](Actor& a) {
         const auto file = a.open("file", O_RDONLY);
         a.read(file, 0, 100);
         a.read(file, 10, 3);
         a.read(file, 16, 1);
         a.read(file, 1000, 10);
         a.read(file, 0, 0);
         a.write(file, 0, "x");
         a.close(file);
       }});
  add({"WriteEverywhere", one_file, [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.write(file, 0, "ABC");
         a.write(file, 16, "end");
         a.write(file, 100, "gap");
         a.write(file, 5, "");
         a.fstat(file);
         a.read(file, 0, 200);
         a.close(file);
         a.read(file, 0, 1);
       }});
  add({"WriteOnly", one_file, [](Actor& a) {
         const auto file = a.open("file", O_WRONLY);
         a.read(file, 0, 1);
         a.write(file, 1, "x");
         a.close(file);
       }});
  add({"WriteAppends",
       one_file,
       [](Actor& a) {
         const auto file = a.open("file", O_RDWR | O_APPEND);
         a.write(file, 0, "one");
         a.write(file, 5, "two");
         a.fstat(file);
         a.ftruncate(file, 4);
         a.write(file, 0, "three");
         a.close(file);
       },
       {"-o", "xattr"},
       true});
  add({"WriteFarAway", one_file, [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.write(file, (1ULL << 40) - 1, "x");
         a.fstat(file);
         a.write(file, (1ULL << 62), "x");
         a.ftruncate(file, 3);
         a.close(file);
       }});
  add({"OpenTruncates", one_file, [](Actor& a) {
         a.close(a.open("file", O_RDWR | O_TRUNC));
         a.stat("file");
         a.close(a.open("file", O_RDWR | O_CREAT | O_TRUNC, 0600));
         a.stat("file");
       }});
  add({"OpenMissing", nothing, [](Actor& a) {
         a.open("missing", O_RDWR);
         a.open("missing/file", O_RDWR | O_CREAT, 0644);
       }});
  add({"OpenADirectoryForWriting", [](const TempTree& tree) { tree.mkdir("dir"); },
       [](Actor& a) {
         a.open("dir", O_RDWR);
         a.open("dir", O_WRONLY);
       }});
  add({"UseAfterUnlink", one_file, [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.unlink("file");
         a.write(file, 0, "still");
         a.read(file, 0, 100);
         a.fstat(file);
         a.ftruncate(file, 2);
         a.fstat(file);
         a.close(file);
         a.stat("file");
       }});
  add({"FsyncBothKinds", one_file, [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.write(file, 0, "x");
         a.fsync(file, false);
         a.fsync(file, true);
         a.close(file);
       }});
  const struct {
    const char* name;
    int mode;
  } modes[] = {
      {"Allocate", 0},
      {"KeepSize", FALLOC_FL_KEEP_SIZE},
      {"PunchHole", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE},
      {"PunchHoleWithoutKeep", FALLOC_FL_PUNCH_HOLE},
      {"ZeroRange", FALLOC_FL_ZERO_RANGE},
      {"ZeroRangeKeep", FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE},
      {"Collapse", FALLOC_FL_COLLAPSE_RANGE},
      {"Insert", FALLOC_FL_INSERT_RANGE},
      {"Unshare", FALLOC_FL_UNSHARE_RANGE},
      {"Unknown", 0x8000},
  };
  for (const auto& mode : modes) {
    add({std::string("Fallocate") + mode.name, blocks, [=](Actor& a) {
           const auto file = a.open("file", O_RDWR);
           a.fallocate(file, mode.mode, 4096, 8192);
           a.fstat(file);
           a.fallocate(file, mode.mode, 60000, 100000);
           a.fstat(file);
           a.fallocate(file, mode.mode, 0, 0);
           a.fallocate(file, mode.mode, 5, 7);
           a.close(file);
           const auto readonly = a.open("file", O_RDONLY);
           a.fallocate(readonly, mode.mode, 0, 4096);
           a.close(readonly);
         }});
  }
  add({"FallocateOnAnAppendFile",
       blocks,
       [](Actor& a) {
         const auto file = a.open("file", O_RDWR | O_APPEND);
         a.fallocate(file, 0, 0, 100000);
         a.fstat(file);
         a.close(file);
       },
       {"-o", "xattr"},
       true});
  add({"FallocateHuge", one_file, [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.fallocate(file, 0, 1ULL << 62, 4096);
         a.fallocate(file, 0, 0, 1ULL << 62);
         a.close(file);
       }});
  add({"LseekDataAndHoles", blocks, [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 16384);
         for (const std::uint64_t offset : {0, 4096, 8192, 10000, 24576, 65535, 65536, 100000}) {
           a.lseek(file, offset, SEEK_DATA);
           a.lseek(file, offset, SEEK_HOLE);
         }
         a.lseek(file, 0, 77);
         a.close(file);
       }});
  add({"LseekInAnEmptyFile", blocks, [](Actor& a) {
         const auto file = a.open("empty", O_RDONLY);
         a.lseek(file, 0, SEEK_DATA);
         a.lseek(file, 0, SEEK_HOLE);
         a.close(file);
       }});
  add({"CopyBetweenFiles", blocks, [](Actor& a) {
         const auto from = a.open("file", O_RDONLY);
         const auto to = a.open("empty", O_RDWR);
         a.copy(from, 0, to, 0, 65536);
         a.copy(from, 4090, to, 10, 100);
         a.copy(from, 65536, to, 0, 10);
         a.copy(from, 65530, to, 0, 100);
         a.copy(from, 0, to, 200000, 10);
         a.copy(from, 0, to, 0, 0);
         a.copy(from, 0, to, 0, 10, 1);
         a.copy(to, 0, from, 0, 10);
         a.fstat(to);
         a.close(from);
         a.close(to);
       }});
  add({"CopyWithinAFile", blocks, [](Actor& a) {
         const auto file = a.open("file", O_RDWR);
         a.copy(file, 0, file, 32768, 4096);
         a.copy(file, 0, file, 2048, 4096);
         a.close(file);
       }});
  add({"CopyToAnAppendFile", blocks, [](Actor& a) {
         const auto from = a.open("file", O_RDONLY);
         const auto to = a.open("empty", O_RDWR);
         a.copy(from, 0, to, 0, 100);
         a.close(from);
         a.close(to);
       }});
  add({"LocksOfTwoOwners", one_file, [](Actor& a) {
         const auto one = a.open("file", O_RDWR);
         const auto two = a.open("file", O_RDWR);
         a.lock(one, F_WRLCK, 0, 10);
         a.lock(two, F_WRLCK, 5, 10);
         a.lock(two, F_WRLCK, 10, 10);
         a.lock(two, F_RDLCK, 0, 5);
         a.lock(one, F_RDLCK, 0, 10);
         a.lock(two, F_RDLCK, 0, 5);
         a.lock(one, F_UNLCK, 0, 0);
         a.lock(two, F_WRLCK, 0, 0);
         a.close(two);
         a.lock(one, F_WRLCK, 0, 0);
         a.close(one);
       }});
  add({"LocksOnReadOnlyFiles", one_file, [](Actor& a) {
         const auto one = a.open("file", O_RDONLY);
         a.lock(one, F_RDLCK, 0, 10);
         a.lock(one, F_UNLCK, 0, 10);
         a.close(one);
       }});
  add({"FlockOfTwoHandles", one_file, [](Actor& a) {
         const auto one = a.open("file", O_RDWR);
         const auto two = a.open("file", O_RDONLY);
         a.flock(one, LOCK_SH);
         a.flock(two, LOCK_SH);
         a.flock(one, LOCK_EX);
         a.flock(two, LOCK_UN);
         a.flock(one, LOCK_EX);
         a.flock(two, LOCK_SH);
         a.close(one);
         a.flock(two, LOCK_EX);
         a.close(two);
       }});
  return cases;
}

std::vector<Case> xattr_cases() {
  std::vector<Case> cases;
  const auto add = [&](Case one) { cases.push_back(std::move(one)); };
  const auto kinds = [](const TempTree& tree) {
    one_file(tree);
    tree.mkdir("dir");
    tree.fifo("fifo");
    tree.symlink("link", "file");
  };
  for (const char* path : {"file", "dir", "fifo", "link"}) {
    add({std::string("XattrOn") + path, kinds, [=](Actor& a) {
           a.setxattr(path, "user.name", "value");
           a.getxattr(path, "user.name");
           a.getxattr(path, "user.name", 0);
           a.listxattr(path);
           a.removexattr(path, "user.name");
           a.removexattr(path, "user.name");
         }});
  }
  add({"XattrFlags", one_file, [](Actor& a) {
         a.setxattr("file", "user.x", "1", XATTR_REPLACE);
         a.setxattr("file", "user.x", "1", XATTR_CREATE);
         a.setxattr("file", "user.x", "2", XATTR_CREATE);
         a.setxattr("file", "user.x", "3", XATTR_REPLACE);
         a.setxattr("file", "user.x", "4", 0x40);
         a.setxattr("file", "user.x", "4", XATTR_CREATE | XATTR_REPLACE);
         a.getxattr("file", "user.x");
       }});
  add({"XattrSizes", one_file, [](Actor& a) {
         a.setxattr("file", "user.empty", "");
         a.getxattr("file", "user.empty");
         a.setxattr("file", "user.long", std::string(3000, 'v'));
         a.getxattr("file", "user.long", 10);
         a.getxattr("file", "user.long", 3000);
         a.getxattr("file", "user.long", 0);
         a.listxattr("file", 3);
         a.listxattr("file", 0);
         a.setxattr("file", "user.huge", std::string(65536, 'v'));
         a.setxattr("file", "user.huger", std::string(65537, 'v'));
       }});
  add({"XattrNames", one_file, [](Actor& a) {
         a.setxattr("file", "user." + std::string(250, 'n'), "v");
         a.setxattr("file", "user." + std::string(251, 'n'), "v");
         a.setxattr("file", "user.", "v");
         a.setxattr("file", "nonsense", "v");
         a.setxattr("file", "nonsense.name", "v");
         a.getxattr("file", "nonsense.name");
         a.getxattr("file", "user.missing");
         a.removexattr("file", "user.missing");
         a.removexattr("file", "nonsense.name");
       }});
  add({"XattrOfNothing", nothing, [](Actor& a) {
         a.getxattr("missing", "user.x");
         a.listxattr("missing");
         a.listxattr("");
       }});
  add({"XattrMany", one_file, [](Actor& a) {
         for (int i = 0; i < 50; ++i)
           a.setxattr("file", "user.n" + std::to_string(i), std::to_string(i));
         a.listxattr("file");
         a.listxattr("file", 0);
       }});
  return cases;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases = creation_cases();
  for (auto more : {name_cases(), attribute_cases(), file_cases(), xattr_cases()})
    cases.insert(cases.end(), more.begin(), more.end());
  return cases;
}

class Parity : public DeviceFixture, public ::testing::WithParamInterface<Case> {};

TEST_P(Parity, SameAsOnTheHost) {
  const Case& parity = GetParam();
  if (parity.ours_only && foreign()) GTEST_SKIP() << "a peer is known to differ";
  start(parity.arguments);
  if (IsSkipped() || HasFatalFailure()) return;

  const mode_t before = umask(0);
  const TempTree host_tree;
  parity.prepare(host_tree);
  parity.prepare(tree());
  std::vector<std::string> expected;
  {
    HostActor host{host_tree};
    parity.act(host);
    expected = host.transcript();
  }
  umask(before);
  GuestActor guest{fuse()};
  parity.act(guest);

  EXPECT_EQ(guest.transcript(), expected);
  EXPECT_EQ(describe_tree(tree()), describe_tree(host_tree));
}

INSTANTIATE_TEST_SUITE_P(Cases, Parity, ::testing::ValuesIn(all_cases()),
                         [](const auto& parity) { return parity.param.name; });

}  // namespace
}  // namespace virtiofsd::guest
