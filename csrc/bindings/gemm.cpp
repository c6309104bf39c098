// Bindings of csrc/gemm.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/gemm_schedule.h"
#include "core/check.h"
#include "core/device.h"
#include "core/registry.h"
#include "gemm/choice.h"
#include "gemm/cost.h"
#include "gemm/gpu_model.h"
#include "gemm/launch.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

using gemm::GemmArguments;
using gemm::GemmCandidate;
using gemm::GemmCost;
using gemm::GemmFamily;
using gemm::GemmProblem;
using gemm::GemmSchedule;
using gemm::GpuModel;

/// The launch of the cheapest kernel; or of the one named, with the schedule given or its first.
Launch make_launch(Device& device, const GemmArguments& arguments,
                   const std::optional<std::string>& kernel,
                   const std::optional<ScheduleTuple>& schedule) {
  if (!kernel) return gemm::make_fp8_gemm_nt_launch(device, arguments);
  const KernelInfo& info = Registry::instance().get(*kernel);
  return gemm::make_fp8_gemm_nt_launch(device, arguments, info, schedule_or_first(info, schedule));
}

/// A candidate as Python sees it: with its own copies, since its kernel may belong to a call's
/// `configs`.
struct Candidate {
  std::string kernel;
  std::map<std::string, int64_t> config;
  ScheduleTuple schedule;
  GemmCost cost;
};

Candidate make_candidate(const GemmCandidate& candidate) {
  const GemmSchedule& schedule = candidate.schedule;
  return {candidate.kernel->name,
          candidate.kernel->config,
          {schedule.cluster_m, schedule.cluster_n, schedule.split_k},
          candidate.cost};
}

using Configs = std::map<std::string, std::map<std::string, int64_t>>;

/// Kernels that need not exist, by name; none: those of the registry.
class Family {
 public:
  Family(const std::optional<Configs>& configs, bool grouped) : grouped_(grouped) {
    if (!configs) return;
    infos_.reserve(configs->size());
    std::vector<const KernelInfo*> pointers;
    for (const auto& [name, config] : *configs) {
      KernelInfo info;
      info.name = name;
      info.config = config;
      infos_.push_back(std::move(info));
      pointers.push_back(&infos_.back());
    }
    family_ = gemm::make_family(pointers);
  }
  const GemmFamily& get() const { return family_ ? *family_ : gemm::registered_family(grouped_); }

 private:
  bool grouped_;
  std::vector<KernelInfo> infos_;
  std::optional<GemmFamily> family_;
};

/// What both functions below take as a problem.
struct ProblemArguments {
  int64_t m;
  int64_t n;
  int64_t k;
  uint32_t d_bytes;
  std::optional<int64_t> num_sms;
  bool batch_invariant;
  int64_t num_groups;
  bool no_clusters;

  GemmProblem on(const GpuModel& gpu) const {
    const int64_t limit = num_sms.value_or(gpu.num_sms);
    return {m,
            n,
            k,
            d_bytes,
            static_cast<int>(std::min<int64_t>(limit, gpu.num_sms)),
            batch_invariant,
            num_groups,
            no_clusters};
  }
};

GpuModel replaced(const GpuModel& gpu, const std::map<std::string, double>& constants) {
  GpuModel changed = gpu;
  for (const auto& [name, value] : constants) {
    const auto known = gemm::gpu_constants();
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&](const auto& constant) { return name == constant.name; });
    PK_CHECK(found != known.end(), "a GPU has no constant named ", name);
    PK_CHECK(value >= 0, name, " must not be negative, got ", value);
    changed.*(found->field) = value;
  }
  return changed;
}

std::map<std::string, double> constants_of(const GpuModel& gpu) {
  std::map<std::string, double> constants;
  for (const auto& constant : gemm::gpu_constants()) {
    constants[constant.name] = gpu.*(constant.field);
  }
  return constants;
}

void bind_gpu_model(py::module_& module) {
  py::class_<GpuModel>(module, "GpuModel", "What the cost model knows of a GPU.")
      .def_readonly("name", &GpuModel::name)
      .def_readonly("num_sms", &GpuModel::num_sms)
      .def_readonly("active_clusters", &GpuModel::active_clusters,
                    "Clusters that are resident together, by their number of CTAs; [0] is unused.")
      .def_property_readonly("constants", &constants_of,
                             "By name; units and sources: csrc/gemm/gpu_model.h, gpu_model.cpp.")
      .def("replaced", &replaced, py::arg("constants"), "The same with other constants.")
      .def("with_num_sms", &gemm::with_num_sms, py::arg("num_sms"), "A part of the GPU.");
  module.def(
      "gpu_models",
      [] {
        const auto models = gemm::gpu_models();
        return std::vector<GpuModel>(models.begin(), models.end());
      },
      "The GPUs that there are constants for.");
  module.def(
      "find_gpu_model",
      [](const std::string& name) -> std::optional<GpuModel> {
        const GpuModel* found = gemm::find_gpu_model(name);
        return found != nullptr ? std::optional(*found) : std::nullopt;
      },
      py::arg("name"), "The constants of the GPU of this name, or None.");
  module.def(
      "device_gpu_model",
      [](Device& device) {
        GpuModel gpu = gemm::gpu_model_of(device);
        warn_of_unknown_gpu();
        return gpu;
      },
      py::arg("device"),
      "The constants that launches on this device are chosen with; warns where they are another "
      "GPU's.");
}

