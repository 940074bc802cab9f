"""Routing and dispatch at small ragged shapes, to be run under compute-sanitizer."""

import torch

from flashmoe_nb.moe.dispatch import dispatch, dispatch_by_radix_sort
from flashmoe_nb.moe.routing import _instance, cuda, new_outputs, routing

FILE = "moe/60_routing.cu"
for num_tokens, num_experts, top_k in ((7, 20, 3), (33, 256, 8), (5, 500, 16), (1, 1, 1)):
    logits, bias = torch.randn(num_tokens, num_experts, device="cuda"), torch.randn(num_experts, device="cuda")
    _, ids, _ = routing(logits, top_k, balance_loss=True)
    routing(logits.half(), top_k, scoring="sigmoid", bias=bias)
    if num_experts % 4 == 0:
        routing(logits.bfloat16(), top_k, scoring="sigmoid", bias=bias, n_group=4, topk_group=3)
    outputs = new_outputs(num_tokens, top_k, logits.device)
    arguments = (logits, None, *outputs, num_tokens, num_experts, top_k, 0, 1, 1, 1, 2, 1.0)
    cuda.compile(FILE, _instance(logits.dtype, num_experts, choice="SHUFFLES")).launch(-(-num_tokens // 4), 128, arguments)
    ids[0, 0] = num_experts
    for blocks in (1, 3):
        dispatch(ids, num_experts, 16, blocks=blocks)
        dispatch(ids, num_experts, 16, blocks=blocks, capacity=4)
    dispatch_by_radix_sort(ids, num_experts, 16)
torch.cuda.synchronize()
print("all ran")
