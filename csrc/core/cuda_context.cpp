// The runtime of the process and the contexts of its GPUs.
#include "core/cuda_context.h"

#include <algorithm>
#include <array>
#include <new>
#include <utility>

#include "core/check.h"

namespace pykernels {
namespace {

using cuda::check_result;

constexpr int kComputeCapabilityMajor = 9;  // sm_90a code runs on 9.0 and nowhere else
constexpr int kComputeCapabilityMinor = 0;
constexpr uint32_t kDefaultDynamicSharedBytes = 48 * 1024;  // beyond it a function must opt in

std::mutex& runtime_mutex() {
  static std::mutex mutex;
  return mutex;
}

/// Leaked: streams and graphs of other libraries may outlive every static object.
std::shared_ptr<CudaRuntime>& installed_runtime() {
  static auto* runtime = new std::shared_ptr<CudaRuntime>;
  return *runtime;
}

std::shared_ptr<CudaRuntime>& system_runtime() {
  static auto* runtime = new std::shared_ptr<CudaRuntime>;
  return *runtime;
}

void require_driver(int found, int needed, const std::string& what) {
  if (found >= needed) return;
  throw EnvironmentError(concat(what, " needs ", cuda::describe_requirement(needed),
                                "; the driver found is for CUDA ", cuda::version_text(found)));
}

}  // namespace

RelaxedCapture::RelaxedCapture(const cuda::DriverTable& driver) : driver_(driver) {
  check_result(driver_, driver_.thread_exchange_stream_capture_mode(&mode_),
               "cuThreadExchangeStreamCaptureMode");
}

RelaxedCapture::~RelaxedCapture() { driver_.thread_exchange_stream_capture_mode(&mode_); }

CudaRuntime::CudaRuntime(const cuda::DriverTable& driver) : driver_(driver) {
  check_result(driver_, driver_.driver_get_version(&driver_version_), "cuDriverGetVersion");
  check_result(driver_, driver_.device_get_count(&num_devices_), "cuDeviceGetCount");
  contexts_.resize(static_cast<size_t>(num_devices_));
}

std::shared_ptr<CudaRuntime> CudaRuntime::current() {
  const std::lock_guard lock(runtime_mutex());
  if (installed_runtime() != nullptr) return installed_runtime();
  if (system_runtime() == nullptr) {
    system_runtime() = std::make_shared<CudaRuntime>(cuda::load_driver());
  }
  return system_runtime();
}

void CudaRuntime::install(const cuda::DriverTable* driver) {
  auto runtime = driver != nullptr ? std::make_shared<CudaRuntime>(*driver) : nullptr;
  const std::lock_guard lock(runtime_mutex());
  installed_runtime() = std::move(runtime);
}

CudaContext& CudaRuntime::context(int device_index) {
  if (device_index < 0 || device_index >= num_devices_) {
    throw EnvironmentError(concat("there is no CUDA device ", device_index, "; the driver reports ",
                                  num_devices_, num_devices_ == 1 ? " device" : " devices"));
  }
  const std::lock_guard lock(mutex_);
  auto& context = contexts_[static_cast<size_t>(device_index)];
  if (context == nullptr) context = std::make_unique<CudaContext>(*this, device_index);
  return *context;
}

void CudaRuntime::check_errors(std::optional<int> device_index) {
  std::shared_ptr<CudaRuntime> runtime;
  {
    const std::lock_guard lock(runtime_mutex());
    runtime = installed_runtime() != nullptr ? installed_runtime() : system_runtime();
  }
  if (runtime == nullptr) return;
  for (CudaContext* context : runtime->contexts_in_use()) {
    if (device_index && context->device_index() != *device_index) continue;
    context->check_error(context->take_error());
  }
}

std::vector<CudaContext*> CudaRuntime::contexts_in_use() {
  const std::lock_guard lock(mutex_);
  std::vector<CudaContext*> found;
  for (const auto& context : contexts_) {
    if (context != nullptr) found.push_back(context.get());
  }
  return found;
}

DeviceProperties CudaRuntime::device_properties(int device_index) const {
  cuda::DeviceOrdinal device = 0;
  check_result(driver_, driver_.device_get(&device, device_index), "cuDeviceGet");
  const auto attribute = [&](cuda::DeviceAttribute id) {
    int value = 0;
    check_result(driver_, driver_.device_get_attribute(&value, id, device), "cuDeviceGetAttribute");
    return value;
  };
  char name[256] = {};
  check_result(driver_, driver_.device_get_name(name, sizeof(name) - 1, device), "cuDeviceGetName");
  DeviceProperties properties;
  properties.name = name;
  properties.num_sms = attribute(cuda::DeviceAttribute::kMultiprocessorCount);
  properties.compute_capability_major = attribute(cuda::DeviceAttribute::kComputeCapabilityMajor);
  properties.compute_capability_minor = attribute(cuda::DeviceAttribute::kComputeCapabilityMinor);
  properties.max_shared_bytes_per_block =
      static_cast<uint32_t>(attribute(cuda::DeviceAttribute::kMaxSharedMemoryPerBlockOptin));
  return properties;
}

cuda::Kernel CudaRuntime::kernel(const KernelInfo& info) {
  const std::lock_guard lock(mutex_);
  const auto found = kernels_.find(&info);
  if (found != kernels_.end()) return found->second;
  require_driver(driver_version_, info.min_driver_version, "kernel " + info.name);
  const std::string cubin = read_file(info.cubin_path);
  cuda::Library library = nullptr;
  check_result(
      driver_,
      driver_.library_load_data(&library, cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
      concat("cuLibraryLoadData of ", info.cubin_path));
  cuda::Kernel kernel = nullptr;
  check_result(driver_, driver_.library_get_kernel(&kernel, library, info.name.c_str()),
               concat("cuLibraryGetKernel of ", info.name, " in ", info.cubin_path));
  kernels_.emplace(&info, kernel);
  return kernel;
}

CudaContext::CudaContext(CudaRuntime& runtime, int device_index)
    : runtime_(runtime),
      device_index_(device_index),
      properties_(runtime.device_properties(device_index)) {
  if (properties_.compute_capability_major != kComputeCapabilityMajor ||
      properties_.compute_capability_minor != kComputeCapabilityMinor) {
    throw EnvironmentError(
        concat("pykernels needs a Hopper GPU (compute capability 9.0: H100, H200, H800, H20, "
               "GH200); CUDA device ",
               device_index, " is ", properties_.name, " with compute capability ",
               properties_.compute_capability_major, '.', properties_.compute_capability_minor));
  }
  int needed = 0;
  for (const KernelInfo* info : Registry::instance().all()) {
    needed = std::max(needed, info->min_driver_version);
  }
  require_driver(runtime.driver_version(), needed, "this build of pykernels");
  cuda::DeviceOrdinal device = 0;
  check_result(driver(), driver().device_get(&device, device_index), "cuDeviceGet");
  check_result(driver(), driver().device_primary_ctx_retain(&context_, device),
               concat("cuDevicePrimaryCtxRetain of device ", device_index));
}

CudaContext::Current::Current(const CudaContext& context) {
  const cuda::DriverTable& driver = context.driver();
  cuda::Context current = nullptr;
  check_result(driver, driver.ctx_get_current(&current), "cuCtxGetCurrent");
  if (current == context.context_) return;
  check_result(driver, driver.ctx_push_current(context.context_), "cuCtxPushCurrent");
  pushed_ = &driver;
}

CudaContext::Current::~Current() {
  cuda::Context popped = nullptr;
  if (pushed_ != nullptr) pushed_->ctx_pop_current(&popped);
}

cuda::Function CudaContext::function(const KernelInfo& info) {
  {
    const std::shared_lock lock(mutex_);
    const auto found = functions_.find(&info);
    if (found != functions_.end()) return found->second;
  }
  const std::unique_lock lock(mutex_);
  const auto found = functions_.find(&info);
  if (found != functions_.end()) return found->second;
  const cuda::Function function = load_function(info);
  functions_.emplace(&info, function);
  return function;
}

cuda::Function CudaContext::load_function(const KernelInfo& info) {
  const RelaxedCapture relaxed(driver());
  const cuda::Kernel kernel = runtime_.kernel(info);
  cuda::Function function = nullptr;
  check_result(driver(), driver().kernel_get_function(&function, kernel),
               concat("cuKernelGetFunction of ", info.name, " on device ", device_index_));
  if (info.dynamic_shared_bytes > kDefaultDynamicSharedBytes) {
    check_result(
        driver(),
        driver().func_set_attribute(function, cuda::FunctionAttribute::kMaxDynamicSharedSizeBytes,
                                    static_cast<int>(info.dynamic_shared_bytes)),
        concat("cuFuncSetAttribute of ", info.name, " to ", info.dynamic_shared_bytes,
               " bytes of dynamic shared memory on device ", device_index_));
  }
  return function;
}

int CudaContext::max_active_clusters(const KernelInfo& info, Dim3 cluster) {
  const std::pair key{&info, std::array{cluster.x, cluster.y, cluster.z}};
  {
    const std::shared_lock lock(mutex_);
    const auto found = active_clusters_.find(key);
    if (found != active_clusters_.end()) return found->second;
  }
  const Current current(*this);
  const cuda::Function ready = function(info);
  cuda::LaunchAttribute attribute = {};
  attribute.id = cuda::LaunchAttributeId::kClusterDimension;
  attribute.value.cluster = {cluster.x, cluster.y, cluster.z};
  const cuda::LaunchConfig config = {
      cluster.x, cluster.y,  cluster.z, info.threads, 1, 1, info.dynamic_shared_bytes,
      nullptr,   &attribute, 1};
  int count = 0;
  const cuda::Result result = driver().occupancy_max_active_clusters(&count, ready, &config);
  // Which error says that the GPU runs no such clusters is not documented.
  const bool is_cluster = cluster.x * cluster.y * cluster.z > 1;
  if (result == cuda::kInvalidClusterSize || (is_cluster && result == cuda::kInvalidValue)) {
    count = 0;
  } else {
    check_result(driver(), result, concat("cuOccupancyMaxActiveClusters of ", info.name));
  }
  const std::unique_lock lock(mutex_);
  active_clusters_.emplace(key, count);
  return count;
}

uint64_t CudaContext::error_record() {
  {
    const std::shared_lock lock(mutex_);
    if (error_address_ != 0) return error_address_;
  }
  const Current current(*this);
  const RelaxedCapture relaxed(driver());
  const std::unique_lock lock(mutex_);
  if (error_ == nullptr) {
    void* memory = nullptr;
    check_result(driver(),
                 driver().mem_host_alloc(&memory, sizeof(DeviceError),
                                         cuda::kHostAllocPortable | cuda::kHostAllocDeviceMap),
                 "cuMemHostAlloc");
    error_ = new (memory) DeviceError;
  }
  if (error_address_ == 0) {
    uint64_t address = 0;
    check_result(driver(), driver().mem_host_get_device_pointer(&address, error_, 0),
                 concat("cuMemHostGetDevicePointer on device ", device_index_));
    error_address_ = address;
  }
  return error_address_;
}

std::optional<DeviceError> CudaContext::take_error() {
  const Current current(*this);
  const RelaxedCapture relaxed(driver());
  check_result(driver(), driver().ctx_synchronize(),
               concat("cuCtxSynchronize of device ", device_index_));
  return clear_error();
}

std::optional<DeviceError> CudaContext::take_error(const Launch& launch, cuda::Stream stream) {
  const RelaxedCapture relaxed(driver());
  cuda::CaptureStatus status = cuda::CaptureStatus::kNone;
  const cuda::Result result = driver().stream_is_capturing(stream, &status);
  // Implicit: the default stream waits for one that is captured.
  if (result == cuda::kStreamCaptureImplicit) return std::nullopt;
  check_result(driver(), result, concat("cuStreamIsCapturing on device ", device_index_));
  if (status != cuda::CaptureStatus::kNone) return std::nullopt;
  check_result(
      driver(), driver().stream_synchronize(stream),
      concat("cuStreamSynchronize after ", describe(launch), " on device ", device_index_));
  return clear_error();
}

std::optional<DeviceError> CudaContext::clear_error() {
  const std::unique_lock lock(mutex_);
  if (error_ == nullptr || error_->kind == DeviceErrorKind::kNone) return std::nullopt;
  return std::exchange(*error_, {});
}

void CudaContext::check_error(const std::optional<DeviceError>& error) const {
  if (error) throw ArgumentError(concat(describe(*error), " (CUDA device ", device_index_, ")"));
}

}  // namespace pykernels
