// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "tests/parity/actor.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "base/check.h"

namespace virtiofsd::guest {
namespace {

std::string quoted(const std::string& text) {
  constexpr std::size_t kShown = 200;
  std::ostringstream out;
  out << '"';
  for (const char letter : text.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(letter);
    if (byte >= 0x20 && byte < 0x7f) {
      out << letter;
    } else {
      char hex[5];
      std::snprintf(hex, sizeof(hex), "\\x%02x", byte);
      out << hex;
    }
  }
  out << '"';
  if (text.size() > kShown)
    out << "... " << text.size() << " bytes, hash " << std::hash<std::string>{}(text);
  return out.str();
}

std::string octal(std::uint32_t mode) {
  char text[16];
  std::snprintf(text, sizeof(text), "%o", mode);
  return text;
}

Result<> done(int result) {
  if (result < 0) return Errno::last();
  return {};
}

std::string shown(const std::string& value) {
  return quoted(value);
}
std::string shown(std::uint64_t value) {
  return std::to_string(value);
}

// Sorts a NUL-separated list; its order is the file system's business.
std::string sorted_names(const std::string& list) {
  std::vector<std::string> names;
  std::size_t at = 0;
  while (at < list.size()) {
    const std::size_t end = list.find('\0', at);
    names.push_back(list.substr(at, end - at));
    at = end == std::string::npos ? list.size() : end + 1;
  }
  std::sort(names.begin(), names.end());
  std::string all;
  for (const std::string& name : names) all += name + " ";
  return all;
}

}  // namespace

// ---- Actor ----------------------------------------------------------------------------------

void Actor::note(const std::string& call, int error, const std::string& value) {
  std::string line = call + " -> ";
  line += error == 0 ? "done" : strerrorname_np(error);
  if (!value.empty()) line += " " + value;
  transcript_.push_back(std::move(line));
}

template <typename T>
void Actor::note(const std::string& call, const Result<T>& result) {
  if (!result) return note(call, result.error().value());
  if constexpr (std::is_void_v<T>) {
    note(call, 0);
  } else {
    note(call, 0, shown(result.value()));
  }
}

void Actor::mkdir(const std::string& path, std::uint32_t mode) {
  note("mkdir " + path + " " + octal(mode), do_mkdir(path, mode));
}
void Actor::mknod(const std::string& path, std::uint32_t mode, std::uint64_t device) {
  note("mknod " + path + " " + octal(mode), do_mknod(path, mode, device));
}
void Actor::symlink(const std::string& path, const std::string& target) {
  note("symlink " + path, do_symlink(path, target));
}
void Actor::link(const std::string& from, const std::string& to) {
  note("link " + from + " " + to, do_link(from, to));
}
void Actor::unlink(const std::string& path) {
  note("unlink " + path, do_unlink(path));
}
void Actor::rmdir(const std::string& path) {
  note("rmdir " + path, do_rmdir(path));
}
void Actor::rename(const std::string& from, const std::string& to, unsigned flags) {
  note("rename " + from + " " + to, do_rename(from, to, flags));
}
void Actor::readlink(const std::string& path) {
  note("readlink " + path, do_readlink(path));
}
void Actor::chmod(const std::string& path, std::uint32_t mode) {
  note("chmod " + path + " " + octal(mode), do_chmod(path, mode));
}
void Actor::chown(const std::string& path, std::optional<std::uint32_t> uid,
                  std::optional<std::uint32_t> gid) {
  note("chown " + path, do_chown(path, uid, gid));
}
void Actor::truncate(const std::string& path, std::uint64_t size) {
  note("truncate " + path + " " + std::to_string(size), do_truncate(path, size));
}
void Actor::utimens(const std::string& path, std::optional<Time> access,
                    std::optional<Time> modify) {
  note("utimens " + path, do_utimens(path, access, modify));
}

void Actor::stat(const std::string& path) {
  const auto found = do_stat(path);
  if (!found) return note("stat " + path, found.error().value());
  const bool directory = S_ISDIR(found->mode);
  note("stat " + path, 0,
       octal(found->mode) + " " + std::to_string(found->uid) + ":" + std::to_string(found->gid) +
           " links " + std::to_string(found->links) + " size " +
           (directory ? "-" : std::to_string(found->size)) + " device " +
           std::to_string(found->device));
}

void Actor::stat_times(const std::string& path) {
  const auto found = do_stat(path);
  if (!found) return note("times " + path, found.error().value());
  const auto show = [](const Time& time) {
    // What was set to now is only known to be recent.
    if (time.seconds > 1'700'000'000 && time.seconds < 2'100'000'000) return std::string("recent");
    return std::to_string(time.seconds) + "." + std::to_string(time.nanoseconds);
  };
  note("times " + path, 0, show(found->access) + " " + show(found->modify));
}

void Actor::list(const std::string& path) {
  auto found = do_list(path);
  if (!found) return note("list " + path, found.error().value());
  std::sort(found->begin(), found->end(),
            [](const Found& a, const Found& b) { return a.name < b.name; });
  std::string all;
  for (const Found& entry : *found) all += entry.name + "/" + std::to_string(entry.type) + " ";
  note("list " + path, 0, all);
}

void Actor::statfs(const std::string& path) {
  note("statfs " + path, do_statfs(path));
}

Actor::File Actor::open(const std::string& path, int flags, std::uint32_t mode) {
  const auto file = do_open(path, flags, mode);
  note("open " + path + " " + std::to_string(flags) + " " + octal(mode),
       file ? 0 : file.error().value());
  return file ? *file : -1;
}
Actor::File Actor::tmpfile(const std::string& directory, int flags, std::uint32_t mode) {
  const auto file = do_tmpfile(directory, flags, mode);
  note("tmpfile " + directory + " " + octal(mode), file ? 0 : file.error().value());
  return file ? *file : -1;
}
void Actor::link_file(File file, const std::string& path) {
  note("link-file " + path, do_link_file(file, path));
}
void Actor::close(File file) {
  note("close", do_close(file));
}
void Actor::read(File file, std::uint64_t offset, std::uint32_t size) {
  note("read " + std::to_string(offset), do_read(file, offset, size));
}
void Actor::write(File file, std::uint64_t offset, const std::string& data) {
  note("write " + std::to_string(offset), do_write(file, offset, data));
}
void Actor::ftruncate(File file, std::uint64_t size) {
  note("ftruncate " + std::to_string(size), do_ftruncate(file, size));
}
void Actor::fstat(File file) {
  const auto found = do_fstat(file);
  if (!found) return note("fstat", found.error().value());
  note("fstat", 0,
       octal(found->mode) + " " + std::to_string(found->uid) + ":" + std::to_string(found->gid) +
           " links " + std::to_string(found->links) + " size " + std::to_string(found->size));
}
void Actor::fallocate(File file, int mode, std::uint64_t offset, std::uint64_t length) {
  note("fallocate " + std::to_string(mode) + " " + std::to_string(offset),
       do_fallocate(file, mode, offset, length));
}
void Actor::lseek(File file, std::uint64_t offset, int whence) {
  note("lseek " + std::to_string(offset) + " " + std::to_string(whence),
       do_lseek(file, offset, whence));
}
void Actor::copy(File from, std::uint64_t from_offset, File to, std::uint64_t to_offset,
                 std::uint64_t length, unsigned flags) {
  note("copy " + std::to_string(length), do_copy(from, from_offset, to, to_offset, length, flags));
}
void Actor::fsync(File file, bool data_only) {
  note("fsync", do_fsync(file, data_only));
}
void Actor::lock(File file, int type, std::uint64_t start, std::uint64_t length) {
  note("lock " + std::to_string(type) + " " + std::to_string(start),
       do_lock(file, type, start, length));
}
void Actor::flock(File file, int operation) {
  note("flock " + std::to_string(operation), do_flock(file, operation));
}
void Actor::setxattr(const std::string& path, const std::string& name, const std::string& value,
                     int flags) {
  note("setxattr " + path + " " + name.substr(0, 40), do_setxattr(path, name, value, flags));
}
void Actor::getxattr(const std::string& path, const std::string& name, std::uint32_t size) {
  note("getxattr " + path + " " + name.substr(0, 40), do_getxattr(path, name, size));
}
void Actor::listxattr(const std::string& path, std::uint32_t size) {
  const auto list = do_listxattr(path, size);
  if (!list) return note("listxattr " + path, list.error().value());
  note("listxattr " + path, 0, sorted_names(*list) + std::to_string(list->size()));
}
void Actor::removexattr(const std::string& path, const std::string& name) {
  note("removexattr " + path + " " + name.substr(0, 40), do_removexattr(path, name));
}

// ---- HostActor ------------------------------------------------------------------------------

HostActor::HostActor(const TempTree& tree) : tree_(tree) {
  ::umask(0);
}

HostActor::~HostActor() {
  as(0, 0, {});
  ::umask(022);
}

// Of this thread only, by the raw calls: glibc's own would change every thread.
void HostActor::as(std::uint32_t uid, std::uint32_t gid, std::vector<std::uint32_t> groups) {
  setfsuid(0);
  CHECK(syscall(SYS_setgroups, groups.size(), groups.data()) == 0);
  setfsgid(gid);
  setfsuid(uid);
}

void HostActor::umask(std::uint32_t mask) {
  ::umask(mask);
}

std::string HostActor::at(const std::string& path) const {
  return tree_.path(path);
}

int HostActor::fd(File file) const {
  if (file < 0 || static_cast<std::size_t>(file) >= files_.size()) return -1;
  return files_[static_cast<std::size_t>(file)].number();
}

Result<> HostActor::do_mkdir(const std::string& path, std::uint32_t mode) {
  return done(::mkdir(at(path).c_str(), mode));
}
Result<> HostActor::do_mknod(const std::string& path, std::uint32_t mode, std::uint64_t device) {
  return done(::mknod(at(path).c_str(), mode, device));
}
Result<> HostActor::do_symlink(const std::string& path, const std::string& target) {
  return done(::symlink(target.c_str(), at(path).c_str()));
}
Result<> HostActor::do_link(const std::string& from, const std::string& to) {
  return done(::link(at(from).c_str(), at(to).c_str()));
}
Result<> HostActor::do_unlink(const std::string& path) {
  return done(::unlink(at(path).c_str()));
}
Result<> HostActor::do_rmdir(const std::string& path) {
  return done(::rmdir(at(path).c_str()));
}
Result<> HostActor::do_rename(const std::string& from, const std::string& to, unsigned flags) {
  return done(::renameat2(AT_FDCWD, at(from).c_str(), AT_FDCWD, at(to).c_str(), flags));
}
Result<std::string> HostActor::do_readlink(const std::string& path) {
  char target[PATH_MAX];
  const ssize_t size = ::readlink(at(path).c_str(), target, sizeof(target));
  if (size < 0) return Errno::last();
  return std::string(target, static_cast<std::size_t>(size));
}
Result<> HostActor::do_chmod(const std::string& path, std::uint32_t mode) {
  return done(::chmod(at(path).c_str(), mode));
}
Result<> HostActor::do_chown(const std::string& path, std::optional<std::uint32_t> uid,
                             std::optional<std::uint32_t> gid) {
  return done(::lchown(at(path).c_str(), uid.value_or(static_cast<uid_t>(-1)),
                       gid.value_or(static_cast<gid_t>(-1))));
}
Result<> HostActor::do_truncate(const std::string& path, std::uint64_t size) {
  return done(::truncate(at(path).c_str(), static_cast<off_t>(size)));
}
Result<> HostActor::do_utimens(const std::string& path, std::optional<Time> access,
                               std::optional<Time> modify) {
  const auto convert = [](const std::optional<Time>& time) {
    if (!time) return timespec{.tv_sec = 0, .tv_nsec = UTIME_OMIT};
    if (time->seconds == Time::kNow) return timespec{.tv_sec = 0, .tv_nsec = UTIME_NOW};
    return timespec{.tv_sec = time->seconds, .tv_nsec = static_cast<long>(time->nanoseconds)};
  };
  const timespec times[2] = {convert(access), convert(modify)};
  return done(::utimensat(AT_FDCWD, at(path).c_str(), times, AT_SYMLINK_NOFOLLOW));
}

namespace {
template <typename Attributes>
Attributes attributes_of(const struct stat& host) {
  Attributes found;
  found.mode = host.st_mode;
  found.uid = host.st_uid;
  found.gid = host.st_gid;
  found.links = host.st_nlink;
  found.size = static_cast<std::uint64_t>(host.st_size);
  found.device = S_ISCHR(host.st_mode) || S_ISBLK(host.st_mode)
                     ? (gnu_dev_major(host.st_rdev) << 20 | gnu_dev_minor(host.st_rdev))
                     : 0;
  found.access = {.seconds = host.st_atim.tv_sec,
                  .nanoseconds = static_cast<std::uint32_t>(host.st_atim.tv_nsec)};
  found.modify = {.seconds = host.st_mtim.tv_sec,
                  .nanoseconds = static_cast<std::uint32_t>(host.st_mtim.tv_nsec)};
  return found;
}
}  // namespace

Result<Actor::Attributes> HostActor::do_stat(const std::string& path) {
  struct stat host {};
  if (::lstat(at(path).c_str(), &host) != 0) return Errno::last();
  return attributes_of<Attributes>(host);
}

Result<std::vector<Actor::Found>> HostActor::do_list(const std::string& path) {
  DIR* directory = ::opendir(at(path).c_str());
  if (directory == nullptr) return Errno::last();
  std::vector<Found> found;
  while (const dirent* entry = ::readdir(directory))
    found.push_back({.name = entry->d_name, .type = entry->d_type});
  ::closedir(directory);
  return found;
}

Result<std::string> HostActor::do_statfs(const std::string& path) {
  struct statvfs host {};
  if (::statvfs(at(path).c_str(), &host) != 0) return Errno::last();
  return std::to_string(host.f_bsize) + " " + std::to_string(host.f_frsize) + " " +
         std::to_string(host.f_blocks) + " " + std::to_string(host.f_files) + " " +
         std::to_string(host.f_namemax);
}

Result<Actor::File> HostActor::do_open(const std::string& path, int flags, std::uint32_t mode) {
  UniqueFd file{::open(at(path).c_str(), flags | O_CLOEXEC | O_NOFOLLOW, mode)};
  if (!file) return Errno::last();
  files_.push_back(std::move(file));
  return static_cast<File>(files_.size() - 1);
}
Result<Actor::File> HostActor::do_tmpfile(const std::string& directory, int flags,
                                          std::uint32_t mode) {
  UniqueFd file{::open(at(directory).c_str(), flags | O_TMPFILE | O_CLOEXEC, mode)};
  if (!file) return Errno::last();
  files_.push_back(std::move(file));
  return static_cast<File>(files_.size() - 1);
}
Result<> HostActor::do_link_file(File file, const std::string& path) {
  const std::string self = "/proc/self/fd/" + std::to_string(fd(file));
  return done(::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, at(path).c_str(), AT_SYMLINK_FOLLOW));
}
Result<> HostActor::do_close(File file) {
  if (fd(file) < 0) return Errno{EBADF};
  files_[static_cast<std::size_t>(file)].reset();
  return {};
}
Result<std::string> HostActor::do_read(File file, std::uint64_t offset, std::uint32_t size) {
  std::string data(size, '\0');
  const ssize_t got = ::pread(fd(file), data.data(), size, static_cast<off_t>(offset));
  if (got < 0) return Errno::last();
  data.resize(static_cast<std::size_t>(got));
  return data;
}
Result<std::uint64_t> HostActor::do_write(File file, std::uint64_t offset,
                                          const std::string& data) {
  const ssize_t put = ::pwrite(fd(file), data.data(), data.size(), static_cast<off_t>(offset));
  if (put < 0) return Errno::last();
  return static_cast<std::uint64_t>(put);
}
Result<> HostActor::do_ftruncate(File file, std::uint64_t size) {
  return done(::ftruncate(fd(file), static_cast<off_t>(size)));
}
Result<Actor::Attributes> HostActor::do_fstat(File file) {
  struct stat host {};
  if (::fstat(fd(file), &host) != 0) return Errno::last();
  return attributes_of<Attributes>(host);
}
Result<> HostActor::do_fallocate(File file, int mode, std::uint64_t offset, std::uint64_t length) {
  return done(::fallocate(fd(file), mode, static_cast<off_t>(offset), static_cast<off_t>(length)));
}
Result<std::uint64_t> HostActor::do_lseek(File file, std::uint64_t offset, int whence) {
  const off_t found = ::lseek(fd(file), static_cast<off_t>(offset), whence);
  if (found < 0) return Errno::last();
  return static_cast<std::uint64_t>(found);
}
Result<std::uint64_t> HostActor::do_copy(File from, std::uint64_t from_offset, File to,
                                         std::uint64_t to_offset, std::uint64_t length,
                                         unsigned flags) {
  auto in = static_cast<off64_t>(from_offset);
  auto out = static_cast<off64_t>(to_offset);
  const ssize_t copied = ::copy_file_range(fd(from), &in, fd(to), &out, length, flags);
  if (copied < 0) return Errno::last();
  return static_cast<std::uint64_t>(copied);
}
Result<> HostActor::do_fsync(File file, bool data_only) {
  return done(data_only ? ::fdatasync(fd(file)) : ::fsync(fd(file)));
}
// Open file descriptions stand for the guest's lock owners.
Result<> HostActor::do_lock(File file, int type, std::uint64_t start, std::uint64_t length) {
  struct ::flock asked {};
  asked.l_type = static_cast<short>(type);
  asked.l_whence = SEEK_SET;
  asked.l_start = static_cast<off_t>(start);
  asked.l_len = static_cast<off_t>(length);
  return done(::fcntl(fd(file), F_OFD_SETLK, &asked));
}
Result<> HostActor::do_flock(File file, int operation) {
  return done(::flock(fd(file), operation | LOCK_NB));
}
Result<> HostActor::do_setxattr(const std::string& path, const std::string& name,
                                const std::string& value, int flags) {
  return done(::lsetxattr(at(path).c_str(), name.c_str(), value.data(), value.size(), flags));
}
Result<std::string> HostActor::do_getxattr(const std::string& path, const std::string& name,
                                           std::uint32_t size) {
  std::string value(size, '\0');
  const ssize_t got = ::lgetxattr(at(path).c_str(), name.c_str(), value.data(), size);
  if (got < 0) return Errno::last();
  if (size == 0) return std::to_string(got);
  value.resize(static_cast<std::size_t>(got));
  return value;
}
Result<std::string> HostActor::do_listxattr(const std::string& path, std::uint32_t size) {
  std::string value(size, '\0');
  const ssize_t got = ::llistxattr(at(path).c_str(), value.data(), size);
  if (got < 0) return Errno::last();
  if (size == 0) return std::to_string(got);
  value.resize(static_cast<std::size_t>(got));
  return value;
}
Result<> HostActor::do_removexattr(const std::string& path, const std::string& name) {
  return done(::lremovexattr(at(path).c_str(), name.c_str()));
}

