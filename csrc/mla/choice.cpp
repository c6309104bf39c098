// Which kernel takes a request's rows, and how many parts share the requests.
#include <algorithm>

#include "core/math.h"
#include "core/registry.h"
#include "mla/launch.h"

namespace pykernels::mla {
namespace {

constexpr int64_t kWideRows = 64;  // of a CTA that has tokens on N; the others have rows on N

/// CTAs that the device holds together: of the kernels of both layouts of the cache, since a plan
/// serves either, the lesser number.
int64_t num_resident_ctas(Device& device, int64_t num_rows) {
  // A CTA occupies an SM: its two blocks and q alone take more than half of the shared memory.
  const int num_sms = device.properties().num_sms;
  const int64_t cluster = choose_config(num_rows, false, num_sms).cluster;
  int64_t num_clusters = num_sms / cluster;
  const auto kernels = Registry::instance().all();
  for (const bool fp8 : {false, true}) {
    const std::string name = kernel_name(choose_config(num_rows, fp8, num_sms));
    const auto found =
        std::ranges::find_if(kernels, [&](const KernelInfo* info) { return info->name == name; });
    if (found == kernels.end()) continue;
    const Dim3 shape{.x = static_cast<uint32_t>(cluster)};
    num_clusters = std::min<int64_t>(num_clusters, device.max_active_clusters(**found, shape));
  }
  return num_clusters * cluster;
}

}  // namespace

MlaDecodeConfig choose_config(int64_t num_rows, bool fp8, int num_sms) {
  for (const uint32_t block_rows : {8u, 16u, 32u}) {
    if (num_rows <= block_rows) return {.block_rows = block_rows, .cluster = 1, .fp8 = fp8};
  }
  const bool in_pairs = ceil_div(num_rows, kWideRows) % 2 == 0 && num_sms > 1;
  return {.block_rows = kWideRows, .cluster = in_pairs ? 2u : 1u, .fp8 = fp8};
}

std::string kernel_name(const MlaDecodeConfig& config) {
  const std::string name = config.fp8 ? "mla_decode_fp8" : "mla_decode_bf16";
  if (config.is_transposed()) return name + "_n" + std::to_string(config.block_rows);
  return name + "_m" + std::to_string(config.block_rows) + "c" + std::to_string(config.cluster);
}

int64_t num_row_tiles(int64_t num_rows, const MlaDecodeConfig& config) {
  return ceil_div(num_rows, config.block_rows);
}

int64_t num_parts(Device& device, int64_t num_rows, std::optional<int64_t> num_sms) {
  const MlaDecodeConfig config = choose_config(num_rows, false, device.properties().num_sms);
  int64_t num_ctas = num_resident_ctas(device, num_rows);
  if (num_sms.has_value()) {
    num_ctas = std::min(num_ctas, *num_sms / config.cluster * config.cluster);
  }
  return std::max<int64_t>(num_ctas / num_row_tiles(num_rows, config), 1);
}

}  // namespace pykernels::mla
