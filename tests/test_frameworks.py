"""Models of transformers with our experts: the same logits, every experts module asked, what cannot be done refused."""

import contextlib
import copy

import pytest
import torch
import transformers
from transformers.integrations.moe import ExpertsInterface

from flashmoe_nb import ops, reference
from flashmoe_nb.attention.overlap import overlap
from flashmoe_nb.integrations.transformers import ATTENTION, NAME, make_model, no_mask, refusal, register, register_attention
from flashmoe_nb.integrations.transformers import time_model, tokens_per_second
from flashmoe_nb.moe import fused_layer

SIZES = dict(hidden_size=64, num_hidden_layers=2, vocab_size=50, num_attention_heads=2, num_key_value_heads=1)
SIZES["initializer_range"] = 0.125
FAMILIES = {
    "qwen3_moe": dict(moe_intermediate_size=40, num_experts=10, num_experts_per_tok=3, norm_topk_prob=True, head_dim=32),
    "mixtral": dict(intermediate_size=72, num_local_experts=4, num_experts_per_tok=2),
    "olmoe": dict(intermediate_size=48, num_experts=6, num_experts_per_tok=4),
}
LARGE = dict(hidden_size=2048, vocab_size=1000, num_attention_heads=16, num_key_value_heads=4, initializer_range=2048**-0.5)
LARGE_FAMILIES = {
    "qwen3_moe": dict(moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True, head_dim=128),
    "mixtral": dict(intermediate_size=7168, num_local_experts=8, num_experts_per_tok=2),
}


def make(family: str, device="cpu", **settings):
    config = transformers.AutoConfig.for_model(family, **settings)
    torch.manual_seed(5)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()


def experts_of(model):
    return [m for m in model.modules() if hasattr(m, "gate_up_proj")]


def check_model(model, input_ids, fused_experts=ops.fused_experts):
    "Each module by the rule of the reference; the logits no farther from float64 than the model's own loop in bf16, by half."
    register(fused_experts=fused_experts)
    ExpertsInterface.register("none", lambda self, x, ids, weights: torch.zeros_like(x))
    logits, judged = {}, []

    def judge(module, inputs, output):
        x, ids, weights = inputs
        judged.append(
            reference.check_moe(
                output, x, module.gate_up_proj, module.down_proj, weights.float(), ids.int(), unit_normal=False
            )
        )

    with torch.no_grad():
        for name in ("eager", "none", NAME):
            model.set_experts_implementation(name)
            handles = [m.register_forward_hook(judge) for m in experts_of(model) if name == NAME]
            logits[name] = model(input_ids).logits.double()
            for handle in handles:
                handle.remove()
        model.set_experts_implementation("eager")
        exact = copy.deepcopy(model).double()(input_ids).logits
    assert len(judged) == model.config.num_hidden_layers
    distance = {name: float((x - exact).norm() / exact.norm()) for name, x in logits.items()}
    assert distance[NAME] <= 1.5 * distance["eager"] < distance["none"], distance


@pytest.mark.parametrize("fused_experts", (fused_layer.fused_experts, ops.fused_experts), ids=("emulated", "reference"))
@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family, fused_experts):
    check_model(make(family, **SIZES, **FAMILIES[family]), torch.randint(50, (2, 7)), fused_experts)


@pytest.mark.gpu
@pytest.mark.parametrize("family", LARGE_FAMILIES)
def test_logits_on_a_gpu(family):
    model = make(family, "cuda", num_hidden_layers=4, **LARGE, **LARGE_FAMILIES[family])
    check_model(model, torch.randint(1000, (3, 200), device="cuda"))


