// What the process holds of the driver: one runtime (function table, loaded cubins) and one context
// a GPU (functions ready to launch, occupancies, the record of errors). Made at first use, kept
// until the process ends.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
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

/// Lets this thread load code, allocate and wait, which a capture in another mode forbids,
/// whichever thread captures.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const cuda::DriverTable& driver);
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const cuda::DriverTable& driver_;
  cuda::CaptureMode mode_ = cuda::CaptureMode::kRelaxed;  // then the thread's former one
};

/// The driver in use and the cubins that it has loaded: each once in the process, for all GPUs.
class CudaRuntime : public std::enable_shared_from_this<CudaRuntime> {
 public:
  explicit CudaRuntime(const cuda::DriverTable& driver);

  /// That of the installed driver, else of libcuda.so.1. Throws EnvironmentError if there is none.
  static std::shared_ptr<CudaRuntime> current();

  /// Replaces the driver for calls that start from now on; nullptr returns to libcuda.so.1.
  static void install(const cuda::DriverTable* driver);

  /// Waits for what the process has launched on a GPU, by default on all that it has used, and
  /// throws ArgumentError with an error that a kernel left there. Opens no driver and no context.
  static void check_errors(std::optional<int> device_index);

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
  std::vector<CudaContext*> contexts_in_use();

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

  /// The address of the record that kernels on this GPU write: pinned memory of the host, made at
  /// the first call. From any thread, also while a stream is being captured.
  uint64_t error_record();

  /// Waits for all streams of the context; the error that kernels have left, which is then cleared.
  std::optional<DeviceError> take_error();

  /// The same, waiting for the stream of a launch only, and not at all while that is captured. The
  /// context must be current.
  std::optional<DeviceError> take_error(const Launch& launch, cuda::Stream stream);

  /// Throws ArgumentError with the error, if there is one, and this GPU.
  void check_error(const std::optional<DeviceError>& error) const;

 private:
  cuda::Function load_function(const KernelInfo& info);
  std::optional<DeviceError> clear_error();

  CudaRuntime& runtime_;
  int device_index_;
  DeviceProperties properties_;
  cuda::Context context_ = nullptr;
  std::shared_mutex mutex_;
  std::unordered_map<const KernelInfo*, cuda::Function> functions_;
  std::map<std::pair<const KernelInfo*, std::array<uint32_t, 3>>, int> active_clusters_;
  DeviceError* error_ = nullptr;  // the record; freed with the process only
  uint64_t error_address_ = 0;    // the GPU's address of it; 0 until it is known
};

}  // namespace pykernels
