"""What a checked launch reports: traffic by line, races whatever the order of threads, and who waits for whom."""

import math
import re
import time
from collections import Counter

import pytest
import torch
from attention_cases import STEPS
from emulated import FOLDER, build, compiler, line  # noqa: F401, the fixture

from flashmoe_nb import cuda, emulator
from flashmoe_nb.moe.fused_layer import fused_moe

FILE = "reports.cu"
ALL = tuple(emulator.CHECKS)
ORDERS = ({}, {"schedule": "reverse"}, {"seed": 7})
each_order = pytest.mark.parametrize("order", ORDERS, ids=("forward", "reverse", "random"))


def launch(name, grid, block, args, smem=0, check=ALL, **options) -> emulator.Report:
    return build(FILE, name, check=check).launch(grid, block, args, smem, check=check, **options)


def at(report: emulator.Report, mark: str) -> emulator.Line:
    "The report's line that is marked so in the source."
    (found,) = (x for x in report.lines if x.place.label == line(FILE, f"here: {mark}"))
    return found


def marks(race: emulator.Race) -> tuple[str, str]:
    "The marks of the two lines of a race."
    texts = [(FOLDER / FILE).read_text().splitlines()[s.place.line - 1] for s in (race.first, race.second)]
    return tuple(re.search(r"// here: (\w+)$", text)[1] for text in texts)


