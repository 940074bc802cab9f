#include "operand.h"
#include "formats.h"
#include <cstring>

namespace emu {

Descriptor::Descriptor(uint64_t bits)
    : start(uint32_t(bits & 0x3FFF) << 4), leading(uint32_t(bits >> 16 & 0x3FFF) << 4), stride(uint32_t(bits >> 32 & 0x3FFF) << 4),
      base_offset(bits >> 49 & 7), span(bits >> 62 ? 256u >> (bits >> 62) : 16) {}

// Where chunk `c` of row `r` starts before the swizzle. Rows come in groups of eight, `stride` apart.
static uint32_t k_major_chunk(const Descriptor& d, unsigned r, unsigned c) {
    if (d.span == 16) return d.start + r / 8 * d.stride + c * d.leading + r % 8 * 16;
    return d.start + r / 8 * d.stride + r % 8 * d.span + c * 16;
}

// Chunk `c` along m or n (eight elements) at k. Spans of chunks are `leading` apart, groups of eight k `stride`; without a
// swizzle it is the other way round.
static uint32_t mn_major_chunk(const Descriptor& d, unsigned c, unsigned k) {
    if (d.span == 16) return d.start + c * d.stride + k / 8 * d.leading + k % 8 * 16;
    return d.start + c * 16 / d.span * d.leading + k / 8 * d.stride + k % 8 * d.span + c * 16 % d.span;
}

static uint32_t swizzled(uint32_t address, uint32_t span) { return address ^ (address >> 3 & (span - 16)); }

static void check(const char* name, const Descriptor& d, unsigned row_bytes, Site site) {
    if (d.base_offset)
        fail("AsyncMisuse", site, "wgmma: operand %s has base offset %u, which is not emulated: start its tile at a multiple of "
             "%u bytes", name, d.base_offset, 8 * d.span);
    if (d.span == 16) return;
    if (d.start % (8 * d.span) / d.span)
        fail("AsyncMisuse", site, "wgmma: operand %s starts at row %u of a group of eight (shared address 0x%x): a tile "
             "swizzled over %u bytes starts at a multiple of %u",
             name, d.start % (8 * d.span) / d.span, d.start, d.span, 8 * d.span);
    if (d.start % d.span + row_bytes > d.span)
        fail("AsyncMisuse", site, "wgmma: operand %s starts at byte %u of a row of %u and needs %u", name, d.start % d.span,
             d.span, row_bytes);
}

Operand::Operand(const char* name, uint64_t bits, unsigned extent, bool mn_major, ptx::Format format, Site site)
    : extent(extent), mn_major(mn_major), format(format) {
    Descriptor d(bits);
    check(name, d, mn_major ? std::min(d.span, 2 * extent) : 32, site);
    const unsigned count = mn_major ? extent / 8 * 16 : extent * 2;
    chunks.reserve(count);
    addresses.reserve(count);
    bytes.resize(count * 16);
    for (unsigned i = 0; i < count; ++i) {
        uint32_t plain = mn_major ? mn_major_chunk(d, i / 16, i % 16) : k_major_chunk(d, i / 2, i % 2);
        uint32_t address = swizzled(plain, d.span);
        const char* chunk = static_cast<const char*>(shared_pointer(address, site));
        access(chunk, 16, Access::read, site, Proxy::async);
        memcpy(&bytes[i * 16], chunk, 16);
        addresses.push_back(address);
        chunks.push_back(chunk);
    }
}

bool Operand::unchanged() const {
    for (size_t i = 0; i < chunks.size(); ++i)
        if (memcmp(chunks[i], &bytes[i * 16], 16) != 0) return false;
    return true;
}

static void decode_halves(const uint8_t* from, float* to, unsigned count, bool bf16) {
    uint16_t h[8];
    for (unsigned i = 0; i < count; i += 8) {
        memcpy(h, from + 2 * i, 16);
        if (bf16) for (unsigned j = 0; j < 8; ++j) to[i + j] = from_bf16(h[j]);
        else for (unsigned j = 0; j < 8; ++j) to[i + j] = from_f16(h[j]);
    }
}

void decode(const uint8_t* from, float* to, unsigned count, ptx::Format format) {
    if (format != ptx::Format::e4m3) return decode_halves(from, to, count, format == ptx::Format::bf16);
    for (unsigned i = 0; i < count; ++i) to[i] = from_e4m3(from[i]);
}

void Operand::decode(float* out, bool rows) const {
    const unsigned per_chunk = format == ptx::Format::e4m3 ? 16 : 8;
    float values[16];
    for (unsigned i = 0; i < chunks.size(); ++i) {
        emu::decode(&bytes[i * 16], values, per_chunk, format);
        const unsigned mn = mn_major ? i / 16 * 8 : i / 2, k0 = mn_major ? i % 16 : i % 2 * per_chunk;
        for (unsigned j = 0; j < per_chunk; ++j) {
            unsigned r = mn_major ? mn + j : mn, c = mn_major ? k0 : k0 + j;
            out[rows ? r * k() + c : c * extent + r] = values[j];
        }
    }
}

}  // namespace emu
