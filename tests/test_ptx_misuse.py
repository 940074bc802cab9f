"""A wrong use of an instruction is an error that names what is wrong and its line, not a wrong number."""

import re

import pytest
import torch
from ptx.cases import FOLDER, REFUSED, kernel, refused

from flashmoe_nb import cuda, emulator

AsyncMisuse = getattr(emulator, "AsyncMisuse", emulator.EmulatorError)
LINES = (FOLDER / "misuse.cu").read_text().splitlines()
NAMES = re.search(r"enum Mistake \{(.*?)\};", "\n".join(LINES), re.S)[1].replace("\n", " ").split(",")
MISTAKES = [name.strip() for name in NAMES if name.strip()]
LOAD_A, LOAD_B, STORE = "ptx::tma_load(mistake == UNALIGNED_TILE", "{0, 0});", "ptx::tma_store(&d_map"
WGMMA, WAIT = "for (int k = 0; k < 4; ++k) ptx::wgmma_ss", "else if (mistake != NO_WGMMA_WAIT)"
EXPECT = "ptx::mbar_arrive_expect_tx"


def launch(name: str, grid, block, args, smem=0, **options):
    with cuda.emulation(**options):
        kernel("misuse.cu", name).launch(grid, block, args, smem)


def product(mistake: str = "NONE", **options):
    a = torch.randint(-4, 5, (64, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    d, b = torch.full((64, 32), -1.0), a[:32]
    maps = [cuda.TensorMap(a, (64, 64), "128B"), cuda.TensorMap(b, (32, 64), "128B"), cuda.TensorMap(d, (64, 32))]
    launch("product_kernel", 1, 128, [*maps, MISTAKES.index(mistake)], 24640, **options)
    assert torch.equal(d, a.float() @ b.float().T)


def fails(kind, text: str, line: str, run, *args, **options):
    with pytest.raises(kind) as caught:
        run(*args, **options)
    message = str(caught.value)
    assert re.search(text, message), message
    places = [LINES[int(n) - 1] for n in re.findall(r"misuse\.cu, line (\d+)", message)]
    assert any(line in place for place in places), message


@pytest.mark.parametrize("options", [{}, {"schedule": "reverse"}, {"seed": 3}, {"check": ("memory", "init")}], ids=str)
def test_right(options):
    product(**options)


ERRORS = {
    "NO_FENCE_INIT": (AsyncMisuse, "made without mbar_fence_init", LOAD_A),
    "NO_BARRIER_WAIT": (AsyncMisuse, "wgmma reads 16 bytes .* that the tma_load .* still writes", WGMMA),
    "ARRIVE_TWICE": (emulator.BarrierMisuse, "1 arrivals .* phase 0 lacks 0 of 1", "== ARRIVE_TWICE"),
    "EXPECT_LESS": (AsyncMisuse, "wgmma reads 16 bytes .* that the tma_load .* still writes", WGMMA),
    "EXPECT_MORE": (emulator.Deadlock, "phase 0 lacks 0 of 1 arrivals and 64 bytes", "ptx::mbar_wait(&s.full"),
    "UNALIGNED_TILE": (emulator.MisalignedAccess, "byte 128 .*, not 1024-byte aligned as its swizzle needs", LOAD_A),
    "UNALIGNED_COLUMN": (emulator.MisalignedAccess, "first coordinate, 4, is 8 bytes into a row", "== UNALIGNED_COLUMN"),
    "WRONG_RANK": (AsyncMisuse, "3 coordinates for a tensor map of 2 dimensions", "== WRONG_RANK"),
    "NO_INIT": (emulator.BarrierMisuse, "no mbarrier .*: mbar_init has made none there", EXPECT),
    "INIT_TWICE": (emulator.BarrierMisuse, "there is an mbarrier already", "== INIT_TWICE"),
    "BARRIER_OVERWRITTEN": (emulator.BarrierMisuse, "the mbarrier .* was overwritten", EXPECT),
    "BAD_PARITY": (emulator.BarrierMisuse, "a wait for parity 2", "== BAD_PARITY"),
    "NO_WGMMA_FENCE": (AsyncMisuse, "wgmma without wgmma_fence: the registers of warps 0-3", WGMMA),
    "TOUCHED_AFTER_FENCE": (AsyncMisuse, "accumulators were written after the wgmma_fence", WGMMA),
    "NO_WGMMA_COMMIT": (AsyncMisuse, "in no group: wgmma_commit is missing", WAIT),
    "NO_WGMMA_WAIT": (AsyncMisuse, "the block (has )?ended, and nobody has waited for", WGMMA),
    "WAIT_LEAVES_GROUP": (AsyncMisuse, "a WGMMA of a newer group is still changing", "== WAIT_LEAVES_GROUP"),
    "DESCRIPTORS_DIFFER": (AsyncMisuse, "threads 0 and 77 of warps 0-3 have different descriptors of A", WGMMA),
    "ACCUMULATORS_WRITTEN": (AsyncMisuse, "accumulators of this WGMMA were written before it was waited for", WGMMA),
    "FRAGMENTS_TOUCHED": (AsyncMisuse, "A fragments were written after the wgmma_fence", "(sum, r, b, true);"),
    "FRAGMENTS_WRITTEN": (AsyncMisuse, "A fragments of the WGMMA at .* were written before", "(sum, r, b);"),
    "FRAGMENTS_NOT_NAMED": (AsyncMisuse, "A fragments were named in no wgmma_fence", "(sum, r, b, mistake);"),
    "TILE_WRITTEN": (AsyncMisuse, "shared memory that this WGMMA reads was written", WGMMA),
    "TILE_REFILLED": (AsyncMisuse, "tma_load writes .* that the wgmma .* still reads", "== TILE_REFILLED"),
    "MISSING_WARP": (emulator.Diverged, "wgmma needs all 128 threads of warps 0-3", WGMMA),
    "NOT_A_GROUP_OF_EIGHT": (AsyncMisuse, "operand A starts at row 1 of a group of eight", WGMMA),
    "NO_PROXY_FENCE": (AsyncMisuse, "ordinary stores have changed, and no fence_proxy_async", STORE),
    "NO_TMA_COMMIT": (AsyncMisuse, "tma_commit is missing|before TMA had read the tile", STORE),
    "NO_TMA_WAIT": (AsyncMisuse, "the block ended before TMA had read the tile: tma_wait_read<0>", STORE),
    "STORED_TILE_WRITTEN": (AsyncMisuse, "written again before TMA had read it", STORE),
    "SECOND_WGMMA_WITHOUT_FENCE": (
        AsyncMisuse,
        "touched after the last wgmma_wait, and no wgmma_fence",
        "(sum, a, b);",
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_product(mistake):
    kind, text, line = ERRORS[mistake]
    fails(kind, text, line, product, mistake)


def test_every_mistake_is_tested():
    assert set(MISTAKES) - set(ERRORS) == {"NONE", "ACCUMULATORS_READ"}


def test_reading_accumulators_too_early():
    "Seen where accesses are watched; otherwise they hold NaN."
    text, line = "reads accumulators that the WGMMA at .* is still changing", "== ACCUMULATORS_READ"
    fails(AsyncMisuse, text, line, product, "ACCUMULATORS_READ", check=("memory",))


def test_a_tile_by_ordinary_stores_needs_the_proxy_fence():
    x, out = torch.arange(2048, dtype=torch.int32), torch.zeros(128)
    launch("generic_tile_kernel", 1, 128, [x, out, 1], 8192)
    fails(
        AsyncMisuse,
        "ordinary stores have changed",
        "ptx::wgmma_ss<8",
        launch,
        "generic_tile_kernel",
        1,
        128,
        [x, out, 0],
        8192,
    )


@pytest.mark.parametrize(("name", "kind"), [(name, 0) for name in REFUSED] + [("2d-32B", 2), ("2d-64B", 2)])
def test_a_store_before_the_tensor(name, kind):
    "tests/test_ptx_gpu.py shows that an H200 refuses the same stores; a load may start there."
    with pytest.raises(AsyncMisuse, match="must not start before the tensor") as caught:
        refused("cpu", name, kind)
    assert "hopper.cu, line" in str(caught.value)


ROWS = {
    1: (AsyncMisuse, "ldmatrix reads .* that the cp.async at .* still writes", "ptx::ldmatrix_x4"),
    2: (emulator.MisalignedAccess, "ldmatrix: the row .* is not 16-byte aligned", "ptx::ldmatrix_x4"),
    3: (emulator.Diverged, "ldmatrix needs all 32 lanes", "ptx::ldmatrix_x4"),
    4: (emulator.MisalignedAccess, "cp.async of 16 bytes: the destination is at byte 4", "ptx::cp_async_16"),
}


@pytest.mark.parametrize("mistake", [0, *ROWS])
def test_rows(mistake):
    x, out = torch.arange(128, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    args = ["rows_kernel", 1, 32, [x, out, mistake]]
    fails(*ROWS[mistake], launch, *args) if mistake else launch(*args)


REGISTERS = {
    1: (emulator.Deadlock, "reg_alloc: the block has 0 registers to give", "ptx::reg_alloc<240>"),
    2: (AsyncMisuse, "reg_dealloc to 200 registers, but warps 0-3 have 168", "ptx::reg_dealloc<200>"),
    3: (emulator.EmulatorError, "ask for different counts|lanes of warp|at different lines", "ptx::reg_dealloc<"),
}


@pytest.mark.parametrize("mistake", [0, *REGISTERS])
def test_registers(mistake):
    args = ["registers_kernel", 1, 384, [torch.zeros(384, dtype=torch.int32), mistake]]
    fails(*REGISTERS[mistake], launch, *args) if mistake else launch(*args)


PHASES = {
    1: (
        emulator.BarrierMisuse,
        "ended phase 1 before this thread had seen the end of phase 0",
        "ptx::mbar_wait(&barrier, 0)",
    ),
    2: (emulator.BarrierMisuse, "invalidated while awaited by warp 0", "ptx::mbar_inval"),
    3: (emulator.Deadlock, "phase 0 lacks 1 of 1 arrivals and 0 bytes", "ptx::mbar_wait(&barrier, 0)"),
}


@pytest.mark.parametrize("mistake", [0, *PHASES])
def test_phases(mistake):
    args = ["phases_kernel", 1, 64, [torch.zeros(64, dtype=torch.int32), mistake]]
    fails(*PHASES[mistake], launch, *args) if mistake else launch(*args)


NEIGHBOURS = {
    1: (emulator.BarrierMisuse, "no mbarrier .* of block 1 of the cluster", "ptx::mbar_arrive_cluster"),
    2: (emulator.BarrierMisuse, "made this mbarrier without mbar_fence_init", "ptx::mbar_arrive_cluster"),
    3: (emulator.BarrierMisuse, "block 0 of the cluster, which has exited", "ptx::mbar_arrive_cluster"),
    4: (emulator.BarrierMisuse, "cluster_wait without cluster_arrive", "ptx::cluster_wait()"),
    5: (emulator.BarrierMisuse, "block 2 of a cluster of 2", "ptx::mbar_arrive_cluster"),
}


@pytest.mark.parametrize("mistake", [0, *NEIGHBOURS])
def test_neighbours(mistake):
    args = ["neighbours_kernel", 2, 32, [torch.zeros(64, dtype=torch.int32), mistake]]
    fails(*NEIGHBOURS[mistake], launch, *args, cluster=2) if mistake else launch(*args, cluster=2)


def after(wait: int, changed: bool = False, **options):
    "A kernel writes, a second one reads what it wrote; `changed`: after something else has written there."
    own, x, out = (torch.full((64,), n, dtype=torch.int32) for n in (3, 0, -1))
    kernel("hopper.cu", "griddep_kernel").launch(1, 64, [x])
    if changed:
        x += 1
    with cuda.emulation(check=("memory",)):
        kernel("hopper.cu", "after_kernel").launch(1, 64, [x, own, out, wait], **options)
    assert torch.equal(out, torch.arange(64, dtype=torch.int32) + 3 + changed)


def test_a_dependent_kernel_waits_for_those_ahead():
    "It may read what nobody ahead writes; what they write, once a thread of its block has waited."
    after(0)
    after(1, dependent=True)
    after(0, changed=True, dependent=True)
    for wait in (0, 2):
        with pytest.raises(AsyncMisuse, match=r"reads what a kernel ahead may still be writing, at byte \d+ of argument 0"):
            after(wait, dependent=True)


def test_hopper_needs_hopper():
    "A kernel that claims an older architecture does not compile with Hopper's instructions, on either backend."
    text = '#include "common/ptx/wgmma.h"\n__global__ void empty_kernel() {}'
    cuda.register("tests/ptx/old.cu", text, key="old", label="old.cu", start=True, architectures=("sm_80",))
    with pytest.raises(cuda.CompileError, match="needs sm_90"):
        cuda.compile("tests/ptx/old.cu", "empty_kernel").launch(1, 32, [])
