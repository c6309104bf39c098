// Read-modify-write on one element, as atomics and bulk reductions do it. Values are bit patterns.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "emulator/ir.h"

namespace pykernels::emulator {

enum class ReductionOperation : uint8_t {
  kAdd,
  kMin,
  kMax,
  kInc,
  kDec,
  kAnd,
  kOr,
  kXor,
  kExchange
};

/// nullopt if the name is no operation.
std::optional<ReductionOperation> reduction_from_name(std::string_view name);

struct Reduction {
  ReductionOperation operation = ReductionOperation::kAdd;
  Type type = Type::kU32;
  bool flush_subnormals = false;  // add.f32 in global memory

  /// Whether PTX defines the operation on the type.
  bool valid() const;
  uint64_t combine(uint64_t old_value, uint64_t operand) const;
};

/// destination[i] = combine(destination[i], source[i]) for all elements of `bytes` bytes.
void reduce_bytes(const Reduction& reduction, uint8_t* destination, const uint8_t* source,
                  uint64_t bytes);

}  // namespace pykernels::emulator
