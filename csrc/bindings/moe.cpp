// Bindings of csrc/moe.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "core/check.h"
#include "moe/launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

moe::Phases phases_of(const std::string& name) {
  if (name == "both") return moe::Phases::kAll;
  if (name == "send") return moe::Phases::kSend;
  if (name == "send and counts") return moe::Phases::kSendAndCounts;
  if (name == "rows") return moe::Phases::kReceive;
  PK_CHECK(name == "receive",
           "phases must be 'both', 'send', 'send and counts', 'rows' or 'receive', got '", name,
           "'");
  return moe::Phases::kCountsAndReceive;
}

const char* phase_name(uint32_t phase) {
  switch (static_cast<moe::Phase>(phase)) {
    case moe::Phase::kDispatchSend:
    case moe::Phase::kCombineSend:
      return "free slots";
    case moe::Phase::kDispatchCounts:
      return "dispatch counts";
    case moe::Phase::kDispatchReceive:
      return "dispatch token";
    case moe::Phase::kCombineCounts:
      return "combine start";
    case moe::Phase::kCombineReceive:
      return "combine token";
    case moe::Phase::kCombineInput:
      return "rows of y";
  }
  return "";
}

const char* kind_name(uint32_t kind) {
  switch (static_cast<moe::ErrorKind>(kind)) {
    case moe::ErrorKind::kTimeout:
      return "timeout";
    case moe::ErrorKind::kCapacity:
      return "capacity";
    case moe::ErrorKind::kMismatch:
      return "mismatch";
    case moe::ErrorKind::kExpert:
      return "expert";
    case moe::ErrorKind::kPeer:
      return "peer";
    case moe::ErrorKind::kArgument:
      return "argument";
    case moe::ErrorKind::kHandle:
      return "handle";
    case moe::ErrorKind::kNone:
      break;
  }
  return "none";
}

/// The record as a dict; None where nothing has been recorded. `address` is read as the host sees
/// it.
py::object read_record(uint64_t address) {
  const auto* record = reinterpret_cast<const moe::ErrorRecord*>(address);
  const uint32_t kind = __atomic_load_n(&record->kind, __ATOMIC_ACQUIRE);
  if (kind == 0) return py::none();
  py::dict result;
  result["kind"] = kind_name(kind);
  result["phase"] = phase_name(record->phase);
  result["rank"] = record->rank;
  result["peer"] = record->peer;
  result["expected"] = record->expected;
  result["seen"] = record->seen;
  result["index"] = record->index;
  if (kind == static_cast<uint32_t>(moe::ErrorKind::kPeer)) {
    result["told_by"] = static_cast<uint32_t>(record->index);
    result["told"] = kind_name(static_cast<uint32_t>(record->index >> 32));
  }
  return result;
}

void bind_buffer(py::module_& module) {
  py::class_<moe::Buffer>(module, "MoeBuffer", "The buffer of one rank, as its kernels take it.")
      .def(py::init([](int64_t num_ranks, int64_t num_experts, int64_t num_topk,
                       int64_t num_max_tokens, int64_t hidden, std::vector<uint64_t> windows,
                       uint64_t state, uint64_t record, uint64_t timeout_ns, uint32_t rank) {
             return moe::Buffer({num_ranks, num_experts, num_topk, num_max_tokens, hidden},
                                std::move(windows), state, record, timeout_ns, rank);
           }),
           py::kw_only(), py::arg("num_ranks"), py::arg("num_experts"), py::arg("num_topk"),
           py::arg("num_max_tokens"), py::arg("hidden"), py::arg("windows"), py::arg("state"),
           py::arg("record"), py::arg("timeout_ns"), py::arg("rank"))
      .def_readonly("timeout_ns", &moe::Buffer::timeout_ns)
      .def_readonly("rank", &moe::Buffer::rank);
  module.def(
      "moe_window_bytes",
      [](int64_t num_ranks, int64_t num_experts, int64_t num_topk, int64_t num_max_tokens,
         int64_t hidden) {
        return moe::window_layout({num_ranks, num_experts, num_topk, num_max_tokens, hidden}).bytes;
      },
      py::kw_only(), py::arg("num_ranks"), py::arg("num_experts"), py::arg("num_topk"),
      py::arg("num_max_tokens"), py::arg("hidden"),
      "What a rank's window, which its peers write, takes.");
  module.def(
      "moe_memory",
      [] {
        py::dict result;
        result["state_bytes"] = sizeof(moe::BufferState);
        result["record_bytes"] = sizeof(moe::ErrorRecord);
        result["mask_offset"] = offsetof(moe::BufferState, masked);
        result["waits_offset"] = offsetof(moe::BufferState, wait_ns);
        result["max_ranks"] = moe::kMaxRanks;
        result["max_topk"] = moe::kMaxTopk;
        result["max_experts"] = moe::kMaxExperts;
        result["mail_bytes"] = offsetof(moe::Mail, num_tokens) + sizeof(uint32_t);
        result["header_bytes"] = sizeof(moe::SlotHeader);
        result["entry_bytes"] = sizeof(moe::Entry);
        result["counter_rows"] = moe::kCounterRows;
        result["counter_columns"] = moe::kCounterColumns;
        return result;
      },
      "Sizes of a rank's state and record, where the state has its mask and what was waited, in "
      "bytes; what buffers may have at most; sizes of a mail without counts, and of a slot's "
      "header "
      "and entry.");
  module.def("moe_kernel_names", &moe::kernel_names, "The kernels, to be loaded before they wait.");
  module.def("moe_read_record", &read_record, py::arg("address"),
             "The first error since the reset, or None.");
}

}  // namespace

