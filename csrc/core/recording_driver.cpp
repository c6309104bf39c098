// The state of the recording driver and what its launches check.
#include "core/recording_driver.h"

#include <algorithm>
#include <atomic>
#include <tuple>
#include <utility>

#include "core/check.h"
#include "core/cuda_context.h"
#include "core/recording_functions.h"
#include "core/registry.h"

namespace pykernels {
namespace {

constexpr uint64_t kAddressSpaceEnd = 1ull << 47;  // of a process on x86-64
constexpr uint32_t kMaxPortableCluster = 8;
constexpr uint32_t kMaxThreads = 1024;

uint64_t volume(const Dim3& dim) { return uint64_t{dim.x} * dim.y * dim.z; }

bool divides(const Dim3& cluster, const Dim3& grid) {
  return grid.x % cluster.x == 0 && grid.y % cluster.y == 0 && grid.z % cluster.z == 0;
}

uint64_t next_serial() {
  static std::atomic<uint64_t> count = 0;
  return ++count;
}

/// Reads the attributes that the library uses; any other is an error.
cuda::Result read_attributes(const cuda::LaunchConfig& config, Launch* launch) {
  for (unsigned i = 0; i < config.num_attributes; ++i) {
    const cuda::LaunchAttribute& attribute = config.attributes[i];
    switch (attribute.id) {
      case cuda::LaunchAttributeId::kClusterDimension: {
        const auto& cluster = attribute.value.cluster;
        launch->cluster = {cluster.x, cluster.y, cluster.z};
        break;
      }
      case cuda::LaunchAttributeId::kProgrammaticStreamSerialization:
        launch->programmatic_dependent =
            attribute.value.programmatic_stream_serialization_allowed != 0;
        break;
      default:
        return cuda::kInvalidValue;
    }
  }
  return cuda::kSuccess;
}

}  // namespace

RecordingDriver::RecordingDriver(RecordingOptions options, Device* target)
    : serial_(next_serial()),
      options_(std::move(options)),
      target_(target),
      device_memory_(serial_) {
  PK_CHECK(options_.num_devices >= 0, "num_devices must not be negative, got ",
           options_.num_devices);
  PK_CHECK(active_recording_driver() == nullptr, "one recording driver is installed already");
  for (int i = 0; i < options_.num_devices; ++i) {
    contexts_.push_back(std::make_unique<cuda::OpaqueContext>(cuda::OpaqueContext{i}));
  }
  active_recording_driver() = this;
  const cuda::DriverTable table = recording_table();
  try {
    CudaRuntime::install(&table);
  } catch (...) {
    active_recording_driver() = nullptr;
    throw;
  }
}

RecordingDriver::~RecordingDriver() { uninstall(); }

void RecordingDriver::uninstall() {
  if (active_recording_driver() != this) return;
  CudaRuntime::install(nullptr);
  active_recording_driver() = nullptr;
}

void RecordingDriver::register_memory(uint64_t address, uint64_t bytes, std::string name) {
  const std::lock_guard lock(mutex_);
  memory_names_.push_back(std::move(name));
  memory_.push_back({address, bytes, memory_names_.back().c_str()});
}

uint64_t RecordingDriver::create_stream(int device_index) {
  PK_CHECK(device_index >= 0 && device_index < options_.num_devices,
           "device_index must be from 0 to ", options_.num_devices - 1, ", got ", device_index);
  const std::lock_guard lock(mutex_);
  streams_.push_back(std::make_unique<cuda::OpaqueStream>(cuda::OpaqueStream{device_index}));
  return reinterpret_cast<uint64_t>(streams_.back().get());
}

void RecordingDriver::fail(const std::string& function, cuda::Result error) {
  const std::lock_guard lock(mutex_);
  failures_[function] = error;
}

void RecordingDriver::begin_capture(uint64_t stream) {
  const std::lock_guard lock(mutex_);
  PK_CHECK(capturing_.empty(), "a stream is being captured already");
  PK_CHECK(stream != 0, "the legacy default stream cannot be captured");
  capturing_ = {reinterpret_cast<cuda::Stream>(stream)};
}

void RecordingDriver::join_capture(uint64_t stream) {
  const std::lock_guard lock(mutex_);
  PK_CHECK(!capturing_.empty(), "no stream is being captured");
  PK_CHECK(stream != 0, "the legacy default stream cannot be captured");
  capturing_.push_back(reinterpret_cast<cuda::Stream>(stream));
}

void RecordingDriver::end_capture() {
  const std::lock_guard lock(mutex_);
  PK_CHECK(!capturing_.empty(), "no stream is being captured");
  capturing_.clear();
}

void RecordingDriver::replay() {
  std::vector<size_t> places;  // of the captured launches among those collected
  for (const RecordedLaunch& recorded : launches()) {
    if (!recorded.captured) continue;
    std::vector<size_t> after;
    for (const size_t captured : recorded.after) after.push_back(places.at(captured));
    places.push_back(run(recorded, std::move(after)));
  }
}

void RecordingDriver::run_collected() {
  std::vector<StreamedLaunch> launches;
  {
    const std::lock_guard lock(mutex_);
    std::map<std::tuple<int, int, uint64_t>, uint32_t> streams;
    for (size_t i = 0; i < collected_.size(); ++i) {
      RecordedLaunch& recorded = collected_[i];
      const auto stream = static_cast<uint32_t>(streams.size());
      const auto place =
          streams.try_emplace({recorded.process, recorded.device_index, recorded.stream}, stream);
      launches.push_back({std::move(recorded.launch), place.first->second, std::move(after_[i])});
    }
    num_run_ += collected_.size();
    collected_.clear();
    after_.clear();
    awaited_.clear();
  }
  run_streams(launches);
}

uint64_t RecordingDriver::num_collected() const {
  const std::lock_guard lock(mutex_);
  return num_run_ + collected_.size();
}

void RecordingDriver::wait_stream(uint64_t waiting, uint64_t awaited, uint64_t num_collected) {
  const std::lock_guard lock(mutex_);
  // What the awaited stream is behind, without a launch of its own since.
  const std::vector<size_t> inherited = awaited_[awaited];
  std::vector<size_t>& after = awaited_[waiting];
  after.insert(after.end(), inherited.begin(), inherited.end());
  if (!capturing_.empty()) {
    const size_t found = last_captured(awaited);
    if (found != kNone) after.push_back(found);
    return;
  }
  for (size_t i = collected_.size(); i > 0; --i) {
    if (collected_[i - 1].stream != awaited || num_run_ + i > num_collected) continue;
    after.push_back(i - 1);
    return;
  }
}

void RecordingDriver::set_process(int process) {
  PK_CHECK(process >= 0, "process must not be negative, got ", process);
  thread_process() = process;
}

std::vector<std::string> RecordingDriver::violations() const {
  const std::lock_guard lock(mutex_);
  return device_memory_.violations();
}

void RecordingDriver::set_current_device(int device_index) {
  PK_CHECK(device_index >= -1 && device_index < options_.num_devices,
           "device_index must be from -1 to ", options_.num_devices - 1, ", got ", device_index);
  auto& stack = thread_contexts();
  stack.clear();
  if (device_index >= 0) stack.push_back(contexts_[static_cast<size_t>(device_index)].get());
}

int RecordingDriver::current_device() const {
  const auto& stack = thread_contexts();
  return stack.empty() ? -1 : stack.back()->device_index;
}

std::vector<RecordedLaunch> RecordingDriver::launches() const {
  const std::lock_guard lock(mutex_);
  return launches_;
}

void RecordingDriver::clear_launches() {
  const std::lock_guard lock(mutex_);
  launches_.clear();
}

std::map<std::string, uint64_t> RecordingDriver::calls() const {
  const std::lock_guard lock(mutex_);
  return {calls_.begin(), calls_.end()};
}

uint32_t RecordingDriver::max_dynamic_shared_bytes(const std::string& kernel,
                                                   int device_index) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [key, function] : functions_) {
    if (key.first->name == kernel && key.second == device_index) {
      return function->max_dynamic_shared_bytes;
    }
  }
  return 0;
}

