// The end of a launch in which nothing can run any more: who waits for whom.
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "core/check.h"
#include "emulator/check/lanes.h"
#include "emulator/check/polls.h"
#include "emulator/check/source_chain.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr size_t kMaxGroups = 24;  // in the message
constexpr size_t kMaxSites = 16;   // in the finding
constexpr size_t kMaxOperations = 8;
constexpr int kPollSteps = 256;  // instructions of a warp in which it comes by all that it polls
constexpr int kPollStepsOfSplits = 4096;  // the same of a diverged warp: each split has its turn
constexpr const char* kWaits = " waits for ";

std::string name_of(const Cta& cta) {
  return concat("CTA (", cta.ctaid[0], ", ", cta.ctaid[1], ", ", cta.ctaid[2], ")");
}

const ParsedModule& module_of(const Cta& cta) { return cta.grid->launch.module->parsed; }

std::string place(const ParsedModule& module, const Site& site) {
  const std::string source = source_chain(module, site.ptx_line);
  return concat("PTX line ", site.ptx_line, ": ", site.ptx,
                source.empty() ? "" : "\n    from " + source);
}

const Instruction& instruction_of(const Warp& warp, const Split& split) {
  return warp.program().instructions[split.pc];
}

/// Where the lanes are that a split waits for at a converged instruction.
std::string missing_lanes(const Machine& machine, const Warp& warp, const Split& split) {
  const LaneMask missing = split.wait.convergence & warp.live() & ~split.lanes;
  std::string text = concat(lanes_text(missing), " of the warp to arrive here");
  for (const Split& other : warp.splits()) {
    if ((other.lanes & missing) == 0) continue;
    const Site site = machine.site(warp, instruction_of(warp, other), -1);
    const ParsedModule& module = module_of(const_cast<Warp&>(warp).cta());
    text += concat("\n      ", lanes_text(other.lanes & missing), " wait at ", place(module, site));
  }
  return text;
}

std::string awaited(const Machine& machine, const Warp& warp, const Split& split) {
  const Wait& wait = split.wait;
  if (wait.describe != nullptr) return wait.describe(warp, wait);
  switch (wait.kind) {
    case Wait::Kind::kConvergence:
      return missing_lanes(machine, warp, split);
    case Wait::Kind::kWarpgroup:
      return "the other warps of its warpgroup";
    case Wait::Kind::kBulkGroup:
      return "a bulk group";
    case Wait::Kind::kAsyncCopy:
      return "asynchronous copies";
    case Wait::Kind::kGrid:
      return "the end of the launch that it depends on";
    default:
      return "nothing that is known";
  }
}

/// Splits that wait at the same instruction for what reads the same.
struct Group {
  Site site;
  std::string launch;  // of several
  std::string awaited;
  std::vector<const Cta*> ctas;                       // in the order found
  std::map<const Cta*, std::vector<uint32_t>> lanes;  // by warp
};

/// `verb`: " waits for ", " polls ".
std::string describe(const Group& group, const char* verb) {
  const Cta& first = *group.ctas.front();
  const std::vector<uint32_t>& lanes = group.lanes.at(&first);
  uint32_t whole = 0;
  std::string partial;
  for (size_t warp = 0; warp < lanes.size(); ++warp) {
    if (lanes[warp] == kFullMask) {
      whole |= 1u << warp;
    } else if (lanes[warp] != 0) {
      partial += concat(partial.empty() ? "" : "; ", "warp ", warp, " ", lanes_text(lanes[warp]));
    }
  }
  std::string who = name_of(first) + group.launch + " ";
  if (whole != 0) who += concat(__builtin_popcount(whole) == 1 ? "warp " : "warps ", ranges(whole));
  if (!partial.empty()) who += concat(whole != 0 ? "; " : "", partial);
  if (group.ctas.size() > 1) who += concat(" (and ", group.ctas.size() - 1, " more CTAs)");
  return concat("\n  ", group.site.kernel, ", ", place(module_of(*group.ctas.front()), group.site),
                "\n    ", who, verb, group.awaited);
}

/// Groups in the order in which their first members are added.
class Groups {
 public:
  explicit Groups(const Machine& machine) : machine_(machine) {}

  void add(Warp& warp, const Split& split, std::string text) {
    Site site = machine_.site(warp, instruction_of(warp, split), __builtin_ctz(split.lanes));
    const auto key = std::make_pair(concat(site.grid, ":", site.kernel, ":", split.pc), text);
    const auto [entry, is_new] = known_.try_emplace(key, all.size());
    if (is_new) {
      std::string launch = machine_.launch_text(site.grid);
      all.push_back(Group{std::move(site), std::move(launch), std::move(text), {}, {}});
    }
    Group& group = all[entry->second];
    const Cta& cta = warp.cta();
    std::vector<uint32_t>& lanes = group.lanes[&cta];
    if (lanes.empty()) {
      lanes.assign(cta.warps.size(), 0);
      group.ctas.push_back(&cta);
    }
    lanes[static_cast<size_t>(warp.index())] |= split.lanes;
  }

