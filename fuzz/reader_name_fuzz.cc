// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Reader and Name on hostile bytes: the first half of the input says what is
// taken, the second half is taken apart. Whatever comes out lies inside, what
// was taken is gone, and a Name can't climb.
#include "base/name.h"
#include "base/reader.h"
#include "fuzz/input.h"

namespace virtiofsd::fuzz {
namespace {

struct Odd {
  std::uint32_t first;
  std::uint16_t second;
  std::uint8_t third;
};

void look_at(std::string_view text) {
  CHECK(text.data()[text.size()] == '\0');
  CHECK(text.find('\0') == std::string_view::npos);
  const auto name = Name::parse(text);
  const bool good = !text.empty() && text.size() <= Name::kMaxBytes && text != "." &&
                    text != ".." && text.find('/') == std::string_view::npos;
  CHECK(name.has_value() == good);
  if (name) {
    CHECK(name->view() == text && std::strlen(name->c_str()) == text.size());
  } else {
    CHECK(name.error() == Errno{EINVAL} || name.error() == Errno{ENAMETOOLONG});
  }
}

// Takes something of `size` bytes, or nothing where so many aren't left.
template <typename Take>
void take(Reader& reader, std::size_t size, Take&& take_it) {
  const std::size_t before = reader.rest().size();
  const bool taken = take_it(reader);
  CHECK(taken == (size <= before));
  CHECK(reader.rest().size() == before - (taken ? size : 0));
}

void step(Input& program, Reader& reader) {
  switch (program.below(8)) {
    case 0:
      return take(reader, 1, [](Reader& r) { return r.take<std::uint8_t>().has_value(); });
    case 1:
      return take(reader, 8, [](Reader& r) { return r.take<std::uint64_t>().has_value(); });
    case 2:
      return take(reader, sizeof(Odd), [](Reader& r) { return r.take<Odd>().has_value(); });
    case 3: {
      const std::size_t known = program.below(12);
      const std::size_t before = reader.rest().size();
      const auto value = reader.take_prefix<std::uint64_t>(known);
      CHECK(value.has_value() == (known <= 8 && known <= before));
      if (value && known < 8) CHECK(*value >> (8 * known) == 0);
      return;
    }
    case 4: {
      const std::size_t size = program.one_of(kEdges);
      return take(reader, size, [size](Reader& r) {
        const auto bytes = r.take_bytes(size);
        return bytes && bytes->size() == size;
      });
    }
    case 5: {
      const std::size_t size = program.byte();
      return take(reader, size, [size](Reader& r) { return r.take_bytes(size).has_value(); });
    }
    default: {
      const std::size_t before = reader.rest().size();
      const auto text = reader.take_string();
      if (!text) {
        CHECK(reader.rest().size() == before);
        return;
      }
      CHECK(reader.rest().size() == before - text->size() - 1);
      look_at(*text);
    }
  }
}

}  // namespace
}  // namespace virtiofsd::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace virtiofsd;
  fuzz::set_log(false);
  fuzz::Input program(data, size / 2);
  const std::vector<std::byte> bytes = fuzz::Input(data + size / 2, size - size / 2).all();
  Reader reader{bytes};
  while (!program.empty()) fuzz::step(program, reader);
  return 0;
}
