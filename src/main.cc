// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Start-up as a story: read the command line, check everything that can be
// checked, become three processes, give up what isn't needed, open the socket,
// and serve one VMM until it leaves.
#include <fmt/format.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "cli/options.h"
#include "daemon/device.h"
#include "daemon/device_estate.h"
#include "daemon/device_journal.h"
#include "daemon/listener.h"
#include "daemon/process_tree.h"
#include "fuse/dispatcher.h"
#include "memory/sigbus.h"
#include "passthrough/passthrough.h"
#include "sandbox/sandbox.h"
#include "state/arena.h"
#include "state/plan.h"
#include "sys/events.h"
#include "sys/sockets.h"
#include "vhost_user/session.h"

namespace virtiofsd {
namespace {

// About 100 bytes each and a name: what a guest can make us remember is bounded.
constexpr std::uint32_t kMostInodes = 1U << 24;
// Threads that may wait for locks, on the whole device.
constexpr std::uint32_t kLockWaiters = 64;

fuse::Offer offer(const cli::Options& options) {
  fuse::Offer offer;
  offer.posix_locks = options.posix_lock;
  offer.flock = options.flock;
  offer.readdirplus = options.readdirplus;
  offer.writeback = options.writeback;
  offer.symlink_cache = options.cache != CacheMode::kNone;
  offer.automatic_invalidation = options.cache != CacheMode::kAlways;
  offer.direct_io_mmap = options.allow_mmap;
  offer.killpriv_v2 = options.killpriv_v2;
  offer.posix_acl = options.posix_acl;
  offer.security_label = options.security_label;
  offer.submounts = options.announce_submounts;
  return offer;
}

Passthrough::Settings passthrough_settings(const cli::Options& options, const WorkerStart& start,
                                           std::uint64_t descriptor_limit,
                                           const std::shared_ptr<Arena>& arena) {
  const sandbox::Entered& sandbox = start.sandbox;
  Passthrough::Settings settings;
  settings.cache = options.cache;
  settings.attribute_timeout = options.attribute_timeout;
  settings.entry_timeout = options.entry_timeout;
  settings.negative_timeout = options.negative_timeout;
  settings.xattr = options.xattr;
  if (!options.xattr_map.empty()) {
    settings.xattr_map = std::move(XattrMap::parse(options.xattr_map)).value();
  }
  settings.uid_map = options.uid_translation;
  settings.gid_map = options.gid_translation;
  settings.allow_direct_io = options.allow_direct_io;
  settings.announce_submounts = options.announce_submounts;
  settings.preserve_noatime = options.preserve_noatime;
  settings.read_only = options.sandbox.read_only;
  settings.remote_posix_locks = options.posix_lock;
  settings.remote_flock = options.flock;
  settings.migration = options.migration;
  settings.no_race = options.no_race;
  settings.can_switch_user = sandbox.can_switch_user;
  settings.max_lock_waiters = kLockWaiters;
  const cli::DescriptorShares shares = cli::divide_descriptors(options, descriptor_limit);
  settings.max_handles = shares.handles;
  settings.max_lock_owners = shares.lock_owners;
  settings.inodes.descriptor_budget = shares.inodes;
  settings.inodes.max_inodes = kMostInodes;
  settings.inodes.use_file_handles = sandbox.can_use_handles;
  settings.inodes.arena = arena;
  settings.inodes.take_over =
      start.after == WorkerStart::After::kWorker || start.after == WorkerStart::After::kTree;
  return settings;
}

// The conversation with the VMM, in a first worker or in one that goes on with another's work.
Result<vhost_user::Session, Failure> connect(WorkerStart& start, Listener& listener, Device& device,
                                             SessionRecord& record) {
  using After = WorkerStart::After;
  if (record.listening >= 0) listener.keep_listening_on(FdRef{record.listening});
  if (start.after == After::kNobody || start.after == After::kClient) {
    if (start.after == After::kNobody) TRY(start.ready());
    UniqueFd socket = TRY(listener.accept());
    log::info("client connected");
    record.socket = socket.number();
    record.listening = listener.descriptor();
    record.conversation = SessionRecord::kBetweenMessages;
    return vhost_user::Session{std::move(socket), device};
  }
  TRY(device.prepare_to_take_over());
  if (start.after == After::kTree) {
    TRY(start.ready());
    record.conversation = SessionRecord::kBetweenMessages;
  }
  const auto taken = TRY(device.take_over(start.blames));
  log::info("taken over: {} queues run again; requests that are served again: {}", taken.queues,
            taken.requests);
  return vhost_user::Session{UniqueFd{record.socket},
                             device,
                             {.features = record.agreed_features,
                              .protocol_features = record.agreed_protocol_features,
                              .acknowledges = record.acknowledges != 0}};
}

// Until the VMM leaves: true; or until another process is to go on: false. The record says at any
// time whether one could.
bool converse(vhost_user::Session& session, SessionRecord& record, FdRef pause) {
  for (;;) {
    const bool is_between = !session.in_mid_message();
    const auto awaited = sys::wait_for_either(session.fd(), is_between ? pause : FdRef{});
    if (is_between && awaited && *awaited == sys::Either::kSecond) return false;
    record.conversation = SessionRecord::kInMessage;
    const Result<bool> served = session.serve_one();
    if (!served || !*served) break;
    if (session.in_mid_message()) continue;
    record.agreed_features = session.agreement().features;
    record.agreed_protocol_features = session.agreement().protocol_features;
    record.acknowledges = session.agreement().acknowledges ? 1 : 0;
    record.conversation = SessionRecord::kBetweenMessages;
  }
  record.conversation = SessionRecord::kNone;
  return true;
}

// What a program that goes on for another one must agree with, but for the program.
std::string what_must_agree(const cli::Options& options) {
  struct stat shared {};
  // Whether it is there has been looked at.
  (void)::stat(options.sandbox.shared_dir.c_str(), &shared);
  constexpr std::array<const char*, 3> kModes = {"namespace", "chroot", "none"};
  std::error_code no_directory;  // to be relative to: then the path is as good
  const std::string path = options.socket.path.empty()
                               ? ""
                               : std::filesystem::absolute(options.socket.path, no_directory);
  return fmt::format("shared directory=device {}, inode {}\nsocket-path={}\nsandbox={}\n",
                     shared.st_dev, shared.st_ino, path,
                     kModes[static_cast<std::size_t>(options.sandbox.mode)]) +
         cli::what_is_told(options);
}

// The worker: everything guest-facing. Returns the process's exit status.
Result<int, Failure> serve(const cli::Options& options, std::uint64_t descriptor_limit,
                           const std::shared_ptr<Arena>& arena, Listener& listener,
                           WorkerStart& start) {
  if (const Result<> installed = sigbus::install(); !installed) {
    return Failure{"can't handle SIGBUS", installed.error()};
  }
  log::info("{}", start.sandbox.summary);
  Passthrough::Settings settings = passthrough_settings(options, start, descriptor_limit, arena);
  std::unique_ptr<Passthrough> file_system =
      TRY(Passthrough::create(std::move(start.sandbox.root), std::move(settings)));
  SessionRecord& record = session_record(*arena);

  fuse::Dispatcher::Settings dispatcher_settings;
  dispatcher_settings.offer = offer(options);
  dispatcher_settings.read_only = options.sandbox.read_only;
  dispatcher_settings.root_only = options.allow_root;
  dispatcher_settings.own_uid = ::geteuid();
  dispatcher_settings.session = &record.fuse;
  fuse::Dispatcher dispatcher(*file_system, dispatcher_settings);

  Device::Settings device_settings;
  if (!options.tag.empty()) device_settings.tag = options.tag;
  device_settings.num_request_queues = options.num_request_queues;
  device_settings.pool_size = options.thread_pool_size;
  device_settings.lock_waiters = kLockWaiters;
  device_settings.in_order = options.in_order;
  device_settings.poll = std::chrono::microseconds(options.poll_us);
  const auto filter = TRY(sandbox::RequestFilter::make(options.sandbox.seccomp));
  device_settings.prepare_thread = [&filter] {
    const auto restricted = filter.apply();
    if (restricted) return;
    // A thread without its filter must not meet a guest.
    log::error("{}", restricted.error().text());
    std::abort();
  };
  device_settings.arena = arena;
  Device device(*file_system, dispatcher, device_settings);

  vhost_user::Session session = TRY(connect(start, listener, device, record));
  while (!converse(session, record, start.pause)) {
    if (device.pause()) WorkerStart::end_paused();
    (void)sys::drain_event(start.pause);  // not now
  }
  log::info("client disconnected, {}",
            options.socket.keep ? "waiting for the next one" : "shutting down");
  device.shut_down();
  return 0;
}

int run(int argc, char** argv) {
  auto options = cli::parse(argc, argv);
  if (!options) {
    const cli::UsageError& usage = options.error();
    ::fprintf(usage.exit_status == 0 ? stdout : stderr, "%s\n", usage.text.c_str());
    return usage.exit_status;
  }
  close_inherited_descriptors(options->socket.fd);
  log::configure(options->log_sink, options->log_level);

  const auto started = [&]() -> Result<int, Failure> {
    TRY(sandbox::drop_groups());
    const std::uint64_t descriptor_limit = TRY(sandbox::limit_descriptors(options->rlimit_nofile));
    sandbox::Plan plan = TRY(sandbox::Plan::make(options->sandbox));
    // Made here, so that every worker has it at once. Where files may not be as large, that is
    // said.
    ::signal(SIGXFSZ, SIG_IGN);
    constexpr auto kPlan = arena_plan(kMostInodes);
    auto arena = Arena::create(kPlan);
    if (!arena) return Failure{"can't make memory for the state", arena.error()};
    DeviceEstate estate(*arena, kPlan,
                        {.descriptors_kept_in = Passthrough::descriptors_kept_in,
                         .renumber_descriptors = Passthrough::renumber_descriptors},
                        what_must_agree(*options));
    Listener listener = TRY(
        options->take_over ? Listener::prepare_to_take_over(options->socket, *options->take_over)
                           : Listener::prepare(options->socket));
    const ProcessTreeSettings settings{.daemonize = options->daemonize,
                                       .estate = &estate,
                                       .keep_listening = options->socket.keep,
                                       .take_over = options->take_over};
    return run_process_tree(settings, std::move(plan), listener, [&](WorkerStart& start) {
      auto status = serve(*options, descriptor_limit, *arena, listener, start);
      if (status) return *status;
      log::error("{}{}", status.error().text(),
                 estate.has_client() ? "; the guest has lost its file system" : "");
      return 1;
    });
  }();
  if (started) return *started;
  log::error("{}", started.error().text());
  return 1;
}

}  // namespace
}  // namespace virtiofsd

int main(int argc, char** argv) {
  return virtiofsd::run(argc, argv);
}
