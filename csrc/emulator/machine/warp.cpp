// The execution loop: picks a split of the warp and runs its instructions until it blocks, ends,
// meets another split, or its turn is over.
#include "emulator/machine/warp.h"

#include <algorithm>

#include "emulator/check/init.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/run_past.h"
#include "emulator/check/sync.h"
#include "emulator/check/wgmma_registers.h"
#include "emulator/machine/cta.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

// Instructions that a split of a diverged warp runs before the others have their turn: long enough
// that lanes which leave a loop early wait for the rest, short enough that a spinning lane starves
// no one.
constexpr uint32_t kSplitTurn = 512;

/// Blocked until other lanes arrive; nothing has been counted yet, so it may merge with those.
bool waits_for_convergence(const Split& split) {
  return split.blocked && split.wait.kind == Wait::Kind::kConvergence;
}

/// True where the split may join others at its instruction.
bool mergeable(const Split& split) {
  return !split.resumed && (!split.blocked || waits_for_convergence(split));
}

/// Seeds a warp's own random numbers: from the run's seed and who it is, not from when it started.
uint64_t stream_seed(const Machine& machine, const Cta& cta, int index) {
  uint64_t seed = machine.options().seed;
  for (const uint64_t part : {static_cast<uint64_t>(cta.grid->index), cta.cluster->index,
                              uint64_t{cta.rank}, static_cast<uint64_t>(index)}) {
    seed = Random(seed ^ part).next();
  }
  return seed;
}

}  // namespace

void Waitable::wake_all() {
  std::vector<Warp*> woken;
  woken.swap(waiting_);
  for (Warp* warp : woken) warp->wake(this);
  if (waiting_.empty()) {  // keeps the capacity
    woken.clear();
    waiting_.swap(woken);
  }
}

Warp::Warp(Machine& machine, Cta& cta, const Program& program, int index)
    : machine_(machine),
      cta_(cta),
      program_(program),
      index_(index),
      random_(stream_seed(machine, cta, index)) {
  const uint32_t first = static_cast<uint32_t>(index) * kWarpSize;
  const uint32_t count = std::min<uint32_t>(cta.num_threads - first, kWarpSize);
  live_ = count == kWarpSize ? kFullMask : (1u << count) - 1;
  splits_.reserve(kWarpSize + 1);  // references to splits stay valid while branches add some
  splits_.emplace_back();
  splits_[0].lanes = live_;
  storage_ = machine.pool().take(program.register_file_bytes);
  base_[0] = storage_;
  base_[1] = const_cast<uint8_t*>(program.constants.data());
  if (machine.options().check_init) {
    written_.assign(program.register_names.size(), 0);
    settled_.assign(program.instructions.size(), 0);
  }
  if (machine.options().check_sync && program.num_wgmma_registers != 0)
    wgmma_registers_ = std::make_unique<WgmmaRegisters>(*this);
}

Warp::~Warp() {
  machine_.pool().give_back(storage_, program_.register_file_bytes);
  machine_.pool().give_back(local_, size_t{program_.local_bytes} * kWarpSize);
}

uint32_t Warp::index_in_cluster() const {
  return cta_.rank * static_cast<uint32_t>(cta_.warp_registers.size()) +
         static_cast<uint32_t>(index_);
}

uint8_t* Warp::local(int lane) {
  if (local_ == nullptr) local_ = machine_.pool().take(size_t{program_.local_bytes} * kWarpSize);
  return local_ + size_t{program_.local_bytes} * static_cast<size_t>(lane);
}

Step Warp::branch(LaneMask taken, uint32_t target) {
  Split& split = splits_[current_];
  if (taken == split.lanes) {
    split.pc = target;
  } else if (taken == 0) {
    ++split.pc;
  } else {
    if (splits_.size() == 1) begin_divergence();
    Split other;
    other.pc = target;
    other.lanes = taken;
    split.lanes &= ~taken;
    ++split.pc;
    splits_.push_back(other);
  }
  return Step::kJumped;
}

