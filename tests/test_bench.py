"""The harness against clocks that are known, the counts against loops, the results format, and the plots."""

import gc
import itertools
import json
import os
import random
import statistics
import subprocess
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from flashmoe_nb import bench, moe_bench, plots, profile, reference, scoreboard


@pytest.fixture(autouse=True)
def quiet_torch():
    with warnings.catch_warnings(action="ignore"):  # torch also warns why a backend of its attention is unavailable
        yield


class FalseTime:
    "A stopwatch that moves only when told to, in seconds."

    def __init__(self):
        self.time, self.calls = 0.0, []

    def __call__(self):
        return self.time

    def kernel(self, name, seconds):
        "A function that takes `seconds(call number)` and notes what it was called with."
        count = itertools.count()

        def run(*arguments):
            self.calls.append((name, *arguments))
            self.time += seconds(next(count))

        return run


INPUTS = [("first",), ("second",), ("third",)]


def test_compare_measures_by_the_clock():
    now = FalseTime()
    kernels = {"a": now.kernel("a", lambda i: 0.001 * (i + 1)), "b": now.kernel("b", lambda i: 0.5)}
    found = bench.compare(kernels, INPUTS, warmup=2, samples=5, clock=bench.HostClock(now))
    assert found["a"].samples_ms == pytest.approx((3, 4, 5, 6, 7))  # calls 0 and 1 were warm-up
    assert found["b"].samples_ms == pytest.approx((500,) * 5)
    a = found["a"]
    assert (a.median_ms, a.min_ms, a.max_ms) == pytest.approx((5, 3, 7)) and a.clock == "host clock"


def test_compare_takes_turns_and_rotates_inputs():
    now = FalseTime()
    names = ("a", "b", "c", "d")
    bench.compare({n: now.kernel(n, lambda i: 0.001) for n in names}, INPUTS, warmup=4, samples=12, clock=bench.HostClock(now))
    assert len(now.calls) == 4 * (4 + 12)
    assert {(name, argument) for name, argument in now.calls[:16]} == {(n, *i) for n in names for i in INPUTS}  # warm-up
    rounds = [now.calls[i : i + 4] for i in range(16, 64, 4)]
    for i, calls in enumerate(rounds):
        assert {name for name, _ in calls} == set(names)  # every round times each of them once
        assert {argument for _, argument in calls} == {INPUTS[i % 3][0]}  # on the same input
    first = [calls[0][0] for calls in rounds]
    assert first == ["a", "b", "c", "d"] * 3  # and each begins a round equally often


def test_taking_turns_cancels_drift():
    now = FalseTime()

    def drifting(i):
        return 0.010 * (1 + now.time / 4)  # every second makes it a quarter slower

    found = bench.compare({n: now.kernel(n, drifting) for n in "ab"}, INPUTS, samples=41, clock=bench.HostClock(now))
    a, b = found["a"], found["b"]
    assert a.max_ms > 1.15 * a.min_ms
    assert b.median_ms == pytest.approx(a.median_ms, rel=0.01)


def test_compare_rejects():
    kernels = {"a": lambda x: x}
    for message, arguments in (
        ("at least 3", (kernels, INPUTS[:2], {})),
        ("mode", (kernels, INPUTS, dict(mode="lazy"))),
        ("need CUDA", (kernels, INPUTS, dict(mode="graph"))),
        ("need CUDA", (kernels, INPUTS, dict(flush_l2=True))),
    ):
        with pytest.raises(ValueError, match=message):
            bench.compare(arguments[0], arguments[1], **arguments[2])
    assert bench.compare({}, INPUTS) == {}


def test_an_error_of_an_implementation_is_not_swallowed():
    def broken(x):
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        bench.compare({"broken": broken}, INPUTS)


@pytest.fixture
def false_gpu(monkeypatch):
    "torch.cuda as a list of what was put into the queue."
    queue = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            queue.append("event")
            self.at = len(queue)

        def elapsed_time(self, end):
            assert queue[-1] == "synchronize"
            return float(end.at - self.at)

    class Scratch:
        def zero_(self):
            queue.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: queue.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: queue.append("sleep"))
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: Scratch())
    monkeypatch.setattr(bench, "_on_cuda", lambda inputs: True)
    return queue


@pytest.mark.parametrize("flush_l2", [False, True])
def test_a_gpu_is_timed_between_events_and_never_waited_for_in_between(false_gpu, flush_l2):
    found = bench.compare({"a": lambda x: false_gpu.append("kernel")}, INPUTS, warmup=2, samples=4, flush_l2=flush_l2)
    one = ["flush"] * flush_l2 + ["sleep", "event", "kernel", "event"]
    assert false_gpu == ["kernel"] * 2 + ["synchronize"] + one * 4 + ["synchronize"]
    assert found["a"].samples_ms == (2.0,) * 4 and found["a"].clock == "CUDA events"


def test_graph_mode_captures_once_and_times_the_replay(false_gpu, monkeypatch):
    captured = []

    def capture(run, pool):
        assert pool == "pool"  # one for all
        captured.append(run)
        return lambda: false_gpu.append("replay")

    monkeypatch.setattr(bench, "_captured", capture)
    bench.compare({"a": lambda x: false_gpu.append("kernel")}, INPUTS, warmup=1, samples=2, mode="graph")
    assert len(captured) == 3 and "kernel" not in false_gpu and false_gpu.count("replay") == 3


def test_host_time():
    now, made = FalseTime(), []

    def fresh():
        made.append(object())
        now.time += 1.0  # making inputs is not part of a call
        return (made[-1],)

    launch = now.kernel("launch", lambda i: 20e-6 if i >= 4 else 1.0)  # the first batch compiles
    timing = bench.host_time(launch, fresh, batch=4, rounds=3, now=now)
    assert timing.samples_ms == pytest.approx((0.020,) * 3)
    seen = [argument for _, argument in now.calls]
    assert len(seen) == 16 == len(set(map(id, seen)))  # never the same tensor twice


def test_host_time_keeps_results_and_lets_the_collector_rest():
    class Output:
        alive = 0

        def __init__(self):
            Output.alive += 1
            seen.append((Output.alive, gc.isenabled()))

        def __del__(self):
            Output.alive -= 1

    seen = []
    bench.host_time(Output, tuple, batch=3, rounds=2)
    assert [alive for alive, _ in seen] == [1, 2, 3] * 3  # a result is freed after its batch: outputs are fresh, too
    assert not any(enabled for _, enabled in seen[3:])


