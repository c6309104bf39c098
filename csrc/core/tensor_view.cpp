// Names and sizes of the element types, and the extent of a strided tensor.
#include "core/tensor_view.h"

#include <array>
#include <utility>

#include "core/check.h"

namespace pykernels {
namespace {

struct DataTypeRow {
  DataType dtype;
  std::string_view name;
  uint32_t bytes;
};

constexpr std::array<DataTypeRow, 10> kDataTypes = {{
    {DataType::kFloat8E4m3, "float8_e4m3fn", 1},
    {DataType::kFloat8E5m2, "float8_e5m2", 1},
    {DataType::kBfloat16, "bfloat16", 2},
    {DataType::kFloat16, "float16", 2},
    {DataType::kFloat32, "float32", 4},
    {DataType::kFloat64, "float64", 8},
    {DataType::kUint8, "uint8", 1},
    {DataType::kInt8, "int8", 1},
    {DataType::kInt32, "int32", 4},
    {DataType::kInt64, "int64", 8},
}};

constexpr bool rows_in_order_of_values() {
  for (size_t i = 0; i < kDataTypes.size(); ++i) {
    if (static_cast<size_t>(kDataTypes[i].dtype) != i) return false;
  }
  return true;
}
static_assert(rows_in_order_of_values());

const DataTypeRow& row_of(DataType dtype) {
  const auto index = static_cast<size_t>(dtype);
  PK_CHECK(index < kDataTypes.size(), "unknown data type, value ", index);
  return kDataTypes[index];
}

void append_list(std::string& text, const int64_t* values, int count) {
  text += '[';
  for (int i = 0; i < count; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(values[i]);
  }
  text += ']';
}

}  // namespace

uint32_t element_bytes(DataType dtype) { return row_of(dtype).bytes; }

std::string_view data_type_name(DataType dtype) { return row_of(dtype).name; }

DataType data_type_from_name(std::string_view name) {
  for (const DataTypeRow& row : kDataTypes) {
    if (row.name == name) return row.dtype;
  }
  std::string known;
  for (const DataTypeRow& row : kDataTypes) known += concat(known.empty() ? "" : ", ", row.name);
  throw ArgumentError(concat("dtype must be one of ", known, ", got ", name));
}

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (int i = 0; i < rank; ++i) count *= sizes[i];
  return count;
}

uint64_t TensorView::spanned_bytes() const {
  uint64_t last = 0;
  for (int i = 0; i < rank; ++i) {
    if (sizes[i] == 0) return 0;
    last += static_cast<uint64_t>(sizes[i] - 1) * static_cast<uint64_t>(strides[i]);
  }
  return (last + 1) * element_bytes(dtype);
}

std::string TensorView::describe() const {
  std::string text(data_type_name(dtype));
  append_list(text, sizes, rank);
  text += " with strides ";
  append_list(text, strides, rank);
  return text;
}

}  // namespace pykernels
