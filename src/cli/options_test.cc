// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "cli/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace virtiofsd::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

Result<Options, UsageError> parse_words(std::vector<const char*> words) {
  words.insert(words.begin(), "virtiofsd");
  return parse(static_cast<int>(words.size()), words.data());
}

// With the socket and the directory that every start needs.
Result<Options, UsageError> parse_more(std::vector<const char*> words) {
  words.insert(words.end(), {"--socket-path=/s", "--shared-dir=/d"});
  return parse_words(std::move(words));
}

std::string complaint(std::vector<const char*> words) {
  auto options = parse_more(std::move(words));
  if (options) return "(accepted)";
  EXPECT_EQ(options.error().exit_status, 2);
  return options.error().text;
}

TEST(Options, TakeTheManPagesExampleAsItStands) {
  const auto options =
      parse_words({"--socket-path=/var/run/vm001-vhost-fs.sock", "-o", "source=/var/lib/fs/vm001"});
  ASSERT_TRUE(options);
  EXPECT_EQ(options->socket.path, "/var/run/vm001-vhost-fs.sock");
  EXPECT_EQ(options->sandbox.shared_dir, "/var/lib/fs/vm001");
  EXPECT_EQ(options->thread_pool_size, 64U);
  EXPECT_EQ(options->poll_us, 100U);
  EXPECT_EQ(options->cache, CacheMode::kAuto);
  EXPECT_TRUE(options->posix_lock);
  EXPECT_FALSE(options->flock);
  EXPECT_TRUE(options->readdirplus);
  EXPECT_FALSE(options->writeback);
  EXPECT_FALSE(options->xattr);
  EXPECT_EQ(options->log_level, log::Level::kInfo);
}

TEST(Options, TakeTheCommandLinesOfOtherLaunchers) {
  const auto old_libvirt = parse_words(
      {"--fd=27", "-o", "source=/a,,b,cache=always,sandbox=chroot,xattr,flock,no_posix_lock",
       "--thread-pool-size=8", "-d"});
  ASSERT_TRUE(old_libvirt);
  EXPECT_EQ(old_libvirt->socket.fd, 27);
  EXPECT_EQ(old_libvirt->sandbox.shared_dir, "/a,b");
  EXPECT_EQ(old_libvirt->sandbox.mode, sandbox::Mode::kChroot);
  EXPECT_TRUE(old_libvirt->xattr);
  EXPECT_TRUE(old_libvirt->flock);
  EXPECT_FALSE(old_libvirt->posix_lock);
  EXPECT_EQ(old_libvirt->log_level, log::Level::kDebug);

  const auto kata = parse_words({"--syslog", "--cache=auto", "--shared-dir=/d", "--fd=3",
                                 "--inode-file-handles=mandatory", "--announce-submounts",
                                 "--thread-pool-size=1"});
  ASSERT_TRUE(kata);
  EXPECT_EQ(kata->log_sink, log::Sink::kSyslog);
  EXPECT_TRUE(kata->sandbox.file_handles_mandatory);

  const auto incus = parse_words(
      {"--fd=3", "--cache=metadata", "--shared-dir=/d", "--posix-acl=auto", "--readonly"});
  ASSERT_TRUE(incus);
  EXPECT_EQ(incus->posix_acl, fuse::Wish::kAuto);
  EXPECT_TRUE(incus->xattr);
  EXPECT_TRUE(incus->sandbox.read_only);
}

TEST(Options, CanBeWrittenInEveryForm) {
  for (const std::vector<const char*>& words :
       std::vector<std::vector<const char*>>{{"--log-level", "debug"},
                                             {"--log-level=debug"},
                                             {"--loglevel=debug"},
                                             {"-o", "log_level=debug"},
                                             {"-ologlevel=debug"},
                                             {"-o", "log-level=debug"},
                                             {"-o", "debug"},
                                             {"--debug"},
                                             {"-d"}}) {
    const auto options = parse_more(words);
    ASSERT_TRUE(options) << words[0];
    EXPECT_EQ(options->log_level, log::Level::kDebug) << words[0];
  }
  for (const char* word : {"--no-killpriv-v2", "--killpriv-v2=never", "-okillpriv_v2=never",
                           "-ono_killpriv_v2", "-ono-killpriv-v2"}) {
    const auto options = parse_more({word});
    ASSERT_TRUE(options) << word;
    EXPECT_EQ(options->killpriv_v2, fuse::Wish::kOff) << word;
  }
  EXPECT_EQ(parse_more({"--killpriv-v2"})->killpriv_v2, fuse::Wish::kOn);
  EXPECT_EQ(parse_more({})->killpriv_v2, fuse::Wish::kAuto);
}

