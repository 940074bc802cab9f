"""Routing and dispatch without a GPU: on the emulator, against float64 and Python's own sort, with wrong input."""

import math

import pytest
import torch

from flashmoe_nb import cuda, reference
from flashmoe_nb.moe import dispatch as dispatch_module
from flashmoe_nb.moe import routing as routing_module
from flashmoe_nb.moe.dispatch import dispatch, dispatch_by_radix_sort
from flashmoe_nb.moe.routing import load_balance_loss, routing


ORDERS = (dict(check=("race", "memory", "init")), dict(schedule="reverse"), dict(schedule="random", seed=3))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    "Fill every output before the kernel runs, so that an element it does not write is seen."
    outputs, integers = routing_module.new_outputs, dispatch_module.new_integers

    def poisoned_outputs(*arguments):
        weights, ids = outputs(*arguments)
        return weights.fill_(math.nan), ids.fill_(-77)

    monkeypatch.setattr(routing_module, "new_outputs", poisoned_outputs)
    monkeypatch.setattr(dispatch_module, "new_integers", lambda *a: tuple(x.fill_(-77) for x in integers(*a)))


def hostile_logits(num_tokens: int, num_experts: int) -> torch.Tensor:
    "Ties, signed zeros, infinities, equal rows, a very low row; the first rows are unit normal."
    logits = torch.randn(num_tokens, num_experts, generator=seeded(num_experts))
    logits[-1] = 0.0
    logits[-2] = logits[-2].round()
    logits[-3, ::2], logits[-3, 1::2] = -0.0, 0.0
    logits[-4, 0] = -math.inf
    logits[-5] -= 200.0
    return logits


@pytest.mark.parametrize("scoring", ("softmax", "sigmoid"))
@pytest.mark.parametrize("renormalize", (True, False))
@pytest.mark.parametrize("num_experts, top_k", [(1, 1), (8, 2), (40, 16), (100, 8), (512, 10)])
def test_routing(num_experts, top_k, scoring, renormalize):
    logits = hostile_logits(9, num_experts)
    if num_experts == 1:
        logits[-4] = 0.0  # a lone expert at -inf has no weight under softmax, in the reference either
    result = routing(logits, top_k, scoring=scoring, renormalize=renormalize)
    reference.check_routing(*result, logits, scoring=scoring, renormalize=renormalize)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
def test_routing_of_every_dtype(dtype):
    logits = torch.randn(5, 60, generator=seeded(1)).to(dtype)
    reference.check_routing(*routing(logits, 6), logits)


@pytest.mark.parametrize("top_k", range(1, 17))
def test_every_top_k(top_k):
    logits = hostile_logits(6, 33)
    reference.check_routing(*routing(logits, top_k), logits)


