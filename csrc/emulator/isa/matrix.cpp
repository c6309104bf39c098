// Matrix moves between registers and shared memory, and the warp's own matrix product (mma.sync).
#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "emulator/check/lanes.h"
#include "emulator/gpu_facts.h"
#include "emulator/isa/memory_access.h"
#include "emulator/numerics/convert.h"
#include "emulator/numerics/fp8.h"
#include "emulator/numerics/wide.h"

namespace pykernels::emulator {
namespace {

// ---- ldmatrix, stmatrix, movmatrix: 8x8 matrices of 16-bit elements ----

constexpr int kBaseSlot = 4;  // address; the fragments are in slots 0 to 3
constexpr uint16_t kTransposed = 1 << 15;
constexpr uint32_t kRowBytes = 16;

/// All 32 lanes take part in a matrix instruction.
void require_full_warp(Warp& warp, const Instruction& inst, LaneMask active) {
  if (active != kFullMask) {
    warp.machine().fail("sync",
                        concat("a matrix instruction needs all 32 lanes, got ",
                               __builtin_popcount(active), ": ", missing_lanes_text(warp, active)),
                        warp, inst);
  }
}

/// Pointers to the 8-element rows of `count` matrices: lane 8 i + r gives row r of matrix i.
void matrix_rows(Warp& warp, const Instruction& inst, int count, AccessKind kind, uint8_t** rows) {
  uint64_t addresses[kWarpSize];
  lane_addresses(warp, inst, inst.operands[kBaseSlot], addresses);
  const LaneMask lanes = count == 4 ? kFullMask : (1u << 8 * count) - 1;
  access(warp, inst, addresses, kRowBytes, kind, lanes, rows);
}

/// The two elements that a lane holds, transposed: rows 2 (lane % 4) and the next, column lane / 4.
uint32_t transposed_pair(uint8_t* const* rows, int lane) {
  uint16_t low = 0;
  uint16_t high = 0;
  std::memcpy(&low, rows[2 * (lane % 4)] + 2 * (lane / 4), 2);
  std::memcpy(&high, rows[2 * (lane % 4) + 1] + 2 * (lane / 4), 2);
  return static_cast<uint32_t>(high) << 16 | low;
}

template <int kCount>
Step ldmatrix(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  require_full_warp(warp, inst, active);
  uint8_t* rows[kWarpSize];
  matrix_rows(warp, inst, kCount, AccessKind::kRead, rows);
  uint32_t values[kCount][kWarpSize];  // a destination may hold the addresses
  for (int i = 0; i < kCount; ++i) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((inst.variant & kTransposed) != 0) {
        values[i][lane] = transposed_pair(rows + 8 * i, lane);
      } else {
        std::memcpy(&values[i][lane], rows[8 * i + lane / 4] + 4 * (lane % 4), 4);
      }
    }
  }
  for (int i = 0; i < kCount; ++i) {
    std::memcpy(warp.lanes<uint32_t>(inst.operands[i]), values[i], sizeof(values[i]));
  }
  return Step::kNext;
}

template <int kCount>
Step stmatrix(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  require_full_warp(warp, inst, active);
  uint8_t* rows[kWarpSize];
  matrix_rows(warp, inst, kCount, AccessKind::kWrite, rows);
  for (int i = 0; i < kCount; ++i) {
    const uint32_t* values = warp.lanes<uint32_t>(inst.operands[i]);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((inst.variant & kTransposed) != 0) {
        const int row = 8 * i + 2 * (lane % 4);
        std::memcpy(rows[row] + 2 * (lane / 4), &values[lane], 2);
        const uint32_t high = values[lane] >> 16;
        std::memcpy(rows[row + 1] + 2 * (lane / 4), &high, 2);
      } else {
        std::memcpy(rows[8 * i + lane / 4] + 4 * (lane % 4), &values[lane], 4);
      }
    }
  }
  return Step::kNext;
}

Step movmatrix(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  require_full_warp(warp, inst, active);
  uint32_t source[kWarpSize];
  std::memcpy(source, warp.lanes<uint32_t>(inst.operands[1]), sizeof(source));
  uint8_t* rows[8];
  for (int row = 0; row < 8; ++row) rows[row] = reinterpret_cast<uint8_t*>(source + 4 * row);
  uint32_t* destination = warp.lanes<uint32_t>(inst.operands[0]);
  for (int lane = 0; lane < kWarpSize; ++lane) destination[lane] = transposed_pair(rows, lane);
  return Step::kNext;
}

Handler matrix_handler(bool is_load, int count) {
  switch (count) {
    case 1:
      return is_load ? &ldmatrix<1> : &stmatrix<1>;
    case 2:
      return is_load ? &ldmatrix<2> : &stmatrix<2>;
    default:
      return is_load ? &ldmatrix<4> : &stmatrix<4>;
  }
}

