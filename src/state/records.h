// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The records of the state arena: fixed size, no pointers, only ids and
// descriptor numbers. A record begins with its head, one atomic word of
// {generation, pins, state}; see slab.h for its life.
#pragma once

#include <atomic>
#include <cstdint>

namespace virtiofsd {

// Atomics here are shared between processes, so they must not hide a lock.
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

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

struct HandleRecord {
  std::atomic<std::uint64_t> head;
  std::uint64_t node;  // NodeId
  std::int32_t fd;
  std::uint32_t open_flags;  // open(2) flags the descriptor was opened with
  std::uint32_t kind;        // HandleKind
  std::atomic<std::uint32_t> next_free;
};
static_assert(sizeof(HandleRecord) == 32);

}  // namespace virtiofsd
