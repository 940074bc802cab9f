"""Every wrapper on a Hopper GPU: what the oracle says, and bit for bit what the emulator gives. `make gpu-test`."""

import subprocess
import sys

import pytest
import torch
from ptx.cases import CASES, FOLDER, REFUSED, digest, kernel

from flashmoe_nb import cuda, emulator, workbook

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _hopper():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("these instructions need compute capability 9.0")


@pytest.mark.parametrize("name", CASES)
def test_gpu_oracle_and_emulator_agree(name):
    on_gpu = CASES[name]("cuda")
    for got, want in on_gpu:
        assert got.shape == want.shape and torch.equal(got, want.to(got.dtype))
    assert digest(on_gpu) == digest(CASES[name]("cpu"))


@pytest.mark.parametrize("name", REFUSED)
def test_a_store_before_the_tensor_is_an_illegal_instruction(name):
    "What the emulator refuses, the chip refuses. In a process of its own, because it ends that process's context."
    call = f"from ptx.cases import refused; refused('cuda', {name!r})"
    done = subprocess.run([sys.executable, "-c", call], cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode and "illegal instruction" in done.stderr, done.stderr


def test_special_functions_are_close():
    x = torch.linspace(-125, 125, 1000)
    on_gpu, emulated = ([torch.empty_like(x, device=device) for _ in range(2)] for device in ("cuda", "cpu"))
    for results in (on_gpu, emulated):
        args = [x.to(results[0].device), *results, len(x)]
        kernel("any.cu", "special_function_kernel").launch(4, 256, args)
    for got, want in zip(on_gpu, emulated, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=2.0**-21, atol=0)


def test_right_product_of_the_mistakes():
    "The kernel whose mistakes tests/test_ptx_misuse.py plants is right without one, on both."
    a = torch.randint(-4, 5, (64, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    for device in ("cuda", "cpu"):
        d, x = torch.empty(64, 32, device=device), a.to(device)
        maps = [
            cuda.TensorMap(x, (64, 64), "128B"),
            cuda.TensorMap(x[:32], (32, 64), "128B"),
            cuda.TensorMap(d, (64, 32)),
        ]
        kernel("misuse.cu", "product_kernel").launch(1, 128, [*maps, 0], 1 << 15)
        assert torch.equal(d.cpu(), a.float() @ a[:32].float().T)


def test_ring_of_the_notebook():
    "The toy of notebook 08, many times: the same bits as the emulator's."
    (cell, *more) = workbook.cuda_files(FOLDER.parent.parent / "nbs" / "08_ptx.ipynb")["scratch/08_ring.cu"]
    for i, part in enumerate([cell, *more]):
        cuda.register(part.path, part.text, key=f"ring {i}", label="ring", start=i == 0, architectures=("sm_90a",))
    a, b = (torch.randint(-8, 9, (64, 640), generator=torch.Generator().manual_seed(s)).bfloat16() for s in (1, 2))

    def run(device):
        d, trace = torch.empty(64, 64, device=device), torch.zeros(256, dtype=torch.int32, device=device)
        maps = [cuda.TensorMap(x.to(device), (64, 64), "128B") for x in (a, b)]
        cuda.compile("scratch/08_ring.cu", "ring_kernel").launch(1, 160, [*maps, d, 10, trace], 2 * 2 * 8192 + 32)
        return d.cpu()

    emulated = run("cpu")
    assert torch.equal(emulated, a.float() @ b.float().T)
    assert all(torch.equal(run("cuda"), emulated) for _ in range(100))


def test_emulator_is_no_stand_in(monkeypatch):
    "If the emulator ran in the GPU's place, the comparison above would compare it with itself."
    monkeypatch.setattr(emulator, "build", None)
    assert torch.equal(*CASES["ldmatrix-4-True"]("cuda")[0])
