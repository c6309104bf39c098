#include "emulator/machine/poll_watch.h"

#include <algorithm>
#include <utility>

#include "emulator/machine/cta.h"

namespace pykernels::emulator {
namespace {

// Instructions in which each of a warp's splits has had its turn.
constexpr uint64_t kAllSplits = 32 * 1024;

bool is_diverged(const Warp& warp) { return warp.splits().size() > 1; }

}  // namespace

void PollWatch::stop() {
  watching_ = false;
  seen_.clear();
}

void PollWatch::after_turn(const Warp& warp, uint64_t spent) {
  Seen& seen = seen_[&warp];
  if (seen.returned || spent == 0) return;
  std::vector<uint8_t> state = warp.state();
  seen.spent += spent;
  if (state == seen.state && (!is_diverged(warp) || seen.spent >= kAllSplits)) {
    seen.returned = true;
    return;
  }
  if (++seen.turns < seen.last_turn) return;
  // The first states may lie before the loop that it polls in.
  seen = {std::move(state), 0, 0, 2 * seen.last_turn, false};
}

bool PollWatch::all_poll(const std::vector<Cluster*>& clusters) const {
  bool any = false;
  for (const Cluster* cluster : clusters) {
    for (const auto& cta : cluster->ctas) {
      for (const auto& warp : cta->warps) {
        if (!warp->runnable()) continue;
        const auto seen = seen_.find(warp.get());
        if (seen == seen_.end() || !seen->second.returned) return false;
        any = true;
      }
    }
  }
  return any;
}

}  // namespace pykernels::emulator
