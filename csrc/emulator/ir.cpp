#include "emulator/ir.h"

#include <array>
#include <cstdio>

namespace pykernels::emulator {
namespace {

struct TypeInfo {
  std::string_view name;
  int bits;
};

// In the order of the enumeration.
constexpr std::array<TypeInfo, 27> kTypes = {{
    {"", 0},        {"pred", 1},    {"b8", 8},      {"b16", 16},   {"b32", 32},   {"b64", 64},
    {"b128", 128},  {"u8", 8},      {"u16", 16},    {"u32", 32},   {"u64", 64},   {"s8", 8},
    {"s16", 16},    {"s32", 32},    {"s64", 64},    {"f16", 16},   {"f16x2", 32}, {"bf16", 16},
    {"bf16x2", 32}, {"tf32", 32},   {"f32", 32},    {"f32x2", 64}, {"f64", 64},   {"e4m3", 8},
    {"e5m2", 8},    {"e4m3x2", 16}, {"e5m2x2", 16},
}};

std::string message_of(int line, const std::string& source_line, const std::string& message) {
  std::string text = "PTX line " + std::to_string(line) + ": " + message;
  const size_t begin = source_line.find_first_not_of(" \t");
  if (begin != std::string::npos) text += ": " + source_line.substr(begin, 200);
  return text;
}

std::string number(const Operand& operand) {
  char buffer[24];
  if (operand.kind == Operand::Kind::kFloat) {
    const bool single = operand.float_bits == 32;
    std::snprintf(buffer, sizeof buffer, single ? "0f%08llX" : "0d%016llX",
                  static_cast<unsigned long long>(operand.bits));
  } else {
    std::snprintf(buffer, sizeof buffer, "%lld", static_cast<long long>(operand.bits));
  }
  return buffer;
}

std::string offset_suffix(uint64_t bits) {
  const int64_t offset = static_cast<int64_t>(bits);
  if (offset == 0) return "";
  return (offset > 0 ? "+" : "") + std::to_string(offset);
}

std::string to_string(const Function& function, const Operand& operand);

/// Elements with commas; of long lists (accumulators) the first and the last ones.
std::string list(const Function& function, const std::vector<Operand>& elements) {
  constexpr size_t kShown = 4;
  const bool all = elements.size() <= 2 * kShown;
  std::string text;
  for (size_t i = 0; i < elements.size(); ++i) {
    if (!all && i == kShown) {
      text += ", ...";
      i = elements.size() - kShown;
    }
    if (i != 0) text += ", ";
    text += to_string(function, elements[i]);
  }
  return text;
}

std::string to_string(const Function& function, const Operand& operand) {
  const std::string sign = operand.negated ? "!" : "";
  switch (operand.kind) {
    case Operand::Kind::kRegister:
      return sign + function.registers[operand.reg].name;
    case Operand::Kind::kInteger:
    case Operand::Kind::kFloat:
      return number(operand);
    case Operand::Kind::kSymbol:
      return operand.symbol + offset_suffix(operand.bits);
    case Operand::Kind::kSpecial:
    case Operand::Kind::kLabel:
      return operand.symbol;
    case Operand::Kind::kAddress: {
      std::string text =
          "[" + to_string(function, operand.elements[0]) + offset_suffix(operand.bits);
      if (operand.elements.size() > 1) text += ", " + to_string(function, operand.elements[1]);
      return text + "]";
    }
    case Operand::Kind::kVector:
      return "{" + list(function, operand.elements) + "}";
    case Operand::Kind::kPair:
      return to_string(function, operand.elements[0]) + "|" +
             to_string(function, operand.elements[1]);
    case Operand::Kind::kSink:
      return "_";
  }
  return "";
}

}  // namespace

PtxError::PtxError(int line, const std::string& source_line, const std::string& message)
    : std::runtime_error(message_of(line, source_line, message)),
      line_(line),
      source_line_(source_line) {}

int type_bits(Type type) { return kTypes[static_cast<size_t>(type)].bits; }

Type type_from_name(std::string_view name) {
  for (size_t i = 1; i < kTypes.size(); ++i) {
    if (kTypes[i].name == name) return static_cast<Type>(i);
  }
  return Type::kNone;
}

std::string_view type_name(Type type) { return kTypes[static_cast<size_t>(type)].name; }

Type untyped(int bits) {
  switch (bits) {
    case 8:
      return Type::kB8;
    case 16:
      return Type::kB16;
    case 32:
      return Type::kB32;
    case 64:
      return Type::kB64;
    case 128:
      return Type::kB128;
    default:
      return Type::kNone;
  }
}

std::string to_string(const Function& function, const Statement& statement) {
  std::string text;
  if (statement.guard >= 0) {
    text = statement.guard_negated ? "@!" : "@";
    text += function.registers[statement.guard].name + " ";
  }
  text += statement.opcode;
  for (const std::string& modifier : statement.modifiers) text += "." + modifier;
  for (size_t i = 0; i < statement.operands.size(); ++i) {
    text += (i == 0 ? " " : ", ") + to_string(function, statement.operands[i]);
  }
  return text;
}

}  // namespace pykernels::emulator
