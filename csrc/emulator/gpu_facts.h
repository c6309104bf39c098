// Behaviours of the hardware that its documents leave open and that the emulator assumes.
#pragma once

#include <cstdint>
#include <span>

namespace pykernels::emulator {

class Machine;

enum class Fact : uint8_t {
  kBoxBelowSwizzleAlignment,  // a TMA box that does not start at a multiple of the swizzle's repeat
  kBoxNarrowerThanSwizzle,    // an inner box smaller than the swizzle's span
  kNanFillPattern,            // the bits of TMA's NaN fill
  kMulticastOrder,            // the order in which a multicast reaches the CTAs
  kReduceRounding,            // rounding and subnormals of bulk reductions in FP16, BF16 and FP32
  kDescriptorBaseOffset,      // WGMMA descriptors with a base offset
  kDescriptorInsidePattern,   // descriptors that start inside a swizzle pattern, base offset 0
  kDescriptorIgnoredFields,   // descriptor bits that the documents do not name
  kHalfPrecisionWgmma,        // FP16, BF16 and TF32 accumulation inside one WGMMA
  kFp8WgmmaNan,               // NaN and infinity in FP8 WGMMA
  kMmaAccumulation,           // accumulation inside one mma.sync
  kSharedWindowBase,          // the rank of a CTA at bit 24 of its own shared addresses
  kDynamicSharedAlignment,    // where dynamic shared memory starts behind static shared memory
  kConvertingTensorMap,       // loads through maps of the FTZ and TF32 types
  kCount
};

struct GpuFact {
  const char* name;       // short, for notes and tables
  const char* statement;  // what the emulator assumes
  const char* test;       // the test that a GPU has passed, empty if unverified
  const char* result;     // the file of bench/results that records it, empty if unverified

  bool confirmed() const { return *test != 0; }
};

/// All facts, in the order of the enumeration.
std::span<const GpuFact> gpu_facts();

/// Called where a launch relies on the fact: an unverified one becomes a note of the report.
void rely_on(Machine& machine, Fact fact);

}  // namespace pykernels::emulator
