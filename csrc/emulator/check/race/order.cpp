// Which accesses are ordered, and the readers that a cell remembers.
#include <algorithm>
#include <tuple>

#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

// Sets up to this size are kept as small as can be; larger ones only from time to time.
constexpr size_t kSmallSet = 64;
// In all sets, 20 bytes each: beyond, small sets do not grow any more.
constexpr size_t kMaxReaders = size_t{1} << 24;

bool of_lower_agent(const Epoch& a, const Epoch& b) {
  return a.cluster != b.cluster ? a.cluster < b.cluster : a.component < b.component;
}

Scope scope_of(const Epoch& epoch) { return static_cast<Scope>(epoch.what >> kWhatScopeShift & 7); }

bool is_strong(const Epoch& epoch) { return (epoch.what & kWhatStrong) != 0; }

/// Strong accesses that overlap in part are not morally strong; aligned ones of one size overlap
/// completely.
bool same_size(const Epoch& a, const Epoch& b) {
  const uint32_t first = a.what >> kWhatSizeShift;
  const uint32_t second = b.what >> kWhatSizeShift;
  return first == second || first == kAnySize || second == kAnySize;
}

}  // namespace

Place RaceDetector::place_of(const Epoch& epoch) const {
  const ClusterRaces& cluster = cluster_of(epoch);
  const uint32_t warp = cluster.thread_of(epoch) / kWarpSize;
  return {epoch.cluster, warp / cluster.warps_per_cta, cluster.launch->rank};
}

bool RaceDetector::both_strong(const Epoch& a, const Epoch& b) const {
  if (!is_strong(a) || !is_strong(b) || !same_size(a, b)) return false;
  const Place first = place_of(a);
  const Place second = place_of(b);
  return includes(scope_of(a), first, second) && includes(scope_of(b), second, first);
}

bool RaceDetector::knows(const View& view, const Epoch& epoch, Layer layer) const {
  const auto all_lanes = [&](auto at) {
    for (LaneMask rest = epoch.lanes; rest != 0; rest &= rest - 1) {
      if (at(epoch.component + static_cast<uint32_t>(__builtin_ctz(rest))) < epoch.clock) {
        return false;
      }
    }
    return true;
  };
  if (epoch.cluster == view.known->cluster) {
    return all_lanes([&](uint32_t component) { return view.at(layer, component); });
  }
  if (view.known->has_finished(cluster_of(epoch).grid)) return true;
  const ClusterClock* other = view.known->of(epoch.cluster);
  return other != nullptr &&
         all_lanes([&](uint32_t component) { return other->at(layer, component); });
}

/// Whether the accesses of any of the epoch's lanes are known.
bool RaceDetector::knows_any(const View& view, const Epoch& epoch) const {
  for (LaneMask rest = epoch.lanes; rest != 0; rest &= rest - 1) {
    Epoch one = epoch;
    one.lanes = rest & -rest;
    if (knows(view, one, Layer::kKnown)) return true;
  }
  return false;
}

/// Observation order: the cell's strong write comes before what a thread does that has read it by a
/// strong read, or that knows of such a read.
bool RaceDetector::observed(const Cell& cell, const Access& access) const {
  if (!is_strong(cell.write) || access.proxy != Layer::kKnown) return false;
  const std::span<const Epoch> all = readers(cell);
  return std::any_of(all.begin(), all.end(), [&](const Epoch& reader) {
    if (!both_strong(reader, cell.write)) return false;
    if (reader.same_agent(access.epoch) && (access.epoch.lanes & ~reader.lanes) == 0) return true;
    return std::all_of(access.views.begin(), access.views.end(),
                       [&](const View& view) { return knows_any(view, reader); });
  });
}

