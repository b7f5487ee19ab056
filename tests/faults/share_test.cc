// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The share changes underneath, as fast as another process can, while the guest
// walks: nothing outside is ever read, changed or made. Ten seconds each, or
// VIRTIOFSD_RACE_SECONDS.
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <thread>

#include "tests/faults/fixture.h"

namespace virtiofsd::guest {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSecret = "SECRET: never to be read";

// A process of its own that runs `work` over and over until it is killed.
class OtherProcess {
 public:
  explicit OtherProcess(const std::function<void()>& work) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) work();
  }
  ~OtherProcess() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  OtherProcess(const OtherProcess&) = delete;
  OtherProcess& operator=(const OtherProcess&) = delete;

 private:
  pid_t pid_ = -1;
};

void exchange(const std::string& a, const std::string& b) {
  ::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE);
}

// With the sandbox there is nothing outside to reach; without, only the
// daemon's own care keeps it inside. Both must hold.
class ShareRace : public FaultFixture, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    attack({std::string("--sandbox=") + GetParam(), "-o", "xattr"});
    if (IsSkipped() || HasFatalFailure()) return;
    outside_.write("target", std::string(kSecret));
    outside_.chmod("target", 0600);
    outside_.mkdir("sub");
    outside_.write("sub/target", std::string(kSecret));
    before_ = outside_.stat("target");
    before_directory_ = outside_.stat("");
    tree().mkdir("play");
    tree().mkdir("play/dir");
    tree().write("play/dir/target", "inside");
    tree().mkdir("play/dir/sub");
    tree().write("play/dir/sub/target", "inside");
    tree().write("play/file", "inside");
    tree().symlink("play/link", outside_.root());
    tree().symlink("play/file-link", outside_.path("target"));
  }
  void expect_outside_untouched() {
    EXPECT_EQ(outside_.read("target"), kSecret);
    EXPECT_EQ(outside_.read("sub/target"), kSecret);
    EXPECT_EQ(outside_.list(), (std::vector<std::string>{"sub", "target"}));
    EXPECT_EQ(outside_.list("sub"), (std::vector<std::string>{"target"}));
    const struct stat after = outside_.stat("target");
    EXPECT_EQ(after.st_mode, before_.st_mode);
    EXPECT_EQ(after.st_uid, before_.st_uid);
    EXPECT_EQ(after.st_size, before_.st_size);
    EXPECT_EQ(after.st_nlink, before_.st_nlink);
    EXPECT_EQ(after.st_mtim.tv_sec, before_.st_mtim.tv_sec);
    EXPECT_EQ(after.st_ctim.tv_nsec, before_.st_ctim.tv_nsec);
    EXPECT_EQ(outside_.stat("").st_ino, before_directory_.st_ino);
    EXPECT_EQ(outside_.stat("").st_mtim.tv_nsec, before_directory_.st_mtim.tv_nsec);
  }
  void look_into(FuseClient& fuse, std::uint64_t node) {
    const auto open = fuse.open(node, O_RDWR);
    if (!open) return;
    const auto read = fuse.read(node, open->fh, 0, 100);
    if (read) {
      EXPECT_EQ(read->find("SECRET"), std::string::npos) << "the guest read outside";
    }
    (void)fuse.write(node, open->fh, 0, "inside");
    (void)fuse.release(node, open->fh);
  }
  // Everything a guest can do below a directory that may be something else by now.
  void walk(FuseClient& fuse, int round) {
    const std::string mine =
        "made-" + std::to_string(round % 7) + (&fuse == clients_[1].get() ? "a" : "b");
    const auto play = fuse.lookup(kRoot, "play");
    if (!play) return;
    std::vector<std::uint64_t> seen{play->nodeid};
    const auto keep = [&](const Result<fuse_entry_out>& entry) -> std::uint64_t {
      if (!entry) return 0;
      seen.push_back(entry->nodeid);
      return entry->nodeid;
    };
    for (const char* name : {"dir", "link", "file", "file-link", "other"}) {
      const std::uint64_t node = keep(fuse.lookup(play->nodeid, name));
      if (node == 0) continue;
      look_into(fuse, node);
      for (const char* below : {"target", "sub", ".."}) {
        const std::uint64_t next = keep(fuse.lookup(node, below));
        if (next == 0) continue;
        look_into(fuse, next);
        const std::uint64_t deeper = keep(fuse.lookup(next, "target"));
        if (deeper != 0) look_into(fuse, deeper);
      }
      fuse_setattr_in times{};
      times.valid = FATTR_MTIME | FATTR_ATIME;
      (void)fuse.setattr(node, times);
      (void)fuse.setxattr(node, "user.mark", "m");
      if (const auto made = fuse.create(node, mine, O_RDWR | O_TRUNC, 0600)) {
        seen.push_back(made->entry.nodeid);
        (void)fuse.release(made->entry.nodeid, made->open.fh);
      }
      (void)keep(fuse.mkdir(node, mine + "-dir", 0700));
      (void)keep(fuse.symlink(node, mine + "-link", "x"));
      (void)keep(fuse.mknod(node, mine + "-node", S_IFREG | 0600));
      (void)fuse.rename(node, mine, play->nodeid, mine);
      (void)fuse.rename(play->nodeid, mine, node, mine);
      (void)fuse.unlink(node, mine);
      (void)fuse.unlink(node, mine + "-link");
      (void)fuse.unlink(node, mine + "-node");
      (void)fuse.rmdir(node, mine + "-dir");
      if (const auto entries = fuse.list(node, true)) {
        for (const Entry& entry : *entries) {
          if (entry.entry.nodeid == 0 || entry.name == "." || entry.name == "..") continue;
          seen.push_back(entry.entry.nodeid);
        }
      }
    }
    (void)fuse.unlink(play->nodeid, mine);
    for (const std::uint64_t node : seen) fuse.forget(node);
  }
  void walk_while(const std::function<void()>& attacker) {
    {
      const OtherProcess other(attacker);
      const Deadline end = within(race_time());
      for (int round = 0; std::chrono::steady_clock::now() < end && !HasFailure(); ++round) {
        walk(*clients_[1], round);
        walk(*clients_[2], round);
      }
    }
    expect_outside_untouched();
  }

  TempTree outside_;
  struct stat before_ {};
  struct stat before_directory_ {};
};

