// Vector clocks: see order.h.
#include "order.h"
#include <algorithm>

namespace emu {

void Knowledge::summarise() {
    least.assign((clock.size() + 31) / 32, 0);
    for (size_t row = 0; row * 32 + 32 <= clock.size(); ++row)
        least[row] = *std::min_element(&clock[row * 32], &clock[row * 32] + 32);
}

static void raise(Clocks& clocks, const Clocks& other) {
    if (clocks.size() < other.size()) clocks.resize(other.size());
    for (size_t i = 0; i < other.size(); ++i) clocks[i] = std::max(clocks[i], other[i]);
}

static void raise(Clocks& clocks, uint32_t at, uint32_t time) {
    if (clocks.size() <= at) clocks.resize((at / 32 + 1) * 32);
    clocks[at] = std::max(clocks[at], time);
}

static bool contains(const Clocks& clocks, const Clocks& other) {
    for (size_t i = 0; i < other.size(); ++i)
        if (other[i] > (i < clocks.size() ? clocks[i] : 0)) return false;
    return true;
}

static bool contains(const Published& all, const Published& some) {
    for (auto& [cluster, known] : some) {
        const auto it = all.find(cluster);
        if (it == all.end() || (it->second != known && !contains(it->second->clock, known->clock))) return false;
    }
    return true;
}

// ---- other clusters ----

static void add_one(Published& sum, long cluster, const Known& known) {
    Known& mine = sum[cluster];
    if (mine == known || (mine && contains(mine->clock, known->clock))) return;
    if (!mine && known->others.empty()) {
        mine = known;
        return;
    }
    auto both = std::make_shared<Knowledge>();
    both->clock = known->clock;
    both->proxied = known->proxied;
    if (mine) {
        raise(both->clock, mine->clock);
        raise(both->proxied, mine->proxied);
    }
    mine = std::move(both);
}

void add(Published& sum, const Published& more) {
    for (auto& [cluster, known] : more) add_one(sum, cluster, known);
}

void add(Published& sum, long cluster, const Known& known) {
    add_one(sum, cluster, known);
    add(sum, known->others);
}

Known as_known(const Published& published, long cluster) {
    auto news = std::make_shared<Knowledge>();
    for (auto& [number, known] : published) {
        if (number != cluster) {
            add_one(news->others, number, known);
            continue;
        }
        news->clock = news->visible = known->clock;
        news->proxied = known->proxied;
    }
    news->summarise();
    return news;
}

Known snapshot(ThreadOrder& thread) {
    Meeting alone;
    alone.publish(thread);
    return alone.close();
}

// The fence may stand in the thread that counts, behind a barrier, or before that barrier in all that have written.
Known visible_of(const ThreadOrder& thread) {
    if (!thread.released && thread.known->visible.empty()) return nullptr;
    auto seen = std::make_shared<Knowledge>();
    seen->clock = thread.known->visible;
    if (thread.released) raise(seen->clock, thread.released->clock);
    seen->others = thread.known->others;
    return seen;
}

// ---- what a thread does ----

void ThreadOrder::fence() {
    fenced = known;
    fenced_time = time++;                        // what it writes from here on is not covered
}

void Meeting::publish(ThreadOrder& thread) {
    if (!sum_) sum_ = std::make_shared<Knowledge>(*thread.known);
    else if (thread.known != last_known_) {
        raise(sum_->clock, thread.known->clock);
        raise(sum_->proxied, thread.known->proxied);
        raise(sum_->visible, thread.known->visible);
        add(sum_->others, thread.known->others);
    }
    if (thread.released) raise(sum_->visible, thread.released->clock);
    last_known_ = thread.known;
    if (thread.fenced && thread.fenced != last_fenced_) {
        raise(sum_->proxied, thread.fenced->clock);
        last_fenced_ = thread.fenced;
    }
    raise(sum_->clock, thread.index, thread.time);
    if (thread.fenced_time) raise(sum_->proxied, thread.index, thread.fenced_time);
    ++thread.time;
    if (thread.step >= step) {
        step = thread.step;
        last = int(thread.index / 32);
    }
}

void Meeting::publish(uint32_t clock, uint32_t time, uint32_t when, bool async) {
    if (!sum_) sum_ = std::make_shared<Knowledge>();
    raise(sum_->clock, clock, time);
    if (async) raise(sum_->proxied, clock, time);
    if (when < step) return;
    step = when;
    last = -1;
}

Known Meeting::close() {
    if (!sum_) return nullptr;
    sum_->summarise();
    last_known_ = last_fenced_ = nullptr;
    step = 0;
    last = -1;
    return std::move(sum_);
}

void Learning::learn(ThreadOrder& thread, const Known& news) {
    if (!news || news == thread.known) return;
    if (before_ != thread.known || news_ != news) {
        before_ = thread.known;
        news_ = news;
        auto covers = [](const Knowledge& all, const Knowledge& some) {
            return contains(all.clock, some.clock) && contains(all.proxied, some.proxied) && contains(all.visible, some.visible) &&
                   contains(all.others, some.others);
        };
        const bool nothing_new = covers(*before_, *news), nothing_old = !nothing_new && covers(*news, *before_);
        after_ = nothing_new ? before_ : news;
        if (!nothing_new && !nothing_old) {
            auto both = std::make_shared<Knowledge>(*before_);
            raise(both->clock, news->clock);
            raise(both->proxied, news->proxied);
            raise(both->visible, news->visible);
            add(both->others, news->others);
            both->summarise();
            after_ = std::move(both);
        }
    }
    thread.known = after_;
}

void Learning::learn(ThreadOrder& thread, uint32_t clock, uint32_t time) {
    if (thread.known->of(clock) >= time) return;
    if (one_before_ != thread.known || one_clock_ != clock || one_time_ != time) {
        auto more = std::make_shared<Knowledge>(*thread.known);
        raise(more->clock, clock, time);
        raise(more->proxied, clock, time);
        more->summarise();
        one_before_ = thread.known;
        one_clock_ = clock;
        one_time_ = time;
        one_after_ = std::move(more);
    }
    thread.known = one_after_;
}

}  // namespace emu
