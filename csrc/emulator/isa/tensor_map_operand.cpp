#include "emulator/isa/tensor_map_operand.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/sync.h"
#include "emulator/isa/memory_access.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kMapBytes = sizeof(TensorMap::bytes);
constexpr uint32_t kPiece = 16;  // bytes that one access to a map moves

[[noreturn]] void fail(const Issuer& issuer, const std::string& message) {
  issuer.warp.machine().fail("memory", message, issuer.warp, issuer.instruction, issuer.lane);
}

/// As decode_emulated, but 128 zero bytes are the empty map that a kernel fills field by field.
TensorMapFields decode(const Issuer& issuer, const TensorMap& map) {
  const bool empty = std::all_of(std::begin(map.bytes), std::end(map.bytes),
                                 [](uint8_t byte) { return byte == 0; });
  if (empty) return {};
  try {
    return decode_emulated(map);
  } catch (const ArgumentError& error) {
    fail(issuer, error.what());
  }
}

void check_usable(const Issuer& issuer, const TensorMapFields& fields) {
  TensorMapFields checked = fields;
  // A kernel may set an extent to 0: everything is out of bounds then.
  for (uint64_t& size : checked.dims) size = std::max<uint64_t>(size, 1);
  try {
    check_tensor_map(checked);
  } catch (const ArgumentError& error) {
    fail(issuer, error.what());
  }
  if (fields.interleave != TensorMapInterleave::kNone) {
    fail(issuer, "interleaved tensor maps are not emulated");
  }
}

enum class Field : uint8_t {
  kAddress,
  kRank,
  kBox,
  kDim,
  kStride,
  kElementStride,
  kType,
  kInterleave,
  kSwizzle,
  kFill
};

struct ReplaceForm : SideData {
  Field field = Field::kAddress;
  Space space = Space::kGeneric;
  AddressOperand map;
  uint32_t ordinal = 0;
  Slot value = kNoSlot;
  bool value_is_64 = false;
};

/// Element types in the order of tensormap.replace.tile.elemtype.
constexpr TensorMapType kReplaceTypes[] = {
    TensorMapType::kUint8,      TensorMapType::kUint16,   TensorMapType::kUint32,
    TensorMapType::kInt32,      TensorMapType::kUint64,   TensorMapType::kInt64,
    TensorMapType::kFloat16,    TensorMapType::kFloat32,  TensorMapType::kFloat32Ftz,
    TensorMapType::kFloat64,    TensorMapType::kBfloat16, TensorMapType::kTfloat32,
    TensorMapType::kTfloat32Ftz};

void replace_field(const Issuer& issuer, const ReplaceForm& form, uint64_t value,
                   TensorMapFields& fields) {
  const auto word = static_cast<uint32_t>(value);
  switch (form.field) {
    case Field::kAddress:
      fields.address = value;
      break;
    case Field::kRank:
      fields.rank = word + 1;
      break;  // the field counts from zero
    case Field::kBox:
      fields.box[form.ordinal] = word;
      break;
    case Field::kDim:
      fields.dims[form.ordinal] = word;
      break;
    case Field::kStride:
      fields.strides[form.ordinal] = value;
      break;
    case Field::kElementStride:
      fields.element_strides[form.ordinal] = word;
      break;
    case Field::kType:
      if (word >= std::size(kReplaceTypes))
        fail(issuer, concat("element type ", word, " is unknown"));
      fields.type = kReplaceTypes[word];
      break;
    case Field::kInterleave:
      fields.interleave = static_cast<TensorMapInterleave>(word);
      break;
    case Field::kSwizzle:
      fields.swizzle = static_cast<TensorMapSwizzle>(word);
      break;
    case Field::kFill:
      fields.fill = static_cast<TensorMapFill>(word);
      break;
  }
}

/// The generic address of the same bytes.
uint64_t generic_address(const Warp& warp, Space space, uint64_t address) {
  if (space != Space::kShared) return address;
  const uint64_t rank = uint64_t{const_cast<Warp&>(warp).cta().rank} << kClusterRankShift;
  return kSharedWindow | address | rank;
}

void note_access(Warp& warp, Space space, uint64_t address, int lane, AccessKind kind) {
  RaceDetector* const races = warp.machine().races();
  if (races == nullptr) return;
  races->access_range(warp, warp.instruction(), lane, generic_address(warp, space, address),
                      kMapBytes, kind);
}

void load_map(Warp& warp, Space space, uint64_t address, int lane, TensorMap& map) {
  for (uint32_t at = 0; at < kMapBytes; at += kPiece) {
    std::memcpy(map.bytes + at, resolve(warp, space, address + at, kPiece, AccessKind::kRead, lane),
                kPiece);
  }
}

void store_map(Warp& warp, Space space, uint64_t address, int lane, const TensorMap& map) {
  for (uint32_t at = 0; at < kMapBytes; at += kPiece) {
    std::memcpy(resolve(warp, space, address + at, kPiece, AccessKind::kWrite, lane),
                map.bytes + at, kPiece);
  }
}

