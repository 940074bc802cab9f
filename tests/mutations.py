"""Every kernel with one barrier, wait, fence, arrive, expect or commit dropped or moved, and what finds it.

python tests/mutations.py list             the mutants by number
python tests/mutations.py                  all of them on the emulator; rewrites nbs/results/mutations.json
python tests/mutations.py sanitize         a sample under compute-sanitizer, on a GPU; writes mutations_sanitized.json
python tests/mutations.py replay K N       every N-th of the mutants that the stored table says are found, from number K"""

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from unittest import mock

import torch

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))

from attention_cases import STEPS  # noqa: E402, found through the line above

from flashmoe_nb import bench, counters, cuda, reference  # noqa: E402
from flashmoe_nb.attention import overlap, problem, producer_consumer, roles, tensor_cores  # noqa: E402
from flashmoe_nb.moe import dispatch, few_tokens, fused_layer, grouped_gemm, routing  # noqa: E402
from flashmoe_nb.mutations import Mutant, mutants  # noqa: E402

# ---- small runs that together reach every call site of a kernel: functions of a device that return tensors ----


def attention(name, seqlen_q, seqlen_k, head_dim, causal=True):
    "One attention step; two heads share their keys."

    def run(device):
        inputs = reference.attention_inputs(1, 2, seqlen_q, head_dim, seqlen_k=seqlen_k, num_heads_k=1, device=device)
        return STEPS[name](*inputs, causal=causal, return_lse=True)

    return run


def copied_by_cp_async(device):
    "Step 32 with the other way to copy."
    q, k, v = reference.attention_inputs(1, 2, 150, 64, seqlen_k=330, num_heads_k=1, device=device)
    step, tile = producer_consumer.STEP, producer_consumer.choose_tile(64)
    settings = dict(causal=True, softmax_scale=None, return_lse=True, tile=tile, threads=producer_consumer.BLOCK_THREADS)
    return tensor_cores.launch_mma(step, problem.check_qkv(q, k, v), q, k, v, "Copy::ASYNC", **settings)


def roles_with_clocks(device):
    "Step 30 with a clock in every wait; the cycles are no result."
    q, k, v = reference.attention_inputs(1, 2, 70, 64, seqlen_k=330, num_heads_k=1, device=device)
    cycles = torch.zeros(2 * 2, 3, 2, dtype=torch.int64, device=device)
    settings = dict(causal=True, softmax_scale=None, return_lse=True, tile=roles.choose_tile(64), threads=roles.BLOCK_THREADS)
    shape = problem.check_qkv(q, k, v)
    return tensor_cores.launch_mma(roles.STEP, shape, q, k, v, "Timed::YES", extra=(cycles,), **settings)


def overlap_tile(*tile, growth=1.0, seqlen_q=200, seqlen_k=330):
    """Step 47 with a ring so short, and tiles so few, that a small input goes around it several times. Keys that grow make
    the maximum that the step hopes for wrong; with few of them there are more tiles under way than slots in the ring."""

    def run(device):
        q, k, v = reference.attention_inputs(1, 2, seqlen_q, 64, seqlen_k=seqlen_k, num_heads_k=1, device=device)
        k = (k * torch.linspace(1.0, growth, seqlen_k, device=device)[:, None]).to(k.dtype)
        return overlap.with_tile(overlap.Tile(*tile), q, k, v, causal=seqlen_k > 100, return_lse=True)

    return run


def tiles_in_parts(device):
    "Step 47 with all tiles divided by keys: the blocks of the grid begin with three parts of one."
    q, k, v = reference.attention_inputs(1, 2, 130, 64, seqlen_k=200, num_heads_k=1, device=device)
    divide = mock.patch.object(overlap, "choose_split", lambda *_: overlap.Split(0, 5))
    overlap._known.clear()
    with divide, mock.patch.object(overlap, "_num_sms", lambda device: 3):
        out = overlap.with_tile(overlap.Tile(64, 2, 64, 2, 2), q, k, v, return_lse=True)
    overlap._known.clear()
    return out