def by_hand(keys: list[float], n_group: int, topk_group: int, group_best: int, top_k: int) -> list[int]:
    "The choice as its definition reads, among Python's own numbers."
    size = len(keys) // n_group
    score = [sum(sorted(keys[g * size : (g + 1) * size])[-group_best:]) for g in range(n_group)]
    groups = sorted(range(n_group), key=lambda g: -score[g])[:topk_group]
    open_experts = [e for e in range(len(keys)) if n_group == 1 or e // size in groups]
    return sorted(open_experts, key=lambda e: -keys[e])[:top_k]


GROUPS = [(16, 1, 1, 2, 4), (16, 4, 2, 2, 4), (60, 5, 3, 2, 8), (64, 32, 5, 1, 8), (64, 32, 5, 2, 10), (40, 40 // 8, 1, 1, 8)]


@pytest.mark.parametrize("num_experts, n_group, topk_group, group_best, top_k", GROUPS)
def test_groups_and_bias_decide_exactly(num_experts, n_group, topk_group, group_best, top_k):
    "All scores are 1/2 and biases are multiples of 1/16: keys are exact in float32, with many ties."
    for seed in range(4):
        bias = torch.randint(-8, 9, (num_experts,), generator=seeded(seed)) / 16
        settings = dict(bias=bias, n_group=n_group, topk_group=topk_group, group_best=group_best)
        weights, ids = routing(torch.zeros(2, num_experts), top_k, scoring="sigmoid", scaling=2.5, **settings)
        keys = (bias + 0.5).tolist()
        assert ids.tolist() == [by_hand(keys, n_group, topk_group, group_best, top_k)] * 2
        torch.testing.assert_close(weights, torch.full_like(weights, 2.5 / top_k))  # the bias does not weigh


@pytest.mark.parametrize("scoring", ("softmax", "sigmoid"))
@pytest.mark.parametrize("num_experts, n_group, topk_group, group_best, top_k", GROUPS)
def test_groups_and_bias_of_random_scores(num_experts, n_group, topk_group, group_best, top_k, scoring):
    logits = torch.randn(40, num_experts, generator=seeded(7))
    bias = torch.randn(num_experts, generator=seeded(8)) / 4
    exact = logits.double().softmax(-1) if scoring == "softmax" else logits.double().sigmoid()
    settings = dict(bias=bias, n_group=n_group, topk_group=topk_group, group_best=group_best)
    weights, ids = routing(logits, top_k, scoring=scoring, renormalize=False, **settings)
    torch.testing.assert_close(weights.double(), exact.gather(1, ids.long()), atol=1e-6, rtol=1e-5)
    assert all(len(set(row)) == top_k for row in ids.tolist())
    keys = (exact + bias.double()).tolist()
    expected = [by_hand(row, n_group, topk_group, group_best, top_k) for row in keys]
    # Where float32 rounds two keys to one, the order may differ from float64's: rare, and never far off.
    assert sum(a == b for a, b in zip(ids.tolist(), expected, strict=True)) >= 39


def test_deepseek_v3_scores_but_for_the_bias_that_a_group_sees():
    "Written once more in the terms of the technical report: groups of 32, four of eight, two best, scaled by 2.5."
    logits, bias = torch.randn(6, 256, generator=seeded(9)), torch.randn(256, generator=seeded(10)) / 10
    scores = logits.double().sigmoid()
    keys = scores + bias.double()
    groups = keys.view(6, 8, 32).topk(2).values.sum(-1).topk(4).indices
    open_to = torch.zeros(6, 8).scatter(1, groups, 1.0).bool().repeat_interleave(32, 1)
    ids = keys.masked_fill(~open_to, -math.inf).topk(8).indices
    weights = scores.gather(1, ids)
    ours, our_ids = routing(logits, 8, scoring="sigmoid", bias=bias, n_group=8, topk_group=4, scaling=2.5)
    assert torch.equal(our_ids.long(), ids)
    torch.testing.assert_close(ours.double(), 2.5 * weights / weights.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scoring", ("softmax", "sigmoid"))
def test_nan_ranks_last_and_stays_in_its_row(scoring):
    logits = torch.randn(3, 8, generator=seeded(2))
    clean = routing(logits, 8, scoring=scoring)
    logits[1, 4] = math.nan
    weights, ids = routing(logits, 8, scoring=scoring)
    assert ids[1, -1] == 4 and sorted(ids[1].tolist()) == list(range(8))
    assert weights[1].isnan().all()  # all experts are chosen: the sum that renormalises them is NaN
    assert all(torch.equal(a[::2], b[::2]) for a, b in zip((weights, ids), clean, strict=True))


@pytest.mark.parametrize("scoring", ("softmax", "sigmoid"))
def test_nan_everywhere_still_gives_distinct_experts(scoring):
    logits = torch.full((2, 40), math.nan)
    for settings in ({}, dict(bias=torch.zeros(40)), dict(n_group=4, topk_group=2)):
        weights, ids = routing(logits, 12, scoring=scoring, **settings)
        assert ids.tolist() == [list(range(12))] * 2 and weights.isnan().all()


def test_infinite_bias_and_logits_choose_without_nan_ids():
    bias = torch.zeros(16)
    bias[3], bias[5], bias[9] = math.inf, -math.inf, math.nan
    for settings in ({}, dict(n_group=4, topk_group=4)):
        weights, ids = routing(torch.zeros(1, 16), 16, scoring="sigmoid", bias=bias, **settings)
        assert ids[0].tolist() == [3, 0, 1, 2, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15, 5, 9]
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / 16))


def test_routing_of_strided_views_and_of_no_tokens():
    logits = torch.randn(6, 16, generator=seeded(3))[::2]
    reference.check_routing(*routing(logits, 2), logits)
    bias = torch.randn(32, generator=seeded(4))
    a, b = (routing(logits, 2, bias=x) for x in (bias[::2], bias[::2].contiguous()))
    assert torch.equal(a[1], b[1]) and torch.equal(a[0], b[0])
    weights, ids, loss = routing(logits[:0], 2, balance_loss=True)
    assert weights.shape == ids.shape == (0, 2) and loss == 0


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("scoring", ("softmax", "sigmoid"))
@pytest.mark.parametrize("num_tokens, num_experts, top_k", [(1, 1, 1), (30, 12, 3), (9, 100, 8)])
def test_load_balance_loss(num_tokens, num_experts, top_k, scoring, dtype):
    logits = torch.randn(num_tokens, num_experts, generator=seeded(5)).to(dtype)
    _, ids, loss = routing(logits, top_k, scoring=scoring, balance_loss=True)
    scores = logits.double().softmax(-1) if scoring == "softmax" else logits.double().sigmoid()
    mean = (scores / scores.sum(-1, keepdim=True)).mean(0)
    share = torch.bincount(ids.flatten(), minlength=num_experts).double() / ids.numel()
    assert loss.shape == () and loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), num_experts * (share * mean).sum(), atol=1e-6, rtol=1e-6)


