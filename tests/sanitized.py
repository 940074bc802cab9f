"""Attention steps once each at small ragged shapes, to be run under compute-sanitizer. Arguments: steps; none means all."""

import sys

import torch
from attention_cases import DTYPES, STEPS

from flashmoe_nb import reference

for dtype in DTYPES.values():
    for head_dim, seqlen_q, seqlen_k in ((32, 33, 70), (64, 70, 65), (128, 66, 130), (256, 40, 33)):
        q, k, v = reference.attention_inputs(1, 2, seqlen_q, head_dim, seqlen_k=seqlen_k, num_heads_k=1, dtype=dtype, device="cuda")
        for step in sys.argv[1:] or STEPS:
            STEPS[step](q, k, v, causal=True, return_lse=True)
torch.cuda.synchronize()
print("every step ran")