Step tensormap_replace(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const ReplaceForm&>(*inst.side);
  for_lanes(active, [&](int lane) {
    const Issuer issuer{warp, inst, lane};
    const uint64_t address = form.map.at(warp, lane);
    const uint64_t value = form.value_is_64 ? warp.lanes<uint64_t>(form.value)[lane]
                                            : warp.lanes<uint32_t>(form.value)[lane];
    TensorMap map;
    load_map(warp, form.space, address, lane, map);
    note_access(warp, form.space, address, lane, AccessKind::kWrite);
    TensorMapFields fields = decode(issuer, map);
    replace_field(issuer, form, value, fields);
    store_map(warp, form.space, address, lane, encode_emulated(fields));
  });
  return Step::kNext;
}

/// `[map] {, ordinal}, value`
void build_replace(Builder& builder, Field field, Space space, bool wide) {
  auto form = std::make_unique<ReplaceForm>();
  const bool has_ordinal = field == Field::kBox || field == Field::kDim ||
                           field == Field::kStride || field == Field::kElementStride;
  const std::vector<Operand>& operands = builder.statement().operands;
  if (operands.size() != (has_ordinal ? 3u : 2u)) builder.fail("wrong number of operands");
  form->field = field;
  form->space = space;
  form->map = read_address(builder, operands[0], space);
  if (has_ordinal) {
    const int64_t ordinal = builder.integer(operands[1]);
    const int limit = TensorMapFields::kMaxRank - (field == Field::kStride ? 1 : 0);
    if (ordinal < 0 || ordinal >= limit) {
      builder.fail(concat("the ordinal must be from 0 to ", limit - 1, ", got ", ordinal));
    }
    form->ordinal = static_cast<uint32_t>(ordinal);
  }
  form->value = builder.source(operands.back(), wide ? Type::kB64 : Type::kB32);
  form->value_is_64 = wide;
  builder.keep(std::move(form));
  builder.instruction().handler = &tensormap_replace;
}

struct CopyForm : SideData {
  AddressOperand destination;
  AddressOperand source;
};

/// The warp copies one map from shared to global memory, and releases it to the proxy of tensor
/// maps.
Step copy_map(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  check_aligned_guard(warp, inst, active);
  const auto& form = static_cast<const CopyForm&>(*inst.side);
  const int lane = __builtin_ctz(active);
  TensorMap map;
  load_map(warp, Space::kShared, form.source.at(warp, lane), lane, map);
  note_access(warp, Space::kShared, form.source.at(warp, lane), lane, AccessKind::kRead);
  note_access(warp, Space::kGlobal, form.destination.at(warp, lane), lane, AccessKind::kWrite);
  store_map(warp, Space::kGlobal, form.destination.at(warp, lane), lane, map);
  if (RaceDetector* races = warp.machine().races()) {
    ProxyFence fence;
    fence.tensor_map = true;
    races->fence_proxy(warp, active, fence);
  }
  return Step::kNext;
}

void build_copy(Builder& builder) {
  const std::vector<Operand>& operands = builder.statement().operands;
  if (operands.size() != 3 || builder.integer(operands[2]) != kMapBytes) {
    builder.fail("expected [dst], [src], 128");
  }
  auto form = std::make_unique<CopyForm>();
  form->destination = read_address(builder, operands[0], Space::kGlobal);
  form->source = read_address(builder, operands[1], Space::kShared);
  builder.keep(std::move(form));
  builder.instruction().handler = &copy_map;
}

}  // namespace

TensorMapFields read_tensor_map(const Issuer& issuer, uint64_t address) {
  if (address % 64 != 0) {
    fail(issuer, concat("the address of a tensor map must be a multiple of 64, got ",
                        hexadecimal(address)));
  }
  TensorMap map;
  load_map(issuer.warp, Space::kGeneric, address, issuer.lane, map);
  if (RaceDetector* races = issuer.warp.machine().races()) {
    races->read_tensor_map(issuer.warp, issuer.instruction, issuer.lane, address);
  }
  const TensorMapFields fields = decode(issuer, map);
  check_usable(issuer, fields);
  return fields;
}

void add_tensor_map_forms(Table& table) {
  struct Row {
    const char* name;
    Field field;
    bool wide;
  };
  constexpr Row kRows[] = {
      {"global_address", Field::kAddress, true}, {"rank", Field::kRank, false},
      {"box_dim", Field::kBox, false},           {"global_dim", Field::kDim, false},
      {"global_stride", Field::kStride, true},   {"element_stride", Field::kElementStride, false},
      {"elemtype", Field::kType, false},         {"interleave_layout", Field::kInterleave, false},
      {"swizzle_mode", Field::kSwizzle, false},  {"fill_mode", Field::kFill, false}};
  const std::pair<const char*, Space> spaces[] = {
      {"", Space::kGeneric}, {".global", Space::kGlobal}, {".shared::cta", Space::kShared}};
  for (const Row& row : kRows) {
    for (const auto& [name, space] : spaces) {
      const std::string spelling =
          std::string("tensormap.replace.tile.") + row.name + name + ".b1024";
      table.add(spelling + (row.wide ? ".b64" : ".b32"), InstructionClass::kBulkCopy,
                [row, space = space](Builder& builder) {
                  build_replace(builder, row.field, space, row.wide);
                });
    }
  }
  for (const std::string scope : {"cta", "cluster", "gpu", "sys"}) {
    table.add("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release." + scope +
                  ".sync.aligned",
              InstructionClass::kBulkCopy, build_copy);
  }
}

}  // namespace pykernels::emulator
