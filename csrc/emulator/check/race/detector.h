// The race detector: follows every access and every synchronisation of a run, and reports accesses
// that happens-before does not order. The emulator's README states the rules.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/check/race/agents.h"
#include "emulator/machine/memory.h"
#include "emulator/memory_model.h"
#include "emulator/program.h"
#include "emulator/report.h"

namespace pykernels::emulator {

class AsyncOperation;
class Cta;
class Machine;
class Mbarrier;
class Warp;
struct Cluster;
struct Grid;
struct NamedBarrier;

/// Spaces that a proxy fence is for.
struct ProxyFence {
  bool shared = false;
  bool global = false;
  bool tensor_map = false;
};

/// A load, store or atomic of a warp's active lanes.
struct ThreadAccess {
  Space space = Space::kGlobal;  // kGeneric: each address tells
  bool generic = false;          // addresses are generic ones (or .shared::cluster)
  bool row = false;  // lane i's bytes follow lane i - 1's; only the first address counts
  AccessKind kind = AccessKind::kRead;
  MemoryOrder order;
  uint32_t bytes = 0;
  uint32_t scalar_shift = 0;  // of strong accesses: log2 of the bytes of a scalar
  bool reduction = false;     // an atomic without a result
  LaneMask failed = 0;        // lanes whose compare-and-swap has only read
  LaneMask active = 0;
  const uint64_t* addresses = nullptr;

  AccessKind kind_of(int lane) const {
    return (failed >> lane & 1) != 0 ? AccessKind::kRead : kind;
  }
  uint64_t address(int lane) const {
    return row ? addresses[0] + uint64_t{bytes} * static_cast<uint32_t>(lane) : addresses[lane];
  }
};

class RaceDetector {
 public:
  explicit RaceDetector(Machine& machine) : machine_(machine) {}

  // ---- the life of clusters and threads ----
  void start(Cluster& cluster);
  /// The lanes are about to end.
  void end_lanes(Warp& warp, LaneMask lanes);
  /// All threads of the CTA have ended: nothing else may reach its shared memory after that.
  void end(Cta& cta);

  // ---- accesses of threads ----
  void access(Warp& warp, const Instruction& inst, const ThreadAccess& access);
  /// One lane reads a tensor map through its own proxy, before an operation that it issues.
  void read_tensor_map(Warp& warp, const Instruction& inst, int lane, uint64_t generic_address);
  /// One lane reads or writes consecutive bytes.
  void access_range(Warp& warp, const Instruction& inst, int lane, uint64_t generic_address,
                    uint32_t bytes, AccessKind kind);

  // ---- asynchronous operations ----
  /// A copy that signals an mbarrier: an agent of its own. `multicast`: ranks of the CTAs that it
  /// writes to and signals each apart; empty where there is one destination.
  void issue_signalling(AsyncOperation& operation, Warp& warp, const Instruction& inst, int lane,
                        bool async_proxy, std::span<const uint32_t> multicast);
  /// A copy of the lane's bulk groups.
  void issue_in_bulk_group(AsyncOperation& operation, Warp& warp, const Instruction& inst,
                           int lane);
  /// A lane's share of a cp.async.
  std::shared_ptr<AgentRaces> issue_copy(Warp& warp, const Instruction& inst, int lane);
  /// A warp's share of a WGMMA; `number`: the operation's in its warpgroup, from 1.
  void issue_wgmma(AsyncOperation& operation, Warp& warp, const Instruction& inst, uint64_t number);
  /// Makes this the agent that async_shared and async_global speak of; returns the one before.
  AgentRaces* set_current(AgentRaces* agent);
  void async_shared(Cta& cta, uint32_t offset, uint32_t bytes, AccessKind kind);
  void async_global(uint64_t address, uint64_t bytes, AccessKind kind);
  /// The operation signals the mbarrier of that CTA: before it does.
  void complete_tx(const AgentRaces& agent, Mbarrier& mbarrier, const Cta& owner);
  /// The lane has waited for these: their results, or only for their sources to have been read.
  void wait_for(Warp& warp, LaneMask lanes, std::span<const AgentRaces* const> agents,
                bool only_sources);

