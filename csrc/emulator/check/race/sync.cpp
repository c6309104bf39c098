// What threads learn from each other: barriers, mbarriers, fences, warps.
#include <algorithm>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

template <typename Body>
void for_bits(LaneMask lanes, Body body) {
  for (LaneMask rest = lanes; rest != 0; rest &= rest - 1) body(__builtin_ctz(rest));
}

SyncClock& clock_of(std::shared_ptr<SyncClock>& clock, const WarpRaces& races) {
  if (clock == nullptr) clock = std::make_shared<SyncClock>(races.place.cluster);
  return *clock;
}

/// In Knowledge::finished: of a launch before this run -1.
int index_of(const Grid* grid) { return grid == nullptr ? -1 : grid->index; }

FinishedGrids finished(const Grid* grid) {
  return {index_of(grid), grid == nullptr ? nullptr : grid->precedents};
}

}  // namespace

// ---- the life of clusters and threads ----

void RaceDetector::start(Cluster& cluster) {
  auto kept = std::make_unique<ClusterRaces>();
  kept->serial = static_cast<uint32_t>(clusters_.size());
  kept->grid = cluster.grid->index;
  kept->launch = &cluster.grid->launch;
  kept->cluster_ctaid = cluster.cluster_ctaid;
  kept->num_ctas = static_cast<uint32_t>(cluster.ctas.size());
  kept->warps_per_cta = static_cast<uint32_t>(cluster.ctas.front()->warps.size());
  kept->num_threads = kept->num_ctas * kept->warps_per_cta * kWarpSize;
  cluster.races = kept.get();
  auto nothing = std::make_shared<Knowledge>();
  nothing->cluster = kept->serial;
  for (const Grid* before : cluster.grid->after) nothing->finished.push_back(finished(before));
  for (const auto& cta : cluster.ctas) {
    cta->races = std::make_shared<CtaRaces>(static_cast<uint32_t>(cta->shared.size()));
    cta->races->ended = std::make_unique<SyncClock>(kept->serial);
    for (const auto& warp : cta->warps) {
      warp->races = std::make_shared<WarpRaces>();
      warp->races->place = {kept->serial, cta->rank, kept->launch->rank};
      warp->races->first =
          (cta->rank * kept->warps_per_cta + static_cast<uint32_t>(warp->index())) * kWarpSize;
      warp->races->known.fill(nothing);
    }
  }
  clusters_.push_back(std::move(kept));
}

void RaceDetector::end_lanes(Warp& warp, LaneMask lanes) {
  CtaRaces& cta = *warp.cta().races;
  release_into(warp, lanes, *cta.ended, false);
  cta.exit = thread_epoch(warp, warp.instruction(), lanes, {});
  warp.races->lanes_ended |= (warp.live() & ~lanes) != 0;
}

void RaceDetector::end(Cta& cta) {
  CtaRaces& races = *cta.races;
  races.ended->complete(true);
  const KnowledgeRef known = races.ended->last();
  for (const auto& [component, epoch] : races.remote) {
    if (known->own.at(Layer::kExecuted, component) >= epoch.clock) continue;
    if (epoch.component < cluster_of(epoch).num_threads) {
      report_pair("sync",
                  concat("the CTA of rank ", cta.rank, " may have ended when ", agent_of(epoch),
                         " reaches its shared memory: a barrier.cluster before its end would "
                         "order them"),
                  epoch, &races.exit);
    } else {
      report_pair("sync",
                  concat("the CTA of rank ", cta.rank,
                         " has ended while this may be in flight: nothing has waited for it"),
                  epoch, nullptr);
    }
  }
}

// ---- what lanes know ----

View RaceDetector::view(const Warp& warp, int lane) const {
  return view_of(*warp.races, *warp.races->known[static_cast<size_t>(lane)], 1u << lane);
}

void RaceDetector::set_known(Warp& warp, LaneMask lanes, const KnowledgeRef& known) {
  WarpRaces& races = *warp.races;
  if ((warp.live() & ~lanes) == 0) {
    races.known.fill(known);
    races.uniform = true;
    return;
  }
  for_bits(lanes, [&](int lane) { races.known[static_cast<size_t>(lane)] = known; });
  races.uniform = std::all_of(races.known.begin(), races.known.end(),
                              [&](const KnowledgeRef& other) { return other == known; });
}

void RaceDetector::release_into(Warp& warp, LaneMask lanes, SyncClock& clock, bool only_executed) {
  WarpRaces& races = *warp.races;
  share_fences(warp, lanes);
  for_knowledge(races, lanes, [&](const KnowledgeRef& known, LaneMask) {
    clock.join(known, view_of(races, *known, lanes), only_executed);
  });
  ++races.now;
}

