#include "emulator/check/sync.h"

#include <algorithm>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {

void report_before_grid_wait(Warp& warp, const Instruction& inst, int lane,
                             const Allocation& allocation) {
  warp.machine().report(
      "sync",
      concat("'", allocation.name,
             "' is accessed before griddepcontrol.wait: the launch before may still write it"),
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

void report_exit_before_grid_wait(Warp& warp, LaneMask lanes) {
  warp.machine().report("sync",
                        "a thread of a launch that depends on the one before ends without "
                        "griddepcontrol.wait: a launch behind this one may start before the one "
                        "before it has ended",
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
    if (barrier.arrived == 0 || barrier.last.warp == nullptr) continue;
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
