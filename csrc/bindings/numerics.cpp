// Python's view of the emulator's arithmetic, for tests: `pykernels._C.emulator.multiply_fp8` and
// friends on NumPy arrays.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/check.h"
#include "emulator/numerics/fp8.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

using emulator::AccumulatorTile;
using emulator::Fp8Operand;
using emulator::Fp8Type;
using Words = py::array_t<uint32_t, py::array::c_style>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

/// Row-major values in the registers of four warps.
class Fragments {
 public:
  explicit Fragments(const Words& values)
      : n_(static_cast<int>(values.shape(1))), lanes_(static_cast<size_t>(4 * n_ / 2) * 32) {
    for (size_t i = 0; i < lanes_.size(); i += 32) registers_.push_back(&lanes_[i]);
    const auto view = values.unchecked<2>();
    for (int row = 0; row < emulator::kTileRows; ++row) {
      for (int column = 0; column < n_; ++column) tile().at(row, column) = view(row, column);
    }
  }

  AccumulatorTile tile() { return {registers_.data(), n_}; }

  Words row_major() {
    Words values({emulator::kTileRows, n_});
    auto view = values.mutable_unchecked<2>();
    for (int row = 0; row < emulator::kTileRows; ++row) {
      for (int column = 0; column < n_; ++column) view(row, column) = tile().at(row, column);
    }
    return values;
  }

 private:
  int n_;
  std::vector<uint32_t> lanes_;
  std::vector<uint32_t*> registers_;
};

void check_tile(const Words& d, py::ssize_t a_rows, py::ssize_t b_rows) {
  PK_CHECK(d.ndim() == 2 && d.shape(0) == emulator::kTileRows && a_rows == emulator::kTileRows,
           "d and a must have 64 rows");
  PK_CHECK(d.shape(1) == b_rows, "d must have a column per row of b, got ", d.shape(1), " and ",
           b_rows);
  PK_CHECK(b_rows % 8 == 0 && b_rows >= 8 && b_rows <= emulator::kMaxTileColumns,
           "n must be a multiple of 8 from 8 to 256, got ", b_rows);
}

Fp8Type fp8_type(const std::string& name) {
  PK_CHECK(name == "e4m3" || name == "e5m2", "the type must be e4m3 or e5m2, got ", name);
  return name == "e4m3" ? Fp8Type::kE4m3 : Fp8Type::kE5m2;
}

Words multiply_fp8(const Words& d, const Bytes& a, const Bytes& b, const std::string& a_type,
                   const std::string& b_type, bool scale_d, const std::string& path) {
  PK_CHECK(a.ndim() == 2 && b.ndim() == 2 && a.shape(1) == b.shape(1) &&
               a.shape(1) % emulator::kFp8StepBytes == 0,
           "a and b must be [64, k] and [n, k] with k a multiple of 32");
  check_tile(d, a.shape(0), b.shape(0));
  PK_CHECK(path == "auto" || path == "scalar" || (path == "avx2" && emulator::has_fp8_avx2()),
           "the path must be one of available_paths(), got ", path);
  auto* multiply = path == "scalar" ? emulator::multiply_fp8_scalar
                   : path == "avx2" ? emulator::multiply_fp8_avx2
                                    : emulator::multiply_fp8;
  Fragments fragments(d);
  const auto pitch = static_cast<size_t>(a.shape(1));
  for (size_t k = 0; k < pitch; k += emulator::kFp8StepBytes) {
    multiply(fragments.tile(), Fp8Operand{a.data() + k, pitch, fp8_type(a_type)},
             Fp8Operand{b.data() + k, pitch, fp8_type(b_type)}, scale_d || k != 0);
  }
  return fragments.row_major();
}

std::vector<std::string> available_paths() {
  std::vector<std::string> paths = {"auto", "scalar"};
  if (emulator::has_fp8_avx2()) paths.emplace_back("avx2");
  return paths;
}

}  // namespace

/// Adds the functions to `pykernels._C.emulator`.
void bind_numerics(py::module_& module) {
  module.def("available_paths", &available_paths,
             "Implementations of multiply_fp8 that this CPU runs.");
  module.def("multiply_fp8", &multiply_fp8, py::arg("d"), py::arg("a"), py::arg("b"),
             py::arg("a_type") = "e4m3", py::arg("b_type") = "e4m3", py::arg("scale_d") = true,
             py::arg("path") = "auto",
             "Returns a @ b.T + d as FP8 WGMMAs of k = 32 compute it; d and the result are FP32 bit "
             "patterns [64, n].");
}

}  // namespace pykernels::bindings
