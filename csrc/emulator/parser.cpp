// Modules, functions and the scopes of names; see parser.h.
#include "emulator/parser.h"

#include <array>
#include <utility>

#include "emulator/target.h"

namespace pykernels::emulator {
namespace {

std::vector<std::string> split_lines(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    lines.emplace_back(line);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

/// "%r12" is "%r" and 12; -1 where the name has no index.
std::pair<std::string_view, int64_t> split_index(std::string_view name) {
  size_t begin = name.size();
  while (begin > 0 && name[begin - 1] >= '0' && name[begin - 1] <= '9') --begin;
  const std::string_view digits = name.substr(begin);
  if (digits.empty() || digits.size() > 9 || (digits.size() > 1 && digits[0] == '0'))
    return {name, -1};
  int64_t index = 0;
  for (const char digit : digits) index = index * 10 + (digit - '0');
  return {name.substr(0, begin), index};
}

}  // namespace

ParsedModule parse(std::string_view text) {
  ParsedModule module = Parser(text).parse();
  module.lines = split_lines(text);
  return module;
}

ParsedModule Parser::parse() {
  parse_header();
  while (lexer_.peek().kind != TokenKind::kEnd) parse_module_item();
  return std::move(module_);
}

// ---- tokens ----

void Parser::expect(char punctuation) {
  if (accept(punctuation)) return;
  const Token& token = lexer_.peek();
  const std::string found =
      token.kind == TokenKind::kEnd ? "the text ends" : "found '" + std::string(token.text) + "'";
  fail(std::string("expected '") + punctuation + "', " + found);
}

bool Parser::accept(char punctuation) {
  if (!lexer_.peek().is(punctuation)) return false;
  lexer_.next();
  return true;
}

Token Parser::expect_identifier(const char* what) {
  if (lexer_.peek().kind != TokenKind::kIdentifier) fail(std::string("expected ") + what);
  return lexer_.next();
}

int64_t Parser::expect_integer(const char* what) {
  const bool negative = accept('-');
  if (lexer_.peek().kind != TokenKind::kInteger) fail(std::string("expected ") + what);
  const uint64_t bits = lexer_.next().bits;
  return static_cast<int64_t>(negative ? 0 - bits : bits);
}

// ---- module ----

void Parser::parse_header() {
  if (!lexer_.peek().is_directive(".version"))
    fail("expected '.version' at the start of the module");
  lexer_.next();
  if (lexer_.peek().kind != TokenKind::kFloat) fail("expected a version such as 9.0");
  const Token version = lexer_.next();
  module_.version = std::string(version.text);
  if (const std::string refusal = version_refusal(module_.version); !refusal.empty())
    fail_at(version, refusal);
  if (!lexer_.peek().is_directive(".target")) fail("expected '.target' after '.version'");
  lexer_.next();
  const Token target = expect_identifier("a target such as sm_90a");
  module_.target = std::string(target.text);
  if (const std::string refusal = target_refusal(module_.target, module_.version);
      !refusal.empty()) {
    fail_at(target, refusal);
  }
  while (accept(',')) expect_identifier("a target option");
}

void Parser::parse_module_item() {
  bool is_extern = false;
  for (;;) {
    const Token token = lexer_.next();
    const std::string_view name = token.text;
    if (token.is(';')) return;
    if (token.kind != TokenKind::kDotName) fail_at(token, "expected a directive");
    if (name == ".extern") {
      is_extern = true;
      continue;
    }
    if (name == ".visible" || name == ".weak" || name == ".common") continue;
    if (name == ".address_size") {
      if (expect_integer("an address size") != 64)
        fail_at(token, "only 64-bit addresses are supported");
    } else if (name == ".file") {
      parse_file();
    } else if (name == ".loc") {
      parse_location();
    } else if (name == ".section") {
      skip_section();
    } else if (name == ".pragma") {
      if (lexer_.next().kind != TokenKind::kString) fail_at(token, "expected a string");
      expect(';');
    } else if (name == ".entry" || name == ".func") {
      parse_function(name == ".entry", is_extern);
    } else if (name == ".global" || name == ".const" || name == ".shared") {
      parse_module_variables(name == ".global"  ? Space::kGlobal
                             : name == ".const" ? Space::kConst
                                                : Space::kShared,
                             is_extern);
    } else {
      fail_at(token, "unknown directive '" + std::string(name) + "'");
    }
    return;
  }
}

/// .file 1 "name" [, timestamp, size]
void Parser::parse_file() {
  const int64_t index = expect_integer("a file number");
  if (index < 0 || index > INT32_MAX) fail("file number out of range");
  if (lexer_.peek().kind != TokenKind::kString) fail("expected a file name");
  module_.files[static_cast<int>(index)] = std::string(lexer_.next().text);
  while (accept(',')) expect_integer("a number");
}

void Parser::skip_section() {
  const Token name = lexer_.next();
  if (name.kind != TokenKind::kDotName && name.kind != TokenKind::kIdentifier) {
    fail_at(name, "expected a section name");
  }
  expect('{');
  for (int depth = 1; depth > 0;) {
    const Token token = lexer_.next();
    if (token.kind == TokenKind::kEnd) fail_at(token, "the text ends inside a section");
    depth += token.is('{') ? 1 : token.is('}') ? -1 : 0;
  }
}

// ---- functions ----

void Parser::parse_function(bool is_entry, bool is_extern) {
  Function function;
  function.is_entry = is_entry;
  function.is_extern = true;
  variable_names_.clear();
  location_ = SourceLocation();
  scopes_.clear();
  open_scope(lexer_.peek().line);
  if (lexer_.peek().is_directive(".attribute")) {
    lexer_.next();
    skip_pointer_attributes();
  }
  if (!is_entry && lexer_.peek().is('(')) function.returns = parse_parameters(function);
  const Token name = expect_identifier("a function name");
  function.name = std::string(name.text);
  function.location.ptx_line = name.line;
  if (lexer_.peek().is('(')) function.params = parse_parameters(function);
  parse_attributes(function);
  if (lexer_.peek().is('{')) {
    if (is_extern) fail("an .extern function has no body");
    function.is_extern = false;
    parse_body(function);
  } else {
    expect(';');
    while (!scopes_.empty()) scopes_.pop_back();
  }
  if (is_entry) num_statements_ += function.statements.size();
  add_function(std::move(function), name.line);
}

void Parser::add_function(Function function, int line) {
  const auto found = functions_.find(function.name);
  if (found == functions_.end()) {
    functions_.emplace(function.name, module_.functions.size());
    module_.functions.push_back(std::move(function));
    return;
  }
  Function& known = module_.functions[found->second];
  if (function.is_extern) return;  // a declaration repeated
  if (!known.is_extern) lexer_.fail(line, "function '" + function.name + "' is defined twice");
  known = std::move(function);
}

void Parser::parse_attributes(Function& function) {
  static constexpr std::array kNumbers = {".minnctapersm", ".maxnctapersm", ".maxnreg",
                                          ".abi_preserve", ".abi_preserve_control"};
  static constexpr std::array kPlain = {".noreturn", ".blocksareclusters", ".unique"};
  const auto among = [](const auto& names, std::string_view name) {
    for (const std::string_view known : names) {
      if (known == name) return true;
    }
    return false;
  };
  while (lexer_.peek().kind == TokenKind::kDotName) {
    const Token token = lexer_.next();
    if (token.text == ".maxntid") {
      function.max_threads = parse_dimensions();
    } else if (token.text == ".reqntid") {
      function.required_threads = parse_dimensions();
    } else if (token.text == ".reqnctapercluster") {
      function.required_cluster = {1, 1, 1};
      parse_dimensions(&function.required_cluster);
    } else if (token.text == ".maxclusterrank") {
      const int64_t rank = expect_integer("a number of CTAs");
      if (rank < 1 || rank > kMaxDimension) fail_at(token, "dimension out of range");
      function.max_cluster_rank = static_cast<uint32_t>(rank);
    } else if (token.text == ".explicitcluster") {
      function.explicit_cluster = true;
    } else if (token.text == ".pragma") {
      if (lexer_.next().kind != TokenKind::kString) fail_at(token, "expected a string");
      accept(';');
    } else if (token.text == ".attribute") {
      skip_pointer_attributes();
    } else if (among(kNumbers, token.text)) {
      expect_integer("a number");
    } else if (!among(kPlain, token.text)) {
      fail_at(token, "unknown function attribute '" + std::string(token.text) + "'");
    }
  }
}

/// One to three numbers, also one by one where `sizes` is given; their product.
uint32_t Parser::parse_dimensions(std::array<uint32_t, 3>* sizes) {
  int64_t product = 1;
  int count = 0;
  do {
    const int64_t size = expect_integer("a dimension");
    if (size < 1 || size > kMaxDimension || ++count > 3) fail("dimension out of range");
    product *= size;
    if (sizes != nullptr) (*sizes)[static_cast<size_t>(count - 1)] = static_cast<uint32_t>(size);
    if (product > kMaxDimension) fail("dimension out of range");
  } while (accept(','));
  return static_cast<uint32_t>(product);
}

void Parser::parse_body(Function& function) {
  expect('{');
  while (!scopes_.empty()) {
    if (lexer_.peek().kind == TokenKind::kEnd) {
      fail("the text ends inside function '" + function.name + "'");
    }
    parse_body_item(function);
    if (function.is_entry) check_size(function);
  }
}

/// Before memory and time are spent on what no kernel can hold.
void Parser::check_size(const Function& function) {
  const size_t count = function.statements.size();
  const int line = function.location.ptx_line;
  if (count > kMaxInstructions) lexer_.fail(line, "the program is too large");
  if (num_statements_ + count > kMaxModuleInstructions)
    lexer_.fail(line, "the module is too large");
}

// ---- scopes ----

void Parser::open_scope(int line) {
  if (scopes_.size() >= kMaxScopeDepth) lexer_.fail(line, "scopes are nested too deeply");
  scopes_.emplace_back();
}

/// Settles the labels of the innermost scope; what it does not know may belong to the enclosing
/// one.
void Parser::close_scope(Function& function) {
  Scope scope = std::move(scopes_.back());
  scopes_.pop_back();
  std::vector<PendingLabel> unsettled;
  for (const PendingLabel& pending : scope.pending) settle(function, scope, pending, unsettled);
  for (PendingLabel& pending : unsettled) {
    if (scopes_.empty()) {
      lexer_.fail(function.statements[pending.statement].location.ptx_line,
                  "unknown label '" + pending.name + "'");
    }
    scopes_.back().pending.push_back(std::move(pending));
  }
}

bool Parser::settle(Function& function, const Scope& scope, const PendingLabel& pending,
                    std::vector<PendingLabel>& unsettled) {
  Operand& operand = function.statements[pending.statement].operands[pending.operand];
  if (const auto label = scope.labels.find(pending.name); label != scope.labels.end()) {
    (pending.element < 0 ? operand : operand.elements[pending.element]).target = label->second;
    return true;
  }
  const auto list = scope.target_lists.find(pending.name);
  if (pending.element >= 0 || list == scope.target_lists.end()) {
    unsettled.push_back(pending);
    return false;
  }
  operand.kind = Operand::Kind::kVector;
  num_targets_ += list->second.size();
  if (num_targets_ > kMaxTargets) {
    lexer_.fail(function.statements[pending.statement].location.ptx_line,
                "too many branch targets");
  }
  for (size_t i = 0; i < list->second.size(); ++i) {
    Operand label;
    label.kind = Operand::Kind::kLabel;
    label.symbol = list->second[i];
    function.statements[pending.statement].operands[pending.operand].elements.push_back(label);
    settle(function, scope,
           {pending.statement, pending.operand, static_cast<int>(i), list->second[i]}, unsettled);
  }
  return true;
}

int32_t Parser::declare_register(Function& function, std::string_view name, Type type, int line) {
  const auto index = static_cast<int32_t>(function.registers.size());
  if (!scopes_.back().registers.emplace(std::string(name), index).second) {
    lexer_.fail(line, "register '" + std::string(name) + "' is declared twice");
  }
  function.registers.push_back({std::string(name), type});
  return index;
}

/// -1 where this scope has no such register.
int32_t Parser::find_register(Function& function, Scope& scope, std::string_view name) {
  if (const auto known = scope.registers.find(name); known != scope.registers.end()) {
    return known->second;
  }
  if (scope.ranges.empty()) return -1;
  const auto [prefix, number] = split_index(name);
  if (number < 0) return -1;
  const auto range = scope.ranges.find(prefix);
  if (range == scope.ranges.end() || static_cast<uint64_t>(number) >= range->second.count)
    return -1;
  const auto index = static_cast<int32_t>(function.registers.size());
  scope.registers.emplace(std::string(name), index);
  function.registers.push_back({std::string(name), range->second.type});
  return index;
}

/// The name that is unique among the function's variables: the second `param0` becomes `param0#2`.
std::string Parser::declare_variable(Function& function, std::string_view name, int line) {
  const auto [entry, first] = variable_names_.emplace(std::string(name), 0);
  std::string unique(name);
  if (++entry->second > 1) unique += "#" + std::to_string(entry->second);
  if (!scopes_.back().variables.emplace(std::string(name), unique).second) {
    lexer_.fail(line,
                "variable '" + unique + "' is declared twice in function '" + function.name + "'");
  }
  return unique;
}

}  // namespace pykernels::emulator
