// Loads and stores of every space, width and vector, cache hints and policies.
#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "emulator/check/race/detector.h"
#include "emulator/isa/lanewise.h"
#include "emulator/isa/memory_access.h"
#include "emulator/isa/whole_warp_access.h"
#include "emulator/machine/cta.h"

namespace pykernels::emulator {
namespace {

// Operands of a load: values in slots 0 to 3, base of the address in 4, cache policy in 5; of a
// store the same.
constexpr int kBaseSlot = 4;
constexpr int kPolicySlot = 5;

/// The value as the destination holds it: extended by its own sign or zeros.
template <typename Lane, typename Element>
inline Lane extended(Element value) {
  if constexpr (std::is_signed_v<Element>) return static_cast<Lane>(static_cast<int64_t>(value));
  return static_cast<Lane>(value);
}

template <typename Element>
inline Element element_at(const uint8_t* place) {
  Element value;
  std::memcpy(&value, place, sizeof(Element));
  return value;
}

/// What a load leaves in its destination: of a 16-bit register the upper bits stay zero.
template <typename Lane>
inline Lane kept_bits(const Instruction& inst) {
  return (inst.variant & kDestination16) != 0 ? Lane{0xffff} : static_cast<Lane>(~Lane{0});
}

/// Lanes read neighbouring elements: no pointers are needed.
template <typename Element, typename Lane, int kCount>
void load_row(Warp& warp, const Instruction& inst, Lane kept, const uint8_t* row) {
  for (int i = 0; i < kCount; ++i) {
    if (inst.operands[i] == kNoSlot) continue;
    Lane* values = warp.lanes<Lane>(inst.operands[i]);
    PK_INDEPENDENT_LANES
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto element = element_at<Element>(row + (lane * kCount + i) * sizeof(Element));
      values[lane] = extended<Lane>(element) & kept;
    }
  }
}

/// All lanes read the same element.
template <typename Element, typename Lane, int kCount>
void load_same(Warp& warp, const Instruction& inst, Lane kept, const uint8_t* place) {
  for (int i = 0; i < kCount; ++i) {
    if (inst.operands[i] == kNoSlot) continue;
    Lane* values = warp.lanes<Lane>(inst.operands[i]);
    const Lane value = extended<Lane>(element_at<Element>(place + i * sizeof(Element))) & kept;
    std::fill(values, values + kWarpSize, value);
  }
}

template <typename Element, typename Lane, int kCount>
[[gnu::noinline]] Step load_scattered(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr uint32_t kBytes = sizeof(Element) * kCount;
  const Lane kept = kept_bits<Lane>(inst);
  uint64_t addresses[kWarpSize];
  uint8_t* pointers[kWarpSize];
  lane_addresses(warp, inst, inst.operands[kBaseSlot], addresses);
  access(warp, inst, addresses, kBytes, AccessKind::kRead, active, pointers);
  for (int i = 0; i < kCount; ++i) {
    if (inst.operands[i] == kNoSlot) continue;
    Lane* values = warp.lanes<Lane>(inst.operands[i]);
    for_lanes(active, [&](int lane) {
      const auto element = element_at<Element>(pointers[lane] + i * sizeof(Element));
      values[lane] = extended<Lane>(element) & kept;
    });
  }
  return Step::kNext;
}

template <typename Element, typename Lane, int kCount>
inline Step load_pattern(Warp& warp, const Instruction& inst, Pattern pattern,
                         const uint8_t* place) {
  const Lane kept = kept_bits<Lane>(inst);
  if (pattern == Pattern::kRow) {
    load_row<Element, Lane, kCount>(warp, inst, kept, place);
  } else {
    load_same<Element, Lane, kCount>(warp, inst, kept, place);
  }
  return Step::kNext;
}

/// Other memory than global, or under checks.
template <typename Element, typename Lane, int kCount>
[[gnu::noinline]] Step load_checked(Warp& warp, const Instruction& inst, Pattern pattern) {
  constexpr uint32_t kBytes = sizeof(Element) * kCount;
  const uint64_t first = first_address(warp, inst, inst.operands[kBaseSlot]);
  const uint8_t* place = pattern == Pattern::kRow
                             ? access_row(warp, inst, first, kBytes, AccessKind::kRead)
                             : read_same(warp, inst, first, kBytes);
  if (place == nullptr) return load_scattered<Element, Lane, kCount>(warp, inst, kFullMask);
  return load_pattern<Element, Lane, kCount>(warp, inst, pattern, place);
}

template <typename Element, typename Lane, int kCount>
Step load(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr uint32_t kBytes = sizeof(Element) * kCount;
  if (active != kFullMask) return load_scattered<Element, Lane, kCount>(warp, inst, active);
  const Slot base = inst.operands[kBaseSlot];
  const Pattern pattern = pattern_of(warp, inst, base, kBytes);
  if (pattern == Pattern::kScattered) {
    return load_scattered<Element, Lane, kCount>(warp, inst, active);
  }
  const uint8_t* place =
      read_global_at_once(warp, inst, first_address(warp, inst, base), kBytes, pattern);
  if (place == nullptr) return load_checked<Element, Lane, kCount>(warp, inst, pattern);
  return load_pattern<Element, Lane, kCount>(warp, inst, pattern, place);
}

/// ld.param with a constant address: one value for all lanes, out of the launch's parameter block.
template <typename Element, typename Lane, int kCount>
Step load_parameter(Warp& warp, const Instruction& inst, LaneMask active) {
  const Lane kept = kept_bits<Lane>(inst);
  const int first = __builtin_ctz(active);
  const uint8_t* source = resolve(warp, Space::kParam, static_cast<uint64_t>(inst.immediate),
                                  sizeof(Element) * kCount, AccessKind::kRead, first);
  for (int i = 0; i < kCount; ++i) {
    if (inst.operands[i] == kNoSlot) continue;
    Element value;
    std::memcpy(&value, source + i * sizeof(Element), sizeof(Element));
    const Lane extended_value = extended<Lane>(value) & kept;
    Lane* values = warp.lanes<Lane>(inst.operands[i]);
    for_lanes(active, [&](int lane) { values[lane] = extended_value; });
  }
  return Step::kNext;
}

Step load_b128(Warp& warp, const Instruction& inst, LaneMask active) {
  uint64_t addresses[kWarpSize];
  uint8_t* pointers[kWarpSize];
  lane_addresses(warp, inst, inst.operands[kBaseSlot], addresses);
  access(warp, inst, addresses, 16, AccessKind::kRead, active, pointers);
  for_lanes(active,
            [&](int lane) { std::memcpy(warp.wide(inst.operands[0], lane), pointers[lane], 16); });
  return Step::kNext;
}

template <typename Element, typename Lane, int kCount>
void store_row(Warp& warp, const Instruction& inst, uint8_t* row) {
  for (int i = 0; i < kCount; ++i) {
    const Lane* values = warp.lanes<Lane>(inst.operands[i]);
    PK_INDEPENDENT_LANES
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto value = static_cast<Element>(values[lane]);
      std::memcpy(row + (lane * kCount + i) * sizeof(Element), &value, sizeof(Element));
    }
  }
}

