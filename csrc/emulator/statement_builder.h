// The resolver's side of isa/table.h: what a form may ask while one statement is bound.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "emulator/resolver.h"

namespace pykernels::emulator {

class StatementBuilder final : public Builder {
 public:
  StatementBuilder(Resolver& resolver, const Frame& frame, const Statement& statement)
      : resolver_(resolver), frame_(frame), statement_(statement) {}

  const Statement& statement() const override { return statement_; }
  Instruction& instruction() override { return instruction_; }
  Slot source(const Operand& operand, Type type) override;
  Slot destination(const Operand& operand, Type type) override;
  Slot accumulator(const Operand& operand, Type type) override;
  Slot fragment(const Operand& operand, Type type) override;
  Slot predicate(const Operand& operand, bool* negated) override;
  Slot carry(bool is_write) override;
  int register_bits(const Operand& operand) const override;
  void address(const Operand& operand, Space space, Slot* base, bool* base_is_64,
               int64_t* offset) override;
  Space symbol_space(const Operand& operand) const override;
  int64_t integer(const Operand& operand) override;
  uint32_t target(const Operand& operand) override;
  SideData* keep(std::unique_ptr<SideData> data) override;
  [[noreturn]] void fail(const std::string& message) const override;

  /// Binds the guard, then lets the form fill the instruction.
  void build(const Form& form);
  bool has_target() const { return has_target_; }
  const std::vector<RegisterAccess>& reads() const { return reads_; }
  const std::vector<RegisterAccess>& writes() const { return writes_; }

 private:
  int32_t program_register(const Operand& operand) const;
  Slot read(int32_t index);
  Slot write(int32_t index);
  Slot materialise(const Operand& operand, Type type);
  uint64_t literal(const Operand& operand, Type type) const;
  void check_width(int32_t index, Type type) const;

  Resolver& resolver_;
  const Frame& frame_;
  const Statement& statement_;
  Instruction instruction_;
  std::vector<RegisterAccess> reads_;
  std::vector<RegisterAccess> writes_;
  bool has_target_ = false;
};

}  // namespace pykernels::emulator
