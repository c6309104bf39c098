#include "emulator/emulated_device.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "emulator/machine/independent.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kMaxSharedBytesPerBlock = 232448;  // sm_90, with opt-in

/// Each once, in the order of the launches.
std::string kernel_names(const std::vector<MachineLaunch>& launches) {
  std::vector<std::string> names;
  for (const MachineLaunch& launch : launches) {
    const std::string& name = launch.program->name;
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  std::string text;
  for (const std::string& name : names) text += concat(text.empty() ? "" : ", ", name);
  return text;
}

}  // namespace

EmulatedDevice::EmulatedDevice(const MachineOptions& options) : options_(options) {
  properties_.name = "emulator";
  properties_.num_sms = options.num_sms;
  properties_.compute_capability_major = 9;
  properties_.compute_capability_minor = 0;
  properties_.max_shared_bytes_per_block = kMaxSharedBytesPerBlock;
}

TensorMap EmulatedDevice::encode_tensor_map(const TensorMapFields& fields) {
  check_tensor_map(fields);
  return encode_emulated(fields);
}

int EmulatedDevice::max_active_clusters(const KernelInfo& kernel, Dim3 cluster) {
  const auto size = static_cast<int>(cluster.x * cluster.y * cluster.z);
  PK_CHECK(size >= 1, "a cluster must have at least one CTA");
  const auto per_sm = static_cast<int>(
      max_ctas_per_sm(std::max(kernel.threads, 1u), kernel.registers, kernel.dynamic_shared_bytes));
  return options_.num_sms * per_sm / size;
}

void EmulatedDevice::replay(std::vector<std::shared_ptr<const Trace>> traces) {
  replays_ = true;
  traces_.assign(traces.begin(), traces.end());
}

void EmulatedDevice::run(const Launch& launch) {
  run_launches(launch.kernel, {make_machine_launch(launch)});
}

void EmulatedDevice::run_together(const std::vector<Launch>& launches) {
  PK_CHECK(!launches.empty(), "launches must be at least one, got none");
  std::vector<MachineLaunch> together;
  for (const Launch& launch : launches) {
    together.push_back(make_machine_launch(launch));
    together.back().follows_list = false;
  }
  run_launches(kernel_names(together), together);
}

void EmulatedDevice::run_streams(const std::vector<StreamedLaunch>& launches) {
  std::vector<MachineLaunch> streams;
  std::map<std::pair<uint32_t, uint32_t>, size_t> last;  // of a rank's stream
  for (const StreamedLaunch& streamed : launches) {
    MachineLaunch launch = make_machine_launch(streamed.launch);
    launch.stream = streamed.stream;
    launch.after = streamed.after;
    const auto [before, is_first] = last.try_emplace({launch.rank, launch.stream}, streams.size());
    if (!is_first && !launch.programmatic_dependent) launch.after.push_back(before->second);
    before->second = streams.size();
    streams.push_back(std::move(launch));
  }
  if (!streams.empty()) run_launches(kernel_names(streams), streams);
}

void EmulatedDevice::run_launches(const std::string& name,
                                  const std::vector<MachineLaunch>& launches) {
  if (replays_) {
    options_.trace = traces_.empty() ? std::make_shared<const Trace>() : traces_.front();
    if (!traces_.empty()) traces_.pop_front();
  }
  error_ = {};  // a launch that was interrupted may have left one
  try {
    reports_.emplace_back(name, emulator::run_launches(options_, launches));
  } catch (const EmulationError& error) {
    reports_.emplace_back(name, error.report());
    error_ = {};
    throw;
  }
  if (const auto error = take_error()) throw ArgumentError(describe(*error));
}

std::optional<DeviceError> EmulatedDevice::take_error() {
  const DeviceError error = std::exchange(error_, {});
  return error.kind == DeviceErrorKind::kNone ? std::nullopt : std::optional(error);
}

std::shared_ptr<const LoadedModule> registered_module(const KernelInfo& kernel) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const LoadedModule>> modules;  // by path
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<const LoadedModule>& module = modules[kernel.ptx_path];
  if (module == nullptr) module = load_module(read_file(kernel.ptx_path));
  return module;
}

MachineLaunch make_machine_launch(const Launch& launch) {
  const KernelInfo& kernel = Registry::instance().get(launch.kernel);
  MachineLaunch result;
  result.module = registered_module(kernel);
  result.program = result.module->find(launch.kernel);
  if (result.program == nullptr) {
    throw EnvironmentError(concat(kernel.ptx_path, " holds no kernel '", launch.kernel, "'"));
  }
  result.grid = launch.grid;
  result.block = launch.block;
  result.cluster = launch.cluster;
  result.dynamic_shared_bytes = launch.dynamic_shared_bytes;
  result.registers = kernel.registers;
  result.programmatic_dependent = launch.programmatic_dependent;
  result.rank = launch.rank;
  const auto* first = reinterpret_cast<const uint8_t*>(launch.arguments.data());
  result.parameters.assign(first, first + launch.arguments.size());
  for (const MemoryRange& range : launch.memory) {
    result.memory.push_back(Allocation{range.address, range.bytes, range.name, true});
  }
  return result;
}

}  // namespace pykernels::emulator
