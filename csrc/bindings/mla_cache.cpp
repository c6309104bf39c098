// Bindings of the MLA cache's writing and reading, csrc/mla/cache_*.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/bindings.h"
#include "core/check.h"
#include "core/device.h"
#include "mla/cache_launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

/// Defines a function with the arguments of writing, which become function(device, launch).
template <typename Function>
void define_write(py::module_& module, const char* name, Function&& function,
                  const char* documentation) {
  module.def(
      name,
      [function](Device& device, const TensorView& kv_latent, const TensorView& k_rope,
                 const TensorView& kv_cache, const TensorView& slot_mapping,
                 const std::optional<TensorView>& norm_weight, double norm_eps,
                 const std::optional<TensorView>& cos, const std::optional<TensorView>& sin,
                 bool rope_interleaved) {
        const py::gil_scoped_release release;
        PK_CHECK(cos.has_value() == sin.has_value(), "cos comes with sin");
        std::optional<mla::Angles> angles;
        if (cos) angles = mla::Angles{*cos, *sin, rope_interleaved};
        const mla::MlaCacheWriteArguments arguments{kv_latent,   k_rope,   kv_cache, slot_mapping,
                                                    norm_weight, norm_eps, angles};
        return function(device, mla::make_mla_cache_write_launch(device, arguments));
      },
      py::arg("device"), py::arg("kv_latent"), py::arg("k_rope"), py::arg("kv_cache"),
      py::arg("slot_mapping"), py::arg("norm_weight") = py::none(), py::arg("norm_eps") = 0.0,
      py::arg("cos") = py::none(), py::arg("sin") = py::none(), py::arg("rope_interleaved") = true,
      documentation);
}

/// The same of reading.
template <typename Function>
void define_read(py::module_& module, const char* name, Function&& function,
                 const char* documentation) {
  module.def(
      name,
      [function](Device& device, const TensorView& kv_cache, const TensorView& slot_mapping,
                 const TensorView& kv_latent, const TensorView& k_rope) {
        const py::gil_scoped_release release;
        return function(device, mla::make_mla_cache_read_launch(
                                    device, {kv_cache, slot_mapping, kv_latent, k_rope}));
      },
      py::arg("device"), py::arg("kv_cache"), py::arg("slot_mapping"), py::arg("kv_latent"),
      py::arg("k_rope"), documentation);
}

}  // namespace

void bind_mla_cache(py::module_& module) {
  const auto make = [](Device&, const Launch& launch) { return launch; };
  const auto run = [](Device& device, const Launch& launch) { device.run(launch); };
  define_write(module, "make_mla_cache_write_launch", make,
               "The launch that mla_cache_write would run.");
  define_write(module, "mla_cache_write", run,
               "Writes tokens to their slots of the MLA cache, with RMSNorm, rotary embedding and "
               "FP8 cast where asked for.");
  define_read(module, "make_mla_cache_read_launch", make,
              "The launch that mla_cache_read would run.");
  define_read(module, "mla_cache_read", run, "Reads the tokens of slots of the MLA cache as BF16.");
}

}  // namespace pykernels::bindings
