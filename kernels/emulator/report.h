// What a watched launch has seen, as lines of text that flashmoe_nb/emulator.py reads.
#pragma once
#include <string>

namespace emu {

struct Grid;
std::string report_of(const Grid& grid);      // after the end of the launch

}  // namespace emu