def test_host_time_leaves_the_garbage_collector_as_it_was():
    def fails():
        raise RuntimeError("launch failed")

    gc.enable()
    bench.host_time(lambda: None, tuple, batch=2, rounds=2)
    assert gc.isenabled()
    with pytest.raises(RuntimeError):
        bench.host_time(fails, tuple)
    assert gc.isenabled()
    gc.disable()
    try:
        bench.host_time(lambda: None, tuple, batch=2, rounds=2)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_peak_memory_wants_cuda():
    with pytest.raises(ValueError, match="CUDA"):
        bench.peak_memory(torch.relu, torch.zeros(3))


def test_a_comparison_shows_itself():
    found = bench.Comparison(a=bench.Timing((1.0, 2.0, 9.0), "CUDA events"), bb=bench.Timing((3.0, 4.0, 5.0), "CUDA events"))
    assert repr(found).splitlines()[0] == "a   2 ms (1 to 9, 3 samples, CUDA events)"
    assert "2.00 ×" in found._repr_html_() and "1 to 9" in found._repr_html_()


def test_a_measurement_shows_itself():
    bundle = bench.Measurement("copy", "4.2 TB/s", "cuda")._repr_mimebundle_()
    record = dict(name="copy", text="4.2 TB/s", backend="cuda")
    assert bundle["application/vnd.flashmoe.measurement+json"] == record and bundle["text/plain"] == "copy: 4.2 TB/s (cuda)"


# Counting and predicting


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(8, 8), (3, 11), (11, 3), (1, 64)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_flops(seqlen_q, seqlen_k, causal):
    visible = reference.visible_keys(seqlen_q, seqlen_k, causal=causal)
    pairs = seqlen_q * seqlen_k if visible is None else int(visible.sum())
    counted = bench.attention_flops(2, 3, seqlen_q, seqlen_k, 16, causal)
    diagonal = min(seqlen_q, seqlen_k) / 2 if causal else 0  # the convention counts half of it
    assert counted == 2 * 3 * 16 * 4 * (pairs - diagonal)
    assert bench.attention_flops(2, 3, seqlen_q, seqlen_k, 16, causal, backward=True) == 2.5 * counted


def test_attention_bytes():
    q, k = torch.zeros(2, 6, 5, 16).bfloat16(), torch.zeros(2, 3, 7, 16).bfloat16()
    total = sum(x.numel() * x.element_size() for x in (q, k, k, q))
    assert bench.attention_bytes(2, 6, 5, 7, 16, num_heads_k=3) == total
    assert bench.attention_bytes(2, 6, 5, 5, 16, itemsize=4) == 4 * 4 * q.numel()


def test_moe_counts():
    assert bench.moe_flops(10, 2, 8, 4) == 10 * 2 * (2 * 8 * 8 + 2 * 4 * 8)  # 2·inter rows of length 8, then hidden rows of 4
    assert bench.moe_bytes(10, 8, 4, touched_experts=3) == 2 * (3 * (2 * 4 * 8 + 8 * 4) + 2 * 10 * 8)
    draw = random.Random(0)
    touched = [len({e for _ in range(20) for e in draw.sample(range(32), 3)}) for _ in range(400)]
    assert bench.expected_touched(20, 32, 3) == pytest.approx(statistics.mean(touched), rel=0.02)
    assert bench.expected_touched(1, 8, 2) == pytest.approx(2)


def test_predict():
    machine = {"cublas_bf16_tflops": 800.0, "copy_TBps": 4.0}
    by_memory = bench.predict(flops=1e9, bytes=4e9, ceilings=machine)
    assert (by_memory.ms, by_memory.limit) == (pytest.approx(1.0), "memory")
    by_compute = bench.predict(flops=8e12, bytes=4e9, ceilings=machine)
    assert (by_compute.ms, by_compute.limit) == (pytest.approx(10.0), "compute")


def test_ceilings_of_this_machine(monkeypatch):
    monkeypatch.setattr(bench.cuda, "available_backend", lambda: "emulator")
    taken = iter([0.002, 0.004])  # seconds of the copy, of the product

    def false_compare(implementations, inputs, samples):
        seconds = next(taken)
        for function in implementations.values():
            function(*inputs[0])
        return {name: bench.Timing((1e3 * seconds,), "false") for name in implementations}

    monkeypatch.setattr(bench, "compare", false_compare)
    found = bench.ceilings()
    tflops, bandwidth = 2 * 1024**3 / 0.004 / 1e12, 2 * 2**26 / 0.002 / 1e12
    assert found == {"cpu_fp32_tflops": pytest.approx(tflops), "copy_TBps": pytest.approx(bandwidth)}


# Results


def attention_row(**changes):
    row = dict(impl="tiling", dtype="bf16", batch=1, num_heads=2, num_heads_k=2, seqlen_q=64, seqlen_k=64, head_dim=64,
               causal=False, median_ms=1.0, min_ms=0.9, max_ms=1.5, samples=[1.0], tflops=0.5)
    return row | changes


