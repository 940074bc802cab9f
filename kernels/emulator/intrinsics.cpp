// What is neither arithmetic nor a meeting: printf, assert, trap, the clock, addresses, the cluster.
#include "grid.h"
#include "module.h"
#include <cstdarg>

namespace emu {

// Shown when the launch ends, in the order of the blocks.
int print(const char* pattern, ...) {
    constexpr size_t limit = 1 << 20;
    char text[1024];
    va_list arguments;
    va_start(arguments, pattern);
    int length = vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    if (block().output.size() < limit) block().output += text;
    return length;
}

void assertion_failed(const char* expression) { fail("AssertionFailed", EMU_SITE, "assert(%s)", expression); }

void trap() { fail("Trap", EMU_SITE, "__trap()"); }

// A clock that moves and repeats from run to run: it ticks when the block switches threads and when it is read.
long long clock() { return (long long)block().counters.switches + ++block().clock_reads; }

uint32_t shared_address(const void* pointer, Site site) {
    const SharedMemory& shared = block().shared;
    if (!shared.contains(pointer))
        fail("OutOfBounds", site, "takes the shared address of a pointer that is not: %s", describe_address(pointer).c_str());
    return shared.address(pointer);
}

void* shared_pointer(uint32_t address, Site site) {
    void* pointer = block().shared.pointer(address);
    if (!pointer) fail("OutOfBounds", site, "shared address 0x%x is outside the block's shared memory", address);
    return pointer;
}

static std::atomic<int> slots{0};
int new_state_slot() { return slots++; }

std::unique_ptr<State>& state_slot(Block& block, int slot) {
    if (block.states.size() <= size_t(slot)) block.states.resize(size_t(slot) + 1);
    return block.states[size_t(slot)];
}

unsigned cluster_size() { return worker->grid.cluster_size; }
unsigned cluster_rank() { return block().rank; }

Block& cluster_block(unsigned rank) { return *block().cluster->blocks[rank]; }

void* map_shared(const void* pointer, unsigned rank, Site site) {
    if (rank >= cluster_size()) fail("OutOfBounds", site, "block %u of a cluster of %u", rank, cluster_size());
    return cluster_block(rank).shared.pointer(shared_address(pointer, site));
}

}  // namespace emu
