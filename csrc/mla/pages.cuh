// From tokens of a request to addresses in the cache.
#pragma once

#include "core/device_error.cuh"
#include "core/warp.cuh"
#include "mla/config.h"
#include "mla/work.cuh"
#include "ptx/memory.cuh"

namespace pykernels::mla {

/// What a thread has found among its entries of the block table: the last one that is wrong.
struct BadPage {
  bool exists = false;
  int32_t page = 0;
};

/// A request's row of the block table. Entries behind the request's length are never looked at.
class PageTable {
 public:
  __device__ __forceinline__ PageTable(const MlaDecodeParams& params, const WorkItem& item,
                                       const Request& request)
      : params_(params),
        row_(params.block_table + item.request * params.block_table_stride),
        request_(item.request),
        length_(request.length) {}

  __device__ __forceinline__ bool has_token(int32_t token) const { return token < length_; }

  /// The page of a token that the request has. `bad`: set if it does not exist; nothing may be read
  /// from it.
  __device__ __forceinline__ int32_t page(int32_t token, BadPage& bad) const {
    const int32_t page = row_[token >> params_.page_shift];
    if (!exists(page)) bad = {true, page};
    return page;
  }

  /// The token's row in the cache; null if the request does not have it, or its page is bad.
  __device__ __forceinline__ const uint8_t* address(int32_t token, BadPage& bad) const {
    if (!has_token(token)) return nullptr;
    const int32_t page = this->page(token, bad);
    if (!exists(page)) return nullptr;
    return params_.kv_cache + static_cast<uint32_t>(page) * params_.page_stride +
           token_in_page(token) * params_.token_stride;
  }

  /// Leaves the error, if there is one.
  __device__ __forceinline__ void record(const BadPage& bad) const {
    if (!bad.exists) return;
    write_error(params_.errors, {DeviceErrorKind::kPageIndex, static_cast<uint32_t>(request_),
                                 bad.page, static_cast<int32_t>(params_.num_pages)});
  }

  __device__ __forceinline__ uint32_t token_in_page(int32_t token) const {
    return static_cast<uint32_t>(token) & ((1u << params_.page_shift) - 1);
  }

 private:
  __device__ __forceinline__ bool exists(int32_t page) const {
    return static_cast<uint32_t>(page) < params_.num_pages;
  }

  const MlaDecodeParams& params_;
  const int32_t* row_;
  int32_t request_;
  int32_t length_;
};

}  // namespace pykernels::mla
