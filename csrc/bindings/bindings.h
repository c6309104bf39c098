// One function per area; each adds its part to pykernels._C. bind_core comes first: it registers
// the types that the others take (Device, TensorView, Launch).
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/tensor_view_caster.h"

namespace pykernels::bindings {

void bind_core(pybind11::module_& module);
void bind_cuda(pybind11::module_& module);
void bind_gemm(pybind11::module_& module);
/// Python's warning for a GPU that there are no constants for. The GIL must be held.
void warn_of_unknown_gpu();
void bind_grouped_gemm(pybind11::module_& module);
void bind_mla(pybind11::module_& module);
void bind_mla_plan(pybind11::module_& module);
void bind_mla_cache(pybind11::module_& module);
void bind_moe(pybind11::module_& module);
void bind_quantize(pybind11::module_& module);
void bind_emulator(pybind11::module_& module);
/// Takes the submodule `emulator`.
void bind_numerics(pybind11::module_& module);

}  // namespace pykernels::bindings
