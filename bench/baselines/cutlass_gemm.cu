// CUTLASS's block-scaled FP8 GEMM for Hopper, as a shared library for the bench: three variants as
// in its examples 67 (blockwise, groupwise) and 68 (grouped, here with one group), chosen by
// VARIANT. build.py compiles it; nothing of the package uses it.
#include <cstdint>

#include "cutlass/cutlass.h"
#include "cutlass/detail/blockwise_scale_layout.hpp"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/group_array_problem_shape.hpp"
#include "cutlass/gemm/kernel/gemm_universal.hpp"

#define BLOCKWISE 0
#define GROUPWISE 1
#define GROUPED 2

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace cute;

using Fp8 = cutlass::float_e4m3_t;
using Bf16 = cutlass::bfloat16_t;
using Tile = Shape<Int<TILE_M>, _128, _128>;
using Cluster = Shape<_1, Int<CLUSTER_N>, _1>;
constexpr bool kGrouped = VARIANT == GROUPED;
constexpr bool kCooperative = TILE_M >= 128;

// Scales: of A one a row (blockwise: one a tile's rows) and 128 columns, of B one a 128x128 block.
constexpr int kScaleRows = VARIANT == BLOCKWISE ? TILE_M : 1;
constexpr auto kSfbMajor = VARIANT == GROUPWISE ? GMMA::Major::K : GMMA::Major::MN;
using Scales =
    cutlass::detail::Sm90BlockwiseScaleConfig<kScaleRows, 128, 128, GMMA::Major::MN, kSfbMajor>;
using LayoutSfa = decltype(Scales::deduce_layoutSFA());
using LayoutSfb = decltype(Scales::deduce_layoutSFB());

template <class Type>
using PerGroup = cute::conditional_t<kGrouped, Type*, Type>;
template <class Array, class Dense>
using Choose = cute::conditional_t<kGrouped, Array, Dense>;

using DenseSchedule =
    cute::conditional_t<kCooperative,
                        cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8Blockwise,
                        cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8Blockwise>;
using DenseEpilogue =
    cute::conditional_t<kCooperative, cutlass::epilogue::TmaWarpSpecializedCooperative,
                        cutlass::epilogue::TmaWarpSpecialized>;
using Mainloop =
    Choose<cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperativeFP8Blockwise, DenseSchedule>;
using Store = Choose<cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative, DenseEpilogue>;

using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
    PerGroup<cutlass::layout::RowMajor>, 8, Bf16, PerGroup<cutlass::layout::RowMajor>, 8, Store,
    cutlass::epilogue::fusion::LinearCombination<Bf16, float, void, float>>::CollectiveOp;

using Multiply = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Fp8,
    cute::tuple<PerGroup<cutlass::layout::RowMajor>, PerGroup<LayoutSfa>>, 16, Fp8,
    cute::tuple<PerGroup<cutlass::layout::ColumnMajor>, PerGroup<LayoutSfb>>, 16, float, Tile,
    Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
        sizeof(typename Epilogue::SharedStorage))>,
    Mainloop>::CollectiveOp;

using GroupShape = cutlass::gemm::GroupProblemShape<Shape<int, int, int>>;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Choose<GroupShape, Shape<int, int, int, int>>,
                                                    Multiply, Epilogue>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

using RowStride = cute::Stride<int64_t, _1, Choose<_0, int64_t>>;

RowStride row_stride(int columns) {
  RowStride stride;
  get<0>(stride) = columns;
#if VARIANT != GROUPED
  get<2>(stride) = 0;
#endif
  return stride;
}

}  // namespace

/// One product. Scales of A stand M-major with `sfa_rows` of them a column (a multiple of 4, for
/// TMA); scales of B N-major, in the groupwise variant K-major.
struct Problem {
  const Fp8* a;
  const float* sfa;
  const Fp8* b;
  const float* sfb;
  Bf16* d;
  void* workspace;
  int32_t m, n, k, sfa_rows;
};

