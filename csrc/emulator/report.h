// What a launch found and counted.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/program.h"
#include "emulator/trace.h"

namespace pykernels::emulator {

/// One side of a finding: an instruction, and who executed it.
struct Site {
  std::string kernel;
  std::string ptx;  // the statement
  int ptx_line = 0;
  std::string cuda_file;  // empty where the PTX has no .loc
  int cuda_line = 0;
  std::string source;  // with the functions inlined around it; set when the finding is new
  int grid = 0;        // index in launch_concurrent
  uint32_t rank = 0;   // Launch.rank: the GPU
  std::array<uint32_t, 3> ctaid = {};
  int thread = -1;  // linear in the CTA; -1 for an asynchronous agent
};

struct Finding {
  std::string kind;          // "memory", "init", "sync", "deadlock"
  std::string message;       // with the values: address, bytes, bounds, phase
  std::vector<Site> sites;   // first, and second where there is one
  uint64_t occurrences = 1;  // same kind at the same instructions
};

struct Counters {
  std::array<uint64_t, static_cast<size_t>(InstructionClass::kCount)> warp_instructions = {};
  uint64_t thread_instructions = 0;
  uint64_t wgmma = 0;  // warpgroup instructions
  uint64_t tensor_multiply_adds = 0;
  uint64_t global_bytes_read = 0;  // by threads, bulk copies and TMA (elements in bounds)
  uint64_t global_bytes_written = 0;
  uint64_t global_footprint_bytes_read = 0;     // 32 times the distinct 32-byte sectors of these
  uint64_t global_footprint_bytes_written = 0;  // two; set when the machine stops
  uint64_t shared_bytes_read = 0;
  uint64_t shared_bytes_written = 0;
  uint64_t tma_bytes_loaded = 0;  // global -> shared, whole boxes, once per multicast
  uint64_t tma_bytes_stored = 0;
  uint64_t shared_bank_conflicts = 0;  // extra wavefronts of ld/st/ldmatrix/stmatrix

  /// Warp instructions that other warps can notice: between others, interleavings do not differ.
  uint64_t visible_instructions() const;
};

/// What a rank's launches accessed in a range of memory that they name, where several ranks ran
/// together. Bytes as in Counters.
struct MemoryTraffic {
  uint32_t rank = 0;  // of the launches
  std::string memory;
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
  uint64_t footprint_bytes_read = 0;
  uint64_t footprint_bytes_written = 0;
};

struct Report {
  std::vector<Finding> findings;
  Counters counters;
  std::vector<MemoryTraffic> traffic;  // empty where all launches are of one rank
  std::vector<std::string> checks;     // that ran
  std::vector<std::string> notes;  // unverified gpu_facts relied on, contractible arithmetic, ...
  uint64_t seed = 0;
  std::string async_completion;
  Trace trace;  // empty unless recorded

  /// Adds the finding and returns it, or counts it where the same kind at the same instructions is
  /// known already: nullptr.
  Finding* add(Finding finding);
};

/// The launch cannot go on: deadlock, trap, access outside any allocation. Carries the report.
class EmulationError : public std::runtime_error {
 public:
  EmulationError(const std::string& message, Report report)
      : std::runtime_error(message), report_(std::move(report)) {}
  const Report& report() const { return report_; }

 private:
  Report report_;
};

}  // namespace pykernels::emulator