void RaceDetector::acquire_from(Warp& warp, LaneMask lanes, SyncClock& clock,
                                const KnowledgeRef& released, bool only_executed) {
  if (released == nullptr) return;
  for_knowledge(*warp.races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    if (known == released) return;
    set_known(warp, same, clock.acquire(known, released, only_executed));
  });
}

Release RaceDetector::release_of(const Warp& warp, int lane, Scope scope) const {
  const WarpRaces& races = *warp.races;
  return {scope, races.place, races.known[static_cast<size_t>(lane)], view(warp, lane), false};
}

LaneFences& RaceDetector::fences(Warp& warp, int lane) {
  auto& all = warp.races->fences;
  if (all == nullptr) all = std::make_unique<std::array<LaneFences, kWarpSize>>();
  return (*all)[static_cast<size_t>(lane)];
}

/// Puts the lanes' fence.sc, and those that they have seen, into what they hand on.
void RaceDetector::share_fences(Warp& warp, LaneMask lanes) {
  WarpRaces& races = *warp.races;
  const LaneMask unshared = races.unshared_fences & lanes;
  if (unshared == 0) return;
  races.unshared_fences &= ~lanes;
  std::vector<Release> own;  // lanes that fenced together are one
  std::vector<Fenced> seen;
  for_bits(unshared, [&](int lane) {
    for (const Release& release : fences(warp, lane).released) {
      if (!release.sequential) continue;
      const bool same = !own.empty() && own.back().known == release.known &&
                        own.back().scope == release.scope &&
                        own.back().view.now == release.view.now;
      if (!same) own.push_back({release.scope, release.place, release.known, release.view, true});
      own.back().view.own |= release.view.own;
    }
    for (const Fenced& fence : fences(warp, lane).seen_fences) join_fenced(seen, fence);
    fences(warp, lane).seen_fences.clear();
  });
  for_knowledge(races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    auto shared = std::make_shared<Knowledge>(*known);
    for (const Release& release : own) join_fenced(shared->fenced, release.fenced());
    for (const Fenced& fence : seen) join_fenced(shared->observed, fence);
    set_known(warp, same, shared);
  });
}

void RaceDetector::warp_sync(Warp& warp, LaneMask lanes) {
  WarpRaces& races = *warp.races;
  lanes &= warp.live();
  share_fences(warp, lanes);
  // `synced` is of all lanes: it must not go on for those that have ended.
  if (races.uniform && lanes == warp.live() && !races.lanes_ended) {
    races.synced = races.converged = races.now++;
    return;
  }
  auto joined =
      std::make_shared<Knowledge>(*races.known[static_cast<size_t>(__builtin_ctz(lanes))]);
  for_knowledge(races, lanes,
                [&](const KnowledgeRef& known, LaneMask) { joined->join(*known, false); });
  for_bits(lanes, [&](int lane) {
    joined->own.raise(Layer::kKnown, races.first + static_cast<uint32_t>(lane), races.now);
  });
  ++races.now;
  set_known(warp, lanes, joined);
}

void RaceDetector::registers_fenced(Warp& warp) { warp.races->converged = warp.races->now++; }

// ---- barriers ----

void RaceDetector::barrier_arrive(Warp& warp, NamedBarrier& barrier, LaneMask lanes) {
  if (barrier.clock == nullptr) {
    barrier.clock = std::make_shared<SyncClock>(warp.races->place.cluster, barrier.generation);
  }
  release_into(warp, lanes, *barrier.clock, false);
}

void RaceDetector::barrier_wait(Warp& warp, NamedBarrier& barrier, uint64_t generation,
                                LaneMask lanes) {
  // The lanes have arrived there themselves: what was released holds all that they know.
  set_known(warp, lanes, barrier.clock->completed(generation));
}

void RaceDetector::cluster_arrive(Warp& warp, LaneMask lanes, Semantics semantics) {
  SyncClock& clock = clock_of(warp.cta().cluster->clock, *warp.races);
  const ClusterRaces& cluster = *warp.cta().cluster->races;
  clock.raise(Layer::kKnown, cluster.first_of(warp.races->place.cta), kStarted);
  if (semantics != Semantics::kRelaxed) return release_into(warp, lanes, clock, false);
  if (warp.races->fences == nullptr) return;
  for_bits(lanes, [&](int lane) {
    for (const Release& release : fences(warp, lane).released) {
      if (release.scope >= Scope::kCluster) clock.join(release, false);
    }
  });
}

void RaceDetector::cluster_wait(Warp& warp, LaneMask lanes) {
  SyncClock& clock = clock_of(warp.cta().cluster->clock, *warp.races);
  acquire_from(warp, lanes, clock, clock.last(), false);
}

// ---- mbarriers ----

