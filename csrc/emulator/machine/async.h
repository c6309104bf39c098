// Asynchronous operations: TMA, bulk copies, cp.async, WGMMA. Issued by a thread, they take effect
// at a moment that the completion mode and the seed choose, and no later than a wait demands.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace pykernels::emulator {

class Cta;
class Machine;
struct AgentRaces;
struct Instruction;
class Warp;

enum class Completion : uint8_t { kEarly, kLate, kRandom };

/// One operation in flight. Its issuer has poisoned the destination (0xff bytes, marked
/// uninitialised). An operation has up to two steps: reading its source (after which a bulk store's
/// source may be reused) and writing its destination with all signals; loads do both in finish().
class AsyncOperation {
 public:
  virtual ~AsyncOperation() = default;

  /// Reads what is needed of the source. Called once, before finish(); operations whose source is
  /// not waited for apart may leave it empty.
  virtual void read_source(Machine& machine) { (void)machine; }
  /// Writes the destination and signals (complete_tx, wake). Called once.
  virtual void finish(Machine& machine) = 0;
  /// True where it can take effect now; WGMMA is not ready until all four warps have issued it.
  virtual bool ready() const { return true; }
  /// True where its end is what blocked threads wait for (an mbarrier), false where a group's wait
  /// forces it: late completion holds the latter back while the former let anyone go on.
  virtual bool signals() const { return false; }
  virtual std::string describe() const = 0;
  /// True where what is left to do reads or writes this CTA's shared memory: the CTA must not end
  /// before.
  virtual bool touches(const Cta& cta) const {
    (void)cta;
    return false;
  }

  uint64_t number = 0;                // among those of its issuer
  int64_t priority = 0;               // of the priority schedule with random completion
  std::shared_ptr<AgentRaces> agent;  // of the race detector; null where it is off
  bool source_read = false;
  bool finished = false;
  Warp* issuer = nullptr;  // all set by AsyncQueue::issue
  const Instruction* instruction = nullptr;
};

/// Operations in flight of one cluster, in the order of issue.
class AsyncQueue {
 public:
  /// Early mode: takes effect at once (if ready). Otherwise stays until forced or picked.
  void issue(Machine& machine, std::shared_ptr<AsyncOperation> operation);
  /// A wait demands it: does what is left of it now.
  static void force_source(Machine& machine, AsyncOperation& operation);
  static void force(Machine& machine, AsyncOperation& operation);
  /// Completes one ready operation: the oldest that signals, else the oldest (late), or one drawn
  /// from the seed. False if there is none.
  bool complete_one(Machine& machine);
  /// Does the next step of an operation, or both, and records the decision.
  static void complete(Machine& machine, AsyncOperation& operation, bool source_only);
  /// The operation of highest priority that can finish, or nullptr.
  std::shared_ptr<AsyncOperation> find_first();
  /// An unfinished operation by its issuer's index in the cluster and its number, or nullptr.
  std::shared_ptr<AsyncOperation> find(uint32_t warp, uint64_t number);
  /// Completes all that is ready, oldest first.
  void complete_ready(Machine& machine);
  bool empty();
  const std::deque<std::shared_ptr<AsyncOperation>>& operations() const { return operations_; }

 private:
  void drop_finished();

  std::deque<std::shared_ptr<AsyncOperation>> operations_;  // finished ones are dropped lazily
};

/// commit_group / wait_group bookkeeping: of one thread for bulk copies and cp.async, of one warp
/// for WGMMA.
struct AsyncGroups {
  std::vector<std::shared_ptr<AsyncOperation>> open;                   // since the last commit
  std::deque<std::vector<std::shared_ptr<AsyncOperation>>> committed;  // oldest first

  void commit();
  /// Groups that wait_group n has to wait for: all but the newest n; removes them.
  std::vector<std::vector<std::shared_ptr<AsyncOperation>>> take_older(size_t keep);
};

}  // namespace pykernels::emulator
