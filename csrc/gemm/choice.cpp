// The constants of devices, and what each thread remembers of its choices.
#include "gemm/choice.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "core/check.h"

namespace pykernels::gemm {
namespace {

std::atomic<bool> has_warning{false};
std::mutex warning_mutex;           // of the two below
std::vector<std::string> warnings;  // not taken yet
std::set<std::string> warned_names;

void warn_of(const DeviceProperties& properties, const GpuModel& taken) {
  const std::lock_guard lock(warning_mutex);
  if (!warned_names.insert(properties.name).second) return;
  warnings.push_back(concat("no constants are known for the GPU ", properties.name, " with ",
                            properties.num_sms, " SMs; kernels are chosen with those of ",
                            taken.name, ", which `python -m pykernels calibrate` can improve"));
  has_warning.store(true, std::memory_order_release);
}

/// The driver's counts of clusters, asked with the kernel of the family that has most sizes: every
/// kernel fills an SM, and asking loads it.
void ask_active_clusters(Device& device, const GemmFamily& family, GpuModel& gpu) {
  const auto most = std::max_element(
      family.begin(), family.end(),
      [](const auto& a, const auto& b) { return a.num_schedules < b.num_schedules; });
  if (most == family.end()) return;
  for (const GemmSchedule& schedule : most->schedules()) {
    const uint32_t size = schedule.cluster();
    const int count = device.max_active_clusters(*most->info, {size, 1, 1});
    gpu.active_clusters[size] = std::min(count, gpu.num_sms / static_cast<int>(size));
  }
}

/// A device's constants; never removed, so that references stay valid.
struct DeviceEntry {
  const void* properties;  // of a GPU, which live as long as its context; null: any emulated device
  std::string name;
  int num_sms;
  const GemmFamily* family;  // that its clusters were asked with
  GpuModel gpu;
};

class DeviceTable {
 public:
  const GpuModel& find_or_make(Device& device) {
    const DeviceProperties& properties = device.properties();
    const bool emulated = properties.name == kEmulatorName;
    const void* key = emulated ? nullptr : &properties;
    const GemmFamily& family = registered_family(false);
    {
      const std::shared_lock lock(mutex_);
      if (const GpuModel* found = find(properties, key, family)) return *found;
    }
    const GpuModel* known = find_gpu_model(properties.name);
    const GpuModel& base = known != nullptr ? *known : nearest_gpu_model(properties.num_sms);
    if (known == nullptr) warn_of(properties, base);
    GpuModel gpu = with_num_sms(base, properties.num_sms);
    if (!emulated) ask_active_clusters(device, family, gpu);
    const std::unique_lock lock(mutex_);
    if (const GpuModel* found = find(properties, key, family)) return *found;
    return entries_
        .emplace_back(DeviceEntry{key, properties.name, properties.num_sms, &family, gpu})
        .gpu;
  }

 private:
  const GpuModel* find(const DeviceProperties& properties, const void* key,
                       const GemmFamily& family) const {
    for (const DeviceEntry& entry : entries_) {
      if (entry.properties == key && entry.family == &family &&
          entry.num_sms == properties.num_sms && entry.name == properties.name) {
        return &entry.gpu;
      }
    }
    return nullptr;
  }

  std::shared_mutex mutex_;
  std::deque<DeviceEntry> entries_;
};

/// A choice of this thread. GPU and family are known by their addresses, which never change what
/// they hold.
struct Remembered {
  GemmProblem problem;
  const GpuModel* gpu = nullptr;
  const GemmFamily* family = nullptr;
  GemmCandidate choice;
};

constexpr size_t kNumRemembered = 64;

size_t place_of(const GemmProblem& problem) {
  const auto mixed = (static_cast<uint64_t>(problem.m) * 0x9e3779b97f4a7c15u) ^
                     (static_cast<uint64_t>(problem.n) * 0xc2b2ae3d27d4eb4fu) ^
                     (static_cast<uint64_t>(problem.k) * 0x165667b19e3779f9u);
  return (mixed >> 40) % kNumRemembered;
}

}  // namespace

const GpuModel& gpu_model_of(Device& device) {
  static DeviceTable table;
  return table.find_or_make(device);
}

bool has_gpu_warning() { return has_warning.load(std::memory_order_acquire); }

std::optional<std::string> take_gpu_warning() {
  if (!has_gpu_warning()) return std::nullopt;
  const std::lock_guard lock(warning_mutex);
  if (warnings.empty()) return std::nullopt;
  std::string message = std::move(warnings.back());
  warnings.pop_back();
  has_warning.store(!warnings.empty(), std::memory_order_release);
  return message;
}

GemmCandidate choose_kernel(Device& device, GemmProblem problem) {
  thread_local std::array<Remembered, kNumRemembered> remembered;
  const GpuModel& gpu = gpu_model_of(device);
  const GemmFamily& family = registered_family(problem.num_groups > 0);
  if (problem.num_sms <= 0 || problem.num_sms > gpu.num_sms) problem.num_sms = gpu.num_sms;
  Remembered& entry = remembered[place_of(problem)];
  if (entry.gpu != &gpu || entry.family != &family || !(entry.problem == problem)) {
    const GemmCandidate choice = choose_config(problem, gpu, family);
    entry = {problem, &gpu, &family, choice};
  }
  return entry.choice;
}

}  // namespace pykernels::gemm
