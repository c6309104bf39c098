// Bindings of the CUDA path: the device that launches cubins, what the driver says of the machine,
// and the recording driver that tests install in its place.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "core/check.h"
#include "core/cuda_device.h"
#include "core/peer_memory.h"
#include "core/recording_driver.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

std::unique_ptr<RecordingDriver> make_recording_driver(
    Device* target, int num_devices, int driver_version, const std::string& name, int num_sms,
    std::pair<int, int> compute_capability, uint32_t max_shared_bytes_per_block,
    uint32_t max_cluster, bool peer_access, bool collects) {
  const auto [major, minor] = compute_capability;
  return std::make_unique<RecordingDriver>(
      RecordingOptions{num_devices,
                       driver_version,
                       max_cluster,
                       peer_access,
                       collects,
                       {name, num_sms, major, minor, max_shared_bytes_per_block}},
      target);
}

/// What there is, without an error where there is nothing.
py::dict driver_info() {
  py::dict info;
  info["error"] = py::none();
  info["version"] = py::none();
  py::list devices;
  try {
    const auto runtime = CudaRuntime::current();
    info["version"] = runtime->driver_version();
    for (int i = 0; i < runtime->num_devices(); ++i) {
      devices.append(py::cast(runtime->device_properties(i)));
    }
  } catch (const EnvironmentError& error) {
    info["error"] = error.what();
  }
  info["devices"] = devices;
  return info;
}

void bind_recording_driver(py::module_& module) {
  py::class_<RecordedLaunch>(module, "RecordedLaunch", "A launch as cuLaunchKernelEx received it.")
      .def_readonly("launch", &RecordedLaunch::launch)
      .def_readonly("device_index", &RecordedLaunch::device_index)
      .def_readonly("stream", &RecordedLaunch::stream)
      .def_readonly("captured", &RecordedLaunch::captured)
      .def_readonly("process", &RecordedLaunch::process);
  py::class_<RecordingDriver>(
      module, "RecordingDriver",
      "A CUDA driver for tests, installed for the process until it is closed: checks and records "
      "launches, and hands them to `target` (an EmulatedDevice) if one is given. A context "
      "manager.")
      .def(py::init(&make_recording_driver), py::arg("target") = nullptr, py::kw_only(),
           py::arg("num_devices") = 1, py::arg("driver_version") = 13000,
           py::arg("name") = "NVIDIA H200 (recording driver)", py::arg("num_sms") = 132,
           py::arg("compute_capability") = std::pair(9, 0),
           py::arg("max_shared_bytes_per_block") = 232448, py::arg("max_cluster") = 8,
           py::arg("peer_access") = true, py::arg("collects") = false, py::keep_alive<1, 2>())
      .def("close", &RecordingDriver::uninstall)
      .def("__enter__", [](RecordingDriver& driver) -> RecordingDriver& { return driver; })
      .def("__exit__", [](RecordingDriver& driver, const py::args&) { driver.uninstall(); })
      .def("register_memory", &RecordingDriver::register_memory, py::arg("address"),
           py::arg("bytes"), py::arg("name"),
           "Launches may touch the registered memory only, instead of all addresses.")
      .def("create_stream", &RecordingDriver::create_stream, py::arg("device_index"))
      .def("fail", &RecordingDriver::fail, py::arg("function"), py::arg("error"),
           "Calls of this driver function return the error from now on; 0 ends that.")
      .def("begin_capture", &RecordingDriver::begin_capture, py::arg("stream"))
      .def("join_capture", &RecordingDriver::join_capture, py::arg("stream"),
           "Captures this stream as well, as its wait for the captured one does.")
      .def("end_capture", &RecordingDriver::end_capture)
      .def("replay", &RecordingDriver::replay, ReleaseGil(), "Runs the captured launches.")
      .def_property_readonly("num_collected", &RecordingDriver::num_collected)
      .def("wait_stream", &RecordingDriver::wait_stream, py::arg("waiting"), py::arg("awaited"),
           py::arg("num_collected"),
           "What the waiting stream gets from now on is behind what the awaited one had then.")
      .def("run_collected", &RecordingDriver::run_collected, ReleaseGil(),
           "With collects=True: runs the launches so far, each behind the one before it in its "
           "stream.")
      .def("set_process", &RecordingDriver::set_process, py::arg("process"),
           "Calls of this thread come from this process, with memory of its own; 0 at first.")
      .def_property_readonly("violations", &RecordingDriver::violations,
                             "What was done that the real driver leaves undefined.")
      .def("set_current_device", &RecordingDriver::set_current_device, py::arg("device_index"),
           "Makes a device current in this thread; -1 for none.")
      .def("current_device", &RecordingDriver::current_device)
      .def("clear_launches", &RecordingDriver::clear_launches)
      .def_property_readonly("launches", &RecordingDriver::launches)
      .def_property_readonly("calls", &RecordingDriver::calls)
      .def("max_dynamic_shared_bytes", &RecordingDriver::max_dynamic_shared_bytes,
           py::arg("kernel"), py::arg("device_index"));
}