@pytest.mark.parametrize("device", ("cpu", pytest.param("cuda", marks=pytest.mark.gpu)))
def test_speed_is_measured(device):
    register()
    model = make_model("qwen3", tiny=device == "cpu", device=device)
    inputs = [torch.randint(100, (1, 5 if device == "cpu" else 512), device=device) for _ in range(3)]
    timings = time_model(model, inputs, ("eager", NAME), samples=2, rounds=2)
    speeds = tokens_per_second(timings, inputs)
    assert list(speeds) == ["eager", NAME] and all(len(timing.samples_ms) == 4 for timing in timings.values())
    assert device == "cpu" or speeds[NAME] > speeds["eager"]


def test_what_the_kernels_cannot_do_is_refused():
    model = make("mixtral", **SIZES, **FAMILIES["mixtral"])
    module = experts_of(model)[0]
    with torch.no_grad():
        assert refusal(module) == ""
        for name, value in (("is_transposed", True), ("is_concatenated", False), ("has_gate", False)):
            spoiled = copy.copy(module)
            spoiled.__dict__[name] = value
            assert name in refusal(spoiled)
        other = copy.copy(module)
        other.config = copy.deepcopy(module.config)
        other.config.hidden_act = "gelu"
        assert "gelu" in refusal(other)
        gated = copy.copy(module)
        gated._apply_gate = type("own", (), {"gate": lambda self, x: x})().gate
        assert "gate of its own" in refusal(gated)
    register()
    other.config.hidden_act, other.config._experts_implementation = "relu", NAME
    with pytest.raises(NotImplementedError, match="relu"):
        other(torch.zeros(1, 64), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2))


def test_biases_are_added():
    module = experts_of(make("mixtral", **SIZES, **FAMILIES["mixtral"]))[0]
    x, ids = torch.randn(5, 64).bfloat16(), torch.tensor([[0, 1]] * 5)
    weights = torch.full((5, 2), 0.5)
    register()
    with torch.no_grad():
        module.config._experts_implementation = NAME
        module.has_bias, module.gate_up_proj_bias, module.down_proj_bias = True, torch.zeros(4, 144), torch.ones(4, 64)
        module.gate_up_proj_bias, module.down_proj_bias = module.gate_up_proj_bias.bfloat16(), module.down_proj_bias.bfloat16()
        shifted = module(x, ids, weights)
        module.has_bias = False
        torch.testing.assert_close(shifted.float(), module(x, ids, weights).float() + 1, atol=2e-2, rtol=2e-2)


def test_on_a_cpu_gradients_reach_the_weights():
    model = make("mixtral", **SIZES, **FAMILIES["mixtral"])
    register()
    model.set_experts_implementation(NAME)
    model(torch.zeros(1, 2, dtype=torch.long)).logits.float().square().sum().backward()
    assert all(m.gate_up_proj.grad.abs().sum() > 0 for m in experts_of(model))


def test_a_name_of_ones_own():
    assert register("mine") == "mine" and "mine" in ExpertsInterface()


def judged_attention(function, checks):
    "An attention that judges each of its results by the rule of the reference."

    def judge(q, k, v, causal, softmax_scale):
        out = function(q, k, v, causal=causal, softmax_scale=softmax_scale)
        checks.append((causal, q.shape[2], k.shape[2]))
        reference.check_attention(out, q, k, v, causal=causal, softmax_scale=softmax_scale, unit_normal=False, backend="any")
        return out

    return judge


def check_attention_of(model, input_ids, function=ops.flash_attention_science):
    "Every call by the rule; the logits no farther from float64 than the model's own in bf16, by half; decoding from a cache."
    checks, layers, length = [], model.config.num_hidden_layers, input_ids.shape[1]
    register_attention(attention=judged_attention(function, checks))
    model.set_experts_implementation("eager")
    with torch.no_grad():
        expected = model(input_ids).logits.double()
        model.set_attn_implementation(ATTENTION)
        found = model(input_ids).logits.double()
        given = dict(attention_mask=torch.ones_like(input_ids), do_sample=False, pad_token_id=0)
        steps = model.generate(input_ids, max_new_tokens=3, return_dict_in_generate=True, **given)
        model.set_attn_implementation("eager")
        exact = copy.deepcopy(model).double()(input_ids).logits
    assert steps.sequences.shape == (len(input_ids), length + 3)
    prefill, decode = (True, length, length), [(True, 1, length + i) for i in (1, 2)]
    assert checks == [prefill] * 2 * layers + [call for call in decode for _ in range(layers)]
    distance = [float((x - exact).norm() / exact.norm()) for x in (found, expected)]
    assert distance[0] <= 1.5 * distance[1], distance