  // ---- synchronisation of threads ----
  void warp_sync(Warp& warp, LaneMask lanes);
  /// All lanes meet at wgmma.fence, for which their registers must hold what they have loaded.
  void registers_fenced(Warp& warp);
  void barrier_arrive(Warp& warp, NamedBarrier& barrier, LaneMask lanes);
  void barrier_wait(Warp& warp, NamedBarrier& barrier, uint64_t generation, LaneMask lanes);
  void cluster_arrive(Warp& warp, LaneMask lanes, Semantics semantics);
  void cluster_wait(Warp& warp, LaneMask lanes);
  void mbarrier_init(Warp& warp, const Instruction& inst, int lane, Mbarrier& mbarrier);
  /// Any use by threads, before what it does; `owner` is the CTA that the mbarrier lies in.
  void mbarrier_use(Warp& warp, const Instruction& inst, LaneMask lanes, const Cta& owner,
                    uint32_t offset, const Mbarrier& mbarrier);
  void mbarrier_arrive(Warp& warp, int lane, Cta& owner, Mbarrier& mbarrier, MemoryOrder order);
  /// The lanes have waited for the phase of that number.
  void mbarrier_wait(Warp& warp, LaneMask lanes, Mbarrier& mbarrier, uint64_t phase,
                     MemoryOrder order);
  /// `sequential`: fence.sc.
  void fence(Warp& warp, LaneMask lanes, Semantics semantics, Scope scope, bool sequential);
  void fence_proxy(Warp& warp, LaneMask lanes, ProxyFence spaces);
  /// fence.proxy.tensormap::generic.acquire of the map at each lane's generic address.
  void acquire_tensor_map(Warp& warp, const Instruction& inst, LaneMask lanes, Scope scope,
                          const uint64_t* addresses);
  void fence_mbarrier_init(Warp& warp, LaneMask lanes);
  /// `before`: null where the launch before is none of this run.
  void grid_wait(Warp& warp, LaneMask lanes, const Grid* before);
  /// Those of the lanes that know the grid to be over.
  LaneMask lanes_behind(const Warp& warp, LaneMask lanes, const Grid* before) const;

  // ---- clusters that ran apart ----
  /// Takes over what the clusters of a slice did in global memory, and reports what conflicts with
  /// those of the slices before.
  void absorb(RaceDetector& slice, const MachineLaunch& launch);

 private:
  /// An access as it is checked.
  struct Access {
    Epoch epoch;
    std::span<const View> views;
    bool writes = false;
    Layer proxy = Layer::kKnown;  // another: an earlier generic write needs its fence
    Cta* owner = nullptr;         // of shared memory
    uint64_t tensor_map = 0;      // key of the map that is read through its proxy
  };
  enum class Verdict : uint8_t { kOrdered, kUnordered, kNeedsProxyFence, kNonCoherent };

  // access.cpp
  Cta* owner_of(Warp& warp, const ThreadAccess& access, uint64_t* address) const;
  bool access_lines(Warp& warp, const Instruction& inst, const ThreadAccess& access);
  void access_line(Warp& warp, Line& line, const Access& access, uint64_t address,
                   uint32_t bytes_per_lane);
  void access_lane(Warp& warp, const Instruction& inst, const ThreadAccess& access, int lane);
  void access_same(Warp& warp, const Instruction& inst, const ThreadAccess& access);
  void range(const Access& access, uint64_t address, uint64_t bytes);
  void line_range(Line& line, const Access& access, uint64_t line_address, uint32_t begin,
                  uint32_t end);
  void cell(Cell& cell, const Access& access, uint64_t address);
  Line& line_of(const Access& access, uint64_t address);
  void touch(Cta& owner, const Epoch& epoch, const View& view);
  bool has_started(const View& view, const Cta& owner, const Epoch& epoch) const;
  Epoch thread_epoch(const Warp& warp, const Instruction& inst, LaneMask lanes,
                     const ThreadAccess& access) const;

  // order.cpp
  Verdict judge(const Epoch& earlier, bool earlier_writes, const Access& access) const;
  bool knows(const View& view, const Epoch& epoch, Layer layer) const;
  bool both_strong(const Epoch& a, const Epoch& b) const;
  bool knows_any(const View& view, const Epoch& epoch) const;
  bool observed(const Cell& cell, const Access& access) const;
  Place place_of(const Epoch& epoch) const;
  bool has_other_stripe(const Cell& cell, const Access& access) const;
  bool supersedes(const Access& access, const Epoch& earlier) const;
  bool acquired_map(const Epoch& write, const Access& access) const;
  void note_read(Cell& cell, const Access& access);
  void note_reader(ReadSet& readers, const Access& access);
  void drop_superseded(ReadSet& readers, const Access& access);
  void clear_readers(Cell& cell);
  Epoch make_read_set(ReadSet readers);
  void free_read_set(uint32_t index);
  void split(Line& line, uint32_t shift);
  /// The cell's readers since its last write.
  std::span<const Epoch> readers(const Cell& cell) const;
  /// Those of them that are of the same warp or agent.
  std::span<const Epoch> readers(const Cell& cell, const Epoch& of) const;

