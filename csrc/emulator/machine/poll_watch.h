// Launches in which all that run only poll: every warp comes back to a state that it has been in,
// and nothing has changed in between, so that they will do so for ever.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace pykernels::emulator {

class Warp;
struct Cluster;

class PollWatch {
 public:
  /// Warps are looked at from now on: nothing has changed for a while.
  void start() { watching_ = true; }
  /// Something has changed.
  void stop();
  bool watching() const { return watching_; }
  /// After a turn of the warp, of so many instructions.
  void after_turn(const Warp& warp, uint64_t spent);
  /// True where every warp of the clusters that can run has come back to a state of its own.
  bool all_poll(const std::vector<Cluster*>& clusters) const;

 private:
  /// A state that the warp is compared with, and a later one twice as many turns on.
  struct Seen {
    std::vector<uint8_t> state;
    uint64_t spent = 0;
    uint64_t turns = 0;
    uint64_t last_turn = 1;
    bool returned = false;
  };

  bool watching_ = false;
  std::map<const Warp*, Seen> seen_;  // never walked through: the order has no meaning
};

}  // namespace pykernels::emulator
