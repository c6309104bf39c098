// The parser's inside: one pass over the tokens, with a stack of scopes for the names of a function
// body. parser.cpp holds the module and functions, parser_declarations.cpp variables and registers,
// parser_statements.cpp statements and operands, parser_expressions.cpp constants.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "emulator/ir.h"
#include "emulator/lexer.h"

namespace pykernels::emulator {

// Bounds that real programs stay far below, so that malformed text cannot exhaust memory or stack.
inline constexpr int kMaxScopeDepth = 256;
inline constexpr int kMaxNesting = 64;  // of braces in operands and initialisers
inline constexpr uint64_t kMaxVariableBytes = 64ull << 20;  // of one variable
inline constexpr size_t kMaxTargets = 1 << 20;              // of all computed branches together
inline constexpr int64_t kMaxDimension = 1 << 20;           // of .maxntid and the like

class Parser {
 public:
  explicit Parser(std::string_view text) : lexer_(text) {}

  ParsedModule parse();

  /// The value of a constant expression.
  struct Constant {
    uint64_t bits = 0;
    bool is_unsigned = false;

    int64_t value() const { return static_cast<int64_t>(bits); }
  };

 private:
  struct NameHash {
    using is_transparent = void;
    size_t operator()(std::string_view name) const { return std::hash<std::string_view>()(name); }
  };
  template <typename Value>
  using NameMap = std::unordered_map<std::string, Value, NameHash, std::equal_to<>>;

  /// `.reg .b32 %r<100>`: the registers come into being when they are first named.
  struct RegisterRange {
    Type type = Type::kNone;
    uint64_t count = 0;
  };

  /// A label operand whose label has not been seen; element >= 0 within a vector of labels.
  struct PendingLabel {
    size_t statement = 0;
    size_t operand = 0;
    int element = -1;
    std::string name;
  };

  struct Scope {
    NameMap<int32_t> registers;
    NameMap<RegisterRange> ranges;
    NameMap<std::string> variables;  // to the name that is unique in the function
    NameMap<int32_t> labels;
    NameMap<std::vector<std::string>> target_lists;  // .branchtargets
    std::vector<PendingLabel> pending;
  };

  /// What stands between a declaration's space and its name.
  struct VariableHead {
    Type type = Type::kNone;
    uint32_t alignment = 0;
    uint32_t vector = 1;
  };

  // ---- module and functions ----
  void parse_header();
  void parse_module_item();
  void parse_file();
  void skip_section();
  void parse_function(bool is_entry, bool is_extern);
  void parse_attributes(Function& function);
  uint32_t parse_dimensions(std::array<uint32_t, 3>* sizes = nullptr);
  void check_size(const Function& function);
  void parse_body(Function& function);
  void add_function(Function function, int line);

  // ---- declarations ----
  std::vector<Variable> parse_parameters(Function& function);
  VariableHead parse_variable_head(Space space);
  void skip_pointer_attributes();
  Variable parse_variable_name(Space space, const VariableHead& head, bool is_extern);
  void parse_initialiser(Variable& variable, uint64_t element_bytes, bool sized);
  void parse_initial_value(Variable& variable, uint64_t element_bytes, int depth);
  void parse_module_variables(Space space, bool is_extern);
  void parse_function_variables(Function& function, Space space);
  void parse_registers(Function& function);
  uint32_t parse_alignment();

  // ---- scopes ----
  void open_scope(int line);
  void close_scope(Function& function);
  bool settle(Function& function, const Scope& scope, const PendingLabel& pending,
              std::vector<PendingLabel>& unsettled);
  int32_t declare_register(Function& function, std::string_view name, Type type, int line);
  int32_t find_register(Function& function, Scope& scope, std::string_view name);
  std::string declare_variable(Function& function, std::string_view name, int line);

  // ---- statements ----
  void parse_body_item(Function& function);
  void parse_body_directive(Function& function);
  void parse_location();
  void parse_branch_targets(std::string_view label, int line);
  void parse_statement(Function& function);
  void parse_guard(Function& function, Statement& statement);
  Operand parse_operand(Function& function, const Statement& statement);
  Operand parse_simple_operand(Function& function, int depth);
  Operand parse_name_operand(Function& function);
  Operand parse_label_operand(Function& function, const Statement& statement);
  Operand parse_list(Function& function, char end, int depth);
  Operand parse_address(Function& function);
  Operand parse_number(bool negative);
  bool begins_constant() const;
  Operand parse_literal();
  Constant parse_constant_unary(int depth);
  Constant parse_constant_rest(Constant left, int least, int depth);

  // ---- tokens ----
  void expect(char punctuation);
  bool accept(char punctuation);
  Token expect_identifier(const char* what);
  int64_t expect_integer(const char* what);
  [[noreturn]] void fail(const std::string& message) { lexer_.fail(lexer_.peek().line, message); }
  [[noreturn]] void fail_at(const Token& token, const std::string& message) {
    lexer_.fail(token.line, message);
  }

  Lexer lexer_;
  ParsedModule module_;
  NameMap<size_t> functions_;         // index into module_.functions
  NameMap<size_t> module_variables_;  // index into module_.variables
  std::vector<Scope> scopes_;
  NameMap<int> variable_names_;  // of the function: how often a name has been declared
  SourceLocation location_;      // of the last .loc
  size_t num_targets_ = 0;       // of computed branches
  size_t num_statements_ = 0;    // of the kernels so far
  int scope_line_ = 0;
};

/// True for the names of special registers, without a component: "%tid", "%lanemask_lt".
bool is_special_register(std::string_view name);

}  // namespace pykernels::emulator