/// Registers of a fragment, `{a, b}` or one alone.
std::vector<Operand> fragment(const Builder& builder, size_t index, size_t count) {
  if (index >= builder.statement().operands.size()) builder.fail("operands are missing");
  const Operand& operand = builder.statement().operands[index];
  std::vector<Operand> registers = operand.elements;
  if (operand.kind != Operand::Kind::kVector) registers = {operand};
  if (registers.size() != count) {
    builder.fail(concat("expected ", count, " registers, got ", registers.size()));
  }
  return registers;
}

void build_matrix(Builder& builder, bool is_load, int count, Space space) {
  if (builder.num_operands() != 2) builder.fail("expected two operands");
  Instruction& inst = builder.instruction();
  MemoryModifiers modifiers;
  modifiers.space = space;
  build_address(builder, builder.statement().operands[is_load ? 1 : 0], modifiers, kBaseSlot);
  if (builder.has_modifier("trans")) inst.variant |= kTransposed;
  const auto registers = fragment(builder, is_load ? 0 : 1, static_cast<size_t>(count));
  for (size_t i = 0; i < registers.size(); ++i) {
    inst.operands[i] = is_load ? builder.destination(registers[i], Type::kB32)
                               : builder.source(registers[i], Type::kB32);
  }
  inst.handler = matrix_handler(is_load, count);
}

void add_moves(Table& table) {
  constexpr auto kClass = InstructionClass::kMatrix;
  const std::pair<const char*, Space> spaces[] = {
      {"", Space::kGeneric}, {".shared", Space::kShared}, {".shared::cta", Space::kShared}};
  for (const bool is_load : {true, false}) {
    for (const int count : {1, 2, 4}) {
      for (const std::string transposed : {"", ".trans"}) {
        for (const auto& [name, space] : spaces) {
          table.add(std::string(is_load ? "ldmatrix" : "stmatrix") + ".sync.aligned.m8n8.x" +
                        std::to_string(count) + transposed + name + ".b16",
                    kClass, [is_load, count, space = space](Builder& builder) {
                      build_matrix(builder, is_load, count, space);
                    });
        }
      }
    }
  }
  table.add("movmatrix.sync.aligned.m8n8.trans.b16", kClass, [](Builder& builder) {
    if (builder.num_operands() != 2) builder.fail("expected two operands");
    Instruction& inst = builder.instruction();
    inst.operands[1] = builder.source(builder.statement().operands[1], Type::kB32);
    inst.operands[0] = builder.destination(builder.statement().operands[0], Type::kB32);
    inst.handler = &movmatrix;
  });
}

// ---- mma.sync ----

constexpr int kRows = 16;
constexpr int kColumns = 8;
constexpr int kMaxDepthBytes = 32;

/// m16n8 with 16 or 32 bytes of k a row. In every type a register of A or B holds 4 bytes of k.
struct MmaForm : SideData {
  Type a_type = Type::kF16;
  Type b_type = Type::kF16;
  Type accumulator = Type::kF32;
  bool saturates = false;
  int depth_bytes = 32;
  Slot d[4];
  Slot a[4];
  Slot b[2];
  Slot c[4];
};

/// Rows of 32 bytes of k, filled up with zeros: `registers` alternate between rows g and g + 8 of
/// A.
void gather(Warp& warp, const Slot* registers, int rows, int depth_bytes, uint8_t (*matrix)[32]) {
  const int halves = rows / 8;
  for (int part = 0; part < depth_bytes / 16; ++part) {
    for (int half = 0; half < halves; ++half) {
      const uint32_t* lanes = warp.lanes<uint32_t>(registers[part * halves + half]);
      for (int lane = 0; lane < kWarpSize; ++lane) {
        std::memcpy(matrix[8 * half + lane / 4] + 16 * part + 4 * (lane % 4), &lanes[lane], 4);
      }
    }
  }
}

Fp8Type fp8_type(Type type) { return type == Type::kE4m3 ? Fp8Type::kE4m3 : Fp8Type::kE5m2; }

uint32_t dot_int8(uint32_t c, const uint8_t* a, const uint8_t* b, const MmaForm& form) {
  int64_t sum = static_cast<int32_t>(c);
  for (int k = 0; k < form.depth_bytes; ++k) {
    const int64_t left = form.a_type == Type::kS8 ? static_cast<int8_t>(a[k]) : a[k];
    const int64_t right = form.b_type == Type::kS8 ? static_cast<int8_t>(b[k]) : b[k];
    sum += left * right;
  }
  if (form.saturates) sum = std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX);
  return static_cast<uint32_t>(sum);
}

/// One element of the product, accumulator in FP32 or 32-bit integers.
uint32_t dot(uint32_t c, const uint8_t* a, const uint8_t* b, const MmaForm& form) {
  switch (form.a_type) {
    case Type::kF16:
      return dot_wide_scalar(c, a, b, WideType::kF16);
    case Type::kBf16:
      return dot_wide_scalar(c, a, b, WideType::kBf16);
    case Type::kTf32:
      return dot_wide_scalar(c, a, b, WideType::kTf32);
    case Type::kE4m3:
    case Type::kE5m2:
      return dot_fp8_scalar(c, a, fp8_type(form.a_type), b, fp8_type(form.b_type));
    default:
      return dot_int8(c, a, b, form);
  }
}

