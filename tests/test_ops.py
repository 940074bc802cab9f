"""The public operations: what they promise on either device, whichever step they run."""

import pytest
import torch

from flashmoe_nb import flash_attention_science, flash_attn_func, fused_experts, fused_moe, ops, reference

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


@pytest.mark.gpu
def test_gradients_are_refused_on_a_gpu():
    tokens, w_gate_up, w_down, logits, weights, ids = layer(device="cuda")
    w_down.requires_grad_()
    for call in (lambda: fused_experts(tokens, w_gate_up, w_down, weights, ids),
                 lambda: fused_moe(tokens.requires_grad_(), (w_gate_up, w_down), logits)):  # fmt: skip
        with pytest.raises(NotImplementedError, match="no backward"):
            call()
    with torch.no_grad():
        assert fused_experts(tokens, w_gate_up, w_down, weights, ids).isfinite().all()


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
    "Meta tensors and fake tensors: what torch.compile traces with."
    with torch.device("meta"):
        q = torch.empty(2, 4, 7, 64, dtype=torch.bfloat16)
        out, lse = torch.ops.flashmoe_nb.attention_forward(q, q, q, True, None, True, 2)
        tokens, weights = torch.empty(5, 64, dtype=torch.bfloat16), torch.empty(4, 64, 64, dtype=torch.bfloat16)
        experts = torch.ops.flashmoe_nb.experts_forward(tokens, weights, weights, torch.empty(5, 2), torch.empty(5, 2))
    assert out.shape == q.shape and lse.shape == (2, 4, 7) and experts.shape == tokens.shape


@pytest.mark.gpu
def test_under_compile():
    "`torch.compile` keeps each operation whole, and its result the same."
    tokens, w_gate_up, w_down, logits, weights, ids = layer(device="cuda")
    q, k, v = reference.attention_inputs(2, 4, 100, 64, device="cuda")

    def model(q, k, v, tokens):
        return flash_attention_science(q, k, v, causal=True) * 2, fused_experts(tokens, w_gate_up, w_down, weights, ids) + 1

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for one, other in zip(compiled(q, k, v, tokens), model(q, k, v, tokens), strict=True):
            assert torch.equal(one, other)
