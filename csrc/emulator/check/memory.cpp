#include "emulator/check/memory.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>

#include "core/check.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

const char* verb(AccessKind kind) {
  switch (kind) {
    case AccessKind::kRead:
      return "read";
    case AccessKind::kWrite:
      return "write";
    default:
      return "atomic access";
  }
}

const char* space_word(Space space) {
  switch (space) {
    case Space::kShared:
      return "shared";
    case Space::kLocal:
      return "local";
    case Space::kParam:
      return "parameter";
    case Space::kConst:
      return "const";
    default:
      return "global";
  }
}

/// "pykernels::gemm::smem_bytes" of a C++ symbol, anything else as it is.
std::string demangled(const std::string& symbol) {
  if (!symbol.starts_with("_Z")) return symbol;
  int status = 0;
  char* text = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 && text != nullptr ? text : symbol;
  std::free(text);
  return result;
}

}  // namespace

std::string hexadecimal(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

std::string shared_place(const Program& program, uint32_t offset) {
  for (auto symbol = program.shared_symbols.rbegin(); symbol != program.shared_symbols.rend();
       ++symbol) {
    if (offset < symbol->offset || (symbol->bytes != 0 && offset - symbol->offset >= symbol->bytes))
      continue;
    return concat("'", demangled(symbol->name), "' + ", offset - symbol->offset);
  }
  return concat("offset ", offset);
}

std::string alignment_message(Space space, uint64_t address, uint32_t bytes, AccessKind kind) {
  return concat(verb(kind), " of ", bytes, " bytes at ", space_word(space), " address ",
                hexadecimal(address), ", which is not a multiple of ", bytes);
}

std::string foreign_rank_message(uint64_t address, uint32_t own_rank) {
  return concat(".shared::cta access by the CTA of rank ", own_rank, " to address ",
                hexadecimal(address), ", which is of rank ", address >> kClusterRankShift,
                ": .shared::cluster is needed");
}

std::string shared_bounds_message(const Cta& cta, uint64_t address, uint32_t bytes,
                                  AccessKind kind) {
  const int64_t offset =
      static_cast<int64_t>(address & ((1u << kClusterRankShift) - 1)) - kSharedBase;
  return concat(verb(kind), " of ", bytes, " bytes at shared offset ", offset, " (address ",
                hexadecimal(address), "), outside of the CTA's ", cta.shared.size(), " bytes");
}

std::string window_bounds_message(const char* space, uint64_t address, uint64_t bytes,
                                  uint64_t size, AccessKind kind) {
  return concat(verb(kind), " of ", bytes, " bytes at ", space, " offset ", address, ", of ", size,
                " bytes", address <= size && size - address >= bytes ? " that are read-only" : "");
}

std::string global_bounds_message(const Allocations& allocations, const Allocation* allocation,
                                  uint64_t address, uint64_t bytes, AccessKind kind) {
  if (allocation != nullptr) {
    return concat(verb(kind), " of ", bytes, " bytes at ", hexadecimal(address), ": '",
                  allocation->name, "' is read-only");
  }
  return concat(verb(kind), " of ", bytes, " bytes at global address ", hexadecimal(address), ": ",
                allocations.describe(address, bytes));
}

}  // namespace pykernels::emulator
