"""Routing and dispatch on a GPU: right at every size, for hostile routings, from run to run, captured. `make gpu-test`."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_moe_routing import _poison  # noqa: F401, outputs are poisoned here too

from flashmoe_nb import reference
from flashmoe_nb.moe.dispatch import dispatch, dispatch_by_radix_sort
from flashmoe_nb.moe.routing import LOGITS, routing

pytestmark = pytest.mark.gpu
TOKENS = (0, 1, 2, 3, 17, 127, 128, 129, 1000, 8192, 65_536)
EXPERTS = (1, 2, 8, 33, 64, 100, 128, 256, 384, 512)
each_count = pytest.mark.parametrize("num_tokens", TOKENS)


def hostile_logits(num_tokens: int, num_experts: int, dtype=torch.float32) -> torch.Tensor:
    "Unit normal, but every seventh row each of ties, zeros of both signs, equal rows, very low and very high rows."
    logits = torch.randn(num_tokens, num_experts, device="cuda", generator=torch.Generator("cuda").manual_seed(num_tokens))
    logits[1::7] = logits[1::7].round()
    logits[2::7, ::2], logits[2::7, 1::2] = -0.0, 0.0
    logits[3::7] = 1.0
    logits[4::7] -= 90.0
    logits[5::7] *= 30.0
    return logits.to(dtype)


@each_count
@pytest.mark.parametrize("dtype", LOGITS, ids=LOGITS.values())
def test_routing(num_tokens, dtype):
    for num_experts in EXPERTS:
        logits = hostile_logits(num_tokens, num_experts, dtype)
        for top_k in {1, 2, min(8, num_experts), min(16, num_experts)} & set(range(num_experts + 1)):
            for scoring in ("softmax", "sigmoid"):
                settings = dict(scoring=scoring, renormalize=top_k % 2 == 0)
                reference.check_routing(*routing(logits, top_k, **settings), logits, **settings)


@pytest.mark.parametrize("scoring", ("softmax", "sigmoid"))
@pytest.mark.parametrize(
    "num_experts, n_group, topk_group, top_k", [(256, 8, 4, 8), (512, 16, 3, 10), (60, 5, 2, 6), (64, 32, 7, 8)]
)
def test_bias_and_groups(num_experts, n_group, topk_group, top_k, scoring):
    generator = torch.Generator("cuda").manual_seed(num_experts)
    logits = torch.randn(4000, num_experts, device="cuda", generator=generator)
    bias = torch.randn(num_experts, device="cuda", generator=generator) / 4
    scores = logits.double().softmax(-1) if scoring == "softmax" else logits.double().sigmoid()
    for group_best in (1, 2):
        keys = scores + bias.double()
        best = keys.unflatten(1, (n_group, -1)).topk(group_best).values.sum(-1).topk(topk_group).indices
        open_to = torch.zeros(4000, n_group, device="cuda").scatter(1, best, 1.0).bool()
        keys = keys.masked_fill(~open_to.repeat_interleave(num_experts // n_group, 1), -math.inf)
        expected = keys.topk(top_k).indices
        settings = dict(bias=bias, n_group=n_group, topk_group=topk_group, group_best=group_best, scaling=2.5)
        weights, ids = routing(logits, top_k, scoring=scoring, renormalize=False, **settings)
        torch.testing.assert_close(weights.double(), 2.5 * scores.gather(1, ids.long()), atol=1e-6, rtol=1e-5)
        assert (ids == expected).all(1).float().mean() > 0.998  # float32 may round two keys to one


@each_count
def test_load_balance_loss(num_tokens):
    logits = torch.randn(num_tokens, 256, device="cuda", generator=torch.Generator("cuda").manual_seed(3))
    _, ids, loss = routing(logits, 8, balance_loss=True)
    share = torch.bincount(ids.flatten(), minlength=256).double() / max(1, ids.numel())
    expected = 256 * (share * logits.double().softmax(-1).sum(0)).sum() / max(1, num_tokens)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(loss, routing(logits, 8, balance_loss=True)[2]) for _ in range(20))


def hostile_ids(num_tokens: int, num_experts: int, top_k: int) -> dict[str, torch.Tensor]:
    "Routings that a sort may stumble over; `faulty` holds ids that no expert has, and duplicates."
    generator = torch.Generator("cuda").manual_seed(num_tokens + num_experts)
    uniform = torch.randint(0, num_experts, (num_tokens, top_k), device="cuda", generator=generator, dtype=torch.int32)
    zipf = (1.0 / torch.arange(1, num_experts + 1, device="cuda")).expand(max(1, num_tokens), -1)
    faulty = uniform.clone()
    faulty[::3, 0], faulty[1::5, -1], faulty[2::11, 0] = num_experts, -1, 2**31 - 1
    ordered = torch.arange(num_tokens * top_k, device="cuda", dtype=torch.int32).view(num_tokens, top_k) % num_experts
    return {
        "uniform": uniform,
        "zipf": zipf.multinomial(top_k, replacement=True, generator=generator)[:num_tokens].int(),
        "one hot": torch.full_like(uniform, num_experts - 1),
        "half empty": uniform // 2 * 2 % num_experts,
        "in turn": ordered,
        "faulty": faulty,
        "none": torch.full_like(uniform, num_experts),
    }


def expected_dispatch(ids, num_experts: int, block_tokens: int, capacity: int) -> dict[str, torch.Tensor]:
    flat = ids.flatten().long()
    key = flat.where((flat >= 0) & (flat < num_experts), num_experts)
    wanted = torch.bincount(key, minlength=num_experts + 1)[:num_experts]
    order = key.sort(stable=True).indices[: int(wanted.sum())]
    rank = torch.arange(len(order), device=ids.device) - (wanted.cumsum(0) - wanted)[key[order]]
    permuted, kept = order[rank < capacity], wanted.clamp(max=capacity)
    inverse = torch.full_like(flat, -1)
    inverse[permuted] = torch.arange(len(permuted), device=ids.device)

    def offsets(n):
        return torch.cat([n.new_zeros(1), n.cumsum(0)])

    blocks = (kept + block_tokens - 1) // block_tokens
    return dict(expert_offsets=offsets(kept), block_offsets=offsets(blocks), permuted_idx=permuted, inverse_idx=inverse,
                dropped=wanted - kept, counters=torch.zeros(2, device=ids.device))  # fmt: skip


@each_count
@pytest.mark.parametrize("num_experts, top_k", [(1, 1), (8, 2), (128, 8), (256, 8), (512, 10)])
def test_dispatch(num_tokens, num_experts, top_k):
    for name, ids in hostile_ids(num_tokens, num_experts, top_k).items():
        runs = {f"capacity {c}": (dispatch(ids, num_experts, 128, capacity=c), c) for c in (None, 0, 5, 300)}
        runs |= {f"{n} blocks": (dispatch(ids, num_experts, 128, blocks=n), None) for n in (1, 7, 200)}
        runs["radix"] = (dispatch_by_radix_sort(ids, num_experts, 128), None)
        for way, (result, capacity) in runs.items():
            exact = expected_dispatch(ids, num_experts, 128, 2**31 if capacity is None else capacity)
            for field, x in exact.items():
                assert torch.equal(getattr(result, field)[: len(x)], x.int()), f"{name}, {way}: {field}"


RANDOM = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@RANDOM
@given(st.integers(0, 3000), st.integers(1, 512), st.integers(1, 16), st.integers(1, 300), st.integers(0, 400), st.integers(0, 999))
def test_random_dispatches(num_tokens, num_experts, top_k, block_tokens, capacity, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    ids = torch.randint(-2, num_experts + 2, (num_tokens, top_k), device="cuda", dtype=torch.int32, generator=generator)
    result = dispatch(ids, num_experts, block_tokens, capacity=capacity)
    for field, x in expected_dispatch(ids, num_experts, block_tokens, capacity).items():
        assert torch.equal(getattr(result, field)[: len(x)], x.int()), field


@RANDOM
@given(st.integers(0, 600), st.integers(1, 512), st.integers(1, 32), st.sampled_from(["softmax", "sigmoid"]), st.booleans(),
       st.sampled_from(list(LOGITS)), st.integers(0, 2**31))  # fmt: skip
def test_random_routings(num_tokens, num_experts, top_k, scoring, renormalize, dtype, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    logits = (3 * torch.randn(num_tokens, num_experts, device="cuda", generator=generator)).to(dtype)
    settings = dict(scoring=scoring, renormalize=renormalize)
    reference.check_routing(*routing(logits, min(top_k, num_experts), **settings), logits, **settings)


def test_bit_equal_from_run_to_run():
    logits = torch.randn(4096, 256, device="cuda")
    different = torch.zeros((), dtype=torch.int64, device="cuda")

    def run():
        weights, ids = routing(logits, 8)
        result = dispatch(ids, 256, 128)
        return weights.view(torch.int32), ids, *result

    first = run()
    for _ in range(1000):
        for a, b in zip(run(), first, strict=True):
            different += (a != b).sum()
    assert different == 0


@pytest.mark.parametrize("num_tokens", (1, 100, 8192))
def test_streams_and_graphs(num_tokens):
    def run(logits):
        weights, ids, loss = routing(logits, 8, balance_loss=True)
        return weights, ids, loss, *dispatch(ids, 256, 128), *dispatch_by_radix_sort(ids, 256)[:4]

    def fresh(seed):
        return torch.randn(num_tokens, 256, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))

    inputs = [fresh(seed) for seed in range(4)]
    expected = [run(x) for x in inputs]
    streams, found = [torch.cuda.Stream() for _ in inputs], []
    torch.cuda.synchronize()
    for i in 10 * list(range(4)):
        with torch.cuda.stream(streams[i]):
            found.append((i, run(inputs[i])))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for i, run_ in found for a, b in zip(run_, expected[i], strict=True))
    logits, graph = fresh(9), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(logits)
    for seed in range(4):
        logits.copy_(inputs[seed])
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected[seed], strict=True))


def test_agrees_with_the_emulator():
    logits = torch.randn(50, 100, generator=torch.Generator().manual_seed(4))
    settings = dict(scoring="sigmoid", bias=torch.zeros(100), n_group=10, topk_group=3)
    on_gpu = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    for here_settings, there_settings in (({}, {}), (settings, on_gpu)):
        here, there = routing(logits, 6, **here_settings), routing(logits.cuda(), 6, **there_settings)
        assert torch.equal(here[1], there[1].cpu())
        torch.testing.assert_close(here[0], there[0].cpu(), atol=1e-6, rtol=1e-6)
    ids = here[1]
    assert all(torch.equal(a, b.cpu()) for a, b in zip(dispatch(ids, 100), dispatch(ids.cuda(), 100), strict=True))


def test_launches_nothing_else():
    "Every GPU kernel of a call stands in kernels/moe, but for the zero that the load-balance loss starts from."
    logits = torch.randn(100, 64, device="cuda")
    routing(logits, 4, balance_loss=True)
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        _, ids, _ = routing(logits, 4, balance_loss=True)
        dispatch(ids, 64)
        torch.cuda.synchronize()
    names = {event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA}
    own = ("route_kernel", "balance_sums_kernel", "balance_loss_kernel", "count_kernel", "place_kernel", "FillFunctor", "Memset")
    foreign = [name for name in names if not any(part in name for part in own)]
    assert any("route_kernel" in name for name in names) and not foreign


@pytest.mark.parametrize("tool", ("memcheck", "racecheck", "synccheck", "initcheck"))
def test_sanitizer(tool):
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if not sanitizer:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    script = Path(__file__).with_name("sanitized_moe_routing.py")
    found = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode=9", "--kernel-name", "kernel_substring=_kernel", sys.executable, script],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0 and "all ran" in found.stdout, found.stdout[-3000:] + found.stderr[-2000:]
