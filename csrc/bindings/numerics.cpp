// Python's view of the emulator's arithmetic, for tests: `pykernels._C.emulator.multiply_fp8` and
// friends on NumPy arrays.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/check.h"
#include "emulator/numerics/arithmetic.h"
#include "emulator/numerics/convert.h"
#include "emulator/numerics/fp8.h"
#include "emulator/numerics/wide.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

using emulator::AccumulatorTile;
using emulator::FloatFormat;
using emulator::Fp8Operand;
using emulator::Fp8Type;
using emulator::Rounding;
using emulator::WideOperand;
using emulator::WideType;
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

/// Implementations of one product that this CPU runs, by name.
template <typename Multiply>
using Paths = std::vector<std::pair<std::string, Multiply*>>;

Paths<decltype(emulator::multiply_fp8)> fp8_paths() {
  Paths<decltype(emulator::multiply_fp8)> paths = {{"auto", emulator::multiply_fp8},
                                                   {"scalar", emulator::multiply_fp8_scalar}};
  if (emulator::has_fp8_avx2()) paths.emplace_back("avx2", emulator::multiply_fp8_avx2);
  if (emulator::has_fp8_avx512()) paths.emplace_back("avx512", emulator::multiply_fp8_avx512);
  return paths;
}

Paths<decltype(emulator::multiply_wide)> wide_paths() {
  Paths<decltype(emulator::multiply_wide)> paths = {{"auto", emulator::multiply_wide},
                                                    {"scalar", emulator::multiply_wide_scalar}};
  if (emulator::has_wide_avx2()) paths.emplace_back("avx2", emulator::multiply_wide_avx2);
  return paths;
}

template <typename Multiply>
std::vector<std::string> names(const Paths<Multiply>& paths) {
  std::vector<std::string> names;
  for (const auto& [name, multiply] : paths) names.push_back(name);
  return names;
}

template <typename Multiply>
Multiply* find_path(const Paths<Multiply>& paths, const std::string& name) {
  const auto path = std::find_if(paths.begin(), paths.end(),
                                 [&](const auto& candidate) { return candidate.first == name; });
  PK_CHECK(path != paths.end(), "the path must be one that this CPU runs, got ", name);
  return path->second;
}

Words multiply_fp8(const Words& d, const Bytes& a, const Bytes& b, const std::string& a_type,
                   const std::string& b_type, bool scale_d, const std::string& path) {
  PK_CHECK(a.ndim() == 2 && b.ndim() == 2 && a.shape(1) == b.shape(1) &&
               a.shape(1) % emulator::kFp8StepBytes == 0,
           "a and b must be [64, k] and [n, k] with k a multiple of 32");
  check_tile(d, a.shape(0), b.shape(0));
  auto* multiply = find_path(fp8_paths(), path);
  Fragments fragments(d);
  const auto pitch = static_cast<size_t>(a.shape(1));
  for (size_t k = 0; k < pitch; k += emulator::kFp8StepBytes) {
    multiply(fragments.tile(), Fp8Operand{a.data() + k, pitch, fp8_type(a_type)},
             Fp8Operand{b.data() + k, pitch, fp8_type(b_type)}, scale_d || k != 0);
  }
  return fragments.row_major();
}

/// k steps of 32 bytes, with `step(tile, a, b, scale_d)` for each.
template <typename Step>
Words multiply_steps(const Words& d, const Bytes& a, const Bytes& b, Step step) {
  PK_CHECK(a.ndim() == 2 && b.ndim() == 2 && a.shape(1) == b.shape(1) &&
               a.shape(1) % emulator::kFp8StepBytes == 0,
           "a and b must be [64, bytes] and [n, bytes] with bytes a multiple of 32");
  check_tile(d, a.shape(0), b.shape(0));
  Fragments fragments(d);
  const auto pitch = static_cast<size_t>(a.shape(1));
  for (size_t k = 0; k < pitch; k += emulator::kFp8StepBytes) {
    step(fragments.tile(), WideOperand{a.data() + k, pitch}, WideOperand{b.data() + k, pitch});
  }
  return fragments.row_major();
}

Words multiply_wide(const Words& d, const Bytes& a, const Bytes& b, const std::string& type,
                    const std::string& path) {
  auto* multiply = find_path(wide_paths(), path);
  PK_CHECK(type == "f16" || type == "bf16" || type == "tf32",
           "the type must be f16, bf16 or tf32, got ", type);
  const WideType wide = type == "f16"    ? WideType::kF16
                        : type == "bf16" ? WideType::kBf16
                                         : WideType::kTf32;
  return multiply_steps(d, a, b, [&](AccumulatorTile tile, WideOperand a_step, WideOperand b_step) {
    multiply(tile, a_step, b_step, wide, true);
  });
}

