// The producer warps' way in: q, and blocks of a BF16 cache, by TMA or gathered thread by thread.
#pragma once

#include "core/tile.cuh"
#include "mla/pages.cuh"
#include "mla/ring.cuh"
#include "mla/work.cuh"
#include "ptx/async_copy.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/memory.cuh"

namespace pykernels::mla {

inline constexpr uint32_t kUnitBytes = 16;
inline constexpr uint32_t kGroupUnits = 8;  // of a group's 128-byte row

/// A producer thread's index among them.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ uint32_t producer_idx() {
  return threadIdx.x - kConfig.num_consumer_threads();
}

/// Rows of a tile, copied 16 bytes a thread: thread t takes unit t % 8 of rows t / 8 + 16 i, in
/// every group of columns.
template <uint32_t kRows>
struct RowCopies {
  static constexpr uint32_t kRowStep = 16;
  static constexpr uint32_t kCount = kRows < kRowStep ? 1 : kRows / kRowStep;

  uint32_t first_row;
  uint32_t unit;
  const uint8_t* sources[kCount];  // of the thread's rows; null for zeros

  __device__ __forceinline__ explicit RowCopies(uint32_t thread)
      : first_row(thread / kGroupUnits), unit(thread % kGroupUnits) {}

  __device__ __forceinline__ uint32_t row(uint32_t i) const { return first_row + i * kRowStep; }

  /// Starts the copies of a group's columns, `source_bytes` into the rows, to the tile at `tile`.
  __device__ __forceinline__ void start(uint32_t tile, uint32_t source_bytes) const {
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      if (kRows < kRowStep && first_row >= kRows) break;
      const bool exists = sources[i] != nullptr;
      ptx::cp_async_cg_16(tile + swizzled_128b(row(i), unit),
                          sources[i] + source_bytes + unit * kUnitBytes, exists ? kUnitBytes : 0);
    }
  }
};

/// The rows of q of an item, zeros behind the last one.
template <MlaDecodeConfig kConfig>
class QueryLoader {
 public:
  __device__ __forceinline__ explicit QueryLoader(DecodeStorage<kConfig>& smem) : smem_(smem) {}

  /// Nothing has been loaded yet.
  __device__ __forceinline__ bool is_first() const { return num_loaded_ == 0; }

  __device__ __forceinline__ void load(const MlaDecodeParams& params, const WorkItem& item) {
    wait(ptx::cvta_to_shared(&smem_.barriers.q_empty), (num_loaded_ & 1) ^ 1);
    ++num_loaded_;
    RowCopies<kConfig.block_rows> copies(producer_idx<kConfig>());
    locate(params, item, params.q_nope, params.q_nope_strides, copies);
    for (uint32_t group = 0; group < kNumValueGroups; ++group) {
      copies.start(ptx::cvta_to_shared(smem_.q[group]), group * kGroupUnits * kUnitBytes);
    }
    locate(params, item, params.q_rope, params.q_rope_strides, copies);
    copies.start(ptx::cvta_to_shared(smem_.q[kNumValueGroups]), 0);
    ptx::cp_async_mbarrier_arrive_noinc(ptx::cvta_to_shared(&smem_.barriers.q_full));
  }

 private:
  __device__ __forceinline__ static void locate(const MlaDecodeParams& params, const WorkItem& item,
                                                const uint8_t* q, const RowStrides& strides,
                                                RowCopies<kConfig.block_rows>& copies) {
    const bool exists = static_cast<uint32_t>(item.request) < params.batch;
#pragma unroll
    for (uint32_t i = 0; i < copies.kCount; ++i) {
      const uint32_t row = first_row<kConfig>() + copies.row(i);
      copies.sources[i] = exists && row < params.num_rows
                              ? q + Row(params, row).offset(strides, item.request)
                              : nullptr;
    }
  }

  DecodeStorage<kConfig>& smem_;
  uint32_t num_loaded_ = 0;
};

/// Blocks of a BF16 cache.
template <MlaDecodeConfig kConfig>
class BlockLoader {
 public:
  __device__ __forceinline__ explicit BlockLoader(DecodeStorage<kConfig>& smem)
      : smem_(smem), ring_(smem.barriers) {}

  __device__ __forceinline__ void start(const MlaDecodeParams&, const PageTable&, int32_t) {}

  /// Fills a stage with one block of the request. All producer warps.
  __device__ __forceinline__ void load(const MlaDecodeParams& params, const PageTable& pages,
                                       const Request& request, int32_t block, uint32_t stage,
                                       bool /*has_next*/) {
    if (is_gathered(params, block, request.length)) {
      gather(pages, block, stage);
    } else {
      load_boxes(params, pages, block, stage);
    }
    ring_.advance(stage);
  }

  __device__ __forceinline__ void drain() const { ring_.drain(); }

 private:
  static constexpr uint32_t kSharedTokens = kBlockTokens / kConfig.cluster;  // that this CTA loads

  __device__ __forceinline__ uint32_t tile(uint32_t stage, uint32_t group) const {
    return ptx::cvta_to_shared(smem_.kv[stage][group]);
  }