template <typename Element, typename Lane, int kCount>
[[gnu::noinline]] Step store_scattered(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr uint32_t kBytes = sizeof(Element) * kCount;
  uint64_t addresses[kWarpSize];
  uint8_t* pointers[kWarpSize];
  lane_addresses(warp, inst, inst.operands[kBaseSlot], addresses);
  access(warp, inst, addresses, kBytes, AccessKind::kWrite, active, pointers);
  for (int i = 0; i < kCount; ++i) {
    const Lane* values = warp.lanes<Lane>(inst.operands[i]);
    for_lanes(active, [&](int lane) {
      const auto value = static_cast<Element>(values[lane]);
      std::memcpy(pointers[lane] + i * sizeof(Element), &value, sizeof(Element));
    });
  }
  return Step::kNext;
}

template <typename Element, typename Lane, int kCount>
Step store(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr uint32_t kBytes = sizeof(Element) * kCount;
  const Slot base = inst.operands[kBaseSlot];
  if (active != kFullMask || pattern_of(warp, inst, base, kBytes) != Pattern::kRow) {
    return store_scattered<Element, Lane, kCount>(warp, inst, active);
  }
  const uint64_t first = first_address(warp, inst, base);
  uint8_t* row = access_row(warp, inst, first, kBytes, AccessKind::kWrite);
  if (row == nullptr) return store_scattered<Element, Lane, kCount>(warp, inst, active);
  store_row<Element, Lane, kCount>(warp, inst, row);
  return Step::kNext;
}

