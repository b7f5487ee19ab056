// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Requests of any shape at a dispatcher whose file system only writes down
// what it was asked. Each reply is one the guest's kernel can take, says its
// own length, and leaves the rest of the guest's buffer alone.
#include <optional>
#include <utility>

#include "fuse/dispatcher.h"
#include "fuse/fake_file_system.h"
#include "fuzz/input.h"

namespace virtiofsd::fuzz {
namespace {

constexpr std::byte kUntouched{0xee};

std::vector<iovec> pieces_of(std::vector<std::byte>& bytes, std::size_t piece) {
  std::vector<iovec> pieces;
  for (std::size_t at = 0; at < bytes.size(); at += piece) {
    pieces.push_back(
        {.iov_base = bytes.data() + at, .iov_len = std::min(piece, bytes.size() - at)});
  }
  return pieces;
}

class Guest {
 public:
  Guest(Input& in, std::uint8_t options)
      : in_(in), dispatcher_((options & 0x40) != 0 ? nothing_ : fs_, settings(options)) {
    fs_.names = {"one", "two", std::string(255, 'n')};
    fs_.fail_after_names = (options & 0x10) != 0;
    if ((options & 0x20) != 0) return;  // it may say INIT itself
    fuse_init_in init{};
    init.major = fuse::kMajor;
    init.minor = fuse::kMinor;
    init.flags = ~0U;
    init.flags2 = ~0U;
    fuse_in_header header{};
    header.opcode = FUSE_INIT;
    header.unique = ++unique_;
    header.len = sizeof header + sizeof init;
    send(fuse::bytes_of(header, init), 128, 1U << 16, false);
  }

  void step() {
    const std::uint8_t shape = in_.byte();
    const std::uint32_t opcode = in_.byte() % 64;
    const std::size_t room = (shape & 1) != 0 ? in_.one_of(kRooms) : 4096;
    const std::size_t piece = (shape & 2) != 0 ? in_.below(40) + 1 : 1U << 20;
    fs_.error.reset();
    if ((shape & 4) != 0) fs_.error = Errno{in_.word()};
    const bool faulted = (shape & 0x18) == 0x18;
    const bool raw = (shape & 0xe0) == 0xe0;
    // The most an ioctl may ask for, where there may be one.
    fs_.content.assign(raw || opcode == FUSE_IOCTL ? 65536 : in_.byte(), 'x');
    if (raw) {
      send(in_.bytes(in_.byte()), room, piece, faulted);
    } else {
      ask(opcode, in_.bytes(in_.byte() + ((shape & 0x20) != 0 ? in_.word() : 0U)), room, piece,
          faulted);
    }
    fs_.calls.clear();
  }

 private:
  static constexpr std::array<std::size_t, 10> kRooms = {0,  1,   15,   16,    17,
                                                         31, 144, 4096, 65552, 1114112};

  static fuse::Dispatcher::Settings settings(std::uint8_t options) {
    fuse::Dispatcher::Settings settings;
    settings.read_only = (options & 2) != 0;
    settings.root_only = (options & 4) != 0;
    settings.offer.flock = true;
    settings.offer.writeback = (options & 8) != 0;
    settings.offer.posix_acl = fuse::Wish::kOn;
    settings.offer.security_label = fuse::Wish::kOn;
    settings.offer.submounts = true;
    return settings;
  }

  // A request whose header is right, but for what the input says.
  void ask(std::uint32_t opcode, const std::vector<std::byte>& arguments, std::size_t room,
           std::size_t piece, bool faulted) {
    fuse_in_header header{};
    header.opcode = opcode;
    header.unique = ++unique_;
    header.nodeid = 1;
    header.len = static_cast<std::uint32_t>(sizeof header + arguments.size());
    const std::uint8_t wrong = in_.byte();
    if ((wrong & 0x81) == 0x81) header.len = in_.take<std::uint32_t>();
    if ((wrong & 0x82) == 0x82) header.total_extlen = in_.word();
    if ((wrong & 0x84) == 0x84) header.uid = in_.take<std::uint32_t>();
    if ((wrong & 0x88) == 0x88) header.nodeid = in_.take<std::uint64_t>();
    if ((wrong & 0x90) == 0x90) header.unique = 0;
    if ((wrong & 0xa0) == 0xa0) header.total_extlen = in_.byte();
    send(fuse::bytes_of(header, arguments), room, piece, faulted);
  }

  void send(std::vector<std::byte> request, std::size_t room, std::size_t piece, bool faulted) {
    std::vector<std::byte> answer(room, kUntouched);
    const std::vector<std::byte> sent = request;
    auto request_pieces = pieces_of(request, piece);
    auto answer_pieces = pieces_of(answer, piece);
    const std::uint32_t used = dispatcher_.serve(SharedBytes{request_pieces, request.size()},
                                                 SharedBytes{answer_pieces, room},
                                                 {.faulted = faulted}, scheduler_, scratch_);
    CHECK(request == sent);
    CHECK(used <= room);
    CHECK(std::all_of(answer.begin() + used, answer.end(),
                      [](std::byte b) { return b == kUntouched; }));
    if (used == 0) return;
    fuse_in_header header{};
    CHECK(sent.size() >= sizeof header);
    std::memcpy(&header, sent.data(), sizeof header);
    const auto out = Reader{answer}.take<fuse_out_header>();
    CHECK(out && out->len == used && out->unique == header.unique && out->unique != 0);
    CHECK(out->error <= 0 && out->error > -512);
    CHECK(out->error == 0 || used == sizeof(fuse_out_header));
    CHECK(!faulted || out->error != 0);
  }

  Input& in_;
  fuse::FakeFileSystem fs_;
  fuse::FileSystem nothing_;  // answers ENOSYS to everything
  fuse::Dispatcher dispatcher_;
  fuse::NullScheduler scheduler_;
  fuse::Scratch scratch_;
  std::uint64_t unique_ = 0;
};

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace virtiofsd::fuzz;
  Input in(data, size);
  const std::uint8_t options = in.byte();
  set_log((options & 1) != 0);
  Guest guest(in, options);
  for (int steps = 0; steps < 64 && !in.empty(); ++steps) guest.step();
  return 0;
}
