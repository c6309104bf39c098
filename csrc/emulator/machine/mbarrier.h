// An mbarrier object: phase, pending arrivals and transaction bytes. Lives beside the shared memory
// that names it (Cta::mbarriers), keyed by offset.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "emulator/machine/warp.h"

namespace pykernels::emulator {

struct MbarrierRaces;

class Mbarrier : public Waitable {
 public:
  static constexpr uint32_t kBytes = 8;  // in shared memory, and their alignment
  static constexpr uint32_t kMaxCount =
      (1u << 20) - 1;  // PTX ISA: range of the expected and pending counts

  explicit Mbarrier(uint32_t expected) : expected_(expected), pending_(expected) {}

  /// Counts arrivals. Completes the phase when none is pending and no bytes are outstanding.
  /// Returns an error message on misuse (more arrivals than pending), else nullptr.
  const char* arrive(uint32_t count);
  /// The same, and takes the arrivals from the expected count of the phases that follow.
  const char* arrive_drop(uint32_t count);
  /// cp.async.mbarrier.arrive without .noinc: a pending arrival that its completion takes back.
  void add_pending() { ++pending_; }
  const char* expect_tx(int64_t bytes);  // may run after the copy: the count can be negative
  const char* complete_tx(int64_t bytes);

  uint64_t phase() const { return phase_; }  // completed phases
  /// The opaque state of mbarrier.arrive: the phase and the arrivals pending in it.
  uint64_t state() const { return phase_ << 20 | pending_; }
  bool state_done(uint64_t state) const { return state >> 20 != (phase_ & (~0ull >> 20)); }
  bool phase_done(uint32_t parity) const { return (phase_ & 1) != (parity & 1); }
  uint32_t expected() const { return expected_; }
  uint32_t pending() const { return pending_; }
  int64_t tx_bytes() const { return tx_bytes_; }
  std::string describe() const;

  // ---- for findings ----
  Party expecting;  // who has announced transaction bytes last
  /// The phase that a thread of the CTA has arrived in, or the one after that which it has waited
  /// for: the next that it may wait for.
  void set_next(int thread, uint64_t phase);
  std::optional<uint64_t> next(int thread) const;

  std::shared_ptr<MbarrierRaces> races;  // of the race detector; null where it is off

 private:
  void complete_phase_if_due();

  uint32_t expected_;
  uint32_t pending_;
  int64_t tx_bytes_ = 0;
  uint64_t phase_ = 0;
  std::vector<uint64_t> next_;  // the phase + 1, by thread; empty until someone arrives or waits
};

}  // namespace pykernels::emulator
