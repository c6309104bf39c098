#include "emulator/report.h"

#include <algorithm>

namespace pykernels::emulator {
namespace {

bool same_instructions(const Finding& a, const Finding& b) {
  return std::equal(a.sites.begin(), a.sites.end(), b.sites.begin(), b.sites.end(),
                    [](const Site& x, const Site& y) {
                      return x.kernel == y.kernel && x.ptx_line == y.ptx_line && x.ptx == y.ptx;
                    });
}

}  // namespace

uint64_t Counters::visible_instructions() const {
  uint64_t sum = 0;
  for (const InstructionClass visible :
       {InstructionClass::kMemory, InstructionClass::kAtomic, InstructionClass::kBarrier,
        InstructionClass::kMbarrier, InstructionClass::kBulkCopy, InstructionClass::kFence,
        InstructionClass::kMatrix, InstructionClass::kWgmma}) {
    sum += warp_instructions[static_cast<size_t>(visible)];
  }
  return sum;
}

Finding* Report::add(Finding finding) {
  for (Finding& known : findings) {
    const bool same = known.kind == finding.kind && same_instructions(known, finding) &&
                      (!finding.sites.empty() || known.message == finding.message);
    if (!same) continue;
    known.occurrences += finding.occurrences;
    return nullptr;
  }
  findings.push_back(std::move(finding));
  return &findings.back();
}

}  // namespace pykernels::emulator
