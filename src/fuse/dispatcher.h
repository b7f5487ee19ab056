// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// From a request's bytes to a reply's bytes: copies the header and arguments
// once, finds the operation's row, calls it, writes the reply header (nobody
// else does). Stateless but for the session that INIT fixed.
//
// Threads: serve may run on any number of threads at once, each with its own
// Scratch. INIT and DESTROY run one at a time. A guest that sends them while
// other requests are in flight breaks the protocol; those see the old session
// or none, and the file system keeps its tables whole.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/sync.h"
#include "fuse/call.h"
#include "fuse/file_system.h"
#include "fuse/negotiation.h"
#include "memory/shared_bytes.h"

namespace virtiofsd::fuse {

// A thread's private memory for requests and replies; grows to what was
// needed once (about a megabyte each at most) and stays.
struct Scratch {
  std::vector<std::byte> request;
  std::vector<std::byte> reply;
};

// The session, read by every request and changed by INIT and DESTROY. Each
// word is read whole; a reader may see words of two sessions, which is
// harmless because each was valid for this guest at some time.
class SharedSession {
 public:
  using Words = std::array<std::atomic<std::uint64_t>, 4>;

  // The one that `kept` has, if it has any; changes go there as well, for a successor. None:
  // nowhere.
  explicit SharedSession(Words* kept);

  Negotiated load() const;
  void store(const Negotiated& session);

 private:
  enum Word : std::size_t {
    kVersion,  // major, minor
    kFlags,
    kSizes,   // max_readahead, max_write
    kCounts,  // max_pages, max_background, congestion_threshold
  };
  void set(Word word, std::uint64_t value, std::memory_order order);

  Words words_{};
  Words* kept_;
};

// How a request came.
struct Delivery {
  // Some buffer of it lies in no memory region, and the views end before it: answered EFAULT.
  bool faulted = false;
  // Call::again. What takes no answer isn't done a second time.
  bool again = false;
  // Processes that served it died twice: answered EIO.
  bool deadly = false;
};

class Dispatcher {
 public:
  struct Settings {
    Offer offer;
    bool read_only = false;  // operations that write answer EROFS
    bool root_only = false;  // -o allow_root: only uid 0 and the daemon's own may ask
    std::uint32_t own_uid = 0;
    SharedSession::Words* session = nullptr;  // where it is kept; none: nowhere
  };

  Dispatcher(FileSystem& file_system, Settings settings);

  // Serves one request. Returns the bytes written to `reply` (the ring's
  // used.len): exactly the reply header's len, or 0 for a request that has no
  // answer or no room for one.
  std::uint32_t serve(SharedBytes request, SharedBytes reply, Delivery delivery,
                      Scheduler& scheduler, Scratch& scratch);

  // The device was reset: as DESTROY. Call while no request is in flight.
  void reset() EXCLUDES(session_change_);

  Negotiated session() const { return session_.load(); }
  // Goes on with a session that was negotiated before.
  void restore(const Negotiated& session) { session_.store(session); }

  // The session and what the file system has of it, for another host. While nothing is served.
  Result<void, Failure> save(FrameWriter& to);
  // Instead of any session there is; none when it fails.
  Result<void, Failure> load(FrameReader& from) EXCLUDES(session_change_);

  // Requests that could not be answered: too short for a header, without room
  // for a reply header, or with unique 0 (a reply to it would be a notification).
  std::uint64_t unanswerable() const { return unanswerable_.load(std::memory_order_relaxed); }

 private:
  struct Incoming;

  Result<> execute(Incoming& incoming, Body& body, Scheduler& scheduler, Scratch& scratch);
  Result<> admit(const Incoming& incoming, const Negotiated& session) const;
  Result<> init(Reader arguments, Body& body) EXCLUDES(session_change_);
  Result<Negotiated, Failure> take_session(FrameReader& from) const;
  std::uint32_t give_up(const char* why);

  FileSystem& file_system_;
  const Settings settings_;
  SharedSession session_;
  Mutex session_change_;
  bool warned_ GUARDED_BY(session_change_) = false;
  std::atomic<std::uint64_t> unanswerable_{0};
};

}  // namespace virtiofsd::fuse
