#include "module.h"
#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace emu {

namespace {

// The constants used below, by their names in the standard.
enum : unsigned {
    DW_TAG_inlined_subroutine = 0x1d,
    DW_AT_stmt_list = 0x10, DW_AT_low_pc = 0x11, DW_AT_high_pc = 0x12, DW_AT_comp_dir = 0x1b,
    DW_AT_ranges = 0x55, DW_AT_call_file = 0x58, DW_AT_call_line = 0x59,
    DW_FORM_addr = 0x01, DW_FORM_block2 = 0x03, DW_FORM_block4 = 0x04, DW_FORM_data2 = 0x05, DW_FORM_data4 = 0x06,
    DW_FORM_data8 = 0x07, DW_FORM_string = 0x08, DW_FORM_block = 0x09, DW_FORM_block1 = 0x0a, DW_FORM_data1 = 0x0b,
    DW_FORM_flag = 0x0c, DW_FORM_sdata = 0x0d, DW_FORM_strp = 0x0e, DW_FORM_udata = 0x0f, DW_FORM_ref_addr = 0x10,
    DW_FORM_ref1 = 0x11, DW_FORM_ref2 = 0x12, DW_FORM_ref4 = 0x13, DW_FORM_ref8 = 0x14, DW_FORM_ref_udata = 0x15,
    DW_FORM_indirect = 0x16, DW_FORM_sec_offset = 0x17, DW_FORM_exprloc = 0x18, DW_FORM_flag_present = 0x19,
    DW_FORM_ref_sig8 = 0x20,
    DW_LNS_copy = 1, DW_LNS_advance_pc = 2, DW_LNS_advance_line = 3, DW_LNS_set_file = 4, DW_LNS_const_add_pc = 8,
    DW_LNS_fixed_advance_pc = 9, DW_LNE_end_sequence = 1, DW_LNE_set_address = 2,
};

struct Cursor {
    const uint8_t* p;
    const uint8_t* end;

    template <class T> T read() {
        if (size_t(end - p) < sizeof(T)) throw std::runtime_error("debug information ends early");
        T value;
        std::memcpy(&value, p, sizeof value);
        p += sizeof value;
        return value;
    }
    uint64_t uleb() {
        uint64_t value = 0;
        for (unsigned shift = 0;; shift += 7) {
            uint8_t byte = read<uint8_t>();
            value |= uint64_t(byte & 127) << (shift & 63);
            if (!(byte & 128)) return value;
        }
    }
    int64_t sleb() {
        int64_t value = 0;
        for (unsigned shift = 0;;) {
            uint8_t byte = read<uint8_t>();
            value |= int64_t(uint64_t(byte & 127) << (shift & 63));
            shift += 7;
            if (!(byte & 128)) return shift < 64 && byte & 64 ? value | -(int64_t(1) << shift) : value;
        }
    }
    std::string text() {
        const char* begin = reinterpret_cast<const char*>(p);
        size_t length = strnlen(begin, size_t(end - p));
        p += length + 1;
        return {begin, length};
    }
    void skip(uint64_t bytes) {
        if (bytes > uint64_t(end - p)) throw std::runtime_error("debug information ends early");
        p += bytes;
    }
};

struct Abbreviation {
    unsigned tag = 0;
    bool children = false;
    std::vector<std::pair<unsigned, unsigned>> attributes;      // name, form
};

// "./a//b/../c" -> "a/c"
std::string clean(const std::string& path) {
    std::vector<std::string> parts;
    for (size_t i = 0; i <= path.size();) {
        size_t slash = std::min(path.find('/', i), path.size());
        std::string part = path.substr(i, slash - i);
        if (part == ".." && !parts.empty() && parts.back() != "..") parts.pop_back();
        else if (!part.empty() && part != ".") parts.push_back(part);
        i = slash + 1;
    }
    std::string joined = path[0] == '/' ? "" : parts.empty() ? "." : parts[0];
    for (size_t i = path[0] == '/' ? 0 : 1; i < parts.size(); ++i) joined += '/' + parts[i];
    return joined;
}

}  // namespace

class DwarfReader {
public:
    DwarfReader(const ElfFile& file, LineTable& table)
        : table_(table), info_(file.section(".debug_info")), abbreviations_(file.section(".debug_abbrev")),
          lines_(file.section(".debug_line")), ranges_(file.section(".debug_ranges")), strings_(file.section(".debug_str")) {}

    void read() {
        for (Cursor all{info_.begin, info_.begin + info_.size}; all.p < all.end;) {
            uint32_t length = all.read<uint32_t>();
            Cursor unit{all.p, all.p + length};
            all.skip(length);
            if (unit.read<uint16_t>() == 4) read_unit(unit);     // other versions: places stay unknown
        }
    }

private:
    struct Attributes {
        uint64_t low = 0, high = 0, ranges = ~0ull, lines = ~0ull;
        unsigned call_file = 0, call_line = 0;
        bool high_is_length = false, has_low = false;
        std::string directory;
    };

