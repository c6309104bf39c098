#include "emulator/check/sync.h"

#include <algorithm>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {

namespace {

bool overlap(const Allocation& a, const Allocation& b) {
  return a.address < b.address + b.bytes && b.address < a.address + a.bytes;
}

/// True where the launch is given memory that overlaps: an argument, registered memory or a
/// variable of its module.
bool can_access(const Grid& grid, const Allocation& range, bool to_write) {
  for (const Allocation& given : grid.launch.memory) {
    if (overlap(given, range) && (given.writable || !to_write)) return true;
  }
  for (const auto& [name, place] : grid.launch.module->storage.variables) {
    const Allocation variable{reinterpret_cast<uint64_t>(place.first), place.second, name, true};
    if (overlap(variable, range)) return true;
  }
  return false;
}

/// Of a launch that is not of this run nothing is known.
bool launches_before_can_access(const Grid& grid, const Allocation& range, bool to_write) {
  if (grid.prerequisite == nullptr) return true;
  for (const Grid* before = grid.prerequisite; before != nullptr; before = before->prerequisite) {
    if (can_access(*before, range, to_write)) return true;
  }
  return false;
}

}  // namespace

LaneMask learn_grid_waits(Warp& warp) {
  const LaneMask before = warp.before_grid_wait();
  if (before == 0) return 0;
  Cta& cta = warp.cta();
  RaceDetector* const races = warp.machine().races();
  LaneMask waited = 0;
  if (races != nullptr) {
    waited = races->lanes_behind(warp, before & warp.live(), cta.grid->prerequisite);
  } else if (cta.grid_waited) {
    waited = before;
  }
  if (waited != 0) warp.set_grid_waited(waited);
  return before & ~waited;
}

void check_before_grid_wait(Warp& warp, const Instruction& inst, int lane,
                            const Allocation& accessed, AccessKind kind) {
  if (warp.before_grid_wait() == 0 || !warp.before_grid_wait(lane)) return;
  if ((learn_grid_waits(warp) & (lane < 0 ? kFullMask : 1u << lane)) == 0) return;
  const bool writes = kind != AccessKind::kRead;
  if (!launches_before_can_access(*warp.cta().grid, accessed, !writes)) return;
  warp.machine().report("sync",
                        concat("'", accessed.name,
                               "' is accessed before griddepcontrol.wait: the "
                               "launch before may still ",
                               writes ? "read or write" : "write", " it"),
                        warp, inst, lane);
}

void check_overwritten_mbarrier(const Cta& cta, uint32_t offset, uint32_t bytes, const Warp& warp,
                                const Instruction& inst, int lane) {
  if (!cta.machine->options().check_sync) return;
  const std::optional<uint32_t> mbarrier = cta.mbarrier_within(offset, bytes);
  if (!mbarrier) return;
  cta.machine->report("sync",
                      concat("overwrites the mbarrier at ", shared_place(warp.program(), *mbarrier),
                             " of the CTA of rank ", cta.rank, "; mbarrier.inval frees its memory"),
                      warp, inst, lane);
}

void check_exit_before_grid_wait(Warp& warp, LaneMask lanes) {
  Cta& cta = warp.cta();
  if ((lanes & ~learn_grid_waits(warp)) != 0) cta.grid_waited = true;
  if (cta.grid_waited || cta.live_threads > static_cast<uint32_t>(__builtin_popcount(lanes)))
    return;
  warp.machine().report("sync",
                        "a CTA of a launch that depends on the one before ends, and none of its "
                        "threads has executed griddepcontrol.wait: a launch behind this one may "
                        "start before the one before it has ended",
                        warp, warp.instruction(), __builtin_ctz(lanes));
}

void check_aligned_guard(Warp& warp, const Instruction& inst, LaneMask active) {
  const LaneMask outside = warp.live() & ~active;
  if (outside == 0) return;
  warp.machine().report(
      "sync", "an .aligned instruction is executed under a guard that differs in the warp", warp,
      inst, __builtin_ctz(outside));
}

