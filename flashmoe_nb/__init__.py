"""CUDA kernels for attention and Mixture-of-Experts, written in notebooks: torch tensors in and out, no build step."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashmoe_nb.ops import flash_attention_science, flash_attn_func, fused_experts, fused_moe

__all__ = ["flash_attention_science", "flash_attn_func", "fused_experts", "fused_moe"]


def __getattr__(name: str):
    # The public functions are imported on first use, so that the command line starts without torch.
    if name in __all__:
        from flashmoe_nb import ops

        return getattr(ops, name)
    raise AttributeError(f"module 'flashmoe_nb' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
