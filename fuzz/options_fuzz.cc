// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The command line, one word a line. Whatever it says, there is either a
// sentence for the operator or a set of options every part of which is in range.
#include <cmath>

#include "cli/options.h"
#include "fuzz/input.h"

namespace virtiofsd::fuzz {
namespace {

void check(const cli::Options& options) {
  CHECK(!options.sandbox.shared_dir.empty());
  CHECK(options.socket.path.empty() || !options.socket.fd);
  CHECK(!options.socket.path.empty() || options.socket.fd);
  CHECK(!options.socket.fd || *options.socket.fd >= 0);
  CHECK(options.tag.size() <= 36);
  CHECK(options.num_request_queues >= 1 && options.num_request_queues <= 64);
  CHECK(options.thread_pool_size <= 1024 && options.poll_us <= 10000);
  for (const double seconds :
       {options.attribute_timeout, options.entry_timeout, options.negative_timeout}) {
    CHECK(std::isfinite(seconds) && seconds >= 0 && seconds <= 4e9);
  }
  CHECK(options.xattr || options.xattr_map.empty());
  CHECK(options.xattr ||
        (options.posix_acl == fuse::Wish::kOff && options.security_label == fuse::Wish::kOff));
  for (const std::uint64_t limit : {std::uint64_t{0}, std::uint64_t{1024}, ~std::uint64_t{0}}) {
    const cli::DescriptorShares shares = cli::divide_descriptors(options, limit);
    CHECK(std::uint64_t{shares.inodes} + shares.handles + shares.lock_owners <= limit);
  }
}

void run(std::string_view text) {
  std::size_t items = 0;
  for (const std::string& item : cli::split_list(text)) items += item.size() + 1;
  CHECK(items >= 1 && items <= text.size() + 1);

  std::vector<std::string> words{"virtiofsd"};
  while (!text.empty() && words.size() < 40) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    words.emplace_back(text.substr(0, std::min(end, text.find('\0'))));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  const auto options = cli::parse(static_cast<int>(argv.size()), argv.data());
  if (options) return check(*options);
  CHECK(!options.error().text.empty());
  CHECK(options.error().exit_status == 0 || options.error().exit_status == 2);
}

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  virtiofsd::fuzz::set_log(false);
  if (size > 4096) return 0;
  virtiofsd::fuzz::run(virtiofsd::fuzz::Input(data, size).text(size));
  return 0;
}