Step store_b128(Warp& warp, const Instruction& inst, LaneMask active) {
  uint64_t addresses[kWarpSize];
  uint8_t* pointers[kWarpSize];
  lane_addresses(warp, inst, inst.operands[kBaseSlot], addresses);
  access(warp, inst, addresses, 16, AccessKind::kWrite, active, pointers);
  for_lanes(active,
            [&](int lane) { std::memcpy(pointers[lane], warp.wide(inst.operands[0], lane), 16); });
  return Step::kNext;
}

enum class Direction : uint8_t { kLoad, kLoadParameter, kStore };

template <typename Element, typename Lane, int kCount>
Handler choose_direction(Direction direction) {
  switch (direction) {
    case Direction::kLoad:
      return &load<Element, Lane, kCount>;
    case Direction::kLoadParameter:
      return &load_parameter<Element, Lane, kCount>;
    case Direction::kStore:
      return &store<Element, Lane, kCount>;
  }
  return nullptr;
}

template <typename Element, typename Lane>
Handler choose_count(Direction direction, int count) {
  switch (count) {
    case 1:
      return choose_direction<Element, Lane, 1>(direction);
    case 2:
      return choose_direction<Element, Lane, 2>(direction);
    case 4:
      return choose_direction<Element, Lane, 4>(direction);
    default:
      return nullptr;
  }
}

template <typename Element>
Handler choose_lane(Direction direction, int count, bool wide) {
  if (wide) return choose_count<Element, uint64_t>(direction, count);
  if constexpr (sizeof(Element) <= 4) return choose_count<Element, uint32_t>(direction, count);
  return nullptr;
}

bool is_signed_integer(Type type) {
  return type == Type::kS8 || type == Type::kS16 || type == Type::kS32 || type == Type::kS64;
}

/// `wide`: the registers are 64 bits.
Handler choose_handler(Direction direction, Type type, int count, bool wide) {
  const bool is_signed = direction != Direction::kStore && is_signed_integer(type);
  switch (type_bits(type)) {
    case 8:
      return is_signed ? choose_lane<int8_t>(direction, count, wide)
                       : choose_lane<uint8_t>(direction, count, wide);
    case 16:
      return is_signed ? choose_lane<int16_t>(direction, count, wide)
                       : choose_lane<uint16_t>(direction, count, wide);
    case 32:
      return is_signed ? choose_lane<int32_t>(direction, count, wide)
                       : choose_lane<uint32_t>(direction, count, wide);
    case 64:
      return choose_lane<uint64_t>(direction, count, wide);
    default:
      return nullptr;
  }
}

/// The elements of `{a, b}`, or the one operand.
std::vector<const Operand*> values_of(const Builder& builder, const Operand& operand, int count) {
  std::vector<const Operand*> values;
  if (operand.kind == Operand::Kind::kVector) {
    for (const Operand& element : operand.elements) values.push_back(&element);
  } else {
    values.push_back(&operand);
  }
  if (static_cast<int>(values.size()) != count) {
    builder.fail("expected " + std::to_string(count) + " values, got " +
                 std::to_string(values.size()));
  }
  return values;
}

/// Whether the value registers are 64 bits wide; all of one statement must be alike.
bool wide_registers(const Builder& builder, const std::vector<const Operand*>& values, Type type) {
  int wide = -1;
  for (const Operand* value : values) {
    if (value->kind != Operand::Kind::kRegister) continue;
    const int bits = builder.register_bits(*value);
    if (wide >= 0 && wide != (bits == 64)) builder.fail("value registers of different widths");
    wide = bits == 64;
  }
  return wide >= 0 ? wide == 1 : type_bits(type) == 64;
}

