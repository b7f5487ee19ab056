// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Whole sessions against a real Passthrough on a directory of their own. The
// input is a program of 16-byte instructions: FUSE requests that are nearly
// right (nodes and handles that were given, were given back, or never were)
// and now and then something wrong with the request, or something another
// process of the host does to the share meanwhile.
//
// Beside the share lies a marker that no request may read, change or even
// stat; links in the share point at it. Afterwards a DESTROY leaves no node,
// no handle and no descriptor.
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "fuse/dispatcher.h"
#include "fuzz/input.h"
#include "fuzz/share.h"
#include "passthrough/passthrough.h"
#include "sys/files.h"
#include "sys/process.h"

namespace virtiofsd::fuzz {
namespace {

struct Instruction {
  std::uint8_t what;
  std::uint8_t node;
  std::uint8_t handle;
  std::uint8_t name;
  std::uint8_t second_node;
  std::uint8_t second_name;
  std::uint8_t wrong;
  std::uint8_t caller;
  std::uint32_t a;
  std::uint32_t b;
};
static_assert(sizeof(Instruction) == 16);

constexpr std::byte kUntouched{0xee};
constexpr int kMostSteps = 64;

// Each an instruction's `what`; seeds name them by their place in this list.
constexpr std::array<std::uint32_t, 48> kOpcodes = {FUSE_INIT,         FUSE_LOOKUP,
                                                    FUSE_FORGET,       FUSE_GETATTR,
                                                    FUSE_SETATTR,      FUSE_READLINK,
                                                    FUSE_SYMLINK,      FUSE_MKNOD,
                                                    FUSE_MKDIR,        FUSE_UNLINK,
                                                    FUSE_RMDIR,        FUSE_RENAME,
                                                    FUSE_LINK,         FUSE_OPEN,
                                                    FUSE_READ,         FUSE_WRITE,
                                                    FUSE_STATFS,       FUSE_RELEASE,
                                                    FUSE_FSYNC,        FUSE_SETXATTR,
                                                    FUSE_GETXATTR,     FUSE_LISTXATTR,
                                                    FUSE_REMOVEXATTR,  FUSE_FLUSH,
                                                    FUSE_OPENDIR,      FUSE_READDIR,
                                                    FUSE_RELEASEDIR,   FUSE_FSYNCDIR,
                                                    FUSE_GETLK,        FUSE_SETLK,
                                                    FUSE_SETLKW,       FUSE_ACCESS,
                                                    FUSE_CREATE,       FUSE_INTERRUPT,
                                                    FUSE_DESTROY,      FUSE_IOCTL,
                                                    FUSE_BATCH_FORGET, FUSE_FALLOCATE,
                                                    FUSE_READDIRPLUS,  FUSE_RENAME2,
                                                    FUSE_LSEEK,        FUSE_COPY_FILE_RANGE,
                                                    FUSE_SYNCFS,       FUSE_TMPFILE,
                                                    FUSE_STATX,        FUSE_COPY_FILE_RANGE_64,
                                                    FUSE_POLL,         FUSE_SETUPMAPPING};
// And behind them what somebody else does to the share.
constexpr std::size_t kHostActions = 8;
constexpr std::size_t kActions = kOpcodes.size() + kHostActions;

const std::array<std::string, 24> kNames = {"a",
                                            "b",
                                            "c",
                                            "d",
                                            "file",
                                            "dir",
                                            "way-out",
                                            "way-out-abs",
                                            "fifo",
                                            "device",
                                            "socket",
                                            "marker",
                                            "outside",
                                            ".",
                                            "..",
                                            "",
                                            "a/b",
                                            "../outside/marker",
                                            "/",
                                            "...",
                                            std::string(255, 'n'),
                                            std::string(256, 'n'),
                                            std::string(4095, 'l'),
                                            "\xff\xfe"};

constexpr std::array<const char*, 8> kXattrNames = {"user.a",
                                                    "user.b",
                                                    "trusted.c",
                                                    "security.capability",
                                                    "security.selinux",
                                                    "system.posix_acl_access",
                                                    "",
                                                    "bad"};

class Tree : public Share {
 public:
  // Another process changes the share. Any of these may fail.
  void act(const Instruction& in, std::size_t action) {
    const std::string name = "share/" + kNames[in.name % 6];
    const std::string other = "share/" + kNames[in.second_name % 6];
    std::error_code ignored;
    switch (action) {
      case 0:  // a symlink where something else was
        std::filesystem::remove_all(path(name), ignored);
        return link(name, in.a % 2 == 0 ? "../outside" : path("outside/marker"));
      case 1:  // a directory leaves the share
        std::filesystem::rename(path(name), path("outside/moved" + std::to_string(in.a % 4)),
                                ignored);
        return;
      case 2:  // and comes back
        std::filesystem::rename(path("outside/moved" + std::to_string(in.a % 4)), path(name),
                                ignored);
        return;
      case 3:
        std::filesystem::rename(path(name), path(other), ignored);
        return;
      case 4:
        std::filesystem::remove_all(path(name), ignored);
        return;
      case 5: {
        // Not through a link that stands there by now.
        const UniqueFd file{
            ::open(path("share/file").c_str(), O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)};
        if (file) (void)!::ftruncate(file.number(), in.a % 8192);
        return;
      }
      case 6:
        std::filesystem::remove_all(path(name), ignored);
        if (in.a % 2 == 0) {
          static_cast<void>(::mkdir(path(name).c_str(), 0777));
        } else {
          static_cast<void>(::mkfifo(path(name).c_str(), 0666));
        }
        return;
      default:
        static_cast<void>(::chmod(path("share").c_str(), in.a & 0777));
    }
  }
};

class Session {
 public:
  Session(Tree& tree, Input& in) : tree_(tree) {
    const auto options = in.take<Instruction>();
    fuse::Dispatcher::Settings dispatching;
    dispatching.read_only = (options.what & 1) != 0;
    dispatching.offer.flock = true;
    dispatching.offer.writeback = (options.what & 2) != 0;
    dispatching.offer.posix_acl = (options.what & 4) != 0 ? fuse::Wish::kOn : fuse::Wish::kOff;
    dispatching.offer.security_label = fuse::Wish::kOn;
    dispatching.offer.submounts = true;

    Passthrough::Settings settings;
    settings.cache = static_cast<CacheMode>(options.node % 4);
    settings.negative_timeout = (options.what & 8) != 0 ? 1.0 : 0.0;
    settings.xattr = (options.what & 16) == 0;
    if ((options.what & 32) != 0) {
      settings.xattr_map = std::move(XattrMap::parse(":map::user.guest.:")).value();
    }
    settings.read_only = dispatching.read_only;
    settings.announce_submounts = true;
    settings.remote_flock = true;
    settings.allow_direct_io = (options.what & 64) != 0;
    settings.preserve_noatime = (options.what & 128) != 0;
    settings.can_switch_user = may_switch_user();
    settings.inodes.descriptor_budget = options.handle % 2 == 0 ? 16 : 1024;
    settings.inodes.max_inodes = options.handle % 4 < 2 ? 64 : 4096;
    settings.inodes.use_file_handles = options.handle % 8 >= 4;
    settings.max_handles = 32;
    most_handles_ = settings.max_handles;
    file_system_ =
        Passthrough::create(
            UniqueFd{::open(tree.path("share").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)},
            std::move(settings))
            .value();
    dispatcher_ = std::make_unique<fuse::Dispatcher>(*file_system_, dispatching);
    if (options.name % 8 != 7) ask(FUSE_INIT, Instruction{});
  }

