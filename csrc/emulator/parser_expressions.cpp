// Constant expressions, which may stand for any integer: PTX ISA, "Constant Expressions". Values
// have 64 bits and are signed unless their text or an operand says otherwise.
#include <string_view>

#include "emulator/parser.h"

namespace pykernels::emulator {
namespace {

struct Operator {
  std::string_view text;
  int precedence;
};

// The longer ones of those that begin alike come first. `%` begins a name where no blank follows.
constexpr Operator kOperators[] = {{"||", 1}, {"&&", 2}, {"==", 6}, {"!=", 6}, {"<<", 8},
                                   {">>", 8}, {"<=", 7}, {">=", 7}, {"<", 7},  {">", 7},
                                   {"|", 3},  {"^", 4},  {"&", 5},  {"+", 9},  {"-", 9},
                                   {"*", 10}, {"/", 10}, {"%", 10}};

bool compare(std::string_view text, const Parser::Constant& a, const Parser::Constant& b) {
  if (text == "==") return a.bits == b.bits;
  if (text == "!=") return a.bits != b.bits;
  const bool is_unsigned = a.is_unsigned || b.is_unsigned;
  const bool less = is_unsigned ? a.bits < b.bits : a.value() < b.value();
  if (text == "<") return less;
  if (text == ">=") return !less;
  return (text == "<=") == (less || a.bits == b.bits);
}

/// Truncated toward zero; the least signed value by -1 is itself.
uint64_t divide(const Parser::Constant& a, const Parser::Constant& b, bool remainder) {
  if (a.is_unsigned || b.is_unsigned) return remainder ? a.bits % b.bits : a.bits / b.bits;
  if (b.value() == -1) return remainder ? 0 : 0 - a.bits;
  return static_cast<uint64_t>(remainder ? a.value() % b.value() : a.value() / b.value());
}

uint64_t shift(const Parser::Constant& a, uint64_t count, bool left) {
  const bool negative = !a.is_unsigned && a.value() < 0;
  if (count >= 64) return !left && negative ? ~0ull : 0;
  if (left) return a.bits << count;
  return a.is_unsigned ? a.bits >> count : static_cast<uint64_t>(a.value() >> count);
}

Parser::Constant combine(std::string_view text, const Parser::Constant& a,
                         const Parser::Constant& b) {
  const bool is_unsigned = a.is_unsigned || b.is_unsigned;
  switch (text[0]) {
    case '+':
      return {a.bits + b.bits, is_unsigned};
    case '-':
      return {a.bits - b.bits, is_unsigned};
    case '*':
      return {a.bits * b.bits, is_unsigned};
    case '/':
    case '%':
      return {divide(a, b, text[0] == '%'), is_unsigned};
    case '^':
      return {a.bits ^ b.bits, is_unsigned};
    default:
      break;
  }
  if (text == "&&") return {static_cast<uint64_t>(a.bits != 0 && b.bits != 0), false};
  if (text == "||") return {static_cast<uint64_t>(a.bits != 0 || b.bits != 0), false};
  if (text == "&") return {a.bits & b.bits, is_unsigned};
  if (text == "|") return {a.bits | b.bits, is_unsigned};
  if (text == "<<" || text == ">>") return {shift(a, b.bits, text == "<<"), a.is_unsigned};
  return {static_cast<uint64_t>(compare(text, a, b)), false};
}

}  // namespace

bool Parser::begins_constant() const {
  const Token& token = lexer_.peek();
  return token.kind == TokenKind::kInteger || token.is('(') || token.is('~') || token.is('+') ||
         (token.kind == TokenKind::kIdentifier && token.text == "WARP_SZ");
}

/// A floating-point literal, or a constant expression of integers.
Operand Parser::parse_literal() {
  Constant first;
  if (accept('-')) {
    if (lexer_.peek().kind == TokenKind::kFloat) return parse_number(true);
    first = parse_constant_unary(0);
    first.bits = 0 - first.bits;
  } else if (begins_constant()) {
    first = parse_constant_unary(0);
  } else {
    return parse_number(false);
  }
  Operand operand;
  operand.kind = Operand::Kind::kInteger;
  operand.bits = parse_constant_rest(first, 0, 0).bits;
  return operand;
}

Parser::Constant Parser::parse_constant_unary(int depth) {
  if (depth > kMaxNesting) fail("operand nested too deeply");
  if (accept('+')) return parse_constant_unary(depth + 1);
  if (accept('-')) {
    const Constant value = parse_constant_unary(depth + 1);
    return {0 - value.bits, value.is_unsigned};
  }
  if (accept('~')) {
    const Constant value = parse_constant_unary(depth + 1);
    return {~value.bits, value.is_unsigned};
  }
  if (accept('!')) return {static_cast<uint64_t>(parse_constant_unary(depth + 1).bits == 0), false};
  if (accept('(')) {
    const Token& token = lexer_.peek();
    if (token.is_directive(".s64") || token.is_directive(".u64")) {
      const bool is_unsigned = lexer_.next().text == ".u64";
      expect(')');
      return {parse_constant_unary(depth + 1).bits, is_unsigned};
    }
    const Constant value = parse_constant_rest(parse_constant_unary(depth + 1), 0, depth + 1);
    expect(')');
    return value;
  }
  if (lexer_.peek().kind == TokenKind::kIdentifier && lexer_.peek().text == "WARP_SZ") {
    lexer_.next();
    return {32, false};
  }
  const std::string_view text = lexer_.peek().text;
  const Operand literal = parse_number(false);
  if (literal.kind != Operand::Kind::kInteger) fail("expected an integer");
  const bool marked = text.back() == 'U' || text.back() == 'u';
  return {literal.bits, marked || literal.bits >> 63 != 0};
}

/// What follows an operand, as long as its operators bind at least as tightly as `least`.
Parser::Constant Parser::parse_constant_rest(Constant left, int least, int depth) {
  if (depth > kMaxNesting) fail("operand nested too deeply");
  while (true) {
    if (least == 0 && accept('?')) {
      const Constant yes = parse_constant_rest(parse_constant_unary(depth + 1), 0, depth + 1);
      expect(':');
      const Constant no = parse_constant_rest(parse_constant_unary(depth + 1), 0, depth + 1);
      left = {left.bits != 0 ? yes.bits : no.bits, yes.is_unsigned || no.is_unsigned};
      continue;
    }
    const Operator* found = nullptr;
    for (const Operator& candidate : kOperators) {
      if (found == nullptr && lexer_.begins_with(candidate.text)) found = &candidate;
    }
    if (found == nullptr || found->precedence < least) return left;
    for (size_t i = 0; i < found->text.size(); ++i) lexer_.next();
    const Constant right =
        parse_constant_rest(parse_constant_unary(depth + 1), found->precedence + 1, depth + 1);
    const bool divides = found->text == "/" || found->text == "%";
    if (divides && right.bits == 0) fail("division by zero");
    left = combine(found->text, left, right);
  }
}

}  // namespace pykernels::emulator
