// Ordinary CUDA C++ for test_nvcc.py: what nvcc makes of arithmetic, the mathematical functions,
// control flow and cooperative groups. Result k of thread i goes to out[k * n + i].
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

#include <cstdint>

namespace cg = cooperative_groups;

template <typename Value, int kCount>
__device__ void store(const Value (&results)[kCount], Value* out, int n, int i) {
  for (int k = 0; k < kCount; ++k) out[k * n + i] = results[k];
}

extern "C" __global__ void single_functions(const float* a, const float* b, float* out, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  const float x = a[i], y = b[i], z = fabsf(x);
  const float results[] = {sinf(x),   cosf(x),      tanf(x),   powf(z, y),   fmodf(x, y),
                           expf(x),   logf(z),      log1pf(z), atan2f(x, y), tanhf(x),
                           erff(x),   hypotf(x, y), cbrtf(x),  x / y,        sqrtf(z),
                           rsqrtf(z), truncf(x),    ceilf(x),  floorf(x),    rintf(x),
                           asinhf(x), exp2f(x),     exp10f(x), sinhf(x),     (float)(int)x};
  store(results, out, n, i);
}

extern "C" __global__ void double_functions(const double* a, const double* b, double* out, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  const double x = a[i], y = b[i], z = fabs(x);
  const double results[] = {sin(x),      cos(x),      tan(x),   pow(z, y),   fmod(x, y),
                            exp(x),      log(z),      log1p(z), atan2(x, y), tanh(x),
                            erf(x),      hypot(x, y), cbrt(x),  x / y,       sqrt(z),
                            1 / sqrt(z), trunc(x),    ceil(x),  floor(x),    rint(x),
                            asinh(x),    exp2(x),     exp10(x), sinh(x),     (double)(int64_t)x};
  store(results, out, n, i);
}

extern "C" __global__ void integers(const int64_t* a, const int64_t* b, int64_t* out, int n) {
  const int i = threadIdx.x + blockIdx.x * blockDim.x;
  const int64_t x = a[i], y = b[i];
  const uint64_t ux = x, uy = y;
  const int32_t x32 = x, y32 = (int32_t)y | 1;
  const int16_t x16 = x, y16 = (int16_t)y | 1;
  const int64_t results[] = {x / y,
                             x % y,
                             (int64_t)(ux / uy),
                             (int64_t)(ux % uy),
                             x * y,
                             __mul64hi(x, y),
                             (int64_t)__umul64hi(ux, uy),
                             __popcll(x),
                             __clzll(x),
                             (int64_t)__brevll(x),
                             __ffsll(x),
                             x << (y & 63),
                             x >> (y & 63),
                             x32 / y32,
                             x32 % y32,
                             (uint32_t)x32 / (uint32_t)y32,
                             x16 / y16,
                             (int64_t)((unsigned __int128)x * uy / 1000003),
                             (int64_t)((__int128)x * y % 1000000007)};
  store(results, out, n, i);
}

__device__ __noinline__ int steps(int n) {
  int count = 0;
  for (; n != 1; ++count) n = n % 2 == 0 ? n / 2 : 3 * n + 1;
  return count;
}

extern "C" __global__ void control_flow(const int* a, int* out) {
  const int x = a[threadIdx.x];
  int result = steps(x);
  switch (x % 8) {
    case 0:
      result += 100;
      break;
    case 1:
      result *= 3;
      break;
    case 2:
      result ^= 0x55;
      break;
    case 3:
      result -= 7;
      [[fallthrough]];
    case 4:
      result <<= 2;
      break;
    case 5:
      result = -result;
      break;
    case 6:
      result /= 3;
      break;
    default:
      result = x;
  }
  out[threadIdx.x] = result;
}

/// Each thread: the sum over the warp of the values of the other CTA of the cluster.
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_sum(const float* a, float* out) {
  extern __shared__ float values[];
  const cg::cluster_group cluster = cg::this_cluster();
  const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  values[threadIdx.x] = a[i];
  cluster.sync();
  const float* other = cluster.map_shared_rank(values, cluster.block_rank() ^ 1);
  out[i] = cg::reduce(warp, other[threadIdx.x], cg::plus<float>());
  cluster.sync();
}
