// Linked in front of every kernel: a page the runtime protects, so that running off the front of the statically
// declared shared arrays faults. Shared memory is thread-local storage: one OS thread runs one block at a time.
#include "shared_layout.h"

namespace emu {
EMU_STORAGE(page_bytes) front_guard[page_bytes];
}