def test_load_balance_loss_is_one_when_even_and_num_experts_when_collapsed():
    even = torch.arange(16, dtype=torch.int32).view(8, 2) % 4
    torch.testing.assert_close(load_balance_loss(torch.zeros(8, 4), even), torch.tensor(1.0))
    collapsed = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    torch.testing.assert_close(routing(collapsed, 1, balance_loss=True)[2], torch.tensor(4.0))


def test_load_balance_loss_of_ids_that_no_expert_has():
    "They are counted nowhere: not for an expert, and not in the memory beside the counters."
    logits = torch.randn(20, 6, generator=seeded(3))
    ids = routing(logits, 2)[1]
    faulty = ids.clone()
    faulty[::3, 0], faulty[1, 1], faulty[2, 1] = 6, -1, 2**31 - 1
    valid = (faulty >= 0) & (faulty < 6)
    share = torch.bincount(faulty[valid].long(), minlength=6) / ids.numel()
    with cuda.emulation(check=("memory", "race")):
        loss = load_balance_loss(logits, faulty)
    torch.testing.assert_close(loss, 6 * (share * logits.softmax(-1).mean(0)).sum())


@pytest.mark.parametrize("ids", (None, torch.zeros(4, 2), torch.zeros(5, 2, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)))
def test_load_balance_loss_refuses(ids):
    with pytest.raises((TypeError, ValueError), match="topk_ids|top_k"):
        load_balance_loss(torch.zeros(4, 8), ids)


