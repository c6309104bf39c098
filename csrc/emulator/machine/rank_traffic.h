// What the launches of several ranks read and write in each named range of memory: bytes on links.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator/machine/footprint.h"
#include "emulator/machine/memory.h"
#include "emulator/report.h"

namespace pykernels::emulator {

struct MachineLaunch;

/// Counts the global accesses of each rank by the range that its own launches name; of ranges that
/// overlap, by the one that begins last. Exists only where launches of several ranks run together.
class RankTraffic {
 public:
  explicit RankTraffic(const std::vector<MachineLaunch>& launches);

  /// An access to [address, address + bytes), of which `asked` were asked for altogether.
  void add(uint32_t rank, uint64_t address, uint64_t bytes, AccessKind kind, uint64_t asked);
  /// By rank, then in the order in which its launches name their memory; of ranges that were
  /// accessed.
  std::vector<MemoryTraffic> rows() const;

 private:
  struct Sum {
    std::string name;  // empty: memory that the rank's launches do not name
    uint64_t read = 0;
    uint64_t written = 0;
    Footprint read_sectors;
    Footprint written_sectors;
  };
  struct Range {
    uint64_t begin = 0;
    uint64_t end = 0;
    Sum* sum = nullptr;
  };
  struct Memory {
    std::vector<std::unique_ptr<Sum>> sums;  // the first one of what has no name
    std::vector<Range> ranges;               // by where they begin

    Sum* sum_of(const std::string& name);
    /// The range that holds the address, else nullptr.
    const Range* find(uint64_t address) const;
  };

  std::map<uint32_t, Memory> ranks_;
};

/// Whether launches of different ranks are among these.
bool has_several_ranks(const std::vector<MachineLaunch>& launches);

}  // namespace pykernels::emulator