INSTANTIATE_TEST_SUITE_P(Sandboxes, ShareRace, ::testing::Values("none", "namespace", "chroot"),
                         [](const auto& sandbox) { return std::string(sandbox.param); });

TEST_P(ShareRace, DirectoriesAndFilesExchangedForSymlinks) {
  const std::string play = tree().path("play");
  walk_while([play] {
    exchange(play + "/dir", play + "/link");
    exchange(play + "/file", play + "/file-link");
    exchange(play + "/dir", play + "/link");
    exchange(play + "/file", play + "/file-link");
  });
}

TEST_P(ShareRace, DirectoriesRemovedAndMadeAnew) {
  const std::string play = tree().path("play");
  const std::string out = outside_.root();
  walk_while([play, out] {
    std::error_code ignored;
    fs::remove_all(play + "/other", ignored);
    (void)!::symlink(out.c_str(), (play + "/other").c_str());
    ::unlink((play + "/other").c_str());
    ::mkdir((play + "/other").c_str(), 0755);
    ::mkdir((play + "/other/sub").c_str(), 0755);
    (void)!::symlink((out + "/target").c_str(), (play + "/other/target").c_str());
    ::unlink((play + "/other/target").c_str());
    const int fd = ::open((play + "/other/target").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (fd >= 0) ::close(fd);
  });
}

TEST_P(ShareRace, NodesTurnIntoPipesAndDevices) {
  const std::string play = tree().path("play");
  // Somebody who opened it would wait for ever, or reach the device.
  walk_while([play] {
    const std::string other = play + "/other";
    ::mkfifo(other.c_str(), 0666);
    ::unlink(other.c_str());
    const int fd = ::open(other.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (fd >= 0) ::close(fd);
    ::unlink(other.c_str());
    ::mknod(other.c_str(), S_IFCHR | 0666, static_cast<dev_t>(makedev(5, 0)));
    ::unlink(other.c_str());
  });
}

// A directory that leaves the share and comes back: ".." must not follow it out.
TEST_P(ShareRace, DirectoriesMovedOutAndBack) {
  const std::string inner = tree().path("play/dir/sub");
  // Beside the share, so that what is above it holds the secret.
  TempTree away;
  away.write("target", std::string(kSecret));
  const std::string out = away.path("sub");
  const std::uint64_t sub = node("play/dir/sub");
  {
    const OtherProcess other([inner, out] {
      ::rename(inner.c_str(), out.c_str());
      ::rename(out.c_str(), inner.c_str());
    });
    const Deadline end = within(race_time() / 2);
    while (std::chrono::steady_clock::now() < end && !HasFailure()) {
      const auto above = fuse().lookup(sub, "..");
      if (!above) continue;
      EXPECT_TRUE(above->attr.ino == tree().stat("play/dir").st_ino) << "outside by \"..\"";
      const auto target = fuse().lookup(above->nodeid, "target");
      if (target) look_into(fuse(), target->nodeid);
    }
  }
  EXPECT_EQ(away.read("target"), kSecret);
  expect_outside_untouched();
}

// A guest that renames while the host does, and reads what it was given.
TEST_P(ShareRace, AFileIsItselfOrGoneNeverAnother) {
  for (int i = 0; i < 16; ++i) {
    const std::string name = "f" + std::to_string(i);
    tree().write("play/" + name, name);
  }
  const std::string play = tree().path("play");
  {
    const OtherProcess other([play, i = 0]() mutable {
      const std::string a = play + "/f" + std::to_string(i % 16);
      const std::string b = play + "/f" + std::to_string((i * 7 + 3) % 16);
      exchange(a, b);
      ++i;
    });
    const Deadline end = within(race_time() / 2);
    while (std::chrono::steady_clock::now() < end && !HasFailure()) {
      for (int i = 0; i < 16; ++i) {
        const auto file = fuse().walk("play/f" + std::to_string(i));
        if (!file) continue;
        const auto open = fuse().open(file->nodeid, O_RDONLY);
        if (!open) continue;
        const auto attributes = fuse().getattr(file->nodeid);
        ASSERT_TRUE(attributes);
        EXPECT_EQ(attributes->ino, file->attr.ino) << "a node became another file";
        EXPECT_DONE(fuse().release(file->nodeid, open->fh));
        fuse().forget(file->nodeid);
      }
    }
  }
}

}  // namespace
}  // namespace virtiofsd::guest
