// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/listener.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <limits.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "sys/sockets.h"

namespace virtiofsd {
namespace {

struct UnixAddress {
  // `path` fits: prepare() has looked.
  explicit UnixAddress(const std::string& path) {
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
  }
  const struct sockaddr* get() const {
    return static_cast<const struct sockaddr*>(static_cast<const void*>(&address));
  }

  struct sockaddr_un address {};
};

constexpr std::size_t kLongestPath = sizeof(sockaddr_un::sun_path) - 1;

std::string directory_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string lock_path(const std::string& path) {
  return path + ".pid";
}

enum class Occupant { kNobody, kDeadSocket, kLiveSocket, kNoSocket };

// Who is at `path`? A datagram socket finds a stream socket's owner without
// becoming a client of it: the kernel says EPROTOTYPE for a live one.
Occupant occupant_of(const std::string& path) {
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0) return Occupant::kNobody;
  if (!S_ISSOCK(found.st_mode)) return Occupant::kNoSocket;
  const UniqueFd probe(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const UnixAddress address(path);
  const bool connected = ::connect(probe.number(), address.get(), sizeof(address.address)) == 0;
  return !connected && errno == ECONNREFUSED ? Occupant::kDeadSocket : Occupant::kLiveSocket;
}

Result<void, Failure> write_pid(FdRef lock) {
  const std::string text = fmt::format("{}\n", ::getpid());
  const auto size = static_cast<ssize_t>(text.size());
  if (::ftruncate(lock.number(), 0) != 0 ||
      ::pwrite(lock.number(), text.data(), text.size(), 0) != size) {
    return Failure{"can't write the pid file", Errno::last()};
  }
  return {};
}

// Empty when nothing is in there.
std::string read_pid(FdRef lock) {
  std::array<char, 32> text{};
  const ssize_t size = ::pread(lock.number(), text.data(), text.size() - 1, 0);
  if (size <= 0) return {};
  const std::string_view view(text.data(), static_cast<std::size_t>(size));
  return std::string{view.substr(0, view.find('\n'))};
}

bool is_same_file(FdRef fd, const std::string& path) {
  struct stat open {};
  struct stat named {};
  return ::fstat(fd.number(), &open) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

Result<UniqueFd, Failure> take_lock(const std::string& path) {
  const std::string name = lock_path(path);
  for (;;) {
    UniqueFd lock(
        ::open(name.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0644));
    if (!lock) {
      return Failure{fmt::format("can't make the pid file \"{}\"", name), Errno::last()};
    }
    if (::flock(lock.number(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) {
        return Failure{fmt::format("can't lock the pid file \"{}\"", name), Errno::last()};
      }
      const std::string pid = read_pid(lock);
      return Failure{fmt::format("the socket path \"{}\" is in use by another virtiofsd ({})", path,
                                 pid.empty() ? "unknown pid" : "pid " + pid)};
    }
    // Its last owner may have removed it between our open and our lock.
    if (is_same_file(lock, name)) return lock;
  }
}

Result<gid_t, Failure> group_id(const std::string& name) {
  const struct group* entry = ::getgrnam(name.c_str());
  if (entry == nullptr) {
    return Failure{fmt::format("--socket-group: there is no group \"{}\"", name)};
  }
  if (::geteuid() != 0 && ::getegid() != entry->gr_gid) {
    std::vector<gid_t> groups(NGROUPS_MAX);
    const int count = ::getgroups(NGROUPS_MAX, groups.data());
    groups.resize(static_cast<std::size_t>(std::max(count, 0)));
    if (std::ranges::find(groups, entry->gr_gid) == groups.end()) {
      return Failure{fmt::format(
          "--socket-group: only root and members of group \"{}\" can let it connect", name)};
    }
  }
  return entry->gr_gid;
}

// Does systemd pass descriptors to this very process?
int activation_count(bool forget) {
  return std::max(0, ::sd_listen_fds(forget ? 1 : 0));
}

}  // namespace

Listener::Listener(Listener&& other) noexcept
    : settings_(std::move(other.settings_)),
      socket_(std::move(other.socket_)),
      lock_(std::move(other.lock_)),
      group_id_(other.group_id_),
      socket_device_(other.socket_device_),
      socket_inode_(other.socket_inode_),
      connected_(other.connected_),
      bound_(std::exchange(other.bound_, false)) {}

Result<Listener, Failure> Listener::prepare(Settings settings) {
  Listener listener;
  listener.settings_ = std::move(settings);
  const std::string& path = listener.settings_.path;
  if (path.empty()) {
    TRY(listener.take_descriptor());
    return listener;
  }
  if (path.size() > kLongestPath) {
    return Failure{fmt::format("the socket path \"{}\" is {} bytes long; the system allows {}",
                               path, path.size(), kLongestPath)};
  }
  const std::string directory = directory_of(path);
  if (::faccessat(AT_FDCWD, directory.c_str(), W_OK | X_OK, AT_EACCESS) != 0) {
    return Failure{fmt::format("the socket \"{}\" can't be made in \"{}\"", path, directory),
                   Errno::last()};
  }
  if (!listener.settings_.group.empty()) {
    listener.group_id_ = TRY(group_id(listener.settings_.group));
  }
  // Looked at before the lock, so that nothing is made beside what isn't ours.
  if (occupant_of(path) == Occupant::kNoSocket) {
    return Failure{fmt::format("\"{}\" exists and is not a socket; it is left alone", path)};
  }
  listener.lock_ = TRY(take_lock(path));
  const auto failed = [&](Failure failure) -> Result<Listener, Failure> {
    listener.remove();
    return failure;
  };
  if (occupant_of(path) == Occupant::kLiveSocket) {
    return failed(
        Failure{fmt::format("the socket path \"{}\" is in use by another process", path)});
  }
  if (auto written = write_pid(listener.lock_); !written) {
    return failed(std::move(written).error());
  }
  listener.socket_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener.socket_) return failed(Failure{"can't make a socket", Errno::last()});
  return listener;
}

Result<Listener, Failure> Listener::prepare_to_take_over(Settings settings, pid_t predecessor) {
  Listener listener;
  listener.settings_ = std::move(settings);
  const std::string& path = listener.settings_.path;
  if (path.empty()) return listener;
  const std::string name = lock_path(path);
  const UniqueFd lock(::open(name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  const std::string pid = lock ? read_pid(lock) : std::string{};
  if (pid.empty()) {
    return Failure{
        fmt::format("--take-over={}: no virtiofsd has the socket path \"{}\"", predecessor, path)};
  }
  if (pid != fmt::format("{}", predecessor)) {
    return Failure{
        fmt::format("--take-over={}: the virtiofsd with the socket path \"{}\" is pid {}",
                    predecessor, path, pid)};
  }
  return listener;
}

Result<void, Failure> Listener::take_over() {
  const std::string& path = settings_.path;
  if (path.empty()) return {};
  lock_ = TRY(take_lock(path));
  TRY(write_pid(lock_));
  note_socket();
  return {};
}

void Listener::note_socket() {
  struct stat made {};
  if (::lstat(settings_.path.c_str(), &made) != 0 || !S_ISSOCK(made.st_mode)) return;
  bound_ = true;
  socket_device_ = made.st_dev;
  socket_inode_ = made.st_ino;
}

Result<void, Failure> Listener::take_descriptor() {
  int number = SD_LISTEN_FDS_START;
  std::string name = "the socket passed by systemd";
  if (settings_.fd) {
    number = *settings_.fd;
    name = fmt::format("--fd={}", number);
  } else if (const int count = activation_count(true); count != 1) {
    return Failure{fmt::format(
        "no --socket-path or --fd was given, and systemd passed {} sockets instead of one", count)};
  }
  const FdRef fd{number};
  const auto is_stream = sys::is_unix_stream(fd);
  if (!is_stream) {
    return Failure{fmt::format("{} is not an open descriptor", name), is_stream.error()};
  }
  if (!*is_stream) return Failure{fmt::format("{} is not a unix stream socket", name)};
  const auto listening = sys::is_listening(fd);
  if (!listening) return Failure{fmt::format("{} can't be asked about", name), listening.error()};
  connected_ = !*listening;
  struct sockaddr_storage peer {};
  socklen_t size = sizeof(peer);
  if (connected_ &&
      ::getpeername(number, static_cast<struct sockaddr*>(static_cast<void*>(&peer)), &size) != 0) {
    return Failure{fmt::format("{} is a socket that neither listens nor is connected", name)};
  }
  if (connected_ && settings_.keep) {
    return Failure{fmt::format("--keep-listening needs a socket that listens; {} doesn't", name)};
  }
  socket_ = UniqueFd(number);
  if (::fcntl(number, F_SETFD, FD_CLOEXEC) != 0) {
    return Failure{fmt::format("{} can't be made close-on-exec", name), Errno::last()};
  }
  return {};
}

Result<void, Failure> Listener::open() {
  if (settings_.path.empty()) {
    socket_.reset();
    return {};
  }
  const char* path = settings_.path.c_str();
  TRY(write_pid(lock_));  // with --daemonize the pid is another by now
  if (::unlink(path) != 0 && errno != ENOENT) {
    return Failure{fmt::format("can't replace the stale socket \"{}\"", path), Errno::last()};
  }
  const UnixAddress address(settings_.path);
  const mode_t mask = ::umask(0177);
  const bool made = ::bind(socket_.number(), address.get(), sizeof(address.address)) == 0;
  const Errno error = Errno::last();
  ::umask(mask);
  if (!made) return Failure{fmt::format("can't make the socket \"{}\"", path), error};
  note_socket();
  if (!settings_.group.empty()) {
    if (::lchown(path, static_cast<uid_t>(-1), group_id_) != 0 || ::chmod(path, 0660) != 0) {
      return Failure{
          fmt::format("can't give the socket \"{}\" to group \"{}\"", path, settings_.group),
          Errno::last()};
    }
  }
  // One client is served at a time; a second one finds the door closed, or waits.
  const auto listening = sys::listen(socket_, 1);
  if (!listening) return Failure{fmt::format("can't listen on \"{}\"", path), listening.error()};
  socket_.reset();
  return {};
}

void Listener::remove() {
  struct stat found {};
  if (bound_ && ::lstat(settings_.path.c_str(), &found) == 0 && S_ISSOCK(found.st_mode) &&
      found.st_dev == socket_device_ && found.st_ino == socket_inode_) {
    ::unlink(settings_.path.c_str());
  }
  bound_ = false;
  if (lock_) {
    const std::string name = lock_path(settings_.path);
    if (is_same_file(lock_, name)) ::unlink(name.c_str());
    lock_.reset();
  }
}

Result<UniqueFd, Failure> Listener::accept() {
  if (connected_) return std::move(socket_);
  for (;;) {
    auto client = sys::accept(socket_);
    if (client) {
      if (!settings_.keep) socket_.reset();
      return std::move(client).value();
    }
    if (client.error() != Errno{EINTR} && client.error() != Errno{ECONNABORTED}) {
      return Failure{"can't accept a connection", client.error()};
    }
  }
}

void Listener::keep_listening_on(FdRef socket) {
  if (!socket_) socket_ = UniqueFd{socket.number()};
}

void Listener::leave_to_launcher() {
  lock_.reset();
}

void close_inherited_descriptors(std::optional<int> keep) {
  // Descriptors 0 to 2 exist, so that no file of ours gets to be somebody's stderr.
  for (;;) {
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0) break;
    if (null > STDERR_FILENO) {
      ::close(null);
      break;
    }
    ::fcntl(null, F_SETFD, 0);
  }
  unsigned next = STDERR_FILENO + 1;
  const auto close_up_to = [&](unsigned end) {
    if (next < end) ::close_range(next, end - 1, 0);
    next = std::max(next, end + 1);
  };
  const int activated = activation_count(false);
  std::vector<unsigned> kept;
  for (int i = 0; i < activated; ++i) {
    kept.push_back(static_cast<unsigned>(SD_LISTEN_FDS_START + i));
  }
  if (keep && *keep > STDERR_FILENO) kept.push_back(static_cast<unsigned>(*keep));
  std::ranges::sort(kept);
  for (const unsigned fd : kept) close_up_to(fd);
  ::close_range(next, ~0U, 0);
}

}  // namespace virtiofsd
