// Blocks of memory that the system pages in on first touch. Warps of hundreds of resident CTAs come
// and go, and most of their registers are never touched: blocks are kept for the next owner, and
// cleared for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace pykernels::emulator {

class PagePool {
 public:
  PagePool() = default;
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  /// At least this many zeros, page-aligned.
  uint8_t* take(size_t bytes);
  void give_back(uint8_t* block, size_t bytes);

 private:
  std::vector<std::pair<uint8_t*, size_t>> blocks_;  // all, to be freed
  std::map<size_t, std::vector<uint8_t*>> free_;     // by size
};

}  // namespace pykernels::emulator