def route(num_experts, top_k, **options):
    def run(device):
        logits = torch.randn(21, num_experts, generator=torch.Generator().manual_seed(0))
        logits[3] = 0.0
        written = torch.zeros_like(logits, device=device)  # by a kernel ahead, which routing must wait for
        cuda.compile("common/copy.cu", "copy_kernel").launch(
            -(-logits.numel() // 256), 256, [logits.to(device), written, logits.numel()]
        )
        return routing.routing(written, top_k, balance_loss=True, **options)

    return run


def some_ids(num_tokens, num_experts, top_k):
    order = torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(num_tokens)).argsort(-1)
    return order[:, :top_k].int().contiguous()


def sort_tokens(blocks):
    def run(device):
        result = dispatch.dispatch(some_ids(300, 60, 4).to(device), 60, 16, blocks=blocks)
        return [x for x in result if isinstance(x, torch.Tensor)]

    return run


def radix_sort(device):
    ids = some_ids(300, 60, 4).to(device)
    return [x for x in dispatch.dispatch_by_radix_sort(ids, 60, 16) if isinstance(x, torch.Tensor)]


def products(tile, num_tokens, *, gathered=True, splits=1, width=136):
    "Both grouped products of a layer; every expert's tokens in several tiles."

    def run(device):
        x, w1, w2, _ = reference.moe_inputs(num_tokens, 3, width, width, device=device)
        ids = some_ids(num_tokens, 3, 2).to(device)
        pairs, slots = dispatch.dispatch(ids, 3, tile.span), ids.numel()
        h, y = x.new_zeros(slots, width), x.new_zeros(splits * slots, width)
        rows = x if gathered else fused_layer.permute(x, pairs, 2, torch.zeros_like(x).repeat(2, 1))
        options = dict(tile=tile, stream=False)
        grouped_gemm.grouped_gemm(rows, w1, pairs, h, gate_up=True, gathered=gathered, top_k=2, **options)
        grouped_gemm.grouped_gemm(h, w2, pairs, y, gate_up=False, splits=splits, **options)
        weights = torch.full(ids.shape, 0.5, device=device)
        return h, y, fused_layer.combine(y, pairs, weights, torch.zeros_like(x), splits)

    return run


def pairs_in_groups(num_tokens, hidden, inter):
    "A layer of few tokens: experts with more pairs than a group takes, and ids that no expert has."

    def run(device):
        x, w1, w2, _ = reference.moe_inputs(num_tokens, 3, hidden, inter, device=device)
        ids = some_ids(num_tokens, 4, 2).to(device)
        return [few_tokens.few_tokens(x, w1, w2, torch.full(ids.shape, 0.5, device=device), ids)]

    return run


def routed_pairs(device):
    "The same behind the kernel that chooses its experts."
    x, w1, w2, logits = reference.moe_inputs(3, 5, 136, 72, device=device)
    return [few_tokens.few_tokens(x, w1, w2, *routing.routing(logits, 2))]


def of_steps() -> dict:
    "Every attention step: rows with many keys, rows with none, and the largest head size."
    runs = {}
    for name in STEPS:
        path = sys.modules[f"flashmoe_nb.attention.{name}"].instances()[0][0]
        runs[path] = [attention(name, 70, 330, 64), attention(name, 40, 200, 256, causal=False)]
        runs[path] += [attention(name, 150, 10, 64), attention(name, 150, 10, 256)]
    runs["attention/30_roles.cu"].append(roles_with_clocks)
    runs["attention/32_producer_consumer.cu"].append(copied_by_cp_async)
    return runs


def access_patterns(device):
    results = []
    for pattern in ("shared read 4 B, stride 2", "shared write 4 B, stride 2", "shared gather, reversed", *counters.LAYOUTS):
        name, args = counters.arguments(pattern, device)
        args[1].zero_()
        cuda.compile(counters.FILE, name).launch(2, 32, args)
        results.append(args[1][:4096])
    return results


def tensor_core_products(device):
    x, y = torch.arange(64 * 64, device=device).remainder(7).to(torch.bfloat16), torch.zeros(128, device=device)
    cuda.compile("common/products.cu", "products_kernel").launch(1, 128, [x, y, 3])
    return [y]


