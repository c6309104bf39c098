// The instruction table: one row per form, looked up by opcode and modifiers when a module is
// loaded.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "emulator/program.h"

namespace pykernels::emulator {

/// Turns one statement into an Instruction. Operand indices are those of the statement as written.
class Builder {
 public:
  virtual ~Builder() = default;

  virtual const Statement& statement() const = 0;
  virtual Instruction& instruction() = 0;
  bool has_modifier(std::string_view name) const;
  int num_operands() const { return static_cast<int>(statement().operands.size()); }

  /// Slot of a value that is read: a register, or an immediate broadcast as `type`. The lanes are
  /// uint32_t or uint64_t by the width of `type`; a wider register is narrowed by the resolver only
  /// where PTX allows it, a narrower one is an error.
  virtual Slot source(const Operand& operand, Type type) = 0;
  /// Slot of a register that is written; kNoSlot for the sink `_`.
  virtual Slot destination(const Operand& operand, Type type) = 0;
  /// A register of a list that is both read and written (WGMMA accumulators).
  virtual Slot accumulator(const Operand& operand, Type type) = 0;
  /// A register that is read also after the instruction has been issued (fragments of A).
  virtual Slot fragment(const Operand& operand, Type type) = 0;
  /// Slot of a predicate that is read (register or literal 0/1/-1); negated operands get *negated.
  virtual Slot predicate(const Operand& operand, bool* negated) = 0;
  /// Slot of the thread's carry flag (CC.CF), a predicate that add.cc and the like write.
  virtual Slot carry(bool is_write) = 0;
  /// Declared width in bits of a register operand, 0 for anything else.
  virtual int register_bits(const Operand& operand) const = 0;

  /// Splits an address operand into a 64-bit or 32-bit base slot and a constant offset. A symbol
  /// base is resolved to its address in `space` (generic address where space is kGeneric) and
  /// folded into the offset with base kNoSlot. *base_is_64: lanes of the base are uint64_t.
  virtual void address(const Operand& operand, Space space, Slot* base, bool* base_is_64,
                       int64_t* offset) = 0;

  /// Memory that a symbol lies in; kGeneric for anything but a variable or parameter.
  virtual Space symbol_space(const Operand& operand) const = 0;

  /// Value of an operand that must be an integer literal.
  virtual int64_t integer(const Operand& operand) = 0;
  virtual uint32_t target(const Operand& operand) = 0;

  /// Data owned by the program; also set as instruction().side.
  virtual SideData* keep(std::unique_ptr<SideData> data) = 0;

  /// Throws PtxError at this statement.
  [[noreturn]] virtual void fail(const std::string& message) const = 0;
};

/// Fills builder.instruction() (handler, operands, side data).
using Build = std::function<void(Builder&)>;

struct Form {
  std::string key;
  InstructionClass instruction_class;
  Build build;
};

class Table {
 public:
  static const Table& instance();

  /// `spelling`: as the ISA writes it, for example "mbarrier.try_wait.parity.shared::cta.b64". The
  /// order of modifiers that are not types is free, as in real PTX; a second row with the same key
  /// is an error. "ld.*" is the row of all forms of the opcode that have no row of their own: its
  /// build reads the modifiers itself and fails on one that it does not know.
  void add(std::string_view spelling, InstructionClass instruction_class, Build build);

  /// nullptr if there is no such form.
  const Form* find(const Statement& statement) const;

  const std::unordered_map<std::string, Form>& forms() const { return forms_; }

 private:
  std::unordered_map<std::string, Form> forms_;
};

/// Opcode, then modifiers that are no types in alphabetical order, then the types in their order.
std::string canonical_key(std::string_view opcode, const std::vector<std::string>& modifiers);

// One per file of this folder.
void add_address_forms(Table& table);
void add_arithmetic_forms(Table& table);
void add_async_copy_forms(Table& table);
void add_atomic_forms(Table& table);
void add_barrier_forms(Table& table);
void add_bulk_copy_forms(Table& table);
void add_compare_forms(Table& table);
void add_control_forms(Table& table);
void add_convert_forms(Table& table);
void add_fence_forms(Table& table);
void add_logic_forms(Table& table);
void add_matrix_forms(Table& table);
void add_mbarrier_forms(Table& table);
void add_memory_forms(Table& table);
void add_move_forms(Table& table);
void add_warp_forms(Table& table);
void add_wgmma_forms(Table& table);

}  // namespace pykernels::emulator