  // On the thread it is called on, which becomes a serving thread for good.
  void run(Input& in) {
    file_system_->thread_started();
    for (int steps = 0; steps < kMostSteps && !in.empty(); ++steps) {
      const auto instruction = in.take<Instruction>();
      const std::size_t action = instruction.what % kActions;
      if (action < kOpcodes.size()) {
        ask(kOpcodes[action], instruction);
      } else {
        tree_.act(instruction, action - kOpcodes.size());
      }
      CHECK(file_system_->handles().count() <= most_handles_);
    }
    dispatcher_->reset();
    CHECK(file_system_->handles().count() == 0);
    CHECK(file_system_->inodes().count() == 1);
    CHECK(file_system_->inodes().descriptors() <= 1);
    tree_.check_marker();
  }

  // Needs CAP_SETUID and CAP_SETGID; an ordinary user's test does without.
  static bool may_switch_user() {
    const auto now = sys::capabilities();
    constexpr std::uint64_t kNeeded = 1ULL << CAP_SETUID | 1ULL << CAP_SETGID;
    return now && (now->effective & kNeeded) == kNeeded;
  }

 private:
  struct Open {
    std::uint64_t node;
    std::uint64_t handle;
  };

  std::uint64_t node(std::uint8_t which, const Instruction& in) const {
    switch (which) {
      case 0xff:
        return 0;
      case 0xfe:
        return ~std::uint64_t{0};
      case 0xfd:
        return std::uint64_t{in.b} << 32 | in.a;
      case 0xfc:
        return opened_.empty() ? 2 : opened_.back().handle;
      case 0xfb:
        return nodes_.back() ^ (std::uint64_t{1} << 32);
      default:
        return nodes_[which % nodes_.size()];
    }
  }
  Open handle(const Instruction& in) const {
    if (in.handle >= 0xf0 || opened_.empty())
      return {node(in.node, in), in.handle % 2 == 0 ? nodes_.back() : std::uint64_t{in.a}};
    return opened_[in.handle % opened_.size()];
  }
  // Small where that is interesting, at an edge where it was asked for.
  static std::uint64_t offset(std::uint32_t number) {
    return (number & 0x80000000U) != 0 ? kEdges[number % kEdges.size()] : number % 20000;
  }

