#include "emulator/check/source_chain.h"

#include <cstdio>
#include <cstring>
#include <optional>

#include "core/check.h"

namespace pykernels::emulator {
namespace {

constexpr int kMaxDepth = 16;

struct Place {
  int file = 0;
  int line = 0;
  int column = 0;

  friend bool operator==(const Place&, const Place&) = default;
};

/// A line `.loc file line column[, function_name ..., inlined_at file line column]`.
struct Loc {
  Place place;
  std::optional<Place> parent;
};

std::optional<Loc> parse_loc(const std::string& text) {
  Loc loc;
  Place& place = loc.place;
  if (std::sscanf(text.c_str(), " .loc %d %d %d", &place.file, &place.line, &place.column) != 3) {
    return std::nullopt;
  }
  Place parent;
  const char* inlined = std::strstr(text.c_str(), "inlined_at");
  if (inlined != nullptr && std::sscanf(inlined, "inlined_at %d %d %d", &parent.file, &parent.line,
                                        &parent.column) == 3) {
    loc.parent = parent;
  }
  return loc;
}

/// The last .loc before the line, of this place where one is given; `line` becomes its index.
std::optional<Loc> find_loc(const ParsedModule& module, size_t* line,
                            const std::optional<Place>& wanted) {
  while (*line > 0) {
    --*line;
    const std::optional<Loc> loc = parse_loc(module.lines[*line]);
    if (loc && (!wanted || loc->place == *wanted)) return loc;
  }
  return std::nullopt;
}

std::string text_of(const ParsedModule& module, const Place& place) {
  const auto file = module.files.find(place.file);
  return concat(file == module.files.end() ? "?" : file->second, ":", place.line);
}

}  // namespace

std::string source_chain(const ParsedModule& module, int ptx_line) {
  if (ptx_line < 1 || static_cast<size_t>(ptx_line) > module.lines.size()) return {};
  auto line = static_cast<size_t>(ptx_line);
  std::optional<Loc> loc = find_loc(module, &line, std::nullopt);
  if (!loc) return {};
  std::string chain = text_of(module, loc->place);
  for (int depth = 0; depth < kMaxDepth && loc && loc->parent; ++depth) {
    const Place parent = *loc->parent;
    chain += (depth == 0 ? ", inlined at " : ", ") + text_of(module, parent);
    loc = find_loc(module, &line, parent);
  }
  return chain;
}

}  // namespace pykernels::emulator
