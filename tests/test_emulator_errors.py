"""Every mistake ends the launch with an error that names the source line, and nothing else: the process goes on."""

import re

import pytest
import torch

from emulated import build, compiler, line, source  # noqa: F401, the fixture
from flashmoe_nb import cuda, emulator

pytestmark = pytest.mark.usefixtures("compiler")

NAMES = re.search(r"enum Mistake \{(.*?)\};", source("errors.cu").text, re.S)[1].replace("\n", " ").split(",")
MISTAKES = {name.strip().lower(): i for i, name in enumerate(NAMES) if name.strip()}
SMEM = 512


def launch(mistake: str, n: int = 0, *, check=(), block: int = 0, g=None, const=1.0, **options):
    g = torch.full((128,), 3.0) if g is None else g
    before = g.clone()
    try:
        build("errors.cu", "mistake_kernel", check).launch(
            3, 128, [MISTAKES[mistake], block, g, torch.full((128,), const), None, n], SMEM, check=check, **options
        )
    except emulator.EmulatorError:
        assert torch.equal(g, before), "a failed launch must leave the tensors alone"
        raise


def here(name: str) -> str:
    return line("errors.cu", f"here: {name}")


def there(name: str) -> str:
    return line("errors.cu", f"there: {name}")


def fails(kind, mistake, n=0, *, check=(), **options) -> str:
    "The message of the error, which is of this kind, at the marked line."
    with pytest.raises(emulator.EmulatorError) as caught:
        launch(mistake, n, check=check, **options)
    assert type(caught.value) is kind, caught.value
    text = str(caught.value)
    assert text.startswith("mistake_kernel: block (")
    if kind is not emulator.Deadlock:
        assert caught.value.place == here(mistake), text
        assert f"at {here(mistake)}\n" in text
    return text


# ---- threads that do not meet ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [{}, dict(schedule="reverse"), dict(seed=1)], ids=["forward", "reverse", "random"])
def test_deadlock_names_barriers_arrivals_and_warps(order):
    text = fails(emulator.Deadlock, "unequal_barriers", **order)
    assert f"named barrier 1: 32 of 64 threads arrived\n    warp 0 waiting at {here('unequal_barriers')}" in text
    assert f"__syncthreads(): 32 of 64 threads arrived\n    warp 1 waiting at {there('unequal_barriers')}" in text
    assert text.endswith("\n  warps 2-3 exited")


def test_deadlock_of_a_warp_names_mask_and_lanes():
    text = fails(emulator.Deadlock, "lane_missing", 4)
    others = "warp 0 (lanes 0-4, 6-31)"
    assert "__syncwarp of warp 0, mask 0xffffffff: 31 of 32 lanes arrived" in text
    assert f"{others} waiting at {here('lane_missing')}" in text
    assert "__syncwarp of warp 0, mask 0x00000060: 1 of 2 lanes arrived" in text
    assert f"warp 0 (lane 5) waiting at {there('lane_missing')}" in text


def test_deadlock_of_threads_that_poll():
    text = fails(emulator.Deadlock, "waits_forever")
    assert f"a loop that polls\n    warps 0-3 waiting at {here('waits_forever')}" in text


def test_two_lines_of_one_barrier_in_a_warp():
    text = fails(emulator.Diverged, "half_a_warp")
    assert f"others wait at {there('half_a_warp')}" in text and "warp 0, lane 16" in text


def test_two_collectives_of_one_mask():
    text = fails(emulator.Diverged, "different_collectives")
    assert "__shfl_xor_sync, but other lanes of its mask 0xffffffff are at __syncwarp" in text
    assert there("different_collectives") in text


def test_lane_outside_its_mask():
    assert "__ballot_sync: lane 0 is not in its own mask 0xfffffffe" in fails(emulator.Diverged, "not_in_mask")


@pytest.mark.parametrize(
    "mistake, says",
    [
        ("barrier_number", "barrier 16 does not exist"),
        ("barrier_count", "barrier 1 for 33 threads: the count must be a multiple of 32"),
        ("barrier_counts", r"barrier 1 for 96 threads, but threads that are there already \(warp 0\) expect 64"),
        ("arrives_twice", "barrier 3: this thread has arrived already"),
    ],
)
def test_misused_barriers(mistake, says):
    assert re.search(says, fails(emulator.BarrierMisuse, mistake))


# ---- memory: plain launches, where a fault or a pattern tells ----------------------------------------------------------

EXACT = [(), ("memory",), ("memory", "init")]
each_check = pytest.mark.parametrize("check", EXACT, ids=["plain", "memory", "memory and init"])


@each_check
def test_past_the_end(check):
    text = fails(emulator.OutOfBounds, "past_the_end", 2000, check=check)
    assert "thread (0, 0, 0) = warp 0, lane 0" in text
    assert re.search(r"writes (4 bytes )?7488 bytes past the end of argument 2, float\* \(512 bytes\)", text)


