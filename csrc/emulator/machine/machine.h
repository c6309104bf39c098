// The machine: grids with their resident clusters, the scheduler, the asynchronous queue, the
// report.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/launch.h"
#include "emulator/check/run_past.h"
#include "emulator/machine/async.h"
#include "emulator/machine/cta.h"
#include "emulator/machine/footprint.h"
#include "emulator/machine/memory.h"
#include "emulator/machine/poll_watch.h"
#include "emulator/machine/pool.h"
#include "emulator/machine/random.h"
#include "emulator/program.h"
#include "emulator/report.h"
#include "emulator/trace.h"

namespace pykernels::emulator {

/// Who runs next. kRandom: one cluster at a time, any of its warps, long turns. kPriority: of all
/// resident warps the one of highest priority, drawn from the seed, until a change point.
enum class Schedule : uint8_t { kRandom, kPriority };

struct MachineOptions {
  int num_sms = 132;  // of each rank
  uint64_t seed = 0;
  Completion completion = Completion::kLate;
  Schedule schedule = Schedule::kRandom;
  uint32_t num_change_points = 3;  // kPriority: times at which the running warp falls behind
  uint64_t expected_steps = 0;     // kPriority: change points are drawn below; 0: unknown
  bool record_trace = false;
  std::shared_ptr<const Trace> trace;  // replayed, in place of a schedule; then lowest warps first
  bool check_memory = true;
  bool check_init = true;
  bool check_race = true;
  bool check_sync = true;
  uint64_t max_warp_instructions = 1ull << 40;  // then the launch is ended as hung
  uint32_t num_threads = 0;    // at most so many run a grid of independent clusters; 0: all cores
  std::function<void()> poll;  // called now and then; may throw to end the launch (Ctrl-C)

  /// num_threads, or the cores that the process may use.
  uint32_t threads() const;
};

class RaceDetector;
class RankTraffic;

/// A launch as the machine takes it: the program, shape, and parameter block.
struct MachineLaunch {
  std::shared_ptr<const LoadedModule> module;  // keeps the program alive
  const Program* program = nullptr;
  Dim3 grid, block, cluster;
  uint32_t dynamic_shared_bytes = 0;
  uint32_t registers = 0;               // per thread at launch; 0: unknown
  bool programmatic_dependent = false;  // on a launch before it in its stream
  bool follows_list = true;             // that is one before it in the list, if any
  uint32_t rank = 0;          // the GPU: others have other SMs and synchronise at sys scope
  uint32_t stream = 0;        // of the rank
  std::vector<size_t> after;  // launches before it in the list that end before it starts
  std::vector<uint8_t> parameters;
  std::vector<Allocation> memory;
  uint64_t first_cluster = 0;  // clusters of the grid that run, where not all do; to end_cluster
  uint64_t end_cluster = UINT64_MAX;
};

/// A launch in execution. Clusters become resident in the order of their index, as SMs allow. Its
/// Waitable is its end.
struct Grid : Waitable {
  int index = 0;
  MachineLaunch launch;
  Grid* prerequisite = nullptr;  // griddepcontrol.wait waits for its end
  std::vector<Grid*> after;      // have ended before it starts
  // By index: launches that have ended when this one has.
  std::shared_ptr<const std::vector<bool>> precedents;
  uint32_t cluster_size = 1;
  uint32_t ctas_per_sm = 1;
  uint64_t num_clusters = 0;  // those below first_cluster, which do not run, count as finished
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

/// What the priority schedule and replays keep; see priority_schedule.cpp.
struct PriorityState {
  std::vector<uint64_t> change_points;  // in Counters::visible_instructions, the next one last
  int64_t lowest = 0;                   // given to a warp that falls behind; descends
  const Warp* running = nullptr;        // the warp of the last turn, if its cluster is resident
  uint64_t run_length = 0;              // its instructions since something else had a turn
  size_t next_step = 0;                 // of the trace that is replayed
};

/// The instruction as a finding shows it, executed by a thread of the CTA (-1: no one thread).
Site make_site(const MachineLaunch& launch, const Instruction& inst, int grid,
               const std::array<uint32_t, 3>& ctaid, int thread);

/// Deterministic: the same launches, inputs and options give the same run.
class Machine {
 public:
  /// `pool`: of the caller, to use in place of an own one.
  Machine(const MachineOptions& options, std::vector<MachineLaunch> launches,
          PagePool* pool = nullptr);
  ~Machine();

  /// Runs all grids to their end. Throws EmulationError where that is not possible.
  Report run();

  // ---- of a slice of clusters, for the whole grid ----
  const Report& report() const { return report_; }
  uint64_t instructions() const { return instructions_; }
  bool deadlocked() const { return deadlocked_; }
  std::unique_ptr<RaceDetector> take_races();
  /// Sectors of global memory that were read or written.
  Footprint take_footprint(AccessKind kind) {
    return std::move(kind == AccessKind::kRead ? read_ : written_);
  }

  // ---- for handlers ----
  const MachineOptions& options() const { return options_; }
  Random& random() { return random_; }
  AsyncQueue& async() { return current_->async; }  // of the running cluster
  Counters& counters() { return report_.counters; }
  /// Counts an access of the running cluster to global memory: its bytes, and the sectors that they
  /// lie in.
  void count_global(uint64_t address, uint64_t bytes, AccessKind kind) {
    count_global(address, bytes, kind, bytes);
  }
  /// The same where lanes share bytes: `asked` of them altogether.
  void count_global(uint64_t address, uint64_t bytes, AccessKind kind, uint64_t asked) {
    if (traffic_ != nullptr) count_traffic(address, bytes, kind, asked);
    if (kind != AccessKind::kWrite) {
      report_.counters.global_bytes_read += asked;
      read_.add(address, bytes);
    }
    if (kind != AccessKind::kRead) {
      report_.counters.global_bytes_written += asked;
      written_.add(address, bytes);
    }
  }
  const Allocations& allocations() const { return allocations_; }
  /// %clock64, %globaltimer: advances with instructions, and by leaps while nothing else happens.
  uint64_t clock() { return instructions_ + clock_lead_++; }
  Warp& current_warp() { return *current_warp_; }
  PagePool& pool() { return *pool_; }

