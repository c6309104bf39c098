// The Device that interprets PTX on the CPU: same Launch, same PTX text, same tensor maps as the
// GPU.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {

class EmulatedDevice : public Device {
 public:
  explicit EmulatedDevice(const MachineOptions& options);

  const DeviceProperties& properties() const override { return properties_; }
  TensorMap encode_tensor_map(const TensorMapFields& fields) override;
  int max_active_clusters(const KernelInfo& kernel, Dim3 cluster) override;
  /// Runs to the end; findings and counters are added to reports(). Throws EmulationError, and
  /// ArgumentError with the error that the kernel left.
  void run(const Launch& launch) override;
  /// The same of launches that are resident together: each rank has all the device's SMs to itself,
  /// and they add one report, under the names of their kernels. None is the dependent of another.
  void run_together(const std::vector<Launch>& launches) override;
  /// All in one run, which adds one report: whatever order the streams leave open is drawn from the
  /// seed. Programmatic dependents overlap with the launch before them in their stream.
  void run_streams(const std::vector<StreamedLaunch>& launches) override;
  uint64_t error_record() override { return reinterpret_cast<uint64_t>(&error_); }
  std::optional<DeviceError> take_error() override;
  /// The runs from now on replay these, one each; later ones an empty trace.
  void replay(std::vector<std::shared_ptr<const Trace>> traces);

  const std::vector<std::pair<std::string, Report>>& reports() const {
    return reports_;
  }  // kernel, report

 private:
  void run_launches(const std::string& name, const std::vector<MachineLaunch>& launches);

  MachineOptions options_;
  bool replays_ = false;
  std::deque<std::shared_ptr<const Trace>> traces_;  // of the runs to come
  DeviceProperties properties_;
  std::vector<std::pair<std::string, Report>> reports_;
  DeviceError error_;  // the record
};

/// The loaded module of a registered kernel, parsed once in the process.
std::shared_ptr<const LoadedModule> registered_module(const KernelInfo& kernel);

/// A launch of a registered kernel turned into what the machine runs.
MachineLaunch make_machine_launch(const Launch& launch);

}  // namespace pykernels::emulator
