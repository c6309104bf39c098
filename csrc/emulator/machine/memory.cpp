#include "emulator/machine/memory.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "emulator/check/init.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/sync.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

/// A place that an access may touch: `base` + offset for offsets up to `bytes` - width.
struct Window {
  uint8_t* base = nullptr;
  uint64_t bytes = 0;
};

/// Where all active addresses minus `origin` lie in [0, window.bytes - width] and are naturally
/// aligned, fills the pointers. One pass without branches: the sign bit of the sum tells of an
/// address outside.
bool map_lanes(const uint64_t* addresses, uint64_t origin, const Window& window, uint32_t width,
               LaneMask active, uint8_t** pointers) {
  if (window.bytes < width) return false;
  const uint64_t last = window.bytes - width;
  uint64_t outside = 0;
  uint64_t misaligned = 0;
  if (active == kFullMask) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const uint64_t offset = addresses[lane] - origin;
      outside |= offset | (last - offset);
      misaligned |= addresses[lane];
      pointers[lane] = window.base + offset;
    }
  } else {
    for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      const uint64_t offset = addresses[lane] - origin;
      outside |= offset | (last - offset);
      misaligned |= addresses[lane];
      pointers[lane] = window.base + offset;
    }
  }
  return (outside >> 63) == 0 && (misaligned & (width - 1)) == 0;
}

/// Init check of shared memory for all lanes: marks writes, and is false if a lane reads what no
/// one wrote.
bool check_shared_lanes(Cta& cta, uint8_t* const* pointers, uint32_t width, AccessKind kind,
                        LaneMask active) {
  if (cta.shared_initialised.empty()) return true;
  uint8_t* const flags = cta.shared_initialised.data();
  const uint8_t* const base = cta.shared.data();
  if (kind != AccessKind::kWrite) {
    for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
      const auto offset = static_cast<uint32_t>(pointers[__builtin_ctz(rest)] - base);
      if (!shared_is_written(cta, offset, width)) return false;
    }
  }
  if (kind != AccessKind::kRead) {
    for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
      std::memset(flags + (pointers[__builtin_ctz(rest)] - base), 1, width);
    }
  }
  return true;
}

/// Addresses of the CTA's own shared window: the rank bits are its own or none.
bool map_shared(Warp& warp, const uint64_t* addresses, uint64_t window, uint32_t width,
                AccessKind kind, LaneMask active, uint8_t** pointers) {
  Cta& cta = warp.cta();
  const Window shared{cta.shared.data(), cta.shared.size()};
  const uint64_t own = window + kSharedBase + (uint64_t{cta.rank} << kClusterRankShift);
  if (!map_lanes(addresses, own, shared, width, active, pointers)) {
    // Without rank bits: the own CTA in the .shared space, but the CTA of rank 0 as a generic
    // address.
    if (cta.rank == 0 || window != 0) return false;
    if (!map_lanes(addresses, kSharedBase, shared, width, active, pointers)) return false;
  }
  return check_shared_lanes(cta, pointers, width, kind, active);
}

bool map_global(Warp& warp, const uint64_t* addresses, uint32_t width, AccessKind kind,
                LaneMask active, uint8_t** pointers) {
  if (learn_grid_waits(warp) != 0) return false;  // lane by lane: it may be a finding
  const uint64_t first = addresses[__builtin_ctz(active)];
  const Allocation* allocation = warp.machine().allocations().find(first, width);
  if (allocation == nullptr || (kind != AccessKind::kRead && !allocation->writable)) return false;
  const Window window{reinterpret_cast<uint8_t*>(allocation->address), allocation->bytes};
  return map_lanes(addresses, allocation->address, window, width, active, pointers);
}

bool map_local(Warp& warp, const uint64_t* addresses, uint64_t origin, uint32_t width,
               LaneMask active, uint8_t** pointers) {
  const uint32_t bytes = warp.program().local_bytes;
  if (bytes == 0 || !map_lanes(addresses, origin, {nullptr, bytes}, width, active, pointers))
    return false;
  for_lanes(active,
            [&](int lane) { pointers[lane] = warp.local(lane) + (addresses[lane] - origin); });
  return true;
}

bool map_parameters(Warp& warp, const uint64_t* addresses, uint64_t origin, uint32_t width,
                    AccessKind kind, LaneMask active, uint8_t** pointers) {
  if (kind != AccessKind::kRead) return false;
  std::vector<uint8_t>& parameters = warp.cta().grid->launch.parameters;
  return map_lanes(addresses, origin, {parameters.data(), parameters.size()}, width, active,
                   pointers);
}

/// Where [offset, offset + bytes) of shared memory lies and, to be read, was written; marks writes.
uint8_t* map_shared_range(Cta& cta, uint64_t offset, uint32_t bytes, AccessKind kind) {
  const uint64_t size = cta.shared.size();
  if (offset > size || size - offset < bytes) return nullptr;
  if (!cta.shared_initialised.empty()) {
    if (kind != AccessKind::kWrite &&
        !shared_is_written(cta, static_cast<uint32_t>(offset), bytes)) {
      return nullptr;
    }
    if (kind != AccessKind::kRead) std::memset(cta.shared_initialised.data() + offset, 1, bytes);
  }
  return cta.shared.data() + offset;
}

