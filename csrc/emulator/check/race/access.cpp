// Accesses, from warps down to cells: as few cells as the addresses allow.
#include <algorithm>

#include "core/check.h"
#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

uint32_t index_of(const Warp& warp, const Instruction& inst) {
  return static_cast<uint32_t>(&inst - warp.program().instructions.data());
}

/// The stripe in which the lanes of a row lie in a line, for Epoch::what; 0 where there is none.
uint32_t stripe_of(uint32_t bytes) {
  const uint32_t stripe = bytes == 4 ? 1 : bytes == 8 ? 2 : bytes == 16 ? 3 : 0;
  return stripe << kWhatStripeShift;
}

/// A store that runs again must not pass for one instruction with the time before, whose lanes may
/// store to one place: it gets a clock of its own.
void note_store(WarpRaces& races, uint32_t instruction, LaneMask lanes) {
  if (instruction > races.last_store) {
    races.last_store = instruction;
  } else if ((races.storing & lanes) != 0) {
    ++races.now;
    races.last_store = instruction;
    races.storing = 0;
  }
  races.storing |= lanes;
}

bool all_same(const ThreadAccess& access) {
  if (access.row) return false;
  const uint64_t first = access.addresses[__builtin_ctz(access.active)];
  bool same = true;
  for_lanes(access.active, [&](int lane) { same &= access.addresses[lane] == first; });
  return same;
}

}  // namespace

Epoch RaceDetector::thread_epoch(const Warp& warp, const Instruction& inst, LaneMask lanes,
                                 const ThreadAccess& access) const {
  const WarpRaces& races = *warp.races;
  Epoch epoch{races.place.cluster, races.first, races.now, 0, lanes};
  epoch.what = index_of(warp, inst);
  if (access.order.is_strong()) {
    epoch.what |= kWhatStrong | static_cast<uint32_t>(access.order.scope) << kWhatScopeShift |
                  access.scalar_shift << kWhatSizeShift;
  }
  if (access.order.non_coherent) epoch.what |= kWhatNonCoherent;
  return epoch;
}

/// The CTA in whose shared memory the address lies, and its offset there; nullptr and the address
/// itself for global memory.
Cta* RaceDetector::owner_of(Warp& warp, const ThreadAccess& access, uint64_t* address) const {
  Space space = access.space == Space::kGeneric ? space_of(*address) : access.space;
  if (space != Space::kShared) return nullptr;
  const auto shared = static_cast<uint32_t>(*address);
  *address = shared_offset(shared);
  if (!access.generic) return &warp.cta();
  return warp.cta().cluster->ctas[shared >> kClusterRankShift].get();
}

void RaceDetector::access(Warp& warp, const Instruction& inst, const ThreadAccess& access) {
  const Space space = access.space;
  if (space != Space::kShared && space != Space::kGlobal && space != Space::kGeneric) return;
  if (access.kind == AccessKind::kWrite) {
    note_store(*warp.races, index_of(warp, inst), access.active);
  }
  if (access.row && !access.order.is_strong() && access_lines(warp, inst, access)) return;
  if (access.kind == AccessKind::kRead && all_same(access)) {
    return access_same(warp, inst, access);
  }
  for (LaneMask rest = access.active; rest != 0; rest &= rest - 1) {
    access_lane(warp, inst, access, __builtin_ctz(rest));
  }
}

/// A row of all lanes that fills whole lines: each is one cell, or becomes one. False where the row
/// is none such.
bool RaceDetector::access_lines(Warp& warp, const Instruction& inst, const ThreadAccess& access) {
  WarpRaces& races = *warp.races;
  const uint32_t stripe = stripe_of(access.bytes);
  uint64_t address = access.addresses[0];
  if (access.space == Space::kGeneric || stripe == 0 || !races.uniform) return false;
  Cta* owner = owner_of(warp, access, &address);
  if (address % kLineBytes != 0) return false;
  const uint32_t lanes_per_line = kLineBytes / access.bytes;
  const auto line_lanes = static_cast<LaneMask>((1ull << lanes_per_line) - 1);
  Access checked{thread_epoch(warp, inst, 0, access),
                 {},
                 access.kind != AccessKind::kRead,
                 Layer::kKnown,
                 owner};
  checked.epoch.what |= stripe;
  for (uint32_t lane = 0; lane < kWarpSize; lane += lanes_per_line) {
    checked.epoch.lanes = line_lanes << lane;
    const View view = view_of(races, *races.known[0], checked.epoch.lanes);
    checked.views = {&view, 1};
    if (owner != nullptr && owner != &warp.cta()) touch(*owner, checked.epoch, view);
    access_line(warp, line_of(checked, address), checked, address, access.bytes);
    address += kLineBytes;
  }
  return true;
}

