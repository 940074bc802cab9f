"""The reference against loops that spell out the definition, and the tolerance rule against planted errors."""

import json
import math

import pytest
import torch

from flashmoe_nb import reference
from flashmoe_nb.reference import (
    attention,
    attention_inputs,
    attention_pt,
    check_attention,
    check_moe,
    check_routing,
    dropped,
    experts,
    moe,
    moe_inputs,
    route,
    tolerance,
    visible_keys,
)

NAN, INF = math.nan, math.inf


def inputs(*args, **kwargs):
    return attention_inputs(*args, device="cpu", **kwargs)


def sees(i, j, seqlen_q, seqlen_k, causal, window):
    at = i + seqlen_k - seqlen_q
    left, right = window
    return (not causal or j <= at) and (left < 0 or j >= at - left) and (right < 0 or j <= at + right)


def attention_by_loops(q, k, v, causal=False, softmax_scale=None, window=(-1, -1), softcap=0.0):
    "The definition, one number at a time, in Python floats."
    (batch, num_heads, seqlen_q, head_dim), (num_heads_k, seqlen_k) = q.shape, k.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if softmax_scale is None else softmax_scale
    out = torch.zeros(batch, num_heads, seqlen_q, v.shape[3], dtype=torch.float64)
    lse = torch.full((batch, num_heads, seqlen_q), -INF, dtype=torch.float64)
    for b in range(batch):
        for h in range(num_heads):
            keys, values = (x[b, h * num_heads_k // num_heads].double() for x in (k, v))
            for i in range(seqlen_q):
                seen = [j for j in range(seqlen_k) if sees(i, j, seqlen_q, seqlen_k, causal, window)]
                scores = [scale * float(q[b, h, i].double() @ keys[j]) for j in seen]
                if softcap:
                    scores = [softcap * math.tanh(s / softcap) for s in scores]
                if seen:
                    top = max(scores)
                    lse[b, h, i] = top + math.log(sum(math.exp(s - top) for s in scores))
                for s, j in zip(scores, seen, strict=True):
                    out[b, h, i] += math.exp(s - lse[b, h, i].item()) * values[j]
    return out, lse


CASES = {
    "plain": dict(),
    "causal": dict(causal=True),
    "scale": dict(softmax_scale=0.7),
    "softcap": dict(softcap=1.5, causal=True),
    "window": dict(window=(2, 1)),
    "left only": dict(window=(3, -1)),
    "right only": dict(window=(-1, 2)),
    "diagonal": dict(window=(0, 0)),
    "causal window": dict(window=(2, -1), causal=True),
}


@pytest.mark.parametrize("lengths", [(6, 6), (3, 7), (7, 3), (1, 9), (5, 1)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_attention_is_its_definition(case, lengths):
    q, k, v = inputs(2, 4, lengths[0], 8, seqlen_k=lengths[1], num_heads_k=2)
    out, lse = attention(q, k, v, return_lse=True, **CASES[case])
    expected_out, expected_lse = attention_by_loops(q, k, v, **CASES[case])
    assert out.dtype == lse.dtype == torch.float64
    torch.testing.assert_close(out, expected_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_heads_k", [1, 2, 3, 6])
def test_grouped_heads_read_the_right_key_head(num_heads_k):
    q, k, v = inputs(2, 6, 5, 8, num_heads_k=num_heads_k)
    whole = [x.repeat_interleave(6 // num_heads_k, 1) for x in (k, v)]
    torch.testing.assert_close(attention(q, k, v), attention(q, *whole), rtol=1e-12, atol=0)


def test_agrees_with_pytorch():
    q, k, v = inputs(2, 3, 17, 16, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention(q, k, v, causal=True), expected)


def test_causal_sees_the_last_key_last():
    for seqlen_q, seqlen_k in ((4, 4), (2, 5), (5, 2), (1, 7)):
        visible = visible_keys(seqlen_q, seqlen_k, causal=True)
        assert visible.sum(1).tolist() == [max(0, i + 1 + seqlen_k - seqlen_q) for i in range(seqlen_q)]
    assert visible_keys(3, 3) is None and visible_keys(3, 3, window=(-1, -1)) is None
    whole = visible_keys(9, 7, causal=True, window=(3, 2))
    assert torch.equal(visible_keys(9, 7, causal=True, window=(3, 2), rows=slice(4, 8)), whole[4:8])
    with pytest.raises(ValueError, match="window"):
        visible_keys(3, 3, window=(-2, 0))


def test_blocks_of_rows_change_nothing(monkeypatch):
    q, k, v = inputs(2, 4, 23, 8, seqlen_k=19, num_heads_k=2)
    whole = attention(q, k, v, causal=True, window=(5, -1), return_lse=True)
    monkeypatch.setattr(reference, "SCORES_AT_ONCE", 2 * 4 * 19 * 3 + 1)  # three rows at a time, the last block ragged
    for got, expected in zip(attention(q, k, v, causal=True, window=(5, -1), return_lse=True), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


def test_rows_that_see_nothing():
    q, k, v = inputs(1, 2, 7, 8, seqlen_k=3)
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    assert (out[:, :, :4] == 0).all() and (lse[:, :, :4] == -INF).all()
    assert out[:, :, 4:].all() and lse[:, :, 4:].isfinite().all()
    assert (attention_pt(q, k, v, causal=True)[:, :, :4] == 0).all()


@pytest.mark.parametrize("lengths", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_empty_sequences(lengths):
    q, k, v = inputs(1, 2, lengths[0], 8, seqlen_k=lengths[1])
    out, lse = attention(q, k, v, return_lse=True)
    assert out.shape == (1, 2, lengths[0], 8) and not out.any() and (lse == -INF).all()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_value_in_q_stays_in_its_row(bad):
    q, k, v = inputs(2, 2, 6, 8)
    clean = attention(q, k, v, causal=True)
    q[1, 0, 3, 2] = bad
    out = attention(q, k, v, causal=True)
    keep = torch.ones(2, 2, 6, dtype=torch.bool)
    keep[1, 0, 3] = False
    assert torch.equal(out[keep], clean[keep])
    signs = (bad * k[1, 0, :4, 2]).sign()  # of the scores of row 3
    if math.isnan(bad) or signs.max() > 0:
        assert out[1, 0, 3].isnan().all()
    else:  # every score is -inf: as if no key were visible
        assert (out[1, 0, 3] == 0).all()


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_value_in_k_or_v_reaches_the_rows_that_see_it(which, bad):
    q, k, v = inputs(2, 4, 6, 8, num_heads_k=2)
    clean = attention(q, k, v, causal=True)
    (k if which == "k" else v)[1, 1, 2, 5] = bad
    out = attention(q, k, v, causal=True)
    untouched = torch.ones(2, 4, 6, dtype=torch.bool)
    untouched[1, 2:, 2:] = False  # kv head 1 serves query heads 2 and 3; causal rows from 2 on see key 2
    assert torch.equal(out[untouched], clean[untouched])
    if which == "v":
        assert (out[1, 2:, 2:, :5].isfinite()).all() and not out[1, 2:, 2:, 5].isfinite().any()
        assert out[1, 2, 3, 5].isnan() if math.isnan(bad) else out[1, 2, 3, 5] == bad
    elif math.isnan(bad):
        assert out[1, 2:, 2:].isnan().all()


def test_infinities_of_both_signs_in_v_make_nan():
    q, k, v = inputs(1, 1, 4, 8)
    v[0, 0, 0, 0], v[0, 0, 2, 0] = INF, -INF
    column = attention(q, k, v, causal=True)[0, 0, :, 0]
    assert column[:2].tolist() == [INF, INF] and column[2:].isnan().all()


def test_large_scores_do_not_overflow():
    q, k, v = (1000 * x.double() for x in inputs(1, 1, 5, 8))
    out, lse = attention(q, k, v, return_lse=True)
    assert out.isfinite().all() and lse.isfinite().all() and lse.max() > 1e5


def test_gradients():
    q, k, v = inputs(1, 2, 4, 4, seqlen_k=3, num_heads_k=1, dtype=torch.float64)
    q, k, v = (x.requires_grad_() for x in (q, k, v))

    def function(q, k, v):
        out, lse = attention(q, k, v, causal=True, window=(1, -1), softcap=2.0, return_lse=True)
        return out, lse[:, :, 1:]  # the first row sees nothing: its lse is constant -inf

    assert torch.autograd.gradcheck(function, (q, k, v))
    attention(q, k, v, causal=True).sum().backward()
    assert q.grad.isfinite().all() and (q.grad[:, :, 0] == 0).all()


@pytest.mark.parametrize(
    ("shapes", "argument"),
    [
        (((2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), "q"),
        (((1, 2, 4, 8), (1, 2, 4, 16), (1, 2, 4, 16)), "k"),
        (((1, 3, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), "k"),
        (((2, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), "k"),
        (((1, 2, 4, 8), (1, 0, 4, 8), (1, 0, 4, 8)), "k"),
        (((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 5, 8)), "v"),
    ],
)
def test_shapes_that_do_not_fit(shapes, argument):
    with pytest.raises(ValueError, match=f"^{argument}:"):
        attention(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match=f"^{argument}:"):
        attention_pt(*(torch.zeros(shape) for shape in shapes))


def test_pt_rounds_every_operation():
    q, k, v = inputs(1, 1, 9, 8)
    scores = (q @ k.mT) * 8**-0.5
    assert torch.equal(attention_pt(q, k, v), scores.softmax(-1) @ v) and scores.dtype == torch.bfloat16


def test_inputs_are_reproducible_and_small_integers_are_exact():
    again = [inputs(1, 2, 64, 32, seed=seed, integers=True) for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(again[0], again[1], strict=True))
    assert not torch.equal(again[0][0], again[2][0])
    q, k, _ = again[0]
    assert set(q.unique().tolist()) == {-2, -1, 0, 1, 2}
    assert torch.equal((q.float() @ k.float().mT).double(), q.double() @ k.double().mT)
    unit = torch.cat([x.float().flatten() for x in inputs(2, 2, 64, 32)])
    assert abs(unit.mean()) < 0.02 and abs(unit.std() - 1) < 0.02


# The tolerance rule


def test_tolerance_by_hand():
    ref = torch.tensor([1.0, 2.0, INF, NAN, 1.001], dtype=torch.float64)
    pt = torch.tensor([1.25, 2.0, 0.0, 1.0, 1.001], dtype=torch.float64)
    assert tolerance(ref, pt, torch.float64) == 0.5
    rounding = abs(torch.tensor(1.001).bfloat16().item() - 1.001)
    assert tolerance(ref, pt, torch.bfloat16) == pytest.approx(0.5 + 2 * rounding)
    assert tolerance(ref[:0], pt[:0], torch.bfloat16) == 0


@pytest.fixture
def problem():
    q, k, v = inputs(2, 4, 70, 32, num_heads_k=2)
    out, lse = attention(q, k, v, causal=True, return_lse=True, dtype=torch.float32)
    return dict(q=q, k=k, v=v, out=out.bfloat16(), lse=lse)


def judge(problem, **changes):
    given = problem | changes
    arguments = [given.pop(name) for name in ("out", "q", "k", "v")]
    return check_attention(*arguments, **{"causal": True, "backend": "cpu"} | given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [(1, 1), (70, 70), (3, 129)], ids=str)
def test_rounding_passes(dtype, lengths):
    q, k, v = inputs(1, 2, lengths[0], 64, seqlen_k=lengths[1], dtype=dtype)
    out, lse = attention(q, k, v, causal=True, return_lse=True, dtype=torch.float32)
    check = check_attention(out.to(dtype), q, k, v, lse=lse, causal=True)
    assert check.passed and 0 <= check.error <= check.tolerance and check.lse_error <= check.lse_tolerance
    assert check_attention(attention_pt(q, k, v, causal=True), q, k, v, causal=True, unit_normal=False).passed


def test_weights_rounded_to_bf16_pass():
    "What a tensor-core kernel does: exact scores, P rounded to bf16, float32 sums."
    q, k, v = inputs(1, 2, 128, 64)
    weights = (q.float() @ k.float().mT * 64**-0.5).softmax(-1).bfloat16()
    check_attention((weights.float() @ v.float()).bfloat16(), q, k, v)


def one_wrong(problem, amount, index=(1, 2, 33, 7)):
    out = problem["out"].clone()
    out[index] += amount
    return out


@pytest.mark.parametrize("index", [(0, 0, 0, 0), (1, 2, 33, 7), (1, 3, 69, 31)], ids=str)
def test_one_wrong_value_is_found_and_named(problem, index):
    with pytest.raises(AssertionError) as failure:
        judge(problem, out=one_wrong(problem, 0.25, index))
    assert f"1 of {problem['out'].numel()} output values are wrong" in str(failure.value)
    assert str(list(index)) in str(failure.value)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_value_that_is_not_finite_is_found(problem, bad):
    check = judge(problem, out=one_wrong(problem, bad), raises=False)
    assert not check.passed and check.error == INF and "1 of them not finite" in check.fault
    lse = problem["lse"].clone()
    lse[0, 1, 2] = bad
    assert "lse values are wrong" in judge(problem, lse=lse, raises=False).fault


def test_lse_off_by_a_little_is_found(problem):
    judge(problem, lse=problem["lse"] + 1e-6)
    for wrong in (problem["lse"] + 1e-3, problem["lse"] / math.log(2), -problem["lse"]):
        with pytest.raises(AssertionError, match="lse values are wrong"):
            judge(problem, lse=wrong)


@pytest.mark.parametrize(
    "settings", [dict(causal=False), dict(softmax_scale=0.2), dict(window=(60, 0)), dict(softcap=2.0)], ids=str
)
def test_other_settings_are_found(problem, settings):
    with pytest.raises(AssertionError, match="output values are wrong"):
        judge(problem, **settings)


def test_a_forgotten_key_is_found():
    q, k, v = inputs(1, 1, 64, 64, seqlen_k=512)
    out, lse = attention(q, k[:, :, :-1], v[:, :, :-1], return_lse=True)
    fault = check_attention(out.bfloat16(), q, k, v, lse=lse, raises=False).fault
    assert "output values" in fault and "lse values" in fault


def test_the_rule_of_the_founding_documents_is_the_tighter_one_for_few_keys(problem):
    allowed = judge(problem).tolerance
    assert allowed > 0.015
    off = one_wrong(problem, 0.013, (1, 2, 60, 7))  # late rows have small values: an error of 0.013 is within pt's
    assert abs(problem["out"][1, 2, 60, 7]) < 0.5
    assert judge(problem, out=off, unit_normal=False).passed
    assert not judge(problem, out=off, raises=False).passed


def test_rows_that_see_nothing_are_checked():
    q, k, v = inputs(1, 1, 6, 8, seqlen_k=4)
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    out = out.bfloat16()
    check_attention(out, q, k, v, lse=lse, causal=True)
    for bad_out, bad_lse in ((0.5, -INF), (NAN, -INF), (0.0, 0.0), (0.0, NAN), (0.0, INF)):
        wrong_out, wrong_lse = out.clone(), lse.clone()
        wrong_out[0, 0, 1], wrong_lse[0, 0, 1] = bad_out, bad_lse
        with pytest.raises(AssertionError):
            check_attention(wrong_out, q, k, v, lse=wrong_lse, causal=True)


def test_nan_is_required_where_the_reference_has_it(problem):
    q = problem["q"].clone()
    q[0, 1, 5, 0] = NAN
    out, lse = attention(q, problem["k"], problem["v"], causal=True, return_lse=True)
    judge(problem, q=q, out=out.bfloat16(), lse=lse)
    with pytest.raises(AssertionError, match=r"worst at \[0, 1, 5, "):
        judge(problem, q=q)  # a finite row where the input was NaN
    leaked = out.clone()
    leaked[0, 1, 6] = NAN  # the next row caught it
    with pytest.raises(AssertionError, match="32 of them not finite"):
        judge(problem, q=q, out=leaked.bfloat16(), lse=lse)


def test_nan_in_v_may_spread_as_far_as_pytorch_spreads_it(problem):
    v = problem["v"].clone()
    v[1, 0, 40, 3] = NAN
    q, k = problem["q"], problem["k"]
    exact, pt = attention(q, k, v, causal=True).bfloat16(), attention_pt(q, k, v, causal=True)
    assert pt[1, 0, 0, 3].isnan() and not exact[1, 0, 0, 3].isnan()
    judge(problem, v=v, out=exact)
    spread = torch.where(pt.isnan(), pt, exact)
    judge(problem, v=v, out=spread)
    for index in ((0, 0, 50, 3), (1, 2, 50, 3), (1, 0, 50, 4)):  # another batch, another key head, another column
        too_far = spread.clone()
        too_far[index] = NAN
        with pytest.raises(AssertionError, match="1 of them not finite"):
            judge(problem, v=v, out=too_far)
    with pytest.raises(AssertionError):
        judge(problem, v=v, out=problem["out"])  # finite where the NaN is seen


@pytest.mark.parametrize("settings", [dict(), dict(causal=True)], ids=str)
def test_infinities_must_be_equal(settings):
    q, k, v = inputs(1, 1, 4, 8)
    v[0, 0, 1, 2] = INF
    out = attention(q, k, v, **settings).bfloat16()
    check_attention(out, q, k, v, **settings)
    flipped = out.clone()
    flipped[0, 0, 3, 2] = -INF
    with pytest.raises(AssertionError):
        check_attention(flipped.where(flipped != -INF, torch.tensor(5.0).bfloat16()), q, k, v, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: dict(out=p["out"][:, :, :-1]), "out has shape"),
        (lambda p: dict(out=p["out"].half()), "out has dtype"),
        (lambda p: dict(out=None), "out is no tensor but NoneType"),
        (lambda p: dict(lse=p["lse"][..., None]), "lse has shape"),
        (lambda p: dict(lse=p["lse"].bfloat16()), "lse has dtype"),
        (lambda p: dict(out=p["out"].to("meta")), "out is on meta"),
    ],
)
def test_the_form_of_a_result_is_checked(problem, change, message):
    with pytest.raises(AssertionError, match=message):
        judge(problem, raises=False, **change(problem))


def test_what_a_check_shows(problem):
    check = judge(problem, name="a <kernel>")
    assert check.shapes == "B=2 H=4/2 S=70 D=32 bf16 causal" and check.backend == "cpu"
    bundle = check._repr_mimebundle_()
    record = bundle["application/vnd.flashmoe.check+json"]
    assert record == dict(name="a <kernel>", backend="cpu", shapes=check.shapes, error=check.error,
                          tolerance=check.tolerance, passed=True)
    assert "a &lt;kernel&gt;" in bundle["text/html"] and "right" in bundle["text/plain"]
    wrong = judge(problem, out=one_wrong(problem, NAN), raises=False)._repr_mimebundle_()
    assert json.loads(json.dumps(wrong, allow_nan=False))["application/vnd.flashmoe.check+json"]["passed"] is False
    assert check_attention(problem["out"], problem["q"], problem["k"], problem["v"], causal=True).backend == "emulator"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_judge_is_the_same_on_a_gpu(dtype):
    q, k, v = inputs(2, 4, 300, 64, seqlen_k=333, num_heads_k=2, dtype=dtype)
    on_gpu = [x.cuda() for x in (q, k, v)]
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    gpu_out, gpu_lse = attention(*on_gpu, causal=True, return_lse=True)
    torch.testing.assert_close(gpu_out.cpu(), out)
    torch.testing.assert_close(gpu_lse.cpu(), lse)
    whole = [x.repeat_interleave(2, 1) for x in on_gpu[1:]]
    fused = torch.nn.functional.scaled_dot_product_attention(on_gpu[0], *whole)
    check = check_attention(fused, *on_gpu)
    assert check.passed and check.backend == "cuda"
    fused[1, 3, 299, 63] += 0.1
    with pytest.raises(AssertionError, match=r"worst at \[1, 3, 299, 63\]"):
        check_attention(fused, *on_gpu)
    tokens, w_gate_up, w_down, logits = moe_inputs(40, 8, 64, 96, dtype=dtype, device="cuda")
    weights, ids = route(logits, 2, dtype=torch.float32)
    check_routing(weights, ids, logits)
    arguments = (tokens, w_gate_up, w_down, weights, ids)
    assert check_moe(experts(*arguments, dtype=torch.float32).to(dtype), *arguments).backend == "cuda"


@pytest.mark.gpu
def test_ties_go_to_the_lower_id_on_a_gpu():
    logits = torch.randint(0, 3, (500, 256), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(route(logits.cuda(), 8)[1].cpu(), route(logits, 8)[1])


# Mixture-of-Experts


def moe_by_loops(tokens, w_gate_up, w_down, topk_weights, topk_ids):
    x, up_rows, inter = tokens.double(), w_gate_up.double(), w_down.shape[2]
    out = torch.zeros_like(x)
    for t, row in enumerate(topk_ids.tolist()):
        for slot, e in enumerate(row):
            hidden = []
            for i in range(inter):
                gate, up = float(up_rows[e, i] @ x[t]), float(up_rows[e, inter + i] @ x[t])
                hidden.append(gate / (1 + math.exp(-gate)) * up)
            out[t] += topk_weights[t, slot].double() * (w_down[e].double() @ torch.tensor(hidden).double())
    return out


def route_by_loops(logits, top_k, scoring, renormalize):
    weights, ids = [], []
    for row in logits.double().tolist():
        chosen = sorted(range(len(row)), key=lambda e: (-row[e], e))[:top_k]
        score = [math.exp(z) / sum(math.exp(y) for y in row) if scoring == "softmax" else 1 / (1 + math.exp(-z))
                 for z in row]
        total = sum(score[e] for e in chosen) if renormalize else 1.0
        ids.append(chosen)
        weights.append([score[e] / total for e in chosen])
    return torch.tensor(weights).double(), torch.tensor(ids).int()


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_moe_is_its_definition(scoring, renormalize, top_k):
    tokens, w_gate_up, w_down, logits = moe_inputs(7, 5, 6, 4, device="cpu")
    weights, ids = route(logits, top_k, scoring=scoring, renormalize=renormalize)
    expected_weights, expected_ids = route_by_loops(logits, top_k, scoring, renormalize)
    assert torch.equal(ids, expected_ids) and ids.dtype == torch.int32
    torch.testing.assert_close(weights, expected_weights)
    expected = moe_by_loops(tokens, w_gate_up, w_down, weights, ids)
    torch.testing.assert_close(experts(tokens, w_gate_up, w_down, weights, ids), expected)
    whole = moe(tokens, w_gate_up, w_down, logits, top_k, scoring=scoring, renormalize=renormalize)
    torch.testing.assert_close(whole, expected)


def test_ties_go_to_the_lower_id():
    weights, ids = route(torch.zeros(3, 200), 8)
    assert (ids == torch.arange(8)).all() and (weights == 1 / 8).all()
    logits = torch.randint(0, 3, (50, 64), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(route(logits, 6)[1], route_by_loops(logits, 6, "softmax", True)[1])


def test_nan_logits_give_valid_ids_and_stay_in_their_token():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    clean = route(logits, 2)
    logits[1, 4] = NAN
    weights, ids = route(logits, 2)
    assert torch.equal(weights[[0, 2]], clean[0][[0, 2]]) and weights[1].isnan().all() and 4 not in ids[1]
    weights, ids = route(torch.full((1, 4), NAN), 3)
    assert ids.tolist() == [[0, 1, 2]] and weights.isnan().all()
    weights, ids = route(logits, 2, scoring="sigmoid")
    assert weights.isfinite().all()  # a sigmoid looks at one logit, and the NaN was not chosen


@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_values_stay_with_their_token_and_their_expert(bad):
    tokens, w_gate_up, w_down, logits = moe_inputs(9, 4, 6, 4, device="cpu")
    routing = route(logits, 2)
    clean = experts(tokens, w_gate_up, w_down, *routing)
    tokens[3, 1] = bad
    out = experts(tokens, w_gate_up, w_down, *routing)
    others = torch.arange(9) != 3
    assert torch.equal(out[others], clean[others]) and not out[3].isfinite().any()
    tokens[3, 1] = 0.5
    w_down[2, 0, 0] = bad
    out = experts(tokens, w_gate_up, w_down, *routing)
    routed = (routing[1] == 2).any(-1)
    assert not out[routed, 0].isfinite().any() and out[~routed].isfinite().all() and 0 < routed.sum() < 9


def test_moe_gradients():
    tokens, w_gate_up, w_down, _ = (x.double().requires_grad_() for x in moe_inputs(3, 3, 4, 2, device="cpu"))
    weights, ids = route(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)), 2)
    arguments = (tokens, w_gate_up, w_down, weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda *x: experts(*x, ids), arguments)


def test_moe_rejects_what_does_not_fit():
    tokens, w_gate_up, w_down, logits = moe_inputs(3, 4, 6, 5, device="cpu")
    weights, ids = route(logits, 2)
    for arguments, name in (
        ((tokens[:, :5], w_gate_up, w_down, weights, ids), "tokens"),
        ((tokens, w_gate_up[:, :9], w_down, weights, ids), "w_gate_up"),
        ((tokens, w_gate_up, w_down, weights[:2], ids), "topk_ids"),
    ):
        with pytest.raises(ValueError, match=name):
            experts(*arguments)
    for top_k in (0, 5):
        with pytest.raises(ValueError, match="top_k"):
            route(logits, top_k)
    with pytest.raises(ValueError, match="scoring"):
        route(logits, 2, scoring="topk")


def test_moe_without_tokens():
    tokens, w_gate_up, w_down, logits = moe_inputs(0, 4, 6, 5, device="cpu")
    assert moe(tokens, w_gate_up, w_down, logits).shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_check_moe(dtype):
    tokens, w_gate_up, w_down, logits = moe_inputs(40, 8, 64, 96, dtype=dtype, device="cpu")
    weights, ids = route(logits, 2, dtype=torch.float32)
    arguments = (tokens, w_gate_up, w_down, weights, ids)
    out = experts(*arguments, dtype=torch.float32).to(dtype)
    check = check_moe(out, *arguments)
    assert check.passed and check.shapes.startswith("T=40 E=8 k=2 h=64 i=96")
    off = out.clone()
    off[17, 3] += 0.125
    planted = {
        "one value": off,
        "an expert left out": experts(*arguments[:3], weights * (ids != 3), ids).to(dtype),
        "up rows first": experts(tokens, w_gate_up.roll(96, 1), w_down, weights, ids).to(dtype),
        "weights swapped": experts(*arguments[:3], weights.flip(1), ids).to(dtype),
        "not renormalised": moe(*arguments[:3], logits, renormalize=False).to(dtype),
        "nan": out.where(out != out[5, 5], NAN),
    }
    for bug, wrong in planted.items():
        with pytest.raises(AssertionError, match="output values are wrong"):
            check_moe(wrong, *arguments)
            pytest.fail(bug)


def test_a_nan_token_is_checked():
    tokens, w_gate_up, w_down, logits = moe_inputs(9, 4, 8, 4, device="cpu")
    tokens[3, 1], logits[5, 0] = NAN, NAN
    weights, ids = route(logits, 2)
    check_routing(weights, ids, logits)
    with pytest.raises(AssertionError, match=r"worst at \[5, 0\]"):
        check_routing(weights.nan_to_num(0.5), ids, logits)
    arguments = (tokens, w_gate_up, w_down, weights, ids)
    out = experts(*arguments).bfloat16()
    assert out[[3, 5]].isnan().all()
    check_moe(out, *arguments)
    for wrong in (out.nan_to_num(0.0), out.where(torch.arange(9)[:, None] != 4, NAN)):
        with pytest.raises(AssertionError, match="values are wrong"):
            check_moe(wrong, *arguments)


def test_nan_in_k_is_required_in_the_lse(problem):
    k = problem["k"].clone()
    k[0, 0, 60] = NAN
    out, lse = attention(problem["q"], k, problem["v"], causal=True, return_lse=True)
    assert lse[0, :2, 60:].isnan().all() and lse.isnan().sum() == 2 * 10
    judge(problem, k=k, out=out.bfloat16(), lse=lse)
    with pytest.raises(AssertionError, match="20 of 560 lse values are wrong"):
        judge(problem, k=k, out=out.bfloat16(), lse=problem["lse"])


def test_check_routing():
    logits = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    weights, ids = route(logits, 4, dtype=torch.float32)
    check_routing(weights, ids, logits)
    check_routing(weights, ids.long(), logits)
    off, other = weights.clone(), ids.clone()
    off[3, 1] += 1e-4
    other[7, 3] = (other[7].max() + 1) % 16
    with pytest.raises(AssertionError, match=r"1 of 160 weight values are wrong; worst at \[3, 1\]"):
        check_routing(off, ids, logits)
    with pytest.raises(AssertionError, match=r"1 of 160 id values are wrong; worst at \[7, 3\]"):
        check_routing(weights, other, logits)
    with pytest.raises(AssertionError, match="topk_ids has dtype"):
        check_routing(weights, ids.float(), logits)
    with pytest.raises(AssertionError, match="weight values"):
        check_routing(weights, ids, logits, renormalize=False)


def test_options_of_the_experts_against_a_loop_over_choices():
    "Biases, a shared expert, capacity, weights applied before: one choice at a time; ids that name no expert add nothing."
    x, w1, w2, logits = moe_inputs(12, 4, 16, 8, device="cpu")
    weights, ids = route(logits, 2)
    ids[0, 0], ids[1, 1], ids[2] = -1, 4, ids[3]
    b1, b2 = torch.randn(4, 16), torch.randn(4, 16)
    shared = (torch.randn(24, 16), torch.randn(16, 12))

    def swiglu(row, up, down, bias_up=0.0, bias_down=0.0):
        gate, value = (up.double() @ row + bias_up).chunk(2)
        return down.double() @ (torch.nn.functional.silu(gate) * value) + bias_down

    for before in (False, True):
        expected, taken = torch.zeros(12, 16, dtype=torch.float64), [0] * 4
        for token, row in enumerate(x):
            expected[token] = swiglu(row.double(), *shared)
            for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
                if not 0 <= expert < 4:
                    continue
                taken[expert] += 1
                if taken[expert] > 3:
                    continue
                given = (row.double() * weight).to(x.dtype).double() if before else row.double()
                y = swiglu(given, w1[expert], w2[expert], b1[expert].double(), b2[expert].double())
                expected[token] += y if before else weight * y
        options = dict(b_gate_up=b1, b_down=b2, shared=shared, capacity=3, weigh_inputs=before)
        torch.testing.assert_close(experts(x, w1, w2, weights, ids, **options), expected, rtol=1e-12, atol=1e-12)
        assert dropped(ids, 4, 3).tolist() == [max(0, n - 3) for n in taken] and not dropped(ids, 4, None).any()
    assert max(taken) > 3
