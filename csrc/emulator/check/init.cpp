#include "emulator/check/init.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {

void report_unwritten_register(Warp& warp, const Instruction& inst, const RegisterAccess& access,
                               LaneMask lanes) {
  const std::string& name = warp.program().register_names[access.register_index];
  const int lane = __builtin_ctz(lanes);
  const int others = __builtin_popcount(lanes) - 1;
  warp.machine().report("init",
                        concat("register ", name, " is read before it is written",
                               others != 0 ? concat(" (and in ", others, " more lanes)") : ""),
                        warp, inst, lane);
}

bool shared_is_written(const Cta& cta, uint32_t offset, uint32_t bytes) {
  if (cta.shared_initialised.empty()) return true;
  return std::memchr(cta.shared_initialised.data() + offset, 0, bytes) == nullptr;
}

void report_unwritten_shared(Machine& machine, Cta& cta, uint32_t offset, uint32_t bytes,
                             const Warp& warp, const Instruction& inst, int lane) {
  const auto begin = cta.shared_initialised.begin() + offset;
  const auto first = std::find(begin, begin + bytes, 0);
  const auto byte = static_cast<uint32_t>(first - cta.shared_initialised.begin());
  machine.report(
      "init",
      concat("shared memory is read before it is written: ", shared_place(warp.program(), byte),
             ", in ", bytes, " bytes at offset ", offset,
             cta.cluster->ctas.size() > 1 ? concat(" of the CTA of rank ", cta.rank) : ""),
      warp, inst, lane);
}

}  // namespace pykernels::emulator
