#include "core/recording_memory.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"

namespace pykernels {
namespace {

using cuda::Result;

constexpr std::byte kFreedByte{0xDD};
constexpr uint64_t kAlignment = 512;

}  // namespace

bool RecordingMemory::Allocation::is_mapped_in(int process) const {
  return std::any_of(mappings.begin(), mappings.end(),
                     [&](const auto& mapping) { return mapping.first.process == process; });
}

RecordingMemory::Allocation* RecordingMemory::find(uint64_t address) {
  const auto found =
      std::find_if(allocations_.begin(), allocations_.end(), [&](const Allocation& allocation) {
        return allocation.address == address && !allocation.freed;
      });
  return found == allocations_.end() ? nullptr : &*found;
}

Result RecordingMemory::allocate(const Place& place, size_t bytes, uint64_t* address) {
  if (bytes == 0) return cuda::kInvalidValue;
  Allocation& allocation = allocations_.emplace_back();
  allocation.storage.assign(bytes + kAlignment, kFreshByte);
  const auto first = reinterpret_cast<uint64_t>(allocation.storage.data());
  allocation.address = (first + kAlignment - 1) / kAlignment * kAlignment;
  allocation.bytes = bytes;
  allocation.owner = place;
  *address = allocation.address;
  return cuda::kSuccess;
}

Result RecordingMemory::free(const Place& place, uint64_t address) {
  Allocation* const allocation = find(address);
  if (allocation == nullptr || allocation->owner.process != place.process) {
    return cuda::kInvalidValue;
  }
  if (allocation->owner != place) return cuda::kInvalidContext;
  for (const auto& [mapped, count] : allocation->mappings) {
    violations_.push_back(concat("cuMemFree of memory of process ", place.process, " that process ",
                                 mapped.process, " has mapped on device ", mapped.device_index));
  }
  std::fill(allocation->storage.begin(), allocation->storage.end(), kFreedByte);
  allocation->freed = true;
  return cuda::kSuccess;
}

Result RecordingMemory::fill(const Place& place, uint64_t address, unsigned char value,
                             size_t bytes) {
  for (const Allocation& allocation : allocations_) {
    const bool holds = address >= allocation.address && bytes <= allocation.bytes &&
                       address - allocation.address <= allocation.bytes - bytes;
    const bool reaches =
        allocation.owner.process == place.process || allocation.is_mapped_in(place.process);
    if (!holds || !reaches || allocation.freed) continue;
    std::memset(reinterpret_cast<void*>(address), value, bytes);
    return cuda::kSuccess;
  }
  return cuda::kInvalidValue;
}

cuda::IpcMemHandle RecordingMemory::make_handle(size_t index) const {
  const uint64_t words[] = {serial_, index, ~serial_};
  cuda::IpcMemHandle handle = {};
  std::memcpy(handle.bytes, words, sizeof(words));
  return handle;
}

Result RecordingMemory::export_handle(const Place& place, uint64_t address,
                                      cuda::IpcMemHandle* handle) {
  for (size_t i = 0; i < allocations_.size(); ++i) {
    const Allocation& allocation = allocations_[i];
    if (allocation.address != address || allocation.freed) continue;
    if (allocation.owner.process != place.process) return cuda::kInvalidValue;  // it is mapped
    if (allocation.owner != place) return cuda::kInvalidContext;
    *handle = make_handle(i);
    return cuda::kSuccess;
  }
  return cuda::kInvalidValue;
}

Result RecordingMemory::open(const Place& place, const cuda::IpcMemHandle& handle,
                             bool reaches_peers, uint64_t* address) {
  for (size_t i = 0; i < allocations_.size(); ++i) {
    const cuda::IpcMemHandle own = make_handle(i);
    if (std::memcmp(own.bytes, handle.bytes, sizeof(own.bytes)) != 0) continue;
    Allocation& allocation = allocations_[i];
    if (allocation.freed) break;
    if (allocation.owner.process == place.process) return cuda::kInvalidContext;
    if (allocation.owner.device_index != place.device_index && !reaches_peers) {
      return cuda::kPeerAccessUnsupported;
    }
    ++allocation.mappings[place];  // opened again: the same address, to be closed as often
    *address = allocation.address;
    return cuda::kSuccess;
  }
  return cuda::kInvalidHandle;
}

Result RecordingMemory::close(const Place& place, uint64_t address) {
  for (Allocation& allocation : allocations_) {
    if (allocation.address != address || !allocation.is_mapped_in(place.process)) continue;
    const auto mapping = allocation.mappings.find(place);
    if (mapping == allocation.mappings.end()) return cuda::kInvalidContext;
    if (--mapping->second == 0) allocation.mappings.erase(mapping);
    return cuda::kSuccess;
  }
  return cuda::kInvalidValue;
}

void RecordingMemory::append_ranges(int process, std::vector<MemoryRange>& ranges) const {
  for (const Allocation& allocation : allocations_) {
    if (allocation.freed) continue;
    const bool is_own = allocation.owner.process == process;
    if (!is_own && !allocation.is_mapped_in(process)) continue;
    ranges.push_back({allocation.address, allocation.bytes, "peer memory"});
  }
}

}  // namespace pykernels
