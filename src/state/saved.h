// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What a guest's file system is made of when the guest moves to another host: frames of a stream
// (stream.h), each a fixed struct with bytes behind it. The sender's descriptors mean nothing to
// the receiver, so an inode is a place in the shared directory, and a handle is opened anew. The
// ids are the guest's and stay.
//
//   head, rings with what is in flight, session, root, inodes (a directory before what is in it),
//   handles, lock owners, end
//
// A change of any of these is another kVersion.
#pragma once

#include <cstdint>

#include "state/records.h"

namespace virtiofsd {

enum class SavedKind : std::uint32_t {
  kHead = 1,
  kRing,
  kRequests,
  kDescriptors,
  kSession,
  kRoot,
  kInode,
  kHandle,
  kLockOwner,
  kEnd
};

struct SavedHead {
  static constexpr std::uint64_t kMagic = 0x65746174'73736676;  // "vfsstate"
  static constexpr std::uint32_t kVersion = 1;

  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t rings = 0;
};
static_assert(sizeof(SavedHead) == 16);

// A ring that stopped with requests in flight: waits for locks. Behind it frames with as many of
// each as it says, in pieces of at most kPiece.
struct SavedRing {
  static constexpr std::uint32_t kPiece = 1024;
  std::uint32_t index = 0;
  std::uint32_t size = 0;
  std::uint32_t packed = 0;
  std::uint32_t number = 0;  // of the next request
  std::uint32_t base = 0;    // as in SET_VRING_BASE
  std::uint32_t requests = 0;
  std::uint32_t descriptors = 0;  // packed rings
  std::uint32_t padding = 0;
};
static_assert(sizeof(SavedRing) == 32);

struct SavedRequest {
  std::uint64_t word = 0;  // RingRecord::cells
  std::uint32_t cell = 0;
  std::uint32_t padding = 0;
};
static_assert(sizeof(SavedRequest) == 16);

struct SavedDescriptor {
  DescriptorCopy copy{};
  std::uint32_t cell = 0;
  std::uint32_t padding = 0;
};
static_assert(sizeof(SavedDescriptor) == 32);

// What INIT settled (fuse::Negotiated).
struct SavedSession {
  std::uint32_t major = 0;  // of FUSE; 0: no INIT yet
  std::uint32_t minor = 0;
  std::uint32_t max_readahead = 0;
  std::uint64_t flags = 0;
  std::uint32_t max_write = 0;
  std::uint16_t max_pages = 0;
  std::uint16_t max_background = 0;
  std::uint16_t congestion_threshold = 0;
  std::uint16_t padding = 0;
  std::uint32_t more_padding = 0;
};
static_assert(sizeof(SavedSession) == 40);

// The root's identity: where the receiver has the same, it has the same files.
struct SavedRoot {
  std::uint64_t ino = 0;
  std::int64_t birth = 0;  // ns; 0: says nothing
  // The newest of a slab: no id that may have been given has one above it.
  std::uint32_t inode_generation = 0;
  std::uint32_t handle_generation = 0;
};
static_assert(sizeof(SavedRoot) == 24);

// How an inode is found.
enum class SavedPlace : std::uint8_t {
  kName,    // in a directory that was sent before, under the name that follows
  kPath,    // the path below the root that follows
  kHandle,  // by the kernel file handle that follows
  kNone,    // not at all: the guest can't use it any more
};

// Behind it the name or path, then the handle: type (4 bytes) and the kernel's bytes.
struct SavedInode {
  std::uint64_t id = 0;       // NodeId
  std::uint64_t lookups = 0;  // what the guest owes
  std::uint64_t parent = 0;   // NodeId; with kName
  std::uint64_t ino = 0;
  std::int64_t birth = 0;  // ns; 0: says nothing
  SavedPlace place = SavedPlace::kNone;
  std::uint8_t type = 0;  // S_IFMT >> 12
  std::uint8_t open = 0;  // the guest has it open
  std::uint8_t padding = 0;
  std::uint16_t name_size = 0;
  std::uint16_t handle_size = 0;
};
static_assert(sizeof(SavedInode) == 48);

struct SavedHandle {
  std::uint64_t id = 0;    // HandleId
  std::uint64_t node = 0;  // NodeId
  std::uint32_t open_flags = 0;
  std::uint16_t kind = 0;  // HandleKind
  std::uint8_t flock = 0;  // LOCK_SH, LOCK_EX or 0
  std::uint8_t padding = 0;
};
static_assert(sizeof(SavedHandle) == 24);

// Behind it its ranges, at most kMostRanges: an owner with more comes several times.
struct SavedLockOwner {
  static constexpr std::uint32_t kMostRanges = 1024;
  std::uint64_t node = 0;
  std::uint64_t owner = 0;
  std::uint32_t ranges = 0;
  std::uint32_t padding = 0;
};
static_assert(sizeof(SavedLockOwner) == 24);

struct SavedLockRange {
  std::uint64_t start = 0;
  std::uint64_t end = 0;     // inclusive
  std::uint64_t handle = 0;  // HandleId it was set through
  std::uint32_t type = 0;    // F_RDLCK, F_WRLCK
  std::uint32_t pid = 0;     // the guest's
};
static_assert(sizeof(SavedLockRange) == 32);

// How many of each came.
struct SavedEnd {
  std::uint64_t inodes = 0;
  std::uint64_t handles = 0;
  std::uint64_t lock_owners = 0;
};
static_assert(sizeof(SavedEnd) == 24);

}  // namespace virtiofsd
