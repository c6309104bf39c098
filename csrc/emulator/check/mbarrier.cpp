#include "emulator/check/mbarrier.h"

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/sync.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

std::string misuse_message(const Warp& warp, uint32_t offset, const Mbarrier& barrier,
                           const char* misuse) {
  return concat(misuse, ": mbarrier at ", shared_place(warp.program(), offset), ", ",
                barrier.describe());
}

}  // namespace

void report_mbarrier_misuse(Warp& warp, const Instruction& inst, int lane, uint32_t offset,
                            const Mbarrier& barrier, const char* misuse) {
  warp.machine().report("sync", misuse_message(warp, offset, barrier, misuse), warp, inst, lane);
}

void check_invalidated(Warp& warp, const Instruction& inst, int lane, const Cta& owner,
                       uint32_t offset, const Mbarrier& barrier) {
  const Party self{&warp, &inst, lane};
  const Party& expecting = barrier.expecting;
  if (const std::optional<Party> waiter = find_waiter(owner, barrier)) {
    const char* misuse = "invalidated while a thread waits for it";
    warp.machine().report("sync", misuse_message(warp, offset, barrier, misuse), self, *waiter);
  } else if (barrier.tx_bytes() != 0) {
    const char* misuse = "invalidated while transaction bytes are outstanding";
    if (expecting.warp == nullptr) {
      report_mbarrier_misuse(warp, inst, lane, offset, barrier, misuse);
    } else {
      warp.machine().report("sync", misuse_message(warp, offset, barrier, misuse), self, expecting);
    }
  }
}

std::string describe_lapped(const Warp& warp, const Wait& wait, const Mbarrier& barrier) {
  for (const Split& split : warp.splits()) {
    if (&split.wait != &wait || split.lanes == 0) continue;
    const int thread = warp.index() * kWarpSize + __builtin_ctz(split.lanes);
    const std::optional<uint64_t> next = barrier.next(thread);
    if (!next || (*next & 1) != wait.detail[1] || barrier.phase() < *next + 2) return {};
    return concat("; for the thread phase ", *next,
                  " was the next, and the mbarrier has completed ", barrier.phase() - *next,
                  " since: a wait by parity cannot tell that phase from the present one");
  }
  return {};
}

}  // namespace pykernels::emulator
