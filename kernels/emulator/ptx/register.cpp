// setmaxnreg: the registers of a block are a pool that its warpgroups share.
#include "../grid.h"
#include "instructions.h"

namespace emu {

constexpr unsigned registers_of_block = 65536;

struct Registers final : State, Waitable {
    std::vector<unsigned> count;       // a thread's registers, by warpgroup
    unsigned free = 0;                 // registers of the block that no warpgroup has
    ThreadSet waiting;

    // What a thread starts with under __launch_bounds__(threads, 1). Up to 256 threads the compiler has a choice, and no
    // warpgroup can run short.
    static unsigned at_start(unsigned threads) { return threads <= 256 ? 0 : registers_of_block / threads / 8 * 8; }
    std::string name() const override { return "reg_alloc"; }
    std::string state() const override { return "the block has " + std::to_string(free) + " registers to give"; }
};

namespace ptx {

struct Request { int count; bool grow; Site site; };

static void check_request(Collective& call) {
    const Request& first = *call.of<Request>(0);
    for (unsigned i = 1; i < 128; ++i)
        if (call.of<Request>(i)->count != first.count || call.of<Request>(i)->grow != first.grow)
            fail("AsyncMisuse", first.site, "setmaxnreg: threads of warps %u-%u ask for different counts", call.first_warp,
                 call.first_warp + 3);
    auto& registers = block_state<Registers>();
    unsigned threads = block().threads, count = unsigned(first.count);
    if (Registers::at_start(threads) == 0) return;
    if (registers.count.empty()) registers.count.resize((threads + 127) / 128, Registers::at_start(threads));
    unsigned& mine = registers.count[call.first_warp / 4];
    if (first.grow ? count < mine : count > mine)
        fail("AsyncMisuse", first.site, "%s to %u registers, but warps %u-%u have %u (a block of %u threads starts with %u each)",
             first.grow ? "reg_alloc" : "reg_dealloc", count, call.first_warp, call.first_warp + 3, mine, threads,
             Registers::at_start(threads));
    if (first.grow) return;
    registers.free += (mine - count) * 128;
    mine = count;
    wake(block(), registers.waiting);
}

void set_max_registers(int count, bool grow) {
    Site site = EMU_SITE;
    Request request{count, grow, site};
    warpgroup_collective("setmaxnreg", check_request, &request, site);
    auto& registers = block_state<Registers>();
    if (!grow || registers.count.empty()) return;
    unsigned& mine = registers.count[self().warp / 4];
    while (mine < unsigned(count)) {
        unsigned more = (unsigned(count) - mine) * 128;
        if (registers.free >= more) {
            registers.free -= more;
            mine = unsigned(count);
        } else {
            wait_on(registers, registers.waiting, site);
        }
    }
}

}  // namespace ptx
}  // namespace emu
