// A WGMMA operand in shared memory: where its 16-byte chunks are, and their elements as floats.
#pragma once
#include "../runtime.h"
#include "instructions.h"
#include <vector>

namespace emu {

// The fields of a matrix descriptor. PTX ISA, "Asynchronous Warpgroup Level Matrix ... Matrix Descriptor Format".
struct Descriptor {
    uint32_t start, leading, stride, base_offset, span;      // bytes; span: of a row, 16 where nothing is swizzled
    explicit Descriptor(uint64_t bits);
};

// `extent` rows of m or n by 32 bytes of k. Chunk c of row r (K-major), or chunk c along m or n of k (MN-major).
struct Operand {
    std::vector<const char*> chunks;
    std::vector<uint32_t> addresses;
    std::vector<uint8_t> bytes;                              // as they were at the issue
    unsigned extent = 0;
    bool mn_major = false;
    ptx::Format format{};

    // Fails where the descriptor is one the hardware, or this emulator, does not take.
    Operand(const char* name, uint64_t bits, unsigned extent, bool mn_major, ptx::Format format, Site site);
    Operand() = default;

    bool unchanged() const;                                  // since the issue
    // To [k][extent], or [extent][k] if `rows`.
    void decode(float* out, bool rows) const;
    unsigned k() const { return format == ptx::Format::e4m3 ? 32 : 16; }
};

void decode(const uint8_t* from, float* to, unsigned count, ptx::Format format);

}  // namespace emu
