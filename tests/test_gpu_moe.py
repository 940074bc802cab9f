"""The expert layer on a GPU: right at every size, for hostile routings, with every option, from run to run. `make gpu-test`."""

import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_cases import DTYPES, OPTIONS, check, make_options, moe_inputs
from sanitized_moe import GROUPS

from flashmoe_nb import bench, cuda, reference
from flashmoe_nb.host import launcher
from flashmoe_nb.moe import fused_layer
from flashmoe_nb.moe.dispatch import dispatch
from flashmoe_nb.moe.fused_layer import combine, fused_experts, fused_moe, permute
from flashmoe_nb.moe.grouped_gemm import LARGEST, MMA_TILES, TILES, MmaTile, Tile, choose, grouped_gemm
from flashmoe_nb.moe.routing import routing

pytestmark = pytest.mark.gpu
MODELS = {  # num_experts, top_k, hidden, inter; DeepSeek-V3 with an eighth of its experts
    "mixtral": (8, 2, 4096, 14336),
    "qwen3": (128, 8, 2048, 768),
    "olmoe": (64, 8, 2048, 1024),
    "deepseek": (32, 8, 7168, 2048),
}
TOKENS = (0, 1, 2, 3, 17, 127, 128, 129, 1000, 8192, 65_536)
each_chip = pytest.mark.parametrize("hopper", (True, False), ids=("hopper", "sm_80"))


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    "What a kernel does not write stays NaN."
    allocate, empty_like = fused_layer.new_buffers, torch.empty_like
    monkeypatch.setattr(fused_layer, "new_buffers", lambda *a: tuple(x.fill_(math.nan) for x in allocate(*a)))
    monkeypatch.setattr(launcher, "new_scratch", lambda size, device: torch.full((size,), 255, dtype=torch.uint8, device=device))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(math.nan))


def for_chip(monkeypatch, hopper: bool):
    monkeypatch.setattr(fused_layer, "on_hopper", lambda tensor: hopper)


@pytest.fixture(scope="module")
def weights_of():
    "The weights of one model at a time."
    kept = {}

    def make(name: str, dtype):
        if (name, dtype) not in kept:
            kept.clear()
            num_experts, _, hidden, inter = MODELS[name]
            kept[name, dtype] = moe_inputs(0, num_experts, hidden, inter, dtype=dtype)[1:3]
        return kept[name, dtype]

    yield make
    kept.clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=("bf16", "fp16"))
@pytest.mark.parametrize("model", MODELS)
def test_models(model, dtype, weights_of):
    num_experts, top_k, hidden, inter = MODELS[model]
    w1, w2 = weights_of(model, dtype)
    for num_tokens in TOKENS if dtype == torch.bfloat16 else TOKENS[:-1]:
        x = torch.randn(num_tokens, hidden, device="cuda").to(dtype)
        weights, ids = reference.route(torch.randn(num_tokens, num_experts, device="cuda"), top_k)
        out = fused_experts(x, w1, w2, weights.float(), ids)
        few = slice(0, 4096)  # of many tokens the first: the others have the same experts
        last = slice(max(0, num_tokens - 64), num_tokens)
        for part in (few, last):
            exact_dtype = torch.float64 if num_tokens <= 129 else torch.float32
            check(out[part], x[part], w1, w2, weights[part].float(), ids[part], exact_dtype)


@each_chip
@pytest.mark.parametrize("dtype", DTYPES, ids=("bf16", "fp16"))
@pytest.mark.parametrize("hidden, inter", [(8, 8), (72, 40), (136, 264), (1000, 520), (264, 1096)])
def test_sizes_that_are_no_multiple_of_the_tile(monkeypatch, hopper, dtype, hidden, inter):
    for_chip(monkeypatch, hopper)
    for num_tokens, num_experts, top_k in ((1, 1, 1), (5, 9, 3), (33, 4, 2), (129, 7, 5), (1000, 3, 2), (700, 2, 1)):
        x, w1, w2, logits = moe_inputs(num_tokens, num_experts, hidden, inter, dtype=dtype, seed=num_tokens)
        weights, ids = reference.route(logits, top_k)
        check(fused_experts(x, w1, w2, weights.float(), ids), x, w1, w2, weights.float(), ids)


