// Loading a module: memory for its variables, then every kernel resolved.
#include "emulator/program.h"

#include <cstring>
#include <utility>

#include "emulator/machine/memory.h"
#include "emulator/resolver.h"

namespace pykernels::emulator {
namespace {

constexpr uint64_t kMaxModuleBytes = 256ull << 20;
constexpr uint64_t kMaxConstBytes = 64 * 1024;  // CUDA programming guide: of a module

/// Zeroed memory of .global and .const variables, with their initial values.
void place_variables(const ParsedModule& module, ModuleStorage& storage) {
  uint64_t total = 0;
  uint64_t const_bytes = 0;
  for (const Variable& variable : module.variables) {
    if (variable.space == Space::kShared || variable.is_extern) continue;
    total += variable.bytes + variable.alignment;
    if (variable.space == Space::kConst) const_bytes += variable.bytes;
    if (const_bytes > kMaxConstBytes)
      throw PtxError(1, "", "too much constant memory: a module has 64 KiB at most");
    if (total > kMaxModuleBytes) throw PtxError(1, "", "the module's variables are too large");
    auto block = std::make_unique<uint8_t[]>(variable.bytes + variable.alignment);
    const auto address = reinterpret_cast<uint64_t>(block.get());
    const uint64_t padding =
        (variable.alignment - address % variable.alignment) % variable.alignment;
    uint8_t* place = block.get() + padding;
    if (!variable.initial.empty()) {
      std::memcpy(place, variable.initial.data(), variable.initial.size());
    }
    storage.variables[variable.name] = {place, variable.bytes};
    storage.blocks.push_back(std::move(block));
  }
}

/// Addresses of variables within initial values. Shared variables have none before a kernel runs.
void relocate(const ParsedModule& module, ModuleStorage& storage) {
  for (const Relocation& relocation : module.relocations) {
    const auto target = storage.variables.find(relocation.target);
    const auto holder = storage.variables.find(relocation.variable);
    if (target == storage.variables.end() || holder == storage.variables.end()) {
      throw PtxError(1, "",
                     "the initial value of '" + relocation.variable + "' is the address of '" +
                         relocation.target + "', which has no memory");
    }
    // A variable declared twice may have had the initial value of its longer form.
    if (relocation.offset + sizeof(uint64_t) > holder->second.second) {
      throw PtxError(1, "", "more initial values than '" + relocation.variable + "' has elements");
    }
    const uint64_t address =
        reinterpret_cast<uint64_t>(target->second.first) + static_cast<uint64_t>(relocation.addend);
    std::memcpy(holder->second.first + relocation.offset, &address, sizeof address);
  }
}

}  // namespace

const Program* LoadedModule::find(const std::string& name) const {
  for (const auto& kernel : kernels) {
    if (kernel->name == name) return kernel.get();
  }
  return nullptr;
}

std::shared_ptr<LoadedModule> parse_module(std::string_view text) {
  auto module = std::make_shared<LoadedModule>();
  module->parsed = parse(text);
  place_variables(module->parsed, module->storage);
  relocate(module->parsed, module->storage);
  return module;
}

std::shared_ptr<LoadedModule> load_module(std::string_view text,
                                          const std::function<void()>& poll) {
  auto module = parse_module(text);
  const ModuleNames names(*module);
  size_t num_instructions = 0;
  for (const Function& function : module->parsed.functions) {
    if (function.is_entry && !function.is_extern) {
      if (poll) poll();
      module->kernels.push_back(Resolver(names, function).resolve());
      num_instructions += module->kernels.back()->instructions.size();
      if (num_instructions > kMaxModuleInstructions) {
        throw PtxError(function.location.ptx_line, "", "the module is too large");
      }
    }
  }
  return module;
}

}  // namespace pykernels::emulator
