// What stands behind the handles of the recording driver, and its table of functions.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/driver.h"

namespace pykernels {

namespace cuda {

struct OpaqueContext {
  int device_index;
};
struct OpaqueStream {
  int device_index;
};
struct OpaqueLibrary {
  std::set<std::string> symbols;
};
struct OpaqueKernel {
  std::string name;
};
struct OpaqueFunction {
  Kernel kernel;
  Context context;
  uint32_t max_dynamic_shared_bytes;
};

}  // namespace cuda

class RecordingDriver;

/// The functions of the driver that is installed.
cuda::DriverTable recording_table();

/// The driver that the functions belong to; null if none is installed.
RecordingDriver*& active_recording_driver();

/// This thread's stack of current contexts. Emptied when another driver is installed.
std::vector<cuda::Context>& thread_contexts();
/// The process that this thread plays; 0 when another driver is installed.
int& thread_process();
/// This thread's capture mode.
cuda::CaptureMode& thread_capture_mode();

/// The symbols of a cubin; nothing if the image is no ELF file for CUDA.
std::optional<std::set<std::string>> cubin_symbols(const void* image);

}  // namespace pykernels
