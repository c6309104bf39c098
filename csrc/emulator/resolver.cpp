// Expansion of a kernel into instructions; calls are in resolver_calls.cpp, variables in
// resolver_places.cpp.
#include "emulator/resolver.h"

#include <algorithm>
#include <utility>

#include "emulator/coupling.h"
#include "emulator/machine/memory.h"
#include "emulator/statement_builder.h"
#include "emulator/target.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kMaxStatements = 1u << 20;
constexpr size_t kMaxRegisters = 1u << 20;
constexpr size_t kMaxTextBytes = 1024;  // of a statement in findings

bool has_rounding(const Statement& statement) {
  return std::any_of(statement.modifiers.begin(), statement.modifiers.end(), [](const auto& name) {
    return name == "rn" || name == "rz" || name == "rm" || name == "rp";
  });
}

}  // namespace

std::string form_name(const Statement& statement) {
  std::string name = statement.opcode;
  for (const std::string& modifier : statement.modifiers) name += "." + modifier;
  return name;
}

ModuleNames::ModuleNames(const LoadedModule& loaded) : module(loaded) {
  for (const Function& function : module.parsed.functions) functions[function.name] = &function;
  for (const Variable& variable : module.parsed.variables) {
    variables[variable.name] = &variable;
    if (variable.space == Space::kShared) shared.push_back(&variable);
    const auto stored = module.storage.variables.find(variable.name);
    if (stored == module.storage.variables.end()) continue;
    places[variable.name] = {variable.space, reinterpret_cast<uint64_t>(stored->second.first)};
  }
}

Resolver::Resolver(const ModuleNames& names, const Function& entry)
    : module_(names.module), names_(names), entry_(entry) {}

/// Two passes over the same statements: the first learns how registers are used, the second binds
/// them to their final slots.
std::unique_ptr<Program> Resolver::resolve() {
  run_pass();
  layout_ = pack_registers(*program_, flows_, registers_);
  names_statements_ = true;
  run_pass();
  program_->register_file_bytes = layout_.bytes;
  mark_wgmma_registers();
  for (const int32_t index : added_) program_->has_contractible_arithmetic |= multiplied_[index];
  return std::move(program_);
}

void Resolver::run_pass() {
  program_ = std::make_unique<Program>();
  program_->name = entry_.name;
  program_->max_threads = entry_.max_threads;
  program_->required_threads = entry_.required_threads;
  program_->required_cluster = entry_.required_cluster;
  program_->max_cluster_rank = entry_.max_cluster_rank;
  program_->explicit_cluster = entry_.explicit_cluster;
  registers_.clear();
  flows_.clear();
  starts_.clear();
  constants_.clear();
  multiplied_.clear();
  added_.clear();
  carry_register_ = -1;
  next_id_ = 0;
  local_top_ = 0;
  place_parameters();
  place_shared();
  Frame frame = open_frame(entry_, nullptr);
  expand_body(frame);
  Statement end;
  end.opcode = "exit";
  end.location = entry_.statements.empty() ? entry_.location : entry_.statements.back().location;
  text_ = "end of " + entry_.name;
  expand_form(frame, end);
  bind_targets();
}

// ---- expansion ----

Frame Resolver::open_frame(const Function& function, const Frame* caller) {
  Frame frame;
  frame.function = &function;
  frame.caller = caller;
  for (const RegisterDeclaration& declared : function.registers) {
    frame.registers.push_back(new_register(declared.name, type_bits(declared.type)));
  }
  for (const Variable& variable : function.variables) {
    const auto shared = shared_.find(function.name + "/" + variable.name);
    if (shared != shared_.end()) frame.variables[variable.name] = shared->second;
  }
  if (caller == nullptr) {
    for (const Parameter& parameter : program_->parameters) {
      frame.variables[parameter.name] = {Space::kParam, parameter.offset};
    }
  }
  local_top_ = place_locals(frame);
  program_->local_bytes = std::max(program_->local_bytes, local_top_);
  if (next_id_ > kMaxStatements || registers_.size() > kMaxRegisters) {
    fail_too_large(function.location);
  }
  frame.first_id = next_id_;
  next_id_ += static_cast<uint32_t>(function.statements.size()) + 1;
  starts_.resize(next_id_);
  return frame;
}