  // A fuse_dirent without its name.
  struct NameHead {
    std::uint64_t ino;
    std::uint64_t next;
    std::uint32_t namelen;
    std::uint32_t type;
  };

  class Bytes {
   public:
    template <Plain T>
    Bytes& add(const T& value) {
      const auto raw = std::as_bytes(std::span{&value, 1});
      bytes.insert(bytes.end(), raw.begin(), raw.end());
      return *this;
    }
    Bytes& text(std::string_view text) {
      const auto raw = std::as_bytes(std::span{text});
      bytes.insert(bytes.end(), raw.begin(), raw.end());
      bytes.push_back(std::byte{0});
      return *this;
    }
    Bytes& fill(std::size_t size) {
      bytes.resize(bytes.size() + size, std::byte{'x'});
      return *this;
    }
    std::vector<std::byte> bytes;
  };

  // The arguments of a request; `about` becomes the header's node.
  Bytes arguments(std::uint32_t opcode, const Instruction& in, std::uint64_t& about) const {
    const std::string_view name = kNames[in.name % kNames.size()];
    const std::string_view second = kNames[in.second_name % kNames.size()];
    const Open open = handle(in);
    Bytes out;
    about = node(in.node, in);
    switch (opcode) {
      case FUSE_INIT: {
        fuse_init_in init{};
        init.major = fuse::kMajor;
        init.minor = fuse::kMinor;
        init.flags = ~(in.a & 0x7fffffff);
        init.flags2 = ~in.b;
        return out.add(init);
      }
      case FUSE_LOOKUP:
      case FUSE_UNLINK:
      case FUSE_RMDIR:
        return out.text(name);
      case FUSE_REMOVEXATTR:
        return out.text(kXattrNames[in.name % kXattrNames.size()]);
      case FUSE_FORGET:
        return out.add(fuse_forget_in{.nlookup = offset(in.a)});
      case FUSE_BATCH_FORGET:
        out.add(fuse_batch_forget_in{.count = in.b % 8, .dummy = 0});
        for (std::uint32_t i = 0; i < in.a % 4; ++i) {
          out.add(fuse_forget_one{.nodeid = node(static_cast<std::uint8_t>(in.second_node + i), in),
                                  .nlookup = 1});
        }
        return out;
      case FUSE_GETATTR: {
        fuse_getattr_in get{};
        get.getattr_flags = in.a % 2;
        get.fh = open.handle;
        return out.add(get);
      }
      case FUSE_STATX: {
        fuse_statx_in get{};
        get.getattr_flags = in.a % 2;
        get.fh = open.handle;
        get.sx_mask = in.b;
        return out.add(get);
      }
      case FUSE_SETATTR: {
        fuse_setattr_in set{};
        set.valid = in.b & 0x7ff;
        set.fh = open.handle;
        set.size = offset(in.a);
        set.mode = in.a >> 8 & 07777;
        set.uid = in.caller;
        set.gid = in.caller;
        set.atime = in.a;
        return out.add(set);
      }
      case FUSE_SYMLINK:
        return out.text(name).text(second);
      case FUSE_MKNOD: {
        constexpr std::array<std::uint32_t, 6> kTypes = {S_IFREG, S_IFIFO, S_IFSOCK,
                                                         S_IFCHR, S_IFBLK, S_IFDIR};
        fuse_mknod_in make{};
        make.mode = kTypes[in.b % kTypes.size()] | (in.a & 07777);
        make.rdev = in.a >> 16;
        make.umask = 022;
        return out.add(make).text(name);
      }
      case FUSE_MKDIR:
        return out.add(fuse_mkdir_in{.mode = in.a & 07777, .umask = in.b & 0777}).text(name);
      case FUSE_RENAME:
        return out.add(fuse_rename_in{.newdir = node(in.second_node, in)}).text(name).text(second);
      case FUSE_RENAME2: {
        fuse_rename2_in rename{};
        rename.newdir = node(in.second_node, in);
        rename.flags = in.a & 7;
        return out.add(rename).text(name).text(second);
      }
      case FUSE_LINK:
        return out.add(fuse_link_in{.oldnodeid = node(in.second_node, in)}).text(name);
      case FUSE_OPEN:
      case FUSE_OPENDIR:
        return out.add(fuse_open_in{.flags = in.a, .open_flags = in.b & 1});
      case FUSE_CREATE:
      case FUSE_TMPFILE: {
        fuse_create_in create{};
        create.flags = in.a | O_CREAT;
        create.mode = S_IFREG | (in.b & 07777);
        create.umask = in.b >> 12 & 0777;
        create.open_flags = in.b >> 31;
        return out.add(create).text(name);
      }
      case FUSE_READ:
      case FUSE_READDIR:
      case FUSE_READDIRPLUS: {
        about = open.node;
        fuse_read_in read{};
        read.fh = open.handle;
        read.offset = offset(in.a);
        read.size = static_cast<std::uint32_t>(offset(in.b));
        read.flags = in.second_name;
        return out.add(read);
      }
      case FUSE_WRITE: {
        about = open.node;
        fuse_write_in write{};
        write.fh = open.handle;
        write.offset = offset(in.a);
        write.size = in.b % 9000;
        write.write_flags = in.second_name & 7;
        write.flags = (in.second_name & 8) != 0 ? O_APPEND : 0;
        return out.add(write).fill(write.size);
      }
      case FUSE_RELEASE:
      case FUSE_RELEASEDIR: {
        about = open.node;
        fuse_release_in release{};
        release.fh = open.handle;
        release.release_flags = in.a & 3;
        release.lock_owner = in.caller;
        return out.add(release);
      }
      case FUSE_FLUSH: {
        about = open.node;
        fuse_flush_in flush{};
        flush.fh = open.handle;
        flush.lock_owner = in.caller;
        return out.add(flush);
      }
      case FUSE_FSYNC:
      case FUSE_FSYNCDIR: {
        about = open.node;
        fuse_fsync_in sync{};
        sync.fh = open.handle;
        sync.fsync_flags = in.a & 1;
        return out.add(sync);
      }
      case FUSE_SETXATTR: {
        fuse_setxattr_in set{};
        set.size = in.a % 300;
        set.flags = in.b & 3;
        set.setxattr_flags = in.b >> 2 & 1;
        return out.add(set).text(kXattrNames[in.name % kXattrNames.size()]).fill(set.size);
      }
      case FUSE_GETXATTR:
      case FUSE_LISTXATTR:
        out.add(fuse_getxattr_in{.size = static_cast<std::uint32_t>(offset(in.a)), .padding = 0});
        return opcode == FUSE_LISTXATTR ? out : out.text(kXattrNames[in.name % kXattrNames.size()]);
      case FUSE_GETLK:
      case FUSE_SETLK:
      case FUSE_SETLKW: {
        constexpr std::array<std::uint32_t, 4> kTypes = {F_RDLCK, F_WRLCK, F_UNLCK, 99};
        about = open.node;
        fuse_lk_in lock{};
        lock.fh = open.handle;
        lock.owner = in.caller;
        lock.lk.start = offset(in.a);
        lock.lk.end = offset(in.b);
        lock.lk.type = kTypes[in.name % kTypes.size()];
        lock.lk.pid = in.caller;
        lock.lk_flags = in.second_name & 1;
        return out.add(lock);
      }
      case FUSE_ACCESS:
        return out.add(fuse_access_in{.mask = in.a & 15, .padding = 0});
      case FUSE_INTERRUPT:
        return out.add(fuse_interrupt_in{.unique = in.a});
      case FUSE_IOCTL: {
        constexpr std::array<std::uint32_t, 6> kCommands = {
            FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, 0x5401, 0};
        about = open.node;
        fuse_ioctl_in ioctl{};
        ioctl.fh = open.handle;
        ioctl.flags = in.second_name & 0x1f;
        ioctl.cmd = kCommands[in.name % kCommands.size()];
        ioctl.in_size = in.a % 64;
        ioctl.out_size = in.b % 128;
        return out.add(ioctl).fill(ioctl.in_size);
      }
      case FUSE_FALLOCATE: {
        about = open.node;
        fuse_fallocate_in allocate{};
        allocate.fh = open.handle;
        allocate.offset = offset(in.a);
        allocate.length = offset(in.b);
        allocate.mode = in.name;
        return out.add(allocate);
      }
      case FUSE_LSEEK: {
        about = open.node;
        fuse_lseek_in seek{};
        seek.fh = open.handle;
        seek.offset = offset(in.a);
        seek.whence = in.name % 6;
        return out.add(seek);
      }
      case FUSE_COPY_FILE_RANGE:
      case FUSE_COPY_FILE_RANGE_64: {
        about = open.node;
        const Open to = opened_.empty() ? open : opened_[in.second_node % opened_.size()];
        fuse_copy_file_range_in copy{};
        copy.fh_in = open.handle;
        copy.off_in = offset(in.a);
        copy.nodeid_out = to.node;
        copy.fh_out = to.handle;
        copy.off_out = offset(in.b);
        copy.len = offset(in.a ^ in.b);
        return out.add(copy);
      }
      default:  // without arguments, or none that are looked at
        return out;
    }
  }

