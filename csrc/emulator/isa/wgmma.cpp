// wgmma.mma_async, wgmma.fence, wgmma.commit_group and wgmma.wait_group.

#include <cstdlib>
#include <memory>
#include <string>

#include "core/check.h"
#include "emulator/check/lanes.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/wgmma_registers.h"
#include "emulator/isa/table.h"
#include "emulator/isa/wgmma_operation.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

// ---- handlers ----

/// All instructions here need all lanes of four complete warps.
void check_warpgroup(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto first = static_cast<size_t>(warp.warpgroup()) * kGroupWarps;
  if (warp.cta().warps.size() < first + kGroupWarps) {
    warp.machine().fail("sync",
                        concat("WGMMA needs a warpgroup of four warps, and the CTA ends with warp ",
                               warp.cta().warps.size() - 1),
                        warp, inst);
  }
  if (active != kFullMask) {
    warp.machine().fail("sync",
                        concat("not all lanes of the warp execute this .aligned instruction: ",
                               missing_lanes_text(warp, active)),
                        warp, inst);
  }
}

/// wgmma.mma_async.sync.aligned.shape.dtype.atype.btype                                PTX 8.0,
/// sm_90a
///
/// The four warps' instructions of the same number are one operation: it reads shared memory and
/// writes the accumulators when it completes; until then the registers are poisoned. Fragments of A
/// are read here.
Step wgmma_mma_async(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  check_warpgroup(warp, inst, active);
  Warpgroup::of(warp).issue(warp, inst);
  return Step::kNext;
}

/// wgmma.fence.sync.aligned                                                            PTX 8.0,
/// sm_90a
///
/// Orders the warp's register accesses before WGMMA that uses the same registers: what its lanes
/// have loaded has arrived.
Step wgmma_fence(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  check_warpgroup(warp, inst, active);
  if (WgmmaRegisters* registers = warp.wgmma_registers()) registers->fence();
  if (RaceDetector* races = warp.machine().races()) races->registers_fenced(warp);
  return Step::kNext;
}

/// wgmma.commit_group.sync.aligned                                                     PTX 8.0,
/// sm_90a
Step wgmma_commit_group(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  check_warpgroup(warp, inst, active);
  Warpgroup::of(warp).state(warp).groups.commit();
  return Step::kNext;
}

std::string describe_wait(const Warp& warp, const Wait& wait) {
  std::string missing;
  for (int i = 0; i < kGroupWarps; ++i) {
    if (wait.detail[0] >> i & 1) continue;
    missing += concat(missing.empty() ? "" : ", ", warp.warpgroup() * kGroupWarps + i);
  }
  return concat("wgmma.wait_group: warps ", missing, " have not issued the same WGMMA");
}

/// wgmma.wait_group.sync.aligned N                                                     PTX 8.0,
/// sm_90a
///
/// Completes all but the newest N groups of the warp. Blocks while another warp of the warpgroup
/// has not issued its share of an operation in them.
Step wgmma_wait_group(Warp& warp, const Instruction& inst, LaneMask active) {
  if (!warp.aligned()) return warp.block_until_converged(kFullMask);
  check_warpgroup(warp, inst, active);
  Warpgroup& group = Warpgroup::of(warp);
  Warpgroup::WarpState& state = group.state(warp);
  const auto keep = static_cast<size_t>(inst.immediate);
  const size_t num_groups = state.groups.committed.size();
  for (size_t i = 0; i + keep < num_groups; ++i) {
    for (const auto& operation : state.groups.committed[i]) {
      const auto& wgmma = static_cast<const WgmmaOperation&>(*operation);
      if (wgmma.complete()) continue;
      Wait wait;
      wait.kind = Wait::Kind::kWarpgroup;
      wait.on = &group;
      wait.describe = describe_wait;
      wait.detail[0] = wgmma.issued();
      return warp.block(wait);
    }
  }
  size_t num_operations = 0;
  const AgentRaces* newest = nullptr;
  const auto groups = state.groups.take_older(keep);
  for (const auto& committed : groups) {
    for (const auto& operation : committed) {
      AsyncQueue::force(warp.machine(), *operation);
      newest = operation->agent.get();
    }
    num_operations += committed.size();
  }
  if (newest != nullptr) warp.machine().races()->wait_for(warp, kFullMask, {&newest, 1}, false);
  if (WgmmaRegisters* registers = warp.wgmma_registers()) registers->complete(num_operations);
  return Step::kNext;
}