void check_form(const Builder& builder, const MemoryModifiers& modifiers, bool is_load) {
  if (modifiers.second_type != Type::kNone) builder.fail("more than one type");
  if (type_bits(modifiers.type) * modifiers.vector > 128)
    builder.fail("a vector of more than 128 bits");
  if (type_bits(modifiers.type) < 8) builder.fail("a type of memory is needed");
  const Semantics wrong = is_load ? Semantics::kRelease : Semantics::kAcquire;
  if (modifiers.semantics == wrong || modifiers.semantics == Semantics::kAcquireRelease) {
    builder.fail(is_load ? "a load cannot release" : "a store cannot acquire");
  }
  if (!is_load && (modifiers.space == Space::kConst || modifiers.non_coherent)) {
    builder.fail("constant memory cannot be written");
  }
  const int operands = 2 + (modifiers.cache_hint ? 1 : 0);
  if (builder.num_operands() != operands) {
    builder.fail("expected " + std::to_string(operands) + " operands, got " +
                 std::to_string(builder.num_operands()));
  }
}

void build_policy(Builder& builder, const MemoryModifiers& modifiers, int operand) {
  if (!modifiers.cache_hint) return;
  builder.instruction().operands[kPolicySlot] =
      builder.source(builder.statement().operands[static_cast<size_t>(operand)], Type::kB64);
}

void build_load(Builder& builder) {
  const MemoryModifiers modifiers = read_memory_modifiers(builder);
  check_form(builder, modifiers, true);
  Instruction& inst = builder.instruction();
  const Operand& destination = builder.statement().operands[0];
  build_address(builder, builder.statement().operands[1], modifiers, kBaseSlot);
  build_policy(builder, modifiers, 2);
  const auto values = values_of(builder, destination, modifiers.vector);
  for (size_t i = 0; i < values.size(); ++i) {
    inst.operands[i] = register_destination(builder, *values[i], modifiers.type);
    if (builder.register_bits(*values[i]) == 16) inst.variant |= kDestination16;
  }
  if (type_bits(modifiers.type) == 128) {
    inst.handler = &load_b128;
    return;
  }
  const bool constant = modifiers.space == Space::kParam && inst.operands[kBaseSlot] == kNoSlot &&
                        static_cast<uint64_t>(inst.immediate) >> 60 == 0;
  inst.handler =
      choose_handler(constant ? Direction::kLoadParameter : Direction::kLoad, modifiers.type,
                     modifiers.vector, wide_registers(builder, values, modifiers.type));
}

void build_store(Builder& builder) {
  const MemoryModifiers modifiers = read_memory_modifiers(builder);
  check_form(builder, modifiers, false);
  Instruction& inst = builder.instruction();
  build_address(builder, builder.statement().operands[0], modifiers, kBaseSlot);
  build_policy(builder, modifiers, 2);
  const auto values = values_of(builder, builder.statement().operands[1], modifiers.vector);
  const bool wide = wide_registers(builder, values, modifiers.type);
  for (size_t i = 0; i < values.size(); ++i) {
    // An immediate beside 64-bit registers is broadcast as wide as they are.
    const bool widened = wide && values[i]->kind != Operand::Kind::kRegister;
    inst.operands[i] = register_source(builder, *values[i], widened ? Type::kB64 : modifiers.type);
  }
  inst.handler = type_bits(modifiers.type) == 128
                     ? &store_b128
                     : choose_handler(Direction::kStore, modifiers.type, modifiers.vector, wide);
}

// ---- hints ----

Step no_operation(Warp&, const Instruction&, LaneMask) { return Step::kNext; }

/// The address is read (and so checked to be initialised), nothing else happens.
void build_hint(Builder& builder) {
  if (builder.num_operands() < 1) builder.fail("an address is missing");
  Instruction& inst = builder.instruction();
  bool base_is_64 = false;
  builder.address(builder.statement().operands[0], Space::kGeneric, &inst.operands[0], &base_is_64,
                  &inst.immediate);
  for (int i = 1; i < builder.num_operands(); ++i) {
    builder.integer(builder.statement().operands[static_cast<size_t>(i)]);
  }
  inst.handler = &no_operation;
}

