// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The operation table: for every opcode what the dispatcher must know before
// it runs, and the function that decodes the arguments, calls the file system
// and encodes the answer. Inside the room only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/reader.h"
#include "fuse/body.h"
#include "fuse/call.h"
#include "fuse/file_system.h"
#include "memory/shared_bytes.h"

namespace virtiofsd::fuse {

// What a row's function works on.
struct Request {
  FileSystem& fs;
  Call& call;
  Reader arguments;  // private; without extensions
  Body& body;
  const SharedBytes& data;  // WRITE: what follows the arguments, in guest memory
  std::size_t data_size;    // bytes of `data` that belong to the request
  bool read_only;
};

struct Row {
  std::string_view name;  // empty: no such operation
  // Null: ENOSYS, or (INIT, DESTROY) the dispatcher's own.
  Result<> (*serve)(Request&) = nullptr;
  bool writes = false;          // EROFS on a read-only share
  bool answers = true;          // false: the guest leaves no room and waits for nothing
  bool creates = false;         // may carry a security context and a group
  bool open_handle = false;     // works on what is open already: -o allow_root lets anybody
  bool streams = false;         // the arguments are followed by data that stays in guest memory
  std::uint32_t arguments = 0;  // bytes copied when it streams; else all are, up to a limit
  std::uint32_t answer = 0;     // bytes of room it needs before anything is done
  std::uint32_t buffer = 512;   // private bytes its answer may take
};

// The row of an opcode; one without a name for an opcode we don't know.
const Row& row_of(std::uint32_t opcode);

// Reads what a create carries behind its names (fuse_ext_header and the older
// bare fuse_secctx_header look alike): fills `call.security` and the caller's
// supplementary group where those were negotiated. EINVAL when it is cut.
Result<> take_extensions(Reader extensions, Call& call);

}  // namespace virtiofsd::fuse
