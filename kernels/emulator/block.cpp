// Threads of a block taking turns: waiting, waking, exiting, and what happens when nobody can go on.
#include "grid.h"
#include "module.h"

namespace emu {

thread_local __attribute__((tls_model("initial-exec"))) Worker* worker = nullptr;

const Thread* thread() { return worker->current; }
Fiber& self() { return *(worker->action ? worker->action->origin : worker->current); }
Block& block() { return worker->block; }


static void run_action(Block& block, size_t i) {
    Action action = std::move(block.actions[i]);
    block.actions.erase(block.actions.begin() + long(i));
    block.worker->action = &action;
    action.run();
    block.worker->action = nullptr;
}

// Asynchronous work that the schedule wants done before another thread runs.
static void run_early_actions(Block& block) {
    Schedule& schedule = block.scheduler.schedule;
    if (schedule.order == Schedule::reverse)
        while (!block.actions.empty()) run_action(block, 0);
    if (schedule.order == Schedule::random && !block.actions.empty() && schedule.below(4) == 0)
        run_action(block, schedule.below(unsigned(block.actions.size())));
}

// The schedule had no thread left to run.
static void run_late_action(Block& block) {
    Schedule& schedule = block.scheduler.schedule;
    run_action(block, schedule.order == Schedule::random ? schedule.below(unsigned(block.actions.size())) : 0);
}

[[noreturn]] static void deadlock(Block& block);

static timespec monotonic() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now;
}

// All threads of the cluster poll and none has got anywhere. Lets other clusters run, starts one that nobody works on
// yet, and gives up when every cluster has polled for seconds.
static void spin(Block& block) {
    Cluster& cluster = *block.cluster;
    Grid& grid = block.worker->grid;
    if (++cluster.polls < 16) return;
    const timespec pause{0, 20000}, now = monotonic();
    if (!cluster.spinning) {
        cluster.spinning = true;
        cluster.spinning_since = now;
        ++grid.spinning;
    }
    if (grid.spinning < grid.active || add_worker(grid)) cluster.spinning_since = now;
    if (now.tv_sec - cluster.spinning_since.tv_sec >= 3) deadlock(block);
    nanosleep(&pause, nullptr);
}

void end_spinning(Block& block) {
    Cluster& cluster = *block.cluster;
    cluster.polls = 0;
    if (!cluster.spinning) return;
    cluster.spinning = false;
    --block.worker->grid.spinning;
}

// Every thread has exited and every action has run.
static Fiber* finish(Block& block) {
    for (auto& state : block.states)
        if (state) state->block_finished();
    if (const void* p = block.shared.stray_write())
        fail("OutOfBounds", 0, "something was written %s; check=(\"memory\",) says by which line", describe_address(p).c_str());
    return nullptr;
}

// The thread to run next; null when the block is done.
static Fiber* next_fiber(Block& block) {
    for (;;) {
        if (block.worker->grid.stopped(block)) leave();
        if (!block.actions.empty()) run_early_actions(block);
        if (block.scheduler.any_ready()) return &block.fibers[block.scheduler.take()];
        if (!block.actions.empty()) run_late_action(block);
        else if (hand_over(block, Turn::ready)) continue;
        else if (block.scheduler.any_yielded()) {
            spin(block);
            hand_over(block, Turn::polling);
            block.scheduler.revive();
        }
        else if (hand_over(block, Turn::polling)) continue;
        else if (block.live == 0) return finish(block);
        else deadlock(block);
    }
}

