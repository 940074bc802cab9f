// Races in shared memory: two accesses, one of them a write, that nothing orders. Used by check "race".
//
// Every four bytes of shared memory remember who wrote them last and who has read them since; a new access is held against
// both. Order is that of order.h: it holds under every schedule, so a race is found whatever order the threads ran in.
#pragma once
#include "order.h"
#include "runtime.h"
#include <map>
#include <vector>

namespace emu {

// Who touches memory, as far as waiting for it goes.
enum class Toucher : uint8_t { thread, atomic, cp_async, tma_load, tma_store, wgmma };

struct Touch {                          // an access of some lanes of one row of clocks
    uint32_t site = 0;                  // offset in the module
    uint32_t time = 0;
    uint32_t lanes = 0;
    uint32_t exchanges = 0;             // of the thread: see ThreadOrder
    uint16_t row = 0;
    Toucher by = Toucher::thread;
    bool ended = false;                 // a copy that has landed
};

struct FoundRace {
    std::string kind;                   // "write after read", "missing proxy fence"
    Touch first, second;
    bool first_writes, second_writes;
    std::string where;                  // in shared or global memory
    long block;
    uint64_t count = 0;
    long first_block = -1, second_block = -1;            // in global memory: whose threads they are
};

// The race check of one cluster. Its blocks take turns, so it needs no locks.
class RaceCheck {
public:
    RaceCheck(unsigned blocks, unsigned threads);        // threads of a block

    ThreadOrder& thread(unsigned rank, unsigned index) { return threads_[rank][index]; }
    uint32_t tensor_clock(unsigned rank, unsigned warp) const { return ((rank + 1) * rows_ - 1) * 32 + warp; }
    uint32_t new_clock();                                // for an agent that is no thread
    uint32_t new_row();
    Learning learning;

    // Accesses by threads, 1 to 16 bytes.
    void read(const Fiber& fiber, Block& owner, uint32_t address, unsigned bytes, Site site);
    void write(const Fiber& fiber, Block& owner, uint32_t address, unsigned bytes, Site site, Toucher by = Toucher::thread);
    void use_barrier(const Fiber& fiber, Block& owner, uint32_t address, Site site);    // reads an mbarrier, as far as order goes

    // Writes that go on: whoever touches the bytes before `land` races with them.
    void start_write(const Fiber& fiber, Block& owner, uint32_t address, unsigned bytes, Site site, Toucher by);
    void land(Block& owner, uint32_t address, unsigned bytes, Site site, uint32_t clock, uint32_t time);

    // A read through the async proxy that threads have started together: it ends when the row's lanes reach `time`.
    struct Read { std::vector<const ThreadOrder*> starters; Touch touch, checked; };
    void start_read(Read& read, Block& owner, uint32_t address, unsigned bytes);

    void settle();                                       // looks what the last store that may have been harmless has stored

    static uint32_t offset(Site site);                   // in the module
    static bool ordered(const Touch& before, const ThreadOrder& thread);     // of one cluster
    const std::map<std::string, FoundRace>& found() const { return found_; }
    unsigned rows_of_block() const { return rows_; }

private:
    struct Cell {                                        // four bytes
        Touch write;
        Touch read;                                      // the newest one; others in more_
        uint32_t more = 0, split = 0;                    // numbers, from 1; split: its bytes one by one
    };
    struct Shadow { std::vector<Cell> words; };
    template <class Visit> void each_cell(Block& owner, uint32_t address, unsigned bytes, Visit visit);
    Cell& whole(Shadow& shadow, uint32_t word) { return shadow.words[word]; }
    Cell* split(Cell& cell);
    void check_write(const Cell& cell, const ThreadOrder& thread, const Touch& touch, bool writes, Block& owner, uint32_t address);
    void check_reads(const Cell& cell, const ThreadOrder& thread, const Touch& touch, Block& owner, uint32_t address);
    void check_proxy(const Cell& cell, const ThreadOrder& thread, const Touch& touch, bool writes, Block& owner, uint32_t address);
    void add_read(Cell& cell, const Touch& touch);
    void set_write(Cell& cell, const Touch& touch);
    void report(const char* kind, const Touch& first, bool first_writes, const Touch& second, bool second_writes, Block& owner,
                uint32_t address);

    unsigned rows_;                                      // of a block: its warps, and one for the tensor cores
    uint32_t clocks_;                                    // given away
    std::vector<std::vector<ThreadOrder>> threads_;      // by rank
    std::vector<Shadow> shadows_;                        // by rank
    std::vector<std::vector<Touch>> more_{1};
    std::vector<uint32_t> free_more_;
    std::vector<std::vector<Cell>> bytes_{1};
    std::map<std::string, FoundRace> found_;

    // Lanes that store the same value to the same place in one instruction do no harm. The value is seen one access later.
    struct Doubtful { Touch first, second; Block* owner; uint32_t address; unsigned char before[4]; };
    std::vector<Doubtful> doubtful_;
};

// The calling block's, or null where races are not looked for.
RaceCheck* races();

// For meetings: nothing where races are not looked for.
void publish(Meeting& meeting, const Fiber& fiber);
void learn(const Fiber& fiber, const Known& news, uint32_t step);

}  // namespace emu
