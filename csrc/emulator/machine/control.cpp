#include "emulator/machine/control.h"

#include <algorithm>

#include "core/check.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/sync.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kLeastRegisters = 24;  // a thread, of setmaxnreg

/// "warps 0-3: 128, warp 4 (ended): 24", by runs of warps that are alike.
std::string registers_by_warp(const Cta& cta) {
  std::string text;
  for (size_t first = 0; first < cta.warps.size();) {
    const auto alike = [&](size_t other) {
      return cta.warp_registers[other] == cta.warp_registers[first] &&
             cta.warps[other]->finished() == cta.warps[first]->finished();
    };
    size_t last = first;
    while (last + 1 < cta.warps.size() && alike(last + 1)) ++last;
    text += concat(text.empty() ? "" : ", ", first == last ? "warp " : "warps ", first,
                   first == last ? "" : concat("-", last),
                   cta.warps[first]->finished() ? " (ended): " : ": ", cta.warp_registers[first]);
    first = last + 1;
  }
  return text;
}

bool wants_registers(const Warp& warp) {
  return std::any_of(warp.splits().begin(), warp.splits().end(), [](const Split& split) {
    return split.blocked && split.wait.kind == Wait::Kind::kRegisters;
  });
}

/// Registers that warps which do not wait for more could still give back, all going down to the
/// least that setmaxnreg allows.
uint32_t most_released(const Cta& cta) {
  uint32_t registers = 0;
  for (const auto& warp : cta.warps) {
    const uint32_t held = cta.warp_registers[static_cast<size_t>(warp->index())];
    if (!wants_registers(*warp) && !warp->finished() && held > kLeastRegisters)
      registers += (held - kLeastRegisters) * kWarpSize;
  }
  return registers;
}

std::string describe_registers(const Warp& warp, const Wait& wait) {
  const Cta& cta = const_cast<Warp&>(warp).cta();
  const uint32_t held = cta.warp_registers[static_cast<size_t>(warp.index())];
  const auto needed = static_cast<uint32_t>(wait.detail[0] - held) * kWarpSize;
  const uint32_t released = most_released(cta);
  return concat("registers: ", wait.detail[0], " a thread are wanted, ", held,
                " held, and the CTA's pool has ", cta.register_pool, " where ", needed,
                " are needed; registers a thread of ", registers_by_warp(cta),
                cta.register_pool + released < needed
                    ? concat("; it can never be enough, the others can give back ", released)
                    : "");
}

}  // namespace

Step set_max_registers(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  Cta& cta = warp.cta();
  if (!warp.split().resumed) {
    check_aligned_guard(warp, inst, active);
    check_register_change(warp, inst);
  }
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
  warp.cta().grid_waited = true;
  RaceDetector* const races = warp.machine().races();
  if (races != nullptr) races->grid_wait(warp, active, before);
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
