// Comparisons: setp and set.
//
// An unordered comparison (equ, ltu, ...) holds where an operand is NaN, an ordered one does not.
#include <cmath>

#include "emulator/isa/lanewise.h"
#include "emulator/isa/select.h"
#include "emulator/numerics/convert.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kCompare;

enum class Combine : uint8_t { kNone, kAnd, kOr, kXor };

// Bits of Instruction::variant.
constexpr uint16_t kCombineMask = 3;
constexpr uint16_t kNegated = 4;  // the predicate that is combined

// Slots beside the two sources in 1 and 2.
constexpr int kSecondResult = 3;
constexpr int kCombined = 4;

struct Equal {
  template <typename T>
  bool operator()(T a, T b) const {
    return a == b;
  }
};
struct NotEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return a != b;
  }
};
struct Less {
  template <typename T>
  bool operator()(T a, T b) const {
    return a < b;
  }
};
struct LessEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return a <= b;
  }
};
struct Greater {
  template <typename T>
  bool operator()(T a, T b) const {
    return a > b;
  }
};
struct GreaterEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return a >= b;
  }
};
// Ordered "not equal" and the unordered rest.
struct OrderedNotEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return a < b || a > b;
  }
};
struct UnorderedEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return !(a < b || a > b);
  }
};
struct UnorderedLess {
  template <typename T>
  bool operator()(T a, T b) const {
    return !(a >= b);
  }
};
struct UnorderedLessEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return !(a > b);
  }
};
struct UnorderedGreater {
  template <typename T>
  bool operator()(T a, T b) const {
    return !(a <= b);
  }
};
struct UnorderedGreaterEqual {
  template <typename T>
  bool operator()(T a, T b) const {
    return !(a < b);
  }
};
struct Numbers {
  template <typename T>
  bool operator()(T a, T b) const {
    return a == a && b == b;
  }
};
struct NotNumbers {
  template <typename T>
  bool operator()(T a, T b) const {
    return a != a || b != b;
  }
};

// What the lanes of a source hold.
template <typename Value>
struct Plain {
  using Lane = LaneOf<Value>;
  static Value load(Lane lane) { return from_lane<Value>(lane); }
};
struct FlushedF32 {
  using Lane = uint32_t;
  static float load(Lane lane) { return std::bit_cast<float>(flush_f32(lane)); }
};
struct F16 {
  using Lane = uint32_t;
  static float load(Lane lane) { return std::bit_cast<float>(f16_to_f32(lane & 0xffff)); }
};
struct FlushedF16 {
  using Lane = uint32_t;
  static float load(Lane lane) { return F16::load((lane & 0x7c00) == 0 ? lane & 0x8000 : lane); }
};
struct Bf16 {
  using Lane = uint32_t;
  static float load(Lane lane) { return std::bit_cast<float>(lane << 16); }
};
/// The upper element of a pair.
template <typename Element>
struct Upper {
  using Lane = uint32_t;
  static float load(Lane lane) { return Element::load(lane >> 16); }
};

using TestFunction = LaneMask (*)(Warp& warp, const Instruction& inst, LaneMask active);

template <typename Compare, typename Source>
LaneMask test_lanes(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto* a = warp.lanes<typename Source::Lane>(inst.operands[1]);
  const auto* b = warp.lanes<typename Source::Lane>(inst.operands[2]);
  LaneMask holds = 0;
  if (active == kFullMask) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      holds |= Compare{}(Source::load(a[lane]), Source::load(b[lane])) ? kLaneBits.of[lane] : 0;
    }
    return holds;
  }
  for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (Compare{}(Source::load(a[lane]), Source::load(b[lane]))) holds |= 1u << lane;
  }
  return holds;
}

LaneMask combine(Warp& warp, const Instruction& inst, LaneMask holds) {
  const auto how = static_cast<Combine>(inst.variant & kCombineMask);
  if (how == Combine::kNone) return holds;
  LaneMask other = warp.mask(inst.operands[kCombined]);
  if ((inst.variant & kNegated) != 0) other = ~other;
  if (how == Combine::kAnd) return holds & other;
  return how == Combine::kOr ? holds | other : holds ^ other;
}

void write_mask(Warp& warp, Slot slot, LaneMask active, LaneMask value) {
  if (slot == kNoSlot) return;
  LaneMask& mask = warp.mask(slot);
  mask = (mask & ~active) | (value & active);
}

/// setp: p takes the comparison, q its opposite, each combined with c.
template <TestFunction kTest>
Step setp(Warp& warp, const Instruction& inst, LaneMask active) {
  const LaneMask holds = kTest(warp, inst, active);
  const LaneMask first = combine(warp, inst, holds);
  const LaneMask second = combine(warp, inst, ~holds);
  write_mask(warp, inst.operands[0], active, first);
  write_mask(warp, inst.operands[kSecondResult], active, second);
  return Step::kNext;
}

