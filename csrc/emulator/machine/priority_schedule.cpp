// The priority schedule, and the replay of traces.
//
// Probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi, Nagarakatte: A Randomized
// Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010): every warp has a random
// priority, the highest that can run does, and at a few change points the running one falls behind
// all others. A bug that needs d orderings shows with a probability that falls with the run's
// length to the power of d - 1, not with the number of interleavings. The length counts visible
// instructions only, and change points come right behind one.
#include <algorithm>

#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

// All in warp instructions.
constexpr uint64_t kTurn = 4096;
constexpr uint64_t kReplayTurn = 1 << 16;     // most of a step: the machine looks at Ctrl-C between
constexpr uint64_t kSpin = 32 * 1024;         // without a block or another's turn: it may poll
constexpr uint64_t kUnknownLength = 1 << 16;  // in visible instructions
constexpr uint64_t kChangePointStream = 0x7063742070747363ull;  // apart from what the machine draws

/// From 1 to `most`, each power of two as likely.
uint64_t log_uniform(Random& random, uint64_t most) {
  const auto bits = static_cast<uint32_t>(64 - __builtin_clzll(most));
  const uint64_t top = 1ull << random.below(bits);
  return std::min(most, top + random.next() % top);
}

}  // namespace

/// Every second one lies early more often: setting up is short, and races in it are as many. The
/// first n are the same whatever their number.
void Machine::draw_change_points() {
  if (options_.schedule != Schedule::kPriority || options_.trace != nullptr) return;
  Random random(Random(options_.seed ^ kChangePointStream).next());
  const uint64_t length = options_.expected_steps == 0 ? kUnknownLength : options_.expected_steps;
  for (uint32_t i = 0; i < options_.num_change_points; ++i) {
    const bool even = i % 2 == 0 && options_.expected_steps != 0;
    priorities_.change_points.push_back(even ? 1 + random.next() % length
                                             : log_uniform(random, length));
  }
  std::sort(priorities_.change_points.rbegin(), priorities_.change_points.rend());
}

/// Of a warp that starts. After a replayed trace the first in the list comes first.
int64_t Machine::first_priority() {
  return options_.trace != nullptr ? --priorities_.lowest : draw_priority();
}

/// Retires the cluster of the last turn if it has ended. True where every grid has.
bool Machine::has_ended() {
  if (current_ != nullptr && current_->finished()) {
    end_ctas(*current_);
    retire(*current_);
    priorities_.running = nullptr;
  }
  return std::all_of(grids_.begin(), grids_.end(),
                     [](const auto& grid) { return grid->finished(); });
}

void Machine::start_all() {
  while (Grid* grid = next_grid()) start_cluster(*grid);
}

/// The warp falls behind all others.
void Machine::demote(Warp& warp) {
  warp.priority = --priorities_.lowest;
  priorities_.run_length = 0;
}

/// Nothing can run: completes an operation of any cluster. False if there is none.
bool Machine::complete_any() {
  const size_t first =
      active_.empty() || options_.trace != nullptr
          ? 0
          : random_.below(static_cast<uint32_t>(std::min<size_t>(active_.size(), UINT32_MAX)));
  for (size_t i = 0; i < active_.size(); ++i) {
    current_ = active_[(first + i) % active_.size()];
    if (current_->async.complete_one(*this)) return true;
  }
  return false;
}

/// The operation that has a higher priority than the warp (if there is one) does its next step.
/// Reading the source and the rest have priorities of their own.
bool Machine::complete_before(const Warp* warp) {
  if (options_.completion != Completion::kRandom || options_.trace != nullptr) return false;
  std::shared_ptr<AsyncOperation> first;
  Cluster* cluster = nullptr;
  for (Cluster* active : active_) {
    const std::shared_ptr<AsyncOperation> candidate = active->async.find_first();
    if (candidate == nullptr) continue;
    if (first != nullptr && candidate->priority <= first->priority) continue;
    first = candidate;
    cluster = active;
  }
  if (first == nullptr || (warp != nullptr && warp->priority > first->priority)) return false;
  current_ = cluster;
  AsyncQueue::complete(*this, *first, !first->source_read);
  first->priority = draw_priority();
  return true;
}

