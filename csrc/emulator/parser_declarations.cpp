// Variables, parameters and registers; see parser.h.
#include <bit>
#include <cstring>
#include <utility>

#include "emulator/parser.h"

namespace pykernels::emulator {
namespace {

/// The bytes of a literal as an element of this type.
uint64_t literal_bits(const Operand& literal, Type type, bool* fits) {
  *fits = true;
  if (literal.kind == Operand::Kind::kInteger) return literal.bits;
  if (literal.float_bits == 32) {
    *fits = type_bits(type) == 32;
    return literal.bits;
  }
  if (type_bits(type) == 64) return literal.bits;
  *fits = type == Type::kF32;
  return std::bit_cast<uint32_t>(static_cast<float>(std::bit_cast<double>(literal.bits)));
}

}  // namespace

uint32_t Parser::parse_alignment() {
  const int64_t alignment = expect_integer("an alignment");
  if (alignment < 1 || alignment > 65536 || (alignment & (alignment - 1)) != 0) {
    fail("an alignment must be a power of two");
  }
  return static_cast<uint32_t>(alignment);
}

/// (.managed), (.unified(1, 2)): what stands in the parentheses has no meaning here.
void Parser::skip_pointer_attributes() {
  expect('(');
  for (int depth = 1; depth > 0;) {
    const Token token = lexer_.next();
    if (token.kind == TokenKind::kEnd) fail_at(token, "the text ends inside an attribute");
    depth += token.is('(') ? 1 : token.is(')') ? -1 : 0;
  }
}

/// Alignment, type and decorations, in the order that PTX allows.
Parser::VariableHead Parser::parse_variable_head(Space space) {
  VariableHead head;
  while (lexer_.peek().kind == TokenKind::kDotName) {
    const Token token = lexer_.next();
    const std::string_view name = token.text;
    if (name == ".align") {
      const uint32_t alignment = parse_alignment();
      if (head.alignment == 0) head.alignment = alignment;
    } else if (name == ".attribute") {
      skip_pointer_attributes();
    } else if (name == ".v2" || name == ".v4") {
      head.vector = name == ".v2" ? 2 : 4;
    } else if (name == ".ptr" && space == Space::kParam) {
      // What the pointer points to: an optional space, then .align for the pointee.
      while (lexer_.peek().kind == TokenKind::kDotName) {
        if (lexer_.next().is_directive(".align")) parse_alignment();
      }
    } else if (const Type type = type_from_name(name.substr(1)); type != Type::kNone) {
      if (head.type != Type::kNone) fail_at(token, "a variable has one type");
      head.type = type;
    } else {
      fail_at(token, "unknown attribute '" + std::string(name) + "' of a variable");
    }
  }
  if (head.type == Type::kNone) fail("expected the type of a variable");
  if (head.type == Type::kPred && space != Space::kRegister)
    fail("a variable in memory cannot be .pred");
  return head;
}

Variable Parser::parse_variable_name(Space space, const VariableHead& head, bool is_extern) {
  Variable variable;
  variable.name = std::string(expect_identifier("a variable name").text);
  variable.space = space;
  variable.type = head.type;
  variable.is_extern = is_extern;
  const uint64_t element_bytes = static_cast<uint64_t>(type_bits(head.type) + 7) / 8;
  variable.bytes = element_bytes * head.vector;
  variable.alignment = head.alignment != 0 ? head.alignment : static_cast<uint32_t>(variable.bytes);
  bool sized = true;
  while (accept('[')) {
    if (accept(']')) {
      sized = false;
      continue;
    }
    const int64_t count = expect_integer("an array size");
    if (count < 0 || static_cast<uint64_t>(count) > kMaxVariableBytes ||
        variable.bytes * static_cast<uint64_t>(count) > kMaxVariableBytes) {
      fail("array '" + variable.name + "' is too large");
    }
    variable.bytes *= static_cast<uint64_t>(count);
    expect(']');
  }
  if (accept('=')) {
    parse_initialiser(variable, element_bytes, sized);
  } else if (!sized) {
    variable.bytes = 0;
  }
  return variable;
}

void Parser::parse_initialiser(Variable& variable, uint64_t element_bytes, bool sized) {
  const int line = lexer_.peek().line;
  parse_initial_value(variable, element_bytes, 0);
  if (!sized) variable.bytes = variable.initial.size();
  if (variable.initial.size() > variable.bytes) {
    lexer_.fail(line, "more initial values than '" + variable.name + "' has elements");
  }
}

/// A brace list, a literal, or the address of a variable: name, name+offset, generic(name).
void Parser::parse_initial_value(Variable& variable, uint64_t element_bytes, int depth) {
  if (depth > kMaxNesting) fail("initialiser nested too deeply");
  if (accept('{')) {
    if (accept('}')) return;
    do {
      parse_initial_value(variable, element_bytes, depth + 1);
    } while (accept(','));
    return expect('}');
  }
  uint64_t bits = 0;
  if (lexer_.peek().kind == TokenKind::kIdentifier && !begins_constant()) {
    Token name = lexer_.next();
    if (name.text == "generic" && accept('(')) {
      name = expect_identifier("a variable name");
      expect(')');
    }
    int64_t addend = 0;
    if (lexer_.peek().is('+') || lexer_.peek().is('-')) {
      accept('+');
      addend = expect_integer("an offset");
    }
    if (element_bytes != 8) fail_at(name, "an address needs an element of 64 bits");
    module_.relocations.push_back(
        {variable.name, variable.initial.size(), std::string(name.text), addend});
  } else {
    bool fits = true;
    const Token& token = lexer_.peek();
    const int line = token.line;
    bits = literal_bits(parse_literal(), variable.type, &fits);
    if (!fits) lexer_.fail(line, "a floating-point value of another width than its element");
  }
  if (variable.initial.size() + element_bytes > kMaxVariableBytes) fail("initialiser too large");
  for (uint64_t i = 0; i < element_bytes; ++i) {
    variable.initial.push_back(i < 8 ? static_cast<uint8_t>(bits >> (8 * i)) : 0);
  }
}

void Parser::parse_module_variables(Space space, bool is_extern) {
  const VariableHead head = parse_variable_head(space);
  do {
    const int line = lexer_.peek().line;
    Variable variable = parse_variable_name(space, head, is_extern);
    const auto [known, first] = module_variables_.emplace(variable.name, module_.variables.size());
    if (first) {
      module_.variables.push_back(std::move(variable));
    } else if (module_.variables[known->second].is_extern) {
      module_.variables[known->second] = std::move(variable);
    } else if (!is_extern) {
      lexer_.fail(line, "variable '" + variable.name + "' is defined twice");
    }
  } while (accept(','));
  expect(';');
}

/// ( .param .b64 name, .reg .u32 name, ... )
std::vector<Variable> Parser::parse_parameters(Function& function) {
  std::vector<Variable> parameters;
  expect('(');
  if (accept(')')) return parameters;
  do {
    const Token token = lexer_.next();
    if (!token.is_directive(".param") && !token.is_directive(".reg")) {
      fail_at(token, "expected '.param'");
    }
    const Space space = token.is_directive(".reg") ? Space::kRegister : Space::kParam;
    const VariableHead head = parse_variable_head(space);
    Variable variable = parse_variable_name(space, head, false);
    if (space == Space::kRegister) {
      declare_register(function, variable.name, head.type, token.line);
    } else {
      variable.name = declare_variable(function, variable.name, token.line);
    }
    parameters.push_back(std::move(variable));
  } while (accept(','));
  expect(')');
  return parameters;
}

void Parser::parse_function_variables(Function& function, Space space) {
  const VariableHead head = parse_variable_head(space);
  do {
    const int line = lexer_.peek().line;
    Variable variable = parse_variable_name(space, head, false);
    if (!variable.initial.empty())
      lexer_.fail(line, "only .global and .const variables are initialised");
    variable.name = declare_variable(function, variable.name, line);
    function.variables.push_back(std::move(variable));
  } while (accept(','));
  expect(';');
}

/// .reg .b32 %r<100>, %x;
void Parser::parse_registers(Function& function) {
  const VariableHead head = parse_variable_head(Space::kRegister);
  if (head.vector != 1) fail("vector registers are not supported");
  do {
    const Token name = expect_identifier("a register name");
    if (!accept('<')) {
      declare_register(function, name.text, head.type, name.line);
      continue;
    }
    const int64_t count = expect_integer("a number of registers");
    if (count < 0) fail("a number of registers must not be negative");
    expect('>');
    const RegisterRange range = {head.type, static_cast<uint64_t>(count)};
    if (!scopes_.back().ranges.emplace(std::string(name.text), range).second) {
      fail_at(name, "registers '" + std::string(name.text) + "' are declared twice");
    }
  } while (accept(','));
  expect(';');
}

}  // namespace pykernels::emulator