TEST(Options, TheLastOneWinsAcrossForms) {
  EXPECT_EQ(parse_more({"--cache=none", "-o", "cache=always"})->cache, CacheMode::kAlways);
  EXPECT_EQ(parse_more({"-o", "cache=always", "--cache", "never"})->cache, CacheMode::kNone);
  EXPECT_FALSE(parse_more({"-o", "xattr,no_xattr"})->xattr);
  EXPECT_TRUE(parse_more({"--no-xattr", "--xattr"})->xattr);
  EXPECT_EQ(parse_more({"-d", "-o", "log_level=err"})->log_level, log::Level::kError);
  EXPECT_FALSE(parse_more({"--daemonize", "-f"})->daemonize);
}

TEST(Options, SplitListsWithEscapes) {
  EXPECT_THAT(split_list("a,b=c"), ElementsAre("a", "b=c"));
  EXPECT_THAT(split_list("source=/a,,b,xattr"), ElementsAre("source=/a,b", "xattr"));
  EXPECT_THAT(split_list("source=/a\\,b,xattr"), ElementsAre("source=/a,b", "xattr"));
  EXPECT_THAT(split_list("source=/a\\054b\\\\c"), ElementsAre("source=/a,b\\c"));
  EXPECT_THAT(split_list("a\\40"), ElementsAre("a40"));
  EXPECT_THAT(split_list("a,"), ElementsAre("a", ""));
  EXPECT_THAT(split_list("a\\"), ElementsAre("a\\"));
}

TEST(Options, ReportEverythingUnknownInOneMessage) {
  const std::string text = complaint({"--foo", "-o", "bar,xattr,baz=1", "--no-tag"});
  EXPECT_THAT(text, HasSubstr("--foo"));
  EXPECT_THAT(text, HasSubstr("-o bar"));
  EXPECT_THAT(text, HasSubstr("-o baz=1"));
  EXPECT_THAT(text, HasSubstr("--no-tag"));
  EXPECT_THAT(text, Not(HasSubstr("xattr")));
  EXPECT_THAT(complaint({"word"}), HasSubstr("unknown option: word"));
  EXPECT_THAT(complaint({"-o", "xattr,"}), HasSubstr("unknown option: -o ''"));
}

TEST(Options, SayWhichValueIsWrongAndWhy) {
  EXPECT_THAT(complaint({"-o", "timeout=-1"}), HasSubstr("-o timeout=-1 must not be negative"));
  EXPECT_THAT(complaint({"-o", "timeout=soon"}), HasSubstr("-o timeout=soon must be a number"));
  EXPECT_THAT(complaint({"--timeout=nan"}), HasSubstr("must be a number"));
  EXPECT_THAT(complaint({"--thread-pool-size=-1"}), HasSubstr("must be"));
  EXPECT_THAT(complaint({"--thread-pool-size=4096"}), HasSubstr("between 0 and 1024"));
  EXPECT_THAT(complaint({"--num-request-queues=65"}), HasSubstr("between 1 and 64"));
  EXPECT_THAT(complaint({"--cache=most"}), HasSubstr("--cache=most must be one of none, auto"));
  EXPECT_THAT(complaint({"-o", "log_level=loud"}), HasSubstr("log_level=loud must be one of"));
  EXPECT_THAT(complaint({"--tag=1234567890123456789012345678901234567"}), HasSubstr("36 bytes"));
  EXPECT_THAT(complaint({"-o", "xattrmap=:nonsense:"}), HasSubstr("is not a valid map"));
  EXPECT_THAT(complaint({"--uid-map=0:1:2"}), HasSubstr("must look like"));
  EXPECT_THAT(complaint({"--uid-map=:0:1:0:"}), HasSubstr("count of 0"));
  EXPECT_THAT(complaint({"--uid-map=:0:4294967294:2:"}), HasSubstr("past the last id"));
  EXPECT_THAT(complaint({"--tag="}), HasSubstr("--tag= needs a value"));
  EXPECT_THAT(complaint({"-o", "tag="}), HasSubstr("-o tag needs a value"));
  EXPECT_THAT(complaint({"-o", "writeback=1"}), HasSubstr("takes no value"));
  EXPECT_THAT(complaint({"--writeback=1"}), HasSubstr("takes no value"));
}

