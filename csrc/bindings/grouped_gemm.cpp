// Bindings of the grouped FP8 GEMM of csrc/gemm.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "bindings/bindings.h"
#include "bindings/gemm_schedule.h"
#include "bindings/group_source.h"
#include "core/device.h"
#include "core/registry.h"
#include "gemm/choice.h"
#include "gemm/grouped_launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

using gemm::GroupedGemmArguments;

/// The launch of the cheapest kernel; or of the one named, with the schedule given or its first.
Launch make_launch(Device& device, const GroupedGemmArguments& arguments,
                   const std::optional<std::string>& kernel,
                   const std::optional<ScheduleTuple>& schedule) {
  if (!kernel) return gemm::make_grouped_launch(device, arguments);
  const KernelInfo& info = Registry::instance().get(*kernel);
  return gemm::make_grouped_launch(device, arguments, info, schedule_or_first(info, schedule));
}

/// Defines a function with the arguments of a grouped GEMM, which become function(device, launch).
template <typename Function>
void define(py::module_& module, const char* name, Function&& function, const char* documentation) {
  module.def(
      name,
      [function](Device& device, const TensorView& a, const TensorView& sfa, const TensorView& b,
                 const TensorView& sfb, const TensorView& out, const TensorView& groups,
                 const std::string& source, std::optional<int64_t> num_sms,
                 std::optional<int64_t> expected_m, const std::optional<TensorView>& ready,
                 const std::optional<TensorView>& done, bool system_scope,
                 uint64_t ready_timeout_ns, const std::optional<std::string>& kernel,
                 const std::optional<ScheduleTuple>& schedule) {
        const py::gil_scoped_release release;
        const GroupedGemmArguments arguments{a,       sfa,
                                             b,       sfb,
                                             out,     group_source(source),
                                             groups,  {ready, done, system_scope, ready_timeout_ns},
                                             num_sms, expected_m};
        return function(device, make_launch(device, arguments, kernel, schedule));
      },
      py::arg("device"), py::arg("a"), py::arg("sfa"), py::arg("b"), py::arg("sfb"), py::arg("out"),
      py::arg("groups"), py::arg("source"), py::arg("num_sms") = py::none(),
      py::arg("expected_m") = py::none(), py::arg("ready") = py::none(),
      py::arg("done") = py::none(), py::arg("system_scope") = false,
      py::arg("ready_timeout_ns") = 0, py::arg("kernel") = py::none(),
      py::arg("schedule") = py::none(), documentation);
}

}  // namespace

void bind_grouped_gemm(py::module_& module) {
  define(
      module, "make_grouped_fp8_gemm_nt_launch",
      [](Device&, const Launch& launch) { return launch; },
      "The launch that grouped_fp8_gemm_nt would run; `kernel` names one instead of the cheapest, "
      "`schedule` its (cluster_m, cluster_n, split_k).");
  define(
      module, "grouped_fp8_gemm_nt",
      [](Device& device, const Launch& launch) {
        if (gemm::has_gpu_warning()) {
          const py::gil_scoped_acquire acquire;
          warn_of_unknown_gpu();
        }
        device.run(launch);
      },
      "out = dequant(a) @ dequant(b of the row's group).T; `source` says what `groups` are: "
      "group_offsets, m_indices or masked_m. The arguments have been checked, no size but k is 0.");
}

}  // namespace pykernels::bindings
