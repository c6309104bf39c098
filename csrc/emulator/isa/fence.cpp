// Fences of memory and of proxies. The emulator's memory is sequentially consistent and completed
// asynchronous operations are visible to all, so they order nothing here: observers are told.
#include <initializer_list>
#include <string>
#include <string_view>

#include "emulator/isa/table.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

template <SyncEvent::Kind kKind>
Step fence(Warp& warp, const Instruction& inst, LaneMask active) {
  if (warp.machine().observed()) {
    warp.machine().notify(SyncEvent{kKind, &warp, active, nullptr, 0, inst.variant, &inst});
  }
  return Step::kNext;
}

Build build_fence(Handler handler, int num_operands) {
  return [handler, num_operands](Builder& builder) {
    if (builder.num_operands() != num_operands) {
      builder.fail("expected " + std::to_string(num_operands) + " operands");
    }
    Instruction& inst = builder.instruction();
    inst.handler = handler;
    if (num_operands == 2) {  // fence.proxy.tensormap::generic.acquire.gpu [addr], 128;
      bool base_is_64 = false;
      builder.address(builder.statement().operands[0], Space::kGeneric, &inst.operands[0],
                      &base_is_64, &inst.immediate);
      if (builder.integer(builder.statement().operands[1]) != 128)
        builder.fail("the size must be 128");
    }
  };
}

void add_proxy_fences(Table& table) {
  const Handler handler = fence<SyncEvent::Kind::kProxyFence>;
  for (const char* form : {"fence.proxy.alias", "fence.proxy.async", "fence.proxy.async.global",
                           "fence.proxy.async.shared::cta", "fence.proxy.async.shared::cluster"}) {
    table.add(form, InstructionClass::kFence, build_fence(handler, 0));
  }
  for (const char* form :
       {"fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster",
        "fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster"}) {
    table.add(form, InstructionClass::kFence, build_fence(handler, 0));
  }
  for (const char* scope : {"cta", "cluster", "gpu", "sys"}) {
    const std::string form = "fence.proxy.tensormap::generic.";
    table.add(form + "release." + scope, InstructionClass::kFence, build_fence(handler, 0));
    table.add(form + "acquire." + scope, InstructionClass::kFence, build_fence(handler, 2));
  }
}

}  // namespace

void add_fence_forms(Table& table) {
  const Handler handler = fence<SyncEvent::Kind::kFence>;
  for (const char* level : {"cta", "gl", "sys"}) {
    table.add(std::string("membar.") + level, InstructionClass::kFence, build_fence(handler, 0));
  }
  for (const char* scope : {"cta", "cluster", "gpu", "sys"}) {
    for (const char* semantics : {"", "sc.", "acq_rel.", "acquire.", "release."}) {
      table.add(std::string("fence.") + semantics + scope, InstructionClass::kFence,
                build_fence(handler, 0));
    }
  }
  for (const char* form : {"fence.mbarrier_init.release.cluster",
                           "fence.acquire.sync_restrict::shared::cluster.cluster",
                           "fence.release.sync_restrict::shared::cta.cluster"}) {
    table.add(form, InstructionClass::kFence, build_fence(handler, 0));
  }
  add_proxy_fences(table);
}

}  // namespace pykernels::emulator
