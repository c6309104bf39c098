#include "emulator/coupling.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

namespace pykernels::emulator {
namespace {

bool has_any(const Statement& statement, std::initializer_list<std::string_view> names) {
  return std::any_of(statement.modifiers.begin(), statement.modifiers.end(), [&](const auto& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  });
}

/// Shared memory is reached from its own cluster only.
bool stays_in_cluster(const Statement& statement) {
  return has_any(statement, {"shared", "shared::cta", "shared::cluster"}) &&
         !has_any(statement, {"global"});
}

bool reads_time(const Operand& operand) {
  if (operand.kind == Operand::Kind::kSpecial) {
    return operand.symbol.starts_with("%clock") || operand.symbol.starts_with("%globaltimer");
  }
  return std::any_of(operand.elements.begin(), operand.elements.end(), reads_time);
}

}  // namespace

bool couples_clusters(const Statement& statement) {
  const std::string& opcode = statement.opcode;
  if (std::any_of(statement.operands.begin(), statement.operands.end(), reads_time)) return true;
  if (opcode == "call") return has_any(statement, {"vprintf"});
  if (opcode == "ld" || opcode == "st") {
    return !stays_in_cluster(statement) &&
           has_any(statement, {"volatile", "relaxed", "acquire", "release", "mmio", "cv", "wt"});
  }
  if (opcode == "atom" || opcode == "red") return !stays_in_cluster(statement);
  // cp.reduce.async.bulk names the destination first.
  if (opcode == "cp") return has_any(statement, {"reduce"}) && has_any(statement, {"global"});
  return opcode == "multimem";
}

}  // namespace pykernels::emulator
