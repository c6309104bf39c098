#include "emulator/isa/wgmma_operation.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/wgmma_registers.h"
#include "emulator/gpu_facts.h"
#include "emulator/isa/wgmma_operands.h"
#include "emulator/machine/machine.h"
#include "emulator/numerics/convert.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kPoison = 0xFFFFFFFFu;  // a NaN as FP32 and as two FP16

/// The operand of all lanes; differing lanes are a finding.
template <typename Value>
Value uniform(Warp& warp, const Instruction& inst, Slot slot, const char* what) {
  check_register(warp, inst, slot);
  const Value* lanes = warp.lanes<Value>(slot);
  if (!std::all_of(lanes, lanes + kWarpSize, [&](Value lane) { return lane == lanes[0]; })) {
    warp.machine().report("sync", concat("lanes of the warp give different values of ", what), warp,
                          inst);
  }
  return lanes[0];
}

bool read_scale_d(Warp& warp, const Instruction& inst, const WgmmaForm& form) {
  check_register(warp, inst, form.scale_d);
  const LaneMask lanes = warp.mask(form.scale_d) & warp.live();
  if (lanes != 0 && lanes != warp.live()) {
    warp.machine().report("sync", "lanes of the warp give different values of scale-d", warp, inst);
  }
  return (lanes != 0) != form.scale_d_negated;
}

/// Init check: accumulators are read only where scale-d says so, and hold values afterwards.
void check_accumulators(Warp& warp, const Instruction& inst, bool scale_d) {
  if (!warp.machine().options().check_init) return;
  const RegisterAccess* writes =
      warp.program().accesses.data() + inst.accesses_begin + inst.num_reads;
  for (int i = 0; i < inst.num_writes; ++i) {
    if (scale_d) warp.check_written(inst, writes[i], warp.live());
    warp.set_written(writes[i], warp.live());
  }
}

void negate_elements(const WgmmaForm& form, uint8_t* bytes, size_t count) {
  const size_t element = form.kind == WgmmaForm::Kind::kFp8 ? 1
                         : form.wide == WideType::kTf32     ? 4
                                                            : 2;
  for (size_t i = element - 1; i < count; i += element) bytes[i] ^= 0x80;
}

}  // namespace

void check_register(Warp& warp, const Instruction& inst, Slot slot) {
  if (!warp.machine().options().check_init) return;
  const auto& accesses = warp.program().accesses;
  for (uint32_t i = 0; i < inst.num_reads; ++i) {
    const RegisterAccess& access = accesses[inst.accesses_begin + i];
    if (access.slot == slot) {
      warp.check_written(inst, access, warp.live());
      return;
    }
  }
}

bool WgmmaForm::same_operation(const WgmmaForm& other) const {
  return kind == other.kind && shape == other.shape && a_fp8 == other.a_fp8 &&
         b_fp8 == other.b_fp8 && wide == other.wide && a_in_registers == other.a_in_registers &&
         transpose_a == other.transpose_a && transpose_b == other.transpose_b &&
         f16_accumulators == other.f16_accumulators && negate_product == other.negate_product &&
         accumulators == other.accumulators;
}

// ---- Accumulators ----

Accumulators::Accumulators(const WgmmaForm& form)
    : slots_(form.accumulators), lanes_(kGroupWarps * slots_.size() * kWarpSize) {
  registers_.reserve(kGroupWarps * slots_.size());
  for (size_t i = 0; i < lanes_.size(); i += kWarpSize) registers_.push_back(&lanes_[i]);
}

void Accumulators::take(Warp& warp, bool keep_values) {
  const int position = warp.index() % kGroupWarps;
  if (warps_[position] != nullptr) return;
  warps_[position] = &warp;
  uint32_t* target = values(position);
  for (const Slot slot : slots_) {
    uint32_t* lanes = warp.lanes<uint32_t>(slot);
    if (keep_values) std::memcpy(target, lanes, kWarpSize * sizeof(uint32_t));
    std::fill_n(lanes, kWarpSize, kPoison);
    target += kWarpSize;
  }
}

void Accumulators::give_back() {
  for (int position = 0; position < kGroupWarps; ++position) {
    const uint32_t* source = values(position);
    for (const Slot slot : slots_) {
      std::memcpy(warps_[position]->lanes<uint32_t>(slot), source, kWarpSize * sizeof(uint32_t));
      source += kWarpSize;
    }
  }
}