void Resolver::expand_body(Frame& frame) {
  uint32_t id = frame.first_id;
  for (const Statement& statement : frame.function->statements) {
    starts_[id++] = static_cast<uint32_t>(program_->instructions.size());
    if (names_statements_) {
      text_ = to_string(*frame.function, statement);
      if (text_.size() > kMaxTextBytes) text_.replace(kMaxTextBytes, std::string::npos, "...");
    }
    if (refusals_ == nullptr) {
      expand_statement(frame, statement);
    } else {
      expand_or_refuse(frame, statement);
    }
    if (program_->instructions.size() > kMaxInstructions) fail_too_large(statement.location);
  }
  starts_[id] = static_cast<uint32_t>(program_->instructions.size());
}

void Resolver::collect_refusals(std::vector<Refusal>* refusals) {
  refusals_ = refusals;
  run_pass();
}

void Resolver::expand_or_refuse(const Frame& frame, const Statement& statement) {
  try {
    expand_statement(frame, statement);
  } catch (const ProgramTooLarge&) {
    throw;
  } catch (const PtxError& error) {
    refusals_->push_back({error.line(), error.source_line(), form_name(statement), error.what()});
  }
}

void Resolver::expand_statement(const Frame& frame, const Statement& statement) {
  if (statement.opcode == "call") return expand_call(frame, statement);
  if (statement.opcode == "brx") return expand_computed_branch(frame, statement);
  if (statement.opcode == "ret" && frame.caller != nullptr) {
    return expand_jump(frame, statement, false);
  }
  if (!is_thread_parameter(frame, statement)) return expand_form(frame, statement);
  Statement local = statement;
  for (std::string& modifier : local.modifiers) {
    if (modifier.substr(0, 5) == "param") modifier = "local";
  }
  expand_form(frame, local);
}

/// brx.idx becomes one instruction a target, which sends away the lanes that have its index; a last
/// one ends the launch if lanes are left.
void Resolver::expand_computed_branch(const Frame& frame, const Statement& statement) {
  if (statement.operands.size() != 2 || statement.operands[1].kind != Operand::Kind::kVector) {
    fail(statement, "brx.idx takes an index and a list of targets");
  }
  Statement step = statement;
  uint64_t index = 0;
  for (const Operand& target : statement.operands[1].elements) {
    Operand number;
    number.kind = Operand::Kind::kInteger;
    number.bits = index++;
    step.operands = {statement.operands[0], number, target};
    expand_form(frame, step);
  }
  step.operands = {statement.operands[0]};
  expand_form(frame, step);
}

/// Parameters of device functions are memory of the thread: their caller's .param variables.
bool Resolver::is_thread_parameter(const Frame& frame, const Statement& statement) const {
  const std::string& opcode = statement.opcode;
  if (opcode != "ld" && opcode != "st" && opcode != "cvta") return false;
  const auto is_param = [](const std::string& name) { return name.substr(0, 5) == "param"; };
  if (std::none_of(statement.modifiers.begin(), statement.modifiers.end(), is_param)) return false;
  if (frame.caller != nullptr) return true;
  bool found = false;
  for (const Operand& operand : statement.operands) {
    for_symbols(operand, [&](const std::string& name) {
      const auto variable = frame.variables.find(name);
      found |= variable != frame.variables.end() && variable->second.space == Space::kLocal;
    });
  }
  return found;
}