void check_register_change(Warp& warp, const Instruction& inst) {
  Cta& cta = warp.cta();
  if (cta.num_register_changes.empty()) cta.num_register_changes.assign(cta.warps.size(), 0);
  std::vector<Party>& changes = cta.register_changes[warp.warpgroup()];
  const uint32_t index = cta.num_register_changes[static_cast<size_t>(warp.index())]++;
  const Party self{&warp, &inst, -1};
  if (index == changes.size()) {
    changes.push_back(self);
  } else if (changes[index].instruction != &inst) {
    warp.machine().report(
        "sync",
        concat("warps ", changes[index].warp->index(), " and ", warp.index(),
               " of one warpgroup execute different setmaxnreg: all must execute the same"),
        self, changes[index]);
  }
}

std::optional<Party> find_waiter(const Cta& cta, const Waitable& object) {
  for (const auto& warp : cta.warps) {
    for (const Split& split : warp->splits()) {
      if (!split.blocked || split.wait.on != &object) continue;
      return Party{warp.get(), &warp->program().instructions[split.pc], __builtin_ctz(split.lanes)};
    }
  }
  return std::nullopt;
}

namespace {

void report_unfinished_transactions(Machine& machine, const Cta& cta) {
  for (const auto& [offset, barrier] : cta.mbarriers) {
    const Party& party = barrier->expecting;
    if (barrier->tx_bytes() == 0 || party.warp == nullptr) continue;
    machine.report(
        "sync",
        concat("the CTA has ended and the transaction bytes of an mbarrier have not come "
               "out even: mbarrier at ",
               shared_place(party.warp->program(), offset), " of the CTA of rank ", cta.rank, ", ",
               barrier->describe()),
        *party.warp, *party.instruction, party.lane);
  }
}

void report_unfinished_named_barriers(Machine& machine, const Cta& cta) {
  for (size_t index = 0; index < cta.barriers.size(); ++index) {
    const NamedBarrier& barrier = cta.barriers[index];
    if (barrier.arrived == 0 || barrier.last.warp == nullptr || barrier.miscounted) continue;
    machine.report("sync",
                   concat("the CTA has ended and at barrier ", index, " only ", barrier.arrived,
                          " of ", barrier.expected, " threads have arrived"),
                   *barrier.last.warp, *barrier.last.instruction, barrier.last.lane);
  }
}

/// Of each warpgroup the first setmaxnreg that some of its warps have not executed.
void report_missing_register_changes(Machine& machine, const Cta& cta) {
  for (const auto& [warpgroup, changes] : cta.register_changes) {
    size_t least = changes.size();
    std::string missing;
    for (const auto& warp : cta.warps) {
      if (warp->warpgroup() != warpgroup) continue;
      const size_t executed = cta.num_register_changes[static_cast<size_t>(warp->index())];
      least = std::min(least, executed);
      if (executed < changes.size()) missing += concat(missing.empty() ? "" : ", ", warp->index());
    }
    if (missing.empty()) continue;
    const Party& first = changes[least];
    machine.report("sync",
                   concat("setmaxnreg has not been executed by all warps of the warpgroup: warps ",
                          missing, " have ended without it"),
                   *first.warp, *first.instruction);
  }
}

}  // namespace

void report_unfinished_barriers(Machine& machine, Cta& cta) {
  if (!machine.options().check_sync) return;
  report_unfinished_transactions(machine, cta);
  report_unfinished_named_barriers(machine, cta);
  report_missing_register_changes(machine, cta);
}

void report_unfinished_operations(Machine& machine, Cta& cta) {
  for (const auto& operation : cta.cluster->async.operations()) {
    if (operation->finished || !operation->touches(cta)) continue;
    machine.report("sync",
                   concat("the CTA has ended while this was in flight: ", operation->describe(),
                          "; nothing has waited for it"),
                   *operation->issuer, *operation->instruction);
  }
}

}  // namespace pykernels::emulator
