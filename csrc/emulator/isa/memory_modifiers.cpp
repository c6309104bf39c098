// The modifiers and operands of instructions that access memory, read when a module is loaded.
#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>

#include "emulator/isa/memory_access.h"

namespace pykernels::emulator {
namespace {

bool is_cache_modifier(std::string_view name) {
  static constexpr std::string_view kNames[] = {"ca",
                                                "cg",
                                                "cs",
                                                "lu",
                                                "cv",
                                                "wb",
                                                "wt",
                                                "L2::64B",
                                                "L2::128B",
                                                "L2::256B",
                                                "L1::evict_normal",
                                                "L1::evict_unchanged",
                                                "L1::evict_first",
                                                "L1::evict_last",
                                                "L1::no_allocate",
                                                "L2::evict_normal",
                                                "L2::evict_first",
                                                "L2::evict_last"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

bool is_word(std::string_view words, std::string_view name) {
  for (size_t begin = 0; begin < words.size();) {
    const size_t end = std::min(words.find(' ', begin), words.size());
    if (words.substr(begin, end - begin) == name) return true;
    begin = end + 1;
  }
  return false;
}

const std::unordered_map<std::string_view, Semantics>& semantics_names() {
  static const std::unordered_map<std::string_view, Semantics> names = {
      {"weak", Semantics::kWeak},       {"volatile", Semantics::kVolatile},
      {"relaxed", Semantics::kRelaxed}, {"acquire", Semantics::kAcquire},
      {"release", Semantics::kRelease}, {"acq_rel", Semantics::kAcquireRelease},
      {"mmio", Semantics::kMmio}};
  return names;
}

const std::unordered_map<std::string_view, Scope>& scope_names() {
  static const std::unordered_map<std::string_view, Scope> names = {{"cta", Scope::kCta},
                                                                    {"cluster", Scope::kCluster},
                                                                    {"gpu", Scope::kGpu},
                                                                    {"sys", Scope::kSys}};
  return names;
}

const std::unordered_map<std::string_view, Space>& space_names() {
  static const std::unordered_map<std::string_view, Space> names = {
      {"global", Space::kGlobal},         {"const", Space::kConst},
      {"local", Space::kLocal},           {"param", Space::kParam},
      {"param::entry", Space::kParam},    {"param::func", Space::kParam},
      {"shared", Space::kShared},         {"shared::cta", Space::kShared},
      {"shared::cluster", Space::kShared}};
  return names;
}

bool read_ordering(const std::string& name, MemoryModifiers& modifiers) {
  if (const auto found = semantics_names().find(name); found != semantics_names().end()) {
    // .mmio.relaxed is one semantics written as two modifiers.
    if (modifiers.semantics != Semantics::kMmio) modifiers.semantics = found->second;
    return true;
  }
  if (const auto found = scope_names().find(name); found != scope_names().end()) {
    modifiers.scope = found->second;
    return true;
  }
  return false;
}

bool read_place(const std::string& name, MemoryModifiers& modifiers) {
  if (const auto found = space_names().find(name); found != space_names().end()) {
    modifiers.space = found->second;
    modifiers.cluster = name == "shared::cluster";
    return true;
  }
  if (name == "v2" || name == "v4" || name == "v8") {
    modifiers.vector = name[1] - '0';
    return true;
  }
  if (name == "nc") return modifiers.non_coherent = true;
  if (name == "L2::cache_hint") return modifiers.cache_hint = true;
  return is_cache_modifier(name);
}

bool read_type(const std::string& name, MemoryModifiers& modifiers) {
  const Type type = type_from_name(name);
  if (type == Type::kNone) return false;
  Type& place = modifiers.type == Type::kNone ? modifiers.type : modifiers.second_type;
  if (place != Type::kNone) return false;
  place = type;
  return true;
}

}  // namespace

MemoryModifiers read_memory_modifiers(const Builder& builder, std::string_view operations) {
  MemoryModifiers modifiers;
  for (const std::string& name : builder.statement().modifiers) {
    if (is_word(operations, name) && modifiers.operation.empty()) {
      modifiers.operation = name;
    } else if (name == "noftz" && !operations.empty()) {
      modifiers.noftz = true;
    } else if (!read_ordering(name, modifiers) && !read_place(name, modifiers) &&
               !read_type(name, modifiers)) {
      builder.fail("unknown modifier ." + name);
    }
  }
  if (modifiers.type == Type::kNone) builder.fail("a type is missing");
  return modifiers;
}

namespace {

/// A packed type counts as its two scalars.
uint32_t scalar_bytes(Type type) {
  const bool packed = type == Type::kF16x2 || type == Type::kBf16x2;
  return packed ? 2 : std::max(1u, static_cast<uint32_t>(type_bits(type)) / 8);
}

}  // namespace

uint16_t memory_variant(const MemoryModifiers& modifiers, bool base_is_64) {
  // A shared::cluster address is resolved as the generic address of the same bytes: the rank
  // counts.
  const Space space = modifiers.cluster ? Space::kGeneric : modifiers.space;
  return static_cast<uint16_t>(
      (base_is_64 ? kBase64 : 0) | (modifiers.cluster ? kClusterAddress : 0) |
      (modifiers.non_coherent ? kNonCoherent : 0) | static_cast<int>(space) << kSpaceShift |
      static_cast<int>(modifiers.semantics) << kSemanticsShift |
      static_cast<int>(modifiers.scope) << kScopeShift |
      __builtin_ctz(scalar_bytes(modifiers.type)) << kScalarShift);
}

void build_address(Builder& builder, const Operand& operand, const MemoryModifiers& modifiers,
                   int slot) {
  Instruction& inst = builder.instruction();
  bool base_is_64 = false;
  builder.address(operand, modifiers.space, &inst.operands[slot], &base_is_64, &inst.immediate);
  inst.variant = memory_variant(modifiers, base_is_64);
}

void check_direction(const Builder& builder, std::string_view space, bool first) {
  const std::vector<std::string>& modifiers = builder.statement().modifiers;
  const auto leading =
      std::find_if(modifiers.begin(), modifiers.end(),
                   [](const std::string& name) { return space_names().contains(name); });
  if (leading != modifiers.end() && (*leading == space) != first) {
    builder.fail("destination and source spaces are the wrong way round");
  }
}

AddressOperand read_address(Builder& builder, const Operand& operand, Space space, bool cluster) {
  AddressOperand address;
  address.cluster = cluster;
  builder.address(operand, space, &address.base, &address.base_is_64, &address.offset);
  return address;
}

namespace {

/// The untyped type of the register's width, no narrower than `type`; `type` itself for anything
/// else.
Type register_type(const Builder& builder, const Operand& operand, Type type) {
  const int bits = builder.register_bits(operand);
  if (operand.kind != Operand::Kind::kRegister || bits == 0) return type;
  if (bits < type_bits(type)) {
    builder.fail("register of " + std::to_string(bits) + " bits for a value of ." +
                 std::string(type_name(type)));
  }
  return untyped(bits);
}

}  // namespace

Slot register_source(Builder& builder, const Operand& operand, Type type) {
  return builder.source(operand, register_type(builder, operand, type));
}

Slot register_destination(Builder& builder, const Operand& operand, Type type) {
  return builder.destination(operand, register_type(builder, operand, type));
}

}  // namespace pykernels::emulator