Words multiply_int8(const Words& d, const Bytes& a, const Bytes& b, bool a_signed, bool b_signed,
                    bool satfinite) {
  return multiply_steps(d, a, b, [&](AccumulatorTile tile, WideOperand a_step, WideOperand b_step) {
    emulator::multiply_int8(tile, a_step, b_step, a_signed, b_signed, satfinite, true);
  });
}

Rounding rounding_mode(const std::string& name) {
  if (name == "rn") return Rounding::kRn;
  if (name == "rz") return Rounding::kRz;
  if (name == "rm") return Rounding::kRm;
  if (name == "rp") return Rounding::kRp;
  PK_CHECK(name == "rna", "the rounding must be rn, rz, rm, rp or rna, got ", name);
  return Rounding::kRna;
}

FloatFormat float_format(const std::string& name) {
  if (name == "f32") return emulator::kFormatF32;
  if (name == "tf32") return emulator::kFormatTf32;
  if (name == "bf16") return emulator::kFormatBf16;
  if (name == "f16") return emulator::kFormatF16;
  if (name == "e5m2") return emulator::kFormatE5m2;
  PK_CHECK(name == "e4m3", "the format must be f32, tf32, bf16, f16, e5m2 or e4m3, got ", name);
  return emulator::kFormatE4m3;
}

uint32_t encode(double value, const std::string& format, const std::string& rounding,
                bool satfinite, bool relu) {
  return emulator::encode(value, float_format(format), {rounding_mode(rounding), satfinite, relu});
}

double decode(uint32_t bits, const std::string& format) {
  return emulator::decode(bits, float_format(format));
}

uint32_t convert_bits(uint32_t bits, const std::string& name) {
  if (name == "f16_to_f32") return emulator::f16_to_f32(bits);
  if (name == "bf16_to_f32") return emulator::bf16_to_f32(bits);
  if (name == "e4m3_to_f16") return emulator::e4m3_to_f16(bits);
  if (name == "e5m2_to_f16") return emulator::e5m2_to_f16(bits);
  PK_CHECK(name == "f32_to_bf16_rn", "unknown conversion ", name);
  return emulator::f32_to_bf16_rn(bits);
}

uint32_t arithmetic_f32(uint32_t a, uint32_t b, uint32_t c, const std::string& operation,
                        const std::string& rounding, bool ftz) {
  const Rounding mode = rounding_mode(rounding);
  if (operation == "add") return emulator::add_f32(a, b, mode, ftz);
  if (operation == "mul") return emulator::mul_f32(a, b, mode, ftz);
  if (operation == "div") return emulator::div_f32(a, b, mode, ftz);
  if (operation == "sqrt") return emulator::sqrt_f32(a, mode, ftz);
  PK_CHECK(operation == "fma", "the operation must be add, mul, div, sqrt or fma, got ", operation);
  return emulator::fma_f32(a, b, c, mode, ftz);
}

double arithmetic_f64(double a, double b, double c, const std::string& operation,
                      const std::string& rounding) {
  const Rounding mode = rounding_mode(rounding);
  if (operation == "add") return emulator::add_f64(a, b, mode);
  if (operation == "mul") return emulator::mul_f64(a, b, mode);
  if (operation == "div") return emulator::div_f64(a, b, mode);
  if (operation == "sqrt") return emulator::sqrt_f64(a, mode);
  PK_CHECK(operation == "fma", "the operation must be add, mul, div, sqrt or fma, got ", operation);
  return emulator::fma_f64(a, b, c, mode);
}

uint32_t arithmetic_half(uint32_t a, uint32_t b, uint32_t c, const std::string& operation,
                         const std::string& format) {
  if (operation == "add") return emulator::add_half(a, b, float_format(format));
  if (operation == "mul") return emulator::mul_half(a, b, float_format(format));
  PK_CHECK(operation == "fma", "the operation must be add, mul or fma, got ", operation);
  return emulator::fma_half(a, b, c, float_format(format));
}

/// 32 lanes: the vector form of fma.rn.f32.
Words fma_lanes(const Words& a, const Words& b, const Words& c) {
  constexpr py::ssize_t kLanes = 32;
  PK_CHECK(a.size() == kLanes && b.size() == kLanes && c.size() == kLanes,
           "a, b and c must have 32 elements");
  Words d(kLanes);
  emulator::fma_f32_lanes(a.data(), b.data(), c.data(), d.mutable_data());
  return d;
}

