#include "emulator/machine/cta.h"

#include <cstring>

#include "emulator/check/race/agents.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

uint32_t count_lanes(LaneMask lanes) { return static_cast<uint32_t>(__builtin_popcount(lanes)); }

/// Completes the barrier's generation if all that it waits for have arrived.
void complete_if_due(const Cta& cta, NamedBarrier& barrier) {
  if (barrier.arrived == 0) return;
  const uint32_t needed = barrier.expected != 0 ? barrier.expected : cta.live_threads;
  if (barrier.arrived < needed) return;
  barrier.last_participants = barrier.participants;
  barrier.last_votes = barrier.votes;
  barrier.arrived = barrier.expected = barrier.warps = barrier.participants = barrier.votes = 0;
  barrier.lanes.fill(0);
  ++barrier.generation;
  if (barrier.clock != nullptr) barrier.clock->complete(false);
  cta.machine->progress();
  barrier.wake_all();
}

}  // namespace

Mbarrier* Cta::find_mbarrier(uint32_t offset) {
  const auto found = mbarriers.find(offset);
  return found == mbarriers.end() ? nullptr : found->second.get();
}

std::optional<uint32_t> Cta::mbarrier_within(uint32_t offset, uint32_t bytes) const {
  constexpr uint32_t kLast = Mbarrier::kBytes - 1;
  const auto first = mbarriers.lower_bound(offset < kLast ? 0 : offset - kLast);
  if (first == mbarriers.end() || first->first >= uint64_t{offset} + bytes) return std::nullopt;
  return first->first;
}

bool Cta::change_registers(int warp, uint32_t registers) {
  uint32_t& held = warp_registers[static_cast<size_t>(warp)];
  if (registers > held) {
    const uint32_t more = (registers - held) * kWarpSize;
    if (more > register_pool) return false;
    register_pool -= more;
    held = registers;
    return true;
  }
  register_pool += (held - registers) * kWarpSize;
  held = registers;
  register_release.wake_all();
  return true;
}

void Cta::poison(uint32_t offset, uint32_t bytes) {
  std::memset(shared.data() + offset, 0xff, bytes);
  if (!shared_initialised.empty()) std::memset(shared_initialised.data() + offset, 0, bytes);
}

void Cta::arrive(NamedBarrier& barrier, const Warp& warp, LaneMask lanes, LaneMask votes) {
  LaneMask& counted = barrier.lanes[static_cast<size_t>(warp.index())];
  barrier.arrived += count_lanes(lanes);
  counted |= lanes;
  if (barrier.expected != 0) {
    barrier.arrived += count_lanes(~warp.live() & ~counted);
    counted |= ~warp.live();
  }
  barrier.warps |= 1u << warp.index();
  barrier.participants += count_lanes(lanes);
  barrier.votes += count_lanes(lanes & votes);
  complete_if_due(*this, barrier);
}

void Cta::on_exit(const Warp& warp, LaneMask lanes) {
  const uint32_t count = count_lanes(lanes);
  live_threads -= count;
  machine->progress();
  if (warp.live() == 0) --live_warps;
  for (NamedBarrier& barrier : barriers) {
    LaneMask& counted = barrier.lanes[static_cast<size_t>(warp.index())];
    if (barrier.expected != 0 && (barrier.warps >> warp.index() & 1) != 0) {
      barrier.arrived += count_lanes(lanes & ~counted);
      counted |= lanes;
    }
    complete_if_due(*this, barrier);
  }
  // A lane that has arrived in the current generation leaves with its arrival.
  const LaneMask current =
      (cluster->generation & 1) != 0 ? warp.cluster_parity : ~warp.cluster_parity;
  cluster->arrived -= count_lanes(lanes & warp.cluster_arrived & current);
  cluster->live_threads -= count;
  cluster->complete_if_due();
}

void Cluster::complete_if_due() {
  if (arrived == 0 || arrived < live_threads) return;
  arrived = 0;
  ++generation;
  if (clock != nullptr) clock->complete(true);
  wake_all();
}

}  // namespace pykernels::emulator
