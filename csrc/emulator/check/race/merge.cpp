// Conflicts in global memory between clusters that ran apart. They have no way to order anything
// among them: whatever one writes and another touches is a race.
#include <algorithm>
#include <vector>

#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr size_t kMaxKeptReaders = 4;  // of a cell, each of another cluster

}  // namespace

void RaceDetector::absorb(RaceDetector& slice, const MachineLaunch& launch) {
  const auto offset = static_cast<uint32_t>(clusters_.size());
  for (std::unique_ptr<ClusterRaces>& cluster : slice.clusters_) {
    cluster->serial += offset;
    cluster->launch = &launch;
    clusters_.push_back(std::move(cluster));
  }
  std::vector<uint64_t> numbers;
  numbers.reserve(slice.global_.pages().size());
  for (const auto& [number, page] : slice.global_.pages()) numbers.push_back(number);
  std::sort(numbers.begin(), numbers.end());
  for (const uint64_t number : numbers) {
    GlobalShadow::Page& page = *slice.global_.pages()[number];
    for (uint64_t i = 0; i < GlobalShadow::kLinesPerPage; ++i) {
      const uint64_t address = (number * GlobalShadow::kLinesPerPage + i) * kLineBytes;
      absorb_line(slice, page.lines[i], address, offset);
    }
  }
}

void RaceDetector::absorb_line(RaceDetector& slice, Line& line, uint64_t address, uint32_t offset) {
  if (line.cell_shift == 7 && line.whole.write.clock == 0 && line.whole.read.clock == 0) return;
  Line& kept = global_.line(address);
  split(kept, line.cell_shift);
  slice.split(line, kept.cell_shift);
  split(kept, line.cell_shift);
  for (uint32_t i = 0; i < line.num_cells(); ++i) {
    absorb_cell(slice, line.first()[i], kept.first()[i], address + (uint64_t{i} << line.cell_shift),
                offset);
  }
}

void RaceDetector::absorb_cell(const RaceDetector& slice, const Cell& cell, Cell& kept,
                               uint64_t address, uint32_t offset) {
  const auto moved = [&](Epoch epoch) {
    epoch.cluster += offset;
    return epoch;
  };
  const auto conflict = [&](const Epoch& later, bool writes, const Epoch& earlier,
                            bool earlier_writes) {
    const Access access{later, {}, writes, Layer::kKnown, nullptr};
    const bool non_coherent = ((writes ? earlier : later).what & kWhatNonCoherent) != 0;
    report(access, earlier, earlier_writes,
           non_coherent ? Verdict::kNonCoherent : Verdict::kUnordered, address);
  };
  if (cell.write.clock != 0) {
    const Epoch write = moved(cell.write);
    if (kept.write.clock != 0) conflict(write, true, kept.write, true);
    for (const Epoch& reader : readers(kept)) conflict(write, true, reader, false);
    if (kept.write.clock == 0) kept.write = write;
  }
  for (const Epoch& reader : slice.readers(cell)) {
    const Epoch read = moved(reader);
    if (kept.write.clock != 0 && kept.write.cluster < offset) {
      conflict(read, false, kept.write, true);
    }
    keep_reader(kept, read);
  }
}

/// A few readers are enough for a later slice's write to be found.
void RaceDetector::keep_reader(Cell& kept, const Epoch& read) {
  if (kept.read.clock == 0) {
    kept.read = read;
  } else if ((kept.read.what & kWhatMany) == 0) {
    if (kept.read.cluster != read.cluster) kept.read = make_read_set({kept.read, read});
  } else {
    ReadSet& readers = read_sets_[kept.read.component];
    const bool known = std::any_of(readers.begin(), readers.end(), [&](const Epoch& other) {
      return other.cluster == read.cluster;
    });
    // Clusters come in the order of their numbers, so the set stays sorted.
    if (!known && readers.size() < kMaxKeptReaders) readers.push_back(read);
  }
}

}  // namespace pykernels::emulator
