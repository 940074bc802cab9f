// A compiled kernel as a file: which shared arrays it declares, and which source line an address belongs to.
#pragma once
#include "runtime.h"
#include <map>
#include <mutex>
#include <vector>

namespace emu {

struct Bytes {
    const uint8_t* begin = nullptr;
    size_t size = 0;
};

// An ELF file in memory.
class ElfFile {
public:
    explicit ElfFile(const char* path);      // throws std::runtime_error
    ~ElfFile();
    ElfFile(const ElfFile&) = delete;

    struct Symbol { std::string name; uint64_t value, size; };
    Bytes section(const char* name) const;
    std::vector<Symbol> symbols(unsigned kind) const;     // STT_TLS, STT_FUNC
    uint64_t image_bytes() const;            // from the first loaded byte to the last

private:
    Bytes file_;
};

// DWARF 4 line tables and inlined calls (DWARF Debugging Information Format, version 4, sections 2, 6.2 and 7).
struct Frame {
    std::string file;
    unsigned line;
};

class LineTable {
public:
    explicit LineTable(const ElfFile& file);
    std::vector<Frame> frames(uint64_t address) const;      // innermost first, then the calls it was inlined through

private:
    struct Row { uint64_t address; unsigned unit, file, line; bool end; };
    struct Inlined { uint64_t low, high; unsigned unit, file, line; };
    std::vector<Row> rows_;
    std::vector<Inlined> inlined_;
    std::vector<std::vector<std::string>> files_;           // by unit, by number

    friend class DwarfReader;
};

class Module {
public:
    Module(const char* path, const void* something_inside);

    // Offset in the thread-local block. One without a name is the compiler's: it asks whether an array of a class has been
    // constructed, which shared memory never is.
    struct SharedArray { std::string name; size_t offset, size; };
    const std::vector<SharedArray>& shared_arrays() const { return shared_arrays_; }
    size_t static_begin() const { return static_begin_; }              // of the arrays, in the thread-local block
    size_t static_end() const { return static_end_; }
    size_t dynamic_offset() const { return dynamic_offset_; }

    const std::string& signature() const { return signature_; }        // a mangled name that spells the kernel's parameter types

    uint32_t offset(Site site) const { return uint32_t(site - reinterpret_cast<uintptr_t>(base_)); }
    Site site(uint32_t offset) const { return reinterpret_cast<uintptr_t>(base_) + offset; }
    bool contains(const void* p) const { return p >= base_ && p < base_ + bytes_; }
    std::string place(Site site) const;      // the line that was returned to, as Python expects it in a message

private:
    void read_shared_arrays(const std::vector<ElfFile::Symbol>& symbols);
    std::string find_place(Site site) const;

    std::string path_;
    const char* base_;
    size_t bytes_;
    std::string signature_;
    std::vector<SharedArray> shared_arrays_;
    size_t static_begin_ = 0, static_end_ = 0, dynamic_offset_ = 0;
    mutable std::mutex mutex_;
    mutable std::unique_ptr<LineTable> lines_;
    mutable std::map<Site, std::string> places_;
};

}  // namespace emu
