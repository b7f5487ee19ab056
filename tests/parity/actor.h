// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// One who does things in a directory and writes down what came of it. The host
// actor uses system calls, the guest actor a daemon, asking as the Linux FUSE
// client would. Each call adds one line to the transcript; two actors that did
// the same in twin trees must have written the same.
//
// What a guest's kernel decides by itself (permission checks, umask, walking
// paths, refusing to open a FIFO through FUSE) is not the daemon's and is left
// out or modelled: umask is applied before asking unless DONT_MASK was agreed.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "testing/fuse_client.h"
#include "testing/temp_tree.h"

namespace virtiofsd::guest {

class Actor {
 public:
  using File = int;  // an open file's number in this transcript; -1: failed to open

  virtual ~Actor() = default;
  const std::vector<std::string>& transcript() const { return transcript_; }

  // Who acts from now on, and with what umask.
  virtual void as(std::uint32_t uid, std::uint32_t gid, std::vector<std::uint32_t> groups) = 0;
  void as_root() { as(0, 0, {}); }
  virtual void umask(std::uint32_t mask) = 0;

  void mkdir(const std::string& path, std::uint32_t mode);
  void mknod(const std::string& path, std::uint32_t mode, std::uint64_t device = 0);
  void symlink(const std::string& path, const std::string& target);
  void link(const std::string& from, const std::string& to);
  void unlink(const std::string& path);
  void rmdir(const std::string& path);
  void rename(const std::string& from, const std::string& to, unsigned flags = 0);
  void readlink(const std::string& path);
  void chmod(const std::string& path, std::uint32_t mode);
  void chown(const std::string& path, std::optional<std::uint32_t> uid,
             std::optional<std::uint32_t> gid);
  void truncate(const std::string& path, std::uint64_t size);
  // Seconds and nanoseconds; nothing: leave; the special value kNow.
  struct Time {
    static constexpr std::int64_t kNow = -1;
    std::int64_t seconds = 0;
    std::uint32_t nanoseconds = 0;
  };
  void utimens(const std::string& path, std::optional<Time> access, std::optional<Time> modify);
  void stat(const std::string& path);        // mode, ids, size, links, device
  void stat_times(const std::string& path);  // access and modification time
  void list(const std::string& path);        // names and types, sorted
  void statfs(const std::string& path);

  File open(const std::string& path, int flags, std::uint32_t mode = 0);
  File tmpfile(const std::string& directory, int flags, std::uint32_t mode);
  void link_file(File file, const std::string& path);  // gives an open file a name
  void close(File file);
  void read(File file, std::uint64_t offset, std::uint32_t size);
  void write(File file, std::uint64_t offset, const std::string& data);
  void ftruncate(File file, std::uint64_t size);
  void fstat(File file);
  void fallocate(File file, int mode, std::uint64_t offset, std::uint64_t length);
  void lseek(File file, std::uint64_t offset, int whence);
  void copy(File from, std::uint64_t from_offset, File to, std::uint64_t to_offset,
            std::uint64_t length, unsigned flags = 0);
  void fsync(File file, bool data_only = false);
  void lock(File file, int type, std::uint64_t start, std::uint64_t length);
  void flock(File file, int operation);

  void setxattr(const std::string& path, const std::string& name, const std::string& value,
                int flags = 0);
  void getxattr(const std::string& path, const std::string& name, std::uint32_t size = 65536);
  void listxattr(const std::string& path, std::uint32_t size = 65536);
  void removexattr(const std::string& path, const std::string& name);

 protected:
  struct Attributes {
    std::uint32_t mode = 0, uid = 0, gid = 0;
    std::uint64_t links = 0, size = 0, device = 0;
    Time access, modify;
  };
  struct Found {
    std::string name;
    std::uint32_t type = 0;
  };

