// Where an instruction comes from in the CUDA source, through all the functions that were inlined
// around it.
#pragma once

#include <string>

#include "emulator/ir.h"

namespace pykernels::emulator {

/// "ptx/mbarrier.cuh:60, inlined at csrc/core/pipeline.cuh:69, csrc/gemm/mainloop.cuh:201", by the
/// .loc lines before the statement on this PTX line; empty where there are none.
std::string source_chain(const ParsedModule& module, int ptx_line);

}  // namespace pykernels::emulator
