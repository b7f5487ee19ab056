// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A file system that gets stuck when told to: a FUSE mount that this process
// answers itself. While it holds, every GETATTR of one of its files waits in
// the kernel of the host, as on a network file system that is away. Needs
// root. The mount lies in the caller's mount namespace and goes with the object.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd::bench {

class SlowMount {
 public:
  // On the directory `path`. It has files of every FileName, all empty.
  static Result<std::unique_ptr<SlowMount>, Failure> make(const std::string& path);
  ~SlowMount();
  SlowMount(const SlowMount&) = delete;
  SlowMount& operator=(const SlowMount&) = delete;

  // From now on attributes of files are not answered.
  void hold();
  // Answers all that wait. Thread-safe.
  void let_go();
  std::size_t waiting() const;

 private:
  SlowMount() = default;
  void serve();
  void answer(std::uint64_t unique, int error, const void* body, std::size_t size) const;
  void answer_attributes(std::uint64_t unique, std::uint64_t node) const;

  std::string path_;
  UniqueFd device_, stop_;
  std::thread thread_;
  mutable std::mutex mutex_;
  bool holding_ = false;
  struct Held {
    std::uint64_t unique, node;
  };
  std::vector<Held> held_;
};

}  // namespace virtiofsd::bench
