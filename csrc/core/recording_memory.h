// Device memory of the recording driver, and its handles between the processes that a test plays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/driver.h"
#include "core/launch.h"

namespace pykernels {

inline constexpr std::byte kFreshByte{0xCD};  // what new memory holds

/// Memory of the CPU in the place of GPUs'. A handle leads every process to the same address, so
/// that an emulator sees one memory; a real driver maps it elsewhere.
class RecordingMemory {
 public:
  /// Who calls: a process, and the device whose context is current.
  struct Place {
    int process = 0;
    int device_index = 0;

    friend auto operator<=>(const Place&, const Place&) = default;
  };

  /// `serial` tells this driver's handles from others'.
  explicit RecordingMemory(uint64_t serial) : serial_(serial) {}

  cuda::Result allocate(const Place& place, size_t bytes, uint64_t* address);
  cuda::Result free(const Place& place, uint64_t address);
  cuda::Result fill(const Place& place, uint64_t address, unsigned char value, size_t bytes);
  cuda::Result export_handle(const Place& place, uint64_t address, cuda::IpcMemHandle* handle);
  /// `reaches_peers`: whether devices can map the memory of others.
  cuda::Result open(const Place& place, const cuda::IpcMemHandle& handle, bool reaches_peers,
                    uint64_t* address);
  cuda::Result close(const Place& place, uint64_t address);

  /// Appends what kernels of the process may touch: its own memory, and what it has mapped.
  void append_ranges(int process, std::vector<MemoryRange>& ranges) const;
  /// What was done that the real driver leaves undefined, in words.
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  struct Allocation {
    std::vector<std::byte> storage;  // kept as long as the driver, for what uses it after its end
    uint64_t address = 0;
    size_t bytes = 0;
    Place owner;
    bool freed = false;
    std::map<Place, int> mappings;  // how often each place has opened it

    bool is_mapped_in(int process) const;
  };

  cuda::IpcMemHandle make_handle(size_t index) const;
  /// That begins at the address and is not freed, or nullptr.
  Allocation* find(uint64_t address);

  uint64_t serial_;
  std::deque<Allocation> allocations_;
  std::vector<std::string> violations_;
};

}  // namespace pykernels
