// Read-modify-write operations, and the fence that makes them order something. Blocks run on several OS threads at once, so they are atomic here too.
#include "access.h"
#include "grid.h"
#include <cstring>
#include <type_traits>

namespace emu {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;

template <class To, class From> static To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class T> static T combine(Atomic operation, T old, T operand) {
    switch (operation) {
        case Atomic::add: return old + operand;
        case Atomic::max: return old < operand ? operand : old;
        case Atomic::min: return operand < old ? operand : old;
        case Atomic::exchange: return operand;
        default: break;
    }
    const Bits<T> a = bit_cast<Bits<T>>(old), b = bit_cast<Bits<T>>(operand);
    switch (operation) {
        case Atomic::bit_and: return bit_cast<T>(Bits<T>(a & b));
        case Atomic::bit_or: return bit_cast<T>(Bits<T>(a | b));
        case Atomic::bit_xor: return bit_cast<T>(Bits<T>(a ^ b));
        case Atomic::increment: return a >= b ? T(0) : bit_cast<T>(Bits<T>(a + 1));
        default: return a == 0 || a > b ? operand : bit_cast<T>(Bits<T>(a - 1));     // decrement
    }
}

static void announce(const void* address, size_t bytes, Site site) {
    if (reinterpret_cast<uintptr_t>(address) % bytes)
        fail("MisalignedAccess", site, "atomic operation %s, an address that is no multiple of %zu",
             describe_address(address).c_str(), bytes);
    access(address, bytes, Access::atomic, site);
    watch_access(address, bytes, Access::atomic, site);
}

// An atomic orders nothing by itself, but fences on either side of it do.
constexpr GlobalRaces::Order relaxed = {.reads = true, .acquires = false, .writes = true, .releases = false, .replaces = false};

template <class T> T atomic(Atomic operation, T* address, T operand) {
    announce(address, sizeof(T), EMU_SITE);
    const OrderedAccess together(address, relaxed);
    auto* bits = reinterpret_cast<Bits<T>*>(address);
    Bits<T> old = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(bits, &old, bit_cast<Bits<T>>(combine(operation, bit_cast<T>(old), operand)), true,
                                        __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    return bit_cast<T>(old);
}

template <class T> T atomic_compare_and_swap(T* address, T expected, T desired) {
    announce(address, sizeof(T), EMU_SITE);
    const OrderedAccess together(address, relaxed);
    Bits<T> old = bit_cast<Bits<T>>(expected);
    __atomic_compare_exchange_n(reinterpret_cast<Bits<T>*>(address), &old, bit_cast<Bits<T>>(desired), false, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
    return bit_cast<T>(old);
}

void threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!races()) return;
    ThreadOrder& order = *self().order;
    if (!order.unfenced.empty()) races()->learning.learn(order, as_known(order.unfenced, block().cluster->number));
    order.unfenced.clear();
    order.released = snapshot(order);
}

#define EMU_INSTANTIATE(T)                        \
    template T atomic<T>(Atomic, T*, T);          \
    template T atomic_compare_and_swap<T>(T*, T, T);
EMU_INSTANTIATE(int)
EMU_INSTANTIATE(unsigned)
EMU_INSTANTIATE(long long)
EMU_INSTANTIATE(unsigned long long)
EMU_INSTANTIATE(float)
EMU_INSTANTIATE(double)
template unsigned short atomic_compare_and_swap<unsigned short>(unsigned short*, unsigned short, unsigned short);

}  // namespace emu
