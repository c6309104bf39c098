// Tensor copies (TMA, tiled mode): loads with multicast, stores, reductions and prefetches of 1 to
// 5 dimensions.
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "emulator/gpu_facts.h"
#include "emulator/isa/bulk_copy_forms.h"
#include "emulator/isa/tensor_map_operand.h"
#include "emulator/machine/tensor_copy.h"

namespace pykernels::emulator {
namespace {

constexpr auto kClass = InstructionClass::kBulkCopy;

/// A tensor copy: the tensor on one side, shared memory on the other.
struct TensorForm : SideData {
  bool is_load = false;
  AddressOperand map;
  AddressOperand shared;
  AddressOperand barrier;
  Slot coordinates[TensorMapFields::kMaxRank] = {};
  uint32_t rank = 0;
  Slot mask = kNoSlot;
  std::optional<ReductionOperation> reduction;
};

TensorBox tensor_box(const Issuer& issuer, const TensorForm& form) {
  Warp& warp = issuer.warp;
  TensorBox box{read_tensor_map(issuer, form.map.at(warp, issuer.lane)), {}};
  if (box.map.rank != form.rank) {
    warp.machine().fail("memory",
                        concat("the tensor map must have the instruction's rank ", form.rank,
                               ", got ", box.map.rank),
                        warp, issuer.instruction, issuer.lane);
  }
  for (uint32_t d = 0; d < form.rank; ++d) {
    box.coordinates[d] =
        static_cast<int32_t>(warp.lanes<uint32_t>(form.coordinates[d])[issuer.lane]);
  }
  return box;
}

/// Notes what the copy relies on that no document fixes.
void note_assumptions(Machine& machine, const TensorMapFields& map, const SharedRange& range) {
  if (map.swizzle != TensorMapSwizzle::kNone) {
    if (range.offset % swizzle_repeat(map.swizzle) != 0) {
      rely_on(machine, Fact::kBoxBelowSwizzleAlignment);
    }
    if (map.box[0] * element_bytes(map.type) < 16u << static_cast<int>(map.swizzle)) {
      rely_on(machine, Fact::kBoxNarrowerThanSwizzle);
    }
  }
  if (map.fill == TensorMapFill::kNan) rely_on(machine, Fact::kNanFillPattern);
  if (map.type >= TensorMapType::kFloat32Ftz && map.type <= TensorMapType::kTfloat32Ftz) {
    rely_on(machine, Fact::kConvertingTensorMap);
  }
}

/// The element type of a tensor reduction; ends the launch where the operation does not know it.
Reduction tensor_reduction(const Issuer& issuer, ReductionOperation operation, TensorMapType type) {
  static constexpr Type kTypes[] = {Type::kU8,  Type::kU16, Type::kU32, Type::kS32, Type::kU64,
                                    Type::kS64, Type::kF16, Type::kF32, Type::kF64, Type::kBf16,
                                    Type::kF32, Type::kF32, Type::kF32};
  Reduction reduction{operation, kTypes[static_cast<size_t>(type)],
                      type == TensorMapType::kFloat32Ftz || type == TensorMapType::kTfloat32Ftz};
  if (!reduction.valid() || type == TensorMapType::kFloat64) {
    issuer.warp.machine().fail(
        "memory",
        concat("the reduction is not defined for the map's type .", type_name(reduction.type)),
        issuer.warp, issuer.instruction, issuer.lane);
  }
  if (reduction.type >= Type::kF16) rely_on(issuer.warp.machine(), Fact::kReduceRounding);
  return reduction;
}

void issue_tensor(const Issuer& issuer, const TensorForm& form) {
  Warp& warp = issuer.warp;
  const TensorBox box = tensor_box(issuer, form);
  auto operation = std::make_shared<BulkOperation>();
  operation->bytes = box_bytes(box.map);
  operation->swizzle = box.map.swizzle;
  const uint64_t address = form.shared.at(warp, issuer.lane);
  const SharedRange range =
      shared_range(issuer, address, operation->bytes, 128,
                   form.is_load ? SharedOperand::kDestination : SharedOperand::kSource);
  note_assumptions(warp.machine(), box.map, range);
  check_box_in_allocations(issuer, box, form.is_load ? AccessKind::kRead : AccessKind::kWrite);
  if (form.is_load) {
    operation->from_tensor = box;
    set_shared_destination(issuer, address, form.barrier.at(warp, issuer.lane), form.mask,
                           *operation);
    issue_bulk(issuer, operation);
  } else {
    operation->from_shared = range;
    operation->to_tensor = box;
    if (form.reduction) {
      operation->reduction = tensor_reduction(issuer, *form.reduction, box.map.type);
    }
    issue_in_bulk_group(issuer, operation);
  }
}

Step tensor_copy(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const TensorForm&>(*inst.side);
  return for_threads(warp, inst, active, [&](const Issuer& issuer) { issue_tensor(issuer, form); });
}

/// A prefetch has no effect but that its map must be one.
Step tensor_prefetch(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const TensorForm&>(*inst.side);
  return for_threads(warp, inst, active, [&](const Issuer& issuer) { tensor_box(issuer, form); });
}

/// `[map, {coordinates}]`
void read_tensor(Builder& builder, const Operand& address, uint32_t rank, TensorForm& form) {
  if (address.kind != Operand::Kind::kAddress || address.elements.size() != 2 ||
      address.elements[1].kind != Operand::Kind::kVector) {
    builder.fail("expected [map, {coordinates}]");
  }
  Operand map = address;
  map.elements.pop_back();
  form.map = read_address(builder, map, Space::kGeneric);
  const std::vector<Operand>& coordinates = address.elements[1].elements;
  if (coordinates.size() != rank) {
    builder.fail(concat("expected ", rank, " coordinates, got ", coordinates.size()));
  }
  form.rank = rank;
  for (uint32_t d = 0; d < rank; ++d) {
    form.coordinates[d] = builder.source(coordinates[d], Type::kS32);
  }
}

/// `[dst], [map, {coordinates}], [mbar] {, mask} {, policy}`
void build_tensor_load(Builder& builder, uint32_t rank) {
  check_direction(builder, "global", false);
  auto form = std::make_unique<TensorForm>();
  form->is_load = true;
  form->shared = read_address(builder, statement_operand(builder, 0), Space::kShared, true);
  read_tensor(builder, statement_operand(builder, 1), rank, *form);
  form->barrier = read_address(builder, statement_operand(builder, 2), Space::kShared, true);
  read_trailing(builder, 3, &form->mask);
  builder.keep(std::move(form));
  builder.instruction().handler = &tensor_copy;
}

/// `[map, {coordinates}], [src] {, policy}`
void build_tensor_store(Builder& builder, uint32_t rank,
                        std::optional<ReductionOperation> reduction) {
  check_direction(builder, "global", true);
  auto form = std::make_unique<TensorForm>();
  read_tensor(builder, statement_operand(builder, 0), rank, *form);
  form->shared = read_address(builder, statement_operand(builder, 1), Space::kShared, true);
  form->reduction = reduction;
  Slot no_mask = kNoSlot;
  read_trailing(builder, 2, &no_mask);
  builder.keep(std::move(form));
  builder.instruction().handler = &tensor_copy;
}

void build_tensor_prefetch(Builder& builder, uint32_t rank) {
  auto form = std::make_unique<TensorForm>();
  read_tensor(builder, statement_operand(builder, 0), rank, *form);
  Slot no_mask = kNoSlot;
  read_trailing(builder, 1, &no_mask);
  builder.keep(std::move(form));
  builder.instruction().handler = &tensor_prefetch;
}

void add_tensor_forms(Table& table, uint32_t rank) {
  const std::string dimension = "." + std::to_string(rank) + "d";
  for (const std::string hint : kHints) {
    for (const std::string tile : {"", ".tile"}) {
      const auto load = [rank](Builder& builder) { build_tensor_load(builder, rank); };
      const std::string prefix = "cp.async.bulk.tensor" + dimension;
      const std::string completion = tile + kCompletion;
      table.add(prefix + ".shared::cluster.global" + completion + hint, kClass, load);
      table.add(prefix + ".shared::cluster.global" + completion + ".multicast::cluster" + hint,
                kClass, load);
      table.add(prefix + ".shared::cta.global" + completion + hint, kClass, load);
      table.add(prefix + ".global.shared::cta" + tile + ".bulk_group" + hint, kClass,
                [rank](Builder& builder) { build_tensor_store(builder, rank, std::nullopt); });
      table.add("cp.async.bulk.prefetch.tensor" + dimension + ".L2.global" + tile + hint, kClass,
                [rank](Builder& builder) { build_tensor_prefetch(builder, rank); });
      for (const std::string name : {"add", "min", "max", "inc", "dec", "and", "or", "xor"}) {
        const ReductionOperation operation = *reduction_from_name(name);
        table.add("cp.reduce.async.bulk.tensor" + dimension + ".global.shared::cta." + name + tile +
                      ".bulk_group" + hint,
                  kClass, [rank, operation](Builder& builder) {
                    build_tensor_store(builder, rank, operation);
                  });
      }
    }
  }
}

}  // namespace

void add_tensor_copy_forms(Table& table) {
  for (uint32_t rank = 1; rank <= TensorMapFields::kMaxRank; ++rank) add_tensor_forms(table, rank);
}

}  // namespace pykernels::emulator