// ---- forms ----

/// Reads one wgmma.mma_async statement.
class FormReader {
 public:
  explicit FormReader(Builder& builder) : builder_(builder), form_(std::make_unique<WgmmaForm>()) {}

  void build() {
    read_modifiers();
    read_operands();
    Instruction& inst = builder_.instruction();
    inst.handler = wgmma_mma_async;
    inst.side = builder_.keep(std::move(form_));
  }

 private:
  void read_modifiers() {
    std::vector<std::string> types;
    bool async = false;
    bool sync = false;
    bool aligned = false;
    for (const std::string& modifier : builder_.statement().modifiers) {
      if (modifier == "mma_async") {
        async = true;
      } else if (modifier == "sync") {
        sync = true;
      } else if (modifier == "aligned") {
        aligned = true;
      } else if (modifier == "satfinite") {
        form_->satfinite = true;
      } else if (modifier.rfind("m64n", 0) == 0) {
        form_->shape = modifier;
      } else {
        types.push_back(modifier);
      }
    }
    if (!async || !sync || !aligned || types.size() != 3) {
      builder_.fail(
          "expected wgmma.mma_async.sync.aligned.m64nNkK.dtype.atype.btype (dense, not .sp)");
    }
    read_types(types[0], types[1], types[2]);
    read_shape();
  }

  void read_types(const std::string& d, const std::string& a, const std::string& b) {
    const auto is_fp8 = [](const std::string& type) { return type == "e4m3" || type == "e5m2"; };
    const auto is_int8 = [](const std::string& type) { return type == "s8" || type == "u8"; };
    bool valid = !form_->satfinite;
    if (is_fp8(a) && is_fp8(b)) {
      form_->kind = WgmmaForm::Kind::kFp8;
      form_->a_fp8 = a == "e4m3" ? Fp8Type::kE4m3 : Fp8Type::kE5m2;
      form_->b_fp8 = b == "e4m3" ? Fp8Type::kE4m3 : Fp8Type::kE5m2;
      form_->k = 32;
      valid &= d == "f32" || d == "f16";
    } else if (is_int8(a) && is_int8(b)) {
      form_->kind = WgmmaForm::Kind::kInt8;
      form_->a_signed = a == "s8";
      form_->b_signed = b == "s8";
      form_->k = 32;
      valid = d == "s32";
    } else {
      form_->kind = WgmmaForm::Kind::kWide;
      form_->wide = a == "f16" ? WideType::kF16 : a == "bf16" ? WideType::kBf16 : WideType::kTf32;
      form_->k = a == "tf32" ? 8 : 16;
      valid &= a == b && (a == "f16" || a == "bf16" || a == "tf32") &&
               (d == "f32" || (d == "f16" && a == "f16"));
    }
    if (!valid) builder_.fail(concat("wgmma has no form ", d, " += ", a, " * ", b));
    form_->f16_accumulators = d == "f16";
  }

  void read_shape() {
    const std::string suffix = concat("k", form_->k);
    char* end = nullptr;
    const long n = std::strtol(form_->shape.c_str() + 4, &end, 10);
    // Integers take fewer sizes: beyond 32, multiples of 16.
    const long step = form_->kind == WgmmaForm::Kind::kInt8 && n > 32 ? 16 : 8;
    if (suffix != end || n < 8 || n > kMaxTileColumns || n % step != 0) {
      builder_.fail(concat("wgmma has no shape ", form_->shape, " for these types"));
    }
    form_->n = static_cast<int>(n);
  }

