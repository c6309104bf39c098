// Places of parameters and of shared and local variables.
#include <algorithm>

#include "emulator/machine/memory.h"
#include "emulator/resolver.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kDynamicSharedAlignment = 1024;
constexpr uint64_t kMaxSharedBytes = 1u << kClusterRankShift;
// CUDA programming guide: of a kernel since PTX 8.1, and of a thread.
constexpr uint64_t kMaxParameterBytes = 32764;
constexpr uint64_t kMaxLocalBytes = 512 * 1024;

uint64_t align_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

void Resolver::place_parameters() {
  uint64_t offset = 0;
  for (const Variable& variable : entry_.params) {
    offset = align_up(offset, variable.alignment);
    program_->parameters.push_back({variable.name, variable.type, static_cast<uint32_t>(offset),
                                    static_cast<uint32_t>(variable.bytes), variable.alignment});
    offset += variable.bytes;
    if (offset > kMaxParameterBytes) {
      throw PtxError(entry_.location.ptx_line, line_text(entry_.location),
                     "the parameters have more than 32764 bytes");
    }
  }
  program_->parameter_bytes = static_cast<uint32_t>(offset);
}

/// Shared variables that the kernel and the functions it calls name.
void Resolver::collect_shared(const Function& function, std::unordered_map<std::string, bool>& used,
                              std::vector<const Function*>& visited) const {
  if (std::find(visited.begin(), visited.end(), &function) != visited.end()) return;
  visited.push_back(&function);
  for (const Statement& statement : function.statements) {
    for (const Operand& operand : statement.operands) {
      for_symbols(operand, [&](const std::string& name) {
        used[name] = true;
        const auto callee = names_.functions.find(name);
        if (callee != names_.functions.end()) collect_shared(*callee->second, used, visited);
      });
    }
  }
}

/// Static variables in the module's order, then dynamic shared memory, where every extern one
/// starts.
void Resolver::place_shared() {
  std::unordered_map<std::string, bool> used;
  std::vector<const Function*> visited;
  collect_shared(entry_, used, visited);
  uint64_t offset = 0;
  std::vector<const Variable*> dynamic;
  shared_.clear();
  program_->shared_symbols.clear();
  const auto place = [&](const Variable& variable, const std::string& key) {
    if (variable.space != Space::kShared || !used.contains(variable.name)) return;
    if (variable.is_extern) {
      dynamic.push_back(&variable);
      return;
    }
    offset = align_up(offset, variable.alignment);
    shared_[key] = {Space::kShared, kSharedBase + offset};
    program_->shared_symbols.push_back(
        {variable.name, static_cast<uint32_t>(offset), static_cast<uint32_t>(variable.bytes)});
    offset += variable.bytes;
  };
  for (const Variable* variable : names_.shared) place(*variable, variable->name);
  for (const Function* function : visited) {
    for (const Variable& variable : function->variables) {
      place(variable, function->name + "/" + variable.name);
    }
  }
  if (offset > kMaxSharedBytes) {
    throw PtxError(entry_.location.ptx_line, "", "too much shared memory in '" + entry_.name + "'");
  }
  program_->static_shared_bytes = static_cast<uint32_t>(offset);
  const uint64_t start = kSharedBase + align_up(offset, kDynamicSharedAlignment);
  for (const Variable* variable : dynamic) {
    shared_[variable->name] = {Space::kShared, start};
    program_->shared_symbols.push_back(
        {variable->name, static_cast<uint32_t>(start - kSharedBase), 0});
  }
}

void Resolver::check_local_bytes(const Frame& frame, uint64_t bytes) const {
  if (bytes <= kMaxLocalBytes) return;
  const SourceLocation& location = frame.function->location;
  throw PtxError(location.ptx_line, line_text(location),
                 "too much local memory: a thread has 512 KiB at most");
}

/// Offsets of .local variables and of the .param variables of calls, from the frames below.
uint32_t Resolver::place_locals(Frame& frame) {
  uint64_t top = local_top_;
  for (const Variable& variable : frame.function->variables) {
    if (variable.space != Space::kLocal) continue;
    top = align_up(top, variable.alignment);
    frame.variables[variable.name] = {Space::kLocal, top};
    top += variable.bytes;
    check_local_bytes(frame, top);
  }
  return place_call_parameters(frame, static_cast<uint32_t>(align_up(top, 16)));
}

/// A call's parameters live from their first to their last mention; those of later calls take the
/// same memory.
uint32_t Resolver::place_call_parameters(Frame& frame, uint32_t base) {
  std::unordered_map<std::string, const Variable*> declared;
  for (const Variable& variable : frame.function->variables) {
    if (variable.space == Space::kParam) declared[variable.name] = &variable;
  }
  if (declared.empty()) return base;
  std::unordered_map<std::string, size_t> last;
  const std::vector<Statement>& statements = frame.function->statements;
  const auto visit = [&](size_t i, auto&& found) {
    for (const Operand& operand : statements[i].operands) {
      for_symbols(operand, [&](const std::string& name) {
        if (declared.contains(name)) found(name);
      });
    }
  };
  for (size_t i = 0; i < statements.size(); ++i)
    visit(i, [&](const auto& name) { last[name] = i; });
  uint64_t top = base;
  uint64_t highest = base;
  size_t busy_until = 0;
  for (size_t i = 0; i < statements.size(); ++i) {
    visit(i, [&](const std::string& name) {
      if (frame.variables.contains(name)) return;
      if (i > busy_until) top = base;
      top = align_up(top, declared[name]->alignment);
      frame.variables[name] = {Space::kLocal, top};
      top += declared[name]->bytes;
      check_local_bytes(frame, top);
      highest = std::max(highest, top);
      busy_until = std::max(busy_until, last[name]);
    });
  }
  return static_cast<uint32_t>(align_up(highest, 16));
}

}  // namespace pykernels::emulator
