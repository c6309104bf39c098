// Sync check: what findings and deadlocks say of mbarriers.
#pragma once

#include <string>

#include "emulator/machine/cta.h"

namespace pykernels::emulator {

/// `offset`: where the mbarrier lies in the shared memory of its CTA.
void report_mbarrier_misuse(Warp& warp, const Instruction& inst, int lane, uint32_t offset,
                            const Mbarrier& barrier, const char* misuse);

/// Nothing may need an mbarrier that is invalidated.
void check_invalidated(Warp& warp, const Instruction& inst, int lane, const Cta& owner,
                       uint32_t offset, const Mbarrier& barrier);

/// What is known of a thread that waits by parity for a phase that may be over: an mbarrier tells
/// only two phases apart. Empty where there is no sign of it.
std::string describe_lapped(const Warp& warp, const Wait& wait, const Mbarrier& barrier);

}  // namespace pykernels::emulator