uint32_t dot_f16(uint32_t c, const uint8_t* a, const uint8_t* b, const MmaForm& form) {
  return f32_to_f16(std::bit_cast<float>(dot(f16_to_f32(c), a, b, form)));
}

Step mma(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  require_full_warp(warp, inst, active);
  const auto& form = static_cast<const MmaForm&>(*inst.side);
  uint8_t a[kRows][kMaxDepthBytes] = {};
  uint8_t b[kColumns][kMaxDepthBytes] = {};
  gather(warp, form.a, kRows, form.depth_bytes, a);
  gather(warp, form.b, kColumns, form.depth_bytes, b);
  const bool half = form.accumulator == Type::kF16;
  const int registers = half ? 2 : 4;
  uint32_t result[4][kWarpSize];
  for (int i = 0; i < registers; ++i) {
    const uint32_t* c = warp.lanes<uint32_t>(form.c[i]);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int row = lane / 4 + 8 * (half ? i : i / 2);
      const int column = 2 * (lane % 4);
      if (half) {
        result[i][lane] = dot_f16(c[lane] & 0xffff, a[row], b[column], form) |
                          dot_f16(c[lane] >> 16, a[row], b[column + 1], form) << 16;
      } else {
        result[i][lane] = dot(c[lane], a[row], b[column + i % 2], form);
      }
    }
  }
  for (int i = 0; i < registers; ++i) {
    std::memcpy(warp.lanes<uint32_t>(form.d[i]), result[i], sizeof(result[i]));
  }
  const int depth =
      8 * form.depth_bytes / (form.a_type == Type::kTf32 ? 32 : type_bits(form.a_type));
  warp.machine().counters().tensor_multiply_adds +=
      uint64_t{kRows} * kColumns * static_cast<uint32_t>(depth);
  if (form.accumulator != Type::kS32) rely_on(warp.machine(), Fact::kMmaAccumulation);
  return Step::kNext;
}

/// `{d}, {a}, {b}, {c}`
void build_mma(Builder& builder, const MmaForm& prototype) {
  const std::vector<std::string>& modifiers = builder.statement().modifiers;
  if (std::find(modifiers.begin(), modifiers.end(), "row") >
      std::find(modifiers.begin(), modifiers.end(), "col")) {
    builder.fail("the layouts must be .row.col");
  }
  auto form = std::make_unique<MmaForm>(prototype);
  const size_t parts = static_cast<size_t>(form->depth_bytes) / 16;
  const size_t accumulators = form->accumulator == Type::kF16 ? 2 : 4;
  if (builder.num_operands() != 4) builder.fail("expected four operands");
  const auto read = [&](size_t index, size_t count, Slot* slots) {
    for (const Operand& value : fragment(builder, index, count)) {
      *slots++ = builder.source(value, Type::kB32);
    }
  };
  read(1, 2 * parts, form->a);
  read(2, parts, form->b);
  read(3, accumulators, form->c);
  Slot* d = form->d;
  for (const Operand& value : fragment(builder, 0, accumulators)) {
    *d++ = builder.destination(value, Type::kB32);
  }
  builder.keep(std::move(form));
  builder.instruction().handler = &mma;
}

void add_mma(Table& table, Type a, Type b, Type accumulator, bool saturates = false) {
  const int bits = a == Type::kTf32 ? 32 : type_bits(a);
  for (const int depth_bytes : {16, 32}) {
    MmaForm form;
    form.a_type = a;
    form.b_type = b;
    form.accumulator = accumulator;
    form.saturates = saturates;
    form.depth_bytes = depth_bytes;
    const std::string types = "." + std::string(type_name(accumulator)) + "." +
                              std::string(type_name(a)) + "." + std::string(type_name(b)) + "." +
                              std::string(type_name(accumulator));
    table.add("mma.sync.aligned.m16n8k" + std::to_string(8 * depth_bytes / bits) + ".row.col" +
                  (saturates ? ".satfinite" : "") + types,
              InstructionClass::kMatrix, [form](Builder& builder) { build_mma(builder, form); });
  }
}

void add_products(Table& table) {
  for (const Type accumulator : {Type::kF32, Type::kF16}) {
    add_mma(table, Type::kF16, Type::kF16, accumulator);
    for (const Type a : {Type::kE4m3, Type::kE5m2}) {
      for (const Type b : {Type::kE4m3, Type::kE5m2}) add_mma(table, a, b, accumulator);
    }
  }
  add_mma(table, Type::kBf16, Type::kBf16, Type::kF32);
  add_mma(table, Type::kTf32, Type::kTf32, Type::kF32);
  for (const Type a : {Type::kS8, Type::kU8}) {
    for (const Type b : {Type::kS8, Type::kU8}) {
      add_mma(table, a, b, Type::kS32, false);
      add_mma(table, a, b, Type::kS32, true);
    }
  }
}

}  // namespace

void add_matrix_forms(Table& table) {
  add_moves(table);
  add_products(table);
}

}  // namespace pykernels::emulator