    void read_unit(Cursor unit) {
        std::map<uint64_t, Abbreviation> known = read_abbreviations(unit.read<uint32_t>());
        unit.skip(1);                                            // address size
        unsigned number = unsigned(table_.files_.size());
        table_.files_.emplace_back();
        uint64_t base = 0;
        for (bool first = true; unit.p < unit.end; first = false) {
            uint64_t code = unit.uleb();
            if (code == 0) continue;                             // the end of a list of children
            const Abbreviation& abbreviation = known.at(code);
            Attributes a;
            for (auto [name, form] : abbreviation.attributes) read_attribute(unit, name, form, a);
            if (first) {
                base = a.low;
                if (a.lines != ~0ull) read_lines(a.lines, number, a.directory);
            }
            if (abbreviation.tag == DW_TAG_inlined_subroutine) add_inlined(a, number, base);
        }
    }

    std::map<uint64_t, Abbreviation> read_abbreviations(uint32_t offset) {
        std::map<uint64_t, Abbreviation> known;
        Cursor c{abbreviations_.begin + offset, abbreviations_.begin + abbreviations_.size};
        while (uint64_t code = c.uleb()) {
            Abbreviation& a = known[code];
            a.tag = unsigned(c.uleb());
            a.children = c.read<uint8_t>();
            for (;;) {
                unsigned name = unsigned(c.uleb()), form = unsigned(c.uleb());
                if (name == 0 && form == 0) break;
                a.attributes.emplace_back(name, form);
            }
        }
        return known;
    }

    // The value of a number; of a string only its place matters, of a block nothing.
    uint64_t read_form(Cursor& c, unsigned form, std::string* text) {
        switch (form) {
            case DW_FORM_addr: case DW_FORM_data8: case DW_FORM_ref8: case DW_FORM_ref_sig8: return c.read<uint64_t>();
            case DW_FORM_data1: case DW_FORM_ref1: case DW_FORM_flag: return c.read<uint8_t>();
            case DW_FORM_data2: case DW_FORM_ref2: return c.read<uint16_t>();
            case DW_FORM_data4: case DW_FORM_ref4: case DW_FORM_ref_addr: case DW_FORM_sec_offset: return c.read<uint32_t>();
            case DW_FORM_udata: case DW_FORM_ref_udata: return c.uleb();
            case DW_FORM_sdata: return uint64_t(c.sleb());
            case DW_FORM_flag_present: return 1;
            case DW_FORM_string: *text = c.text(); return 0;
            case DW_FORM_strp: {
                Cursor s{strings_.begin + c.read<uint32_t>(), strings_.begin + strings_.size};
                *text = s.text();
                return 0;
            }
            case DW_FORM_block1: c.skip(c.read<uint8_t>()); return 0;
            case DW_FORM_block2: c.skip(c.read<uint16_t>()); return 0;
            case DW_FORM_block4: c.skip(c.read<uint32_t>()); return 0;
            case DW_FORM_block: case DW_FORM_exprloc: c.skip(c.uleb()); return 0;
            case DW_FORM_indirect: return read_form(c, unsigned(c.uleb()), text);
        }
        throw std::runtime_error("debug information of an unknown form");
    }

    void read_attribute(Cursor& c, unsigned name, unsigned form, Attributes& a) {
        std::string text;
        uint64_t value = read_form(c, form, &text);
        switch (name) {
            case DW_AT_low_pc: a.low = value; a.has_low = true; break;
            case DW_AT_high_pc: a.high = value; a.high_is_length = form != DW_FORM_addr; break;
            case DW_AT_ranges: a.ranges = value; break;
            case DW_AT_stmt_list: a.lines = value; break;
            case DW_AT_comp_dir: a.directory = text; break;
            case DW_AT_call_file: a.call_file = unsigned(value); break;
            case DW_AT_call_line: a.call_line = unsigned(value); break;
        }
    }

    void add_inlined(const Attributes& a, unsigned unit, uint64_t base) {
        if (a.ranges == ~0ull) {
            const uint64_t high = a.high_is_length ? a.low + a.high : a.high;
            if (a.has_low) table_.inlined_.push_back({a.low, high, unit, a.call_file, a.call_line});
            return;
        }
        Cursor c{ranges_.begin + a.ranges, ranges_.begin + ranges_.size};
        for (;;) {
            uint64_t low = c.read<uint64_t>(), high = c.read<uint64_t>();
            if (low == 0 && high == 0) return;
            if (low == ~0ull) base = high;
            else table_.inlined_.push_back({base + low, base + high, unit, a.call_file, a.call_line});
        }
    }

