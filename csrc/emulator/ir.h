// The typed intermediate representation: what the parser makes of PTX text, before any instruction
// form is looked up. It knows syntax and declarations, no semantics.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace pykernels::emulator {

// Of one kernel, and of all kernels of a module. Calls are expanded; nested ones can multiply.
inline constexpr size_t kMaxInstructions = 1u << 19;
inline constexpr size_t kMaxModuleInstructions = 1u << 20;

/// Malformed, truncated or unsupported PTX, with the line (from 1) and its text. A Python PtxError.
class PtxError : public std::runtime_error {
 public:
  PtxError(int line, const std::string& source_line, const std::string& message);

  int line() const { return line_; }
  const std::string& source_line() const { return source_line_; }

 private:
  int line_;
  std::string source_line_;
};

enum class Type : uint8_t {
  kNone,
  kPred,
  kB8,
  kB16,
  kB32,
  kB64,
  kB128,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kF16,
  kF16x2,
  kBf16,
  kBf16x2,
  kTf32,
  kF32,
  kF32x2,
  kF64,
  kE4m3,
  kE5m2,
  kE4m3x2,
  kE5m2x2,
};

/// Bits of a value of the type; 1 for predicates.
int type_bits(Type type);
/// The type spelled by a modifier such as "u32"; kNone if it spells none.
Type type_from_name(std::string_view name);
std::string_view type_name(Type type);
/// The untyped type (.b8 to .b128) of this width; kNone if there is none.
Type untyped(int bits);

enum class Space : uint8_t { kGeneric, kParam, kGlobal, kConst, kShared, kLocal, kRegister };

/// Where an instruction stands: PTX line, and CUDA file and line where .loc gives them.
struct SourceLocation {
  int ptx_line = 0;
  int file = -1;  // key of Module::files
  int line = 0;
};

struct Operand {
  enum class Kind : uint8_t {
    kRegister,  // reg
    kInteger,   // bits, two's complement
    kFloat,     // bits: the FP64 pattern for 0d and decimal literals, FP32 for 0f; see float_bits
    kSymbol,    // symbol: a variable, parameter or function; bits: offset added to its address
    kSpecial,   // symbol: %tid.x and the like
    kAddress,   // elements[0]: the base (register, symbol or integer); bits: the offset;
                // elements[1] in a tensor copy: the coordinate vector
    kVector,    // elements
    kPair,      // elements[0] | elements[1]
    kLabel,     // symbol, target: statement index
    kSink,      // _
  };

  Kind kind = Kind::kSink;
  bool negated = false;    // !p
  uint8_t float_bits = 0;  // 32 or 64 with kFloat
  int32_t reg = -1;        // index into Function::registers
  int32_t target = -1;
  uint64_t bits = 0;
  std::string symbol;
  std::vector<Operand> elements;
};

struct Statement {
  int32_t guard = -1;  // predicate register, or -1
  bool guard_negated = false;
  std::string opcode;                  // "add"
  std::vector<std::string> modifiers;  // {"rn", "f32"}, in the order written
  std::vector<Operand> operands;
  SourceLocation location;
};

// `call` has the operands [returns,] function [, arguments]: vectors around a symbol. `brx.idx` has
// the index and a vector of labels.

struct RegisterDeclaration {
  std::string name;
  Type type = Type::kNone;
};

/// A variable of .global, .const, .shared, .local or .param. bytes is 0 for `.extern .shared x[]`.
struct Variable {
  std::string name;
  Space space = Space::kGlobal;
  Type type = Type::kB8;
  uint64_t bytes = 0;
  uint32_t alignment = 1;
  bool is_extern = false;
  std::vector<uint8_t> initial;  // empty: zero for .global and .const, undefined for the rest
};

/// Where the initialiser of a variable holds another variable's address.
struct Relocation {
  std::string variable;
  uint64_t offset = 0;
  std::string target;
  int64_t addend = 0;
};

struct Function {
  std::string name;
  bool is_entry = false;
  bool is_extern = false;
  std::vector<Variable> returns;
  std::vector<Variable> params;
  std::vector<RegisterDeclaration> registers;  // scoped names are made unique by index, not by name
  std::vector<Variable> variables;             // .shared, .local and call .param, of every scope
  std::vector<Statement> statements;
  uint32_t max_threads = 0;                       // .maxntid (product), 0 if none
  uint32_t required_threads = 0;                  // .reqntid (product), 0 if none
  std::array<uint32_t, 3> required_cluster = {};  // .reqnctapercluster, zeros if none
  uint32_t max_cluster_rank = 0;                  // .maxclusterrank, 0 if none
  bool explicit_cluster = false;                  // .explicitcluster
  SourceLocation location;
};

struct ParsedModule {
  std::string version;  // "9.0"
  std::string target;   // "sm_90a"
  std::map<int, std::string> files;
  std::vector<Variable> variables;
  std::vector<Relocation> relocations;
  std::vector<Function> functions;
  std::vector<std::string> lines;  // the text, for messages
};

/// The statement as PTX, long operand lists shortened.
std::string to_string(const Function& function, const Statement& statement);

/// Parses a whole module. Throws PtxError; never crashes or hangs on any input.
ParsedModule parse(std::string_view text);

}  // namespace pykernels::emulator
