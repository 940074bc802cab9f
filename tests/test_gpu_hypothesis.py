"""Attention on a GPU at random sizes, layouts, scales and values, 500 cases for each function. `make gpu-test`."""

import pytest
import torch
from attention_cases import DTYPES, STEPS, poisoned_outputs

from flashmoe_nb import flash_attention_science, reference
from flashmoe_nb.attention import overlap

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as some  # noqa: E402

pytestmark = pytest.mark.gpu
FUNCTIONS = {"flash_attention_science": flash_attention_science} | {
    step: STEPS[step] for step in ("cp_async", "overlap") if step in STEPS
}
if "overlap" in STEPS:
    FUNCTIONS["overlap, keys divided"] = STEPS["overlap"]
LAYOUTS = ("contiguous", "sequence first", "misaligned", "a slice of a packed tensor", "every second row", "head_dim not last")
VALUES = ("normal", "large", "tiny", "zero", "equal rows", "one large element", "infinite query")

problems = some.fixed_dictionaries(
    {
        "batch": some.integers(1, 3),
        "heads": some.sampled_from([(1, 1), (2, 2), (3, 1), (4, 2), (6, 3), (8, 1), (16, 2)]),
        "seqlen_q": some.integers(1, 700),
        "seqlen_k": some.integers(0, 700),
        "head_dim": some.sampled_from(range(8, 257, 8)),
        "dtype": some.sampled_from(sorted(DTYPES)),
        "causal": some.booleans(),
        "softmax_scale": some.sampled_from([None, None, 0.3, 1e-3, 0.0, -0.1]),
        "layouts": some.tuples(*[some.sampled_from(LAYOUTS)] * 3),
        "values": some.sampled_from(VALUES),
        "seed": some.integers(0, 2**31),
    }
)


def divided(tiles: int, seqlen_k: int, tile: overlap.Tile, num_sms: int) -> overlap.Split:
    "Whatever full rounds leave, in one to five parts, whether that is worth it or not."
    tail, parts = tiles % num_sms, 1 + seqlen_k % 5
    return overlap.Split(tiles - tail, parts) if tail and parts > 1 else overlap.Split(tiles, 1)


def laid_out(x, layout: str):
    "The same values, laid out differently in memory."
    if layout == "sequence first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "misaligned":
        return x.new_empty(*x.shape[:3], x.shape[3] + 1)[..., 1:].copy_(x)
    if layout == "a slice of a packed tensor":
        return x.new_empty(*x.shape[:2], x.shape[2], 3, x.shape[3])[:, :, :, 1].copy_(x)
    if layout == "every second row":
        return x.new_empty(*x.shape[:2], 2 * x.shape[2], x.shape[3])[:, :, ::2].copy_(x)
    if layout == "head_dim not last":
        return x.mT.contiguous().mT
    return x


def filled(q, k, v, values: str):
    "Change the values of unit-normal tensors; in fp16, products of q and k must not overflow in PyTorch's own way either."
    if values in ("large", "tiny"):
        q, k = (x * (8.0 if values == "large" else 1e-3) for x in (q, k))
    elif values == "zero":
        q, v = torch.zeros_like(q), v * 100
    elif values == "equal rows":
        k = k[:, :, :1].expand_as(k).clone()
    elif values == "one large element" and k.numel():
        k[:, :, -1, 0] = 60.0
    elif values == "infinite query":
        q[0, 0, 0, 0] = float("inf")
    return q, k, v


@pytest.mark.parametrize("function", FUNCTIONS)
def test_random_problems(function, monkeypatch):
    poisoned_outputs(monkeypatch)
    if function == "overlap, keys divided":
        monkeypatch.setattr(overlap, "choose_split", divided)
        monkeypatch.setattr(overlap, "_known", {})
    count = 0

    @hypothesis.settings(max_examples=500, deadline=None, database=None, print_blob=True)
    @hypothesis.given(problems)
    def right(p):
        nonlocal count
        count += 1
        heads, heads_k = p["heads"]
        size = dict(seqlen_k=p["seqlen_k"], num_heads_k=heads_k, dtype=DTYPES[p["dtype"]], device="cuda", seed=p["seed"])
        inputs = reference.attention_inputs(p["batch"], heads, p["seqlen_q"], p["head_dim"], **size)
        q, k, v = filled(*inputs, p["values"])
        given = [laid_out(x, layout) for x, layout in zip((q, k, v), p["layouts"], strict=True)]
        settings = dict(causal=p["causal"], softmax_scale=p["softmax_scale"])
        out, lse = FUNCTIONS[function](*given, **settings, return_lse=True)
        assert out.shape == q.shape and lse.shape == q.shape[:3]
        if p["values"] == "infinite query":  # its row may be anything; the others are compared
            out, lse, q = out.clone(), lse.clone(), q.clone()
            q[0, 0, 0], out[0, 0, 0], lse[0, 0, 0] = 0.0, 0.0, 0.0
            ref, ref_lse = reference.attention(q, k, v, **settings, return_lse=True)
            out[0, 0, 0], lse[0, 0, 0] = ref[0, 0, 0], ref_lse[0, 0, 0]
        reference.check_attention(out, q, k, v, lse=lse, **settings, unit_normal=p["values"] == "normal", name=function)

    right()
    assert count >= 500
