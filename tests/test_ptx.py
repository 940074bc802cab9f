"""Every wrapper of kernels/common/ptx on the emulator: against brute-force oracles, and against bits recorded on a GPU."""

import functools
import json
from pathlib import Path

import pytest
import torch
from emulated import compiler  # noqa: F401, the fixture
from ptx.cases import CASES, digest, kernel

from flashmoe_nb import cuda

RECORDED = Path(__file__).parent / "ptx" / "recorded.json"
ORDERS = {"reverse": dict(schedule="reverse"), "random": dict(seed=11)}


@functools.cache
def results(name):
    return CASES[name]("cpu")


@pytest.mark.parametrize("name", CASES)
def test_oracle(name):
    for got, want in results(name):
        assert got.shape == want.shape and torch.equal(got, want.to(got.dtype))


@pytest.mark.parametrize("name", CASES)
def test_bits_recorded_on_a_gpu(name):
    recorded = json.loads(RECORDED.read_text())["digests"]
    if name not in recorded:
        pytest.skip("a GPU has not given bits for this case yet: tests/ptx/record.py")
    assert digest(results(name)) == recorded[name]


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("wgmma_layout")])
def test_any_order_of_threads(name):
    for order in ORDERS.values():
        with cuda.emulation(**order):
            for got, want in CASES[name]("cpu"):
                assert torch.equal(got, want.to(got.dtype))


SOME = [
    "griddep",
    "ldmatrix-4-True",
    "mma_m16n8k16-__half",
    "cp_async-8",
    "mbarrier",
    "tma_load-2d-128B-1",
    "tma_store-3d",
    "tma_reduce_add-2d-128B",
    "multicast-0",
    "neighbours",
    "wgmma_every_n-__nv_bfloat16-M-registers",
]


@pytest.mark.parametrize("name", SOME)
def test_watched(name):
    "Every access checked, shared memory that nobody has written found: no report on right kernels."
    with cuda.emulation(check=("memory", "init")):
        for got, want in CASES[name]("cpu"):
            assert torch.equal(got, want.to(got.dtype))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", SOME)
def test_each_compiler(name):
    for got, want in CASES[name]("cpu"):
        assert torch.equal(got, want.to(got.dtype))


def test_special_functions():
    x = torch.cat([torch.linspace(-125, 125, 998), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])])
    ex2, rcp = torch.empty_like(x), torch.empty_like(x)
    kernel("any.cu", "special_function_kernel").launch(8, 128, [x, ex2, rcp, len(x)])
    torch.testing.assert_close(ex2, torch.exp2(x.double()).float(), rtol=2e-7, atol=0, equal_nan=True)
    torch.testing.assert_close(rcp, (1 / x.double()).float(), rtol=2e-7, atol=0, equal_nan=True)


def test_special_functions_flush_denormals():
    x, ex2, rcp = torch.tensor([1e-40, -1e-40, -127.0, 2.0**127]), torch.empty(4), torch.empty(4)
    kernel("any.cu", "special_function_kernel").launch(1, 128, [x, ex2, rcp, 4])
    assert torch.equal(ex2, torch.tensor([1, 1, 0, torch.inf]))
    assert torch.equal(rcp, torch.tensor([torch.inf, -torch.inf, -1 / 127, 0]))