class TestCounts:
    # stride in words -> wavefronts of a warp, from the banks by hand: lanes that share a bank and not a word queue up
    @pytest.mark.parametrize(("width", "stride", "wavefronts"), [
        (4, 0, 1), (4, 1, 1), (4, 2, 2), (4, 3, 1), (4, 4, 4), (4, 16, 16), (4, 32, 32), (4, 33, 1),
        (8, 1, 2), (8, 2, 4), (8, 16, 32), (16, 1, 4), (16, 2, 8), (16, 8, 32), (16, 9, 4)])
    def test_banks(self, width, stride, wavefronts):
        report = launch(f"stride_kernel<{width}>", 1, 32, [torch.zeros(32 * width // 4), stride], 32 * 32 * 33)
        load = at(report, "load")
        assert (load.wavefronts, load.ideal_wavefronts) == (wavefronts, min(wavefronts, width // 4))
        assert at(report, "store").wavefronts == wavefronts
        assert load.active == 1.0 and load.shared == wavefronts / min(wavefronts, width // 4)

    @pytest.mark.parametrize(("first", "stride", "sectors"), [(0, 1, 4), (1, 1, 5), (0, 2, 8), (0, 8, 32), (3, 9, 32), (0, 0, 1)])
    def test_sectors(self, first, stride, sectors):
        report = launch("sectors_kernel", 1, 32, [torch.randn(512), torch.zeros(8), first, stride])
        gather = at(report, "gather")
        assert (gather.sectors, gather.ideal_sectors) == (sectors, min(sectors, 4))
        few = at(report, "few")
        assert (few.requests, few.lanes, few.sectors, few.active) == (1, 8, 1, 0.25)

    @pytest.mark.parametrize(("pitch", "wavefronts"), [(128, 32), (64, 16), (144, 4), (16, 4)])
    def test_ldmatrix(self, pitch, wavefronts):
        "Eight rows of sixteen bytes a matrix, four matrices."
        report = launch("rows_kernel", 1, 32, [torch.randn(1024), torch.zeros(32), pitch], 4096)
        assert (at(report, "ldmatrix").wavefronts, at(report, "ldmatrix").ideal_wavefronts) == (wavefronts, 4)

    @each_order
    def test_the_order_of_threads_does_not_count(self, order):
        report = launch("exchange_kernel<RIGHT>", 2, 128, [torch.randn(128), torch.zeros(128)], **order)
        read = at(report, "read")
        assert (read.requests, read.wavefronts, read.sectors) == (3 * 4 * 2 * 2, 24, 96)

    def test_a_compiler_decides_nothing(self, compiler):  # noqa: F811
        report = launch("stride_kernel<4>", 1, 32, [torch.zeros(32), 2], 32 * 32 * 33)
        assert at(report, "load").wavefronts == at(report, "store").wavefronts == 2


RING = [torch.arange(192.0), 6]
A = torch.randint(-3, 4, (64, 64), generator=torch.Generator().manual_seed(0)).bfloat16()


def arguments(name: str) -> tuple:
    "Grid, block, arguments, dynamic shared memory and options of a launch of the kernel, with fresh output."
    kernel = name.partition("<")[0]
    out, x = torch.full((4096,), math.nan), torch.arange(512.0)
    return {"exchange_kernel": (1, 128, [x, out]), "vote_kernel": (1, 32, [x, out]),
            "halves_kernel": (1, 128, [out, 64]), "flag_kernel": (2, 64, [x, torch.zeros(1, dtype=torch.int32), out]),
            "last_block_kernel": (5, 64, [x, torch.zeros(1, dtype=torch.int32), torch.zeros(1)]),
            "named_kernel": (1, 64, [x, out]), "cp_async_kernel": (1, 32, [x, out]), "parts_kernel": (1, 64, [out]),
            "ring_kernel": (1, 64, [x, out, 2 if "NO_FULL" in name else 6]),
            "send_kernel": (1, 64, [x, out]),
            "product_kernel": (1, 160, [cuda.TensorMap(A, (64, 64), "128B"), out, 3], 8192),
            "neighbours_kernel": (2, 32, [out], 0, {"cluster": 2})}[kernel]


def run(name: str, check=ALL, **order) -> emulator.Report:
    grid, block, args, *rest = arguments(name)
    smem, options = (*rest, 0, {})[:2] if len(rest) < 2 else rest
    return launch(name, grid, block, args, smem, check=check, **(options or {}), **order)


RIGHT = ["exchange_kernel<RIGHT>", "vote_kernel<RIGHT>", "parts_kernel", "named_kernel<RIGHT>", "cp_async_kernel<COPY_RIGHT>",
         "ring_kernel<RING_RIGHT>", "product_kernel<PRODUCT_RIGHT>", "send_kernel<PRODUCT_RIGHT>", "neighbours_kernel<RIGHT>",
         "halves_kernel<RIGHT>", "last_block_kernel<LAST_RIGHT>", "last_block_kernel<ALL_RELEASE>",
         "flag_kernel<FLAG_RIGHT>", "flag_kernel<FLAG_COUNTED>"]

WRONG = {  # the marks of the two lines that nothing orders
    "exchange_kernel<NO_SYNCTHREADS>": {"write", "read"},
    "exchange_kernel<NO_SYNCWARP>": {"write", "read"},
    "exchange_kernel<ONLY_SHUFFLE>": {"write", "read"},
    "vote_kernel<ONLY_VOTE>": {"look", "replace"},
    "named_kernel<TOO_EARLY>": {"drain", "fill"},
    "cp_async_kernel<NO_WAIT>": {"copy", "use"},
    "cp_async_kernel<WAIT_TOO_LATE>": {"copy", "use"},
    "cp_async_kernel<NO_BARRIER>": {"copy", "use"},
    "ring_kernel<EARLY_ARRIVE>": {"consume", "fetch"},
    "ring_kernel<NO_FULL_WAIT>": {"consume", "fetch"},
    "ring_kernel<ONE_LANE_ARRIVES>": {"consume", "fetch"},
    "product_kernel<REFILL_EARLY>": {"product", "refill"},
    "product_kernel<ONE_WARP_ARRIVES>": {"product", "refill"},
    "send_kernel<NO_PROXY_FENCE>": {"stage", "send"},
    "neighbours_kernel<NO_SYNCTHREADS>": {"own", "theirs"},
    "halves_kernel<NO_SYNCTHREADS>": {"give", "take"},
    "last_block_kernel<NO_RELEASE>": {"part", "sum"},
    "last_block_kernel<NO_ACQUIRE>": {"part", "sum"},
    "last_block_kernel<ONE_THREAD_KNOWS>": {"part", "sum"},
    "flag_kernel<FLAG_PLAIN>": {"make", "take_tile"},
    "flag_kernel<FLAG_EARLY>": {"make", "take_tile"},
}


class TestRaces:
    @each_order
    @pytest.mark.parametrize("name", RIGHT)
    def test_none_in_a_right_kernel(self, name, order):
        assert run(name, **order).races == []

    @each_order
    @pytest.mark.parametrize("name", WRONG)
    def test_found_in_every_order(self, name, order):
        "Whether or not something goes wrong. Where it does, another check may end the launch first."
        try:
            races = run(name, check=("race",), **order).races
        except (emulator.AsyncMisuse, emulator.BarrierMisuse) as error:
            assert name in ("product_kernel<REFILL_EARLY>", "ring_kernel<ONE_LANE_ARRIVES>"), error
        else:
            assert races and all(set(marks(race)) == WRONG[name] for race in races), races

    def test_kinds(self):
        "Named as they came in the first warp's favour."
        kinds = {"exchange_kernel<NO_SYNCTHREADS>": "read after write", "ring_kernel<EARLY_ARRIVE>": "write after read",
                 "send_kernel<NO_PROXY_FENCE>": "missing proxy fence"}
        for name, kind in kinds.items():
            assert kind in {race.kind for race in run(name, check="race").races}

    @each_order
    def test_none_in_the_layer_of_experts(self, order):
        "Routing, dispatch, both products and the combination; test_attention.py asks the same of every attention step."
        random, reports = torch.Generator().manual_seed(0), []
        tokens, logits = (torch.randn(40, n, generator=random) for n in (128, 8))
        weights = [torch.randn(8, *shape, generator=random).bfloat16() / 8 for shape in ((256, 128), (128, 128))]
        with cuda.emulation(check=ALL, reports=reports, **order):
            fused_moe(tokens.bfloat16(), weights, logits, 2)
        assert len(reports) >= 4 and [race for report in reports for race in report.races] == []

    def test_an_early_arrive_leaves_the_output_right(self):
        for order in ORDERS:
            out, x = torch.full((192,), math.nan), torch.arange(192.0)
            report = launch("ring_kernel<EARLY_ARRIVE>", 1, 64, [x, out, 6], **order)
            assert torch.equal(out, 2 * x) and [marks(r) for r in report.races] == [("consume", "fetch")]

    @each_order
    def test_between_blocks_both_are_named(self, order):
        "Two blocks of one warp, which no barrier of a block could order."
        (race,) = launch("halves_kernel<RIGHT>", 2, 32, [torch.zeros(64), 32], **order).races[:1]
        sides = {side.threads.split(",")[0] for side in (race.first, race.second)}
        assert sides == {"block 0", "block 1"} and re.fullmatch(r"at byte \d+ of argument 0 \(256 bytes\)", race.where)

    def test_a_sum_by_the_last_block(self):
        total = torch.zeros(1)
        args = [torch.zeros(5 * 64), torch.zeros(1, dtype=torch.int32), total]
        assert launch("last_block_kernel<LAST_RIGHT>", 5, 64, args).races == [] and total.item() == 5 * 64

    @pytest.mark.parametrize(("own", "races"), [(0, 0), (1, 1)])
    def test_one_value_from_every_lane_does_no_harm_in_global_memory(self, own, races):
        found = launch("same_word_kernel", 1, 32, [torch.zeros(1), own]).races
        assert [marks(r) for r in found] == [("same_word", "same_word")] * races

    def test_both_sides_are_named(self):
        (race,) = run("ring_kernel<EARLY_ARRIVE>").races
        assert race.first.what == "reads" and race.first.threads.startswith("warp 1, lanes ")
        assert race.second.what == "tma_load writes" and race.second.threads == "warp 0, lane 0"
        assert "the shared array 's_slot'" in race.where and race.block == 0 and race.count > 0
        assert str(race).count("kernels/tests/reports.cu:") == 2

    @pytest.mark.parametrize(("own", "races"), [(0, 0), (1, 1)])
    def test_one_value_from_every_lane_does_no_harm(self, own, races):
        report = launch("same_place_kernel", 1, 32, [torch.zeros(32), own])
        assert [marks(r) for r in report.races] == [("same", "same")] * races

    def test_each_compiler(self, compiler):  # noqa: F811
        assert run("ring_kernel<RING_RIGHT>").races == [] and run("parts_kernel").races == []
        assert [marks(r) for r in run("ring_kernel<EARLY_ARRIVE>").races] == [("consume", "fetch")]


class TestReport:
    def test_text_has_a_row_for_every_line(self):
        text = str(launch("stride_kernel<4>", 1, 32, [torch.zeros(32), 32], 32 * 32 * 33))
        rows = text.splitlines()
        assert rows[0].startswith("Report(stride_kernel<4>: no error; ") and rows[1].split()[:2] == ["shared", "global"]
        assert any(row.split()[0] == "32x" and "here: load" in row for row in rows)
        assert rows[-1] == f"Worst line, {line(FILE, 'here: store')}: 32 wavefronts of shared memory where 1 would do."

    def test_races_come_first_in_the_verdict(self):
        report = run("exchange_kernel<NO_SYNCTHREADS>", check="race")
        assert report.verdict.startswith("read after write") and "race" in repr(report)
        assert all(x.races for x in (at(report, "read"), at(report, "write")))

    def test_nothing_to_say(self):
        assert run("exchange_kernel<RIGHT>").verdict == "No race, no bank conflict, and every sector is used."

    def test_html_shows_the_lines_between(self):
        html = run("ring_kernel<EARLY_ARRIVE>")._repr_mimebundle_()["text/html"]
        assert "mbar_arrive_expect_tx(&amp;full[i % 2], 128);" in html and "exchange_kernel" not in html

    def test_html_escapes_and_colours(self):
        html = launch("stride_kernel<4>", 1, 32, [torch.zeros(32), 32], 32 * 32 * 33)._repr_mimebundle_()["text/html"]
        assert "rgba(194,80,79,1.00)" in html and "Word&lt;" not in html and "reinterpret_cast&lt;W*&gt;" in html

    def test_html_says_how_its_table_is_laid_out(self):
        "Whatever a page says of tables: JupyterLab would push code to the right."
        html = launch("sectors_kernel", 1, 32, [torch.randn(512), torch.zeros(8), 0, 1])._repr_mimebundle_()["text/html"]
        assert all("text-align:" in cell for cell in re.findall(r"<t[dh] [^>]*>", html)) and "<td>" not in html
        assert re.search(r'text-align:left"><span style="font-family:monospace;white-space:pre">const float x', html)
        assert ">global</th>" in html and ">shared</th>" not in html and ">held</th>" not in html      # nothing to say

    def test_an_unchecked_launch_reports_nothing(self):
        x, out = torch.arange(512.0), torch.zeros(4096)
        assert build(FILE, "ring_kernel<RING_RIGHT>").launch(1, 64, [x, out, 6]) is None
        traced = build(FILE, "ring_kernel<RING_RIGHT>").launch(1, 64, [x, out, 6], trace=True)
        assert traced.lines == [] and "text/html" not in traced._repr_mimebundle_()

    def test_an_error_carries_what_was_seen_before_it(self):
        with pytest.raises(emulator.AsyncMisuse) as caught:
            run("product_kernel<REFILL_EARLY>", trace=True)
        assert {meet.what for meet in caught.value.report.meets} == {"arrive", "wait", "start"}

    def test_reports_of_a_block_of_launches_are_collected(self):
        cuda.register("scratch/reports.cu", "__global__ void fill_kernel(float* g) { g[threadIdx.x] = 1.0f; }", key="r", label="r",
                      start=True)
        reports = []
        with cuda.emulation(check="race", reports=reports):
            for _ in range(2):
                cuda.compile("scratch/reports.cu", "fill_kernel").launch(1, 32, [torch.zeros(32)])
        assert [r.kernel for r in reports] == ["fill_kernel"] * 2


class TestTimeline:
    def test_who_waits_for_whom(self):
        report = run("ring_kernel<RING_RIGHT>")
        waits = [m for m in report.meets if m.what == "wait" and "mbarrier" in m.object]
        assert {m.warp for m in waits} == {0, 1}
        assert sum(m.warp == 1 for m in waits) == 6 and sum(m.warp == 0 for m in waits) == 4
        assert all(m.by in (-1, 1) for m in waits)      # a copy, or the consuming warp
        assert all(m.lanes == (1 if m.warp == 0 else 2**32 - 1) for m in waits)

    @each_order
    def test_cause_and_effect_do_not_depend_on_the_order(self, order):
        def steps(**order): return sorted((m.warp, m.what, m.place, m.phase, m.start, m.end) for m in run(name, **order).meets)
        name = "ring_kernel<RING_RIGHT>"
        assert steps(**order) == steps()

    def test_waits_are_counted_by_warp(self):
        counts = Counter()
        for wait in run("named_kernel<RIGHT>").waits:      # a compiler may have copied the line
            counts[wait.warp] += wait.count
        assert counts == {0: 3, 1: 4}

    def test_a_picture(self):
        figure = run("ring_kernel<RING_RIGHT>").timeline()
        assert {trace.name for trace in figure.data} == {"waits", "arrives", "starts", "came last"}


@pytest.mark.parametrize(("step", "limit"), [("tiling", 60), ("tensor_cores", 4), ("overlap", 4)])
def test_what_the_checks_cost(step, limit):
    "Processor time against that of a plain launch; the least of three."
    q, k, v = (torch.randn(1, 1, 256, 64, generator=torch.Generator().manual_seed(0)).bfloat16() for _ in range(3))

    def least(**options):
        seconds = []
        with cuda.emulation(workers=1, **options):
            for _ in range(4):      # the first builds
                started = time.process_time()
                STEPS[step](q, k, v)
                seconds.append(time.process_time() - started)
        return min(seconds[1:])

    assert least(check=ALL) <= limit * least()


def test_a_magic_shows_the_reports(capsys):
    from IPython.testing.globalipapp import start_ipython

    from flashmoe_nb import workbook
    shell = start_ipython() or __import__("IPython").get_ipython()
    workbook.load_ipython_extension(shell)
    shell.user_ns.update(torch=torch, cuda=cuda)
    call = "cuda.compile('scratch/magic.cu', 'k').launch(1, 32, [torch.zeros(32)])"
    shell.run_cell(f'%%cuda scratch/magic.cu --check "{call}"\n__global__ void k(float* g) {{ g[threadIdx.x] = 1; }}').raise_error()
    assert "No race" in capsys.readouterr().out
    result = shell.run_cell('%%cuda scratch/magic.cu --check "1"\n__global__ void k(float* g) { }')
    assert result.error_in_exec is not None and "launched nothing on the emulator" in str(result.error_in_exec)
