#include "tile.h"
#include "../grid.h"
#include "formats.h"
#include <algorithm>
#include <cstring>

namespace emu {

static unsigned bytes_of(Element type) {
    constexpr unsigned bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    return bytes[unsigned(type)];
}

Tile Tile::of(const CUtensorMap_st* map, const int* at, int rank, Site site) {
    if (uintptr_t(map) % 64) fail("MisalignedAccess", site, "a tensor map must be 64-byte aligned");
    if (map->magic != CUtensorMap_st::signature)
        fail("AsyncMisuse", site, "there is no tensor map where the instruction looks for one: pass the address of a `const "
             "__grid_constant__ CUtensorMap` parameter");
    if (rank != map->rank)
        fail("AsyncMisuse", site, "%d coordinates for a tensor map of %d dimensions", rank, map->rank);
    Tile tile;
    tile.type = Element(map->type);
    tile.element_bytes = bytes_of(tile.type);
    tile.rank = unsigned(rank);
    tile.swizzle = map->swizzle ? 16u << map->swizzle : 0;
    tile.fill_nan = map->fill != 0;
    tile.address = map->address;
    for (int i = 0; i < rank; ++i) {
        if (map->element_stride[i] != 1) fail("AsyncMisuse", site, "element strides other than 1 are not emulated");
        tile.size[i] = map->size[i];
        tile.box[i] = map->box[i];
        tile.at[i] = at[i];
        if (i > 0) tile.stride[i - 1] = map->stride[i - 1];
    }
    if (tile.at[0] * tile.element_bytes % 16)
        fail("MisalignedAccess", site, "the first coordinate, %d, is %lld bytes into a row: the copy engine starts at multiples "
             "of 16", at[0], (long long)(tile.at[0] * tile.element_bytes));
    if (tile.swizzle && tile.row_bytes() != tile.swizzle)
        fail("AsyncMisuse", site, "a box %u bytes wide under a swizzle of %u is not emulated: fill the swizzle's width",
             tile.row_bytes(), tile.swizzle);
    return tile;
}

Tile Tile::contiguous(const void* address, uint32_t bytes, Element type, unsigned element_bytes) {
    Tile tile;
    tile.type = type;
    tile.element_bytes = element_bytes;
    tile.address = uint64_t(address);
    tile.size[0] = tile.box[0] = bytes / element_bytes;
    tile.rank_alignment = 16;
    return tile;
}

Tile::Row Tile::row(uint32_t i) const {
    int64_t offset = at[0] * element_bytes;
    bool inside = true;
    for (unsigned d = 1; d < rank; ++d) {
        int64_t c = at[d] + i % box[d];
        i /= box[d];
        inside = inside && c >= 0 && c < int64_t(size[d]);
        offset += c * int64_t(stride[d - 1]);
    }
    int64_t first = std::clamp<int64_t>(-at[0], 0, box[0]), end = std::clamp<int64_t>(int64_t(size[0]) - at[0], first, box[0]);
    return {reinterpret_cast<char*>(address + uint64_t(offset)), uint32_t(first), uint32_t(inside ? end : first)};
}

// Within `swizzle` bytes, 16-byte chunk c of row r (of eight) is exchanged with chunk c ^ r. Rows of 64 and 32 bytes share a
// 128-byte line, and take the line's number.
uint32_t Tile::chunk(uint32_t shared_address, uint32_t offset) const {
    uint32_t a = shared_address + offset;
    return swizzle ? (a ^ (a >> 3 & (swizzle - 16))) - shared_address : offset;
}

static void fill(uint8_t* row, const Tile& tile) {
    constexpr uint64_t nan[] = {0, 0, 0, 0, 0, 0, 0x7FFF, 0x7FFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x7FFF};
    for (uint32_t i = 0; i < tile.box[0]; ++i)
        memcpy(row + i * tile.element_bytes, &nan[tile.fill_nan ? unsigned(tile.type) : 0], tile.element_bytes);
}

std::vector<uint8_t> Tile::load(uint32_t shared_address, Site site) const {
    std::vector<uint8_t> image(bytes()), line(row_bytes());
    for (uint32_t r = 0; r < rows(); ++r) {
        Row global = row(r);
        fill(line.data(), *this);
        uint32_t begin = global.first * element_bytes, count = (global.end - global.first) * element_bytes;
        if (count) {
            access(global.global + begin, count, Access::read, site, Proxy::async);
            if (block().counting) block().counts.bulk(Access::read, site, uint64_t(global.global + begin), count);
            memcpy(line.data() + begin, global.global + begin, count);
        }
        for (uint32_t o = 0; o < row_bytes(); o += 16)
            memcpy(image.data() + chunk(shared_address, r * row_bytes() + o), line.data() + o, 16);
    }
    return image;
}

void Tile::store(const std::vector<uint8_t>& image, uint32_t shared_address, bool add, Site site) const {
    std::vector<uint8_t> line(row_bytes());
    for (uint32_t r = 0; r < rows(); ++r) {
        for (uint32_t o = 0; o < row_bytes(); o += 16)
            memcpy(line.data() + o, image.data() + chunk(shared_address, r * row_bytes() + o), 16);
        Row global = row(r);
        uint32_t begin = global.first * element_bytes, end = global.end * element_bytes;
        if (begin == end) continue;
        const Access kind = add ? Access::atomic : Access::write;
        access(global.global + begin, end - begin, kind, site, Proxy::async);
        if (block().counting) block().counts.bulk(kind, site, uint64_t(global.global + begin), end - begin);
        if (!add) memcpy(global.global + begin, line.data() + begin, end - begin);
        else for (uint32_t o = begin; o < end; o += element_bytes) atomic_add(type, global.global + o, line.data() + o, site);
    }
}

template <class Sum> static void update(char* address, Sum sum) {
    auto* word = reinterpret_cast<uint32_t*>(address);
    uint32_t old = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(word, &old, sum(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

template <class From, class To> static void add_half(char* address, uint16_t value, From from, To to) {
    unsigned shift = uintptr_t(address) % 4 * 8;       // 0 or 16
    update(address - shift / 8, [&](uint32_t old) {
        uint32_t sum = to(from(uint16_t(old >> shift)) + from(value));
        return (old & ~(0xFFFFu << shift)) | sum << shift;
    });
}

void atomic_add(Element type, char* address, const uint8_t* value, Site site) {
    uint32_t v = 0;
    memcpy(&v, value, std::min(bytes_of(type), 4u));
    switch (type) {
        case Element::f32: return update(address, [&](uint32_t old) { return float_bits(bits_float(old) + bits_float(v)); });
        case Element::s32:
        case Element::u32: return update(address, [&](uint32_t old) { return old + v; });
        case Element::bf16: return add_half(address, uint16_t(v), from_bf16, to_bf16);
        case Element::f16: return add_half(address, uint16_t(v), from_f16, to_f16);
        default: fail("AsyncMisuse", site, "adding is emulated for fp32, bf16, fp16 and 32-bit integers, not for this type");
    }
}

}  // namespace emu
