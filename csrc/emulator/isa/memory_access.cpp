#include "emulator/isa/memory_access.h"

#include <algorithm>
#include <utility>

#include "emulator/check/race/detector.h"
#include "emulator/check/sync.h"
#include "emulator/isa/lanewise.h"
#include "emulator/isa/whole_warp_access.h"
#include "emulator/machine/cta.h"

namespace pykernels::emulator {
namespace {

/// True where the lanes of each phase fill all the banks, so that none is asked twice. Of 4, 8 and
/// 16 bytes a lane.
bool all_banks_differ(const uint64_t* addresses, uint32_t bytes) {
  if (bytes < 4) return false;
  const uint32_t lanes_per_phase = 128 / bytes;
  const int shift = __builtin_ctz(bytes);
  uint64_t unaligned = 0;
  uint32_t least = kFullMask;
  for (uint32_t first = 0; first < kWarpSize; first += lanes_per_phase) {
    uint32_t used = 0;
    for (uint32_t lane = first; lane < first + lanes_per_phase; ++lane) {
      used |= 1u << (addresses[lane] >> shift & (lanes_per_phase - 1));
      unaligned |= addresses[lane];
    }
    least &= used | ~(kFullMask >> (kWarpSize - lanes_per_phase));
  }
  return least == kFullMask && (unaligned & (bytes - 1)) == 0;
}

/// Conflicts of one phase: the most distinct words in one bank, less one.
uint32_t phase_conflicts(const uint32_t* words, int count) {
  uint32_t used = 0;
  uint32_t first[32];  // word that a lane asked the bank for
  bool collision = false;
  for (int i = 0; i < count; ++i) {
    const uint32_t bank = words[i] & 31;
    const bool again = (used >> bank & 1) != 0;
    collision |= again && first[bank] != words[i];
    if (!again) first[bank] = words[i];
    used |= 1u << bank;
  }
  if (!collision) return 0;
  uint32_t sorted[kWarpSize];
  std::copy(words, words + count, sorted);
  std::sort(sorted, sorted + count);
  const uint32_t* end = std::unique(sorted, sorted + count);
  uint32_t load[32] = {};
  uint32_t most = 1;
  for (const uint32_t* word = sorted; word != end; ++word)
    most = std::max(most, ++load[*word & 31]);
  return most - 1;
}

/// Of the active lanes, those whose generic addresses lie in `wanted`.
LaneMask lanes_in(Space wanted, const uint64_t* addresses, LaneMask active) {
  LaneMask lanes = 0;
  for_lanes(active, [&](int lane) {
    lanes |= space_of(addresses[lane]) == wanted ? kLaneBits.of[lane] : 0;
  });
  return lanes;
}

void count_shared(Machine& machine, const WarpAccess& access, LaneMask lanes) {
  Counters& counters = machine.counters();
  const uint64_t total = static_cast<uint64_t>(__builtin_popcount(lanes)) * access.bytes;
  if (access.kind != AccessKind::kWrite) counters.shared_bytes_read += total;
  if (access.kind != AccessKind::kRead) counters.shared_bytes_written += total;
  if (access.row) return;  // neighbours never meet in a bank
  counters.shared_bank_conflicts += bank_conflicts(access.addresses, access.bytes, lanes);
}

/// Lanes that access neighbouring bytes count together: the footprint has to be told of fewer
/// ranges.
void count_global(Machine& machine, const WarpAccess& access, LaneMask lanes) {
  if (access.row) {
    machine.count_global(access.addresses[0], uint64_t{access.bytes} * kWarpSize, access.kind);
    return;
  }
  uint64_t begin = 0;
  uint64_t end = 0;  // no lane begins there
  for (LaneMask rest = lanes; rest != 0; rest &= rest - 1) {
    const uint64_t address = access.addresses[__builtin_ctz(rest)];
    if (address != end || begin == end) {
      if (begin != end) machine.count_global(begin, end - begin, access.kind);
      begin = address;
    }
    end = address + access.bytes;
  }
  if (begin != end) machine.count_global(begin, end - begin, access.kind);
}

/// The lowest and the highest offset in shared memory of what the lanes access.
std::pair<uint32_t, uint32_t> shared_extent(const WarpAccess& access, LaneMask lanes) {
  uint32_t first = shared_offset(access.addresses[__builtin_ctz(lanes)]);
  if (access.row) return {first, first + access.bytes * kWarpSize};
  uint32_t last = first;
  for_lanes(lanes, [&](int lane) {
    const uint32_t offset = shared_offset(access.addresses[lane]);
    first = std::min(first, offset);
    last = std::max(last, offset);
  });
  return {first, last + access.bytes};
}

/// The sync check of lanes that write to shared memory.
void check_mbarriers(Warp& warp, const Instruction& inst, const WarpAccess& access,
                     LaneMask lanes) {
  const bool generic = access_space(inst) == Space::kGeneric;
  if (!generic || warp.cta().cluster->ctas.size() == 1) {
    const Cta& cta = warp.cta();
    if (cta.mbarriers.empty()) return;
    const auto [begin, end] = shared_extent(access, lanes);
    if (!cta.mbarrier_within(begin, end - begin)) return;
  }
  for (LaneMask rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const uint64_t address = access.row
                                 ? access.addresses[0] + static_cast<uint64_t>(lane) * access.bytes
                                 : access.addresses[lane];
    const uint32_t rank = static_cast<uint32_t>(address) >> kClusterRankShift;
    Cta& cta = generic ? *warp.cta().cluster->ctas[rank] : warp.cta();
    check_overwritten_mbarrier(cta, shared_offset(address), access.bytes, warp, inst, lane);
  }
}

/// The race detector's part of an access.
void check_races(RaceDetector& races, Warp& warp, const Instruction& inst,
                 const WarpAccess& access) {
  ThreadAccess seen;
  seen.space = access.space;
  seen.generic = access_space(inst) == Space::kGeneric;
  seen.row = access.row;
  seen.kind = access.kind;
  seen.order = memory_order(inst, access.kind);
  seen.bytes = access.bytes;
  seen.scalar_shift = inst.variant >> kScalarShift & 7;
  seen.reduction = access.reduction;
  seen.failed = access.failed;
  seen.active = access.active;
  seen.addresses = access.addresses;
  races.access(warp, inst, seen);
}

}  // namespace

void account(Warp& warp, const Instruction& inst, const WarpAccess& access) {
  Machine& machine = warp.machine();
  if (RaceDetector* races = machine.races()) check_races(*races, warp, inst, access);
  const bool mixed = access.space == Space::kGeneric;
  const LaneMask global = mixed ? lanes_in(Space::kGlobal, access.addresses, access.active)
                          : access.space == Space::kGlobal ? access.active
                                                           : 0;
  if (global != 0) count_global(machine, access, global);
  const LaneMask shared = mixed ? lanes_in(Space::kShared, access.addresses, access.active)
                          : access.space == Space::kShared ? access.active
                                                           : 0;
  if (shared == 0) return;
  count_shared(machine, access, shared);
  if (access.kind != AccessKind::kRead && machine.options().check_sync) {
    check_mbarriers(warp, inst, access, shared);
  }
}

uint64_t AddressOperand::at(Warp& warp, int lane) const {
  if (base == kNoSlot) {
    const uint64_t rank = cluster ? uint64_t{warp.cta().rank} << kClusterRankShift : 0;
    return static_cast<uint64_t>(offset) | rank;
  }
  if (base_is_64) return warp.lanes<uint64_t>(base)[lane] + static_cast<uint64_t>(offset);
  return static_cast<uint32_t>(warp.lanes<uint32_t>(base)[lane] + static_cast<uint32_t>(offset));
}

void lane_addresses(Warp& warp, const Instruction& inst, Slot slot, uint64_t* addresses) {
  const uint64_t window = (inst.variant & kClusterAddress) != 0 ? kSharedWindow : 0;
  const auto offset = static_cast<uint64_t>(inst.immediate);
  if (slot == kNoSlot) {
    // A symbol's address is folded without the rank that the same address has in a register.
    const uint64_t rank = window == 0 ? 0 : uint64_t{warp.cta().rank} << kClusterRankShift;
    std::fill(addresses, addresses + kWarpSize, (window | rank) + offset);
  } else if ((inst.variant & kBase64) != 0) {
    const uint64_t* base = warp.lanes<uint64_t>(slot);
    for (int lane = 0; lane < kWarpSize; ++lane) addresses[lane] = (base[lane] + offset) | window;
  } else {
    const uint32_t* base = warp.lanes<uint32_t>(slot);
    const auto offset32 = static_cast<uint32_t>(offset);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      addresses[lane] = static_cast<uint32_t>(base[lane] + offset32) | window;
    }
  }
}

