#include "emulator/machine/footprint.h"

#include <algorithm>
#include <bit>

namespace pykernels::emulator {

Footprint::Page& Footprint::page(uint64_t number) {
  Recent& recent = recent_[number % kRecent];
  if (recent.number == number) return *recent.page;
  std::unique_ptr<Page>& page = pages_[number];
  if (page == nullptr) page = std::make_unique<Page>();
  recent = {number, page.get()};
  return *page;
}

void Footprint::add_range(uint64_t address, uint64_t bytes) {
  if (bytes == 0) return;
  const uint64_t end = (address + bytes - 1) / kSectorBytes + 1;
  for (uint64_t sector = address / kSectorBytes; sector < end;) {
    const uint64_t in_word = sector % kWordSectors;
    const uint64_t count = std::min(end - sector, kWordSectors - in_word);
    const uint64_t bits = ~0ull >> (kWordSectors - count) << in_word;
    page(sector / kPageSectors)[sector % kPageSectors / kWordSectors] |= bits;
    sector += count;
  }
}

void Footprint::add(const Footprint& other) {
  for (const auto& [number, words] : other.pages_) {
    Page& sum = page(number);
    for (uint32_t i = 0; i < kPageWords; ++i) sum[i] |= (*words)[i];
  }
}

uint64_t Footprint::bytes() const {
  uint64_t sectors = 0;
  for (const auto& [number, page] : pages_) {
    for (const uint64_t word : *page) sectors += static_cast<uint64_t>(std::popcount(word));
  }
  return sectors * kSectorBytes;
}

}  // namespace pykernels::emulator
