// Lets a function that takes a TensorView take a matrix as a tuple too: no object is made for it.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string_view>

#include "core/check.h"
#include "core/tensor_view.h"

namespace pykernels::bindings {

inline void check_not_negative(const TensorView& view) {
  for (int i = 0; i < view.rank; ++i) {
    PK_CHECK(view.sizes[i] >= 0 && view.strides[i] >= 0,
             "sizes and strides must not be negative, got size ", view.sizes[i], " and stride ",
             view.strides[i], " in dimension ", i);
  }
}

}  // namespace pykernels::bindings

namespace pybind11::detail {

/// The tuple is (address, rows, columns, row stride, column stride, dtype), as
/// pykernels.native.tensor_view makes it: strides in elements, dtype as in TensorView.
template <>
class type_caster<pykernels::TensorView> : public type_caster_base<pykernels::TensorView> {
 public:
  bool load(handle source, bool convert) {
    if (!PyTuple_CheckExact(source.ptr())) {
      return type_caster_base<pykernels::TensorView>::load(source, convert);
    }
    if (PyTuple_GET_SIZE(source.ptr()) != kNumItems) return false;
    matrix_.address = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(source.ptr(), 0));
    matrix_.rank = 2;
    matrix_.sizes[0] = integer(source, 1);
    matrix_.sizes[1] = integer(source, 2);
    matrix_.strides[0] = integer(source, 3);
    matrix_.strides[1] = integer(source, 4);
    Py_ssize_t length = 0;
    const char* dtype = PyErr_Occurred() == nullptr
                            ? PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(source.ptr(), 5), &length)
                            : nullptr;
    if (dtype == nullptr) {  // some item is of another type, or too large
      PyErr_Clear();
      return false;
    }
    matrix_.dtype =
        pykernels::data_type_from_name(std::string_view(dtype, static_cast<size_t>(length)));
    pykernels::bindings::check_not_negative(matrix_);
    value = &matrix_;
    return true;
  }

 private:
  static constexpr Py_ssize_t kNumItems = 6;

  static int64_t integer(handle tuple, Py_ssize_t index) {
    return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), index));
  }

  pykernels::TensorView matrix_;
};

}  // namespace pybind11::detail
