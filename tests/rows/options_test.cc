// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The rows of the first man page whose effect a guest sees: S4, S6, S9 to S14,
// S17 and S18.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdio>

#include "tests/rows/vm.h"

namespace virtiofsd::guest {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Words = std::vector<std::string>;

ROW(S4_debug);
ROW(S6_log_level);
ROW(S9_norace);
ROW(S10_readdirplus);
ROW(S11_source);
ROW(S12_timeout);
ROW(S13_writeback);
ROW(S14_xattr);
ROW(S17_thread_pool_size);
ROW(S18_cache);

// ---- S4: -d, -o debug ----

TEST_F(S4_debug, ShowsALineForEachRequestAndEachReply) {
  tree().write("file", "x");
  for (const Words& arguments : {Words{"-d"}, Words{"-o", "debug"}, Words{"--debug"}}) {
    const Vm vm(share(), arguments);
    vm.node("file");
    EXPECT_REFUSED(ENOENT, vm->unlink(kRoot, "none"));
    const std::string said = vm.daemon().output();
    EXPECT_THAT(said, HasSubstr("LOOKUP (1) node=0x1"));
    EXPECT_THAT(said, HasSubstr("LOOKUP -> 0 ("));
    EXPECT_THAT(said, HasSubstr("UNLINK (10) node=0x1"));
    EXPECT_THAT(said, HasSubstr("UNLINK -> No such file or directory (ENOENT)"));
  }
}

TEST_F(S4_debug, IsOffUnlessAskedFor) {
  tree().write("file", "x");
  const Vm vm(share());
  vm.node("file");
  EXPECT_THAT(vm.daemon().output(), Not(HasSubstr("LOOKUP")));
}

// ---- S6: -o log_level=err|warn|info|debug ----

TEST_F(S6_log_level, PrintsWhatIsAsSevereOrMore) {
  struct {
    const char* level;
    bool warns, informs, debugs;
  } const levels[] = {{"err", false, false, false},
                      {"warn", true, false, false},
                      {"info", true, true, false},
                      {"debug", true, true, true}};
  for (const auto& [level, warns, informs, debugs] : levels) {
    for (const Words& spelling :
         {Words{"-o", std::string("log_level=") + level},
          Words{"-o", std::string("loglevel=") + level}, Words{std::string("--log-level=") + level},
          Words{"--log-level", level}}) {
      SCOPED_TRACE(level);
      Words arguments = spelling;
      arguments.emplace_back("--posix-acl=always");
      // A guest that can't do what was asked for is warned of.
      const Vm vm(share(), arguments, {.init_flags = FUSE_MAX_PAGES});
      const std::string said = vm.daemon().output();
      EXPECT_EQ(said.find("does not support") != std::string::npos, warns) << said;
      EXPECT_EQ(said.find("client connected") != std::string::npos, informs) << said;
      EXPECT_EQ(said.find("INIT") != std::string::npos, debugs) << said;
    }
  }
}

// ---- S9: -o norace ----

// There is no fallback by name to disable, so that the option changes nothing:
// a symlink is changed itself, with the option and without, also when its name
// leads somewhere else by now; one that isn't held by a descriptor yet and
// can't be found again is ESTALE, and the guest looks its path up anew.
TEST_F(S9_norace, ASymlinkIsChangedItselfAndNeverWhatTookItsName) {
  for (const Words& arguments : {Words{"-o", "norace"}, Words{"--norace"}, Words{}}) {
    for (const bool held : {true, false}) {
      SCOPED_TRACE(::testing::PrintToString(arguments) + (held ? " held" : ""));
      tree().symlink("link", "first");
      const Vm vm(share(), arguments);
      const std::uint64_t link = vm.node("link");
      if (held) {
        EXPECT_EQ(GET(vm->readlink(link)), "first");
      }
      ASSERT_EQ(::rename(tree().path("link").c_str(), tree().path("moved").c_str()), 0);
      tree().symlink("link", "second");
      const auto before = tree().stat("link").st_mtim.tv_sec;

      fuse_setattr_in in{};
      in.valid = FATTR_MTIME;
      in.mtime = 1'000'000'000;
      const auto timed = vm->setattr(link, in);
      in = {};
      in.valid = FATTR_UID | FATTR_GID;
      in.uid = in.gid = 1234;
      const auto owned = vm->setattr(link, in);

      if (held || timed) {
        EXPECT_DONE(timed);
        EXPECT_DONE(owned);
        EXPECT_EQ(tree().stat("moved").st_mtim.tv_sec, 1'000'000'000);
        EXPECT_EQ(tree().stat("moved").st_uid, 1234U);
      } else {
        EXPECT_REFUSED(ESTALE, timed);
        EXPECT_REFUSED(ESTALE, owned);
      }
      EXPECT_EQ(tree().stat("link").st_mtim.tv_sec, before);
      EXPECT_EQ(tree().stat("link").st_uid, 0U);
      tree().remove("link");
      tree().remove("moved");
    }
  }
}

// ---- S10: -o readdirplus|no_readdirplus ----

TEST_F(S10_readdirplus, IsOnExceptWithoutCacheAndTheLastWordWins) {
  struct {
    Words arguments;
    bool on;
  } const cases[] = {{{}, true},
                     {{"-o", "no_readdirplus"}, false},
                     {{"-o", "no_readdirplus,readdirplus"}, true},
                     {{"--no-readdirplus"}, false},
                     {{"--cache=none"}, false},
                     {{"--cache=none", "-o", "readdirplus"}, true}};
  for (const auto& [arguments, on] : cases) {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const Vm vm(share(), arguments);
    EXPECT_EQ(vm->has(FUSE_DO_READDIRPLUS), on);
    EXPECT_EQ(vm->has(FUSE_READDIRPLUS_AUTO), on) << "the one means nothing without the other";
  }
}

TEST_F(S10_readdirplus, BringsTheAttributesAlong) {
  tree().write("file", "four", 0640);
  const Vm vm(share());
  for (const Entry& entry : GET(vm->list(kRoot, true))) {
    if (entry.name != "file") continue;
    EXPECT_EQ(entry.entry.attr.size, 4U);
    EXPECT_EQ(entry.entry.attr.mode, S_IFREG | 0640U);
    EXPECT_EQ(entry.entry.nodeid, vm.node("file"));
    return;
  }
  FAIL() << "the file isn't listed";
}

// ---- S11: -o source=PATH ----

TEST_F(S11_source, IsWhatTheGuestSees) {
  tree().mkdir("a,b c");
  tree().write("a,b c/inside", "yes");
  const std::string path = tree().path("a,b c");
  std::string escaped = path;
  escaped.replace(escaped.find(','), 1, "\\,");
  std::string doubled = path;
  doubled.replace(doubled.find(','), 1, ",,");
  std::string octal = path;
  octal.replace(octal.find(','), 1, "\\054");
  for (const Words& arguments :
       {Words{"-o", "source=" + escaped}, Words{"-osource=" + escaped},
        Words{"-o", "source=" + doubled}, Words{"-o", "xattr,source=" + octal + ",no_xattr"},
        Words{"--source=" + path}, Words{"--shared-dir", path},
        Words{"-o", "source=/nowhere", "-o", "source=" + escaped}}) {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const Vm vm({}, arguments, {.gives_directory = false});
    EXPECT_DONE(vm->lookup(kRoot, "inside"));
  }
}

TEST_F(S11_source, IsRequired) {
  DaemonOptions options;
  options.connect = false;
  const auto daemon = DaemonProcess::start(std::move(options));
  ASSERT_TRUE(daemon);
  ASSERT_TRUE((*daemon)->wait(within(std::chrono::seconds(10))));
  EXPECT_THAT((*daemon)->output(), HasSubstr("-o source="));
}

// ---- S12: -o timeout=SECS ----

TEST_F(S12_timeout, IsHowLongNamesAndAttributesLast) {
  tree().write("file", "x");
  struct {
    Words arguments;
    std::uint64_t seconds;
    std::uint32_t nanoseconds;
  } const cases[] = {{{"-o", "timeout=2.5"}, 2, 500'000'000},
                     {{"-o", "timeout=0.25"}, 0, 250'000'000},
                     {{"-o", "timeout=7"}, 7, 0},
                     {{"--timeout=0"}, 0, 0},
                     // Whatever the mode's own is, in whatever order.
                     {{"-o", "timeout=3,cache=always"}, 3, 0},
                     {{"--cache=none", "-o", "timeout=4"}, 4, 0},
                     {{"-o", "timeout=4,timeout=5"}, 5, 0}};
  for (const auto& [arguments, seconds, nanoseconds] : cases) {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    const Vm vm(share(), arguments);
    const fuse_entry_out entry = GET(vm->lookup(kRoot, "file"));
    EXPECT_EQ(entry.entry_valid, seconds);
    EXPECT_EQ(entry.entry_valid_nsec, nanoseconds);
    EXPECT_EQ(entry.attr_valid, seconds);
    EXPECT_EQ(entry.attr_valid_nsec, nanoseconds);
    const fuse_getattr_in in{};
    const Reply reply = vm->call(FUSE_GETATTR, entry.nodeid, {bytes_of(in)}, sizeof(fuse_attr_out));
    const fuse_attr_out attr = GET(reply.as<fuse_attr_out>());
    EXPECT_EQ(attr.attr_valid, seconds);
    EXPECT_EQ(attr.attr_valid_nsec, nanoseconds);
  }
}

// ---- S13: -o writeback|no_writeback ----

TEST_F(S13_writeback, IsOffUnlessAskedForAndTheGuestCan) {
  EXPECT_FALSE(Vm(share())->has(FUSE_WRITEBACK_CACHE));
  EXPECT_FALSE(Vm(share(), {"-o", "writeback,no_writeback"})->has(FUSE_WRITEBACK_CACHE));
  EXPECT_TRUE(Vm(share(), {"-o", "writeback"})->has(FUSE_WRITEBACK_CACHE));
  EXPECT_TRUE(Vm(share(), {"--writeback"})->has(FUSE_WRITEBACK_CACHE));
  EXPECT_FALSE(
      Vm(share(), {"-o", "writeback"}, {.init_flags = FUSE_MAX_PAGES})->has(FUSE_WRITEBACK_CACHE));
}

TEST_F(S13_writeback, TheCacheCanReadAFileOpenForWritingOnly) {
  tree().write("old", "0123456789");
  for (const bool on : {false, true}) {
    const Vm vm(share(), on ? Words{"-o", "writeback"} : Words{});
    const std::uint64_t old = vm.node("old");
    const std::uint64_t opened = GET(vm->open(old, O_WRONLY)).fh;
    const CreatedFile made = GET(vm->create(kRoot, on ? "new1" : "new0", O_WRONLY, 0644));
    EXPECT_EQ(GET(vm->write(made.entry.nodeid, made.open.fh, 0, "fresh")), 5U);
    if (on) {
      // Writing a part of a page back takes the rest of it.
      EXPECT_EQ(GET(vm->read(old, opened, 0, 100)), "0123456789");
      EXPECT_EQ(GET(vm->read(made.entry.nodeid, made.open.fh, 0, 100)), "fresh");
    } else {
      EXPECT_REFUSED(EBADF, vm->read(old, opened, 0, 100));
      EXPECT_REFUSED(EBADF, vm->read(made.entry.nodeid, made.open.fh, 0, 100));
    }
  }
}

TEST_F(S13_writeback, AFileThatMayOnlyBeWrittenStillOpens) {
  tree().write("secret", "x", 0200);
  const Vm vm(share(), {"-o", "writeback"});
  const std::uint64_t file = vm.node("secret");
  const std::uint64_t handle = GET(vm->open(file, O_WRONLY)).fh;
  EXPECT_EQ(GET(vm->write(file, handle, 0, "y", FUSE_WRITE_CACHE)), 1U);
  EXPECT_EQ(tree().read("secret"), "y");
}

TEST_F(S13_writeback, WithItTheGuestKnowsTheEndAndWithoutItTheHost) {
  tree().write("log", "0123456789");
  {
    const Vm vm(share(), {"-o", "writeback"});
    const std::uint64_t log = vm.node("log");
    const std::uint64_t handle = GET(vm->open(log, O_WRONLY | O_APPEND)).fh;
    // A page written back goes where it belongs.
    EXPECT_EQ(GET(vm->write(log, handle, 0, "AB", FUSE_WRITE_CACHE, O_WRONLY | O_APPEND)), 2U);
    EXPECT_EQ(tree().read("log"), "AB23456789");
  }
  {
    const Vm vm(share());
    const std::uint64_t log = vm.node("log");
    const std::uint64_t handle = GET(vm->open(log, O_WRONLY | O_APPEND)).fh;
    // The guest's idea of the end may be old.
    EXPECT_EQ(GET(vm->write(log, handle, 3, "CD", 0, O_WRONLY | O_APPEND)), 2U);
    EXPECT_EQ(tree().read("log"), "AB23456789CD");
  }
}

// ---- S14: -o xattr|no_xattr ----

TEST_F(S14_xattr, IsOffUnlessAskedFor) {
  tree().write("file", "x");
  if (::setxattr(tree().path("file").c_str(), "user.host", "1", 1, 0) != 0)
    GTEST_SKIP() << "this file system has no user attributes";
  for (const Words& arguments : {Words{}, Words{"-o", "no_xattr"}, Words{"-o", "xattr,no_xattr"}}) {
    const Vm vm(share(), arguments);
    const std::uint64_t file = vm.node("file");
    // Tells the guest not to ask again.
    EXPECT_REFUSED(ENOSYS, vm->setxattr(file, "user.a", "1"));
    EXPECT_REFUSED(ENOSYS, vm->getxattr(file, "user.host", 100));
    EXPECT_REFUSED(ENOSYS, vm->listxattr(file, 100));
    EXPECT_REFUSED(ENOSYS, vm->removexattr(file, "user.host"));
  }
  for (const Words& arguments : {Words{"-o", "xattr"}, Words{"--xattr"}}) {
    const Vm vm(share(), arguments);
    const std::uint64_t file = vm.node("file");
    EXPECT_DONE(vm->setxattr(file, "user.a", "value"));
    char value[16] = {};
    EXPECT_EQ(::getxattr(tree().path("file").c_str(), "user.a", value, sizeof value), 5);
    EXPECT_EQ(GET(vm->getxattr(file, "user.host", 100)), "1");
    EXPECT_THAT(GET(vm->listxattr(file, 1000)), HasSubstr("user.host"));
    EXPECT_DONE(vm->removexattr(file, "user.a"));
  }
}

// ---- S17: --thread-pool-size=NUM, per request queue, default 64 ----

// Files that can't be cut short before we say so: a lease of the host's on each.
class Held {
 public:
  Held(const TempTree& tree, unsigned count) {
    // What tells us that somebody wants the file, and would end us.
    ::signal(SIGIO, SIG_IGN);
    for (unsigned i = 0; i < count; ++i) {
      const std::string name = "held" + std::to_string(i);
      tree.write(name, "content");
      leases_.emplace_back(::open(tree.path(name).c_str(), O_RDONLY | O_CLOEXEC));
      works_ = works_ && ::fcntl(leases_.back().number(), F_SETLEASE, F_RDLCK) == 0;
    }
  }
  bool works() const { return works_; }
  // Begins one request for each file, which then blocks.
  std::vector<std::uint32_t> block(const Vm& vm) const {
    std::vector<std::uint64_t> nodes;
    for (std::size_t i = 0; i < leases_.size(); ++i)
      nodes.push_back(vm.node("held" + std::to_string(i)));
    fuse_setattr_in in{};
    in.valid = FATTR_SIZE;
    std::vector<std::uint32_t> slots;
    for (const std::uint64_t node : nodes) {
      const auto slot = vm->begin(FUSE_SETATTR, node, {bytes_of(in)}, sizeof(fuse_attr_out));
      EXPECT_TRUE(slot);
      slots.push_back(slot.value_or(0));
    }
    return slots;
  }
  void let_go() { leases_.clear(); }

 private:
  std::vector<UniqueFd> leases_;
  bool works_ = true;
};

std::uint32_t ask(const Vm& vm) {
  const fuse_getattr_in in{};
  const auto slot =
      vm->begin(FUSE_GETATTR, FuseClient::kRoot, {bytes_of(in)}, sizeof(fuse_attr_out));
  EXPECT_TRUE(slot);
  return slot.value_or(0);
}

// True as soon as it is answered; false after a while.
bool answered_soon(const Vm& vm, std::uint32_t slot) {
  const Deadline deadline = within(std::chrono::milliseconds(200));
  while (!vm->done(slot)) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::usleep(1000);
  }
  return true;
}

TEST_F(S17_thread_pool_size, SixtyFourBlockedRequestsDelayNobodyByDefault) {
  Held held(tree(), 64);
  if (!held.works()) GTEST_SKIP() << "this file system has no leases";
  const Vm vm(share(), {}, {.ring_size = 1024, .slots = 80});
  const auto blocked = held.block(vm);
  EXPECT_EQ(vm->finish(ask(vm)).error, 0);
  for (const std::uint32_t slot : blocked) EXPECT_FALSE(vm->done(slot));
  EXPECT_EQ(vm.threads(), 65U);
  held.let_go();
  for (const std::uint32_t slot : blocked) EXPECT_EQ(vm->finish(slot).error, 0);
}

TEST_F(S17_thread_pool_size, IsHowManyMayBeBlocked) {
  Held held(tree(), 4);
  if (!held.works()) GTEST_SKIP() << "this file system has no leases";
  {
    const Vm vm(share(), {"--thread-pool-size=4"});
    const auto blocked = held.block(vm);
    EXPECT_EQ(vm->finish(ask(vm)).error, 0);
    EXPECT_EQ(vm.threads(), 5U);
    held.let_go();
    for (const std::uint32_t slot : blocked) EXPECT_EQ(vm->finish(slot).error, 0);
  }
  Held again(tree(), 4);
  const Vm vm(share(), {"--thread-pool-size=2"});
  const auto blocked = again.block(vm);
  const std::uint32_t asked = ask(vm);
  EXPECT_FALSE(answered_soon(vm, asked));
  EXPECT_EQ(vm.threads(), 3U);
  again.let_go();
  EXPECT_EQ(vm->finish(asked).error, 0);
  for (const std::uint32_t slot : blocked) EXPECT_EQ(vm->finish(slot).error, 0);
}

TEST_F(S17_thread_pool_size, ZeroAndOneMeanOneThread) {
  for (const char* size : {"0", "1"}) {
    Held held(tree(), 1);
    if (!held.works()) GTEST_SKIP() << "this file system has no leases";
    const Vm vm(share(), {"--thread-pool-size", size});
    const auto blocked = held.block(vm);
    const std::uint32_t asked = ask(vm);
    EXPECT_FALSE(answered_soon(vm, asked));
    EXPECT_EQ(vm.threads(), 1U);
    held.let_go();
    EXPECT_EQ(vm->finish(asked).error, 0);
    EXPECT_EQ(vm->finish(blocked[0]).error, 0);
  }
}

// ---- S18: --cache=none|auto|always ----

TEST_F(S18_cache, EachModeTellsTheGuestWhatItMayKeep) {
  tree().write("file", "x");
  constexpr std::uint64_t kDay = 86400;
  struct {
    const char* mode;
    std::uint64_t seconds;
    bool direct, keeps, keeps_directories, keeps_symlinks, looks_for_changes;
  } const modes[] = {{"none", 0, true, false, false, false, true},
                     {"never", 0, true, false, false, false, true},
                     {"auto", 1, false, false, false, true, true},
                     {"metadata", kDay, true, false, true, true, true},
                     {"always", kDay, false, true, true, true, false}};
  for (const auto& mode : modes) {
    const std::string value = mode.mode;
    for (const Words& arguments :
         {Words{"--cache=" + value}, Words{"--cache", value}, Words{"-o", "cache=" + value}}) {
      SCOPED_TRACE(::testing::PrintToString(arguments));
      const Vm vm(share(), arguments);
      const fuse_entry_out entry = GET(vm->lookup(kRoot, "file"));
      EXPECT_EQ(entry.entry_valid, mode.seconds);
      EXPECT_EQ(entry.attr_valid, mode.seconds);
      // That there is no such name is kept as long; zero seconds is no entry but an error.
      const auto none = vm->lookup(kRoot, "none");
      if (mode.seconds == 0) {
        EXPECT_REFUSED(ENOENT, none);
      } else {
        ASSERT_TRUE(none);
        EXPECT_EQ(none->nodeid, 0U);
        EXPECT_EQ(none->entry_valid, mode.seconds);
      }
      const fuse_open_out file = GET(vm->open(entry.nodeid, O_RDWR));
      EXPECT_EQ((file.open_flags & FOPEN_DIRECT_IO) != 0, mode.direct);
      EXPECT_EQ((file.open_flags & FOPEN_KEEP_CACHE) != 0, mode.keeps);
      const fuse_open_out directory = GET(vm->opendir(kRoot));
      EXPECT_EQ((directory.open_flags & FOPEN_CACHE_DIR) != 0, mode.keeps_directories);
      EXPECT_EQ((directory.open_flags & FOPEN_KEEP_CACHE) != 0, mode.keeps_directories);
      EXPECT_EQ(vm->has(FUSE_CACHE_SYMLINKS), mode.keeps_symlinks);
      EXPECT_EQ(vm->has(FUSE_AUTO_INVAL_DATA), mode.looks_for_changes);
    }
  }
}

TEST_F(S18_cache, IsAutoUnlessSaid) {
  tree().write("file", "x");
  const Vm vm(share());
  EXPECT_EQ(GET(vm->lookup(kRoot, "file")).entry_valid, 1U);
}

}  // namespace
}  // namespace virtiofsd::guest