// ---- GuestActor -----------------------------------------------------------------------------

void GuestActor::as(std::uint32_t uid, std::uint32_t gid, std::vector<std::uint32_t> groups) {
  uid_ = uid;
  gid_ = gid;
  groups_ = std::move(groups);
  fuse_.as(uid, gid);
}

Result<std::uint64_t> GuestActor::node(const std::string& path) {
  const fuse_entry_out entry = TRY(fuse_.walk(path));
  if (entry.nodeid == 0) return Errno{ENOENT};
  return entry.nodeid;
}

Result<GuestActor::Place> GuestActor::place(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return Place{.parent = FuseClient::kRoot, .name = path};
  return Place{.parent = TRY(node(path.substr(0, slash))), .name = path.substr(slash + 1)};
}

Result<> GuestActor::prepare_create(std::uint64_t parent) {
  fuse_.set_supplementary_group({});
  if (!fuse_.has(kInitCreateSuppGroup)) return {};
  const fuse_attr directory = TRY(fuse_.getattr(parent));
  if (directory.gid != gid_ &&
      std::find(groups_.begin(), groups_.end(), directory.gid) != groups_.end())
    fuse_.set_supplementary_group(directory.gid);
  return {};
}

std::uint32_t GuestActor::masked(std::uint32_t mode) const {
  return fuse_.has(FUSE_DONT_MASK) ? mode : mode & ~umask_;
}

