#include "emulator/machine/mbarrier.h"

#include "core/check.h"
#include "emulator/check/race/agents.h"

namespace pykernels::emulator {
namespace {

constexpr int64_t kMaxTransaction =
    (1 << 20) - 1;  // PTX ISA: range of the tx-count, in both directions

}  // namespace

const char* Mbarrier::arrive(uint32_t count) {
  if (count == 0 || count > kMaxCount) return "the count of an arrival must lie in 1 .. 2^20 - 1";
  if (count > pending_) return "more arrivals than the phase has pending";
  pending_ -= count;
  complete_phase_if_due();
  return nullptr;
}

const char* Mbarrier::arrive_drop(uint32_t count) {
  if (count > expected_) return "more arrivals dropped than the mbarrier expects";
  expected_ -= count;
  return arrive(count);
}

const char* Mbarrier::expect_tx(int64_t bytes) {
  if (bytes < 0 || bytes > kMaxTransaction)
    return "the transaction bytes must lie in 0 .. 2^20 - 1";
  tx_bytes_ += bytes;
  if (tx_bytes_ > kMaxTransaction) return "the outstanding transaction bytes exceed 2^20 - 1";
  complete_phase_if_due();
  return nullptr;
}

const char* Mbarrier::complete_tx(int64_t bytes) {
  if (bytes < 0 || bytes > kMaxTransaction)
    return "the transaction bytes must lie in 0 .. 2^20 - 1";
  tx_bytes_ -= bytes;
  if (tx_bytes_ < -kMaxTransaction)
    return "more than 2^20 - 1 transaction bytes completed beyond those expected";
  complete_phase_if_due();
  return nullptr;
}

void Mbarrier::complete_phase_if_due() {
  if (pending_ != 0 || tx_bytes_ != 0) return;
  ++phase_;
  if (races != nullptr) races->complete();
  pending_ = expected_;
  wake_all();
}

void Mbarrier::set_next(int thread, uint64_t phase) {
  const auto index = static_cast<size_t>(thread);
  if (next_.size() <= index) next_.resize(index + 1, 0);
  next_[index] = phase + 1;
}

std::optional<uint64_t> Mbarrier::next(int thread) const {
  const auto index = static_cast<size_t>(thread);
  if (index >= next_.size() || next_[index] == 0) return std::nullopt;
  return next_[index] - 1;
}

std::string Mbarrier::describe() const {
  return concat("phase ", phase_, " (parity ", phase_ & 1, "): ", pending_, " of ", expected_,
                " arrivals pending, ", tx_bytes_, " transaction bytes outstanding",
                tx_bytes_ < 0 ? " (more completed than expected)" : "");
}

}  // namespace pykernels::emulator
