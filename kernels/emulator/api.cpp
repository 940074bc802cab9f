// What flashmoe_nb/emulator.py calls through ctypes.
#include "fault.h"
#include "launch.h"
#include "memory.h"
#include "module.h"
#include "report.h"
#include <climits>
#include <cstring>

using namespace emu;

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))

// No exception crosses into Python: a null result, and the reason here.
static thread_local std::string reason;

template <class Make> static auto guarded(Make make) -> decltype(make()) {
    try {
        return make();
    } catch (const std::exception& e) {
        reason = e.what();
        return nullptr;
    }
}

struct Launch {
    FaultHandlers handlers;
    Grid grid;
    std::string output, trace, report;

    explicit Launch(const LaunchSpec& spec) : grid(spec) {}
};

EMU_EXPORT const char* emu_reason() { return reason.c_str(); }

EMU_EXPORT Module* emu_module(const char* path, const void* inside) {
    return guarded([&] { return new Module(path, inside); });
}

EMU_EXPORT const char* emu_signature_name(const Module* module) { return module->signature().c_str(); }
EMU_EXPORT uint64_t emu_static_shared(const Module* module) { return module->static_end() - module->static_begin(); }

// Whether the next launch of this thread may begin before the kernels ahead of it have ended.
static thread_local bool next_is_dependent = false;
EMU_EXPORT void emu_dependent(int dependent) { next_is_dependent = dependent != 0; }

EMU_EXPORT Arguments* emu_arguments(MappingSpec* mappings, size_t m, const SpanSpec* spans, size_t s, const ExtentSpec* extents,
                                    size_t e) {
    return guarded([&] {
        auto* arguments = new Arguments({mappings, mappings + m}, {spans, spans + s}, {extents, extents + e}, next_is_dependent);
        next_is_dependent = false;
        for (size_t i = 0; i < m; ++i) mappings[i].address = arguments->address(i);
        return arguments;
    });
}

// Null, or what was written outside every argument without meeting a guard.
EMU_EXPORT const char* emu_intact(const Arguments* arguments) {
    reason = arguments->stray_write();
    if (reason.empty()) return nullptr;
    reason = "something was written " + reason + "; check=(\"memory\",) says by which line";
    return reason.c_str();
}

EMU_EXPORT void emu_write_back(const Arguments* arguments) { arguments->write_back(); }
EMU_EXPORT void emu_free_arguments(Arguments* arguments) { delete arguments; }

EMU_EXPORT Launch* emu_start(const LaunchSpec* spec) {
    return guarded([&] {
        auto launch = std::make_unique<Launch>(*spec);
        start(launch->grid);
        return launch.release();
    });
}

EMU_EXPORT int emu_wait(Launch* launch, double seconds) { return wait(launch->grid, seconds); }
EMU_EXPORT void emu_stop(Launch* launch) { launch->grid.stop_above = -1; }

// After the end.
EMU_EXPORT const char* emu_error_kind(const Launch* launch) {
    return launch->grid.error ? launch->grid.error->kind.c_str() : nullptr;
}
EMU_EXPORT const char* emu_error_text(const Launch* launch) { return launch->grid.error->text.c_str(); }
EMU_EXPORT void emu_counters(const Launch* launch, Counters* counters) { *counters = launch->grid.counters; }

static const char* joined(const std::map<long, std::string>& parts, std::string& whole) {
    whole.clear();
    for (auto& [block, text] : parts) whole += text;
    return whole.c_str();
}

EMU_EXPORT const char* emu_output(Launch* launch) { return joined(launch->grid.output, launch->output); }
EMU_EXPORT const char* emu_trace(Launch* launch) { return joined(launch->grid.trace, launch->trace); }
EMU_EXPORT const char* emu_report(Launch* launch) { return (launch->report = report_of(launch->grid)).c_str(); }
EMU_EXPORT void emu_free_launch(Launch* launch) { delete launch; }
