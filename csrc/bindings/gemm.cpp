// Bindings of csrc/gemm.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/device.h"
#include "core/registry.h"
#include "gemm/cost.h"
#include "gemm/launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

using gemm::GemmArguments;
using gemm::GemmCandidate;
using gemm::GemmSchedule;

/// (cluster_m, cluster_n, split_k)
using ScheduleTuple = std::array<uint32_t, 3>;

/// The launch of the cheapest kernel; or of the one named, with the schedule given or its first.
Launch make_launch(Device& device, const GemmArguments& arguments,
                   const std::optional<std::string>& kernel,
                   const std::optional<ScheduleTuple>& schedule) {
  if (!kernel) return gemm::make_fp8_gemm_nt_launch(device, arguments);
  const KernelInfo& info = Registry::instance().get(*kernel);
  GemmSchedule chosen = gemm::schedules_of(gemm::config_of(info)).front();
  if (schedule) chosen = {(*schedule)[0], (*schedule)[1], (*schedule)[2]};
  return gemm::make_fp8_gemm_nt_launch(device, arguments, info, chosen);
}

void bind_candidate(py::module_& module) {
  py::class_<GemmCandidate>(module, "GemmCandidate",
                            "A kernel that could run a GEMM, and the time that the model gives it.")
      .def_property_readonly("kernel",
                             [](const GemmCandidate& candidate) { return candidate.kernel->name; })
      .def_property_readonly(
          "config", [](const GemmCandidate& candidate) { return candidate.kernel->config; })
      .def_property_readonly("schedule",
                             [](const GemmCandidate& candidate) -> ScheduleTuple {
                               const GemmSchedule& schedule = candidate.schedule;
                               return {schedule.cluster_m, schedule.cluster_n, schedule.split_k};
                             })
      .def_readonly("num_tiles", &GemmCandidate::num_tiles)
      .def_readonly("num_waves", &GemmCandidate::num_waves)
      .def_readonly("memory_us", &GemmCandidate::memory_us)
      .def_readonly("l2_us", &GemmCandidate::l2_us)
      .def_readonly("compute_us", &GemmCandidate::compute_us)
      .def_readonly("total_us", &GemmCandidate::total_us);
}

}  // namespace

void bind_gemm(py::module_& module) {
  bind_candidate(module);
  module.def(
      "explain_fp8_gemm_nt",
      [](int64_t m, int64_t n, int64_t k, uint32_t d_bytes, int num_sms, bool batch_invariant) {
        return gemm::rank_configs({m, n, k, d_bytes, num_sms, batch_invariant},
                                  Registry::instance().family("fp8_gemm_nt"));
      },
      py::arg("m"), py::arg("n"), py::arg("k"), py::arg("d_bytes"), py::arg("num_sms"),
      py::arg("batch_invariant") = false,
      "The kernels that can run this problem, cheapest first; d_bytes is an element of the "
      "output.");
  module.def(
      "make_fp8_gemm_nt_launch",
      [](Device& device, const TensorView& a, const TensorView& sfa, const TensorView& b,
         const TensorView& sfb, const TensorView& out, std::optional<int64_t> num_sms,
         const std::optional<std::string>& kernel, const std::optional<ScheduleTuple>& schedule,
         bool batch_invariant) {
        return make_launch(device, {a, sfa, b, sfb, out, num_sms, batch_invariant}, kernel,
                           schedule);
      },
      py::arg("device"), py::arg("a"), py::arg("sfa"), py::arg("b"), py::arg("sfb"), py::arg("out"),
      py::arg("num_sms") = py::none(), py::arg("kernel") = py::none(),
      py::arg("schedule") = py::none(), py::arg("batch_invariant") = false,
      "The launch that fp8_gemm_nt would run; `kernel` names one instead of the cheapest, "
      "`schedule` its (cluster_m, cluster_n, split_k).");
  module.def(
      "fp8_gemm_nt",
      [](Device& device, const TensorView& a, const TensorView& sfa, const TensorView& b,
         const TensorView& sfb, const TensorView& out, std::optional<int64_t> num_sms,
         const std::optional<std::string>& kernel, const std::optional<ScheduleTuple>& schedule,
         bool batch_invariant) {
        const py::gil_scoped_release release;
        device.run(
            make_launch(device, {a, sfa, b, sfb, out, num_sms, batch_invariant}, kernel, schedule));
      },
      py::arg("device"), py::arg("a"), py::arg("sfa"), py::arg("b"), py::arg("sfb"), py::arg("out"),
      py::arg("num_sms") = py::none(), py::arg("kernel") = py::none(),
      py::arg("schedule") = py::none(), py::arg("batch_invariant") = false,
      "out = dequant(a) @ dequant(b).T; the arguments have been checked, no size but k is 0.");
}

}  // namespace pykernels::bindings
