"""The public operations: what they promise on either device, whichever step they run."""

import pytest
import torch

from flashmoe_nb import flash_attention_science, flash_attn_func, fused_experts, fused_moe, ops, reference
from flashmoe_nb.attention.cp_async import cp_async
from flashmoe_nb.attention.overlap import overlap
from flashmoe_nb.moe.routing import routing

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
each_device = pytest.mark.parametrize("device", DEVICES)


def layer(num_tokens=33, device="cpu", top_k=2, seed=0, dtype=torch.bfloat16):
    tokens, w_gate_up, w_down, logits = reference.moe_inputs(num_tokens, 4, 64, 96, dtype=dtype, device=device, seed=seed)
    return tokens, w_gate_up, w_down, logits, *reference.route(logits, top_k, dtype=torch.float32)


def backend(device):
    return None if device == "cuda" else "cpu"


@each_device
def test_attention_of_a_packed_projection(device):
    "q, k and v are slices of one tensor, as a model's projection gives them; the output is contiguous in its layout."
    packed = torch.randn(2, 70, 3, 4, 64, device=device).bfloat16()
    q, k, v = packed.unbind(2)
    out, lse, _ = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert out.shape == q.shape and out.view(2, 70, -1).shape == (2, 70, 256)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    reference.check_attention(out.transpose(1, 2), *heads_first, lse=lse, causal=True, backend=backend(device))
    assert torch.equal(flash_attention_science(*heads_first, causal=True), out.transpose(1, 2))


@each_device
@pytest.mark.parametrize("step", (overlap, cp_async))
def test_an_output_is_laid_out_as_q_even_where_q_is_copied(step, device):
    "Rows that start between multiples of 16 bytes are copied; a caller's `view(batch, seq_len, -1)` must not notice."
    between = torch.randn(2, 20, 4 * 64 + 3, device=device).bfloat16()[:, :, 3:].unflatten(2, (4, 64)).transpose(1, 2)
    for q in (between, between[:1].expand(2, -1, -1, -1)):     # and a batch of one, expanded, which no tensor map can describe
        out = step(q, q, q)
        assert out.transpose(1, 2).is_contiguous()
        reference.check_attention(out, q, q, q)


@each_device
@pytest.mark.parametrize("causal", (None, 1, "yes", torch.ones(7, 7).bool()), ids=repr)
def test_causal_is_no_mask(device, causal):
    "A mask where `scaled_dot_product_attention` has one, fourth, is refused and not taken for a yes."
    q = torch.randn(1, 2, 7, 64, device=device).bfloat16()
    with pytest.raises(TypeError, match="causal must be True or False"):
        flash_attention_science(q, q, q, causal)


@each_device
def test_experts_and_the_whole_layer(device):
    tokens, w_gate_up, w_down, logits, weights, ids = layer(device=device)
    out = fused_moe(tokens, (w_gate_up, w_down), logits)
    reference.check_moe(out, tokens, w_gate_up, w_down, weights, ids, backend=backend(device))
    out = fused_experts(tokens, w_gate_up, w_down, weights, ids)
    reference.check_moe(out, tokens, w_gate_up, w_down, weights, ids, backend=backend(device))


@each_device
def test_options_reach_the_experts(device):
    tokens, w_gate_up, w_down, logits, weights, ids = layer(device=device)
    options = dict(b_gate_up=torch.randn(4, 192, device=device).bfloat16(), b_down=torch.randn(4, 64, device=device).bfloat16(),
                   shared=(w_gate_up[0], w_down[0]), capacity=9)  # fmt: skip
    out, dropped = fused_moe(tokens, (w_gate_up, w_down), logits, **options, return_dropped=True)
    expected = reference.experts(tokens, w_gate_up, w_down, weights, ids, **options)
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.05)
    assert torch.equal(dropped, reference.dropped(ids, 4, 9)) and dropped.any()
    bias = torch.tensor([0.0, 5.0, 0.0, 0.0], device=device)
    favoured = fused_moe(tokens, (w_gate_up, w_down), logits, 1, routing_options=dict(bias=bias))
    only = torch.ones_like(ids[:, :1])
    reference.check_moe(favoured, tokens, w_gate_up, w_down, only.float(), only, backend=backend(device))