/// What was in the 128 bytes is lost: they read as 0xff.
Step discard(Warp& warp, const Instruction& inst, LaneMask active) {
  uint64_t addresses[kWarpSize];
  lane_addresses(warp, inst, inst.operands[kBaseSlot], addresses);
  for_lanes(active, [&](int lane) {
    for (uint64_t part = 0; part < 128; part += 16) {
      std::memset(
          resolve(warp, access_space(inst), addresses[lane] + part, 16, AccessKind::kWrite, lane),
          0xff, 16);
    }
    if (RaceDetector* races = warp.machine().races()) {
      races->access_range(warp, inst, lane, addresses[lane], 128, AccessKind::kWrite);
    }
  });
  return Step::kNext;
}

void build_discard(Builder& builder, Space space) {
  if (builder.num_operands() != 2) builder.fail("expected [a], 128");
  if (builder.integer(builder.statement().operands[1]) != 128) builder.fail("the size must be 128");
  MemoryModifiers modifiers;
  modifiers.space = space;
  build_address(builder, builder.statement().operands[0], modifiers, kBaseSlot);
  builder.instruction().handler = &discard;
}

/// The policy words that CUTLASS and DeepGEMM write as constants; policies have no effect here.
Step create_policy(Warp& warp, const Instruction& inst, LaneMask active) {
  uint64_t* policy = warp.lanes<uint64_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) { policy[lane] = static_cast<uint64_t>(inst.immediate); });
  return Step::kNext;
}

/// createpolicy.fractional.primary{.secondary}.b64 d {, fraction}; only the primary priority is
/// kept.
void build_create_policy(Builder& builder) {
  static const std::unordered_map<std::string_view, uint64_t> words = {
      {"L2::evict_normal", 0x1000000000000000},
      {"L2::evict_first", 0x12f0000000000000},
      {"L2::evict_last", 0x14f0000000000000},
      {"L2::evict_unchanged", 0x16f0000000000000}};
  const std::vector<std::string>& modifiers = builder.statement().modifiers;
  const size_t count = modifiers.size();
  if (count < 3 || count > 4 || modifiers[0] != "fractional" || modifiers.back() != "b64") {
    builder.fail("expected createpolicy.fractional with one or two priorities and .b64");
  }
  for (size_t i = 1; i + 1 < count; ++i) {
    if (!words.contains(modifiers[i])) builder.fail("unknown modifier ." + modifiers[i]);
  }
  if (builder.num_operands() < 1 || builder.num_operands() > 2) {
    builder.fail("expected a destination and a fraction");
  }
  Instruction& inst = builder.instruction();
  inst.operands[0] = builder.destination(builder.statement().operands[0], Type::kB64);
  inst.immediate = static_cast<int64_t>(words.at(modifiers[1]));
  inst.handler = &create_policy;
}

void add_hint_forms(Table& table) {
  for (const char* spelling :
       {"prefetch.L1", "prefetch.L2", "prefetch.global.L1", "prefetch.global.L2",
        "prefetch.local.L1", "prefetch.local.L2", "prefetch.global.L2::evict_last",
        "prefetch.global.L2::evict_normal", "prefetchu.L1", "prefetch.tensormap",
        "prefetch.param.tensormap", "prefetch.const.tensormap", "applypriority.L2::evict_normal",
        "applypriority.global.L2::evict_normal"}) {
    table.add(spelling, InstructionClass::kMemory, build_hint);
  }
  table.add("discard.L2", InstructionClass::kMemory,
            [](Builder& builder) { build_discard(builder, Space::kGeneric); });
  table.add("discard.global.L2", InstructionClass::kMemory,
            [](Builder& builder) { build_discard(builder, Space::kGlobal); });
  table.add("createpolicy.*", InstructionClass::kMemory, build_create_policy);
}

}  // namespace

void add_memory_forms(Table& table) {
  table.add("ld.*", InstructionClass::kMemory, build_load);
  table.add("ldu.*", InstructionClass::kMemory, build_load);
  table.add("st.*", InstructionClass::kMemory, build_store);
  add_hint_forms(table);
}

}  // namespace pykernels::emulator
