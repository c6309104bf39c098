// Fences of memory and of proxies. The emulator's memory is sequentially consistent and completed
// asynchronous operations are visible to all, so they order nothing here: the race detector is
// told.
#include <memory>
#include <string>
#include <utility>

#include "emulator/check/race/detector.h"
#include "emulator/isa/memory_access.h"
#include "emulator/isa/table.h"
#include "emulator/machine/machine.h"
#include "emulator/memory_model.h"

namespace pykernels::emulator {
namespace {

// Bits of Instruction::variant: semantics (3) and scope (3) of a memory fence, and whether it is
// fence.sc; spaces of a proxy fence.
constexpr int kFenceScopeShift = 3;
constexpr int kSequential = 1 << 6;
constexpr uint16_t kShared = 1;
constexpr uint16_t kGlobal = 2;
constexpr uint16_t kTensorMap = 4;
constexpr std::pair<const char*, Scope> kScopes[] = {
    {"cta", Scope::kCta}, {"cluster", Scope::kCluster}, {"gpu", Scope::kGpu}, {"sys", Scope::kSys}};

/// Of the acquire of a tensor map.
struct AcquireForm : SideData {
  AddressOperand map;
};

Step memory_fence(Warp& warp, const Instruction& inst, LaneMask active) {
  if (RaceDetector* races = warp.machine().races()) {
    races->fence(warp, active, static_cast<Semantics>(inst.variant & 7),
                 static_cast<Scope>(inst.variant >> kFenceScopeShift & 7),
                 (inst.variant & kSequential) != 0);
  }
  return Step::kNext;
}

/// fence.proxy.tensormap::generic.acquire.scope [addr], 128;      PTX 8.3, sm_90
///
/// Later reads of this map through the proxy of tensor maps see what was released to it.
Step tensor_map_acquire(Warp& warp, const Instruction& inst, LaneMask active) {
  RaceDetector* const races = warp.machine().races();
  if (races == nullptr) return Step::kNext;
  const auto& map = static_cast<const AcquireForm&>(*inst.side).map;
  uint64_t addresses[kWarpSize] = {};
  for_lanes(active, [&](int lane) { addresses[lane] = map.at(warp, lane); });
  races->acquire_tensor_map(warp, inst, active,
                            static_cast<Scope>(inst.variant >> kFenceScopeShift), addresses);
  return Step::kNext;
}

Step proxy_fence(Warp& warp, const Instruction& inst, LaneMask active) {
  if (RaceDetector* races = warp.machine().races()) {
    races->fence_proxy(warp, active,
                       {(inst.variant & kShared) != 0, (inst.variant & kGlobal) != 0,
                        (inst.variant & kTensorMap) != 0});
  }
  return Step::kNext;
}

/// fence.mbarrier_init.release.cluster;      PTX 8.0, sm_90. Orders only mbarrier.init before it.
Step mbarrier_init_fence(Warp& warp, const Instruction& inst, LaneMask active) {
  (void)inst;
  if (RaceDetector* races = warp.machine().races()) races->fence_mbarrier_init(warp, active);
  return Step::kNext;
}

Build build_fence(Handler handler, int num_operands, int variant) {
  return [handler, num_operands, variant](Builder& builder) {
    if (builder.num_operands() != num_operands) {
      builder.fail("expected " + std::to_string(num_operands) + " operands");
    }
    Instruction& inst = builder.instruction();
    inst.handler = handler;
    inst.variant = static_cast<uint16_t>(variant);
    if (num_operands == 2) {  // [addr], 128
      auto form = std::make_unique<AcquireForm>();
      form->map = read_address(builder, builder.statement().operands[0], Space::kGeneric);
      if (builder.integer(builder.statement().operands[1]) != 128)
        builder.fail("the size must be 128");
      builder.keep(std::move(form));
    }
  };
}

int memory_variant(Semantics semantics, Scope scope) {
  return static_cast<int>(semantics) | static_cast<int>(scope) << kFenceScopeShift;
}

void add_proxy_fences(Table& table) {
  const auto add = [&](const std::string& form, int num_operands, int spaces) {
    table.add(form, InstructionClass::kFence, build_fence(proxy_fence, num_operands, spaces));
  };
  add("fence.proxy.alias", 0, 0);
  add("fence.proxy.async", 0, kShared | kGlobal);
  add("fence.proxy.async.global", 0, kGlobal);
  add("fence.proxy.async.shared::cta", 0, kShared);
  add("fence.proxy.async.shared::cluster", 0, kShared);
  add("fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster", 0, kShared);
  add("fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster", 0, kShared);
  for (const auto& [name, scope] : kScopes) {
    const std::string form = "fence.proxy.tensormap::generic.";
    add(form + "release." + name, 0, kTensorMap);
    table.add(form + "acquire." + name, InstructionClass::kFence,
              build_fence(tensor_map_acquire, 2, static_cast<int>(scope) << kFenceScopeShift));
  }
}

}  // namespace

void add_fence_forms(Table& table) {
  const auto add = [&](const std::string& form, Semantics semantics, Scope scope, int more = 0) {
    table.add(form, InstructionClass::kFence,
              build_fence(memory_fence, 0, memory_variant(semantics, scope) | more));
  };
  // PTX ISA, membar: on sm_70 and later a synonym of fence.sc.
  add("membar.cta", Semantics::kAcquireRelease, Scope::kCta, kSequential);
  add("membar.gl", Semantics::kAcquireRelease, Scope::kGpu, kSequential);
  add("membar.sys", Semantics::kAcquireRelease, Scope::kSys, kSequential);
  for (const auto& [name, scope] : kScopes) {
    for (const std::string semantics : {"", "acq_rel."}) {
      add("fence." + semantics + name, Semantics::kAcquireRelease, scope);
    }
    add(std::string("fence.sc.") + name, Semantics::kAcquireRelease, scope, kSequential);
    add(std::string("fence.acquire.") + name, Semantics::kAcquire, scope);
    add(std::string("fence.release.") + name, Semantics::kRelease, scope);
  }
  add("fence.acquire.sync_restrict::shared::cluster.cluster", Semantics::kAcquire, Scope::kCluster);
  add("fence.release.sync_restrict::shared::cta.cluster", Semantics::kRelease, Scope::kCluster);
  table.add("fence.mbarrier_init.release.cluster", InstructionClass::kFence,
            build_fence(mbarrier_init_fence, 0, 0));
  add_proxy_fences(table);
}

}  // namespace pykernels::emulator
