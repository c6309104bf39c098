// Bindings of MLA decode of csrc/mla.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "core/check.h"
#include "core/device.h"
#include "mla/combine_launch.h"
#include "mla/launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

/// Both launches, also where the first one has left an error that the device raises at once: what
/// it concerns is NaN, and the others are as they should be.
void run_decode(Device& device, const mla::MlaDecodeArguments& arguments) {
  const auto combine = [&] {
    // Without slots no request is ever split.
    if (arguments.plan.partial_lse.sizes[0] > 0) {
      device.run(mla::make_mla_combine_launch(device, arguments));
    }
  };
  try {
    device.run(mla::make_mla_decode_launch(device, arguments));
  } catch (const ArgumentError&) {
    combine();
    throw;
  }
  combine();
}

/// Defines a function with the arguments of mla_decode, which become function(device, arguments).
template <typename Function>
void define(py::module_& module, const char* name, Function&& function, const char* documentation) {
  module.def(
      name,
      [function](Device& device, const TensorView& q_nope, const TensorView& q_rope,
                 const TensorView& kv_cache, const TensorView& block_table,
                 const TensorView& cache_seqlens, const TensorView& items,
                 const TensorView& part_offsets, const TensorView& requests,
                 const TensorView& partial_out, const TensorView& partial_lse,
                 const TensorView& out, const TensorView& lse, double softmax_scale, bool causal) {
        const py::gil_scoped_release release;
        const mla::MlaDecodeArguments arguments{
            q_nope,      q_rope,        kv_cache,
            block_table, cache_seqlens, {items, part_offsets, requests, partial_out, partial_lse},
            out,         lse,           softmax_scale,
            causal};
        return function(device, arguments);
      },
      py::arg("device"), py::arg("q_nope"), py::arg("q_rope"), py::arg("kv_cache"),
      py::arg("block_table"), py::arg("cache_seqlens"), py::arg("items"), py::arg("part_offsets"),
      py::arg("requests"), py::arg("partial_out"), py::arg("partial_lse"), py::arg("out"),
      py::arg("lse"), py::arg("softmax_scale"), py::arg("causal"), documentation);
}

}  // namespace

void bind_mla(py::module_& module) {
  define(module, "mla_decode", run_decode,
         "Attends to a paged latent cache as the plan divides it, and merges what was split.");
  module.def(
      "mla_decode_kernel",
      [](int64_t num_rows, bool fp8, int num_sms) {
        return mla::kernel_name(mla::choose_config(num_rows, fp8, num_sms));
      },
      py::arg("num_rows"), py::arg("fp8"), py::arg("num_sms"),
      "The kernel that mla_decode takes for so many rows (seqlen_q * num_heads) of a request.");
  define(module, "make_mla_decode_launch", mla::make_mla_decode_launch,
         "The first of the launches that mla_decode would run.");
}

}  // namespace pykernels::bindings