Space resolve_lanes(Warp& warp, const Instruction& inst, const uint64_t* addresses, uint32_t bytes,
                    AccessKind kind, LaneMask active, uint8_t** pointers) {
  Space space = access_space(inst);
  if (resolve_all(warp, space, addresses, bytes, kind, active, pointers)) {
    // They all lie where the first one does.
    if (space == Space::kGeneric) space = space_of(addresses[__builtin_ctz(active)]);
  } else {
    for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      pointers[lane] = resolve(warp, space, addresses[lane], bytes, kind, lane);
    }
  }
  return space;
}

void access(Warp& warp, const Instruction& inst, const uint64_t* addresses, uint32_t bytes,
            AccessKind kind, LaneMask active, uint8_t** pointers) {
  const Space space = resolve_lanes(warp, inst, addresses, bytes, kind, active, pointers);
  account(warp, inst, {space, kind, false, bytes, active, addresses});
}

uint8_t* access_row(Warp& warp, const Instruction& inst, uint64_t first, uint32_t bytes,
                    AccessKind kind) {
  Space space = access_space(inst);
  uint8_t* const row = resolve_row(warp, space, first, bytes, kind);
  if (row == nullptr) return nullptr;
  if (space == Space::kGeneric) space = space_of(first);
  account(warp, inst, {space, kind, true, bytes, kFullMask, &first});
  return row;
}