@each_check
def test_far_away_and_before_and_null(check):
    fails(emulator.OutOfBounds, "far_away", 3, check=check)
    assert "bytes before argument 2, float* (512 bytes)" in fails(emulator.OutOfBounds, "before_the_start", 500, check=check)
    assert "at the null pointer" in fails(emulator.OutOfBounds, "null_pointer", check=check)


@each_check
def test_writing_to_const(check):
    text = fails(emulator.OutOfBounds, "writes_const", check=check)
    assert "at byte 12 of argument 3, float const* (512 bytes), which is const" in text


def test_writing_to_a_const_view_of_a_tensor_that_is_written():
    "The two arguments share a mapping; only the exact check tells them apart."
    packed = torch.ones(2, 128)
    kernel = build("errors.cu", "mistake_kernel", ("memory",))
    with pytest.raises(emulator.OutOfBounds, match="at byte 12 of argument 3, .* which is const") as caught:
        kernel.launch(1, 128, [MISTAKES["writes_const"], 0, packed[0], packed[1], None, 0], SMEM, check=("memory",))
    assert caught.value.place == here("writes_const")


def test_a_short_stray_write():
    "Just past the end: the exact check names the line, a plain launch notices afterwards."
    g = torch.full((126,), 3.0)
    text = fails(emulator.OutOfBounds, "just_past", 126, check=("memory",), g=g)
    assert "writes 4 bytes right behind argument 2, float* (504 bytes)" in text
    with pytest.raises(emulator.OutOfBounds, match=r'something was written right behind argument 2.*check=\("memory",\)'):
        launch("just_past", 126, g=torch.full((126,), 3.0))


@each_check
def test_past_shared_memory(check):
    text = fails(emulator.OutOfBounds, "past_static", 1030, check=check)
    assert "bytes past the end of the shared array 's_" in text
    text = fails(emulator.OutOfBounds, "past_dynamic", 100, check=check)
    assert "25088 bytes past the end of the dynamic shared memory (512 bytes)" in text


@pytest.mark.parametrize(
    "mistake, n, what", [("past_static", 600, "shared array 's_"), ("just_past_dynamic", 128, "dynamic shared")]
)
def test_a_short_step_past_shared_memory(mistake, n, what):
    "Within the same page only the exact check can name the line; a write there is noticed all the same."
    text = fails(emulator.OutOfBounds, mistake, n, check=("memory",))
    assert re.search(rf"writes 4 bytes .* the {what}", text)
    with pytest.raises(emulator.OutOfBounds, match=rf'something was written .* the {what}.*check=\("memory",\)'):
        launch(mistake, n)


@pytest.mark.parametrize("check", [("init",), ("memory", "init")])
@pytest.mark.parametrize("mistake, n", [("uninitialised", 100), ("missing_barrier", 0)])
def test_uninitialised_shared_memory(mistake, n, check):
    text = fails(emulator.UninitialisedShared, mistake, n, check=check)
    assert re.search(r"reads 4 bytes at byte \d+ of the shared array 's_\w+' \(512 bytes\) that no thread has written", text)


@pytest.mark.parametrize("mistake, n", [("uninitialised", 100), ("missing_barrier", 0)])
def test_uninitialised_shared_memory_is_nan(mistake, n):
    g = torch.zeros(128)
    launch(mistake, n, g=g)
    assert g.isnan().any() and g.eq(1).any()


@each_check
def test_no_mistake(check):
    g = torch.zeros(128)
    launch("none", 7, check=check, g=g)
    assert g.eq(7).all()
    launch("uninitialised", 128, check=check, g=g)
    assert g.eq(1).all()


@each_check
def test_misaligned(check):
    text = fails(emulator.MisalignedAccess, "misaligned_float4", 2, check=check)
    assert "at byte 8 of argument 3, float const* (512 bytes), an address that is no multiple of 16" in text
    text = fails(emulator.MisalignedAccess, "misaligned_shared", 4, check=check)
    assert "at byte 4 of the dynamic shared memory (512 bytes), an address that is no multiple of 8" in text
    text = fails(emulator.MisalignedAccess, "misaligned_atomic", 2, check=check)
    assert "no multiple of 4" in text


@each_check
def test_atomics_are_checked_exactly(check):
    text = fails(emulator.OutOfBounds, "atomic_outside", 128, check=check)
    assert "updates 4 bytes right behind argument 2, float* (512 bytes)" in text


# ---- other ends --------------------------------------------------------------------------------------------------------


def test_stack_overflow():
    with pytest.raises(emulator.StackOverflow, match="local memory of a thread exceeds 192 KiB") as caught:
        launch("stack")
    assert caught.value.place.startswith("kernels/tests/errors.cu:")
    assert abs(int(caught.value.place.split(":")[1]) - int(here("stack").split(":")[1])) <= 2


def test_division_by_zero():
    fails(emulator.DivisionByZero, "divide", 5, const=0.0)
    launch("divide", 5, const=2.0)


