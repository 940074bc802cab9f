"""Two warps pass numbers through a box, in the order that named barriers give, to be run under compute-sanitizer.

Argument: what the reader does when it has read, `bar_arrive` or `bar_sync`. Both are right; the second waits for nothing."""

import sys

import torch

from flashmoe_nb import cuda

SOURCE = """
#include "common/ptx/barrier.h"
__global__ void attention_box_kernel(int* g_sums, int rounds) {
    __shared__ int s_box[32];
    const int lane = threadIdx.x % 32;
    int sum = 0;
    for (int round = 0; round < rounds; ++round)
        if (threadIdx.x < 32) {
            if (round > 0) ptx::bar_sync(2, 64);  // the box has been read
            s_box[lane] = round + lane;
            ptx::bar_arrive(1, 64);
        } else {
            ptx::bar_sync(1, 64);  // the box is full
            sum += s_box[31 - lane];
            if (round + 1 < rounds) ptx::READ(2, 64);
        }
    if (threadIdx.x >= 32) g_sums[lane] = sum;
}
"""

cuda.register("scratch/box.cu", SOURCE.replace("READ", sys.argv[1]), key="box", label="box", start=True)
sums = torch.zeros(32, dtype=torch.int32, device=cuda.device())
cuda.compile("scratch/box.cu", "attention_box_kernel").launch(1, 64, [sums, 10])
assert (sums.cpu() == 45 + 10 * torch.arange(31, -1, -1)).all()
print("the sums are right")
