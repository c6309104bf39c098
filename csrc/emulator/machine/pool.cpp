#include "emulator/machine/pool.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace pykernels::emulator {
namespace {

constexpr size_t kPageBytes = 4096;

size_t rounded(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

}  // namespace

PagePool::~PagePool() {
  for (const auto& [block, bytes] : blocks_) munmap(block, bytes);
}

uint8_t* PagePool::take(size_t bytes) {
  const size_t size = rounded(bytes);
  if (size == 0) return nullptr;
  std::vector<uint8_t*>& free = free_[size];
  if (!free.empty()) {
    uint8_t* block = free.back();
    free.pop_back();
    std::memset(block, 0, bytes);
    return block;
  }
  void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED) throw std::bad_alloc();
  blocks_.emplace_back(static_cast<uint8_t*>(block), size);
  return static_cast<uint8_t*>(block);
}

void PagePool::give_back(uint8_t* block, size_t bytes) {
  if (block != nullptr) free_[rounded(bytes)].push_back(block);
}

}  // namespace pykernels::emulator
