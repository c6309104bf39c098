// What the process holds of the driver: one runtime (function table, loaded cubins) and one context
// a GPU (functions ready to launch, occupancies). Made at first use, kept until the process ends.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/driver.h"
#include "core/launch.h"
#include "core/registry.h"

namespace pykernels {

class CudaContext;

/// The driver in use and the cubins that it has loaded: each once in the process, for all GPUs.
class CudaRuntime : public std::enable_shared_from_this<CudaRuntime> {
 public:
  explicit CudaRuntime(const cuda::DriverTable& driver);

  /// That of the installed driver, else of libcuda.so.1. Throws EnvironmentError if there is none.
  static std::shared_ptr<CudaRuntime> current();

  /// Replaces the driver for calls that start from now on; nullptr returns to libcuda.so.1.
  static void install(const cuda::DriverTable* driver);

  const cuda::DriverTable& driver() const { return driver_; }
  int driver_version() const { return driver_version_; }
  int num_devices() const { return num_devices_; }

  /// The context of a GPU. Throws EnvironmentError if there is no such GPU or it is not supported.
  CudaContext& context(int device_index);

  /// What the GPU says of itself, supported or not.
  DeviceProperties device_properties(int device_index) const;

  /// The kernel's handle, its cubin loaded.
  cuda::Kernel kernel(const KernelInfo& info);

 private:
  cuda::DriverTable driver_;
  int driver_version_ = 0;
  int num_devices_ = 0;
  std::mutex mutex_;
  std::vector<std::unique_ptr<CudaContext>> contexts_;  // by device index; null until used
  std::map<const KernelInfo*, cuda::Kernel> kernels_;
};

/// The primary context of one GPU, shared with torch.
class CudaContext {
 public:
  CudaContext(CudaRuntime& runtime, int device_index);

  /// Makes the context current in this thread, and the former one again at the end.
  class Current {
   public:
    explicit Current(const CudaContext& context);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const cuda::DriverTable* pushed_ = nullptr;  // null if the context was current already
  };

  const cuda::DriverTable& driver() const { return runtime_.driver(); }
  const DeviceProperties& properties() const { return properties_; }
  int device_index() const { return device_index_; }

  /// The kernel, ready to launch with its dynamic shared memory. The context must be current.
  cuda::Function function(const KernelInfo& info);

  /// cuOccupancyMaxActiveClusters, asked once for each kernel and cluster; 0 of a size that the GPU
  /// cannot run.
  int max_active_clusters(const KernelInfo& info, Dim3 cluster);

 private:
  cuda::Function load_function(const KernelInfo& info);

  CudaRuntime& runtime_;
  int device_index_;
  DeviceProperties properties_;
  cuda::Context context_ = nullptr;
  std::shared_mutex mutex_;
  std::unordered_map<const KernelInfo*, cuda::Function> functions_;
  std::map<std::pair<const KernelInfo*, std::array<uint32_t, 3>>, int> active_clusters_;
};

}  // namespace pykernels
