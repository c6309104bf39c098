// The extension module pykernels._C: errors first, then every area.
#include <pybind11/pybind11.h>

#include <exception>

#include "bindings/bindings.h"
#include "core/check.h"

namespace py = pybind11;

namespace {

/// ArgumentError -> ValueError, EnvironmentError -> RuntimeError, for every function of the module.
void translate(std::exception_ptr pending) {
  try {
    if (pending) std::rethrow_exception(pending);
  } catch (const pykernels::ArgumentError& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const pykernels::EnvironmentError& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() =
      "The compiled part of pykernels: kernel registry, launches, devices and the emulator.";
  py::register_exception_translator(translate);
  pykernels::bindings::bind_core(module);
  pykernels::bindings::bind_cuda(module);
  pykernels::bindings::bind_gemm(module);
  pykernels::bindings::bind_grouped_gemm(module);
  pykernels::bindings::bind_mla(module);
  pykernels::bindings::bind_mla_plan(module);
  pykernels::bindings::bind_quantize(module);
  pykernels::bindings::bind_mla_cache(module);
  pykernels::bindings::bind_moe(module);
  pykernels::bindings::bind_emulator(module);
  pybind11::module_ emulator = module.attr("emulator");
  pykernels::bindings::bind_numerics(emulator);
}
