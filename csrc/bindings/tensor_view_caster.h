// Lets a function that takes a TensorView take its parts as a tuple too: no object is made for it.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
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

/// The stride of a dimension of size 1 says nothing; it becomes what would follow the dimensions
/// behind it, in elements that fill a multiple of 16 bytes whatever the type: all kernels take it.
inline void set_idle_strides(TensorView& view) {
  constexpr int64_t kRowElements = 16;
  int64_t behind = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    if (view.sizes[i] == 1) view.strides[i] = behind;
    // Overflows for no tensor that has memory; of those without, nothing is launched.
    const auto extent =
        static_cast<uint64_t>(view.strides[i]) * static_cast<uint64_t>(view.sizes[i]);
    behind = std::max<int64_t>(static_cast<int64_t>(extent), 1);
    behind = static_cast<int64_t>((static_cast<uint64_t>(behind) + kRowElements - 1) /
                                  kRowElements * kRowElements);
  }
}

}  // namespace pykernels::bindings

namespace pybind11::detail {

/// Two kinds of tuples, strides in elements, dtype as in TensorView. A matrix, as
/// pykernels.native.tensor_view makes it: (address, rows, columns, row stride, column stride,
/// dtype). Any tensor, as pykernels.native.tensor_parts makes it: (address, sizes, strides, dtype).
template <>
class type_caster<pykernels::TensorView> : public type_caster_base<pykernels::TensorView> {
 public:
  bool load(handle source, bool convert) {
    if (!PyTuple_CheckExact(source.ptr())) {
      return type_caster_base<pykernels::TensorView>::load(source, convert);
    }
    const bool loaded = PyTuple_GET_SIZE(source.ptr()) == kNumTensorItems ? load_tensor(source)
                                                                          : load_matrix(source);
    if (!loaded) {  // some item is of another type, or too large
      PyErr_Clear();
      return false;
    }
    pykernels::bindings::check_not_negative(view_);
    if (PyTuple_GET_SIZE(source.ptr()) == kNumTensorItems) {
      pykernels::bindings::set_idle_strides(view_);
    }
    value = &view_;
    return true;
  }

 private:
  static constexpr Py_ssize_t kNumMatrixItems = 6;
  static constexpr Py_ssize_t kNumTensorItems = 4;

  bool load_matrix(handle source) {
    if (PyTuple_GET_SIZE(source.ptr()) != kNumMatrixItems) return false;
    view_.rank = 2;
    view_.sizes[0] = integer(source, 1);
    view_.sizes[1] = integer(source, 2);
    view_.strides[0] = integer(source, 3);
    view_.strides[1] = integer(source, 4);
    return load_place(source, kNumMatrixItems - 1);
  }

  bool load_tensor(handle source) {
    const handle sizes = PyTuple_GET_ITEM(source.ptr(), 1);
    const handle strides = PyTuple_GET_ITEM(source.ptr(), 2);
    if (!PyTuple_Check(sizes.ptr()) || !PyTuple_Check(strides.ptr())) return false;
    const Py_ssize_t rank = PyTuple_GET_SIZE(sizes.ptr());
    if (rank > pykernels::TensorView::kMaxRank || PyTuple_GET_SIZE(strides.ptr()) != rank) {
      return false;
    }
    view_.rank = static_cast<int>(rank);
    for (Py_ssize_t i = 0; i < rank; ++i) {
      view_.sizes[i] = integer(sizes, i);
      view_.strides[i] = integer(strides, i);
    }
    return load_place(source, kNumTensorItems - 1);
  }

  /// The address, and the type at this place of the tuple; whether all integers were ones.
  bool load_place(handle source, Py_ssize_t dtype_index) {
    view_.address = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(source.ptr(), 0));
    if (PyErr_Occurred() != nullptr) return false;
    Py_ssize_t length = 0;
    const char* dtype =
        PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(source.ptr(), dtype_index), &length);
    if (dtype == nullptr) return false;
    view_.dtype =
        pykernels::data_type_from_name(std::string_view(dtype, static_cast<size_t>(length)));
    return true;
  }

  static int64_t integer(handle tuple, Py_ssize_t index) {
    return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), index));
  }

  pykernels::TensorView view_;
};

}  // namespace pybind11::detail
