#include "emulator/gpu_facts.h"

#include <string>

#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr GpuFact kFacts[] = {
    {"box_below_swizzle_alignment",
     "A TMA box whose shared address is not a multiple of the swizzle's repeat (256, 512 or 1024 "
     "bytes) is "
     "swizzled by the bits of its shared addresses, not by its own rows.",
     "", ""},
    {"box_narrower_than_swizzle",
     "A TMA box whose inner size is below the swizzle's span is stored densely: the pitch of its "
     "rows is "
     "the inner size.",
     "", ""},
    {"nan_fill_pattern", "TMA's NaN fill writes the NaN with sign 0 and all other bits set.", "",
     ""},
    {"multicast_order",
     "A multicast load reaches all its CTAs at one moment, their barriers in the order of the "
     "ranks.",
     "", ""},
    {"reduce_rounding",
     "Bulk reductions round each element to nearest even once, and keep subnormal values.", "", ""},
    {"descriptor_base_offset",
     "A non-zero base offset of a WGMMA descriptor shifts the row of the swizzle pattern.", "", ""},
    {"descriptor_inside_pattern",
     "A WGMMA descriptor that starts inside a repeat of its swizzle (256, 512 or 1024 bytes), with "
     "base offset 0, is swizzled by the bits of its shared addresses.",
     "", ""},
    {"descriptor_ignored_fields",
     "WGMMA ignores the descriptor bits that the PTX ISA does not name.", "", ""},
    {"half_precision_wgmma",
     "FP16, BF16 and TF32 WGMMA add the exact products of one instruction to the accumulator with "
     "one truncation, as the FP8 model does with more fraction bits; FP16 accumulators are rounded "
     "to nearest once an instruction.",
     "", ""},
    {"fp8_wgmma_nan", "FP8 WGMMA turns every NaN result into 0x7fffffff.", "", ""},
    {"mma_accumulation",
     "mma.sync adds the exact products of one instruction to the accumulator and rounds once, "
     "toward zero "
     "in FP32.",
     "", ""},
    {"shared_window_base",
     "A CTA's own shared addresses carry its rank in the cluster at bit 24, and start at 1024.", "",
     ""},
    {"dynamic_shared_alignment",
     "Dynamic shared memory starts at a multiple of 1024 bytes, also behind static shared memory.",
     "", ""},
    {"converting_tensor_map",
     "TMA loads through maps of FLOAT32_FTZ, TFLOAT32 and TFLOAT32_FTZ change no bits.", "", ""},
};
static_assert(std::size(kFacts) == static_cast<size_t>(Fact::kCount));

}  // namespace

std::span<const GpuFact> gpu_facts() { return kFacts; }

void rely_on(Machine& machine, Fact fact) {
  const GpuFact& row = kFacts[static_cast<size_t>(fact)];
  if (row.confirmed()) return;
  machine.note(std::string("relies on the unverified ") + row.name + ": " + row.statement);
}

}  // namespace pykernels::emulator
