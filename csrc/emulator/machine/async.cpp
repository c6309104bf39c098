#include "emulator/machine/async.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

/// While an operation reads or writes, the race detector takes it for the agent.
class CurrentAgent {
 public:
  CurrentAgent(Machine& machine, const AsyncOperation& operation) : races_(machine.races()) {
    if (races_ != nullptr) before_ = races_->set_current(operation.agent.get());
  }
  ~CurrentAgent() {
    if (races_ != nullptr) races_->set_current(before_);
  }
  CurrentAgent(const CurrentAgent&) = delete;
  CurrentAgent& operator=(const CurrentAgent&) = delete;

 private:
  RaceDetector* races_;
  AgentRaces* before_ = nullptr;
};

}  // namespace

void AsyncQueue::issue(Machine& machine, std::shared_ptr<AsyncOperation> operation) {
  operation->issuer = &machine.current_warp();
  operation->instruction = &machine.current_warp().instruction();
  operation->number = operation->issuer->issued_operations++;
  if (machine.prioritised()) operation->priority = machine.draw_priority();
  operations_.push_back(std::move(operation));
  if (machine.options().completion == Completion::kEarly) complete_ready(machine);
}

void AsyncQueue::force_source(Machine& machine, AsyncOperation& operation) {
  if (operation.finished || operation.source_read) return;
  operation.source_read = true;
  const CurrentAgent agent(machine, operation);
  operation.read_source(machine);
}

void AsyncQueue::force(Machine& machine, AsyncOperation& operation) {
  if (operation.finished) return;
  force_source(machine, operation);
  operation.finished = true;
  const CurrentAgent agent(machine, operation);
  operation.finish(machine);
  machine.progress();
}

void AsyncQueue::drop_finished() {
  while (!operations_.empty() && operations_.front()->finished) operations_.pop_front();
}

bool AsyncQueue::empty() {
  drop_finished();
  return operations_.empty();
}

bool AsyncQueue::complete_one(Machine& machine) {
  drop_finished();
  const auto can_finish = [](const auto& operation) {
    return !operation->finished && operation->ready();
  };
  const bool random = machine.options().completion == Completion::kRandom;
  auto pick = std::find_if(operations_.begin(), operations_.end(), [&](const auto& operation) {
    return can_finish(operation) && operation->signals();
  });
  if (pick == operations_.end())
    pick = std::find_if(operations_.begin(), operations_.end(), can_finish);
  if (pick == operations_.end()) return false;
  if (random) {
    auto start =
        operations_.begin() + machine.random().below(static_cast<uint32_t>(operations_.size()));
    if (const auto other = std::find_if(start, operations_.end(), can_finish);
        other != operations_.end()) {
      pick = other;
    }
  }
  const std::shared_ptr<AsyncOperation> operation = *pick;  // finish() may add to the queue
  complete(machine, *operation, random && !operation->source_read && machine.random().one_in(2));
  return true;
}

void AsyncQueue::complete(Machine& machine, AsyncOperation& operation, bool source_only) {
  const Warp& issuer = *operation.issuer;
  const Cluster& cluster = *operation.issuer->cta().cluster;
  machine.record({source_only ? TraceStep::Kind::kReadSource : TraceStep::Kind::kComplete,
                  static_cast<uint32_t>(cluster.grid->index), cluster.index,
                  issuer.index_in_cluster(), operation.number});
  source_only ? force_source(machine, operation) : force(machine, operation);
}

std::shared_ptr<AsyncOperation> AsyncQueue::find_first() {
  drop_finished();
  std::shared_ptr<AsyncOperation> first;
  for (const auto& operation : operations_) {
    if (operation->finished || !operation->ready()) continue;
    if (first == nullptr || operation->priority > first->priority) first = operation;
  }
  return first;
}

std::shared_ptr<AsyncOperation> AsyncQueue::find(uint32_t warp, uint64_t number) {
  const auto place =
      std::find_if(operations_.begin(), operations_.end(), [&](const auto& operation) {
        return !operation->finished && operation->number == number &&
               operation->issuer->index_in_cluster() == warp;
      });
  return place == operations_.end() ? nullptr : *place;
}

void AsyncQueue::complete_ready(Machine& machine) {
  for (bool any = true; any;) {
    any = false;
    for (size_t i = 0; i < operations_.size(); ++i) {
      const std::shared_ptr<AsyncOperation> operation = operations_[i];
      if (operation->finished || !operation->ready()) continue;
      force(machine, *operation);
      any = true;
    }
    drop_finished();
  }
}

void AsyncGroups::commit() {
  committed.push_back(std::move(open));
  open.clear();
}

std::vector<std::vector<std::shared_ptr<AsyncOperation>>> AsyncGroups::take_older(size_t keep) {
  std::vector<std::vector<std::shared_ptr<AsyncOperation>>> older;
  while (committed.size() > keep) {
    older.push_back(std::move(committed.front()));
    committed.pop_front();
  }
  return older;
}

}  // namespace pykernels::emulator
