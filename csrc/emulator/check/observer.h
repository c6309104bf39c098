// The seam between machine and checks: the machine tells what happened, checks listen. A race
// detector is one more observer.
#pragma once

#include <cstdint>

#include "emulator/program.h"

namespace pykernels::emulator {

struct MemoryEvent;
class Cta;
class Warp;

/// A synchronisation that has happened.
struct SyncEvent {
  enum class Kind : uint8_t {
    kBarrierArrive,
    kBarrierWait,
    kMbarrierInit,
    kMbarrierArrive,
    kMbarrierWait,
    kMbarrierInvalidate,
    kClusterArrive,
    kClusterWait,
    kFence,
    kProxyFence,
    kBulkCommit,
    kBulkWait,
    kWgmmaFence,
    kWgmmaCommit,
    kWgmmaWait,
    kWarpSync,
    kGridWait,
    kThreadExit,
    kAsyncIssue,
    kAsyncComplete
  };
  Kind kind;
  Warp* warp = nullptr;  // null for an asynchronous agent
  LaneMask lanes = 0;
  Cta* owner = nullptr;  // of the barrier
  uint64_t object = 0;   // offset of the mbarrier, index of the barrier, identity of the operation
  uint64_t detail = 0;   // phase, group count, ...
  const Instruction* instruction = nullptr;
};

class Observer {
 public:
  virtual ~Observer() = default;
  virtual void on_memory(const MemoryEvent& event) { (void)event; }
  virtual void on_sync(const SyncEvent& event) { (void)event; }
  /// After the last instruction of the launch.
  virtual void on_end() {}
};

}  // namespace pykernels::emulator