/// A striped access to a line: at once where the line is one cell, else lane by lane.
void RaceDetector::access_line(Warp& warp, Line& line, const Access& access, uint64_t address,
                               uint32_t bytes_per_lane) {
  if (line.cell_shift == 7 && !has_other_stripe(line.whole, access)) {
    return cell(line.whole, access, address);
  }
  const WarpRaces& races = *warp.races;
  uint32_t begin = 0;
  for (LaneMask rest = access.epoch.lanes; rest != 0; rest &= rest - 1) {
    const LaneMask lane = rest & -rest;
    Access part = access;
    part.epoch.what &= ~kWhatStripe;
    part.epoch.lanes = lane;
    const View view = view_of(races, *races.known[0], lane);
    part.views = {&view, 1};
    line_range(line, part, address, begin, begin + bytes_per_lane);
    begin += bytes_per_lane;
  }
  if (access.writes) line.unite(access.epoch);
}

/// All lanes read one place: one reader with several lanes.
void RaceDetector::access_same(Warp& warp, const Instruction& inst, const ThreadAccess& access) {
  WarpRaces& races = *warp.races;
  for_knowledge(races, access.active, [&](const KnowledgeRef& known, LaneMask lanes) {
    uint64_t address = access.addresses[__builtin_ctz(lanes)];
    Access checked{thread_epoch(warp, inst, lanes, access), {}, false, Layer::kKnown, nullptr};
    if (access.space == Space::kGeneric && space_of(address) != Space::kShared &&
        space_of(address) != Space::kGlobal) {
      return;
    }
    checked.owner = owner_of(warp, access, &address);
    // Of several lanes none is the one that knows its own writes.
    const LaneMask own = (lanes & (lanes - 1)) == 0 ? lanes : 0;
    const View view = view_of(races, *known, own);
    checked.views = {&view, 1};
    if (checked.owner != nullptr && checked.owner != &warp.cta()) {
      touch(*checked.owner, checked.epoch, view);
    }
    range(checked, address, access.bytes);
    if (!access.order.is_strong()) return;
    for_lanes(lanes, [&](int lane) { synchronise(warp, lane, checked.owner, address, access); });
  });
}

void RaceDetector::access_lane(Warp& warp, const Instruction& inst, const ThreadAccess& access,
                               int lane) {
  uint64_t address = access.address(lane);
  if (access.space == Space::kGeneric && space_of(address) != Space::kShared &&
      space_of(address) != Space::kGlobal) {
    return;
  }
  Access checked{thread_epoch(warp, inst, 1u << lane, access),
                 {},
                 access.kind_of(lane) != AccessKind::kRead,
                 Layer::kKnown,
                 nullptr};
  checked.owner = owner_of(warp, access, &address);
  const View view = this->view(warp, lane);
  checked.views = {&view, 1};
  if (checked.owner != nullptr && checked.owner != &warp.cta()) {
    touch(*checked.owner, checked.epoch, view);
  }
  range(checked, address, access.bytes);
  if (access.order.is_strong()) synchronise(warp, lane, checked.owner, address, access);
}

void RaceDetector::access_range(Warp& warp, const Instruction& inst, int lane,
                                uint64_t generic_address, uint32_t bytes, AccessKind kind) {
  ThreadAccess access;
  access.space = Space::kGeneric;
  access.generic = true;
  access.kind = kind;
  access.bytes = bytes;
  access.row = true;
  access.active = 1u << lane;
  const uint64_t first = generic_address - uint64_t{bytes} * static_cast<uint32_t>(lane);
  access.addresses = &first;
  if (kind == AccessKind::kWrite) note_store(*warp.races, index_of(warp, inst), access.active);
  access_lane(warp, inst, access, lane);
}

