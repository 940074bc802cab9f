// How instrumented code and signal handlers hand accesses over.
#pragma once
#include "runtime.h"

namespace emu {

void instrumented_access(const void* address, size_t bytes, Access kind, Site site);

// Counts an access of the calling thread, and looks for races, where asked for.
void watch_access(const void* address, size_t bytes, Access kind, Site site);

// ptx/wgmma.cpp: local memory of the calling thread, part of which may be lent to the tensor cores.
void check_local(const void* address, size_t bytes, Access kind, Site site);
[[noreturn]] void misaligned_access(const void* address, size_t alignment, const char* type, Site site);

}  // namespace emu