@each_device
@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda x, w, r: (x, w[0], r), TypeError, "pair"),
        (lambda x, w, r: (x, w, r[:, :3]), ValueError, "routing_weights"),
        (lambda x, w, r: (x, w, r[:5]), ValueError, "routing_weights"),
        (lambda x, w, r: (x, w, r.to("meta")), ValueError, "routing_weights is on meta"),
        (lambda x, w, r: (x, (w[0], w[1].float()), r), ValueError, "w_down"),
        (lambda x, w, r: (x.double(), w, r), ValueError, "tokens"),
        (lambda x, w, r: (x, w, r, 5), ValueError, "top_k"),
    ],
)
def test_what_a_layer_refuses(device, wrong, error, text):
    tokens, w_gate_up, w_down, logits, *_ = layer(device=device)
    with pytest.raises(error, match=text):
        fused_moe(*wrong(tokens, (w_gate_up, w_down), logits))


def test_gradients_flow_on_the_cpu():
    tokens, w_gate_up, w_down, logits, *_ = layer()
    tokens.requires_grad_()
    fused_moe(tokens, (w_gate_up, w_down), logits).float().sum().backward()
    assert tokens.grad.any()


@each_device
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(scoring="sigmoid", renormalize=False),
        dict(routing_options=dict(n_group=4, topk_group=2, scaling=2.5), scoring="sigmoid"),
        dict(routing_options=dict(bias=True, n_group=2, topk_group=1, group_best=1)),
        dict(routing_options=dict(bias=True), renormalize=False),
    ],
)
def test_routing_on_the_cpu_is_that_of_the_kernel(device, options):
    "Ties, infinities and NaN included. On a GPU the layer itself routes: with experts that return their number's share."
    logits = torch.randn(40, 12).mul_(2).round_().div_(2)
    logits[1, 3], logits[2, :], logits[3, 5:], logits[4] = float("nan"), -float("inf"), float("inf"), 0.0
    more = dict(options.get("routing_options", {}))
    if more.get("bias"): more["bias"] = torch.randn(12).mul_(2).round_().div_(2)
    more |= {name: x for name, x in options.items() if name != "routing_options"}
    expected = reference.route(logits, 3, **more, dtype=torch.float32)
    found = routing(logits.to(device), 3, **{name: x.to(device) if name == "bias" else x for name, x in more.items()})
    assert torch.equal(found[1].cpu(), expected[1])
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("routing_options", (None, dict(bias=torch.zeros(4), n_group=2, topk_group=1, scaling=2.0)))
def test_gradients_reach_the_router(routing_options):
    "Through the weights of the chosen experts, whichever way they are chosen; compared with a difference quotient."
    tokens, w_gate_up, w_down, *_ = layer()
    logits = torch.stack([torch.randperm(4) for _ in tokens]).float().requires_grad_()     # far enough apart to stay chosen
    pair, direction, how = (w_gate_up, w_down), torch.randn(33, 4), routing_options or {}

    def total(x):
        return float(reference.experts(tokens, *pair, *reference.route(x, 2, **how, dtype=torch.float32)).sum())

    fused_moe(tokens, pair, logits, routing_options=routing_options).double().sum().backward()
    quotient = (total(logits.detach() + 0.01 * direction) - total(logits.detach() - 0.01 * direction)) / 0.02
    parts = logits.grad * direction
    assert parts.any() and abs(float(parts.sum()) - quotient) < 0.01 * float(parts.abs().sum())


@pytest.mark.gpu
@pytest.mark.parametrize("which", ("tokens", "w_gate_up", "w_down", "logits", "shared", "b_down"))
def test_gradients_are_refused_on_a_gpu(which):
    "Whatever wants a gradient, the tokens or a weight: none is dropped in silence."
    tokens, w_gate_up, w_down, logits, weights, ids = layer(device="cuda")
    shared, b_down = [w_gate_up[0].clone(), w_down[0].clone()], torch.zeros(4, 64, device="cuda", dtype=tokens.dtype)
    dict(tokens=tokens, w_gate_up=w_gate_up, w_down=w_down, logits=logits, shared=shared[1], b_down=b_down)[which].requires_grad_()
    calls = [lambda: fused_moe(tokens, (w_gate_up, w_down), logits, shared=shared, b_down=b_down)]
    if which != "logits":
        calls.append(lambda: fused_experts(tokens, w_gate_up, w_down, weights, ids, shared=shared, b_down=b_down))
    for call in calls:
        with pytest.raises(NotImplementedError, match="no backward"):
            call()
        for without in (torch.no_grad, torch.inference_mode):
            with without():
                assert call().isfinite().all()


