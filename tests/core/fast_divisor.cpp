// FastDivisor against the processor's division: small divisors around every multiple drawn, and
// random ones of all magnitudes. Prints the number of differences.
#include <cstdint>
#include <cstdio>
#include <random>

#include "core/math.h"

namespace {

constexpr uint32_t kEnd = uint32_t{1} << 31;  // of dividends

int differences(const pykernels::FastDivisor& divisor, uint32_t quotient) {
  int count = 0;
  const uint64_t multiple = uint64_t{quotient} * divisor.divisor;
  for (const uint64_t dividend : {multiple - 1, multiple, multiple + divisor.divisor - 1}) {
    if (dividend >= kEnd) continue;
    const auto value = static_cast<uint32_t>(dividend);
    count += divisor.divide(value) != value / divisor.divisor;
  }
  return count;
}

}  // namespace

int main() {
  std::mt19937_64 random(0);
  int count = 0;
  for (uint32_t by = 1; by < 2000; ++by) {
    const pykernels::FastDivisor divisor(by);
    for (int i = 0; i < 500; ++i) {
      count += differences(divisor, static_cast<uint32_t>(random() % (kEnd / by)));
    }
    count += differences(divisor, (kEnd - 1) / by);
  }
  for (int i = 0; i < 1000000; ++i) {
    const auto by = static_cast<uint32_t>((random() % kEnd >> random() % 31) + 1);
    const pykernels::FastDivisor divisor(by);
    count += differences(divisor, static_cast<uint32_t>(random() % ((kEnd - 1) / by + 1)));
  }
  std::printf("%d\n", count);
  return count == 0 ? 0 : 1;
}
