"""Mixture-of-Experts without a GPU: routing, dispatch, grouped products and the whole layer on the emulator, wrong input."""

import math

import pytest
import torch

from flashmoe_nb import cuda, reference
from flashmoe_nb.moe.dispatch import dispatch
from flashmoe_nb.moe.routing import routing

DTYPES = (torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def hostile_logits(num_tokens: int, num_experts: int) -> torch.Tensor:
    "Ties, signed zeros, infinities and equal rows; the first rows are unit normal."
    logits = torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(num_experts))
    logits[-1] = 0.0
    logits[-2] = logits[-2].round()
    logits[-3, ::2], logits[-3, 1::2] = -0.0, 0.0
    logits[-4, 0] = -math.inf
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
    logits = torch.randn(5, 60, generator=torch.Generator().manual_seed(1)).to(dtype)
    reference.check_routing(*routing(logits, 6), logits)


@pytest.mark.parametrize("scoring", ("softmax", "sigmoid"))
def test_nan_ranks_last_and_stays_in_its_row(scoring):
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    clean = routing(logits, 8, scoring=scoring)
    logits[1, 4] = math.nan
    weights, ids = routing(logits, 8, scoring=scoring)
    assert ids[1, -1] == 4 and sorted(ids[1].tolist()) == list(range(8))
    assert weights[1].isnan().all()  # all experts are chosen: the sum that renormalises them is NaN
    assert all(torch.equal(a[::2], b[::2]) for a, b in zip((weights, ids), clean, strict=True))


def test_routing_of_a_strided_view_and_of_no_tokens():
    logits = torch.randn(6, 16, generator=torch.Generator().manual_seed(3))[::2]
    reference.check_routing(*routing(logits, 2), logits)
    weights, ids = routing(logits[:0], 2)
    assert weights.shape == ids.shape == (0, 2)


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
    ],
)
def test_routing_refuses(error, text, logits, options):
    with pytest.raises(error, match=text):
        routing(logits, **{"top_k": 1, **options})


def random_ids(num_tokens: int, num_experts: int, top_k: int) -> torch.Tensor:
    order = torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(num_tokens)).argsort(-1)
    return order[:, :top_k].int().contiguous()


def check_dispatch(result, ids: torch.Tensor, num_experts: int, block_tokens: int):
    "Every defined entry, against Python's own stable sort."
    flat = ids.flatten().tolist()
    pairs = sorted((i for i, e in enumerate(flat) if 0 <= e < num_experts), key=lambda i: flat[i])
    counts = [flat.count(e) for e in range(num_experts)]
    assert result.permuted_idx[: len(pairs)].tolist() == pairs
    slot_of = {pair: slot for slot, pair in enumerate(pairs)}
    assert result.inverse_idx.tolist() == [slot_of.get(i, -1) for i in range(len(flat))]
    assert result.expert_offsets.tolist() == [sum(counts[:e]) for e in range(num_experts + 1)]
    blocks = [-(-n // block_tokens) for n in counts]
    assert result.block_offsets.tolist() == [sum(blocks[:e]) for e in range(num_experts + 1)]
    assert result.counters.tolist() == [0, 0]


@pytest.mark.parametrize(
    "num_tokens, num_experts, top_k, blocks",
    [(10, 8, 2, None), (1, 1, 1, None), (40, 1, 1, 2), (300, 60, 4, 3), (100, 512, 3, 1), (100, 512, 3, 2), (0, 8, 2, None)],
)
def test_dispatch(num_tokens, num_experts, top_k, blocks):
    ids = random_ids(num_tokens, num_experts, top_k)
    check_dispatch(dispatch(ids, num_experts, 16, blocks=blocks), ids, num_experts, 16)


@pytest.mark.parametrize("blocks", (1, 3))
def test_dispatch_drops_ids_of_no_expert(blocks):
    ids = random_ids(50, 8, 2)
    ids[0, 0], ids[7, 1], ids[49, 0], ids[30] = -1, 8, 2**31 - 1, -(2**31)
    check_dispatch(dispatch(ids, 8, 16, blocks=blocks), ids, 8, 16)


def test_dispatch_of_one_hot_expert_and_of_nothing_but_drops():
    for expert in (5, 9):
        ids = torch.full((70, 1), expert, dtype=torch.int32)
        check_dispatch(dispatch(ids, 8, 32, blocks=2), ids, 8, 32)


@pytest.mark.parametrize("options", (dict(check=("memory", "init")), dict(schedule="reverse"), dict(schedule="random", seed=3)))
def test_dispatch_in_other_orders(options):
    ids = random_ids(70, 20, 3)
    with cuda.emulation(**options):
        check_dispatch(dispatch(ids, 20, 16, blocks=2), ids, 20, 16)


@pytest.mark.parametrize(
    "error, text, ids, options",
    [
        (TypeError, "topk_ids", [[0]], {}),
        (ValueError, "topk_ids", torch.zeros(2, 2, dtype=torch.int64), {}),
        (ValueError, "topk_ids", torch.zeros(2, dtype=torch.int32), {}),
        (TypeError, "num_experts", torch.zeros(2, 2, dtype=torch.int32), dict(num_experts=2.0)),
        (ValueError, "num_experts", torch.zeros(2, 2, dtype=torch.int32), dict(num_experts=513)),
        (ValueError, "block_tokens", torch.zeros(2, 2, dtype=torch.int32), dict(block_tokens=0)),
    ],
)
def test_dispatch_refuses(error, text, ids, options):
    with pytest.raises(error, match=text):
        dispatch(ids, **{"num_experts": 4, **options})
