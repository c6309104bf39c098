#include "emulator/module_check.h"

#include <set>
#include <utility>

#include "emulator/program.h"
#include "emulator/resolver.h"

namespace pykernels::emulator {
namespace {

Refusal without_form(const PtxError& error) {
  return {error.line(), error.source_line(), "", error.what()};
}

}  // namespace

ModuleCheck check_module(std::string_view text) {
  ModuleCheck check;
  std::vector<Refusal> found;
  try {
    const auto module = parse_module(text);
    const ModuleNames names(*module);
    for (const Function& function : module->parsed.functions) {
      check.num_instructions += static_cast<int>(function.statements.size());
      for (const Statement& statement : function.statements) ++check.forms[form_name(statement)];
      if (!function.is_entry || function.is_extern) continue;
      ++check.num_kernels;
      try {
        Resolver(names, function).collect_refusals(&found);
      } catch (const PtxError& error) {
        found.push_back(without_form(error));
      }
    }
  } catch (const PtxError& error) {
    found.push_back(without_form(error));
  }
  std::set<std::pair<int, std::string>> known;  // a function is expanded at each of its calls
  for (Refusal& refusal : found) {
    if (known.emplace(refusal.line, refusal.message).second) {
      check.refusals.push_back(std::move(refusal));
    }
  }
  return check;
}

}  // namespace pykernels::emulator
