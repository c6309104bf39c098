#include "emulator/machine/control.h"

#include "core/check.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

std::string describe_registers(const Warp& warp, const Wait& wait) {
  const Cta& cta = const_cast<Warp&>(warp).cta();
  const uint32_t held = cta.warp_registers[static_cast<size_t>(warp.index())];
  return concat("registers: ", wait.detail[0], " a thread are wanted, ", held,
                " held, and the CTA's pool has ", cta.register_pool, " where ",
                (wait.detail[0] - held) * kWarpSize, " are needed");
}

}  // namespace

Step set_max_registers(Warp& warp, const Instruction& inst, LaneMask active) {
  (void)active;
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  Cta& cta = warp.cta();
  const auto registers = static_cast<uint32_t>(inst.immediate);
  const uint32_t held = cta.warp_registers[static_cast<size_t>(warp.index())];
  const bool increases = inst.variant != 0;
  const bool known = cta.grid->launch.registers !=
                     0;  // else `held` is a guess, the pool's bounds hold all the same
  if (known && !warp.split().resumed && registers != held && increases != (registers > held)) {
    warp.machine().report("sync",
                          concat("setmaxnreg.", increases ? "inc" : "dec", " to ", registers,
                                 " registers where the warp holds ", held),
                          warp, inst);
    return Step::kNext;
  }
  if (cta.change_registers(warp.index(), registers)) return Step::kNext;
  Wait wait;
  wait.kind = Wait::Kind::kRegisters;
  wait.on = &cta.register_release;
  wait.detail[0] = registers;
  wait.describe = describe_registers;
  return warp.block(wait);
}

Step grid_dependency_wait(Warp& warp, const Instruction& inst, LaneMask active) {
  (void)inst;
  Grid* before = warp.cta().grid->prerequisite;
  if (before != nullptr && !before->finished()) {
    Wait wait;
    wait.kind = Wait::Kind::kGrid;
    wait.on = before;
    return warp.block(wait);
  }
  warp.set_grid_waited(active);
  return Step::kNext;
}

Step grid_launch_dependents(Warp& warp, const Instruction& inst, LaneMask active) {
  (void)inst;
  (void)active;
  Cta& cta = warp.cta();
  if (!cta.launched_dependents) ++cta.grid->dependents_launched;
  cta.launched_dependents = true;
  return Step::kNext;
}

Step nanosleep(Warp& warp, const Instruction& inst, LaneMask active) {
  (void)inst;
  (void)active;
  warp.yield();
  return Step::kNext;
}

}  // namespace pykernels::emulator