  // A group, or a security context, behind a create's arguments.
  static void extend(Bytes& out, fuse_in_header& header, const Instruction& in) {
    const std::size_t before = out.bytes.size();
    if (in.wrong % 2 == 0) {
      fuse_ext_header head{};
      head.type = FUSE_EXT_GROUPS;
      head.size = sizeof head + 8;
      out.add(head).add(std::uint32_t{1}).add(std::uint32_t{in.caller});
    } else {
      fuse_ext_header head{};
      fuse_secctx context{};
      constexpr std::string_view kLabel = "security.selinux";
      context.size = 8;
      head.type = 1;
      head.size = static_cast<std::uint32_t>(sizeof head + sizeof context + kLabel.size() + 1 + 8);
      out.add(head).add(context).text(kLabel).fill(8);
      out.bytes.resize(before + (out.bytes.size() - before + 7) / 8 * 8);
    }
    header.total_extlen = static_cast<std::uint16_t>((out.bytes.size() - before) / 8);
  }

  void ask(std::uint32_t opcode, const Instruction& in) {
    fuse_in_header header{};
    header.opcode = opcode;
    header.unique = ++unique_;
    header.uid = in.caller % 4 == 3 ? ~0U : in.caller % 4 * 1000U;
    header.gid = header.uid;
    header.pid = 1;
    Bytes body = arguments(opcode, in, header.nodeid);

    std::size_t room = 4096;
    std::size_t piece = 1U << 20;
    bool faulted = false;
    std::optional<std::uint32_t> claimed;
    switch (in.wrong) {
      case 1:
        body.bytes.resize(body.bytes.size() - std::min<std::size_t>(body.bytes.size(), in.a % 16));
        break;
      case 2:
        body.fill(in.a % 100);
        break;
      case 3:
        claimed = in.a;
        break;
      case 4:
        if (!body.bytes.empty()) body.bytes[in.b % body.bytes.size()] = std::byte(in.a);
        break;
      case 5:
        room = in.b % 300;
        break;
      case 6:
        faulted = true;
        break;
      case 7:
        header.unique = 0;
        break;
      case 8:
        piece = 1 + in.b % 9;
        break;
      case 9:
        header.nodeid = node(in.second_node, in);
        break;
      case 10:
        room = 1U << 18;
        break;
      case 11:
      case 12:
        extend(body, header, in);
        break;
      case 13:
        header.total_extlen = static_cast<std::uint16_t>(in.a);
        break;
      default:
        break;
    }
    header.len = claimed.value_or(static_cast<std::uint32_t>(sizeof header + body.bytes.size()));
    Bytes request;
    request.add(header);
    request.bytes.insert(request.bytes.end(), body.bytes.begin(), body.bytes.end());
    const std::vector<std::byte> reply = send(request.bytes, header, room, piece, faulted);
    learn(opcode, header, reply);
  }

