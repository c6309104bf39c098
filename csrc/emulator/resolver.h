// Makes a Program of one kernel: binds every statement to its form, inlines calls, gives registers
// slots and variables places.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/isa/table.h"
#include "emulator/module_check.h"
#include "emulator/program.h"
#include "emulator/register_packing.h"

namespace pykernels::emulator {

/// Where a variable lies: a host address (global, const), an address of the shared window of rank
/// 0, or an offset (param, local).
struct Placement {
  Space space = Space::kGeneric;
  uint64_t address = 0;
};

/// A function as it is expanded at one place: a kernel, or an inlined call. A caller of the same
/// function is the frame whose variables this one, made for a few statements of the resolver's own,
/// shares.
struct Frame {
  const Function* function = nullptr;
  const Frame* caller = nullptr;
  std::vector<int32_t> registers;  // of the program, by register of the function
  std::unordered_map<std::string, Placement> variables;
  uint32_t first_id = 0;  // of its statements; the id after the last one is its end
};

/// Symbols of an operand, also within addresses and lists.
template <typename Visit>
void for_symbols(const Operand& operand, Visit visit) {
  if (operand.kind == Operand::Kind::kSymbol) visit(operand.symbol);
  for (const Operand& element : operand.elements) for_symbols(element, visit);
}

/// Not about one statement: what comes after it would only fail again.
class ProgramTooLarge : public PtxError {
 public:
  using PtxError::PtxError;
};

/// What the names of a module mean, for all of its kernels.
struct ModuleNames {
  explicit ModuleNames(const LoadedModule& loaded);

  const LoadedModule& module;
  std::unordered_map<std::string, const Function*> functions;
  std::unordered_map<std::string, const Variable*> variables;
  std::unordered_map<std::string, Placement> places;  // .global and .const
  std::vector<const Variable*> shared;                // in the module's order
};

class Resolver {
 public:
  Resolver(const ModuleNames& names, const Function& entry);

  std::unique_ptr<Program> resolve();

  /// Adds what is refused; `resolve` would throw the first of it.
  void collect_refusals(std::vector<Refusal>* refusals);

  // ---- for StatementBuilder ----
  const std::vector<VirtualRegister>& registers() const { return registers_; }
  VirtualRegister& register_at(int32_t index) { return registers_[index]; }
  int32_t new_register(const std::string& name, int bits);
  int32_t carry_register();
  Slot slot_of(int32_t index) const;
  /// A value in all lanes; `bits` 1 for a predicate.
  Slot constant(uint64_t value, int bits);
  /// nullptr for an unknown name. Fails for a variable that exists without memory.
  const Placement* find_variable(const Frame& frame, const Statement& statement,
                                 const std::string& name) const;
  /// Moves `value` into a register of the program, on behalf of the statement.
  void expand_move(const Frame& frame, const Statement& statement, int32_t index, int bits,
                   const Operand& value);
  Program& program() { return *program_; }
  [[noreturn]] void fail(const Statement& statement, const std::string& message) const;
  [[noreturn]] void fail_too_large(const SourceLocation& location) const;
  std::string line_text(const SourceLocation& location) const;

 private:
  void place_parameters();
  void place_shared();
  void collect_shared(const Function& function, std::unordered_map<std::string, bool>& used,
                      std::vector<const Function*>& visited) const;
  uint32_t place_locals(Frame& frame);
  void check_local_bytes(const Frame& frame, uint64_t bytes) const;
  uint32_t place_call_parameters(Frame& frame, uint32_t base);

  void run_pass();
  Frame open_frame(const Function& function, const Frame* caller);
  void expand_body(Frame& frame);
  void expand_or_refuse(const Frame& frame, const Statement& statement);
  void expand_statement(const Frame& frame, const Statement& statement);
  void expand_call(const Frame& frame, const Statement& statement);
  void inline_call(const Frame& frame, const Statement& statement, const Function& callee,
                   const std::vector<Operand>& returns, const std::vector<Operand>& arguments);
  void call_builtin(const Frame& frame, const Statement& statement, const Function& callee,
                    const std::vector<Operand>& returns, const std::vector<Operand>& arguments);
  void bind_parameter(const Frame& frame, const Statement& statement, Frame& inner,
                      const Variable& formal, const Operand& actual);
  void copy_register(const Frame& frame, const Statement& statement, int32_t to, int32_t from);
  void access_argument(const Frame& scratch, const Statement& statement, bool is_load,
                       const Variable& formal, const Operand& actual, const Operand& value);
  void expand_form(const Frame& frame, const Statement& statement);
  void expand_computed_branch(const Frame& frame, const Statement& statement);
  void expand_jump(const Frame& frame, const Statement& like, bool negate_guard);
  Frame scratch_frame(const Frame& frame, std::vector<int32_t> registers) const;
  bool is_thread_parameter(const Frame& frame, const Statement& statement) const;
  void bind_targets();
  void note_arithmetic(const Statement& statement, const Instruction& inst);
  void mark_wgmma_registers();

  const LoadedModule& module_;
  const ModuleNames& names_;
  const Function& entry_;
  std::unique_ptr<Program> program_;
  std::unordered_map<std::string, Placement> shared_;  // those within functions as "function/name"

  std::vector<VirtualRegister> registers_;
  std::vector<std::string> register_names_;
  RegisterLayout layout_;          // empty in the first pass, and without registers
  bool names_statements_ = false;  // in the second pass
  std::vector<Flow> flows_;
  std::vector<uint32_t> starts_;  // first instruction, by statement id
  std::map<std::pair<int, uint64_t>, Slot> constants_;
  std::vector<bool> multiplied_;  // registers that a contractible product was written to
  std::vector<int32_t> added_;    // registers that a contractible sum reads
  int32_t carry_register_ = -1;
  uint32_t next_id_ = 0;
  uint32_t local_top_ = 0;                    // of the frames that are open
  std::string text_;                          // of the statement being expanded
  std::vector<Refusal>* refusals_ = nullptr;  // where set, expansion goes on after what it refuses
};

/// Opcode and modifiers as written.
std::string form_name(const Statement& statement);

/// A module with memory for its variables, of which no kernel is resolved yet.
std::shared_ptr<LoadedModule> parse_module(std::string_view text);

}  // namespace pykernels::emulator
