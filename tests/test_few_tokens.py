"""A layer of few tokens in two kernels: right for every grouping of its pairs, and chosen where it should be."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_cases import DTYPES, check
from moe_cases import moe_inputs as moe_inputs_on_gpu

from flashmoe_nb import cuda, reference
from flashmoe_nb.host import launcher
from flashmoe_nb.moe import few_tokens as module
from flashmoe_nb.moe import fused_layer
from flashmoe_nb.moe.few_tokens import MAX_PAIRS, few_tokens, fits
from flashmoe_nb.moe.fused_layer import fused_experts

ORDERS = (dict(check=("race", "memory", "init")), dict(schedule="reverse"), dict(schedule="random", seed=3))


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    "What a kernel does not write stays NaN."
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(math.nan))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(math.nan))
    monkeypatch.setattr(launcher, "new_scratch", lambda size, device: torch.full((size,), 255, dtype=torch.uint8, device=device))


def hostile_ids(num_tokens: int, num_experts: int, top_k: int, device) -> list[torch.Tensor]:
    "Distinct experts, all on one, duplicates, some and only such as no expert has."
    generator = torch.Generator().manual_seed(num_tokens)
    distinct = torch.rand(num_tokens, num_experts, generator=generator).argsort(-1)[:, :top_k].int()
    some = distinct.clone()
    some[::2, 0], some[1::3, -1] = num_experts, -1
    some[num_tokens // 2] = 2**31 - 1
    any_ids = torch.randint(num_experts, (num_tokens, top_k), generator=generator).int()
    one = torch.full_like(distinct, num_experts - 1)
    return [ids.to(device) for ids in (distinct, one, any_ids, some, torch.full_like(distinct, -(2**31)))]


def judge(x, w1, w2, ids, seed=0):
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
    check(few_tokens(x, w1, w2, weights, ids), x, w1, w2, weights, ids)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "num_tokens, num_experts, top_k, hidden, inter",
    [(1, 1, 1, 8, 8), (1, 9, 8, 72, 136), (3, 12, 10, 136, 72), (32, 3, 1, 24, 40), (16, 2, 2, 8, 264)],
)
def test_every_grouping(dtype, num_tokens, num_experts, top_k, hidden, inter):
    x, w1, w2, _ = reference.moe_inputs(num_tokens, num_experts, hidden, inter, dtype=dtype, device="cpu")
    for ids in hostile_ids(num_tokens, num_experts, top_k, "cpu"):
        judge(x, w1, w2, ids)


@pytest.mark.parametrize("options", ORDERS)
def test_in_other_orders(options):
    x, w1, w2, _ = reference.moe_inputs(11, 4, 72, 40, device="cpu")
    for ids in hostile_ids(11, 4, 2, "cpu")[1:4]:
        weights = torch.ones(ids.shape)
        expected = few_tokens(x, w1, w2, weights, ids)
        with cuda.emulation(**options):
            assert torch.equal(few_tokens(x, w1, w2, weights, ids), expected)


def test_the_layer_takes_it_where_it_fits(monkeypatch):
    "Up to MAX_PAIRS pairs and without options; never on a chip before Hopper."
    x, w1, w2, logits = reference.moe_inputs(17, 4, 64, 64, device="cpu")
    weights, ids = reference.route(logits, 2, dtype=torch.float32)
    calls = []
    monkeypatch.setattr(fused_layer, "few_tokens", lambda *a: calls.append(len(a[0])) or few_tokens(*a))
    for rows, options in ((16, {}), (17, {}), (3, dict(capacity=9)), (3, dict(weigh_inputs=True)), (3, dict(return_dropped=True))):
        fused_experts(x[:rows], w1, w2, weights[:rows], ids[:rows], **options)
    monkeypatch.setattr(fused_layer, "on_hopper", lambda tensor: False)
    fused_experts(x[:3], w1, w2, weights[:3], ids[:3])
    assert calls == [16]
    assert fits(1, 8, 128, 2048, 768) and not fits(1, 8, 256, 7168, 2048) and not fits(5, 8, 128, 64, 64)
    assert fits(4, 4, 64, 1024, 512) and not fits(8, 4, 64, 1024, 512) and not fits(1, 2, 8, 4096, 14336)


def test_too_many_pairs_are_refused():
    x, w1, w2, _ = reference.moe_inputs(MAX_PAIRS + 1, 2, 8, 8, device="cpu")
    ids = torch.zeros(MAX_PAIRS + 1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="33 entries"):
        few_tokens(x, w1, w2, torch.ones(ids.shape), ids)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=("bf16", "fp16"))
@pytest.mark.parametrize(
    "num_experts, top_k, hidden, inter", [(128, 8, 2048, 768), (64, 8, 2048, 1024), (8, 2, 4096, 3584), (16, 6, 7168, 2048)]
)
def test_models_on_the_gpu(num_experts, top_k, hidden, inter, dtype):
    x, w1, w2, _ = moe_inputs_on_gpu(MAX_PAIRS // top_k, num_experts, hidden, inter, dtype=dtype)
    for num_tokens in range(1, len(x) + 1):
        for ids in hostile_ids(num_tokens, num_experts, top_k, "cuda"):
            judge(x[:num_tokens], w1, w2, ids, num_tokens)


@pytest.mark.gpu
def test_random_cases_on_the_gpu():
    "300 layers drawn by hypothesis, through the public way in, recorded and repeated."

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(st.integers(1, 32), st.integers(1, 40), st.integers(1, 32), st.integers(1, 40), st.integers(1, 60),
           st.sampled_from(DTYPES), st.integers(0, 2**31))  # fmt: skip
    def layer(num_tokens, num_experts, top_k, hidden, inter, dtype, seed):
        top_k = min(top_k, MAX_PAIRS // num_tokens)
        x, w1, w2, _ = moe_inputs_on_gpu(num_tokens, num_experts, 8 * hidden, 8 * inter, dtype=dtype, seed=seed)
        ids = torch.randint(-1, num_experts + 1, (num_tokens, top_k), device="cuda", dtype=torch.int32)
        weights = torch.rand(ids.shape, device="cuda")
        for _ in range(2):
            check(fused_experts(x, w1, w2, weights, ids), x, w1, w2, weights, ids)

    layer()


@pytest.mark.gpu
def test_bit_equal_from_run_to_run_and_in_a_graph():
    x, w1, w2, logits = moe_inputs_on_gpu(4, 64, 2048, 768)
    weights, ids = reference.route(logits, 8, dtype=torch.float32)
    first, different = few_tokens(x, w1, w2, weights, ids), torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        different += (few_tokens(x, w1, w2, weights, ids) != first).sum()
    assert different == 0 and bool(first.isfinite().all())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = few_tokens(x, w1, w2, weights, ids)
    for _ in range(100):
        captured.fill_(math.nan)
        graph.replay()
        assert torch.equal(captured, first)
    x.mul_(2)
    graph.replay()
    assert torch.equal(captured, few_tokens(x, w1, w2, weights, ids)) and not torch.equal(captured, first)


@pytest.mark.gpu
def test_agrees_with_the_emulator():
    x, w1, w2, logits = reference.moe_inputs(5, 6, 136, 72, device="cpu")
    weights, ids = reference.route(logits, 3, dtype=torch.float32)
    here = few_tokens(x, w1, w2, weights, ids)
    there = few_tokens(*(t.cuda() for t in (x, w1, w2, weights, ids)))
    limit = reference.check_moe(here, x, w1, w2, weights, ids).tolerance
    assert (here.double() - there.cpu().double()).abs().max() <= limit


def test_instances_are_those_that_run():
    assert {file for file, _ in module.instances()} == {module.FILE} and len(module.instances()) == 4
