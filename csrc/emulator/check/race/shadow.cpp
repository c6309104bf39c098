#include "emulator/check/race/shadow.h"

#include <algorithm>

namespace pykernels::emulator {
namespace {

Cell part_of(const Cell& cell, uint32_t offset) {
  return {part_of(cell.write, offset), part_of(cell.read, offset)};
}

}  // namespace

Epoch part_of(const Epoch& epoch, uint32_t offset) {
  const uint32_t stripe = (epoch.what & kWhatStripe) >> kWhatStripeShift;
  if (stripe == 0) return epoch;
  Epoch part = epoch;
  part.what &= ~kWhatStripe;
  const uint32_t lane = offset >> (stripe + 1);
  // The line's first word belongs to the lowest lane of the mask.
  part.lanes = 1u << (static_cast<uint32_t>(__builtin_ctz(epoch.lanes)) + lane);
  return part;
}

void Line::split(uint32_t shift) {
  if (shift >= cell_shift) return;
  const uint32_t count = kLineBytes >> shift;
  if (cell_shift == 7 && allocated_shift == shift) {
    for (uint32_t i = 0; i < count; ++i) cells[i] = part_of(whole, i << shift);
  } else {
    auto split_cells = std::make_unique<Cell[]>(count);
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t offset = i << shift;
      split_cells[i] = cell_shift == 7 ? part_of(whole, offset) : cells[offset >> cell_shift];
    }
    cells = std::move(split_cells);
    allocated_shift = static_cast<uint8_t>(shift);
  }
  cell_shift = static_cast<uint8_t>(shift);
}

void Line::unite(const Epoch& write) {
  whole.write = write;
  whole.read = Epoch{};
  cell_shift = 7;  // the cells' memory stays for the next split of the same size
}

Line& GlobalShadow::line(uint64_t address) {
  const uint64_t number = address / (kLineBytes * kLinesPerPage);
  if (number != last_number_) {
    std::unique_ptr<Page>& page = pages_[number];
    if (page == nullptr) page = std::make_unique<Page>();
    last_ = page.get();
    last_number_ = number;
  }
  return last_->lines[address / kLineBytes % kLinesPerPage];
}

}  // namespace pykernels::emulator
