// Linked behind every kernel: the page that ends the statically declared shared arrays, and the dynamic part.
#include "shared_layout.h"

namespace emu {
EMU_EXTERN_STORAGE unsigned char front_guard[page_bytes];
EMU_STORAGE(page_bytes) middle_guard[page_bytes];
}  // namespace emu

EMU_STORAGE(emu::page_bytes) smem_raw[emu::dynamic_capacity];

extern "C" __attribute__((visibility("default"))) void emu_shared_layout(void** layout) {
    layout[0] = emu::front_guard;
    layout[1] = emu::middle_guard;
    layout[2] = smem_raw;
}
