// Opening libcuda.so.1 and turning its errors into words.
#include "core/driver.h"

#include <dlfcn.h>

#include "core/check.h"

namespace pykernels::cuda {
namespace {

using GetProcAddress = Result (*)(const char* symbol, void** function, int version, uint64_t flags,
                                  int* status);

void* open_library() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const char* reason = dlerror();
  throw EnvironmentError(concat("no NVIDIA driver was found (",
                                reason != nullptr ? reason : "libcuda.so.1 cannot be opened",
                                "); CUDA tensors need ", describe_requirement(kMinDriverVersion)));
}

int library_version(void* library) {
  const auto get_version = reinterpret_cast<decltype(DriverTable::driver_get_version)>(
      dlsym(library, "cuDriverGetVersion"));
  int version = 0;
  if (get_version == nullptr || get_version(&version) != kSuccess) {
    throw EnvironmentError("libcuda.so.1 does not tell its version (cuDriverGetVersion failed)");
  }
  return version;
}

}  // namespace

std::string version_text(int version) { return concat(version / 1000, '.', version % 1000 / 10); }

std::string describe_requirement(int version) {
  const char* branch = version == 12000   ? " (driver 525 or newer)"
                       : version == 13000 ? " (driver 580 or newer)"
                                          : "";
  return concat("a driver for CUDA ", version_text(version), branch);
}

DriverTable load_driver() {
  void* library = open_library();
  const int version = library_version(library);
  const auto get_address = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
  if (version < kMinDriverVersion || get_address == nullptr) {
    throw EnvironmentError(concat("the NVIDIA driver found is for CUDA ", version_text(version),
                                  "; needed is ", describe_requirement(kMinDriverVersion)));
  }
  DriverTable table = {};
  for_each_function(table, [&](const char* symbol, auto& member) {
    void* address = nullptr;
    int status = 0;
    const Result result = get_address(symbol, &address, kMinDriverVersion, 0, &status);
    if (result != kSuccess || address == nullptr) {
      throw EnvironmentError(
          concat("the NVIDIA driver found (CUDA ", version_text(version), ") has no ", symbol));
    }
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(address);
  });
  check_result(table, table.init(0), "cuInit");
  return table;
}

void check_result(const DriverTable& driver, Result result, const std::string& what,
                  const std::string& hint) {
  if (result == kSuccess) return;
  const char* name = nullptr;
  const char* text = nullptr;
  if (driver.get_error_name(result, &name) != kSuccess || name == nullptr) name = "unknown error";
  if (driver.get_error_string(result, &text) != kSuccess || text == nullptr)
    text = "no description";
  throw EnvironmentError(
      concat(what, " failed: ", name, " (", result, "): ", text, hint.empty() ? "" : "; ", hint));
}

}  // namespace pykernels::cuda