void bind_candidate(py::module_& module) {
  py::class_<Candidate> bound(module, "GemmCandidate",
                              "A kernel that could run a GEMM, and what the model gives it.");
  bound.def_readonly("kernel", &Candidate::kernel)
      .def_readonly("config", &Candidate::config)
      .def_readonly("schedule", &Candidate::schedule);
  bound.def_property_readonly(
      "cost",
      [](const Candidate& candidate) {
        const GemmCost& cost = candidate.cost;
        py::dict parts;
        parts["total_us"] = cost.total_us;
        parts["hbm_us"] = cost.hbm_us;
        parts["l2_us"] = cost.l2_us;
        parts["tensor_us"] = cost.tensor_us;
        parts["issue_us"] = cost.issue_us;
        parts["load_us"] = cost.load_us;
        parts["latency_us"] = cost.latency_us;
        parts["epilogue_us"] = cost.epilogue_us;
        parts["reduce_us"] = cost.reduce_us;
        parts["waves_us"] = cost.waves_us;
        parts["fill_us"] = cost.fill_us;
        parts["launch_us"] = cost.launch_us;
        parts["num_tiles"] = cost.num_tiles;
        parts["num_waves"] = cost.num_waves;
        parts["hbm_bytes"] = cost.hbm_bytes;
        parts["l2_bytes"] = cost.l2_bytes;
        return parts;
      },
      "Microseconds (..._us), bytes and counts, by name.");
}

/// Defines a function that takes a problem, a GPU and `configs`.
template <typename Function>
void define_on_problem(py::module_& module, const char* name, Function&& function,
                       const char* documentation) {
  module.def(
      name,
      [function](int64_t m, int64_t n, int64_t k, uint32_t d_bytes, const GpuModel& gpu,
                 std::optional<int64_t> num_sms, bool batch_invariant,
                 const std::optional<Configs>& configs, int64_t num_groups, bool no_clusters) {
        const ProblemArguments problem{m,          n,          k, d_bytes, num_sms, batch_invariant,
                                       num_groups, no_clusters};
        const Family family(configs, num_groups > 0);
        return function(problem.on(gpu), gpu, family.get());
      },
      py::arg("m"), py::arg("n"), py::arg("k"), py::arg("d_bytes"), py::arg("gpu"),
      py::arg("num_sms") = py::none(), py::arg("batch_invariant") = false,
      py::arg("configs") = py::none(), py::arg("num_groups") = 0, py::arg("no_clusters") = false,
      documentation);
}

void bind_cost(py::module_& module) {
  define_on_problem(
      module, "explain_fp8_gemm_nt",
      [](const GemmProblem& problem, const GpuModel& gpu, const GemmFamily& family) {
        std::vector<Candidate> ranked;
        for (const GemmCandidate& candidate : gemm::rank_configs(problem, gpu, family)) {
          ranked.push_back(make_candidate(candidate));
        }
        return ranked;
      },
      "The kernels that can run this problem with every schedule, cheapest first; d_bytes is an "
      "element of the output; num_groups > 0: so many groups of m rows, by the grouped kernels; "
      "`configs` (by name) stand for kernels in place of those installed.");
  define_on_problem(
      module, "choose_fp8_gemm_nt",
      [](const GemmProblem& problem, const GpuModel& gpu, const GemmFamily& family) {
        return make_candidate(gemm::choose_config(problem, gpu, family));
      },
      "The first of explain_fp8_gemm_nt, as a launch chooses it.");
}

}  // namespace

void warn_of_unknown_gpu() {
  const std::optional<std::string> message = gemm::take_gpu_warning();
  if (message && PyErr_WarnEx(PyExc_RuntimeWarning, message->c_str(), 1) != 0) {
    throw py::error_already_set();
  }
}

void bind_gemm(py::module_& module) {
  bind_gpu_model(module);
  bind_candidate(module);
  bind_cost(module);
  module.def(
      "make_fp8_gemm_nt_launch",
      [](Device& device, const TensorView& a, const TensorView& sfa, const TensorView& b,
         const TensorView& sfb, const TensorView& out, std::optional<int64_t> num_sms,
         const std::optional<std::string>& kernel, const std::optional<ScheduleTuple>& schedule,
         bool batch_invariant) {
        return make_launch(device, {a, sfa, b, sfb, out, num_sms, batch_invariant}, kernel,
                           schedule);
      },
      py::arg("device"), py::arg("a"), py::arg("sfa"), py::arg("b"), py::arg("sfb"), py::arg("out"),
      py::arg("num_sms") = py::none(), py::arg("kernel") = py::none(),
      py::arg("schedule") = py::none(), py::arg("batch_invariant") = false,
      "The launch that fp8_gemm_nt would run; `kernel` names one instead of the cheapest, "
      "`schedule` its (cluster_m, cluster_n, split_k).");
  module.def(
      "fp8_gemm_nt",
      [](Device& device, const TensorView& a, const TensorView& sfa, const TensorView& b,
         const TensorView& sfb, const TensorView& out, std::optional<int64_t> num_sms,
         const std::optional<std::string>& kernel, const std::optional<ScheduleTuple>& schedule,
         bool batch_invariant) {
        const py::gil_scoped_release release;
        const Launch launch =
            make_launch(device, {a, sfa, b, sfb, out, num_sms, batch_invariant}, kernel, schedule);
        if (gemm::has_gpu_warning()) {
          const py::gil_scoped_acquire acquire;
          warn_of_unknown_gpu();
        }
        device.run(launch);
      },
      py::arg("device"), py::arg("a"), py::arg("sfa"), py::arg("b"), py::arg("sfb"), py::arg("out"),
      py::arg("num_sms") = py::none(), py::arg("kernel") = py::none(),
      py::arg("schedule") = py::none(), py::arg("batch_invariant") = false,
      "out = dequant(a) @ dequant(b).T; the arguments have been checked, no size but k is 0.");
}

}  // namespace pykernels::bindings
