// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "daemon/handover.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "sys/sockets.h"

namespace virtiofsd::handover {

enum class Word : std::uint32_t {
  kHello = 1,
  kOffer,
  kNo,
  kGive,
  kSome,
  kGoOn,
  kAll,
  kTaken,
  kYours,
};

struct Message {
  static constexpr std::uint32_t kVersion = 1;

  std::uint32_t version = kVersion;
  Word word = Word::kHello;
  std::uint32_t count = 0;  // kSome: of descriptors
  std::array<std::int32_t, sys::kMaxReceivedFds> numbers{};
  std::array<char, 256> why{};  // kNo
};

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::seconds;

constexpr seconds kForAWord{5};
// A worker may take some time to stop, and a new one to look at millions of inodes.
constexpr seconds kForWork{60};

Result<std::string, Failure> directory_of_doors() {
  if (::geteuid() == 0) return std::string{"/run/virtiofsd-take-over"};
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime == nullptr || *runtime == '\0') return Failure{"XDG_RUNTIME_DIR isn't set"};
  return fmt::format("{}/virtiofsd-take-over", runtime);
}

std::string door_of(const std::string& directory, pid_t launcher) {
  return fmt::format("{}/{}", directory, launcher);
}

// The doors of those who had no time to remove theirs.
void remove_dead_doors(const std::string& directory) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename();
    pid_t pid = 0;
    const auto [stop, problem] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (problem != std::errc{} || stop != name.data() + name.size() || pid <= 0) continue;
    if (::kill(pid, 0) == 0 || errno != ESRCH) continue;
    // A pid of another namespace may live there.
    const auto probe = sys::connect_for_packets(entry->path().native());
    if (!probe && probe.error() == Errno{ECONNREFUSED}) ::unlink(entry->path().c_str());
  }
}

Result<> say(FdRef socket, const Message& message, std::span<const FdRef> fds = {}) {
  return sys::send_all(socket, std::as_bytes(std::span{&message, 1}), fds,
                       Clock::now() + kForAWord);
}
Result<> say(FdRef socket, Word word) {
  return say(socket, Message{.word = word});
}

// ECONNRESET: it is gone. EPROTO: it speaks another version.
Result<Message> hear(FdRef socket, seconds patience, std::vector<UniqueFd>& fds) {
  Message message;
  TRY(sys::wait_until(socket, POLLIN, Clock::now() + patience));
  const auto bytes = std::as_writable_bytes(std::span{&message, 1});
  const std::size_t size = TRY(sys::receive(socket, bytes, fds));
  if (size == 0) return Errno{ECONNRESET};
  if (size != sizeof(message) || message.version != Message::kVersion) return Errno{EPROTO};
  message.count = std::min<std::uint32_t>(message.count, message.numbers.size());
  message.why.back() = '\0';
  return message;
}

Result<void, Failure> expect(FdRef socket, Word word, seconds patience) {
  std::vector<UniqueFd> fds;
  const Result<Message> message = hear(socket, patience, fds);
  if (!message) return Failure{"the new process is gone or silent", message.error()};
  if (message->word != word) return Failure{"the new process says something else than it should"};
  return {};
}

}  // namespace

Result<Door, Failure> Door::open() {
  const std::string directory = TRY(directory_of_doors());
  Door door;
  door.path_ = door_of(directory, ::getpid());
  // Another one may remove the directory meanwhile, as empty.
  for (int tries = 0; tries < 10; ++tries) {
    if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
      return Failure{fmt::format("can't make \"{}\"", directory), Errno::last()};
    struct stat made {};
    if (::lstat(directory.c_str(), &made) != 0) continue;
    if (!S_ISDIR(made.st_mode) || made.st_uid != ::geteuid() || (made.st_mode & 077) != 0)
      return Failure{fmt::format("\"{}\" is not a directory for this user only", directory)};
    remove_dead_doors(directory);
    ::unlink(door.path_.c_str());  // a namesake's, who is gone
    auto socket = sys::listen_for_packets(door.path_);
    if (socket) {
      door.socket = std::move(*socket);
      return door;
    }
    if (socket.error() != Errno{ENOENT})
      return Failure{fmt::format("can't listen on \"{}\"", door.path_), socket.error()};
  }
  return Failure{fmt::format("\"{}\" doesn't stay", directory)};
}

void Door::remove() {
  if (path_.empty()) return;
  ::unlink(path_.c_str());
  ::rmdir(path_.substr(0, path_.rfind('/')).c_str());  // the last one does
}

// ---- the old tree's end --------------------------------------------------------------

Result<Heir, Failure> Heir::meet(FdRef door) {
  auto socket = sys::accept(door);
  if (!socket) return Failure{"can't accept a connection", socket.error()};
  // It says so as soon as it is connected; meanwhile nobody looks after the worker.
  TRY(expect(*socket, Word::kHello, seconds(1)));
  return Heir{std::move(*socket)};
}

void Heir::refuse(std::string_view why) {
  Message message{.word = Word::kNo};
  std::copy_n(why.begin(), std::min(why.size(), message.why.size() - 1), message.why.begin());
  (void)say(socket_, message);
}

Result<void, Failure> Heir::offer(FdRef arena, FdRef root, FdRef mount_namespace) {
  const std::array fds{arena, root, mount_namespace};
  if (const auto said = say(socket_, Message{.word = Word::kOffer}, fds); !said)
    return Failure{"can't show the state", said.error()};
  return {};
}

