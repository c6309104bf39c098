// The recording driver's functions, one for each entry of the table.
#include "core/recording_functions.h"

#include <elf.h>

#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/recording_driver.h"
#include "core/tensor_map.h"

namespace pykernels {

using namespace cuda;

namespace {

struct ErrorText {
  Result error;
  const char* name;
  const char* text;
};

constexpr ErrorText kErrorTexts[] = {
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {kPeerAccessUnsupported, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
     "peer access is not supported between these two devices"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {kNotSupported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};

const ErrorText* find_error(Result error) {
  for (const ErrorText& known : kErrorTexts) {
    if (known.error == error) return &known;
  }
  return nullptr;
}

}  // namespace

struct RecordingFunctions {
  static RecordingDriver& self() {
    if (active_recording_driver() != nullptr) return *active_recording_driver();
    throw EnvironmentError("the recording driver that this device belongs to has been closed");
  }

  static Result init(unsigned) { return self().enter("cuInit"); }

  static Result driver_get_version(int* version) {
    *version = self().options_.driver_version;
    return self().enter("cuDriverGetVersion");
  }

  static Result get_error_name(Result error, const char** name) {
    const ErrorText* known = find_error(error);
    *name = known != nullptr ? known->name : nullptr;
    return known != nullptr ? kSuccess : kInvalidValue;
  }

  static Result get_error_string(Result error, const char** text) {
    const ErrorText* known = find_error(error);
    *text = known != nullptr ? known->text : nullptr;
    return known != nullptr ? kSuccess : kInvalidValue;
  }

  static Result device_get_count(int* count) {
    *count = self().options_.num_devices;
    return self().enter("cuDeviceGetCount");
  }

  static Result device_get(DeviceOrdinal* device, int index) {
    if (index < 0 || index >= self().options_.num_devices) return kInvalidDevice;
    *device = index;
    return self().enter("cuDeviceGet");
  }

  static Result device_get_name(char* name, int length, DeviceOrdinal) {
    std::strncpy(name, self().options_.properties.name.c_str(), static_cast<size_t>(length));
    return self().enter("cuDeviceGetName");
  }

  static Result device_get_attribute(int* value, DeviceAttribute attribute, DeviceOrdinal) {
    const DeviceProperties& properties = self().options_.properties;
    switch (attribute) {
      case DeviceAttribute::kMultiprocessorCount:
        *value = properties.num_sms;
        break;
      case DeviceAttribute::kComputeCapabilityMajor:
        *value = properties.compute_capability_major;
        break;
      case DeviceAttribute::kComputeCapabilityMinor:
        *value = properties.compute_capability_minor;
        break;
      case DeviceAttribute::kMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(properties.max_shared_bytes_per_block);
        break;
      default:
        return kInvalidValue;
    }
    return self().enter("cuDeviceGetAttribute");
  }

  static Result device_primary_ctx_retain(Context* context, DeviceOrdinal device) {
    *context = self().contexts_.at(static_cast<size_t>(device)).get();
    return self().enter("cuDevicePrimaryCtxRetain");
  }

  static Result ctx_get_current(Context* context) {
    const auto& stack = thread_contexts();
    *context = stack.empty() ? nullptr : stack.back();
    return self().enter("cuCtxGetCurrent");
  }

  static Result ctx_push_current(Context context) {
    const Result result = self().enter("cuCtxPushCurrent");
    if (result != kSuccess) return result;
    if (!self().knows(context)) return kInvalidContext;
    thread_contexts().push_back(context);
    return kSuccess;
  }

  static Result ctx_pop_current(Context* context) {
    auto& stack = thread_contexts();
    if (stack.empty()) return kInvalidContext;
    *context = stack.back();
    stack.pop_back();
    return self().enter("cuCtxPopCurrent");
  }

  static Result ctx_synchronize() {
    const Result result = self().enter("cuCtxSynchronize");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (self().is_capturing(thread_contexts().back()) || self().refuses_unsafe_calls()) {
      return kStreamCaptureUnsupported;
    }
    self().wait();
    return kSuccess;
  }

  static Result library_load_data(Library* library, const void* code, int*, void**, unsigned, int*,
                                  void**, unsigned) {
    const Result result = self().enter("cuLibraryLoadData");
    if (result != kSuccess) return result;
    if (self().refuses_unsafe_calls()) return kStreamCaptureUnsupported;
    auto symbols = cubin_symbols(code);
    if (!symbols) return kInvalidImage;
    const std::lock_guard lock(self().mutex_);
    self().libraries_.push_back(
        std::make_unique<OpaqueLibrary>(OpaqueLibrary{*std::move(symbols)}));
    *library = self().libraries_.back().get();
    return kSuccess;
  }

  static Result library_get_kernel(Kernel* kernel, Library library, const char* name) {
    const Result result = self().enter("cuLibraryGetKernel");
    if (result != kSuccess) return result;
    if (!library->symbols.contains(name)) return kNotFound;
    const std::lock_guard lock(self().mutex_);
    self().kernels_.push_back(std::make_unique<OpaqueKernel>(OpaqueKernel{name}));
    *kernel = self().kernels_.back().get();
    return kSuccess;
  }

  static Result kernel_get_function(Function* function, Kernel kernel) {
    const Result result = self().enter("cuKernelGetFunction");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (self().refuses_unsafe_calls()) return kStreamCaptureUnsupported;
    const Context context = thread_contexts().back();
    const std::lock_guard lock(self().mutex_);
    auto& known = self().functions_[{kernel, context->device_index}];
    if (known == nullptr) {
      known = std::make_unique<OpaqueFunction>(OpaqueFunction{kernel, context, 48 * 1024});
    }
    *function = known.get();
    return kSuccess;
  }

  static Result func_set_attribute(Function function, FunctionAttribute attribute, int value) {
    const Result result = self().enter("cuFuncSetAttribute");
    if (result != kSuccess) return result;
    if (!self().knows(function)) return kInvalidHandle;
    const uint32_t limit = self().options_.properties.max_shared_bytes_per_block;
    if (attribute != FunctionAttribute::kMaxDynamicSharedSizeBytes || value < 0 ||
        static_cast<uint32_t>(value) > limit) {
      return kInvalidValue;
    }
    function->max_dynamic_shared_bytes = static_cast<uint32_t>(value);
    return kSuccess;
  }

  static Result occupancy_max_active_clusters(int* count, Function function,
                                              const LaunchConfig* config) {
    const Result entered = self().enter("cuOccupancyMaxActiveClusters");
    if (entered != kSuccess) return entered;
    if (!self().knows(function)) return kInvalidHandle;
    Launch launch;
    const Result result = self().read_config(*config, function, &launch);
    if (result != kSuccess) return result;
    const Dim3& cluster = launch.cluster;
    const auto size = static_cast<int>(cluster.x * cluster.y * cluster.z);
    if (size > static_cast<int>(self().options_.max_cluster)) return kInvalidClusterSize;
    *count = self().target_ != nullptr ? self().target_->max_active_clusters(
                                             Registry::instance().get(launch.kernel), cluster)
                                       : self().options_.properties.num_sms / size;
    return kSuccess;
  }

  static Result tensor_map_encode_tiled(void* map, int type, uint32_t rank, void* address,
                                        const uint64_t* dims, const uint64_t* strides,
                                        const uint32_t* box, const uint32_t* element_strides,
                                        int interleave, int swizzle, int l2_promotion, int fill) {
    const Result result = self().enter("cuTensorMapEncodeTiled");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (reinterpret_cast<uint64_t>(map) % 64 != 0 || rank == 0 ||
        rank > TensorMapFields::kMaxRank) {
      return kInvalidValue;
    }
    TensorMapFields fields;
    fields.type = static_cast<TensorMapType>(type);
    fields.rank = rank;
    fields.address = reinterpret_cast<uint64_t>(address);
    std::memcpy(fields.dims, dims, rank * sizeof(*dims));
    std::memcpy(fields.strides, strides, (rank - 1) * sizeof(*strides));
    std::memcpy(fields.box, box, rank * sizeof(*box));
    std::memcpy(fields.element_strides, element_strides, rank * sizeof(*element_strides));
    fields.interleave = static_cast<TensorMapInterleave>(interleave);
    fields.swizzle = static_cast<TensorMapSwizzle>(swizzle);
    fields.l2_promotion = static_cast<TensorMapL2Promotion>(l2_promotion);
    fields.fill = static_cast<TensorMapFill>(fill);
    try {
      check_tensor_map(fields);
    } catch (const ArgumentError&) {
      return kInvalidValue;
    }
    const TensorMap encoded = encode_emulated(fields);
    std::memcpy(map, encoded.bytes, sizeof(encoded.bytes));
    return kSuccess;
  }

  static Result launch_kernel_ex(const LaunchConfig* config, Function function, void** parameters,
                                 void** extra) {
    const Result entered = self().enter("cuLaunchKernelEx");
    if (entered != kSuccess) return entered;
    if (thread_contexts().empty()) return kInvalidContext;
    if (!self().knows(function)) return kInvalidHandle;
    const Context context = thread_contexts().back();
    RecordedLaunch recorded;
    recorded.device_index = context->device_index;
    recorded.process = thread_process();
    recorded.stream = reinterpret_cast<uint64_t>(config->stream);
    Result result = self().device_of_stream(config->stream, &recorded.device_index);
    if (result != kSuccess) return result;
    if (function->context != context || recorded.device_index != context->device_index) {
      return kInvalidHandle;
    }
    if (parameters == nullptr || extra != nullptr) return kInvalidValue;
    result = self().read_config(*config, function, &recorded.launch);
    if (result != kSuccess) return result;
    const auto* argument = static_cast<const std::byte*>(parameters[0]);
    const KernelInfo& info = Registry::instance().get(recorded.launch.kernel);
    recorded.launch.arguments.assign(argument, argument + info.param_bytes);
    recorded.launch.rank = static_cast<uint32_t>(recorded.device_index);
    recorded.captured = self().is_capturing(config->stream);
    self().record(std::move(recorded));
    return kSuccess;
  }

  static Result thread_exchange_stream_capture_mode(CaptureMode* mode) {
    const Result result = self().enter("cuThreadExchangeStreamCaptureMode");
    if (result == kSuccess) std::swap(*mode, thread_capture_mode());
    return result;
  }

  static Result stream_is_capturing(Stream stream, CaptureStatus* status) {
    const Result entered = self().enter("cuStreamIsCapturing");
    if (entered != kSuccess) return entered;
    if (thread_contexts().empty()) return kInvalidContext;
    int device_index = 0;
    const Result result = self().device_of_stream(stream, &device_index);
    if (result != kSuccess) return result;
    *status = self().is_capturing(stream) ? CaptureStatus::kActive : CaptureStatus::kNone;
    return kSuccess;
  }

  static Result stream_synchronize(Stream stream) {
    const Result entered = self().enter("cuStreamSynchronize");
    if (entered != kSuccess) return entered;
    if (thread_contexts().empty()) return kInvalidContext;
    int device_index = 0;
    const Result result = self().device_of_stream(stream, &device_index);
    if (result != kSuccess) return result;
    if (self().is_capturing(stream) || self().refuses_unsafe_calls()) {
      return kStreamCaptureUnsupported;
    }
    self().wait();
    return kSuccess;
  }

  static Result mem_host_alloc(void** memory, size_t bytes, unsigned flags) {
    const Result result = self().enter("cuMemHostAlloc");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (self().refuses_unsafe_calls()) return kStreamCaptureUnsupported;
    if (bytes == 0) return kInvalidValue;
    *memory = self().allocate(bytes, flags);
    return kSuccess;
  }

  static Result mem_host_get_device_pointer(uint64_t* address, void* memory, unsigned flags) {
    const Result result = self().enter("cuMemHostGetDevicePointer");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (flags != 0 || !self().is_mapped(memory)) return kInvalidValue;
    *address = reinterpret_cast<uint64_t>(memory);
    return kSuccess;
  }

  /// The process and device of the calling thread, which must have a context.
  static RecordingMemory::Place place() {
    return {thread_process(), thread_contexts().back()->device_index};
  }

  static Result mem_alloc(uint64_t* address, size_t bytes) {
    const Result result = self().enter("cuMemAlloc");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (self().refuses_unsafe_calls()) return kStreamCaptureUnsupported;
    const std::lock_guard lock(self().mutex_);
    return self().device_memory_.allocate(place(), bytes, address);
  }

  static Result mem_free(uint64_t address) {
    const Result result = self().enter("cuMemFree");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (self().refuses_unsafe_calls()) return kStreamCaptureUnsupported;
    self().wait();
    const std::lock_guard lock(self().mutex_);
    return self().device_memory_.free(place(), address);
  }

  static Result memset_d8_async(uint64_t address, unsigned char value, size_t bytes,
                                Stream stream) {
    const Result entered = self().enter("cuMemsetD8Async");
    if (entered != kSuccess) return entered;
    if (thread_contexts().empty()) return kInvalidContext;
    int device_index = thread_contexts().back()->device_index;
    const Result result = self().device_of_stream(stream, &device_index);
    if (result != kSuccess) return result;
    if (device_index != thread_contexts().back()->device_index) return kInvalidHandle;
    // The real driver captures it; here no captured work but launches is kept.
    if (self().is_capturing(stream)) return kStreamCaptureUnsupported;
    self().wait();
    const std::lock_guard lock(self().mutex_);
    return self().device_memory_.fill(place(), address, value, bytes);
  }

  static Result ipc_get_mem_handle(IpcMemHandle* handle, uint64_t address) {
    const Result result = self().enter("cuIpcGetMemHandle");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    const std::lock_guard lock(self().mutex_);
    return self().device_memory_.export_handle(place(), address, handle);
  }

  static Result ipc_open_mem_handle(uint64_t* address, IpcMemHandle handle, unsigned flags) {
    const Result result = self().enter("cuIpcOpenMemHandle");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (flags != kIpcMemLazyEnablePeerAccess) return kInvalidValue;
    if (self().refuses_unsafe_calls()) return kStreamCaptureUnsupported;
    const std::lock_guard lock(self().mutex_);
    return self().device_memory_.open(place(), handle, self().options_.peer_access, address);
  }

  static Result ipc_close_mem_handle(uint64_t address) {
    const Result result = self().enter("cuIpcCloseMemHandle");
    if (result != kSuccess) return result;
    if (thread_contexts().empty()) return kInvalidContext;
    if (self().refuses_unsafe_calls()) return kStreamCaptureUnsupported;
    self().wait();
    const std::lock_guard lock(self().mutex_);
    return self().device_memory_.close(place(), address);
  }

  static Result device_can_access_peer(int* can_access, DeviceOrdinal device, DeviceOrdinal peer) {
    const Result result = self().enter("cuDeviceCanAccessPeer");
    if (result != kSuccess) return result;
    *can_access = device != peer && self().options_.peer_access ? 1 : 0;
    return kSuccess;
  }
};

DriverTable recording_table() {
  using F = RecordingFunctions;
  return {F::init,
          F::driver_get_version,
          F::get_error_name,
          F::get_error_string,
          F::device_get_count,
          F::device_get,
          F::device_get_name,
          F::device_get_attribute,
          F::device_primary_ctx_retain,
          F::ctx_get_current,
          F::ctx_push_current,
          F::ctx_pop_current,
          F::ctx_synchronize,
          F::library_load_data,
          F::library_get_kernel,
          F::kernel_get_function,
          F::func_set_attribute,
          F::occupancy_max_active_clusters,
          F::tensor_map_encode_tiled,
          F::launch_kernel_ex,
          F::thread_exchange_stream_capture_mode,
          F::stream_is_capturing,
          F::stream_synchronize,
          F::mem_host_alloc,
          F::mem_host_get_device_pointer,
          F::mem_alloc,
          F::mem_free,
          F::memset_d8_async,
          F::ipc_get_mem_handle,
          F::ipc_open_mem_handle,
          F::ipc_close_mem_handle,
          F::device_can_access_peer};
}

RecordingDriver*& active_recording_driver() {
  static RecordingDriver* driver = nullptr;
  return driver;
}

namespace {

/// What a thread has set in a driver.
struct ThreadState {
  uint64_t owner = 0;  // the driver's serial
  std::vector<Context> contexts;
  int process = 0;
};

ThreadState& thread_state() {
  thread_local ThreadState state;
  const RecordingDriver* driver = active_recording_driver();
  const uint64_t serial = driver != nullptr ? driver->serial() : 0;
  if (state.owner != serial) state = {serial, {}, 0};
  return state;
}

}  // namespace

std::vector<Context>& thread_contexts() { return thread_state().contexts; }

int& thread_process() { return thread_state().process; }

CaptureMode& thread_capture_mode() {
  thread_local CaptureMode mode = CaptureMode::kGlobal;
  return mode;
}

std::optional<std::set<std::string>> cubin_symbols(const void* image) {
  constexpr Elf64_Half kMachineCuda = 190;  // EM_CUDA
  const auto* bytes = static_cast<const char*>(image);
  Elf64_Ehdr header;
  std::memcpy(&header, bytes, sizeof(header));
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_machine != kMachineCuda) {
    return std::nullopt;
  }
  std::vector<Elf64_Shdr> sections(header.e_shnum);
  std::memcpy(sections.data(), bytes + header.e_shoff, sections.size() * sizeof(Elf64_Shdr));
  std::set<std::string> names;
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB) continue;
    const char* strings = bytes + sections[section.sh_link].sh_offset;
    for (uint64_t offset = 0; offset < section.sh_size; offset += sizeof(Elf64_Sym)) {
      Elf64_Sym symbol;
      std::memcpy(&symbol, bytes + section.sh_offset + offset, sizeof(symbol));
      names.emplace(strings + symbol.st_name);
    }
  }
  return names;
}

}  // namespace pykernels
