// Meetings of warps: see timeline.h.
#include "timeline.h"
#include "grid.h"
#include "race.h"
#include <algorithm>

namespace emu {

void Timeline::start(unsigned warps, bool keep) {
    recent_.assign(warps, {});
    keep_ = keep;
}

// Lanes that meet at the same place for the same thing are one meeting of their warp.
bool Timeline::merge(const Meet& meet) {
    for (Recent& recent : recent_[meet.warp]) {
        Meet& m = recent.meet;
        if (m.site != meet.site || m.object != meet.object || m.generation != meet.generation || m.what != meet.what) continue;
        if (m.lanes & meet.lanes) continue;
        m.lanes |= meet.lanes;
        if (recent.kept < kept_.size()) {
            Meet& kept = kept_[recent.kept].meet;
            kept.lanes = m.lanes;
            kept.from = std::min(kept.from, meet.from);
            kept.to = std::max(kept.to, meet.to);
        }
        return true;
    }
    return false;
}

void Timeline::add(const Meet& meet, const Waitable& object) {
    constexpr size_t most_recent = 8;
    if (merge(meet)) return;
    auto& recent = recent_[meet.warp];
    if (recent.size() == most_recent) recent.erase(recent.begin());
    recent.push_back({meet, keep_ && kept_.size() < most_meets ? kept_.size() : ~size_t(0)});
    if (recent.back().kept != ~size_t(0)) kept_.push_back({meet, object.name()});
    if (meet.what != Meet::wait) return;
    Waits& waits = waits_[{meet.site, meet.warp}];
    if (waits.count++ == 0) waits.object = object.name();
    waits.held += meet.to > meet.from;
    waits.steps += meet.to > meet.from ? meet.to - meet.from : 0;
}

void note_meet(const Fiber& fiber, Meet::What what, const Waitable& object, unsigned generation, Site site, uint32_t to, int by) {
    if (!fiber.order) return;
    const uint32_t from = fiber.order->step;
    const Meet meet{what, fiber.warp, 1u << fiber.lane, site, &object, generation, from, std::max(from, to), by};
    fiber.block->timeline.add(meet, object);
}

}  // namespace emu