  Site site(const Warp& warp, const Instruction& inst, int lane) const;
  /// " of launch 1 on rank 1" where several run together, else nothing.
  std::string launch_text(int grid) const;
  std::vector<Finding>& findings() { return report_.findings; }
  /// Records a finding about the instruction; `lane` -1 for the whole warp. Goes on.
  void report(const std::string& kind, const std::string& message, const Warp& warp,
              const Instruction& inst, int lane = -1);
  /// The same about two instructions: the one that is at fault, and the one it collides with.
  void report(const std::string& kind, const std::string& message, const Party& first,
              const Party& second);
  /// The same, put together by the caller; the sources of its sites are filled in.
  void report(Finding finding);
  /// The first form, and ends the launch: throws EmulationError.
  [[noreturn]] void fail(const std::string& kind, const std::string& message, const Warp& warp,
                         const Instruction& inst, int lane = -1);
  [[noreturn]] void fail(const std::string& kind, const std::string& message);
  void note(const std::string& text);

  /// The CTA and offset that a 32-bit shared::cluster address of this CTA names; fails with a
  /// finding if the rank does not exist or its CTA has exited.
  Cta& cluster_cta(Warp& warp, const Instruction& inst, int lane, uint32_t shared_address,
                   uint32_t* offset);

  RaceDetector* races() { return races_.get(); }  // nullptr where the race check is off
  void add_runnable(Warp& warp);
  /// A decision of the scheduler: kept where the run is recorded.
  void record(const TraceStep& step) {
    if (options_.record_trace) report_.trace.push_back(step);
  }
  void record_run(const Warp& warp, uint64_t count);
  /// Of a new warp or asynchronous operation: positive, from the seed.
  int64_t draw_priority() { return static_cast<int64_t>(random_.next() >> 2) + 1; }
  bool prioritised() const {
    return options_.schedule == Schedule::kPriority || options_.trace != nullptr;
  }
  /// Something has happened that polling warps may wait for: the running cluster keeps its turn
  /// longer.
  void progress();
  /// An arrival or the like: neither a byte written nor an event, but polls may find it.
  void note_change() { ++num_changes_; }
  Reachability& reachability() { return reachability_; }
  bool has_note(const std::string& text) const;

 private:
  void check_launch(const Grid& grid);
  Grid* last_in_stream(const MachineLaunch& launch) const;
  void find_precedents(Grid& grid) const;
  void take_slice(Grid& grid);
  void start_cluster(Grid& grid);
  void retire(Cluster& cluster);
  void end_ctas(Cluster& cluster);
  bool may_start(const Grid& grid) const;
  Grid* next_grid();
  void start_all();
  bool select_cluster();
  bool rotate();
  bool run_random_turn();
  uint64_t run_warp(Warp& warp, uint64_t budget);
  void complete_after_turn(Cluster& cluster);
  // priority_schedule.cpp
  void draw_change_points();
  int64_t first_priority();
  bool has_ended();
  bool run_priority_turn();
  void complete_late();
  void demote(Warp& warp);
  bool complete_any();
  bool complete_before(const Warp* warp);
  Warp* take_first_warp();
  bool take(Warp& warp);
  bool replay_step();
  bool replay(const TraceStep& step);
  void count_traffic(uint64_t address, uint64_t bytes, AccessKind kind, uint64_t asked);
  void count_footprint();
  [[noreturn]] void end_with(Finding finding);
  [[noreturn]] void fail_deadlock();
  [[noreturn]] void fail_hung(const std::string& reason);
  [[noreturn]] void fail_polling(const std::string& reason);
  void check_liveness();
  void check_polling();

  MachineOptions options_;
  Random random_;
  PriorityState priorities_;
  PagePool own_pool_;  // outlives the warps of grids_
  PagePool* pool_;
  Allocations allocations_;
  Report report_;
  Footprint read_;  // of all grids
  Footprint written_;
  std::unique_ptr<RankTraffic> traffic_;  // where several ranks run together
  std::vector<std::unique_ptr<Grid>> grids_;
  std::unique_ptr<RaceDetector> races_;
  std::vector<Cluster*> active_;  // started and not ended, in the order of their turns
  Cluster* current_ = nullptr;
  Warp* current_warp_ = nullptr;
  uint64_t current_budget_ = 0;  // of its turn
  uint64_t instructions_ = 0;
  uint64_t clock_lead_ = 0;  // of the clock, over instructions
  uint64_t next_poll_ = 0;
  uint64_t num_events_ = 0;     // completions, arrivals of whole barriers, ends of threads
  uint64_t num_changes_ = 0;    // arrivals at barriers and mbarriers, clusters started
  uint64_t last_activity_ = 0;  // of events and bytes written, when it last changed
  uint64_t active_at_ = 0;      // instructions at that time
  bool deadlocked_ = false;
  uint64_t quiet_activity_ = 0;  // with changes, when it last changed
  uint64_t quiet_since_ = 0;     // instructions at that time
  PollWatch poll_watch_;
  Reachability reachability_;
};

}  // namespace pykernels::emulator