  virtual Result<> do_mkdir(const std::string&, std::uint32_t mode) = 0;
  virtual Result<> do_mknod(const std::string&, std::uint32_t mode, std::uint64_t device) = 0;
  virtual Result<> do_symlink(const std::string&, const std::string& target) = 0;
  virtual Result<> do_link(const std::string& from, const std::string& to) = 0;
  virtual Result<> do_unlink(const std::string&) = 0;
  virtual Result<> do_rmdir(const std::string&) = 0;
  virtual Result<> do_rename(const std::string& from, const std::string& to, unsigned flags) = 0;
  virtual Result<std::string> do_readlink(const std::string&) = 0;
  virtual Result<> do_chmod(const std::string&, std::uint32_t mode) = 0;
  virtual Result<> do_chown(const std::string&, std::optional<std::uint32_t> uid,
                            std::optional<std::uint32_t> gid) = 0;
  virtual Result<> do_truncate(const std::string&, std::uint64_t size) = 0;
  virtual Result<> do_utimens(const std::string&, std::optional<Time> access,
                              std::optional<Time> modify) = 0;
  virtual Result<Attributes> do_stat(const std::string&) = 0;
  virtual Result<std::vector<Found>> do_list(const std::string&) = 0;
  virtual Result<std::string> do_statfs(const std::string&) = 0;
  virtual Result<File> do_open(const std::string&, int flags, std::uint32_t mode) = 0;
  virtual Result<File> do_tmpfile(const std::string&, int flags, std::uint32_t mode) = 0;
  virtual Result<> do_link_file(File, const std::string&) = 0;
  virtual Result<> do_close(File) = 0;
  virtual Result<std::string> do_read(File, std::uint64_t offset, std::uint32_t size) = 0;
  virtual Result<std::uint64_t> do_write(File, std::uint64_t offset, const std::string&) = 0;
  virtual Result<> do_ftruncate(File, std::uint64_t size) = 0;
  virtual Result<Attributes> do_fstat(File) = 0;
  virtual Result<> do_fallocate(File, int mode, std::uint64_t offset, std::uint64_t length) = 0;
  virtual Result<std::uint64_t> do_lseek(File, std::uint64_t offset, int whence) = 0;
  virtual Result<std::uint64_t> do_copy(File, std::uint64_t, File, std::uint64_t,
                                        std::uint64_t length, unsigned flags) = 0;
  virtual Result<> do_fsync(File, bool data_only) = 0;
  virtual Result<> do_lock(File, int type, std::uint64_t start, std::uint64_t length) = 0;
  virtual Result<> do_flock(File, int operation) = 0;
  virtual Result<> do_setxattr(const std::string&, const std::string& name,
                               const std::string& value, int flags) = 0;
  virtual Result<std::string> do_getxattr(const std::string&, const std::string& name,
                                          std::uint32_t size) = 0;
  virtual Result<std::string> do_listxattr(const std::string&, std::uint32_t size) = 0;
  virtual Result<> do_removexattr(const std::string&, const std::string& name) = 0;

 private:
  void note(const std::string& call, int error, const std::string& value = {});
  template <typename T>
  void note(const std::string& call, const Result<T>& result);

  std::vector<std::string> transcript_;
};

// Acts by system calls in a tree. Changes the calling thread's file system ids, groups and the
// process's umask; puts them back in as_root() and at the end.
class HostActor final : public Actor {
 public:
  explicit HostActor(const TempTree& tree);
  ~HostActor() override;
  void as(std::uint32_t uid, std::uint32_t gid, std::vector<std::uint32_t> groups) override;
  void umask(std::uint32_t mask) override;

 private:
  Result<> do_mkdir(const std::string&, std::uint32_t) override;
  Result<> do_mknod(const std::string&, std::uint32_t, std::uint64_t) override;
  Result<> do_symlink(const std::string&, const std::string&) override;
  Result<> do_link(const std::string&, const std::string&) override;
  Result<> do_unlink(const std::string&) override;
  Result<> do_rmdir(const std::string&) override;
  Result<> do_rename(const std::string&, const std::string&, unsigned) override;
  Result<std::string> do_readlink(const std::string&) override;
  Result<> do_chmod(const std::string&, std::uint32_t) override;
  Result<> do_chown(const std::string&, std::optional<std::uint32_t>,
                    std::optional<std::uint32_t>) override;
  Result<> do_truncate(const std::string&, std::uint64_t) override;
  Result<> do_utimens(const std::string&, std::optional<Time>, std::optional<Time>) override;
  Result<Attributes> do_stat(const std::string&) override;
  Result<std::vector<Found>> do_list(const std::string&) override;
  Result<std::string> do_statfs(const std::string&) override;
  Result<File> do_open(const std::string&, int, std::uint32_t) override;
  Result<File> do_tmpfile(const std::string&, int, std::uint32_t) override;
  Result<> do_link_file(File, const std::string&) override;
  Result<> do_close(File) override;
  Result<std::string> do_read(File, std::uint64_t, std::uint32_t) override;
  Result<std::uint64_t> do_write(File, std::uint64_t, const std::string&) override;
  Result<> do_ftruncate(File, std::uint64_t) override;
  Result<Attributes> do_fstat(File) override;
  Result<> do_fallocate(File, int, std::uint64_t, std::uint64_t) override;
  Result<std::uint64_t> do_lseek(File, std::uint64_t, int) override;
  Result<std::uint64_t> do_copy(File, std::uint64_t, File, std::uint64_t, std::uint64_t,
                                unsigned) override;
  Result<> do_fsync(File, bool) override;
  Result<> do_lock(File, int, std::uint64_t, std::uint64_t) override;
  Result<> do_flock(File, int) override;
  Result<> do_setxattr(const std::string&, const std::string&, const std::string&, int) override;
  Result<std::string> do_getxattr(const std::string&, const std::string&, std::uint32_t) override;
  Result<std::string> do_listxattr(const std::string&, std::uint32_t) override;
  Result<> do_removexattr(const std::string&, const std::string&) override;

