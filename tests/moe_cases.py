"""An expert layer with all its options, exact and as PyTorch computes it: what the layer's tests compare with."""

import math

import torch

from flashmoe_nb import reference

DTYPES = (torch.bfloat16, torch.float16)
OPTIONS = {
    "plain": (),
    "biases": ("b_gate_up", "b_down"),
    "a bias of the first product": ("b_gate_up",),
    "a shared expert": ("shared",),
    "weights before": ("weigh_inputs",),
    "all": ("b_gate_up", "b_down", "shared", "weigh_inputs", "capacity"),
}


def moe_inputs(num_tokens, num_experts, hidden, inter, *, dtype=torch.bfloat16, seed=0) -> list[torch.Tensor]:
    "`reference.moe_inputs`, drawn on the GPU, which is a hundred times as fast; logits in float32."
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape, fan_in=1, dtype=dtype):
        return torch.randn(*shape, generator=generator, device="cuda", dtype=dtype).mul_(fan_in**-0.5)

    return [
        normal(num_tokens, hidden),
        normal(num_experts, 2 * inter, hidden, fan_in=hidden),
        normal(num_experts, hidden, inter, fan_in=inter),
        normal(num_tokens, num_experts, dtype=torch.float32),
    ]


def make_options(names, x, w_down, top_k: int, seed: int = 0) -> dict:
    "Options of `fused_experts` of these names, for these tensors. The capacity is a little below the average."
    generator = torch.Generator(x.device).manual_seed(seed)
    (num_tokens, hidden), (num_experts, _, inter) = x.shape, w_down.shape

    def normal(*shape, fan_in=1):
        return (torch.randn(*shape, generator=generator, device=x.device) * fan_in**-0.5).to(x.dtype)

    made = dict(
        b_gate_up=normal(num_experts, 2 * inter),
        b_down=normal(num_experts, hidden),
        shared=(normal(2 * 40, hidden, fan_in=hidden), normal(hidden, 40, fan_in=40)),
        weigh_inputs=True,
        capacity=math.ceil(0.8 * num_tokens * top_k / num_experts),
    )
    return {name: made[name] for name in names}


def kept(ids: torch.Tensor, num_experts: int, capacity: int | None) -> torch.Tensor:
    "True for each choice that names an expert which fewer than `capacity` earlier choices have taken."
    chosen = torch.zeros(ids.numel(), num_experts, dtype=torch.int32, device=ids.device)
    valid = (ids >= 0) & (ids < num_experts)
    chosen.scatter_(1, ids.flatten().long().clamp(0, num_experts - 1)[:, None], valid.flatten()[:, None].int())
    earlier = (chosen.cumsum(0) - chosen).gather(1, ids.flatten().long().clamp(0, num_experts - 1)[:, None])
    return valid & (earlier.view(ids.shape) < (ids.numel() + 1 if capacity is None else capacity))


def layer(
    x, w_gate_up, w_down, weights, ids, dtype, *, b_gate_up=None, b_down=None, shared=None, weigh_inputs=False, capacity=None
):
    "The layer in `dtype`, expert by expert, as the docstring of `fused_experts` defines it."
    num_experts, out = len(w_down), torch.zeros(x.shape, dtype=dtype, device=x.device)
    keep = kept(ids, num_experts, capacity)

    def expert(rows, first, second, bias=None, second_bias=None):
        gate, up = (rows @ first.to(dtype).mT + (0 if bias is None else bias.to(dtype))).chunk(2, -1)
        product = torch.nn.functional.silu(gate) * up
        return product @ second.to(dtype).mT + (0 if second_bias is None else second_bias.to(dtype))

    for e in range(num_experts):
        token, choice = ((ids == e) & keep).nonzero(as_tuple=True)
        weight = weights[token, choice, None]
        rows = (x[token].float() * weight).to(x.dtype) if weigh_inputs else x[token]
        y = expert(rows.to(dtype), w_gate_up[e], w_down[e], *(None if b is None else b[e] for b in (b_gate_up, b_down)))
        out.index_add_(0, token, y if weigh_inputs else y * weight.to(dtype))
    return out if shared is None else out + expert(x.to(dtype), *shared)


def check(out, x, w_gate_up, w_down, weights, ids, exact_dtype=torch.float64, **options):
    "Judge by the project's rule: error of twice PyTorch's own in the input's dtype, and twice the rounding."
    arguments = (x, w_gate_up, w_down, weights, ids)
    exact = layer(*arguments, exact_dtype, **options)
    limit = reference.tolerance(exact, layer(*arguments, x.dtype, **options), x.dtype)
    assert out.dtype == x.dtype and out.shape == x.shape and bool(out.isfinite().all())
    error = (out.to(exact_dtype) - exact).abs().max().item() if out.numel() else 0.0
    assert error <= limit, f"error {error:.2e} of {limit:.2e}, options {list(options)}"
