#include "emulator/statement_builder.h"

#include <bit>

#include "emulator/machine/memory.h"
#include "emulator/numerics/convert.h"

namespace pykernels::emulator {
namespace {

/// Bits of the lanes that hold a value of so many bits.
int lane_bits(int bits) { return bits <= 32 ? 32 : bits; }

std::string describe(const std::string& name, int bits) {
  return bits == 1 ? name + " is a predicate" : name + " has " + std::to_string(bits) + " bits";
}

}  // namespace

void StatementBuilder::build(const Form& form) {
  instruction_.instruction_class = form.instruction_class;
  if (statement_.guard >= 0) {
    instruction_.guard = read(frame_.registers[statement_.guard]);
    instruction_.guard_negated = statement_.guard_negated;
  }
  form.build(*this);
  if (instruction_.handler == nullptr) fail("the form has no handler");
}

void StatementBuilder::fail(const std::string& message) const {
  resolver_.fail(statement_, message);
}

int32_t StatementBuilder::program_register(const Operand& operand) const {
  return frame_.registers[operand.reg];
}

Slot StatementBuilder::read(int32_t index) {
  const Slot slot = resolver_.slot_of(index);
  reads_.push_back({slot, static_cast<uint32_t>(index)});
  return slot;
}

Slot StatementBuilder::write(int32_t index) {
  const Slot slot = resolver_.slot_of(index);
  writes_.push_back({slot, static_cast<uint32_t>(index)});
  return slot;
}

/// 8-bit values live in registers of up to 32 bits; everything else has its own width.
void StatementBuilder::check_width(int32_t index, Type type) const {
  const int bits = resolver_.registers()[index].bits;
  const int needed = type_bits(type);
  const bool fits = needed == 8 ? bits > 1 && bits <= 32 : bits == needed;
  if (fits) return;
  const std::string& name = resolver_.program().register_names[index];
  fail(describe(name, bits) + ", the instruction takes ." + std::string(type_name(type)));
}

Slot StatementBuilder::source(const Operand& operand, Type type) {
  if (operand.negated) fail("'!' needs a predicate");
  switch (operand.kind) {
    case Operand::Kind::kRegister: {
      const int32_t index = program_register(operand);
      check_width(index, type);
      return read(index);
    }
    case Operand::Kind::kInteger:
    case Operand::Kind::kFloat:
      return resolver_.constant(literal(operand, type), lane_bits(type_bits(type)));
    case Operand::Kind::kSpecial:
    case Operand::Kind::kSymbol:
      return materialise(operand, type);
    default:
      break;
  }
  fail("a register or a literal must stand here");
}

/// The value of a special register or a variable's address, moved into a register of its own.
Slot StatementBuilder::materialise(const Operand& operand, Type type) {
  const int bits = type_bits(type);
  if (bits != 32 && bits != 64) fail("'" + operand.symbol + "' cannot stand here");
  const int32_t index = resolver_.new_register(operand.symbol, bits);
  resolver_.expand_move(frame_, statement_, index, bits, operand);
  return read(index);
}

/// Bits of a literal as the type holds them.
uint64_t StatementBuilder::literal(const Operand& operand, Type type) const {
  const int bits = type_bits(type);
  const uint64_t kept = bits >= 64 ? ~0ull : (1ull << bits) - 1;
  if (operand.kind == Operand::Kind::kInteger) return operand.bits & kept;
  if (operand.float_bits == 32) {
    if (bits != 32) fail("a 32-bit floating-point literal cannot stand here");
    return operand.bits;
  }
  if (bits == 64) return operand.bits;
  const double value = std::bit_cast<double>(operand.bits);
  switch (type) {
    case Type::kF32:
      return f64_to_f32(value, Rounding::kRn);
    case Type::kF16:
      return encode(value, kFormatF16);
    case Type::kBf16:
      return encode(value, kFormatBf16);
    default:
      break;
  }
  fail("a floating-point literal cannot stand here");
}

Slot StatementBuilder::destination(const Operand& operand, Type type) {
  if (operand.kind == Operand::Kind::kSink) return kNoSlot;
  if (operand.kind != Operand::Kind::kRegister || operand.negated) {
    fail("a register must stand where the instruction writes");
  }
  const int32_t index = program_register(operand);
  check_width(index, type);
  return write(index);
}

Slot StatementBuilder::accumulator(const Operand& operand, Type type) {
  if (operand.kind != Operand::Kind::kRegister) fail("an accumulator must be a register");
  const int32_t index = program_register(operand);
  check_width(index, type);
  resolver_.register_at(index).pinned = true;
  resolver_.register_at(index).asynchronous = true;
  return write(index);
}

Slot StatementBuilder::fragment(const Operand& operand, Type type) {
  if (operand.kind == Operand::Kind::kRegister) {
    resolver_.register_at(program_register(operand)).asynchronous = true;
  }
  return source(operand, type);
}

Slot StatementBuilder::predicate(const Operand& operand, bool* negated) {
  *negated = operand.negated;
  if (operand.kind == Operand::Kind::kInteger)
    return resolver_.constant(operand.bits != 0 ? 1 : 0, 1);
  if (operand.kind != Operand::Kind::kRegister) fail("a predicate must stand here");
  const int32_t index = program_register(operand);
  check_width(index, Type::kPred);
  return read(index);
}

Slot StatementBuilder::carry(bool is_write) {
  const int32_t index = resolver_.carry_register();
  return is_write ? write(index) : read(index);
}

int StatementBuilder::register_bits(const Operand& operand) const {
  if (operand.kind != Operand::Kind::kRegister) return 0;
  return resolver_.registers()[program_register(operand)].bits;
}

Space StatementBuilder::symbol_space(const Operand& operand) const {
  if (operand.kind != Operand::Kind::kSymbol) return Space::kGeneric;
  const Placement* placement = resolver_.find_variable(frame_, statement_, operand.symbol);
  return placement == nullptr ? Space::kGeneric : placement->space;
}

void StatementBuilder::address(const Operand& operand, Space space, Slot* base, bool* base_is_64,
                               int64_t* offset) {
  if (operand.kind != Operand::Kind::kAddress) fail("an address in brackets must stand here");
  *base = kNoSlot;
  *base_is_64 = true;
  *offset = static_cast<int64_t>(operand.bits);
  const Operand& base_operand = operand.elements[0];
  if (base_operand.kind == Operand::Kind::kInteger) {
    *offset += static_cast<int64_t>(base_operand.bits);
    return;
  }
  if (base_operand.kind == Operand::Kind::kRegister) {
    const int32_t index = program_register(base_operand);
    const int bits = resolver_.registers()[index].bits;
    if (bits != 32 && bits != 64) fail("the register of an address must have 32 or 64 bits");
    *base_is_64 = bits == 64;
    *base = read(index);
    return;
  }
  const Placement* placement = resolver_.find_variable(frame_, statement_, base_operand.symbol);
  if (placement == nullptr) fail("unknown variable '" + base_operand.symbol + "'");
  *offset += static_cast<int64_t>(placement->address);
  if (space == Space::kGeneric) {
    *offset += static_cast<int64_t>(placement->space == Space::kShared  ? kSharedWindow
                                    : placement->space == Space::kLocal ? kLocalWindow
                                    : placement->space == Space::kParam ? kParamWindow
                                                                        : 0);
  } else if (space != placement->space) {
    fail("'" + base_operand.symbol + "' lies in another space");
  }
}

int64_t StatementBuilder::integer(const Operand& operand) {
  if (operand.kind != Operand::Kind::kInteger) fail("an integer literal must stand here");
  return static_cast<int64_t>(operand.bits);
}

uint32_t StatementBuilder::target(const Operand& operand) {
  if (operand.kind != Operand::Kind::kLabel) fail("a label must stand here");
  has_target_ = true;
  return frame_.first_id + static_cast<uint32_t>(operand.target);
}

SideData* StatementBuilder::keep(std::unique_ptr<SideData> data) {
  SideData* kept = data.get();
  resolver_.program().side_data.push_back(std::move(data));
  instruction_.side = kept;
  return kept;
}

}  // namespace pykernels::emulator
