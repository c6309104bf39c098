#include "emulator/isa/wgmma_operands.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "emulator/check/race/detector.h"
#include "emulator/gpu_facts.h"
#include "emulator/machine/machine.h"
#include "emulator/machine/memory.h"
#include "emulator/machine/warp.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kChunkBytes = 16;
constexpr uint32_t kAddressMask = 0x3FFFF;  // 14 bits of 16 bytes
constexpr uint64_t kUnnamedBits = 0x3FF1C000C000C000ull;

constexpr uint32_t field(uint64_t bits, int position, int width) {
  return static_cast<uint32_t>(bits >> position) & ((1u << width) - 1);
}

/// Reads chunks of one operand, with the checks that the launch asks for.
class ChunkReader {
 public:
  explicit ChunkReader(const OperandReader& reader)
      : reader_(reader),
        check_init_(!reader.cta.shared_initialised.empty()),
        races_(reader.machine.races()) {}

  void read(uint32_t address, uint8_t* destination) {
    const uint32_t offset = (address & kAddressMask) - kSharedBase;
    const auto size = static_cast<uint32_t>(reader_.cta.shared.size());
    if (address < kSharedBase || offset > size || size - offset < kChunkBytes) {
      out_of_bounds(address);
    }
    std::memcpy(destination, &reader_.cta.shared[offset], kChunkBytes);
    if (check_init_) check_initialised(offset);
    if (races_ != nullptr) {
      races_->async_shared(reader_.cta, offset, kChunkBytes, AccessKind::kRead);
    }
  }

 private:
  [[noreturn]] void out_of_bounds(uint32_t address) const {
    reader_.machine.fail(
        "memory",
        concat("the matrix descriptor reaches shared address ", address, ", and the CTA's ",
               reader_.cta.shared.size(), " bytes start at ", kSharedBase),
        reader_.issuer, reader_.instruction);
  }

  void check_initialised(uint32_t offset) {
    const uint8_t* marks = &reader_.cta.shared_initialised[offset];
    if (reported_ || std::all_of(marks, marks + kChunkBytes, [](uint8_t mark) { return mark; })) {
      return;
    }
    reported_ = true;
    reader_.machine.report(
        "init",
        concat("WGMMA reads shared memory that holds no value, at offset ", offset, " of the CTA"),
        reader_.issuer, reader_.instruction);
  }

  const OperandReader& reader_;
  bool check_init_;
  RaceDetector* races_;
  bool reported_ = false;
};

void gather_transposed(ChunkReader& chunks, const MatrixDescriptor& descriptor, int rows,
                       uint8_t* destination) {
  constexpr int kElementBytes = 2;
  constexpr int kChunkElements = kChunkBytes / kElementBytes;
  for (int k = 0; k < kOperandRowBytes / kElementBytes; ++k) {
    for (int row = 0; row < rows; row += kChunkElements) {
      uint8_t chunk[kChunkBytes];
      chunks.read(descriptor.mn_major(row / kChunkElements, k), chunk);
      for (int i = 0; i < kChunkElements; ++i) {
        std::memcpy(destination + (row + i) * kOperandRowBytes + k * kElementBytes,
                    chunk + i * kElementBytes, kElementBytes);
      }
    }
  }
}

}  // namespace

MatrixDescriptor MatrixDescriptor::decode(uint64_t bits) {
  constexpr uint32_t kChunksOfMode[4] = {1, 8, 4, 2};
  MatrixDescriptor descriptor{};
  descriptor.start = field(bits, 0, 14) * kChunkBytes;
  descriptor.leading_bytes = field(bits, 16, 14) * kChunkBytes;
  descriptor.stride_bytes = field(bits, 32, 14) * kChunkBytes;
  descriptor.base_offset = field(bits, 49, 3);
  descriptor.swizzle_chunks = kChunksOfMode[field(bits, 62, 2)];
  descriptor.has_unnamed_bits = (bits & kUnnamedBits) != 0;
  return descriptor;
}

uint32_t MatrixDescriptor::swizzled(uint32_t address) const {
  const uint32_t row = (address >> 7) - base_offset;
  return address ^ ((row & (swizzle_chunks - 1)) * kChunkBytes);
}

uint32_t MatrixDescriptor::k_major(int row, int chunk) const {
  const auto group = static_cast<uint32_t>(row) / 8;
  const auto row_in_group = static_cast<uint32_t>(row) % 8;
  const uint32_t chunk_stride = swizzle_chunks == 1 ? leading_bytes : kChunkBytes;
  return swizzled(start + group * stride_bytes + row_in_group * swizzle_chunks * kChunkBytes +
                  static_cast<uint32_t>(chunk) * chunk_stride);
}

uint32_t MatrixDescriptor::mn_major(int row_chunk, int k) const {
  const auto k_group = static_cast<uint32_t>(k) / 8;
  const auto k_in_group = static_cast<uint32_t>(k) % 8;
  const uint32_t pattern = static_cast<uint32_t>(row_chunk) / swizzle_chunks;
  const uint32_t chunk_in_pattern = static_cast<uint32_t>(row_chunk) % swizzle_chunks;
  // Without a swizzle the two offsets have changed roles.
  const uint32_t pattern_stride = swizzle_chunks == 1 ? stride_bytes : leading_bytes;
  const uint32_t k_stride = swizzle_chunks == 1 ? leading_bytes : stride_bytes;
  return swizzled(start + pattern * pattern_stride + chunk_in_pattern * kChunkBytes +
                  k_group * k_stride + k_in_group * swizzle_chunks * kChunkBytes);
}

void gather_operand(const OperandReader& reader, uint64_t descriptor_bits, int rows,
                    bool transposed, uint8_t* destination) {
  const MatrixDescriptor descriptor = MatrixDescriptor::decode(descriptor_bits);
  if (descriptor.base_offset != 0) rely_on(reader.machine, Fact::kDescriptorBaseOffset);
  if (descriptor.starts_inside_pattern()) rely_on(reader.machine, Fact::kDescriptorInsidePattern);
  if (descriptor.has_unnamed_bits) rely_on(reader.machine, Fact::kDescriptorIgnoredFields);
  reader.machine.counters().shared_bytes_read += static_cast<uint64_t>(rows) * kOperandRowBytes;
  ChunkReader chunks(reader);
  if (transposed) {
    gather_transposed(chunks, descriptor, rows, destination);
    return;
  }
  for (int row = 0; row < rows; ++row) {
    uint8_t* target = destination + row * kOperandRowBytes;
    chunks.read(descriptor.k_major(row, 0), target);
    chunks.read(descriptor.k_major(row, 1), target + kChunkBytes);
  }
}

void gather_fragment(const uint32_t* const (&registers)[4], int warp_in_group,
                     uint8_t* destination) {
  for (int index = 0; index < 4; ++index) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int row = warp_in_group * 16 + index % 2 * 8 + lane / 4;
      const int byte = index / 2 * 16 + lane % 4 * 4;
      std::memcpy(destination + row * kOperandRowBytes + byte, &registers[index][lane],
                  sizeof(uint32_t));
    }
  }
}

}  // namespace pykernels::emulator
