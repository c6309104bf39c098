// Bindings of csrc/quantize.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/bindings.h"
#include "core/device.h"
#include "quantize/launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

quantize::QuantizeArguments make_arguments(const TensorView& x, const TensorView& q,
                                           const TensorView& scales, uint32_t block_m, bool ue8m0) {
  return {x, q, scales, block_m,
          ue8m0 ? quantize::ScaleFormat::kUe8m0 : quantize::ScaleFormat::kFp32};
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
}

}  // namespace pykernels::bindings
