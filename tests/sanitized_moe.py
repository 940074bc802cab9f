"""The expert layer at a small ragged shape, with the tiles of a group, to be run under compute-sanitizer. Arguments: groups."""

import sys

import torch
from moe_cases import OPTIONS, make_options

from flashmoe_nb import reference
from flashmoe_nb.moe import fused_layer
from flashmoe_nb.moe.few_tokens import few_tokens
from flashmoe_nb.moe.fused_layer import fused_experts
from flashmoe_nb.moe.grouped_gemm import LARGEST, MMA_TILES, TILES, MmaTile, Plan, Tile

GROUPS = {
    "small": [t for _, t in TILES if not t.large],
    "large": [t for _, t in TILES if t.large],
    "largest": list({LARGEST, Tile(2, 144, 4)}),
    "cluster": [Tile(2, 144, 4, cluster=2)],
    "sm_80": [t for _, t in MMA_TILES],
    "few tokens": [],  # no tiles
}

if __name__ == "__main__":
    # Made on the CPU: what kernels write that are not watched, initcheck takes for not written.
    x, w1, w2, logits = reference.moe_inputs(40, 5, 136, 200, device="cpu")
    logits[:, 1] = -9.0
    weights, ids = reference.route(logits, 2)
    ids[3, 0] = 5
    all_options = make_options(OPTIONS["all"], x, w2, 2)
    del all_options["shared"]  # it would use the plan's tile for another number of tokens
    all_options = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in all_options.items()}
    x, w1, w2, weights, ids = (tensor.cuda() for tensor in (x, w1, w2, weights.float(), ids))
    for tile in [tile for group in sys.argv[1:] or GROUPS for tile in GROUPS[group]]:
        for gathered in (True, False) if tile in GROUPS["largest"] + GROUPS["cluster"] else (True,):
            plan = Plan(tile, gathered, 1 if isinstance(tile, MmaTile) else 2, False)
            fused_layer.choose = lambda *a, plan=plan: plan
            fused_experts(x, w1, w2, weights, ids, **all_options if gathered else dict(weigh_inputs=True))
    if "few tokens" in (sys.argv[1:] or GROUPS):
        few_tokens(x[:16], w1, w2, weights[:16], ids[:16])
    torch.cuda.synchronize()
    print("all ran")
