// Asynchronous operations as agents: what they rest on, and who knows that they are over.
#include <algorithm>

#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr size_t kMaxSlots = 64;  // of one thread; then the oldest is used again all the same

}  // namespace

/// Components behind the present ones.
uint32_t RaceDetector::add_slots(ClusterRaces& cluster, uint32_t owner, uint32_t count) {
  const auto first = cluster.first_slot() + static_cast<uint32_t>(cluster.slots.size());
  for (uint32_t i = 0; i < count; ++i) cluster.slots.push_back({owner, 0});
  return first;
}

/// A component whose last operation the issuing thread knows to be over, or a new one.
uint32_t RaceDetector::take_slot(ClusterRaces& cluster, uint32_t thread, const View& view) {
  std::vector<uint32_t>& slots = cluster.slots_of[thread];
  const auto over = [&](uint32_t slot) {
    return view.at(Layer::kKnown, slot) >= cluster.slots[slot - cluster.first_slot()].clock;
  };
  auto place = std::find_if(slots.begin(), slots.end(), over);
  if (place == slots.end() && slots.size() < kMaxSlots) {
    slots.push_back(add_slots(cluster, thread, 1));
    return slots.back();
  }
  if (place == slots.end()) place = slots.begin();
  std::rotate(place, place + 1, slots.end());
  return slots.back();
}

std::shared_ptr<AgentRaces> RaceDetector::make_agent(Warp& warp, const Instruction& inst, int lane,
                                                     bool async_proxy) {
  auto agent = std::make_shared<AgentRaces>();
  agent->cluster = warp.races->place.cluster;
  agent->kept = {warp.races->known[static_cast<size_t>(lane)]};
  agent->views = {view(warp, lane)};
  agent->what = static_cast<uint32_t>(&inst - warp.program().instructions.data());
  if (async_proxy) agent->what |= kWhatAsync;
  ++warp.races->now;  // what the lane does from here on does not come before the operation
  return agent;
}

void RaceDetector::issue_signalling(AsyncOperation& operation, Warp& warp, const Instruction& inst,
                                    int lane, bool async_proxy) {
  ClusterRaces& cluster = *warp.cta().cluster->races;
  auto agent = make_agent(warp, inst, lane, async_proxy);
  const uint32_t thread = warp.races->first + static_cast<uint32_t>(lane);
  const uint32_t slot = take_slot(cluster, thread, agent->views.front());
  agent->read_component = agent->write_component = slot;
  agent->clock = ++cluster.slots[slot - cluster.first_slot()].clock;
  operation.agent = std::move(agent);
}

void RaceDetector::issue_in_bulk_group(AsyncOperation& operation, Warp& warp,
                                       const Instruction& inst, int lane) {
  WarpRaces& races = *warp.races;
  ClusterRaces& cluster = *warp.cta().cluster->races;
  auto place = races.bulk.find(lane);
  if (place == races.bulk.end()) {
    const uint32_t thread = races.first + static_cast<uint32_t>(lane);
    place = races.bulk.emplace(lane, add_slots(cluster, thread, 2)).first;
  }
  auto agent = make_agent(warp, inst, lane, true);
  agent->read_component = place->second;
  agent->write_component = place->second + 1;
  agent->clock = ++cluster.slots[place->second - cluster.first_slot()].clock;
  operation.agent = std::move(agent);
}

std::shared_ptr<AgentRaces> RaceDetector::issue_copy(Warp& warp, const Instruction& inst,
                                                     int lane) {
  WarpRaces& races = *warp.races;
  ClusterRaces& cluster = *warp.cta().cluster->races;
  auto place = races.copies.find(lane);
  if (place == races.copies.end()) {
    const uint32_t thread = races.first + static_cast<uint32_t>(lane);
    place = races.copies.emplace(lane, add_slots(cluster, thread, 1)).first;
  }
  auto agent = make_agent(warp, inst, lane, false);
  agent->read_component = agent->write_component = place->second;
  agent->clock = ++cluster.slots[place->second - cluster.first_slot()].clock;
  return agent;
}

