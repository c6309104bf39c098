// Test programs written against NVIDIA's CuTe: their layouts, descriptors and copy instructions
// come from its headers, so they check the emulator's reading of swizzles and WGMMA descriptors
// independently.
#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

using namespace cute;

namespace {

/// out[m][n] = a * b^T for one tile: elements are written to shared memory through CuTe's layout of
/// the major-ness and swizzle, and multiplied by WGMMA through CuTe's descriptors.
template <class Atom, class Element, class LayoutAtomA, class LayoutAtomB, int kM, int kN, int kK>
__device__ void multiply(const Element* a, const Element* b, float* out) {
  auto layout_a = tile_to_shape(LayoutAtomA{}, Shape<Int<kM>, Int<kK>>{});
  auto layout_b = tile_to_shape(LayoutAtomB{}, Shape<Int<kN>, Int<kK>>{});
  __shared__ alignas(1024) Element smem_a[cosize_v<decltype(layout_a)>];
  __shared__ alignas(1024) Element smem_b[cosize_v<decltype(layout_b)>];
  auto tensor_a = make_tensor(make_smem_ptr(smem_a), layout_a);
  auto tensor_b = make_tensor(make_smem_ptr(smem_b), layout_b);
  for (int i = threadIdx.x; i < kM * kK; i += blockDim.x) tensor_a(i / kK, i % kK) = a[i];
  for (int i = threadIdx.x; i < kN * kK; i += blockDim.x) tensor_b(i / kK, i % kK) = b[i];
  cutlass::arch::fence_view_async_shared();
  __syncthreads();

  TiledMMA mma = make_tiled_mma(Atom{});
  ThrMMA thread_mma = mma.get_thread_slice(threadIdx.x);
  auto fragments_a = thread_mma.make_fragment_A(thread_mma.partition_A(tensor_a));
  auto fragments_b = thread_mma.make_fragment_B(thread_mma.partition_B(tensor_b));
  auto tensor_out =
      make_tensor(make_gmem_ptr(out), Shape<Int<kM>, Int<kN>>{}, Stride<Int<kN>, _1>{});
  auto part_out = thread_mma.partition_C(tensor_out);
  auto accumulator = thread_mma.make_fragment_C(part_out);
  clear(accumulator);
  warpgroup_arrive();
  gemm(mma, fragments_a, fragments_b, accumulator);
  warpgroup_commit_batch();
  warpgroup_wait<0>();
  copy(accumulator, part_out);
}

/// out[row][column] = the box that TMA loaded, read back through CuTe's K-major layout of the
/// swizzle.
template <class Element, class LayoutAtom, int kRows, int kColumns>
__device__ void load_box(const void* map, int row, int column, Element* out) {
  auto layout = tile_to_shape(LayoutAtom{}, Shape<Int<kRows>, Int<kColumns>>{});
  __shared__ alignas(1024) Element smem[cosize_v<decltype(layout)>];
  __shared__ alignas(8) uint64_t barrier;
  if (threadIdx.x == 0) {
    cutlass::arch::ClusterTransactionBarrier::init(&barrier, 1);
    cutlass::arch::fence_barrier_init();
    cutlass::arch::ClusterTransactionBarrier::arrive_and_expect_tx(&barrier, sizeof(smem));
    SM90_TMA_LOAD_2D::copy(map, &barrier, 0, smem, column, row);
  }
  __syncthreads();
  cutlass::arch::ClusterTransactionBarrier::wait(&barrier, 0);
  auto tensor = make_tensor(make_smem_ptr(smem), layout);
  for (int i = threadIdx.x; i < kRows * kColumns; i += blockDim.x)
    out[i] = tensor(i / kColumns, i % kColumns);
}

/// The inverse: written through CuTe's layout, stored by TMA.
template <class Element, class LayoutAtom, int kRows, int kColumns>
__device__ void store_box(const void* map, int row, int column, const Element* in) {
  auto layout = tile_to_shape(LayoutAtom{}, Shape<Int<kRows>, Int<kColumns>>{});
  __shared__ alignas(1024) Element smem[cosize_v<decltype(layout)>];
  auto tensor = make_tensor(make_smem_ptr(smem), layout);
  for (int i = threadIdx.x; i < kRows * kColumns; i += blockDim.x)
    tensor(i / kColumns, i % kColumns) = in[i];
  tma_store_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    SM90_TMA_STORE_2D::copy(map, smem, column, row);
    tma_store_arrive();
    tma_store_wait<0>();
  }
}

}  // namespace

