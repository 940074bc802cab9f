"""Attention on a GPU: right at every size, at any stride, from run to run, under streams and graphs. `make gpu-test`."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import DTYPES, STEPS, exact_digests, poisoned_outputs

from flashmoe_nb import bench, cuda, emulator, flash_attention_science, flash_attn_func, reference

pytestmark = pytest.mark.gpu
RECORDED = Path(__file__).parent / "recorded" / "attention_exact.json"
each_step = pytest.mark.parametrize("step", STEPS)
HEAD_DIMS = (32, 64, 80, 96, 128, 256)
SEQLENS = (1, 7, 64, 127, 128, 129, 512, 1000, 2048)


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    poisoned_outputs(monkeypatch)


def strided(x, kind: str):
    "The same values, laid out differently."
    if kind == "sequence first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "misaligned":
        wide = torch.empty(*x.shape[:3], x.shape[3] + 1, dtype=x.dtype, device=x.device)[..., 1:]
        return wide.copy_(x)
    return x


@each_step
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_matrix(step, dtype, causal, head_dim):
    "Every length, with as many keys, with more and with fewer, in three layouts, two query heads to a head of keys."
    for i, seqlen in enumerate(SEQLENS):
        for j, seqlen_k in enumerate((seqlen, seqlen + 37, max(1, seqlen - 13))):
            q, k, v = reference.attention_inputs(
                2,
                4,
                seqlen,
                head_dim,
                seqlen_k=seqlen_k,
                num_heads_k=2,
                dtype=DTYPES[dtype],
                device="cuda",
                seed=1000 * i + j,
            )
            kind = ("contiguous", "sequence first", "misaligned")[(i + j) % 3]
            out, lse = STEPS[step](*(strided(x, kind) for x in (q, k, v)), causal=causal, return_lse=True)
            reference.check_attention(out, q, k, v, lse=lse, causal=causal, name=f"{step}, {kind}")


@each_step
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_emulator(step, dtype):
    q, k, v = reference.attention_inputs(1, 2, 130, 64, seqlen_k=200, dtype=DTYPES[dtype], device="cpu")
    on_cpu, cpu_lse = STEPS[step](q, k, v, causal=True, return_lse=True)
    on_gpu, gpu_lse = STEPS[step](q.cuda(), k.cuda(), v.cuda(), causal=True, return_lse=True)
    limit = reference.check_attention(on_cpu, q, k, v, lse=cpu_lse, causal=True).tolerance
    assert (on_gpu.cpu().double() - on_cpu.double()).abs().max() <= limit
    torch.testing.assert_close(gpu_lse.cpu(), cpu_lse, atol=1e-5, rtol=1e-5)


@each_step
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_around_the_edges_of_tiles(step, head_dim, causal):
    "One less, as many and one more than the sizes that tiles have, in queries and in keys."
    for edge in (16, 32, 48, 64, 80, 96, 128, 144, 176, 192, 256, 320, 384):
        for length in (edge - 1, edge, edge + 1):
            for seqlen_q, seqlen_k in ((length, 150), (70, length), (length, length)):
                q, k, v = reference.attention_inputs(1, 2, seqlen_q, head_dim, seqlen_k=seqlen_k, device="cuda")
                out, lse = STEPS[step](q, k, v, causal=causal, return_lse=True)
                reference.check_attention(out, q, k, v, lse=lse, causal=causal, name=step)


@each_step
@pytest.mark.parametrize("batch, num_heads", [(1, 4096), (4096, 1), (64, 64)])
def test_many_heads(step, batch, num_heads):
    q, k, v = reference.attention_inputs(batch, num_heads, 40, 64, device="cuda")
    out, lse = STEPS[step](q, k, v, causal=True, return_lse=True)
    reference.check_attention(out, q, k, v, lse=lse, causal=True, name=step)


@each_step
@pytest.mark.parametrize("group", [1, 2, 8, 16])
def test_grouped_heads(step, group):
    for head_dim in (64, 128, 256):
        q, k, v = reference.attention_inputs(2, 16, 150, head_dim, num_heads_k=16 // group, device="cuda")
        out, lse = STEPS[step](q, k, v, causal=True, return_lse=True)
        reference.check_attention(out, q, k, v, lse=lse, causal=True, name=step)


@each_step
@pytest.mark.parametrize("head_dim", [64, 128])
def test_long_sequences(step, head_dim):
    "131,072 keys: few queries against all of them, and under a causal mask as many queries, of which some are checked."
    seqlen = 131_072
    q, k, v = reference.attention_inputs(1, 1, seqlen, head_dim, device="cuda")
    few = q[:, :, :70]
    out, lse = STEPS[step](few, k, v, return_lse=True)
    reference.check_attention(out, few, k, v, lse=lse, name=step)
    out, lse = STEPS[step](q, k, v, causal=True, return_lse=True)
    for end in (100, 65_536, seqlen):  # these rows see the keys before `end`
        rows, seen = slice(end - 100, end), slice(0, end)
        arguments = (out[:, :, rows], q[:, :, rows], k[:, :, seen], v[:, :, seen])
        reference.check_attention(*arguments, lse=lse[:, :, rows], causal=True, name=step)


@each_step
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores(step, dtype):
    "Scores up to 10,000 in size: in most rows one key takes all of the weight."
    for head_dim in (64, 128, 256):
        q, k, v = reference.attention_inputs(1, 2, 300, head_dim, dtype=DTYPES[dtype], device="cuda")
        q, k = (x * math.sqrt(2000 / math.sqrt(head_dim)) for x in (q, k))
        assert 5_000 < (q.double() @ k.double().mT).abs().max() < 20_000
        out, lse = STEPS[step](q, k, v, softmax_scale=1.0, causal=True, return_lse=True)
        reference.check_attention(out, q, k, v, lse=lse, softmax_scale=1.0, causal=True, unit_normal=False, name=step)


@each_step
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_rows_that_see_no_key(step, head_dim):
    q, k, v = reference.attention_inputs(2, 2, 700, head_dim, seqlen_k=3, device="cuda")
    out, lse = STEPS[step](q, k, v, causal=True, return_lse=True)
    assert (out[:, :, :697] == 0).all() and (lse[:, :, :697] == -math.inf).all()
    reference.check_attention(out, q, k, v, lse=lse, causal=True, name=step)
    out, lse = STEPS[step](q, k[:, :, :0], v[:, :, :0], return_lse=True)
    assert (out == 0).all() and (lse == -math.inf).all()


@each_step
def test_bits_of_exact_sums(step):
    "Every step gives the recorded bits, which the emulator's tests replay. RECORD=1 writes them."
    digests = exact_digests(step, "cuda")
    if os.environ.get("RECORD"):
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "digests": digests}, indent=1) + "\n")
    assert json.loads(RECORDED.read_text())["digests"] == digests


@each_step
@pytest.mark.parametrize("head_dim, causal", [(64, True), (128, False), (256, True)])
def test_bit_equal_from_run_to_run(step, head_dim, causal):
    q, k, v = reference.attention_inputs(2, 4, 500, head_dim, device="cuda")
    first, first_lse = STEPS[step](q, k, v, causal=causal, return_lse=True)
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        out, lse = STEPS[step](q, k, v, causal=causal, return_lse=True)
        different += (out != first).sum() + (lse != first_lse).sum()
    assert different == 0


@each_step
def test_streams_and_graphs(step):
    inputs = [reference.attention_inputs(1, 4, 300 + 64 * i, 64, device="cuda", seed=i) for i in range(4)]
    expected = [STEPS[step](*x) for x in inputs]
    outs, streams = [], [torch.cuda.Stream() for _ in inputs]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for i in 20 * list(range(4)):
        with torch.cuda.stream(streams[i]):
            outs.append((i, STEPS[step](*inputs[i])))
    torch.cuda.synchronize()
    assert all(torch.equal(out, expected[i]) for i, out in outs)
    q, k, v = inputs[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = STEPS[step](q, k, v)
    for seed in (5, 6):
        fresh = reference.attention_inputs(1, 4, 300, 64, device="cuda", seed=seed)
        for x, y in zip((q, k, v), fresh, strict=True):
            x.copy_(y)
        graph.replay()
        assert torch.equal(captured, STEPS[step](*fresh))


@each_step
def test_more_than_two_to_the_31_elements(step):
    "Offsets beyond 32 bits: a batch whose last entries lie beyond 2^31 elements, and rows that lie 2^22 elements apart."
    batch, heads, seqlen, head_dim = 66_000 // 2, 4, 128, 128
    q, k, v = (torch.randn(batch, heads, seqlen, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    assert q.numel() > 2**31
    out = STEPS[step](q, k, v)
    for entry in (0, batch - 1):
        one = slice(entry, entry + 1)
        reference.check_attention(out[one], q[one], k[one], v[one], name=step)
    del k, v, out
    sparse = q.view(-1).as_strided((1, 1, 514, 192), (2**31, 2**31, 2**22, 1))
    q, k, v = sparse.split(64, dim=-1)
    out, lse = STEPS[step](q, k, v, causal=True, return_lse=True)
    q, k, v = (x.contiguous() for x in (q, k, v))
    reference.check_attention(out, q, k, v, lse=lse, causal=True, name=step)


@each_step
def test_memory(step):
    "A call allocates its outputs and no more than 1 MB."
    q, k, v = reference.attention_inputs(4, 8, 4096, 64, device="cuda")
    assert bench.peak_memory(STEPS[step], q, k, v) <= 2**20


@each_step
def test_not_finite(step):
    q, k, v = reference.attention_inputs(2, 2, 150, 64, device="cuda")
    clean = STEPS[step](q, k, v)
    for value in (math.nan, math.inf, -math.inf):
        spoiled = q.clone()
        spoiled[1, 1, 77, 3] = value
        same = STEPS[step](spoiled, k, v) == clean
        same[1, 1, 77] = True
        assert same.all()
        spoiled = k.clone()
        spoiled[1, 1, 77, 3] = value
        assert (STEPS[step](q, spoiled, v) == clean)[0].all()


def test_wrong_input_leaves_the_context_usable():
    q, k, v = reference.attention_inputs(1, 2, 40, 64, device="cuda")
    expected = flash_attention_science(q, k, v)
    for bad, error in (
        ((q, k.cpu(), v), ValueError),
        ((q.float(), k, v), ValueError),
        ((q, k[:, :, :0], v), ValueError),
        ((q[..., :60], k[..., :60], v[..., :60]), ValueError),
        ((q, None, v), TypeError),
    ):
        with pytest.raises(error):
            flash_attention_science(*bad)
    kernel = cuda.compile("attention/20_online_softmax.cu", "attention_online_kernel<Config<__nv_bfloat16, 64, 64, 64>>")
    for launch in (
        dict(grid=(1, 70000), block=128, args=[]),
        dict(grid=1, block=2048, args=[]),
        dict(grid=0, block=128, args=[]),
        dict(grid=1, block=128, args=[q]),
        dict(grid=1, block=128, args=[q], smem=300_000),
    ):
        with pytest.raises((TypeError, ValueError)):
            kernel.launch(launch["grid"], launch["block"], launch["args"] or [q], launch.get("smem", 0))
    with pytest.raises(NotImplementedError, match="backward"):
        flash_attention_science(q.requires_grad_(), k, v)
    assert torch.equal(flash_attention_science(q.detach(), k, v), expected)


def test_no_borrowed_speed():
    "Every GPU kernel that a public operation or a step launches stands in kernels/."
    own = set()
    for file in (cuda.KERNELS / "attention", cuda.KERNELS / "moe"):
        for path in file.glob("*.cu"):
            own |= {word.split("(")[0] for word in path.read_text().split() if word.split("(")[0].endswith("_kernel")}
    q, k, v = reference.attention_inputs(1, 4, 300, 64, num_heads_k=2, device="cuda")
    calls = [lambda f=f: f(q, k, v, causal=True) for f in (*STEPS.values(), flash_attention_science)]
    calls.append(lambda: flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True))
    for call in calls:
        call()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        launched = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        foreign = [n for n in launched if not any(name in n for name in own) and "FillFunctor" not in n and "Memset" not in n]
        assert launched and not foreign, foreign


def sanitize(tool: str, script: str, *arguments: str) -> tuple[bool, str]:
    "Run a script of this folder under a tool of compute-sanitizer: whether it found nothing, and what it printed."
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if not sanitizer:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    options = ["--tool", tool, "--error-exitcode", "9"]
    if tool != "initcheck":  # it must see the kernels of torch that write what ours read
        options += ["--kernel-name", "kernel_substring=attention"]
    command = [sanitizer, *options, sys.executable, str(Path(__file__).with_name(script)), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    text = run.stdout + run.stderr
    assert run.returncode in (0, 9), text[-3000:]
    return run.returncode == 0 and "0 errors" in text, text


def reports_arrival(step: str) -> bool:
    "Whether a step's kernels tell other warps by bar.arrive that they have read something."
    paths = {path for path, _ in importlib.import_module(f"flashmoe_nb.attention.{step}").instances()}
    return any("ptx::bar_arrive(" in cuda.read_source(path).text for path in paths)


@each_step
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_sanitizer(tool, step):
    if tool == "racecheck" and reports_arrival(step):
        pytest.skip("racecheck does not follow bar.arrive (the test below); the emulator's race detector does")
    clean, text = sanitize(tool, "sanitized.py", step)
    assert clean, text[-3000:]
    assert "every step ran" in text


def test_racecheck_does_not_follow_arrivals():
    "The reason for the exception above: a box between two warps, in the order that the PTX manual gives."
    clean, text = sanitize("racecheck", "sanitized_arrive.py", "bar_sync")
    assert clean and "the sums are right" in text
    clean, text = sanitize("racecheck", "sanitized_arrive.py", "bar_arrive")
    assert not clean and "the sums are right" in text, "racecheck has learned bar.arrive: run it on all steps"


def test_emulator_is_there():
    "The comparisons above need a C++ compiler on the GPU machine too."
    assert emulator.find_compiler()