RUNS = of_steps() | {
    "common/access.cu": [access_patterns],
    "common/products.cu": [tensor_core_products],
    "attention/47_overlap.cu": [
        overlap_tile(64, 2, 64, 2, 2),
        overlap_tile(64, 2, 64, 2, 2, growth=100.0),
        overlap_tile(64, 2, 64, 4, 2, seqlen_q=900, seqlen_k=50),
        overlap_tile(64, 2, 64, 2, 2, "RARE_RESCALING"),
        overlap_tile(64, 2, 64, 2, 2, "RARE_RESCALING", seqlen_q=600, seqlen_k=100),
        overlap_tile(64, 2, 64, 2, 1, "PEELING"),
        overlap_tile(64, 2, 64, 2, 1, "PLAIN"),
        tiles_in_parts,
    ],
    "common/hopper_tiles.cuh": [tiles_in_parts],
    "moe/60_routing.cu": [route(40, 6), route(64, 5, scoring="sigmoid", n_group=8, topk_group=3)],
    "moe/62_dispatch.cu": [sort_tokens(1), sort_tokens(3), radix_sort],
    "moe/64_grouped_gemm.cu": [
        products(grouped_gemm.Tile(1, 8, 2), 40, splits=2),
        products(grouped_gemm.Tile(2, 16, 2), 60, gathered=False),
        products(grouped_gemm.Tile(2, 16, 2, 2), 90, gathered=False),
        products(grouped_gemm.Tile(2, 16, 4, 2), 200, gathered=False, width=64),
    ],
    "moe/64_grouped_gemm_mma.cu": [products(grouped_gemm.MmaTile(16, 3), 40, width=264)],
    "moe/65_few_tokens.cu": [pairs_in_groups(13, 600, 264), pairs_in_groups(1, 136, 1104), routed_pairs],
    "moe/66_fused_layer.cu": [products(grouped_gemm.Tile(1, 8, 2), 40, gathered=False)],
}


def kernel_files() -> list[str]:
    "Every file of kernels/ with a call site, but for the wrappers themselves and the emulator."
    files = [p for f in ("common", "attention", "moe") for p in sorted((cuda.KERNELS / f).glob("*.cu*"))]
    return [path for p in files if mutants(path := p.relative_to(cuda.KERNELS).as_posix(), p.read_text())]


def runs_of(path: str) -> list:
    "The runs of a kernel file; of a header, two of each file that includes it, directly or through another header."
    if path in RUNS:
        return RUNS[path]
    return [run for user, runs in RUNS.items() if path in cuda.read_source(user).headers for run in runs[:2]]


def every_mutant() -> list[Mutant]:
    return [m for path in kernel_files() for m in mutants(path, (cuda.KERNELS / path).read_text())]


def register(mutant: Mutant):
    architectures = cuda.read_source(mutant.path).architectures
    cuda.register(mutant.path, mutant.text, key="mutant", label="mutant", start=True, architectures=architectures)


# ---- on the emulator ----

CHECKS = ("race", "init", "memory")
LOOKS = {  # in this order, until one of them objects
    "forward": {},
    "reverse": dict(schedule="reverse"),
    "random": dict(seed=1),
    "checked": dict(check=CHECKS),
    "checked, reverse": dict(check=CHECKS, schedule="reverse"),
    "checked, random": dict(check=CHECKS, seed=2),
}


def bits(tensors) -> list[bytes]:
    return [x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for x in tensors if x is not None]


def look_at(mutant: Mutant, right: list) -> tuple[str, str, str]:
    "Who objects to a mutant: the look, the kind of objection, and what it says. Nobody: three empty strings."
    register(mutant)
    for look, options in LOOKS.items():
        for run, expected in zip(runs_of(mutant.path), right, strict=True):
            reports = []
            try:
                with cuda.emulation(workers=1, reports=reports, **options):
                    got = bits(run("cpu"))
            except Exception as error:  # noqa: BLE001, whatever stops it
                return look, type(error).__name__, str(error)
            if races := [race for report in reports for race in report.races]:
                return look, races[0].kind, str(races[0])
            if got != expected:
                return look, "wrong output", ""
    return "", "", ""


