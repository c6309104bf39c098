// The part of the CUDA driver's interface that the library uses, declared here so that building
// needs no cuda.h and running needs no libcuda until a CUDA tensor arrives.
// tests/core/driver_abi.cpp compares every declaration with the toolkit's cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pykernels::cuda {

using Result = int;  // CUresult
inline constexpr Result kSuccess = 0;
inline constexpr Result kInvalidValue = 1;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kInvalidImage = 200;
inline constexpr Result kInvalidContext = 201;
inline constexpr Result kMapFailed = 205;
inline constexpr Result kPeerAccessUnsupported = 217;
inline constexpr Result kOperatingSystem = 304;
inline constexpr Result kInvalidHandle = 400;
inline constexpr Result kNotFound = 500;
inline constexpr Result kTooManyPeers = 711;
inline constexpr Result kLaunchFailed = 719;
inline constexpr Result kNotPermitted = 800;
inline constexpr Result kNotSupported = 801;
inline constexpr Result kStreamCaptureUnsupported = 900;
inline constexpr Result kStreamCaptureImplicit = 906;
inline constexpr Result kInvalidClusterSize = 912;

using DeviceOrdinal = int;  // CUdevice
using Context = struct OpaqueContext*;
using Library = struct OpaqueLibrary*;
using Kernel = struct OpaqueKernel*;
using Function = struct OpaqueFunction*;
using Stream = struct OpaqueStream*;

enum class DeviceAttribute : int {
  kMultiprocessorCount = 16,
  kComputeCapabilityMajor = 75,
  kComputeCapabilityMinor = 76,
  kMaxSharedMemoryPerBlockOptin = 97,
};

enum class FunctionAttribute : int { kMaxDynamicSharedSizeBytes = 8 };

enum class CaptureMode : int { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };

enum class CaptureStatus : int { kNone = 0, kActive = 1, kInvalidated = 2 };

inline constexpr unsigned kHostAllocPortable = 1;
inline constexpr unsigned kHostAllocDeviceMap = 2;

/// CUipcMemHandle: names memory of one process to the others.
struct IpcMemHandle {
  char bytes[64];
};

inline constexpr unsigned kIpcMemLazyEnablePeerAccess = 1;

enum class LaunchAttributeId : int {
  kClusterDimension = 4,
  kProgrammaticStreamSerialization = 6,
};

/// CUlaunchAttribute.
struct LaunchAttribute {
  struct ClusterDimension {
    unsigned x, y, z;
  };
  union Value {
    ClusterDimension cluster;
    int programmatic_stream_serialization_allowed;
    alignas(8) char pad[64];
  };

  LaunchAttributeId id;
  char pad[8 - sizeof(LaunchAttributeId)];
  Value value;
};

/// CUlaunchConfig.
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned dynamic_shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};

/// The driver's functions. The process uses the one of libcuda.so.1; tests install their own.
struct DriverTable {
  Result (*init)(unsigned flags);
  Result (*driver_get_version)(int* version);
  Result (*get_error_name)(Result error, const char** name);
  Result (*get_error_string)(Result error, const char** text);
  Result (*device_get_count)(int* count);
  Result (*device_get)(DeviceOrdinal* device, int index);
  Result (*device_get_name)(char* name, int length, DeviceOrdinal device);
  Result (*device_get_attribute)(int* value, DeviceAttribute attribute, DeviceOrdinal device);
  Result (*device_primary_ctx_retain)(Context* context, DeviceOrdinal device);
  Result (*ctx_get_current)(Context* context);
  Result (*ctx_push_current)(Context context);
  Result (*ctx_pop_current)(Context* context);
  Result (*ctx_synchronize)();
  Result (*library_load_data)(Library* library, const void* code, int* jit_options,
                              void** jit_option_values, unsigned num_jit_options,
                              int* library_options, void** library_option_values,
                              unsigned num_library_options);
  Result (*library_get_kernel)(Kernel* kernel, Library library, const char* name);
  Result (*kernel_get_function)(Function* function, Kernel kernel);
  Result (*func_set_attribute)(Function function, FunctionAttribute attribute, int value);
  Result (*occupancy_max_active_clusters)(int* count, Function function,
                                          const LaunchConfig* config);
  Result (*tensor_map_encode_tiled)(void* map, int type, uint32_t rank, void* address,
                                    const uint64_t* dims, const uint64_t* strides,
                                    const uint32_t* box, const uint32_t* element_strides,
                                    int interleave, int swizzle, int l2_promotion, int fill);
  Result (*launch_kernel_ex)(const LaunchConfig* config, Function function, void** parameters,
                             void** extra);
  Result (*thread_exchange_stream_capture_mode)(CaptureMode* mode);
  Result (*stream_is_capturing)(Stream stream, CaptureStatus* status);
  Result (*stream_synchronize)(Stream stream);
  Result (*mem_host_alloc)(void** memory, size_t bytes, unsigned flags);
  Result (*mem_host_get_device_pointer)(uint64_t* address, void* memory, unsigned flags);
  Result (*mem_alloc)(uint64_t* address, size_t bytes);
  Result (*mem_free)(uint64_t address);
  Result (*memset_d8_async)(uint64_t address, unsigned char value, size_t bytes, Stream stream);
  Result (*ipc_get_mem_handle)(IpcMemHandle* handle, uint64_t address);
  Result (*ipc_open_mem_handle)(uint64_t* address, IpcMemHandle handle, unsigned flags);
  Result (*ipc_close_mem_handle)(uint64_t address);
  Result (*device_can_access_peer)(int* can_access, DeviceOrdinal device, DeviceOrdinal peer);
};

