#include "core/peer_memory.h"

#include <utility>

#include "core/check.h"

namespace pykernels {
namespace {

using cuda::check_result;

constexpr uint64_t kPageBytes = 2ull << 20;  // the unit in which the driver exports memory

uint64_t whole_pages(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

constexpr const char* kSharing =
    "processes share GPU memory only on one machine, with common IPC and PID namespaces "
    "(containers: --ipc=host --pid=host), and not on MIG instances or under WSL";

/// What may be the cause of an error of the IPC functions, and what helps.
const char* hint(cuda::Result result) {
  switch (result) {
    case cuda::kInvalidContext:
      return "a handle cannot be opened in the process that made it: the memory has its address "
             "there already";
    case cuda::kPeerAccessUnsupported:
      return "this GPU cannot access the memory of the handle's GPU; the GPUs need NVLink or a "
             "common PCIe root (nvidia-smi topo -p2p r)";
    case cuda::kTooManyPeers:
      return "this GPU has mapped memory of as many peers as it can";
    case cuda::kInvalidValue:
    case cuda::kInvalidHandle:
      return "the memory of a handle must still be allocated, and its process alive";
    case cuda::kInvalidDevice:
    case cuda::kMapFailed:
    case cuda::kOperatingSystem:
    case cuda::kNotPermitted:
    case cuda::kNotSupported:
      return kSharing;
    default:
      return "";
  }
}

void check_sharing(const cuda::DriverTable& driver, cuda::Result result, const std::string& what) {
  check_result(driver, result, what, hint(result));
}

void fill_with_zeros(const CudaContext& context, uint64_t address, uint64_t bytes,
                     uint64_t stream) {
  const cuda::DriverTable& driver = context.driver();
  const auto handle = reinterpret_cast<cuda::Stream>(stream);
  check_result(driver, driver.memset_d8_async(address, 0, bytes, handle),
               concat("cuMemsetD8Async of ", bytes, " bytes on device ", context.device_index()));
  check_result(driver, driver.stream_synchronize(handle),
               concat("cuStreamSynchronize on device ", context.device_index()));
}

}  // namespace

PeerMemory::PeerMemory(int device_index, uint64_t bytes, uint64_t stream)
    : runtime_(CudaRuntime::current()), context_(&runtime_->context(device_index)), bytes_(bytes) {
  PK_CHECK(bytes >= 1, "peer memory must have at least 1 byte, got 0");
  const CudaContext::Current current(*context_);
  const cuda::DriverTable& driver = context_->driver();
  const RelaxedCapture relaxed(driver);
  check_result(driver, driver.mem_alloc(&address_, whole_pages(bytes)),
               concat("cuMemAlloc of ", whole_pages(bytes), " bytes on device ", device_index));
  try {
    fill_with_zeros(*context_, address_, bytes_, stream);
  } catch (...) {
    driver.mem_free(address_);
    throw;
  }
}

PeerMemory::~PeerMemory() {
  try {
    close();
  } catch (...) {  // NOLINT(bugprone-empty-catch): no one is left to hear of it
  }
}

cuda::IpcMemHandle PeerMemory::handle() const {
  PK_CHECK(address_ != 0, "this peer memory has been closed");
  const CudaContext::Current current(*context_);
  cuda::IpcMemHandle handle = {};
  check_sharing(context_->driver(), context_->driver().ipc_get_mem_handle(&handle, address_),
                concat("cuIpcGetMemHandle on device ", device_index()));
  return handle;
}

void PeerMemory::zero(uint64_t stream) {
  PK_CHECK(address_ != 0, "this peer memory has been closed");
  const CudaContext::Current current(*context_);
  const RelaxedCapture relaxed(context_->driver());
  fill_with_zeros(*context_, address_, bytes_, stream);
}

void PeerMemory::close() {
  const uint64_t address = std::exchange(address_, 0);
  if (address == 0) return;
  const CudaContext::Current current(*context_);
  const cuda::DriverTable& driver = context_->driver();
  const RelaxedCapture relaxed(driver);
  check_result(driver, driver.mem_free(address), concat("cuMemFree on device ", device_index()));
}

MappedPeer::MappedPeer(int device_index, const cuda::IpcMemHandle& handle)
    : runtime_(CudaRuntime::current()), context_(&runtime_->context(device_index)) {
  const CudaContext::Current current(*context_);
  const cuda::DriverTable& driver = context_->driver();
  const RelaxedCapture relaxed(driver);
  check_sharing(driver,
                driver.ipc_open_mem_handle(&address_, handle, cuda::kIpcMemLazyEnablePeerAccess),
                concat("cuIpcOpenMemHandle on device ", device_index));
}

MappedPeer::~MappedPeer() {
  try {
    close();
  } catch (...) {  // NOLINT(bugprone-empty-catch): no one is left to hear of it
  }
}

void MappedPeer::close() {
  const uint64_t address = std::exchange(address_, 0);
  if (address == 0) return;
  const CudaContext::Current current(*context_);
  const cuda::DriverTable& driver = context_->driver();
  const RelaxedCapture relaxed(driver);
  check_result(driver, driver.ipc_close_mem_handle(address),
               concat("cuIpcCloseMemHandle on device ", device_index()));
}

bool can_access_peer(int device_index, int peer_index) {
  const auto runtime = CudaRuntime::current();
  const cuda::DriverTable& driver = runtime->driver();
  cuda::DeviceOrdinal device = 0;
  cuda::DeviceOrdinal peer = 0;
  check_result(driver, driver.device_get(&device, device_index),
               concat("cuDeviceGet of device ", device_index));
  check_result(driver, driver.device_get(&peer, peer_index),
               concat("cuDeviceGet of device ", peer_index));
  if (device == peer) return true;  // where the driver answers no
  int can_access = 0;
  check_result(driver, driver.device_can_access_peer(&can_access, device, peer),
               concat("cuDeviceCanAccessPeer of devices ", device_index, " and ", peer_index));
  return can_access != 0;
}

}  // namespace pykernels
