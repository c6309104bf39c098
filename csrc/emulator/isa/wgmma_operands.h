// Operands of WGMMA: the matrix descriptor, and the bytes that it names in shared memory.
#pragma once

#include <cstdint>

#include "emulator/program.h"

namespace pykernels::emulator {

class Cta;
class Machine;
class Warp;

inline constexpr int kOperandRowBytes = 32;  // k of every dense WGMMA, in bytes

/// PTX ISA, "Asynchronous warpgroup level matrix shared memory layout".
struct MatrixDescriptor {
  uint32_t start;           // shared-window address
  uint32_t leading_bytes;   // "leading dimension byte offset"
  uint32_t stride_bytes;    // "stride dimension byte offset"
  uint32_t base_offset;     // row of the swizzle pattern at which the matrix starts
  uint32_t swizzle_chunks;  // 16-byte chunks that the pattern permutes: 1 (none), 2, 4 or 8
  bool has_unnamed_bits;    // bits that the ISA does not name are set

  static MatrixDescriptor decode(uint64_t bits);

  /// True where the start is off the swizzle's repeat and no base offset says so.
  bool starts_inside_pattern() const {
    return base_offset == 0 && ((start >> 7) & (swizzle_chunks - 1)) != 0;
  }
  /// Address of a 16-byte chunk of a K-major operand: `chunk` 0 or 1 along k of row `row`.
  uint32_t k_major(int row, int chunk) const;
  /// Address of 8 consecutive rows (M or N) at one k of an MN-major operand of 16-bit elements.
  uint32_t mn_major(int row_chunk, int k) const;

 private:
  /// The swizzle acts on the bits of the absolute address.
  uint32_t swizzled(uint32_t address) const;
};

/// Where an operand is read: for bounds and findings.
struct OperandReader {
  Machine& machine;
  Cta& cta;
  Warp& issuer;
  const Instruction& instruction;
};

/// Gathers `rows` x 32 bytes, k contiguous, out of shared memory. `transposed`: the operand lies
/// MN-major.
void gather_operand(const OperandReader& reader, uint64_t descriptor, int rows, bool transposed,
                    uint8_t* destination);

/// Writes the registers of one warp that hold its 16 rows of A (PTX ISA, register fragments of
/// matrix A; the same bytes for every element type) into the 64 x 32 bytes.
void gather_fragment(const uint32_t* const (&registers)[4], int warp_in_group,
                     uint8_t* destination);

}  // namespace pykernels::emulator