/// setp of pairs: p for the lower elements, q for the upper ones.
template <TestFunction kLower, TestFunction kUpper>
Step setp_pair(Warp& warp, const Instruction& inst, LaneMask active) {
  const LaneMask first = combine(warp, inst, kLower(warp, inst, active));
  const LaneMask second = combine(warp, inst, kUpper(warp, inst, active));
  write_mask(warp, inst.operands[0], active, first);
  write_mask(warp, inst.operands[kSecondResult], active, second);
  return Step::kNext;
}

/// set: `immediate` (all ones, or 1.0) where the comparison holds.
template <TestFunction kTest>
Step set(Warp& warp, const Instruction& inst, LaneMask active) {
  const LaneMask holds = combine(warp, inst, kTest(warp, inst, active));
  const auto one = static_cast<uint32_t>(inst.immediate);
  uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) { result[lane] = (holds & kLaneBits.of[lane]) != 0 ? one : 0; });
  return Step::kNext;
}

/// set of pairs: each element 1.0 where its comparison holds.
template <TestFunction kLower, TestFunction kUpper>
Step set_pair(Warp& warp, const Instruction& inst, LaneMask active) {
  const LaneMask lower = combine(warp, inst, kLower(warp, inst, active));
  const LaneMask upper = combine(warp, inst, kUpper(warp, inst, active));
  const auto one = static_cast<uint32_t>(inst.immediate);
  uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) {
    result[lane] =
        ((lower >> lane & 1) != 0 ? one : 0) | ((upper >> lane & 1) != 0 ? one << 16 : 0);
  });
  return Step::kNext;
}

struct Handlers {
  Handler setp = nullptr;
  Handler set = nullptr;
};

template <typename Source>
struct OfSource {
  template <typename Compare>
  static Handlers get() {
    constexpr TestFunction kTest = &test_lanes<Compare, Source>;
    return {&setp<kTest>, &set<kTest>};
  }
};

template <typename Element>
struct OfPair {
  template <typename Compare>
  static Handlers get() {
    constexpr TestFunction kLower = &test_lanes<Compare, Element>;
    constexpr TestFunction kUpper = &test_lanes<Compare, Upper<Element>>;
    return {&setp_pair<kLower, kUpper>, &set_pair<kLower, kUpper>};
  }
};

template <typename Of>
Handlers ordered(std::string_view name) {
  if (name == "eq") return Of::template get<Equal>();
  if (name == "ne") return Of::template get<NotEqual>();
  if (name == "lt" || name == "lo") return Of::template get<Less>();
  if (name == "le" || name == "ls") return Of::template get<LessEqual>();
  if (name == "gt" || name == "hi") return Of::template get<Greater>();
  if (name == "ge" || name == "hs") return Of::template get<GreaterEqual>();
  return {};
}

template <typename Of>
Handlers of_float(std::string_view name) {
  if (name == "ne") return Of::template get<OrderedNotEqual>();
  if (name == "equ") return Of::template get<UnorderedEqual>();
  if (name == "neu") return Of::template get<NotEqual>();
  if (name == "ltu") return Of::template get<UnorderedLess>();
  if (name == "leu") return Of::template get<UnorderedLessEqual>();
  if (name == "gtu") return Of::template get<UnorderedGreater>();
  if (name == "geu") return Of::template get<UnorderedGreaterEqual>();
  if (name == "num") return Of::template get<Numbers>();
  if (name == "nan") return Of::template get<NotNumbers>();
  return name == "lo" || name == "ls" || name == "hi" || name == "hs" ? Handlers()
                                                                      : ordered<Of>(name);
}

Handlers find_handlers(std::string_view compare, Type type, bool flush) {
  switch (type) {
    case Type::kB16:
    case Type::kU16:
      return ordered<OfSource<Plain<uint16_t>>>(compare);
    case Type::kS16:
      return ordered<OfSource<Plain<int16_t>>>(compare);
    case Type::kB32:
    case Type::kU32:
      return ordered<OfSource<Plain<uint32_t>>>(compare);
    case Type::kS32:
      return ordered<OfSource<Plain<int32_t>>>(compare);
    case Type::kB64:
    case Type::kU64:
      return ordered<OfSource<Plain<uint64_t>>>(compare);
    case Type::kS64:
      return ordered<OfSource<Plain<int64_t>>>(compare);
    case Type::kF32:
      return flush ? of_float<OfSource<FlushedF32>>(compare)
                   : of_float<OfSource<Plain<float>>>(compare);
    case Type::kF64:
      return of_float<OfSource<Plain<double>>>(compare);
    case Type::kF16:
      return flush ? of_float<OfSource<FlushedF16>>(compare) : of_float<OfSource<F16>>(compare);
    case Type::kBf16:
      return of_float<OfSource<Bf16>>(compare);
    case Type::kF16x2:
      return flush ? of_float<OfPair<FlushedF16>>(compare) : of_float<OfPair<F16>>(compare);
    case Type::kBf16x2:
      return of_float<OfPair<Bf16>>(compare);
    default:
      return {};
  }
}

