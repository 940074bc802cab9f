// Instructions that lanes execute together: shuffles, votes, __syncwarp, and what the ptx bodies add.
#include "grid.h"
#include <algorithm>

namespace emu {

Fiber& Collective::fiber(unsigned i) const { return worker->block.fibers[first_warp * 32 + i]; }

std::string Collective::name() const {
    char text[120];
    if (warps == 1) snprintf(text, sizeof text, "%s of warp %u, mask 0x%08x", instruction, first_warp, mask[0]);
    else snprintf(text, sizeof text, "%s of warps %u-%u", instruction, first_warp, first_warp + warps - 1);
    return text;
}

std::string Collective::state() const {
    int here = 0, all = 0;
    for (unsigned w = 0; w < warps; ++w) {
        here += __builtin_popcount(arrived[w]);
        all += __builtin_popcount(mask[w]);
    }
    return std::to_string(here) + " of " + std::to_string(all) + " lanes arrived";
}

// Lanes of one warp must be at one source line. A compiler may have copied that line, so lines are compared, not addresses.
void check_one_line(const char* what, unsigned warp, Site there, Site here) {
    if (there == here || place(there) == place(here)) return;
    fail("Diverged", here, "lanes of warp %u reach %s at different lines: others wait at %s", warp, what, place(there).c_str());
}

static std::unique_ptr<Collective> new_call(Warp& warp) {
    if (warp.spare.empty()) return std::make_unique<Collective>();
    auto call = std::move(warp.spare.back());
    warp.spare.pop_back();
    return call;
}

static Collective& open_call(Warp& home, const char* name, Collective::Body body, unsigned first_warp, unsigned warps,
                             const uint32_t* mask) {
    home.calls.push_back(new_call(home));
    Collective& call = *home.calls.back();
    call.instruction = name;
    call.body = body;
    call.first_warp = first_warp;
    call.warps = warps;
    for (unsigned w = 0; w < warps; ++w) {
        call.mask[w] = mask[w];
        call.arrived[w] = 0;
    }
    std::fill_n(call.arguments, warps * 32, nullptr);
    return call;
}

static bool complete(const Collective& call) {
    for (unsigned w = 0; w < call.warps; ++w)
        if (call.arrived[w] != call.mask[w]) return false;
    return true;
}

// Runs the body and lets the waiting lanes go on.
static void execute(Block& block, Warp& home, size_t i) {
    Collective& call = *home.calls[i];
    ++block.counters.collectives;
    if (block.counting)
        for (unsigned w = 0; w < call.warps; ++w) met(block, call.first_warp + w, call.mask[w]);
    call.body(call);
    for (unsigned w = 0; w < call.warps; ++w) make_ready(block, call.first_warp + w, call.arrived[w]);
    home.spare.push_back(std::move(home.calls[i]));
    home.calls.erase(home.calls.begin() + long(i));
}

static void meet(const char* name, Collective::Body body, unsigned first_warp, unsigned warps, const uint32_t* mask,
                 void* arguments, Site site) {
    Block& b = block();
    Fiber& me = self();
    Warp& home = b.warps[first_warp];
    unsigned slot = (me.warp - first_warp) * 32 + me.lane;
    size_t i = 0;
    for (; i < home.calls.size(); ++i) {
        Collective& call = *home.calls[i];
        if (call.warps == warps && call.mask[0] == mask[0]) break;
    }
    if (i == home.calls.size()) open_call(home, name, body, first_warp, warps, mask);
    Collective& call = *home.calls[i];
    if (call.body != body || call.instruction != name)
        fail("Diverged", site, "%s, but other lanes of its mask 0x%08x are at %s (%s)", name, mask[0], call.instruction,
             place(call.sites[unsigned(__builtin_ctz(call.arrived[0]))]).c_str());
    call.arguments[slot] = arguments;
    call.sites[slot] = site;
    uint32_t& arrived = call.arrived[me.warp - first_warp];
    arrived |= 1u << me.lane;
    if (!complete(call)) return suspend(call, site);
    arrived &= ~(1u << me.lane);          // this thread just goes on
    execute(b, home, i);
}

void warp_collective(const char* name, uint32_t mask, Collective::Body body, void* arguments, Site site) {
    Fiber& me = self();
    Warp& warp = block().warps[me.warp];
    uint32_t live = mask & warp.present & ~warp.exited;
    if (!(mask >> me.lane & 1)) fail("Diverged", site, "%s: lane %u is not in its own mask 0x%08x", name, me.lane, mask);
    meet(name, body, me.warp, 1, &live, arguments, site);
}

void warpgroup_collective(const char* name, Collective::Body body, void* arguments, Site site) {
    Fiber& me = self();
    unsigned first = me.warp & ~3u;
    uint32_t mask[4];
    for (unsigned w = 0; w < 4; ++w) {
        if (first + w >= block().warps.size() || block().warps[first + w].exited || block().warps[first + w].present != ~0u)
            fail("Diverged", site, "%s needs all 128 threads of warps %u-%u", name, first, first + 3);
        mask[w] = ~0u;
    }
    meet(name, body, first, 4, mask, arguments, site);
}

// A thread exits: the collectives of its warp no longer wait for it.
void leave_collectives(Fiber& fiber) {
    Block& block = *fiber.block;
    Warp& warp = block.warps[fiber.warp];
    uint32_t bit = 1u << fiber.lane;
    warp.exited |= bit;
    for (size_t i = 0; i < warp.calls.size();) {
        Collective& call = *warp.calls[i];
        if (call.warps == 1) call.mask[0] &= ~bit;
        if (!complete(call)) { ++i; continue; }
        execute(block, warp, i);
    }
}

}  // namespace emu
