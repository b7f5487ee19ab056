// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// A stream of frames through a descriptor that somebody else made (a pipe, a socket, a file): kind,
// size, bytes. Frames are gathered into large writes. The reader takes the other side's word for
// nothing: a frame has at most kMostBytes, and what is cut short is an error.
//
// Threads: one at a time. Both wait for the other side, until `cancelled` is readable: ECANCELED.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "base/reader.h"
#include "base/result.h"
#include "sys/fd.h"

namespace virtiofsd {

struct FrameHeader {
  static constexpr std::uint32_t kMostBytes = 1U << 16;
  std::uint32_t kind = 0;
  std::uint32_t size = 0;  // bytes that follow
};
static_assert(sizeof(FrameHeader) == 8);

template <Plain T>
std::span<const std::byte> raw_bytes(const T& value) {
  return std::as_bytes(std::span{&value, 1});
}

class FrameWriter {
 public:
  // Both descriptors outlive it; `channel` doesn't block from now on.
  FrameWriter(FdRef channel, FdRef cancelled);

  // E2BIG when the parts are more than kMostBytes together; errors of write(2), EPIPE when nobody
  // reads any more.
  Result<> put(std::uint32_t kind, std::initializer_list<std::span<const std::byte>> parts);
  // What was gathered goes out.
  Result<> flush();

 private:
  FdRef channel_;
  FdRef cancelled_;
  std::vector<std::byte> gathered_;
};

class FrameReader {
 public:
  FrameReader(FdRef channel, FdRef cancelled);

  struct Frame {
    std::uint32_t kind;
    Reader body;  // valid until the next one
  };
  // ENODATA when the stream ends before or within it; EMSGSIZE when it says that it is too large;
  // errors of read(2).
  Result<Frame> next();
  // Whether nothing follows. EBADMSG when something does.
  Result<> expect_end();

 private:
  // False at the end of the stream.
  Result<bool> fill(std::size_t bytes);

  FdRef channel_;
  FdRef cancelled_;
  std::vector<std::byte> buffer_;
  std::size_t from_ = 0;  // what is in the buffer and not taken yet
  std::size_t to_ = 0;
};

}  // namespace virtiofsd
