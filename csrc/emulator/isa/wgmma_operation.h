// WGMMA in flight: one operation of a warpgroup, the accumulators it works on, and the order of
// all.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "emulator/machine/async.h"
#include "emulator/machine/cta.h"
#include "emulator/machine/warp.h"
#include "emulator/numerics/fp8.h"
#include "emulator/numerics/wide.h"

namespace pykernels::emulator {

inline constexpr int kGroupWarps = 4;

/// What one wgmma.mma_async statement says; the side data of its instruction.
struct WgmmaForm : SideData {
  enum class Kind : uint8_t { kFp8, kWide, kInt8 };

  Kind kind = Kind::kFp8;
  Fp8Type a_fp8 = Fp8Type::kE4m3;
  Fp8Type b_fp8 = Fp8Type::kE4m3;
  WideType wide = WideType::kBf16;
  bool a_signed = false;
  bool b_signed = false;
  bool satfinite = false;
  bool f16_accumulators = false;  // two columns a register
  bool a_in_registers = false;
  bool transpose_a = false;
  bool transpose_b = false;
  bool negate_product = false;  // scale-a * scale-b is -1
  bool scale_d_negated = false;
  int n = 0;
  int k = 0;
  std::string shape;  // "m64n128k32"
  std::vector<Slot> accumulators;
  std::array<Slot, 4> a_registers = {kNoSlot, kNoSlot, kNoSlot, kNoSlot};
  Slot a_descriptor = kNoSlot;
  Slot b_descriptor = kNoSlot;
  Slot scale_d = kNoSlot;

  /// Whether the two can be one operation of a warpgroup.
  bool same_operation(const WgmmaForm& other) const;
};

/// The accumulator registers of a warpgroup while operations on them are in flight. The registers
/// themselves are poisoned; values move back once no operation is left.
class Accumulators {
 public:
  explicit Accumulators(const WgmmaForm& form);

  bool same_registers(const WgmmaForm& form) const { return slots_ == form.accumulators; }

  /// Takes the values of a warp, once, and poisons its registers.
  void take(Warp& warp, bool keep_values);
  /// Gives all warps their values back.
  void give_back();
  bool holds_nan() const;
  /// Makes it as new, for operations on the same registers.
  void reset() { warps_ = {}; }

  AccumulatorTile tile(int n) { return {registers_.data(), n}; }

  int num_operations = 0;  // created and not finished

 private:
  uint32_t* values(int warp_in_group) {
    return lanes_.data() + static_cast<size_t>(warp_in_group) * slots_.size() * kWarpSize;
  }
  const uint32_t* values(int warp_in_group) const {
    return lanes_.data() + static_cast<size_t>(warp_in_group) * slots_.size() * kWarpSize;
  }

  std::vector<Slot> slots_;
  std::vector<uint32_t> lanes_;       // [warp][register][lane]
  std::vector<uint32_t*> registers_;  // into lanes_
  std::array<Warp*, kGroupWarps> warps_ = {};
};

class Warpgroup;

/// The k-th wgmma of the four warps of a warpgroup.
class WgmmaOperation : public AsyncOperation {
 public:
  WgmmaOperation(Warpgroup& group, std::shared_ptr<Accumulators> accumulators)
      : group_(group), accumulators_(std::move(accumulators)) {}

  /// One warp's share: checks that it agrees with the others', reads descriptors and fragments.
  void add(Warp& warp, const Instruction& inst);
  bool complete() const { return num_issued_ == kGroupWarps; }
  /// Warps that have issued it, as bits.
  uint32_t issued() const { return issued_; }

  void finish(Machine& machine) override;
  bool ready() const override { return complete(); }
  bool touches(const Cta& cta) const override;
  std::string describe() const override;

 private:
  void multiply(const uint8_t* a, const uint8_t* b);
  void multiply_f16_accumulators(const uint8_t* a, const uint8_t* b);
  void multiply_tile(AccumulatorTile tile, const uint8_t* a, const uint8_t* b);

  Warpgroup& group_;
  std::shared_ptr<Accumulators> accumulators_;
  const WgmmaForm* form_ = nullptr;
  Warp* first_warp_ = nullptr;
  const Instruction* first_instruction_ = nullptr;
  uint64_t a_descriptor_ = 0;
  uint64_t b_descriptor_ = 0;
  bool scale_d_ = false;
  uint32_t issued_ = 0;
  int num_issued_ = 0;
  std::vector<uint8_t> a_fragments_;
};

/// All WGMMA of a warpgroup that is in flight, in order, and what each warp has done.
class Warpgroup : public WarpgroupState {
 public:
  struct WarpState {
    uint64_t num_issued = 0;
    AsyncGroups groups;
  };

  static Warpgroup& of(Warp& warp);

  void issue(Warp& warp, const Instruction& inst);
  WarpState& state(const Warp& warp) { return warps_[warp.index() % kGroupWarps]; }

  // ---- for WgmmaOperation ----
  /// Finishes the operations before this one, and takes all of them off the list.
  void pop_through(Machine& machine, const WgmmaOperation& operation);
  void retire(const std::shared_ptr<Accumulators>& accumulators);

 private:
  std::shared_ptr<Accumulators> find_accumulators(const Instruction& inst);

  std::array<WarpState, kGroupWarps> warps_;
  std::deque<std::shared_ptr<WgmmaOperation>> operations_;  // the first is number first_
  uint64_t first_ = 0;
  std::vector<std::shared_ptr<Accumulators>> in_flight_;
  std::shared_ptr<Accumulators> spare_;  // the last that was retired: most often the next wanted
};

/// Init check of a register operand that the execution loop leaves to the handler.
void check_register(Warp& warp, const Instruction& inst, Slot slot);

}  // namespace pykernels::emulator
