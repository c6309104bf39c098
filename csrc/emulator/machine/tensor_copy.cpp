#include "emulator/machine/tensor_copy.h"

#include <algorithm>
#include <cstring>

#include "emulator/check/race/detector.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kChunk = 16;  // bytes that swizzling keeps together
constexpr uint32_t kLine = 128;  // bytes within which it permutes

/// Elements of the box along a dimension, after its element stride (which dimension 0 has not).
uint32_t box_count(const TensorMapFields& map, uint32_t dimension) {
  const uint32_t step = dimension == 0 ? 1 : std::max(1u, map.element_strides[dimension]);
  return (map.box[dimension] + step - 1) / step;
}

/// A run of consecutive elements in bounds.
struct Run {
  uint64_t address = 0;     // in global memory
  uint32_t box_offset = 0;  // in the dense box
  uint32_t bytes = 0;
};

/// Rows (runs along dimension 0) of a box that are in bounds, in the order of the box.
class RowIterator {
 public:
  explicit RowIterator(const TensorBox& box)
      : map_(box.map), coordinates_(box.coordinates), width_(element_bytes(box.map.type)) {
    const int64_t size = static_cast<int64_t>(map_.dims[0]);
    const int64_t first = coordinates_[0];
    const int64_t begin = std::clamp<int64_t>(first, 0, size);
    const int64_t end = std::clamp<int64_t>(first + map_.box[0], 0, size);
    begin_ = static_cast<uint32_t>(begin - first);
    bytes_ = end > begin ? static_cast<uint32_t>(end - begin) * width_ : 0;
    first_address_ = map_.address + static_cast<uint64_t>(begin) * width_;
    row_bytes_ = map_.box[0] * width_;
  }

  /// False after the last row. A row out of bounds gives a run of 0 bytes.
  bool next(Run* run) {
    if (done_) return false;
    run->box_offset = row_ * row_bytes_ + begin_ * width_;
    run->address = first_address_;
    run->bytes = bytes_;
    for (uint32_t d = 1; d < map_.rank; ++d) {
      const int64_t at =
          coordinates_[d] + int64_t{index_[d]} * std::max(1u, map_.element_strides[d]);
      if (at < 0 || at >= static_cast<int64_t>(map_.dims[d])) run->bytes = 0;
      run->address += static_cast<uint64_t>(at) * map_.strides[d - 1];
    }
    advance();
    return true;
  }

 private:
  void advance() {
    ++row_;
    for (uint32_t d = 1; d < map_.rank; ++d) {
      if (++index_[d] < box_count(map_, d)) return;
      index_[d] = 0;
    }
    done_ = true;
  }

  const TensorMapFields& map_;
  const int32_t* coordinates_;
  uint32_t width_;
  uint32_t begin_ = 0;  // first element of the box in bounds, along dimension 0
  uint32_t bytes_ = 0;
  uint64_t first_address_ = 0;
  uint32_t row_bytes_ = 0;
  uint32_t row_ = 0;
  uint32_t index_[TensorMapFields::kMaxRank] = {};
  bool done_ = false;
};

/// Host memory of the box's rows: looked up once where one allocation holds the whole bounding
/// range and nobody observes single accesses.
class RowMemory {
 public:
  RowMemory(Machine& machine, const TensorBox& box, AccessKind kind, const Instruction* instruction,
            Warp* issuer)
      : machine_(machine), kind_(kind), instruction_(instruction), issuer_(issuer) {
    const std::optional<GlobalRange> range = bounding_range(box);
    if (!range) return;
    const Allocation* allocation = machine.allocations().find(range->address, range->bytes);
    all_known_ = allocation != nullptr && (kind == AccessKind::kRead || allocation->writable);
  }

  /// Called once for each row that is moved: it is counted here.
  uint8_t* at(const Run& run) const {
    machine_.count_global(run.address, run.bytes, kind_);
    if (all_known_) {
      if (RaceDetector* races = machine_.races()) {
        races->async_global(run.address, run.bytes, kind_);
      }
      return reinterpret_cast<uint8_t*>(run.address);
    }
    return resolve_global(machine_, run.address, run.bytes, kind_, instruction_, issuer_);
  }

 private:
  Machine& machine_;
  AccessKind kind_;
  const Instruction* instruction_;
  Warp* issuer_;
  bool all_known_ = false;
};

/// The NaN of TMA's fill in the map's type: sign 0, all other bits set.
void fill_nan(std::vector<uint8_t>& data, TensorMapType type) {
  const uint32_t width = element_bytes(type);
  std::memset(data.data(), 0xff, data.size());
  for (size_t at = width - 1; at < data.size(); at += width) data[at] = 0x7f;
}

}  // namespace

uint32_t box_bytes(const TensorMapFields& map) {
  uint32_t bytes = element_bytes(map.type);
  for (uint32_t d = 0; d < map.rank; ++d) bytes *= box_count(map, d);
  return bytes;
}

uint32_t swizzled(uint32_t address, TensorMapSwizzle swizzle) {
  switch (swizzle) {
    case TensorMapSwizzle::k32B:
      return address ^ (address >> 3 & 0x10);
    case TensorMapSwizzle::k64B:
      return address ^ (address >> 3 & 0x30);
    case TensorMapSwizzle::k128B:
      return address ^ (address >> 3 & 0x70);
    default:
      return address;
  }
}

uint32_t swizzle_repeat(TensorMapSwizzle swizzle) {
  return swizzle == TensorMapSwizzle::kNone ? 1 : 128u << static_cast<int>(swizzle);
}