RaceDetector::Verdict RaceDetector::judge(const Epoch& earlier, bool earlier_writes,
                                          const Access& access) const {
  const Epoch& later = access.epoch;
  const uint32_t what = earlier.what | later.what;
  const bool one_lane_or_stripe =
      (later.lanes & (later.lanes - 1)) == 0 || (later.what & kWhatStripe) != 0;
  if (earlier.same_agent(later) && earlier.lanes == later.lanes && one_lane_or_stripe &&
      (what & kWhatNonCoherent) == 0 && access.proxy == Layer::kKnown &&
      later.component < cluster_of(later).num_threads) {
    return Verdict::kOrdered;  // program order
  }
  if ((what & kWhatNonCoherent) != 0) {
    const Epoch& read = earlier_writes ? later : earlier;
    const bool same_launch = cluster_of(earlier).grid == cluster_of(later).grid;
    if ((read.what & kWhatNonCoherent) != 0 && earlier_writes != access.writes && same_launch) {
      return Verdict::kNonCoherent;
    }
  }
  // A copy over another one in shared memory needs as little as one over reads: it has its bytes in
  // place once its end was told.
  const bool copy_over_copy =
      (earlier.what & later.what & kWhatAsync) != 0 && access.writes && access.owner != nullptr;
  const Layer layer = earlier_writes && !copy_over_copy ? Layer::kKnown : Layer::kExecuted;
  for (const View& view : access.views) {
    if (knows(view, earlier, layer)) continue;
    if (both_strong(earlier, later)) return Verdict::kOrdered;
    // Lanes that store to one place with one instruction: the hardware picks one of them.
    const bool one_instruction = earlier.same_agent(later) && earlier.what == later.what &&
                                 earlier.clock == later.clock && earlier_writes && access.writes;
    return one_instruction ? Verdict::kOrdered : Verdict::kUnordered;
  }
  if (!earlier_writes || access.proxy == Layer::kKnown || (earlier.what & kWhatAsync) != 0) {
    return Verdict::kOrdered;
  }
  if (access.proxy == Layer::kTensorMap) {
    return acquired_map(earlier, access) ? Verdict::kOrdered : Verdict::kNeedsProxyFence;
  }
  for (const View& view : access.views) {
    if (!knows(view, earlier, access.proxy)) return Verdict::kNeedsProxyFence;
  }
  return Verdict::kOrdered;
}

/// True where an acquire of the map, by whom the lane has heard of, comes after the write's release
/// to the proxy of tensor maps. The end of a launch is such a release.
bool RaceDetector::acquired_map(const Epoch& write, const Access& access) const {
  const auto all = tensor_maps_.find(access.tensor_map);
  if (all == tensor_maps_.end()) return false;
  const View& view = access.views.front();
  return std::any_of(all->second.begin(), all->second.end(), [&](const TensorMapAcquire& one) {
    return includes(one.acquired.scope, one.acquired.place, place_of(write)) &&
           knows(view, one.epoch, Layer::kKnown) &&
           knows(one.acquired.view, write, Layer::kKnown) &&
           knows(one.acquired.view, write, Layer::kTensorMap);
  });
}

std::span<const Epoch> RaceDetector::readers(const Cell& cell) const {
  if (cell.read.clock == 0) return {};
  if ((cell.read.what & kWhatMany) == 0) return {&cell.read, 1};
  return read_sets_[cell.read.component];
}

std::span<const Epoch> RaceDetector::readers(const Cell& cell, const Epoch& of) const {
  const std::span<const Epoch> all = readers(cell);
  const auto [first, last] = std::equal_range(all.begin(), all.end(), of, of_lower_agent);
  return {first, last};
}

/// True where the lanes of an access of the same warp lie in the line in another way: what one lane
/// did is then not what the same lane does now.
bool RaceDetector::has_other_stripe(const Cell& cell, const Access& access) const {
  const auto differs = [&](const Epoch& epoch) {
    return epoch.clock != 0 && epoch.same_agent(access.epoch) &&
           (((epoch.what ^ access.epoch.what) & kWhatStripe) != 0 ||
            epoch.lanes != access.epoch.lanes);
  };
  if (differs(cell.write)) return true;
  const std::span<const Epoch> own = readers(cell, access.epoch);
  return std::any_of(own.begin(), own.end(), differs);
}

/// True where a later write that is ordered after the access is ordered after the earlier read too.
bool RaceDetector::supersedes(const Access& access, const Epoch& earlier) const {
  const Epoch& later = access.epoch;
  if (is_strong(later) != is_strong(earlier) ||
      ((later.what ^ earlier.what) & (kWhatNonCoherent | kWhatAsync | kWhatStripe | kWhatSize)) !=
          0) {
    return false;
  }
  if (earlier.same_agent(later)) return (earlier.lanes & ~later.lanes) == 0;
  return std::all_of(access.views.begin(), access.views.end(),
                     [&](const View& view) { return knows(view, earlier, Layer::kExecuted); });
}

/// Takes out the readers that a later write need not be compared with. Of a large set that is
/// worth its time once it is full; else only those of the same warp are looked at.
void RaceDetector::drop_superseded(ReadSet& set, const Access& access) {
  const auto superseded = [&](const Epoch& earlier) { return supersedes(access, earlier); };
  const bool is_full = set.size() == set.capacity();
  if (set.size() <= kSmallSet || is_full) {
    std::erase_if(set, superseded);
    // Room enough that it is not full again soon.
    if (is_full && set.size() > set.capacity() / 2) set.reserve(2 * set.capacity());
    return;
  }
  const auto [first, last] = std::equal_range(set.begin(), set.end(), access.epoch, of_lower_agent);
  set.erase(std::remove_if(first, last, superseded), last);
}

