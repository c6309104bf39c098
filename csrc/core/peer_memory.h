// Memory of a GPU that kernels of other processes reach: allocated and exported in one process,
// mapped in the others. Both live as long as their object, whatever has become of the driver.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/cuda_context.h"
#include "core/driver.h"

namespace pykernels {

/// Memory on a GPU's primary context. Whole pages of 2 MiB, because handles export nothing smaller:
/// so peers see no memory of others.
class PeerMemory {
 public:
  /// Allocates and zeroes it, on the stream (0: the legacy default stream); returns when that is
  /// done.
  PeerMemory(int device_index, uint64_t bytes, uint64_t stream);
  /// As close, but errors are dropped: the driver may have gone with the process.
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  uint64_t address() const { return address_; }  // 0 once closed
  uint64_t bytes() const { return bytes_; }
  int device_index() const { return context_->device_index(); }

  /// What other processes open.
  cuda::IpcMemHandle handle() const;
  /// Zeroes it on the stream, and waits for that.
  void zero(uint64_t stream);
  /// Frees it, once the kernels have ended that use it. No peer may have it mapped. Again: nothing.
  void close();

 private:
  std::shared_ptr<CudaRuntime> runtime_;
  CudaContext* context_;  // the runtime's
  uint64_t bytes_;
  uint64_t address_ = 0;
};

/// Memory of another process, mapped for the kernels of a GPU of this one.
class MappedPeer {
 public:
  MappedPeer(int device_index, const cuda::IpcMemHandle& handle);
  /// As close, but errors are dropped.
  ~MappedPeer();
  MappedPeer(const MappedPeer&) = delete;
  MappedPeer& operator=(const MappedPeer&) = delete;

  uint64_t address() const { return address_; }  // in this process; 0 once closed
  int device_index() const { return context_->device_index(); }

  /// Unmaps it. No kernel of this process may use it any more. Again: nothing.
  void close();

 private:
  std::shared_ptr<CudaRuntime> runtime_;
  CudaContext* context_;  // the runtime's
  uint64_t address_ = 0;
};

/// Whether kernels on a GPU can reach memory of another one; of the same one they can.
bool can_access_peer(int device_index, int peer_index);

}  // namespace pykernels
