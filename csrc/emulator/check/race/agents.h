// What the detector keeps for each warp, CTA, cluster, barrier and asynchronous operation; the
// machine's own objects hold these by pointer.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "emulator/check/race/knowledge.h"
#include "emulator/check/race/shadow.h"
#include "emulator/memory_model.h"

namespace pykernels::emulator {

struct MachineLaunch;
struct WarpRaces;

/// Where a release stands: scopes decide who may synchronise with it.
struct Place {
  uint32_t cluster = 0;
  uint32_t cta = 0;   // rank in the cluster
  uint32_t rank = 0;  // the GPU: Launch.rank
};

/// Whether a scope around one place holds the other.
bool includes(Scope scope, const Place& place, const Place& other);

/// What an access or an operation rests on: knowledge, and the accesses of its own warp.
struct View {
  const Knowledge* known = nullptr;
  uint32_t first = 0;  // component of the warp's lane 0
  LaneMask own = 0;    // lanes whose accesses up to `now` come before
  uint32_t now = 0;
  uint32_t synced = 0;     // of the other lanes
  uint32_t converged = 0;  // of the other lanes, only that they are over

  /// Raises what the lane itself and its warp have done.
  void raise_own(ClusterClock& into, bool only_executed) const;
  uint32_t at(Layer layer, uint32_t component) const {
    const uint32_t value = known->own.at(layer, component);
    const uint32_t lane = component - first;
    if (lane >= static_cast<uint32_t>(kWarpSize) || layer > Layer::kExecuted) return value;
    const uint32_t other = layer == Layer::kExecuted ? converged : synced;
    const uint32_t warp = (own >> lane & 1) != 0 ? now : other;
    return value > warp ? value : warp;
  }
};

/// The view of the warp's lanes `own`, who know this.
View view_of(const WarpRaces& races, const Knowledge& known, LaneMask own);

/// Something released: what a lane knew, where it stands, and for whom.
struct Release {
  Scope scope = Scope::kCta;
  Place place;
  KnowledgeRef known;
  View view;                // into `known`
  bool sequential = false;  // by fence.sc, for the GPU or the system

  Release(Scope for_scope, const Place& at, KnowledgeRef what, const View& view_of_it,
          bool is_sequential = false)
      : scope(for_scope),
        place(at),
        known(std::move(what)),
        view(view_of_it),
        sequential(is_sequential) {}

  /// All of it, for any cluster; made once.
  const KnowledgeRef& frozen() const;
  /// Of a fence.sc: what those behind it know.
  Fenced fenced() const;

 private:
  mutable KnowledgeRef frozen_, bare_;
};

/// The releases that the present value of a location carries. They are merged by scope and by the
/// group of threads that a reader of a scope synchronises with, not kept by thread.
class Location {
 public:
  uint64_t version = 0;  // another one after each change

  bool release(const Release& release);
  bool fence(const Fenced& fence);
  void clear();
  bool empty() const { return releases_.empty() && fences_.empty(); }
  const std::vector<Fenced>& fences() const { return fences_; }
  /// What releases of `scope` by threads of one group with `place` hold: one CTA for level kCta,
  /// and so on up to the scope. Null where there are none.
  KnowledgeRef released(Scope scope, Scope level, const Place& place) const;

 private:
  std::map<uint64_t, KnowledgeRef> releases_;
  std::vector<Fenced> fences_;
};

/// What a relaxed read has found at a location (a barrier's is 0) for acquires of at least a level.
struct SeenRelease {
  uint64_t location = 0;
  Scope scope = Scope::kCta;
  Scope level = Scope::kCta;
  KnowledgeRef known;
};

/// A lane's own release at a location.
struct StoredRelease {
  uint64_t location = 0;
  Release release;
};

/// The last location that a lane has read: what has not changed since has nothing new.
struct LastRead {
  uint64_t location = 0;
  uint64_t version = 0;
  Scope scope = Scope::kNone;
  bool acquires = false;

  bool operator==(const LastRead&) const = default;
};

/// What a lane's fences have released and may still acquire.
struct LaneFences {
  std::vector<Release> released;      // by fences: goes with the lane's relaxed writes
  std::vector<SeenRelease> seen;      // acquired by the next fence, or by an acquire there
  std::vector<Fenced> seen_fences;    // acquired by the next fence.sc behind
  std::vector<StoredRelease> stored;  // goes with the lane's later stores there
  LastRead last_read;

  void see(uint64_t location, Scope scope, Scope level, const KnowledgeRef& known);
  void store(uint64_t location, const Release& release);
};

/// The clock of a CTA's first thread that only says that the CTA has started: no access has it.
inline constexpr uint32_t kStarted = 1;

/// A warp's own clock, and what its lanes know.
struct WarpRaces {
  uint32_t first = 0;           // component of lane 0
  uint32_t now = kStarted + 1;  // clock of accesses; goes on after each release
  uint32_t synced = 0;          // accesses up to this clock are known to all lanes of the warp
  // Up to this one they are over: all lanes have met at wgmma.fence since, which orders no writes.
  uint32_t converged = 0;
  Place place;
  // The stores at `now`: the last one in the program, and whose they were.
  uint32_t last_store = 0;
  LaneMask storing = 0;
  bool lanes_ended = false;  // some, while others go on
  std::array<KnowledgeRef, kWarpSize> known;
  bool uniform = true;                                        // all lanes' `known` are one
  std::unique_ptr<std::array<LaneFences, kWarpSize>> fences;  // made on first use
  LaneMask unshared_fences = 0;  // whose fence.sc, or what they see of others', `known` lacks
  // Components by lane, made on first use.
  std::map<int, uint32_t> copies;  // cp.async
  std::map<int, uint32_t> bulk;    // bulk groups: of their sources; behind it of their results
  std::map<int, uint32_t> inits;   // the mbarriers that the lane initialises
};

/// The clock of a barrier: arrivals gather, a completed phase is what waiters acquire.
class SyncClock {
 public:
  explicit SyncClock(uint32_t cluster, uint64_t num_completed = 0) : num_completed_(num_completed) {
    gathered_.cluster = cluster;
  }

