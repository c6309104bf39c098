// Which parts of global memory a launch touches, by the unit in which a GPU moves them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>

namespace pykernels::emulator {

/// A set of 32-byte sectors of global memory: a bit each, in pages that are made when first
/// touched. Sectors lie on multiples of 32 of the address, so no allocation has to be known.
class Footprint {
 public:
  /// Adds the sectors of [address, address + bytes); of 0 bytes none.
  void add(uint64_t address, uint64_t bytes) {
    const uint64_t first = address / kSectorBytes;
    const uint64_t last = (address + bytes - 1) / kSectorBytes;
    const Recent& recent = recent_[first / kPageSectors % kRecent];
    if (first / kWordSectors != last / kWordSectors || recent.number != first / kPageSectors ||
        bytes == 0) {
      return add_range(address, bytes);
    }
    (*recent.page)[first % kPageSectors / kWordSectors] |=
        ~0ull >> (kWordSectors - 1 - (last - first)) << first % kWordSectors;
  }
  /// Adds those of another set.
  void add(const Footprint& other);
  /// 32 times the sectors.
  uint64_t bytes() const;

 private:
  static constexpr uint32_t kSectorBytes = 32;
  static constexpr uint32_t kWordSectors = 64;
  static constexpr uint32_t kPageWords = 1024;  // 2 MiB of memory in 8 KiB of bits
  static constexpr uint64_t kPageSectors = uint64_t{kPageWords} * kWordSectors;
  static constexpr uint64_t kRecent = 16;  // pages found without a search

  using Page = std::array<uint64_t, kPageWords>;
  struct Recent {
    uint64_t number = UINT64_MAX;  // of the page
    Page* page = nullptr;
  };

  Page& page(uint64_t number);
  void add_range(uint64_t address, uint64_t bytes);

  std::map<uint64_t, std::unique_ptr<Page>> pages_;  // by number: the first sector / kPageSectors
  std::array<Recent, kRecent> recent_;               // by the low bits of the number
};

}  // namespace pykernels::emulator
