// Barriers, warp collectives, fences and atomics, under CUDA's names.
#pragma once
#include "abi.h"

EMU_DEVICE void __syncthreads() { emu::syncthreads(); }
EMU_DEVICE int __syncthreads_count(int predicate) { return emu::syncthreads_reduce(predicate, emu::Reduce::count); }
EMU_DEVICE int __syncthreads_and(int predicate) { return emu::syncthreads_reduce(predicate, emu::Reduce::all); }
EMU_DEVICE int __syncthreads_or(int predicate) { return emu::syncthreads_reduce(predicate, emu::Reduce::any); }
EMU_DEVICE void __syncwarp(unsigned mask = 0xffffffffu) { emu::syncwarp(mask); }

// One thread of a block runs at a time, so order within a block needs no fence; other blocks are other OS threads.
EMU_DEVICE void __threadfence_block() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
EMU_DEVICE void __threadfence() { emu::threadfence(); }
EMU_DEVICE void __threadfence_system() { emu::threadfence(); }
EMU_DEVICE void __nanosleep(unsigned) { emu::yield(); }

template <class T> EMU_DEVICE T emu_shuffle(unsigned mask, T value, int operand, int width, emu::Shuffle kind) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = emu::shuffle(mask, bits, operand, width, kind);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> EMU_DEVICE T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return emu_shuffle(mask, value, lane, width, emu::Shuffle::index);
}
template <class T> EMU_DEVICE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emu_shuffle(mask, value, int(delta), width, emu::Shuffle::up);
}
template <class T> EMU_DEVICE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emu_shuffle(mask, value, int(delta), width, emu::Shuffle::down);
}
template <class T> EMU_DEVICE T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    return emu_shuffle(mask, value, lane_mask, width, emu::Shuffle::exclusive_or);
}

EMU_DEVICE unsigned __ballot_sync(unsigned mask, int predicate) { return emu::vote(mask, predicate != 0, emu::Vote::ballot); }
EMU_DEVICE int __all_sync(unsigned mask, int predicate) { return int(emu::vote(mask, predicate != 0, emu::Vote::all)); }
EMU_DEVICE int __any_sync(unsigned mask, int predicate) { return int(emu::vote(mask, predicate != 0, emu::Vote::any)); }
EMU_DEVICE unsigned __activemask() { return emu::activemask(); }

template <class T> EMU_DEVICE unsigned __match_any_sync(unsigned mask, T value) {
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    return emu::vote(mask, bits, emu::Vote::match_any);
}
template <class T> EMU_DEVICE unsigned __match_all_sync(unsigned mask, T value, int* predicate) {
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    unsigned lanes = emu::vote(mask, bits, emu::Vote::match_all);
    *predicate = lanes != 0;
    return lanes;
}

// Reductions of 32-bit integers over the warp, sm_80 and later. Flipping the sign bit makes signed order unsigned.
EMU_DEVICE unsigned __reduce_max_sync(unsigned mask, unsigned value) { return emu::vote(mask, value, emu::Vote::max); }
EMU_DEVICE unsigned __reduce_min_sync(unsigned mask, unsigned value) { return emu::vote(mask, value, emu::Vote::min); }
EMU_DEVICE unsigned __reduce_add_sync(unsigned mask, unsigned value) { return emu::vote(mask, value, emu::Vote::add); }
EMU_DEVICE int __reduce_max_sync(unsigned mask, int value) {
    return int(__reduce_max_sync(mask, unsigned(value) ^ 0x80000000u) ^ 0x80000000u);
}
EMU_DEVICE int __reduce_min_sync(unsigned mask, int value) {
    return int(__reduce_min_sync(mask, unsigned(value) ^ 0x80000000u) ^ 0x80000000u);
}
EMU_DEVICE int __reduce_add_sync(unsigned mask, int value) { return int(__reduce_add_sync(mask, unsigned(value))); }

// CUDA overloads atomics by type; an int literal may meet an unsigned pointer, so the operand converts to the pointee.
template <class T> struct emu_same { typedef T type; };
#define EMU_ATOMIC(name, operation)                                                                     \
    template <class T> EMU_DEVICE T name(T* address, typename emu_same<T>::type operand) {              \
        return emu::atomic(emu::Atomic::operation, address, operand);                                   \
    }
EMU_ATOMIC(atomicAdd, add)
EMU_ATOMIC(atomicMax, max)
EMU_ATOMIC(atomicMin, min)
EMU_ATOMIC(atomicExch, exchange)
EMU_ATOMIC(atomicAnd, bit_and)
EMU_ATOMIC(atomicOr, bit_or)
EMU_ATOMIC(atomicXor, bit_xor)
EMU_DEVICE int atomicSub(int* address, int operand) { return emu::atomic(emu::Atomic::add, address, -operand); }
EMU_DEVICE unsigned atomicSub(unsigned* address, unsigned operand) { return emu::atomic(emu::Atomic::add, address, 0u - operand); }
EMU_DEVICE unsigned atomicInc(unsigned* address, unsigned limit) { return emu::atomic(emu::Atomic::increment, address, limit); }
EMU_DEVICE unsigned atomicDec(unsigned* address, unsigned limit) { return emu::atomic(emu::Atomic::decrement, address, limit); }
template <class T> EMU_DEVICE T atomicCAS(T* address, typename emu_same<T>::type expected, typename emu_same<T>::type desired) {
    return emu::atomic_compare_and_swap(address, expected, desired);
}

template <class T> EMU_DEVICE T __ldg(const T* address) { return *address; }
template <class T> EMU_DEVICE T __ldca(const T* address) { return *address; }
template <class T> EMU_DEVICE T __ldcg(const T* address) { return *address; }
template <class T> EMU_DEVICE T __ldcs(const T* address) { return *address; }
template <class T> EMU_DEVICE void __stcg(T* address, T value) { *address = value; }
template <class T> EMU_DEVICE void __stcs(T* address, T value) { *address = value; }

EMU_DEVICE long long clock64() { return emu::clock(); }
EMU_DEVICE int clock() { return int(emu::clock()); }
EMU_DEVICE void __trap() { emu::trap(); }
#define printf emu::print
#include "assert.h"
