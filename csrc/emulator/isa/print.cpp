#include "emulator/isa/print.h"

#include <cstdio>
#include <cstring>
#include <string>

#include "emulator/machine/machine.h"
#include "emulator/machine/memory.h"

namespace pykernels::emulator {
namespace {

constexpr size_t kMaxString = 4096;

std::string read_string(Warp& warp, uint64_t address, int lane) {
  std::string text;
  while (text.size() < kMaxString) {
    const char c =
        static_cast<char>(*resolve(warp, Space::kGeneric, address++, 1, AccessKind::kRead, lane));
    if (c == '\0') break;
    text += c;
  }
  return text;
}

/// Arguments of vprintf lie one after the other, each aligned to its size.
class ArgumentReader {
 public:
  ArgumentReader(Warp& warp, uint64_t address, int lane)
      : warp_(warp), base_(address), lane_(lane) {}

  template <typename Value>
  Value next() {
    offset_ = (offset_ + sizeof(Value) - 1) / sizeof(Value) * sizeof(Value);
    Value value;
    std::memcpy(
        &value,
        resolve(warp_, Space::kGeneric, base_ + offset_, sizeof(Value), AccessKind::kRead, lane_),
        sizeof(Value));
    offset_ += sizeof(Value);
    return value;
  }

 private:
  Warp& warp_;
  uint64_t base_;
  int lane_;
  uint64_t offset_ = 0;
};

template <typename Value>
std::string format_one(const std::string& specification, Value value) {
  char buffer[512];
  std::snprintf(buffer, sizeof buffer, specification.c_str(), value);
  return buffer;
}

/// One conversion: flags, width and precision as written, the length modifier replaced by ours.
std::string format_argument(Warp& warp, const std::string& flags, bool is_long, char conversion,
                            ArgumentReader& arguments, int lane) {
  switch (conversion) {
    case 'd':
    case 'i': {
      const long long value = is_long ? arguments.next<int64_t>() : arguments.next<int32_t>();
      return format_one(flags + "ll" + conversion, value);
    }
    case 'u':
    case 'x':
    case 'X':
    case 'o': {
      const unsigned long long value =
          is_long ? arguments.next<uint64_t>() : arguments.next<uint32_t>();
      return format_one(flags + "ll" + conversion, value);
    }
    case 'c':
      return format_one(flags + conversion, arguments.next<int32_t>());
    case 'p':
      return format_one(flags + conversion, reinterpret_cast<void*>(arguments.next<uint64_t>()));
    case 's': {
      const std::string text = read_string(warp, arguments.next<uint64_t>(), lane);
      return format_one(flags + conversion, text.c_str());
    }
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
    case 'a':
    case 'A':
      return format_one(flags + conversion, arguments.next<double>());
    default:
      return flags + conversion;
  }
}

/// `format` with the arguments put in; *count: how many there were.
std::string format_text(Warp& warp, const std::string& format, ArgumentReader arguments, int lane,
                        uint32_t* count) {
  std::string text;
  *count = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      text += format[i];
      continue;
    }
    if (i + 1 < format.size() && format[i + 1] == '%') {
      text += format[++i];
      continue;
    }
    std::string flags = "%";
    while (i + 1 < format.size() && std::strchr("-+ #0123456789.*", format[i + 1]) != nullptr &&
           flags.size() < 16) {
      const char c = format[++i];
      flags += c == '*' ? std::to_string(arguments.next<int32_t>()) : std::string(1, c);
    }
    bool is_long = false;
    while (i + 1 < format.size() && std::strchr("hlzjt", format[i + 1]) != nullptr) {
      is_long |= format[++i] != 'h';
    }
    if (i + 1 >= format.size()) break;
    text += format_argument(warp, flags, is_long, format[++i], arguments, lane);
    ++*count;
  }
  return text;
}

}  // namespace

Step print_formatted(Warp& warp, const Instruction& inst, LaneMask active) {
  const uint64_t* formats = warp.lanes<uint64_t>(inst.operands[1]);
  const uint64_t* arguments = warp.lanes<uint64_t>(inst.operands[2]);
  uint32_t* results = warp.lanes<uint32_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) {
    const std::string format = read_string(warp, formats[lane], lane);
    const std::string text = format_text(warp, format, ArgumentReader(warp, arguments[lane], lane),
                                         lane, &results[lane]);
    std::fputs(text.c_str(), stdout);
  });
  std::fflush(stdout);
  return Step::kNext;
}

Step fail_assertion(Warp& warp, const Instruction& inst, LaneMask active) {
  const int lane = __builtin_ctz(active);
  const auto text = [&](int slot) {
    return read_string(warp, warp.lanes<uint64_t>(inst.operands[slot])[lane], lane);
  };
  const uint32_t line = warp.lanes<uint32_t>(inst.operands[2])[lane];
  warp.machine().fail("trap",
                      text(1) + ":" + std::to_string(line) + ": " + text(3) + ": assertion `" +
                          text(0) + "` failed",
                      warp, inst, lane);
}

}  // namespace pykernels::emulator
