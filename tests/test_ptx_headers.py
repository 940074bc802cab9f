"""The ptx headers compile for every architecture they claim, by NVRTC and by nvcc, and the compilers have nothing to say."""

import re
import shutil
import subprocess

import pytest
from ptx.cases import ARCHITECTURES, FOLDER, kernel

from flashmoe_nb import cuda, workbook
from flashmoe_nb.host import compiler

HEADERS = sorted((cuda.KERNELS / "common" / "ptx").glob("*.h"))
CLAIMS = [(h.name, a) for h in HEADERS for a in cuda.read_source(f"common/ptx/{h.name}").architectures]
MAJORS = {"K": "ptx::K_MAJOR", "M": "ptx::MN_MAJOR"}
PAIRS = [f"{a}, {b}" for a in MAJORS.values() for b in MAJORS.values()]
TEMPLATES = {
    "ampere.cu": [f"{k}_kernel<{e}>" for k in ("pack", "mma_m16n8k16") for e in ("__nv_bfloat16", "__half")],
    "hopper.cu": [f"bulk_reduce_kernel<{e}>" for e in ("float", "__nv_bfloat16", "__half")],
    "wgmma.cu": [f"wgmma_layout_kernel<{e}, {p}>" for e in ("__nv_bfloat16", "__half") for p in PAIRS]
    + [f"wgmma_layout_kernel<__nv_fp8_e4m3, {PAIRS[0]}>"],
}
FILES = [f for f in ARCHITECTURES if f != "misuse.cu"]  # that one is wrong on purpose
FILE_CLAIMS = [(f, a) for f in FILES for a in ARCHITECTURES[f]]


def names(file: str) -> list[str]:
    found = workbook.kernel_names((FOLDER / file).read_text().replace("__cluster_dims__(2, 1, 1)", ""))
    return [name for name, is_template in found.items() if not is_template] + TEMPLATES.get(file, [])


def compile_quietly(source: cuda.Source, name: str, arch: str) -> compiler.Compiled:
    compiled = cuda.compile_cubin(source, name, arch)
    result = compiler.resources_of(compiled, name, arch)
    assert (result.spill_stores, result.spill_loads, result.stack, result.problems) == (0, 0, 0, ())
    assert "warning" not in compiled.log
    return compiled


def alone(header: str, text: str = "") -> cuda.Source:
    cuda.register("tests/ptx/alone.cu", f'#include "common/ptx/{header}"\n{text}\n__global__ void empty_kernel() {{}}',
                  key="alone", label="alone.cu", start=True)  # fmt: skip
    return cuda.read_source("tests/ptx/alone.cu")


@pytest.mark.parametrize("header, arch", CLAIMS)
def test_header_alone(header, arch):
    compile_quietly(alone(header), "empty_kernel", arch)


@pytest.mark.parametrize("header", sorted({h for h, _ in CLAIMS} - {"wgmma_shapes.h"}))
def test_header_refuses_what_it_does_not_claim(header):
    claimed = [a for h, a in CLAIMS if h == header]
    for arch in {"sm_75", "sm_80"} - set(claimed):
        with pytest.raises(cuda.CompileError, match=f"common/ptx/{header} needs sm_"):
            cuda.compile_cubin(alone(header), "empty_kernel", arch)


@pytest.mark.parametrize("header", ["wgmma.h", "register.h"])
def test_what_only_hopper_has_is_refused_on_plain_sm_90(header):
    with pytest.raises(cuda.CompileError, match="needs sm_90a"):
        cuda.compile_cubin(alone(header), "empty_kernel", "sm_90")


LATER = {
    "stmatrix_x1": ("ldmatrix.h", "sm_80"),
    "elect_one": ("basic.h", "sm_80"),
    "pack_bf16": ("convert.h", "sm_75"),
    "pack_e4m3": ("convert.h", "sm_80"),
    "mma_m16n8k16_bf16": ("mma.h", "sm_75"),
    "mma_m16n8k32_e4m3": ("mma.h", "sm_80"),
}


@pytest.mark.parametrize("function", LATER)
def test_functions_exist_from_their_architecture_on(function):
    header, too_old = LATER[function]
    source = alone(header, f"using ptx::{function};")
    compile_quietly(source, "empty_kernel", "sm_90a")
    with pytest.raises(cuda.CompileError, match=function):
        cuda.compile_cubin(source, "empty_kernel", too_old)


@pytest.mark.parametrize("file, arch", FILE_CLAIMS)
def test_nvrtc(file, arch):
    for name in names(file):
        compile_quietly(kernel(file, names(file)[0]).source, name, arch)


EVERY_N = [("__nv_bfloat16", "K", "false"), ("__half", "M", "true"), ("__nv_fp8_e4m3", "K", "true")]


@pytest.mark.parametrize("element, major, registers", EVERY_N)
def test_every_n(element, major, registers):
    "All 32 in one program; each is one instruction of the right shape."
    instances = [f"wgmma_every_n_kernel<{n}, {n}, {element}, {MAJORS[major]}, {registers}>" for n in range(8, 257, 8)]
    arguments = "(const unsigned*, const unsigned char*, const unsigned char*, int, float*);"
    text = (FOLDER / "wgmma.cu").read_text() + "".join(f"template __global__ void {i}{arguments}\n" for i in instances)
    cuda.register("tests/ptx/every_n.cu", text, key="n", label="every_n.cu", start=True, architectures=("sm_90a",))
    compiled = compile_quietly(cuda.read_source("tests/ptx/every_n.cu"), instances[0], "sm_90a")
    assert compiled.log.count("Compiling entry function") >= 32
    assert all(spill == "0" for spill in re.findall(r"(\d+) bytes spill", compiled.log))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("file, arch", FILE_CLAIMS)
def test_nvcc(file, arch, tmp_path):
    source = kernel(file, names(file)[0]).source
    path = source.write_to(tmp_path)
    instances = "".join(f"auto* instance_{i} = &{name};\n" for i, name in enumerate(names(file)))
    path.write_text(source.text + instances)
    command = [
        "nvcc",
        f"-arch={arch}",
        "-std=c++17",
        "-cubin",
        "-Xptxas=-v",
        "-I",
        tmp_path,
        "-o",
        tmp_path / "out",
        path,
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"warning|C75\d\d|[1-9]\d* bytes spill", done.stderr), done.stderr


def test_the_log_is_a_gate():
    "A product without its fence must be seen in the log: otherwise the tests above cannot fail."
    text = (FOLDER / "wgmma.cu").read_text().replace("ptx::wgmma_fence(sum, r);", "")
    cuda.register(
        "tests/ptx/serialised.cu", text, key="s", label="serialised.cu", start=True, architectures=("sm_90a",)
    )
    name = "wgmma_every_n_kernel<8, 16, __half, ptx::K_MAJOR, false>"
    compiled = cuda.compile_cubin(cuda.read_source("tests/ptx/serialised.cu"), name, "sm_90a")
    assert compiler.resources_of(compiled, name, "sm_90a").problems
