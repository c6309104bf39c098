#include "emulator/machine/independent.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "core/check.h"
#include "emulator/check/race/detector.h"

namespace pykernels::emulator {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMaxSlices = 1024;  // a machine for each costs some microseconds
constexpr auto kPollInterval = std::chrono::milliseconds(10);  // between looks at Ctrl-C

uint64_t volume(const Dim3& dim) { return uint64_t{dim.x} * dim.y * dim.z; }

uint64_t num_clusters(const MachineLaunch& launch) {
  return volume(launch.grid) / std::max<uint64_t>(volume(launch.cluster), 1);
}

/// What a slice has left behind.
struct Slice {
  Report report;
  Footprint read;
  Footprint written;
  std::unique_ptr<RaceDetector> races;  // null where the race check is off
  uint64_t instructions = 0;
  std::string error;             // of an EmulationError; empty where the slice came to its end
  bool deadlocked = false;       // which is the error, and leaves the slices behind it their turn
  std::exception_ptr exception;  // any other
};

/// Ends a machine whose result nobody wants any more.
struct Discarded {};

void add_counters(Counters& sum, const Counters& more) {
  using Values = std::array<uint64_t, sizeof(Counters) / sizeof(uint64_t)>;
  auto values = std::bit_cast<Values>(sum);
  const auto added = std::bit_cast<Values>(more);
  for (size_t i = 0; i < values.size(); ++i) values[i] += added[i];
  sum = std::bit_cast<Counters>(values);
}

/// The results of slices, in the order of their clusters.
class Merged {
 public:
  /// `whole`: the machine of the whole launch, which does not run but compares the slices.
  Merged(Machine& whole, const MachineLaunch& launch)
      : whole_(whole),
        launch_(launch),
        report_(whole.report()),
        max_instructions_(whole.options().max_warp_instructions) {}

  /// Adds the next slice; throws what ended it. A check that compares what several clusters did
  /// belongs here: slices come one by one, in order, on any thread, never two at once.
  void add(Slice& slice) {
    add_counters(report_.counters, slice.report.counters);
    read_.add(slice.read);
    written_.add(slice.written);
    for (Finding& finding : slice.report.findings) report_.add(std::move(finding));
    for (std::string& note : slice.report.notes) {
      if (std::find(report_.notes.begin(), report_.notes.end(), note) == report_.notes.end())
        report_.notes.push_back(std::move(note));
    }
    report_.trace.insert(report_.trace.end(), slice.report.trace.begin(), slice.report.trace.end());
    if (slice.races != nullptr) whole_.races()->absorb(*slice.races, launch_);
    instructions_ += slice.instructions;
    if (slice.exception) std::rethrow_exception(slice.exception);
    if (slice.deadlocked && num_deadlocks_++ == 0) deadlock_ = slice.error;
    if (!slice.error.empty() && !slice.deadlocked) {
      check_deadlocks();
      throw EmulationError(slice.error, report());
    }
    if (instructions_ > max_instructions_) fail_hung();
  }

  /// After the last slice: throws where one before could not end.
  void check_deadlocks() {
    if (num_deadlocks_ == 0) return;
    const std::string more = num_deadlocks_ == 1 ? ""
                                                 : concat("\n  in ", num_deadlocks_ - 1,
                                                          " more clusters none can either");
    throw EmulationError(deadlock_ + more, report());
  }

  const Report& report() {
    for (Finding& finding : whole_.findings()) report_.add(std::move(finding));
    whole_.findings().clear();
    report_.counters.global_footprint_bytes_read = read_.bytes();
    report_.counters.global_footprint_bytes_written = written_.bytes();
    return report_;
  }

 private:
  [[noreturn]] void fail_hung() {
    Finding finding{"deadlock", "", {}, 1};
    finding.message =
        concat("no end after ", instructions_, " warp instructions (max_warp_instructions)");
    const std::string text = finding.kind + ": " + finding.message;
    report_.add(std::move(finding));
    throw EmulationError(text, report());
  }

  Machine& whole_;
  const MachineLaunch& launch_;
  Report report_;
  Footprint read_;
  Footprint written_;
  uint64_t instructions_ = 0;
  uint64_t max_instructions_;
  std::string deadlock_;  // the first
  uint64_t num_deadlocks_ = 0;
};

class SlicedRun {
 public:
  SlicedRun(const MachineOptions& options, const MachineLaunch& launch, Machine& whole)
      : options_(options),
        launch_(launch),
        num_clusters_(num_clusters(launch)),
        clusters_per_slice_((num_clusters_ + kMaxSlices - 1) / kMaxSlices),
        num_slices_((num_clusters_ + clusters_per_slice_ - 1) / clusters_per_slice_),
        end_(num_slices_),
        merged_(whole, launch) {}

