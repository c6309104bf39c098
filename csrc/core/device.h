// The interface between the host path (checks, config, launch) and what runs a launch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/device_error.h"
#include "core/launch.h"
#include "core/registry.h"
#include "core/tensor_map.h"

namespace pykernels {

struct DeviceProperties {
  std::string name;
  int num_sms = 0;
  int compute_capability_major = 0;
  int compute_capability_minor = 0;
  uint32_t max_shared_bytes_per_block = 0;  // with opt-in: 232448 on sm_90
};

/// A launch among those of several streams.
struct StreamedLaunch {
  Launch launch;
  uint32_t stream = 0;        // of the launch's rank
  std::vector<size_t> after;  // launches before it, of other streams, that end before it starts
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceProperties& properties() const = 0;

  /// Checks the fields and encodes them in the layout that this device's kernels read.
  virtual TensorMap encode_tensor_map(const TensorMapFields& fields) = 0;

  /// How many clusters of this size fit the device together: cuOccupancyMaxActiveClusters. 0 if
  /// the device cannot run them.
  virtual int max_active_clusters(const KernelInfo& kernel, Dim3 cluster) = 0;

  /// Starts the launch; asynchronous on a GPU (current stream), complete on return in the emulator.
  virtual void run(const Launch& launch) = 0;

  /// Runs launches that wait for one another, each on a stream of its own; launches of different
  /// ranks on different GPUs. A device that is one stream refuses more than one.
  virtual void run_together(const std::vector<Launch>& launches);

  /// Runs launches of several streams; each follows the one before it in its stream.
  virtual void run_streams(const std::vector<StreamedLaunch>& launches);

  /// The address at which kernels leave a DeviceError. The same for every launch on this device.
  virtual uint64_t error_record() = 0;

  /// Waits for all work launched on the device; returns what its kernels left, and clears it.
  virtual std::optional<DeviceError> take_error() = 0;
};

/// The device's record, as memory of a launch whose kernel may write it.
MemoryRange error_memory(Device& device);

/// What was wrong, where, what is allowed, and what the kernel did not do therefore.
std::string describe(const DeviceError& error);

}  // namespace pykernels