uint8_t* resolve_shared_lane(Warp& warp, bool generic, uint64_t address, uint32_t bytes,
                             AccessKind kind, int lane) {
  const Instruction& inst = warp.instruction();
  Machine& machine = warp.machine();
  Cta* cta = &warp.cta();
  const uint64_t rank = address >> kClusterRankShift;
  uint32_t offset = shared_offset(address);
  if (generic) {
    cta = &machine.cluster_cta(warp, inst, lane, static_cast<uint32_t>(address), &offset);
  } else if (rank != 0 && rank != cta->rank) {
    machine.fail("memory", foreign_rank_message(address, cta->rank), warp, inst, lane);
  }
  const uint64_t size = cta->shared.size();
  if (offset > size || size - offset < bytes) {
    machine.fail("memory", shared_bounds_message(*cta, address, bytes, kind), warp, inst, lane);
  }
  if (kind != AccessKind::kWrite && !shared_is_written(*cta, offset, bytes)) {
    report_unwritten_shared(machine, *cta, offset, bytes, warp, inst, lane);
  }
  if (!cta->shared_initialised.empty())
    std::memset(cta->shared_initialised.data() + offset, 1, bytes);
  return cta->shared.data() + offset;
}

uint8_t* resolve_global_lane(Warp& warp, Space space, uint64_t address, uint32_t bytes,
                             AccessKind kind, int lane) {
  const Instruction& inst = warp.instruction();
  Machine& machine = warp.machine();
  const Allocation* allocation = machine.allocations().find(address, bytes);
  if (allocation == nullptr || (kind != AccessKind::kRead && !allocation->writable)) {
    machine.fail("memory",
                 global_bounds_message(machine.allocations(), allocation, address, bytes, kind),
                 warp, inst, lane);
  }
  if (warp.before_grid_wait() != 0 && space != Space::kConst)
    check_before_grid_wait(warp, inst, lane, {address, bytes, allocation->name, true}, kind);
  return reinterpret_cast<uint8_t*>(address);
}

}  // namespace

void Allocations::add(Allocation allocation) {
  recent_ = {};
  if (allocation.bytes == 0) return;
  const auto begins_after = [](const Allocation& known, uint64_t end) {
    return known.address < end;
  };
  // All that overlap it become one with it; neighbours stay apart.
  auto end = std::lower_bound(sorted_.begin(), sorted_.end(), allocation.address + allocation.bytes,
                              begins_after);
  auto begin = end;
  while (begin != sorted_.begin()) {
    const Allocation& before = *(begin - 1);
    if (before.address + before.bytes <= allocation.address) break;
    const uint64_t last =
        std::max(before.address + before.bytes, allocation.address + allocation.bytes);
    allocation.address = std::min(allocation.address, before.address);
    allocation.bytes = last - allocation.address;
    allocation.writable |= before.writable;
    if (before.name != allocation.name) allocation.name = before.name + ", " + allocation.name;
    --begin;
  }
  sorted_.insert(sorted_.erase(begin, end), std::move(allocation));
}

const Allocation* Allocations::search(uint64_t address, uint64_t bytes) const {
  const auto next = std::upper_bound(
      sorted_.begin(), sorted_.end(), address,
      [](uint64_t value, const Allocation& known) { return value < known.address; });
  if (next == sorted_.begin() || !(next - 1)->holds(address, bytes)) return nullptr;
  recent_ = {&*(next - 1), recent_[0]};
  return recent_[0];
}

std::string Allocations::describe(uint64_t address, uint64_t bytes) const {
  const auto next = std::upper_bound(
      sorted_.begin(), sorted_.end(), address,
      [](uint64_t value, const Allocation& known) { return value < known.address; });
  const Allocation* below = next == sorted_.begin() ? nullptr : &*(next - 1);
  const Allocation* above = next == sorted_.end() ? nullptr : &*next;
  const auto text = [](const Allocation& allocation) {
    return concat("'", allocation.name, "' (", hexadecimal(allocation.address), ", ",
                  allocation.bytes, " bytes)");
  };
  if (address == 0) return "a null pointer";  // however near the heap begins
  const uint64_t from_below = below == nullptr ? ~0ull : address - below->address;
  const uint64_t to_above = above == nullptr ? ~0ull : above->address - address;
  if (below != nullptr && from_below < below->bytes) {
    return concat(from_below + bytes - below->bytes, " bytes beyond the end of ", text(*below));
  }
  constexpr uint64_t kNear = 1ull << 32;  // farther away the neighbour tells nothing
  const uint64_t beyond = below == nullptr ? ~0ull : from_below - below->bytes;
  if (below != nullptr && beyond < kNear && beyond <= to_above) {
    return concat("begins ", beyond, " bytes after the end of ", text(*below));
  }
  if (above != nullptr && to_above < kNear)
    return concat("begins ", to_above, " bytes before ", text(*above));
  return "far from every allocation";
}

