// ldmatrix, stmatrix and mma.sync: what a warp does with small matrices. PTX ISA, "Warp Level Matrix Multiply-Accumulate
// Instructions".
#include "../grid.h"
#include "formats.h"
#include "in_flight.h"
#include "instructions.h"
#include <cstring>

namespace emu {

// ---- ldmatrix, stmatrix: `count` matrices of eight rows of 16 bytes; lane 8i + r names row r of matrix i ----

struct RowArguments {
    uint32_t* r;
    const void* row;
    int count;
    bool transposed;
    Site site;
};

// The row that a lane names, if it is one.
static char* row_of(const Collective& call, unsigned number, const char* name, InFlight::Kind kind) {
    const RowArguments& lane = *call.of<RowArguments>(number);
    uint32_t address = shared_address(lane.row, lane.site);
    if (address % 16)
        fail("MisalignedAccess", lane.site, "%s: the row %s is not 16-byte aligned", name, describe_address(lane.row).c_str());
    access(lane.row, 16, kind == InFlight::Kind::reads ? Access::read : Access::write, lane.site);
    block_state<InFlight>().check(name, kind, address, 16, lane.site);
    if (RaceCheck* check = races()) {
        if (kind == InFlight::Kind::reads) check->read(call.fiber(number), block(), address, 16, lane.site);
        else check->write(call.fiber(number), block(), address, 16, lane.site);
    }
    return static_cast<char*>(const_cast<void*>(lane.row));
}

// The two elements of a matrix, as byte offsets by row and column, whose 16 bits each make register r of `lane`.
struct Place { unsigned row, column; };
static Place place_of(unsigned lane, unsigned half, bool transposed) {
    Place p{lane / 4, lane % 4 * 2 + half};
    return transposed ? Place{p.column, p.row} : p;
}

static void check_whole_warp(const Collective& call, const char* name) {
    if (call.mask[0] != ~0u) fail("Diverged", call.sites[unsigned(__builtin_ctz(call.mask[0]))], "%s needs all 32 lanes", name);
}

static void count(const Collective& call, Access kind) {
    if (!block().counting) return;
    uint32_t rows[32];
    const RowArguments& first = *call.of<RowArguments>(0);
    for (unsigned i = 0; i < unsigned(first.count) * 8; ++i)
        rows[i] = shared_address(call.of<RowArguments>(i)->row, first.site);
    block().counts.matrices(kind, first.site, rows, unsigned(first.count));
}

static void load(Collective& call) {
    check_whole_warp(call, "ldmatrix");
    const RowArguments& first = *call.of<RowArguments>(0);
    count(call, Access::read);
    for (int matrix = 0; matrix < first.count; ++matrix) {
        uint16_t elements[8][8];
        for (unsigned row = 0; row < 8; ++row)
            memcpy(elements[row], row_of(call, unsigned(matrix) * 8 + row, "ldmatrix", InFlight::Kind::reads), 16);
        for (unsigned lane = 0; lane < 32; ++lane) {
            Place low = place_of(lane, 0, first.transposed), high = place_of(lane, 1, first.transposed);
            uint32_t upper = elements[high.row][high.column];
            call.of<RowArguments>(lane)->r[matrix] = elements[low.row][low.column] | upper << 16;
        }
    }
}

static void store(Collective& call) {
    check_whole_warp(call, "stmatrix");
    const RowArguments& first = *call.of<RowArguments>(0);
    count(call, Access::write);
    for (int matrix = 0; matrix < first.count; ++matrix) {
        uint16_t elements[8][8];
        for (unsigned lane = 0; lane < 32; ++lane)
            for (unsigned half = 0; half < 2; ++half) {
                Place p = place_of(lane, half, first.transposed);
                elements[p.row][p.column] = uint16_t(call.of<RowArguments>(lane)->r[matrix] >> 16 * half);
            }
        for (unsigned row = 0; row < 8; ++row)
            memcpy(row_of(call, unsigned(matrix) * 8 + row, "stmatrix", InFlight::Kind::writes), elements[row], 16);
    }
}

namespace ptx {

void ldmatrix(uint32_t* r, const void* s_row, int count, bool transposed) {
    RowArguments arguments{r, s_row, count, transposed, EMU_SITE};
    warp_collective("ldmatrix", ~0u, load, &arguments, arguments.site);
}

void stmatrix(void* s_row, const uint32_t* r, int count, bool transposed) {
    RowArguments arguments{const_cast<uint32_t*>(r), s_row, count, transposed, EMU_SITE};
    warp_collective("stmatrix", ~0u, store, &arguments, arguments.site);
}

}  // namespace ptx

// ---- mma.sync: D[16][8] += A[16][k] B[k][8] ----

struct MmaArguments {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
    int k;
    ptx::Format format;
};

static float decode(const uint8_t* element, ptx::Format format) {
    uint16_t half;
    if (format == ptx::Format::e4m3) return from_e4m3(*element);
    memcpy(&half, element, 2);
    return format == ptx::Format::bf16 ? from_bf16(half) : from_f16(half);
}

// A row of A, and a column of B, is `k` elements; the four lanes that hold it have four bytes each of its first 16 bytes,
// and, if there are more, four of the next 16.
static void multiply(Collective& call) {
    check_whole_warp(call, "mma.sync");
    const MmaArguments& first = *call.of<MmaArguments>(0);
    const unsigned size = first.format == ptx::Format::e4m3 ? 1 : 2, halves = unsigned(first.k) * size / 16, n = 4 / size;
    float a[16][32], b[8][32];
    for (unsigned lane = 0; lane < 32; ++lane) {
        const MmaArguments& mine = *call.of<MmaArguments>(lane);
        for (unsigned half = 0; half < halves; ++half)
            for (unsigned i = 0; i < n; ++i) {
                unsigned column = (16 * half + 4 * (lane % 4)) / size + i;
                auto element = [&](const uint32_t& r) {
                    return decode(reinterpret_cast<const uint8_t*>(&r) + i * size, first.format);
                };
                a[lane / 4][column] = element(mine.a[2 * half]);
                a[lane / 4 + 8][column] = element(mine.a[2 * half + 1]);
                b[lane / 4][column] = element(mine.b[half]);
            }
    }
    for (unsigned lane = 0; lane < 32; ++lane)
        for (unsigned i = 0; i < 4; ++i) {
            const float *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
            float sum = call.of<MmaArguments>(lane)->d[i];
            for (int k = 0; k < first.k; ++k) sum += row[k] * column[k];
            call.of<MmaArguments>(lane)->d[i] = sum;
        }
}

namespace ptx {

void mma(float* d, const uint32_t* a, const uint32_t* b, int k, Format format) {
    MmaArguments arguments{d, a, b, k, format};
    warp_collective("mma.sync", ~0u, multiply, &arguments, EMU_SITE);
}

}  // namespace ptx
}  // namespace emu