  std::string at(const std::string& path) const;
  int fd(File file) const;

  const TempTree& tree_;
  std::vector<UniqueFd> files_;
};

// Acts through a FUSE session.
class GuestActor final : public Actor {
 public:
  explicit GuestActor(FuseClient& fuse) : fuse_(fuse) {}
  void as(std::uint32_t uid, std::uint32_t gid, std::vector<std::uint32_t> groups) override;
  void umask(std::uint32_t mask) override { umask_ = mask; }

 private:
  Result<> do_mkdir(const std::string&, std::uint32_t) override;
  Result<> do_mknod(const std::string&, std::uint32_t, std::uint64_t) override;
  Result<> do_symlink(const std::string&, const std::string&) override;
  Result<> do_link(const std::string&, const std::string&) override;
  Result<> do_unlink(const std::string&) override;
  Result<> do_rmdir(const std::string&) override;
  Result<> do_rename(const std::string&, const std::string&, unsigned) override;
  Result<std::string> do_readlink(const std::string&) override;
  Result<> do_chmod(const std::string&, std::uint32_t) override;
  Result<> do_chown(const std::string&, std::optional<std::uint32_t>,
                    std::optional<std::uint32_t>) override;
  Result<> do_truncate(const std::string&, std::uint64_t) override;
  Result<> do_utimens(const std::string&, std::optional<Time>, std::optional<Time>) override;
  Result<Attributes> do_stat(const std::string&) override;
  Result<std::vector<Found>> do_list(const std::string&) override;
  Result<std::string> do_statfs(const std::string&) override;
  Result<File> do_open(const std::string&, int, std::uint32_t) override;
  Result<File> do_tmpfile(const std::string&, int, std::uint32_t) override;
  Result<> do_link_file(File, const std::string&) override;
  Result<> do_close(File) override;
  Result<std::string> do_read(File, std::uint64_t, std::uint32_t) override;
  Result<std::uint64_t> do_write(File, std::uint64_t, const std::string&) override;
  Result<> do_ftruncate(File, std::uint64_t) override;
  Result<Attributes> do_fstat(File) override;
  Result<> do_fallocate(File, int, std::uint64_t, std::uint64_t) override;
  Result<std::uint64_t> do_lseek(File, std::uint64_t, int) override;
  Result<std::uint64_t> do_copy(File, std::uint64_t, File, std::uint64_t, std::uint64_t,
                                unsigned) override;
  Result<> do_fsync(File, bool) override;
  Result<> do_lock(File, int, std::uint64_t, std::uint64_t) override;
  Result<> do_flock(File, int) override;
  Result<> do_setxattr(const std::string&, const std::string&, const std::string&, int) override;
  Result<std::string> do_getxattr(const std::string&, const std::string&, std::uint32_t) override;
  Result<std::string> do_listxattr(const std::string&, std::uint32_t) override;
  Result<> do_removexattr(const std::string&, const std::string&) override;

  struct OpenFile {
    std::uint64_t node = 0;
    std::uint64_t handle = 0;
    int flags = 0;
    bool open = false;
  };
  struct Place {  // a name in a directory
    std::uint64_t parent = 0;
    std::string name;
  };

  Result<std::uint64_t> node(const std::string& path);
  Result<Place> place(const std::string& path);
  // Tells the supplementary group that Linux would for a create in `parent`.
  Result<> prepare_create(std::uint64_t parent);
  std::uint32_t masked(std::uint32_t mode) const;
  Result<OpenFile> file(File number) const;
  File keep(std::uint64_t node, std::uint64_t handle, int flags);
  bool drops_set_ids() const { return uid_ != 0 && fuse_.has(FUSE_HANDLE_KILLPRIV_V2); }

  FuseClient& fuse_;
  std::uint32_t uid_ = 0, gid_ = 0, umask_ = 0;
  std::vector<std::uint32_t> groups_;
  std::vector<OpenFile> files_;
};

// Everything below a directory that two equal trees have in common: types, modes, ids, links,
// sizes, content, targets, devices, attributes named user.* and access lists. One line each.
std::vector<std::string> describe_tree(const TempTree& tree);

}  // namespace virtiofsd::guest