uint8_t* resolve(Warp& warp, Space space, uint64_t address, uint32_t bytes, AccessKind kind,
                 int lane) {
  const Instruction& inst = warp.instruction();
  Machine& machine = warp.machine();
  const bool generic = space == Space::kGeneric;
  if (generic) {
    space = space_of(address);
    address -= window_of(space);
  }
  if ((address & (bytes - 1)) != 0) {
    machine.report("memory", alignment_message(space, address, bytes, kind), warp, inst, lane);
  }
  switch (space) {
    case Space::kShared:
      return resolve_shared_lane(warp, generic, address, bytes, kind, lane);
    case Space::kLocal: {
      const uint64_t size = warp.program().local_bytes;
      if (address > size || size - address < bytes) {
        machine.fail("memory", window_bounds_message("local", address, bytes, size, kind), warp,
                     inst, lane);
      }
      return warp.local(lane) + address;
    }
    case Space::kParam: {
      std::vector<uint8_t>& parameters = warp.cta().grid->launch.parameters;
      const uint64_t size = parameters.size();
      if (address > size || size - address < bytes || kind != AccessKind::kRead) {
        machine.fail("memory", window_bounds_message("parameter", address, bytes, size, kind), warp,
                     inst, lane);
      }
      return parameters.data() + address;
    }
    default:
      return resolve_global_lane(warp, space, address, bytes, kind, lane);
  }
}

bool resolve_all(Warp& warp, Space space, const uint64_t* addresses, uint32_t bytes,
                 AccessKind kind, LaneMask active, uint8_t** pointers) {
  uint64_t window = 0;
  if (space == Space::kGeneric) {
    space = space_of(addresses[__builtin_ctz(active)]);
    window = window_of(space);
  }
  switch (space) {
    case Space::kShared:
      return map_shared(warp, addresses, window, bytes, kind, active, pointers);
    case Space::kLocal:
      return map_local(warp, addresses, window, bytes, active, pointers);
    case Space::kParam:
      return map_parameters(warp, addresses, window, bytes, kind, active, pointers);
    default:
      return map_global(warp, addresses, bytes, kind, active, pointers);
  }
}

uint8_t* resolve_row(Warp& warp, Space space, uint64_t address, uint32_t bytes, AccessKind kind) {
  if ((address & (bytes - 1)) != 0) return nullptr;
  const bool generic = space == Space::kGeneric;
  if (generic) space = space_of(address);
  const uint32_t all = bytes * kWarpSize;
  if (space == Space::kShared) {
    Cta& cta = warp.cta();
    const uint64_t offset = address - (generic ? kSharedWindow : 0) - kSharedBase;
    const uint64_t rank = uint64_t{cta.rank} << kClusterRankShift;
    // Without rank bits: as in map_shared.
    const bool own = offset >= rank || generic;
    return map_shared_range(cta, own ? offset - rank : offset, all, kind);
  }
  if (space != Space::kGlobal || learn_grid_waits(warp) != 0) return nullptr;
  const Allocation* allocation = warp.machine().allocations().find(address, all);
  const bool allowed = allocation != nullptr && (kind == AccessKind::kRead || allocation->writable);
  return allowed ? reinterpret_cast<uint8_t*>(address) : nullptr;
}

uint8_t* resolve_shared(Machine& machine, Cta& cta, uint32_t offset, uint32_t bytes,
                        AccessKind kind, const Instruction* instruction, Warp* issuer) {
  const uint64_t size = cta.shared.size();
  if (offset > size || size - offset < bytes) {
    const std::string message =
        shared_bounds_message(cta, uint64_t{offset} + kSharedBase, bytes, kind);
    if (issuer == nullptr || instruction == nullptr) machine.fail("memory", message);
    machine.fail("memory", message, *issuer, *instruction);
  }
  if (kind != AccessKind::kWrite && !shared_is_written(cta, offset, bytes) && issuer != nullptr &&
      instruction != nullptr) {
    report_unwritten_shared(machine, cta, offset, bytes, *issuer, *instruction, -1);
  }
  if (!cta.shared_initialised.empty() && kind != AccessKind::kRead) {
    std::memset(cta.shared_initialised.data() + offset, 1, bytes);
  }
  if (RaceDetector* races = machine.races()) races->async_shared(cta, offset, bytes, kind);
  return cta.shared.data() + offset;
}

uint8_t* resolve_global(Machine& machine, uint64_t address, uint64_t bytes, AccessKind kind,
                        const Instruction* instruction, Warp* issuer) {
  const Allocation* allocation = machine.allocations().find(address, bytes);
  if (allocation == nullptr || (kind != AccessKind::kRead && !allocation->writable)) {
    const std::string message =
        global_bounds_message(machine.allocations(), allocation, address, bytes, kind);
    if (issuer == nullptr || instruction == nullptr) machine.fail("memory", message);
    machine.fail("memory", message, *issuer, *instruction);
  }
  if (RaceDetector* races = machine.races()) races->async_global(address, bytes, kind);
  return reinterpret_cast<uint8_t*>(address);
}

}  // namespace pykernels::emulator