  std::vector<Group> all;

 private:
  const Machine& machine_;
  std::map<std::pair<std::string, std::string>, size_t> known_;
};

template <typename Body>
void for_warps(const std::vector<Cluster*>& clusters, Body body) {
  for (const Cluster* cluster : clusters) {
    for (const auto& cta : cluster->ctas) {
      for (const auto& warp : cta->warps) body(*warp);
    }
  }
}

/// By the order of CTAs, warps and lanes, so that the report is the same in each run.
std::vector<Group> gather(const Machine& machine, const std::vector<Cluster*>& clusters,
                          bool blocked) {
  Groups groups(machine);
  for_warps(clusters, [&](Warp& warp) {
    for (const Split& split : warp.splits()) {
      if (split.blocked != blocked || split.lanes == 0) continue;
      groups.add(warp, split, blocked ? awaited(machine, warp, split) : std::string());
    }
  });
  return std::move(groups.all);
}

/// What warps that only poll look at, found by letting each run on for a while.
std::vector<Group> gather_polls(Machine& machine, const std::vector<Cluster*>& clusters) {
  Groups groups(machine);
  for_warps(clusters, [&](Warp& warp) {
    const int steps = warp.splits().size() == 1 ? kPollSteps : kPollStepsOfSplits;
    for (int step = 0; step < steps && warp.runnable(); ++step) {
      for (const Split& split : warp.splits()) {
        if (split.blocked || split.lanes == 0) continue;
        const std::string what = polled(warp, instruction_of(warp, split), split.lanes);
        if (!what.empty()) groups.add(warp, split, what);
      }
      warp.run(1);
    }
  });
  return std::move(groups.all);
}

void add_groups(const std::vector<Group>& groups, const char* verb, Finding& finding) {
  for (size_t i = 0; i < groups.size() && i < kMaxGroups; ++i)
    finding.message += describe(groups[i], verb);
  if (groups.size() > kMaxGroups)
    finding.message += concat("\n  and ", groups.size() - kMaxGroups, " more");
  for (size_t i = 0; i < groups.size() && i < kMaxSites; ++i)
    finding.sites.push_back(groups[i].site);
}

}  // namespace

void Machine::fail_deadlock() {
  deadlocked_ = true;
  Finding finding{"deadlock", "no warp can run; those that have not ended:", {}, 1};
  add_groups(gather(*this, active_, true), kWaits, finding);
  size_t shown = 0;
  for (Cluster* cluster : active_) {
    for (const auto& operation : cluster->async.operations()) {
      if (operation->finished || ++shown > kMaxOperations) continue;
      finding.message += concat("\n  in flight, and cannot complete: ", operation->describe());
    }
  }
  for (const auto& grid : grids_) {
    if (grid->next_cluster == grid->num_clusters) continue;
    finding.message +=
        concat("\n  ", grid->launch.program->name, launch_text(grid->index), ": ",
               grid->num_clusters - grid->next_cluster, " of ", grid->num_clusters,
               " clusters have not started: ", options_.num_sms, " SMs have no room");
  }
  end_with(std::move(finding));
}

void Machine::fail_polling(const std::string& reason) {
  const std::vector<Group> polling = gather_polls(*this, active_);
  if (polling.empty()) fail_hung(reason);
  Finding finding{"deadlock", reason + ":", {}, 1};
  add_groups(polling, " polls ", finding);
  const std::vector<Group> waiting = gather(*this, active_, true);
  if (!waiting.empty()) finding.message += "\nwaiting are:";
  add_groups(waiting, kWaits, finding);
  end_with(std::move(finding));
}

void Machine::fail_hung(const std::string& reason) {
  Finding finding{"deadlock", reason + "; running are:", {}, 1};
  for (const Group& group : gather(*this, active_, false)) {
    if (finding.sites.size() == kMaxSites) break;
    finding.message +=
        concat("\n  ", group.site.kernel, ", ", place(module_of(*group.ctas.front()), group.site),
               "\n    ", name_of(*group.ctas.front()), group.launch,
               group.ctas.size() > 1 ? concat(" and ", group.ctas.size() - 1, " more") : "");
    finding.sites.push_back(group.site);
  }
  const std::vector<Group> waiting = gather(*this, active_, true);
  if (!waiting.empty()) finding.message += "\nwaiting are:";
  add_groups(waiting, kWaits, finding);
  end_with(std::move(finding));
}

}  // namespace pykernels::emulator