bool Warp::meet(Handler handler, LaneMask required) {
  const auto meets = [&](const Split& split) {
    return waits_for_convergence(split) && split.wait.convergence == required &&
           program_.instructions[split.pc].handler == handler;
  };
  LaneMask present = splits_[current_].lanes;
  for (const Split& split : splits_) {
    if (meets(split)) present |= split.lanes;
  }
  if ((required & live_ & ~present) != 0) return false;
  if ((required & ended_apart_) != 0) report_run_past(required);
  for (Split& split : splits_) {
    if (!meets(split)) continue;
    split.blocked = false;
    ++split.pc;
  }
  return true;
}

/// The lanes have run together up to here, and part.
void Warp::begin_divergence() {
  if (!machine_.options().check_sync) return;
  if (trails_ == nullptr) trails_ = std::make_unique<LaneTrails>();
  trails_->begin(live_);
  run_begin_ = splits_[current_].pc;
}

/// Once an instruction: not when it runs again after it has blocked.
void Warp::report_run_past(LaneMask required) {
  if (!split().resumed) check_run_past(*this, *trails_, required);
}

void Warp::part(LaneMask lanes) {
  if (splits_.size() == 1) begin_divergence();
  Split other;
  other.pc = splits_[current_].pc + 1;
  other.lanes = lanes;
  splits_[current_].lanes &= ~lanes;
  splits_.push_back(other);
}

Step Warp::exit(LaneMask lanes) {
  if (before_grid_wait_ != 0) check_exit_before_grid_wait(*this, lanes);
  if (RaceDetector* races = machine_.races()) races->end_lanes(*this, lanes);
  Split& split = splits_[current_];
  if (trails_ != nullptr && splits_.size() > 1) {
    trails_->run(program_, run_begin_, split.pc, split.lanes);
    trails_->exit(split.pc, lanes);
    ended_apart_ |= lanes;
  }
  split.lanes &= ~lanes;
  ++split.pc;
  live_ &= ~lanes;
  for (Split& other : splits_) {  // they may have waited for lanes that now never come
    if (waits_for_convergence(other)) other.blocked = false;
  }
  cta_.on_exit(*this, lanes);
  return Step::kExited;
}

Step Warp::block(const Wait& wait) {
  Split& split = splits_[current_];
  split.wait = wait;
  split.blocked = true;
  if (wait.on != nullptr) wait.on->add(*this);
  return Step::kBlocked;
}

Step Warp::block_until_converged(LaneMask required) {
  Wait wait;
  wait.kind = Wait::Kind::kConvergence;
  wait.convergence = required;
  return block(wait);
}

void Warp::wake(const Waitable* on) {
  for (Split& split : splits_) {
    if (!split.blocked || split.wait.on != on) continue;
    split.blocked = false;
    split.resumed = true;
  }
  machine_.add_runnable(*this);
}

bool Warp::runnable() const {
  return std::any_of(splits_.begin(), splits_.end(),
                     [](const Split& split) { return !split.blocked; });
}

void Warp::merge_splits() {
  for (size_t i = 0; i < splits_.size(); ++i) {
    if (!mergeable(splits_[i])) continue;
    for (size_t j = splits_.size() - 1; j > i; --j) {
      Split& other = splits_[j];
      if (other.pc != splits_[i].pc || !mergeable(other)) continue;
      splits_[i].lanes |= other.lanes;
      splits_[i].blocked = false;
      splits_[i].yielded &= other.yielded;
      splits_.erase(splits_.begin() + static_cast<std::ptrdiff_t>(j));
    }
  }
}

