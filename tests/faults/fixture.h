// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A running device with two request queues, one to attack and one that must not
// notice, and the means to say anything on a ring byte by byte. However a test
// ends, every queue must answer a full round trip afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/device/fixture.h"

namespace virtiofsd::guest {

// What came back for a chain: the used length and what lies in the reply buffer.
struct Answer {
  bool came = false;
  std::uint32_t length = 0;
  fuse_out_header head{};
  int error() const { return -head.error; }
};

// A descriptor as it lies in a ring, NEXT and availability left to the ring.
struct RawDescriptor {
  std::uint64_t address = 0;
  std::uint32_t size = 0;
  std::uint16_t flags = 0;
};

class FaultFixture : public DeviceFixture {
 protected:
  static constexpr unsigned kAttacked = 1;
  static constexpr std::size_t kInBytes = 256U << 10;
  static constexpr std::size_t kOutBytes = 2U << 20;

  // As DeviceFixture::start, with the queues this fixture needs and a file to read back.
  void attack(std::vector<std::string> arguments = {}, FrontEndOptions vmm = {},
              bool with_session = true, FuseQueueOptions queue = {});
  void TearDown() override;

  // Both request queues answer with a file's content and the urgent one with attributes.
  void expect_still_serving();
  // The attacked ring was stopped and said so; the others serve. It works again after a restart.
  void expect_this_queue_stopped();
  // Stops the attacked ring and starts it from nothing.
  void restart_attacked_queue();

  // ---- requests as bytes ----
  template <typename... Parts>
  std::vector<std::byte> request(std::uint32_t opcode, std::uint64_t node, const Parts&... parts) {
    std::vector<std::byte> bytes(sizeof(fuse_in_header));
    (append(bytes, parts), ...);
    fuse_in_header head{};
    head.len = static_cast<std::uint32_t>(bytes.size());
    head.opcode = opcode;
    head.unique = ++unique_;
    head.nodeid = node;
    std::memcpy(bytes.data(), &head, sizeof head);
    return bytes;
  }
  static void set_length(std::vector<std::byte>& bytes, std::uint32_t length) {
    std::memcpy(bytes.data() + offsetof(fuse_in_header, len), &length, sizeof length);
  }
  // Copies `bytes` to guest memory, gives `room` bytes for the answer, waits for it. The chain is
  // cut into two descriptors where `cut` and `reply_cut` say, if they say something.
  Answer send(std::span<const std::byte> bytes, std::size_t room, std::size_t cut = 0,
              std::size_t reply_cut = 0);
  Answer send(std::span<const Buffer> readable, std::span<const Buffer> writable);
  std::span<const std::byte> reply_bytes(std::size_t size) const { return {out_.host, size}; }
  // Any answer a driver can live with: a reply to the last request, or none.
  void expect_sane(const Answer& answer, std::size_t room, const std::string& what);

  // ---- rings as memory ----
  bool packed() { return vmm().options().ring.packed; }
  // Puts descriptors at the start of the attacked ring as one chain and kicks.
  void offer(std::span<const RawDescriptor> chain);
  void offer(std::initializer_list<RawDescriptor> chain) { offer(std::span{chain}); }
  // After offer: the length the device gave back, or nothing when it gave nothing back.
  Answer wait_for_offered();
  // A table of descriptors in guest memory in the ring's own format.
  std::uint64_t indirect_table(std::span<const RawDescriptor> entries);
  RawDescriptor readable(std::span<const std::byte> bytes);
  RawDescriptor writable(std::uint32_t size = 4096);

  Block in_, out_;
  std::uint64_t unique_ = 1'000'000;
  bool still_serving_ = true;  // false: the test ended the connection itself
  bool new_session_ = false;   // the test may have ended the session
  std::vector<std::unique_ptr<FuseQueue>> more_queues_;
  std::vector<std::unique_ptr<FuseClient>> clients_;  // one per queue, urgent first

 private:
  static void append(std::vector<std::byte>& bytes, std::string_view text) {
    const auto raw = std::as_bytes(std::span{text});
    bytes.insert(bytes.end(), raw.begin(), raw.end());
    bytes.push_back(std::byte{0});
  }
  static void append(std::vector<std::byte>& bytes, const char* text) {
    append(bytes, std::string_view{text});
  }
  static void append(std::vector<std::byte>& bytes, const std::string& text) {
    append(bytes, std::string_view{text});
  }
  static void append(std::vector<std::byte>& bytes, const std::vector<std::byte>& raw) {
    bytes.insert(bytes.end(), raw.begin(), raw.end());
  }
  template <typename T>
  static void append(std::vector<std::byte>& bytes, const T& value) {
    const auto raw = bytes_of(value);
    bytes.insert(bytes.end(), raw.begin(), raw.end());
  }

  unsigned offered_at_ = 0;
  std::uint16_t used_before_ = 0;
};

// How long the races against the host's own processes last.
std::chrono::milliseconds race_time();

}  // namespace virtiofsd::guest
