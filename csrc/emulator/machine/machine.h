// The machine: grids with their resident clusters, the scheduler, the asynchronous queue, the
// report.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/launch.h"
#include "emulator/check/observer.h"
#include "emulator/machine/async.h"
#include "emulator/machine/cta.h"
#include "emulator/machine/footprint.h"
#include "emulator/machine/memory.h"
#include "emulator/machine/pool.h"
#include "emulator/program.h"
#include "emulator/report.h"

namespace pykernels::emulator {

struct MachineOptions {
  int num_sms = 132;
  uint64_t seed = 0;
  Completion completion = Completion::kLate;
  bool check_memory = true;
  bool check_init = true;
  bool check_sync = true;
  uint64_t max_warp_instructions = 1ull << 40;  // then the launch is ended as hung
  std::function<void()> poll;  // called now and then; may throw to end the launch (Ctrl-C)
};

/// A launch as the machine takes it: the program, shape, and parameter block.
struct MachineLaunch {
  std::shared_ptr<const LoadedModule> module;  // keeps the program alive
  const Program* program = nullptr;
  Dim3 grid, block, cluster;
  uint32_t dynamic_shared_bytes = 0;
  uint32_t registers = 0;               // per thread at launch; 0: unknown
  bool programmatic_dependent = false;  // on the launch before in the list, if there is one
  std::vector<uint8_t> parameters;
  std::vector<Allocation> memory;
};

/// A launch in execution. Clusters become resident in the order of their index, as SMs allow. Its
/// Waitable is its end.
struct Grid : Waitable {
  int index = 0;
  MachineLaunch launch;
  Grid* prerequisite = nullptr;  // griddepcontrol.wait waits for its end
  uint32_t cluster_size = 1;
  uint32_t ctas_per_sm = 1;
  uint64_t num_clusters = 0;
  uint64_t next_cluster = 0;
  uint64_t finished_clusters = 0;
  uint64_t dependents_launched =
      0;  // CTAs that ended or have executed griddepcontrol.launch_dependents
  std::vector<std::unique_ptr<Cluster>> resident;

  bool finished() const { return finished_clusters == num_clusters; }
  /// Shared memory of a CTA: static, then dynamic at the next 1024-aligned offset.
  uint32_t shared_bytes() const;
  uint32_t threads() const { return launch.block.x * launch.block.y * launch.block.z; }
  /// SMs that this many clusters occupy.
  double occupied(uint64_t clusters) const;
};

/// CTAs that one SM holds at once, at least 1. `registers` per thread, 0 if unknown.
uint32_t max_ctas_per_sm(uint32_t threads, uint32_t registers, uint32_t shared_bytes);

/// Deterministic: the same launches, inputs and options give the same trace.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x632be59bd9b4e019ull) {}
  uint64_t next();
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((next() >> 32) * bound >> 32); }
  bool one_in(uint32_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

class Machine {
 public:
  Machine(const MachineOptions& options, std::vector<MachineLaunch> launches);
  ~Machine();

  /// Runs all grids to their end. Throws EmulationError where that is not possible.
  Report run();

  // ---- for handlers ----
  const MachineOptions& options() const { return options_; }
  Random& random() { return random_; }
  AsyncQueue& async() { return current_->async; }  // of the running cluster
  Counters& counters() { return report_.counters; }
  /// Counts an access to global memory: its bytes, and the sectors that they lie in.
  void count_global(uint64_t address, uint64_t bytes, AccessKind kind);
  const Allocations& allocations() const { return allocations_; }
  uint64_t clock() {
    return instructions_ + clock_reads_++;
  }  // %clock64: advances with instructions
  Warp& current_warp() { return *current_warp_; }
  PagePool& pool() { return pool_; }

  Site site(const Warp& warp, const Instruction& inst, int lane) const;
  /// Records a finding about the instruction; `lane` -1 for the whole warp. Goes on.
  void report(const std::string& kind, const std::string& message, const Warp& warp,
              const Instruction& inst, int lane = -1);
  /// The same, and ends the launch: throws EmulationError.
  [[noreturn]] void fail(const std::string& kind, const std::string& message, const Warp& warp,
                         const Instruction& inst, int lane = -1);
  [[noreturn]] void fail(const std::string& kind, const std::string& message);
  void note(const std::string& text);

  /// The CTA and offset that a 32-bit shared::cluster address of this CTA names; fails with a
  /// finding if the rank does not exist or its CTA has exited.
  Cta& cluster_cta(Warp& warp, const Instruction& inst, uint32_t shared_address, uint32_t* offset);

  bool observed() const { return !observers_.empty(); }
  void add_observer(std::unique_ptr<Observer> observer);
  void notify(const MemoryEvent& event);
  void notify(const SyncEvent& event);
  void add_runnable(Warp& warp);
  /// Something has happened that polling warps may wait for: the running cluster keeps its turn
  /// longer.
  void progress();

 private:
  void check_launch(const Grid& grid);
  void start_cluster(Grid& grid);
  void retire(Cluster& cluster);
  void end_ctas(Cluster& cluster);
  bool may_start(const Grid& grid) const;
  Grid* next_grid();
  bool select_cluster();
  bool rotate();
  void run_turn();
  void count_footprint();
  [[noreturn]] void end_with(Finding finding);
  [[noreturn]] void fail_deadlock();
  [[noreturn]] void fail_hung(const std::string& reason);
  void check_liveness();

  MachineOptions options_;
  Random random_;
  PagePool pool_;  // outlives the warps of grids_
  Allocations allocations_;
  Report report_;
  Footprint read_;  // of all grids
  Footprint written_;
  std::vector<std::unique_ptr<Grid>> grids_;
  std::vector<std::unique_ptr<Observer>> observers_;
  std::vector<Cluster*> active_;  // started and not ended, in the order of their turns
  Cluster* current_ = nullptr;
  Warp* current_warp_ = nullptr;
  uint64_t instructions_ = 0;
  uint64_t clock_reads_ = 0;
  uint64_t next_poll_ = 0;
  uint64_t num_events_ = 0;     // completions, arrivals of whole barriers, ends of threads
  uint64_t last_activity_ = 0;  // of events and bytes written, when it last changed
  uint64_t active_at_ = 0;      // instructions at that time
};

}  // namespace pykernels::emulator