bool Warp::select_split() {
  const auto end = static_cast<uint32_t>(program_.instructions.size());
  if (splits_.size() == 1) {
    current_ = 0;
    stop_pc_ = end;
    splits_[0].turn = 0;
    splits_[0].yielded = false;
    return !splits_[0].blocked;
  }
  merge_splits();
  const Split* best = nullptr;
  bool any_yielded = false;
  for (const Split& split : splits_) {
    if (split.blocked) continue;
    any_yielded |= split.yielded;
    if (!split.yielded && (best == nullptr || split.pc < best->pc)) best = &split;
  }
  if (best == nullptr) {
    if (!any_yielded) return false;
    for (Split& split : splits_) split.yielded = false;
    return select_split();
  }
  current_ = static_cast<size_t>(best - splits_.data());
  stop_pc_ = end;
  for (const Split& split : splits_) {
    if (&split != best && mergeable(split) && split.pc > best->pc)
      stop_pc_ = std::min(stop_pc_, split.pc);
  }
  return true;
}

/// After an instruction that had blocked and ran again: forgets the wait, unless it waits once
/// more.
void Warp::finish_blocking_step(Step step) {
  if (step == Step::kBlocked) return;
  Split& split = splits_[current_];
  split.resumed = false;
  split.wait = Wait{};
}

template <bool kChecked>
Step Warp::execute(uint64_t limit, uint64_t* spent) {
  const Instruction* const code = program_.instructions.data();
  Counters& counters = machine_.counters();
  Split* const split = &splits_[current_];
  const uint32_t stop = stop_pc_;
  const bool resumed = split->resumed;
  Step step = Step::kNext;
  uint64_t count = 0;
  uint64_t threads = 0;
  uint32_t pc = split->pc;  // of the running instruction; split->pc follows it, for handlers
  const LaneMask lanes = split->lanes;
  run_begin_ = pc;
  if (resumed) limit = 1;
  while (count < limit) {
    const Instruction& inst = code[pc];
    LaneMask active = split->lanes;
    ++count;
    if (inst.guard != kNoSlot) {
      const LaneMask guard = mask(inst.guard);
      active &= inst.guard_negated ? ~guard : guard;
    }
    if constexpr (kChecked) {
      if (settled_[pc] == 0) check_registers(inst, active);
    }
    if (active != 0) [[likely]] {
      if (inst.touches_wgmma && wgmma_registers_ != nullptr) wgmma_registers_->access(inst, active);
      step = inst.handler(*this, inst, active);
      if (step == Step::kBlocked) break;
      ++counters.warp_instructions[static_cast<size_t>(inst.instruction_class)];
      threads +=
          active == kFullMask ? kWarpSize : static_cast<uint64_t>(__builtin_popcount(active));
    } else {
      step = Step::kNext;
    }
    if (step == Step::kNext) [[likely]] {
      split->pc = ++pc;
      if (pc >= stop) break;
    } else {
      if (step == Step::kExited || splits_.size() > 1 || yield_) break;
      pc = split->pc;
    }
  }
  if (trails_ != nullptr && splits_.size() > 1 && step != Step::kExited)
    trails_->run(program_, run_begin_, pc, lanes);
  if (resumed) finish_blocking_step(step);
  counters.thread_instructions += threads;
  *spent += count;
  return step;
}

uint64_t Warp::run(uint64_t budget) {
  const bool checked = !written_.empty();
  const auto end = static_cast<uint32_t>(program_.instructions.size());
  uint64_t spent = 0;
  yield_ = false;
  while (spent < budget && live_ != 0 && select_split()) {
    const bool diverged = splits_.size() > 1;
    Split& chosen = splits_[current_];
    uint64_t limit = budget - spent;
    if (diverged) {
      if (chosen.turn == 0) chosen.turn = kSplitTurn + random_.below(kSplitTurn);
      limit = std::min<uint64_t>(limit, chosen.turn);
    }
    const uint64_t before = spent;
    checked ? execute<true>(limit, &spent) : execute<false>(limit, &spent);
    if (chosen.pc >= end && chosen.lanes != 0) {  // falling off the end of an entry is a return
      const LaneMask lanes = chosen.lanes;
      chosen.pc = end - 1;
      exit(lanes);
    }
    chosen.turn -= std::min<uint32_t>(chosen.turn, static_cast<uint32_t>(spent - before));
    if (diverged && chosen.turn == 0) chosen.yielded = true;
    if (chosen.lanes == 0) splits_.erase(splits_.begin() + static_cast<std::ptrdiff_t>(current_));
    if (yield_) {
      if (current_ < splits_.size()) splits_[current_].yielded = true;
      break;
    }
  }
  return spent;
}