def test_results_are_written_and_read_whole(tmp_path):
    rows = [attention_row(), attention_row(impl="sdpa_flash", extra_bytes=0)]
    path = bench.write_results(tmp_path / "deep" / "attention_forward.json", rows, ceilings={"copy_TBps": 4.2})
    stored = bench.read_results("attention_forward", path.parent)
    assert list(stored) == ["env", "ceilings", "rows"] and stored["rows"] == rows and stored["ceilings"] == {"copy_TBps": 4.2}
    assert set(stored["env"]) == {"gpu", "driver", "cuda", "nvrtc", "torch", "cupy", "commit", "dirty", "date"}
    assert len(path.read_text().splitlines()) == len(rows) + 2  # a row a line
    bench.write_results(path, rows[:1])
    assert bench.read_results("attention_forward", path.parent)["rows"] == rows[:1]  # replaced, not merged
    assert os.listdir(path.parent) == ["attention_forward.json"] and path.stat().st_mode & 0o777 == 0o644
    assert bench.read_results("moe_forward", path.parent) is None
    assert bench.write_results(tmp_path / "own_name.json", []).is_file()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([attention_row(), {k: v for k, v in attention_row().items() if k != "tflops"}], "row 1 of .* lacks tflops"),
        ([attention_row(tflops=float("nan"))], "not finite"),
        ([attention_row(samples=[float("inf")])], "not finite"),
    ],
)
def test_a_bad_row_leaves_the_old_file(tmp_path, rows, message):
    path = bench.write_results(tmp_path / "attention_forward.json", [attention_row()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        bench.write_results(path, rows)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["attention_forward.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = bench.write_results(tmp_path / "host_overhead.json", [dict(op="a", median_us=1.0)])
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.write_results(path, [dict(op="b", median_us=2.0)])
    assert path.read_bytes() == before


def test_rows_name_the_unit():
    timing = bench.Timing((1.0, 2.0, 4.0), "CUDA events")
    assert timing.row() == dict(median_ms=2.0, min_ms=1.0, max_ms=4.0, samples=[1.0, 2.0, 4.0])
    assert timing.row("us") == dict(median_us=2000.0, min_us=1000.0, max_us=4000.0, samples=[1000.0, 2000.0, 4000.0])


def test_environment_names_the_commit():
    root = bench.checkout(bench.cuda.KERNELS)
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    found = bench.environment()
    if head.returncode == 0:
        assert found["commit"] == head.stdout.strip() and found["dirty"] in (True, False)
    assert found["torch"] == torch.__version__ and found["date"].endswith("+00:00")
    json.dumps(found, allow_nan=False)


def test_environment_without_history(monkeypatch):
    monkeypatch.setattr(bench, "_output_of", lambda *command: None)
    monkeypatch.delenv("FLASHMOE_COMMIT", raising=False)
    assert bench.environment()["commit"] is None
    monkeypatch.setenv("FLASHMOE_COMMIT", "abc123")
    assert bench.environment()["commit"] == "abc123" and bench.environment()["dirty"] is None


def test_a_missing_program_is_not_an_error():
    assert bench._output_of("a-program-that-does-not-exist") is None
    assert bench._output_of("false") is None and bench._output_of("echo", "x") == "x"


# Peers and tables


@pytest.mark.parametrize("causal", [False, True])
def test_peers_compute_attention(causal, capsys):
    q, k, v = reference.attention_inputs(1, 4, 40, 32, num_heads_k=2, device="cpu")
    peers = bench.sdpa_peers()
    found = bench.usable(peers, q, k, v, causal=causal)
    assert {"sdpa_default", "sdpa_math"} <= set(found) and all(seconds > 0 for seconds in found.values())
    for name in found:
        reference.check_attention(peers[name](q, k, v, causal=causal), q, k, v, causal=causal, unit_normal=False)
    printed, left_out = capsys.readouterr().out, set(peers) - set(found)
    assert all(f"{name} left out at this shape: No" in printed for name in left_out) and "sdpa_cudnn" in left_out


def test_peers_refuse_a_causal_mask_they_align_otherwise():
    q, k, v = reference.attention_inputs(1, 1, 4, 32, seqlen_k=8, device="cpu")
    assert bench.usable(bench.sdpa_peers(), q, k, v, causal=True) == {}
    with pytest.raises(NotImplementedError, match="top left"):
        bench.sdpa_peers()["sdpa_default"](q, k, v, causal=True)


def test_usable_passes_on_other_errors():
    def wrong_type(x):
        raise TypeError("no tensor")

    with pytest.raises(TypeError):
        bench.usable({"a": wrong_type}, 1)


def test_attention_shapes_are_those_of_the_tables():
    shapes = bench.attention_shapes()
    founding, table = shapes[:6], shapes[6:]
    assert {(s.batch, s.num_heads, s.head_dim) for s in founding} == {(4, 8, 64)} and len(table) == 36
    assert all(s.batch * s.seqlen == 16384 and s.num_heads * s.head_dim == 2048 for s in table)
    assert len(set(shapes)) == 42 and set(bench.attention_shapes(quick=True)) <= set(shapes)


def exact(q, k, v, *, causal=False):
    return reference.attention(q, k, v, causal=causal, dtype=torch.float32).to(q.dtype)


def no_mask(q, k, v, *, causal=False):
    return exact(q, k, v)


def unsupported(q, k, v, *, causal=False):
    raise NotImplementedError("head_dim 32: no kernel")


def test_bench_attention(tmp_path, capsys):
    shapes = [bench.AttentionShape(1, 2, 32, 32, causal) for causal in (False, True)]
    steps = dict(exact=exact, no_mask=no_mask, unsupported=unsupported)
    rows = bench.bench_attention(steps, shapes, samples=3, warmup=1, device="cpu", progress=False)
    path = bench.write_results(tmp_path / "attention_forward.json", rows)  # has every key
    assert path.is_file()
    ours = [(row["impl"], row["causal"]) for row in rows if not row["impl"].startswith("sdpa")]
    assert ours == [("exact", False), ("no_mask", False), ("exact", True)]  # fast and wrong does not count
    printed = capsys.readouterr().out
    assert "because it is wrong: no_mask" in printed
    assert f"unsupported left out at {shapes[0]}: head_dim 32: no kernel" in printed
    for row in rows:
        assert len(row["samples"]) == 3 and row["dtype"] == "bf16"
        flops = bench.attention_flops(1, 2, 32, 32, 32, row["causal"])
        assert row["tflops"] == pytest.approx(flops / row["median_ms"] / 1e9)


def test_rounds_come_one_after_the_other_and_are_kept(monkeypatch):
    now, shapes = FalseTime(), [bench.AttentionShape(1, 1, seqlen, 8, False) for seqlen in (64, 128)]
    speeds = iter((1.0, 2.0, 4.0))  # of the machine, in each round

    def op(q, k, v, *, causal):
        now.calls.append(("op", q.shape[2]))
        now.time += 0.001 * machine["slower"]
        return reference.attention(q, k, v, causal=causal, dtype=q.dtype)

    machine, draw = {}, bench._drawn

    def drawn(shape, *rest):
        if shape == shapes[0]: machine["slower"] = next(speeds)
        return draw(shape, *rest)

    monkeypatch.setattr(bench, "_drawn", drawn)
    monkeypatch.setattr(bench, "HostClock", partial(bench.HostClock, now))
    monkeypatch.setattr(bench, "check_attention", lambda *args, **kwargs: SimpleNamespace(passed=True))
    rows = bench.bench_attention(dict(op=op, once=op), shapes, samples=5, peers=False, rounds=3, again=("op",), progress=False)
    ours = [row for row in rows if row["impl"] == "op"]
    assert [row["rounds_ms"] for row in ours] == [pytest.approx([1.0, 2.0, 4.0])] * 2
    assert all(len(row["samples"]) == 15 and row["median_ms"] == pytest.approx(2.0) for row in ours)
    assert [row["tflops"] * row["median_ms"] for row in ours] == pytest.approx(
        [bench.attention_flops(1, 1, s, s, 8) / 1e9 for s in (64, 128)])
    assert all("rounds_ms" not in row and len(row["samples"]) == 5 for row in rows if row["impl"] == "once")


def test_a_call_that_would_take_long_is_left_out(capsys, monkeypatch):
    now = FalseTime()
    monkeypatch.setattr(bench, "HostClock", partial(bench.HostClock, now))
    shapes = [bench.AttentionShape(1, 1, seqlen, 32, False) for seqlen in (16, 32, 64)]

    def quadratic(q, k, v, *, causal=False):
        now.time += 1e-3 * (q.shape[2] / 16) ** 2  # 1, 4 and 16 ms
        return exact(q, k, v, causal=causal)

    settings = dict(samples=3, peers=False, device="cpu", progress=False)
    rows = bench.bench_attention(dict(quadratic=quadratic), shapes, skip_ms=10, **settings)
    assert [row["seqlen_q"] for row in rows] == [16, 32]
    assert f"quadratic left out at {shapes[2]}: a call would take about 16 ms" in capsys.readouterr().out
    assert len(bench.bench_attention(dict(quadratic=quadratic), shapes, skip_ms=17, **settings)) == 3


def test_materialised_scores_are_timed_at_the_founding_shape_alone():
    founding, table = bench.attention_shapes()[0], bench.attention_shapes()[-1]
    assert {"sdpa_math", "sdpa_cudnn"} <= set(bench._peers_at(founding))
    assert set(bench._peers_at(table)) == {"sdpa_default", "sdpa_flash", "sdpa_efficient"}


def test_interpolation_over_the_logarithm():
    known = {256: 10.0, 1024: 30.0}
    assert [bench.interpolated(known, x) for x in (128, 256, 512, 1024, 2048)] == [None, 10, pytest.approx(20), 30, None]
    rows = [dict(n=n, speed=speed) for n, speed in ((64, 1.0), (256, 10.0), (512, 18.0), (1024, 30.0))]
    found = bench.with_deviation(rows, "n", "speed", (256, 1024))
    assert "deviation" not in found[0] and [row.get("deviation") for row in found[1:]] == [0, pytest.approx(-0.1), 0]


def test_swept_lengths_pass_every_listed_one():
    for quick in (False, True):
        swept = bench.swept_lengths(quick)
        assert swept == sorted(set(swept)) and all(s % 64 == 0 for s in swept)
    assert set(bench.TABLE_LENGTHS) <= set(bench.swept_lengths())


def test_instances_of_a_package():
    listed = bench.step_instances("flashmoe_nb.attention")
    assert ("attention/20_online_softmax.cu" in {path for path, _ in listed}) and len(listed) == len(set(listed))
    half = bench.step_instances("flashmoe_nb.attention", ["__half"])
    assert half and all("__half" in name for _, name in half) and set(half) < set(listed)


def test_precompiling_fills_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHMOE_CACHE", str(tmp_path))
    instances = [("common/copy.cu", "copy_kernel")] * 2 + [i for i in bench.step_instances("flashmoe_nb.attention", ["64, 64"])][:1]
    assert bench.precompile(instances, workers=2, capability=(9, 0)) == len(list(tmp_path.rglob("*.bin"))) == 2
    for path, name in instances:  # this process looks for it under the same name
        bench.cuda.compile_cubin(bench.cuda.read_source(path), name, "sm_90a")
    assert len(list(tmp_path.rglob("*.bin"))) == 2
    assert bench.precompile(bench.step_instances("flashmoe_nb.attention", ["overlap"]), capability=(8, 0)) == 0  # Hopper's alone
    with pytest.raises(RuntimeError, match="no_such_kernel"):
        bench.precompile([("common/copy.cu", "no_such_kernel")], capability=(9, 0))


def test_an_error_of_a_step_stops_the_table():
    def broken(q, k, v, *, causal=False):
        raise RuntimeError("does not compile")

    with pytest.raises(RuntimeError, match="does not compile"):
        bench.bench_attention(dict(broken=broken), [bench.AttentionShape(1, 1, 8, 32, False)], device="cpu", progress=False)
    steps = dict(broken=broken, exact=exact)
    rows = bench.bench_attention(steps, [bench.AttentionShape(1, 1, 8, 32, False)], device="cpu", progress=False, peers=False,
                                 samples=3, strict=False)
    assert [row["impl"] for row in rows] == ["exact"]


def test_a_slow_call_gets_fewer_samples():
    shapes = [bench.AttentionShape(1, 1, 16, 32, False)]
    settings = dict(samples=9, peers=False, device="cpu", progress=False)
    assert [len(row["samples"]) for row in bench.bench_attention(dict(exact=exact), shapes, slow_ms=1e9, **settings)] == [9]
    assert [len(row["samples"]) for row in bench.bench_attention(dict(exact=exact), shapes, slow_ms=0.0, **settings)] == [5]


def test_steps_are_found_by_their_names():
    steps = bench.attention_steps()
    assert {"tiling", "online_softmax", "flashmoe_nb"} <= set(steps) and all(map(callable, steps.values()))
    assert "tiling_per_tile" not in steps


# The command


@pytest.fixture
def suites(monkeypatch):
    "Two small suites, and ceilings that cost nothing."
    asked = []

    def rows(quick):
        asked.append(quick)
        return [dict(op="a", median_us=1.5, samples=[1.0, 2.0])]

    monkeypatch.setattr(bench, "ceilings", lambda: {"copy_TBps": 1.0, "cpu_fp32_tflops": 0.1})
    monkeypatch.setattr(bench, "SUITES", {"gpu": bench.Suite("host_overhead", "host time", rows),
                                          "any": bench.Suite("own_file", "a thing", rows, False)})
    return asked


def on_backend(monkeypatch, backend):
    monkeypatch.setattr(bench.cuda, "available_backend", lambda: backend)


def test_without_a_gpu_the_bench_says_what_it_cannot_measure(suites, tmp_path, monkeypatch, capsys):
    on_backend(monkeypatch, "emulator")
    monkeypatch.setattr(bench, "results_folder", lambda: pytest.fail("nothing may be written by default"))
    assert bench.run_bench() == []
    printed = capsys.readouterr().out
    assert "gpu: host time" in printed.split("not measured")[1] and "any: a thing" in printed.split("not measured")[0]
    assert bench.run_bench(output=tmp_path) == [tmp_path / "own_file.json"]
    assert bench.read_results("own_file", tmp_path)["ceilings"] == {"copy_TBps": 1.0, "cpu_fp32_tflops": 0.1}
    assert bench.run_bench(["gpu"], tmp_path) == [] and suites == [False, False]


def test_on_a_gpu_the_bench_writes_into_the_workbook(suites, tmp_path, monkeypatch, capsys):
    on_backend(monkeypatch, "cuda")
    monkeypatch.setattr(bench, "results_folder", lambda: tmp_path)
    assert bench.run_bench(quick=True) == [] and os.listdir(tmp_path) == []  # a quick run is no result
    assert bench.run_bench() == [tmp_path / "host_overhead.json"]
    assert bench.run_bench(["gpu", "any"], tmp_path / "else", quick=True) == [
        tmp_path / "else" / "host_overhead.json", tmp_path / "else" / "own_file.json"]  # fmt: skip
    assert suites == [True, False, True, True]
    assert "not measured" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown speed; there are gpu, any"):
        bench.run_bench(["speed"])


def test_a_suite_that_fails_costs_the_others_nothing(suites, tmp_path, monkeypatch, capsys):
    on_backend(monkeypatch, "emulator")

    def broken(quick):
        raise ZeroDivisionError("in the suite")

    monkeypatch.setattr(bench, "SUITES", {"broken": bench.Suite("own", "x", broken, False)} | bench.SUITES)
    with pytest.raises(bench.SuiteFailed, match="failed: broken"):
        bench.run_bench(output=tmp_path)
    assert os.listdir(tmp_path) == ["own_file.json"] and "in the suite" in capsys.readouterr().err


def test_a_suite_of_a_later_module_exists_when_its_function_does(suites, monkeypatch):
    on_backend(monkeypatch, "emulator")
    later = {name: bench.Suite("f", "x", bench.Elsewhere(*home), False) for name, home in dict(
        here=("flashmoe_nb.bench", "bench_emulator"), no_module=("flashmoe_nb.nothing", "f"),
        no_function=("flashmoe_nb.bench", "nothing")).items()}  # fmt: skip
    assert [bench.suite_exists(suite) for suite in later.values()] == [True, False, False]
    monkeypatch.setattr(bench, "SUITES", bench.SUITES | later)
    assert bench._choose_suites(None, on_gpu=False) == ["any", "here"]
    with pytest.raises(ValueError, match="no_module, no_function: .* is not there"):
        bench._choose_suites(["no_module", "no_function"], on_gpu=True)


def test_suites_that_are_named_here_are_there():
    absent = [name for name, suite in bench.SUITES.items() if not bench.suite_exists(suite)]
    assert not absent and len({suite.file for suite in bench.SUITES.values()}) == len(bench.SUITES)


FAKE_PACKAGE = """
import sys, types
torch, bench = types.ModuleType("torch"), types.ModuleType("flashmoe_nb.bench")
torch.zeros = lambda *size, device: types.SimpleNamespace(item=lambda: 0)
def first_call(name):
    import os, pathlib
    cubins = pathlib.Path(os.environ["FLASHMOE_CACHE"]) / "cubin"
    new = not cubins.is_dir()
    cubins.mkdir(parents=True, exist_ok=True)
    empty = not os.path.exists(os.environ["CUDA_CACHE_PATH"])
    os.makedirs(os.environ["CUDA_CACHE_PATH"], exist_ok=True)
    return dict(seconds=2.0 if new and empty else 0.1, kernels=int(new))
bench.first_call = first_call
package = types.ModuleType("flashmoe_nb")
package.bench = bench
sys.modules |= {"torch": torch, "flashmoe_nb": package, "flashmoe_nb.bench": bench}
"""


def test_a_first_call_finds_every_cache_empty(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "_FIRST_CALL", FAKE_PACKAGE + bench._FIRST_CALL)
    for key in ("FLASHMOE_CACHE", "CUDA_CACHE_PATH"):
        (tmp_path / key / "cubin").mkdir(parents=True)
        monkeypatch.setenv(key, str(tmp_path / key))
    rows = bench.first_calls("op")
    bench.write_results(tmp_path / "first_call.json", rows)
    assert [(r["op"], r["cache"], r["seconds"], r["kernels"]) for r in rows] == [("op", "empty", 2.0, 1), ("op", "warm", 0.1, 0)]


# The expert layer


TINY = moe_bench.ExpertShape(8, 2, 128, 64)


def test_sorted_pairs_and_their_blocks():
    for num_experts, block_m in ((8, 2), (3, 16), (300, 4)):
        ids = torch.stack([torch.randperm(num_experts)[:2] for _ in range(37)]).int()
        order, inverse, ends = moe_bench.sort_pairs(ids, num_experts)
        assert torch.equal(order, ids.flatten().argsort(stable=True)) and torch.equal(order[inverse], torch.arange(74))
        assert torch.equal(ends.long(), torch.bincount(ids.flatten(), minlength=num_experts).cumsum(0))
        expert, slot, end = moe_bench.row_blocks(ends, 74, block_m)
        covered = [(e.item(), s) for e, a, b in zip(expert, slot, end, strict=True) for s in range(a, min(a + block_m, b))]
        assert covered == [(e, i) for i, e in enumerate(ids.flatten().sort().values.tolist())]


def test_peers_of_the_expert_layer_are_right(capsys):
    routed, weights = moe_bench.draw_inputs(TINY, 33, sets=1)[0], moe_bench.draw_weights(TINY)
    layers = dict(naive_loop=moe_bench.naive_loop, torch_grouped_mm=moe_bench.torch_grouped_mm)
    assert moe_bench.right_layers(layers, routed, weights, "33 tokens") == list(layers)
    wrong = {"swapped": lambda routed, *w: moe_bench.naive_loop(routed._replace(low_weights=routed.low_weights.flip(1)), *w)}
    assert moe_bench.right_layers(wrong, routed, weights, "33 tokens") == []
    assert "swapped left out at 33 tokens, because it is wrong" in capsys.readouterr().out


def test_inputs_follow_the_protocol():
    first, second, third = moe_bench.draw_inputs(TINY, 5)
    torch.manual_seed(1005)
    assert torch.equal(first.tokens, torch.randn(5, 128, dtype=torch.bfloat16)) and not torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.topk_weights.sum(-1), torch.ones(5)) or (first.topk_weights.sum(-1) - 1).abs().max() < 1e-6
    assert first.topk_ids.dtype == torch.int32 and torch.equal(first.topk_ids.long(), first.long_ids)
    assert third.low_weights.dtype == torch.bfloat16


def test_rows_of_the_expert_layer(tmp_path):
    inputs = moe_bench.draw_inputs(TINY, 4)
    row = moe_bench.expert_row("x", "tiny", TINY, inputs, bench.Timing((1.0, 2.0, 3.0), "CUDA events"), "graph")
    bench.write_results(tmp_path / "moe_forward.json", [row])  # has every key
    touched = statistics.mean(len(set(i.topk_ids.flatten().tolist())) for i in inputs)
    assert row["median_us"] == 2000 and row["touched_experts"] == pytest.approx(touched)
    assert row["tflops"] == pytest.approx(bench.moe_flops(4, 2, 128, 64) / 2e-3 / 1e12)
    assert row["weight_GBps"] == pytest.approx(touched * 3 * 128 * 64 * 2 / 2e-3 / 1e9)


def layer_row(num_tokens, times, *, impl="flashmoe_nb", touched=8):
    "A row of the tiny layer with a time for each set of inputs."
    shape = dict(num_tokens=num_tokens, touched_experts=touched, **TINY._asdict())
    return dict(impl=impl, model="tiny", samples=list(times) * 3) | shape


def test_a_number_of_tokens_off_the_list_is_expected_on_the_line_over_work():
    machine = dict(some_tflops=1.0, copy_TBps=1.0)
    weights = TINY.weight_bytes / 1e6  # µs for an expert, at 1 TB/s

    def time(num_tokens, touched):  # of a layer that does nothing but move bytes and compute, one after the other
        work = bench.moe_flops(num_tokens, 2, 128, 64) / 1e6 + touched * weights + 4 * num_tokens * 128 / 1e6
        return 7.0 + 3.0 * work

    rows = [layer_row(n, [time(n, e)] * 3, touched=e) for n, e in ((1, 2), (3, 5), (16, 8), (40, 8), (128, 8))]
    rows[3]["samples"] = [1.25 * s for s in rows[3]["samples"]]
    found = {row["num_tokens"]: row for row in moe_bench.between(rows, machine, (1, 16, 128))}
    assert found[3]["deviation"] == pytest.approx(0) and found[40]["deviation"] == pytest.approx(0.25)
    assert [n for n, row in found.items() if "deviation" not in row] == [1, 16, 128]
    # Routings that touch different numbers of experts all count.
    mixed, = moe_bench.between([layer_row(4, [1.0, 1.0, 4.0])], machine, ())
    assert mixed["time_us"] == pytest.approx(2.0)


def test_the_lead_over_the_best_peer_is_compared_with_the_neighbours():
    rows = [layer_row(n, [1.0] * 3) for n in (16, 64, 256)]
    rows += [layer_row(n, [t] * 3, impl=peer) for peer, slower in (("a", 1.0), ("b", 2.0)) for n, t in
             ((16, 2 * slower), (64, 1.5 * slower), (256, 4 * slower))]
    timed = [row for impl in ("flashmoe_nb", "a", "b") for row in
             moe_bench.between([r for r in rows if r["impl"] == impl], dict(some_tflops=1.0, copy_TBps=1.0), (16, 256))]
    found = {row["num_tokens"]: row for row in moe_bench.leads(timed, (16, 256))}
    assert [found[n]["lead"] for n in (16, 64, 256)] == [2.0, 1.5, 4.0]
    assert found[64]["lead_deviation"] == pytest.approx(1.5 / 3.0 - 1) and "lead_deviation" not in found[16]
    fig = moe_bench.plot_between(list(found.values()), "lead")
    assert list(fig.data[0].x) == [16, 64, 256] and list(fig.data[0].y) == [2.0, 1.5, 4.0]
    assert list(fig.data[0].marker.symbol) == ["circle", "circle-open", "circle"]


def test_neighbours():
    assert bench.neighbours((1, 16, 128), 20) == (16, 128) and bench.neighbours((1, 16), 16) == (16, 16)
    assert bench.neighbours((1, 16), 17) is None and bench.neighbours((), 1) is None


def test_a_part_of_the_tokens_is_checked(capsys):
    routed, weights = moe_bench.draw_inputs(TINY, 33, sets=1)[0], moe_bench.draw_weights(TINY)
    def broken(at): return lambda *arguments: moe_bench.naive_loop(*arguments).index_fill(0, torch.tensor([at]), 9.0)
    layers = dict(right=moe_bench.naive_loop, first=broken(0), last=broken(32))
    assert moe_bench.right_layers(layers, routed, weights, "a test", most=4) == ["right"]


# The scoreboard


def test_ladder():
    def row(impl, ms):
        return attention_row(impl=impl, batch=4, num_heads=8, seqlen_q=8192, head_dim=64, median_ms=ms, tflops=100 / ms)

    rows = [row("sdpa_math", 10.0), row("fast", 1.0), row("slow", 8.0), row("flashmoe_nb", 1.0), row("sdpa_flash", 2.0),
            attention_row(impl="elsewhere")]
    found = scoreboard.ladder(rows, 200.0, {"slow": 10, "fast": 47}, {1: 1.2, 4: 2.1, 5: 2.5})
    assert [(r["impl"], r["speedup"], r["target"]) for r in found] == [
        ("slow", 1.25, 1.2), ("fast", 10, 2.1), ("flashmoe_nb", 10, 2.5), ("sdpa_math", 1, None), ("sdpa_flash", 5, None)]
    assert found[1]["share"] == pytest.approx(0.5)


def test_cells_of_the_scoreboard():
    rows = [attention_row(impl=impl, seqlen_q=s, tflops=t) for impl, s, t in (("a", 512, 2.0), ("a", 1024, 6.0), ("b", 512, 1.0))]
    values = scoreboard.ratios(scoreboard.speeds(rows, "a"), scoreboard.speeds(rows, "b"))
    assert values == {(64, False, 512): 2.0} and scoreboard.summary({1: 2.0, 2: 0.5}) == "geometric mean 1.000, from 0.50 to 2.00"
    fig = scoreboard.plot_ratios({("x", 1): 1.5, ("y", 2): 0.5}, lambda k: k[0], lambda k: str(k[1]), "n", "t")
    assert [list(line) for line in fig.data[0].text] == [["1.50", ""], ["", "0.50"]]


def test_rounds_of_the_scoreboard():
    timed = (("a", 512, [2.0, 1.0, 4.0]), ("b", 512, [2.0, 4.0, 4.0]), ("a", 1024, None), ("b", 1024, None))
    rows = [attention_row(impl=impl, seqlen_q=n, median_ms=2.0, tflops=10.0) | (dict(rounds_ms=rounds) if rounds else {})
            for impl, n, rounds in timed]
    rounds = scoreboard.round_ratios(rows, "a", "b")
    short, long = (64, False, 512), (64, False, 1024)
    assert rounds == [{short: 1.0, long: 1.0}, {short: 4.0}, {short: 1.0}]
    assert scoreboard.median_cells(rounds) == {short: 1.0, long: 1.0} and scoreboard.median_mean(rounds) == 1.0
    assert scoreboard.rounds_summary(rounds[:2]) == "geometric mean 2.500 (in 2 rounds 1.000, 4.000), cells from 1.00 to 2.50"
    assert scoreboard.round_ratios(rows, "a", "c") == [] and scoreboard.median_cells([]) == {}


def test_an_aim_is_judged_by_what_is_shown():
    aims = [scoreboard.Aim("fast", 1.1, 1.0996), scoreboard.Aim("slow", 1.1, 1.094), scoreboard.Aim("short", 10, 10.4, " s", True),
            scoreboard.Aim("long", 10, 10.6, " s", True)]
    assert [aim.met for aim in aims] == [True, False, False, False]
    assert scoreboard.aims_table(aims[2:]).rows == [["short", "≤ 10 s", "10.4 s", "missed"], ["long", "≤ 10 s", "10.6 s", "missed"]]


def test_the_most_frequent_waits_are_named():
    row = {"stall: issued": 5.0, "stall: barrier": 1.0, "stall: global memory": 3.0, "stall: dispatch": 1.5, "impl": "dense",
           "model": "m", "num_tokens": 1, "kernel": "down", "tensor pipe": 50.4}
    assert scoreboard.reasons(row) == "global memory 29%, dispatch 14%"
    table = scoreboard.counters_table([row])
    assert table.rows[0][:3] == ["m 1, down, dense", "50", "–"] and table.rows[0][-1] == scoreboard.reasons(row)


def test_every_step_has_its_number():
    numbers = scoreboard.step_numbers()
    assert numbers["tiling"] == 10 and numbers["overlap"] == 47 and list(numbers.values()) == sorted(numbers.values())
    assert set(numbers) == set(bench.attention_steps()) - {"flashmoe_nb"}


def test_peers_of_another_run_are_whole():
    stored = bench.read_results("peers")
    attention = [row for row in stored["rows"] if row["what"] == "attention forward"]
    cells = {(s.head_dim, s.causal, s.seqlen) for s in bench.attention_shapes() if s.num_heads * s.head_dim == 2048}
    for impl in ("fa3", "sdpa_flash", "sdpa_default"):
        assert set(scoreboard.speeds(attention, impl)) == cells
    layers = {(row["model"], row["num_tokens"]) for row in stored["rows"] if row["what"] == "expert layer"}
    assert layers == set(itertools.product(moe_bench.MODELS, moe_bench.TOKENS)) and stored["env"]["provenance"]


def test_counters_of_several_launches():
    head = '"ID","Kernel Name","smsp__inst_executed.sum","launch__registers_per_thread"\n"","","inst","register/thread"\n'
    page = "==PROF== Connected\n" + head + '"0","attention_a","1,234","168"\n"1","attention_b","7","n/a"\n'
    first, second = {"instructions": 1234, "registers": 168}, {"instructions": 7}
    assert profile.parse_launches(page) == [("attention_a", first), ("attention_b", second)]
    with pytest.raises(ValueError, match="no permission"):
        profile.parse_launches("==ERROR== no permission")


def test_launches_belong_to_the_target_before_them(capsys):
    one, two = profile.Target((dict(impl="a"),), None), profile.Target((dict(kernel="up"), dict(kernel="down")), None)
    mark = ("at::cuda::spin_kernel(long)", {"instructions": 9})
    products = [("grouped_gemm", {"instructions": 2}), ("nvjet", {"instructions": 3})]
    launches = [mark, ("attention_a", {"instructions": 1}), mark, *products]
    rows = [dict(impl="a", instructions=1), dict(kernel="up", instructions=2), dict(kernel="down", instructions=3)]
    assert profile.match_launches([one, two], launches) == rows
    assert profile.match_launches([two, two], launches) == rows[1:] and "1 launches" in capsys.readouterr().out
    with pytest.raises(ValueError, match="2 targets"):
        profile.match_launches([one], launches)


def test_a_group_that_cannot_be_profiled_costs_the_steps_nothing(monkeypatch, capsys):
    def group(name, timeout=120):
        if name == "large": raise subprocess.TimeoutExpired("ncu", timeout)
        return [dict(impl=name)]

    monkeypatch.setattr(profile, "profile_group", group)
    assert [row["impl"] for row in profile.bench_profile()] == ["steps", "layers"] and "large left out" in capsys.readouterr().out
    assert [row["impl"] for row in profile.bench_profile(quick=True)] == ["steps"]


def test_rows_of_the_profile_have_names():
    rows = [row for group in profile.targets().values() for target in group for row in target.rows]
    names = list(map(profile.label_of, rows))
    assert len(set(names)) == len(names) and {"tiling", "D=128 causal 512, ours", "qwen3 16, down, ours"} <= set(names)


# On a GPU


@pytest.mark.gpu
def test_all_expert_layers_on_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(moe_bench, "MODELS", {"tiny": moe_bench.ExpertShape(16, 4, 1024, 256)})
    weights = moe_bench.draw_weights(moe_bench.MODELS["tiny"], device="cuda")
    for num_tokens in (1, 50, 700):
        inputs = moe_bench.draw_inputs(moe_bench.MODELS["tiny"], num_tokens, device="cuda")
        graphs, eager = moe_bench._layers("tiny", num_tokens, weights)
        rows = moe_bench.time_layers(graphs, "tiny", inputs, weights, "graph", 3)
        rows += moe_bench.time_layers(eager | {"naive_loop": moe_bench.naive_loop}, "tiny", inputs, weights, "eager", 3)
        expected = {("flashmoe_nb", "graph"), ("torch_grouped_mm", "graph"), ("dense", "graph"), ("flashmoe_nb", "eager"),
                    ("naive_loop", "eager")}
        if moe_bench.TRITON: expected |= {("triton", "graph")}
        assert expected <= {(row["impl"], row["mode"]) for row in rows}, capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [dict(), dict(flush_l2=True), dict(mode="graph"), dict(mode="graph", flush_l2=True)], ids=str)
def test_compare_on_a_gpu(settings):
    inputs = [[torch.full((2**20,), float(i), device="cuda"), torch.empty(2**20, device="cuda")] for i in range(3)]
    found = bench.compare({"copy": lambda x, y: y.copy_(x), "add": lambda x, y: torch.add(x, 1.0)}, inputs, samples=6, **settings)
    assert all(t.clock == "CUDA events" and len(t.samples_ms) == 6 and t.min_ms > 0 for t in found.values())
    assert all(torch.equal(x, y) for x, y in inputs)


@pytest.mark.gpu
def test_the_host_is_not_part_of_a_gpu_time():
    inputs = [[torch.zeros(2**26, device="cuda")] for _ in range(3)]  # 256 MiB each

    def slow_host(x):
        sum(range(2000))  # some 20 µs of Python before the launch
        return x.add_(1)

    found = bench.compare({"plain": lambda x: x.add_(1), "slow host": slow_host}, inputs)
    assert found["slow host"].median_ms == pytest.approx(found["plain"].median_ms, rel=0.1)


@pytest.mark.gpu
def test_peak_memory_on_a_gpu():
    def two_buffers(x):
        large = torch.zeros(2**26, dtype=torch.uint8, device="cuda")
        return x + large[: len(x)]

    x = torch.zeros(2**21, dtype=torch.uint8, device="cuda")
    assert bench.peak_memory(two_buffers, x) == 2**26
    assert bench.peak_memory(lambda x: x.add_(1), x) == 0


@pytest.mark.gpu
def test_the_suites_run_on_a_gpu(tmp_path, capsys):
    shapes = [bench.AttentionShape(2, 4, 256, 64, causal) for causal in (False, True)]
    rows = bench.bench_attention(bench.attention_steps(), shapes, samples=3, progress=False)
    measured = {row["impl"] for row in rows}
    assert {"tiling", "online_softmax", "flashmoe_nb", "sdpa_default", "sdpa_math"} <= measured, capsys.readouterr().out
    math = next(row for row in rows if row["impl"] == "sdpa_math")
    ours = next(row for row in rows if row["impl"] == "flashmoe_nb")
    assert math["extra_bytes"] >= 2 * 4 * 256 * 256 * 2 > ours["extra_bytes"]  # the scores, materialised or not
    host = bench.bench_host(quick=True)
    assert {"tiling", "sdpa_default", "torch.empty_like"} <= {row["op"] for row in host}
    path = bench.write_results(tmp_path / "attention_forward.json", rows, ceilings=bench.ceilings(samples=3))
    stored = bench.read_results("attention_forward", path.parent)
    assert stored["env"]["gpu"] == torch.cuda.get_device_name() and stored["env"]["driver"]
    assert set(stored["ceilings"]) == {"cublas_bf16_tflops", "copy_TBps"} and min(stored["ceilings"].values()) > 0


# Plots


def speed_rows():
    return [attention_row(impl=impl, seqlen_q=s, causal=causal, tflops=s / 100 + causal)
            for impl in ("tiling", "sdpa_flash") for s in (1024, 256) for causal in (False, True)]  # fmt: skip


def test_plot_speed_shows_one_case_at_a_time():
    fig = plots.plot_speed(speed_rows(), ceiling=20.0)
    assert [(t.name, t.meta, t.visible) for t in fig.data] == [
        ("tiling", "not causal", True), ("sdpa_flash", "not causal", True),
        ("tiling", "causal", False), ("sdpa_flash", "causal", False)]  # fmt: skip
    line = fig.data[0]
    assert list(line.x) == [256, 1024] and list(line.y) == [2.56, 10.24] and "51% of the ceiling" in line.text[1]
    buttons = fig.layout.updatemenus[0].buttons
    assert [b.label for b in buttons] == ["not causal", "causal"]
    assert buttons[1].args[0]["visible"] == [False, False, True, True]
    alone = plots.plot_speed([row for row in speed_rows() if row["causal"]])
    assert not alone.layout.updatemenus and "ceiling" not in alone.data[0].text[0]


def test_plot_speed_keeps_problems_of_other_sizes_apart():
    rows = speed_rows() + [row | dict(num_heads=8) for row in speed_rows()]
    fig = plots.plot_speed(rows)
    assert len(fig.layout.updatemenus[0].buttons) == 4 and all(len(set(t.x)) == len(t.x) for t in fig.data)


def test_plot_roofline():
    machine = {"copy_TBps": 2.0, "cublas_bf16_tflops": 100.0, "other_tflops": 50.0}
    fig = plots.plot_roofline([dict(name="a", flops=1e12, bytes=1e12, ms=1000.0)], machine)
    roof, point = fig.data
    assert roof.x[1] == pytest.approx(50) and roof.y[1] == roof.y[2] == 100 and roof.y[0] == pytest.approx(2 * roof.x[0])
    assert (point.x[0], point.y[0]) == (1, pytest.approx(1)) and "50% of the roof" in point.hovertemplate


def test_plot_bars_and_masks():
    fig = plots.plot_bars({"prediction": 3.0, "this step": 2.0}, "ms", limit=4.0)
    assert list(fig.data[0].x) == [3, 2] and fig.layout.xaxis.range[1] > 4 and fig.data[0].marker.pattern.shape == ("/", "")
    fig = plots.plot_masks({"a": torch.tensor([[True, False]]), "b": torch.ones(2, 2).bool()})
    assert [list(map(list, trace.z)) for trace in fig.data] == [[[1, 0]], [[1, 1], [1, 1]]]


def test_lines_of_one_colour_differ_in_their_dash():
    names = [*"abcdefghijklmnopqrstuvw", "sdpa_flash", "flashmoe_nb"]
    colour, dash = plots.colours(names), plots.dashes(names)
    assert len({(colour[name], dash[name]) for name in names[:18]}) == 18
    assert dash["sdpa_flash"] == "dash" and dash["flashmoe_nb"] == "solid"


def test_colours_stay_with_their_names():
    for names in (["sdpa_flash", "x"], ["x", "y", "sdpa_flash", "flashmoe_nb"]):
        given = plots.colours(names)
        assert given["sdpa_flash"] == plots.COLOURS["sdpa_flash"] and len(set(given.values())) == len(names)
    assert len(plots.colours([str(i) for i in range(20)])) == 20


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", sorted({plots.INK, *plots.PALETTE, *plots.COLOURS.values()}))
@pytest.mark.parametrize("paper", ["#ffffff", "#14181e"])
def test_colours_are_seen_on_light_and_on_dark_paper(colour, paper):
    light, dark = sorted((luminance(colour), luminance(paper)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3  # what WCAG asks for graphics


def test_figures_are_plain_data():
    machine = {"copy_TBps": 2.0, "some_tflops": 100.0}
    figures = [plots.plot_speed(speed_rows()), plots.plot_bars({"a": 1.0}, "ms"), plots.figure(x="x", y="y", title="t", log_x=True),
               plots.plot_roofline([dict(name="a", flops=1e12, bytes=1e12, ms=1.0)], machine),
               plots.plot_masks({"a": torch.ones(2, 2).bool()})]  # fmt: skip
    for fig in figures:
        text = fig.to_json()
        assert json.loads(text)["layout"]["template"]["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)" and len(text) < 20_000
