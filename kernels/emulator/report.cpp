// Rows of a report: a letter for the kind of row, and fields, between tabs.
#include "report.h"
#include "grid.h"
#include "module.h"

namespace emu {

static const char* name_of(Access kind) {
    return kind == Access::read ? "read" : kind == Access::write ? "write" : "atomic";
}

static const char* name_of(Toucher by) {
    constexpr const char* names[] = {"thread", "atomic", "cp_async", "tma_load", "tma_store", "wgmma"};
    return names[unsigned(by)];
}

class Rows {
public:
    explicit Rows(char kind) { text_ += kind; }
    Rows& operator<<(const std::string& field) { return text_ += '\t' + field, *this; }
    Rows& operator<<(const char* field) { return *this << std::string(field); }
    template <class Number> Rows& operator<<(Number n) { return *this << std::to_string(n); }
    std::string line() const { return text_ + '\n'; }

private:
    std::string text_;
};

static void add_traffic(const Grid& grid, std::string& text) {
    for (auto& [key, t] : grid.traffic) {
        if (t.requests == 0) continue;
        Rows row('A');
        row << grid.spec.module->place(key.site) << (key.space == Space::shared ? "shared" : "global") << name_of(key.kind)
            << unsigned(key.width) << t.requests << t.lanes << t.bytes << t.wavefronts << t.ideal_wavefronts << t.sectors
            << t.ideal_sectors;
        text += row.line();
    }
}

// A row of clocks: block of the cluster (-1: of an agent that is no thread), warp (one more than there are: the tensor cores,
// with a lane for each warp), lanes.
static void add_touch(const Grid& grid, Rows& row, const Touch& touch, bool writes) {
    const unsigned rows = (grid.spec.block[0] * grid.spec.block[1] * grid.spec.block[2] + 31) / 32 + 1;
    row << grid.spec.module->place(grid.spec.module->site(touch.site)) << name_of(touch.by) << int(writes)
        << (touch.row < rows * grid.cluster_size ? int(touch.row / rows) : -1) << touch.row % rows << touch.lanes;
}

static void add_races(const Grid& grid, std::string& text) {
    std::map<std::string, FoundRace> all = grid.races;
    if (grid.global_races) all.insert(grid.global_races->found().begin(), grid.global_races->found().end());
    for (auto& [key, race] : all) {
        Rows row('R');
        row << race.kind << race.block << race.where << race.count;
        add_touch(grid, row, race.first, race.first_writes);
        add_touch(grid, row, race.second, race.second_writes);
        row << race.first_block << race.second_block;
        text += row.line();
    }
}

static void add_meetings(const Grid& grid, std::string& text) {
    for (auto& [key, waits] : grid.waits) {
        Rows row('W');
        row << grid.spec.module->place(key.first) << key.second << waits.object << waits.count << waits.held << waits.steps;
        text += row.line();
    }
    constexpr const char* names[] = {"arrive", "wait", "start"};
    for (auto& [meet, object] : grid.meets) {
        Rows row('M');
        row << names[meet.what] << meet.warp << meet.lanes << grid.spec.module->place(meet.site) << object << meet.generation
            << meet.from << meet.to << meet.by;
        text += row.line();
    }
}

std::string report_of(const Grid& grid) {
    std::string text;
    add_traffic(grid, text);
    add_races(grid, text);
    add_meetings(grid, text);
    return text;
}

}  // namespace emu