  std::vector<std::byte> send(std::vector<std::byte> request, const fuse_in_header& header,
                              std::size_t room, std::size_t piece, bool faulted) {
    std::vector<std::byte> reply(room, kUntouched);
    const auto pieces_of = [piece](std::vector<std::byte>& bytes) {
      std::vector<iovec> pieces;
      for (std::size_t at = 0; at < bytes.size(); at += piece) {
        pieces.push_back(
            {.iov_base = bytes.data() + at, .iov_len = std::min(piece, bytes.size() - at)});
      }
      return pieces;
    };
    auto request_pieces = pieces_of(request);
    auto reply_pieces = pieces_of(reply);
    const std::uint32_t used = dispatcher_->serve(SharedBytes{request_pieces, request.size()},
                                                  SharedBytes{reply_pieces, room},
                                                  {.faulted = faulted}, scheduler_, scratch_);
    CHECK(used <= room);
    CHECK(std::all_of(reply.begin() + used, reply.end(),
                      [](std::byte b) { return b == kUntouched; }));
    const auto secret = std::as_bytes(std::span{kSecret});
    CHECK(std::ranges::search(reply, secret).empty());
    reply.resize(used);
    if (used == 0) return reply;
    const auto out = Reader{reply}.take<fuse_out_header>();
    CHECK(out && out->len == used && out->unique == header.unique && out->unique != 0);
    CHECK(out->error <= 0 && out->error > -512);
    CHECK(out->error == 0 || used == sizeof(fuse_out_header));
    return reply;
  }

