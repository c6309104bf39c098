// The decisions of a scheduler, as values: what replays a run exactly.
#pragma once

#include <cstdint>
#include <vector>

namespace pykernels::emulator {

struct TraceStep {
  enum class Kind : uint8_t {
    kStart,       // a cluster of the launch became resident
    kRun,         // the warp ran `count` warp instructions
    kReadSource,  // the warp's asynchronous operation number `count` read its source
    kComplete,    // the same operation took effect
    kCount
  };
  Kind kind = Kind::kRun;
  uint32_t launch = 0;   // index among those that run together
  uint64_t cluster = 0;  // index in the launch
  uint32_t warp = 0;     // index in the cluster, by CTA
  uint64_t count = 0;
};

using Trace = std::vector<TraceStep>;

}  // namespace pykernels::emulator
