// The kernels of the package: name -> PTX, cubin and metadata. Filled once from the package's metadata
// files, read by config selection and by both devices.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace pykernels {

struct KernelInfo {
  std::string name;        // entry point, for example fp8_gemm_nt_m128n128c2
  std::string family;      // for example fp8_gemm_nt
  std::map<std::string, int64_t> config;  // the family's config fields, for example block_m -> 128
  uint32_t threads = 0;    // per CTA
  uint32_t registers = 0;  // per thread, at launch
  uint32_t dynamic_shared_bytes = 0;
  uint32_t param_bytes = 0;
  std::string ptx_path;
  std::string cubin_path;
};

class Registry {
 public:
  static Registry& instance();

  /// Adds or replaces a kernel.
  void add(KernelInfo info);

  /// Throws EnvironmentError naming the kernel and the known ones if there is none of this name.
  const KernelInfo& get(const std::string& name) const;

  /// All kernels of a family, in the order of their names.
  std::vector<const KernelInfo*> family(const std::string& family) const;

 private:
  std::map<std::string, KernelInfo> kernels_;
};

/// The whole file. Throws EnvironmentError with path and reason if it cannot be read.
std::string read_file(const std::string& path);

}  // namespace pykernels
