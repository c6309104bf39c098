// What the families of register instructions share: operations written for one lane become handlers
// for 32, and rows of the table.
//
// A result takes the place of a source exactly or not at all (the resolver lets registers share a
// slot only where they are never named by one instruction), so the loops below have no dependence
// between lanes and the compiler makes vector code of them.
#pragma once

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "emulator/isa/table.h"
#include "emulator/machine/warp.h"

/// Before a loop over lanes: no lane depends on another.
#if defined(__clang__)
#define PK_INDEPENDENT_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define PK_INDEPENDENT_LANES _Pragma("GCC ivdep")
#endif

namespace pykernels::emulator {

/// Lanes that hold values of the type.
template <typename Value>
using LaneOf = std::conditional_t<sizeof(Value) == 8, uint64_t, uint32_t>;

template <typename Value>
inline Value from_lane(LaneOf<Value> lane) {
  if constexpr (std::is_floating_point_v<Value>) {
    return std::bit_cast<Value>(lane);
  } else {
    return static_cast<Value>(lane);
  }
}

template <typename Value>
inline LaneOf<Value> to_lane(Value value) {
  if constexpr (std::is_floating_point_v<Value>) {
    return std::bit_cast<LaneOf<Value>>(value);
  } else {
    return static_cast<std::make_unsigned_t<Value>>(value);
  }
}

/// Bit `lane` of a predicate, for loops over lanes (a table vectorises, a shift by the index less
/// so).
struct LaneBits {
  LaneMask of[kWarpSize];
};
inline constexpr LaneBits kLaneBits = [] {
  LaneBits bits{};
  for (int lane = 0; lane < kWarpSize; ++lane) bits.of[lane] = 1u << lane;
  return bits;
}();

template <typename Operation, typename Result, typename... Sources>
void apply_lanes(LaneMask active, LaneOf<Result>* result, const LaneOf<Sources>*... sources) {
  if (active == kFullMask) {
    PK_INDEPENDENT_LANES
    for (int lane = 0; lane < kWarpSize; ++lane) {
      result[lane] = to_lane<Result>(Operation{}(from_lane<Sources>(sources[lane])...));
    }
    return;
  }
  for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    result[lane] = to_lane<Result>(Operation{}(from_lane<Sources>(sources[lane])...));
  }
}

/// Destination in slot 0, sources in the following ones.
template <typename Operation, typename Result, typename... Sources>
Step lanewise_handler(Warp& warp, const Instruction& inst, LaneMask active) {
  [&]<size_t... I>(std::index_sequence<I...>) {
    apply_lanes<Operation, Result, Sources...>(
        active, warp.lanes<LaneOf<Result>>(inst.operands[0]),
        warp.lanes<LaneOf<Sources>>(inst.operands[I + 1])...);
  }(std::index_sequence_for<Sources...>());
  return Step::kNext;
}

/// The handler of an operation given as a lambda of values: lanewise<float, float, float>([](float
/// a, float b) ...).
template <typename Result, typename... Sources, typename Operation>
constexpr Handler lanewise(Operation) {
  return &lanewise_handler<Operation, Result, Sources...>;
}

/// Predicate in slot 0 from sources in the following ones.
template <typename Operation, typename... Sources>
Step predicate_handler(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto test = [&]<size_t... I>(std::index_sequence<I...>) {
    const auto lanes = [active](const LaneOf<Sources>*... sources) {
      LaneMask holds = 0;
      if (active == kFullMask) {
        for (int lane = 0; lane < kWarpSize; ++lane) {
          holds |= Operation{}(from_lane<Sources>(sources[lane])...) ? kLaneBits.of[lane] : 0;
        }
      } else {
        for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
          const int lane = __builtin_ctz(rest);
          if (Operation{}(from_lane<Sources>(sources[lane])...)) holds |= 1u << lane;
        }
      }
      return holds;
    };
    return lanes(warp.lanes<LaneOf<Sources>>(inst.operands[I + 1])...);
  };
  LaneMask& result = warp.mask(inst.operands[0]);
  result = (result & ~active) | test(std::index_sequence_for<Sources...>());
  return Step::kNext;
}

template <typename... Sources, typename Operation>
constexpr Handler lane_test(Operation) {
  return &predicate_handler<Operation, Sources...>;
}

/// ".u32"
std::string dotted(Type type);

/// Fails unless the statement has so many operands.
void expect_operands(Builder& builder, int count);
/// A destination that must not be the sink.
Slot result(Builder& builder, const Operand& operand, Type type);
/// A predicate that is written; the sink gives kNoSlot.
Slot predicate_result(Builder& builder, const Operand& operand);

/// A row with one destination and sources of these types, in slots 0, 1, ...
void add_row(Table& table, std::string_view spelling, InstructionClass instruction_class,
             Handler handler, Type destination, std::initializer_list<Type> sources);

/// Every spelling out of `spelling` with each [choice] of dotted modifiers present and absent:
/// "add[.rn][.ftz].f32" gives four.
std::vector<std::string> spellings(std::string_view spelling);

}  // namespace pykernels::emulator
