// CUTLASS's block-scaled FP8 GEMM for Hopper, as a shared library for the bench: three variants as
// in its examples 67 (blockwise, groupwise) and 68 (grouped), chosen by VARIANT. build.py compiles
// it; nothing of the package uses it.
#include <cstdint>
#include <cstring>
#include <vector>

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

using Mainloop = cute::conditional_t<
    kCooperative,
    Choose<cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperativeFP8Blockwise,
           cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8Blockwise>,
    Choose<cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpongFP8Blockwise,
           cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8Blockwise>>;
using Store = cute::conditional_t<kCooperative,
                                  Choose<cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative,
                                         cutlass::epilogue::TmaWarpSpecializedCooperative>,
                                  Choose<cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong,
                                         cutlass::epilogue::TmaWarpSpecialized>>;

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

/// Rows of a and d that have a weight of their own.
struct Group {
  int32_t first_row, rows;
};

/// One product, or one for each group. Scales of A stand M-major: in a dense variant `sfa_rows` of
/// them a column (a multiple of 4, for TMA); in the grouped one each group's by themselves, one
/// behind the other and without gaps. Scales of B stand N-major, in the groupwise variant K-major.
struct Problem {
  const Fp8* a;
  const float* sfa;
  const Fp8* b;
  const float* sfb;
  Bf16* d;
  void* workspace;
  const Group* groups;  // on the host; null in a dense variant
  int32_t m, n, k, sfa_rows, num_groups;
};

namespace {

/// Of every group what the kernel reads from arrays, on the host or as addresses in the workspace.
template <template <class> class Array>
struct GroupTables {
  Array<typename GroupShape::UnderlyingProblemShape> shape;
  Array<const Fp8*> a, b;
  Array<const float*> sfa, sfb;
  Array<Bf16*> d;
  Array<RowStride> stride_ab, stride_d;
  Array<LayoutSfa> layout_sfa;
  Array<LayoutSfb> layout_sfb;
};
template <class Type>
using OnHost = std::vector<Type>;
template <class Type>
using OnDevice = Type*;

GroupTables<OnHost> host_tables(const Problem& problem) {
  GroupTables<OnHost> tables;
  const int64_t n = problem.n, k = problem.k, k_blocks = ceil_div(problem.k, 128);
  int64_t scale_rows = 0;  // of the groups before
  for (int group = 0; group < problem.num_groups; ++group) {
    const auto [first_row, rows] = problem.groups[group];
    const auto scaled = make_shape(rows, problem.n, problem.k, 1);
    tables.shape.push_back(make_shape(rows, problem.n, problem.k));
    tables.a.push_back(problem.a + first_row * k);
    tables.b.push_back(problem.b + group * n * k);
    tables.sfa.push_back(problem.sfa + scale_rows * k_blocks);
    tables.sfb.push_back(problem.sfb + group * ceil_div(n, 128) * k_blocks);
    tables.d.push_back(problem.d + first_row * n);
    tables.stride_ab.push_back(row_stride(problem.k));
    tables.stride_d.push_back(row_stride(problem.n));
    tables.layout_sfa.push_back(Scales::tile_atom_to_shape_SFA(scaled));
    tables.layout_sfb.push_back(Scales::tile_atom_to_shape_SFB(scaled));
    scale_rows += rows;
  }
  return tables;
}

/// Lays the arrays out in the workspace, each at a multiple of 16 bytes.
class Workspace {
 public:
  explicit Workspace(void* begin) : begin_(static_cast<uint8_t*>(begin)) {}

  template <class Type>
  Type* place(const std::vector<Type>& values) {
    const size_t offset = bytes_.size();
    bytes_.resize(offset + (values.size() * sizeof(Type) + 15) / 16 * 16);
    std::memcpy(bytes_.data() + offset, values.data(), values.size() * sizeof(Type));
    return reinterpret_cast<Type*>(begin_ + offset);
  }

  const std::vector<uint8_t>& bytes() const { return bytes_; }

  /// What follows the arrays: CUTLASS's own.
  size_t num_bytes() const { return (bytes_.size() + 255) / 256 * 256; }
  uint8_t* rest() const { return begin_ + num_bytes(); }

 private:
  uint8_t* begin_;
  std::vector<uint8_t> bytes_;
};

/// A launch's arguments and what they point to, which must outlive the launch's preparation: the
/// grouped kernel sizes its grid from the shapes on the host.
struct Call {
  GroupTables<OnHost> host;
  Workspace workspace;
  typename Gemm::Arguments arguments;

  explicit Call(const Problem& problem) : workspace(problem.workspace) {
#if VARIANT == GROUPED
    host = host_tables(problem);
    GroupTables<OnDevice> device{
        workspace.place(host.shape),      workspace.place(host.a),
        workspace.place(host.b),          workspace.place(host.sfa),
        workspace.place(host.sfb),        workspace.place(host.d),
        workspace.place(host.stride_ab),  workspace.place(host.stride_d),
        workspace.place(host.layout_sfa), workspace.place(host.layout_sfb)};
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
    arguments.problem_shape = {problem.num_groups, device.shape, host.shape.data()};
    arguments.mainloop = {device.a,   device.stride_ab,  device.b,   device.stride_ab,
                          device.sfa, device.layout_sfa, device.sfb, device.layout_sfb};
    arguments.epilogue.ptr_D = device.d;
    arguments.epilogue.dD = device.stride_d;
#else
    const auto scaled = make_shape(problem.sfa_rows * kScaleRows, problem.n, problem.k, 1);
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    arguments.problem_shape = {problem.m, problem.n, problem.k, 1};
    arguments.mainloop = {problem.a,   row_stride(problem.k),
                          problem.b,   row_stride(problem.k),
                          problem.sfa, Scales::tile_atom_to_shape_SFA(scaled),
                          problem.sfb, Scales::tile_atom_to_shape_SFB(scaled)};
    arguments.epilogue.ptr_D = problem.d;
    arguments.epilogue.dD = row_stride(problem.n);
#endif
    arguments.epilogue.thread.alpha = 1.0f;
    arguments.epilogue.thread.beta = 0.0f;
    int device_index = 0;
    cudaGetDevice(&device_index);
    arguments.hw_info =
        cutlass::KernelHardwareInfo::make_kernel_hardware_info<Kernel>(device_index);
  }
};

}  // namespace

/// Bytes of `Problem::workspace`.
EXPORT int64_t baseline_workspace_bytes(const Problem* problem) {
  const Call call(*problem);
  return static_cast<int64_t>(call.workspace.num_bytes() +
                              Gemm::get_workspace_size(call.arguments));
}

/// Fills the workspace; not part of what is timed. Null, or what is wrong.
EXPORT const char* baseline_prepare(const Problem* problem, cudaStream_t stream) {
  const Call call(*problem);
  const auto status = Gemm::can_implement(call.arguments);
  if (status != cutlass::Status::kSuccess) return cutlass::cutlassGetStatusString(status);
  const auto& tables = call.workspace.bytes();
  cudaMemcpyAsync(problem->workspace, tables.data(), tables.size(), cudaMemcpyHostToDevice, stream);
  const cudaError_t error = cudaStreamSynchronize(stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

/// Launches on `stream`; may be captured into a graph. Null, or what is wrong.
EXPORT const char* baseline_run(const Problem* problem, cudaStream_t stream) {
  const Call call(*problem);
  Gemm gemm;
  const auto status = gemm.run(call.arguments, call.workspace.rest(), stream);
  return status == cutlass::Status::kSuccess ? nullptr : cutlass::cutlassGetStatusString(status);
}
