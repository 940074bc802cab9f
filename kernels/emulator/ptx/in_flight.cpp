#include "in_flight.h"
#include "../grid.h"
#include <algorithm>
#include <cstring>

namespace emu {

constexpr size_t most_chunks = (SharedMemory::first_address + (256 << 10)) / 16;

std::vector<uint32_t> chunks_of(uint32_t address, uint32_t bytes) {
    std::vector<uint32_t> chunks;
    for (uint32_t chunk = address / 16; chunk <= (address + bytes - 1) / 16; ++chunk) chunks.push_back(chunk);
    return chunks;
}

static bool conflict(InFlight::Kind a, InFlight::Kind b) { return a != b || a == InFlight::Kind::writes; }

static const char* verb(InFlight::Kind kind) { return kind == InFlight::Kind::reads ? "reads" : "writes"; }

void InFlight::check_chunk(const char* what, Kind kind, uint32_t chunk, Site site) const {
    if (chunks_.empty()) return;
    unsigned others = 0;
    for (Kind other : {Kind::reads, Kind::writes, Kind::copies})
        if (conflict(kind, other)) others += chunks_[chunk].uses[unsigned(other)];
    if (others == 0) return;
    for (const Use& use : uses_) {
        if (!conflict(kind, use.kind) || std::find(use.chunks.begin(), use.chunks.end(), chunk) == use.chunks.end()) continue;
        std::string bytes = describe_address(block().shared.pointer(chunk * 16));
        fail("AsyncMisuse", site, "%s %s 16 bytes %s that %s at %s still %s: its completion must be waited for first", what,
             verb(kind), bytes.c_str(), use.what, place(use.site).c_str(), verb(use.kind));
    }
}

void InFlight::check(const char* what, Kind kind, uint32_t address, uint32_t bytes, Site site) const {
    for (uint32_t chunk = address / 16; chunk <= (address + bytes - 1) / 16; ++chunk) check_chunk(what, kind, chunk, site);
}

InFlight::Handle InFlight::begin(const char* what, Kind kind, std::vector<uint32_t> chunks, Site site) {
    if (chunks_.empty()) chunks_.resize(most_chunks);
    for (uint32_t chunk : chunks) check_chunk(what, kind, chunk, site);
    for (uint32_t chunk : chunks) ++chunks_[chunk].uses[unsigned(kind)];
    uses_.push_back({what, kind, site, std::move(chunks)});
    return std::prev(uses_.end());
}

void InFlight::end(Handle use) {
    for (uint32_t chunk : use->chunks) --chunks_[chunk].uses[unsigned(use->kind)];
    uses_.erase(use);
}

void InFlight::block_finished() {
    for (const Use& use : uses_)
        if (use.kind == Kind::reads)
            fail("AsyncMisuse", use.site, "the block has ended, and nobody has waited for %s", use.what);
}

AsyncProxy::Chunk& AsyncProxy::at(uint32_t chunk) {
    if (chunks_.empty()) {
        Chunk untouched{{}, 0};
        memset(untouched.bytes, 0xFF, sizeof untouched.bytes);      // as SharedMemory::poison leaves them
        chunks_.resize(most_chunks, untouched);
    }
    return chunks_[chunk];
}

void AsyncProxy::read(const void* pointer, uint32_t address, uint32_t bytes, const char* what, Site site) {
    const char* p = static_cast<const char*>(pointer);
    for (uint32_t done = 0; done < bytes; done += 16) {
        Chunk& seen = at((address + done) / 16);
        if (memcmp(seen.bytes, p + done, 16) == 0) continue;
        if (seen.fences == fences_)
            fail("AsyncMisuse", site, "%s reads 16 bytes %s that ordinary stores have changed, and no fence_proxy_async came "
                 "after: the tensor cores and TMA may see what was there before",
                 what, describe_address(p + done).c_str());
        memcpy(seen.bytes, p + done, 16);
        seen.fences = fences_;
    }
}

void AsyncProxy::wrote(const void* pointer, uint32_t address, uint32_t bytes) {
    const char* p = static_cast<const char*>(pointer);
    for (uint32_t done = 0; done < bytes; done += 16) {
        Chunk& seen = at((address + done) / 16);
        memcpy(seen.bytes, p + done, 16);
        seen.fences = fences_;
    }
}

}  // namespace emu