static void run(Fiber* from, Fiber* to) {
    Worker& w = *worker;
    ++w.block.counters.switches;
    w.progress.store(w.progress.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    w.current = to;
    if (from != to) switch_context(from ? from->context : w.main, to ? to->context : w.main);
}

void leave() {
    switch_context(worker->abandoned, worker->main);
    __builtin_unreachable();
}

// A line of the trace: step, block, thread, what, and for a wait the object and the place.
static void trace(const Fiber& fiber, const char* what, const std::string& rest = "") {
    Block& b = *fiber.block;
    char numbers[80];
    snprintf(numbers, sizeof numbers, "%llu %ld %u ", (unsigned long long)b.counters.switches, b.number, fiber.index);
    b.trace += numbers + (what + rest) + '\n';
}

void suspend(const Waitable& object, Site site) {
    Fiber& me = self();
    const bool traced = worker->grid.spec.trace;
    if (traced) trace(me, "wait ", object.name() + '\t' + place(site));
    me.waiting_on = &object;
    me.waiting_site = site;
    end_spinning(block());
    run(&me, next_fiber(block()));
    me.waiting_on = nullptr;
    if (traced) trace(me, "run");
}

void wait_on(const Waitable& object, ThreadSet& waiters, Site site) {
    waiters.add(self().warp, 1u << self().lane);
    suspend(object, site);
}

void make_ready(Block& block, unsigned warp, uint32_t lanes) {
    block.scheduler.make_ready(warp, lanes);
    end_spinning(block);
}

void wake(Block& block, ThreadSet& waiters) {
    waiters.each([&](unsigned warp, uint32_t lanes) { make_ready(block, warp, lanes); });
    waiters.clear();
}

void yield() {
    Fiber& me = self();
    me.waiting_site = EMU_SITE;
    block().scheduler.make_yielded(me.warp, 1u << me.lane);
    run(&me, next_fiber(block()));
}

// A thread that never yields gives way all the same. Not a sign of waiting: it may simply have much to do.
void preempt() {
    Fiber& me = self();
    block().scheduler.make_yielded(me.warp, 1u << me.lane);
    end_spinning(block());
    run(&me, next_fiber(block()));
}

void defer(Site site, std::function<void()> action) { block().actions.push_back({&self(), site, std::move(action)}); }

// Where every fiber starts.
static void fiber_main() {
    const LaunchSpec& spec = worker->grid.spec;
    if (spec.trace) trace(*worker->current, "run");
    spec.entry(spec.values);
    Fiber& me = *worker->current;
    if (spec.trace) trace(me, "exit");
    me.exited = true;
    --me.block->live;
    end_spinning(block());
    leave_collectives(me);
    leave_barriers(*me.block);
    run(&me, next_fiber(*me.block));
    __builtin_unreachable();
}

void start_threads(Block& block) {
    Stacks& stacks = block.worker->stacks;
    block.scheduler.reset();
    block.live = block.threads;
    for (unsigned i = 0; i < block.threads; ++i) {
        Fiber& fiber = block.fibers[i];
        fiber.exited = false;
        fiber.waiting_on = nullptr;
        // Tops differ by a few cache lines, or the hot ends of all stacks would share a few sets of the cache.
        prepare(fiber.context, stacks.bottom(int(i)), stacks.top(int(i)) - (i * 5 % 64) * 64, fiber_main);
        block.scheduler.make_ready(i / 32, 1u << i % 32);
    }
}

// Runs the block's threads to their end, or to the first error. Called on the OS thread's own stack.
void run_threads(Block& block) {
    Worker& w = *block.worker;
    w.error = nullptr;
    w.fault = {};
    run(nullptr, &block.fibers[block.scheduler.take()]);
    if (w.fault.signal) report_fault(w);
    w.current = nullptr;
    w.action = nullptr;
}

using Waiting = std::map<std::string, std::map<std::string, ThreadSet>>;      // by object, by place

static std::string describe_waiting(const Block& block) {
    Waiting waiting;
    ThreadSet exited;
    for (const Fiber& fiber : block.fibers) {
        const Waitable* object = fiber.waiting_on;
        const std::string why = object ? object->name() + ": " + object->state() : "a loop that polls";
        ThreadSet& set = fiber.exited ? exited : waiting[why][place(fiber.waiting_site)];
        set.add(fiber.warp, 1u << fiber.lane);
    }
    std::string text;
    for (auto& [object, places] : waiting) {
        text += "\n  " + object;
        for (auto& [where, threads] : places) text += "\n    " + describe(block, threads) + " waiting at " + where;
    }
    if (!exited.empty()) text += "\n  " + describe(block, exited) + " exited";
    return text;
}

[[noreturn]] static void deadlock(Block& block) {
    std::string text = "no thread can go on" + describe_waiting(block);
    for (const Block* other : block.cluster->blocks) {
        if (other == &block) continue;
        text += "\n  in the cluster's " + block_name(*other) + ':' + describe_waiting(*other);
    }
    fail("Deadlock", 0, "%s", text.c_str());
}

}  // namespace emu
