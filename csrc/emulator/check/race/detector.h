// The race detector: follows every access and every synchronisation of a run, and reports accesses
// that happens-before does not order. check/race/README of the emulator's README states the rules.
#pragma once

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
  /// A load, store or atomic of the active lanes; pointers as `access` has resolved them.
  void access(Warp& warp, const Instruction& inst, const uint64_t* addresses,
              uint8_t* const* pointers, uint32_t bytes, AccessKind kind, LaneMask active);
  /// An access of one lane to a place that is known already: tensor maps.
  void access_range(Warp& warp, const Instruction& inst, int lane, uint64_t generic_address,
                    uint32_t bytes, AccessKind kind, bool tensor_map_proxy);

  // ---- asynchronous operations ----
  /// A copy that signals an mbarrier: an agent of its own.
  void issue_signalling(AsyncOperation& operation, Warp& warp, int lane, bool async_proxy);
  /// A copy of the lane's bulk groups, or of its cp.async groups.
  void issue_in_bulk_group(AsyncOperation& operation, Warp& warp, int lane);
  uint32_t issue_copy(Warp& warp, int lane);
  /// A warp's share of a WGMMA; `number`: the operation's in its warpgroup, from 0.
  void issue_wgmma(AsyncOperation& operation, Warp& warp, const Instruction& inst,
                   uint64_t number);
  /// Makes the operation the one that async_access speaks of; returns the one before.
  AgentRaces* set_current(AgentRaces* agent);
  void async_shared(Cta& cta, uint32_t offset, uint32_t bytes, AccessKind kind);
  void async_global(uint64_t address, uint64_t bytes, AccessKind kind);
  /// A lane's piece of a cp.async takes effect.
  void copy_access(Warp& warp, const Instruction& inst, int lane, uint32_t number,
                   const View& view, Cta& cta, uint32_t offset, uint32_t bytes, uint64_t from,
                   uint32_t from_bytes);
  View view(Warp& warp, int lane) const;

  void complete_tx(const AsyncOperation& operation, Mbarrier& mbarrier);
  void copies_arrive(Warp& warp, int lane, uint32_t number, Mbarrier& mbarrier);
  void wait_bulk(Warp& warp, int lane, uint32_t number, bool only_sources);
  void wait_copies(Warp& warp, int lane, uint32_t number);
  void wait_wgmma(Warp& warp, uint64_t number);

  // ---- synchronisation of threads ----
  void warp_sync(Warp& warp, LaneMask lanes);
  void barrier_arrive(Warp& warp, NamedBarrier& barrier, LaneMask lanes);
  void barrier_wait(Warp& warp, NamedBarrier& barrier, uint64_t generation, LaneMask lanes);
  void cluster_arrive(Warp& warp, LaneMask lanes, Semantics semantics);
  void cluster_wait(Warp& warp, LaneMask lanes);
  void mbarrier_init(Warp& warp, const Instruction& inst, int lane, Cta& owner, uint32_t offset,
                     Mbarrier& mbarrier);
  /// Any use by a thread, before what it does; `owner` is the CTA that the mbarrier lies in.
  void mbarrier_use(Warp& warp, const Instruction& inst, int lane, Cta& owner, uint32_t offset,
                    Mbarrier& mbarrier);
  void mbarrier_arrive(Warp& warp, const Instruction& inst, int lane, Cta& owner,
                       Mbarrier& mbarrier);
  void mbarrier_wait(Warp& warp, const Instruction& inst, LaneMask lanes, Mbarrier& mbarrier);
  void fence(Warp& warp, LaneMask lanes, Semantics semantics, Scope scope);
  void fence_proxy(Warp& warp, LaneMask lanes, ProxyFence spaces);
  void fence_mbarrier_init(Warp& warp, LaneMask lanes);
  void grid_wait(Warp& warp, LaneMask lanes, const Grid& before);

  /// Conflicts between the clusters of a grid that ran apart: they order nothing among them.
  static void merge(Report& report, std::vector<std::unique_ptr<RaceDetector>>& slices);

 private:
  friend struct RaceMerge;

  /// An access as it is checked.
  struct Access {
    Epoch epoch;
    std::span<const View> views;
    bool writes = false;
    Layer proxy = Layer::kKnown;  // kAsyncShared, ...: an earlier generic write needs a fence
    uint32_t bytes = 0;
    Cta* owner = nullptr;  // of shared memory
  };
  enum class Verdict : uint8_t { kOrdered, kUnordered, kNeedsProxyFence, kNonCoherent };

  // access.cpp
  bool striped_access(Warp& warp, const Instruction& inst, uint8_t* const* pointers,
                      uint32_t bytes, AccessKind kind);
  void lane_accesses(Warp& warp, const Instruction& inst, const uint64_t* addresses,
                     uint8_t* const* pointers, uint32_t bytes, AccessKind kind, LaneMask active);
  void range(const Access& access, uint64_t address, uint64_t bytes);
  void line_range(Line& line, const Access& access, uint64_t line_address, uint32_t begin,
                  uint32_t end);
  void cell(Cell& cell, const Access& access, uint64_t address);
  Verdict judge(const Epoch& earlier, bool earlier_writes, const Access& access) const;
  bool knows(const View& view, const Epoch& epoch, Layer layer) const;
  bool needs_split(const Cell& cell, const Access& access) const;
  bool supersedes(const Access& access, const Epoch& earlier) const;
  void note_read(Cell& cell, const Access& access);
  void clear_readers(Cell& cell);
  Line& line_of(const Access& access, uint64_t address);
  void touch_remote(Cta& owner, const Epoch& epoch);
  Epoch thread_epoch(const Warp& warp, const Instruction& inst, LaneMask lanes) const;

  // sync.cpp
  void set_known(Warp& warp, LaneMask lanes, const KnowledgeRef& known);
  void release_into(Warp& warp, LaneMask lanes, SyncClock& clock, bool only_executed);
  void acquire_from(Warp& warp, LaneMask lanes, SyncClock& clock, const KnowledgeRef& released,
                    bool only_executed);
  KnowledgeRef snapshot(const Warp& warp, int lane) const;
  /// `body(known, lanes)` for the lanes of each distinct knowledge.
  template <typename Body>
  void for_knowledge(Warp& warp, LaneMask lanes, Body body);
  LaneFences& fences(Warp& warp, int lane);
  void raise_known(Warp& warp, LaneMask lanes, std::span<const std::pair<uint32_t, uint32_t>> values);
  uint32_t add_slot(ClusterRaces& cluster, uint32_t owner);

  // locations.cpp
  void strong_access(Warp& warp, const Instruction& inst, int lane, uint64_t key, AccessKind kind);
  void forget_location(uint64_t key, uint64_t bytes);

  // findings.cpp
  void report(const Access& access, const Epoch& earlier, bool earlier_writes, Verdict verdict,
              uint64_t address);
  void report_pair(const std::string& message, const Epoch& later, const Epoch& earlier);
  Site site_of(const Epoch& epoch) const;
  std::string place_of(const Access& access, uint64_t address) const;
  std::string agent_of(const Epoch& epoch) const;

  Machine& machine_;
  std::vector<std::unique_ptr<ClusterRaces>> clusters_;  // by serial number, from 1
  GlobalShadow global_;
  std::vector<ReadSet> read_sets_;
  std::vector<uint32_t> free_read_sets_;
  std::unordered_map<uint64_t, std::vector<Release>> locations_;
  std::map<std::pair<uint64_t, uint64_t>, size_t> known_pairs_;  // of instructions, to findings
  AgentRaces* current_ = nullptr;
};

}  // namespace pykernels::emulator
