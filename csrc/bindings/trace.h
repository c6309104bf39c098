// Traces of the emulator's scheduler as Python values.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "emulator/trace.h"

namespace pykernels::bindings {

/// Kind (as TraceStep::Kind numbers them), launch, cluster, warp, count.
using TraceTuple = std::tuple<uint8_t, uint32_t, uint64_t, uint32_t, uint64_t>;

inline std::shared_ptr<const emulator::Trace> to_trace(const std::vector<TraceTuple>& steps) {
  auto trace = std::make_shared<emulator::Trace>();
  for (const auto& [kind, launch, cluster, warp, count] : steps) {
    PK_CHECK(kind < static_cast<uint8_t>(emulator::TraceStep::Kind::kCount),
             "trace has a step of no known kind: ", int{kind});
    trace->push_back({static_cast<emulator::TraceStep::Kind>(kind), launch, cluster, warp, count});
  }
  return trace;
}

inline pybind11::list to_list(const emulator::Trace& trace) {
  pybind11::list steps;
  for (const emulator::TraceStep& step : trace) {
    steps.append(pybind11::make_tuple(static_cast<uint8_t>(step.kind), step.launch, step.cluster,
                                      step.warp, step.count));
  }
  return steps;
}

}  // namespace pykernels::bindings