struct Modifiers {
  std::string_view compare;
  Combine combine = Combine::kNone;
  bool flush = false;
  std::vector<Type> types;
};

Modifiers read_modifiers(const Builder& builder) {
  Modifiers read;
  for (const std::string& name : builder.statement().modifiers) {
    const Type type = type_from_name(name);
    if (type != Type::kNone) {
      read.types.push_back(type);
    } else if (name == "and") {
      read.combine = Combine::kAnd;
    } else if (name == "or") {
      read.combine = Combine::kOr;
    } else if (name == "xor") {
      read.combine = Combine::kXor;
    } else if (name == "ftz") {
      read.flush = true;
    } else if (read.compare.empty()) {
      read.compare = name;
    } else {
      builder.fail("unknown modifier '." + name + "'");
    }
  }
  return read;
}

/// Sources in slots 1 and 2, and the predicate that is combined, whose operand is the fourth.
void build_sources(Builder& builder, const Modifiers& modifiers, Type type) {
  const bool combines = modifiers.combine != Combine::kNone;
  expect_operands(builder, combines ? 4 : 3);
  Instruction& inst = builder.instruction();
  const std::vector<Operand>& operands = builder.statement().operands;
  inst.operands[1] = builder.source(operands[1], type);
  inst.operands[2] = builder.source(operands[2], type);
  inst.variant = static_cast<uint16_t>(modifiers.combine);
  if (!combines) return;
  bool negated = false;
  inst.operands[kCombined] = builder.predicate(operands[3], &negated);
  if (negated) inst.variant |= kNegated;
}

void build_setp(Builder& builder) {
  const Modifiers modifiers = read_modifiers(builder);
  if (modifiers.types.size() != 1) builder.fail("setp takes one type");
  const Handlers handlers = find_handlers(modifiers.compare, modifiers.types[0], modifiers.flush);
  if (handlers.setp == nullptr) builder.fail("unknown form of setp");
  build_sources(builder, modifiers, modifiers.types[0]);
  Instruction& inst = builder.instruction();
  const Operand& destination = builder.statement().operands[0];
  if (destination.kind == Operand::Kind::kPair) {
    inst.operands[0] = predicate_result(builder, destination.elements[0]);
    inst.operands[kSecondResult] = predicate_result(builder, destination.elements[1]);
  } else {
    inst.operands[0] = predicate_result(builder, destination);
  }
  inst.handler = handlers.setp;
}

/// What set writes where the comparison holds; 0 for a type that it cannot write.
int64_t value_of_true(Type type, Type compared) {
  const bool pairs = compared == Type::kF16x2 || compared == Type::kBf16x2;
  switch (type) {
    case Type::kU32:
    case Type::kS32:
      return pairs ? 0xffff : 0xffffffff;
    case Type::kU16:
    case Type::kS16:
      return 0xffff;
    case Type::kF32:
      return 0x3f800000;
    case Type::kF16:
      return 0x3c00;
    case Type::kBf16:
      return 0x3f80;
    case Type::kF16x2:
      return pairs ? 0x3c00 : 0;
    case Type::kBf16x2:
      return pairs ? 0x3f80 : 0;
    default:
      return 0;
  }
}

void build_set(Builder& builder) {
  const Modifiers modifiers = read_modifiers(builder);
  if (modifiers.types.size() != 2) builder.fail("set takes two types");
  const Type type = modifiers.types[0];
  const Handlers handlers = find_handlers(modifiers.compare, modifiers.types[1], modifiers.flush);
  const int64_t one = value_of_true(type, modifiers.types[1]);
  if (handlers.set == nullptr || one == 0) builder.fail("unknown form of set");
  build_sources(builder, modifiers, modifiers.types[1]);
  Instruction& inst = builder.instruction();
  inst.operands[0] = result(builder, builder.statement().operands[0], type);
  inst.immediate = one;
  inst.handler = handlers.set;
}

}  // namespace

void add_compare_forms(Table& table) {
  table.add("setp.*", kClass, build_setp);
  table.add("set.*", kClass, build_set);
  add_select_forms(table);
}

}  // namespace pykernels::emulator
