// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The records of the state arena: fixed size, no pointers, only ids and
// descriptor numbers. A record begins with its head, one atomic word of
// {generation, pins, state}; see slab.h for its life.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "state/slab.h"

namespace virtiofsd {

// Atomics here are shared between processes, so they must not hide a lock.
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

// The records of a section, at most `most` of them.
template <typename Record>
std::span<Record> records_of(std::span<std::byte> section, std::size_t most) {
  const std::size_t count = std::min(most, section.size() / sizeof(Record));
  return {static_cast<Record*>(static_cast<void*>(section.data())), count};
}

struct InodeRecord {
  std::atomic<std::uint64_t> head;

  // Identity; written before the record is published, never after.
  std::uint64_t ino;
  std::int64_t birth;   // ns since the epoch; 0 where the file system's birth times don't identify
  std::uint16_t mount;  // index in the store's mount table
  std::uint8_t type;    // S_IFMT >> 12
  std::uint8_t submount;

  std::atomic<std::int32_t> fd;          // O_PATH; -1: cold
  std::atomic<std::uint64_t> lookups;    // what the guest owes us
  std::atomic<std::uint64_t> parent;     // NodeId of the directory of the last known name; 0: none
  std::atomic<std::uint32_t> name;       // blob of that name; 0: none
  std::atomic<std::uint32_t> name_hash;  // of that name, to see cheaply that it is the same
  std::atomic<std::uint32_t> handle;     // blob of a kernel file handle; 0: none
  std::atomic<std::uint32_t> opens;      // handles open on it
  std::atomic<std::uint32_t> cold_children;  // cold records whose parent this is
  std::atomic<std::uint8_t> touched;         // used since the demotion hand last passed
  static constexpr std::uint8_t kNotQueued = 0;
  static constexpr std::uint8_t kQueued = 1;       // in line to go, unless looked up again
  static constexpr std::uint8_t kQueuedAgain = 2;  // was, and was forgotten once more
  std::atomic<std::uint8_t> queued;                // among the forgotten nodes
  std::atomic<std::uint8_t> unproven;              // forgotten too young: `handle` is to tell
  static constexpr std::uint8_t kManyLinks = 0;    // or unknown
  static constexpr std::uint8_t kOneLink = 1;      // when last looked at closely
  static constexpr std::uint8_t kNoLink = 2;       // the guest has removed it since
  std::atomic<std::uint8_t> links;  // a guess: the host may have made or removed some
  std::atomic<std::uint32_t>
      next_by_identity;  // chain of the private index; next free slot when free
};
static_assert(sizeof(InodeRecord) == 80);
using InodeSlab = Slab<InodeRecord, &InodeRecord::next_by_identity>;

struct HandleRecord {
  std::atomic<std::uint64_t> head;
  std::uint64_t node;  // NodeId
  std::int32_t fd;
  std::uint32_t open_flags;         // open(2) flags the descriptor was opened with
  std::uint16_t kind;               // HandleKind
  std::atomic<std::uint8_t> flock;  // LOCK_SH, LOCK_EX or 0: what the guest's flock(2) holds
  std::uint8_t padding;
  std::atomic<std::uint32_t> next_free;
};
static_assert(sizeof(HandleRecord) == 32);
using HandleSlab = Slab<HandleRecord, &HandleRecord::next_free>;

// A file system mounted in the share, by its index less one.
struct MountRecord {
  std::uint64_t device;
  std::uint64_t id;
  std::atomic<std::uint32_t> known;  // 0: there is none of this index; written last
  std::uint8_t by_birth;
  std::uint8_t no_devices;
  std::uint16_t padding;
};
static_assert(sizeof(MountRecord) == 24);

// The descriptor that carries the record locks of one lock owner on one inode.
struct LockOwnerRecord {
  std::atomic<std::uint64_t> head;
  std::uint64_t node;   // NodeId
  std::uint64_t owner;  // LockOwner
  std::int32_t fd;
  std::int32_t access;  // O_RDONLY, O_WRONLY or O_RDWR
  std::atomic<std::uint32_t> next_free;
  std::uint32_t padding;
};
static_assert(sizeof(LockOwnerRecord) == 40);
using LockOwnerSlab = Slab<LockOwnerRecord, &LockOwnerRecord::next_free>;

// A range that a lock owner holds.
struct LockRangeRecord {
  std::atomic<std::uint64_t> head;
  std::uint64_t owner;  // slot (lower half) and generation of the LockOwnerRecord
  std::uint64_t start;
  std::uint64_t end;     // inclusive
  std::uint64_t handle;  // HandleId it was set through
  std::uint32_t type;    // F_RDLCK, F_WRLCK
  std::uint32_t pid;     // the guest's
  std::atomic<std::uint32_t> next_free;
  std::uint32_t padding;
};
static_assert(sizeof(LockRangeRecord) == 56);
using LockRangeSlab = Slab<LockRangeRecord, &LockRangeRecord::next_free>;

// A descriptor of a packed ring, which may be written over while its request is in flight.
struct DescriptorCopy {
  std::uint64_t address;
  std::uint32_t size;
  std::uint16_t flags;
  std::uint16_t id;     // of the request, what the driver knows it by
  std::uint16_t count;  // of the request's descriptors
  std::uint16_t next;   // where the next of them is
  std::uint32_t padding;
};
static_assert(sizeof(DescriptorCopy) == 24);

// How far a ring has been served, and what is in flight: the requests that were taken from it and
// not given back, each in a cell. One word tells all of a request on a split ring, so that a
// request costs few stores to few pages.
struct RingRecord {
  static constexpr std::uint32_t kMostSlots = 32768;

