// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// The vhost-user wire: what the VMM (front-end) and the daemon (back-end) say
// to each other on the control socket. Every message is a Header and `size`
// bytes of payload; descriptors ride on its first bytes. Numbers are in host
// order. Source: the vhost-user protocol document of QEMU (docs/interop).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/reader.h"
#include "sys/fd.h"

namespace virtiofsd::vhost_user {

// Requests of the front-end.
enum class Request : std::uint32_t {
  kGetFeatures = 1,           // Which virtio features can you do?
  kSetFeatures = 2,           // Use these; comes again while running to switch dirty logging.
  kSetOwner = 3,              // The session begins.
  kResetOwner = 4,            // Deprecated: disable all rings.
  kSetMemTable = 5,           // All of guest memory, one descriptor per region.
  kSetLogBase = 6,            // The bitmap of dirty pages.
  kSetLogFd = 7,              // An event descriptor for "the log changed".
  kSetVringNum = 8,           // The size of a ring.
  kSetVringAddr = 9,          // Where a ring is.
  kSetVringBase = 10,         // Where in a ring to begin.
  kGetVringBase = 11,         // Stop a ring and say where it stopped.
  kSetVringKick = 12,         // The descriptor that says "buffers are available"; starts the ring.
  kSetVringCall = 13,         // The descriptor to say "buffers are used" on.
  kSetVringErr = 14,          // The descriptor to say "this ring is broken" on.
  kGetProtocolFeatures = 15,  // Which parts of this protocol can you do?
  kSetProtocolFeatures = 16,  // Use these.
  kGetQueueNum = 17,          // How many rings can you do?
  kSetVringEnable = 18,       // Enable or disable a ring.
  kSendRarp = 19,             // Network devices only.
  kNetSetMtu = 20,            // Network devices only.
  kSetBackendReqFd = 21,      // The socket for requests of the back-end.
  kIotlbMsg = 22,             // An entry of the device's IOTLB changed.
  kSetVringEndian = 23,       // The byte order of a legacy device's ring.
  kGetConfig = 24,            // Read device configuration space.
  kSetConfig = 25,            // Write device configuration space.
  kCreateCryptoSession = 26,  // Crypto devices only.
  kCloseCryptoSession = 27,   // Crypto devices only.
  kPostcopyAdvise = 28,       // Post-copy migration may come; open a userfaultfd.
  kPostcopyListen = 29,       // Post-copy begins; register memory.
  kPostcopyEnd = 30,          // Post-copy is over.
  kGetInflightFd = 31,        // Make the shared area that tracks requests in flight.
  kSetInflightFd = 32,        // Here is the area of your predecessor.
  kGpuSetSocket = 33,         // Graphics devices only.
  kResetDevice = 34,          // Disable all rings, forget all device state, stay connected.
  kVringKick = 35,            // "Buffers are available" as a message.
  kGetMaxMemSlots = 36,       // How many memory regions can you do?
  kAddMemReg = 37,            // One more memory region.
  kRemMemReg = 38,            // One memory region less.
  kSetStatus = 39,            // The virtio device status byte as the guest wrote it.
  kGetStatus = 40,            // The status byte as the device has it.
  kGetSharedObject = 41,      // A dma-buf by its UUID.
  kSetDeviceStateFd = 42,     // Save or load internal state through this channel.
  kCheckDeviceState = 43,     // Did the transfer of internal state work?
  kGetShmemConfig = 44,       // Which shared memory regions does the device have?
};

// Requests of the back-end, on the socket from kSetBackendReqFd.
enum class BackendRequest : std::uint32_t {
  kIotlbMsg = 1,            // An IOTLB entry is missing.
  kConfigChange = 2,        // Read the configuration space again.
  kVringHostNotifier = 3,   // Map this page as a ring's doorbell.
  kVringCall = 4,           // "Buffers are used" as a message.
  kVringErr = 5,            // "This ring is broken" as a message.
  kSharedObjectAdd = 6,     // A dma-buf is on offer.
  kSharedObjectRemove = 7,  // It no longer is.
  kSharedObjectLookup = 8,  // Fetch another device's dma-buf.
  kShmemMap = 9,            // Map part of a file into a shared memory region of the device.
  kShmemUnmap = 10,         // Undo exactly one kShmemMap.
};

// Bit numbers of GET/SET_PROTOCOL_FEATURES.
enum class ProtocolFeature : std::uint8_t {
  kMq = 0,                     // GET_QUEUE_NUM is understood.
  kLogShmfd = 1,               // The dirty log is shared memory, SET_LOG_BASE carries it.
  kRarp = 2,                   // SEND_RARP is understood.
  kReplyAck = 3,               // Any message may ask for an acknowledgement.
  kMtu = 4,                    // NET_SET_MTU is understood.
  kBackendReq = 5,             // The back-end sends requests of its own.
  kCrossEndian = 6,            // SET_VRING_ENDIAN is understood.
  kCryptoSession = 7,          // The crypto messages are understood.
  kPagefault = 8,              // The post-copy messages are understood.
  kConfig = 9,                 // The back-end answers for the configuration space.
  kBackendSendFd = 10,         // Back-end requests may carry descriptors.
  kHostNotifier = 11,          // Doorbell pages are understood.
  kInflightShmfd = 12,         // Requests in flight are tracked in shared memory.
  kResetDevice = 13,           // RESET_DEVICE is understood.
  kInbandNotifications = 14,   // Kicks, calls and errors may be messages.
  kConfigureMemSlots = 15,     // Regions are added and removed one by one.
  kStatus = 16,                // The status byte is passed on.
  kXenMmap = 17,               // Regions carry Xen mapping flags.
  kSharedObject = 18,          // The dma-buf messages are understood.
  kDeviceState = 19,           // Internal state can be saved and loaded.
  kGetVringBaseInflight = 20,  // GET_VRING_BASE may leave requests in the in-flight area.
  kGpaAddresses = 21,          // Ring addresses are guest-physical.
  kShmem = 22,                 // Shared memory regions are understood.
};

// Bit numbers of GET/SET_FEATURES that matter to a virtio-fs device.
enum class Feature : std::uint8_t {
  kNotifyOnEmpty = 24,     // Signal when a ring ran empty even if signals are off (legacy).
  kLogAll = 26,            // Log every write to guest memory; vhost's own bit.
  kIndirectDesc = 28,      // Descriptors may name a table of descriptors.
  kEventIdx = 29,          // Notifications are asked for by index.
  kProtocolFeatures = 30,  // The front-end knows protocol features, and rings start disabled.
  kVersion1 = 32,          // A virtio 1.x device.
  kAccessPlatform = 33,    // Addresses go through an IOMMU.
  kRingPacked = 34,        // Packed rings.
  kInOrder = 35,           // Buffers are used in the order they were made available.
  kNotificationData = 38,  // Kicks carry data.
  kRingReset = 40,         // Rings can be reset one by one.
};

constexpr std::uint64_t bit(ProtocolFeature feature) {
  return std::uint64_t{1} << static_cast<unsigned>(feature);
}
constexpr std::uint64_t bit(Feature feature) {
  return std::uint64_t{1} << static_cast<unsigned>(feature);
}

// What precedes every payload.
struct Header {
  std::uint32_t request;
  std::uint32_t flags;
  std::uint32_t size;  // of the payload alone
};
static_assert(sizeof(Header) == 12);

inline constexpr std::uint32_t kVersion = 1;
inline constexpr std::uint32_t kFlagVersionMask = 0x3;
inline constexpr std::uint32_t kFlagReply = 0x4;
inline constexpr std::uint32_t kFlagNeedReply = 0x8;
// Front-ends compare these with the flags of a reply as a whole.
inline constexpr std::uint32_t kReplyFlags = kVersion | kFlagReply;

// Which ring, and one number about it.
struct VringState {
  std::uint32_t index;
  std::uint32_t num;
};
static_assert(sizeof(VringState) == 8);

// The word of SET_VRING_KICK, CALL and ERR: a ring, and whether a descriptor came along.
inline constexpr std::uint64_t kVringIndexMask = 0xff;
inline constexpr std::uint64_t kVringNoFd = 0x100;

struct VringAddress {
  std::uint32_t index;
  std::uint32_t flags;
  std::uint64_t descriptors;
  std::uint64_t used;
  std::uint64_t available;
  std::uint64_t log;  // guest address the used ring is logged at
};
static_assert(sizeof(VringAddress) == 40);
inline constexpr std::uint32_t kVringAddressLog = 0x1;  // `log` counts

struct RegionDescription {
  std::uint64_t guest;
  std::uint64_t size;
  std::uint64_t vmm;
  std::uint64_t mmap_offset;
};
static_assert(sizeof(RegionDescription) == 32);

// Followed by `count` RegionDescriptions, and for some front-ends by padding.
struct MemoryTable {
  std::uint32_t count;
  std::uint32_t padding;
};
static_assert(sizeof(MemoryTable) == 8);
inline constexpr std::uint32_t kMaxTableRegions = 8;

struct SingleRegion {
  std::uint64_t padding;
  RegionDescription region;
};
static_assert(sizeof(SingleRegion) == 40);

struct LogDescription {
  std::uint64_t size;
  std::uint64_t offset;
};
static_assert(sizeof(LogDescription) == 16);

// Followed by `size` bytes of configuration space.
struct ConfigHeader {
  std::uint32_t offset;
  std::uint32_t size;
  std::uint32_t flags;
};
static_assert(sizeof(ConfigHeader) == 12);
inline constexpr std::uint32_t kConfigFromMigration = 0x1;

// On the wire with or without the padding a C compiler puts behind it.
struct InflightDescription {
  static constexpr std::size_t kUnpadded = 20;
  std::uint64_t mmap_size;
  std::uint64_t mmap_offset;
  std::uint16_t queues;
  std::uint16_t queue_size;
  std::uint32_t padding;
};
static_assert(sizeof(InflightDescription) == 24);

struct DeviceStateTransfer {
  std::uint32_t direction;  // 0 save, 1 load
  std::uint32_t phase;      // 0: the guest is stopped
};
static_assert(sizeof(DeviceStateTransfer) == 8);

// The answer to SET_DEVICE_STATE_FD: bits 0-7 an error, bit 8 "no descriptor of mine".
inline constexpr std::uint64_t kDeviceStateNoFd = 0x100;

struct ShmemConfig {
  std::uint32_t regions;  // how many sizes are not zero
  std::uint32_t padding;
  std::array<std::uint64_t, 256> sizes;  // by shared memory id
};
static_assert(sizeof(ShmemConfig) == 2056);

// Of the back-end's SHMEM_MAP and SHMEM_UNMAP.
struct ShmemMapping {
  std::uint8_t id;
  std::array<std::uint8_t, 7> padding;
  std::uint64_t file_offset;
  std::uint64_t region_offset;
  std::uint64_t size;
  std::uint64_t flags;
};
static_assert(sizeof(ShmemMapping) == 40);
inline constexpr std::uint64_t kShmemWritable = 0x1;

// More than any known message needs; a longer one ends the connection.
inline constexpr std::size_t kMaxPayload = 4096;
// As many as a full memory table brings; more end the connection.
inline constexpr std::size_t kMaxFds = 8;

// One whole message with the descriptors that came along. Those nobody takes
// out close with it.
struct Message {
  Header header{};
  std::array<std::byte, kMaxPayload> bytes{};
  std::vector<UniqueFd> fds;

  std::span<const std::byte> payload() const { return std::span(bytes).first(header.size); }
  bool needs_reply() const { return (header.flags & kFlagNeedReply) != 0; }
};

// The bytes of a wire struct.
template <Plain T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

// "SET_MEM_TABLE", as the protocol document calls it; "unknown request" for a stranger.
std::string_view name(Request request);
std::string_view name(BackendRequest request);

}  // namespace virtiofsd::vhost_user
