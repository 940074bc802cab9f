// What asynchronous instructions do to a block's shared memory between their issue and the moment the program has waited
// for them, in chunks of 16 bytes. An instruction that would get in the way is refused here.
#pragma once
#include "../runtime.h"
#include <list>
#include <vector>

namespace emu {

class InFlight final : public State {
public:
    enum class Kind { reads, writes, copies };      // copies: cp.async, whose threads may share a chunk

    struct Use {
        const char* what;                   // "the tma_load"
        Kind kind;
        Site site;
        std::vector<uint32_t> chunks;       // addresses / 16
    };
    using Handle = std::list<Use>::iterator;

    // Begins a use; fails if it writes what another use touches, or reads what another use writes.
    Handle begin(const char* what, Kind kind, std::vector<uint32_t> chunks, Site site);
    void end(Handle use);

    // The same question for an instruction that acts at once. Addresses are those of shared memory.
    void check(const char* what, Kind kind, uint32_t address, uint32_t bytes, Site site) const;

    void block_finished() override;

private:
    struct Chunk { uint16_t uses[3] = {}; };        // by kind
    void check_chunk(const char* what, Kind kind, uint32_t chunk, Site site) const;
    std::vector<Chunk> chunks_;
    std::list<Use> uses_;
};

std::vector<uint32_t> chunks_of(uint32_t address, uint32_t bytes);

// What TMA and WGMMA see of a block's shared memory. They work behind a proxy: bytes that ordinary stores have changed
// reach it only through fence_proxy_async. Found by comparing contents, so it needs no instrumentation; a fence by any
// thread counts, so it does not find every mistake.
class AsyncProxy final : public State {
public:
    void fence() { ++fences_; }
    void read(const void* pointer, uint32_t address, uint32_t bytes, const char* what, Site site);   // fails on stale bytes
    void wrote(const void* pointer, uint32_t address, uint32_t bytes);

private:
    struct Chunk { unsigned char bytes[16]; unsigned fences; };
    Chunk& at(uint32_t chunk);

    std::vector<Chunk> chunks_;
    unsigned fences_ = 0;
};

}  // namespace emu
