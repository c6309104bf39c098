// Words of the PTX memory model: how strong an access is, and for whom.
#pragma once

#include <cstdint>

namespace pykernels::emulator {

enum class Semantics : uint8_t {
  kWeak,
  kVolatile,
  kRelaxed,
  kAcquire,
  kRelease,
  kAcquireRelease,
  kMmio
};
enum class Scope : uint8_t { kNone, kCta, kCluster, kGpu, kSys };

/// How an access takes part in synchronisation.
struct MemoryOrder {
  Semantics semantics = Semantics::kWeak;
  Scope scope = Scope::kNone;
  bool non_coherent = false;  // .nc

  bool is_strong() const { return semantics != Semantics::kWeak; }
};

inline bool acquires(Semantics semantics) {
  return semantics == Semantics::kAcquire || semantics == Semantics::kAcquireRelease;
}
inline bool releases(Semantics semantics) {
  return semantics == Semantics::kRelease || semantics == Semantics::kAcquireRelease;
}

}  // namespace pykernels::emulator
