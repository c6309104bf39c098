// Bindings of csrc/mla beside decode: planning, and merging partial results.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "bindings/bindings.h"
#include "core/device.h"
#include "mla/combine_launch.h"
#include "mla/launch.h"
#include "mla/plan_launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

/// Defines a function with the arguments of the update, which become function(device, launch).
template <typename Function>
void define_update_plan(py::module_& module, const char* name, Function&& function,
                        const char* documentation) {
  module.def(
      name,
      [function](Device& device, const TensorView& cache_seqlens, const TensorView& items,
                 const TensorView& part_offsets, const TensorView& requests, bool batch_invariant) {
        const py::gil_scoped_release release;
        const mla::PlanArguments arguments{cache_seqlens, items, part_offsets, requests,
                                           batch_invariant};
        return function(device, mla::make_mla_update_plan_launch(device, arguments));
      },
      py::arg("device"), py::arg("cache_seqlens"), py::arg("items"), py::arg("part_offsets"),
      py::arg("requests"), py::arg("batch_invariant"), documentation);
}

/// Likewise, of merging.
template <typename Function>
void define_merge_states(py::module_& module, const char* name, Function&& function,
                         const char* documentation) {
  module.def(
      name,
      [function](Device& device, const TensorView& outs, const TensorView& lses,
                 const TensorView& out, const TensorView& lse) {
        const py::gil_scoped_release release;
        return function(device, mla::make_merge_states_launch(device, {outs, lses, out, lse}));
      },
      py::arg("device"), py::arg("outs"), py::arg("lses"), py::arg("out"), py::arg("lse"),
      documentation);
}

/// Likewise, of merging a plan's partial results.
template <typename Function>
void define_combine(py::module_& module, const char* name, Function&& function,
                    const char* documentation) {
  module.def(
      name,
      [function](Device& device, const TensorView& requests, const TensorView& partial_out,
                 const TensorView& partial_lse, const TensorView& out, const TensorView& lse) {
        const py::gil_scoped_release release;
        mla::MlaDecodeArguments arguments;
        arguments.plan.requests = requests;
        arguments.plan.partial_out = partial_out;
        arguments.plan.partial_lse = partial_lse;
        arguments.out = out;
        arguments.lse = lse;
        return function(device, mla::make_mla_combine_launch(device, arguments));
      },
      py::arg("device"), py::arg("requests"), py::arg("partial_out"), py::arg("partial_lse"),
      py::arg("out"), py::arg("lse"), documentation);
}

}  // namespace

void bind_mla_plan(py::module_& module) {
  module.def(
      "mla_plan_sizes",
      [](Device& device, int64_t max_batch, int64_t num_rows, bool batch_invariant,
         const std::optional<int64_t>& max_seqlen, const std::optional<int64_t>& num_sms) {
        const py::gil_scoped_release release;
        const mla::PlanSizes sizes = mla::plan_sizes(mla::num_parts(device, num_rows, num_sms),
                                                     max_batch, batch_invariant, max_seqlen);
        return std::tuple(sizes.num_items, sizes.num_parts, sizes.num_slots);
      },
      py::arg("device"), py::arg("max_batch"), py::arg("num_rows"), py::arg("batch_invariant"),
      py::arg("max_seqlen") = py::none(), py::arg("num_sms") = py::none(),
      "How many items, parts and slots the plan of so many requests of num_rows rows has.");
  const auto describe = [](Device&, const Launch& launch) { return launch; };
  const auto run = [](Device& device, const Launch& launch) { device.run(launch); };
  define_update_plan(module, "make_mla_update_plan_launch", describe,
                     "The launch that mla_update_plan would run.");
  define_update_plan(module, "mla_update_plan", run,
                     "Writes the plan for requests of these lengths.");
  define_combine(module, "make_mla_combine_launch", describe,
                 "The launch that mla_combine would run.");
  define_combine(module, "mla_combine", run,
                 "Merges the partial results of the split requests of a plan.");
  define_merge_states(module, "make_merge_states_launch", describe,
                      "The launch that merge_states would run.");
  define_merge_states(module, "merge_states", run,
                      "Merges partial attention results of the same rows.");
}

}  // namespace pykernels::bindings