/// To the end of the frame's function, under the guard of `like`.
void Resolver::expand_jump(const Frame& frame, const Statement& like, bool negate_guard) {
  Statement jump;
  jump.opcode = "bra";
  jump.guard = like.guard;
  jump.guard_negated = like.guard_negated != negate_guard;
  jump.location = like.location;
  Operand end;
  end.kind = Operand::Kind::kLabel;
  end.target = static_cast<int32_t>(frame.function->statements.size());
  jump.operands = {end};
  expand_form(frame, jump);
}

void Resolver::expand_move(const Frame& frame, const Statement& statement, int32_t index, int bits,
                           const Operand& value) {
  Statement move;
  move.opcode = "mov";
  move.modifiers = {"b" + std::to_string(bits)};
  move.location = statement.location;
  Operand destination;
  destination.kind = Operand::Kind::kRegister;
  destination.reg = 0;
  move.operands = {destination, value};
  expand_form(scratch_frame(frame, {index}), move);
}

Frame Resolver::scratch_frame(const Frame& frame, std::vector<int32_t> registers) const {
  Frame scratch;
  scratch.function = frame.function;
  scratch.caller = &frame;
  scratch.registers = std::move(registers);
  scratch.first_id = frame.first_id;
  return scratch;
}

void Resolver::expand_form(const Frame& frame, const Statement& statement) {
  const Form* form = Table::instance().find(statement);
  if (form == nullptr) {
    fail(statement, "unknown instruction form '" + form_name(statement) + "'");
  }
  if (const std::string refusal = form_refusal(module_.parsed.target, statement); !refusal.empty())
    fail(statement, refusal);
  StatementBuilder builder(*this, frame, statement);
  builder.build(*form);
  Instruction inst = builder.instruction();
  inst.statement = static_cast<uint32_t>(program_->locations.size());
  inst.accesses_begin = static_cast<uint32_t>(program_->accesses.size());
  inst.num_reads = static_cast<uint16_t>(builder.reads().size());
  inst.num_writes = static_cast<uint16_t>(builder.writes().size());
  std::vector<RegisterAccess>& accesses = program_->accesses;
  accesses.insert(accesses.end(), builder.reads().begin(), builder.reads().end());
  accesses.insert(accesses.end(), builder.writes().begin(), builder.writes().end());
  program_->locations.push_back(statement.location);
  program_->texts.push_back(text_);
  const std::string& opcode = statement.opcode;
  const bool leaves = opcode == "bra" || opcode == "ret" || opcode == "exit";
  flows_.push_back({!leaves || statement.guard >= 0, builder.has_target(), statement.guard >= 0});
  inst.branches = flows_.back().has_target;
  inst.falls_through = flows_.back().falls_through;
  program_->instructions.push_back(inst);
  note_arithmetic(statement, inst);
  program_->couples_clusters |= couples_clusters(statement);
}

/// Products and sums without a rounding modifier, which ptxas may fuse when one feeds the other.
void Resolver::note_arithmetic(const Statement& statement, const Instruction& inst) {
  const bool product = statement.opcode == "mul";
  if (!product && statement.opcode != "add" && statement.opcode != "sub") return;
  if (statement.modifiers.empty() || has_rounding(statement)) return;
  const std::string& type = statement.modifiers.back();
  if (type != "f32" && type != "f32x2" && type != "f64") return;
  const RegisterAccess* accesses = program_->accesses.data() + inst.accesses_begin;
  for (int i = 0; i < inst.num_reads && !product; ++i) {
    added_.push_back(static_cast<int32_t>(accesses[i].register_index));
  }
  for (int i = inst.num_reads; i < inst.num_reads + inst.num_writes && product; ++i) {
    multiplied_[accesses[i].register_index] = true;
  }
}