@pytest.mark.parametrize("function", (overlap, ops.flash_attention_science), ids=("emulated", "reference"))
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_a_model(family, function):
    check_attention_of(make(family, **SIZES, **FAMILIES[family]), torch.randint(50, (2, 7)), function)


@pytest.mark.gpu
@pytest.mark.parametrize("family", LARGE_FAMILIES)
def test_attention_of_a_model_on_a_gpu(family):
    model = make(family, "cuda", num_hidden_layers=4, **LARGE, **LARGE_FAMILIES[family])
    check_attention_of(model, torch.randint(1000, (3, 200), device="cuda"))


def test_attention_that_sees_everything():
    "An encoder: no causal mask, whatever its length, and a padded batch refused."
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    model, checks, input_ids = transformers.BertModel(config).to(torch.bfloat16).eval(), [], torch.randint(50, (2, 7))
    with torch.no_grad():
        expected = model(input_ids).last_hidden_state
        register_attention(attention=judged_attention(ops.flash_attention_science, checks))
        model.set_attn_implementation(ATTENTION)
        torch.testing.assert_close(model(input_ids).last_hidden_state, expected, atol=0.05, rtol=0.05)
        assert checks == [(False, 7, 7)] * 2
        with pytest.raises(NotImplementedError, match="padding"):
            model(input_ids, attention_mask=(torch.arange(7) < 6).long().expand(2, 7))


@pytest.mark.parametrize(
    ("settings", "given", "text"),
    [
        ({}, dict(attention_mask=(torch.arange(7) > 1).long().expand(2, 7)), "padding"),
        ({}, dict(attention_mask=torch.zeros(2, 1, 7, 7, dtype=torch.bfloat16)), "attention_mask"),
        ({}, dict(position_ids=torch.arange(7).remainder(4).expand(2, 7), use_cache=False), "packed sequences"),
        (dict(sliding_window=4), {}, "a window of 4 tokens before 7 keys"),
        (dict(sliding_window=7), {}, None),
        (dict(attention_dropout=0.1), dict(train=True), "dropout"),
        ({}, dict(output_attentions=True), "output_attentions"),
    ],
)
def test_what_attention_cannot_do_is_refused(settings, given, text):
    model = make("mixtral", **SIZES, **FAMILIES["mixtral"], **settings)
    register_attention()
    model.set_attn_implementation(ATTENTION)
    given = dict(given)
    model.train(given.pop("train", False))
    with torch.no_grad(), pytest.raises(NotImplementedError, match=text) if text else contextlib.nullcontext():
        model(torch.zeros(2, 7, dtype=torch.long), **given)


def test_softcaps_sinks_and_empty_places_are_refused():
    module, x = torch.nn.Module(), torch.randn(1, 2, 5, 32).bfloat16()
    forward = transformers.AttentionInterface()[register_attention()]
    for name in ("softcap", "s_aux", "position_bias", "cu_seq_lens_q"):
        with pytest.raises(NotImplementedError, match=f"no kernel for {name}"):
            forward(module, x, x, x, None, **{name: torch.ones(2)})
    assert forward(module, x, x, x, None, softcap=None)[0].shape == (1, 5, 2, 32)
    assert no_mask(q_length=3, kv_length=8, q_offset=5) is None
    with pytest.raises(NotImplementedError, match="empty places"):
        no_mask(q_length=3, kv_length=16, q_offset=5)
    with pytest.raises(ValueError, match="flash"):
        register_attention("my_flash")
