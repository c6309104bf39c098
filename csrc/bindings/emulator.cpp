// Bindings of the emulator: modules, options, runs and reports. The public surface is
// pykernels.emulator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/trace.h"
#include "core/check.h"
#include "core/tensor_map.h"
#include "emulator/emulated_device.h"
#include "emulator/gpu_facts.h"
#include "emulator/ir.h"
#include "emulator/machine/independent.h"
#include "emulator/machine/machine.h"
#include "emulator/module_check.h"
#include "emulator/program.h"
#include "emulator/report.h"

namespace py = pybind11;

namespace pykernels::bindings {
namespace {

using emulator::Completion;
using emulator::MachineLaunch;
using emulator::MachineOptions;

// ---- options ----

/// Runs between turns of the machine, without the interpreter lock: lets Ctrl-C end the emulation.
void poll_signals() {
  py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

Completion completion_from_name(const std::string& name) {
  if (name == "early") return Completion::kEarly;
  if (name == "late") return Completion::kLate;
  PK_CHECK(name == "random", "async_completion must be \"early\", \"late\" or \"random\", got \"",
           name, "\"");
  return Completion::kRandom;
}

void enable_check(MachineOptions& options, const std::string& name) {
  PK_CHECK(
      name == "all" || name == "memory" || name == "init" || name == "race" || name == "sync",
      "checks must be \"all\" or a set out of \"memory\", \"init\", \"race\", \"sync\", got \"",
      name, "\"");
  options.check_memory |= name == "memory" || name == "all";
  options.check_init |= name == "init" || name == "all";
  options.check_race |= name == "race" || name == "all";
  options.check_sync |= name == "sync" || name == "all";
}

const uint64_t kMaxWarpInstructions = MachineOptions().max_warp_instructions;

/// The emulator is compiled for x86-64-v3; this file is not, so that it can say so elsewhere.
void require_processor() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2"))
    return;
  throw EnvironmentError(
      "the emulator needs an x86 processor with AVX2, FMA and BMI2 (2013 or newer); this one lacks "
      "them");
#endif
}

emulator::Schedule schedule_from_name(const std::string& name) {
  if (name == "random") return emulator::Schedule::kRandom;
  PK_CHECK(name == "priority", "schedule must be \"random\" or \"priority\", got \"", name, "\"");
  return emulator::Schedule::kPriority;
}

/// Sets how the options choose who runs next.
void set_schedule(MachineOptions& options, const std::string& schedule, uint32_t num_change_points,
                  uint64_t expected_steps, bool record_trace) {
  options.schedule = schedule_from_name(schedule);
  options.num_change_points = num_change_points;
  options.expected_steps = expected_steps;
  options.record_trace = record_trace;
}

MachineOptions make_options(int num_sms, uint64_t seed, const std::string& async_completion,
                            const py::object& checks,
                            uint64_t max_warp_instructions = kMaxWarpInstructions,
                            uint32_t num_threads = 0) {
  require_processor();
  PK_CHECK(num_sms >= 1, "num_sms must be at least 1, got ", num_sms);
  MachineOptions options;
  options.num_sms = num_sms;
  options.seed = seed;
  options.completion = completion_from_name(async_completion);
  options.check_memory = options.check_init = options.check_race = options.check_sync = false;
  if (py::isinstance<py::str>(checks)) {
    enable_check(options, checks.cast<std::string>());
  } else {
    for (const py::handle name : py::iter(checks)) enable_check(options, name.cast<std::string>());
  }
  options.max_warp_instructions = max_warp_instructions;
  options.num_threads = num_threads;
  options.poll = poll_signals;
  return options;
}

// ---- reports ----

py::dict to_dict(const emulator::Site& site) {
  py::dict result;
  result["kernel"] = site.kernel;
  result["ptx"] = site.ptx;
  result["ptx_line"] = site.ptx_line;
  result["cuda_file"] = site.cuda_file;
  result["cuda_line"] = site.cuda_line;
  result["source"] = site.source;
  result["grid"] = site.grid;
  result["rank"] = site.rank;
  result["ctaid"] = py::make_tuple(site.ctaid[0], site.ctaid[1], site.ctaid[2]);
  result["thread"] = site.thread;
  return result;
}

py::dict to_dict(const emulator::Finding& finding) {
  py::list sites;
  for (const emulator::Site& site : finding.sites) sites.append(to_dict(site));
  py::dict result;
  result["kind"] = finding.kind;
  result["message"] = finding.message;
  result["sites"] = sites;
  result["occurrences"] = finding.occurrences;
  return result;
}

/// Python's name of an instruction class, in the order of the enumeration.
constexpr const char* kClassNames[] = {
    "arithmetic", "logic",   "compare",  "move",      "convert", "control", "memory", "atomic",
    "warp",       "barrier", "mbarrier", "bulk_copy", "fence",   "matrix",  "wgmma",  "address"};
static_assert(std::size(kClassNames) == static_cast<size_t>(emulator::InstructionClass::kCount));

py::dict to_dict(const emulator::Counters& counters) {
  py::dict by_class;
  for (size_t i = 0; i < std::size(kClassNames); ++i) {
    by_class[kClassNames[i]] = counters.warp_instructions[i];
  }
  py::dict result;
  result["warp_instructions"] = by_class;
  result["thread_instructions"] = counters.thread_instructions;
  result["wgmma"] = counters.wgmma;
  result["tensor_multiply_adds"] = counters.tensor_multiply_adds;
  result["global_bytes_read"] = counters.global_bytes_read;
  result["global_bytes_written"] = counters.global_bytes_written;
  result["global_footprint_bytes_read"] = counters.global_footprint_bytes_read;
  result["global_footprint_bytes_written"] = counters.global_footprint_bytes_written;
  result["shared_bytes_read"] = counters.shared_bytes_read;
  result["shared_bytes_written"] = counters.shared_bytes_written;
  result["tma_bytes_loaded"] = counters.tma_bytes_loaded;
  result["tma_bytes_stored"] = counters.tma_bytes_stored;
  result["shared_bank_conflicts"] = counters.shared_bank_conflicts;
  return result;
}

/// As the arguments of pykernels.emulator.MemoryTraffic, behind rank and name.
py::list traffic_rows(const std::vector<emulator::MemoryTraffic>& traffic) {
  py::list rows;
  for (const emulator::MemoryTraffic& row : traffic) {
    rows.append(py::make_tuple(row.rank, row.memory, row.bytes_read, row.bytes_written,
                               row.footprint_bytes_read, row.footprint_bytes_written));
  }
  return rows;
}

/// The fields of pykernels.emulator.Report.
py::dict to_dict(const emulator::Report& report) {
  py::list findings;
  for (const emulator::Finding& finding : report.findings) findings.append(to_dict(finding));
  py::dict result;
  result["findings"] = findings;
  result["counters"] = to_dict(report.counters);
  result["traffic"] = traffic_rows(report.traffic);
  result["checks"] = report.checks;
  result["notes"] = report.notes;
  result["seed"] = report.seed;
  result["async_completion"] = report.async_completion;
  result["visible_instructions"] = report.counters.visible_instructions();
  result["trace"] = to_list(report.trace);
  return result;
}

/// Messages quote the PTX, shortened at any byte: what is no UTF-8 then is replaced.
py::object text(const std::string& bytes) {
  return py::bytes(bytes).attr("decode")("utf-8", "replace");
}

/// PtxError and EmulationError as the classes of pykernels.emulator, which carry line and report.
void translate(std::exception_ptr pending) {
  try {
    if (pending) std::rethrow_exception(pending);
  } catch (const emulator::PtxError& error) {
    const py::object type = py::module_::import("pykernels.emulator.errors").attr("PtxError");
    PyErr_SetObject(type.ptr(),
                    type(text(error.what()), error.line(), text(error.source_line())).ptr());
  } catch (const emulator::EmulationError& error) {
    const py::object type = py::module_::import("pykernels.emulator.errors").attr("EmulationError");
    const py::object make_report =
        py::module_::import("pykernels.emulator.report").attr("Report").attr("from_native");
    PyErr_SetObject(type.ptr(),
                    type(text(error.what()), make_report(to_dict(error.report()))).ptr());
  }
}

// ---- modules ----

struct Kernel {
  std::shared_ptr<const emulator::LoadedModule> module;
  const emulator::Program* program;
};

void bind_program(py::module_& module) {
  py::class_<Kernel>(module, "Kernel", "An entry point of a loaded module.")
      .def_property_readonly("name", [](const Kernel& kernel) { return kernel.program->name; })
      .def_property_readonly(
          "params",
          [](const Kernel& kernel) {
            py::list params;
            for (const emulator::Parameter& parameter : kernel.program->parameters) {
              params.append(py::make_tuple(parameter.name,
                                           std::string(emulator::type_name(parameter.type)),
                                           parameter.offset, parameter.bytes, parameter.alignment));
            }
            return params;
          })
      .def_property_readonly("param_bytes",
                             [](const Kernel& kernel) { return kernel.program->parameter_bytes; })
      .def_property_readonly(
          "static_shared_bytes",
          [](const Kernel& kernel) { return kernel.program->static_shared_bytes; })
      .def_property_readonly("required_threads",
                             [](const Kernel& kernel) { return kernel.program->required_threads; })
      .def_property_readonly("max_threads",
                             [](const Kernel& kernel) { return kernel.program->max_threads; })
      .def_property_readonly("required_cluster",
                             [](const Kernel& kernel) {
                               const auto& size = kernel.program->required_cluster;
                               return py::make_tuple(size[0], size[1], size[2]);
                             })
      .def_property_readonly("max_cluster_rank",
                             [](const Kernel& kernel) { return kernel.program->max_cluster_rank; });
  module.def(
      "load_module",
      [](const std::string& text) {
        std::shared_ptr<const emulator::LoadedModule> loaded;
        {
          py::gil_scoped_release release;
          require_processor();
          loaded = emulator::load_module(text, poll_signals);
        }
        std::vector<Kernel> kernels;
        for (const auto& program : loaded->kernels) kernels.push_back({loaded, program.get()});
        return kernels;
      },
      py::arg("text"),
      "Parses and resolves PTX text; returns its kernels in the order of the text.");
  module.def(
      "check_module",
      [](const std::string& ptx) {
        emulator::ModuleCheck check;
        {
          py::gil_scoped_release release;
          check = emulator::check_module(ptx);
        }
        py::dict forms;
        for (const auto& [form, count] : check.forms) forms[text(form)] = count;
        py::list refusals;
        for (const emulator::Refusal& refusal : check.refusals) {
          refusals.append(py::make_tuple(refusal.line, text(refusal.source_line),
                                         text(refusal.form), text(refusal.message)));
        }
        return py::make_tuple(check.num_kernels, check.num_instructions, forms, refusals);
      },
      py::arg("text"),
      "Numbers of kernels and instructions, and all that is refused: line, its text, form, "
      "message.");
}

// ---- runs ----

Dim3 to_dim3(const std::array<uint32_t, 3>& dims) { return {dims[0], dims[1], dims[2]}; }

/// (address, bytes, name, writable)
using MemoryTuple = std::tuple<uint64_t, uint64_t, std::string, bool>;

MachineLaunch make_launch(const Kernel& kernel, const std::array<uint32_t, 3>& grid,
                          const std::array<uint32_t, 3>& block,
                          const std::array<uint32_t, 3>& cluster, uint32_t dynamic_shared_bytes,
                          bool programmatic_dependent, uint32_t registers, uint32_t rank,
                          const std::string& parameters, const std::vector<MemoryTuple>& memory) {
  MachineLaunch launch;
  launch.module = kernel.module;
  launch.program = kernel.program;
  launch.grid = to_dim3(grid);
  launch.block = to_dim3(block);
  launch.cluster = to_dim3(cluster);
  launch.dynamic_shared_bytes = dynamic_shared_bytes;
  launch.programmatic_dependent = programmatic_dependent;
  launch.registers = registers;
  launch.rank = rank;
  launch.parameters.assign(parameters.begin(), parameters.end());
  for (const auto& [address, bytes, name, writable] : memory) {
    launch.memory.push_back({address, bytes, name, writable});
  }
  return launch;
}

void bind_machine(py::module_& module) {
  py::class_<MachineOptions>(module, "Options", "What an emulator is made of.")
      .def(py::init(&make_options), py::arg("num_sms"), py::arg("seed"),
           py::arg("async_completion"), py::arg("checks"),
           py::arg("max_warp_instructions") = kMaxWarpInstructions, py::arg("num_threads") = 0)
      .def("set_schedule", &set_schedule, py::arg("schedule"), py::arg("num_change_points") = 3,
           py::arg("expected_steps") = 0, py::arg("record_trace") = false)
      .def(
          "set_trace",
          [](MachineOptions& options, const std::vector<TraceTuple>& steps) {
            options.trace = to_trace(steps);
          },
          py::arg("steps"));
  py::class_<MachineLaunch>(module, "MachineLaunch", "A launch as the machine takes it.")
      .def(py::init([](const Kernel& kernel, const std::array<uint32_t, 3>& grid,
                       const std::array<uint32_t, 3>& block, const std::array<uint32_t, 3>& cluster,
                       uint32_t dynamic_shared_bytes, bool programmatic_dependent,
                       uint32_t registers, uint32_t rank, const py::bytes& parameters,
                       const std::vector<MemoryTuple>& memory) {
             return make_launch(kernel, grid, block, cluster, dynamic_shared_bytes,
                                programmatic_dependent, registers, rank, parameters, memory);
           }),
           py::arg("kernel"), py::arg("grid"), py::arg("block"), py::arg("cluster"),
           py::arg("dynamic_shared_bytes"), py::arg("programmatic_dependent"), py::arg("registers"),
           py::arg("rank"), py::arg("parameters"), py::arg("memory"));
  module.def(
      "run",
      [](const MachineOptions& options, const std::vector<MachineLaunch>& launches) {
        emulator::Report report;
        {
          py::gil_scoped_release release;
          report = emulator::run_launches(options, launches);
        }
        return to_dict(report);
      },
      py::arg("options"), py::arg("launches"),
      "Runs the launches together, to their end; returns the fields of a Report.");
}

// ---- tensor maps ----

py::bytes encode_tensor_map(uint8_t type, uint64_t address, const std::vector<uint64_t>& dims,
                            const std::vector<uint64_t>& strides, const std::vector<uint32_t>& box,
                            const std::vector<uint32_t>& element_strides,
                            const std::array<uint8_t, 4>& modes) {
  PK_CHECK(!dims.empty() && dims.size() <= TensorMapFields::kMaxRank,
           "tensor map rank must be from 1 to 5, got ", dims.size());
  PK_CHECK(strides.size() + 1 == dims.size() && box.size() == dims.size() &&
               element_strides.size() == dims.size(),
           "tensor map needs ", dims.size(), " box sizes and element strides and ", dims.size() - 1,
           " strides, got ", box.size(), ", ", element_strides.size(), " and ", strides.size());
  TensorMapFields fields;
  fields.type = static_cast<TensorMapType>(type);
  fields.rank = static_cast<uint32_t>(dims.size());
  fields.address = address;
  std::copy(dims.begin(), dims.end(), fields.dims);
  std::copy(strides.begin(), strides.end(), fields.strides);
  std::copy(box.begin(), box.end(), fields.box);
  std::copy(element_strides.begin(), element_strides.end(), fields.element_strides);
  fields.interleave = static_cast<TensorMapInterleave>(modes[0]);
  fields.swizzle = static_cast<TensorMapSwizzle>(modes[1]);
  fields.l2_promotion = static_cast<TensorMapL2Promotion>(modes[2]);
  fields.fill = static_cast<TensorMapFill>(modes[3]);
  check_tensor_map(fields);
  const TensorMap map = encode_emulated(fields);
  return {reinterpret_cast<const char*>(map.bytes), sizeof(map.bytes)};
}

void bind_device(py::module_& module) {
  py::class_<emulator::EmulatedDevice, Device>(
      module, "EmulatedDevice", "Runs launches in the emulator and keeps their reports.")
      .def(py::init([](int num_sms, uint64_t seed, const std::string& async_completion,
                       const py::object& checks, uint64_t max_warp_instructions,
                       const std::string& schedule, uint32_t num_change_points,
                       uint64_t expected_steps, bool record_trace,
                       const std::optional<std::vector<std::vector<TraceTuple>>>& traces,
                       uint32_t num_threads) {
             MachineOptions options = make_options(num_sms, seed, async_completion, checks,
                                                   max_warp_instructions, num_threads);
             set_schedule(options, schedule, num_change_points, expected_steps, record_trace);
             auto device = std::make_unique<emulator::EmulatedDevice>(options);
             if (traces) {
               std::vector<std::shared_ptr<const emulator::Trace>> converted;
               for (const auto& steps : *traces) converted.push_back(to_trace(steps));
               device->replay(std::move(converted));
             }
             return device;
           }),
           py::kw_only(), py::arg("num_sms") = 132, py::arg("seed") = 0,
           py::arg("async_completion") = "late", py::arg("checks") = "all",
           py::arg("max_warp_instructions") = kMaxWarpInstructions, py::arg("schedule") = "random",
           py::arg("num_change_points") = 3, py::arg("expected_steps") = 0,
           py::arg("record_trace") = false, py::arg("traces") = py::none(),
           py::arg("num_threads") = 0)
      .def_property_readonly(
          "reports",
          [](const emulator::EmulatedDevice& device) {
            py::list reports;
            for (const auto& [kernel, report] : device.reports()) {
              reports.append(py::make_tuple(kernel, to_dict(report)));
            }
            return reports;
          },
          "(kernel name, fields of its Report) of every launch so far.");
}

}  // namespace

void bind_emulator(py::module_& module) {
  py::register_exception_translator(translate);
  bind_device(module);
  py::module_ part = module.def_submodule("emulator", "What pykernels.emulator is made of.");
  bind_program(part);
  bind_machine(part);
  part.def(
      "encode_tensor_map", &encode_tensor_map, py::arg("type"), py::arg("address"), py::arg("dims"),
      py::arg("strides"), py::arg("box"), py::arg("element_strides"), py::arg("modes"),
      "The 128 bytes of a tiled tensor map, dimension 0 the contiguous one; modes are interleave, "
      "swizzle, L2 promotion and fill, all as the driver numbers them.");
  part.def(
      "gpu_facts",
      [] {
        py::list facts;
        for (const emulator::GpuFact& fact : emulator::gpu_facts()) {
          facts.append(py::make_tuple(fact.name, fact.statement, fact.test, fact.result));
        }
        return facts;
      },
      "(name, statement, test id, result file) of every assumption about the hardware.");
}

}  // namespace pykernels::bindings
