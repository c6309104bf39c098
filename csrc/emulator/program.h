// A kernel resolved for execution: every statement bound to its handler, operands turned into slots
// of the register file, calls inlined, variables given addresses.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator/ir.h"

namespace pykernels::emulator {

class Warp;
struct Instruction;

/// Bit i is lane i of a warp.
using LaneMask = uint32_t;
inline constexpr int kWarpSize = 32;
inline constexpr LaneMask kFullMask = 0xffffffffu;

/// What the execution loop does after a handler.
enum class Step : uint8_t {
  kNext,     // go on with the following instruction
  kJumped,   // the handler has set the program counter (and split the warp where lanes differ)
  kBlocked,  // the handler has called Warp::block; the same instruction runs again after waking
  kExited,   // the active lanes have ended
};

/// `active`: lanes of the current split whose guard holds; never 0.
using Handler = Step (*)(Warp& warp, const Instruction& inst, LaneMask active);

/// Byte offset of an operand: of the warp's register file, or of the program's constants if the top
/// bit is set. A 32-bit (or narrower) value is uint32_t[32] with unused upper bits zero, a 64-bit
/// one uint64_t[32], a 128-bit one uint64_t[32][2], a predicate one LaneMask (an immediate
/// predicate too).
using Slot = uint32_t;
inline constexpr Slot kConstantSlot = 0x80000000u;
inline constexpr Slot kNoSlot = 0x7fffffffu;

enum class InstructionClass : uint8_t {
  kArithmetic,
  kLogic,
  kCompare,
  kMove,
  kConvert,
  kControl,
  kMemory,
  kAtomic,
  kWarp,
  kBarrier,
  kMbarrier,
  kBulkCopy,
  kFence,
  kMatrix,
  kWgmma,
  kAddress,
  kCount
};

/// Data of forms that need more than slots and immediates; owned by the program.
struct SideData {
  virtual ~SideData() = default;
};

struct Instruction {
  Handler handler = nullptr;
  Slot guard = kNoSlot;
  bool guard_negated = false;
  bool touches_wgmma = false;  // an operand is a register that WGMMA of the kernel works on
  bool branches = false;       // to `target`
  bool falls_through = true;   // the following instruction may come next
  InstructionClass instruction_class = InstructionClass::kMove;
  uint16_t variant =
      0;  // for the handler: modifiers that are cheaper to branch on than to compile in
  Slot operands[6] = {kNoSlot, kNoSlot, kNoSlot,
                      kNoSlot, kNoSlot, kNoSlot};  // destination(s) first
  int64_t immediate = 0;                           // address offset, barrier count, ...
  uint32_t target = 0;                             // branch target
  const SideData* side = nullptr;
  uint32_t statement = 0;  // index into Program::locations
  // Registers read and written as (slot, bytes a lane; 0 for a predicate), for the init check.
  uint32_t accesses_begin = 0;  // range of Program::accesses
  uint16_t num_reads = 0;       // reads first
  uint16_t num_writes = 0;      // then writes
};

struct RegisterAccess {
  Slot slot = kNoSlot;
  uint32_t register_index = 0;
};

struct Parameter {
  std::string name;
  Type type = Type::kB8;
  uint32_t offset = 0;  // in the parameter block
  uint32_t bytes = 0;
  uint32_t alignment = 1;
};

/// A variable of shared memory, for findings.
struct SharedSymbol {
  std::string name;
  uint32_t offset = 0;
  uint32_t bytes = 0;  // 0 for dynamic shared memory: to the end
};

struct Program {
  std::string name;
  std::vector<Instruction> instructions;
  std::vector<SourceLocation> locations;
  std::vector<std::string> texts;  // the statement as written, for findings; parallel to locations
  std::vector<RegisterAccess> accesses;
  std::vector<std::string> register_names;
  // Registers that WGMMA works on while it is in flight, numbered; by register index.
  std::vector<int32_t> wgmma_registers;  // -1: none; empty where the kernel has no WGMMA
  uint32_t num_wgmma_registers = 0;
  std::vector<uint8_t> constants;  // broadcast immediates
  std::vector<std::unique_ptr<SideData>> side_data;
  std::vector<Parameter> parameters;
  std::vector<SharedSymbol> shared_symbols;
  uint32_t register_file_bytes = 0;
  uint32_t parameter_bytes = 0;
  uint32_t static_shared_bytes = 0;  // dynamic shared memory follows, aligned to 1024
  uint32_t local_bytes = 0;          // per thread
  uint32_t required_threads = 0;
  uint32_t max_threads = 0;
  std::array<uint32_t, 3> required_cluster = {};  // .reqnctapercluster, zeros if none
  uint32_t max_cluster_rank = 0;                  // CTAs of a cluster, 0 if there is no bound
  bool explicit_cluster = false;                  // .explicitcluster
  bool couples_clusters = false;                  // see coupling.h
  bool has_contractible_arithmetic = false;       // mul/add pairs without .rn: ptxas may fuse them
};

/// Memory of module-scope .global and .const variables: one per module, shared by its kernels.
struct ModuleStorage {
  std::vector<std::unique_ptr<uint8_t[]>> blocks;
  std::map<std::string, std::pair<uint8_t*, uint64_t>> variables;
};

/// A loaded module. Resolving binds every statement of every entry: unknown forms are a PtxError
/// here.
struct LoadedModule {
  ParsedModule parsed;
  ModuleStorage storage;
  std::vector<std::unique_ptr<Program>> kernels;

  /// nullptr if there is none of this name.
  const Program* find(const std::string& name) const;
};

/// `poll`: called now and then; may throw to give up (Ctrl-C).
std::shared_ptr<LoadedModule> load_module(std::string_view text,
                                          const std::function<void()>& poll = {});

}  // namespace pykernels::emulator