def hostile_ids(num_tokens: int, num_experts: int, top_k: int) -> dict[str, torch.Tensor]:
    "Distinct experts for each token, unless all go to one; `faulty` holds ids that no expert has."
    logits = torch.randn(num_tokens, num_experts, device="cuda")
    popular = -torch.arange(1, num_experts + 1, device="cuda").log()
    gumbel = -torch.empty_like(logits).exponential_().log()
    half = torch.full((num_experts,), 0.0, device="cuda").index_fill(0, torch.arange(0, num_experts, 2, device="cuda"), -100.0)
    ids = {name: x.topk(top_k).indices.int() for name, x in dict(uniform=logits, zipf=popular + gumbel, half=logits + half).items()}
    ids["one hot"] = torch.full_like(ids["uniform"], num_experts - 1)
    ids["faulty"] = ids["uniform"].clone()
    ids["faulty"][::3, 0], ids["faulty"][1::5, -1], ids["faulty"][2] = num_experts, -1, 2**31 - 1
    ids["none"] = torch.full_like(ids["uniform"], -(2**31))
    return ids


@each_chip
@pytest.mark.parametrize("num_tokens, num_experts, top_k", [(17, 16, 4), (128, 64, 8), (1000, 8, 2), (3000, 16, 4)])
def test_hostile_routings(monkeypatch, hopper, num_tokens, num_experts, top_k):
    for_chip(monkeypatch, hopper)
    x, w1, w2, _ = moe_inputs(num_tokens, num_experts, 512, 320)
    weights = torch.rand(num_tokens, top_k, device="cuda")
    for ids in hostile_ids(num_tokens, num_experts, top_k).values():
        check(fused_experts(x, w1, w2, weights, ids), x, w1, w2, weights, ids, torch.float32)


@each_chip
@pytest.mark.parametrize("names", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=("bf16", "fp16"))
def test_options(monkeypatch, hopper, names, dtype):
    for_chip(monkeypatch, hopper)
    for num_tokens, num_experts, top_k, hidden, inter in ((3, 4, 3, 512, 512), (100, 8, 2, 264, 136), (900, 2, 1, 256, 2048)):
        x, w1, w2, logits = moe_inputs(num_tokens, num_experts, hidden, inter, dtype=dtype, seed=9)
        weights, ids = reference.route(logits, top_k)
        options = make_options(names, x, w2, top_k)
        out = fused_experts(x, w1, w2, weights.float(), ids, **options)
        check(out, x, w1, w2, weights.float(), ids, **options)


every_tile = [*(t for _, t in TILES), LARGEST, Tile(2, 144, 4), Tile(2, 144, 4, cluster=2), *(t for _, t in MMA_TILES)]


@pytest.mark.parametrize("tile", dict.fromkeys(every_tile), ids=str)
@pytest.mark.parametrize("gathered", (True, False))
def test_every_tile(tile, gathered):
    "With few tokens and with many, whatever `choose` would say; with every split that is allowed."
    if not gathered and isinstance(tile, Tile) and tile.consumers == 1:
        pytest.skip("small tiles are compiled to gather only")
    for num_tokens, num_experts, top_k, hidden, inter in ((7, 5, 2, 264, 520), (600, 3, 2, 512, 256)):
        x, w1, w2, logits = moe_inputs(num_tokens, num_experts, hidden, inter, seed=4)
        logits[:, 1] = -9.0
        weights, ids = reference.route(logits, top_k)
        pairs, slots = dispatch(ids, num_experts, tile.span), ids.numel()
        for splits in (1,) if isinstance(tile, MmaTile) else (1, 2, 3 if inter > 500 else 4):
            h, y = x.new_full((slots, inter), math.nan), x.new_full((splits * slots, hidden), math.nan)
            pairs.counters.zero_()
            rows = x if gathered else permute(x, pairs, top_k, torch.empty(slots, hidden, dtype=x.dtype, device="cuda"))
            grouped_gemm(rows, w1, pairs, h, tile=tile, gate_up=True, gathered=gathered, top_k=top_k)
            grouped_gemm(h, w2, pairs, y, tile=tile, gate_up=False, splits=splits)
            out = combine(y, pairs, weights.float(), torch.full_like(x, math.nan), splits)
            check(out, x, w1, w2, weights.float(), ids)


