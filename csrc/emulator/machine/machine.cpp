// Grids and their clusters: checking a launch, making CTAs resident, retiring them; findings.
#include "emulator/machine/machine.h"

#include <sched.h>

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/source_chain.h"
#include "emulator/check/sync.h"
#include "emulator/gpu_facts.h"
#include "emulator/machine/rank_traffic.h"

namespace pykernels::emulator {
namespace {

// Compute capability 9.0, CUDA programming guide, "Features and technical specifications".
constexpr uint64_t kMaxThreadsPerCta = 1024;
constexpr uint64_t kMaxThreadsPerSm = 2048;
constexpr uint64_t kMaxCtasPerSm = 32;
constexpr uint64_t kRegistersPerSm = 65536;
constexpr uint64_t kSharedBytesPerSm = 228 * 1024;
constexpr uint64_t kReservedSharedBytes = 1024;  // of each CTA, by the system
constexpr uint64_t kMaxSharedBytes = 232448;
constexpr uint64_t kMaxClusterSize = 16;
constexpr uint64_t kPortableClusterSize = 8;
constexpr uint32_t kMaxGridX = 0x7fffffff;
constexpr uint32_t kMaxGridYz = 65535;
constexpr uint32_t kDynamicAlignment = 1024;

uint64_t volume(const Dim3& dim) { return uint64_t{dim.x} * dim.y * dim.z; }

std::string text(const Dim3& dim) { return concat("(", dim.x, ", ", dim.y, ", ", dim.z, ")"); }

uint32_t launch_registers(const Grid& grid) {
  if (grid.launch.registers != 0) return grid.launch.registers;
  return std::min<uint32_t>(static_cast<uint32_t>(kRegistersPerSm) / grid.threads() / 8 * 8, 255);
}

bool is_on(const MachineOptions& options, const std::string& kind) {
  return (kind != "memory" || options.check_memory) && (kind != "init" || options.check_init) &&
         (kind != "sync" || options.check_sync);
}

std::array<uint32_t, 3> coordinates(uint64_t index, const Dim3& size) {
  return {static_cast<uint32_t>(index % size.x), static_cast<uint32_t>(index / size.x % size.y),
          static_cast<uint32_t>(index / size.x / size.y)};
}

}  // namespace

uint32_t max_ctas_per_sm(uint32_t threads, uint32_t registers, uint32_t shared_bytes) {
  const uint64_t whole_warps = (uint64_t{threads} + kWarpSize - 1) / kWarpSize * kWarpSize;
  uint64_t fit = std::min(kMaxCtasPerSm, kMaxThreadsPerSm / whole_warps);
  fit = std::min(fit, kSharedBytesPerSm / (shared_bytes + kReservedSharedBytes));
  if (registers != 0) fit = std::min(fit, kRegistersPerSm / (registers * whole_warps));
  return static_cast<uint32_t>(std::max<uint64_t>(fit, 1));
}

uint32_t Grid::shared_bytes() const {
  const uint32_t fixed = launch.program->static_shared_bytes;
  if (launch.dynamic_shared_bytes == 0) return fixed;
  return (fixed + kDynamicAlignment - 1) / kDynamicAlignment * kDynamicAlignment +
         launch.dynamic_shared_bytes;
}

double Grid::occupied(uint64_t clusters) const {
  return static_cast<double>(clusters) * cluster_size / ctas_per_sm;
}

uint32_t MachineOptions::threads() const {
  if (num_threads != 0) return num_threads;
  cpu_set_t usable;
  CPU_ZERO(&usable);
  if (sched_getaffinity(0, sizeof(usable), &usable) != 0) return 1;
  return static_cast<uint32_t>(std::max(CPU_COUNT(&usable), 1));
}

Machine::Machine(const MachineOptions& options, std::vector<MachineLaunch> launches, PagePool* pool)
    : options_(options),
      random_(Random(options.seed).next()),
      pool_(pool == nullptr ? &own_pool_ : pool) {
  report_.seed = options.seed;
  static constexpr const char* kModes[] = {"early", "late", "random"};
  report_.async_completion = kModes[static_cast<size_t>(options.completion)];
  if (options.check_memory) report_.checks.emplace_back("memory");
  if (options.check_init) report_.checks.emplace_back("init");
  if (options.check_race) report_.checks.emplace_back("race");
  if (options.check_sync) report_.checks.emplace_back("sync");
  if (options.check_race) races_ = std::make_unique<RaceDetector>(*this);
  if (has_several_ranks(launches)) traffic_ = std::make_unique<RankTraffic>(launches);
  for (MachineLaunch& launch : launches) {
    auto grid = std::make_unique<Grid>();
    grid->index = static_cast<int>(grids_.size());
    grid->launch = std::move(launch);
    check_launch(*grid);
    for (const Allocation& allocation : grid->launch.memory) allocations_.add(allocation);
    for (const auto& [name, place] : grid->launch.module->storage.variables) {
      allocations_.add({reinterpret_cast<uint64_t>(place.first), place.second, name, true});
    }
    const Dim3& size = grid->launch.cluster;
    grid->cluster_size = static_cast<uint32_t>(volume(size));
    grid->num_clusters = volume(grid->launch.grid) / grid->cluster_size;
    if (grid->launch.end_cluster < grid->num_clusters || grid->launch.first_cluster != 0) {
      take_slice(*grid);
    }
    grid->ctas_per_sm =
        max_ctas_per_sm(grid->threads(), grid->launch.registers, grid->shared_bytes());
    if (grid->launch.programmatic_dependent && grid->launch.follows_list)
      grid->prerequisite = last_in_stream(grid->launch);
    find_precedents(*grid);
    if (grid->launch.program->has_contractible_arithmetic) {
      note("'" + grid->launch.program->name +
           "' multiplies and adds without .rn: ptxas may contract them, and the GPU may round "
           "differently");
    }
    grids_.push_back(std::move(grid));
  }
}

Machine::~Machine() = default;

/// The last launch so far in this one's stream, or nullptr.
Grid* Machine::last_in_stream(const MachineLaunch& launch) const {
  const auto found = std::find_if(grids_.rbegin(), grids_.rend(), [&](const auto& grid) {
    return grid->launch.rank == launch.rank && grid->launch.stream == launch.stream;
  });
  return found == grids_.rend() ? nullptr : found->get();
}

/// A launch that waits for another is behind all that the other is behind.
void Machine::find_precedents(Grid& grid) const {
  auto precedents = std::make_shared<std::vector<bool>>(grids_.size() + 1);
  precedents->back() = true;
  const auto add = [&](const Grid* before) {
    if (before == nullptr) return;
    for (size_t i = 0; i < before->precedents->size(); ++i) {
      if ((*before->precedents)[i]) (*precedents)[i] = true;
    }
  };
  add(grid.prerequisite);
  for (const size_t index : grid.launch.after) {
    grid.after.push_back(grids_.at(index).get());
    add(grid.after.back());
  }
  grid.precedents = precedents;
}

std::unique_ptr<RaceDetector> Machine::take_races() { return std::move(races_); }

/// Only some of the grid's clusters run, and draw other numbers than the rest.
void Machine::take_slice(Grid& grid) {
  grid.num_clusters = std::min(grid.launch.end_cluster, grid.num_clusters);
  grid.next_cluster = grid.finished_clusters = grid.launch.first_cluster;
  random_ = Random(Random(options_.seed ^ ~grid.launch.first_cluster).next());
}

void Machine::check_launch(const Grid& grid) {
  const MachineLaunch& launch = grid.launch;
  const Program& program = *launch.program;
  const uint64_t threads = volume(launch.block);
  const std::string who = concat("launch of '", program.name, "': ");
  PK_CHECK(threads >= 1 && threads <= kMaxThreadsPerCta && launch.block.x <= 1024 &&
               launch.block.y <= 1024 && launch.block.z <= 64,
           who, "the block must have 1 to 1024 threads (z at most 64), got ", text(launch.block));
  PK_CHECK(volume(launch.grid) >= 1 && launch.grid.x <= kMaxGridX && launch.grid.y <= kMaxGridYz &&
               launch.grid.z <= kMaxGridYz,
           who, "the grid must lie in (1..2^31-1, 1..65535, 1..65535), got ", text(launch.grid));
  const uint64_t cluster = volume(launch.cluster);
  PK_CHECK(cluster >= 1 && cluster <= kMaxClusterSize && launch.cluster.x <= kMaxClusterSize &&
               launch.cluster.y <= kMaxClusterSize && launch.cluster.z <= kMaxClusterSize,
           who, "a cluster must have 1 to 16 CTAs, got ", text(launch.cluster));
  if (cluster > kPortableClusterSize) {
    note(concat("'", program.name, "' has clusters of ", cluster, " CTAs: beyond ",
                kPortableClusterSize,
                " a launch needs the attribute NON_PORTABLE_CLUSTER_SIZE_ALLOWED"));
  }
  PK_CHECK(launch.grid.x % launch.cluster.x == 0 && launch.grid.y % launch.cluster.y == 0 &&
               launch.grid.z % launch.cluster.z == 0,
           who, "the grid must be a multiple of the cluster, got ", text(launch.grid), " and ",
           text(launch.cluster));
  PK_CHECK(options_.num_sms >= 1 && cluster <= static_cast<uint64_t>(options_.num_sms), who,
           "a cluster of ", cluster, " CTAs does not fit ", options_.num_sms, " SMs");
  PK_CHECK(
      launch.dynamic_shared_bytes <= kMaxSharedBytes &&
          uint64_t{program.static_shared_bytes} + launch.dynamic_shared_bytes <= kMaxSharedBytes,
      who, "a CTA has at most ", kMaxSharedBytes, " bytes of shared memory, got ",
      program.static_shared_bytes, " static and ", launch.dynamic_shared_bytes, " dynamic");
  PK_CHECK(launch.parameters.size() >= program.parameter_bytes, who, "the parameters have ",
           program.parameter_bytes, " bytes, got ", launch.parameters.size());
  PK_CHECK(program.required_threads == 0 || threads == program.required_threads, who,
           "the kernel was compiled for ", program.required_threads, " threads (.reqntid), got ",
           threads);
  PK_CHECK(program.max_threads == 0 || threads <= program.max_threads, who,
           "the kernel was compiled for at most ", program.max_threads, " threads (.maxntid), got ",
           threads);
  const auto& wanted = program.required_cluster;
  PK_CHECK(wanted[0] == 0 || (launch.cluster.x == wanted[0] && launch.cluster.y == wanted[1] &&
                              launch.cluster.z == wanted[2]),
           who, "the kernel was compiled for clusters of (", wanted[0], ", ", wanted[1], ", ",
           wanted[2], ") (.reqnctapercluster), got ", text(launch.cluster));
  PK_CHECK(program.max_cluster_rank == 0 || cluster <= program.max_cluster_rank, who,
           "the kernel was compiled for clusters of at most ", program.max_cluster_rank,
           " CTAs (.maxclusterrank), got ", cluster);
  const uint64_t whole_warps = (threads + kWarpSize - 1) / kWarpSize * kWarpSize;
  PK_CHECK(launch.registers * whole_warps <= kRegistersPerSm, who, "an SM has ", kRegistersPerSm,
           " registers, got ", launch.registers, " for each of ", whole_warps, " threads");
  PK_CHECK(!program.instructions.empty(), who, "the kernel has no instructions");
}

void Machine::start_cluster(Grid& grid) {
  note_change();
  auto cluster = std::make_unique<Cluster>();
  const Dim3& size = grid.launch.cluster;
  const Dim3 clusters{grid.launch.grid.x / size.x, grid.launch.grid.y / size.y,
                      grid.launch.grid.z / size.z};
  cluster->grid = &grid;
  cluster->index = grid.next_cluster++;
  cluster->cluster_ctaid = coordinates(cluster->index, clusters);
  record({TraceStep::Kind::kStart, static_cast<uint32_t>(grid.index), cluster->index, 0, 0});
  const uint32_t threads = grid.threads();
  const uint32_t num_warps = (threads + kWarpSize - 1) / kWarpSize;
  const uint32_t shared_bytes = grid.shared_bytes();
  if (grid.launch.dynamic_shared_bytes != 0 &&
      grid.launch.program->static_shared_bytes % kDynamicAlignment != 0) {
    rely_on(*this, Fact::kDynamicSharedAlignment);
  }
  for (uint32_t rank = 0; rank < grid.cluster_size; ++rank) {
    auto cta = std::make_unique<Cta>();
    const std::array<uint32_t, 3> inner = coordinates(rank, size);
    cta->machine = this;
    cta->grid = &grid;
    cta->cluster = cluster.get();
    cta->rank = rank;
    cta->ctaid = {cluster->cluster_ctaid[0] * size.x + inner[0],
                  cluster->cluster_ctaid[1] * size.y + inner[1],
                  cluster->cluster_ctaid[2] * size.z + inner[2]};
    cta->shared.assign(shared_bytes, 0xff);
    if (options_.check_init) cta->shared_initialised.assign(shared_bytes, 0);
    cta->num_threads = cta->live_threads = threads;
    cta->warp_registers.assign(num_warps, launch_registers(grid));
    cta->live_warps = num_warps;
    cluster->live_threads += threads;
    cluster->ctas.push_back(std::move(cta));
  }
  active_.push_back(cluster.get());
  for (const auto& cta : cluster->ctas) {
    for (uint32_t index = 0; index < num_warps; ++index) {
      cta->warps.push_back(
          std::make_unique<Warp>(*this, *cta, *grid.launch.program, static_cast<int>(index)));
      if (grid.launch.programmatic_dependent && options_.check_sync)
        cta->warps.back()->before_grid_wait_ = cta->warps.back()->live();
      if (prioritised()) cta->warps.back()->priority = first_priority();
      add_runnable(*cta->warps.back());
    }
  }
  if (races_ != nullptr) races_->start(*cluster);
  grid.resident.push_back(std::move(cluster));
}

/// CTAs whose last thread has ended: nothing in flight may touch their shared memory any more.
void Machine::end_ctas(Cluster& cluster) {
  for (const auto& cta : cluster.ctas) {
    if (cta->exited || cta->live_threads != 0) continue;
    report_unfinished_operations(*this, *cta);
    if (races_ != nullptr) races_->end(*cta);
    for (const auto& operation : std::deque(cluster.async.operations())) {
      if (operation->ready() && operation->touches(*cta)) AsyncQueue::force(*this, *operation);
    }
    report_unfinished_barriers(*this, *cta);
    cta->exited = true;
    if (!cta->launched_dependents) ++cta->grid->dependents_launched;
    cta->launched_dependents = true;
  }
}

/// The cluster's threads have all ended: what it still has in flight completes, and its place
/// becomes free.
void Machine::retire(Cluster& cluster) {
  cluster.async.complete_ready(*this);
  Grid& grid = *cluster.grid;
  ++grid.finished_clusters;
  active_.erase(std::find(active_.begin(), active_.end(), &cluster));
  if (current_ == &cluster) current_ = nullptr;
  const auto place = std::find_if(grid.resident.begin(), grid.resident.end(),
                                  [&](const auto& resident) { return resident.get() == &cluster; });
  grid.resident.erase(place);
  if (grid.finished()) grid.wake_all();
}

Site make_site(const MachineLaunch& launch, const Instruction& inst, int grid,
               const std::array<uint32_t, 3>& ctaid, int thread) {
  Site site;
  const Program& program = *launch.program;
  site.kernel = program.name;
  if (inst.statement < program.texts.size()) site.ptx = program.texts[inst.statement];
  if (inst.statement < program.locations.size()) {
    const SourceLocation& location = program.locations[inst.statement];
    site.ptx_line = location.ptx_line;
    site.cuda_line = location.line;
    const auto& files = launch.module->parsed.files;
    if (const auto file = files.find(location.file); file != files.end())
      site.cuda_file = file->second;
  }
  site.grid = grid;
  site.rank = launch.rank;
  site.ctaid = ctaid;
  site.thread = thread;
  return site;
}

std::string Machine::launch_text(int grid) const {
  if (grids_.size() == 1) return {};
  return concat(" of launch ", grid, " on rank ", grids_[static_cast<size_t>(grid)]->launch.rank);
}

Site Machine::site(const Warp& warp, const Instruction& inst, int lane) const {
  const Cta& cta = const_cast<Warp&>(warp).cta();
  return make_site(cta.grid->launch, inst, cta.grid->index, cta.ctaid,
                   lane >= 0 ? warp.index() * kWarpSize + lane : -1);
}

void Machine::report(const std::string& kind, const std::string& message, const Warp& warp,
                     const Instruction& inst, int lane) {
  if (!is_on(options_, kind)) return;
  report(Finding{kind, message, {site(warp, inst, lane)}, 1});
}

void Machine::report(const std::string& kind, const std::string& message, const Party& first,
                     const Party& second) {
  if (!is_on(options_, kind)) return;
  report(Finding{kind,
                 message,
                 {site(*first.warp, *first.instruction, first.lane),
                  site(*second.warp, *second.instruction, second.lane)},
                 1});
}

void Machine::report(Finding finding) {
  Finding* added = report_.add(std::move(finding));
  if (added == nullptr) return;
  for (Site& site : added->sites) {
    const ParsedModule& module = grids_[static_cast<size_t>(site.grid)]->launch.module->parsed;
    site.source = source_chain(module, site.ptx_line);
  }
}

void Machine::fail(const std::string& kind, const std::string& message, const Warp& warp,
                   const Instruction& inst, int lane) {
  end_with(Finding{kind, message, {site(warp, inst, lane)}, 1});
}

void Machine::fail(const std::string& kind, const std::string& message) {
  end_with(Finding{kind, message, {}, 1});
}

void Machine::count_traffic(uint64_t address, uint64_t bytes, AccessKind kind, uint64_t asked) {
  // The cluster's rank, not the issuing warp's: a copy that nobody waited for may outlive its warp.
  traffic_->add(current_->grid->launch.rank, address, bytes, kind, asked);
}

void Machine::count_footprint() {
  if (traffic_ != nullptr) report_.traffic = traffic_->rows();
  report_.counters.global_footprint_bytes_read = read_.bytes();
  report_.counters.global_footprint_bytes_written = written_.bytes();
}

void Machine::end_with(Finding finding) {
  if (current_warp_ != nullptr) record_run(*current_warp_, current_budget_);
  count_footprint();
  std::string text = concat(finding.kind, ": ", finding.message);
  if (!finding.sites.empty() && finding.kind != "deadlock") {  // whose message has them all
    const Site& site = finding.sites.front();
    const ParsedModule& module = grids_[static_cast<size_t>(site.grid)]->launch.module->parsed;
    const std::string source = source_chain(module, site.ptx_line);
    text += concat("\n  in ", site.kernel, ", PTX line ", site.ptx_line, ": ", site.ptx);
    if (!source.empty()) text += "\n  from " + source;
    text += concat("\n  CTA (", site.ctaid[0], ", ", site.ctaid[1], ", ", site.ctaid[2], ")",
                   launch_text(site.grid));
    if (site.thread >= 0) text += concat(", thread ", site.thread);
  }
  report(std::move(finding));
  throw EmulationError(text, report_);
}

bool Machine::has_note(const std::string& text) const {
  return std::find(report_.notes.begin(), report_.notes.end(), text) != report_.notes.end();
}

void Machine::note(const std::string& text) {
  if (!has_note(text)) report_.notes.push_back(text);
}

Cta& Machine::cluster_cta(Warp& warp, const Instruction& inst, int lane, uint32_t shared_address,
                          uint32_t* offset) {
  const uint32_t rank = shared_address >> kClusterRankShift;
  *offset = shared_offset(shared_address);
  Cluster& cluster = *warp.cta().cluster;
  if (rank >= cluster.ctas.size()) {
    fail("memory",
         concat("shared::cluster address ", hexadecimal(shared_address), " names rank ", rank,
                " in a cluster of ", cluster.ctas.size()),
         warp, inst, lane);
  }
  Cta& cta = *cluster.ctas[rank];
  if (cta.exited || cta.live_threads == 0) {
    fail("sync",
         concat("access to the shared memory of the CTA of rank ", rank, ", which has ended"), warp,
         inst, lane);
  }
  return cta;
}

}  // namespace pykernels::emulator
