"""The expert layer at small ragged shapes, with every tile and option, to be run under compute-sanitizer."""

import torch
from moe_cases import OPTIONS, make_options, moe_inputs

from flashmoe_nb import reference
from flashmoe_nb.moe import fused_layer
from flashmoe_nb.moe.fused_layer import fused_experts
from flashmoe_nb.moe.grouped_gemm import LARGEST, MMA_TILES, TILES, MmaTile, Plan, Tile

for dtype in (torch.bfloat16, torch.float16):
    x, w1, w2, logits = moe_inputs(40, 5, 136, 200, dtype=dtype)
    logits[:, 1] = -9.0
    weights, ids = reference.route(logits, 2)
    weights, ids[3, 0] = weights.float(), 5
    for tile in {t for _, t in (*TILES, *MMA_TILES)} | {LARGEST, Tile(2, 144, 4), Tile(2, 144, 4, cluster=2)}:
        small = isinstance(tile, MmaTile) or tile.consumers == 1
        for gathered in (True,) if small else (True, False):
            plan = Plan(tile, gathered, 1 if isinstance(tile, MmaTile) else 2, False)
            fused_layer.choose = lambda *a, plan=plan: plan
            names = OPTIONS["all"] if gathered else ("weigh_inputs",)
            names = [n for n in names if n != "shared"]  # it would use the plan's tile for another number of tokens
            fused_experts(x, w1, w2, weights, ids, **make_options(names, x, w2, 2))
torch.cuda.synchronize()
print("all ran")