def test_random_cases():
    "500 layers drawn by hypothesis."

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(
        st.integers(1, 400), st.integers(1, 40), st.integers(1, 11), st.integers(1, 40), st.integers(1, 60),
        st.sampled_from(DTYPES), st.sets(st.sampled_from(OPTIONS["all"])), st.booleans(), st.integers(0, 2**31),
    )  # fmt: skip
    def layer(num_tokens, num_experts, top_k, hidden, inter, dtype, names, skewed, seed):
        top_k = min(top_k, num_experts)
        x, w1, w2, logits = moe_inputs(num_tokens, num_experts, 8 * hidden, 8 * inter, dtype=dtype, seed=seed)
        if skewed:
            logits[:, 0] += 5.0
        weights, ids = reference.route(logits, top_k)
        options = make_options(names, x, w2, top_k, seed)
        out = fused_experts(x, w1, w2, weights.float(), ids, **options)
        check(out, x, w1, w2, weights.float(), ids, **options)

    layer()


@pytest.mark.parametrize(
    "num_tokens, num_experts, top_k, hidden, inter", [(4, 16, 4, 512, 512), (500, 8, 2, 512, 256), (4000, 16, 4, 512, 2048)]
)
def test_bit_equal_from_run_to_run(num_tokens, num_experts, top_k, hidden, inter):
    x, w1, w2, logits = moe_inputs(num_tokens, num_experts, hidden, inter)
    first, different = fused_moe(x, (w1, w2), logits, top_k), torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        different += (fused_moe(x, (w1, w2), logits, top_k) != first).sum()
    assert different == 0 and bool(first.isfinite().all())


@pytest.mark.parametrize("num_tokens", (1, 100, 3000))
def test_streams_and_graphs(num_tokens):
    "Calls on several streams at once, and a captured call on inputs that change."
    x, w1, w2, logits = moe_inputs(num_tokens, 16, 512, 512)
    inputs = [(torch.randn_like(x), torch.randn_like(logits)) for _ in range(4)]

    def run(tokens, router):
        return fused_moe(tokens, (w1, w2), router, 4, capacity=num_tokens)

    expected = [run(*i) for i in inputs]
    streams, found = [torch.cuda.Stream() for _ in inputs], []
    torch.cuda.synchronize()
    for i in 10 * list(range(4)):
        with torch.cuda.stream(streams[i]):
            found.append((i, run(*inputs[i])))
    torch.cuda.synchronize()
    assert all(torch.equal(out, expected[i]) for i, out in found)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x, logits)
    for i in random.sample(range(4), 4):
        x.copy_(inputs[i][0])
        logits.copy_(inputs[i][1])
        graph.replay()
        assert torch.equal(captured, expected[i])


@pytest.mark.parametrize("hopper", (True, False))
def test_agrees_with_the_emulator(monkeypatch, hopper):
    for_chip(monkeypatch, hopper)
    x, w1, w2, logits = reference.moe_inputs(40, 6, 136, 72, device="cpu")
    weights, ids = (t.float() if t.is_floating_point() else t for t in reference.route(logits, 2))
    here = fused_experts(x, w1, w2, weights, ids)
    there = fused_experts(*(t.cuda() for t in (x, w1, w2, weights, ids)))
    limit = reference.check_moe(here, x, w1, w2, weights, ids).tolerance
    assert (here.double() - there.cpu().double()).abs().max() <= limit


@pytest.mark.parametrize("num_tokens, num_experts, top_k, hidden, inter", [
    (1, 8, 8, 2048, 768), (8, 1, 1, 7168, 2048), (64, 1, 1, 7168, 2048), (128, 128, 8, 2048, 768),
    (8192, 128, 8, 2048, 768)])  # fmt: skip
def test_workspace(monkeypatch, num_tokens, num_experts, top_k, hidden, inter):
    monkeypatch.undo()
    x, w1, w2, logits = moe_inputs(num_tokens, num_experts, hidden, inter)
    weights, ids = reference.route(logits, top_k)
    used = bench.peak_memory(fused_experts, x, w1, w2, weights.float(), ids)
    assert used <= 2 * num_tokens * top_k * (inter + hidden) + 4 * 2**20