bool Accumulators::holds_nan() const {
  uint32_t found = 0;  // without an early end: vector code
  for (const uint32_t value : lanes_) found |= value == kCanonicalNan ? 1 : 0;
  return found != 0;
}

// ---- WgmmaOperation ----

void WgmmaOperation::add(Warp& warp, const Instruction& inst) {
  const auto& form = static_cast<const WgmmaForm&>(*inst.side);
  const bool first = num_issued_ == 0;
  if (first) {
    form_ = &form;
    first_warp_ = &warp;
    first_instruction_ = &inst;
    if (form.a_in_registers) a_fragments_.resize(kTileRows * kOperandRowBytes);
  } else if (!form.same_operation(*form_)) {
    warp.machine().fail("sync",
                        concat("the warps of a warpgroup issue different instructions as one "
                               "operation: this one and ",
                               describe()),
                        warp, inst);
  }
  const bool scale_d = read_scale_d(warp, inst, form);
  const uint64_t b = uniform<uint64_t>(warp, inst, form.b_descriptor, "the descriptor of b");
  uint64_t a = 0;
  if (form.a_in_registers) {
    const uint32_t* registers[4];
    for (int i = 0; i < 4; ++i) {
      check_register(warp, inst, form.a_registers[i]);
      registers[i] = warp.lanes<uint32_t>(form.a_registers[i]);
    }
    gather_fragment(registers, warp.index() % kGroupWarps, a_fragments_.data());
  } else {
    a = uniform<uint64_t>(warp, inst, form.a_descriptor, "the descriptor of a");
  }
  if (!first && (a != a_descriptor_ || b != b_descriptor_ || scale_d != scale_d_)) {
    warp.machine().report(
        "sync", "the warps of a warpgroup give different descriptors or scale-d to one operation",
        warp, inst);
  }
  if (first) {
    a_descriptor_ = a;
    b_descriptor_ = b;
    scale_d_ = scale_d;
  }
  check_accumulators(warp, inst, scale_d);
  accumulators_->take(warp, scale_d);
  issued_ |= 1u << warp.index() % kGroupWarps;
  ++num_issued_;
}

void WgmmaOperation::multiply_tile(AccumulatorTile tile, const uint8_t* a, const uint8_t* b) {
  switch (form_->kind) {
    case WgmmaForm::Kind::kFp8:
      multiply_fp8(tile, {a, kOperandRowBytes, form_->a_fp8}, {b, kOperandRowBytes, form_->b_fp8},
                   scale_d_);
      return;
    case WgmmaForm::Kind::kWide:
      multiply_wide(tile, {a, kOperandRowBytes}, {b, kOperandRowBytes}, form_->wide, scale_d_);
      return;
    case WgmmaForm::Kind::kInt8:
      multiply_int8(tile, {a, kOperandRowBytes}, {b, kOperandRowBytes}, form_->a_signed,
                    form_->b_signed, form_->satfinite, scale_d_);
      return;
  }
}

/// FP16 accumulators: computed as FP32 ones, rounded to nearest at the end of the instruction.
void WgmmaOperation::multiply_f16_accumulators(const uint8_t* a, const uint8_t* b) {
  const int n = form_->n;
  std::vector<uint32_t> lanes(static_cast<size_t>(kTileRows) * n);
  std::vector<uint32_t*> registers;
  for (size_t i = 0; i < lanes.size(); i += kWarpSize) registers.push_back(&lanes[i]);
  // Two columns of one row lie in one packed register, in the same lane.
  uint32_t* const* packed = accumulators_->tile(n).registers;
  const size_t num_packed = static_cast<size_t>(kGroupWarps) * n / 4;
  for (size_t i = 0; i < num_packed; ++i) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      registers[2 * i][lane] = f16_to_f32(packed[i][lane] & 0xFFFF);
      registers[2 * i + 1][lane] = f16_to_f32(packed[i][lane] >> 16);
    }
  }
  multiply_tile({registers.data(), n}, a, b);
  for (size_t i = 0; i < num_packed; ++i) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const uint32_t low = f32_to_f16(std::bit_cast<float>(registers[2 * i][lane]));
      const uint32_t high = f32_to_f16(std::bit_cast<float>(registers[2 * i + 1][lane]));
      packed[i][lane] = high << 16 | low;
    }
  }
}

void WgmmaOperation::multiply(const uint8_t* a, const uint8_t* b) {
  if (form_->f16_accumulators) {
    multiply_f16_accumulators(a, b);
  } else {
    multiply_tile(accumulators_->tile(form_->n), a, b);
  }
}

