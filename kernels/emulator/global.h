// Races in global memory, within a block and between blocks. Used by check "race".
//
// Every four bytes of a tensor that the kernel may write remember who touched them, as race.h does it for shared memory. What
// orders the threads of a cluster orders these accesses too. Between clusters there is only what one thread publishes at an
// address and another one reads there: a release and an acquire, or atomics with __threadfence around them (PTX ISA, memory
// consistency model). Clusters run on several OS threads, so one lock guards all of it.
#pragma once
#include "race.h"
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace emu {

class GlobalRaces {
public:
    // An access of the calling thread to memory that the kernel may write, up to 16 bytes at a time.
    void access(const Fiber& fiber, const void* address, size_t bytes, Toucher by, bool writes, Site site);

    // Ends with what the OS thread's cluster has stored last.
    void settle(const Block& block);
    const std::map<std::string, FoundRace>& found() const { return found_; }

    // What an ordered access does to what others know; the lock must be held, so that it happens together with the access.
    struct Order { bool reads, acquires, writes, releases, replaces; };
    void order(const Fiber& fiber, const void* address, Order what);
    std::mutex mutex;

private:
    struct Owned { long cluster = -1, block = -1; Touch touch; };
    struct Cell {                                        // four bytes, or one
        Owned write;
        std::vector<Owned> reads;
        std::unique_ptr<std::array<Cell, 4>> bytes;      // apart, where somebody has touched only some of them
    };
    using Page = std::array<Cell, 1024>;
    struct Doubtful { Owned first, second; const char* word; unsigned char before[4]; };

    template <class Visit> void each_cell(const char* address, size_t bytes, Visit visit);
    static std::array<Cell, 4>& split(Cell& cell);
    static bool ordered(const Owned& before, long cluster, const ThreadOrder& thread);
    void check(const Cell& cell, const ThreadOrder& thread, const Owned& now, bool writes, const char* at);
    static void add_read(Cell& cell, const Owned& now);
    void settle(long cluster);
    void report(const char* kind, const Owned& first, bool first_writes, const Owned& second, bool second_writes, const char* at);

    std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
    std::unordered_map<uintptr_t, Published> published_;      // by address
    std::map<long, std::vector<Doubtful>> doubtful_;          // by cluster
    std::map<std::string, FoundRace> found_;
};

// Global memory that orders is read and written while one of these lives; nothing where races are not looked for.
class OrderedAccess {
public:
    OrderedAccess(const void* address, GlobalRaces::Order what);
    ~OrderedAccess();
    OrderedAccess(const OrderedAccess&) = delete;

private:
    GlobalRaces* races_;
};

}  // namespace emu
