"""Run in an environment that holds only the wheel: the package finds, compiles and runs its kernels."""

from pathlib import Path

import torch

import flashmoe_nb
from flashmoe_nb import cuda, reference, tune
from flashmoe_nb.attention.online_softmax import instances, online_softmax

assert "site-packages" in flashmoe_nb.__file__, flashmoe_nb.__file__
assert "site-packages" in str(cuda.KERNELS), cuda.KERNELS
assert not Path("settings.ini").exists()

rows = tune.read_table("sm_90")
assert rows and tune.lookup(rows[0]["step"], rows[0]["key"], rows[0]["near"]) == rows[0]["choice"], "the tuned tiles are missing"

path, name = instances()[0]
print([f"{r.architecture}: {r.registers} registers" for r in cuda.resources(path, [name])])

q, k, v = reference.attention_inputs(1, 2, 70, 64, device="cpu")
out, lse = online_softmax(q, k, v, causal=True, return_lse=True)
print(reference.check_attention(out, q, k, v, lse=lse, causal=True, name="online_softmax from the wheel"))
public = flashmoe_nb.flash_attention_science(q, k, v, causal=True)
assert torch.allclose(public.float(), out.float(), atol=2e-2)
print("the wheel works")