cuda::Result RecordingDriver::enter(const char* function) {
  const std::lock_guard lock(mutex_);
  const auto count = calls_.find(function);
  if (count != calls_.end()) {
    ++count->second;
  } else {
    calls_.emplace(function, 1);
  }
  const auto failure = failures_.find(function);
  return failure == failures_.end() ? cuda::kSuccess : failure->second;
}

bool RecordingDriver::refuses_unsafe_calls() const {
  const std::lock_guard lock(mutex_);
  return !capturing_.empty() && thread_capture_mode() != cuda::CaptureMode::kRelaxed;
}

bool RecordingDriver::is_capturing(cuda::Stream stream) const {
  const std::lock_guard lock(mutex_);
  return std::find(capturing_.begin(), capturing_.end(), stream) != capturing_.end();
}

bool RecordingDriver::is_capturing(cuda::Context context) const {
  const std::lock_guard lock(mutex_);
  return std::any_of(capturing_.begin(), capturing_.end(), [&](const cuda::Stream stream) {
    return stream->device_index == context->device_index;
  });
}

bool RecordingDriver::knows(cuda::Context context) const {
  return std::any_of(contexts_.begin(), contexts_.end(),
                     [&](const auto& known) { return known.get() == context; });
}

bool RecordingDriver::knows(cuda::Function function) const {
  const std::lock_guard lock(mutex_);
  return std::any_of(functions_.begin(), functions_.end(),
                     [&](const auto& known) { return known.second.get() == function; });
}