uint32_t approximate_f32(uint32_t a, uint32_t b, const std::string& function, bool ftz) {
  if (function == "ex2") return emulator::ex2_approx(a, ftz);
  if (function == "lg2") return emulator::lg2_approx(a, ftz);
  if (function == "rcp") return emulator::rcp_approx(a, ftz);
  if (function == "rsqrt") return emulator::rsqrt_approx(a, ftz);
  if (function == "sqrt") return emulator::sqrt_approx(a, ftz);
  if (function == "sin") return emulator::sin_approx(a, ftz);
  if (function == "cos") return emulator::cos_approx(a, ftz);
  if (function == "tanh") return emulator::tanh_approx(a);
  if (function == "div") return emulator::div_approx(a, b, ftz);
  PK_CHECK(function == "div_full", "unknown function ", function);
  return emulator::div_full(a, b, ftz);
}

uint64_t float_to_integer(double value, const std::string& rounding, int bits, bool is_signed,
                          bool source_is_f64) {
  return emulator::float_to_integer(value, rounding_mode(rounding), bits, is_signed, source_is_f64);
}

uint32_t integer_to_float(uint64_t value, bool is_signed, const std::string& format,
                          const std::string& rounding) {
  return emulator::integer_to_float(value, is_signed, float_format(format),
                                    rounding_mode(rounding));
}

double integer_to_f64(uint64_t value, bool is_signed, const std::string& rounding) {
  return emulator::integer_to_f64(value, is_signed, rounding_mode(rounding));
}

void bind_scalar_functions(py::module_& module) {
  // Bit patterns in and out; py::vectorize would drop the names of modes, so tests map over arrays.
  module.def("encode", &encode, py::arg("value"), py::arg("format"), py::arg("rounding") = "rn",
             py::arg("satfinite") = false, py::arg("relu") = false);
  module.def("decode", &decode, py::arg("bits"), py::arg("format"));
  module.def("convert_bits", &convert_bits, py::arg("bits"), py::arg("name"));
  module.def("arithmetic_f32", &arithmetic_f32, py::arg("a"), py::arg("b"), py::arg("c"),
             py::arg("operation"), py::arg("rounding") = "rn", py::arg("ftz") = false);
  module.def("arithmetic_f64", &arithmetic_f64, py::arg("a"), py::arg("b"), py::arg("c"),
             py::arg("operation"), py::arg("rounding") = "rn");
  module.def("arithmetic_half", &arithmetic_half, py::arg("a"), py::arg("b"), py::arg("c"),
             py::arg("operation"), py::arg("format"));
  module.def("fma_lanes", &fma_lanes, py::arg("a"), py::arg("b"), py::arg("c"));
  module.def("approximate_f32", &approximate_f32, py::arg("a"), py::arg("b"), py::arg("function"),
             py::arg("ftz") = false);
  module.def("float_to_integer", &float_to_integer, py::arg("value"), py::arg("rounding"),
             py::arg("bits"), py::arg("is_signed"), py::arg("source_is_f64"));
  module.def("integer_to_float", &integer_to_float, py::arg("value"), py::arg("is_signed"),
             py::arg("format"), py::arg("rounding") = "rn");
  module.def("integer_to_f64", &integer_to_f64, py::arg("value"), py::arg("is_signed"),
             py::arg("rounding") = "rn");
}

}  // namespace

/// Adds the functions to `pykernels._C.emulator`.
void bind_numerics(py::module_& module) {
  module.def(
      "fp8_paths", [] { return names(fp8_paths()); },
      "Implementations of multiply_fp8 that this CPU runs.");
  module.def(
      "wide_paths", [] { return names(wide_paths()); },
      "Implementations of multiply_wide that this CPU runs.");
  module.def(
      "multiply_fp8", &multiply_fp8, py::arg("d"), py::arg("a"), py::arg("b"),
      py::arg("a_type") = "e4m3", py::arg("b_type") = "e4m3", py::arg("scale_d") = true,
      py::arg("path") = "auto",
      "Returns a @ b.T + d as FP8 WGMMAs of k = 32 compute it; d and the result are FP32 bit "
      "patterns [64, n].");
  module.def("multiply_wide", &multiply_wide, py::arg("d"), py::arg("a"), py::arg("b"),
             py::arg("type"), py::arg("path") = "auto",
             "The same for f16, bf16 and tf32; a and b are bytes, 32 a step and row.");
  module.def("multiply_int8", &multiply_int8, py::arg("d"), py::arg("a"), py::arg("b"),
             py::arg("a_signed") = true, py::arg("b_signed") = true, py::arg("satfinite") = false);
  bind_scalar_functions(module);
}

}  // namespace pykernels::bindings
