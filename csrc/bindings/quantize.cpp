// Bindings of csrc/quantize.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "bindings/bindings.h"
#include "bindings/group_source.h"
#include "core/check.h"
#include "core/device.h"
#include "quantize/launch.h"
#include "quantize/silu_mul_launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

quantize::QuantizeArguments make_arguments(const TensorView& x, const TensorView& q,
                                           const TensorView& scales, uint32_t block_m, bool ue8m0) {
  return {x, q, scales, block_m, ue8m0 ? ScaleFormat::kUe8m0 : ScaleFormat::kFp32};
}

/// Defines a function with the arguments of the fused cast, which become function(device, launch).
template <typename Function>
void define_silu_mul(py::module_& module, const char* name, Function&& function,
                     const char* documentation) {
  module.def(
      name,
      [function](Device& device, const TensorView& x, const TensorView& q, const TensorView& scales,
                 bool ue8m0, const std::optional<TensorView>& groups,
                 const std::optional<std::string>& source) {
        const py::gil_scoped_release release;
        PK_CHECK(groups.has_value() == source.has_value(), "groups come with their source");
        const quantize::SiluMulQuantizeArguments arguments{
            x,
            q,
            scales,
            ue8m0 ? ScaleFormat::kUe8m0 : ScaleFormat::kFp32,
            group_source(source),
            groups.value_or(TensorView{})};
        return function(device, quantize::make_silu_mul_quantize_launch(device, arguments));
      },
      py::arg("device"), py::arg("x"), py::arg("q"), py::arg("scales"), py::arg("ue8m0"),
      py::arg("groups") = py::none(), py::arg("source") = py::none(), documentation);
}

}  // namespace

void bind_quantize(py::module_& module) {
  module.def(
      "make_quantize_launch",
      [](const TensorView& x, const TensorView& q, const TensorView& scales, uint32_t block_m,
         bool ue8m0) {
        return quantize::make_quantize_launch(make_arguments(x, q, scales, block_m, ue8m0));
      },
      py::arg("x"), py::arg("q"), py::arg("scales"), py::arg("block_m"), py::arg("ue8m0"),
      "The launch that quantize would run.");
  module.def(
      "quantize",
      [](Device& device, const TensorView& x, const TensorView& q, const TensorView& scales,
         uint32_t block_m, bool ue8m0) {
        const py::gil_scoped_release release;
        device.run(quantize::make_quantize_launch(make_arguments(x, q, scales, block_m, ue8m0)));
      },
      py::arg("device"), py::arg("x"), py::arg("q"), py::arg("scales"), py::arg("block_m"),
      py::arg("ue8m0"),
      "Casts x to FP8 with a scale per block of block_m (1 or 128) rows and 128 columns.");
  define_silu_mul(
      module, "make_silu_mul_quantize_launch", [](Device&, const Launch& launch) { return launch; },
      "The launch that silu_mul_quantize would run.");
  define_silu_mul(
      module, "silu_mul_quantize", [](Device& device, const Launch& launch) { device.run(launch); },
      "Casts silu(gate) * up, the halves of x's columns, to FP8 with a scale per row and 128 "
      "columns, in the rows of the groups; `source` says what `groups` are: group_offsets, "
      "m_indices "
      "or masked_m.");
}

}  // namespace pykernels::bindings
