// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "tests/rows/vm.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace virtiofsd::guest {
namespace {

template <typename T>
T must(Result<T, Failure> result, const char* what) {
  if (result) return std::move(result).value();
  std::fprintf(stderr, "%s: %s\n", what, result.error().text().c_str());
  std::abort();
}

void must(const Result<void, Failure>& result, const char* what) {
  if (result) return;
  std::fprintf(stderr, "%s: %s\n", what, result.error().text().c_str());
  std::abort();
}

std::string first_line(const std::filesystem::path& file) {
  std::string line;
  std::ifstream stream(file);
  std::getline(stream, line);
  return line;
}

}  // namespace

Vm::Vm(const std::string& share, std::vector<std::string> arguments, VmOptions options) {
  DaemonOptions start;
  if (options.gives_directory) start.shared_directory = share;
  start.arguments = std::move(arguments);
  daemon_ = must(DaemonProcess::start(std::move(start)), "start of the daemon");
  FrontEndOptions vmm;
  vmm.ring = {.size = options.ring_size, .indirect = options.indirect};
  front_end_ = must(FrontEnd::adopt(daemon_->take_connection(), vmm), "front-end");
  must(front_end_->set_up(), "set-up");
  const FuseQueueOptions queue{.slots = options.slots, .data_bytes = 1U << 16};
  requests_ = std::make_unique<FuseQueue>(*front_end_, 1, queue);
  urgent_ =
      std::make_unique<FuseQueue>(*front_end_, 0, FuseQueueOptions{.slots = 4, .data_bytes = 0});
  client_ = std::make_unique<FuseClient>(*requests_, *urgent_);
  if (const auto session = client_->init(options.init_flags); !session) {
    std::fprintf(stderr, "INIT: %s\n%s", session.error().text().c_str(), daemon_->output().c_str());
    std::abort();
  }
}

Vm::~Vm() {
  for (const std::string& violation : client_->violations()) ADD_FAILURE() << violation;
  front_end_->close();
  const auto status = daemon_->wait(within(std::chrono::seconds(10)));
  if (!status) {
    ADD_FAILURE() << "the daemon stays when its client has left";
  } else {
    EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0) << "wait status " << *status;
  }
  daemon_->kill();
  if (::testing::Test::HasFailure())
    std::fprintf(stderr, "daemon said:\n%s\n", daemon_->output().c_str());
}

std::uint64_t Vm::node(std::string_view path) const {
  const auto entry = client_->walk(path);
  EXPECT_TRUE(entry) << "LOOKUP of " << path << ": " << entry.error().text();
  return entry ? entry->nodeid : 0;
}

unsigned Vm::threads() const {
  unsigned count = 0;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(worker()) + "/task")) {
    if (first_line(task.path() / "comm") == "queue-1") ++count;
  }
  return count;
}

std::vector<int> Vm::flags_of_open_files(const std::string& path) const {
  struct stat wanted {};
  EXPECT_EQ(::stat(path.c_str(), &wanted), 0);
  std::vector<int> flags;
  const std::filesystem::path process = "/proc/" + std::to_string(worker());
  for (const auto& fd : std::filesystem::directory_iterator(process / "fd")) {
    struct stat st {};
    if (::stat(fd.path().c_str(), &st) != 0) continue;
    if (st.st_dev != wanted.st_dev || st.st_ino != wanted.st_ino) continue;
    std::ifstream info(process / "fdinfo" / fd.path().filename());
    for (std::string line; std::getline(info, line);) {
      if (line.starts_with("flags:")) flags.push_back(std::stoi(line.substr(6), nullptr, 8));
    }
  }
  return flags;
}

void Row::SetUp() {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  if (DaemonProcess::kind_of(DaemonProcess::default_binary()) != DaemonKind::kOurs)
    GTEST_SKIP() << "tells what this daemon promises";
}

}  // namespace virtiofsd::guest
