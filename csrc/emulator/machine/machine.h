// The machine: grids with their resident clusters, the scheduler, the asynchronous queue, the report.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/launch.h"
#include "emulator/check/observer.h"
#include "emulator/machine/async.h"
#include "emulator/machine/cta.h"
#include "emulator/machine/memory.h"
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
};

/// A launch as the machine takes it: the program, shape, and parameter block.
struct MachineLaunch {
  std::shared_ptr<const LoadedModule> module;  // keeps the program alive
  const Program* program = nullptr;
  Dim3 grid, block, cluster;
  uint32_t dynamic_shared_bytes = 0;
  bool programmatic_dependent = false;
  std::vector<uint8_t> parameters;
  std::vector<Allocation> memory;
};

/// A launch in execution. Clusters become resident in the order of their index, as SMs allow.
struct Grid {
  int index = 0;
  MachineLaunch launch;
  uint32_t next_cluster = 0;
  uint32_t num_clusters = 0;
  uint32_t finished_clusters = 0;
  uint32_t max_resident_clusters = 0;
  std::vector<std::unique_ptr<Cluster>> resident;
};

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
  AsyncQueue& async() { return async_; }
  Counters& counters() { return report_.counters; }
  const Allocations& allocations() const { return allocations_; }
  uint64_t clock() const { return instructions_; }  // %clock64: advances with executed instructions

  Site site(const Warp& warp, const Instruction& inst, int lane) const;
  /// Records a finding about the instruction; `lane` -1 for the whole warp. Goes on.
  void report(const std::string& kind, const std::string& message, const Warp& warp,
              const Instruction& inst, int lane = -1);
  /// The same, and ends the launch: throws EmulationError.
  [[noreturn]] void fail(const std::string& kind, const std::string& message, const Warp& warp,
                         const Instruction& inst, int lane = -1);
  [[noreturn]] void fail(const std::string& kind, const std::string& message);
  void note(const std::string& text);

  /// The CTA and offset that a 32-bit shared::cluster address of this CTA names; fails with a finding if
  /// the rank does not exist or its CTA has exited.
  Cta& cluster_cta(Warp& warp, const Instruction& inst, uint32_t shared_address, uint32_t* offset);

  bool observed() const { return !observers_.empty(); }
  void notify(const MemoryEvent& event);
  void notify(const SyncEvent& event);
  void add_runnable(Warp& warp);

 private:
  void fill_resident(Grid& grid);
  void start_cluster(Grid& grid);
  void retire(Grid& grid);
  Warp* pick_warp();
  [[noreturn]] void fail_deadlock();

  MachineOptions options_;
  Random random_;
  AsyncQueue async_;
  Allocations allocations_;
  Report report_;
  std::vector<std::unique_ptr<Grid>> grids_;
  std::vector<std::unique_ptr<Observer>> observers_;
  std::vector<Warp*> runnable_;
  uint64_t instructions_ = 0;
};

}  // namespace pykernels::emulator
