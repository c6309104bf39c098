// Sync check of the registers that WGMMA works on: accesses while it is in flight, and accesses
// that no wgmma.fence orders before it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emulator/machine/warp.h"

namespace pykernels::emulator {

/// Of one warp. Operations are numbered from 1 in the order in which the warp issues them, and
/// complete in that order.
///
/// A move between wgmma.fence and the WGMMA that it feeds is none of the accesses that need another
/// fence: compilers bring operands into place there, with values from before the fence. It is one
/// if a wgmma.wait_group has completed anything since the fence: then values of the threads may
/// have come after it.
class WgmmaRegisters {
 public:
  explicit WgmmaRegisters(Warp& warp)
      : warp_(warp), registers_(warp.program().num_wgmma_registers) {}

  /// An instruction of threads that names some of the registers.
  void access(const Instruction& inst, LaneMask active);
  void fence();
  /// wgmma.mma_async: writes its accumulators and reads its fragments until it is waited for.
  void issue(const Instruction& inst, const std::string& shape);
  /// wgmma.wait_group has waited for so many operations, the oldest.
  void complete(size_t num_operations);

 private:
  struct Use {  // by WGMMA
    const Instruction* instruction = nullptr;
    uint64_t number = 0;
    uint64_t fence = 0;
  };
  struct Register {
    Use accumulator;
    Use fragment;
    const std::string* shape = nullptr;  // of the use as an accumulator
    const Instruction* access = nullptr;
    int lane = -1;
    uint64_t access_fence = 0;
  };

  int32_t number_of(const RegisterAccess& access) const {
    return warp_.program().wgmma_registers[access.register_index];
  }
  bool in_flight(const Use& use) const { return use.number > num_completed_; }
  bool unordered(const Register& reg) const;
  void report_in_flight(const Instruction& inst, int lane, const RegisterAccess& access,
                        const char* what, const Use& use, const char* role);
  bool check_order(const Instruction& inst, const RegisterAccess& access, const Register& reg,
                   const char* role);
  bool check_accumulator(const Instruction& inst, const RegisterAccess& access,
                         const std::string& shape);
  bool check_fragment(const Instruction& inst, const RegisterAccess& access);

  Warp& warp_;
  std::vector<Register> registers_;
  uint64_t num_issued_ = 0;
  uint64_t num_completed_ = 0;
  uint64_t num_fences_ = 0;
  uint64_t last_reported_ = 0;  // operation, for accesses in flight: one finding tells of it
  bool fenced_ = false;         // since the last wait that completed something
};

}  // namespace pykernels::emulator
