// A box of a tensor in global memory and its image in shared memory, as TMA moves it.
#pragma once
#include "../runtime.h"
#include "tensor_map.h"
#include <vector>

namespace emu {

enum class Element : uint8_t { u8 = 0, u16, u32, s32, u64, s64, f16, f32, f64, bf16 };    // CUtensorMapDataType

struct Tile {
    Element type = Element::u8;
    unsigned element_bytes = 1, rank = 1, swizzle = 0;   // swizzle: bytes of a row, or 0
    bool fill_nan = false;
    uint64_t address = 0, size[5] = {1, 1, 1, 1, 1}, stride[4] = {};
    uint32_t box[5] = {1, 1, 1, 1, 1};
    int64_t at[5] = {};

    // What a tensor map describes, at these coordinates. Fails on a map that is none, or of another rank.
    static Tile of(const CUtensorMap_st* map, const int* at, int rank, Site site);
    static Tile contiguous(const void* address, uint32_t bytes, Element type, unsigned element_bytes);

    uint32_t row_bytes() const { return box[0] * element_bytes; }
    uint32_t rows() const { return box[1] * box[2] * box[3] * box[4]; }
    uint32_t bytes() const { return row_bytes() * rows(); }
    uint32_t alignment() const { return swizzle ? 8 * swizzle : rank_alignment; }
    uint32_t rank_alignment = 128;

    // The tile's bytes in shared memory's order, read from global memory; outside the tensor, the fill.
    std::vector<uint8_t> load(uint32_t shared_address, Site site) const;
    // The reverse: writes what lies inside the tensor, or adds it.
    void store(const std::vector<uint8_t>& image, uint32_t shared_address, bool add, Site site) const;

private:
    struct Row { char* global; uint32_t first, end; };   // the elements [first, end) are inside the tensor
    Row row(uint32_t i) const;
    uint32_t chunk(uint32_t shared_address, uint32_t offset) const;      // where 16 bytes of the tile lie in its image
};

// *address += value, atomically, in the element's type and rounding.
void atomic_add(Element type, char* address, const uint8_t* value, Site site);

}  // namespace emu
