// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Numbers with one meaning each. An Id never converts to another kind and is
// never a pointer; what it names is found by looking it up.
#pragma once

#include <bit>
#include <compare>
#include <cstdint>
#include <functional>

namespace virtiofsd {

// Every wire this program speaks is little-endian, and so are its hosts: said once, here.
static_assert(std::endian::native == std::endian::little, "virtiofsd runs on little-endian hosts");

template <typename Tag>
struct Id {
  std::uint64_t value{};
  friend constexpr auto operator<=>(Id, Id) = default;
};

using GuestAddress = Id<struct GuestAddressTag>;  // where the guest sees it
using VmmAddress = Id<struct VmmAddressTag>;      // where the VMM's process sees it
using NodeId = Id<struct NodeIdTag>;              // FUSE nodeid: slot and generation of an inode
using HandleId = Id<struct HandleIdTag>;          // FUSE fh: slot and generation of an open file
using LockOwner = Id<struct LockOwnerTag>;        // FUSE lock_owner: opaque, chosen by the guest

}  // namespace virtiofsd

template <typename Tag>
struct std::hash<virtiofsd::Id<Tag>> {
  std::size_t operator()(virtiofsd::Id<Tag> id) const noexcept {
    return std::hash<std::uint64_t>{}(id.value);
  }
};