Result<GuestActor::OpenFile> GuestActor::file(File number) const {
  if (number < 0 || static_cast<std::size_t>(number) >= files_.size()) return Errno{EBADF};
  const OpenFile& found = files_[static_cast<std::size_t>(number)];
  if (!found.open) return Errno{EBADF};
  return found;
}

Actor::File GuestActor::keep(std::uint64_t kept, std::uint64_t handle, int flags) {
  files_.push_back({.node = kept, .handle = handle, .flags = flags, .open = true});
  return static_cast<File>(files_.size() - 1);
}

namespace {
template <typename T>
Result<> only_whether(const Result<T>& result) {
  if (!result) return result.error();
  return {};
}
}  // namespace

Result<> GuestActor::do_mkdir(const std::string& path, std::uint32_t mode) {
  const Place where = TRY(place(path));
  TRY(prepare_create(where.parent));
  const auto made = fuse_.mkdir(where.parent, where.name, masked(mode), umask_);
  fuse_.set_supplementary_group({});
  return only_whether(made);
}
Result<> GuestActor::do_mknod(const std::string& path, std::uint32_t mode, std::uint64_t device) {
  const Place where = TRY(place(path));
  TRY(prepare_create(where.parent));
  if ((mode & S_IFMT) == 0) mode |= S_IFREG;  // as the kernel does
  // The kernel's 32-bit form of a device number (new_encode_dev).
  const unsigned major = gnu_dev_major(device);
  const unsigned minor = gnu_dev_minor(device);
  const std::uint32_t encoded = (minor & 0xffU) | (major << 8) | ((minor & ~0xffU) << 12);
  const auto made = fuse_.mknod(where.parent, where.name, masked(mode), encoded, umask_);
  fuse_.set_supplementary_group({});
  return only_whether(made);
}
Result<> GuestActor::do_symlink(const std::string& path, const std::string& target) {
  const Place where = TRY(place(path));
  TRY(prepare_create(where.parent));
  const auto made = fuse_.symlink(where.parent, where.name, target);
  fuse_.set_supplementary_group({});
  return only_whether(made);
}
Result<> GuestActor::do_link(const std::string& from, const std::string& to) {
  const std::uint64_t existing = TRY(node(from));
  const Place where = TRY(place(to));
  return only_whether(fuse_.link(existing, where.parent, where.name));
}
// The kernel looks a name up before it takes it away or moves it.
Result<> GuestActor::do_unlink(const std::string& path) {
  const Place where = TRY(place(path));
  TRY(fuse_.lookup(where.parent, where.name));
  return fuse_.unlink(where.parent, where.name);
}
Result<> GuestActor::do_rmdir(const std::string& path) {
  const Place where = TRY(place(path));
  TRY(fuse_.lookup(where.parent, where.name));
  return fuse_.rmdir(where.parent, where.name);
}
Result<> GuestActor::do_rename(const std::string& from, const std::string& to, unsigned flags) {
  const Place source = TRY(place(from));
  const Place target = TRY(place(to));
  TRY(fuse_.lookup(source.parent, source.name));
  const auto replaced = fuse_.lookup(target.parent, target.name);
  if (!replaced && replaced.error() != Errno{ENOENT}) return replaced.error();
  if (flags == 0) return fuse_.rename(source.parent, source.name, target.parent, target.name);
  return fuse_.rename2(source.parent, source.name, target.parent, target.name, flags);
}
Result<std::string> GuestActor::do_readlink(const std::string& path) {
  return fuse_.readlink(TRY(node(path)));
}
Result<> GuestActor::do_chmod(const std::string& path, std::uint32_t mode) {
  return only_whether(fuse_.chmod(TRY(node(path)), mode));
}
Result<> GuestActor::do_chown(const std::string& path, std::optional<std::uint32_t> uid,
                              std::optional<std::uint32_t> gid) {
  return only_whether(fuse_.chown(TRY(node(path)), uid, gid));
}
Result<> GuestActor::do_truncate(const std::string& path, std::uint64_t size) {
  fuse_setattr_in in{};
  in.valid = FATTR_SIZE;
  if (drops_set_ids()) in.valid |= FATTR_KILL_SUIDGID;
  in.size = size;
  return only_whether(fuse_.setattr(TRY(node(path)), in));
}
Result<> GuestActor::do_utimens(const std::string& path, std::optional<Time> access,
                                std::optional<Time> modify) {
  fuse_setattr_in in{};
  if (access) {
    in.valid |= FATTR_ATIME;
    if (access->seconds == Time::kNow) in.valid |= FATTR_ATIME_NOW;
    in.atime = static_cast<std::uint64_t>(access->seconds);
    in.atimensec = access->nanoseconds;
  }
  if (modify) {
    in.valid |= FATTR_MTIME;
    if (modify->seconds == Time::kNow) in.valid |= FATTR_MTIME_NOW;
    in.mtime = static_cast<std::uint64_t>(modify->seconds);
    in.mtimensec = modify->nanoseconds;
  }
  return only_whether(fuse_.setattr(TRY(node(path)), in));
}