@pytest.mark.parametrize("num_tokens", (3, 100, 1200))
@pytest.mark.parametrize("weigh_inputs", (False, True))
def test_repeated_launches_follow_their_tensors(num_tokens, weigh_inputs):
    "The second call of the same sizes repeats recorded launches: on other tensors, other weights, another stream."
    fused_layer._repetitions.clear()
    for seed in range(3):
        x, w1, w2, logits = moe_inputs(num_tokens, 8, 512, 2048, seed=seed)
        weights, ids = reference.route(logits, 2)
        weights = weights.float()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            out = fused_experts(x, w1, w2, weights, ids, weigh_inputs=weigh_inputs)
        torch.cuda.synchronize()
        assert len(fused_layer._repetitions) == 1
        check(out, x, w1, w2, weights, ids, torch.float32, weigh_inputs=weigh_inputs)


@pytest.mark.parametrize("num_tokens", (1, 100, 1200))
def test_a_repeated_layer_routes_anew(num_tokens):
    "From the logits on, with other tensors and other settings: the same bits as routing and experts one after the other."
    for seed in range(3):
        x, w1, w2, logits = moe_inputs(num_tokens, 8, 512, 2048, seed=seed)
        for top_k, scoring, renormalize in ((2, "softmax", True), (2, "softmax", False), (3, "sigmoid", True)):
            settings = dict(scoring=scoring, renormalize=renormalize)
            for router in (logits, logits.half()):
                expected = fused_experts(x, w1, w2, *routing(router, top_k, **settings))
                assert torch.equal(fused_moe(x, (w1, w2), router, top_k, **settings), expected)


def test_bad_input_leaves_the_context_usable():
    x, w1, w2, logits = moe_inputs(20, 4, 64, 64)
    weights, ids = reference.route(logits, 2)
    weights = weights.float()
    expected = fused_experts(x, w1, w2, weights, ids)
    for bad in ((x.cpu(), w1, w2, weights, ids), (x, w1[:, :-8], w2, weights, ids), (x, w1, w2.half(), weights, ids),
                (x, w1, w2, weights, ids.long()), (x[:, :60], w1, w2, weights, ids)):  # fmt: skip
        with pytest.raises(ValueError):
            fused_experts(*bad)
    assert torch.equal(fused_experts(x, w1, w2, weights, ids), expected)


def test_no_borrowed_speed():
    "Every GPU kernel of a call stands in kernels/moe, but for the ids of the shared expert, which are a fill."
    x, w1, w2, logits = moe_inputs(300, 8, 512, 2048)
    options = make_options(OPTIONS["all"], x, w2, 2)
    fused_moe(x, (w1, w2), logits, 2, **options)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        fused_moe(x, (w1, w2), logits, 2, **options)
        torch.cuda.synchronize()
    names = {e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA}
    own = ("route_kernel", "count_kernel", "place_kernel", "permute_kernel", "grouped_gemm_kernel", "combine_kernel")
    assert any("grouped_gemm" in name for name in names)
    assert not [n for n in names if not any(part in n for part in (*own, "FillFunctor", "Memset"))]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("tool", ("memcheck", "racecheck", "synccheck", "initcheck"))
def test_sanitizer(tool, group):
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if not sanitizer:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    filters = [
        word
        for name in ("gemm", "combine", "permute", "count", "place", "gate_up", "down")
        for word in ("--kernel-name", f"kernel_substring={name}")
    ]
    script = str(Path(__file__).with_name("sanitized_moe.py"))
    command = [sanitizer, "--tool", tool, *filters, "--error-exitcode", "9", sys.executable, script, group]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0 and "0 errors" in run.stdout + run.stderr, (run.stdout + run.stderr)[-3000:]
    assert "all ran" in run.stdout


def test_every_plan_was_tried():
    "The sizes above reach every tile that `choose` knows."
    plans = {choose(t, k, e, h, i).tile for t in TOKENS[1:] for e, k, h, i in MODELS.values()}
    assert plans >= {tile for _, tile in TILES} | {LARGEST}
    assert cuda.available_backend() == "cuda"