std::vector<uint8_t> Warp::state() const {
  std::vector<uint8_t> bytes(storage_, storage_ + program_.register_file_bytes);
  if (local_ != nullptr)
    bytes.insert(bytes.end(), local_, local_ + size_t{program_.local_bytes} * kWarpSize);
  for (const Split& split : splits_) {
    const uint32_t words[] = {split.pc, split.lanes, split.blocked};
    const auto* first = reinterpret_cast<const uint8_t*>(words);
    bytes.insert(bytes.end(), first, first + sizeof(words));
  }
  return bytes;
}

void Warp::check_registers(const Instruction& inst, LaneMask active) {
  const RegisterAccess* const accesses = program_.accesses.data() + inst.accesses_begin;
  const auto is_written = [&](const RegisterAccess& access) {
    const RegisterAccess* const writes = accesses + inst.num_reads;
    return std::any_of(writes, writes + inst.num_writes, [&](const RegisterAccess& write) {
      return write.register_index == access.register_index;
    });
  };
  const LaneMask lanes = splits_[current_].lanes;
  // A value that was never written may be moved about; using it is the finding. Accumulators are
  // read only where the instruction's scale-d says so: isa/wgmma.cpp looks at them.
  const bool moves = inst.instruction_class == InstructionClass::kMove;
  const bool accumulates = inst.instruction_class == InstructionClass::kWgmma;
  // A shuffle, which alone of its class has so many operands, looks at the lanes that it takes,
  // unless its result takes the value's place, which is marked as written below.
  const bool shuffles =
      inst.instruction_class == InstructionClass::kWarp && inst.operands[4] != kNoSlot;
  // Compilers convert one value by a form that packs two, and take its half of the result.
  LaneMask other_half = 0;
  if (inst.instruction_class == InstructionClass::kConvert) {
    for (uint32_t i = 0; i < inst.num_reads; ++i) {
      if (accesses[i].slot != inst.guard) other_half |= written_[accesses[i].register_index];
    }
  }
  LaneMask defined = kFullMask;
  LaneMask all_written = kFullMask;  // lanes in which every register of the instruction holds
  for (uint32_t i = 0; i < inst.num_reads; ++i) {
    const RegisterAccess& access = accesses[i];
    const bool is_guard = access.slot == inst.guard;
    LaneMask written = written_[access.register_index];
    if (!is_guard) written |= other_half;
    all_written &= written;
    const LaneMask needed = is_guard ? lanes : active;
    if ((needed & ~written) == 0) continue;
    if (shuffles && access.slot == inst.operands[2] && !is_written(access)) continue;
    if (moves && !is_guard) {
      defined &= written;
    } else if (!accumulates) {
      report_unwritten_register(*this, inst, access, needed & ~written);
      written_[access.register_index] |= needed;  // once
    }
  }
  if (accumulates) return;  // isa/wgmma_operation.cpp marks them once it has looked at them
  LaneMask lost = 0;
  for (uint32_t i = inst.num_reads; i < uint32_t{inst.num_reads} + inst.num_writes; ++i) {
    LaneMask& written = written_[accesses[i].register_index];
    const LaneMask before = written;
    written = (written & ~active) | (active & defined);
    lost |= before & ~written;
    all_written &= written;
  }
  if (lost != 0) std::fill(settled_.begin(), settled_.end(), 0);
  if (all_written == kFullMask) settled_[splits_[current_].pc] = 1;
}

void Warp::check_written(const Instruction& inst, const RegisterAccess& access, LaneMask lanes) {
  if (written_.empty()) return;
  LaneMask& written = written_[access.register_index];
  if ((lanes & ~written) == 0) return;
  report_unwritten_register(*this, inst, access, lanes & ~written);
  written |= lanes;
}

}  // namespace pykernels::emulator
