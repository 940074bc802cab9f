"""Attention without a GPU: the kernels on the emulator, the public operations on the reference, wrong input."""

import json
import math
from pathlib import Path

import pytest
import torch
from attention_cases import DTYPES, EXACT_CASES, EXACT_SCALE, STEPS, case_name, digest, exact_inputs, poisoned_outputs, races

from flashmoe_nb import cuda, flash_attention_science, flash_attn_func, reference
from flashmoe_nb.attention import problem, tensor_cores, tiling

RECORDED = Path(__file__).parent / "recorded" / "attention_exact.json"
each_step = pytest.mark.parametrize("step", STEPS)


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    poisoned_outputs(monkeypatch)


@each_step
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "heads, heads_k, seqlen_q, seqlen_k, head_dim, causal",
    [
        (2, 2, 1, 1, 32, False),
        (1, 1, 7, 129, 64, True),
        (4, 2, 65, 65, 80, True),
        (1, 1, 64, 128, 96, False),
        (1, 1, 130, 70, 64, True),
        (1, 1, 40, 33, 128, False),
        (1, 1, 33, 70, 256, True),
    ],
)
def test_steps_on_the_emulator(step, dtype, heads, heads_k, seqlen_q, seqlen_k, head_dim, causal):
    q, k, v = reference.attention_inputs(
        1,
        heads,
        seqlen_q,
        head_dim,
        seqlen_k=seqlen_k,
        num_heads_k=heads_k,
        dtype=DTYPES[dtype],
        device="cpu",
        seed=seqlen_q,
    )
    out, lse = STEPS[step](q, k, v, causal=causal, return_lse=True)
    reference.check_attention(out, q, k, v, lse=lse, causal=causal, name=step)


@each_step
def test_checked_and_in_any_order(step):
    "No access outside a tensor or tile, no read of unwritten shared memory, no race, and the same bits in any order of threads."
    q, k, v = reference.attention_inputs(1, 1, 70, 32, seqlen_k=67, device="cpu")
    outs = []
    for options in (dict(check=("memory", "init")), dict(schedule="reverse"), dict(schedule="random", seed=3)):
        with cuda.emulation(**options):
            outs.append(STEPS[step](q, k, v, causal=True))
    assert all(torch.equal(out, outs[0]) for out in outs)
    with races() as found:
        STEPS[step](q, k, v, causal=True)
        few = reference.attention_inputs(1, 1, 140, 32, seqlen_k=3, device="cpu")  # blocks that see no key
        out = STEPS[step](*few, causal=True)
    assert not found, found[:3]
    assert (out[:, :, :137] == 0).all()


def test_races_are_looked_for():
    "A step whose barrier is taken away has a race: otherwise the test above could not fail."
    text = cuda.read_source("attention/22_tensor_cores.cu").text
    barrier = "        __syncthreads();  // every thread is done with the previous tiles"
    assert text.count(barrier) == 1
    cuda.register("scratch/racing.cu", text.replace(barrier, "//"), key="test", label="test", start=True)
    q, k, v = reference.attention_inputs(1, 1, 70, 32, seqlen_k=200, device="cpu")
    step = ("scratch/racing.cu", "attention_tensor_cores_kernel")
    with races() as found:
        tensor_cores.launch_mma(step, problem.check_qkv(q, k, v), q, k, v, tile=tensor_cores.choose_tile(32))
    cuda.unregister("scratch/racing.cu")
    assert found


@each_step
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", EXACT_CASES, ids=str)
def test_bits_recorded_on_a_gpu(step, dtype, case):
    "The sums are exact: every step, on the GPU and on the emulator, gives the same bits."
    q, k, v = exact_inputs(case, DTYPES[dtype], "cpu")
    out = STEPS[step](q, k, v, causal=case[-1], softmax_scale=EXACT_SCALE)
    assert digest(out) == json.loads(RECORDED.read_text())["digests"][case_name(dtype, case)]


