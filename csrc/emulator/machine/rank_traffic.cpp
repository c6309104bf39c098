#include "emulator/machine/rank_traffic.h"

#include <algorithm>

#include "emulator/machine/machine.h"

namespace pykernels::emulator {

bool has_several_ranks(const std::vector<MachineLaunch>& launches) {
  return std::any_of(launches.begin(), launches.end(), [&](const MachineLaunch& launch) {
    return launch.rank != launches.front().rank;
  });
}

RankTraffic::RankTraffic(const std::vector<MachineLaunch>& launches) {
  for (const MachineLaunch& launch : launches) {
    Memory& memory = ranks_[launch.rank];
    memory.sum_of("");
    for (const Allocation& range : launch.memory) {
      memory.ranges.push_back(
          {range.address, range.address + range.bytes, memory.sum_of(range.name)});
    }
  }
  for (auto& [rank, memory] : ranks_) {
    std::stable_sort(memory.ranges.begin(), memory.ranges.end(),
                     [](const Range& a, const Range& b) { return a.begin < b.begin; });
  }
}

RankTraffic::Sum* RankTraffic::Memory::sum_of(const std::string& name) {
  for (const auto& sum : sums) {
    if (sum->name == name) return sum.get();
  }
  sums.push_back(std::make_unique<Sum>());
  sums.back()->name = name;
  return sums.back().get();
}

const RankTraffic::Range* RankTraffic::Memory::find(uint64_t address) const {
  auto next = std::upper_bound(ranges.begin(), ranges.end(), address,
                               [](uint64_t at, const Range& range) { return at < range.begin; });
  while (next != ranges.begin()) {
    --next;
    if (address < next->end) return &*next;
  }
  return nullptr;
}

void RankTraffic::add(uint32_t rank, uint64_t address, uint64_t bytes, AccessKind kind,
                      uint64_t asked) {
  Memory& memory = ranks_[rank];
  while (bytes > 0) {
    const Range* range = memory.find(address);
    Sum& sum = range == nullptr ? *memory.sums.front() : *range->sum;
    // Lanes that access neighbouring bytes count together: these may lie in several ranges.
    const uint64_t here = range == nullptr ? bytes : std::min(bytes, range->end - address);
    const uint64_t asked_here = here == bytes ? asked : std::min(here, asked);
    if (kind != AccessKind::kWrite) {
      sum.read += asked_here;
      sum.read_sectors.add(address, here);
    }
    if (kind != AccessKind::kRead) {
      sum.written += asked_here;
      sum.written_sectors.add(address, here);
    }
    address += here;
    bytes -= here;
    asked -= asked_here;
  }
}

std::vector<MemoryTraffic> RankTraffic::rows() const {
  std::vector<MemoryTraffic> rows;
  for (const auto& [rank, memory] : ranks_) {
    for (const auto& sum : memory.sums) {
      if (sum->read == 0 && sum->written == 0) continue;
      rows.push_back({rank, sum->name, sum->read, sum->written, sum->read_sectors.bytes(),
                      sum->written_sectors.bytes()});
    }
  }
  return rows;
}

}  // namespace pykernels::emulator
