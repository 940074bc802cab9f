// Starting, awaiting and stopping a launch.
#pragma once
#include "grid.h"

namespace emu {

void start(Grid& grid);
bool wait(Grid& grid, double seconds);     // true when the launch has ended

}  // namespace emu
