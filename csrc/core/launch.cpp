// A launch in words.
#include "core/launch.h"

#include "core/check.h"

namespace pykernels {
namespace {

std::string to_text(const Dim3& dim) { return concat("(", dim.x, ", ", dim.y, ", ", dim.z, ")"); }

}  // namespace

std::string describe(const Launch& launch) {
  std::string names;
  for (const MemoryRange& range : launch.memory) {
    names += concat(names.empty() ? "" : ", ", range.name, ": ", range.bytes);
  }
  return concat("Launch(", launch.kernel, ", grid=", to_text(launch.grid),
                ", block=", to_text(launch.block), ", cluster=", to_text(launch.cluster),
                ", dynamic_shared_bytes=", launch.dynamic_shared_bytes,
                ", programmatic_dependent=", launch.programmatic_dependent ? "True" : "False",
                ", awaits_others=", launch.awaits_others ? "True" : "False", ", rank=", launch.rank,
                ", argument_bytes=", launch.arguments.size(), ", memory_bytes={", names, "})");
}

}  // namespace pykernels