def right_outputs(path: str) -> list:
    with cuda.emulation(workers=1):
        return [bits(run("cpu")) for run in runs_of(path)]


def start(function, *args, seconds: int):
    "Calls a function in a process of its own, which is killed after so many seconds of work, or ten times as many in all."
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(10 * seconds)
        with os.fdopen(write, "wb") as out:
            pickle.dump(function(*args), out)
        os._exit(0)
    os.close(write)
    return child, read


def answer(child: int, read: int):
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data) if data else ("forward", "time out", "", 0.0)


def timed_look(mutant: Mutant, right: list) -> tuple[str, str, str, float]:
    began = time.perf_counter()
    return *look_at(mutant, right), time.perf_counter() - began


def judge(chosen, workers: int = 1, seconds: int = 120):
    "Yields every mutant with what `look_at` says of it, `workers` at a time."
    right, running, waiting = {}, [], list(chosen)
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop(0)
            if mutant.path not in right:
                right[mutant.path] = answer(*start(right_outputs, mutant.path, seconds=120))
            running.append((mutant, *start(timed_look, mutant, right[mutant.path], seconds=seconds)))
        mutant, *process = running.pop(0)
        yield mutant, *answer(*process)


def caught_by(look: str, kind: str) -> str:
    "The check that found it, as the table names it."
    if kind in ("", "wrong output", "time out", "CompileError"):
        return kind
    return (f"race: {kind}" if " " in kind else kind) if look.startswith("checked") else f"always on: {kind}"


def row_of(mutant: Mutant, caught: str) -> dict:
    kind = dict(kernel=mutant.path, mutation=f"{mutant.call} {mutant.how}", line=mutant.line, caught_by=caught)
    return kind | dict(source=mutant.source)


# Survivors and their reasons: path, a piece of the line, the mutation, why.
SURVIVORS = [
    ("30_roles", "bar_sync(barrier, PAIR)", "moved", "passes only the reading of a clock, in the variant that has one"),
    ("60_routing", "griddep_wait", "moved", "passes the exit of warps without a token, which read nothing"),
    (
        "32_producer",
        "Q_READY",
        "moved",
        "where there are keys their barriers order Q as well, and where there are none it still comes before the outputs",
    ),
    ("46_ping_pong", "TURN + warpgroup", "moved", "a turn orders products for speed alone: nothing is written under it"),
    ("46_ping_pong", "wgmma_wait", "moved", "a turn that ends before the wait changes speed alone"),
    (
        "47_overlap",
        "out_full[q.stage], q.phase ^ 1",
        "",
        "the wait behind it implies it: the storing thread arrives there after the same phase",
    ),
    (
        "47_overlap",
        "wgmma_fence(r.out, r.weights)",
        "",
        "the fence before it named these registers too; this one keeps the compiler from moving them",
    ),
    (
        "64_grouped_gemm.cu",
        "wgmma_fence();",
        "",
        "between products that add to the same registers no fence is needed, and the first one has one before the loop",
    ),
    (
        "47_overlap",
        "mbar_fence_init",
        "moved",
        "the barriers behind it are used by threads alone, which the block's barrier orders",
    ),
    (
        "66_fused_layer",
        "griddep_wait",
        "moved",
        "passes the hint that the next kernel may start, which waits by itself before it reads",
    ),
]


def why(mutant: Mutant) -> str:
    "The reason why a mutant survives, if one is known."
    for path, piece, how, reason in SURVIVORS:
        if path in mutant.path and piece in mutant.source and how in mutant.how:
            return reason
    return ""


def replay(part: int, parts: int, number: int = 40) -> list[str]:
    "Some mutants that the stored table says are found, again; those that are not found now."
    rows = sorted(bench.read_results("mutations")["rows"], key=lambda row: row["seconds"])
    found = [(r["kernel"], r["mutation"], r["source"]) for r in rows if r["caught_by"]]
    alike = {(r["kernel"], r["mutation"], r["source"]) for r in rows if not r["caught_by"]}  # another line with the same text
    quick = set(found[: 3 * number]) - alike
    known = [m for m in every_mutant() if (m.path, f"{m.call} {m.how}", m.source) in quick]
    chosen = random.Random(0).sample(known, number)[part::parts]
    missed = []
    for mutant, look, kind, *_ in judge(chosen, 1):
        print(f"{mutant}: {caught_by(look, kind) or 'not found'}", flush=True)
        missed += [] if kind else [str(mutant)]
    return missed


