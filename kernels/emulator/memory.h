// Global memory: the launch's tensors, copied between guard areas, so that running over an end faults.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace emu {

// The three tables Python passes; the layouts are known to flashmoe_nb/emulator.py. Tensors that share a storage share a
// mapping, so that aliases stay aliases. A mapping keeps the distances between its spans; only spans are copied.
struct MappingSpec {
    uint64_t host_begin, host_end;
    uint64_t offset;                                             // of host_begin in its storage, which starts aligned
    uint64_t address;                                            // filled in: where host_begin is for the kernel
};
struct SpanSpec { uint64_t host, bytes; uint32_t mapping, writable; };                   // disjoint
struct ExtentSpec { uint64_t host, bytes; uint32_t mapping, argument, writable, pad; };  // one argument's bytes

class Arguments {
public:
    static constexpr size_t guard_bytes = 1 << 20;

    // `dependent`: the launch may begin before the kernels ahead of it have ended (griddep_wait).
    Arguments(std::vector<MappingSpec> mappings, std::vector<SpanSpec> spans, std::vector<ExtentSpec> extents, bool dependent);
    ~Arguments();
    Arguments(const Arguments&) = delete;

    uint64_t address(size_t mapping) const { return mappings_[mapping].begin; }
    void write_back() const;                                     // what kernels may write goes back to the tensors
    std::string stray_write() const;                             // what was written between the tensors and the guards, or ""

    // The bytes of one argument. Not the same as a mapping, which may hold several arguments and gaps.
    struct Extent {
        char* begin;
        char* end;
        unsigned argument;
        bool writable;
    };
    const Extent* find(const void* address, size_t bytes) const; // the extent that holds all bytes; prefers a writable one
    const Extent* nearest(const void* address) const;
    bool near(const void* address) const;                        // in a mapping or in its guards
    bool writable(const void* address) const;                    // in a mapping with something that the kernel may write
    bool pending(const void* address) const;                     // a kernel ahead may still be writing it
    // Blocks in all, and those that waited for the kernels ahead before they let the next kernel begin.
    mutable std::atomic<long> blocks{0}, blocks_behind{0};
    std::string describe(const void* address) const;             // "4 bytes past the end of argument 1 (512 bytes)"

private:
    struct Mapping {
        uint64_t begin, host_begin;                              // where the spans' origin is, here and in the tensor
        char* memory;
        size_t bytes;                                            // with the guards
        bool writable = false;
        char* first() const { return memory + guard_bytes; }     // the pages that are not guards
        char* last() const { return memory + bytes - guard_bytes; }
    };
    static constexpr unsigned char pattern = 0xA5;               // of the bytes that belong to no argument

    void map(const MappingSpec& spec);
    char* here(const SpanSpec& span) const;                      // where a span's copy is
    void copy_in();
    void find_margins();
    void find_pending();
    void protect() const;

    std::vector<Mapping> mappings_;
    std::vector<SpanSpec> spans_;
    std::vector<Extent> extents_;
    std::vector<std::pair<char*, char*>> margins_;
    bool dependent_;
    std::vector<std::pair<char*, char*>> pending_;
};

std::string position(const char* p, const char* begin, const char* end);      // "4 bytes past the end of"

}  // namespace emu