  // sync.cpp
  View view(const Warp& warp, int lane) const;
  void set_known(Warp& warp, LaneMask lanes, const KnowledgeRef& known);
  void release_into(Warp& warp, LaneMask lanes, SyncClock& clock, bool only_executed);
  void acquire_from(Warp& warp, LaneMask lanes, SyncClock& clock, const KnowledgeRef& released,
                    bool only_executed);
  Release release_of(const Warp& warp, int lane, Scope scope) const;
  LaneFences& fences(Warp& warp, int lane);
  void share_fences(Warp& warp, LaneMask lanes);
  void acquire_fences(Warp& warp, LaneMask lanes, Scope scope);
  KnowledgeRef acquire_seen(Warp& warp, int lane, Scope scope, bool sequential);

  // async.cpp
  std::shared_ptr<AgentRaces> make_agent(Warp& warp, const Instruction& inst, int lane,
                                         bool async_proxy);
  uint32_t add_slots(ClusterRaces& cluster, uint32_t owner, uint32_t count);
  AgentEvent take_slot(ClusterRaces& cluster, uint32_t thread, const View& view);

  // locations.cpp
  void synchronise(Warp& warp, int lane, const Cta* owner, uint64_t address,
                   const ThreadAccess& access);
  void acquire_location(Warp& warp, int lane, uint64_t key, const Location* location,
                        MemoryOrder order);
  void release_location(Warp& warp, int lane, uint64_t key, bool anew, MemoryOrder order);
  void forget_location(const Access& access, uint64_t address, const Epoch& flag);

  // merge.cpp
  void absorb_line(RaceDetector& slice, Line& line, uint64_t address, uint32_t offset);
  void absorb_cell(const RaceDetector& slice, const Cell& cell, Cell& kept, uint64_t address,
                   uint32_t offset);
  void keep_reader(Cell& kept, const Epoch& read);

  // findings.cpp
  void report(const Access& access, const Epoch& earlier, bool earlier_writes, Verdict verdict,
              uint64_t address);
  void report_pair(const std::string& kind, const std::string& message, const Epoch& first,
                   const Epoch* second);
  Site site_of(const Epoch& epoch) const;
  std::string memory_of(const Access& access, uint64_t address) const;
  std::string agent_of(const Epoch& epoch) const;
  const Instruction& instruction_of(const Epoch& epoch) const;
  ClusterRaces& cluster_of(const Epoch& epoch) const { return *clusters_[epoch.cluster]; }

  Machine& machine_;
  std::vector<std::unique_ptr<ClusterRaces>> clusters_;  // by serial number
  GlobalShadow global_;
  std::vector<ReadSet> read_sets_;
  std::vector<uint32_t> free_read_sets_;
  size_t num_readers_ = 0;                                                   // in all sets
  std::unordered_map<uint64_t, Location> locations_;                         // by location_key
  uint64_t num_versions_ = 0;                                                // of locations
  std::unordered_map<uint64_t, std::vector<TensorMapAcquire>> tensor_maps_;  // by tensor_map_key
  std::map<std::array<uint64_t, 3>, size_t> reported_;  // pairs of instructions: their finding
  AgentRaces* current_ = nullptr;
};

/// `body(known, lanes)` for the lanes of each distinct knowledge.
template <typename Body>
void for_knowledge(WarpRaces& races, LaneMask lanes, Body body) {
  if (races.uniform) {
    body(races.known[0], lanes);
    return;
  }
  while (lanes != 0) {
    const KnowledgeRef known = races.known[static_cast<size_t>(__builtin_ctz(lanes))];
    LaneMask same = 0;
    for (LaneMask rest = lanes; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      if (races.known[static_cast<size_t>(lane)] == known) same |= 1u << lane;
    }
    body(known, same);
    lanes &= ~same;
  }
}

/// The shared or global location that flags of a size and their releases are kept under.
uint64_t location_key(const Cta* owner, uint64_t address, uint32_t scalar_shift);
/// The same of a tensor map, which is read as a whole.
inline uint64_t tensor_map_key(const Cta* owner, uint64_t address) {
  return location_key(owner, address, 0);
}

}  // namespace pykernels::emulator
