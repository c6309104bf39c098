// What the race detector's findings say.
#include <string>
#include <utility>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

/// Coordinates in the grid of the CTA that holds the component's thread.
std::array<uint32_t, 3> ctaid_of(const ClusterRaces& cluster, uint32_t thread) {
  const uint32_t rank = thread / kWarpSize / cluster.warps_per_cta;
  const Dim3& size = cluster.launch->cluster;
  return {cluster.cluster_ctaid[0] * size.x + rank % size.x,
          cluster.cluster_ctaid[1] * size.y + rank / size.x % size.y,
          cluster.cluster_ctaid[2] * size.z + rank / size.x / size.y};
}

std::string lanes_text(const Epoch& epoch, uint32_t thread_in_cta) {
  const int count = __builtin_popcount(epoch.lanes);
  return concat("thread ", thread_in_cta, count > 1 ? concat(" (and ", count - 1, " more)") : "");
}

}  // namespace

const Instruction& RaceDetector::instruction_of(const Epoch& epoch) const {
  return cluster_of(epoch).launch->program->instructions[epoch.what & kWhatInstruction];
}

Site RaceDetector::site_of(const Epoch& epoch) const {
  const ClusterRaces& cluster = cluster_of(epoch);
  const uint32_t thread = cluster.thread_of(epoch);
  const auto in_cta = static_cast<int>(thread % (cluster.warps_per_cta * kWarpSize));
  return make_site(*cluster.launch, instruction_of(epoch), cluster.grid, ctaid_of(cluster, thread),
                   in_cta);
}

std::string RaceDetector::agent_of(const Epoch& epoch) const {
  const ClusterRaces& cluster = cluster_of(epoch);
  const uint32_t thread = cluster.thread_of(epoch);
  const std::array<uint32_t, 3> ctaid = ctaid_of(cluster, thread);
  const uint32_t in_cta = thread % (cluster.warps_per_cta * kWarpSize);
  const std::string cta = concat("CTA (", ctaid[0], ", ", ctaid[1], ", ", ctaid[2], ")");
  const std::string launch = machine_.launch_text(cluster.grid);
  if (epoch.component < cluster.num_threads) {
    return concat(lanes_text(epoch, in_cta), " of ", cta, launch);
  }
  if (epoch.component < cluster.first_slot()) {
    return concat("the WGMMA of warpgroup ", in_cta / (4 * kWarpSize), " of ", cta, launch);
  }
  return concat("the asynchronous operation of thread ", in_cta, " of ", cta, launch);
}

std::string RaceDetector::memory_of(const Access& access, uint64_t address) const {
  if (access.owner != nullptr) {
    const Cta& cta = *access.owner;
    const Program& program = *cta.grid->launch.program;
    return concat("shared memory ", shared_place(program, static_cast<uint32_t>(address)),
                  cta.cluster->ctas.size() > 1 ? concat(" of the CTA of rank ", cta.rank) : "");
  }
  const Allocation* allocation = machine_.allocations().find(address, 1);
  if (allocation == nullptr) return concat("global memory ", hexadecimal(address));
  return concat("global memory '", allocation->name, "' + ", address - allocation->address);
}

void RaceDetector::report(const Access& access, const Epoch& earlier, bool earlier_writes,
                          Verdict verdict, uint64_t address) {
  // Many bytes may race in the same two instructions: what is known is only counted.
  const auto known = reported_.find({reinterpret_cast<uint64_t>(&instruction_of(access.epoch)),
                                     reinterpret_cast<uint64_t>(&instruction_of(earlier)), 1});
  if (known != reported_.end()) {
    std::vector<Finding>& findings = machine_.findings();
    if (known->second < findings.size()) ++findings[known->second].occurrences;
    return;
  }
  const std::string later_verb = access.writes ? "write" : "read";
  const std::string earlier_verb = earlier_writes ? "write" : "read";
  const std::string who =
      concat(later_verb, " of ", memory_of(access, address), " by ", agent_of(access.epoch));
  const std::string other = concat("the ", earlier_verb, " by ", agent_of(earlier));
  std::string message;
  switch (verdict) {
    case Verdict::kNeedsProxyFence:
      message = access.proxy == Layer::kTensorMap
                    ? concat(who, " as a tensor map needs fence.proxy.tensormap after ", other,
                             ": .release by who knows of it, then .acquire of the map's address")
                    : concat(who, " through the async proxy needs fence.proxy.async",
                             access.proxy == Layer::kAsyncGlobal ? " (of global memory)" : "",
                             " after ", other, ", which is ordered but in the generic proxy");
      break;
    case Verdict::kNonCoherent:
      message = concat(who, " and ", other,
                       ": memory that a launch writes must not be read with .nc in it");
      break;
    default:
      message = concat(who, " is not ordered after ", other);
  }
  const Scope scope = static_cast<Scope>(earlier.what >> kWhatScopeShift & 7);
  if (verdict == Verdict::kUnordered && (earlier.what & access.epoch.what & kWhatStrong) != 0 &&
      scope != Scope::kNone) {
    const bool same_size = ((earlier.what ^ access.epoch.what) & kWhatSize) == 0;
    message += same_size ? "; the scope of one of the two does not include the other thread"
                         : "; they are strong, but not of one size";
  }
  report_pair("race", message, access.epoch, &earlier);
}

void RaceDetector::report_pair(const std::string& kind, const std::string& message,
                               const Epoch& first, const Epoch* second) {
  // The same two instructions are one finding, counted: their text is made once.
  const auto identity = [&](const Epoch* epoch) {
    return epoch == nullptr ? 0 : reinterpret_cast<uint64_t>(&instruction_of(*epoch));
  };
  const std::array<uint64_t, 3> key = {identity(&first), identity(second),
                                       kind == "race" ? 1u : 0u};
  std::vector<Finding>& findings = machine_.findings();
  const auto [known, is_new] = reported_.try_emplace(key, findings.size());
  if (!is_new) {
    if (known->second < findings.size()) ++findings[known->second].occurrences;
    return;
  }
  Finding finding{kind, message, {site_of(first)}, 1};
  if (second != nullptr) finding.sites.push_back(site_of(*second));
  machine_.report(std::move(finding));
  if (findings.size() == known->second) known->second = ~size_t{0};  // that check is off
}

}  // namespace pykernels::emulator