/// Removes the runnable warp of highest priority from its list; nullptr if there is none.
Warp* Machine::take_first_warp() {
  Warp* best = nullptr;
  for (const Cluster* cluster : active_) {
    for (Warp* warp : cluster->runnable) {
      if (best == nullptr || warp->priority > best->priority) best = warp;
    }
  }
  if (best != nullptr) take(*best);
  return best;
}

/// Removes the warp from its cluster's list of runnable ones. False if it is not there.
bool Machine::take(Warp& warp) {
  std::vector<Warp*>& runnable = warp.cta().cluster->runnable;
  const auto place = std::find(runnable.begin(), runnable.end(), &warp);
  if (place == runnable.end()) return false;
  *place = runnable.back();
  runnable.pop_back();
  warp.queued_ = false;
  return true;
}

/// False where every grid has ended.
bool Machine::run_priority_turn() {
  if (has_ended()) return false;
  if (options_.trace != nullptr && replay_step()) return true;
  start_all();
  Warp* warp = take_first_warp();
  if (complete_before(warp)) {
    if (warp != nullptr) add_runnable(*warp);
    return true;
  }
  if (warp == nullptr) {
    if (!complete_any()) fail_deadlock();
    return true;
  }
  if (priorities_.running != warp) priorities_.run_length = 0;
  priorities_.running = warp;
  std::vector<uint64_t>& change_points = priorities_.change_points;
  uint64_t budget = kTurn;
  if (!change_points.empty()) {  // no more instructions than there are visible ones until then
    budget = std::min(budget, change_points.back() - report_.counters.visible_instructions());
  }
  priorities_.run_length += run_warp(*warp, budget);
  const bool spins = priorities_.run_length >= kSpin;
  if (spins || warp->yield_) demote(*warp);
  const uint64_t visible = report_.counters.visible_instructions();
  while (!change_points.empty() && change_points.back() <= visible) {
    change_points.pop_back();
    demote(*warp);
  }
  complete_after_turn(*warp->cta().cluster);
  if (spins) complete_late();
  return true;
}

/// A warp polls for what may hang on the operation of a cluster that has nothing to run.
void Machine::complete_late() {
  if (options_.completion != Completion::kLate || options_.trace != nullptr) return;
  Cluster* running = current_;
  complete_any();
  current_ = running;
}

// ---- replay ----

/// Does the next step of the trace that can be done. False at its end.
bool Machine::replay_step() {
  const Trace& trace = *options_.trace;
  while (priorities_.next_step < trace.size()) {
    if (replay(trace[priorities_.next_step++])) return true;
  }
  return false;
}

/// False where the step is not possible now: a shortened trace names what has not come or is over.
bool Machine::replay(const TraceStep& step) {
  if (step.launch >= grids_.size()) return false;
  Grid& grid = *grids_[step.launch];
  if (step.kind == TraceStep::Kind::kStart) {
    if (grid.next_cluster != step.cluster || !may_start(grid)) return false;
    start_cluster(grid);
    return true;
  }
  if (step.cluster >= grid.next_cluster) start_all();
  const auto place = std::find_if(active_.begin(), active_.end(), [&](const Cluster* cluster) {
    return cluster->grid == &grid && cluster->index == step.cluster;
  });
  if (place == active_.end()) return false;
  Cluster& cluster = **place;
  if (step.kind == TraceStep::Kind::kRun) {
    const size_t warps = cluster.ctas.front()->warps.size();
    if (step.count == 0 || step.warp / warps >= cluster.ctas.size()) return false;
    Warp& warp = *cluster.ctas[step.warp / warps]->warps[step.warp % warps];
    if (!take(warp)) return false;
    run_warp(warp, std::min(step.count, kReplayTurn));
    if (options_.completion == Completion::kEarly) complete_after_turn(cluster);
    return true;
  }
  const std::shared_ptr<AsyncOperation> operation = cluster.async.find(step.warp, step.count);
  if (operation == nullptr || !operation->ready()) return false;
  current_ = &cluster;
  AsyncQueue::complete(*this, *operation, step.kind == TraceStep::Kind::kReadSource);
  return true;
}

}  // namespace pykernels::emulator
