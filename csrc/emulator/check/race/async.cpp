// Asynchronous operations as agents: what they rest on, and who knows that they are over.
#include <algorithm>

#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr size_t kLookedAt = 64;  // slots of one thread that may be over by now

}  // namespace

/// Components behind the present ones.
uint32_t RaceDetector::add_slots(ClusterRaces& cluster, uint32_t owner, uint32_t count) {
  const auto first = cluster.first_slot() + static_cast<uint32_t>(cluster.slots.size());
  for (uint32_t i = 0; i < count; ++i) cluster.slots.push_back({owner, 0});
  return first;
}

/// A component whose last operation the issuing thread knows to be over, or a new one; and the
/// clock of the next operation there. That it is over is enough: who hands a slot of a ring back
/// from another CTA may release with a narrow scope.
AgentEvent RaceDetector::take_slot(ClusterRaces& cluster, uint32_t thread, const View& view) {
  std::deque<uint32_t>& slots = cluster.slots_of[thread];
  const auto over = [&](uint32_t slot) {
    return view.at(Layer::kExecuted, slot) >= cluster.slots[slot - cluster.first_slot()].clock;
  };
  const auto end = slots.begin() + static_cast<std::ptrdiff_t>(std::min(slots.size(), kLookedAt));
  const auto place = std::find_if(slots.begin(), end, over);
  const uint32_t slot = place == end ? add_slots(cluster, thread, 1) : *place;
  if (place != end) slots.erase(place);
  slots.push_back(slot);
  return {slot, ++cluster.slots[slot - cluster.first_slot()].clock};
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
                                    int lane, bool async_proxy,
                                    std::span<const uint32_t> multicast) {
  ClusterRaces& cluster = *warp.cta().cluster->races;
  auto agent = make_agent(warp, inst, lane, async_proxy);
  const uint32_t thread = warp.races->first + static_cast<uint32_t>(lane);
  const View& view = agent->views.front();
  agent->read = agent->write = take_slot(cluster, thread, view);
  if (!multicast.empty()) agent->copies.resize(cluster.num_ctas);
  for (const uint32_t rank : multicast) agent->copies[rank] = take_slot(cluster, thread, view);
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
  const uint32_t clock = ++cluster.slots[place->second - cluster.first_slot()].clock;
  agent->read = {place->second, clock};
  agent->write = {place->second + 1, clock};
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
  const uint32_t clock = ++cluster.slots[place->second - cluster.first_slot()].clock;
  agent->read = agent->write = {place->second, clock};
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
    const uint32_t component = cluster.num_threads +
                               warp.cta().rank * cluster.warpgroups_per_cta() +
                               static_cast<uint32_t>(warp.warpgroup());
    operation.agent->read = operation.agent->write = {component, static_cast<uint32_t>(number)};
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
  ++races.now;
}

AgentRaces* RaceDetector::set_current(AgentRaces* agent) {
  AgentRaces* const before = current_;
  current_ = agent;
  return before;
}

namespace {

Epoch epoch_of(const AgentRaces& agent, const AgentEvent& event, AccessKind kind) {
  Epoch epoch{agent.cluster, event.component, event.clock, agent.what, 1};
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
  const bool reads = kind == AccessKind::kRead;
  const AgentEvent& event = reads ? current_->read : current_->write_to(cta.rank);
  const Access access{epoch_of(*current_, event, kind), current_->views, !reads,
                      proxy_of(*current_, Layer::kAsyncShared), &cta};
  touch(cta, access.epoch, current_->views.front());
  range(access, offset, bytes);
}

void RaceDetector::async_global(uint64_t address, uint64_t bytes, AccessKind kind) {
  if (current_ == nullptr) return;
  const bool reads = kind == AccessKind::kRead;
  const AgentEvent& event = reads ? current_->read : current_->write;
  const Access access{epoch_of(*current_, event, kind), current_->views, !reads,
                      proxy_of(*current_, Layer::kAsyncGlobal), nullptr};
  range(access, address, bytes);
}

void RaceDetector::complete_tx(const AgentRaces& agent, Mbarrier& mbarrier, const Cta& owner) {
  if (mbarrier.races == nullptr) return;
  // A multicast's signal says nothing of the bytes that other CTAs get, but that they were read.
  for (const AgentEvent& event : {agent.read, agent.write_to(owner.rank)}) {
    mbarrier.races->local.raise(Layer::kKnown, event.component, event.clock);
  }
}

void RaceDetector::wait_for(Warp& warp, LaneMask lanes, std::span<const AgentRaces* const> agents,
                            bool only_sources) {
  if (agents.empty()) return;
  for_knowledge(*warp.races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    auto joined = std::make_shared<Knowledge>(*known);
    for (const AgentRaces* agent : agents) {
      joined->own.raise(Layer::kKnown, agent->read.component, agent->read.clock);
      if (only_sources) continue;
      joined->own.raise(Layer::kKnown, agent->write.component, agent->write.clock);
    }
    set_known(warp, same, joined);
  });
}

}  // namespace pykernels::emulator
