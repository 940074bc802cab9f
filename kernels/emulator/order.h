// What a thread can be sure has happened: vector clocks, and how barriers hand them on. Used by check "race".
//
// Every thread counts its own time, which advances when it publishes something. A thread's knowledge says, for every other
// thread of its cluster, up to which time of that one it is ordered behind it. Two accesses are ordered if the later one's
// thread knows the earlier one's time (Lamport, "Time, Clocks and the Ordering of Events in a Distributed System", 1978;
// Mattern, "Virtual Time and Global States of Distributed Systems", 1988).
//
// Clocks stand in rows of 32, a row per warp. Work that no thread does has rows too: the products of a warp on the tensor
// cores (row `tensor_row`, a lane per warp), the copies that an mbarrier counts, a thread's bulk stores.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace emu {

using Clocks = std::vector<uint32_t>;
struct Knowledge;
using Known = std::shared_ptr<const Knowledge>;
using Published = std::map<long, Known>;        // what is known of clusters, by their numbers

// Shared between all threads that know the same, hence never changed once it is known.
struct Knowledge {
    Clocks clock;              // by thread, 32 to a row; what is not there is 0
    Clocks proxied;            // the same, as far as TMA and the tensor cores see it (fence_proxy_async)
    Clocks visible;            // the same, as far as the whole GPU sees it (__threadfence)
    Clocks least;              // the smallest clock of each row
    Published others;          // the other clusters, as far as something in global memory has told of them

    uint32_t of(uint32_t thread) const { return thread < clock.size() ? clock[thread] : 0; }
    uint32_t proxied_of(uint32_t thread) const { return thread < proxied.size() ? proxied[thread] : 0; }
    void summarise();
};

constexpr uint32_t never = 0xFFFFFFFF;          // the time of something nobody has waited for

// One thread's place in the order.
struct ThreadOrder {
    uint32_t index = 0;                         // of its clock
    uint32_t time = 1, fenced_time = 0;         // its own, now and at its last proxy fence
    Known known, fenced;                        // what it knows; what it knew at its last proxy fence
    Known released;                             // what it knew at its last __threadfence
    Published unfenced;                         // what atomics have read: known from the next __threadfence on
    uint32_t exchanges = 0;                     // meetings of the whole warp: tells one instruction's turns from the next ones
    uint32_t step = 0;                          // length of the longest chain of accesses and meetings that led here

    bool is_behind(uint32_t thread, uint32_t when) const {
        return known->of(thread) >= when || (thread == index && when != never);
    }
    bool sees_through_proxy(uint32_t thread, uint32_t when) const {
        return known->proxied_of(thread) >= when || (fenced && fenced->of(thread) >= when) ||
               (thread == index && fenced_time >= when);
    }
    void fence();                               // fence_proxy_async
};

Known snapshot(ThreadOrder& thread);            // of what it knows and has done; its time advances
Known visible_of(const ThreadOrder& thread);    // what the whole GPU sees of that: what an atomic publishes; or null
void add(Published& sum, long cluster, const Known& known);
void add(Published& sum, const Published& more);
Known as_known(const Published& published, long cluster);       // for a thread of that cluster

// Where threads leave what they know: a barrier's current phase.
class Meeting {
public:
    void publish(ThreadOrder& thread);          // releases: the thread's time advances
    void publish(uint32_t clock, uint32_t time, uint32_t step, bool async);     // of work that no thread does
    Known close();                              // what has been left here; empties it
    uint32_t step = 0;                          // of the last one to come
    int last = -1;                              // its row, or -1

private:
    std::shared_ptr<Knowledge> sum_;
    Known last_known_, last_fenced_;            // already part of the sum
};

// Adds to what a thread knows. Equal questions in a row, as the threads of a warp put them, share one answer.
class Learning {
public:
    void learn(ThreadOrder& thread, const Known& news);
    void learn(ThreadOrder& thread, uint32_t clock, uint32_t time);

private:
    Known before_, news_, after_;
    Known one_before_, one_after_;
    uint32_t one_clock_ = 0, one_time_ = 0;
};

}  // namespace emu
