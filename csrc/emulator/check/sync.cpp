#include "emulator/check/sync.h"

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
