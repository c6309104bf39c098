#include "emulator/isa/mbarrier_address.h"

#include "core/check.h"
#include "emulator/check/memory.h"

namespace pykernels::emulator {

MbarrierAddresses::MbarrierAddresses(Warp& warp, const Instruction& inst)
    : warp_(warp), inst_(inst) {
  lane_addresses(warp, inst, inst.operands[kMbarrierAddressSlot], lanes_);
}

MbarrierLocation MbarrierAddresses::location(int lane) const {
  Machine& machine = warp_.machine();
  const uint64_t address = lanes_[lane];
  MbarrierLocation location{&warp_.cta(), 0};
  const bool generic = access_space(inst_) == Space::kGeneric;
  if (generic && address >> kWindowShift != kSharedWindow >> kWindowShift) {
    machine.fail("memory",
                 concat("generic address ", hexadecimal(address), " is not in shared memory"),
                 warp_, inst_, lane);
  }
  const auto shared = static_cast<uint32_t>(address);
  const uint32_t rank = shared >> kClusterRankShift;
  if (generic) {
    location.cta = &machine.cluster_cta(warp_, inst_, lane, shared, &location.offset);
  } else if (rank != 0 && rank != location.cta->rank) {
    machine.fail("memory", foreign_rank_message(shared, location.cta->rank), warp_, inst_, lane);
  } else {
    location.offset = shared_offset(shared);
  }
  if (location.offset % Mbarrier::kBytes != 0) {
    machine.fail("memory",
                 alignment_message(Space::kShared, shared, Mbarrier::kBytes, AccessKind::kAtomic),
                 warp_, inst_, lane);
  }
  const uint64_t size = location.cta->shared.size();
  if (location.offset > size || size - location.offset < Mbarrier::kBytes) {
    machine.fail(
        "memory",
        shared_bounds_message(*location.cta, shared, Mbarrier::kBytes, AccessKind::kAtomic), warp_,
        inst_, lane);
  }
  return location;
}

void MbarrierAddresses::report_missing(int lane, const MbarrierLocation& location) const {
  const auto invalidated = location.cta->invalidated.find(location.offset);
  const bool was_there = invalidated != location.cta->invalidated.end();
  const std::string message = concat(
      was_there ? "the mbarrier was invalidated at " : "no mbarrier has been initialised at ",
      shared_place(warp_.program(), location.offset), " of the CTA of rank ", location.cta->rank);
  if (was_there) {
    warp_.machine().report("sync", message, Party{&warp_, &inst_, lane}, invalidated->second);
  } else {
    warp_.machine().report("sync", message, warp_, inst_, lane);
  }
}

Mbarrier* MbarrierAddresses::find(int lane, MbarrierLocation* location) const {
  *location = this->location(lane);
  Mbarrier* barrier = location->cta->find_mbarrier(location->offset);
  if (barrier == nullptr) report_missing(lane, *location);
  return barrier;
}

bool MbarrierAddresses::uniform(LaneMask active) const {
  const uint64_t first = lanes_[__builtin_ctz(active)];
  bool same = true;
  for_lanes(active, [&](int lane) { same &= lanes_[lane] == first; });
  return same;
}

}  // namespace pykernels::emulator
