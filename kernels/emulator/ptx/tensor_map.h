// The tensor map the emulator is given: the arguments of cuTensorMapEncodeTiled, in 128 bytes as on the GPU.
// Dimension 0 is the innermost. flashmoe_nb.emulator writes it.
#pragma once
#include <stdint.h>

struct alignas(64) CUtensorMap_st {
    static constexpr uint32_t signature = 0x504D5446;

    uint64_t address, size[5], stride[4];    // elements; bytes between neighbours of dimension i + 1
    uint16_t box[5];                         // elements
    uint8_t element_stride[5], rank, type;   // type: CUtensorMapDataType
    uint8_t swizzle;                         // 0 none, 1 32 bytes, 2 64 bytes, 3 128 bytes
    uint8_t interleave, fill;                // fill: what elements outside read as, 0 zero, 1 NaN
    uint32_t magic;                          // signature
    uint8_t reserved[24];
};
using CUtensorMap = CUtensorMap_st;
static_assert(sizeof(CUtensorMap) == 128, "as large as the driver's");
