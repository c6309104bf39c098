#include "emulator/isa/table.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace pykernels::emulator {
namespace {

std::pair<std::string, std::vector<std::string>> split_spelling(std::string_view spelling) {
  size_t end = spelling.find('.');
  std::string opcode(spelling.substr(0, end));
  std::vector<std::string> modifiers;
  while (end != std::string_view::npos) {
    const size_t begin = end + 1;
    end = spelling.find('.', begin);
    modifiers.emplace_back(
        spelling.substr(begin, end == std::string_view::npos ? end : end - begin));
  }
  return {std::move(opcode), std::move(modifiers)};
}

}  // namespace

bool Builder::has_modifier(std::string_view name) const {
  const std::vector<std::string>& modifiers = statement().modifiers;
  return std::find(modifiers.begin(), modifiers.end(), name) != modifiers.end();
}

std::string canonical_key(std::string_view opcode, const std::vector<std::string>& modifiers) {
  std::vector<std::string_view> plain;
  std::string types;
  for (const std::string& modifier : modifiers) {
    if (type_from_name(modifier) == Type::kNone) {
      plain.push_back(modifier);
    } else {
      types += "." + modifier;
    }
  }
  std::sort(plain.begin(), plain.end());
  std::string key(opcode);
  for (const std::string_view modifier : plain) key.append(".").append(modifier);
  return key + types;
}

const Table& Table::instance() {
  static const Table table = [] {
    Table filled;
    add_address_forms(filled);
    add_arithmetic_forms(filled);
    add_async_copy_forms(filled);
    add_atomic_forms(filled);
    add_barrier_forms(filled);
    add_bulk_copy_forms(filled);
    add_compare_forms(filled);
    add_control_forms(filled);
    add_convert_forms(filled);
    add_fence_forms(filled);
    add_logic_forms(filled);
    add_matrix_forms(filled);
    add_mbarrier_forms(filled);
    add_memory_forms(filled);
    add_move_forms(filled);
    add_warp_forms(filled);
    add_wgmma_forms(filled);
    return filled;
  }();
  return table;
}

void Table::add(std::string_view spelling, InstructionClass instruction_class, Build build) {
  auto [opcode, modifiers] = split_spelling(spelling);
  const bool wildcard = modifiers.size() == 1 && modifiers[0] == "*";
  std::string key = wildcard ? opcode + ".*" : canonical_key(opcode, modifiers);
  Form form{key, instruction_class, std::move(build)};
  if (!forms_.emplace(key, std::move(form)).second) {
    throw std::logic_error("two rows of the instruction table for " + key);
  }
}

const Form* Table::find(const Statement& statement) const {
  const auto exact = forms_.find(canonical_key(statement.opcode, statement.modifiers));
  if (exact != forms_.end()) return &exact->second;
  const auto any = forms_.find(statement.opcode + ".*");
  return any == forms_.end() ? nullptr : &any->second;
}

}  // namespace pykernels::emulator