  int literal(int index, int low, int high) {
    const int64_t value = builder_.integer(operand(index));
    if (value != low && value != high) {
      builder_.fail(concat("operand ", index, " must be ", low, " or ", high, ", got ", value));
    }
    return static_cast<int>(value);
  }

  void read_operands() {
    const bool has_transposes =
        form_->kind == WgmmaForm::Kind::kWide && form_->wide != WideType::kTf32;
    const int num_scales = form_->kind == WgmmaForm::Kind::kInt8 ? 0 : 2;
    if (builder_.num_operands() < 3) builder_.fail("wgmma.mma_async needs d, a, b and scale-d");
    form_->a_in_registers = operand(1).kind == Operand::Kind::kVector;
    const int num_transposes = has_transposes ? (form_->a_in_registers ? 1 : 2) : 0;
    const int expected = 4 + num_scales + num_transposes;
    if (builder_.num_operands() != expected) {
      builder_.fail(concat("expected ", expected, " operands, got ", builder_.num_operands()));
    }
    read_accumulators();
    read_matrices();
    bool negated = false;
    form_->scale_d = builder_.predicate(operand(3), &negated);
    form_->scale_d_negated = negated;
    int index = 4;
    if (num_scales != 0) {
      form_->negate_product = literal(4, 1, -1) * literal(5, 1, -1) < 0;
      index = 6;
    }
    if (num_transposes == 2) form_->transpose_a = literal(index++, 0, 1) == 1;
    if (num_transposes != 0) form_->transpose_b = literal(index, 0, 1) == 1;
  }

  void read_accumulators() {
    const size_t expected = static_cast<size_t>(form_->n) / (form_->f16_accumulators ? 4 : 2);
    const Operand& d = operand(0);
    if (d.kind != Operand::Kind::kVector || d.elements.size() != expected) {
      builder_.fail(concat("d must list ", expected, " registers"));
    }
    for (const Operand& element : d.elements) {
      form_->accumulators.push_back(builder_.accumulator(element, Type::kB32));
    }
  }

  void read_matrices() {
    const Operand& a = operand(1);
    if (form_->a_in_registers) {
      if (a.elements.size() != 4) builder_.fail("a must list 4 registers");
      for (size_t i = 0; i < 4; ++i) {
        form_->a_registers[i] = builder_.fragment(a.elements[i], Type::kB32);
      }
    } else {
      form_->a_descriptor = builder_.source(a, Type::kB64);
    }
    form_->b_descriptor = builder_.source(operand(2), Type::kB64);
  }

  const Operand& operand(int index) const {
    return builder_.statement().operands[static_cast<size_t>(index)];
  }

  Builder& builder_;
  std::unique_ptr<WgmmaForm> form_;
};

/// A form without operands.
Build plain(Handler handler) {
  return [handler](Builder& builder) {
    if (builder.num_operands() != 0) builder.fail("expected no operands");
    builder.instruction().handler = handler;
  };
}

void build_wait_group(Builder& builder) {
  if (builder.num_operands() != 1) builder.fail("expected the number of groups to leave pending");
  const int64_t keep = builder.integer(builder.statement().operands[0]);
  if (keep < 0 || keep > 7) builder.fail("the number of groups must be from 0 to 7");
  builder.instruction().handler = wgmma_wait_group;
  builder.instruction().immediate = keep;
}

}  // namespace

void add_wgmma_forms(Table& table) {
  constexpr auto kClass = InstructionClass::kWgmma;
  table.add("wgmma.*", kClass, [](Builder& builder) { FormReader(builder).build(); });
  table.add("wgmma.fence.sync.aligned", kClass, plain(wgmma_fence));
  table.add("wgmma.commit_group.sync.aligned", kClass, plain(wgmma_commit_group));
  table.add("wgmma.wait_group.sync.aligned", kClass, build_wait_group);
}

}  // namespace pykernels::emulator
