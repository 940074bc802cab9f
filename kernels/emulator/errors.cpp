// How a launch fails, and how places and threads are spelled in messages.
#include "grid.h"
#include "module.h"
#include <cstdarg>

namespace emu {

static std::string format(const char* pattern, va_list arguments) {
    va_list again;
    va_copy(again, arguments);
    std::string text(size_t(vsnprintf(nullptr, 0, pattern, again)), '\0');
    va_end(again);
    vsnprintf(text.data(), text.size() + 1, pattern, arguments);
    return text;
}

std::string block_name(const Block& block) {
    const uint3 b = block.fibers[0].block_idx;
    return "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + ")";
}

// "block (1, 0, 0), thread (33, 0, 0) = warp 1, lane 1"
static std::string thread_name(const Fiber& fiber) {
    const uint3 t = fiber.thread_idx;
    char text[120];
    snprintf(text, sizeof text, ", thread (%u, %u, %u) = warp %u, lane %u", t.x, t.y, t.z, fiber.warp, fiber.lane);
    return block_name(*fiber.block) + text;
}

static void note_text(const char* kind, Site site, const std::string& text) {
    Worker& w = *worker;
    const Fiber* fiber = w.action ? w.action->origin : w.current;
    if (!site && w.action) site = w.action->site;
    std::string where = site ? thread_name(*fiber) + ", at " + place(site) : block_name(w.block);
    w.error = std::make_unique<Error>(Error{w.block.cluster->number, kind, where + "\n  " + text});
}

void note(const char* kind, Site site, const char* pattern, ...) {
    va_list arguments;
    va_start(arguments, pattern);
    note_text(kind, site, format(pattern, arguments));
    va_end(arguments);
}

void fail(const char* kind, Site site, const char* pattern, ...) {
    va_list arguments;
    va_start(arguments, pattern);
    note_text(kind, site, format(pattern, arguments));
    va_end(arguments);
    leave();
}

std::string place(Site site) { return worker->grid.spec.module->place(site); }

// "5", "0-3", "0, 2-31"
static std::string ranges(uint32_t bits) {
    std::string text;
    for (int i = 0; i < 32; ++i) {
        if (!(bits >> i & 1)) continue;
        int last = i;
        while (last < 31 && bits >> (last + 1) & 1) ++last;
        text += (text.empty() ? "" : ", ") + std::to_string(i) + (last > i ? "-" + std::to_string(last) : "");
        i = last;
    }
    return text;
}

// "warp 5", "warps 0-3"
static std::string counted(const char* noun, uint32_t bits) {
    return noun + std::string(bits & (bits - 1) ? "s " : " ") + ranges(bits);
}

std::string describe(const Block& block, const ThreadSet& threads) {
    uint32_t whole = 0;
    std::string parts;
    threads.each([&](unsigned warp, uint32_t lanes) {
        if (lanes == block.warps[warp].present) whole |= 1u << warp;
        else parts += (parts.empty() ? "warp " : ", warp ") + std::to_string(warp) + " (" + counted("lane", lanes) + ")";
    });
    std::string text;
    if (whole) text = counted("warp", whole);
    return text + (whole && !parts.empty() ? ", " : "") + parts;
}

}  // namespace emu