void RaceDetector::mbarrier_init(Warp& warp, const Instruction& inst, int lane,
                                 Mbarrier& mbarrier) {
  WarpRaces& races = *warp.races;
  ClusterRaces& cluster = *warp.cta().cluster->races;
  auto place = races.inits.find(lane);
  if (place == races.inits.end()) {
    const uint32_t thread = races.first + static_cast<uint32_t>(lane);
    place = races.inits.emplace(lane, add_slots(cluster, thread, 1)).first;
  }
  const uint32_t component = place->second;
  const uint32_t clock = ++cluster.slots[component - cluster.first_slot()].clock;
  mbarrier.races = std::make_shared<MbarrierRaces>(cluster.serial);
  mbarrier.races->init = thread_epoch(warp, inst, 1, {});
  mbarrier.races->init.component = component;
  mbarrier.races->init.clock = clock;
  auto known = std::make_shared<Knowledge>(*races.known[static_cast<size_t>(lane)]);
  known->own.raise(Layer::kKnown, component, clock);
  set_known(warp, 1u << lane, known);
}

void RaceDetector::mbarrier_use(Warp& warp, const Instruction& inst, LaneMask lanes,
                                const Cta& owner, uint32_t offset, const Mbarrier& mbarrier) {
  if (mbarrier.races == nullptr) return;
  for_knowledge(*warp.races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    if (knows(view_of(*warp.races, *known, same), mbarrier.races->init, Layer::kKnown)) return;
    report_pair("race",
                concat("the mbarrier at ", shared_place(warp.program(), offset),
                       " of the CTA of rank ", owner.rank,
                       " is used, and nothing orders its mbarrier.init before: a barrier, or "
                       "fence.mbarrier_init before a relaxed cluster barrier, would"),
                thread_epoch(warp, inst, same, {}), &mbarrier.races->init);
  });
}

void RaceDetector::mbarrier_arrive(Warp& warp, int lane, Cta& owner, Mbarrier& mbarrier,
                                   MemoryOrder order) {
  if (mbarrier.races == nullptr) return;
  const WarpRaces& races = *warp.races;
  const Place there{races.place.cluster, owner.rank, races.place.rank};
  const bool is_own = &owner == &warp.cta();
  if (!is_own) {
    touch(owner, thread_epoch(warp, warp.instruction(), 1u << lane, {}), view(warp, lane));
  }
  if (order.semantics != Semantics::kRelaxed) {
    const bool visible = includes(order.scope, races.place, there);
    release_into(warp, 1u << lane,
                 is_own || !visible ? mbarrier.races->local : mbarrier.races->remote, !visible);
    return;
  }
  if (races.fences == nullptr) return;
  for (const Release& release : fences(warp, lane).released) {
    const bool visible = includes(release.scope, release.place, there);
    (is_own || !visible ? mbarrier.races->local : mbarrier.races->remote).join(release, !visible);
  }
}

void RaceDetector::mbarrier_wait(Warp& warp, LaneMask lanes, Mbarrier& mbarrier, uint64_t phase,
                                 MemoryOrder order) {
  MbarrierRaces* const barrier = mbarrier.races.get();
  if (barrier == nullptr || barrier->local.completed(phase) == nullptr) return;
  if (order.semantics != Semantics::kRelaxed) {
    acquire_from(warp, lanes, barrier->local, barrier->local.completed(phase), false);
    acquire_from(warp, lanes, barrier->remote, barrier->remote.completed(phase),
                 order.scope < Scope::kCluster);
    return;
  }
  for_bits(lanes, [&](int lane) {
    for (const SyncClock* clock : {&barrier->local, &barrier->remote}) {
      fences(warp, lane).see(0, Scope::kCta, Scope::kCta, clock->completed(phase));
    }
  });
}

// ---- fences ----

namespace {

/// Whether a fence.sc and one of this scope and GPU are morally strong.
bool meets(const Fenced& fence, Scope scope, uint32_t rank) {
  const Scope both = std::min(fence.scope, scope);
  return both == Scope::kSys || (both == Scope::kGpu && fence.rank == rank);
}

}  // namespace

/// A fence.sc comes behind those that strong reads before it, of any thread, have found to.
void RaceDetector::acquire_fences(Warp& warp, LaneMask lanes, Scope scope) {
  WarpRaces& races = *warp.races;
  for_knowledge(races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    if (known->observed.empty()) return;
    KnowledgeRef all = known;
    for (const Fenced& fence : known->observed) {
      if (meets(fence, scope, races.place.rank)) all = joined(all, fence.known);
    }
    if (all != known) set_known(warp, same, all);
  });
}