  /// Joins what is known; skips what the arrival before has joined.
  void join(const KnowledgeRef& known, bool only_executed);
  void join(const Release& release, bool only_executed) {
    gathered_.join(*release.frozen(), only_executed);
  }
  /// The same, by threads of the barrier's own cluster.
  void join(const KnowledgeRef& known, const View& view, bool only_executed) {
    join(known, only_executed);
    view.raise_own(gathered_.own, only_executed);
  }
  void raise(Layer layer, uint32_t component, uint32_t clock) {
    gathered_.own.raise(layer, component, clock);
  }
  /// The phase is complete. `cumulative`: the next one begins with what this one had.
  void complete(bool cumulative);
  /// What the phase of that number (counted from 0) released, or a later one where it is gone.
  KnowledgeRef completed(uint64_t phase) const;
  KnowledgeRef last() const { return completed_.empty() ? nullptr : completed_.back(); }
  /// `known` joined with `released`; warps that know the same share the result.
  KnowledgeRef acquire(const KnowledgeRef& known, const KnowledgeRef& released, bool only_executed);

 private:
  static constexpr size_t kKept = 8;

  Knowledge gathered_;
  KnowledgeRef last_joined_;
  bool last_only_executed_ = false;
  uint64_t num_completed_;
  std::deque<KnowledgeRef> completed_;
  KnowledgeRef cached_known_, cached_released_, cached_result_;
};

/// A component and a clock of it: what stands for an operation's reads or writes.
struct AgentEvent {
  uint32_t component = 0;
  uint32_t clock = 0;
};

/// An asynchronous operation as an agent: what its issuer knew, and what stands for its accesses.
struct AgentRaces {
  std::vector<View> views;  // all must have an access before them: one, or four of a warpgroup
  std::vector<KnowledgeRef> kept;  // what the views point into
  uint32_t cluster = 0;
  uint32_t what = 0;  // of its accesses
  AgentEvent read;
  AgentEvent write;
  std::vector<AgentEvent> copies;  // of a multicast: its writes by the CTA's rank in the cluster

  /// Its writes to the shared memory of one CTA.
  const AgentEvent& write_to(uint32_t rank) const { return copies.empty() ? write : copies[rank]; }
};

/// An mbarrier's clocks, and its initialisation. A waiter with the scope of its CTA sees what its
/// own CTA and completed copies have released; of what others have, only that it is over.
struct MbarrierRaces {
  explicit MbarrierRaces(uint32_t cluster) : local(cluster), remote(cluster) {}
  void complete() {
    local.complete(true);
    remote.complete(true);
  }
  SyncClock local;
  SyncClock remote;
  Epoch init;
};

/// The lines of a CTA's shared memory, and who reached them from elsewhere.
struct CtaRaces {
  explicit CtaRaces(uint32_t bytes) : lines((bytes + kLineBytes - 1) / kLineBytes) {}
  std::vector<Line> lines;
  std::map<uint32_t, Epoch> remote;  // last touch, by component, of agents that are not its threads
  std::unique_ptr<SyncClock> ended;  // what its ended threads knew
  Epoch exit;                        // the last of them
};

/// A component behind those of threads: who issued its operations.
struct AgentSlot {
  uint32_t owner = 0;  // component of the issuing thread
  uint32_t clock = 0;  // of its last operation, for slots that are used again
};

/// What stays of a cluster for findings after it has ended.
struct ClusterRaces {
  uint32_t serial = 0;
  int grid = 0;
  const MachineLaunch* launch = nullptr;
  std::array<uint32_t, 3> cluster_ctaid = {};
  uint32_t warps_per_cta = 0;
  uint32_t num_threads = 0;      // components of threads (whole warps)
  std::vector<AgentSlot> slots;  // the components behind those
  // By issuing thread, those used again, the one longest unused first.
  std::map<uint32_t, std::deque<uint32_t>> slots_of;

  uint32_t num_ctas = 0;

  uint32_t warpgroups_per_cta() const { return (warps_per_cta + 3) / 4; }
  /// Components of WGMMA stand behind the threads, those of slots behind them.
  uint32_t first_slot() const { return num_threads + num_ctas * warpgroups_per_cta(); }
  /// The thread that an epoch's component belongs to, or that has issued the operation.
  uint32_t thread_of(const Epoch& epoch) const;
  /// The component of a CTA's first thread.
  uint32_t first_of(uint32_t rank) const { return rank * warps_per_cta * kWarpSize; }
};

/// fence.proxy.tensormap::generic.acquire of one map by some lanes: what they knew.
struct TensorMapAcquire {
  Epoch epoch;
  Release acquired;
};

}  // namespace pykernels::emulator
