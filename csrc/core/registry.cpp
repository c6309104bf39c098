// The process-wide table of kernels.
#include "core/registry.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <utility>

#include "core/check.h"

namespace pykernels {

Registry& Registry::instance() {
  static Registry registry;
  return registry;
}

void Registry::add(KernelInfo info) {
  PK_CHECK(!info.name.empty(), "a kernel must have a name");
  PK_CHECK(info.threads > 0 && info.threads <= 1024 && info.threads % 32 == 0, "threads of kernel ",
           info.name, " must be a multiple of 32 from 32 to 1024, got ", info.threads);
  const std::unique_lock lock(mutex_);
  const auto found = kernels_.find(info.name);
  if (found != kernels_.end() && *found->second == info) return;
  storage_.push_back(std::move(info));
  const KernelInfo& stored = storage_.back();
  kernels_[stored.name] = &stored;
  generation_.fetch_add(1, std::memory_order_release);
}

const KernelInfo& Registry::get(std::string_view name) const {
  const std::shared_lock lock(mutex_);
  const auto found = kernels_.find(name);
  if (found != kernels_.end()) return *found->second;
  std::string known;
  for (const auto& [other, info] : kernels_) known += concat(known.empty() ? "" : ", ", other);
  throw EnvironmentError(
      concat("no kernel named ", name, " is installed; known kernels: ",
             known.empty() ? "none (the package was built without them)" : known));
}

std::vector<const KernelInfo*> Registry::family(std::string_view family) const {
  std::vector<const KernelInfo*> members;
  for (const KernelInfo* info : all()) {
    if (info->family == family) members.push_back(info);
  }
  return members;
}

std::vector<const KernelInfo*> Registry::all() const {
  const std::shared_lock lock(mutex_);
  std::vector<const KernelInfo*> kernels;
  kernels.reserve(kernels_.size());
  for (const auto& [name, info] : kernels_) kernels.push_back(info);
  return kernels;
}

std::string read_file(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad()) {
    const char* reason = errno != 0 ? std::strerror(errno) : "unknown error";
    throw EnvironmentError(concat("cannot read ", path, ": ", reason));
  }
  return content;
}

}  // namespace pykernels
