// Bindings of csrc/core: the registry of kernels, tensors as the host path sees them, launches as
// values.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/check.h"
#include "core/device.h"
#include "core/launch.h"
#include "core/registry.h"
#include "core/tensor_map.h"
#include "core/tensor_view.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

TensorView make_tensor_view(uint64_t address, const py::sequence& sizes,
                            const py::sequence& strides, const std::string& dtype) {
  const size_t rank = sizes.size();
  PK_CHECK(rank <= TensorView::kMaxRank, "a tensor must have at most ", TensorView::kMaxRank,
           " dimensions, got ", rank);
  PK_CHECK(strides.size() == rank, "a tensor of ", rank,
           " dimensions must have as many strides, got ", strides.size());
  TensorView view;
  view.address = address;
  view.dtype = data_type_from_name(dtype);
  view.rank = static_cast<int>(rank);
  for (size_t i = 0; i < rank; ++i) {
    view.sizes[i] = sizes[i].cast<int64_t>();
    view.strides[i] = strides[i].cast<int64_t>();
  }
  check_not_negative(view);
  return view;
}

py::tuple to_tuple(const int64_t* values, int count) {
  py::tuple result(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) result[static_cast<size_t>(i)] = py::int_(values[i]);
  return result;
}

py::tuple to_tuple(const Dim3& dim) { return py::make_tuple(dim.x, dim.y, dim.z); }

/// A cubin loads on every driver of the major version of the ptxas that made it, "13.0".
int min_driver_version(const std::string& ptxas) {
  const int major = std::atoi(ptxas.c_str());
  PK_CHECK(major >= 12, "ptxas must be a version from 12.0, got ", ptxas);
  return 1000 * major;
}

void bind_registry(py::module_& module) {
  py::class_<KernelInfo>(module, "KernelInfo", "A kernel of the package and what is known of it.")
      .def_readonly("name", &KernelInfo::name)
      .def_readonly("family", &KernelInfo::family)
      .def_readonly("config", &KernelInfo::config)
      .def_readonly("threads", &KernelInfo::threads)
      .def_readonly("registers", &KernelInfo::registers)
      .def_readonly("dynamic_shared_bytes", &KernelInfo::dynamic_shared_bytes)
      .def_readonly("param_bytes", &KernelInfo::param_bytes)
      .def_readonly("ptx_path", &KernelInfo::ptx_path)
      .def_readonly("cubin_path", &KernelInfo::cubin_path)
      .def_readonly("min_driver_version", &KernelInfo::min_driver_version);
  module.def(
      "register_kernel",
      [](std::string name, std::string family, std::map<std::string, int64_t> config,
         uint32_t threads, uint32_t registers, uint32_t dynamic_shared_bytes, uint32_t param_bytes,
         std::string ptx_path, std::string cubin_path, const std::string& ptxas) {
        Registry::instance().add({std::move(name), std::move(family), std::move(config), threads,
                                  registers, dynamic_shared_bytes, param_bytes, std::move(ptx_path),
                                  std::move(cubin_path), min_driver_version(ptxas)});
      },
      py::kw_only(), py::arg("name"), py::arg("family"), py::arg("config"), py::arg("threads"),
      py::arg("registers"), py::arg("dynamic_shared_bytes"), py::arg("param_bytes"),
      py::arg("ptx_path"), py::arg("cubin_path"), py::arg("ptxas") = "13.0",
      "Adds a kernel to the registry, or replaces the one of this name.");
  module.def(
      "registered_kernels",
      [] {
        std::vector<KernelInfo> kernels;
        for (const KernelInfo* info : Registry::instance().all()) kernels.push_back(*info);
        return kernels;
      },
      "All registered kernels, in the order of their names.");
}

void bind_tensor_view(py::module_& module) {
  py::class_<TensorView>(
      module, "TensorView",
      "A tensor as kernels take it: address, type, sizes and strides in elements.")
      .def(py::init(&make_tensor_view), py::arg("address"), py::arg("sizes"), py::arg("strides"),
           py::arg("dtype"))
      .def_readonly("address", &TensorView::address)
      .def_property_readonly(
          "dtype", [](const TensorView& view) { return std::string(data_type_name(view.dtype)); })
      .def_property_readonly("sizes",
                             [](const TensorView& view) { return to_tuple(view.sizes, view.rank); })
      .def_property_readonly(
          "strides", [](const TensorView& view) { return to_tuple(view.strides, view.rank); })
      .def_property_readonly("spanned_bytes", &TensorView::spanned_bytes)
      .def("__repr__",
           [](const TensorView& view) { return concat("TensorView(", view.describe(), ")"); });
  module.def(
      "as_tensor_view", [](const TensorView& view) { return view; }, py::arg("parts"),
      "The view that other functions make of these parts.");
}

py::list to_list(const auto* values, uint32_t count) {
  py::list result;
  for (uint32_t i = 0; i < count; ++i) result.append(values[i]);
  return result;
}

py::dict decode_tensor_map(const std::string& bytes) {
  TensorMap map;
  PK_CHECK(bytes.size() == sizeof(map.bytes), "a tensor map has ", sizeof(map.bytes),
           " bytes, got ", bytes.size());
  std::memcpy(map.bytes, bytes.data(), sizeof(map.bytes));
  const TensorMapFields fields = decode_emulated(map);
  py::dict result;
  result["type"] = static_cast<int>(fields.type);
  result["address"] = fields.address;
  result["dims"] = to_list(fields.dims, fields.rank);
  result["strides"] = to_list(fields.strides, fields.rank - 1);
  result["box"] = to_list(fields.box, fields.rank);
  result["element_strides"] = to_list(fields.element_strides, fields.rank);
  result["interleave"] = static_cast<int>(fields.interleave);
  result["swizzle"] = static_cast<int>(fields.swizzle);
  result["l2_promotion"] = static_cast<int>(fields.l2_promotion);
  result["fill"] = static_cast<int>(fields.fill);
  return result;
}

