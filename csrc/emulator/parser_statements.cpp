// Statements and operands; see parser.h.
#include <bit>
#include <utility>

#include "emulator/parser.h"

namespace pykernels::emulator {
namespace {

constexpr std::string_view kSpecialRegisters[] = {
    "%tid",
    "%ntid",
    "%ctaid",
    "%nctaid",
    "%laneid",
    "%warpid",
    "%nwarpid",
    "%smid",
    "%nsmid",
    "%gridid",
    "%lanemask_eq",
    "%lanemask_le",
    "%lanemask_lt",
    "%lanemask_ge",
    "%lanemask_gt",
    "%clock",
    "%clock_hi",
    "%clock64",
    "%globaltimer",
    "%globaltimer_lo",
    "%globaltimer_hi",
    "%clusterid",
    "%nclusterid",
    "%cluster_ctaid",
    "%cluster_nctaid",
    "%cluster_ctarank",
    "%cluster_nctarank",
    "%is_explicit_cluster",
    "%total_smem_size",
    "%aggr_smem_size",
    "%dynamic_smem_size",
    "%current_graph_exec",
    "%reserved_smem_offset_begin",
    "%reserved_smem_offset_end",
    "%reserved_smem_offset_cap",
    "%reserved_smem_offset_0",
    "%reserved_smem_offset_1",
};

bool is_call(std::string_view opcode) { return opcode == "call"; }

bool is_branch(std::string_view opcode) { return opcode == "bra" || opcode == "brx"; }

}  // namespace

bool is_special_register(std::string_view name) {
  for (const std::string_view known : kSpecialRegisters) {
    if (known == name) return true;
  }
  constexpr std::string_view kEnvironment = "%envreg";
  if (name.substr(0, kEnvironment.size()) != kEnvironment) return false;
  const std::string_view digits = name.substr(kEnvironment.size());
  return !digits.empty() && digits.size() <= 2 &&
         digits.find_first_not_of("0123456789") == std::string_view::npos;
}

void Parser::parse_body_item(Function& function) {
  const Token& token = lexer_.peek();
  if (token.kind == TokenKind::kDotName) return parse_body_directive(function);
  if (token.is('{')) {
    open_scope(token.line);
    lexer_.next();
  } else if (token.is('}')) {
    close_scope(function);
    lexer_.next();
  } else if (token.is(';')) {
    lexer_.next();
  } else {
    parse_statement(function);
  }
}

void Parser::parse_body_directive(Function& function) {
  const Token token = lexer_.next();
  if (token.text == ".reg") return parse_registers(function);
  if (token.text == ".shared") return parse_function_variables(function, Space::kShared);
  if (token.text == ".local") return parse_function_variables(function, Space::kLocal);
  if (token.text == ".param") return parse_function_variables(function, Space::kParam);
  if (token.text == ".loc") return parse_location();
  if (token.text == ".pragma") {
    if (lexer_.next().kind != TokenKind::kString) fail_at(token, "expected a string");
    while (accept(',')) {
      if (lexer_.next().kind != TokenKind::kString) fail_at(token, "expected a string");
    }
    return expect(';');
  }
  if (token.text == ".callprototype" || token.text == ".calltargets")
    fail_at(token, "indirect calls are not supported: function pointers are not emulated");
  fail_at(token, "unknown directive '" + std::string(token.text) + "' in a function");
}

/// .loc file line column [, function_name label [+ offset]] [, inlined_at file line column]
void Parser::parse_location() {
  const int64_t file = expect_integer("a file number");
  const int64_t line = expect_integer("a line number");
  expect_integer("a column");
  if (file < 0 || file > INT32_MAX || line < 0 || line > INT32_MAX)
    fail("number out of range in .loc");
  location_.file = static_cast<int>(file);
  location_.line = static_cast<int>(line);
  while (accept(',')) {
    const Token key = expect_identifier("'function_name' or 'inlined_at'");
    if (key.text == "function_name") {
      const Token label = lexer_.next();
      if (label.kind != TokenKind::kIdentifier && label.kind != TokenKind::kDotName) {
        fail_at(label, "expected a label");
      }
      if (accept('+')) expect_integer("an offset");
    } else if (key.text == "inlined_at") {
      for (int i = 0; i < 3; ++i) expect_integer("file, line and column");
    } else {
      fail_at(key, "unknown attribute of .loc");
    }
  }
}

/// name: .branchtargets L1, L2;
void Parser::parse_branch_targets(std::string_view label, int line) {
  lexer_.next();
  std::vector<std::string> targets;
  do {
    targets.emplace_back(expect_identifier("a label").text);
  } while (accept(','));
  expect(';');
  if (!scopes_.back().target_lists.emplace(std::string(label), std::move(targets)).second) {
    lexer_.fail(line, "label '" + std::string(label) + "' is defined twice");
  }
}

void Parser::parse_statement(Function& function) {
  Statement statement;
  if (lexer_.peek().is('@')) parse_guard(function, statement);
  const Token opcode = expect_identifier("an instruction");
  if (statement.guard < 0 && accept(':')) {
    if (lexer_.peek().is_directive(".branchtargets")) {
      return parse_branch_targets(opcode.text, opcode.line);
    }
    const auto index = static_cast<int32_t>(function.statements.size());
    if (!scopes_.back().labels.emplace(std::string(opcode.text), index).second) {
      fail_at(opcode, "label '" + std::string(opcode.text) + "' is defined twice");
    }
    return;
  }
  statement.opcode = std::string(opcode.text);
  statement.location = location_;
  statement.location.ptx_line = opcode.line;
  while (lexer_.peek().kind == TokenKind::kDotName) {
    statement.modifiers.emplace_back(lexer_.next().text.substr(1));
  }
  if (!accept(';')) {
    do {
      statement.operands.push_back(parse_operand(function, statement));
    } while (accept(','));
    expect(';');
  }
  function.statements.push_back(std::move(statement));
}

void Parser::parse_guard(Function& function, Statement& statement) {
  expect('@');
  statement.guard_negated = accept('!');
  const Token name = expect_identifier("a predicate");
  for (size_t i = scopes_.size(); i-- > 0 && statement.guard < 0;) {
    statement.guard = find_register(function, scopes_[i], name.text);
  }
  if (statement.guard < 0 || function.registers[statement.guard].type != Type::kPred) {
    fail_at(name, "'" + std::string(name.text) + "' is no predicate register");
  }
}

Operand Parser::parse_operand(Function& function, const Statement& statement) {
  const Token& token = lexer_.peek();
  if (is_call(statement.opcode)) {
    if (accept('(')) return parse_list(function, ')', 0);
  } else if (is_branch(statement.opcode) && token.kind == TokenKind::kIdentifier &&
             statement.operands.size() == (statement.opcode == "bra" ? 0u : 1u)) {
    return parse_label_operand(function, statement);
  }
  if (accept('[')) return parse_address(function);
  Operand first = parse_simple_operand(function, 0);
  if (!accept('|')) return first;
  Operand pair;
  pair.kind = Operand::Kind::kPair;
  pair.elements.push_back(std::move(first));
  pair.elements.push_back(parse_simple_operand(function, 0));
  return pair;
}

/// A register, literal, symbol, sink or vector of these.
Operand Parser::parse_simple_operand(Function& function, int depth) {
  if (depth > kMaxNesting) fail("operand nested too deeply");
  if (accept('{')) return parse_list(function, '}', depth);
  if (accept('!')) {
    Operand operand = parse_name_operand(function);
    if (operand.kind != Operand::Kind::kRegister) fail("'!' must precede a predicate");
    operand.negated = true;
    return operand;
  }
  const bool is_name = lexer_.peek().kind == TokenKind::kIdentifier && !begins_constant();
  return is_name ? parse_name_operand(function) : parse_literal();
}

Operand Parser::parse_number(bool negative) {
  const Token token = lexer_.next();
  Operand operand;
  operand.bits = token.bits;
  if (token.kind == TokenKind::kInteger) {
    operand.kind = Operand::Kind::kInteger;
    if (negative) operand.bits = 0 - operand.bits;
  } else if (token.kind == TokenKind::kFloat) {
    operand.kind = Operand::Kind::kFloat;
    operand.float_bits = token.float_bits;
    if (negative) operand.bits ^= 1ull << (token.float_bits - 1);
  } else if (token.kind == TokenKind::kEnd) {
    fail_at(token, "the text ends inside a statement");
  } else {
    fail_at(token, "expected an operand, found '" + std::string(token.text) + "'");
  }
  return operand;
}

Operand Parser::parse_name_operand(Function& function) {
  const Token name = expect_identifier("a name");
  Operand operand;
  if (name.text == "_") return operand;
  for (size_t i = scopes_.size(); i-- > 0;) {
    operand.reg = find_register(function, scopes_[i], name.text);
    if (operand.reg >= 0) {
      operand.kind = Operand::Kind::kRegister;
      return operand;
    }
    const auto variable = scopes_[i].variables.find(name.text);
    if (variable == scopes_[i].variables.end()) continue;
    operand.symbol = variable->second;
    break;
  }
  if (operand.symbol.empty() && name.text[0] == '%') {
    if (!is_special_register(name.text)) {
      fail_at(name, "unknown register '" + std::string(name.text) + "'");
    }
    operand.kind = Operand::Kind::kSpecial;
    operand.symbol = std::string(name.text);
    if (lexer_.peek().kind == TokenKind::kDotName) operand.symbol += lexer_.next().text;
    return operand;
  }
  operand.kind = Operand::Kind::kSymbol;
  if (operand.symbol.empty()) operand.symbol = std::string(name.text);
  if (lexer_.peek().is('+') || lexer_.peek().is('-')) {
    accept('+');
    operand.bits = static_cast<uint64_t>(expect_integer("an offset"));
  }
  return operand;
}

Operand Parser::parse_label_operand(Function& function, const Statement& statement) {
  const Token name = lexer_.next();
  Operand operand;
  operand.kind = Operand::Kind::kLabel;
  operand.symbol = std::string(name.text);
  scopes_.back().pending.push_back(
      {function.statements.size(), statement.operands.size(), -1, operand.symbol});
  return operand;
}

/// What follows an opening brace or parenthesis.
Operand Parser::parse_list(Function& function, char end, int depth) {
  Operand list;
  list.kind = Operand::Kind::kVector;
  if (accept(end)) return list;
  do {
    list.elements.push_back(parse_simple_operand(function, depth + 1));
  } while (accept(','));
  expect(end);
  return list;
}

/// [base], [base+4], [base+-4], [symbol+4], [16], [map, {coordinates}]
Operand Parser::parse_address(Function& function) {
  Operand address;
  address.kind = Operand::Kind::kAddress;
  Operand base = parse_simple_operand(function, 0);
  const bool literal = base.kind == Operand::Kind::kInteger;
  if (!literal && base.kind != Operand::Kind::kRegister && base.kind != Operand::Kind::kSymbol) {
    fail("an address needs a register, a variable or an integer");
  }
  if (base.kind == Operand::Kind::kSymbol) {
    address.bits = base.bits;
    base.bits = 0;
  }
  if (lexer_.peek().is('+') || lexer_.peek().is('-')) {
    accept('+');
    address.bits += static_cast<uint64_t>(expect_integer("an offset"));
  }
  address.elements.push_back(std::move(base));
  if (accept(',')) address.elements.push_back(parse_simple_operand(function, 0));
  expect(']');
  return address;
}

}  // namespace pykernels::emulator
