"""The emulator's counts of wavefronts and sectors: against the formulas, and against a chip's counters."""

from math import gcd

import pytest
import torch

from flashmoe_nb import bench, counters, cuda

ELEMENTS = {4: "float", 8: "float2", 16: "float4"}


def launch(name, *extra):
    args = [torch.arange(1 << 14, dtype=torch.int32), torch.empty(1 << 14, dtype=torch.int32), *extra]
    return cuda.compile(counters.FILE, name).launch(1, 32, args, check="race").traffic


@pytest.mark.parametrize("name, kind", [("shared_read", "read"), ("shared_write", "write")])
@pytest.mark.parametrize("width, stride", [(4, 1), (4, 6), (4, 24), (4, 33), (8, 3), (8, 4), (16, 5), (16, 8)])
def test_wavefronts_of_any_stride(width, stride, name, kind):
    accesses = launch(f"{name}_kernel<{ELEMENTS[width]}, {stride}>")
    (access,) = [a for a in accesses if (a.space, a.kind) == ("shared", kind)]
    assert (access.requests, access.lanes) == (1, 32)
    assert access.wavefronts == width // 4 * gcd(stride, 128 // width)
    assert access.ideal_wavefronts == width // 4


@pytest.mark.parametrize("width, stride, first", [(4, 1, 0), (4, 1, 1), (4, 3, 0), (8, 2, 0), (16, 1, 0), (16, 1, 1)])
def test_sectors_of_any_stride(width, stride, first):
    sectors = {(first + lane * stride) * width // 32 for lane in range(32)}
    (access,) = [a for a in launch(f"global_read_kernel<{ELEMENTS[width]}, {stride}>", first) if a.kind == "read"]
    assert access.sectors == len(sectors)


def test_the_stored_comparison():
    "Ten kernels and more, at least 90% of the counts equal."
    stored = bench.read_results("emulator_vs_ncu")
    rows = stored["rows"]
    assert {row["kernel"] for row in rows} == set(counters.PATTERNS) and "H200" in stored["env"]["gpu"]
    assert sum(row["emulator"] == row["ncu"] for row in rows) >= 0.9 * len(rows)


@pytest.mark.parametrize("pattern", counters.PATTERNS)
def test_the_emulator_counts_as_it_did(pattern):
    stored = bench.read_results("emulator_vs_ncu")["rows"]
    now = counters.emulator_counts(pattern)
    assert {row["metric"]: row["emulator"] for row in stored if row["kernel"] == pattern} == now


def test_a_page_without_launches():
    with pytest.raises(ValueError, match="0 launches of"):
        counters.parse_page("==ERROR== no permission")
