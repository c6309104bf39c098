// A CTA with its shared memory, barriers and warps, and the cluster it belongs to.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "emulator/machine/async.h"
#include "emulator/machine/mbarrier.h"
#include "emulator/machine/warp.h"

namespace pykernels::emulator {

class SyncClock;
struct Cluster;
struct ClusterRaces;
struct CtaRaces;
struct Grid;

/// One of the 16 named barriers of bar.sync / bar.arrive.
struct NamedBarrier : Waitable {
  uint32_t expected = 0;  // threads, set by the first arrival of a generation; 0: all that are live
  uint32_t arrived = 0;   // threads; lanes that do not exist or have ended count with their warp
  uint32_t warps = 0;     // that have arrived with a lane, by bit
  std::array<LaneMask, 32> lanes =
      {};                     // of each such warp: arrived, or counted because they do not run
  uint32_t participants = 0;  // bar.red: threads that voted, and for how many the predicate held
  uint32_t votes = 0;
  uint32_t last_participants = 0;  // of the generation before
  uint32_t last_votes = 0;
  uint64_t generation = 0;
  Party last;                        // who arrived last, for findings
  Party counted;                     // whose count is `expected`
  bool miscounted = false;           // another count was given in this generation
  std::shared_ptr<SyncClock> clock;  // of the race detector; null where it is off
};

/// What the four warps of a warpgroup have issued of WGMMA; see isa/wgmma.cpp.
struct WarpgroupState : Waitable {
  virtual ~WarpgroupState() = default;
};

class Cta {
 public:
  Machine* machine = nullptr;
  Grid* grid = nullptr;
  Cluster* cluster = nullptr;
  uint32_t rank = 0;  // in the cluster
  std::array<uint32_t, 3> ctaid = {};

  std::vector<uint8_t> shared;              // static, then dynamic; poisoned with 0xff
  std::vector<uint8_t> shared_initialised;  // a byte per byte; empty if the init check is off
  std::map<uint32_t, std::unique_ptr<Mbarrier>> mbarriers;  // by offset in `shared`
  std::map<uint32_t, Party> invalidated;  // the last mbarrier.inval there, by offset
  std::array<NamedBarrier, 16> barriers;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<std::unique_ptr<WarpgroupState>> warpgroups;  // made on first use
  std::map<uint32_t, AsyncGroups> bulk_groups;              // by thread
  std::map<uint32_t, AsyncGroups> copy_groups;              // cp.async, by thread
  uint32_t num_threads = 0;
  uint32_t live_threads = 0;
  uint32_t register_pool = 0;            // setmaxnreg accounting: registers of the CTA not in use
  std::vector<uint32_t> warp_registers;  // per warp, a thread's share
  std::map<int, std::vector<Party>> register_changes;  // setmaxnreg in their order, by warpgroup
  std::vector<uint32_t> num_register_changes;          // per warp
  Waitable register_release;                           // woken when the pool grows
  uint32_t live_warps = 0;
  std::shared_ptr<CtaRaces> races;  // of the race detector; null where it is off
  bool launched_dependents = false;
  bool grid_waited = false;  // a thread has waited for the launch before, or learnt of its end
  bool exited = false;

  /// The mbarrier at this offset, or nullptr if none was initialised there.
  Mbarrier* find_mbarrier(uint32_t offset);
  /// The offset of the first mbarrier that lies in these bytes with any of its own.
  std::optional<uint32_t> mbarrier_within(uint32_t offset, uint32_t bytes) const;
  /// setmaxnreg: gives the warp `registers` a thread. False if the pool has not enough of them now.
  bool change_registers(int warp, uint32_t registers);
  /// Marks bytes as holding no value: 0xff, and uninitialised for the init check.
  void poison(uint32_t offset, uint32_t bytes);
  /// Named barriers: counts the lanes, and completes the generation when it is due.
  void arrive(NamedBarrier& barrier, const Warp& warp, LaneMask lanes, LaneMask votes);
  /// Lanes have ended: barriers that wait for all live threads may complete.
  void on_exit(const Warp& warp, LaneMask lanes);
};

struct Cluster : Waitable {
  std::vector<std::unique_ptr<Cta>> ctas;  // by rank
  uint64_t index = 0;                      // in the grid
  std::array<uint32_t, 3> cluster_ctaid = {};
  Grid* grid = nullptr;
  AsyncQueue async;
  ClusterRaces* races = nullptr;     // of the race detector, as is the barrier's clock; null where
  std::shared_ptr<SyncClock> clock;  // it is off
  std::vector<Warp*> runnable;
  uint32_t live_threads = 0;
  uint32_t arrived = 0;  // live threads at barrier.cluster
  uint64_t generation = 0;
  uint64_t slice = 0;             // instructions left until other clusters have their turn
  uint32_t extensions = 0;        // of the slice, because something completed
  uint64_t since_completion = 0;  // instructions while operations were in flight and none completed
  bool finished() const { return live_threads == 0; }
  /// barrier.cluster completes when all live threads have arrived.
  void complete_if_due();
};

}  // namespace pykernels::emulator
