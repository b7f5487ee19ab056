// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "sys/files.h"

#include <gtest/gtest.h>
#include <limits.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "sys/process.h"

namespace virtiofsd::sys {
namespace {

Name name(std::string_view text) {
  return std::move(Name::parse(text)).value();
}

class Files : public ::testing::Test {
 protected:
  Files() {
    std::string pattern = std::filesystem::temp_directory_path() / "files-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
    root_ = UniqueFd{::open(path_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
  }
  ~Files() override { std::filesystem::remove_all(path_); }

  UniqueFd make(std::string_view file, std::string_view text) {
    auto fd = openat(root_, name(file), O_RDWR | O_CREAT | O_EXCL, 0644);
    EXPECT_TRUE(fd);
    EXPECT_EQ(::pwrite(fd->number(), text.data(), text.size(), 0),
              static_cast<ssize_t>(text.size()));
    return std::move(*fd);
  }
  std::string path_;
  UniqueFd root_;
};

TEST_F(Files, ReadsStartWhereTheSkipSaysAndStopAtTheSize) {
  const UniqueFd fd = make("a", "0123456789");
  std::array<char, 3> first{'.', '.', '.'};
  std::array<char, 3> second{'.', '.', '.'};
  std::array<char, 3> third{'.', '.', '.'};
  std::array<iovec, 3> pieces{iovec{.iov_base = first.data(), .iov_len = first.size()},
                              iovec{.iov_base = second.data(), .iov_len = second.size()},
                              iovec{.iov_base = third.data(), .iov_len = third.size()}};
  const IoSpace space = IoSpaceAccess::make(pieces, 7);
  EXPECT_EQ(*preadv2(fd, space, 1, 0, 0), 6U);
  EXPECT_EQ(std::string_view(first.data(), 3), ".01");
  EXPECT_EQ(std::string_view(second.data(), 3), "234");
  EXPECT_EQ(std::string_view(third.data(), 3), "5..");
  EXPECT_EQ(*preadv2(fd, space, 4, 0, 0), 3U);
  EXPECT_EQ(std::string_view(second.data(), 3), "201");
  EXPECT_EQ(*preadv2(fd, space, 7, 0, 0), 0U);
  EXPECT_EQ(*preadv2(fd, space, 100, 0, 0), 0U);
  for (const iovec& piece : pieces) EXPECT_EQ(piece.iov_len, 3U) << "the pieces are put back";
  EXPECT_EQ(pieces[0].iov_base, first.data());
  EXPECT_EQ(pieces[1].iov_base, second.data());
}

TEST_F(Files, ACutWithinOnePieceIsPutBack) {
  const UniqueFd fd = make("a", "0123456789");
  std::array<char, 8> bytes{};
  iovec piece{.iov_base = bytes.data(), .iov_len = bytes.size()};
  EXPECT_EQ(*preadv2(fd, IoSpaceAccess::make(std::span{&piece, 1}, 4), 2, 5, 0), 2U);
  EXPECT_EQ(std::string_view(bytes.data(), 5), std::string_view("\0\0"
                                                                "56\0",
                                                                5));
  EXPECT_EQ(piece.iov_base, bytes.data());
  EXPECT_EQ(piece.iov_len, bytes.size());
}

// One piece and several go by different calls.
TEST_F(Files, WritesOfOnePieceAndOfSeveralPutTheSameBytesInTheSamePlace) {
  std::string text = "abcdefgh";
  std::vector<iovec> one{{.iov_base = text.data(), .iov_len = 8}};
  std::vector<iovec> two{{.iov_base = text.data(), .iov_len = 4},
                         {.iov_base = text.data() + 4, .iov_len = 4}};
  for (std::vector<iovec>* pieces : {&one, &two}) {
    const UniqueFd fd = make(pieces == &one ? "one" : "two", "0123456789");
    // Of the first seven bytes, those after two.
    EXPECT_EQ(*pwritev2(fd, IoSpaceAccess::make(*pieces, 7), 2, 3, 0), 5U);
    std::array<char, 16> content{};
    iovec all{.iov_base = content.data(), .iov_len = content.size()};
    EXPECT_EQ(*preadv2(fd, IoSpaceAccess::make(std::span{&all, 1}, 16), 0, 0, 0), 10U);
    EXPECT_EQ(std::string_view(content.data(), 10), "012cdefg89");
    EXPECT_EQ(pieces->front().iov_base, text.data());
    EXPECT_EQ(pieces->back().iov_len, pieces == &one ? 8U : 4U);
  }
}

TEST_F(Files, MorePiecesThanTheKernelTakesAreASeriesOfCalls) {
  const UniqueFd fd = make("a", "");
  std::string text(IOV_MAX + 100, 'x');
  std::vector<iovec> pieces;
  for (char& c : text) pieces.push_back({.iov_base = &c, .iov_len = 1});
  const IoSpace space = IoSpaceAccess::make(pieces, text.size());
  EXPECT_EQ(*pwritev2(fd, space, 0, 0, 0), static_cast<std::size_t>(IOV_MAX));
  EXPECT_EQ(*pwritev2(fd, space, IOV_MAX, IOV_MAX, 0), 100U);
}

// Bytes in pieces of these sizes; `size`: so much of them counts.
class Pieces {
 public:
  Pieces(std::string_view text, const std::vector<std::size_t>& sizes) : text_(text) {
    std::size_t at = 0;
    for (const std::size_t size : sizes) {
      pieces_.push_back({.iov_base = text_.data() + at, .iov_len = size});
      at += size;
    }
  }
  IoSpace first(std::size_t size) { return IoSpaceAccess::make(pieces_, size); }
  IoSpace all() { return first(text_.size()); }

 private:
  std::string text_;
  std::vector<iovec> pieces_;
};

TEST_F(Files, BytesThatAreThereAreToldFromOthers) {
  const UniqueFd fd = make("a", "0123456789");
  EXPECT_TRUE(has_bytes(fd, Pieces("0123456789", {10}).all(), 0));
  EXPECT_TRUE(has_bytes(fd, Pieces("345", {3}).all(), 3));
  EXPECT_FALSE(has_bytes(fd, Pieces("345", {3}).all(), 2));
  EXPECT_FALSE(has_bytes(fd, Pieces("34x", {3}).all(), 3));
  EXPECT_FALSE(has_bytes(fd, Pieces("x45", {3}).all(), 3));
  EXPECT_TRUE(has_bytes(fd, Pieces("", {0}).all(), 3)) << "none are anywhere";
}

TEST_F(Files, BytesInPiecesAreAllLookedAtUpToTheSize) {
  const UniqueFd fd = make("a", "0123456789");
  const std::vector<std::size_t> sizes = {2, 0, 1, 3};
  EXPECT_TRUE(has_bytes(fd, Pieces("234567", sizes).all(), 2));
  for (std::size_t i = 0; i < 6; ++i) {
    std::string other = "234567";
    other[i] = 'x';
    EXPECT_FALSE(has_bytes(fd, Pieces(other, sizes).all(), 2)) << i;
    EXPECT_TRUE(has_bytes(fd, Pieces(other, sizes).first(i), 2)) << i;
  }
}

TEST_F(Files, BytesPastTheEndAreNotThere) {
  const UniqueFd fd = make("a", "0123456789");
  EXPECT_FALSE(has_bytes(fd, Pieces("89x", {3}).all(), 8));
  EXPECT_FALSE(has_bytes(fd, Pieces(std::string(3, '\0'), {3}).all(), 8)) << "nor are zeros";
  EXPECT_FALSE(has_bytes(fd, Pieces("89x", {2, 1}).all(), 8));
  EXPECT_FALSE(has_bytes(fd, Pieces("x", {1}).all(), 10));
  EXPECT_FALSE(has_bytes(fd, Pieces("x", {1}).all(), 1000));
  EXPECT_FALSE(has_bytes(fd, Pieces("0", {1}).all(), ~std::uint64_t{0})) << "no offset at all";
  EXPECT_FALSE(has_bytes(UniqueFd{}, Pieces("0", {1}).all(), 0));
}

TEST_F(Files, BytesOfManyPagesAreComparedToTheLast) {
  std::string text(10'000, 'a');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 23);
  const UniqueFd fd = make("a", "<" + text + ">");
  const std::vector<std::size_t> sizes = {5000, 5000};
  EXPECT_TRUE(has_bytes(fd, Pieces(text, sizes).all(), 1));
  for (const std::size_t at : {std::size_t{0}, std::size_t{4096}, text.size() - 1}) {
    std::string other = text;
    other[at] = '!';
    EXPECT_FALSE(has_bytes(fd, Pieces(other, sizes).all(), 1)) << at;
  }
}

TEST_F(Files, NoCallFollowsALinkThatItWasGivenByName) {
  ASSERT_TRUE(symlinkat("/etc/passwd", root_, name("link")));
  EXPECT_EQ(openat(root_, name("link"), O_RDONLY, 0).error(), Errno{ELOOP});
  struct statx stx {};
  ASSERT_TRUE(statx(root_, name("link"), 0, kStatxMask, &stx));
  EXPECT_TRUE(S_ISLNK(stx.stx_mode));
  const auto fd = open_path(root_, name("link"));
  ASSERT_TRUE(fd);
  ASSERT_TRUE(chown(*fd, 0, 0));
  ASSERT_TRUE(statx(*fd, kStatxMask, &stx));
  EXPECT_TRUE(S_ISLNK(stx.stx_mode));
  EXPECT_EQ(reopen(*fd, O_RDONLY).error(), Errno{ELOOP});
}

TEST_F(Files, AThreadOfItsOwnReachesObjectsWithoutPathsToProc) {
  const UniqueFd fd = make("a", "0123456789");
  const auto path_fd = open_path(root_, name("a"));
  ASSERT_TRUE(path_fd);
  const auto before = std::filesystem::current_path();
  std::thread([&] {
    ASSERT_TRUE(separate_thread());
    EXPECT_TRUE(works_in_proc_self_fd());
    EXPECT_TRUE(truncate(*path_fd, 3));
    EXPECT_EQ(getxattr(*path_fd, "user.none", {}).error(), Errno{ENODATA});
  }).join();
  struct statx stx {};
  ASSERT_TRUE(statx(fd, kStatxMask, &stx));
  EXPECT_EQ(stx.stx_size, 3U);
  EXPECT_FALSE(works_in_proc_self_fd());
  EXPECT_EQ(std::filesystem::current_path(), before);
}

TEST_F(Files, ADirectoryIsOpenedOnlyAsOne) {
  make("a", "");
  const auto fd = open_path(root_, name("a"));
  ASSERT_TRUE(fd);
  EXPECT_EQ(reopen_directory(*fd, O_RDONLY).error(), Errno{ENOTDIR});
  EXPECT_TRUE(reopen_directory(root_, O_RDONLY));
}

TEST_F(Files, AFileHandleNamesTheSameFile) {
  const UniqueFd fd = make("a", "");
  const auto handle = name_to_handle_at(fd);
  if (!handle && handle.error() == Errno{EOPNOTSUPP}) GTEST_SKIP() << "no handles here";
  ASSERT_TRUE(handle);
  EXPECT_GT(handle->size, 0U);
  const auto mount = reopen_directory(root_, O_RDONLY);
  ASSERT_TRUE(mount);
  const auto again = open_by_handle_at(*mount, *handle, O_RDONLY);
  if (!again && again.error() == Errno{EPERM}) GTEST_SKIP() << "needs CAP_DAC_READ_SEARCH";
  ASSERT_TRUE(again);
  struct statx one {};
  struct statx two {};
  ASSERT_TRUE(statx(fd, kStatxMask, &one));
  ASSERT_TRUE(statx(*again, kStatxMask, &two));
  EXPECT_EQ(one.stx_ino, two.stx_ino);
}

TEST(Process, AnIdThatMeansNoIdIsRefused) {
  EXPECT_EQ(set_fs_uid(~0U).error(), Errno{EINVAL});
  EXPECT_EQ(set_fs_gid(~0U).error(), Errno{EINVAL});
}

TEST(Process, CapabilitiesAreOneThreads) {
  const auto before = capabilities();
  ASSERT_TRUE(before);
  std::thread([&] {
    Capabilities none = *before;
    none.effective = 0;
    ASSERT_TRUE(set_capabilities(none));
    EXPECT_EQ(capabilities()->effective, 0U);
  }).join();
  EXPECT_EQ(capabilities()->effective, before->effective);
}

}  // namespace
}  // namespace virtiofsd::sys