  /// On the calling thread, which alone looks at options.poll, and others beside it.
  Report run() {
    std::vector<std::thread> threads;
    const uint64_t wanted = std::min<uint64_t>(options_.threads(), num_slices_);
    try {
      while (threads.size() + 1 < wanted) threads.emplace_back([this] { work(false); });
    } catch (const std::system_error&) {
      // The system gives no more of them: these do.
    }
    work(true);
    await_others();
    for (std::thread& thread : threads) thread.join();
    if (interruption_) std::rethrow_exception(interruption_);
    if (failure_) std::rethrow_exception(failure_);
    merged_.check_deadlocks();
    return merged_.report();
  }

 private:
  /// Of the calling thread: true where the run is to end (Ctrl-C).
  bool is_interrupted() {
    if (!options_.poll || interruption_ || Clock::now() < next_poll_)
      return interruption_ != nullptr;
    next_poll_ = Clock::now() + kPollInterval;
    try {
      options_.poll();
      return false;
    } catch (...) {
      interruption_ = std::current_exception();
      end_ = 0;
      return true;
    }
  }

  /// Runs slices in their order until none is left.
  void work(bool is_caller) {
    PagePool pool;
    while (true) {
      const uint64_t index = next_++;
      if (index >= end_) return;
      const auto look = [this, index, is_caller] {
        if ((is_caller && is_interrupted()) || index >= end_) throw Discarded();
      };
      try {
        finish(index, run_slice(index, pool, look));
      } catch (const Discarded&) {
        return;
      }
    }
  }

  Slice run_slice(uint64_t index, PagePool& pool, std::function<void()> look) {
    Slice slice;
    try {
      MachineLaunch launch = launch_;
      launch.first_cluster = index * clusters_per_slice_;
      launch.end_cluster = std::min(launch.first_cluster + clusters_per_slice_, num_clusters_);
      MachineOptions options = options_;
      options.poll = std::move(look);
      Machine machine(options, {std::move(launch)}, &pool);
      run_machine(machine, slice);
    } catch (const Discarded&) {
      throw;
    } catch (...) {
      slice.exception = std::current_exception();
    }
    return slice;
  }

  static void run_machine(Machine& machine, Slice& slice) {
    try {
      slice.report = machine.run();
    } catch (const EmulationError& error) {
      slice.report = error.report();
      slice.error = error.what();
      slice.deadlocked = machine.deadlocked();
    }
    slice.read = machine.take_footprint(AccessKind::kRead);
    slice.written = machine.take_footprint(AccessKind::kWrite);
    slice.races = machine.take_races();
    slice.instructions = machine.instructions();
  }

  /// Merges what is complete up to here.
  void finish(uint64_t index, Slice slice) {
    const bool fails = !slice.error.empty() && !slice.deadlocked;
    if (fails || slice.exception) lower_end(index + 1);  // what follows it will not count
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_.emplace(index, std::move(slice));
    while (!finished_.empty() && finished_.begin()->first == num_merged_ && !failure_) {
      try {
        merged_.add(finished_.begin()->second);
      } catch (...) {
        failure_ = std::current_exception();
        end_ = 0;
      }
      finished_.erase(finished_.begin());
      ++num_merged_;
    }
    progress_.notify_all();
  }

  void lower_end(uint64_t end) {
    uint64_t present = end_;
    while (end < present && !end_.compare_exchange_weak(present, end)) {
    }
  }

  void await_others() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (num_merged_ < end_ && !is_interrupted()) {
      progress_.wait_for(lock, kPollInterval);
    }
  }

  const MachineOptions& options_;
  const MachineLaunch& launch_;
  const uint64_t num_clusters_;
  const uint64_t clusters_per_slice_;  // the same for any number of threads
  const uint64_t num_slices_;
  std::atomic<uint64_t> next_{0};
  std::atomic<uint64_t> end_;  // slices from here on do not count
  Clock::time_point next_poll_;
  std::mutex mutex_;  // of what follows
  std::condition_variable progress_;
  std::map<uint64_t, Slice> finished_;  // that others have to be merged before
  uint64_t num_merged_ = 0;
  Merged merged_;
  std::exception_ptr failure_;       // of the first slice that has any
  std::exception_ptr interruption_;  // the calling thread's
};

}  // namespace

bool runs_in_slices(const MachineOptions& options, const std::vector<MachineLaunch>& launches) {
  return launches.size() == 1 && !launches.front().program->couples_clusters &&
         options.schedule == Schedule::kRandom && options.trace == nullptr &&
         num_clusters(launches.front()) > 1;
}

Report run_launches(const MachineOptions& options, const std::vector<MachineLaunch>& launches) {
  Machine machine(options, launches);
  if (!runs_in_slices(options, launches)) return machine.run();
  return SlicedRun(options, launches.front(), machine).run();
}

}  // namespace pykernels::emulator
