// Blocks of one cluster: each has its OS thread, because shared memory is thread-local, but they take turns.
#include "grid.h"

namespace emu {

static bool wants_turn(const Block& block, Turn turn) {
    if (block.scheduler.any_ready() || !block.actions.empty()) return true;
    return turn == Turn::polling && block.scheduler.any_yielded();
}

// Waits until it is this block's turn; false if the cluster has stopped.
bool await_turn(Block& block) {
    Cluster& cluster = *block.cluster;
    std::unique_lock<std::mutex> lock(cluster.mutex);
    cluster.changed.wait(lock, [&] { return cluster.broken || cluster.turn == block.rank; });
    return !cluster.broken;
}

// Gives the turn to the next block that wants it and comes back with it. False if there is no such block.
bool hand_over(Block& block, Turn turn) {
    Cluster& cluster = *block.cluster;
    unsigned size = unsigned(cluster.blocks.size());
    for (unsigned step = 1; step < size; ++step) {
        unsigned rank = (block.rank + step) % size;
        if (!wants_turn(*cluster.blocks[rank], turn)) continue;
        {
            std::unique_lock<std::mutex> lock(cluster.mutex);
            cluster.turn = rank;
            cluster.changed.notify_all();
        }
        if (!await_turn(block)) leave();
        return true;
    }
    return false;
}

// All blocks of the cluster are ready to start, or have all ended.
void meet_cluster(Block& block) {
    Cluster& cluster = *block.cluster;
    std::unique_lock<std::mutex> lock(cluster.mutex);
    unsigned generation = cluster.generation;
    if (++cluster.arrived == cluster.blocks.size()) {
        cluster.arrived = 0;
        cluster.turn = 0;
        ++cluster.generation;
        cluster.changed.notify_all();
    }
    cluster.changed.wait(lock, [&] { return cluster.deserted || cluster.generation != generation; });
}

// An OS thread of the team is missing: the others need not wait for it.
void desert(Cluster& cluster) {
    std::lock_guard<std::mutex> guard(cluster.mutex);
    cluster.deserted = cluster.broken = true;
    cluster.changed.notify_all();
}

// Called with the turn, on the OS thread's own stack: lets the others finish, or stops them after an error.
void end_turns(Block& block, bool failed) {
    Cluster& cluster = *block.cluster;
    std::unique_lock<std::mutex> lock(cluster.mutex);
    block.ended = true;
    cluster.broken |= failed;
    for (Block* other : cluster.blocks)
        if (!other->ended) cluster.turn = other->rank;
    cluster.changed.notify_all();
}

}  // namespace emu
