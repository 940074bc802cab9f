"Step 47 on the emulator: every rung of its ladder, every candidate, many tiles to a block, launches that are kept."

import pytest
import torch

from flashmoe_nb import cuda, emulator, reference
from flashmoe_nb.attention import overlap as step

CANDIDATES = list(dict.fromkeys(tile for tiles in step._CANDIDATES.values() for tile in tiles))


def check(tile, batch, heads, heads_k, seqlen_q, seqlen_k, causal, **settings):
    q, k, v = reference.attention_inputs(
        batch, heads, seqlen_q, tile.head_dim, seqlen_k=seqlen_k, num_heads_k=heads_k, device="cpu"
    )
    out, lse = step.with_tile(tile, q, k, v, causal=causal, return_lse=True)
    reference.check_attention(out, q, k, v, lse=lse, causal=causal, name=str(tuple(tile)), **settings)
    return out


@pytest.mark.parametrize("rung", step.OPTIMISATIONS)
def test_every_rung_is_right(rung):
    check(step.Tile(64, 2, 64, 2, 2, rung), 1, 2, 1, 140, 170, True)


@pytest.mark.parametrize("tile", CANDIDATES, ids=lambda tile: "-".join(map(str, tile)))
@pytest.mark.parametrize("seqlen_q, seqlen_k", ((130, 300), (300, 130), (70, 3)))
def test_one_block_takes_many_tiles(monkeypatch, tile, seqlen_q, seqlen_k):
    "Tiles of all lengths, none included, follow each other in one persistent block, in an arbitrary order of threads."
    monkeypatch.setattr(step, "_num_sms", lambda device: 1)
    step._known.clear()
    with cuda.emulation(schedule="random", seed=seqlen_q):
        check(tile, 1, 3, 3, seqlen_q, seqlen_k, True)
    step._known.clear()


def test_it_does_not_matter_who_computes_a_row():
    "Tiles that are flipped or not give the same bits: in one block one after the other, and all the other way round."
    q, k, v = reference.attention_inputs(1, 3, 300, 64, seqlen_k=520, device="cpu")
    header = cuda.read_source("common/hopper_tiles.cuh").text.split("\n", 2)[2]
    rule, outs = "tile.flipped = behind * more > 0;", []
    assert header.count(rule) == 1
    for text in (header, header.replace(rule, "tile.flipped = behind * more <= 0;")):
        cuda.register("common/hopper_tiles.cuh", text, key="flipped", label="flipped", start=True)
        step._known.clear()
        try:
            with cuda.emulation(schedule="random", seed=len(outs)):
                outs.append(step.with_tile(step.Tile(64, 4, 64, 4, 2), q, k, v, causal=True, return_lse=True))
        finally:
            cuda.unregister("common/hopper_tiles.cuh")
            step._known.clear()
    assert all(torch.equal(*pair) for pair in zip(*outs, strict=True))


def test_a_late_lane_needs_the_warp_to_wait(monkeypatch):
    "Without the barrier in `release` one lane gives a slot back before another has seen it full, which then waits for ever."
    header = cuda.read_source("common/tma_ring.cuh").text.split("\n", 2)[2]
    assert header.count("        __syncwarp();") == 1
    lines = [line for line in header.splitlines() if not line.startswith("        __syncwarp();")]
    monkeypatch.setattr(step, "_num_sms", lambda device: 1)
    step._known.clear()
    cuda.register("common/tma_ring.cuh", "\n".join(lines), key="late", label="late", start=True)
    try:
        with pytest.raises(emulator.Deadlock):
            for seed in range(8):
                with cuda.emulation(schedule="random", seed=seed):
                    check(step.Tile(64, 4, 64, 4, 2), 1, 1, 1, 520, 520, True)
    finally:
        cuda.unregister("common/tma_ring.cuh")
        step._known.clear()