void RaceDetector::issue_wgmma(AsyncOperation& operation, Warp& warp, const Instruction& inst,
                               uint64_t number) {
  WarpRaces& races = *warp.races;
  const ClusterRaces& cluster = *warp.cta().cluster->races;
  if (operation.agent == nullptr) {
    operation.agent = make_agent(warp, inst, 0, true);
    operation.agent->kept.clear();
    operation.agent->views.clear();
    operation.agent->read_component = cluster.num_threads +
                                      warp.cta().rank * cluster.warpgroups_per_cta() +
                                      static_cast<uint32_t>(warp.warpgroup());
    operation.agent->write_component = operation.agent->read_component;
    operation.agent->clock = static_cast<uint32_t>(number);
  }
  KnowledgeRef known = races.known[0];
  if (!races.uniform) {
    auto joined = std::make_shared<Knowledge>(*known);
    for_knowledge(*warp.races, kFullMask,
                  [&](const KnowledgeRef& other, LaneMask) { joined->join(*other, false); });
    known = joined;
  }
  operation.agent->views.push_back(view_of(races, *known, kFullMask));
  operation.agent->kept.push_back(std::move(known));
  if (races.uniform) races.converged = races.now;
  ++races.now;
}

AgentRaces* RaceDetector::set_current(AgentRaces* agent) {
  AgentRaces* const before = current_;
  current_ = agent;
  return before;
}

namespace {

Epoch epoch_of(const AgentRaces& agent, AccessKind kind) {
  const bool reads = kind == AccessKind::kRead;
  Epoch epoch{agent.cluster, reads ? agent.read_component : agent.write_component, agent.clock,
              agent.what, 1};
  // Reductions are relaxed, for all threads of the GPU.
  if (kind == AccessKind::kAtomic) {
    epoch.what |= kWhatStrong | static_cast<uint32_t>(Scope::kGpu) << kWhatScopeShift |
                  kAnySize << kWhatSizeShift;
  }
  return epoch;
}

Layer proxy_of(const AgentRaces& agent, Layer layer) {
  return (agent.what & kWhatAsync) != 0 ? layer : Layer::kKnown;
}

}  // namespace

void RaceDetector::async_shared(Cta& cta, uint32_t offset, uint32_t bytes, AccessKind kind) {
  if (current_ == nullptr || cta.races == nullptr) return;
  const Access access{epoch_of(*current_, kind), current_->views, kind != AccessKind::kRead,
                      proxy_of(*current_, Layer::kAsyncShared), &cta};
  touch(cta, access.epoch, current_->views.front());
  range(access, offset, bytes);
}

void RaceDetector::async_global(uint64_t address, uint64_t bytes, AccessKind kind) {
  if (current_ == nullptr) return;
  const Access access{epoch_of(*current_, kind), current_->views, kind != AccessKind::kRead,
                      proxy_of(*current_, Layer::kAsyncGlobal), nullptr};
  range(access, address, bytes);
}

void RaceDetector::complete_tx(const AgentRaces& agent, Mbarrier& mbarrier) {
  if (mbarrier.races == nullptr) return;
  mbarrier.races->local.raise(Layer::kKnown, agent.write_component, agent.clock);
}

void RaceDetector::wait_for(Warp& warp, LaneMask lanes, std::span<const AgentRaces* const> agents,
                            bool only_sources) {
  if (agents.empty()) return;
  for_knowledge(*warp.races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    auto joined = std::make_shared<Knowledge>(*known);
    for (const AgentRaces* agent : agents) {
      joined->own.raise(Layer::kKnown, agent->read_component, agent->clock);
      if (only_sources) continue;
      joined->own.raise(Layer::kKnown, agent->write_component, agent->clock);
    }
    set_known(warp, same, joined);
  });
}

}  // namespace pykernels::emulator