/// Numbers the registers that WGMMA works on while it is in flight, and marks the instructions of
/// threads that name one.
void Resolver::mark_wgmma_registers() {
  std::vector<int32_t>& numbers = program_->wgmma_registers;
  for (size_t i = 0; i < registers_.size(); ++i) {
    if (!registers_[i].asynchronous) continue;
    numbers.resize(registers_.size(), -1);
    numbers[i] = static_cast<int32_t>(program_->num_wgmma_registers++);
  }
  if (numbers.empty()) return;
  for (Instruction& inst : program_->instructions) {
    if (inst.instruction_class == InstructionClass::kWgmma) continue;
    const RegisterAccess* accesses = program_->accesses.data() + inst.accesses_begin;
    inst.touches_wgmma =
        std::any_of(accesses, accesses + inst.num_reads + inst.num_writes,
                    [&](const auto& access) { return numbers[access.register_index] >= 0; });
  }
}

/// Statement ids in branch targets become instruction indices.
void Resolver::bind_targets() {
  for (size_t i = 0; i < program_->instructions.size(); ++i) {
    Instruction& inst = program_->instructions[i];
    if (flows_[i].has_target) inst.target = starts_[inst.target];
  }
}

// ---- for StatementBuilder ----

int32_t Resolver::new_register(const std::string& name, int bits) {
  const auto index = static_cast<int32_t>(registers_.size());
  registers_.push_back({bits, false});
  program_->register_names.push_back(name);
  multiplied_.push_back(false);
  return index;
}

/// One for the whole program: the flag belongs to the thread.
int32_t Resolver::carry_register() {
  if (carry_register_ < 0) carry_register_ = new_register("CC.CF", 1);
  return carry_register_;
}

/// In the first pass all slots differ.
Slot Resolver::slot_of(int32_t index) const {
  return layout_.slots.empty() ? static_cast<Slot>(index) * 4 : layout_.slots[index];
}

Slot Resolver::constant(uint64_t value, int bits) {
  const auto [entry, added] = constants_.emplace(std::pair(bits, value), kNoSlot);
  if (!added) return entry->second;
  constexpr size_t kUnit = 128;
  std::vector<uint8_t>& bytes = program_->constants;
  const size_t offset = bytes.size();
  entry->second = kConstantSlot | static_cast<Slot>(offset);
  if (bits == 1) {
    const LaneMask mask = value != 0 ? kFullMask : 0;
    bytes.resize(offset + kUnit);
    std::copy_n(reinterpret_cast<const uint8_t*>(&mask), sizeof mask, bytes.begin() + offset);
    return entry->second;
  }
  const size_t lane_bytes = static_cast<size_t>(bits) / 8;
  bytes.resize(offset + lane_bytes * kWarpSize);
  for (size_t lane = 0; lane < kWarpSize; ++lane) {
    for (size_t i = 0; i < std::min<size_t>(lane_bytes, 8); ++i) {
      bytes[offset + lane * lane_bytes + i] = static_cast<uint8_t>(value >> (8 * i));
    }
  }
  return entry->second;
}

const Placement* Resolver::find_variable(const Frame& frame, const Statement& statement,
                                         const std::string& name) const {
  for (const Frame* scope = &frame; scope != nullptr && scope->function == frame.function;
       scope = scope->caller) {
    const auto found = scope->variables.find(name);
    if (found != scope->variables.end()) return &found->second;
  }
  if (const auto shared = shared_.find(name); shared != shared_.end()) return &shared->second;
  if (const auto stored = names_.places.find(name); stored != names_.places.end()) {
    return &stored->second;
  }
  if (!names_.variables.contains(name)) return nullptr;
  fail(statement, "variable '" + name + "' is declared .extern and defined nowhere");
}

void Resolver::fail(const Statement& statement, const std::string& message) const {
  throw PtxError(statement.location.ptx_line, line_text(statement.location), message);
}

void Resolver::fail_too_large(const SourceLocation& location) const {
  throw ProgramTooLarge(location.ptx_line, line_text(location), "the program is too large");
}

std::string Resolver::line_text(const SourceLocation& location) const {
  const auto line = static_cast<size_t>(location.ptx_line);
  const std::vector<std::string>& lines = module_.parsed.lines;
  return line >= 1 && line <= lines.size() ? lines[line - 1] : "";
}

}  // namespace pykernels::emulator
