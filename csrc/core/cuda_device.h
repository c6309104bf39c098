// The Device that launches cubins: one GPU and one of its streams. Cheap to make for every call.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "core/cuda_context.h"
#include "core/device.h"

namespace pykernels {

class CudaDevice : public Device {
 public:
  /// `stream` is a CUstream, 0 for the legacy default stream. Throws EnvironmentError if the GPU or
  /// the driver cannot run the kernels, with what was found and what is needed.
  CudaDevice(int device_index, uint64_t stream);

  const DeviceProperties& properties() const override { return context_->properties(); }
  TensorMap encode_tensor_map(const TensorMapFields& fields) override;
  int max_active_clusters(const KernelInfo& kernel, Dim3 cluster) override;
  /// From any thread, whichever context is current, also while the stream is being captured. With
  /// the environment variable PYKERNELS_DEBUG=1 it waits for the launch, unless it is captured or
  /// awaits others, and throws ArgumentError with an error that a kernel left.
  void run(const Launch& launch) override;
  uint64_t error_record() override { return context_->error_record(); }
  std::optional<DeviceError> take_error() override { return context_->take_error(); }

  int device_index() const { return context_->device_index(); }
  uint64_t stream() const { return stream_; }

 private:
  std::shared_ptr<CudaRuntime> runtime_;
  CudaContext* context_;  // the runtime's
  uint64_t stream_;
};

}  // namespace pykernels
