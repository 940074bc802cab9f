// Races in shared memory: see race.h.
#include "race.h"
#include "grid.h"
#include "module.h"
#include <algorithm>
#include <cstring>

namespace emu {

RaceCheck* races() { return worker->block.cluster->races.get(); }

void publish(Meeting& meeting, const Fiber& fiber) {
    if (!races()) return;
    ThreadOrder& order = *fiber.order;
    ++order.step;
    meeting.publish(order);
}

void learn(const Fiber& fiber, const Known& news, uint32_t step) {
    if (!races()) return;
    ThreadOrder& order = *fiber.order;
    races()->learning.learn(order, news);
    order.step = std::max(order.step, step) + 1;
}

// Lanes that a block does not have are ahead of everything, so that the least of a row speaks for those that are.
RaceCheck::RaceCheck(unsigned blocks, unsigned threads) : rows_((threads + 31) / 32 + 1), clocks_(blocks * rows_ * 32) {
    auto nothing = std::make_shared<Knowledge>();
    nothing->clock.assign(clocks_, never - 1);
    nothing->proxied.assign(clocks_, 0);
    for (unsigned rank = 0; rank < blocks; ++rank) {
        for (unsigned i = 0; i < threads; ++i) nothing->clock[rank * rows_ * 32 + i] = 0;
        for (unsigned warp = 0; warp + 1 < rows_; ++warp) nothing->clock[tensor_clock(rank, warp)] = 0;
    }
    nothing->summarise();
    threads_.resize(blocks);
    shadows_.resize(blocks);
    for (unsigned rank = 0; rank < blocks; ++rank) {
        threads_[rank].resize(threads);
        for (unsigned i = 0; i < threads; ++i) {
            threads_[rank][i].index = rank * rows_ * 32 + i;
            threads_[rank][i].known = nothing;
        }
    }
}

uint32_t RaceCheck::new_clock() { return clocks_++; }

uint32_t RaceCheck::new_row() {
    const uint32_t row = (clocks_ + 31) / 32;
    clocks_ = row * 32 + 32;
    return row;
}

uint32_t RaceCheck::offset(Site site) { return worker->grid.spec.module->offset(site); }

// ---- cells ----

RaceCheck::Cell* RaceCheck::split(Cell& cell) {
    if (!cell.split) {
        Cell part = cell;
        std::vector<Cell> parts(4, part);
        if (cell.more)
            for (Cell& p : parts) {
                std::vector<Touch> copy = more_[cell.more];
                p.more = uint32_t(more_.size());
                more_.push_back(std::move(copy));
            }
        cell.split = uint32_t(bytes_.size());
        bytes_.push_back(std::move(parts));
    }
    return bytes_[cell.split].data();
}

// Whole words where nobody has ever touched a part of one.
template <class Visit> void RaceCheck::each_cell(Block& owner, uint32_t address, unsigned bytes, Visit visit) {
    if (!doubtful_.empty()) settle();
    Shadow& shadow = shadows_[owner.rank];
    address -= SharedMemory::first_address;
    const uint32_t end = address + bytes;
    if (shadow.words.size() * 4 < end) shadow.words.resize(owner.shared.end_address() / 4 + 1);
    for (uint32_t at = address; at < end;) {
        Cell& cell = shadow.words[at / 4];
        const uint32_t next = std::min(end, at / 4 * 4 + 4);
        if (next - at == 4 && !cell.split) visit(cell, at + SharedMemory::first_address);
        else
            for (Cell* parts = split(cell); at < next; ++at) visit(parts[at % 4], at + SharedMemory::first_address);
        at = next;
    }
}

static bool same_reads(const Touch& a, const Touch& b) {
    return a.row == b.row && a.time == b.time && a.site == b.site && a.by == b.by && a.exchanges == b.exchanges;
}

void RaceCheck::add_read(Cell& cell, const Touch& touch) {
    Touch& newest = cell.read;
    if (same_reads(newest, touch)) {
        newest.lanes |= touch.lanes;
        return;
    }
    if (newest.lanes && newest.row == touch.row && newest.by == touch.by) newest.lanes &= ~touch.lanes;
    if (newest.lanes) {                                  // others have read it too: keep them all
        if (!cell.more) {
            if (free_more_.empty()) {
                free_more_.push_back(uint32_t(more_.size()));
                more_.emplace_back();
            }
            cell.more = free_more_.back();
            free_more_.pop_back();
        }
        auto& others = more_[cell.more];
        for (Touch& other : others)
            if (other.row == touch.row && other.by == touch.by) other.lanes &= ~touch.lanes;
        others.erase(std::remove_if(others.begin(), others.end(), [](const Touch& t) { return t.lanes == 0; }), others.end());
        for (Touch& other : others)
            if (same_reads(other, touch)) {
                other.lanes |= touch.lanes;
                return;
            }
        others.push_back(newest);
    }
    newest = touch;
}

void RaceCheck::set_write(Cell& cell, const Touch& touch) {
    cell.write = touch;
    cell.read.lanes = 0;
    if (!cell.more) return;
    more_[cell.more].clear();
    free_more_.push_back(cell.more);
    cell.more = 0;
}

// ---- order ----

bool RaceCheck::ordered(const Touch& before, const ThreadOrder& thread) {
    if (before.row < thread.known->least.size() && thread.known->least[before.row] >= before.time) return true;
    for (uint32_t rest = before.lanes; rest; rest &= rest - 1)
        if (!thread.is_behind(before.row * 32u + unsigned(__builtin_ctz(rest)), before.time)) return false;
    return true;
}

void RaceCheck::check_write(const Cell& cell, const ThreadOrder& thread, const Touch& touch, bool writes, Block& owner,
                            uint32_t address) {
    if (!cell.write.lanes || ordered(cell.write, thread)) return;
    if (cell.write.by == Toucher::atomic && touch.by == Toucher::atomic) return;
    const bool one_instruction = writes && cell.write.site == touch.site && cell.write.row == touch.row &&
                                 cell.write.exchanges == touch.exchanges && touch.by == Toucher::thread;
    const char* kind = writes ? "write after write" : "read after write";
    if (!one_instruction) return report(kind, cell.write, true, touch, writes, owner, address);
    doubtful_.push_back({cell.write, touch, &owner, address, {}});
    memcpy(doubtful_.back().before, owner.shared.pointer(address & ~3u), 4);
}

void RaceCheck::settle() {
    for (const Doubtful& d : doubtful_)
        if (memcmp(d.before, d.owner->shared.pointer(d.address & ~3u), 4) != 0)
            report("write after write", d.first, true, d.second, true, *d.owner, d.address);
    doubtful_.clear();
}

void RaceCheck::check_reads(const Cell& cell, const ThreadOrder& thread, const Touch& touch, Block& owner, uint32_t address) {
    if (cell.read.lanes && !ordered(cell.read, thread))
        return report("write after read", cell.read, false, touch, true, owner, address);
    if (!cell.more) return;
    for (const Touch& read : more_[cell.more])
        if (read.lanes && !ordered(read, thread))
            return report("write after read", read, false, touch, true, owner, address);
}

// Ordinary stores reach TMA and the tensor cores through fence_proxy_async.
void RaceCheck::check_proxy(const Cell& cell, const ThreadOrder& thread, const Touch& touch, bool writes, Block& owner,
                            uint32_t address) {
    const Touch& write = cell.write;
    if (!write.lanes || (write.by != Toucher::thread && write.by != Toucher::cp_async && write.by != Toucher::atomic)) return;
    if (!ordered(write, thread)) return;                 // reported as a race
    for (uint32_t rest = write.lanes; rest; rest &= rest - 1)
        if (!thread.sees_through_proxy(write.row * 32u + unsigned(__builtin_ctz(rest)), write.time))
            return report("missing proxy fence", write, true, touch, writes, owner, address);
}

// ---- accesses ----

static Touch touch_of(const Fiber& fiber, const ThreadOrder& order, Site site, Toucher by) {
    return {RaceCheck::offset(site), order.time, 1u << fiber.lane, order.exchanges, uint16_t(order.index / 32), by, false};
}

void RaceCheck::read(const Fiber& fiber, Block& owner, uint32_t address, unsigned bytes, Site site) {
    const ThreadOrder& order = *fiber.order;
    const Touch touch = touch_of(fiber, order, site, Toucher::thread);
    each_cell(owner, address, bytes, [&](Cell& cell, uint32_t at) {
        check_write(cell, order, touch, false, owner, at);
        add_read(cell, touch);
    });
}

void RaceCheck::write(const Fiber& fiber, Block& owner, uint32_t address, unsigned bytes, Site site, Toucher by) {
    const ThreadOrder& order = *fiber.order;
    const Touch touch = touch_of(fiber, order, site, by);
    each_cell(owner, address, bytes, [&](Cell& cell, uint32_t at) {
        check_write(cell, order, touch, true, owner, at);
        check_reads(cell, order, touch, owner, at);
        set_write(cell, touch);
    });
}

void RaceCheck::use_barrier(const Fiber& fiber, Block& owner, uint32_t address, Site site) {
    const ThreadOrder& order = *fiber.order;
    const Touch touch = touch_of(fiber, order, site, Toucher::atomic);
    each_cell(owner, address, 8, [&](Cell& cell, uint32_t at) { check_write(cell, order, touch, true, owner, at); });
}

void RaceCheck::start_write(const Fiber& fiber, Block& owner, uint32_t address, unsigned bytes, Site site, Toucher by) {
    const ThreadOrder& order = *fiber.order;
    Touch touch = touch_of(fiber, order, site, by);
    Touch pending = touch;
    pending.time = never;
    each_cell(owner, address, bytes, [&](Cell& cell, uint32_t at) {
        check_write(cell, order, touch, true, owner, at);
        check_reads(cell, order, touch, owner, at);
        if (by == Toucher::tma_load) check_proxy(cell, order, touch, true, owner, at);
        set_write(cell, pending);
    });
}

void RaceCheck::land(Block& owner, uint32_t address, unsigned bytes, Site site, uint32_t clock, uint32_t time) {
    const uint32_t from = offset(site);
    each_cell(owner, address, bytes, [&](Cell& cell, uint32_t) {
        if (cell.write.time != never || cell.write.site != from) return;
        cell.write.time = time;
        cell.write.row = uint16_t(clock / 32);
        cell.write.lanes = 1u << clock % 32;
        cell.write.ended = true;
    });
}

// A tile has few writers: who was found in order once need not be asked again.
void RaceCheck::start_read(Read& read, Block& owner, uint32_t address, unsigned bytes) {
    each_cell(owner, address, bytes, [&](Cell& cell, uint32_t at) {
        if (memcmp(&cell.write, &read.checked, sizeof(Touch)) != 0) {
            for (const ThreadOrder* starter : read.starters) {
                check_write(cell, *starter, read.touch, false, owner, at);
                check_proxy(cell, *starter, read.touch, false, owner, at);
            }
            read.checked = cell.write;
        }
        add_read(cell, read.touch);
    });
}

// ---- what was found: once for each pair of lines ----

void RaceCheck::report(const char* kind, const Touch& first, bool first_writes, const Touch& second, bool second_writes,
                       Block& owner, uint32_t address) {
    char key[100];
    snprintf(key, sizeof key, "%u %u %s %d %d", first.site, second.site, kind, int(first.by), int(second.by));
    FoundRace& race = found_[key];
    if (race.count++) {
        if (race.first.row == first.row) race.first.lanes |= first.lanes;
        if (race.second.row == second.row) race.second.lanes |= second.lanes;
        return;
    }
    std::string where = describe_address(block().shared.pointer(address));
    if (&owner != &block()) where += " of block " + std::to_string(owner.rank) + " of the cluster";
    race = {kind, first, second, first_writes, second_writes, where, owner.number, 1};
}

}  // namespace emu
