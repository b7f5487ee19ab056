// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "testing/daemon_process.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "testing/front_end.h"

extern char** environ;

namespace virtiofsd::guest {
namespace {

std::string slurp(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string proc(pid_t pid, const char* what) {
  return "/proc/" + std::to_string(pid) + "/" + what;
}

void add_descendants(pid_t pid, std::vector<pid_t>& all) {
  all.push_back(pid);
  const std::string tasks = proc(pid, "task");
  // Children hang off the thread that made them.
  for (const std::string& task : [&] {
         std::vector<std::string> names;
         const UniqueFd probe{open(tasks.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
         if (!probe) return names;
         alignas(8) char buffer[4096];
         for (;;) {
           const long got = syscall(SYS_getdents64, probe.number(), buffer, sizeof(buffer));
           if (got <= 0) return names;
           for (long at = 0; at < got;) {
             std::uint16_t length = 0;
             std::memcpy(&length, buffer + at + 16, sizeof(length));
             const char* name = buffer + at + 19;
             if (name[0] != '.') names.emplace_back(name);
             at += length;
           }
         }
       }()) {
    std::istringstream children(slurp(tasks + "/" + task + "/children"));
    pid_t child = 0;
    while (children >> child) add_descendants(child, all);
  }
}

std::uint64_t number_after(const std::string& text, const char* key) {
  const std::size_t at = text.find(key);
  if (at == std::string::npos) return 0;
  return std::strtoull(text.c_str() + at + std::strlen(key), nullptr, 10);
}

std::uint64_t resident_of(pid_t pid) {
  const std::uint64_t proportional = number_after(slurp(proc(pid, "smaps_rollup")), "\nPss:");
  if (proportional != 0) return proportional * 1024;
  return number_after(slurp(proc(pid, "status")), "VmRSS:") * 1024;
}

unsigned threads_of(pid_t pid) {
  return static_cast<unsigned>(number_after(slurp(proc(pid, "status")), "\nThreads:"));
}

std::chrono::microseconds cpu_of(pid_t pid) {
  const std::string stat = slurp(proc(pid, "stat"));
  const std::size_t end_of_name = stat.rfind(')');
  if (end_of_name == std::string::npos) return {};
  std::istringstream fields(stat.substr(end_of_name + 2));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  std::uint64_t user = 0;
  std::uint64_t system = 0;
  fields >> user >> system;
  const std::uint64_t ticks = user + system;
  const auto per_second = static_cast<std::uint64_t>(sysconf(_SC_CLK_TCK));
  return std::chrono::microseconds(ticks * 1'000'000 / per_second);
}

std::uint64_t descriptors_of(pid_t pid) {
  const UniqueFd directory{open(proc(pid, "fd").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!directory) return 0;
  std::uint64_t count = 0;
  std::array<char, 32768> buffer;
  for (;;) {
    const long got = syscall(SYS_getdents64, directory.number(), buffer.data(), buffer.size());
    if (got <= 0) return count >= 2 ? count - 2 : 0;  // "." and ".."
    for (long at = 0; at < got; ++count) {
      std::uint16_t length = 0;
      std::memcpy(&length, buffer.data() + at + 16, sizeof(length));
      at += length;
    }
  }
}

Result<UniqueFd, Failure> listen_at(const std::string& path) {
  UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!socket) return Failure("socket", Errno::last());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), std::min(path.size() + 1, sizeof(address.sun_path)));
  if (bind(socket.number(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return Failure("bind", Errno::last());
  if (listen(socket.number(), 4) != 0) return Failure("listen", Errno::last());
  return socket;
}

}  // namespace

std::string DaemonProcess::default_binary() {
  if (const char* chosen = std::getenv("VIRTIOFSD"); chosen != nullptr && *chosen != '\0')
    return chosen;
#ifdef VIRTIOFSD_BINARY
  return VIRTIOFSD_BINARY;
#else
  return {};
#endif
}

DaemonKind DaemonProcess::kind_of(const std::string& binary) {
  if (const char* told = std::getenv("VIRTIOFSD_KIND"); told != nullptr) {
    if (std::strcmp(told, "qemu") == 0) return DaemonKind::kQemu;
    if (std::strcmp(told, "rust") == 0) return DaemonKind::kRust;
    if (std::strcmp(told, "ours") == 0) return DaemonKind::kOurs;
  }
  if (binary == "/usr/lib/qemu/virtiofsd") return DaemonKind::kQemu;
  if (binary == "/usr/libexec/virtiofsd") return DaemonKind::kRust;
  return DaemonKind::kOurs;
}

Result<std::unique_ptr<DaemonProcess>, Failure> DaemonProcess::start(DaemonOptions options) {
  if (options.binary.empty()) options.binary = default_binary();
  if (options.binary.empty() || access(options.binary.c_str(), X_OK) != 0)
    return Failure("no daemon to run: set VIRTIOFSD to a virtiofsd (" + options.binary + ")");
  std::unique_ptr<DaemonProcess> daemon{new DaemonProcess};
  daemon->kind_ = kind_of(options.binary);
  daemon->socket_path_ =
      options.socket_path.empty() ? daemon->place_.path("socket") : options.socket_path;
  TRY(daemon->launch(options));
  if (options.connect) {
    auto ready = daemon->wait_until_it_accepts(within(options.patience));
    if (!ready) return Failure(ready.error().text() + "\n" + daemon->output());
  }
  return daemon;
}

Result<void, Failure> DaemonProcess::launch(const DaemonOptions& options) {
  std::vector<std::string> words{options.binary};
  if (options.listening_fd) {
    listening_ = TRY(listen_at(socket_path_));
    words.push_back("--fd=3");
  } else {
    words.push_back("--socket-path=" + socket_path_);
  }
  if (!options.shared_directory.empty()) {
    if (kind_ == DaemonKind::kQemu) {
      words.insert(words.end(), {"-o", "source=" + options.shared_directory});
    } else {
      words.push_back("--shared-dir=" + options.shared_directory);
    }
  }
  words.insert(words.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  const std::string output_path = place_.path("output");
  const UniqueFd output{open(output_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)};
  if (!output) return Failure("open " + output_path, Errno::last());

  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) return Failure("fork", Errno::last());
  if (pid_ == 0) {
    // Only async-signal-safe calls from here on.
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(126);
    dup2(output.number(), STDOUT_FILENO);
    dup2(output.number(), STDERR_FILENO);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    if (options.listening_fd) {
      if (listening_.number() == 3) {
        fcntl(3, F_SETFD, 0);
      } else {
        dup2(listening_.number(), 3);
      }
    }
    execve(argv[0], argv.data(), environ);
    _exit(127);
  }
  setpgid(pid_, pid_);
  pidfd_ = UniqueFd{static_cast<int>(syscall(SYS_pidfd_open, pid_, 0))};
  if (!pidfd_) return Failure("pidfd_open", Errno::last());
  listening_.reset();
  return {};
}

Result<void, Failure> DaemonProcess::wait_until_it_accepts(Deadline deadline) {
  const UniqueFd watch{inotify_init1(IN_CLOEXEC | IN_NONBLOCK)};
  if (!watch) return Failure("inotify_init1", Errno::last());
  inotify_add_watch(watch.number(), place_.root().c_str(), IN_CREATE | IN_MOVED_TO | IN_ATTRIB);
  for (;;) {
    if (auto connection = connect_to(socket_path_)) {
      connection_ = std::move(connection).value();
      return {};
    }
    if (std::chrono::steady_clock::now() >= deadline)
      return Failure("the daemon does not accept connections in time");
    // bind makes the file, listen makes no event: so look again shortly, too.
    std::array<pollfd, 2> waited{{{.fd = watch.number(), .events = POLLIN, .revents = 0},
                                  {.fd = pidfd_.number(), .events = POLLIN, .revents = 0}}};
    ::poll(waited.data(), waited.size(), 2);
    if (waited[1].revents != 0) return Failure("the daemon ended instead of listening");
    std::array<char, 4096> events;
    while (read(watch.number(), events.data(), events.size()) > 0) {
    }
  }
}

Result<UniqueFd, Failure> DaemonProcess::connect() {
  return connect_to(socket_path_);
}

std::vector<pid_t> DaemonProcess::tree() const {
  std::vector<pid_t> all;
  if (running()) add_descendants(pid_, all);
  return all;
}

ProcessUsage DaemonProcess::usage() const {
  ProcessUsage sum;
  std::vector<pid_t> tables;
  for (const pid_t pid : tree()) {
    ++sum.processes;
    sum.threads += threads_of(pid);
    sum.resident_bytes += resident_of(pid);
    sum.cpu += cpu_of(pid);
    const bool shared = std::any_of(tables.begin(), tables.end(), [&](pid_t other) {
      return syscall(SYS_kcmp, pid, other, KCMP_FILES, 0, 0) == 0;
    });
    if (shared) continue;
    tables.push_back(pid);
    sum.descriptors += descriptors_of(pid);
  }
  return sum;
}

void DaemonProcess::signal(int number) const {
  if (running()) ::kill(pid_, number);
}

bool DaemonProcess::running() const {
  if (pid_ <= 0 || status_) return false;
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

std::optional<int> DaemonProcess::wait(Deadline deadline) {
  if (status_ || pid_ <= 0) return status_;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - std::chrono::steady_clock::now());
  pollfd waited{.fd = pidfd_.number(), .events = POLLIN, .revents = 0};
  if (::poll(&waited, 1, static_cast<int>(std::max<long>(0, left.count()))) <= 0)
    return std::nullopt;
  int status = 0;
  if (waitpid(pid_, &status, 0) == pid_) status_ = status;
  return status_;
}

void DaemonProcess::kill() {
  if (pid_ <= 0) return;
  if (status_) {
    ::kill(-pid_, SIGKILL);  // what the daemon may have left behind
    return;
  }
  // Children in a pid namespace end with its first process, others with the group; what left
  // both is named by its pid. SIGKILL: a test's daemon has nothing to say any more.
  for (const pid_t pid : tree()) ::kill(pid, SIGKILL);
  ::kill(-pid_, SIGKILL);
  int status = 0;
  if (waitpid(pid_, &status, 0) == pid_) status_ = status;
}

DaemonProcess::~DaemonProcess() {
  kill();
}

std::string DaemonProcess::output() const {
  return slurp(place_.path("output"));
}

}  // namespace virtiofsd::guest
