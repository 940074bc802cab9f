"""Models of transformers with our experts: the same logits, every experts module asked, what cannot be done refused."""

import copy

import pytest
import torch
import transformers
from transformers.integrations.moe import ExpertsInterface

from flashmoe_nb import ops, reference
from flashmoe_nb.integrations.transformers import NAME, make_model, refusal, register, time_model, tokens_per_second
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
