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