    struct LineProgram {
        unsigned min_instruction, line_range, opcode_base;
        int line_base;
        std::vector<uint8_t> operands;
    };

    void read_lines(uint64_t offset, unsigned unit, const std::string& unit_directory) {
        Cursor c{lines_.begin + offset, lines_.begin + lines_.size};
        uint32_t length = c.read<uint32_t>();
        c.end = c.p + length;
        uint16_t version = c.read<uint16_t>();
        uint32_t header_length = c.read<uint32_t>();
        const uint8_t* program = c.p + header_length;
        LineProgram l{};
        l.min_instruction = c.read<uint8_t>();
        if (version >= 4) c.skip(1);                             // operations per instruction: 1 where there is no VLIW
        c.skip(1);                                               // default_is_stmt
        l.line_base = c.read<int8_t>();
        l.line_range = c.read<uint8_t>();
        l.opcode_base = c.read<uint8_t>();
        for (unsigned i = 1; i < l.opcode_base; ++i) l.operands.push_back(c.read<uint8_t>());
        read_files(c, unit, unit_directory);
        c.p = program;
        run(c, l, unit);
    }

    // Paths below the unit's own folder become relative to it: that folder is the root of the kernel's source.
    void read_files(Cursor& c, unsigned unit, const std::string& unit_directory) {
        std::vector<std::string> directories{unit_directory};
        for (std::string d = c.text(); !d.empty(); d = c.text()) directories.push_back(d);
        std::vector<std::string>& files = table_.files_[unit];
        files.push_back("");                                     // numbers start at 1
        for (std::string name = c.text(); !name.empty(); name = c.text()) {
            const std::string& directory = directories.at(c.uleb());
            c.uleb();                                            // time and length of the file
            c.uleb();
            std::string path = name[0] == '/' ? name : directory + '/' + name;
            if (path.rfind(unit_directory + '/', 0) == 0) path = path.substr(unit_directory.size() + 1);
            files.push_back(clean(path));
        }
    }

    void run(Cursor c, const LineProgram& l, unsigned unit) {
        LineTable::Row row{0, unit, 1, 1, false};
        const LineTable::Row start = row;
        auto emit = [&](bool end) { row.end = end; table_.rows_.push_back(row); };
        while (c.p < c.end) {
            unsigned op = c.read<uint8_t>();
            if (op >= l.opcode_base) {
                row.address += (op - l.opcode_base) / l.line_range * l.min_instruction;
                row.line += unsigned(l.line_base + int((op - l.opcode_base) % l.line_range));
                emit(false);
            } else if (op == 0) {
                Cursor extended{c.p, c.end};
                uint64_t length = extended.uleb();
                c.p = extended.p + length;
                unsigned kind = extended.read<uint8_t>();
                if (kind == DW_LNE_set_address) row.address = extended.read<uint64_t>();
                if (kind == DW_LNE_end_sequence) { emit(true); row = start; }
            } else switch (op) {
                case DW_LNS_copy: emit(false); break;
                case DW_LNS_advance_pc: row.address += c.uleb() * l.min_instruction; break;
                case DW_LNS_advance_line: row.line += unsigned(c.sleb()); break;
                case DW_LNS_set_file: row.file = unsigned(c.uleb()); break;
                case DW_LNS_const_add_pc: row.address += (255 - l.opcode_base) / l.line_range * l.min_instruction; break;
                case DW_LNS_fixed_advance_pc: row.address += c.read<uint16_t>(); break;
                default: for (unsigned i = 0; i < l.operands[op - 1]; ++i) c.uleb();
            }
        }
    }

    LineTable& table_;
    Bytes info_, abbreviations_, lines_, ranges_, strings_;
};

LineTable::LineTable(const ElfFile& file) {
    DwarfReader(file, *this).read();
    std::stable_sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) {
        return a.address != b.address ? a.address < b.address : a.end > b.end;      // a function may begin where another ends
    });
}

std::vector<Frame> LineTable::frames(uint64_t address) const {
    auto after = std::upper_bound(rows_.begin(), rows_.end(), address, [](uint64_t a, const Row& row) { return a < row.address; });
    if (after == rows_.begin() || std::prev(after)->end) return {};
    auto at = std::prev(after);
    while (at->line == 0 && at != rows_.begin() && !std::prev(at)->end) --at;     // 0: merged from several lines; the one before it
    const Row& row = *at;
    std::vector<Frame> found;
    for (const Inlined& i : inlined_)                            // outer calls come first
        if (address >= i.low && address < i.high) found.push_back({files_[i.unit].at(i.file), i.line});
    found.push_back({files_[row.unit].at(row.file), row.line});
    std::reverse(found.begin(), found.end());
    return found;
}

}  // namespace emu
