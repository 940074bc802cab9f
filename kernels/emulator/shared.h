// A block's shared memory: the arrays a kernel declares, and the dynamic part.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

class Module;

// Where a kernel's build puts things in the OS thread's storage (shared_front.cpp, shared_back.cpp).
struct SharedLayout {
    char* front_guard;        // a page
    char* middle_guard;       // a page, between static and dynamic memory
    char* dynamic;
};

class SharedMemory {
public:
    static constexpr uint32_t first_address = 1024;     // Hopper keeps the first KiB for itself

    // Called on the OS thread that will run the block. Unmaps the guards on destruction.
    void attach(const SharedLayout& layout, const Module& module, size_t dynamic_bytes, bool shadow);
    void detach();
    ~SharedMemory() { detach(); }

    void poison();                                      // 0xFF, a NaN in every float format: what nobody has written
    const void* stray_write() const;                    // a byte written outside the objects but short of the guards, or null

    bool contains(const void* p) const { return in_static(p) || in_dynamic(p); }
    size_t static_bytes() const { return size_t(static_end_ - static_begin_); }
    size_t dynamic_bytes() const { return dynamic_bytes_; }
    uint32_t address(const void* p) const;              // p must be contained, or be one past the end
    char* pointer(uint32_t address) const;              // null if the address is outside
    uint32_t end_address() const { return dynamic_address_ + uint32_t(dynamic_bytes_); }
    char* begin() const { return static_begin_; }
    char* dynamic() const { return dynamic_; }

    // Exact views, for checks. An object is one declared array or the dynamic part.
    struct Object {
        char* begin;
        char* end;
        const char* name;
        bool is_compilers() const { return name && !*name; }      // see Module::SharedArray
    };
    const Object* object(const void* p) const;          // the one that holds p; null between objects
    const Object* nearest(const void* p) const;
    bool guards(const void* p) const;                   // near shared memory, or in it, but in no object's pages

    void mark_written(const void* p, size_t bytes);
    bool was_written(const void* p, size_t bytes) const;

private:
    bool in_static(const void* p) const { return p >= static_begin_ && p < static_end_; }
    bool in_dynamic(const void* p) const { return p >= dynamic_ && p < dynamic_ + dynamic_bytes_; }
    void protect(bool on);
    struct Margin { char* begin; char* end; };          // pages are coarse: what lies between the objects and the guards
    std::vector<Margin> margins() const;
    static constexpr unsigned char pattern = 0xA5;

    SharedLayout layout_{};
    char* static_begin_ = nullptr;
    char* static_end_ = nullptr;
    char* dynamic_ = nullptr;
    size_t dynamic_bytes_ = 0;
    uint32_t dynamic_address_ = 0;
    std::vector<Object> objects_;
    std::vector<uint8_t> written_;                      // a byte per byte
};

}  // namespace emu
