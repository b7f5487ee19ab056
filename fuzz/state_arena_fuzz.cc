// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// An arena that another process left behind, in any state: its header may be
// wrong, and where it is right every record, list and counter may lie. Attach
// refuses or yields exactly the planned sections; slab and blobs then never
// leave theirs and never give the same slot out twice.
#include <sys/mman.h>

#include <algorithm>
#include <set>
#include <utility>

#include "fuzz/input.h"
#include "state/arena.h"
#include "state/blobs.h"
#include "state/records.h"
#include "state/slab.h"

namespace virtiofsd::fuzz {
namespace {

constexpr std::uint64_t kInodes = 40;
constexpr std::uint64_t kBlobUnits = 64;
constexpr std::array<SectionPlan, 3> kPlan = {
    SectionPlan{.kind = SectionKind::kSession, .record_size = 64, .capacity = 1},
    SectionPlan{
        .kind = SectionKind::kInodes, .record_size = sizeof(InodeRecord), .capacity = kInodes},
    SectionPlan{.kind = SectionKind::kBlobs, .record_size = Blobs::kUnit, .capacity = kBlobUnits}};

// Head and table of sections; the rest of the first page means nothing.
constexpr std::size_t kHeaderBytes = 16 + 16 * 32;

void use_slab(Input& in, std::span<std::byte> section) {
  InodeSlab slab{section};
  std::set<std::uint32_t> ours;  // allocated by us and not given back
  CHECK(slab.used() <= slab.capacity());
  for (std::uint32_t slot = 1; slot < slab.used(); ++slot) static_cast<void>(slab.state(slot));
  for (int steps = 0; steps < 64 && !in.empty(); ++steps) {
    const std::uint32_t slot = in.below(kInodes + 2);
    switch (in.below(6)) {
      case 0:
      case 1: {
        const auto got = slab.allocate();
        if (!got) {
          CHECK(got.error() == Errno{ENFILE});
          break;
        }
        CHECK(*got >= 1 && *got < slab.capacity());
        CHECK(ours.insert(*got).second);
        slab.at(*got).ino = *got;
        slab.publish(*got, 1);
        break;
      }
      case 2:
        if (ours.contains(slot)) {
          CHECK(slab.at(slot).ino == slot);
          CHECK(!slab.retire(slot, slab.generation(slot)) && slab.unpin(slot));
          slab.free(slot);
          ours.erase(slot);
        }
        break;
      case 3:
        if (ours.contains(slot)) {
          CHECK(slab.try_pin(slot, slab.generation(slot)) && !slab.unpin(slot));
          CHECK(!slab.try_pin(slot, slab.generation(slot) + 1));
        }
        break;
      case 4: {
        // What a predecessor took aside and never put back is for its successor
        // to settle first: a pinner would wait for it. Nor does anybody have
        // sixteen million pins.
        const auto generation = in.take<std::uint32_t>();
        if (slot < slab.capacity()) {
          const std::uint64_t head = slab.at(slot).head.load();
          if (SlotHead::state(head) == SlotState::kBusy ||
              (head & SlotHead::kPinMask) == SlotHead::kPinMask) {
            break;
          }
        }
        if (!slab.try_pin(slot, generation)) break;
        CHECK(slot != 0 && slot < slab.capacity() && slab.generation(slot) == generation);
        static_cast<void>(slab.unpin(slot));
        break;
      }
      default:
        if (ours.contains(slot)) CHECK(!slab.set_aside(slot));
    }
  }
}

void use_blobs(Input& in, std::span<std::byte> section) {
  Blobs blobs{section};
  std::vector<std::pair<std::uint32_t, std::vector<std::byte>>> ours;
  for (int steps = 0; steps < 64 && !in.empty(); ++steps) {
    std::array<std::byte, Blobs::kMaxBytes + 1> out;
    switch (in.below(4)) {
      case 0: {
        const std::vector<std::byte> bytes = in.bytes(in.byte());
        const auto added = blobs.add(bytes);
        if (!added) {
          CHECK(added.error() == Errno{ENOSPC});
          break;
        }
        CHECK(*added != 0);
        CHECK(blobs.copy(*added, out) == bytes.size());
        CHECK(std::equal(bytes.begin(), bytes.end(), out.begin()));
        ours.emplace_back(*added, bytes);
        break;
      }
      case 1:
        if (!ours.empty()) {
          blobs.remove(ours.back().first);
          ours.pop_back();
        }
        break;
      default: {
        // A reference out of a record that somebody else wrote.
        const std::uint32_t reference =
            in.byte() % 2 == 0 ? in.below(kBlobUnits + 2) : in.take<std::uint32_t>();
        const std::size_t size = blobs.copy(reference, out);
        CHECK(size <= Blobs::kMaxBytes && out[size] == std::byte{0});
        if (in.byte() % 4 == 0) blobs.remove(reference);
      }
    }
  }
}

UniqueFd file_of(const std::vector<std::byte>& bytes, unsigned seals) {
  UniqueFd fd{::memfd_create("left-behind", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  CHECK(fd &&
        ::write(fd.number(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  if (seals != 0) CHECK(::fcntl(fd.number(), F_ADD_SEALS, seals) == 0);
  return fd;
}

std::vector<std::byte> fresh() {
  const auto arena = Arena::create(kPlan).value();
  std::vector<std::byte> bytes(
      static_cast<std::size_t>(::lseek(arena->fd().number(), 0, SEEK_END)));
  CHECK(::pread(arena->fd().number(), bytes.data(), bytes.size(), 0) ==
        static_cast<ssize_t>(bytes.size()));
  return bytes;
}

void run(Input& in) {
  static const std::vector<std::byte> good = fresh();
  const std::uint8_t options = in.byte();
  std::vector<std::byte> bytes = good;
  // Stretches of the file that lie; the header only where the input asks for it.
  const bool header_too = (options & 1) != 0;
  for (std::size_t count = in.below(32); count != 0; --count) {
    const std::size_t at = in.word() % bytes.size();
    const std::vector<std::byte> lie = in.bytes(in.below(40));
    for (std::size_t i = 0; i < lie.size() && at + i < bytes.size(); ++i) {
      if (at + i >= 0x1000 || header_too) bytes[at + i] = lie[i];
    }
  }
  if ((options & 2) != 0) bytes.resize(bytes.size() + 1 - in.below(3));
  const unsigned seals = (options & 4) != 0 ? 0 : F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

  const bool as_made = std::equal(good.begin(), good.begin() + kHeaderBytes, bytes.begin()) &&
                       bytes.size() == good.size() && seals != 0;
  auto arena = Arena::attach(file_of(bytes, seals), kPlan);
  CHECK(arena.has_value() == as_made);
  if (!arena) return;
  const auto copy = Arena::create(kPlan).value();
  CHECK(copy->copy_from(**arena));
  for (const SectionPlan& section : kPlan) {
    CHECK(std::ranges::equal(copy->section(section.kind), (*arena)->section(section.kind)));
  }
  const auto records = (*arena)->section(SectionKind::kInodes);
  CHECK(records.size() >= kInodes * sizeof(InodeRecord));
  if ((options & 8) != 0) {
    use_blobs(in, (*arena)->section(SectionKind::kBlobs).first(kBlobUnits * Blobs::kUnit));
  } else {
    use_slab(in, records.first(kInodes * sizeof(InodeRecord)));
  }
}

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  virtiofsd::fuzz::set_log(false);
  const virtiofsd::fuzz::NoDescriptorLeaks no_leaks;
  virtiofsd::fuzz::Input in(data, size);
  virtiofsd::fuzz::run(in);
  return 0;
}