def unchanged() -> list[Mutant]:
    "The right kernels, dressed up as mutants: nothing may object to them, or it would object to every mutant."
    return [Mutant(path, 0, "nothing", "dropped", "", (cuda.KERNELS / path).read_text()) for path in kernel_files()]


def on_emulator(workers: int) -> list[dict]:
    for mutant, look, kind, message, _ in judge(unchanged(), workers):
        print(f"{mutant.path} as it is: {look} {kind}", flush=True)
        if kind:
            raise AssertionError(f"{mutant.path} is right, and {look} says {kind}: {message}")
    chosen, rows, started = every_mutant(), [], time.time()
    for mutant, look, kind, message, seconds in judge(chosen, workers):
        rows.append(row_of(mutant, caught_by(look, kind)))
        rows[-1] |= dict(look=look, message=message[:1000], seconds=round(seconds, 2), why="" if kind else why(mutant))
        print(f"{len(rows)}/{len(chosen)} {time.time() - started:.0f} s {mutant}: {look} {kind}", flush=True)
    rows = [row for row in rows if "CompileError" not in row["caught_by"]]  # no program, no mutant
    caught = sum(bool(row["caught_by"]) for row in rows)
    print(f"{caught} of {len(rows)} found, {caught / len(rows):.1%}")
    return rows


# ---- on a GPU, under compute-sanitizer ----

TOOLS = ("racecheck", "synccheck", "memcheck", "initcheck")
ADDRESSES = ("memcheck", "initcheck")  # they look at addresses and contents, and only where a run goes wrong is there something
SAMPLE = 60


def sample(number: int) -> list[Mutant]:
    "So many mutants at random, and mostly the same ones after some kernels have changed: those whose hashes are smallest."
    seen, order = Counter(), {}
    for mutant in every_mutant():
        key = mutant.path, mutant.call, mutant.how, mutant.source
        seen[key] += 1
        order[hashlib.sha256(repr((*key, seen[key])).encode()).hexdigest()] = mutant
    return [order[digest] for digest in sorted(order)[:number]]


def on_chip(path: str) -> list[list[bytes]]:
    "The outputs of a kernel's first run. An alarm ends the process if they do not come: launches return at once."
    results = [run("cuda") for run in runs_of(path)[:1]]
    signal.alarm(20)
    return [bits(tensors) for tensors in results]


def keep(path: str, file: str):
    "The right output of a kernel's first run, into a file."
    Path(file).write_bytes(pickle.dumps(on_chip(path)))


def run_once(file: str, right: str):
    "The same run of a mutant; prints whether the output is right."
    mutant = Mutant(**json.loads(Path(file).read_text()))
    register(mutant)
    same = on_chip(mutant.path) == pickle.loads(Path(right).read_bytes())
    print("right output" if same else "wrong output")


OBJECTION = (
    "Error|Barrier error|Invalid|Warning|Program hit|Missing|Divergent|Uninitialized|Misaligned|Illegal|Internal|Fatal"
    "|Race reported|RACECHECK SUMMARY: [1-9]"
)


def found_in(text: str) -> str:
    "The first thing that compute-sanitizer objects to in its page, shortened."
    for line in text.splitlines():
        if re.match(rf"=+ ({OBJECTION})", line) and "process didn't terminate" not in line:
            return line.strip("= ")[:160]
    return ""


def watch(words: list[str], tool: str | None = None, seconds: int = 90) -> str:
    """What one run shows: nothing, `wrong output`, `does not end`, or what the tool or the driver says. Most of the time
    goes into starting Python, torch, the GPU and the tool; a kernel itself has 20 seconds."""
    command = [sys.executable, __file__, *words]
    if tool:
        sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        command = [sanitizer, "--tool", tool, *command]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, start_new_session=True, **pipes) as child:
        try:
            text, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return "does not end"
    if tool and (said := found_in(text)):
        return said
    if "right output" in text or (not child.returncode and words[0] == "keep"):
        return ""
    if "wrong output" in text:
        return "" if tool else "wrong output"
    if child.returncode == -signal.SIGALRM or (tool and "process didn't terminate" in text):
        return "does not end"
    return f"stops: {(text.strip().splitlines() or [''])[-1][:160]}"