  /// A warp has seen the whole stage empty: what it knows of the block, and its arrival.
  __device__ __forceinline__ void finish(uint32_t stage, bool has_bad_page) {
    const bool any = __any_sync(kAllLanes, has_bad_page);
    if (threadIdx.x % 32 == 0) {
      smem_.has_bad_page[stage][producer_idx<kConfig>() / 32] = any;
      ptx::mbarrier_arrive(ring_.full(stage, kNumGroups - 1));
    }
  }

  /// Every thread copies its rows' units, and zeros behind the last token.
  __device__ __forceinline__ void gather(const PageTable& pages, int32_t block, uint32_t stage) {
    RowCopies<kBlockTokens> copies(producer_idx<kConfig>());
    BadPage bad_page;
#pragma unroll
    for (uint32_t i = 0; i < copies.kCount; ++i) {
      const int32_t token =
          block * static_cast<int32_t>(kBlockTokens) + static_cast<int32_t>(copies.row(i));
      copies.sources[i] = pages.address(token, bad_page);
    }
    pages.record(bad_page);
    ring_.wait_empty(stage, Half::kLeft);
#pragma unroll 1
    for (uint32_t group = 0; group < kNumGroups; ++group) {
      if (group == kLeftGroups) ring_.wait_empty(stage, Half::kRight);
      copies.start(tile(stage, group), group * kGroupUnits * kUnitBytes);
      ptx::cp_async_mbarrier_arrive_noinc(ring_.full(stage, group));
    }
    finish(stage, bad_page.exists);
  }

  /// The first warp has TMA bring boxes of 64 columns and as many tokens as lie in a page, one a
  /// lane, for all threads. CTAs of a cluster load a part of the tokens each, into all of them.
  __device__ __forceinline__ void load_boxes(const MlaDecodeParams& params, const PageTable& pages,
                                             int32_t block, uint32_t stage) {
    BadPage bad_page;
    const bool is_first_warp = producer_idx<kConfig>() < 32;
    Boxes boxes;
    if (is_first_warp) boxes.locate(params, pages, block, bad_page);
    pages.record(bad_page);
    ring_.wait_empty(stage, Half::kLeft);
    if (is_first_warp) load_groups(params, boxes, stage, 0, kLeftGroups);
    ring_.wait_empty(stage, Half::kRight);
    if (is_first_warp) load_groups(params, boxes, stage, kLeftGroups, kNumGroups);
    finish(stage, bad_page.exists);
  }

  /// A lane's box of a block.
  struct Boxes {
    uint32_t first_row = 0;  // in the stage's tiles
    int32_t token_in_page = 0;
    int32_t page = 0;
    bool exists = false;

    __device__ __forceinline__ void locate(const MlaDecodeParams& params, const PageTable& pages,
                                           int32_t block, BadPage& bad_page) {
      const uint32_t box_tokens = min(1u << params.page_shift, kSharedTokens);
      first_row = threadIdx.x % 32 * box_tokens;
      // Lanes look at all of the block's pages, since a bad one spoils the rows of every CTA.
      if (first_row >= kBlockTokens) return;
      exists = kConfig.cluster == 1 || first_row / kSharedTokens == ptx::cluster_ctarank();
      const int32_t token =
          block * static_cast<int32_t>(kBlockTokens) + static_cast<int32_t>(first_row);
      page = pages.page(token, bad_page);  // a bad one is out of the map's bounds: zeros
      token_in_page = static_cast<int32_t>(pages.token_in_page(token));
    }
  };

  __device__ __forceinline__ void load_groups(const MlaDecodeParams& params, const Boxes& boxes,
                                              uint32_t stage, uint32_t begin, uint32_t end) {
    if (const uint32_t group = begin + threadIdx.x % 32; group < end) {
      const uint32_t full = ring_.full(stage, group);
      ptx::mbarrier_arrive_expect_tx(full, kGroupBytes);
      ptx::mbarrier_arrive_count(full, kConfig.num_producer_threads() - 1);
    }
    if (!boxes.exists) return;
    for (uint32_t group = begin; group < end; ++group) {
      const uint32_t to = tile(stage, group) + boxes.first_row * 128;
      const auto column = static_cast<int32_t>(group * kGroupColumns);
      const uint32_t full = ring_.full(stage, group);
      if constexpr (kConfig.cluster > 1) {
        constexpr uint16_t kAllCtas = (1 << kConfig.cluster) - 1;
        ptx::cp_async_bulk_tensor_3d_load_multicast_hint(to, &params.map_kv, column,
                                                         boxes.token_in_page, boxes.page, full,
                                                         kAllCtas, params.cache_policy);
      } else {
        ptx::cp_async_bulk_tensor_3d_load_hint(to, &params.map_kv, column, boxes.token_in_page,
                                               boxes.page, full, params.cache_policy);
      }
    }
  }

  DecodeStorage<kConfig>& smem_;
  ProducerRing<kConfig> ring_;
};

}  // namespace pykernels::mla