@each_device
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (dict(shared=torch.zeros(8, 8)), TypeError, "shared must be a pair"),
        (dict(shared=(1, 2)), (TypeError, ValueError), "shared"),
        (dict(capacity=2.0), TypeError, "capacity"),
        (dict(capacity=-1), ValueError, "capacity"),
        (dict(b_down=torch.zeros(3)), ValueError, "b_down"),
        (dict(routing_options=dict(balance_loss=True)), TypeError, "routing_options"),
        (dict(routing_options=dict(groups=2)), TypeError, "routing_options"),
    ],
)
def test_what_options_are_refused(device, options, error, text):
    tokens, w_gate_up, w_down, logits, *_ = layer(device=device)
    with pytest.raises(error, match=text):
        fused_moe(tokens, (w_gate_up, w_down), logits, **options)


@each_device
def test_strides_of_a_caller(device):
    "Tokens and routing that are views are copied; weights are too large to be copied unasked."
    tokens, w_gate_up, w_down, _, weights, ids = layer(device=device)
    expected = fused_experts(tokens, w_gate_up, w_down, weights, ids)
    views = torch.cat([tokens, tokens], 1)[:, :64], w_gate_up, w_down, weights.mT.contiguous().mT, ids.mT.contiguous().mT
    assert torch.equal(fused_experts(*views), expected)
    with pytest.raises(ValueError, match="w_gate_up must be contiguous"):
        fused_experts(tokens, w_gate_up.mT.contiguous().mT, w_down, weights, ids)


@each_device
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_no_token_and_autocast(device, dtype):
    "An empty batch gives an empty batch; autocast does not convert what the operations take, and refuses nothing they take."
    tokens, w_gate_up, w_down, logits, *_ = layer(device=device, dtype=dtype)
    assert fused_moe(tokens[:0], (w_gate_up, w_down), logits[:0]).shape == (0, 64)
    expected = fused_moe(tokens, (w_gate_up, w_down), logits)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(fused_moe(tokens, (w_gate_up, w_down), logits), expected)
        with pytest.raises(ValueError, match="bfloat16 or torch.float16"):
            fused_moe(tokens.float(), (w_gate_up.float(), w_down.float()), logits)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("current", (0, 1))
def test_tensors_of_another_gpu(current):
    "The tensors say where a call runs, whichever device is current, and that stays current; two devices are refused."
    inputs = layer(device="cuda:0")
    q = torch.randn(1, 2, 100, 64, device="cuda:0").bfloat16()
    expected = fused_moe(inputs[0], inputs[1:3], inputs[3], shared=(inputs[1][0], inputs[2][0])), flash_attention_science(q, q, q)
    for _ in range(3):  # the first call prepares and records, later ones repeat
        for device in ("cuda:1", "cuda:0"):
            x, w1, w2, logits, weights, ids = (t.to(device) for t in inputs)
            there = q.to(device)
            with torch.cuda.device(current):
                out = fused_moe(x, (w1, w2), logits, shared=(w1[0], w2[0])), flash_attention_science(there, there, there)
                plain = fused_experts(x, w1, w2, weights, ids)
                assert torch.cuda.current_device() == current
            assert all(torch.equal(o.cpu(), e.cpu()) and o.device == x.device for o, e in zip(out, expected, strict=True))
            assert torch.equal(plain.cpu(), fused_experts(*inputs[:3], *inputs[4:]).cpu())
            other = "cuda:0" if device == "cuda:1" else "cuda:1"
            for mixed in ((x, w1.to(other), w2, weights, ids), (x, w1, w2, weights, ids.to(other))):
                with pytest.raises(ValueError, match=other):
                    fused_experts(*mixed)
            with pytest.raises(ValueError, match=other):
                flash_attention_science(there, there.to(other), there)


@pytest.mark.parametrize(
    ("capability", "step"),
    [((7, 5), "online_softmax"), ((8, 0), "cp_async"), ((8, 9), "cp_async"), ((9, 0), "overlap"), ((10, 0), "cp_async")],
)
def test_the_step_follows_the_chip(monkeypatch, capability, step):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    ops.cuda.architecture.cache_clear()
    ops.fastest_step.cache_clear()
    chosen = ops.fastest_step(torch.device("cuda"))
    ops.cuda.architecture.cache_clear()
    ops.fastest_step.cache_clear()
    assert chosen.__name__ == step