namespace {

template <GMMA::Major kMajorA, GMMA::Major kMajorB>
using Bf16 = SM90_64x128x16_F32BF16BF16_SS<kMajorA, kMajorB>;
using Bf16KK = Bf16<GMMA::Major::K, GMMA::Major::K>;
using Bf16MnK = Bf16<GMMA::Major::MN, GMMA::Major::K>;
using Bf16KMn = Bf16<GMMA::Major::K, GMMA::Major::MN>;
using Bf16MnMn = Bf16<GMMA::Major::MN, GMMA::Major::MN>;
using Fp8 = SM90_64x96x32_F32E4M3E4M3_SS_TN<>;
using Tf32 = SM90_64x96x8_F32TF32TF32_SS_TN<>;

}  // namespace

#define MULTIPLY(NAME, ATOM, ELEMENT, LAYOUT_A, LAYOUT_B, M, N, K)                                \
  extern "C" __global__ void NAME(const ELEMENT* a, const ELEMENT* b, float* out) {               \
    multiply<ATOM, ELEMENT, GMMA::LAYOUT_A##_Atom<ELEMENT>, GMMA::LAYOUT_B##_Atom<ELEMENT>, M, N, \
             K>(a, b, out);                                                                       \
  }

#define MULTIPLY_BF16(NAME, ATOM, LAYOUT_A, LAYOUT_B) \
  MULTIPLY(NAME, ATOM, bfloat16_t, LAYOUT_A, LAYOUT_B, 128, 128, 64)
#define MULTIPLY_ALL(SWIZZLE)                                                                     \
  MULTIPLY_BF16(bf16_k_k_##SWIZZLE, Bf16KK, Layout_K_##SWIZZLE, Layout_K_##SWIZZLE)               \
  MULTIPLY_BF16(bf16_mn_k_##SWIZZLE, Bf16MnK, Layout_MN_##SWIZZLE, Layout_K_##SWIZZLE)            \
  MULTIPLY_BF16(bf16_k_mn_##SWIZZLE, Bf16KMn, Layout_K_##SWIZZLE, Layout_MN_##SWIZZLE)            \
  MULTIPLY_BF16(bf16_mn_mn_##SWIZZLE, Bf16MnMn, Layout_MN_##SWIZZLE, Layout_MN_##SWIZZLE)         \
  MULTIPLY(fp8_k_k_##SWIZZLE, Fp8, float_e4m3_t, Layout_K_##SWIZZLE, Layout_K_##SWIZZLE, 128, 96, \
           128)                                                                                   \
  MULTIPLY(tf32_k_k_##SWIZZLE, Tf32, tfloat32_t, Layout_K_##SWIZZLE, Layout_K_##SWIZZLE, 64, 96, 32)
#define TMA_BOX(SWIZZLE, COLUMNS)                                                                \
  extern "C" __global__ void load_##SWIZZLE(const __grid_constant__ CUtensorMap map, int row,    \
                                            int column, bfloat16_t* out) {                       \
    load_box<bfloat16_t, GMMA::Layout_K_##SWIZZLE##_Atom<bfloat16_t>, 32, COLUMNS>(&map, row,    \
                                                                                   column, out); \
  }                                                                                              \
  extern "C" __global__ void store_##SWIZZLE(const __grid_constant__ CUtensorMap map, int row,   \
                                             int column, const bfloat16_t* in) {                 \
    store_box<bfloat16_t, GMMA::Layout_K_##SWIZZLE##_Atom<bfloat16_t>, 32, COLUMNS>(&map, row,   \
                                                                                    column, in); \
  }

MULTIPLY_ALL(INTER)
MULTIPLY_ALL(SW32)
MULTIPLY_ALL(SW64)
MULTIPLY_ALL(SW128)
TMA_BOX(INTER, 8)
TMA_BOX(SW32, 16)
TMA_BOX(SW64, 32)
TMA_BOX(SW128, 64)
