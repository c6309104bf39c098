// Atomic operations and reductions on memory, scalar and vector, and asynchronous stores and
// reductions into the shared memory of a cluster.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/check.h"
#include "emulator/isa/memory_access.h"
#include "emulator/machine/bulk_operation.h"
#include "emulator/machine/reduction.h"

namespace pykernels::emulator {
namespace {

constexpr int kMaxElements = 8;
constexpr std::string_view kOperations = "add min max inc dec and or xor exch cas";

/// Elements of an atomic in the order of the vector; scalars have one.
struct AtomicForm : SideData {
  Reduction reduction;
  bool is_reduction = false;  // red: no destination
  bool compares = false;      // cas: source is the value to compare with, `replacement` the new one
  int count = 1;
  uint32_t bytes = 4;  // of an element
  Slot destination[kMaxElements];
  Slot source[kMaxElements];
  Slot replacement = kNoSlot;
};

/// The low `bytes` of a lane of a register of at most 64 bits.
uint64_t read_lane(Warp& warp, Slot slot, int lane, uint32_t bytes) {
  return bytes == 8 ? warp.lanes<uint64_t>(slot)[lane] : warp.lanes<uint32_t>(slot)[lane];
}

void write_lane(Warp& warp, Slot slot, int lane, uint32_t bytes, uint64_t value) {
  if (bytes == 8) {
    warp.lanes<uint64_t>(slot)[lane] = value;
  } else {
    warp.lanes<uint32_t>(slot)[lane] = static_cast<uint32_t>(value);
  }
}

bool in_shared(const Instruction& inst, uint64_t address) {
  const Space space = access_space(inst);
  return space == Space::kShared ||
         (space == Space::kGeneric && address >> kWindowShift == kSharedWindow >> kWindowShift);
}

/// One lane's read-modify-write: false if it has only read. Lanes take their turns in ascending
/// order.
bool update(Warp& warp, const AtomicForm& form, const Reduction& reduction, uint8_t* pointer,
            int lane) {
  bool writes = true;
  for (int i = 0; i < form.count; ++i) {
    uint8_t* place = pointer + static_cast<uint32_t>(i) * form.bytes;
    uint64_t old_value = 0;
    std::memcpy(&old_value, place, form.bytes);
    const uint64_t operand = read_lane(warp, form.source[i], lane, form.bytes);
    uint64_t result = 0;
    if (form.compares) {
      const uint64_t mask = form.bytes == 8 ? ~0ull : (1ull << 8 * form.bytes) - 1;
      const uint64_t replacement = read_lane(warp, form.replacement, lane, form.bytes);
      writes = old_value == (operand & mask);
      result = writes ? replacement : old_value;
    } else {
      result = reduction.combine(old_value, operand);
    }
    std::memcpy(place, &result, form.bytes);
    if (form.destination[i] != kNoSlot) {
      write_lane(warp, form.destination[i], lane, form.bytes, old_value);
    }
  }
  return writes;
}

Step atomic(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const AtomicForm&>(*inst.side);
  uint64_t addresses[kWarpSize];
  uint8_t* pointers[kWarpSize];
  lane_addresses(warp, inst, inst.operands[0], addresses);
  const uint32_t bytes = form.bytes * static_cast<uint32_t>(form.count);
  const Space space =
      resolve_lanes(warp, inst, addresses, bytes, AccessKind::kAtomic, active, pointers);
  LaneMask failed = 0;
  Reduction reduction = form.reduction;
  for_lanes(active, [&](int lane) {
    // PTX ISA, atom: add.f32 flushes subnormals in global memory and keeps them in shared memory.
    reduction.flush_subnormals = reduction.type == Type::kF32 && !in_shared(inst, addresses[lane]);
    if (!update(warp, form, reduction, pointers[lane], lane)) failed |= 1u << lane;
  });
  account(warp, inst,
          {space, AccessKind::kAtomic, false, bytes, active, addresses, form.is_reduction, failed});
  return Step::kNext;
}

/// exch.b128 and cas.b128.
Step atomic_b128(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const AtomicForm&>(*inst.side);
  uint64_t addresses[kWarpSize];
  uint8_t* pointers[kWarpSize];
  lane_addresses(warp, inst, inst.operands[0], addresses);
  const Space space =
      resolve_lanes(warp, inst, addresses, 16, AccessKind::kAtomic, active, pointers);
  LaneMask failed = 0;
  for_lanes(active, [&](int lane) {
    uint8_t old_value[16];
    std::memcpy(old_value, pointers[lane], 16);
    const uint64_t* operand = warp.wide(form.source[0], lane);
    if (!form.compares) {
      std::memcpy(pointers[lane], operand, 16);
    } else if (std::memcmp(old_value, operand, 16) == 0) {
      std::memcpy(pointers[lane], warp.wide(form.replacement, lane), 16);
    } else {
      failed |= 1u << lane;
    }
    if (form.destination[0] != kNoSlot) {
      std::memcpy(warp.wide(form.destination[0], lane), old_value, 16);
    }
  });
  account(warp, inst,
          {space, AccessKind::kAtomic, false, 16, active, addresses, form.is_reduction, failed});
  return Step::kNext;
}

const Operand& operand(const Builder& builder, size_t index) {
  if (index >= builder.statement().operands.size()) builder.fail("operands are missing");
  return builder.statement().operands[index];
}

/// Slots of `{a, b}` or of one operand, through `read`.
template <typename Read>
void read_elements(const Builder& builder, const Operand& operand, int count, Slot* slots,
                   Read read) {
  const bool is_vector = operand.kind == Operand::Kind::kVector;
  const size_t size = is_vector ? operand.elements.size() : 1;
  if (size != static_cast<size_t>(count)) {
    builder.fail(concat("expected ", count, " values, got ", size));
  }
  for (size_t i = 0; i < size; ++i) slots[i] = read(is_vector ? operand.elements[i] : operand);
}

std::unique_ptr<AtomicForm> make_form(const Builder& builder, const MemoryModifiers& modifiers) {
  auto form = std::make_unique<AtomicForm>();
  form->count = modifiers.vector;
  form->bytes = static_cast<uint32_t>(type_bits(modifiers.type) / 8);
  form->reduction.type = modifiers.type;
  std::fill(std::begin(form->destination), std::end(form->destination), kNoSlot);
  form->compares = modifiers.operation == "cas";
  if (form->compares) {
    const Type type = modifiers.type;
    if (type != Type::kB16 && type != Type::kB32 && type != Type::kB64 && type != Type::kB128) {
      builder.fail("cas needs .b16, .b32, .b64 or .b128");
    }
    return form;
  }
  if (modifiers.operation.empty()) builder.fail("the operation is missing");
  form->reduction.operation = *reduction_from_name(modifiers.operation);
  const bool float_add =
      modifiers.type >= Type::kF16 && form->reduction.operation == ReductionOperation::kAdd;
  if (!form->reduction.valid() || (modifiers.vector > 1 && modifiers.type < Type::kF16) ||
      (modifiers.noftz && !float_add) || form->bytes * static_cast<uint32_t>(form->count) > 16) {
    builder.fail(concat(".", modifiers.operation, " is not defined for this type"));
  }
  return form;
}

/// `d, [a], b {, c} {, policy}`; red has no d.
void build_atomic(Builder& builder, bool has_destination) {
  const MemoryModifiers modifiers = read_memory_modifiers(builder, kOperations);
  if (modifiers.space == Space::kConst || modifiers.space == Space::kParam ||
      modifiers.space == Space::kLocal) {
    builder.fail("atomics need global or shared memory");
  }
  auto form = make_form(builder, modifiers);
  form->is_reduction = !has_destination;
  size_t next = has_destination ? 1 : 0;
  build_address(builder, operand(builder, next++), modifiers, 0);
  read_elements(
      builder, operand(builder, next++), form->count, form->source,
      [&](const Operand& value) { return register_source(builder, value, modifiers.type); });
  if (form->compares) {
    form->replacement = register_source(builder, operand(builder, next++), modifiers.type);
  }
  if (modifiers.cache_hint) builder.source(operand(builder, next++), Type::kB64);
  if (next != builder.statement().operands.size()) builder.fail("too many operands");
  if (has_destination) {
    read_elements(builder, operand(builder, 0), form->count, form->destination,
                  [&](const Operand& value) {
                    if (value.kind == Operand::Kind::kSink) return kNoSlot;
                    return register_destination(builder, value, modifiers.type);
                  });
  }
  builder.instruction().handler = form->bytes == 16 ? &atomic_b128 : &atomic;
  builder.keep(std::move(form));
}

// ---- st.async, red.async ----

struct AsyncStoreForm : SideData {
  AddressOperand destination;
  AddressOperand barrier;
  int count = 1;
  uint32_t bytes = 4;
  Slot source[4];
  std::optional<Reduction> reduction;
};

Step async_store(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const AsyncStoreForm&>(*inst.side);
  const uint32_t bytes = form.bytes * static_cast<uint32_t>(form.count);
  for_lanes(active, [&](int lane) {
    const Issuer issuer{warp, inst, lane};
    auto operation = std::make_shared<BulkOperation>();
    operation->bytes = bytes;
    operation->reduction = form.reduction;
    operation->async_proxy = false;
    operation->data.resize(bytes);
    for (int i = 0; i < form.count; ++i) {
      const uint64_t value = read_lane(warp, form.source[i], lane, form.bytes);
      std::memcpy(operation->data.data() + static_cast<uint32_t>(i) * form.bytes, &value,
                  form.bytes);
    }
    operation->to_shared.push_back(shared_range(issuer, form.destination.at(warp, lane), bytes,
                                                bytes, SharedOperand::kDestination));
    operation->barriers.push_back(completion_barrier(issuer, form.barrier.at(warp, lane)));
    issue_bulk(issuer, operation);
  });
  return Step::kNext;
}

/// `[a], b, [mbar]`
void build_async_store(Builder& builder, Type type, int count, std::optional<Reduction> reduction) {
  auto form = std::make_unique<AsyncStoreForm>();
  if (builder.num_operands() != 3) builder.fail("expected [a], b, [mbar]");
  form->destination = read_address(builder, operand(builder, 0), Space::kShared, true);
  form->count = count;
  form->bytes = static_cast<uint32_t>(type_bits(type) / 8);
  form->reduction = reduction;
  read_elements(builder, operand(builder, 1), count, form->source,
                [&](const Operand& value) { return register_source(builder, value, type); });
  form->barrier = read_address(builder, operand(builder, 2), Space::kShared, true);
  builder.keep(std::move(form));
  builder.instruction().handler = &async_store;
}

constexpr const char* kCompletion = ".mbarrier::complete_tx::bytes";

void add_async_stores(Table& table) {
  for (const Type type : {Type::kB32, Type::kB64, Type::kU32, Type::kU64, Type::kS32, Type::kS64,
                          Type::kF32, Type::kF64}) {
    for (const int count : {1, 2, 4}) {
      if (type_bits(type) * count > 128) continue;
      const std::string vector = count == 1 ? "" : ".v" + std::to_string(count);
      for (const std::string space : {"", ".shared::cluster"}) {
        for (const std::string weak : {"", ".weak"}) {
          table.add(
              "st.async" + weak + space + kCompletion + vector + "." + std::string(type_name(type)),
              InstructionClass::kMemory, [type, count](Builder& builder) {
                build_async_store(builder, type, count, std::nullopt);
              });
        }
      }
    }
  }
}

void add_async_reductions(Table& table) {
  for (const char* name : {"inc", "dec", "min", "max", "add", "and", "or", "xor"}) {
    for (const Type type : {Type::kU32, Type::kS32, Type::kU64, Type::kB32}) {
      const Reduction reduction{*reduction_from_name(name), type, false};
      if (!reduction.valid()) continue;
      for (const std::string space : {"", ".shared::cluster"}) {
        table.add("red.async.relaxed.cluster" + space + kCompletion + "." + name + "." +
                      std::string(type_name(type)),
                  InstructionClass::kAtomic, [type, reduction](Builder& builder) {
                    build_async_store(builder, type, 1, reduction);
                  });
      }
    }
  }
}

}  // namespace

void add_atomic_forms(Table& table) {
  table.add("atom.*", InstructionClass::kAtomic,
            [](Builder& builder) { build_atomic(builder, true); });
  table.add("red.*", InstructionClass::kAtomic,
            [](Builder& builder) { build_atomic(builder, false); });
  add_async_stores(table);
  add_async_reductions(table);
}

}  // namespace pykernels::emulator
