#include "emulator/check/polls.h"

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/isa/mbarrier_address.h"

namespace pykernels::emulator {
namespace {

constexpr int kLoadBaseSlot = 4;

std::string polled_mbarrier(Warp& warp, const Instruction& inst, int lane) {
  const std::string& text = warp.program().texts[inst.statement];
  if (text.find("_wait") == std::string::npos) return {};
  const MbarrierLocation location = MbarrierAddresses(warp, inst).location(lane);
  const Mbarrier* barrier = location.cta->find_mbarrier(location.offset);
  return concat("the mbarrier at ", shared_place(warp.program(), location.offset),
                barrier == nullptr ? ", which does not exist" : "; it is in ",
                barrier == nullptr ? "" : barrier->describe());
}

std::string polled_memory(Warp& warp, const Instruction& inst, int lane) {
  if (inst.num_writes == 0) return {};
  uint64_t addresses[kWarpSize];
  lane_addresses(warp, inst, inst.operands[kLoadBaseSlot], addresses);
  const uint64_t address = addresses[lane];
  Space space = access_space(inst);
  if (space == Space::kGeneric) space = space_of(address);
  if (space == Space::kShared) {
    const uint64_t rank = address >> kClusterRankShift & 0xff;
    return concat(shared_place(warp.program(), shared_offset(address)), " in shared memory",
                  rank == warp.cta().rank ? "" : concat(" of the CTA of rank ", rank));
  }
  if (space != Space::kGlobal) return {};
  const Allocation* allocation = warp.machine().allocations().find(address, 1);
  if (allocation == nullptr) return {};
  return concat("'", allocation->name, "' + ", address - allocation->address, " in global memory");
}

}  // namespace

std::string polled(Warp& warp, const Instruction& inst, LaneMask lanes) {
  LaneMask active = lanes;
  if (inst.guard != kNoSlot)
    active &= inst.guard_negated ? ~warp.mask(inst.guard) : warp.mask(inst.guard);
  if (active == 0) return {};
  const int lane = __builtin_ctz(active);
  if (inst.instruction_class == InstructionClass::kMbarrier)
    return polled_mbarrier(warp, inst, lane);
  if (inst.instruction_class == InstructionClass::kMemory) return polled_memory(warp, inst, lane);
  return {};
}

}  // namespace pykernels::emulator
