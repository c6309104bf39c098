// Calls: functions with a body are expanded where they are called, a few known ones have a handler.
#include <utility>

#include "emulator/resolver.h"

namespace pykernels::emulator {
namespace {

constexpr int kMaxCallDepth = 64;
constexpr const char* kIndirect =
    "indirect calls are not supported: function pointers are not emulated";

/// A function that something else than the module defines.
std::string without_body(const std::string& name) {
  const std::string message = "function '" + name + "' has no body";
  const bool allocates = name == "malloc" || name == "free";
  return message + (allocates ? ": device malloc is not emulated" : " in this module");
}

Operand register_operand(int32_t index) {
  Operand operand;
  operand.kind = Operand::Kind::kRegister;
  operand.reg = index;
  return operand;
}

Operand symbol_address(const std::string& symbol) {
  Operand base;
  base.kind = Operand::Kind::kSymbol;
  base.symbol = symbol;
  Operand address;
  address.kind = Operand::Kind::kAddress;
  address.elements.push_back(std::move(base));
  return address;
}

/// Adds a register of the program to a scratch frame; the operand that names it there.
Operand add_register(Frame& scratch, int32_t index) {
  scratch.registers.push_back(index);
  return register_operand(static_cast<int32_t>(scratch.registers.size()) - 1);
}

/// The program's register of a callee's parameter in .reg space.
int32_t formal_register(const Frame& inner, const Variable& formal) {
  const std::vector<RegisterDeclaration>& declared = inner.function->registers;
  for (size_t i = 0; i < declared.size(); ++i) {
    if (declared[i].name == formal.name) return inner.registers[i];
  }
  return -1;
}

}  // namespace

/// call [(returns),] function [, (arguments)]
void Resolver::expand_call(const Frame& frame, const Statement& statement) {
  std::vector<Operand> returns;
  std::vector<Operand> arguments;
  const Operand* name = nullptr;
  for (const Operand& operand : statement.operands) {
    if (operand.kind == Operand::Kind::kVector) {
      (name == nullptr ? returns : arguments) = operand.elements;
    } else if (name == nullptr) {
      name = &operand;
    } else {
      fail(statement, kIndirect);
    }
  }
  if (name == nullptr || name->kind != Operand::Kind::kSymbol) fail(statement, kIndirect);
  const auto found = names_.functions.find(name->symbol);
  if (found == names_.functions.end()) fail(statement, "unknown function '" + name->symbol + "'");
  const Function& callee = *found->second;
  if (callee.is_entry) fail(statement, "a kernel cannot be called");
  if (returns.size() != callee.returns.size() || arguments.size() != callee.params.size()) {
    fail(statement, "'" + callee.name + "' is declared with other numbers of arguments or results");
  }
  if (callee.is_extern) return call_builtin(frame, statement, callee, returns, arguments);
  inline_call(frame, statement, callee, returns, arguments);
}

/// Parameters in memory are the caller's own variables; those in registers are moved.
void Resolver::inline_call(const Frame& frame, const Statement& statement, const Function& callee,
                           const std::vector<Operand>& returns,
                           const std::vector<Operand>& arguments) {
  int depth = 0;
  for (const Frame* caller = &frame; caller != nullptr; caller = caller->caller) {
    if (caller->function == &callee) fail(statement, "recursive call of '" + callee.name + "'");
    if (++depth > kMaxCallDepth) fail(statement, "calls are nested too deeply");
  }
  const uint32_t saved_top = local_top_;
  const std::string text = text_;
  Frame inner = open_frame(callee, &frame);
  if (statement.guard >= 0) {
    Frame guard = scratch_frame(inner, frame.registers);
    expand_jump(guard, statement, true);
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    bind_parameter(frame, statement, inner, callee.params[i], arguments[i]);
    if (callee.params[i].space != Space::kRegister) continue;
    copy_register(frame, statement, formal_register(inner, callee.params[i]),
                  frame.registers[arguments[i].reg]);
  }
  for (size_t i = 0; i < returns.size(); ++i) {
    bind_parameter(frame, statement, inner, callee.returns[i], returns[i]);
  }
  expand_body(inner);
  text_ = text;
  for (size_t i = 0; i < returns.size(); ++i) {
    if (callee.returns[i].space != Space::kRegister) continue;
    copy_register(frame, statement, frame.registers[returns[i].reg],
                  formal_register(inner, callee.returns[i]));
  }
  local_top_ = saved_top;
}

void Resolver::bind_parameter(const Frame& frame, const Statement& statement, Frame& inner,
                              const Variable& formal, const Operand& actual) {
  if (formal.space == Space::kRegister) {
    if (actual.kind == Operand::Kind::kRegister) return;
    fail(statement, "a register must stand for '" + formal.name + "'");
  }
  const Placement* place = actual.kind == Operand::Kind::kSymbol
                               ? find_variable(frame, statement, actual.symbol)
                               : nullptr;
  if (place == nullptr || place->space != Space::kLocal) {
    fail(statement, "a .param variable of the caller must stand for '" + formal.name + "'");
  }
  inner.variables[formal.name] = *place;
}

/// Under the guard of the call.
void Resolver::copy_register(const Frame& frame, const Statement& statement, int32_t to,
                             int32_t from) {
  Frame scratch = scratch_frame(frame, frame.registers);
  Statement move;
  move.opcode = "mov";
  const int bits = registers_[to].bits;
  move.modifiers = {bits == 1 ? "pred" : "b" + std::to_string(bits)};
  move.location = statement.location;
  move.guard = statement.guard;
  move.guard_negated = statement.guard_negated;
  move.operands.push_back(add_register(scratch, to));
  move.operands.push_back(add_register(scratch, from));
  expand_form(scratch, move);
}

/// The call becomes one instruction "call.NAME" on registers: results, then arguments.
void Resolver::call_builtin(const Frame& frame, const Statement& statement, const Function& callee,
                            const std::vector<Operand>& returns,
                            const std::vector<Operand>& arguments) {
  Statement call;
  call.opcode = "call";
  call.modifiers = {callee.name};
  call.location = statement.location;
  call.guard = statement.guard;
  call.guard_negated = statement.guard_negated;
  if (Table::instance().find(call) == nullptr) {
    fail(statement, without_body(callee.name));
  }
  Frame scratch = scratch_frame(frame, frame.registers);
  const auto add = [&](const Variable& formal) {
    const int bits = formal.bytes == 8 ? 64 : 32;
    call.operands.push_back(add_register(scratch, new_register(formal.name, bits)));
  };
  for (const Variable& formal : callee.returns) add(formal);
  for (const Variable& formal : callee.params) add(formal);
  for (size_t i = 0; i < arguments.size(); ++i) {
    access_argument(scratch, statement, true, callee.params[i], arguments[i],
                    call.operands[returns.size() + i]);
  }
  expand_form(scratch, call);
  for (size_t i = 0; i < returns.size(); ++i) {
    access_argument(scratch, statement, false, callee.returns[i], returns[i], call.operands[i]);
  }
}

/// Loads an argument out of the caller's .param variable, or stores a result there.
void Resolver::access_argument(const Frame& scratch, const Statement& statement, bool is_load,
                               const Variable& formal, const Operand& actual,
                               const Operand& value) {
  if (actual.kind != Operand::Kind::kSymbol || (formal.bytes != 4 && formal.bytes != 8)) {
    fail(statement, "a .param variable of 32 or 64 bits must stand for '" + formal.name + "'");
  }
  Statement access;
  access.opcode = is_load ? "ld" : "st";
  access.modifiers = {"local", formal.bytes == 8 ? "b64" : "b32"};
  access.location = statement.location;
  access.guard = statement.guard;
  access.guard_negated = statement.guard_negated;
  access.operands = {value, symbol_address(actual.symbol)};
  if (!is_load) std::swap(access.operands[0], access.operands[1]);
  expand_form(scratch, access);
}

}  // namespace pykernels::emulator