TEST(Options, TranslateIdsByRulesThatAddUp) {
  const auto options =
      parse_words({"--shared-dir=/d", "--fd=3", "--translate-uid=map:0:1000:1", "--translate-uid",
                   "forbid-guest:1:5", "-o", "translate_gid=squash-guest:0:7:10,posix_acl=auto"});
  ASSERT_TRUE(options);
  EXPECT_EQ(*options->uid_translation.to_host(0), 1000U);
  EXPECT_FALSE(options->uid_translation.to_host(5));
  EXPECT_EQ(*options->gid_translation.to_host(9), 7U);
  EXPECT_EQ(options->posix_acl, fuse::Wish::kOff);
  EXPECT_THAT(complaint({"--translate-uid=map:0:1000"}), HasSubstr("must look like TYPE:FROM"));
  EXPECT_THAT(complaint({"--translate-uid=map:0:1:2", "--translate-uid=map:1:9:1"}),
              HasSubstr("earlier rule"));
  EXPECT_THAT(complaint({"--translate-gid=map:0:1:2", "--posix-acl"}), HasSubstr("posix_acl"));
}

TEST(Options, RefuseWhatCannotBeHonoured) {
  EXPECT_THAT(complaint({"--posix-acl-create-fallback"}), HasSubstr("not supported"));
  EXPECT_THAT(complaint({"-o", "posix_acl,no_xattr"}), HasSubstr("posix_acl needs extended"));
  EXPECT_THAT(complaint({"--fd=3"}), HasSubstr("can't be given together"));
}

TEST(Options, OfMigrationAreForNamesOrForHandles) {
  const auto names = parse_more({"--migration-mode=find-paths", "--migration-verify-handles",
                                 "--migration-confirm-paths", "--migration-on-error=guest-error"});
  ASSERT_TRUE(names);
  EXPECT_FALSE(names->migration.by_handle);
  EXPECT_TRUE(names->migration.verify_handles);
  EXPECT_TRUE(names->migration.confirm_paths);
  EXPECT_TRUE(names->migration.goes_on);
  EXPECT_FALSE(names->sandbox.file_handles);
  const auto handles = parse_more({"-o", "migration_mode=file-handles,migration_on_error=abort"});
  ASSERT_TRUE(handles);
  EXPECT_TRUE(handles->migration.by_handle);
  EXPECT_FALSE(handles->migration.goes_on);
  EXPECT_TRUE(handles->sandbox.file_handles);
  EXPECT_THAT(complaint({"--migration-mode=names"}), HasSubstr("find-paths, file-handles"));
  EXPECT_THAT(complaint({"--migration-on-error=stop"}), HasSubstr("abort, guest-error"));
  EXPECT_THAT(complaint({"--migration-mode=file-handles", "--migration-confirm-paths"}),
              HasSubstr("can't be given together"));
}

TEST(Options, NeedADirectoryAndASocket) {
  ::unsetenv("LISTEN_FDS");
  EXPECT_THAT(parse_words({"--socket-path=/s"}).error().text, HasSubstr("no directory"));
  EXPECT_THAT(parse_words({"--shared-dir=/d"}).error().text, HasSubstr("no socket"));
  EXPECT_THAT(parse_words({"--shared-dir=/d", "--fd=3", "--socket-group=kvm"}).error().text,
              HasSubstr("--socket-group needs --socket-path"));
}

TEST(Options, LeaveTheSocketToSystemdWhenItPassesOne) {
  ::setenv("LISTEN_FDS", "1", 1);
  EXPECT_TRUE(parse_words({"--shared-dir=/d"}));
  ::unsetenv("LISTEN_FDS");
}

TEST(Options, CacheModesSetTimeoutsThatTimeoutOverrides) {
  const auto none = parse_more({"--cache=none"});
  EXPECT_EQ(none->entry_timeout, 0);
  EXPECT_FALSE(none->readdirplus);
  EXPECT_TRUE(none->allow_mmap);
  EXPECT_EQ(parse_more({"--cache=auto"})->attribute_timeout, 1);
  EXPECT_EQ(parse_more({"--cache=always"})->entry_timeout, 86400);
  EXPECT_EQ(parse_more({"--cache=metadata"})->entry_timeout, 86400);
  const auto fraction = parse_more({"-o", "timeout=0.25", "--cache=always"});
  EXPECT_EQ(fraction->entry_timeout, 0.25);
  EXPECT_EQ(fraction->attribute_timeout, 0.25);
  EXPECT_EQ(fraction->negative_timeout, 0.25);
  EXPECT_EQ(parse_more({"--negative-timeout=0"})->negative_timeout, 0);
  EXPECT_TRUE(parse_more({"--cache=none", "--readdirplus"})->readdirplus);
}

