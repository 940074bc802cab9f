// Launches a kernel library without Python: for machines that only an interpreter of their instructions gives us.
// driver RUNTIME KERNEL grid block shared schedule checks ARGUMENT…
// An argument is "in:N" (0, 1, …, N - 1), "out:N" (N times -1, printed afterwards) or a number; all are ints.
#include <dlfcn.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include "../../kernels/emulator/grid.h"
#include "../../kernels/emulator/memory.h"
#include "../../kernels/emulator/module.h"

using namespace emu;

static void* runtime;
static void* kernel;

template <class F> static F* find(void* library, const char* name) {
    void* symbol = dlsym(library, name);
    if (!symbol) {
        std::fprintf(stderr, "%s\n", dlerror());
        std::exit(2);
    }
    return reinterpret_cast<F*>(symbol);
}

struct Tensor {
    std::vector<int> values;
    bool printed;
    size_t mapping;
};

int main(int count, char** words) {
    runtime = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
    kernel = runtime ? dlopen(words[2], RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!kernel) return std::fprintf(stderr, "%s\n", dlerror()), 2;

    std::vector<Tensor> tensors;
    std::vector<uint64_t> values;
    std::vector<int> tensor_of;
    for (int i = 8; i < count; ++i) {
        const bool in = std::strncmp(words[i], "in:", 3) == 0, out = std::strncmp(words[i], "out:", 4) == 0;
        tensor_of.push_back(in || out ? int(tensors.size()) : -1);
        values.push_back(in || out ? 0 : uint64_t(uint32_t(std::atoi(words[i]))));
        if (!in && !out) continue;
        std::vector<int> data(std::strtoul(std::strchr(words[i], ':') + 1, nullptr, 10), -1);
        for (size_t k = 0; in && k < data.size(); ++k) data[k] = int(k);
        tensors.push_back({data, out, tensors.size()});
    }
    std::vector<MappingSpec> mappings;
    std::vector<SpanSpec> spans;
    std::vector<ExtentSpec> extents;
    for (size_t i = 0; i < tensors.size(); ++i) {
        const uint64_t begin = uint64_t(tensors[i].values.data()), bytes = 4 * tensors[i].values.size();
        mappings.push_back({begin, begin + bytes, 0, 0});
        spans.push_back({begin, bytes, uint32_t(i), tensors[i].printed});
        extents.push_back({begin, bytes, uint32_t(i), uint32_t(i), tensors[i].printed, 0});
    }
    auto* arguments = find<Arguments*(MappingSpec*, size_t, const SpanSpec*, size_t, const ExtentSpec*, size_t)>(runtime, "emu_arguments")(
        mappings.data(), mappings.size(), spans.data(), spans.size(), extents.data(), extents.size());
    std::vector<void*> pointers;
    for (size_t i = 0; i < values.size(); ++i) {
        if (tensor_of[i] >= 0) values[i] = mappings[size_t(tensor_of[i])].address;
        pointers.push_back(&values[i]);
    }

    auto* entry = find<void(void**)>(kernel, "emu_entry");
    LaunchSpec spec{};
    spec.entry = entry;
    spec.shared_layout = find<void(void**)>(kernel, "emu_shared_layout");
    spec.values = pointers.data();
    spec.arguments = arguments;
    spec.module = find<Module*(const char*, const void*)>(runtime, "emu_module")(words[2], reinterpret_cast<void*>(entry));
    for (int i = 0; i < 3; ++i) spec.grid[i] = spec.block[i] = spec.cluster[i] = 1;
    spec.grid[0] = uint32_t(std::atoi(words[3]));
    spec.block[0] = uint32_t(std::atoi(words[4]));
    spec.shared_bytes = uint32_t(std::atoi(words[5]));
    spec.schedule = uint32_t(std::atoi(words[6]));
    spec.checks = uint32_t(std::atoi(words[7]));
    spec.workers = 2;

    void* launch = find<void*(const LaunchSpec*)>(runtime, "emu_start")(&spec);
    while (!find<int(void*, double)>(runtime, "emu_wait")(launch, 0.2)) {}
    if (const char* kind = find<const char*(void*)>(runtime, "emu_error_kind")(launch)) {
        std::printf("%s: %s\n", kind, find<const char*(void*)>(runtime, "emu_error_text")(launch));
        return 1;
    }
    find<void(const Arguments*)>(runtime, "emu_write_back")(arguments);
    for (const Tensor& t : tensors)
        for (int v : t.values)
            if (t.printed) std::printf("%d ", v);
    std::printf("\n");
    find<void(void*)>(runtime, "emu_free_launch")(launch);
}
