"""The emulator on another processor: fibers, barriers, shuffles, guards and lines, cross-compiled and run by qemu-user."""

import os
import shutil
import subprocess

import pytest
import torch

from emulated import FOLDER, line, source
from flashmoe_nb import emulator
from test_emulator import shuffled
from test_emulator_errors import MISTAKES

CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which(CROSS) and shutil.which(QEMU)), reason=f"needs {CROSS} and {QEMU}"),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    "The driver, the runtime, and a function that cross-compiles a kernel."
    folder = tmp_path_factory.mktemp("aarch64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", CROSS)
        compiler = emulator.find_compiler()
        runtime = emulator._runtime(compiler)
        driver = folder / "driver"
        subprocess.run([CROSS, "-std=c++17", "-w", FOLDER / "driver.cpp", "-o", driver, "-ldl"], check=True)

        def kernel(file, name, *flags):
            library = runtime / (emulator._digest(source(file).digest, name, flags) + ".so")
            command = (*compiler.command, *compiler.flags, *emulator._FLAGS, *emulator._KERNEL_FLAGS, *flags, "-DFLASHMOE_ARCH=900")
            if not library.exists():
                emulator._compile_kernel(source(file), name, command, runtime, library)
            return library

        yield driver, next(runtime.glob("libemulator-*.so")), kernel


def run(libraries, file, name, grid, block, smem, *arguments, schedule=0, checks=0):
    driver, runtime, kernel = libraries
    library = kernel(file, name, *(emulator._CHECK_FLAGS if checks else ()))
    words = [driver, runtime, library, grid, block, smem, schedule, checks, *arguments]
    environment = {**os.environ, "QEMU_LD_PREFIX": "/usr/aarch64-linux-gnu"}
    done = subprocess.run([QEMU, *map(str, words)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode in (0, 1), done.stderr
    return [int(v) for v in done.stdout.split()] if done.returncode == 0 else done.stdout


each_schedule = pytest.mark.parametrize("schedule", emulator.SCHEDULES.values(), ids=emulator.SCHEDULES)


@each_schedule
def test_shared_memory_and_barriers(libraries, schedule):
    out = run(libraries, "threads.cu", "reverse_kernel<128>", 4, 128, 512, "in:512", "out:512", schedule=schedule)
    expected = torch.arange(512).view(4, 128).flip(1) + 1000 * torch.arange(4)[:, None]
    assert out == expected.flatten().tolist()


@each_schedule
def test_shuffles(libraries, schedule):
    out = run(libraries, "threads.cu", "shuffle_kernel", 1, 32, 0, "out:768", 5, schedule=schedule)
    assert out == [100 + shuffled(kind, 1 << i, lane, 5) for kind in range(4) for i in range(6) for lane in range(32)]


@each_schedule
def test_named_barriers(libraries, schedule):
    out = run(libraries, "threads.cu", "ring_kernel", 1, 128, 0, "out:320", 5, schedule=schedule)
    assert out == [1000 * i + 63 - t for i in range(5) for t in range(64)]


def test_votes_and_instrumented_accesses(libraries):
    out = run(libraries, "threads.cu", "partial_warp_kernel", 1, 64, 0, "out:64", checks=3)
    value = [lane + (100 if lane < 10 else 10) for lane in range(32)]
    assert out == [v + 32 for v in value] + [v + 20 for v in value[:20]] + [-1] * 12


@pytest.mark.parametrize(
    "mistake, n, checks, says",
    [
        ("unequal_barriers", 0, 0, "named barrier 1: 32 of 64 threads arrived"),
        ("past_the_end", 2000, 0, "7488 bytes past the end of argument 0 (512 bytes)"),
        ("just_past", 128, 1, "writes 4 bytes right behind argument 0 (512 bytes)"),
        ("uninitialised", 100, 2, "that no thread has written"),
        ("stack", 0, 0, "local memory of a thread exceeds"),
    ],
)
def test_errors(libraries, mistake, n, checks, says):
    arguments = (MISTAKES[mistake], 0, "out:128", "in:128", 0, n)
    text = run(libraries, "errors.cu", "mistake_kernel", 1, 128, 512, *arguments, checks=checks)
    assert says in text
    if mistake != "stack":  # which of its frames fills the stack is the compiler's choice
        assert "\1" + line("errors.cu", f"here: {mistake}").removeprefix("kernels/") + "\2" in text