cuda::Result RecordingDriver::device_of_stream(cuda::Stream stream, int* device_index) const {
  if (stream == nullptr) return cuda::kSuccess;  // of whichever context is current
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(streams_.begin(), streams_.end(),
                                  [&](const auto& known) { return known.get() == stream; });
  if (found == streams_.end()) return cuda::kInvalidHandle;
  *device_index = (*found)->device_index;
  return cuda::kSuccess;
}

cuda::Result RecordingDriver::read_config(const cuda::LaunchConfig& config, cuda::Function function,
                                          Launch* launch) const {
  launch->grid = {config.grid_x, config.grid_y, config.grid_z};
  launch->block = {config.block_x, config.block_y, config.block_z};
  launch->dynamic_shared_bytes = config.dynamic_shared_bytes;
  const cuda::Result result = read_attributes(config, launch);
  if (result != cuda::kSuccess) return result;
  const KernelInfo& info = Registry::instance().get(function->kernel->name);
  launch->kernel = info.name;
  const uint64_t threads = volume(launch->block);
  const uint64_t cluster = volume(launch->cluster);
  if (volume(launch->grid) == 0 || threads == 0 || threads > kMaxThreads ||
      threads > info.threads || cluster == 0 || cluster > kMaxPortableCluster ||
      !divides(launch->cluster, launch->grid) ||
      launch->dynamic_shared_bytes > function->max_dynamic_shared_bytes) {
    return cuda::kInvalidValue;
  }
  const std::lock_guard lock(mutex_);
  launch->memory = memory_;
  if (memory_.empty()) {
    launch->memory.push_back({4096, kAddressSpaceEnd - 4096, "memory"});
  } else {
    for (const HostMemory& host : host_memory_) {
      launch->memory.push_back(
          {reinterpret_cast<uint64_t>(host.bytes.data()), host.bytes.size(), "pinned memory"});
    }
    device_memory_.append_ranges(thread_process(), launch->memory);
  }
  return cuda::kSuccess;
}

void* RecordingDriver::allocate(size_t bytes, unsigned flags) {
  const std::lock_guard lock(mutex_);
  host_memory_.push_back({std::vector(bytes, kFreshByte), flags});
  return host_memory_.back().bytes.data();
}

bool RecordingDriver::is_mapped(const void* memory) const {
  const std::lock_guard lock(mutex_);
  return std::any_of(host_memory_.begin(), host_memory_.end(), [&](const HostMemory& host) {
    return host.bytes.data() == memory && (host.flags & cuda::kHostAllocDeviceMap) != 0;
  });
}

void RecordingDriver::wait() {
  if (options_.collects) run_collected();
  const std::lock_guard lock(target_mutex_);
}

void RecordingDriver::record(RecordedLaunch recorded) {
  std::vector<size_t> after;
  {
    const std::lock_guard lock(mutex_);
    after = std::exchange(awaited_[recorded.stream], {});
    if (recorded.captured) recorded.after = after;
    launches_.push_back(recorded);
  }
  if (!recorded.captured) run(recorded, std::move(after));
}

size_t RecordingDriver::run(const RecordedLaunch& recorded, std::vector<size_t> after) {
  if (target_ == nullptr) return 0;
  if (!options_.collects) {
    run_streams({{recorded.launch, 0, {}}});
    return 0;
  }
  const std::lock_guard lock(mutex_);
  collected_.push_back(recorded);
  after_.push_back(std::move(after));
  return collected_.size() - 1;
}

size_t RecordingDriver::last_captured(uint64_t stream) const {
  size_t num_captured = 0;
  size_t found = kNone;
  for (const RecordedLaunch& recorded : launches_) {
    if (!recorded.captured) continue;
    if (recorded.stream == stream) found = num_captured;
    ++num_captured;
  }
  return found;
}

void RecordingDriver::run_streams(const std::vector<StreamedLaunch>& launches) {
  const std::lock_guard lock(target_mutex_);
  target_->run_streams(launches);
}

}  // namespace pykernels
