#include "emulator/check/run_past.h"

#include "core/check.h"
#include "emulator/check/lanes.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

template <typename Body>
void for_bits(LaneMask lanes, Body body) {
  for (LaneMask rest = lanes; rest != 0; rest &= rest - 1)
    body(static_cast<size_t>(__builtin_ctz(rest)));
}

/// Where `to` is reached from, itself included: backward, until nothing is added.
std::vector<bool> instructions_before(const Program& program, uint32_t to) {
  const std::vector<Instruction>& code = program.instructions;
  std::vector<bool> before(code.size(), false);
  before[to] = true;
  for (bool added = true; added;) {
    added = false;
    for (size_t pc = code.size(); pc-- > 0;) {
      if (before[pc]) continue;
      const bool follows = code[pc].falls_through && pc + 1 < code.size() && before[pc + 1];
      if (!follows && !(code[pc].branches && before[code[pc].target])) continue;
      before[pc] = added = true;
    }
  }
  return before;
}

}  // namespace

void LaneTrails::begin(LaneMask lanes) {
  for_bits(lanes, [&](size_t lane) { work_[lane] = kNone; });
}

void LaneTrails::run(const Program& program, uint32_t begin, uint32_t end, LaneMask lanes) {
  const std::vector<Instruction>& code = program.instructions;
  while (end > begin && code[end - 1].instruction_class == InstructionClass::kControl) --end;
  if (end <= begin) return;
  for_bits(lanes, [&](size_t lane) {
    work_[lane] = end - 1;
    together_[lane] = lanes;
  });
}

void LaneTrails::exit(uint32_t pc, LaneMask lanes) {
  for_bits(lanes, [&](size_t lane) { exit_[lane] = pc; });
}

bool LaneTrails::worked_apart(int lane, LaneMask others) const {
  const auto index = static_cast<size_t>(lane);
  return work_[index] != kNone && (together_[index] & others) == 0;
}

bool Reachability::reaches(const Program& program, uint32_t from, uint32_t to) {
  const auto [entry, added] = before_.try_emplace({&program, to});
  if (added) entry->second = instructions_before(program, to);
  return entry->second[from];
}

void check_run_past(Warp& warp, const LaneTrails& trails, LaneMask required) {
  const Split& split = warp.split();
  Machine& machine = warp.machine();
  LaneMask past = 0;
  for_bits(required & ~warp.live(), [&](size_t index) {
    const int lane = static_cast<int>(index);
    if (!trails.worked_apart(lane, split.lanes) || trails.work(lane) == split.pc) return;
    if (machine.reachability().reaches(warp.program(), split.pc, trails.work(lane)))
      past |= LaneMask{1} << index;
  });
  if (past == 0) return;
  const int first = __builtin_ctz(past);
  const Instruction& exit = warp.program().instructions[trails.exit_of(first)];
  machine.report("sync",
                 concat("the warp is diverged: ", lanes_text(past),
                        " must take part in this instruction, and have run past it and ended"),
                 Party{&warp, &warp.instruction(), __builtin_ctz(split.lanes)},
                 Party{&warp, &exit, first});
}

}  // namespace pykernels::emulator