TEST(Options, PrintHelpVersionAndCapabilitiesWithStatusZero) {
  for (const char* word : {"-h", "--help"}) {
    const auto help = parse_words({word, "--nonsense"});
    EXPECT_EQ(help.error().exit_status, 0);
    EXPECT_THAT(help.error().text, HasSubstr("--thread-pool-size=NUM"));
  }
  EXPECT_THAT(parse_words({"-V"}).error().text, HasSubstr("virtiofsd "));
  EXPECT_EQ(parse_words({"--version"}).error().exit_status, 0);
  const auto capabilities = parse_words({"--print-capabilities"});
  EXPECT_EQ(capabilities.error().exit_status, 0);
  EXPECT_THAT(capabilities.error().text, HasSubstr("\"type\": \"fs\""));
}

TEST(Options, IdRangesMayBeRepeated) {
  const auto options = parse_more({"--uid-map=:0:1000:1:", "--uid-map", "/1/100000/65536/"});
  ASSERT_TRUE(options);
  EXPECT_THAT(options->sandbox.uid_map,
              ElementsAre(sandbox::IdRange{0, 1000, 1}, sandbox::IdRange{1, 100000, 65536}));
}

// Whatever the guest opens, so many descriptors are never in use.
TEST(DescriptorShares, LeaveRoomForRingsAndMessages) {
  for (const std::uint64_t limit : {256ULL, 1024ULL, 8192ULL, 65536ULL, 1'000'000ULL, 1ULL << 31}) {
    for (const std::optional<std::uint32_t> wanted :
         {std::optional<std::uint32_t>{}, std::optional{16U}, std::optional{1000U},
          std::optional{1U << 30}}) {
      Options options;
      options.inode_descriptors = wanted;
      const DescriptorShares shares = divide_descriptors(options, limit);
      const std::uint64_t most = std::uint64_t{shares.handles} +
                                 std::max(shares.handles, shares.inodes) + shares.lock_owners;
      EXPECT_LE(most + std::min<std::uint64_t>(limit / 4, 1024), limit) << limit;
      EXPECT_GE(shares.handles, std::min<std::uint64_t>(limit / 4, 1U << 20) - 2) << limit;
      EXPECT_GT(shares.inodes, 0U);
      EXPECT_LE(shares.inodes, wanted.value_or(100'000));
    }
  }
}

TEST(Options, TakeOverNeedsAPidAndNoSocketOfItsOwn) {
  const auto alone = parse_words({"--take-over=17", "--shared-dir=/d"});
  ASSERT_TRUE(alone) << alone.error().text;
  EXPECT_EQ(alone->take_over, 17);
  EXPECT_TRUE(parse_more({"--take-over", "17"})) << "the path is what it goes on with";
  EXPECT_FALSE(parse_more({})->take_over);
  for (const char* wrong : {"--take-over=x", "--take-over=0", "--take-over=-1", "--take-over="}) {
    EXPECT_THAT(complaint({wrong}), HasSubstr("take-over")) << wrong;
  }
  const auto with_fd = parse_words({"--take-over=17", "--fd=3", "--shared-dir=/d"});
  ASSERT_FALSE(with_fd);
  EXPECT_THAT(with_fd.error().text, HasSubstr("--fd can't be given with it"));
}

TEST(Options, WhatIsToldDiffersWhereTheGuestWouldNotice) {
  const std::string told = what_is_told(*parse_more({}));
  EXPECT_EQ(what_is_told(*parse_more({"--thread-pool-size=3", "--timeout=7", "--syslog"})), told);
  for (const char* option : {"--cache=none",
                             "--cache=always",
                             "--cache=metadata",
                             "--no-posix-lock",
                             "--flock",
                             "--no-readdirplus",
                             "--writeback",
                             "--allow-mmap",
                             "--no-announce-submounts",
                             "--readonly",
                             "--xattr",
                             "--posix-acl",
                             "--security-label",
                             "--killpriv-v2=never",
                             "--in-order",
                             "--keep-listening",
                             "--num-request-queues=2",
                             "--tag=x",
                             "--inode-file-handles=prefer",
                             "--allow-root",
                             "--xattrmap=:map::user.x.:",
                             "--translate-uid=map:0:1000:5",
                             "--translate-gid=map:0:1000:5"}) {
    EXPECT_NE(what_is_told(*parse_more({option})), told) << option;
  }
}

}  // namespace
}  // namespace virtiofsd::cli
