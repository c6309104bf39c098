// A CTA with its shared memory, barriers and warps, and the cluster it belongs to.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "emulator/machine/async.h"
#include "emulator/machine/mbarrier.h"
#include "emulator/machine/warp.h"

namespace pykernels::emulator {

struct Cluster;
struct Grid;

/// One of the 16 named barriers of bar.sync / bar.arrive.
struct NamedBarrier : Waitable {
  uint32_t expected = 0;   // threads, set by the first arrival of a generation
  uint32_t arrived = 0;
  uint64_t generation = 0;
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
  uint32_t rank = 0;                       // in the cluster
  std::array<uint32_t, 3> ctaid = {};

  std::vector<uint8_t> shared;             // static, then dynamic; poisoned with 0xff
  std::vector<uint8_t> shared_initialised; // a byte per byte; empty if the init check is off
  std::unordered_map<uint32_t, std::unique_ptr<Mbarrier>> mbarriers;  // by offset in `shared`
  std::array<NamedBarrier, 16> barriers;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<std::unique_ptr<WarpgroupState>> warpgroups;   // made on first use
  std::map<uint32_t, AsyncGroups> bulk_groups;               // by thread
  std::map<uint32_t, AsyncGroups> copy_groups;               // cp.async, by thread
  uint32_t num_threads = 0;
  uint32_t register_pool = 0;              // setmaxnreg accounting: registers of the CTA not in use
  std::vector<uint32_t> warp_registers;    // per warp, a thread's share
  uint32_t live_warps = 0;
  bool exited = false;

  /// The mbarrier at this offset, or nullptr if none was initialised there.
  Mbarrier* find_mbarrier(uint32_t offset);
};

struct Cluster : Waitable {
  std::vector<std::unique_ptr<Cta>> ctas;  // by rank
  std::array<uint32_t, 3> cluster_ctaid = {};
  uint32_t arrived = 0;                    // threads at barrier.cluster
  uint64_t generation = 0;
  bool finished() const;
};

}  // namespace pykernels::emulator