namespace {
template <typename Attributes>
Attributes attributes_of(const fuse_attr& attr) {
  Attributes found;
  found.mode = attr.mode;
  found.uid = attr.uid;
  found.gid = attr.gid;
  found.links = attr.nlink;
  found.size = attr.size;
  if (S_ISCHR(attr.mode) || S_ISBLK(attr.mode)) {
    const std::uint32_t major = (attr.rdev & 0xfff00U) >> 8;
    const std::uint32_t minor = (attr.rdev & 0xffU) | ((attr.rdev >> 12) & 0xfff00U);
    found.device = major << 20 | minor;
  }
  found.access = {.seconds = static_cast<std::int64_t>(attr.atime), .nanoseconds = attr.atimensec};
  found.modify = {.seconds = static_cast<std::int64_t>(attr.mtime), .nanoseconds = attr.mtimensec};
  return found;
}
}  // namespace

Result<Actor::Attributes> GuestActor::do_stat(const std::string& path) {
  const std::uint64_t of = TRY(node(path));
  return attributes_of<Attributes>(TRY(fuse_.getattr(of)));
}
Result<std::vector<Actor::Found>> GuestActor::do_list(const std::string& path) {
  const auto entries = fuse_.list(TRY(node(path)), true);
  if (!entries) return entries.error();
  std::vector<Found> found;
  for (const Entry& entry : *entries) found.push_back({.name = entry.name, .type = entry.type});
  return found;
}
Result<std::string> GuestActor::do_statfs(const std::string& path) {
  const std::uint64_t of = TRY(node(path));
  const fuse_kstatfs host = TRY(fuse_.statfs(of));
  return std::to_string(host.bsize) + " " + std::to_string(host.frsize) + " " +
         std::to_string(host.blocks) + " " + std::to_string(host.files) + " " +
         std::to_string(host.namelen);
}

