// Ordinary CUDA C++ for test_cuda_features.py: calls with parameters, local memory, byte and bit
// fields, 128-bit arithmetic, votes, matches, reductions, shuffles, printf, assert, clocks and
// constants. Result k of thread i goes to out[k * n + i].
#include <cassert>
#include <cstdint>
#include <cstdio>

namespace {

struct Box {
  float low[3];
  int count;
  double weight;
};

__constant__ int kTable[16] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3};
__constant__ Box kBox = {{0.5f, 1.5f, 2.5f}, 7, 0.25};

/// Taken and returned by value: parameters in memory.
__device__ __noinline__ Box grow(Box box, int by, const Box* other) {
  for (int i = 0; i < 3; ++i) box.low[i] += other->low[(i + by) % 3];
  box.count += by;
  box.weight *= other->weight;
  return box;
}

__device__ __noinline__ int64_t weigh(int8_t a, int16_t b, int64_t c, bool negative) {
  const int64_t sum = a + b * c;
  return negative ? -sum : sum;
}

}  // namespace

extern "C" __global__ void calls(const int* a, double* out, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  const int x = a[i];
  Box box = {{1.f * x, 2.f * x, 3.f * x}, x, 1.0 * x};
  box = grow(box, x & 3, &kBox);
  Box copy = box;
  copy = grow(copy, 1, &box);
  for (int k = 0; k < 3; ++k) out[k * n + i] = copy.low[k];
  out[3 * n + i] = copy.count;
  out[4 * n + i] = copy.weight;
  out[5 * n + i] = (double)weigh((int8_t)x, (int16_t)(x >> 3), x, x & 1);
}

/// Digits of numbers in an array whose place only the running program knows.
extern "C" __global__ void local_arrays(const int* a, int* out, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  unsigned value = a[i];
  int counts[10] = {};
  uint8_t digits[12];
  int length = 0;
  for (; value != 0 || length == 0; value /= 10) digits[length++] = value % 10;
  for (int k = 0; k < length; ++k) ++counts[digits[k]];
  int best = 0;
  for (int d = 1; d < 10; ++d) best = counts[d] > counts[best] ? d : best;
  out[i] = best;
  out[n + i] = digits[length / 2] + 10 * kTable[digits[0]];
}

extern "C" __global__ void bits(const unsigned* a, const unsigned* b, unsigned* out, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  const unsigned x = a[i], y = b[i];
  unsigned field, inserted;
  asm("bfe.u32 %0, %1, %2, %3;" : "=r"(field) : "r"(x), "r"(y & 31), "r"(y >> 5 & 15));
  asm("bfi.b32 %0, %1, %2, %3, %4;"
      : "=r"(inserted)
      : "r"(x), "r"(y), "r"(y & 31), "r"(y >> 5 & 15));
  const unsigned results[] = {__byte_perm(x, y, y & 0x7777),
                              field,
                              inserted,
                              __funnelshift_l(x, y, y & 63),
                              __funnelshift_rc(x, y, y & 63),
                              __vadd4(x, y),
                              __vmaxs2(x, y),
                              __dp4a(x, y, 5u),
                              (x & y) | (~x & (y << 3)),
                              __brev(x) ^ __popc(y),
                              (unsigned)__clz(x) + 100 * __ffs(y),
                              (unsigned)__sad((int)x, (int)y, 3u),
                              __uhadd(x, y),
                              (unsigned)__mulhi((int)x, (int)y)};
  for (int k = 0; k < 14; ++k) out[k * n + i] = results[k];
}

/// Sums, products, quotients and shifts of 128 bits, low half first.
extern "C" __global__ void wide(const uint64_t* a, const uint64_t* b, uint64_t* out, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  const unsigned __int128 x = (unsigned __int128)a[i] << 64 | b[i];
  const unsigned __int128 y = (unsigned __int128)b[i] << 64 | ~a[i];
  const __int128 z = (__int128)x;
  const unsigned __int128 results[] = {x + y,
                                       x - y,
                                       x * y,
                                       x / (b[i] | 1),
                                       (unsigned __int128)(z >> (b[i] & 127)),
                                       (unsigned __int128)(z < (__int128)y)};
  for (int k = 0; k < 6; ++k) {
    out[2 * k * n + i] = (uint64_t)results[k];
    out[(2 * k + 1) * n + i] = (uint64_t)(results[k] >> 64);
  }
}

extern "C" __global__ void warps(const int* a, unsigned* out) {
  const int t = threadIdx.x, x = a[t];
  int same = 0;
  const unsigned results[] = {__ballot_sync(~0u, x & 1),
                              (unsigned)__all_sync(~0u, x >= 0) + 2 * __any_sync(~0u, x == 7),
                              __match_any_sync(~0u, x),
                              __match_all_sync(~0u, x / 100, &same) + (unsigned)same,
                              __reduce_add_sync(~0u, (unsigned)x),
                              (unsigned)__reduce_min_sync(~0u, x - 20),
                              __reduce_xor_sync(~0u, (unsigned)x),
                              (unsigned)__shfl_sync(~0u, x, t * 7, 16),
                              (unsigned)__shfl_down_sync(~0u, x, 3),
                              (unsigned)__shfl_up_sync(~0u, x, 1, 8),
                              (unsigned)__shfl_xor_sync(~0u, (long long)x << 33, 9) +
                                  (unsigned)(__shfl_xor_sync(~0u, (long long)x << 33, 9) >> 32),
                              (unsigned)__popc(__activemask())};
  for (int k = 0; k < 12; ++k) out[k * 32 + t] = results[k];
}

/// Time passes: cycles of the SM and nanoseconds never run backwards.
extern "C" __global__ void clocks(int* out) {
  const long long start = clock64();
  const unsigned early = clock();
  uint64_t before, after;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(before));
  __nanosleep(50);
  __threadfence();
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(after));
  out[threadIdx.x] = (clock64() > start) + 2 * (clock() - early < 1u << 30) + 4 * (after >= before);
}

extern "C" __global__ void prints(const int* a) {
  const int x = a[threadIdx.x];
  if (x % 10 == 0) printf("%d: %s %5.2f %llx\n", x, x > 15 ? "big" : "small", x / 8., 1ull << x);
}

extern "C" __global__ void asserts(const int* a) { assert(a[threadIdx.x] < 20 && "too large"); }

extern "C" __global__ void traps(const int* a) {
  if (a[threadIdx.x] == 20) __trap();
}
