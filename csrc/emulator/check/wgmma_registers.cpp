#include "emulator/check/wgmma_registers.h"

#include "core/check.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

bool is_move(const Instruction& inst) { return inst.instruction_class == InstructionClass::kMove; }

}  // namespace

void WgmmaRegisters::access(const Instruction& inst, LaneMask active) {
  const RegisterAccess* accesses = warp_.program().accesses.data() + inst.accesses_begin;
  const int lane = active == warp_.live() ? -1 : __builtin_ctz(active);
  for (int i = 0; i < inst.num_reads + inst.num_writes; ++i) {
    const int32_t number = number_of(accesses[i]);
    if (number < 0) continue;
    const bool writes = i >= inst.num_reads;
    Register& reg = registers_[static_cast<size_t>(number)];
    if (in_flight(reg.accumulator)) {
      report_in_flight(inst, lane, accesses[i], writes ? "written" : "read", reg.accumulator,
                       "an accumulator");
    } else if (writes && in_flight(reg.fragment)) {
      report_in_flight(inst, lane, accesses[i], "written", reg.fragment, "a fragment of A");
    }
    const bool stronger = reg.access != nullptr && reg.access_fence == num_fences_ &&
                          !is_move(*reg.access) && is_move(inst);
    if (stronger) continue;
    reg.access = &inst;
    reg.lane = lane;
    reg.access_fence = num_fences_;
  }
}

void WgmmaRegisters::report_in_flight(const Instruction& inst, int lane,
                                      const RegisterAccess& access, const char* what,
                                      const Use& use, const char* role) {
  if (use.number == last_reported_) return;
  last_reported_ = use.number;
  warp_.machine().report("sync",
                         concat("register ", warp_.program().register_names[access.register_index],
                                " is ", what, " while it is ", role,
                                " of a WGMMA in flight: no wgmma.wait_group has waited for that"),
                         Party{&warp_, &inst, lane}, Party{&warp_, use.instruction, -1});
}

void WgmmaRegisters::fence() {
  ++num_fences_;
  fenced_ = true;
}

void WgmmaRegisters::complete(size_t num_operations) {
  num_completed_ += num_operations;
  if (num_operations != 0) fenced_ = false;
}

/// True where threads have touched the register since the last fence.
bool WgmmaRegisters::unordered(const Register& reg) const {
  if (reg.access == nullptr || reg.access_fence != num_fences_) return false;
  return !(fenced_ && is_move(*reg.access));
}

/// False, and a finding, where an access of a thread is not ordered before this WGMMA.
bool WgmmaRegisters::check_order(const Instruction& inst, const RegisterAccess& access,
                                 const Register& reg, const char* role) {
  if (!unordered(reg)) return true;
  warp_.machine().report(
      "sync",
      concat("no wgmma.fence between this instruction and the last access to register ",
             warp_.program().register_names[access.register_index], ", ", role, " of it"),
      Party{&warp_, &inst, -1}, Party{&warp_, reg.access, reg.lane});
  return false;
}

bool WgmmaRegisters::check_accumulator(const Instruction& inst, const RegisterAccess& access,
                                       const std::string& shape) {
  const Register& reg = registers_[static_cast<size_t>(number_of(access))];
  if (in_flight(reg.fragment)) {
    report_in_flight(inst, -1, access, "written", reg.fragment, "a fragment of A");
    return false;
  }
  const bool other_shape = reg.accumulator.number != 0 && *reg.shape != shape;
  if (other_shape && in_flight(reg.accumulator)) {
    report_in_flight(inst, -1, access, "accumulated into", reg.accumulator,
                     "an accumulator, in another shape,");
    return false;
  }
  if (other_shape && reg.accumulator.fence == num_fences_) {
    warp_.machine().report(
        "sync",
        concat("no wgmma.fence between this instruction and a WGMMA of another shape that has "
               "register ",
               warp_.program().register_names[access.register_index], " as an accumulator too"),
        Party{&warp_, &inst, -1}, Party{&warp_, reg.accumulator.instruction, -1});
    return false;
  }
  return check_order(inst, access, reg, "an accumulator");
}

bool WgmmaRegisters::check_fragment(const Instruction& inst, const RegisterAccess& access) {
  const Register& reg = registers_[static_cast<size_t>(number_of(access))];
  if (in_flight(reg.accumulator)) {
    report_in_flight(inst, -1, access, "read", reg.accumulator, "an accumulator");
    return false;
  }
  return check_order(inst, access, reg, "a fragment of A");
}

void WgmmaRegisters::issue(const Instruction& inst, const std::string& shape) {
  const RegisterAccess* accesses = warp_.program().accesses.data() + inst.accesses_begin;
  const uint64_t number = ++num_issued_;
  bool good = num_fences_ != 0;
  if (!good) {
    warp_.machine().report("sync", "no wgmma.fence between the kernel's start and this instruction",
                           warp_, inst);
    fence();
  }
  for (int i = 0; i < inst.num_reads + inst.num_writes && good; ++i) {
    if (number_of(accesses[i]) < 0) continue;
    good = i < inst.num_reads ? check_fragment(inst, accesses[i])
                              : check_accumulator(inst, accesses[i], shape);
  }
  for (int i = 0; i < inst.num_reads + inst.num_writes; ++i) {
    if (number_of(accesses[i]) < 0) continue;
    Register& reg = registers_[static_cast<size_t>(number_of(accesses[i]))];
    (i < inst.num_reads ? reg.fragment : reg.accumulator) = Use{&inst, number, num_fences_};
    if (i >= inst.num_reads) reg.shape = &shape;
    reg.access = nullptr;
  }
}

}  // namespace pykernels::emulator
