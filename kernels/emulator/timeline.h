// Who waited for whom: meetings of warps in the order of cause and effect. Used by check "race".
//
// The axis is no time. Every access and every meeting is a step, and a meeting comes one step after the last of those it had
// to wait for; so the picture is the same under every schedule.
#pragma once
#include "runtime.h"
#include <map>
#include <string>
#include <vector>

namespace emu {

struct Meet {
    enum What : uint8_t { arrive, wait, start };     // start: of asynchronous work
    What what;
    unsigned warp;
    uint32_t lanes;
    Site site;
    const Waitable* object;
    unsigned generation;                             // of the object: its phase
    uint32_t from, to;                               // steps: when the warp came, when it could go on
    int by;                                          // the row of clocks whose arrival came last; -1 for asynchronous work
};

struct Waits { uint64_t count = 0, held = 0, steps = 0; std::string object; };      // held: had to wait; steps: how long

class Timeline {
public:
    static constexpr size_t most_meets = 8000;
    void start(unsigned warps, bool keep);           // for a block; keep: its meets, not only their sums
    void add(const Meet& meet, const Waitable& object);

    struct Kept { Meet meet; std::string object; };
    const std::vector<Kept>& kept() const { return kept_; }
    const std::map<std::pair<Site, unsigned>, Waits>& waits() const { return waits_; }      // by place and warp
    void clear() { waits_.clear(); kept_.clear(); }

private:
    struct Recent { Meet meet; size_t kept; };
    bool merge(const Meet& meet);
    std::vector<std::vector<Recent>> recent_;        // by warp: the lanes of one meeting come one by one
    std::map<std::pair<Site, unsigned>, Waits> waits_;
    std::vector<Kept> kept_;
    bool keep_ = false;
};

// Notes a meeting of a thread, if meetings are watched. It came at its own step.
void note_meet(const Fiber& fiber, Meet::What what, const Waitable& object, unsigned generation, Site site, uint32_t to, int by);

}  // namespace emu
