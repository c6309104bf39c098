#include "emulator/isa/lanewise.h"

#include <utility>

namespace pykernels::emulator {

std::string dotted(Type type) {
  std::string text = ".";
  text += type_name(type);
  return text;
}

void expect_operands(Builder& builder, int count) {
  if (builder.num_operands() == count) return;
  builder.fail("the instruction takes " + std::to_string(count) + " operands, got " +
               std::to_string(builder.num_operands()));
}

Slot result(Builder& builder, const Operand& operand, Type type) {
  const Slot slot = builder.destination(operand, type);
  if (slot == kNoSlot) builder.fail("the result needs a register");
  return slot;
}

Slot predicate_result(Builder& builder, const Operand& operand) {
  return builder.destination(operand, Type::kPred);
}

void add_row(Table& table, std::string_view spelling, InstructionClass instruction_class,
             Handler handler, Type destination, std::initializer_list<Type> sources) {
  table.add(spelling, instruction_class,
            [handler, destination, types = std::vector<Type>(sources)](Builder& builder) {
              expect_operands(builder, static_cast<int>(types.size()) + 1);
              const std::vector<Operand>& operands = builder.statement().operands;
              Slot slots[6];
              for (size_t i = 0; i < types.size(); ++i) {
                slots[i + 1] = builder.source(operands[i + 1], types[i]);
              }
              slots[0] = result(builder, operands[0], destination);
              Instruction& inst = builder.instruction();
              for (size_t i = 0; i <= types.size(); ++i) inst.operands[i] = slots[i];
              inst.handler = handler;
            });
}

std::vector<std::string> spellings(std::string_view spelling) {
  const size_t open = spelling.find('[');
  if (open == std::string_view::npos) return {std::string(spelling)};
  const size_t close = spelling.find(']', open);
  const std::string before(spelling.substr(0, open));
  const std::string choice(spelling.substr(open + 1, close - open - 1));
  std::vector<std::string> all;
  for (const std::string& rest : spellings(spelling.substr(close + 1))) {
    all.push_back(before + rest);
    all.push_back(before + choice + rest);
  }
  return all;
}

}  // namespace pykernels::emulator
