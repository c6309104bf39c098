// Which cluster, which warp, which asynchronous operation comes next: the random schedule. One
// cluster runs until nothing in it can, or its slice is over: its registers stay in the cache.
// Decisions are drawn from the seed. priority_schedule.cpp has the other schedule, and replays.
#include <algorithm>

#include "core/check.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

// All in warp instructions.
constexpr uint64_t kTurn = 2048;  // of a warp; a random addition of as much
constexpr uint64_t kIdleSlice =
    16 * 1024;  // of a cluster in which nothing completes: it may wait for others
constexpr uint64_t kSlice = 64 * 1024;  // of a cluster that gets on; a random addition of as much
constexpr uint32_t kExtensions = 32;    // most such slices in a row
constexpr uint64_t kPatience =
    4096;  // warps may poll for an operation that "late" would hold back for ever
constexpr uint64_t kPollInterval = 1 << 17;  // between looks at MachineOptions::poll
constexpr uint64_t kHopeless = 1ull << 28;   // without an event or a byte written: it is a hang
constexpr uint64_t kIdle = 1 << 26;          // the same: only time can end it, and leaps ahead
constexpr uint64_t kLeap = 1'000'000'000;    // of the clock, at each look from then on
constexpr uint64_t kQuiet = 1 << 20;         // without a change: are they all polling?
constexpr uint64_t kQuietShare = 8 * 1024;   // more for each CTA, so that all have had a turn
constexpr uint64_t kWatchedTurn = 64;        // of a warp while that is being looked at
constexpr uint32_t kRandomCompletion =
    4;  // random mode: one scheduling point in so many completes something

}  // namespace

void Machine::add_runnable(Warp& warp) {
  if (warp.queued_ || &warp == current_warp_)
    return;  // the running one is looked at after its turn
  warp.queued_ = true;
  warp.cta().cluster->runnable.push_back(&warp);
}

void Machine::progress() {
  ++num_events_;
  if (current_ == nullptr) return;
  current_->since_completion = 0;
  if (current_->slice >= kSlice || current_->extensions == kExtensions) return;
  ++current_->extensions;
  current_->slice = kSlice + random_.below(static_cast<uint32_t>(kSlice));
}

/// True if the SMs of the grid's rank have room for one more of its clusters, leaving the rank's
/// other grids their fair share.
bool Machine::may_start(const Grid& grid) const {
  if (grid.next_cluster == grid.num_clusters) return false;
  for (const Grid* before : grid.after) {
    if (!before->finished()) return false;
  }
  if (grid.prerequisite != nullptr && !grid.prerequisite->finished()) {
    const Grid& before = *grid.prerequisite;
    if (before.dependents_launched < before.num_clusters * before.cluster_size) return false;
  }
  const auto is_beside = [&](const auto& other) { return other->launch.rank == grid.launch.rank; };
  const double capacity = options_.num_sms;
  const double fair =
      capacity / static_cast<double>(std::count_if(grids_.begin(), grids_.end(), is_beside));
  double held = 0;      // by all
  double reserved = 0;  // by others, or due to them
  for (const auto& other : grids_) {
    if (!is_beside(other)) continue;
    const double holds = other->occupied(other->resident.size());
    held += holds;
    if (other.get() == &grid) continue;
    const double wanted = holds + other->occupied(other->num_clusters - other->next_cluster);
    reserved += std::max(holds, std::min(wanted, fair));
  }
  constexpr double kRounding = 1e-6;
  if (grid.occupied(grid.resident.size() + 1) + reserved <= capacity + kRounding) return true;
  // A cluster may be larger than a fair share: the first starts where there is room at all.
  return grid.resident.empty() && held + grid.occupied(1) <= capacity + kRounding;
}

/// The grid to start a cluster of: the one with the fewest started, or nullptr.
Grid* Machine::next_grid() {
  Grid* next = nullptr;
  for (const auto& grid : grids_) {
    if (may_start(*grid) && (next == nullptr || grid->next_cluster < next->next_cluster))
      next = grid.get();
  }
  return next;
}

/// Passes on to a cluster that can do something: a new one first, so that all that fit get started
/// while others spin; else the next in turn. False if there is none.
bool Machine::rotate() {
  if (Grid* grid = next_grid(); grid != nullptr) {
    start_cluster(*grid);
    current_ = active_.back();
    current_->slice = kIdleSlice;
    return true;
  }
  const auto place = std::find(active_.begin(), active_.end(), current_);
  const size_t first =
      place == active_.end() ? 0 : static_cast<size_t>(place - active_.begin()) + 1;
  for (size_t i = 0; i < active_.size(); ++i) {
    Cluster* cluster = active_[(first + i) % active_.size()];
    current_ = cluster;
    cluster->extensions = 0;
    if (cluster->runnable.empty() && !cluster->async.complete_one(*this)) continue;
    cluster->slice = std::max(cluster->slice, kIdleSlice);
    return true;
  }
  return false;
}

