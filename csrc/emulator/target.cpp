#include "emulator/target.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string_view>

#include "core/check.h"

namespace pykernels::emulator {
namespace {

constexpr int kLastMajor = 9;
constexpr std::array<int, 10> kLastMinor = {-1, 5, 3, 2, 3, 0, 5, 8, 8, 9};  // by major version

constexpr int kTargets[] = {10, 11, 12, 13, 20, 21, 30, 32, 35, 37, 50, 52, 53,
                            60, 61, 62, 70, 72, 75, 80, 86, 87, 88, 89, 90};
constexpr int kEmulated = 90;

struct Version {
  int major = 0;
  int minor = 0;

  bool before(int other_major, int other_minor) const {
    return major < other_major || (major == other_major && minor < other_minor);
  }
};

Version read_version(const std::string& text) {
  Version version{-1, -1};
  std::sscanf(text.c_str(), "%d.%d", &version.major, &version.minor);
  return version;
}

struct Target {
  int number = -1;
  std::string_view suffix;  // "a" of features that only this architecture has
};

Target read_target(std::string_view text) {
  Target target;
  constexpr std::string_view kPrefix = "sm_";
  if (!text.starts_with(kPrefix)) return target;
  text.remove_prefix(kPrefix.size());
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  if (digits == 0 || digits > 3) return target;
  target.number = std::stoi(std::string(text.substr(0, digits)));
  target.suffix = text.substr(digits);
  return target;
}

struct Need {
  std::string_view form;  // opcode with the modifiers that it begins with
  const char* target;
};

// PTX ISA, "Target ISA notes". The first that fits counts.
constexpr Need kNeeds[] = {
    {"wgmma", "sm_90a"},
    {"setmaxnreg", "sm_90a"},
    {"tensormap.replace", "sm_90a"},
    {"tensormap.cp_fenceproxy", "sm_90"},
    {"barrier.cluster", "sm_90"},
    {"cp.async.bulk", "sm_90"},
    {"cp.reduce.async.bulk", "sm_90"},
    {"mbarrier.try_wait", "sm_90"},
    {"mbarrier.expect_tx", "sm_90"},
    {"mbarrier.complete_tx", "sm_90"},
    {"mbarrier.arrive.expect_tx", "sm_90"},
    {"mbarrier.arrive_drop.expect_tx", "sm_90"},
    {"mapa", "sm_90"},
    {"getctarank", "sm_90"},
    {"griddepcontrol", "sm_90"},
    {"elect", "sm_90"},
    {"fence.proxy.async", "sm_90"},
    {"fence.proxy.tensormap::generic", "sm_90"},
    {"fence.mbarrier_init", "sm_90"},
    {"st.async", "sm_90"},
    {"red.async", "sm_90"},
    {"stmatrix", "sm_90"},
    {"multimem", "sm_90"},
    {"cp.async", "sm_80"},
    {"mbarrier", "sm_80"},
    {"redux", "sm_80"},
    {"ldmatrix", "sm_75"},
};
constexpr std::string_view kClusterModifiers[] = {"cluster", "shared::cluster"};

bool begins_with(const std::string& name, std::string_view form) {
  return name.starts_with(form) && (name.size() == form.size() || name[form.size()] == '.');
}

const char* needed_target(const Statement& statement) {
  std::string name = statement.opcode;
  for (const std::string& modifier : statement.modifiers) name += "." + modifier;
  for (const Need& need : kNeeds) {
    if (begins_with(name, need.form)) return need.target;
  }
  const auto& modifiers = statement.modifiers;
  const bool uses_clusters = std::any_of(modifiers.begin(), modifiers.end(), [](const auto& word) {
    return std::find(std::begin(kClusterModifiers), std::end(kClusterModifiers), word) !=
           std::end(kClusterModifiers);
  });
  return uses_clusters ? "sm_90" : nullptr;
}

}  // namespace

std::string version_refusal(const std::string& text) {
  const Version version = read_version(text);
  const bool known = version.major >= 1 && version.major <= kLastMajor && version.minor >= 0 &&
                     version.minor <= kLastMinor[static_cast<size_t>(version.major)];
  return known ? "" : concat("there is no PTX ", text, " (known are 1.0 to 9.x)");
}

std::string target_refusal(const std::string& text, const std::string& version_text) {
  const Target target = read_target(text);
  if (target.number > kEmulated)
    return concat("'", text, "' is a later target than sm_90a, which the emulator runs");
  const bool known =
      std::find(std::begin(kTargets), std::end(kTargets), target.number) != std::end(kTargets) &&
      (target.suffix.empty() || (target.suffix == "a" && target.number == kEmulated));
  if (!known) return concat("there is no target '", text, "'");
  if (target.number < kEmulated) return "";
  const Version version = read_version(version_text);
  const bool too_old = target.suffix.empty() ? version.before(7, 8) : version.before(8, 0);
  return too_old ? concat("PTX ", version_text, " does not know the target '", text, "'") : "";
}

std::string form_refusal(const std::string& text, const Statement& statement) {
  const char* needed = needed_target(statement);
  if (needed == nullptr) return "";
  const Target own = read_target(text);
  const Target least = read_target(needed);
  const bool has = own.number >= least.number && (least.suffix.empty() || !own.suffix.empty());
  if (has) return "";
  return concat("'", statement.opcode, "' of this form needs .target ", needed,
                least.suffix.empty() ? " or higher" : "", ", the module has ", text);
}

}  // namespace pykernels::emulator
