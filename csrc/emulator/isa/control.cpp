// Control flow, the end of threads, traps, printing, and the rows of the machine's own control
// instructions.
#include "emulator/machine/control.h"

#include "core/check.h"
#include "emulator/isa/lanewise.h"
#include "emulator/isa/print.h"
#include "emulator/isa/special_registers.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kControl;

/// bra{.uni} label
Step bra(Warp& warp, const Instruction& inst, LaneMask active) {
  return warp.branch(active, inst.target);
}

/// One target of brx.idx: the lanes whose index is `immediate` go there.
Step brx_target(Warp& warp, const Instruction& inst, LaneMask active) {
  const uint32_t* index = warp.lanes<uint32_t>(inst.operands[0]);
  LaneMask taken = 0;
  for_lanes(active, [&](int lane) {
    if (index[lane] == static_cast<uint32_t>(inst.immediate)) taken |= 1u << lane;
  });
  return taken == 0 ? Step::kNext : warp.branch(taken, inst.target);
}

/// What follows the last target of brx.idx.
Step brx_beyond(Warp& warp, const Instruction& inst, LaneMask active) {
  const int lane = __builtin_ctz(active);
  warp.machine().fail(
      "sync", concat("brx.idx has no target ", warp.lanes<uint32_t>(inst.operands[0])[lane]), warp,
      inst, lane);
}

/// exit, and ret of a kernel
Step exit_lanes(Warp& warp, const Instruction&, LaneMask active) { return warp.exit(active); }

Step trap(Warp& warp, const Instruction& inst, LaneMask active) {
  Machine& machine = warp.machine();
  const std::string reason =
      machine.has_note(kCooperativeNote) ? concat(" (", kCooperativeNote, ")") : "";
  machine.fail("trap", "the kernel executed trap" + reason, warp, inst, __builtin_ctz(active));
}

Step breakpoint(Warp& warp, const Instruction& inst, LaneMask active) {
  warp.machine().fail("trap", "the kernel executed brkpt and no debugger is attached", warp, inst,
                      __builtin_ctz(active));
}

Step no_operation(Warp&, const Instruction&, LaneMask) { return Step::kNext; }

void build_branch(Builder& builder) {
  expect_operands(builder, 1);
  builder.instruction().target = builder.target(builder.statement().operands[0]);
  builder.instruction().handler = bra;
}

/// The resolver writes brx.idx as steps "index, number, label", and "index" behind the last one.
void build_branch_target(Builder& builder) {
  const std::vector<Operand>& operands = builder.statement().operands;
  Instruction& inst = builder.instruction();
  inst.operands[0] = builder.source(operands[0], Type::kU32);
  if (operands.size() == 1) {
    inst.handler = brx_beyond;
    return;
  }
  inst.immediate = builder.integer(operands[1]);
  inst.target = builder.target(operands[2]);
  inst.handler = brx_target;
}

/// setmaxnreg.{inc,dec}.sync.aligned.u32 count
Build build_set_max_registers(bool increases) {
  return [increases](Builder& builder) {
    expect_operands(builder, 1);
    Instruction& inst = builder.instruction();
    inst.immediate = builder.integer(builder.statement().operands[0]);
    if (inst.immediate < 24 || inst.immediate > 256 || inst.immediate % 8 != 0) {
      builder.fail("the register count must be a multiple of 8 between 24 and 256");
    }
    inst.variant = increases ? 1 : 0;
    inst.handler = set_max_registers;
  };
}

void build_nanosleep(Builder& builder) {
  expect_operands(builder, 1);
  Instruction& inst = builder.instruction();
  inst.operands[0] = builder.source(builder.statement().operands[0], Type::kU32);
  inst.handler = nanosleep;
}

/// call.vprintf result, format, arguments: what the resolver makes of `call (result), vprintf,
/// (...)`.
void build_vprintf(Builder& builder) {
  expect_operands(builder, 3);
  const std::vector<Operand>& operands = builder.statement().operands;
  Instruction& inst = builder.instruction();
  inst.operands[1] = builder.source(operands[1], Type::kB64);
  inst.operands[2] = builder.source(operands[2], Type::kB64);
  inst.operands[0] = result(builder, operands[0], Type::kB32);
  inst.handler = print_formatted;
}

/// call.__assertfail message, file, line, function, character size
void build_assert(Builder& builder) {
  expect_operands(builder, 5);
  const std::vector<Operand>& operands = builder.statement().operands;
  Instruction& inst = builder.instruction();
  for (int i = 0; i < 5; ++i) {
    inst.operands[i] = builder.source(operands[i], i == 2 ? Type::kB32 : Type::kB64);
  }
  inst.handler = fail_assertion;
}

void add_plain(Table& table, std::string_view spelling, Handler handler) {
  table.add(spelling, kClass, [handler](Builder& builder) {
    expect_operands(builder, 0);
    builder.instruction().handler = handler;
  });
}

}  // namespace

void add_control_forms(Table& table) {
  table.add("bra", kClass, build_branch);
  table.add("bra.uni", kClass, build_branch);
  table.add("brx.idx", kClass, build_branch_target);
  table.add("brx.idx.uni", kClass, build_branch_target);
  for (const char* name : {"ret", "ret.uni", "exit"}) add_plain(table, name, exit_lanes);
  add_plain(table, "trap", trap);
  add_plain(table, "brkpt", breakpoint);
  table.add("pmevent", kClass, [](Builder& builder) {
    expect_operands(builder, 1);
    builder.integer(builder.statement().operands[0]);
    builder.instruction().handler = no_operation;
  });
  table.add("nanosleep.u32", kClass, build_nanosleep);
  add_plain(table, "griddepcontrol.wait", grid_dependency_wait);
  add_plain(table, "griddepcontrol.launch_dependents", grid_launch_dependents);
  table.add("setmaxnreg.inc.sync.aligned.u32", kClass, build_set_max_registers(true));
  table.add("setmaxnreg.dec.sync.aligned.u32", kClass, build_set_max_registers(false));
  table.add("call.vprintf", kClass, build_vprintf);
  table.add("call.__assertfail", kClass, build_assert);
}

}  // namespace pykernels::emulator