const uint8_t* read_same(Warp& warp, const Instruction& inst, uint64_t address, uint32_t bytes) {
  Machine& machine = warp.machine();
  if (machine.races() != nullptr) return nullptr;  // they follow each lane's access
  Space space = access_space(inst);
  if (space == Space::kGeneric) space = space_of(address);
  if (space != Space::kShared) return nullptr;
  uint8_t* pointer = nullptr;
  constexpr LaneMask kFirstLane = 1;
  if (!resolve_all(warp, access_space(inst), &address, bytes, AccessKind::kRead, kFirstLane,
                   &pointer)) {
    return nullptr;
  }
  machine.counters().shared_bytes_read += uint64_t{bytes} * kWarpSize;
  return pointer;
}

uint32_t bank_conflicts(const uint64_t* addresses, uint32_t bytes, LaneMask active) {
  if (active == kFullMask && all_banks_differ(addresses, bytes)) return 0;
  const int lanes_per_phase = bytes <= 4 ? 32 : static_cast<int>(128 / bytes);
  const uint32_t words_per_lane = std::max(1u, bytes / 4);
  uint32_t extra = 0;
  for (int first = 0; first < kWarpSize; first += lanes_per_phase) {
    uint32_t words[kWarpSize];
    int count = 0;
    for (int lane = first; lane < first + lanes_per_phase; ++lane) {
      if ((active >> lane & 1) == 0) continue;
      const auto word = static_cast<uint32_t>(addresses[lane] >> 2);
      for (uint32_t i = 0; i < words_per_lane; ++i) words[count++] = word + i;
    }
    extra += phase_conflicts(words, count);
  }
  return extra;
}

}  // namespace pykernels::emulator
