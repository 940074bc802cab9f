"""Mixture-of-Experts without a GPU: routing, dispatch, grouped products and the whole layer on the emulator, wrong input."""

import math

import pytest
import torch

from flashmoe_nb import cuda, reference
from flashmoe_nb.moe.dispatch import dispatch
from flashmoe_nb.moe.fused_layer import combine, fused_experts, fused_moe, permute
from flashmoe_nb.moe.grouped_gemm import LARGEST, MAX_SPLITS, Tile, choose, grouped_gemm, instances
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


def run_products(x, w1, w2, weights, ids, tile, *, gathered=True, splits=1, stream=False):
    "Dispatch, both products and the combination with a chosen tile; what a kernel does not write stays NaN."
    num_experts, hidden, inter = w2.shape
    slots, top_k = ids.numel(), ids.shape[1]
    pairs = dispatch(ids, num_experts, tile.block_tokens)
    h, y = x.new_full((slots, inter), math.nan), x.new_full((splits * slots, hidden), math.nan)
    rows = x if gathered else permute(x, pairs, top_k, x.new_full((slots, hidden), math.nan))
    grouped_gemm(rows, w1, pairs, h, tile=tile, gate_up=True, gathered=gathered, top_k=top_k, stream=stream)
    grouped_gemm(h, w2, pairs, y, tile=tile, gate_up=False, splits=splits, stream=stream)
    return combine(y, pairs, weights, torch.full_like(x, math.nan), splits)


@pytest.mark.parametrize(
    "dtype, num_tokens, num_experts, top_k, hidden, inter, tile, options",
    [
        (torch.bfloat16, 13, 5, 2, 136, 72, Tile(1, 16, 5), dict(splits=2)),
        (torch.bfloat16, 5, 4, 3, 72, 136, Tile(1, 8, 6), dict(stream=True, splits=3)),
        (torch.float16, 40, 6, 2, 64, 64, Tile(1, 32, 5), dict(gathered=False)),
        (torch.float16, 70, 2, 1, 64, 136, Tile(2, 48, 5), {}),
        (torch.bfloat16, 150, 3, 2, 64, 72, LARGEST, dict(gathered=False)),
    ],
)
def test_grouped_products(dtype, num_tokens, num_experts, top_k, hidden, inter, tile, options):
    x, w1, w2, logits = reference.moe_inputs(num_tokens, num_experts, hidden, inter, dtype=dtype, device="cpu")
    if num_experts > top_k:
        logits[:, 1] = -9.0  # an empty expert between others
    weights, ids = routing(logits, top_k)
    reference.check_moe(run_products(x, w1, w2, weights, ids, tile, **options), x, w1, w2, weights, ids)


def test_grouped_products_of_one_hot_expert_and_dropped_pairs():
    x, w1, w2, _ = reference.moe_inputs(20, 4, 64, 64, device="cpu")
    ids = torch.full((20, 2), 2, dtype=torch.int32)
    ids[3], ids[5, 0], ids[19, 1] = 4, -1, 2**31 - 1
    weights, valid = torch.rand(20, 2), (ids >= 0) & (ids < 4)
    exact = weights.where(valid, 0.0), ids.where(valid, 0)
    for gathered in (True, False):
        out = run_products(x, w1, w2, weights, ids, Tile(1, 8, 6), gathered=gathered)
        assert (out[3] == 0).all()
        reference.check_moe(out, x, w1, w2, *exact)


@pytest.mark.parametrize("options", (dict(check=("memory", "init")), dict(schedule="reverse"), dict(schedule="random", seed=5)))
def test_layer_in_other_orders(options):
    x, w1, w2, logits = reference.moe_inputs(9, 4, 64, 64, device="cpu")
    out = fused_moe(x, (w1, w2), logits, 2)
    with cuda.emulation(**options):
        assert torch.equal(fused_moe(x, (w1, w2), logits, 2), out)


@each_dtype
@pytest.mark.parametrize("num_tokens, num_experts, top_k, hidden, inter", [(1, 1, 1, 8, 8), (1, 8, 8, 64, 264), (17, 6, 3, 72, 40)])
def test_layer(dtype, num_tokens, num_experts, top_k, hidden, inter):
    x, w1, w2, logits = reference.moe_inputs(num_tokens, num_experts, hidden, inter, dtype=dtype, device="cpu", seed=7)
    for settings in (dict(), dict(scoring="sigmoid", renormalize=False)):
        out = fused_moe(x, (w1, w2), logits, top_k, **settings)
        reference.check_moe(out, x, w1, w2, *reference.route(logits, top_k, **settings))