  void give(const fuse_entry_out& entry) {
    CHECK(!tree_.is_outside(entry.attr.ino));
    if (entry.nodeid != 0 && nodes_.size() < 128) nodes_.push_back(entry.nodeid);
  }

  // What the reply gives for later instructions to use.
  void learn(std::uint32_t opcode, const fuse_in_header& header,
             const std::vector<std::byte>& reply) {
    Reader reader{reply};
    const auto head = reader.take<fuse_out_header>();
    if (!head || head->error != 0) return;
    switch (opcode) {
      case FUSE_LOOKUP:
      case FUSE_SYMLINK:
      case FUSE_MKNOD:
      case FUSE_MKDIR:
      case FUSE_LINK:
        if (const auto entry = reader.take<fuse_entry_out>()) give(*entry);
        break;
      case FUSE_CREATE:
      case FUSE_TMPFILE: {
        const auto entry = reader.take<fuse_entry_out>();
        const auto open = reader.take<fuse_open_out>();
        CHECK(entry && open);
        give(*entry);
        opened_.push_back({entry->nodeid, open->fh});
        break;
      }
      case FUSE_OPEN:
      case FUSE_OPENDIR:
        if (const auto open = reader.take<fuse_open_out>())
          opened_.push_back({header.nodeid, open->fh});
        break;
      case FUSE_GETATTR:
      case FUSE_SETATTR:
        if (const auto attr = reader.take<fuse_attr_out>())
          CHECK(!tree_.is_outside(attr->attr.ino));
        break;
      case FUSE_READDIRPLUS:
        while (!reader.rest().empty()) {
          const auto entry = reader.take<fuse_entry_out>();
          const auto name = reader.take<NameHead>();
          CHECK(entry && name && name->namelen <= 255);
          const std::size_t padded = (name->namelen + 7U) / 8 * 8;
          CHECK(reader.take_bytes(padded));
          if (entry->nodeid != 0) give(*entry);
        }
        break;
      default:
        break;
    }
  }