/// Makes current_ a cluster with a runnable warp. False where every grid has ended.
bool Machine::select_cluster() {
  while (true) {
    const bool finished = std::all_of(grids_.begin(), grids_.end(),
                                      [](const auto& grid) { return grid->finished(); });
    if (finished) return false;
    if (current_ != nullptr && current_->finished()) {
      end_ctas(*current_);
      retire(*current_);
      continue;
    }
    if (current_ != nullptr && current_->slice != 0) {
      if (!current_->runnable.empty()) return true;
      if (current_->async.complete_one(*this)) continue;
    }
    if (!rotate()) fail_deadlock();
  }
}

/// A turn of a warp that no list of runnable ones holds. Returns the instructions spent.
uint64_t Machine::run_warp(Warp& warp, uint64_t budget) {
  Cluster& cluster = *warp.cta().cluster;
  current_ = &cluster;
  warp.queued_ = false;
  current_warp_ = &warp;
  current_budget_ = budget;
  const uint64_t spent = warp.run(budget);
  current_warp_ = nullptr;
  if (options_.record_trace) record_run(warp, spent);
  if (poll_watch_.watching()) poll_watch_.after_turn(warp, spent);
  if (warp.runnable()) add_runnable(warp);
  end_ctas(cluster);
  instructions_ += spent;
  cluster.slice -= std::min(cluster.slice, spent);
  cluster.since_completion = cluster.async.empty() ? 0 : cluster.since_completion + spent;
  return spent;
}

void Machine::record_run(const Warp& warp, uint64_t count) {
  const Cluster& cluster = *const_cast<Warp&>(warp).cta().cluster;
  record({TraceStep::Kind::kRun, static_cast<uint32_t>(cluster.grid->index), cluster.index,
          warp.index_in_cluster(), count});
}

/// Asynchronous operations that take effect between turns.
void Machine::complete_after_turn(Cluster& cluster) {
  if (options_.completion == Completion::kEarly) {
    cluster.async.complete_ready(*this);
  } else if (cluster.since_completion >= kPatience ||
             (options_.completion == Completion::kRandom && !prioritised() &&
              random_.one_in(kRandomCompletion))) {
    cluster.async.complete_one(*this);
    cluster.since_completion = 0;
  }
}

/// False where every grid has ended.
bool Machine::run_random_turn() {
  if (!select_cluster()) return false;
  Cluster& cluster = *current_;
  const uint32_t pick = random_.below(static_cast<uint32_t>(cluster.runnable.size()));
  Warp& warp = *cluster.runnable[pick];
  cluster.runnable[pick] = cluster.runnable.back();
  cluster.runnable.pop_back();
  const uint64_t turn = poll_watch_.watching() ? kWatchedTurn : kTurn;
  run_warp(warp, turn + random_.below(static_cast<uint32_t>(turn)));
  complete_after_turn(cluster);
  return true;
}

/// Ends a launch in which all warps that run have come back to a state of theirs while nothing has
/// changed. Nothing is looked at before a while has gone by without a change.
void Machine::check_polling() {
  const Counters& counters = report_.counters;
  const uint64_t activity =
      num_events_ + num_changes_ + counters.global_bytes_written + counters.shared_bytes_written;
  if (activity != quiet_activity_) {
    quiet_activity_ = activity;
    quiet_since_ = instructions_;
    poll_watch_.stop();
    return;
  }
  if (poll_watch_.watching()) {
    if (!poll_watch_.all_poll(active_)) return;
    fail_polling(concat("all that run only poll, and nothing has changed in the last ",
                        instructions_ - quiet_since_, " warp instructions"));
  }
  uint64_t num_ctas = 0;
  for (const Cluster* cluster : active_) num_ctas += cluster->ctas.size();
  if (instructions_ - quiet_since_ > kQuiet + num_ctas * kQuietShare) poll_watch_.start();
}

/// Ends a launch that runs on without getting anywhere.
void Machine::check_liveness() {
  if (instructions_ > options_.max_warp_instructions) {
    fail_hung(concat("no end after ", instructions_, " warp instructions (max_warp_instructions)"));
  }
  const Counters& counters = report_.counters;
  const uint64_t activity =
      num_events_ + counters.global_bytes_written + counters.shared_bytes_written;
  if (activity != last_activity_) {
    last_activity_ = activity;
    active_at_ = instructions_;
  } else if (instructions_ - active_at_ > kHopeless) {
    fail_hung(concat("nothing was written and nothing completed in the last ", kHopeless,
                     " warp instructions"));
  } else if (instructions_ - active_at_ > kIdle) {
    clock_lead_ += kLeap;  // waits that are bounded by a clock end, as on a GPU
  }
}

Report Machine::run() {
  draw_change_points();
  while (prioritised() ? run_priority_turn() : run_random_turn()) {
    if (instructions_ < next_poll_) continue;
    next_poll_ = std::min(instructions_ + kPollInterval, options_.max_warp_instructions + 1);
    if (options_.poll) options_.poll();
    check_liveness();
    check_polling();
  }
  count_footprint();
  return report_;
}

}  // namespace pykernels::emulator