cuda::IpcMemHandle to_handle(const std::string& bytes) {
  cuda::IpcMemHandle handle;
  PK_CHECK(bytes.size() == sizeof(handle.bytes), "a handle has ", sizeof(handle.bytes),
           " bytes, got ", bytes.size());
  std::memcpy(handle.bytes, bytes.data(), sizeof(handle.bytes));
  return handle;
}

void bind_peer_memory(py::module_& module) {
  py::class_<PeerMemory>(module, "PeerMemory",
                         "Memory of a GPU, zeroed, that other processes open by its handle; freed "
                         "with the object.")
      .def(py::init<int, uint64_t, uint64_t>(), py::arg("device_index"), py::arg("bytes"),
           py::arg("stream") = 0, ReleaseGil())
      .def_property_readonly("address", &PeerMemory::address)
      .def_property_readonly("bytes", &PeerMemory::bytes)
      .def_property_readonly("device_index", &PeerMemory::device_index)
      .def(
          "handle",
          [](const PeerMemory& memory) {
            const cuda::IpcMemHandle handle = memory.handle();
            return py::bytes(handle.bytes, sizeof(handle.bytes));
          },
          "The 64 bytes that another process opens.")
      .def("zero", &PeerMemory::zero, py::arg("stream"), ReleaseGil(),
           "Zeroes it on the stream, and waits for that.")
      .def("close", &PeerMemory::close, ReleaseGil(),
           "Frees it, once the kernels have ended that use it. No peer may have it mapped.");
  py::class_<MappedPeer>(module, "MappedPeer",
                         "Memory of another process, mapped for the kernels of a GPU of this one.")
      .def(py::init([](int device_index, const py::bytes& handle) {
             const cuda::IpcMemHandle opened = to_handle(handle);
             const py::gil_scoped_release release;
             return std::make_unique<MappedPeer>(device_index, opened);
           }),
           py::arg("device_index"), py::arg("handle"))
      .def_property_readonly("address", &MappedPeer::address)
      .def_property_readonly("device_index", &MappedPeer::device_index)
      .def("close", &MappedPeer::close, ReleaseGil(), "Unmaps it.");
  module.def("can_access_peer", &can_access_peer, py::arg("device_index"), py::arg("peer_index"),
             ReleaseGil(), "Whether kernels on one GPU can reach memory of the other.");
}

}  // namespace

void bind_cuda(py::module_& module) {
  py::class_<CudaDevice, Device>(
      module, "CudaDevice",
      "Launches on a GPU's stream; raises RuntimeError if the GPU or the "
      "driver cannot run the kernels.")
      .def(py::init<int, uint64_t>(), py::arg("device_index"), py::arg("stream"))
      .def_property_readonly("device_index", &CudaDevice::device_index)
      .def_property_readonly("stream", &CudaDevice::stream);
  module.def("driver_info", &driver_info,
             "{'version': int or None, 'devices': [DeviceProperties], 'error': str or None}: what "
             "the CUDA driver says of this machine.");
  module.def("check_errors", &CudaRuntime::check_errors, py::arg("device_index"), ReleaseGil(),
             "Waits for the work of a GPU, or with None of all that were used, and raises "
             "ValueError with an error that a kernel left there.");
  bind_peer_memory(module);
  bind_recording_driver(module);
}

}  // namespace pykernels::bindings
