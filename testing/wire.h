// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// What the driver side says on its three wires: vhost-user messages, and the
// parts of FUSE that are younger than the system's <linux/fuse.h>. Written
// from the specifications, apart from the daemon's own declarations.
#pragma once

#include <linux/fuse.h>

#include <cstdint>

namespace virtiofsd::guest {

// ---- vhost-user -----------------------------------------------------------

enum : std::uint32_t {
  kGetFeatures = 1,
  kSetFeatures = 2,
  kSetOwner = 3,
  kResetOwner = 4,
  kSetMemTable = 5,
  kSetLogBase = 6,
  kSetLogFd = 7,
  kSetVringNum = 8,
  kSetVringAddr = 9,
  kSetVringBase = 10,
  kGetVringBase = 11,
  kSetVringKick = 12,
  kSetVringCall = 13,
  kSetVringErr = 14,
  kGetProtocolFeatures = 15,
  kSetProtocolFeatures = 16,
  kGetQueueNum = 17,
  kSetVringEnable = 18,
  kSetBackendReqFd = 21,
  kGetConfig = 24,
  kSetConfig = 25,
  kPostcopyAdvise = 28,
  kPostcopyListen = 29,
  kPostcopyEnd = 30,
  kGetInflightFd = 31,
  kSetInflightFd = 32,
  kResetDevice = 34,
  kVringKick = 35,
  kGetMaxMemSlots = 36,
  kAddMemReg = 37,
  kRemMemReg = 38,
  kSetStatus = 39,
  kGetStatus = 40,
  kSetDeviceStateFd = 42,
  kCheckDeviceState = 43,
  kGetShmemConfig = 44,
};

// Requests the back-end sends on its own channel.
enum : std::uint32_t {
  kBackendConfigChange = 2,
  kBackendVringCall = 4,
  kBackendVringErr = 5,
  kBackendShmemMap = 9,
  kBackendShmemUnmap = 10,
};

inline constexpr std::uint32_t kMessageVersion = 1;
inline constexpr std::uint32_t kMessageReply = 4;
inline constexpr std::uint32_t kMessageNeedReply = 8;

struct MessageHeader {
  std::uint32_t request;
  std::uint32_t flags;
  std::uint32_t size;
};

// Protocol features, as bits.
inline constexpr std::uint64_t kProtocolMq = 1ULL << 0;
inline constexpr std::uint64_t kProtocolLogShmfd = 1ULL << 1;
inline constexpr std::uint64_t kProtocolReplyAck = 1ULL << 3;
inline constexpr std::uint64_t kProtocolBackendReq = 1ULL << 5;
inline constexpr std::uint64_t kProtocolConfig = 1ULL << 9;
inline constexpr std::uint64_t kProtocolBackendSendFd = 1ULL << 10;
inline constexpr std::uint64_t kProtocolInflightShmfd = 1ULL << 12;
inline constexpr std::uint64_t kProtocolResetDevice = 1ULL << 13;
inline constexpr std::uint64_t kProtocolInbandNotifications = 1ULL << 14;
inline constexpr std::uint64_t kProtocolConfigureMemSlots = 1ULL << 15;
inline constexpr std::uint64_t kProtocolStatus = 1ULL << 16;
inline constexpr std::uint64_t kProtocolDeviceState = 1ULL << 19;

// Device features, as bits.
inline constexpr std::uint64_t kFeatureLogAll = 1ULL << 26;
inline constexpr std::uint64_t kFeatureIndirect = 1ULL << 28;
inline constexpr std::uint64_t kFeatureEventIdx = 1ULL << 29;
inline constexpr std::uint64_t kFeatureProtocol = 1ULL << 30;
inline constexpr std::uint64_t kFeatureVersion1 = 1ULL << 32;
inline constexpr std::uint64_t kFeaturePacked = 1ULL << 34;
inline constexpr std::uint64_t kFeatureInOrder = 1ULL << 35;

inline constexpr std::uint64_t kVringNoFd = 1U << 8;

struct VringState {
  std::uint32_t index;
  std::uint32_t value;
};

struct VringAddress {
  std::uint32_t index;
  std::uint32_t flags;
  std::uint64_t descriptors;  // VMM addresses, all three
  std::uint64_t used;
  std::uint64_t available;
  std::uint64_t log;  // guest address
};

struct MemoryRegion {
  std::uint64_t guest;
  std::uint64_t size;
  std::uint64_t vmm;
  std::uint64_t offset;  // in the descriptor
};

struct LogArea {
  std::uint64_t size;
  std::uint64_t offset;
};

struct ConfigSpace {
  std::uint32_t offset;
  std::uint32_t size;
  std::uint32_t flags;
  std::uint8_t bytes[60];
};
inline constexpr std::uint32_t kConfigHeaderSize = 12;

struct InflightArea {
  std::uint64_t size;
  std::uint64_t offset;
  std::uint16_t queues;
  std::uint16_t queue_size;
  std::uint32_t padding;
};

struct DeviceStateTransfer {
  std::uint32_t direction;  // 0 save, 1 load
  std::uint32_t phase;      // 0 stopped
};

// ---- FUSE after 7.38 --------------------------------------------------------

inline constexpr std::uint32_t kOpStatx = 52;
inline constexpr std::uint32_t kOpCopyFileRange64 = 53;

inline constexpr std::uint64_t kInitCreateSuppGroup = 1ULL << 34;
inline constexpr std::uint64_t kInitDirectIoAllowMmap = 1ULL << 36;
inline constexpr std::uint64_t kInitAllowIdmap = 1ULL << 40;

inline constexpr std::uint32_t kExtensionGroups = 32;

struct StatxTime {
  std::int64_t seconds;
  std::uint32_t nanoseconds;
  std::int32_t reserved;
};

struct StatxAttributes {
  std::uint32_t mask;
  std::uint32_t blksize;
  std::uint64_t attributes;
  std::uint32_t nlink;
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint16_t mode;
  std::uint16_t spare0;
  std::uint64_t ino;
  std::uint64_t size;
  std::uint64_t blocks;
  std::uint64_t attributes_mask;
  StatxTime atime;
  StatxTime btime;
  StatxTime ctime;
  StatxTime mtime;
  std::uint32_t rdev_major;
  std::uint32_t rdev_minor;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint64_t spare2[14];
};
static_assert(sizeof(StatxAttributes) == 256);

struct StatxIn {
  std::uint32_t getattr_flags;
  std::uint32_t reserved;
  std::uint64_t fh;
  std::uint32_t statx_flags;
  std::uint32_t statx_mask;
};
static_assert(sizeof(StatxIn) == 24);

struct StatxOut {
  std::uint64_t attr_valid;
  std::uint32_t attr_valid_nsec;
  std::uint32_t flags;
  std::uint64_t spare[2];
  StatxAttributes stat;
};
static_assert(sizeof(StatxOut) == 288);

struct CopyFileRangeOut {
  std::uint64_t bytes_copied;
};

}  // namespace virtiofsd::guest
