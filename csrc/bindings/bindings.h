// One function per area; each adds its part to pykernels._C. bind_core comes first: it registers the types
// that the others take (Device, TensorView, TensorMapFields, Launch).
#pragma once

#include <pybind11/pybind11.h>

namespace pykernels::bindings {

void bind_core(pybind11::module_& module);
void bind_quantize(pybind11::module_& module);

}  // namespace pykernels::bindings