/// A set is sorted by agents, so that its size hardly matters.
void RaceDetector::note_reader(ReadSet& set, const Access& access) {
  const Epoch& later = access.epoch;
  auto [first, last] = std::equal_range(set.begin(), set.end(), later, of_lower_agent);
  const auto same = [&](const Epoch& earlier) {
    return earlier.clock == later.clock && earlier.what == later.what;
  };
  const auto has = [&](const Epoch& earlier) {
    return same(earlier) && (later.lanes & ~earlier.lanes) == 0;
  };
  if (std::any_of(first, last, has)) return;
  if (set.size() > kSmallSet && last - first == 1 && supersedes(access, *first)) {
    *first = later;
    return;
  }
  num_readers_ -= set.size();
  drop_superseded(set, access);
  std::tie(first, last) = std::equal_range(set.begin(), set.end(), later, of_lower_agent);
  const auto place = std::find_if(first, last, same);
  if (place != last) {
    place->lanes |= later.lanes;
  } else if (set.size() < kSmallSet || num_readers_ < kMaxReaders) {
    set.insert(last, later);
  }
  num_readers_ += set.size();
}

void RaceDetector::note_read(Cell& cell, const Access& access) {
  if (cell.read.clock == 0) {
    cell.read = access.epoch;
    return;
  }
  if ((cell.read.what & kWhatMany) != 0) {
    return note_reader(read_sets_[cell.read.component], access);
  }
  if (supersedes(access, cell.read)) {
    cell.read = access.epoch;
    return;
  }
  const bool same = cell.read.same_agent(access.epoch) && cell.read.clock == access.epoch.clock &&
                    cell.read.what == access.epoch.what && (cell.read.what & kWhatStripe) == 0;
  if (same) {
    cell.read.lanes |= access.epoch.lanes;
    return;
  }
  cell.read = make_read_set({cell.read, access.epoch});
}

/// An epoch that stands for several readers.
Epoch RaceDetector::make_read_set(ReadSet readers) {
  std::sort(readers.begin(), readers.end(), of_lower_agent);
  num_readers_ += readers.size();
  uint32_t index = 0;
  if (free_read_sets_.empty()) {
    index = static_cast<uint32_t>(read_sets_.size());
    read_sets_.push_back(std::move(readers));
  } else {
    index = free_read_sets_.back();
    free_read_sets_.pop_back();
    read_sets_[index] = std::move(readers);
  }
  return Epoch{0, index, 1, kWhatMany, 0};
}

/// Cuts a line; each of the new cells gets its own set of readers.
void RaceDetector::split(Line& line, uint32_t shift) {
  if (shift >= line.cell_shift) return;
  if (line.cell_shift == 7 && shift == 4) {
    // Lanes that differ from word to word need words.
    const auto fine = [](const Epoch& epoch) {
      const uint32_t stripe = (epoch.what & kWhatStripe) >> kWhatStripeShift;
      return stripe == 1 || stripe == 2;
    };
    const std::span<const Epoch> all = readers(line.whole);
    if (fine(line.whole.write) || std::any_of(all.begin(), all.end(), fine)) shift = 2;
  }
  std::vector<uint32_t> shared;
  for (uint32_t i = 0; i < line.num_cells(); ++i) {
    const Epoch& read = line.first()[i].read;
    if (read.clock != 0 && (read.what & kWhatMany) != 0) shared.push_back(read.component);
  }
  line.split(shift);
  if (shared.empty()) return;
  for (uint32_t i = 0; i < line.num_cells(); ++i) {
    Epoch& read = line.cells[i].read;
    if (read.clock == 0 || (read.what & kWhatMany) == 0) continue;
    ReadSet parts = read_sets_[read.component];
    for (Epoch& part : parts) part = part_of(part, i << shift);
    read = make_read_set(std::move(parts));
  }
  for (const uint32_t index : shared) free_read_set(index);
}

void RaceDetector::free_read_set(uint32_t index) {
  num_readers_ -= read_sets_[index].size();
  read_sets_[index] = {};
  free_read_sets_.push_back(index);
}

void RaceDetector::clear_readers(Cell& cell) {
  if ((cell.read.what & kWhatMany) != 0 && cell.read.clock != 0) free_read_set(cell.read.component);
  cell.read = Epoch{};
}

}  // namespace pykernels::emulator
