// L2 cache policies as TMA's loads take them: what createpolicy.fractional makes for all of the
// bytes (the values that CUTLASS lists as its SM90 cache hints).
#pragma once

#include <cstdint>

namespace pykernels::mla {

inline constexpr uint64_t kCacheNormal = 0x1000000000000000;
inline constexpr uint64_t kCacheEvictFirst = 0x12f0000000000000;

}  // namespace pykernels::mla
