// Turns hardware faults inside a kernel into errors of the launch. Faults elsewhere go where they always went.
#pragma once

namespace emu {

struct Grid;

// While one exists, the process catches SIGSEGV, SIGBUS, SIGFPE and SIGILL. Several may exist at once.
class FaultHandlers {
public:
    FaultHandlers();
    ~FaultHandlers();
    FaultHandlers(const FaultHandlers&) = delete;
};

// The calling OS thread can handle a fault even when its stack is full.
class AlternateStack {
public:
    AlternateStack();
    ~AlternateStack();
    AlternateStack(const AlternateStack&) = delete;

private:
    void* memory_;
};

}  // namespace emu