@pytest.mark.parametrize("options", ORDERS)
def test_routing_in_other_orders(options):
    logits, settings = hostile_logits(6, 40), dict(scoring="sigmoid", bias=torch.zeros(40), n_group=5, topk_group=2)
    plain = [*routing(logits, 5, balance_loss=True), *routing(logits, 5, **settings)]
    with cuda.emulation(**options):
        again = [*routing(logits, 5, balance_loss=True), *routing(logits, 5, **settings)]
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("num_experts, top_k", [(8, 2), (100, 8)])
def test_choosing_by_shuffles_is_the_same_function(num_experts, top_k):
    logits = hostile_logits(9, num_experts)
    outputs = routing_module.new_outputs(9, top_k, logits.device)
    name = routing_module._instance(torch.float32, num_experts, choice="SHUFFLES")
    arguments = (logits, None, *outputs, 9, num_experts, top_k, 0, 1, 1, 1, 2, 1.0)
    cuda.compile(routing_module.FILE, name).launch(3, 128, arguments)
    assert all(torch.equal(a, b) for a, b in zip(outputs, routing(logits, top_k), strict=True))


@pytest.mark.parametrize(
    "error, text, logits, options",
    [
        (TypeError, "logits", [[1.0]], {}),
        (ValueError, "logits", torch.zeros(2, 3, dtype=torch.float64), {}),
        (ValueError, "logits", torch.zeros(3), {}),
        (ValueError, "logits", torch.zeros(1, 513), {}),
        (ValueError, "logits", torch.zeros(1, 0), {}),
        (ValueError, "top_k", torch.zeros(2, 3), dict(top_k=4)),
        (ValueError, "top_k", torch.zeros(2, 3), dict(top_k=0)),
        (TypeError, "top_k", torch.zeros(2, 3), dict(top_k=1.0)),
        (ValueError, "scoring", torch.zeros(2, 3), dict(scoring="relu")),
        (TypeError, "bias", torch.zeros(2, 3), dict(bias=[0.0] * 3)),
        (ValueError, "bias", torch.zeros(2, 3), dict(bias=torch.zeros(4))),
        (ValueError, "bias", torch.zeros(2, 3), dict(bias=torch.zeros(3).half())),
        (ValueError, "n_group", torch.zeros(2, 8), dict(n_group=3)),
        (ValueError, "n_group", torch.zeros(2, 8), dict(n_group=0)),
        (ValueError, "topk_group", torch.zeros(2, 8), dict(n_group=4, topk_group=5)),
        (ValueError, "topk_group", torch.zeros(2, 8), dict(n_group=4, topk_group=1, top_k=3)),
        (ValueError, "group_best", torch.zeros(2, 8), dict(n_group=8, topk_group=2)),
        (ValueError, "group_best", torch.zeros(2, 8), dict(n_group=4, topk_group=2, group_best=3)),
    ],
)
def test_routing_refuses(error, text, logits, options):
    with pytest.raises(error, match=text):
        routing(logits, **{"top_k": 1, **options})


def random_ids(num_tokens: int, num_experts: int, top_k: int) -> torch.Tensor:
    order = torch.rand(num_tokens, num_experts, generator=seeded(num_tokens)).argsort(-1)
    return order[:, :top_k].int().contiguous()


