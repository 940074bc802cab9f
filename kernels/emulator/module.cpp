#include "module.h"
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace emu {

ElfFile::ElfFile(const char* path) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (descriptor < 0 || fstat(descriptor, &status) != 0) throw std::runtime_error(std::string("cannot read ") + path);
    void* memory = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0);
    close(descriptor);
    if (memory == MAP_FAILED || std::memcmp(memory, ELFMAG, SELFMAG) != 0)
        throw std::runtime_error(std::string("no ELF file: ") + path);
    file_ = {static_cast<const uint8_t*>(memory), size_t(status.st_size)};
}

ElfFile::~ElfFile() { munmap(const_cast<uint8_t*>(file_.begin), file_.size); }

static const Elf64_Ehdr& header(const Bytes& file) { return *reinterpret_cast<const Elf64_Ehdr*>(file.begin); }

static const Elf64_Shdr* sections(const Bytes& file) {
    return reinterpret_cast<const Elf64_Shdr*>(file.begin + header(file).e_shoff);
}

Bytes ElfFile::section(const char* name) const {
    const Elf64_Shdr* table = sections(file_);
    const char* names = reinterpret_cast<const char*>(file_.begin + table[header(file_).e_shstrndx].sh_offset);
    for (int i = 0; i < header(file_).e_shnum; ++i)
        if (std::strcmp(names + table[i].sh_name, name) == 0) return {file_.begin + table[i].sh_offset, size_t(table[i].sh_size)};
    return {};
}

std::vector<ElfFile::Symbol> ElfFile::symbols(unsigned kind) const {
    Bytes symbols = section(".symtab"), names = section(".strtab");
    const auto* begin = reinterpret_cast<const Elf64_Sym*>(symbols.begin);
    std::vector<Symbol> found;
    for (const Elf64_Sym* s = begin; s != begin + symbols.size / sizeof *s; ++s)
        if (ELF64_ST_TYPE(s->st_info) == kind && s->st_shndx != SHN_UNDEF)
            found.push_back({reinterpret_cast<const char*>(names.begin + s->st_name), s->st_value, s->st_size});
    return found;
}

uint64_t ElfFile::image_bytes() const {
    const auto* segment = reinterpret_cast<const Elf64_Phdr*>(file_.begin + header(file_).e_phoff);
    uint64_t end = 0;
    for (int i = 0; i < header(file_).e_phnum; ++i)
        if (segment[i].p_type == PT_LOAD) end = std::max(end, segment[i].p_vaddr + segment[i].p_memsz);
    return end;
}

// "kernel<32>(float*)::Ks" -> "Ks"
static std::string short_name(const std::string& mangled) {
    char* spelled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr);
    std::string name = spelled ? spelled : mangled;
    std::free(spelled);
    size_t colon = name.rfind("::");
    return colon == std::string::npos ? name : name.substr(colon + 2);
}

Module::Module(const char* path, const void* something_inside) : path_(path) {
    ElfFile file(path);
    Dl_info info{};
    dladdr(something_inside, &info);
    base_ = static_cast<const char*>(info.dli_fbase);
    bytes_ = file.image_bytes();
    read_shared_arrays(file.symbols(STT_TLS));
    for (const auto& symbol : file.symbols(STT_FUNC))
        if (symbol.name.rfind("_ZN3emu9signatureI", 0) == 0) signature_ = symbol.name;
}

void Module::read_shared_arrays(const std::vector<ElfFile::Symbol>& symbols) {
    uint64_t end = 0;                                            // the arrays lie between the two guards
    for (const auto& symbol : symbols)
        if (symbol.name == "_ZN3emu12middle_guardE") end = symbol.value;
    for (const auto& symbol : symbols) {
        if (symbol.name == "smem_raw") dynamic_offset_ = symbol.value;
        else if (symbol.name == "_ZN3emu11front_guardE") static_begin_ = static_end_ = symbol.value + symbol.size;
        else if (symbol.value < end && symbol.size) {
            const bool guard = symbol.name.rfind("_ZGV", 0) == 0;
            shared_arrays_.push_back({guard ? "" : short_name(symbol.name), symbol.value, symbol.size});
        }
    }
    std::sort(shared_arrays_.begin(), shared_arrays_.end(), [](auto& a, auto& b) { return a.offset < b.offset; });
    if (shared_arrays_.empty()) return;
    static_begin_ = shared_arrays_.front().offset;
    static_end_ = shared_arrays_.back().offset + shared_arrays_.back().size;
}

// A file of the kernel's own source: paths inside the source tree are relative, everything else is absolute.
static bool is_source(const std::string& file) { return file[0] != '/'; }

static bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

// Emulator headers and one-instruction wrappers are not where a reader made the mistake: their caller is.
static bool is_plumbing(const std::string& file) {
    return !is_source(file) || starts_with(file, "emulator/") || starts_with(file, "common/ptx/") || starts_with(file, "entry.");
}

static const Frame* telling(const std::vector<Frame>& frames) {
    for (const Frame& frame : frames)
        if (!is_plumbing(frame.file)) return &frame;
    for (const Frame& frame : frames)
        if (is_source(frame.file)) return &frame;
    return frames.empty() ? nullptr : &frames.front();
}

std::string Module::find_place(Site site) const {
    const std::string unknown = "an unknown place";
    if (!contains(reinterpret_cast<const void*>(site))) return unknown;
    try {
        if (!lines_) lines_ = std::make_unique<LineTable>(ElfFile(path_.c_str()));
        std::vector<Frame> frames = lines_->frames(site - 1 - reinterpret_cast<uintptr_t>(base_));
        const Frame* frame = telling(frames);
        return frame ? '\1' + frame->file + ':' + std::to_string(frame->line) + '\2' : unknown;
    } catch (const std::exception&) {                            // a compiler wrote what the reader does not know
        return unknown;
    }
}

std::string Module::place(Site site) const {
    std::lock_guard<std::mutex> guard(mutex_);
    auto known = places_.find(site);
    return known != places_.end() ? known->second : places_[site] = find_place(site);
}

}  // namespace emu