Result<void, Failure> Heir::hear_wish() {
  return expect(socket_, Word::kGive, kForAWord);
}

Result<void, Failure> Heir::give(std::span<const int> descriptors) {
  while (!descriptors.empty()) {
    // Few at a time, each heard of: those on their way count against a limit.
    Message message{.word = Word::kSome};
    std::vector<FdRef> fds;
    for (const int number : descriptors.first(std::min(descriptors.size(), sys::kMaxReceivedFds))) {
      message.numbers.at(message.count++) = number;
      fds.emplace_back(number);
    }
    if (const auto said = say(socket_, message, fds); !said)
      return Failure{"can't hand descriptors over", said.error()};
    TRY(expect(socket_, Word::kGoOn, kForAWord));
    descriptors = descriptors.subspan(fds.size());
  }
  if (const auto said = say(socket_, Word::kAll); !said)
    return Failure{"can't hand descriptors over", said.error()};
  return expect(socket_, Word::kTaken, kForWork);
}

Result<void, Failure> Heir::let_go() {
  if (const auto said = say(socket_, Word::kYours); !said)
    return Failure{"the new process is gone", said.error()};
  return {};
}

// ---- the new tree's end --------------------------------------------------------------

Result<Predecessor, Failure> Predecessor::find(pid_t launcher) {
  const auto directory = directory_of_doors();
  if (!directory)
    return Failure{fmt::format("--take-over={}: {}", launcher, directory.error().text())};
  const std::string door = door_of(*directory, launcher);
  auto socket = sys::connect_for_packets(door);
  if (!socket) {
    return Failure{fmt::format("--take-over={}: no virtiofsd of that pid and of this user can be "
                               "taken over: \"{}\"",
                               launcher, door),
                   socket.error()};
  }
  const auto peer = sys::peer_of(*socket);
  if (!peer || peer->pid != launcher) {
    return Failure{fmt::format("--take-over={}: another process answers in its place", launcher)};
  }
  if (peer->uid != ::geteuid()) {
    return Failure{
        fmt::format("--take-over={}: it is of user {}, and only that user can take it over",
                    launcher, peer->uid)};
  }
  UniqueFd process{static_cast<int>(::syscall(SYS_pidfd_open, launcher, 0))};
  if (!process) {
    return Failure{fmt::format("--take-over={}: can't wait for its end", launcher), Errno::last()};
  }
  (void)say(*socket, Word::kHello);  // what comes of it is heard
  return Predecessor{std::move(*socket), std::move(process)};
}

void Predecessor::close() {
  socket_.reset();
  process_.reset();
}

Result<Message, Failure> Predecessor::hear(seconds patience, std::vector<UniqueFd>& fds) {
  auto message = handover::hear(socket_, patience, fds);
  if (!message) {
    if (message.error() == Errno{EPROTO})
      return Failure{"the running virtiofsd hands over in another way than this one takes over"};
    if (message.error() == Errno{EMSGSIZE})
      return Failure{"the running virtiofsd has more descriptors than this one may have"};
    return Failure{"the running virtiofsd doesn't hand over", message.error()};
  }
  if (message->word == Word::kNo)
    return Failure{fmt::format("the running virtiofsd doesn't hand over: {}", message->why.data())};
  return *message;
}

Result<Offered, Failure> Predecessor::ask() {
  std::vector<UniqueFd> fds;
  const Message message = TRY(hear(kForAWord, fds));
  if (message.word != Word::kOffer || fds.size() != 3)
    return Failure{"the running virtiofsd says something else than it should"};
  return Offered{
      .arena = std::move(fds[0]), .root = std::move(fds[1]), .mount_namespace = std::move(fds[2])};
}

Result<std::unordered_map<int, UniqueFd>, Failure> Predecessor::take() {
  std::unordered_map<int, UniqueFd> all;
  (void)say(socket_, Word::kGive);
  for (;;) {
    std::vector<UniqueFd> fds;
    const Message message = TRY(hear(kForWork, fds));
    if (message.word == Word::kAll) return all;
    // With none it could go on for ever.
    if (message.word != Word::kSome || fds.empty() || fds.size() != message.count)
      return Failure{"the running virtiofsd says something else than it should"};
    for (std::size_t i = 0; i < fds.size(); ++i)
      all.insert_or_assign(message.numbers.at(i), std::move(fds[i]));
    (void)say(socket_, Word::kGoOn);
  }
}

Result<void, Failure> Predecessor::finish() {
  std::vector<UniqueFd> fds;
  (void)say(socket_, Word::kTaken);
  const Message message = TRY(hear(kForWork, fds));
  if (message.word != Word::kYours)
    return Failure{"the running virtiofsd says something else than it should"};
  return {};
}

Result<> Predecessor::see_off() const {
  constexpr seconds kToEnd{1};
  const auto gone = sys::wait_until(process_, POLLIN, Clock::now() + kToEnd);
  if (gone || gone.error() != Errno{ETIMEDOUT}) return gone ? Result<>{} : gone.error();
  ::syscall(SYS_pidfd_send_signal, process_.number(), SIGKILL, nullptr, 0);
  return sys::wait_until(process_, POLLIN, Clock::now() + kToEnd);
}

}  // namespace virtiofsd::handover
