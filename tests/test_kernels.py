"""Every kernel instance the package can launch compiles for every architecture it claims: no spills, no warnings."""

import importlib
import os
import pkgutil
from configparser import ConfigParser
from pathlib import Path

import pytest

import flashmoe_nb.attention
import flashmoe_nb.moe
from flashmoe_nb import cuda
from flashmoe_nb.host import compiler

ROOT = Path(__file__).resolve().parent.parent


def dispatched() -> list[tuple[str, str]]:
    "What the step modules say they can launch."
    found = []
    for package in (flashmoe_nb.attention, flashmoe_nb.moe):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            found += getattr(importlib.import_module(info.name), "instances", list)()
    return found


INSTANCES = dispatched()
KERNEL_FILES = [
    p.relative_to(cuda.KERNELS).as_posix()
    for f in ("attention", "moe")
    for p in sorted((cuda.KERNELS / f).glob("*.cu"))
]


@pytest.mark.parametrize("path, name", INSTANCES, ids=[f"{p.split('/')[1]}:{n}" for p, n in INSTANCES])
def test_instance_compiles_without_spills(path, name):
    for r in cuda.resources(path, [name]):
        assert (r.spill_stores, r.spill_loads, r.problems) == (0, 0, ()), r


@pytest.mark.parametrize("path", KERNEL_FILES)
def test_every_kernel_file_is_dispatched(path):
    assert path in {p for p, _ in INSTANCES}, f"no step module launches kernels/{path}"


def test_the_log_is_a_gate():
    "A spilling kernel must be seen as one: otherwise the test above cannot fail."
    text = (
        "__global__ void __launch_bounds__(1024, 2) spilling_kernel(float* x) { float r[64];"
        "for (int i = 0; i < 64; ++i) r[i] = x[i * 1024 + threadIdx.x]; __syncthreads();"
        "for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = r[63 - i] * r[i]; }"
    )
    cuda.register("scratch/spilling.cu", text, key="test", label="test", start=True)
    assert all(
        r.spill_stores > 0 for r in cuda.resources("scratch/spilling.cu", ["spilling_kernel"], ["sm_80", "sm_90a"])
    )
    cuda.unregister("scratch/spilling.cu")


@pytest.mark.skipif("NVRTC_VERSION" not in os.environ, reason="the usual NVRTC; .ci/run asks for another one as well")
def test_the_compiler_is_the_one_asked_for():
    assert ".".join(map(str, compiler.nvrtc_binding().getVersion())) == os.environ["NVRTC_VERSION"]


def test_default_architectures_are_those_of_settings():
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    assert tuple(settings["DEFAULT"]["kernel_architectures"].split()) == cuda.DEFAULT_ARCHITECTURES