void WgmmaOperation::finish(Machine& machine) {
  group_.pop_through(machine, *this);
  const OperandReader reader{machine, first_warp_->cta(), *first_warp_, *first_instruction_};
  alignas(64) uint8_t a[kTileRows * kOperandRowBytes];
  alignas(64) uint8_t b[kMaxTileColumns * kOperandRowBytes];
  if (form_->a_in_registers) {
    std::memcpy(a, a_fragments_.data(), sizeof(a));
  } else {
    gather_operand(reader, a_descriptor_, kTileRows, form_->transpose_a, a);
  }
  gather_operand(reader, b_descriptor_, form_->n, form_->transpose_b, b);
  if (form_->negate_product) negate_elements(*form_, a, sizeof(a));
  if (form_->kind == WgmmaForm::Kind::kWide || form_->f16_accumulators) {
    rely_on(machine, Fact::kHalfPrecisionWgmma);
  }
  multiply(a, b);
  ++machine.counters().wgmma;
  machine.counters().tensor_multiply_adds +=
      static_cast<uint64_t>(kTileRows) * static_cast<uint64_t>(form_->n * form_->k);
  if (--accumulators_->num_operations == 0) {
    if (form_->kind == WgmmaForm::Kind::kFp8 && accumulators_->holds_nan()) {
      rely_on(machine, Fact::kFp8WgmmaNan);
    }
    group_.retire(accumulators_);
  }
}

bool WgmmaOperation::touches(const Cta& cta) const {
  return first_warp_ != nullptr && &first_warp_->cta() == &cta;
}

std::string WgmmaOperation::describe() const {
  return concat("wgmma.mma_async.", form_->shape, " of warpgroup ", first_warp_->warpgroup(),
                " (PTX line ",
                first_warp_->program().locations[first_instruction_->statement].ptx_line, ")");
}

// ---- Warpgroup ----

Warpgroup& Warpgroup::of(Warp& warp) {
  auto& groups = warp.cta().warpgroups;
  const auto index = static_cast<size_t>(warp.warpgroup());
  if (groups.size() <= index) groups.resize(index + 1);
  if (groups[index] == nullptr) groups[index] = std::make_unique<Warpgroup>();
  return static_cast<Warpgroup&>(*groups[index]);
}

void Warpgroup::issue(Warp& warp, const Instruction& inst) {
  if (WgmmaRegisters* registers = warp.wgmma_registers()) {
    registers->issue(inst, static_cast<const WgmmaForm&>(*inst.side).shape);
  }
  WarpState& state = this->state(warp);
  const uint64_t number = state.num_issued++;
  if (number - first_ == operations_.size()) {
    std::shared_ptr<Accumulators> accumulators = find_accumulators(inst);
    ++accumulators->num_operations;
    operations_.push_back(std::make_shared<WgmmaOperation>(*this, std::move(accumulators)));
  }
  const std::shared_ptr<WgmmaOperation> operation = operations_[number - first_];
  operation->add(warp, inst);
  if (RaceDetector* races = warp.machine().races()) {
    races->issue_wgmma(*operation, warp, inst, number + 1);
  }
  state.groups.open.push_back(operation);
  if (operation->complete()) {
    wake_all();
    warp.machine().async().issue(warp.machine(), operation);
  }
}

std::shared_ptr<Accumulators> Warpgroup::find_accumulators(const Instruction& inst) {
  const auto& form = static_cast<const WgmmaForm&>(*inst.side);
  for (const auto& accumulators : in_flight_) {
    if (accumulators->same_registers(form)) return accumulators;
  }
  if (spare_ != nullptr && spare_->same_registers(form)) {
    spare_->reset();
    in_flight_.push_back(std::move(spare_));
  } else {
    in_flight_.push_back(std::make_shared<Accumulators>(form));
  }
  return in_flight_.back();
}

void Warpgroup::pop_through(Machine& machine, const WgmmaOperation& operation) {
  while (operations_.front().get() != &operation) {
    const std::shared_ptr<WgmmaOperation> earlier = operations_.front();
    AsyncQueue::force(machine, *earlier);
  }
  operations_.pop_front();
  ++first_;
}

void Warpgroup::retire(const std::shared_ptr<Accumulators>& accumulators) {
  accumulators->give_back();
  spare_ = accumulators;
  in_flight_.erase(std::find(in_flight_.begin(), in_flight_.end(), accumulators));
}

}  // namespace pykernels::emulator
