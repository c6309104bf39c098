#include "emulator/check/lanes.h"

#include "core/check.h"

namespace pykernels::emulator {

std::string ranges(uint32_t bits) {
  std::string text;
  for (int first = 0; first < 32; ++first) {
    if ((bits >> first & 1) == 0) continue;
    int last = first;
    while (last < 31 && (bits >> (last + 1) & 1) != 0) ++last;
    text += concat(text.empty() ? "" : ", ", first);
    if (last != first) text += concat("-", last);
    first = last;
  }
  return text;
}

std::string lanes_text(LaneMask lanes) {
  return concat(__builtin_popcount(lanes) == 1 ? "lane " : "lanes ", ranges(lanes));
}

std::string missing_lanes_text(const Warp& warp, LaneMask active) {
  const LaneMask absent = ~warp.live();
  const LaneMask kept_out = warp.live() & ~active;
  std::string text;
  if (absent != 0)
    text = concat(__builtin_popcount(absent), " do not run (", lanes_text(absent), ")");
  if (kept_out != 0)
    text += concat(text.empty() ? "" : ", and ", "a guard keeps out ", lanes_text(kept_out));
  return text;
}

}  // namespace pykernels::emulator
