// A warp: 32 lanes with a register file, and one or more splits (sets of lanes at one program
// counter). Independent thread scheduling: lanes that part at a branch are separate splits until
// they meet again.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "emulator/machine/random.h"
#include "emulator/program.h"

namespace pykernels::emulator {

class Cta;
class LaneTrails;
class Machine;
class WgmmaRegisters;
struct Grid;
struct WarpRaces;

/// Something that splits wait for. Waking makes every waiting split run its instruction again.
class Waitable {
 public:
  virtual ~Waitable() = default;
  void wake_all();  // call whenever the awaited condition may hold now
  void add(Warp& warp) { waiting_.push_back(&warp); }

 private:
  std::vector<Warp*> waiting_;
};

/// What a blocked split waits for, kept until its instruction runs to its end.
struct Wait {
  enum class Kind : uint8_t {
    kNone,
    kConvergence,
    kNamedBarrier,
    kMbarrier,
    kClusterBarrier,
    kWarpgroup,
    kBulkGroup,
    kAsyncCopy,
    kGrid,
    kRegisters
  };
  Kind kind = Kind::kNone;
  Waitable* on = nullptr;    // null with kConvergence
  LaneMask convergence = 0;  // lanes that must arrive at this instruction
  uint64_t token = 0;        // the handler's: phase, generation, ...
  std::string (*describe)(const Warp& warp, const Wait& wait) = nullptr;  // for deadlock reports
  uint64_t detail[2] = {};  // for describe: address, phase, ...
};

struct Split {
  uint32_t pc = 0;
  LaneMask lanes = 0;
  bool blocked = false;
  bool resumed = false;  // the instruction at pc has blocked on a Waitable before and runs again
  bool yielded = false;  // other splits of the warp have their turn first
  uint32_t turn = 0;     // instructions left of its turn while the warp is diverged
  Wait wait;             // meaningful while blocked or resumed
};

/// One side of a finding: an instruction and who executes it; `lane` -1 for the whole warp.
struct Party {
  const Warp* warp = nullptr;
  const Instruction* instruction = nullptr;
  int lane = -1;
};

class Warp {
 public:
  Warp(Machine& machine, Cta& cta, const Program& program, int index);
  ~Warp();
  Warp(const Warp&) = delete;
  Warp& operator=(const Warp&) = delete;

  // ---- registers ----
  /// Lanes of a 32-bit (or narrower) or 64-bit operand.
  template <typename Lane>
  Lane* lanes(Slot slot) {
    return reinterpret_cast<Lane*>(base_[slot >> 31] + (slot & 0x7fffffffu));
  }
  LaneMask& mask(Slot predicate) { return *lanes<LaneMask>(predicate); }
  /// The lane's bytes of a 128-bit register.
  uint64_t* wide(Slot slot, int lane) { return lanes<uint64_t>(slot) + 2 * lane; }

  // ---- identity ----
  Machine& machine() { return machine_; }
  Cta& cta() { return cta_; }
  const Program& program() const { return program_; }
  int index() const { return index_; }  // warp in the CTA
  int warpgroup() const { return index_ / 4; }
  LaneMask live() const { return live_; }  // lanes that exist and have not ended
  Random& random() { return random_; }     // the warp's own
  uint8_t* local(int lane);                // local memory of a lane, program().local_bytes

  // ---- control, for handlers ----
  Split& split() { return splits_[current_]; }
  const Instruction& instruction() const { return program_.instructions[splits_[current_].pc]; }
  /// Sends `taken` (a subset of the split's lanes) to `target`, the rest of the split to the next
  /// instruction.
  Step branch(LaneMask taken, uint32_t target);
  /// Ends the lanes.
  Step exit(LaneMask lanes);
  /// Blocks the current split; its instruction runs again, with split().resumed set, once woken.
  Step block(const Wait& wait);
  /// True if the current split holds all live lanes of `required`. Otherwise the handler returns
  /// block_until_converged(required) and runs again when they have come together here.
  bool converged(LaneMask required) {
    if ((required & live_ & ~splits_[current_].lanes) != 0) return false;
    if ((required & ended_apart_) != 0) [[unlikely]]
      report_run_past(required);
    return true;
  }
  Step block_until_converged(LaneMask required);
  /// Where the current split and those that wait for the same lanes at instructions of this handler
  /// hold all of them: lets the others go on and is true.
  bool meet(Handler handler, LaneMask required);
  /// Lets the lanes (of the current split, not all) go on with the next instruction on their own:
  /// those that a guard keeps out of an instruction that blocks.
  void part(LaneMask lanes);
  /// For polling instructions that found nothing: at the next branch the turn passes to other
  /// splits and warps.
  void yield() { yield_ = true; }
  /// For .aligned forms: all live lanes of the warp.
  bool aligned() { return converged(kFullMask); }

