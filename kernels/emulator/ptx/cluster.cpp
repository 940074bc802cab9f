// Clusters: ranks, the barrier of all their threads, and pointers into each other's shared memory.
#include "../grid.h"
#include "instructions.h"

namespace emu {

// barrier.cluster. Lives with block 0 of the cluster.
struct ClusterBarrier final : State, Waitable {
    struct Member { ThreadSet arrived, waiting; };
    std::vector<Member> members;
    unsigned generation = 0;
    Meeting meeting;
    Known ended;                       // what the threads of the last generation knew
    uint32_t ended_step = 0;
    int ended_by = -1;

    unsigned count() const {
        unsigned n = 0;
        for (const Member& member : members) n += member.arrived.count();
        return n;
    }
    static unsigned expected() {
        unsigned n = 0;
        for (unsigned r = 0; r < cluster_size(); ++r) n += cluster_block(r).live;
        return n;
    }
    std::string name() const override { return "cluster barrier"; }
    std::string state() const override {
        return std::to_string(count()) + " of " + std::to_string(expected()) + " threads arrived";
    }
};

static ClusterBarrier& cluster_barrier() {
    auto& barrier = block_state<ClusterBarrier>(cluster_block(0));
    barrier.members.resize(cluster_size());
    return barrier;
}

// Which generation of the barrier each thread of a block has arrived at and not yet waited for; 0 for none.
struct ClusterArrivals final : State {
    std::vector<unsigned> ticket;
    unsigned& of(unsigned thread) {
        if (ticket.size() <= thread) ticket.resize(1024);
        return ticket[thread];
    }
};

namespace ptx {

uint32_t cluster_rank() { return emu::cluster_rank(); }
uint32_t cluster_size() { return emu::cluster_size(); }

void* cluster_map(const void* s_pointer, uint32_t rank) {
    Site site = EMU_SITE;
    if (rank >= emu::cluster_size()) fail("BarrierMisuse", site, "block %u of a cluster of %u", rank, emu::cluster_size());
    return map_shared(s_pointer, rank, site);
}

void cluster_arrive() {
    Site site = EMU_SITE;
    ClusterBarrier& barrier = cluster_barrier();
    Fiber& me = self();
    unsigned& ticket = block_state<ClusterArrivals>().of(me.index);
    if (ticket) fail("BarrierMisuse", site, "cluster_arrive twice: cluster_wait comes between");
    ticket = barrier.generation + 1;
    barrier.members[emu::cluster_rank()].arrived.add(me.warp, 1u << me.lane);
    note_meet(me, Meet::arrive, barrier, barrier.generation, site, 0, -1);
    publish(barrier.meeting, me);
    if (barrier.count() != barrier.expected()) return;
    ++barrier.generation;
    barrier.ended_step = barrier.meeting.step;
    barrier.ended_by = barrier.meeting.last;
    barrier.ended = barrier.meeting.close();
    for (unsigned r = 0; r < barrier.members.size(); ++r) {
        barrier.members[r].arrived.clear();
        wake(cluster_block(r), barrier.members[r].waiting);
    }
}

void cluster_wait() {
    Site site = EMU_SITE;
    ClusterBarrier& barrier = cluster_barrier();
    unsigned& ticket = block_state<ClusterArrivals>().of(self().index);
    if (!ticket) fail("BarrierMisuse", site, "cluster_wait without cluster_arrive");
    if (barrier.generation < ticket) wait_on(barrier, barrier.members[emu::cluster_rank()].waiting, site);
    ticket = 0;
    note_meet(self(), Meet::wait, barrier, barrier.generation - 1, site, barrier.ended_step, barrier.ended_by);
    learn(self(), barrier.ended, barrier.ended_step);
}

}  // namespace ptx
}  // namespace emu