def test_a_kept_launch_follows_its_tensors():
    "A second call of the same layout is a lookup; other addresses, strides, scales and dtypes are not mixed up."
    step._known.clear()
    for dtype, scale in ((torch.bfloat16, None), (torch.float16, None), (torch.bfloat16, 0.3), (torch.bfloat16, None)):
        q, k, v = reference.attention_inputs(1, 2, 70, 64, dtype=dtype, device="cpu")
        reference.check_attention(step.overlap(q, k, v, softmax_scale=scale), q, k, v, softmax_scale=scale)
    assert len(step._known) == 3
    wide = torch.randn(1, 2, 70, 68).to(torch.bfloat16)
    for shifted in (wide[..., 1:65], wide[..., 4:68]):  # not aligned: copied, and so not kept
        reference.check_attention(step.overlap(shifted, shifted, shifted), shifted, shifted, shifted)
    assert len(step._known) == 3


def test_the_rule_names_a_candidate():
    for head_dim in (8, 64, 72, 128, 200, 256):
        for causal in (False, True):
            assert step.choose_tile(head_dim, 1000, 1000, causal).head_dim >= head_dim
            assert step.candidates(head_dim, 1000, causal)[0] in CANDIDATES


def test_the_rule_counts_what_tiles_cover():
    "576 queries are three tiles of 192, or two and a quarter of 256; 512 are two of 256. A mask leaves few keys for the quarter."
    assert step.choose_tile(64, 576, 576, False).block_m == 192
    assert step.choose_tile(64, 512, 512, False).block_m == 256
    tile = CANDIDATES[0]
    assert step._covered(tile, 512, 512, False) == 512 * 512 and step._covered(tile, 512, 512, True) == 256 * (512 + 256)
    whole, quarter = 256 * (576 + 320), 64 * (256 + 3 * 64) / 4
    assert step._covered(tile, 576, 576, True) == whole + quarter


def divided_by(parts):
    "A rule that divides whatever full rounds leave, and into so many parts."
    return lambda tiles, seqlen_k, tile, num_sms: step.Split(tiles - tiles % num_sms, parts if tiles % num_sms else 1)


@pytest.mark.parametrize("tile", CANDIDATES, ids=lambda tile: "-".join(map(str, tile)))
def test_tiles_in_parts(monkeypatch, tile):
    "Rows whose keys several blocks share, some parts with no key at all, next to rows that are whole; in any order."
    monkeypatch.setattr(step, "_num_sms", lambda device: 3)
    monkeypatch.setattr(step, "choose_split", divided_by(5))
    step._known.clear()
    outs = []
    for seed in range(2):
        with cuda.emulation(schedule="random", seed=seed):
            outs.append(check(tile, 1, 2, 1, 130, 200, False))
    assert torch.equal(*outs), "the bits must not depend on who comes last"
    step._known.clear()


def test_counters_are_left_at_zero(monkeypatch):
    "The next launch that takes them finds what this one found."
    kept = []
    monkeypatch.setattr(step, "choose_split", divided_by(3))
    monkeypatch.setattr(step, "_num_sms", lambda device: 3)
    monkeypatch.setattr(
        step, "_next_counters", lambda device, count: kept.append(torch.zeros(count, dtype=torch.int32)) or kept[-1]
    )
    step._known.clear()
    check(step.Tile(64, 2, 64, 2, 2), 1, 4, 4, 140, 200, False)
    assert len(kept[-1]) > 1 and not kept[-1].any()
    step._known.clear()


def test_the_rule_divides_a_short_last_round():
    "68 tiles of each of 8 heads are 4.1 rounds of 132; 66 are 4; of 128 keys no part would be worth its ends."
    split = step.choose_split(68 * 8, 8704, CANDIDATES[0], 132)
    assert split.whole == 4 * 132 and split.parts > 1
    assert step.choose_split(66 * 8, 8448, CANDIDATES[0], 132) == (66 * 8, 1)
    assert step.choose_split(68 * 8, 128, CANDIDATES[0], 132) == (68 * 8, 1)
    for tiles in range(1, 300):
        split = step.choose_split(tiles, 16384, CANDIDATES[-1], 132)
        assert split.whole in (tiles, tiles - tiles % 132) and (split.parts == 1) == (split.whole == tiles)