namespace {

struct GroupTables {
  typename GroupShape::UnderlyingProblemShape shape;
  const Fp8* a;
  const Fp8* b;
  const float* sfa;
  const float* sfb;
  Bf16* d;
  RowStride stride_a, stride_b, stride_d;
  LayoutSfa layout_sfa;
  LayoutSfb layout_sfb;
};
constexpr size_t kTableBytes = (sizeof(GroupTables) + 255) / 256 * 256;

GroupTables tables(const Problem& problem) {
  const auto scaled = make_shape(problem.sfa_rows * kScaleRows, problem.n, problem.k, 1);
  GroupTables tables;
  tables.shape = make_shape(problem.m, problem.n, problem.k);
  tables.a = problem.a;
  tables.b = problem.b;
  tables.sfa = problem.sfa;
  tables.sfb = problem.sfb;
  tables.d = problem.d;
  tables.stride_a = row_stride(problem.k);
  tables.stride_b = row_stride(problem.k);
  tables.stride_d = row_stride(problem.n);
  tables.layout_sfa = Scales::tile_atom_to_shape_SFA(scaled);
  tables.layout_sfb = Scales::tile_atom_to_shape_SFB(scaled);
  return tables;
}

/// `host` must outlive the launch's preparation: the grouped kernel sizes its grid from it.
typename Gemm::Arguments arguments(const Problem& problem, GroupTables& host) {
  typename Gemm::Arguments arguments;
#if VARIANT == GROUPED
  auto* device = static_cast<GroupTables*>(problem.workspace);
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
  arguments.problem_shape = {1, &device->shape, &host.shape};
  arguments.mainloop = {&device->a,   &device->stride_a,   &device->b,   &device->stride_b,
                        &device->sfa, &device->layout_sfa, &device->sfb, &device->layout_sfb};
  arguments.epilogue.ptr_D = &device->d;
  arguments.epilogue.dD = &device->stride_d;
#else
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = {problem.m, problem.n, problem.k, 1};
  arguments.mainloop = {problem.a,   host.stride_a,   problem.b,   host.stride_b,
                        problem.sfa, host.layout_sfa, problem.sfb, host.layout_sfb};
  arguments.epilogue.ptr_D = problem.d;
  arguments.epilogue.dD = host.stride_d;
#endif
  arguments.epilogue.thread.alpha = 1.0f;
  arguments.epilogue.thread.beta = 0.0f;
  int device_index = 0;
  cudaGetDevice(&device_index);
  arguments.hw_info = cutlass::KernelHardwareInfo::make_kernel_hardware_info<Kernel>(device_index);
  return arguments;
}

}  // namespace

/// Bytes of `Problem::workspace`.
EXPORT int64_t baseline_workspace_bytes(const Problem* problem) {
  GroupTables host = tables(*problem);
  return static_cast<int64_t>(kTableBytes + Gemm::get_workspace_size(arguments(*problem, host)));
}

/// Fills the workspace; not part of what is timed. Null, or what is wrong.
EXPORT const char* baseline_prepare(const Problem* problem, cudaStream_t stream) {
  GroupTables host = tables(*problem);
  const auto status = Gemm::can_implement(arguments(*problem, host));
  if (status != cutlass::Status::kSuccess) return cutlass::cutlassGetStatusString(status);
  cudaMemcpyAsync(problem->workspace, &host, sizeof(host), cudaMemcpyHostToDevice, stream);
  const cudaError_t error = cudaStreamSynchronize(stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

/// Launches on `stream`; may be captured into a graph. Null, or what is wrong.
EXPORT const char* baseline_run(const Problem* problem, cudaStream_t stream) {
  GroupTables host = tables(*problem);
  Gemm gemm;
  auto* rest = static_cast<uint8_t*>(problem->workspace) + kTableBytes;
  const auto status = gemm.run(arguments(*problem, host), rest, stream);
  return status == cutlass::Status::kSuccess ? nullptr : cutlass::cutlassGetStatusString(status);
}