/// Calls visitor(symbol, member) for every function of the table. Symbols are base names, of which
/// cuGetProcAddress returns the version that kMinDriverVersion has: cuMemAlloc_v2 for cuMemAlloc.
template <typename Table, typename Visitor>
void for_each_function(Table& table, Visitor&& visitor) {
  visitor("cuInit", table.init);
  visitor("cuDriverGetVersion", table.driver_get_version);
  visitor("cuGetErrorName", table.get_error_name);
  visitor("cuGetErrorString", table.get_error_string);
  visitor("cuDeviceGetCount", table.device_get_count);
  visitor("cuDeviceGet", table.device_get);
  visitor("cuDeviceGetName", table.device_get_name);
  visitor("cuDeviceGetAttribute", table.device_get_attribute);
  visitor("cuDevicePrimaryCtxRetain", table.device_primary_ctx_retain);
  visitor("cuCtxGetCurrent", table.ctx_get_current);
  visitor("cuCtxPushCurrent", table.ctx_push_current);
  visitor("cuCtxPopCurrent", table.ctx_pop_current);
  visitor("cuCtxSynchronize", table.ctx_synchronize);
  visitor("cuLibraryLoadData", table.library_load_data);
  visitor("cuLibraryGetKernel", table.library_get_kernel);
  visitor("cuKernelGetFunction", table.kernel_get_function);
  visitor("cuFuncSetAttribute", table.func_set_attribute);
  visitor("cuOccupancyMaxActiveClusters", table.occupancy_max_active_clusters);
  visitor("cuTensorMapEncodeTiled", table.tensor_map_encode_tiled);
  visitor("cuLaunchKernelEx", table.launch_kernel_ex);
  visitor("cuThreadExchangeStreamCaptureMode", table.thread_exchange_stream_capture_mode);
  visitor("cuStreamIsCapturing", table.stream_is_capturing);
  visitor("cuStreamSynchronize", table.stream_synchronize);
  visitor("cuMemHostAlloc", table.mem_host_alloc);
  visitor("cuMemHostGetDevicePointer", table.mem_host_get_device_pointer);
  visitor("cuMemAlloc", table.mem_alloc);
  visitor("cuMemFree", table.mem_free);
  visitor("cuMemsetD8Async", table.memset_d8_async);
  visitor("cuIpcGetMemHandle", table.ipc_get_mem_handle);
  visitor("cuIpcOpenMemHandle", table.ipc_open_mem_handle);
  visitor("cuIpcCloseMemHandle", table.ipc_close_mem_handle);
  visitor("cuDeviceCanAccessPeer", table.device_can_access_peer);
}

/// The oldest driver that has all of these functions, as cuDriverGetVersion counts.
inline constexpr int kMinDriverVersion = 12000;

/// Opens libcuda.so.1, initialises it and fills the table. Throws EnvironmentError naming what is
/// missing.
DriverTable load_driver();

/// Throws EnvironmentError with the driver's name and words for the error unless the result is
/// success. `what` is the function, with the kernel or device concerned; `hint`, if not empty, what
/// may be the cause.
void check_result(const DriverTable& driver, Result result, const std::string& what,
                  const std::string& hint = {});

/// "CUDA 13.0 (driver 580 or newer)" for 13000: a version as cuDriverGetVersion counts, in words.
std::string describe_requirement(int version);

/// "13.0" for 13000.
std::string version_text(int version);

}  // namespace pykernels::cuda
