// All that the emulator refuses of a module, where loading it stops at the first.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace pykernels::emulator {

struct Refusal {
  int line = 0;  // of the PTX text, from 1
  std::string source_line;
  std::string form;  // opcode with modifiers; empty where no statement is at fault
  std::string message;
};

struct ModuleCheck {
  int num_kernels = 0;
  int num_instructions = 0;          // statements of all functions, each once
  std::map<std::string, int> forms;  // instructions by opcode with modifiers
  std::vector<Refusal> refusals;
};

/// Resolves every statement of every kernel, also after one that is refused. Text that is malformed
/// has one refusal. Throws nothing but std::bad_alloc.
ModuleCheck check_module(std::string_view text);

}  // namespace pykernels::emulator