  Tree& tree_;
  std::unique_ptr<Passthrough> file_system_;
  std::unique_ptr<fuse::Dispatcher> dispatcher_;
  fuse::NullScheduler scheduler_;
  fuse::Scratch scratch_;
  std::uint64_t unique_ = 0;
  std::uint32_t most_handles_ = 0;
  std::vector<std::uint64_t> nodes_{1};
  std::vector<Open> opened_;
};

// No file may grow past this, however far a request reaches.
class FileSizeLimit {
 public:
  FileSizeLimit() {
    CHECK(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    rlimit limit = before_;
    limit.rlim_cur = 1U << 20;
    CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FileSizeLimit() { CHECK(::setrlimit(RLIMIT_FSIZE, &before_) == 0); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

void set_up_process() {
  ::signal(SIGXFSZ, SIG_IGN);
  static_cast<void>(sys::proc_self_fd().valid());  // opened now, so that it is no leak later
  // What the daemon keeps in its sandbox; without the rest a guest can make
  // nothing that this process couldn't remove again.
  constexpr std::uint64_t kKept = 1ULL << CAP_CHOWN | 1ULL << CAP_DAC_OVERRIDE |
                                  1ULL << CAP_DAC_READ_SEARCH | 1ULL << CAP_FOWNER |
                                  1ULL << CAP_FSETID | 1ULL << CAP_SETGID | 1ULL << CAP_SETUID |
                                  1ULL << CAP_MKNOD | 1ULL << CAP_SETFCAP;
  auto capabilities = sys::capabilities().value();
  capabilities.effective &= kKept;
  capabilities.permitted &= kKept;
  capabilities.inheritable = 0;
  CHECK(sys::set_capabilities(capabilities));
}

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  virtiofsd::fuzz::set_up_process();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace virtiofsd::fuzz;
  set_log(false);
  if (size > (kMostSteps + 1) * sizeof(Instruction)) return -1;
  Input in(data, size);
  const NoDescriptorLeaks no_leaks;
  Tree tree;
  Session session(tree, in);
  const FileSizeLimit limit;
  // A thread of its own: serving changes its umask and working directory for good.
  std::thread([&] { session.run(in); }).join();
  return 0;
}

#ifdef VIRTIOFSD_LIBFUZZER
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

// Changes a program as a program: instructions come, go, change places, and
// change inside.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  using virtiofsd::fuzz::Instruction;
  constexpr std::size_t kSize = sizeof(Instruction);
  std::minstd_rand random(seed);
  const auto below = [&random](std::size_t bound) { return random() % bound; };
  const std::size_t room = std::min<std::size_t>(most, 65 * kSize) / kSize;
  std::vector<Instruction> program(size / kSize);
  std::memcpy(program.data(), data, program.size() * kSize);
  if (program.empty()) program.resize(1);
  if (room == 0) return LLVMFuzzerMutate(data, size, most);
  const std::size_t at = below(program.size());

  switch (below(8)) {
    case 0:
    case 1:
    case 2: {
      Instruction fresh{};
      fresh.what = static_cast<std::uint8_t>(below(virtiofsd::fuzz::kActions));
      fresh.node = static_cast<std::uint8_t>(below(20) == 0 ? random() : below(6));
      fresh.handle = static_cast<std::uint8_t>(below(20) == 0 ? random() : below(4));
      fresh.name = static_cast<std::uint8_t>(below(24));
      fresh.second_node = static_cast<std::uint8_t>(below(6));
      fresh.second_name = static_cast<std::uint8_t>(below(24));
      fresh.wrong = static_cast<std::uint8_t>(below(4) == 0 ? below(14) : 0);
      fresh.caller = static_cast<std::uint8_t>(below(4));
      fresh.a = below(3) == 0 ? static_cast<std::uint32_t>(random() * 2)
                              : static_cast<std::uint32_t>(below(4));
      fresh.b = below(3) == 0 ? static_cast<std::uint32_t>(random() * 2)
                              : static_cast<std::uint32_t>(below(4096));
      program.insert(program.begin() + static_cast<std::ptrdiff_t>(at + 1), fresh);
      break;
    }
    case 3:
      if (program.size() > 1) program.erase(program.begin() + static_cast<std::ptrdiff_t>(at));
      break;
    case 4:
      program.push_back(program[at]);
      break;
    case 5:
      if (at != 0) std::swap(program[at], program[1 + below(program.size() - 1)]);
      break;
    default: {
      std::array<std::uint8_t, kSize> bytes;
      std::memcpy(bytes.data(), &program[at], kSize);
      LLVMFuzzerMutate(bytes.data(), kSize, kSize);
      std::memcpy(&program[at], bytes.data(), kSize);
    }
  }
  program.resize(std::min(program.size(), room));
  std::memcpy(data, program.data(), program.size() * kSize);
  return program.size() * kSize;
}

// The beginning of one program and the end of the other.
extern "C" std::size_t LLVMFuzzerCustomCrossOver(const std::uint8_t* one, std::size_t one_size,
                                                 const std::uint8_t* other, std::size_t other_size,
                                                 std::uint8_t* out, std::size_t most,
                                                 unsigned seed) {
  constexpr std::size_t kSize = sizeof(virtiofsd::fuzz::Instruction);
  std::minstd_rand random(seed);
  const std::size_t head = std::min(random() % (one_size / kSize + 1), most / kSize) * kSize;
  const std::size_t skipped = random() % (other_size / kSize + 1) * kSize;
  const std::size_t tail =
      std::min(other_size / kSize * kSize - skipped, (most - head) / kSize * kSize);
  std::copy_n(one, head, out);
  std::copy_n(other + skipped, tail, out + head);
  return head + tail;
}
#endif
