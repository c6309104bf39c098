// Tensor maps and launches through the driver.
#include "core/cuda_device.h"

#include <cstdlib>
#include <cstring>
#include <string_view>

#include "core/check.h"

namespace pykernels {
namespace {

/// Asked at every launch, so that a program may switch it on and off.
bool is_debugging() {
  const char* value = std::getenv("PYKERNELS_DEBUG");
  return value != nullptr && std::string_view(value) == "1";
}

}  // namespace

CudaDevice::CudaDevice(int device_index, uint64_t stream)
    : runtime_(CudaRuntime::current()),
      context_(&runtime_->context(device_index)),
      stream_(stream) {}

TensorMap CudaDevice::encode_tensor_map(const TensorMapFields& fields) {
  check_tensor_map(fields);
  const CudaContext::Current current(*context_);
  const cuda::DriverTable& driver = context_->driver();
  // Not in the result itself: where a caller keeps it, compilers do not always align it.
  alignas(64) uint8_t bytes[sizeof(TensorMap)];
  const cuda::Result result = driver.tensor_map_encode_tiled(
      bytes, static_cast<int>(fields.type), fields.rank, reinterpret_cast<void*>(fields.address),
      fields.dims, fields.strides, fields.box, fields.element_strides,
      static_cast<int>(fields.interleave), static_cast<int>(fields.swizzle),
      static_cast<int>(fields.l2_promotion), static_cast<int>(fields.fill));
  check_result(driver, result, "cuTensorMapEncodeTiled");
  TensorMap map;
  std::memcpy(map.bytes, bytes, sizeof(bytes));
  return map;
}

int CudaDevice::max_active_clusters(const KernelInfo& kernel, Dim3 cluster) {
  return context_->max_active_clusters(kernel, cluster);
}

void CudaDevice::run(const Launch& launch) {
  const KernelInfo& kernel = Registry::instance().get(launch.kernel);
  PK_CHECK(launch.arguments.size() == kernel.param_bytes, "kernel ", kernel.name, " takes ",
           kernel.param_bytes, " bytes of arguments, got ", launch.arguments.size());
  PK_CHECK(launch.dynamic_shared_bytes <= kernel.dynamic_shared_bytes, "kernel ", kernel.name,
           " is loaded for at most ", kernel.dynamic_shared_bytes,
           " bytes of dynamic shared memory, got ", launch.dynamic_shared_bytes);
  cuda::LaunchAttribute attributes[2] = {};
  attributes[0].id = cuda::LaunchAttributeId::kClusterDimension;
  attributes[0].value.cluster = {launch.cluster.x, launch.cluster.y, launch.cluster.z};
  attributes[1].id = cuda::LaunchAttributeId::kProgrammaticStreamSerialization;
  attributes[1].value.programmatic_stream_serialization_allowed = 1;
  const auto stream = reinterpret_cast<cuda::Stream>(stream_);
  const cuda::LaunchConfig config = {launch.grid.x,
                                     launch.grid.y,
                                     launch.grid.z,
                                     launch.block.x,
                                     launch.block.y,
                                     launch.block.z,
                                     launch.dynamic_shared_bytes,
                                     stream,
                                     attributes,
                                     launch.programmatic_dependent ? 2u : 1u};
  // The driver copies the arguments before it returns; it takes them as non-const all the same.
  void* parameters[] = {const_cast<std::byte*>(launch.arguments.data())};
  const CudaContext::Current current(*context_);
  const cuda::DriverTable& driver = context_->driver();
  const cuda::Result result =
      driver.launch_kernel_ex(&config, context_->function(kernel), parameters, nullptr);
  if (result != cuda::kSuccess) {
    check_result(
        driver, result,
        concat("cuLaunchKernelEx of ", describe(launch), " on device ", context_->device_index()));
  }
  if (is_debugging() && !launch.awaits_others) {
    context_->check_error(context_->take_error(launch, stream));
  }
}

}  // namespace pykernels
