"""The launch path: prepared and dependent launches, threads, streams, and what is refused. On the GPU where there is one."""

import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flashmoe_nb import cuda
from flashmoe_nb.host import compiler, launcher

SOURCE = """
template <class Element>
__global__ void scale_kernel(const Element* x, Element* y, float a, int length) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < length) y[i] = Element((x ? a * float(x[i]) : 0.0f) + OFFSET);
}
"""
TMA_SOURCE = """
#include "common/ptx/barrier.h"
#include "common/ptx/mbarrier.h"
#include "common/ptx/tma.h"
__global__ void box_kernel(const __grid_constant__ CUtensorMap map, float* y) {
    __shared__ __align__(128) float s_box[4 * 8];
    __shared__ uint64_t s_full;
    if (threadIdx.x == 0) {
        ptx::mbar_init(&s_full, 1);
        ptx::mbar_fence_init();
        ptx::mbar_arrive_expect_tx(&s_full, sizeof(s_box));
        ptx::tma_load(s_box, &map, &s_full, {0, 0});
    }
    __syncthreads();
    ptx::mbar_wait(&s_full, 0);
    y[threadIdx.x] = s_box[threadIdx.x];
}
"""


def register(offset: float = 0.0):
    text = SOURCE.replace("OFFSET", f"{offset}f")
    cuda.register("scratch/launch.cu", text, key="launch", label="launch", start=True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    register()
    yield request.param
    cuda.unregister("scratch/launch.cu")


@pytest.fixture
def kernel(device):
    return cuda.Kernel("scratch/launch.cu", "scale_kernel<float>")


def test_a_prepared_launch_follows_its_tensors(kernel, device):
    x, y = torch.randn(300, device=device), torch.full((300,), torch.nan, device=device)
    prepared = kernel.prepare(3, 128, (x, y, 2.0, 300))
    assert y.isnan().all(), "preparing launches nothing"
    prepared(x, y)
    other, out = torch.randn(300, device=device), torch.empty(300, device=device)
    prepared(other, out)
    torch.testing.assert_close(y, 2 * x)
    torch.testing.assert_close(out, 2 * other)
    prepared(None, out)
    assert not out.any(), "None is a null pointer"


def test_a_prepared_launch_follows_its_cell(kernel, device):
    x = torch.ones(300, device=device)
    prepared = kernel.prepare(3, 128, (x, x, 1.0, 300))
    register(offset=5.0)
    prepared(x, x)
    assert (x == 6).all()


def test_preparing_keeps_no_tensor_alive(kernel, device):
    import weakref

    x = torch.ones(300, device=device)
    gone = weakref.ref(x)
    prepared = kernel.prepare(3, 128, (x, x, 1.0, 300))
    del x
    assert gone() is None and prepared.shape[0] == 3


def test_preparing_refuses_what_a_launch_refuses(kernel, device):
    x = torch.ones(300, device=device)
    if device == "cuda":
        with pytest.raises(TypeError, match="4 arguments"):
            kernel.prepare(3, 128, (x, x, 1.0))
        with pytest.raises(ValueError, match="argument 1 is a torch.float64 tensor"):
            kernel.prepare(3, 128, (x, x.double(), 1.0, 300))
        with pytest.raises(ValueError, match="grid"):
            kernel.prepare(0, 128, (x, x, 1.0, 300))
    with pytest.raises(TypeError, match="4 arguments"):
        kernel.launch(3, 128, (x, x, 1.0))
    with pytest.raises(ValueError, match="argument 1 is a torch.float64 tensor"):
        kernel.launch(3, 128, (x, x.double(), 1.0, 300))
    with pytest.raises(ValueError, match="grid"):
        kernel.launch(0, 128, (x, x, 1.0, 300))


def test_every_thread_has_its_own_arguments(kernel, device):
    "Many threads launch the same kernel with different numbers and tensors at once."
    results, length = {}, 300
    prepared = kernel.prepare(3, 128, (torch.empty(length, device=device), torch.empty(length, device=device), 3.0, length))

    def work(n):
        x, wrong = torch.full((length,), float(n), device=device), 0
        for _ in range(20):
            y, z = torch.empty(2, length, device=device)
            kernel.launch(3, 128, (x, y, float(n), length))
            prepared(x, z)
            wrong += int((y != n * n).sum() + (z != 3 * n).sum())
        results[n] = wrong

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(1, 5), 0)