  // A cell's word. 0: nothing. Number (bits 0-31), used position (32-47), deaths (48-55).
  static constexpr std::uint64_t kTaken = 1ULL << 63;
  static constexpr std::uint64_t kGiving = 1ULL << 62;  // being given back at that used position

  // Number of the next request (upper half) and the ring's base as in SET_VRING_BASE, at once.
  std::atomic<std::uint64_t> progress;
  std::array<std::uint64_t, 7> padding;
  std::array<std::atomic<std::uint64_t>, kMostSlots> cells;  // split rings: by the chain's head
  std::array<DescriptorCopy, kMostSlots> copies;             // packed rings
};

// What the VMM set up. Written by the session thread; descriptors are the record's own.
struct SessionRecord {
  static constexpr std::uint32_t kRings = 65;
  static constexpr std::uint32_t kRegions = 512;

  struct Region {
    std::uint64_t guest;
    std::uint64_t vmm;
    std::uint64_t size;
    std::uint64_t mmap_offset;
    std::int32_t fd;
    std::uint32_t padding;
  };
  struct Ring {
    std::uint64_t descriptors;
    std::uint64_t driver;
    std::uint64_t device;
    std::uint64_t log;
    std::uint64_t features;  // as the ring took them
    std::uint32_t size;      // 0: not set
    std::uint32_t base;
    std::int32_t kick;  // descriptors; -1: none
    std::int32_t call;
    std::int32_t error;
    std::uint8_t addresses;  // kind: 0 not set, 1 of the VMM, 2 of the guest
    std::uint8_t is_logged;
    std::uint8_t has_base;
    std::uint8_t has_kick;  // SET_VRING_KICK came, with a descriptor or without
    std::uint8_t enabled;
    std::uint8_t kicked;                             // as in Device
    static constexpr std::uint8_t kStarted = 1;      // requests may be in flight
    static constexpr std::uint8_t kInterrupted = 2;  // it has stopped, and some still are
    std::uint8_t started;
    std::uint8_t packed;  // with kInterrupted
  };

  // With the VMM. In the middle of a message no successor can go on.
  static constexpr std::uint32_t kNone = 0;
  static constexpr std::uint32_t kBetweenMessages = 1;
  static constexpr std::uint32_t kInMessage = 2;
  std::atomic<std::uint32_t> conversation;
  std::int32_t socket;
  std::uint64_t agreed_features;
  std::uint64_t agreed_protocol_features;
  std::uint64_t acknowledges;
  std::uint64_t status;
  std::uint64_t log_size;
  std::uint64_t log_offset;
  std::int32_t log_file;
  std::int32_t backend_requests;
  std::int32_t listening;    // where the next client comes; -1: there will be none
  std::uint32_t has_let_go;  // of the locks: the guest has gone to another host, as far as is known
  std::array<std::atomic<std::uint64_t>, 4> fuse;  // what INIT settled: fuse::SharedSession
  std::uint32_t regions;
  std::uint32_t has_memory;
  std::array<Region, kRegions> region;
  std::array<Ring, kRings> ring;
  // What the VMM and the guest have been told and rely on, a line each of "name=value"; written
  // before the first worker. NUL at the end.
  std::array<char, 1024> told;
};

}  // namespace virtiofsd
