// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Memory tables with regions anywhere, and addresses anywhere in them, held
// against the plainest model there is: byte by byte, region by region.
#include <memory>
#include <optional>

#include "fuzz/input.h"
#include "memory/guest_memory.h"
#include "memory/shared_bytes.h"

namespace virtiofsd::fuzz {
namespace {

constexpr std::array<std::uint64_t, 8> kStarts = {
    0, 0x1000, 0x2000, 0x10000, 0xffffffff, 0x7fffffffffff0000, 0xffffffffffff0000, ~0ULL - 0xfff};
constexpr std::array<std::uint64_t, 8> kSizes = {0, 1, 16, 0x100, 0xfff, 0x1000, 0x1001, 0x2000};

struct Region {
  std::uint64_t guest;
  std::uint64_t vmm;
  std::uint64_t size;
  std::byte* host;
};

bool wraps(std::uint64_t start, std::uint64_t size) {
  return size != 0 && start + (size - 1) < start;
}

// The table that should have come out, in no order.
class Model {
 public:
  bool accepts(const Region& region) const {
    if (region.size == 0 || wraps(region.guest, region.size) || wraps(region.vmm, region.size))
      return false;
    const std::uint64_t last = region.guest + (region.size - 1);
    return std::ranges::none_of(regions, [&](const Region& other) {
      return region.guest <= other.guest + (other.size - 1) && other.guest <= last;
    });
  }
  std::byte* host(std::uint64_t guest) const {
    for (const Region& region : regions) {
      if (guest >= region.guest && guest - region.guest < region.size)
        return region.host + (guest - region.guest);
    }
    return nullptr;
  }

  std::vector<Region> regions;
};

MappedRegion mapped(const Region& region, const std::shared_ptr<std::byte[]>& owner) {
  return {.guest = {region.guest},
          .vmm = {region.vmm},
          .size = region.size,
          .host = region.host,
          .owner = owner};
}

// Where one was found, all of it lies on the host's side of the table.
void check_stretch(const Result<void*>& found, std::uint64_t size, const Model& model) {
  if (!found) return;
  auto* first = static_cast<std::byte*>(*found);
  std::uint64_t left = size;
  while (left != 0) {
    const auto region = std::ranges::find_if(
        model.regions, [&](const Region& r) { return first >= r.host && first < r.host + r.size; });
    CHECK(region != model.regions.end());
    const auto part = std::min<std::uint64_t>(
        left, static_cast<std::uint64_t>(region->host + region->size - first));
    first += part;
    left -= part;
  }
}

void look(Input& in, const GuestMemory& memory, const Model& model) {
  const std::uint64_t start = in.one_of(kStarts) + static_cast<std::uint64_t>(in.word()) - 0x100;
  const std::uint64_t size = in.byte() < 0xf0 ? in.byte() : in.one_of(kEdges);

  std::vector<iovec> pieces;
  const auto appended = memory.append_pieces(GuestAddress{start}, size, pieces);
  if (size <= 0xff) {
    bool all_there = !wraps(start, size);
    for (std::uint64_t i = 0; all_there && i < size; ++i) all_there = model.host(start + i);
    CHECK(appended.has_value() == all_there);
  }
  if (appended) {
    std::uint64_t at = start;
    std::size_t left = size;
    for (const iovec& piece : pieces) {
      CHECK(piece.iov_len != 0 && piece.iov_len <= left);
      CHECK(piece.iov_base == model.host(at));
      CHECK(model.host(at + piece.iov_len - 1) ==
            static_cast<std::byte*>(piece.iov_base) + piece.iov_len - 1);
      at += piece.iov_len;
      left -= piece.iov_len;
    }
    CHECK(left == 0);
    SharedBytes bytes(pieces, size);
    std::vector<std::byte> copy(std::min<std::size_t>(size, 0x3000));
    CHECK(bytes.copy_out(copy) && bytes.size() == size - copy.size());
  } else {
    CHECK(pieces.empty());
  }

  const std::size_t alignment = std::size_t{1} << in.below(5);
  check_stretch(memory.contiguous(GuestAddress{start}, size, alignment), size, model);
  check_stretch(memory.contiguous(VmmAddress{start}, size, alignment), size, model);
  const auto guest = memory.guest_address(VmmAddress{start});
  if (guest) CHECK(model.host(guest->value) != nullptr);
}

void run(Input& in) {
  // Regions of one arena may lie side by side for us as well.
  constexpr std::size_t kHost = 0x8000;
  const auto owner = std::make_shared<std::byte[]>(kHost);
  Model model;
  std::shared_ptr<const GuestMemory> memory = GuestMemory::make({}).value();
  std::uint64_t next_host = 0;
  for (int steps = 0; steps < 128 && !in.empty(); ++steps) {
    switch (in.below(4)) {
      case 0: {
        Region region{.guest = in.one_of(kStarts) + in.byte(),
                      .vmm = in.one_of(kStarts) + in.byte(),
                      .size = in.one_of(kSizes),
                      .host = nullptr};
        if (in.byte() % 2 == 0 && !model.regions.empty()) {
          region.guest = model.regions.back().guest + model.regions.back().size;
          region.vmm = model.regions.back().vmm + model.regions.back().size;
        }
        if (next_host + region.size > kHost) break;
        region.host = owner.get() + next_host;
        auto added = memory->with_added(mapped(region, owner));
        CHECK(added.has_value() == model.accepts(region));
        if (!added) break;
        memory = std::move(*added);
        model.regions.push_back(region);
        next_host += region.size;
        break;
      }
      case 1: {
        if (model.regions.empty()) break;
        const std::size_t index = in.below(model.regions.size());
        Region region = model.regions[index];
        const bool exact = in.byte() % 4 != 0;
        if (!exact) region.size += 1;
        auto removed =
            memory->with_removed(GuestAddress{region.guest}, VmmAddress{region.vmm}, region.size);
        CHECK(removed.has_value() == exact);
        if (!removed) break;
        memory = std::move(*removed);
        model.regions.erase(model.regions.begin() + static_cast<std::ptrdiff_t>(index));
        break;
      }
      default:
        look(in, *memory, model);
    }
    CHECK(memory->region_count() == model.regions.size());
  }
}

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  virtiofsd::fuzz::set_log(false);
  virtiofsd::fuzz::Input in(data, size);
  virtiofsd::fuzz::run(in);
  return 0;
}