def test_dependent_launches_are_ordered_by_their_wait(device):
    "A kernel that waits for the one before it sees all that the one before wrote."
    text = """
#include "common/ptx/basic.h"
__global__ void next_kernel(const int* x, int* y, int length) {
    ptx::griddep_launch_dependents();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    ptx::griddep_wait();
    if (i < length) y[i] = x[(i + 4097) % length] + 1;
}
"""
    cuda.register("scratch/next.cu", text, key="next", label="next", start=True, architectures=("sm_90a",))
    kernel, length = cuda.Kernel("scratch/next.cu", "next_kernel"), 1 << (20 if device == "cuda" else 10)
    x, y = torch.zeros(2, length, dtype=torch.int32, device=device)
    for _ in range(50):
        kernel.launch(length // 256, 256, (x, y, length), dependent=True)
        kernel.launch(length // 256, 256, (y, x, length), dependent=True)
    cuda.unregister("scratch/next.cu")
    assert (x == 100).all() and (y == 99).all()


def test_a_map_of_one_layout_serves_many_tensors(device):
    cuda.register("scratch/box.cu", TMA_SOURCE, key="box", label="box", start=True, architectures=("sm_90a",))
    kernel = cuda.Kernel("scratch/box.cu", "box_kernel")
    many = torch.randn(5, 16, 8, device=device)
    layout = cuda.map_layout(many[0].shape, many[0].stride(), many.dtype, (4, 8), "none")
    assert layout is cuda.map_layout(many[1].shape, many[1].stride(), many.dtype, (4, 8), "none")
    assert layout is cuda.TensorMap(many[2], (4, 8)).layout
    y = torch.empty(32, device=device)
    prepared = kernel.prepare(1, 32, (layout.map(many[0]), y))
    for tensor in many:
        kernel.launch(1, 32, (cuda.TensorMap(tensor, (4, 8)), y))
        assert torch.equal(y, tensor[:4].flatten())
        y.fill_(torch.nan)
        prepared(tensor, y)
        assert torch.equal(y, tensor[:4].flatten())
    with pytest.raises(ValueError, match="multiple of 16"):
        cuda.TensorMap(many.view(-1)[1:9].view(1, 8), (1, 8))
    cuda.unregister("scratch/box.cu")


@pytest.mark.gpu
def test_a_prepared_launch_in_a_graph_and_on_a_stream():
    register()
    kernel = cuda.Kernel("scratch/launch.cu", "scale_kernel<float>")
    x, y = torch.ones(2, 300, device="cuda")
    prepared = kernel.prepare(3, 128, (x, y, 2.0, 300))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prepared(x, y)
    x.fill_(7)
    graph.replay()
    assert (y == 14).all()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        x.fill_(8)
        prepared(x, y)
    stream.synchronize()
    assert (y == 16).all()


class FakeLaunch:
    "Stands for a prepared launch on a GPU: remembers where it was sent."

    def at(self, addresses, stream):
        self.addresses = addresses


def test_a_repetition_points_where_the_recorded_call_pointed(monkeypatch):
    "Into arguments and their views, into scratch memory as far apart as it was, and nowhere for None."
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    made = []
    monkeypatch.setattr(launcher, "new_scratch", lambda size, device: made.append(torch.empty(size, dtype=torch.uint8)) or made[-1])
    first, second = torch.empty(100), torch.empty(4, 8)
    one, other = torch.empty(70), torch.empty(300, dtype=torch.int32)
    launches = [FakeLaunch(), FakeLaunch()]
    recorded = [(launches[0], (first, one, None, other[7:])), (launches[1], (other, second[2:], one, first[99:]))]
    repetition = cuda.Repetition(recorded, (first, second))
    assert repetition.scratch_bytes == 512 + 1280, "each allocation rounded up to 256 bytes"
    x, y = torch.empty(100), torch.empty(4, 8)
    repetition(x, y)
    scratch = made[0].data_ptr()
    assert launches[0].addresses == [x.data_ptr(), scratch, 0, scratch + 512 + 28]
    assert launches[1].addresses == [scratch + 512, y.data_ptr() + 64, scratch, x.data_ptr() + 396]


def test_arguments_that_share_memory_are_not_repeated():
    "A pointer into both would be taken for the first one's, also when the next call brings two tensors."
    x = torch.empty(10)
    with pytest.raises(ValueError, match="share memory"): cuda.Repetition([], (x, torch.empty(3), x[4:]))
    assert cuda.Repetition([], (x[:4], x[4:])).scratch_bytes == 0


@pytest.mark.gpu
def test_a_recorded_call_is_repeated_on_the_gpu():
    register()
    kernel = cuda.Kernel("scratch/launch.cu", "scale_kernel<float>")
    x = torch.randn(300, device="cuda")
    prepared = kernel.prepare(3, 128, (x, x, 2.0, 300))

    def call(x, out):
        between = torch.full((300,), torch.nan, device="cuda")
        prepared(x, between)
        prepared(between, out)

    out = torch.empty_like(x)
    with cuda.recording() as launches:
        call(x, out)
    repetition = cuda.Repetition(launches, (x, out))
    for _ in range(20):
        y, result = torch.randn(300, device="cuda"), torch.full((300,), torch.nan, device="cuda")
        repetition(y, result)
        torch.testing.assert_close(result, 4 * y)
    with cuda.recording() as launches:
        pass
    assert launches == [] and repetition.scratch_bytes == 1280
    register(offset=5.0)  # a repetition follows its kernel's cell, too
    repetition(y, result)
    torch.testing.assert_close(result, 2 * (2 * y + 5) + 5)
    cuda.unregister("scratch/launch.cu")


class TestCompilerLog:
    @pytest.mark.parametrize(("version", "refused"), [((12, 4), False), ((12, 9), True), ((13, 0), True)])
    def test_nvrtc_may_not_answer_from_its_own_cache(self, monkeypatch, version, refused):
        monkeypatch.setattr(compiler, "nvrtc_binding", lambda: SimpleNamespace(getVersion=lambda: version))
        options = compiler.compile_options({"X": 3})
        assert ("--no-cache" in options) == refused and "-DX=3" in options

    @pytest.mark.parametrize(("text", "name", "said"), [
        ('__device__ int a;\n#include "common/none.h"\n__global__ void k() {}', "k", r'cell In\[7\], line 2: .*"common/none.h"'),
        ("template <class T> __global__ void k(T* x) {}", "k<__nv_bfloat16>", 'the name of the instance: .*"__nv_bfloat16"'),
    ])  # fmt: skip
    def test_every_complaint_has_a_place(self, text, name, said):
        cuda.register("scratch/wrong.cu", text, key="wrong", label="cell In[7]", start=True)
        with pytest.raises(cuda.CompileError, match=said): cuda.compile_cubin(cuda.read_source("scratch/wrong.cu"), name, "sm_80")
        cuda.unregister("scratch/wrong.cu")

    def test_a_log_without_the_kernel_is_an_error(self):
        compiled = compiler.Compiled(b"", "_Z4axpyv", (), "ptxas info    : Compiling entry function '_Z5otherv' for 'sm_90a'")
        with pytest.raises(ValueError, match="axpy: the compiler's log says nothing"):
            compiler.resources_of(compiled, "axpy", "sm_90a")


def test_each_module_of_the_host_knows_only_those_before_it():
    order, known = ("sources", "compiler", "arguments", "launcher"), set()
    for name in order:
        text = (Path(cuda.__file__).parent / "host" / f"{name}.py").read_text()
        imports = re.findall(r"^(?:from (\.[\w.]*) import (.+)|(?:from|import) (flashmoe_nb[\w.]*).*)$", text, re.M)
        found = {part for relative, names, _ in imports for part in ([relative[1:]] if relative != "." else names.split(", "))}
        assert found <= known and not any(absolute for *_, absolute in imports), f"{name} reaches up"
        known.add(name)


def test_compiling_and_exporting_need_no_torch():
    "A process that does nothing else starts in a tenth of the time."
    code = "import flashmoe_nb.host.compiler, flashmoe_nb.workbook, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