def check_dispatch(result, ids: torch.Tensor, num_experts: int, block_tokens: int, capacity: int = 2**31):
    "Every defined entry, against Python's own stable sort."
    flat = ids.flatten().tolist()
    wanted = {e: [i for i, x in enumerate(flat) if x == e] for e in range(num_experts)}
    kept = {e: pairs[:capacity] for e, pairs in wanted.items()}
    pairs = [i for e in range(num_experts) for i in kept[e]]
    counts = [len(kept[e]) for e in range(num_experts)]
    assert result.permuted_idx[: len(pairs)].tolist() == pairs
    slot_of = {pair: slot for slot, pair in enumerate(pairs)}
    assert result.inverse_idx.tolist() == [slot_of.get(i, -1) for i in range(len(flat))]
    assert result.expert_offsets.tolist() == [sum(counts[:e]) for e in range(num_experts + 1)]
    blocks = [-(-n // block_tokens) for n in counts]
    assert result.block_offsets.tolist() == [sum(blocks[:e]) for e in range(num_experts + 1)]
    assert result.dropped.tolist() == [len(wanted[e]) - len(kept[e]) for e in range(num_experts)]
    assert result.counters.tolist() == [0, 0]


SIZES = [(10, 8, 2, None), (1, 1, 1, None), (40, 1, 1, 2), (300, 60, 4, 3), (100, 512, 3, 1), (100, 512, 3, 2), (0, 8, 2, None)]


@pytest.mark.parametrize("num_tokens, num_experts, top_k, blocks", SIZES)
def test_dispatch(num_tokens, num_experts, top_k, blocks):
    ids = random_ids(num_tokens, num_experts, top_k)
    check_dispatch(dispatch(ids, num_experts, 16, blocks=blocks), ids, num_experts, 16)
    check_dispatch(dispatch(ids, num_experts, 16, blocks=blocks, capacity=5), ids, num_experts, 16, 5)
    check_dispatch(dispatch_by_radix_sort(ids, num_experts, 16), ids, num_experts, 16)


@pytest.mark.parametrize("capacity", (0, 1, 7, 50, 51, 10**6))
def test_capacity_drops_the_latest_pairs_and_counts_them(capacity):
    ids = torch.zeros(51, 2, dtype=torch.int32)
    ids[:, 1] = torch.arange(51) % 3 + 1
    for blocks in (1, 2):
        result = dispatch(ids, 5, 16, capacity=capacity, blocks=blocks)
        check_dispatch(result, ids, 5, 16, capacity)
        assert result.expert_offsets[-1] + result.dropped.sum() == ids.numel()


@pytest.mark.parametrize("sort", (lambda ids: dispatch(ids, 8, 16), lambda ids: dispatch(ids, 8, 16, blocks=3),
                                  lambda ids: dispatch_by_radix_sort(ids, 8, 16)), ids=("one block", "three", "radix"))  # fmt: skip
def test_ids_of_no_expert_are_dropped_and_duplicates_kept(sort):
    ids = random_ids(50, 8, 2)
    ids[0, 0], ids[7, 1], ids[49, 0], ids[30] = -1, 8, 2**31 - 1, -(2**31)
    ids[11] = 3  # the same expert twice
    check_dispatch(sort(ids), ids, 8, 16)


def test_dispatch_of_one_hot_expert_and_of_nothing_but_drops():
    for expert in (5, 9):
        ids = torch.full((70, 1), expert, dtype=torch.int32)
        check_dispatch(dispatch(ids, 8, 32, blocks=2), ids, 8, 32)
        check_dispatch(dispatch_by_radix_sort(ids, 8, 32), ids, 8, 32)


@pytest.mark.parametrize("options", ORDERS)
def test_dispatch_in_other_orders(options):
    ids = random_ids(70, 20, 3)
    with cuda.emulation(**options):
        check_dispatch(dispatch(ids, 20, 16, blocks=2, capacity=9), ids, 20, 16, 9)
        check_dispatch(dispatch_by_radix_sort(ids, 20, 16), ids, 20, 16)


@pytest.mark.parametrize(
    "error, text, ids, options",
    [
        (TypeError, "topk_ids", [[0]], {}),
        (ValueError, "topk_ids", torch.zeros(2, 2, dtype=torch.int64), {}),
        (ValueError, "topk_ids", torch.zeros(2, dtype=torch.int32), {}),
        (TypeError, "num_experts", torch.zeros(2, 2, dtype=torch.int32), dict(num_experts=2.0)),
        (ValueError, "num_experts", torch.zeros(2, 2, dtype=torch.int32), dict(num_experts=513)),
        (ValueError, "block_tokens", torch.zeros(2, 2, dtype=torch.int32), dict(block_tokens=0)),
        (ValueError, "capacity", torch.zeros(2, 2, dtype=torch.int32), dict(capacity=-1)),
    ],
)
def test_dispatch_refuses(error, text, ids, options):
    with pytest.raises(error, match=text):
        dispatch(ids, **{"num_experts": 4, **options})
