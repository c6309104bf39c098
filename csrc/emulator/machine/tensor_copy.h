// The geometry of tensor copies: which bytes of a tensor a box holds, and where swizzling puts them
// in shared memory. Boxes are handled densely (row after row, without gaps); only the shared side
// is swizzled.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emulator/machine/bulk_operation.h"

namespace pykernels::emulator {

/// Bytes of the whole box, elements out of bounds included: what complete_tx counts.
uint32_t box_bytes(const TensorMapFields& map);

/// The swizzled place of a byte, by the bits of its shared address (or offset: windows are
/// aligned).
uint32_t swizzled(uint32_t address, TensorMapSwizzle swizzle);
/// The swizzle's repeat in bytes: 1024, 512, 256; 1 without swizzle.
uint32_t swizzle_repeat(TensorMapSwizzle swizzle);

/// Bytes of the tensor from the lowest to behind the highest element of the box; nullopt where the
/// whole box is out of bounds.
std::optional<GlobalRange> bounding_range(const TensorBox& box);

/// At issue: ends the launch where elements of the box, in bounds by the map, lie outside of the
/// allocations.
void check_box_in_allocations(const Issuer& issuer, const TensorBox& box, AccessKind kind);

/// The box out of global memory, fill values where it is out of bounds.
std::vector<uint8_t> gather_box(Machine& machine, const TensorBox& box,
                                const Instruction* instruction, Warp* issuer);
/// Writes (or reduces) the elements in bounds.
void scatter_box(Machine& machine, const TensorBox& box, const std::vector<uint8_t>& data,
                 const std::optional<Reduction>& reduction, const Instruction* instruction,
                 Warp* issuer);
/// The box out of shared memory; bytes that lie out of bounds in the tensor are not looked at.
std::vector<uint8_t> read_box(Machine& machine, const SharedRange& range, const TensorBox& box,
                              const Instruction* instruction, Warp* issuer);
/// Writes a dense box (or any bytes, without swizzle) to shared memory.
void write_box(Machine& machine, const SharedRange& range, const std::vector<uint8_t>& data,
               TensorMapSwizzle swizzle, const Instruction* instruction, Warp* issuer);
/// Poisons what write_box will write.
void poison_box(const SharedRange& range, TensorMapSwizzle swizzle);

}  // namespace pykernels::emulator
