// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "state/arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "base/check.h"

namespace virtiofsd {
namespace {

constexpr std::uint64_t kMagic = 0x616e657261736676;  // "vfsarena"
// One more whenever a record means something else: programs of two versions may meet at an arena.
constexpr std::uint32_t kVersion = 3;
constexpr std::size_t kPage = 4096;
// The size is a promise to whoever maps it.
constexpr int kSealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr std::size_t kMaxSections = 16;

struct SectionEntry {
  std::uint32_t kind;
  std::uint32_t record_size;
  std::uint64_t capacity;
  std::uint64_t offset;  // bytes from the start of the file
  std::uint64_t size;    // bytes
};

struct Header {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t sections;
  SectionEntry table[kMaxSections];
};
static_assert(sizeof(Header) <= kPage);

constexpr std::uint64_t page_up(std::uint64_t size) {
  return (size + kPage - 1) & ~(kPage - 1);
}

Header header_for(std::span<const SectionPlan> plan) {
  CHECK(plan.size() <= kMaxSections);
  Header header{};
  header.magic = kMagic;
  header.version = kVersion;
  header.sections = static_cast<std::uint32_t>(plan.size());
  std::uint64_t offset = kPage;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const std::uint64_t size = page_up(plan[i].record_size * plan[i].capacity);
    header.table[i] = {static_cast<std::uint32_t>(plan[i].kind), plan[i].record_size,
                       plan[i].capacity, offset, size};
    offset += size;
  }
  return header;
}

std::uint64_t total_size(const Header& header) {
  const SectionEntry& last = header.table[header.sections - 1];
  return header.sections == 0 ? kPage : last.offset + last.size;
}

Result<std::byte*> map(FdRef fd, std::uint64_t size) {
  void* base =
      ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.number(), 0);
  if (base == MAP_FAILED) return Errno::last();
  // A core dump would read all of it, for many seconds, and leave memory in every hole.
  if (::madvise(base, size, MADV_DONTDUMP) != 0) return Errno::last();
  return static_cast<std::byte*>(base);
}

}  // namespace

template <typename Header>
std::vector<Arena::Place> Arena::places_of(const Header& header) {
  std::vector<Place> places;
  for (std::size_t i = 0; i < header.sections; ++i) {
    const SectionEntry& entry = header.table[i];
    places.push_back({static_cast<SectionKind>(entry.kind), entry.offset, entry.size});
  }
  return places;
}

Result<std::shared_ptr<Arena>> Arena::create(std::span<const SectionPlan> plan) {
  const Header header = header_for(plan);
  const std::uint64_t size = total_size(header);
  UniqueFd fd{::memfd_create("virtiofsd-state", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (!fd) return Errno::last();
  if (::ftruncate(fd.number(), static_cast<off_t>(size)) != 0) return Errno::last();
  if (::fcntl(fd.number(), F_ADD_SEALS, kSealed) != 0) {
    return Errno::last();
  }
  std::byte* base = TRY(map(fd, size));
  std::memcpy(base, &header, sizeof header);
  return std::shared_ptr<Arena>(new Arena(std::move(fd), base, size, places_of(header)));
}

Result<std::shared_ptr<Arena>> Arena::attach(UniqueFd fd, std::span<const SectionPlan> plan) {
  const Header expected = header_for(plan);
  struct stat st {};
  if (::fstat(fd.number(), &st) != 0) return Errno::last();
  const int seals = ::fcntl(fd.number(), F_GET_SEALS);
  if (seals < 0 || (seals & kSealed) != kSealed) return Errno{EINVAL};
  if (st.st_size < 0 || static_cast<std::uint64_t>(st.st_size) != total_size(expected)) {
    return Errno{EINVAL};
  }
  std::byte* base = TRY(map(fd, total_size(expected)));
  std::shared_ptr<Arena> arena(
      new Arena(std::move(fd), base, total_size(expected), places_of(expected)));
  if (std::memcmp(base, &expected, sizeof expected) != 0) return Errno{EINVAL};
  return arena;
}

Result<> Arena::copy_from(const Arena& other) {
  CHECK(other.size_ == size_);
  off_t at = kPage;
  for (;;) {
    const off_t data = ::lseek(other.fd_.number(), at, SEEK_DATA);
    if (data < 0) return errno == ENXIO ? Result<>{} : Errno::last();
    const off_t hole = ::lseek(other.fd_.number(), data, SEEK_HOLE);
    if (hole < 0) return Errno::last();
    if (static_cast<std::uint64_t>(hole) > size_) return Errno{EINVAL};
    std::memcpy(base_ + data, other.base_ + data, static_cast<std::size_t>(hole - data));
    at = hole;
  }
}

Arena::~Arena() {
  ::munmap(base_, size_);
}

std::span<std::byte> Arena::section(SectionKind kind) const {
  for (const Place& place : places_) {
    if (place.kind == kind) return {base_ + place.offset, place.size};
  }
  CHECK(!"a section that was planned");
  return {};
}

void Arena::drop_contents(SectionKind kind) {
  const auto bytes = section(kind);
  CHECK(::madvise(bytes.data(), bytes.size(), MADV_REMOVE) == 0);
}

}  // namespace virtiofsd
