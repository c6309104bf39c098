// Bindings of csrc/gemm.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/device.h"
#include "core/registry.h"
#include "gemm/launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

using gemm::GemmArguments;
using gemm::GemmCandidate;

Launch make_launch(Device& device, const GemmArguments& arguments,
                   const std::optional<std::string>& kernel) {
  if (!kernel) return gemm::make_fp8_gemm_nt_launch(device, arguments);
  return gemm::make_fp8_gemm_nt_launch(device, arguments, Registry::instance().get(*kernel));
}

void bind_candidate(py::module_& module) {
  py::class_<GemmCandidate>(module, "GemmCandidate",
                            "A kernel that could run a GEMM, and the time that the model gives it.")
      .def_property_readonly("kernel",
                             [](const GemmCandidate& candidate) { return candidate.kernel->name; })
      .def_property_readonly(
          "config", [](const GemmCandidate& candidate) { return candidate.kernel->config; })
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
      [](int64_t m, int64_t n, int64_t k, uint32_t d_bytes, int num_sms) {
        return gemm::rank_configs({m, n, k, d_bytes, num_sms},
                                  Registry::instance().family("fp8_gemm_nt"));
      },
      py::arg("m"), py::arg("n"), py::arg("k"), py::arg("d_bytes"), py::arg("num_sms"),
      "The kernels that can run this problem, cheapest first; d_bytes is an element of the "
      "output.");
  module.def(
      "make_fp8_gemm_nt_launch",
      [](Device& device, const TensorView& a, const TensorView& sfa, const TensorView& b,
         const TensorView& sfb, const TensorView& out, std::optional<int64_t> num_sms,
         const std::optional<std::string>& kernel) {
        return make_launch(device, {a, sfa, b, sfb, out, num_sms}, kernel);
      },
      py::arg("device"), py::arg("a"), py::arg("sfa"), py::arg("b"), py::arg("sfb"), py::arg("out"),
      py::arg("num_sms") = py::none(), py::arg("kernel") = py::none(),
      "The launch that fp8_gemm_nt would run; `kernel` names one instead of the cheapest.");
  module.def(
      "fp8_gemm_nt",
      [](Device& device, const TensorView& a, const TensorView& sfa, const TensorView& b,
         const TensorView& sfb, const TensorView& out, std::optional<int64_t> num_sms,
         const std::optional<std::string>& kernel) {
        const py::gil_scoped_release release;
        device.run(make_launch(device, {a, sfa, b, sfb, out, num_sms}, kernel));
      },
      py::arg("device"), py::arg("a"), py::arg("sfa"), py::arg("b"), py::arg("sfb"), py::arg("out"),
      py::arg("num_sms") = py::none(), py::arg("kernel") = py::none(),
      "out = dequant(a) @ dequant(b).T; the arguments have been checked, no size but k is 0.");
}

}  // namespace pykernels::bindings
