// The things a launch is made of: a grid of blocks, the OS threads that work on them, and their state.
#pragma once
#include "counts.h"
#include "global.h"
#include "race.h"
#include "runtime.h"
#include "scheduler.h"
#include "shared.h"
#include "timeline.h"
#include <pthread.h>
#include <time.h>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace emu {

class Arguments;
class Module;
struct Grid;
struct Worker;

enum Check : unsigned { check_memory = 1, check_init = 2, check_race = 4, check_count = 8 };

// What Python asks for. The layout is known to flashmoe_nb/emulator.py.
struct LaunchSpec {
    void (*entry)(void**);                     // runs the kernel for the calling thread
    void (*shared_layout)(void**);             // where the calling OS thread's shared memory is
    void** values;                             // pointers to the kernel's arguments
    Arguments* arguments;
    Module* module;
    uint32_t grid[3], block[3], cluster[3];
    uint32_t shared_bytes;                     // dynamic
    uint32_t schedule;                         // Schedule::Order
    uint32_t workers;
    uint32_t checks;
    uint32_t trace;
    uint64_t seed;
};

struct Error {
    long cluster;         // the first one in the order of the grid is reported
    std::string kind, text;
};

struct Counters {
    uint64_t switches = 0, barriers = 0, collectives = 0, accesses = 0;
    void operator+=(const Counters& other) {
        switches += other.switches;
        barriers += other.barriers;
        collectives += other.collectives;
        accesses += other.accesses;
    }
};

struct Warp {
    uint32_t present = 0;                                     // lanes the block has here
    uint32_t exited = 0;
    std::vector<std::unique_ptr<Collective>> calls, spare;    // waiting for lanes, and for reuse
};

struct Action {
    Fiber* origin;
    Site site;
    std::function<void()> run;
};

// The blocks that share a cluster run on one OS thread each, one at a time: `turn` says whose turn it is.
struct Cluster {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<Block*> blocks;
    long number = 0;
    unsigned turn = 0, arrived = 0, generation = 0;
    bool broken = false;                                      // a block has failed: the others stop
    bool deserted = false;                                    // an OS thread of the team could not start
    unsigned polls = 0;                                       // rounds in which threads did nothing but yield
    bool spinning = false;
    timespec spinning_since{};
    std::unique_ptr<RaceCheck> races;                         // of the blocks being run, where asked for
};

struct Block {
    Worker* worker = nullptr;
    Cluster* cluster = nullptr;
    unsigned rank = 0;                                        // in the cluster
    long number = 0;                                          // in the grid
    unsigned threads = 0, live = 0;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barriers[16];
    Scheduler scheduler;
    std::deque<Action> actions;
    std::vector<std::unique_ptr<State>> states;
    SharedMemory shared;
    bool ended = false;
    long long clock_reads = 0;
    std::string output;                                       // of printf
    std::string trace;                                        // a line per wait, wake and exit
    Counters counters;
    Counts counts;
    Timeline timeline;
    bool counting = false;
};

// An OS thread that runs one block after another.
struct Worker {
    Worker(Grid& grid, Stacks& stacks) : grid(grid), stacks(stacks) {}

    Grid& grid;
    Stacks& stacks;
    Block block;
    Fiber* current = nullptr;
    const Action* action = nullptr;                           // being run
    Context main, abandoned;                                  // where the OS thread itself waits; what nobody goes back to
    std::unique_ptr<Error> error;
    struct Fault { int signal; Site pc; void* address; bool write, has_address; } fault{};
    std::atomic<uint64_t> progress{0};                        // for the watchdog
};

struct Grid {
    LaunchSpec spec;
    long blocks, clusters;
    unsigned cluster_size;
    std::atomic<long> next{0};
    std::atomic<long> stop_above;                             // clusters beyond this one need not go on
    std::atomic<unsigned> spinning{0}, active{0};             // clusters that only poll, clusters being run
    std::mutex starting;                                      // of teams
    std::mutex mutex;                                         // for everything below
    std::condition_variable done;
    unsigned running = 0;                                     // OS threads
    struct Running { Worker* worker; pthread_t thread; uint64_t seen; };
    std::vector<Running> workers;
    std::vector<std::unique_ptr<Cluster>> teams;
    std::vector<std::thread> threads;
    std::unique_ptr<Error> error;
    std::map<long, std::string> output, trace;                // by block
    Counters counters;
    std::map<TrafficKey, Traffic> traffic;
    std::map<std::string, FoundRace> races;
    std::unique_ptr<GlobalRaces> global_races;                // where asked for
    std::map<std::pair<Site, unsigned>, Waits> waits;
    std::vector<Timeline::Kept> meets;                        // of block 0

    explicit Grid(const LaunchSpec& launch);
    ~Grid();
    bool stopped(const Block& block) const { return block.cluster->number > stop_above.load(std::memory_order_relaxed); }
};

// The OS thread's worker; null outside a launch.
extern thread_local __attribute__((tls_model("initial-exec"))) Worker* worker;

// block.cpp
void start_threads(Block& block);
void run_threads(Block& block);          // to their end or the first error; called on the OS thread's own stack
[[noreturn]] void leave();               // the fiber for good, after an error or a stop
void preempt();                          // the calling thread, from a signal handler
void end_spinning(Block& block);
// errors.cpp
std::string block_name(const Block& block);      // "block (1, 0, 0)"
void note(const char* kind, Site site, const char* pattern, ...) __attribute__((format(printf, 3, 4)));    // fail without leaving
// access.cpp
void report_fault(Worker& worker);       // notes what Worker::fault says
// launch.cpp
void met(Block& block, unsigned warp, uint32_t lanes);      // these lanes have come together
// barrier.cpp, collective.cpp
void leave_barriers(Block& block);
void leave_collectives(Fiber& fiber);
void check_one_line(const char* what, unsigned warp, Site there, Site here);
// cluster.cpp
enum class Turn { ready, polling };      // may take the turn: a block with a ready thread or an action; or any with threads
bool hand_over(Block& block, Turn turn);
void meet_cluster(Block& block);
bool await_turn(Block& block);
void end_turns(Block& block, bool failed);
void desert(Cluster& cluster);
// launch.cpp
bool add_worker(Grid& grid);             // for a block that nobody has begun; false if there is none

}  // namespace emu