def test_assert_and_trap():
    assert "thread (9, 0, 0)" in fails(emulator.AssertionFailed, "asserts", 9)
    assert "assert(n != int(threadIdx.x))" in fails(emulator.AssertionFailed, "asserts", 9)
    assert "thread (70, 0, 0) = warp 2, lane 6" in fails(emulator.Trap, "traps", 70)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_failing_block_is_reported(workers):
    for block in (0, 1, 2):
        assert f"block ({block}, 0, 0), thread (5, 0, 0)" in fails(emulator.Trap, "traps", 5, block=block, workers=workers)
    assert "block (0, 0, 0), thread (5, 0, 0)" in fails(emulator.Trap, "traps", 5, block=-1, workers=workers)
    assert "block (0, 0, 0), thread (0, 0, 0)" in fails(emulator.Trap, "fails_late", block=-1, workers=workers)


def test_the_process_survives_many_errors():
    for i in range(30):
        for kind, mistake, n in [
            (emulator.OutOfBounds, "past_the_end", 5000),
            (emulator.Trap, "traps", i),
            (emulator.StackOverflow, "stack", 0),
            (emulator.BarrierMisuse, "arrives_twice", 0),
            (emulator.Diverged, "not_in_mask", 0),
        ]:
            with pytest.raises(kind):
                launch(mistake, n)
    test_no_mistake(("memory", "init"))


def test_messages_name_the_cell():
    text = "__global__ void k(float* g) {\n    g[threadIdx.x + 5000] = 1.0f;\n}"
    cuda.register("tests/cell.cu", text, key="a", label="cell In[3]", start=True)
    try:
        with pytest.raises(emulator.OutOfBounds, match=r"at cell In\[3\], line 2\n") as caught:
            cuda.Kernel("tests/cell.cu", "k").launch(1, 32, [torch.zeros(8)])
        assert caught.value.place == "cell In[3], line 2"
    finally:
        cuda.unregister("tests/cell.cu")


def test_the_line_of_a_device_function_that_was_inlined():
    text = """
__device__ void store(float* g, int i) {
    g[i] = 1.0f;
}
__global__ void k(float* g, int n) {
    store(g, 0);
    store(g, n);
}"""
    with pytest.raises(emulator.OutOfBounds) as caught:
        emulator.build(cuda.Source("tests/k.cu", text), "k").launch(1, 1, [torch.zeros(8), 9000])
    assert caught.value.place == "kernels/tests/k.cu:3"


def test_errors_are_told_without_python_frames():
    with pytest.raises(emulator.Trap) as caught:
        launch("traps", 3)
    assert caught.value._render_traceback_() == [f"Trap: {caught.value}"]


# ---- before anything runs ----------------------------------------------------------------------------------------------


def refused(kind, match, *, grid=1, block=128, smem=SMEM, args=None, **options):
    kernel = build("errors.cu", "mistake_kernel")
    args = [0, 0, torch.zeros(128), torch.zeros(128), None, 1] if args is None else args
    with pytest.raises(kind, match=match):
        kernel.launch(grid, block, args, smem, **options)


def test_launches_that_no_chip_would_take():
    refused(ValueError, "1024 threads", block=(64, 17))
    refused(ValueError, r"grid \(0,", grid=0)
    refused(ValueError, "block", block=(1, 1, 65))
    refused(emulator.SharedMemoryExceeded, r"static and 233000 dynamic bytes.*sm_90a gives a block 232448", smem=233000)
    refused(emulator.SharedMemoryExceeded, "sm_75 gives a block 65536", smem=64 * 1024, chip="sm_75")
    refused(ValueError, "-1 bytes of dynamic shared memory", smem=-1)
    text = "__global__ void k(int* g) { __shared__ int s[13000]; s[threadIdx.x] = 1; __syncthreads(); g[0] = s[0]; }"
    with pytest.raises(emulator.SharedMemoryExceeded, match="52000 bytes of static shared memory; a kernel may declare 49152"):
        emulator.build(cuda.Source("tests/k.cu", text), "k").launch(1, 1, [torch.zeros(1, dtype=torch.int32)])


def test_options_that_do_not_exist():
    refused(ValueError, "chip 'sm_00' is unknown; there are sm_75", chip="sm_00")
    refused(ValueError, "schedule 'sideways' does not exist; there are forward, reverse, random", schedule="sideways")
    refused(ValueError, "check 'everything' does not exist; there are 'memory', 'init'", check=("everything",))
    refused(ValueError, r"grid \(3, 1, 1\) is no multiple of the cluster \(2, 1, 1\)", grid=3, cluster=2)
    with pytest.raises(ValueError, match="check 'everything'"):
        build("errors.cu", "mistake_kernel", ("everything",))


def test_arguments_that_do_not_fit():
    refused(TypeError, "takes 6 arguments", args=[0])
    refused(ValueError, "argument 2", args=[0, 0, torch.zeros(8, dtype=torch.float64), torch.zeros(8), None, 1])
    refused(ValueError, "CPU tensors", args=[0, 0, torch.zeros(8, device="meta"), torch.zeros(8, device="meta"), None, 1])
