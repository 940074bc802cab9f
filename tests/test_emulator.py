"""The emulator runs what CUDA threads do together: the same .cu, by g++ and by clang++, in any order of threads."""

import os
import subprocess
import sys

import pytest
import torch

from emulated import FOLDER, build, compiler  # noqa: F401, the fixture
from flashmoe_nb import cuda, emulator

pytestmark = pytest.mark.usefixtures("compiler")
ORDERS = [dict(schedule="forward"), dict(schedule="reverse"), dict(seed=1), dict(seed=2, check=("memory", "init"))]
each_order = pytest.mark.parametrize("order", ORDERS, ids=["forward", "reverse", "random", "random, checked"])


def ints(*shape):
    return torch.full(shape, -1, dtype=torch.int32)


@each_order
@pytest.mark.parametrize("workers", [1, 3])
def test_shared_memory_and_barriers(order, workers):
    x, out = torch.arange(512, dtype=torch.int32), ints(512)
    build("threads.cu", "reverse_kernel<128>").launch(4, 128, [x, out], 512, workers=workers, **order)
    assert torch.equal(out.view(4, 128), x.view(4, 128).flip(1) + 1000 * torch.arange(4)[:, None])


def test_indices():
    grid, block = (3, 2, 2), (5, 3, 2)
    out = ints(2, 2, 3, 2, 3, 5, 6)
    build("threads.cu", "index_kernel").launch(grid, block, [out])
    for blocks_first, extent in enumerate((grid, block)):
        for axis in range(3):
            shape = [1] * 6
            shape[3 * blocks_first + 2 - axis] = extent[axis]
            column = axis if blocks_first else 3 + axis
            expected = torch.arange(extent[axis], dtype=torch.int32).view(shape).expand(2, 2, 3, 2, 3, 5)
            assert torch.equal(out[..., column], expected)


def shuffled(kind: int, width: int, lane: int, operand: int) -> int:
    "PTX ISA, shfl.sync, restated: the lane a value comes from."
    first = lane // width * width
    if kind == 0:
        return first + operand % width
    from_ = (lane - operand, lane + operand, lane ^ operand)[kind - 1]
    if kind == 1:
        return from_ if from_ >= first else lane
    return from_ if from_ < first + width else lane


@each_order
@pytest.mark.parametrize("operand", [0, 1, 5, 16, 31])
def test_shuffles(operand, order):
    out = ints(4, 6, 32)
    build("threads.cu", "shuffle_kernel").launch(1, 32, [out, operand], **order)
    expected = [[[100 + shuffled(kind, 1 << i, lane, operand) for lane in range(32)] for i in range(6)] for kind in range(4)]
    assert out.tolist() == expected


def test_shuffles_of_other_types_and_masks():
    doubles, floats, partial, absent = torch.zeros(32, dtype=torch.float64), torch.zeros(32), ints(8), ints(8)
    build("threads.cu", "shuffle_types_kernel").launch(1, 32, [doubles, floats, partial, absent])
    assert doubles.tolist() == [3.5] * 32
    assert floats.tolist() == [0.25 * (lane ^ 1) for lane in range(32)]
    assert partial.tolist() == [1, 2, 3, 4, 5, 6, 7, -1]  # lane 8 takes no part: poison, here all ones
    assert absent.tolist() == [-1] * 8


