// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include "vhost_user/message.h"

namespace virtiofsd::vhost_user {
namespace {

constexpr std::array<std::string_view, 44> kRequestNames = {
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "RESET_OWNER",
    "SET_MEM_TABLE",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_VRING_ENABLE",
    "SEND_RARP",
    "NET_SET_MTU",
    "SET_BACKEND_REQ_FD",
    "IOTLB_MSG",
    "SET_VRING_ENDIAN",
    "GET_CONFIG",
    "SET_CONFIG",
    "CREATE_CRYPTO_SESSION",
    "CLOSE_CRYPTO_SESSION",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "GPU_SET_SOCKET",
    "RESET_DEVICE",
    "VRING_KICK",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_STATUS",
    "GET_STATUS",
    "GET_SHARED_OBJECT",
    "SET_DEVICE_STATE_FD",
    "CHECK_DEVICE_STATE",
    "GET_SHMEM_CONFIG",
};
static_assert(kRequestNames.size() == static_cast<std::size_t>(Request::kGetShmemConfig));
static_assert(kRequestNames[static_cast<std::size_t>(Request::kGetConfig) - 1] == "GET_CONFIG");
static_assert(kRequestNames[static_cast<std::size_t>(Request::kGetShmemConfig) - 1] ==
              "GET_SHMEM_CONFIG");

constexpr std::array<std::string_view, 10> kBackendRequestNames = {
    "BACKEND_IOTLB_MSG",
    "BACKEND_CONFIG_CHANGE_MSG",
    "BACKEND_VRING_HOST_NOTIFIER_MSG",
    "BACKEND_VRING_CALL",
    "BACKEND_VRING_ERR",
    "BACKEND_SHARED_OBJECT_ADD",
    "BACKEND_SHARED_OBJECT_REMOVE",
    "BACKEND_SHARED_OBJECT_LOOKUP",
    "BACKEND_SHMEM_MAP",
    "BACKEND_SHMEM_UNMAP",
};
static_assert(kBackendRequestNames.size() == static_cast<std::size_t>(BackendRequest::kShmemUnmap));

std::string_view name_in(std::span<const std::string_view> names, std::uint32_t number) {
  if (number < 1 || number > names.size()) return "unknown request";
  return names[number - 1];
}

}  // namespace

std::string_view name(Request request) {
  return name_in(kRequestNames, static_cast<std::uint32_t>(request));
}

std::string_view name(BackendRequest request) {
  return name_in(kBackendRequestNames, static_cast<std::uint32_t>(request));
}

}  // namespace virtiofsd::vhost_user