using Sizes = std::array<uint32_t, 3>;

/// (address, bytes, name)
using MemoryTuple = std::tuple<uint64_t, uint64_t, std::string>;

Dim3 to_dim3(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2]}; }

/// The same text for as long as the process lives, as a MemoryRange needs it.
const char* kept_name(const std::string& name) {
  static auto* names = new std::set<std::string>;  // under the interpreter lock
  return names->insert(name).first->c_str();
}

Launch make_launch(std::string kernel, const Sizes& grid, const Sizes& block,
                   const py::bytes& arguments, const Sizes& cluster, uint32_t dynamic_shared_bytes,
                   bool programmatic_dependent, const std::vector<MemoryTuple>& memory,
                   uint32_t rank, bool awaits_others) {
  Launch launch;
  launch.kernel = std::move(kernel);
  launch.grid = to_dim3(grid);
  launch.block = to_dim3(block);
  launch.cluster = to_dim3(cluster);
  launch.dynamic_shared_bytes = dynamic_shared_bytes;
  launch.programmatic_dependent = programmatic_dependent;
  for (const char byte : std::string_view(arguments)) {
    launch.arguments.push_back(static_cast<std::byte>(byte));
  }
  for (const auto& [address, bytes, name] : memory) {
    launch.memory.push_back({address, bytes, kept_name(name)});
  }
  launch.rank = rank;
  launch.awaits_others = awaits_others;
  return launch;
}

void bind_launch(py::module_& module) {
  py::class_<Launch>(module, "Launch", "A kernel launch as a plain value.")
      .def(py::init(&make_launch), py::arg("kernel"), py::arg("grid"), py::arg("block"),
           py::arg("arguments"), py::kw_only(), py::arg("cluster") = py::make_tuple(1, 1, 1),
           py::arg("dynamic_shared_bytes") = 0, py::arg("programmatic_dependent") = false,
           py::arg("memory") = py::tuple(), py::arg("rank") = 0, py::arg("awaits_others") = false)
      .def_readonly("kernel", &Launch::kernel)
      .def_property_readonly("grid", [](const Launch& launch) { return to_tuple(launch.grid); })
      .def_property_readonly("block", [](const Launch& launch) { return to_tuple(launch.block); })
      .def_property_readonly("cluster",
                             [](const Launch& launch) { return to_tuple(launch.cluster); })
      .def_readonly("dynamic_shared_bytes", &Launch::dynamic_shared_bytes)
      .def_readonly("programmatic_dependent", &Launch::programmatic_dependent)
      .def_readonly("rank", &Launch::rank)
      .def_readonly("awaits_others", &Launch::awaits_others)
      .def_property_readonly("arguments",
                             [](const Launch& launch) {
                               return py::bytes(
                                   reinterpret_cast<const char*>(launch.arguments.data()),
                                   launch.arguments.size());
                             })
      .def_property_readonly(
          "memory",
          [](const Launch& launch) {
            py::list ranges;
            for (const MemoryRange& range : launch.memory) {
              ranges.append(py::make_tuple(range.address, range.bytes, range.name));
            }
            return ranges;
          })
      .def("__repr__", py::overload_cast<const Launch&>(&describe));
  module.def("decode_tensor_map", &decode_tensor_map, py::arg("bytes"),
             "The arguments of cuTensorMapEncodeTiled that the 128 bytes of an emulated tensor map "
             "hold, as the driver numbers them.");
}

void bind_device(py::module_& module) {
  py::class_<DeviceProperties>(module, "DeviceProperties", "What a device is and has.")
      .def_readonly("name", &DeviceProperties::name)
      .def_readonly("num_sms", &DeviceProperties::num_sms)
      .def_property_readonly("compute_capability",
                             [](const DeviceProperties& properties) {
                               return py::make_tuple(properties.compute_capability_major,
                                                     properties.compute_capability_minor);
                             })
      .def_readonly("max_shared_bytes_per_block", &DeviceProperties::max_shared_bytes_per_block);
  py::class_<Device>(module, "Device", "What runs a launch: a GPU and stream, or the emulator.")
      .def_property_readonly("properties", &Device::properties)
      .def(
          "max_active_clusters",
          [](Device& device, const std::string& kernel, const Sizes& cluster) {
            return device.max_active_clusters(Registry::instance().get(kernel), to_dim3(cluster));
          },
          py::arg("kernel"), py::arg("cluster"),
          "How many clusters of this size of a kernel's CTAs the device holds at a time.")
      .def("run", &Device::run, py::arg("launch"), py::call_guard<py::gil_scoped_release>())
      .def(
          "run_together", &Device::run_together, py::arg("launches"),
          py::call_guard<py::gil_scoped_release>(),
          "Runs launches that wait for one another, each on a stream of its own and the GPU of its "
          "rank: in the emulator only, a GPU takes one.")
      .def("error_record", &Device::error_record, py::call_guard<py::gil_scoped_release>(),
           "The address at which kernels leave the error that they found.")
      .def(
          "take_error",
          [](Device& device) -> std::optional<std::string> {
            const auto error = device.take_error();
            return error ? std::optional(describe(*error)) : std::nullopt;
          },
          py::call_guard<py::gil_scoped_release>(),
          "Waits for all work of the device; the error that its kernels left, which is then "
          "forgotten, or None.");
}

}  // namespace

void bind_core(py::module_& module) {
  bind_registry(module);
  bind_tensor_view(module);
  bind_launch(module);
  bind_device(module);
}

}  // namespace pykernels::bindings
