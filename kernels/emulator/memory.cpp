#include "memory.h"
#include "grid.h"
#include "module.h"
#include "shared_layout.h"
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>

namespace emu {

// What the launches ahead have written that may not have ended when a dependent one begins: the last one; and what was
// under way when that one began, unless all of its blocks waited for it before they let others begin. Bytes that
// something else has changed since are no longer theirs.
struct Written { uint64_t host, bytes, digest; };
static std::mutex written_mutex;
static std::vector<Written> written;

static uint64_t digest(uint64_t host, uint64_t bytes) {
    uint64_t sum = bytes, word = 0;
    const char* p = reinterpret_cast<const char*>(host);
    for (; bytes >= 8; bytes -= 8, p += 8) {
        std::memcpy(&word, p, 8);
        sum = (sum ^ word) * 0x9E3779B97F4A7C15ull;
        sum ^= sum >> 29;
    }
    word = 0;
    std::memcpy(&word, p, bytes);
    return (sum ^ word) * 0x9E3779B97F4A7C15ull;
}

Arguments::Arguments(std::vector<MappingSpec> mappings, std::vector<SpanSpec> spans, std::vector<ExtentSpec> extents,
                     bool dependent)
    : spans_(std::move(spans)), dependent_(dependent) {
    for (const MappingSpec& spec : mappings) map(spec);
    for (const ExtentSpec& e : extents) {
        char* begin = reinterpret_cast<char*>(mappings_[e.mapping].begin + (e.host - mappings_[e.mapping].host_begin));
        extents_.push_back({begin, begin + e.bytes, e.argument, e.writable != 0});
    }
    copy_in();
    find_margins();
    find_pending();
    for (auto [begin, end] : margins_) std::memset(begin, pattern, size_t(end - begin));
    protect();
}

Arguments::~Arguments() {
    for (const Mapping& m : mappings_) munmap(m.memory, m.bytes);
}

// The end lies as close to the guard behind it as a beginning at a multiple of 256, what cudaMalloc gives, allows. Where the
// tensor itself starts at an odd place of its storage, it keeps that.
void Arguments::map(const MappingSpec& spec) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    size_t offset = spec.offset % 256, bytes = size_t(spec.host_end - spec.host_begin);
    size_t usable = (bytes + offset + 255 + page - 1) / page * page;
    Mapping m{};
    m.bytes = guard_bytes + usable + guard_bytes;
    void* memory = mmap(nullptr, m.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    m.memory = static_cast<char*>(memory);
    m.host_begin = spec.host_begin;
    uint64_t end = reinterpret_cast<uint64_t>(m.memory) + guard_bytes + usable;
    m.begin = (end - bytes - offset) / 256 * 256 + offset;
    mprotect(m.first(), usable, PROT_READ | PROT_WRITE);
    mappings_.push_back(m);
}

void Arguments::copy_in() {
    for (const SpanSpec& s : spans_) {
        Mapping& m = mappings_[s.mapping];
        m.writable |= s.writable != 0;
        std::memcpy(here(s), reinterpret_cast<const void*>(s.host), s.bytes);
    }
}

char* Arguments::here(const SpanSpec& s) const {
    const Mapping& m = mappings_[s.mapping];
    return reinterpret_cast<char*>(m.begin + (s.host - m.host_begin));
}

// A tensor behind a pointer to const is not for writing.
void Arguments::protect() const {
    for (const Mapping& m : mappings_)
        if (!m.writable) mprotect(m.first(), size_t(m.last() - m.first()), PROT_READ);
}

void Arguments::write_back() const {
    std::lock_guard<std::mutex> guard(written_mutex);
    if (!dependent_ || blocks_behind == blocks) written.clear();
    for (const SpanSpec& s : spans_) {
        if (!s.writable) continue;
        std::memcpy(reinterpret_cast<void*>(s.host), here(s), s.bytes);
        written.push_back({s.host, s.bytes, digest(s.host, s.bytes)});
    }
}

void Arguments::find_pending() {
    std::lock_guard<std::mutex> guard(written_mutex);
    for (const Written& w : written)
        for (const SpanSpec& s : spans_) {
            const uint64_t begin = std::max(w.host, s.host), end = std::min(w.host + w.bytes, s.host + s.bytes);
            if (!dependent_ || begin >= end || w.host < s.host || w.host + w.bytes > s.host + s.bytes) continue;
            if (digest(w.host, w.bytes) == w.digest) pending_.push_back({here(s) + (begin - s.host), here(s) + (end - s.host)});
        }
}

bool Arguments::pending(const void* address) const {
    for (auto [begin, end] : pending_)
        if (address >= begin && address < end) return true;
    return false;
}

// Up to a page on either side of every span, where no guard is and no argument.
void Arguments::find_margins() {
    const ptrdiff_t page = ptrdiff_t(page_bytes);
    for (size_t i = 0; i < mappings_.size(); ++i) {
        char* from = mappings_[i].first();
        auto add = [&](char* to) {
            if (to - from > 2 * page) {
                margins_.push_back({from, from + page});
                from = to - page;
            }
            if (from < to) margins_.push_back({from, to});
        };
        for (const SpanSpec& s : spans_) {                           // in order within a mapping
            if (s.mapping != i) continue;
            add(here(s));
            from = here(s) + s.bytes;
        }
        add(mappings_[i].last());
    }
}

std::string Arguments::stray_write() const {
    for (auto [begin, end] : margins_) {
        const char* found = std::find_if(begin, end, [](char c) { return static_cast<unsigned char>(c) != pattern; });
        if (found != end) return describe(found);
    }
    return "";
}

const Arguments::Extent* Arguments::find(const void* address, size_t bytes) const {
    const Extent* found = nullptr;
    const char* p = static_cast<const char*>(address);
    for (const Extent& e : extents_)
        if (p >= e.begin && p + bytes <= e.end && (!found || e.writable)) found = &e;
    return found;
}

static size_t distance(const char* p, const Arguments::Extent& e) {
    return p < e.begin ? size_t(e.begin - p) : p >= e.end ? size_t(p - e.end) : 0;
}

const Arguments::Extent* Arguments::nearest(const void* address) const {
    const Extent* best = nullptr;
    const char* p = static_cast<const char*>(address);
    for (const Extent& e : extents_)
        if (!best || distance(p, e) < distance(p, *best)) best = &e;
    return best;
}

// "4 bytes past the end of", "at byte 12 of", "8 bytes before"
std::string position(const char* p, const char* begin, const char* end) {
    if (p < begin) return std::to_string(begin - p) + " bytes before";
    if (p < end) return "at byte " + std::to_string(p - begin) + " of";
    return p == end ? "right behind" : std::to_string(p - end) + " bytes past the end of";
}

std::string Arguments::describe(const void* address) const {
    const Extent* e = nearest(address);
    return position(static_cast<const char*>(address), e->begin, e->end) + " argument " + std::to_string(e->argument) + " (" +
           std::to_string(e->end - e->begin) + " bytes)";
}

bool Arguments::writable(const void* address) const {
    for (const Mapping& m : mappings_)
        if (m.writable && address >= m.first() && address < m.last()) return true;
    return false;
}

bool Arguments::near(const void* address) const {
    for (const Mapping& m : mappings_)
        if (address >= m.memory && address < m.memory + m.bytes) return true;
    return false;
}

}  // namespace emu