Result<Actor::File> GuestActor::do_open(const std::string& path, int flags, std::uint32_t mode) {
  const Place where = TRY(place(path));
  const auto existing = fuse_.lookup(where.parent, where.name);
  const bool found = existing && existing->nodeid != 0;
  if (!found && existing.has_value() == false && existing.error() != Errno{ENOENT})
    return existing.error();
  if ((flags & O_CREAT) != 0 && !found) {
    TRY(prepare_create(where.parent));
    const auto created = fuse_.create(where.parent, where.name, static_cast<unsigned>(flags),
                                      masked(mode) | S_IFREG, umask_);
    fuse_.set_supplementary_group({});
    if (!created) return created.error();
    return keep(created->entry.nodeid, created->open.fh, flags);
  }
  if (!found) return Errno{ENOENT};
  if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) return Errno{EEXIST};
  const bool drop = (flags & O_TRUNC) != 0 && drops_set_ids();
  const int sent = flags & ~(O_CREAT | O_EXCL | O_NOCTTY);
  const fuse_open_out opened = TRY(fuse_.open(existing->nodeid, static_cast<unsigned>(sent),
                                              drop ? unsigned{FUSE_OPEN_KILL_SUIDGID} : 0U));
  return keep(existing->nodeid, opened.fh, flags);
}
Result<Actor::File> GuestActor::do_tmpfile(const std::string& directory, int flags,
                                           std::uint32_t mode) {
  const std::uint64_t parent = TRY(node(directory));
  TRY(prepare_create(parent));
  const auto made = fuse_.tmpfile(parent, static_cast<unsigned>(flags | O_TMPFILE),
                                  masked(mode) | S_IFREG, umask_);
  fuse_.set_supplementary_group({});
  if (!made) return made.error();
  return keep(made->entry.nodeid, made->open.fh, flags);
}
Result<> GuestActor::do_link_file(File number, const std::string& path) {
  const OpenFile open = TRY(file(number));
  const Place where = TRY(place(path));
  return only_whether(fuse_.link(open.node, where.parent, where.name));
}
Result<> GuestActor::do_close(File number) {
  const OpenFile open = TRY(file(number));
  TRY(fuse_.flush(open.node, open.handle, open.handle + 1));
  TRY(fuse_.release(open.node, open.handle, FUSE_RELEASE_FLOCK_UNLOCK, open.handle + 1));
  files_[static_cast<std::size_t>(number)].open = false;
  return {};
}
Result<std::string> GuestActor::do_read(File number, std::uint64_t offset, std::uint32_t size) {
  const OpenFile open = TRY(file(number));
  return fuse_.read(open.node, open.handle, offset, size, static_cast<unsigned>(open.flags));
}
Result<std::uint64_t> GuestActor::do_write(File number, std::uint64_t offset,
                                           const std::string& data) {
  const OpenFile open = TRY(file(number));
  return std::uint64_t{TRY(fuse_.write(open.node, open.handle, offset, data,
                                       drops_set_ids() ? unsigned{FUSE_WRITE_KILL_SUIDGID} : 0U,
                                       static_cast<unsigned>(open.flags)))};
}
Result<> GuestActor::do_ftruncate(File number, std::uint64_t size) {
  const OpenFile open = TRY(file(number));
  fuse_setattr_in in{};
  in.valid = FATTR_SIZE | FATTR_FH;
  if (drops_set_ids()) in.valid |= FATTR_KILL_SUIDGID;
  in.fh = open.handle;
  in.size = size;
  return only_whether(fuse_.setattr(open.node, in));
}
Result<Actor::Attributes> GuestActor::do_fstat(File number) {
  const OpenFile open = TRY(file(number));
  return attributes_of<Attributes>(TRY(fuse_.getattr(open.node, open.handle)));
}
Result<> GuestActor::do_fallocate(File number, int mode, std::uint64_t offset,
                                  std::uint64_t length) {
  const OpenFile open = TRY(file(number));
  return fuse_.fallocate(open.node, open.handle, offset, length, static_cast<unsigned>(mode));
}
Result<std::uint64_t> GuestActor::do_lseek(File number, std::uint64_t offset, int whence) {
  const OpenFile open = TRY(file(number));
  return fuse_.lseek(open.node, open.handle, offset, static_cast<unsigned>(whence));
}
Result<std::uint64_t> GuestActor::do_copy(File from, std::uint64_t from_offset, File to,
                                          std::uint64_t to_offset, std::uint64_t length,
                                          unsigned flags) {
  const OpenFile in = TRY(file(from));
  const OpenFile out = TRY(file(to));
  return fuse_.copy_file_range(in.node, in.handle, from_offset, out.node, out.handle, to_offset,
                               length, flags);
}
Result<> GuestActor::do_fsync(File number, bool data_only) {
  const OpenFile open = TRY(file(number));
  return fuse_.fsync(open.node, open.handle, data_only);
}
Result<> GuestActor::do_lock(File number, int type, std::uint64_t start, std::uint64_t length) {
  const OpenFile open = TRY(file(number));
  const fuse_file_lock asked{
      .start = start,
      .end = length == 0 ? static_cast<std::uint64_t>(LLONG_MAX) : start + length - 1,
      .type = static_cast<std::uint32_t>(type),
      .pid = 1};
  return fuse_.setlk(open.node, open.handle, open.handle + 1, asked);
}
Result<> GuestActor::do_flock(File number, int operation) {
  const OpenFile open = TRY(file(number));
  int type = F_UNLCK;
  if ((operation & LOCK_SH) != 0) type = F_RDLCK;
  if ((operation & LOCK_EX) != 0) type = F_WRLCK;
  const fuse_file_lock asked{.start = 0,
                             .end = static_cast<std::uint64_t>(LLONG_MAX),
                             .type = static_cast<std::uint32_t>(type),
                             .pid = 1};
  return fuse_.setlk(open.node, open.handle, open.handle + 1, asked, true);
}
Result<> GuestActor::do_setxattr(const std::string& path, const std::string& name,
                                 const std::string& value, int flags) {
  return fuse_.setxattr(TRY(node(path)), name, value, static_cast<unsigned>(flags));
}
Result<std::string> GuestActor::do_getxattr(const std::string& path, const std::string& name,
                                            std::uint32_t size) {
  const std::uint64_t of = TRY(node(path));
  if (size == 0) return std::to_string(TRY(fuse_.getxattr_size(of, name)));
  return fuse_.getxattr(of, name, size);
}
Result<std::string> GuestActor::do_listxattr(const std::string& path, std::uint32_t size) {
  const std::uint64_t of = TRY(node(path));
  if (size == 0) return std::to_string(TRY(fuse_.listxattr_size(of)));
  return fuse_.listxattr(of, size);
}
Result<> GuestActor::do_removexattr(const std::string& path, const std::string& name) {
  return fuse_.removexattr(TRY(node(path)), name);
}

