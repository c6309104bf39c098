// What loads, stores, atomics and matrix moves share: reading their modifiers when a module is
// loaded, and reaching memory 32 lanes at a time when they run.
#pragma once

#include <cstdint>

#include "emulator/isa/table.h"
#include "emulator/machine/machine.h"
#include "emulator/machine/memory.h"
#include "emulator/machine/warp.h"
#include "emulator/memory_model.h"

namespace pykernels::emulator {

/// The modifiers of a load, store or atomic. Cache operators, eviction priorities and prefetch
/// sizes are accepted and have no effect.
struct MemoryModifiers {
  Semantics semantics = Semantics::kWeak;
  Scope scope = Scope::kNone;
  Space space = Space::kGeneric;
  bool cluster = false;       // .shared::cluster
  bool non_coherent = false;  // .nc
  bool noftz = false;         // of atom and red
  bool cache_hint = false;    // .L2::cache_hint: one more operand, without effect
  int vector = 1;
  Type type = Type::kNone;
  Type second_type = Type::kNone;
  std::string operation;  // of atom and red
};

/// Reads the statement's modifiers. `operations`: names that stand for an operation, separated by
/// spaces. Fails on a modifier that is none of these.
MemoryModifiers read_memory_modifiers(const Builder& builder, std::string_view operations = "");

// Bits of Instruction::variant of instructions that access memory.
inline constexpr uint16_t kBase64 = 1;          // lanes of the base are uint64_t
inline constexpr uint16_t kClusterAddress = 2;  // .shared::cluster: the address holds a CTA's rank
inline constexpr uint16_t kDestination16 = 4;   // 16-bit destination: upper bits stay zero
inline constexpr uint16_t kNonCoherent = 8;
inline constexpr int kSpaceShift = 4;      // 3 bits
inline constexpr int kSemanticsShift = 7;  // 3 bits
inline constexpr int kScopeShift = 10;     // 3 bits
inline constexpr int kScalarShift = 13;    // 3 bits: log2 of the bytes of a scalar

uint16_t memory_variant(const MemoryModifiers& modifiers, bool base_is_64);

inline Space access_space(const Instruction& inst) {
  return static_cast<Space>(inst.variant >> kSpaceShift & 7);
}

/// Atomics are relaxed for the GPU unless they say more; volatile accesses for the system.
inline MemoryOrder memory_order(const Instruction& inst, AccessKind kind) {
  MemoryOrder order{static_cast<Semantics>(inst.variant >> kSemanticsShift & 7),
                    static_cast<Scope>(inst.variant >> kScopeShift & 7),
                    (inst.variant & kNonCoherent) != 0};
  if (kind == AccessKind::kAtomic && !order.is_strong()) order.semantics = Semantics::kRelaxed;
  if (order.semantics == Semantics::kVolatile) order.scope = Scope::kSys;
  if (order.is_strong() && order.scope == Scope::kNone) order.scope = Scope::kGpu;
  return order;
}

/// Fills base slot `slot`, offset and variant of the instruction from the address operand.
void build_address(Builder& builder, const Operand& operand, const MemoryModifiers& modifiers,
                   int slot);

/// An address operand of an instruction that has several; kept in its side data.
struct AddressOperand {
  Slot base = kNoSlot;
  bool base_is_64 = false;
  bool cluster = false;  // .shared::cluster
  int64_t offset = 0;

  uint64_t at(Warp& warp, int lane) const;
};

/// `cluster`: a symbol's address is given the CTA's own rank, as it has in a register.
AddressOperand read_address(Builder& builder, const Operand& operand, Space space,
                            bool cluster = false);

/// Keys of the table ignore the order of modifiers, but destination and source spaces stand in
/// theirs: fails unless `space` is the first (or not the first) of the statement's spaces.
void check_direction(const Builder& builder, std::string_view space, bool first);

/// A register that is read or written as wide as it is declared, an immediate as `type`; values
/// narrower than the register take its low bits.
Slot register_source(Builder& builder, const Operand& operand, Type type);
Slot register_destination(Builder& builder, const Operand& operand, Type type);

/// base + offset of all 32 lanes. `slot` kNoSlot: the same offset for all.
void lane_addresses(Warp& warp, const Instruction& inst, Slot slot, uint64_t* addresses);

/// An access that has been resolved.
struct WarpAccess {
  Space space;  // of all active lanes; kGeneric: lanes lie in several
  AccessKind kind;
  bool row;        // all 32 lanes, each one's bytes behind those of the one before
  uint32_t bytes;  // a lane
  LaneMask active;
  const uint64_t* addresses;  // of the active lanes; of a row only lane 0's
  bool reduction = false;     // an atomic without a result
  LaneMask failed = 0;        // lanes whose compare-and-swap has only read
};

/// Host pointers of all active lanes, whatever the space; counts the bytes and, in shared memory,
/// the bank conflicts. Inactive lanes' pointers are undefined.
void access(Warp& warp, const Instruction& inst, const uint64_t* addresses, uint32_t bytes,
            AccessKind kind, LaneMask active, uint8_t** pointers);

/// The two halves of access(), for those who know only later what they have done: host pointers and
/// the space that holds all of them, then counters and checks.
Space resolve_lanes(Warp& warp, const Instruction& inst, const uint64_t* addresses, uint32_t bytes,
                    AccessKind kind, LaneMask active, uint8_t** pointers);
void account(Warp& warp, const Instruction& inst, const WarpAccess& access);

/// Wavefronts beyond the least that the access needs: 32 banks of 4 bytes, 16-byte accesses in
/// phases of eight lanes, 8-byte ones of sixteen.
uint32_t bank_conflicts(const uint64_t* addresses, uint32_t bytes, LaneMask active);

}  // namespace pykernels::emulator