void RaceDetector::read_tensor_map(Warp& warp, const Instruction& inst, int lane,
                                   uint64_t generic_address) {
  constexpr uint32_t kMapBytes = 128;
  uint64_t address = generic_address;
  ThreadAccess access;
  access.space = space_of(address);
  access.generic = true;
  if (access.space != Space::kShared && access.space != Space::kGlobal) return;
  Access checked{thread_epoch(warp, inst, 1u << lane, access),
                 {},
                 false,
                 Layer::kTensorMap,
                 owner_of(warp, access, &address)};
  checked.tensor_map = tensor_map_key(checked.owner, address);
  const View view = this->view(warp, lane);
  checked.views = {&view, 1};
  range(checked, address, kMapBytes);
}

Line& RaceDetector::line_of(const Access& access, uint64_t address) {
  if (access.owner != nullptr) return access.owner->races->lines[address / kLineBytes];
  return global_.line(address);
}

void RaceDetector::range(const Access& access, uint64_t address, uint64_t bytes) {
  const uint64_t end = address + bytes;
  while (address < end) {
    const uint64_t line_address = address / kLineBytes * kLineBytes;
    const uint64_t stop = std::min(end, line_address + kLineBytes);
    line_range(line_of(access, address), access, line_address,
               static_cast<uint32_t>(address - line_address),
               static_cast<uint32_t>(stop - line_address));
    address = stop;
  }
}

void RaceDetector::line_range(Line& line, const Access& access, uint64_t line_address,
                              uint32_t begin, uint32_t end) {
  split(line, shift_for(begin, end));
  const uint32_t shift = line.cell_shift;
  Cell* const cells = line.first();
  for (uint32_t i = begin >> shift; i < end >> shift; ++i) {
    cell(cells[i], access, line_address + (uint64_t{i} << shift));
  }
  if (access.writes && begin == 0 && end == kLineBytes && shift != 7) line.unite(access.epoch);
}

void RaceDetector::cell(Cell& cell, const Access& access, uint64_t address) {
  if (cell.write.clock != 0) {
    const Verdict verdict = judge(cell.write, true, access);
    if (verdict != Verdict::kOrdered &&
        (verdict != Verdict::kUnordered || !observed(cell, access))) {
      report(access, cell.write, true, verdict, address);
    }
  }
  if (!access.writes) return note_read(cell, access);
  for (const Epoch& reader : readers(cell)) {
    if (const Verdict verdict = judge(reader, false, access); verdict != Verdict::kOrdered) {
      report(access, reader, false, verdict, address);
    }
  }
  constexpr uint32_t kFlag = kWhatStrong | kWhatSize;
  const bool was_flag = (cell.write.what & kWhatStrong) != 0;
  if (was_flag && ((cell.write.what ^ access.epoch.what) & kFlag) != 0) {
    forget_location(access, address, cell.write);
  }
  clear_readers(cell);
  cell.write = access.epoch;
}

/// Notes who reaches a CTA's shared memory beside its own threads: it must not end before, and
/// must have started.
void RaceDetector::touch(Cta& owner, const Epoch& epoch, const View& view) {
  if (!has_started(view, owner, epoch)) {
    report_pair(
        "sync",
        concat("the CTA of rank ", owner.rank, " may not have started when ", agent_of(epoch),
               " reaches its shared memory: a barrier.cluster before would tell"),
        epoch, nullptr);
  }
  for (LaneMask rest = epoch.lanes; rest != 0; rest &= rest - 1) {
    Epoch one = epoch;
    one.lanes = rest & -rest;
    owner.races->remote[epoch.component + static_cast<uint32_t>(__builtin_ctz(rest))] = one;
  }
}

/// A CTA has started for its own threads, for those who know of anything that one of them has done,
/// and for those who have passed a barrier of the cluster.
bool RaceDetector::has_started(const View& view, const Cta& owner, const Epoch& epoch) const {
  const ClusterRaces& cluster = cluster_of(epoch);
  const ClusterClock& known = view.known->own;
  const uint32_t first = cluster.first_of(owner.rank);
  if (known.at(Layer::kExecuted, first) >= kStarted) return true;
  if (place_of(epoch).cta == owner.rank) return true;
  for (uint32_t thread = first + 1; thread < cluster.first_of(owner.rank + 1); ++thread) {
    if (known.at(Layer::kExecuted, thread) >= kStarted) return true;
  }
  return false;
}

}  // namespace pykernels::emulator
