// A CUDA driver for tests: as strict as the real one about contexts, streams, captures and launch
// attributes, it records every launch as it arrives and hands it to another Device, the emulator.
// So the CUDA path runs with CPU tensors on a machine without a GPU.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/driver.h"
#include "core/launch.h"
#include "core/recording_memory.h"

namespace pykernels {

/// The GPUs that the driver pretends to have: all alike.
struct RecordingOptions {
  int num_devices = 1;
  int driver_version = 13000;
  uint32_t max_cluster = 8;  // CTAs
  bool peer_access = true;   // whether devices reach each other's memory
  bool collects = false;     // whether launches wait for run_collected
  DeviceProperties properties;
};

/// A launch as cuLaunchKernelEx received it.
struct RecordedLaunch {
  Launch launch;  // memory: what register_memory named, else all addresses
  int device_index = 0;
  uint64_t stream = 0;
  bool captured = false;      // kept by a capture instead of run
  int process = 0;            // that launched it; see set_process
  std::vector<size_t> after;  // captured ones: those of other streams that it is behind
};

class RecordingDriver {
 public:
  /// Installs itself for the whole process until uninstalled or destroyed; one at a time. `target`
  /// runs the launches; null leaves them recorded only.
  ///
  /// Launches that wait for one another cannot be run one by one. With RecordingOptions::collects
  /// they are kept until run_collected; see there.
  RecordingDriver(RecordingOptions options, Device* target);
  ~RecordingDriver();
  RecordingDriver(const RecordingDriver&) = delete;
  RecordingDriver& operator=(const RecordingDriver&) = delete;

  void uninstall();

  /// Memory that launches may touch from now on, beside pinned memory, instead of all addresses.
  void register_memory(uint64_t address, uint64_t bytes, std::string name);
  /// The handle of a new stream of this device.
  uint64_t create_stream(int device_index);
  /// Calls of this driver function ("cuInit") return the error from now on; kSuccess ends that.
  void fail(const std::string& function, cuda::Result error);
  /// As cuStreamBeginCapture with mode global: launches on the stream are kept, not run, and calls
  /// that may allocate are refused in every thread that has not asked for relaxed mode.
  void begin_capture(uint64_t stream);
  /// As the wait of another stream for work of the captured one: its launches are kept, too.
  void join_capture(uint64_t stream);
  /// Of all streams.
  void end_capture();
  /// Runs the launches that were captured, in order, as the launch of the graph would.
  void replay();
  /// Runs the launches that were collected, all together and each behind the one before it in its
  /// stream. Whatever waits for launches does the same: synchronising a stream or a context, and
  /// freeing, unmapping or filling memory. If one fails, those behind it are dropped.
  void run_collected();
  /// How many launches have been collected.
  uint64_t num_collected() const;
  /// As cuStreamWaitEvent: what is launched on a stream from now on is behind what another one had
  /// when so many launches were collected.
  void wait_stream(uint64_t waiting, uint64_t awaited, uint64_t num_collected);
  /// Calls of this thread come from this process from now on; 0 at first. Processes have memory of
  /// their own and share the devices, their contexts and this driver's streams (but not stream 0).
  void set_process(int process);
  /// What was done that the real driver leaves undefined, in words.
  std::vector<std::string> violations() const;
  /// Makes a device's primary context current in this thread, as cudaSetDevice does; -1 for none.
  void set_current_device(int device_index);
  int current_device() const;  // -1 for none

  std::vector<RecordedLaunch> launches() const;
  void clear_launches();
  /// Tells this driver from all others of the process, from 1.
  uint64_t serial() const { return serial_; }
  /// How often each driver function was called.
  std::map<std::string, uint64_t> calls() const;
  /// The dynamic shared memory that a kernel is allowed on a device; 0 if it is not loaded there.
  uint32_t max_dynamic_shared_bytes(const std::string& kernel, int device_index) const;

 private:
  friend struct RecordingFunctions;  // the driver's functions

  using KernelOnDevice = std::pair<cuda::Kernel, int>;

  /// Counts the call; the error that it shall fail with, or success.
  cuda::Result enter(const char* function);
  /// Whether a capture forbids this thread what may disturb it: allocating, loading, waiting.
  bool refuses_unsafe_calls() const;
  bool is_capturing(cuda::Stream stream) const;
  /// Whether any stream of the context is captured.
  bool is_capturing(cuda::Context context) const;
  /// Whether the handle is one of this driver's, not of one that was closed.
  bool knows(cuda::Context context) const;
  bool knows(cuda::Function function) const;
  cuda::Result device_of_stream(cuda::Stream stream, int* device_index) const;
  cuda::Result read_config(const cuda::LaunchConfig& config, cuda::Function function,
                           Launch* launch) const;
  static constexpr size_t kNone = SIZE_MAX;

  /// Keeps it; runs or collects it unless it is captured.
  void record(RecordedLaunch recorded);
  /// Runs it, or collects it, behind others that are collected. Returns its place among them.
  size_t run(const RecordedLaunch& recorded, std::vector<size_t> after);
  /// The last captured launch of a stream, counted among all captured ones; kNone without one.
  size_t last_captured(uint64_t stream) const;
  void run_streams(const std::vector<StreamedLaunch>& launches);
  /// Pinned memory, kept as long as this driver.
  void* allocate(size_t bytes, unsigned flags);
  /// Whether the memory was allocated for devices too.
  bool is_mapped(const void* memory) const;
  /// Runs what was collected; returns when no launch is running.
  void wait();

  /// Pinned memory that was allocated with these flags.
  struct HostMemory {
    std::vector<std::byte> bytes;
    unsigned flags;
  };

  uint64_t serial_;
  RecordingOptions options_;
  Device* target_;
  mutable std::mutex mutex_;  // of all below
  std::mutex target_mutex_;   // launches run one after the other
  std::vector<std::unique_ptr<cuda::OpaqueContext>> contexts_;
  std::vector<std::unique_ptr<cuda::OpaqueStream>> streams_;
  std::vector<std::unique_ptr<cuda::OpaqueLibrary>> libraries_;
  std::vector<std::unique_ptr<cuda::OpaqueKernel>> kernels_;
  std::map<KernelOnDevice, std::unique_ptr<cuda::OpaqueFunction>> functions_;
  std::vector<RecordedLaunch> launches_;
  std::vector<RecordedLaunch> collected_;            // that have not run yet
  std::vector<std::vector<size_t>> after_;           // of each of these: others that it is behind
  std::map<uint64_t, std::vector<size_t>> awaited_;  // by stream: of its next launch
  uint64_t num_run_ = 0;                             // launches collected before these
  RecordingMemory device_memory_;
  std::vector<MemoryRange> memory_;
  std::deque<std::string> memory_names_;
  std::vector<HostMemory> host_memory_;
  std::map<std::string, uint64_t, std::less<>> calls_;
  std::map<std::string, cuda::Result, std::less<>> failures_;
  std::vector<cuda::Stream> capturing_;
};

}  // namespace pykernels