void bind_moe(py::module_& module) {
  bind_buffer(module);
  module.def(
      "make_moe_layout_launch",
      [](const moe::Buffer& buffer, const TensorView& topk_idx, const TensorView& topk_weights,
         const TensorView& position_in_expert, const TensorView& position_in_rank,
         const TensorView& expert_counts, const TensorView& rank_counts) {
        return moe::make_layout_launch(
            buffer, {topk_idx, topk_weights},
            {position_in_expert, position_in_rank, expert_counts, rank_counts});
      },
      py::arg("buffer"), py::arg("topk_idx"), py::arg("topk_weights"),
      py::arg("position_in_expert"), py::arg("position_in_rank"), py::arg("expert_counts"),
      py::arg("rank_counts"), "Where the tokens of a batch go.");
  module.def("make_moe_refusal_launch", &moe::make_refusal_launch, py::arg("buffer"),
             "Tells the peers of a call with wrong arguments, in its place.");
  module.def(
      "make_moe_dispatch_launch",
      [](const moe::Buffer& buffer, const TensorView& x, const std::optional<TensorView>& scales,
         const TensorView& topk_idx, const TensorView& topk_weights,
         const TensorView& position_in_expert, const TensorView& position_in_rank,
         const TensorView& expert_counts, const TensorView& rank_counts, const TensorView& recv_x,
         const std::optional<TensorView>& recv_scales, const TensorView& groups,
         const TensorView& recv_counts, const TensorView& number, const TensorView& rows,
         const TensorView& row_weights, const TensorView& row_topk,
         const std::optional<TensorView>& counters, bool masked, bool ue8m0,
         const std::string& phases, int64_t num_sms) {
        moe::DispatchArguments arguments;
        arguments.x = x;
        arguments.scales = scales;
        arguments.routing = {topk_idx, topk_weights};
        arguments.placement = {position_in_expert, position_in_rank, expert_counts, rank_counts};
        arguments.receive = {recv_x, recv_scales, groups,   recv_counts, number,
                             rows,   row_weights, row_topk, counters,    masked};
        arguments.scale_format = ue8m0 ? ScaleFormat::kUe8m0 : ScaleFormat::kFp32;
        arguments.phases = phases_of(phases);
        arguments.num_sms = num_sms;
        return moe::make_dispatch_launch(buffer, arguments);
      },
      py::arg("buffer"), py::arg("x"), py::arg("scales"), py::arg("topk_idx"),
      py::arg("topk_weights"), py::arg("position_in_expert"), py::arg("position_in_rank"),
      py::arg("expert_counts"), py::arg("rank_counts"), py::arg("recv_x"), py::arg("recv_scales"),
      py::arg("groups"), py::arg("recv_counts"), py::arg("number"), py::arg("rows"),
      py::arg("row_weights"), py::arg("row_topk"), py::arg("counters") = py::none(), py::kw_only(),
      py::arg("masked"), py::arg("ue8m0"), py::arg("phases"), py::arg("num_sms"),
      "Tokens to the ranks of their experts, of one rank.");
  module.def(
      "make_moe_combine_launch",
      [](const moe::Buffer& buffer, const TensorView& y, const TensorView& recv_counts,
         const TensorView& number, const TensorView& rows,
         const std::optional<TensorView>& row_weights, const TensorView& position_in_rank,
         const TensorView& send_counts, const TensorView& out,
         const std::optional<TensorView>& done, const std::optional<TensorView>& groups,
         const std::string& phases, int64_t num_sms) {
        return moe::make_combine_launch(
            buffer, {y, recv_counts, number, rows, row_weights, done, groups, position_in_rank,
                     send_counts, out, phases_of(phases), num_sms});
      },
      py::arg("buffer"), py::arg("y"), py::arg("recv_counts"), py::arg("number"), py::arg("rows"),
      py::arg("row_weights"), py::arg("position_in_rank"), py::arg("send_counts"), py::arg("out"),
      py::arg("done") = py::none(), py::arg("groups") = py::none(), py::kw_only(),
      py::arg("phases"), py::arg("num_sms"), "The experts' results to the tokens' ranks, of one.");
}

}  // namespace pykernels::bindings
