// A kernel launch as a plain value: printed, compared and tested without a GPU, and run by any
// Device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pykernels {

struct Dim3 {
  uint32_t x = 1;
  uint32_t y = 1;
  uint32_t z = 1;

  friend bool operator==(const Dim3&, const Dim3&) = default;
};

/// Global memory that a launch may touch. The emulator reports any access outside of these ranges.
struct MemoryRange {
  uint64_t address = 0;
  uint64_t bytes = 0;
  const char* name = "";  // the argument's name, for findings; a string literal

  friend bool operator==(const MemoryRange&, const MemoryRange&) = default;
};

struct Launch {
  std::string kernel;  // name in the registry
  Dim3 grid;
  Dim3 block;
  Dim3 cluster;
  uint32_t dynamic_shared_bytes = 0;
  bool programmatic_dependent =
      false;  // may start before the previous kernel of the stream has ended
  // May end only once kernels run that are launched later.
  bool awaits_others = false;
  std::vector<std::byte>
      arguments;  // the one by-value parameter struct, 64-byte aligned members inside
  std::vector<MemoryRange> memory;
  uint32_t rank = 0;  // the GPU, where several run together in the emulator

  friend bool operator==(const Launch&, const Launch&) = default;
};

/// One line with every field, memory and arguments by size: what repr() shows.
std::string describe(const Launch& launch);

/// Copies a trivially copyable parameter struct into the launch's argument bytes.
template <typename Params>
std::vector<std::byte> argument_bytes(const Params& params) {
  const auto* first = reinterpret_cast<const std::byte*>(&params);
  return {first, first + sizeof(Params)};
}

}  // namespace pykernels