@each_order
def test_votes(order):
    x = torch.randint(0, 5, (32,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    out = ints(32, 8)
    build("threads.cu", "vote_kernel").launch(1, 32, [x, out], **order)
    signed = lambda lanes: torch.tensor(sum(1 << i for i in lanes)).to(torch.int32).item()  # noqa: E731
    above = [i for i in range(32) if x[i] > 2]
    for lane in range(32):
        same = [i for i in range(32) if x[i] == x[lane]]
        assert out[lane].tolist() == [signed(above), 1, 0, signed(same), 0, 0, -1, 1]


@each_order
def test_block_votes_of_the_threads_that_are_left(order):
    x = (torch.arange(96) % 3 == 0).int()
    out = ints(2, 96, 3)
    build("threads.cu", "block_vote_kernel").launch(2, 96, [x, out], **order)
    assert out[0].tolist() == [[32, 0, 1]] * 96
    assert out[1, 1:].tolist() == [[31, 0, 1]] * 95 and out[1, 0].tolist() == [-1] * 3


@each_order
def test_named_barriers(order):
    out = ints(9, 64)
    build("threads.cu", "ring_kernel").launch(1, 128, [out, 9], **order)
    assert torch.equal(out, (1000 * torch.arange(9)[:, None] + torch.arange(63, -1, -1)).int())


@each_order
def test_warps_that_diverge_or_shrink(order):
    out = ints(64)
    build("threads.cu", "partial_warp_kernel").launch(1, 64, [out], **order)
    value = [lane + (100 if lane < 10 else 10) for lane in range(32)]
    assert out[:32].tolist() == [v + 32 for v in value]
    assert out[32:].tolist() == [v + 20 for v in value[:20]] + [-1] * 12


@pytest.mark.parametrize("workers, check", [(1, ()), (4, ()), (2, ("memory", "init"))])
def test_atomics(workers, check):
    n = 8 * 96
    numbers, bits = torch.zeros(6, dtype=torch.int32), torch.tensor([-1, 0, 0, 0], dtype=torch.int32)
    floats, longs, old = torch.zeros(2), torch.zeros(2, dtype=torch.int64), ints(n)
    build("threads.cu", "atomics_kernel").launch(8, 96, [numbers, bits, floats, longs, old], workers=workers, check=check)
    assert numbers.tolist() == [n, n - 1, 1 - n, -2 * n, n - 1, n]
    assert bits.tolist() == [0, -1, 0, n % 10]
    assert floats.tolist() == [n, 5.0] and longs.tolist() == [n << 40, (n - 1) << 33]
    assert sorted(old.tolist()) == list(range(n))


def test_atomics_of_blocks_that_run_at_the_same_time():
    count, total = torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    build("threads.cu", "crowd_kernel").launch(8, 32, [count, total], workers=4)
    assert count.item() == total.item() == 8 * 32 * 2000


@pytest.mark.parametrize("check", [(), ("memory", "init")])
def test_blocks_that_wait_for_each_other(check):
    "More blocks than workers: the runtime starts them all when the first ones only poll."
    count, out = torch.zeros(1, dtype=torch.int32), ints(12, 32)
    build("threads.cu", "grid_barrier_kernel").launch(12, 32, [count, out], workers=2, check=check)
    assert out.eq(12).all()


def test_a_loop_that_never_yields():
    flag, out = torch.zeros(1, dtype=torch.int32), ints(32)
    build("threads.cu", "stubborn_kernel").launch(1, 32, [flag, out])
    assert out.eq(1).all()


def test_print_in_the_order_of_blocks(capsys):
    build("threads.cu", "print_kernel").launch(5, 32, [5], workers=3)
    assert capsys.readouterr().out == "".join(f"block {i} of 5: {0.5 * i:.2f}\n" for i in range(5))


@pytest.mark.parametrize("check", [(), ("memory", "init")])
def test_vectors_constants_and_scalar_types(check):
    x, out = torch.randn(64, 4), torch.zeros(64, 4)
    build("threads.cu", "types_kernel").launch(1, 64, [x, out, 5 << 33, 0.25, True, 1 << 31], check=check)
    table = torch.tensor([3.0, 1.0, 4.0, 1.0]).repeat(16)
    expected = torch.stack([x[:, 0] * 2 + table, x[:, 1] + 0.25, x[0, 2].expand(64), x[:, 3] + 6], 1)
    assert torch.equal(out, expected)


def test_clock():
    out = torch.zeros(64, dtype=torch.int64)
    build("threads.cu", "clock_kernel").launch(1, 64, [out])
    assert (out > 0).all()


def test_every_order_gives_the_same_bits():
    x = torch.randn(6 * 128, generator=torch.Generator().manual_seed(0))
    kernel, outs = build("threads.cu", "tree_sum_kernel"), []
    for order in [*ORDERS, *(dict(seed=s) for s in range(3, 8))]:
        outs.append(torch.zeros(6))
        kernel.launch(6, 128, [x, outs[-1]], **order)
    assert all(torch.equal(out, outs[0]) for out in outs)
    torch.testing.assert_close(outs[0], x.view(6, 128).sum(1))


def test_the_same_seed_is_the_same_schedule():
    kernel, out = build("threads.cu", "ring_kernel"), ints(3, 64)
    traces = [kernel.launch(1, 128, [out, 3], seed=s, trace=True).events for s in (4, 4, 5)]
    assert traces[0] == traces[1] != traces[2]


def test_trace():
    report = build("threads.cu", "ring_kernel").launch(1, 128, [ints(2, 64), 2], trace=True)
    waits = {(e.object, e.thread // 64) for e in report.events if e.what == "wait"}
    assert waits == {("named barrier 1", 1), ("named barrier 2", 0)}
    assert sum(e.what == "exit" for e in report.events) == 128
    assert all(e.place.startswith("kernels/tests/threads.cu:") for e in report.events if e.what == "wait")
    assert report.barriers == 3 and "3 barriers" in repr(report)


@pytest.mark.slow
def test_the_portable_switch(compiler, monkeypatch):  # noqa: F811
    "On processors without a switch of their own, ucontext does it: slower, and the same."
    if compiler != "g++":
        pytest.skip("once is enough: it builds a runtime of its own")
    monkeypatch.setenv("CXX", "g++ -DEMU_UCONTEXT=1")
    for order in ORDERS:
        test_named_barriers(order)
        test_shared_memory_and_barriers(order, 3)
    with pytest.raises(emulator.Deadlock, match="named barrier 1: 32 of 64 threads arrived"):
        build("errors.cu", "mistake_kernel").launch(1, 128, [1, 0, torch.zeros(128), torch.zeros(128), None, 0], 512)
    with pytest.raises(emulator.StackOverflow):
        build("errors.cu", "mistake_kernel").launch(1, 128, [25, 0, torch.zeros(128), torch.zeros(128), None, 0], 512)
    test_named_barriers(ORDERS[0])


# ---- tensors -----------------------------------------------------------------------------------------------------------


def copy_kernel():
    text = """
__global__ void copy_kernel(const float* g_in, float* g_out, int n, int in_stride, int out_stride) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) g_out[i * out_stride] = g_in[i * in_stride] + 1.0f;
}"""
    return emulator.build(cuda.Source("tests/copy.cu", text), "copy_kernel")


@pytest.mark.parametrize("check", [(), ("memory",)])
def test_strided_views(check):
    x, out = torch.randn(40, 3), torch.zeros(40, 5)
    copy_kernel().launch(1, 32, [x[:, 1], out[:, 4], 40, 3, 5], check=check)
    assert torch.equal(out[:, 4], x[:, 1] + 1) and not out[:, :4].any()


@pytest.mark.parametrize("check", [(), ("memory",)])
def test_views_of_one_storage_stay_aliases(check):
    x = torch.zeros(64)
    kernel = copy_kernel()
    kernel.launch(1, 1, [x[:63], x[1:], 63, 1, 1], check=check)  # one thread: each element sees the one before it
    assert x.tolist() == list(range(64))
    packed = torch.arange(96.0).view(3, 32)
    kernel.launch(1, 32, [packed[0], packed[2], 32, 1, 1], check=check)
    assert torch.equal(packed, torch.stack([torch.arange(32.0), torch.arange(32.0, 64), torch.arange(1.0, 33)]))


def test_broadcast_and_empty_tensors():
    out = torch.zeros(8)
    copy_kernel().launch(1, 8, [torch.tensor(2.0).expand(8), out, 8, 0, 1], check=("memory",))
    assert out.eq(3).all()
    copy_kernel().launch(1, 8, [torch.empty(0), torch.empty(0), 0, 1, 1])


def test_only_what_a_kernel_may_write_is_written_back():
    "A neighbour in the same storage that changes during the launch keeps its change."
    packed = torch.zeros(3, 32)
    copy_kernel().launch(1, 32, [packed[0], packed[1], 32, 1, 1])
    assert packed.sum() == 32 and packed[1].eq(1).all()


def test_const_tensors_are_never_written():
    "Memory that cannot be written, as behind a mapped file, is good enough for a const argument."
    program = f"""
import mmap, torch, sys
sys.path.insert(0, {str(FOLDER.parent)!r})
from test_emulator import copy_kernel
x, out = torch.frombuffer(mmap.mmap(-1, 4096, prot=mmap.PROT_READ), dtype=torch.float32), torch.zeros(1024)
copy_kernel().launch(1, 32, [x, out, 1024, 1, 1])
assert out.eq(1).all()
"""
    copy_kernel()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_alignment_is_that_of_the_storage(offset):
    text = "__global__ void address_kernel(const float* g_in, long long* g_out) { g_out[0] = (long long)g_in % 256; }"
    kernel, out = emulator.build(cuda.Source("tests/address.cu", text), "address_kernel"), torch.zeros(1, dtype=torch.int64)
    kernel.launch(1, 1, [torch.zeros(100)[offset:], out])
    assert out.item() == 4 * offset


def test_signature():
    text = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda.h>
template <class T> __global__ void k(const __nv_bfloat16* a, __half* h, T* b, int c, long long d, float e, unsigned n,
                                     bool f, const __grid_constant__ CUtensorMap m) {}"""
    expected = ("__nv_bfloat16 const*", "__half*", "float*", "int", "long long", "float", "unsigned int", "bool", "CUtensorMap_st")
    assert emulator.build(cuda.Source("tests/k.cu", text), "k<float>").signature == expected


def test_defines():
    text = "__global__ void k(int* g) { g[0] = VALUE; }"
    out = ints(1)
    for value in (3, 4):
        emulator.build(cuda.Source("tests/k.cu", text), "k", {"VALUE": value}).launch(1, 1, [out])
        assert out.item() == value


def test_many_threads_and_blocks():
    x = torch.arange(64 * 1024, dtype=torch.int32)
    out = ints(64 * 1024)
    build("threads.cu", "reverse_kernel<1024>").launch(64, 1024, [x, out], 4096)
    assert torch.equal(out.view(64, 1024), x.view(64, 1024).flip(1) + 1000 * torch.arange(64)[:, None])


# ---- building ----------------------------------------------------------------------------------------------------------


def test_compile_errors_name_the_line_and_the_instance():
    with pytest.raises(cuda.CompileError) as error:
        emulator.build(cuda.Source("tests/k.cu", "__global__ void k() {\n  int x = nonsense;\n}\n"), "k")
    assert "kernels/tests/k.cu:2: " in str(error.value) and "int x = nonsense;" in str(error.value)
    with pytest.raises(cuda.CompileError) as error:
        emulator.build(cuda.Source("tests/k.cu", "__global__ void k() {}"), "another")
    assert "another" in str(error.value) and "emulator" in str(error.value)


def test_other_systems_are_told(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(emulator.EmulatorUnavailable, match="runs on Linux, not on darwin"):
        emulator.find_compiler()


def test_dynamic_shared_memory_has_one_name():
    text = "extern __shared__ float {name}[];\n__global__ void k(float* g) {{ {name}[0] = 2; g[0] = {name}[0]; }}"
    with pytest.raises(cuda.CompileError, match="smem_raw"):
        emulator.build(cuda.Source("tests/k.cu", text.format(name="other")), "k")
    inside = """
__global__ void k(int* g) {
    extern __shared__ __align__(1024) unsigned char smem_raw[];
    smem_raw[5] = 3;
    g[0] = smem_raw[5];
}"""
    out = ints(1)
    emulator.build(cuda.Source("tests/k.cu", inside), "k").launch(1, 1, [out], 64)
    assert out.item() == 3


def test_a_header_from_the_overlay_has_precedence():
    text, header = '#include "common/value.cuh"\n__global__ void k(int* g) { g[0] = value; }', "constexpr int value = 6;\n"
    out = ints(1)
    emulator.build(cuda.Source("tests/k.cu", text, {"common/value.cuh": header}), "k").launch(1, 1, [out])
    assert out.item() == 6


def test_parallel_processes_share_the_cache(tmp_path):
    "Four processes find a cache without the kernel, nor the runtime, and build both at once: the runtime once."
    built = emulator._runtime(emulator.find_compiler())
    program = f"""
import shutil, time, torch
from flashmoe_nb import cuda, emulator
def compile_runtime(compiler, folder, library):
    print("compiled", flush=True)
    folder.mkdir()
    time.sleep(0.3)
    for file in ("shared_front.o", "shared_back.o", library): shutil.copy({str(built)!r} + "/" + file, folder)
emulator._compile_runtime = compile_runtime
emulator._runtime_digest = lambda compiler: {built.name!r}
out = torch.zeros(32, dtype=torch.int32)
text = "__global__ void k(int* g) {{ g[threadIdx.x] = threadIdx.x; }}"
emulator.build(cuda.Source("tests/k.cu", text), "k").launch(1, 32, [out])
assert out.tolist() == list(range(32))
"""
    environment = {**os.environ, "FLASHMOE_CACHE": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) for _ in range(4)]
    said = [p.communicate()[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * 4 and sorted(said) == [b"", b"", b"", b"compiled\n"]
    assert sorted(f.name for f in (tmp_path / "emulator").iterdir()) == [built.name, built.name + ".lock"]
    assert len(list((tmp_path / "emulator" / built.name).glob("*.so"))) == 2


def test_no_compiler_says_what_to_install(monkeypatch):
    emulator._find_compiler.cache_clear()
    monkeypatch.setattr(emulator, "_ask_version", lambda command: None)
    try:
        monkeypatch.delenv("CXX")
        with pytest.raises(emulator.EmulatorUnavailable, match=r"apt install g\+\+.*pip install flashmoe_nb\[zig\]"):
            emulator.find_compiler()
        monkeypatch.setenv("CXX", "nonsense++ -x")
        with pytest.raises(emulator.EmulatorUnavailable, match=r"\$CXX names the C\+\+ compiler 'nonsense\+\+ -x'"):
            emulator.find_compiler()
    finally:
        emulator._find_compiler.cache_clear()


def test_a_launch_without_memory_for_its_threads_is_an_error():
    "The address space is full: an error, and a smaller launch works."
    program = f"""
import resource, torch, sys
sys.path.insert(0, {str(FOLDER.parent)!r})
from emulated import build
from flashmoe_nb import emulator
kernel, out = build("threads.cu", "index_kernel"), torch.zeros(6 * 1024, dtype=torch.int32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try: kernel.launch(1, 1024, [out])
except emulator.EmulatorError as error: print(error)
kernel.launch(1, 64, [out], workers=1)
assert out[6 * 63] == 63
"""
    build("threads.cu", "index_kernel")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "index_kernel: a worker could not start: std::bad_alloc\n" and done.returncode == 0, done.stderr


def test_an_interrupt_ends_a_kernel_that_spins():
    "Ctrl-C reaches a launch, with or without a yield in the loop; the process goes on."
    program = f"""
import os, signal, threading, torch
import sys; sys.path.insert(0, {str(FOLDER.parent)!r})
from emulated import build
kernel = build("errors.cu", "mistake_kernel")
for mistake in (29, 30):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try: kernel.launch(2, 64, [mistake, 1, torch.zeros(64), torch.zeros(64), None, 0], 64)
    except KeyboardInterrupt: print("interrupted", flush=True)
out = torch.zeros(64)
kernel.launch(1, 64, [0, 0, out, torch.zeros(64), None, 7], 64)
assert out.eq(7).all()
"""
    build("errors.cu", "mistake_kernel")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted\n" * 2 and done.returncode == 0, done.stderr