// ---- the trees themselves -------------------------------------------------------------------

namespace {

void describe(const TempTree& tree, const std::string& path, std::vector<std::string>& lines) {
  const struct stat host = tree.stat(path);
  std::string line = (path.empty() ? "." : path) + ": " + octal(host.st_mode) + " " +
                     std::to_string(host.st_uid) + ":" + std::to_string(host.st_gid) + " links " +
                     std::to_string(host.st_nlink);
  if (S_ISREG(host.st_mode)) {
    line += " size " + std::to_string(host.st_size);
    if (host.st_size <= (16 << 20)) line += " " + quoted(tree.read(path));
  }
  if (S_ISLNK(host.st_mode)) {
    char target[PATH_MAX];
    const ssize_t size = ::readlink(tree.path(path).c_str(), target, sizeof(target));
    line += " to " + std::string(target, static_cast<std::size_t>(std::max<ssize_t>(0, size)));
  }
  if (S_ISCHR(host.st_mode) || S_ISBLK(host.st_mode))
    line += " device " + std::to_string(host.st_rdev);
  std::string names(65536, '\0');
  const ssize_t size = ::llistxattr(tree.path(path).c_str(), names.data(), names.size());
  names.resize(static_cast<std::size_t>(std::max<ssize_t>(0, size)));
  std::istringstream each(sorted_names(names));
  for (std::string name; each >> name;) {
    std::string value(65536, '\0');
    const ssize_t length =
        ::lgetxattr(tree.path(path).c_str(), name.c_str(), value.data(), value.size());
    value.resize(static_cast<std::size_t>(std::max<ssize_t>(0, length)));
    line += " " + name + "=" + quoted(value);
  }
  lines.push_back(std::move(line));
  if (!S_ISDIR(host.st_mode)) return;
  for (const std::string& name : tree.list(path))
    describe(tree, path.empty() ? name : path + "/" + name, lines);
}

}  // namespace

std::vector<std::string> describe_tree(const TempTree& tree) {
  std::vector<std::string> lines;
  describe(tree, "", lines);
  return lines;
}

}  // namespace virtiofsd::guest
