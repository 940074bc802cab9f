// One launch: OS threads take clusters of blocks in the order of the grid and run them.
#include "launch.h"
#include "fault.h"
#include "memory.h"
#include "module.h"
#include <pthread.h>
#include <signal.h>
#include <algorithm>
#include <climits>
#include <system_error>

namespace emu {

static constexpr unsigned most_teams = 512;

// Stacks are kept from launch to launch: mapping a thousand of them costs more than most launches.
static std::mutex pool_mutex;
static std::vector<std::unique_ptr<Stacks>> pool;

static std::unique_ptr<Stacks> take_stacks(int count) {
    {
        std::lock_guard<std::mutex> guard(pool_mutex);
        auto fits = std::find_if(pool.begin(), pool.end(), [count](auto& s) { return s->count() >= count; });
        if (fits != pool.end()) {
            std::unique_ptr<Stacks> taken = std::move(*fits);
            pool.erase(fits);
            return taken;
        }
    }
    return std::make_unique<Stacks>(count);
}

static void keep_stacks(std::unique_ptr<Stacks> stacks) {
    std::lock_guard<std::mutex> guard(pool_mutex);
    if (pool.size() < 64) pool.push_back(std::move(stacks));
}

static unsigned product(const uint32_t (&extent)[3]) { return extent[0] * extent[1] * extent[2]; }
static dim3 as_dim3(const uint32_t (&extent)[3]) { return {extent[0], extent[1], extent[2]}; }

Grid::Grid(const LaunchSpec& launch) : spec(launch), stop_above(LONG_MAX) {
    blocks = long(spec.grid[0]) * spec.grid[1] * spec.grid[2];
    cluster_size = product(spec.cluster);
    clusters = blocks / cluster_size;
    spec.arguments->blocks = blocks;
    if (spec.checks & check_race) global_races = std::make_unique<GlobalRaces>();
}

static void prepare_block(Block& block, Worker& worker, Cluster& cluster, unsigned rank) {
    const LaunchSpec& spec = worker.grid.spec;
    block.worker = &worker;
    block.cluster = &cluster;
    block.rank = rank;
    block.threads = product(spec.block);
    block.fibers = std::vector<Fiber>(block.threads);
    block.warps = std::vector<Warp>((block.threads + 31) / 32);
    for (unsigned i = 0; i < block.threads; ++i) {
        Fiber& f = block.fibers[i];
        f.block = &block;
        f.index = i;
        f.warp = i / 32;
        f.lane = i % 32;
        f.thread_idx = {i % spec.block[0], i / spec.block[0] % spec.block[1], i / (spec.block[0] * spec.block[1])};
        f.block_dim = as_dim3(spec.block);
        f.grid_dim = as_dim3(spec.grid);
        block.warps[f.warp].present |= 1u << f.lane;
    }
}

// Clusters tile the grid along each axis; ranks count within a cluster along x first.
static uint3 block_index(const LaunchSpec& spec, long cluster, unsigned rank) {
    const uint32_t(&c)[3] = spec.cluster;
    const long across = spec.grid[0] / c[0], down = spec.grid[1] / c[1];
    return {unsigned(cluster % across) * c[0] + rank % c[0], unsigned(cluster / across % down) * c[1] + rank / c[0] % c[1],
            unsigned(cluster / across / down) * c[2] + rank / (c[0] * c[1])};
}

static void reset_block(Block& block, long cluster) {
    const LaunchSpec& spec = block.worker->grid.spec;
    const uint3 index = block_index(spec, cluster, block.rank);
    block.number = (long(index.z) * spec.grid[1] + index.y) * spec.grid[0] + index.x;
    for (Fiber& fiber : block.fibers) fiber.block_idx = index;
    for (Warp& warp : block.warps) {
        warp.exited = 0;
        warp.calls.clear();
    }
    for (Barrier& barrier : block.barriers) barrier = Barrier();
    block.actions.clear();
    block.states.clear();
    block.output.clear();
    block.ended = false;
    block.clock_reads = 0;
    block.counters.switches = 0;
    block.scheduler.schedule.seed(Schedule::Order(spec.schedule), spec.seed, uint64_t(block.number));
    block.shared.poison();
    block.counting = spec.checks & check_count;
    block.counts.start(unsigned(block.warps.size()));
    block.timeline.start(unsigned(block.warps.size()), block.number == 0);
    if (RaceCheck* races = block.cluster->races.get())
        for (Fiber& fiber : block.fibers) fiber.order = &races->thread(block.rank, fiber.index);
    start_threads(block);
}

static void note_error(Grid& grid, std::unique_ptr<Error> error) {
    std::lock_guard<std::mutex> guard(grid.mutex);
    if (grid.error && grid.error->cluster <= error->cluster) return;
    grid.stop_above = std::min(grid.stop_above.load(), error->cluster);
    grid.error = std::move(error);
}

void met(Block& block, unsigned warp, uint32_t lanes) {
    const Warp& w = block.warps[warp];
    if (lanes != (w.present & ~w.exited)) return;
    block.counts.meet(warp);
    if (!block.cluster->races) return;
    for (; lanes; lanes &= lanes - 1) {
        ThreadOrder& order = *block.fibers[warp * 32 + unsigned(__builtin_ctz(lanes))].order;
        ++order.exchanges;
        ++order.step;
    }
}

static void merge_races(std::map<std::string, FoundRace>& all, const RaceCheck& races) {
    for (auto& [key, race] : races.found()) {
        auto [at, is_new] = all.emplace(key, race);
        if (is_new) continue;
        const uint64_t count = at->second.count + race.count;
        if (race.block < at->second.block) at->second = race;        // the first block in the grid's order is shown
        at->second.count = count;
    }
}

static void collect_reports(Block& block) {
    Grid& grid = block.worker->grid;
    block.counts.settle_all();
    block.counts.each([&grid](const TrafficKey& key, const Traffic& traffic) { grid.traffic[key] += traffic; });
    block.counts.clear();
    for (auto& [key, waits] : block.timeline.waits()) {
        Waits& sum = grid.waits[key];
        sum.count += waits.count;
        sum.held += waits.held;
        sum.steps += waits.steps;
        if (sum.object.empty()) sum.object = waits.object;
    }
    grid.meets.insert(grid.meets.end(), block.timeline.kept().begin(), block.timeline.kept().end());
    block.timeline.clear();
    if (block.rank == 0 && block.cluster->races) block.cluster->races->settle();
    if (block.rank == 0 && block.cluster->races) merge_races(grid.races, *block.cluster->races);
    if (grid.global_races) grid.global_races->settle(block);
}

static void collect(Block& block) {
    Grid& grid = block.worker->grid;
    std::lock_guard<std::mutex> guard(grid.mutex);
    if (!block.output.empty()) grid.output[block.number] = std::move(block.output);
    if (!block.trace.empty()) grid.trace[block.number] = std::move(block.trace);
    grid.counters += block.counters;
    block.counters = {};
    collect_reports(block);
    block.trace.clear();
}

// The team's next cluster, agreed between its OS threads; false when there is no more.
static bool next_cluster(Block& block) {
    Cluster& cluster = *block.cluster;
    Grid& grid = block.worker->grid;
    if (block.rank == 0) {
        cluster.number = grid.next++;
        if (cluster.number >= grid.clusters || cluster.number > grid.stop_above) cluster.number = -1;
        cluster.broken = false;
        if (grid.spec.checks & check_race) cluster.races = std::make_unique<RaceCheck>(grid.cluster_size, block.threads);
    }
    meet_cluster(block);
    return cluster.number >= 0 && !cluster.deserted;
}

static void run_block(Block& block) {
    Worker& w = *block.worker;
    reset_block(block, block.cluster->number);
    meet_cluster(block);
    if (block.rank == 0) ++w.grid.active;
    if (await_turn(block)) run_threads(block);
    if (w.error) note_error(w.grid, std::move(w.error));
    end_turns(block, block.live != 0 || !block.actions.empty());
    meet_cluster(block);
    if (block.rank == 0) end_spinning(block), --w.grid.active;
    collect(block);
}

static void work(Grid& grid, Cluster& cluster, unsigned rank) {
    AlternateStack alternate;
    std::unique_ptr<Stacks> stacks = take_stacks(int(product(grid.spec.block)));
    Worker w{grid, *stacks};
    worker = &w;
    prepare_block(w.block, w, cluster, rank);
    SharedLayout layout;
    grid.spec.shared_layout(reinterpret_cast<void**>(&layout));
    w.block.shared.attach(layout, *grid.spec.module, grid.spec.shared_bytes, grid.spec.checks & check_init);
    cluster.blocks[rank] = &w.block;
    {
        std::lock_guard<std::mutex> guard(grid.mutex);
        grid.workers.push_back({&w, pthread_self(), 0});
    }
    while (next_cluster(w.block)) run_block(w.block);
    {
        std::lock_guard<std::mutex> guard(grid.mutex);
        grid.workers.erase(std::find_if(grid.workers.begin(), grid.workers.end(), [&w](auto& r) { return r.worker == &w; }));
    }
    w.block.shared.detach();
    worker = nullptr;
    keep_stacks(std::move(stacks));
}

static void refuse(Grid& grid, Cluster& cluster, const std::exception& e) {
    note_error(grid, std::make_unique<Error>(Error{-1, "EmulatorError", std::string("a worker could not start: ") + e.what()}));
    desert(cluster);
}

static void worker_main(Grid& grid, Cluster& cluster, unsigned rank) {
    try {
        work(grid, cluster, rank);
    } catch (const std::exception& e) {
        refuse(grid, cluster, e);
    }
    std::lock_guard<std::mutex> guard(grid.mutex);
    if (--grid.running == 0) grid.done.notify_all();
}

// A team runs one cluster at a time, an OS thread for each of its blocks.
static void start_team(Grid& grid) {
    grid.teams.push_back(std::make_unique<Cluster>());
    Cluster& cluster = *grid.teams.back();
    cluster.blocks.resize(grid.cluster_size);
    for (unsigned rank = 0; rank < grid.cluster_size; ++rank) {
        std::unique_lock<std::mutex> lock(grid.mutex);
        try {
            grid.threads.emplace_back(worker_main, std::ref(grid), std::ref(cluster), rank);
            ++grid.running;
        } catch (const std::system_error& e) {                    // no more threads: the teams there are do the work
            lock.unlock();
            if (rank > 0 || grid.teams.size() == 1) refuse(grid, cluster, e);
            return;
        }
    }
}

bool add_worker(Grid& grid) {
    std::lock_guard<std::mutex> guard(grid.starting);
    if (grid.next >= grid.clusters || grid.teams.size() >= most_teams) return false;
    start_team(grid);
    return true;
}

void start(Grid& grid) {
    std::lock_guard<std::mutex> guard(grid.starting);
    const long teams = std::min<long>(std::max(1u, grid.spec.workers / grid.cluster_size), grid.clusters);
    for (long i = 0; i < teams; ++i) start_team(grid);
}

// Threads that have not come by the scheduler since the last look get a signal: the handler lets others run, or, after
// a stop, abandons them. That ends loops which wait for memory to change and never yield.
static void nudge(Grid& grid) {
    for (Grid::Running& r : grid.workers) {
        uint64_t progress = r.worker->progress.load(std::memory_order_relaxed);
        if (progress == r.seen) pthread_kill(r.thread, SIGURG);
        r.seen = progress;
    }
}

bool wait(Grid& grid, double seconds) {
    std::unique_lock<std::mutex> lock(grid.mutex);
    auto done = [&grid] { return grid.running == 0; };
    if (grid.done.wait_for(lock, std::chrono::duration<double>(seconds), done)) return true;
    nudge(grid);
    return false;
}

// By now no worker runs, so none starts another.
Grid::~Grid() {
    for (std::thread& thread : threads) thread.join();
}

}  // namespace emu