def objects(said: str) -> bool:
    "Whether a tool objected. A run that ends in no way that it knows is no objection."
    return bool(said) and said != "does not end" and not said.startswith("stops")


def verdict(said: dict, right: dict) -> str:
    "What the tools object to in a mutant and not in the right kernel."
    tools = [tool for tool in TOOLS if objects(said.get(tool, "")) and not objects(right.get(tool, ""))]
    return "; ".join(f"{tool}: {said[tool]}" for tool in tools)


class Watching:
    "Mutants and the right kernels, as they are and under each tool, so many at a time until the time is up."

    def __init__(self, chosen: list[Mutant], folder: str, until: float):
        self.chosen, self.until = chosen, until
        self.files = [Path(folder, f"{i}.json") for i in range(len(chosen))]
        self.right = {path: f"{folder}/{i}.right" for i, path in enumerate({mutant.path: 0 for mutant in chosen})}
        self.said = {key: {} for key in [*self.right, *range(len(chosen))]}  # by tool, by kernel or number of the mutant
        for mutant, file in zip(chosen, self.files, strict=True):
            file.write_text(json.dumps(mutant._asdict()))

    def look(self, key, tool: str | None = None, after: Future | None = None):
        if after:
            after.result()
        right, plain = isinstance(key, str), self.said[key].get("run")
        if time.time() > self.until or (tool and plain == "does not end"):
            return
        if tool in ADDRESSES and not plain:  # neither output nor addresses have gone wrong
            return
        words = ["keep", key, self.right[key]] if right else ["run", str(self.files[key]), self.right[self.chosen[key].path]]
        if right and tool:
            words[2] += f".{tool}"
        self.said[key][tool or "run"] = said = watch(words, tool)
        print(f"{key if right else self.chosen[key]} {tool or 'run'}: {said}", flush=True)

    def rows(self) -> list[dict]:
        found = []
        for number, mutant in enumerate(self.chosen):
            said, right = self.said[number], self.said[mutant.path]
            if said.get("run") == "does not end" or set(said) >= {"run", "racecheck", "synccheck"}:
                always = [tool for tool in TOOLS if objects(right.get(tool, ""))]
                found.append(row_of(mutant, verdict(said, right)) | said | dict(objects_to_the_right_kernel=always))
        return found


def on_gpu(workers: int, seconds: float, number: int = SAMPLE):
    "A random sample of the mutants as they are and under each tool: those that begin within so many seconds."
    file, env = bench.results_folder() / "mutations_sanitized.json", bench.environment()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        watching = Watching(sample(number), folder, time.time() + seconds)
        right = {path: pool.submit(watching.look, path) for path in watching.right}  # what mutants are compared with
        runs = [pool.submit(watching.look, i, None, right[m.path]) for i, m in enumerate(watching.chosen)]
        tasks = [pool.submit(watching.look, path, "racecheck") for path in right]
        tasks += [pool.submit(watching.look, i, tool, run) for tool in TOOLS for i, run in enumerate(runs)]
        for _ in as_completed(tasks):  # written each time, as a run may be cut short
            bench.write_results(file, watching.rows(), env=env)


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["emulate"]
    workers = int(rest[0]) if rest and rest[0].isdigit() else len(os.sched_getaffinity(0))
    folder = bench.results_folder()
    if what == "list":
        for number, mutant in enumerate(every_mutant()):
            print(number, mutant, "|", mutant.source)
    elif what == "replay":
        sys.exit("\n".join(replay(*map(int, rest))) or 0)
    elif what == "run":
        run_once(*rest)
    elif what == "keep":
        keep(*rest)
    elif what == "sanitize":
        on_gpu(workers, *map(int, rest[1:] or ["600"]))
    elif what == "emulate":
        bench.write_results(folder / "mutations.json", on_emulator(workers))
