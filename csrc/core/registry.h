// The kernels of the package: name -> PTX, cubin and metadata. Filled once from the package's
// metadata files, read by config selection and by both devices, from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

namespace pykernels {

struct KernelInfo {
  std::string name;                       // entry point, for example fp8_gemm_nt_m128n128c2
  std::string family;                     // for example fp8_gemm_nt
  std::map<std::string, int64_t> config;  // the family's config fields, for example block_m -> 128
  uint32_t threads = 0;                   // per CTA
  uint32_t registers = 0;                 // per thread, at launch
  uint32_t dynamic_shared_bytes = 0;
  uint32_t param_bytes = 0;
  std::string ptx_path;
  std::string cubin_path;
  // The oldest driver that loads the cubin, as cuDriverGetVersion counts: 1000 * major + 10 *
  // minor. A cubin loads on every driver of its ptxas' major version: 13000 for ptxas 13, 12000 for
  // ptxas 12.
  int min_driver_version = 13000;

  friend bool operator==(const KernelInfo&, const KernelInfo&) = default;
};

class Registry {
 public:
  static Registry& instance();

  /// Adds or replaces a kernel. References to a replaced one stay valid.
  void add(KernelInfo info);

  /// Throws EnvironmentError naming the kernel and the known ones if there is none of this name.
  const KernelInfo& get(std::string_view name) const;

  /// All kernels of a family, in the order of their names.
  std::vector<const KernelInfo*> family(std::string_view family) const;

  /// All kernels, in the order of their names.
  std::vector<const KernelInfo*> all() const;

  /// Another value after each change: whether what was derived from the kernels still holds.
  uint64_t generation() const { return generation_.load(std::memory_order_acquire); }

 private:
  mutable std::shared_mutex mutex_;
  std::deque<KernelInfo> storage_;  // never shrinks, so that references stay valid
  std::map<std::string, const KernelInfo*, std::less<>> kernels_;
  std::atomic<uint64_t> generation_{0};
};

/// The whole file. Throws EnvironmentError with path and reason if it cannot be read.
std::string read_file(const std::string& path);

}  // namespace pykernels
