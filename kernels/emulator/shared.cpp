#include "shared.h"
#include "module.h"
#include "shared_layout.h"
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>

namespace emu {

static uint32_t round_up(size_t value, size_t multiple) { return uint32_t((value + multiple - 1) / multiple * multiple); }

void SharedMemory::attach(const SharedLayout& layout, const Module& module, size_t dynamic_bytes, bool shadow) {
    layout_ = layout;
    char* storage = layout.dynamic - module.dynamic_offset();
    static_begin_ = storage + module.static_begin();
    static_end_ = storage + module.static_end();
    dynamic_ = layout.dynamic;
    dynamic_bytes_ = dynamic_bytes;
    dynamic_address_ = round_up(first_address + static_bytes(), 1024);
    objects_.clear();
    for (const auto& array : module.shared_arrays())
        objects_.push_back({storage + array.offset, storage + array.offset + array.size, array.name.c_str()});
    if (dynamic_bytes) objects_.push_back({dynamic_, dynamic_ + dynamic_bytes, nullptr});
    written_.assign(shadow ? dynamic_address_ + dynamic_bytes : 0, 0);
    protect(true);
    for (const Margin& m : margins()) std::memset(m.begin, pattern, size_t(m.end - m.begin));
}

void SharedMemory::detach() {
    if (dynamic_) protect(false);
    dynamic_ = nullptr;
}

// Pages that hold none of the block's shared memory. They are ordinary memory of the OS thread otherwise.
void SharedMemory::protect(bool on) {
    if (size_t(sysconf(_SC_PAGESIZE)) > page_bytes) return;      // pages too large for the guards: exact checks still work
    const int mode = on ? PROT_NONE : PROT_READ | PROT_WRITE;
    size_t used = round_up(dynamic_bytes_, page_bytes);
    mprotect(layout_.front_guard, page_bytes, mode);
    mprotect(layout_.middle_guard, page_bytes, mode);
    mprotect(dynamic_ + used, dynamic_capacity - used, mode);
}

void SharedMemory::poison() {
    std::memset(static_begin_, 0xFF, static_bytes());
    std::memset(dynamic_, 0xFF, dynamic_bytes_);
    std::fill(written_.begin(), written_.end(), uint8_t(0));
}

std::vector<SharedMemory::Margin> SharedMemory::margins() const {
    std::vector<Margin> found{{dynamic_ + dynamic_bytes_, dynamic_ + round_up(dynamic_bytes_, page_bytes)}};
    if (static_end_ < layout_.middle_guard) found.push_back({static_end_, layout_.middle_guard});
    return found;
}

const void* SharedMemory::stray_write() const {
    for (const Margin& m : margins())
        for (const char* p = m.begin; p < m.end; ++p)
            if (static_cast<unsigned char>(*p) != pattern) return p;
    return nullptr;
}

uint32_t SharedMemory::address(const void* p) const {
    const char* c = static_cast<const char*>(p);
    if (c >= dynamic_ && c <= dynamic_ + dynamic_bytes_) return dynamic_address_ + uint32_t(c - dynamic_);
    return first_address + uint32_t(c - static_begin_);
}

char* SharedMemory::pointer(uint32_t address) const {
    if (address >= dynamic_address_ && address < dynamic_address_ + dynamic_bytes_) return dynamic_ + (address - dynamic_address_);
    if (address >= first_address && address < first_address + static_bytes()) return static_begin_ + (address - first_address);
    return nullptr;
}

const SharedMemory::Object* SharedMemory::object(const void* p) const {
    for (const Object& o : objects_)
        if (p >= o.begin && p < o.end) return &o;
    return nullptr;
}

// Running over an end is commoner than running under a start: what lies between two objects belongs to the first.
const SharedMemory::Object* SharedMemory::nearest(const void* p) const {
    const Object* best = objects_.empty() ? nullptr : &objects_.front();
    for (const Object& o : objects_)
        if (o.begin <= p && !o.is_compilers()) best = &o;
    return best;
}

bool SharedMemory::guards(const void* p) const {
    auto within = [p](const char* begin, size_t bytes) { return p >= begin && p < begin + bytes; };
    const char* end = layout_.middle_guard + page_bytes;
    return within(layout_.front_guard, size_t(end - layout_.front_guard)) || within(dynamic_, dynamic_capacity);
}

void SharedMemory::mark_written(const void* p, size_t bytes) { std::memset(&written_[address(p)], 1, bytes); }

bool SharedMemory::was_written(const void* p, size_t bytes) const {
    return std::memchr(&written_[address(p)], 0, bytes) == nullptr;
}

}  // namespace emu