def test_shapes_are_known_without_running():
    "Meta tensors, through the functions that a model calls: shapes and dtypes, and the same refusals."
    tokens, w_gate_up, w_down, logits, weights, ids = (x.to("meta") for x in layer())
    q = torch.empty(2, 7, 4, 64, dtype=torch.bfloat16, device="meta").transpose(1, 2)
    out, lse = flash_attention_science(q, q, q, causal=True, return_lse=True)
    assert out.shape == q.shape and out.stride() == q.stride() and lse.shape == (2, 4, 7) and lse.dtype == torch.float32
    experts, dropped = fused_experts(tokens, w_gate_up, w_down, weights, ids, capacity=3, return_dropped=True)
    routed = fused_moe(tokens, (w_gate_up, w_down), logits, routing_options=dict(n_group=2))
    assert experts.shape == routed.shape == tokens.shape and dropped.shape == (4,) and dropped.dtype == torch.int32
    for wrong in (lambda: fused_experts(tokens, w_down, w_down, weights, ids), lambda: flash_attention_science(q, q[:, :3], q),
                  lambda: fused_moe(tokens, (w_gate_up, w_down), logits[:, :3])):  # fmt: skip
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(NotImplementedError, match="on meta tensors have no backward"):
        fused_moe(tokens.requires_grad_(), (w_gate_up, w_down), logits)


@each_device
def test_what_is_traced_is_what_runs(device):
    "torch's own comparison of an operation with its form for tensors without data: shapes, dtypes, strides, schema."
    tokens, w_gate_up, w_down, logits, weights, ids = layer(device=device)
    op, tests = torch.ops.flashmoe_nb, dict(test_utils=("test_schema", "test_faketensor"))
    plain = torch.randn(2, 3, 70, 64, device=device).bfloat16()
    packed = torch.randn(2, 70, 3, 3, 64, device=device).bfloat16()[:, :, 0].transpose(1, 2)
    odd = torch.randn(2, 70, 3 * 64 + 3, device=device).bfloat16()[:, :, 3:].unflatten(2, (3, 64)).transpose(1, 2)
    columns = plain.mT.contiguous().mT
    one, expanded = plain[:1].transpose(1, 2).contiguous().transpose(1, 2), plain[:, :1].expand(-1, 3, -1, -1)
    for q in plain, packed, odd, columns, expanded, one:
        torch.library.opcheck(op.attention_forward, (q, q, q, True, None, True, 2), **tests)
        torch.library.opcheck(op.attention_forward, (*[q.transpose(1, 2)] * 3, False, 0.3, False, 1), **tests)
    torch.library.opcheck(op.route, (logits, 2, True, "sigmoid", torch.zeros(4, device=device), 2, 1, 2, 1.0), **tests)
    for more in (), (None, None, None, 3), (None, None, None, 3, False, True):
        torch.library.opcheck(op.experts_forward, (tokens, w_gate_up, w_down, weights, ids, *more), **tests)


@each_device
@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.filterwarnings("error:.*lru_cache")
def test_under_compile(device, dynamic):
    "`torch.compile` keeps each operation whole, with its options, and its result the same, at lengths fixed or not."
    tokens, w_gate_up, w_down, logits, weights, ids = layer(device=device)
    q, k, v = reference.attention_inputs(2, 4, 100, 64, device=device)
    bias, pair = torch.tensor([0.0, 5.0, 0.0, 0.0], device=device), (w_gate_up, w_down)

    def model(q, k, v, tokens, logits):
        routed = fused_moe(
            tokens, pair, logits, 1, scoring="sigmoid", routing_options=dict(bias=bias), shared=(w_gate_up[0], w_down[0])
        )
        few, dropped = fused_experts(tokens, w_gate_up, w_down, weights, ids, capacity=3, return_dropped=True)
        plain = fused_experts(tokens, w_gate_up, w_down, weights, ids) + 1
        return flash_attention_science(q, k, v, causal=True) * 2, plain, routed, few, dropped, fused_moe(tokens, pair, logits) * 2

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        for length in (100, 64) if dynamic else (100,):
            given = q[:, :, :length], k, v, tokens[:length], logits[:length]
            assert all(torch.equal(one, other) for one, other in zip(compiled(*given), model(*given), strict=True))
    torch._dynamo.reset()
