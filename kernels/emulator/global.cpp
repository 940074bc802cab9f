// Races in global memory: see global.h.
#include "global.h"
#include "grid.h"
#include "memory.h"
#include <algorithm>
#include <cstring>

namespace emu {

// ---- cells ----

std::array<GlobalRaces::Cell, 4>& GlobalRaces::split(Cell& cell) {
    if (!cell.bytes) {
        cell.bytes = std::make_unique<std::array<Cell, 4>>();
        for (Cell& part : *cell.bytes) {
            part.write = cell.write;
            part.reads = cell.reads;
        }
    }
    return *cell.bytes;
}

// Whole words where nobody has ever touched a part of one.
template <class Visit> void GlobalRaces::each_cell(const char* address, size_t bytes, Visit visit) {
    for (const char *at = address, *end = address + bytes; at < end;) {
        const uintptr_t word = uintptr_t(at) / 4;
        std::unique_ptr<Page>& page = pages_[word / 1024];
        if (!page) page = std::make_unique<Page>();
        Cell& cell = (*page)[word % 1024];
        const char* next = std::min(end, reinterpret_cast<const char*>(word * 4 + 4));
        if (next - at == 4 && !cell.bytes) visit(cell, at);
        else
            for (auto& parts = split(cell); at < next; ++at) visit(parts[uintptr_t(at) % 4], at);
        at = next;
    }
}

// Of the last ones only: a read that stands twice does no harm, and a word may be read by every block of a grid.
void GlobalRaces::add_read(Cell& cell, const Owned& now) {
    const size_t count = cell.reads.size(), first = count > 64 ? count - 64 : 0;
    for (size_t i = count; i-- > first;) {
        Owned& read = cell.reads[i];
        if (read.cluster != now.cluster || read.touch.row != now.touch.row) continue;
        const bool same = read.touch.time == now.touch.time && read.touch.site == now.touch.site && read.touch.by == now.touch.by;
        if (same) {
            read.touch.lanes |= now.touch.lanes;
            return;
        }
        read.touch.lanes &= ~now.touch.lanes;            // the newer read of a thread speaks for the older one
        if (!read.touch.lanes) {
            read = now;
            return;
        }
    }
    cell.reads.push_back(now);
}

// ---- order ----

bool GlobalRaces::ordered(const Owned& before, long cluster, const ThreadOrder& thread) {
    if (before.cluster == cluster) return RaceCheck::ordered(before.touch, thread);
    const auto it = thread.known->others.find(before.cluster);
    if (it == thread.known->others.end()) return false;
    for (uint32_t rest = before.touch.lanes; rest; rest &= rest - 1)
        if (it->second->of(before.touch.row * 32u + unsigned(__builtin_ctz(rest))) < before.touch.time) return false;
    return true;
}

void GlobalRaces::order(const Fiber& fiber, const void* address, Order what) {
    ThreadOrder& thread = *fiber.order;
    Published& here = published_[uintptr_t(address)];
    const long cluster = fiber.block->cluster->number;
    if (what.reads && !here.empty()) {
        if (what.acquires) races()->learning.learn(thread, as_known(here, cluster));
        else add(thread.unfenced, here);                 // known from the next fence on
    }
    if (!what.writes) return;
    if (what.replaces) here.clear();
    const Known known = what.releases ? snapshot(thread) : visible_of(thread);
    if (known) add(here, cluster, known);
}

// ---- accesses ----

void GlobalRaces::check(const Cell& cell, const ThreadOrder& thread, const Owned& now, bool writes, const char* at) {
    const Owned& write = cell.write;
    const bool atomics = write.touch.by == Toucher::atomic && now.touch.by == Toucher::atomic;
    if (write.touch.lanes && !atomics && !ordered(write, now.cluster, thread)) {
        const bool one_instruction = writes && write.cluster == now.cluster && write.touch.site == now.touch.site &&
                                     write.touch.row == now.touch.row && write.touch.exchanges == now.touch.exchanges;
        if (one_instruction) {
            const char* word = reinterpret_cast<const char*>(uintptr_t(at) & ~uintptr_t(3));
            doubtful_[now.cluster].push_back({write, now, word, {}});
            std::memcpy(doubtful_[now.cluster].back().before, word, 4);
        } else {
            report(writes ? "write after write" : "read after write", write, true, now, writes, at);
        }
    }
    if (!writes) return;
    for (const Owned& read : cell.reads)
        if (!(read.touch.by == Toucher::atomic && now.touch.by == Toucher::atomic) && !ordered(read, now.cluster, thread))
            return report("write after read", read, false, now, true, at);
}

void GlobalRaces::access(const Fiber& fiber, const void* address, size_t bytes, Toucher by, bool writes, Site site) {
    if (!worker->grid.spec.arguments->writable(address)) return;
    const std::lock_guard<std::mutex> guard(mutex);
    const Block& block = *fiber.block;
    const ThreadOrder& thread = *fiber.order;
    settle(block.cluster->number);
    const Owned now{block.cluster->number, block.number,
                    {RaceCheck::offset(site), thread.time, 1u << fiber.lane, thread.exchanges, uint16_t(thread.index / 32), by, false}};
    each_cell(static_cast<const char*>(address), bytes, [&](Cell& cell, const char* at) {
        check(cell, thread, now, writes, at);
        if (!writes) return add_read(cell, now);
        cell.write = now;
        cell.reads.clear();
    });
}

// Lanes that store the same value to the same place in one instruction do no harm. The value is seen one access later.
void GlobalRaces::settle(long cluster) {
    if (doubtful_.empty()) return;
    const auto mine = doubtful_.find(cluster);
    if (mine == doubtful_.end()) return;
    for (const Doubtful& d : mine->second)
        if (std::memcmp(d.before, d.word, 4) != 0) report("write after write", d.first, true, d.second, true, d.word);
    doubtful_.erase(mine);
}

void GlobalRaces::settle(const Block& block) {
    const std::lock_guard<std::mutex> guard(mutex);
    settle(block.cluster->number);
}

void GlobalRaces::report(const char* kind, const Owned& first, bool first_writes, const Owned& second, bool second_writes,
                         const char* at) {
    char key[100];
    snprintf(key, sizeof key, "global %u %u %s %d %d", first.touch.site, second.touch.site, kind, int(first.touch.by),
             int(second.touch.by));
    FoundRace& race = found_[key];
    if (race.count++) {
        if (race.second_block == second.block && race.second.row == second.touch.row) race.second.lanes |= second.touch.lanes;
        if (race.first_block == first.block && race.first.row == first.touch.row) race.first.lanes |= first.touch.lanes;
        return;
    }
    race = {kind, first.touch, second.touch, first_writes, second_writes, describe_address(at), second.block, 1, first.block,
            second.block};
}

// ---- accesses that order ----

OrderedAccess::OrderedAccess(const void* address, GlobalRaces::Order what) : races_(worker->grid.global_races.get()) {
    if (races_ && !worker->grid.spec.arguments->writable(address)) races_ = nullptr;
    if (!races_) return;
    races_->mutex.lock();
    races_->order(self(), address, what);
}

OrderedAccess::~OrderedAccess() {
    if (races_) races_->mutex.unlock();
}

}  // namespace emu
