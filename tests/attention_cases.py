"""The attention steps and the inputs their tests share.

A step is a module of flashmoe_nb.attention that lists its instances and has a function of its own name with the arguments
that all steps share."""

import contextlib
import hashlib
import importlib
import inspect
import math
import pkgutil
from unittest import mock

import torch

import flashmoe_nb.attention
from flashmoe_nb import cuda
from flashmoe_nb.attention import problem

ARGUMENTS = ("q", "k", "v", "causal", "softmax_scale", "return_lse")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def steps() -> dict:
    found = {}
    for info in pkgutil.iter_modules(flashmoe_nb.attention.__path__):
        module = importlib.import_module(f"flashmoe_nb.attention.{info.name}")
        function = getattr(module, info.name, None)
        if hasattr(module, "instances") and function and tuple(inspect.signature(function).parameters)[:6] == ARGUMENTS:
            found[info.name] = function
    return found


STEPS = steps()


def poisoned_outputs(monkeypatch):
    "Fill every output with NaN before the kernel runs, so that an element it does not write is seen."
    allocate = problem.new_outputs

    def poisoned(*arguments):
        outputs = allocate(*arguments)
        for x in outputs:
            if x is not None:
                x.fill_(math.nan)
        return outputs

    for info in pkgutil.iter_modules(flashmoe_nb.attention.__path__):
        module = importlib.import_module(f"flashmoe_nb.attention.{info.name}")
        if getattr(module, "new_outputs", None) is allocate and module is not problem:
            monkeypatch.setattr(module, "new_outputs", poisoned)


@contextlib.contextmanager
def races():
    "Collect what the emulator's race detector reports for the launches inside the block."
    found, launch = [], cuda.Kernel.launch

    def watched(*arguments, **settings):
        report = launch(*arguments, **settings)
        found.extend(report.races)
        return report

    with mock.patch.object(cuda.Kernel, "launch", watched), cuda.emulation(check="race"):
        yield found


EXACT_SCALE = math.log(2)  # scores become powers of two, without a rounding
EXACT_CASES = [
    # batch, num_heads, num_heads_k, seqlen_q, seqlen_k, head_dim, causal
    (1, 2, 2, 64, 64, 64, False),
    (1, 2, 1, 70, 130, 64, True),
    (2, 2, 2, 33, 96, 80, True),
    (1, 1, 1, 40, 40, 128, False),
    (1, 1, 1, 37, 65, 256, True),
]


def exact_inputs(case, dtype, device):
    """Inputs for which every sum in the kernel is exact: four dimensions of q and k hold -1, 0 or 1, so that scores are
    integers from -4 to 4 and weights powers of two; v holds small integers. Then any correct order gives the same bits."""
    batch, heads, heads_k, seqlen_q, seqlen_k, head_dim, _ = case
    generator = torch.Generator().manual_seed(hash(case) % 2**31)
    q, k = torch.zeros(batch, heads, seqlen_q, head_dim), torch.zeros(batch, heads_k, seqlen_k, head_dim)
    for x in (q, k):
        x[..., 3:7] = torch.randint(-1, 2, x[..., 3:7].shape, generator=generator).float()
    v = torch.randint(-4, 5, (batch, heads_k, seqlen_k, head_dim), generator=generator).float()
    return [x.to(device, dtype) for x in (q, k, v)]


def digest(x: torch.Tensor) -> str:
    "A hash of a tensor's bits."
    return hashlib.sha256(x.contiguous().cpu().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def case_name(dtype: str, case) -> str:
    return f"{dtype}-" + "x".join(str(int(n)) for n in case)


def exact_digests(step: str, device) -> dict[str, str]:
    "What a step gives for the exact cases. The sums are exact, so every right step gives the same."
    return {
        case_name(name, case): digest(STEPS[step](*exact_inputs(case, dtype, device), causal=case[-1], softmax_scale=EXACT_SCALE))
        for name, dtype in DTYPES.items()
        for case in EXACT_CASES
    }