def test_layer_of_more_choices_than_the_combination_takes_at_once():
    x, w1, w2, logits = reference.moe_inputs(3, 12, 64, 64, device="cpu")
    weights, ids = routing(logits, 11)
    reference.check_moe(fused_experts(x, w1, w2, weights, ids), x, w1, w2, weights, ids)


def test_layer_of_no_tokens_and_of_tokens_that_must_be_copied():
    x, w1, w2, logits = reference.moe_inputs(8, 4, 64, 64, device="cpu")
    assert fused_moe(x[:0], (w1, w2), logits[:0]).shape == (0, 64)
    shifted = torch.empty(8 * 64 + 1, dtype=x.dtype)[1:].view(8, 64).copy_(x)
    for strange in (shifted, x.repeat(1, 2)[:, :64], x.mT.contiguous().mT):
        reference.check_moe(fused_moe(strange, (w1, w2), logits), x, w1, w2, *reference.route(logits, 2))


def test_a_choice_of_the_same_expert_twice_counts_twice():
    x, w1, w2, _ = reference.moe_inputs(4, 3, 64, 64, device="cpu")
    ids, weights = torch.ones(4, 2, dtype=torch.int32), torch.full((4, 2), 0.5)
    reference.check_moe(fused_experts(x, w1, w2, weights, ids), x, w1, w2, weights, ids)


def test_every_plan_is_listed_and_has_no_empty_split():
    listed = {name for _, name in instances()}
    for tokens in (1, 3, 16, 100, 128, 700, 1024, 8192):
        for experts, top_k in ((1, 1), (8, 2), (128, 8), (512, 10)):
            for hidden, inter in ((8, 8), (64, 264), (128, 4096), (2048, 768), (4096, 14336)):
                plan = choose(tokens, top_k, experts, hidden, inter)
                assert 1 <= plan.splits <= MAX_SPLITS
                part = -(-inter // (64 * plan.splits)) * 64  # as the kernel cuts
                assert (plan.splits - 1) * part < inter
                for gate_up, gathered in ((True, plan.gathered), (False, False)):
                    rows = "GATHERED" if gathered else "CONTIGUOUS"
                    tile = ", ".join(map(str, plan.tile))
                    config = f"__half, {tile}, {str(gate_up).lower()}, {rows}, {str(plan.stream).lower()}"
                    assert f"grouped_gemm_kernel<Config<{config}>>" in listed


def valid_arguments() -> dict:
    x, w1, w2, logits = reference.moe_inputs(4, 3, 16, 24, device="cpu")
    weights, ids = reference.route(logits, 2)
    return dict(tokens=x, w_gate_up=w1, w_down=w2, topk_weights=weights.float(), topk_ids=ids)


@pytest.mark.parametrize(
    "error, name, change",
    [
        (TypeError, "tokens", lambda x: x.tolist()),
        (ValueError, "tokens", lambda x: x.float()),
        (ValueError, "tokens", lambda x: x[0]),
        (ValueError, "w_gate_up", lambda x: x[:, :-1]),
        (ValueError, "w_gate_up", lambda x: x.half()),
        (ValueError, "w_gate_up", lambda x: x.mT.contiguous().mT),
        (TypeError, "w_down", lambda x: None),
        (ValueError, "w_down", lambda x: x[0]),
        (ValueError, "w_down", lambda x: x.mT.contiguous().mT),
        (ValueError, "topk_weights", lambda x: x.double()),
        (ValueError, "topk_weights", lambda x: x[:, :1]),
        (ValueError, "topk_weights", lambda x: x.to("meta")),
        (ValueError, "topk_ids", lambda x: x.long()),
        (ValueError, "topk_ids", lambda x: x[:-1]),
        (ValueError, "topk_ids", lambda x: x[:, :0]),
    ],
)
def test_layer_refuses(error, name, change):
    arguments = valid_arguments()
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=name):
        fused_experts(**arguments)


def test_layer_refuses_sizes_that_are_no_multiple_of_eight():
    for hidden, inter in ((12, 16), (16, 12)):
        x, w1, w2, logits = reference.moe_inputs(2, 2, hidden, inter, device="cpu")
        with pytest.raises(ValueError, match="multiple of 8"):
            fused_moe(x, (w1, w2), logits)


def test_layer_refuses_wrong_weights_and_logits():
    x, w1, w2, logits = reference.moe_inputs(2, 4, 16, 16, device="cpu")
    with pytest.raises(TypeError, match="expert_weights"):
        fused_moe(x, w1, logits)
    with pytest.raises(ValueError, match="routing_weights"):
        fused_moe(x, (w1, w2), logits[:, :3])