@each_step
def test_strides(step):
    "Slices of a packed tensor, expanded heads, misaligned rows: the same numbers as contiguous copies."
    packed = torch.randn(1, 40, 3, 2, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
    expected = STEPS[step](q.contiguous(), k.contiguous(), v.contiguous(), causal=True)
    assert torch.equal(STEPS[step](q, k, v, causal=True), expected)
    one_head = k[:, :1]
    assert torch.equal(STEPS[step](q, one_head.expand(-1, 2, -1, -1), v), STEPS[step](q, one_head.repeat(1, 2, 1, 1), v))
    odd = torch.zeros(1, 2, 40, 33).bfloat16()[..., 1:].copy_(q)
    assert torch.equal(STEPS[step](odd, k, v, causal=True), expected)


@each_step
def test_empty(step):
    q, k, v = reference.attention_inputs(1, 2, 5, 32, seqlen_k=0, device="cpu")
    out, lse = STEPS[step](q, k, v, return_lse=True)
    assert (out == 0).all() and (lse == -math.inf).all()
    assert STEPS[step](q[:, :, :0], k, v).shape == (1, 2, 0, 32) and STEPS[step](q[:0], k[:0], v[:0]).shape[0] == 0


@each_step
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(step, value):
    q, k, v = reference.attention_inputs(1, 2, 40, 32, device="cpu")
    clean = STEPS[step](q, k, v, causal=True)
    spoiled = q.clone()
    spoiled[0, 1, 20, 3] = value
    out = STEPS[step](spoiled, k, v, causal=True)
    same = out == clean
    same[0, 1, 20] = True
    assert same.all()
    spoiled = v.clone()
    spoiled[0, 1, 20, 3] = value
    out = STEPS[step](q, k, spoiled, causal=True)
    reference.check_attention(out, q, k, spoiled, causal=True, name=step)
    assert torch.equal(out[0, 0], clean[0, 0])


def test_a_softmax_per_tile_is_exact_for_one_tile_only():
    q, k, v = reference.attention_inputs(1, 1, 64, 64, device="cpu")
    reference.check_attention(tiling.tiling_per_tile(q, k, v), q, k, v)
    q, k, v = reference.attention_inputs(1, 1, 64, 64, seqlen_k=65, device="cpu")
    with pytest.raises(AssertionError, match="tolerance"):
        reference.check_attention(tiling.tiling_per_tile(q, k, v), q, k, v)


def good(**changes):
    size = dict(batch=1, num_heads=2, seqlen_q=4, head_dim=32, device="cpu") | changes
    return reference.attention_inputs(**size)


q, k, v = good()
BAD = {
    "no tensor": ((q, [1.0], v), TypeError, "k must be a torch.Tensor, got list"),
    "rank": ((q[0], k, v), ValueError, "q must have 4 dimensions"),
    "dtype": (
        (q.float(), k.float(), v.float()),
        ValueError,
        "q must be torch.bfloat16 or torch.float16, got torch.float32",
    ),
    "dtypes mixed": ((q, k, v.half()), ValueError, "v has dtype torch.float16, q has torch.bfloat16"),
    "device mixed": ((q, k.to("meta"), v), ValueError, "k is on meta, q on cpu"),
    "head_dim differs": ((q, *good(head_dim=40)[1:]), ValueError, "k has head_dim 40, q has 32"),
    "v's head_dim differs": ((q, k, good(head_dim=40)[2]), ValueError, "v has head_dim 40, k has 32"),
    "batch differs": ((q, *good(batch=2)[1:]), ValueError, "k has batch 2, q has 1"),
    "lengths differ": ((q, k, v[:, :, :3]), ValueError, "v has seqlen 3, k has 4"),
    "heads do not divide": (
        (good(num_heads=3)[0], k, v),
        ValueError,
        "q has num_heads 3, which must be a multiple of k's 2",
    ),
    "head_dim too large": (
        good(head_dim=264),
        ValueError,
        "q has head_dim 264; supported are multiples of 8 up to 256",
    ),
    "head_dim odd": (good(head_dim=36), ValueError, "q has head_dim 36"),
}


@pytest.mark.parametrize("function", [*STEPS.values(), flash_attn_func, flash_attention_science])
@pytest.mark.parametrize("inputs, error, message", BAD.values(), ids=BAD)
def test_bad_input(function, inputs, error, message):
    if function is flash_attn_func:
        inputs = [x.transpose(1, 2) if isinstance(x, torch.Tensor) and x.dim() == 4 else x for x in inputs]
    if function is flash_attention_science:
        for name in "qkv":
            message = message.replace(f"{name} ", f"{name.upper()} ").replace(f"{name}'s", f"{name.upper()}'s")
    with pytest.raises(error) as raised:
        function(*inputs)
    assert message in str(raised.value)


@pytest.mark.parametrize("scale, error", [("1", TypeError), (math.nan, ValueError), (math.inf, ValueError)])
@pytest.mark.parametrize("function", [*STEPS.values(), flash_attention_science])
def test_bad_scale(function, scale, error):
    with pytest.raises(error, match="softmax_scale"):
        function(*good(), softmax_scale=scale)


def test_a_chip_without_a_kernel(monkeypatch):
    kernel = cuda.compile("attention/20_online_softmax.cu", "attention_online_kernel<Config<__nv_bfloat16, 64, 64, 32>>")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(NotImplementedError, match="sm_70.*sm_75"):
        kernel._load(0)


class TestOperations:
    def test_reference_on_the_cpu(self):
        q, k, v = reference.attention_inputs(2, 4, 33, 64, seqlen_k=50, num_heads_k=2, device="cpu")
        out, lse = flash_attention_science(q, k, v, causal=True, return_lse=True)
        reference.check_attention(out, q, k, v, lse=lse, causal=True, backend="cpu")

    def test_layout_of_flash_attn(self):
        q, k, v = good(seqlen_q=9)
        out, lse = flash_attention_science(q, k, v, True, 0.3, return_lse=True)
        other, other_lse, nothing = flash_attn_func(
            *(x.transpose(1, 2).contiguous() for x in (q, k, v)), 0.0, 0.3, True, return_attn_probs=True
        )
        assert torch.equal(other.transpose(1, 2), out) and torch.equal(other_lse, lse) and nothing is None

    def test_gradients_on_the_cpu(self):
        q, k, v = (x.requires_grad_() for x in good())
        flash_attention_science(q, k, v, causal=True).float().square().sum().backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))

    @pytest.mark.parametrize("name, value", [("dropout_p", 0.1), ("window_size", (8, 0)), ("softcap", 20.0), ("alibi_slopes", q)])
    def test_refuses_what_no_kernel_does(self, name, value):
        with pytest.raises(NotImplementedError, match=name):
            flash_attn_func(*(x.transpose(1, 2) for x in good()), **{name: value})

    def test_shapes_without_running(self):
        q, k, v = (x.to("meta") for x in good())
        out, lse = torch.ops.flashmoe_nb.attention_forward(q, k, v, True, None, True, 2)
        assert out.shape == q.shape and lse.shape == q.shape[:3]


def test_outputs_keep_the_layout_of_q():
    packed = torch.zeros(2, 10, 3, 4, 32).bfloat16()
    q = packed[:, :, 0].transpose(1, 2)
    out, lse = problem.new_outputs(q, problem.check_shapes(q.shape, q.shape, q.shape), True)
    assert out.shape == (2, 4, 10, 32) and out.transpose(1, 2).is_contiguous() and lse.shape == (2, 4, 10)
    expanded = torch.zeros(1, 1, 10, 32).bfloat16().expand(2, 4, 10, 32)
    out, _ = problem.new_outputs(expanded, problem.check_shapes(expanded.shape, expanded.shape, expanded.shape), False)
    assert out.stride(3) == 1 and out.untyped_storage().nbytes() == 2 * 2 * 4 * 10 * 32