std::optional<GlobalRange> bounding_range(const TensorBox& box) {
  const TensorMapFields& map = box.map;
  GlobalRange range{map.address, element_bytes(map.type)};
  for (uint32_t d = 0; d < map.rank; ++d) {
    const uint64_t stride = d == 0 ? element_bytes(map.type) : map.strides[d - 1];
    const int64_t step = d == 0 ? 1 : std::max(1u, map.element_strides[d]);
    // First and last index in bounds: coordinate + i * step for 0 <= i < count.
    const int64_t start = box.coordinates[d];
    const int64_t size = static_cast<int64_t>(map.dims[d]);
    int64_t last = start + (int64_t{box_count(map, d)} - 1) * step;
    const int64_t first = start >= 0 ? start : start + (-start + step - 1) / step * step;
    if (last >= size) last -= (last - size + step) / step * step;
    if (first > last || first >= size || last < 0) return std::nullopt;
    range.address += static_cast<uint64_t>(first) * stride;
    uint64_t extent = 0;
    // A stride may promise more than an address space holds: no allocation does.
    if (__builtin_mul_overflow(static_cast<uint64_t>(last - first), stride, &extent) ||
        __builtin_add_overflow(range.bytes, extent, &range.bytes)) {
      return GlobalRange{range.address, UINT64_MAX};
    }
  }
  return range;
}

void check_box_in_allocations(const Issuer& issuer, const TensorBox& box, AccessKind kind) {
  const std::optional<GlobalRange> range = bounding_range(box);
  if (!range) return;
  const Allocations& allocations = issuer.warp.machine().allocations();
  if (allocations.find(range->address, range->bytes) != nullptr) {
    return check_global_range(issuer, *range, kind);
  }
  // Rows may lie in several allocations; the first outside of all ends the launch.
  RowIterator rows(box);
  for (Run run; rows.next(&run);) {
    if (run.bytes != 0) check_global_range(issuer, {run.address, run.bytes}, kind);
  }
}

std::vector<uint8_t> gather_box(Machine& machine, const TensorBox& box,
                                const Instruction* instruction, Warp* issuer) {
  std::vector<uint8_t> data(box_bytes(box.map));
  if (box.map.fill == TensorMapFill::kNan) fill_nan(data, box.map.type);
  const RowMemory memory(machine, box, AccessKind::kRead, instruction, issuer);
  RowIterator rows(box);
  for (Run run; rows.next(&run);) {
    if (run.bytes != 0) std::memcpy(data.data() + run.box_offset, memory.at(run), run.bytes);
  }
  return data;
}

void scatter_box(Machine& machine, const TensorBox& box, const std::vector<uint8_t>& data,
                 const std::optional<Reduction>& reduction, const Instruction* instruction,
                 Warp* issuer) {
  const AccessKind kind = reduction ? AccessKind::kAtomic : AccessKind::kWrite;
  const RowMemory memory(machine, box, kind, instruction, issuer);
  RowIterator rows(box);
  for (Run run; rows.next(&run);) {
    if (run.bytes == 0) continue;
    const uint8_t* source = data.data() + run.box_offset;
    if (reduction) {
      reduce_bytes(*reduction, memory.at(run), source, run.bytes);
    } else {
      std::memcpy(memory.at(run), source, run.bytes);
    }
  }
}

std::vector<uint8_t> read_box(Machine& machine, const SharedRange& range, const TensorBox& box,
                              const Instruction* instruction, Warp* issuer) {
  std::vector<uint8_t> data(box_bytes(box.map));
  RowIterator rows(box);
  for (Run run; rows.next(&run);) {
    const uint32_t end = run.box_offset + run.bytes;
    for (uint32_t at = run.box_offset; at < end;) {
      const bool dense = box.map.swizzle == TensorMapSwizzle::kNone;
      const uint32_t bytes = (dense ? end : std::min(end, (at / kChunk + 1) * kChunk)) - at;
      const uint32_t place = swizzled(range.offset + at, box.map.swizzle);
      std::memcpy(
          data.data() + at,
          resolve_shared(machine, *range.cta, place, bytes, AccessKind::kRead, instruction, issuer),
          bytes);
      at += bytes;
    }
  }
  return data;
}

void write_box(Machine& machine, const SharedRange& range, const std::vector<uint8_t>& data,
               TensorMapSwizzle swizzle, const Instruction* instruction, Warp* issuer) {
  const auto resolved = [&](uint32_t offset, uint32_t bytes) {
    return resolve_shared(machine, *range.cta, offset, bytes, AccessKind::kWrite, instruction,
                          issuer);
  };
  if (swizzle == TensorMapSwizzle::kNone) {
    std::memcpy(resolved(range.offset, range.bytes), data.data(), range.bytes);
    return;
  }
  // Whole lines permute within themselves; chunks of the last, incomplete one may lie behind the
  // range.
  const uint32_t whole = range.offset % kLine == 0 ? range.bytes / kLine * kLine : 0;
  uint8_t* lines = whole == 0 ? nullptr : resolved(range.offset, whole);
  for (uint32_t at = 0; at < range.bytes; at += kChunk) {
    const uint32_t place = swizzled(range.offset + at, swizzle);
    uint8_t* chunk = at < whole ? lines + (place - range.offset) : resolved(place, kChunk);
    std::memcpy(chunk, data.data() + at, kChunk);
  }
}

void poison_box(const SharedRange& range, TensorMapSwizzle swizzle) {
  if (swizzle == TensorMapSwizzle::kNone || (range.bytes | range.offset) % kLine == 0) {
    range.cta->poison(range.offset, range.bytes);
    return;
  }
  for (uint32_t at = 0; at < range.bytes; at += kChunk) {
    const uint32_t place = swizzled(range.offset + at, swizzle);
    if (place + kChunk <= range.cta->shared.size()) range.cta->poison(place, kChunk);
  }
}

}  // namespace pykernels::emulator