/// What the lane knows with what its relaxed reads have found.
KnowledgeRef RaceDetector::acquire_seen(Warp& warp, int lane, Scope scope, bool sequential) {
  const WarpRaces& races = *warp.races;
  LaneFences& own = fences(warp, lane);
  KnowledgeRef known = races.known[static_cast<size_t>(lane)];
  std::erase_if(own.seen, [&](const SeenRelease& seen) {
    if (seen.level > scope) return false;
    known = joined(known, seen.known);
    return true;
  });
  if (!sequential) return known;
  for (const Fenced& fence : own.seen_fences) {
    if (meets(fence, scope, races.place.rank)) known = joined(known, fence.known);
  }
  return known;
}

void RaceDetector::fence(Warp& warp, LaneMask lanes, Semantics semantics, Scope scope,
                         bool sequential) {
  WarpRaces& races = *warp.races;
  // Within a CTA or cluster the barriers that would carry them on order all by themselves.
  sequential &= scope >= Scope::kGpu;
  if (sequential) {
    acquire_fences(warp, lanes, scope);
  } else {
    share_fences(warp, lanes & races.unshared_fences);  // this fence may take their place
  }
  for_bits(lanes, [&](int lane) {
    LaneFences& own = fences(warp, lane);
    if (acquires(semantics)) {
      const KnowledgeRef known = acquire_seen(warp, lane, scope, sequential);
      if (known != races.known[static_cast<size_t>(lane)]) set_known(warp, 1u << lane, known);
    }
    if (!releases(semantics)) return;
    std::erase_if(own.released, [&](const Release& release) { return release.scope == scope; });
    own.released.push_back(release_of(warp, lane, scope));
    own.released.back().sequential = sequential;
  });
  if (sequential) races.unshared_fences |= lanes;
  ++races.now;
}

void RaceDetector::fence_proxy(Warp& warp, LaneMask lanes, ProxyFence spaces) {
  WarpRaces& races = *warp.races;
  const std::pair<bool, Layer> layers[] = {{spaces.shared, Layer::kAsyncShared},
                                           {spaces.global, Layer::kAsyncGlobal},
                                           {spaces.tensor_map, Layer::kTensorMap}};
  for_knowledge(races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    auto published = std::make_shared<Knowledge>(*known);
    for (const auto& [wanted, layer] : layers) {
      if (!wanted) continue;
      published->publish(layer);
      for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
        const uint32_t value = (lanes >> lane & 1) != 0 ? races.now : races.synced;
        if (value != 0) published->own.raise(layer, races.first + lane, value);
      }
    }
    set_known(warp, same, published);
  });
  ++races.now;
}

void RaceDetector::acquire_tensor_map(Warp& warp, const Instruction& inst, LaneMask lanes,
                                      Scope scope, const uint64_t* addresses) {
  for_bits(lanes, [&](int lane) {
    ThreadAccess access;
    uint64_t address = addresses[lane];
    access.space = space_of(address);
    access.generic = true;
    const Cta* owner = owner_of(warp, access, &address);
    const TensorMapAcquire acquire{thread_epoch(warp, inst, 1u << lane, {}),
                                   release_of(warp, lane, scope)};
    std::vector<TensorMapAcquire>& all = tensor_maps_[tensor_map_key(owner, address)];
    std::erase_if(all, [&](const TensorMapAcquire& earlier) {
      return earlier.acquired.scope == scope && earlier.epoch.same_agent(acquire.epoch) &&
             earlier.epoch.lanes == acquire.epoch.lanes;
    });
    all.push_back(acquire);
  });
}

void RaceDetector::fence_mbarrier_init(Warp& warp, LaneMask lanes) {
  const WarpRaces& races = *warp.races;
  for_bits(lanes, [&](int lane) {
    const auto place = races.inits.find(lane);
    if (place == races.inits.end()) return;
    auto inits = std::make_shared<Knowledge>();
    inits->cluster = races.place.cluster;
    inits->own.raise(Layer::kKnown, place->second,
                     races.known[static_cast<size_t>(lane)]->own.at(Layer::kKnown, place->second));
    fences(warp, lane).released.push_back({Scope::kCluster, races.place, inits, View{}, false});
  });
}

void RaceDetector::grid_wait(Warp& warp, LaneMask lanes, const Grid* before) {
  const FinishedGrids grids = finished(before);
  for_knowledge(*warp.races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    auto joined = std::make_shared<Knowledge>(*known);
    std::erase_if(joined->finished,
                  [&](const FinishedGrids& other) { return grids.has(other.last); });
    joined->finished.push_back(grids);
    set_known(warp, same, joined);
  });
}

LaneMask RaceDetector::lanes_behind(const Warp& warp, LaneMask lanes, const Grid* before) const {
  LaneMask behind = 0;
  for_knowledge(*warp.races, lanes, [&](const KnowledgeRef& known, LaneMask same) {
    if (known->has_finished(index_of(before))) behind |= same;
  });
  return behind;
}

}  // namespace pykernels::emulator
