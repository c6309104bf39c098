// Compiled, never run: core/driver.h against the toolkit's cuda.h. Handles and enumerations may
// differ in type, but not in size, and parameters not in number or class.
#include <cuda.h>

#include <cstddef>
#include <type_traits>

#include "core/driver.h"
#include "core/tensor_map.h"

namespace cuda = pykernels::cuda;

namespace {

/// Passed alike: both pointers, or both integers (or enumerations) of one size.
template <typename Ours, typename Theirs>
constexpr bool kSameClass =
    sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> &&
    std::is_floating_point_v<Ours> == std::is_floating_point_v<Theirs>;

template <typename Ours, typename Theirs>
struct SameSignature : std::false_type {};

template <typename OurResult, typename... Ours, typename TheirResult, typename... Theirs>
  requires(sizeof...(Ours) == sizeof...(Theirs))
struct SameSignature<OurResult (*)(Ours...), TheirResult (*)(Theirs...)>
    : std::bool_constant<kSameClass<OurResult, TheirResult> && (kSameClass<Ours, Theirs> && ...)> {
};

#define PK_SAME_FUNCTION(member, function)                                                      \
  static_assert(SameSignature<decltype(cuda::DriverTable::member), decltype(&function)>::value, \
                #function)

PK_SAME_FUNCTION(init, cuInit);
PK_SAME_FUNCTION(driver_get_version, cuDriverGetVersion);
PK_SAME_FUNCTION(get_error_name, cuGetErrorName);
PK_SAME_FUNCTION(get_error_string, cuGetErrorString);
PK_SAME_FUNCTION(device_get_count, cuDeviceGetCount);
PK_SAME_FUNCTION(device_get, cuDeviceGet);
PK_SAME_FUNCTION(device_get_name, cuDeviceGetName);
PK_SAME_FUNCTION(device_get_attribute, cuDeviceGetAttribute);
PK_SAME_FUNCTION(device_primary_ctx_retain, cuDevicePrimaryCtxRetain);
PK_SAME_FUNCTION(ctx_get_current, cuCtxGetCurrent);
PK_SAME_FUNCTION(ctx_push_current, cuCtxPushCurrent);
PK_SAME_FUNCTION(ctx_pop_current, cuCtxPopCurrent);
PK_SAME_FUNCTION(ctx_synchronize, cuCtxSynchronize);
PK_SAME_FUNCTION(library_load_data, cuLibraryLoadData);
PK_SAME_FUNCTION(library_get_kernel, cuLibraryGetKernel);
PK_SAME_FUNCTION(kernel_get_function, cuKernelGetFunction);
PK_SAME_FUNCTION(func_set_attribute, cuFuncSetAttribute);
PK_SAME_FUNCTION(occupancy_max_active_clusters, cuOccupancyMaxActiveClusters);
PK_SAME_FUNCTION(tensor_map_encode_tiled, cuTensorMapEncodeTiled);
PK_SAME_FUNCTION(launch_kernel_ex, cuLaunchKernelEx);
PK_SAME_FUNCTION(thread_exchange_stream_capture_mode, cuThreadExchangeStreamCaptureMode);
PK_SAME_FUNCTION(stream_is_capturing, cuStreamIsCapturing);
PK_SAME_FUNCTION(stream_synchronize, cuStreamSynchronize);
PK_SAME_FUNCTION(mem_host_alloc, cuMemHostAlloc);
PK_SAME_FUNCTION(mem_host_get_device_pointer, cuMemHostGetDevicePointer);
PK_SAME_FUNCTION(mem_alloc, cuMemAlloc);  // a macro for cuMemAlloc_v2, as some below
PK_SAME_FUNCTION(mem_free, cuMemFree);
PK_SAME_FUNCTION(memset_d8_async, cuMemsetD8Async);
PK_SAME_FUNCTION(ipc_get_mem_handle, cuIpcGetMemHandle);
PK_SAME_FUNCTION(ipc_open_mem_handle, cuIpcOpenMemHandle);
PK_SAME_FUNCTION(ipc_close_mem_handle, cuIpcCloseMemHandle);
PK_SAME_FUNCTION(device_can_access_peer, cuDeviceCanAccessPeer);

static_assert(sizeof(cuda::IpcMemHandle) == sizeof(CUipcMemHandle));
static_assert(alignof(cuda::IpcMemHandle) == alignof(CUipcMemHandle));
static_assert(std::is_trivially_copyable_v<cuda::IpcMemHandle>);  // passed by value
static_assert(cuda::kIpcMemLazyEnablePeerAccess == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);

static_assert(cuda::kSuccess == CUDA_SUCCESS);
static_assert(cuda::kInvalidValue == CUDA_ERROR_INVALID_VALUE);
static_assert(cuda::kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(cuda::kInvalidDevice == CUDA_ERROR_INVALID_DEVICE);
static_assert(cuda::kMapFailed == CUDA_ERROR_MAP_FAILED);
static_assert(cuda::kPeerAccessUnsupported == CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
static_assert(cuda::kOperatingSystem == CUDA_ERROR_OPERATING_SYSTEM);
static_assert(cuda::kTooManyPeers == CUDA_ERROR_TOO_MANY_PEERS);
static_assert(cuda::kNotPermitted == CUDA_ERROR_NOT_PERMITTED);
static_assert(cuda::kNotSupported == CUDA_ERROR_NOT_SUPPORTED);
static_assert(cuda::kInvalidImage == CUDA_ERROR_INVALID_IMAGE);
static_assert(cuda::kInvalidContext == CUDA_ERROR_INVALID_CONTEXT);
static_assert(cuda::kInvalidHandle == CUDA_ERROR_INVALID_HANDLE);
static_assert(cuda::kNotFound == CUDA_ERROR_NOT_FOUND);
static_assert(cuda::kStreamCaptureUnsupported == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
static_assert(cuda::kStreamCaptureImplicit == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
static_assert(cuda::kHostAllocPortable == CU_MEMHOSTALLOC_PORTABLE);
static_assert(cuda::kHostAllocDeviceMap == CU_MEMHOSTALLOC_DEVICEMAP);

#define PK_SAME_VALUE(ours, theirs) \
  static_assert(static_cast<int>(ours) == static_cast<int>(theirs))

PK_SAME_VALUE(cuda::DeviceAttribute::kMultiprocessorCount,
              CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
PK_SAME_VALUE(cuda::DeviceAttribute::kComputeCapabilityMajor,
              CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
PK_SAME_VALUE(cuda::DeviceAttribute::kComputeCapabilityMinor,
              CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
PK_SAME_VALUE(cuda::DeviceAttribute::kMaxSharedMemoryPerBlockOptin,
              CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
PK_SAME_VALUE(cuda::FunctionAttribute::kMaxDynamicSharedSizeBytes,
              CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
PK_SAME_VALUE(cuda::CaptureMode::kGlobal, CU_STREAM_CAPTURE_MODE_GLOBAL);
PK_SAME_VALUE(cuda::CaptureMode::kThreadLocal, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
PK_SAME_VALUE(cuda::CaptureMode::kRelaxed, CU_STREAM_CAPTURE_MODE_RELAXED);
PK_SAME_VALUE(cuda::CaptureStatus::kNone, CU_STREAM_CAPTURE_STATUS_NONE);
PK_SAME_VALUE(cuda::CaptureStatus::kActive, CU_STREAM_CAPTURE_STATUS_ACTIVE);
PK_SAME_VALUE(cuda::CaptureStatus::kInvalidated, CU_STREAM_CAPTURE_STATUS_INVALIDATED);
PK_SAME_VALUE(cuda::LaunchAttributeId::kClusterDimension, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
PK_SAME_VALUE(cuda::LaunchAttributeId::kProgrammaticStreamSerialization,
              CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);

static_assert(sizeof(cuda::LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(alignof(cuda::LaunchAttribute) == alignof(CUlaunchAttribute));
static_assert(offsetof(cuda::LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(offsetof(cuda::LaunchAttribute::ClusterDimension, z) ==
              offsetof(CUlaunchAttributeValue, clusterDim.z));

#define PK_SAME_OFFSET(ours, theirs) \
  static_assert(offsetof(cuda::LaunchConfig, ours) == offsetof(CUlaunchConfig, theirs))

PK_SAME_OFFSET(grid_x, gridDimX);
PK_SAME_OFFSET(grid_z, gridDimZ);
PK_SAME_OFFSET(block_x, blockDimX);
PK_SAME_OFFSET(block_z, blockDimZ);
PK_SAME_OFFSET(dynamic_shared_bytes, sharedMemBytes);
PK_SAME_OFFSET(stream, hStream);
PK_SAME_OFFSET(attributes, attrs);
PK_SAME_OFFSET(num_attributes, numAttrs);
static_assert(sizeof(cuda::LaunchConfig) == sizeof(CUlaunchConfig));

using pykernels::TensorMapFill;
using pykernels::TensorMapInterleave;
using pykernels::TensorMapL2Promotion;
using pykernels::TensorMapSwizzle;
using pykernels::TensorMapType;

static_assert(sizeof(pykernels::TensorMap) == sizeof(CUtensorMap));
static_assert(alignof(pykernels::TensorMap) ==
              64);  // documented; the type says 64 or, from CUDA 13, 128
PK_SAME_VALUE(TensorMapType::kUint8, CU_TENSOR_MAP_DATA_TYPE_UINT8);
PK_SAME_VALUE(TensorMapType::kUint16, CU_TENSOR_MAP_DATA_TYPE_UINT16);
PK_SAME_VALUE(TensorMapType::kUint32, CU_TENSOR_MAP_DATA_TYPE_UINT32);
PK_SAME_VALUE(TensorMapType::kInt32, CU_TENSOR_MAP_DATA_TYPE_INT32);
PK_SAME_VALUE(TensorMapType::kUint64, CU_TENSOR_MAP_DATA_TYPE_UINT64);
PK_SAME_VALUE(TensorMapType::kInt64, CU_TENSOR_MAP_DATA_TYPE_INT64);
PK_SAME_VALUE(TensorMapType::kFloat16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
PK_SAME_VALUE(TensorMapType::kFloat32, CU_TENSOR_MAP_DATA_TYPE_FLOAT32);
PK_SAME_VALUE(TensorMapType::kFloat64, CU_TENSOR_MAP_DATA_TYPE_FLOAT64);
PK_SAME_VALUE(TensorMapType::kBfloat16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
PK_SAME_VALUE(TensorMapType::kFloat32Ftz, CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ);
PK_SAME_VALUE(TensorMapType::kTfloat32, CU_TENSOR_MAP_DATA_TYPE_TFLOAT32);
PK_SAME_VALUE(TensorMapType::kTfloat32Ftz, CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ);
PK_SAME_VALUE(TensorMapInterleave::k32B, CU_TENSOR_MAP_INTERLEAVE_32B);
PK_SAME_VALUE(TensorMapSwizzle::k32B, CU_TENSOR_MAP_SWIZZLE_32B);
PK_SAME_VALUE(TensorMapSwizzle::k64B, CU_TENSOR_MAP_SWIZZLE_64B);
PK_SAME_VALUE(TensorMapSwizzle::k128B, CU_TENSOR_MAP_SWIZZLE_128B);
PK_SAME_VALUE(TensorMapL2Promotion::k64B, CU_TENSOR_MAP_L2_PROMOTION_L2_64B);
PK_SAME_VALUE(TensorMapL2Promotion::k256B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
PK_SAME_VALUE(TensorMapFill::kNan, CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA);

}  // namespace
