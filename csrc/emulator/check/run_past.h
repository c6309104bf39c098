// Sync check: lanes that have run past an instruction which needs them, and ended. Those that wait
// there go on without them, as if they had left the kernel early.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "emulator/program.h"

namespace pykernels::emulator {

class Warp;

/// Of a warp: what each lane has executed last while the warp was diverged, branches aside.
class LaneTrails {
 public:
  /// These are together now, and part.
  void begin(LaneMask lanes);
  /// The lanes have executed [begin, end) in a row, without others.
  void run(const Program& program, uint32_t begin, uint32_t end, LaneMask lanes);
  /// The lanes end at this instruction.
  void exit(uint32_t pc, LaneMask lanes);

  /// True where the ended lane's last work was done without any of `others`.
  bool worked_apart(int lane, LaneMask others) const;
  uint32_t work(int lane) const { return work_[static_cast<size_t>(lane)]; }
  uint32_t exit_of(int lane) const { return exit_[static_cast<size_t>(lane)]; }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  std::array<uint32_t, kWarpSize> work_ = {};      // the instruction; kNone: none since they parted
  std::array<LaneMask, kWarpSize> together_ = {};  // who executed that one at the same time
  std::array<uint32_t, kWarpSize> exit_ = {};
};

/// Which instructions may come after which, kept for the targets that were asked for.
class Reachability {
 public:
  bool reaches(const Program& program, uint32_t from, uint32_t to);

 private:
  std::map<std::pair<const Program*, uint32_t>, std::vector<bool>> before_;  // by target
};

/// The current split executes an instruction that needs `required`, some of which have ended.
/// Reports those that have run past it: their last work was done apart, in code that follows it. A
/// guard of the instruction itself that kept them out is another finding.
void check_run_past(Warp& warp, const LaneTrails& trails, LaneMask required);

}  // namespace pykernels::emulator