  // ---- checks ----
  /// Init check, for operands that the loop does not look at (those read only under a condition):
  /// reports the register unless all lanes have written it. Nothing where the check is off.
  void check_written(const Instruction& inst, const RegisterAccess& access, LaneMask lanes);
  /// Init check, for registers that the loop does not mark as written.
  void set_written(const RegisterAccess& access, LaneMask lanes) {
    if (!written_.empty()) written_[access.register_index] |= lanes;
  }
  /// Sync check of the registers that WGMMA works on; null where it is off or there are none.
  WgmmaRegisters* wgmma_registers() { return wgmma_registers_.get(); }
  /// Lanes that have not executed griddepcontrol.wait in a launch that may overlap the one before.
  LaneMask before_grid_wait() const { return before_grid_wait_; }
  bool before_grid_wait(int lane) const { return lane < 0 || (before_grid_wait_ >> lane & 1) != 0; }
  void set_grid_waited(LaneMask lanes) { before_grid_wait_ &= ~lanes; }

  std::shared_ptr<WarpRaces> races;  // of the race detector; null where it is off

  // ---- barrier.cluster ----
  LaneMask cluster_arrived = 0;  // lanes that have arrived and not yet waited
  LaneMask cluster_parity = 0;   // of the generation that each arrived in

  // ---- for the machine ----
  uint32_t index_in_cluster() const;  // by CTA
  int64_t priority = 0;               // of the priority schedule: the highest runs
  uint64_t issued_operations = 0;     // asynchronous ones
  /// Runs until nothing can run, or `budget` warp instructions are spent. Returns those spent.
  uint64_t run(uint64_t budget);
  bool runnable() const;
  bool finished() const { return live_ == 0; }
  void wake(const Waitable* on);
  const std::vector<Split>& splits() const { return splits_; }
  std::vector<Split>& splits() { return splits_; }
  /// All that decides what its lanes do next, memory aside: registers, local memory, splits.
  std::vector<uint8_t> state() const;

 private:
  friend class Machine;

  bool select_split();
  void merge_splits();
  void finish_blocking_step(Step step);
  template <bool kChecked>
  Step execute(uint64_t limit, uint64_t* spent);
  void check_registers(const Instruction& inst, LaneMask active);
  void begin_divergence();
  void report_run_past(LaneMask required);

  Machine& machine_;
  Cta& cta_;
  const Program& program_;
  int index_;
  Random random_;
  LaneMask live_;
  size_t current_ = 0;
  std::vector<Split> splits_;
  uint32_t stop_pc_ = 0;  // where the current split may meet another
  bool yield_ = false;
  bool queued_ = false;  // in the cluster's list of runnable warps
  LaneMask before_grid_wait_ = 0;
  LaneMask ended_apart_ = 0;       // lanes that have ended while the warp was diverged
  uint32_t run_begin_ = 0;         // where the running piece of a diverged warp has begun
  uint8_t* storage_ = nullptr;     // from the machine's pool: register file
  uint8_t* local_ = nullptr;       // from the pool, on first use
  uint8_t* base_[2];               // register file, constants
  std::vector<LaneMask> written_;  // init check: lanes written, by register index; empty if off
  std::vector<uint8_t> settled_;   // by instruction: all of its registers are written in all lanes,
                                   // so that the init check has nothing left to find there
  std::unique_ptr<WgmmaRegisters> wgmma_registers_;
  std::unique_ptr<LaneTrails> trails_;  // sync check: made when the lanes part for the first time
};

/// Calls body(lane) for each active lane, without a test where all are.
template <typename Body>
inline void for_lanes(LaneMask active, Body body) {
  if (active == kFullMask) {
    for (int lane = 0; lane < kWarpSize; ++lane) body(lane);
  } else {
    for (LaneMask rest = active; rest != 0; rest &= rest - 1) body(__builtin_ctz(rest));
  }
}

}  // namespace pykernels::emulator
